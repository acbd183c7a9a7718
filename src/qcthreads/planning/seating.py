"""Which CPUs each task of a timetable gets: close together, by LLC domain and memory node; changes no time or width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from heapq import heappop, heappush
from itertools import islice
from operator import attrgetter

import numpy as np

from ..cpuset import CpuSet
from ..machine import Machine
from ..machine.placement import compact, split
from .batch import Batch
from .model import Placement
from .timetable import Timetable, Turns


def placed(batch: Batch, timetable: Timetable, machine: Machine, usable: CpuSet) -> list[Placement]:
    """The timetable on concrete CPUs: disjoint places for all who run at the same time."""
    if timetable.turns is not None:
        places = _workers_places(machine, usable, timetable.widths, timetable.turns)
    else:
        timetable = _without_moments(timetable)
        places = _places(machine, usable, timetable)
    columns = timetable.starts_s, timetable.ends_s, timetable.widths, places
    return list(map(Placement._make, zip(map(attrgetter("id"), batch.tasks), *columns, strict=True)))


def _workers_places(machine: Machine, usable: CpuSet, widths: Sequence[int], turns: Turns) -> list[CpuSet]:
    """The place of each task's worker, or the first part of it where the task is narrower."""
    places = split(machine, usable, turns.count, turns.width)

    @cache
    def part(worker: int, width: int) -> CpuSet:
        place = places[worker]
        return place if width == len(place) else CpuSet(islice(place, width))

    return list(map(part, turns.worker_of, widths))


def _without_moments(timetable: Timetable) -> Timetable:
    """What takes no time, or none that rounding leaves, is done before all else, where it is in nobody's way."""
    starts_s, ends_s = np.array(timetable.starts_s), np.array(timetable.ends_s)
    moments = starts_s >= ends_s
    if not moments.any():
        return timetable
    starts_s[moments] = ends_s[moments] = 0.0
    return replace(timetable, starts_s=starts_s.tolist(), ends_s=ends_s.tolist())


def _places(machine: Machine, usable: CpuSet, timetable: Timetable) -> list[CpuSet]:
    """Who starts takes over the place of one as wide that has ended, as a worker of that width would, unless that lay
    further apart than need be; else the closest that is free. Of those who start together the widest chooses first.
    """
    domains = [domain.cpus.bits for domain in machine.llc_domains]
    fewest = _fewest_domains(machine, usable)

    @cache
    def span(bits: int) -> int:
        return sum(1 for domain in domains if domain & bits)

    made: dict[int, CpuSet] = {}
    widths, starts_s, ends_s = timetable.widths, timetable.starts_s, timetable.ends_s
    places = [usable] * len(widths)
    free = usable.bits  # sets as bits of ints, for speed
    left: dict[int, list[int]] = {width: [] for width in set(widths)}
    running: list[tuple[float, int, int]] = []
    by_start: list[int] = np.lexsort((-np.array(widths), np.array(starts_s))).tolist()
    for task in by_start:
        width, start_s, end_s = widths[task], starts_s[task], ends_s[task]
        if start_s == end_s:  # it takes no time, and keeps nobody waiting
            places[task] = compact(machine, usable, width)
            continue
        while running and running[0][0] <= start_s:
            _, bits, as_wide = heappop(running)
            free |= bits
            left[as_wide].append(bits)
        bits = _taken_over(left[width], free)
        if not bits or (width > 1 and span(bits) > fewest[width]):
            closest = compact(machine, CpuSet.from_bits(free), width).bits
            if not bits or span(closest) < span(bits):
                bits = closest
        free &= ~bits
        place = made.get(bits)
        if place is None:
            place = made[bits] = CpuSet.from_bits(bits)
        places[task] = place
        heappush(running, (end_s, bits, width))
    return places


def _taken_over(left: list[int], free: int) -> int:
    """The place that was left last and is still free; 0 where there is none."""
    while left:
        bits = left.pop()
        if not bits & ~free:
            return bits
    return 0


def _fewest_domains(machine: Machine, usable: CpuSet) -> list[int]:
    """How many LLC domains a place of so many CPUs needs at least."""
    fewest = [0]
    sizes = sorted((len(domain.cpus & usable) for domain in machine.llc_domains), reverse=True)
    for number, size in enumerate(sizes, start=1):
        fewest += [number] * size
    return fewest
