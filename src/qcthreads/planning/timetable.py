"""Ways to lay out tasks in time, given their order; knows numbers of CPUs, never which.

Three do so against a deadline, give each task the cheapest width with which it still ends in time, for all that they
can tell, and say who was late. ``pack`` keeps the time at which each CPU is free and looks no further back; ``insert``
also fills holes, at any time; ``start`` goes through time once and lets no CPU idle that a waiting task could use.
Others are told the widths: ``place`` does as ``insert``, ``in_turn`` as ``start``, and in ``in_sequence`` none
overtakes another.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from .batch import Batch, Choices, Floats, Integers
from .model import ROUNDING, Running
from .space import Room

# Who waits is asked by width and by need of memory, disk or bandwidth, of which so many classes are told apart. Of a
# class whose needs differ so many are asked whether they fit; all where there are few tasks.
_CLASSES, _LOOK_AHEAD, _FEW = 8, 8, 512
_BLOCK = 16  # widths
_HOPELESS = 4  # tasks that are late, to a CPU; beyond, a layout is given up
_NONE_WIDER: Mapping[int, int] = {}
_WHOLE_BANDWIDTH = 1 << 40  # shares of it are whole numbers, whose sums are exact


@dataclass(frozen=True, slots=True)
class Turns:
    """Workers of one width that take turns, each at one place: how many, and which has each task."""

    width: int
    count: int
    worker_of: Sequence[int]


class Demand(NamedTuple):
    """What a task takes up at one width, and for how long."""

    time_s: float
    width: int
    taken: int
    """Of the :class:`~.space.Room`."""


@dataclass(frozen=True, slots=True)
class InSeries:
    """Series of tasks, each of which keeps its place: when each series runs, and in which each task is."""

    timetable: Timetable
    series_of: Sequence[int]


@dataclass(frozen=True, slots=True)
class Timetable:
    """When each task of the batch runs, and how wide, in the order of the batch."""

    widths: Sequence[int]
    starts_s: Sequence[float]
    ends_s: Sequence[float]
    late: Sequence[int]
    """Who ends after the deadline that was aimed at."""
    makespan_s: float
    turns: Turns | None = None
    """Where it was made by giving out tasks to workers of one width."""
    series: InSeries | None = None
    """Where it was made from that of series."""

    def without_moments(self) -> Timetable:
        """What takes no time, or none that rounding leaves, is done before all else, where it is in nobody's way."""
        starts_s, ends_s = np.array(self.starts_s), np.array(self.ends_s)
        moments = starts_s >= ends_s
        if not moments.any():
            return self
        starts_s[moments] = ends_s[moments] = 0.0
        return replace(self, starts_s=starts_s.tolist(), ends_s=ends_s.tolist())


class _Waiting(NamedTuple):
    """Tasks that wait, each at one width: what each takes up, and the class of its needs, from 0 on.

    Needs are those of memory, disk and bandwidth. ``alike``: all of one width and class take up the same.
    """

    taken: list[int]
    classes: list[int]
    alike: bool


class Layout:
    """A batch with the widths worth having, beside what runs; what ``pack``, ``insert`` and ``start`` have in common.

    Makespans include what runs.
    """

    def __init__(self, batch: Batch, choices: Choices, beside: Sequence[Running] = ()) -> None:
        self.cpus = batch.capacity.cpus
        self.tasks = batch.capacity.tasks
        self.choices = choices
        self.beside = beside
        self._batch = batch
        self._moves = bool(batch.moved_s.any())  # bandwidth is limited, and some task uses it
        bandwidth = [_WHOLE_BANDWIDTH] if self._moves else []
        # Of bytes that are no whole numbers, too, each task by itself has enough.
        wholes = (max(math.floor(space.whole), math.ceil(space.most.max())) for space in batch.spaces)
        self.room = Room([self.cpus, *wholes, *bandwidth])
        """CPUs first."""
        self._taken: dict[tuple[int, int], int] = {}
        self._asked: tuple[Sequence[int], Sequence[float], _Waiting] | None = None
        self._rows: list[list[tuple[int, float]] | None] = [None] * len(batch)
        self._narrower: dict[int, list[tuple[int, float]]] = {}
        self._at: tuple[float, list[int], list[float]] = (-1.0, [], [])

    def __len__(self) -> int:
        return len(self.choices.widths)

    def chosen(self, deadline_s: float, wider: Mapping[int, int] = _NONE_WIDER) -> tuple[list[int], list[float]]:
        """Per task the cheapest width that meets the deadline by itself, and its time.

        ``wider``: tasks that are to have a faster one, by how many of those worth having.
        """
        if self._at[0] != deadline_s:
            widths, times_s = self.choices.at(deadline_s)
            self._at = deadline_s, widths.tolist(), times_s.tolist()
        _, chosen, took_s = self._at
        if wider:
            chosen, took_s = chosen.copy(), took_s.copy()
            for task, more in wider.items():
                choices = self.as_wide(task, chosen[task])
                chosen[task], took_s[task] = choices[min(more, len(choices) - 1)]
        return chosen, took_s

    def row(self, task: int) -> list[tuple[int, float]]:
        """(width, time) of every choice of a task; made when it is first asked for, as few are where there are many."""
        row = self._rows[task]
        if row is None:
            widths, times_s = self._listed
            row = self._rows[task] = list(dict(zip(widths[task], times_s[task], strict=True)).items())
        return row

    def as_wide(self, task: int, width: int) -> list[tuple[int, float]]:
        """Of :meth:`row` those that are as wide or wider."""
        return [choice for choice in self.row(task) if choice[0] >= width]

    def narrower(self, task: int) -> list[tuple[int, float]]:
        """(width, time) of those narrower than all of :meth:`row`, the widest first: dear, but they fit beside them."""
        cheapest = self.row(task)[0][0]
        if cheapest == self._narrowest[task]:
            return []
        if task not in self._narrower:
            listed = zip(self._batch.widths[task].tolist(), self._batch.times_s[task].tolist(), strict=True)
            fitting = ((width, time_s) for width, time_s in listed if width < cheapest and time_s < math.inf)
            self._narrower[task] = sorted(fitting, reverse=True)
        return self._narrower[task]

    @cached_property
    def _moved_s(self) -> list[float]:
        moved_s: list[float] = self._batch.moved_s.tolist()
        return moved_s

    @cached_property
    def _narrowest(self) -> list[int]:
        narrowest: list[int] = self._batch.narrowest.tolist()
        return narrowest

    @cached_property
    def _listed(self) -> tuple[list[list[int]], list[list[float]]]:
        return self.choices.widths.tolist(), self.choices.times_s.tolist()

    def taken(self, task: int, width: int, time_s: float) -> int:
        """What a task takes up of the ``room`` at one of its widths."""
        if not self.room.several:
            return width
        if (task, width) not in self._taken:
            rates = [self._rate(task, time_s)] if self._moves else []
            parts = width, *(space.of(task, width) for space in self._batch.spaces), *rates
            self._taken[task, width] = self.room.of(parts)
        return self._taken[task, width]

    def all_taken(self, widths: Integers, times_s: Floats) -> list[int]:
        """:meth:`taken` of every task."""
        rates = [(_WHOLE_BANDWIDTH * self._batch.rates(times_s)).astype(np.int64)] if self._moves else []
        return self.room.of_each([widths, *(space.at(widths) for space in self._batch.spaces), *rates])

    def taken_by(self, one: Running) -> int:
        """The same of what runs already; what it moves is not known."""
        return self.room.of([one.width, *(space.taken(one) for space in self._batch.spaces)])

    def waiting(self, widths: Sequence[int], times_s: Sequence[float]) -> _Waiting:
        """All tasks at these widths; found once for several orders of the same lists."""
        if self._asked is None or self._asked[0] is not widths or self._asked[1] is not times_s:
            wide, long_s = np.array(widths, dtype=np.int64), np.array(times_s, dtype=np.float64)
            needs = [space.at(wide) for space in self._batch.spaces]
            if self._moves:
                needs.append(self._batch.rates(long_s))
            classes, alike = [0] * len(wide), True
            if needs:
                ranks, alike = _classes(np.column_stack(needs))
                classes = ranks.tolist()
            self._asked = widths, times_s, _Waiting(self.all_taken(wide, long_s), classes, alike)
        return self._asked[2]

    @cached_property
    def free_s(self) -> list[float]:
        """When each CPU is free, ascending; of those that more run on than there are, when all others have ended."""
        busy_s = sorted(one.left_s for one in self.beside for _ in range(one.width))
        return ([0.0] * (self.cpus - len(busy_s)) + busy_s)[-self.cpus :]

    @cached_property
    def busy_s(self) -> float:
        """When the last of what runs ends."""
        return max((one.left_s for one in self.beside), default=0.0)

    def demand(self, task: int, width: int, time_s: float) -> Demand:
        """What a task takes up at one of its widths."""
        return Demand(time_s, width, self.taken(task, width, time_s))

    def _rate(self, task: int, time_s: float) -> int:
        """The share of the bandwidth that a task uses."""
        moved_s = self._moved_s[task]
        return int(_WHOLE_BANDWIDTH * moved_s / time_s) if moved_s else 0


def pack(layout: Layout, order: Sequence[int], deadline_s: float, wider: Mapping[int, int] = _NONE_WIDER) -> Timetable:
    """Each task onto those CPUs that are free latest, yet early enough: what fits nowhere else finds the rest empty.

    Without limits on memory, disk and bandwidth only. Infinite where it is given up, as very many are late.
    """
    chosen, times_s = layout.chosen(deadline_s, wider)
    latest_s = deadline_s * (1 + ROUNDING)
    most_late = _HOPELESS * layout.cpus
    free_s = layout.free_s.copy()
    widths = list(chosen)
    starts_s, ends_s = [0.0] * len(order), [0.0] * len(order)
    late: list[int] = []
    for task in order:
        width, time_s = widths[task], times_s[task]
        if free_s[width - 1] + time_s > latest_s:
            soonest_s = math.inf
            for wide, took_s in layout.row(task) + layout.narrower(task):
                end_s = free_s[wide - 1] + took_s
                if wide != widths[task] and end_s <= latest_s:
                    width, time_s = wide, took_s
                    break
                if end_s < soonest_s:
                    width, time_s, soonest_s = wide, took_s, end_s
            else:
                late.append(task)
                if len(late) > most_late:
                    return Timetable(widths, starts_s, ends_s, late, math.inf)
            widths[task] = width
        at = bisect_right(free_s, latest_s - time_s)
        if at < width:  # it is late; or rounding
            at = width
        starts_s[task] = start_s = free_s[at - 1]
        ends_s[task] = end_s = start_s + time_s
        if width == 1:
            del free_s[at - 1]
            insort(free_s, end_s)
        else:
            del free_s[at - width : at]
            at = bisect_left(free_s, end_s)
            free_s[at:at] = [end_s] * width
    return Timetable(widths, starts_s, ends_s, late, free_s[-1])


def insert(
    layout: Layout, order: Sequence[int], deadline_s: float, wider: Mapping[int, int] = _NONE_WIDER
) -> Timetable:
    """Each task as early as it fits, holes included. Quadratic in the number of tasks."""
    chosen, _ = layout.chosen(deadline_s, wider)
    latest_s = deadline_s * (1 + ROUNDING)
    profile = _Profile(layout)
    widths = [0] * len(order)
    starts_s, ends_s = [0.0] * len(order), [0.0] * len(order)
    late: list[int] = []
    for task in order:
        best: tuple[float, float, int, int] | None = None
        for width, time_s in layout.as_wide(task, chosen[task]) + layout.narrower(task):
            taken = layout.taken(task, width, time_s)
            start_s = profile.earliest(time_s, taken)
            if best is None or start_s + time_s < best[0]:
                best = start_s + time_s, start_s, width, taken
            if start_s + time_s <= latest_s:
                break
        else:
            late.append(task)
        assert best is not None
        end_s, start_s, width, taken = best
        profile.take(start_s, end_s, taken)
        widths[task], starts_s[task], ends_s[task] = width, start_s, end_s
    return Timetable(widths, starts_s, ends_s, late, max(layout.busy_s, max(ends_s, default=0.0)))


def place(
    layout: Layout, order: Sequence[int], demands: Sequence[Demand], goal_s: float, most_late_s: float
) -> tuple[Timetable, float] | None:
    """Each task as early as it fits, and by how much those that end after the goal do so in sum.

    ``None``: by more than ``most_late_s``.
    """
    profile = _Profile(layout)
    starts_s, ends_s = [0.0] * len(order), [0.0] * len(order)
    late_s = 0.0
    for task in order:
        time_s, _, taken = demands[task]
        starts_s[task] = start_s = profile.earliest(time_s, taken)
        ends_s[task] = end_s = start_s + time_s
        if end_s > goal_s:
            late_s += end_s - goal_s
            if late_s > most_late_s:
                return None
        profile.take(start_s, end_s, taken)
    widths = [demand.width for demand in demands]
    return Timetable(widths, starts_s, ends_s, (), max(layout.busy_s, max(ends_s, default=0.0))), late_s


def start(layout: Layout, order: Sequence[int], deadline_s: float, wider: Mapping[int, int] = _NONE_WIDER) -> Timetable:
    """List scheduling: whenever something ends, every task that fits starts, the first in order first."""
    widths, times_s = layout.chosen(deadline_s, wider)
    made = in_turn(layout, order, widths, times_s)
    latest_s = deadline_s * (1 + ROUNDING)
    if made.makespan_s <= latest_s:
        return made
    return replace(made, late=[task for task in order if made.ends_s[task] > latest_s])


def in_turn(layout: Layout, order: Sequence[int], widths: Sequence[int], times_s: Sequence[float]) -> Timetable:
    """:func:`start` at these widths; nobody is late."""
    free, guard = layout.room.empty, layout.room.guard
    running = [(one.left_s, layout.taken_by(one)) for one in layout.beside]
    heapify(running)
    free -= sum(taken for _, taken in running)
    starts_s, ends_s = [0.0] * len(widths), [0.0] * len(widths)
    now_s = 0.0
    left = len(order)
    if left:
        queues = _Queues(layout, order, widths, times_s)
    while left:
        some = free - queues.least & guard == guard and len(running) < layout.tasks
        found = queues.take(free) if some else None
        if found is None:
            now_s, taken = heappop(running)
            free += taken
            while running and running[0][0] <= now_s:
                free += heappop(running)[1]
            continue
        task, taken = found
        starts_s[task] = now_s
        ends_s[task] = end_s = now_s + times_s[task]
        free -= taken
        heappush(running, (end_s, taken))
        left -= 1
    return Timetable(widths, starts_s, ends_s, (), max((end_s for end_s, _ in running), default=now_s))


def in_sequence(layout: Layout, order: Sequence[int], widths: Sequence[int], times_s: Sequence[float]) -> Timetable:
    """Each starts as soon as it fits, none before those ahead of it in order.

    In the order in which they start in another timetable, and at its widths, none starts later than there.
    """
    free, guard = layout.room.empty, layout.room.guard
    running = [(one.left_s, layout.taken_by(one)) for one in layout.beside]
    heapify(running)
    free -= sum(taken for _, taken in running)
    all_taken = layout.all_taken(np.array(widths, dtype=np.int64), np.array(times_s))
    starts_s, ends_s = [0.0] * len(widths), [0.0] * len(widths)
    now_s = 0.0
    for task in order:
        taken = all_taken[task]
        while free - taken & guard != guard or len(running) >= layout.tasks:
            now_s, given_back = heappop(running)
            free += given_back
        starts_s[task] = now_s
        ends_s[task] = end_s = now_s + times_s[task]
        free -= taken
        heappush(running, (end_s, taken))
    return Timetable(widths, starts_s, ends_s, (), max(layout.busy_s, max(ends_s, default=0.0)))


class _Profile:
    """What is free, from each of some times to the next."""

    def __init__(self, layout: Layout) -> None:
        self.times_s = [0.0]
        self.free = [layout.room.empty]
        self._guard, self._several = layout.room.guard, layout.room.several
        for one in layout.beside:
            self.take(0.0, one.left_s, layout.taken_by(one))

    def earliest(self, time_s: float, taken: int) -> float:
        """When so much is free for so long."""
        times_s, free, guard, several = self.times_s, self.free, self._guard, self._several
        at, count, least = 0, len(times_s), guard + taken
        start_s, end_s = 0.0, time_s
        while at < count and times_s[at] < end_s:
            if free[at] < least or (several and free[at] - taken & guard != guard):
                start_s = times_s[at + 1]
                end_s = start_s + time_s
            at += 1
        return start_s

    def take(self, start_s: float, end_s: float, taken: int) -> None:
        """Both times become ones at which something changes."""
        free = self.free
        for at in range(self._cut(start_s), self._cut(end_s)):
            free[at] -= taken

    def _cut(self, time_s: float) -> int:
        at = bisect_left(self.times_s, time_s)
        if at == len(self.times_s) or self.times_s[at] != time_s:
            self.times_s.insert(at, time_s)
            self.free.insert(at, self.free[at - 1])
        return at


class _Queues:
    """Who waits: by width and need, each queue in order."""

    def __init__(self, layout: Layout, order: Sequence[int], widths: Sequence[int], times_s: Sequence[float]) -> None:
        waiting = layout.waiting(widths, times_s)
        classes = waiting.classes
        self._order = order
        self._taken = [waiting.taken[task] for task in order]
        self._room = layout.room
        self._alike = waiting.alike  # in a queue, so that where its first does not fit none does
        queues: dict[tuple[int, int], list[int]] = {}
        for rank in range(len(order) - 1, -1, -1):  # the first in order last, where lists give them out
            task = order[rank]
            queues.setdefault((widths[task], classes[task]), []).append(rank)
        self._queues = sorted((queue[-1], self._least(queue), queue) for queue in queues.values())
        """The first rank, what is taken up at least, and all ranks; who comes first first."""
        self.least = layout.room.least([least for _, least, _ in self._queues])
        """Where there is less room, none fits."""
        self._firsts = None
        if self._alike and not any(classes) and len(queues) > _BLOCK:
            self._firsts = _Firsts([(width, queue) for (width, _), queue in sorted(queues.items())], len(order))
        self._ahead = len(order) if len(order) <= _FEW else _LOOK_AHEAD

    def take(self, free: int) -> tuple[int, int] | None:
        """The first in order that fits, and what it takes up; there is room for :attr:`least`."""
        if self._firsts is not None:
            rank = self._firsts.take(self._room.first(free))
            return None if rank is None else (self._order[rank], self._taken[rank])
        guard, taken, beyond = self._room.guard, self._taken, -1 - self._ahead
        best, best_rank, best_at = -1, len(taken), -1  # a rank behind all
        for number, (first, least, queue) in enumerate(self._queues):
            if first > best_rank:
                break
            if free - least & guard != guard:
                continue
            if self._alike or free - taken[first] & guard == guard:  # as most do
                best, best_rank, best_at = number, first, -1
                break
            for at, rank in enumerate(queue[-2:beyond:-1], start=2):
                if rank > best_rank:
                    break
                if free - taken[rank] & guard == guard:
                    best, best_rank, best_at = number, rank, -at
                    break
        if best < 0:
            return None
        _, least, queue = self._queues.pop(best)
        del queue[best_at]
        if queue:
            insort(self._queues, (queue[-1], least, queue))
        return self._order[best_rank], taken[best_rank]

    def _least(self, queue: Sequence[int]) -> int:
        taken = self._taken
        return taken[queue[0]] if self._alike else self._room.least([taken[rank] for rank in queue])


class _Firsts:
    """Who waits where all need the same but have many widths: looks through the queues by blocks."""

    def __init__(self, queues: Sequence[tuple[int, list[int]]], nobody: int) -> None:
        self._widths = [width for width, _ in queues]
        self._queues = [queue for _, queue in queues]
        self._nobody = nobody  # a rank behind all
        self._heads = [queue[-1] for queue in self._queues]
        self._blocks = [min(self._heads[first : first + _BLOCK]) for first in range(0, len(queues), _BLOCK)]
        """The first of each block of queues."""

    def take(self, free: int) -> int | None:
        """The rank of the first in order that is no wider."""
        heads, blocks = self._heads, self._blocks
        many = bisect_right(self._widths, free)
        whole = many // _BLOCK
        rank = min(heads[whole * _BLOCK : many], default=self._nobody)
        if whole and (first := min(blocks[:whole])) < rank:
            rank, whole = first, blocks.index(first)
        if rank == self._nobody:
            return None
        at = heads.index(rank, whole * _BLOCK)
        queue = self._queues[at]
        queue.pop()
        heads[at] = queue[-1] if queue else self._nobody
        blocks[whole] = min(heads[whole * _BLOCK : (whole + 1) * _BLOCK])
        return rank


def _classes(needs: Floats) -> tuple[Integers, bool]:
    """Of each row the class of its needs, from 0 on; and whether all of a class need the same."""
    order = np.lexsort(needs.T[::-1])
    another = np.append(False, (np.diff(needs[order], axis=0) != 0).any(axis=1))
    ranks = np.empty_like(order)
    ranks[order] = np.cumsum(another)
    different = int(another.sum()) + 1
    return ranks * min(_CLASSES, different) // different, different <= _CLASSES
