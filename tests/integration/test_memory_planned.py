"""Memory as it was measured: grants near to peaks, under a limit that the kernel enforces, and refusals by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyscf", reason="it computes")

from qcthreads.errors import OversubscriptionError
from qcthreads.execution.cost_store import CostStore, Kind
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.manybody.run import Run, RunReport, RunRequest
from qcthreads.planning.costs import Observation, Size
from qcthreads.programs.registry import find, get

EXAMPLES = Path(__file__).parents[2] / "examples"
GROUP = Path("/sys/fs/cgroup/memory/qcthreads-test")
MIB = 1024**2

pytestmark = pytest.mark.skipif(len(read_limits().cpus) < 2, reason="with one CPU there is no width to choose")


def run(**options: Any) -> RunReport:
    request = RunRequest(method="hf", basis="cc-pvdz", busy="ignore", **options)
    return Run(request).execute()


def test_after_a_run_grants_are_near_to_peaks() -> None:
    given = {"input": EXAMPLES / "water4.xyz", "max_nbody": 3}
    run(**given)
    calculations = run(**given).record.calculations
    ratios = sorted(one.memory_granted_bytes / one.memory_peak_bytes for one in calculations if one.group != "0")
    assert len(ratios) == 14
    within = [1.0 <= ratio <= 1.15 for ratio in ratios]
    assert sum(within) >= 0.9 * len(within), ratios


# Three of five waters each, which take some 350 MiB, and one of one: two side by side are most of what there is.
LARGE = ("--fragments", "1-15;16-30;31-45;46-48", "--method", "hf", "--basis", "cc-pvdz", "--max-nbody", "1")


@pytest.fixture
def limit() -> Iterator[None]:
    if not os.access(GROUP.parent / "cgroup.procs", os.W_OK):
        pytest.skip("needs the right to make a memory group (cgroup v1)")
    GROUP.mkdir(exist_ok=True)  # a run that was killed left it
    (GROUP / "memory.limit_in_bytes").write_text(str(900 * MIB))
    yield
    GROUP.rmdir()


@pytest.mark.usefixtures("limit")
def test_as_many_run_side_by_side_as_a_limit_that_kills_has_room_for() -> None:
    command = [sys.executable, "-m", "qcthreads", "run", str(EXAMPLES / "water16.xyz"), *LARGE, "--busy", "ignore"]
    subprocess.run([*command, "--json"], capture_output=True, check=True, timeout=300)
    inside = f'echo $$ > {GROUP}/cgroup.procs && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", inside, "sh", *command, "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    told = dict(line.split() for line in (GROUP / "memory.oom_control").read_text().splitlines())
    assert told["oom_kill"] == "0"
    assert int((GROUP / "memory.max_usage_in_bytes").read_text()) > 0.6 * 900 * MIB  # one of them alone: 425 MB
    assert document["statistics"]["peak_workers"] == 2
    assert document["decision"]["memory_bytes_per_worker"] < 450 * MIB


def test_what_alone_takes_more_than_there_is_is_refused_by_name_before_anything_starts() -> None:
    if find(get("xtb")) is None:
        assert os.environ.get("CI") != "true", "xtb must be installed in CI"
        pytest.skip("xtb is not installed here")
    kind = Kind("xtb", "energy", "GFN2-xTB", "")
    CostStore(read_machine()).add(kind, [Observation(Size(10 * n, 10 * n), 1, 0.1, n * 800 * MIB) for n in (1, 2)])
    request = RunRequest(input=EXAMPLES / "water4.xyz", program="xtb", method="GFN2-xTB", memory_bytes=1000 * MIB)
    with pytest.raises(OversubscriptionError, match=r"calculation 1\+2 takes .* measured here, but 1000 MiB"):
        Run(request)
