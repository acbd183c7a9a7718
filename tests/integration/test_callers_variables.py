"""The caller's own variables: which reach a program by ``run``, by ``exec`` and by ``qcengine_lease``, alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.leases import process_book

THEIRS = {
    "OMP_NUM_THREADS": "64",
    "OMP_STACKSIZE": "1G",
    "KMP_AFFINITY": "norespect",
    "SLURM_JOBID": "7",  # and no list of nodes: Open MPI 4.1.4 ends at once
    "SLURM_NTASKS": "3",
    "SLURM_CONF": "/etc/slurm.conf",
    "PMI_RANK": "0",  # of how many?
    "PMIX_NAMESPACE": "n",
}
SEEN = {**THEIRS, "OMP_NUM_THREADS": "1"} | dict.fromkeys(
    ("KMP_AFFINITY", "SLURM_JOBID", "SLURM_NTASKS", "PMI_RANK", "PMIX_NAMESPACE")
)
WHOLE = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "1", "PMI_RANK": "0", "PMI_SIZE": "1"}
LOOK = "import json, os; print(json.dumps(dict(os.environ)))"
IN_LEASE = f"import qcthreads\nwith qcthreads.qcengine_lease('xtb'):\n    {LOOK}"


@pytest.fixture(autouse=True)
def their_own(monkeypatch, tmp_path):
    (tmp_path / "book").mkdir()
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))
    (tmp_path / "looking.py").write_text("import os\ndef compute(given):\n    return {'extras': dict(os.environ)}\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def asked(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def by_exec(program="xtb"):
    done = asked(*(sys.executable, "-m", "qcthreads", "exec", "--program", program), "--", sys.executable, "-c", LOOK)
    return json.loads(done.stdout), done.stderr


def by_lease():
    pytest.importorskip("xtb", reason="xtb is not installed here")
    done = asked(sys.executable, "-c", IN_LEASE)
    return json.loads(done.stdout), done.stderr


def by_run(tmp_path):
    pytest.importorskip("qcmanybody", reason="the expansion is QCManyBody's")
    pytest.importorskip("xtb", reason="xtb is not installed here")
    with LocalEngine(process_book()) as engine:
        (outcome,) = engine.run([Calculation(label="a", program="xtb", input={}, compute="looking:compute")])
    (tmp_path / "two.xyz").write_text("2\n\nHe 0 0 0\nHe 0 0 4\n")
    run = ("qcthreads", "run", str(tmp_path / "two.xyz"), "--program", "xtb", "--workers", "1", "--threads", "1")
    done = asked(sys.executable, "-m", *run)
    return outcome.result["extras"], done.stderr + done.stdout


@pytest.mark.parametrize("way", ["exec", "lease", "run"])
def test_they_win_where_they_cannot_oversubscribe_and_half_a_job_is_no_job(way, tmp_path, monkeypatch):
    if sys.platform == "win32" and way == "exec":
        pytest.skip("exec is not there")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "PMI"))]:
        monkeypatch.delenv(name)
    for name, value in THEIRS.items():
        monkeypatch.setenv(name, value)
    seen, said = by_run(tmp_path) if way == "run" else {"exec": by_exec, "lease": by_lease}[way]()
    assert {name: seen.get(name) for name in THEIRS} == SEEN
    assert "kept as you set them: OMP_STACKSIZE=1G" in said
    assert "not as you set them, which might use more than the lease: OMP_NUM_THREADS=64 (now 1)" in said
    assert "removed, for they contradict the lease: KMP_AFFINITY, PMIX_NAMESPACE, PMI_RANK, SLURM_JOBID" in said


@pytest.mark.skipif(sys.platform == "win32", reason="exec is not there")
def test_a_whole_job_is_left_to_its_ranks_but_not_to_who_starts_ranks(monkeypatch):
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert by_exec("xtb")[0].items() >= WHOLE.items()
    assert not by_exec("nwchem")[0].keys() & WHOLE.keys()
