"""The Linux machine under this process, or a recorded one, with what of it is allowed; binds nothing."""

from __future__ import annotations

import os

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError
from ..machine import Core, Machine, NumaNode, Package
from .interface import Host
from .limits import allowed_by_records
from .sysfs import NoCpusFoundError
from .topology import FactsReader, read_machine


def read_linux_machine(host: Host, sysroot: str | None, facts: FactsReader) -> Machine:
    """The machine; where neither /sys nor /proc can be read, as many CPUs as the mask or the C library know."""
    if sysroot is not None:
        cpus, mems = allowed_by_records(sysroot)
        return read_machine(sysroot, allowed_cpus=cpus, allowed_mems=mems, facts=facts)
    try:
        mask = host.get_affinity()
    except BindingError:
        mask = None
    mems = allowed_by_records("/")[1]
    try:
        return read_machine("/", allowed_cpus=mask, allowed_mems=mems, facts=facts)
    except NoCpusFoundError:
        return flat_machine(mask or CpuSet(range(os.cpu_count() or 1)), 0)


def flat_machine(cpus: CpuSet, memory_bytes: int) -> Machine:
    """So many cores of one PU in one package with one memory node: for where nothing describes the machine."""
    return Machine(
        cpus_online=cpus,
        cores=tuple(Core(CpuSet([cpu]), assumed=True) for cpu in cpus),
        packages=(Package(cpus, assumed=True),),
        numa_nodes=(NumaNode(0, cpus, memory_bytes),),
        allowed_cpus=cpus,
        allowed_mems=NodeSet([0]),
    )
