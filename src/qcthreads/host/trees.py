"""Finds and ends what was started below whom, by environment, session and parents; touches nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping

from ..light import dataclass
from . import processes

MARK = "QCTHREADS_WORKER"
"""Environment variable that every process below a worker inherits: it outlives parents, sessions and process groups."""

GRACE_S = 1.0
"""Between SIGTERM and SIGKILL: enough for an MPI launcher to end its ranks."""

_GIVE_UP_S = 10.0  # a process in an uninterruptible system call cannot be ended by anybody
_LOOK_S = 0.005


@dataclass(frozen=True, slots=True)
class Process:
    """A process, which is not another that has its number later."""

    pid: int
    start: float

    @classmethod
    def of(cls, pid: int) -> Process:
        """The one that has the number ``pid`` now."""
        return cls(pid, processes.start(pid))

    def lives(self) -> bool:
        """Whether it runs; a zombie does not."""
        return processes.lives(self.pid) and processes.start(self.pid) == self.start

    def signal(self, *, hard: bool) -> None:
        """SIGTERM, or SIGKILL where ``hard``."""
        send(self.pid, lambda pid: processes.start(pid) == self.start, hard=hard)


def bearing(variable: str, belongs: Callable[[str], bool]) -> list[int]:
    """Live processes but this one that were started with a value of ``variable`` that ``belongs``.

    Of those whose environment may be read.
    """
    own = os.getpid()
    return [
        pid
        for pid in processes.all_processes()
        if (value := processes.variable(processes.environment(pid), variable)) is not None
        and belongs(value)
        and pid != own
        and processes.lives(pid)
    ]


def members(roots: Mapping[int, str], variable: str = MARK) -> list[int]:
    """All live processes but this one below ``roots`` (their pids and marks), roots included.

    Below means: a descendant, or in a root's session, or started with its mark as ``variable`` in the environment.
    """
    own = os.getpid()
    found = {pid for pid in processes.all_processes() if _session(pid) in roots}
    found |= {*bearing(variable, {*roots.values()}.__contains__)}
    for pid in (*found, *({own} & roots.keys())):
        found.update(processes.descendants(pid))
    return [pid for pid in found if pid != own and processes.lives(pid)]


def end(find: Callable[[], Iterable[int]], grace_s: float = GRACE_S) -> None:
    """End all that ``find`` finds, now and later: SIGTERM, ``grace_s`` seconds, then SIGKILL until none is left."""
    known: set[Process] = set()

    def left() -> list[Process]:
        known.update(map(Process.of, find()))
        return [process for process in known if process.lives()]

    found = left()
    for process in found:
        process.signal(hard=False)
    _wait(found, grace_s)
    give_up = time.monotonic() + _GIVE_UP_S
    while (found := left()) and time.monotonic() < give_up:
        for process in found:
            process.signal(hard=True)
        _wait(found, 0.2)


def send(pid: int, is_meant: Callable[[int], bool], *, hard: bool) -> None:
    """SIGTERM or SIGKILL, unless the process has ended and its number is another's now, who is not meant."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            # Not pidfd_open(2): /proc may be that of another PID namespace, where the number is somebody else's.
            handle = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if is_meant(pid):
                    signal.pidfd_send_signal(handle, signal.SIGKILL if hard else signal.SIGTERM)
            finally:
                os.close(handle)
        elif is_meant(pid):
            if sys.platform == "win32":
                os.kill(pid, signal.SIGTERM)  # which ends it at once
            else:
                os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)


def _session(pid: int) -> int:
    """The session of ``pid``; a worker starts one of its own."""
    if sys.platform == "win32":
        return 0
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _wait(found: list[Process], timeout_s: float) -> None:
    """Until none lives; waits for no exit status, which belongs to the parents."""
    deadline = time.monotonic() + timeout_s
    while any(process.lives() for process in found) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
