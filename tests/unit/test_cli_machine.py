"""``topo``, ``limits``, ``programs`` and ``doctor`` as documents, against psutil, /proc and the shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

import qcthreads

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the witness is Linux's own tool")


def document(*arguments: str, prefix: tuple[str, ...] = ()) -> Any:
    command = [*prefix, sys.executable, "-m", "qcthreads", *arguments, "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def text(*arguments: str) -> str:
    command = [sys.executable, "-m", "qcthreads", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_topo_has_the_fixed_keys_and_psutil_agrees() -> None:
    topo = document("topo")
    assert list(topo) == [
        *("cpus_online", "packages", "dies", "cores", "numa", "caches", "distances", "cpu_kinds"),
        *("allowed_cpus", "allowed_mems", "leased"),
    ]
    assert len(topo["cpus_online"]) == psutil.cpu_count(logical=True)
    assert sorted(cpu for core in topo["cores"] for cpu in core) == topo["cpus_online"]
    assert all(set(node) == {"id", "cpus", "memory_bytes", "kind"} for node in topo["numa"])
    assert all(set(cache) == {"level", "type", "size", "cpus"} for cache in topo["caches"])


def record_hyperthreads(root: Path) -> None:
    """Two cores with two hyperthreads each, written by hand as the kernel would."""
    cpus = root / "sys/devices/system/cpu"
    for number in range(4):
        folder = cpus / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-1\n" if number < 2 else "2-3\n")
        (folder / "core_cpus_list").write_text("0-1\n" if number < 2 else "2-3\n")
        (folder / "core_siblings_list").write_text("0-3\n")
        (folder / "package_cpus_list").write_text("0-3\n")
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{number // 2}\n")
    (cpus / "online").write_text("0-3\n")
    (root / "proc").mkdir()


@ON_LINUX
def test_topo_of_a_recorded_machine(tmp_path: Path) -> None:
    record_hyperthreads(tmp_path)
    topo = document("topo", "--sysroot", str(tmp_path))
    assert topo["cpus_online"] == [0, 1, 2, 3]
    assert topo["cores"] == [[0, 1], [2, 3]]
    assert topo["packages"] == [[0, 1, 2, 3]]
    assert topo["distances"] is None
    assert "2 cores (2 with SMT)" in text("topo", "--sysroot", str(tmp_path))


@ON_LINUX
def test_topo_names_what_is_offline(tmp_path: Path) -> None:
    record_hyperthreads(tmp_path)
    (tmp_path / "sys/devices/system/cpu/present").write_text("0-5\n")
    assert "4 PUs online (0-3; offline: 4-5), 2 cores" in text("topo", "--sysroot", str(tmp_path))
    picture = tmp_path / "machine.svg"
    text("topo", "--sysroot", str(tmp_path), "--svg", str(picture))
    assert "offline: 4-5" in picture.read_text(encoding="utf-8")


def refused(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "qcthreads", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr


def test_a_picture_that_has_no_place_is_refused_in_a_line(tmp_path: Path) -> None:
    code, said = refused("topo", "--svg", str(tmp_path / "nowhere" / "x.svg"))
    assert code == 2
    assert f"there is no directory {tmp_path / 'nowhere'}" in said
    assert refused("topo", "--svg", str(tmp_path))[0] == 2


@ON_LINUX
@pytest.mark.parametrize("path", ["/proc/x.svg", "/dev/full"])
def test_a_picture_that_cannot_be_written_is_refused_in_a_line(path: str) -> None:
    code, said = refused("topo", "--svg", path)
    assert code == 3
    assert f"--svg {path}" in said


@ON_LINUX
def test_limits_say_which_pus_threads_get(tmp_path: Path) -> None:
    record_hyperthreads(tmp_path)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 1048576 kB\n")
    said = text("limits", "--sysroot", str(tmp_path))
    assert "4 CPUs may be used: all that are online (0-3); 1 GiB of memory\n" in said
    assert "threads get one PU per core, performance cores first: PUs 0,2 (2); with --smt 4: 0-3\n" in said


@ON_LINUX
def test_one_cpu_of_a_quota_is_one_pu(tmp_path: Path) -> None:
    record_hyperthreads(tmp_path)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 1024000 kB\n")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("100000 100000\n")
    said = text("limits", "--sysroot", str(tmp_path))
    assert "1 CPU may be used: quota 1 (/sys/fs/cgroup/cpu.max); 1000 MiB of memory\n" in said
    assert " 1 PU " in said


@ON_LINUX
def test_limits_follow_the_mask_that_taskset_sets() -> None:
    first = min(os.sched_getaffinity(0))
    limits = document("limits", prefix=("taskset", "--cpu-list", str(first)))
    assert limits["cpus"] == [first]
    assert limits["cpu_count"] == 1
    tightest = [rule for rule in limits["rules"] if rule["tightest"]]
    assert any(rule.get("cpus") == [first] for rule in tightest)


def test_limits_have_the_fixed_keys() -> None:
    limits = document("limits")
    assert list(limits) == ["cpus", "cpu_count", "quota_cpus", "memory_bytes", "rules"]
    for rule in limits["rules"]:
        assert {"rule", "source", "tightest"} < set(rule)
        assert len(set(rule) & {"cpus", "cpu_count", "memory_bytes"}) == 1
    assert 0 < limits["memory_bytes"] <= psutil.virtual_memory().total
    assert "tightest" in text("limits")


@pytest.mark.once
def test_programs_agree_with_the_path_and_the_installed_packages() -> None:
    programs = {program["name"]: program for program in document("programs")["programs"]}
    for name, executable in (("psi4", "psi4"), ("nwchem", "nwchem"), ("mopac", "mopac")):
        assert programs[name]["found"] == (shutil.which(executable) is not None)
    assert programs["pyscf"]["found"] == (find_spec("pyscf") is not None)
    if programs["pyscf"]["found"]:
        assert programs["pyscf"]["version"] == version("pyscf")
    assert "pyscf" in text("programs")


@pytest.mark.once
def test_programs_that_nobody_has_verified_are_said_to_be_so() -> None:
    lines = {line.split()[0]: line for line in text("programs").splitlines() if line.strip()}
    for name, said in (("orca", "documented"), ("qchem", "second-hand")):  # of which the manual, or others, tell
        assert lines[name].rstrip().endswith(f"never verified: {said}")
    for name in ("psi4", "nwchem", "pyscf"):
        assert "measured here with" in lines[name]
        assert "never" not in lines[name]
    assert "never verified: documented" in text("programs", "orca")


def test_doctor_says_what_is_in_use() -> None:
    found = document("doctor")
    assert found["qcthreads"] == qcthreads.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["back_end"]["reason"]
    assert found["limits"] == document("limits") | {
        "memory_bytes": found["limits"]["memory_bytes"],
        "rules": found["limits"]["rules"],
    }
    packages = {package["name"]: package["version"] for package in found["optional_packages"]}
    assert packages["qcengine"] == version("qcengine")
    shown = text("doctor")
    assert f"back end: {found['back_end']['name']}" in shown


@ON_LINUX
def test_doctor_names_the_back_end_that_is_forced() -> None:
    command = [sys.executable, "-m", "qcthreads", "doctor", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"QCTHREADS_BACKEND": "portable"}
    )
    assert json.loads(done.stdout)["back_end"]["name"] == "portable"
