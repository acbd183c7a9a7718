"""Widths with which tasks share the memory's bandwidth well; proposes the most promising first, and decides nothing.

A task moves the same bytes at any width, so that its width decides only when, and beside whom: two of 0.36 of the
bandwidth leave a quarter of it to none like them; as wide as uses all of it, they leave nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from .batch import Batch, Choices, Floats, Integers
from .timetable import Layout, start
from .uniform import Workers

MANY = 10_000  # tasks: of more, fewer layouts are made
_SOME = 5_000  # of so many
# Measured, on tasks of equal and of many rates. How much of the bandwidth that equals leave weighs beside CPUs (never
# all: what moves nothing would be as wide as it can); after which part of the bound none ends that can sooner; how much
# of the longest counts as what is left when all others have ended; and how many are worth laying out.
_WEIGHTS, _PARTS, _TAIL, _PROMISING = (0.5, 0.95), (1.0, 0.25, 0.06), 0.25, 8


def sharing(batch: Batch, bounds: Sequence[tuple[float, Choices]], uniform: Iterable[Workers]) -> Iterator[Choices]:
    """Widths worth having, those first with which all should end soonest; the widths of workers are among them.

    At any deadline from the bound on each task takes the first.
    """
    bound_s = max(bound_s for bound_s, _ in bounds)
    promising: dict[bytes, tuple[float, Choices, float]] = {}
    for choices, longest_s in _proposed(batch, bound_s, [choices for _, choices in bounds], uniform):
        widths, times_s = choices.at(longest_s)
        if (key := widths.tobytes()) not in promising:
            ends_s = float((_shares(batch, widths, times_s) * times_s).sum() + _TAIL * times_s.max())
            promising[key] = ends_s, choices, longest_s
    by_end = sorted(promising.values(), key=lambda one: one[0])[:_PROMISING]
    several = [(choices, longest_s) for _, choices, longest_s in by_end]
    if len(batch) > MANY:
        several = _tried_on_some(batch, several)
    return (choices.within(longest_s) for choices, longest_s in several)


def largest_and_longest_first(batch: Batch, choices: Choices) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """By what to sort; of equals who can become shortest goes last, where the ends are."""
    widths, times_s = choices.at(math.inf)
    gain_last = -batch.shortest_s
    return (gain_last, -times_s * _shares(batch, widths, times_s)), (gain_last, -times_s)


def _tried_on_some(batch: Batch, several: Iterable[tuple[Choices, float]]) -> list[tuple[Choices, float]]:
    """By when some of the tasks end, since there is time for one layout of all."""
    rows = np.arange(0, len(batch), len(batch) // _SOME)
    some = batch.retimed(rows, batch.times_s[rows], batch.capacity)

    def ends_s(one: tuple[Choices, float]) -> float:
        choices, longest_s = one
        of_some = Choices(choices.widths[rows], choices.times_s[rows], choices.costs_s[rows]).within(longest_s)
        largest, _ = largest_and_longest_first(some, of_some)
        return start(Layout(some, of_some), np.lexsort(largest).tolist(), math.inf).makespan_s

    return sorted(several, key=ends_s)


def _shares(batch: Batch, widths: Integers, times_s: Floats) -> Floats:
    """What each task has of the CPUs, or of memory, disk or bandwidth where that is more."""
    several = [widths / batch.capacity.cpus, batch.rates(times_s)]
    several += [space.at(widths) / space.whole for space in batch.spaces]
    largest: Floats = np.maximum.reduce(several)
    return largest


def _proposed(
    batch: Batch, bound_s: float, bounds: Iterable[Choices], uniform: Iterable[Workers]
) -> Iterator[tuple[Choices, float]]:
    """Widths, and after what time none ends that can sooner."""
    of_equals = (batch.choices(cpus=1 - weight, bandwidth_of_equals=weight) for weight in _WEIGHTS)
    for choices in (*bounds, *of_equals):
        for part in _PARTS:
            yield choices, part * bound_s
    for workers in uniform:
        widths, times_s = workers.widths, workers.times_s
        costs_s = _shares(batch, widths, times_s) * times_s
        yield Choices(widths[:, None], times_s[:, None], costs_s[:, None]), bound_s
