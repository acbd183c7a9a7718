"""How far plans are from the best there are: the lower bound, an exact solver (OR-tools' CP-SAT), all of few schedules.

The published families are in benchmarks/families.py, the whole table comes from benchmarks/bench_planning.py.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest
from exact import best_known_s
from families import (
    FAMILIES,
    MEMORY_TIGHT,
    UNUSUAL,
    Family,
    Problem,
    bandwidth_bound,
    bimodal,
    disk_tight,
    equal,
    many_body,
    memory_bimodal,
    memory_tight,
    moments,
    odd_widths,
    one_giant,
    rigid,
    whole_node,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from patterns import ends_later_than

from qcthreads.cpuset import CpuSet
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning import Task, plan
from qcthreads.planning.batch import Batch
from qcthreads.planning.bounds import lower_bound
from qcthreads.planning.check import fault_of
from qcthreads.planning.model import Capacity, usual_widths
from qcthreads.planning.search import shortest
from qcthreads.planning.seating import placed
from qcthreads.planning.shelves import FACTORS, on_shelves, two_shelves
from qcthreads.planning.timetable import Layout, Timetable

# Of tasks 4 to a CPU and more the makespan is near the bound, but not of these: memory, widths of which no two fit side
# by side (9 of 16 CPUs), and one large task or two to a CPU. Whether bound or plan is to blame is not known for all.
NEAR_THE_BOUND = [family for family in FAMILIES if family not in (*MEMORY_TIGHT, odd_widths, bimodal)]


def ratio(problem: Problem) -> float:
    made = plan(problem.tasks, problem.cpus, "adaptive", **problem.limits)
    return made.makespan_s / made.lower_bound_s


def test_many_tasks_end_near_the_lower_bound() -> None:
    ratios = [
        ratio(family(cpus, per_cpu * cpus, seed))
        for family in NEAR_THE_BOUND
        for cpus in (16, 64, 256)
        for per_cpu in (8, 16)
        for seed in (11, 12)
    ]
    assert statistics.median(ratios) <= 1.005
    assert max(ratios) <= 1.02


@pytest.mark.parametrize("per_cpu", [4, 8])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in MEMORY_TIGHT])
def test_many_tasks_end_near_the_bound_or_nothing_ends_much_sooner(family: Family, per_cpu: int) -> None:
    problem = family(16, 16 * per_cpu, 1)
    made = plan(problem.tasks, problem.cpus, "auto")
    assert made.makespan_s <= 1.02 * made.lower_bound_s or ends_later_than(problem, made.makespan_s / 1.02)


@pytest.mark.parametrize(("count", "most"), [(257, 1.016), (512, 1.011)])
def test_cpus_that_few_tasks_fill_are_filled_up(count: int, most: float) -> None:
    assert ratio(many_body(64, count, 0)) <= most  # three trimers, or six, fill a CPU if they are well chosen


@pytest.mark.parametrize(
    ("problem", "least", "within"),
    [
        (equal(16, 65, 1), 1.09, 1.005),
        (equal(64, 641, 1), 1.04, 1.005),
        (many_body(16, 65, 0), 1.03, 1.02),
        (bimodal(64, 256, 0), 1.02, 1.02),
        (whole_node(64, 256, 0), 1.02, 1.01),
        (rigid(16, 64, 0), 1.05, 1.005),
        (memory_bimodal(16, 9, 0), 1.12, 1.01),
    ],
    ids=lambda given: given.family if isinstance(given, Problem) else str(given),
)
def test_where_whole_tasks_leave_room_for_no_other_it_is_the_bound_that_is_far(
    problem: Problem, least: float, within: float
) -> None:
    made = plan(problem.tasks, problem.cpus, "adaptive", **problem.limits)
    assert made.makespan_s > least * made.lower_bound_s
    assert ends_later_than(problem, made.makespan_s / within)
    assert not ends_later_than(problem, made.makespan_s)


@pytest.mark.parametrize(
    "family", [many_body, odd_widths, memory_bimodal, memory_tight, disk_tight, bandwidth_bound, moments, rigid]
)
def test_nothing_is_proven_that_a_schedule_of_the_exact_solver_contradicts(family: Family) -> None:
    for seed in range(3):
        problem = family(4, 5, seed)
        made = plan(problem.tasks, problem.cpus, "auto", **problem.limits)
        exact_s, _ = best_known_s(problem, limit_s=0.5, hint_s=made.makespan_s)
        assert not ends_later_than(problem, min(exact_s * (1 + 1e-4), made.makespan_s))  # CP-SAT's times are rounded
        assert ends_later_than(problem, 0.95 * made.lower_bound_s)


def test_nothing_is_proven_by_how_many_very_short_tasks_there_are() -> None:
    short = Problem("short", 2, tuple(Task(str(number), {1: 1.0}) for number in range(8000)))
    assert not ends_later_than(short, 4000.0)
    assert ends_later_than(short, 3999.0)


@pytest.mark.parametrize("seed", [3])
def test_few_tasks_end_as_soon_as_the_exact_solver_says(seed: int) -> None:
    ratios = []
    for family in (*FAMILIES, bandwidth_bound):
        if family in (*MEMORY_TIGHT, one_giant):  # CP-SAT proves nothing about these in a minute
            continue
        problem = family(8, 5, seed)
        made = plan(problem.tasks, problem.cpus, "auto")
        exact_s, proven = best_known_s(problem, limit_s=20.0, hint_s=made.makespan_s)
        assert proven, f"{family.__name__}: CP-SAT proved no optimum; make the problem smaller"
        assert made.makespan_s >= exact_s * (1 - 1e-4)  # CP-SAT's times are rounded
        ratios.append(made.makespan_s / exact_s)
    assert statistics.median(ratios) <= 1.01
    assert max(ratios) <= 1.05


def test_of_equally_long_tasks_one_that_gains_most_from_threads_is_the_last() -> None:
    tasks = [
        Task(str(number), {width: 10 / min(width, 2 + 6 * (number < 30)) for width in (1, 2, 4, 8)})
        for number in range(641)
    ]
    assert plan(tasks, 64).makespan_s == pytest.approx(10 * 10 + 10 / 8)


@pytest.mark.parametrize("memory", [None, 8])
def test_narrow_runs_use_the_cpus_that_wide_ones_leave_though_they_cost_more(memory: int | None) -> None:
    """Six run on four of the seven CPUs, meanwhile two on two of the other three."""
    tasks = [Task(str(number), {1: 7.0, 2: 3.0, 4: 1.0}, 4) for number in range(8)]
    assert plan(tasks, 7, "auto", memory_bytes=memory).makespan_s == 6.0


def test_one_of_two_that_do_not_fit_side_by_side_is_wide_and_the_small_ones_run_beside_the_other() -> None:
    large = [({4: 25.7, 8: 16.8}, 11), ({4: 15.6, 8: 10.2}, 11)]
    small = [({1: 16.1, 2: 8.9, 4: 5.2}, 4), ({1: 8.5, 2: 4.7, 4: 2.8}, 4), ({1: 7.6, 2: 4.2, 4: 2.5}, 4)]
    tiny = [({1: 6.5, 2: 3.6, 4: 2.1}, 2), ({1: 4.0, 2: 2.2, 4: 1.3}, 2), ({1: 2.4, 2: 1.4, 4: 0.8}, 2)]
    tasks = [Task(str(number), *one) for number, one in enumerate((*small, *tiny, *large))]
    assert plan(tasks, 8, memory_bytes=21).makespan_s == pytest.approx(16.8 + 15.6)


def test_pairs_that_need_all_of_the_memory_between_them_run_together() -> None:
    """Six pairs, each on six of the seven CPUs for as long as the narrow one takes, would take 36 s."""
    firsts = (93, 54, 20, 56, 52, 75)
    needs = [need for first in firsts for need in (first, 100 - first)]
    tasks = [Task(str(number), {1: 10.0, 2: 6.0, 4: 4.0}, need) for number, need in enumerate(needs)]
    assert plan(tasks, 7, memory_bytes=100).makespan_s == pytest.approx(30.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("each_further", [0.0, 0.05])
def test_few_tasks_that_need_much_memory_end_as_soon_as_the_best_of_all_orders_and_widths(
    seed: int, each_further: float
) -> None:
    """``each_further``: part of the memory that each thread but the first adds."""
    problem = memory_tight(8, 4, seed)
    assert problem.memory_bytes is not None
    more = {width: round((width - 1) * each_further * problem.memory_bytes) for width in range(1, 9)}
    tasks = [replace(task, memory_more_bytes=more) for task in problem.tasks]
    made = plan(tasks, problem.cpus, "auto", memory_bytes=problem.memory_bytes)
    best_s = shortest_of_all_s(tasks, problem.cpus, problem.memory_bytes)
    assert made.makespan_s <= 1.05 * best_s
    assert made.lower_bound_s <= best_s * (1 + 1e-9)
    assert made.lower_bound_s > lower_bound(tasks, problem.cpus)  # memory tells more than CPUs alone


@pytest.mark.parametrize("seed", range(4))
def test_so_do_few_that_need_much_memory_or_disk(seed: int) -> None:
    problem = disk_tight(8, 4, seed)
    assert problem.memory_bytes is not None
    assert problem.disk_bytes is not None
    made = plan(problem.tasks, problem.cpus, "auto", **problem.limits)
    best_s = shortest_of_all_s(problem.tasks, problem.cpus, problem.memory_bytes, problem.disk_bytes)
    assert made.makespan_s <= 1.05 * best_s
    assert made.lower_bound_s <= best_s * (1 + 1e-9)


def shortest_of_all_s(tasks: Sequence[Task], cpus: int, memory_bytes: int, disk_bytes: float = math.inf) -> float:
    """Every order, every width, each task as early as it fits: one of these schedules is the shortest there is."""
    best_s = math.inf
    for widths in itertools.product(*(task.times_s for task in tasks)):
        for order in itertools.permutations(zip(tasks, widths, strict=True)):
            placed: list[tuple[float, float, tuple[int, int, int]]] = []
            for task, width in order:
                time_s, memory = task.times_s[width], task.memory_bytes + (task.memory_more_bytes or {}).get(width, 0)
                needs = width, memory, task.disk_bytes
                if memory > memory_bytes:
                    break
                for start_s in sorted({0.0, *(end_s for _, end_s, _ in placed)}):
                    # What runs beside it changes only when something starts.
                    moments = [start_s, *(begin_s for begin_s, *_ in placed if start_s < begin_s < start_s + time_s)]
                    beside = [[one for one in placed if one[0] <= moment < one[1]] for moment in moments]
                    together = [map(sum, zip(needs, *(one[2] for one in now), strict=True)) for now in beside]
                    if all(
                        wide <= cpus and held <= memory_bytes and files <= disk_bytes for wide, held, files in together
                    ):
                        placed.append((start_s, start_s + time_s, needs))
                        break
            if len(placed) == len(tasks):
                best_s = min(best_s, max(end_s for _, end_s, _ in placed))
    return best_s


def monotone(cpus: int, count: int, seed: int, few_widths: bool = False) -> Problem:
    """Wider runs are no slower, and no less work; those that gain nothing are not listed.

    ``few_widths``: each half as wide again as the one before, at most; else all.
    """
    rng = random.Random(seed)
    listed = usual_widths(cpus) if few_widths else tuple(range(1, cpus + 1))
    tasks = []
    for number in range(count):
        times = {1: float(rng.choice((1, 2, 3, rng.randint(4, 12))))}
        narrower, perfect = 1, rng.random() < 0.5
        for width in listed[1 : rng.randint(1, len(listed))]:
            least_s = times[narrower] * narrower / width
            time_s = least_s if perfect else min(max(rng.uniform(0.5, 1.5) * least_s, least_s), times[narrower])
            if time_s < times[narrower]:
                times[width], narrower = time_s, width
        tasks.append(Task(str(number), times))
    return Problem("monotone", cpus, tuple(tasks))


def shelved(problem: Problem, deadline_s: float, factor: float) -> Timetable | None:
    batch = Batch(problem.tasks, Capacity(problem.cpus))
    return on_shelves(Layout(batch, batch.choices()), deadline_s, factor)


OF_ALL_OR_FEW_WIDTHS = pytest.mark.parametrize(("few_widths", "factor"), [(False, 1.5), (True, 1.75)])


@OF_ALL_OR_FEW_WIDTHS
@settings(max_examples=100)
@given(cpus=st.integers(1, 6), count=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_two_shelves_end_within_their_factor_of_the_shortest_of_all(
    few_widths: bool, factor: float, cpus: int, count: int, seed: int
) -> None:
    problem = monotone(cpus, count, seed, few_widths)
    best_s = shortest_of_all_s(problem.tasks, cpus, 0)
    made = shelved(problem, best_s * (1 + 1e-9), factor)
    assert made is not None
    assert best_s * (1 - 1e-9) <= made.makespan_s <= factor * best_s * (1 + 1e-8)


@OF_ALL_OR_FEW_WIDTHS
@pytest.mark.parametrize("seed", [10, 12, 17, 21, 23])  # of which CP-SAT proves the optimum at once
def test_two_shelves_end_within_their_factor_of_the_optimum_of_the_exact_solver(
    few_widths: bool, factor: float, seed: int
) -> None:
    problem = monotone(5 + seed % 4, 7 + seed % 3, seed, few_widths)
    exact_s, proven = best_known_s(problem, limit_s=20.0)
    assert proven
    made = shelved(problem, exact_s * (1 + 1e-4), factor)  # CP-SAT's times are rounded
    assert made is not None
    assert made.makespan_s <= factor * exact_s * (1 + 2e-4)


def filled(cpus: int, seed: int, few_widths: bool) -> Problem:
    """All CPUs are busy for a second, whose parts are the tasks, each at its widest; narrower they are as much work."""
    rng = random.Random(seed)
    listed = usual_widths(cpus) if few_widths else tuple(range(1, cpus + 1))
    parts = [(cpus, 1.0)]
    for _ in range(rng.randint(0, 2 * cpus)):
        wide, time_s = parts.pop(rng.randrange(len(parts)))
        if wide > 1 and rng.random() < 0.6:
            width = rng.choice([width for width in listed if width < wide])
            parts += [(width, time_s), (wide - width, time_s)]
        else:
            first_s = time_s * rng.choice((0.5, 0.51, rng.random()))
            parts += [(wide, first_s), (wide, time_s - first_s)]
    tasks = list[Task]()
    for wide, time_s in parts:
        while wide:
            most = max(width for width in listed if width <= wide)
            times = {width: time_s * most / width for width in listed if width <= most}
            tasks.append(Task(str(len(tasks)), times))
            wide -= most
    return Problem("filled", cpus, tuple(tasks))


def assert_laid_out(problem: Problem, deadline_s: float, factor: float) -> bool:
    """Whether two shelves keep it, which they do within the factor, on no more CPUs than there are, as they stand."""
    batch = Batch(problem.tasks, Capacity(problem.cpus))
    laid_out = two_shelves(batch.choices(), problem.cpus, deadline_s, factor)
    made = on_shelves(Layout(batch, batch.choices()), deadline_s, factor)
    assert (made is None) == (laid_out is None)
    if laid_out is None or made is None:
        return False
    widths, times_s, starts_s = laid_out
    for task, width, time_s in zip(problem.tasks, widths.tolist(), times_s.tolist(), strict=True):
        assert task.times_s[width] == time_s
    ends_s, rounding_s = starts_s + times_s, 1e-9 * deadline_s
    assert starts_s.min() >= 0
    assert ends_s.max() <= factor * deadline_s + rounding_s
    for moment_s in starts_s + rounding_s:
        assert widths[(starts_s <= moment_s) & (moment_s < ends_s - rounding_s)].sum() <= problem.cpus
    assert made.widths == widths.tolist()
    assert made.makespan_s <= ends_s.max() + rounding_s
    return True


@OF_ALL_OR_FEW_WIDTHS
@settings(max_examples=300)
@given(cpus=st.integers(1, 16), seed=st.integers(0, 10**6))
def test_two_shelves_keep_a_deadline_until_which_all_cpus_are_busy(
    few_widths: bool, factor: float, cpus: int, seed: int
) -> None:
    problem = filled(cpus, seed, few_widths)
    assert assert_laid_out(problem, 1 + 1e-9, factor)
    assert not assert_laid_out(problem, 1 - 1e-9, factor)


@OF_ALL_OR_FEW_WIDTHS
@given(
    cpus=st.integers(1, 24),
    per_cpu=st.floats(0.1, 3),
    seed=st.integers(0, 10**6),
    part=st.floats(0.9, 1.1) | st.floats(0.5, 3),
)
def test_two_shelves_end_within_their_factor_of_every_deadline_that_they_do_not_refuse(
    few_widths: bool, factor: float, cpus: int, per_cpu: float, seed: int, part: float
) -> None:
    problem = monotone(cpus, max(1, round(per_cpu * cpus)), seed, few_widths)
    if assert_laid_out(problem, part * lower_bound(problem.tasks, cpus), factor):
        assert part >= 1 - 1e-9
    else:
        assert part < 2  # within twice the bound there is a schedule


@given(
    family=st.sampled_from((monotone, *FAMILIES, *UNUSUAL)),
    cpus=st.sampled_from((4, 7, 16)),
    count=st.integers(1, 40),
    seed=st.integers(0, 1000),
    part=st.floats(0.5, 3),
    factor=st.sampled_from(FACTORS),
)
def test_two_shelves_are_a_valid_plan_whatever_the_times(
    family: Family, cpus: int, count: int, seed: int, part: float, factor: float
) -> None:
    problem, machine = family(cpus, count, seed), synthetic_machine(cores=cpus)
    made = shelved(problem, part * lower_bound(problem.tasks, cpus), factor)
    if made is not None:
        batch, usable = Batch(problem.tasks, Capacity(cpus)), CpuSet(range(cpus))
        assert fault_of(placed(batch, made, machine, usable), batch, usable) == ""


def test_a_deadline_that_cpus_are_too_few_for_is_refused() -> None:
    """Five run for more than half of it, and none of them on the CPU of another."""
    five = Problem("five", 4, tuple(Task(str(number), {1: 1.0}) for number in range(5)))
    assert shelved(five, 1.3, 1.5) is None
    made = shelved(five, 2.0, 1.5)
    assert made is not None
    assert made.makespan_s == 2.0


def test_so_is_one_that_leaves_too_much_work_whoever_is_on_the_second_shelf() -> None:
    """With all on the first it would be 2.8 CPU seconds, but there is room for two of them only."""
    times = [{1: 1.2, 2: 0.6}, {1: 0.9, 2: 0.55, 3: 0.49}, {1: 0.7, 2: 0.55, 3: 0.5}]
    three = Problem("three", 3, tuple(Task(str(number), one) for number, one in enumerate(times)))
    assert shortest_of_all_s(three.tasks, 3, 0) > 1
    assert shelved(three, 1.0, 1.5) is None


def test_two_of_one_cpu_stand_one_above_the_other_so_that_the_second_shelf_has_room() -> None:
    """Side by side they leave one CPU, on which the last takes 1.51 s, and the first is in the way of four."""
    wide = [{1: 1.4, 2: 0.7}, {width: 1.51 / width for width in range(1, 5)}]
    tasks = [Task(str(number), times) for number, times in enumerate([*wide, {1: 0.51}, {1: 0.51}])]
    assert assert_laid_out(Problem("four", 4, tuple(tasks)), 1.0, 1.5)


def test_a_deadline_that_is_kept_with_one_of_three_on_the_second_shelf_is_not_refused() -> None:
    """Two run on two of the five CPUs each, then the third on three."""
    times = [{1: 11.0, 2: 5.8, 3: 4.0}, {1: 11.0, 2: 5.8, 3: 4.0}, {1: 11.0, 2: 5.8, 3: 4.1}]
    three = Problem("three", 5, tuple(Task(str(number), one) for number, one in enumerate(times)))
    made = shelved(three, 9.8, 1.5)
    assert made is not None
    assert made.makespan_s <= 1.5 * 9.8


def test_who_is_on_the_second_shelf_gets_narrower_where_there_is_room() -> None:
    """On two CPUs, one above the other, they would take 4.5 s and 8 s."""
    two = Problem("two", 2, (Task("a", {1: 7.0, 2: 3.5}), Task("b", {1: 9.0, 2: 4.5})))
    made = shelved(two, 8.0, 1.5)
    assert made is not None
    assert made.makespan_s <= 12.0


def test_where_nothing_else_is_tried_two_shelves_keep_the_promise() -> None:
    """One after the other they take 5.9 s, side by side 3.6 s."""
    tasks = [Task("a", {1: 3.0}), Task("b", {1: 12.0, 2: 6.0, 3: 4.0, 4: 3.6, 5: 2.9})]
    best_s = shortest_of_all_s(tasks, 5, 0)
    made = shortest(Batch(tasks, Capacity(5)), (), most_layouts=0)
    assert made.makespan_s <= 1.5 * 1.001 * best_s
