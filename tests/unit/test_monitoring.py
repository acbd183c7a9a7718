"""Looks, statistics and findings, each against a real process that does the thing; psutil is the witness."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from qcthreads.cli import run
from qcthreads.cpuset import CpuSet
from qcthreads.errors import ProcessGoneError
from qcthreads.host.processes import descendants
from qcthreads.host.sampling import TimesSource
from qcthreads.manybody.config import HybridParallelConfig, ParallelConfig
from qcthreads.monitoring.findings import (
    OF_A_RUN,
    OF_AN_AUTO_RUN,
    OF_AN_EXECUTOR,
    disturbance,
    judge,
    merged,
    where_cpus_changed,
    where_few_may_run,
)
from qcthreads.monitoring.sampler import BackgroundSampler
from qcthreads.monitoring.statistics import Grant, ThreadUsageStats
from qcthreads.monitoring.tally import Tally
from qcthreads.monitoring.watch import Watch, report_on

SOURCES: list[TimesSource] = ["schedstat", "stat", "psutil"] if sys.platform == "linux" else ["psutil"]
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
        for pid in reversed([process.pid, *descendants(process.pid)]):
            os.kill(pid, 9)
        process.wait()
        process.stdout.close()


def usable() -> CpuSet:
    return CpuSet(psutil.Process().cpu_affinity() or ())


def grant(**changes: Any) -> Grant:
    return Grant(**{"worker_id": 7, "threads_asked": 1, "leased": usable(), **changes})


def watch(pid: int, source: TimesSource | None = None, wall_s: float = 0.5, **given: Any) -> ThreadUsageStats:
    watched = Watch(pid, source)
    time.sleep(wall_s)
    return report_on([(watched, grant(**given))], len(usable()))


def watch_until(working: int, pid: int, source: TimesSource | None = None, **given: Any) -> ThreadUsageStats:
    """Until so many threads worked: where others keep the machine busy, not every one does in every half second."""
    for _ in range(20):
        stats = watch(pid, source, **given)
        if stats.threads_working == working:
            break
    return stats


def used_s(pid: int) -> float:
    """CPU time, as psutil says."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def kinds(stats: ThreadUsageStats) -> set[str]:
    return {finding.kind for finding in stats.findings}


@pytest.mark.parametrize("source", SOURCES)
def test_cpu_time_agrees_with_psutil(source: TimesSource) -> None:
    with running(BURN.format(threads=1)) as pid:
        first, stats, last = used_s(pid), watch(pid, source), used_s(pid)
    # Ticks of 10 ms on either side, and a tick by which a running thread lags.
    assert stats.cpu_s <= last - first + 0.03
    assert stats.cpu_s > 0
    assert stats.workers[0].threads_working == 1
    assert stats.source == source
    assert stats.thread_efficiency == pytest.approx(stats.cpu_s / stats.wall_s)
    assert stats.utilisation == pytest.approx(stats.thread_efficiency / len(usable()))


@pytest.mark.parametrize("source", SOURCES)
def test_more_threads_than_given_are_found(source: TimesSource) -> None:
    with running(BURN.format(threads=3)) as pid:
        stats = watch_until(3, pid, source, threads_asked=1, leased=CpuSet([usable().first]))
    assert stats.threads_working == 3
    assert stats.oversubscription == 3.0
    assert "oversubscribed" in kinds(stats)
    message = next(finding.message for finding in stats.findings if finding.kind == "oversubscribed")
    assert message.startswith(f"worker 7 (process {pid}) was given 1 thread, but 3 worked")


@pytest.mark.parametrize("source", SOURCES)
def test_threads_that_do_nothing_are_found(source: TimesSource) -> None:
    with running(BURN.format(threads=1)) as pid:
        stats = watch_until(1, pid, source, threads_asked=4)
    message = next(finding.message for finding in stats.findings if finding.kind == "ignored-width")
    assert message.startswith(
        f"worker 7 (process {pid}) was given 4 threads, but 1 worked: the program ignores its width"
    )
    assert message.endswith("ask for 1 thread")
    # In a run, whose strategy chose the width, by an option of `run`.
    in_a_run = merged([("a dimer", grant(threads_asked=4), stats.workers[0])], OF_A_RUN)
    message = next(finding.message for finding in in_a_run if finding.kind == "ignored-width")
    assert message.endswith("give each calculation 1 thread by --threads")
    # By a run that chose the width itself, so that nobody need be advised to.
    (message,) = (
        finding.message
        for finding in merged([("a dimer", grant(threads_asked=4), stats.workers[0])], OF_AN_AUTO_RUN)
        if finding.kind == "ignored-width"
    )
    assert message.endswith(
        "does not thread; the run itself chose the width, by what it could foresee; --threads sets that of all"
    )
    # By an executor, whose configuration did.
    by_an_executor = merged([("a dimer", grant(threads_asked=4), stats.workers[0])], OF_AN_EXECUTOR)
    message = next(finding.message for finding in by_an_executor if finding.kind == "ignored-width")
    assert message.endswith("give each calculation 1 thread by HybridParallelConfig(qc_threads_per_fragment=...)")


def test_an_executor_is_advised_in_fields_that_its_configuration_has() -> None:
    told = " ".join(asdict(OF_AN_EXECUTOR).values())
    assert "--" not in told
    with_class = r"HybridParallelConfig\((\w+)=[^)]*\)"
    assert set(re.findall(with_class, told)) < {field.name for field in fields(HybridParallelConfig)}
    # What is named without a class every configuration has.
    names = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", re.sub(with_class, "", told)))
    assert names - {"scratch_directory"} < {field.name for field in fields(ParallelConfig)}
    ParallelConfig(qcengine_config={"scratch_directory": "/scratch"})
    HybridParallelConfig(thread_allocation_strategy="auto")


def test_a_run_is_advised_in_options_that_it_has() -> None:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    told = re.findall(r"(--[a-z-]+)(?: ([a-z]+))?", " ".join(asdict(OF_A_RUN).values()))
    assert len(told) >= 8
    for option, word in told:
        choices = parser._option_string_actions[option].choices
        assert choices is None or not word or word in choices, (option, word)


def test_fewer_threads_than_given_are_found() -> None:
    with running(BURN.format(threads=2)) as pid:
        stats = watch_until(2, pid, threads_asked=3)
    message = next(finding.message for finding in stats.findings if finding.kind == "undersubscribed")
    assert message == f"worker 7 (process {pid}) was given 3 threads, but 2 worked; ask for 2 threads"


def test_a_sleeping_worker_is_found() -> None:
    with running(SLEEP) as pid:
        stats = watch(pid, threads_asked=2)
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
    assert f"was bound to CPUs {first}, but may run on {second} and ran on {second}: something in it" in escape.message
    given = grant(leased=lease, bound_to=lease)
    changed = merged([("a dimer", given, stats.workers[0])], where_cpus_changed(OF_A_RUN))
    escape = next(finding for finding in changed if finding.kind == "escaped")
    assert f"and ran on {second}: the CPUs that may be used changed during the run" in escape.message


@linux_only
def test_an_unbound_worker_cannot_escape() -> None:
    lease = CpuSet([usable().first])
    with running(BURN.format(threads=2)) as pid:
        assert "escaped" not in kinds(watch(pid, leased=lease))


@linux_only
def test_threads_that_share_a_cpu_wait_for_it() -> None:
    lease = CpuSet([usable().first])
    with running(BURN.format(threads=2), lease) as pid:
        stats = watch_until(2, pid, threads_asked=2, leased=lease)
    assert stats.wait_s is not None
    # Two threads on one CPU: whatever else runs there, together they wait at least as long as one of them runs.
    assert stats.wait_s > 0.8 * stats.cpu_s / 2
    contended = next(finding.message for finding in stats.findings if finding.kind == "contended")
    assert f": 2 threads share 1 CPU ({lease}); give as many CPUs as threads, or fewer threads" in contended
    assert disturbance(grant(threads_asked=2, leased=lease), stats.workers[0]) == 0  # nobody else has to do with it
    shares = [thread.wait_share for thread in stats.workers[0].threads if thread.utilisation > 0.05]
    assert len(shares) == 2
    assert all(share is not None and share > 0.25 for share in shares)
    # Who gets so little of a CPU that none of its threads seems to work does not sleep.
    starved = replace(stats.workers[0], threads_working=0)
    assert "undersubscribed" not in dict(judge("a dimer", grant(threads_asked=2, leased=lease), starved))
    # In a run, cut into pieces that are too short to be judged each.
    used = stats.workers[0]
    assert used.wait_ns is not None
    pieces = used.wall_ns // 25_000_000
    piece = replace(used, wall_ns=used.wall_ns // pieces, cpu_ns=used.cpu_ns // pieces, wait_ns=used.wait_ns // pieces)
    (found,) = merged([("a dimer", grant(threads_asked=2, leased=lease), piece)] * pieces, OF_A_RUN)
    assert found.kind == "contended"
    assert found.message.startswith(f"{pieces} calculations of less than 50 ms waited for a CPU ")
    elsewhere = replace(piece, cpus_allowed=CpuSet([1000]))
    (found,) = merged([("a dimer", grant(threads_asked=2), one) for one in (piece, elsewhere) * pieces], OF_A_RUN)
    assert f": 2 threads share 1 CPU ({lease}); " in found.message


def test_descendants_count_with_the_worker() -> None:
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN.format(threads=2)!r}])"
    with running(child) as pid:
        assert set(descendants(pid)) == {*(child.pid for child in psutil.Process(pid).children(recursive=True))}
        stats = watch_until(2, pid, threads_asked=2)
        resident = sum(psutil.Process(one).memory_info().rss for one in [pid, *descendants(pid)])
    assert stats.threads_working == 2
    assert {thread.pid for thread in stats.workers[0].threads} > {pid}
    assert stats.workers[0].memory_bytes == pytest.approx(resident, rel=0.05)
    assert stats.workers[0].memory_peak_bytes >= 0.95 * stats.workers[0].memory_bytes


@linux_only
@pytest.mark.parametrize("source", ["schedstat", "stat"])
def test_the_time_of_children_that_ended_in_between_counts(source: TimesSource) -> None:
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
        watched = Watch(process.pid, source)
        process.stdin.write(b"go\n")
        process.stdin.flush()
        process.stdout.readline()
        stats = report_on([(watched, grant())], 1)
        process.stdin.close()
    assert stats.cpu_s >= 0.18


@pytest.mark.parametrize("source", SOURCES)
def test_a_worker_that_ended_is_said_to_have_ended_and_what_it_used_is_counted(source: TimesSource) -> None:
    with running(BURN.format(threads=1)) as pid:
        earlier_s, watched, before_s = used_s(pid), Watch(pid, source), used_s(pid)
        time.sleep(0.3)
        os.kill(pid, 9)
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE or psutil.Process(pid).num_threads() > 1:
            time.sleep(0.01)  # its other thread may end after its first
        ended_s = used_s(pid)
        zombie = report_on([(watched, grant())], 1)
    gone = report_on([(watched, grant())], 1)
    for stats in (zombie, gone):
        assert kinds(stats) == {"ended"}
        assert stats.workers[0].ended
        assert stats.workers[0].memory_bytes == 0
    # A clock tick at either end, and one between.
    assert ended_s - before_s - 0.03 <= zombie.cpu_s + gone.cpu_s <= ended_s - earlier_s + 0.03
    with pytest.raises(ProcessGoneError):
        Watch(pid, source)


def test_memory_over_the_grant_is_found() -> None:
    with running("data = bytearray(64 << 20)\n" + SLEEP) as pid:
        stats = watch(pid, memory_bytes=32 << 20)
    assert "was granted 32 MiB, but has held" in next(
        finding.message for finding in stats.findings if finding.kind == "memory"
    )


@linux_only
def test_threads_that_wait_for_the_busiest_one_are_found() -> None:
    code = """
import hashlib, threading, time
data, used = bytes(1 << 18), 0
def burn():
    global used
    while True:
        hashlib.sha256(data).digest()
        used = time.thread_time()
def follow():  # a third of what the other does, however much that is
    while True:
        while time.thread_time() < used / 3:
            hashlib.sha256(data).digest()
        time.sleep(0.001)
for work in (burn, follow):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
time.sleep(600)
"""
    with running(code) as pid:
        for _ in range(10):  # until both have worked long enough to be working threads
            stats = watch(pid, threads_asked=2, wall_s=0.8)
            if stats.threads_working == 2:
                break
    imbalance = stats.workers[0].imbalance
    assert imbalance is not None
    assert imbalance > 0.25
    assert "imbalanced" in kinds(stats)
    # Fewer threads let more run side by side, unless there are licences for no more.
    for most, said in (
        (None, "give each fewer by --threads, so that more run side by side"),
        (2, "give each fewer by --threads, so that more run side by side"),
        (1, "--at-most allows 1 at a time, so that with fewer threads each no more would run"),
    ):
        advice = where_few_may_run(OF_A_RUN, most, 1, "--at-most")
        told = dict(judge("a dimer", grant(threads_asked=2), stats.workers[0], advice))["imbalanced"]
        assert told.endswith(f"they wait for it; {said}")


@linux_only
def test_the_load_of_others_on_its_cpus_is_found() -> None:
    lease = CpuSet([usable().first])
    with running(BURN.format(threads=1), lease), running(BURN.format(threads=1), lease) as pid:
        stats = watch(pid, leased=lease, bound_to=lease, wall_s=1.0)
    assert stats.other_cpu_s is not None
    assert stats.other_cpu_s > 0.6 * stats.cpu_s  # as much, were there nobody else
    found = {finding.kind: finding.message for finding in stats.findings}
    assert f"of the 1 CPU busy that worker 7 (process {pid}) may use ({lease})" in found["others"]
    assert f"others run on {lease}, too; use other CPUs" in found["contended"]
    bound, usage = grant(leased=lease, bound_to=lease), stats.workers[0]
    assert disturbance(bound, usage) == usage.wait_share
    assert 0.3 < disturbance(bound, replace(usage, wait_share=None)) <= 1  # where nothing tells of waiting: others' use
    assert disturbance(bound, None) == 0


@linux_only
def test_others_on_its_cpus_are_no_trouble_for_who_sleeps() -> None:
    lease = CpuSet([usable().first])
    with running(BURN.format(threads=1), lease), running(SLEEP, lease) as pid:
        stats = watch(pid, leased=lease, bound_to=lease, wall_s=1.0)
    assert stats.other_cpu_s is not None
    assert stats.other_cpu_s > 0.3 * stats.wall_s
    assert kinds(stats) == {"undersubscribed"}


@linux_only
def test_a_worker_that_waits_for_its_disk_is_found(tmp_path: Path) -> None:
    # However fast the disk is: each of them waits for those before it, too.
    writers = f"for n in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of={tmp_path}/$n bs=4k oflag=dsync 2>&- & done; wait"
    statuses: list[str] = []
    known: list[psutil.Process] = []
    with subprocess.Popen(["sh", "-c", writers]) as process:
        try:
            give_up = time.monotonic() + 60
            while len(known := psutil.Process(process.pid).children()) < 8:
                assert time.monotonic() < give_up, "dd does not write there"
                time.sleep(0.01)
            with BackgroundSampler([process.pid], fast_hz=50, detail_hz=50) as background:
                for _ in range(50):
                    time.sleep(0.02)
                    statuses += [one.status() for one in known]
        finally:
            for one in known:
                one.kill()
            process.kill()
    first, *samples = background.take()
    tally = Tally(first)
    for sample in samples:
        tally.add(sample)
    usage = tally.usage(grant(), 0)
    states = [sample.details["state"] for sample in samples if sample.details is not None]
    assert usage.disk_share == pytest.approx(sum((seen == b"D").sum() for seen in states) / usage.looks)
    if statuses.count(psutil.STATUS_DISK_SLEEP) < 50:
        pytest.skip(f"{tmp_path} is on no disk that anybody waits for, as psutil says")  # such as one in memory
    found = dict(judge("it", grant(), usage))
    assert re.match(r"it waited for its disk \d+% of the time; give it a faster scratch directory", found["disk"])


def test_nobody_attached_is_no_usage() -> None:
    stats = report_on([], 2)
    assert (stats.workers, stats.findings, stats.cpu_s, stats.utilisation, stats.wait_s) == ((), (), 0.0, 0.0, 0.0)
