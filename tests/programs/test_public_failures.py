"""What users of others reported in public, where no test beside the part concerned has it already.

Concurrent mpirun on core 0: test_launchers.py, test_cp2k.py, integration/test_exec.py. A mask that an import shrinks:
test_widths.py. ncores squared: test_launchers.py, unit/test_programs.py. Cgroups: unit/test_machine_limits.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CALCULATION = """
import json, os, sys
import pyscf, pyscf.lib
from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook

pyscf.lib.num_threads(2)
here = pyscf.M(atom="He 0 0 0; He 0 0 3", basis="cc-pvdz", verbose=0)
mine = here.RHF().kernel()
team = len(os.listdir("/proc/self/task"))
given = {"symbols": ["He", "He"], "geometry": [0, 0, 0, 0, 0, 3 / 0.52917721092]}
specification = {"driver": "energy", "model": {"method": "hf", "basis": "cc-pvdz"}, "keywords": {}}
job = Calculation(label="a", program="pyscf", input={"molecule": given, "specification": specification})
with LocalEngine(LeaseBook(read_machine(), read_limits())) as engine:
    (outcome,) = engine.run([job])
theirs = outcome.result["return_result"] if outcome.result else outcome.error
json.dump({"team": team, "mine": mine, "theirs": theirs, "worker": outcome.worker_pid}, sys.stdout)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_calculation_runs_where_the_caller_has_computed_with_threads_before(needs):
    """psi4/psi4#3189, MolSSI/QCFractal#637: a worker forked from a process with an OpenMP team dies, or hangs."""
    needs("pyscf")
    done = subprocess.run(
        [sys.executable, "-c", CALCULATION],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = json.loads(done.stdout)
    assert said["team"] > 1  # else nothing is shown
    assert said["theirs"] == pytest.approx(said["mine"], abs=1e-8, rel=0)


@pytest.mark.skipif(sys.platform != "linux", reason="a mask of one CPU by taskset")
def test_on_one_cpu_there_is_one_worker_of_one_thread_and_a_reason(tmp_path):
    """MolSSI/QCEngine#415 and #417, psi4/psi4#2548: half of one CPU was none, or a KeyError."""
    cpu = str(max(os.sched_getaffinity(0)))
    asked = subprocess.run(
        ["taskset", "-c", cpu, sys.executable, "-m", "qcthreads", "limits", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    limits = json.loads(asked.stdout)
    assert (limits["cpu_count"], limits["cpus"]) == (1, [int(cpu)])
    assert any(rule["tightest"] and rule.get("cpus") == [int(cpu)] for rule in limits["rules"])
    code = (
        "from qcthreads import QCThreadManager\n"
        "told = QCThreadManager().configure_qc_threads('psi4', 1, 1)\n"
        "print(told.threads_per_calculation, told.qcengine_task_config['ncores'])"
    )
    told = subprocess.run(
        ["taskset", "-c", cpu, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["1", "1"]
