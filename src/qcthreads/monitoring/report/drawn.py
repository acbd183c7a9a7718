"""What the page's script draws, as plain data; knows no HTML and no colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...cpuset import CpuSet
from ...machine import Machine, Region
from ..record import Calculated, RunRecord
from ..statistics import Moment

# Points of a curve: as many as a wide screen has pixels for them, and no closer than the sampler looks; that a lease is
# passed on between two calculations of milliseconds is no dip that anybody should see.
_POINTS = 1500
_CLOSEST_S = 0.1

# Dots of planned against real times lie on a grid so fine, and are drawn once where they lie on one another.
_CELLS = 250

_Interval = tuple[float, float, float]


def drawn(record: RunRecord) -> dict[str, Any]:
    """Everything that depends on time or on a single calculation."""
    used = CpuSet(cpu for one in record.calculations for cpu in one.cpus)
    rows = rows_of(record.machine, used | _alone(record.machine, record.usable, used))
    row_of = {cpu: row for row, cpu in enumerate(rows)}
    return {
        "wall_s": record.wall_s,
        "usable": record.pus_usable.counts,
        "rows": rows,
        "borders": _borders(record.machine, rows),
        "calculations": [_columns(one, row_of) for one in record.calculations],
        "curves": _curves(record),
        "planned": _planned(record.calculations),
    }


def rows_of(machine: Machine, shown: CpuSet) -> list[int]:
    """CPUs in the order of the machine, so that those of a lease lie next to one another: core by core."""
    told = [cpu for region in _narrowest(machine.region) for core in region.cores for cpu in CpuSet.from_bits(core)]
    return [cpu for cpu in dict.fromkeys(told) if cpu in shown] + [cpu for cpu in shown if cpu not in set(told)]


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of consecutive numbers."""
    yield from CpuSet(numbers).ranges()


def mean_over_time(intervals: Sequence[_Interval], wall_s: float, points: int) -> list[float]:
    """How much there was of begin, end, amount: the mean in each of so many equal parts of the time."""
    if not intervals:
        return [0.0] * points
    begins, ends, amounts = (np.array(column) for column in zip(*intervals, strict=True))
    at, change = np.concatenate([begins, ends]), np.concatenate([amounts, -amounts])
    order = np.argsort(at, kind="stable")
    at, level = at[order], np.cumsum(change[order])
    integral = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(at))])
    edges = np.linspace(0.0, wall_s, points + 1)
    means: list[float] = (np.diff(np.interp(edges, at, integral)) * points / wall_s).tolist()
    return means


def _alone(machine: Machine, usable: CpuSet, used: CpuSet) -> CpuSet:
    """What may be used and was not, but for siblings of what was: their rows would stay empty between the others."""
    beside = 0
    for cpu in used:
        beside |= machine.core_bits.get(cpu, 0)
    return usable - CpuSet.from_bits(beside)


def _narrowest(region: Region) -> Iterator[Region]:
    if not region.parts:
        yield region
    for part in region.parts:
        yield from _narrowest(part)


def _borders(machine: Machine, rows: Sequence[int]) -> list[int]:
    """Rows above which another LLC domain begins."""
    domain_of = {cpu: number for number, domain in enumerate(machine.llc_domains) for cpu in domain.cpus}
    domains = [domain_of.get(cpu) for cpu in rows]
    return [row for row in range(1, len(rows)) if domains[row] != domains[row - 1]]


def _columns(one: Calculated, row_of: dict[int, int]) -> dict[str, Any]:
    """What the table shows and the timeline draws of a calculation."""
    planned_s = _planned_s(one)
    wanted_s = one.cpu_s + (one.run_queue_s or 0.0)
    return {
        "label": one.label,
        "group": one.group,
        "attempt": one.attempt,
        "status": one.status,
        "start": _rounded(one.start_s),
        "wall": _rounded(one.wall_s),
        "threads": one.threads,
        "worked": one.threads_working,
        "cpus": str(one.cpus),
        "seen": str(one.cpus_seen),
        "efficiency": _rounded(one.efficiency),
        "queue": None if one.run_queue_s is None else _rounded(one.run_queue_s / wanted_s if wanted_s else 0.0),
        "waited": _rounded(one.waited_s),
        "peak": one.memory_peak_bytes,
        "granted": one.memory_granted_bytes or None,
        "planned": _rounded(planned_s),
        "ratio": _rounded(one.wall_s / planned_s) if planned_s else None,
        "pid": one.pid,
        "error": one.error,
        "rows": list(runs(row_of[cpu] for cpu in one.cpus)),
    }


def _planned_s(one: Calculated) -> float | None:
    if one.planned_start_s is None or one.planned_end_s is None:
        return None
    return one.planned_end_s - one.planned_start_s


def _curves(record: RunRecord) -> dict[str, Any]:
    """Curves over time: of every moment that was seen, and of what was leased."""
    moments = _thinned(record.moments)
    wall_s = record.wall_s
    points = max(50, min(_POINTS, 4 * len(record.calculations), round(wall_s / _CLOSEST_S)))
    leased = [(one.start_s, one.end_s, float(len(one.cpus))) for one in record.calculations]
    granted = [(one.start_s, one.end_s, float(one.memory_granted_bytes)) for one in record.calculations]
    waited = [moment.cpus_waited_for for moment in moments]
    return {
        "begin": [0.0, *(_rounded(moment.at_s) for moment in moments[:-1])] if moments else [],
        "end": [_rounded(moment.at_s) for moment in moments],
        "busy": [_rounded(moment.cpus_busy) for moment in moments],
        "waited": None if None in waited else [_rounded(value) for value in waited],
        "memory": [moment.memory_bytes for moment in moments],
        "points": points,
        "leased": [_rounded(value) for value in mean_over_time(leased, wall_s, points)] if wall_s > 0 else [],
        "granted": [round(value) for value in mean_over_time(granted, wall_s, points)]
        if wall_s > 0 and any(one.memory_granted_bytes for one in record.calculations)
        else None,
    }


def _thinned(moments: Sequence[Moment]) -> list[Moment]:
    """Several together where there are more than can be drawn: the mean of CPUs, the most of memory."""
    step = max(1, math.ceil(len(moments) / _POINTS))
    return [_together(moments[at : at + step]) for at in range(0, len(moments), step)]


def _together(moments: Sequence[Moment]) -> Moment:
    waited = [moment.cpus_waited_for for moment in moments if moment.cpus_waited_for is not None]
    return Moment(
        at_s=moments[-1].at_s,
        cpus_busy=sum(moment.cpus_busy for moment in moments) / len(moments),
        cpus_waited_for=sum(waited) / len(waited) if waited else None,
        memory_bytes=max(moment.memory_bytes for moment in moments),
    )


def _planned(calculations: Sequence[Calculated]) -> list[dict[str, Any]]:
    """Per group: planned and real wall times, and the first and the number of those that lie on one another."""
    pairs = [
        (planned_s, one)
        for one in calculations
        if (planned_s := _planned_s(one)) is not None and planned_s > 0 < one.wall_s and one.status == "finished"
    ]
    if not pairs:
        return []
    least = min(min(planned_s, one.wall_s) for planned_s, one in pairs)
    most = max(max(planned_s, one.wall_s) for planned_s, one in pairs)
    scale = _CELLS / math.log(most / least) if most > least else 0.0
    cells: dict[tuple[str, int, int], dict[str, Any]] = {}
    for planned_s, one in pairs:
        cell = one.group, round(math.log(planned_s / least) * scale), round(math.log(one.wall_s / least) * scale)
        dot = {"planned": _rounded(planned_s), "real": _rounded(one.wall_s), "label": one.label, "count": 0}
        cells.setdefault(cell, dot)["count"] += 1
    groups = sorted({group for group, _, _ in cells})
    return [{"group": name, "dots": [dot for (group, _, _), dot in cells.items() if group == name]} for name in groups]


def _rounded(value: float | None) -> float | None:
    """Six figures: a page of ten thousand calculations is a third smaller, and nobody sees more."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
