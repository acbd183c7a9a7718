"""Two runs on one node at the same time: both finish, never on one PU, and say whom they waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere masks cannot be read or set")

EXAMPLE = Path(__file__).parents[2] / "examples" / "water4.xyz"
_BUSY_S = 0.03  # of 0.2: to end a calculation takes less


def start(tmp_path: Path, name: str, basis: str, strategy: str = "auto") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qcthreads", "run", str(EXAMPLE), "--method", "hf", "--basis", basis]
    with (tmp_path / f"{name}.json").open("w") as out, (tmp_path / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [*command, "--max-nbody", "1", "--json", "--strategy", strategy],
            env={**os.environ, "QCTHREADS_LEASES": str(tmp_path / "leases")},
            stdout=out,
            stderr=log,
            text=True,
        )


def working(drivers: list[subprocess.Popen[str]]) -> dict[int, frozenset[int]]:
    """Masks of the workers that computed at one moment, between the last two of three looks, however long each takes.

    Between two calculations a worker waits for the next, which the system counts: who has worked by the second look,
    and has not waited by the third, works.
    """

    def look() -> dict[int, tuple[float, tuple[int, frozenset[int]]]]:
        found = {}
        for driver in drivers:
            try:
                children = psutil.Process(driver.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            for worker in children:
                try:
                    times, waits = worker.cpu_times(), worker.num_ctx_switches().voluntary
                    found[worker.pid] = (times.user + times.system, (waits, frozenset(worker.cpu_affinity())))
                except psutil.NoSuchProcess:
                    continue
        return found

    before = look()
    time.sleep(0.2)
    between, after = look(), look()
    every = frozenset(os.sched_getaffinity(0))
    return {
        pid: state[1]
        for pid, (cpu_s, state) in between.items()
        if pid in before
        and pid in after
        and before[pid][1] == state == after[pid][1]
        and state[1] != every
        and cpu_s - before[pid][0] > _BUSY_S
    }


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one PU a bound worker cannot be told from one that is not")
@pytest.mark.parametrize("strategy", ["auto", "balanced"])
def test_two_runs_share_the_node(tmp_path: Path, strategy: str) -> None:
    drivers = [start(tmp_path, name, "aug-cc-pvtz", strategy) for name in ("one", "two")]
    looks = 0
    while any(driver.poll() is None for driver in drivers):
        masks = list(working(drivers).values())
        looks += bool(masks)
        assert sum(map(len, masks)) == len(frozenset().union(*masks)), f"two work on one PU: {masks}"
    logs = [(tmp_path / f"{name}.log").read_text() for name in ("one", "two")]
    assert [driver.returncode for driver in drivers] == [0, 0], logs
    assert looks
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    energies = [document["result"]["properties"]["nocp_corrected_total_energy"] for document in (one, two)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-9)
    assert not list((tmp_path / "leases" / "records").iterdir())


HOLD = """
import sys
import qcthreads
with qcthreads.lease(len(qcthreads.read_limits().cpus)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_says_whom_it_waits_for_and_whom_it_waited_for(tmp_path: Path) -> None:
    environment = {**os.environ, "QCTHREADS_LEASES": str(tmp_path / "leases")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD], env=environment, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        driver = start(tmp_path, "one", "sto-3g")
        deadline = time.monotonic() + 120
        while f"waits for what is held by process {holder.pid} " not in (tmp_path / "one.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)
        holder.stdin.close()
        assert driver.wait() == 0
    findings = json.loads((tmp_path / "one.json").read_text())["findings"]
    assert [finding["kind"] for finding in findings if f"process {holder.pid} " in finding["message"]] == ["waited"]
