"""Watches any command or process from now to its end; starts and waits for the command, and leaves it alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

from ..cpuset import CpuSet
from ..errors import BindingError
from ..host import get_host
from ..host.cpu_times import busy_ns
from ..host.sampling import RecorderCounts
from ..host.throttling import Throttling, throttled_between
from .bandwidth import BandwidthWatch
from .findings import OF_A_LEASE, OF_ITS_CPUS, judge
from .sampler import BackgroundSampler, error_ns
from .statistics import BandwidthUsage, Finding, Grant, WorkerUsage
from .tally import Tally
from .watch import allowed_cpus, busy_between

# Times alone are sampled so much more often than details.
_FAST_PER_DETAIL = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a command or process did while it was watched."""

    pid: int
    exit_status: int | None
    """The command's; minus the number of a signal that ended it; ``None`` of a process that was not started here."""
    wait4_cpu_s: float | None
    """CPU time of the command as the system counts it at the end, with all children that were waited for."""
    usage: WorkerUsage
    findings: tuple[Finding, ...]
    counts: RecorderCounts
    source: str
    bandwidth: BandwidthUsage
    """Of memory, by the process and its descendants, or the node, while it was watched."""


@dataclass(slots=True)
class Watcher:
    """One process to be watched until it has ended, or :meth:`stop` is called."""

    threads_asked: int | None = None
    """``None``: as many as the CPUs that the process may use when the watch begins."""
    memory_bytes: int = 0
    """0: no limit."""
    interval_s: float = 1.0
    """Between two samples with details; of times alone there are ten."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Let :meth:`watch` return."""
        self._stop.set()

    def run(self, command: Sequence[str]) -> Observation:
        """Start ``command`` with our standard input, output and error, and watch it; OSError where it cannot start.

        Ctrl-C is the command's to answer; SIGTERM and SIGHUP are passed on.
        """
        began_ns, mask = time.monotonic_ns(), _mask(0)
        process = subprocess.Popen(command)
        ended = threading.Thread(target=self._wait_for, args=[process], daemon=True)
        with _signals_passed_on(process):
            ended.start()
            seen = self._watch(process.pid, mask, began_ns)
            ended.join()
            cpu_s = _reap(process)
        return replace(seen, exit_status=process.returncode, wait4_cpu_s=cpu_s)

    def watch(self, pid: int) -> Observation:
        """Watch a process that is there, with its descendants; ProcessGoneError when there is none."""
        return self._watch(pid, _mask(pid), None)

    def _watch(self, pid: int, bound_to: CpuSet, began_ns: int | None) -> Observation:
        bandwidth, busy, throttling = BandwidthWatch(), busy_ns(), Throttling(pid)
        throttled_ns = throttling.total_ns()
        bandwidth.watch(pid)
        asked = self.threads_asked or len(bound_to) or 1
        grant = Grant(
            worker_id=0, threads_asked=asked, leased=bound_to, bound_to=bound_to or None, memory_bytes=self.memory_bytes
        )
        fast_hz = _FAST_PER_DETAIL / self.interval_s
        with BackgroundSampler([pid], fast_hz=fast_hz, detail_hz=1 / self.interval_s) as background:
            tally = self._tally_until_end(background, began_ns)
        moved = bandwidth.report()
        bandwidth.close()
        for sample in background.take():
            tally.add(sample)
        others_ns = busy_between(busy, busy_ns(), grant.bound_to)
        stopped_ns = throttled_between(throttled_ns, throttling.total_ns())
        usage = tally.usage(grant, error_ns(background.source), others_ns, stopped_ns)
        found = judge(f"process {pid}", grant, usage, OF_A_LEASE if self.threads_asked else OF_ITS_CPUS)
        return Observation(
            pid=pid,
            exit_status=None,
            wait4_cpu_s=None,
            usage=usage,
            findings=tuple(Finding(kind=kind, message=message) for kind, message in found),
            counts=background.counts,
            source=background.source,
            bandwidth=moved,
        )

    def _tally_until_end(self, background: BackgroundSampler, began_ns: int | None) -> Tally:
        """Its samples until now; those that the end of the background sampler adds are still to be taken."""
        while (first := next(background.take(), None)) is None:
            background.wait(0.005)
        tally = Tally(first, allowed_cpus(first.threads["tid"].tolist()), began_ns)
        while not (tally.ended or self._stop.wait(self.interval_s)):
            for sample in background.take():
                detailed = sample.details is not None
                tally.add(sample, allowed_cpus(sample.threads["tid"].tolist()) if detailed else None)
        return tally

    def _wait_for(self, process: subprocess.Popen[bytes]) -> None:
        """Until the command has ended; on Linux without taking what the last sample still sees of it."""
        if sys.platform == "linux":
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        else:
            process.wait()
        self.stop()


def _mask(pid: int) -> CpuSet:
    """The CPUs it may use; empty where the platform does not tell."""
    try:
        return get_host().get_affinity(pid)
    except BindingError:
        return CpuSet()


def _reap(process: subprocess.Popen[bytes]) -> float | None:
    """CPU time as the system counted it, in s; sets the return code."""
    if sys.platform != "linux":
        return None
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


@contextmanager
def _signals_passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A terminal sends SIGINT and SIGQUIT to the command itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    handlers: dict[int, Callable[[int, FrameType | None], None] | signal.Handlers]
    handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: pass_on}
    if sys.platform != "win32":
        handlers |= {signal.SIGQUIT: signal.SIG_IGN, signal.SIGHUP: pass_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
