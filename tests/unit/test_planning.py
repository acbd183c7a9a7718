"""Plans, strategies and the lower bound: against brute force on small instances and by properties on all others."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, OversubscriptionError
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning import Plan, Task, get_strategy, lower_bound, plan, relative_cost, strategy_names
from qcthreads.planning.cost import assumed_speedup, scaling_exponent

TIMES = st.dictionaries(st.integers(1, 8), st.floats(0.01, 100.0), min_size=1, max_size=4)
BATCH = st.lists(TIMES, min_size=1, max_size=12).map(
    lambda batch: [Task(f"f{number}", times) for number, times in enumerate(batch)]
)


def check(made: Plan, tasks: list[Task], usable: CpuSet) -> None:
    """Every task once, only listed widths and times, no CPU twice at a time, nothing better than the lower bound."""
    by_id = {task.id: task for task in tasks}
    assert sorted(placement.id for placement in made.placements) == sorted(by_id)
    for placement in made.placements:
        assert len(placement.cpus) == placement.threads
        assert placement.cpus <= usable
        assert placement.end_s - placement.start_s == pytest.approx(by_id[placement.id].times_s[placement.threads])
    for one, other in itertools.combinations(made.placements, 2):
        if one.start_s < other.end_s and other.start_s < one.end_s:
            assert one.cpus.isdisjoint(other.cpus)
    assert made.makespan_s >= made.lower_bound_s * (1 - 1e-9)


@given(tasks=BATCH, cpus=st.integers(8, 24), name=st.sampled_from(["auto", "balanced"]))
def test_every_plan_is_valid_and_the_same_each_time(tasks: list[Task], cpus: int, name: str) -> None:
    made = plan(tasks, cpus, name)
    check(made, tasks, CpuSet(range(cpus)))
    assert plan(tasks, cpus, name) == made


@given(tasks=BATCH, memory=st.integers(4, 20), needs=st.lists(st.integers(0, 4), min_size=12, max_size=12))
def test_memory_is_never_over(tasks: list[Task], memory: int, needs: list[int]) -> None:
    tasks = [Task(task.id, task.times_s, need) for task, need in zip(tasks, needs, strict=False)]
    made = plan(tasks, 16, memory_bytes=memory)
    check(made, tasks, CpuSet(range(16)))
    need = {task.id: task.memory_bytes for task in tasks}
    for now in made.placements:
        running = [other for other in made.placements if other.start_s <= now.start_s < other.end_s]
        assert sum(need[other.id] for other in running) <= memory


@given(tasks=BATCH, cpus=st.integers(8, 24))
def test_without_a_width_balanced_is_as_good_as_the_best_of_all_widths(tasks: list[Task], cpus: int) -> None:
    ends = []
    for width in range(1, cpus + 1):
        try:
            ends.append(plan(tasks, cpus, "balanced", width=width).makespan_s)
        except InputError:
            assert any(min(task.times_s) > width for task in tasks)
    assert plan(tasks, cpus, "balanced").makespan_s == pytest.approx(min(ends))


@settings(max_examples=40)
@given(batch=st.lists(TIMES, min_size=1, max_size=4), cpus=st.integers(1, 9))
def test_lower_bound_against_bisection(batch: list[dict[int, float]], cpus: int) -> None:
    tasks = [
        Task(str(number), {width: time for width, time in times.items() if width <= cpus} or {1: 1.0})
        for number, times in enumerate(batch)
    ]

    def fits(limit: float) -> bool:
        work = 0.0
        for task in tasks:
            choices = [width * time for width, time in task.times_s.items() if time <= limit]
            if not choices:
                return False
            work += min(choices)
        return work <= cpus * limit

    low, high = 0.0, 1e5
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    assert lower_bound(tasks, cpus) == pytest.approx(high, rel=1e-9)


def test_lower_bound_is_the_longest_task_at_its_best_width() -> None:
    assert lower_bound([Task("big", {1: 10.0, 2: 6.0, 4: 7.0}), Task("small", {1: 0.1})], 64) == 6.0
    assert lower_bound([], 4) == 0.0


def test_longest_first_on_equal_workers() -> None:
    tasks = [Task("a", {1: 1.0}), Task("b", {1: 3.0}), Task("c", {1: 2.0})]
    made = plan(tasks, 2, "balanced")
    assert [(one.id, one.start_s, str(one.cpus)) for one in made.placements] == [
        ("b", 0.0, "0"),
        ("c", 0.0, "1"),
        ("a", 2.0, "1"),
    ]
    assert made.makespan_s == made.lower_bound_s == 3.0


def test_places_are_cut_by_the_machine_and_physical_cores_come_first() -> None:
    machine = synthetic_machine(packages=2, cores=4, threads=2)
    made = plan([Task(str(number), {4: 1.0}) for number in range(2)], machine)
    assert {str(one.cpus) for one in made.placements} == {"0-3", "4-7"}


def test_a_plan_for_given_cpus_uses_these() -> None:
    made = plan([Task("a", {2: 1.0})], CpuSet.parse("5,9"))
    assert made.placements[0].cpus == CpuSet.parse("5,9")


def test_strategies_come_from_the_entry_points_under_either_spelling() -> None:
    assert set(strategy_names()) >= {"auto", "balanced"}
    assert get_strategy("Balanced") is get_strategy("balanced")


@pytest.mark.parametrize("name", ["adaptive", "memory-aware", "memory_aware", "fastest"])
def test_an_absent_strategy_is_refused_and_the_present_ones_are_listed(name: str) -> None:
    with pytest.raises(InputError, match=r"there is no strategy '.*'; there are: .*auto, .*balanced"):
        plan([Task("a", {1: 1.0})], 2, name)


@pytest.mark.parametrize(
    ("tasks", "error", "words"),
    [
        ([Task("a", {1: 1.0}), Task("a", {1: 1.0})], InputError, "two tasks are called 'a'"),
        ([Task("a", {})], InputError, "lists no width"),
        ([Task("a", {0: 1.0})], InputError, "widths start at 1"),
        ([Task("a", {1: math.inf})], InputError, "inf s at width 1"),
        ([Task("a", {8: 1.0})], OversubscriptionError, "needs 8 threads at least, but there are 4 CPUs"),
        ([Task("a", {1: 1.0}, 2048)], OversubscriptionError, "needs 2 KiB, but 1 KiB may be used"),
    ],
)
def test_tasks_that_cannot_be_planned_are_refused_by_name(
    tasks: list[Task], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan(tasks, 4, memory_bytes=1024)


@pytest.mark.parametrize("width", [0, 5])
def test_a_width_the_machine_has_not_is_refused(width: int) -> None:
    with pytest.raises(InputError, match=f"workers {width} threads wide were asked for, but there are 4 CPUs: 0-3"):
        plan([Task("a", {1: 1.0})], 4, width=width)


def test_a_width_narrower_than_a_task_is_refused() -> None:
    with pytest.raises(InputError, match="but a need more; ask for at least 3"):
        plan([Task("a", {3: 1.0})], 4, width=2)


@pytest.mark.parametrize("nothing", [0, CpuSet()])
def test_no_cpu_is_refused(nothing: int | CpuSet) -> None:
    with pytest.raises(InputError, match="no CPU to plan for"):
        plan([Task("a", {1: 1.0})], nothing)


@pytest.mark.parametrize(
    ("method", "exponent"),
    [
        ("hf", 3), ("SCF", 3), ("b3lyp-d3bj", 3), ("pbe", 3), ("mp2", 5), ("df-mp2", 5),
        ("RI-MP2", 5), ("scs-mp2", 5),
        ("b2plyp", 5), ("mp3", 6), ("mp4", 7), ("mp4(sdq)", 6), ("ccsd", 6), ("CCSD(T)", 7),
        ("ccsd[t]", 7), ("ccsdt", 8),
        ("ccsdt(q)", 9), ("ccsdtq", 10), ("gfn2-xtb", 3), ("pm7", 3), ("am1", 3), ("uff", 2),
    ],
)  # fmt: skip
def test_formal_scaling(method: str, exponent: int) -> None:
    assert scaling_exponent(method) == exponent


def test_costs_order_by_the_best_size_given() -> None:
    assert relative_cost("mp2", basis_functions=20) == 32 * relative_cost("mp2", basis_functions=10)
    assert relative_cost("hf", electrons=20, basis_functions=10) == relative_cost("hf", basis_functions=10)
    with pytest.raises(InputError, match="size of a calculation with hf"):
        relative_cost("hf")


def test_assumed_speedup_is_amdahls_law() -> None:
    assert assumed_speedup(1) == 1.0
    assert assumed_speedup(2) == pytest.approx(11.19 / 8.02, rel=0.01)
    assert assumed_speedup(10**6, 0.5) == pytest.approx(2.0, rel=1e-5)
