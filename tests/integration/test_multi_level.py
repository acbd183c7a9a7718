"""Psi4, PySCF and xtb in one multi-level expansion, at the same time, against QCManyBody's own serial driver."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("qcmanybody", reason="the expansion is QCManyBody's")

from qcmanybody.models.v2 import ManyBodyInput

import qcthreads.execution.changing
import qcthreads.manybody.executor
from qcthreads import ParallelConfig, ParallelManyBodyExecutor
from qcthreads.cli.results import print_report
from qcthreads.cpuset import CpuSet
from qcthreads.execution.calculation import Outcome
from qcthreads.execution.labels import find_label
from qcthreads.execution.store import open_store
from qcthreads.host import read_machine
from qcthreads.host.limits import Limits, Rule, read_limits
from qcthreads.leases import LeaseBook
from qcthreads.machine.placement import usable_cpus
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
    monkeypatch.setattr(
        qcthreads.manybody.head_start, "node_book", lambda **options: LeaseBook(machine, limits, **options)
    )
    monkeypatch.setattr(qcthreads.manybody.executor, "process_book", lambda: LeaseBook(machine, limits))
    monkeypatch.setattr(qcthreads.execution.changing, "node_limits", lambda _: limits)  # which a run follows


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


class Looks:
    """At every worker below this process with all that it starts, some 50 times a second: from /proc alone."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, dict[int, tuple[int, frozenset[int]]]]] = []
        """When each began and ended, and by worker: nanoseconds on a CPU up to then, and where it may run."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Looks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            began_at = time.time()
            found = {worker.pid: _work(worker) for worker in psutil.Process().children()}
            self.seen.append((began_at, time.time(), found))

    def at_once(self, one: Outcome, other: Outcome, *, computing: bool) -> set[tuple[frozenset[int], frozenset[int]]]:
        """Where their workers might run, at each look since the one before which both had worked; ``computing``: of the
        looks during both calculations, which began when the workers had started and been bound."""
        began_at = max(one.started_at, other.started_at)
        ended_at = min(one.started_at + one.wall_s, other.started_at + other.wall_s)
        looks = [found for began, ended, found in self.seen if not computing or (began_at < began and ended < ended_at)]
        pids = one.worker_pid, other.worker_pid
        return {
            (now[pids[0]][1], now[pids[1]][1])
            for before, now in itertools.pairwise(looks)
            if all(pid in before and pid in now and now[pid][0] > before[pid][0] for pid in pids)
        }


def _work(worker: psutil.Process) -> tuple[int, frozenset[int]]:
    """Threads that have ended count no more: then it is as if nothing had been done meanwhile."""
    on_cpu_ns, cpus = 0, set()
    with suppress(psutil.NoSuchProcess, OSError):
        for process in [worker, *worker.children(recursive=True)]:
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                on_cpu_ns += int((task / "schedstat").read_text().split()[0])
                cpus |= os.sched_getaffinity(int(task.name))
    return on_cpu_ns, frozenset(cpus)


@pytest.mark.psi4
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.skipif(len(usable_cpus(read_machine(), read_limits().cpus)) < 2, reason="needs two cores")
def test_programs_compute_at_the_same_time_on_cpus_of_their_own(document, serial, tmp_path):
    path = tmp_path / "levels.json"
    path.write_text(json.dumps(document))
    outcomes: dict[str, list[Outcome]] = {}

    def watch(progress):
        if progress.outcome is not None:
            outcomes.setdefault(PROGRAMS[json.loads(progress.label)[0]], []).append(progress.outcome)

    with Looks() as looks, Run(RunRequest(input=path, workers=2, threads=1)) as run:
        report = run.execute(watch)
    assert not report.failures
    assert report.result["return_result"] == pytest.approx(serial["energy"], abs=1e-9)
    assert outcomes.keys() == set(PROGRAMS.values())
    pairs = [pair for names in itertools.combinations(outcomes.values(), 2) for pair in itertools.product(*names)]
    worked = set().union(*(looks.at_once(*pair, computing=False) for pair in pairs))
    assert any(len(one) == len(other) == 1 and one != other for one, other in worked), worked
    for one, other in set().union(*(looks.at_once(*pair, computing=True) for pair in pairs)):
        assert len(one) == len(other) == 1
        assert one != other


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
        ({"2": "py", "supersystem": "large"}, ["cp", "nocp"], None, "1+2-body hf/sto-3g (pyscf), supersystem hf/6-31g"),
    ],
    ids=["three programs", "counterpoise"],
)
def test_what_is_beyond_the_orders_comes_from_the_supersystem(
    document, tmp_path, capsys, levels, bsse, calculations, told
):
    document["specification"]["keywords"] |= {"levels": levels, "bsse_type": bsse}
    named = document["specification"]["specification"]
    named["large"] = named["py"] | {"model": {"method": "hf", "basis": "6-31g"}}
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
