"""The facade for executors that start their own workers: configure, lease, bind, watch; starts no process itself.

Every method may be called from many threads at once.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .closing import Closing
from .cpuset import CpuSet
from .errors import (
    BindingError,
    BindingNotEnforcedError,
    BindingNotPermittedError,
    BindingNotSupportedError,
    CpusOutsideLimitsError,
    CpusTakenError,
    InputError,
    OversubscriptionError,
    ProcessGoneError,
    UnknownWorkerError,
)
from .host import get_host, processes, trees
from .host.interface import Binding
from .host.trees import Process
from .leases import Lease, LeaseBook, process_book
from .leases.place import LEASE_VARIABLE
from .leases.strays import live_under
from .monitoring.statistics import Grant, ThreadUsageStats
from .planning.split import oversubscription
from .programs.registry import get
from .programs.settings import settings_for
from .units import format_split

if TYPE_CHECKING:
    from .leases.hold import Hold
    from .monitoring.bandwidth import BandwidthWatch
    from .monitoring.watch import Watch

_log = logging.getLogger("qcthreads.manager")

_SETTLE_S = 0.2  # who is about to end has left nothing behind
_LOOK_AGAIN_S = 0.1


@dataclass
class QCThreadConfig:
    """QC program-specific thread configuration: only settings that really work.

    ``environment_variables`` belong into the environment of the worker before it starts, never into that of the caller;
    the one of them that is no runtime's, ``QCTHREADS_LEASE``, is how others know what outlives this process.
    ``qcengine_task_config`` goes into ``qcengine.compute(..., task_config=...)``.
    """

    program_name: str
    threads_per_calculation: int
    environment_variables: dict[str, str]
    qcengine_task_config: dict[str, Any]


@dataclass
class ThreadAllocation:
    """Thread allocation plan for hybrid execution; its CPUs are leased as long as this object lives, or until released.

    ``cpu_affinity_map``: by worker, the logical CPUs that nobody else has.
    """

    fragment_workers: int
    qc_threads_per_worker: int
    total_threads_used: int
    cpu_affinity_map: dict[int, list[int]]


class Ceilings(Protocol):
    """What the manager reads of a :class:`qcthreads.HybridParallelConfig`."""

    @property
    def max_workers(self) -> int:
        """Workers at the same time, in all allocations."""

    @property
    def memory_limit_mb(self) -> int:
        """Memory of one worker, 10^6 bytes."""

    @property
    def enable_thread_affinity(self) -> bool:
        """Whether a worker is bound to its lease when it is attached."""

    @property
    def max_total_threads(self) -> int | None:
        """Threads at the same time, in all allocations."""


@dataclass(slots=True)
class _Worker:
    """A worker of a live allocation; changed under the manager's lock only."""

    worker_id: int
    threads: int
    leases: list[Lease]
    mask: CpuSet | None = None
    """What it is to be bound to; ``None``: nothing."""
    pid: int | None = None
    process: Process | None = None
    bound_to: CpuSet | None = None
    """What its process was bound to, read back."""
    watch: Watch | None = None

    @property
    def cpus(self) -> CpuSet:
        bits = 0
        for lease in self.leases:
            bits |= lease.cpus.bits
        return CpuSet.from_bits(bits)


@dataclass(slots=True)
class _State:
    """What is live."""

    workers: dict[int, _Worker] = field(default_factory=dict)
    allocations: dict[int, tuple[list[int], weakref.finalize[[int], ThreadAllocation]]] = field(default_factory=dict)
    """Workers and release of each, by its first worker."""
    ended: deque[int] = field(default_factory=deque)
    """Allocations that were released or collected, to be given back."""
    bandwidth: BandwidthWatch | None = None
    said: set[str] = field(default_factory=set)
    """Kinds of things that the log has."""


class QCThreadManager(Closing):
    """Configures programs, leases CPUs to workers, binds them and watches them.

    Parameters
    ----------
    config
        Ceilings and whether to bind; ``None``: no ceilings, and no binding but the one asked for.
    book
        The leases to take part in; ``None``: those of this process, over everything that it may use.
    strays
        What becomes of attached workers that still run when their allocation is over, of what they started, and of
        what has :meth:`worker_environment`: ``wait`` for their end, or ``end`` them. Their CPUs are nobody else's
        before; the log names them.
    gpus_per_worker
        GPUs that each worker of an allocation leases; it sees them where it has :meth:`worker_environment`.
    """

    def __init__(
        self,
        config: Ceilings | None = None,
        *,
        book: LeaseBook | None = None,
        strays: Literal["wait", "end"] = "wait",
        gpus_per_worker: int = 0,
    ) -> None:
        if strays not in ("wait", "end"):
            raise InputError(f"strays={strays!r}: what is left running is waited for, 'wait', or ended, 'end'")
        self._config = config
        self._book = book
        self._strays = strays
        self._gpus_per_worker = gpus_per_worker
        self._lock = threading.Lock()
        self._state = _State()

    @property
    def book(self) -> LeaseBook:
        """The leases that this manager takes part in."""
        return self._book or process_book()

    def configure_qc_threads(self, qc_program: str, threads_per_calc: int, total_workers: int) -> QCThreadConfig:
        """Configure QC program threading parameters.

        A program that does not thread gets one thread, whatever was asked. A program that nothing is known about gets
        the variables of every threading runtime. Both are said in the log, once.

        Parameters
        ----------
        qc_program
            QCEngine's name of the program, in any case.
        threads_per_calc
            Threads (of an MPI program: ranks) of one calculation.
        total_workers
            Calculations at the same time; each is told this share of the memory.

        Raises
        ------
        OversubscriptionError
            When all calculations together need more CPUs than may be used.
        InputError
            For numbers that are not whole numbers of at least 1.
        MachineError
            When the program cannot work with its share of the memory.
        """
        _require_counts(threads_per_calc=threads_per_calc, total_workers=total_workers)
        memory_bytes = self.book.memory_bytes // total_workers
        if self._config is not None:
            memory_bytes = min(memory_bytes, self._config.memory_limit_mb * 10**6)
        settings = settings_for(get(qc_program), threads_per_calc, memory_bytes)
        self._require_fit(total_workers, settings.threads)
        with self._exclusive():
            for note in settings.notes:
                self._say_once(note, note)
        return QCThreadConfig(
            settings.program,
            settings.threads,
            {**settings.environment, LEASE_VARIABLE: self.book.ledger.mark},
            dict(settings.task_config),
        )

    def allocate_thread_resources(self, fragment_workers: int, qc_threads_per_worker: int) -> ThreadAllocation:
        """Allocate thread resources across workers: all of them, on CPUs that nobody else has, or none.

        With a config each worker leases its ``memory_limit_mb``, too. Workers are numbered with the lowest numbers that
        no live allocation uses. The CPUs are given back by :meth:`release`, :meth:`close`, or when the allocation is no
        longer referred to; those of attached workers that still run then, when they have ended.

        Raises
        ------
        OversubscriptionError
            When it does not fit into what may be used, what is free, or the ceilings; with the numbers.
        LeaseError
            When there can never be so much memory, or so many GPUs.
        InputError
            For numbers that are not whole numbers of at least 1.
        """
        workers, threads = fragment_workers, qc_threads_per_worker
        _require_counts(fragment_workers=workers, qc_threads_per_worker=threads)
        with self._exclusive():
            self._require_fit(workers, threads)
            self._require_room(workers, threads)
            live = self._state.workers
            memory_bytes = self._config.memory_limit_mb * 10**6 if self._config is not None else 0
            leases = self.book.acquire_split(workers, threads, memory_bytes, self._gpus_per_worker)
            unused = (number for number in itertools.count() if number not in live)
            ids = list(itertools.islice(unused, workers))
            for worker_id, lease in zip(ids, leases, strict=True):
                live[worker_id] = _Worker(worker_id, threads, [lease])
            places = {worker_id: list(lease.cpus) for worker_id, lease in zip(ids, leases, strict=True)}
            allocation = ThreadAllocation(workers, threads, workers * threads, places)
            # Keeps the manager for as long as the allocation lives.
            release = weakref.finalize(allocation, self._end, ids[0])
            release.atexit = False
            self._state.allocations[ids[0]] = (ids, release)
            return allocation

    def worker_environment(self, worker_id: int) -> dict[str, str]:
        """What belongs into the environment of worker ``worker_id`` beside its program's: its lease, and its GPUs.

        By the first, what runs under the lease is known, attached or not, and to others on the node even after the end
        of this process. Raises UnknownWorkerError when no live allocation has this worker.
        """
        with self._exclusive():
            lease = self._known(worker_id).leases[0]
            lease.hold.started = True  # soon
            return lease.environment

    def set_thread_affinity(self, worker_id: int, thread_ids: Iterable[int]) -> Binding | None:
        """Set CPU affinity for worker threads.

        Free CPUs that the worker does not have yet are leased to it. Where the operating system refuses, the run goes
        on unbound; that is said in the log, once.

        Parameters
        ----------
        worker_id
            A key of a live allocation's ``cpu_affinity_map``.
        thread_ids
            Logical CPU numbers, as in ``cpu_affinity_map``.

        Returns
        -------
        Binding or None
            What was asked for and what the operating system says it is; ``None`` when no process is attached yet: the
            binding is kept and made by :meth:`attach_worker`.

        Raises
        ------
        UnknownWorkerError
            When no live allocation has this worker.
        InputError
            When no CPU is given.
        CpusOutsideLimitsError
            For CPUs that may not be used.
        CpusTakenError
            For CPUs leased to another.
        ProcessGoneError
            When the attached process has ended.
        """
        with self._exclusive():
            worker = self._known(worker_id)
            cpus = CpuSet(thread_ids)
            if not cpus:
                raise InputError(
                    f"no CPU was given for worker {worker_id}; give some, for example its own: {worker.cpus}"
                )
            self._take(worker, cpus)
            worker.mask = cpus
            return self._bind(worker)

    def attach_worker(self, worker_id: int, pid: int) -> Binding | None:
        """Name the process that is worker ``worker_id``; it is watched from now on, with all its descendants.

        It is bound to what :meth:`set_thread_affinity` asked for, or to its lease with ``enable_thread_affinity``;
        returns the binding, or ``None`` when neither holds. It takes the place of a process attached before.

        Raises
        ------
        UnknownWorkerError
            When no live allocation has this worker.
        ProcessGoneError
            When there is no such process.
        InputError
            When the process is another worker.
        """
        with self._exclusive():
            worker = self._known(worker_id)
            from .monitoring.watch import Watch  # with numpy, which those who only lease never need

            try:
                watch = Watch(pid)
            except ProcessGoneError:
                watch = None
            if watch is None or watch.ended:
                raise ProcessGoneError(f"process {pid} was to be worker {worker_id}, but there is no such process")
            for other in self._state.workers.values():
                same = other.watch is not None and other.watch.identity == watch.identity
                if same and other is not worker:
                    raise InputError(
                        f"process {pid} was to be worker {worker_id}, but is worker {other.worker_id} already; "
                        "give every worker its own process"
                    )
            worker.pid, worker.watch, worker.bound_to = pid, watch, None
            worker.process = _process(pid)
            for lease in worker.leases:
                _runs_under(lease, worker.process)
            if worker.mask is None and self._config is not None and self._config.enable_thread_affinity:
                worker.mask = worker.cpus
            binding = self._bind(worker)
            self._watched_bandwidth().watch(pid)
            return binding

    def monitor_thread_usage(self) -> ThreadUsageStats:
        """Monitor real-time thread utilization: of every attached worker, since the previous call or its attachment."""
        with self._exclusive():
            watched = [
                (
                    worker.watch,
                    Grant(
                        worker_id=worker.worker_id,
                        threads_asked=worker.threads,
                        leased=worker.cpus,
                        bound_to=worker.bound_to,
                        memory_bytes=self._config.memory_limit_mb * 10**6 if self._config is not None else 0,
                    ),
                )
                for worker in self._state.workers.values()
                if worker.watch is not None
            ]
            bandwidth = self._watched_bandwidth()
        from .monitoring.watch import report_on

        return report_on(watched, len(self.book.usable), bandwidth.report())

    def release(self, allocation: ThreadAllocation) -> None:
        """Give back the CPUs of ``allocation``; a second call does nothing.

        Attached workers that still run are waited for, or ended, in the background (``strays``), before theirs are.
        """
        for _, release in list(self._state.allocations.values()):
            alive = release.peek()
            if alive is not None and alive[0] is allocation:
                release()

    def close(self) -> None:
        """Give back all allocations."""
        for _, release in list(self._state.allocations.values()):
            release()

    def _require_fit(self, workers: int, threads: int) -> None:
        """Whether the machine and the ceilings could ever serve it."""
        cpus, explain = len(self.book.usable), self.book.explain()
        ceiling = self._config.max_total_threads if self._config is not None else None
        if ceiling is not None and ceiling < cpus:
            cpus, explain = ceiling, f"max_total_threads allows {ceiling} of {cpus} CPUs"
        if workers * threads > cpus:
            raise oversubscription(workers, threads, cpus, explain)

    def _require_room(self, workers: int, threads: int) -> None:
        """Whether the ceilings leave room beside the live allocations."""
        if self._config is None:
            return
        live = self._state.workers.values()
        busy = sum(worker.threads for worker in live)
        total, most = self._config.max_total_threads, self._config.max_workers
        asked = f"{format_split(workers, threads)} were asked for, but"
        if total is not None and busy + workers * threads > total:
            raise OversubscriptionError(f"{asked} {busy} of max_total_threads={total} are in use; release some first")
        if len(live) + workers > most:
            there = f" and {len(live)} are there" if live else ""
            raise OversubscriptionError(f"{asked} max_workers={most}{there}; ask for fewer, or raise max_workers")

    def _known(self, worker_id: int) -> _Worker:
        worker = self._state.workers.get(worker_id)
        if worker is None:
            known = CpuSet(self._state.workers)
            there = f"the live allocations have {known}" if known else "there is no live allocation"
            raise UnknownWorkerError(f"there is no worker {worker_id}: {there}; allocate first")
        return worker

    def _take(self, worker: _Worker, cpus: CpuSet) -> None:
        """Lease those of ``cpus`` to ``worker`` that it has not; further PUs of its own cores need no lease."""
        machine, book = self.book.machine, self.book
        own = worker.cpus
        siblings = CpuSet(cpu for core in machine.cores if not core.cpus.isdisjoint(own) for cpu in core.cpus)
        outside = cpus - (book.usable | (siblings & book.limits.cpus))
        who = f"CPUs {cpus} were asked for worker {worker.worker_id}, but"
        if outside:
            raise CpusOutsideLimitsError(f"{who} {book.explain()}; leave out {outside}")
        more = (cpus & book.usable) - own
        if not more:
            return
        for other in book.held():
            if not other.cpus.isdisjoint(more) and other not in [lease.hold for lease in worker.leases]:
                raise CpusTakenError(f"{who} {other.cpus & more} are leased to {self._holder(other)}; leave them out")
        lease = book.acquire_cpus(more)
        _runs_under(lease, worker.process)
        worker.leases.append(lease)

    def _holder(self, hold: Hold) -> str:
        workers = self._state.workers.values()
        holders = (worker for worker in workers if hold in [lease.hold for lease in worker.leases])
        return next((f"worker {worker.worker_id}" for worker in holders), "somebody else")

    def _bind(self, worker: _Worker) -> Binding | None:
        """Bind the attached process and its descendants, and read back."""
        if worker.pid is None or worker.mask is None:
            return None
        host = get_host()
        got = CpuSet()
        try:
            for pid in _tree(worker.pid):
                try:
                    got |= host.set_process_affinity(worker.mask, pid).got
                except ProcessGoneError:
                    if pid == worker.pid:
                        raise
        except (BindingNotPermittedError, BindingNotSupportedError, BindingNotEnforcedError) as error:
            self._say_once("unbound", f"workers run unbound where the operating system refuses to bind them: {error}")
            worker.bound_to = None
            return Binding(worker.mask, _mask_now(worker.pid))
        binding = Binding(worker.mask, got)
        if binding.lost:
            self._say_once(
                f"lost {binding.lost}",
                f"worker {worker.worker_id} was bound to {worker.mask}, but the kernel dropped {binding.lost}",
            )
        worker.bound_to = got
        return binding

    def _watched_bandwidth(self) -> BandwidthWatch:
        """Of memory, by all workers together; from the first of them on."""
        if self._state.bandwidth is None:
            from .monitoring.bandwidth import BandwidthWatch

            self._state.bandwidth = BandwidthWatch()
        return self._state.bandwidth

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Nobody else reads or changes the state, and it holds only what lives."""
        try:
            with self._lock:
                self._give_back_ended()
                yield
        finally:
            self._settle()

    def _end(self, first_worker: int) -> None:
        """The end of an allocation; also called when it is collected: in any thread, even while that has the lock."""
        self._state.ended.append(first_worker)
        self._settle()

    def _settle(self) -> None:
        """Give back what has ended; who has the lock now, does it on leaving."""
        while self._state.ended and self._lock.acquire(blocking=False):
            try:
                self._give_back_ended()
            finally:
                self._lock.release()

    def _give_back_ended(self) -> None:
        while self._state.ended:
            ids, _ = self._state.allocations.pop(self._state.ended.popleft())
            for worker_id in ids:
                worker = self._state.workers.pop(worker_id)
                if any(lease.in_use() for lease in worker.leases):
                    with contextlib.suppress(RuntimeError):  # the interpreter ends: others look for what is left
                        # Not threading's: this may run in a finalizer, where its locks may be held.
                        _thread.start_new_thread(_outlast, (worker, self._strays))
                        continue
                for lease in worker.leases:
                    lease.release()

    def _say_once(self, kind: str, message: str) -> None:
        if kind not in self._state.said:
            self._state.said.add(kind)
            _log.warning(message)


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"{name} is {count!r}; it must be a whole number of at least 1")


def _process(pid: int) -> Process:
    process = Process.of(pid)
    if not process.lives():
        raise ProcessGoneError(f"process {pid} was to be a worker, but it has ended")
    return process


class _Attached:
    """Of a process that somebody else has started, what a lease asks of its children."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def poll(self) -> int | None:
        """As ``subprocess.Popen``'s; 0 for every end."""
        return None if self._process.lives() else 0


def _runs_under(lease: Lease, process: Process | None) -> None:
    if process is not None:
        lease.hold.started = True
        lease.hold.children.append(_Attached(process))  # type: ignore[arg-type]  # all it is asked is poll()


def _outlast(worker: _Worker, strays: Literal["wait", "end"]) -> None:
    """Give back what ``worker`` has when nothing runs under it any more."""
    told_at = time.monotonic() + _SETTLE_S
    told = False
    while any(lease.in_use() for lease in worker.leases):
        if not told and time.monotonic() >= told_at:
            told = True
            _tell_of(worker, strays)
        time.sleep(_LOOK_AGAIN_S if told else _SETTLE_S / 10)
    for lease in worker.leases:
        lease.release()


def _tell_of(worker: _Worker, strays: Literal["wait", "end"]) -> None:
    """Name what still runs under ``worker``; and end it, where that is the policy."""
    _log.warning(
        "worker %d still runs after its allocation (%s) on CPUs %s: %s",
        worker.worker_id,
        ", ".join(f"process {pid}, {processes.name(pid)}" for pid in sorted(_left(worker))),
        worker.cpus,
        "they are ended" if strays == "end" else "these are given to nobody before their end",
    )
    if strays == "end":
        trees.end(partial(_left, worker))


def _left(worker: _Worker) -> set[int]:
    """What still runs under ``worker``."""
    found = {pid for lease in worker.leases for pid in live_under(lease.mark)}
    found |= {worker.process.pid} if worker.process is not None and worker.process.lives() else set()
    return found.union(*map(processes.descendants, found))


def _tree(pid: int) -> list[int]:
    if not processes.lives(pid):
        raise ProcessGoneError(f"process {pid} was to be bound, but there is no such process; attach another")
    return [pid, *processes.descendants(pid)]


def _mask_now(pid: int) -> CpuSet:
    """The mask it has; empty where the platform does not tell."""
    try:
        return get_host().get_affinity(pid)
    except BindingError:
        return CpuSet()
