"""Which CPUs each task of a timetable gets: close together, by LLC domain and memory node; changes no time or width."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from ..cpuset import CpuSet
from ..machine import Machine
from ..machine.placement import compact
from .timetable import Entry


def seat(machine: Machine, usable: CpuSet, entries: Sequence[Entry]) -> list[CpuSet]:
    """Disjoint places for all who run at the same time, in the order of ``entries``.

    Who starts takes over the place of one as wide that has ended, as a worker of that width would, unless that lay
    further apart than need be; else the closest that is free. Of those who start together the widest chooses first.
    """
    room = _Room(machine, usable)
    places = [usable] * len(entries)
    running: list[tuple[float, int]] = []
    for task in sorted(range(len(entries)), key=lambda task: (entries[task][1], -entries[task][0])):
        width, start_s, end_s = entries[task]
        while running and running[0][0] <= start_s:
            room.leave(places[heappop(running)[1]])
        places[task] = room.take(width)
        heappush(running, (end_s, task))
    return places


class _Room:
    """The CPUs that are free, and the places that were left."""

    def __init__(self, machine: Machine, usable: CpuSet) -> None:
        self._machine = machine
        self._free = usable.bits
        self._left: dict[int, list[CpuSet]] = {}
        self._spans: dict[int, int] = {}
        self._domains = [domain.cpus.bits for domain in machine.llc_domains]
        sizes = sorted((len(domain.cpus & usable) for domain in machine.llc_domains), reverse=True)
        self._fewest = [0]  # domains that a place of so many CPUs needs at least
        for number, size in enumerate(sizes, start=1):
            self._fewest += [number] * size

    def leave(self, place: CpuSet) -> None:
        self._free |= place.bits
        self._left.setdefault(len(place), []).append(place)

    def take(self, width: int) -> CpuSet:
        place = self._taken_over(width)
        if place is None or self._span(place) > self._fewest[width]:
            chosen = compact(self._machine, CpuSet.from_bits(self._free), width)
            if place is None or self._span(chosen) < self._span(place):
                place = chosen
        self._free &= ~place.bits
        return place

    def _taken_over(self, width: int) -> CpuSet | None:
        left = self._left.get(width)
        while left:
            place = left.pop()
            if not place.bits & ~self._free:
                return place
        return None

    def _span(self, place: CpuSet) -> int:
        """Over how many LLC domains it lies."""
        span = self._spans.get(place.bits)
        if span is None:
            span = self._spans[place.bits] = sum(1 for domain in self._domains if domain & place.bits)
        return span
