"""The machine as frozen values; knows nothing of how they were read, and never asks the operating system."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from ..cpuset import CpuSet, NodeSet
from ..light import dataclass

_NO_CPUS = CpuSet()
_NO_NODES = NodeSet()


@dataclass(frozen=True, slots=True)
class Core:
    """A physical core: its PUs share one set of execution units."""

    cpus: CpuSet
    core_id: int | None = None
    """The kernel's ``core_id``: unique in a package at best."""
    assumed: bool = False
    """Nothing tells of a core: a PU that no file describes counts as one."""


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache: ``kind`` is ``data``, ``instruction`` or ``unified``."""

    level: int
    kind: str
    size_bytes: int
    cpus: CpuSet


@dataclass(frozen=True, slots=True)
class LlcDomain:
    """The PUs that share one last-level cache."""

    cpus: CpuSet
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """Cores of a die that share something below the last-level cache; listed only where it is neither core nor die."""

    cpus: CpuSet
    cluster_id: int | None = None


@dataclass(frozen=True, slots=True)
class Die:
    """One die of a package; listed only where a package has more than one."""

    cpus: CpuSet
    die_id: int | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """One package (socket)."""

    cpus: CpuSet
    package_id: int | None = None
    assumed: bool = False
    """Nothing tells of a package: a core that no file puts into one counts as one."""


@dataclass(frozen=True, slots=True)
class NumaNode:
    """One memory node with the PUs next to it; ``kind`` is ``DRAM``, ``HBM``, ``CXL``, ``NVM`` or ``GPU``."""

    node_id: int
    cpus: CpuSet
    memory_bytes: int
    kind: str = "DRAM"
    memory_only: bool = False
    """No PU belongs to it; ``cpus`` are those that reach it fastest, which belong to other nodes."""


@dataclass(frozen=True, slots=True)
class Distances:
    """Relative memory latencies between nodes (10 = local); row i, column j: from ``nodes[i]`` to ``nodes[j]``."""

    nodes: tuple[int, ...]
    matrix: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class CpuKind:
    """PUs of one kind of a hybrid machine; a higher ``efficiency`` rank is the faster kind, as in hwloc."""

    cpus: CpuSet
    efficiency: int


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the machine whose PUs lie next to each other, and its own parts; sets are bits of ints for speed."""

    bits: int
    cores: tuple[int, ...]
    """Every core's PUs, in order of the lowest PU."""
    firsts: int
    """The lowest PU of every core."""
    parts: tuple[Region, ...]
    """Disjoint, and together the whole region; none in the narrowest, which are LLC domains where these are known."""


@dataclass(frozen=True)
class Machine:
    """What there is, and what of it this process may use (``allowed_*``).

    Every tuple is sorted by lowest PU (nodes by number). ``cores`` and ``packages`` each cover ``cpus_online`` exactly
    once.
    """

    cpus_online: CpuSet
    cores: tuple[Core, ...]
    packages: tuple[Package, ...]
    numa_nodes: tuple[NumaNode, ...]
    dies: tuple[Die, ...] = ()
    clusters: tuple[Cluster, ...] = ()
    caches: tuple[Cache, ...] = ()
    distances: Distances | None = None
    cpu_kinds: tuple[CpuKind, ...] = ()
    allowed_cpus: CpuSet = _NO_CPUS
    allowed_mems: NodeSet = _NO_NODES

    @cached_property
    def llc_domains(self) -> tuple[LlcDomain, ...]:
        """Last-level-cache domains: data or unified caches of the highest level; a package where none is known."""
        shared = [cache for cache in self.caches if cache.kind != "instruction"]
        top = max((cache.level for cache in shared), default=0)
        domains = [LlcDomain(cache.cpus, cache.size_bytes) for cache in shared if cache.level == top and top > 1]
        covered = 0
        for domain in domains:
            covered |= domain.cpus.bits
        for package in self.packages:
            rest = package.cpus.bits & ~covered
            if rest:
                domains.append(LlcDomain(CpuSet.from_bits(rest), 0))
        return tuple(sorted(domains, key=lambda domain: domain.cpus.first))

    @cached_property
    def region(self) -> Region:
        """The whole machine as nested regions: packages, memory nodes, dies and LLC domains, widest first."""
        homes = [node for node in self.numa_nodes if not node.memory_only]
        levels = [[part.cpus.bits for part in level] for level in (self.packages, homes, self.dies, self.llc_domains)]
        levels = [level for level in levels if len(level) > 1]
        levels.sort(key=len)  # a node may hold packages or lie in one: fewer parts are wider parts
        cores = tuple(core.cpus.bits for core in self.cores)
        return _region(self.cpus_online.bits, cores, levels)

    @cached_property
    def core_bits(self) -> Mapping[int, int]:
        """Of every PU that is online, the bits of all PUs of its core."""
        return {cpu: core.cpus.bits for core in self.cores for cpu in core.cpus}

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """All regions, the narrowest first."""
        found = [self.region]
        for region in found:  # grows while it is read
            found.extend(region.parts)
        return tuple(sorted(found, key=lambda region: region.bits.bit_count()))

    def nodes_of(self, cpus: CpuSet) -> NodeSet:
        """The memory nodes to allocate from next to ``cpus``; all allowed nodes where no node is next to any of them.

        Ordinary memory where there is any: memory-only nodes (HBM, CXL, NVM, GPU) are for those who ask for them.
        """
        near = [node for node in self.numa_nodes if not node.cpus.isdisjoint(cpus)]
        homes = [node for node in near if not node.memory_only and node.memory_bytes]
        ordinary = [node for node in near if node.kind in ("DRAM", "HBM") and node.memory_bytes]
        return NodeSet(node.node_id for node in homes or ordinary or near) or self.allowed_mems


def _region(bits: int, cores: tuple[int, ...], levels: list[list[int]]) -> Region:
    own = tuple(core for core in cores if core & bits)
    firsts = sum(core & -core for core in own)
    for depth, level in enumerate(levels):
        parts = _disjoint(bits, level)
        if len(parts) > 1:
            return Region(bits, own, firsts, tuple(_region(part, own, levels[depth + 1 :]) for part in parts))
    return Region(bits, own, firsts, ())


def _disjoint(bits: int, level: list[int]) -> list[int]:
    """Cut ``bits`` along ``level``; what overlaps goes to the first, what no part covers is a part of its own."""
    parts = []
    for part in [*level, bits]:
        if part & bits:
            parts.append(part & bits)
            bits &= ~part
    return parts
