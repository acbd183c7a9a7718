"""Which CPUs each task of a timetable gets: close together, by LLC domain and memory node; changes no time or width."""

from __future__ import annotations

from collections.abc import Sequence
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
from .timetable import Entry, Timetable, Turns


def placed(batch: Batch, timetable: Timetable, machine: Machine, usable: CpuSet) -> list[Placement]:
    """The timetable on concrete CPUs: disjoint places for all who run at the same time."""
    entries = timetable.entries
    if timetable.turns is not None:
        places = _workers_places(machine, usable, entries, timetable.turns)
    else:
        # What takes no time, or none that rounding leaves, is done before all else, where it is in nobody's way.
        entries = [entry if entry[1] < entry[2] else (entry[0], 0.0, 0.0) for entry in entries]
        places = _places(machine, usable, entries)
    widths, starts_s, ends_s = zip(*entries, strict=True) if entries else ((), (), ())
    return list(map(Placement, map(attrgetter("id"), batch.tasks), starts_s, ends_s, widths, places))


def _workers_places(machine: Machine, usable: CpuSet, entries: Sequence[Entry], turns: Turns) -> list[CpuSet]:
    """The place of each task's worker, or the first part of it where the task is narrower."""
    places = split(machine, usable, turns.count, turns.width)

    @cache
    def part(worker: int, width: int) -> CpuSet:
        place = places[worker]
        return place if width == len(place) else CpuSet(islice(place, width))

    return [part(worker, width) for worker, (width, _, _) in zip(turns.worker_of, entries, strict=True)]


def _places(machine: Machine, usable: CpuSet, entries: Sequence[Entry]) -> list[CpuSet]:
    """Who starts takes over the place of one as wide that has ended, as a worker of that width would, unless that lay
    further apart than need be; else the closest that is free. Of those who start together the widest chooses first.
    """
    domains = [domain.cpus.bits for domain in machine.llc_domains]
    fewest = _fewest_domains(machine, usable)

    @cache
    def span(bits: int) -> int:
        return sum(1 for domain in domains if domain & bits)

    made: dict[int, CpuSet] = {}
    places = [usable] * len(entries)
    free = usable.bits  # sets as bits of ints, for speed
    left: dict[int, list[int]] = {width: [] for width, _, _ in entries}
    running: list[tuple[float, int, int]] = []
    for task in _by_start(entries):
        width, start_s, end_s = entries[task]
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


def _by_start(entries: Sequence[Entry]) -> list[int]:
    widths = np.fromiter((width for width, _, _ in entries), dtype=np.int64, count=len(entries))
    starts_s = np.fromiter((start_s for _, start_s, _ in entries), dtype=np.float64, count=len(entries))
    order: list[int] = np.lexsort((-widths, starts_s)).tolist()
    return order


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
