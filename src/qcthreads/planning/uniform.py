"""Workers of one width, each with one task after the other; finds the width that ends soonest, and places nothing.

A task that does not list the workers' width runs at its largest listed width below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapreplace

import numpy as np

from .batch import Batch, Floats, Integers
from .model import ROUNDING
from .timetable import Timetable, Turns


@dataclass(frozen=True)
class Workers:
    """So many workers of one width, with each task's width and time on them."""

    width: int
    count: int
    widths: Integers
    times_s: Floats

    @cached_property
    def bound_s(self) -> float:
        """What no distribution over these workers can be shorter than."""
        return max(float(self.times_s.max()), float(self.times_s.sum()) / self.count)

    @cached_property
    def longest_first(self) -> Timetable:
        """By Graham's LPT rule."""
        return self._timetable(*self._longest_first)

    @cached_property
    def ends_s(self) -> float:
        """When :attr:`longest_first` ends."""
        order, starts_s = self._longest_first
        return float((starts_s + self.times_s[order]).max())

    def give_out(self, order: Sequence[int]) -> Timetable:
        """Each task to the worker that is free first."""
        rows = np.array(order, dtype=np.int64)
        return self._timetable(rows, self._starts_s(rows))

    @cached_property
    def _longest_first(self) -> tuple[Integers, Floats]:
        order = np.argsort(-self.times_s, kind="stable")
        return order, self._starts_s(order)

    def _starts_s(self, order: Integers) -> Floats:
        """Of the tasks in that order; each starts when the one before it does, or later."""
        free_s = [0.0] * self.count
        return np.array([heapreplace(free_s, free_s[0] + time_s) for time_s in self.times_s[order].tolist()])

    def _timetable(self, order: Integers, started_s: Floats) -> Timetable:
        starts_s, worker_of = np.empty_like(started_s), np.empty_like(order)
        starts_s[order] = started_s
        ends_s = starts_s + self.times_s
        # Who starts next takes over from who ends next.
        by_end = np.argsort(np.append(np.zeros(self.count), ends_s[order]), kind="stable")
        workers = list(range(self.count))
        for before in by_end[: len(order)].tolist():
            workers.append(workers[before])
        worker_of[order] = workers[self.count :]
        turns = Turns(self.width, self.count, worker_of.tolist())
        return Timetable(self.widths.tolist(), starts_s.tolist(), ends_s.tolist(), (), float(ends_s.max()), turns)


def workers_of(batch: Batch, width: int) -> Workers:
    """As many of that width as there are tasks, CPUs, memory, disk and bandwidth for; every task has one as narrow."""
    widths, times_s = batch.widths, batch.times_s
    rows: Integers | slice = slice(None)
    if batch.alike:
        column = np.where(widths[0] <= width, widths[0], 0).argmax()
    else:
        fits = np.isfinite(times_s) & (widths <= width)
        rows, column = np.arange(len(widths)), np.where(fits, widths, 0).argmax(axis=1)
    widths, times_s = widths[rows, column], times_s[rows, column]
    count = min(len(batch), batch.capacity.cpus // width)
    for space in batch.spaces:
        if largest := float(space.at(widths).max()):
            count = min(count, int(space.whole // largest))
    if batch.moved_s.any():
        together = np.cumsum(np.sort(batch.rates(times_s))[::-1])
        count = min(count, int(np.searchsorted(together, 1 + ROUNDING, side="right")))
    return Workers(width, count, widths, times_s)


def narrowest_width(batch: Batch) -> int:
    """The narrowest workers that can run every task."""
    return int(batch.narrowest.max())


def promising(batch: Batch) -> list[Workers]:
    """Workers of every width that some task lists and all can have: the most promising, then the narrowest first."""
    listed = np.flatnonzero(np.bincount(batch.widths[np.isfinite(batch.times_s)]))
    workers = [workers_of(batch, width) for width in listed[listed >= narrowest_width(batch)].tolist()]
    return sorted(workers, key=lambda one: one.bound_s)


def best_of(several: Sequence[Workers]) -> Workers:
    """Those that end soonest under the LPT rule, the narrowest of equals."""
    best, best_s = several[0], math.inf
    for workers in several:
        # Where the bound is later even a perfect packing is no better.
        if workers.bound_s <= best_s and (workers.ends_s, workers.width) < (best_s, best.width):
            best, best_s = workers, workers.ends_s
    return best
