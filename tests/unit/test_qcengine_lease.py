"""``qcengine_lease`` in this process; computes nothing (tests/programs/test_qcengine_lease.py does)."""

from __future__ import annotations

import sys

import pytest

from qcthreads.errors import LeaseError
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
