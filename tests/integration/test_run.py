"""A whole run, from a file to a report: store and resume, failures, stopping, and where it may be called from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from others import until
from qcmanybody.v2 import ManyBodyComputer

import qcthreads.programs.harnesses.pyscf  # noqa: F401 (QCManyBody's own driver finds PySCF by it)
from qcthreads import open_store
from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, OversubscriptionError, ProgramNotFoundError
from qcthreads.host.limits import Limits, Rule, read_limits
from qcthreads.leases import LeaseBook, node_book
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.manybody.head_start import HeadStart, likely_program
from qcthreads.manybody.inputs import read_input
from qcthreads.manybody.moldable import START_UP_S
from qcthreads.manybody.run import Run, RunRequest
from qcthreads.manybody.run_tally import mixed_versions

EXAMPLES = Path(__file__).parents[2] / "examples"
WATER4 = EXAMPLES / "water4.xyz"
FAST = {"method": "hf", "basis": "sto-3g"}

# RHF is for singlets: what contains the hydrogen atom fails, the rest does not.
HYDROGEN = "3\n\nHe 0 0 0\nH 0 0 4\nNe 0 0 8\n"
RADICAL = {"charges": [0, 0, 0], "multiplicities": [1, 2, 1], "keywords": {"reference": "rhf"}}


def request(path: Path = WATER4, **options) -> RunRequest:
    return RunRequest(input=path, **(FAST | options))


def warm_run(asked: RunRequest) -> Run:
    return Run(asked, HeadStart(asked, warm=True))


@pytest.fixture(scope="module")
def report():
    return Run(request(max_nbody=3)).execute()


def test_energies_are_those_of_qcmanybody(report):
    serial = ManyBodyComputer.from_manybodyinput(read_input(WATER4, request(max_nbody=3)))
    assert report.result["return_result"] == pytest.approx(serial.return_result, abs=1e-9)
    body = report.bodies[-1]
    properties = serial.properties
    assert (body.bsse, body.nbody) == ("nocp", 3)
    assert body.total_hartree == pytest.approx(properties.nocp_corrected_total_energy, abs=1e-9)
    assert body.interaction_hartree == pytest.approx(properties.nocp_corrected_interaction_energy, abs=1e-9)
    assert body.contribution_hartree == pytest.approx(properties.nocp_corrected_3_body_contribution_to_energy, abs=1e-9)
    assert [row.nbody for row in report.bodies] == [1, 2, 3]


def test_the_table_of_fragments(report):
    assert [row.nbody for row in report.fragments] == [1] * 4 + [2] * 6 + [3] * 4
    dimer = report.fragments[4]
    assert (dimer.formula, dimer.fragments, dimer.ghosts, dimer.electrons, dimer.charge) == ("H4O2", (1, 2), (), 20, 0)
    positions = [tuple(map(float, line.split()[1:])) for line in WATER4.read_text().splitlines()[2:8]]
    closest = min(sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for p in positions[:3] for q in positions[3:])
    assert dimer.closest_contact_angstrom == pytest.approx(closest**0.5, abs=1e-6)
    assert report.fragments[0].closest_contact_angstrom is None
    assert all(row.energy_hartree is not None and row.wall_s is not None for row in report.fragments)
    assert {row.worker_pid for row in report.fragments} != {os.getpid()}


def test_the_report_as_json(report):
    document = json.loads(json.dumps(report.to_json()))
    assert {"result", "statistics", "decision", "findings"} <= set(document)
    statistics = document["statistics"]
    assert statistics["fragments_total"] == statistics["fragments_computed"] == 14
    assert statistics["fragments_reused"] == statistics["fragments_failed"] == 0
    assert 0 < statistics["thread_efficiency"] < 1.5
    assert 0 < statistics["oversubscription"] <= 1
    assert statistics["wall_s"] > 0
    assert document["result"]["schema_name"] == "qcschema_many_body_result"
    assert [row["energy_hartree"] for row in document["fragments"]] == [row.energy_hartree for row in report.fragments]
    assert all(set(row["cpus"]) <= set(document["decision"]["cpus_usable"]) for row in document["fragments"])


def test_the_decision_is_within_what_may_be_used(report):
    decision = report.decision
    allowed = set(psutil.Process().cpu_affinity())
    places = [set(place) for place in decision["cpus_by_worker"]]
    assert len(places) == decision["workers"]
    assert all(len(place) == decision["threads"] for place in places)
    assert len(set().union(*places)) == decision["workers"] * decision["threads"]
    assert set().union(*places) <= allowed
    assert decision["memory_bytes_per_worker"] * decision["workers"] <= psutil.virtual_memory().total
    assert decision["reasons"]
    # Seen on a busy machine: one that had all of them.
    assert all(set(CpuSet.parse(row.cpus)) <= allowed for row in report.fragments)


def test_nothing_is_started_before_execute():
    before = set(psutil.Process().children())
    run = Run(request(max_nbody=2))
    assert run.counts_by_nbody == {1: 4, 2: 6}
    assert len(run.fragments) == 10
    assert set(psutil.Process().children()) == before


def test_warm_workers_compute_and_end(report, monkeypatch):
    monkeypatch.setenv("QCTHREADS_LEASES", "process")
    before = set(psutil.Process().children())
    with warm_run(request(max_nbody=3)) as run:
        deadline = time.monotonic() + 60
        while len(warm := {child.pid for child in set(psutil.Process().children()) - before}) < run.decision["workers"]:
            assert time.monotonic() < deadline, f"only {len(warm)} workers were started before they were needed"
            time.sleep(0.01)
        warmed = run.execute()
        assert {row.worker_pid for row in warmed.fragments} <= warm
    assert warmed.result["return_result"] == pytest.approx(report.result["return_result"], abs=1e-10)
    assert set(psutil.Process().children()) == before


@pytest.mark.parametrize(
    ("program", "options"),
    [
        ("pyscf", {"threads": 2}),
        ("tblite", {"threads": 1}),
        ("tblite", {"threads": 2}),
        ("dftd4", {"threads": 2}),
    ],
    ids=["any width", "one width, 1", "one width, 2", "asked for more than it uses"],
)
def test_no_worker_starts_where_one_is_ready(program, options, monkeypatch):
    if len(read_limits().cpus) < options["threads"]:
        pytest.skip("so many PUs may not be used here")
    pytest.importorskip(program)
    monkeypatch.setenv("QCTHREADS_LEASES", "process")
    method = {"pyscf": "hf", "tblite": "GFN2-xTB", "dftd4": "b3lyp"}[program]
    basis = "sto-3g" if program == "pyscf" else None
    asked = request(program=program, method=method, basis=basis, workers=1, max_nbody=1, **options)
    head_start = HeadStart(asked, warm=True)
    with Run(asked, head_start) as run:
        until(lambda: not head_start.book.held())
        kinds, before = head_start.engine.workers(), set(psutil.Process().children())
        assert head_start.workers == kinds
        report = run.execute()
    assert not report.missing
    assert {row.worker_pid for row in report.fragments} <= {child.pid for child in before}


@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="with one PU there is no width to choose")
@pytest.mark.parametrize("memory_mib", [420, 4096])
def test_a_dry_run_foresees_what_the_run_does(memory_mib, monkeypatch):
    """Of MP2 in this basis seconds are known; a model of the kind comes with qcthreads."""
    monkeypatch.setenv("QCTHREADS_LEASES", "process")
    cpus = CpuSet(list(read_limits().cpus)[:2])
    model = {"method": "mp2", "basis": "cc-pvdz", "max_nbody": 4}
    asked = request(**model, memory_bytes=memory_mib * 1024**2, cpus=cpus, busy="ignore")
    with Run(asked) as dry, warm_run(asked) as warm:
        assert dry.decision == warm.decision
    assert dry.decision["expected_wall_s"] > START_UP_S
    assert dry.decision["workers"] * dry.decision["threads"] <= len(cpus)


@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="one PU is left over where there are two")
def test_as_long_as_the_input_is_read_one_pu_is_left_over(monkeypatch):
    monkeypatch.setenv("QCTHREADS_LEASES", "process")  # what others lease meanwhile is not at issue
    asked = request()
    with HeadStart(asked, warm=True) as head_start:
        usable = len(head_start.book.usable)
        assert (len(head_start.book.held()), head_start.workers) == (usable - 1, {("pyscf", 0): usable})
        head_start.complete(usable, 1, ["pyscf"])
        assert len(head_start.book.held()) == usable


@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="one PU is left over where there are two")
def test_the_worker_that_was_left_out_ends_none_that_is_ready(monkeypatch):
    monkeypatch.setenv("QCTHREADS_LEASES", "process")
    before = set(psutil.Process().children())
    with HeadStart(request(cpus=CpuSet(list(read_limits().cpus)[:2])), warm=True) as head_start:
        until(lambda: not head_start.book.held())
        (ready,) = set(psutil.Process().children()) - before
        head_start.complete(2, 1, ["pyscf"])
        until(lambda: not head_start.book.held())
        there = set(psutil.Process().children()) - before
    assert len(there) == 2
    assert ready in there


def test_a_pu_is_left_over_of_wide_workers_too(monkeypatch):
    machine = synthetic_machine(cores=4)
    rule = Rule("online", "made up", cpus=CpuSet(range(4)), tightest=True)
    limits = Limits(cpus=CpuSet(range(4)), cpu_count=4, quota_cpus=None, memory_bytes=8 * 1024**3, rules=(rule,))
    monkeypatch.setattr(
        "qcthreads.manybody.head_start.node_book", lambda **options: LeaseBook(machine, limits, **options)
    )
    asked = request(workers=2, threads=2, affinity=False, busy="ignore")
    with HeadStart(asked, warm=True) as head_start:
        assert (len(head_start.book.held()), head_start.workers) == (1, {("pyscf", 0): 2})
        head_start.complete(2, 2, ["pyscf"])
        assert len(head_start.book.held()) == 2


def test_workers_that_could_not_start_are_not_planned_with(monkeypatch, tmp_path):
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "leases"))
    others = node_book(busy="ignore")
    before = set(psutil.Process().children())
    with others.acquire(len(others.usable)), HeadStart(request(), warm=True) as head_start:
        assert HeadStart(request()).workers == head_start.workers == {}
        head_start.complete(len(others.usable), 1, ["pyscf"])
        assert set(psutil.Process().children()) == before


def test_an_input_that_is_not_there_starts_nothing(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the input .*none\.xyz: No such file"):
        HeadStart(request(tmp_path / "none.xyz"), warm=True)


def test_workers_do_not_wait_for_what_watches_them():
    script = f"""
import sys, time
from pathlib import Path
from qcthreads.manybody.head_start import HeadStart
from qcthreads.manybody.request import RunRequest

with HeadStart(RunRequest(input=Path({str(WATER4)!r}), method="hf", basis="sto-3g"), warm=True) as head_start:
    while head_start.book.held():
        time.sleep(0.01)
    print(head_start.workers != {{}}, "numpy" in sys.modules)
    head_start.watching.get_ready()
    print(head_start.watching.monitor.moments(0)[0].memory_bytes > 0)
"""
    environment = {**os.environ, "QCTHREADS_LEASES": "process"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


@pytest.mark.parametrize(
    ("models", "program"),
    [
        ({"program": "Psi4", "model": {"method": "hf"}}, "psi4"),
        ({"(auto)": {"program": "pyscf"}}, "pyscf"),
        ({"a": {"program": "xtb"}, "b": {"program": "pyscf"}, "c": {"program": "pyscf"}}, "pyscf"),
        ({"a": {"model": {"method": "hf"}}}, None),
        ({}, None),
    ],
)
def test_the_program_is_guessed_from_a_look_at_the_input(models, program, tmp_path):
    (tmp_path / "input.json").write_text(json.dumps({"specification": {"specification": models}}))
    assert likely_program(RunRequest(input=tmp_path / "input.json")) == program


@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="two threads need two PUs")
def test_where_there_is_memory_for_one_its_worker_starts_with_all_threads():
    asked = request(max_nbody=1, memory_bytes=300 * 1024**2, max_total_threads=2)
    with warm_run(asked) as run:
        statistics = run.execute().statistics
    assert statistics["widths"] == {"2": 4}
    assert len(statistics["worker_processes"]) == 1


def test_a_warm_run_that_is_refused_leaves_nothing(tmp_path):
    before = set(psutil.Process().children())
    (tmp_path / "bad.xyz").write_text("2\n\nHe 0 0 0\n")
    with pytest.raises(InputError):
        warm_run(request(tmp_path / "bad.xyz"))
    with warm_run(request()):
        pass
    assert set(psutil.Process().children()) == before


def test_charges_and_ions(tmp_path):
    path = tmp_path / "ions.xyz"
    path.write_text("5\n\nLi 0 0 0\nF 0 0 3.0\nO 3.0 0 0\nH 3.5 0.757 0\nH 3.5 -0.757 0\n")
    asked = request(path, charges=[1, -1, 0], bsse=["nocp", "cp"], max_nbody=2)
    report = Run(asked).execute()
    serial = ManyBodyComputer.from_manybodyinput(read_input(path, asked))
    for name in ("nocp_corrected_total_energy", "cp_corrected_total_energy", "cp_corrected_interaction_energy"):
        assert report.result["properties"][name] == pytest.approx(getattr(serial.properties, name), abs=1e-9)
    assert [row.charge for row in report.fragments if row.nbody == 1 and not row.ghosts] == [1, -1, 0]
    assert {row.bsse for row in report.bodies} == {"nocp", "cp"}
    assert "counterpoise" in report.bsse_treatment


def test_failures_are_named_and_no_total_is_given(tmp_path):
    path = tmp_path / "radical.xyz"
    path.write_text(HYDROGEN)
    store = tmp_path / "radical.store"
    report = Run(request(path, max_nbody=2, store=store, **RADICAL)).execute()
    with_hydrogen = {'["(auto)", [2], [2]]', '["(auto)", [1, 2], [1, 2]]', '["(auto)", [2, 3], [2, 3]]'}
    assert set(report.missing) == set(report.failures) == with_hydrogen
    assert all("RHF is for singlets" in error for error in report.failures.values())
    assert report.result is None
    assert report.bodies == ()
    assert report.statistics["fragments_computed"] == 3
    assert report.statistics["fragments_failed"] == 3
    with open_store(store) as reader:
        assert reader.status() == {"total": 6, "finished": 3, "failed": 3, "running": 0}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"basis": "cc-pvdzz"}, "did you mean cc-pvdz"),
        ({"method": "ccsd"}, "offered are hf and mp2"),
        ({"keywords": {"density_fitt": True}}, "did you mean density_fit?"),
        ({"keywords": {"max_cycle": "many"}}, "keyword max_cycle is 'many'"),
    ],
)
def test_what_the_program_does_not_know_is_refused_before_anything_is_computed(tmp_path, asked, said):
    store = tmp_path / "refused.store"
    with pytest.raises(InputError) as refused, Run(request(store=store, **asked)) as run:
        run.execute()
    assert said in str(refused.value)
    assert not store.exists()


def test_an_element_that_the_basis_lacks_is_told_which_have_it(tmp_path):
    path = tmp_path / "xenon.xyz"
    path.write_text("3\n\nHe 0 0 0\nXe 0 0 4\nNe 0 0 8\n")
    with (
        pytest.raises(InputError, match=r"no basis set '6-31g' for Xe, .*def2-svp"),
        Run(request(path, basis="6-31g")) as run,
    ):
        run.execute()


def test_a_stopped_run_is_resumed_where_it_was(tmp_path, report):
    store = tmp_path / "water.store"
    ended = []

    def stop_at_the_fourth(progress):
        if progress.event == "finished":
            ended.append(progress.label)
            if len(ended) == 4:
                raise KeyboardInterrupt

    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt):
        Run(request(max_nbody=3, store=store)).execute(stop_at_the_fourth)
    assert set(psutil.Process().children(recursive=True)) == before
    with open_store(store) as reader:
        kept = set(reader.results())
        assert reader.status()["running"] == 0
    assert set(ended[:3]) <= kept

    with pytest.raises(InputError, match="--resume"):
        Run(request(max_nbody=3, store=store))
    with pytest.raises(InputError, match="basis"):
        Run(request(max_nbody=3, store=store, resume=True, basis="6-31g")).execute()

    started = []
    resumed = Run(request(max_nbody=3, store=store, resume=True, workers=1)).execute(
        lambda progress: started.append(progress.label) if progress.event == "started" else None
    )
    assert set(started) == {row.label for row in report.fragments} - kept
    assert resumed.statistics["fragments_reused"] == len(kept)
    assert resumed.result["return_result"] == pytest.approx(report.result["return_result"], abs=1e-9)

    again = Run(request(max_nbody=3, store=store, resume=True)).execute()
    assert again.statistics["fragments_computed"] == 0
    assert again.result["return_result"] == resumed.result["return_result"]


def test_a_higher_order_reuses_the_lower_ones(tmp_path):
    store = tmp_path / "orders.store"
    Run(request(max_nbody=1, store=store)).execute()
    report = Run(request(max_nbody=2, store=store, resume=True)).execute()
    assert report.statistics["fragments_reused"] == 4
    assert report.statistics["fragments_computed"] == 6
    with open_store(store) as reader:
        results = dict(reader.results())
    assert mixed_versions(results) == []
    label, one = next(iter(results.items()))
    results[label] = {**one, "provenance": {**one["provenance"], "version": "0.1"}}
    (found,) = mixed_versions(results)
    assert found.kind == "mixed-versions"
    assert f" 0.1 and PySCF {one['provenance']['version']}: recompute" in found.message


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"workers": 1000, "threads": 8}, OversubscriptionError, "8000 threads.*may be used.*ask for at most"),
        ({"strategy": "best"}, InputError, "'best' is not known; there are: auto, balanced, adaptive, memory-aware"),
        ({"program": "cfour"}, ProgramNotFoundError, "not installed"),
        ({"cpus": CpuSet([100_000])}, OversubscriptionError, "100000"),
        ({"memory_bytes": 1 << 60}, OversubscriptionError, "may be used"),
        ({"memory_bytes": 1 << 20}, OversubscriptionError, "may be used"),
        ({"resume": True}, InputError, "--store"),
        ({"scratch": Path("/nowhere/at/all")}, InputError, "scratch directory .* is not there"),
        ({"store": Path("/nowhere/at/all.store")}, InputError, "directory .* is not there"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(options, error, said):
    with pytest.raises(error, match=said):
        Run(request(**options))


JOB = """
from pathlib import Path
from qcthreads.manybody.run import Run, RunRequest
from qcthreads.manybody.run_tally import mixed_versions

report = Run(RunRequest(input=Path({path!r}), method="hf", basis="sto-3g", max_nbody=1)).execute()
print("energy", report.result["return_result"])
"""


def test_from_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(JOB.format(path=str(WATER4)))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert energies(done.stdout) == [pytest.approx(4 * -74.9634, abs=1e-3)]


def test_from_a_notebook(tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(JOB.format(path=str(WATER4)))])
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    assert energies(printed) == [pytest.approx(4 * -74.9634, abs=1e-3)]


def energies(text: str) -> list[float]:
    return [float(line.split()[1]) for line in text.splitlines() if line.startswith("energy ")]
