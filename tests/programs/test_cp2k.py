"""CP2K (psmp) from Debian under our settings: OpenMP threads, ranks, and both, with and without mpirun."""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from qcthreads.programs.registry import get
from qcthreads.programs.settings import settings_for

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="masks are Linux's, and two threads need 2 CPUs"
)

SPEC = get("cp2k")
ALONE = "cp2k.psmp -i input.inp"
SMALL = SPEC.sample.input_text.replace("CUTOFF 280", "CUTOFF 120")


def energy(said):
    return float(re.findall(SPEC.energy_pattern, said)[-1])


@pytest.fixture
def cp2k(needs, run_in, tmp_path, monkeypatch):
    """One run of a command, in a folder of its own; who waits sleeps, and keeps no CPU from whom it waits for."""
    needs("cp2k")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("OMPI_MCA_mpi_yield_when_idle", "1")

    def run(command, width, ranks=1, cpus=()):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}-{cpus}"
        folder.mkdir()
        (folder / "input.inp").write_text(SMALL)
        return run_in(command, settings_for(SPEC, width, ranks=ranks), folder, cpus)

    return run


def test_threads_and_ranks_are_those_that_were_asked_for_and_the_energy_stays(cp2k):
    energies = []
    for command, working in (
        (ALONE, [1]),
        (ALONE, [2]),
        (f"mpirun -np 1 {ALONE}", [2]),
        (f"mpirun -np 2 {ALONE}", [1, 1]),
    ):
        run = cp2k(command, sum(working), ranks=len(working))
        assert run.working_threads("cp2k.psmp") == working, command
        said = re.search(r"Number of threads for this process\s+(\d+)", run.stdout)
        assert int(said[1]) == working[0]
        energies.append(energy(run.stdout))
    assert energies == pytest.approx([energies[0]] * len(energies), abs=1e-7, rel=0)


def test_two_mpiruns_at_once_stay_on_a_cpu_each(cp2k):
    """open-mpi/ompi issues 10761 and 13390 with a real program: by Open MPI's defaults both compute on core 0."""
    cpus = sorted(os.sched_getaffinity(0))[-2:]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda cpu: cp2k(f"mpirun -np 1 {ALONE}", 1, cpus=(cpu,)), cpus))
    assert [run.working_threads("cp2k.psmp") for run in runs] == [[1], [1]]
    assert energy(runs[0].stdout) == pytest.approx(energy(runs[1].stdout), abs=1e-9, rel=0)
