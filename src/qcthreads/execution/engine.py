"""Runs calculations side by side, each under a lease in a worker process; plans nothing and stores nothing."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError, InputError, LeaseError, LeaseTooLargeError, MachineError, StopRequestedError
from ..host import get_host
from ..leases import Lease, LeaseBook, has_outer_lease
from ..machine.placement import usable_cpus
from ..programs import precedence, registry
from ..programs.settings import settings_for
from ..programs.spec import Settings, WorkerKind
from ..units import format_count, format_size
from .calculation import Calculation, Outcome, Progress
from .changing import ChangingLimits
from .labels import short_label
from .observing import Observer
from .source import Source, Starts
from .supervisor import NoGreetingError, Worker, WorkerEndedError, end_all, scratch_of
from .wrapping import Wrapping

# Windows cannot interrupt a wait for a lock; a second later is soon enough for Ctrl-C.
_WAIT_S = 1.0 if sys.platform == "win32" else None

_LOOK_AGAIN_S = 1.0

# So long at most calculations follow each other under one lease, by what is expected of them: as much longer may others
# wait for it, and what they and the limits leave is looked at again. Of 25 ms each, asking the book and the source for
# every one took a fifth of the run.
_TURN_S = 0.5

_Key = tuple[Any, ...]


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
        self._limits = ChangingLimits(book)
        self._affinity = affinity
        self._place_memory = affinity and _memory_is_ours_to_place()
        self._scratch = scratch
        self._retries = retries
        self._wrapping = wrapping or Wrapping()
        self._passed = not self._wrapping  # whether a worker has started behind it
        self._starts = threading.Condition()
        self._starting = 0
        self._at_most: dict[str, int] = {}
        self.limit(at_most or {})
        self._on_progress = on_progress or (lambda _: None)
        self._observer = observer or Observer()
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._changes = 0
        self._folder: Path | None = None
        self._started = 0
        self._idle: list[tuple[_Key, Worker]] = []
        self._warming: dict[Lease, _Key] = {}
        self._took_s: dict[WorkerKind, float] = {}
        self._runs: list[_Run] = []

    def run(self, calculations: Iterable[Calculation] | Source, max_workers: int | None = None) -> Iterator[Outcome]:
        """Run everything and yield the outcomes as they come.

        Parameters
        ----------
        calculations
            With different labels, started in the order given; or a source that says what starts when something is free.
            A source's run follows limits that change meanwhile.
        max_workers
            How many run side by side at most; ``None``: as many as there are leases for.

        Raises
        ------
        InputError, MachineError
            Before anything starts: a label occurs twice, a program is not installed, a calculation that can never fit.
        StopRequestedError
            While iterating, when :meth:`stop` was called before the last one ended.
        MachineError
            While iterating: the setup or wrapper lets no worker start, each tried twice.
        """
        if max_workers is not None and max_workers < 1:
            raise InputError(f"the number of workers is {max_workers}; it must be at least 1")
        prepared: dict[_Key, _Job] = {}
        source = None if isinstance(calculations, Iterable) else calculations
        given = calculations if isinstance(calculations, Iterable) else calculations.calculations()
        jobs = [self._prepared(calculation, prepared) for calculation in given]
        labels: set[str] = set()
        for job in jobs:
            if job.calculation.label in labels:
                raise InputError(f"two calculations have the label {job.calculation.label!r}; give each its own")
            labels.add(job.calculation.label)
        most = len(self._book.usable if source is None else self._book.machine.cpus_online)
        width = min(max_workers or most, len(jobs))
        queued = deque(jobs) if source is None else deque[_Job]()
        return self._iterate(_Run(queued, width, prepared=prepared, source=source))

    def warm(self, calculation: Calculation, workers: int) -> None:
        """Start ``workers`` for calculations like this one, while the caller still prepares them; returns at once.

        They hold leases of their own until they are ready. One that cannot be started is left out: the calculation
        that needs it says why. Raises what :meth:`run` raises before anything starts.
        """
        job = self._prepare(calculation)
        run = _Run(deque(), workers)
        with self._lock:
            self._runs.append(run)
        leases = self._book.acquire_split(workers, job.settings.threads, gpus=job.gpus)
        try:
            self._warming |= dict.fromkeys(leases, job.key)
            for lease in leases:
                thread = threading.Thread(target=self._warm, args=(run, job, lease), name="qcthreads-warm", daemon=True)
                run.threads.append(thread)
                thread.start()
        except BaseException:
            run.stopped.set()
            started = sum(thread.ident is not None for thread in run.threads)
            for lease in leases[started:]:
                self._cool(lease)
            raise

    def ask(self, question: Calculation) -> Outcome:
        """What becomes of one calculation; where a worker for such ones is starting, it waits for that one.

        Raises what :meth:`run` raises.
        """
        (outcome,) = self._iterate(_Run(deque([self._prepare(question)]), 1, patient=True))
        return outcome

    def workers(self) -> Mapping[WorkerKind, int]:
        """How many of each kind wait for a calculation, or will as soon as they are ready."""
        with self._lock:
            return Counter(key[0] for key in (*(key for key, _ in self._idle), *self._warming.values()))

    @property
    def cpus_changed(self) -> bool:
        """Whether those that may be used became others while it ran something from a source."""
        return self._limits.cpus_changed

    def limit(self, at_most: Mapping[str, int]) -> None:
        """Further programs that run so many times at once at most; those with a limit already keep it."""
        self._at_most = {**{registry.known(program): most for program, most in at_most.items()}, **self._at_most}

    def at_most(self, programs: Iterable[str]) -> int | None:
        """How many calculations of ``programs`` together may run at once; ``None``: no limit but the leases."""
        limits = [self._at_most.get(program) for program in programs]
        return None if None in limits else sum(most for most in limits if most is not None)

    def stop(self) -> None:
        """End every worker and everything below it, release every lease, remove temporary files. From any thread."""
        with self._lock:
            runs, self._runs = self._runs, []
            for run in runs:
                run.stopped.set()
            idle, self._idle = self._idle, []
        self._book.wake()
        for run in runs:
            run.wake()
        end_all([worker for _, worker in idle] + [worker for run in runs for worker in tuple(run.busy)])
        for run in runs:
            for thread in run.threads:
                if thread.ident is not None:  # one that starts later sees that the run was stopped
                    thread.join()
        with self._lock:
            folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self._observer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepared(self, calculation: Calculation, prepared: dict[_Key, _Job]) -> _Job:
        """As :meth:`_prepare`, once for all calculations that are alike."""
        needs = (calculation.threads, calculation.memory_bytes, calculation.told_bytes, calculation.gpus)
        alike = (calculation.program, calculation.compute, *needs)
        if alike not in prepared:
            prepared[alike] = self._prepare(calculation)
        return replace(prepared[alike], calculation=calculation)

    def _prepare(self, calculation: Calculation) -> _Job:
        """Find out before anything starts what would keep it from running."""
        spec = registry.get(calculation.program)
        if calculation.compute is None:
            registry.known(calculation.program) if self._wrapping else registry.require(calculation.program)
        else:
            _check_function(calculation.compute)
        settings = settings_for(spec, calculation.threads, calculation.told_bytes)
        if calculation.compute is not None:
            # The caller's own function: that nothing is known about it goes without saying.
            settings = replace(settings, notes=())
        elif not has_outer_lease():  # else they are the outer lease's, not the user's
            told = precedence.settle(settings, os.environ, counts=False)
            settings = replace(settings, notes=(*settings.notes, *told.notes))
        gpus = spec.gpus_of(len(self._book.gpus)) if calculation.gpus is None else calculation.gpus
        try:
            self._book.check(settings.threads, calculation.memory_bytes, gpus)
        except LeaseError as error:
            raise LeaseError(f"calculation {short_label(calculation.label)} can never run here: {error}") from None
        return _Job(calculation, settings, gpus, _key_of(calculation, settings))

    def _warm(self, run: _Run, job: _Job, lease: Lease) -> None:
        try:
            with (
                lease,
                contextlib.closing(_Seat(lease)) as seat,
                contextlib.suppress(StopRequestedError, WorkerEndedError, MachineError),
            ):
                if run.stopped.is_set():
                    return
                worker = self._worker(run, job, seat, fresh=True)
                try:
                    self._get_ready(worker, job, None)
                finally:
                    self._put_back(run, job, worker)
        finally:
            self._cool(lease)
            with self._lock:
                runs = tuple(self._runs)
            for one in runs:
                one.wake()

    def _wait_for_warm(self, run: _Run, job: _Job) -> None:
        """Until one is ready that can compute ``job``, as long as there is hope of it."""

        def settled() -> bool:
            ready = any(key == job.key for key, _ in tuple(self._idle))
            return ready or run.stopped.is_set() or job.key not in tuple(self._warming.values())

        with run.turn:
            run.turn.wait_for(settled)

    def _cool(self, lease: Lease) -> None:
        """No worker gets ready on it any more, if one ever did."""
        lease.release()
        self._warming.pop(lease, None)

    def _iterate(self, run: _Run) -> Iterator[Outcome]:
        with self._lock:
            self._runs.append(run)
        try:
            for number in range(run.width):
                self._start_thread(run, f"driver-{number}", self._drive)
            if run.source is not None:
                self._start_thread(run, "looks", self._keep_looking)
            self._observer.get_ready()
            yield from self._events(run)
        finally:
            self._abandon(run)

    def _start_thread(self, run: _Run, name: str, act: Callable[[_Run], None]) -> None:
        # Daemons: were they waited for at exit, an abandoned iterator would keep the interpreter from ending.
        thread = threading.Thread(target=act, args=(run,), name=f"qcthreads-{name}", daemon=True)
        thread.start()
        run.threads.append(thread)

    def _events(self, run: _Run) -> Iterator[Outcome]:
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

    def _keep_looking(self, run: _Run) -> None:
        """At what may be used, also while nothing starts or ends; in a thread with the mask that the drivers have."""
        while not run.stopped.wait(_LOOK_AGAIN_S):
            with run.turn:
                self._follow_limits()
            self._bind_moved(run)

    def _follow_limits(self) -> None:
        """With the turn: hand out what may be used by now; first to what runs where nothing may run any more."""
        with self._looking:
            if self._limits.follow():  # older kernels give all that runs in a cpuset the whole of it when that changes
                with self._lock:
                    self._changes += 1
                    for _, worker in self._idle:
                        worker.forget_binding()
                    for _, _, running in self._busy():
                        running.moved = self._affinity
            if not (self._affinity and self._limits.cpus_changed):  # asked before every calculation
                return
            with self._lock:
                busy = self._busy()
            allowed = self._book.limits.cpus
            for run, worker, running in busy:
                seat = running.seat
                if seat.instead is not None and seat.lease.cpus <= allowed:
                    self._move(run, worker, running, None)
                elif seat.current.cpus.isdisjoint(allowed):
                    self._move_away(run, worker, running)

    def _busy(self) -> list[tuple[_Run, Worker, _Running]]:
        """With the lock: what runs, of all runs."""
        return [(run, worker, running) for run in self._runs for worker, running in run.busy.items()]

    def _move_away(self, run: _Run, worker: Worker, running: _Running) -> None:
        """Have it go on where others may not start; where nothing is free the system has it share what others have."""
        label, gone = running.job.calculation.label, f"CPUs {running.seat.current.cpus} may be used no longer"
        try:
            other = self._book.acquire_instead(running.seat.lease, exclusive_cores=self._exclusive(running.job))
        except LeaseError:  # the book is shut: the next look may be luckier
            return
        if other is None:
            self._note(run, label, f"{gone}: until others are free, {label} shares those of other calculations")
        elif self._move(run, worker, running, other):
            self._note(run, label, f"{gone}: {label} goes on on CPUs {other.cpus}")
        else:
            other.release()

    def _move(self, run: _Run, worker: Worker, running: _Running, instead: Lease | None) -> bool:
        """Have it be bound to the PUs of ``instead``, or of its lease again, soon; not where it has ended meanwhile."""
        with self._lock:
            if run.busy.get(worker) is not running:
                return False
            running.seat.move(instead)
            running.moved = True
            worker.hold(*running.seat.leases)
            return True

    def _bind_moved(self, run: _Run) -> None:
        """Bind what is to be on other PUs by now. In nobody's turn: on a large node it takes seconds to find it all."""
        with self._lock:
            moved = [one for one in self._busy() if one[2].moved]
        for its_run, worker, running in moved:
            if run.stopped.is_set():
                return
            with contextlib.suppress(BindingError):  # where the system refuses, it runs where that has it run
                self._bind_again(its_run, worker, running)
            with self._lock:
                if its_run.busy.get(worker) is running and not running.moved:
                    running.seat.leave()
                    worker.hold(*running.seat.leases)

    def _bind_again(self, run: _Run, worker: Worker, running: _Running) -> None:
        """And all that it has started, as long as it runs and is not to be elsewhere again."""
        known: set[int] = set()
        while new := worker.processes() - known:  # what they start is where they are
            with self._lock:
                if run.busy.get(worker) is not running or (known and running.moved):
                    return
                running.moved = False
                worker.bind_again(running.seat.current.cpus, new)
            known |= new

    def _abandon(self, run: _Run) -> None:
        """Whatever of the run still goes on, ends; nothing does when it came to its end."""
        run.stopped.set()
        self._book.wake()
        run.wake()
        end_all(tuple(run.busy))
        if threading.current_thread() not in run.threads:  # where the iterator may have been collected
            for thread in run.threads:
                thread.join()
        with self._lock, contextlib.suppress(ValueError):
            self._runs.remove(run)

    def _drive(self, run: _Run) -> None:
        """One driver thread: supervises one running calculation at a time."""
        try:
            while not run.stopped.is_set():
                if run.source is not None:
                    taken = self._take(run, run.source)
                    if taken is None:
                        break
                    job, lease = taken
                    lease = lease or self._lease_in_line(run, run.source, job)
                    if lease is not None:
                        self._supervise(run, job, lease)
                    continue
                try:
                    job = run.jobs.popleft()
                except IndexError:
                    break
                if run.patient:
                    self._wait_for_warm(run, job)
                self._supervise(run, self._narrowed(run, job))
        except StopRequestedError:
            pass
        except BaseException as error:  # raised where the caller iterates
            run.events.put(error)
        finally:
            run.events.put(None)

    def _take(self, run: _Run, source: Source) -> tuple[_Job, Lease | None] | None:
        """What the source says is next, with its lease; waits until it says something, ``None`` when nothing is left.

        The lease is taken before another driver asks: what is promised to one is not free for the next. Nobody waits
        for a lease meanwhile, or those could not be told of who would give it back; then it has to be waited for.
        LeaseError where what waits fits no longer, not even into an empty book.
        """
        with run.turn:
            while source.waiting and not run.stopped.is_set():
                self._follow_limits()
                warming = dict(self._warming)
                free, memory_bytes = self._book.free()
                starts = self._starts_of(warming, free)
                calculation = source.next(free, memory_bytes, starts)
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
                    return job, None if blocked else self._lease_at_once(run, job)
                run.wait_for_turn()
            run.turn.notify_all()
        return None

    def _starts_of(self, warming: Mapping[Lease, _Key], free: CpuSet) -> Starts:
        cpus = CpuSet(cpu for lease in warming for cpu in lease.cpus)
        return Starts(len(cpus - free), Counter(key[0] for key in warming.values()), dict(self._took_s))

    def _fits_no_longer(self, source: Source) -> str:
        return (
            f"{format_count(source.waiting, 'calculation')} can no longer run here: each asks for more than there is "
            f"now, when {self._book.explain()}, and {format_size(self._book.memory_bytes)} of memory; run the rest "
            "where there is more, or with less memory each"
        )

    def _lease_at_once(self, run: _Run, job: _Job) -> Lease | None:
        try:
            return self._lease(run, job, wait=False)
        except LeaseError:  # somebody was faster
            return None

    def _lease_in_line(self, run: _Run, source: Source, job: _Job) -> Lease | None:
        """The lease that ``job`` waits for; ``None`` where it fits no longer, and the source has it back."""
        try:
            return self._lease(run, job)
        except LeaseTooLargeError:
            with run.turn:
                source.returned(job.calculation)
            return None

    def _narrowed(self, run: _Run, job: _Job) -> _Job:
        """``job``, or what the observer has run instead."""
        calculation, said = self._observer.instead_of(job.calculation)
        if calculation is job.calculation:
            return job
        self._note(run, calculation.label, said, f"narrowed {calculation.program} {job.calculation.threads}")
        return self._prepared(calculation, run.prepared)

    def _lease(self, run: _Run, job: _Job, *, wait: bool = True) -> Lease:
        calculation, label = job.calculation, job.calculation.label
        near = next((worker.bound for key, worker in tuple(self._idle) if key == job.key), None)

        def on_wait(held_by: str) -> None:
            self._note(run, label, f"waits for what is held by {held_by}", "waits")

        return self._book.acquire(
            job.settings.threads,
            calculation.memory_bytes,
            job.gpus,
            wait=wait,
            near=near,
            exclusive_cores=self._exclusive(job),
            slots=self._slots(job),
            cancel=run.stopped,
            on_wait=on_wait,
        )

    def _exclusive(self, job: _Job) -> bool:
        return not self._book.smt or job.settings.ranks > 1  # which spin while they wait

    def _supervise(self, run: _Run, job: _Job, lease: Lease | None = None) -> None:
        """``job``, and what follows it under the same lease."""
        with lease or self._lease(run, job) as held, contextlib.closing(_Seat(held)) as seat:
            place = _Place(seat, self._on_cores_of(held, job), time.monotonic() + _TURN_S)
            self._tell_start(run, place)
            outcome = self._attempt(run, place)
            while outcome.status != "finished" and place.attempt <= self._retries:
                run.events.put(Progress(event="retried", label=outcome.label, message=outcome.error or ""))
                place.attempt += 1
                outcome = self._attempt(run, place)
            if run.source is not None:
                with run.turn:
                    seat.close()
                    held.release()
                    run.source.ended(outcome)
        run.events.put(outcome)

    def _tell_start(self, run: _Run, place: _Place) -> None:
        label, seat = place.job.calculation.label, place.seat
        run.events.put(Progress(event="started", label=label, message=f"CPUs {seat.current.cpus}"))
        for note in place.job.settings.notes:
            self._note(run, label, note)
        for note in seat.lease.notes:
            self._note(run, label, note, "avoided")

    def _on_cores_of(self, lease: Lease, job: _Job) -> _Job:
        """``job`` with no more MPI ranks than the lease has cores."""
        cores = len(usable_cpus(self._book.machine, lease.cpus))
        if job.settings.ranks <= cores:
            return job
        job = replace(job, cores=cores)
        settings = job.settings_in(None)
        notes = (*job.settings.notes, *settings.notes)
        return replace(job, settings=replace(settings, notes=notes), key=_key_of(job.calculation, settings))

    def _slots(self, job: _Job) -> dict[str, int]:
        program = job.settings.program
        return {program: self._at_most[program]} if program in self._at_most else {}

    def _attempt(self, run: _Run, place: _Place) -> Outcome:
        """What becomes of the calculation in ``place``, or of the last that follows it there."""
        place.began_at = time.time()
        worker: Worker | None = None
        try:
            try:
                worker = self._worker(run, place.job, place.seat, fresh=place.attempt > 1)
                self._begin(run, place, worker)
                reply = self._reply(run, place, worker)
            except (WorkerEndedError, UnmadeInputError) as error:
                status, why = ("stopped", "stopped while it ran") if run.stopped.is_set() else ("failed", str(error))
                reply = {"status": status, "result": None, "error": why, "started_at": place.began_at}
                reply |= {"wall_s": time.time() - place.began_at, "cpu_s": 0.0, "peak_memory_bytes": 0}
            outcome = _outcome(place, worker, reply)
            self._observer.ends(place.job.calculation, outcome)
            if outcome.status == "stopped":
                raise StopRequestedError(outcome.error)
            return outcome
        finally:
            if worker is not None:
                self._put_back(run, place.job, worker)
                self._wait_for_remains(run, place.job, worker)
                place.seat.leave()

    def _begin(self, run: _Run, place: _Place, worker: Worker) -> None:
        job, calculation = place.job, place.job.calculation
        for kind, note in worker.notes.items():
            self._note(run, calculation.label, note, kind)
        self._get_ready(worker, job, calculation.timeout_s)
        self._observer.begins(calculation, worker, place.seat.current)
        worker.send(job.request(scratch_of(worker.folder)), calculation.timeout_s)

    def _reply(self, run: _Run, place: _Place, worker: Worker) -> dict[str, Any]:
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

    def _send_following(self, run: _Run, place: _Place, worker: Worker) -> _Job | None:
        """What the source has follow in ``place``; it begins without us."""
        left_s = place.until_s - time.monotonic()
        if run.source is None or place.attempt > 1 or left_s <= 0 or run.stopped.is_set():
            return None
        with run.turn:
            calculation = run.source.following(place.job.calculation, left_s)
        if calculation is None:
            return None
        try:
            job = self._on_cores_of(place.seat.lease, self._prepared(calculation, run.prepared))
        except LeaseError:  # there is less by now
            self._return(run, calculation)
            return None
        if job.fits_after(place.job) and self._observer.instead_of(calculation)[0] is calculation:
            with contextlib.suppress(UnmadeInputError):  # which it says again when its turn comes
                worker.send(job.request(scratch_of(worker.folder)), calculation.timeout_s)
                return job
        self._return(run, calculation)
        return None

    def _return(self, run: _Run, calculation: Calculation) -> None:
        assert run.source is not None
        with run.turn:
            run.source.returned(calculation)

    def _follow(self, run: _Run, place: _Place, worker: Worker, job: _Job, reply: Mapping[str, Any]) -> None:
        """``reply`` was the last to what ran in ``place`` until now, where ``job`` runs by now."""
        outcome = _outcome(place, worker, reply)
        self._observer.ends(place.job.calculation, outcome)
        place.job, place.began_at, place.waited = job, time.time(), False
        run.busy[worker].job = job
        self._observer.begins(job.calculation, worker, place.seat.current)
        assert run.source is not None
        with run.turn:
            run.source.ended(outcome)
        run.events.put(outcome)
        self._tell_start(run, place)

    def _get_ready(self, worker: Worker, job: _Job, timeout_s: float | None) -> None:
        starts = worker.start is None
        worker.get_ready(job.warming(), timeout_s)
        if starts and worker.start is not None:
            self._took_s[job.key[0]] = worker.start.wall_s

    def _wait_for_remains(self, run: _Run, job: _Job, worker: Worker) -> None:
        """The lease goes on as long as something runs under it; what could not be ended is waited for."""
        if worker.healthy:
            return
        while (remains := worker.remains()) and not run.stopped.wait(_LOOK_AGAIN_S):
            said = f"the CPUs {job.calculation.label} had are not given to others: {', '.join(remains)} cannot be ended"
            self._note(run, job.calculation.label, said)
            worker.end_tree()

    def _worker(self, run: _Run, job: _Job, seat: _Seat, *, fresh: bool) -> Worker:
        """A worker for ``job`` in ``seat``: an idle one, of those on the same PUs first, or a new one."""
        cpus, nodes, changes = seat.current.cpus, self._memory_nodes(seat.current), self._changes
        worker = None if fresh else self._take_idle(job.key, cpus, nodes, seat.lease.gpus)
        if worker is not None:
            try:
                worker.hold(*seat.leases)
                worker.rebind(cpus)
                worker.threads = job.settings.threads
            except BindingError:
                worker.end()
                worker = None
        if worker is None:
            self._make_room(run, job.settings.threads)
            worker = self._start(run, job, seat)
        with self._lock:
            run.busy[worker] = _Running(job, seat, moved=self._affinity and self._changes != changes)
        if run.stopped.is_set():  # whoever stopped us may have looked at the busy ones before this was one
            del run.busy[worker]
            worker.end()
            raise StopRequestedError("stopped while its worker started")
        return worker

    def _start(self, run: _Run, job: _Job, seat: _Seat) -> Worker:
        """A new worker. MachineError where no worker has ever been ready, and of those that start now none will be."""
        try:
            return self._try_twice(run, job, seat)
        except NoGreetingError as error:
            with self._starts:
                self._starts.wait_for(lambda: self._passed or not self._starting)
            if self._passed or run.stopped.is_set():
                raise
            # It would keep every calculation from starting; later on, it is one that failed.
            raise MachineError(f"no worker starts behind the setup or wrapper that was given: {error}") from None

    def _try_twice(self, run: _Run, job: _Job, seat: _Seat) -> Worker:
        """One that ends before it is ready is started once more: a module that was not there may be a moment later."""
        with self._starts:
            self._starting += 1
        try:
            try:
                worker = self._new_worker(job, seat)
            except NoGreetingError:
                if run.stopped.is_set():
                    raise
                worker = self._new_worker(job, seat)
            self._passed = True
            return worker
        finally:
            with self._starts:
                self._starting -= 1
                self._starts.notify_all()

    def _new_worker(self, job: _Job, seat: _Seat) -> Worker:
        folder = self._next_folder()
        bound = seat.current.cpus if self._affinity else None
        settings = job.settings_in(scratch_of(folder))
        if _serves_every_width(job.calculation):
            # Read once: it must let what later computes in the worker be wider. Its harness sets the threads of each.
            most = {"OMP_THREAD_LIMIT": str(len(self._book.machine.cpus_online))}
            settings = replace(settings, environment={**settings.environment, **most})
        worker = Worker(settings, folder, bound, self._memory_nodes(seat.current), seat.lease, self._wrapping)
        try:
            if seat.instead is not None:
                worker.hold(*seat.leases)
            self._observer.starts(worker)
        except BaseException:
            worker.end()
            raise
        return worker

    def _memory_nodes(self, lease: Lease) -> NodeSet | None:
        """The nodes to prefer for ``lease``; ``None`` where there is no choice to make."""
        machine = self._book.machine
        usable = NodeSet(node.node_id for node in machine.numa_nodes if node.memory_bytes) & machine.allowed_mems
        nodes = lease.nodes & usable
        return nodes if self._place_memory and nodes and nodes != usable else None

    def _take_idle(self, key: _Key, cpus: CpuSet, nodes: NodeSet | None, gpus: tuple[int, ...]) -> Worker | None:
        """One that takes its memory from ``nodes``: what it holds there already would be far from other PUs.

        And one that sees ``gpus``: it has been shown them when it started, and may have opened them.
        """
        with self._lock:
            fitting = [
                entry
                for entry in self._idle
                if entry[0] == key and entry[1].nodes == nodes and entry[1].gpus == gpus and entry[1].healthy
            ]
            if not fitting:
                return None
            entry = min(fitting, key=lambda entry: entry[1].bound != cpus)
            self._idle.remove(entry)
            return entry[1]

    def _make_room(self, run: _Run, threads: int) -> None:
        """Idle workers of other kinds hold memory: the oldest go before all have more threads than there are PUs.

        Of a source two kinds may stay, as one width follows another. A run is no measure: one that asks the program
        something has a single calculation, and the workers that are warm are for those that follow.
        """
        leaving: list[Worker] = []
        with self._lock:
            busy = (worker for one in {run, *self._runs} for worker in tuple(one.busy))
            there = (*(worker for _, worker in self._idle), *busy)
            most = len(self._book.usable) * (1 if run.source is None else 2)
            surplus = sum(worker.threads for worker in there) + threads - most
            while surplus > 0 and self._idle:
                leaving.append(self._idle.pop(0)[1])
                surplus -= leaving[-1].threads
        end_all(leaving)

    def _put_back(self, run: _Run, job: _Job, worker: Worker) -> None:
        with self._lock:
            if run.busy.pop(worker).moved:
                worker.forget_binding()
            reusable = worker.healthy and not run.stopped.is_set()
            if reusable:
                self._idle.append((job.key, worker))
        if not reusable:
            worker.end()

    def _next_folder(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = _make_folder(self._scratch)
            self._started += 1
            return self._folder / f"w{self._started}"

    def _note(self, run: _Run, label: str, note: str, kind: str = "") -> None:
        """Each kind of thing is said once in a run, however many calculations it is true of."""
        with self._lock:
            new = (kind or note) not in run.said
            run.said.add(kind or note)
        if new:
            run.events.put(Progress(event="note", label=label, message=note, kind=kind))


class UnmadeInputError(Exception):
    """What was to make a calculation's input has failed; the other calculations go on."""


@dataclass(slots=True, eq=False)
class _Run:
    """One call of :meth:`LocalEngine.run`. A driver that ends puts ``None`` among the events."""

    jobs: deque[_Job]
    width: int
    """How many drivers there are, or have been."""
    patient: bool = False
    """It waits for a worker that is starting, rather than start another."""
    source: Source | None = None
    """What says what is next; ``None``: ``jobs``, in order."""
    turn: threading.Condition = field(default_factory=threading.Condition)
    """One driver at a time asks the source."""
    looks: bool = False
    """One of those that wait for the source looks every second what others have given back, and at the limits."""
    prepared: dict[_Key, _Job] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    events: queue.SimpleQueue[Progress | Outcome | BaseException | None] = field(default_factory=queue.SimpleQueue)
    busy: dict[Worker, _Running] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    """Kinds of notes, or notes without one."""
    threads: list[threading.Thread] = field(default_factory=list)

    def wait_for_turn(self) -> None:
        """With the turn: until another driver has started something, or for a second."""
        mine, self.looks = not self.looks, True
        self.turn.wait(_LOOK_AGAIN_S if mine else None)
        if mine:
            self.looks = False

    def wake(self) -> None:
        """Let drivers that wait for the source see that the run has been stopped."""
        with self.turn:
            self.turn.notify_all()


@dataclass(slots=True)
class _Place:
    """Where one calculation after another runs under one lease."""

    seat: _Seat
    job: _Job
    """What runs there."""
    until_s: float
    """By the monotonic clock: when nothing more is to follow."""
    attempt: int = 1
    began_at: float = 0.0
    waited: bool = True
    """It is the one that the lease was asked for."""


@dataclass(slots=True, eq=False)
class _Running:
    """What a busy worker computes, and on what."""

    job: _Job
    seat: _Seat
    moved: bool = False
    """It is to be bound again."""


@dataclass(slots=True, eq=False)
class _Seat:
    """What something runs under: a lease and, while the PUs of that may not be used, others."""

    lease: Lease
    instead: Lease | None = None
    left: list[Lease] = field(default_factory=list)
    """Where it may still run, until it has been bound again."""

    @property
    def current(self) -> Lease:
        """The one whose PUs it is to run on."""
        return self.instead or self.lease

    @property
    def leases(self) -> tuple[Lease, ...]:
        return self.lease, *self.left, *([] if self.instead is None else [self.instead])

    def move(self, instead: Lease | None) -> None:
        self.left += [] if self.instead is None else [self.instead]
        self.instead = instead

    def leave(self) -> None:
        """Give back what it runs on no longer."""
        while self.left:
            self.left.pop().release()

    def close(self) -> None:
        """Give back all but the lease."""
        self.move(None)
        self.leave()


@dataclass(frozen=True, slots=True)
class _Job:
    """A calculation with what its program needs; workers with the same ``key`` can compute it."""

    calculation: Calculation
    settings: Settings
    gpus: int
    key: _Key
    cores: int | None = None
    """Where it runs on fewer than it has ranks otherwise."""

    def settings_in(self, scratch: Path | None) -> Settings:
        """The settings for a worker that keeps its temporary files in ``scratch``."""
        spec, given = registry.get(self.calculation.program), self.calculation
        folder = None if scratch is None else str(scratch)
        return settings_for(spec, given.threads, given.told_bytes, folder, cores=self.cores)

    def fits_after(self, other: _Job) -> bool:
        """Whether it can have the lease and the worker of ``other`` as they are."""
        mine, given = self.calculation, other.calculation
        same = (mine.program, mine.threads, mine.memory_bytes) == (given.program, given.threads, given.memory_bytes)
        return same and (self.key, self.gpus) == (other.key, other.gpus)

    def warming(self) -> dict[str, Any]:
        """What a worker is sent that is to be ready for the first calculation."""
        preload = registry.get(self.calculation.program).preload
        return {
            "preload": preload if self.calculation.compute is None else (),
            "compute": self.calculation.compute,
            "program": self.settings.program,
            "harness_module": self.settings.harness_module,
        }

    def request(self, scratch: Path) -> dict[str, Any]:
        """What the worker is sent. UnmadeInputError where the caller's way to make the input fails."""
        settings, given = self.settings, self.calculation.input
        try:
            made = given() if callable(given) else given
        except Exception as error:
            raise UnmadeInputError(f"its input could not be made: {type(error).__name__}: {error}") from error
        return {
            "name": short_label(self.calculation.label),
            "input": made,
            "compute": self.calculation.compute,
            "program": settings.program,
            "harness_module": settings.harness_module,
            "task_config": {**settings.task_config, "scratch_directory": str(scratch), **self.calculation.task_config},
            "environment": self._environment(scratch),
        }

    def _environment(self, scratch: Path) -> dict[str, str]:
        """What a program that is started anew finds in its environment; what computes in the worker has read its own.

        All that depends on the width, so that nothing is left of the calculation before.
        """
        if registry.get(self.settings.program).in_process or not _serves_every_width(self.calculation):
            return {}
        return dict(precedence.settle(self.settings_in(scratch), os.environ, counts=False).environment)


def _serves_every_width(calculation: Calculation) -> bool:
    """Not where the caller's own function computes, which may go by the variables."""
    spec = registry.get(calculation.program)
    return spec.one_worker_kind and calculation.compute in (None, spec.check)


def _key_of(calculation: Calculation, settings: Settings) -> _Key:
    """The kind of worker first."""
    if _serves_every_width(calculation):
        return registry.get(settings.program).worker_of(settings.threads), (), settings.unset
    return (settings.program, settings.threads), tuple(sorted(settings.environment.items())), settings.unset


def _outcome(place: _Place, worker: Worker | None, reply: Mapping[str, Any]) -> Outcome:
    job, lease = place.job, place.seat.lease
    return Outcome(
        label=job.calculation.label,
        status=reply["status"],
        result=reply["result"],
        error=reply["error"],
        threads=job.settings.threads,
        cpus=place.seat.current.cpus,
        bound=worker.bound if worker else None,
        worker_pid=worker.pid if worker else 0,
        started_at=reply["started_at"],
        wall_s=reply["wall_s"],
        cpu_s=reply["cpu_s"],
        peak_memory_bytes=reply["peak_memory_bytes"],
        attempts=place.attempt,
        waited_s=lease.waited_s if place.waited else 0.0,
        waited_for=lease.waited_for if place.waited else "",
    )


def _memory_is_ours_to_place() -> bool:
    """Not where whoever started us has chosen a policy (``numactl``): workers inherit it."""
    try:
        return get_host().get_memory_policy().kind == "default"
    except BindingError:
        return True  # and the worker says what it cannot do


def _check_function(name: str) -> None:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"compute={name!r} names no function; write 'module:function'")
    if module == "__main__":
        raise InputError(
            f"compute={name!r} is in the script itself, which a worker must not run again; put it in a module beside it"
        )


def _make_folder(scratch: Path | None) -> Path:
    try:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="qcthreads-", dir=scratch)).absolute()
    except OSError as error:
        raise MachineError(
            f"no scratch directory can be made in {scratch or tempfile.gettempdir()}: {error}"
        ) from error
