"""``--at-most N``: never more than N calculations of a program at once, over all processes that share the book."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from qcelemental.models.v2 import Molecule
from qcmanybody import ManyBodyCore

from qcthreads import ParallelConfig, ParallelManyBodyExecutor
from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError
from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import Limits, Rule, read_limits
from qcthreads.leases import LeaseBook, node_ledger
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.manybody import watched
from qcthreads.manybody.run import Run, RunRequest

# Says when it starts and ends; a line of this length is written at once.
NOTE = "echo + >> {log}; sleep 0.3; echo - >> {log}"


def most_at_once(log: Path) -> int:
    running = [0]
    for line in log.read_text().split():
        running.append(running[-1] + (1 if line == "+" else -1))
    return max(running)


@pytest.fixture
def book(monkeypatch, tmp_path):
    """Of eight made-up PUs, shared with whoever has the same directory."""
    (tmp_path / "book").mkdir()
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))
    cpus = CpuSet(range(8))
    rules = (Rule("online", "made up", cpus=cpus, tightest=True),)
    limits = Limits(cpus=cpus, cpu_count=8, quota_cpus=None, memory_bytes=8 * 1024**3, rules=rules)

    def made(ledger=None):
        return LeaseBook(synthetic_machine(cores=8), limits, ledger=ledger)

    return made


def test_a_slot_is_had_by_so_many_leases_and_comes_free_with_one(book):
    ours = book()
    first = ours.acquire(1, slots={"orca": 2})
    with ours.acquire(1, slots={"orca": 2}):
        with pytest.raises(LeaseError, match=r"\(CPUs 0-1; 2 of the 2 that orca may have at once\)"):
            ours.acquire(1, slots={"orca": 2}, wait=False)
        with ours.acquire(6), pytest.raises(LeaseError, match="that orca may have"):  # and others get what is left
            ours.acquire(1, slots={"orca": 2}, timeout=0.01)
    first.release()
    ours.acquire(1, slots={"orca": 1}, wait=False).release()


@pytest.mark.skipif(sys.platform == "win32", reason="exec is not there")
@pytest.mark.skipif(len(LeaseBook(read_machine(), read_limits()).usable) < 2, reason="one CPU limits it anyhow")
def test_of_many_execs_of_a_program_so_many_run(monkeypatch, tmp_path):
    (tmp_path / "book").mkdir()
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))
    log = tmp_path / "log"
    command = [sys.executable, "-m", "qcthreads", "exec", "--wait", "--program", "orca", "--at-most", "1"]
    execs = [subprocess.Popen([*command, "--", "sh", "-c", NOTE.format(log=log)]) for _ in range(4)]
    assert [one.wait(60) for one in execs] == [0] * 4
    assert most_at_once(log) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="exec is not there")
@pytest.mark.skipif(len(LeaseBook(read_machine(), read_limits()).usable) < 2, reason="one CPU limits it anyhow")
def test_who_waits_for_a_licence_is_told_so(monkeypatch, tmp_path):
    (tmp_path / "book").mkdir()
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))
    command = [sys.executable, "-m", "qcthreads", "exec", "--wait", "--program", "orca", "--at-most", "1", "--"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "sh", "-c", "echo has; read end"], stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout.readline() == "has\n"
        with subprocess.Popen([*command, "true"], stderr=pipe, text=True) as second:
            assert f"held by process {first.pid}" in (said := second.stderr.readline())
            assert said.endswith("; 1 of the 1 that orca may have at once)\n")
            first.communicate("end\n")
            assert second.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="its workers write to one file")
def test_a_slot_holds_over_two_engines_that_share_a_book_of_made_up_cpus(book, tmp_path, monkeypatch):
    """Two each would fit twice; together they may have two. What is not limited goes on beside."""
    log = tmp_path / "log"
    (tmp_path / "noted.py").write_text(
        "import subprocess\n"
        "def compute(given):\n"
        f"    subprocess.run(['sh', '-c', {NOTE.format(log=log)!r}], check=True)\n"
        "    return {'success': True, 'return_result': 0.0}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def jobs():
        return [Calculation(label=f"{i}", program="orca", input={}, compute="noted:compute") for i in range(3)]

    shared = node_ledger()
    with (
        LocalEngine(book(shared), affinity=False, at_most={"orca": 2}) as one,
        LocalEngine(book(shared), affinity=False, at_most={"orca": 2}) as other,
    ):
        both = [engine.run(jobs()) for engine in (one, other)]
        firsts = [next(iter(run)) for run in both]
        rest = [outcome for run in both for outcome in run]
    assert [outcome.status for outcome in firsts + rest] == ["finished"] * 6
    assert most_at_once(log) == 2


@pytest.mark.skipif(len(LeaseBook(read_machine(), read_limits()).usable) < 2, reason="one CPU limits it anyhow")
def test_a_run_of_one_at_a_time_has_all_pus_for_it(monkeypatch):
    monkeypatch.setattr(watched, "_LONG_RUN_S", 0.0)
    monkeypatch.setattr(watched, "_IDLE_SHARE", -1.0)  # it is told of, whatever there was
    options = {"method": "hf", "basis": "sto-3g", "max_nbody": 1, "max_total_threads": 2, "at_most": {"": 1}}
    run = Run(RunRequest(input=Path(__file__).parents[2] / "examples" / "water4.xyz", **options))
    decision = run.decision
    assert (decision["workers"], decision["threads"]) == (1, 2)
    assert "--at-most allows 1 at a time" in decision["reasons"]
    report = run.execute()
    ran = sorted((one.start_s, one.end_s) for one in report.record.calculations)
    assert all(end_s <= start_s + 0.01 for (_, end_s), (start_s, _) in itertools.pairwise(ran))
    assert report.statistics["widths"] == {"2": 4}
    (idle,) = (finding["message"] for finding in report.findings if finding["kind"] == "idle")
    assert "had nothing to do on average: --at-most allows 1 at a time; " in idle


@pytest.mark.skipif(len(LeaseBook(read_machine(), read_limits()).usable) < 2, reason="one CPU limits it anyhow")
def test_an_executor_that_licences_keep_from_running_more_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(watched, "_LONG_RUN_S", 1.0)
    (tmp_path / "sleeping.py").write_text(
        "import time\n"
        "def energy(given):\n"
        "    time.sleep(1.2)\n"
        "    return {\n"
        "        'schema_name': 'qcschema_atomic_result', 'schema_version': 2, 'input_data': given,\n"
        "        'molecule': given['molecule'], 'properties': {}, 'return_result': 0.0, 'success': True,\n"
        "        'provenance': {'creator': 'sleeping'},\n"
        "    }\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    dimer = Molecule.from_data("He 0 0 0\n--\nHe 0 0 3\nunits bohr", dtype="psi4", fix_com=True, fix_orientation=True)
    told = {"return_total_data": True, "supersystem_ie_only": False, "embedding_charges": {}}
    config = ParallelConfig(
        use_qcengine=False,
        compute="sleeping:energy",
        qc_program="pyscf",
        at_most={"PySCF": 1},
        max_workers=2,
        memory_limit_mb=400,
    )
    executor = ParallelManyBodyExecutor(ManyBodyCore(dimer, ["nocp"], {1: "any"}, **told), config)
    executor.execute_full_calculation()
    statistics = executor.get_execution_statistics()
    assert statistics["peak_workers"] == statistics["workers"] == 1
    assert "at_most allows 1 at a time" in statistics["reasons"]
    (idle,) = (finding["message"] for finding in statistics["findings"] if finding["kind"] == "idle")
    assert "had nothing to do on average: at_most allows 1 at a time; " in idle
