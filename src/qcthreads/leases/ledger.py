"""Which leases are given out and who waits, in order: of this process alone; ``shared`` adds the others on the node.

Giving back takes no lock: it may happen in a finalizer, which the interpreter runs in any thread between any two
instructions, also while that thread has the lock. What was given back is put down, and counted by whoever looks next.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from _weakrefset import WeakSet  # as `weakref` has it, with less to import
from collections import deque
from collections.abc import Callable, Sequence

from ..cpuset import CpuSet
from ..errors import BindingError
from ..machine import Machine
from .claims import Claim, Room, set_aside
from .door import PATIENCE_S
from .records import Holding, Owner, Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from ..host.busy import BusyWatch, PinnedProcess
    from .book import LeaseBook
    from .hold import Hold

    _Said = TypeVar("_Said")

_TOLD_AFTER_S = 1.0  # shorter waits are nobody's concern
_BUSY = 0.5  # of the time: two of them would share a PU
_LOOK_AT_LOAD_S = 1.0  # to look takes 12 ms on 4096 PUs
_SAMPLE_S = 0.1  # ten ticks of the kernel's counters


def warn(message: str, *values: object) -> None:
    """A line in the log."""
    import logging  # which takes longer to import than all else here

    logging.getLogger("qcthreads.leases").warning(message, *values)


def note(message: str) -> None:
    """A line for whoever wants to know."""
    import logging

    logging.getLogger("qcthreads.leases").info("%s", message)


class Waiter:
    """Somebody of this process who waits. ``wake`` is safe in finalizers and may be called for nothing."""

    __slots__ = ("_on_wait", "claim", "name", "told", "wake")

    def __init__(
        self, claim: Claim, wake: Callable[[], object], on_wait: Callable[[str], object] | None = None
    ) -> None:
        self.claim = claim
        self.wake = wake
        self._on_wait = on_wait
        self.name = ""
        """Sorts by age among all who wait; given by the ledger."""
        self.told = 0
        """Bits of the PUs that he may be given, as others were told."""

    def told_in(self, waited_s: float) -> float | None:
        """In how many seconds he is to be told whom he waits for; ``None``: never, or no more."""
        return None if self._on_wait is None else max(0.0, _TOLD_AFTER_S - waited_s)

    def due(self, waited_s: float) -> Callable[[str], object] | None:
        """How to tell him, once, when it is time."""
        if waited_s < _TOLD_AFTER_S:
            return None
        tell, self._on_wait = self._on_wait, None
        return tell


class Ledger:
    """Of one process; thread-safe, and after a fork the child's own.

    Reading and changing what is given out happens within :meth:`in_turn`; giving back and waking may happen anywhere;
    :meth:`look_at_load`, :meth:`examine` and what says something in words take long, and never happen within a turn.
    """

    mark: str
    """What ``QCTHREADS_LEASE`` begins with in the environment of everything that is started under its leases."""

    longest_sleep_s = 1.0
    """After which who waits looks again, whether he was woken or not."""

    def __init__(self) -> None:
        self.mark = os.urandom(16).hex()
        self._outlived: list[Hold] = []
        self._load: BusyWatch | None = None
        self._looked_at = -_LOOK_AT_LOAD_S
        self._looking = threading.Lock()
        self._own_s = time.process_time()
        self._leased = 0
        """Bits of the PUs under leases since the last look."""
        self.strangers = 0
        """Bits of the PUs that others kept busy who held no lease, at the last look."""
        self.pinned = 0
        """Bits of the PUs to which others were bound then who used any CPU and hold no lease."""
        self._pinned: tuple[PinnedProcess, ...] = ()
        self._lock = threading.Lock()
        self._held: dict[int, Hold] = {}
        self._given_back: deque[Hold] = deque()
        self._waiting: list[Waiter] = []
        self.ids = itertools.count(1)
        """Numbers that no other lease of this process has."""
        self._of_parent: tuple[Holding, ...] = ()
        """What the process held of which this one is a fork: nobody tells when it gives that back before its end."""
        ledgers.add(self)

    def in_turn(self, act: Callable[[], _Said], patience_s: float = PATIENCE_S) -> _Said:  # noqa: ARG002
        """What ``act`` says, while nobody else reads or changes what is given out.

        Not a context: an interrupt between its beginning and the block would leave the others waiting.
        """
        with self._lock:
            self._count_given_back()
            return act()

    @property
    def knows_load(self) -> bool:
        """Whether the last look at the load is less than a second ago."""
        return time.monotonic() - self._looked_at < _LOOK_AT_LOAD_S

    def look_at_load(self) -> None:
        """See which PUs others keep busy, where the last look is a second ago; it may sleep."""
        if self.knows_load:
            return
        with self._looking:
            if not self.knows_load:
                self._look_at_load()

    def explain_busy(self, cpus: CpuSet) -> list[str]:
        """Who keeps ``cpus`` busy, in words, as of the last look."""
        return [self._load.explain(cpu, self._pinned) for cpu in cpus] if self._load is not None else []

    def explain_avoided(self, cpus: CpuSet) -> list[str]:
        """Why ``cpus`` were avoided, in words."""
        busy = cpus & CpuSet.from_bits(self.strangers)
        there = [process for process in self._pinned if not (cpus - busy).isdisjoint(process.mask)]
        return [*self.explain_busy(busy), *(f"{process}, uses CPU there" for process in there)]

    def _look_at_load(self) -> None:
        from ..host.busy import BusyWatch, running

        others_run = running() > 1  # more than this thread
        if self._load is None:
            self._load = BusyWatch()
            self._load.look(time.monotonic())
            if others_run:  # worth a tenth of a second to know where
                time.sleep(_SAMPLE_S)
        leased, self._leased = self._leased, 0
        for hold in self._held.copy().values():
            self._leased |= hold.reserved.bits
        for other in self.others():
            self._leased |= other.reserved.bits
        load, own_s = self._load.look(time.monotonic()), time.process_time()
        own = (own_s - self._own_s) / max(load.interval_s, _SAMPLE_S)
        pinned = self._load.pinned() if others_run else ()
        ours = [process for process in pinned if self._has_started(process.pid)]
        self._pinned = tuple(process for process in pinned if process not in ours)
        masks = 0
        for process in self._pinned:
            masks |= process.mask.bits if not process.mask.bits & (leased | self._leased) else 0
        self.strangers = load.above(min(1.0, _BUSY + own)).bits & ~(leased | self._leased)
        for process in ours:  # also where no lease of it is: where the system had it run when its own CPUs had gone
            self.strangers &= ~process.cpus.bits
        self.pinned = masks
        self._looked_at, self._own_s = time.monotonic(), own_s

    def _has_started(self, pid: int) -> bool:
        """Whether the process was started under a lease of ours, or is one of our workers."""
        from ..host import processes
        from .place import LEASE_VARIABLE

        mark = processes.variable(processes.environment(pid), LEASE_VARIABLE) or ""
        return mark.partition(".")[0] == self.mark

    def held(self) -> tuple[Hold, ...]:
        """The leases of this process, oldest first."""
        return tuple(self._held.values())

    def held_now(self) -> tuple[Hold, ...]:
        """:meth:`held`, from outside a turn, for which nobody on the node has to be asked."""
        with self._lock:
            self._count_given_back()
            return self.held()

    def others(self) -> Sequence[Holding]:
        """The leases of other processes."""
        return self._of_parent

    def queue(self) -> list[Waiter | Waiting]:
        """All who wait, on the whole node, the first first."""
        return list(self._waiting)

    def anybody_waits(self) -> bool:
        """Whether somebody waits, from outside a turn; where nobody does it takes one look at most."""
        return bool(self._waiting)

    def unheld(self, machine: Machine) -> Room:
        """What nobody holds."""
        room = Room(machine.cpus_online.bits)
        for hold in self._held.values():
            room.take(hold.reserved.bits, hold.gpus, hold.draws)
        for other in self.others():
            room.take(other.reserved.bits, other.gpus, other.draws)
        return room

    def room(self, machine: Machine, before: Waiter | None = None) -> Room:
        """What is free for ``before``, who waits, or for somebody who comes last: less what is kept for those ahead."""
        room = self.unheld(machine)
        for waiter in self.queue():
            if waiter is before:
                break
            set_aside(machine, room, waiter.claim)
        return room

    def enter(self, waiter: Waiter) -> None:
        """Put ``waiter`` last in line, if he is not there."""
        if waiter not in self._waiting:
            self._waiting.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Take ``waiter`` out of the line; whoever is first now is woken."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(waiter)
        self._wake_first()

    def put_up(self, waiter: Waiter) -> None:
        """Tell others that ``waiter`` is going to sleep until it is his turn."""

    def take(self, hold: Hold) -> str:
        """Give out ``hold``: all of it, or nothing where one is returned that cannot be had after all, as ``cpu3``."""
        self._held[hold.lease_id] = hold
        self._leased |= hold.reserved.bits
        return ""

    def suspect(self) -> None:
        """Note who seems to be dead, for :meth:`examine`. To be called when there is not enough."""

    def examine(self) -> bool:
        """See whether anything still runs that the dead have started; true where the next turn finds more free.

        What does run is ended or waited for, as the dead had it; :meth:`strays` names it.
        """
        ended = [hold for hold in tuple(self._outlived) if not hold.in_use()]
        self._given_back.extend(ended)
        for hold in ended:
            with contextlib.suppress(ValueError):  # another thread has seen it, too
                self._outlived.remove(hold)
        before = self._of_parent
        if before:
            from .strays import is_used

            self._of_parent = tuple(holding for holding in before if is_used(holding))
        return bool(ended) or len(self._of_parent) < len(before)

    def give_back(self, hold: Hold) -> None:
        """The end of ``hold``; from anywhere. What still runs under it keeps what it has."""
        if not self._is_ours(hold):  # a fork's copy of its parent's, or never given out
            return
        try:
            self._end(hold)
        except BaseException:  # an interrupt: all of it once more, whatever was done already
            self._end(hold)
            raise

    def _is_ours(self, hold: Hold) -> bool:
        return self._held.get(hold.lease_id) is hold

    def _end(self, hold: Hold) -> None:
        if hold.in_use():
            self._outlived.append(hold)
        else:
            self._given_back.append(hold)
        self._wake_first()

    def descriptors(self, hold: Hold) -> tuple[int, ...]:  # noqa: ARG002
        """Open files that carry the kernel's locks of ``hold``; none here."""
        return ()

    def strays(self) -> list[str]:
        """What still runs under leases whose holders are dead, in words."""
        return []

    def next_in_line(self, waiter: Waiter) -> None:
        """Let him look who comes after ``waiter`` in this process: something may be left over."""
        after = itertools.dropwhile(lambda one: one is not waiter, tuple(self._waiting))
        for follower in itertools.islice(after, 1, 2):
            follower.wake()

    def wake(self) -> None:
        """Let everybody look who waits in this process. From any thread, also from signal handlers."""
        for waiter in tuple(self._waiting):
            waiter.wake()

    def _wake_first(self) -> None:
        for waiter in self._waiting[:1]:
            waiter.wake()

    def _count_given_back(self) -> None:
        """Under the lock, before anything else."""
        while self._given_back:
            self._held.pop(self._given_back[0].lease_id, None)
            self._given_back.popleft()  # not before: an interrupt in between would lose it

    def after_fork(self) -> None:
        """In a child: what its parent holds is not its own, nor free while that lives."""
        held = (*self._of_parent, *_told_of(self, os.getppid()))
        self.__init__()  # type: ignore[misc]
        self._of_parent = held


def is_bound(ledger: Ledger, *, beside: LeaseBook | None = None) -> bool:
    """Whether this thread has the mask of a lease, other than of the book ``beside``."""
    from ..host import get_host

    try:
        mask = get_host().get_affinity()
    except BindingError:
        return False
    return any(mask <= lease.cpus for lease in ledger.held_now() if lease.book is not beside)


def _told_of(ledger: Ledger, pid: int) -> list[Holding]:
    """The leases of ``ledger`` as others would see them, whose process has the number ``pid``."""
    if sys.platform == "win32" or not ledger.held():
        return []
    from ..host import processes

    owner = Owner(
        uid=os.getuid(),
        pid=pid,
        boot=processes.boot_id(),
        pid_namespace=processes.pid_namespace(),
        since=time.time(),
        mark=ledger.mark,
        command=processes.command(pid),
    )
    return [
        Holding(
            name=f"l{hold.mark}-",
            owner=owner,
            cpus=hold.cpus,
            reserved=hold.reserved,
            gpus=hold.gpus,
            memory_bytes=hold.memory_bytes,
            draws=hold.draws,
            orphans=hold.orphans,
        )
        for hold in ledger.held()
    ]


ledgers: WeakSet[Ledger] = WeakSet()
"""All of this process."""


def _after_fork() -> None:
    for ledger in tuple(ledgers):
        ledger.after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
