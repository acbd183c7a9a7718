"""Who is told of every attempt at a calculation, and may have the next ones given fewer PUs; runs and ends nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..leases import Lease
from ..monitoring.statistics import Grant, WorkerUsage
from ..programs import registry
from ..units import format_count
from .calculation import Calculation, Outcome
from .scratch import ScratchWatch
from .supervisor import WorkerStart

if TYPE_CHECKING:
    from ..monitoring.run_monitor import RunMonitor
    from .supervisor import Worker

# So much of what a program does must have been seen, in more than one calculation, before it is called single-threaded.
_TELLING_NS = 1_000_000_000
_TELLING_CALCULATIONS = 2
_UNSEEN_SHARE = 0.1

# Beside a program's overhead, so that it has something to compute with; Psi4 refuses less than 250 MiB.
WORKING_MEMORY_BYTES = 256 * 1024**2


class Observer:
    """What an engine calls, from the thread that supervises the calculation; this one does nothing."""

    def get_ready(self) -> None:
        """A run has begun, whose workers start meanwhile; those of no run yet may be there before."""

    def starts(self, worker: Worker) -> None:
        """The worker is there, and loads next what it needs."""

    def begins(self, calculation: Calculation, worker: Worker, lease: Lease) -> None:
        """The worker is sent ``calculation`` next."""

    def ends(self, calculation: Calculation, outcome: Outcome) -> None:
        """What became of the attempt that began last in this worker, before the worker is given another or ended.

        Also of one that is stopped with its run.
        """

    def instead_of(self, calculation: Calculation) -> tuple[Calculation, str]:
        """What is to be run for ``calculation``, before its lease is asked for: itself, or why another, in a line."""
        return calculation, ""

    def close(self) -> None:
        """The engine has stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a calculation and what its worker was seen to do; ``None``: it could not be watched."""

    calculation: Calculation
    outcome: Outcome
    grant: Grant
    usage: WorkerUsage | None
    scratch_bytes: int = 0
    """The most that was seen in its scratch directory."""
    worker_start: WorkerStart | None = None
    """Of the worker that it ran in."""


class Watching(Observer):
    """Watches every attempt, and has programs that ignore their width given one PU; from any threads.

    Workers that start are watched from the first :meth:`get_ready` on, so that none waits for what watching imports.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempts: list[Attempt] = []
        self._begun: dict[int, _Begun] = {}
        self._scratch = ScratchWatch()
        self._widths: dict[Hashable, _Width] = {}
        self._monitor: RunMonitor | None = None
        self._started: list[int] = []
        """Workers that are watched as soon as there is a monitor."""

    @property
    def monitor(self) -> RunMonitor:
        """Of all workers."""
        if self._monitor is None:
            from ..monitoring.run_monitor import RunMonitor  # with numpy, which nothing needs before

            with self._lock:
                if self._monitor is None:
                    monitor = RunMonitor()
                    for pid in self._started:
                        _attach(monitor, pid)
                    self._started, self._monitor = [], monitor
        return self._monitor

    def get_ready(self) -> None:
        """Import what watching takes, which else the first calculation waits for."""
        _ = self.monitor

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Those that have ended, in that order."""
        with self._lock:
            return tuple(self._attempts)

    @property
    def scratch_bytes(self) -> int:
        """In the scratch directories of those that run, as last seen."""
        return self._scratch.held_bytes()

    @property
    def running(self) -> tuple[str, ...]:
        """The labels of those that have begun and not ended."""
        with self._lock:
            return tuple(begun.label for begun in self._begun.values())

    def starts(self, worker: Worker) -> None:
        """What it does before its first calculation keeps CPUs busy, too."""
        with self._lock:
            if self._monitor is None:
                self._started.append(worker.pid)
                return
        _attach(self.monitor, worker.pid)

    def begins(self, calculation: Calculation, worker: Worker, lease: Lease) -> None:
        """Watch the worker from now on."""
        grant = Grant(
            worker_id=worker.pid,
            threads_asked=len(lease.cpus),
            leased=lease.cpus,
            bound_to=worker.bound,
            memory_bytes=calculation.memory_bytes,
        )
        begun = _Begun(calculation.label, grant, worker.scratch, worker.start)
        with self._lock:
            self._begun[worker.pid] = begun
        self._scratch.begin(begun.folder)
        try:
            self.monitor.begin(worker.pid, grant)
        except OSError:
            return  # it has ended, or no descriptor is left: the calculation goes on unwatched

    def ends(self, calculation: Calculation, outcome: Outcome) -> None:
        """Watch it no longer, and keep what was seen."""
        with self._lock:
            begun = self._begun.pop(outcome.worker_pid, None)
        scratch_bytes = 0 if begun is None else self._scratch.end(begun.folder)
        try:
            usage = None if begun is None else self.monitor.end(outcome.worker_pid)
        except OSError:
            usage = None
        with self._lock:
            self._attempts.append(
                Attempt(
                    calculation=calculation,
                    outcome=outcome,
                    grant=_no_grant(calculation, outcome) if begun is None else begun.grant,
                    usage=usage,
                    scratch_bytes=scratch_bytes,
                    worker_start=None if begun is None else begun.start,
                )
            )
            if usage is not None and outcome.status == "finished":
                self._widths.setdefault(alike(calculation), _Width()).add(usage)

    def instead_of(self, calculation: Calculation) -> tuple[Calculation, str]:
        """One PU, and the memory that goes with it, for a program that was seen to use no more."""
        if calculation.threads == 1:
            return calculation, ""
        with self._lock:
            width = self._widths.get(alike(calculation))
            if width is None or not width.ignored:
                return calculation, ""
        memory_bytes = calculation.memory_bytes
        if memory_bytes:
            overhead = registry.get(calculation.program).memory_overhead_bytes + WORKING_MEMORY_BYTES
            needed_bytes = max(memory_bytes // calculation.threads, overhead, width.peak_bytes)
            memory_bytes = min(memory_bytes, needed_bytes + calculation.files_bytes)
        said = (
            f"{calculation.program} ignores its width: of {calculation.threads} threads one worked in each of "
            f"{format_count(width.calculations, 'calculation')}; the rest get one PU each"
        )
        return replace(calculation, threads=1, memory_bytes=memory_bytes), said

    def close(self) -> None:
        """End the sampling; what was seen stays."""
        self._scratch.close()
        with self._lock:
            monitor = self._monitor
        if monitor is not None:
            monitor.close()


@dataclass(frozen=True, slots=True)
class _Begun:
    """What runs in a worker, which has one at a time; labels of different calls may be the same."""

    label: str
    grant: Grant
    folder: Path
    start: WorkerStart | None


@dataclass(slots=True)
class _Width:
    """What a program made of a width, as far as it was seen."""

    calculations: int = 0
    watched_ns: int = 0
    threads_working: int = 0
    peak_bytes: int = 0

    def add(self, usage: WorkerUsage) -> None:
        if usage.cpu_unseen_ns > _UNSEEN_SHARE * usage.cpu_ns:
            return
        self.calculations += 1
        self.watched_ns += usage.wall_ns
        self.threads_working = max(self.threads_working, usage.threads_working)
        self.peak_bytes = max(self.peak_bytes, usage.memory_peak_bytes)

    @property
    def ignored(self) -> bool:
        enough = self.watched_ns >= _TELLING_NS and self.calculations >= _TELLING_CALCULATIONS
        return enough and self.threads_working == 1


def _attach(monitor: RunMonitor, pid: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or no descriptor is left
        monitor.attach(pid)


def alike(calculation: Calculation) -> Hashable:
    """Equal for calculations that one program, or function, is to compute at one width."""
    return calculation.program, calculation.compute, calculation.threads


def _no_grant(calculation: Calculation, outcome: Outcome) -> Grant:
    """Of an attempt whose worker could not be started."""
    return Grant(worker_id=0, threads_asked=outcome.threads, leased=outcome.cpus, memory_bytes=calculation.memory_bytes)
