"""Three ways to lay out tasks in time against a deadline, given their order; knows numbers of CPUs, never which.

All give each task the cheapest width with which it still ends in time, and say who was late. ``pack`` keeps the time at
which each CPU is free and looks no further back; ``insert`` also fills holes, at any time; ``start`` goes through time
once and lets no CPU idle that a waiting task could use.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import islice

import numpy as np

from .batch import Batch, Choices
from .model import Running

# (width, start, end)
Entry = tuple[int, float, float]
# How far beyond the first of a width is looked for one whose memory fits; all the way where there are few tasks.
_LOOK_AHEAD, _FEW = 16, 512
_ROUNDING = 1e-12
_WHOLE_BANDWIDTH = 1 << 40  # shares of it are whole numbers, whose sums are exact


@dataclass(frozen=True, slots=True)
class Turns:
    """Workers of one width that take turns, each at one place: how many, and which has each task."""

    width: int
    count: int
    worker_of: Sequence[int]


@dataclass(frozen=True, slots=True)
class Timetable:
    """When each task of the batch runs, and how wide, in the order of the batch."""

    entries: Sequence[Entry]
    late: Sequence[int]
    """Who ends after the deadline that was aimed at."""
    makespan_s: float
    turns: Turns | None = None
    """Where it was made by giving out tasks to workers of one width."""


class Layout:
    """A batch with the widths worth having; what ``pack``, ``insert`` and ``start`` have in common."""

    def __init__(self, batch: Batch, choices: Choices) -> None:
        self.cpus = batch.capacity.cpus
        self.memory_bytes = batch.capacity.memory_bytes
        self.bandwidth = _WHOLE_BANDWIDTH
        self.choices = choices
        self._batch = batch
        self._rows: list[list[tuple[int, float]] | None] = [None] * len(batch)
        self._columns: tuple[float, list[int], list[int], list[float]] = (-1.0, [], [], [])

    def __len__(self) -> int:
        return len(self.choices.widths)

    def chosen(self, deadline_s: float) -> tuple[list[int], list[int], list[float]]:
        """Per task the column of the cheapest width that meets the deadline by itself, that width, and its time."""
        if self._columns[0] != deadline_s:
            columns = self.choices.cheapest(deadline_s)
            rows = np.arange(len(columns))
            widths, times_s = self.choices.widths[rows, columns], self.choices.times_s[rows, columns]
            self._columns = deadline_s, columns.tolist(), widths.tolist(), times_s.tolist()
        return self._columns[1:]

    def row(self, task: int) -> list[tuple[int, float]]:
        """(width, time) of every choice of a task; made when it is first asked for, as few are where there are many."""
        row = self._rows[task]
        if row is None:
            listed = zip(self.choices.widths[task].tolist(), self.choices.times_s[task].tolist(), strict=True)
            row = self._rows[task] = [choice for choice in listed if choice[1] < math.inf]
        return row

    @cached_property
    def needs(self) -> list[tuple[float, float]]:
        """(bytes of memory, seconds to move its bytes with all of the bandwidth) of every task; 0: not limited."""
        zeros = np.zeros(len(self))
        memory = self._batch.memory_bytes if math.isfinite(self.memory_bytes) else zeros
        moved_s = self._batch.traffic_bytes / self._batch.capacity.bandwidth_bytes_per_s
        return list(zip(memory.tolist(), moved_s.tolist(), strict=True))

    def rate(self, moved_s: float, time_s: float) -> int:
        """The share of the bandwidth that a task uses; who alone wants more than there is gets all of it."""
        return int(_WHOLE_BANDWIDTH * min(1.0, moved_s / time_s)) if moved_s and time_s else 0


def pack(layout: Layout, order: Sequence[int], deadline_s: float) -> Timetable:
    """Each task onto those CPUs that are free latest, yet early enough: what fits nowhere else finds the rest empty.

    Without limits on memory and bandwidth only.
    """
    columns, widths, times_s = layout.chosen(deadline_s)
    latest_s = deadline_s * (1 + _ROUNDING)
    free_s = [0.0] * layout.cpus  # ascending
    entries: list[Entry] = [(0, 0.0, 0.0)] * len(order)
    late: list[int] = []
    for task in order:
        width, time_s = widths[task], times_s[task]
        if free_s[width - 1] + time_s > latest_s:
            in_time = ((w, t) for w, t in layout.row(task)[columns[task] + 1 :] if free_s[w - 1] + t <= latest_s)
            width, time_s = next(in_time, (0, 0.0))
        if width:
            at = bisect_right(free_s, latest_s - time_s)
            at = max(at, width)  # rounding
        else:
            late.append(task)
            width, time_s = min(layout.row(task), key=lambda choice: (free_s[choice[0] - 1] + choice[1], choice[0]))
            at = width
        start_s = free_s[at - 1]
        end_s = start_s + time_s
        del free_s[at - width : at]
        at = bisect_left(free_s, end_s)
        free_s[at:at] = [end_s] * width
        entries[task] = width, start_s, end_s
    return Timetable(entries, late, free_s[-1])


def insert(layout: Layout, order: Sequence[int], deadline_s: float) -> Timetable:
    """Each task as early as it fits, holes included. Quadratic in the number of tasks."""
    columns, _, _ = layout.chosen(deadline_s)
    latest_s = deadline_s * (1 + _ROUNDING)
    profile = _Profile(layout)
    entries: list[Entry] = [(0, 0.0, 0.0)] * len(order)
    late: list[int] = []
    for task in order:
        memory, moved_s = layout.needs[task]
        best: tuple[float, float, int, int] | None = None
        for width, time_s in layout.row(task)[columns[task] :]:
            rate = layout.rate(moved_s, time_s)
            start_s = profile.earliest(time_s, width, memory, rate)
            if best is None or start_s + time_s < best[0]:
                best = start_s + time_s, start_s, width, rate
            if start_s + time_s <= latest_s:
                break
        else:
            late.append(task)
        assert best is not None
        end_s, start_s, width, rate = best
        profile.take(start_s, end_s, width, memory, rate)
        entries[task] = width, start_s, end_s
    return Timetable(entries, late, max((end_s for _, _, end_s in entries), default=0.0))


def start(layout: Layout, order: Sequence[int], deadline_s: float, beside: Sequence[Running] = ()) -> Timetable:
    """List scheduling: whenever something ends, every task that fits starts, the first in order first.

    ``beside``: what runs already; the makespan includes it.
    """
    _, widths, times_s = layout.chosen(deadline_s)
    latest_s = deadline_s * (1 + _ROUNDING)
    queues = _Queues(layout, order, widths, times_s)
    free, memory, bandwidth = layout.cpus, layout.memory_bytes, layout.bandwidth
    running = [(one.left_s, one.width, one.memory_bytes, 0) for one in beside]
    heapify(running)
    free -= sum(one.width for one in beside)
    memory -= sum(one.memory_bytes for one in beside)
    entries: list[Entry] = [(0, 0.0, 0.0)] * len(order)
    now_s = 0.0
    left = len(order)
    while left:
        found = queues.take(free, memory, bandwidth) if free > 0 else None
        if found is None:
            now_s, width, need, rate = heappop(running)
            free, memory, bandwidth = free + width, memory + need, bandwidth + rate
            while running and running[0][0] <= now_s:
                _, width, need, rate = heappop(running)
                free, memory, bandwidth = free + width, memory + need, bandwidth + rate
            continue
        task, need, rate = found
        width, end_s = widths[task], now_s + times_s[task]
        free, memory, bandwidth = free - width, memory - need, bandwidth - rate
        heappush(running, (end_s, width, need, rate))
        entries[task] = width, now_s, end_s
        left -= 1
    late = [task for task in order if entries[task][2] > latest_s]
    return Timetable(entries, late, max((end_s for end_s, *_ in running), default=now_s))


class _Profile:
    """What is free, from each of some times to the next."""

    def __init__(self, layout: Layout) -> None:
        self.times_s = [0.0]
        self.cpus = [layout.cpus]
        self.memory = [layout.memory_bytes]
        self.bandwidth = [layout.bandwidth]

    def earliest(self, time_s: float, width: int, memory: float, rate: int) -> float:
        """When so much is free for so long."""
        times_s, cpus, memories, bandwidths = self.times_s, self.cpus, self.memory, self.bandwidth
        at, count = 0, len(times_s)
        start_s, end_s = 0.0, time_s
        while at < count and times_s[at] < end_s:
            if cpus[at] < width or memories[at] < memory or bandwidths[at] < rate:
                start_s = times_s[at + 1]
                end_s = start_s + time_s
            at += 1
        return start_s

    def take(self, start_s: float, end_s: float, width: int, memory: float, rate: int) -> None:
        """Both times become ones at which something changes."""
        first, last = self._cut(start_s), self._cut(end_s)
        for at in range(first, last):
            self.cpus[at] -= width
            self.memory[at] -= memory
            self.bandwidth[at] -= rate

    def _cut(self, time_s: float) -> int:
        at = bisect_left(self.times_s, time_s)
        if at == len(self.times_s) or self.times_s[at] != time_s:
            self.times_s.insert(at, time_s)
            self.cpus.insert(at, self.cpus[at - 1])
            self.memory.insert(at, self.memory[at - 1])
            self.bandwidth.insert(at, self.bandwidth[at - 1])
        return at


class _Queues:
    """Who waits: by width, each queue in order."""

    def __init__(self, layout: Layout, order: Sequence[int], widths: list[int], times_s: list[float]) -> None:
        self._queues: dict[int, list[tuple[int, int, float, int]]] = {}
        for rank in range(len(order) - 1, -1, -1):  # lists give out their last
            task = order[rank]
            memory, moved_s = layout.needs[task]
            entry = rank, task, memory, layout.rate(moved_s, times_s[task]) if moved_s else 0
            self._queues.setdefault(widths[task], []).append(entry)
        self._widths = sorted(self._queues)
        self._ahead = len(order) if len(order) <= _FEW else _LOOK_AHEAD
        self._last = len(order)  # a rank behind all

    def take(self, free: int, memory: float, bandwidth: int) -> tuple[int, float, int] | None:
        """The first in order that fits, with its memory and bandwidth."""
        best, best_rank, best_at = 0, self._last, -1
        for width in self._widths:
            if width > free:
                break
            queue = self._queues[width]
            at = -1
            for rank, _, need, rate in islice(reversed(queue), self._ahead):
                if rank > best_rank:
                    break
                if need <= memory and rate <= bandwidth:
                    best, best_rank, best_at = width, rank, at
                    break
                at -= 1
        if not best:
            return None
        queue = self._queues[best]
        _, task, need, rate = queue.pop(best_at)
        if not queue:
            self._widths.remove(best)
        return task, need, rate
