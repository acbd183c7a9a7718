"""What is used when nothing is asked for: the simplest of the strategies that ends soonest, and why; plans nothing."""

from __future__ import annotations

from collections.abc import Sequence

from ...cpuset import CpuSet
from ...machine import Machine
from ...units import format_count
from ..batch import Batch
from ..bounds import bound_of
from ..model import Proposal, Task, capacity_of
from ..search import CLOSE
from ..uniform import best_workers
from .adaptive import adaptive
from .balanced import balanced
from .memory_aware import memory_aware, needed


def auto(
    tasks: Sequence[Task],
    machine: Machine,
    usable: CpuSet,
    *,
    memory_bytes: int | None = None,
    bandwidth_bytes_per_s: float | None = None,
    width: int | None = None,
) -> Proposal:
    """memory_aware where memory or bandwidth run short; else balanced where no width per task ends sooner; else
    adaptive. Balanced where a width is given."""
    if not tasks or width is not None:
        return balanced(tasks, machine, usable, memory_bytes=memory_bytes, width=width)
    batch = Batch.of(tasks, capacity_of(usable, memory_bytes, bandwidth_bytes_per_s))
    short = needed(batch, machine, usable)
    if short:
        aware = memory_aware(
            batch, machine, usable, memory_bytes=memory_bytes, bandwidth_bytes_per_s=bandwidth_bytes_per_s
        )
        return Proposal(aware.placements, (f"memory_aware: {short}", *aware.reasons))
    workers = best_workers(batch)
    uniform, _ = workers.give_out(workers.longest_first())
    same = balanced(batch, machine, usable, memory_bytes=memory_bytes, width=workers.width)
    if uniform.makespan_s <= bound_of(batch) * CLOSE:
        return Proposal(same.placements, (f"balanced, {same.reasons[0]}; nothing can end sooner",))
    own = adaptive(batch, machine, usable, memory_bytes=memory_bytes)
    ends_s = max(placement.end_s for placement in own.placements)
    if uniform.makespan_s <= ends_s * CLOSE:
        return Proposal(same.placements, (f"balanced, {same.reasons[0]}; no width per task ends sooner",))
    less = 100 * (1 - ends_s / uniform.makespan_s)
    wide = format_count(workers.width, "thread")
    return Proposal(own.placements, (f"adaptive: a width for each task takes {less:.1f} % less time than {wide} each",))
