"""A width for each task, the specification's second strategy: the timetable that ends soonest; never a promise of less.

Never later than twice :func:`~qcthreads.planning.lower_bound` where neither memory, disk nor bandwidth binds. Of the
shortest schedule there is no more than 3/2 (and 0.1 %), or 7/4 for the usual widths, where besides each task may have
one CPU, and a wider run takes no longer and is no less work (docs/explanation/planning.md says of which widths).

Nor later than the best uniform width, whether its workers take the longest task first or the next in the order given;
nor, of up to 512 tasks, than a list of all at that width, the longest first, where memory, disk or bandwidth binds.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...cpuset import CpuSet
from ...errors import InputError
from ...machine import Machine
from ..batch import Batch
from ..model import Proposal, Task, capacity_of
from ..search import shortest
from ..seating import placed


def adaptive(
    tasks: Sequence[Task],
    machine: Machine,
    usable: CpuSet,
    *,
    width: int | None = None,
    **limits: float | None,
) -> Proposal:
    """Placements whose widths and order end the whole batch soonest."""
    refuse_width("adaptive", width)
    batch = Batch.of(tasks, capacity_of(usable, **limits))
    return Proposal(placed(batch, shortest(batch), machine, usable))


def refuse_width(strategy: str, width: int | None) -> None:
    """Raise InputError where one width for all was asked of a strategy that gives each task its own."""
    if width is not None:
        raise InputError(
            f"workers of width {width} were asked of the strategy {strategy}, which gives each task a width of "
            "its own; ask balanced"
        )
