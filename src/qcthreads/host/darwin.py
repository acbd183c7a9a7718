"""macOS: reads the topology and the times of threads, and binds nothing, because the system has no call for it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Protocol

from ..cpuset import CpuSet
from ..errors import BindingNotSupportedError, MachineError
from ..machine import Machine
from . import darwin_calls
from .darwin_topology import parse_topology
from .interface import Binding, Capabilities
from .linux_machine import flat_machine, read_linux_machine
from .memory import MemoryPolicies
from .sysfs import read_facts
from .times import thread_times_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .sampling import Sampler, TimesSource

_WHY = "macOS binds neither threads nor processes to CPUs; leases still count CPUs: run with affinity turned off"


class Calls(Protocol):
    """The system calls: the native extension's, or those of ``darwin_calls``. They raise OSError."""

    def read_sysctl(self, name: str) -> bytes:
        """The bytes of the value of this name."""

    def thread_times(self, pid: int) -> dict[int, int]:
        """CPU times in ns by thread."""


class DarwinHost(MemoryPolicies):
    """macOS, by the native extension's calls or without them."""

    def __init__(self, calls: Calls = darwin_calls) -> None:
        self._calls = calls

    @property
    def capabilities(self) -> Capabilities:
        """What works here."""
        return Capabilities(
            back_end="darwin",
            bind_thread=False,
            bind_process=False,
            inherit_binding=False,
            read_binding=False,
            bind_memory=False,
            thread_times=self._calls is not darwin_calls,  # psutil may see the threads of its own process alone
            run_queue_delay=False,
        )

    def get_affinity(self, tid: int = 0) -> CpuSet:
        """All CPUs: a thread may run anywhere."""
        del tid
        return CpuSet(range(os.cpu_count() or 1))

    def set_affinity(self, cpus: CpuSet, tid: int = 0) -> Binding:
        """Raises BindingNotSupportedError."""
        raise BindingNotSupportedError(f"cannot bind thread {tid} to CPUs {cpus}: {_WHY}")

    def set_process_affinity(self, cpus: CpuSet, pid: int) -> Binding:
        """Raises BindingNotSupportedError."""
        raise BindingNotSupportedError(f"cannot bind process {pid} to CPUs {cpus}: {_WHY}")

    def thread_times(self, pid: int) -> dict[int, int]:
        """CPU time in ns of every thread of process ``pid``; other processes' threads are numbered by the kernel."""
        try:
            return self._calls.thread_times(pid)
        except OSError as error:
            raise thread_times_error(error, pid) from error

    def open_sampler(self, pids: Iterable[int], children: bool = True, source: TimesSource | None = None) -> Sampler:
        """What samples the threads of these processes, and of their descendants if ``children``."""
        from .psutil_sampler import open_python_sampler

        return open_python_sampler(self, pids, children, source)

    def read_machine(self, sysroot: str | None = None) -> Machine:
        """Packages, cores, caches and kinds of cores; a recorded Linux tree in full."""
        if sysroot is not None:
            return read_linux_machine(self, sysroot, read_facts)
        try:
            return parse_topology(self._read)
        except (OSError, MachineError) as error:  # a sandbox without sysctl, or without some of its values
            import psutil

            logging.getLogger("qcthreads.host").warning("every CPU is taken for a core of its own: %s", error)
            return flat_machine(self.get_affinity(), psutil.virtual_memory().total)

    def _read(self, name: str) -> bytes | None:
        try:
            return self._calls.read_sysctl(name)
        except FileNotFoundError:
            return None
