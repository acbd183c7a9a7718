"""The manager with real processes: psutil and taskset say what they are bound to, whatever the manager says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, ProcessGoneError
from qcthreads.host import get_host
from qcthreads.leases import process_book
from qcthreads.manager import QCThreadManager
from qcthreads.manybody.config import HybridParallelConfig

if sys.platform != "linux":
    pytest.skip("masks of other processes are read with taskset", allow_module_level=True)

# hashlib drops the GIL on large buffers, so that these threads really run side by side.
BURN = """
import hashlib, subprocess, sys, threading
def burn():
    data = bytes(1 << 20)
    while True:
        hashlib.sha256(data).digest()
for _ in range(2):
    threading.Thread(target=burn, daemon=True).start()
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
sys.stdin.readline()
child.kill()
"""


@pytest.fixture
def burner() -> Iterator[tuple[int, int]]:
    """A process with two working threads and a child: (pid, child's pid)."""
    command = [sys.executable, "-c", BURN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.communicate("end\n")
    give_up = time.monotonic() + 60
    while process_book().held():  # by a manager that has waited for the end
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.fixture(params=["native", "portable"])
def back_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setenv("QCTHREADS_BACKEND", name)
    if name == "native":
        from qcthreads.host.build_info import native_status

        available, reason = native_status()
        if not available:
            pytest.skip(f"the native extension cannot be used: {reason}")
    return name


def masks_by_taskset(pid: int) -> set[CpuSet]:
    """The masks of all threads of a process."""
    shown = subprocess.run(["taskset", "-a", "-c", "-p", str(pid)], check=True, capture_output=True, text=True).stdout
    return {CpuSet.parse(line.rpartition(": ")[2]) for line in shown.splitlines()}


def all_cpus() -> CpuSet:
    return CpuSet(psutil.Process().cpu_affinity() or ())


def test_a_binding_asked_for_before_is_made_at_attach_for_every_thread_and_child(
    burner: tuple[int, int], back_end: str
) -> None:
    pid, child = burner
    with QCThreadManager() as manager:
        made = manager.allocate_thread_resources(1, 1)
        ((worker, cpus),) = made.cpu_affinity_map.items()
        assert manager.set_thread_affinity(worker, cpus) is None
        binding = manager.attach_worker(worker, pid)
        assert binding is not None
        assert binding.asked == binding.got == CpuSet(cpus)
        assert masks_by_taskset(pid) == masks_by_taskset(child) == {CpuSet(cpus)}
        assert get_host().capabilities.back_end == back_end


def test_an_attached_worker_is_rebound_at_once(burner: tuple[int, int]) -> None:
    pid, child = burner
    with QCThreadManager() as manager:
        made = manager.allocate_thread_resources(1, 1)
        manager.attach_worker(0, pid)
        for cpu in all_cpus():
            if cpu not in manager.book.usable:
                continue
            binding = manager.set_thread_affinity(0, [cpu])
            assert binding is not None
            assert binding.got == CpuSet([cpu])
            assert psutil.Process(pid).cpu_affinity() == psutil.Process(child).cpu_affinity() == [cpu]
        assert made.total_threads_used == 1


def test_by_default_attaching_sets_no_mask(burner: tuple[int, int]) -> None:
    with QCThreadManager(HybridParallelConfig()) as manager:
        made = manager.allocate_thread_resources(1, 1)
        assert manager.attach_worker(0, burner[0]) is None
        assert masks_by_taskset(burner[0]) == {all_cpus()}
        assert made.total_threads_used == 1


def test_with_enable_thread_affinity_attaching_binds_to_the_lease(burner: tuple[int, int]) -> None:
    with QCThreadManager(HybridParallelConfig(enable_thread_affinity=True)) as manager:
        made = manager.allocate_thread_resources(1, 1)
        manager.attach_worker(0, burner[0])
        assert psutil.Process(burner[0]).cpu_affinity() == made.cpu_affinity_map[0]


def test_usage_of_an_attached_worker_agrees_with_psutil(burner: tuple[int, int]) -> None:
    process = psutil.Process(burner[0])
    with QCThreadManager() as manager:
        made = manager.allocate_thread_resources(1, 1)
        manager.set_thread_affinity(0, made.cpu_affinity_map[0])
        first = sum(process.cpu_times()[:2])
        manager.attach_worker(0, burner[0])
        for _ in range(20):  # where others keep the machine busy, not every thread works in each half second
            time.sleep(0.6)
            stats = manager.monitor_thread_usage()
            used = sum(process.cpu_times()[:2]) - first
            # Ticks of 10 ms on either side, and a tick by which a running thread lags.
            assert stats.cpu_s <= used + 0.03
            if stats.threads_working == 2:
                break
        again = manager.monitor_thread_usage()
    assert stats.threads_asked == 1
    assert stats.threads_working == 2
    assert {finding.kind for finding in stats.findings} >= {"oversubscribed", "contended"}
    assert "escaped" not in {finding.kind for finding in stats.findings}
    assert again.wall_s < stats.wall_s


@pytest.mark.skipif(len(all_cpus()) < 2, reason="needs two CPUs")
def test_an_escape_is_found_by_the_monitor(burner: tuple[int, int]) -> None:
    with QCThreadManager() as manager:
        made = manager.allocate_thread_resources(1, 1)
        manager.set_thread_affinity(0, made.cpu_affinity_map[0])
        manager.attach_worker(0, burner[0])
        subprocess.run(["taskset", "-a", "-c", "-p", str(all_cpus()), str(burner[0])], check=True, capture_output=True)
        time.sleep(0.3)
        stats = manager.monitor_thread_usage()
    assert "escaped" in {finding.kind for finding in stats.findings}


def test_a_process_that_ended_is_reported_and_another_may_take_its_place(burner: tuple[int, int]) -> None:
    with QCThreadManager() as manager:
        made = manager.allocate_thread_resources(1, 1)
        with subprocess.Popen(["sleep", "600"]) as short:
            manager.attach_worker(0, short.pid)
            short.kill()
        assert [finding.kind for finding in manager.monitor_thread_usage().findings] == ["ended"]
        with pytest.raises(ProcessGoneError, match="no such process"):
            manager.set_thread_affinity(0, made.cpu_affinity_map[0])
        manager.attach_worker(0, burner[0])
        assert manager.monitor_thread_usage().workers[0].pid == burner[0]


@pytest.mark.skipif(len(all_cpus()) < 2, reason="needs two CPUs")
def test_a_process_is_one_worker_only(burner: tuple[int, int]) -> None:
    with QCThreadManager() as manager:
        made = manager.allocate_thread_resources(2, 1)
        manager.attach_worker(0, burner[0])
        manager.attach_worker(0, burner[0])
        with pytest.raises(InputError, match="is worker 0 already; give every worker its own process"):
            manager.attach_worker(1, burner[0])
        assert made.total_threads_used == 2


def test_where_the_system_refuses_to_bind_the_worker_runs_unbound_with_one_warning() -> None:
    script = """
import logging, os, sys
import psutil  # before the change of user, who may not be able to read this installation
logging.basicConfig(stream=sys.stdout, format="WARNED %(message)s")
from qcthreads.manager import QCThreadManager
manager = QCThreadManager()
made = manager.allocate_thread_resources(1, 1)
manager.monitor_thread_usage()
if os.geteuid() == 0:
    os.setuid(65534)
for pid in map(int, sys.argv[1:]):
    manager.set_thread_affinity(0, made.cpu_affinity_map[0])
    binding = manager.attach_worker(0, pid)
    print("GOT", binding.got)
print("FINDINGS", [finding.kind for finding in manager.monitor_thread_usage().findings if finding.kind == "escaped"])
"""
    with subprocess.Popen(["sleep", "600"]) as one, subprocess.Popen(["sleep", "600"]) as other:
        somebody_elses = [one.pid, other.pid] if os.geteuid() == 0 else [1, 1]
        command = [sys.executable, "-c", script, *map(str, somebody_elses)]
        shown = subprocess.run(command, capture_output=True, text=True)
        one.kill()
        other.kill()
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("WARNED workers run unbound where the operating system refuses") == 1
    assert shown.stdout.count(f"GOT {CpuSet(psutil.Process(1).cpu_affinity() or ())}") == 2
    assert "FINDINGS []" in shown.stdout
