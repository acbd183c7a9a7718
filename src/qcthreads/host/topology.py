"""From what the files say to a Machine: locality of memory without CPUs, kinds of CPUs and of memory; binds nothing.

Where hwloc has met machines that we have not, its rules are followed (topology-linux.c and cpukinds.c of hwloc 3.0).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from operator import itemgetter

from ..cpuset import CpuSet, NodeSet
from ..machine import Cache, Cluster, Core, CpuKind, Die, Distances, Machine, NumaNode, Package
from .sysfs import (
    NODE_DIRECTORY,
    Facts,
    Group,
    lines_of,
    names_in,
    numbered,
    online_cpus,
    read_cpus,
    read_facts,
    read_number,
    read_text,
    total_memory_bytes,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

_CACHE_KINDS = ("data", "instruction", "unified")

# Frequencies of one kind of core that differ by less are the same: favoured cores of Intel's Turbo Boost Max 3.0 and
# of AMD's preferred-core ranking (hwloc's HWLOC_CPUKINDS_MAXFREQ).
_SAME_FREQUENCY = 1.10

# High-bandwidth memory has at least so many times the bandwidth of the DRAM beside it (Xeon Max: 4, by HMAT).
_HIGH_BANDWIDTH = 2

# Xeon Phi "Knights Landing" and "Knights Mill", whose memory nodes without CPUs are their MCDRAM.
_XEON_PHI = r"(?ms)^cpu family\s*: 6$.*?^model\s*: (87|133)$"


# Of a core: rank of its type, base and highest frequency, capacity; 0 for what no file tells.
_Trait = tuple[int, int, int, int]


class FactsReader(Protocol):
    """``sysfs.read_facts`` or the extension's."""

    def __call__(self, root: str, online: CpuSet) -> Facts: ...


def read_machine(
    root: str = "/",
    *,
    allowed_cpus: CpuSet | None = None,
    allowed_mems: NodeSet | None = None,
    facts: FactsReader = read_facts,
) -> Machine:
    """The machine whose ``sys/`` and ``proc/`` lie in ``root``.

    ``allowed_*`` are cut to what is there; ``None`` means everything. MachineError when not even CPUs are found.
    """
    online = online_cpus(root)
    found = facts(root, online)
    nodes = _numa_nodes(root, online, found)
    present = NodeSet(node.node_id for node in nodes)
    return machine_of(
        online,
        found,
        numa_nodes=nodes,
        cpu_kinds=_cpu_kinds(root, found),
        allowed_cpus=online if allowed_cpus is None else online & allowed_cpus,
        allowed_mems=present if allowed_mems is None else present & allowed_mems,
    )


def machine_of(
    online: CpuSet,
    facts: Facts,
    *,
    numa_nodes: tuple[NumaNode, ...],
    cpu_kinds: tuple[CpuKind, ...],
    allowed_cpus: CpuSet,
    allowed_mems: NodeSet,
) -> Machine:
    """The machine of these facts, which any platform may have found; dies and clusters only where they say more."""
    cpus = _interned()
    return Machine(
        cpus_online=online,
        cores=tuple(Core(cpus(bits), number, not told) for bits, number, told in facts.cores),
        packages=tuple(Package(cpus(bits), number, not told) for bits, number, told in _packages(facts)),
        numa_nodes=numa_nodes,
        dies=tuple(Die(cpus(bits), number) for bits, number, _ in _dies(facts)),
        clusters=tuple(Cluster(cpus(bits), number) for bits, number, _ in _clusters(facts)),
        caches=_caches(facts, cpus),
        distances=Distances(tuple(node.node_id for node in numa_nodes), tuple(facts.distances))
        if facts.distances
        else None,
        cpu_kinds=cpu_kinds,
        allowed_cpus=allowed_cpus,
        allowed_mems=allowed_mems,
    )


def _interned() -> Callable[[int], CpuSet]:
    """Equal sets are one object: a core's, its caches' and their package's are thousands on a big machine."""
    known: dict[int, CpuSet] = {}

    def cpus(bits: int) -> CpuSet:
        made = known.get(bits)
        if made is None:
            made = known[bits] = CpuSet.from_bits(bits)
        return made

    return cpus


def _packages(facts: Facts) -> list[Group]:
    """Those that files tell of, and a package for every core with PUs that no file puts into one."""
    told = [group for group in facts.packages if group[2]]
    if len(told) == len(facts.packages):
        return told
    left = 0
    for bits, _, is_told in facts.packages:
        left |= 0 if is_told else bits
    alone = [(bits & left, None, False) for bits, _, _ in facts.cores if bits & left]
    return sorted([*told, *alone], key=lambda group: group[0] & -group[0])


def _dies(facts: Facts) -> list[Group]:
    """Only where a package has more than one."""
    packages = {bits for bits, *_ in facts.packages}
    return [] if all(bits in packages for bits, *_ in facts.dies) else facts.dies


def _clusters(facts: Facts) -> list[Group]:
    """Only those that say something that cores, dies and packages do not."""
    known = {bits for level in (facts.cores, facts.dies, facts.packages) for bits, *_ in level}
    return [group for group in facts.clusters if group[0] not in known]


def _caches(facts: Facts, cpus: Callable[[int], CpuSet]) -> tuple[Cache, ...]:
    """By level, kind and lowest CPU; one that two files tell of is one. The sets are interned: their ids tell them."""
    found = {}
    for level, kind, size, bits in facts.caches:
        shared = cpus(bits)
        found[level, kind, id(shared)] = (level, kind, bits & -bits), size, shared
    ordered = sorted(found.values(), key=itemgetter(0))
    return tuple(Cache(level, _CACHE_KINDS[kind], size, shared) for (level, kind, _), size, shared in ordered)


# Memory nodes


def _numa_nodes(root: str, online: CpuSet, facts: Facts) -> tuple[NumaNode, ...]:
    """The memory nodes; a kernel without NUMA has one that holds everything.

    So has the only node with memory. Of what was added since the kernel started its own file may tell less.
    """
    numbers = [str(node) for node, *_ in facts.nodes]
    holds_everything = not numbers or numbers == [read_text(root, f"{NODE_DIRECTORY}/has_memory")]
    whole_bytes = total_memory_bytes(read_text(root, "proc/meminfo")) if holds_everything else 0
    if not numbers:
        return (NumaNode(0, online, whole_bytes),)
    if all(bits for _, bits, _ in facts.nodes):
        return tuple(NumaNode(node, CpuSet.from_bits(bits), max(size, whole_bytes)) for node, bits, size in facts.nodes)
    gpus = {int(node): bus for bus, node in lines_of(root, "proc/driver/nvidia/gpus", "numa_status", _GPU_NODE)}
    near = _localities(root, facts, gpus)
    kinds = _kinds(root, facts, gpus)
    return tuple(
        NumaNode(node, CpuSet.from_bits(near[node]) & online, size, kinds.get(node, "DRAM"), not bits)
        for node, bits, size in facts.nodes
    )


_GPU_NODE = r"^Node:\s*([0-9]{1,6})"  # NVIDIA's driver on machines whose GPUs' memory is a memory node (POWER9, Grace)


def _localities(root: str, facts: Facts, gpus: dict[int, str]) -> dict[int, int]:
    """The CPUs next to each node; for one without CPUs those of its initiators, or of the nodes nearest to it."""
    near = {node: bits for node, bits, _ in facts.nodes}
    for at, (node, bits, _) in enumerate(facts.nodes):
        if node in gpus:
            local = read_cpus(root, f"sys/bus/pci/devices/{gpus[node]}/local_cpus")
            near[node] = bits or (local.bits if local else 0)
        elif not bits:
            near[node] = _initiators(root, node, near) or _nearest(at, facts, near)
    return near


def _initiators(root: str, node: int, near: dict[int, int]) -> int:
    """As the firmware's HMAT tells: access1 names the fastest CPUs, access0 also faster devices that are none."""
    bits = 0
    for access in ("access1", "access0"):
        directory = f"{NODE_DIRECTORY}/node{node}/{access}/initiators"
        if os.path.isdir(os.path.join(root, directory)):  # noqa: PTH112, PTH118 - root need not be a path of this OS
            for other in numbered(root, directory, "node"):
                bits |= near.get(other, 0) if other != node else 0
            return bits
    return bits


def _nearest(at: int, facts: Facts, near: dict[int, int]) -> int:
    """Those of the nodes at the least distance; none where that is all nodes, or no farther than the node itself."""
    if not facts.distances:
        return 0
    row = facts.distances[at]
    others = [index for index in range(len(row)) if index != at]
    least = min(row[index] for index in others)
    closest = [index for index in others if row[index] == least]
    if least <= row[at] or len(closest) == len(others):
        return 0
    bits = 0
    for index in closest:
        bits |= near[facts.nodes[index][0]]
    return bits


def _kinds(root: str, facts: Facts, gpus: dict[int, str]) -> dict[int, str]:
    """What is known to be something else than DRAM, by the best witness there is."""
    places = _dax_places(root)
    lone = [node for node, bits, _ in facts.nodes if not bits]
    homes = [node for node, bits, _ in facts.nodes if bits and node not in places]
    reserved = [node for node, place in places.items() if "/hmem" in place]
    phi = re.search(_XEON_PHI, read_text(root, "proc/cpuinfo") or "") is not None
    kinds = dict.fromkeys(lone, "HBM") if phi else {}
    for witness in (_tier_kinds(root, homes), _bandwidth_kinds(root, [*lone, *reserved], homes), _dax_kinds(places)):
        kinds.update({node: kind for node, kind in witness.items() if node in lone or node in reserved})
    return kinds | dict.fromkeys(gpus, "GPU")


def _dax_places(root: str) -> dict[int, str]:
    """Nodes whose memory the kernel was given as a device, and its place in the tree of devices."""
    places = {}
    devices = "sys/bus/dax/devices"
    for name in names_in(root, devices):
        node = read_number(root, f"{devices}/{name}/target_node")
        if node is not None:
            places[node] = os.path.realpath(os.path.join(root, devices, name))  # noqa: PTH118
    return places


def _dax_kinds(places: dict[int, str]) -> dict[int, str]:
    """The place says what it is; what firmware reserved ("hmem") may be anything."""
    kinds = {node: "CXL" for node, place in places.items() if "/ACPI0017:" in place or "/decoder" in place}
    return kinds | {node: "NVM" for node, place in places.items() if "/ndbus" in place}


def _bandwidth_kinds(root: str, nodes: list[int], homes: list[int]) -> dict[int, str]:
    """By HMAT: much more bandwidth than the nodes with CPUs."""
    ordinary = max((_bandwidth(root, node) for node in homes), default=0)
    return {node: "HBM" for node in nodes if ordinary and _bandwidth(root, node) >= _HIGH_BANDWIDTH * ordinary}


def _bandwidth(root: str, node: int) -> int:
    found = (
        read_number(root, f"{NODE_DIRECTORY}/node{node}/{access}/initiators/read_bandwidth")
        for access in ("access1", "access0")
    )
    return next((number for number in found if number is not None), 0)


def _tier_kinds(root: str, homes: list[int]) -> dict[int, str]:
    """By the kernel's memory tiers, the fastest first (Documentation/ABI/testing/sysfs-kernel-mm-memory-tiers)."""
    directory = "sys/devices/virtual/memory_tiering"
    tiers = {}
    for tier in numbered(root, directory, "memory_tier"):
        for node in read_cpus(root, None, f"{directory}/memory_tier{tier}/nodelist") or ():
            tiers[node] = tier
    own = [tiers[node] for node in homes if node in tiers]
    if not own:
        return {}
    faster = {node: "HBM" for node, tier in tiers.items() if tier < min(own)}
    return faster | {node: "CXL" for node, tier in tiers.items() if tier > max(own)}


# Kinds of CPUs


def _cpu_kinds(root: str, facts: Facts) -> tuple[CpuKind, ...]:
    """Cores that differ in design; where the kernel tells no design, in type, base and highest frequency or capacity.

    A kind's frequencies and capacity are the least of its cores'.
    """
    types = _core_types(root)
    if not types and len(set(facts.speeds)) < 2:
        return ()
    designs = [midr for *_, midr in facts.speeds]
    traits = _traits(facts, types)
    kinds: dict[object, tuple[int, _Trait]] = {}
    for (bits, *_), design, trait in zip(
        facts.cores, designs, traits if any(designs) else _evened(traits), strict=True
    ):
        if design or any(trait):  # a core that no file tells anything of is of no kind
            key = design if any(designs) else trait
            others, least = kinds.get(key, (0, trait))
            kinds[key] = others | bits, _least(least, trait)
    if len(kinds) < 2:
        return ()
    rank_by = _rank_by([trait for _, trait in kinds.values()])
    ranked = sorted(kinds.values(), key=lambda kind: rank_by(kind[1]))
    return tuple(CpuKind(CpuSet.from_bits(bits), rank) for rank, (bits, _) in enumerate(ranked))


def _traits(facts: Facts, types: list[tuple[int, int]]) -> list[_Trait]:
    cppc = facts.speeds[0][1] is None
    traits = []
    for (bits, *_), (max_khz, base_khz, nominal_mhz, capacity, _) in zip(facts.cores, facts.speeds, strict=True):
        base = (nominal_mhz or 0) * 1000 if cppc else base_khz or 0
        kind = next((rank for rank, cpus in types if cpus & bits), 0)
        traits.append((kind, base // 1000, max_khz or 0, capacity or 0))
    return traits


def _least(one: _Trait, other: _Trait) -> _Trait:
    return min(one[0], other[0]), min(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def _core_types(root: str) -> list[tuple[int, int]]:
    """(rank, bits) by the performance-monitoring units that a hybrid x86 CPU has one of for each type of core."""
    types = []
    for rank, device in enumerate(("cpu_lowpower", "cpu_atom", "cpu_core"), start=1):
        cpus = read_cpus(root, None, f"sys/devices/{device}/cpus")
        if cpus:
            types.append((rank, cpus.bits))
    return types


def _evened(traits: list[_Trait]) -> list[_Trait]:
    """Without the small differences between cores of one base frequency; all differences where no base is known."""
    known = all(base or not highest for _, base, highest, _ in traits)
    evened = []
    for kind, base, highest, capacity in traits:
        alike = [trait for trait in traits if trait[1] == base] if known else []
        least = min((trait[2] for trait in alike), default=0)
        if least and max(trait[2] for trait in alike) < _SAME_FREQUENCY * least:
            highest, capacity = least, min(trait[3] for trait in alike)
        evened.append((kind, base, highest // 1000, capacity))
    return evened


def _rank_by(traits: list[_Trait]) -> Callable[[_Trait], tuple[int, ...]]:
    """By capacity, which is the kernel's own measure, where it tells all kinds apart; else by type, then frequency."""
    capacities = [capacity for *_, capacity in traits]
    if all(capacities) and len(set(capacities)) == len(capacities):
        return lambda trait: (trait[3],)
    if all(base for _, base, *_ in traits):
        return lambda trait: trait
    return lambda trait: (trait[0], trait[2], trait[1], trait[3])
