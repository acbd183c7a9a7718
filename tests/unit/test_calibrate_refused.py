"""``qcthreads calibrate``: what it refuses and says; computes nothing (tests/integration/test_calibrate.py does)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qcthreads.cli import calibrate_program, main
from qcthreads.cpuset import CpuSet
from qcthreads.errors import CalculationError
from qcthreads.execution.calculation import Calculation, Outcome, Progress
from qcthreads.execution.cost_store import CostStore, Kind
from qcthreads.host import read_machine
from qcthreads.manybody import calibration
from qcthreads.manybody.calibration import Measurement, calibrate, ladder
from qcthreads.planning.costs import CostModel, Observation, Size


class Engine:
    """Finishes everything at once."""

    def run(self, calculations: list[Calculation], max_workers: int) -> list[Outcome]:
        assert max_workers == 1
        return [
            Outcome(
                label=one.label, status="finished", result={}, error=None, threads=one.threads, cpus=CpuSet(),
                bound=None, worker_pid=1, started_at=0.0, wall_s=1.0, cpu_s=1.0, peak_memory_bytes=1,
            )
            for one in calculations
        ]  # fmt: skip


def test_however_few_the_seconds_the_smallest_molecule_is_measured() -> None:
    pytest.importorskip("qcelemental", reason="it makes the inputs")
    kind = Kind("tblite", "energy", "GFN2-xTB", "")
    seen = calibrate(kind, {1: Engine(), 2: Engine()}, 1e-9)  # type: ignore[dict-item]
    assert [one.width for one in seen] == [1, 2]


class FailsOn(Engine):
    """Finishes everything but molecules of one label."""

    def __init__(self, label: str) -> None:
        self._label = label

    def run(self, calculations: list[Calculation], max_workers: int) -> list[Outcome]:
        outcomes = super().run(calculations, max_workers)
        if not calculations[0].label.startswith(self._label):
            return outcomes
        error = "unknown_error: banner\nmuch output\nAssertionError\n"
        return [replace(outcome, status="failed", error=error) for outcome in outcomes]


def test_a_larger_molecule_on_which_the_program_fails_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    second, third = (rung.label for rung in ladder(with_basis=False)[1:3])
    run_with({1: Engine(), 2: FailsOn(f"{second},")}, monkeypatch)
    assert main(["calibrate", "tblite", "--seconds", "1000", "--json"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    sizes = [rung.size.electrons for rung in ladder(with_basis=False)]
    measured = [(one["electrons"], one["threads"]) for one in document["measured"]]
    assert measured[:4] == [(sizes[0], 1), (sizes[0], 2), (sizes[2], 1), (sizes[2], 2)]
    told = f"left out: tblite failed on {second} with 2 threads: unknown_error: banner ... AssertionError"
    assert [(one["kind"], one["message"]) for one in document["findings"]] == [("note", told)]
    assert told in said.err
    assert third not in said.err


class Clock:
    """Goes on while an engine computes or waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


class Takes(Engine):
    """So long for every calculation, after it has waited for a lease."""

    def __init__(self, clock: Clock, wall_s: float, waited_s: float = 0.0) -> None:
        self._clock, self._wall_s, self._waited_s = clock, wall_s, waited_s

    def run(self, calculations: list[Calculation], max_workers: int) -> list[Outcome]:
        outcomes = super().run(calculations, max_workers)
        self._clock.now_s += len(outcomes) * (self._waited_s + self._wall_s)
        return [replace(one, wall_s=self._wall_s, waited_s=self._waited_s) for one in outcomes]


def test_the_time_for_which_leases_are_waited_for_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qcelemental", reason="it makes the inputs")
    seen = []
    for waited_s in (0.0, 100.0):
        clock = Clock()
        monkeypatch.setattr(calibration, "time", clock)
        engines = {1: Takes(clock, 1.0, waited_s)}
        seen.append(calibrate(Kind("tblite", "energy", "GFN2-xTB", ""), engines, 8.5))  # type: ignore[arg-type]
    assert seen[0] == seen[1]
    assert 1 < len(seen[0]) < len(ladder(with_basis=False))


def test_two_threads_that_others_delay_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times as long as one, as threads that work together wait for the one that waits."""
    pytest.importorskip("qcelemental", reason="it makes the inputs")
    clock = Clock()
    monkeypatch.setattr(calibration, "time", clock)
    engines = {1: Takes(clock, 0.01), 2: Takes(clock, 0.2)}
    seen = calibrate(Kind("tblite", "energy", "GFN2-xTB", ""), engines, 2.0)  # type: ignore[arg-type]
    assert len({one.size for one in seen}) > 1
    assert clock.now_s < 3.0


class StoppedAt(Engine):
    """Ctrl-C while the given number is computed."""

    def __init__(self, number: int) -> None:
        self._left = number

    def run(self, calculations: list[Calculation], max_workers: int) -> list[Outcome]:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return super().run(calculations, max_workers)


def run_with(engines: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``qcthreads calibrate tblite`` computes with from now on."""
    pytest.importorskip("qcelemental", reason="it makes the inputs")
    monkeypatch.setattr("qcthreads.programs.registry.require", lambda _: None)
    monkeypatch.setattr(calibrate_program, "engines_of", lambda *_, **__: contextlib.nullcontext(engines))
    monkeypatch.setattr(calibrate_program, "calibrate", partial(unwatched, calibrate_program.calibrate))


def unwatched(climb: Callable[..., list[Measurement]], *given: Any, **more: Any) -> list[Measurement]:
    return climb(*given, **more | {"watching": None})


@pytest.mark.parametrize(("number", "kept"), [(2, []), (7, [(0, 1), (0, 2)]), (9, [(0, 1), (0, 2), (1, 1)])])
def test_what_was_measured_until_it_is_stopped_is_kept(
    number: int,
    kept: list[tuple[int, int]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each width once, so that workers are warm; then each molecule at each width, twice."""
    engine = StoppedAt(number)
    run_with({1: engine, 2: engine}, monkeypatch)
    assert main(["calibrate", "tblite"]) == 4
    store, sizes = CostStore(read_machine()), [rung.size for rung in ladder(with_basis=False)]
    observations = store.model(Kind("tblite", "energy", "GFN2-xTB", "")).observations
    assert [(seen.size, seen.width) for seen in observations] == [(sizes[place], width) for place, width in kept]
    said = capsys.readouterr().err
    told = f"qcthreads calibrate: {len(kept)} measurements until then: kept in {store.path('tblite')}\n" if kept else ""
    assert said == f"{told}qcthreads: stopped\n"


def test_what_was_measured_until_it_is_stopped_may_find_no_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, engine = CostStore(read_machine()), StoppedAt(6)

    def climb(*given: Any, **more: Any) -> list[Measurement]:
        store.path("tblite").parent.mkdir(parents=True)
        store.path("tblite").write_text("garbage", encoding="utf-8")  # by somebody, meanwhile
        return calibrate(*given, **more)

    monkeypatch.setattr(calibrate_program, "calibrate", climb)
    run_with({1: engine, 2: engine}, monkeypatch)
    assert main(["calibrate", "tblite"]) == 4
    assert f"{store.path('tblite')} cannot be read" in capsys.readouterr().err


def test_a_program_that_fails_on_the_smallest_molecule_is_not_calibrated() -> None:
    pytest.importorskip("qcelemental", reason="it makes the inputs")
    smallest = ladder(with_basis=False)[0].label
    with pytest.raises(CalculationError, match=f"tblite failed on {smallest}"):
        calibrate(Kind("tblite", "energy", "GFN2-xTB", ""), {1: FailsOn(smallest)}, 60.0)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "arguments",
    [
        ("tblite", "--wait"),
        ("--machine", "--method", "hf"),
        ("--machine", "--basis", "sto-3g"),
        ("--machine", "--seconds", "60"),
        ("--machine", "--driver", "gradient"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcthreads.cli.calibrate_program.execute", lambda _: 0)
    monkeypatch.setattr("qcthreads.cli.calibrate_machine.execute", lambda _: 0)
    assert main(["calibrate", *arguments]) == 2
    assert next(word for word in arguments[::-1] if word.startswith("--") and word != "--machine") in (
        capsys.readouterr().err
    )


def test_what_is_waited_for_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(_: object, engines: Any, *__: object, **___: object) -> None:
        engine = engines[1]
        engine._on_progress(Progress(event="started", label="a", message="CPUs 0"))
        engine._on_progress(Progress(event="note", label="a", message="waits for what is held by x", kind="waits"))
        raise CalculationError("that is all")

    monkeypatch.setattr(calibrate_program, "calibrate", waits)
    monkeypatch.setattr("qcthreads.programs.registry.require", lambda _: None)
    assert main(["calibrate", "tblite"]) == 1
    said = capsys.readouterr().err
    assert "qcthreads calibrate: waits for what is held by x\n" in said
    assert "CPUs 0" not in said


def test_the_reference_names_every_key() -> None:
    pytest.importorskip("qcelemental", reason="it makes the inputs")
    kind = Kind("tblite", "energy", "GFN2-xTB", "")
    seen = calibrate(kind, {1: Engine(), 2: Engine()}, 1e-9)  # type: ignore[dict-item]
    document = calibrate_program._document(
        kind, CostModel(method=kind.method, observations=tuple(one.observation for one in seen)), seen, []
    )
    told = (Path(__file__).parents[2] / "docs/reference/json.md").read_text()
    section = told.partition("## `qcthreads calibrate PROGRAM --json`\n")[2].partition("\n## ")[0]
    keys = {"file", *document, *document["measured"][0], *document["speedup"][0]}
    assert {key for key in keys if f"`{key}`" not in section} == set()


def test_what_was_measured_is_shown_even_where_it_cannot_be_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CostStore(read_machine())

    def measured(*_: object, **__: object) -> list[Measurement]:
        store.path("tblite").parent.mkdir(parents=True)
        store.path("tblite").write_text("garbage", encoding="utf-8")  # by somebody, meanwhile
        return [Measurement(Size(6, 8), 1, 1.25, 1), Measurement(Size(6, 8), 2, 1.5, 1, waited=0.45, others_cpus=1.9)]

    monkeypatch.setattr(calibrate_program, "calibrate", measured)
    monkeypatch.setattr("qcthreads.programs.registry.require", lambda _: None)
    assert main(["calibrate", "tblite"]) == 3
    said = capsys.readouterr()
    assert "1.250" in said.out
    assert "disturbed: waited 45%" in said.out
    assert "others disturbed 1 of 2 measurements: threads waited for a CPU up to 45% of the time that" in said.err
    assert "others kept up to 1.9 CPUs busy" in said.err
    assert f"{store.path('tblite')} cannot be read" in said.err


def test_the_list_shows_the_widths_and_sizes_that_have_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    seen = [Observation(Size(24 * n, 10 * n), 1, 0.5 * n, 1) for n in (1, 2, 3)]
    disturbed = [Observation(Size(24 * n, 10 * n), 2, None, 1, at_most_s=9.0) for n in (1, 2, 4)]
    store = CostStore(read_machine())
    store.add(Kind("pyscf", "energy", "hf", "sto-3g"), [*seen, *disturbed])
    store.add(Kind("xtb", "energy", "gfn2-xtb", ""), disturbed)
    assert main(["calibrate", "--list"]) == 0
    _, *rows = capsys.readouterr().out.strip().splitlines()
    assert [row.split() for row in rows] == [
        ["pyscf", "energy", "hf/sto-3g", "6", "3", "1", "24-72", "0.5", "to", "1.5"],
        ["xtb", "energy", "gfn2-xtb", "3", "0", "disturbed"],
    ]
    assert main(["calibrate", "--list", "--json"]) == 0
    by_program = {one["program"]: one for one in json.loads(capsys.readouterr().out)["models"]}
    keys = ("threads", "basis_functions", "timed_threads", "timed_basis_functions", "wall_s")
    assert [by_program["pyscf"][key] for key in keys] == [[1, 2], [24, 96], [1], [24, 72], [0.5, 1.5]]
    assert [by_program["xtb"][key] for key in keys] == [[2], [24, 96], [], None, None]


def test_what_is_kept_is_listed_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    store = CostStore(read_machine())
    for method, width in (("hf", 1), ("mp2", 2)):
        store.add(Kind("pyscf", "energy", method, "sto-3g"), [Observation(Size(24, 10), width, 0.5, 1)])
    assert main(["calibrate", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["method"], one["threads"]) for one in listed["models"]] == [("hf", [1]), ("mp2", [2])]
    told = (Path(__file__).parents[2] / "docs/reference/json.md").read_text()
    assert {key for key in {*listed, *listed["models"][0]} if f"`{key}`" not in told} == set()
    assert main(["doctor"]) == 0
    assert "measured costs: 2 models of 1 program; `qcthreads calibrate --list`" in capsys.readouterr().out
    assert main(["calibrate", "--forget", "pyscf", "--method", "HF"]) == 0
    assert "forgotten: 1 measurement of pyscf HF" in capsys.readouterr().err
    assert main(["calibrate", "pyscf", "--list"]) == 0
    said = capsys.readouterr().out
    assert ("mp2/sto-3g" in said, "hf/sto-3g" in said) == (True, False)
