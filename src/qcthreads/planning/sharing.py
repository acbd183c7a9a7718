"""Widths with which tasks share the memory's bandwidth well; proposes the most promising first, and decides nothing.

A task moves the same bytes at any width, so that its width decides only when, and beside whom: two of 0.36 of the
bandwidth leave a quarter of it to none like them; as wide as uses all of it, they leave nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .batch import Batch, Choices, Floats, Integers
from .bounds import bound_at
from .timetable import Layout, start
from .uniform import Workers

Keys = tuple[Floats, Floats]
_Order = Callable[[Batch, Choices], Keys]

MANY = 15_000  # tasks, or series of them: of more, fewer layouts are made
_SOME = 5_000  # of so many
# Measured, on tasks of equal and of many rates. How much of the bandwidth that equals leave weighs beside CPUs (never
# all: what moves nothing would be as wide as it can); after which part of the bound none ends that can sooner; how
# many are worth laying out, of many tasks in one order; and by what part their own bounds have to differ.
_WEIGHTS, _PARTS, _PROMISING, _APART = (0.5, 0.95), (1.0, 0.25, 0.06), 8, 1e-3


@dataclass(eq=False)
class _Found:
    """Widths of a batch, after what time none ends that can sooner, and what they promise for some of the tasks."""

    choices: Choices
    longest_s: float
    bound_s: float
    taken_s: float

    @cached_property
    def within(self) -> Choices:
        """At any deadline each task takes the first."""
        return self.choices.within(self.longest_s)


def sharing(
    batch: Batch, bounds: Sequence[tuple[float, Choices]], uniform: Iterable[Workers]
) -> Iterator[tuple[float, Choices, Keys]]:
    """Widths worth having, a bound for those who have them, and by what to sort; what should end soonest comes first.

    The widths of workers are among them. At any deadline from the bound on each task takes the first.
    """
    many = len(batch) > MANY
    rows = np.arange(0, len(batch), len(batch) // _SOME if many else 1)
    some = batch.retimed(rows, batch.times_s[rows], batch.capacity) if many else batch
    bound_s = max(bound_s for bound_s, _ in bounds)
    found: dict[bytes, _Found] = {}
    parts = _PARTS[:1] if many else _PARTS
    for choices, longest_s in _proposed(batch, bound_s, parts, [choices for _, choices in bounds], uniform):
        widths, times_s = (choices.of(rows) if many else choices).at(longest_s)
        if (key := widths.tobytes()) not in found:
            taken_s = float((_shares(some, widths, times_s) * times_s).sum())
            found[key] = _Found(choices, longest_s, bound_at(some, widths, times_s), taken_s)
    least_s = (1 + _APART) * min(one.bound_s for one in found.values())
    by_end = sorted(found.values(), key=lambda one: (max(one.bound_s, least_s), one.taken_s))
    ways = [(one, order) for one in by_end[:_PROMISING] for order in (_largest_first, _longest_first)]
    if many:  # there is time for one layout of all

        def ends_s(way: tuple[_Found, _Order]) -> float:
            one, order = way
            choices = one.choices.of(rows).within(one.longest_s)
            return start(Layout(some, choices), np.lexsort(order(some, choices)).tolist(), math.inf).makespan_s

        ways = sorted(ways[:_PROMISING], key=ends_s)
    return ((one.bound_s, one.within, order(batch, one.within)) for one, order in ways)


def _largest_first(batch: Batch, choices: Choices) -> Keys:
    """By what to sort; of equals who can become shortest goes last, where the ends are."""
    widths, times_s = choices.at(math.inf)
    return -batch.shortest_s, -times_s * _shares(batch, widths, times_s)


def _longest_first(batch: Batch, choices: Choices) -> Keys:
    """The same, whatever else they take."""
    _, times_s = choices.at(math.inf)
    return -batch.shortest_s, -times_s


def _shares(batch: Batch, widths: Integers, times_s: Floats) -> Floats:
    """What each task has of the CPUs, or of memory, disk or bandwidth where that is more."""
    several = [widths / batch.capacity.cpus, batch.rates(times_s)]
    several += [space.at(widths) / space.whole for space in batch.spaces]
    largest: Floats = np.maximum.reduce(several)
    return largest


def _proposed(
    batch: Batch, bound_s: float, parts: Iterable[float], bounds: Iterable[Choices], uniform: Iterable[Workers]
) -> Iterator[tuple[Choices, float]]:
    """Widths, and after what time none ends that can sooner."""
    of_equals = (batch.choices(cpus=1 - weight, bandwidth_of_equals=weight) for weight in _WEIGHTS)
    for choices in (*bounds, *of_equals):
        for part in parts:
            yield choices, part * bound_s
    for workers in uniform:
        widths, times_s = workers.widths, workers.times_s
        costs_s = _shares(batch, widths, times_s) * times_s
        yield Choices(widths[:, None], times_s[:, None], costs_s[:, None]), bound_s
