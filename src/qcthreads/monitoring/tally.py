"""From samples of one worker to what it did between the first and the last; pure, asks no operating system."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil

from ..cpuset import CpuSet
from ..host.sampling import Rows, Sample
from .statistics import Grant, Moment, ThreadUsage, WorkerUsage, ratio

# Of the wall time. A thread that waits for work and polls now and then stays below.
WORKING_SHARE = 0.05

# Threads are counted and moments are drawn once in this time: short against a calculation.
_WINDOW_NS = 1_000_000_000

# Threads work side by side when each of them works in this time: long against a tick. Of ten samples a second the times
# between two are a little more or less than a tenth.
_SLICE_NS = 90_000_000

# So many as worked side by side for this share of a window: one thread that follows another, as the work follows the
# start of a program, shares no more than a slice or two with it.
_SIDE_BY_SIDE_SHARE = 0.25


@dataclass(slots=True)
class _Thread:
    """A thread as last seen, and what it had used when the tally, the window and the slice of it began."""

    started_ticks: int | None
    begin_cpu_ns: int = 0
    window_cpu_ns: int = 0
    slice_cpu_ns: int = 0
    detail_cpu_ns: int = 0
    cpu_ns: int = 0
    begin_wait_ns: int = 0
    wait_ns: int = -1
    last_cpu: int = -1
    migrations: int = 0
    window: int = 0
    """In which it was seen last."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all processes at one moment, with everything that ended before it."""

    at_ns: int
    clock_ns: int
    gone_ns: int
    waited_for_ns: int
    wait_ns: int | None


class Tally:
    """Counts the samples of one worker, which are those of one root; the first and the last have details.

    ``allowed``: the CPUs that its threads may run on at first. ``began_ns``: when the root was started, where
    everything that it has done since is to be counted, not only what follows the first sample.
    """

    def __init__(self, first: Sample, allowed: CpuSet | None = None, began_ns: int | None = None) -> None:
        self._threads: dict[tuple[int, int], _Thread] = {}
        self._cpus_seen: set[int] = set()
        self._allowed = allowed or CpuSet()
        self._migrations = self._looks = self._disk_looks = self._peak_bytes = self._forgotten_ns = 0
        self._states_told = False
        self._moments: list[Moment] = []
        self._window = self._most_working = 0
        self._worked_ns: Counter[int] = Counter()
        self._slice_begin_ns = first.at_ns if began_ns is None else began_ns
        self._last = first
        self._begin = self._window_begin = self._now = totals_of(first)
        self._take_times(first)
        if began_ns is None:
            for thread in self._threads.values():
                thread.begin_cpu_ns = thread.window_cpu_ns = thread.slice_cpu_ns = thread.cpu_ns
                thread.detail_cpu_ns = thread.cpu_ns
                thread.begin_wait_ns = thread.wait_ns
        else:
            self._begin = self._window_begin = Totals(began_ns, 0, 0, 0, self._now.wait_ns and 0)
        self._take_details(first)
        if began_ns is None:  # a peak that was before is not of this tally
            self._peak_bytes = _sum(_all_of(first)[0], "memory_bytes")

    @property
    def began_ns(self) -> int:
        """What it counts from, of the monotonic clock."""
        return self._begin.at_ns

    @property
    def ended(self) -> bool:
        """Whether the root has ended; it may not have been waited for yet."""
        processes, threads, details = _all_of(self._last)
        root = processes[processes["pid"] == processes["root"]][0]
        return bool(root["ended"]) or bool((details["state"][threads["pid"] == root["pid"]] == b"Z").all())

    def add(self, sample: Sample, allowed: CpuSet | None = None) -> None:
        """Count one more; ``allowed``: the CPUs that its threads may run on now."""
        self._allowed |= allowed or CpuSet()
        self._take_times(sample)
        if sample.details is None:
            return
        self._last, self._now = sample, totals_of(sample)
        self._looks += 1
        self._take_details(sample)
        if sample.at_ns - self._window_begin.at_ns >= _WINDOW_NS:
            self._end_window()

    def usage(
        self,
        grant: Grant,
        error_ns: int,
        busy_ns: int | None = None,
        throttled_ns: int | None = None,
        *,
        in_detail: bool = True,
    ) -> WorkerUsage:
        """What it did since the first sample.

        ``busy_ns``: what everybody did on the CPUs that it is bound to. ``throttled_ns``: how long a quota stopped it.
        ``in_detail``: with its threads and moments.
        """
        if not self._moments or self._now.at_ns - self._window_begin.at_ns >= _WINDOW_NS // 2:
            self._end_window()
        wall_ns = self._now.at_ns - self._begin.at_ns
        cpu_ns = cpu_between(self._begin, self._now)
        wait_ns = wait_between(self._begin, self._now)
        processes, _, _ = _all_of(self._last)
        cpus_seen = CpuSet(self._cpus_seen)
        ended = self.ended
        living = _living(self._last) if in_detail else ()
        return WorkerUsage(
            worker_id=grant.worker_id,
            pid=int(processes["root"][0]),
            ended=ended,
            threads_asked=grant.threads_asked,
            threads_working=self._most_working,
            wall_ns=wall_ns,
            cpu_ns=cpu_ns,
            wait_ns=wait_ns,
            cpu_error_ns=error_ns,
            cpu_unseen_ns=max(0, cpu_ns - self._forgotten_ns - sum(map(_used_ns, self._threads.values()))),
            thread_efficiency=ratio(cpu_ns, grant.threads_asked * wall_ns),
            wait_share=None if wait_ns is None else ratio(wait_ns, wait_ns + cpu_ns),
            imbalance=self._imbalance(wall_ns),
            disk_share=ratio(self._disk_looks, self._looks * grant.threads_asked) if self._states_told else None,
            migrations=self._migrations,
            cpus_allowed=self._allowed,
            cpus_seen=cpus_seen,
            cpus_outside=cpus_seen - grant.leased,
            other_cpu_ns=None if busy_ns is None else max(0, busy_ns - cpu_ns),
            throttled_ns=throttled_ns,
            memory_bytes=0 if ended else _sum(processes, "memory_bytes"),
            memory_peak_bytes=self._peak_bytes,
            looks=self._looks,
            threads=tuple(self._thread_usage(pid, tid, wall_ns) for pid, tid in living),
            moments=tuple(self._moments) if in_detail else (),
        )

    def _take_times(self, sample: Sample) -> None:
        started = [None] * len(sample.threads) if sample.details is None else sample.details["started_ticks"].tolist()
        slice_ns = sample.at_ns - self._slice_begin_ns
        ends_slice, working = slice_ns >= _SLICE_NS, 0
        for (pid, tid, cpu_ns, wait_ns, _), began in zip(sample.threads.tolist(), started, strict=True):
            thread = self._threads.get((pid, tid))
            if thread is None or cpu_ns < thread.cpu_ns or (began and thread.started_ticks not in (None, began)):
                thread = self._threads[pid, tid] = _Thread(began)
            thread.started_ticks = thread.started_ticks or began
            thread.cpu_ns, thread.wait_ns, thread.window = cpu_ns, wait_ns, self._window
            if ends_slice:
                working += cpu_ns - thread.slice_cpu_ns > WORKING_SHARE * slice_ns
                thread.slice_cpu_ns = cpu_ns
        if ends_slice:
            self._worked_ns[working] += slice_ns
            self._slice_begin_ns = sample.at_ns

    def _take_details(self, sample: Sample) -> None:
        processes, _, details = _all_of(sample)
        cpus, states = details["last_cpu"].tolist(), details["state"].tolist()
        for key, cpu, state in zip(_living(sample), cpus, states, strict=True):
            thread = self._threads[key]
            self._states_told |= state != b"?"
            self._disk_looks += state == b"D" and self._looks > 0
            if cpu >= 0 and thread.cpu_ns > thread.detail_cpu_ns:
                self._cpus_seen.add(cpu)
                moved = thread.last_cpu not in (-1, cpu)
                thread.migrations += moved
                self._migrations += moved
            thread.last_cpu, thread.detail_cpu_ns = cpu, thread.cpu_ns
        self._peak_bytes = max(self._peak_bytes, _sum(processes, "memory_peak_bytes"))

    def _end_window(self) -> None:
        """Threads that ended in the window before this one are forgotten: what they used is counted."""
        wall_ns = self._now.at_ns - self._window_begin.at_ns
        used_ns = [thread.cpu_ns - thread.window_cpu_ns for thread in self._threads.values()]
        working = sum(used > WORKING_SHARE * wall_ns for used in used_ns)
        cpus_busy = ratio(cpu_between(self._window_begin, self._now), wall_ns)
        # Those that came and went between two samples have used CPU time, too.
        at_least = ceil(cpus_busy - WORKING_SHARE)
        self._most_working = max(self._most_working, min(working, self._side_by_side()), at_least)
        wait_ns = wait_between(self._window_begin, self._now)
        processes, _, _ = _all_of(self._last)
        self._moments.append(
            Moment(
                at_s=(self._now.at_ns - self._begin.at_ns) / 1e9,
                cpus_busy=cpus_busy,
                cpus_waited_for=None if wait_ns is None else ratio(wait_ns, wall_ns),
                memory_bytes=_sum(processes, "memory_bytes"),
            )
        )
        gone = [key for key, thread in self._threads.items() if thread.window < self._window - 1]
        self._forgotten_ns += sum(_used_ns(self._threads.pop(key)) for key in gone)
        for thread in self._threads.values():
            thread.window_cpu_ns = thread.cpu_ns
        self._window += 1
        self._window_begin = self._now
        self._worked_ns.clear()

    def _side_by_side(self) -> int:
        """Threads that worked in the same slices, for long enough; all of them where a window has no slice."""
        # Nobody works in those in which the processes that do are not known yet.
        worked_ns = {working: held_ns for working, held_ns in self._worked_ns.items() if working}
        enough_ns = _SIDE_BY_SIDE_SHARE * sum(worked_ns.values())
        held_ns = 0
        for working in sorted(worked_ns, reverse=True):
            held_ns += worked_ns[working]
            if held_ns >= enough_ns:
                return working
        return len(self._threads)

    def _imbalance(self, wall_ns: int) -> float | None:
        used_ns = [_used_ns(thread) for thread in self._threads.values()]
        worked_ns = [used for used in used_ns if used > WORKING_SHARE * wall_ns]
        return 1 - sum(worked_ns) / len(worked_ns) / max(worked_ns) if len(worked_ns) > 1 else None

    def _thread_usage(self, pid: int, tid: int, wall_ns: int) -> ThreadUsage:
        thread = self._threads[pid, tid]
        used_ns, waited_ns = _used_ns(thread), thread.wait_ns - thread.begin_wait_ns
        return ThreadUsage(
            pid=pid,
            tid=tid,
            cpu_ns=thread.cpu_ns,
            wait_ns=thread.wait_ns if thread.wait_ns >= 0 else None,
            last_cpu=thread.last_cpu if thread.last_cpu >= 0 else None,
            utilisation=ratio(used_ns, wall_ns),
            wait_share=ratio(waited_ns, waited_ns + used_ns) if thread.wait_ns >= 0 else None,
            migrations=thread.migrations,
        )


def _used_ns(thread: _Thread) -> int:
    return thread.cpu_ns - thread.begin_cpu_ns


def totals_of(sample: Sample) -> Totals:
    """Of a sample with details."""
    processes, threads, _ = _all_of(sample)
    waits_ns = threads["wait_ns"].tolist()
    ended_ns = _sum(processes, "ended_wait_ns") + _sum(processes, "gone_wait_ns")
    return Totals(
        at_ns=sample.at_ns,
        clock_ns=_sum(processes, "cpu_ns"),
        gone_ns=_sum(processes, "gone_cpu_ns"),
        waited_for_ns=_sum(processes, "waited_for_ns"),
        wait_ns=None if min(waits_ns, default=0) < 0 else sum(waits_ns) + ended_ns,
    )


def _sum(rows: Rows, name: str) -> int:
    """Of few rows, as a process mostly has, numpy's own takes ten times as long."""
    return sum(rows[name].tolist())


def cpu_between(first: Totals, last: Totals) -> int:
    """Descendants that ended are counted as last seen, or, in clock ticks, by those who have waited for them."""
    gone_ns, waited_for_ns = last.gone_ns - first.gone_ns, last.waited_for_ns - first.waited_for_ns
    return last.clock_ns - first.clock_ns + max(gone_ns, waited_for_ns)


def wait_between(first: Totals, last: Totals) -> int | None:
    """Run-queue delay; ``None`` where it is not told."""
    return None if first.wait_ns is None or last.wait_ns is None else last.wait_ns - first.wait_ns


def _all_of(sample: Sample) -> tuple[Rows, Rows, Rows]:
    """Processes, threads and details of a sample that has them."""
    if sample.processes is None or sample.details is None:
        raise ValueError("a tally begins and ends with samples that have details")
    return sample.processes, sample.threads, sample.details


def _living(sample: Sample) -> list[tuple[int, int]]:
    return list(zip(sample.threads["pid"].tolist(), sample.threads["tid"].tolist(), strict=True))
