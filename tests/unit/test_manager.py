"""The manager on machines that are not here: what is configured, leased and refused; processes are in integration."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import inspect
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcthreads
from qcthreads.cpuset import CpuSet
from qcthreads.errors import (
    CpusOutsideLimitsError,
    CpusTakenError,
    InputError,
    MachineError,
    OversubscriptionError,
    ProcessGoneError,
    UnknownWorkerError,
)
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.manager import QCThreadConfig, QCThreadManager, ThreadAllocation
from qcthreads.manybody.config import HybridParallelConfig

GIB = 1024**3


def book_of(cores: int, *, packages: int = 1, threads: int = 1, memory_bytes: int = 64 * GIB) -> LeaseBook:
    machine = synthetic_machine(packages=packages, cores=cores // packages, threads=threads)
    cpus = machine.allowed_cpus
    rule = Rule("mask", "sched_getaffinity", cpus=cpus, tightest=True)
    return LeaseBook(machine, Limits(cpus, len(cpus), None, memory_bytes, (rule,)))


def cpus_of(allocation: ThreadAllocation) -> list[CpuSet]:
    return [CpuSet(cpus) for cpus in allocation.cpu_affinity_map.values()]


def assert_disjoint(sets: Sequence[CpuSet]) -> None:
    assert sum(len(cpus) for cpus in sets) == len(CpuSet(cpu for cpus in sets for cpu in cpus))


def test_names_fields_and_parameters_are_the_specified_ones() -> None:
    assert [one.name for one in dataclasses.fields(QCThreadConfig)] == [
        "program_name",
        "threads_per_calculation",
        "environment_variables",
        "qcengine_task_config",
    ]
    assert [one.name for one in dataclasses.fields(ThreadAllocation)] == [
        "fragment_workers",
        "qc_threads_per_worker",
        "total_threads_used",
        "cpu_affinity_map",
    ]
    for method, parameters in {
        "configure_qc_threads": ["qc_program", "threads_per_calc", "total_workers"],
        "allocate_thread_resources": ["fragment_workers", "qc_threads_per_worker"],
        "set_thread_affinity": ["worker_id", "thread_ids"],
        "monitor_thread_usage": [],
    }.items():
        assert list(inspect.signature(getattr(qcthreads.QCThreadManager, method)).parameters) == ["self", *parameters]


def test_an_allocation_has_disjoint_places_next_to_each_other() -> None:
    made = QCThreadManager(book=book_of(16, packages=2)).allocate_thread_resources(4, 4)
    assert (made.fragment_workers, made.qc_threads_per_worker, made.total_threads_used) == (4, 4, 16)
    assert made.cpu_affinity_map == {0: [0, 1, 2, 3], 1: [4, 5, 6, 7], 2: [8, 9, 10, 11], 3: [12, 13, 14, 15]}


def test_physical_cores_come_first() -> None:
    made = QCThreadManager(book=book_of(4, threads=2)).allocate_thread_resources(2, 2)
    assert made.cpu_affinity_map == {0: [0, 1], 1: [2, 3]}


def test_worker_numbers_are_the_lowest_that_no_live_allocation_has() -> None:
    manager = QCThreadManager(book=book_of(8))
    first, second = manager.allocate_thread_resources(2, 1), manager.allocate_thread_resources(2, 1)
    assert (list(first.cpu_affinity_map), list(second.cpu_affinity_map)) == ([0, 1], [2, 3])
    manager.release(first)
    third = manager.allocate_thread_resources(3, 1)
    assert list(third.cpu_affinity_map) == [0, 1, 4]
    assert_disjoint([*cpus_of(second), *cpus_of(third)])


def test_release_gives_back_once() -> None:
    manager = QCThreadManager(book=book_of(2))
    made = manager.allocate_thread_resources(2, 1)
    manager.release(made)
    other = manager.allocate_thread_resources(2, 1)
    manager.release(made)
    assert len(manager.book.held()) == 2
    manager.release(other)
    assert manager.book.held() == ()


def test_an_allocation_that_is_dropped_gives_back() -> None:
    manager = QCThreadManager(book=book_of(2))
    made = manager.allocate_thread_resources(2, 1)
    assert len(manager.book.held()) == 2
    del made
    gc.collect()
    assert manager.book.held() == ()


@pytest.mark.parametrize(
    "call",
    [
        lambda manager: manager.allocate_thread_resources(2, 1),
        lambda manager: manager.set_thread_affinity(1, [2, 3]),
        lambda manager: manager.configure_qc_threads("pyscf", 1, 1),
        lambda manager: manager.monitor_thread_usage(),
        lambda manager: set_affinity_if_there(manager, 9, [0]),
        lambda manager: set_affinity_if_there(manager, 0, [0, 2]),
    ],
    ids=["allocate", "affinity", "configure", "monitor", "unknown", "affinity of the collected"],
)
def test_an_allocation_may_be_collected_between_any_two_instructions(
    call: Callable[[QCThreadManager], object], before_instruction: Any
) -> None:
    at, happened = 0, True
    while happened:
        at += 1
        manager = QCThreadManager(HybridParallelConfig(max_workers=4), book=book_of(4))
        collected = [manager.allocate_thread_resources(1, 1)]
        kept = manager.allocate_thread_resources(1, 1)
        with before_instruction(at, "manager.py", collected.clear) as reached:
            made = call(manager)
        happened = bool(reached)
        collected.clear()
        manager.release(kept)
        del made
        assert manager.book.held() == ()
        assert manager.allocate_thread_resources(4, 1).cpu_affinity_map == {0: [0], 1: [1], 2: [2], 3: [3]}
    assert at > 20


def set_affinity_if_there(manager: QCThreadManager, worker: int, cpus: Sequence[int]) -> None:
    with contextlib.suppress(UnknownWorkerError):
        manager.set_thread_affinity(worker, cpus)


def test_an_allocation_collected_while_another_thread_is_busy_is_given_back_when_that_is_done() -> None:
    manager = QCThreadManager(book=book_of(2))
    made = [manager.allocate_thread_resources(2, 1)]
    busy, collected = threading.Event(), threading.Event()

    def be_busy() -> None:
        with manager._exclusive():
            busy.set()
            collected.wait()

    other = threading.Thread(target=be_busy)
    other.start()
    busy.wait()
    made.clear()
    assert len(manager.book.held()) == 2
    collected.set()
    other.join()
    assert manager.book.held() == ()


def test_an_allocation_outlives_its_manager() -> None:
    book = book_of(2)
    made = QCThreadManager(book=book).allocate_thread_resources(2, 1)
    gc.collect()
    assert len(book.held()) == 2
    assert made.total_threads_used == 2


def test_the_end_of_with_gives_everything_back() -> None:
    with QCThreadManager(book=book_of(4)) as manager:
        made = manager.allocate_thread_resources(2, 1), manager.allocate_thread_resources(1, 2)
        assert len(manager.book.held()) == 3
    assert manager.book.held() == ()
    assert made[0].total_threads_used == 2


@pytest.mark.parametrize(
    ("workers", "threads", "words"),
    [
        (
            4, 8,
            "4 workers x 8 threads = 32 threads, but 2 CPUs may be used: mask 0-1; "
            "ask for at most 2 workers x 1 thread or 1 worker x 2 threads",
        ),
        (
            3, 1,
            "3 workers x 1 thread = 3 threads, but 2 CPUs may be used: mask 0-1; ask for at most 2 workers x 1 thread",
        ),
        (
            1, 3,
            "1 worker x 3 threads = 3 threads, but 2 CPUs may be used: mask 0-1; ask for at most 1 worker x 2 threads",
        ),
    ],
)  # fmt: skip
def test_oversubscription_is_refused_with_the_numbers(workers: int, threads: int, words: str) -> None:
    manager = QCThreadManager(book=book_of(2))
    with pytest.raises(OversubscriptionError) as refused:
        manager.allocate_thread_resources(workers, threads)
    assert str(refused.value) == words
    with pytest.raises(OversubscriptionError) as refused:
        manager.configure_qc_threads("psi4", threads, workers)
    assert str(refused.value) == words
    assert manager.book.held() == ()


def test_all_or_nothing_beside_live_allocations() -> None:
    manager = QCThreadManager(book=book_of(4))
    made = manager.allocate_thread_resources(1, 3)
    with pytest.raises(OversubscriptionError, match="2 workers x 1 thread = 2 threads, but 1 of 4 CPUs are free"):
        manager.allocate_thread_resources(2, 1)
    assert len(manager.book.held()) == 1
    manager.release(made)
    assert manager.allocate_thread_resources(2, 2).total_threads_used == 4


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", None])
def test_counts_are_whole_numbers_of_at_least_one(bad: Any) -> None:
    manager = QCThreadManager(book=book_of(4))
    for call in (
        lambda: manager.allocate_thread_resources(bad, 1),
        lambda: manager.allocate_thread_resources(1, bad),
        lambda: manager.configure_qc_threads("psi4", bad, 1),
        lambda: manager.configure_qc_threads("psi4", 1, bad),
    ):
        with pytest.raises(InputError, match="must be a whole number of at least 1"):
            call()


def test_ceilings_of_the_configuration_above_the_machine_do_no_harm_and_below_it_hold() -> None:
    wide = QCThreadManager(HybridParallelConfig(max_workers=64, max_total_threads=512), book=book_of(4))
    assert wide.allocate_thread_resources(4, 1).total_threads_used == 4
    narrow = QCThreadManager(HybridParallelConfig(max_workers=2, max_total_threads=3), book=book_of(8))
    with pytest.raises(
        OversubscriptionError, match="= 4 threads, but max_total_threads allows 3 of 8 CPUs; ask for at most"
    ):
        narrow.allocate_thread_resources(2, 2)
    with pytest.raises(OversubscriptionError, match="but max_workers=2; ask for fewer"):
        narrow.allocate_thread_resources(3, 1)
    made = narrow.allocate_thread_resources(1, 2)
    with pytest.raises(OversubscriptionError, match="2 of max_total_threads=3 are in use; release some first"):
        narrow.allocate_thread_resources(1, 2)
    narrow.release(made)
    assert narrow.allocate_thread_resources(1, 3).total_threads_used == 3


def test_a_configuration_holds_working_settings_only_and_its_share_of_the_memory() -> None:
    made = QCThreadManager(book=book_of(16, memory_bytes=64 * GIB)).configure_qc_threads("Psi4", 4, 4)
    assert (made.program_name, made.threads_per_calculation) == ("psi4", 4)
    assert made.environment_variables["OMP_NUM_THREADS"] == "4"
    assert "PSI_NTHREAD" not in made.environment_variables
    assert made.qcengine_task_config["ncores"] == 4
    assert 8 < made.qcengine_task_config["memory"] <= 16
    limited = QCThreadManager(HybridParallelConfig(memory_limit_mb=4000), book=book_of(16))
    assert limited.configure_qc_threads("psi4", 4, 4).qcengine_task_config["memory"] < 4000e6 / GIB


def test_a_share_of_the_memory_that_the_program_cannot_work_with_is_refused() -> None:
    with pytest.raises(MachineError, match="of memory"):
        QCThreadManager(book=book_of(4, memory_bytes=64 * 1024**2)).configure_qc_threads("psi4", 1, 4)


def test_a_program_that_does_not_thread_gets_one_thread_whatever_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    manager = QCThreadManager(book=book_of(2))
    for _ in range(2):
        made = manager.configure_qc_threads("mopac", 8, 2)
        assert made.threads_per_calculation == 1
        assert made.environment_variables["OMP_NUM_THREADS"] == "1"
        assert made.qcengine_task_config["ncores"] == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "1 is used instead of 8" in caplog.text


def test_an_unknown_program_gets_the_variables_of_every_runtime_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    made = QCThreadManager(book=book_of(4)).configure_qc_threads("my_own_code", 2, 2)
    assert made.program_name == "my_own_code"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ):
        assert made.environment_variables[name] == "2"
    assert "nothing is known about the program 'my_own_code'" in caplog.text


def test_affinity_of_a_worker_without_a_process_is_kept_and_leases_what_is_free() -> None:
    manager = QCThreadManager(book=book_of(4))
    made = manager.allocate_thread_resources(1, 1)
    assert manager.set_thread_affinity(0, [0]) is None
    assert manager.set_thread_affinity(0, [1, 2]) is None
    assert_disjoint([lease.cpus for lease in manager.book.held()])
    other = manager.allocate_thread_resources(1, 1)
    assert cpus_of(other) == [CpuSet([3])]
    manager.release(made)
    assert sum(len(lease.cpus) for lease in manager.book.held()) == 1


def test_affinity_may_name_the_other_threads_of_own_cores_only() -> None:
    manager = QCThreadManager(book=book_of(2, threads=2))
    made = manager.allocate_thread_resources(2, 1)
    assert made.cpu_affinity_map == {0: [0], 1: [1]}
    assert manager.set_thread_affinity(0, [0, 2]) is None
    with pytest.raises(CpusOutsideLimitsError, match="leave out 3"):
        manager.set_thread_affinity(0, [0, 3])


def test_every_mistake_in_an_affinity_has_its_own_error() -> None:
    book = book_of(4)
    manager = QCThreadManager(book=book)
    with pytest.raises(UnknownWorkerError, match="there is no worker 0: there is no live allocation; allocate first"):
        manager.set_thread_affinity(0, [0])
    made = manager.allocate_thread_resources(2, 1)
    with pytest.raises(UnknownWorkerError, match="there is no worker 5: the live allocations have 0-1"):
        manager.set_thread_affinity(5, [0])
    with pytest.raises(InputError, match="no CPU was given for worker 0; give some, for example its own: 0"):
        manager.set_thread_affinity(0, [])
    with pytest.raises(CpusOutsideLimitsError, match=r"CPUs 0,64 were asked for worker 0, but 4 CPUs .*; leave out 64"):
        manager.set_thread_affinity(0, [0, 64])
    with pytest.raises(CpusTakenError, match="1 are leased to worker 1; leave them out"):
        manager.set_thread_affinity(0, [0, 1])
    elsewhere = book.acquire(1)
    with pytest.raises(CpusTakenError, match=f"{elsewhere.cpus} are leased to somebody else"):
        manager.set_thread_affinity(0, elsewhere.cpus)
    with pytest.raises(InputError, match="not a valid number"):
        manager.set_thread_affinity(0, [-1])
    with pytest.raises(ProcessGoneError, match="process 4194304 was to be worker 0, but there is no such process"):
        manager.attach_worker(0, 4194304)  # the highest pid of Linux is one less
    with pytest.raises(UnknownWorkerError):
        manager.attach_worker(9, 1)
    manager.release(made)
    with pytest.raises(UnknownWorkerError):
        manager.set_thread_affinity(0, [0])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), cores=st.integers(1, 12))
def test_live_allocations_never_overlap(data: st.DataObject, cores: int) -> None:
    manager = QCThreadManager(book=book_of(cores))
    live: list[ThreadAllocation] = []
    for _ in range(data.draw(st.integers(1, 12))):
        if live and data.draw(st.booleans()):
            manager.release(live.pop(data.draw(st.integers(0, len(live) - 1))))
        else:
            free = cores - sum(one.total_threads_used for one in live)
            workers, threads = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
            try:
                live.append(manager.allocate_thread_resources(workers, threads))
            except OversubscriptionError:
                assert workers * threads > free
        assert_disjoint([cpus for one in live for cpus in cpus_of(one)])
        ids = [worker for one in live for worker in one.cpu_affinity_map]
        assert len(ids) == len(set(ids))


def test_32_threads_calling_every_method_at_once_never_get_overlapping_allocations() -> None:
    manager = QCThreadManager(book=book_of(24))
    owner: list[int | None] = [None] * 24
    wrong: list[str] = []
    done = [0] * 32
    begin = threading.Barrier(32)

    def hammer(number: int) -> None:
        chance = random.Random(number)
        begin.wait()
        for _ in range(20):
            try:
                made = manager.allocate_thread_resources(chance.randint(1, 3), chance.randint(1, 3))
            except OversubscriptionError:
                continue
            mine = [cpu for cpus in made.cpu_affinity_map.values() for cpu in cpus]
            for cpu in mine:
                if owner[cpu] is not None:
                    wrong.append(f"CPU {cpu} is {owner[cpu]}'s and {number}'s")
                owner[cpu] = number
            for worker, cpus in made.cpu_affinity_map.items():
                manager.set_thread_affinity(worker, cpus)
            manager.configure_qc_threads("pyscf", 2, 2)
            manager.monitor_thread_usage()
            for cpu in mine:
                if owner[cpu] != number:
                    wrong.append(f"CPU {cpu} was {number}'s and became {owner[cpu]}'s")
                owner[cpu] = None
            done[number] += 1
            if chance.random() < 0.5:
                manager.release(made)
            del made

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(done) > 16
    assert manager.book.held() == ()
