"""ParallelManyBodyExecutor: the fragments of a QCManyBody expansion side by side; adds no barrier and no label."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..cpuset import CpuSet
from ..errors import CalculationError, InputError
from ..execution.calculation import Calculation, Outcome
from ..execution.changing import Change
from ..execution.cost_store import never_failing
from ..execution.engine import LocalEngine, known_programs, most_at_once
from ..execution.observing import Watching
from ..execution.source import InOrder, Source
from ..execution.wrapping import Wrapping
from ..leases import LeaseBook, process_book
from ..monitoring.findings import OF_AN_EXECUTOR, where_cpus_changed, where_few_may_run
from ..monitoring.statistics import UsablePUs
from ..planning import Split, choose_split
from ..programs import registry
from ..programs.registry import useful_width
from ..units import format_count
from .check import check_with_program
from .config import HybridParallelConfig, ParallelConfig, compute_name, strategy_name
from .expansion import Expansion, Term, as_model, energy_of
from .measured import Measured, Need
from .moldable import Moldable, mold
from .report import grouped, headline
from .run_tally import RunTally
from .watched import elapsed_s, figures, findings, sampling, told_change, within

if TYPE_CHECKING:
    from qcelemental.models.v2 import AtomicResult, Molecule
    from qcmanybody import ManyBodyCore
    from qcmanybody.models.v2 import ManyBodyInput, ManyBodyResult

    FragmentSpec = tuple[str, str, Molecule]

_log = logging.getLogger("qcthreads")

# Results become models so many at a time: one alone, between two calculations, finds no cache warm and takes five times
# as long, of CPUs that calculations could have; more would have the caller wait at the end.
_READ_AT_ONCE = 32


class FragmentsFailedError(CalculationError):
    """Some fragments failed, the others were computed: ``results``, and ``failures`` (the errors), both by label."""

    def __init__(self, results: dict[str, AtomicResult], failures: dict[str, str]) -> None:
        self.results = results
        self.failures = failures
        many = f"{len(failures)} of {len(failures) + len(results)} calculations failed"
        reasons = [f"{', '.join(labels)}: {headline(error)}" for error, labels in grouped(failures).items()]
        super().__init__(f"{many}: {'; '.join(reasons)}")


class ParallelManyBodyExecutor:
    """Computes the fragments of a many-body expansion side by side, each under a lease, in worker processes.

    A fragment is what :meth:`ManyBodyCore.iterate_molecules` yields: (model chemistry, label, molecule). The name of
    a model chemistry of the core is the method, or ``"method/basis"``; where it names no basis, ``config.basis_set`` is
    used. Outside a ``with`` statement each call starts its workers and ends them; inside one they are kept. What a
    call of several fragments measured later calls and runs plan with; what others measured, runs after :meth:`close`.

    Parameters
    ----------
    core
        Energies with nocp and cp; everything else is refused by name.
    config
        ``None``: :class:`ParallelConfig` with its defaults.

    Raises
    ------
    InputError
        What the core asks for is not computed here.
    """

    config: ParallelConfig
    _kept: LocalEngine | None

    def __init__(self, core: ManyBodyCore, config: ParallelConfig | None = None) -> None:
        self.config = config or ParallelConfig()
        self._prepare(Expansion.from_core(core, self.config.qc_program, self.config.basis_set))

    @classmethod
    def from_manybodyinput(cls, given: ManyBodyInput, config: ParallelConfig | None = None) -> ManyBodyResult:
        """Compute a ManyBodyInput to QCManyBody's full result, as ``ManyBodyComputer.from_manybodyinput`` does.

        Programs, methods, basis sets and keywords are the input's, several where its levels name several; the config's
        ``qc_program`` and ``basis_set`` are not used.
        The execution statistics are in the result's ``extras["qcthreads"]``. Raises FragmentsFailedError when a
        fragment failed, after the others were computed.
        """
        executor = cls.__new__(cls)
        executor.config = config or ParallelConfig()
        executor._prepare(Expansion.from_input(given))
        try:
            results = executor.execute_full_calculation()
        finally:
            executor.close()
        made = executor._expansion.result(results)
        extras = {**made.extras, "qcthreads": executor.get_execution_statistics()}
        return made.model_copy(update={"extras": extras})

    def execute_full_calculation(self) -> dict[str, AtomicResult]:
        """Every fragment, the costliest first and with no barrier between orders: none depends on another.

        Returns AtomicResults (QCSchema version 2) by QCManyBody's labels, by order. Raises FragmentsFailedError.
        """
        return self._execute(self._expansion.terms())

    def execute_level_parallel(self, level: int, fragments: Sequence[FragmentSpec]) -> dict[str, AtomicResult]:
        """The given fragments, all of ``level`` bodies, to the last: the barrier form. Raises FragmentsFailedError."""
        terms = self._terms_of(fragments)
        for term in terms:
            if term.nbody != level:
                raise InputError(f"{term.label} has {term.nbody} real fragments, but level {level} was asked for")
        return self._execute(terms)

    def execute_fragment(self, spec: FragmentSpec) -> tuple[str, AtomicResult]:
        """One fragment: its label and its result. Raises FragmentsFailedError."""
        ((label, result),) = self._execute(self._terms_of([spec])).items()
        return label, result

    def get_execution_statistics(self) -> dict[str, Any]:
        """Figures of all calls so far.

        ``total_fragments``; ``levels_executed`` (how many orders); ``parallel_time`` (wall time, s);
        ``sequential_time_estimate`` (the calculations one after another at their widths, s); ``speedup_factor``;
        ``workers``, ``threads`` (of the last call; where each fragment has a width of its own, the narrowest),
        ``widths`` (how many ran at each), ``reasons``; ``changes`` of limits, as a run's ``decision`` tells them, with
        ``at_s`` since the first call without what was between calls; ``findings``; ``sampling``; and what
        :meth:`RunTally.statistics` and :func:`qcthreads.manybody.watched.figures` say.
        """
        monitor = self._watching.monitor
        with self._lock:
            moments = within(monitor.moments(0), self._calls)
            changes, called_s = self._told_changes(), elapsed_s(self._calls, time.monotonic())
        at_first = self._usable_at_first or self._book.usable
        usable = UsablePUs(((0.0, len(at_first)), *((one["at_s"], len(one["cpus_usable"])) for one in changes)))
        attempts = [one for one in self._watching.attempts if one.outcome.label in self._tally.outcomes]
        with self._lock:
            workers = self._split.workers if self._split else 0
            advice = where_few_may_run(OF_AN_EXECUTOR, self._licences, workers, "at_most")
            if any(one["cpus_usable"] != list(at_first) for one in changes):
                advice = where_cpus_changed(advice)
            told = self._tally.statistics(self._wall_s, usable.mean(0.0, called_s))
            sequential_s = told.pop("calculations_wall_s")
            return {
                "total_fragments": len(self._tally.outcomes),
                "levels_executed": len(self._levels),
                "parallel_time": told.pop("wall_s"),
                "sequential_time_estimate": sequential_s,
                "speedup_factor": told.pop("speedup_estimate") or 0.0,
                "failed_fragments": sum(outcome.status == "failed" for outcome in self._tally.outcomes.values()),
                "workers": workers,
                "threads": self._split.threads if self._split else self.config.threads_per_fragment,
                "execution_mode": self.config.execution_mode,
                "widths": dict(sorted(Counter(one.threads for one in self._tally.outcomes.values()).items())),
                "reasons": list(self._split.reasons) if self._split else [],
                "changes": changes,
                **figures(attempts, moments, usable),
                "sampling": sampling(monitor),
                "findings": [
                    {"kind": finding.kind, "message": finding.message}
                    for finding in findings(attempts, moments, usable, advice)
                ],
                **told,
            }

    def validate_parallel_correctness(
        self, parallel: Mapping[str, Any], sequential: Mapping[str, Any], tolerance: float = 1e-12
    ) -> bool:
        """True if both have the same labels and energies that differ by ``tolerance`` (hartree) at most.

        Raises
        ------
        ValueError
            They do not; names the labels, or the label with the largest difference.
        """
        if parallel.keys() != sequential.keys():
            lacking = sorted(sequential.keys() - parallel.keys())
            extra = sorted(parallel.keys() - sequential.keys())
            raise ValueError(f"the fragments are not the same: missing in parallel {lacking}, in sequential {extra}")
        differences = {label: abs(energy_of(parallel[label]) - energy_of(sequential[label])) for label in parallel}
        worst = max(differences, key=differences.__getitem__, default=None)
        if worst is not None and not differences[worst] <= tolerance:
            many = sum(not difference <= tolerance for difference in differences.values())
            raise ValueError(
                f"{many} of {len(differences)} energies differ by more than {tolerance:g} hartree, most {worst}: "
                f"{energy_of(parallel[worst])!r} and {energy_of(sequential[worst])!r}, by {differences[worst]:.3e}"
            )
        return True

    def close(self) -> None:
        """End the workers that a ``with`` statement kept, and keep for later runs what was measured since."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept.__exit__(None, None, None)
        self._learn()

    def __enter__(self) -> Self:
        self._kept = self._new_engine().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, expansion: Expansion) -> None:
        config = self.config
        self._expansion = expansion
        self._wrapping = Wrapping.of(config.setup, config.wrap)
        self._compute = None if config.compute is None else compute_name(config.compute)
        if self._compute is None:
            for program in expansion.programs:
                registry.known(program) if self._wrapping else registry.require(program)
        self._book: LeaseBook = process_book()
        self._usable_at_first = CpuSet()
        """When the first call began."""
        self._changes: dict[Change, tuple[int, int] | None] = {}
        """Of limits, with how many ran side by side at most, and their threads; ``None``: at widths of their own."""
        self._measured = None if self._compute else Measured(expansion, self._book, self._scratch)
        self._tally = RunTally(self._book)
        self._watching = Watching()
        self._calls: list[tuple[float, float]] = []
        """From when to when, by the monotonic clock, anything was executed; the last may still go on."""
        self._calling = 0
        self._lock = threading.Lock()
        self._kept = None
        self._split: Split | None = None
        self._checked = False
        self._ran: dict[str, Term] = {}
        self._learned = 0
        self._levels: set[int] = set()
        self._wall_s = 0.0

    def _told_changes(self) -> list[dict[str, Any]]:
        """With the lock."""
        before_s = time.time() - time.monotonic()
        return [
            told_change(
                change,
                elapsed_s(self._calls, change.at - before_s),
                None if one_width is None else self._each(*one_width, len(change.usable), change.memory_bytes),
            )
            for change, one_width in sorted(self._changes.items(), key=lambda one: one[0].at)
        ]

    def _each(self, most: int, threads: int, usable: int, memory_bytes: int) -> tuple[int, int, int]:
        """How many of one width run side by side where there is so much for all; threads and memory of each."""
        share_bytes = self.config.memory_limit_bytes
        by_cpus = min(usable, self._most_threads or usable) // threads
        return max(1, min(most, by_cpus, memory_bytes // share_bytes)), threads, share_bytes

    def _terms_of(self, fragments: Iterable[FragmentSpec]) -> list[Term]:
        terms = [self._expansion.term(label, molecule) for _, label, molecule in fragments]
        return sorted(terms, key=lambda term: -term.cost)

    def _execute(self, terms: Sequence[Term]) -> dict[str, AtomicResult]:
        if not terms:
            return {}
        measured = self._measured and self._measured.as_now()  # calls of other threads keep what they measured
        room = None if measured is None else measured.side_by_side(terms)
        split = self._choose(terms, room)
        moldable = self._mold(terms, split, measured)
        if moldable is None:
            calculations = [self._calculation(term, split.threads) for term in terms]
            given: Source = InOrder(calculations, self._book, most_threads=self._most_threads)
            workers, reasons, side_by_side = min(self._most_workers, room or len(terms)), split.reasons, split.workers
        else:
            given = moldable.source(lambda term, threads, _: self._calculation(term, threads))
            foreseen = moldable.foresee()
            workers, side_by_side = self._most_workers, min(self._most_workers, foreseen.side_by_side)
            many = (
                f"{self._book.explain()}, {format_count(len(terms), 'calculation')}: up to {side_by_side} side by side"
            )
            reasons = (many, *foreseen.reasons())
        if side_by_side < min(self._most_workers, len(terms)):
            _log.warning("%d workers, max_workers is %d: %s", side_by_side, self.config.max_workers, "; ".join(reasons))
        one_width = (min(workers, len(terms)), split.threads) if moldable is None else None
        results: dict[str, AtomicResult] = {}
        unread: dict[str, Mapping[str, Any]] = {}
        failures: dict[str, str] = {}
        with self._lock:  # before any of them ends in another thread's sight
            self._ran |= {term.label: term for term in terms}
        began = time.perf_counter()
        try:
            with self._call(), self._engine() as engine:
                self._check(engine, split)
                for outcome in self._noting_changes(engine, engine.run(given, max_workers=workers), one_width):
                    with self._lock:
                        self._tally.add(outcome)
                    if outcome.status == "finished" and outcome.result is not None:
                        unread[outcome.label] = outcome.result
                    else:
                        failures[outcome.label] = outcome.error or "no message"
                    if len(unread) == _READ_AT_ONCE:
                        results |= _read(unread)
                        unread = {}
            results |= _read(unread)
        finally:
            with self._lock:
                self._split = replace(split, workers=side_by_side, reasons=reasons)
                self._levels |= {term.nbody for term in terms}
                self._wall_s += time.perf_counter() - began
            if len(terms) > 1:  # one alone would have the file written for each
                self._learn()
        ordered = sorted(terms, key=lambda term: (term.nbody, term.fragments, term.ghosts))
        results = {term.label: results[term.label] for term in ordered if term.label in results}
        if failures:
            raise FragmentsFailedError(results, failures)
        return results

    def _noting_changes(
        self, engine: LocalEngine, outcomes: Iterator[Outcome], one_width: tuple[int, int] | None
    ) -> Iterator[Outcome]:
        """``outcomes``; what limits changed meanwhile is told, also where that ends them with an error."""
        try:
            yield from outcomes
        finally:
            with self._lock:
                self._changes = {**dict.fromkeys(engine.changes, one_width), **self._changes}

    def _learn(self) -> None:
        """Keep for later runs what calculations took since this was called last."""
        with self._lock:
            attempts, terms = self._watching.attempts[self._learned :], tuple(self._ran.values())
            self._learned += len(attempts)
        if self._measured is not None and self.config.learn and attempts:
            with never_failing():
                self._measured.keep(attempts, terms)

    def _check(self, engine: LocalEngine, split: Split) -> None:
        """Ask the program once, however often fragments are executed."""
        if self._compute is None and not self._checked:
            memory_bytes = self.config.memory_limit_bytes
            check_with_program(engine, self._expansion, threads=split.threads, memory_bytes=memory_bytes)
            self._checked = True

    @property
    def _most_workers(self) -> int:
        most = 1 if self.config.execution_mode == "serial" else self.config.max_workers
        return min(most, self._licences or most)

    @property
    def _licences(self) -> int | None:
        """How many calculations may run at once by ``at_most``; ``None``: no such limit."""
        return most_at_once(known_programs(self.config.at_most or {}), self._expansion.programs)

    @property
    def _most_threads(self) -> int | None:
        return self.config.max_total_threads if isinstance(self.config, HybridParallelConfig) else None

    def _choose(self, terms: Sequence[Term], room: int | None) -> Split:
        """Workers for the configured width; the config's numbers of workers and threads in all are ceilings.

        ``room``: for the temporary files of so many.
        """
        config, most, why = self.config, self._most_workers, ""
        if self._licences == most < config.max_workers:
            why = f"at_most allows {most} at a time"
        if room is not None and room < most:
            most, why = room, f"there is room for the temporary files of {room} at a time"
        return choose_split(
            len(terms),
            [term.cost for term in terms],
            len(self._book.usable),
            self._book.memory_bytes,
            config.memory_limit_bytes,
            threads=config.threads_per_fragment,
            max_total_threads=self._most_threads,
            max_workers=most,
            max_workers_why=why,
            useful_width=useful_width(self._expansion.programs),
            memory_per_worker_bytes=config.memory_limit_bytes,
            memory_why=_memory_why(config),
            explain=self._book.explain(),
        )

    def _mold(self, terms: Sequence[Term], split: Split, measured: Measured | None) -> Moldable | None:
        """What has the calculations run at widths of their own; ``None`` where the config asks for one width."""
        config = self.config
        if not isinstance(config, HybridParallelConfig) or config.execution_mode == "serial":
            return None
        strategy = strategy_name(config.thread_allocation_strategy)
        if strategy == "balanced":
            return None
        return mold(
            terms,
            self._expansion,
            strategy,
            self._book,
            measured,
            need=lambda term, _: Need(
                config.memory_limit_bytes,
                config.memory_limit_bytes,
                scratch_bytes=0 if measured is None else measured.disk_need_bytes(term),
            ),
            narrowest=split.threads,
            most_threads=config.max_total_threads,
            at_once=self._most_workers,
            workers=None if self._kept is None else self._kept.workers(),
        )

    def _calculation(self, term: Term, threads: int) -> Calculation:
        return self._expansion.calculation(
            term,
            threads=threads,
            memory_bytes=self.config.memory_limit_bytes,
            timeout_s=self.config.timeout_seconds,
            compute=self._compute,
            task_config=self._task_config(),
        )

    def _task_config(self) -> dict[str, Any]:
        """What the config adds to QCEngine's task_config; width and memory are the lease's, scratch is the engine's."""
        own = ("ncores", "memory", "scratch_directory")
        return {name: value for name, value in (self.config.qcengine_config or {}).items() if name not in own}

    @contextmanager
    def _call(self) -> Iterator[None]:
        """What the CPUs do between calls is nobody's idleness."""
        with self._lock:
            self._usable_at_first = self._usable_at_first or self._book.usable
            if not self._calling:
                self._calls.append((time.monotonic(), math.inf))
            self._calling += 1
        try:
            yield
        finally:
            with self._lock:
                self._calling -= 1
                if not self._calling:
                    self._calls[-1] = self._calls[-1][0], time.monotonic()

    @contextmanager
    def _engine(self) -> Iterator[LocalEngine]:
        if self._kept is not None:
            yield self._kept
            return
        with self._new_engine() as engine:
            yield engine

    @property
    def _scratch(self) -> Path | None:
        """Where temporary files go, if the config says so."""
        given = (self.config.qcengine_config or {}).get("scratch_directory")
        return Path(given) if given else None

    def _new_engine(self) -> LocalEngine:
        affinity = isinstance(self.config, HybridParallelConfig) and self.config.enable_thread_affinity
        return LocalEngine(
            self._book,
            affinity=affinity,
            scratch=self._scratch,
            at_most=self.config.at_most,
            wrapping=self._wrapping,
            on_progress=self._tally.watch,
            observer=self._watching,
        )


def _read(results: Mapping[str, Mapping[str, Any]]) -> dict[str, AtomicResult]:
    return {label: as_model(result) for label, result in results.items()}


def _memory_why(config: ParallelConfig) -> str:
    by = "by default" if config.memory_limit_mb == ParallelConfig.memory_limit_mb else "as asked"
    return f"{by} (memory_limit_mb={config.memory_limit_mb})"
