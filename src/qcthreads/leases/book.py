"""The book of leases of this process, thread-safe; it counts and chooses PUs and never binds or starts anything.

Giving back takes no lock: it may happen in a finalizer, which the interpreter runs in any thread between any two
instructions, also while that thread has the lock. What was given back is put down, and counted by whoever looks next.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from ..cpuset import CpuSet, NodeSet
from ..errors import CpusTakenError, InputError, LeaseError, OversubscriptionError, StopRequestedError
from ..host.limits import Limits
from ..machine import Machine
from ..machine.placement import choose, split, thread_cpus, usable_cpus
from ..units import format_count, format_size, format_split, smaller_split


class Lease:
    """PUs, the memory nodes next to them and an amount of memory, held until :meth:`release` or until ``with`` ends."""

    __slots__ = ("_book", "_reserved", "cpus", "gpus", "lease_id", "memory_bytes")

    lease_id: int
    cpus: CpuSet
    memory_bytes: int
    gpus: tuple[int, ...]

    def __init__(
        self, book: LeaseBook, lease_id: int, cpus: CpuSet, reserved: CpuSet, memory_bytes: int, gpus: tuple[int, ...]
    ) -> None:
        self._book = book
        self._reserved = reserved
        self.lease_id = lease_id
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.gpus = gpus

    @property
    def nodes(self) -> NodeSet:
        """The memory nodes next to the PUs."""
        return self._book.machine.nodes_of(self.cpus)

    def release(self) -> None:
        """Give everything back; a second call does nothing. From anywhere, finalizers and signal handlers too."""
        self._book._give_back(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease {self.lease_id}: CPUs {self.cpus}, {format_size(self.memory_bytes)}>"


class LeaseBook:
    """All leases given out from one set of PUs and one amount of memory; leases never overlap.

    Parameters
    ----------
    machine, limits
        What there is and what of it may be used.
    cpus
        Restricts the book further.
    leave
        So many of the PUs are kept free for others; with ``smt`` as whole cores.
    memory_bytes
        All the memory the book hands out; ``None``: what ``limits`` allow.
    smt
        Hand out hyperthreads too.
    gpus
        Numbers of the GPUs the book hands out.

    Raises
    ------
    OversubscriptionError
        ``cpus``, ``leave`` or ``memory_bytes`` ask for more than may be used.
    """

    machine: Machine
    limits: Limits
    usable: CpuSet
    """The PUs this book hands out."""
    memory_bytes: int

    def __init__(
        self,
        machine: Machine,
        limits: Limits,
        *,
        cpus: CpuSet | None = None,
        leave: int = 0,
        memory_bytes: int | None = None,
        smt: bool = False,
        gpus: Iterable[int] = (),
    ) -> None:
        self.machine = machine
        self.limits = limits
        self.usable = _handed_out(machine, limits, cpus, leave, smt)
        self.memory_bytes = limits.memory_bytes if memory_bytes is None else memory_bytes
        if self.memory_bytes > limits.memory_bytes:
            raise OversubscriptionError(
                f"{format_size(self.memory_bytes)} of memory were asked for, but {format_size(limits.memory_bytes)} "
                "may be used; ask for less"
            )
        self.gpus = tuple(gpus)
        self._core_of = {cpu: core.cpus.bits for core in machine.cores for cpu in core.cpus}
        self._siblings = smt and any(len(core.cpus & self.usable) > 1 for core in machine.cores)
        self._lock = threading.Lock()
        self._waiting: list[SimpleQueue[None]] = []
        """Those who wait, the first first; each sleeps on its own queue (put() is safe in finalizers)."""
        self._given_back: deque[Lease] = deque()
        self._held: dict[int, Lease] = {}
        self._ids = itertools.count(1)
        self._free_bits = self.usable.bits
        self._free_memory_bytes = self.memory_bytes

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
        cancel: threading.Event | None = None,
    ) -> Lease:
        """Lease ``threads`` PUs chosen by topology.

        Waiters are served first come, first served: a narrow one never overtakes a wide one.

        Parameters
        ----------
        threads, memory_bytes, gpus
            How much.
        wait, timeout
            Whether to wait until it fits, and how many seconds at most.
        near
            PUs to be close to.
        exclusive_cores
            Nobody else works on the cores of this lease, not even on PUs that the lease does not hold.
        cancel
            When set, waiting ends with StopRequestedError; whoever sets it calls :meth:`wake`.

        Raises
        ------
        LeaseError
            It can never fit (with the numbers), does not fit now and ``wait`` is false, or ``timeout`` is over.
        """
        self.check(threads, memory_bytes, gpus)
        deadline = None if timeout is None else time.monotonic() + timeout
        woken: SimpleQueue[None] = SimpleQueue()
        try:
            with self._lock:
                self._waiting.append(woken)
            while True:
                if cancel is not None and cancel.is_set():
                    raise StopRequestedError(f"waits no longer for a lease of {format_count(threads, 'CPU')}: stopped")
                with self._lock:
                    self._count_given_back()
                    if self._waiting[0] is woken:
                        made = self._try(threads, memory_bytes, gpus, near, exclusive_cores)
                        if made is not None:
                            return made
                    left = None if deadline is None else deadline - time.monotonic()
                    if not wait or (left is not None and left <= 0):
                        raise LeaseError(self._not_now(threads, memory_bytes, gpus, 0 if not wait else timeout))
                with contextlib.suppress(Empty):
                    woken.get(timeout=left)
        finally:
            # Also on KeyboardInterrupt; whoever is next in line may fit now.
            with self._lock, contextlib.suppress(ValueError):
                self._waiting.remove(woken)
            self._wake_first()

    def acquire_split(self, places: int, width: int) -> tuple[Lease, ...]:
        """All-or-nothing: ``places`` leases of ``width`` PUs each, cut by ``machine.placement.split``; never waits.

        Raises OversubscriptionError with the numbers: asked, what may be used and why, what is free.
        """
        _check_count("workers", places)
        _check_count("threads per worker", width)
        total = places * width
        asked = f"{format_split(places, width)} = {format_count(total, 'thread')}"
        if total > len(self.usable):
            raise OversubscriptionError(
                f"{asked}, but {self.explain()}; {smaller_split(places, width, len(self.usable))}"
            )
        with self._lock:
            self._count_given_back()
            free = CpuSet.from_bits(self._free_bits)
            if total > len(free):
                smaller = smaller_split(places, width, len(free)) if free else "wait until some are free"
                raise OversubscriptionError(
                    f"{asked}, but {len(free)} of {len(self.usable)} CPUs are free; the others are held by "
                    f"{format_count(len(self._held), 'lease')}; release some, or {smaller}"
                )
            return tuple(self._hand_out(cpus, cpus, 0, ()) for cpus in split(self.machine, free, places, width))

    def acquire_cpus(self, cpus: CpuSet) -> Lease:
        """Lease exactly ``cpus``, without memory; never waits. CpusTakenError when one of them is not free."""
        with self._lock:
            self._count_given_back()
            taken = CpuSet.from_bits(cpus.bits & ~self._free_bits)
            if taken or not cpus:
                raise CpusTakenError(
                    f"a lease of CPUs {cpus or 'none'} was asked for, but {taken or 'none'} cannot be given; "
                    f"free are {CpuSet.from_bits(self._free_bits) or 'none'}"
                )
            return self._hand_out(cpus, cpus, 0, ())

    def check(self, threads: int, memory_bytes: int = 0, gpus: int = 0) -> None:
        """Raise LeaseError, with the numbers, when such a lease could not even be given by an empty book."""
        _check_count("threads", threads)
        if threads > len(self.usable):
            raise LeaseError(
                f"{threads} threads were asked for, but {self.explain()}; "
                f"ask for at most {format_count(len(self.usable), 'thread')}"
            )
        if memory_bytes > self.memory_bytes:
            raise LeaseError(
                f"{format_size(memory_bytes)} of memory were asked for, but {format_size(self.memory_bytes)} are to be "
                "given out in all; ask for less"
            )
        if gpus > len(self.gpus):
            raise LeaseError(
                f"a lease of {format_count(gpus, 'GPU')} was asked for, but {len(self.gpus)} are given out in all; "
                "ask for fewer"
            )

    def held(self) -> tuple[Lease, ...]:
        """The leases now given out, oldest first."""
        with self._lock:
            self._count_given_back()
            return tuple(self._held.values())

    def wake(self) -> None:
        """Let everybody who waits look at their ``cancel`` again. From any thread, also from signal handlers."""
        for waiting in tuple(self._waiting):
            waiting.put(None)

    def explain(self) -> str:
        """How many CPUs may be used and why, as one clause for messages."""
        clause = self.limits.explain_cpus()
        if len(self.usable) < self.limits.cpu_count:
            clause += f", of which {len(self.usable)} are given out here: {self.usable}"
        return clause

    def _try(self, threads: int, memory_bytes: int, gpus: int, near: CpuSet | None, exclusive: bool) -> Lease | None:
        if memory_bytes > self._free_memory_bytes:
            return None
        free_gpus = self._free_gpus()
        if gpus > len(free_gpus):
            return None
        free_bits = self._free_bits
        if exclusive and self._siblings:
            for lease in self._held.values():
                free_bits &= ~self._cores(lease.cpus).bits
        cpus = choose(self.machine, CpuSet.from_bits(free_bits), threads, near=near)
        if cpus is None:
            return None
        reserved = self._cores(cpus) if exclusive and self._siblings else cpus
        return self._hand_out(cpus, reserved, memory_bytes, free_gpus[:gpus])

    def _hand_out(self, cpus: CpuSet, reserved: CpuSet, memory_bytes: int, gpus: tuple[int, ...]) -> Lease:
        lease = Lease(self, next(self._ids), cpus, reserved, memory_bytes, gpus)
        self._free_bits &= ~reserved.bits
        self._free_memory_bytes -= memory_bytes
        self._held[lease.lease_id] = lease
        return lease

    def _give_back(self, lease: Lease) -> None:
        self._given_back.append(lease)
        self._wake_first()

    def _wake_first(self) -> None:
        for waiting in self._waiting[:1]:
            waiting.put(None)

    def _count_given_back(self) -> None:
        """Under the lock, before anything else."""
        while self._given_back:
            lease = self._given_back.popleft()
            if self._held.pop(lease.lease_id, None) is not None:
                self._free_bits |= lease._reserved.bits & self.usable.bits
                self._free_memory_bytes += lease.memory_bytes

    def _cores(self, cpus: CpuSet) -> CpuSet:
        bits = 0
        for cpu in cpus:
            bits |= self._core_of[cpu]
        return CpuSet.from_bits(bits)

    def _free_gpus(self) -> tuple[int, ...]:
        taken = {gpu for lease in self._held.values() for gpu in lease.gpus} if self.gpus else ()
        return tuple(gpu for gpu in self.gpus if gpu not in taken)

    def _not_now(self, threads: int, memory_bytes: int, gpus: int, waited_s: float | None) -> str:
        free = CpuSet.from_bits(self._free_bits)
        asked = f"a lease of {format_count(threads, 'CPU')}"
        asked += f" and {format_size(memory_bytes)}" if memory_bytes else ""
        asked += f" and {format_count(gpus, 'GPU')}" if gpus else ""
        found = f"{len(free)} of {len(self.usable)} CPUs and {format_size(self._free_memory_bytes)} are free"
        ahead = len(self._waiting) - 1
        queue = f", and {ahead} ahead of it in the queue" if ahead > 0 else ""
        when = f"within {waited_s:g} s" if waited_s else "now"
        return f"{asked} cannot be given {when}: {found}{queue}; wait longer, or ask for less"


_process_book: LeaseBook | None = None
_process_book_lock = threading.Lock()


def process_book() -> LeaseBook:
    """The one book of this process, over everything its limits allow; read at the first call."""
    from ..host import read_machine
    from ..host.limits import read_limits

    global _process_book
    with _process_book_lock:
        if _process_book is None:
            _process_book = LeaseBook(read_machine(), read_limits())
        return _process_book


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
    return process_book().acquire(
        threads, memory_bytes, gpus, wait=wait, timeout=timeout, near=near, exclusive_cores=exclusive_cores
    )


def _handed_out(machine: Machine, limits: Limits, cpus: CpuSet | None, leave: int, smt: bool) -> CpuSet:
    allowed = limits.cpus if cpus is None else cpus
    beyond = allowed - limits.cpus
    if beyond or not allowed:
        what = f"CPUs {allowed} were asked for" if allowed else "no CPU at all was asked for"
        raise OversubscriptionError(f"{what}, but {limits.explain_cpus()}; leave out {beyond or 'nothing'}")
    usable = usable_cpus(machine, allowed, smt=smt)
    count = min(len(usable), limits.cpu_count) - leave
    if leave < 0 or count < 1:
        raise OversubscriptionError(
            f"{format_count(leave, 'CPU')} to be left free: that was asked for, but "
            f"{format_count(min(len(usable), limits.cpu_count), 'CPU')} may be used, and at least one must remain"
        )
    chosen = thread_cpus(machine, allowed, count, smt=smt)
    if leave and smt:
        whole = [core.cpus & usable for core in machine.cores if core.cpus & usable and core.cpus & usable <= chosen]
        chosen = CpuSet(cpu for core in whole for cpu in core) or chosen
    return chosen


def _check_count(what: str, count: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"the number of {what} is {count!r}; it must be a whole number of at least 1")
