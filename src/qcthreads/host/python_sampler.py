"""The books that samplers in plain Python keep; changes nothing it looks at."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .sampling import DETAIL, PROCESS, THREAD, PythonRecorder, Recorder, Rows, Sample, TimesSource

_NOT_TOLD = -1


@dataclass(slots=True)
class SeenThread:
    """One thread, as last seen; fields as in THREAD and DETAIL."""

    started_ticks: int
    cpu_ns: int = 0
    wait_ns: int = _NOT_TOLD
    slices: int = _NOT_TOLD
    minor_faults: int = _NOT_TOLD
    major_faults: int = _NOT_TOLD
    voluntary_switches: int = _NOT_TOLD
    involuntary_switches: int = _NOT_TOLD
    last_cpu: int = _NOT_TOLD
    state: bytes = b"?"


@dataclass(slots=True)
class SeenProcess:
    """One process, as last seen; fields as in PROCESS."""

    pid: int
    root: int
    ended: bool = False
    started_ticks: int = 0
    cpu_ns: int = 0
    waited_for_ns: int = 0
    memory_bytes: int = 0
    memory_peak_bytes: int = 0
    ended_threads: int = 0
    ended_cpu_ns: int = 0
    ended_wait_ns: int = 0
    ended_slices: int = 0
    gone_processes: int = 0
    gone_threads: int = 0
    gone_cpu_ns: int = 0
    gone_wait_ns: int = 0
    gone_slices: int = 0
    threads: dict[int, SeenThread] = field(default_factory=dict)


class PythonSampler(ABC):
    """Keeps the books of processes, threads and what has ended; subclasses read."""

    source: TimesSource

    def __init__(self, pids: Iterable[int], children: bool) -> None:
        self._children = children
        self._known = {pid: SeenProcess(pid, pid) for pid in pids}
        self._unread = 0
        self._lock = threading.Lock()
        self.sample(detail=False)

    def sample(self, detail: bool) -> Sample:
        """Look at every thread once."""
        with self._lock:
            if self._children:
                self._add_descendants()
            return self._sample(None, detail)

    def times(self) -> Rows:
        """The threads of a sample without details."""
        return self.sample(False).threads

    def look(self, root: int) -> Sample:
        """Look, with details, at one of the processes that were given and those descendants that samples have found.

        To look for others would mean to read all of /proc.
        """
        with self._lock:
            return self._sample(root, True)

    def attach(self, pid: int) -> None:
        """Watch one more process and its descendants."""
        with self._lock:
            self._known.setdefault(pid, SeenProcess(pid, pid))

    def detach(self, pid: int) -> None:
        """Forget a process that was given, with its descendants."""
        with self._lock:
            self._known = {one.pid: one for one in self._known.values() if one.root != pid}

    def processes(self) -> Rows:
        """The processes as of the last sample, but for their clocks, which are read now."""
        with self._lock:
            return self._rows(list(self._known.values()))

    def unread(self) -> int:
        """How often a thread that was there could not be read."""
        return self._unread

    def recorder(self, room_bytes: int) -> Recorder:
        """One that takes this sampler's samples at fixed times."""
        return PythonRecorder(self, room_bytes)

    def close(self) -> None:  # noqa: B027 - not abstract: nothing is kept open
        """Nothing is kept open."""

    @abstractmethod
    def parents(self) -> dict[int, int]:
        """The parent of every process that there is."""

    @abstractmethod
    def read_threads(self, process: SeenProcess, detail: bool) -> dict[int, SeenThread]:
        """The threads of a process now, by number; empty when it has ended."""

    @abstractmethod
    def read_clock(self, pid: int) -> int:
        """CPU time of a process, its ended threads included; 0: not told."""

    @abstractmethod
    def read_process(self, process: SeenProcess) -> None:
        """Its memory and what it has waited for."""

    def _sample(self, root: int | None, detail: bool) -> Sample:
        """Of one root and its descendants, or of all."""
        at_ns = time.monotonic_ns()
        for process in [one for one in self._known.values() if not one.ended and root in (None, one.root)]:
            self._look_at(process, detail)
        seen = [one for one in self._known.values() if root in (None, one.root)]
        threads = [
            (process.pid, tid, thread.cpu_ns, thread.wait_ns, thread.slices)
            for process in seen
            for tid, thread in process.threads.items()
        ]
        if not detail:
            return Sample(at_ns, np.array(threads, THREAD))
        details = [
            tuple(getattr(thread, name) for name in _DETAIL_NAMES)
            for process in seen
            for thread in process.threads.values()
        ]
        rows = np.zeros(len(details), DETAIL)
        for name, column in zip(_DETAIL_NAMES, zip(*details, strict=True), strict=False):
            rows[name] = column
        return Sample(at_ns, np.array(threads, THREAD), rows, self._rows(seen))

    def _rows(self, processes: list[SeenProcess]) -> Rows:
        for process in processes:
            if not process.ended:
                process.cpu_ns = max(process.cpu_ns, self.read_clock(process.pid))
        columns = [name for name in PROCESS.names or () if name != "threads"]
        rows = np.zeros(len(processes), PROCESS)
        for at, process in enumerate(processes):
            for name in columns:
                rows[name][at] = getattr(process, name)
            rows["threads"][at] = len(process.threads)
        return rows

    def _add_descendants(self) -> None:
        parents = self.parents()
        again = True
        while again:
            again = False
            for pid, parent in parents.items():
                above = self._known.get(parent)
                if pid not in self._known and above is not None and not above.ended:
                    self._known[pid] = SeenProcess(pid, above.root)
                    again = True

    def _look_at(self, process: SeenProcess, detail: bool) -> None:
        now = self.read_threads(process, detail)
        for tid, before in process.threads.items():
            after = now.get(tid)
            if after is None or after.started_ticks != before.started_ticks:
                process.ended_threads += 1
                process.ended_cpu_ns += before.cpu_ns
                process.ended_wait_ns += max(before.wait_ns, 0)
                process.ended_slices += max(before.slices, 0)
        process.threads = now
        if not now:
            self._end(process)
            return
        process.started_ticks = process.started_ticks or next(iter(now.values())).started_ticks
        if detail:
            self.read_process(process)

    def _end(self, process: SeenProcess) -> None:
        process.ended, process.memory_bytes = True, 0
        process.cpu_ns = max(process.cpu_ns, process.ended_cpu_ns)
        if process.root == process.pid:
            return
        root = self._known[process.root]
        root.gone_processes += 1
        root.gone_threads += process.ended_threads
        root.gone_cpu_ns += process.cpu_ns
        root.gone_wait_ns += process.ended_wait_ns
        root.gone_slices += process.ended_slices
        del self._known[process.pid]


_DETAIL_NAMES = [name for name in DETAIL.names or () if name != "padding"]
