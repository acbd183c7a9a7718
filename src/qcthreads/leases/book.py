"""The book of leases of this process, thread-safe; it counts and chooses PUs and never binds or starts anything."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ..cpuset import CpuSet, NodeSet
from ..host.limits import Limits
from ..machine import Machine


class Lease:
    """So many PUs, the memory nodes next to them and an amount of memory, held until :meth:`release` (or the end of ``with``)."""

    lease_id: int
    cpus: CpuSet
    nodes: NodeSet
    memory_bytes: int
    gpus: tuple[int, ...]

    def release(self) -> None:
        """Give everything back; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


class LeaseBook:
    """All leases given out from one set of PUs and one amount of memory; leases never overlap.

    ``cpus`` restricts the book further; ``leave`` PUs (whole cores) are kept free for others; ``smt``: hand out hyperthreads too.
    """

    machine: Machine
    limits: Limits
    usable: CpuSet
    """The PUs this book hands out."""
    memory_bytes: int

    def __init__(
        self, machine: Machine, limits: Limits, *, cpus: CpuSet | None = None, leave: int = 0, memory_bytes: int | None = None, smt: bool = False
    ) -> None:
        raise NotImplementedError

    def acquire(
        self,
        threads: int,
        memory_bytes: int = 0,
        gpus: int = 0,
        *,
        wait: bool = True,
        timeout: float | None = None,
        near: CpuSet | None = None,
        exclusive_cores: bool = True,
    ) -> Lease:
        """Lease ``threads`` PUs chosen by topology. Raises LeaseError when it can never fit (with the numbers), when
        ``wait`` is false and it does not fit now, or after ``timeout`` seconds. Waiters are served first come, first served.
        """
        raise NotImplementedError

    def acquire_split(self, places: int, width: int) -> tuple[Lease, ...]:
        """All-or-nothing: ``places`` leases of ``width`` PUs each, cut by :func:`qcthreads.machine.placement.split`; never waits.

        Raises OversubscriptionError with the numbers: asked, what may be used and why, what is free.
        """
        raise NotImplementedError

    def held(self) -> tuple[Lease, ...]:
        """The leases now given out, oldest first."""
        raise NotImplementedError


def lease(
    threads: int,
    memory_bytes: int = 0,
    gpus: int = 0,
    *,
    wait: bool = True,
    timeout: float | None = None,
    near: CpuSet | None = None,
    exclusive_cores: bool = True,
) -> Lease:
    """Lease PUs of this process's own limits from the one book of this process; see :meth:`LeaseBook.acquire`."""
    raise NotImplementedError
