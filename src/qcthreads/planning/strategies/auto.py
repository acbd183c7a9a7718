"""What is used when nothing is asked for: the best uniform width, found by sweep; never one width per task."""

from __future__ import annotations

from collections.abc import Sequence

from ...cpuset import CpuSet
from ...machine import Machine
from ..model import Placement, Task
from .balanced import balanced


def auto(
    tasks: Sequence[Task],
    machine: Machine,
    usable: CpuSet,
    *,
    memory_bytes: int | None = None,
    width: int | None = None,
) -> Sequence[Placement]:
    """The balanced plan of the best uniform width."""
    return balanced(tasks, machine, usable, memory_bytes=memory_bytes, width=width)
