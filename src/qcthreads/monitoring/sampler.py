"""Samples the threads of processes and their descendants, at once or at fixed times; changes nothing it looks at.

Linux: ``/proc/PID/task/TID/{schedstat,stat,status}``; elsewhere psutil, which knows neither run-queue delay nor CPUs.
The CPU time of a thread that is running while it is read lags by up to ``error_ns``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import cache
from types import TracebackType
from typing import Self

import numpy as np

from ..closing import Closing
from ..errors import InputError, ProcessGoneError
from ..host import get_host
from ..host.sampling import DETAIL, THREAD, RecorderCounts, Rows, Sample, Sampler, TimesSource, require_pids

# Of a sample with details: the fast one's fields, then these.
_DETAIL_FIELDS = (
    *("state", "last_cpu", "minor_faults", "major_faults", "voluntary_switches", "involuntary_switches"),
    "started_ticks",
)
_DETAILED = np.dtype([(name, THREAD[name]) for name in THREAD.names or ()] + [(n, DETAIL[n]) for n in _DETAIL_FIELDS])

# A sample of 128 threads is 4.8 kB on average at 10 Hz, with details at 1 Hz: 23 minutes.
RING_BYTES = 64 << 20


class ThreadSampler(Closing):
    """Samples the threads of processes again and again; may be used by several threads.

    What is needed of each thread stays open between two samples, up to three quarters of the limit on open files; close
    it, or use it as a context manager.

    Parameters
    ----------
    pids
        The processes to look at.
    children
        Whether to look at all their descendants too, also those started later.
    source
        ``schedstat`` (nanoseconds and run-queue delay), ``stat`` (clock ticks) or ``psutil``; ``None``: the best of
        those that work here.

    Raises
    ------
    ProcessGoneError
        When one of ``pids`` is no process.
    """

    def __init__(self, pids: Iterable[int], children: bool = True, *, source: TimesSource | None = None) -> None:
        self._sampler = _open(require_pids(pids), children, source)

    @property
    def source(self) -> TimesSource:
        """Where the times come from."""
        return self._sampler.source

    @property
    def error_ns(self) -> int:
        """By how much the CPU time of a thread that runs while it is read may lag; of one that does not, by nothing."""
        return error_ns(self.source)

    @property
    def unread(self) -> int:
        """How often a thread that was there could not be read, because no descriptor was left; its last times stand."""
        return self._sampler.unread()

    def sample(self, detail: bool = False) -> Rows:
        """Look at every thread once.

        Returns
        -------
        numpy.ndarray
            One row for each thread that lives: ``pid, tid, cpu_ns, wait_ns`` (run-queue delay) and ``slices``, since it
            began. With ``detail`` also ``state, last_cpu, minor_faults, major_faults, voluntary_switches,
            involuntary_switches`` and ``started_ticks``, which tells a thread from a later one of its number. What the
            platform does not tell is -1, a state ``?``.
        """
        if not detail:
            return self._sampler.times()
        seen = self.look()
        assert seen.details is not None
        rows = np.empty(len(seen.threads), _DETAILED)
        for name in THREAD.names or ():
            rows[name] = seen.threads[name]
        for name in _DETAIL_FIELDS:
            rows[name] = seen.details[name]
        return rows

    def look(self, detail: bool = True) -> Sample:
        """Look at every thread once: when, the threads, and with ``detail`` their details and the processes."""
        return self._sampler.sample(detail)

    def processes(self) -> Rows:
        """The processes as of the last sample, one row each; their clocks are read now.

        ``cpu_ns`` is the process's own clock, with its ended threads. ``ended_*`` are the last known times of threads
        that ended; ``gone_*`` those of descendants that ended, in the row of the pid that they descended from.
        ``memory_bytes`` and ``memory_peak_bytes`` are resident memory, of the last sample with details.
        """
        return self._sampler.processes()

    def close(self) -> None:
        """Close what is open; it can sample no more."""
        self._sampler.close()


class BackgroundSampler:
    """Samples at fixed times in a thread of its own, from entering the context until leaving it; tells no switches.

    Deadlines do not drift: a sample that comes late moves none of the later ones. The samples are kept until they are
    taken, and beyond ``ring_bytes`` the oldest are dropped, and counted.

    Parameters
    ----------
    pids, children, source
        As for :class:`ThreadSampler`; here there may be none, and others may be attached later.
    fast_hz
        Samples of times alone in a second.
    detail_hz
        Samples with details in a second.
    ring_bytes
        The memory that samples not taken yet may fill.
    """

    def __init__(
        self,
        pids: Iterable[int],
        children: bool = True,
        *,
        source: TimesSource | None = None,
        fast_hz: float = 10.0,
        detail_hz: float = 1.0,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        if fast_hz <= 0 or detail_hz <= 0 or ring_bytes < 1:
            raise InputError(f"rates of {fast_hz} and {detail_hz} Hz into {ring_bytes} bytes: each must be above 0")
        wanted = list(pids)
        self._sampler = _open(require_pids(wanted) if wanted else [], children, source)
        self._intervals_ns = round(1e9 / fast_hz), round(1e9 / detail_hz)
        self._recorder = self._sampler.recorder(ring_bytes)
        self._thread = threading.Thread(target=self._run, name="qcthreads-sampler", daemon=True)
        self._failure: BaseException | None = None

    @property
    def source(self) -> TimesSource:
        """Where the times come from."""
        return self._sampler.source

    @property
    def counts(self) -> RecorderCounts:
        """What it did so far: samples, overruns, what was dropped, and the CPU time that it cost."""
        return self._recorder.counts()

    def attach(self, pid: int) -> None:
        """Watch one more process from now on; nothing where it is watched already."""
        self._sampler.attach(pid)

    def detach(self, pid: int) -> None:
        """Watch a process and its descendants no longer, and forget what they used."""
        self._sampler.detach(pid)

    def look(self, pid: int) -> Sample:
        """Look now, with details, at one of the processes given or attached, and its descendants; all others wait."""
        return self._sampler.look(pid)

    def take(self) -> Iterator[Sample]:
        """The samples since the last call, oldest first; the last of all has details, and is of the moment it ends."""
        while (sample := self._recorder.take()) is not None:
            yield sample

    def wait(self, timeout_s: float) -> None:
        """Until the sampling has ended, which it does by itself only when it fails; raises what ended it."""
        self._thread.join(timeout_s)
        self._raise_failure()

    def stop(self) -> None:
        """End sampling; what was sampled can still be taken. Raises what ended it before."""
        self._recorder.stop()
        if self._thread.ident is not None:
            self._thread.join()
        self._sampler.close()
        self._raise_failure()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _run(self) -> None:
        try:
            self._recorder.run(*self._intervals_ns)
        except BaseException as failure:  # told by stop()
            self._failure = failure


def _open(pids: list[int], children: bool, source: TimesSource | None) -> Sampler:
    sampler = get_host().open_sampler(pids, children, source)
    gone = [int(row["pid"]) for row in sampler.processes() if row["ended"]]
    if gone:
        sampler.close()
        raise ProcessGoneError(f"there is no process {gone[0]} to be sampled")
    return sampler


@cache
def best_source() -> TimesSource:
    """Where the times of threads come from on this machine, unless another source is asked for."""
    with ThreadSampler([os.getpid()], children=False) as own:
        return own.source


@cache
def error_ns(source: TimesSource) -> int:
    """By how much the CPU time of a running thread may lag.

    The kernel brings ``schedstat`` up to date at each tick of its scheduler, which the coarse clock advances by, and
    ``stat`` counts in clock ticks.
    """
    if sys.platform != "linux":
        return 0  # the native calls of macOS and Windows count up to the moment, as far as they say
    tick_ns = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)
    return tick_ns if source == "schedstat" else max(tick_ns, 10**9 // os.sysconf("SC_CLK_TCK"))


_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h; Python has no name for it
