"""A batch run on a machine that is not there, under a clock that jumps: for tests and benchmarks.

Drives the dispatcher that a real run asks; the tasks' true times are hidden from it. Starts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from ..cpuset import CpuSet
from ..errors import InputError
from .dispatch import Dispatcher
from .model import Placement, Task


@dataclass(frozen=True, slots=True)
class Change:
    """From ``at_s`` on these CPUs may be used, and so much memory; what runs on others goes on."""

    at_s: float
    cpus: CpuSet
    memory_bytes: float = math.inf


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a real run would have been."""

    placements: tuple[Placement, ...]
    """In order of start; a worker's start is part of the task that needed it."""
    granted_bytes: tuple[int, ...]
    """Memory of each."""

    @property
    def makespan_s(self) -> float:
        """When the last task ended."""
        return max((placement.end_s for placement in self.placements), default=0.0)


def simulate(
    dispatcher: Dispatcher, true: Sequence[Task], changes: Sequence[Change], *, start_up_s: float = 0.0
) -> Simulated:
    """Run everything to its end.

    Parameters
    ----------
    dispatcher
        Fresh; knows the ids of ``true``, and of their times what it was told.
    true
        What the tasks really take.
    changes
        The first at 0 s or before: what there is. Later ones: CPUs and memory that come and go.
    start_up_s
        What a worker costs before it computes; it is kept for tasks of its width.

    Raises
    ------
    InputError
        Tasks are left that nothing will ever have room for.
    """
    times_s = {task.id: task.times_s for task in true}
    pending = sorted(changes, key=lambda change: change.at_s)
    now_s, cpus, memory_bytes = 0.0, CpuSet(), math.inf
    running: list[tuple[float, int, Placement, int]] = []
    heapify(running)
    placements: list[Placement] = []
    granted: list[int] = []
    idle: dict[int, int] = {}
    while dispatcher.waiting or running:
        while pending and pending[0].at_s <= now_s:
            change = pending.pop(0)
            cpus, memory_bytes = change.cpus, change.memory_bytes
        taken = CpuSet(cpu for _, _, placement, _ in running for cpu in placement.cpus)
        held = sum(entry[3] for entry in running)
        while one := dispatcher.next(now_s, cpus - taken, memory_bytes - held):
            warm = idle.get(one.threads, 0) > 0
            idle[one.threads] = idle.get(one.threads, 0) - warm
            end_s = now_s + times_s[one.id][one.threads] + (0.0 if warm else start_up_s)
            placement = Placement(one.id, now_s, end_s, one.threads, one.cpus)
            heappush(running, (end_s, len(placements), placement, one.memory_bytes))
            placements.append(placement)
            granted.append(one.memory_bytes)
            taken |= one.cpus
            held += one.memory_bytes
        if pending and (not running or pending[0].at_s <= running[0][0]):
            now_s = pending[0].at_s
        elif running:
            now_s, _, placement, _ = heappop(running)
            idle[placement.threads] = idle.get(placement.threads, 0) + 1
            dispatcher.ended(placement.id, now_s)
        elif dispatcher.waiting:
            raise InputError(
                f"{dispatcher.waiting} tasks are left, but nothing runs and {len(cpus)} CPUs are there: none fits"
            )
    return Simulated(tuple(placements), tuple(granted))
