"""Linux through the native extension: raw system calls, masks as wide as the kernel's; decides nothing."""

from __future__ import annotations

import os
import sys
from functools import cache

from ..cpuset import CpuSet
from . import _native, sysfs
from .binding import binding_error, name_of_thread, require_cpus
from .interface import Binding, Capabilities
from .memory import MemoryPolicies, works
from .sysfs import Facts
from .times import psutil_thread_times, thread_times_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..machine import Machine
    from .sampling import Sampler, TimesSource
assert sys.platform == "linux", "the extension has these functions on Linux alone"


class LinuxHost(MemoryPolicies):
    """Linux with the native extension."""

    memory_calls = _native

    @property
    def capabilities(self) -> Capabilities:
        """What works here."""
        return Capabilities(
            back_end="native",
            bind_thread=True,
            bind_process=True,
            inherit_binding=True,
            read_binding=True,
            bind_memory=_memory_works(),
            thread_times=True,
            run_queue_delay=True,
        )

    def get_affinity(self, tid: int = 0) -> CpuSet:
        """The mask of thread ``tid`` (0: the calling thread)."""
        try:
            return CpuSet.from_bits(_native.get_affinity(tid))
        except OSError as error:
            raise binding_error(error, name_of_thread(tid)) from error

    def set_affinity(self, cpus: CpuSet, tid: int = 0) -> Binding:
        """Bind thread ``tid`` (0: the calling thread) and read the mask back. Raises a BindingError subclass."""
        try:
            return Binding(cpus, CpuSet.from_bits(_native.set_affinity(tid, require_cpus(cpus).bits)))
        except OSError as error:
            raise binding_error(error, name_of_thread(tid), cpus) from error

    def set_process_affinity(self, cpus: CpuSet, pid: int) -> Binding:
        """Bind all threads of process ``pid``, repeated until none is missed; ``got`` is the union of their masks."""
        try:
            got = _native.set_process_affinity(pid or os.getpid(), require_cpus(cpus).bits)
        except OSError as error:
            raise binding_error(error, f"process {pid}", cpus) from error
        return Binding(cpus, CpuSet.from_bits(got))

    def thread_times(self, pid: int) -> dict[int, int]:
        """CPU time of every thread of process ``pid`` by its number, in ns, to a clock tick."""
        try:
            return psutil_thread_times(pid)
        except OSError as error:
            raise thread_times_error(error, pid) from error

    def open_sampler(self, pids: Iterable[int], children: bool = True, source: TimesSource | None = None) -> Sampler:
        """What samples the threads of these processes, and of their descendants if ``children``."""
        if source == "psutil":
            from .psutil_sampler import PsutilSampler

            return PsutilSampler(self, pids, children)
        from .native_sampler import NativeSampler

        return NativeSampler(pids, children, source or _native.times_source())

    def read_machine(self, sysroot: str | None = None) -> Machine:
        """The machine, from the live system or from a recorded tree holding ``sys/`` and ``proc/``."""
        # With all of the machine's types, which those who only bind never need.
        from .linux_machine import read_linux_machine

        return read_linux_machine(self, sysroot, read_facts)


def read_facts(root: str, online: CpuSet) -> Facts:
    """What ``sysfs.read_facts`` gives, by the extension; raises what that raises."""
    try:
        directory = os.open(root, os.O_RDONLY)
        try:
            return Facts(*_native.read_topology(directory, online.bits))
        finally:
            os.close(directory)
    except OSError:
        return sysfs.read_facts(root, online)  # which says the file that cannot be understood, and why


@cache
def _memory_works() -> bool:
    return works(_native)
