"""Tasks, placements and plans; values only, for a machine that need not be here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..cpuset import CpuSet


@dataclass(frozen=True, slots=True)
class Task:
    """A moldable task. ``times_s``: seconds by width; widths not listed may not be used. Relative costs serve as seconds."""

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
