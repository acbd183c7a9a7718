"""Tasks + machine + limits -> placements; pure functions that ask no operating system and keep no state."""

from __future__ import annotations

from collections.abc import Sequence

from ..cpuset import CpuSet
from ..errors import InputError
from ..machine import Machine
from .bounds import lower_bound
from .cost import relative_cost
from .model import Placement, Plan, Split, Task, check_tasks, usable_of
from .split import choose_split
from .strategies import get_strategy, strategy_names

__all__ = [
    "Placement",
    "Plan",
    "Split",
    "Task",
    "choose_split",
    "get_strategy",
    "lower_bound",
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
        Memory for all tasks that run at the same time; ``None``: no limit.
    width
        Threads of every worker; ``None``: the strategy chooses.

    Raises
    ------
    InputError
        For an unknown strategy, an unusable ``width``, or tasks that contradict themselves.
    OversubscriptionError
        When a task fits neither the CPUs nor the memory at any of its widths.
    """
    place = get_strategy(strategy)
    machine, usable = usable_of(machine_or_cpus)
    check_tasks(tasks, len(usable), memory_bytes)
    if width is not None and not 1 <= width <= len(usable):
        raise InputError(f"workers {width} threads wide were asked for, but there are {len(usable)} CPUs: {usable}")
    placements = place(tasks, machine, usable, memory_bytes=memory_bytes, width=width)
    ordered = tuple(sorted(placements, key=lambda placement: (placement.start_s, placement.cpus.first)))
    return Plan(ordered, strategy.replace("-", "_"), lower_bound(tasks, usable))
