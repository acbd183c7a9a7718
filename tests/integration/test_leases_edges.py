"""The book of leases at its edges: at the same instant, after a logout, with stale marks and wrong numbers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from contenders import book_in
from others import SAY_S, Say, other, until

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, LeaseError
from qcthreads.host import read_machine
from qcthreads.host.limits import Limits, Rule, read_limits
from qcthreads.leases import LeaseBook
from qcthreads.leases.checkup import examine
from qcthreads.leases.ledger import Ledger
from qcthreads.leases.place import LEASE_VARIABLE, find_place
from qcthreads.leases.shared import SharedLedger
from qcthreads.machine.synthetic import synthetic_machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

MACHINE = synthetic_machine(cores=4)


def test_who_gives_back_while_another_looks_is_not_taken_for_dead(tmp_path: Path) -> None:
    holder, other = (book_in(tmp_path / "book", MACHINE, "end") for _ in range(2))  # as two processes
    lease = holder.acquire(1)
    environment = {**os.environ, LEASE_VARIABLE: holder.ledger.mark}
    with subprocess.Popen(["sleep", "600"], env=environment) as worker:
        time.sleep(0.2)  # it has its environment by now
        other.ledger.in_turn(lambda: (lease.release(), other.ledger.suspect()))
        assert not other.ledger.examine()
        assert other.ledger.strays() == []
        time.sleep(0.2)
        assert worker.poll() is None
        worker.kill()


def test_nothing_is_ended_while_its_holder_lives(tmp_path: Path) -> None:
    """Though his record looks abandoned: a daemon closes all files that it finds open, for instance."""
    holder, other = (book_in(tmp_path / "book", MACHINE, "end") for _ in range(2))
    lease = holder.acquire(1)
    with subprocess.Popen(["sleep", "600"], env={**os.environ, LEASE_VARIABLE: holder.ledger.mark}) as worker:
        holder.ledger._locks.close()  # type: ignore[attr-defined]
        for descriptor in holder.ledger._told.values():  # type: ignore[attr-defined]
            os.close(descriptor)
        with pytest.raises(LeaseError, match=f"process {worker.pid} "):
            other.acquire(4, timeout=1.5)
        assert worker.poll() is None
        worker.kill()
    holder.ledger._told.clear()  # type: ignore[attr-defined]
    lease.release()


def test_what_has_emptied_its_environment_keeps_its_pus_by_its_files(tmp_path: Path) -> None:
    machine = read_machine()
    holder, other = (book_in(tmp_path / "book", machine) for _ in range(2))
    lease = holder.acquire(len(holder.usable))
    lease.popen(["sh", "-c", "env -i sleep 600 & echo $! >" + str(tmp_path / "pid")]).wait()
    lease.release()
    with pytest.raises(LeaseError):
        other.acquire(1, timeout=0.5)
    os.kill(int((tmp_path / "pid").read_text()), 9)
    with other.acquire(len(other.usable), timeout=30):
        pass


def test_nothing_starts_under_a_released_lease(tmp_path: Path) -> None:
    lease = book_in(tmp_path / "book", MACHINE).acquire(1)
    lease.release()
    with pytest.raises(LeaseError, match="has been released"):
        lease.popen(["true"])


def test_the_mark_of_a_lease_that_is_over_keeps_nobody_out_of_the_book(tmp_path: Path) -> None:
    book = book_in(tmp_path / "book", MACHINE)
    lease = book.acquire(1)
    environ = {"QCTHREADS_LEASES": str(tmp_path / "book"), LEASE_VARIABLE: lease.mark}
    inside = find_place(environ)
    assert inside.path == str(tmp_path / f"book-in-{lease.mark}")
    lease.release()
    outside = find_place(environ)
    assert outside.path == str(tmp_path / "book")
    assert f"{LEASE_VARIABLE}={lease.mark} names no lease" in outside.why


def test_a_book_is_nowhere_that_depends_on_the_working_directory() -> None:
    with pytest.raises(InputError, match="write it from the root"):
        find_place({"QCTHREADS_LEASES": "book"})
    (trouble,) = examine({"QCTHREADS_LEASES": "book"}).troubles
    assert trouble.what.startswith("QCTHREADS_LEASES=book")
    given, none = (find_place(environ, create=False) for environ in ({"XDG_RUNTIME_DIR": "run"}, {}))
    assert given == none  # as the XDG specification wants it


def test_a_link_is_refused_however_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "book")
    for written in (f"{link}", f"{link}/", f"{link}/.", f"{link}//./"):
        with pytest.raises(InputError, match="a link"):
            find_place({"QCTHREADS_LEASES": written})


def test_a_logout_closes_no_files_but_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole runtime directory goes, with the book in it."""
    monkeypatch.delenv("QCTHREADS_LEASES", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    book = book_in(tmp_path / "run" / "qcthreads", MACHINE)
    held = book.acquire(1)
    shutil.rmtree(tmp_path / "run")
    ours = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    for _ in range(3):
        with book.acquire(1) as lease:
            assert lease.cpus.isdisjoint(held.cpus)
    assert [os.fstat(descriptor).st_rdev for descriptor in ours] == [Path("/dev/null").stat().st_rdev] * 8
    for descriptor in ours:
        os.close(descriptor)
    held.release()


@pytest.mark.parametrize("wrong", [{"memory_bytes": 4e9}, {"memory_bytes": -1}, {"gpus": -1}, {"gpus": 1.0}])
def test_wrong_numbers_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    book = book_in(tmp_path / "book", MACHINE)
    with pytest.raises(InputError, match="whole number of at least 0"):
        book.acquire(1, **wrong)
    assert book.acquire(4, wait=False).cpus == book.usable


def test_who_waits_for_memory_alone_is_told_whom_for(tmp_path: Path) -> None:
    holder, other = (book_in(tmp_path / "book", MACHINE) for _ in range(2))
    with (
        holder.acquire(1, holder.memory_bytes),
        pytest.raises(LeaseError, match=f"held by process {os.getpid()} "),
    ):
        other.acquire(1, 1024, wait=False)


@pytest.mark.parametrize("timeout", [-1, -0.1, float("nan"), "1", True])
def test_a_timeout_that_is_none_is_refused(tmp_path: Path, timeout: Any) -> None:
    book = book_in(tmp_path / "book", MACHINE)
    with pytest.raises(InputError, match=r"the timeout is .*; it must be a number of seconds of at least 0, or None"):
        book.acquire(1, timeout=timeout)
    with pytest.raises(InputError, match="the timeout is"):
        asyncio.run(_lease_async(book, timeout=timeout))


def test_async_with_a_lease_that_is_not_for_it_says_which_is_and_holds_nothing(tmp_path: Path) -> None:
    book = book_in(tmp_path / "book", MACHINE)

    async def wrong() -> None:
        async with book.acquire(1):  # type: ignore[attr-defined]
            pass

    with pytest.raises(TypeError, match=r"async with lease_async\(\.\.\.\)"):
        asyncio.run(wrong())
    assert book.held() == ()


async def _lease_async(book: LeaseBook, **options: Any) -> CpuSet:
    async with book.acquire_async(1, **options) as lease:
        return lease.cpus


@contextlib.contextmanager
def shut(book: LeaseBook, place: Path) -> Iterator[None]:
    """Another process has the door, and is stopped there."""
    book.acquire(1).release()
    with other(lambda say: (fcntl.flock(os.open(place / "locks/door", os.O_RDONLY), fcntl.LOCK_EX), say("in"))) as one:
        assert one.said() == "in"
        yield


def test_whoever_keeps_the_door_shut_stops_no_event_loop(tmp_path: Path) -> None:
    place = tmp_path / "book"
    book = book_in(place, MACHINE)
    threads = threading.active_count()

    async def beside() -> str:
        given_up = asyncio.create_task(_lease_async(book))
        for _ in range(50):
            await asyncio.sleep(0.001)
        given_up.cancel()
        await asyncio.wait([given_up], timeout=60)  # at once, not when the door opens
        assert given_up.cancelled()
        waiting = asyncio.create_task(_lease_async(book, timeout=0.2))
        await asyncio.wait([waiting])
        return str(waiting.exception())

    with shut(book, place):
        said = asyncio.run(beside())
    assert "1 CPU cannot be given within 0.2 s: the book of leases in" in said
    until(lambda: threading.active_count() == threads)
    with book.acquire(4, timeout=30) as everything:
        assert everything.cpus == book.usable


def test_in_asyncio_no_thread_is_made_for_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = book_in(tmp_path / "book", MACHINE)
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("a thread"))
    assert asyncio.run(_lease_async(book)) <= book.usable


def test_a_library_that_leases_has_no_thread_before_it_waits_and_takes_no_signal(tmp_path: Path) -> None:
    """By the kernel's word."""
    leases = """
import re, time
import qcthreads
from qcthreads import errors
def told():
    with open("/proc/self/status") as status:  # of signals the first 32: the others are the C library's
        return re.findall("^(Threads|SigBlk|SigIgn|SigCgt):.*?(.{1,8})$", status.read(), re.MULTILINE)
before = told()
with qcthreads.lease(1) as lease:
    lease.popen(["true"]).wait()
    assert told() == before
    try:
        qcthreads.lease(len(lease.book.usable), timeout=0.5)
    except errors.LeaseError:
        print("waited")
    while told() != before:
        time.sleep(0.01)
"""
    environ = {**os.environ, "QCTHREADS_LEASES": str(tmp_path / "book")}
    command = [sys.executable, "-c", leases]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SAY_S, check=False)
    assert (done.stdout, done.stderr) == ("waited\n", "")


def test_the_time_of_one_thread_is_kept_while_another_stands_at_the_door(tmp_path: Path) -> None:
    place = tmp_path / "book"
    book = book_in(place, MACHINE)
    with shut(book, place):
        patient = threading.Thread(target=lambda: book.acquire(1, timeout=60).release())
        patient.start()
        with pytest.raises(LeaseError, match=r"within 0\.2 s"):
            book.acquire(1, timeout=0.2)
        assert patient.is_alive()
    patient.join(60)
    assert not patient.is_alive()


def test_children_that_have_ended_are_kept_no_longer(tmp_path: Path) -> None:
    with book_in(tmp_path / "book", read_machine()).acquire(1) as lease:
        for _ in range(5):
            lease.popen(["true"]).wait()
        assert len(lease.hold.children) == 1


def test_a_fork_leases_nothing_that_its_parent_held_though_nobody_shares_the_book() -> None:
    rule = Rule("mask", "/proc/self/status", cpus=MACHINE.cpus_online, tightest=True)
    book = LeaseBook(MACHINE, Limits(MACHINE.cpus_online, 4, None, 2**30, (rule,)), ledger=Ledger())
    held = book.acquire(3)

    def leases(say: Say) -> None:
        held.release()
        say(len(book.held()))
        lease = book.acquire(1, wait=False)
        say(lease.cpus)
        try:
            book.acquire(1, wait=False)
        except LeaseError as error:
            say(error)

    with other(leases) as child:
        assert child.said() == "0"
        assert CpuSet.parse(child.said()) == book.usable - held.cpus
        assert f"process {os.getpid()} (" in child.said()
    assert book.held() == (held.hold,)
    with pytest.raises(LeaseError):
        book.acquire(2, wait=False)


def test_memory_that_others_use_now_is_waited_for_and_more_than_there_is_refused(tmp_path: Path) -> None:
    """The machine's: a lease of all of it can be given once nobody else uses any, which a process cannot have now."""
    machine, limits = read_machine(), read_limits()
    ledger = SharedLedger(find_place({"QCTHREADS_LEASES": str(tmp_path / "book")}))
    book = LeaseBook(machine, limits, ledger=ledger)
    there = min(limits.total_bytes, psutil.virtual_memory().total)
    used = there - read_limits().memory_bytes
    assert used > 0
    with pytest.raises(LeaseError, match="cannot be given now"):
        book.acquire(1, there - used // 4, wait=False)
    with pytest.raises(LeaseError, match="to be given out in all"):
        book.acquire(1, limits.total_bytes + 1)


def test_the_process_s_book_follows_its_mask(tmp_path: Path) -> None:
    """But not the mask that a lease gives a thread."""
    follow = """
import os, time
from qcthreads.leases import node, process_book
def again():
    node._READ_AGAIN_S = 0
    return len(process_book().usable)
first = again()
with process_book().acquire(1) as lease, lease.bound():
    print(again() == first)
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
print(again())
"""
    environ = {**os.environ, "QCTHREADS_LEASES": str(tmp_path / "book")}
    done = subprocess.run([sys.executable, "-c", follow], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1"]
