"""The shortest timetable found: tries deadlines between a bound and the best so far; the same answer every time.

A layout (timetable.py) that keeps a deadline proves that it can be kept; bisection finds the least that each way and
order of laying out keeps. Then squeaky-wheel optimisation (Joslin and Clements, JAIR 10, 1999): who was late against a
deadline a little shorter than the best goes forward in the order, and so on while the budget lasts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np

from .batch import Batch, Choices
from .bounds import bounds_of
from .timetable import Layout, Timetable, insert, pack, start
from .uniform import Workers, promising

_LayOut = Callable[[Layout, Sequence[int], float], Timetable]

# A plan this close to its lower bound is good enough; no estimate of a time is as good.
CLOSE = 1.001
_BISECTIONS = 6
_FIRST = 3  # ways that are tried before the first is bisected
# Layouts in all, by the square of the number of tasks, and never more: 1,000 tasks shall take no longer than 20 ms.
_BUDGET, _MOST = 6_000_000, 1_500
_COST: dict[_LayOut, int] = {pack: 1, start: 2, insert: 2}  # of a layout, measured
# Never fewer: the first ways, with one bisection; of very many tasks, where any order will do, two ways alone.
_FEWEST, _FEWEST_OF_MANY, _MANY = _BISECTIONS + 2, 2, 10_000
_INSERT_UP_TO = 128  # tasks; beyond, a quadratic layout costs more than it gains
_PATIENCE = 10  # layouts, after which the best order is gone back to
_SHORTER = 0.997  # the next deadline to be tried, as a part of the best makespan


@dataclass
class _Way:
    """One way to lay out tasks, and one order of them."""

    lay_out: _LayOut
    layout: Layout
    order: list[int]
    best_order: list[int] = field(default_factory=list)
    makespan_s: float = math.inf
    tries: int = 0
    """Since the makespan was last as short as that."""


def shortest(batch: Batch, uniform: Sequence[Workers] | None = None) -> Timetable:
    """The best timetable found for the batch within its capacity; ``uniform``: its workers, where they are there."""
    if not len(batch):
        return Timetable((), (), (), (), 0.0)
    bounds = bounds_of(batch)
    search = _Search(batch, max(bound_s for bound_s, _ in bounds))
    if math.isfinite(batch.capacity.bandwidth_bytes_per_s):
        uniform = []  # they do not count it
    elif uniform is None:
        uniform = promising(batch)
    search.give_out(workers for workers in uniform if workers.bound_s <= search.close_s)  # none can do much better
    search.run(_ways(batch, bounds))
    search.give_out(workers for workers in uniform if workers.bound_s > search.close_s)
    search.first_come(uniform)
    search.guarantee(_Way(start, Layout(batch, bounds[0][1]), list(range(len(batch)))))
    return search.best


def binding(batch: Batch) -> bool:
    """Whether memory or bandwidth may run short before CPUs do."""
    most = min(len(batch), batch.capacity.cpus)
    # Nobody is narrower than 1, so that no more than this many run at the same time.
    memory = float(np.sort(batch.memory_bytes)[::-1][:most].sum())
    if memory > batch.capacity.memory_bytes:
        return True
    if math.isinf(batch.capacity.bandwidth_bytes_per_s) or not batch.traffic_bytes.any():
        return False
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rates = np.nan_to_num(batch.traffic_bytes / batch.shortest_s)
    rates = np.minimum(rates, batch.capacity.bandwidth_bytes_per_s)
    return float(np.sort(rates)[::-1][:most].sum()) > batch.capacity.bandwidth_bytes_per_s


def _ways(batch: Batch, bounds: list[tuple[float, Choices]]) -> Iterator[_Way]:
    """With the widest, the largest or the longest first, as the bound chooses; the most promising come first."""
    tight = binding(batch)
    weighed = sorted(bounds, key=lambda bound: -bound[0])[:3] if tight else bounds[:1]
    for bound_s, choices in weighed:
        layout = Layout(batch, choices)
        _, widths, times_s = (np.array(column) for column in layout.chosen(bound_s))
        wide, large, long = (
            np.lexsort(keys).tolist() for keys in ((-times_s, -widths), (-times_s * widths,), (-times_s,))
        )
        ways = [(pack, wide), (start, large), (pack, large), (start, long), (pack, long), (start, wide)]
        if tight:
            ways = [(start, large), (start, long), (start, wide)]
        if len(batch) <= _INSERT_UP_TO:
            ways += [(insert, order) for order in (wide, large, long)]
        for lay_out, order in ways:
            yield _Way(lay_out, layout, order)


class _Search:
    """The best so far, and what is left of the budget."""

    def __init__(self, batch: Batch, bound_s: float) -> None:
        self._batch = batch
        self._bound_s = bound_s
        self.close_s = bound_s * CLOSE
        self.best = Timetable((), (), (), (), math.inf)
        fewest = _FEWEST if len(batch) <= _MANY else _FEWEST_OF_MANY
        self._left = min(_MOST, max(fewest, _BUDGET // len(batch) ** 2))

    def give_out(self, uniform: Iterable[Workers]) -> None:
        """Workers of one width, longest first: what is found must not be worse than any of these."""
        for workers in uniform:
            if workers.bound_s < self.best.makespan_s:
                self._keep(workers.longest_first)

    def first_come(self, uniform: Iterable[Workers]) -> None:
        """The same, first come, first served."""
        for workers in uniform:
            if workers.bound_s < self.best.makespan_s and self.best.makespan_s > self.close_s:
                self._keep(workers.give_out(range(len(self._batch))))

    def run(self, ways: Iterator[_Way]) -> None:
        """Each way at the shortest deadline there can be, then by bisection; then the best quarter by squeaking."""
        tried = []
        for way in ways:
            if self._done:
                break
            self._try(way, self.close_s)
            tried.append(way)
            if len(tried) == _FIRST:
                for one in tried:
                    self._bisect(one)
            elif len(tried) > _FIRST:
                self._bisect(way)
        tried.sort(key=lambda way: way.makespan_s)
        self._squeak(tried[: -(-len(tried) // 4)])

    def guarantee(self, way: _Way) -> None:
        """List scheduling with the widths of the bound ends within twice the bound (Garey and Graham, 1975)."""
        if self.best.makespan_s > 2 * self._bound_s:
            self._try(way, self._bound_s)

    @property
    def _done(self) -> bool:
        return self.best.makespan_s <= self.close_s or (self._left <= 0 and math.isfinite(self.best.makespan_s))

    def _keep(self, found: Timetable) -> None:
        if found.makespan_s < self.best.makespan_s:
            self.best = found

    def _try(self, way: _Way, deadline_s: float) -> Timetable:
        self._left -= _COST[way.lay_out]
        found = way.lay_out(way.layout, way.order, deadline_s)
        way.tries += 1
        if found.makespan_s <= way.makespan_s:
            way.makespan_s, way.best_order, way.tries = found.makespan_s, way.order, 0
        self._keep(found)
        return found

    def _bisect(self, way: _Way) -> None:
        low_s, high_s = self.close_s, self.best.makespan_s
        for _ in range(_BISECTIONS):
            if self._done or high_s <= low_s * CLOSE:
                break
            # Half way between what they exceed the bound by, as powers: most of the shortest are near it.
            deadline_s = self._bound_s + math.sqrt((low_s - self._bound_s) * (high_s - self._bound_s))
            found = self._try(way, deadline_s)
            if found.late:
                low_s = deadline_s
            else:
                high_s = min(deadline_s, found.makespan_s)

    def _squeak(self, ways: list[_Way]) -> None:
        rng = random.Random(0)
        for way in cycle(ways):
            if self._done:
                break
            deadline_s = max(self._bound_s, self.best.makespan_s * _SHORTER)
            order, late = way.order, self._try(way, deadline_s).late
            if way.tries >= _PATIENCE:
                order, way.tries = way.best_order, 0
            way.order = _promoted(order, late, rng)


def _promoted(order: Sequence[int], late: Sequence[int], rng: random.Random) -> list[int]:
    """Who was late moves forward; and now and then two change places, or all would go round in circles."""
    promoted = list(order)
    for task in late:
        at = promoted.index(task)
        promoted.insert(max(0, at - 1 - rng.randrange(max(1, len(order) // 3))), promoted.pop(at))
    if rng.random() < 0.2:
        one, other = rng.randrange(len(order)), rng.randrange(len(order))
        promoted[one], promoted[other] = promoted[other], promoted[one]
    return promoted
