"""How the rest of a batch is to go on beside what runs: a width for each task, and who goes first; starts nothing.

The rest is laid out to the end as it would be given out, whenever something ends to the first in order that fits: with
the cheapest widths that meet one of several deadlines, the longest or the largest first. The one that ends soonest is
taken; of very many tasks, where nothing is to be gained by it, the widths of the bound and the longest first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from .batch import Batch, Choices, Floats, Integers
from .bounds import bounds_of, most_promising
from .model import Running
from .timetable import Layout, Timetable, in_turn

# Deadlines, as multiples of the bound, the latest first: the widths become wider.
_PACES = (math.inf, 2.0, 1.6, 1.35, 1.2, 1.1, 1.05, 1.0)
_TASKS = 8_000  # laid out in all, which takes some 20 ms; fewer than two layouts are not worth it
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Course:
    """Widths of all tasks, their times, and their order."""

    widths: Integers
    times_s: Floats
    order: Integers
    layout: Layout

    def timetable(self, beside: Sequence[Running] = ()) -> Timetable:
        """When each would run."""
        return in_turn(self.layout, self.order.tolist(), self.widths.tolist(), self.times_s.tolist(), beside)

    def soonest_s(self, beside: Sequence[Running] = ()) -> float:
        """No order of them ends sooner."""
        work_s = float(self.widths @ self.times_s) + sum(one.left_s * one.width for one in beside)
        return max(work_s / self.layout.cpus, float(self.times_s.max()))


def course_of(batch: Batch, beside: Sequence[Running] = (), worth: float = 1.0) -> Course:
    """The course that ends soonest. ``worth``: by which factor sooner than all at their cheapest widths."""
    alone = batch.narrowest == batch.capacity.cpus
    if not alone.any() or alone.all():
        return _soonest(batch, beside, worth)
    # Who takes the whole node runs when all others have ended: no schedule can do better.
    rest, last = np.flatnonzero(~alone), np.flatnonzero(alone)
    first = _soonest(batch.retimed(rest, batch.times_s[rest], batch.capacity), beside, worth)
    widths, times_s = np.full(len(batch), batch.capacity.cpus), batch.shortest_s.copy()
    widths[rest], times_s[rest] = first.widths, first.times_s
    order = np.concatenate((rest[first.order], last[np.argsort(-times_s[last], kind="stable")]))
    return Course(widths, times_s, order, Layout(batch, batch.choices()))


def in_order(batch: Batch, ranks: Integers) -> Course:
    """The course of a plan that is followed: each at the widest width that it may have now, ordered by ``ranks``."""
    columns = np.where(np.isfinite(batch.times_s), batch.widths, 0).argmax(axis=1)
    widths, times_s = (table[np.arange(len(batch)), columns] for table in (batch.widths, batch.times_s))
    return Course(widths, times_s, np.argsort(ranks), Layout(batch, batch.choices()))


def _soonest(batch: Batch, beside: Sequence[Running], worth: float) -> Course:
    bounds = bounds_of(batch, beside)
    bound_s = max(bound_s for bound_s, _ in bounds)
    weighed = [choices for _, choices in most_promising(batch, bounds)]
    budget = _TASKS // len(batch)
    if budget < 2:
        return next(_courses(batch, weighed[0], bound_s))
    best: Course | None = None
    least_s = math.inf  # who ends later is of no interest
    seen: set[bytes] = set()
    for pace in _PACES:
        if least_s <= bounds[0][0]:  # nothing that so many CPUs run can end sooner
            break
        for course in chain.from_iterable(_courses(batch, choices, bound_s * pace) for choices in weighed):
            known = course.widths.tobytes() + course.order.tobytes()
            if budget and known not in seen and course.soonest_s(beside) < least_s:
                seen.add(known)
                budget -= 1
                ends_s = course.timetable(beside).makespan_s
                if ends_s < least_s * (1 - _ROUNDING):
                    best, least_s = course, ends_s
        if math.isinf(pace):
            least_s /= worth
    assert best is not None  # the first at least was laid out
    return best


def _courses(batch: Batch, choices: Choices, deadline_s: float) -> Iterator[Course]:
    """The longest first, of equals the widest; and where that is another order the largest."""
    widths, times_s = choices.at(deadline_s)
    layout = Layout(batch, choices)
    long = np.lexsort((-widths, -times_s))
    yield Course(widths, times_s, long, layout)
    large = np.lexsort((-widths, -times_s * widths))
    if (large != long).any():
        yield Course(widths, times_s, large, layout)
