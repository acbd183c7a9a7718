"""Whole runs whose calculations have widths of their own: real programs, energies, what is said, what is recorded."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from qcthreads import HybridParallelConfig, ParallelManyBodyExecutor
from qcthreads.cpuset import CpuSet
from qcthreads.host import read_machine
from qcthreads.host.limits import Rule, read_limits
from qcthreads.leases import LeaseBook
from qcthreads.manybody.inputs import read_input
from qcthreads.manybody.run import Run, RunReport, RunRequest

BENZENE = Path(__file__).parents[2] / "examples" / "benzene_dimer.xyz"

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two widths need two PUs")


@pytest.fixture(autouse=True)
def own_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others on the node have leased, or have just let go of, is not there to be wide on."""
    (tmp_path / "book").mkdir()
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One molecule with far more basis functions than all others together."""
    lines = BENZENE.read_text().splitlines()
    atoms = [*lines[2:14], *(f"He 0.0 0.0 {20 + 5 * number}" for number in range(6))]
    path = tmp_path_factory.mktemp("skewed") / "skewed.xyz"
    path.write_text(f"{len(atoms)}\n\n" + "\n".join(atoms) + "\n")
    return path


def run(path: Path, strategy: str) -> RunReport:
    request = RunRequest(input=path, method="hf", basis="sto-3g", max_nbody=1, strategy=strategy, busy="ignore")
    return Run(request).execute()


def test_the_largest_runs_wide_and_the_energies_are_the_same(skewed: Path) -> None:
    adaptive, balanced = run(skewed, "adaptive"), run(skewed, "balanced")
    assert adaptive.result is not None
    assert balanced.result is not None
    energy = balanced.result["properties"]["nocp_corrected_total_energy"]
    assert adaptive.result["properties"]["nocp_corrected_total_energy"] == pytest.approx(energy, abs=1e-8)
    widths = {row.formula: row.threads for row in adaptive.fragments}
    assert widths["C6H6"] > 1
    # The small ones may follow in the wide worker: to start another takes longer than they do.
    assert sum(adaptive.statistics["widths"].values()) == 7
    assert str(widths["C6H6"]) in adaptive.statistics["widths"]
    assert any("a width for each calculation" in reason for reason in adaptive.decision["reasons"])
    assert set(balanced.statistics["widths"]) == {str(balanced.decision["threads"])}
    for one in adaptive.record.calculations:
        assert one.planned_start_s is not None
        assert one.planned_start_s <= one.start_s
    assert all(one.planned_start_s is None for one in balanced.record.calculations)


@pytest.mark.parametrize(("strategy", "own_widths"), [("auto", False), ("adaptive", True)])
def test_of_very_many_all_have_one_width_unless_a_strategy_is_asked_for(
    skewed: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, own_widths: bool
) -> None:
    monkeypatch.setattr("qcthreads.manybody.run._PLANNED", 1)
    request = RunRequest(input=skewed, method="hf", basis="sto-3g", max_nbody=1, strategy=strategy)
    reasons = Run(request).decision["reasons"]
    assert any("a width for each calculation" in reason for reason in reasons) == own_widths


def test_an_executor_gives_widths_where_its_config_asks_for_them(
    skewed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = read_input(skewed, RunRequest(input=skewed, method="hf", basis="sto-3g", max_nbody=1))
    config = HybridParallelConfig(max_workers=7, thread_allocation_strategy="adaptive", max_total_threads=2)
    made = ParallelManyBodyExecutor.from_manybodyinput(given, config)
    figures = made.extras["qcthreads"]
    assert figures["widths"][2] >= 1
    assert sum(figures["widths"].values()) == 7
    assert figures["peak_threads"] <= 2
    (said,) = (record.getMessage() for record in caplog.records if "max_workers is 7" in record.getMessage())
    assert said.endswith("; ".join(figures["reasons"]))
    assert "as asked" not in said


@pytest.mark.parametrize("strategy", ["balanced", "adaptive"])
def test_an_executor_tells_what_limits_changed(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    """From its second look on one CPU is left."""
    book = LeaseBook(read_machine(), limits := read_limits())
    first, few = len(book.usable), CpuSet([book.usable.first])
    looks, fewer = iter([limits]), limits.within([Rule("mask", "made up", cpus=few)])
    monkeypatch.setattr("qcthreads.manybody.executor.process_book", lambda: book)
    monkeypatch.setattr("qcthreads.execution.changing._LOOK_S", 0.1)
    monkeypatch.setattr("qcthreads.execution.engine._TURN_S", 0.0)  # each calculation looks
    monkeypatch.setattr("qcthreads.execution.changing.node_limits", lambda _: next(looks, fewer))
    waters = BENZENE.with_name("water16.xyz")
    given = read_input(waters, RunRequest(input=waters, method="hf", basis="6-31g", max_nbody=1))
    config = HybridParallelConfig(max_workers=2, thread_allocation_strategy=strategy, learn=False)
    told = ParallelManyBodyExecutor.from_manybodyinput(given, config).extras["qcthreads"]
    (change,) = told["changes"]
    assert (change["cpus_usable"], change["memory_bytes"]) == (list(few), book.memory_bytes)
    assert change["why"].startswith("1 CPU may be used: mask")
    decided = (change["workers"], change["threads"], change["memory_bytes_per_worker"])
    assert decided == ((1, 1, 10**9) if strategy == "balanced" else (None, None, None))
    assert 0 < change["at_s"] < told["parallel_time"]
    thread_s = told["cpu_s"] / told["thread_efficiency"]
    pu_s = first * change["at_s"] + told["parallel_time"] - change["at_s"]
    assert told["busy_fraction"] == pytest.approx(thread_s / pu_s, rel=0.05)


@pytest.mark.parametrize("few", [{"max_workers": 1}, {"max_workers": 7, "at_most": {"pyscf": 1}}], ids=str)
def test_an_executor_that_may_run_one_at_a_time_gives_it_all_there_is(few: dict[str, Any]) -> None:
    waters = BENZENE.with_name("water4.xyz")
    given = read_input(waters, RunRequest(input=waters, method="hf", basis="sto-3g", max_nbody=1))
    config = HybridParallelConfig(thread_allocation_strategy="adaptive", max_total_threads=2, learn=False, **few)
    figures = ParallelManyBodyExecutor.from_manybodyinput(given, config).extras["qcthreads"]
    assert figures["widths"] == {2: 4}


@pytest.mark.usefixtures("others_strategy")
def test_a_run_follows_the_plan_of_another_packages_strategy(skewed: Path) -> None:
    report = run(skewed, "of-theirs")
    assert report.decision["strategy"] == "of-theirs"
    calculations = sorted(report.record.calculations, key=lambda one: one.start_s)
    most = max(width for width in (1, 2, 3, 4, 6, 8, 12, 16) if width <= len(report.decision["cpus_usable"]))
    assert [(one.label, one.threads) for one in calculations] == [(str(number), most) for number in range(7, 0, -1)]
    for one, other in itertools.pairwise(calculations):
        assert one.end_s <= other.start_s
