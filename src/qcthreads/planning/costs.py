"""Seconds and memory of a calculation from its size: theory at first, corrected by what was measured; runs nothing."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import median, median_low
from typing import Any, Literal, Self

from ..errors import InputError
from .cost import assumed_parallel_fraction, assumed_speedup, scaling_exponent
from .speedup import SpeedupModel

# Standard deviations of what theory says of the exponents before anything was measured: real programs screen,
# and small systems have not reached their formal scaling.
_EXPONENT_SD = 0.7
_ELECTRONS_SD = 0.7

# Of the exponents of the ratio of one machine's times, or of those with other keywords, to another's: shapes are alike.
_RATIO_SD = 0.2

# What was measured here is a law by itself once it has so many sizes, as the law has parameters with its constant, and
# reaches so far of what was measured elsewhere. Before that it corrects the law from elsewhere.
_ENOUGH_SIZES, _ENOUGH_REACH = 4, 0.5

# Of a factor that nobody knows: e^5 either way.
_FACTOR_SD = 5.0

# Scatter of one measurement about the law, as a logarithm, before there are enough to tell: of a time, and of a peak of
# memory, which repeats itself to some per cent.
_TIMES_SCATTER, _MEMORY_SCATTER = 0.15, 0.03
_SCATTER_COUNTS_AS = 4

# Of the logarithm of a time when the same is computed again, in another run: PySCF, HF and MP2, 0.07 to 0.09.
_TIMES_REPEAT = 0.1

# Beyond so many standard deviations an observation weighs less (Huber 1964: 1.345 keeps 95 % efficiency).
_HUBER = 1.345
_REWEIGHTINGS = 8

# Shares of the smallest value that may be a constant: start-up of the program, its code and libraries in memory.
_CONSTANT_SHARES = (0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97, 0.99)

# What programs hold before they compute, with their libraries: xtb 82 MiB, NWChem 91, PySCF 132, Psi4 158. The
# logarithm's standard deviation.
_RESIDENT_BYTES, _RESIDENT_SD = 128 * 1024**2, 0.5

# exp() of more overflows.
_LARGEST_LOG = 700.0


# PySCF that was told 1.03 times its peak computed as with all memory; told its peak, it found its integrals too large
# and took two to three times as long (2.14, MP2/cc-pVDZ, 3 to 5 waters).
_MARGIN = 1.05


@dataclass(frozen=True, slots=True)
class Size:
    """What a calculation's cost depends on within one method and basis; ghosts bring functions, but no electrons."""

    basis_functions: int
    electrons: int

    def within(self, other: Size) -> bool:
        """Whether ``other`` is as large or larger, so that it takes no less."""
        return self.basis_functions <= other.basis_functions and self.electrons <= other.electrons


@dataclass(frozen=True, slots=True)
class Observation:
    """One finished calculation."""

    size: Size
    width: int
    wall_s: float | None
    """``None``: not known, as others disturbed it."""
    peak_memory_bytes: int
    """Of all its processes; 0: not known."""
    peak_scratch_bytes: int = 0
    """Of its temporary files; 0: none, or not known."""
    at_most_s: float | None = None
    """Where others disturbed it: what it took all the same; ``None``: not known."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median, and the factor by which the truth differs from it, either way, in two of three cases."""

    value: float
    factor: float
    source: Literal["law", "between", "seen"] = "law"
    """It was seen of that very size, or lies between what was seen of a smaller and of a larger one; else only the law
    says so."""

    def times(self, ratio: Estimate) -> Estimate:
        """Of the product, as if neither knew of the other."""
        factor = math.exp(math.hypot(math.log(self.factor), math.log(ratio.factor)))
        return Estimate(self.value * ratio.value, factor)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where seconds come from that were not all measured on this machine, with these keywords and of this driver."""

    measured_on: str = ""
    """The other machine's CPU, and the day; empty: they were measured here."""
    corrections: int = 0
    """By so many measurements here."""
    ratio: float = 1.0
    """They are guessed to be so many times those of energies; 1: they are no guess."""
    default_keywords: bool = False
    """They were measured with these, and others are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """``constant + exp(log_factor) * functions^exponent * (electrons / functions)^electrons_exponent``."""

    constant: float
    coefficients: tuple[float, float, float]
    """Logarithm of the factor at the centre, the exponent, the electrons' exponent."""
    covariance: tuple[tuple[float, ...], ...]
    centre: tuple[float, float]
    scatter: float
    """Standard deviation of the logarithm of one measurement."""
    log_evidence: float
    """How well it explains what was measured, against laws with other constants."""

    def log_estimate(self, size: Size) -> tuple[float, float]:
        """Mean and variance of the logarithm: of the law, and of one calculation about it."""
        row = _features(size, self.centre)
        mean = sum(a * b for a, b in zip(self.coefficients, row, strict=True))
        variance = sum(row[i] * self.covariance[i][j] * row[j] for i in range(len(row)) for j in range(len(row)))
        grown = math.exp(min(mean, _LARGEST_LOG))
        whole = self.constant + grown
        return math.log(whole), variance * (grown / whole) ** 2 + self.scatter**2


@dataclass(frozen=True, slots=True)
class Law:
    """Power laws with different constants, each believed as far as it explains what was measured."""

    laws: tuple[PowerLaw, ...]

    @classmethod
    def fit(
        cls,
        sizes: Sequence[Size],
        values: Sequence[float],
        exponent: float,
        electrons_exponent: float,
        scatter: float = _TIMES_SCATTER,
        resident: float = 0.0,
    ) -> Self:
        """Robust fits in logarithms that begin with theory's exponents, and with what values usually scatter.

        ``resident``: about what the constant is; 0: not known, and there is none before three sizes tell of it.

        Raises
        ------
        InputError
            Where there is nothing to fit, or a value is not above 0.
        """
        if not values or len(sizes) != len(values) or not all(0 < value < math.inf for value in values):
            raise InputError(f"a law is fitted to one value above 0 for each size, not to {list(values)!r:.200}")
        smallest = min(values)
        shares = _CONSTANT_SHARES if resident or len(set(sizes)) > 2 else (0.0,)
        exponents, deviations = (exponent, electrons_exponent), (_EXPONENT_SD, _ELECTRONS_SD)
        laws = [_fit(sizes, values, smallest * share, exponents, deviations, scatter) for share in shares]
        if resident:
            laws = [replace(law, log_evidence=law.log_evidence + _log_prior(law.constant, resident)) for law in laws]
        return cls(tuple(laws))

    def estimate(self, size: Size) -> Estimate:
        """The median at ``size``, and how uncertain it is."""
        best = max(law.log_evidence for law in self.laws)
        beliefs = [math.exp(law.log_evidence - best) for law in self.laws]
        logs = [law.log_estimate(size) for law in self.laws]
        total = sum(beliefs)
        mean = sum(belief * log for belief, (log, _) in zip(beliefs, logs, strict=True)) / total
        variance = (
            sum(belief * (own + (log - mean) ** 2) for belief, (log, own) in zip(beliefs, logs, strict=True)) / total
        )
        return Estimate(math.exp(mean), math.exp(min(math.sqrt(variance), _LARGEST_LOG)))


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Of one program with one method and basis: everything observed, and the laws that follow from it.

    Parameters
    ----------
    method
        Whose formal scaling is where the laws begin.
    observations
        At any widths.
    useful_width
        Beyond it the program is not faster; ``None``: not known.
    measured_on
        The CPU of another machine that ``observations`` are of; empty: this one.
    prior
        Of the same with default keywords, on another machine, or of energies where gradients are asked for. Until
        ``observations`` are enough, seconds are its, corrected by them. Nothing else is taken from it: other versions
        and keywords may take other amounts of memory.
    prior_of_defaults
        It is of default keywords, and ``observations`` are of others.
    prior_ratio
        By theory seconds are so many times the prior's; 1: it is of the same driver.
    process_bytes
        Memory that each process but the first adds, where a width means processes.
    """

    method: str
    observations: tuple[Observation, ...] = ()
    useful_width: int | None = None
    measured_on: str = ""
    prior: CostModel | None = None
    prior_of_defaults: bool = False
    prior_ratio: float = 1.0
    process_bytes: int = 0

    @cached_property
    def borrowed(self) -> CostModel | None:
        """The model whose seconds are corrected; ``None``: those of ``observations`` are enough."""
        if self.prior is None:
            return None
        seen = {size.basis_functions for size, _ in self._at_one_s}
        reach = max((size.basis_functions for size, _ in self.prior._at_one_s), default=0)
        enough = len(seen) >= _ENOUGH_SIZES and max(seen) >= _ENOUGH_REACH * reach
        return None if enough else self.prior

    @property
    def origin(self) -> Origin | None:
        """``None``: there are no seconds, or all were measured here, with these keywords and of this driver."""
        if self.measured_on:
            return Origin(self.measured_on)
        if self.borrowed is None:
            return None
        before, here = self.borrowed.origin, len(self._at_one_s)
        if self.prior_ratio != 1:  # how often the energies were corrected does not tell of them
            return replace(before or Origin(), ratio=self.prior_ratio, corrections=here)
        if self.prior_of_defaults:
            before = replace(before or Origin(), default_keywords=True)
        return before and replace(before, corrections=before.corrections + here)

    @cached_property
    def speedups(self) -> tuple[tuple[int, SpeedupModel], ...]:
        """By number of basis functions: of every size that ran at width 1 and at others. Small ones scale less.

        None of another machine: its PUs and its memory are others, and what was busy there is not known.
        """
        own = () if self.measured_on else speedups_of(self.observations)
        return own if own or self.prior is None else self.prior.speedups

    @cached_property
    def seconds_law(self) -> Law | None:
        """Of what was observed, at width 1; ``None`` before anything was."""
        if not self._at_one_s:
            return None
        sizes, times_s = zip(*self._at_one_s, strict=True)
        return Law.fit(sizes, times_s, scaling_exponent(self.method), 1.0)

    @cached_property
    def _correction(self) -> Law | None:
        """What was observed / what the prior says of it; ``None`` before anything was observed."""
        if self.prior is None:
            return None
        foreseen = [(size, time_s, self.prior._at_one(size)) for size, time_s in self._at_one_s]
        ratios = [(size, time_s / before.value) for size, time_s, before in foreseen if before is not None]
        if not ratios:
            return None
        sizes, values = zip(*ratios, strict=True)
        return Law((_fit(sizes, values, 0.0, (0.0, 0.0), (_RATIO_SD, _RATIO_SD), _TIMES_SCATTER),))

    @cached_property
    def _timed(self) -> list[tuple[Observation, float]]:
        known = [(seen, seen.wall_s) for seen in self.observations if seen.wall_s is not None]
        if self.measured_on:
            known = [(seen, wall_s) for seen, wall_s in known if seen.width == 1] or known
        return known

    @cached_property
    def _at_one_s(self) -> list[tuple[Size, float]]:
        """Seconds at width 1 of all that is timed."""
        return [(seen.size, wall_s / self.share(seen.size, seen.width)) for seen, wall_s in self._timed]

    @cached_property
    def _seen_s(self) -> dict[Size, dict[int, list[float]]]:
        """The same by size, and by the width that they were measured at."""
        found: dict[Size, dict[int, list[float]]] = {}
        for (seen, _), (size, time_s) in zip(self._timed, self._at_one_s, strict=True):
            found.setdefault(size, {}).setdefault(seen.width, []).append(time_s)
        return found

    @cached_property
    def _at_most_s(self) -> list[tuple[Size, float]]:
        """The same of what was disturbed, which took no less than it would have taken."""
        known = [(seen, seen.at_most_s) for seen in self.observations if seen.at_most_s is not None]
        return [(seen.size, most_s / self.share(seen.size, seen.width)) for seen, most_s in known]

    @cached_property
    def memory_law(self) -> Law | None:
        """Peak without what further processes add; ``None`` before anything was observed."""
        return _law_of_peaks(self._memory_peaks, _RESIDENT_BYTES)

    @cached_property
    def scratch_law(self) -> Law | None:
        """Peak of temporary files; ``None`` where none were seen."""
        return _law_of_peaks(self._scratch_peaks)

    @cached_property
    def _memory_peaks(self) -> dict[Size, int]:
        return _highest(
            (seen.size, seen.peak_memory_bytes - (seen.width - 1) * self.process_bytes) for seen in self.observations
        )

    @cached_property
    def _scratch_peaks(self) -> dict[Size, int]:
        return _highest((seen.size, seen.peak_scratch_bytes) for seen in self.observations)

    def share(self, size: Size, width: int) -> float:
        """Time at ``width`` / time at width 1: between measured sizes by interpolation, beyond them as the nearest."""
        width = min(width, self.useful_width or width)
        if not self.speedups:
            return 1 / assumed_speedup(width, assumed_parallel_fraction(size.basis_functions))
        functions = [measured for measured, _ in self.speedups]
        after = bisect_left(functions, size.basis_functions)
        if after in (0, len(functions)):
            return self.speedups[min(after, len(functions) - 1)][1].share(width)
        (low, below), (high, above) = self.speedups[after - 1 : after + 1]
        way = math.log(size.basis_functions / low) / math.log(high / low)
        return (1 - way) * below.share(width) + way * above.share(width)

    def seconds(self, size: Size, width: int = 1) -> Estimate | None:
        """Wall time; ``None`` before anything was observed: only ratios are known, by :func:`relative_cost`.

        Of a size that was measured, the law's, corrected by that.
        """
        at_one, share = self._at_one(size), self.share(size, width)
        if at_one is None:
            return None
        assumed = self._assumed_speedup(size, width)
        if assumed == 1:
            return replace(at_one, value=at_one.value * share)
        return at_one.times(Estimate(share, assumed))

    def _assumed_speedup(self, size: Size, width: int) -> float:
        """Between the measured width that is nearest and ``width``, either way; 1 where speedups were measured.

        The true speedup lies between none and its square in two of three cases: in 31 of 45 of what comes with
        qcthreads of PySCF, Psi4 and NWChem.
        """
        if self.speedups:
            return 1.0
        share = self.share(size, width)
        measured = self._seen_s.get(size) or {seen.width for seen, _ in self._timed} or {1}
        ratios = [share / self.share(size, other) for other in measured]
        return min(max(ratio, 1 / ratio) for ratio in ratios)

    def _at_one(self, size: Size) -> Estimate | None:
        """Seconds at width 1, as if speedups were as assumed where they were not measured."""
        before = None if self.borrowed is None else self.borrowed._at_one(size)
        if before is not None:
            at_one = before.times(self._times_prior(size))
        elif self.seconds_law is not None:
            at_one = self.seconds_law.estimate(size)
        else:
            return None
        if size in self._seen_s:
            at_one = _corrected(at_one, self._seen_s[size])
        most_s = min((bound_s for larger, bound_s in self._at_most_s if size.within(larger)), default=math.inf)
        return replace(at_one, value=min(at_one.value, most_s))

    def _times_prior(self, size: Size) -> Estimate:
        """What the prior's seconds are multiplied with: by what was observed, else by theory, to that factor."""
        if self._correction is None:
            return Estimate(self.prior_ratio, self.prior_ratio)
        return self._correction.estimate(size)

    def memory_bytes(self, size: Size) -> Estimate | None:
        """Peak without what further processes add; ``None`` before anything was observed. Of sizes that were seen, the
        highest seen."""
        return _peak(size, self._memory_peaks, self.memory_law)

    def scratch_bytes(self, size: Size) -> Estimate | None:
        """Peak of temporary files; ``None`` where none were seen."""
        return _peak(size, self._scratch_peaks, self.scratch_law)

    def times_s(self, size: Size, widths: Iterable[int]) -> dict[int, float] | None:
        """Seconds by width, as a :class:`Task` takes them; ``None`` before anything was observed."""
        at_one = self._at_one(size)
        return None if at_one is None else {width: at_one.value * self.share(size, width) for width in widths}

    def to_json(self) -> dict[str, Any]:
        """As data; the inverse of :meth:`from_json`."""
        return {
            "method": self.method,
            "useful_width": self.useful_width,
            "observations": [
                {
                    **asdict(seen.size),
                    "width": seen.width,
                    "wall_s": seen.wall_s,
                    "peak_memory_bytes": seen.peak_memory_bytes,
                    "peak_scratch_bytes": seen.peak_scratch_bytes,
                    "at_most_s": seen.at_most_s,
                }
                for seen in self.observations
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostModel:
        """From what :meth:`to_json` gave. InputError where it cannot be such."""
        try:
            useful_width = data["useful_width"]
            return cls(
                method=str(data["method"]),
                useful_width=None if useful_width is None else int(useful_width),
                observations=tuple(_observation(row) for row in data["observations"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"these data are no cost model ({error!r}): {data!r:.200}") from None


def _corrected(law: Estimate, seen_s: Mapping[int, Sequence[float]]) -> Estimate:
    """What the law says of one size, corrected by what was measured of it, as far as that is known (empirical Bayes).

    How far the size is from the law has the law's variance but that of repetition. A time that fits neither to the law
    nor to others weighs less (Huber). Speedups tie what was measured at several widths together: it counts as if each
    width had a part of the measurements.
    """
    variance = math.log(law.factor) ** 2
    repeats = min(_TIMES_REPEAT**2, variance / 2)
    precision = 1 / (variance - repeats)
    seen = [
        (math.log(time_s / law.value), 1 / (repeats * len(seen_s))) for times_s in seen_s.values() for time_s in times_s
    ]
    away, limit = 0.0, _HUBER * math.sqrt(repeats)
    for _ in range(_REWEIGHTINGS):
        weights = [weight * limit / max(limit, abs(log - away)) for log, weight in seen]
        known = precision + sum(weights)
        away = sum(weight * log for (log, _), weight in zip(seen, weights, strict=True)) / known
    return Estimate(law.value * math.exp(away), math.exp(math.sqrt(1 / known + repeats)), "seen")


def _highest(seen: Iterable[tuple[Size, int]]) -> dict[Size, int]:
    """By size, at any width: a program that had little memory did with it, and threads may add to it."""
    highest: dict[Size, int] = {}
    for size, peak in seen:
        if peak > 0:
            highest[size] = max(peak, highest.get(size, 0))
    return highest


def _law_of_peaks(peaks: Mapping[Size, int], resident_bytes: float = 0.0) -> Law | None:
    if not peaks:
        return None
    # Matrices of functions squared are what every method holds; integrals grow with the fourth power.
    values = [float(peak) for peak in peaks.values()]
    return Law.fit(list(peaks), values, 3.0, 0.0, _MEMORY_SCATTER, resident_bytes)


def _peak(size: Size, peaks: Mapping[Size, int], law: Law | None) -> Estimate | None:
    """As seen; else as the law says, but no less than smaller ones took, and no more than larger ones."""
    repeats = math.exp(_MEMORY_SCATTER)
    if size in peaks:
        return Estimate(float(peaks[size]), repeats, "seen")
    if law is None:
        return None
    found = law.estimate(size)
    smaller = max((peak for seen, peak in peaks.items() if seen.within(size)), default=None)
    larger = min((peak for seen, peak in peaks.items() if size.within(seen)), default=None)
    value, factor = max(found.value, smaller or 0), found.factor
    if larger is not None:
        value = min(value, larger)
        factor = min(factor, larger / value * repeats)
    return Estimate(value, factor, "law" if smaller is None or larger is None else "between")


def _log_prior(constant: float, resident: float) -> float:
    """Of a law without a constant: as of one that is a hundredth of what is resident."""
    return -0.5 * (math.log(max(constant / resident, 0.01)) / _RESIDENT_SD) ** 2


def memory_grant(peak: Estimate) -> int:
    """What a calculation is to be given: the peak expected of it, and a margin as wide as that is uncertain."""
    return round(peak.value * max(peak.factor, _MARGIN))


def speedups_of(observations: Iterable[Observation]) -> tuple[tuple[int, SpeedupModel], ...]:
    """By number of basis functions, ascending: of every size that ran at width 1 and at others."""
    walls: dict[int, dict[int, dict[Size, list[float]]]] = {}
    for seen in observations:
        if seen.wall_s is None:
            continue
        by_width = walls.setdefault(seen.size.basis_functions, {})
        by_width.setdefault(seen.width, {}).setdefault(seen.size, []).append(seen.wall_s)
    found = []
    for functions, by_width in sorted(walls.items()):
        if 1 not in by_width or len(by_width) < 2:
            continue
        shares = {}
        for width, by_size in by_width.items():
            # Sizes with as many functions differ in electrons: each is compared with itself.
            both = [median(by_size[size]) / median(by_width[1][size]) for size in by_size if size in by_width[1]]
            if both:
                shares[width] = median(both)
        if len(shares) > 1:
            found.append((functions, SpeedupModel.fit(shares)))
    return tuple(found)


def representative(observations: Iterable[Observation]) -> tuple[Observation, ...]:
    """One for each size and width, with the median of the known times and the highest peaks of all that are alike.

    So a batch of a thousand counts no more than one of a few, and what disturbed some of them does not count.
    """
    alike: dict[tuple[Size, int], list[Observation]] = {}
    for seen in observations:
        alike.setdefault((seen.size, seen.width), []).append(seen)
    return tuple(
        replace(
            group[0],
            wall_s=median_low(known) if (known := [one.wall_s for one in group if one.wall_s is not None]) else None,
            at_most_s=min((one.at_most_s for one in group if one.at_most_s is not None), default=None),
            peak_memory_bytes=max(seen.peak_memory_bytes for seen in group),
            peak_scratch_bytes=max(seen.peak_scratch_bytes for seen in group),
        )
        for group in alike.values()
    )


def thinned(observations: Sequence[Observation], limit: int) -> tuple[Observation, ...]:
    """At most ``limit``, the newest of every size and width first, so that no size is forgotten for another."""
    if len(observations) <= limit:
        return tuple(observations)
    rank: dict[tuple[Size, int], int] = {}
    ranked = []
    for age, seen in enumerate(reversed(observations)):
        nth = rank[seen.size, seen.width] = rank.get((seen.size, seen.width), -1) + 1
        ranked.append((nth, age, seen))
    kept = sorted(ranked, key=lambda entry: entry[:2])[:limit]
    return tuple(seen for _, _, seen in sorted(kept, key=lambda entry: -entry[1]))


def _observation(row: Mapping[str, Any]) -> Observation:
    wall_s, at_most_s = (None if row.get(key) is None else float(row[key]) for key in ("wall_s", "at_most_s"))
    for seconds in (wall_s, at_most_s):
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError(f"{seconds} seconds cannot have been measured")
    size = Size(int(row["basis_functions"]), int(row["electrons"]))
    peaks = int(row["peak_memory_bytes"]), int(row.get("peak_scratch_bytes", 0))
    return Observation(size, int(row["width"]), wall_s, *peaks, at_most_s=at_most_s)


def _features(size: Size, centre: tuple[float, float]) -> tuple[float, float, float]:
    functions = math.log(max(1, size.basis_functions))
    return 1.0, functions - centre[0], math.log(max(1, size.electrons)) - functions - centre[1]


def _fit(
    sizes: Sequence[Size],
    values: Sequence[float],
    constant: float,
    exponents: tuple[float, float],
    deviations: tuple[float, float],
    usual_scatter: float,
) -> PowerLaw:
    """Regression with Huber's weights; of the exponents is known where they are, with standard deviations."""
    import numpy as np

    around = [_features(size, (0.0, 0.0)) for size in sizes]
    centre = (median(row[1] for row in around), median(row[2] for row in around))
    rows = np.array([_features(size, centre) for size in sizes])
    whole = np.array(values)
    target = np.log(whole - constant)
    # Of what is left above the constant, a relative error is so much of one of the whole.
    counts = ((whole - constant) / whole) ** 2
    prior = np.array([float(np.median(target)), *exponents])
    precision = np.diag([sd**-2 for sd in (_FACTOR_SD, *deviations)])
    weights, scatter = np.ones(len(values)), usual_scatter
    for _ in range(_REWEIGHTINGS):
        weighted = rows.T * (weights * counts / scatter**2)
        normal = weighted @ rows + precision
        right = weighted @ target + precision @ prior
        coefficients = np.linalg.solve(normal, right)
        # Of the whole, as it is predicted: that is what matters, and what constants can be compared by.
        residuals = np.log((np.exp(rows @ coefficients) + constant) / whole)
        scatter = _scatter(residuals, usual_scatter)
        weights = 1 / np.maximum(1.0, np.abs(residuals) / (_HUBER * scatter))
    away = coefficients - prior
    # Laplace's approximation; how uncertain the coefficients are counts for a law, as a narrow fit is a lucky one.
    evidence = -len(values) * math.log(scatter) - 0.5 * float(away @ precision @ away + np.linalg.slogdet(normal)[1])
    return PowerLaw(
        constant=constant,
        coefficients=(float(coefficients[0]), float(coefficients[1]), float(coefficients[2])),
        covariance=tuple(tuple(float(number) for number in line) for line in np.linalg.inv(normal)),
        centre=centre,
        scatter=scatter,
        log_evidence=evidence,
    )


def _scatter(residuals: Any, usual: float) -> float:
    """Robust: half of the residuals may be anything. With few, mostly what is usual."""
    import numpy as np

    count = len(residuals)
    seen = 1.4826 * float(np.median(np.abs(residuals)))
    return math.sqrt((_SCATTER_COUNTS_AS * usual**2 + count * seen**2) / (_SCATTER_COUNTS_AS + count))
