"""Two shelves, with widths chosen by a knapsack: within 3/2 of any deadline that can be kept, where that is proven.

Mounié, Rapine and Trystram, SIAM J. Comput. 37, 2007. Who takes longer than half of a deadline d runs at d/2: all of
these fit side by side (the first shelf), and the others end within d/2 (the second). The knapsack finds what leaves
the least work; where that is more than the CPUs do within d, no schedule keeps d. Otherwise those of the first shelf
get as narrow as 3/2 d allows, as do those of the second for which there is still room. The others of the second end at
3/2 d, above the first: there would be too much work if they did not fit. So would there be if one of those that one
CPU runs within d/2 fitted into none of the gaps.

The proof holds where each task lists all widths from 1 to its widest, and a wider run takes no longer and is no less
work. Where it lists some, each wider than the one before by half of it or by one CPU at most, the same proves 7/4, with
a second shelf of 3/4 d instead of d/2 (docs/explanation/planning.md). Elsewhere the timetable is as valid, but may end
later, and a deadline that can be kept may be refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from .batch import Choices, Floats, Integers
from .timetable import Layout, Timetable, in_sequence

FACTORS = (1.5, 1.75)
"""Of the deadline, within which tasks that list all widths are laid out, or each half as wide again as the last."""
_Mask = npt.NDArray[np.bool_]


def on_shelves(layout: Layout, deadline_s: float, factor: float) -> Timetable | None:
    """:func:`two_shelves`; then each as soon as it can start.

    Without limits on memory, disk and bandwidth only, and beside nothing that runs.
    """
    shelves = two_shelves(layout.choices, layout.cpus, deadline_s, factor)
    if shelves is None:
        return None
    widths, times_s, starts_s = shelves
    order = np.argsort(starts_s, kind="stable").tolist()
    return in_sequence(layout, order, widths.tolist(), times_s.tolist())


def two_shelves(
    choices: Choices, cpus: int, deadline_s: float, factor: float
) -> tuple[Integers, Floats, Floats] | None:
    """Widths, times and starts that end within one of the :data:`FACTORS` of the deadline; ``None``: nothing keeps it.

    Elsewhere than where it is proven they may need more CPUs than there are.
    """
    first = _first_shelf(choices, cpus, deadline_s)
    if first is None:
        return None
    latest_s, height_s = factor * deadline_s, (factor - 1) * deadline_s
    (widths, times_s), (high, high_s) = map(choices.at, (latest_s, height_s))
    small = (high == 1) & (high_s <= height_s)
    first &= ~small
    while True:
        starts_s, free_s = _stacked(first, widths, times_s, latest_s)
        second = np.flatnonzero(~first & ~small)
        second = second[np.argsort(widths[second], kind="stable")]
        moved = second[np.cumsum(widths[second]) <= cpus - len(free_s)]
        if not len(moved):
            break
        first[moved] = True
    widths[second], times_s[second] = high[second], high_s[second]
    starts_s[second] = latest_s - times_s[second]
    until_s = np.repeat(starts_s[second], widths[second]).tolist()
    gaps_s = zip_longest([0.0] * (cpus - len(free_s)) + free_s, until_s, fillvalue=latest_s)
    _fill(gaps_s, small, times_s, starts_s)
    return widths, times_s, starts_s


def _first_shelf(choices: Choices, cpus: int, deadline_s: float) -> _Mask | None:
    """Who stands there, where this leaves the least work; ``None``: nothing keeps the deadline."""
    (low, low_s), (high, high_s) = map(choices.at, (deadline_s, deadline_s / 2))
    low_work_s, high_work_s = low * low_s, np.where(high_s > deadline_s / 2, np.inf, high * high_s)
    most_s = cpus * deadline_s
    if low_s.max() > deadline_s or low_work_s.sum() > most_s:  # else fewer than 2 x CPUs remain to choose from
        return None
    first = _knapsack(low, high_work_s - low_work_s, cpus)
    work_s = np.where(first, low_work_s, high_work_s).sum()
    return None if low[first].sum() > cpus or work_s > most_s else first


def _knapsack(widths: Integers, saved_s: Floats, cpus: int) -> _Mask:
    """Who saves most on so many CPUs: all that save infinitely much, and of the others as many as fit beside them."""
    taken = np.isinf(saved_s)
    room = max(0, cpus - int(widths[taken].sum()))
    tasks = np.flatnonzero((saved_s > 0) & ~taken & (widths <= room))
    best_s, better = np.zeros(room + 1), np.zeros((len(tasks), room + 1), dtype=np.bool_)
    for row, (width, more_s) in enumerate(zip(widths[tasks].tolist(), saved_s[tasks].tolist(), strict=True)):
        with_it_s = best_s[: room + 1 - width] + more_s
        np.greater(with_it_s, best_s[width:], out=better[row, width:])
        np.maximum(with_it_s, best_s[width:], out=best_s[width:])
    for row in range(len(tasks) - 1, -1, -1):
        if better[row, room]:
            taken[tasks[row]] = True
            room -= int(widths[tasks[row]])
    return taken


def _stacked(tasks: _Mask, widths: Integers, times_s: Floats, latest_s: float) -> tuple[Floats, list[float]]:
    """When each starts, one of one CPU above another where both end in time; and when CPUs are free, ascending."""
    starts_s, free_s = np.zeros(len(tasks)), list[float]()
    for task in _longest_first(tasks, times_s):
        width, end_s = int(widths[task]), float(times_s[task])
        if width == 1 and free_s and free_s[0] + end_s <= latest_s:
            starts_s[task] = start_s = heappop(free_s)
            end_s += start_s
        for _ in range(width):
            heappush(free_s, end_s)
    return starts_s, sorted(free_s)


def _fill(gaps_s: Iterable[tuple[float, float]], tasks: _Mask, times_s: Floats, starts_s: Floats) -> None:
    """The longest of the tasks first, each into the largest gap: if it does not fit there, it does nowhere."""
    left = [(start_s - end_s, start_s) for start_s, end_s in gaps_s]
    heapify(left)
    for task in _longest_first(tasks, times_s):
        minus_left_s, start_s = left[0]
        starts_s[task], time_s = start_s, float(times_s[task])
        heapreplace(left, (minus_left_s + time_s, start_s + time_s))


def _longest_first(tasks: _Mask, times_s: Floats) -> list[int]:
    order: list[int] = np.flatnonzero(tasks)[np.argsort(-times_s[tasks], kind="stable")].tolist()
    return order
