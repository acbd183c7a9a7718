"""CPUs that somebody keeps busy who holds no lease, for real: avoided, waited for, or not looked at; and explained."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError
from qcthreads.host import read_machine
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing can be pinned to one CPU"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one CPU there is no other to take"),
]


@pytest.fixture
def burnt() -> Iterator[int]:
    """A CPU that a process pinned to it keeps busy."""
    cpu = min(os.sched_getaffinity(0))
    command = f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", command]) as burner:
        time.sleep(0.3)
        yield cpu
        burner.kill()


def book(busy: str, cpus: CpuSet) -> LeaseBook:
    rule = Rule("mask", "/proc/self/status", cpus=cpus, tightest=True)
    return LeaseBook(read_machine(), Limits(cpus, len(cpus), None, 2**30, (rule,)), busy=busy)  # type: ignore[arg-type]


def test_it_is_taken_last(burnt: int) -> None:
    own = CpuSet(sorted(os.sched_getaffinity(0))[:2])
    (other,) = own - CpuSet([burnt])
    one = book("avoid", own)
    with one.acquire(1) as lease:
        assert one.ledger.strangers >> burnt & 1
        if one.ledger.strangers >> other & 1:
            pytest.skip(f"CPU {other} is kept busy as well, by whatever else goes on here")
        assert lease.cpus == CpuSet([other])
        assert one.ledger.pinned >> burnt & 1
        (note,) = lease.notes
        assert re.match(
            rf"CPUs {burnt} were avoided: CPU {burnt} is \d+ % busy .*pid \d+ \(\S+, user \S+\), pinned", note
        )
        with one.acquire(1, wait=False) as last:
            assert last.cpus == CpuSet([burnt])


def test_it_is_waited_for_and_explained(burnt: int) -> None:
    one = book("wait", CpuSet([burnt]))
    with pytest.raises(LeaseError, match=rf"CPU {burnt} is \d+ % busy with the work of others: pid \d+ "):
        one.acquire(1, wait=False)
    assert book("ignore", CpuSet([burnt])).acquire(1, wait=False).cpus == CpuSet([burnt])


def test_what_has_ended_is_waited_for_no_longer(burnt: int) -> None:
    one = book("wait", CpuSet([burnt]))
    with pytest.raises(LeaseError):
        one.acquire(1, wait=False)
    subprocess.run(["pkill", "-KILL", "-f", rf"sched_setaffinity\(0, \[{burnt}\]\)"], check=True)
    for _ in range(20):
        if psutil.cpu_percent(1.5, percpu=True)[burnt] < 25:
            with one.acquire(1, timeout=30) as lease:
                assert lease.cpus == CpuSet([burnt])
            return
    pytest.skip(f"CPU {burnt} is kept busy by whatever else goes on here")
