"""What users of others reported in public, where no test beside the part concerned has it already. Those that have:

- concurrent mpirun on core 0 (open-mpi/ompi#13390, #10761; molmod/psiflow#76): test_launchers, test_cp2k, test_exec
- dies or hangs after fork (psi4/psi4#3189; MolSSI/QCFractal#637): here
- threads that do nothing (psi4/psi4#755): unit/test_monitoring, integration/test_watching
- more CPUs used than threads asked for (psi4/psi4#2747; pyscf/pyscf#2533): test_widths, whose every run looks at masks
- no CPU at all of half of one (MolSSI/QCEngine#415, #417; psi4/psi4#2548): here
- one request, three procedures, three widths (MolSSI/QCEngine#402): test_procedures
- ncores squared (qcengine's OMP_NUM_THREADS under mpirun): test_launchers, test_standins
- more memory used than was set (psi4/psi4#1985, #1590): test_memory_knobs, integration/test_memory_planned
- quotas of an ancestor, empty files (joblib/loky#634, #478; ninja-build/ninja#2805): unit/test_machine_limits
- the group shows the node, the mask the allocation (open-mpi/hwloc#511): unit/test_machine_limits
- users' own settings overridden (Parsl/parsl#2528): integration/test_callers_variables
- a mask that an import shrinks (llnl/mpibind#41; OpenMathLib/OpenBLAS#4653): test_widths
- one of two siblings allowed (openpmix/prrte#1947): unit/test_machine_placement
- more than 64 CPUs of Windows (giampaolo/psutil#2603): unit/test_platform_topology, native/test_other_platforms
- two OpenMP runtimes in one process (joblib/threadpoolctl#41): test_qcengine_lease, PySCF's three
- a stack overflow that looks like a crash (grimme-lab/xtb#191): here
- calls refused in containers (moby/moby#37241; numactl/numactl#232): integration/test_refused_calls
"""

from __future__ import annotations

import json
import os
import shutil
import signal
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


DEEP = """
#include <omp.h>
#include <string.h>
__attribute__((noinline)) static int deep(int value) {
  volatile char frame[64 << 20];
  memset((char *)frame, value, sizeof frame);
  return frame[value];
}
int main(void) {
  int sum = 0;
#pragma omp parallel num_threads(2) reduction(+ : sum)
  if (omp_get_thread_num() == 1) sum += deep(omp_get_thread_num());
  return sum != 1;
}
"""


@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="two threads need 2 CPUs")
@pytest.mark.parametrize("program", ["xtb", "tblite", "cp2k"])
def test_threads_have_the_stack_that_their_program_needs(program, tmp_path, monkeypatch):
    """grimme-lab/xtb#191: by default a thread has 8 MiB, and what needs more ends with a segmentation fault."""
    if shutil.which("gcc") is None:
        assert os.environ.get("CI") != "true", "gcc must be installed in CI"
        pytest.skip("gcc is not installed here")
    monkeypatch.delenv("OMP_STACKSIZE", raising=False)
    (tmp_path / "deep.c").write_text(DEEP if program != "cp2k" else DEEP.replace("64 << 20", "32 << 20"))
    subprocess.run(["gcc", "-fopenmp", "-O1", "-o", "deep", "deep.c"], cwd=tmp_path, check=True)
    bare = subprocess.run(
        ["sh", "-c", "ulimit -s 8192; exec ./deep"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        check=False,
    )
    assert bare.returncode == -signal.SIGSEGV  # else this shows nothing
    environment = {**os.environ, "QCTHREADS_LEASES": str(tmp_path / "book")}
    command = [sys.executable, "-m", "qcthreads", "exec", "--program", program, "--threads", "2", "--", "./deep"]
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == 0


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
