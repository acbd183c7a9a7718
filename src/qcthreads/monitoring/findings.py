"""What a user should know about a worker, in plain words, with the number and the remedy; judges, never measures."""

from __future__ import annotations

from collections.abc import Iterator

from ..units import format_size
from .sampler import Watched
from .statistics import Finding, WorkerUsage

# Below this, a worker that just began, or a look that follows at once on another, would be called idle.
_ENOUGH_TO_JUDGE_NS = 50_000_000

# Of the time that threads wanted to run. Two that share a CPU wait half of it; interrupts cost well under a tenth.
_CONTENDED_SHARE = 0.10


def findings_of(watched: Watched, usage: WorkerUsage) -> Iterator[Finding]:
    """Everything found about one worker; kinds: ended, oversubscribed, undersubscribed, escaped, memory, contended."""
    who = f"worker {usage.worker_id} (process {usage.pid})"
    if watched.ended:
        yield Finding(
            kind="ended",
            message=f"{who} has ended; attach the process that follows it, or release its allocation",
            worker_id=usage.worker_id,
        )
        return
    if usage.wall_ns >= _ENOUGH_TO_JUDGE_NS:
        yield from _threads(who, usage)
        yield from _contended(who, usage)
    yield from _escaped(who, watched, usage)
    yield from _memory(who, watched, usage)


def _threads(who: str, usage: WorkerUsage) -> Iterator[Finding]:
    asked, worked = usage.threads_asked, usage.threads_working
    if worked > asked:
        yield Finding(
            kind="oversubscribed",
            message=f"{who} was given {_threads_text(asked)}, but {worked} worked; tell every "
            "threading runtime its width (OPENBLAS_NUM_THREADS as well as OMP_NUM_THREADS), or ask for "
            f"{worked} threads",
            worker_id=usage.worker_id,
        )
    elif worked < asked:
        remedy = "it waits or sleeps"
        if worked:
            remedy = f"the program may ignore its width; ask for {_threads_text(worked)}"
        yield Finding(
            kind="undersubscribed",
            message=f"{who} was given {_threads_text(asked)}, but {worked or 'none'} worked: {remedy}",
            worker_id=usage.worker_id,
        )


def _contended(who: str, usage: WorkerUsage) -> Iterator[Finding]:
    if usage.wait_ns is None or not usage.cpu_ns:
        return
    share = usage.wait_ns / (usage.wait_ns + usage.cpu_ns)
    if share > _CONTENDED_SHARE:
        yield Finding(
            kind="contended",
            message=f"{who} waited for a CPU {share:.0%} of the time that it wanted to run: more threads than CPUs, "
            f"its own or other people's, run on {usage.cpus_allowed}; use other CPUs or fewer threads",
            worker_id=usage.worker_id,
        )


def _escaped(who: str, watched: Watched, usage: WorkerUsage) -> Iterator[Finding]:
    if watched.bound_to is None:
        return
    ran_beyond = usage.cpus_outside - watched.bound_to
    if ran_beyond or usage.cpus_allowed - watched.bound_to:
        ran = f" and ran on {ran_beyond}" if ran_beyond else ""
        yield Finding(
            kind="escaped",
            message=f"{who} was bound to CPUs {watched.bound_to}, but may run on {usage.cpus_allowed}{ran}: "
            "something in it sets its own mask (mpirun's binding, GOMP_CPU_AFFINITY, KMP_AFFINITY, taskset); "
            "switch that off",
            worker_id=usage.worker_id,
        )


def _memory(who: str, watched: Watched, usage: WorkerUsage) -> Iterator[Finding]:
    if watched.memory_bytes and usage.memory_bytes > watched.memory_bytes:
        yield Finding(
            kind="memory",
            message=f"{who} was granted {format_size(watched.memory_bytes)}, but holds "
            f"{format_size(usage.memory_bytes)}; tell the program less, or use fewer workers",
            worker_id=usage.worker_id,
        )


def _threads_text(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"
