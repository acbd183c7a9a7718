"""Every benchmark says what it is and what it takes, and refuses what it cannot measure with; none is run here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bench_planning
import measure_shipped
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
BENCHMARKS = [*sorted(FOLDER.glob("bench_*.py")), FOLDER / "measure_shipped.py"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="some of them need what POSIX alone has")


def _run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_each_tells_what_it_is_and_takes(script: Path) -> None:
    ended = _run(script, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: {script.name} [-h]")
    first_line = script.read_text(encoding="utf-8").splitlines()[0].removeprefix('"""')
    assert first_line in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bench_hybrid.py", "--rounds", "0"), "--rounds: 0 is too few; give at least 1"),
        (("bench_costs.py", "--rounds", "1"), "--rounds: 1 is too few; give at least 2"),
        (("bench_auto.py", "--rounds", "many"), "--rounds: invalid number value: 'many'"),
        (("bench_auto.py", "--round", "3"), "unrecognized arguments: --round 3"),
    ],
)
def test_what_cannot_be_measured_with_is_refused(arguments: tuple[str, ...], said: str) -> None:
    ended = _run(FOLDER / arguments[0], *arguments[1:])
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_exact_solver_that_is_missing_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    monkeypatch.setattr(sys, "argv", ["bench_planning.py", "--exact", "1"])
    with pytest.raises(SystemExit, match="2"):
        bench_planning.main()
    assert "--exact needs OR-tools, which the extra test brings" in capsys.readouterr().err


def test_the_reference_lists_what_comes_with_it() -> None:
    assert measure_shipped.table_in(measure_shipped.DOCUMENT.read_text(encoding="utf-8")) == measure_shipped.table()
