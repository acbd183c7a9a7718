"""The book of leases: nothing overlaps, nothing is lost, refusals carry the numbers, waiting is fair."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, LeaseError, OversubscriptionError, StopRequestedError
from qcthreads.host.gpus import Gpu
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import Lease, LeaseBook, lease, process_book
from qcthreads.machine import Machine
from qcthreads.machine.synthetic import synthetic_machine

GIB = 1024**3
TWO_GPUS = tuple(Gpu(index, "nvidia", index, "", None, None, CpuSet()) for index in range(2))


def limits_of(machine: Machine, cpu_count: int | None = None) -> Limits:
    cpus = machine.cpus_online
    mask = Rule("mask", "/proc/self/status", cpus=cpus, tightest=True)
    return Limits(cpus, cpu_count or len(cpus), None, 8 * GIB, (mask,))


def book_of(machine: Machine, **options: object) -> LeaseBook:
    return LeaseBook(machine, limits_of(machine), **options)  # type: ignore[arg-type]


def test_leases_are_disjoint_and_come_back() -> None:
    book = book_of(synthetic_machine(cores=4))
    one, two = book.acquire(2, GIB), book.acquire(2, GIB)
    assert one.cpus.isdisjoint(two.cpus)
    assert (one.cpus | two.cpus) == book.usable
    assert book.held() == (one.hold, two.hold)
    with pytest.raises(LeaseError, match="0 of 4 CPUs"):
        book.acquire(1, wait=False)
    one.release()
    one.release()
    assert book.held() == (two.hold,)
    assert book.acquire(2, wait=False).cpus == one.cpus


def test_memory_is_counted() -> None:
    book = book_of(synthetic_machine(cores=4), memory_bytes=3 * GIB)
    with book.acquire(1, 2 * GIB):
        with pytest.raises(LeaseError, match="1 GiB are free"):
            book.acquire(1, 2 * GIB, wait=False)
        book.acquire(1, GIB, wait=False)


def test_what_never_fits_is_refused_with_the_numbers() -> None:
    book = book_of(synthetic_machine(cores=2))
    with pytest.raises(LeaseError, match="3 threads were asked for, but 2 CPUs may be used: mask 0-1"):
        book.acquire(3)
    with pytest.raises(LeaseError, match="9 GiB of memory"):
        book.acquire(1, 9 * GIB)
    with pytest.raises(LeaseError, match="1 GPU was asked for"):
        book.acquire(1, gpus=1)
    for nonsense in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="whole number"):
            book.acquire(nonsense)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("places", "width", "advice"),
    [
        (4, 8, "at most 2 workers x 1 thread or 1 worker x 2 threads"),
        (3, 1, "at most 2 workers x 1 thread"),
        (2, 2, "at most 1 worker x 2 threads or 2 workers x 1 thread"),
    ],
)
def test_a_split_that_does_not_fit_says_what_would(places: int, width: int, advice: str) -> None:
    book = book_of(synthetic_machine(cores=2))
    with pytest.raises(OversubscriptionError) as refused:
        book.acquire_split(places, width)
    asked = f"{places} workers x {width} thread{'s' if width > 1 else ''} = {places * width} threads"
    assert str(refused.value) == f"{asked}, but 2 CPUs may be used: mask 0-1; ask for {advice}"


def test_a_split_is_all_or_nothing() -> None:
    book = book_of(synthetic_machine(packages=2, cores=4))
    places = book.acquire_split(3, 2)
    assert len(set().union(*(lease.cpus for lease in places))) == sum(len(lease.cpus) for lease in places) == 6
    with pytest.raises(OversubscriptionError, match="2 of 8 CPUs are free; the others are held by 3 leases"):
        book.acquire_split(2, 2)
    assert len(book.held()) == 3


def test_cpus_leave_and_quota_restrict_the_book() -> None:
    machine = synthetic_machine(cores=8)
    assert book_of(machine, cpus=CpuSet.parse("2-5")).usable == CpuSet.parse("2-5")
    assert len(book_of(machine, leave=3).usable) == 5
    assert len(LeaseBook(machine, limits_of(machine, cpu_count=2)).usable) == 2
    with pytest.raises(OversubscriptionError, match=r"CPUs 7-9 were asked for.*leave out 8-9"):
        book_of(machine, cpus=CpuSet.parse("7-9"))
    with pytest.raises(OversubscriptionError, match="at least one must remain"):
        book_of(machine, leave=8)
    with pytest.raises(OversubscriptionError, match="9 GiB"):
        book_of(machine, memory_bytes=9 * GIB)


def test_leave_with_hyperthreads_keeps_whole_cores_free() -> None:
    machine = synthetic_machine(cores=4, threads=2)
    usable = book_of(machine, leave=1, smt=True).usable
    assert len(usable) == 6
    assert all(core.cpus <= usable or core.cpus.isdisjoint(usable) for core in machine.cores)


def test_exclusive_cores() -> None:
    book = book_of(synthetic_machine(cores=2, threads=2), smt=True)
    assert len(book.usable) == 4
    with book.acquire(1), book.acquire(1), pytest.raises(LeaseError, match="0 of 4 CPUs"):
        book.acquire(1, exclusive_cores=False, wait=False)
    shared = [book.acquire(1, exclusive_cores=False, wait=False) for _ in range(4)]
    assert len(set().union(*(lease.cpus for lease in shared))) == 4


def test_near() -> None:
    book = book_of(synthetic_machine(packages=2, cores=4))
    assert book.acquire(2, near=CpuSet([6])).cpus <= CpuSet.parse("4-7")


def test_gpus_are_counted() -> None:
    book = book_of(synthetic_machine(cores=4), gpus=TWO_GPUS)
    with book.acquire(1, gpus=1) as one, book.acquire(1, gpus=1) as two:
        assert {*one.gpus, *two.gpus} == {0, 1}
        with pytest.raises(LeaseError):
            book.acquire(1, gpus=1, wait=False)


def test_waiting_is_first_come_first_served() -> None:
    book = book_of(synthetic_machine(cores=4))
    first = book.acquire(2)
    order: list[str] = []

    def wait_for(name: str, width: int) -> None:
        with book.acquire(width):
            order.append(name)

    wide = threading.Thread(target=wait_for, args=("wide", 4))
    wide.start()
    _until(lambda: len(book.ledger._waiting) == 1)
    narrow = threading.Thread(target=wait_for, args=("narrow", 1))
    narrow.start()
    _until(lambda: len(book.ledger._waiting) == 2)
    with pytest.raises(LeaseError, match="2 ahead of it in the queue"):
        book.acquire(1, wait=False)
    first.release()
    wide.join()
    narrow.join()
    assert order == ["wide", "narrow"]


def test_what_has_lost_its_cpus_has_others_before_all_who_wait() -> None:
    machine = synthetic_machine(cores=3)
    book = book_of(machine)
    runs, other = book.acquire_cpus(CpuSet([0])), book.acquire_cpus(CpuSet([1]))
    waiter = threading.Thread(target=lambda: book.acquire(2).release())
    waiter.start()
    _until(lambda: len(book.ledger._waiting) == 1)
    left = limits_of(machine)
    book.follow(machine, Limits(CpuSet([1, 2]), 2, None, left.memory_bytes, left.rules), book.memory_bytes)
    with pytest.raises(LeaseError, match="1 ahead of it"):
        book.acquire(1, wait=False)
    instead = book.acquire_instead(runs)
    assert instead is not None
    assert instead.cpus == CpuSet([2])
    assert book.acquire_instead(runs) is None
    for held in (runs, instead, other):
        held.release()
    waiter.join()


def test_who_waits_for_leases_of_this_process_alone_is_told_of_nobody() -> None:
    book = book_of(synthetic_machine(cores=2))
    told: list[str] = []
    held = book.acquire(len(book.usable))
    giving_back = threading.Timer(1.5, held.release)  # he would be told after a second
    giving_back.start()
    with book.acquire(1, on_wait=told.append) as waited:
        assert (told, waited.waited_for) == ([], "")
        assert waited.waited_s > 1.0
    giving_back.join()


def test_timeout_and_cancel_leave_the_queue_right() -> None:
    book = book_of(synthetic_machine(cores=2))
    held = book.acquire(2)
    with pytest.raises(LeaseError, match=r"within 0\.01 s"):
        book.acquire(1, timeout=0.01)
    cancel = threading.Event()
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            book.acquire(1, cancel=cancel)
        except StopRequestedError as error:
            ended.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    _until(lambda: len(book.ledger._waiting) == 1)
    cancel.set()
    book.wake()
    waiter.join()
    assert len(ended) == 1
    held.release()
    assert book.acquire(2, wait=False).cpus == book.usable


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send a signal to one thread")
def test_an_interrupt_while_waiting_leaves_the_book_right() -> None:
    book = book_of(synthetic_machine(cores=2))
    held = book.acquire(2)
    waiting = threading.get_ident()

    def interrupt() -> None:
        _until(lambda: len(book.ledger._waiting) == 1)
        signal.pthread_kill(waiting, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        book.acquire(1, timeout=60)
    interrupting.join()
    held.release()
    assert book.acquire(2, wait=False).cpus == book.usable


def test_32_threads_never_overlap_and_nothing_is_lost() -> None:
    book = book_of(synthetic_machine(packages=2, cores=6, threads=2), smt=True)
    owners: dict[int, Lease] = {}
    guard = threading.Lock()
    wrong: list[str] = []

    def contend(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            with book.acquire(rng.randint(1, 8), rng.randint(0, 2) * GIB, exclusive_cores=rng.random() < 0.5) as lease:
                with guard:
                    wrong.extend(f"CPU {cpu} twice" for cpu in lease.cpus if cpu in owners)
                    owners.update(dict.fromkeys(lease.cpus, lease))
                time.sleep(0)
                with guard:
                    for cpu in lease.cpus:
                        del owners[cpu]

    threads = [threading.Thread(target=contend, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert book.held() == ()
    assert book.acquire(24, 8 * GIB, exclusive_cores=False, wait=False).cpus == book.usable


@pytest.mark.parametrize(
    "call",
    [
        lambda book: [book.acquire(2, GIB, gpus=1, wait=False)],
        lambda book: book.acquire_split(1, 2),
        lambda book: [book.acquire_cpus(CpuSet([3, 7]))],
        lambda book: book.held()[:0],  # read, and nothing made
    ],
    ids=["acquire", "acquire_split", "acquire_cpus", "held"],
)
def test_a_finalizer_may_give_back_between_any_two_instructions(
    call: Callable[[LeaseBook], Sequence[Lease]], before_instruction: Any
) -> None:
    at = 0
    happened = True
    while happened:
        at += 1
        book = book_of(synthetic_machine(cores=4, threads=2), smt=True, gpus=TWO_GPUS)
        collected, kept = book.acquire(1, GIB, gpus=1), book.acquire(1)
        with before_instruction(at, "book.py", collected.release) as reached:
            made = call(book)
        happened = bool(reached)
        for one in (*made, kept, collected):
            one.release()
        assert book.held() == ()
        with book.acquire(8, book.memory_bytes, gpus=2, wait=False) as everything:
            assert everything.cpus == book.usable
    assert at > 20


def test_giving_back_wakes_a_waiter_while_another_thread_is_busy_with_the_book() -> None:
    book = book_of(synthetic_machine(cores=2))
    held = book.acquire(2)
    got = threading.Thread(target=lambda: book.acquire(2).release())
    got.start()
    _until(lambda: len(book.ledger._waiting) == 1)
    with book.ledger._lock:
        held.release()
    got.join()
    assert book.held() == ()


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 4), st.booleans(), st.integers(0, 9)), min_size=1, max_size=30
    ),
    threads=st.sampled_from([1, 2]),
)
def test_any_sequence_keeps_the_sum(steps: list[tuple[int, int, bool, int]], threads: int) -> None:
    machine = synthetic_machine(packages=2, cores=4, threads=threads)
    book = book_of(machine, smt=True)
    core_of = {cpu: index for index, core in enumerate(machine.cores) for cpu in core.cpus}
    held: list[tuple[Lease, bool]] = []
    for width, memory_gib, exclusive, victim in steps:
        try:
            made = book.acquire(width, memory_gib * GIB, exclusive_cores=exclusive, wait=False)
        except LeaseError:
            if held:
                held.pop(victim % len(held))[0].release()
            continue
        assert len(made.cpus) == width
        assert made.cpus <= book.usable
        for other, others_exclusive in held:
            assert made.cpus.isdisjoint(other.cpus)
            if exclusive or others_exclusive:
                assert {core_of[cpu] for cpu in made.cpus}.isdisjoint({core_of[cpu] for cpu in other.cpus})
        held.append((made, exclusive))
        assert sum(entry.memory_bytes for entry, _ in held) <= book.memory_bytes
    for entry, _ in held:
        entry.release()
    assert book.acquire(len(book.usable), book.memory_bytes, wait=False).cpus == book.usable


def test_exact_cpus() -> None:
    book = book_of(synthetic_machine(cores=4))
    with book.acquire_cpus(CpuSet([1, 3])) as held:
        assert held.cpus == CpuSet([1, 3])
        for refused in ([3], [0, 3], [99], []):
            with pytest.raises(LeaseError, match="free are 0,2"):
                book.acquire_cpus(CpuSet(refused))
        assert book.acquire(2, wait=False).cpus == CpuSet([0, 2])


def test_the_process_has_one_book_over_what_it_may_use() -> None:
    books: list[LeaseBook] = []
    threads = [threading.Thread(target=lambda: books.append(process_book())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(books) == 8
    assert len(set(map(id, books))) == 1
    with lease(1) as held:
        assert held.hold in books[0].held()
        if sys.platform != "darwin":  # which has no masks
            assert set(held.cpus) <= set(psutil.Process().cpu_affinity())
        assert held.nodes <= books[0].machine.allowed_mems
        assert repr(held) == f"<Lease {held.lease_id}: CPUs {held.cpus}, 0 B>"
    assert held.hold not in books[0].held()


def _until(true: object) -> None:
    deadline = time.monotonic() + 30
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)
