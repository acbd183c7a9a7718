"""A book of leases: what of the machine is handed out here, and how one asks for a part of it; binds nothing.

What is free is the ledger's to say: of this process alone, or of all processes on the node.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial

from ..cpuset import CpuSet
from ..errors import (
    BookShutError,
    CpusTakenError,
    InputError,
    LeaseError,
    LeaseNotNowError,
    LeaseTooLargeError,
    OversubscriptionError,
    StopRequestedError,
)
from ..host.limits import Limits, read_limits
from ..host.processes import printable
from ..light import replace
from ..machine import Machine
from ..machine.placement import choose, split, thread_cpus, usable_cpus
from ..units import format_count, format_size, format_split, smaller_split
from . import claims
from .claims import Claim, Grant, Room, sum_bits
from .door import PATIENCE_S
from .hold import Hold
from .lease import Lease
from .ledger import Ledger, Waiter, note
from .pools import cpu_pools, memory_pools, node_pools
from .shortage import Shortage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ..host.gpus import Gpu

_MOST_CLAIMS = 256
_READ_LIMITS_S = 1.0
_READ_MEMORY_S = 0.1  # to read it takes a quarter of a millisecond, more than all the rest of a lease
_LEAST_PATIENCE_S = 0.1  # at the door, however short the time: the turns of a hundred others
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
        All the memory the book hands out; ``None``: of what ``limits`` allow the share of its PUs. What others use is
        not free, but may be later.
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
    """Its share of what was free when it was made."""
    smt: bool
    """It hands out hyperthreads, too."""

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
        self._given = cpus, leave, smt, memory_bytes
        self.gpus = {gpu.index: gpu for gpu in gpus}
        self.ledger = Ledger() if ledger is None else ledger
        self.orphans = orphans
        self.run = printable(run)
        self._busy = busy
        self._said_avoided = CpuSet()
        self.smt = smt
        self._name = f"book {self.ledger.mark} {next(_numbers)}"
        self._set(machine, limits)
        if self._most_bytes > limits.total_bytes:
            raise OversubscriptionError(
                f"{format_size(self._most_bytes)} of memory were asked for, but {format_size(limits.total_bytes)} "
                "may be used when nobody else uses any; ask for less"
            )

    def _set(self, machine: Machine, limits: Limits, memory_bytes: int | None = None) -> None:
        """``memory_bytes``: of all leases now, where that is not what was given or the book's share."""
        cpus, leave, smt, given_bytes = self._given
        if memory_bytes is not None:  # what a limit has taken away since is no longer asked for
            cpus = None if cpus is None else cpus & limits.cpus
        usable = _handed_out(machine, limits, cpus, leave, smt)
        self.machine, self.limits, self.usable = machine, limits, usable
        if given_bytes is None:
            whole = usable if cpus is None and not leave else _handed_out(machine, limits, None, 0, smt)
            share_bytes = limits.memory_bytes * len(usable) // len(whole)
            self._most_bytes = limits.total_bytes * len(usable) // len(whole)
        else:
            share_bytes = given_bytes
            self._most_bytes = given_bytes if memory_bytes is None else min(given_bytes, limits.total_bytes)
        self.memory_bytes = share_bytes if memory_bytes is None else memory_bytes
        self._candidates = self.usable if leave else usable_cpus(machine, cpus or limits.cpus, smt=smt)
        self._siblings = limits.cpus.bits & machine.cpus_online.bits
        counted = self._candidates != self.usable
        self._cpu_pools = {**cpu_pools(limits), f"cpus of {self._name}": len(self.usable)} if counted else {}
        self._own_pool = {self._name: self._most_bytes}
        self._memory_pools = {**memory_pools(limits.rules), **self._own_pool}
        self._memory_read_at = float("-inf")
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
            Called when it has waited for a second, once, with who holds what it lacks; not where only leases of this
            process do, whose end is this process's own affair.

        Raises
        ------
        LeaseError
            It can never fit (with the numbers), does not fit now and ``wait`` is false, or ``timeout`` is over; says
            who holds what it lacks.
        """
        _check_timeout(timeout)
        slots = slots or {}
        claim = self._claim(threads, memory_bytes, gpus, near, exclusive_cores, slots)
        made: list[Lease] = []
        began = time.monotonic()
        try:
            claim = self._look_around(claim)
            patience_s = PATIENCE_S if timeout is None or not wait else _patience(timeout)
            if not self.ledger.in_turn(lambda: self._try(claim, made), patience_s):
                asked = partial(self._claim, threads, memory_bytes, gpus, near, exclusive_cores, slots)
                claim = self._wait_in_line(asked, made, began, 0.0 if not wait else timeout, cancel, on_wait)
            made[0].notes = self._avoided(claim, made[0])
            return made[0]
        except BookShutError as error:
            _undo(made)
            if wait and timeout is not None:
                raise LeaseError(
                    f"a lease of {format_count(threads, 'CPU')} cannot be given within {timeout:g} s: {error}"
                ) from error
            raise
        except BaseException:  # an interrupt between the taking and the giving, say
            _undo(made)
            raise

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
        """:meth:`acquire` for ``async with``: tries once in the loop, and waits in a thread where that gave nothing.

        Cancelling it ends at once and leaves nothing.
        """
        _check_timeout(timeout)
        lease = self._at_once(self._claim(threads, memory_bytes, gpus, near, exclusive_cores, {}))
        if lease is None:
            from .asynchronous import waited_for

            def acquire(cancel: threading.Event) -> Lease:
                options = {"near": near, "exclusive_cores": exclusive_cores, "cancel": cancel}
                return self.acquire(threads, memory_bytes, gpus, wait=wait, timeout=timeout, **options)  # type: ignore[arg-type]

            lease = await waited_for(acquire, self.wake)
        with lease:
            yield lease

    def acquire_split(self, places: int, width: int, memory_bytes: int = 0, gpus: int = 0) -> tuple[Lease, ...]:
        """All-or-nothing: ``places`` leases of ``width`` PUs each, cut by ``machine.placement.split``; never waits.

        Each has ``memory_bytes`` and so many ``gpus``.

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
        whole = not self.smt
        each = self._look_around(self._claim(width, memory_bytes, gpus, None, whole, {}))
        whole_claim = self._look_around(self._claim(total, places * memory_bytes, places * gpus, None, whole, {}))

        def cut(room: Room) -> list[Lease]:
            claim = self._beside_others(whole_claim)
            if claims.grant(self.machine, room, claim) is None:
                return []
            free = CpuSet.from_bits(claims.usable(self.machine, room, claim))
            ours = free & CpuSet.from_bits(claim.preferred)
            parts = split(self.machine, ours if len(ours) >= total else free, places, width)
            return [self._granted(each, one) for one in claims.grant_each(self.machine, room, each, parts)]

        made, short = self._now(whole_claim, cut)
        if made:
            return made
        smaller = smaller_split(places, width, len(short.free)) if short.free else "wait until some are free"
        if total <= len(short.free):
            smaller = "ask for less"
        each_has = f", {format_size(memory_bytes)} for each" if memory_bytes else ""
        each_has += f", {format_count(gpus, 'GPU')} for each" if gpus else ""
        also = f" and {format_size(short.memory_bytes)}" if memory_bytes else ""
        raise OversubscriptionError(
            f"{asked}{each_has}, but {len(short.free)} of {len(self.usable)} CPUs{also} are free; the others are held "
            f"by {short.holders(self._also(whole_claim))}; release some, or {smaller}"
        )

    def acquire_cpus(self, cpus: CpuSet) -> Lease:
        """Lease exactly ``cpus``, without memory; never waits. CpusTakenError when one of them is not free."""

        claim = Claim(threads=max(1, len(cpus)), candidates=self._candidates.bits)

        def exactly(room: Room) -> list[Lease]:
            free = room.free & self._candidates.bits
            return [self._lease_of(cpus, cpus)] if cpus and not cpus.bits & ~free else []

        made, short = self._now(claim, exactly)
        if made:
            return made[0]
        raise CpusTakenError(
            f"a lease of CPUs {cpus or 'none'} was asked for, but {cpus - short.free or 'none'} cannot be given; "
            f"free are {short.free or 'none'}"
        )

    def acquire_instead(self, lease: Lease, *, exclusive_cores: bool = True) -> Lease | None:
        """As many PUs for what runs under ``lease``, whose own may be used no longer; never waits.

        Nor for those in line: it has had its turn. All else stays with ``lease``. ``None`` where there are not so many.
        """
        if len(lease.cpus) > len(self._candidates):
            return None
        claim = self._new_claim(len(lease.cpus), 0, 0, None, exclusive_cores, {})
        claim = replace(claim, draws={})  # it counts already, as so many PUs

        def make(room: Room) -> list[Lease]:
            found = claims.grant(self.machine, room, self._beside_others(claim))
            return [] if found is None else [self._granted(claim, found)]

        made, _ = self._now(claim, make, self.ledger.unheld)
        return made[0] if made else None

    def check(self, threads: int, memory_bytes: int = 0, gpus: int = 0) -> None:
        """Raise LeaseTooLargeError, with the numbers, when such a lease could not even be given by an empty book."""
        _check_count("threads", threads)
        _check_count("bytes of memory", memory_bytes, least=0)
        _check_count("GPUs", gpus, least=0)
        if threads > len(self.usable):
            raise LeaseTooLargeError(
                f"{threads} threads were asked for, but {self.explain()}; "
                f"ask for at most {format_count(len(self.usable), 'thread')}"
            )
        if memory_bytes > self._most_bytes:
            raise LeaseTooLargeError(
                f"{format_size(memory_bytes)} of memory were asked for, but {format_size(self._most_bytes)} are to be "
                "given out in all; ask for less"
            )
        if gpus > len(self.gpus):
            there = (
                f"{len(self.gpus)} are given out in all; ask for fewer"
                if self.gpus
                else "none is given out here; ask for none"
            )
            raise LeaseTooLargeError(f"a lease of {format_count(gpus, 'GPU')} was asked for, but {there}")

    def free(self) -> tuple[CpuSet, int]:
        """PUs and memory that leases could be given of now, nobody being overtaken who waits."""
        claim = self._beside_others(self._look_around(self._new_claim(1, 1, 0, None, not self.smt, {})))

        def look() -> Room:
            room = self.ledger.room(self.machine)
            if not claims.usable(self.machine, room, claim) or self._left(room) < self.memory_bytes:
                self.ledger.suspect()
            return room

        room = self._settled(look)
        own = self.held()
        cpus = CpuSet.from_bits(claims.usable(self.machine, room, claim))
        still = self._candidates  # of a PU that has gone there is another, or will be
        ours = len(self.usable) - sum(len(hold.cpus & still) for hold in own)  # pools are as large as any found them
        count = min([len(cpus), ours, *(room.left(pool, holds) for pool, holds in self._cpu_pools.items())])
        memory_bytes = min(self.memory_bytes - sum(hold.memory_bytes for hold in own), self._left(room))
        if count < len(cpus):
            cpus = choose(self.machine, cpus & self.usable or cpus, max(count, 0)) or CpuSet()
        return cpus, max(memory_bytes, 0)

    def slots_left(self, name: str, most: int) -> int:
        """How many leases may have one of the ``slots`` of that name now, nobody being overtaken who waits."""
        return self.ledger.in_turn(lambda: self.ledger.room(self.machine).left(f"{claims.SLOTS}{name}", most))

    def follow(self, machine: Machine, limits: Limits, memory_bytes: int) -> None:
        """Hand out from now on what is there now; leases that are held go on as they are.

        ``memory_bytes``: of all its leases. Raises OversubscriptionError where nothing of the book's is left.
        """
        self.ledger.in_turn(lambda: self._set(machine, limits, memory_bytes))

    def held(self) -> tuple[Hold, ...]:
        """What is now given out by this book, oldest first: leases, and what still runs under others."""
        return tuple(hold for hold in self.ledger.held_now() if hold.book is self)

    def anybody_waits(self) -> bool:
        """Whether somebody waits for a lease, here or, where others share the ledger, on the node."""
        return self.ledger.anybody_waits()

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
        known = self._claims  # now, for when limits change meanwhile there are others
        claim = known.get(asked)
        if claim is not None:
            return claim
        self.check(threads, memory_bytes, gpus)
        claim = self._new_claim(threads, memory_bytes, gpus, near, exclusive_cores, slots)
        if len(known) < _MOST_CLAIMS:  # executors ask for the same again and again
            known[asked] = claim
        return claim

    def _new_claim(
        self,
        threads: int,
        memory_bytes: int,
        gpus: int,
        near: CpuSet | None,
        exclusive_cores: bool,
        slots: Mapping[str, int],
    ) -> Claim:
        """Also one that an empty book could not give."""
        draws = {pool: (threads, holds) for pool, holds in self._cpu_pools.items()}
        if memory_bytes:
            draws.update((pool, (memory_bytes, holds)) for pool, holds in self._memory_pools.items())
        for name, most in slots.items():
            _check_count(f"leases for {name} at once", most)
            draws[f"{claims.SLOTS}{name}"] = (1, most)
        return Claim(
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

    def _at_once(self, claim: Claim) -> Lease | None:
        """What can be had without waiting for anybody or anything, also at the door, and without looking for the dead.

        Nobody who waits is overtaken.
        """
        if self._busy != "ignore" and not self.ledger.knows_load:
            return None
        claim = self._look_around(claim)
        made: list[Lease] = []
        try:
            self.ledger.in_turn(lambda: self._try(claim, made), 0.0)
        except BookShutError:
            return None
        except BaseException:
            _undo(made)
            raise
        if not made:
            return None
        made[0].notes = self._avoided(claim, made[0])
        return made[0]

    def _wait_in_line(
        self,
        asked: Callable[[], Claim],
        made: list[Lease],
        began: float,
        timeout: float | None,
        cancel: threading.Event | None,
        on_wait: Callable[[str], object] | None,
    ) -> Claim:
        """What is ``asked`` in the end, until the lease is ``made``; LeaseError when there is no more waiting."""
        from queue import Empty, SimpleQueue  # which who gets what he asks for at once can do without

        woken: SimpleQueue[None] = SimpleQueue()
        waiter = Waiter(asked(), lambda: woken.put(None), on_wait)
        taken_away = _TakenAway() if self.limits.live and timeout != 0 else None
        waited_for = ""
        try:
            while True:
                left = None if timeout is None else timeout - (time.monotonic() - began)
                over = left is not None and left <= 0
                allowed = asked() if taken_away is None else taken_away.without(asked())
                waiter.claim = claim = self._look_around(allowed)
                patience_s = PATIENCE_S if not timeout or left is None else _patience(left)
                short = self.ledger.in_turn(lambda: self._look(claim, made, waiter, over), patience_s)  # noqa: B023
                if short is None:
                    made[0].waited_s, made[0].waited_for = time.monotonic() - began, waited_for
                    return claim
                freed = self.ledger.examine()
                also = self._also(claim)
                if not waited_for and not short.is_our_own(also):
                    waited_for = short.holders(also)
                if freed:
                    continue
                if cancel is not None and cancel.is_set():
                    raise StopRequestedError(
                        f"waits no longer for a lease of {format_count(claim.threads, 'CPU')}: stopped"
                    )
                if over:
                    raise LeaseNotNowError(short.explain(timeout, also))
                waited_s = time.monotonic() - began
                if waited_for and (tell := waiter.due(waited_s)) is not None:
                    tell(waited_for)
                limits_s = (left, self.ledger.longest_sleep_s, waiter.told_in(waited_s) if waited_for else None)
                with contextlib.suppress(Empty):
                    woken.get(timeout=min((s for s in limits_s if s is not None), default=None))
        finally:  # also on KeyboardInterrupt; whoever is next in line may fit now
            try:
                self.ledger.leave(waiter)
            except KeyboardInterrupt:
                self.ledger.leave(waiter)
                raise

    def _look(self, claim: Claim, made: list[Lease], waiter: Waiter, over: bool) -> Shortage | None:
        """One look of somebody who waits, within a turn: ``None`` when he has what he waits for."""
        if self._try(claim, made, waiter):
            return None
        self.ledger.suspect()
        self.ledger.enter(waiter)
        if not over:
            self.ledger.put_up(waiter)
        ahead = sum(1 for _ in itertools.takewhile(lambda one: one is not waiter, self.ledger.queue()))
        return self._shortage(claim, ahead)

    def _now(
        self,
        claim: Claim,
        make: Callable[[Room], list[Lease]],
        room: Callable[[Machine], Room] | None = None,
    ) -> tuple[tuple[Lease, ...], Shortage]:
        """All leases that ``make`` makes of what is free now, or none; and what was found where there are none.

        Free is what ``room`` says; by default what nobody holds or waits for.
        """
        made: list[Lease] = []
        room = room or self.ledger.room

        def attempt() -> Shortage:
            if not self._give_out(make, made, room(self.machine)):
                self.ledger.suspect()
            return self._shortage(claim, 0)

        try:
            short = self.ledger.in_turn(attempt)
            while not made and self.ledger.examine():
                short = self.ledger.in_turn(attempt)
            return tuple(made), short
        except BaseException:
            _undo(made)
            raise

    def _try(self, claim: Claim, made: list[Lease], waiter: Waiter | None = None) -> bool:
        """Whether the lease is ``made``; within a turn."""
        claim = self._beside_others(claim)

        def make(room: Room) -> list[Lease]:
            found = claims.grant(self.machine, room, claim)
            return [] if found is None else [self._granted(claim, found)]

        if self._give_out(make, made, self.ledger.room(self.machine, waiter)):
            return True
        if waiter is not None:
            room = self.ledger.room(self.machine, waiter)
            claims.set_aside(self.machine, room, claim)
            if room.free:
                self.ledger.next_in_line(waiter)
        return False

    def _give_out(self, make: Callable[[Room], list[Lease]], made: list[Lease], room: Room) -> bool:
        """Whether what ``make`` makes of ``room`` could be had; what nobody has told of is not free either."""
        while leases := make(room):
            made[:] = leases
            lost = self._take_all(made)
            if not lost:
                return True
            made.clear()
            room.lose(lost)
        return False

    def _take_all(self, leases: Iterable[Lease]) -> str:
        """The PU or GPU that could not be had after all, and with it nothing."""
        for lease in leases:
            lost = self.ledger.take(lease.hold)
            if lost:
                _undo(leases)
                return lost
        return ""

    def _look_around(self, claim: Claim) -> Claim:
        """``claim`` with what has changed without anybody's telling; outside a turn, for it takes long."""
        if self._busy != "ignore":
            self.ledger.look_at_load()
        if not claim.memory_bytes or not self.limits.live:
            return claim
        if time.monotonic() - self._memory_read_at >= _READ_MEMORY_S:
            self._memory_read_at = time.monotonic()
            first, now = memory_pools(self.limits.rules), memory_pools(self.limits.memory_now())
            # Never less than at first: what has been taken since is, for the most part, what runs under our own leases.
            found = {pool: max(holds, now.get(pool, 0)) for pool, holds in first.items()}
            self._memory_pools = {**found, **self._own_pool}
        draws = {**claim.draws, **{pool: (claim.memory_bytes, holds) for pool, holds in self._memory_pools.items()}}
        return claim if draws == claim.draws else replace(claim, draws=draws)

    def _beside_others(self, claim: Claim) -> Claim:
        """Within a turn: ``claim`` less the PUs that others keep busy, or rather without them."""
        if claim.candidates & ~self._candidates.bits:  # limits have changed since it was made
            claim = _less(claim, ~self._candidates.bits)
        if self._busy == "ignore":
            return claim
        strangers, pinned = self.ledger.strangers, self.ledger.pinned
        if not (strangers | pinned) & claim.candidates:
            return claim
        if self._busy == "wait":
            claim = replace(claim, candidates=claim.candidates & ~strangers, preferred=claim.preferred & ~strangers)
        # Where others are bound they will be again; a CPU that is busy now is worse than one that may be.
        choices = [
            some & ~less for less in (strangers | pinned, strangers) for some in (claim.preferred, claim.candidates)
        ]
        enough = (choice for choice in choices if choice.bit_count() >= claim.threads)
        return replace(claim, preferred=next(enough, claim.candidates & ~strangers))

    def _granted(self, claim: Claim, found: Grant) -> Lease:
        cpus = CpuSet.from_bits(found.cpus)
        reserved = cpus if found.reserved == found.cpus else CpuSet.from_bits(found.reserved)
        return Lease(Hold(self, cpus, reserved, claim.memory_bytes, found.gpus, found.draws))

    def _settled(self, look: Callable[[], Room]) -> Room:
        """What ``look`` finds in a turn; again for as long as what the dead held comes free."""
        room = self.ledger.in_turn(look)
        while self.ledger.examine():
            room = self.ledger.in_turn(look)
        return room

    def _left(self, room: Room) -> int:
        """Bytes of memory that are free in ``room``."""
        return max(0, min(self.memory_bytes, *(room.left(pool, holds) for pool, holds in self._memory_pools.items())))

    def _lease_of(self, cpus: CpuSet, reserved: CpuSet) -> Lease:
        """Without memory."""
        draws = {pool: (len(cpus), holds) for pool, holds in self._cpu_pools.items()}
        return Lease(Hold(self, cpus, reserved, draws=draws))

    def _shortage(self, claim: Claim, ahead: int) -> Shortage:
        """Within a turn."""
        room = self.ledger.unheld(self.machine)
        return Shortage(
            claim=claim,
            free=CpuSet.from_bits(room.free & self._candidates.bits),
            usable=len(self.usable),
            memory_bytes=self._left(room),
            own=tuple(claims.in_the_way(room, claim, self.ledger.held())),
            others=tuple(claims.in_the_way(room, claim, self.ledger.others())),
            ahead=ahead,
            all_taken=tuple(
                (pool.removeprefix(claims.SLOTS), most)
                for pool, (_, most) in claim.draws.items()
                if pool.startswith(claims.SLOTS) and room.left(pool, most) < 1
            ),
        )

    def _avoided(self, claim: Claim, lease: Lease) -> tuple[str, ...]:
        """What to say of CPUs that were not taken because of others; to the log as well, once of the same."""
        if self._busy != "avoid":
            return ()
        kinds = (self.ledger.strangers, self.ledger.pinned)
        avoided = sum_bits(bits for bits in kinds if not bits & lease.cpus.bits)  # else there were not enough others
        cpus = CpuSet.from_bits(avoided & claim.candidates & ~lease.reserved.bits)
        if not cpus:
            return ()
        said = f"CPUs {cpus} were avoided: {'; '.join(self.ledger.explain_avoided(cpus)) or 'others use them'}"
        if cpus != self._said_avoided:
            self._said_avoided = cpus
            note(said)
        return (said,)

    def _also(self, claim: Claim) -> list[str]:
        """Who else is in the way of ``claim``, in words: strays, and who keeps busy what it waits for."""
        busy = self.ledger.strangers & claim.candidates if self._busy == "wait" else 0
        return [*self.ledger.explain_busy(CpuSet.from_bits(busy)), *self.ledger.strays()]


class _TakenAway:
    """The PUs that the calling thread may use no longer, of those it might use when it began to wait.

    A mask that it had by then, its lease's or one that its user chose, is no limit of what it asks.
    """

    def __init__(self) -> None:
        self._first = read_limits().cpus.bits
        self._gone = 0
        self._read_at = time.monotonic()

    def without(self, claim: Claim) -> Claim:
        """``claim`` less these, as of the last second. LeaseTooLargeError where too few are left."""
        if time.monotonic() - self._read_at >= _READ_LIMITS_S:
            self._read_at = time.monotonic()
            self._gone = self._first & ~read_limits().cpus.bits
        left = _less(claim, self._gone)
        if left.candidates.bit_count() < claim.threads:
            raise LeaseTooLargeError(
                f"{format_count(claim.threads, 'CPU')} were asked for, but while they were waited for CPUs "
                f"{CpuSet.from_bits(self._gone)} were taken from this process; left are "
                f"{CpuSet.from_bits(left.candidates) or 'none'}: ask for fewer"
            )
        return left


def _less(claim: Claim, gone: int) -> Claim:
    """``claim`` without the PUs ``gone``."""
    if not claim.candidates & gone:
        return claim
    kept = claim.candidates & ~gone
    return replace(claim, candidates=kept, preferred=claim.preferred & kept, siblings=claim.siblings & ~gone)


def _undo(made: Iterable[Lease]) -> None:
    for lease in made:
        lease.release()


def _patience(left_s: float) -> float:
    """How long to stand at the door when there is so much time."""
    return min(PATIENCE_S, max(left_s, _LEAST_PATIENCE_S))


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


def _check_timeout(timeout: object) -> None:
    if timeout is None:
        return
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout >= 0:
        raise InputError(f"the timeout is {timeout!r}; it must be a number of seconds of at least 0, or None for ever")
