"""From two looks at the same workers to statistics; pure, asks no operating system."""

from __future__ import annotations

from collections.abc import Sequence

from ..cpuset import CpuSet
from .findings import findings_of
from .sampler import SeenThread, Watched
from .statistics import ThreadUsage, ThreadUsageStats, WorkerUsage

# Of the wall time between two looks. A thread that waits for work and polls now and then stays below.
WORKING_SHARE = 0.05


def usage_between(watched: Sequence[Watched], cpus_usable: int, source: str) -> ThreadUsageStats:
    """What every worker did between its two looks, and all of them together; ``source``: what the looks rest on."""
    workers = [_worker_usage(one) for one in watched]
    findings = [finding for one, usage in zip(watched, workers, strict=True) for finding in findings_of(one, usage)]
    leased = CpuSet()
    for one in watched:
        leased |= one.leased
    wall_ns = max((worker.wall_ns for worker in workers), default=0)
    cpu_ns = sum(worker.cpu_ns for worker in workers)
    wait_ns = _sum_known([worker.wait_ns for worker in workers])
    working = sum(worker.threads_working for worker in workers)
    return ThreadUsageStats(
        wall_s=wall_ns / 1e9,
        threads_asked=sum(worker.threads_asked for worker in workers),
        threads_working=working,
        cpus_usable=cpus_usable,
        cpu_s=cpu_ns / 1e9,
        wait_s=None if wait_ns is None else wait_ns / 1e9,
        utilisation=_ratio(cpu_ns, cpus_usable * wall_ns),
        thread_efficiency=_ratio(cpu_ns, sum(worker.threads_asked * worker.wall_ns for worker in workers)),
        oversubscription=_ratio(working, len(leased)),
        workers=tuple(workers),
        findings=tuple(findings),
        source=source,
    )


def _worker_usage(one: Watched) -> WorkerUsage:
    wall_ns = one.now.at_ns - one.before.at_ns
    known = {_identity(thread): thread.usage for thread in one.before.threads}
    used_ns, waited_ns, seen_on, working = [], [], CpuSet(), 0
    allowed = CpuSet()
    threads = () if one.ended else one.now.threads
    for thread in threads:
        before = known.get(_identity(thread))
        used = thread.usage.cpu_ns - (before.cpu_ns if before else 0)
        used_ns.append(used)
        waited_ns.append(_waited(thread.usage, before))
        working += used > WORKING_SHARE * wall_ns
        allowed |= thread.cpus_allowed
        if used > 0 and thread.usage.last_cpu is not None:
            seen_on |= CpuSet([thread.usage.last_cpu])
    # Exact for the threads that live, but blind for those that ended in between; the tree's own clock counts in ticks.
    cpu_ns = 0 if one.ended else max(sum(used_ns), one.now.cpu_ns - one.before.cpu_ns)
    return WorkerUsage(
        worker_id=one.worker_id,
        pid=one.now.pid,
        threads_asked=one.threads_asked,
        threads_working=working,
        wall_ns=wall_ns,
        cpu_ns=cpu_ns,
        wait_ns=_sum_known(waited_ns),
        thread_efficiency=_ratio(cpu_ns, one.threads_asked * wall_ns),
        cpus_allowed=allowed,
        cpus_outside=seen_on - one.leased,
        memory_bytes=0 if one.ended else one.now.memory_bytes,
        memory_peak_bytes=0 if one.ended else one.now.memory_peak_bytes,
        threads=tuple(thread.usage for thread in threads),
    )


def _identity(thread: SeenThread) -> tuple[int, int, float]:
    return thread.usage.pid, thread.usage.tid, thread.started


def _waited(now: ThreadUsage, before: ThreadUsage | None) -> int | None:
    if now.wait_ns is None:
        return None
    return now.wait_ns - (before.wait_ns or 0 if before else 0)


def _sum_known(numbers: Sequence[int | None]) -> int | None:
    """The sum; ``None`` when one of them is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
