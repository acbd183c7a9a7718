"""What is used when nothing is asked for: the simplest of the strategies that ends soonest, and why; plans nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...cpuset import CpuSet
from ...machine import Machine
from ...units import format_count, format_split
from ..batch import Batch
from ..bounds import bound_of
from ..model import Proposal, Task, capacity_of
from ..search import CLOSE, shortest
from ..seating import placed
from ..uniform import best_of, promising
from .balanced import balanced
from .memory_aware import memory_aware, needed


def auto(
    tasks: Sequence[Task],
    machine: Machine,
    usable: CpuSet,
    *,
    width: int | None = None,
    **limits: float | None,
) -> Proposal:
    """memory_aware where memory, disk or bandwidth run short; else balanced where no width per task ends sooner; else
    adaptive. Balanced where a width is given."""
    if not tasks or width is not None:
        return replace(balanced(tasks, machine, usable, width=width, **limits), strategy="balanced")
    batch = Batch.of(tasks, capacity_of(usable, **limits))
    short = needed(batch, machine, usable)
    if short:
        aware = memory_aware(batch, machine, usable, width=width, **limits)
        return Proposal(aware.placements, (f"memory-aware: {short}", *aware.reasons), "memory_aware")
    uniform = promising(batch)
    workers = best_of(uniform)
    chosen, uniform_s, strategy = workers.longest_first, workers.longest_first.makespan_s, "balanced"
    tasks_each = f"{format_split(workers.count, workers.width)} for {format_count(len(batch), 'task')}"
    why = f"balanced, {tasks_each}: nothing can end sooner"
    if uniform_s > bound_of(batch) * CLOSE:
        own = shortest(batch, uniform)
        why = f"balanced, {tasks_each}: no width per task ends sooner"
        if own.makespan_s * CLOSE < uniform_s:
            less, wide = 100 * (1 - own.makespan_s / uniform_s), format_count(workers.width, "thread")
            other = "another order" if set(own.widths) == {workers.width} else "a width for each task"
            chosen, strategy = own, "adaptive"
            why = f"adaptive: {other} takes {less:.1f} % less time than {wide} each, the longest first"
    return Proposal(placed(batch, chosen, machine, usable), (why,), strategy)
