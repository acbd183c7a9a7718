"""Simulated annealing of few tasks' order and widths (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983).

At random a task's width changes, or a task's place in the order, or one of each; all go where they fit first. A change
stays where in sum no more ends after the goal than before, and little more while it is warm.
"""

from __future__ import annotations

import math
import random

from .batch import Batch
from .timetable import Demand, Layout, Timetable, place

_WIDTH, _BOTH = 0.4, 0.3  # how often a width changes; of these, how often a place changes too


class Annealing:
    """An order and widths on their way from those of a timetable."""

    def __init__(self, batch: Batch, layout: Layout, since: Timetable, rng: random.Random) -> None:
        self._layout = layout
        self._rng = rng
        self._choices = [_worth_having(batch, layout, task) for task in range(len(batch))]
        self._order = sorted(range(len(batch)), key=since.starts_s.__getitem__)
        self._demands = [_no_wider(row, width) for row, width in zip(self._choices, since.widths, strict=True)]
        self._now = since
        self._goal_s = self._late_s = math.inf

    def step(self, goal_s: float, warmth_s: float) -> Timetable:
        """The timetable after one change, or as it was where that was for the worse by more than ``warmth_s``."""
        if goal_s != self._goal_s:
            self._goal_s = goal_s
            self._late_s = sum(end_s - goal_s for end_s in self._now.ends_s if end_s > goal_s)
        order, demands = self._changed()
        placed = place(self._layout, order, demands, goal_s, self._late_s + warmth_s * self._rng.random())
        if placed is not None:
            self._order, self._demands = order, demands
            self._now, self._late_s = placed
        return self._now

    def _changed(self) -> tuple[list[int], list[Demand]]:
        rng, order, demands = self._rng, self._order, self._demands
        task = rng.randrange(len(order))
        choices = self._choices[task]
        wide = len(choices) > 1 and rng.random() < _WIDTH
        if wide:
            at = abs(choices.index(demands[task]) + rng.choice((-1, 1)))  # the narrowest can only become wider
            demands = demands.copy()
            demands[task] = choices[at] if at < len(choices) else choices[-2]
        if not wide or rng.random() < _BOTH:
            order = order.copy()
            moved = order.pop(rng.randrange(len(order)))
            order.insert(rng.randrange(len(order) + 1), moved)
        return order, demands


def _worth_having(batch: Batch, layout: Layout, task: int) -> list[Demand]:
    """What the task takes up at each width, the narrowest first; not where a narrower one is as fast and as small."""
    found: list[Demand] = []
    listed = zip(batch.widths[task].tolist(), batch.times_s[task].tolist(), strict=True)
    for width, time_s in sorted(one for one in listed if one[1] < math.inf):
        if all(time_s < other.time_s or _needs_more(batch, task, other.width, width) for other in found):
            found.append(layout.demand(task, width, time_s))
    return found


def _needs_more(batch: Batch, task: int, width: int, than: int) -> bool:
    """Whether the task needs more of something at that width than at another."""
    return any(space.of(task, width) > space.of(task, than) for space in batch.spaces)


def _no_wider(choices: list[Demand], width: int) -> Demand:
    """The widest that is no wider: where one is not worth having, a narrower one is."""
    return next(demand for demand in reversed(choices) if demand.width <= width)
