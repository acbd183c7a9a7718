"""macOS: counts cores, and binds nothing, because the system has no call for it; never pretends otherwise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingNotSupportedError
from ..machine import Machine
from .interface import Binding, Capabilities, MemoryBinding, MemoryKind, MemoryPolicy
from .live import flat_machine
from .topology import read_machine

_WHY = "macOS binds neither threads nor processes to CPUs; leases still count CPUs: run with affinity turned off"

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NO_NODES = NodeSet()
_NO_POLICY = "macOS has no memory policies; leave it at the default"


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
        """As many cores as there are, in one package; a recorded Linux tree in full."""
        if sysroot is not None:
            return read_machine(sysroot)
        import psutil

        return flat_machine(self.get_affinity(), psutil.virtual_memory().total)
