"""Watches one process with its descendants between two looks; asks the host, changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from ..cpuset import CpuSet
from ..errors import BindingError
from ..host import get_host
from ..host.cpu_times import busy_ns
from ..host.sampling import TimesSource
from ..host.throttling import Throttling, throttled_between
from .findings import findings_of
from .sampler import ThreadSampler, best_source
from .statistics import NOT_WATCHED, BandwidthUsage, Grant, ThreadUsageStats, WorkerUsage, usage_of
from .tally import Tally


class Watch:
    """A process and its descendants, from now on; may be used by several threads.

    Raises ProcessGoneError when there is no such process.
    """

    def __init__(self, pid: int, source: TimesSource | None = None) -> None:
        self._threads = ThreadSampler([pid], source=source)
        self._lock = threading.Lock()
        self._busy_ns = busy_ns()
        self._throttling = Throttling(pid)
        self._throttled_ns = self._throttling.total_ns()
        self._tally = Tally(self._threads.look())
        self.pid = pid
        self.identity = pid, int(self._threads.processes()["started_ticks"][0])
        """Tells the process from a later one with the same number."""

    @property
    def source(self) -> TimesSource:
        """Where the times come from."""
        return self._threads.source

    @property
    def ended(self) -> bool:
        """Whether it had ended when it was last looked at."""
        return self._tally.ended

    def report(self, grant: Grant) -> WorkerUsage:
        """What it did since the last report."""
        with self._lock:
            now, busy, throttled_ns = self._threads.look(), busy_ns(), self._throttling.total_ns()
            self._tally.add(now, allowed_cpus(now.threads["tid"].tolist()))
            on_its_cpus_ns = busy_between(self._busy_ns, busy, grant.bound_to)
            stopped_ns = throttled_between(self._throttled_ns, throttled_ns)
            usage = self._tally.usage(grant, self._threads.error_ns, on_its_cpus_ns, stopped_ns)
            self._tally, self._busy_ns, self._throttled_ns = Tally(now), busy, throttled_ns
            return usage


def report_on(
    watched: Sequence[tuple[Watch, Grant]], cpus_usable: int, bandwidth: BandwidthUsage = NOT_WATCHED
) -> ThreadUsageStats:
    """What each worker did since the last report on it, all of them together, and what a user should know."""
    workers = [watch.report(grant) for watch, grant in watched]
    findings = [
        finding for (_, grant), worker in zip(watched, workers, strict=True) for finding in findings_of(grant, worker)
    ]
    leased = CpuSet(cpu for _, grant in watched for cpu in grant.leased)
    source = watched[0][0].source if watched else best_source()
    return usage_of(workers, findings, leased, cpus_usable, source, bandwidth)


def busy_between(before: dict[int, int] | None, now: dict[int, int] | None, cpus: CpuSet | None) -> int | None:
    """How long these CPUs were busy, whoever used them; ``None`` where it is not known."""
    if before is None or now is None or cpus is None or not set(cpus) <= before.keys() & now.keys():
        return None
    return sum(now[cpu] - before[cpu] for cpu in cpus)


def allowed_cpus(tids: Iterable[int]) -> CpuSet:
    """The CPUs that any of these threads may run on; empty where the platform does not tell."""
    host = get_host()
    bits = 0
    for tid in tids:
        try:
            bits |= host.get_affinity(tid).bits
        except BindingError:  # ended in between, or not told
            continue
    return CpuSet.from_bits(bits)
