"""``qcengine_lease`` in this process; computes nothing (tests/programs/test_qcengine_lease.py does)."""

from __future__ import annotations

import os
import sys

import pytest

from qcthreads.errors import LeaseError, MachineError
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.integrations import qcengine
from qcthreads.leases import LeaseBook
from qcthreads.leases.ledger import Ledger

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")


@pytest.fixture(autouse=True)
def book(monkeypatch: pytest.MonkeyPatch) -> LeaseBook:
    """That of the process: its own, so that nobody else's leases are in the way."""
    book = LeaseBook(read_machine(), read_limits(), ledger=Ledger())
    monkeypatch.setattr(qcengine, "process_book", lambda: book)
    monkeypatch.setattr(qcengine.registry, "require", lambda _: None)
    return book


def test_a_second_lease_of_a_thread_is_refused_before_it_waits_for_the_first(book: LeaseBook) -> None:
    with (
        qcengine.qcengine_lease("dftd4", at_most=1),
        pytest.raises(LeaseError, match="has a qcengine_lease already"),
        qcengine.qcengine_lease("dftd4", at_most=1, timeout=1),
    ):
        pass
    assert not book.held()


def test_without_threadpoolctl_it_says_what_is_needed_and_changes_nothing(
    book: LeaseBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(os.environ)
    with monkeypatch.context() as lacks:
        lacks.setitem(sys.modules, "threadpoolctl", None)
        with pytest.raises(MachineError, match=r"needs qcthreads\[run\]"), qcengine.qcengine_lease("dftd4"):
            pass
    assert dict(os.environ) == before
    assert not book.held()
    with qcengine.qcengine_lease("dftd4"):
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert dict(os.environ) == before
