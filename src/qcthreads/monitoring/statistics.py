"""What was seen of threads and workers, as values; the result type of ``QCThreadManager.monitor_thread_usage``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..cpuset import CpuSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a worker was given."""

    worker_id: int
    threads_asked: int
    leased: CpuSet
    bound_to: CpuSet | None = None
    """The mask it was given; ``None``: none."""
    memory_bytes: int = 0
    """0: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadUsage:
    """One thread that lives. Times are since it began; shares are of the time between the two looks."""

    pid: int
    tid: int
    cpu_ns: int
    wait_ns: int | None
    """Run-queue delay: ready to run, but waiting for a CPU; ``None`` where the platform does not tell."""
    last_cpu: int | None
    utilisation: float
    """CPU time / wall time."""
    wait_share: float | None
    """Run-queue delay / (run-queue delay + CPU time); ``None`` where the platform does not tell."""
    migrations: int
    """How often it was seen on another CPU than the time before: there were at least as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How busy a worker was for about a second; ``at_s`` is its end, since the first look."""

    at_s: float
    cpus_busy: float
    cpus_waited_for: float | None
    """Threads that waited for a CPU, on average; ``None`` where the platform does not tell."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class UsablePUs:
    """How many PUs might be used, over time."""

    counts: tuple[tuple[float, int], ...]
    """From when on, in seconds since the beginning, and how many; the first at 0."""

    def mean(self, from_s: float, until_s: float) -> float:
        """On average between two times that are not before the beginning."""
        until_s = max(until_s, from_s + 1e-6)  # of no time, as many as then
        ends_s = [*(at_s for at_s, _ in self.counts[1:]), math.inf]
        lasted = zip(self.counts, ends_s, strict=True)
        pu_s = sum(pus * max(0.0, min(end_s, until_s) - max(at_s, from_s)) for (at_s, pus), end_s in lasted)
        return pu_s / (until_s - from_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUsage:
    """One worker (a leased process and its descendants), between two looks."""

    worker_id: int
    pid: int
    ended: bool
    threads_asked: int
    threads_working: int
    """Threads that used more than 5 % of the wall time, side by side, of a second or between two looks; at least as
    many as it takes to use the CPU time that was used."""
    wall_ns: int
    cpu_ns: int
    """Of processes and threads that ended meanwhile too."""
    wait_ns: int | None
    cpu_error_ns: int
    """By how much the CPU time of any single thread that runs may lag; that of the worker does not."""
    cpu_unseen_ns: int
    """Of the CPU time that of threads which began and ended between two samples; no more is known of them."""
    thread_efficiency: float
    """CPU time / (threads asked x wall time)."""
    wait_share: float | None
    """Run-queue delay / (run-queue delay + CPU time): of the time that its threads wanted to run."""
    imbalance: float | None
    """1 - mean / highest CPU time of the threads that worked; ``None`` where fewer than two did."""
    disk_share: float | None
    """Threads in uninterruptible sleep / threads asked, on average over the looks; ``None`` where it is not told."""
    migrations: int
    cpus_allowed: CpuSet
    cpus_seen: CpuSet
    """CPUs it was seen on."""
    cpus_outside: CpuSet
    """Of those the ones that are not in its lease."""
    other_cpu_ns: int | None
    """CPU time of others on the CPUs it is bound to, to a clock tick for each; ``None`` where it is not bound."""
    throttled_ns: int | None
    """How long a quota of CPU time stopped its control group, on all CPUs together; ``None`` where there is none."""
    memory_bytes: int
    """Resident memory now, all processes."""
    memory_peak_bytes: int
    """The sum of the peaks of processes that lived side by side: exact for one, an upper bound for several."""
    looks: int
    threads: tuple[ThreadUsage, ...]
    moments: tuple[Moment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthUsage:
    """Bytes that went to and from memory, between two looks."""

    bytes_per_s: float | None
    """``None``: not measurable, and ``reason`` says why."""
    share: float | None
    """Of the most that this machine was measured to deliver; ``None``, with a reason, where it was not measured."""
    scope: Literal["processes", "node", ""]
    """Whose: of the processes watched, or of everything on the node."""
    source: Literal["resctrl", "uncore", ""]
    reason: str = ""


NOT_WATCHED = BandwidthUsage(bytes_per_s=None, share=None, scope="", source="", reason="it was not watched")


CalculationFinding = Literal[
    "oversubscribed",
    "undersubscribed",
    "ignored-width",
    "imbalanced",
    "contended",
    "others",
    "disk",
    "escaped",
    "memory",
]
RunFinding = Literal["idle", "waited", "unbound", "mixed-versions", "note"]
FindingKind = CalculationFinding | Literal["ended"] | RunFinding
"""Of a calculation, of a worker, and of a run as a whole; docs/how-to/why-slow.md has a section for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something a user should know, in plain words, with the number and the remedy."""

    kind: FindingKind
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
    wait_share: float | None
    """Run-queue delay / (run-queue delay + CPU time): of the time that threads wanted to run."""
    migrations: int
    other_cpu_s: float | None
    """CPU time of others on the CPUs that workers are bound to; ``None`` where none is."""
    memory_peak_bytes: int
    """The sum of the workers' peaks: an upper bound."""
    workers: tuple[WorkerUsage, ...]
    findings: tuple[Finding, ...]
    source: str
    """What the figures rest on: ``schedstat``, ``stat`` or ``psutil``."""
    bandwidth: BandwidthUsage = NOT_WATCHED
    """Of memory: of all workers together, or of the node, or why it is not measurable."""


def usage_of(
    workers: Sequence[WorkerUsage],
    findings: Sequence[Finding],
    leased: CpuSet,
    cpus_usable: int,
    source: str,
    bandwidth: BandwidthUsage = NOT_WATCHED,
) -> ThreadUsageStats:
    """All workers together; ``leased``: their CPUs."""
    wall_ns = max((worker.wall_ns for worker in workers), default=0)
    cpu_ns = sum(worker.cpu_ns for worker in workers)
    wait_ns = sum_known(worker.wait_ns for worker in workers)
    others_ns = [worker.other_cpu_ns for worker in workers if worker.other_cpu_ns is not None]
    working = sum(worker.threads_working for worker in workers)
    return ThreadUsageStats(
        wall_s=wall_ns / 1e9,
        threads_asked=sum(worker.threads_asked for worker in workers),
        threads_working=working,
        cpus_usable=cpus_usable,
        cpu_s=cpu_ns / 1e9,
        wait_s=None if wait_ns is None else wait_ns / 1e9,
        utilisation=ratio(cpu_ns, cpus_usable * wall_ns),
        thread_efficiency=ratio(cpu_ns, sum(worker.threads_asked * worker.wall_ns for worker in workers)),
        oversubscription=ratio(working, len(leased)),
        wait_share=None if wait_ns is None else ratio(wait_ns, wait_ns + cpu_ns),
        migrations=sum(worker.migrations for worker in workers),
        other_cpu_s=sum(others_ns) / 1e9 if others_ns else None,
        memory_peak_bytes=sum(worker.memory_peak_bytes for worker in workers),
        workers=tuple(workers),
        findings=tuple(findings),
        source=source,
        bandwidth=bandwidth,
    )


def sum_known(numbers: Iterable[int | None]) -> int | None:
    """The sum; ``None`` when one of them is not known."""
    total = 0
    for number in numbers:
        if number is None:
            return None
        total += number
    return total


def ratio(part: float, whole: float) -> float:
    """``part / whole``, and 0 of nothing."""
    return part / whole if whole else 0.0
