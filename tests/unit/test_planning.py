"""Plans, strategies and the lower bound: against brute force on small instances and by properties on all others.

How good the plans are is held against an exact solver in test_planning_quality.py.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter, le, sub
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import (
    FAMILIES,
    MEMORY_TIGHT,
    UNUSUAL,
    Family,
    Problem,
    bandwidth_bound,
    disk_tight,
    half_the_memory,
    heavy_tail,
    many_body,
    memory_bimodal,
    memory_tight,
    mixed_rates,
    moments,
    rigid,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet, NodeSet
from qcthreads.errors import InputError, OversubscriptionError
from qcthreads.machine import Distances
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning import Plan, Task, get_strategy, plan, relative_cost, search, series, strategy_names
from qcthreads.planning.batch import Batch, Choices
from qcthreads.planning.bounds import lower_bound
from qcthreads.planning.cost import assumed_speedup, scaling_exponent
from qcthreads.planning.model import Capacity
from qcthreads.planning.series import Series
from qcthreads.planning.space import Room
from qcthreads.planning.strategies import BUILT_IN

# Some take no time, or so little that rounding leaves none of it.
TIMES = st.dictionaries(
    st.integers(1, 8), st.floats(0.01, 100.0) | st.sampled_from([0.0, 1e-15]), min_size=1, max_size=4
)
BATCH = st.lists(TIMES, min_size=1, max_size=12).map(
    lambda batch: [Task(f"f{number}", times) for number, times in enumerate(batch)]
)
NAMES = st.sampled_from(strategy_names())
DISK = st.lists(st.integers(0, 6), min_size=12, max_size=12)
BANDWIDTH = (bandwidth_bound, mixed_rates)
MORE = st.lists(st.none() | st.dictionaries(st.integers(1, 8), st.integers(0, 6)), min_size=12, max_size=12)


def check(
    made: Plan,
    tasks: Sequence[Task],
    usable: CpuSet,
    memory_bytes: float = math.inf,
    bandwidth: float = math.inf,
    disk_bytes: float = math.inf,
) -> None:
    """Every task once, only listed widths and times, no CPU twice at a time, nothing better than the lower bound."""
    by_id = {task.id: task for task in tasks}
    assert sorted(placement.id for placement in made.placements) == sorted(by_id)
    for placement in made.placements:
        assert len(placement.cpus) == placement.threads
        assert placement.cpus <= usable
        time_s = at_least_s(by_id[placement.id], placement.threads, bandwidth)
        assert placement.end_s - placement.start_s == pytest.approx(time_s, abs=1e-9)
    for one, other in itertools.combinations(made.placements, 2):
        if one.start_s < other.end_s and other.start_s < one.end_s:
            assert one.cpus.isdisjoint(other.cpus)
    for now in made.placements:
        running = [other for other in made.placements if other.start_s <= now.start_s < other.end_s]
        assert sum(needs(by_id[other.id], other.threads) for other in running) <= memory_bytes
        assert sum(by_id[other.id].disk_bytes for other in running) <= disk_bytes
    assert made.makespan_s >= made.lower_bound_s * (1 - 1e-9)


def needs(task: Task, width: int) -> int:
    """Bytes of memory, at that width."""
    return task.memory_bytes + (task.memory_more_bytes or {}).get(width, 0)


def moved(task: Task) -> float:
    """Bytes to and from memory, at any width."""
    return task.bandwidth_bytes_per_s * task.times_s[min(task.times_s)]


def at_least_s(task: Task, width: int, bandwidth: float) -> float:
    """What the task takes at that width, or its bytes take at all of the bandwidth."""
    return max(task.times_s[width], moved(task) / bandwidth)


def rate(task: Task, width: int, bandwidth: float) -> float:
    """Bytes per second at that width."""
    time_s = at_least_s(task, width, bandwidth)
    return moved(task) / time_s if time_s else 0.0


def with_memory(tasks: Sequence[Task], least: Sequence[int], more: Sequence[dict[int, int] | None]) -> list[Task]:
    """Each with its needs: at any width, and beyond that by width."""
    every = zip(tasks, least, more, strict=False)
    return [replace(task, memory_bytes=need, memory_more_bytes=by_width) for task, need, by_width in every]


def with_disk(tasks: Sequence[Task], needed: Sequence[int]) -> list[Task]:
    """Each with its need of disk."""
    return [replace(task, disk_bytes=need) for task, need in zip(tasks, needed, strict=False)]


def fit(tasks: Sequence[Task], memory_bytes: int, disk_bytes: float = math.inf) -> bool:
    """Each by itself, at one of its widths."""
    return all(
        task.disk_bytes <= disk_bytes and any(needs(task, width) <= memory_bytes for width in task.times_s)
        for task in tasks
    )


@settings(max_examples=70)
@given(tasks=BATCH, cpus=st.integers(8, 24), name=NAMES)
def test_every_plan_is_valid_and_the_same_each_time(tasks: list[Task], cpus: int, name: str) -> None:
    made = plan(tasks, cpus, name)
    check(made, tasks, CpuSet(range(cpus)))
    assert plan(tasks, cpus, name) == made


@settings(max_examples=100)
@given(
    tasks=BATCH,
    memory=st.integers(4, 20),
    least=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    more=MORE,
    disk=st.none() | st.integers(5, 20),
    files=DISK,
    name=NAMES,
)
def test_memory_and_disk_are_never_over(
    tasks: list[Task],
    memory: int,
    least: list[int],
    more: list[dict[int, int] | None],
    disk: int | None,
    files: list[int],
    name: str,
) -> None:
    tasks = with_disk(with_memory(tasks, least, more), files)
    if fit(tasks, memory, disk or math.inf):
        made = plan(tasks, 16, name, memory_bytes=memory, disk_bytes=disk)
        check(made, tasks, CpuSet(range(16)), memory, disk_bytes=disk or math.inf)
    else:
        with pytest.raises(OversubscriptionError, match="may be used"):
            plan(tasks, 16, name, memory_bytes=memory, disk_bytes=disk)


@pytest.mark.parametrize("family", [*FAMILIES, disk_tight], ids=lambda family: family.__name__)
@pytest.mark.parametrize("name", strategy_names())
@pytest.mark.parametrize(("cpus", "count"), [(64, 150), (16, 700)])
def test_plans_of_the_published_families_are_valid(family: Family, name: str, cpus: int, count: int) -> None:
    problem = family(cpus, count, 7)
    made = plan(problem.tasks, cpus, name, **problem.limits)
    most = problem.memory_bytes or math.inf
    check(made, problem.tasks, CpuSet(range(cpus)), most, disk_bytes=problem.disk_bytes or math.inf)


@pytest.mark.parametrize("family", [memory_tight, moments, rigid])
def test_tasks_laid_out_in_series_are_placed_one_by_one(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_IN_SERIES", 5_000)  # as if that were very many: what follows takes its time
    monkeypatch.setattr(series, "_MOST", 2_000)
    in_series: list[Series] = []

    def counted(batch: Batch, bound_s: float, choices: Choices) -> Series:
        in_series.append(Series(batch, bound_s, choices))
        return in_series[-1]

    monkeypatch.setattr(search, "Series", counted)
    problem = family(16, 6_000, 1)
    rng = random.Random(1)
    disk_bytes = 30
    tasks = [replace(task, disk_bytes=rng.randint(0, 3)) for task in problem.tasks]
    made = plan(tasks, 16, "adaptive", memory_bytes=problem.memory_bytes, disk_bytes=disk_bytes)
    assert [len(one.batch) < len(tasks) for one in in_series] == [True]
    by_id = {task.id: task for task in tasks}
    assert sorted(placement.id for placement in made.placements) == sorted(by_id)
    events = [(end_s, False, one) for one in made.placements if (end_s := one.end_s) > one.start_s]
    events += [(one.start_s, True, one) for _, _, one in events]
    usable, makespan_s = CpuSet(range(16)), made.makespan_s
    busy, memory, disk = CpuSet(), 0, 0
    for _, starts, one in sorted(events, key=itemgetter(0, 1)):
        task = by_id[one.id]
        assert one.end_s - one.start_s == pytest.approx(task.times_s[one.threads], abs=1e-9 * makespan_s)
        assert len(one.cpus) == one.threads
        assert one.cpus <= usable
        assert one.cpus.isdisjoint(busy) if starts else one.cpus <= busy
        busy = busy | one.cpus if starts else busy - one.cpus
        sign = 1 if starts else -1
        memory += sign * needs(task, one.threads)
        disk += sign * task.disk_bytes
        assert memory <= (problem.memory_bytes or math.inf)
        assert disk <= disk_bytes
    assert makespan_s <= 1.1 * made.lower_bound_s


def test_very_many_tasks_that_share_bandwidth_end_near_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their widths are compared on some of them, and nothing is in series."""
    monkeypatch.setattr(search, "_IN_SERIES", 10_000)
    problem = mixed_rates(64, 11_000, 1)
    made = plan(problem.tasks, problem.cpus, "auto", **problem.limits)
    assert made.makespan_s <= 1.01 * made.lower_bound_s
    whole, moving = problem.bandwidth_bytes_per_s or math.inf, 0.0
    by_id = {task.id: task for task in problem.tasks}
    events = [(one.end_s, False, one) for one in made.placements] + [
        (one.start_s, True, one) for one in made.placements
    ]
    for _, starts, one in sorted(events, key=itemgetter(0, 1)):
        moving += (1 if starts else -1) * rate(by_id[one.id], one.threads, whole)
        assert moving <= whole * (1 + 1e-6)


def test_in_series_tasks_that_need_much_memory_end_about_as_soon_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_IN_SERIES", 10_000)
    monkeypatch.setattr(search, "MANY", 10_000)
    problem = memory_bimodal(64, 11_000, 1)
    batch = Batch(problem.tasks, Capacity(problem.cpus, float(problem.memory_bytes or math.inf)))
    one_by_one = search.shortest(batch, one_by_one=True)
    assert search.shortest(batch).makespan_s <= 1.005 * one_by_one.makespan_s


@given(
    wholes=st.lists(st.integers(1, 300) | st.integers(1, 10**100), min_size=1, max_size=4),
    shares=st.lists(st.lists(st.integers(0, 15), min_size=4, max_size=4), min_size=1, max_size=8),
    anyway=st.booleans(),
)
def test_one_number_has_room_where_there_is_enough_of_each_thing(
    wholes: list[int], shares: list[list[int]], anyway: bool
) -> None:
    room = Room(wholes)
    free, left = room.empty, wholes
    everything = [[share * whole // 10 for share, whole in zip(one, wholes, strict=False)] for one in shares]
    for asked in everything:
        enough = all(map(le, asked, left))
        assert (free - room.of(asked) & room.guard == room.guard) == enough
        if enough or anyway:  # what runs already may have more than there is
            free, left = free - room.of(asked), list(map(sub, left, asked))
    if min(left) >= 0:
        assert room.first(free) == left[0]
    assert room.least(list(map(room.of, everything))) == room.of(map(min, zip(*everything, strict=True)))


@pytest.mark.parametrize("seed", range(3))
def test_disk_alone_is_planned_with_as_memory_alone_is(seed: int) -> None:
    """The same needs and the same limit, by another name."""
    problem = memory_tight(16, 40, seed)
    files = [replace(task, memory_bytes=0, disk_bytes=task.memory_bytes) for task in problem.tasks]
    by_memory = plan(problem.tasks, 16, memory_bytes=problem.memory_bytes)
    by_disk = plan(files, 16, disk_bytes=problem.memory_bytes)
    assert (by_disk.placements, by_disk.lower_bound_s) == (by_memory.placements, by_memory.lower_bound_s)
    assert by_disk.reasons == ("memory-aware: disk runs short before CPUs do",)


def test_who_needs_memory_and_who_needs_disk_run_side_by_side() -> None:
    large = [Task(f"large{number}", {1: 1.0}, 8) for number in range(4)]
    full = [Task(f"full{number}", {1: 1.0}, disk_bytes=8) for number in range(4)]
    for name in ("adaptive", "auto", "memory_aware"):
        assert plan([*large, *full], 8, name, memory_bytes=10, disk_bytes=10).makespan_s == 4.0


@settings(max_examples=40)
@given(tasks=BATCH, traffic=st.lists(st.floats(0, 20), min_size=12, max_size=12), name=NAMES)
def test_bandwidth_is_never_over(tasks: list[Task], traffic: list[float], name: str) -> None:
    tasks = [
        Task(task.id, task.times_s, bandwidth_bytes_per_s=rate) for task, rate in zip(tasks, traffic, strict=False)
    ]
    made = plan(tasks, 16, name, bandwidth_bytes_per_s=12.0)
    check(made, tasks, CpuSet(range(16)), bandwidth=12.0)
    by_id = {task.id: task for task in tasks}
    for now in made.placements:
        used = 0.0
        for other in made.placements:
            if other.start_s <= now.start_s < other.end_s:
                used += rate(by_id[other.id], other.threads, 12.0)
        assert used <= 12.0 * (1 + 1e-9)


@pytest.mark.parametrize("name", strategy_names())
def test_who_alone_wants_more_bandwidth_than_there_is_takes_as_long_as_the_bytes_do(name: str) -> None:
    tasks = [Task("a", {1: 1.0, 4: 0.3}, bandwidth_bytes_per_s=6e9)]
    made = plan(tasks, 4, name, bandwidth_bytes_per_s=1e10)
    assert made.makespan_s == made.lower_bound_s == lower_bound(tasks, 4, bandwidth_bytes_per_s=1e10) == 0.6
    assert made.reasons[-1] == "memory bandwidth: 1 of 1 run longer than told, as their bytes do"
    narrow = plan(tasks, 4, name, bandwidth_bytes_per_s=3e9)
    assert (narrow.makespan_s, narrow.placements[0].threads) == (2.0, 1)


@pytest.mark.parametrize("name", strategy_names())
def test_two_that_together_want_more_bandwidth_than_there_is_run_one_after_the_other(name: str) -> None:
    tasks = [Task(one, {1: 1.0}, bandwidth_bytes_per_s=6e9) for one in "ab"]
    assert plan(tasks, 4, name, bandwidth_bytes_per_s=1e10).makespan_s == 2.0


@settings(max_examples=40)
@given(
    tasks=BATCH,
    least=st.lists(st.integers(0, 100), min_size=12, max_size=12),
    more=MORE,
    nodes=st.integers(1, 4),
    files=DISK,
)
def test_no_memory_node_holds_more_than_it_has_nor_the_disk_of_all(
    tasks: list[Task], least: list[int], more: list[dict[int, int] | None], nodes: int, files: list[int]
) -> None:
    by_width = [one and {width: 5 * need for width, need in one.items()} for one in more]
    tasks = [task for task in with_memory(tasks, least, by_width) if all(needs(task, w) <= 100 for w in task.times_s)]
    tasks = with_disk(tasks, files)
    machine = synthetic_machine(nodes=nodes, cores=8, memory_bytes=100)
    made = plan(tasks, machine, "memory_aware", disk_bytes=8)
    check(made, tasks, machine.cpus_online, disk_bytes=8)
    by_id = {task.id: task for task in tasks}
    for now in made.placements:
        running = [other for other in made.placements if other.start_s <= now.start_s < other.end_s]
        for node in machine.numa_nodes:
            held = sum(
                needs(by_id[other.id], other.threads) * len(other.cpus & node.cpus) / len(other.cpus)
                for other in running
            )
            assert held <= node.memory_bytes * (1 + 1e-9)


@pytest.mark.parametrize(("nodes", "wide"), [(2, 201), (3, 201), (1, 150)])
def test_a_width_that_the_memory_nodes_do_not_hold_is_left_for_one_that_they_do(nodes: int, wide: int) -> None:
    machine = synthetic_machine(nodes=nodes, cores=8, memory_bytes=100)
    made = plan([Task("f", {1: 10.0, 2: 6.0}, 50, memory_more_bytes={2: wide - 50})], machine, "memory_aware")
    assert [placement.threads for placement in made.placements] == [1]


def test_what_no_memory_node_holds_runs_alone() -> None:
    machine = synthetic_machine(nodes=2, cores=2, memory_bytes=100)
    tasks = [Task("large", {1: 1.0}, 150), Task("small", {1: 1.0}, 10), Task("other", {1: 1.0}, 60)]
    made = {placement.id: placement for placement in plan(tasks, machine, "memory_aware").placements}
    assert made["large"].end_s <= made["small"].start_s or made["small"].end_s <= made["large"].start_s


@pytest.mark.parametrize("name", strategy_names())
def test_what_the_machine_has_not_is_refused_by_every_strategy(name: str) -> None:
    machine = synthetic_machine(nodes=2, cores=2, memory_bytes=100)
    for limit in (None, 300):
        with pytest.raises(OversubscriptionError, match="task 'large' needs 201 B of memory, but 200 B may be used"):
            plan([Task("large", {1: 1.0}, 201)], machine, name, memory_bytes=limit)
    tasks = [Task(str(number), {1: 1.0}, 60) for number in range(4)]
    check(plan(tasks, machine, name), tasks, machine.cpus_online, 200)
    assert lower_bound(tasks, machine) == lower_bound(tasks, 4, memory_bytes=200)


@pytest.mark.parametrize(("cpus", "width"), [("0-5", 6), ("0-4", 5)])
def test_a_task_takes_the_whole_of_two_memory_nodes_with_unequal_cpus(cpus: str, width: int) -> None:
    machine = replace(synthetic_machine(nodes=2, cores=4, memory_bytes=100), allowed_cpus=CpuSet.parse(cpus))
    tasks = [Task("wide", {width: 1.0}, 60), Task("large", {2: 1.0}, 110)]
    made = plan(tasks, machine, "memory_aware")
    check(made, tasks, machine.allowed_cpus, 200)
    assert made.makespan_s == 2.0


def test_tasks_that_need_no_memory_are_planned_beside_widths_that_do() -> None:
    machine = synthetic_machine(nodes=2, cores=4, memory_bytes=100)
    tasks = [Task(str(number), {1: 10.0, 4: 1.0}, 0, memory_more_bytes={4: 150}) for number in range(4)]
    made = plan(tasks, machine, "memory_aware")
    check(made, tasks, machine.cpus_online, 200)
    assert made.makespan_s == 4.0


@settings(max_examples=40)
@given(tasks=BATCH, least=st.lists(st.integers(0, 100), min_size=12, max_size=12), nearest=st.integers(0, 1))
def test_cpus_of_a_node_without_memory_count_with_the_nearest_that_has_some(
    tasks: list[Task], least: list[int], nearest: int
) -> None:
    tasks = [replace(task, memory_bytes=need) for task, need in zip(tasks, least, strict=False)]
    machine = synthetic_machine(nodes=3, cores=3, memory_bytes=100)  # six CPUs and three: eight do not divide evenly
    nodes = (*machine.numa_nodes[:2], replace(machine.numa_nodes[2], memory_bytes=0))
    far = [[10, 20, 30], [20, 10, 30], [30, 30, 10]]
    far[2][nearest] = 15
    machine = replace(machine, numa_nodes=nodes, distances=Distances((0, 1, 2), tuple(map(tuple, far))))
    made = plan(tasks, machine, "memory_aware")
    check(made, tasks, machine.cpus_online)
    by_id = {task.id: task for task in tasks}
    for now in made.placements:
        running = [other for other in made.placements if other.start_s <= now.start_s < other.end_s]
        for node in (0, 1):
            cpus = nodes[node].cpus | (nodes[2].cpus if node == nearest else CpuSet())
            held = sum(by_id[one.id].memory_bytes * len(one.cpus & cpus) / one.threads for one in running)
            assert held <= 100 * (1 + 1e-9)


def test_widths_that_no_node_holds_are_tried_however_long_they_would_take() -> None:
    """On two nodes at a time the first takes 4 s with three CPUs, sooner than with the one that was asked for."""
    tasks = [
        Task("a", {1: 12.0, 2: 8.0, 3: 4.0}, 110),
        Task("b", {1: 14.0, 2: 10.0}, 150),
        Task("c", {1: 12.0, 2: 6.0, 4: 6.0}, 10),
    ]
    made = plan(tasks, machine := synthetic_machine(nodes=2, cores=2, memory_bytes=100), "memory_aware")
    check(made, tasks, machine.cpus_online)
    assert made.makespan_s == made.lower_bound_s == 14.0


@pytest.mark.parametrize(("kind", "there_bytes"), [("DRAM", 150), ("HBM", 100), ("CXL", 100), ("NVM", 100)])
@pytest.mark.parametrize("listed", [True, False], ids=["distances to it", "none"])
def test_ordinary_memory_without_cpus_is_planned_with(kind: str, there_bytes: int, listed: bool) -> None:
    machine = synthetic_machine(nodes=1, cores=4, memory_bytes=100)
    (node,) = machine.numa_nodes
    beside = replace(node, node_id=1, memory_bytes=50, kind=kind, memory_only=True)
    distances = Distances((0, 1), ((10, 20), (20, 10))) if listed else Distances((0,), ((10,),))
    machine = replace(machine, numa_nodes=(node, beside), distances=distances, allowed_mems=NodeSet([0, 1]))
    task = Task("a", {4: 1.0}, 120)
    if there_bytes < 120:
        with pytest.raises(OversubscriptionError):
            plan([task], machine)
    else:
        assert plan([task], machine).makespan_s == 1.0


def test_cpus_that_several_memory_nodes_list_are_with_the_smallest() -> None:
    machine = synthetic_machine(nodes=3, cores=4, memory_bytes=100)
    nodes = machine.numa_nodes
    machine = replace(machine, numa_nodes=(replace(nodes[0], cpus=CpuSet(range(12))), *nodes[1:]))
    tasks = [Task(str(number), {2: 10.0}, 60) for number in range(6)]
    made = plan(tasks, machine, "memory_aware")
    check(made, tasks, machine.cpus_online)
    assert made.makespan_s == 20.0  # three at a time: a node holds one
    assert all(any(one.cpus <= node.cpus for node in nodes) for one in made.placements)


def test_memory_that_may_not_be_used_is_not_planned_with() -> None:
    """Its CPUs have the memory of the nearest node that may be used."""
    far = ((10, 20, 15), (20, 10, 30), (15, 30, 10))
    machine = synthetic_machine(nodes=3, cores=4, memory_bytes=100)
    machine = replace(machine, allowed_mems=NodeSet([1, 2]), distances=Distances((0, 1, 2), far))
    with pytest.raises(OversubscriptionError, match="needs 201 B of memory, but 200 B may be used"):
        plan([Task("large", {1: 1.0}, 201)], machine)
    tasks = [Task(str(number), {4: 10.0}, 60) for number in range(4)]
    made = plan(tasks, machine, "memory_aware")
    check(made, tasks, machine.cpus_online, 200)
    for now in made.placements:
        running = [other for other in made.placements if other.start_s <= now.start_s < other.end_s]
        for cpus in (CpuSet(range(4, 8)), CpuSet(range(4)) | CpuSet(range(8, 12))):
            assert sum(60 * len(one.cpus & cpus) / 4 for one in running) <= 100


def test_memory_of_a_node_without_cpus_that_may_be_used_is_with_the_nearest() -> None:
    far = ((10, 20, 15), (20, 10, 30), (15, 30, 10))
    machine = synthetic_machine(nodes=3, cores=4, memory_bytes=100)
    machine = replace(machine, allowed_cpus=CpuSet.parse("0-7"), distances=Distances((0, 1, 2), far))
    with pytest.raises(OversubscriptionError, match="needs 301 B of memory, but 300 B may be used"):
        plan([Task("large", {1: 1.0}, 301)], machine)
    tasks = [Task(str(number), {4: 10.0}, 150) for number in range(2)]
    made = plan(tasks, machine, "memory_aware")
    check(made, tasks, machine.allowed_cpus, 300)
    assert [str(one.cpus) for one in made.placements] == ["0-3", "0-3"]  # the other node has 100 B


@pytest.mark.parametrize(("width", "ends_s"), [(10, 15.0), (12, 25.0)])
def test_cpus_that_no_memory_node_lists_are_planned_with(width: int, ends_s: float) -> None:
    """Beside ten of twelve CPUs each node has room for 60 B and a CPU, beside all for none."""
    machine = synthetic_machine(nodes=3, cores=4, memory_bytes=100)
    machine = replace(machine, numa_nodes=machine.numa_nodes[:2])
    tasks = [Task("wide", {width: 10.0}, 50), *(Task(str(number), {1: 5.0}, 60) for number in range(6))]
    made = plan(tasks, machine)
    check(made, tasks, machine.cpus_online, 200)
    assert made.makespan_s == ends_s


@settings(max_examples=40)
@given(
    tasks=BATCH,
    least=st.lists(st.floats(0, 4), min_size=12, max_size=12),
    memory=st.floats(5, 20),
    files=st.lists(st.floats(0, 4), min_size=12, max_size=12),
    name=NAMES,
)
def test_bytes_may_have_parts_and_are_never_over(
    tasks: list[Task], least: list[float], memory: float, files: list[float], name: str
) -> None:
    every = zip(tasks, least, files, strict=False)
    tasks = [replace(task, memory_bytes=need, disk_bytes=files) for task, need, files in every]
    tasks.append(Task("whole", {1: 3.0, 4: 1.0}, math.floor(memory), disk_bytes=5))
    made = plan(tasks, 8, name, memory_bytes=memory, disk_bytes=5.5)
    check(made, tasks, CpuSet(range(8)), memory, disk_bytes=5.5)


@pytest.mark.parametrize("name", strategy_names())
def test_a_byte_that_is_begun_is_taken_whole(name: str) -> None:
    tasks = [Task("a", {1: 1.0}, 2.5), Task("b", {1: 1.0}, 2, memory_more_bytes={1: 0.5})]
    assert plan(tasks, 4, name, memory_bytes=6.9).makespan_s == 1.0
    assert plan(tasks, 4, name, memory_bytes=5.9).makespan_s == 2.0
    with pytest.raises(OversubscriptionError, match="task 'a' needs 3 B of memory, but 2 B may be used"):
        plan(tasks, 4, name, memory_bytes=2.9)


@settings(max_examples=40)
@given(tasks=BATCH, cpus=st.integers(8, 24))
def test_adaptive_is_never_worse_than_any_uniform_width_nor_than_twice_the_bound(tasks: list[Task], cpus: int) -> None:
    made = plan(tasks, cpus, "adaptive")
    assert made.makespan_s <= 2 * made.lower_bound_s * (1 + 1e-9)
    for width in range(max(min(task.times_s) for task in tasks), cpus + 1):
        assert made.makespan_s <= plan(tasks, cpus, "balanced", width=width).makespan_s * (1 + 1e-9)
        assert made.makespan_s <= pool_s(tasks, width, cpus // width) * 1.001


@settings(max_examples=60)
@given(
    family=st.sampled_from([one for one in (*FAMILIES, *UNUSUAL) if one not in BANDWIDTH]),  # these are below
    cpus=st.sampled_from((4, 7, 16, 24, 64)),
    count=st.integers(1, 60),
    seed=st.integers(0, 1000),
    name=st.sampled_from(("adaptive", "auto")),
)
def test_whatever_the_tasks_no_pool_of_workers_of_one_width_ends_sooner(
    family: Family, cpus: int, count: int, seed: int, name: str
) -> None:
    problem = family(cpus, count, seed)
    made = plan(problem.tasks, cpus, name, **problem.limits)
    limits = problem.memory_bytes or math.inf, problem.disk_bytes or math.inf
    check(made, problem.tasks, CpuSet(range(cpus)), limits[0], disk_bytes=limits[1])
    largest = max(task.memory_bytes for task in problem.tasks), max(task.disk_bytes for task in problem.tasks)
    most = min(int(min(cpus, whole // (need or 1))) for need, whole in zip(largest, limits, strict=True))
    for width in range(max(min(task.times_s) for task in problem.tasks), cpus + 1):
        workers = min(most, cpus // width)
        assert made.makespan_s <= pool_s(problem.tasks, width, workers) * 1.001
        assert made.makespan_s <= pool_s(problem.tasks, width, workers, longest_first=True) * 1.001


@settings(max_examples=60)
@given(
    family=st.sampled_from((*MEMORY_TIGHT, half_the_memory, disk_tight, *BANDWIDTH)),
    cpus=st.sampled_from((4, 7, 16, 24, 64)),
    count=st.integers(1, 140),
    seed=st.integers(0, 1000),
    name=st.sampled_from(("adaptive", "memory_aware", "auto")),
)
def test_whatever_is_short_no_list_of_one_width_ends_sooner(
    family: Family, cpus: int, count: int, seed: int, name: str
) -> None:
    problem = family(cpus, count, seed)
    made = plan(problem.tasks, cpus, name, **problem.limits)
    bandwidth, disk_bytes = problem.bandwidth_bytes_per_s or math.inf, problem.disk_bytes or math.inf
    check(made, problem.tasks, CpuSet(range(cpus)), problem.memory_bytes or math.inf, bandwidth, disk_bytes)
    for width in problem.tasks[0].times_s:
        assert made.makespan_s <= list_s(problem, width) * 1.001


@settings(max_examples=40)
@given(tasks=BATCH, needs=st.lists(st.integers(1, 100), min_size=12, max_size=12), small=st.integers(30, 90))
def test_nor_does_one_where_memory_nodes_differ(tasks: list[Task], needs: list[int], small: int) -> None:
    tasks = [Task(task.id, task.times_s, need) for task, need in zip(tasks, needs, strict=False)]
    machine = synthetic_machine(nodes=2, cores=8, memory_bytes=100)
    machine = replace(machine, numa_nodes=(machine.numa_nodes[0], replace(machine.numa_nodes[1], memory_bytes=small)))
    made = plan(tasks, machine, "auto")
    check(made, tasks, machine.cpus_online)
    largest = max(task.memory_bytes for task in tasks)
    for width in range(max(min(task.times_s) for task in tasks), 9):
        workers = sum(min(8 // width, node.memory_bytes // largest) for node in machine.numa_nodes)
        assert made.makespan_s <= pool_s(tasks, width, workers) * 1.001
        assert made.makespan_s <= pool_s(tasks, width, workers, longest_first=True) * 1.001


@pytest.mark.parametrize("seed", range(8))
def test_nor_does_list_scheduling_on_memory_nodes_at_one_width(seed: int) -> None:
    rng = random.Random(seed)
    nodes, cores = rng.choice((2, 4)), rng.choice((4, 8))
    machine = synthetic_machine(nodes=nodes, cores=cores, memory_bytes=100)
    tasks = []
    for number in range(100):
        time_s, serial = rng.lognormvariate(1, 1), rng.uniform(0.01, 0.5)
        times_s = {width: time_s * (serial + (1 - serial) / width) for width in (1, 2, 4)}
        tasks.append(Task(str(number), times_s, rng.randint(1, 100) if seed % 2 else min(100, int(time_s * 8) + 1)))
    made = plan(tasks, machine)
    check(made, tasks, machine.cpus_online, 100 * nodes)
    for width in (1, 2, 4):
        longest, largest = (
            sorted(tasks, key=key) for key in (lambda task: -task.times_s[4], lambda task: -task.memory_bytes)
        )
        for order in (tasks, longest, largest):
            assert made.makespan_s <= list_on_nodes_s(order, width, nodes, cores) * 1.0005


def list_on_nodes_s(tasks: Sequence[Task], width: int, nodes: int, cores: int) -> float:
    """When the last ends where each starts as soon as a node of 100 B has room for it, the first in order first."""
    free = [[100, cores] for _ in range(nodes)]
    waiting, running, now_s, end_s = list(tasks), [], 0.0, 0.0
    while waiting or running:
        for task in list(waiting):
            fitting = [node for node in free if node[0] >= task.memory_bytes and node[1] >= width]
            if fitting:
                node = min(fitting)
                node[0] -= task.memory_bytes
                node[1] -= width
                waiting.remove(task)
                running.append((now_s + task.times_s[width], task, node))
        now_s = end_s = min(map(itemgetter(0), running))
        for one in [one for one in running if one[0] == now_s]:
            running.remove(one)
            one[2][0] += one[1].memory_bytes
            one[2][1] += width
    return end_s


def test_a_task_is_divided_over_the_nodes_with_memory_though_others_have_more_cpus() -> None:
    machine = synthetic_machine(nodes=4, cores=4, memory_bytes=100)
    first, second, *rest = machine.numa_nodes
    machine = replace(machine, numa_nodes=(replace(first, cpus=first.cpus | second.cpus, memory_bytes=10), *rest))
    tasks = [Task("large", {4: 10.0}, 180), *(Task(str(number), {4: 10.0}, 5) for number in range(2))]
    made = plan(tasks, machine, "memory_aware")
    check(made, tasks, machine.cpus_online, 210)
    assert made.makespan_s == 10.0


@settings(max_examples=60)
@given(tasks=BATCH, shares=st.lists(st.floats(0, 2), min_size=12, max_size=12))
def test_nor_does_one_where_bandwidth_is_short(tasks: list[Task], shares: list[float]) -> None:
    tasks = [replace(task, bandwidth_bytes_per_s=12 * share) for task, share in zip(tasks, shares, strict=False)]
    made = plan(tasks, 16, "auto", bandwidth_bytes_per_s=12.0)
    check(made, tasks, CpuSet(range(16)), bandwidth=12.0)
    for width in range(max(min(task.times_s) for task in tasks), 17):
        rates = sorted(
            (rate(task, max(own for own in task.times_s if own <= width), 12.0) for task in tasks), reverse=True
        )
        together = [sum(rates[:count]) <= 12.0 for count in range(1, 16 // width + 1)]
        workers = max(1, together.count(True))
        slow = [replace(task, times_s={w: at_least_s(task, w, 12.0) for w in task.times_s}) for task in tasks]
        assert made.makespan_s <= pool_s(slow, width, workers) * 1.001
        assert made.makespan_s <= pool_s(slow, width, workers, longest_first=True) * 1.001


def test_where_one_alone_uses_all_of_the_bandwidth_each_is_as_wide_as_is_fastest() -> None:
    """A wide run uses all of it, so that nothing is gained by narrow ones."""
    tasks = [
        Task(str(number), {width: 10.0 * (0.05 + 0.95 / width) for width in (1, 4, 16)}, bandwidth_bytes_per_s=5.0)
        for number in range(600)
    ]
    made = plan(tasks, 16, "memory_aware", bandwidth_bytes_per_s=12.0)
    assert made.makespan_s <= sum(at_least_s(task, 16, 12.0) for task in tasks) * (1 + 1e-9)


def pool_s(tasks: Sequence[Task], width: int, workers: int, longest_first: bool = False) -> float:
    """When the last of so many workers is done that each take the next task when they are free."""
    times_s = [task.times_s[max(own for own in task.times_s if own <= width)] for task in tasks]
    free_s = [0.0] * workers
    for time_s in sorted(times_s, reverse=True) if longest_first else times_s:
        free_s[free_s.index(min(free_s))] += time_s
    return max(free_s)


def list_s(problem: Problem, width: int) -> float:
    """When all have ended at one width, where each starts as soon as it fits beside what runs, the longest first."""
    wholes = [
        math.inf if whole is None else whole * (1 + 1e-9)
        for whole in (problem.cpus, problem.memory_bytes, problem.disk_bytes, problem.bandwidth_bytes_per_s)
    ]
    waiting = []
    for task in problem.tasks:
        time_s, rate = problem.bandwidth(task, width)
        waiting.append((time_s, (width, task.memory_bytes, task.disk_bytes, rate)))
    waiting.sort(key=itemgetter(0), reverse=True)
    running: list[tuple[float, Sequence[float]]] = []
    now_s = 0.0
    while waiting:
        for one in waiting.copy():
            time_s, needs = one
            together = map(sum, zip(needs, *(other for _, other in running), strict=True))
            if all(need <= whole for need, whole in zip(together, wholes, strict=True)):
                waiting.remove(one)
                running.append((now_s + time_s, needs))
        now_s = min(end_s for end_s, _ in running) if waiting else max(end_s for end_s, _ in running)
        running = [one for one in running if one[0] > now_s]
    return now_s


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
    wide = [min(task.times_s.values()) for task in tasks if 2 * min(task.times_s) > cpus]
    third = [min(task.times_s.values()) for task in tasks if 3 * min(task.times_s) > cpus]
    fourth = [min(task.times_s.values()) for task in tasks if 4 * min(task.times_s) > cpus]
    few = max(sum(wide), sum(third) / 2, sum(fourth) / 3)
    assert lower_bound(tasks, cpus) == pytest.approx(max(high, few), rel=1e-9)


def test_lower_bound_of_wide_tasks_is_what_few_side_by_side_take() -> None:
    """Of three threads on eight CPUs two run at a time, of five one."""
    assert lower_bound([Task(str(number), {3: 10.0}) for number in range(8)], 8) == pytest.approx(8 * 10 / 2)
    fives = [Task(str(number), {5: 10.0, 8: 8.0}) for number in range(8)]
    assert lower_bound([*fives, Task("small", {1: 1.0})], 8) == pytest.approx(8 * 8)


@pytest.mark.parametrize("family", [many_body, heavy_tail, memory_tight])
def test_ten_times_as_many_tasks_on_ten_times_the_node_have_the_same_bound(family: Family) -> None:
    few = family(64, 1_000, 0)
    memory_bytes = few.memory_bytes and 10 * few.memory_bytes
    many = [replace(task, id=f"{task.id}-{number}") for number in range(10) for task in few.tasks]
    once_s = lower_bound(few.tasks, 64, memory_bytes=few.memory_bytes)
    assert lower_bound(many, 640, memory_bytes=memory_bytes) == pytest.approx(once_s, rel=1e-9)


def test_lower_bound_is_the_longest_task_at_its_best_width() -> None:
    assert lower_bound([Task("big", {1: 10.0, 2: 6.0, 4: 7.0}), Task("small", {1: 0.1})], 64) == 6.0
    assert lower_bound([], 4) == 0.0


def test_lower_bound_with_memory_is_what_must_be_held() -> None:
    """Bytes x seconds over bytes; and of tasks of which only two fit side by side, two at a time."""
    small = [Task(str(number), {1: 10.0}, memory_bytes=1) for number in range(8)]
    assert lower_bound(small, 8) == 10.0
    assert lower_bound(small, 8, memory_bytes=5) == pytest.approx(8 * 10 / 5)
    large = [Task(str(number), {1: 10.0}, memory_bytes=2) for number in range(4)]
    assert lower_bound(large, 8, memory_bytes=5) == pytest.approx(2 * 10)


def test_lower_bound_with_disk_is_what_must_be_kept() -> None:
    small = [Task(str(number), {1: 10.0}, disk_bytes=1) for number in range(8)]
    assert lower_bound(small, 8, disk_bytes=5) == pytest.approx(8 * 10 / 5)
    large = [Task(str(number), {1: 10.0}, memory_bytes=1, disk_bytes=2) for number in range(4)]
    assert lower_bound(large, 8, memory_bytes=4, disk_bytes=5) == pytest.approx(2 * 10)


def test_lower_bound_with_bandwidth_is_what_must_be_moved() -> None:
    tasks = [Task(str(number), {1: 10.0, 2: 5.0}, bandwidth_bytes_per_s=3.0) for number in range(4)]
    assert lower_bound(tasks, 8, bandwidth_bytes_per_s=6.0) == pytest.approx(4 * 30 / 6)


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


@pytest.mark.parametrize("strategy", ["adaptive", "memory_aware"])
def test_tasks_stay_within_cache_domains_where_they_fit(strategy: str) -> None:
    machine = synthetic_machine(packages=2, nodes=2, llcs=2, cores=4)
    tasks = [Task(f"wide{number}", {4: 10.0}) for number in range(5)] + [Task(f"two{n}", {2: 3.0}) for n in range(30)]
    for placement in plan(tasks, machine, strategy).placements:
        assert any(placement.cpus <= domain.cpus for domain in machine.llc_domains)


def test_a_task_wider_than_a_cache_domain_stays_on_one_memory_node() -> None:
    machine = synthetic_machine(packages=2, nodes=2, llcs=2, cores=4)
    made = plan([Task(str(number), {8: 1.0}) for number in range(8)], machine, "adaptive")
    for placement in made.placements:
        assert any(placement.cpus <= node.cpus for node in machine.numa_nodes)


def test_strategies_are_found_under_either_spelling() -> None:
    assert set(strategy_names()) >= {"adaptive", "auto", "balanced", "memory_aware"}
    assert get_strategy("Balanced") is get_strategy("balanced")
    assert get_strategy("memory-aware") is get_strategy("memory_aware")


def test_built_in_strategies_are_the_entry_points_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    package = "qcthreads.planning.strategies"
    assert project["entry-points"]["qcthreads.strategies"] == {name: f"{package}.{name}:{name}" for name in BUILT_IN}
    for name in BUILT_IN:
        assert get_strategy(name).__module__ == f"{package}.{name}"


def test_an_absent_strategy_is_refused_and_the_present_ones_are_listed() -> None:
    with pytest.raises(InputError, match=r"no strategy 'fastest'; there are: .*adaptive, auto, .*balanced"):
        plan([Task("a", {1: 1.0})], 2, "fastest")


@pytest.mark.parametrize("name", ["adaptive", "memory_aware"])
def test_one_width_for_all_is_refused_where_each_has_its_own(name: str) -> None:
    with pytest.raises(InputError, match=f"asked of the strategy {name}, which gives each task a width of its own"):
        plan([Task("a", {1: 1.0})], 2, name, width=1)


def test_auto_takes_the_simplest_that_ends_soonest_and_says_why() -> None:
    small = [Task(str(number), {1: 1.0, 2: 0.9}) for number in range(64)]
    assert plan(small, 16).reasons[0].startswith("balanced, 16 workers x 1 thread for 64 tasks")
    large = [*small, Task("large", {1: 100.0, 2: 50.0, 4: 25.0, 8: 13.0})]
    assert plan(large, 16).reasons[0].startswith("adaptive: a width for each task takes")
    hungry = [Task(task.id, task.times_s, 2) for task in small]
    assert plan(hungry, 16, memory_bytes=8).reasons[0].startswith("memory-aware: memory runs short")
    machine = synthetic_machine(nodes=2, cores=8, memory_bytes=8)
    four = [Task(task.id, task.times_s, 3) for task in small[:4]]
    assert plan(four, machine).reasons[0].startswith("memory-aware: a memory node may not hold")
    made = [plan(small, 16), plan(large, 16), plan(hungry, 16, memory_bytes=8), plan(small, 16, width=2)]
    assert [one.chosen for one in made] == ["balanced", "adaptive", "memory_aware", "balanced"]
    assert {one.strategy for one in made} == {"auto"}


@pytest.mark.parametrize("name", strategy_names())
def test_no_tasks_is_an_empty_plan(name: str) -> None:
    made = plan([], 4, name)
    assert (made.placements, made.makespan_s, made.lower_bound_s) == ((), 0.0, 0.0)


@pytest.mark.parametrize("name", strategy_names())
def test_tasks_that_take_no_time_are_placed(name: str) -> None:
    tasks = [Task(str(number), {1: 0.0, 4: 0.0}, 5) for number in range(9)] + [Task("long", {2: 1.0}, 5)]
    made = plan(tasks, 4, name, memory_bytes=10)
    check(made, tasks, CpuSet(range(4)), 10)
    assert made.makespan_s == 1.0


@settings(max_examples=40)
@given(
    tasks=BATCH,
    needs=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    traffic=st.lists(st.floats(0, 10), min_size=12, max_size=12),
)
def test_the_bound_with_memory_and_bandwidth_is_not_below_either_nor_above_any_plan(
    tasks: list[Task], needs: list[int], traffic: list[float]
) -> None:
    tasks = [Task(task.id, task.times_s, need, rate) for task, need, rate in zip(tasks, needs, traffic, strict=False)]
    either_s = max(lower_bound(tasks, 16, memory_bytes=4), lower_bound(tasks, 16, bandwidth_bytes_per_s=12.0))
    bound_s = lower_bound(tasks, 16, memory_bytes=4, bandwidth_bytes_per_s=12.0)
    assert bound_s >= either_s * (1 - 1e-9)
    for name in strategy_names():
        made = plan(tasks, 16, name, memory_bytes=4, bandwidth_bytes_per_s=12.0)
        assert made.makespan_s >= bound_s * (1 - 1e-9)


@given(tasks=BATCH, least=st.lists(st.integers(0, 4), min_size=12, max_size=12), more=MORE)
def test_the_bound_with_memory_counts_both(
    tasks: list[Task], least: list[int], more: list[dict[int, int] | None]
) -> None:
    tasks = [task for task in with_memory(tasks, least, more) if fit([task], 4)]
    bound_s = lower_bound(tasks, 16, memory_bytes=4)
    areas = [
        min(needs(task, width) * time_s for width, time_s in task.times_s.items() if needs(task, width) <= 4)
        for task in tasks
    ]
    large = sum(min(task.times_s.values()) for task in tasks if task.memory_bytes > 2)
    assert bound_s >= max(lower_bound(tasks, 16), sum(areas) / 4, large) * (1 - 1e-9)
    assert plan(tasks, 16, memory_bytes=4).makespan_s >= bound_s * (1 - 1e-9)


@settings(max_examples=60)
@given(tasks=BATCH, least=st.lists(st.integers(0, 4), min_size=12, max_size=12), files=DISK)
def test_the_bound_with_memory_and_disk_is_not_below_either_nor_above_any_plan(
    tasks: list[Task], least: list[int], files: list[int]
) -> None:
    tasks = with_disk(with_memory(tasks, least, [None] * 12), files)
    either_s = [lower_bound(tasks, 16, memory_bytes=4), lower_bound(tasks, 16, disk_bytes=6)]
    bound_s = lower_bound(tasks, 16, memory_bytes=4, disk_bytes=6)
    assert bound_s >= max(either_s) * (1 - 1e-9)
    assert plan(tasks, 16, memory_bytes=4, disk_bytes=6).makespan_s >= bound_s * (1 - 1e-9)


@pytest.mark.parametrize(
    ("tasks", "error", "words"),
    [
        ([Task("a", {1: 1.0}), Task("a", {1: 1.0})], InputError, "two tasks are called 'a'"),
        ([Task("a", {})], InputError, "lists no width"),
        ([Task("a", {0: 1.0})], InputError, "widths start at 1"),
        ([Task("a", {1: math.inf})], InputError, "inf s at width 1"),
        ([Task("a", {1: 1e308})], InputError, r"task 'a': 1e\+308 s at width 1; .* times go from 0 to 1e\+100 s"),
        ([Task("a", {1: 1.0}, 1e308)], InputError, r"memory_bytes is 1e\+308; give 0 or more, below"),
        ([Task("a", {"1": 1.0})], InputError, "task 'a': times_s is {'1': 1.0}; give seconds by width, a whole"),
        ([Task("a", {True: 1.0})], InputError, "times_s is {True: 1.0}; give seconds by width"),
        ([Task("a", {10**30: 1.0})], InputError, "times_s is {10+: 1.0}; give seconds by width"),
        ([Task("a", {1: 10**400})], InputError, "times_s is {1: 10+; give seconds by width"),
        ([Task("a", {1.5: 1.0})], InputError, "times_s is {1.5: 1.0}; give seconds by width"),
        ([Task("a", {1: 1.0}), Task("b", {1: None})], InputError, "task 'b': times_s is {1: None}; give seconds by"),
        ([Task("a", {1: "1"})], InputError, "times_s is {1: '1'}; give seconds by width"),
        ([Task("a", 1.0)], InputError, "task 'a': times_s is 1.0; give seconds by width"),
        ([Task(1, {1: 1.0})], InputError, "task 1: id is 1; give a text"),
        ([Task("a", {1: 1.0}, "4GB")], InputError, "memory_bytes is '4GB'; give a number of bytes"),
        ([Task("a", {1: 1.0}), {"id": "b"}], InputError, "{'id': 'b'} is among the tasks; give qcthreads.Task"),
        (None, InputError, "None was given for the tasks; give a list"),
        ([Task("a", {1: 1.0}, -1)], InputError, "memory_bytes is -1; give 0 or more"),
        ([Task("a", {1: 1.0}, disk_bytes=-1)], InputError, "disk_bytes is -1; give 0 or more"),
        ([Task("a", {1: 1.0}, disk_bytes="4GB")], InputError, "disk_bytes is '4GB'; give a number of bytes"),
        ([Task("a", {1: 1.0}, memory_more_bytes={1: -1})], InputError, "memory_more_bytes is {1: -1}; give 0 or more"),
        (
            [Task("a", {1: 1.0}, memory_more_bytes={1: "x"})],
            InputError,
            "memory_more_bytes is {1: 'x'}; give 0 or more",
        ),
        (
            [Task("a", {1: 1.0}, memory_more_bytes=[1])],
            InputError,
            r"memory_more_bytes is \[1\]; give 0 or more bytes by",
        ),
        ([Task("a", {1: 1.0}, memory_more_bytes={1: 10**400})], InputError, "memory_more_bytes is {1: 10+; give 0 or"),
        ([Task("a", {1: 1.0}, 10**400)], InputError, "task 'a': memory_bytes is 10{59}; give 0 or more, below"),
        ([Task("a", {1: 1.0}, disk_bytes=10**400)], InputError, "disk_bytes is 10{59}; give 0 or more, below"),
        ([Task("a", {1: 1.0}, 0, 10**400)], InputError, "bandwidth_bytes_per_s is 10{59}; give 0 or more, below"),
        (
            [Task("a", {1: 1.0}), Task("b", {1: 1.0}, bandwidth_bytes_per_s=math.nan)],
            InputError,
            "task 'b': bandwidth_bytes_per_s is nan",
        ),
        (
            [Task("a", {8: 1.0})],
            OversubscriptionError,
            "needs 8 threads at least, but may have 4 CPUs; give its time with fewer threads, or",
        ),
        (
            [Task("ok", {1: 1.0}), *(Task(one, {8: 1.0}) for one in "abcdefgh")],
            OversubscriptionError,
            "task 'a' needs .*; nor do 'b', 'c', 'd', 'e', 'f' and 2 more fit; give",
        ),
        ([Task("a", {1: 1.0}, 2048)], OversubscriptionError, "2 KiB of memory, but 1 KiB may be used; raise the"),
        (
            [Task("a", {1: 1.0}, 1, disk_bytes=2048), Task("b", {1: 1.0}, 2048)],
            OversubscriptionError,
            "'a' needs 2 KiB of disk, but 1.5 KiB may be used; nor do 'b' fit; raise the limit where the machine",
        ),
        (
            [Task("a", {1: 1.0, 2: 1.0, 8: 1.0}, 512, memory_more_bytes={1: 4096, 2: 1536})],
            OversubscriptionError,
            "needs 2 KiB of memory, but 1 KiB may be used",
        ),
        (
            [Task("a", {1: 1.0, 2: 1.0}, 0, memory_more_bytes={1: 2048, 2: 4096})],
            OversubscriptionError,
            "task 'a' needs 2 KiB of memory, but 1 KiB may be used",
        ),
    ],
)
def test_tasks_that_cannot_be_planned_are_refused_by_name(
    tasks: list[Task], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        plan(tasks, 4, memory_bytes=1024, disk_bytes=1536)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"machine_or_cpus": "4"}, "'4' is no machine; give a Machine, a CpuSet, or a whole number of CPUs"),
        ({"machine_or_cpus": 4.0}, "4.0 is no machine"),
        ({"machine_or_cpus": True}, "True is no machine"),
        ({"machine_or_cpus": 10**9}, "1000000000 CPUs are more than any node has; give at most 65536"),
        ({"memory_bytes": "4GB"}, "memory_bytes is '4GB'; give a number above 0"),
        ({"disk_bytes": 0}, "disk_bytes is 0; give a number above 0"),
        ({"memory_bytes": 10**400}, "memory_bytes is 10{59}; give a number above 0, or"),
        ({"bandwidth_bytes_per_s": True}, "bandwidth_bytes_per_s is True; give a number above 0"),
        ({"strategy": None}, "the strategy is None; give the name of one: adaptive, auto"),
        ({"width": "1"}, "workers of width '1' were asked for"),
        ({"width": True}, "workers of width True were asked for"),
    ],
)
def test_what_is_no_machine_limit_or_name_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(**{"tasks": [Task("a", {1: 1.0})], "machine_or_cpus": 4, **asked})
    if asked.keys() <= {"machine_or_cpus", "memory_bytes", "bandwidth_bytes_per_s", "disk_bytes"}:
        with pytest.raises(InputError, match=words):
            lower_bound(**{"tasks": [Task("a", {1: 1.0})], "machine_or_cpus": 4, **asked})


def test_numbers_of_numpy_are_numbers() -> None:
    tasks = [Task("a", {np.int64(2): np.float32(1.5)}, np.int32(3), np.float64(2))]
    made = plan(tasks, np.int16(2), memory_bytes=np.int64(4), bandwidth_bytes_per_s=np.float32(4))
    assert made.makespan_s == 1.5


def test_bytes_that_no_machine_integer_holds_are_moved_as_fast_as_the_bandwidth_allows() -> None:
    made = plan([Task("a", {1: 10}, bandwidth_bytes_per_s=2**70)], 1, bandwidth_bytes_per_s=2**69)
    assert made.makespan_s == pytest.approx(20.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", strategy_names())
def test_the_longest_times_there_may_be_are_still_numbers(name: str) -> None:
    tasks = [Task(str(number), {1: 1e100, 2: 0.9e100}, 10**100, 1e-100) for number in range(50)]
    made = plan(tasks, 4, name, memory_bytes=2 * 10**100, bandwidth_bytes_per_s=1.5e-100)
    assert 0 < made.lower_bound_s <= made.makespan_s < math.inf


@pytest.mark.parametrize("width", [0, 5])
def test_a_width_the_machine_has_not_is_refused(width: int) -> None:
    with pytest.raises(InputError, match=f"workers of width {width} were asked for, but the CPUs are 0-3, 4 in all"):
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


@pytest.mark.parametrize("enabled", [True, False])
def test_whether_garbage_is_collected_is_as_it_was_also_after_a_refusal(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        plan([Task("a", {1: 1.0})], 1)
        assert gc.isenabled() == enabled
        with pytest.raises(InputError):
            plan([Task("a", {})], 1)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
