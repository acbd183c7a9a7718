"""Tasks that run one after the other in one place, laid out as one: very many tasks become a few thousand series.

All of a series have the width that the bound suggests. The less work there is in shorter tasks, the shorter the series,
so that the ends are about as even as those of single tasks (guided self-scheduling: Polychronopoulos and Kuck, IEEE
Trans. Comput. 36, 1987).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from .batch import Batch, Choices, Floats, Integers
from .model import Task
from .timetable import InSeries, Timetable

_MOST = 5_000  # series, were all as long as the longest
_LONGEST = 1 / 16  # of the bound
_SHORTER, _TIERS = 4, 2  # where so many times less is left so many times shorter; so often
_CLASSES = 128  # of a need, where they have several
_ROUNDING = 1e-6


class Series:
    """A batch as series of its tasks; ``choices``: whose cheapest widths within ``bound_s`` they have.

    Of a batch whose bandwidth cannot run short.
    """

    def __init__(self, batch: Batch, bound_s: float, choices: Choices) -> None:
        self._batch = batch
        widths, times_s = choices.at(bound_s)
        needs = {space.name: space.at(widths) for space in batch.spaces}
        tiers, shares = _shares(times_s, bound_s)
        exact, *others = [need for need in needs.values() if need.any()] or [times_s]
        rows = np.lexsort((-times_s, exact, *map(_classes, others), widths, tiers))
        firsts = _firsts(shares[rows], tiers[rows], widths[rows])
        # The series in the order of their first tasks, the largest first: else all that need most would come last.
        lengths = np.diff(np.append(firsts, len(rows)))
        sizes = (times_s * widths)[rows[firsts]]
        by_first = np.argsort(-sizes, kind="stable")
        self._rows = rows = rows[np.argsort(-np.repeat(sizes, lengths), kind="stable")]
        self._lengths = lengths = lengths[by_first]
        self._firsts = firsts = np.cumsum(lengths) - lengths
        none = np.zeros(len(batch))
        columns = (
            rows[firsts],
            lengths,
            widths[rows[firsts]],
            np.add.reduceat(times_s[rows], firsts),
            *(np.maximum.reduceat(needs.get(name, none)[rows], firsts) for name in ("memory", "disk")),
        )
        _, _, self.widths, self.times_s, *_ = listed = [column.tolist() for column in columns]
        series = zip(*listed, strict=True)
        self.batch = Batch([self._task(*one) for one in series], batch.capacity)

    def timetable(self, found: Timetable) -> Timetable:
        """Of the tasks, from that of the series."""
        found = found.without_moments()
        series_of = np.repeat(np.arange(len(self._firsts)), self._lengths)
        widths = np.array(found.widths)[series_of]
        times_s = self._batch.times_s[self._rows, self._batch.columns(widths, self._rows)].tolist()
        starts_s: list[float] = []
        ends_s: list[float] = []
        for first, length, start_s in zip(self._firsts.tolist(), self._lengths.tolist(), found.starts_s, strict=True):
            moments_s = list(accumulate(times_s[first : first + length], initial=start_s))
            starts_s += moments_s[:-1]
            ends_s += moments_s[1:]
        latest_s = np.array(found.ends_s)[series_of]  # none is later, but for rounding
        return Timetable(
            self._of_tasks(widths),
            self._of_tasks(np.minimum(starts_s, latest_s)),
            self._of_tasks(np.minimum(ends_s, latest_s)),
            (),
            found.makespan_s,
            series=InSeries(found, self._of_tasks(series_of)),
        )

    def _task(self, first: int, length: int, width: int, time_s: float, memory: float, disk: float) -> Task:
        """A single one as it is, else as long as all together, with the needs of those that need most."""
        if length == 1:
            return self._batch.tasks[first]
        return Task(self._batch.tasks[first].id, {width: time_s}, memory, disk_bytes=disk)  # type: ignore[arg-type]

    def _of_tasks(self, values: npt.NDArray[Any]) -> list[Any]:
        """In the order of the batch."""
        ordered = np.empty_like(values)
        ordered[self._rows] = values
        listed: list[Any] = ordered.tolist()
        return listed


def _shares(times_s: Floats, bound_s: float) -> tuple[Integers, Floats]:
    """Of each task the tier, and which part of a series of that tier it is."""
    longest_first = np.argsort(-times_s, kind="stable")
    done_s = np.cumsum(times_s[longest_first])
    left = 1 - done_s / done_s[-1]
    tiers = np.empty(len(times_s), dtype=np.int64)
    tiers[longest_first] = (left[:, None] < _SHORTER ** -np.arange(1.0, _TIERS + 1)).sum(axis=1)
    longest_s = min(done_s[-1] / _MOST, bound_s * _LONGEST) / float(_SHORTER) ** tiers
    # Whole numbers of equal tasks, which so become equal series.
    return tiers, 1 / np.maximum(1.0, np.floor(longest_s / np.maximum(times_s, longest_s / len(times_s))))


def _firsts(shares: Floats, *alike: Integers) -> Integers:
    """Where a series begins: where it would be longer than one, or tasks are not alike."""
    apart = np.append(True, np.any([np.diff(values) != 0 for values in alike], axis=0))
    before = np.cumsum(shares) - shares
    before -= before[np.flatnonzero(apart)][np.cumsum(apart) - 1]
    apart[1:] |= np.diff(np.floor(before + _ROUNDING)) != 0
    long = shares > 0.5
    apart[1:] |= long[1:] | long[:-1]
    return np.flatnonzero(apart)


def _classes(needs: Floats) -> Integers:
    """Of each the class of its need, equals in one, all of about the same size: within one another need tells."""
    ranks: Integers = np.searchsorted(np.sort(needs), needs)
    return ranks * _CLASSES // len(needs)
