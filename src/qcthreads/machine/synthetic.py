"""Machines that are not here, by their shape: for planning ahead and for tests; asks no operating system."""

from __future__ import annotations

from ..cpuset import CpuSet, NodeSet
from ..errors import InputError
from .model import Cache, Core, Distances, Machine, NumaNode, Package

GIB = 1024**3


def synthetic_machine(
    *,
    packages: int = 1,
    nodes: int = 1,
    llcs: int = 1,
    cores: int = 1,
    threads: int = 1,
    memory_bytes: int = 16 * GIB,
    adjacent_siblings: bool = False,
) -> Machine:
    """A regular machine.

    Parameters
    ----------
    packages, nodes, llcs, cores, threads
        Packages of the machine, memory nodes per package, LLC domains per node, cores per LLC domain, PUs per core.
    memory_bytes
        Memory of every node.
    adjacent_siblings
        Number the PUs of a core one after the other. Otherwise the first PUs of all cores come first, as on x86.

    Raises
    ------
    InputError
        When any count is below 1.
    """
    shape = {"packages": packages, "nodes": nodes, "llcs": llcs, "cores": cores, "threads": threads}
    for name, count in shape.items():
        if count < 1:
            raise InputError(f"a machine needs at least one of each, but {name}={count}")
    total = packages * nodes * llcs * cores
    siblings = [
        range(core * threads, (core + 1) * threads) if adjacent_siblings else range(core, total * threads, total)
        for core in range(total)
    ]

    def groups(size: int) -> list[CpuSet]:
        return [CpuSet(cpu for core in siblings[at : at + size] for cpu in core) for at in range(0, total, size)]

    numa = groups(llcs * cores)
    every = CpuSet(range(total * threads))
    return Machine(
        cpus_online=every,
        cores=tuple(Core(cpus, index % (nodes * llcs * cores)) for index, cpus in enumerate(groups(1))),
        packages=tuple(Package(cpus, index) for index, cpus in enumerate(groups(nodes * llcs * cores))),
        numa_nodes=tuple(NumaNode(index, cpus, memory_bytes) for index, cpus in enumerate(numa)),
        caches=tuple(Cache(3, "unified", 32 * 1024**2, cpus) for cpus in groups(cores)),
        distances=_distances(packages, nodes),
        allowed_cpus=every,
        allowed_mems=NodeSet(range(len(numa))),
    )


def _distances(packages: int, nodes: int) -> Distances | None:
    """10 locally, 12 within a package, 21 between packages: as two-socket x86 servers commonly report."""
    every = range(packages * nodes)
    if len(every) == 1:
        return None
    rows = (tuple(10 if a == b else 12 if a // nodes == b // nodes else 21 for b in every) for a in every)
    return Distances(tuple(every), tuple(rows))
