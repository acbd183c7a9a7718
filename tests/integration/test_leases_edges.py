"""The book of leases at its edges: at the same instant, after a logout, with stale marks and wrong numbers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from contenders import book_in

from qcthreads.errors import InputError, LeaseError
from qcthreads.host import read_machine
from qcthreads.leases.place import LEASE_VARIABLE, find_place
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
    holder.acquire(1)
    with subprocess.Popen(["sleep", "600"], env={**os.environ, LEASE_VARIABLE: holder.ledger.mark}) as worker:
        holder.ledger._locks.close()  # type: ignore[attr-defined]
        for descriptor in holder.ledger._told.values():  # type: ignore[attr-defined]
            os.close(descriptor)
        with pytest.raises(LeaseError, match=f"process {worker.pid} "):
            other.acquire(4, timeout=1.5)
        assert worker.poll() is None
        worker.kill()
    holder.ledger._told.clear()  # type: ignore[attr-defined]


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
    assert inside.path == tmp_path / f"book-in-{lease.mark}"
    lease.release()
    outside = find_place(environ)
    assert outside.path == tmp_path / "book"
    assert f"{LEASE_VARIABLE}={lease.mark} names no lease" in outside.why


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
    holder.acquire(1, holder.memory_bytes)
    with pytest.raises(LeaseError, match=f"held by process {os.getpid()} "):
        other.acquire(1, 1024, wait=False)
