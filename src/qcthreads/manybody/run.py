"""The job behind ``qcthreads run``: from a request to a report; prints nothing and parses no command line."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..closing import Closing
from ..cpuset import CpuSet
from ..execution.calculation import Calculation, Outcome, Progress
from ..execution.cost_store import never_failing
from ..execution.engine import LocalEngine
from ..execution.source import InOrder, Planned
from ..execution.store import Store, open_store
from ..leases import LeaseBook
from ..machine.placement import split as cut
from ..monitoring.findings import OF_A_RUN, OF_AN_AUTO_RUN, where_cpus_changed, where_few_may_run
from ..monitoring.metrics import RunNow
from ..monitoring.record import RunRecord
from ..monitoring.statistics import Finding, UsablePUs
from ..planning import choose_split
from ..programs import registry
from ..units import format_count, format_size
from .check import check_with_program
from .config import strategy_name
from .expansion import Chemistry, Expansion, Term
from .head_start import HeadStart, any_need_bytes, process_bytes_of, require
from .inputs import read_input
from .measured import Measured
from .moldable import Moldable, mold
from .report import BodyRow, FragmentRow, body_rows, bsse_treatment, fragment_rows
from .request import RunRequest
from .run_tally import CpuByPhase, RunTally, mixed_versions
from .watched import bandwidth, calculated, figures, findings, limits_in_words, live, sampling, told_change

__all__ = ["BodyRow", "FragmentRow", "Run", "RunReport", "RunRequest"]

# A finished water cluster's AtomicResult takes 2-4 kB in a store; ten times that, because programs add output.
_STORED_BYTES = 40 * 1024
# Of more calculations `auto` gives all one width: to list and plan a million takes a minute.
_PLANNED = 100_000


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
    record: RunRecord
    """What ran where and when, for reports, traces and tables."""

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


class Run(Closing):
    """A prepared run: the input is read and checked, the decision is taken, nothing has been computed.

    With a ``head_start`` workers have started already; leave the ``with`` statement, or call :meth:`close`, when the
    run is not to be executed after all. Raises InputError for malformed or contradictory input, MachineError (and
    subclasses) where this machine cannot.
    """

    counts_by_nbody: Mapping[int, int]
    calculations: int
    """How many there are."""
    decision: Mapping[str, Any]
    """``{"strategy", "workers", "threads", "cpus_usable", "cpus_by_worker", "memory_bytes_per_worker", "affinity",
    "program", "program_version", "method", "basis", "model_chemistries": [{"name", "orders", "program",
    "program_version", "method", "basis"}], "bsse", "max_nbody", "reasons": [...], "scratch_bytes": int | None,
    "store_bytes": int | None, "expected_wall_s": float | None, "changes": []}``; ``None``: not known, or several.
    A report's tells ``changes`` of limits: ``{"at_s", "why", "cpus_usable", "memory_bytes", "workers", "threads",
    "memory_bytes_per_worker"}``; the last three are ``None`` where calculations have widths of their own."""

    planned: Mapping[str, Planned]
    """By label, when each calculation was expected to run as it started; of those that had widths of their own."""

    def __init__(self, request: RunRequest, head_start: HeadStart | None = None) -> None:
        self.request = request
        self._head_start = head_start or HeadStart(request)
        self._book, self._engine = self._head_start.book, self._head_start.engine
        self._watching = self._head_start.watching
        self._moldable: Moldable | None = None
        self._at_once: int | None = None
        self.planned = {}
        self._reused_count = 0
        self._given = 0
        self._tally: RunTally | None = None
        self._began: float | None = None
        self._cpu = CpuByPhase(self._head_start.began_cpu_s)
        try:
            self._prepare()
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
        self._head_start.close()

    def _prepare(self) -> None:
        request = self.request
        strategy = strategy_name(request.strategy)
        given = read_input(request.input, request)
        if self._head_start.workers:
            self._watching.get_ready()  # numpy is there by now
        self._expansion = Expansion.from_input(given)
        found = {program: require(request, program) for program in self._expansion.programs}
        versions = {program: registry.version(one) if one else None for program, one in found.items()}
        self._engine.limit({program: request.at_most[""] for program in versions if "" in request.at_most})
        self._measured = Measured(self._expansion, self._book, request.scratch)
        self._molecule = given.molecule
        self.counts_by_nbody = self._expansion.counts_by_nbody()
        self.calculations = sum(self.counts_by_nbody.values())
        self.decision = self._decide(strategy, versions)
        self._head_start.complete(self._side_by_side, self._first_width, versions)

    def live(self) -> RunNow:
        """How far :meth:`execute` has come; from any thread."""
        return live(self._watching, self._book, total=self.calculations, reused=self._reused_count)

    def check_without_lease(self) -> None:
        """Ask the program whether it knows what is asked for; where it does not, InputError says what there is.

        For who does not mean to :meth:`execute`, which does so itself: nobody waits for the worker that is asked, and
        it waits for nobody.
        """
        request, alone = self.request, LeaseBook(self._book.machine, self._book.limits)
        with LocalEngine(alone, affinity=False, scratch=request.scratch, wrapping=request.wrapping) as engine:
            check_with_program(engine, self._expansion, threads=1, memory_bytes=0)

    def _check(self) -> None:
        decision = self.decision
        check_with_program(
            self._engine,
            self._expansion,
            threads=decision["threads"],
            memory_bytes=decision["memory_bytes_per_worker"],
        )

    def execute(self, on_progress: Callable[[Progress], None] | None = None) -> RunReport:
        """Compute what the store lacks.

        A KeyboardInterrupt ends every child, releases everything, leaves the store valid, and goes on up;
        :meth:`so_far` then tells what was done.
        """
        self._began = began = self._head_start.began_s or time.perf_counter()
        self._tally = tally = RunTally(self._book, on_progress)
        store = None
        try:
            if not self.request.resume:  # a store is begun after the check only, so what it belongs to has passed
                self._head_start.on_progress = lambda progress: (
                    tally.watch(progress) if progress.event == "note" else None
                )
                self._check()
            store = self._open_store()
            self._cpu.ends("preparation")
            results = self._reused(store, on_progress)
            self._reused_count = len(results)
            self._compute(tally, store, results)
            self._cpu.ends("calculations")
        finally:
            self.close()
            if store is not None:
                store.close()
            if self.request.learn and self._watching.attempts:
                with never_failing():
                    self._measured.keep(self._watching.attempts, self._terms)
        return self._report(tally, results, _Span.until_now(time.perf_counter() - began))

    def so_far(self) -> RunRecord | None:
        """What ran where and when until :meth:`execute` was interrupted; ``None`` where it had not begun."""
        tally, began = self._tally, self._began
        if tally is None or began is None:
            return None
        stopped = Finding(
            kind="note",
            message=f"the run was stopped before its end: {len(tally.outcomes) + self._reused_count} of "
            f"{format_count(self.calculations, 'calculation')} had ended",
        )
        span = _Span.until_now(time.perf_counter() - began)
        return self._record(tally, self._statistics(tally, span), [stopped], span)

    def _decide(self, strategy: str, versions: Mapping[str, str | None]) -> dict[str, Any]:
        request, expansion, book = self.request, self._expansion, self._book
        need_bytes, process_bytes = any_need_bytes(expansion.programs), process_bytes_of(expansion.programs)
        left = self.calculations
        terms: Sequence[Term] = ()
        if request.resume or left <= _PLANNED or self._measured.writes_files():
            terms = self._lacking()
            left = len(terms)
        needs = [self._measured.need(term) for term in terms]
        self._at_once = most = self._engine.at_most(expansion.programs)
        why_at_once = why_most = f"--at-most allows {most} at a time"
        room = self._measured.side_by_side(terms)
        if room is not None and room <= (most or math.inf):
            most, why_most = room, f"there is room for the temporary files of {room} at a time"
        if terms or not left:
            need_bytes = max((one.least_bytes if request.workers else one.memory_bytes for one in needs), default=0)
        others_bytes = ((request.threads or 1) - 1) * process_bytes
        memory_bytes, why_so_much = self._memory((need_bytes + others_bytes) * (request.workers or 1))
        split = choose_split(
            left,
            [term.cost for term in terms],
            len(book.usable),
            memory_bytes,
            need_bytes,
            workers=request.workers,
            threads=request.threads,
            max_total_threads=request.max_total_threads,
            max_workers=most,
            max_workers_why=why_most,
            useful_width=registry.useful_width(expansion.programs),
            memory_per_process_bytes=process_bytes,
            explain=book.explain(),
        )
        self._most = most
        chemistries = [_described(expansion, chemistry, versions) for chemistry in expansion.chemistries]
        only = chemistries[0] if len(chemistries) == 1 else {}
        workers, threads, reasons, wall_s = split.workers, split.threads, list(split.reasons), None
        self._need_bytes = max(1, need_bytes + (threads - 1) * process_bytes)
        share_bytes = split.memory_bytes
        self._moldable = self._mold(strategy, terms)
        self._first_width, self._side_by_side = threads, workers
        if self._moldable is not None:
            foreseen = self._moldable.foresee(starting=True)
            self._first_width, self._side_by_side = foreseen.first_width, foreseen.side_by_side
            own = foreseen.usual_side_by_side, foreseen.usual_width
            if foreseen.limited or (workers, threads) != own:
                workers, threads = own
                many = f"up to {foreseen.side_by_side} side by side"
                reasons = [f"{book.explain()}, {format_count(left, 'calculation')}: {many}"]
                if self._at_once is not None and foreseen.side_by_side == self._at_once < left:
                    reasons.append(why_at_once)
                share_bytes = split.memory_bytes * split.workers // workers
            reasons += foreseen.reasons()
            wall_s, share_bytes = foreseen.wall_s, foreseen.memory_bytes if foreseen.memory_known else share_bytes
        files_bytes = max((need.scratch_bytes for need in needs), default=0) * workers
        places = cut(book.machine, book.usable, min(workers, len(book.usable) // threads), threads)
        return {
            "strategy": "as asked" if request.workers and request.threads else strategy,
            "workers": workers,
            "threads": threads,
            "cpus_usable": list(book.usable),
            "cpus_by_worker": [list(place) for place in places],
            "memory_bytes_per_worker": share_bytes,
            "affinity": request.affinity,
            "program": ", ".join(expansion.programs),
            "program_version": only.get("program_version"),
            "method": only.get("method"),
            "basis": only.get("basis"),
            "model_chemistries": chemistries,
            "bsse": list(expansion.bsse),
            "max_nbody": expansion.core.max_nbody,
            "reasons": [*reasons, *why_so_much],
            "scratch_bytes": min(files_bytes, self._measured.disk_bytes or files_bytes) or None,
            "store_bytes": None if request.store is None else self.calculations * _STORED_BYTES,
            "expected_wall_s": wall_s,
            "changes": [],
        }

    def _lacking(self) -> list[Term]:
        """What the store has no result of."""
        return [term for term in self._terms if term.label not in self._finished_before]

    def _mold(self, strategy: str, terms: Sequence[Term]) -> Moldable | None:
        """What has ``terms`` run at widths of their own; ``None`` where all have the same."""
        request = self.request
        many = self.calculations > _PLANNED and strategy == "auto"
        if strategy == "balanced" or request.workers or request.threads or many:
            return None
        return mold(
            terms or self._lacking(),  # of very many none were listed yet
            self._expansion,
            strategy,
            self._book,
            self._measured,
            need=self._measured.need,
            most_threads=request.max_total_threads,
            at_once=self._at_once,
            workers=self._head_start.workers,
        )

    def _memory(self, need_bytes: int) -> tuple[int, tuple[str, ...]]:
        """For all workers together, what may be used; of that, where nobody asked for it, what others have not leased.

        A run that takes all memory by default would wait for the end of whoever has some of it.
        """
        whole, free = self._book.memory_bytes, self._book.free()[1]
        if self.request.memory_bytes is not None or free == whole:
            return whole, ()
        others = f"others have leased all but {format_size(free)} of the {format_size(whole)} of memory"
        if free < need_bytes:
            return whole, (f"{others}, which is too little: the run waits for theirs",)
        return free, (f"{others}: that is divided, so that the run need not wait; --memory asks for more",)

    @cached_property
    def _finished_before(self) -> set[str]:
        """Labels that the store holds already; whether it is this run's store is seen when it is opened to go on."""
        if not self.request.resume or self.request.store is None:
            return set()
        with open_store(self.request.store) as store:
            return store.finished()

    def _identity(self) -> dict[str, Any]:
        """What a store belongs to. Workers, strategy and the highest order are not in it: they change no energy."""
        chemistries = {chemistry.name: _identified(chemistry) for chemistry in self._expansion.chemistries}
        told = chemistries.popitem()[1] if len(chemistries) == 1 else {"model_chemistries": chemistries}
        return {"molecule": self._molecule.get_hash(), "bsse": sorted(self._expansion.bsse), **told}

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

    def _compute(self, tally: RunTally, store: Store | None, results: dict[str, Any]) -> None:
        """Everything that ``results`` lacks, into the store and into ``results``."""
        request, decision = self.request, self.decision

        def watch(progress: Progress) -> None:
            if store is not None and progress.event == "started":
                store.started(progress.label)
            tally.watch(progress)

        def made(term: Term, threads: int, memory_bytes: int) -> Calculation:
            return self._expansion.calculation(
                term,
                threads=threads,
                memory_bytes=memory_bytes,
                files_bytes=self._measured.need(term, threads).files_bytes_of(memory_bytes),
                timeout_s=request.timeout_s,
            )

        terms = [term for term in self._terms if term.label not in results]
        self._given = len(terms)
        if not terms:
            return
        self._head_start.on_progress = watch
        threads, memory_bytes = decision["threads"], decision["memory_bytes_per_worker"]
        if self._moldable is None:
            by_label = {term.label: term for term in terms}

            def as_now(calculation: Calculation) -> Calculation:
                _, *each = self._each(len(self._book.usable), self._book.memory_bytes)
                if each == [calculation.threads, calculation.memory_bytes]:
                    return calculation
                return made(by_label[calculation.label], *each)

            given = [made(term, threads, memory_bytes) for term in terms]
            in_order = InOrder(given, self._book, most_threads=request.max_total_threads, as_now=as_now)
            outcomes = self._engine.run(in_order, max_workers=request.workers or self._most)
        else:
            disk_now = None if self._moldable.disk_bytes is None else self._disk_now
            now = replace(self._moldable, terms=terms, workers=self._engine.workers(), disk_now=disk_now)
            source = now.source(made)
            self.planned = source.planned
            outcomes = self._engine.run(source, max_workers=self._at_once)
        for outcome in outcomes:
            if store is not None:
                store.record(outcome)
            tally.add(outcome)
            if outcome.status == "finished":
                results[outcome.label] = outcome.result

    def _disk_now(self) -> float:
        return self._measured.disk_now_bytes(self._watching.scratch_bytes)

    def _each(self, usable: int, memory_bytes: int) -> tuple[int, int, int]:
        """How many run side by side that have one width, where there is so much for all; threads and memory of each.

        As was decided, but for what limits have changed: where more fit side by side, or there is less memory, each
        has less of that, though what it needs; where there are fewer PUs than the width that nobody asked for, fewer.
        """
        decision, request = self.decision, self.request
        threads, share_bytes = decision["threads"], decision["memory_bytes_per_worker"]
        if not request.threads:
            threads = min(threads, usable)
        whole_bytes = min(memory_bytes, decision["workers"] * share_bytes)
        most = min(self._given, request.workers or self._most or self._given)
        by_cpus = min(usable, request.max_total_threads or usable) // threads
        side_by_side = max(1, min(most, by_cpus, whole_bytes // self._need_bytes))
        return side_by_side, threads, min(share_bytes, max(whole_bytes // side_by_side, self._need_bytes))

    def _changes(self, span: _Span) -> list[dict[str, Any]]:
        """What limits that changed made of the decision."""
        of_one_width = self._moldable is None
        return [
            told_change(
                change,
                change.at - span.began_at,
                self._each(len(change.usable), change.memory_bytes) if of_one_width else None,
            )
            for change in self._engine.changes
        ]

    def _usable(self, span: _Span) -> UsablePUs:
        changed = ((max(0.0, one.at - span.began_at), len(one.usable)) for one in self._engine.changes)
        return UsablePUs(((0.0, len(self.decision["cpus_usable"])), *changed))

    def _by_chemistry(self, tally: RunTally) -> dict[str, dict[str, Any]]:
        """What the calculations of each model chemistry took, by its name."""
        sums: dict[str, dict[str, Any]] = {}
        for term in self._terms:
            one = sums.setdefault(term.chemistry.name, {"calculations": 0, "wall_s": 0.0, "cpu_s": 0.0})
            outcome = tally.outcomes.get(term.label)
            if outcome is not None:
                one["calculations"] += 1
                one["wall_s"] += outcome.wall_s
                one["cpu_s"] += outcome.cpu_s
        return sums

    def _statistics(self, tally: RunTally, span: _Span) -> dict[str, Any]:
        widths = [outcome.threads for outcome in tally.outcomes.values()]
        return {
            **tally.statistics(span.wall_s, self._usable(span).mean(0.0, span.wall_s)),
            "fragments_total": self.calculations,
            "fragments_computed": sum(_finished(outcome) for outcome in tally.outcomes.values()),
            "fragments_reused": self._reused_count,
            "fragments_failed": sum(not _finished(outcome) for outcome in tally.outcomes.values()),
            "by_model_chemistry": self._by_chemistry(tally),
            "widths": {str(width): count for width, count in sorted(Counter(widths).items())},
            "driver_cpu_s": self._cpu.seconds,
        }

    def _report(self, tally: RunTally, results: Mapping[str, Any], span: _Span) -> RunReport:
        expansion = self._expansion
        failures = {o.label: o.error or "no message" for o in tally.outcomes.values() if o.status == "failed"}
        missing = tuple(row.label for row in self.fragments if row.label not in results)
        bodies: tuple[BodyRow, ...] = ()
        result = None
        if not missing:
            made = expansion.result(results)
            bodies = body_rows(made.properties.model_dump(), expansion.bsse, expansion.bodies)
            result = made.model_dump(mode="json")
        self._cpu.ends("report")
        record = self._record(tally, self._statistics(tally, span), mixed_versions(results), span)
        return RunReport(
            fragments=fragment_rows(self._terms, self._molecule, results, tally.outcomes),
            bodies=bodies,
            result=result,
            missing=missing,
            failures=failures,
            statistics=record.statistics,
            decision=record.decision,
            findings=tuple({"kind": finding.kind, "message": finding.message} for finding in record.findings),
            bsse_treatment=bsse_treatment(expansion.bsse),
            record=record,
        )

    def _record(
        self, tally: RunTally, statistics: Mapping[str, Any], others: Sequence[Finding], span: _Span
    ) -> RunRecord:
        """``others``: findings about the results."""
        book, monitor, request = self._book, self._watching.monitor, self.request
        auto = strategy_name(request.strategy) == "auto" and not (request.workers or request.threads)
        advice = OF_AN_AUTO_RUN if auto else OF_A_RUN
        advice = where_few_may_run(advice, self._at_once, self._side_by_side, "--at-most")
        if self._engine.cpus_changed:
            advice = where_cpus_changed(advice)
        labels = {term.label for term in self._terms}  # the program may have been asked something, too
        attempts = [one for one in self._watching.attempts if one.outcome.label in labels]
        moments = tuple(one for one in monitor.moments(span.began_ns) if one.at_s >= 0)
        usable = self._usable(span)
        return RunRecord(
            title=_title(request.input, self.decision),
            began_at=span.began_at,
            wall_s=span.wall_s,
            machine=book.machine,
            usable=book.usable,
            pus_usable=usable,
            limits=limits_in_words(book.limits),
            decision={**self.decision, "changes": self._changes(span)},
            statistics={
                **statistics,
                **figures(attempts, moments, usable),
                "sampling": sampling(monitor),
                "memory_bandwidth": bandwidth(monitor),
            },
            calculations=calculated(attempts, span.began_at, self.planned),
            moments=moments,
            findings=(
                *tally.findings(affinity=request.affinity),
                *others,
                *findings(attempts, moments, usable, advice),
            ),
        )


@dataclass(frozen=True, slots=True)
class _Span:
    """When a run began and how long it took, by the clocks that outcomes and samples are told in."""

    wall_s: float
    began_at: float
    began_ns: int

    @classmethod
    def until_now(cls, wall_s: float) -> Self:
        return cls(wall_s, time.time() - wall_s, time.monotonic_ns() - round(wall_s * 1e9))


def _title(given: Path, decision: Mapping[str, Any]) -> str:
    models = [
        f"{one['program']} {'/'.join(str(one[name]) for name in ('method', 'basis') if one[name])}"
        for one in decision["model_chemistries"]
    ]
    return f"{given.name}: {', '.join(models)}, up to {decision['max_nbody']} bodies"


def _described(expansion: Expansion, chemistry: Chemistry, versions: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "name": chemistry.name,
        "orders": expansion.orders(chemistry),
        "program": chemistry.program,
        "program_version": versions[chemistry.program],
        "method": chemistry.method,
        "basis": chemistry.basis_name,
    }


def _identified(chemistry: Chemistry) -> dict[str, Any]:
    basis = chemistry.basis
    return {
        "program": chemistry.program,
        "method": chemistry.method.lower(),
        "basis": basis.lower() if isinstance(basis, str) else basis,
        "keywords": chemistry.specification.get("keywords") or {},
    }


def _finished(outcome: Outcome) -> bool:
    return outcome.status == "finished"
