"""Memory that is left now against what was left when a book was made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qcthreads.host import read_machine
from qcthreads.host.limits import Limits, read_limits
from qcthreads.leases import LeaseBook


def test_what_our_own_programs_take_does_not_keep_us_from_what_we_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = read_limits()
    book = LeaseBook(read_machine(), limits)
    half = [
        rule if rule.memory_bytes is None else replace(rule, memory_bytes=rule.memory_bytes // 2)
        for rule in limits.rules
    ]
    monkeypatch.setattr(Limits, "memory_now", lambda _: tuple(rule for rule in half if rule.memory_bytes is not None))
    with book.acquire(1, book.memory_bytes, wait=False) as lease:
        assert lease.memory_bytes == book.memory_bytes
