"""``qcthreads calibrate PROGRAM`` with the embedded engine, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qcthreads.host.limits import read_limits

WATER = Path(__file__).parents[2] / "examples/water4.xyz"
CALIBRATE = [sys.executable, "-m", "qcthreads", "calibrate"]


def calibrate(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_DATA_HOME": str(home)}
    return subprocess.run(
        [*CALIBRATE, *arguments], capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def test_what_was_measured_is_kept_and_predicts_it(tmp_path: Path) -> None:
    arguments = ("pyscf", "--method", "hf", "--basis", "sto-3g", "--seconds", "10", "--json")
    done = calibrate(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    measured = document["measured"]
    assert {row["threads"] for row in measured} >= {1}
    assert all(row["wall_s"] > 0 and row["peak_memory_bytes"] > 10 * 1024**2 for row in measured)
    assert len({row["basis_functions"] for row in measured}) >= 2
    # It was fitted to these: within what their scatter allows. A law of another size would be far off.
    close = [0.3 < row["predicted_s"] / row["wall_s"] < 3 for row in measured]
    assert sum(close) >= 0.8 * len(close)
    kept = json.loads(Path(document["file"]).read_text())
    assert len(kept["models"]["energy|hf|sto-3g"]) == len(measured)
    again = json.loads(calibrate(tmp_path, *arguments).stdout)
    assert again["observations"] == len(measured) + len(again["measured"])


@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="with one CPU there is no width to choose")
def test_a_run_plans_with_what_was_measured(tmp_path: Path) -> None:
    def expected() -> float | None:
        options = ("--program", "pyscf", "--method", "hf", "--basis", "sto-3g", "--max-nbody", "2")
        command = [sys.executable, "-m", "qcthreads", "run", str(WATER), *options, "--dry-run", "--json"]
        environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
        seconds: float | None = json.loads(done.stdout)["decision"]["expected_wall_s"]
        return seconds

    assert expected() is None
    assert calibrate(tmp_path, "pyscf", "--method", "hf", "--basis", "sto-3g", "--seconds", "3").returncode == 0
    seconds = expected()
    assert seconds is not None
    assert 0.01 < seconds < 600


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
        (("pyscf", "--method", "nonsense", "--basis", "sto-3g", "--seconds", "5"), 1, "nonsense"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, arguments: tuple[str, ...], status: int, said: str) -> None:
    done = calibrate(tmp_path, *arguments)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert not list(tmp_path.rglob("*.json"))
