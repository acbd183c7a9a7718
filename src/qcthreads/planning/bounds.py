"""How short a batch can be at best; proves distances from the optimum, and never places anything."""

from __future__ import annotations

from collections.abc import Sequence

from ..cpuset import CpuSet
from ..machine import Machine
from .model import Task, check_tasks, usable_of


def lower_bound(tasks: Sequence[Task], machine_or_cpus: Machine | CpuSet | int) -> float:
    """Seconds below which no schedule of ``tasks`` can end.

    The smallest T for which the least work (width x time) that lets every task end within T fits into P x T, with P the
    number of usable PUs: the usual dual bound for moldable tasks (Turek, Wolf, Yu, SPAA 1992). It includes the longest
    task at its best width. Memory and bandwidth are not counted.
    """
    cpus = len(usable_of(machine_or_cpus)[1])
    check_tasks(tasks, cpus)
    # Each (time, task, work) is a choice that opens up once T reaches its time.
    choices = sorted(
        (time_s, index, width * time_s)
        for index, task in enumerate(tasks)
        for width, time_s in task.times_s.items()
        if width <= cpus
    )
    least: dict[int, float] = {}
    total = 0.0
    for at, (time_s, index, work) in enumerate(choices):
        before = least.get(index)
        if before is None or work < before:
            least[index] = work
            total += work - (before or 0.0)
        if len(least) == len(tasks):
            bound = max(time_s, total / cpus)
            if at + 1 == len(choices) or bound <= choices[at + 1][0]:
                return bound
    return 0.0
