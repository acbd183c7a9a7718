"""What finished tasks tell about those to come: estimates corrected as times arrive; knows no task and no program.

The logarithm of a time is taken for that of its estimate plus three corrections: a scale, the power with which costs
grow, and how much of the estimated speedup is there; each kind of task has its own. Bayesian linear regression finds
them from the first time on; a time that fits to nothing counts less (Huber's weights).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from .batch import Floats, Integers

Known = Literal["seconds", "elsewhere", "sizes", "nothing"]

# Standard deviations before anything has been seen, of logarithms. The scale: a calibrated cost model's median error is
# some tens of percent, of another machine a factor of two or three, and a size without seconds says nothing of it.
_SCALE = {"seconds": 0.3, "elsewhere": 1.0, "sizes": 1e3, "nothing": 1e3}
# The formal powers of methods are exceeded by none and undercut by a fifth where molecules are small; a calibrated
# model has measured them, and speedups where it was calibrated at several widths.
_POWER, _MEASURED = 0.2, 0.1
# Of an assumed S(2) = 1.4, 1.08 to 1.96 was seen: anything between nothing and twice the exponent.
_SPEEDUP = 0.5
# Of two molecules of one size, one needs a few iterations more.
_SCATTER = 0.2
_HUBER = 2.0  # standard deviations, beyond which a time counts less
_SAME = 1e-9  # costs of one size differ by rounding alone
_LEAST = 1e-9  # of the longest: what takes no time has no logarithm


class Correction:
    """Corrects a table of estimated times (a row for each task, a column for each width) by times observed.

    ``kinds``: of each row; ``None``: all are of one kind. ``speedups_measured``: what threads gain is not assumed.
    """

    def __init__(
        self,
        times_s: Floats,
        known: Known,
        kinds: Sequence[str] | None = None,
        *,
        speedups_measured: bool = False,
    ) -> None:
        listed = np.isfinite(times_s)
        longest_s = float(times_s[listed].max(initial=0.0)) or 1.0
        self._times_s: Floats = np.where(listed, np.maximum(times_s, _LEAST * longest_s), np.inf)
        self._logs = np.log(self._times_s)
        first = listed.argmax(axis=1)  # the narrowest listed
        self._narrowest: Floats = self._logs[np.arange(len(times_s)), first] if len(times_s) else np.zeros(0)
        self._centre = float(self._narrowest.max(initial=0.0))
        numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds or [""]))}
        self._kind: Integers = np.array([numbers[kind] for kind in kinds or [""] * len(times_s)], dtype=np.int64)
        power = _MEASURED if known == "seconds" else _POWER
        speedup = _MEASURED if speedups_measured else _SPEEDUP
        prior = np.diag([_SCALE[known] ** 2, power**2, speedup**2])
        self._covariance: Floats = np.array([prior] * len(numbers))
        self._found: Floats = np.zeros((len(numbers), 3))
        # Measured seconds are taken at their word until one is found to be wrong; a size by itself is not.
        self._squares, self._seen = (0.0, 0) if known == "seconds" else (_SCATTER**2, 1)
        self.in_seconds = known in ("seconds", "elsewhere")
        """Whether anything is known of seconds, and not of ratios alone."""

    def observe(self, row: int, column: int, time_s: float) -> float:
        """Take one time; returns how many times longer it was than the estimate until now."""
        features, kind = self._features(row, column), self._kind[row]
        foreseen = float(features @ self._found[kind])
        surprise = float(np.log(max(time_s, 1e-6)) - self._logs[row, column]) - foreseen
        learned = self._covariance[kind] @ features
        variance = float(features @ learned)
        spread = math.sqrt(_SCATTER**2 + variance)
        weight = min(1.0, _HUBER * spread / max(abs(surprise), 1e-12)) / _SCATTER**2
        gain = weight / (1 + weight * variance)
        self._found[kind] += gain * surprise * learned
        self._covariance[kind] -= gain * np.outer(learned, learned)
        self._squares += (min(abs(surprise), _HUBER * spread) / spread * _SCATTER) ** 2
        self._seen += 1
        was_known, self.in_seconds = self.in_seconds, True
        return float(np.exp(surprise)) if was_known else 1.0

    @property
    def scatter(self) -> float:
        """How far times were from their estimates until now, apart from what was corrected: of their logarithms."""
        return math.sqrt(self._squares / max(self._seen, 1))

    def time_s(self, row: int, column: int) -> float:
        """The estimate as corrected until now."""
        return float(self._times_s[row, column] * np.exp(self._features(row, column) @ self._found[self._kind[row]]))

    def as_large(self, row: int) -> npt.NDArray[np.bool_]:
        """Which rows are of the same kind, and cost as much or more by what was thought before anything was seen."""
        as_large: npt.NDArray[np.bool_] = self._narrowest >= self._narrowest[row] - _SAME
        as_large &= self._kind == self._kind[row]
        return as_large

    def times_s(self, rows: Integers | slice = slice(None)) -> Floats:
        """All estimates of ``rows``; infinite at widths that are not listed."""
        scale, power, speedup = self._found[self._kind[rows]].T[:, :, None]
        narrowest = self._narrowest[rows][:, None]
        logs = self._logs[rows]
        gained = np.where(np.isfinite(logs), narrowest - logs, 0.0)
        factors = np.exp(scale + power * (narrowest - self._centre) - speedup * gained)
        corrected: Floats = self._times_s[rows] * factors
        return corrected

    def _features(self, row: int, column: int) -> Floats:
        narrowest = float(self._narrowest[row])
        return np.array([1.0, narrowest - self._centre, float(self._logs[row, column]) - narrowest])
