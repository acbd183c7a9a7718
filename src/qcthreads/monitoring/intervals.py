"""How sure a median of a few measurements is; pure, assumes nothing of how they are distributed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_WANTED_COVERAGE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The median of what was measured, and two of the measured values that hold the true one between them."""

    median: float
    low: float
    high: float
    coverage: float
    """With this probability, whatever the distribution; below 0.95 where there are fewer than six values."""

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def median_interval(values: Iterable[float]) -> Interval:
    """The interval of the sign test: the closest pair of order statistics that reaches 95 %, or the outermost.

    Examples
    --------
    >>> median_interval([2.0, 1.0, 4.0, 3.0, 6.0, 5.0])
    Interval(median=3.5, low=1.0, high=6.0, coverage=0.96875)
    """
    ordered = sorted(values)
    rank = max((k for k in range(len(ordered) // 2) if _coverage(ordered, k) >= _WANTED_COVERAGE), default=0)
    return Interval(
        median=statistics.median(ordered),
        low=ordered[rank],
        high=ordered[-1 - rank],
        coverage=_coverage(ordered, rank),
    )


def _coverage(ordered: Sequence[float], rank: int) -> float:
    """That neither ``rank`` or fewer values lie below the true median, nor above it."""
    number = len(ordered)
    return 1 - 2 * sum(math.comb(number, k) for k in range(rank + 1)) / 2.0**number
