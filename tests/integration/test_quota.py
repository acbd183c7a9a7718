"""A process in a group with a quota of CPU time is told of the quota; the kernel's own count is the witness."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_groups import with_quota
from test_monitor import MONITOR, wait_until_it_watches

from qcthreads.cpuset import CpuSet
from qcthreads.monitoring.findings import judge
from qcthreads.monitoring.run_monitor import RunMonitor
from qcthreads.monitoring.statistics import Grant, WorkerUsage
from qcthreads.monitoring.watch import Watch

if sys.platform != "linux":
    pytest.skip("quotas of control groups are Linux's", allow_module_level=True)

GROUP = Path(f"/sys/fs/cgroup/cpu/qcthreads-quota-{os.getpid()}")
SAID = r"throttled by a CPU quota for [0-9.]+ s; use no more threads than it has CPUs \(qcthreads limits\)"


@pytest.fixture
def pid() -> Iterator[int]:
    """Wants to run all the time, and may for a twentieth of it, however busy others keep the machine."""
    with with_quota(GROUP, 0.05):
        command = f"echo $$ > {GROUP}/cgroup.procs && echo ready && while :; do :; done"
        with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                yield process.pid
            finally:
                process.kill()


def counted(name: str) -> int:
    """What the kernel has counted of the group."""
    return int(dict(line.split() for line in (GROUP / "cpu.stat").read_text().splitlines())[name])


def wait_until_throttled(times: int) -> None:
    """So often from now on."""
    wanted, give_up = counted("nr_throttled") + times, time.monotonic() + 60
    while counted("nr_throttled") < wanted:
        assert time.monotonic() < give_up, "nothing is throttled"
        time.sleep(0.05)


def grant() -> Grant:
    cpus = CpuSet(os.sched_getaffinity(0))
    return Grant(worker_id=0, threads_asked=1, leased=cpus, bound_to=cpus)


def check(usage: WorkerUsage | None, least_ns: int, most_ns: int) -> None:
    """It has what the kernel counted, and the finding says so, of the quota alone."""
    assert usage is not None
    assert usage.throttled_ns is not None
    assert 0 < least_ns <= usage.throttled_ns <= most_ns
    found = dict(judge("it", grant(), usage))
    assert re.search(SAID, found["contended"])
    assert "others" not in found


def test_a_process_that_is_watched_is_told_of_its_quota(pid: int) -> None:
    outer_ns = counted("throttled_time")
    watch = Watch(pid)
    inner_ns = counted("throttled_time")
    wait_until_throttled(10)
    least_ns = counted("throttled_time") - inner_ns
    usage = watch.report(grant())
    check(usage, least_ns, counted("throttled_time") - outer_ns)


def test_a_worker_of_a_run_is_told_of_its_quota(pid: int) -> None:
    monitor = RunMonitor()
    outer_ns = counted("throttled_time")
    monitor.begin(pid, grant())
    inner_ns = counted("throttled_time")
    wait_until_throttled(10)
    least_ns = counted("throttled_time") - inner_ns
    usage = monitor.end(pid)
    check(usage, least_ns, counted("throttled_time") - outer_ns)
    monitor.close()


def test_the_command_line_tells_of_the_quota(pid: int, tmp_path: Path) -> None:
    file = tmp_path / "seen.json"
    with subprocess.Popen(
        [*MONITOR, "--json-file", str(file), "--pid", str(pid)], stderr=subprocess.PIPE, text=True
    ) as watching:
        wait_until_it_watches(watching.pid, pid)
        wait_until_throttled(10)
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=60)
    assert re.search(SAID, said)
    assert json.loads(file.read_text())["usage"]["throttled_ns"] > 0
