"""The Linux machine under this process, or a recorded one, with what of it is allowed; binds nothing."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError, MachineError
from ..machine import Core, Machine, NumaNode, Package
from .cgroup import ControlGroups
from .cpusets import allowed_by_records, allowed_nodes
from .interface import Host
from .sysfs import CPU_DIRECTORY, NoCpusFoundError, read_text
from .topology import FactsReader, read_machine

# A reading takes a millisecond, and nobody switches so many CPUs so fast.
_READINGS = 10


def read_linux_machine(host: Host, sysroot: str | None, facts: FactsReader) -> Machine:
    """The machine; where neither /sys nor /proc can be read, as many CPUs as the mask or the C library know."""
    if sysroot is not None:
        cpus, mems = allowed_by_records(sysroot)
        return read_machine(sysroot, allowed_cpus=cpus, allowed_mems=mems, facts=facts)
    try:
        return _settled(lambda: read_machine("/", allowed_cpus=_mask(host), allowed_mems=_mems(), facts=facts))
    except NoCpusFoundError:
        return flat_machine(_mask(host) or CpuSet(range(os.cpu_count() or 1)), 0)


def _mask(host: Host) -> CpuSet | None:
    try:
        return host.get_affinity()
    except BindingError:
        return None


def _mems() -> NodeSet | None:
    return allowed_nodes(ControlGroups("/"))


def _settled(read: Callable[[], Machine]) -> Machine:
    """What ``read`` gives while no CPU comes or goes: half of a reading before, half after, would be no machine."""
    previous = None
    for _ in range(_READINGS):
        before = _changes()
        machine = read()
        _wait_for_switches(machine)
        if _changes() == before or machine == previous:  # other devices come and go too
            return machine
        previous = machine
    raise MachineError(
        f"CPUs were switched on or off during each of {_READINGS} readings of /{CPU_DIRECTORY}; "
        "try again when that is over"
    )


def _wait_for_switches(machine: Machine) -> None:
    """Wait until a CPU that is being switched on or off is: it is online before its caches are told, and after.

    Reading ``cpuN/online`` takes the lock that the kernel (device_online in drivers/base/core.c) holds until it has
    sent the event; only the CPUs that some kind of cache lacks can be at it, and these are few or none.
    """
    described: dict[tuple[int, str], int] = {}
    for cache in machine.caches:
        kind = cache.level, cache.kind
        described[kind] = described.get(kind, 0) | cache.cpus.bits
    complete = machine.cpus_online.bits
    for bits in described.values():
        complete &= bits
    for cpu in CpuSet.from_bits(machine.cpus_online.bits & ~complete):
        read_text("/", f"{CPU_DIRECTORY}/cpu{cpu}/online")


def _changes() -> tuple[str | None, str | None]:
    """Is another when a CPU has come or gone meanwhile: the kernel counts the events it sends for any device."""
    return read_text("/", f"{CPU_DIRECTORY}/online"), read_text("/", "sys/kernel/uevent_seqnum")


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
