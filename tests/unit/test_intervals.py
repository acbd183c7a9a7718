"""The interval of a median: against the tables of the sign test, and against what it promises, by drawing."""

from __future__ import annotations

import math
import random

import pytest

from qcthreads.monitoring.intervals import median_interval


@pytest.mark.parametrize(
    ("number", "low", "high", "coverage"),
    [(5, 1, 5, 0.9375), (6, 1, 6, 0.9688), (8, 1, 8, 0.9922), (9, 2, 8, 0.9609), (20, 6, 15, 0.9586)],
)
def test_ranks_are_those_of_the_tables(number, low, high, coverage):
    """Conover, Practical Nonparametric Statistics: confidence limits of the median."""
    interval = median_interval(range(1, number + 1))
    assert (interval.low, interval.high) == (low, high)
    assert interval.coverage == pytest.approx(coverage, abs=5e-5)


def test_it_holds_the_median_as_often_as_it_says():
    draw = random.Random(6)
    intervals = [median_interval(draw.expovariate(1) for _ in range(6)) for _ in range(4000)]
    held = sum(one.low <= math.log(2) <= one.high for one in intervals) / len(intervals)
    # Of 4000 draws; three standard deviations.
    assert held == pytest.approx(intervals[0].coverage, abs=3 * math.sqrt(0.97 * 0.03 / 4000))


def test_one_value_promises_nothing():
    assert median_interval([2.0]).coverage == 0
