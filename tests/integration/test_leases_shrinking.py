"""Who waits while CPUs are taken away from him, by somebody else and for real, or from the book that he waits at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from contenders import book_in
from others import until

from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError, LeaseNotNowError
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import Lease, LeaseBook
from qcthreads.leases.place import find_place
from qcthreads.leases.shared import SharedLedger
from qcthreads.leases.snapshot import read_book
from qcthreads.machine.synthetic import synthetic_machine

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(read_limits().cpus) < 2, reason="of two CPUs one is taken away by taskset"
)

WAITS = """
import sys, qcthreads
print("asks", flush=True)
try:
    lease = qcthreads.lease(int(sys.argv[1]), exclusive_cores=False)
except qcthreads.errors.LeaseError as error:
    print(error, flush=True)
else:
    print(lease.cpus, flush=True)
sys.stdin.read()
"""


RUNS = """
import sys
from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.execution.source import Dispatched
from qcthreads.leases.node import node_book
from qcthreads.planning import Task
from qcthreads.planning.dispatch import Dispatcher

def made(label, threads, memory_bytes):
    return Calculation(label=label, program="none", input={}, threads=threads, compute="json:dumps")

print("asks", flush=True)
book, tasks = node_book(), [Task("f0", {1: 10.0, 2: 1.0})]
with LocalEngine(book) as engine:
    dispatcher = Dispatcher(tasks, book.machine.cpus_online, known="seconds")
    for outcome in engine.run(Dispatched(dispatcher, [made("f0", 1, 0)], made)):
        print(outcome.threads, outcome.cpus, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "book"


@contextlib.contextmanager
def waiter(place: Path, width: int, script: str = WAITS) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, str(width)]
    environment = {**os.environ, "QCTHREADS_LEASES": str(place)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asks\n"
        yield process
        process.kill()


def asked_for(place: Path) -> list[CpuSet]:
    queue = read_book(find_place({"QCTHREADS_LEASES": str(place)})).queue
    return [CpuSet.from_bits(one.waiting.claim.candidates) for one in queue]


def narrow(process: subprocess.Popen[str], cpu: int) -> None:
    subprocess.run(["taskset", "-a", "-p", "-c", str(cpu), str(process.pid)], check=True, stdout=subprocess.DEVNULL)


def test_a_cpu_that_was_taken_from_a_process_that_waits_is_not_leased_to_it(place: Path) -> None:
    stays, goes, *_ = read_limits().cpus
    book = book_in(place, read_machine())
    keeps, first = book.acquire_cpus(CpuSet([stays])), book.acquire_cpus(book.usable - CpuSet([stays]))
    with waiter(place, 1) as process:
        until(lambda: len(asked_for(place)) == 1)
        assert goes in asked_for(place)[0]
        narrow(process, stays)
        until(lambda: asked_for(place) == [CpuSet([stays])])  # and so others keep nothing else for it
        first.release()
        with book.acquire(len(first.cpus), wait=False, exclusive_cores=False) as others:
            assert others.cpus == first.cpus
        assert process.poll() is None
        keeps.release()
        assert process.stdout is not None
        assert process.stdout.readline() == f"{stays}\n"


def test_who_waits_for_more_than_is_left_to_it_is_told(place: Path) -> None:
    stays, goes, *_ = read_limits().cpus
    book = book_in(place, read_machine())
    with book.acquire_cpus(book.usable), waiter(place, 2) as process:
        until(lambda: len(asked_for(place)) == 1)
        narrow(process, stays)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("2 CPUs were asked for")
        assert str(goes) in said
        assert asked_for(place) == []


def test_a_calculation_that_fits_no_longer_while_it_waits_is_run_with_fewer_threads(place: Path) -> None:
    stays = next(iter(read_limits().cpus))
    book = book_in(place, read_machine())
    held = book.acquire_cpus(book.usable)
    with waiter(place, 2, RUNS) as process:
        until(lambda: len(asked_for(place)) == 1)
        narrow(process, stays)
        until(lambda: asked_for(place) == [CpuSet([stays])])
        held.release()
        assert process.stdout is not None
        assert process.stdout.readline() == f"1 {stays}\n"


def test_a_mask_that_a_thread_has_chosen_itself_is_no_loss(place: Path) -> None:
    stays = next(iter(read_limits().cpus))
    ledger = SharedLedger(find_place({"QCTHREADS_LEASES": str(place)}))
    book, others = LeaseBook(read_machine(), read_limits(), ledger=ledger), book_in(place, read_machine())
    held, got = others.acquire_cpus(others.usable), []

    def wait() -> None:
        os.sched_setaffinity(0, [stays])
        got.append(book.acquire(2, exclusive_cores=False).cpus)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: len(asked_for(place)) == 1 or not thread.is_alive())
    held.release()
    thread.join()
    assert [len(cpus) for cpus in got] == [2]


def test_who_does_not_wait_asks_for_no_limits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SharedLedger(find_place({"QCTHREADS_LEASES": str(place)}))
    book = LeaseBook(read_machine(), read_limits(), ledger=ledger)
    monkeypatch.setattr("qcthreads.leases.book.read_limits", lambda: pytest.fail("it takes half a millisecond"))
    with book.acquire_cpus(book.usable), pytest.raises(LeaseNotNowError):
        book.acquire(1, wait=False)


def test_a_cpu_that_left_the_book_is_not_leased_to_who_waits_at_it(place: Path) -> None:
    machine = synthetic_machine(cores=4)
    ours, others = book_in(place, machine), book_in(place, machine)  # as two processes
    first, second = others.acquire_cpus(CpuSet([0, 1])), others.acquire_cpus(CpuSet([2, 3]))
    got: list[Lease | LeaseError] = []

    def wait(width: int) -> None:
        try:
            got.append(ours.acquire(width))
        except LeaseError as error:
            got.append(error)

    threads = [threading.Thread(target=wait, args=(width,)) for width in (2, 3)]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda number=number: len(asked_for(place)) == number + 1)
    ours.follow(machine, replace(ours.limits, cpus=CpuSet([2, 3]), cpu_count=2), ours.memory_bytes)
    first.release()
    threads[1].join()
    (refused,) = got
    assert "3 threads were asked for, but 2 CPUs may be used" in str(refused)
    second.release()
    threads[0].join()
    lease = got[1]
    assert isinstance(lease, Lease)
    assert lease.cpus == CpuSet([2, 3])
    lease.release()
