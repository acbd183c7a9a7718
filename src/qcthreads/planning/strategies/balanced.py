"""Equal threads per worker, the specification's first strategy; never gives two workers different widths.

Every worker keeps one place for the whole batch. The longest task goes first, each to the worker that is free
soonest (Graham's LPT rule). A task that does not list the workers' width runs at its largest listed width below it, on
a part of the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import islice

from ...cpuset import CpuSet
from ...errors import InputError
from ...machine import Machine
from ...machine.placement import split
from ..model import Placement, Task


def balanced(
    tasks: Sequence[Task],
    machine: Machine,
    usable: CpuSet,
    *,
    memory_bytes: int | None = None,
    width: int | None = None,
) -> Sequence[Placement]:
    """Placements at one width for all workers; without ``width``, the (narrowest) one that ends soonest."""
    if not tasks:
        return ()
    cpus = len(usable)
    narrowest = max(min(task.times_s) for task in tasks)
    if width is None:
        widths = sorted({own for task in tasks for own in task.times_s if narrowest <= own <= cpus})
        width = _best_width(tasks, widths, cpus, memory_bytes)
    elif width < narrowest:
        names = [task.id for task in tasks if min(task.times_s) > width]
        raise InputError(
            f"workers {width} threads wide were asked for, but {', '.join(names[:5])} need more; "
            f"ask for at least {narrowest}"
        )
    workers = _workers(tasks, width, cpus, memory_bytes)
    places = split(machine, usable, workers, width)
    return [
        Placement(task.id, start_s, start_s + task.times_s[own], own, _part(places[worker], own))
        for task, own, worker, start_s in _longest_first(tasks, width, workers)
    ]


def _best_width(tasks: Sequence[Task], widths: list[int], cpus: int, memory_bytes: int | None) -> int:
    best, best_s = widths[0], float("inf")
    for width in widths:
        workers = _workers(tasks, width, cpus, memory_bytes)
        times = [task.times_s[_own_width(task, width)] for task in tasks]
        if max(max(times), sum(times) / workers) < best_s:  # else even a perfect packing is no better
            ends = makespan(times, workers)
            if ends < best_s:
                best, best_s = width, ends
    return best


def makespan(times_s: Sequence[float], workers: int) -> float:
    """When the last of ``workers`` ends under the LPT rule."""
    ends = [0.0] * workers
    for time_s in sorted(times_s, reverse=True):
        heapreplace(ends, ends[0] + time_s)
    return max(ends)


def _workers(tasks: Sequence[Task], width: int, cpus: int, memory_bytes: int | None) -> int:
    workers = min(len(tasks), cpus // width)
    largest = max(task.memory_bytes for task in tasks)
    return workers if memory_bytes is None or not largest else min(workers, memory_bytes // largest)


def _own_width(task: Task, width: int) -> int:
    return width if width in task.times_s else max(own for own in task.times_s if own < width)


def _longest_first(tasks: Sequence[Task], width: int, workers: int) -> list[tuple[Task, int, int, float]]:
    """(task, its width, worker, start), in the order in which they are given out."""
    queue = [(task, _own_width(task, width)) for task in tasks]
    queue.sort(key=lambda entry: (-entry[0].times_s[entry[1]], entry[0].id))
    free = [(0.0, worker) for worker in range(workers)]
    heapify(free)
    placed = []
    for task, own in queue:
        start_s, worker = free[0]
        heapreplace(free, (start_s + task.times_s[own], worker))
        placed.append((task, own, worker, start_s))
    return placed


def _part(place: CpuSet, width: int) -> CpuSet:
    return place if width == len(place) else CpuSet(islice(place, width))
