"""Ratios of wall times measured in pairs, with their interval; for benchmarks that compare, and judges nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def ratio_interval(ours_s: Sequence[float], theirs_s: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of ours / theirs over pairs of one round each, and its 95 % interval (Student's t of the logs)."""
    from scipy.stats import t as student

    logs = [math.log(ours / theirs) for ours, theirs in zip(ours_s, theirs_s, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), 0.0, math.inf
    half = float(student.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def told(name: str, ours_s: Sequence[float], theirs_s: Sequence[float]) -> str:
    """A line of a table."""
    mean, low, high = ratio_interval(ours_s, theirs_s)
    medians = f"{statistics.median(ours_s):.2f} | {statistics.median(theirs_s):.2f}"
    return f"| {name} | {medians} | {mean:.3f} | {low:.3f} – {high:.3f} |"


HEAD = "| compared | wall s, median | the other's | ratio | 95 % interval |\n|---|---|---|---|---|"
