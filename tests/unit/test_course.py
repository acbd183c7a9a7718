"""How the rest of a batch is laid out beside what runs, how a plan is followed, and when it is made anew."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from bench_dynamic import simulated_s
from families import FAMILIES, Problem, memory_tight
from hypothesis import given, settings
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet
from qcthreads.planning import Task, plan
from qcthreads.planning.batch import Batch
from qcthreads.planning.correction import Correction
from qcthreads.planning.course import Kept, course_of
from qcthreads.planning.dispatch import Dispatcher
from qcthreads.planning.model import Capacity, Running
from qcthreads.planning.search import shortest
from qcthreads.planning.simulate import Change, simulate
from qcthreads.planning.timetable import Layout, Timetable, in_sequence

CPUS, MEMORY = 8, 20
TIMES = st.dictionaries(st.integers(1, CPUS), st.floats(0.01, 100.0), min_size=1, max_size=4)
BATCH = st.lists(st.tuples(TIMES, st.integers(0, MEMORY)), min_size=1, max_size=12)
BESIDE = st.lists(st.tuples(st.floats(0.0, 50.0), st.integers(1, 4), st.integers(0, 8)), max_size=4)


def batch_of(made: Sequence[tuple[dict[int, float], int]], memory_bytes: float) -> Batch:
    tasks = [Task(f"f{number}", times_s, need) for number, (times_s, need) in enumerate(made)]
    return Batch.of(tasks, Capacity(CPUS, memory_bytes))


def check(found: Timetable, batch: Batch, beside: Sequence[Running]) -> None:
    """At each start there is room for all that has not ended."""
    ends = [one.left_s for one in beside] + list(found.ends_s)
    widths = [one.width for one in beside] + list(found.widths)
    needs = [one.memory_bytes for one in beside] + batch.memory_bytes.tolist()
    starts = [-math.inf] * len(beside) + list(found.starts_s)
    for task, width, start_s, end_s in zip(batch, found.widths, found.starts_s, found.ends_s, strict=True):
        assert end_s - start_s == pytest.approx(task.times_s[width])
    for now_s in found.starts_s:
        running = [at for at, (begun_s, end_s) in enumerate(zip(starts, ends, strict=True)) if begun_s <= now_s < end_s]
        assert sum(widths[at] for at in running) <= CPUS
        assert sum(needs[at] for at in running) <= batch.capacity.memory_bytes
    assert found.makespan_s == pytest.approx(max(ends))


@settings(max_examples=150, deadline=None)
@given(made=BATCH, running=BESIDE, tight=st.booleans(), layouts=st.sampled_from([1, 20, 200]))
def test_the_search_lays_out_beside_what_runs(
    made: list[tuple[dict[int, float], int]], running: list[tuple[float, int, int]], tight: bool, layouts: int
) -> None:
    beside: list[Running] = []
    for left_s, width, need in running:  # as many as there is room for
        if (
            sum(one.width for one in beside) + width <= CPUS
            and sum(one.memory_bytes for one in beside) + need <= MEMORY
        ):
            beside.append(Running(left_s, width, need))
    batch = batch_of(made, MEMORY if tight else math.inf)
    found = shortest(batch, beside=beside, most_layouts=layouts)
    check(found, batch, beside)
    order = np.argsort(found.starts_s, kind="stable").tolist()
    times_s = [task.times_s[width] for task, width in zip(batch, found.widths, strict=True)]
    followed = in_sequence(Layout(batch, batch.choices(), beside), order, list(found.widths), times_s)
    check(followed, batch, beside)
    rounding_s = 1e-9 * found.makespan_s
    assert all(own <= planned + rounding_s for own, planned in zip(followed.starts_s, found.starts_s, strict=True))


@settings(max_examples=100, deadline=None)
@given(made=BATCH, further=st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_the_search_keeps_to_needs_that_a_run_has_raised(
    made: list[tuple[dict[int, float], int]], further: list[int]
) -> None:
    """More than their tasks tell, with what each thread but the first adds beside."""
    tasks = [
        Task(f"f{number}", times_s, need // 2, memory_more_bytes={width: (width - 1) * more for width in times_s})
        for number, ((times_s, need), more) in enumerate(zip(made, further, strict=False))
    ]
    told = Batch.of(tasks, Capacity(CPUS, 2 * MEMORY))
    batch = told.retimed(np.arange(len(told)), told.times_s, told.capacity)
    batch.memory_bytes[:] = [need for _, need in made]
    found = shortest(batch)
    more = [(task.memory_more_bytes or {})[width] for task, width in zip(tasks, found.widths, strict=True)]
    needs = [need + beyond for (_, need), beyond in zip(made, more, strict=True)]
    runs = list(zip(found.starts_s, found.ends_s, needs, strict=True))
    for now_s in found.starts_s:
        assert sum(need for start_s, end_s, need in runs if start_s <= now_s < end_s) <= 2 * MEMORY


def test_more_that_runs_than_there_are_cpus_is_waited_for() -> None:
    """Three tasks of four threads share eight CPUs: one is free when two have ended."""
    batch = batch_of([({1: 1.0}, 0)], math.inf)
    beside = [Running(left_s, 4) for left_s in (5.0, 3.0, 9.0)]
    assert shortest(batch, beside=beside).starts_s[0] == 5.0
    assert shortest(batch_of([({8: 1.0}, 0)], math.inf), beside=beside).starts_s[0] == 9.0


def nearly_equal(cpus: int, large: int, small: int) -> Problem:
    """Few tasks that have all the work, and scale well; the others are next to nothing."""
    rng = random.Random(large)
    widths = [1 << power for power in range(cpus.bit_length())]
    costs = [(100 * rng.uniform(0.9, 1.1), 0.97) for _ in range(large)]
    costs += [(rng.uniform(0.5, 1.0), 0.5) for _ in range(small)]
    tasks = [
        Task(f"f{number}", {width: cost_s * (1 - share + share / width) for width in widths})
        for number, (cost_s, share) in enumerate(costs)
    ]
    return Problem("nearly equal", cpus, tuple(tasks))


KNOWN = [family(16, count, 0) for family in FAMILIES for count in (8, 17, 64)]
KNOWN += [nearly_equal(*many) for many in ((16, 10, 10), (16, 20, 20), (16, 40, 0), (32, 20, 20), (64, 20, 20))]


@pytest.mark.parametrize("problem", KNOWN, ids=lambda problem: f"{problem.family} {len(problem.tasks)}/{problem.cpus}")
def test_a_run_that_knows_the_times_ends_no_later_than_the_best_plan(problem: Problem) -> None:
    """So no later than the best uniform width, nor than fragments at one thread each."""
    run_s = simulated_s(problem, "seconds", [replace(task, memory_measured=True) for task in problem.tasks])
    for strategy in ("adaptive", "balanced"):
        assert run_s <= plan(problem.tasks, problem.cpus, strategy, **problem.limits).makespan_s * (1 + 1e-9)


def kind_of(name: str, count: int, time_s: float) -> list[Task]:
    return [Task(f"{name}{number}", {1: time_s}, kind=name) for number in range(count)]


def test_the_rest_is_laid_out_anew_when_a_tenth_of_it_has_started() -> None:
    """Those that were thought the longest are found to be the shortest, each by less than what is far."""
    told, true = kind_of("a", 100, 12.0) + kind_of("b", 100, 10.0), kind_of("a", 100, 9.0) + kind_of("b", 100, 10.0)
    run = simulate(Dispatcher(told, 4), true, [Change(0.0, CpuSet(range(4)))])
    assert [one.id[0] for one in run.placements[:30]] == ["a"] * 21 + ["b"] * 9


def test_of_the_last_each_end_is_reason_to_lay_out_the_rest_anew() -> None:
    """The first to end is of a kind that tells of no other, and one task starts; the second tells, before a tenth
    has started."""
    told = kind_of("c", 1, 13.0) + kind_of("a", 17, 12.0) + kind_of("b", 10, 10.0)
    true = kind_of("c", 1, 8.8) + kind_of("a", 17, 9.0) + kind_of("b", 10, 10.0)
    run = simulate(Dispatcher(told, 8), true, [Change(0.0, CpuSet(range(8)))])
    assert [(one.id[0], one.start_s) for one in run.placements[8:11]] == [("a", 8.8), ("b", 9.0), ("b", 9.0)]


class Counted(Dispatcher):
    """Tells how often it looked at all that waits."""

    looks = 0

    def _look(self, now_s: float, capacity: Capacity) -> None:
        self.looks += 1
        super()._look(now_s, capacity)


@pytest.mark.parametrize(("factor", "once"), [(1.0, True), (1.01, True), (1.1, False)])
def test_a_run_that_goes_as_foreseen_is_laid_out_once(factor: float, once: bool) -> None:
    tasks = list(nearly_equal(16, 20, 20).tasks)
    true = [replace(task, times_s={w: t * factor for w, t in task.times_s.items()}) for task in tasks]
    dispatcher = Counted(tasks, 16)
    run = simulate(dispatcher, true, [Change(0.0, CpuSet(range(16)))])
    assert (dispatcher.looks == 1) == once
    assert run.makespan_s <= plan(true, 16, "adaptive").makespan_s * factor


def test_what_is_ahead_is_waited_for_until_something_that_runs_is_overdue_by_far() -> None:
    tasks = [Task("first", {1: 20.0}), Task("second", {1: 20.0}), Task("wide", {3: 18.0}), Task("narrow", {1: 17.0})]
    dispatcher = Dispatcher(tasks, 4)
    for free in (CpuSet(range(4)), CpuSet(range(1, 4))):
        assert dispatcher.next(0.0, free) is not None
    dispatcher._patient = True  # as where a plan is followed
    free = CpuSet([2, 3])
    assert dispatcher.next(10.0, free) is None  # the wide one is to start in 10 s, while the narrow one would run
    assert dispatcher.next(29.0, free) is None
    late = dispatcher.next(31.0, free)
    assert late is not None
    assert late.id == "narrow"


@pytest.mark.parametrize(("start_s", "narrow"), [(70.0, True), (1.0, False)])
def test_a_worker_that_starts_has_its_cpu_for_as_long_as_it_is_waited_for(start_s: float, narrow: bool) -> None:
    """The wide task has room when both the second task and the start have ended, in 35 s at the earliest."""
    tasks = [Task("first", {1: 90.0}), Task("second", {1: 50.0}), Task("wide", {3: 45.0}), Task("narrow", {1: 40.0})]
    dispatcher = Dispatcher(tasks, 4, worker_of=lambda *_: "any", workers={"any": 4})
    starting, starts_s = {"any": 1}, {"any": start_s}
    for free in (CpuSet(range(3)), CpuSet(range(1, 3))):
        assert dispatcher.next(0.0, free, soon=1, starting=starting, starts_s=starts_s) is not None
    dispatcher._patient = True  # as where a plan is followed
    start = dispatcher.next(15.0, CpuSet([2]), soon=1, starting=starting, starts_s=starts_s)
    assert (start is not None) == narrow


def test_how_far_times_scatter_is_seen() -> None:
    rng = random.Random(0)
    sizes = [rng.uniform(1, 100) for _ in range(200)]
    exact, scattered = (Correction(np.array(sizes)[:, None], "seconds") for _ in range(2))
    for row, size in enumerate(sizes):
        exact.observe(row, 0, size)
        scattered.observe(row, 0, 1.2 * size * rng.lognormvariate(0, 0.15))
    assert exact.scatter == 0.0
    assert scattered.scatter == pytest.approx(0.15, rel=0.15)
    assert Correction(np.array(sizes)[:, None], "sizes").scatter > 0.1


def test_a_task_that_all_would_wait_for_is_wider_where_times_scatter() -> None:
    """With one thread it would be the last to end, at the moment when all others do."""
    tasks = [Task("large", {1: 40.0, 2: 21.0, 4: 12.0}), *(Task(f"f{number}", {1: 1.0}) for number in range(120))]
    batch = Batch.of(tasks, Capacity(4))
    assert course_of(batch).widths[0] == 1
    assert course_of(batch, scatter=0.3).widths[0] > 1


def followed() -> tuple[Batch, Timetable, Kept]:
    """Nearly equal tasks, their plan, and that plan as it is kept while it is followed."""
    batch = Batch.of(nearly_equal(16, 20, 20).tasks, Capacity(16))
    planned = shortest(batch)
    order = np.argsort(planned.starts_s, kind="stable")
    return batch, planned, Kept(order, batch.columns(planned.widths), patient=True)


def test_what_was_chosen_before_is_kept_where_nothing_ends_sooner() -> None:
    batch, planned, kept = followed()
    assert course_of(batch, kept=kept).ends_s(0.0) <= planned.makespan_s * (1 + 1e-9)
    assert course_of(batch).ends_s(0.0) > 1.05 * planned.makespan_s
    longer = Kept(np.arange(len(batch)), np.zeros(len(batch), dtype=np.int64), patient=True)
    assert course_of(batch, kept=longer).ends_s(0.0) == course_of(batch).ends_s(0.0)


def test_a_plan_is_no_longer_followed_where_times_scatter_nor_where_they_are_not_known() -> None:
    batch, _, kept = followed()
    assert course_of(batch, kept=kept, in_seconds=True).patient
    assert not course_of(batch, kept=kept).patient
    assert not course_of(batch, kept=kept, in_seconds=True, scatter=0.2).patient


def test_no_plan_is_followed_where_more_memory_is_granted_than_it_counts_with() -> None:
    """What was not measured is granted its share: what is ahead in the plan, and needs more, finds no room."""
    for count in (16, 64):
        problem = memory_tight(16, count, 0)
        run_s = simulated_s(problem, "seconds", list(problem.tasks))
        assert run_s <= 1.07 * plan(problem.tasks, 16, "adaptive", **problem.limits).makespan_s
