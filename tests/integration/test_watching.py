"""Calculations as they are watched: against what the process itself counts, and what it was told to do."""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from qcthreads.errors import StopRequestedError
from qcthreads.execution.calculation import Calculation, Outcome, Progress
from qcthreads.execution.engine import LocalEngine
from qcthreads.execution.observing import Attempt, Watching
from qcthreads.execution.source import InOrder
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook
from qcthreads.manybody.watched import calculated, figures, findings, live
from qcthreads.monitoring.findings import OF_A_RUN
from qcthreads.monitoring.statistics import Moment, UsablePUs

TASKS = """
    import hashlib, subprocess, sys, threading, time
    from pathlib import Path

    BURN = "import time\\nend = time.process_time() + float({0})\\nwhile time.process_time() < end: pass"

    def _spin(cpu_s):
        end, data = time.thread_time() + cpu_s, bytes(1 << 18)
        while time.thread_time() < end:
            hashlib.sha256(data).digest()  # without the interpreter's lock

    def burn(input):
        met = "other" not in input or meet(input | {"cpu_s": 0})["met"]
        began, cpu = time.time(), time.process_time()
        others = input.get("team", 1) - 1
        threads = [threading.Thread(target=_spin, args=(input["cpu_s"],)) for _ in range(others)]
        for thread in threads:
            thread.start()
        _spin(input["cpu_s"])
        for thread in threads:
            thread.join()
        return {"cpu_s": time.process_time() - cpu, "began": began, "ended": time.time(), "met": met}

    def swell(input):
        block = b"x" * input["bytes"]
        return {"bytes": len(block)}

    def meet(input):
        Path(input["mine"]).touch()
        end = time.monotonic() + 60
        while not Path(input["other"]).exists() and time.monotonic() < end:
            time.sleep(0.01)
        _spin(input["cpu_s"])
        return {"met": Path(input["other"]).exists()}

    def rest(input):
        time.sleep(input["wall_s"])
        return {}

    def start(input):
        code = BURN.format(input["cpu_s"]) + "\\nblock = b'x' * 150_000_000"
        subprocess.run([sys.executable, "-c", code], check=True)
        return {}
"""

TICK_S = 0.01  # by which a running thread lags at most, on any kernel
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="threads and peaks of others are seen whole on Linux")
needs_two = pytest.mark.skipif(
    len(psutil.Process().cpu_affinity() or [0] if sys.platform in ("linux", "win32") else [0]) < 2,
    reason="needs two CPUs",
)


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "loads.py").write_text(textwrap.dedent(TASKS))
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def watching() -> Watching:
    return Watching()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def engine(watching: Watching, notes: list[str]) -> Iterator[LocalEngine]:
    def listen(progress: Progress) -> None:
        if progress.event == "note":
            notes.append(progress.message)

    book = LeaseBook(read_machine(), read_limits(), busy="ignore")
    with LocalEngine(book, observer=watching, on_progress=listen) as engine:
        yield engine


def calculation(function: str, label: str, threads: int = 1, memory_bytes: int = 0, **given: Any) -> Calculation:
    return Calculation(
        label=label,
        program="none",
        input=given,
        threads=threads,
        memory_bytes=memory_bytes,
        compute=f"loads:{function}",
        timeout_s=60,
    )


def run(engine: LocalEngine, *calculations: Calculation, **how: Any) -> list[Outcome]:
    outcomes = list(engine.run(calculations, **how))
    assert [outcome.error for outcome in outcomes] == [None] * len(calculations)
    return outcomes


def by_label(watching: Watching) -> dict[str, Attempt]:
    return {attempt.outcome.label: attempt for attempt in watching.attempts}


def cpu_s(attempt: Attempt) -> float:
    assert attempt.usage is not None
    return attempt.usage.cpu_ns / 1e9


def always(pus: int) -> UsablePUs:
    return UsablePUs(((0.0, pus),))


def busy_s(moments: Sequence[Moment]) -> float:
    """CPU time of all workers; a moment lasts from the one before it."""
    return sum(after.cpus_busy * (after.at_s - before.at_s) for before, after in itertools.pairwise(moments))


def test_a_reused_worker_is_cut_into_its_calculations(engine: LocalEngine, watching: Watching) -> None:
    long, short = calculation("burn", "long", cpu_s=0.6), calculation("burn", "short", cpu_s=0.2)
    outcomes = {outcome.label: outcome for outcome in run(engine, long, short, max_workers=1)}
    assert outcomes["long"].worker_pid == outcomes["short"].worker_pid
    for label, attempt in by_label(watching).items():
        counted = outcomes[label].result["cpu_s"]  # type: ignore[index]
        # To read its input and to write its reply is the worker's work too, but no great one.
        assert counted - TICK_S <= cpu_s(attempt) <= 1.02 * counted + 0.05
        assert attempt.usage is not None
        assert attempt.usage.threads_working == 1


def test_calculations_of_50_ms_are_counted_every_one(engine: LocalEngine, watching: Watching) -> None:
    outcomes = run(engine, *(calculation("burn", f"c{number}", cpu_s=0.05) for number in range(12)), max_workers=1)
    counted = sum(outcome.result["cpu_s"] for outcome in outcomes)  # type: ignore[index]
    seen = sum(cpu_s(attempt) for attempt in watching.attempts)
    assert len(watching.attempts) == 12
    assert counted - TICK_S <= seen <= 1.02 * counted + 12 * 0.02


@linux_only
def test_the_peak_of_memory_is_that_of_each_calculation(engine: LocalEngine, watching: Watching) -> None:
    before, large, after = (
        calculation("swell", "before", bytes=1000),
        calculation("swell", "large", bytes=200_000_000),
        calculation("swell", "after", bytes=1000),
    )
    outcomes = {outcome.label: outcome for outcome in run(engine, before, large, after, max_workers=1)}
    assert len({outcome.worker_pid for outcome in outcomes.values()}) == 1
    attempts = by_label(watching)
    peaks = {one.label: one.memory_peak_bytes for one in calculated(attempts.values(), 0.0)}
    assert peaks["large"] >= 200_000_000
    assert outcomes["large"].peak_memory_bytes >= 200_000_000
    # A page more or less, and what the allocator keeps.
    assert max(peaks["before"], peaks["after"]) < 150_000_000


@linux_only
def test_children_count_with_the_calculation_that_started_them(engine: LocalEngine, watching: Watching) -> None:
    parent, childless = calculation("start", "parent", cpu_s=0.5), calculation("burn", "childless", cpu_s=0.05)
    outcomes = {outcome.label: outcome for outcome in run(engine, parent, childless, max_workers=1)}
    attempts = by_label(watching)
    # The system counts children that ended in clock ticks.
    assert cpu_s(attempts["parent"]) >= 0.5 - 2 * TICK_S
    assert cpu_s(attempts["parent"]) == pytest.approx(outcomes["parent"].cpu_s, abs=0.1)
    assert cpu_s(attempts["childless"]) < 0.5  # nothing of the child is in it
    assert outcomes["parent"].peak_memory_bytes >= 150_000_000
    assert outcomes["childless"].peak_memory_bytes < 150_000_000


@linux_only
@needs_two
def test_a_program_that_ignores_its_width_gets_one_pu_each_and_more_run_side_by_side(
    engine: LocalEngine, watching: Watching, notes: list[str], tmp_path: Path
) -> None:
    memory_bytes = 2 * 1024**3
    needs = {"threads": 2, "cpu_s": 0.7, "memory_bytes": memory_bytes}
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    asked = [calculation("burn", f"c{n}", **needs) for n in range(4)]
    asked.append(calculation("burn", "c4", **needs, mine=here, other=there))
    asked.append(calculation("burn", "c5", **needs, mine=there, other=here))
    outcomes = list(engine.run(InOrder(asked, engine._book, most_threads=2)))
    assert [outcome.error for outcome in outcomes] == [None] * len(asked)
    widths = [outcome.threads for outcome in outcomes]
    assert widths == [2, 2, 1, 1, 1, 1]
    assert [len(outcome.cpus) for outcome in outcomes] == widths
    assert len(notes) == 1
    assert notes[0].startswith("none ignores its width: of 2 threads one worked in each of 2 calculations")
    by_name = {outcome.label: outcome for outcome in outcomes}
    one, other = by_name["c4"], by_name["c5"]
    assert one.result is not None
    assert other.result is not None
    assert one.result["met"]  # so they ran side by side
    assert other.result["met"]
    assert not one.cpus & other.cpus
    grants = [attempt.grant.memory_bytes for attempt in watching.attempts]
    assert max(grants[:2]) == memory_bytes
    assert set(grants[2:]) == {memory_bytes // 2}


@pytest.mark.once
@linux_only
@needs_two
def test_workers_that_were_asked_for_stay_as_many(engine: LocalEngine) -> None:
    asked = [calculation("burn", f"c{n}", threads=2, cpu_s=0.7) for n in range(4)]
    outcomes = run(engine, *asked, max_workers=1)
    assert [outcome.threads for outcome in outcomes] == [2, 2, 1, 1]
    spans = sorted((outcome.result["began"], outcome.result["ended"]) for outcome in outcomes)  # type: ignore[index]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


@linux_only
@needs_two
def test_a_program_that_threads_keeps_its_width(engine: LocalEngine, watching: Watching, notes: list[str]) -> None:
    asked = [calculation("burn", f"c{n}", threads=2, team=2, cpu_s=0.6) for n in range(4)]
    assert [outcome.threads for outcome in run(engine, *asked, max_workers=1)] == [2] * 4
    assert {attempt.usage and attempt.usage.threads_working for attempt in watching.attempts} == {2}
    assert notes == []


@linux_only
def test_what_many_calculations_do_is_one_finding(engine: LocalEngine, watching: Watching) -> None:
    outcomes = run(engine, *(calculation("burn", f"c{n}", team=3, cpu_s=0.3) for n in range(5)), max_workers=1)
    found = {finding.kind: finding.message for finding in findings(watching.attempts, (), always(1), OF_A_RUN)}
    assert found["oversubscribed"].endswith("(and so in 5 of 5 calculations)")
    assert "was given 1 thread, but 3 worked" in found["oversubscribed"]
    # Three threads in turn on one CPU: each waits while the two others run.
    assert found["contended"].endswith("(and so in 5 of 5 calculations)")
    record = calculated(watching.attempts, min(outcome.started_at for outcome in outcomes))
    assert [one.label for one in record] == [f"c{n}" for n in range(5)]
    assert all(one.run_queue_s is not None and one.run_queue_s > one.cpu_s for one in record)
    assert all(one.cpus_seen == one.cpus for one in record)


@needs_two
def test_calculations_of_two_calls_are_told_apart_though_they_have_one_label(
    engine: LocalEngine, watching: Watching, tmp_path: Path
) -> None:
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    asked = [
        calculation("meet", "same", memory_bytes=1 << 30, cpu_s=0.4, mine=here, other=there),
        calculation("meet", "same", memory_bytes=2 << 30, cpu_s=0.1, mine=there, other=here),
    ]
    with ThreadPoolExecutor(2) as callers:
        outcomes = list(callers.map(lambda one: run(engine, one)[0], asked))
    assert [outcome.result for outcome in outcomes] == [{"met": True}] * 2  # so they ran side by side
    attempts = {attempt.outcome.worker_pid: attempt for attempt in watching.attempts}
    for one, outcome in zip(asked, outcomes, strict=True):
        attempt = attempts[outcome.worker_pid]
        assert (attempt.grant.worker_id, attempt.grant.leased) == (outcome.worker_pid, outcome.cpus)
        assert attempt.grant.memory_bytes == one.memory_bytes
        assert cpu_s(attempt) >= one.input["cpu_s"] - TICK_S  # type: ignore[index]
    assert watching.running == ()


@linux_only
def test_busy_and_idle_cpus_over_time_add_up(engine: LocalEngine, watching: Watching) -> None:
    outcomes = run(engine, *(calculation("burn", f"c{n}", cpu_s=0.8) for n in range(3)), max_workers=1)
    worker_s = sum(psutil.Process(outcomes[0].worker_pid).cpu_times()[:2])  # with what it loaded before the first
    watching.close()
    moments = watching.monitor.moments(0)
    counted_s = sum(outcome.result["cpu_s"] for outcome in outcomes)  # type: ignore[index]
    assert 0.95 * counted_s - 0.1 <= busy_s(moments) <= 1.05 * worker_s + 0.1
    told = figures(watching.attempts, moments, always(2))
    (worker,) = told["worker_processes"]
    assert worker["calculations"] == told["watched"] == 3
    assert worker["pid"] == outcomes[0].worker_pid


@linux_only
def test_what_a_worker_loads_before_its_first_calculation_keeps_a_cpu_busy(
    engine: LocalEngine, watching: Watching, tmp_path: Path
) -> None:
    (tmp_path / "modules" / "large.py").write_text("import loads\nloads._spin(1.5)\nrest = loads.rest\n")
    run(engine, replace(calculation("rest", "a", wall_s=0.1), compute="large:rest"))
    watching.close()
    assert busy_s(watching.monitor.moments(0)) > 1.4


@pytest.mark.once
def test_cpus_that_have_nothing_to_do_are_found(
    engine: LocalEngine, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcthreads.manybody.watched._LONG_RUN_S", 2.0)
    run(engine, calculation("rest", "a", wall_s=0.0))  # its worker has started
    began_ns = time.monotonic_ns()
    run(engine, calculation("rest", "b", wall_s=2.5))
    watching.close()
    found = {
        one.kind: one.message
        for one in findings(watching.attempts, watching.monitor.moments(began_ns), always(2), OF_A_RUN)
    }
    assert re.match(r"(1\.[5-9]|2\.0) of 2 usable PUs had nothing to do on average: use more workers", found["idle"])


def test_cpus_that_the_run_waits_for_are_not_idle() -> None:
    def over_20_s(busy: float, waited_for: float) -> list[Moment]:
        return [Moment(at_s=at_s, cpus_busy=busy, cpus_waited_for=waited_for, memory_bytes=0) for at_s in (10.0, 20.0)]

    (alone,) = findings([], over_20_s(0.5, 0.1), always(2), OF_A_RUN)
    assert (alone.kind, alone.message[:53]) == ("idle", "1.4 of 2 usable PUs had nothing to do on average: use")
    assert findings([], over_20_s(0.5, 1.4), always(2), OF_A_RUN) == []
    assert findings([], over_20_s(1.9, 0.0), always(2), OF_A_RUN) == []


@pytest.mark.parametrize(
    ("usable", "busy", "idle_pus", "idle"),
    [
        (((0.0, 8), (15.0, 2)), (8, 8, 8, 2), 0.0, None),
        (((0.0, 2), (19.0, 8)), (2, 2, 2, 2), 0.3, None),
        (((0.0, 8), (10.0, 2)), (2, 2, 2, 2), 3.0, "3.0 of 5 usable PUs had nothing to do on average"),
    ],
    ids=["fewer", "more at the end", "idle until there are fewer"],
)
def test_what_is_idle_is_told_of_the_pus_that_were_usable_then(
    usable: tuple[tuple[float, int], ...], busy: Sequence[int], idle_pus: float, idle: str | None
) -> None:
    """In four parts of 5 s each."""
    moments = [
        Moment(at_s=5.0 * (part + 1), cpus_busy=cpus, cpus_waited_for=0.0, memory_bytes=0)
        for part, cpus in enumerate(busy)
    ]
    told = figures([], moments, UsablePUs(usable))
    assert told["idle_pus"] == pytest.approx(idle_pus)
    over_time = [step["idle_pus"] for step in told["idle_over_time"]]
    assert sum(over_time) / 4 == pytest.approx(idle_pus)
    found = findings([], moments, UsablePUs(usable), OF_A_RUN)
    assert [one.message.partition(":")[0] for one in found] == ([] if idle is None else [idle])


def test_a_worker_that_is_killed_is_counted_as_far_as_it_came(engine: LocalEngine, watching: Watching) -> None:
    asked = calculation("burn", '["hf", [1], [1]]', cpu_s=30)
    outcomes = list(engine.run([Calculation(**{**_fields(asked), "timeout_s": 1.5})]))
    assert [outcome.status for outcome in outcomes] == ["failed"]
    (attempt,) = watching.attempts
    if sys.platform == "linux":
        (one,) = calculated([attempt], 0.0)
        assert attempt.usage is not None
        # It has one thread that works, and had not ended.
        assert 0 < one.cpu_s <= attempt.usage.wall_ns / 1e9 + TICK_S
        (worker,) = figures([attempt], [], always(2))["worker_processes"]
        now = live(watching, LeaseBook(read_machine(), read_limits()), total=1, reused=0)
        assert worker["cpu_s"] == now.cpu_s == one.cpu_s


def test_what_is_stopped_with_its_run_is_kept_as_far_as_it_came_and_runs_no_longer(
    engine: LocalEngine, watching: Watching
) -> None:
    began_ns = time.monotonic_ns()
    events = engine.run([calculation("burn", "short", cpu_s=0.1), calculation("burn", "long", cpu_s=60)], 1)
    worker = psutil.Process(next(events).worker_pid)
    before_s = used_s = worker.cpu_times().user
    while watching.running != ("long",) or used_s < before_s + 0.5:
        time.sleep(0.01)
        used_s = worker.cpu_times().user
    engine.stop()
    with pytest.raises(StopRequestedError):
        next(events)
    assert watching.running == ()
    assert [(one.outcome.label, one.outcome.status) for one in watching.attempts] == [
        ("short", "finished"),
        ("long", "stopped"),
    ]
    now = watching.monitor.now
    assert now is not None
    assert (now.cpus_busy, now.memory_bytes) == (0, 0)
    if sys.platform == "linux":  # as last seen, a tenth of a second before its end
        assert busy_s(watching.monitor.moments(began_ns)) > 0.5 * (used_s - before_s)


def _fields(one: Calculation) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Calculation.__slots__}
