"""What a run leaves behind for reports, traces and tables, as values; measures nothing and renders nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..cpuset import CpuSet
from ..machine import Machine
from .statistics import Finding, Moment, UsablePUs


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculated:
    """One attempt at a calculation. Times are seconds since the run began; ``None``: not known."""

    label: str
    group: str
    """What belongs together, for colours and sums: the number of bodies, ``"1"``; empty: nothing."""
    attempt: int
    status: str
    """``finished``, ``failed``, or ``stopped`` with the run."""
    error: str
    pid: int
    """The worker's."""
    threads: int
    threads_working: int | None
    cpus: CpuSet
    """Leased."""
    cpus_seen: CpuSet
    start_s: float
    end_s: float
    waited_s: float
    """For its lease, before ``start_s``."""
    cpu_s: float
    run_queue_s: float | None
    """Run-queue delay of all its threads."""
    memory_granted_bytes: int
    """0: no limit."""
    memory_peak_bytes: int
    planned_start_s: float | None = None
    planned_end_s: float | None = None

    @property
    def wall_s(self) -> float:
        """From start to end."""
        return self.end_s - self.start_s

    @property
    def efficiency(self) -> float | None:
        """CPU time / (threads x wall time); ``None`` of what took no time."""
        return self.cpu_s / (self.threads * self.wall_s) if self.wall_s > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A whole run: what ran where and when, what the machine did over time, what was found."""

    title: str
    """What was run, in a line: input, program, method, basis."""
    began_at: float
    """Seconds since 1970."""
    wall_s: float
    machine: Machine
    usable: CpuSet
    """At its end."""
    pus_usable: UsablePUs
    limits: tuple[str, ...]
    """The rules that say what may be used, in words, the tightest first."""
    decision: Mapping[str, Any]
    """Strategy, workers, threads, reasons: as in the JSON document of a run."""
    statistics: Mapping[str, Any]
    calculations: tuple[Calculated, ...]
    """In order of start; retries follow what they repeat."""
    moments: tuple[Moment, ...]
    """All workers together, about every second."""
    findings: tuple[Finding, ...]
