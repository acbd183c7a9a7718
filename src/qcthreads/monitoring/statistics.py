"""What was seen of threads and workers, as values; the result type of ``QCThreadManager.monitor_thread_usage``."""

from __future__ import annotations

from dataclasses import dataclass

from ..cpuset import CpuSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadUsage:
    """One thread. Times are since the thread began."""

    pid: int
    tid: int
    cpu_ns: int
    wait_ns: int | None
    """Run-queue delay: ready to run, but waiting for a CPU; ``None`` where the platform does not tell."""
    last_cpu: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUsage:
    """One worker (a leased process and its descendants), between two looks."""

    worker_id: int
    pid: int
    threads_asked: int
    threads_working: int
    """Threads that used more than 5 % of the wall time between the two looks."""
    wall_ns: int
    cpu_ns: int
    wait_ns: int | None
    thread_efficiency: float
    """CPU time / (threads asked x wall time)."""
    cpus_allowed: CpuSet
    cpus_outside: CpuSet
    """CPUs it was seen on that are not in its lease."""
    memory_bytes: int
    """Resident memory now, all processes."""
    memory_peak_bytes: int
    threads: tuple[ThreadUsage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something a user should know, in plain words, with the number and the remedy."""

    kind: str
    message: str
    worker_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadUsageStats:
    """Everything attached to a manager, between the previous look and this one."""

    wall_s: float
    threads_asked: int
    threads_working: int
    cpus_usable: int
    cpu_s: float
    wait_s: float | None
    utilisation: float
    """CPU time / (usable PUs x wall time)."""
    thread_efficiency: float
    """CPU time / (threads asked x wall time)."""
    oversubscription: float
    """Threads working / PUs leased; above 1 is too many."""
    workers: tuple[WorkerUsage, ...]
    findings: tuple[Finding, ...]
    source: str
    """What the figures rest on: ``psutil`` or ``schedstat``."""
