"""Looks at processes and their descendants: which threads there are, what they used, where they ran; changes nothing.

Linux: ``/proc/PID/task/TID/{schedstat,stat,status}``; elsewhere psutil, which knows neither run-queue delay nor CPUs.
CPU time of a thread that is running now lags by up to a scheduler tick (1 to 10 ms).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..cpuset import CpuSet
from ..errors import BindingError, MachineError, ProcessGoneError
from ..host import get_host
from .statistics import ThreadUsage

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenThread:
    """One thread at one moment. ``started``: tells it from a later thread with the same number."""

    usage: ThreadUsage
    started: float
    cpus_allowed: CpuSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A process and its descendants at one moment; no threads when it has ended."""

    pid: int
    at_ns: int
    """Of the monotonic clock."""
    started: float | None
    """Tells the process from a later one with the same number; ``None`` when it has ended."""
    threads: tuple[SeenThread, ...]
    cpu_ns: int
    """CPU time of its living processes and of their children that have ended and been waited for, to a clock tick."""
    memory_bytes: int
    memory_peak_bytes: int
    """The sum of every living process's own peak: an upper bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A worker to be watched: what it was given, and what was seen of it before and now."""

    worker_id: int
    threads_asked: int
    leased: CpuSet
    bound_to: CpuSet | None
    """The mask it was given; ``None``: none."""
    before: Tree
    now: Tree
    memory_bytes: int = 0
    """Granted; 0: no limit."""

    @property
    def ended(self) -> bool:
        """Whether the process is no more; another may have its number by now."""
        return self.now.started is None or self.now.started != self.before.started


def look(pids: Iterable[int], source: str | None = None) -> dict[int, Tree]:
    """See every process of ``pids`` with all its descendants, once; the trees by the pid of their root.

    ``source``: ``schedstat`` or ``psutil``; without one, the better of those that work here. A process that has ended,
    or may not be seen, is a tree without threads.
    """
    wanted = list(dict.fromkeys(pids))
    if (source or best_source()) == "schedstat":
        return _look_through_proc(wanted)
    return {pid: _tree_through_psutil(pid) for pid in wanted}


def descendants(pid: int) -> list[int]:
    """``pid`` and every process below it, parents first; empty when it has ended."""
    import psutil

    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return []


@cache
def best_source() -> str:
    """``schedstat`` where this kernel fills it (without CONFIG_SCHED_INFO it is absent or zero), else ``psutil``."""
    if sys.platform != "linux":
        return "psutil"
    try:
        return "schedstat" if int((_PROC / "self" / "schedstat").read_text().split()[0]) > 0 else "psutil"
    except (OSError, ValueError, IndexError):
        return "psutil"


# --- Linux ---


@dataclass(frozen=True, slots=True)
class _Stat:
    """Of /proc/PID/stat or /proc/PID/task/TID/stat, see proc_pid_stat(5). Times in clock ticks."""

    parent: int
    own: int
    waited_for: int
    started: int
    last_cpu: int
    ended: bool
    """Waits to be waited for; a main thread alone may have ended before the others."""


def _look_through_proc(pids: list[int]) -> dict[int, Tree]:
    if sys.platform != "linux":
        raise MachineError(f"there is no /proc on {sys.platform}; leave the source out, or ask for psutil")
    stats = {pid: stat for pid in _all_pids() if (stat := _stat(_PROC / str(pid))) is not None}
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    trees = {}
    for root in pids:
        at_ns = time.monotonic_ns()
        members = [pid for pid in _below(root, children) if pid in stats]
        living = [pid for pid in members if not stats[pid].ended]
        memory = [_memory(pid) for pid in living]
        trees[root] = Tree(
            pid=root,
            at_ns=at_ns,
            started=stats[root].started if root in living else None,
            threads=tuple(thread for pid in living for thread in _threads(pid)),
            cpu_ns=sum(stats[pid].own + stats[pid].waited_for for pid in members) * tick_ns,
            memory_bytes=sum(now for now, _ in memory),
            memory_peak_bytes=sum(peak for _, peak in memory),
        )
    return trees


def _all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def _below(root: int, children: dict[int, list[int]]) -> list[int]:
    found = [root]
    for pid in found:  # grows while it is read
        found.extend(children.get(pid, ()))
    return found


def _stat(directory: Path) -> _Stat | None:
    try:
        text = (directory / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    ticks = [int(fields[index]) for index in (11, 12, 13, 14)]
    return _Stat(
        parent=int(fields[1]),
        own=ticks[0] + ticks[1],
        waited_for=ticks[2] + ticks[3],
        started=int(fields[19]),
        last_cpu=int(fields[36]),
        ended=fields[0] in "ZX" and int(fields[17]) <= 1,
    )


def _threads(pid: int) -> Iterator[SeenThread]:
    tasks = _PROC / str(pid) / "task"
    try:
        tids = [int(entry.name) for entry in tasks.iterdir()]
    except OSError:
        return
    for tid in tids:
        directory = tasks / str(tid)
        stat = _stat(directory)
        try:
            cpu_ns, wait_ns = (directory / "schedstat").read_text().split()[:2]
            status = (directory / "status").read_text(errors="replace")
        except OSError:  # ended in between
            continue
        if stat is not None:
            yield SeenThread(
                usage=ThreadUsage(pid=pid, tid=tid, cpu_ns=int(cpu_ns), wait_ns=int(wait_ns), last_cpu=stat.last_cpu),
                started=stat.started,
                cpus_allowed=CpuSet.parse(_field(status, "Cpus_allowed_list:")),
            )


def _memory(pid: int) -> tuple[int, int]:
    """Resident memory now and at its peak, bytes; status counts in KiB."""
    try:
        status = (_PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return 0, 0
    now, peak = (int(_field(status, name).split()[0] or 0) * 1024 for name in ("VmRSS:", "VmHWM:"))
    return now, peak


def _field(status: str, name: str) -> str:
    at = status.find(f"\n{name}")
    return status[at + len(name) + 1 : status.index("\n", at + 1)].strip() if at >= 0 else "0"


# --- everywhere ---


def _tree_through_psutil(root: int) -> Tree:
    import psutil

    threads: list[SeenThread] = []
    at_ns = time.monotonic_ns()
    started, cpu_s, memory_bytes, peak_bytes = None, 0.0, 0, 0
    for pid in descendants(root):
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times, ended = process.cpu_times(), process.status() == psutil.STATUS_ZOMBIE
                memory, born = process.memory_info(), process.create_time()
            cpu_s += sum(times[:4])  # user, system, and of children waited for; no more than the first two on Windows
            if ended:
                continue
            if pid == root:
                started = born
            memory_bytes += memory.rss
            peak_bytes += getattr(memory, "peak_wset", memory.rss)  # only Windows keeps the peak
            threads += _threads_through_host(process, born)
        except (psutil.Error, BindingError):
            continue
    return Tree(
        pid=root,
        at_ns=at_ns,
        started=started,
        threads=tuple(threads),
        cpu_ns=int(cpu_s * 1e9),
        memory_bytes=memory_bytes,
        memory_peak_bytes=peak_bytes,
    )


def _threads_through_host(process: Any, born: float) -> Iterator[SeenThread]:
    host = get_host()
    for tid, cpu_ns in host.thread_times(process.pid).items():
        try:
            allowed = host.get_affinity(tid) if host.capabilities.bind_thread else CpuSet()
        except ProcessGoneError:  # ended in between
            continue
        yield SeenThread(
            usage=ThreadUsage(pid=process.pid, tid=tid, cpu_ns=cpu_ns, wait_ns=None, last_cpu=None),
            started=born,
            cpus_allowed=allowed,
        )
