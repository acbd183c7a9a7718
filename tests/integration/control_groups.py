"""Groups of the kernel's (cgroup v1) that a test runs something in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

CPU_PERIOD_US = 100_000


@contextmanager
def limited(group: Path, limit_bytes: int) -> Iterator[None]:
    """Within it ``group`` is there, with so much memory; skips where none can be made."""
    with _made(group, {"memory.limit_in_bytes": limit_bytes}):
        yield


@contextmanager
def with_quota(group: Path, cpus: float) -> Iterator[None]:
    """Within it ``group`` is there, with a quota of so many CPUs' time; skips where none can be made."""
    quota_us = round(cpus * CPU_PERIOD_US)
    with _made(group, {"cpu.cfs_period_us": CPU_PERIOD_US, "cpu.cfs_quota_us": quota_us}):
        yield


@contextmanager
def _made(group: Path, settings: Mapping[str, int]) -> Iterator[None]:
    if not os.access(group.parent / "cgroup.procs", os.W_OK):
        pytest.skip(f"needs the right to make a group in {group.parent} (cgroup v1)")
    group.mkdir(exist_ok=True)  # left by a killed run that had the same pid
    for name, value in settings.items():
        (group / name).write_text(str(value))
    yield
    group.rmdir()
