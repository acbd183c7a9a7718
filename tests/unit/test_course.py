"""How the rest of a batch is laid out beside what runs, how a plan is followed, and when it is made anew."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from bench_dynamic import simulated_s
from families import FAMILIES, Problem
from hypothesis import given, settings
from hypothesis import strategies as st

from qcthreads.planning import Task, plan
from qcthreads.planning.batch import Batch
from qcthreads.planning.model import Capacity, Running
from qcthreads.planning.search import shortest
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
        if len(running) > len(beside) or sum(one.width for one in beside) <= CPUS:
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
