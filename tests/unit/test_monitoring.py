"""Looks, statistics and findings, each against a real process that does the thing; psutil is the witness."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.monitoring.sampler import Watched, best_source, descendants, look
from qcthreads.monitoring.statistics import ThreadUsageStats
from qcthreads.monitoring.usage import usage_between

SOURCES = ["schedstat", "psutil"] if sys.platform == "linux" else ["psutil"]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="masks and run-queue delay are read on Linux only")

# hashlib drops the GIL on large buffers, so that these threads really run side by side.
BURN = """
import hashlib, sys, threading, time
def burn():
    data = bytes(1 << 20)
    while True:
        hashlib.sha256(data).digest()
for _ in range({threads}):
    threading.Thread(target=burn, daemon=True).start()
print("ready", flush=True)
time.sleep(600)
"""
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


@contextmanager
def running(code: str, cpus: CpuSet | None = None) -> Iterator[int]:
    """A Python process that has said it is ready."""
    command = [sys.executable, "-c", code]
    if cpus:
        command = ["taskset", "-c", str(cpus), *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        for pid in reversed(descendants(process.pid)):
            os.kill(pid, 9)
        process.wait()
        process.stdout.close()


def usable() -> CpuSet:
    return CpuSet(psutil.Process().cpu_affinity() or ())


def watch(pid: int, source: str | None = None, wall_s: float = 0.5, asked: int = 1, **more: Any) -> ThreadUsageStats:
    before = look([pid], source)[pid]
    time.sleep(wall_s)
    now = look([pid], source)[pid]
    leased = more.pop("leased", usable())
    seen = Watched(
        worker_id=7,
        threads_asked=asked,
        leased=leased,
        bound_to=more.pop("bound_to", None),
        before=before,
        now=now,
        **more,
    )
    return usage_between([seen], len(usable()), source or best_source())


def kinds(stats: ThreadUsageStats) -> set[str]:
    return {finding.kind for finding in stats.findings}


@pytest.mark.parametrize("source", SOURCES)
def test_cpu_time_agrees_with_psutil(source: str) -> None:
    with running(BURN.format(threads=1)) as pid:
        first, stats, last = (
            sum(psutil.Process(pid).cpu_times()[:2]),
            watch(pid, source),
            sum(psutil.Process(pid).cpu_times()[:2]),
        )
    # Ticks of 10 ms on either side, and a tick by which a running thread lags.
    assert stats.cpu_s <= last - first + 0.03
    assert stats.cpu_s > 0
    assert stats.workers[0].threads_working == 1
    assert stats.source == source
    assert stats.thread_efficiency == pytest.approx(stats.cpu_s / stats.wall_s)
    assert stats.utilisation == pytest.approx(stats.thread_efficiency / len(usable()))


@pytest.mark.parametrize("source", SOURCES)
def test_more_threads_than_given_are_found(source: str) -> None:
    with running(BURN.format(threads=3)) as pid:
        for _ in range(10):  # on a machine that others keep busy not every thread runs in every half second
            stats = watch(pid, source, asked=1, leased=CpuSet([usable().first]))
            if stats.threads_working == 3:
                break
    assert stats.threads_working == 3
    assert stats.oversubscription == 3.0
    assert "oversubscribed" in kinds(stats)
    message = next(finding.message for finding in stats.findings if finding.kind == "oversubscribed")
    assert message.startswith(f"worker 7 (process {pid}) was given 1 thread, but 3 worked")


@pytest.mark.parametrize("source", SOURCES)
def test_threads_that_do_nothing_are_found(source: str) -> None:
    with running(BURN.format(threads=1)) as pid:
        stats = watch(pid, source, asked=4)
    message = next(finding.message for finding in stats.findings if finding.kind == "undersubscribed")
    assert message.startswith(f"worker 7 (process {pid}) was given 4 threads, but 1 worked: ")
    assert message.endswith("ask for 1 thread")


def test_a_sleeping_worker_is_found() -> None:
    with running(SLEEP) as pid:
        stats = watch(pid, asked=2)
    assert stats.threads_working == 0
    assert kinds(stats) == {"undersubscribed"}
    assert "but none worked: it waits or sleeps" in stats.findings[0].message


@linux_only
def test_a_worker_that_keeps_to_its_mask_is_not_said_to_have_escaped() -> None:
    lease = CpuSet([usable().first])
    with running(BURN.format(threads=1), lease) as pid:
        stats = watch(pid, leased=lease, bound_to=lease)
    assert stats.workers[0].cpus_allowed == lease
    assert not stats.workers[0].cpus_outside
    assert not kinds(stats) & {"escaped", "oversubscribed", "memory", "ended"}


@linux_only
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 if sys.platform == "linux" else True, reason="needs two CPUs")
def test_an_escape_from_the_mask_is_found() -> None:
    first, second = list(usable())[:2]
    lease = CpuSet([first])
    with running(BURN.format(threads=1), lease) as pid:
        subprocess.run(["taskset", "-a", "-p", "-c", str(second), str(pid)], check=True, capture_output=True)
        stats = watch(pid, leased=lease, bound_to=lease)
    assert stats.workers[0].cpus_outside == CpuSet([second])
    escape = next(finding for finding in stats.findings if finding.kind == "escaped")
    assert f"was bound to CPUs {first}, but may run on {second} and ran on {second}" in escape.message


@linux_only
def test_an_unbound_worker_cannot_escape() -> None:
    lease = CpuSet([usable().first])
    with running(BURN.format(threads=2)) as pid:
        assert "escaped" not in kinds(watch(pid, leased=lease))


@linux_only
def test_threads_that_share_a_cpu_wait_for_it() -> None:
    lease = CpuSet([usable().first])
    with running(BURN.format(threads=2), lease) as pid:
        stats = watch(pid, asked=2, leased=lease)
    assert stats.wait_s is not None
    # Two threads on one CPU: whatever else runs there, together they wait at least as long as one of them runs.
    assert stats.wait_s > 0.8 * stats.cpu_s / 2
    assert "contended" in kinds(stats)


def test_descendants_count_with_the_worker() -> None:
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN.format(threads=2)!r}])"
    with running(child) as pid:
        assert set(descendants(pid)) == {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
        stats = watch(pid, asked=2)
        resident = sum(psutil.Process(one).memory_info().rss for one in descendants(pid))
    assert stats.threads_working == 2
    assert {thread.pid for thread in stats.workers[0].threads} > {pid}
    assert stats.workers[0].memory_bytes == pytest.approx(resident, rel=0.05)
    assert stats.workers[0].memory_peak_bytes >= 0.95 * stats.workers[0].memory_bytes


@linux_only
def test_the_time_of_children_that_ended_in_between_counts() -> None:
    child = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    parent = f"""
import subprocess, sys
print("ready", flush=True)
sys.stdin.readline()
subprocess.run([sys.executable, "-c", {child!r}])
print("done", flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = look([process.pid])[process.pid]
        process.stdin.write(b"go\n")
        process.stdin.flush()
        process.stdout.readline()
        now = look([process.pid])[process.pid]
        process.stdin.close()
    seen = Watched(worker_id=0, threads_asked=1, leased=usable(), bound_to=None, before=before, now=now)
    assert usage_between([seen], 1, "schedstat").cpu_s >= 0.18


@pytest.mark.parametrize("source", SOURCES)
def test_a_worker_that_ended_is_said_to_have_ended(source: str) -> None:
    with running(SLEEP) as pid:
        before = look([pid], source)[pid]
        os.kill(pid, 9)
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        zombie = look([pid], source)[pid]
    gone = look([pid], source)[pid]
    for now in (zombie, gone):
        seen = Watched(worker_id=3, threads_asked=1, leased=usable(), bound_to=None, before=before, now=now)
        stats = usage_between([seen], 1, source)
        assert kinds(stats) == {"ended"}
        assert stats.workers[0].memory_bytes == 0
        assert stats.cpu_s == 0.0


def test_memory_over_the_grant_is_found() -> None:
    with running("data = bytearray(64 << 20)\n" + SLEEP) as pid:
        stats = watch(pid, memory_bytes=32 << 20)
    assert "was granted 32 MiB, but holds" in next(
        finding.message for finding in stats.findings if finding.kind == "memory"
    )


@linux_only
def test_names_with_spaces_and_parentheses_parse() -> None:
    rename = "open('/proc/self/comm', 'w').write('a) (b c')\n" + SLEEP
    with running(rename) as pid:
        tree = look([pid], "schedstat")[pid]
        assert psutil.Process(pid).name() == "a) (b c"
        assert [thread.usage.tid for thread in tree.threads] == [thread.id for thread in psutil.Process(pid).threads()]


def test_nobody_attached_is_no_usage() -> None:
    stats = usage_between([], 2, best_source())
    assert (stats.workers, stats.findings, stats.cpu_s, stats.utilisation, stats.wait_s) == ((), (), 0.0, 0.0, 0.0)
