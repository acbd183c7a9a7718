"""The shortest timetable found: tries deadlines between a bound and the best so far; the same answer every time.

A layout (timetable.py) that keeps a deadline proves that it can be kept; bisection finds the least that each way and
order of laying out keeps. Then squeaky-wheel optimisation (Joslin and Clements, JAIR 10, 1999): who was late against a
deadline a little shorter than the best goes forward in the order, or becomes wider, and so on while the budget lasts.
Of few tasks that more than CPUs bind half of it is for annealing (annealing.py): order and width of any of them
may be what keeps two from running side by side.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, cycle, takewhile
from operator import attrgetter, itemgetter

import numpy as np
import numpy.typing as npt

from .annealing import Annealing
from .batch import Batch, Choices, Floats
from .bounds import bound_at, bounds_of, most_promising
from .model import Running
from .series import Series
from .sharing import MANY, Keys, sharing
from .shelves import FACTORS, on_shelves
from .timetable import Layout, Timetable, in_turn, insert, pack, start
from .uniform import Workers, promising

_LayOut = Callable[[Layout, Sequence[int], float, Mapping[int, int]], Timetable]

# A plan this close to its lower bound is good enough; no estimate of a time is as good.
CLOSE = 1.001
_BISECTIONS = 6
_FIRST = 3  # ways that are tried before the first is bisected
# Layouts in all, by the square of the number of tasks, and never more: 1,000 tasks shall take no longer than 20 ms,
# but where they are few to a CPU.
_BUDGET, _MOST = 6_000_000, 1_500
_COST: dict[_LayOut, int] = {pack: 1, start: 2, insert: 2}  # of a layout, measured
# Never fewer: the first ways, with one bisection; without one where bandwidth is short, when all are lists; of very
# many tasks, where any order will do, what two layouts cost that are no lists.
_FEWEST, _FEWEST_LISTS, _FEWEST_OF_MANY = _BISECTIONS + 2, 2 * _FIRST, 2
# Times the bound: no list of very many tasks is laid out to end sooner; nor, where bandwidth is short and most ways are
# lists already, of more tasks than this, of which no way is laid out whose own bound is no sooner than the best.
_GOOD_OF_MANY, _LISTED = 1.01, 512
_IN_SERIES = 40_000  # tasks; of fewer the layouts of single tasks take no longer
# Of few tasks to a CPU, where it matters which stand on which, so many more, and so many tasks in all.
_FEW_PER_CPU, _MOST_OF_FEW, _TASKS_OF_FEW = 8, 100, 100_000
_INSERT_UP_TO = 128  # tasks; beyond, a quadratic layout costs more than it gains
_PARTS = (0.6, 0.5, 0.4, 0.65, 0.55, 0.45, 0.35)  # of those few, who come later
_FILLED = (1.01, 1.015, 1.02)  # up to which multiple of the bound
_PATIENCE = 10  # layouts, after which the best order is gone back to
# How often one becomes wider, and of many tasks; two change places; and one is no longer wider.
_WIDER, _WIDER_OF_MANY, _SWAPPED, _BACK = 0.2, 4.0, 0.2, 0.2
# How often annealing starts again; the cost of its steps, measured; and what is lost at most, of the makespan, by one.
_ANNEALED, _STEP, _WARM = 3, 0.6, 0.03
_SHORTER = 0.997  # the next deadline to be tried, as a part of the best makespan


@dataclass
class _Way:
    """One way to lay out tasks, and one order of them."""

    lay_out: _LayOut
    layout: Layout
    order: list[int]
    bound_s: float = 0.0
    """Where its widths are the same at any deadline: no timetable with them is shorter."""
    wider: dict[int, int] = field(default_factory=dict)
    best: tuple[list[int], dict[int, int]] = ([], {})
    """Order and wider of the shortest."""
    makespan_s: float = math.inf
    tries: int = 0
    """Since the makespan was last as short as that."""


def shortest(
    batch: Batch,
    uniform: Sequence[Workers] | None = None,
    *,
    one_by_one: bool = False,
    beside: Sequence[Running] = (),
    most_layouts: float = math.inf,
) -> Timetable:
    """The best timetable found for the batch within its capacity; ``uniform``: its workers, where they are there.

    ``one_by_one``: very many tasks are not laid out in series either. ``beside``: what runs already, beside which no
    workers of one width are laid out.
    """
    if not len(batch):
        return Timetable((), (), (), (), 0.0)
    bounds = bounds_of(batch, beside)
    bound_s = max(*(bound_s for bound_s, _ in bounds), *(one.left_s for one in beside), 0.0)
    search = _Search(batch, bound_s, beside, most_layouts)
    if uniform is None:
        uniform = () if beside else promising(batch)
    search.give_out(workers for workers in uniform if workers.bound_s <= search.close_s)  # none can do much better
    alone = batch.narrowest == batch.capacity.cpus
    if len(batch) > _IN_SERIES and not one_by_one and not _bandwidth_binds(batch):
        if not search.done:
            search.keep(_in_series(batch, bounds))
    elif alone.any() and not alone.all():
        search.keep(_alone_last(batch, alone, one_by_one, beside, most_layouts))
    else:
        search.run(_ways(batch, bounds, uniform, beside))
    search.give_out(workers for workers in uniform if workers.bound_s > search.close_s)
    search.first_come(uniform)
    if binding(batch) and not one_by_one:
        search.in_turn(uniform)
    search.guarantee(Layout(batch, bounds[0][1], beside))
    return search.best


def _in_series(batch: Batch, bounds: list[tuple[float, Choices]]) -> Timetable:
    """Very many tasks as a few thousand series, at the widths that promise most."""
    bound_s = max(bound_s for bound_s, _ in bounds)
    series = Series(batch, bound_s, most_promising(batch, bounds)[0][1])
    found = shortest(series.batch, one_by_one=True)
    if binding(batch) and found.makespan_s > bound_s * CLOSE:  # in the order of tasks that are laid out one by one
        layout, order = Layout(series.batch, series.batch.choices()), range(len(series.batch))
        in_order = in_turn(layout, order, series.widths, series.times_s)
        found = min(found, in_order, key=attrgetter("makespan_s"))
    return series.timetable(found)


def _alone_last(
    batch: Batch,
    alone: npt.NDArray[np.bool_],
    one_by_one: bool,
    beside: Sequence[Running],
    most_layouts: float,
) -> Timetable:
    """Who takes the whole node runs one after the other when all others have ended: no schedule can do better."""
    rest, last = np.flatnonzero(~alone), np.flatnonzero(alone)
    others = batch.retimed(rest, batch.times_s[rest], batch.capacity)
    first = shortest(others, one_by_one=one_by_one, beside=beside, most_layouts=most_layouts)
    widths, starts_s, ends_s = np.full(len(batch), batch.capacity.cpus), np.zeros(len(batch)), np.zeros(len(batch))
    widths[rest], starts_s[rest], ends_s[rest] = first.widths, first.starts_s, first.ends_s
    moments_s = np.cumsum(np.append(first.makespan_s, batch.shortest_s[last]))
    starts_s[last], ends_s[last] = moments_s[:-1], moments_s[1:]
    return Timetable(widths.tolist(), starts_s.tolist(), ends_s.tolist(), (), float(ends_s.max()))


def binding(batch: Batch, beside: Sequence[Running] = ()) -> str:
    """What may run short before CPUs do: memory, disk, or memory bandwidth; empty where nothing does."""
    most = batch.capacity.cpus
    # Nobody is narrower than 1, so that no more than this many run at the same time; what runs has its part for each.
    for space in batch.spaces:
        needs = [space.most, *(np.full(one.width, space.taken(one) / one.width) for one in beside)]
        if float(np.sort(np.concatenate(needs))[::-1][:most].sum()) > space.whole:
            return space.name
    return "memory bandwidth" if _bandwidth_binds(batch) else ""


def _bandwidth_binds(batch: Batch) -> bool:
    """Whether bandwidth may run short."""
    if math.isinf(batch.capacity.bandwidth_bytes_per_s) or not batch.traffic_bytes.any():
        return False
    rates = np.sort(batch.rates(batch.shortest_s))[::-1]
    return float(rates[: batch.capacity.cpus].sum()) > 1


def _ways(
    batch: Batch, bounds: list[tuple[float, Choices]], uniform: Sequence[Workers], beside: Sequence[Running]
) -> Iterator[_Way]:
    """With the widest, the largest or the longest first, as the bound chooses; the most promising come first."""
    if _bandwidth_binds(batch):
        yield from _ways_to_share(batch, sharing(batch, bounds, uniform), beside)
    tight = bool(binding(batch, beside))
    for bound_s, choices in most_promising(batch, bounds) if tight else bounds[:1]:
        layout = Layout(batch, choices, beside)
        widths, times_s = choices.at(bound_s)
        # Of equals who can become shortest goes last, where the ends are.
        gain_last = -batch.shortest_s
        wide, large, long = (gain_last, -times_s, -widths), (gain_last, -times_s * widths), (gain_last, -times_s)
        ways = [(pack, wide), (start, large), (pack, large), (start, long), (pack, long), (start, wide)]
        if tight:
            ways = [(start, large), (start, long), (start, wide)]
        if len(batch) <= _INSERT_UP_TO:
            ways += [(insert, order) for order in (wide, large, long)]
        for lay_out, keys in ways:  # of very many tasks few are asked for
            yield _Way(lay_out, layout, np.lexsort(keys).tolist())
        if len(batch) > _INSERT_UP_TO and not tight:
            longest = np.lexsort(wide).tolist()
            if (widths[times_s * _FEW_PER_CPU > bound_s] == 1).all():
                for order in _filled(longest, times_s, bound_s):
                    yield _Way(pack, layout, order)
            for order in _begun_within(longest, times_s, bound_s):
                yield _Way(pack, layout, order)


def _ways_to_share(
    batch: Batch, several: Iterable[tuple[float, Choices, Keys]], beside: Sequence[Running]
) -> Iterator[_Way]:
    """As they share the bandwidth; of few into holes, too."""
    ways: list[_Way] = []
    for bound_s, choices, keys in several:
        again = bool(ways) and ways[-1].layout.choices is choices
        layout = ways[-1].layout if again else Layout(batch, choices, beside)
        ways.append(_Way(start, layout, np.lexsort(keys).tolist(), bound_s))
        yield ways[-1]
    if len(batch) <= _INSERT_UP_TO:
        yield from (_Way(insert, way.layout, way.order, way.bound_s) for way in ways)


def _begun_within(order: Sequence[int], times_s: Floats, bound_s: float) -> Iterator[list[int]]:
    """Not with the first of those that few stand on one CPU of, who come later and so become wider."""
    few = [task for task in order if times_s[task] * _FEW_PER_CPU > bound_s]
    many = [task for task in order if times_s[task] * _FEW_PER_CPU <= bound_s]
    for first in dict.fromkeys(int(part * len(few)) for part in _PARTS):
        yield few[first:] + few[:first] + many


def _filled(order: Sequence[int], times_s: Floats, bound_s: float) -> Iterator[list[int]]:
    """One CPU after the other filled up with those of that few stand on one CPU, which all are one thread wide."""
    few = times_s * _FEW_PER_CPU > bound_s
    many = [task for task in order if not few[task]]
    longest_last = sorted((float(times_s[task]), task) for task in order if few[task])
    for part in _FILLED:
        yield _filling(longest_last.copy(), bound_s * part) + many


def _filling(left: list[tuple[float, int]], room_s: float) -> list[int]:
    """The longest, and beside it as many as fit, each as long as those still to come leave room for; then the next.

    ``left``: times and tasks, the longest last.
    """
    order: list[int] = []
    free_s = 0.0
    while left:
        fit_s = [0.0, *takewhile(free_s.__ge__, accumulate(time_s for time_s, _ in left))]
        if len(fit_s) == 1:
            free_s, at = room_s, -1
        else:
            at = bisect_right(left, free_s - fit_s[-2], key=itemgetter(0)) - 1
        time_s, task = left.pop(at)
        free_s -= time_s
        order.append(task)
    return order


class _Search:
    """The best so far, and what is left of the budget."""

    def __init__(
        self, batch: Batch, bound_s: float, beside: Sequence[Running] = (), most_layouts: float = math.inf
    ) -> None:
        self._batch = batch
        self._beside = beside
        self._bound_s = bound_s
        self.close_s = bound_s * CLOSE
        self.best = Timetable((), (), (), (), math.inf)
        fewest = _FEWEST_LISTS if _bandwidth_binds(batch) else _FEWEST
        if len(batch) > MANY:
            fewest = _FEWEST_OF_MANY
        if len(batch) <= _FEW_PER_CPU * batch.capacity.cpus:
            fewest = max(fewest, min(_MOST_OF_FEW, _TASKS_OF_FEW // len(batch)))
        self._left: float = min(_MOST, max(fewest, _BUDGET // len(batch) ** 2), most_layouts)

    def give_out(self, uniform: Iterable[Workers]) -> None:
        """Workers of one width, longest first: what is found must not be worse than any of these."""
        for workers in uniform:
            if workers.bound_s < self.best.makespan_s:
                self.keep(workers.longest_first)

    def first_come(self, uniform: Iterable[Workers]) -> None:
        """The same, first come, first served."""
        for workers in uniform:
            if workers.bound_s < self.best.makespan_s and self.best.makespan_s > self.close_s:
                self.keep(workers.give_out(range(len(self._batch))))

    def in_turn(self, uniform: Iterable[Workers]) -> None:
        """The same as a list, the longest first: each starts as soon as there is room for it."""
        layout = Layout(self._batch, self._batch.choices())
        few = _LISTED if _bandwidth_binds(self._batch) else MANY
        good_s = self.close_s if len(self._batch) <= few else self._bound_s * _GOOD_OF_MANY
        for workers in uniform:
            widths, times_s = workers.widths, workers.times_s
            if bound_at(self._batch, widths, times_s) < self.best.makespan_s and self.best.makespan_s > good_s:
                order = np.argsort(-times_s, kind="stable").tolist()
                self.keep(in_turn(layout, order, widths.tolist(), times_s.tolist()))

    def run(self, ways: Iterator[_Way]) -> None:
        """The first ways at the shortest deadline there can be, then by bisection; others where they end sooner.

        Then the best quarter by squeaking, and of few the shortest by annealing.
        """
        tried = []
        while not self.done and (way := next(ways, None)):
            if way.bound_s >= self.best.makespan_s and len(self._batch) > _LISTED:
                continue  # of few there is time to make it shorter by squeaking
            tried.append(way)
            if len(tried) <= _FIRST:
                self._try(way, self.close_s)
                if len(tried) == _FIRST:
                    for one in tried:
                        self._bisect(one)
            elif not self._try(way, self._shorter_s).late:
                self._bisect(way)
        tried.sort(key=lambda way: way.makespan_s)
        anneal = len(self._batch) <= _INSERT_UP_TO and binding(self._batch, self._beside)
        self._squeak(tried[: -(-len(tried) // 4)], self._left / 2 if anneal else 0)
        if anneal:
            self._anneal()

    def guarantee(self, layout: Layout) -> None:
        """List scheduling with the widths of the bound ends within twice the bound (Garey and Graham, 1975).

        Of two shelves each factor: below the shortest deadline that they keep there is one that nothing keeps.
        """
        if self.best.makespan_s > 2 * self._bound_s:
            self._try(_Way(start, layout, list(range(len(layout)))), self._bound_s)
        if self.best.makespan_s <= FACTORS[0] * self.close_s or self._beside or binding(self._batch):
            return
        for factor in FACTORS:
            low_s, high_s = self._bound_s, self.best.makespan_s / factor
            while high_s > low_s * CLOSE:
                deadline_s = math.sqrt(low_s * high_s)
                if found := on_shelves(layout, deadline_s, factor):
                    self.keep(found)
                    high_s = deadline_s
                else:
                    low_s = deadline_s

    @property
    def done(self) -> bool:
        """Whether it is close to the bound, or nothing is left of the budget."""
        return self.best.makespan_s <= self.close_s or (self._left <= 0 and math.isfinite(self.best.makespan_s))

    @property
    def _shorter_s(self) -> float:
        """The next deadline to be tried."""
        return max(self._bound_s, self.best.makespan_s * _SHORTER)

    def keep(self, found: Timetable) -> None:
        """Unless there is a shorter one."""
        if found.makespan_s < self.best.makespan_s:
            self.best = found

    def _try(self, way: _Way, deadline_s: float) -> Timetable:
        self._left -= _COST[way.lay_out]
        found = way.lay_out(way.layout, way.order, deadline_s, way.wider)
        way.tries += 1
        if found.makespan_s <= way.makespan_s:
            way.makespan_s, way.best, way.tries = found.makespan_s, (way.order, way.wider), 0
        self.keep(found)
        return found

    def _bisect(self, way: _Way) -> None:
        if way.bound_s:
            return
        low_s, high_s = self.close_s, self.best.makespan_s
        for _ in range(_BISECTIONS):
            if self.done or high_s <= low_s * CLOSE:
                break
            # Half way between what they exceed the bound by, as powers: most of the shortest are near it.
            deadline_s = self._bound_s + math.sqrt((low_s - self._bound_s) * (high_s - self._bound_s))
            found = self._try(way, deadline_s)
            if found.late:
                low_s = deadline_s
            else:
                high_s = min(deadline_s, found.makespan_s)

    def _squeak(self, ways: list[_Way], left: float) -> None:
        """Until so much of the budget is left."""
        rng = random.Random(0)
        for way in cycle(ways):
            if self.done or self._left <= left:
                break
            late = self._try(way, self._shorter_s).late
            if way.tries >= _PATIENCE:
                (way.order, way.wider), way.tries = way.best, 0
            way.order, way.wider = _promoted(way.order, way.wider, late, rng)

    def _anneal(self) -> None:
        """From the shortest so far, cooling down; and again."""
        rng = random.Random(0)
        layout = Layout(self._batch, self._batch.choices(), self._beside)
        each = self._left / _ANNEALED
        for still in reversed(range(_ANNEALED)):
            annealing = Annealing(self._batch, layout, self.best, rng)
            while not self.done and (warm := self._left / each - still) > 0:
                self._left -= _STEP
                self.keep(annealing.step(self._shorter_s, _WARM * warm * self.best.makespan_s))


def _promoted(
    order: Sequence[int], wider: Mapping[int, int], late: Sequence[int], rng: random.Random
) -> tuple[list[int], dict[int, int]]:
    """Who was late moves forward or becomes wider; and now and then two change places, or all would go in circles.

    So do some become wider that were not late, and others as they were.
    """
    promoted, widened = list(order), dict(wider)
    often = min(_WIDER, _WIDER_OF_MANY / len(order))
    for task in late:
        if rng.random() < often:
            widened[task] = widened.get(task, 0) + 1
        else:
            at = promoted.index(task)
            promoted.insert(max(0, at - 1 - rng.randrange(max(1, len(order) // 3))), promoted.pop(at))
    if rng.random() < _SWAPPED:
        one, other = rng.randrange(len(order)), rng.randrange(len(order))
        promoted[one], promoted[other] = promoted[other], promoted[one]
    if rng.random() < often:
        task = rng.randrange(len(order))
        widened[task] = widened.get(task, 0) + 1
    if widened and rng.random() < _BACK:
        del widened[rng.choice(list(widened))]
    return promoted, widened
