"""The shared book of leases between any two instructions: what a finalizer gives back, and who is killed there."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError, MachineError
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import Lease, LeaseBook
from qcthreads.leases import book as book_module
from qcthreads.leases.ledger import Ledger
from qcthreads.leases.place import find_place
from qcthreads.leases.sharing import share
from qcthreads.machine.synthetic import synthetic_machine

if sys.platform == "win32":
    pytest.skip("Windows has no fork and no flock", allow_module_level=True)

from qcthreads.host.locks import FileLocks, holders_of_locks
from qcthreads.leases.reclaiming import is_any_free
from qcthreads.leases.shared import SharedLedger

GIB = 1024**3
MACHINE = synthetic_machine(cores=4, threads=2)
STEP = 1 if int(os.environ.get("QCTHREADS_KILLS", "0")) >= 10000 else 17
"""Every instruction for the whole proof, which takes minutes; else every seventeenth."""


@pytest.fixture
def ledger(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SharedLedger:
    if "file_calls.py" in request.node.name:  # what the extension does in its place has no instructions of Python
        monkeypatch.setenv("QCTHREADS_BACKEND", "portable")
    return SharedLedger(find_place({"QCTHREADS_LEASES": str(tmp_path / "book")}))


def book_of(ledger: Ledger) -> LeaseBook:
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


@pytest.mark.parametrize("file", ["shared.py", "folder.py", "locks.py", "file_calls.py"])
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
        check_free(book, Path(ledger.place.path))
        at += STEP
    assert at > 2 * STEP


@pytest.mark.parametrize("file", ["shared.py", "folder.py", "locks.py", "file_calls.py", "lease.py", "book.py"])
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
        check_free(book, Path(ledger.place.path))
        at += STEP
    assert at > 2 * STEP


FILES = tuple(
    f"leases/{name}.py"
    for name in ("book", "claims", "door", "hold", "ledger", "lease", "reclaiming", "shared", "shortage")
)


@pytest.mark.parametrize("shared", [True, False], ids=["on the node", "of one process"])
@pytest.mark.parametrize(
    "call",
    [
        lambda book: [book.acquire(2, GIB, wait=False)],
        lambda book: [book.acquire(8, GIB, timeout=0.002)],
        lambda book: book.acquire_split(1, 2),
        lambda book: [book.acquire_cpus(CpuSet([3, 7]))],
    ],
    ids=["acquire", "in vain", "acquire_split", "acquire_cpus"],
)
def test_an_interrupt_at_any_point_loses_no_lease_and_no_turn(
    ledger: SharedLedger, shared: bool, call: Callable[[LeaseBook], Sequence[Lease]], interrupted: Any
) -> None:
    book, at, happened = book_of(ledger if shared else Ledger()), 1, True
    while happened:
        kept, made = book.acquire(1), []
        with contextlib.suppress(KeyboardInterrupt, LeaseError), interrupted(at, FILES) as reached:
            made = call(book)
        happened = bool(reached)
        assert not (made and happened)
        for one in (*made, kept):
            one.release()
        assert book.held() == ()
        with book.acquire(8, 8 * GIB, wait=False):
            pass
        assert not list(Path(ledger.place.records).iterdir()) if shared else True
        at += 1 + (at > 100) * STEP // 4
    assert at > 20


@pytest.mark.parametrize("files", [("shared.py", "locks.py"), ("shared.py", "locks.py", "file_calls.py")], ids=str)
def test_an_interrupt_while_it_is_taken_unlocks_nothing_that_another_thread_has_got(
    ledger: SharedLedger, files: tuple[str, ...], interrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads have the same files open: a lock that one takes again is given up by whoever else unlocks it."""
    book, at, happened, got = book_of(ledger), 1, True, list[Lease]()
    undo = book_module._undo

    def after_another_thread(made: Sequence[Lease]) -> None:
        monkeypatch.setattr(book_module, "_undo", undo)
        with contextlib.suppress(LeaseError):
            got.append(book.acquire(8, wait=False))
        undo(made)

    while happened:
        monkeypatch.setattr(book_module, "_undo", after_another_thread)
        with contextlib.suppress(KeyboardInterrupt), interrupted(at, files) as reached:
            book.acquire_cpus(CpuSet([3, 7])).release()
        happened = bool(reached)
        for lease in got:
            held = holders_of_locks(ledger.place.locks)
            assert {f"cpu{cpu}" for cpu in lease.cpus} <= held.keys() or sys.platform != "linux"
            lease.release()
        got.clear()
        assert book.held() == ()
        at += 1
    assert at > 20


def with_lease(book: LeaseBook) -> None:
    with book.acquire(2, GIB):
        CpuSet([0])


@pytest.mark.parametrize("shared", [True, False], ids=["on the node", "of one process"])
def test_an_interrupt_at_any_point_of_a_with_statement_leaves_no_lease(
    ledger: SharedLedger, shared: bool, interrupted: Any
) -> None:
    """Between the end of acquire() and the beginning of the block, and when that ends, too."""
    book, at, happened = book_of(ledger if shared else Ledger()), 1, True
    while happened:
        with contextlib.suppress(KeyboardInterrupt), interrupted(at, (*FILES, __file__)) as reached:
            with_lease(book)
        happened = bool(reached)
        assert book.held() == ()
        if shared:
            assert not list(Path(ledger.place.records).iterdir())
            assert sys.platform != "linux" or holders_of_locks(ledger.place.locks) == {}
        at += 1
    assert at > 20


@pytest.mark.skipif(sys.platform != "linux", reason="who holds locks is told by Linux's /proc/locks")
@pytest.mark.parametrize("backend", ["", "portable"])
def test_an_interrupt_while_a_dead_lease_is_looked_at_keeps_no_lock(
    tmp_path: Path, backend: str, interrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCTHREADS_BACKEND", backend)
    locks, at, happened = FileLocks(tmp_path, create=True), 1, True
    while happened:
        with (
            contextlib.suppress(KeyboardInterrupt),
            interrupted(at, ("reclaiming.py", "locks.py", "file_calls.py")) as reached,
        ):
            assert is_any_free(locks, CpuSet([3]))
        happened = bool(reached)
        assert holders_of_locks(tmp_path) == {}
        at += 1
    assert at > 5
    locks.close()


def test_a_lease_that_nobody_refers_to_any_more_is_given_back(ledger: SharedLedger) -> None:
    book = book_of(ledger)
    lease = book.acquire(8)
    with pytest.raises(LeaseError):
        book.acquire(1, wait=False)
    del lease
    book.acquire(8, wait=False).release()


@pytest.mark.parametrize("shared", [True, False], ids=["on the node", "of one process"])
@pytest.mark.parametrize("files", [("locks.py", "folder.py"), ("locks.py", "folder.py", "file_calls.py")], ids=str)
def test_an_interrupt_at_any_point_of_giving_back_comes_after_it(
    ledger: SharedLedger, files: tuple[str, ...], shared: bool, interrupted: Any
) -> None:
    book, at, happened = book_of(ledger if shared else Ledger()), 1, True
    while happened:
        lease = book.acquire(2, GIB)
        with contextlib.suppress(KeyboardInterrupt), interrupted(at, (*FILES, *files)) as reached:
            lease.release()
        happened = bool(reached)
        if at == 1:  # before its first instruction
            assert len(book.held()) == 1
            lease.release()
        assert book.held() == ()
        if shared:
            assert not list(Path(ledger.place.records).iterdir())
            assert sys.platform != "linux" or holders_of_locks(ledger.place.locks) == {}
        at += 1
    assert at > 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes what all users share")
@pytest.mark.parametrize("part", ["", "locks", "records"])
def test_whatever_takes_the_name_of_a_part_that_is_being_shared_stays_as_it_is(
    tmp_path: Path, part: str, before_instruction: Any
) -> None:
    """A link to a directory of root's, put there between any two instructions."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    at, happened = 1, True
    while happened:
        place, away = tmp_path / f"{at}", tmp_path / f"{at} away"

        def attack(place: Path = place, away: Path = away) -> None:
            with contextlib.suppress(FileNotFoundError):
                (place / part).rename(away)
            with contextlib.suppress(OSError):
                (place / part).symlink_to(victim)

        with before_instruction(at, "place.py", attack) as reached, contextlib.suppress(MachineError):
            share(place, ["cpu0"])
        happened = bool(reached)
        assert victim.stat().st_mode & 0o7777 == 0o700
        assert not list(victim.iterdir())
        at += STEP // 4 + 1
    assert at > 2 * STEP
