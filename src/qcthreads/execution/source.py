"""Where an engine takes its next calculation from: a list in order, or what a dispatcher says; starts nothing."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from ..cpuset import CpuSet
from ..leases import LeaseBook
from ..programs.spec import WorkerKind
from .calculation import Calculation, Outcome
from .job import worker_kind
from .observing import alike

if TYPE_CHECKING:
    from ..planning.dispatch import Dispatcher  # with numpy, which no worker waits for


@dataclass(frozen=True, slots=True)
class Starts:
    """Workers that an engine has started beforehand and that are not ready yet, and what starts take."""

    cpus: int = 0
    """How many more PUs will be free when they are ready."""
    kinds: Mapping[WorkerKind, int] = field(default_factory=dict)
    """How many of each kind."""
    ready: Mapping[WorkerKind, int] = field(default_factory=dict)
    """Beside them, how many of each kind wait for a calculation or have one of the run; told while any are starting."""
    took_s: Mapping[WorkerKind, float] = field(default_factory=dict)
    """What the last of each kind took until it was ready, of those that have been."""


NO_STARTS = Starts()


class Source(Protocol):
    """Asked by one driver at a time, each time that something may start."""

    @property
    def waiting(self) -> int:
        """How many calculations have not been given out."""

    @property
    def running(self) -> int:
        """How many have been given out and have not ended."""

    def calculations(self) -> Sequence[Calculation]:
        """Everything there is to run, each as it needs least; what can never fit is refused before anything starts."""

    def next(self, free: CpuSet, memory_bytes: int, starts: Starts = NO_STARTS) -> Calculation | None:
        """What starts now within so much; ``None``: nothing before something changes.

        Who decides as if no PU were free in a moment starts too narrow, and as if no worker were ready then, others.
        """

    def following(self, calculation: Calculation, within_s: float) -> Calculation | None:
        """What starts in the place of ``calculation``, which runs, as soon as that has ended, with what that has.

        Given out by then. ``None``: that is decided when it has ended; always, where not both are to be over within so
        many seconds.
        """

    def narrowed(self, calculation: Calculation) -> None:
        """What runs for the one of that label, which was given out last, with fewer threads."""

    def returned(self, calculation: Calculation) -> None:
        """One that was given out fits no longer, and waits again: it may have fewer threads, or less memory."""

    def ended(self, outcome: Outcome) -> None:
        """What became of one."""


class InOrder:
    """Calculations in the order given, side by side as far as there is room by now.

    The next waits in line for its lease only where nothing of them runs: while anybody stands in line, nothing follows
    under a lease on the whole node. A short one that is like the one before takes that one's place at once, a moment
    out of order.

    Parameters
    ----------
    calculations
        In that order.
    book
        What the leases come from.
    most_threads
        Of all that run at the same time; ``None``: as many as there are PUs.
    as_now
        What runs now for one of them, where there is more or less for each than when they were made.
    """

    def __init__(
        self,
        calculations: Sequence[Calculation],
        book: LeaseBook,
        *,
        most_threads: int | None = None,
        as_now: Callable[[Calculation], Calculation] = lambda calculation: calculation,
    ) -> None:
        self._calculations = calculations
        self._book = book
        self._most_threads = math.inf if most_threads is None else most_threads
        self._as_now = as_now
        self._left = deque(calculations)
        self._given: dict[str, Calculation] = {}
        self._widths: dict[Hashable, int] = {}
        """What has run instead, by calculations that are alike: the program used fewer threads than it was to."""
        self._kinds: dict[Hashable, WorkerKind] = {}
        """Of worker, by calculations that are alike."""
        self._following: dict[str, Calculation] = {}
        """By the label of what each follows."""
        self._took_s: dict[Hashable, float] = {}
        """The last that has ended, of those that are alike."""

    @property
    def waiting(self) -> int:
        """How many calculations have not been given out."""
        return len(self._left)

    @property
    def running(self) -> int:
        """How many have been given out and have not ended."""
        return len(self._given)

    def calculations(self) -> Sequence[Calculation]:
        """Those given."""
        return self._calculations

    def next(self, free: CpuSet, memory_bytes: int, starts: Starts = NO_STARTS) -> Calculation | None:
        """The first of those left, also where nothing runs and it has to wait for others' leases.

        Not while a worker for it starts.
        """
        calculation, book = self._as_now(self._left[0]), self._book
        threads = min(calculation.threads, self._widths.get(alike(calculation), calculation.threads))
        if self._given and (threads > len(free) or calculation.memory_bytes > memory_bytes):
            return None
        threads += sum(one.threads for one in self._given.values())
        if threads > min(self._most_threads, len(book.usable)) or calculation.memory_bytes > book.memory_bytes:
            return None
        if starts.kinds and self._waits_for(self._kind_of(calculation), starts):
            return None
        self._left.popleft()
        self._given[calculation.label] = calculation
        return calculation

    def _waits_for(self, kind: WorkerKind, starts: Starts) -> bool:
        """Whether those that are starting will do for all that is left: another would be ready later."""
        given = sum(self._kind_of(one) == kind for one in self._given.values())
        if starts.ready.get(kind, 0) > given:
            return False
        left = (one for one in self._left if self._kind_of(one) == kind)  # of 100,000 not to the last, at each start
        return next(islice(left, starts.kinds.get(kind, 0), None), None) is None

    def _kind_of(self, calculation: Calculation) -> WorkerKind:
        same = alike(calculation)
        if same not in self._kinds:
            self._kinds[same] = worker_kind(calculation)
        return self._kinds[same]

    def following(self, calculation: Calculation, within_s: float) -> Calculation | None:
        """The first of those left, where both are alike, as short as the last was, and more are left than run."""
        took_s = self._took_s.get(alike(calculation), math.inf)
        if 2 * took_s > within_s or len(self._left) <= len(self._given) or calculation.label in self._following:
            return None
        following = self._as_now(self._left[0])
        if alike(following) != alike(calculation) or following.memory_bytes != calculation.memory_bytes:
            return None
        self._left.popleft()
        self._following[calculation.label] = following
        return following

    def narrowed(self, calculation: Calculation) -> None:
        """And so will be those like it that follow."""
        self._widths[alike(self._given[calculation.label])] = calculation.threads
        self._given[calculation.label] = calculation

    def returned(self, calculation: Calculation) -> None:
        """It is the next again."""
        self._given.pop(calculation.label, None)
        self._following = {label: one for label, one in self._following.items() if one is not calculation}
        self._left.appendleft(calculation)

    def ended(self, outcome: Outcome) -> None:
        """What it had is for the next."""
        kind = alike(self._given.pop(outcome.label))
        if outcome.status == "finished":
            self._took_s[kind] = outcome.wall_s
        if outcome.label in self._following:
            following = self._following.pop(outcome.label)
            self._given[following.label] = following


@dataclass(frozen=True, slots=True)
class Planned:
    """When a calculation was expected to run, as it started; seconds since the epoch."""

    start_at: float
    end_at: float | None
    """``None``: nothing was known of seconds."""


class Dispatched:
    """Calculations at the widths, in the order and with the memory that a dispatcher chooses.

    Parameters
    ----------
    dispatcher
        Its tasks have the labels of the calculations.
    narrowest
        Each of them as it needs least.
    make
        A calculation by its label, at a width, with so much memory.
    most_threads
        Of all that run at the same time; ``None``: as many as are free.
    disk_bytes
        How much there is by now for the temporary files of all of them; ``None``: as much as at first.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        narrowest: Sequence[Calculation],
        make: Callable[[str, int, int], Calculation],
        *,
        most_threads: int | None = None,
        disk_bytes: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dispatcher = dispatcher
        self._narrowest = narrowest
        self._make = make
        self._most_threads = most_threads
        self._disk_bytes = disk_bytes
        self._clock = clock
        self._began_s: float | None = None
        self._given: dict[str, Calculation] = {}
        self._following: dict[str, tuple[Calculation, float | None]] = {}
        """With the seconds expected, by the label of what each follows."""
        self.planned: dict[str, Planned] = {}
        """By label."""
        self.widths: dict[int, int] = {}
        """How many calculations were started at each width."""

    @property
    def waiting(self) -> int:
        """How many calculations have not been given out."""
        return self._dispatcher.waiting

    @property
    def running(self) -> int:
        """How many have been given out and have not ended."""
        return self._dispatcher.running

    def calculations(self) -> Sequence[Calculation]:
        """Each as it needs least."""
        return self._narrowest

    def next(self, free: CpuSet, memory_bytes: int, starts: Starts = NO_STARTS) -> Calculation | None:
        """What the dispatcher says."""
        soon = starts.cpus
        if self._most_threads is not None:
            allowed = max(0, self._most_threads - sum(one.threads for one in self._given.values()))
            free = CpuSet(list(free)[:allowed])
            soon = min(soon, allowed - len(free))
        if self._disk_bytes is not None:
            self._dispatcher.limit_disk(self._disk_bytes())
        now_s = self._now_s()
        start = self._dispatcher.next(now_s, free, memory_bytes, soon, starting=starts.kinds, starts_s=starts.took_s)
        if start is None:
            return None
        calculation = self._make(start.id, start.threads, start.memory_bytes)
        self._count(calculation, start.expected_s)
        return calculation

    def following(self, calculation: Calculation, within_s: float) -> Calculation | None:
        """What the dispatcher says."""
        start = self._dispatcher.following(calculation.label, self._now_s(), within_s)
        if start is None:
            return None
        following = self._make(start.id, start.threads, start.memory_bytes)
        self._following[calculation.label] = following, start.expected_s
        return following

    def narrowed(self, calculation: Calculation) -> None:
        """The dispatcher counts and learns what really runs."""
        expected_s = self._dispatcher.narrowed(calculation.label, calculation.threads, calculation.memory_bytes)
        self._uncount(calculation.label)
        self._count(calculation, expected_s)

    def returned(self, calculation: Calculation) -> None:
        """The dispatcher has it wait again."""
        self._dispatcher.returned(calculation.label)
        if calculation.label in self._given:
            self._uncount(calculation.label)
        else:
            self._following = {label: one for label, one in self._following.items() if one[0] is not calculation}

    def ended(self, outcome: Outcome) -> None:
        """Its time corrects the estimates of those to come, and its memory what they need."""
        calculation, peak_bytes = self._given.pop(outcome.label), outcome.peak_memory_bytes
        if peak_bytes:
            peak_bytes += calculation.files_bytes  # those in memory are a part of what was granted
        self._dispatcher.ended(
            outcome.label,
            self._now_s(),
            took_s=outcome.wall_s,
            peak_bytes=peak_bytes,
            failed=outcome.status == "failed",
        )
        if outcome.label in self._following:
            self._count(*self._following.pop(outcome.label), outcome.started_at + outcome.wall_s)

    def _count(self, calculation: Calculation, expected_s: float | None, start_at: float | None = None) -> None:
        start_at, threads = time.time() if start_at is None else start_at, calculation.threads
        self.planned[calculation.label] = Planned(start_at, None if expected_s is None else start_at + expected_s)
        self._given[calculation.label] = calculation
        self.widths[threads] = self.widths.get(threads, 0) + 1

    def _uncount(self, label: str) -> None:
        threads = self._given.pop(label).threads
        del self.planned[label]
        self.widths[threads] -= 1
        if not self.widths[threads]:
            del self.widths[threads]

    def _now_s(self) -> float:
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        return now_s - self._began_s
