"""Psi4, PySCF and xtb in one multi-level expansion, at the same time, against QCManyBody's own serial driver."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("qcmanybody", reason="the expansion is QCManyBody's")

from qcmanybody.models.v2 import ManyBodyInput

import qcthreads.manybody.executor
import qcthreads.manybody.run
from qcthreads import ParallelConfig, ParallelManyBodyExecutor
from qcthreads.cli.results import print_report
from qcthreads.cpuset import CpuSet
from qcthreads.execution.labels import find_label
from qcthreads.execution.store import open_store
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.manybody.request import RunRequest
from qcthreads.manybody.run import Run
from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import find, get
from qcthreads.programs.settings import settings_for

PROGRAMS = {"p4": "psi4", "py": "pyscf", "x": "xtb"}
SERIAL = """
import importlib, json, sys
for module in ("psi4", "pyscf"):
    importlib.import_module(f"qcthreads.programs.harnesses.{module}")
from qcmanybody.models.v2 import ManyBodyInput
from qcmanybody.v2 import ManyBodyComputer
result = ManyBodyComputer.from_manybodyinput(ManyBodyInput(**json.load(sys.stdin)))
json.dump({"energy": float(result.return_result), "properties": result.properties.model_dump(mode="json")}, sys.stdout)
"""


@pytest.fixture(scope="module")
def given():
    for program in PROGRAMS.values():
        if find(get(program)) is None:
            assert os.environ.get("CI") != "true", f"{program} must be installed in CI"
            pytest.skip(f"{program} is not installed here")
    waters = [x + shift for shift in (0.0, 5.0, 10.0) for x in (0, 0, 0.22, 0, 1.43, -0.9, 0, -1.43, -0.9)]
    tight = {"e_convergence": 1e-10, "d_convergence": 1e-10}
    atomic = {
        "p4": {"program": "psi4", "driver": "energy", "model": {"method": "hf", "basis": "6-31g"}, "keywords": tight},
        "py": {"program": "pyscf", "driver": "energy", "model": {"method": "hf", "basis": "sto-3g"}},
        "x": {"program": "xtb", "driver": "energy", "model": {"method": "GFN2-xTB"}},
    }
    return {
        "schema_name": "qcschema_many_body_input",
        "molecule": {
            "symbols": ["O", "H", "H"] * 3,
            "geometry": waters,
            "fragments": [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        },
        "specification": {
            "driver": "energy",
            "specification": atomic,
            "keywords": {
                "bsse_type": ["nocp"],
                "levels": {"1": "p4", "2": "py", "3": "x"},
                "return_total_data": True,
            },
        },
    }


@pytest.fixture
def document(given):
    return copy.deepcopy(given)


@pytest.fixture(scope="module")
def serial(given):
    return _serial(given)


def _serial(document):
    """What QCManyBody's own driver makes of it, with as many threads as ours: one."""
    environment = environment_under(settle(settings_for(get("pyscf"), 1), os.environ, counts=False), os.environ) | {
        "QCENGINE_NCORES": "1"
    }
    done = subprocess.run(
        [sys.executable, "-c", SERIAL],
        input=json.dumps(document),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index('{"energy"') :])


@pytest.fixture
def three_cpus(monkeypatch):
    """As if this machine had three CPUs: what is leased is counted, and nothing is bound."""
    machine = synthetic_machine(cores=3)
    limits = Limits(
        cpus=CpuSet(range(3)),
        cpu_count=3,
        quota_cpus=None,
        memory_bytes=6 * 1024**3,
        rules=(Rule("online", "made up", cpus=CpuSet(range(3)), tightest=True),),
    )
    monkeypatch.setenv("QCTHREADS_LEASES", "process")
    monkeypatch.setattr(qcthreads.manybody.run, "node_book", lambda **options: LeaseBook(machine, limits, **options))
    monkeypatch.setattr(qcthreads.manybody.executor, "process_book", lambda: LeaseBook(machine, limits))


@pytest.mark.psi4
@pytest.mark.usefixtures("three_cpus")
def test_three_programs_compute_at_the_same_time_on_made_up_cpus(document, serial, tmp_path, capsys):
    path, store = tmp_path / "levels.json", tmp_path / "levels.store"
    path.write_text(json.dumps(document))
    running: dict[str, str] = {}
    together: set[frozenset[str]] = set()

    def watch(progress):
        if progress.event == "started":
            running[progress.label] = PROGRAMS[json.loads(progress.label)[0]]
        elif progress.event in ("finished", "failed"):
            del running[progress.label]
        together.add(frozenset(running.values()))

    request = RunRequest(input=path, workers=3, threads=1, affinity=False, busy="ignore", store=store)
    with Run(request) as run:
        report = run.execute(watch)
    assert not report.failures
    assert frozenset(PROGRAMS.values()) in together
    assert report.result["return_result"] == pytest.approx(serial["energy"], abs=1e-9)
    for name, value in serial["properties"].items():
        if isinstance(value, float):
            assert report.result["properties"][name] == pytest.approx(value, abs=1e-9), name
    figures = report.statistics["by_model_chemistry"]
    assert {name: one["calculations"] for name, one in figures.items()} == {"p4": 3, "py": 6, "x": 7}
    assert [one["orders"] for one in report.decision["model_chemistries"]] == [[1], [2], [3]]
    assert not [finding for finding in report.findings if finding["kind"] == "mixed-versions"]
    print_report(report, None)
    said = capsys.readouterr().out
    assert "1-body hf/6-31g (psi4), 2-body hf/sto-3g (pyscf), 3-body GFN2-xTB (xtb)" in said
    with open_store(store) as opened:
        assert find_label("py:2+1", opened.labels(), "it") == '["py", [1, 2], [1, 2]]'
        assert find_label("1+2+3", opened.labels(), "it") == '["x", [1, 2, 3], [1, 2, 3]]'
        with pytest.raises(qcthreads.errors.InputError, match=r"p4:1.*py:1.*x:1"):
            find_label("1", opened.labels(), "it")


@pytest.mark.psi4
@pytest.mark.usefixtures("three_cpus")
def test_the_executor_gives_the_same_on_made_up_cpus(document, serial):
    made = ParallelManyBodyExecutor.from_manybodyinput(ManyBodyInput(**document), ParallelConfig(max_workers=3))
    assert made.return_result == pytest.approx(serial["energy"], abs=1e-9)


@pytest.mark.psi4
@pytest.mark.usefixtures("three_cpus")
@pytest.mark.parametrize(
    ("levels", "bsse", "calculations", "told"),
    [
        (
            {"1": "p4", "2": "py", "supersystem": "x"},
            ["nocp"],
            {"p4": 3, "py": 6, "x": 7},
            "supersystem GFN2-xTB (xtb)",
        ),
        ({"2": "py", "supersystem": "p4"}, ["cp", "nocp"], None, "1+2-body hf/sto-3g (pyscf), supersystem hf/6-31g"),
    ],
    ids=["three programs", "counterpoise"],
)
def test_what_is_beyond_the_orders_comes_from_the_supersystem(
    document, tmp_path, capsys, levels, bsse, calculations, told
):
    document["specification"]["keywords"] |= {"levels": levels, "bsse_type": bsse}
    named = document["specification"]["specification"]
    document["specification"]["specification"] = {name: named[name] for name in dict.fromkeys(levels.values())}
    path = tmp_path / "levels.json"
    path.write_text(json.dumps(document))
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(_serial, document)
        with Run(RunRequest(input=path, workers=3, threads=1, affinity=False, busy="ignore")) as run:
            counts = run.counts_by_nbody
            report = run.execute()
        serial = theirs.result()
    assert not report.failures
    assert report.result["return_result"] == pytest.approx(serial["energy"], abs=1e-9)
    for name, value in serial["properties"].items():
        if isinstance(value, float):
            assert report.result["properties"][name] == pytest.approx(value, abs=1e-9), name
    if calculations is not None:
        figures = report.statistics["by_model_chemistry"]
        assert {name: one["calculations"] for name, one in figures.items()} == calculations
    assert sum(counts.values()) == report.statistics["fragments_total"]
    assert report.bodies[-1].nbody == 3
    print_report(report, None)
    assert told in capsys.readouterr().out
