"""The settings on the real programs: as many threads and ranks work as were asked for, and the energy stays."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from watched import threads_below

from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.execution.observing import Observer
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.leases import LeaseBook
from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import get
from qcthreads.programs.settings import settings_for

WATER = {"symbols": ["O", "H", "H"], "geometry": [0, 0, 0.22, 0, 1.43, -0.9, 0, -1.43, -0.9]}
MEMORY = 2 * 1024**3
PSI4 = """
molecule {
O 0 0 0.12
H 0 0.76 -0.48
H 0 -0.76 -0.48
O 0 0 3.12
H 0 0.76 2.52
H 0 -0.76 2.52
}
set basis cc-pvtz
set scf_type df
energy("scf")
"""
NWCHEM = """
geometry
O 0 0 0.12
H 0 0.76 -0.48
H 0 -0.76 -0.48
end
basis
* library cc-pvdz
end
task scf
"""
D3BJ = {"level_hint": "d3bj"}


def atomic_input(method, basis=None, molecule=WATER, keywords=None):
    model = {"method": method} if basis is None else {"method": method, "basis": basis}
    return {"molecule": molecule, "specification": {"driver": "energy", "model": model, "keywords": keywords or {}}}


def coord(molecule):
    """xtb's own format, which is Turbomole's."""
    bohr = [molecule["geometry"][3 * i : 3 * i + 3] for i in range(len(molecule["symbols"]))]
    atoms = [f"{x} {y} {z} {s}" for (x, y, z), s in zip(bohr, molecule["symbols"], strict=True)]
    return "\n".join(["$coord", *atoms, "$end", ""])


def waters(number):
    geometry, symbols = [], []
    for i in range(number):
        symbols += WATER["symbols"]
        for atom in range(3):
            x, y, z = WATER["geometry"][3 * atom : 3 * atom + 3]
            geometry += [x + 6.0 * (i % 4), y + 6.0 * (i // 4 % 4), z + 6.0 * (i // 16)]
    return {"symbols": symbols, "geometry": geometry}


class Working(Observer):
    """How many threads of the worker worked for each calculation, by its label."""

    def __init__(self):
        self.threads = {}

    def begins(self, _, worker, __):
        self._before_s = self._cpu_s(worker.pid)

    def ends(self, calculation, outcome):
        after_s = self._cpu_s(outcome.worker_pid)
        worked_s = [cpu_s - self._before_s.get(thread, 0.0) for thread, cpu_s in after_s.items()]
        self.threads[calculation.label] = sum(cpu_s > sum(worked_s) / 10 for cpu_s in worked_s)

    def _cpu_s(self, pid):
        """By thread; workers call themselves by what they compute."""
        return {thread: cpu_s for (_, _, thread), (cpu_s, _) in threads_below(pid).items()}


def same_energy(runs, within_hartree):
    assert [run.energy for run in runs] == pytest.approx([runs[0].energy] * len(runs), abs=within_hartree, rel=0)


def test_pyscf_works_with_the_threads_it_was_given(needs, calculate):
    needs("pyscf")
    job = atomic_input("hf", "cc-pvdz", waters(4))
    runs = [calculate(settings_for(get("pyscf"), width, MEMORY), job) for width in (1, 2)]
    assert [run.working_threads("python") for run in runs] == [[1], [2]]
    same_energy(runs, 1e-8)


@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="two widths need two cores")
def test_a_worker_of_pyscf_works_at_each_width_with_as_many_threads(needs, monkeypatch):
    needs("pyscf")
    monkeypatch.setenv("QCTHREADS_LEASES", "process")
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")  # of the caller's, who is told that another width was asked for
    job = atomic_input("hf", "cc-pvdz", waters(4))
    working = Working()
    with LocalEngine(LeaseBook(read_machine(), read_limits()), observer=working) as engine:
        outcomes = [
            next(engine.run([Calculation(label=label, program="pyscf", input=job, threads=width, memory_bytes=MEMORY)]))
            for label, width in (("narrow", 1), ("wide", 2), ("narrow again", 1))
        ]
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert working.threads == {"narrow": 1, "wide": 2, "narrow again": 1}
    assert len({outcome.worker_pid for outcome in outcomes}) == 1
    assert [outcome.bound for outcome in outcomes] == [outcome.cpus for outcome in outcomes]
    energies = [outcome.result["return_result"] for outcome in outcomes]
    assert energies == pytest.approx([energies[0]] * 3, abs=1e-8, rel=0)


def test_an_import_does_not_shrink_the_mask_of_its_process(needs, monkeypatch):
    """llnl/mpibind issue 41, OpenBLAS issue 4653: bound by OpenMP, the first thread leaves its children one CPU."""
    needs("pyscf")
    code = "import os, pyscf.lib; pyscf.lib.num_threads(); print(*sorted(os.sched_getaffinity(0)))"
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    monkeypatch.setenv("OMP_PLACES", "cores")
    left = [
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
        for environment in (
            os.environ,
            environment_under(settle(settings_for(get("pyscf"), 2), os.environ, counts=False), os.environ),
        )
    ]
    bare, ours = [[int(cpu) for cpu in cpus.split()] for cpus in left]
    assert ours == sorted(os.sched_getaffinity(0))
    assert len(bare) < len(ours) or len(ours) == 1  # else this shows nothing


@pytest.mark.psi4
@pytest.mark.skipif(len(read_limits().cpus) < 2, reason="two widths need two cores")
def test_a_command_finds_what_it_finds_in_a_new_worker_in_one_of_another_width(needs, monkeypatch, tmp_path):
    """All that it inherits, as a script in its place writes it down."""
    needs("psi4")
    (tmp_path / "psi4").write_text(f'#!/bin/sh\nenv -0 > {tmp_path}/found\nexec {shutil.which("psi4")} "$@"\n')
    (tmp_path / "psi4").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("QCTHREADS_LEASES", "process")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the caller's, who is told that another width was asked for
    monkeypatch.setenv("OMP_SCHEDULE", "static")
    job = atomic_input("hf", "sto-3g", {"symbols": ["He"], "geometry": [0, 0, 0]})

    def found(*widths):
        inherited, pids = [], set()
        with LocalEngine(LeaseBook(read_machine(), read_limits())) as engine:
            for width in widths:
                calculation = Calculation(label="he", program="psi4", input=job, threads=width, memory_bytes=MEMORY)
                (outcome,) = engine.run([calculation])
                assert outcome.error is None
                pids.add(outcome.worker_pid)
                lines = re.sub(r"/qcthreads-\w+/", "/", (tmp_path / "found").read_text()).split("\0")
                variables = dict(line.split("=", 1) for line in lines if line)
                inherited.append({name: variables[name] for name in variables.keys() - its_own})
        assert len(pids) == 1
        return inherited

    its_own = {"PWD", "QCTHREADS_LEASE", "QCTHREADS_WORKER"}
    narrow, wide, again = found(1, 2, 1)
    assert [narrow, wide, again] == [*found(1), *found(2), narrow]
    assert [wide[name] for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_SCHEDULE")] == ["2", "2", "static"]


@pytest.mark.psi4
def test_psi4_works_with_the_threads_it_was_given(needs, calculate, tmp_path):
    needs("psi4")
    job = atomic_input("hf", "cc-pvtz", waters(2), {"scf_type": "df"})
    runs = [calculate(settings_for(get("psi4"), width, MEMORY, str(tmp_path)), job) for width in (1, 2)]
    assert [run.working_threads("psi4") for run in runs] == [[1], [2]]
    same_energy(runs, 1e-7)


@pytest.mark.parametrize("program", ["xtb", "tblite"])
def test_xtb_and_tblite_work_with_the_threads_they_were_given(program, needs, calculate):
    needs(program)
    job = atomic_input("GFN2-xTB", molecule=waters(64))
    runs = [calculate(settings_for(get(program), width), job) for width in (1, 2)]
    # Most of it one thread does alone (imports, eigenvectors): the other has 12 % or more; one that waits, 2 %.
    assert [run.working_threads("python", share=0.05) for run in runs] == [[1], [2]]
    same_energy(runs, 1e-8)


@pytest.mark.parametrize("program", ["dftd4", "s-dftd3"])
def test_dispersion_gets_one_thread_and_says_so(program, needs, calculate):
    needs(program)
    settings = settings_for(get(program), 2)
    assert "1 is used instead of 2" in settings.notes[0]
    job = atomic_input("pbe", molecule=waters(32), keywords={"level_hint": "d4"} if program == "dftd4" else D3BJ)
    run = calculate(settings, job)
    assert run.working_threads("python") == [1]
    assert run.energy < 0


@pytest.mark.parametrize("program", ["xtb", "tblite"])
def test_xtb_and_tblite_agree_with_the_command_line_of_xtb(program, needs, calculate, run_command):
    needs(program)
    said = run_command(settings_for(get("xtb"), 1), {"coord": coord(WATER)}).stdout
    theirs = float(re.search(r"TOTAL ENERGY\s+(-?\d+\.\d+)", said)[1])
    ours = calculate(settings_for(get(program), 1), atomic_input("GFN2-xTB")).energy
    assert ours == pytest.approx(theirs, abs=1e-6, rel=0)


@pytest.mark.parametrize(
    ("program", "files", "said"),
    [
        ("xtb", {"coord": lambda: coord(waters(32))}, "TOTAL ENERGY"),
        ("psi4", {"input.dat": lambda: PSI4}, ""),
        ("nwchem", {"input.nw": lambda: NWCHEM}, "nproc           =        2"),
    ],
    ids=["xtb", "psi4", "nwchem"],
)
def test_a_programs_own_command_runs_at_the_width_of_its_lease(program, files, said, needs, run_command):
    needs(program)
    settings = settings_for(get(program), 2)
    run = run_command(settings, {name: content() for name, content in files.items()})
    assert said in run.stdout
    assert run.working_threads(program) == [settings.threads // settings.ranks] * settings.ranks


def test_the_command_of_xtb_has_the_same_energy_at_every_width_and_two_at_once_a_cpu_each(run_in, tmp_path):
    if shutil.which("xtb") is None:
        assert os.environ.get("CI") != "true", "Debian's xtb must be installed in CI"
        pytest.skip("the command xtb is not installed here")
    cpus = sorted(os.sched_getaffinity(0))[-2:]

    def run(cpus):
        folder = tmp_path / "-".join(map(str, cpus))
        folder.mkdir()
        (folder / "coord").write_text(coord(waters(32)))
        return run_in(f"xtb coord --parallel {len(cpus)}", settings_for(get("xtb"), len(cpus)), folder, cpus)

    wide = run(cpus)
    with ThreadPoolExecutor(2) as pool:
        runs = [wide, *pool.map(run, [[cpu] for cpu in cpus])]
    assert [one.working_threads("xtb") for one in runs] == [[2], [1], [1]]
    energies = [float(re.search(r"TOTAL ENERGY\s+(-?\d+\.\d+)", one.stdout)[1]) for one in runs]
    assert energies == pytest.approx([energies[0]] * 3, abs=1e-8, rel=0)


@pytest.mark.nwchem
def test_two_mpiruns_of_nwchem_at_once_stay_on_a_cpu_each(needs, run_in, tmp_path):
    needs("nwchem")

    def run(cpu):
        folder = tmp_path / str(cpu)
        folder.mkdir()
        (folder / "input.nw").write_text(NWCHEM)
        return run_in("mpirun -np 1 nwchem input.nw", settings_for(get("nwchem"), 1), folder, [cpu])

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(run, sorted(os.sched_getaffinity(0))[-2:]))
    assert [one.working_threads("nwchem") for one in runs] == [[1], [1]]
    energies = [float(re.search(r"Total SCF energy =\s+(-?\d+\.\d+)", one.stdout)[1]) for one in runs]
    assert energies == pytest.approx([energies[0]] * 2, abs=1e-9, rel=0)


@pytest.mark.nwchem
def test_nwchem_runs_as_many_ranks_as_it_was_given(needs, calculate, tmp_path):
    needs("nwchem")
    runs = []
    for width in (1, 2):
        scratch = tmp_path / str(width)
        scratch.mkdir()
        run = calculate(settings_for(get("nwchem"), width, MEMORY, str(scratch)), atomic_input("hf", "cc-pvdz"))
        assert int(re.search(r"nproc\s+=\s+(\d+)", run.stdout)[1]) == width
        assert set(run.working_threads("nwchem")) == {1}  # of each rank, and of QCEngine's version probe
        runs.append(run)
    same_energy(runs, 1e-8)


def test_mopac_gets_one_thread_and_agrees_with_its_command_line(needs, calculate, tmp_path):
    needs("mopac")
    run = calculate(settings_for(get("mopac"), 2), atomic_input("pm7"))
    bohr = [WATER["geometry"][3 * i : 3 * i + 3] for i in range(3)]
    atoms = [f"{s} {x} {y} {z}" for s, (x, y, z) in zip(WATER["symbols"], bohr, strict=True)]
    (tmp_path / "job.mop").write_text("\n".join(["PM7 1SCF A0", "water", "", *atoms]) + "\n")
    subprocess.run(["mopac", "job.mop"], cwd=tmp_path, capture_output=True, check=True)
    report = (tmp_path / "job.out").read_text()
    theirs = float(re.search(r"FINAL HEAT OF FORMATION =\s+(-?\d+\.\d+)", report)[1])
    assert run.energy * 627.5094740630558 == pytest.approx(theirs, abs=1e-2, rel=0)
