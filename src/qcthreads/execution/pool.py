"""The worker processes of an engine: starts them, keeps them for what they can compute next, and ends them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError, MachineError, StopRequestedError
from ..host import get_host
from ..leases import Lease, LeaseBook
from ..programs.spec import WorkerKind
from .job import Job, Key, serves_every_width
from .observing import Observer
from .running import Run, Running, Seat
from .source import InOrder, Starts
from .supervisor import NoGreetingError, Worker, WorkerEndedError, end_all, scratch_of
from .wrapping import Wrapping


class WorkerPool:
    """Workers of all the runs of an engine, which gives the parameters."""

    def __init__(
        self, book: LeaseBook, *, affinity: bool, scratch: Path | None, wrapping: Wrapping, observer: Observer
    ) -> None:
        self._book = book
        self._affinity = affinity
        self._place_memory = affinity and _memory_is_ours_to_place()
        self._scratch = scratch
        self._wrapping = wrapping
        self._observer = observer
        self._passed = not wrapping  # whether a worker has started behind it
        self._starts = threading.Condition()
        self._starting = 0
        self.lock = threading.Lock()  # of what follows, and of what the workers of all runs compute
        self._runs: list[Run] = []
        self._idle: list[tuple[Key, Worker]] = []
        self._changes = 0
        self._folder: Path | None = None
        self._started = 0
        self._warming: dict[Lease, Key] = {}
        self._took_s: dict[WorkerKind, float] = {}

    def add(self, run: Run) -> None:
        """One whose workers are to end with the others."""
        with self.lock:
            self._runs.append(run)

    def remove(self, run: Run) -> None:
        """One of which nothing goes on."""
        with self.lock, contextlib.suppress(ValueError):
            self._runs.remove(run)

    def runs(self) -> tuple[Run, ...]:
        """Those that were added and not removed."""
        with self.lock:
            return tuple(self._runs)

    def busy(self) -> list[tuple[Run, Worker, Running]]:
        """With the lock: what runs, of all runs."""
        return [(run, worker, running) for run in self._runs for worker, running in run.busy.items()]

    def forget_bindings(self) -> None:
        """The system may have bound all of them to something else."""
        with self.lock:
            self._changes += 1
            for _, worker in self._idle:
                worker.forget_binding()
            for _, _, running in self.busy():
                running.moved = self._affinity

    def kinds(self) -> Mapping[WorkerKind, int]:
        """How many of each kind wait for a calculation, or will as soon as they are ready."""
        with self.lock:
            return Counter(key[0] for key in (*(key for key, _ in self._idle), *self._warming.values()))

    def near(self, job: Job) -> CpuSet | None:
        """Where an idle worker that can compute ``job`` is bound."""
        return next((worker.bound for key, worker in tuple(self._idle) if key == job.key), None)

    def warm(self, job: Job, workers: int) -> None:
        """Start so many for calculations like ``job``; returns at once."""
        run = Run(workers, InOrder([], self._book))
        self.add(run)
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

    def warming(self) -> Mapping[Lease, Key]:
        """What gets ready by now, by the lease that each holds until it is."""
        return dict(self._warming)

    def starts_of(self, run: Run, warming: Mapping[Lease, Key], free: CpuSet) -> Starts:
        """What ``warming`` workers will leave for ``run``, where so much is ``free``."""
        if not warming:
            return Starts(took_s=dict(self._took_s))
        cpus = CpuSet(cpu for lease in warming for cpu in lease.cpus)
        with self.lock:
            ready = Counter([key[0] for key, _ in self._idle] + [one.job.key[0] for one in run.busy.values()])
        return Starts(len(cpus - free), Counter(key[0] for key in warming.values()), ready, dict(self._took_s))

    def get(self, run: Run, job: Job, seat: Seat, *, fresh: bool) -> Worker:
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
        with self.lock:
            run.busy[worker] = Running(job, seat, moved=self._affinity and self._changes != changes)
        if run.stopped.is_set():  # whoever stopped us may have looked at the busy ones before this was one
            del run.busy[worker]
            worker.end()
            raise StopRequestedError("stopped while its worker started")
        return worker

    def get_ready(self, worker: Worker, job: Job, timeout_s: float | None) -> None:
        """Have it ready for the first calculation, and know what that takes."""
        starts = worker.start is None
        worker.get_ready(job.warming(), timeout_s)
        if starts and worker.start is not None:
            self._took_s[job.key[0]] = worker.start.wall_s

    def put_back(self, run: Run, job: Job, worker: Worker) -> None:
        """It computes nothing: the next may have it, as long as it is healthy."""
        with self.lock:
            if run.busy.pop(worker).moved:
                worker.forget_binding()
            reusable = worker.healthy and not run.stopped.is_set()
            if reusable:
                self._idle.append((job.key, worker))
        if not reusable:
            worker.end()

    def stop(self) -> None:
        """End every worker and everything below it, and what waits for one; remove temporary files."""
        with self.lock:
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
        with self.lock:
            folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _warm(self, run: Run, job: Job, lease: Lease) -> None:
        try:
            with (
                lease,
                contextlib.closing(Seat(lease)) as seat,
                contextlib.suppress(StopRequestedError, WorkerEndedError, MachineError),
            ):
                if run.stopped.is_set():
                    return
                worker = self.get(run, job, seat, fresh=True)
                try:
                    self.get_ready(worker, job, None)
                finally:
                    self.put_back(run, job, worker)
        finally:
            self._cool(lease)
            for one in self.runs():
                one.wake()

    def _cool(self, lease: Lease) -> None:
        """No worker gets ready on it any more, if one ever did."""
        lease.release()
        self._warming.pop(lease, None)

    def _start(self, run: Run, job: Job, seat: Seat) -> Worker:
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

    def _try_twice(self, run: Run, job: Job, seat: Seat) -> Worker:
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

    def _new_worker(self, job: Job, seat: Seat) -> Worker:
        folder = self._next_folder()
        bound = seat.current.cpus if self._affinity else None
        settings = job.settings_in(scratch_of(folder))
        if serves_every_width(job.calculation):
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

    def _take_idle(self, key: Key, cpus: CpuSet, nodes: NodeSet | None, gpus: tuple[int, ...]) -> Worker | None:
        """One that takes its memory from ``nodes``: what it holds there already would be far from other PUs.

        And one that sees ``gpus``: it has been shown them when it started, and may have opened them.
        """
        with self.lock:
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

    def _make_room(self, run: Run, threads: int) -> None:
        """Idle workers of other kinds hold memory: the oldest go before all have more threads than twice the PUs.

        Two kinds may stay, as one width follows another. A run is no measure: one that asks the program something has
        a single calculation, and the workers that are warm are for those that follow.
        """
        leaving: list[Worker] = []
        with self.lock:
            busy = (worker for one in {run, *self._runs} for worker in tuple(one.busy))
            there = (*(worker for _, worker in self._idle), *busy)
            surplus = sum(worker.threads for worker in there) + threads - 2 * len(self._book.usable)
            while surplus > 0 and self._idle:
                leaving.append(self._idle.pop(0)[1])
                surplus -= leaving[-1].threads
        end_all(leaving)

    def _next_folder(self) -> Path:
        with self.lock:
            if self._folder is None:
                self._folder = _make_folder(self._scratch)
            self._started += 1
            return self._folder / f"w{self._started}"


def _memory_is_ours_to_place() -> bool:
    """Not where whoever started us has chosen a policy (``numactl``): workers inherit it."""
    try:
        return get_host().get_memory_policy().kind == "default"
    except BindingError:
        return True  # and the worker says what it cannot do


def _make_folder(scratch: Path | None) -> Path:
    try:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="qcthreads-", dir=scratch)).absolute()
    except OSError as error:
        raise MachineError(
            f"no scratch directory can be made in {scratch or tempfile.gettempdir()}: {error}"
        ) from error
