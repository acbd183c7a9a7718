"""What ``qcthreads leases`` says a lease is for, and who keeps it: real runs, and processes that outlive theirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

if sys.platform != "linux":
    pytest.skip("holders and what outlives them are read from /proc", allow_module_level=True)

QCTHREADS = [sys.executable, "-m", "qcthreads"]
SCRIPT = "import qcthreads, sys; lease = qcthreads.lease(1); print('has', flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of the test's own."""
    place = tmp_path / "book"
    monkeypatch.setenv("QCTHREADS_LEASES", str(place))
    return place


def shown() -> list[dict[str, Any]]:
    done = subprocess.run([*QCTHREADS, "leases", "--json"], capture_output=True, text=True, check=True)
    leases: list[dict[str, Any]] = json.loads(done.stdout)["leases"]
    return leases


def when(true: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    give_up = time.monotonic() + 60
    while not true(found := shown()):
        assert time.monotonic() < give_up, found
    return found


def test_what_outlives_its_holder_is_named() -> None:
    holder = subprocess.Popen(
        [*QCTHREADS, "exec", "--", "sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    sleeping = psutil.Process(int(holder.stdout.readline()))
    shell = sleeping.parent()
    assert shell is not None
    try:
        (lease,) = when(lambda leases: len(leases) == 1)
        assert (lease["state"], lease["survivors"]) == ("running", [])
        holder.kill()
        holder.wait()
        (lease,) = shown()
        assert lease["state"] == "outlived"
        assert {one["pid"]: one["command"] for one in lease["survivors"]} == {
            process.pid: " ".join(process.cmdline()) for process in (shell, sleeping)
        }
        table = subprocess.run([*QCTHREADS, "leases"], capture_output=True, text=True, check=True).stdout
        assert f"process {sleeping.pid} (sleep 600, user {psutil.Process().username()}) keeps CPUs" in table
    finally:
        shell.kill()
        sleeping.kill()
        holder.stdout.close()
    when(lambda leases: all(lease["state"] == "dead" for lease in leases))


@pytest.mark.parametrize("begin", ["module", "script"])
def test_a_command_is_shown_as_it_was_typed(begin: str) -> None:
    script = Path(sys.executable).with_name("qcthreads")
    if begin == "script" and not script.exists():
        pytest.skip("the script is not installed beside this interpreter")
    how = QCTHREADS if begin == "module" else [str(script)]
    process = subprocess.Popen([*how, "exec", "--program", "xtb", "--", "cat"], stdin=subprocess.PIPE)
    try:
        (lease,) = when(lambda leases: len(leases) == 1)
        assert lease["command"] == "qcthreads exec --program xtb -- cat"
        assert lease["run"] == "xtb"
    finally:
        process.communicate()


def test_a_script_of_somebody_elses_keeps_its_name_and_tells_of_no_run(tmp_path: Path) -> None:
    script = tmp_path / "cluster.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "has\n"
    (lease,) = shown()
    assert (lease["command"], lease["run"]) == (f"{Path(sys.executable).name} {script}", None)
    process.communicate()


def test_a_run_is_known_by_its_store(tmp_path: Path) -> None:
    pytest.importorskip("pyscf")
    pytest.importorskip("qcmanybody")
    water = Path(__file__).parents[2] / "examples" / "water4.xyz"
    store = tmp_path / "water.store"
    chosen = ["--method", "hf", "--basis", "sto-3g", "--max-nbody", "2", "--store", str(store)]
    process = subprocess.Popen(
        [*QCTHREADS, "run", str(water), *chosen], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        found = when(lambda leases: bool(leases) or process.poll() is not None)
        assert {lease["run"] for lease in found} == {str(store)}
        assert all(lease["command"].startswith(f"qcthreads run {water} --method hf") for lease in found)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a directory for all users")
def test_a_directory_with_something_in_it_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    tmp_path.chmod(0o700)
    done = subprocess.run([*QCTHREADS, "leases", "--share", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert f"{tmp_path}/qcthreads" in done.stderr
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "locks").exists()
    own = tmp_path / "qcthreads"
    for _ in range(2):
        subprocess.run([*QCTHREADS, "leases", "--share", str(own)], capture_output=True, check=True)
    assert {path.name for path in own.iterdir()} == {"locks", "records"}
