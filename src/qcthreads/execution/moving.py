"""Has the book follow limits that change, and what lost its CPUs go on where it may; starts and ends nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

from ..errors import BindingError, LeaseError
from ..leases import Lease, LeaseBook
from .changing import Change, ChangingLimits
from .pool import WorkerPool
from .running import LOOK_AGAIN_S, Run, Running
from .supervisor import Worker


class Mover:
    """Moves what the workers of ``pool`` compute, where these are bound to the PUs of their leases."""

    def __init__(self, book: LeaseBook, pool: WorkerPool, *, affinity: bool) -> None:
        self._book = book
        self._pool = pool
        self._affinity = affinity
        self._limits = ChangingLimits(book)
        self._looking = threading.Lock()

    @property
    def cpus_changed(self) -> bool:
        """Whether those that may be used became others meanwhile."""
        return self._limits.cpus_changed

    @property
    def changes(self) -> Sequence[Change]:
        """What may be used, since when and why, in that order."""
        return self._limits.changes

    def keep_looking(self, run: Run) -> None:
        """At what may be used, also while nothing starts or ends; in a thread with the mask that the drivers have."""
        while not run.stopped.wait(LOOK_AGAIN_S):
            with run.turn:
                self.follow()
            self._bind_moved(run)

    def follow(self) -> None:
        """With the turn: hand out what may be used by now; first to what runs where nothing may run any more."""
        with self._looking:
            known = len(self.changes)
            if self._limits.follow():  # older kernels give all that runs in a cpuset the whole of it when that changes
                self._pool.forget_bindings()
            self._tell(self.changes[known:])
            if not (self._affinity and self._limits.cpus_changed):  # asked before every calculation
                return
            with self._pool.lock:
                busy = self._pool.busy()
            allowed = self._book.limits.cpus
            for run, worker, running in busy:
                seat = running.seat
                if seat.instead is not None and seat.lease.cpus <= allowed:
                    self._move(run, worker, running, None)
                elif seat.current.cpus.isdisjoint(allowed):
                    self._move_away(run, worker, running)

    def _tell(self, changes: Sequence[Change]) -> None:
        for change in changes:
            for run in self._pool.runs():
                run.note("", f"since {time.strftime('%H:%M:%S', time.localtime(change.at))} {change.why}")

    def _move_away(self, run: Run, worker: Worker, running: Running) -> None:
        """Have it go on where others may not start; where nothing is free the system has it share what others have."""
        job = running.job
        label, gone = job.calculation.label, f"CPUs {running.seat.current.cpus} may be used no longer"
        try:
            other = self._book.acquire_instead(running.seat.lease, exclusive_cores=job.has_cores_alone(self._book))
        except LeaseError:  # the book is shut: the next look may be luckier
            return
        if other is None:
            run.note(label, f"{gone}: until others are free, {label} shares those of other calculations")
        elif self._move(run, worker, running, other):
            run.note(label, f"{gone}: {label} goes on on CPUs {other.cpus}")
        else:
            other.release()

    def _move(self, run: Run, worker: Worker, running: Running, instead: Lease | None) -> bool:
        """Have it be bound to the PUs of ``instead``, or of its lease again, soon; not where it has ended meanwhile."""
        with self._pool.lock:
            if run.busy.get(worker) is not running:
                return False
            running.seat.move(instead)
            running.moved = True
            worker.hold(*running.seat.leases)
            return True

    def _bind_moved(self, run: Run) -> None:
        """Bind what is to be on other PUs by now. In nobody's turn: on a large node it takes seconds to find it all."""
        with self._pool.lock:
            moved = [one for one in self._pool.busy() if one[2].moved]
        for its_run, worker, running in moved:
            if run.stopped.is_set():
                return
            with contextlib.suppress(BindingError):  # where the system refuses, it runs where that has it run
                self._bind_again(its_run, worker, running)
            with self._pool.lock:
                if its_run.busy.get(worker) is running and not running.moved:
                    running.seat.leave()
                    worker.hold(*running.seat.leases)

    def _bind_again(self, run: Run, worker: Worker, running: Running) -> None:
        """And all that it has started, as long as it runs and is not to be elsewhere again."""
        known: set[int] = set()
        while new := worker.processes() - known:  # what they start is where they are
            with self._pool.lock:
                if run.busy.get(worker) is not running or (known and running.moved):
                    return
                running.moved = False
                worker.bind_again(running.seat.current.cpus, new)
            known |= new
