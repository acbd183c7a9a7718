"""From values of macOS's sysctl to a Machine, on any system; asks none.

The names are those of sysctl(3) and of Apple's "Determining system capabilities"; ``hw.perflevel0`` is the fastest
kind of core. macOS numbers no CPU in any call: the numbers are ours, the slowest kind of core first, as Apple's own
device tree has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..cpuset import CpuSet, NodeSet
from ..errors import MachineError
from ..machine import CpuKind, Machine, NumaNode
from .sysfs import DATA, INSTRUCTION, UNIFIED, Facts, Group
from .topology import machine_of

Reader = Callable[[str], bytes | None]
"""The bytes of the value of this name; ``None`` where there is none."""

_MOST_CPUS = 4096  # far above any Mac's
_QUAD = 8  # hw.cacheconfig is an array of these


@dataclass(frozen=True, slots=True)
class _Level:
    """CPUs of one kind: how many share what."""

    cpus: int
    cores: int
    caches: tuple[tuple[int, int, int, int], ...]
    """Level, kind (DATA, INSTRUCTION, UNIFIED), size in bytes, and how many CPUs share one."""


def parse_topology(read: Reader) -> Machine:
    """The machine that these values describe, with all of it allowed.

    Raises
    ------
    MachineError
        The values do not even tell how many CPUs there are.
    """
    count = _number(read, "hw.logicalcpu")
    if not 0 < count <= _MOST_CPUS:
        raise MachineError(f"what macOS tells of this machine (sysctl hw.logicalcpu: {count}) cannot be understood")
    levels = _levels(read, count)
    every = CpuSet(range(count))
    facts = Facts(
        cores=[],
        clusters=[],
        dies=[],
        packages=_parts(0, count, count // max(_number(read, "hw.packages"), 1)),
        speeds=[],
        caches=[],
        nodes=[],
        distances=None,
    )
    kinds, first = [], 0
    for rank, level in enumerate(levels):
        facts.cores.extend(_parts(first, level.cpus, level.cpus // level.cores))
        for depth, kind, size_bytes, sharing in level.caches:
            facts.caches.extend((depth, kind, size_bytes, bits) for bits, *_ in _parts(first, level.cpus, sharing))
        kinds.append(CpuKind(CpuSet(range(first, first + level.cpus)), rank))
        first += level.cpus
    return machine_of(
        every,
        facts,
        numa_nodes=(NumaNode(0, every, _number(read, "hw.memsize")),),
        cpu_kinds=tuple(kinds) if len(kinds) > 1 else (),
        allowed_cpus=every,
        allowed_mems=NodeSet([0]),
    )


def _levels(read: Reader, count: int) -> list[_Level]:
    """Kinds of CPUs, the slowest first; one where the kinds are not told or do not add up."""
    kinds = range(min(_number(read, "hw.nperflevels"), _MOST_CPUS))
    levels = [_level(read, f"hw.perflevel{kind}") for kind in reversed(kinds)]
    if levels and all(levels) and sum(level.cpus for level in levels if level) == count:
        return [level for level in levels if level]
    sharing = _sharing(read)
    cores = _number(read, "hw.physicalcpu")
    return [
        _Level(
            cpus=count,
            cores=cores if 0 < cores <= count else count,
            caches=_caches(read, "hw", sharing[2] if len(sharing) > 2 else 1, sharing[3] if len(sharing) > 3 else 1),
        )
    ]


def _level(read: Reader, name: str) -> _Level | None:
    cpus, cores = _number(read, f"{name}.logicalcpu"), _number(read, f"{name}.physicalcpu")
    if not 0 < cores <= cpus <= _MOST_CPUS:
        return None
    return _Level(
        cpus, cores, _caches(read, name, _number(read, f"{name}.cpusperl2"), _number(read, f"{name}.cpusperl3"))
    )


def _caches(read: Reader, name: str, per_l2: int, per_l3: int) -> tuple[tuple[int, int, int, int], ...]:
    """Those that have a size; the first level is each core's own."""
    cpus, cores = _number(read, f"{name}.logicalcpu"), _number(read, f"{name}.physicalcpu")
    per_core = cpus // cores if 0 < cores <= cpus else 1
    found = (
        (1, DATA, _number(read, f"{name}.l1dcachesize"), per_core),
        (1, INSTRUCTION, _number(read, f"{name}.l1icachesize"), per_core),
        (2, UNIFIED, _number(read, f"{name}.l2cachesize"), per_l2),
        (3, UNIFIED, _number(read, f"{name}.l3cachesize"), per_l3),
    )
    return tuple(cache for cache in found if cache[2] > 0 and cache[3] > 0)


def _sharing(read: Reader) -> list[int]:
    """How many CPUs share memory, a first-level cache, a second-level one, and so on."""
    raw = read("hw.cacheconfig") or b""
    return [int.from_bytes(raw[at : at + _QUAD], "little") for at in range(0, len(raw), _QUAD)]


def _parts(first: int, count: int, size: int) -> list[Group]:
    """``count`` CPUs from ``first`` on in parts of ``size``; what is left over is a smaller part."""
    size = min(max(size, 1), count)
    ends = (min(start + size, first + count) for start in range(first, first + count, size))
    starts = range(first, first + count, size)
    return [((1 << end) - (1 << start), None, True) for start, end in zip(starts, ends, strict=True)]


def _number(read: Reader, name: str) -> int:
    """Little-endian, of four or eight bytes; 0 where there is none or it is anything else."""
    raw = read(name) or b""
    return int.from_bytes(raw, "little", signed=True) if len(raw) in (4, 8) else 0
