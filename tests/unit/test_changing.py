"""Limits that change while a run goes on: within the lease that the run itself has, and for the whole process."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError
from qcthreads.execution.changing import ChangingLimits
from qcthreads.host import get_host, read_machine
from qcthreads.host.limits import Limits, Rule, read_limits
from qcthreads.leases import LeaseBook, node_book, outer
from qcthreads.leases.ledger import Ledger
from qcthreads.leases.place import LEASE_VARIABLE
from qcthreads.machine import Machine

GIB = 1024**3
pytestmark = pytest.mark.skipif(len(read_limits().cpus) < 2, reason="of one PU there is no part")


def follow(book: LeaseBook) -> None:
    now_s = [0.0]
    changing = ChangingLimits(book, clock=lambda: now_s[0])
    now_s[0] += 2.0
    changing.follow()


def test_a_run_under_a_lease_never_hands_out_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    one = CpuSet(list(read_limits().cpus)[:1])
    held = [Rule("outer lease", "QCTHREADS_LEASE=x.1", cpus=one)]

    def within(holdings: list[Rule], _: Machine, limits: Limits) -> Limits:
        return limits.within(holdings)

    monkeypatch.setenv(LEASE_VARIABLE, "x.1")
    monkeypatch.setattr(outer, "outer_leases", lambda: held[:])
    monkeypatch.setattr(outer, "within", within)
    monkeypatch.setattr(outer, "gpus_within", lambda _, gpus: gpus)
    book = node_book(ledger=Ledger())
    assert book.usable == one
    follow(book)
    assert book.usable == one
    held.clear()  # as between two leases of a worker
    follow(book)
    assert book.usable == one


@pytest.mark.skipif(sys.platform == "darwin", reason="it has no masks")
def test_the_mask_of_a_thread_under_a_lease_is_no_limit_of_the_run() -> None:
    ledger = Ledger()
    run, other = (LeaseBook(read_machine(), read_limits(), ledger=ledger) for _ in range(2))
    usable = run.usable
    with other.acquire(1, exclusive_cores=False) as lease, lease.bound():
        follow(run)
    assert run.usable == usable


@pytest.mark.skipif(sys.platform == "darwin", reason="it has no masks")
def test_each_who_follows_a_book_learns_that_cpus_have_changed() -> None:
    book = LeaseBook(read_machine(), read_limits())
    now_s = [0.0]
    both = [ChangingLimits(book, clock=lambda: now_s[0]) for _ in range(2)]

    def learn() -> list[bool]:
        now_s[0] += 2.0
        return [one.follow() for one in both]

    host = get_host()
    before = host.get_affinity()
    try:
        assert learn() == [False, False]
        host.set_affinity(CpuSet([min(book.usable)]))
        assert learn() == [True, True]
        assert learn() == [False, False]
    finally:
        host.set_affinity(before)
    assert learn() == [True, True]
    assert all(one.cpus_changed for one in both)


def test_a_groups_limit_counts_as_far_as_it_binds(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(str(64 * GIB))
    limits = read_limits()
    group = Rule("cgroup memory", str(limit), memory_bytes=60 * GIB)  # 4 GiB are others'
    book = LeaseBook(read_machine(), replace(limits, memory_bytes=2 * GIB, rules=(*limits.rules, group)))
    now_s = [0.0]
    changing = ChangingLimits(book, clock=lambda: now_s[0])
    for size, memory_bytes in ((32 * GIB, 2 * GIB), (5 * GIB, GIB), (4 * GIB, 0), (64 * GIB, 2 * GIB)):
        limit.write_text(str(size))
        now_s[0] += 2.0
        changing.follow()
        assert book.memory_bytes == memory_bytes
        assert book.free()[1] <= memory_bytes


def test_a_limit_is_named_only_where_it_decides(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(str(16 * GIB))
    limits, group = read_limits(), Rule("cgroup memory", str(limit), memory_bytes=16 * GIB)
    cpus = tuple(rule for rule in limits.rules if rule.memory_bytes is None)
    limits = replace(limits, memory_bytes=16 * GIB, rules=(*cpus, group))
    now_s = [0.0]
    changing = ChangingLimits(LeaseBook(read_machine(), limits, memory_bytes=2 * GIB), clock=lambda: now_s[0])
    for size in (GIB, 16 * GIB):
        limit.write_text(str(size))
        now_s[0] += 2.0
        changing.follow()
    told = [change.why for change in changing.changes]
    assert told == [f"1 GiB of memory: cgroup memory ({limit})", "2 GiB of memory: as at first"]


def test_what_others_use_at_first_may_be_waited_for_also_when_limits_have_changed(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(str(64 * GIB))
    group = Rule("cgroup memory", str(limit), memory_bytes=2 * GIB, total_bytes=64 * GIB)  # the rest is others'
    limits = read_limits()
    cpus = tuple(rule for rule in limits.rules if rule.memory_bytes is None)
    book = LeaseBook(read_machine(), replace(limits, memory_bytes=2 * GIB, rules=(*cpus, group)))
    now_s = [0.0]
    changing = ChangingLimits(book, clock=lambda: now_s[0])
    for size in (63 * GIB, 64 * GIB, 80 * GIB):
        limit.write_text(str(size))
        now_s[0] += 2.0
        changing.follow()
        book.check(1, size)
        with pytest.raises(LeaseError, match="are to be given out in all"):
            book.check(1, size + 1)


def test_what_is_free_can_be_asked_of_a_book_without_memory() -> None:
    book = LeaseBook(read_machine(), read_limits(), memory_bytes=0)
    assert book.free() == (book.usable, 0)
    with pytest.raises(LeaseError, match="1 B of memory"):
        book.acquire(1, 1)
