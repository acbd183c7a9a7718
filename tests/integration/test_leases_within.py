"""Leases within leases: what runs under one divides its CPUs, memory and GPUs, however many do, and unbound, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from contenders import book_in

from qcthreads.cpuset import CpuSet
from qcthreads.host import read_machine
from qcthreads.leases import Lease

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork and no flock")

MIB = 1024**2
INSIDE = """
import json, sys
from qcthreads.errors import LeaseError, OversubscriptionError
from qcthreads.leases import process_book
book, held = process_book(), []
try:
    while True:
        held.append(book.acquire(1, {memory}, wait=False))
except LeaseError as refused:
    error = str(refused)
said = {{"usable": list(book.usable), "cpus": [list(lease.cpus) for lease in held], "refused": error,
        "memory": sum(lease.memory_bytes for lease in held), "total": book.limits.total_bytes, "gpus": list(book.gpus)}}
print(json.dumps(said), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """What a process under a lease can lease there, by ``memory`` bytes at a time; it goes on holding that."""
    monkeypatch.setenv("QCTHREADS_LEASES", str(tmp_path / "book"))

    def leases_all(lease: Lease, memory: int, *, bound: bool = True) -> dict[str, Any]:
        command = [sys.executable, "-c", INSIDE.format(memory=memory)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        if bound:
            process = lease.popen(command, **pipes)
        else:
            process = subprocess.Popen(command, env={**os.environ, **lease.environment}, **pipes)
        started.append(process)
        assert process.stdout is not None
        said: dict[str, Any] = json.loads(process.stdout.readline())
        return said

    started: list[subprocess.Popen[bytes]] = []
    yield leases_all
    for process in started:
        process.communicate()


def test_no_more_memory_is_leased_inside_than_outside_by_two_processes_together(
    tmp_path: Path, inside: Callable[..., dict[str, Any]]
) -> None:
    with book_in(tmp_path / "book", read_machine()).acquire(1, 100 * MIB) as lease:
        first, second = inside(lease, 60 * MIB), inside(lease, 60 * MIB)
    assert first["total"] == second["total"] == 100 * MIB
    assert first["memory"] + second["memory"] == 60 * MIB


def test_a_lease_without_memory_has_the_share_of_its_pus(tmp_path: Path, inside: Callable[..., dict[str, Any]]) -> None:
    machine = read_machine()
    with book_in(tmp_path / "book", machine).acquire(1) as lease:
        said = inside(lease, MIB)
    share = len(lease.reserved) / len(machine.cpus_online)
    assert 0 < said["total"] <= share * psutil.virtual_memory().total


@pytest.mark.skipif(len(read_machine().allowed_cpus) < 2, reason="with one CPU there is nothing to divide")
def test_without_a_mask_the_cpus_are_those_of_the_lease_all_the_same(
    tmp_path: Path, inside: Callable[..., dict[str, Any]]
) -> None:
    book = book_in(tmp_path / "book", read_machine())
    with book.acquire(1) as one, book.acquire(1) as other:
        said = [inside(lease, 0, bound=False) for lease in (one, other)]
    assert [CpuSet(one["usable"]) for one in said] == [one.cpus, other.cpus]
    assert [one["cpus"] for one in said] == [[list(lease.cpus)] for lease in (one, other)]
