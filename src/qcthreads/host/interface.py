"""What every platform back end provides, and which of it works where; types only, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..cpuset import CpuSet
from ..machine import Machine


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a back end can do on this platform; what it cannot do degrades to the next best thing, once, and says so."""

    back_end: str
    """``native``, ``portable``, ``darwin`` or ``windows``."""
    bind_thread: bool
    bind_process: bool
    read_binding: bool
    bind_memory: bool
    thread_times: bool
    """CPU time of single threads of other processes."""
    run_queue_delay: bool
    """How long a thread waited for a CPU."""


@dataclass(frozen=True, slots=True)
class Binding:
    """The outcome of a request to bind: what was asked for and what the operating system says it is now."""

    asked: CpuSet
    got: CpuSet

    @property
    def lost(self) -> CpuSet:
        """CPUs asked for and silently dropped."""
        return self.asked - self.got


class Host(Protocol):
    """One platform's way to be asked and told; obtained from :func:`qcthreads.host.get_host`."""

    @property
    def capabilities(self) -> Capabilities:
        """What works here."""

    def get_affinity(self, tid: int = 0) -> CpuSet:
        """The mask of thread ``tid`` (0: the calling thread)."""

    def set_affinity(self, cpus: CpuSet, tid: int = 0) -> Binding:
        """Bind thread ``tid`` (0: the calling thread) and read the mask back. Raises a BindingError subclass."""

    def set_process_affinity(self, cpus: CpuSet, pid: int) -> Binding:
        """Bind all threads of process ``pid``, repeated until none is missed; ``got`` is the union of their masks."""

    def read_machine(self, sysroot: str | None = None) -> Machine:
        """The machine, from the live system or from a recorded tree holding ``sys/`` and ``proc/``."""
