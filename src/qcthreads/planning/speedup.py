"""How much faster a calculation gets with its width: measured, and a law fitted to it; measures nothing itself."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import Self

from ..errors import InputError
from .cost import PARALLEL_FRACTION

# Two fits whose errors differ by less are equally good: the one with fewer terms is taken.
_BETTER_BY = 0.9


@dataclass(frozen=True, slots=True)
class SpeedupModel:
    """Time at a width, as a share of the time at width 1.

    Measured widths are answered from the table, whatever its shape. Others have the shape of Amdahl's law with a part
    that the memory's bandwidth limits, ``serial + compute / w + memory / min(w, saturation_width)``; the three sum
    to 1. The law is corrected to meet the table: by interpolation between its widths, beyond the widest as there.

    Parameters
    ----------
    serial, compute, memory
        Shares of the time at width 1.
    saturation_width
        Threads that use up the bandwidth; infinite: not reached.
    table
        Measured shares by width; 1 at width 1.
    """

    serial: float = 1 - PARALLEL_FRACTION
    compute: float = PARALLEL_FRACTION
    memory: float = 0.0
    saturation_width: float = math.inf
    table: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def fit(cls, times_s: Mapping[int, float]) -> Self:
        """The model of measured seconds by width.

        Several widths that do not contain 1 are compared with the narrowest, which is taken to scale perfectly down to
        1: the speedup between the measured ones is right, that of narrower ones at most as good.

        Raises
        ------
        InputError
            No time, one that is not above 0, or a width below 1.
        """
        for width, time_s in times_s.items():
            if width < 1 or not (0 < time_s < math.inf):
                raise InputError(f"a speedup is fitted to seconds above 0 by width from 1 on, not to {width}: {time_s}")
        if not times_s:
            raise InputError("a speedup is fitted to measured times, and there is none; give seconds by width")
        narrowest = min(times_s)
        at_one_s = times_s[narrowest] * narrowest
        table = MappingProxyType({width: times_s[width] / at_one_s for width in sorted(times_s)})
        if len(table) == 1:
            # A width that was never compared with another says nothing of the law.
            return cls(table={1: 1.0} if narrowest == 1 else {})
        return cls(**_best_law({1: 1.0, **table}), table=table)

    def share(self, width: int) -> float:
        """Time at ``width`` / time at width 1."""
        if width in self.table:
            return self.table[width]
        knots = {1: 1.0, **self.table}
        widths = sorted(knots)
        after = bisect_left(widths, width)
        around = widths[max(0, after - 1) : after + 1]
        logs = [math.log(knots[measured] / self._law(measured)) for measured in around]
        way = math.log(width / around[0]) / math.log(around[1] / around[0]) if len(around) > 1 else 0.0
        return self._law(width) * math.exp((1 - way) * logs[0] + way * logs[-1])

    def speedup(self, width: int) -> float:
        """How many times faster than at width 1."""
        return 1 / self.share(width)

    def _law(self, width: int) -> float:
        return self.serial + self.compute / width + self.memory / min(width, self.saturation_width)


def _best_law(table: Mapping[int, float]) -> dict[str, float]:
    """Non-negative shares that sum to 1 with the smallest relative errors; the simplest of those as good."""
    widths = sorted(table)
    laws = [_fitted(table, widths, ("serial", "compute"), math.inf)]
    for saturation in widths[1:-1]:
        for columns in (("compute", "memory"), ("serial", "memory"), ("serial", "compute", "memory")):
            laws.append(_fitted(table, widths, columns, saturation))
    best_error, best = laws[0]
    for error, law in laws[1:]:
        if error < _BETTER_BY * best_error - 1e-12:
            best_error, best = error, law
    return best


def _fitted(
    table: Mapping[int, float], widths: list[int], columns: tuple[str, ...], saturation: float
) -> tuple[float, dict[str, float]]:
    """Error and law of non-negative least squares: of few columns, every subset is tried."""
    import numpy as np

    shapes = {
        "serial": [1.0 for _ in widths],
        "compute": [1 / width for width in widths],
        "memory": [1 / min(width, saturation) for width in widths],
    }
    weights = np.array([1 / table[width] for width in widths])
    target = np.ones(len(widths))
    found: tuple[float, dict[str, float]] | None = None
    for count in range(1, len(columns) + 1):
        for subset in combinations(columns, count):
            matrix = np.array([shapes[name] for name in subset]).T * weights[:, None]
            shares = np.linalg.lstsq(matrix, target, rcond=None)[0]
            if (shares < 0).any():
                continue
            error = float(((matrix @ shares - target) ** 2).sum())
            if found is None or error < found[0]:
                whole = float(shares.sum())
                found = error, dict.fromkeys(("serial", "compute", "memory"), 0.0)
                found[1].update({name: float(share) / whole for name, share in zip(subset, shares, strict=True)})
    assert found is not None  # one column alone is never negative: everything is above 0
    law = found[1] | {"saturation_width": saturation if found[1]["memory"] else math.inf}
    return found[0], law
