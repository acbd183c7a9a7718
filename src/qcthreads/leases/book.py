"""A book of leases: what of the machine is handed out here, and how one asks for a part of it; binds nothing.

What is free is the ledger's to say: of this process alone, or of all processes on the node.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal

from ..cpuset import CpuSet
from ..errors import (
    CpusTakenError,
    InputError,
    LeaseError,
    LeaseNotNowError,
    OversubscriptionError,
    StopRequestedError,
)
from ..host.limits import Limits
from ..host.processes import printable
from ..machine import Machine
from ..machine.placement import choose, split, thread_cpus, usable_cpus
from ..units import format_count, format_size, format_split, smaller_split
from . import claims
from .claims import Claim, Room
from .lease import Lease
from .ledger import Ledger, Waiter
from .pools import cpu_pools, memory_pools, node_pools
from .records import Holding

if TYPE_CHECKING:
    from ..host.gpus import Gpu

_MOST_CLAIMS = 256
_numbers = itertools.count(1)


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
        All the memory the book hands out; ``None``: of what ``limits`` allow the share of its PUs.
    smt
        Hand out hyperthreads too.
    gpus
        The GPUs the book hands out.
    busy
        What to do about PUs that others keep busy who hold no lease: ``avoid`` them as long as there are others,
        ``wait`` until they are idle, or ``ignore`` it.
    ledger
        Who else takes part: :func:`qcthreads.leases.node_ledger`'s are all processes on the node; ``None``: nobody.
    orphans
        What becomes of processes under its leases when this one is killed: others ``end`` them, or ``wait`` for them.
    run
        What its leases are for, as others are told: the store of a run, a program.

    Raises
    ------
    OversubscriptionError
        ``cpus``, ``leave`` or ``memory_bytes`` ask for more than may be used.
    """

    machine: Machine
    limits: Limits
    usable: CpuSet
    """The PUs this book hands out; as many others where a count is what limits them and these are taken."""
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
        gpus: Iterable[Gpu] = (),
        busy: Literal["avoid", "wait", "ignore"] = "ignore",
        ledger: Ledger | None = None,
        orphans: Literal["end", "wait"] = "wait",
        run: str = "",
    ) -> None:
        self._given = cpus, leave, smt
        self.gpus = {gpu.index: gpu for gpu in gpus}
        self.ledger = Ledger() if ledger is None else ledger
        self.orphans = orphans
        self.run = printable(run)
        self._busy = busy
        self._smt = smt
        self._name = f"book {self.ledger.mark} {next(_numbers)}"
        self._set(machine, limits, cpus, leave, smt, memory_bytes)
        if self.memory_bytes > limits.memory_bytes:
            raise OversubscriptionError(
                f"{format_size(self.memory_bytes)} of memory were asked for, but {format_size(limits.memory_bytes)} "
                "may be used; ask for less"
            )

    def _set(
        self, machine: Machine, limits: Limits, cpus: CpuSet | None, leave: int, smt: bool, memory_bytes: int | None
    ) -> None:
        usable = _handed_out(machine, limits, cpus, leave, smt)
        if memory_bytes is None:
            whole = usable if cpus is None and not leave else _handed_out(machine, limits, None, 0, smt)
            memory_bytes = limits.memory_bytes * len(usable) // len(whole)
        self.machine, self.limits, self.usable, self.memory_bytes = machine, limits, usable, memory_bytes
        self._candidates = self.usable if leave else usable_cpus(machine, cpus or limits.cpus, smt=smt)
        self._siblings = limits.cpus.bits & machine.cpus_online.bits
        counted = self._candidates != self.usable
        self._cpu_pools = {**cpu_pools(limits), f"cpus of {self._name}": len(self.usable)} if counted else {}
        self._memory_pools = {**memory_pools(limits), self._name: self.memory_bytes}
        self._node_pools, self._bound = node_pools(machine, limits)
        self._claims: dict[tuple[object, ...], Claim] = {}

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
        slots: Mapping[str, int] | None = None,
        cancel: threading.Event | None = None,
        on_wait: Callable[[str], object] | None = None,
    ) -> Lease:
        """Lease ``threads`` PUs chosen by topology.

        Waiters, of all processes that share the ledger, are served first come, first served. Who came later gets what
        those before cannot use or do not need.

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
        slots
            By the name of something that only so many leases of the node may have at once, such as a program with
            licences, how many; where others say another number, the largest counts.
        cancel
            When set, waiting ends with StopRequestedError; whoever sets it calls :meth:`wake`.
        on_wait
            Called when it has waited for a second, once, with who holds what it lacks.

        Raises
        ------
        LeaseError
            It can never fit (with the numbers), does not fit now and ``wait`` is false, or ``timeout`` is over; says
            who holds what it lacks.
        """
        claim = self._claim(threads, memory_bytes, gpus, near, exclusive_cores, slots or {})
        at_once = self._at_once(claim)
        if at_once is not None:
            return at_once
        woken: SimpleQueue[None] = SimpleQueue()
        waiter = Waiter(claim, lambda: woken.put(None), on_wait)
        with contextlib.closing(self._attempts(claim, waiter, wait, timeout)) as tries:
            for lease, left_s in tries:
                if lease is not None:
                    return lease
                if cancel is not None and cancel.is_set():
                    raise StopRequestedError(f"waits no longer for a lease of {format_count(threads, 'CPU')}: stopped")
                with contextlib.suppress(Empty):
                    woken.get(timeout=left_s)
        raise AssertionError("attempts end with a lease or an error")

    @contextlib.asynccontextmanager
    async def acquire_async(
        self,
        threads: int,
        memory_bytes: int = 0,
        gpus: int = 0,
        *,
        wait: bool = True,
        timeout: float | None = None,
        near: CpuSet | None = None,
        exclusive_cores: bool = True,
    ) -> AsyncIterator[Lease]:
        """:meth:`acquire` for ``async with``: waits without blocking the loop; cancelling it leaves nothing."""
        import asyncio

        claim = self._claim(threads, memory_bytes, gpus, near, exclusive_cores, {})
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(woken.set)

        with contextlib.closing(self._attempts(claim, Waiter(claim, wake), wait, timeout)) as tries:
            for lease, left_s in tries:
                if lease is not None:
                    break
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(woken.wait(), left_s)
                woken.clear()
        assert lease is not None
        with lease:
            yield lease

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
        claim = self._claim(total, 0, 0, None, not self._smt, {})

        def made(room: Room) -> list[Lease]:
            if claims.grant(self.machine, room, claim) is None:
                return []
            free = CpuSet.from_bits(claims.usable(self.machine, room, claim))
            ours = free & self.usable
            cut = split(self.machine, ours if len(ours) >= total else free, places, width)
            return [self._lease_of(cpus, claims.whole_cores(self.machine, cpus, claim)) for cpus in cut]

        with self.ledger.turn():
            leases, room = self._give_out(made)
            if leases:
                return leases
            free = CpuSet.from_bits(claims.usable(self.machine, room, claim))
            holders = self._holders(claim)
        smaller = smaller_split(places, width, len(free)) if free else "wait until some are free"
        raise OversubscriptionError(
            f"{asked}, but {len(free)} of {len(self.usable)} CPUs are free; the others are held by {holders}; "
            f"release some, or {smaller}"
        )

    def acquire_cpus(self, cpus: CpuSet) -> Lease:
        """Lease exactly ``cpus``, without memory; never waits. CpusTakenError when one of them is not free."""

        def free(room: Room) -> CpuSet:
            return CpuSet.from_bits(room.free & self._candidates.bits)

        def made(room: Room) -> list[Lease]:
            return [self._lease_of(cpus, cpus)] if cpus and cpus <= free(room) else []

        with self.ledger.turn():
            leases, room = self._give_out(made)
        if leases:
            return leases[0]
        raise CpusTakenError(
            f"a lease of CPUs {cpus or 'none'} was asked for, but {cpus - free(room) or 'none'} cannot be given; "
            f"free are {free(room) or 'none'}"
        )

    def check(self, threads: int, memory_bytes: int = 0, gpus: int = 0) -> None:
        """Raise LeaseError, with the numbers, when such a lease could not even be given by an empty book."""
        _check_count("threads", threads)
        _check_count("bytes of memory", memory_bytes, least=0)
        _check_count("GPUs", gpus, least=0)
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
            there = f"{len(self.gpus)} are given out in all; ask for fewer" if self.gpus else "none is given out here"
            raise LeaseError(f"a lease of {format_count(gpus, 'GPU')} was asked for, but {there}")

    def free(self) -> tuple[CpuSet, int]:
        """PUs and memory that leases could be given of now, nobody being overtaken who waits."""
        if self._busy != "ignore":
            self.ledger.look_at_load()
        claim = self._beside_others(self._claim(1, 1, 0, None, True, {}))
        with self.ledger.turn():
            room = self.ledger.room(self.machine)
            if not claims.usable(self.machine, room, claim) and self.ledger.reclaim():
                room = self.ledger.room(self.machine)
        own = self.held()
        cpus = CpuSet.from_bits(claims.usable(self.machine, room, claim))
        ours = len(self.usable) - sum(len(lease.cpus) for lease in own)  # pools are as large as any lease found them
        count = min([len(cpus), ours, *(room.left(pool, holds) for pool, holds in self._cpu_pools.items())])
        memory_bytes = self.memory_bytes - sum(lease.memory_bytes for lease in own)
        memory_bytes = min([memory_bytes, *(room.left(pool, holds) for pool, holds in self._memory_pools.items())])
        if count < len(cpus):
            cpus = choose(self.machine, cpus & self.usable or cpus, max(count, 0)) or CpuSet()
        return cpus, max(memory_bytes, 0)

    def follow(self, machine: Machine, limits: Limits, memory_bytes: int) -> None:
        """Hand out from now on what is there now; leases that are held go on as they are.

        ``memory_bytes``: of all its leases. Raises OversubscriptionError where nothing of the book's is left.
        """
        cpus, leave, smt = self._given
        with self.ledger.turn():
            self._set(machine, limits, None if cpus is None else cpus & limits.cpus, leave, smt, memory_bytes)

    def held(self) -> tuple[Lease, ...]:
        """The leases now given out by this book, oldest first."""
        return tuple(lease for lease in self.ledger.held_now() if lease.book is self)

    def wake(self) -> None:
        """Let everybody who waits look at their ``cancel`` again. From any thread, also from signal handlers."""
        self.ledger.wake()

    def explain(self) -> str:
        """How many CPUs may be used and why, as one clause for messages."""
        clause = self.limits.explain_cpus()
        if len(self.usable) < self.limits.cpu_count:
            clause += f", of which {len(self.usable)} are given out here: {self.usable}"
        return clause

    def _claim(
        self,
        threads: int,
        memory_bytes: int,
        gpus: int,
        near: CpuSet | None,
        exclusive_cores: bool,
        slots: Mapping[str, int],
    ) -> Claim:
        asked = (threads, memory_bytes, gpus, near, exclusive_cores, *slots.items())
        known = self._claims.get(asked)
        if known is not None:
            return known
        self.check(threads, memory_bytes, gpus)
        draws = {pool: (threads, holds) for pool, holds in self._cpu_pools.items()}
        if memory_bytes:
            draws.update((pool, (memory_bytes, holds)) for pool, holds in self._memory_pools.items())
        for name, most in slots.items():
            _check_count(f"leases for {name} at once", most)
            draws[f"{claims.SLOTS}{name}"] = (1, most)
        claim = Claim(
            threads=threads,
            candidates=self._candidates.bits,
            siblings=self._siblings if exclusive_cores else 0,
            preferred=self.usable.bits,
            near=near.bits if near else 0,
            gpus=gpus,
            gpu_candidates=tuple(self.gpus) if gpus else (),
            memory_bytes=memory_bytes,
            draws=draws,
            nodes=self._node_pools,
            bound=self._bound,
        )
        if len(self._claims) < _MOST_CLAIMS:  # executors ask for the same again and again
            self._claims[asked] = claim
        return claim

    def _at_once(self, claim: Claim) -> Lease | None:
        """Without waiting, and without overtaking those who wait."""
        if self._busy != "ignore":
            self.ledger.look_at_load()
        with self.ledger.turn():
            return self._try(claim)

    def _attempts(
        self, claim: Claim, waiter: Waiter, wait: bool, timeout: float | None
    ) -> Generator[tuple[Lease | None, float | None]]:
        """The lease, or how many seconds to sleep at most until woken; LeaseError when there is no more waiting."""
        began = time.monotonic()
        waits_for = ""
        entered = False
        try:
            while True:
                left = None if timeout is None else timeout - (time.monotonic() - began)
                if self._busy != "ignore":
                    self.ledger.look_at_load()
                with self.ledger.turn():
                    lease = self._try(claim, waiter)
                    if lease is None:
                        if not entered:
                            self.ledger.enter(waiter)
                            entered = True
                        waits_for = waits_for or self._holders(claim)
                        if not wait or (left is not None and left <= 0):
                            raise LeaseNotNowError(self._not_now(claim, waiter, 0 if not wait else timeout))
                        self.ledger.put_up(waiter)
                        tell = waiter.due(time.monotonic() - began)
                if lease is not None:
                    if entered:
                        self.ledger.leave(waiter)
                        entered = False
                        lease.waited_s, lease.waited_for = time.monotonic() - began, waits_for
                    yield lease, None
                    return
                if tell is not None:
                    tell(waits_for)
                limits_s = (left, self.ledger.longest_sleep_s, waiter.told_in(time.monotonic() - began))
                yield None, min((s for s in limits_s if s is not None), default=None)
        finally:
            if entered:  # also on KeyboardInterrupt; whoever is next in line may fit now
                self.ledger.leave(waiter)

    def _try(self, claim: Claim, waiter: Waiter | None = None) -> Lease | None:
        claim = self._beside_others(claim)

        def made(room: Room) -> list[Lease]:
            found = claims.grant(self.machine, room, claim)
            if found is None:
                return []
            cpus, reserved = CpuSet.from_bits(found.cpus), CpuSet.from_bits(found.reserved)
            return [Lease(self, cpus, reserved, claim.memory_bytes, found.gpus, found.draws)]

        leases, room = self._give_out(made, waiter)
        if leases:
            return leases[0]
        if waiter is not None:
            claims.set_aside(self.machine, room, claim)
            if room.free:
                self.ledger.next_in_line(waiter)
        return None

    def _give_out(
        self, made: Callable[[Room], list[Lease]], waiter: Waiter | None = None
    ) -> tuple[tuple[Lease, ...], Room]:
        """All leases ``made`` of what is free, or none; and what was free when there was not enough.

        Where there is not enough, what the dead held is looked for. What somebody holds who has not told of it is not
        free either.
        """
        while True:
            room = self.ledger.room(self.machine, waiter)
            while leases := made(room):
                lost = self._take_all(leases)
                if not lost:
                    return tuple(leases), room
                room.lose(lost)
            if not self.ledger.reclaim():
                return (), room

    def _take_all(self, leases: list[Lease]) -> str:
        """The PU or GPU that could not be had after all, and with it nothing."""
        taken: list[Lease] = []
        try:
            for lease in leases:
                lost = self.ledger.take(lease)
                if lost:
                    return lost
                taken.append(lease)
            taken.clear()
            return ""
        finally:
            for lease in taken:
                lease.release()

    def _beside_others(self, claim: Claim) -> Claim:
        """``claim`` less the PUs that others keep busy, or rather without them."""
        if self._busy == "ignore":
            return claim
        strangers = self.ledger.strangers
        if not strangers & claim.candidates:
            return claim
        if self._busy == "wait":
            return replace(claim, candidates=claim.candidates & ~strangers, preferred=claim.preferred & ~strangers)
        idle = claim.preferred & ~strangers
        enough = idle.bit_count() >= claim.threads
        return replace(claim, preferred=idle if enough else claim.candidates & ~strangers)

    def _lease_of(self, cpus: CpuSet, reserved: CpuSet) -> Lease:
        """Without memory."""
        draws = {pool: (len(cpus), holds) for pool, holds in self._cpu_pools.items()}
        return Lease(self, cpus, reserved, draws=draws)

    def _holders(self, claim: Claim) -> str:
        """Who holds what ``claim`` might be given, in words."""
        own = [lease for lease in self.ledger.held() if _in_the_way(lease, claim)]
        said = []
        if own:
            cpus = CpuSet(cpu for lease in own for cpu in lease.cpus)
            said.append(f"{format_count(len(own), 'lease')} of this process (CPUs {cpus})")
        by_owner: dict[str, list[Holding]] = {}
        for other in self.ledger.others():
            if _in_the_way(other, claim):
                by_owner.setdefault(other.owner.mark, []).append(other)
        for holdings in by_owner.values():
            cpus = CpuSet(cpu for one in holdings for cpu in one.cpus)
            memory = sum(one.memory_bytes for one in holdings)
            also = f" and {format_size(memory)}" if memory else ""
            said.append(f"{holdings[0].owner} (CPUs {cpus}{also})")
        if self._busy == "wait":
            said += self.ledger.explain_busy(CpuSet.from_bits(self.ledger.strangers & claim.candidates))
        return ", ".join([*said, *self.ledger.strays()]) or "those who have waited longer"

    def _not_now(self, claim: Claim, waiter: Waiter, waited_s: float | None) -> str:
        room = self.ledger.unheld(self.machine)
        free = CpuSet.from_bits(room.free & self._candidates.bits)
        memory = min((room.left(pool, holds) for pool, holds in self._memory_pools.items()), default=0)
        asked = f"a lease of {format_count(claim.threads, 'CPU')}"
        asked += f" and {format_size(claim.memory_bytes)}" if claim.memory_bytes else ""
        asked += f" and {format_count(claim.gpus, 'GPU')}" if claim.gpus else ""
        found = f"{len(free)} of {len(self.usable)} CPUs and {format_size(max(0, memory))} are free"
        holders = self._holders(claim)
        found += f", the others are held by {holders}"
        for pool, (_, most) in claim.draws.items():
            if pool.startswith(claims.SLOTS) and room.left(pool, most) < 1:
                found += f"; {pool.removeprefix(claims.SLOTS)} has all that it may have at once, {most}"
        ahead = sum(
            one is not waiter for one in itertools.takewhile(lambda one: one is not waiter, self.ledger.queue())
        )
        queue = f", and {ahead} ahead of it in the queue" if ahead > 0 else ""
        when = f"within {waited_s:g} s" if waited_s else "now"
        return f"{asked} cannot be given {when}: {found}{queue}; wait{' longer' if waited_s else ''}, or ask for less"


def _in_the_way(other: Lease | Holding, claim: Claim) -> bool:
    """Whether ``other`` has something that ``claim`` might be given."""
    return bool(
        other.reserved.bits & claim.candidates
        or any(pool in claim.draws for pool in other.draws)
        or (claim.gpus and set(other.gpus) & set(claim.gpu_candidates))
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


def _check_count(what: str, count: int, least: int = 1) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < least:
        raise InputError(f"the number of {what} is {count!r}; it must be a whole number of at least {least}")
