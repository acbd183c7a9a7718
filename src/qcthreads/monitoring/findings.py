"""What a user should know about a worker, in plain words, with the number and the remedy; judges, never measures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..cpuset import CpuSet
from ..units import format_count, format_size
from .statistics import CalculationFinding, Finding, FindingKind, Grant, WorkerUsage, ratio, sum_known

# Below this, a worker that just began, or a look that follows at once on another, would be called idle.
_ENOUGH_TO_JUDGE_NS = 50_000_000

CONTENDED_SHARE = 0.10
"""Of the time that threads wanted to run. Two that share a CPU wait half of it; interrupts cost well under a tenth."""

# Of the wall time. What sleeps and only wakes up now and then says nothing of the CPUs that it is woken on.
_WANTED_SHARE = 0.05

# A team whose members do the same work stays below; one thread that works half of the time beside one that does all of
# it is 0.25.
_IMBALANCED_SHARE = 0.25

# In so many looks chance calls no thread a waiter for disk that waits for a moment.
_LOOKS_FOR_DISK = 5
_DISK_SHARE = 0.20

# Of the CPUs that a worker is bound to. What the system does for itself stays well below.
_OTHERS_SHARE = 0.10

# Of the time of all calculations. What is true of a few short ones is no advice for the run; what nobody may do is.
_WORTH_TELLING_SHARE = 0.10
_NEVER_ALLOWED = ("escaped", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What can be done, in the words of the one who reads it; ``{threads}`` is what worked, such as "2 threads"."""

    too_many: str
    width: str
    fewer_threads: str
    other_cpus: str
    leave_cpus_out: str
    scratch: str
    memory: str
    idle: str
    given: str = "was given {threads}"
    """Where the width comes from."""
    escaped: str = (
        "something in it sets its own mask (mpirun's binding, GOMP_CPU_AFFINITY, KMP_AFFINITY, taskset); switch it off"
    )


OF_A_LEASE = Advice(
    too_many="tell every threading runtime its width (OPENBLAS_NUM_THREADS as well as OMP_NUM_THREADS), or ask for "
    "{threads}",
    width="ask for {threads}",
    fewer_threads="ask for fewer threads and run more calculations side by side",
    other_cpus="use other CPUs",
    leave_cpus_out="leave these CPUs out",
    scratch="give it a faster scratch directory",
    memory="tell the program less, or use fewer workers",
    idle="use more workers",
)
"""For who chose the width."""

OF_ITS_CPUS = replace(OF_A_LEASE, given="has CPUs for {threads}")
"""For who chose none."""

OF_A_RUN = Advice(
    too_many="look for a setting of its own in its keywords, or give each calculation {threads} by --threads",
    width="give each calculation {threads} by --threads",
    fewer_threads="give each fewer by --threads, so that more run side by side",
    other_cpus="keep off them by --cpus or --leave, or wait for others by --busy wait",
    leave_cpus_out="leave these CPUs out by --cpus",
    scratch="give a faster directory by --scratch",
    memory="leave it more by fewer --workers, or a larger --memory",
    idle="use more workers, or let --strategy auto decide",
)
"""For who said how a run divides the CPUs."""

OF_AN_AUTO_RUN = replace(
    OF_A_RUN,
    width="the run itself chose the width, by what it could foresee; --threads sets that of all",
    idle="what was decided says why no more ran side by side",
)
"""For who left that to the run."""

OF_AN_EXECUTOR = Advice(
    too_many="look for a setting of its own in its keywords, or give each calculation {threads} by "
    "HybridParallelConfig(qc_threads_per_fragment=...)",
    width="give each calculation {threads} by HybridParallelConfig(qc_threads_per_fragment=...)",
    fewer_threads="give each fewer by HybridParallelConfig(qc_threads_per_fragment=...), so that more run side by side",
    other_cpus="lower max_workers, or start this process on other CPUs by taskset",
    leave_cpus_out="start this process on other CPUs by taskset",
    scratch='give a faster directory by qcengine_config={"scratch_directory": ...}',
    memory="leave it more by a larger memory_limit_mb",
    idle='raise max_workers, or let HybridParallelConfig(thread_allocation_strategy="auto") decide',
)
"""For who wrote the configuration of an executor: fields that every one has, and others with the class they are of."""


def where_cpus_changed(advice: Advice) -> Advice:
    """The same for what ran while the CPUs that may be used became others."""
    said = (
        "the CPUs that may be used changed during the run, and the system then sets masks anew; what starts later is "
    )
    return replace(advice, escaped=f"{said}bound again. If it was not then, {advice.escaped}")


def where_few_may_run(advice: Advice, most: int | None, side_by_side: int, limit: str) -> Advice:
    """The same where ``limit`` lets no more than ``most`` run at once (``None``: as many as like), and so many were to.

    Then narrower ones would only leave CPUs to nobody.
    """
    if most is None or side_by_side < most:
        return advice
    said = f"{limit} allows {most} at a time"
    return replace(advice, fewer_threads=f"{said}, so that with fewer threads each no more would run", idle=said)


def findings_of(grant: Grant, usage: WorkerUsage) -> Iterator[Finding]:
    """Everything found about one worker."""
    who = f"worker {grant.worker_id} (process {usage.pid})"
    found: list[tuple[FindingKind, str]] = []
    if usage.ended:
        found.append(
            ("ended", f"{who} has ended; attach the process that follows it, or release its allocation"),
        )
    else:
        found += judge(who, grant, usage)
    for kind, message in found:
        yield Finding(kind=kind, message=message, worker_id=grant.worker_id)


def judge(
    who: str, grant: Grant, usage: WorkerUsage, advice: Advice = OF_A_LEASE
) -> Iterator[tuple[CalculationFinding, str]]:
    """Kind and message of everything that was found about ``who``, ended or not."""
    if usage.wall_ns >= _ENOUGH_TO_JUDGE_NS:
        yield from _threads(who, usage, advice)
        yield from _imbalanced(who, usage, advice)
        yield from _contended(who, usage, advice)
        yield from _others(who, grant, usage, advice)
        yield from _disk(who, usage, advice)
    yield from _escaped(who, grant, usage, advice)
    yield from _memory(who, grant, usage, advice)


def disturbance(grant: Grant, usage: WorkerUsage | None) -> float:
    """The share of the time that threads wanted to run for which others' work kept them waiting, quotas apart.

    Where the system does not tell of waiting: the share of its CPUs that others kept busy. 0 where nothing is known.
    """
    if usage is None or _crowded(usage) or _throttled(usage):
        return 0.0
    if usage.wait_share is not None:
        return usage.wait_share
    if usage.other_cpu_ns is None or not grant.bound_to:
        return 0.0
    return min(1.0, ratio(usage.other_cpu_ns, usage.wall_ns * len(grant.bound_to)))


def merged(watched: Iterable[tuple[str, Grant, WorkerUsage]], advice: Advice) -> list[Finding]:
    """Everything found about many calculations, each with its name: one finding of each kind, told of the longest.

    Those that are too short to judge each are judged together, as far as waiting for a CPU goes.
    """
    found: dict[CalculationFinding, list[tuple[int, int, str]]] = {}
    short: list[WorkerUsage] = []
    total = total_ns = 0
    for name, grant, usage in watched:
        total += 1
        total_ns += usage.wall_ns
        if usage.wall_ns < _ENOUGH_TO_JUDGE_NS:
            short.append(usage)
        for kind, message in judge(name, grant, usage, advice):
            found.setdefault(kind, []).append((usage.wall_ns, 1, message))
    if sum(usage.wall_ns for usage in short) >= _ENOUGH_TO_JUDGE_NS:
        together = _summed(short)
        who = f"{format_count(len(short), 'calculation')} of less than {_ENOUGH_TO_JUDGE_NS // 1_000_000} ms"
        for kind, message in _contended(who, together, advice):
            found.setdefault(kind, []).append((together.wall_ns, len(short), message))
    findings = []
    for kind, told in found.items():
        if kind in _NEVER_ALLOWED or sum(wall_ns for wall_ns, _, _ in told) >= _WORTH_TELLING_SHARE * total_ns:
            _, count, message = max(told)
            all_told = sum(count for _, count, _ in told)
            if all_told > count:
                message += f" (and so in {all_told} of {format_count(total, 'calculation')})"
            findings.append(Finding(kind=kind, message=message))
    return findings


def _summed(usages: Sequence[WorkerUsage]) -> WorkerUsage:
    """As far as their times go, as if they were one; the rest is the first one's."""
    cpu_ns, wait_ns = sum(usage.cpu_ns for usage in usages), sum_known(usage.wait_ns for usage in usages)
    told = usages[:1] if all(map(_crowded, usages)) else usages
    return replace(
        usages[0],
        wall_ns=sum(usage.wall_ns for usage in usages),
        cpu_ns=cpu_ns,
        wait_ns=wait_ns,
        wait_share=None if wait_ns is None else ratio(wait_ns, wait_ns + cpu_ns),
        throttled_ns=sum(usage.throttled_ns or 0 for usage in usages),
        cpus_allowed=CpuSet(cpu for usage in told for cpu in usage.cpus_allowed),
    )


def _threads(who: str, usage: WorkerUsage, advice: Advice) -> Iterator[tuple[CalculationFinding, str]]:
    asked, worked = usage.threads_asked, usage.threads_working
    given = f"{who} {advice.given.format(threads=format_count(asked, 'thread'))}, but"
    so_many = format_count(worked, "thread")
    if worked > asked:
        yield (
            "oversubscribed",
            f"{given} {worked} worked; {advice.too_many.format(threads=so_many)}",
        )
    elif worked == 0 and not _wants_to_run(usage):
        yield "undersubscribed", f"{given} none worked: it waits or sleeps"
    elif worked == 1 < asked:
        yield (
            "ignored-width",
            f"{given} 1 worked: the program ignores its width, or this calculation does not thread; "
            f"{advice.width.format(threads=so_many)}",
        )
    elif 0 < worked < asked:
        yield "undersubscribed", f"{given} {worked} worked; {advice.width.format(threads=so_many)}"


def _imbalanced(who: str, usage: WorkerUsage, advice: Advice) -> Iterator[tuple[CalculationFinding, str]]:
    if usage.imbalance is not None and usage.imbalance > _IMBALANCED_SHARE:
        yield (
            "imbalanced",
            f"the threads of {who} worked {1 - usage.imbalance:.0%} of the time of the busiest one on average: they "
            f"wait for it; {advice.fewer_threads}",
        )


def _contended(who: str, usage: WorkerUsage, advice: Advice) -> Iterator[tuple[CalculationFinding, str]]:
    if usage.wait_share is None or not _waits(usage):
        return
    cpus = usage.cpus_allowed
    if _crowded(usage):
        why = f"{usage.threads_working} threads share {format_count(len(cpus), 'CPU')} ({cpus})"
        remedy = "give as many CPUs as threads, or fewer threads"
    elif _throttled(usage):
        why = f"throttled by a CPU quota for {(usage.throttled_ns or 0) / 1e9:.2g} s"
        remedy = "use no more threads than it has CPUs (qcthreads limits), or ask for a larger one"
    else:
        why, remedy = f"others run on {cpus or 'its CPUs'}, too", advice.other_cpus
    yield (
        "contended",
        f"{who} waited for a CPU {usage.wait_share:.0%} of the time that threads wanted to run: {why}; {remedy}",
    )


def _crowded(usage: WorkerUsage) -> bool:
    return 0 < len(usage.cpus_allowed) < usage.threads_working


def _throttled(usage: WorkerUsage) -> bool:
    """Whether a quota alone makes it wait."""
    return (usage.throttled_ns or 0) > CONTENDED_SHARE * (usage.cpu_ns + (usage.wait_ns or 0))


def _waits(usage: WorkerUsage) -> bool:
    """Whether it wants to run and has to wait for a CPU; where nothing tells of waiting, it may."""
    return usage.wait_share is None or (usage.wait_share > CONTENDED_SHARE and _wants_to_run(usage))


def _wants_to_run(usage: WorkerUsage) -> bool:
    return usage.cpu_ns + (usage.wait_ns or 0) >= _WANTED_SHARE * usage.wall_ns


def _others(who: str, grant: Grant, usage: WorkerUsage, advice: Advice) -> Iterator[tuple[CalculationFinding, str]]:
    """What runs on CPUs that a calculation does not wait for is nobody's trouble."""
    if usage.other_cpu_ns is None or not grant.bound_to or not _waits(usage) or _throttled(usage):
        return
    busy = usage.other_cpu_ns / usage.wall_ns
    if busy > _OTHERS_SHARE * len(grant.bound_to):
        yield (
            "others",
            f"other processes kept {busy:.2g} of the {format_count(len(grant.bound_to), 'CPU')} busy that {who} may "
            f"use ({grant.bound_to}); end them, or {advice.leave_cpus_out}",
        )


def _disk(who: str, usage: WorkerUsage, advice: Advice) -> Iterator[tuple[CalculationFinding, str]]:
    if usage.disk_share is not None and usage.looks >= _LOOKS_FOR_DISK and usage.disk_share > _DISK_SHARE:
        yield (
            "disk",
            f"{who} waited for its disk {min(1.0, usage.disk_share):.0%} of the time; {advice.scratch}, more memory, "
            "or a method that keeps its integrals in memory",
        )


def _escaped(who: str, grant: Grant, usage: WorkerUsage, advice: Advice) -> Iterator[tuple[CalculationFinding, str]]:
    if grant.bound_to is None:
        return
    ran_beyond = usage.cpus_outside - grant.bound_to
    if ran_beyond or usage.cpus_allowed - grant.bound_to:
        ran = f" and ran on {ran_beyond}" if ran_beyond else ""
        yield (
            "escaped",
            f"{who} was bound to CPUs {grant.bound_to}, but may run on {usage.cpus_allowed}{ran}: {advice.escaped}",
        )


def _memory(who: str, grant: Grant, usage: WorkerUsage, advice: Advice) -> Iterator[tuple[CalculationFinding, str]]:
    if not grant.memory_bytes or usage.memory_peak_bytes <= grant.memory_bytes:
        return
    yield (
        "memory",
        f"{who} was granted {format_size(grant.memory_bytes)}, but has held {format_size(usage.memory_peak_bytes)}; "
        f"{advice.memory}",
    )
