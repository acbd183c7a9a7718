"""Tasks, placements and plans; values only, for a machine that need not be here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

from ..cpuset import CpuSet
from ..errors import InputError
from ..machine import Core, Machine, Package
from ..machine.placement import usable_cpus

# Between them nothing is gained; as places they divide LLC domains evenly.
_USUAL_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

_SPACES = ("memory_bytes", "disk_bytes")  # limits of which only whole bytes count
MOST_CPUS = 65536  # above any node there is; catches nonsense before it fills memory
ROUNDING = 1e-12  # the part of a time, or of a whole, by which sums of many may be off


@dataclass(frozen=True, slots=True)
class Task:
    """A moldable task: its width, the threads that it runs with, is chosen when it starts.

    Parameters
    ----------
    id
        No other of the batch has it.
    times_s
        Seconds by width; no other width may be used. Relative costs serve as seconds.
    memory_bytes
        What it needs at any width. Bytes are whole: of one that is begun all is taken, and no part of one is a limit.
    bandwidth_bytes_per_s
        Of memory, at the narrowest width listed; a faster run moves the same bytes in less time.
    kind
        What one task takes tells of those of its own kind, in a run; a plan makes no use of it.
    memory_measured
        ``memory_bytes`` is what it takes: more would not help it. Else a run grants it more, where its share is more.
    memory_more_bytes
        By width, what it needs beyond ``memory_bytes``; ``None``: nothing.
    disk_bytes
        Of temporary files while it runs. Those in memory (``tmpfs``) are a part of ``memory_bytes``.
    """

    id: str
    times_s: Mapping[int, float]
    memory_bytes: int = 0
    bandwidth_bytes_per_s: float = 0.0
    kind: str = ""
    memory_measured: bool = False
    memory_more_bytes: Mapping[int, int] | None = None
    disk_bytes: int = 0

    def needs_bytes(self, width: int) -> int:
        """Of memory, at that width."""
        return self.memory_bytes + (self.memory_more_bytes or {}).get(width, 0)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What all tasks that run at the same time may have together; infinite where nobody set a limit."""

    cpus: int
    memory_bytes: float = math.inf
    bandwidth_bytes_per_s: float = math.inf
    disk_bytes: float = math.inf
    tasks: float = math.inf
    """How many run at the same time; heeded while a batch runs, by what is laid out in turn."""


@dataclass(frozen=True, slots=True)
class Running:
    """A task that has started, and cannot be changed: for how long it goes on, and what it has."""

    left_s: float
    width: int
    memory_bytes: float = 0.0
    disk_bytes: float = 0.0


class Placement(NamedTuple):
    """One task, placed: where and when. A tuple, since there may be a hundred thousand."""

    id: str
    start_s: float
    end_s: float
    threads: int
    cpus: CpuSet


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a strategy answers: placements in any order, and in words what a user should know of how they came about."""

    placements: Sequence[Placement]
    reasons: tuple[str, ...] = ()
    strategy: str = ""
    """Whose placements these are, where it left them to another."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Placements in order of start, with their quality and the strategy that was asked for."""

    placements: tuple[Placement, ...]
    strategy: str
    lower_bound_s: float
    reasons: tuple[str, ...] = ()
    chosen: str = ""
    """The strategy that ``auto`` took; else the one that was asked for."""

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


def usual_widths(most: int) -> tuple[int, ...]:
    """The widths that are worth considering up to ``most``, which is one of them."""
    return (*(width for width in _USUAL_WIDTHS if width < most), most)


def capacity_of(usable: CpuSet, **limits: float | None) -> Capacity:
    """The capacity of ``usable`` PUs, with limits by their names; ``None``: no limit. No part of a byte counts."""
    found = {name: limit for name, limit in limits.items() if limit is not None}
    whole = {name: math.floor(limit) for name, limit in found.items() if name in _SPACES and math.isfinite(limit)}
    return Capacity(len(usable), **(found | whole))


def check_limits(**limits: float | None) -> None:
    """Raise InputError for what is no limit."""
    for name, limit in limits.items():
        if limit is not None and not _is_limit(limit):
            raise InputError(f"{name} is {limit!r:.60}; give a number above 0, or None where there is no limit")


def _is_limit(limit: object) -> bool:
    try:
        return isinstance(limit, Real) and not isinstance(limit, bool) and float(limit) > 0
    except OverflowError:  # an integer that no float can hold
        return False


def usable_of(machine_or_cpus: Machine | CpuSet | int) -> tuple[Machine, CpuSet]:
    """The machine to plan for and its PUs worth giving to threads; a bare number or set of CPUs is a flat machine."""
    if isinstance(machine_or_cpus, Machine):
        machine = machine_or_cpus
        usable = usable_cpus(machine, machine.allowed_cpus or machine.cpus_online)
    else:
        if not isinstance(machine_or_cpus, CpuSet | Integral) or isinstance(machine_or_cpus, bool):
            raise InputError(f"{machine_or_cpus!r} is no machine; give a Machine, a CpuSet, or a whole number of CPUs")
        if isinstance(machine_or_cpus, Integral) and machine_or_cpus > MOST_CPUS:
            raise InputError(f"{machine_or_cpus} CPUs are more than any node has; give at most {MOST_CPUS}")
        usable = machine_or_cpus if isinstance(machine_or_cpus, CpuSet) else CpuSet(range(machine_or_cpus))
        cores = tuple(Core(CpuSet([cpu])) for cpu in usable)
        machine = Machine(usable, cores, (Package(usable),), (), allowed_cpus=usable)
    if not usable:
        raise InputError("there is no CPU to plan for; give a machine, a set of CPUs, or a number of at least 1")
    return machine, usable
