"""macOS: counts cores, and binds nothing, because the system has no call for it; never pretends otherwise."""

from __future__ import annotations

import os

from ..cpuset import CpuSet
from ..errors import BindingNotSupportedError
from ..machine import Machine
from .interface import Binding, Capabilities
from .live import flat_machine
from .topology import read_machine

_WHY = "macOS binds neither threads nor processes to CPUs; leases still count CPUs: run with affinity turned off"


class DarwinHost:
    """macOS through psutil."""

    @property
    def capabilities(self) -> Capabilities:
        """What works here."""
        return Capabilities(
            back_end="darwin",
            bind_thread=False,
            bind_process=False,
            read_binding=False,
            bind_memory=False,
            thread_times=False,
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

    def read_machine(self, sysroot: str | None = None) -> Machine:
        """As many cores as there are, in one package; a recorded Linux tree in full."""
        if sysroot is not None:
            return read_machine(sysroot)
        import psutil

        return flat_machine(self.get_affinity(), psutil.virtual_memory().total)
