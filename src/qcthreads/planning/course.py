"""How the rest of a batch is to go on beside what runs: a width for each task, and who goes first; starts nothing.

The rest is laid out to the end as it would be given out: with the cheapest widths that meet one of several deadlines,
the longest or the largest first, whenever something ends to the first in order that fits; and as the search of plans
does it, in that order. What ends soonest is taken; of very many tasks, where nothing is to be gained by it, the widths
of the bound and the longest first.
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
from .search import shortest
from .timetable import Layout, Timetable, in_sequence, in_turn

# Deadlines, as multiples of the bound, the latest first: the widths become wider. Those below it are for times that
# scatter: the longest have ended early enough for none of them to be what all wait for.
_PACES = (math.inf, 2.0, 1.6, 1.35, 1.2, 1.1, 1.05, 1.0, 0.8, 0.65, 0.5)
# Laid out with widths for common deadlines, in some 20 ms; fewer than two layouts are not worth it. A plan that is
# searched for, and what was chosen before, come in addition.
_TASKS = 8_000
MOST_LAID_OUT = _TASKS // 2
"""Tasks; of more no course is laid out."""
_LAID_OUT_S = 2.5e-6  # by the search of plans for each task of a layout, measured
# The first plan is searched for as long as this part of what the rest takes, since all CPUs wait for it; a later one as
# this part of the CPU time until the next task starts.
_FIRST, _LATER = 0.01, 0.002
_SCATTERED = 0.1  # where times scatter by more, what a plan gains is lost again
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Course:
    """Widths of all tasks, their times, and their order."""

    widths: Integers
    times_s: Floats
    order: Integers
    layout: Layout
    patient: bool = False
    """Nothing starts before what is ahead of it in order, unless it has ended by when that can start."""

    def timetable(self) -> Timetable:
        """When each would run."""
        lay_out = in_sequence if self.patient else in_turn
        return lay_out(self.layout, self.order.tolist(), self.widths.tolist(), self.times_s.tolist())

    def ends_s(self, scatter: float) -> float:
        """When all has ended, should any one task take longer than estimated by this part of its time."""
        found = self.timetable()
        late_s = np.array(found.ends_s) + scatter * self.times_s if scatter else found.ends_s
        return max(found.makespan_s, float(max(late_s)))

    def soonest_s(self, scatter: float) -> float:
        """No order of them ends sooner by that measure."""
        work_s = float(self.widths @ self.times_s) + sum(one.left_s * one.width for one in self.layout.beside)
        return max(work_s / self.layout.cpus, float(self.times_s.max()) * (1 + scatter))


@dataclass(frozen=True, slots=True)
class Kept:
    """What was chosen before: the order, the column of each width, and whether it was patient."""

    order: Integers
    columns: Integers
    patient: bool


def course_of(
    batch: Batch,
    beside: Sequence[Running] = (),
    *,
    worth: float = 1.0,
    scatter: float = 0.0,
    in_seconds: bool = False,
    kept: Kept | None = None,
) -> Course:
    """The course that ends soonest.

    Parameters
    ----------
    worth
        By which factor sooner than all at their cheapest widths.
    scatter
        How far times are from their estimates, as a part of them.
    in_seconds
        Whether estimates are: else nothing tells how long a plan may be searched for.
    kept
        What was chosen before, which is kept where nothing ends sooner.
    """
    found = _alone_last(batch, beside, worth, scatter, in_seconds)
    if kept is not None:
        chosen = np.arange(len(batch)), kept.columns
        widths, times_s = batch.widths[chosen], batch.times_s[chosen]
        layout = Layout(batch, batch.choices(), beside)
        ways = (kept.patient, not kept.patient) if _may_follow_a_plan(scatter, in_seconds) else (False,)
        before = [Course(widths, times_s, kept.order, layout, patient) for patient in ways]
        found = min(*before, found, key=lambda course: course.ends_s(scatter))
    return found


def in_order(batch: Batch, ranks: Integers, beside: Sequence[Running] = ()) -> Course:
    """The course of a plan that is followed: each at the widest width that it may have now, ordered by ``ranks``."""
    columns = np.where(np.isfinite(batch.times_s), batch.widths, 0).argmax(axis=1)
    widths, times_s = (table[np.arange(len(batch)), columns] for table in (batch.widths, batch.times_s))
    return Course(widths, times_s, np.argsort(ranks), Layout(batch, batch.choices(), beside))


def _alone_last(batch: Batch, beside: Sequence[Running], worth: float, scatter: float, in_seconds: bool) -> Course:
    """Who takes the whole node runs when all others have ended: no schedule can do better."""
    alone = batch.narrowest == batch.capacity.cpus
    if not alone.any() or alone.all():
        return _soonest(batch, beside, worth, scatter, in_seconds)
    rest, last = np.flatnonzero(~alone), np.flatnonzero(alone)
    first = _soonest(batch.retimed(rest, batch.times_s[rest], batch.capacity), beside, worth, scatter, in_seconds)
    widths, times_s = np.full(len(batch), batch.capacity.cpus), batch.shortest_s.copy()
    widths[rest], times_s[rest] = first.widths, first.times_s
    order = np.concatenate((rest[first.order], last[np.argsort(-times_s[last], kind="stable")]))
    return Course(widths, times_s, order, Layout(batch, batch.choices(), beside), first.patient)


def _soonest(batch: Batch, beside: Sequence[Running], worth: float, scatter: float, in_seconds: bool) -> Course:
    bounds = bounds_of(batch, beside)
    bound_s = max(bound_s for bound_s, _ in bounds)
    weighed = [choices for _, choices in most_promising(batch, bounds)]
    if len(batch) > MOST_LAID_OUT:
        return next(_courses(batch, weighed[0], bound_s, beside))
    tried = _Tried(batch, scatter)
    for pace in _PACES:
        if tried.least_s <= bounds[0][0]:  # nothing that so many CPUs run can end sooner
            break
        deadline_s = bound_s * pace
        for course in chain.from_iterable(_courses(batch, choices, deadline_s, beside) for choices in weighed):
            if tried.budget > 0:
                tried.lay_out(course)
        if math.isinf(pace):
            tried.least_s /= worth
    if _may_follow_a_plan(scatter, in_seconds) and tried.least_s > bounds[0][0]:
        layouts = _FIRST * tried.least_s / (_LAID_OUT_S * len(batch))
        if beside:
            layouts = min(tried.budget, layouts * _LATER / _FIRST * batch.capacity.cpus / len(batch))
        if layouts >= 1:
            tried.lay_out(_planned(batch, beside, layouts))
    assert tried.best is not None  # the first at least was laid out
    return tried.best


def _may_follow_a_plan(scatter: float, in_seconds: bool) -> bool:
    return in_seconds and scatter <= _SCATTERED


class _Tried:
    """The course that ends soonest of those that were laid out."""

    def __init__(self, batch: Batch, scatter: float) -> None:
        self.best: Course | None = None
        self.least_s = math.inf
        """Who ends later is of no interest."""
        self.budget = _TASKS // len(batch)
        """How many more are laid out."""
        self._scatter = scatter
        self._seen: set[bytes] = set()

    def lay_out(self, course: Course) -> None:
        """Unless it is known, or cannot end sooner."""
        known = course.widths.tobytes() + course.order.tobytes() + bytes([course.patient])
        if known in self._seen or course.soonest_s(self._scatter) >= self.least_s:
            return
        self._seen.add(known)
        self.budget -= 1
        ends_s = course.ends_s(self._scatter)
        if ends_s < self.least_s * (1 - _ROUNDING):
            self.best, self.least_s = course, ends_s


def _courses(batch: Batch, choices: Choices, deadline_s: float, beside: Sequence[Running]) -> Iterator[Course]:
    """The longest first, of equals the widest; and where that is another order the largest."""
    widths, times_s = choices.at(deadline_s)
    layout = Layout(batch, choices, beside)
    long = np.lexsort((-widths, -times_s))
    yield Course(widths, times_s, long, layout)
    large = np.lexsort((-widths, -times_s * widths))
    if (large != long).any():
        yield Course(widths, times_s, large, layout)


def _planned(batch: Batch, beside: Sequence[Running], layouts: float) -> Course:
    """The plan that is found with so many layouts."""
    found = shortest(batch, beside=beside, most_layouts=layouts)
    times_s = batch.times_s[np.arange(len(batch)), batch.columns(found.widths)]
    order = np.argsort(found.starts_s, kind="stable")
    return Course(np.array(found.widths), times_s, order, Layout(batch, batch.choices(), beside), patient=True)
