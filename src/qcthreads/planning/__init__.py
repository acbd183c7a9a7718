"""Tasks + machine + limits -> placements; pure functions that ask no operating system and keep no state.

Importing it does not load numpy, which who only divides a machine into equal workers does without.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter

from ..cpuset import CpuSet
from ..errors import InputError
from ..machine import Machine
from .cost import relative_cost
from .model import Placement, Plan, Proposal, Split, Task, capacity_of, check_limits, usable_of
from .split import choose_split
from .strategies import get_strategy, strategy_names

__all__ = [
    "Placement",
    "Plan",
    "Proposal",
    "Split",
    "Task",
    "choose_split",
    "get_strategy",
    "plan",
    "relative_cost",
    "strategy_names",
]


def plan(
    tasks: Sequence[Task],
    machine_or_cpus: Machine | CpuSet | int,
    strategy: str = "auto",
    *,
    memory_bytes: int | None = None,
    bandwidth_bytes_per_s: float | None = None,
    disk_bytes: int | None = None,
    width: int | None = None,
) -> Plan:
    """Place every task once, on concrete CPUs that no two tasks have at the same time.

    Parameters
    ----------
    tasks
        What is to be run; ids are unique.
    machine_or_cpus
        A machine (its allowed CPUs, one PU per core), a set of CPUs, or a number of CPUs.
    strategy
        A name from :func:`strategy_names`; ``-`` and ``_`` are the same.
    memory_bytes
        Memory for all tasks that run at the same time, no more of it than a machine has; ``None``: no other limit.
    bandwidth_bytes_per_s
        What the memory delivers to all tasks that run at the same time; ``None``: no limit. A width at which a task
        by itself would want more takes as long as its bytes do.
    disk_bytes
        Disk for the temporary files of all tasks that run at the same time; ``None``: no limit.
    width
        Threads of every worker, for the strategies ``balanced`` and ``auto``; ``None``: the strategy chooses.

    Raises
    ------
    InputError
        For an unknown strategy, an unusable ``width``, or tasks that contradict themselves.
    OversubscriptionError
        When a task does not fit the CPUs, or not the memory or the disk, at any of its widths.
    """
    from .batch import Batch
    from .bounds import bound_of
    from .memory import memory_within

    propose = get_strategy(strategy)
    machine, usable = usable_of(machine_or_cpus)
    limits: dict[str, float | None] = {
        "memory_bytes": memory_bytes,
        "bandwidth_bytes_per_s": bandwidth_bytes_per_s,
        "disk_bytes": disk_bytes,
    }
    check_limits(**limits)
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= len(usable)):
        raise InputError(
            f"workers of width {width!r} were asked for, but the CPUs are {usable}, {len(usable)} in all; give a whole "
            "number of no more than these"
        )
    limits["memory_bytes"] = memory_within(machine, usable, memory_bytes)
    with _no_collection():
        batch = Batch(tasks, capacity_of(usable, **limits))
        proposal = propose(batch, machine, usable, width=width, **limits)
        ordered = tuple(sorted(proposal.placements, key=attrgetter("start_s")))
        reasons = proposal.reasons
        if slowed := batch.slowed(ordered):
            share = f"{slowed} of {len(ordered)}"
            reasons = (*reasons, f"memory bandwidth: {share} run longer than told, as their bytes do")
        asked = strategy.strip().lower().replace("-", "_")
        return Plan(ordered, asked, bound_of(batch), reasons, proposal.strategy or asked)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Plans are many objects without a cycle: looking for some among them takes a third of the time to plan."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
