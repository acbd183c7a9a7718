"""Time and place together, where memory nodes hold no more than they have; binds nothing, and asks no machine.

A task's memory lies on the nodes of its CPUs, as much on each as it has of them, as first touch puts it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
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
from .batch import Batch, Floats, Integers
from .bounds import bound_at, bounds_of
from .memory import Node
from .model import Placement, Task
from .seating import on_places
from .timetable import Layout, Timetable
from .uniform import promising

_LOOK_AHEAD = 64  # of those that wait, how many are tried for a place
_PACES = (1.0, 1.1, 1.3, 1.6, 2.0)  # deadlines for single tasks, as multiples of the bound
# Attempts by lists in all, by the square of the number of tasks, and never fewer.
_BUDGET, _FEWEST = 1_000_000, 4
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


def shortest_by_node(batch: Batch, machine: Machine, nodes: Sequence[Node], whole: Timetable) -> list[Placement]:
    """Workers of one width, each on one node, and list scheduling over several widths and orders: what ends soonest.

    ``whole``: the shortest timetable where memory is of the whole machine, whose widths and order are tried first.
    """
    total = sum(node.memory_bytes for node in nodes)
    batch = Batch.of(batch.tasks, replace(batch.capacity, memory_bytes=min(total, batch.capacity.memory_bytes)))
    best, best_s = _by_workers(batch, machine, nodes), math.inf
    if best:
        best_s = max(placement.end_s for placement in best)
    left = max(_FEWEST, _BUDGET // len(batch) ** 2)
    many = left == _FEWEST
    for layout, widths, times_s, order in _attempts(batch, whole):
        if many and bound_at(batch, widths, times_s) >= best_s:  # though who is divided may get another width
            continue
        demands = _demanded(batch, nodes, layout, widths, times_s)
        if _bound_s(batch, demands) >= best_s:
            continue
        starts = _Schedule(nodes, layout, demands).run(order)
        ends_s = max(start.at_s + start.demand.time_s for start in starts)
        if ends_s < best_s:
            best, best_s = _seated(batch, machine, nodes, starts), ends_s
        left -= 1
        if not left:
            break
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


def _attempts(batch: Batch, whole: Timetable) -> Iterator[tuple[Layout, Integers, Floats, list[int]]]:
    """Widths, times and orders: those of the whole; each uniform width, the most promising first; then many widths.

    Of these each once: the longest first, then those that hold most for long. Of more than a few hundred tasks the
    budget ends before them.
    """
    chosen = np.arange(len(batch)), batch.columns(whole.widths)
    widths, times_s = batch.widths[chosen], batch.times_s[chosen]
    layout = Layout(batch, batch.choices())
    yield layout, widths, times_s, np.lexsort((-widths, np.array(whole.starts_s))).tolist()
    for workers in sorted(promising(batch), key=lambda one: bound_at(batch, one.widths, one.times_s)):
        needs = batch.memory.at(workers.widths)
        for key in (needs, needs * workers.times_s, workers.times_s):
            yield layout, workers.widths, workers.times_s, np.argsort(-key, kind="stable").tolist()
    bounds = sorted(bounds_of(batch), key=lambda bound: -bound[0])
    layouts = [Layout(batch, choices) for _, choices in bounds[:3]]
    seen: set[bytes] = set()
    for pace in _PACES:
        for largest in (False, True):
            for layout in layouts:
                widths, times_s = layout.choices.at(pace * bounds[0][0])
                key = times_s * batch.memory.at(widths) if largest else times_s
                order = np.argsort(-key, kind="stable")
                known = widths.tobytes() + order.tobytes()
                if known not in seen:
                    seen.add(known)
                    yield layout, widths, times_s, order.tolist()


_Parts = list[tuple[int, int]]
"""Nodes, by their number, and how many CPUs of each."""


class _Demand(NamedTuple):
    """What a task takes up, at the width it is to have; and of how many nodes at most, 0 where none hold it."""

    width: int
    time_s: float
    memory_bytes: float
    taken: int
    """Of the whole machine's :class:`~.space.Room`."""
    most: int


class _Start(NamedTuple):
    """A task that starts, and where."""

    task: int
    at_s: float
    demand: _Demand
    parts: _Parts


def _demanded(batch: Batch, nodes: Sequence[Node], layout: Layout, widths: Integers, times_s: Floats) -> list[_Demand]:
    """Of each task at its width, where a node of the empty machine holds that; else at one that several hold."""
    needs = batch.memory.at(widths)
    held = np.zeros(len(batch), dtype=bool)
    for node in nodes:
        held |= (widths <= len(node.cpus)) & (needs * _ROUNDED <= node.memory_bytes)
    columns = widths.tolist(), times_s.tolist(), needs.tolist(), layout.all_taken(widths, times_s)
    return [
        _Demand(*one, 1) if on_one else _divided(layout, nodes, row, batch.tasks[row], *one[:2])
        for row, (one, on_one) in enumerate(zip(zip(*columns, strict=True), held.tolist(), strict=True))
    ]


def _divided(layout: Layout, nodes: Sequence[Node], row: int, task: Task, width: int, time_s: float) -> _Demand:
    """At the first width from that on that the empty machine holds, else at the fastest that it does."""
    cpus, memory = [len(node.cpus) for node in nodes], [float(node.memory_bytes) for node in nodes]
    narrower = (choice for choice in reversed(layout.row(row)) if choice[0] < width)
    most = 0
    for wide, took_s in ((width, time_s), *layout.as_wide(row, width + 1), *narrower):
        parts = _divide(cpus, memory, wide, task.needs_bytes(wide), len(nodes))
        if parts is not None:
            width, time_s, most = wide, took_s, len(parts)
            break
    return _Demand(width, time_s, task.needs_bytes(width), layout.taken(row, width, time_s), most)


def _bound_s(batch: Batch, demands: Sequence[_Demand]) -> float:
    """Seconds below which no schedule of them can end."""
    widths, times_s, *_ = zip(*demands, strict=True)
    return bound_at(batch, np.array(widths), np.array(times_s))


class _Schedule:
    """List scheduling; so much is free of each node, and of the whole."""

    def __init__(self, nodes: Sequence[Node], layout: Layout, demands: Sequence[_Demand]) -> None:
        self._cpus = [len(node.cpus) for node in nodes]
        self._memory = [float(node.memory_bytes) for node in nodes]
        self._free, self._guard = layout.room.empty, layout.room.guard
        self._demands = demands
        self._largest_first = False
        """Whether they come in order of their memory, each to stay on one node: who needs too much is passed over."""

    def run(self, order: Sequence[int]) -> list[_Start]:
        """Whenever something ends, those that fit start, the first in order first."""
        waiting = list(reversed(order))
        needs = [self._demands[task].memory_bytes for task in waiting]
        self._largest_first = needs == sorted(needs) and all(demand.most == 1 for demand in self._demands)
        running: list[tuple[float, int]] = []  # when it ends, and its number among the starts
        starts: list[_Start] = []
        now_s, lonely = 0.0, False
        while waiting:
            if not lonely:
                for task, parts in self._started(waiting, alone=not running):
                    demand = self._demands[task]
                    lonely = not demand.most
                    heappush(running, (now_s + demand.time_s, len(starts)))
                    starts.append(_Start(task, now_s, demand, parts))
            if waiting:
                now_s, number = heappop(running)
                self._change(starts[number].demand, starts[number].parts, 1)
                lonely = lonely and bool(running)
        return starts

    def _started(self, waiting: list[int], alone: bool) -> Iterator[tuple[int, _Parts]]:
        """Those that have room now, no longer waiting, the first in order (its end comes first) first; and where."""
        demands, guard, free = self._demands, self._guard, self._free
        roomiest: dict[int, float] = {}
        at = self._fitting(waiting, len(waiting))
        last = max(0, at - _LOOK_AHEAD)
        while at > last:
            at -= 1
            demand = demands[waiting[at]]
            if free - demand.taken & guard != guard:
                continue
            if demand.most == 1:
                if demand.width not in roomiest:
                    roomiest[demand.width] = self._roomiest(demand.width)
                if demand.memory_bytes * _ROUNDED > roomiest[demand.width]:
                    continue
            parts = self._parts(demand, alone)
            if parts is None:
                continue
            self._change(demand, parts, -1)
            free, last, alone = self._free, max(0, last - 1), False
            roomiest.clear()
            yield waiting.pop(at), parts
            if not demand.most:
                return
            fitting = self._fitting(waiting, at)
            at, last = fitting, max(0, last - at + fitting)

    def _fitting(self, waiting: list[int], upto: int) -> int:
        """Up to which of those that wait, but not beyond ``upto``, some may fit."""
        if not self._largest_first:
            return upto if any(self._cpus) else 0
        most = self._roomiest(1) / _ROUNDED
        return bisect_right(waiting, most, hi=upto, key=lambda task: self._demands[task].memory_bytes)

    def _roomiest(self, width: int) -> float:
        """The most memory that a node has with so many CPUs."""
        return max((has for has, cpus in zip(self._memory, self._cpus, strict=True) if cpus >= width), default=-1.0)

    def _parts(self, demand: _Demand, alone: bool) -> _Parts | None:
        """Where there is room now."""
        cpus = self._cpus
        if demand.most:
            return _divide(cpus, self._memory, demand.width, demand.memory_bytes, demand.most)
        # No division holds it: it runs alone, with its memory wherever there is some.
        return _divide(cpus, [math.inf] * len(cpus), demand.width, 0, len(cpus)) if alone else None

    def _change(self, demand: _Demand, parts: _Parts, sign: int) -> None:
        """Give back (1) or take (-1) what a task has."""
        self._free += sign * demand.taken
        for number, count in parts:
            self._cpus[number] += sign * count
            self._memory[number] += sign * demand.memory_bytes * count / demand.width


def _seated(batch: Batch, machine: Machine, nodes: Sequence[Node], starts: Sequence[_Start]) -> list[Placement]:
    """On which CPUs of its nodes each is; ``starts`` are in order of time."""
    free = [node.cpus for node in nodes]
    running: list[tuple[float, int, list[tuple[int, CpuSet]]]] = []
    placements: list[Placement] = []
    for turn, start in enumerate(starts):
        while running and running[0][0] <= start.at_s:
            for number, cpus in heappop(running)[2]:
                free[number] |= cpus
        own = [(number, compact(machine, free[number], count)) for number, count in start.parts]
        for number, cpus in own:
            free[number] -= cpus
        end_s = start.at_s + start.demand.time_s
        heappush(running, (end_s, turn, own))
        place = reduce(or_, (cpus for _, cpus in own))
        placements.append(Placement(batch.tasks[start.task].id, start.at_s, end_s, start.demand.width, place))
    return placements


def _divide(cpus: list[int], memory: list[float], width: int, need: float, most: int) -> _Parts | None:
    """Over as few nodes as possible, at most ``most``; None: not now."""
    numbers = range(len(cpus))
    fitting = [number for number in numbers if cpus[number] >= width and memory[number] >= need * _ROUNDED]
    if fitting:
        tightest = min(fitting, key=lambda number: (memory[number], cpus[number]))
        return [(tightest, width)]
    if most == 1:
        return None
    orders = [sorted(numbers, key=room.__getitem__, reverse=True) for room in (cpus, memory)]
    for together in range(2, min(most, width) + 1):
        for roomiest in orders:
            counts, left = [0] * len(cpus), width
            # The least roomy first: what it cannot take is left to the others.
            for rank, number in enumerate(reversed(roomiest[:together])):
                counts[number] = min(cpus[number], left // (together - rank))
                left -= counts[number]
            parts = ((memory[number], need * counts[number] / width) for number in roomiest[:together])
            if not left and all(has >= part * _ROUNDED for has, part in parts):
                return [(number, count) for number, count in enumerate(counts) if count]
    return None
