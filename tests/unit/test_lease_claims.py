"""Who gets what of what is free: fair, with backfilling, by memory of nodes and of control groups, by quotas."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet, NodeSet
from qcthreads.errors import LeaseError
from qcthreads.host.gpus import Gpu
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook
from qcthreads.leases.claims import Claim, Room, grant, set_aside
from qcthreads.leases.ledger import Ledger
from qcthreads.leases.place import Place
from qcthreads.leases.pools import cpu_pools, memory_pools, node_pools
from qcthreads.leases.shared import FileLocks, SharedLedger
from qcthreads.machine import Machine
from qcthreads.machine.synthetic import synthetic_machine

GIB = 1024**3
MACHINE = synthetic_machine(packages=2, cores=4, threads=2)  # 16 PUs, two nodes of 16 GiB
ALL = MACHINE.cpus_online.bits


def claim(threads: int, memory_gib: int = 0, *, candidates: int = ALL, siblings: int = 0, gpus: int = 0) -> Claim:
    draws = {"memory": (memory_gib * GIB, 32 * GIB)} if memory_gib else {}
    return Claim(
        threads=threads,
        candidates=candidates,
        siblings=siblings,
        gpus=gpus,
        gpu_candidates=(0, 1),
        memory_bytes=memory_gib * GIB,
        draws=draws,
    )


def room(free: int = ALL, memory_taken_gib: int = 0) -> Room:
    room = Room(free)
    room.take(0, (), {"memory": (memory_taken_gib * GIB, 32 * GIB)})
    return room


def width_left(there: Room) -> int:
    return there.free.bit_count()


def test_what_comes_free_adds_up_for_the_wide_one_that_waits() -> None:
    there = room(free=0b1111)
    set_aside(MACHINE, there, claim(8))
    assert width_left(there) == 0


@pytest.mark.parametrize(
    ("ahead", "left"),
    [
        (claim(4, candidates=0xFF), 12),  # it could start at once: only its own is kept
        (claim(8, 32), 8),  # lacks memory: needs no more than eight PUs
        (claim(2, gpus=2), 14),  # lacks a GPU
        (claim(8, candidates=0xF), 12),  # may use four PUs only, all of which are kept
    ],
    ids=["fits", "memory", "gpus", "elsewhere"],
)
def test_who_comes_later_gets_what_those_ahead_cannot_use(ahead: Claim, left: int) -> None:
    there = room(memory_taken_gib=8)
    there.gpus_taken.add(0)
    set_aside(MACHINE, there, ahead)
    assert width_left(there) == left


def test_one_that_needs_whole_cores_keeps_as_many_halves_as_it_lacks() -> None:
    """Else they would go from one narrow request to the next, and never be free both."""
    halves = [core.cpus.bits & -core.cpus.bits for core in MACHINE.cores[:2]]
    there = room(free=sum(halves) | MACHINE.cores[2].cpus.bits)
    set_aside(MACHINE, there, claim(4, siblings=ALL))  # lacks one core
    assert there.free == halves[1]


def test_memory_is_kept_as_well() -> None:
    there = room(memory_taken_gib=8)
    set_aside(MACHINE, there, claim(1, 32))
    assert grant(MACHINE, there, claim(1, 1)) is None
    assert grant(MACHINE, there, claim(1)) is not None


@given(
    free=st.integers(0, ALL),
    ahead=st.lists(st.tuples(st.integers(1, 16), st.integers(0, 40), st.booleans()), max_size=5),
    mine=st.tuples(st.integers(1, 16), st.integers(0, 40), st.booleans()),
)
def test_nobody_behind_delays_anybody_ahead(
    free: int, ahead: list[tuple[int, int, bool]], mine: tuple[int, int, bool]
) -> None:
    """Whoever is given something takes nothing that one ahead could be given now, or needs of what is free."""
    claims = [claim(width, gib, siblings=ALL if whole else 0) for width, gib, whole in ahead]
    there = room(free)
    for one in claims:
        set_aside(MACHINE, there, one)
    width, gib, whole = mine
    made = grant(MACHINE, there, claim(width, gib, siblings=ALL if whole else 0))
    if made is None:
        return
    assert made.cpus & ~free == 0
    assert made.cpus.bit_count() == width
    after = room(free)
    after.take(made.reserved, made.gpus, made.draws)
    before = room(free)
    for one in claims:
        could, can = grant(MACHINE, before, one), grant(MACHINE, after, one)
        assert (could is None) or (can is not None)
        set_aside(MACHINE, before, one)
        set_aside(MACHINE, after, one)


def limits_of(machine: Machine, *rules: Rule, cpu_count: int | None = None, memory_bytes: int = 32 * GIB) -> Limits:
    cpus = machine.cpus_online
    mask = Rule("mask", "/proc/self/status", cpus=cpus, tightest=cpu_count is None)
    return Limits(cpus, cpu_count or len(cpus), None, memory_bytes, (mask, *rules))


def test_memory_goes_to_the_node_that_has_it() -> None:
    machine = synthetic_machine(packages=2, cores=4)  # 0-3 next to node 0, 4-7 next to node 1
    book = LeaseBook(machine, limits_of(machine))
    first = book.acquire(1, 12 * GIB)
    second = book.acquire(1, 12 * GIB)
    assert first.nodes != second.nodes, "node 0 has 4 GiB left"
    third = book.acquire(1, 8 * GIB)  # no node has that: what one lacks comes from the other
    taken = {pool: amount for pool, (amount, _) in third.hold.draws.items() if pool.startswith("node:")}
    assert sum(taken.values()) == 8 * GIB
    assert len(taken) == 2
    with pytest.raises(LeaseError, match="0 B are free"):
        book.acquire(1, GIB, wait=False)


def test_memory_that_is_bound_comes_from_its_nodes_only() -> None:
    machine = synthetic_machine(packages=2, cores=4)
    bound = Rule("memory policy bind 0", "get_mempolicy", memory_bytes=30 * GIB, nodes=NodeSet([0]), tightest=True)
    ledger = Ledger()
    elsewhere = LeaseBook(machine, limits_of(machine), ledger=ledger)
    book = LeaseBook(machine, limits_of(machine, bound, memory_bytes=30 * GIB), ledger=ledger)
    with elsewhere.acquire(4, 10 * GIB, near=CpuSet([0])) as other:
        assert other.nodes == NodeSet([0])
        with book.acquire(1, 6 * GIB, wait=False), pytest.raises(LeaseError):
            book.acquire(1, GIB, wait=False)


def test_control_groups_are_told_apart_by_their_directories(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    again = tmp_path / "elsewhere"
    again.symlink_to(one)

    def pools(group: Path) -> dict[str, int]:
        rule = Rule("cgroup memory", str(group / "memory.max"), memory_bytes=8 * GIB, tightest=True)
        return memory_pools(limits_of(MACHINE, rule).rules)

    assert pools(one) == pools(again) != pools(two)
    assert list(pools(one).values()) == [8 * GIB]


def test_a_quota_is_shared_by_all_in_the_group_and_names_no_pus(tmp_path: Path) -> None:
    machine = synthetic_machine(cores=8)
    ledger = Ledger()

    def book(group: Path) -> LeaseBook:
        group.mkdir(exist_ok=True)
        rule = Rule("quota", str(group / "cpu.max"), cpu_count=2.5, tightest=True)
        return LeaseBook(machine, limits_of(machine, rule, cpu_count=2), ledger=ledger)

    one, beside, other = book(tmp_path / "one"), book(tmp_path / "one"), book(tmp_path / "two")
    assert cpu_pools(one.limits) == cpu_pools(beside.limits) != cpu_pools(other.limits)
    first = one.acquire(2)
    with pytest.raises(LeaseError):
        beside.acquire(1, wait=False)
    second = other.acquire(2, wait=False)  # PUs that no quota of its own has used up
    assert first.cpus.isdisjoint(second.cpus)
    first.release()
    assert len(beside.acquire(2, wait=False).cpus) == 2


def test_a_machine_whose_nodes_tell_less_than_there_is_gives_out_all_of_it() -> None:
    machine = synthetic_machine(packages=2, cores=4)
    book = LeaseBook(machine, limits_of(machine, memory_bytes=40 * GIB))
    assert node_pools(machine, book.limits) == ({"node:0": 16 * GIB, "node:1": 16 * GIB}, False)
    assert book.acquire(1, 40 * GIB, wait=False).memory_bytes == 40 * GIB


def test_one_behind_is_served_while_the_first_waits_for_memory() -> None:
    machine = synthetic_machine(cores=4)
    book = LeaseBook(machine, limits_of(machine, memory_bytes=8 * GIB))
    holder = book.acquire(1, 8 * GIB)
    order: list[str] = []

    def work(name: str, threads: int, memory_bytes: int) -> None:
        with book.acquire(threads, memory_bytes):
            order.append(name)

    first = threading.Thread(target=work, args=("needs memory", 2, GIB))
    first.start()
    while not book.ledger.queue():
        os.sched_yield()
    second = threading.Thread(target=work, args=("needs none", 1, 0))
    second.start()
    second.join()
    holder.release()
    first.join()
    assert order == ["needs none", "needs memory"]


def test_a_gpu_that_is_locked_without_a_word_costs_no_pus(tmp_path: Path) -> None:
    machine = synthetic_machine(cores=4)
    gpus = [Gpu(index, "nvidia", index, "", None, None, CpuSet()) for index in range(2)]
    book = LeaseBook(machine, limits_of(machine), gpus=gpus, ledger=SharedLedger(Place("user", tmp_path / "book", "")))
    book.acquire(1).release()
    silent = FileLocks(tmp_path / "book" / "locks", create=True)
    assert silent.try_lock("gpu0")
    with book.acquire(1, gpus=1, wait=False) as lease:
        assert lease.gpus == (1,)
        assert lease.environment["CUDA_VISIBLE_DEVICES"] == "1"
    silent.close()


def test_rather_neither_busy_nor_pinned_pus_then_idle_ones_then_any() -> None:
    book = LeaseBook(synthetic_machine(cores=4), limits_of(MACHINE, memory_bytes=8 * GIB), busy="avoid")
    book.ledger._looked_at = math.inf  # no look of its own
    book.ledger.strangers, book.ledger.pinned = 0b0001, 0b0010
    for threads, expected, avoided in ((2, {2, 3}, "CPUs 0-1"), (3, {1, 2, 3}, "CPUs 0 "), (4, {0, 1, 2, 3}, "")):
        with book.acquire(threads) as lease:
            assert set(lease.cpus) == expected
            assert " ".join(lease.notes).startswith(avoided)
            assert bool(lease.notes) == bool(avoided)
