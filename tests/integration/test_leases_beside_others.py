"""CPUs that somebody keeps busy who holds no lease, for real: avoided, waited for, or not looked at; and explained."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError
from qcthreads.execution.calculation import Calculation, Progress
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing can be pinned to one CPU"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one CPU there is no other to take"),
]


BURNT = min(os.sched_getaffinity(0)) if sys.platform == "linux" else 0

OTHERS = "0f" * 16


@pytest.fixture(autouse=True)
def burner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that keeps the CPU busy that it is pinned to."""
    command = f"import os; os.sched_setaffinity(0, [{BURNT}])\nprint(flush=True)\nwhile True: pass"
    environment = {**os.environ, "QCTHREADS_LEASE": OTHERS}
    with subprocess.Popen([sys.executable, "-c", command], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process
        process.kill()


def book(busy: str, cpus: CpuSet) -> LeaseBook:
    rule = Rule("mask", "/proc/self/status", cpus=cpus, tightest=True)
    return LeaseBook(read_machine(), Limits(cpus, len(cpus), None, 2**30, (rule,)), busy=busy)  # type: ignore[arg-type]


def test_it_is_taken_last() -> None:
    own = CpuSet(sorted(os.sched_getaffinity(0))[:2])
    (other,) = own - CpuSet([BURNT])
    one = book("avoid", own)
    with one.acquire(1) as lease:
        assert one.ledger.strangers >> BURNT & 1
        if one.ledger.strangers >> other & 1:
            pytest.skip(f"CPU {other} is kept busy as well, by whatever else goes on here")
        assert lease.cpus == CpuSet([other])
        assert one.ledger.pinned >> BURNT & 1
        (note,) = lease.notes
        assert re.match(
            rf"CPUs {BURNT} were avoided: CPU {BURNT} is \d+ % busy .*pid \d+ \(\S+, user \S+\), pinned", note
        )
        with one.acquire(1, wait=False) as last:
            assert last.cpus == CpuSet([BURNT])


def test_what_we_have_started_ourselves_is_nobody_else_without_a_lease_too(burner: subprocess.Popen[bytes]) -> None:
    one = book("avoid", CpuSet([BURNT]))
    one.ledger.mark = OTHERS
    with one.acquire(1) as lease:
        assert not one.ledger.strangers >> BURNT & 1
        assert f"pid {burner.pid} " not in "".join(lease.notes)


def test_exec_says_what_it_avoided(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = ["exec", "--busy", "avoid", "--json-file", str(report), "--", "true"]
    environment = {**os.environ, "QCTHREADS_LEASES": str(tmp_path / "book")}
    said = subprocess.run(
        [sys.executable, "-m", "qcthreads", *command], env=environment, stderr=subprocess.PIPE, text=True, check=True
    ).stderr
    told = json.loads(report.read_text())
    if told["lease"]["cpus"] == [BURNT] or not told["notes"]:
        pytest.skip("all CPUs are kept busy, by whatever else goes on here")
    (note,) = told["notes"]
    assert re.match(rf"CPUs {BURNT}\b.* were avoided: CPU {BURNT} is ", note)
    assert said == f"qcthreads exec: {note}\n"


def test_a_run_says_once_what_it_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks.py").write_text("def none(_): return {}")
    monkeypatch.syspath_prepend(str(tmp_path))
    jobs = [Calculation(label=str(n), program="none", input={}, compute="tasks:none") for n in range(2)]
    events: list[Progress] = []
    own = CpuSet(sorted(os.sched_getaffinity(0))[:2])
    with LocalEngine(book("avoid", own), on_progress=events.append) as engine:
        outcomes = list(engine.run(jobs, max_workers=1))
    notes = [event.message for event in events if event.kind == "avoided"]
    if any(outcome.cpus == CpuSet([BURNT]) for outcome in outcomes) or not notes:
        pytest.skip("both CPUs are kept busy, by whatever else goes on here")
    (note,) = notes
    assert note.startswith(f"CPUs {BURNT} were avoided: CPU {BURNT} is ")


def test_it_is_waited_for_and_explained() -> None:
    one = book("wait", CpuSet([BURNT]))
    with pytest.raises(LeaseError, match=rf"CPU {BURNT} is \d+ % busy with the work of others: pid \d+ "):
        one.acquire(1, wait=False)
    assert book("ignore", CpuSet([BURNT])).acquire(1, wait=False).cpus == CpuSet([BURNT])


def test_what_has_ended_is_waited_for_no_longer(burner: subprocess.Popen[bytes]) -> None:
    one = book("wait", CpuSet([BURNT]))
    with pytest.raises(LeaseError):
        one.acquire(1, wait=False)
    burner.kill()
    burner.wait()
    for _ in range(10):
        if psutil.cpu_percent(1.5, percpu=True)[BURNT] > 25:
            continue
        with contextlib.suppress(LeaseError), one.acquire(1, timeout=3) as lease:
            assert lease.cpus == CpuSet([BURNT])
            return
    pytest.skip(f"CPU {BURNT} is kept busy by whatever else goes on here")
