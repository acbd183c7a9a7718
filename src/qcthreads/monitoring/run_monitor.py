"""Watches the workers of a run by one sampler, and cuts what they did into calculations; starts and ends no worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..host import processes
from ..host.cpu_times import busy_ns
from ..host.sampling import RecorderCounts, Sample, TimesSource
from ..host.throttling import Throttling, throttled_between
from .bandwidth import BandwidthWatch
from .sampler import BackgroundSampler, best_source, error_ns
from .statistics import NOT_WATCHED, BandwidthUsage, Grant, Moment, WorkerUsage, ratio
from .tally import Tally, Totals, cpu_between, totals_of, wait_between
from .watch import allowed_cpus, busy_between

# The sampler's ring holds many minutes; a moment is told when it is this old.
_DRAIN_EVERY_S = 1.0

# /proc/stat counts in clock ticks of 10 ms: of a shorter calculation it says nothing, and one reading serves those who
# ask within a twentieth of that.
_TELLS_OF_OTHERS_NS = 1_000_000_000
_BUSY_HOLDS_NS = 50_000_000

# The last look at one calculation is the first at the next, where that begins so soon: the worker did not wait for us.
_LOOK_HOLDS_NS = 2_000_000


@dataclass(slots=True)
class _Watched:
    """A worker that computes."""

    grant: Grant
    tally: Tally
    busy: dict[int, int] | None
    throttled_ns: int | None
    """How long quotas had stopped it when it began."""
    seen_ns: int
    """When it was looked at last."""


class RunMonitor:
    """Any number of workers that come and go, each with one calculation at a time; from any threads.

    Long calculations are seen at the rates of :class:`BackgroundSampler`, and every one is looked at when it begins and
    when it ends, so that none is too short to be counted. The sampling begins with the first worker.
    """

    def __init__(self, source: TimesSource | None = None) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._sampler: BackgroundSampler | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._counts: RecorderCounts | None = None
        self._bandwidth: BandwidthWatch | None = None
        self._moved = NOT_WATCHED
        self._watched: dict[int, _Watched] = {}
        self._last_looks: dict[int, Sample] = {}
        """By worker, that at the end of its last calculation."""
        self._root_of: dict[int, int] = {}
        self._gone: set[int] = set()
        self._throttling: dict[int, Throttling] = {}
        self._before: dict[int, Totals] = {}
        self._settled_cpu_ns = self._settled_wait_ns = 0
        """Of workers that have ended since the last moment, for the next."""
        self._before_ns = 0
        self._busy: tuple[int, dict[int, int] | None] = (-_BUSY_HOLDS_NS, None)
        self._moments: list[tuple[int, Moment]] = []

    @property
    def source(self) -> TimesSource:
        """Where the times come from."""
        return self._source or best_source()

    @property
    def counts(self) -> RecorderCounts | None:
        """What the sampling has done and cost so far; ``None`` before it began."""
        with self._lock:
            return _sum(self._counts, self._sampler.counts) if self._sampler else self._counts

    @property
    def bandwidth(self) -> BandwidthUsage:
        """Of memory, by all workers or by the node, from the begin of the sampling, or the last time it was told."""
        with self._lock:
            return self._bandwidth.report() if self._bandwidth else self._moved

    def moments(self, since_ns: int) -> tuple[Moment, ...]:
        """All workers together, about every second; ``since_ns``, of the monotonic clock, is what they count from."""
        with self._lock:
            return tuple(replace(moment, at_s=(at_ns - since_ns) / 1e9) for at_ns, moment in self._moments)

    @property
    def now(self) -> Moment | None:
        """All workers together over the last second or so; nothing when the sampling has ended."""
        with self._lock:
            if self._sampler is None or not self._moments:
                return Moment(at_s=0.0, cpus_busy=0.0, cpus_waited_for=0.0, memory_bytes=0) if self._moments else None
            return self._moments[-1][1]

    def attach(self, pid: int) -> None:
        """The worker ``pid`` has started: it counts in the moments. Raises OSError where it cannot be watched."""
        with self._lock:
            self._attach(pid)

    def begin(self, pid: int, grant: Grant) -> None:
        """The worker ``pid`` begins a calculation. Raises OSError where it cannot be watched."""
        with self._lock:
            first = self._just_seen(pid) or self._attach(pid)
            throttled_ns = self._throttling[pid].total_ns()
            self._watched[pid] = _Watched(grant, Tally(first), self._busy_now(), throttled_ns, first.at_ns)

    def end(self, pid: int) -> WorkerUsage | None:
        """What the worker did since it began; ``None`` where it was not watched. Threads and moments are left out."""
        with self._lock:
            if pid not in self._watched or self._sampler is None:
                return None
            self._drain(self._sampler)
            watched = self._watched.pop(pid)
            last = self._sampler.look(pid)
            watched.tally.add(last, allowed_cpus(last.threads["tid"].tolist()))
            others_ns = None
            if last.at_ns - watched.tally.began_ns >= _TELLS_OF_OTHERS_NS:
                others_ns = busy_between(watched.busy, self._busy_now(), watched.grant.bound_to)
            stopped_ns = throttled_between(watched.throttled_ns, self._throttling[pid].total_ns())
            lag_ns = error_ns(self._sampler.source)
            used = watched.tally.usage(watched.grant, lag_ns, others_ns, stopped_ns, in_detail=False)
            self._last_looks[pid] = last
            if used.ended:
                self._settle(pid, last)
                self._forget(self._sampler, pid)
            return used

    def close(self) -> None:
        """End the sampling, but while workers live that others still have watched; the moments stay.

        It begins anew with the next calculation.
        """
        with self._lock:
            sampler, thread = self._sampler, self._thread
            if sampler is None:
                return
            if any(map(processes.lives, self._watched)):
                self._drain(sampler)
                return
            self._sampler, self._watched, self._last_looks = None, {}, {}
            self._ended.set()
            self._tell_bandwidth()
            try:
                sampler.stop()
            finally:
                self._drain(sampler)
                self._counts = _sum(self._counts, sampler.counts)
                self._root_of, self._gone, self._before, self._before_ns = {}, set(), {}, 0
                self._throttling = {}
                self._settled_cpu_ns = self._settled_wait_ns = 0
        if thread is not None:
            thread.join()

    def _just_seen(self, pid: int) -> Sample | None:
        last = self._last_looks.get(pid)
        return last if last is not None and time.monotonic_ns() - last.at_ns < _LOOK_HOLDS_NS else None

    def _attach(self, pid: int) -> Sample:
        """A look at it; what it did before it is looked at first counts nowhere."""
        first = self._first_look(self._running(), pid)
        if not self._before_ns:
            self._begin_moments(first)
        if pid not in self._root_of and self._bandwidth:
            self._bandwidth.watch(pid)
        self._root_of[pid] = pid
        if pid not in self._throttling:
            self._throttling[pid] = Throttling(pid)
        self._before.setdefault(pid, totals_of(first))
        return first

    def _running(self) -> BackgroundSampler:
        if self._sampler is None:
            self._sampler = BackgroundSampler([], source=self._source).__enter__()
            self._bandwidth = BandwidthWatch()
            self._ended = threading.Event()
            self._thread = threading.Thread(
                target=self._drain_often, args=(self._sampler, self._ended), name="qcthreads-monitor", daemon=True
            )
            self._thread.start()
        return self._sampler

    def _tell_bandwidth(self) -> None:
        if self._bandwidth is not None:
            self._moved = self._bandwidth.report()
            self._bandwidth.close()
            self._bandwidth = None

    def _first_look(self, sampler: BackgroundSampler, pid: int) -> Sample:
        """Anew where a process of this number was watched that has ended."""
        sampler.attach(pid)
        first = sampler.look(pid)
        if _ended(first, pid):
            self._forget(sampler, pid)
            sampler.attach(pid)
            first = sampler.look(pid)
        return first

    def _forget(self, sampler: BackgroundSampler, pid: int) -> None:
        sampler.detach(pid)
        self._before.pop(pid, None)
        self._last_looks.pop(pid, None)
        self._throttling.pop(pid, None)
        self._gone.discard(pid)

    def _settle(self, pid: int, last: Sample) -> None:
        now = totals_of(last)
        before = self._before.get(pid, now)
        self._settled_cpu_ns += max(0, cpu_between(before, now))
        self._settled_wait_ns += max(0, wait_between(before, now) or 0)

    def _drain_often(self, sampler: BackgroundSampler, ended: threading.Event) -> None:
        while not ended.wait(_DRAIN_EVERY_S):
            with self._lock:
                if ended.is_set():
                    return
                self._drain(sampler)
                for pid in self._gone - self._watched.keys():
                    self._forget(sampler, pid)

    def _drain(self, sampler: BackgroundSampler) -> None:
        for sample in sampler.take():
            if sample.processes is not None:
                found = zip(sample.processes["pid"].tolist(), sample.processes["root"].tolist(), strict=True)
                # A worker that began after this sample is not in it, and is in the next ones.
                self._root_of = {**{pid: pid for pid in self._watched}, **dict(found)}
            for root, part in _by_root(sample, self._root_of):
                watched = self._watched.get(root)
                if watched is not None and part.at_ns > watched.seen_ns:
                    watched.seen_ns = part.at_ns
                    detailed = part.details is not None
                    watched.tally.add(part, allowed_cpus(part.threads["tid"].tolist()) if detailed else None)
            if sample.processes is not None:
                self._add_moment(sample)

    def _begin_moments(self, first: Sample) -> None:
        """Nothing was computed until now."""
        assert first.processes is not None
        memory_bytes = int(first.processes["memory_bytes"].sum())
        nothing = Moment(at_s=0.0, cpus_busy=0.0, cpus_waited_for=0.0, memory_bytes=memory_bytes)
        self._moments.append((first.at_ns, nothing))
        self._before_ns = first.at_ns

    def _add_moment(self, sample: Sample) -> None:
        """What all did since the sample with details before."""
        wall_ns = sample.at_ns - self._before_ns
        if not self._before_ns or wall_ns <= 0 or sample.processes is None:
            return
        cpu_ns, wait_ns, told = self._settled_cpu_ns, self._settled_wait_ns, True
        self._settled_cpu_ns = self._settled_wait_ns = 0
        for root, part in _by_root(sample, self._root_of):
            now = totals_of(part)
            before = self._before.get(root, now)
            waited_ns = wait_between(before, now)
            told = told and waited_ns is not None
            cpu_ns, wait_ns = cpu_ns + cpu_between(before, now), wait_ns + (waited_ns or 0)
            self._before[root] = now
            if _ended(part, root):
                self._gone.add(root)
        moment = Moment(
            at_s=0.0,
            cpus_busy=ratio(max(cpu_ns, 0), wall_ns),
            cpus_waited_for=ratio(max(wait_ns, 0), wall_ns) if told else None,
            memory_bytes=int(sample.processes["memory_bytes"].sum()),
        )
        self._moments.append((sample.at_ns, moment))
        self._before_ns = sample.at_ns

    def _busy_now(self) -> dict[int, int] | None:
        at_ns, busy = self._busy
        now_ns = time.monotonic_ns()
        if now_ns - at_ns > _BUSY_HOLDS_NS:
            busy = busy_ns()
            self._busy = now_ns, busy
        return busy


def _sum(before: RecorderCounts | None, now: RecorderCounts) -> RecorderCounts:
    if before is None:
        return now
    return RecorderCounts(**{name: count + getattr(before, name) for name, count in asdict(now).items()})


def _ended(sample: Sample, root: int) -> bool:
    assert sample.processes is not None
    return bool(sample.processes["ended"][sample.processes["pid"] == root].all())


def _by_root(sample: Sample, root_of: dict[int, int]) -> Iterator[tuple[int, Sample]]:
    """The part of each root. Processes that were found since the last sample with details are in the next."""
    roots = np.array([root_of.get(pid, 0) for pid in sample.threads["pid"].tolist()], dtype=np.int64)
    for root in set(roots.tolist() if sample.processes is None else sample.processes["root"].tolist()) - {0}:
        its = roots == root
        if sample.details is None or sample.processes is None:
            yield root, Sample(sample.at_ns, sample.threads[its])
        else:
            processes = sample.processes[sample.processes["root"] == root]
            yield root, Sample(sample.at_ns, sample.threads[its], sample.details[its], processes)
