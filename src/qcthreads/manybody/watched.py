"""From attempts that were watched to a run's figures, findings and record; pure, measures and renders nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..cpuset import CpuSet
from ..execution.calculation import Outcome
from ..execution.changing import Change
from ..execution.labels import label_order, short_label, short_labels
from ..execution.observing import Attempt, Watching
from ..execution.source import Planned
from ..host.limits import Limits, Rule
from ..leases import LeaseBook
from ..monitoring.findings import Advice, merged
from ..monitoring.metrics import RunNow
from ..monitoring.record import Calculated
from ..monitoring.statistics import Finding, Moment, UsablePUs, WorkerUsage, ratio, sum_known
from ..units import format_size

if TYPE_CHECKING:
    from ..monitoring.run_monitor import RunMonitor

# Of all usable PUs, on average over a run that is long enough for its beginning and its end not to be all of it.
_IDLE_SHARE = 0.25
_LONG_RUN_S = 10.0

# Idle PUs over time are told in so many steps at most.
_STEPS = 60


def figures(attempts: Sequence[Attempt], moments: Sequence[Moment], usable: UsablePUs) -> dict[str, Any]:
    """What was seen of threads, CPUs and run queues, as data; ``None``: not known.

    ``run_queue_s``: run-queue delay of all threads. ``contention``: run-queue delay / (run-queue delay + CPU time).
    ``idle_pus``: PUs usable at the time less the CPU time of workers, on average. ``idle_over_time``: the same at up to
    60 times. ``migrations``; ``worker_processes``: each with what it computed.
    """
    usages = [attempt.usage for attempt in attempts if attempt.usage is not None]
    wait_ns = sum_known(usage.wait_ns for usage in usages) if usages else None
    cpu_ns = sum(usage.cpu_ns for usage in usages)
    idle = _idle(moments, usable)
    return {
        "watched": len(usages),
        "run_queue_s": None if wait_ns is None else wait_ns / 1e9,
        "contention": None if wait_ns is None else ratio(wait_ns, wait_ns + cpu_ns),
        "idle_pus": _mean_idle(moments, usable),
        "idle_over_time": [{"at_s": at_s, "idle_pus": pus} for at_s, pus in idle],
        "migrations": sum(usage.migrations for usage in usages) if usages else None,
        "worker_processes": _workers(attempts),
    }


def within(moments: Sequence[Moment], spans: Iterable[tuple[float, float]]) -> tuple[Moment, ...]:
    """The moments that end within one of ``spans``, in seconds of the same clock, as if these followed each other."""
    found: list[Moment] = []
    before_s = 0.0
    for began_s, ended_s in spans:
        found += [replace(one, at_s=before_s + one.at_s - began_s) for one in moments if began_s <= one.at_s <= ended_s]
        before_s += ended_s - began_s
    return tuple(found)


def elapsed_s(spans: Iterable[tuple[float, float]], at_s: float) -> float:
    """How much of ``spans``, in seconds of the same clock, was over at a time."""
    return sum(max(0.0, min(at_s, ended_s) - began_s) for began_s, ended_s in spans)


def told_change(change: Change, at_s: float, each: tuple[int, int, int] | None) -> dict[str, Any]:
    """As data. ``each``: how many run side by side from then on, threads and memory of each; ``None``: their own."""
    workers, threads, memory_bytes = each or (None, None, None)
    return {
        "at_s": at_s,
        "why": change.why,
        "cpus_usable": list(change.usable),
        "memory_bytes": change.memory_bytes,
        "workers": workers,
        "threads": threads,
        "memory_bytes_per_worker": memory_bytes,
    }


def bandwidth(monitor: RunMonitor) -> dict[str, Any] | None:
    """Of memory, or why it is not measurable; ``None`` where nothing was watched."""
    return None if monitor.counts is None else asdict(monitor.bandwidth)


def sampling(monitor: RunMonitor) -> dict[str, Any] | None:
    """What the sampling did and cost; ``None`` where there was none."""
    counts = monitor.counts
    if counts is None:
        return None
    return {
        "source": monitor.source,
        "samples": counts.samples,
        "detailed": counts.detailed,
        "overruns": counts.overruns,
        "dropped": counts.dropped,
        "own_cpu_s": counts.own_cpu_ns / 1e9,
    }


def findings(
    attempts: Iterable[Attempt], moments: Sequence[Moment], usable: UsablePUs, advice: Advice
) -> list[Finding]:
    """What was found about calculations, each kind once, and about the run as a whole."""
    watched = (
        (short_label(attempt.outcome.label), attempt.grant, _with_peak(attempt, attempt.usage))
        for attempt in attempts
        if attempt.usage is not None
    )
    found = merged(watched, advice)
    # Where threads of the run are ready, and others have the CPU, more workers would not help.
    wanted = _mean(moments, lambda moment: moment.cpus_busy + (moment.cpus_waited_for or 0.0))
    there = usable.mean(0.0, moments[-1].at_s) if moments else 0.0
    if wanted is not None and moments[-1].at_s >= _LONG_RUN_S and there - wanted > _IDLE_SHARE * there:
        found.append(
            Finding(
                kind="idle",
                message=f"{there - wanted:.1f} of {round(there, 1):g} usable PUs had nothing to do on average: "
                f"{advice.idle}; at the beginning workers start, and at the end the longest calculation may have run "
                "alone",
            )
        )
    return found


def live(watching: Watching, book: LeaseBook, *, total: int, reused: int) -> RunNow:
    """A run at this moment; calculations are told apart by label, so that a retry does not count twice."""
    monitor = watching.monitor
    # What the program was asked before the run began has a label of its own kind.
    attempts = [one for one in watching.attempts if label_order(one.outcome.label)[0]]
    status = {one.outcome.label: one.outcome.status for one in attempts}
    held, counts = book.held(), monitor.counts
    usages = [one.usage for one in attempts if one.usage is not None]
    wait_ns = sum_known(usage.wait_ns for usage in usages)
    return RunNow(
        finished=sum(one == "finished" for one in status.values()),
        failed=sum(one == "failed" for one in status.values()),
        reused=reused,
        running=sum(label_order(label)[0] > 0 for label in watching.running),
        total=total,
        pus_usable=len(book.usable),
        pus_leased=sum(len(lease.cpus) for lease in held),
        moment=monitor.now,
        cpu_s=sum(map(cpu_s_of, attempts)),
        run_queue_s=None if wait_ns is None else wait_ns / 1e9,
        sampler_cpu_s=None if counts is None else counts.own_cpu_ns / 1e9,
    )


def calculated(
    attempts: Iterable[Attempt], began_at: float, planned: Mapping[str, Planned] | None = None
) -> tuple[Calculated, ...]:
    """All attempts in order of start, as the tables name them; by label, what was planned."""
    ordered = sorted(attempts, key=_order)
    names = short_labels(attempt.outcome.label for attempt in ordered)
    return tuple(
        _calculated(one, names[one.outcome.label], began_at, (planned or {}).get(one.outcome.label)) for one in ordered
    )


def limits_in_words(limits: Limits) -> tuple[str, ...]:
    """Each rule with what it allows and where it is told, the tightest first."""
    rules = sorted(limits.rules, key=lambda rule: not rule.tightest)
    return tuple(f"{rule.rule}: {_allowed(rule)} ({rule.source})" for rule in rules)


def _order(attempt: Attempt) -> tuple[float, tuple[int, list[int], list[int]], int]:
    outcome = attempt.outcome
    return outcome.started_at, label_order(outcome.label), outcome.attempts


def _calculated(attempt: Attempt, name: str, began_at: float, planned: Planned | None) -> Calculated:
    outcome, usage = attempt.outcome, attempt.usage
    start_s = outcome.started_at - began_at
    wait_ns = None if usage is None else usage.wait_ns
    return Calculated(
        label=name,
        group=str(label_order(outcome.label)[0]),
        attempt=outcome.attempts,
        status=outcome.status,
        error=outcome.error or "",
        pid=outcome.worker_pid,
        threads=outcome.threads,
        threads_working=None if usage is None else usage.threads_working,
        cpus=outcome.cpus,
        cpus_seen=CpuSet() if usage is None else usage.cpus_seen,
        start_s=start_s,
        end_s=start_s + outcome.wall_s,
        waited_s=outcome.waited_s,
        cpu_s=cpu_s_of(attempt),
        run_queue_s=None if wait_ns is None else wait_ns / 1e9,
        memory_granted_bytes=attempt.grant.memory_bytes,
        memory_peak_bytes=peak_bytes(outcome, usage),
        planned_start_s=None if planned is None else planned.start_at - began_at,
        planned_end_s=None if planned is None or planned.end_at is None else planned.end_at - began_at,
    )


def cpu_s_of(attempt: Attempt) -> float:
    """CPU time: as the worker tells of itself, or as last seen of one that was ended, which tells nothing."""
    return attempt.outcome.cpu_s or (0.0 if attempt.usage is None else attempt.usage.cpu_ns / 1e9)


def peak_bytes(outcome: Outcome, usage: WorkerUsage | None) -> int:
    """Of resident memory: as the worker tells of itself, or as seen with all its processes, whichever is more."""
    return max(outcome.peak_memory_bytes, 0 if usage is None else usage.memory_peak_bytes)


def _with_peak(attempt: Attempt, usage: WorkerUsage) -> WorkerUsage:
    return replace(usage, memory_peak_bytes=peak_bytes(attempt.outcome, usage))


def _mean_idle(moments: Sequence[Moment], usable: UsablePUs) -> float | None:
    busy = _mean(moments, lambda moment: moment.cpus_busy)
    return None if busy is None else max(0.0, usable.mean(0.0, moments[-1].at_s) - busy)


def _mean(moments: Sequence[Moment], figure: Callable[[Moment], float]) -> float | None:
    """Weighted by time; a moment lasts from the one before it."""
    sum_s = before_s = 0.0
    for moment in moments:
        sum_s += figure(moment) * (moment.at_s - max(before_s, 0.0))
        before_s = moment.at_s
    return sum_s / before_s if before_s > 0 else None


def _idle(moments: Sequence[Moment], usable: UsablePUs) -> list[tuple[float, float]]:
    """Averages over equal numbers of moments, each at its end."""
    size = max(1, -(-len(moments) // _STEPS))
    parts = [moments[at : at + size] for at in range(0, len(moments), size)]
    told, before_s = [], 0.0
    for part in parts:
        until_s, busy = part[-1].at_s, sum(one.cpus_busy for one in part) / len(part)
        told.append((until_s, max(0.0, usable.mean(before_s, until_s) - busy)))
        before_s = until_s
    return told


def _workers(attempts: Iterable[Attempt]) -> list[dict[str, Any]]:
    by_pid: dict[int, list[Attempt]] = {}
    for attempt in attempts:
        by_pid.setdefault(attempt.outcome.worker_pid, []).append(attempt)
    return [_worker(pid, done) for pid, done in by_pid.items()]


def _worker(pid: int, done: Sequence[Attempt]) -> dict[str, Any]:
    usages = [attempt.usage for attempt in done if attempt.usage is not None]
    wait_ns = sum_known(usage.wait_ns for usage in usages) if usages else None
    cpu_s = sum(map(cpu_s_of, done))
    thread_s = sum(attempt.outcome.threads * attempt.outcome.wall_s for attempt in done)
    start = done[0].worker_start
    return {
        "pid": pid,
        "start_s": None if start is None else start.wall_s,
        "start_cpu_s": None if start is None else start.cpu_s,
        "calculations": len(done),
        "threads": max(attempt.outcome.threads for attempt in done),
        "threads_working": max((usage.threads_working for usage in usages), default=None),
        "wall_s": sum(attempt.outcome.wall_s for attempt in done),
        "cpu_s": cpu_s,
        "efficiency": ratio(cpu_s, thread_s) if thread_s else None,
        "run_queue_s": None if wait_ns is None else wait_ns / 1e9,
        "migrations": sum(usage.migrations for usage in usages) if usages else None,
        "cpus_seen": list(CpuSet(cpu for usage in usages for cpu in usage.cpus_seen)),
        "memory_peak_bytes": max(peak_bytes(attempt.outcome, attempt.usage) for attempt in done),
    }


def _allowed(rule: Rule) -> str:
    if rule.cpus is not None:
        return f"PUs {rule.cpus}"
    return f"{rule.cpu_count:g} PUs" if rule.cpu_count is not None else format_size(rule.memory_bytes or 0)
