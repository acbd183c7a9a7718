"""What is wrong with a plan that somebody else made: every promise that a plan keeps, looked at; mends nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from ..cpuset import CpuSet
from ..units import format_count, format_some
from .batch import Batch
from .model import ROUNDING, Placement

_OFF = 1e-9  # by this part of a time a duration may be off, which comes from rounding
_Need = Callable[[int, int], float]


def fault_of(placements: Sequence[Placement], batch: Batch, usable: CpuSet) -> str:
    """The first thing that is wrong, with the task that it is wrong of; empty where nothing is.

    Each task is there once, at a width that it lists and has room at, for the time that it takes there, on as many of
    the ``usable`` CPUs; and at no time has a CPU two tasks, or is there more memory, disk or bandwidth in use than the
    batch may have. What takes no time is in nobody's way.
    """
    return next(_faults(placements, batch, usable), "")


def _faults(placements: Sequence[Placement], batch: Batch, usable: CpuSet) -> Iterator[str]:
    strange = next((one for one in placements if not isinstance(one, Placement)), None)
    if strange is not None:
        yield f"{strange!r:.60} is among the placements, and no qcthreads.planning.Placement"
        return
    placed = Counter(one.id for one in placements)
    rows = {task.id: row for row, task in enumerate(batch)}
    if missing := [repr(name) for name in rows if name not in placed]:
        yield f"{format_some(missing)} of {format_count(len(rows), 'task')} not placed"
    for name, count in placed.items():
        if name not in rows:
            yield f"task {name!r} is placed, but was not given"
        elif count > 1:
            yield f"task {name!r} is placed {count} times"
    rounding_s = ROUNDING * max((one.end_s for one in placements), default=0.0)
    for one in placements:
        if wrong := _alone(one, batch, rows[one.id], usable, rounding_s):
            yield f"task {one.id!r} {wrong}"
    yield from _together(placements, batch, rows)


def _alone(one: Placement, batch: Batch, row: int, usable: CpuSet, rounding_s: float) -> str:
    """What is wrong with one placement, whatever runs beside it."""
    listed = zip(batch.widths[row].tolist(), batch.times_s[row].tolist(), strict=True)
    times_s = {width: time_s for width, time_s in listed if math.isfinite(time_s)}
    if one.threads not in times_s:
        return f"has {one.threads!r} threads; it may have {', '.join(map(str, times_s))}"
    if not isinstance(one.cpus, CpuSet) or len(one.cpus) != one.threads:
        return f"has the CPUs {one.cpus!s:.60} for {format_count(one.threads, 'thread')}"
    if not one.cpus <= usable:
        return f"has the CPUs {one.cpus - usable}, of which none may be used; those are {usable}"
    if not 0 <= one.start_s <= one.end_s < math.inf:
        return f"runs from {one.start_s!r} s to {one.end_s!r} s"
    took_s, time_s = one.end_s - one.start_s, times_s[one.threads]
    if not math.isclose(took_s, time_s, rel_tol=_OFF, abs_tol=rounding_s):
        return f"runs for {took_s:g} s; with {format_count(one.threads, 'thread')} it takes {time_s:g} s"
    return ""


def _together(placements: Sequence[Placement], batch: Batch, rows: dict[str, int]) -> Iterator[str]:
    """What is wrong with those that run at the same time: looked at whenever one starts."""
    limits = _limits(batch)
    ends = [one.end_s * (1 - ROUNDING) for one in placements]
    lasting = [at for at, one in enumerate(placements) if one.start_s < ends[at]]
    by_start = sorted(lasting, key=lambda at: placements[at].start_s)
    by_end = sorted(lasting, key=lambda at: ends[at])
    held, used, ended = 0, [0.0] * len(limits), 0
    for at in by_start:
        one = placements[at]
        while ends[by_end[ended]] <= one.start_s:
            gone = placements[by_end[ended]]
            held &= ~gone.cpus.bits
            used = [sum_ - need(rows[gone.id], gone.threads) for sum_, (_, _, need) in zip(used, limits, strict=True)]
            ended += 1
        if twice := held & one.cpus.bits:
            yield f"task {one.id!r} has the CPUs {CpuSet.from_bits(twice)} at {one.start_s:g} s, which another has then"
            return
        held |= one.cpus.bits
        used = [sum_ + need(rows[one.id], one.threads) for sum_, (_, _, need) in zip(used, limits, strict=True)]
        for in_use, (name, whole, _) in zip(used, limits, strict=True):
            if in_use > whole * (1 + _OFF):
                yield f"task {one.id!r} makes it {in_use:g} of {name} at {one.start_s:g} s, of {whole:g} that there are"


def _limits(batch: Batch) -> list[tuple[str, float, _Need]]:
    """What may run short: its name, how much there is, and how much a task (by its row) needs of it at a width."""
    limits: list[tuple[str, float, _Need]] = [
        (f"bytes of {space.name}", space.whole, space.of) for space in batch.spaces
    ]
    if batch.moved_s.any():
        limits.append(("bytes per second", batch.capacity.bandwidth_bytes_per_s, _rate_of(batch)))
    return limits


def _rate_of(batch: Batch) -> _Need:
    def rate(row: int, width: int) -> float:
        time_s = max(batch.tasks[row].times_s[width], float(batch.moved_s[row]))
        return float(batch.traffic_bytes[row]) / time_s if time_s else 0.0

    return rate
