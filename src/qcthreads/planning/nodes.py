"""Time and place together, where memory nodes hold no more than they have; binds nothing, and asks no machine.

A task's memory lies on the nodes of its CPUs, as much on each as it has of them, as first touch puts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from heapq import heappop, heappush
from operator import or_
from typing import NamedTuple

import numpy as np

from ..cpuset import CpuSet
from ..machine import Machine
from ..machine.placement import compact, split
from .batch import Batch
from .bounds import bounds_of
from .memory import Node
from .model import Placement, Task
from .seating import on_places
from .space import Amount
from .timetable import Layout, Timetable
from .uniform import promising

_LOOK_AHEAD = 64  # of those that wait, how many are tried for a place
_PACES = (1.0, 1.1, 1.3, 1.6, 2.0)  # deadlines for single tasks, as multiples of the bound
_BUDGET = 20_000  # placements by lists in all
_ROUNDED = 1 - 1e-9  # what is given back is not all that was taken


def crowded(batch: Batch, nodes: Sequence[Node]) -> bool:
    """Whether a node might have to hold more than it has, were its CPUs given to the tasks that need most."""
    largest = np.sort(batch.most_bytes)[::-1]
    return any(float(largest[: len(node.cpus)].sum()) > node.memory_bytes for node in nodes)


def overfull(batch: Batch, nodes: Sequence[Node], placements: Sequence[Placement]) -> int | None:
    """The number of a node that would have to hold more than it has."""
    if not crowded(batch, nodes):
        return None
    need = {task.id: task.needs_bytes for task in batch.tasks}
    held = [0.0] * len(nodes)
    running: list[tuple[float, int, list[float]]] = []
    for number, placement in enumerate(sorted(placements, key=lambda placement: placement.start_s)):
        while running and running[0][0] <= placement.start_s:
            held = [total - part for total, part in zip(held, heappop(running)[2], strict=True)]
        each = need[placement.id](placement.threads) / len(placement.cpus)
        parts = [each * len(placement.cpus & node.cpus) for node in nodes]
        held = [total + part for total, part in zip(held, parts, strict=True)]
        heappush(running, (placement.end_s, number, parts))
        for node, total in zip(nodes, held, strict=True):
            if total > node.memory_bytes * (1 + 1e-9):
                return node.node_id
    return None


def shortest_by_node(batch: Batch, machine: Machine, nodes: Sequence[Node]) -> list[Placement]:
    """Workers of one width, each on one node, and list scheduling over several widths and orders: what ends soonest."""
    total = sum(node.memory_bytes for node in nodes)
    batch = Batch.of(batch.tasks, replace(batch.capacity, memory_bytes=min(total, batch.capacity.memory_bytes)))
    best, best_s = _by_workers(batch, machine, nodes), math.inf
    if best:
        best_s = max(placement.end_s for placement in best)
    for number, (layout, order, deadline_s) in enumerate(_attempts(batch)):
        if number and number * len(batch) > _BUDGET:
            break
        schedule = _Schedule(batch, nodes, layout, deadline_s)
        starts = schedule.run(order)
        ends_s = max(start.at_s + start.demand.time_s for start in starts)
        if ends_s < best_s:
            best, best_s = _seated(batch, machine, nodes, starts), ends_s
    return best


def _by_workers(batch: Batch, machine: Machine, nodes: Sequence[Node]) -> list[Placement]:
    """As many workers of one width on each node as it has CPUs and memory for, and all of them bandwidth and disk."""
    best, at = Timetable((), (), (), (), math.inf), list[CpuSet]()
    for workers in promising(batch):
        largest = float(batch.memory.at(workers.widths).max())
        places = [
            place
            for node in nodes
            if (most := _most(node, workers.width, largest))
            for place in split(machine, node.cpus, most, workers.width)
        ]
        workers = replace(workers, count=min(workers.count, len(places)))
        if not places or workers.bound_s >= best.makespan_s:
            continue
        for found in (workers.longest_first, workers.give_out(range(len(batch)))):
            if found.makespan_s < best.makespan_s:
                best, at = found, places
    return on_places(batch, best, at) if at else []


def _most(node: Node, width: int, need: float) -> int:
    """How many so wide that need so much have room on a node."""
    most = len(node.cpus) // width
    return min(most, int(node.memory_bytes // need)) if need else most


def _attempts(batch: Batch) -> Iterator[tuple[Layout, list[int], float]]:
    bounds = sorted(bounds_of(batch), key=lambda bound: -bound[0])
    for pace in _PACES:
        for _, choices in bounds[:3]:
            layout, deadline_s = Layout(batch, choices), pace * bounds[0][0]
            widths, times_s = map(np.array, layout.chosen(deadline_s))
            for key in (-times_s, -times_s * batch.memory.at(widths)):
                yield layout, np.argsort(key, kind="stable").tolist(), deadline_s


class _Demand(NamedTuple):
    """What a task takes up, at the width it is to have; and of how many nodes at most, 0 where none hold it."""

    width: int
    time_s: float
    memory_bytes: int
    need: Amount
    rate: int
    most: int


class _Start(NamedTuple):
    """A task that starts, and so many CPUs of each node."""

    task: int
    at_s: float
    demand: _Demand
    counts: list[int]


class _Schedule:
    """List scheduling; so much is free of each node, and room of the whole."""

    def __init__(self, batch: Batch, nodes: Sequence[Node], layout: Layout, deadline_s: float) -> None:
        self._free = [len(node.cpus) for node in nodes]
        self._memory = [float(node.memory_bytes) for node in nodes]
        widths = layout.chosen(deadline_s)[0]
        self._demands = [self._demand(layout, row, task, widths[row]) for row, task in enumerate(batch.tasks)]
        self._room = layout.room
        self._bandwidth = layout.bandwidth

    def run(self, order: Sequence[int]) -> list[_Start]:
        """Whenever something ends, those that fit start, the first in order first."""
        waiting = list(reversed(order))
        running: list[tuple[float, int]] = []  # when it ends, and its number among the starts
        starts: list[_Start] = []
        now_s, lonely = 0.0, False
        while waiting:
            started = None if lonely and running else self._start_one(waiting, alone=not running)
            if started is None:
                now_s, number = heappop(running)
                self._change(starts[number], 1)
                continue
            task, counts = started
            start = _Start(task, now_s, self._demands[task], counts)
            lonely = not start.demand.most
            self._change(start, -1)
            heappush(running, (now_s + start.demand.time_s, len(starts)))
            starts.append(start)
        return starts

    def _start_one(self, waiting: list[int], alone: bool) -> tuple[int, list[int]] | None:
        """The first in order (its end comes first) that has room now, no longer waiting, and where."""
        cpus = sum(self._free)
        if not cpus:
            return None
        memory = sum(self._memory) / _ROUNDED
        roomless: set[_Demand] = set()
        for at in range(len(waiting) - 1, max(-1, len(waiting) - 1 - _LOOK_AHEAD), -1):
            demand = self._demands[waiting[at]]
            if demand.width > cpus or demand.memory_bytes > memory or demand.rate > self._bandwidth:
                continue
            if not demand.need <= self._room:
                continue
            if demand in roomless:
                continue
            counts = self._counts(demand, alone)
            if counts is not None:
                return waiting.pop(at), counts
            roomless.add(demand)
        return None

    def _counts(self, demand: _Demand, alone: bool) -> list[int] | None:
        """How many CPUs of each node, where there is room now."""
        free = self._free
        if demand.most:
            return _divide(free, self._memory, demand.width, demand.memory_bytes, demand.most)
        # No division holds it: it runs alone, with its memory wherever there is some.
        return _divide(free, [math.inf] * len(free), demand.width, 0, len(free)) if alone else None

    def _demand(self, layout: Layout, row: int, task: Task, width: int) -> _Demand:
        """The cheapest width in time that the empty machine holds, else the fastest that it does."""
        wider = layout.as_wide(row, width)
        narrower = [choice for choice in layout.row(row) if choice not in wider]
        (width, time_s), most = wider[0], 0
        for wide, took_s in (*wider, *reversed(narrower)):
            counts = _divide(self._free, self._memory, wide, task.needs_bytes(wide), len(self._free))
            if counts is not None:
                width, time_s, most = wide, took_s, sum(1 for count in counts if count)
                break
        return _Demand(width, time_s, task.needs_bytes(width), layout.need(row, width), layout.rate(row, time_s), most)

    def _change(self, start: _Start, sign: int) -> None:
        """Give back (1) or take (-1) what a task has."""
        demand = start.demand
        self._room = self._room + demand.need if sign > 0 else self._room - demand.need
        self._bandwidth += sign * demand.rate
        for number, count in enumerate(start.counts):
            if count:
                self._free[number] += sign * count
                self._memory[number] += sign * demand.memory_bytes * count / demand.width


def _seated(batch: Batch, machine: Machine, nodes: Sequence[Node], starts: Sequence[_Start]) -> list[Placement]:
    """On which CPUs of its nodes each is; ``starts`` are in order of time."""
    free = [node.cpus for node in nodes]
    running: list[tuple[float, int, list[CpuSet]]] = []
    placements: list[Placement] = []
    for number, start in enumerate(starts):
        while running and running[0][0] <= start.at_s:
            free = [cpus | own for cpus, own in zip(free, heappop(running)[2], strict=True)]
        parts = [
            compact(machine, cpus, count) if count else CpuSet() for cpus, count in zip(free, start.counts, strict=True)
        ]
        free = [cpus - own for cpus, own in zip(free, parts, strict=True)]
        end_s = start.at_s + start.demand.time_s
        heappush(running, (end_s, number, parts))
        place = reduce(or_, parts)
        placements.append(Placement(batch.tasks[start.task].id, start.at_s, end_s, start.demand.width, place))
    return placements


def _divide(cpus: list[int], memory: list[float], width: int, need: float, most: int) -> list[int] | None:
    """How many CPUs of each node, over as few nodes as possible, at most ``most``; None: not now."""
    counts = [0] * len(cpus)
    fitting = [number for number in range(len(cpus)) if cpus[number] >= width and memory[number] >= need * _ROUNDED]
    if fitting:
        counts[min(fitting, key=cpus.__getitem__)] = width
        return counts
    if most == 1:
        return None
    roomiest = sorted(range(len(cpus)), key=lambda number: -cpus[number])
    for together in range(2, min(most, width) + 1):
        left = width
        # The least roomy first: what it cannot take is left to the others.
        for rank, number in enumerate(reversed(roomiest[:together])):
            counts[number] = min(cpus[number], left // (together - rank))
            left -= counts[number]
        if not left and all(
            memory[number] * width >= need * counts[number] * _ROUNDED for number in roomiest[:together]
        ):
            return counts
    return None
