"""A memory group of the kernel's (cgroup v1) that a test runs something in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def limited(group: Path, limit_bytes: int) -> Iterator[None]:
    """Within it ``group`` is there, with so much memory; skips where none can be made."""
    if not os.access(group.parent / "cgroup.procs", os.W_OK):
        pytest.skip("needs the right to make a memory group (cgroup v1)")
    group.mkdir(exist_ok=True)  # a run that was killed left it
    (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    yield
    group.rmdir()
