"""Samples of threads through the extension: turns its bytes into rows; Linux only, decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np

from . import _native
from .sampling import DETAIL, PROCESS, THREAD, Recorder, RecorderCounts, Rows, Sample, TimesSource

assert sys.platform == "linux", "the extension has these functions on Linux alone"


class NativeSampler:
    """``struct qct_sampler``."""

    def __init__(self, pids: Iterable[int], children: bool, source: TimesSource) -> None:
        self.source: TimesSource = source
        self._sampler = _native.Sampler(list(pids), children, source)

    def sample(self, detail: bool) -> Sample:
        """Look at every thread once."""
        return _sample(self._sampler.sample(detail))

    def times(self) -> Rows:
        """The threads of a sample without details, at no cost but theirs."""
        return np.frombuffer(self._sampler.sample(False)[1], THREAD)

    def look(self, root: int) -> Sample:
        """Look, with details, at one of the processes that were given and its descendants alone."""
        return _sample(self._sampler.look(root))

    def attach(self, pid: int) -> None:
        """Watch one more process and its descendants."""
        self._sampler.attach(pid)

    def detach(self, pid: int) -> None:
        """Forget a process that was given, with its descendants."""
        self._sampler.detach(pid)

    def processes(self) -> Rows:
        """The processes as of the last sample, but for their clocks, which are read now."""
        return np.frombuffer(self._sampler.processes(), PROCESS)

    def unread(self) -> int:
        """How often a thread that was there could not be read."""
        return self._sampler.unread()

    def recorder(self, room_bytes: int) -> Recorder:
        """One that takes this sampler's samples at fixed times."""
        return NativeRecorder(self._sampler, room_bytes)

    def close(self) -> None:
        """Close all descriptors."""
        self._sampler.close()


class NativeRecorder:
    """``struct qct_recorder``."""

    def __init__(self, sampler: _native.Sampler, room_bytes: int) -> None:
        self._sampler = sampler
        self._recorder = _native.Recorder(room_bytes)

    def run(self, fast_ns: int, detail_ns: int) -> None:
        """Sample at these intervals, at once and a last time with details, until stopped."""
        self._recorder.run(self._sampler, fast_ns, detail_ns)

    def stop(self) -> None:
        """Let :meth:`run` return."""
        self._recorder.stop()

    def take(self) -> Sample | None:
        """The oldest sample, which is forgotten; ``None``: there is none."""
        taken = self._recorder.take()
        return None if taken is None else _sample(taken)

    def counts(self) -> RecorderCounts:
        """What it did so far."""
        samples, detailed, overruns, dropped, own_cpu_ns = self._recorder.counts()
        return RecorderCounts(
            samples=samples, detailed=detailed, overruns=overruns, dropped=dropped, own_cpu_ns=own_cpu_ns
        )


def _sample(parts: tuple[int, bytearray, bytearray | None, bytearray | None]) -> Sample:
    at_ns, threads, details, processes = parts
    if details is None or processes is None:
        return Sample(at_ns, np.frombuffer(threads, THREAD))
    return Sample(
        at_ns, np.frombuffer(threads, THREAD), np.frombuffer(details, DETAIL), np.frombuffer(processes, PROCESS)
    )
