"""Samples of threads from /proc without the extension: what csrc/linux_sampler.c does, only slower; Linux only."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from .python_sampler import PythonSampler, SeenProcess, SeenThread
from .sampling import TimesSource

assert sys.platform == "linux", "elsewhere there is no /proc of this kind"

_PROC = Path("/proc")


def times_source() -> TimesSource:
    """``schedstat`` where this kernel keeps it (without CONFIG_SCHED_INFO it is absent or zero), else ``stat``."""
    return "schedstat" if _read(_PROC / "self" / "schedstat").strip(b"0 \n") else "stat"


class ProcSampler(PythonSampler):
    """Linux: /proc/PID/task/TID/{schedstat,stat,status}, opened anew each time."""

    def __init__(self, pids: Iterable[int], children: bool, source: TimesSource) -> None:
        self.source = source
        self._tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
        super().__init__(pids, children)

    def parents(self) -> dict[int, int]:
        """The parent of every process that there is."""
        found = {}
        for name in os.listdir(_PROC):  # noqa: PTH208 - names, not paths
            if name.isdigit() and (fields := _stat_fields(_PROC / name)) is not None:
                found[int(name)] = int(fields[_PARENT])
        return found

    def read_threads(self, process: SeenProcess, detail: bool) -> dict[int, SeenThread]:
        """The threads of a process now, by number; empty when it has ended."""
        tasks = _PROC / str(process.pid) / "task"
        try:
            tids = [int(name) for name in os.listdir(tasks)]  # noqa: PTH208 - names, not paths
        except (FileNotFoundError, ProcessLookupError):
            return {}
        found = {}
        for tid in tids:
            try:
                found[tid] = self._thread(tasks / str(tid), process.threads.get(tid), detail)
            except (FileNotFoundError, ProcessLookupError):  # ended in between
                continue
            except OSError:
                self._unread += 1
                if tid in process.threads:
                    found[tid] = process.threads[tid]
        return found

    def read_clock(self, pid: int) -> int:
        """CPU time of a process, its ended threads included; 0: not told."""
        try:
            # What clock_getcpuclockid(3) makes of the number: CPUCLOCK_SCHED of include/uapi/linux/time.h's sort.
            return time.clock_gettime_ns((~pid << 3) | 2)
        except OSError:
            return 0

    def read_process(self, process: SeenProcess) -> None:
        """Its memory and what it has waited for; a main thread that has ended alone has no memory."""
        for tid in process.threads:
            directory = _PROC / str(process.pid) / "task" / str(tid)
            fields, status = _stat_fields(directory), _read(directory / "status")
            if fields is not None:
                process.waited_for_ns = (int(fields[_WAITED]) + int(fields[_WAITED + 1])) * self._tick_ns
            now_kib = _status_number(status, b"VmRSS:")
            if now_kib is not None:
                process.memory_bytes = now_kib * 1024
                process.memory_peak_bytes = (_status_number(status, b"VmHWM:") or now_kib) * 1024
                return
        process.memory_bytes = 0

    def _thread(self, directory: Path, known: SeenThread | None, detail: bool) -> SeenThread:
        """Raises OSError where it cannot be read."""
        if detail or known is None or self.source == "stat":
            fields = _stat_fields(directory)
            if fields is None:
                raise FileNotFoundError(directory)
            started = int(fields[_STARTED])
            if known is None or known.started_ticks != started:
                known = SeenThread(started)
            self._take_stat(known, fields)
        if self.source == "schedstat":
            times = [int(number) for number in (directory / "schedstat").read_bytes().split()]
            if times[0] < known.cpu_ns:  # its number has been given to another
                return self._thread(directory, None, detail)
            known.cpu_ns, known.wait_ns, known.slices = times
        if detail:
            status = (directory / "status").read_bytes()
            known.voluntary_switches = _status_number(status, b"voluntary_ctxt_switches:") or 0
            known.involuntary_switches = _status_number(status, b"nonvoluntary_ctxt_switches:") or 0
        return known

    def _take_stat(self, thread: SeenThread, fields: list[bytes]) -> None:
        thread.state = fields[0]
        thread.last_cpu = int(fields[_LAST_CPU])
        thread.minor_faults, thread.major_faults = int(fields[_MINOR]), int(fields[_MAJOR])
        if self.source == "stat":
            thread.cpu_ns = (int(fields[_USER]) + int(fields[_USER + 1])) * self._tick_ns


# Fields of stat behind the name, see proc_pid_stat(5).
_PARENT, _MINOR, _MAJOR, _USER, _WAITED, _STARTED, _LAST_CPU = 1, 7, 9, 11, 13, 19, 36


def _stat_fields(directory: Path) -> list[bytes] | None:
    text = _read(directory / "stat")
    return text[text.rindex(b")") + 2 :].split() if b")" in text else None  # the name before it may hold anything


def _read(path: Path) -> bytes:
    """Empty where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _status_number(status: bytes, name: bytes) -> int | None:
    _, found, after = status.partition(b"\n" + name)
    return int(after.split(None, 1)[0]) if found else None
