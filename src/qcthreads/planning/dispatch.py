"""What starts now, where, and how wide, while a batch runs; a pure object that is told the time and starts nothing.

Widths and order are those with which the rest, laid out beside what runs, ends soonest (course.py): so the last ones
widen. They are kept as long as all goes as foreseen; else those that wait are looked at anew with what is known by
then. No moments are kept: each starts when there is room for it, and its width stays.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from ..cpuset import CpuSet
from ..errors import InputError
from ..machine import Machine
from ..machine.placement import compact
from .batch import Batch, Floats, Integers
from .correction import Correction, Known
from .costs import Estimate, memory_grant
from .course import MOST_LAID_OUT, Course, Kept, course_of, in_order
from .model import Capacity, Running, Task, usable_of
from .timetable import Timetable

_FAR = 1.5  # times the estimate, or a part of it: a plan made with such an estimate is of no use
_SHRUNK = 0.9  # of those that waited at the last look: what there is to choose from is another by then
# Few are left: looked at anew whenever one has started; of more than 64, one in 64, as each look takes some 20 ms.
# 4 per CPU keep all CPUs busy long enough for any width to be thought better of.
_TAIL_PER_CPU, _TAIL, _AT_ONCE = 4, 512, 64
_NEAR = 0.02  # of the estimate: who ends so near it changes no plan
_MOVED = 0.95  # of memory or disk at the last look: others on the node take and give back a little all the time
_FAR_OVER = 1.1  # times what was too much before, where more was granted: by less a program may follow its grant
_LOOK_AHEAD, _FEW = 64, 512  # how many of those that wait are tried for what is free; all where there are few
_OVERDUE = 0.1  # of the time that it took already: how much longer a task is expected to run that is late
_ROUNDING = 1e-9
_SPARE = 2  # times its own grant: what a task may have at most of one that it follows
_SOONER = 1.1  # times a start: as long must those there be busy, or another takes over too little to be worth its start


@dataclass(frozen=True, slots=True)
class Start:
    """A task that is to start now; ``cpus``: the best place of those that are free, none where it follows another."""

    id: str
    threads: int
    cpus: CpuSet
    memory_bytes: int
    """What it may have: its need, and where that was not measured its share of the whole if there is so much; 0: no
    limit."""
    expected_s: float | None
    """``None``: nothing is known of seconds yet."""


@dataclass(slots=True)
class _Started:
    row: int
    column: int
    width: int
    memory_bytes: int
    since_s: float
    pool: int
    fresh: bool
    """Its worker had to be started for it."""
    listed: bool = True
    """Its width is one of the task's, whose estimate its time corrects."""
    followed_s: float = 0.0
    """What is expected of the task that follows in its place."""


class _Room(NamedTuple):
    """How much is free, or taken up."""

    cpus: int
    memory_bytes: float
    disk_bytes: float

    def within(self, room: _Room) -> bool:
        return self.cpus <= room.cpus and self.memory_bytes <= room.memory_bytes and self.disk_bytes <= room.disk_bytes


class Dispatcher:
    """The rest of a batch, and what of it runs. For one thread at a time.

    Parameters
    ----------
    tasks
        Their ``times_s`` are estimates; relative ones will do.
    machine_or_cpus
        As for :func:`qcthreads.planning.plan`; no more CPUs than it has will ever be free.
    known
        What the estimates are worth: ``seconds``, as a calibrated model tells; ``elsewhere``, as one of another
        machine does; ``sizes``, ratios from theory; or ``nothing``.
    speedups_measured
        What a task gains from threads was measured, too, on this machine; else it is taken for an assumption.
    memory_bytes, disk_bytes
        For all that run at the same time; ``None``: no limit.
    at_once
        How many run at the same time at most; ``None``: as many as fit.
    start_up_s
        What a worker costs before it computes, as long as none of its kind has been measured.
    worth
        By which factor wider tasks must end the rest sooner than the cheapest widths, to be chosen.
    worker_of
        The kind of worker that a task of a kind takes at a width; by default one width is one kind. While those of a
        kind would get to all that waits for them as soon as another could start, another is not started.
    workers
        How many there are already, by kind, also of those that are starting.
    order
        All ids, where a plan is followed: who starts first, each at the widest width that it lists and may have.
        ``None``: order and widths are those that end soonest.

    Raises
    ------
    InputError, OversubscriptionError
        As from :func:`qcthreads.planning.plan`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        machine_or_cpus: Machine | CpuSet | int,
        *,
        known: Known = "seconds",
        speedups_measured: bool = False,
        memory_bytes: int | None = None,
        disk_bytes: int | None = None,
        at_once: int | None = None,
        start_up_s: float = 0.0,
        worth: float = 1.0,
        worker_of: Callable[[str, int], Hashable] = lambda _, width: width,
        workers: Mapping[Any, int] | None = None,
        order: Sequence[str] | None = None,
    ) -> None:
        self._machine, usable = usable_of(machine_or_cpus)
        self._memory_bytes = math.inf if memory_bytes is None else float(memory_bytes)
        self._disk_bytes = math.inf if disk_bytes is None else float(disk_bytes)
        self._disk_now = math.inf
        self._at_once = math.inf if at_once is None else at_once
        self._batch = Batch(tasks, self._capacity(len(usable), self._memory_bytes))
        self._row = {task.id: row for row, task in enumerate(self._batch.tasks)}
        self._ranks = None if order is None else np.argsort([self._row[name] for name in order])
        self._correction = Correction(
            self._batch.times_s,
            known,
            [task.kind for task in self._batch.tasks],
            speedups_measured=speedups_measured,
        )
        self._all_measured = all(task.memory_measured for task in self._batch.tasks)
        self._told_needs = self._batch.memory_bytes.copy()
        self._seen_needs = self._batch.memory_bytes.copy()
        more_bytes = self._batch.more_bytes
        self._more_bytes = np.zeros(self._batch.widths.shape) if more_bytes is None else more_bytes
        self._over = np.full(len(self._batch), 1 / _FAR_OVER)  # what was taken last / granted, where it was too much
        self._start_up_s = start_up_s
        self._starts_s: Mapping[int, float] = {}
        """What they were measured to take, by pool."""
        self._worth = worth
        self._waiting = np.ones(len(self._batch), dtype=bool)
        self._left = len(self._batch)
        self._running: dict[str, _Started] = {}
        self._following: dict[str, tuple[str, _Started]] = {}  # by what each follows, which still runs
        self._worker_of = worker_of
        self._pool_numbers: dict[Hashable, int] = {}
        self._pools = self._pools_of_all()
        self._workers = Counter({self._pool_number(kind): count for kind, count in (workers or {}).items()})
        """How many of each pool, which are those of one kind, have been started."""
        self._starting: Mapping[int, int] = {}
        """How many of these get no task yet."""
        self._soon = 0
        """On how many CPUs they start."""
        self._line: list[tuple[int, int]] = []  # (row, column) of those that wait, the first at the end
        self._waiting_s: defaultdict[tuple[int, int], float] = defaultdict(float)  # of those, by pool and width
        self._looked: tuple[Capacity, int] | None = None  # what there was, and how many waited, at the last look
        self._line_needs, self._others_need = 0.0, math.inf  # bytes: the most in the line, the least of those not in it
        self._far = 0
        self._patient = False
        """Nothing starts before what is ahead of it in line, unless it has ended by when that can start."""
        self._as_foreseen = False
        """All that waits was laid out to the end; nothing has gone otherwise since, and no worker has been started."""

    @property
    def waiting(self) -> int:
        """How many tasks have not started."""
        return self._left

    @property
    def running(self) -> int:
        """How many tasks have started and not ended."""
        return len(self._running)

    def limit_disk(self, disk_bytes: float) -> None:
        """Others have filled the disk, or emptied it: so much there is by now for all that run beside each other.

        Never more than at first; and one may always run alone, for what others have filled they may empty meanwhile.
        """
        self._disk_now = disk_bytes

    def next(
        self,
        now_s: float,
        free: CpuSet,
        free_memory_bytes: float = math.inf,
        soon: int = 0,
        *,
        starting: Mapping[Any, int] | None = None,
        starts_s: Mapping[Any, float] | None = None,
    ) -> Start | None:
        """A task that is to start now on some of the ``free`` CPUs; ``None``: none before something changes.

        Ask again until it is ``None``: each answer counts as started. CPUs and memory that have come or gone are seen
        by what is free. ``soon``: how many CPUs will be free in a moment that nothing given out here runs on.
        ``starting``: how many of the workers, by kind, get no task yet; no other is started where these will do.
        ``starts_s``: what a start was measured to take, by kind.
        """
        self._soon, self._starting = soon, {self._pool_number(kind): many for kind, many in (starting or {}).items()}
        if starts_s is not None:
            self._starts_s = {self._pool_number(kind): seconds for kind, seconds in starts_s.items()}
        if not self._left or not free or len(self._running) >= self._at_once:
            return None
        own_bytes = sum(one.memory_bytes for one in self._running.values())
        free_memory_bytes = min(free_memory_bytes, self._memory_bytes - own_bytes)
        cpus = len(free) + soon + sum(one.width for one in self._running.values())
        capacity = self._capacity(cpus, free_memory_bytes + own_bytes)
        if self._stale(capacity):
            self._look(now_s, capacity)
        disk_bytes = capacity.disk_bytes if self._running else self._disk_bytes
        free_disk_bytes = disk_bytes - sum(self._disk_of(one.row) for one in self._running.values())
        found = self._first_that_fits(now_s, _Room(len(free), free_memory_bytes, free_disk_bytes))
        return None if found is None else self._begin(now_s, *found, free, free_memory_bytes, capacity)

    def following(self, task_id: str, now_s: float, within_s: float) -> Start | None:
        """A task that is to start as soon as ``task_id`` has ended, with its CPUs, its memory and its worker.

        Only what is next as those that wait were looked at last, where both are expected to be over ``within_s``
        seconds from now, and where enough are left to keep all CPUs busy: a new look would take a good part of what
        short ones take. It waits no more, and counts as started when ``task_id`` has ended; one follows each.
        """
        if task_id in self._following:
            return None
        before, looked = self._running[task_id], self._looked
        if looked is None or self._left <= looked[0].cpus or not self._correction.in_seconds:
            return None
        if not self._line or not self._fits_after(before, *self._line[-1], looked[0]):
            return None
        row, column = self._line[-1]
        expected_s = self._correction.time_s(row, column)
        if self._left_s(now_s, before) + expected_s > within_s:
            return None
        self._leaves_line(len(self._line) - 1)
        before.followed_s = expected_s
        task = self._batch.tasks[row]
        started = _Started(row, column, before.width, before.memory_bytes, now_s, before.pool, fresh=False)
        self._following[task_id] = task.id, started
        return Start(task.id, before.width, CpuSet(), before.memory_bytes, expected_s)

    def narrowed(self, task_id: str, width: int, memory_bytes: int) -> float | None:
        """A task that has just started has that width instead; the seconds that are expected now, as far as known."""
        one = self._undone(task_id)
        pool = self._pool_number(self._worker_of(self._batch.tasks[one.row].kind, width))
        fresh = self._ready(pool) <= 0
        self._workers[pool] += fresh
        listed = (self._batch.widths[one.row] == width) & np.isfinite(self._batch.times_s[one.row])
        known = bool(listed.any())
        column = int(listed.argmax()) if known else one.column
        self._running[task_id] = _Started(one.row, column, width, memory_bytes, one.since_s, pool, fresh, known)
        self._as_foreseen = False
        return self._expected_s(one.row, column, pool, fresh) if known else None

    def returned(self, task_id: str) -> None:
        """A task that was to start, or to follow another, could not, and waits again."""
        self._waiting[self._undone(task_id).row] = True
        self._left += 1
        self._looked = None

    def ended(
        self, task_id: str, now_s: float, *, took_s: float | None = None, peak_bytes: int = 0, failed: bool = False
    ) -> None:
        """A task has ended; of one that failed the time tells nothing.

        ``took_s``: without the start of its worker; ``None``: since it started, less the start of its worker.
        ``peak_bytes``: of its memory; 0: not known.
        """
        one = self._running.pop(task_id, None)
        if one is None:
            raise InputError(f"task {task_id!r} has not started, or has ended before; tell each end once")
        if task_id in self._following:
            following, started = self._following.pop(task_id)
            self._running[following] = replace(started, since_s=now_s)
        if peak_bytes > one.memory_bytes > 0:
            self._raise_needs(one, peak_bytes)
        expected_s = self._expected_s(one.row, one.column, one.pool, one.fresh)
        self._as_foreseen &= expected_s is not None and abs(now_s - one.since_s - expected_s) <= _NEAR * expected_s
        if failed or not one.listed:
            return
        if took_s is None:
            took_s = now_s - one.since_s - (self._start_s(one.pool) if one.fresh else 0.0)
        longer = self._correction.observe(one.row, one.column, took_s)
        self._far += not 1 / _FAR < longer < _FAR

    def _raise_needs(self, one: _Started, peak_bytes: int) -> None:
        """It took more than it was granted, and so will those of its kind that are as large.

        Once, and again only where the part that was too much is larger by far: a program that takes a little more than
        it is told to would take more with every grant.
        """
        over = peak_bytes / one.memory_bytes
        raised = self._correction.as_large(one.row) & (over > _FAR_OVER * self._over)
        self._over[raised] = over
        needed_bytes = memory_grant(Estimate(peak_bytes, 1.0, "seen")) - self._more_bytes[one.row, one.column]
        self._seen_needs[raised] = np.maximum(self._seen_needs[raised], needed_bytes)
        self._looked = None

    def forecast(self, cpus: int, *, starting: bool = False) -> Timetable:
        """When which task runs on so many CPUs, as far as can be told, in the order of the tasks that were given.

        Only before the first has started. Relative where nothing is known of seconds. ``starting``: the workers that
        are there have only begun to start; nothing begins before they are ready.
        """
        rows = np.flatnonzero(self._waiting)
        if not len(rows):
            return Timetable((), (), (), (), 0.0)
        capacity = self._beside_few(0.0, rows, self._capacity(cpus, self._memory_bytes))
        batch = self._batch.retimed(rows, self._times_s(rows, capacity), capacity)
        if starting and self._workers:
            self._starting, self._soon = dict(self._workers), cpus
        return self._course(batch, rows, self._starts_beside()).timetable()

    def _capacity(self, cpus: int, memory_bytes: float) -> Capacity:
        disk_bytes = min(self._disk_bytes, self._disk_now)
        return Capacity(cpus, memory_bytes, disk_bytes=disk_bytes, tasks=self._at_once)

    def _undone(self, task_id: str) -> _Started:
        for before, (following, started) in self._following.items():
            if following == task_id:
                self._running[before].followed_s = 0.0
                del self._following[before]
                return started
        one = self._running.pop(task_id, None)
        if one is None:
            raise InputError(f"task {task_id!r} has not started, or has ended before; tell it between the two")
        self._workers[one.pool] -= one.fresh
        return one

    def _stale(self, capacity: Capacity) -> bool:
        """Whether to look at those that wait anew: at most every hundredth of them, until few are left."""
        if self._looked is None:
            return True
        before, waited = self._looked
        if before.cpus != capacity.cpus or self._memory_differs(before.memory_bytes, capacity.memory_bytes):
            return True
        if not _near(before.disk_bytes, capacity.disk_bytes):
            return True
        if self._as_foreseen:
            return False
        if self._few(capacity) and waited - self._left > self._left // _AT_ONCE:
            return True
        return self._left < _SHRUNK * waited or self._far > waited // 100

    def _memory_differs(self, before: float, now: float) -> bool:
        """By so much that widths may be others, or that more or less of what waits fits at all."""
        fits = self._line_needs <= now < self._others_need
        return before != now and not (fits and _near(before, now))

    def _few(self, capacity: Capacity) -> bool:
        return self._left <= min(_TAIL, _TAIL_PER_CPU * capacity.cpus)

    def _look(self, now_s: float, capacity: Capacity) -> None:
        """Choose widths and order for all that wait."""
        # What was seen to take more than there is has all of it.
        needs = np.maximum(self._told_needs, np.minimum(self._seen_needs, capacity.memory_bytes))
        self._batch.memory_bytes[:] = needs
        rows = np.flatnonzero(self._waiting)
        self._looked = capacity, self._left
        largest = float(self._batch.disk_bytes[rows].max())  # may run alone, whatever others have filled
        capacity = replace(capacity, disk_bytes=max(capacity.disk_bytes, largest))
        capacity = self._beside_few(now_s, rows, capacity)
        times_s = self._times_s(rows, capacity)
        fits = np.isfinite(times_s).any(axis=1) & (self._batch.memory_bytes[rows] <= capacity.memory_bytes)
        needs = self._batch.memory_bytes[rows]
        self._others_need = float(needs[needs > capacity.memory_bytes].min(initial=math.inf))
        rows, times_s = rows[fits], times_s[fits]
        foreseen = False
        line, self._line, self._line_needs, self._waiting_s = self._line, [], 0.0, defaultdict(float)
        if len(rows):
            batch = self._batch.retimed(rows, times_s, capacity)
            foreseen = self._can_foresee(batch)
            kept = self._going_on(batch, rows, line) if foreseen else None
            course = self._course(batch, rows, self._beside(now_s), kept)
            self._patient = course.patient
            order = course.order[::-1]
            rows, widths = rows[order], course.widths[order]
            columns = self._batch.columns(widths, rows)
            busy_s = self._correction.times_s(rows)[np.arange(len(rows)), columns]
            self._line = list(zip(rows.tolist(), columns.tolist(), strict=True))
            self._line_needs = float((self._batch.memory_bytes[rows] + self._more_bytes[rows, columns]).max())
            kinds = zip(self._pools[rows, columns].tolist(), widths.tolist(), strict=True)
            for kind, seconds in zip(kinds, busy_s.tolist(), strict=True):
                self._waiting_s[kind] += seconds
        self._far = 0
        self._as_foreseen = foreseen

    def _can_foresee(self, batch: Batch) -> bool:
        """Whether a layout tells when what starts when.

        Who is granted its share of the memory, not its need, is in the way of others that need more than theirs.
        """
        granted = self._all_measured or batch.most_bytes.max() * batch.capacity.cpus <= batch.capacity.memory_bytes
        return bool(granted) and self._ranks is None and len(batch) <= MOST_LAID_OUT

    def _course(self, batch: Batch, rows: Integers, beside: Sequence[Running] = (), kept: Kept | None = None) -> Course:
        if self._ranks is not None:
            return in_order(batch, self._ranks[rows], beside)
        return course_of(
            batch,
            beside,
            worth=self._worth,
            scatter=self._correction.scatter,
            in_seconds=self._correction.in_seconds and self._can_foresee(batch),
            kept=kept,
        )

    def _going_on(self, batch: Batch, rows: Integers, line: Sequence[tuple[int, int]]) -> Kept | None:
        """What was chosen at the last look, as far as it has not started; ``None``: it is of others, or cannot be."""
        if not line or len(line) != len(rows):
            return None
        were, columns = np.array(line[::-1]).T
        order = np.searchsorted(rows, were)
        same = (rows[np.minimum(order, len(rows) - 1)] == were).all()
        if not same or not np.isfinite(batch.times_s[order, columns]).all():
            return None
        chosen = np.empty_like(columns)
        chosen[order] = columns
        return Kept(order, chosen, self._patient)

    def _beside_few(self, now_s: float, rows: Integers, capacity: Capacity) -> Capacity:
        """Where one kind of worker serves all and another is not worth its start: those there have all the CPUs."""
        there, start_s = self._workers[0], self._start_s(0)
        if len(self._pool_numbers) > 1 or not 0 < there < min(capacity.cpus, capacity.tasks):
            return capacity
        if not (start_s and self._correction.in_seconds):
            return capacity
        few = replace(capacity, tasks=there)
        soonest_s = self._times_s(rows, few).min(axis=1)
        if not np.isfinite(soonest_s).all():
            return capacity
        left_s = sum(self._left_s(now_s, one) for one in self._running.values())
        to_last_s = left_s + float(soonest_s.sum() - soonest_s.min())
        return few if to_last_s <= there * _SOONER * start_s else capacity

    def _times_s(self, rows: Integers, capacity: Capacity) -> Floats:
        """Estimates, with the start of a worker where there is none to take over; while many wait, they share it."""
        times_s = self._correction.times_s(rows)
        widths = self._batch.widths[rows]
        times_s[widths > capacity.cpus] = np.inf
        if self._more_bytes.any():
            times_s[self._needs_at_widths(rows) > capacity.memory_bytes] = np.inf
        starts_s = np.array([self._start_s(pool) for pool in self._pool_numbers.values()])
        if starts_s.any() and self._correction.in_seconds:
            idle = [pool for pool in self._workers if self._idle(pool)]
            shared = 1.0 if self._few(capacity) else np.minimum(1.0, self._side_by_side(rows, capacity) / self._left)
            pools = self._pools[rows]
            times_s = np.where(np.isin(pools, idle), times_s, times_s + starts_s[pools] * shared)
        if capacity.tasks < capacity.cpus:  # who is narrower than its part of the CPUs leaves some to nobody
            in_part = widths <= capacity.cpus // capacity.tasks
            fastest_s = np.where(in_part, times_s, np.inf).min(axis=1, keepdims=True)
            times_s[in_part & (times_s > fastest_s)] = np.inf
        return times_s

    def _side_by_side(self, rows: Integers, capacity: Capacity) -> Floats:
        """How many would run at each width, if all were like it."""
        most: Floats = np.minimum(capacity.tasks, capacity.cpus / self._batch.widths[rows])
        if math.isfinite(capacity.memory_bytes):
            most = np.minimum(most, capacity.memory_bytes / np.maximum(self._needs_at_widths(rows), 1.0))
        if math.isfinite(capacity.disk_bytes):
            most = np.minimum(most, capacity.disk_bytes / np.maximum(self._batch.disk_bytes[rows, np.newaxis], 1.0))
        return most

    def _needs_at_widths(self, rows: Integers) -> Floats:
        """Bytes of memory of each task, in the columns of its widths."""
        needs: Floats = self._batch.memory_bytes[rows, np.newaxis] + self._more_bytes[rows]
        return needs

    def _pools_of_all(self) -> Integers:
        """In the columns of each task's widths, the number of the pool that it would take a worker of."""
        pools = np.zeros(self._batch.widths.shape, dtype=np.int64)
        kinds: dict[str, list[int]] = {}
        for row, task in enumerate(self._batch.tasks):
            kinds.setdefault(task.kind, []).append(row)
        for kind, rows in kinds.items():
            widths, inverse = np.unique(self._batch.widths[rows], return_inverse=True)
            numbers = [self._pool_number(self._worker_of(kind, width)) for width in widths.tolist()]
            pools[rows] = np.array(numbers)[inverse].reshape(len(rows), -1)
        return pools

    def _pool_number(self, kind: Hashable) -> int:
        return self._pool_numbers.setdefault(kind, len(self._pool_numbers))

    def _idle(self, pool: int) -> int:
        """Workers of that pool which wait, or are starting."""
        return self._workers[pool] - sum(one.pool == pool for one in self._running.values())

    def _ready(self, pool: int) -> int:
        """Workers of that pool which wait."""
        return self._idle(pool) - self._starting.get(pool, 0)

    def _start_s(self, pool: int) -> float:
        """What the start of a worker of that pool takes."""
        return self._starts_s.get(pool, self._start_up_s)

    def _worth_starting(self, now_s: float, pool: int, cpus: int) -> bool:
        """Whether those of the pool, of which none waits, would get to the last of what fits into ``cpus`` later than
        another would be ready for it.
        """
        there, start_s = self._workers[pool], self._start_s(pool)
        if not (there and start_s and self._correction.in_seconds):
            return True
        left_s = sum(self._left_s(now_s, one) for one in self._running.values() if one.pool == pool)
        waiting_s = sum(seconds for (of, width), seconds in self._waiting_s.items() if of == pool and width <= cpus)
        waiting_s -= next(self._correction.time_s(*last) for last in self._line if self._of_pool(last, pool, cpus))
        return left_s + waiting_s > there * _SOONER * start_s

    def _of_pool(self, waits: tuple[int, int], pool: int, cpus: int) -> bool:
        of, width = self._pool_and_width(*waits)
        return of == pool and width <= cpus

    def _beside(self, now_s: float) -> list[Running]:
        running = [
            Running(self._left_s(now_s, one), one.width, one.memory_bytes, self._disk_of(one.row))
            for one in self._running.values()
        ]
        return running + self._starts_beside()

    def _starts_beside(self) -> list[Running]:
        """Workers that are starting: as long as a whole start, as nobody knows since when; nothing is known of others.

        Who takes their CPUs for free has what is short wait for them, to be wider.
        """
        if not self._correction.in_seconds:
            return []
        return [Running(max(map(self._start_s, self._starting), default=0.0), 1)] * self._soon

    def _left_s(self, now_s: float, one: _Started) -> float:
        took_s = now_s - one.since_s
        expected_s = self._takes_s(one.row, one.column, one.pool, one.fresh)
        left_s = max(0.0, expected_s - took_s) if took_s <= expected_s * (1 + _ROUNDING) else _OVERDUE * took_s
        return left_s + one.followed_s

    def _needs(self, row: int, column: int) -> float:
        """Bytes of memory, at that width."""
        return float(self._batch.memory_bytes[row] + self._more_bytes[row, column])

    def _disk_of(self, row: int) -> float:
        return float(self._batch.disk_bytes[row])

    def _first_that_fits(self, now_s: float, room: _Room) -> tuple[int, int] | None:
        startable: dict[int, bool] = {}  # by pool
        within_s = math.inf  # who takes longer would be in the way of what is ahead of it
        last = -1 if len(self._line) <= _FEW else len(self._line) - 1 - _LOOK_AHEAD
        for at in range(len(self._line) - 1, last, -1):
            row, column = self._line[at]
            if not self._taken_up(row, column).within(room):
                if self._patient and math.isinf(within_s):
                    within_s = self._opens_s(now_s, row, column, room)
                continue
            pool = int(self._pools[row, column])
            if within_s < math.inf and self._takes_s(row, column, pool, self._ready(pool) <= 0) > within_s:
                continue
            if pool not in startable:
                startable[pool] = self._ready(pool) > 0 or self._worth_starting(now_s, pool, room.cpus)
            if startable[pool]:
                return self._leaves_line(at)
        return None

    def _opens_s(self, now_s: float, row: int, column: int, room: _Room) -> float:
        """In how many seconds that task is expected to fit; infinite where nobody can tell.

        That is where something is overdue by far, or where it does not fit when all that runs has ended.
        """
        needed = self._taken_up(row, column)
        running = self._running.values()
        if any(now_s - one.since_s > _FAR * self._takes_s(one.row, one.column, one.pool, one.fresh) for one in running):
            return math.inf
        opens_s = 0.0
        for one in sorted(self._beside(now_s), key=attrgetter("left_s")):
            if needed.within(room):
                break
            cpus, memory_bytes, disk_bytes = room
            opens_s = one.left_s
            room = _Room(cpus + one.width, memory_bytes + one.memory_bytes, disk_bytes + one.disk_bytes)
        return opens_s if needed.within(room) else math.inf

    def _taken_up(self, row: int, column: int) -> _Room:
        """By a task, at that width."""
        return _Room(int(self._batch.widths[row, column]), self._needs(row, column), self._disk_of(row))

    def _fits_after(self, before: _Started, row: int, column: int, capacity: Capacity) -> bool:
        """Whether what ``before`` has is what that task would be given."""
        if self._batch.tasks[row].kind != self._batch.tasks[before.row].kind:
            return False
        if self._pool_and_width(row, column) != (before.pool, before.width):
            return False
        if math.isfinite(self._disk_bytes) and self._disk_of(row) > self._disk_of(before.row):
            return False
        has_bytes = before.memory_bytes
        return self._needs(row, column) <= has_bytes <= _SPARE * self._granted(row, column, has_bytes, capacity)

    def _pool_and_width(self, row: int, column: int) -> tuple[int, int]:
        return int(self._pools[row, column]), int(self._batch.widths[row, column])

    def _leaves_line(self, at: int) -> tuple[int, int]:
        """The row and the column of the task there, which is going to start."""
        row, column = self._line.pop(at)
        self._waiting_s[self._pool_and_width(row, column)] -= self._correction.time_s(row, column)
        self._waiting[row] = False
        self._left -= 1
        return row, column

    def _granted(self, row: int, column: int, memory_bytes: float, capacity: Capacity) -> int:
        """Of so much that is free: what it needs, and where that was not measured its share of the whole."""
        granted = int(self._needs(row, column))
        if math.isfinite(capacity.memory_bytes) and not self._batch.tasks[row].memory_measured:
            share = int(capacity.memory_bytes) * int(self._batch.widths[row, column]) // capacity.cpus
            granted = int(min(memory_bytes, max(granted, share)))
        return granted

    def _begin(
        self, now_s: float, row: int, column: int, free: CpuSet, memory_bytes: float, capacity: Capacity
    ) -> Start:
        pool, width = self._pool_and_width(row, column)
        fresh = self._ready(pool) <= 0
        self._workers[pool] += fresh
        self._as_foreseen &= not (fresh and self._start_s(pool))
        expected_s = self._expected_s(row, column, pool, fresh)
        task = self._batch.tasks[row]
        granted = self._granted(row, column, memory_bytes, capacity)
        self._running[task.id] = _Started(row, column, width, granted, now_s, pool, fresh)
        return Start(task.id, width, compact(self._machine, free, width), granted, expected_s)

    def _expected_s(self, row: int, column: int, pool: int, fresh: bool) -> float | None:
        return self._takes_s(row, column, pool, fresh) if self._correction.in_seconds else None

    def _takes_s(self, row: int, column: int, pool: int, fresh: bool) -> float:
        """As far as is known, with the start of its worker."""
        return self._correction.time_s(row, column) + (self._start_s(pool) if fresh else 0.0)


def _near(before: float, now: float) -> bool:
    return before == now or _MOVED * before <= now <= before / _MOVED
