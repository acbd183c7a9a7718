"""The rows of a sample of threads, and what takes samples at fixed times in plain Python; reads nothing itself."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

TimesSource = Literal["schedstat", "stat", "psutil"]
"""Where the times of threads come from: nanoseconds and run-queue delay; clock ticks; what psutil knows elsewhere."""

Rows = NDArray[np.void]

_INT, _LONG = np.int32, np.int64

# As csrc/qct.h lays out struct qct_thread, qct_thread_detail and qct_process. What is not told is -1, a state "?".
THREAD = np.dtype([("pid", _INT), ("tid", _INT), ("cpu_ns", _LONG), ("wait_ns", _LONG), ("slices", _LONG)])
DETAIL = np.dtype(
    [
        ("started_ticks", _LONG),
        *((name, _LONG) for name in ("minor_faults", "major_faults", "voluntary_switches", "involuntary_switches")),
        ("last_cpu", _INT),
        ("state", "S1"),
        ("padding", "V3"),
    ]
)
PROCESS = np.dtype(
    [
        *((name, _INT) for name in ("pid", "root", "threads", "ended")),
        *((name, _LONG) for name in ("started_ticks", "cpu_ns", "waited_for_ns")),
        *((name, _LONG) for name in ("memory_bytes", "memory_peak_bytes")),
        *((f"ended_{name}", _LONG) for name in ("threads", "cpu_ns", "wait_ns", "slices")),
        *((f"gone_{name}", _LONG) for name in ("processes", "threads", "cpu_ns", "wait_ns", "slices")),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What was seen at one time. ``details`` (row by row those of ``threads``) and ``processes``: where asked for."""

    at_ns: int
    """Of the monotonic clock."""
    threads: Rows
    details: Rows | None = None
    processes: Rows | None = None

    @property
    def size_bytes(self) -> int:
        """Memory of its rows."""
        return sum(rows.nbytes for rows in (self.threads, self.details, self.processes) if rows is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderCounts:
    """What a recorder did."""

    samples: int
    detailed: int
    overruns: int
    """Deadlines that had passed before a sample could be taken, and were left out."""
    dropped: int
    """Samples forgotten because there was no room for more."""
    own_cpu_ns: int
    """CPU time that the recording has cost."""


class Sampler(Protocol):
    """Looks at the threads of processes again and again; may be used by several threads."""

    @property
    def source(self) -> TimesSource:
        """Where the times come from."""

    def sample(self, detail: bool) -> Sample:
        """Look at every thread once."""

    def times(self) -> Rows:
        """The threads of a sample without details, at no cost but theirs."""

    def look(self, root: int) -> Sample:
        """Look, with details, at one of the processes that were given and its descendants alone."""

    def attach(self, pid: int) -> None:
        """Watch one more process and its descendants."""

    def detach(self, pid: int) -> None:
        """Forget a process that was given, with its descendants."""

    def processes(self) -> Rows:
        """The processes as of the last sample, but for their clocks, which are read now."""

    def unread(self) -> int:
        """How often a thread that was there could not be read."""

    def recorder(self, room_bytes: int) -> Recorder:
        """One that takes this sampler's samples at fixed times."""

    def close(self) -> None:
        """Let go of what it keeps open."""


class Recorder(Protocol):
    """Takes samples at fixed times and keeps the latest; one thread runs it, any may do the rest."""

    def run(self, fast_ns: int, detail_ns: int) -> None:
        """Sample at these intervals, at once and a last time with details, until stopped."""

    def stop(self) -> None:
        """Let :meth:`run` return."""

    def take(self) -> Sample | None:
        """The oldest sample, which is forgotten; ``None``: there is none."""

    def counts(self) -> RecorderCounts:
        """What it did so far."""


class PythonRecorder:
    """A recorder of any sampler; csrc/linux_recorder.c does the same without the interpreter."""

    def __init__(self, sampler: Sampler, room_bytes: int) -> None:
        self._sampler, self._room_bytes = sampler, room_bytes
        self._kept: deque[Sample] = deque()
        self._used_bytes = 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._counts = RecorderCounts(samples=0, detailed=0, overruns=0, dropped=0, own_cpu_ns=0)

    def run(self, fast_ns: int, detail_ns: int) -> None:
        """Sample at these intervals, at once and a last time with details, until stopped."""
        began_ns = time.monotonic_ns()
        own_ns = _thread_ns()
        fast, detail = _Deadline(began_ns, fast_ns), _Deadline(began_ns, detail_ns)
        running = True
        while running:
            wait_ns = min(fast.at_ns, detail.at_ns) - time.monotonic_ns()
            running = not self._stop.wait(max(wait_ns, 0) / 1e9)
            now_ns = time.monotonic_ns()
            detailed = not running or detail.at_ns <= now_ns
            sample = self._sampler.sample(detailed)
            missed = fast.advance(now_ns) + detail.advance(now_ns)
            with self._lock:
                dropped = self._keep(sample)
                was = self._counts
                self._counts = RecorderCounts(
                    samples=was.samples + 1,
                    detailed=was.detailed + detailed,
                    overruns=was.overruns + missed,
                    dropped=was.dropped + dropped,
                    own_cpu_ns=_thread_ns() - own_ns,
                )

    def stop(self) -> None:
        """Let :meth:`run` return."""
        self._stop.set()

    def take(self) -> Sample | None:
        """The oldest sample, which is forgotten; ``None``: there is none."""
        with self._lock:
            if not self._kept:
                return None
            self._used_bytes -= self._kept[0].size_bytes
            return self._kept.popleft()

    def counts(self) -> RecorderCounts:
        """What it did so far."""
        with self._lock:
            return self._counts

    def _keep(self, sample: Sample) -> int:
        """How many samples had to go."""
        dropped = 0
        self._kept.append(sample)
        self._used_bytes += sample.size_bytes
        while self._used_bytes > self._room_bytes:
            self._used_bytes -= self._kept.popleft().size_bytes
            dropped += 1
        return dropped


class _Deadline:
    """The times at which something is due."""

    def __init__(self, at_ns: int, every_ns: int) -> None:
        self.at_ns, self._every_ns = at_ns, every_ns

    def advance(self, now_ns: int) -> int:
        """To the first that has not passed yet; how many of those before it were left out."""
        if now_ns < self.at_ns:
            return 0
        missed = (now_ns - self.at_ns) // self._every_ns
        self.at_ns += (missed + 1) * self._every_ns
        return missed


def _thread_ns() -> int:
    """CPU time of the calling thread, where the platform tells; macOS before 10.12 does not."""
    return time.thread_time_ns()


def require_pids(pids: Iterable[int]) -> list[int]:
    """``pids``, each once; raises InputError where there is none, or what cannot be one."""
    wanted = list(dict.fromkeys(pids))
    if not wanted or any(not isinstance(pid, int) or pid < 1 for pid in wanted):
        raise InputError(f"cannot sample processes {wanted}: give the numbers of one or more, each at least 1")
    return wanted
