"""What every platform back end provides, and which of it works where; types only, nothing is called."""

from __future__ import annotations

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingNotEnforcedError
from ..light import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal, Protocol

    from typing_extensions import Buffer

    from ..machine import Machine
    from .sampling import Sampler, TimesSource

    MemoryKind = Literal["default", "preferred", "bind", "interleave", "local", "preferred-many"]
else:
    Protocol = object
    MemoryKind = str
    """What a memory policy does with its nodes, in the kernel's order (``MPOL_*`` in include/uapi/linux/mempolicy.h).

    ``default``: the process's or the system's own; ``local``: the node of the CPU that touches a page first;
    ``preferred``: one node, others when it is full; ``preferred-many``: several, then others (Linux 5.15); ``bind``:
    these nodes or none; ``interleave``: page by page in turn.
    """

MEMORY_KINDS: tuple[MemoryKind, ...] = ("default", "preferred", "bind", "interleave", "local", "preferred-many")
"""All of them, each in the place of the kernel's number."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a back end can do on this platform; what it cannot do degrades to the next best thing, once, and says so."""

    back_end: str
    """``native``, ``portable``, ``darwin`` or ``windows``."""
    bind_thread: bool
    bind_process: bool
    inherit_binding: bool
    """Threads and children get the mask of the thread that starts them; else they get that of its process."""
    read_binding: bool
    bind_memory: bool
    """Memory policies: true only where the calls were tried and answered."""
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

    def enforced(self) -> Binding:
        """Itself, for those to whom a lost CPU is an error; others look at ``lost``, and warn.

        Raises BindingNotEnforcedError where CPUs were lost; what was asked to be bound stays bound to ``got``.
        """
        if self.lost:
            raise BindingNotEnforcedError(
                f"CPUs {self.asked} were asked for, but the system left out {self.lost}, offline or not allowed here; "
                f"now bound to {self.got}: ask for some of those that `qcthreads limits` lists"
            )
        return self


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """From which memory nodes pages come."""

    kind: MemoryKind
    nodes: NodeSet = NodeSet()

    def __str__(self) -> str:
        return f"{self.kind} {self.nodes}" if self.nodes else self.kind


@dataclass(frozen=True, slots=True)
class MemoryBinding:
    """The outcome of a request for a memory policy: what was asked for and what the operating system says it is now."""

    asked: MemoryPolicy
    got: MemoryPolicy

    @property
    def lost(self) -> NodeSet:
        """Nodes asked for and silently dropped."""
        return self.asked.nodes - self.got.nodes

    def enforced(self) -> MemoryBinding:
        """Itself, for those to whom a lost node is an error. Raises BindingNotEnforcedError; ``got`` stays in force."""
        if self.lost:
            raise BindingNotEnforcedError(
                f"memory policy {self.asked} was asked for, but the system left out nodes {self.lost}, absent, without "
                f"memory or not allowed here; now in force: {self.got}: ask for some that `qcthreads topo` shows"
            )
        return self


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

    def set_memory_policy(self, kind: MemoryKind, nodes: NodeSet = ...) -> MemoryBinding:
        """Set the policy of the calling thread, which children inherit, and read it back.

        Raises a BindingError subclass: not supported, not enforced (no such node here), not permitted. InputError when
        ``kind`` and ``nodes`` contradict each other.
        """

    def get_memory_policy(self) -> MemoryPolicy:
        """The policy of the calling thread."""

    def bind_buffer(self, buffer: Buffer, kind: MemoryKind, nodes: NodeSet = ...) -> MemoryBinding:
        """Set the policy of every page that a contiguous buffer touches, move those elsewhere, and read it back."""

    def page_nodes(self, buffer: Buffer) -> tuple[int | None, ...]:
        """The node of every page that a contiguous buffer touches; ``None`` where no memory is behind it yet."""

    def thread_times(self, pid: int) -> dict[int, int]:
        """CPU time of every thread of process ``pid`` by the thread's number, in ns.

        Raises a BindingError subclass: ProcessGoneError; BindingNotPermittedError where the threads of other processes
        cannot be seen (``thread_times`` of the capabilities).
        """

    def open_sampler(self, pids: Iterable[int], children: bool = True, source: TimesSource | None = None) -> Sampler:
        """What samples the threads of these processes, and of their descendants if ``children``.

        ``source``: where the times come from; without one, the best of those that work here.
        """

    def read_machine(self, sysroot: str | None = None) -> Machine:
        """The machine, from the live system or from a recorded tree holding ``sys/`` and ``proc/``."""
