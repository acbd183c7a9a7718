"""Whose variables the notes are about: under somebody else's lease they are that one's, under one's own the user's."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.host import read_machine
from qcthreads.host.limits import read_limits
from qcthreads.integrations import qcengine
from qcthreads.leases import LeaseBook, has_outer_lease
from qcthreads.leases.ledger import Ledger
from qcthreads.leases.place import LEASE_VARIABLE
from qcthreads.programs import registry
from qcthreads.programs.settings import settings_for


def by_engine(book: LeaseBook) -> list[str]:
    with LocalEngine(book) as engine:
        return list(engine._prepare(Calculation(label="a", program="dftd4", input={})).settings.notes)


def by_qcengine_lease(book: LeaseBook) -> list[str]:
    spec, said = registry.get("dftd4"), list[str]()
    with pytest.MonkeyPatch.context() as patch, book.acquire(1) as lease:
        patch.setattr(qcengine, "_say", said.append)
        qcengine._told(spec, settings_for(spec, 1), lease)
    return said


def by_exec(book: LeaseBook) -> list[str]:
    if sys.platform == "win32":
        pytest.skip("exec is not there")
    from qcthreads.execution import command

    said: list[str] = []
    with book.acquire(1) as lease:
        request = command.Request(command=("true",))
        command._prepared(request, "true", settings_for(registry.get("dftd4"), 1), lease, said.append)
    return said


@pytest.mark.parametrize("way", [by_engine, by_qcengine_lease, by_exec])
@pytest.mark.parametrize("outer", [True, False])
def test_one_s_own_lease_is_no_outer_one(
    way: Callable[[LeaseBook], list[str]], outer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = LeaseBook(read_machine(), read_limits(), ledger=Ledger())
    monkeypatch.setattr(registry, "require", lambda _: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv(LEASE_VARIABLE, "1-2-3.4" if outer else f"{book.ledger.mark}.1")
    assert has_outer_lease() == outer
    assert any("OMP_NUM_THREADS=64 (now 1)" in note for note in way(book)) == (not outer)
