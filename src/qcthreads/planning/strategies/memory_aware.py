"""Memory first, the specification's third strategy: never more of it, its bandwidth, or disk than there is; per node.

What runs side by side is narrowed, widened or delayed until it fits. Where the machine has several memory nodes, a
task's memory lies on those of its CPUs, and no node holds more than it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...cpuset import CpuSet
from ...machine import Machine
from ..batch import Batch
from ..memory import memory_nodes
from ..model import Proposal, Task, capacity_of
from ..nodes import crowded, overfull, shortest_by_node
from ..search import binding, shortest
from ..seating import placed
from .adaptive import refuse_width


def memory_aware(
    tasks: Sequence[Task],
    machine: Machine,
    usable: CpuSet,
    *,
    width: int | None = None,
    **limits: float | None,
) -> Proposal:
    """Placements within the memory, disk and bandwidth of the whole, and the memory of each memory node."""
    refuse_width("memory_aware", width)
    batch = Batch.of(tasks, capacity_of(usable, **limits))
    found = shortest(batch)
    placements = placed(batch, found, machine, usable)
    nodes = memory_nodes(machine, usable)
    full = overfull(batch, nodes, placements)
    if full is None:
        return Proposal(placements, ())
    return Proposal(
        shortest_by_node(batch, machine, nodes, found),
        (f"memory node {full} would not hold all that was to run beside it: tasks wait, or go to another",),
    )


def needed(batch: Batch, machine: Machine, usable: CpuSet) -> str:
    """Why memory decides here, or disk; empty where neither does."""
    if short := binding(batch):
        return f"{short} runs short before CPUs do"
    nodes = memory_nodes(machine, usable)
    if crowded(batch, nodes):
        return "a memory node may not hold all that runs beside it"
    return ""
