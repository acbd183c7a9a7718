"""Tasks, placements and plans; values only, for a machine that need not be here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..cpuset import CpuSet
from ..errors import InputError, OversubscriptionError
from ..machine import Core, Machine, Package
from ..machine.placement import usable_cpus
from ..units import format_size


@dataclass(frozen=True, slots=True)
class Task:
    """A moldable task. ``times_s``: seconds by width; no other width may be used. Relative costs serve as seconds."""

    id: str
    times_s: Mapping[int, float]
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """One task, placed: where and when."""

    id: str
    start_s: float
    end_s: float
    threads: int
    cpus: CpuSet


@dataclass(frozen=True, slots=True)
class Plan:
    """Placements in order of start, with their quality and the strategy that made them."""

    placements: tuple[Placement, ...]
    strategy: str
    lower_bound_s: float

    @property
    def makespan_s(self) -> float:
        """When the last task ends."""
        return max((placement.end_s for placement in self.placements), default=0.0)


@dataclass(frozen=True, slots=True)
class Split:
    """A static division of the usable PUs: so many workers of one width, and the reasons in words."""

    workers: int
    threads: int
    memory_bytes: int
    """Memory of one worker."""
    reasons: tuple[str, ...]


def usable_of(machine_or_cpus: Machine | CpuSet | int) -> tuple[Machine, CpuSet]:
    """The machine to plan for and its PUs worth giving to threads; a bare number or set of CPUs is a flat machine."""
    if isinstance(machine_or_cpus, Machine):
        machine = machine_or_cpus
        usable = usable_cpus(machine, machine.allowed_cpus or machine.cpus_online)
    else:
        usable = machine_or_cpus if isinstance(machine_or_cpus, CpuSet) else CpuSet(range(machine_or_cpus))
        cores = tuple(Core(CpuSet([cpu])) for cpu in usable)
        machine = Machine(usable, cores, (Package(usable),), (), allowed_cpus=usable)
    if not usable:
        raise InputError("there is no CPU to plan for; give a machine, a set of CPUs, or a number of at least 1")
    return machine, usable


def check_tasks(tasks: Sequence[Task], cpus: int, memory_bytes: int | None = None) -> None:
    """Raise InputError for tasks that make no sense, OversubscriptionError for one that can never run."""
    seen = set()
    for task in tasks:
        if task.id in seen:
            raise InputError(f"two tasks are called {task.id!r}; give every task its own id")
        seen.add(task.id)
        if not task.times_s:
            raise InputError(f"task {task.id!r} lists no width; give its time at one width at least")
        for width, time_s in task.times_s.items():
            if width < 1 or not math.isfinite(time_s) or time_s < 0:
                raise InputError(f"task {task.id!r}: {time_s} s at width {width}; widths start at 1, times at 0")
        if min(task.times_s) > cpus:
            raise OversubscriptionError(
                f"task {task.id!r} needs {min(task.times_s)} threads at least, but there are {cpus} CPUs"
            )
        if memory_bytes is not None and task.memory_bytes > memory_bytes:
            raise OversubscriptionError(
                f"task {task.id!r} needs {format_size(task.memory_bytes)}, but {format_size(memory_bytes)} may be used"
            )
