"""Finds and ends everything that was started below a worker, wherever it hid; touches nothing else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..host.processes import GRACE_S, descendants

if TYPE_CHECKING:
    import psutil

MARK = "QCTHREADS_WORKER"
"""Environment variable that every process below a worker inherits: it outlives parents, sessions and process groups."""

_GIVE_UP_S = 10.0  # a process in an uninterruptible system call cannot be ended by anybody


def members(roots: Mapping[int, str]) -> list[psutil.Process]:
    """All live processes but this one below the workers ``roots`` (their pids and marks), workers included.

    Below means: a descendant, or in the worker's session, or started with its mark in the environment.
    """
    import psutil

    marks = set(roots.values())
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if _session(process.pid) in roots or process.environ().get(MARK) in marks:
                found[process.pid] = process
    for pid in {*roots, *found}:
        for child in descendants(pid) if pid in found or pid == os.getpid() else ():
            with contextlib.suppress(psutil.Error):
                found.setdefault(child, psutil.Process(child))
    found.pop(os.getpid(), None)
    return [process for process in found.values() if lives(process)]


def end(roots: Mapping[int, str], grace_s: float = GRACE_S) -> None:
    """End all :func:`members`: SIGTERM, ``grace_s`` seconds, then SIGKILL until none is left."""
    _terminate(members(roots), grace_s)
    give_up = time.monotonic() + _GIVE_UP_S
    while (found := members(roots)) and time.monotonic() < give_up:
        _kill(found)
        _wait(found, 0.2)


def end_these(pids: Iterable[int], grace_s: float = GRACE_S) -> None:
    """End these processes and their descendants: SIGTERM, ``grace_s`` seconds, then SIGKILL."""
    import psutil

    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found.update((one.pid, one) for one in (process, *process.children(recursive=True)))
    _terminate(list(found.values()), grace_s)
    _kill(found.values())


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _session(pid: int) -> int:
    """The session of ``pid``; the worker starts one of its own."""
    if sys.platform == "win32":
        return 0
    return os.getsid(pid)


def _terminate(processes: list[psutil.Process], grace_s: float) -> None:
    """SIGTERM, and ``grace_s`` seconds to obey."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _wait(processes, grace_s)


def _kill(processes: Iterable[psutil.Process]) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _wait(processes: list[psutil.Process], timeout_s: float) -> None:
    """Until none lives; waits for no exit status, which belongs to the parents."""
    deadline = time.monotonic() + timeout_s
    while any(map(lives, processes)) and time.monotonic() < deadline:
        time.sleep(0.005)
