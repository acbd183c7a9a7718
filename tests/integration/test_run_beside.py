"""A run beside somebody with a lease of most of the memory, and on a node with GPUs: it takes what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.host.gpus import Gpu
from qcthreads.host.limits import Limits, Rule, read_limits
from qcthreads.leases import LeaseBook, node_book
from qcthreads.machine.synthetic import synthetic_machine

GIB = 1024**3
EXAMPLE = Path(__file__).parents[2] / "examples" / "water4.xyz"
HOLD = """
import sys
import qcthreads
with qcthreads.lease(1, qcthreads.read_limits().memory_bytes * 3 // 4):
    print("held", flush=True)
    sys.stdin.read()
"""
LOOK = """
import os, time
def look(input):
    time.sleep(float(input["s"]))
    return {"success": True, "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
"""
needs_two = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the other has one PU, and the run needs one, too")


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Somebody with a lease of three quarters of the memory."""
    if sys.platform == "win32":
        pytest.skip("on Windows a book of a test's own is no other than the user's")
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield holder
    holder.communicate()


def run(*options: str) -> dict[str, Any]:
    pytest.importorskip("pyscf")
    pytest.importorskip("qcmanybody")
    chosen = ["--method", "hf", "--basis", "sto-3g", "--max-nbody", "1", "--json", *options]
    command = [sys.executable, "-m", "qcthreads", "run", str(EXAMPLE), *chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@needs_two
def test_a_run_beside_a_lease_of_most_memory_ends_before_it_does(other: subprocess.Popen[str]) -> None:
    document = run()
    assert other.poll() is None
    decision, statistics = document["decision"], document["statistics"]
    # Half, not a quarter: other programs may have given some back meanwhile.
    assert decision["workers"] * decision["memory_bytes_per_worker"] <= read_limits().memory_bytes // 2
    assert any("others have leased all but" in reason for reason in decision["reasons"])
    assert (statistics["fragments_computed"], statistics["fragments_failed"]) == (4, 0)


@needs_two
@pytest.mark.usefixtures("other")
def test_a_dry_run_waits_for_nobody() -> None:
    """It asks the program about the method, with every PU and all memory leased by others."""
    book = node_book()
    with book.acquire(len(book.free()[0])):
        assert not book.free()[0]
        assert run("--dry-run")["dry_run"]
        with pytest.raises(subprocess.CalledProcessError):
            run("--dry-run", "--keywords", '{"no_such": 1}')


@needs_two
@pytest.mark.usefixtures("other")
def test_memory_that_was_asked_for_is_taken_as_asked() -> None:
    decision = run("--memory", "1GiB", "--dry-run")["decision"]
    assert decision["workers"] * decision["memory_bytes_per_worker"] == GIB
    assert not any("others have leased" in reason for reason in decision["reasons"])


def test_stand_in_for_gpus_each_calculation_that_uses_them_sees_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "looks.py").write_text(LOOK)
    monkeypatch.syspath_prepend(str(tmp_path))
    machine = synthetic_machine(cores=4)
    rule = Rule("mask", "", cpus=machine.cpus_online, tightest=True)
    gpus = [Gpu(index, "nvidia", index, "", None, None, CpuSet()) for index in range(2)]
    book = LeaseBook(machine, Limits(machine.cpus_online, 4, None, 8 * GIB, (rule,)), gpus=gpus)
    with LocalEngine(book, affinity=False) as engine:
        seen: dict[str, list[dict[str, Any]]] = {}
        for program in ("torchani", "xtb"):
            work = [
                Calculation(label=str(number), program=program, input={"s": 0.1}, threads=1, compute="looks:look")
                for number in range(6)
            ]
            outcomes = list(engine.run(work))
            assert {outcome.status for outcome in outcomes} == {"finished"}
            seen[program] = [dict(outcome.result or {}) for outcome in outcomes]
    assert {one["gpus"] for one in seen["torchani"]} == {"0", "1"}
    assert len({one["pid"] for one in seen["torchani"]}) == 2  # a worker keeps the GPU that it began with
    assert {one["gpus"] for one in seen["xtb"]} == {"-1"}
