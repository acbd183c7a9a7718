"""Windows through psutil: one processor group, so up to 64 CPUs; binds whole processes, not threads."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingNotPermittedError, BindingNotSupportedError, ProcessGoneError
from ..machine import Machine
from .binding import require_cpus
from .interface import Binding, Capabilities, MemoryBinding, MemoryKind, MemoryPolicy
from .live import flat_machine
from .topology import read_machine

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NO_NODES = NodeSet()
_NO_POLICY = "Windows has no memory policies; leave it at the default"


class WindowsHost:
    """Windows, within the processor group of the process."""

    @property
    def capabilities(self) -> Capabilities:
        """What works here."""
        return Capabilities(
            back_end="windows",
            bind_thread=False,
            bind_process=True,
            read_binding=True,
            bind_memory=False,
            thread_times=True,
            run_queue_delay=False,
        )

    def get_affinity(self, tid: int = 0) -> CpuSet:
        """The mask of this process; of no other thread."""
        if tid:
            raise BindingNotSupportedError(f"cannot read the mask of thread {tid}: only whole processes have one here")
        return _get(os.getpid())

    def set_affinity(self, cpus: CpuSet, tid: int = 0) -> Binding:
        """Raises BindingNotSupportedError."""
        raise BindingNotSupportedError(
            f"cannot bind thread {tid} to CPUs {cpus}: only whole processes can be bound here; bind the process"
        )

    def set_process_affinity(self, cpus: CpuSet, pid: int) -> Binding:
        """Bind process ``pid`` and read the mask back."""
        import psutil

        try:
            _set(pid, require_cpus(cpus))
        except psutil.NoSuchProcess as error:
            raise ProcessGoneError(
                f"cannot bind process {pid} to CPUs {cpus}: it has ended; nothing needs to be done"
            ) from error
        except psutil.AccessDenied as error:
            raise BindingNotPermittedError(
                f"cannot bind process {pid} to CPUs {cpus}: the system does not permit it"
            ) from error
        return Binding(cpus, _get(pid))

    def set_memory_policy(self, kind: MemoryKind, nodes: NodeSet = _NO_NODES) -> MemoryBinding:
        """Raises BindingNotSupportedError."""
        raise BindingNotSupportedError(f"cannot set memory policy {MemoryPolicy(kind, nodes)}: {_NO_POLICY}")

    def get_memory_policy(self) -> MemoryPolicy:
        """Raises BindingNotSupportedError."""
        raise BindingNotSupportedError(f"cannot read a memory policy: {_NO_POLICY}")

    def bind_buffer(self, buffer: Buffer, kind: MemoryKind, nodes: NodeSet = _NO_NODES) -> MemoryBinding:
        """Raises BindingNotSupportedError."""
        del buffer
        raise BindingNotSupportedError(f"cannot give a buffer {MemoryPolicy(kind, nodes)}: {_NO_POLICY}")

    def page_nodes(self, buffer: Buffer) -> tuple[int | None, ...]:
        """Raises BindingNotSupportedError."""
        del buffer
        raise BindingNotSupportedError(f"cannot ask where a buffer lies: {_NO_POLICY}")

    def read_machine(self, sysroot: str | None = None) -> Machine:
        """As many cores as the process may use, in one package; a recorded Linux tree in full."""
        if sysroot is not None:
            return read_machine(sysroot)
        import psutil

        return flat_machine(self.get_affinity(), psutil.virtual_memory().total)


if sys.platform == "win32":

    def _get(pid: int) -> CpuSet:
        import psutil

        return CpuSet(psutil.Process(pid).cpu_affinity() or ())

    def _set(pid: int, cpus: CpuSet) -> None:
        import psutil

        psutil.Process(pid).cpu_affinity(list(cpus))

else:

    def _get(pid: int) -> CpuSet:
        raise BindingNotSupportedError(f"cannot read the mask of process {pid}: this is not Windows")

    def _set(pid: int, cpus: CpuSet) -> None:
        raise BindingNotSupportedError(f"cannot bind process {pid} to CPUs {cpus}: this is not Windows")
