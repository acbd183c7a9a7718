"""Runs calculations side by side, each under a lease in a worker process; plans nothing and stores nothing."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import InputError, LeaseError, LeaseTooLargeError, StopRequestedError
from ..leases import Lease, LeaseBook
from ..machine.placement import usable_cpus
from ..programs import registry
from ..programs.spec import WorkerKind
from ..units import format_count, format_size
from .calculation import Calculation, Outcome, Progress
from .changing import Change
from .job import Job, Key, UnmadeInputError, prepare
from .moving import Mover
from .observing import Observer
from .pool import WorkerPool
from .running import LOOK_AGAIN_S, Place, Run, Seat
from .source import InOrder, Source
from .supervisor import Worker, WorkerEndedError, end_all
from .wrapping import Wrapping

# Windows cannot interrupt a wait for a lock; a second later is soon enough for Ctrl-C.
_WAIT_S = 1.0 if sys.platform == "win32" else None

# A calculation follows another under the same lease where both are expected to be over within the first of these; so
# long at most it goes on, until what others leave is looked at again: that keeps the PUs idle for some 6 ms. Of
# calculations of 25 ms, asking the book and the source for every one took a fifth of the run.
_AHEAD_S, _TURN_S = 0.5, 2.0


class LocalEngine:
    """Worker processes on this machine, reused for calculations of the same program, and often of any width.

    Parameters
    ----------
    book
        Where the PUs and the memory come from.
    affinity
        Bind every worker to the PUs of its lease.
    scratch
        Where temporary files go, in a directory that is made and removed here; ``None``: where ``tempfile`` puts them.
    retries
        How often a calculation that failed is run again, in a fresh worker.
    at_most
        By program, how many of its calculations run at once at most, on the whole node: as many as there are licences.
    wrapping
        What every worker is put behind; programs are then looked for in there, and not here.
    on_progress
        Called with every event, in the thread that iterates over :meth:`run`.
    observer
        Told of every attempt; ``None``: nobody.
    """

    def __init__(
        self,
        book: LeaseBook,
        *,
        affinity: bool = True,
        scratch: Path | None = None,
        retries: int = 0,
        at_most: Mapping[str, int] | None = None,
        wrapping: Wrapping | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        if retries < 0:
            raise InputError(f"the number of retries is {retries}; it must be at least 0")
        self._book = book
        self._retries = retries
        self._wrapping = wrapping or Wrapping()
        self._at_most: dict[str, int] = {}
        self.limit(at_most or {})
        self._on_progress = on_progress or (lambda _: None)
        self._observer = observer or Observer()
        self._pool = WorkerPool(
            book, affinity=affinity, scratch=scratch, wrapping=self._wrapping, observer=self._observer
        )
        self._mover = Mover(book, self._pool, affinity=affinity)

    def run(self, calculations: Iterable[Calculation] | Source, max_workers: int | None = None) -> Iterator[Outcome]:
        """Run everything and yield the outcomes as they come.

        Parameters
        ----------
        calculations
            With different labels, started in the order given, each as it is; or a source that says what starts when
            something is free. Limits that change meanwhile are followed.
        max_workers
            How many run side by side at most; ``None``: as many as there are leases for.

        Raises
        ------
        InputError, MachineError
            Before anything starts: a label occurs twice, a program is not installed, a calculation that can never fit.
        StopRequestedError
            While iterating, when :meth:`stop` was called before the last one ended.
        LeaseError
            While iterating: limits have changed, and those left fit no longer.
        MachineError
            While iterating: the setup or wrapper lets no worker start, each tried twice.
        """
        if max_workers is not None and max_workers < 1:
            raise InputError(f"the number of workers is {max_workers}; it must be at least 1")
        source: Source
        source = InOrder([*calculations], self._book) if isinstance(calculations, Iterable) else calculations
        prepared: dict[Key, Job] = {}
        labels: set[str] = set()
        for calculation in source.calculations():
            self._prepared(calculation, prepared)
            if calculation.label in labels:
                raise InputError(f"two calculations have the label {calculation.label!r}; give each its own")
            labels.add(calculation.label)
        width = min(max_workers or len(self._book.machine.cpus_online), len(labels))
        return self._iterate(Run(width, source, prepared=prepared))

    def warm(self, calculation: Calculation, workers: int) -> None:
        """Start ``workers`` for calculations like this one, while the caller still prepares them; returns at once.

        They hold leases of their own until they are ready. One that cannot be started is left out: the calculation
        that needs it says why. Raises what :meth:`run` raises before anything starts.
        """
        self._pool.warm(self._prepare(calculation), workers)

    def workers(self) -> Mapping[WorkerKind, int]:
        """How many of each kind wait for a calculation, or will as soon as they are ready."""
        return self._pool.kinds()

    @property
    def cpus_changed(self) -> bool:
        """Whether those that may be used became others while it ran something."""
        return self._mover.cpus_changed

    @property
    def changes(self) -> Sequence[Change]:
        """What may be used, since when and why, where that became another while it ran something."""
        return self._mover.changes

    def limit(self, at_most: Mapping[str, int]) -> None:
        """Further programs that run so many times at once at most; those with a limit already keep it."""
        self._at_most = {**known_programs(at_most), **self._at_most}

    def at_most(self, programs: Iterable[str]) -> int | None:
        """How many calculations of ``programs`` together may run at once; ``None``: no limit but the leases."""
        return most_at_once(self._at_most, programs)

    def stop(self) -> None:
        """End every worker and everything below it, release every lease, remove temporary files. From any thread."""
        self._pool.stop()
        self._observer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self, calculation: Calculation) -> Job:
        return prepare(calculation, self._book, wrapped=bool(self._wrapping))

    def _prepared(self, calculation: Calculation, prepared: dict[Key, Job]) -> Job:
        """As :meth:`_prepare`, once for all calculations that are alike."""
        needs = (calculation.threads, calculation.memory_bytes, calculation.told_bytes, calculation.gpus)
        alike = (calculation.program, calculation.compute, *needs)
        if alike not in prepared:
            prepared[alike] = self._prepare(calculation)
        return replace(prepared[alike], calculation=calculation)

    def _iterate(self, run: Run) -> Iterator[Outcome]:
        self._pool.add(run)
        try:
            for number in range(run.width):
                self._start_thread(run, f"driver-{number}", self._drive)
            self._start_thread(run, "looks", self._mover.keep_looking)
            self._observer.get_ready()
            yield from self._events(run)
        finally:
            self._abandon(run)

    def _start_thread(self, run: Run, name: str, act: Callable[[Run], None]) -> None:
        # Daemons: were they waited for at exit, an abandoned iterator would keep the interpreter from ending.
        thread = threading.Thread(target=act, args=(run,), name=f"qcthreads-{name}", daemon=True)
        thread.start()
        run.threads.append(thread)

    def _events(self, run: Run) -> Iterator[Outcome]:
        ended = 0
        while ended < run.width:  # which only a driver that has not ended may raise
            try:
                event = run.events.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
            if event is None:
                ended += 1
            elif isinstance(event, BaseException):
                raise event
            elif isinstance(event, Progress):
                self._on_progress(event)
            else:
                self._on_progress(
                    Progress(
                        event="finished" if event.status == "finished" else "failed",
                        label=event.label,
                        message=event.error or "",
                        outcome=event,
                    )
                )
                yield event
        if run.stopped.is_set():
            raise StopRequestedError("stopped before all calculations had ended")

    def _abandon(self, run: Run) -> None:
        """Whatever of the run still goes on, ends; nothing does when it came to its end."""
        run.stopped.set()
        self._book.wake()
        run.wake()
        end_all(tuple(run.busy))
        if threading.current_thread() not in run.threads:  # where the iterator may have been collected
            for thread in run.threads:
                thread.join()
        self._pool.remove(run)

    def _drive(self, run: Run) -> None:
        """One driver thread: supervises one running calculation at a time."""
        try:
            while not run.stopped.is_set():
                changes = self._mover.changes
                taken = self._take(run)
                if taken is None:
                    break
                job, lease = taken
                lease = lease or self._lease_in_line(run, job)
                if lease is not None:
                    self._supervise(run, job, lease, changes)
        except StopRequestedError:
            pass
        except BaseException as error:  # raised where the caller iterates
            run.events.put(error)
        finally:
            run.events.put(None)

    def _take(self, run: Run) -> tuple[Job, Lease | None] | None:
        """What the source says is next, with its lease; waits until it says something, ``None`` when nothing is left.

        The lease is taken before another driver asks: what is promised to one is not free for the next. Nobody waits
        for a lease meanwhile, or those could not be told of who would give it back; then it has to be waited for.
        LeaseError where what waits fits no longer, not even into an empty book.
        """
        source = run.source
        with run.turn:
            while source.waiting and not run.stopped.is_set():
                self._mover.follow()
                warming = self._pool.warming()
                free, memory_bytes = self._book.free()
                starts = self._pool.starts_of(run, warming, free)
                calculation = None if self._waits_for_licences(run) else source.next(free, memory_bytes, starts)
                blocked = calculation is None and not source.running and not warming
                if blocked:  # others hold what it needs: it waits in line for what it would have in an empty book
                    calculation = source.next(self._book.usable, self._book.memory_bytes, starts)
                    if calculation is None:
                        raise LeaseError(self._fits_no_longer(source))
                if calculation is not None:
                    run.turn.notify()  # who looks whether something is left for him, too
                    job = self._narrowed(run, self._prepared(calculation, run.prepared))
                    if job.calculation is not calculation:
                        source.narrowed(job.calculation)
                    lease = None if blocked else self._lease_at_once(run, job)
                    run.in_line += lease is None
                    return job, lease
                run.wait_for_turn()
            run.turn.notify_all()
        return None

    def _waits_for_licences(self, run: Run) -> bool:
        """With the turn: whether one stands in line, and no program of the run has a licence left.

        Another would be given a width, and be taken for one that runs, long before it can start.
        """
        return run.in_line > 0 and all(
            program in self._at_most and self._book.slots_left(program, self._at_most[program]) < 1
            for program in {job.settings.program for job in run.prepared.values()}
        )

    def _fits_no_longer(self, source: Source) -> str:
        return (
            f"{format_count(source.waiting, 'calculation')} can no longer run here: each asks for more than there is "
            f"now, when {self._book.explain()}, and {format_size(self._book.memory_bytes)} of memory; run the rest "
            "where there is more, or with less memory each"
        )

    def _lease_at_once(self, run: Run, job: Job) -> Lease | None:
        try:
            return self._lease(run, job, wait=False)
        except LeaseError:  # somebody was faster
            return None

    def _lease_in_line(self, run: Run, job: Job) -> Lease | None:
        """The lease that ``job`` waits for; ``None`` where it fits no longer, and the source has it back."""
        try:
            return self._lease(run, job)
        except LeaseTooLargeError:
            self._return(run, job.calculation)
            return None
        finally:
            with run.turn:
                run.in_line -= 1
                run.turn.notify()  # whoever gave that back may have given back more

    def _narrowed(self, run: Run, job: Job) -> Job:
        """``job``, or what the observer has run instead."""
        calculation, said = self._observer.instead_of(job.calculation)
        if calculation is job.calculation:
            return job
        run.note(calculation.label, said, f"narrowed {calculation.program} {job.calculation.threads}")
        return self._prepared(calculation, run.prepared)

    def _lease(self, run: Run, job: Job, *, wait: bool = True) -> Lease:
        calculation, label = job.calculation, job.calculation.label

        def on_wait(held_by: str) -> None:
            run.note(label, f"waits for what is held by {held_by}", "waits")

        return self._book.acquire(
            job.settings.threads,
            calculation.memory_bytes,
            job.gpus,
            wait=wait,
            near=self._pool.near(job),
            exclusive_cores=job.has_cores_alone(self._book),
            slots=self._slots(job),
            cancel=run.stopped,
            on_wait=on_wait,
        )

    def _supervise(self, run: Run, job: Job, lease: Lease, changes: Sequence[Change]) -> None:
        """``job``, and what follows it under the same ``lease``, for which limits had changed so often."""
        with lease, contextlib.closing(Seat(lease)) as seat:
            until_s = time.monotonic() + _TURN_S
            place = Place(seat, self._on_cores_of(lease, job), until_s, changes)
            self._tell_start(run, place)
            outcome = self._attempt(run, place)
            while outcome.status != "finished" and place.attempt <= self._retries:
                run.events.put(Progress(event="retried", label=outcome.label, message=outcome.error or ""))
                place.attempt += 1
                outcome = self._attempt(run, place)
            with run.turn:
                seat.close()
                lease.release()
                run.source.ended(outcome)
        run.events.put(outcome)

    def _tell_start(self, run: Run, place: Place) -> None:
        label, seat = place.job.calculation.label, place.seat
        run.events.put(Progress(event="started", label=label, message=f"CPUs {seat.current.cpus}"))
        for note in place.job.settings.notes:
            run.note(label, note)
        for note in seat.lease.notes:
            run.note(label, note, "avoided")

    def _on_cores_of(self, lease: Lease, job: Job) -> Job:
        return job.on_cores(len(usable_cpus(self._book.machine, lease.cpus)))

    def _slots(self, job: Job) -> dict[str, int]:
        program = job.settings.program
        return {program: self._at_most[program]} if program in self._at_most else {}

    def _attempt(self, run: Run, place: Place) -> Outcome:
        """What becomes of the calculation in ``place``, or of the last that follows it there."""
        place.began_at = time.time()
        worker: Worker | None = None
        try:
            try:
                worker = self._pool.get(run, place.job, place.seat, fresh=place.attempt > 1)
                self._begin(run, place, worker)
                reply = self._reply(run, place, worker)
            except (WorkerEndedError, UnmadeInputError) as error:
                status, why = ("stopped", "stopped while it ran") if run.stopped.is_set() else ("failed", str(error))
                reply = {"status": status, "result": None, "error": why, "started_at": place.began_at}
                reply |= {"wall_s": time.time() - place.began_at, "cpu_s": 0.0, "peak_memory_bytes": 0}
            outcome = place.outcome(worker, reply)
            self._observer.ends(place.job.calculation, outcome)
            if outcome.status == "stopped":
                raise StopRequestedError(outcome.error)
            return outcome
        finally:
            if worker is not None:
                self._pool.put_back(run, place.job, worker)
                self._wait_for_remains(run, place.job, worker)
                place.seat.leave()

    def _begin(self, run: Run, place: Place, worker: Worker) -> None:
        job, calculation = place.job, place.job.calculation
        for kind, note in worker.notes.items():
            run.note(calculation.label, note, kind)
        self._pool.get_ready(worker, job, calculation.timeout_s)
        self._observer.begins(calculation, worker, place.seat.current)
        worker.send(job.request(worker.scratch), calculation.timeout_s)

    def _reply(self, run: Run, place: Place, worker: Worker) -> dict[str, Any]:
        """To the last calculation in ``place``; what follows one is chosen and sent while that computes."""
        while True:
            following = self._send_following(run, place, worker)
            goes_on = False
            try:
                reply = worker.reply()
                over = reply["status"] == "finished" or not self._retries
                goes_on = over and worker.lives and not run.stopped.is_set()
            finally:
                if following is not None and not goes_on:  # the worker is not healthy, and ends
                    self._return(run, following.calculation)
            if following is None or not goes_on:
                return reply
            self._follow(run, place, worker, following, reply)

    def _send_following(self, run: Run, place: Place, worker: Worker) -> Job | None:
        """What the source has follow in ``place``; it begins without us."""
        left_s = place.until_s - time.monotonic()
        if place.attempt > 1 or left_s <= 0 or run.stopped.is_set() or self._mover.changes != place.changes:
            return None
        if self._book.anybody_waits():
            return None
        with run.turn:
            calculation = run.source.following(place.job.calculation, min(left_s, _AHEAD_S))
        if calculation is None:
            return None
        try:
            job = self._on_cores_of(place.seat.lease, self._prepared(calculation, run.prepared))
        except LeaseError:  # there is less by now
            self._return(run, calculation)
            return None
        if job.fits_after(place.job) and self._observer.instead_of(calculation)[0] is calculation:
            with contextlib.suppress(UnmadeInputError):  # which it says again when its turn comes
                worker.send(job.request(worker.scratch), calculation.timeout_s)
                return job
        self._return(run, calculation)
        return None

    def _return(self, run: Run, calculation: Calculation) -> None:
        with run.turn:
            run.source.returned(calculation)

    def _follow(self, run: Run, place: Place, worker: Worker, job: Job, reply: Mapping[str, Any]) -> None:
        """``reply`` was the last to what ran in ``place`` until now, where ``job`` runs by now."""
        outcome = place.outcome(worker, reply)
        self._observer.ends(place.job.calculation, outcome)
        place.job, place.began_at, place.waited = job, time.time(), False
        run.busy[worker].job = job
        self._observer.begins(job.calculation, worker, place.seat.current)
        with run.turn:
            run.source.ended(outcome)
        run.events.put(outcome)
        self._tell_start(run, place)

    def _wait_for_remains(self, run: Run, job: Job, worker: Worker) -> None:
        """The lease goes on as long as something runs under it; what could not be ended is waited for."""
        if worker.healthy:
            return
        while (remains := worker.remains()) and not run.stopped.wait(LOOK_AGAIN_S):
            said = f"the CPUs {job.calculation.label} had are not given to others: {', '.join(remains)} cannot be ended"
            run.note(job.calculation.label, said)
            worker.end_tree()


def known_programs(at_most: Mapping[str, int]) -> dict[str, int]:
    """The same by the names that the registry has for these programs; raises InputError where it has none."""
    return {registry.known(program): most for program, most in at_most.items()}


def most_at_once(at_most: Mapping[str, int], programs: Iterable[str]) -> int | None:
    """How many calculations of ``programs`` together may run at once; ``None``: one of them has no limit."""
    limits = [at_most.get(program) for program in programs]
    return None if None in limits else sum(most for most in limits if most is not None)
