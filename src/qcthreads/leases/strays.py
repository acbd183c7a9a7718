"""Processes that outlive the lease they were started under: found, named, ended or waited for; nobody else is touched.

A process is known by ``QCTHREADS_LEASE`` in its environment, whatever became of its parents, session and process group.
The environment of another user's process cannot be read; one of his is taken for a stray where it started after the
holder of the lease and its mask lies within the lease's PUs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from ..host import processes
from ..host.processes import GRACE_S, user_name
from ..light import dataclass
from .place import LEASE_VARIABLE
from .records import Holding

_EXEC_S = 0.3  # to load a program from a busy disk; then it has no environment at all
_RESCAN_S = 0.1  # to read /proc takes milliseconds, and those who wait ask often


@dataclass(frozen=True, slots=True)
class Stray:
    """A live process under a lease whose holder is gone."""

    pid: int
    uid: int
    name: str
    holding: Holding

    def __str__(self) -> str:
        return (
            f"process {self.pid} ({self.name}, user {user_name(self.uid)}) still runs on CPUs {self.holding.cpus} "
            f"under a lease of process {self.holding.owner.pid}, which has ended"
        )


class Strays:
    """What was found; remembers who was asked to end, and when. For one thread at a time."""

    def __init__(self) -> None:
        self.found: list[Stray] = []
        self._asked: dict[int, float] = {}
        self._nameless: dict[int, float] = {}
        self._scanned_at = 0.0
        self._scanned: frozenset[str] = frozenset()

    def of(self, dead: Sequence[Holding], left: Sequence[Holding] = ()) -> set[str]:
        """Names of those of ``dead`` under which something still runs; it is told to end where its holder wanted that.

        Under those ``left`` something has the locks in its hand: it is looked for as well. Another user's is waited
        for, except by root. What was found before a lock was free says nothing of the time since: the child of a killed
        process bears no mark before it is a program of its own, and has the locks until then.
        """
        names, now = frozenset(holding.name for holding in dead), time.monotonic()
        if names - self._scanned or now - self._scanned_at > _RESCAN_S:
            self.found = list(self.running([*dead, *left], now))
            self._scanned, self._scanned_at = names, now
            found = {stray.pid for stray in self.found}
            self._asked = {pid: asked for pid, asked in self._asked.items() if pid in found}
            for stray in self.found:
                self._end(stray, now)
        return {stray.holding.name for stray in self.found} & names

    def running(self, dead: Iterable[Holding], now: float) -> Iterator[Stray]:
        """Live processes under leases of ``dead`` holders: one that may run on PUs of several, under all of these."""
        boot, own = processes.boot_id(), os.getpid()
        dead = [holding for holding in dead if holding.owner.boot == boot]  # nothing survives a reboot
        nameless_before, self._nameless = self._nameless, {}
        for pid in processes.all_processes() if dead else ():
            environment = processes.environment(pid)
            for holding in dead:
                if environment:
                    known = _bears(environment, holding)
                    # Nobody's record speaks of another's processes, whatever mark he writes into it.
                    known = known and holding.owner.uid in (0, processes.owner(pid))
                else:
                    since = nameless_before.get(pid, now)
                    known = self._may_be(pid, holding, now - since, readable=environment is not None)
                    self._nameless[pid] = since
                if known and pid != own and processes.lives(pid) and _within(pid, holding):
                    yield Stray(pid, processes.owner(pid), processes.name(pid), holding)

    def _may_be(self, pid: int, holding: Holding, nameless_s: float, *, readable: bool) -> bool:
        """One without an environment: another user's, or one in execve(2), which closes files before it has one."""
        if processes.is_kernel_thread(pid) or processes.owner(pid) != holding.owner.uid:
            return False
        return (readable and nameless_s < _EXEC_S) or _looks_like(pid, holding)

    def _end(self, stray: Stray, now: float) -> None:
        ours = sys.platform == "win32" or os.geteuid() in (0, stray.uid)
        if stray.holding.orphans == "end" and ours and not _holder_lives(stray.holding):
            asked = self._asked.setdefault(stray.pid, now)
            _send(stray, hard=now - asked >= GRACE_S)


def live_under(mark: str) -> list[int]:
    """Processes, of those whose environment may be read, that run under the lease or the holder that ``mark`` names."""
    wanted, own = f"{LEASE_VARIABLE}={mark}".encode(), os.getpid()
    return [
        pid
        for pid in processes.all_processes()
        if pid != own and _has(processes.environment(pid), wanted) and processes.lives(pid)
    ]


def is_used(holding: Holding) -> bool:
    """Whether its holder lives, or something that was started under it."""
    return _holder_lives(holding) or bool(live_under(holding.mark))


def _bears(environment: bytes, holding: Holding) -> bool:
    """Whether it has the mark of the lease, or, as workers that go from one to the next, that of its holder."""
    owner = holding.owner.mark
    marks = {owner, holding.mark} if holding.mark.startswith(owner) else {owner}
    return any(b"\0" + f"{LEASE_VARIABLE}={mark}".encode() + b"\0" in b"\0" + environment + b"\0" for mark in marks)


def _holder_lives(holding: Holding) -> bool:
    """Whether there is a process of his number that started before the record: then nothing of his is ended."""
    owner = holding.owner
    if owner.pid_namespace != processes.pid_namespace() or not processes.lives(owner.pid):
        return False
    return processes.started_at(owner.pid) <= owner.since + 1.0


def _within(pid: int, holding: Holding) -> bool:
    mask = processes.mask(pid)
    return mask is None or not mask.isdisjoint(holding.reserved)


def _looks_like(pid: int, holding: Holding) -> bool:
    mask = processes.mask(pid)
    return mask is not None and mask <= holding.reserved and processes.started_at(pid) > holding.owner.since - 1.0


def _has(environment: bytes | None, wanted: bytes) -> bool:
    """``wanted`` as the beginning of a variable, up to its end or a dot."""
    if environment is None:
        return False
    at = (b"\0" + environment).find(b"\0" + wanted)
    return at >= 0 and environment[at + len(wanted) : at + len(wanted) + 1] in (b"", b"\0", b".")


def _send(stray: Stray, *, hard: bool) -> None:
    """SIGTERM or SIGKILL, unless the process has ended and its number is another's now."""
    mark = f"{LEASE_VARIABLE}={stray.holding.owner.mark}".encode()
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            # Not pidfd_open(2): /proc may be that of another PID namespace, where the number is somebody else's.
            handle = os.open(f"/proc/{stray.pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _has(processes.environment(stray.pid), mark):
                    signal.pidfd_send_signal(handle, signal.SIGKILL if hard else signal.SIGTERM)
            finally:
                os.close(handle)
        elif _has(processes.environment(stray.pid), mark):
            if sys.platform == "win32":
                os.kill(stray.pid, signal.SIGTERM)  # which ends it at once
            else:
                os.kill(stray.pid, signal.SIGKILL if hard else signal.SIGTERM)
