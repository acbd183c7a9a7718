"""Windows, across processor groups: CPU n is bit n % 64 of group n / 64; binds within one group, as the system does."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from ..cpuset import CpuSet
from ..errors import BindingError, MachineError
from ..machine import Machine
from . import windows_calls
from .binding import binding_error, name_of_thread, require_cpus
from .interface import Binding, Capabilities
from .linux_machine import flat_machine, read_linux_machine
from .memory import MemoryPolicies
from .sysfs import read_facts
from .times import thread_times_error
from .windows_topology import GROUP_BITS, parse_topology

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .sampling import Sampler, TimesSource


class Calls(Protocol):
    """The system calls: the native extension's, or those of ``windows_calls``. They raise OSError."""

    def get_affinity(self, tid: int) -> int:
        """Bits of the mask of a thread."""

    def set_affinity(self, tid: int, asked: int) -> int:
        """Of a thread; the mask read back."""

    def set_process_affinity(self, pid: int, asked: int) -> int:
        """Of all threads of a process; the union of their masks read back."""

    def read_topology(self) -> bytes:
        """What GetLogicalProcessorInformationEx writes."""

    def thread_times(self, pid: int) -> dict[int, int]:
        """CPU times in ns by thread."""


class WindowsHost(MemoryPolicies):
    """Windows, by the native extension's calls or without them."""

    def __init__(self, calls: Calls = windows_calls) -> None:
        self._calls = calls
        self._has_bound_itself = False

    @property
    def capabilities(self) -> Capabilities:
        """What works here."""
        return Capabilities(
            back_end="windows",
            bind_thread=self._calls is not windows_calls,
            bind_process=True,
            inherit_binding=False,
            read_binding=True,
            bind_memory=False,
            thread_times=True,
            run_queue_delay=False,
        )

    def get_affinity(self, tid: int = 0) -> CpuSet:
        """The mask of thread ``tid`` (0: the calling thread): CPUs of one group, also while nobody has bound it."""
        try:
            return CpuSet.from_bits(self._calls.get_affinity(tid))
        except OSError as error:
            raise binding_error(error, name_of_thread(tid)) from error

    def set_affinity(self, cpus: CpuSet, tid: int = 0) -> Binding:
        """Bind thread ``tid`` (0: the calling thread) and read the mask back. Raises a BindingError subclass."""
        try:
            got = self._calls.set_affinity(tid, self._present(cpus))
        except OSError as error:
            raise binding_error(error, name_of_thread(tid), cpus) from error
        self._has_bound_itself |= tid in (0, threading.get_native_id())
        return Binding(cpus, CpuSet.from_bits(got))

    def set_process_affinity(self, cpus: CpuSet, pid: int) -> Binding:
        """Bind all threads of process ``pid``, repeated until none is missed; ``got`` is the union of their masks.

        What it starts later is bound too where Windows then says that the process is in this group alone: only so can
        its own mask be set. Else threads that it starts later are in the group of its choice, with all of its CPUs.
        """
        try:
            got = self._calls.set_process_affinity(pid or os.getpid(), self._present(cpus))
        except OSError as error:
            raise binding_error(error, f"process {pid}", cpus) from error
        self._has_bound_itself |= pid in (0, os.getpid())
        return Binding(cpus, CpuSet.from_bits(got))

    def thread_times(self, pid: int) -> dict[int, int]:
        """CPU time in ns of every thread of process ``pid`` by its number."""
        try:
            return self._calls.thread_times(pid)
        except OSError as error:
            raise thread_times_error(error, pid) from error

    def open_sampler(self, pids: Iterable[int], children: bool = True, source: TimesSource | None = None) -> Sampler:
        """What samples the threads of these processes, and of their descendants if ``children``."""
        from .psutil_sampler import open_python_sampler

        return open_python_sampler(self, pids, children, source)

    def read_machine(self, sysroot: str | None = None) -> Machine:
        """Groups, packages, cores, caches, memory nodes and kinds of cores; a recorded Linux tree in full.

        All groups' CPUs are allowed while the calling thread has all those of its group and nothing here has bound
        itself: a thread that nobody has bound has the mask of the group it was started in, but can be moved to any.
        """
        if sysroot is not None:
            return read_linux_machine(self, sysroot, read_facts)
        machine = self._read_machine()
        try:
            mask = self.get_affinity() & machine.cpus_online
        except BindingError:
            return machine
        may_be_moved = mask == _group_of(mask, machine.cpus_online) and not self._has_bound_itself
        return machine if may_be_moved else replace(machine, allowed_cpus=mask)

    def _read_machine(self) -> Machine:
        import psutil

        memory_bytes = psutil.virtual_memory().total
        try:
            return parse_topology(self._calls.read_topology(), memory_bytes)
        except (OSError, MachineError) as error:
            logging.getLogger("qcthreads.host").warning("every CPU is taken for a core of its own: %s", error)
            return flat_machine(CpuSet(range(os.cpu_count() or 1)), memory_bytes)

    @cached_property
    def _online(self) -> CpuSet:
        return self._read_machine().cpus_online

    def _present(self, cpus: CpuSet) -> int:
        """The bits of those that are there: Windows refuses a mask with any that is not, where Linux drops it."""
        return (require_cpus(cpus) & self._online).bits


def _group_of(cpus: CpuSet, online: CpuSet) -> CpuSet:
    """All CPUs of the group of the first of ``cpus``."""
    first = cpus.first // GROUP_BITS * GROUP_BITS if cpus else 0
    return online & CpuSet(range(first, first + GROUP_BITS))
