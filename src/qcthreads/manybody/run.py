"""The job behind ``qcthreads run``: from a request to a report; prints nothing and parses no command line."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..cpuset import CpuSet
from ..errors import InputError, MachineError, QCThreadsError
from ..execution.calculation import Calculation, Outcome, Progress
from ..execution.engine import LocalEngine
from ..execution.store import Store, open_store
from ..leases import node_book
from ..machine.placement import split as cut
from ..planning import choose_split
from ..programs import registry
from .check import check_with_program
from .config import strategy_name
from .expansion import Expansion, Term
from .inputs import likely_program, read_input
from .report import BodyRow, FragmentRow, body_rows, bsse_treatment, fragment_rows
from .request import RunRequest
from .tally import Tally, mixed_versions

__all__ = ["BodyRow", "FragmentRow", "Run", "RunReport", "RunRequest"]

# Beside its overhead, so that a program has something to compute with; Psi4 refuses less than 250 MiB.
_WORKING_MEMORY_BYTES = 256 * 1024**2
# A finished water cluster's AtomicResult takes 2-4 kB in a store; ten times that, because programs add output.
_STORED_BYTES = 40 * 1024
# Of more calculations each is small beside all, and what it costs changes no decision.
_COUNTED_ONE_BY_ONE = 10_000
# How many workers start before it is known how many calculations there are.
_WARM_WORKERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything a run ends with. ``result`` is ``None`` and ``missing`` names the terms when a calculation failed."""

    fragments: tuple[FragmentRow, ...]
    bodies: tuple[BodyRow, ...]
    result: Mapping[str, Any] | None
    missing: tuple[str, ...]
    failures: Mapping[str, str]
    statistics: Mapping[str, Any]
    decision: Mapping[str, Any]
    findings: tuple[Mapping[str, Any], ...]
    bsse_treatment: str
    """Named in words, for a paper."""

    def to_json(self) -> dict[str, Any]:
        """``{"result", "statistics", "decision", "findings"}`` and the rest as data, as documented."""
        return {
            "result": self.result,
            "statistics": dict(self.statistics),
            "decision": dict(self.decision),
            "findings": [dict(finding) for finding in self.findings],
            "missing": list(self.missing),
            "failures": dict(self.failures),
            "fragments": [asdict(row) | {"cpus": row.cpus and list(CpuSet.parse(row.cpus))} for row in self.fragments],
            "bsse_treatment": self.bsse_treatment,
        }


class Run:
    """A prepared run: the input is read and checked, the decision is taken, nothing has been computed.

    With ``warm`` workers start while the input is read; leave the ``with`` statement, or call :meth:`close`, when the
    run is not to be executed after all. Raises InputError for malformed or contradictory input, MachineError (and
    subclasses) where this machine cannot.
    """

    counts_by_nbody: Mapping[int, int]
    calculations: int
    """How many there are."""
    decision: Mapping[str, Any]
    """``{"strategy", "workers", "threads", "cpus_usable", "cpus_by_worker", "memory_bytes_per_worker", "affinity",
    "program", "program_version", "method", "basis", "bsse", "max_nbody", "reasons": [...], "scratch_bytes": int | None,
    "store_bytes": int | None, "expected_wall_s": float | None}``; ``None``: not known."""

    def __init__(self, request: RunRequest, *, warm: bool = False) -> None:
        self.request = request
        self._book = node_book(
            cpus=request.cpus,
            leave=request.leave,
            memory_bytes=request.memory_bytes,
            smt=request.smt,
            busy=request.busy,
            orphans="end",
        )
        self._on_progress: Callable[[Progress], None] = lambda _: None
        self._warmed_at: float | None = None
        self._engine = LocalEngine(
            self._book,
            affinity=request.affinity,
            scratch=request.scratch,
            retries=request.retries,
            on_progress=lambda progress: self._on_progress(progress),
        )
        try:
            self._prepare(warm)
        except BaseException:
            self.close()
            raise

    @cached_property
    def fragments(self) -> tuple[FragmentRow, ...]:
        """The calculations; of very many it takes a while to list them."""
        return fragment_rows(self._terms, self._molecule)

    @cached_property
    def _terms(self) -> list[Term]:
        return self._expansion.terms()

    def close(self) -> None:
        """End the workers, if there are any."""
        self._engine.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, warm: bool) -> None:
        request = self.request
        strategy = strategy_name(request.strategy)
        _check_places(request)
        if request.program is not None:
            registry.require(request.program)  # a slip of the pen is told before the input is read
        if warm:
            self._warmed_at = time.perf_counter()
            self._warm()
        given = read_input(request.input, request)
        self._expansion = Expansion.from_input(given)
        installation = registry.require(self._expansion.program)
        self._molecule = given.molecule
        self.counts_by_nbody = self._expansion.counts_by_nbody()
        self.calculations = sum(self.counts_by_nbody.values())
        self.decision = self._decide(strategy, registry.version(installation))

    def check(self) -> None:
        """Ask the program whether it knows what is asked for; where it does not, InputError says what there is.

        :meth:`execute` does so itself. Starts a worker where none is warm.
        """
        decision = self.decision
        check_with_program(
            self._engine,
            self._expansion,
            threads=decision["threads"],
            memory_bytes=decision["memory_bytes_per_worker"],
        )

    def execute(self, on_progress: Callable[[Progress], None] | None = None) -> RunReport:
        """Compute what the store lacks.

        A KeyboardInterrupt ends every child, releases everything, leaves the store valid, and goes on up.
        """
        began = self._warmed_at or time.perf_counter()
        tally = Tally(self._book, on_progress)
        store = None
        try:
            if not self.request.resume:  # a store is begun after the check only, so what it belongs to has passed
                self._on_progress = lambda progress: tally.watch(progress) if progress.event == "note" else None
                self.check()
            store = self._open_store()
            results = self._reused(store, on_progress)
            reused = len(results)
            self._compute(tally, store, results)
        finally:
            self.close()
            if store is not None:
                store.close()
        return self._report(tally, results, reused, time.perf_counter() - began)

    def _warm(self) -> None:
        """Start workers by what can be told without reading the input; a wrong guess costs no more than their start.

        To import QCEngine and PySCF takes a worker 2 s, to read the input takes us 1 s.
        """
        request, usable = self.request, len(self._book.usable)
        program = likely_program(request)
        threads = request.threads or 1
        workers = min(request.workers or _WARM_WORKERS, min(usable, request.max_total_threads or usable) // threads)
        if program is not None and workers > 0:
            memory_bytes = self._book.memory_bytes // workers
            likely = Calculation(label="", program=program, input={}, threads=threads, memory_bytes=memory_bytes)
            with contextlib.suppress(QCThreadsError):  # what is wrong is said of the calculations themselves
                self._engine.warm(likely, workers)

    def _decide(self, strategy: str, version: str | None) -> dict[str, Any]:
        request, expansion, book = self.request, self._expansion, self._book
        spec = registry.get(expansion.program)
        left = self.calculations
        costs: Sequence[float] = ()
        if request.resume or left <= _COUNTED_ONE_BY_ONE:
            there = self._finished_before()
            costs = [term.cost for term in self._terms if term.label not in there]
            left = len(costs)
        split = choose_split(
            left,
            costs if left <= _COUNTED_ONE_BY_ONE else (),
            len(book.usable),
            book.memory_bytes,
            spec.memory_overhead_bytes + _WORKING_MEMORY_BYTES,
            workers=request.workers,
            threads=request.threads,
            max_total_threads=request.max_total_threads,
            useful_width=spec.useful_width,
            explain=book.explain(),
        )
        places = cut(book.machine, book.usable, split.workers, split.threads)
        return {
            "strategy": "as asked" if request.workers and request.threads else strategy,
            "workers": split.workers,
            "threads": split.threads,
            "cpus_usable": list(book.usable),
            "cpus_by_worker": [list(place) for place in places],
            "memory_bytes_per_worker": split.memory_bytes,
            "affinity": request.affinity,
            "program": expansion.program,
            "program_version": version,
            "method": expansion.method,
            "basis": expansion.basis if isinstance(expansion.basis, str | None) else "given in the input",
            "bsse": list(expansion.bsse),
            "max_nbody": expansion.core.max_nbody,
            "reasons": list(split.reasons),
            "scratch_bytes": None,
            "store_bytes": None if request.store is None else self.calculations * _STORED_BYTES,
            "expected_wall_s": None,
        }

    def _finished_before(self) -> set[str]:
        """Labels that the store holds already; whether it is this run's store is seen when it is opened to go on."""
        if not self.request.resume or self.request.store is None:
            return set()
        with open_store(self.request.store) as store:
            return store.finished()

    def _identity(self) -> dict[str, Any]:
        """What a store belongs to. Workers, strategy and the highest order are not in it: they change no energy."""
        return {
            "molecule": self._molecule.get_hash(),
            "method": self._expansion.method.lower(),
            "basis": self._expansion.basis.lower() if isinstance(self._expansion.basis, str) else self._expansion.basis,
            "keywords": self._expansion.specification.get("keywords") or {},
            "bsse": sorted(self._expansion.bsse),
            "program": self._expansion.program,
        }

    def _open_store(self) -> Store | None:
        if self.request.store is None:
            return None
        opened = (Store.resume if self.request.resume else Store.create)(self.request.store, self._identity())
        opened.expect([term.label for term in self._terms])
        return opened

    def _reused(self, store: Store | None, on_progress: Callable[[Progress], None] | None) -> dict[str, Any]:
        """Results of earlier runs."""
        if store is None:
            return {}
        stored = store.results()
        results = {term.label: stored[term.label] for term in self._terms if term.label in stored}
        if self.request.resume and on_progress is not None:
            found = f"{len(results)} of {self.calculations} calculations are in {self.request.store} already"
            on_progress(Progress(event="note", label="", message=found))
            for label in results:
                on_progress(Progress(event="reused", label=label))
        return results

    def _compute(self, tally: Tally, store: Store | None, results: dict[str, Any]) -> None:
        """Everything that ``results`` lacks, into the store and into ``results``."""
        request, decision = self.request, self.decision

        def watch(progress: Progress) -> None:
            if store is not None and progress.event == "started":
                store.started(progress.label)
            tally.watch(progress)

        calculations = [
            self._expansion.calculation(
                term,
                threads=decision["threads"],
                memory_bytes=decision["memory_bytes_per_worker"],
                timeout_s=request.timeout_s,
            )
            for term in self._terms
            if term.label not in results
        ]
        if not calculations:
            return
        self._on_progress = watch
        for outcome in self._engine.run(calculations, max_workers=decision["workers"]):
            if store is not None:
                store.record(outcome)
            tally.add(outcome)
            if outcome.status == "finished":
                results[outcome.label] = outcome.result

    def _report(self, tally: Tally, results: Mapping[str, Any], reused: int, wall_s: float) -> RunReport:
        expansion, decision = self._expansion, self.decision
        failures = {o.label: o.error or "no message" for o in tally.outcomes.values() if o.status == "failed"}
        missing = tuple(row.label for row in self.fragments if row.label not in results)
        bodies: tuple[BodyRow, ...] = ()
        result = None
        if not missing:
            made = expansion.result(results)
            bodies = body_rows(made.properties.model_dump(), expansion.bsse, expansion.core.max_nbody)
            result = made.model_dump(mode="json")
        findings = tally.findings(decision["memory_bytes_per_worker"], affinity=self.request.affinity)
        return RunReport(
            fragments=fragment_rows(self._terms, self._molecule, results, tally.outcomes),
            bodies=bodies,
            result=result,
            missing=missing,
            failures=failures,
            statistics={
                **tally.statistics(wall_s),
                "fragments_total": self.calculations,
                "fragments_computed": sum(_finished(outcome) for outcome in tally.outcomes.values()),
                "fragments_reused": reused,
                "fragments_failed": len(failures),
            },
            decision=decision,
            findings=tuple(findings + mixed_versions(results)),
            bsse_treatment=bsse_treatment(expansion.bsse),
        )


def _finished(outcome: Outcome) -> bool:
    return outcome.status == "finished"


def _check_places(request: RunRequest) -> None:
    """Find out before hours of computing, not after, that something cannot be written."""
    if request.resume and request.store is None:
        raise InputError("resume needs a store: say which with --store FILE")
    if request.store is not None:
        _check_writable(request.store.absolute().parent, "the store's directory")
        if request.store.is_dir():
            raise InputError(f"the store {request.store} is a directory; name a file, for example in it")
        if request.store.exists() and not request.resume:
            raise InputError(f"the store {request.store} exists: go on with it by --resume, or name another file")
        if request.resume and not request.store.exists():
            raise InputError(f"there is no store {request.store} to resume; leave --resume out to begin one")
    if request.scratch is not None:
        _check_writable(request.scratch, "the scratch directory")


def _check_writable(directory: Path, what: str) -> None:
    if not directory.is_dir():
        raise InputError(f"{what} {directory} is not there; make it, or name another")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise MachineError(f"{what} {directory} may not be written by this user; name another")
