"""What a run measured helps the next one plan, by the command, the executor and after Ctrl-C; real calculations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from others import ended

pytest.importorskip("pyscf", reason="it computes")

from qcelemental.models.v2 import Molecule
from qcmanybody import ManyBodyCore

from qcthreads import HybridParallelConfig, ParallelConfig, ParallelManyBodyExecutor
from qcthreads.cli import main
from qcthreads.execution.calculation import Outcome
from qcthreads.execution.cost_store import CostStore, Kind
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.manybody.inputs import read_input
from qcthreads.manybody.request import RunRequest
from qcthreads.planning.costs import CostModel, Size
from qcthreads.programs.registry import find, get

EXAMPLES = Path(__file__).parents[2] / "examples"
WATER = EXAMPLES / "water4.xyz"
KIND = Kind("pyscf", "energy", "hf", "sto-3g")
QCTHREADS = [sys.executable, "-m", "qcthreads"]
Runner = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(len(read_limits().cpus) < 2, reason="with one CPU there is no width to choose")


def command(*options: str, given: Path = WATER) -> list[str]:
    return ["run", str(given), "--json", *options]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    """The command, in this process, which has imported everything; what a run tells the next is in a file."""

    def run(*options: str, given: Path = WATER) -> dict[str, Any]:
        status = main(command(*options, given=given))
        said = capsys.readouterr()
        assert status == 0, said.err
        document: dict[str, Any] = json.loads(said.out)
        return document

    return run


def model(kind: Kind = KIND) -> CostModel:
    return CostStore(read_machine()).model(kind)


def test_a_second_run_knows_seconds_from_the_first(run: Runner) -> None:
    options = ("--method", "hf", "--basis", "sto-3g")
    assert run(*options, "--dry-run")["decision"]["expected_wall_s"] is None
    subprocess.run([*QCTHREADS, *command(*options)], capture_output=True, timeout=300, check=True)
    decision = run(*options, "--dry-run")["decision"]
    assert "measured model" in "; ".join(decision["reasons"])
    assert {(seen.size.basis_functions, seen.size.electrons) for seen in model().observations} == {(24, 10), (48, 20)}
    assert all(seen.peak_memory_bytes > 50 * 1024**2 for seen in model().observations)
    # Of four monomers and six dimers: between all CPUs busy at the best width and one after the other.
    cpus = len(read_limits().cpus)
    terms, known = {Size(24, 10): 4, Size(48, 20): 6}, model()

    def seconds(size: Size, width: int) -> float:
        estimate = known.seconds(size, width)
        assert estimate is not None
        return estimate.value

    least = sum(
        count * min(width * seconds(size, width) for width in range(1, cpus + 1)) for size, count in terms.items()
    )
    serial_s = sum(count * seconds(size, 1) for size, count in terms.items())
    assert 0.99 * least / cpus <= decision["expected_wall_s"] <= 2 * serial_s + 10


def test_keywords_make_another_kind_and_begin_with_what_defaults_took(run: Runner) -> None:
    run("--method", "hf", "--basis", "sto-3g", "--keywords", '{"conv_tol": 1e-6}', "--max-nbody", "1")
    told = Kind("pyscf", "energy", "hf", "sto-3g", '{"conv_tol": 1e-06}')
    assert not model().observations
    assert model(told).observations
    run("--method", "hf", "--basis", "sto-3g", "--max-nbody", "1")
    other = Kind("pyscf", "energy", "hf", "sto-3g", '{"conv_tol": 1e-08}')
    assert model(other).times_s(Size(24, 10), (1,)) == model().times_s(Size(24, 10), (1,))
    assert not model(other).observations
    assert model().observations != model(told).observations


def test_what_had_ended_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.store"
    one_by_one = ("--workers", "1", "--threads", "1")  # of more threads, whose time others disturb, only peaks are kept
    options = ("--method", "mp2", "--basis", "cc-pvdz", "--max-nbody", "3", *one_by_one, "--store", str(path))
    asked = [*QCTHREADS, *command(*options)]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and ended(path) < 2:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 4
    kept = model(Kind("pyscf", "energy", "mp2", "cc-pvdz"))
    assert (72, 30) in {(seen.size.basis_functions, seen.size.electrons) for seen in kept.observations}


def test_an_executor_plans_with_what_runs_measured_and_adds_to_it() -> None:
    request = RunRequest(input=WATER, method="hf", basis="sto-3g", max_nbody=2)
    config = HybridParallelConfig(max_workers=2, thread_allocation_strategy="adaptive")

    def reasons() -> str:
        made = ParallelManyBodyExecutor.from_manybodyinput(read_input(WATER, request), config)
        return "; ".join(made.extras["qcthreads"]["reasons"])

    assert "seconds are not" in reasons()
    assert model().observations
    assert "measured model" in reasons()


def noble(kind: type[ParallelConfig] = ParallelConfig, **options: Any) -> tuple[ParallelManyBodyExecutor, list[Any]]:
    """Of two atoms of helium and one of neon, and its dimers."""
    molecule = Molecule.from_data("He 0 0 0\n--\nHe 0 0 3\n--\nNe 0 0 6")
    core = ManyBodyCore(molecule, ["nocp"], {1: "hf", 2: "hf"}, return_total_data=True, supersystem_ie_only=False,
                        embedding_charges={})  # fmt: skip
    dimers = [one for one in core.iterate_molecules() if len(one[2].symbols) == 2]
    return ParallelManyBodyExecutor(core, kind(qc_program="pyscf", **options)), dimers


def test_the_next_call_of_an_executor_that_keeps_its_workers_plans_with_what_was_measured() -> None:
    executor, dimers = noble(HybridParallelConfig, max_workers=2, thread_allocation_strategy="adaptive")
    with executor:
        for known in ("seconds are not", "measured model"):
            executor.execute_level_parallel(2, dimers)
            assert known in "; ".join(executor.get_execution_statistics()["reasons"])


def sizes() -> set[tuple[int, int]]:
    return {(seen.size.basis_functions, seen.size.electrons) for seen in model().observations}


def test_an_executor_learns_from_calls_that_go_on_while_another_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    executor, dimers = noble()
    run_them = LocalEngine.run

    def run_while_another_ends(*given: Any, **options: Any) -> Iterator[Outcome]:
        for outcome in run_them(*given, **options):
            executor._learn()
            yield outcome

    monkeypatch.setattr(LocalEngine, "run", run_while_another_ends)
    executor.execute_level_parallel(2, dimers)
    assert sizes() == {(10, 4), (19, 12)}


def test_single_fragments_are_learned_from_together_when_their_executor_is_closed() -> None:
    executor, dimers = noble()
    for dimer in dimers:
        executor.execute_fragment(dimer)
        assert not sizes()
    executor.close()
    assert sizes() == {(10, 4), (19, 12)}
    many = len(model().observations)
    executor.close()
    assert len(model().observations) == many


def test_who_does_not_want_measurements_kept_gets_no_file(run: Runner) -> None:
    executor, dimers = noble(learn=False)
    executor.execute_level_parallel(2, dimers)
    executor.close()
    run("--method", "hf", "--basis", "sto-3g", "--max-nbody", "1", "--no-learn")
    assert not CostStore(read_machine()).path("pyscf").exists()


def test_model_chemistries_have_widths_of_their_own_once_each_was_measured(run: Runner, tmp_path: Path) -> None:
    if find(get("xtb")) is None:
        assert os.environ.get("CI") != "true", "xtb must be installed in CI"
        pytest.skip("xtb is not installed here")
    levels = tmp_path / "levels.json"  # of kinds that no measurements come with
    text = (EXAMPLES / "levels.json").read_text()
    levels.write_text(text.replace("cc-pvdz", "sto-3g").replace("GFN2-xTB", "GFN1-xTB"))
    first = run("--dry-run", given=levels)["decision"]
    assert first["expected_wall_s"] is None
    run(given=levels)
    second = run("--dry-run", given=levels)["decision"]
    assert second["expected_wall_s"] > 0
    assert "measured model" in "; ".join(second["reasons"])
    again = run("--strategy", "adaptive", given=levels)
    assert sum(again["statistics"]["widths"].values()) == again["statistics"]["fragments_total"]


def test_what_comes_with_it_serves_until_something_is_measured_here(run: Runner) -> None:
    options = ("--method", "mp2", "--basis", "cc-pvdz")
    first = run(*options, "--dry-run")["decision"]
    assert first["expected_wall_s"] > 0
    assert "another machine" in "; ".join(first["reasons"])
    run(*options)
    assert "corrected by 2 measurements here" in "; ".join(run(*options, "--dry-run")["decision"]["reasons"])
