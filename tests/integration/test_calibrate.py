"""``qcthreads calibrate PROGRAM`` with the embedded engine; what measures, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from others import busy_cpus

from qcthreads.cli import main
from qcthreads.execution.cost_store import CostStore, Kind
from qcthreads.execution.observing import Watching
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import process_book
from qcthreads.manybody.calibration import calibrate as climb
from qcthreads.manybody.calibration import engines_of
from qcthreads.manybody.run import Run, RunRequest
from qcthreads.planning.costs import Size

WATER = Path(__file__).parents[2] / "examples/water4.xyz"
CALIBRATE = [sys.executable, "-m", "qcthreads", "calibrate"]


def environment(home: Path) -> dict[str, str]:
    """With what is measured in ``home``, and nobody else's leases to wait for."""
    return {**os.environ, "XDG_DATA_HOME": str(home), "QCTHREADS_LEASES": str(home / "leases")}


def calibrate(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CALIBRATE, *arguments], capture_output=True, text=True, timeout=300, check=False, env=environment(home)
    )


def set_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of this process."""
    for name in ("XDG_DATA_HOME", "QCTHREADS_LEASES"):
        monkeypatch.setenv(name, environment(home)[name])


def expected_wall_s(home: Path, monkeypatch: pytest.MonkeyPatch) -> float | None:
    """What a run that is not started would take."""
    set_environment(home, monkeypatch)
    with Run(RunRequest(input=WATER, program="pyscf", method="hf", basis="sto-3g", max_nbody=2)) as run:
        seconds: float | None = run.decision["expected_wall_s"]
    return seconds


def test_what_was_measured_is_kept_predicts_it_and_a_run_plans_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert expected_wall_s(tmp_path, monkeypatch) is None
    arguments = ("pyscf", "--method", "hf", "--basis", "sto-3g", "--json", "--seconds")
    for seconds in ("4", "20", "100"):  # a busy machine has no time for a second size in a few
        home = tmp_path / seconds
        home.mkdir()
        done = calibrate(home, *arguments, seconds)
        document: dict[str, Any] = json.loads(done.stdout)
        measured = document["measured"]
        timed = [row for row in measured if not row["disturbed"]]
        assert done.returncode == (0 if timed else 3), done.stderr
        if len({row["basis_functions"] for row in timed}) > 1:
            break
    assert len({row["basis_functions"] for row in measured}) > 1
    assert {row["threads"] for row in measured} >= {1}
    assert all(row["wall_s"] > 0 and row["peak_memory_bytes"] > 10 * 1024**2 for row in measured)
    kept = CostStore(read_machine(), {"XDG_DATA_HOME": str(home)}).model(Kind("pyscf", "energy", "hf", "sto-3g"))
    assert len(kept.observations) == len(measured)
    assert sum(seen.wall_s is not None for seen in kept.observations) == len(timed)
    for row in measured if timed else ():  # how near the model is to what was measured is unit/test_costs'
        predicted = kept.seconds(Size(row["basis_functions"], row["electrons"]), row["threads"])
        assert predicted is not None
        assert predicted.value > 0
        assert row["predicted_s"] == pytest.approx(predicted.value)
    if timed and len(read_limits().cpus) > 1:  # with one CPU there is no width to choose
        expected_s = expected_wall_s(home, monkeypatch)
        assert expected_s is not None
        assert expected_s > 0
    again = json.loads(calibrate(home, *arguments, "1").stdout)
    assert again["measured"]
    assert again["observations"] == len(measured) + len(again["measured"])


@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="with one CPU there is one width")
def test_each_width_has_one_worker_for_all_of_the_ladder() -> None:
    """To start one again and again would take longer than most of what is measured."""
    watching = Watching()
    with engines_of((1, 2), process_book(), watching) as engines:
        climb(Kind("pyscf", "energy", "hf", "sto-3g"), engines, 1e-9, watching=watching)
    workers = {(attempt.outcome.threads, attempt.outcome.worker_pid) for attempt in watching.attempts}
    assert len(watching.attempts) > len(workers)
    assert [threads for threads, _ in sorted(workers)] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ((), 2, "Name a program, or give --machine"),
        (("pyscf", "--machine"), 2, "one at a time"),
        (("pyscf", "--method", "hf"), 2, "--basis cc-pvdz"),
        (("pyscf", "--basis", "sto-3g"), 2, "--method mp2"),
        (("xtb", "--method", "gfn2-xtb", "--basis", "sto-3g"), 2, "has no basis sets"),
        (("pyscf", "--method", "hf", "--basis", "sto-3g", "--seconds", "-1"), 2, "seconds above 0"),
        (("pyscff", "--method", "hf"), 2, "pyscf"),
        (("cfour", "--method", "hf", "--basis", "sto-3g"), 3, "CFOUR"),
        (("pyscf", "--method", "nonsense", "--basis", "sto-3g"), 2, "PySCF does not take nonsense/sto-3g: method"),
        (("pyscf", "--method", "hf", "--basis", "nonsense"), 2, "PySCF does not take hf/nonsense: PySCF has no basis"),
        (("--forget",), 2, "Name a program"),
        (("--list", "--forget", "pyscf"), 2, "one at a time"),
        (("--list", "--seconds", "5"), 2, "measures nothing"),
        (("--forget", "pyscf"), 2, "nothing was measured here of pyscf"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    said: str,
) -> None:
    set_environment(tmp_path, monkeypatch)
    ended = main(["calibrate", *arguments])
    errors = capsys.readouterr().err
    assert (ended, said in errors) == (status, True), errors
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long threads wait for a CPU")
def test_times_that_others_disturb_are_shown_and_not_kept(tmp_path: Path) -> None:
    arguments = ("pyscf", "--method", "hf", "--basis", "cc-pvdz", "--seconds", "1")
    with busy_cpus():
        done = calibrate(tmp_path, *arguments, "--json")
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert all(row["disturbed"] and row["waited_share"] > 0.1 for row in document["measured"])
    (finding,) = document["findings"]
    many = len(document["measured"])
    assert f"others disturbed {many} of {many} measurements" in finding["message"]
    assert finding["message"] in done.stderr
    (rows,) = json.loads(Path(document["file"]).read_text())["models"].values()
    assert {row["wall_s"] for row in rows} == {None}
    for kept, shown in zip(rows, document["measured"], strict=True):
        assert kept["at_most_s"] >= shown["wall_s"]  # with what its threads waited
    assert all(row["peak_memory_bytes"] > 10 * 1024**2 for row in rows)
    model = CostStore(read_machine(), {"XDG_DATA_HOME": str(tmp_path)}).model(Kind("pyscf", "energy", "hf", "cc-pvdz"))
    assert model.origin is not None  # times are those that come with qcthreads, as if none had been measured
    assert model.origin.corrections == 0
    assert model.memory_bytes(Size(24, 10)) is not None
    listed = json.loads(calibrate(tmp_path, "--list", "--json").stdout)["models"]
    assert [(one["program"], one["timed"], one["observations"]) for one in listed] == [("pyscf", 0, many)]


@pytest.mark.skipif(
    sys.platform != "linux" or len(read_limits().cpus) < 2, reason="only Linux tells of waiting; two threads wait"
)
def test_a_run_keeps_no_time_of_threads_that_others_disturb(tmp_path: Path) -> None:
    shape = ("--program", "pyscf", "--method", "hf", "--basis", "cc-pvdz", "--max-nbody", "1", "--workers", "1")
    with busy_cpus():
        for threads in ("1", "2"):
            command = [sys.executable, "-m", "qcthreads", "run", str(WATER), *shape, "--threads", threads]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=300, check=False, env=environment(tmp_path)
            )
            assert done.returncode == 0, done.stderr
    path = CostStore(read_machine(), {"XDG_DATA_HOME": str(tmp_path)}).path("pyscf")
    (rows,) = json.loads(path.read_text())["models"].values()
    assert [row["width"] for row in rows] == [1, 2]
    assert [row["wall_s"] is None for row in rows] == [False, True]  # what one thread waited for is known
    assert all(row["peak_memory_bytes"] > 10 * 1024**2 for row in rows)


@pytest.mark.parametrize("there", ["garbage", "a directory", "a file in the way"])
def test_where_nothing_can_be_kept_nothing_is_measured(tmp_path: Path, there: str) -> None:
    path = CostStore(read_machine(), {"XDG_DATA_HOME": str(tmp_path)}).path("pyscf")
    if there == "a file in the way":
        path.parents[1].parent.mkdir(parents=True)
        path.parents[1].write_text("")
    else:
        path.parent.mkdir(parents=True)
        path.mkdir() if there == "a directory" else path.write_text("garbage")
    # A method that there is not, which is found out when the first molecule is computed, and is status 2.
    done = calibrate(tmp_path, "pyscf", "--method", "nonsense", "--basis", "sto-3g")
    assert done.returncode == 3, done.stderr
    assert str(path) in done.stderr
    assert "Errno" not in done.stderr
