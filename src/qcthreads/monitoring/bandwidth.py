"""Memory bandwidth that was used, as a share of what was measured; where no counter may be read it says why."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterable
from pathlib import Path

from ..host import processes, read_machine
from ..host.memory_traffic import NotMeasurableError, TrafficCounter, open_traffic_counter
from ..host.profiles import read_profile
from .statistics import BandwidthUsage

# Threads that are started while others are looked up are found by looking again; who starts faster is left out.
_LOOKS = 8


class BandwidthWatch:
    """Counts from now on; may be used by several threads. Where nothing can be counted, it reports that.

    ``sysroot``: a tree with ``sys/`` in which the counters are.
    """

    def __init__(self, sysroot: str = "/") -> None:
        self._lock = threading.Lock()
        self._sysroot = sysroot
        self._counter: TrafficCounter | None = None
        self._reason = ""
        self._last = 0, 0
        self._open(group=True)

    def watch(self, pid: int) -> None:
        """Count this process and its descendants, and what they start from now on."""
        with self._lock:
            if self._counter is None or self._counter.scope == "node":
                return
            try:
                _add_all(self._counter, pid)
            except OSError:  # it is in a group that shares caches out
                self._counter.close()
                self._open(group=False)

    def report(self) -> BandwidthUsage:
        """What was moved since the last report."""
        with self._lock:
            if self._counter is None:
                return _not_measurable(self._reason)
            before_ns, before_bytes = self._last
            try:
                self._last = self._look(self._counter)
            except OSError as error:
                return _not_measurable(f"the counter cannot be read: {error.strerror}")
            (now_ns, now_bytes), counter = self._last, self._counter
        rate = max(0, now_bytes - before_bytes) / max(now_ns - before_ns, 1) * 1e9
        whole, reason = _measured()
        share = None if whole is None else rate / whole
        return BandwidthUsage(bytes_per_s=rate, share=share, scope=counter.scope, source=counter.source, reason=reason)

    def close(self) -> None:
        """Give the counter back."""
        with self._lock:
            if self._counter is not None:
                self._counter.close()
                self._counter, self._reason = None, "the watch was closed"

    def _open(self, *, group: bool) -> None:
        self._counter = None
        try:
            self._counter = open_traffic_counter(self._sysroot, group=group)
            weakref.finalize(self, self._counter.close)  # also at exit: a group left behind would go on counting
            self._last = self._look(self._counter)
        except NotMeasurableError as error:
            self._reason = str(error)
        except OSError as error:
            self._counter, self._reason = None, f"the counter cannot be read: {error.strerror}"

    def _look(self, counter: TrafficCounter) -> tuple[int, int]:
        return time.monotonic_ns(), counter.read_bytes()


def _not_measurable(reason: str) -> BandwidthUsage:
    return BandwidthUsage(bytes_per_s=None, share=None, scope="", source="", reason=reason)


def _measured() -> tuple[float | None, str]:
    """What the whole machine delivers, or why that is not known."""
    stored = read_profile(read_machine())
    whole = stored.profile.of("machine") if stored.profile else ()
    return (whole[0].peak_bytes_per_s, "") if whole else (None, f"no share: {stored.missing}")


def _add_all(counter: TrafficCounter, pid: int) -> None:
    known: set[int] = set()
    for _ in range(_LOOKS):
        new = {tid for process in (pid, *processes.descendants(pid)) for tid in _tids(process)} - known
        if not new:
            return
        counter.add(sorted(new))
        known |= new


def _tids(pid: int) -> Iterable[int]:
    with contextlib.suppress(OSError):
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    return [pid]
