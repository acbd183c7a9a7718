"""What a ledger keeps of a lease of this process, from its beginning until nothing runs under it; starts nothing."""

from __future__ import annotations

from collections.abc import Mapping

from ..cpuset import CpuSet
from .strays import live_under

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any

    from .book import LeaseBook


class Hold:
    """PUs, memory and GPUs that are given out; a :class:`~qcthreads.leases.Lease` is what its user has of it.

    Attributes
    ----------
    lease_id, cpus, reserved, memory_bytes, gpus
        The lease's.
    draws
        By pool, how much of it is taken and how much it holds for all.
    orphans
        What becomes of processes under it when this one is killed.
    name, locks
        Of its record, and of what the kernel has locked for it; empty where nobody shares the book.
    started
        Whether anything was ever started under it; ``children``: what of that lived when the last was.
    """

    __slots__ = (
        "book", "children", "cpus", "draws", "gpus", "lease_id", "locks", "memory_bytes", "name", "orphans", "reserved",
        "started",
    )  # fmt: skip

    def __init__(
        self,
        book: LeaseBook,
        cpus: CpuSet,
        reserved: CpuSet,
        memory_bytes: int = 0,
        gpus: tuple[int, ...] = (),
        draws: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self.book = book
        self.lease_id = next(book.ledger.ids)
        self.cpus = cpus
        self.reserved = reserved
        self.memory_bytes = memory_bytes
        self.gpus = gpus
        self.draws = draws or {}
        self.orphans = book.orphans
        self.name = ""
        self.locks: tuple[str, ...] = ()
        self.started = False
        self.children: list[subprocess.Popen[Any]] = []

    @property
    def mark(self) -> str:
        """What ``QCTHREADS_LEASE`` is in the environment of what runs under it."""
        return f"{self.book.ledger.mark}.{self.lease_id}"

    def in_use(self) -> bool:
        """Whether something still runs that was started under it: a child, or what bears its mark.

        A child in execve(2) bears none for a moment.
        """
        return self.started and (any(child.poll() is None for child in self.children) or bool(live_under(self.mark)))
