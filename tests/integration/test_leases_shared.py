"""The book of leases of all processes on a node: what others write, break, kill, stop and fork, and who waits for whom.

Every other process is a real one; what is held is checked by what another one gets, and by the kernel's list of locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from contenders import BOOK, CPUS, MEMORY, RESERVED, TOTAL_BYTES, Observer, book_in, close, kill_many, start
from others import Other, Say, other, state_of, until

from qcthreads.cpuset import CpuSet
from qcthreads.errors import BookShutError, LeaseError, StopRequestedError
from qcthreads.host import read_machine
from qcthreads.host.locks import holders_of_locks
from qcthreads.leases import Lease, LeaseBook, records, shared
from qcthreads.leases.claims import Claim
from qcthreads.leases.records import user_name
from qcthreads.machine import Machine
from qcthreads.machine.synthetic import synthetic_machine

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="observes by /proc; elsewhere tests/unit/test_leases.py"
)

MACHINE = synthetic_machine(packages=2, cores=4)
CORES = synthetic_machine(packages=2, cores=4, threads=2)
PUS = len(MACHINE.cpus_online)
GIB = 1024**3
KILLS = int(os.environ.get("QCTHREADS_KILLS", "200"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "book"
    close(tmp_path / "book")


def holds(place: Path, width: int, memory_bytes: int = 0, orphans: str = "wait") -> Callable[[Say], object]:
    """Another process that leases so much and says which PUs."""

    def act(say: Say) -> Lease:
        lease = book_in(place, MACHINE, orphans).acquire(width, memory_bytes)
        say(lease.cpus)
        return lease

    return act


def starts(place: Path, *, keeps_locks: bool, orphans: str = "wait") -> Callable[[Say], object]:
    """Another process that starts one under a lease and says its number."""

    def act(say: Say) -> Lease:
        lease = book_in(place, MACHINE, orphans).acquire(1)
        say(start(lease, "600", keeps_locks=keeps_locks).pid)
        return lease

    return act


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def everything_is_free(place: Path, book: LeaseBook) -> bool:
    """All PUs and all memory can be had at once, and afterwards nothing is left but what belongs to nobody."""
    with book.acquire(PUS, book.memory_bytes, exclusive_cores=False, timeout=30) as lease:
        assert lease.cpus == book.usable
        assert set(holders_of_locks(place / "locks")) == {f"cpu{cpu}" for cpu in lease.reserved}
    assert holders_of_locks(place / "locks") == {}
    return not list((place / "records").iterdir())


# What others hold


def test_leases_of_two_processes_never_overlap_and_their_memory_adds_up(place: Path) -> None:
    book = book_in(place, MACHINE)
    with other(holds(place, 3, 40 * GIB)) as holder:
        theirs = CpuSet.parse(holder.said())
        with pytest.raises(LeaseError, match=rf"are held by process {holder.pid} \(.*CPUs {theirs} and 40 GiB\)"):
            book.acquire(PUS - 2, wait=False)
        with pytest.raises(LeaseError, match="24 GiB are free"):
            book.acquire(1, 25 * GIB, wait=False)
        with book.acquire(PUS - 3, 24 * GIB, wait=False) as ours:
            assert ours.cpus == book.usable - theirs
    assert everything_is_free(place, book)


@pytest.mark.parametrize("keeps_locks", [True, False], ids=["keeps its files", "closes its files"])
def test_what_runs_under_the_lease_of_a_dead_process_keeps_it_until_it_ends(place: Path, keeps_locks: bool) -> None:
    book = book_in(place, MACHINE)
    with other(starts(place, keeps_locks=keeps_locks)) as driver:
        worker = int(driver.said())
        driver.kill()
        try:
            until(lambda: comm(worker) == "sleep")
            with pytest.raises(LeaseError, match=rf"process {driver.pid} .*CPUs 0\)") as refused:
                book.acquire(PUS, wait=False)
            if not keeps_locks:
                assert f"process {worker} (sleep, user {user_name(os.getuid())}) still runs on CPUs 0" in str(
                    refused.value
                )
        finally:
            os.kill(worker, signal.SIGKILL)
    assert everything_is_free(place, book)


@pytest.mark.timeout(60)
def test_what_a_dead_process_held_is_seen_to_be_free_once_it_is_dead(place: Path) -> None:
    book = book_in(place, MACHINE)
    with other(holds(place, 2, 2**20)) as holder:
        holder.said()
        cpus, memory_bytes = book.free()
        assert (len(cpus), memory_bytes) == (PUS - 2, book.memory_bytes - 2**20)
        holder.kill()
    assert book.free() == (book.usable, book.memory_bytes)


def test_what_has_closed_its_files_is_ended_where_its_driver_wanted_that(place: Path) -> None:
    book = book_in(place, MACHINE)
    with other(starts(place, keeps_locks=False, orphans="end")) as driver:
        worker = int(driver.said())
        driver.kill()
        assert everything_is_free(place, book)
        assert not Path(f"/proc/{worker}").exists() or state_of(worker) == "Z"


def test_a_child_without_its_mark_keeps_the_lease_that_was_given_back(place: Path) -> None:
    """As every child is in the middle of execve(2): one that is started and left at once could lose its PUs."""
    book = book_in(place, MACHINE)
    lease = book.acquire(1)
    child = lease.popen(["env", "-i", "sleep", "600"])
    try:
        until(lambda: comm(child.pid) == "sleep")
        lease.release()
        with pytest.raises(LeaseError, match=r"7 of 8 CPUs .*CPUs 0\)"):
            book.acquire(PUS, wait=False)
    finally:
        child.kill()
        child.wait()
    assert everything_is_free(place, book)


def test_a_number_that_is_another_process_s_now_and_another_boot_fool_nobody(place: Path) -> None:
    book = book_in(place, MACHINE)
    book.acquire(1).release()
    live = subprocess.Popen(["sleep", "600"], env={**os.environ, "QCTHREADS_LEASE": "before.1"})
    try:
        for number, told in enumerate(({"pid": live.pid}, {"pid": live.pid, "mark": "before", "boot": "another"})):
            plant(place, f"l{number}", holding(**told))
        assert everything_is_free(place, book)
    finally:
        live.kill()
        live.wait()


# What is written into the directory by whatever


def own(**told: object) -> dict[str, Any]:
    return {"pid": 1, "boot": "", "pid_namespace": "", "since": 1.0, "mark": "m", "command": "test", **told}


def holding(**told: object) -> dict[str, Any]:
    content = {"cpus": "0", "reserved": "0", "gpus": [], "memory_bytes": 0, "draws": {}, "orphans": "wait"}
    return {**own(), **content, **told}


def waiting(**told: object) -> dict[str, Any]:
    claim = records.claim_body(Claim(threads=1, candidates=MACHINE.cpus_online.bits))
    return {**own(), **json.loads(f"{{{claim}}}"), **told}


def record(**told: object) -> bytes:
    return records.encode(records.body(holding(**told)))


def plant(place: Path, name: str, content: Mapping[str, Any]) -> Path:
    path = place / "records" / name
    path.write_bytes(records.encode(records.body(content)))
    return path


def _link(path: Path, target: Path) -> None:
    target.write_text("precious")
    path.symlink_to(target)


def _second_name(path: Path, target: Path) -> None:
    target.write_bytes(record(draws={"memory": [TOTAL_BYTES, TOTAL_BYTES]}))
    path.hardlink_to(target)


def _torn(path: Path, _: Path) -> None:
    path.write_bytes(record()[:-20])


def _huge(path: Path, _: Path) -> None:
    with path.open("wb") as file:
        file.write(record())
        file.truncate(1 << 40)


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "torn": _torn,
    "empty": lambda path, _: path.write_bytes(b""),
    "garbage": lambda path, _: path.write_bytes(os.urandom(5000)),
    "nested": lambda path, _: path.write_bytes(record()[:9] + b"[" * 60000),
    "FIFO": lambda path, _: os.mkfifo(path),
    "socket": lambda path, _: os.mknod(path, 0o140600),
    "symlink": _link,
    "symlink to nothing": lambda path, _: path.symlink_to("/nowhere"),
    "hard link": _second_name,
    "directory": lambda path, _: path.mkdir(),
    "huge": _huge,
}


@pytest.mark.parametrize("plants", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("name", ["lm.1", f"w{0:018}-m-1", "something else", "\udcff"])
def test_what_is_no_record_is_put_aside_and_nothing_else_is_touched(
    place: Path, name: str, plants: Callable[[Path, Path], object]
) -> None:
    book, elsewhere = book_in(place, MACHINE), place.parent / "elsewhere"
    with book.acquire(1, GIB), other(holds(place, 2, 3 * GIB)) as holder:
        theirs = CpuSet.parse(holder.said())
        planted = place / "records" / name
        plants(planted, elsewhere)
        before = elsewhere.read_bytes() if elsewhere.exists() else None
        with book.acquire(PUS - 3, TOTAL_BYTES - 4 * GIB, wait=False) as rest:
            assert rest.cpus.isdisjoint(theirs)
            assert planted.is_dir() or not os.path.lexists(planted)
            assert len(list((place / "records").iterdir())) == 3 + planted.is_dir()
        assert (elsewhere.read_bytes() if elsewhere.exists() else None) == before
    assert everything_is_free(place, book) or planted.is_dir()


@pytest.mark.parametrize("machine", [MACHINE, CORES], ids=["8 cores", "8 cores x 2"])
@pytest.mark.parametrize(
    "told",
    [
        {"since": 10**400},
        {"since": float("inf")},
        {"since": "now"},
        {"cpus": "0-9999", "reserved": "0-9999"},
        {"cpus": "", "reserved": "", "draws": {"memory": [TOTAL_BYTES, TOTAL_BYTES]}},
        {"cpus": "0-1", "reserved": "1"},
        {"cpus": "0-99999999999"},
        {"draws": {"memory": [1]}},
        {"draws": {"memory": 1}},
        {"draws": {"\x1b[2J": [1, 1]}},
        {"gpus": [-1]},
        {"pid": True},
        {"command": "\x1b]0;evil\x07"},
    ],
    ids=lambda told: str(told)[:30],
)
def test_a_well_formed_record_of_nonsense_holds_nothing(place: Path, machine: Machine, told: dict[str, Any]) -> None:
    book = book_in(place, machine)
    book.acquire(1).release()
    plant(place, "lm.1", holding(**told))
    assert everything_is_free(place, book)


@pytest.mark.parametrize(
    "told",
    [{"since": 10**400}, {"threads": 0}, {"threads": -1}, {"siblings": "0-40"}, {"near": "40"}, {"candidates": "90"}],
    ids=lambda told: str(told)[:30],
)
def test_nonsense_of_one_who_waits_stops_nobody(place: Path, told: dict[str, Any]) -> None:
    book = book_in(place, CORES)
    book.acquire(1).release()
    ticket = plant(place, f"w{0:018}-m-1", waiting(**told))
    with ticket.open("rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert book.acquire(2, timeout=10).cpus <= book.usable


# Whoever is killed, whenever


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("machine", [read_machine(), CORES], ids=["this machine", "16 PUs that are not here"])
def test_whoever_is_killed_nobody_is_trampled_and_nothing_is_lost(place: Path, machine: Machine) -> None:
    contenders, observer = kill_many(place, machine, KILLS // 2)
    print(f"{contenders.kills} kills, {len(observer.seen)} workers seen in {observer.looks} looks")
    assert observer.overlaps == []
    assert observer.escaped == []
    assert observer.most_bytes <= TOTAL_BYTES
    assert not contenders.faults.exists(), contenders.faults.read_text()
    assert observer.seen  # he looked, and there was something to see; how much is a matter of the load
    book = book_in(place, machine)
    with book.acquire(len(book.usable), TOTAL_BYTES, exclusive_cores=False, timeout=60) as lease:
        assert lease.cpus == book.usable
    assert not list((place / "records").iterdir())
    assert holders_of_locks(place / "locks") == {}


def test_the_observer_sees_who_shares_a_cpu_and_who_may_run_elsewhere(place: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU")
    first, second = sorted(os.sched_getaffinity(0))[:2]
    told = {**os.environ, BOOK: str(place), MEMORY: "0"}

    def bound_to(cpu: int, said: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["taskset", "-c", str(cpu), "sleep", "600"], env={**told, CPUS: str(said), RESERVED: str(said)}
        )

    sleepers = [bound_to(first, first), bound_to(second, second)]
    try:
        until(lambda: all(comm(sleeper.pid) == "sleep" for sleeper in sleepers))
        observer = Observer(place)
        observer.look()
        assert (len(observer.seen), observer.overlaps, observer.escaped) == (2, [], [])
        sleepers.append(bound_to(first, second))
        until(lambda: comm(sleepers[-1].pid) == "sleep")
        observer.look()
        assert len(observer.escaped) == 1
        assert len(observer.overlaps) == 2  # by what it says, and by where it is
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


# What the system refuses


@contextlib.contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """The kernel gives this process so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("more", range(8))
def test_without_descriptors_nothing_of_others_is_lost_and_nothing_stays_locked(place: Path, more: int) -> None:
    book = book_in(place, MACHINE)
    book.acquire(1).release()
    with other(holds(place, 2, 40 * GIB)) as holder:
        theirs = CpuSet.parse(holder.said())
        with few_descriptors(more), contextlib.suppress(LeaseError, OSError):
            book.acquire(PUS - 2, GIB, wait=False).release()
        assert set(holders_of_locks(place / "locks").values()) == {holder.pid}
        with pytest.raises(LeaseError, match="24 GiB are free"):
            book.acquire(1, 25 * GIB, wait=False)
        with book.acquire(PUS - 2, 24 * GIB, wait=False) as ours:
            assert ours.cpus == book.usable - theirs
    assert everything_is_free(place, book)


@pytest.fixture
def small(place: Path) -> Iterator[Path]:
    """``place`` on a file system of two pages and 20 files."""
    if os.geteuid() != 0:
        pytest.skip("mounts a file system, which takes root")
    place.mkdir()
    options = f"mode=700,size={2 * resource.getpagesize()},nr_inodes=20"
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.decode()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill_with_bytes(folder: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (folder / "full").write_bytes(bytes(1 << 20))


def fill_with_files(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(20):
            (folder / f"full {number}").touch()
    with pytest.raises(OSError, match="No space left"):
        (folder / "one more").touch()


@pytest.mark.parametrize("fill", [fill_with_bytes, fill_with_files])
def test_where_no_record_can_be_written_pus_are_held_all_the_same(small: Path, fill: Callable[[Path], None]) -> None:
    book = book_in(small, MACHINE)
    book.acquire(PUS).release()
    fill(small)
    held = book.acquire(PUS - 2, wait=False)
    assert not list((small / "records").glob("l*")) or not (small / "records" / held.name).read_bytes()
    with other(holds(small, 1)) as holder:
        assert CpuSet.parse(holder.said()).isdisjoint(held.cpus)
        with pytest.raises(LeaseError, match=r"within 0\.1 s: . of 8 CPUs"):
            book.acquire(2, timeout=0.1)
    for file in small.glob("full*"):
        file.unlink()
    held.release()
    assert everything_is_free(small, book)


@pytest.mark.parametrize("fill", [fill_with_bytes, fill_with_files])
def test_memory_that_nobody_could_be_told_of_is_not_given(small: Path, fill: Callable[[Path], None]) -> None:
    book = book_in(small, MACHINE)
    book.acquire(PUS).release()
    fill(small)
    with pytest.raises(LeaseError, match=r"takes no record of a lease of 1 GiB: No space left on device; .*make room"):
        book.acquire(2, 1024**3)
    assert book.held() == ()
    assert holders_of_locks(small / "locks") == {}
    for file in small.glob("full*"):
        file.unlink()
    assert everything_is_free(small, book)


def test_where_no_lock_can_be_made_nothing_stays_locked(small: Path) -> None:
    book = book_in(small, MACHINE)
    book.acquire(2).release()
    fill_with_files(small)
    with pytest.raises(LeaseError, match="cpu2 cannot be locked: No space left on device"):
        book.acquire(PUS)
    assert holders_of_locks(small / "locks") == {}
    for file in small.glob("full*"):
        file.unlink()
    assert everything_is_free(small, book)


def test_an_interrupt_together_with_the_lock_of_the_door_leaves_it_open(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, lock = book_in(place, MACHINE), shared.FileLocks.lock_all

    def interrupted(locks: shared.FileLocks, names: Sequence[str]) -> str:
        lock(locks, names)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shared.FileLocks, "lock_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            book.acquire(1)
    assert holders_of_locks(place / "locks") == {}
    with other(holds(place, PUS)) as holder:
        assert holder.said() == str(book.usable)


def test_the_directory_may_be_removed_while_leases_are_held(place: Path) -> None:
    import shutil

    book = book_in(place, MACHINE)
    held = book.acquire(3, GIB)
    shutil.rmtree(place)
    with pytest.raises(LeaseError, match="5 of 8 CPUs"):  # and tells of it again
        book.acquire(PUS, wait=False)
    with other(holds(place, PUS - 3, TOTAL_BYTES - GIB)) as holder:
        assert held.cpus.isdisjoint(CpuSet.parse(holder.said()))
    held.release()
    assert everything_is_free(place, book)


def test_what_is_held_is_locked_again_after_somebody_stood_in_the_new_door(place: Path) -> None:
    import shutil

    book = book_in(place, MACHINE)
    held = book.acquire(3)
    shutil.rmtree(place)

    def stands_in_the_door(say: Say) -> None:
        book_in(place, MACHINE).ledger.in_turn(lambda: (say("in"), signal.pause()))

    with other(stands_in_the_door) as first:
        assert first.said() == "in"
        with pytest.raises(BookShutError):
            book.ledger.in_turn(lambda: None, 0.0)
    book.ledger.in_turn(lambda: None)
    locked = holders_of_locks(place / "locks")
    assert {f"cpu{cpu}" for cpu in held.cpus} == locked.keys()
    held.release()
    assert everything_is_free(place, book)


# Forks, and processes that are stopped


def test_a_fork_has_nothing_of_its_parent_s_and_gives_nothing_of_it_back(place: Path) -> None:
    book = book_in(place, MACHINE)
    held = book.acquire(3)

    def release_and_lease(say: Say) -> None:
        held.release()
        with book.acquire(PUS - 3, wait=False) as lease:
            say(lease.cpus)
            signal.pause()

    with other(release_and_lease) as child:
        theirs = CpuSet.parse(child.said())
        assert theirs == book.usable - held.cpus
        held.release()
        with book.acquire(3, wait=False) as again:
            assert again.cpus == held.cpus
    assert everything_is_free(place, book)


def test_a_fork_does_not_keep_what_its_parent_held(place: Path) -> None:
    def forks(say: Say) -> Lease:
        lease = book_in(place, MACHINE).acquire(PUS)
        pid = os.fork()
        if pid == 0:
            signal.pause()
        say(pid)
        say(lease.cpus)
        return lease

    book = book_in(place, MACHINE)
    with other(forks) as parent:
        child = int(parent.said())
        parent.said()
        parent.kill()
        try:
            assert everything_is_free(place, book)
        finally:
            os.kill(child, signal.SIGKILL)


def test_who_holds_the_door_and_is_stopped_is_named(place: Path) -> None:
    def stops_in_its_turn(say: Say) -> None:
        book = book_in(place, MACHINE)
        book.ledger.in_turn(lambda: (say("in"), os.kill(os.getpid(), signal.SIGSTOP)))
        say("out")

    book = book_in(place, MACHINE)
    with other(stops_in_its_turn) as holder:
        holder.said()
        until(lambda: state_of(holder.pid) == "T")
        shut = rf"could not be opened for \d+\.\d+ s: process {holder.pid} holds it.*-CONT"
        with pytest.raises(LeaseError, match=rf"1 CPU cannot be given within 0\.2 s: .*{shut}"):
            book.acquire(1, timeout=0.2)
        holder.signal(signal.SIGCONT)
        assert holder.said() == "out"
        assert everything_is_free(place, book)


def stop_outside_the_door(place: Path, process: Other) -> None:
    """SIGSTOP, and again where it came while the process had the door."""
    holder = process.pid
    while holder == process.pid:
        process.signal(signal.SIGCONT)
        time.sleep(0.01)
        process.signal(signal.SIGSTOP)
        until(lambda: state_of(process.pid) == "T")
        holder = holders_of_locks(place / "locks").get("door", 0)


def test_nobody_waits_behind_one_who_is_stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-Z: what comes free is his turn to take, and he does not."""
    book = book_in(place, MACHINE)
    held = book.acquire(1)
    with other(waits(place, PUS)) as stopped:
        in_line(place, 1)
        stop_outside_the_door(place, stopped)
        with pytest.raises(LeaseError, match="1 ahead of it in the queue"):
            book.acquire(1, wait=False)
        monkeypatch.setattr(shared, "_SILENT_S", 0.5)
        with book.acquire(1, timeout=30):
            stopped.signal(signal.SIGCONT)
        assert stopped.said() == "asks"
        held.release()
        assert stopped.said() == str(book.usable)


# Waiting


def waits(place: Path, width: int, **options: Any) -> Callable[[Say], object]:
    """Another process that says that it asks, then what it got, and keeps it."""

    def act(say: Say) -> Lease:
        book = book_in(place, MACHINE)
        say("asks")
        lease = book.acquire(width, **options)
        say(lease.cpus)
        say(lease.waited_for)
        return lease

    return act


def in_line(place: Path, count: int) -> None:
    until(lambda: len(list((place / "records").glob("w*"))) == count)


def test_whether_anybody_waits_is_told_without_the_stopped_and_the_dead(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = book_in(place, MACHINE)
    assert not book.anybody_waits()
    with book.acquire(PUS), other(waits(place, PUS)) as waiter:
        in_line(place, 1)
        assert book.anybody_waits()
        stop_outside_the_door(place, waiter)
        monkeypatch.setattr(shared, "_SILENT_S", 0.5)
        until(lambda: not book.anybody_waits())
        waiter.signal(signal.SIGCONT)
        until(book.anybody_waits)
        waiter.kill()
        assert not book.anybody_waits()


def test_where_it_cannot_be_told_whether_anybody_waits_somebody_may(place: Path) -> None:
    book = book_in(place, MACHINE)
    with book.acquire(PUS), other(waits(place, PUS)):
        in_line(place, 1)
        until(lambda: "door" not in holders_of_locks(place / "locks"))
        with few_descriptors(0):
            assert book.anybody_waits()


def test_a_release_and_a_kill_let_another_process_begin_and_it_knows_whom_it_waited_for(place: Path) -> None:
    book = book_in(place, MACHINE)
    held = book.acquire(PUS)
    with other(waits(place, PUS)) as first:
        in_line(place, 1)
        with other(waits(place, 1)) as second:
            in_line(place, 2)
            assert (first.said(), second.said()) == ("asks", "asks")
            held.release()
            assert first.said() == str(book.usable)
            assert first.said().startswith(f"process {os.getpid()} (")
            assert not second.says_something(0.3)
            first.kill()
            assert len(CpuSet.parse(second.said())) == 1
    assert everything_is_free(place, book)


def test_a_timeout_and_a_cancel_leave_nothing(place: Path) -> None:
    with other(holds(place, PUS)) as holder:
        holder.said()
        book, cancel = book_in(place, MACHINE), threading.Event()
        with pytest.raises(LeaseError, match=rf"within 0\.05 s: 0 of 8 CPUs .*held by process {holder.pid} "):
            book.acquire(1, timeout=0.05)
        stop = threading.Timer(0.1, lambda: (cancel.set(), book.wake()))
        stop.start()
        with pytest.raises(StopRequestedError):
            book.acquire(1, cancel=cancel)
        stop.join()
        in_line(place, 0)
    assert everything_is_free(place, book)


def test_a_wide_one_is_not_starved_by_narrow_ones_of_other_processes(place: Path) -> None:
    """Four that would always have something between them to go on with."""

    def narrow(_: Say) -> None:
        book = book_in(place, MACHINE)
        while True:
            with book.acquire(3):
                time.sleep(0.02)

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(other(narrow))
        until(lambda: len(holders_of_locks(place / "locks")) >= 6)
        book = book_in(place, MACHINE)
        for _ in range(5):
            book.acquire(PUS, timeout=30).release()


def test_what_a_wide_one_cannot_use_yet_goes_to_others_and_delays_it_by_nothing(place: Path) -> None:
    book = book_in(place, MACHINE)
    held, also = book.acquire(5, 60 * GIB), book.acquire(1)
    with other(waits(place, 1, memory_bytes=20 * GIB)) as hungry:  # it lacks memory; one PU is kept for it
        in_line(place, 1)
        with other(waits(place, 2)) as wide:
            in_line(place, 2)
            assert hungry.said() == wide.said() == "asks"
            also.release()
            assert len(CpuSet.parse(wide.said())) == 2
            assert not hungry.says_something(0.2)
            held.release()
            assert len(CpuSet.parse(hungry.said())) == 1
    assert everything_is_free(place, book)


def test_nobody_who_waits_again_and_again_sleeps_through_a_release(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the look that everybody takes once a second: the one thread that listens ends when nobody waits."""
    monkeypatch.setattr(shared.SharedLedger, "longest_sleep_s", None)

    def alternates(say: Say) -> None:
        book = book_in(place, MACHINE)
        for _ in range(100):
            book.acquire(PUS).release()
        say("done")

    with contextlib.ExitStack() as stack:
        for process in [stack.enter_context(other(alternates)) for _ in range(4)]:
            assert process.said() == "done"


def test_64_processes_are_all_served(place: Path) -> None:
    def leases_thrice(say: Say) -> None:
        book, worst_s = book_in(place, MACHINE), 0.0
        for _ in range(3):
            with book.acquire(1 + os.getpid() % 3) as lease:
                worst_s = max(worst_s, lease.waited_s)
                time.sleep(0.001)
        say(worst_s)

    with contextlib.ExitStack() as stack:
        contenders = [stack.enter_context(other(leases_thrice)) for _ in range(64)]
        print(f"64 processes, worst wait {max(float(process.said()) for process in contenders):.2f} s")
    assert everything_is_free(place, book_in(place, MACHINE))


def test_in_asyncio_waiting_blocks_nobody_and_cancelling_leaves_nothing(place: Path) -> None:
    book = book_in(place, MACHINE)

    async def gather() -> list[CpuSet]:
        async def one(width: int) -> CpuSet:
            async with book.acquire_async(width, timeout=60) as lease:
                await asyncio.sleep(0.01)
                return lease.cpus

        with other(holds(place, PUS)) as holder:
            await asyncio.to_thread(holder.said)
            given_up = asyncio.create_task(one(PUS))
            while not list((place / "records").glob("w*")):
                await asyncio.sleep(0.01)
            given_up.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await given_up
            while list((place / "records").glob("w*")):
                await asyncio.sleep(0.01)
            waiting = [asyncio.create_task(one(3)) for _ in range(4)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in waiting)
        return await asyncio.gather(*waiting)

    assert [len(cpus) for cpus in asyncio.run(gather())] == [3] * 4
    assert everything_is_free(place, book)
