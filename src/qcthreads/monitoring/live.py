"""What runs under every lease of the node between one look and the next; looks, and changes nothing.

A process belongs to the lease that its mask lies in; one that is not bound, to its holder's, where he has no other.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from ..closing import Closing
from ..cpuset import CpuSet
from ..errors import ProcessGoneError
from ..host import processes
from ..host.cpu_times import busy_ns
from ..host.sampling import Rows, Sample
from ..leases.place import Place, find_place
from ..leases.snapshot import Held, Queued, read_book
from ..leases.strays import live_under
from .sampler import ThreadSampler
from .statistics import ratio
from .tally import WORKING_SHARE

_PATIENCE_S = 0.2  # at the door of the book of leases: a turn takes a tenth of a millisecond


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadNow:
    """One thread that lives; shares are of the time since the look before."""

    pid: int
    tid: int
    state: str
    """As in proc_pid_stat(5); ``?`` where it is not told."""
    last_cpu: int | None
    busy: float
    wait: float | None
    """The share that it waited for a CPU; ``None`` where the platform does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseNow:
    """A lease, and what its processes do; ``threads`` is ``None`` where they cannot be seen."""

    held: Held
    runs: str
    """The command of its busiest process; the holder's where none is seen."""
    calculation: str
    """What a worker of a run computes, in as many letters as a process's name has; empty: none is seen."""
    processes: int
    memory_bytes: int
    busy: float | None
    """CPUs that its processes kept busy, by their own clocks: threads that have ended meanwhile count, too."""
    threads: tuple[ThreadNow, ...] | None

    @property
    def cpus(self) -> CpuSet:
        """Its PUs."""
        return self.held.holding.cpus

    @property
    def threads_working(self) -> int | None:
        """Threads that used more than 5 % of the time."""
        return None if self.threads is None else sum(thread.busy > WORKING_SHARE for thread in self.threads)

    @property
    def efficiency(self) -> float | None:
        """CPU time of the processes that live / (PUs x time)."""
        return None if self.busy is None else ratio(self.busy, len(self.cpus))

    @property
    def wait_share(self) -> float | None:
        """Run-queue delay / (run-queue delay + CPU time)."""
        if self.threads is None or any(thread.wait is None for thread in self.threads):
            return None
        wait = sum(thread.wait or 0.0 for thread in self.threads)
        return ratio(wait, wait + sum(thread.busy for thread in self.threads))


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """The node between two looks."""

    place: Place
    at_s: float
    """Seconds since the epoch."""
    interval_s: float
    cpus_busy: Mapping[int, float] | None
    """The share of the time that anybody used each CPU; ``None`` where it is not told."""
    leases: tuple[LeaseNow, ...]
    queue: tuple[Queued, ...]
    shut: bool
    """The book was kept shut: the leases may be out of date."""


@dataclass(slots=True)
class _Holder:
    """A process that holds leases, with its descendants."""

    sampler: ThreadSampler
    before: Sample
    sample: Sample


@dataclass(frozen=True, slots=True)
class _HolderNow:
    """Of a holder's processes, by number."""

    threads: Mapping[int, list[ThreadNow]]
    busy: Mapping[int, float]
    memory: Mapping[int, int]


class Live(Closing):
    """Looks again and again; each look tells of the time since the one before. A context manager, for one thread."""

    def __init__(self, place: Place | None = None) -> None:
        self._place = place or find_place(create=False)
        self._holders: dict[str, _Holder] = {}
        self._at_ns = time.monotonic_ns()
        self._busy_ns = busy_ns()
        self.look()

    def look(self) -> Now:
        """What was since the look before; the first is taken when this object is made. LeaseError, as of the book."""
        book = read_book(self._place, patience_s=_PATIENCE_S, thorough=False)
        leases = [lease for lease in book.leases if lease.state != "dead"]
        interval_ns, busy = time.monotonic_ns() - self._at_ns, busy_ns()
        self._at_ns += interval_ns
        now = Now(
            place=self._place,
            at_s=time.time(),
            interval_s=interval_ns / 1e9,
            cpus_busy=_shares(self._busy_ns, busy, interval_ns),
            leases=tuple(self._leases(leases)),
            queue=book.queue,
            shut=book.shut,
        )
        self._busy_ns = busy
        return now

    def close(self) -> None:
        """Close what is open."""
        for holder in self._holders.values():
            holder.sampler.close()
        self._holders.clear()

    def _leases(self, leases: Iterable[Held]) -> list[LeaseNow]:
        by_holder: dict[str, list[Held]] = defaultdict(list)
        for lease in leases:
            by_holder[lease.holding.owner.mark].append(lease)
        for mark in self._holders.keys() - by_holder.keys():
            self._holders.pop(mark).sampler.close()
        found = {one.held.holding.name: one for mark, held in by_holder.items() for one in self._of_holder(mark, held)}
        return [found[lease.holding.name] for lease in leases]

    def _of_holder(self, mark: str, leases: list[Held]) -> list[LeaseNow]:
        holder = self._seen(mark, leases[0])
        if holder is None:
            return [_unseen(lease) for lease in leases]
        seen = _HolderNow(_thread_shares(holder), _process_shares(holder), _memory(holder.sample))
        lease_of = {pid: _lease_of(pid, leases) for pid in seen.memory}
        return [_lease_now(lease, [pid for pid in lease_of if lease_of[pid] is lease], seen) for lease in leases]

    def _seen(self, mark: str, lease: Held) -> _Holder | None:
        """The holder with a new sample; ``None`` at the first look at it, and where nothing of it is seen."""
        holder = self._holders.get(mark)
        if holder is not None:
            holder.before, holder.sample = holder.sample, holder.sampler.look()
            if len(holder.sample.threads):
                return holder
            self._holders.pop(mark).sampler.close()
        # Of one that has ended what it left behind.
        roots = [lease.pid] if lease.pid and processes.lives(lease.pid) else live_under(mark)
        with contextlib.suppress(ProcessGoneError):
            if roots:
                sampler = ThreadSampler(roots)
                first = sampler.look()
                self._holders[mark] = _Holder(sampler, first, first)
        return None


def _shares(before: dict[int, int] | None, now: dict[int, int] | None, interval_ns: int) -> dict[int, float] | None:
    if before is None or now is None:
        return None
    return {cpu: min(1.0, ratio(now[cpu] - before[cpu], interval_ns)) for cpu in now if cpu in before}


def _times(sample: Sample) -> dict[tuple[int, int], tuple[int, int]]:
    return {(pid, tid): (cpu_ns, wait_ns) for pid, tid, cpu_ns, wait_ns, _ in sample.threads.tolist()}


def _thread_shares(holder: _Holder) -> dict[int, list[ThreadNow]]:
    """By process; a thread that was not there at the look before began after it."""
    sample, before = holder.sample, _times(holder.before)
    shares: dict[int, list[ThreadNow]] = defaultdict(list)
    interval_ns = sample.at_ns - holder.before.at_ns
    rows = cast(Rows, sample.details)  # ThreadSampler.look() has them
    details = zip(rows["state"].tolist(), rows["last_cpu"].tolist(), strict=True)
    for (pid, tid, cpu_ns, wait_ns, _), (state, last_cpu) in zip(sample.threads.tolist(), details, strict=True):
        cpu_before_ns, wait_before_ns = before.get((pid, tid), (0, 0))
        shares[pid].append(
            ThreadNow(
                pid=pid,
                tid=tid,
                state=state.decode("ascii", "replace"),
                last_cpu=last_cpu if last_cpu >= 0 else None,
                busy=ratio(max(0, cpu_ns - cpu_before_ns), interval_ns),
                wait=None if wait_ns < 0 else ratio(max(0, wait_ns - wait_before_ns), interval_ns),
            )
        )
    return shares


def _process_shares(holder: _Holder) -> dict[int, float]:
    """By process, of those that live; one that was not there at the look before began after it."""
    interval_ns = holder.sample.at_ns - holder.before.at_ns
    before, now = _clocks(holder.before), _clocks(holder.sample)
    return {key[0]: ratio(max(0, cpu_ns - before.get(key, 0)), interval_ns) for key, cpu_ns in now.items()}


def _clocks(sample: Sample) -> dict[tuple[int, int], int]:
    """By number and start, of processes that live."""
    rows = cast(Rows, sample.processes)
    rows = rows[rows["ended"] == 0]
    return dict(
        zip(
            zip(rows["pid"].tolist(), rows["started_ticks"].tolist(), strict=True), rows["cpu_ns"].tolist(), strict=True
        )
    )


def _memory(sample: Sample) -> dict[int, int]:
    """Resident memory by process, of those that live."""
    rows = cast(Rows, sample.processes)
    return {int(row["pid"]): max(0, int(row["memory_bytes"])) for row in rows if not row["ended"]}


def _lease_of(pid: int, leases: list[Held]) -> Held | None:
    mask = processes.mask(pid)
    if mask:
        for lease in leases:
            if mask <= lease.holding.reserved:
                return lease
    return leases[0] if len(leases) == 1 else None


def _lease_now(lease: Held, pids: list[int], seen: _HolderNow) -> LeaseNow:
    threads = [thread for pid in pids for thread in seen.threads.get(pid, ())]
    busiest = max(pids, key=lambda pid: seen.busy[pid], default=None)
    return LeaseNow(
        held=lease,
        runs=(processes.command(busiest) if busiest else "") or lease.holding.owner.command,
        calculation=next(filter(None, map(_computes, pids)), ""),
        processes=len(pids),
        memory_bytes=sum(seen.memory[pid] for pid in pids),
        busy=sum(seen.busy[pid] for pid in pids),
        threads=tuple(sorted(threads, key=lambda thread: -thread.busy)),
    )


def _computes(pid: int) -> str:
    name = processes.name(pid)
    return name.removeprefix(processes.WORKER_NAME) if name.startswith(processes.WORKER_NAME) else ""


def _unseen(lease: Held) -> LeaseNow:
    command = lease.holding.owner.command
    return LeaseNow(held=lease, runs=command, calculation="", processes=0, memory_bytes=0, busy=None, threads=None)
