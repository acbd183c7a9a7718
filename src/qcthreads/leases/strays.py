"""Processes that outlive the lease they were started under: found, named, ended or waited for; nobody else is touched.

A process is known by ``QCTHREADS_LEASE`` in its environment, whatever became of its parents, session and process group.
The environment of another user's process cannot be read; one of his is taken for a stray where it started after the
holder of the lease and its mask lies within the lease's PUs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from ..host import processes, trees
from ..host.processes import user_name
from ..host.trees import GRACE_S
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
                    known = processes.variable(environment, LEASE_VARIABLE) in _marks(holding)
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
            mark = stray.holding.owner.mark
            trees.send(stray.pid, lambda pid: _bears(pid, mark), hard=now - asked >= GRACE_S)


def live_under(mark: str) -> list[int]:
    """Processes, of those whose environment may be read, that run under the lease or the holder that ``mark`` names."""
    return trees.bearing(LEASE_VARIABLE, lambda value: _is_of(value, mark))


def is_used(holding: Holding) -> bool:
    """Whether its holder lives, or something that was started under it."""
    return _holder_lives(holding) or bool(live_under(holding.mark))


def _marks(holding: Holding) -> set[str]:
    """The mark of the lease, and that of its holder, which workers bear that go from one lease to the next."""
    owner = holding.owner.mark
    return {owner, holding.mark} if holding.mark.startswith(owner) else {owner}


def _bears(pid: int, mark: str) -> bool:
    return _is_of(processes.variable(processes.environment(pid), LEASE_VARIABLE) or "", mark)


def _is_of(value: str, mark: str) -> bool:
    """Whether ``value`` is the mark, or begins with it up to a dot."""
    return value == mark or value.startswith(f"{mark}.")


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
