"""One lease: what is held, until when, and how something is started under it; chooses nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError, BindingNotSupportedError, LeaseError, ProcessGoneError
from ..units import format_size
from .place import LEASE_VARIABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any, NoReturn, Self

    from .hold import Hold


class Lease:
    """PUs, the memory nodes next to them, memory and GPUs, held until :meth:`release` or until ``with`` ends.

    One that nobody refers to any more is given back, too.

    Attributes
    ----------
    lease_id
        A number that no other lease of this process has.
    cpus
        The PUs to run on.
    reserved
        ``cpus`` and further PUs of their cores that nobody else gets.
    memory_bytes
        Memory that may be used, in bytes.
    gpus
        Indices of GPUs.
    hold
        What the ledger keeps of it.
    waited_s
        How many seconds it took to come free.
    waited_for
        Who held what was waited for, in words; empty where nothing was, or only what this process itself held.
    notes
        Which CPUs were avoided, and why.
    """

    __slots__ = (
        "_unreleased", "book", "cpus", "gpus", "hold", "lease_id", "memory_bytes", "notes", "reserved", "waited_for",
        "waited_s",
    )  # fmt: skip

    def __init__(self, hold: Hold) -> None:
        self._unreleased = [True]
        self.hold = hold
        self.book = hold.book
        self.lease_id = hold.lease_id
        self.cpus = hold.cpus
        self.reserved = hold.reserved
        self.memory_bytes = hold.memory_bytes
        self.gpus = hold.gpus
        self.waited_s = 0.0
        self.waited_for = ""
        self.notes: tuple[str, ...] = ()

    @property
    def nodes(self) -> NodeSet:
        """The memory nodes next to the PUs."""
        return self.book.machine.nodes_of(self.cpus)

    @property
    def mark(self) -> str:
        """What ``QCTHREADS_LEASE`` is in the environment of what runs under it."""
        return self.hold.mark

    @property
    def environment(self) -> dict[str, str]:
        """What belongs into the environment of everything that runs under it: whose it is, and which GPUs it sees."""
        if not self.book.gpus:
            return {LEASE_VARIABLE: self.mark}
        from ..host.gpus import visibility

        return {LEASE_VARIABLE: self.mark, **visibility(self.book.gpus[index] for index in self.gpus)}

    @contextlib.contextmanager
    def bound(self) -> Iterator[CpuSet]:
        """Bind the calling thread to the PUs and their memory while ``with`` goes on: what it starts then, stays there.

        Yields the mask read back. Raises a BindingError subclass where the thread cannot be bound.
        """
        from ..host import get_host

        host = get_host()
        before = host.get_affinity()
        policy = None
        try:
            got = host.set_affinity(self.cpus).got
            with contextlib.suppress(BindingError):  # memory is then where the threads touch it first: next to them
                policy = host.get_memory_policy()
                if policy.kind == "default" and len(self.book.machine.numa_nodes) > 1:
                    host.set_memory_policy("preferred" if len(self.nodes) == 1 else "preferred-many", self.nodes)
            yield got
        finally:
            host.set_affinity(before)
            if policy is not None:
                with contextlib.suppress(BindingError):
                    host.set_memory_policy(policy.kind, policy.nodes)

    def popen(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
        """Start a process under this lease: bound from its first instruction, with :attr:`environment`.

        While the process lives, so does its hold on the PUs, also when this one is killed. ``options`` are
        ``subprocess.Popen``'s. Where the platform cannot bind at all, it runs unbound, and the log says so, once; where
        the system refuses, BindingError says why, and nothing is started. On Windows, where children do not inherit the
        mask of a thread, it is bound a moment after its start.
        """
        if not self._unreleased:
            raise LeaseError(f"{self!r} has been released: nothing can be started under it; take another")
        import subprocess

        from ..host import get_host

        if sys.platform == "win32":
            from ..host.windows_locks import handed_over
        else:
            from ..host.locks import handed_over
        given = options.pop("env", None)
        options["env"] = {**(os.environ if given is None else given), **self.environment}
        options = handed_over(self.descriptors(), options)
        hold = self.hold
        hold.started = True  # before it is: an interrupt may come in between
        hold.children = [child for child in hold.children if child.poll() is None]
        if get_host().capabilities.inherit_binding:
            with self.bound():
                hold.children.append(subprocess.Popen(command, **options))
            return hold.children[-1]
        process = subprocess.Popen(command, **options)
        hold.children.append(process)
        try:
            with contextlib.suppress(ProcessGoneError, BindingNotSupportedError):  # which the back end has said, once
                get_host().set_process_affinity(self.cpus, process.pid)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def descriptors(self) -> tuple[int, ...]:
        """Open files, on Windows handles, that carry the kernel's locks: a process that gets them holds the PUs, too.

        May be none.
        """
        return self.book.ledger.descriptors(self.hold)

    def in_use(self) -> bool:
        """Whether something still runs that was started under it: a child, or what bears its mark."""
        return self.hold.in_use()

    def release(self) -> None:
        """Give everything back; a second call does nothing. From anywhere, finalizers and signal handlers too.

        Where a process that :meth:`popen` started still runs, the PUs stay taken until it has ended.
        """
        try:
            try:
                self._unreleased.pop()
            except IndexError:
                return
            self.book.ledger.give_back(self.hold)
        except BaseException:  # an interrupt, perhaps before anything was done
            self.book.ledger.give_back(self.hold)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except BaseException:  # an interrupt, perhaps before anything was done
            self.release()
            raise

    def __aenter__(self) -> NoReturn:
        self.release()
        raise TypeError(
            "lease() and acquire() wait before there is anything to enter, and the event loop with them: write `async "
            "with lease_async(...)`, or `async with book.acquire_async(...)`, or `with lease(...)`"
        )

    __aexit__ = __exit__  # without which Python itself says what it lacks

    def __del__(self) -> None:
        if getattr(self, "_unreleased", None):  # none where its making was interrupted
            self.release()

    def __repr__(self) -> str:
        return f"<Lease {self.lease_id}: CPUs {self.cpus}, {format_size(self.memory_bytes)}>"
