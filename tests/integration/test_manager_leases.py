"""What a manager's allocations lease, and until when: other processes try to have the same CPUs, memory and GPUs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, LeaseError, OversubscriptionError
from qcthreads.host.gpus import Gpu
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook
from qcthreads.leases.place import Place
from qcthreads.leases.shared import SharedLedger
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.manager import QCThreadManager, ThreadAllocation
from qcthreads.manybody.config import HybridParallelConfig

if sys.platform != "linux":
    pytest.skip("what runs under a lease is read from /proc", allow_module_level=True)

GIB = 1024**3
MACHINE = synthetic_machine(cores=4)


def book_in(place: Path, **options: object) -> LeaseBook:
    """One of 4 CPUs and 8 GiB, whose leases all processes see that have one in the same place."""
    rules = (
        Rule("mask", "", cpus=MACHINE.cpus_online, tightest=True),
        Rule("available memory", "", memory_bytes=8 * GIB),
    )
    limits = Limits(MACHINE.cpus_online, 4, None, 8 * GIB, rules)
    return LeaseBook(MACHINE, limits, ledger=SharedLedger(Place("user", str(place), "a test")), **options)  # type: ignore[arg-type]


@pytest.fixture
def others(tmp_path: Path) -> LeaseBook:
    """What another process on the node would have: another ledger of the same place."""
    return book_in(tmp_path / "book")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[QCThreadManager]:
    """One that waits for what still runs."""
    with QCThreadManager(book=book_in(tmp_path / "book")) as made:
        yield made


def sleeper(
    manager: QCThreadManager, allocation: ThreadAllocation, *, told: bool = False, attached: bool = True
) -> subprocess.Popen[bytes]:
    """A worker of the allocation that was started by the caller himself, with the lease in its environment or not."""
    (worker,) = allocation.cpu_affinity_map
    environment = {**os.environ, **(manager.worker_environment(worker) if told else {})}
    process = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], env=environment)
    if attached:
        manager.attach_worker(worker, process.pid)
    return process


def free(book: LeaseBook) -> bool:
    """Whether somebody else can have all CPUs now."""
    try:
        book.acquire(4, wait=False).release()
    except LeaseError:
        return False
    return True


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.wait()


def test_cpus_of_a_worker_that_still_runs_are_given_to_nobody_before_its_end(
    manager: QCThreadManager, others: LeaseBook, caplog: pytest.LogCaptureFixture
) -> None:
    allocation = manager.allocate_thread_resources(1, 4)
    process = sleeper(manager, allocation)
    with caplog.at_level(logging.WARNING, "qcthreads.manager"):
        manager.release(allocation)
        until(lambda: f"process {process.pid}, sh" in caplog.text)
    assert not free(others)
    with pytest.raises(OversubscriptionError):
        manager.allocate_thread_resources(1, 1)
    assert process.poll() is None
    end(process)
    until(lambda: free(others))


def test_cpus_of_a_collected_allocation_are_kept_alike(manager: QCThreadManager, others: LeaseBook) -> None:
    process = sleeper(manager, manager.allocate_thread_resources(1, 4))  # nobody refers to it any more
    time.sleep(0.5)
    assert not free(others)
    end(process)
    until(lambda: free(others))


@pytest.mark.parametrize("attached", [True, False])
def test_what_a_worker_left_behind_keeps_the_cpus_where_it_was_told_of_its_lease(
    manager: QCThreadManager, others: LeaseBook, attached: bool, caplog: pytest.LogCaptureFixture
) -> None:
    allocation = manager.allocate_thread_resources(1, 4)
    process = sleeper(manager, allocation, told=True, attached=attached)
    until(lambda: len(psutil.Process(process.pid).children()) == 1)
    (left,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    manager.release(allocation)
    until(lambda: f"process {left.pid}, sleep" in caplog.text)
    assert not free(others)
    left.kill()
    until(lambda: free(others))


def test_workers_are_ended_where_that_is_the_policy(tmp_path: Path, others: LeaseBook) -> None:
    with QCThreadManager(book=book_in(tmp_path / "book"), strays="end") as manager:
        allocation = manager.allocate_thread_resources(1, 4)
        process = sleeper(manager, allocation)
        until(lambda: len(psutil.Process(process.pid).children()) == 1)
        (child,) = psutil.Process(process.pid).children()
        manager.close()
        process.wait(60)  # with any status: where the child is ended first, the shell has nothing to wait for
        until(lambda: free(others))
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # whoever adopts it may be slow
    with pytest.raises(InputError, match="'wait'"):
        QCThreadManager(strays="kill")  # type: ignore[arg-type]


def test_a_worker_that_has_ended_holds_up_nobody(manager: QCThreadManager, others: LeaseBook) -> None:
    allocation = manager.allocate_thread_resources(1, 4)
    end(sleeper(manager, allocation))
    manager.release(allocation)
    assert free(others)


KILLED = """
import os, signal, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_manager_leases import QCThreadManager, book_in, sleeper
manager = QCThreadManager(book=book_in(Path(sys.argv[1])))
allocation = manager.allocate_thread_resources(1, 4)
print(sleeper(manager, allocation, told=True).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_told_of_its_lease_keeps_it_when_the_manager_is_killed(tmp_path: Path, others: LeaseBook) -> None:
    script = [sys.executable, "-c", KILLED, str(tmp_path / "book"), str(Path(__file__).parent)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        worker = psutil.Process(int(driver.stdout.readline()))  # which has the other end of the pipe, too
        assert driver.wait() < 0
    assert not free(others)
    for process in (*worker.children(), worker):
        process.kill()
    until(lambda: free(others))


def test_allocations_lease_the_memory_of_their_workers(tmp_path: Path, others: LeaseBook) -> None:
    config = HybridParallelConfig(max_workers=16, memory_limit_mb=3000)
    with QCThreadManager(config, book=book_in(tmp_path / "book")) as manager:
        allocation = manager.allocate_thread_resources(2, 1)
        assert others.free()[1] == 8 * GIB - 2 * 3000 * 10**6
        with pytest.raises(OversubscriptionError, match="GiB"):
            manager.allocate_thread_resources(1, 1)
        with pytest.raises(LeaseError):
            manager.allocate_thread_resources(3, 1)
        manager.release(allocation)
        assert others.free()[1] == 8 * GIB


def test_stand_in_for_gpus_workers_lease_them_and_see_their_own(tmp_path: Path) -> None:
    gpus = [Gpu(index, "nvidia", index, "", None, None, CpuSet()) for index in range(2)]
    with QCThreadManager(book=book_in(tmp_path / "book", gpus=gpus), gpus_per_worker=1) as manager:
        allocation = manager.allocate_thread_resources(2, 1)
        told = [manager.worker_environment(worker) for worker in allocation.cpu_affinity_map]
        assert {one["CUDA_VISIBLE_DEVICES"] for one in told} == {"0", "1"}
        with pytest.raises(OversubscriptionError):
            manager.allocate_thread_resources(1, 1)
