"""Terms as moldable tasks: widths of real program records, what is foreseen, and limits read again from real files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.execution.changing import ChangingLimits
from qcthreads.host import read_machine
from qcthreads.host.limits import Rule, read_limits
from qcthreads.host.profiles import cpu_model
from qcthreads.leases import LeaseBook
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.manybody.expansion import Chemistry, Term
from qcthreads.manybody.measured import Need
from qcthreads.manybody.moldable import START_UP_S, Moldable
from qcthreads.manybody.widths import widths_for
from qcthreads.planning.costs import Origin, Size
from qcthreads.programs import registry

GIB = 1024**3
CHEMISTRY = Chemistry("hf", "psi4", {"driver": "energy", "model": {"method": "hf", "basis": "sto-3g"}})


def moldable(costs: list[float], cpus: int, strategy: str = "adaptive", **options) -> Moldable:
    terms = [Term(f"t{number}", CHEMISTRY, (number,), (), cost) for number, cost in enumerate(costs)]
    given = {
        "terms": terms,
        "strategy": strategy,
        "machine": synthetic_machine(nodes=1, cores=16),
        "cpus": cpus,
        "widths": {CHEMISTRY.name: (1, 2, 4, 8, 16)},
        "size": lambda _: Size(66, 28),
        "need": lambda *_: Need(GIB, GIB),
        "memory_bytes": 64 * GIB,
        "worker_of": lambda _, width: width,
        "workers": {},
    }
    return Moldable(**(given | options))


def test_widths_are_those_the_program_can_use() -> None:
    assert widths_for(registry.get("mopac"), 16) == (1,)
    assert widths_for(registry.get("psi4"), 16) == (1, 2, 3, 4, 6, 8, 12, 16)
    assert widths_for(registry.get("psi4"), 5) == (1, 2, 3, 4, 5)
    assert widths_for(registry.get("psi4"), 16, narrowest=4) == (4, 6, 8, 12, 16)
    assert widths_for(registry.get("psi4"), 2, narrowest=4) == (4,)


def test_many_small_ones_run_at_one_thread_and_few_large_ones_wide() -> None:
    assert moldable([1.0] * 200, 16, "auto").foresee().widths == {1: 200}
    few = moldable([1.0] * 4, 16, "auto").foresee()
    assert few.widths == {4: 4}
    assert (few.first_width, few.usual_width, few.side_by_side, few.wall_s) == (4, 4, 4, None)
    assert (few.usual_side_by_side, few.limited) == (4, False)
    assert moldable([1.0] * 40 + [100.0], 16).foresee().widths[1] >= 30
    assert max(moldable([1.0] * 40 + [100.0], 16).foresee().widths) > 1


@pytest.mark.usefixtures("others_strategy")
def test_the_plan_of_another_packages_strategy_is_followed_also_where_cpus_go() -> None:
    followed = moldable([3.0, 1.0, 2.0], 8, "of-theirs")
    foreseen = followed.foresee()
    assert (foreseen.widths, foreseen.side_by_side, foreseen.first_width) == ({8: 3}, 1, 8)
    assert foreseen.reasons()[0].startswith("widths and order are those of the plan of of-theirs")
    assert not any("best" in reason or "widen" in reason for reason in foreseen.reasons())
    dispatcher, _ = followed._dispatcher()
    started = []
    for free in (8, 8, 3):
        start = dispatcher.next(float(len(started)), CpuSet(range(free)))
        assert start is not None
        assert dispatcher.next(float(len(started)), CpuSet(range(free)) - start.cpus) is None
        dispatcher.ended(start.id, len(started) + 1.0)
        started.append((start.id, start.threads))
    assert started == [("t2", 8), ("t1", 8), ("t0", 2)]


def test_of_mixed_widths_as_many_are_told_of_the_usual_one_as_fit() -> None:
    """Of three there is memory for one at a time, which gains from all CPUs; two fit side by side, and gain nothing."""

    def need(term: Term, _: int) -> Need:
        return Need(3 * GIB if term.cost > 1 else GIB, GIB)

    def times_s(term: Term, widths: Sequence[int]) -> dict[int, float]:
        return {width: term.cost / (width if term.cost > 1 else 1) for width in widths}

    limits = {"widths": {CHEMISTRY.name: (1, 2)}, "memory_bytes": 4 * GIB}
    foreseen = moldable([10.0, 10.0, 10.0, 1.0, 1.0], 2, need=need, times_s=times_s, **limits).foresee()
    assert foreseen.widths == {1: 2, 2: 3}
    assert (foreseen.usual_width, foreseen.usual_side_by_side, foreseen.side_by_side) == (2, 1, 2)
    assert "4 GiB of memory: as many run side by side as fit; each needs up to 3 GiB" in foreseen.reasons()
    assert not any("of memory" in reason for reason in moldable([1.0] * 4, 2, need=need, **limits).foresee().reasons())


@pytest.mark.parametrize("memory_gib", [4, 6, 8])
def test_no_more_threads_are_told_than_there_are_cpus(memory_gib: int) -> None:
    for large in range(1, 12):
        costs = [9.0] * large + [1.0] * 4
        model = moldable(costs, 6, need=lambda term, _: Need(round(term.cost) * GIB // 3, GIB // 3))
        foreseen = replace(model, memory_bytes=memory_gib * GIB).foresee()
        assert foreseen.usual_side_by_side * foreseen.usual_width <= 6


def test_what_is_expected_contains_the_start_of_workers_whether_it_was_begun_or_not() -> None:
    def wall_s(strategy: str = "auto", workers: dict[int, int] | None = None, *, starting: bool = True) -> float:
        times_s = {1: 10.0, 2: 9.0, 4: 8.0}
        one_width = {"times_s": lambda *_: times_s, "widths": {CHEMISTRY.name: (1, 2, 4)}, "workers": workers or {}}
        foreseen_s = moldable([1.0] * 4, 4, strategy, **one_width).foresee(starting=starting).wall_s
        assert foreseen_s is not None
        return foreseen_s

    assert wall_s() == wall_s(workers={1: 4}) == 10.0 + START_UP_S
    assert wall_s(workers={1: 4}, starting=False) == 10.0


def test_memory_for_two_at_a_time_makes_them_wide() -> None:
    foreseen = moldable([1.0] * 8, 16, memory_bytes=2 * GIB).foresee()
    assert foreseen.side_by_side == 2
    assert foreseen.usual_width > 1


def test_seconds_of_a_calibrated_model_are_passed_on() -> None:
    model = moldable([1.0] * 32, 16, times_s=lambda term, widths: dict.fromkeys(widths, 60 * term.cost))
    assert model.foresee().wall_s == pytest.approx(120, abs=10)
    assert "measured model" in model.foresee().reasons()[1]


def test_auto_widens_for_any_gain_only_where_speedups_were_measured() -> None:
    """Four on eight PUs, where a second thread gains 6 %."""
    times_s = lambda _, widths: {width: 60.0 if width == 1 else 60 / 1.06 for width in widths}  # noqa: E731
    assumed, measured = (
        moldable([1.0] * 4, 8, "auto", times_s=times_s, speedups_measured=known) for known in (False, True)
    )
    assert assumed.foresee().widths == {1: 4}
    assert measured.foresee().widths == {2: 4}
    assert moldable([1.0] * 4, 8, times_s=times_s).foresee().widths == {2: 4}


@pytest.mark.parametrize(("measured", "least_s", "most_s"), [(False, 50.0, 61.0), (True, 30.0, 45.0)])
def test_a_run_doubts_speedups_that_nobody_measured(measured: bool, least_s: float, most_s: float) -> None:
    """One at a time; with two threads, of which 30 s were told, it takes as long as with one."""
    times_s = lambda _, widths: {width: 60.0 / width for width in widths}  # noqa: E731
    options = {"times_s": times_s, "widths": {CHEMISTRY.name: (1, 2)}, "speedups_measured": measured, "at_once": 1}
    dispatcher, _ = moldable([1.0] * 8, 2, **options)._dispatcher()
    for number, threads in enumerate((1, 1, 1, 2, 2, 2)):
        start = dispatcher.next(60.0 * number, CpuSet(range(threads)))
        assert start is not None
        assert start.threads == threads
        dispatcher.ended(start.id, 60.0 * (number + 1), took_s=60.0)
    last = dispatcher.next(360.0, CpuSet([0, 1]), starts_s={2: 0.0})
    assert last is not None
    assert last.expected_s is not None
    assert least_s < last.expected_s < most_s


def test_where_times_come_from_is_said() -> None:
    times_s = lambda term, widths: dict.fromkeys(widths, 60 * term.cost)  # noqa: E731
    origins = [Origin("A CPU, 2026-01-01"), Origin(f"{cpu_model()}, 2026-01-01", 3), Origin(ratio=2)]
    origins += [Origin(default_keywords=True), Origin(ratio=2, default_keywords=True)]
    said = [moldable([1.0] * 4, 16, times_s=times_s, origin=origin).foresee().reasons()[-1] for origin in origins]
    assert "measured on another machine (A CPU, 2026-01-01); `qcthreads calibrate`" in said[0]
    alike = " with a CPU of the same name" if cpu_model() else ""
    assert f"another machine{alike} ({cpu_model()}, 2026-01-01), corrected by 3 measurements here" in said[1]
    assert "measured model of energies, guessed to be 2 times as long for gradients; `qcthreads calibrate" in said[2]
    assert (
        "times are those of a measured model with default keywords; runs measure those with these keywords" in said[3]
    )
    assert "measured model of energies with default keywords, guessed to be 2 times as long" in said[4]


def test_the_limit_of_a_memory_group_is_followed_down_and_up_again(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(str(8 * GIB))
    limits = read_limits()
    rule = Rule("cgroup memory", str(limit), memory_bytes=limits.memory_bytes)
    book = LeaseBook(read_machine(), replace(limits, rules=(*limits.rules, rule)))
    now_s = [0.0]
    changing = ChangingLimits(book, clock=lambda: now_s[0])
    before = book.memory_bytes
    for size, less in ((8 * GIB, 0), (8 * GIB - 2**20, 2**20), (16 * GIB, 0)):
        limit.write_text(str(size))
        changing.follow()  # too soon: nothing is read
        now_s[0] += 2.0
        changing.follow()
        assert book.memory_bytes == before - less
        assert book.free()[1] <= before - less
