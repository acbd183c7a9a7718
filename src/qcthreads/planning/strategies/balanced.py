"""Equal threads per worker, the specification's first strategy; never gives two workers different widths.

Every worker keeps one place for the whole batch. The longest task goes first, each to the worker that is free
soonest (Graham's LPT rule). A task that does not list the workers' width runs at its largest listed width below it, on
a part of the place.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...cpuset import CpuSet
from ...errors import InputError
from ...machine import Machine
from ...units import format_count, format_some, format_split
from ..batch import Batch
from ..model import Proposal, Task, capacity_of
from ..seating import placed
from ..uniform import best_of, narrowest_width, promising, workers_of


def balanced(
    tasks: Sequence[Task],
    machine: Machine,
    usable: CpuSet,
    *,
    width: int | None = None,
    **limits: float | None,
) -> Proposal:
    """Placements at one width for all workers; without ``width``, the (narrowest) one that ends soonest."""
    if not tasks:
        return Proposal(())
    batch = Batch.of(tasks, capacity_of(usable, **limits))
    narrowest = narrowest_width(batch)
    if width is not None and width < narrowest:
        names = [task.id for task, least in zip(tasks, batch.narrowest, strict=True) if least > width]
        raise InputError(
            f"workers of width {width} were asked for, but {format_some(names)} need more; ask for at least {narrowest}"
        )
    workers = best_of(promising(batch)) if width is None else workers_of(batch, width)
    chosen = f"{format_split(workers.count, workers.width)} for {format_count(len(batch), 'task')}"
    why = "as asked" if width else "the uniform width that ends soonest"
    return Proposal(placed(batch, workers.longest_first, machine, usable), (f"{chosen}: {why}",))
