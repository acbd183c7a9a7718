"""Which CPUs each task of a timetable gets: close together, by LLC domain and memory node; changes no time or width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import islice
from operator import attrgetter

import numpy as np

from ..cpuset import CpuSet
from ..machine import Machine
from ..machine.placement import compact, split
from .batch import Batch
from .model import Placement
from .timetable import Timetable


def placed(batch: Batch, timetable: Timetable, machine: Machine, usable: CpuSet) -> list[Placement]:
    """The timetable on concrete CPUs: disjoint places for all who run at the same time."""
    timetable = timetable if timetable.turns else timetable.without_moments()
    return _placements(batch, timetable, _places(machine, usable, timetable))


def on_places(batch: Batch, timetable: Timetable, places: Sequence[CpuSet]) -> list[Placement]:
    """Workers that take turns, each at one of the places."""
    return _placements(batch, timetable, _of_workers(timetable, places))


def _placements(batch: Batch, timetable: Timetable, places: Sequence[CpuSet]) -> list[Placement]:
    columns = timetable.starts_s, timetable.ends_s, timetable.widths, places
    rows = zip(map(attrgetter("id"), batch.tasks), *columns, strict=True)
    return list(map(partial(tuple.__new__, Placement), rows))  # as Placement._make does, in half the time


def _places(machine: Machine, usable: CpuSet, timetable: Timetable) -> list[CpuSet]:
    """Of each task; all of a series keep one, as does a worker."""
    if timetable.series is not None:
        of_series = _places(machine, usable, timetable.series.timetable)
        return [of_series[number] for number in timetable.series.series_of]
    turns = timetable.turns
    if turns is not None:
        return _of_workers(timetable, split(machine, usable, turns.count, turns.width))
    return _taken_in_turn(machine, usable, timetable)


def _of_workers(timetable: Timetable, places: Sequence[CpuSet]) -> list[CpuSet]:
    """Each at one of the places, or at the first part of it where the task is narrower."""
    assert timetable.turns is not None

    @cache
    def part(worker: int, width: int) -> CpuSet:
        place = places[worker]
        return place if width == len(place) else CpuSet(islice(place, width))

    return list(map(part, timetable.turns.worker_of, timetable.widths))


def _taken_in_turn(machine: Machine, usable: CpuSet, timetable: Timetable) -> list[CpuSet]:
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
    held = [0] * len(widths)  # sets as bits of ints, for speed
    free = usable.bits
    left: dict[int, list[int]] = {width: [] for width in set(widths)}
    by_start: list[int] = np.lexsort((-np.array(widths), np.array(starts_s))).tolist()
    by_end: list[int] = np.argsort(np.array(ends_s), kind="stable").tolist()
    ended = 0
    for task in by_start:
        width, start_s = widths[task], starts_s[task]
        if start_s == ends_s[task]:  # it takes no time, and keeps nobody waiting
            places[task] = compact(machine, usable, width)
            continue
        while ends_s[by_end[ended]] <= start_s:
            before = by_end[ended]
            ended += 1
            if held[before]:
                free |= held[before]
                left[widths[before]].append(held[before])
        bits = _taken_over(left[width], free)
        if not bits or (width > 1 and span(bits) > fewest[width]):
            closest = compact(machine, CpuSet.from_bits(free), width).bits
            if not bits or span(closest) < span(bits):
                bits = closest
        free &= ~bits
        held[task] = bits
        place = made.get(bits)
        if place is None:
            place = made[bits] = CpuSet.from_bits(bits)
        places[task] = place
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
