"""From the bytes that GetLogicalProcessorInformationEx writes to a Machine, on any system; asks none.

The bytes are records of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX as 64-bit Windows lays them out (winnt.h;
https://learn.microsoft.com/windows/win32/api/winnt/ns-winnt-system_logical_processor_information_ex and the structures
named there). CPU n is bit n % 64 of processor group n / 64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..cpuset import CpuSet, NodeSet
from ..errors import MachineError
from ..machine import CpuKind, Machine, NumaNode
from .sysfs import DATA, INSTRUCTION, UNIFIED, Facts, Group
from .topology import machine_of

GROUP_BITS = 64

_CORE, _NODE, _CACHE, _PACKAGE, _GROUP, _DIE, _NODE_OF_GROUPS, _MODULE = range(8)  # LOGICAL_PROCESSOR_RELATIONSHIP

_HEADER = struct.Struct("<II")  # Relationship, Size of the whole record
_AFFINITY = struct.Struct("<QH6x")  # GROUP_AFFINITY: Mask, Group
_COUNT_AT, _AFFINITIES_AT = 22, 24  # GroupCount and GroupMask of a core, die, module, package or node; after the header
_CACHE_FIELDS = struct.Struct("<BxxxII")  # CACHE_RELATIONSHIP: Level, CacheSize, Type
_CACHE_COUNT_AT, _CACHE_AFFINITIES_AT = 30, 32
_GROUPS_AT = 24  # GROUP_RELATIONSHIP: ActiveGroupCount at 2, then PROCESSOR_GROUP_INFO
_GROUP_INFO = struct.Struct("<40xQ")  # ActiveProcessorMask

_CACHE_KINDS = {0: UNIFIED, 1: INSTRUCTION, 2: DATA}  # PROCESSOR_CACHE_TYPE; traces and unknown ones are left out

# Windows has 32 groups at most, as of Server 2025; what is far beyond that is no number of a group or of a node.
_MOST = 1024


class _Record(NamedTuple):
    relationship: int
    body: bytes


def parse_topology(raw: bytes, memory_bytes: int) -> Machine:
    """The machine that ``raw`` describes, with all of it allowed.

    Windows tells only how much memory is free of each node: every node gets an equal share of ``memory_bytes``, the
    machine's.

    Raises
    ------
    MachineError
        ``raw`` is cut short or contradicts itself.
    """
    try:
        records = list(_records(raw))
        online = _online(records)
        facts = _facts(records, online)
    except struct.error as error:
        raise _not_understood(f"a record is shorter than its fields ({error})") from error
    nodes = _numa_nodes(facts, online, memory_bytes)
    return machine_of(
        CpuSet.from_bits(online),
        facts,
        numa_nodes=nodes,
        cpu_kinds=_cpu_kinds(records, online),
        allowed_cpus=CpuSet.from_bits(online),
        allowed_mems=NodeSet(node.node_id for node in nodes),
    )


def _records(raw: bytes) -> Iterator[_Record]:
    at = 0
    while at < len(raw):
        relationship, size = _HEADER.unpack_from(raw, at)
        if size < _HEADER.size or at + size > len(raw):
            raise _not_understood(f"the record at byte {at} of {len(raw)} claims {size} bytes")
        yield _Record(relationship, raw[at + _HEADER.size : at + size])
        at += size


def _online(records: list[_Record]) -> int:
    online = 0
    for record in records:
        if record.relationship == _GROUP:
            (count,) = struct.unpack_from("<H", record.body, 2)
            for group in range(_plausible(count, "groups")):
                (mask,) = _GROUP_INFO.unpack_from(record.body, _GROUPS_AT + group * _GROUP_INFO.size)
                online |= mask << GROUP_BITS * group
    if not online:
        raise _not_understood("no record tells which CPUs the processor groups have")
    return online


def _facts(records: list[_Record], online: int) -> Facts:
    def groups(relationship: int) -> list[Group]:
        found = [_affinities(body) & online for kind, body in records if kind == relationship]
        return [(bits, None, True) for bits in _disjoint(found)]

    cores, packages = groups(_CORE), groups(_PACKAGE)
    left = online & ~_union(cores)
    if left:
        raise _not_understood(f"CPUs {CpuSet.from_bits(left)} belong to no core")
    left = online & ~_union(packages)
    if left:
        raise _not_understood(f"CPUs {CpuSet.from_bits(left)} belong to no package")
    return Facts(
        cores=cores,
        clusters=groups(_MODULE),
        dies=groups(_DIE),
        packages=packages,
        speeds=[],
        caches=list(_caches(records, online)),
        nodes=_nodes(records, online),
        distances=None,
    )


def _affinities(body: bytes, count_at: int = _COUNT_AT, first_at: int = _AFFINITIES_AT) -> int:
    (count,) = struct.unpack_from("<H", body, count_at)
    bits = 0
    for index in range(max(count, 1)):  # 0 is what Windows before Server 2022 writes for the one group of a node
        mask, group = _AFFINITY.unpack_from(body, first_at + index * _AFFINITY.size)
        bits |= mask << GROUP_BITS * _plausible(group, "group")
    return bits


def _disjoint(found: list[int]) -> list[int]:
    seen = 0
    for bits in found:
        if bits & seen:
            raise _not_understood(f"CPUs {CpuSet.from_bits(bits & seen)} are in two parts of one kind")
        seen |= bits
    return sorted((bits for bits in found if bits), key=lambda bits: bits & -bits)


def _union(groups: list[Group]) -> int:
    return sum(bits for bits, *_ in groups)  # disjoint


def _caches(records: list[_Record], online: int) -> Iterator[tuple[int, int, int, int]]:
    for relationship, body in records:
        if relationship == _CACHE:
            level, size_bytes, kind = _CACHE_FIELDS.unpack_from(body)
            bits = _affinities(body, _CACHE_COUNT_AT, _CACHE_AFFINITIES_AT) & online
            if kind in _CACHE_KINDS and bits:
                yield level, _CACHE_KINDS[kind], size_bytes, bits


def _nodes(records: list[_Record], online: int) -> list[tuple[int, int, int]]:
    nodes: dict[int, int] = {}
    for relationship, body in records:
        if relationship in (_NODE, _NODE_OF_GROUPS):
            (number,) = struct.unpack_from("<I", body)
            number = _plausible(number, "memory node")
            nodes[number] = nodes.get(number, 0) | _affinities(body) & online
    return [(number, bits, 0) for number, bits in sorted(nodes.items())]


def _numa_nodes(facts: Facts, online: int, memory_bytes: int) -> tuple[NumaNode, ...]:
    nodes = facts.nodes or [(0, online, 0)]
    share_bytes = memory_bytes // len(nodes)
    return tuple(
        NumaNode(number, CpuSet.from_bits(bits), share_bytes, memory_only=not bits) for number, bits, _ in nodes
    )


def _cpu_kinds(records: list[_Record], online: int) -> tuple[CpuKind, ...]:
    """By EfficiencyClass of PROCESSOR_RELATIONSHIP: the higher, the faster and the less efficient."""
    kinds: dict[int, int] = {}
    for relationship, body in records:
        if relationship == _CORE:
            kinds[body[1]] = kinds.get(body[1], 0) | _affinities(body) & online
    if len(kinds) < 2:
        return ()
    return tuple(CpuKind(CpuSet.from_bits(kinds[efficiency]), rank) for rank, efficiency in enumerate(sorted(kinds)))


def _plausible(number: int, what: str) -> int:
    if number >= _MOST:
        raise _not_understood(f"{number} cannot be a number of {what}")
    return number


def _not_understood(found: str) -> MachineError:
    return MachineError(
        f"what Windows tells of this machine (GetLogicalProcessorInformationEx) cannot be understood: {found}"
    )
