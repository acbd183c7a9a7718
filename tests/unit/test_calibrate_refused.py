"""``qcthreads calibrate``: what it refuses and says; computes nothing (tests/integration/test_calibrate.py does)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcthreads.cli import calibrate_program, main
from qcthreads.cpuset import CpuSet
from qcthreads.errors import CalculationError
from qcthreads.execution.calculation import Calculation, Outcome, Progress
from qcthreads.execution.cost_store import Kind
from qcthreads.manybody.calibration import calibrate
from qcthreads.planning.costs import CostModel


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("tblite", "--wait"),
        ("--machine", "--method", "hf"),
        ("--machine", "--basis", "sto-3g"),
        ("--machine", "--seconds", "60"),
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
    monkeypatch.setattr(calibrate_program.registry, "require", lambda _: None)
    assert main(["calibrate", "tblite"]) == 1
    said = capsys.readouterr().err
    assert "qcthreads calibrate: waits for what is held by x\n" in said
    assert "CPUs 0" not in said


def test_the_reference_names_every_key() -> None:
    pytest.importorskip("qcelemental", reason="it makes the inputs")
    kind = Kind("tblite", "energy", "GFN2-xTB", "")
    seen = calibrate(kind, {1: Engine(), 2: Engine()}, 1e-9)  # type: ignore[dict-item]
    document = calibrate_program._document(kind, CostModel(method=kind.method, observations=tuple(seen)), seen)
    told = (Path(__file__).parents[2] / "docs/reference/json.md").read_text()
    section = told.partition("## `qcthreads calibrate PROGRAM --json`\n")[2].partition("\n## ")[0]
    keys = {"file", *document, *document["measured"][0], *document["speedup"][0]}
    assert {key for key in keys if f"`{key}`" not in section} == set()
