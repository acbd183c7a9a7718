"""What ``qcthreads exec`` and ``monitor`` say where they were called wrongly, or cannot do what they were asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("there is no exec on Windows", allow_module_level=True)

QCTHREADS = [sys.executable, "-m", "qcthreads"]


@pytest.fixture(autouse=True)
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of the test's own, so that it never waits for the machine's."""
    place = tmp_path / "book"
    monkeypatch.setenv("QCTHREADS_LEASES", str(place))
    return place


@pytest.fixture
def all_taken() -> Iterator[int]:
    """An exec that has all CPUs; its number."""
    script = "import os, qcthreads, sys; lease = qcthreads.lease(len(qcthreads.leases.process_book().usable))"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import qcthreads.leases; {script}; print('has', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "has\n"
    yield holder.pid
    holder.kill()
    holder.communicate()


def qcthreads(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*prefix, *QCTHREADS, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("exec --threads 2 xtb in.xyz --gfn 2", "qcthreads exec --threads 2 -- xtb in.xyz --gfn 2"),
        ("exec --threads=1 --wait srun -n 2 -- xtb", "qcthreads exec --threads=1 --wait -- srun -n 2 -- xtb"),
        ("monitor xtb in.xyz", "qcthreads monitor -- xtb in.xyz"),
        ("monitor --threads 2 xtb", "qcthreads monitor --threads 2 -- xtb"),
    ],
)
def test_two_dashes_that_were_forgotten_are_put_in(given: str, meant: str) -> None:
    done = qcthreads(*given.split())
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines()[0].endswith(f"you may mean: {meant}")


def test_an_option_that_does_not_exist_is_no_command() -> None:
    assert "no option --treads; did you mean --threads?" in qcthreads("exec", "--treads", "2", "xtb").stderr


def test_a_program_that_nobody_knows_is_an_error_with_the_one_that_may_be_meant() -> None:
    done = qcthreads("exec", "--program", "xbt", "--", "true")
    assert done.returncode == 125
    assert "did you mean xtb?" in done.stderr
    assert qcthreads("exec", "--", "true").returncode == 0


def test_a_program_that_is_not_here_is_an_error_before_its_launcher_starts(tmp_path: Path) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text("#!/bin/sh\ntouch started\n")
    mpirun.chmod(0o755)
    command = ("exec", "--program", "nwchem", "--threads", "1", "--", "mpirun", "-n", "1", "nwchem", "water.nw")
    done = qcthreads(*command, prefix=("env", "-C", str(tmp_path), f"PATH={tmp_path}"))
    assert done.returncode == 127
    assert "NWChem is not installed here (no 'nwchem' on PATH): on Debian: apt install nwchem" in done.stderr
    assert not (tmp_path / "started").exists()
    (tmp_path / "nwchem").write_text("#!/bin/sh\n")
    (tmp_path / "nwchem").chmod(0o755)
    assert qcthreads(*command, prefix=("env", "-C", str(tmp_path), f"PATH={tmp_path}:/bin")).returncode == 0
    assert (tmp_path / "started").exists()


def test_what_is_put_before_a_program_may_bring_it(tmp_path: Path) -> None:
    (tmp_path / "nwchem").write_text("#!/bin/sh\n")
    (tmp_path / "nwchem").chmod(0o755)
    brought = (
        "exec",
        "--program",
        "nwchem",
        "--threads",
        "1",
        "--",
        "env",
        f"PATH={tmp_path}:/bin",
        "nwchem",
        "water.nw",
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/env").symlink_to(shutil.which("env") or "")
    assert qcthreads(*brought, prefix=("env", f"PATH={tmp_path}/bin")).returncode == 0


def test_a_rehearsal_needs_neither_the_command_nor_free_cpus(all_taken: int) -> None:
    done = qcthreads("exec", "--dry-run", "--", "no-such-command-here", "a b")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[1].startswith("# as on an empty node: a lease of 1 CPU cannot be given now")
    assert f"process {all_taken} " in lines[1]
    assert lines[-1].startswith("taskset -c ")
    assert lines[-1].endswith(" no-such-command-here 'a b'")
    assert "there is no command" in done.stderr


@pytest.mark.usefixtures("all_taken")
def test_only_what_can_be_waited_for_has_the_advice_to_wait() -> None:
    assert "--wait waits for it" in qcthreads("exec", "--", "true").stderr
    for hopeless in (["--threads", "100000"], ["--gpus", "1000"]):
        assert "--wait" not in qcthreads("exec", *hopeless, "--", "true").stderr


@pytest.mark.usefixtures("all_taken")
def test_the_document_is_written_where_exec_itself_fails(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    for command, status in (("true", 125), (str(plain), 126), ("no-such-command-here", 127)):
        file = tmp_path / f"{status}.json"
        done = qcthreads("exec", "--json-file", str(file), "--", command)
        document = json.loads(file.read_text())
        assert (done.returncode, document["exit_status"], document["command"]) == (status, status, [command])
        assert document["error"] in done.stderr


def test_a_dash_is_no_file_and_nothing_is_run_for_it(tmp_path: Path) -> None:
    done = qcthreads("exec", "--json-file", "-", "--", "echo", "ran", prefix=("env", "-C", str(tmp_path)))
    assert (done.returncode, done.stdout) == (125, "")
    assert "--json-file -: give a file by its name" in done.stderr
    assert not list(tmp_path.glob("*-"))
    assert '"exit_status": 0' in qcthreads("exec", "--json-file", "/dev/stderr", "--", "true").stderr


def _nobody() -> tuple[str, ...]:
    """What starts a process as a user without an entry in the system's list of users."""
    how = ("unshare", "--user", "--map-user=12345", "--map-group=12345")
    if shutil.which("unshare") is None or subprocess.run([*how, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here, which is where this user can have any number")
    return ("env", "-u", "LOGNAME", "-u", "USER", *how)


def test_a_user_without_a_name_runs_a_command() -> None:
    assert qcthreads("exec", "--", "id", "-u", prefix=_nobody()).stdout == "12345\n"


@pytest.mark.once
def test_a_user_without_a_name_computes_with_qcengine(tmp_path: Path) -> None:
    pytest.importorskip("pyscf")
    pytest.importorskip("qcmanybody")
    molecule = tmp_path / "helium.xyz"
    molecule.write_text("2\n\nHe 0 0 0\nHe 0 0 3\n")
    chosen = ("--fragments", "1;2", "--method", "hf", "--basis", "sto-3g", "--max-nbody", "1", "--json")
    done = qcthreads("run", str(molecule), *chosen, prefix=_nobody())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["statistics"]["fragments_failed"] == 0
