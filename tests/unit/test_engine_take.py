"""What a driver takes from a source, without workers: what waits in line, what can no longer run, and narrowed ones."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError
from qcthreads.execution.calculation import Calculation, Outcome
from qcthreads.execution.engine import LocalEngine
from qcthreads.execution.job import Job, prepare
from qcthreads.execution.observing import Observer
from qcthreads.execution.running import Place, Run, Seat
from qcthreads.execution.source import Dispatched, InOrder, Source, Starts
from qcthreads.execution.supervisor import Worker
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import Lease, LeaseBook
from qcthreads.leases.ledger import Ledger
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning import Task
from qcthreads.planning.dispatch import Dispatcher
from qcthreads.programs import registry
from qcthreads.programs.settings import settings_for

GIB = 1024**3
MACHINE = synthetic_machine(cores=4)
MEMORY = Rule("available memory", "/proc/meminfo", memory_bytes=8 * GIB, tightest=True)
LIMITS = Limits(
    MACHINE.cpus_online,
    4,
    None,
    8 * GIB,
    (Rule("mask", "/proc/self/status", cpus=MACHINE.cpus_online, tightest=True), MEMORY),
)


def made(label: str, threads: int, memory_bytes: int) -> Calculation:
    return Calculation(
        label=label, program="none", input={}, threads=threads, memory_bytes=memory_bytes, compute="json:dumps"
    )


def source_of(*tasks: Task, most_threads: int | None = None) -> Dispatched:
    dispatcher = Dispatcher(tasks, MACHINE.cpus_online, known="seconds", memory_bytes=8 * GIB)
    return Dispatched(dispatcher, [], made, most_threads=most_threads)


class _Once(Run):
    def wait_for_turn(self) -> None:
        self.stopped.set()


def take(book: LeaseBook, source: Source, observer: Observer | None = None) -> tuple[Job, Lease | None]:
    with LocalEngine(book, observer=observer) as engine:
        run = _Once(1, source)
        taken = engine._take(run)
    assert taken is not None, "it would wait for ever"
    return taken


def test_where_others_hold_the_memory_it_is_waited_for_in_line() -> None:
    ledger = Ledger()
    ours, others = (LeaseBook(MACHINE, LIMITS, ledger=ledger) for _ in range(2))
    source = source_of(Task("f0", {1: 1.0}, 6 * GIB), Task("f1", {1: 1.0}, 6 * GIB))
    with others.acquire(1, 4 * GIB):
        assert ours.free()[0]
        job, lease = take(ours, source)
    assert (job.calculation.threads, job.calculation.memory_bytes, lease) == (1, 6 * GIB, None)
    assert (source.waiting, source.running) == (1, 1)


@pytest.mark.parametrize("held_by_others", [1, 2])
def test_one_at_a_time_stands_in_line_for_a_licence(held_by_others: int) -> None:
    ledger = Ledger()
    ours, others = (LeaseBook(MACHINE, LIMITS, ledger=ledger) for _ in range(2))
    limited = {"orca": 2}
    source = InOrder([replace(made(str(n), 1, 0), program="orca") for n in range(4)], ours)
    theirs = [others.acquire(1, slots=limited) for _ in range(held_by_others)]
    run = _Once(3, source)
    with LocalEngine(ours, at_most=limited) as engine:
        given = [engine._take(run) for _ in range(3 - held_by_others)]
        assert [one is not None and one[1] is not None for one in given] == [True] * (2 - held_by_others) + [False]
        assert engine._take(run) is None  # it waits for its turn
        assert source.waiting == 4 - len(given)
        for lease in theirs:
            lease.release()
        run.stopped.clear()
        in_line = given[-1]
        assert in_line is not None
        held = engine._lease_in_line(run, in_line[0])
        following = engine._take(run)
        assert following is not None
        assert (held is not None, following[1] is not None) == (True, held_by_others == 2)  # else it stands in line


def test_who_needs_no_licence_goes_on_beside_one_that_waits_for_it() -> None:
    ledger = Ledger()
    ours, others = (LeaseBook(MACHINE, LIMITS, ledger=ledger) for _ in range(2))
    limited = {"orca": 1}
    source = InOrder([replace(made(program, 1, 0), program=program) for program in ("orca", "cfour")], ours)
    with others.acquire(1, slots=limited), LocalEngine(ours, at_most=limited) as engine:
        run = _Once(2, source)
        for calculation in source.calculations():
            engine._prepared(calculation, run.prepared)
        took = [engine._take(run) for _ in range(2)]
    assert [one is not None and one[1] is not None for one in took] == [False, True]
    assert None not in took


def test_what_fits_no_longer_is_said_not_waited_for() -> None:
    book = LeaseBook(MACHINE, LIMITS)
    source = source_of(Task("f0", {1: 1.0}, 6 * GIB))
    book.follow(MACHINE, replace(LIMITS, memory_bytes=4 * GIB), 4 * GIB)
    with pytest.raises(LeaseError, match=r"1 calculation can no longer run here.*and 4 GiB of memory"):
        take(book, source)


@pytest.mark.parametrize("calculation", [made("f0", 4, GIB), made("f0", 1, 6 * GIB)])
def test_what_has_one_width_and_fits_no_longer_is_said_too(calculation: Calculation) -> None:
    book = LeaseBook(MACHINE, LIMITS)
    source = InOrder([calculation], book)
    book.follow(MACHINE, replace(LIMITS, cpus=CpuSet([0, 1]), cpu_count=2, memory_bytes=4 * GIB), 4 * GIB)
    with pytest.raises(LeaseError, match="1 calculation can no longer run here"):
        take(book, source)


def test_what_ran_narrower_says_nothing_of_other_widths_of_its_program() -> None:
    """``--max-total-threads`` holds also where each was given more since."""
    book = LeaseBook(MACHINE, LIMITS)
    wider = {"f2": made("f2", 4, GIB)}
    given = [made("f0", 2, GIB), made("f1", 2, GIB), made("f2", 2, GIB)]
    source = InOrder(given, book, most_threads=4, as_now=lambda one: wider.get(one.label, one))
    assert source.next(book.usable, 8 * GIB) is given[0]
    source.narrowed(made("f0", 1, GIB))
    assert source.next(book.usable, 8 * GIB) is given[1]
    source.narrowed(made("f1", 1, GIB))
    assert source.next(book.usable, 8 * GIB) is None
    wider.clear()
    assert source.next(book.usable, 8 * GIB) is given[2]


def test_what_is_left_waits_for_workers_that_are_starting_where_these_will_do() -> None:
    book = LeaseBook(MACHINE, LIMITS)
    kind, other = ("none", 1), ("psi4", 1)
    source = InOrder([made(f"f{number}", 1, GIB) for number in range(4)], book)

    def given(starting: int, ready: int, of: tuple[str, int] = kind) -> str | None:
        found = source.next(book.usable, 8 * GIB, Starts(kinds={of: starting}, ready={of: ready}))
        return None if found is None else found.label

    assert given(4, 0) is None  # one more would be ready later than each of the four
    assert given(4, 1) == "f0"
    assert given(3, 1) is None  # f0 has that one
    assert given(3, 0, other) == "f1"
    assert given(1, 1) == "f2"  # of two that are left one has no other
    assert given(1, 1) is None
    assert given(0, 1) == "f3"


@pytest.mark.parametrize("ready", [0, 1])
def test_what_is_left_of_a_long_list_is_not_counted_to_the_last(ready: int) -> None:
    book = LeaseBook(MACHINE, LIMITS)
    source = InOrder([made(f"f{number}", 1, GIB) for number in range(1000)], book)
    looked_at: list[str] = []

    class Noting(deque[Calculation]):
        def __iter__(self) -> Iterator[Calculation]:
            for one in super().__iter__():
                looked_at.append(one.label)
                yield one

    source._left = Noting(source._left)
    starts = Starts(kinds={("none", 1): 3}, ready={("none", 1): ready})
    assert source.next(book.usable, 8 * GIB, starts) is not None
    assert len(looked_at) < 10


@pytest.mark.parametrize("program", ["dftd4", "rdkit", "s-dftd3"])
def test_the_last_waits_for_its_worker_also_where_its_program_gets_fewer_threads_than_asked(program: str) -> None:
    book = LeaseBook(MACHINE, LIMITS)
    last = replace(made("f0", 2, GIB), program=program)
    kind = prepare(last, book, wrapped=False).key[0]
    assert kind == (program, 1)
    assert InOrder([last], book).next(book.usable, 8 * GIB, Starts(kinds={kind: 1})) is None


@pytest.mark.parametrize(("cpus", "memory_bytes"), [(1, 8 * GIB), (4, GIB)])
def test_a_list_waits_in_line_for_others_only_where_nothing_of_it_runs(cpus: int, memory_bytes: int) -> None:
    book = LeaseBook(MACHINE, LIMITS)
    given = [made(f"f{number}", 2, 2 * GIB) for number in range(2)]
    source = InOrder(given, book)
    free = CpuSet(list(book.usable)[:cpus])
    assert source.next(free, memory_bytes) is given[0]
    assert source.next(free, memory_bytes) is None
    assert source.next(CpuSet([0, 1]), 2 * GIB) is given[1]


def ended(calculation: Calculation, wall_s: float, status: Literal["finished", "failed"] = "finished") -> Outcome:
    return Outcome(
        label=calculation.label,
        status=status,
        result=None,
        error=None,
        threads=calculation.threads,
        cpus=CpuSet([0]),
        bound=None,
        worker_pid=1,
        started_at=0.0,
        wall_s=wall_s,
        cpu_s=0.0,
        peak_memory_bytes=0,
    )


def test_what_is_as_short_as_the_last_like_it_follows_while_more_are_left_than_run() -> None:
    book = LeaseBook(MACHINE, LIMITS)
    source = InOrder([made(f"f{number}", 1, GIB) for number in range(5)], book, most_threads=1)
    taken = source.next(book.usable, 8 * GIB)
    assert taken is not None
    assert source.following(taken, 60.0) is None  # nothing is known of such ones
    source.ended(ended(taken, 0.2, "failed"))
    taken = source.next(book.usable, 8 * GIB)
    assert taken is not None
    assert source.following(taken, 60.0) is None  # one that failed tells nothing
    source.ended(ended(taken, 0.2))
    first = source.next(book.usable, 8 * GIB)
    assert first is not None
    assert source.following(first, 0.3) is None
    second = source.following(first, 0.5)
    assert second is not None
    assert (second.label, source.waiting, source.running) == ("f3", 1, 1)
    assert source.following(first, 0.5) is None  # one follows each
    source.returned(second)
    assert (source.waiting, source.running) == (2, 1)
    assert source.following(first, 0.5) is second
    source.ended(ended(first, 0.2))
    assert (source.waiting, source.running) == (1, 1)
    assert source.next(book.usable, 8 * GIB) is None  # one thread at a time
    assert source.following(second, 0.5) is None  # the last is for whoever is free first
    source.ended(ended(second, 0.2))
    assert (source.waiting, source.running) == (1, 0)


@pytest.mark.parametrize("other", [made("b", 2, GIB), made("b", 1, 2 * GIB), replace(made("b", 1, GIB), program="xtb")])
def test_nothing_follows_what_has_another_width_or_memory_or_program(other: Calculation) -> None:
    book = LeaseBook(MACHINE, LIMITS)
    source = InOrder([made("a", 1, GIB), made("c", 1, GIB), other, made("d", 1, GIB)], book, most_threads=2)
    for _ in range(2):
        taken = source.next(book.usable, 8 * GIB)
        assert taken is not None
        assert source.following(taken, 60.0) is None
        source.ended(ended(taken, 0.0)) if taken.label == "a" else None


def test_what_is_to_follow_and_fits_no_longer_goes_back_to_the_source() -> None:
    book = LeaseBook(MACHINE, LIMITS)
    source = source_of(*(Task(f"f{number}", {1: 0.01}, GIB) for number in range(9)))
    with LocalEngine(book) as engine:
        run = _Once(1, source)
        taken = engine._take(run)
        assert taken is not None
        job, lease = taken
        assert lease is not None
        book.follow(MACHINE, replace(LIMITS, memory_bytes=GIB, rules=(replace(MEMORY, memory_bytes=GIB),)), GIB)
        run.prepared.clear()  # as where what follows differs in what nobody has asked for before
        with lease:
            worker = cast("Worker", None)  # which is sent nothing
            assert engine._send_following(run, Place(Seat(lease), job, math.inf, changes=()), worker) is None
    assert (source.waiting, source.running) == (8, 1)


@pytest.mark.parametrize("lost", ["cpus", "memory"])
def test_what_fits_no_longer_while_it_waits_in_line_goes_back_to_the_source(lost: str) -> None:
    ledger = Ledger()
    ours, others = (LeaseBook(MACHINE, LIMITS, ledger=ledger) for _ in range(2))
    source = source_of(Task("f0", {1: 40.0, 4: 10.0}))
    less = replace(LIMITS, cpus=CpuSet([0, 1]), cpu_count=2)
    if lost == "memory":
        rules = (LIMITS.rules[0], replace(MEMORY, memory_bytes=4 * GIB))
        less = replace(LIMITS, memory_bytes=4 * GIB, rules=rules)
    memory_bytes = 8 * GIB if lost == "cpus" else 4 * GIB
    with others.acquire(4), LocalEngine(ours) as engine:
        run = _Once(1, source)
        taken = engine._take(run)
        assert taken is not None
        job, lease = taken
        assert (job.calculation.threads, job.calculation.memory_bytes, lease) == (4, 8 * GIB, None)
        ours.follow(MACHINE, less, memory_bytes)
        assert engine._lease_in_line(run, job) is None
        assert (source.waiting, source.running, source.widths, source.planned) == (1, 0, {}, {})
        again = engine._take(run)
    assert again is not None
    calculation = again[0].calculation
    assert calculation.threads == (1 if lost == "cpus" else 4)
    assert calculation.memory_bytes <= memory_bytes
    assert (source.waiting, source.running) == (0, 1)


class OnePuEach(Observer):
    def instead_of(self, calculation: Calculation) -> tuple[Calculation, str]:
        return replace(calculation, threads=1, memory_bytes=GIB), "it ignores its width"


@pytest.mark.parametrize("ready", range(4))
def test_workers_that_get_ready_make_nothing_start_narrow(ready: int) -> None:
    book = LeaseBook(MACHINE, LIMITS)
    tasks = [Task("large", {1: 40.0, 4: 10.0}), Task("small", {1: 1.0})]
    source = source_of(*tasks)
    with LocalEngine(book) as engine:
        engine._pool._warming = {book.acquire(1): (("none", 1),) for _ in range(4 - ready)}
        started = {}
        for _ in tasks:
            taken = engine._take(_Once(1, source))
            if taken is not None:
                started[taken[0].calculation.label] = taken[0].calculation.threads
    assert started.get("large", 4) == 4


def test_a_source_counts_the_width_that_the_observer_gave() -> None:
    book = LeaseBook(MACHINE, LIMITS)
    source = source_of(*(Task(f"f{n}", {1: 40.0, 4: 10.0}, GIB) for n in range(2)), most_threads=4)
    job, lease = take(book, source, OnePuEach())
    assert job.calculation.threads == 1
    assert lease is not None
    assert source.widths == {1: 1}
    planned = source.planned[job.calculation.label]
    assert planned.end_at == pytest.approx(planned.start_at + 40)
    beside = source.next(book.usable - lease.cpus, 7 * GIB)  # three threads are left of four
    assert beside is not None
    assert beside.threads == 1


def test_a_dispatcher_learns_the_time_for_the_width_that_there_was() -> None:
    dispatcher = Dispatcher([Task(f"f{n}", {1: 40.0, 4: 10.0}) for n in range(2)], 4, known="seconds")
    wide = dispatcher.next(0.0, MACHINE.cpus_online)
    assert wide is not None
    assert wide.threads == 4
    assert dispatcher.narrowed(wide.id, 1, 0) == 40.0
    dispatcher.ended(wide.id, 40.0)
    after = dispatcher.next(40.0, MACHINE.cpus_online)
    assert after is not None
    assert after.expected_s == pytest.approx(10.0)


def test_each_is_told_the_memory_that_its_own_files_leave_and_its_workers_directory(tmp_path: Path) -> None:
    without = Calculation(label="a", program="psi4", input={}, threads=2, memory_bytes=4 * GIB, compute="json:dumps")
    both = (without, replace(without, label="b", files_bytes=GIB))
    with LocalEngine(LeaseBook(MACHINE, LIMITS)) as engine:
        prepared: dict[tuple[object, ...], Job] = {}
        told = [engine._prepared(one, prepared).request(tmp_path)["task_config"] for one in both]
    spec = registry.get("psi4")
    assert told == [settings_for(spec, 2, gib * GIB, str(tmp_path)).task_config for gib in (4, 3)]
    assert told[0] != told[1]
