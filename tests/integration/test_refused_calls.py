"""Affinity and policy calls that the kernel refuses, by a real seccomp filter: the run goes on, and says it once."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyscf", reason="PySCF does not support this platform")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="seccomp is Linux's"
)

REFUSE = Path(__file__).with_name("refuse.py")
COMMAND = [sys.executable, "-m", "qcthreads"]
SET = "sched_setaffinity"
POLICY = "set_mempolicy,get_mempolicy,mbind,move_pages,set_mempolicy_home_node"
EVERYTHING = f"{SET},sched_getaffinity,{POLICY}"


def run(arguments: list[str], *prefix: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def helium(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("refused") / "he2.xyz"
    path.write_text("2\nangstrom\nHe 0 0 0\nHe 0 0 2.8\n")
    return ["run", str(path), *("--method", "hf", "--basis", "6-31g", "--max-nbody", "2", "--json")]


@pytest.fixture(scope="module")
def undisturbed(helium: list[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run(helium).stdout)
    assert all(fragment["cpus"] for fragment in document["fragments"])
    assert not [finding for finding in document["findings"] if finding["kind"] == "unbound"]
    return document


@pytest.mark.parametrize(
    ("error", "calls", "back_end"),
    [("EPERM", SET, ""), ("EINVAL", f"{SET},{POLICY}", "portable"), ("ENOSYS", EVERYTHING, "")],
)
def test_a_run_has_the_same_energies_and_one_warning(
    helium: list[str], undisturbed: dict[str, Any], error: str, calls: str, back_end: str
) -> None:
    done = run(helium, sys.executable, str(REFUSE), error, calls, QCTHREADS_BACKEND=back_end)
    document = json.loads(done.stdout)
    assert document["result"]["return_result"] == pytest.approx(undisturbed["result"]["return_result"], abs=1e-10)
    assert [row["label"] for row in document["fragments"]] == [row["label"] for row in undisturbed["fragments"]]
    assert not document["failures"]
    warnings = [line for line in done.stderr.splitlines() if "unbound" in line or "cannot" in line]
    assert len(warnings) == 1, done.stderr
    assert "calculations run unbound" in warnings[0]
    (finding,) = [finding for finding in document["findings"] if "unbound" in finding["message"]]
    assert finding["kind"] == "unbound"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("back_end", ["", "portable"])
def test_a_command_runs_where_nobody_may_adopt_orphans(back_end: str) -> None:
    done = run(
        ["exec", "--", "echo", "here"], sys.executable, str(REFUSE), "EPERM", "prctl", QCTHREADS_BACKEND=back_end
    )
    assert done.stdout == "here\n"


@pytest.mark.parametrize("back_end", ["", "portable"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("EPERM", "BindingNotPermittedError"),
        ("EINVAL", "BindingNotEnforcedError"),
        ("ENOSYS", "BindingNotSupportedError"),
    ],
)
def test_each_refusal_has_its_own_error(error: str, kind: str, back_end: str) -> None:
    code = (
        "from qcthreads.host import get_host; from qcthreads import CpuSet\n"
        "try: get_host().set_affinity(CpuSet([0]))\n"
        "except Exception as error: print(type(error).__name__)"
    )
    command = [sys.executable, str(REFUSE), error, SET, sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"QCTHREADS_BACKEND": back_end}
    )
    assert done.stdout.strip() == kind


def test_limits_without_the_mask_are_those_of_the_cgroup_and_the_machine() -> None:
    done = run(["limits", "--json"], sys.executable, str(REFUSE), "ENOSYS", EVERYTHING)
    limits = json.loads(done.stdout)
    assert "mask" not in [rule["rule"] for rule in limits["rules"]]
    assert set(limits["cpus"]) >= os.sched_getaffinity(0)
