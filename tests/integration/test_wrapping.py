"""Wrappers and setups, real ones: mask and variables arrive inside, whatever they do to the environment."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import MachineError
from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.execution.wrapping import Wrapping
from qcthreads.host import read_machine
from qcthreads.host.limits import Limits, Rule, read_limits
from qcthreads.leases import LeaseBook
from qcthreads.machine.synthetic import synthetic_machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the wrappers are Linux's")

CPUS = sorted(os.sched_getaffinity(0))
# As Lmod and Environment Modules have it: a function of the shell, defined by what a login shell reads.
PROFILE = """
export OMP_NUM_THREADS=64 GOMP_CPU_AFFINITY=0-63
module() { echo "loading $2"; [ "$2" = nwchem ] && export PATH="$HOME/software:$PATH" I_MPI_PIN_DOMAIN=node; }
"""
LOOK = "import json, os; print(json.dumps({'mask': sorted(os.sched_getaffinity(0)), 'environment': dict(os.environ)}))"


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A book and a home of its own."""
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "book").mkdir()
    (tmp_path / ".bash_profile").write_text(PROFILE)
    return tmp_path


def under(*options, command=(sys.executable, "-c", LOOK)):
    return subprocess.run(
        [sys.executable, "-m", "qcthreads", "exec", *options, "--", *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrap",
    [
        "nice -n 1",
        "env -i",
        "env -i bash -lc",
        "bash -lc",
        "unshare --user --map-root-user",
        "bwrap --dev-bind / / --unshare-pid --clearenv",
        "setsid --wait",
    ],
)
@pytest.mark.usefixtures("alone")
def test_mask_and_variables_arrive_inside(wrap, monkeypatch):
    if shutil.which(wrap.split()[0]) is None:
        pytest.skip(f"{wrap.split()[0]} is not installed here")
    if wrap.startswith(("unshare", "bwrap")) and subprocess.run([*wrap.split(), "true"], check=False).returncode:
        pytest.skip("this container allows no user namespaces")
    monkeypatch.setenv("KMP_AFFINITY", "norespect")
    done = under("--cpus", str(CPUS[-1]), "--wrap", wrap)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["mask"] == [CPUS[-1]]
    told = seen["environment"]
    assert (told["OMP_NUM_THREADS"], told["OPENBLAS_NUM_THREADS"]) == ("1", "1")
    assert "QCTHREADS_LEASE" in told
    assert not {"KMP_AFFINITY", "GOMP_CPU_AFFINITY"} & told.keys()


def test_modules_are_loaded_first_and_lead_nowhere_else(alone):
    """What they print is no output of the command, and what they set does not widen its lease."""
    software = alone / "software"
    software.mkdir()
    (software / "nwchem").write_text(f"#!/bin/sh\nexec {sys.executable} -c {json.dumps(LOOK)}\n")
    (software / "nwchem").chmod(0o755)
    done = under("--program", "nwchem", "--setup", "module load nwchem", command=("nwchem",))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "loading nwchem" in done.stderr
    assert seen["environment"]["OMP_NUM_THREADS"] == "1"
    assert not {"I_MPI_PIN_DOMAIN", "GOMP_CPU_AFFINITY"} & seen["environment"].keys()
    assert len(seen["mask"]) == 1


@pytest.mark.skipif(not os.path.exists("/etc/profile.d/modules.sh"), reason="needs Environment Modules")  # noqa: PTH110
def test_environment_modules_are_loaded_first(alone):
    (alone / "nw").mkdir()
    (alone / "nw" / "7").write_text(
        f"#%Module\nprepend-path PATH {alone}/software\nsetenv OMP_NUM_THREADS 64\nsetenv KMP_AFFINITY norespect\n"
    )
    (alone / ".bash_profile").unlink()
    done = under("--cpus", str(CPUS[-1]), "--setup", f"module use {alone}; module load nw/7")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["mask"] == [CPUS[-1]]
    told = seen["environment"]
    assert told["LOADEDMODULES"] == "nw/7"
    assert told["PATH"].startswith(f"{alone}/software:")
    assert told["OMP_NUM_THREADS"] == "1"
    assert "KMP_AFFINITY" not in told
    refused = under("--setup", f"module use {alone}; module load nw/8", command=("touch", "never"))
    assert refused.returncode == 125
    assert "nw/8" in refused.stderr


@pytest.mark.skipif(shutil.which("ch-run") is None, reason="needs Charliecloud")
def test_a_container_of_a_computing_centre_gets_mask_and_variables(alone, monkeypatch):
    """Charliecloud's: an image that has its own root, with this machine's files in it."""
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("KMP_AFFINITY", "norespect")
    image = alone / "image"
    for name in ("dev", "proc", "sys", "tmp", "home"):
        (image / name).mkdir(parents=True)
    binds = []
    for entry in os.scandir("/"):
        if entry.is_dir() and not (image / entry.name).exists():
            (image / entry.name).mkdir()
            binds += ["-b", f"/{entry.name}:/{entry.name}"]
    wrap = ["ch-run", "--no-passwd", "--unset-env=*", *binds, str(image), "--"]
    if subprocess.run([*wrap, "/bin/true"], check=False).returncode:
        pytest.skip("this container allows no user namespaces")
    done = under("--cpus", str(CPUS[-1]), "--wrap", shlex.join(wrap))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["mask"] == [CPUS[-1]]
    told = seen["environment"]
    assert told["CH_RUNNING"] == "Weird Al Yankovic"  # so it calls itself
    assert (told["OMP_NUM_THREADS"], told["OPENBLAS_NUM_THREADS"]) == ("1", "1")
    assert "KMP_AFFINITY" not in told


@pytest.mark.usefixtures("alone")
def test_a_setup_that_fails_is_the_end():
    done = under("--setup", "module load no_such_program", command=("touch", "never"))
    assert done.returncode == 125
    assert "the setup failed with status" in done.stderr
    assert not os.path.exists("never")  # noqa: PTH110


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("options", "said"),
    [(("--wrap", "apptainer exec 'a"), "quote it as in a shell"), (("--setup", " "), "an empty setup")],
)
def test_what_is_no_wrapper_is_refused(options, said):
    done = under(*options)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_run_puts_its_workers_behind_it(alone):
    """The program itself is looked for behind the wrapper: xtb's module is found by the worker."""
    pytest.importorskip("qcmanybody", reason="the expansion is QCManyBody's")
    pytest.importorskip("xtb", reason="xtb is not installed here")
    (alone / "two.xyz").write_text("2\n\nHe 0 0 0\nHe 0 0 4\n")
    log = alone / "seen"
    setup = f"module load nwchem; echo $$ $OMP_NUM_THREADS >> {log}"
    command = [sys.executable, "-m", "qcthreads", "run", str(alone / "two.xyz"), "--program", "xtb", "--json"]
    done = subprocess.run(
        [*command, "--workers", "1", "--threads", "1", "--setup", setup, "--wrap", "env -i"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["statistics"]["fragments_computed"] == 3
    assert not [finding for finding in made["findings"] if finding["kind"] in ("unbound", "escaped")]
    began = dict(line.split() for line in log.read_text().splitlines())
    assert set(began.values()) == {"64"}  # the profile's, of which the workers heard nothing
    assert {str(row["worker_pid"]) for row in made["fragments"]} <= began.keys()


@pytest.mark.parametrize(
    "options",
    [
        ("--setup", "echo the licence server is down; false"),
        ("--wrap", "sh -c 'echo the licence server is down >&2; exit 1'"),
    ],
    ids=["setup", "wrap"],
)
def test_a_run_whose_setup_or_wrapper_fails_ends_before_anything_starts(alone, options):
    pytest.importorskip("qcmanybody", reason="the expansion is QCManyBody's")
    (alone / "two.xyz").write_text("2\n\nHe 0 0 0\nHe 0 0 4\n")
    store = alone / "store"
    command = [sys.executable, "-m", "qcthreads", "run", str(alone / "two.xyz"), "--program", "xtb"]
    done = subprocess.run([*command, "--store", str(store), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "error: no worker starts behind" in done.stderr
    assert done.stderr.count("the licence server is down") == 1


def limits_of(count):
    cpus = CpuSet(range(count))
    rule = Rule("mask", "/proc/self/status", cpus=cpus, tightest=True)
    return Limits(cpus, count, None, 2**30, (rule,))


# Numbers its starts, and runs the worker or not by what follows.
NUMBERED = 'n=1; until mkdir {folder}/$n 2>/dev/null; do n=$((n + 1)); done; {rule}; exec "$@"'


def outcomes_behind(folder, rule, workers):
    """Of calculations behind a wrapper that knows the how manieth start it is: twice as many as workers."""
    book = LeaseBook(synthetic_machine(cores=workers), limits_of(workers))
    wrap = ("sh", "-c", NUMBERED.format(folder=folder, rule=rule), "sh")
    given = [
        Calculation(label=f"f{number}", program="none", input={}, threads=1, compute="builtins:dict")
        for number in range(2 * workers)
    ]
    with LocalEngine(book, affinity=False, wrapping=Wrapping(wrap=wrap)) as engine:
        return [outcome.status for outcome in engine.run(given)]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_worker_that_ends_at_its_first_start_costs_a_second_try(tmp_path, workers):
    assert outcomes_behind(tmp_path, "[ $n -gt 1 ] || exit 1", workers) == ["finished"] * 2 * workers
    assert (tmp_path / "2").is_dir()


def test_a_run_goes_on_where_one_worker_starts_while_others_end(tmp_path):
    """The first is not ready before all tries of the second have failed."""
    rule = f"[ $n -gt 1 ] && exit 1; until [ -d {tmp_path}/3 ]; do sleep 0.01; done"
    assert "finished" in outcomes_behind(tmp_path, rule, 2)


def test_a_run_ends_where_every_worker_has_failed_twice(tmp_path):
    with pytest.raises(MachineError, match="no worker starts behind"):
        outcomes_behind(tmp_path, "exit 1", 3)
    assert len(list(tmp_path.iterdir())) >= 2  # less where one had failed before the others began


def test_an_executor_puts_its_workers_behind_what_its_configuration_says(alone):
    pytest.importorskip("xtb", reason="xtb is not installed here")
    build_input = pytest.importorskip("qcthreads.manybody.inputs").build_input
    from qcthreads import ParallelConfig, ParallelManyBodyExecutor
    from qcthreads.manybody.inputs import molecule_from_xyz

    given = build_input(molecule_from_xyz("2\n\nHe 0 0 0\nHe 0 0 4\n"), program="xtb", max_nbody=2, bsse=["nocp"])
    plain = ParallelManyBodyExecutor.from_manybodyinput(given, ParallelConfig(max_workers=1))
    config = ParallelConfig(max_workers=1, setup=f"module load x; echo up >> {alone}/began", wrap="env -i")
    made = ParallelManyBodyExecutor.from_manybodyinput(given, config)
    assert (alone / "began").read_text() == "up\n"
    assert made.return_result == pytest.approx(plain.return_result, abs=1e-9)


def test_what_keeps_a_worker_from_its_folder_is_not_said_of_the_wrapper(tmp_path):
    (tmp_path / "file").touch()
    book = LeaseBook(read_machine(), read_limits(), cpus=CpuSet(CPUS[:1]))
    given = Calculation(label="f0", program="none", input={}, threads=1, compute="json:dumps")
    with LocalEngine(book, wrapping=Wrapping(wrap=("env", "-i"))) as engine:
        engine._pool._folder = tmp_path / "file"  # in which nobody makes a folder, root neither
        (outcome,) = engine.run([given])
    assert outcome.status == "failed"
    assert "a worker could not be started" in outcome.error
    assert "Not a directory" in outcome.error
