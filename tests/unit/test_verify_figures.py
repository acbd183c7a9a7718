"""Under which leases ``qcthreads verify`` measures; measures nothing (tests/programs/test_verify.py does)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qcthreads.host
from qcthreads.cli import main
from qcthreads.cli import verify as verify_command
from qcthreads.cpuset import CpuSet
from qcthreads.errors import LeaseError
from qcthreads.execution import sample
from qcthreads.execution.verify import _Bench
from qcthreads.host.gpus import Gpu
from qcthreads.leases import LeaseBook
from qcthreads.programs import registry

TWO_GPUS = tuple(Gpu(index, "nvidia", index, "", None, None, CpuSet()) for index in range(2))


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> LeaseBook:
    """Where ``qcthreads verify`` would lease on a node with two GPUs."""
    books: list[LeaseBook] = []

    def verify(_spec: object, _job: object, book: LeaseBook, **_: Any) -> None:
        books.append(book)
        raise LeaseError("that is all")

    monkeypatch.setattr(verify_command, "verify", verify)
    monkeypatch.setattr(registry, "require", lambda *_, **__: None)
    monkeypatch.setattr(qcthreads.host, "read_gpus", lambda: TWO_GPUS)
    assert main(["verify", "mopac"]) == 3
    return books[0]


def test_the_book_is_the_node_s_with_its_gpus(book: LeaseBook) -> None:
    assert len(book.gpus) == 2


@pytest.mark.parametrize(("program", "gpus"), [("torchani", 1), ("mopac", 0)])
def test_a_program_that_computes_on_gpus_is_given_one(program: str, gpus: int, book: LeaseBook, tmp_path: Path) -> None:
    spec = registry.get(program)
    bench = _Bench(spec, sample.built_in(registry.get("mopac"), None, None), book, 0, tmp_path, lambda _: None)
    with bench.lease(1) as lease:
        assert len(lease.gpus) == gpus
