"""Which CPUs are kept busy, by whom, and how to say so; reads counters, never stops, binds or waits for anybody.

The counters are those of /proc/stat and /proc/PID/stat (proc(5)), elsewhere psutil's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ..cpuset import CpuSet
from ..errors import MachineError
from .cpusets import parsed
from .processes import printable, user_name
from .sysfs import numbered, read_text

# Counters advance by ticks of 1/100 s (USER_HZ, the same on all architectures but alpha and ia64): in less time than
# this a share would be wrong by more than a tenth.
_SHORTEST_S = 0.1
_TICKS_PER_S = 100

_CHUNK = 65536  # of /proc/stat: the lines of 1000 CPUs
_MOST_NAMED = 3  # processes in one sentence

# Of proc(5): the number, user, nice and system, past idle and iowait, then irq, softirq and steal.
_CPU_LINE = re.compile(rb"^cpu(\d{1,5}) (\d+) (\d+) (\d+) \d+ \d+ (\d+) (\d+) (\d+)", re.MULTILINE)
# Fields 3 (state), 20 (num_threads) and 39 (processor); the name before them may hold blanks and parentheses.
_STAT = re.compile(r".*\) (\S)(?: \S+){16} (\d+)(?: \S+){18} (\d{1,5})\b", re.DOTALL)

_Times = Mapping[int, tuple[float, float]]
"""Ticks by CPU: busy, and taken by the hypervisor."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy each CPU was between two looks; nothing is known of a CPU that is not named, and before a second look.

    ``busy`` counts all work, ours too, and no waiting for disks; ``steal`` is what a hypervisor took: both as shares of
    the time, 0 to 1, by CPU.
    """

    interval_s: float = 0.0
    busy: Mapping[int, float] = field(default_factory=dict)
    steal: Mapping[int, float] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether anything is known at all: false until the second look, and where the system tells nothing."""
        return bool(self.busy)

    def above(self, share: float) -> CpuSet:
        """The CPUs that are known to be busier than ``share``."""
        return CpuSet(cpu for cpu, busy in self.busy.items() if busy > share)


@dataclass(frozen=True, slots=True)
class PinnedProcess:
    """A process that may run on part of the CPUs only, and was running on some that were asked about."""

    pid: int
    user: str
    command: str
    mask: CpuSet
    """Where its threads that were running may run."""
    cpus: CpuSet
    """Where they were running."""

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command}, user {self.user}), pinned to {self.mask}"


class BusyWatch:
    """Looks at the CPUs from time to time; callable from one thread at a time.

    Parameters
    ----------
    sysroot
        A recorded tree with ``proc/``; ``None`` is this machine.
    """

    def __init__(self, sysroot: str | os.PathLike[str] | None = None) -> None:
        self._live = sysroot is None
        self._root = "/" if sysroot is None else os.fspath(sysroot)
        self._looked_s: float | None = None
        self._times: _Times = {}
        self._load = Load()

    def look(self, now: float) -> Load:
        """How busy the CPUs were since the previous look; the previous answer where that is less than 0.1 s ago.

        Parameters
        ----------
        now
            Seconds, by any clock that does not jump, and always the same one (``time.monotonic()``).
        """
        elapsed_s = None if self._looked_s is None else now - self._looked_s
        if elapsed_s is not None and elapsed_s < _SHORTEST_S:
            return self._load
        times = self._read_times()
        if elapsed_s is not None:
            self._load = _load(self._times, times, elapsed_s)
        self._looked_s, self._times = now, times
        return self._load

    def pinned(self, cpus_busy: CpuSet | None = None) -> tuple[PinnedProcess, ...]:
        """The processes that explain why these CPUs are busy: those that run there now and may not run everywhere.

        ``None``: on any CPU.

        Reads /proc of every thread there is, tens of ms on a full node: only for when there is something to explain.
        Not this process itself; none on other platforms than Linux, and none of those that ``hidepid`` hides.
        """
        if self._live and sys.platform != "linux":
            return ()
        online = CpuSet(self._times or self._read_times())
        cpus_busy = online if cpus_busy is None else cpus_busy
        try:
            others = [pid for pid in numbered(self._root, "proc", "") if not (self._live and pid == os.getpid())]
            found = [_pinned_process(self._root, pid, cpus_busy, online) for pid in sorted(others)]
        except MachineError:  # no descriptor is left to look with
            return ()
        return tuple(process for process in found if process)

    def explain(self, cpu: int, pinned: Sequence[PinnedProcess] | None = None) -> str:
        """One sentence: how busy ``cpu`` was when last looked at, and with whose work, where nothing of ours runs.

        ``pinned``: what :meth:`pinned` has found; ``None``: it is asked.
        """
        if cpu not in self._load.busy:
            return (
                f"how busy CPU {cpu} is, is not known: it was offline, or seen only once, or /proc/stat cannot be read"
            )
        pinned = self.pinned(CpuSet([cpu])) if pinned is None else pinned
        processes = [process for process in pinned if cpu in process.cpus]
        named = [str(process) for process in processes[:_MOST_NAMED]]
        if len(processes) > _MOST_NAMED:
            named.append(f"and {len(processes) - _MOST_NAMED} more")
        steal = self._load.steal[cpu]
        taken = f", the hypervisor takes {_percent(steal)}" if steal >= 0.01 else ""
        whose = "; ".join(named) or "no process that is pinned to it can be seen running there"
        return f"CPU {cpu} is {_percent(self._load.busy[cpu])} busy with the work of others{taken}: {whose}"

    def _read_times(self) -> _Times:
        if self._live and sys.platform != "linux":
            return psutil_times()
        return proc_times(self._root)


def running() -> int:
    """How many threads of the whole machine run or are ready to, this one among them; 2 where the system tells not."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:  # noqa: PTH123 (on the way to every first lease)
            return int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 2


def proc_times(root: str) -> _Times:
    """From ``proc/stat`` below ``root``; empty where it cannot be read."""
    times = {}
    for cpu, user, nice, system, irq, softirq, steal in _CPU_LINE.findall(_cpu_lines(f"{root}/proc/stat")):
        times[int(cpu)] = (int(user) + int(nice) + int(system) + int(irq) + int(softirq), int(steal))
    return times


def psutil_times() -> _Times:
    """The same through psutil; empty where it does not tell of all CPUs."""
    import psutil

    try:
        found = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError, psutil.Error):
        return {}
    if len(found) != os.cpu_count():  # Windows tells of the processor group of the caller alone
        return {}
    if sys.platform == "win32":  # no nice there, and system has the time of interrupts in it
        busy_s = [one.user + one.system for one in found]
    else:
        busy_s = [one.user + one.nice + one.system for one in found]
    return {cpu: (_TICKS_PER_S * seconds, 0.0) for cpu, seconds in enumerate(busy_s)}


def _cpu_lines(path: str) -> bytes:
    """The beginning of /proc/stat, with the lines of all CPUs; empty where it cannot be read.

    The line of interrupts after them is as long again on a big machine, and is left unread.
    """
    parts: list[bytes] = []
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe in its place is an empty file
        try:
            while part := os.read(descriptor, _CHUNK):
                parts.append(part)
                if b"\nintr" in part:
                    break
        finally:
            os.close(descriptor)
    return b"".join(parts)


def _load(before: _Times, after: _Times, elapsed_s: float) -> Load:
    """Of the CPUs that were there both times."""
    ticks = _TICKS_PER_S * elapsed_s
    busy, steal = {}, {}
    for cpu, (busy_after, steal_after) in after.items():
        if cpu in before:
            busy_before, steal_before = before[cpu]
            busy[cpu] = min(1.0, max(0.0, busy_after - busy_before) / ticks)
            steal[cpu] = min(1.0, max(0.0, steal_after - steal_before) / ticks)
    return Load(elapsed_s, busy, steal)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _pinned_process(root: str, pid: int, cpus: CpuSet, online: CpuSet) -> PinnedProcess | None:
    """The process, if threads of it run on ``cpus`` and may not run on all that are ``online``."""
    masks = runs_on = CpuSet()
    for directory, cpu in _running(root, pid):
        if cpu in cpus:
            mask = _mask(_status(root, directory))
            if mask and not online <= mask:
                masks, runs_on = masks | mask, runs_on | CpuSet([cpu])
    if not runs_on:
        return None
    told = _status(root, f"proc/{pid}")
    uid = told.get("Uid", "").partition("\t")[0]
    user = user_name(int(uid)) if uid.isdecimal() else "?"
    command = told.get("Name", "?").encode("latin-1").decode("utf-8", "replace")
    return PinnedProcess(pid, user, printable(command), masks, runs_on)


def _running(root: str, pid: int) -> Iterator[tuple[str, int]]:
    """Directory and CPU of each thread that runs, or is ready to."""
    process = _stat(root, f"proc/{pid}")
    if process is None:
        return
    threads = {f"proc/{pid}": process}
    if process[2] != "1":
        directories = [f"proc/{pid}/task/{tid}" for tid in numbered(root, f"proc/{pid}/task", "")]
        threads = {directory: stat for directory in directories if (stat := _stat(root, directory))}
    for directory, stat in threads.items():
        if stat[1] == "R":
            yield directory, int(stat[3])


def _stat(root: str, directory: str) -> re.Match[str] | None:
    return _STAT.match(read_text(root, f"{directory}/stat") or "")


def _status(root: str, directory: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):[ \t]*(.*)$", read_text(root, f"{directory}/status") or "", re.MULTILINE))


def _mask(status: Mapping[str, str]) -> CpuSet | None:
    return parsed(CpuSet.parse, status.get("Cpus_allowed_list", ""))
