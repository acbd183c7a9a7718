"""The shared book of leases between any two instructions: what a finalizer gives back, and who is killed there."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import Lease, LeaseBook
from qcthreads.leases.place import find_place
from qcthreads.machine.synthetic import synthetic_machine

if sys.platform == "win32":
    pytest.skip("Windows has no fork and no flock", allow_module_level=True)

from qcthreads.host.locks import holders_of_locks
from qcthreads.leases.shared import SharedLedger

GIB = 1024**3
MACHINE = synthetic_machine(cores=4, threads=2)
STEP = 1 if int(os.environ.get("QCTHREADS_KILLS", "0")) >= 10000 else 17
"""Every instruction for the whole proof, which takes minutes; else every seventeenth."""


@pytest.fixture
def ledger(tmp_path: Path) -> SharedLedger:
    return SharedLedger(find_place({"QCTHREADS_LEASES": str(tmp_path / "book")}))


def book_of(ledger: SharedLedger) -> LeaseBook:
    rule = Rule("mask", "/proc/self/status", cpus=MACHINE.cpus_online, tightest=True)
    memory = Rule("available memory", "/proc/meminfo", memory_bytes=8 * GIB, tightest=True)
    limits = Limits(MACHINE.cpus_online, len(MACHINE.cpus_online), None, 8 * GIB, (rule, memory))
    return LeaseBook(MACHINE, limits, smt=True, ledger=ledger)


def check_free(book: LeaseBook, place: Path) -> None:
    """All of it can be had, once no process just starts that might be a dead one's, and then nothing is left."""
    with book.acquire(8, 8 * GIB, timeout=30) as everything:
        assert everything.cpus == book.usable
    assert not list((place / "records").iterdir())
    if sys.platform == "linux":
        assert holders_of_locks(place / "locks") == {}


@pytest.mark.parametrize("file", ["shared.py", "folder.py", "locks.py"])
@pytest.mark.parametrize(
    "call",
    [
        lambda book: [book.acquire(2, GIB, wait=False)],
        lambda book: book.acquire_split(1, 2),
        lambda book: [book.acquire_cpus(CpuSet([3, 7]))],
    ],
    ids=["acquire", "acquire_split", "acquire_cpus"],
)
def test_a_finalizer_may_give_back_between_any_two_instructions(
    ledger: SharedLedger, file: str, call: Callable[[LeaseBook], Sequence[Lease]], before_instruction: Any
) -> None:
    book, at, happened = book_of(ledger), 1, True
    while happened:
        collected, kept = book.acquire(1, GIB), book.acquire(1)
        with before_instruction(at, file, collected.release) as reached:
            made = call(book)
        happened = bool(reached)
        for one in (*made, kept, collected):
            one.release()
        assert book.held() == ()
        check_free(book, ledger.place.path)
        at += STEP
    assert at > 2 * STEP


@pytest.mark.parametrize("file", ["shared.py", "folder.py", "locks.py", "lease.py", "book.py"])
def test_whoever_is_killed_between_any_two_instructions_has_lost_nothing_for_others(
    ledger: SharedLedger, file: str, before_instruction: Any
) -> None:
    book, at, killed = book_of(ledger), 1, True
    while killed:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                theirs = book_of(SharedLedger(ledger.place))
                with before_instruction(at, file, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                    theirs.acquire(1).release()
                    theirs.acquire(2, GIB).release()
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGKILL)
        killed = status != 0
        check_free(book, ledger.place.path)
        at += STEP
    assert at > 2 * STEP
