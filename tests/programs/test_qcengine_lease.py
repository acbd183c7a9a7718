"""``qcengine_lease`` with the real programs: a plain ``qcengine.compute`` of any worker obeys, and leaves no trace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_widths import WATER, atomic_input, waters
from watched import Run, threads_below

XTB = atomic_input("GFN2-xTB", molecule=waters(30))
CPUS = sorted(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


@pytest.fixture
def leased(tmp_path):
    """Runs tests/programs/leased.py with a job, beside nobody; what it says, and the threads of what it started."""

    def run(job, **environment):
        out = tmp_path / "out"
        with (tmp_path / "in").open("w+") as stdin, (tmp_path / "err").open("w") as err, out.open("w") as stdout:
            json.dump(job, stdin)
            stdin.seek(0)
            process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("leased.py")],
                stdin=stdin, stdout=stdout, stderr=err, cwd=tmp_path, text=True,
                env={**os.environ, "QCTHREADS_LEASES": str(tmp_path / "book"), **environment},
            )  # fmt: skip
            cpu_s, masks = {}, {}
            while process.poll() is None:
                for thread, (seconds, cpus) in threads_below(process.pid).items():
                    if thread[1] != process.pid:
                        cpu_s[thread], masks[thread] = seconds, cpus
                time.sleep(0.02)
        output, said = out.read_text(), (tmp_path / "err").read_text()
        assert process.returncode == 0, said
        return json.loads(output[output.index('[{"inside"') :]), Run(float("nan"), None, cpu_s), masks, said

    return run


@needs_two
@pytest.mark.parametrize(
    ("program", "job"),
    [
        ("xtb", XTB),
        ("tblite", XTB),
        ("pyscf", atomic_input("hf", "6-31g", waters(4))),
    ],
)
def test_each_call_in_process_has_its_own_width_and_mask(needs, leased, program, job):
    """The first does not freeze that of the second, nor do its threads stay where they were."""
    needs(program)
    made, _, _, _ = leased({"program": program, "input": job, "widths": [1, 2, 1]})
    for width, one in zip([1, 2, 1], made, strict=True):
        assert len(one["inside"]) == width
        assert one["worked"] == [one["inside"]] * width
        assert one["restored"]
        assert one["energy"] == pytest.approx(made[0]["energy"], abs=1e-7)


def test_a_program_that_does_not_thread_gets_one_pu(needs, leased):
    needs("dftd4")
    job = atomic_input("pbe", molecule=waters(30), keywords={"level_hint": "d4"})
    made, _, _, said = leased({"program": "dftd4", "input": job, "widths": [2]})
    assert len(made[0]["inside"]) == 1
    assert made[0]["worked"] in ([], [made[0]["inside"]])
    assert "DFT-D4 gains nothing from threads: 1 is used instead of 2" in said


@needs_two
@pytest.mark.parametrize(
    ("program", "process", "job", "ranks"),
    [
        pytest.param("psi4", "psi4", atomic_input("hf", "cc-pvtz", waters(2)), 1, marks=pytest.mark.psi4),
        pytest.param("nwchem", "nwchem", atomic_input("hf", "cc-pvdz", waters(3)), 2, marks=pytest.mark.nwchem),
        ("mopac", "mopac", atomic_input("pm7", molecule=waters(30)), 1),
    ],
)
def test_a_program_of_its_own_obeys(needs, leased, program, process, job, ranks):
    needs(program)
    width = 1 if program == "mopac" else 2
    made, run, masks, _ = leased({"program": program, "input": job, "widths": [2]})
    name = next((name for name, _, _ in run.cpu_s if name.startswith(process)), "python3")
    assert run.working_threads(name) == [width // ranks] * ranks
    assert len(made[0]["inside"]) == width
    # py-cpuinfo, which QCEngine asks before the lease, has a process of its own.
    theirs = {thread: cpus for thread, cpus in masks.items() if thread[0].startswith(process)}
    assert theirs
    assert {thread: cpus for thread, cpus in theirs.items() if not cpus <= set(made[0]["inside"])} == {}
    assert made[0]["restored"]


@needs_two
@pytest.mark.parametrize("procedure", ["geometric", "berny"])
def test_a_procedure_obeys_in_each_step(needs, leased, procedure):
    needs("pyscf")
    pytest.importorskip(procedure, reason=f"{procedure} is not installed here")
    specification = {"program": "pyscf", "driver": "gradient", "model": {"method": "hf", "basis": "sto-3g"}}
    given = {
        "initial_molecule": WATER,
        "specification": {"specification": specification, "protocols": {"trajectory_results": "all"}},
    }
    made, _, _, _ = leased({"program": "pyscf", "procedure": procedure, "input": given, "widths": [1, 2]})
    assert [set(one["threads_said"]) for one in made] == [{1}, {2}]
    assert all(one["restored"] for one in made)


@needs_two
@pytest.mark.parametrize("executor", ["threads", "spawn", "fork", "loky"])
def test_workers_of_any_executor_are_beside_each_other(needs, leased, executor, tmp_path):
    """Of one width they run at the same time, on other CPUs; two threads of one process see each other work."""
    needs("xtb")
    (tmp_path / "met").mkdir()
    job = {"program": "xtb", "input": XTB, "widths": [1] * 4, "executor": executor, "meet_in": str(tmp_path / "met")}
    made, _, _, _ = leased(job)
    for one in made:
        assert len(one["inside"]) == 1
        assert one["inside"] in one["worked"]
        assert executor == "threads" or one["worked"] == [one["inside"]]
    assert {one["inside"][0] for one in made} == set(CPUS[:2])


@needs_two
def test_threads_of_one_process_with_other_widths_take_turns(needs, leased):
    """PySCF's harness says the size of the team that its OpenMP runtime has, not what was asked."""
    needs("pyscf")
    names, job = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"], atomic_input("hf", "sto-3g", waters(2))
    made, _, _, _ = leased(
        {"program": "pyscf", "input": job, "widths": [1, 2, 1, 2], "executor": "threads", "names": names}
    )
    for width, one in zip([1, 2, 1, 2], made, strict=True):
        assert one["threads_said"] == [width]
        assert len(one["inside"]) == width
        assert one["told"] == dict.fromkeys(names, str(width))


def test_the_caller_s_variables_win_where_they_cannot_oversubscribe(needs, leased):
    needs("xtb")
    theirs = {"OMP_STACKSIZE": "1G", "OMP_NUM_THREADS": "64", "GOMP_CPU_AFFINITY": "0", "QCENGINE_NCORES": "64"}
    made, _, _, said = leased({"program": "xtb", "input": XTB, "widths": [1], "names": list(theirs)}, **theirs)
    assert made[0]["told"] == theirs | {"OMP_NUM_THREADS": "1", "GOMP_CPU_AFFINITY": None, "QCENGINE_NCORES": None}
    assert made[0]["restored"]
    assert "kept as you set them: OMP_STACKSIZE=1G" in said
    assert re.search("might use more than the lease: OMP_NUM_THREADS=64 .now 1", said)


@needs_two
def test_a_runtime_that_was_loaded_with_a_limit_is_told_of(needs, leased):
    """Its width is frozen for the life of the process: libgomp reads OMP_THREAD_LIMIT once."""
    needs("xtb")
    made, _, _, said = leased(
        {"program": "xtb", "input": XTB, "widths": [2], "import": "xtb.interface"}, OMP_THREAD_LIMIT="1"
    )
    assert len(made[0]["worked"]) == 1
    assert "was loaded with a limit of 1 thread," in said
