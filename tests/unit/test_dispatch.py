"""The dispatcher under a simulated clock: every task once, nothing twice, never too much, and how it adapts."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from bench_dynamic import simulated_s, told
from families import FAMILIES, MEMORY_TIGHT, Problem, many_body
from hypothesis import given, settings
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, OversubscriptionError
from qcthreads.planning import Task, plan
from qcthreads.planning.batch import Batch
from qcthreads.planning.bounds import bounds_of, lower_bound
from qcthreads.planning.correction import Correction, Known
from qcthreads.planning.cost import assumed_speedup
from qcthreads.planning.course import course_of
from qcthreads.planning.dispatch import Dispatcher
from qcthreads.planning.model import Capacity, Running
from qcthreads.planning.simulate import Change, Simulated, simulate

FACTORS = st.lists(st.floats(0.2, 5.0), min_size=12, max_size=12)
TIMES = st.dictionaries(st.integers(1, 6), st.floats(0.01, 100.0), min_size=1, max_size=4)
BATCH = st.lists(TIMES, min_size=1, max_size=12)
CPUS = CpuSet(range(8))


def tasks_of(batch: Sequence[dict[int, float]], least: Sequence[int] = (), further: Sequence[int] = ()) -> list[Task]:
    """``least``: bytes that each needs; ``further``: what each of its threads but the first adds."""
    none = [0] * len(batch)
    every = zip(batch, least or none, further or none, strict=False)
    return [
        Task(f"f{number}", times_s, need, memory_more_bytes={width: (width - 1) * more for width in times_s})
        for number, (times_s, need, more) in enumerate(every)
    ]


def needs(task: Task, width: int) -> int:
    """Bytes of memory, at that width."""
    return task.memory_bytes + (task.memory_more_bytes or {}).get(width, 0)


def check(run: Simulated, tasks: Sequence[Task], changes: Sequence[Change], disk_bytes: float = math.inf) -> None:
    """Against the records of the run alone."""
    by_id = {task.id: task for task in tasks}
    assert sorted(one.id for one in run.placements) == sorted(by_id)
    for one in run.placements:
        assert one.threads in by_id[one.id].times_s
        assert len(one.cpus) == one.threads
        there = [change for change in changes if change.at_s <= one.start_s][-1]
        assert one.cpus <= there.cpus
    for one, other in itertools.combinations(run.placements, 2):
        if one.start_s < other.end_s and other.start_s < one.end_s:
            assert one.cpus.isdisjoint(other.cpus)
    granted = dict(zip((one.id for one in run.placements), run.granted_bytes, strict=True))
    for now in run.placements:
        there = [change for change in changes if change.at_s <= now.start_s][-1]
        running = [one.id for one in run.placements if one.start_s <= now.start_s < one.end_s]
        assert sum(granted[task_id] for task_id in running) <= there.memory_bytes
        assert sum(by_id[task_id].disk_bytes for task_id in running) <= disk_bytes
        assert granted[now.id] >= needs(by_id[now.id], now.threads)


@pytest.mark.parametrize("left_s", [10.0, 100.0])
def test_memory_that_a_running_task_holds_counts_in_the_bound_and_makes_the_others_wider(left_s: float) -> None:
    """It leaves seven CPUs and memory for one: so with one thread these take 120 s, with seven 36 s."""
    tasks = [Task(str(number), {1: 10.0, 2: 6.0, 4: 4.0, 7: 3.0}, 10) for number in range(12)]
    batch, beside = Batch.of(tasks, Capacity(8, 80)), [Running(left_s, 1, 69)]
    held = 12 * 10 * 3.0 + 69 * left_s
    assert max(bound_s for bound_s, _ in bounds_of(batch, beside)) >= held / 80 * (1 - 1e-9)
    assert min(course_of(batch, beside).widths) > 1


def test_where_there_is_no_memory_any_more_what_needs_none_is_bounded_by_cpus() -> None:
    batch = Batch.of([Task("f", {1: 10.0})], Capacity(8, 0))
    assert [bound_s for bound_s, _ in bounds_of(batch, [Running(2.0, 1, 69)])] == [10.0]


@settings(max_examples=80)
@given(batch=BATCH, factors=FACTORS, known=st.sampled_from(["seconds", "sizes", "nothing"]), start_up_s=st.floats(0, 5))
def test_every_task_runs_once_at_a_listed_width_and_the_same_each_time(
    batch: list[dict[int, float]], factors: list[float], known: Known, start_up_s: float
) -> None:
    true = tasks_of([{w: t * factor for w, t in one.items()} for one, factor in zip(batch, factors, strict=False)])
    changes = [Change(0.0, CPUS)]

    def run() -> Simulated:
        dispatcher = Dispatcher(tasks_of(batch), 8, known=known, start_up_s=start_up_s)
        return simulate(dispatcher, true, changes, start_up_s=start_up_s)

    made = run()
    check(made, true, changes)
    assert run() == made
    assert made.makespan_s >= lower_bound(true, 8) * (1 - 1e-9)


@settings(max_examples=80)
@given(
    batch=BATCH,
    factors=FACTORS,
    least=st.lists(st.integers(0, 10), min_size=12, max_size=12),
    further=st.lists(st.integers(0, 5), min_size=12, max_size=12),
    files=st.lists(st.integers(0, 10), min_size=12, max_size=12),
    steps=st.lists(st.tuples(st.floats(0.1, 200), st.sets(st.integers(0, 11)), st.integers(0, 40)), max_size=6),
)
def test_cpus_and_memory_that_come_and_go_are_kept_to_and_disk(
    batch: list[dict[int, float]],
    factors: list[float],
    least: list[int],
    further: list[int],
    files: list[int],
    steps: list[tuple[float, set[int], int]],
) -> None:
    taken = [{w: t * f for w, t in one.items()} for one, f in zip(batch, factors, strict=False)]
    told, true = (
        [replace(task, disk_bytes=need) for task, need in zip(tasks_of(one, least, further), files, strict=False)]
        for one in (batch, taken)
    )
    # In the end everything is there, or what needs much would wait forever.
    changes = [Change(0.0, CPUS, 20), *(Change(at, CpuSet(cpus), memory) for at, cpus, memory in sorted(steps))]
    changes.append(Change(1e4, CpuSet(range(12)), 40))
    dispatcher = Dispatcher(told, 12, known="sizes", memory_bytes=40, disk_bytes=15)
    check(simulate(dispatcher, true, changes), true, changes, disk_bytes=15)


def test_the_last_tasks_widen_over_idle_cpus() -> None:
    tasks = [Task(f"f{number}", {w: 10 / assumed_speedup(w, 0.95) for w in (1, 2, 4, 8)}) for number in range(17)]
    run = simulate(Dispatcher(tasks, 16), tasks, [Change(0.0, CpuSet(range(16)))])
    assert sorted(one.threads for one in run.placements) == [1] * 16 + [8]
    assert run.makespan_s == pytest.approx(10 + tasks[0].times_s[8])


def test_where_few_may_run_at_once_they_have_the_cpus_that_others_cannot_use() -> None:
    tasks = [Task(f"f{number}", {1: 1.0, 2: 0.9, 4: 0.85}) for number in range(6)]
    for at_once, width, makespan_s in ((1, 4, 6 * 0.85), (2, 2, 3 * 0.9)):
        dispatcher = Dispatcher(tasks, 4, at_once=at_once)
        assert dispatcher.forecast(4).makespan_s == pytest.approx(makespan_s)
        run = simulate(dispatcher, tasks, [Change(0.0, CpuSet(range(4)))])
        assert run.makespan_s == pytest.approx(makespan_s)
        assert run.placements[0].threads == width
    shrinking = simulate(
        Dispatcher(tasks, 4, at_once=1), tasks, [Change(0.0, CpuSet(range(4))), Change(0.5, CpuSet([1]))]
    )
    assert [one.threads for one in shrinking.placements] == [4, 1, 1, 1, 1, 1]


def test_no_tasks_take_no_time() -> None:
    assert Dispatcher([], 2).forecast(2).makespan_s == 0.0


def test_where_one_may_run_at_once_and_threads_slow_it_down_it_has_one() -> None:
    tasks = [Task(f"f{number}", {1: 1.0, 2: 1.2}) for number in range(4)]
    run = simulate(Dispatcher(tasks, 2, at_once=1), tasks, [Change(0.0, CpuSet(range(2)))])
    assert [one.threads for one in run.placements] == [1] * 4
    assert run.makespan_s == pytest.approx(4.0) == Dispatcher(tasks, 2, at_once=1).forecast(2).makespan_s


def test_a_wider_worker_that_costs_more_than_it_gains_is_not_started() -> None:
    tasks = [Task(f"f{number}", {1: 0.10, 2: 0.06}) for number in range(9)]
    run = simulate(Dispatcher(tasks, 2, start_up_s=1.5), tasks, [Change(0.0, CpuSet(range(2)))], start_up_s=1.5)
    assert {one.threads for one in run.placements} == {1}
    assert run.makespan_s == pytest.approx(1.5 + 5 * 0.10)


def test_a_wider_worker_is_started_once_for_all_that_it_computes() -> None:
    tasks = [Task(f"f{number}", {1: 1.0, 2: 0.7}, 60) for number in range(40)]  # there is memory for one at a time
    dispatcher = Dispatcher(tasks, 2, memory_bytes=100, start_up_s=2.0, workers={1: 2})
    run = simulate(dispatcher, tasks, [Change(0.0, CpuSet(range(2)), 100)], start_up_s=2.0)
    assert {one.threads for one in run.placements} == {2}
    assert run.makespan_s == pytest.approx(2.0 + 40 * 0.7)


@pytest.mark.parametrize(("seconds", "started"), [(0.1, False), (10.0, True)])
def test_a_worker_is_started_only_where_those_there_are_not_sooner(seconds: float, started: bool) -> None:
    tasks = [Task(f"a{number}", {1: seconds}, kind="a") for number in range(4)]
    tasks += [Task("b", {1: 0.01}, kind="b")]
    dispatcher = Dispatcher(tasks, 2, start_up_s=2.0, worker_of=lambda kind, _: kind, workers={"a": 1, "b": 1})
    first, second = dispatcher.next(0.0, CpuSet([0, 1])), dispatcher.next(0.0, CpuSet([1]))
    assert first is not None
    assert first.id.startswith("a")
    assert second is not None
    assert second.id.startswith("a") == started
    dispatcher.ended(second.id, 0.01)
    assert (dispatcher.next(0.01, CpuSet([1])) is not None) == started


def test_a_worker_that_is_starting_is_waited_for_and_others_get_their_tasks_meanwhile() -> None:
    tasks = [Task("b", {1: 0.3}, kind="b"), *(Task(f"a{number}", {1: 0.1}, kind="a") for number in range(2))]
    dispatcher = Dispatcher(tasks, 2, start_up_s=2.0, worker_of=lambda kind, _: kind, workers={"a": 1, "b": 1})
    now_s = 0.0
    for _ in range(2):
        start = dispatcher.next(now_s, CpuSet([0]), soon=1, starting={"b": 1})
        assert start is not None
        assert start.id.startswith("a")
        now_s += 0.1
        dispatcher.ended(start.id, now_s)
    assert dispatcher.next(now_s, CpuSet([0]), soon=1, starting={"b": 1}) is None
    start = dispatcher.next(now_s, CpuSet([0, 1]))
    assert start is not None
    assert (start.id, start.expected_s) == ("b", pytest.approx(0.3))


@pytest.mark.parametrize(("seconds", "waits"), [(0.1, False), (10.0, True)])
def test_the_last_waits_to_be_wide_for_a_cpu_on_which_a_worker_starts_only_where_it_gains(
    seconds: float, waits: bool
) -> None:
    tasks = [Task("last", {1: seconds, 2: 0.6 * seconds})]
    dispatcher = Dispatcher(tasks, 2, start_up_s=1.0, worker_of=lambda *_: "any", workers={"any": 2})
    start = dispatcher.next(0.0, CpuSet([0]), soon=1, starting={"any": 1})
    assert (start is None) == waits


@pytest.mark.parametrize(("measured_s", "started"), [(None, False), (4.0, False), (0.3, True)])
def test_what_starts_were_measured_to_take_counts_once_it_is_known(measured_s: float | None, started: bool) -> None:
    """The worker that is there has the 0.8 s that are left to do; what others took to start does not count."""
    tasks = [Task(f"a{number}", {1: 0.2}) for number in range(5)]
    dispatcher = Dispatcher(tasks, 2, start_up_s=2.0, workers={1: 1})
    starts_s = {2: 0.1} if measured_s is None else {1: measured_s, 2: 0.1}
    first = dispatcher.next(0.0, CpuSet([0, 1]), starts_s=starts_s)
    assert first is not None
    dispatcher.ended(first.id, 0.2)
    assert dispatcher.next(0.2, CpuSet([0, 1]), starts_s=starts_s) is not None
    second = dispatcher.next(0.2, CpuSet([1]), starts_s=starts_s)
    assert (second is not None) == started
    if second is not None:
        assert second.expected_s == pytest.approx(0.2 + 0.3)


@pytest.mark.parametrize(("many", "started"), [(2, False), (3, True)])
def test_another_worker_is_started_only_where_it_is_ready_before_those_there_get_to_the_last(
    many: int, started: bool
) -> None:
    """The worker that is there gets to the second in 0.9 s, to the third in 1.8 s; another is ready in 1.0 s."""
    tasks = [Task(f"a{number}", {1: 0.9}) for number in range(many)]
    dispatcher = Dispatcher(tasks, 2, start_up_s=1.0, workers={1: 1})
    assert dispatcher.next(0.0, CpuSet([0, 1])) is not None
    assert (dispatcher.next(0.0, CpuSet([1])) is not None) == started


def test_where_no_other_worker_is_worth_its_start_the_one_there_has_all_cpus() -> None:
    """Side by side at one thread they would end 0.9 s after another has started, 2 s from now."""
    tasks = [Task(f"a{number}", {1: 0.9, 2: 0.8}) for number in range(2)]
    dispatcher = Dispatcher(tasks, 2, start_up_s=2.0, worth=1.1, worker_of=lambda *_: "any", workers={"any": 1})
    run = simulate(dispatcher, tasks, [Change(0.0, CpuSet(range(2)))], start_up_s=2.0)
    assert [one.threads for one in run.placements] == [2, 2]


@pytest.mark.filterwarnings("error")
def test_what_is_too_wide_for_the_cpus_of_now_waits_for_more_without_a_word() -> None:
    tasks = [Task("wide", {4: 1.0})]
    dispatcher = Dispatcher(tasks, 4, start_up_s=2.0, worker_of=lambda *_: "any", workers={"any": 1})
    assert dispatcher.next(0.0, CpuSet([0, 1])) is None
    assert dispatcher.next(1.0, CpuSet(range(4))) is not None


def test_beside_a_worker_that_starts_for_little_no_second_one_is_started() -> None:
    """Both would be ready at the same time, and the second would save half of 0.07 s."""
    tasks = [Task(f"a{number}", {1: 0.01}) for number in range(7)]
    dispatcher = Dispatcher(tasks, 2, start_up_s=2.0)
    assert dispatcher.next(0.0, CpuSet([0, 1])) is not None
    assert dispatcher.next(0.0, CpuSet([1])) is None


def test_of_a_kind_that_takes_any_width_no_second_worker_is_started_for_another_width() -> None:
    tasks = [Task("dimer", {2: 5.0}), Task("monomer", {1: 0.1}), Task("other", {1: 0.1})]
    dispatcher = Dispatcher(tasks, 2, start_up_s=2.0, worker_of=lambda *_: "any", workers={"any": 1})
    now_s, starts = 0.0, []
    while dispatcher.waiting:
        start = dispatcher.next(now_s, CpuSet(range(2)))
        assert start is not None
        assert dispatcher.next(now_s, CpuSet(range(start.threads, 2))) is None
        assert start.expected_s == pytest.approx(
            tasks[["dimer", "monomer", "other"].index(start.id)].times_s[start.threads]
        )
        now_s += start.expected_s
        dispatcher.ended(start.id, now_s)
        starts.append(start.id)
    assert sorted(starts) == ["dimer", "monomer", "other"]


def test_many_small_tasks_are_run_at_one_thread_each_and_one_large_among_them_wide() -> None:
    small = [Task(f"s{number}", {w: 1 / assumed_speedup(w) for w in (1, 2)}) for number in range(60)]
    run = simulate(Dispatcher(small, 2, known="sizes"), small, [Change(0.0, CpuSet(range(2)))])
    assert {one.threads for one in run.placements[:-1]} == {1}
    large = Task("large", {1: 100.0, 2: 55.0})
    run = simulate(Dispatcher([*small[:10], large], 2), [*small, large], [Change(0.0, CpuSet(range(2)))])
    assert next(one.threads for one in run.placements if one.id == "large") == 2
    assert run.makespan_s < 100


def test_cpus_that_appear_are_used_and_what_runs_goes_on_where_its_cpus_went() -> None:
    tasks = [Task(f"f{number}", {1: 10.0}) for number in range(8)]
    more = simulate(Dispatcher(tasks, 4), tasks, [Change(0.0, CpuSet([0])), Change(5.0, CpuSet(range(4)))])
    assert more.makespan_s == pytest.approx(25)  # 1 at 0 s, 3 at 5 s, then 4 more
    fewer = simulate(Dispatcher(tasks, 4), tasks, [Change(0.0, CpuSet(range(4))), Change(5.0, CpuSet([0]))])
    assert [one.start_s for one in fewer.placements] == [0, 0, 0, 0, 10, 20, 30, 40]


@pytest.mark.parametrize("takes_s", [10.0, 1.0])
def test_the_plan_is_redone_when_tasks_have_ended_far_from_their_estimates(takes_s: float) -> None:
    """The longest go first: as soon as more than a hundredth have shown that theirs are short, it is the others."""

    def batch(long_s: float) -> list[Task]:
        long = [Task(f"long{number}", {1: long_s}, kind="long") for number in range(100)]
        return [*long, *(Task(f"other{number}", {1: 9.0}, kind="other") for number in range(100))]

    run = simulate(Dispatcher(batch(10.0), 4), batch(takes_s), [Change(0.0, CpuSet(range(4)))])
    first = next(number for number, one in enumerate(run.placements) if one.id.startswith("other"))
    assert first == (100 if takes_s == 10.0 else 4 + 2)  # four run, and two follow before a third has ended
    assert run.placements[first].start_s == (250.0 if takes_s == 10.0 else takes_s)


def test_sizes_alone_end_within_a_tenth_of_the_clairvoyant_plan_in_the_median() -> None:
    found = [to_clairvoyant(family(16, count, 0), 0) for family in FAMILIES for count in (16, 64)]
    times, sizes, nothing = (statistics.median(one[what] for one in found) for what in ("times", "sizes", "nothing"))
    assert sizes <= 1.10
    assert times <= 1.03
    assert sizes <= nothing


def test_short_of_memory_a_run_that_knows_the_times_ends_about_when_the_plan_does() -> None:
    found = [to_clairvoyant(family(16, 32, seed), seed)["times"] for family in MEMORY_TIGHT for seed in (0, 1)]
    assert statistics.median(found) <= 1.05


def test_who_takes_the_whole_node_comes_last_and_hurries_the_others() -> None:
    whole = [Task(f"whole{number}", {8: 10.0}) for number in range(2)]
    tasks = [*whole, Task("other", {1: 28.0, 2: 15.0, 4: 8.0})]  # 28 s would do for it, if it were not in their way
    run = simulate(Dispatcher(tasks, 8), tasks, [Change(0.0, CpuSet(range(8)))])
    assert run.makespan_s == pytest.approx(10 + 10 + 8)


def to_clairvoyant(problem: Problem, seed: int) -> dict[str, float]:
    """The makespan by that of the clairvoyant plan, where so much is known."""
    plan_s = plan(problem.tasks, problem.cpus, "adaptive", memory_bytes=problem.memory_bytes).makespan_s
    known_of = [(what, known, tasks) for what, known, tasks in told(problem, seed) if "+-" not in what]
    return {what: simulated_s(problem, known, tasks) / plan_s for what, known, tasks in known_of}


def test_what_follows_is_what_would_be_next_and_has_the_place_of_the_one_before() -> None:
    tasks = [Task(f"f{number}", {1: 0.2 - 0.01 * number}, 10, memory_measured=True) for number in range(9)]
    ahead, after = (Dispatcher(tasks, 2, memory_bytes=20) for _ in range(2))
    both = [[dispatcher.next(0.0, CpuSet([cpu]), 10) for cpu in (0, 1)] for dispatcher in (ahead, after)]
    assert both[0] == both[1]
    first = both[0][0]
    assert first is not None
    assert first.id == "f0"
    found = ahead.following("f0", 0.0, 0.5)
    assert found is not None
    assert (ahead.waiting, ahead.running) == (6, 2)
    assert ahead.following("f0", 0.0, 5.0) is None  # one does already
    for dispatcher in (ahead, after):
        dispatcher.ended("f0", 0.2, took_s=0.2)
    expected = after.next(0.2, CpuSet([0]), 10)
    assert expected is not None
    assert (found.id, found.threads, found.memory_bytes) == (expected.id, expected.threads, expected.memory_bytes)
    assert (ahead.waiting, ahead.running) == (after.waiting, after.running) == (6, 2)
    assert ahead.next(0.2, CpuSet([0]), 10) is None  # the memory is taken, too


def test_what_was_to_follow_waits_again_where_it_could_not() -> None:
    dispatcher = Dispatcher([Task(f"f{number}", {1: 0.1}) for number in range(9)], 1)
    first = dispatcher.next(0.0, CpuSet([0]))
    assert first is not None
    following = dispatcher.following(first.id, 0.0, 0.5)
    assert following is not None
    dispatcher.returned(following.id)
    dispatcher.ended(first.id, 0.1, failed=True)
    assert (dispatcher.waiting, dispatcher.running) == (8, 0)
    rest = []
    while started := dispatcher.next(0.1, CpuSet([0])):
        rest.append(started.id)
        dispatcher.ended(started.id, 0.1, took_s=0.1)
    assert sorted(rest) == sorted(f"f{number}" for number in range(9) if f"f{number}" != first.id)


@pytest.mark.parametrize(
    ("second", "many", "known", "why"),
    [
        (Task("second", {1: 0.3}), 9, "seconds", "both take too long"),
        (Task("second", {1: 0.1}), 1, "seconds", "as many are left as there are CPUs"),
        (Task("second", {1: 0.1}), 9, "sizes", "nothing is known of seconds"),
        (Task("second", {1: 0.1}, kind="other"), 9, "seconds", "of another kind"),
        (Task("second", {2: 0.1}), 9, "seconds", "wider"),
        (Task("second", {1: 0.1}, 200, memory_measured=True), 9, "seconds", "needs more memory"),
        (Task("second", {1: 0.1}, 40, memory_measured=True), 9, "seconds", "would hold far more memory than it needs"),
        (Task("second", {1: 0.1}, 100, memory_measured=True, disk_bytes=9), 9, "seconds", "needs more disk"),
    ],
)
def test_nothing_follows_what_it_does_not_fit_after(second: Task, many: int, known: Known, why: str) -> None:
    first = Task("first", {1: 0.31}, 100, memory_measured=True)
    rest = [Task(f"f{number}", {1: 0.01}, 100, memory_measured=True) for number in range(many)]
    dispatcher = Dispatcher([first, second, *rest], 4, memory_bytes=300, disk_bytes=9, known=known)
    started = dispatcher.next(0.0, CpuSet(range(4)))
    assert started is not None
    assert started.id == "first"
    assert dispatcher.following("first", 0.0, 0.5) is None, why


def test_on_a_disk_that_others_have_filled_one_runs_at_a_time() -> None:
    dispatcher = Dispatcher([Task(f"f{number}", {1: 1.0}, disk_bytes=5) for number in range(6)], 4, disk_bytes=20)

    def started(disk_bytes: int) -> list[str]:
        dispatcher.limit_disk(disk_bytes)
        return [start.id for start in iter(lambda: dispatcher.next(0.0, CpuSet(range(4))), None)]

    first = started(14)
    assert len(first) == 2
    for one in first:
        assert started(0) == []
        dispatcher.ended(one, 1.0)
    (alone,) = started(0)
    assert len(started(100)) == 3  # with what there was at first, not more
    dispatcher.ended(alone, 2.0)
    assert dispatcher.waiting == 0


@pytest.mark.parametrize("disk_bytes", [0, 9])
def test_on_a_disk_that_others_have_filled_those_that_run_alone_are_wide(disk_bytes: int) -> None:
    """And as many as fit again where it is emptied."""
    tasks = [Task(f"f{number}", {1: 10.0, 4: 4.0}, disk_bytes=5) for number in range(24)]
    dispatcher = Dispatcher(tasks, 4, disk_bytes=20)

    def threads(now_s: float) -> list[int]:
        started = [dispatcher.next(now_s, CpuSet(range(4)))]
        while started[-1] is not None and (left := 4 - sum(start.threads for start in started if start)):
            started.append(dispatcher.next(now_s, CpuSet(range(left))))
        for start in filter(None, started):
            dispatcher.ended(start.id, now_s + (start.expected_s or 0.0))
        return [start.threads for start in started if start]

    assert threads(0.0) == [1, 1, 1, 1]
    dispatcher.limit_disk(disk_bytes)
    assert threads(10.0) == [4]
    dispatcher.limit_disk(30)
    assert threads(14.0) == [1, 1, 1, 1]


def test_of_ten_thousand_tasks_each_is_looked_at_a_bounded_number_of_times() -> None:
    looked = 0

    class Counted(Dispatcher):
        def _look(self, now_s: float, capacity: Capacity) -> None:
            nonlocal looked
            looked += self.waiting
            super()._look(now_s, capacity)

    problem = many_body(64, 10_000, 0)
    dispatcher = Counted(problem.tasks, 64, known="sizes")
    simulate(dispatcher, problem.tasks, [Change(0.0, CpuSet(range(64)))])
    # 10 times until a tenth has gone, and as often again for bad estimates; at each event it would be 5,000.
    assert looked < 100 * 10_000


def test_memory_that_moves_a_little_is_no_reason_to_look_again_but_what_fits_by_it_is() -> None:
    looks = []

    class Counted(Dispatcher):
        def _look(self, now_s: float, capacity: Capacity) -> None:
            looks.append(capacity.memory_bytes)
            super()._look(now_s, capacity)

    tasks = [*(Task(f"f{number}", {1: 1.0}, 10) for number in range(3000)), Task("large", {1: 1.0}, 1010)]
    dispatcher = Counted(tasks, 8)
    own_bytes = 0
    for memory_bytes in (1000, 990, 1005, 960, 1010, 940):
        started = dispatcher.next(0.0, CpuSet(range(dispatcher.running, 8)), memory_bytes - own_bytes)
        assert started is not None
        own_bytes += started.memory_bytes
    assert looks == [1000, 1010, 940]


def test_what_took_more_memory_than_it_was_granted_raises_the_need_of_those_as_large_of_its_kind() -> None:
    large = [Task(f"large{number}", {1: 9.0}, 100, kind="a", memory_measured=True) for number in range(1, 6)]
    others = [
        Task("other", {1: 6.0}, 100, kind="b", memory_measured=True),
        Task("small", {1: 3.0}, 100, kind="a", memory_measured=True),
    ]
    dispatcher = Dispatcher([*large, *others], 8, memory_bytes=300)

    def started() -> dict[str, int]:
        free = CpuSet(range(dispatcher.running, 8))
        return {one.id: one.memory_bytes for one in iter(lambda: dispatcher.next(1.0, free), None)}

    assert started() == {"large1": 100, "large2": 100, "large3": 100}
    dispatcher.ended("large1", 1.0, took_s=9.0, peak_bytes=100)  # as much as it was granted
    assert started() == {"large4": 100}
    dispatcher.ended("large2", 1.0, took_s=9.0, peak_bytes=180)
    assert started() == {"other": 100}  # the 189 that a large one needs are not there
    dispatcher.ended("large3", 1.0, took_s=9.0, peak_bytes=60)
    assert started() == {"small": 100}
    dispatcher.ended("small", 1.0, took_s=3.0, peak_bytes=60)
    dispatcher.ended("other", 1.0, took_s=6.0, peak_bytes=60)
    assert started() == {"large5": 189}


def test_what_takes_a_little_more_than_it_is_granted_whatever_that_is_raises_needs_once() -> None:
    tasks = [Task(f"f{number}", {1: 1.0}, 1000, memory_measured=True) for number in range(40)]
    dispatcher = Dispatcher(tasks, 8, memory_bytes=8000)
    granted: dict[str, int] = {}
    while dispatcher.waiting or dispatcher.running:
        free = CpuSet(range(dispatcher.running, 8))
        granted |= {one.id: one.memory_bytes for one in iter(lambda free=free: dispatcher.next(1.0, free), None)}
        label = next(iter(granted))
        dispatcher.ended(label, 1.0, took_s=1.0, peak_bytes=round(1.02 * granted.pop(label)))
        assert dispatcher.running >= 6 or not dispatcher.waiting


def test_a_wide_task_whose_threads_are_processes_has_memory_for_each_of_them() -> None:
    """Of 300 bytes: two of width 1, or one of width 3 at most, whatever is faster."""
    tasks = [
        Task(f"f{number}", {1: 9.0, 2: 4.5, 3: 3.0, 4: 2.3}, 120, memory_measured=True, memory_more_bytes=more)
        for number, more in enumerate(({1: 0, 2: 90, 3: 180, 4: 270}, {1: 0, 2: 60, 3: 120, 4: 190}))
    ]
    for many in (tasks[:1], tasks[1:], tasks):
        dispatcher = Dispatcher(many, 4, memory_bytes=300)
        left, running = 300, 4
        while (one := dispatcher.next(0.0, CpuSet(range(running)), left)) is not None:
            task = next(task for task in tasks if task.id == one.id)
            assert one.memory_bytes == task.memory_bytes + (task.memory_more_bytes or {})[one.threads]
            left, running = left - one.memory_bytes, running - one.threads
        assert 0 <= left < 240
        assert len(many) > 1 or (one is None and running == 1)  # the widest that fits, of one alone
    dispatcher = Dispatcher(tasks[1:], 4, memory_bytes=300)
    first = dispatcher.next(0.0, CpuSet(range(4)), 170.0)  # others have taken some: two processes need 180
    assert first is not None
    assert first.threads == 1


def test_a_run_whose_wide_tasks_need_more_memory_takes_about_as_long_as_is_foreseen() -> None:
    """There is memory for a few processes: for fewer side by side than were counted if each task were one."""
    tasks = [
        Task(
            f"f{number}",
            {width: 10 * (1 + number % 5) ** 2 / assumed_speedup(width, 0.8) for width in (1, 2, 4, 8)},
            150 + 100 * (number % 5),
            memory_measured=True,
            memory_more_bytes={width: (width - 1) * 128 for width in (1, 2, 4, 8)},
        )
        for number in range(40)
    ]
    foreseen_s = Dispatcher(tasks, 16, memory_bytes=1600).forecast(16).makespan_s
    run = simulate(Dispatcher(tasks, 16, memory_bytes=1600), tasks, [Change(0.0, CpuSet(range(16)), 1600)])
    assert run.makespan_s == pytest.approx(foreseen_s, rel=0.15)
    assert foreseen_s >= lower_bound(tasks, 16, memory_bytes=1600)


def test_what_took_more_memory_than_there_is_has_all_of_it_and_runs_alone() -> None:
    tasks = [Task(f"f{number}", {1: 9.0}, 100, memory_measured=True) for number in range(4)]
    dispatcher = Dispatcher(tasks, 4, memory_bytes=200)
    cpus = CpuSet(range(4))
    first, second = dispatcher.next(0.0, cpus), dispatcher.next(0.0, cpus)
    assert first is not None
    assert second is not None
    dispatcher.ended(first.id, 1.0, peak_bytes=500)
    assert dispatcher.next(1.0, cpus) is None
    dispatcher.ended(second.id, 2.0, peak_bytes=500)
    third = dispatcher.next(2.0, cpus, 150.0)  # others have taken some
    assert third is not None
    assert third.memory_bytes == 150
    assert dispatcher.next(2.0, cpus, 0.0) is None
    dispatcher.ended(third.id, 3.0, peak_bytes=500)
    fourth = dispatcher.next(3.0, cpus)
    assert fourth is not None
    assert fourth.memory_bytes == 200


def test_scale_power_and_speedup_are_found_from_times() -> None:
    widths = [1, 2, 4]
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    told = np.array([[size / assumed_speedup(width) for width in widths] for size in sizes])
    correction = Correction(told, "sizes")

    def true_s(row: int, column: int) -> float:
        return float(3.0 * sizes[row] ** 0.9 / assumed_speedup(widths[column]) ** 1.4)

    assert not correction.in_seconds
    for row, column in ((4, 2), (4, 0), (3, 1), (2, 0), (1, 2), (3, 0), (0, 1)):
        correction.observe(row, column, true_s(row, column))
    for row in range(5):
        for column in range(3):
            assert correction.time_s(row, column) == pytest.approx(true_s(row, column), rel=0.1)
            assert correction.times_s()[row, column] == pytest.approx(correction.time_s(row, column))


def test_a_time_tells_of_its_own_kind_alone() -> None:
    correction = Correction(np.array([[10.0, 6.0]] * 4), "seconds", ["a", "b", "a", "b"])
    for _ in range(20):
        correction.observe(0, 0, 40.0)
    assert correction.time_s(2, 0) == pytest.approx(40, rel=0.1)
    assert correction.time_s(3, 0) == pytest.approx(10)
    assert correction.times_s()[:, 0] == pytest.approx([40, 10, 40, 10], rel=0.1)


@pytest.mark.parametrize(("measured", "least", "most"), [(False, 1.0, 1.2), (True, 1.4, 1.7)])
def test_a_speedup_that_is_assumed_is_given_up_sooner_than_a_measured_one(
    measured: bool, least: float, most: float
) -> None:
    """Seconds of one thread are right; with two, of which a speedup of 1.67 was told, it takes as long."""
    correction = Correction(np.array([[10.0, 6.0]] * 20), "seconds", speedups_measured=measured)
    for row in range(6):
        correction.observe(row, row % 2, 10.0)
    assert least < correction.time_s(19, 0) / correction.time_s(19, 1) < most


def test_one_wild_time_does_not_spoil_the_estimates() -> None:
    correction = Correction(np.array([[10.0], [20.0], [40.0]] * 10), "sizes")
    for row in range(20):
        correction.observe(row, 0, (10.0, 20.0, 40.0)[row % 3])
    assert correction.observe(20, 0, 4000.0) == pytest.approx(100, rel=0.1)
    assert correction.time_s(23, 0) == pytest.approx(40, rel=0.25)


def test_what_makes_no_sense_is_refused() -> None:
    dispatcher = Dispatcher([Task("f1", {1: 1.0})], 2)
    with pytest.raises(InputError, match="task 'f1' has not started"):
        dispatcher.ended("f1", 1.0)
    with pytest.raises(OversubscriptionError):
        Dispatcher([Task("f1", {4: 1.0})], 2)
    never = Dispatcher([Task("f1", {2: 1.0})], 2)
    with pytest.raises(InputError, match="1 tasks are left"):
        simulate(never, [Task("f1", {2: 1.0})], [Change(0.0, CpuSet([0]), math.inf)])
