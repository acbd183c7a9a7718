"""Terms as moldable tasks: the widths their program can use, what is foreseen, and the source a run takes them from."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import nlargest

from ..execution.calculation import Calculation
from ..execution.source import Dispatched
from ..host.profiles import cpu_model
from ..leases import LeaseBook
from ..machine import Machine
from ..planning import Plan, Task, plan
from ..planning.cost import assumed_parallel_fraction, assumed_speedup
from ..planning.costs import Origin, Size
from ..planning.dispatch import Dispatcher
from ..programs import registry
from ..programs.spec import WorkerKind
from ..units import format_count, format_size
from .config import STRATEGIES
from .expansion import Expansion, Term
from .measured import Measured, Need
from .widths import widths_for

# What another worker costs before it computes, until a start has been seen: to import QCEngine and PySCF takes 2 s of a
# core where the disk is slow, Psi4 as long.
START_UP_S = 2.0
# `auto` widens where that ends the rest so much sooner, as long as the speedup is an assumption: small fragments have
# none (PySCF MP2/DZ, 4 waters, 2 cores: 1 x 2 took 5.4-5.9 s, 2 x 1 3.0-3.2 s).
_WORTH = {"auto": 1.10}
TimesS = Callable[[Term, Sequence[int]], Mapping[int, float] | None]
"""Seconds by width as a measured model tells; ``None``: it does not know."""
Needed = Callable[[Term, int], Need]
"""Memory of a calculation at a width."""


@dataclass(frozen=True, kw_only=True)
class Moldable:
    """Terms to be run at widths of their own.

    Parameters
    ----------
    strategy
        ``auto``, ``adaptive`` or ``memory-aware``, or one of another package, whose plan is followed.
    cpus
        So many may be used.
    widths
        By name of the model chemistry, those that may be used, also such as no so many CPUs allow now.
    size
        Of a calculation; its speedup is assumed by it.
    memory_bytes, disk_bytes
        For all that run at the same time; of disk, ``None``: no limit that is known of.
    workers
        How many of each kind are there already.
    times_s
        A measured model; where it does not know all of them, theory's ratios serve.
    """

    terms: Sequence[Term]
    strategy: str
    machine: Machine
    cpus: int
    widths: Mapping[str, Sequence[int]]
    size: Callable[[Term], Size]
    need: Needed
    memory_bytes: int
    worker_of: Callable[[str, int], WorkerKind]
    """What a calculation of a model chemistry runs in at a width."""
    workers: Mapping[WorkerKind, int]
    disk_bytes: int | None = None
    most_threads: int | None = None
    """Of all that run at the same time; ``None``: as many as are free."""
    at_once: int | None = None
    """How many run at the same time at most; ``None``: as many as fit."""
    disk_now: Callable[[], float] | None = None
    """``disk_bytes`` by now, where it is followed."""
    times_s: TimesS | None = None
    origin: Origin | None = None
    """Of the model's times, where they are not of such calculations on this machine."""
    speedups_measured: bool = False
    """Those of the model are of this machine, not assumed."""

    def foresee(self, *, starting: bool = False) -> Foreseen:
        """What a run would do if everything went as estimated; before anything starts.

        ``starting``: its workers have only begun to start.
        """
        dispatcher, in_seconds = self._dispatcher()
        table = dispatcher.forecast(self.cpus, starting=starting)
        widths = Counter(table.widths)
        usual = max(widths, key=lambda width: (widths[width], -width), default=1)
        runs = list(zip(table.starts_s, table.ends_s, table.widths, strict=True))
        first = max(runs, key=lambda run: (-run[0], run[2]), default=(0.0, 0.0, 1))
        needs = [self.need(term, width) for term, width in zip(self.terms, table.widths, strict=True)]
        return Foreseen(
            one_width=all(bisect(widths, self.cpus) <= 1 for widths in self.widths.values()),
            widths=dict(sorted(widths.items())),
            usual_width=usual,
            first_width=first[2],
            side_by_side=_side_by_side(runs),
            usual_side_by_side=_side_by_side([run for run in runs if run[2] == usual]),
            wall_s=table.makespan_s if in_seconds else None,
            memory_bytes=max((need.memory_bytes for need in needs), default=0),
            memory_measured=all(need.measured for need in needs),
            short_bytes=_if_short(self.memory_bytes, self._most_bytes(need.memory_bytes for need in needs)),
            disk_bytes=_if_short(self.disk_bytes, self._most_bytes(need.scratch_bytes for need in needs)),
            parallel=_ends_of([self._parallel(term) for term in self.terms]),
            origin=self.origin,
            followed="" if self._followed is None else self.strategy,
        )

    def _most_bytes(self, needs_bytes: Iterable[int]) -> int:
        """What those take up that the CPUs might run side by side, at most."""
        return sum(nlargest(min(self.cpus, self.at_once or self.cpus), needs_bytes))

    def source(self, make: Callable[[Term, int, int], Calculation]) -> Dispatched:
        """What an engine runs. ``make``: the calculation of a term at a width, with so much memory."""
        by_label = {term.label: term for term in self.terms}
        narrowest = [(term, self._widths(term)[0]) for term in self.terms]
        least = [make(term, width, self.need(term, width).memory_bytes) for term, width in narrowest]
        return Dispatched(
            self._dispatcher()[0],
            least,
            lambda label, threads, memory_bytes: make(by_label[label], threads, memory_bytes),
            most_threads=self.most_threads,
            disk_bytes=self.disk_now,
        )

    def _dispatcher(self) -> tuple[Dispatcher, bool]:
        """And whether its estimates are in seconds."""
        tasks, in_seconds = self._tasks
        order = None
        if self._followed is not None:
            order = [one.id for one in self._followed.placements]
            most = {one.id: one.threads for one in self._followed.placements}
            tasks = [_no_wider(task, most[task.id]) for task in tasks]
        speedups_measured = in_seconds and self.speedups_measured
        dispatcher = Dispatcher(
            tasks,
            self.machine.cpus_online,
            known="sizes" if not in_seconds else "elsewhere" if self._as_elsewhere else "seconds",
            speedups_measured=speedups_measured,
            memory_bytes=self.memory_bytes,
            disk_bytes=self.disk_bytes,
            at_once=self.at_once,
            start_up_s=START_UP_S,
            worth=1.0 if speedups_measured else _WORTH.get(self.strategy, 1.0),
            worker_of=self.worker_of,
            workers=self.workers,
            order=order,
        )
        return dispatcher, in_seconds

    @property
    def _as_elsewhere(self) -> bool:
        """Nothing was measured here that could correct the times."""
        return self.origin is not None and not self.origin.corrections

    @cached_property
    def _followed(self) -> Plan | None:
        """The plan of another package's strategy; ``None``: the dispatcher decides by itself."""
        if self.strategy in STRATEGIES:
            return None
        limits = {"memory_bytes": self.memory_bytes, "disk_bytes": self.disk_bytes}
        return plan(self._tasks[0], self.cpus, self.strategy, **limits)

    @cached_property
    def _tasks(self) -> tuple[list[Task], bool]:
        """And whether their times are in seconds."""
        told = [None if self.times_s is None else self.times_s(term, self._widths(term)) for term in self.terms]
        in_seconds = all(times_s is not None for times_s in told)
        tasks = [
            self._task(term, times_s if in_seconds and times_s is not None else self._relative(term))
            for term, times_s in zip(self.terms, told, strict=True)
        ]
        return tasks, in_seconds

    def _task(self, term: Term, times_s: Mapping[int, float]) -> Task:
        widths = self._widths(term)
        need = self.need(term, widths[0])
        more = None
        if self.need(term, widths[-1]).memory_bytes != need.memory_bytes:
            more = {width: self.need(term, width).memory_bytes - need.memory_bytes for width in widths}
        return Task(
            term.label,
            times_s,
            need.memory_bytes,
            kind=term.chemistry.name,
            memory_measured=need.measured,
            memory_more_bytes=more,
            disk_bytes=need.scratch_bytes,
        )

    def _relative(self, term: Term) -> dict[int, float]:
        return {width: term.cost / assumed_speedup(width, self._parallel(term)) for width in self._widths(term)}

    def _parallel(self, term: Term) -> float:
        return assumed_parallel_fraction(self.size(term).basis_functions)

    def _widths(self, term: Term) -> Sequence[int]:
        return self.widths[term.chemistry.name]


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What is to be expected of a run whose calculations have widths of their own."""

    one_width: bool
    """There is none to choose, unless more PUs may be used later."""
    widths: Mapping[int, int]
    """How many calculations at each."""
    usual_width: int
    """Of most calculations."""
    first_width: int
    """Of what starts first."""
    side_by_side: int
    """At most."""
    usual_side_by_side: int
    """Of the usual width, at most."""
    wall_s: float | None
    """With the start of workers; ``None``: nothing is known of seconds."""
    memory_bytes: int
    """What the largest needs."""
    memory_measured: bool
    """What each takes was."""
    short_bytes: int | None
    """The memory that there is, where that may keep calculations from running side by side."""
    disk_bytes: int | None
    """For temporary files, where that may keep calculations from running side by side."""
    parallel: tuple[float, float]
    """The least and the largest share of the work that is taken for parallel where no speedup was measured."""
    origin: Origin | None = None
    """Of times that are not of such calculations on this machine."""
    followed: str = ""
    """The strategy of another package whose plan it is."""

    @property
    def limited(self) -> bool:
        """Memory or disk has a part in how many run side by side, or in what each has."""
        return self.memory_known or self.short_bytes is not None or self.disk_bytes is not None

    @property
    def memory_known(self) -> bool:
        """Each is granted what it takes."""
        return self.memory_measured and self.memory_bytes > 0

    def reasons(self) -> list[str]:
        """In words."""
        said, widen = [], ", and the last ones widen over PUs that would idle"
        if self.one_width or self.followed:
            widen = ""
        if len(self.widths) > 1:
            counts = (f"{count} with {format_count(width, 'thread')}" for width, count in self.widths.items())
            said = [f"a width for each calculation, as far as can be foreseen {', '.join(counts)}"]
        elif not self.one_width and not self.followed:
            said = [f"{format_count(self.usual_width, 'thread')} each is best as far as can be foreseen"]
        if self.followed:
            said.append(f"widths and order are those of the plan of {self.followed}: each starts when PUs are free")
        disk = []
        if self.disk_bytes is not None:
            free = format_size(self.disk_bytes)
            disk = [f"{free} of disk are free: as many run side by side as have room for their temporary files"]
        known = "times are those of a measured model"
        if self.origin is not None:
            known = _where(self.origin)
        if self.wall_s is None:
            least, most = (f"{share:.0%}" for share in self.parallel)
            shares = "" if least == most else f" of the smallest and {most} of that of the largest"
            known = f"sizes are known, seconds are not; {least} of the work{shares} is taken for parallel"
        memory, most = [], format_size(self.memory_bytes)
        if self.memory_known:
            memory = [f"each has the memory that it takes by what was measured, up to {most}"]
        if self.short_bytes is not None:
            needs = "" if memory else f"; each needs up to {most}"
            memory.append(f"{format_size(self.short_bytes)} of memory: as many run side by side as fit{needs}")
        return [*said, *memory, *disk, f"{known}; both are corrected as times arrive{widen}"]


def mold(
    terms: Sequence[Term],
    expansion: Expansion,
    strategy: str,
    book: LeaseBook,
    measured: Measured | None,
    *,
    need: Needed,
    narrowest: int = 1,
    most_threads: int | None = None,
    at_once: int | None = None,
    workers: Mapping[WorkerKind, int] | None = None,
) -> Moldable | None:
    """``terms`` at widths of their own; ``None`` where all are to have the same.

    That is so where there are several model chemistries whose seconds were not all measured, because what theory tells
    of one cannot be compared with another's. Where there is no width to choose now there may be later, when more PUs
    may be used.

    ``narrowest``: threads of each at least. ``measured``: ``None`` where what computes is not the program.
    """
    if not terms:
        return None
    now, later = (min(len(cpus), most_threads or len(cpus)) for cpus in (book.usable, book.machine.cpus_online))
    programs = {one.name: one.program for one in expansion.chemistries}
    widths = {
        name: sorted({width for cpus in (now, later) for width in widths_for(registry.get(program), cpus, narrowest)})
        for name, program in programs.items()
    }
    times_s = None if measured is None else measured.times_s
    if len(widths) > 1 and (
        times_s is None or any(times_s(term, widths[term.chemistry.name]) is None for term in terms)
    ):
        return None
    return Moldable(
        terms=terms,
        strategy=strategy,
        machine=book.machine,
        cpus=now,
        widths=widths,
        size=expansion.size,
        need=need,
        memory_bytes=book.memory_bytes,
        disk_bytes=None if measured is None else measured.disk_bytes,
        worker_of=lambda name, width: (
            (programs[name], width) if measured is None else registry.get(programs[name]).worker_of(width)
        ),
        workers=workers or {},
        most_threads=most_threads,
        at_once=at_once,
        times_s=times_s,
        origin=None if measured is None else measured.origin(),
        speedups_measured=measured is not None and measured.speedups_measured(),
    )


def _where(origin: Origin) -> str:
    """In words. Two machines whose CPUs have the same name, as virtual ones often have, need not be as fast."""
    said, remedy = "times are those of a measured model", "`qcthreads calibrate --driver gradient` measures them"
    if origin.measured_on:
        model = cpu_model()
        alike = " with a CPU of the same name" if model and origin.measured_on.startswith(f"{model}, ") else ""
        said = "times are those of a model that comes with qcthreads, "
        said += f"measured on another machine{alike} ({origin.measured_on})"
    keywords = " with default keywords" if origin.default_keywords else ""
    if origin.ratio != 1:
        said += f" of energies{keywords}, guessed to be {origin.ratio:g} times as long for gradients"
    else:
        said, remedy = f"{said}{keywords}", "`qcthreads calibrate` measures this one"
    if keywords:
        remedy = "runs measure those with these keywords"
    if origin.corrections:
        said += f", corrected by {format_count(origin.corrections, 'measurement')} here"
    return f"{said}; {remedy}"


def _no_wider(task: Task, width: int) -> Task:
    """At that width, or where there are fewer PUs at a narrower one."""
    return replace(task, times_s={own: time_s for own, time_s in task.times_s.items() if own <= width})


def _if_short(whole_bytes: int | None, most_bytes: int) -> int | None:
    """``whole_bytes`` where that is less."""
    return whole_bytes if whole_bytes is not None and whole_bytes < most_bytes else None


def _ends_of(shares: Sequence[float]) -> tuple[float, float]:
    return min(shares, default=0.0), max(shares, default=0.0)


def _side_by_side(runs: Sequence[tuple[float, float, int]]) -> int:
    """How many at most, as seen at the first times at which one starts."""
    times_s = sorted({start_s for start_s, _, _ in runs})[:16]
    return max((sum(start_s <= at_s < end_s for start_s, end_s, _ in runs) for at_s in times_s), default=0)
