"""Runs a real calculation at every width, and twice at the same time, and judges whether the program obeyed.

It computes as ``qcthreads run`` does, in worker processes under leases, and changes nothing of what it measures.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..cpuset import CpuSet
from ..errors import CalculationError, LeaseError
from ..leases import Lease, LeaseBook
from ..monitoring.intervals import Interval, median_interval
from ..monitoring.work import Work, WorkCounter
from ..programs.settings import settings_for
from ..programs.spec import ProgramSpec, Settings
from ..units import format_count, format_size
from .sample import Job
from .supervisor import Worker, WorkerEndedError, end_all, scratch_of

TOLERANCE_HARTREE = 1e-7
"""Between widths: sums over threads in another order differ by some 1e-10, and what is iterated stops at 1e-7 or so."""

DEFAULT_REPEATS = 6  # the fewest of which the smallest and the largest hold the median with 95 %

# Less is an excursion: libpsm2, where Open MPI loads it, measures the clock on CPU 0 and returns, after some ms, or
# tenths of a second where that CPU is busy. Whatever still has another mask when it is last seen has left.
_OUTSIDE_SHARE = 0.2
_ENOUGH_S = 0.7  # at 20 looks a second; calculations that are over sooner are repeated within one measurement
_MOST_AT_ONCE = 50
_TRIES = 10
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured at one width, or of one of two at the same time."""

    threads: int
    """The width: all processes together."""
    ranks: int
    threads_working: int
    processes_working: int
    cpus_leased: CpuSet
    cpus_seen: CpuSet
    cpus_allowed: CpuSet
    outside_share: float
    """Of the looks, how many found a thread that worked outside the lease."""
    wall_s: tuple[float, ...]
    """Of one calculation, by repeat."""
    cpu_s: tuple[float, ...]
    memory_granted_bytes: int
    memory_peak_bytes: int
    energy_hartree: float | None
    """``None``: not known where to read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How much faster a width is than the narrowest, by pairs of neighbouring measurements."""

    threads: int
    speedup: Interval
    efficiency: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was measured, and what of it is not as it should be."""

    job: str
    repeats: int
    notes: tuple[str, ...]
    """Widths that the record does not use, and why; excursions from a lease and back."""
    widths: tuple[Measured, ...]
    scaling: tuple[Scaling, ...]
    two_at_once: tuple[Measured, ...]
    """Empty where there are not enough CPUs."""
    side_by_side: Interval | None
    """Mean wall time of two at the same time / that of one alone, at the same width, right before them; ``None``: not
    measured."""
    version_told: str | None
    """The program's version as its results have it, where they do."""
    problems: tuple[str, ...]

    @property
    def obeys(self) -> bool:
        """Whether everything was as it should be."""
        return not self.problems


def verify(
    spec: ProgramSpec,
    job: Job,
    book: LeaseBook,
    *,
    memory_bytes: int,
    repeats: int = DEFAULT_REPEATS,
    widest: int | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Verification:
    """Measure, and judge.

    Parameters
    ----------
    book
        Where the PUs and the memory come from.
    memory_bytes
        Granted to each calculation.
    repeats
        Rounds of measurements, each of every width once.
    widest
        The widest; ``None``: all that may be used.
    say
        Called with a line of progress now and then.

    Raises
    ------
    CalculationError
        The program failed.
    LeaseError, MachineError
        The machine cannot, with the numbers.
    """
    usable = len(book.usable)
    asked = _widths(min(widest or usable, usable))
    all_settings = {width: settings_for(spec, width, memory_bytes) for width in asked}
    widths = sorted({settings.threads for settings in all_settings.values()})
    with tempfile.TemporaryDirectory(prefix="qcthreads-verify-") as scratch:
        bench = _Bench(spec, job, book, memory_bytes, Path(scratch), say)
        try:
            alone = _alone(bench, widths, repeats)
            half = settings_for(spec, max(1, usable // 2), memory_bytes).threads
            room = usable >= 2 * half and len(book.gpus) >= 2 * bench.gpus
            two, ratios = _two_at_once(bench, half, repeats) if room else ((), ())
        finally:
            end_all(bench.workers)
    return Verification(
        job=job.title,
        repeats=repeats,
        notes=tuple(
            dict.fromkeys(note for settings in all_settings.values() for note in (*settings.notes, *_trips(alone, two)))
        ),
        widths=alone,
        scaling=_scaling(alone),
        two_at_once=two,
        side_by_side=median_interval(ratios) if ratios else None,
        version_told=bench.version_told,
        problems=tuple(_problems(alone, two)),
    )


def _widths(widest: int) -> list[int]:
    """1, 2, 4, ... and the widest."""
    return sorted({*(2**k for k in range(widest.bit_length()) if 2**k <= widest), widest})


class _Bench:
    """Workers of one program at any width, and one measurement of one of them."""

    def __init__(
        self,
        spec: ProgramSpec,
        job: Job,
        book: LeaseBook,
        memory_bytes: int,
        scratch: Path,
        say: Callable[[str], object],
    ) -> None:
        self.spec, self.job, self.book, self.memory_bytes, self.say = spec, job, book, memory_bytes, say
        self.gpus = spec.gpus_of(len(book.gpus))
        """Of each calculation."""
        self._scratch = scratch
        self._at_once: dict[int, int] = {}
        """Calculations in one measurement, by width."""
        self.workers: list[Worker] = []
        self._by_width: dict[int, Worker] = {}
        """The first of each."""
        self.version_told: str | None = None

    def lease(self, width: int, timeout_s: float | None = None) -> Lease:
        """One, when it can be had."""

        def on_wait(holders: str) -> None:
            self.say(f"waits for CPUs held by {holders}")

        return self.book.acquire(width, self.memory_bytes, self.gpus, timeout=timeout_s, on_wait=on_wait)

    def worker(self, width: int, lease: Lease) -> Worker:
        """One under ``lease`` that has computed once: all is loaded, and QCEngine knows the program's version."""
        folder = self._scratch / f"w{len(self.workers) + 1}"
        try:
            worker = Worker(self.settings(width, folder), folder, lease.cpus, None, lease)
        except WorkerEndedError as error:
            raise CalculationError(str(error)) from error
        self.workers.append(worker)
        self._by_width.setdefault(width, worker)
        wall_s = self.compute(worker, width)[0]
        self._at_once[width] = max(1, min(_MOST_AT_ONCE, math.ceil(_ENOUGH_S / max(wall_s, 1e-3))))
        return worker

    def first_worker(self, width: int, lease: Lease) -> Worker:
        """The one that computed at ``width`` before, now under ``lease``; else a new one."""
        worker = self._by_width.get(width)
        if worker is None:
            return self.worker(width, lease)
        worker.hold(lease)
        worker.rebind(lease.cpus)
        return worker

    def measure(self, worker: Worker, width: int) -> tuple[Work, float, float, float | None]:
        """What worked, wall and CPU seconds of one calculation, and its energy."""
        with WorkCounter(worker.pid) as counter:
            results = [self.compute(worker, width) for _ in range(self._at_once[width])]
        wall_s, cpu_s, energies = zip(*results, strict=True)
        return counter.work(), statistics.mean(wall_s), statistics.mean(cpu_s), energies[-1]

    def settings(self, width: int, folder: Path) -> Settings:
        """At ``width``, with its temporary files in ``folder``."""
        return settings_for(self.spec, width, self.memory_bytes, str(scratch_of(folder)))

    def compute(self, worker: Worker, width: int) -> tuple[float, float, float | None]:
        """One calculation: wall and CPU seconds, and the energy."""
        try:
            reply = worker.compute(self.job.request(self.settings(width, worker.folder)), None)
        except WorkerEndedError as error:
            raise CalculationError(f"{self.spec.title} at width {width}: {error}") from error
        if reply["status"] != "finished":
            raise CalculationError(f"{self.spec.title} failed at width {width}: {reply['error']}")
        self.version_told = (reply["result"].get("provenance") or {}).get("version")
        energy = reply["result"].get("return_result")
        if energy is None:  # of corrections alone
            energy = (reply["result"].get("properties") or {}).get("return_energy")
        return reply["wall_s"], reply["cpu_s"], energy


def _alone(bench: _Bench, widths: Sequence[int], repeats: int) -> tuple[Measured, ...]:
    """Every width once in every round, so that a drift of the machine hits all alike."""
    for width in widths:
        bench.say(f"starts a worker of width {width}")
        with bench.lease(width) as lease:
            bench.worker(width, lease)
    seen: dict[int, list[_Repeat]] = {width: [] for width in widths}
    for number in range(repeats):
        for width in widths if number % 2 == 0 else reversed(widths):
            bench.say(f"round {number + 1} of {repeats}, width {width}")
            with bench.lease(width) as lease:
                seen[width].append(_Repeat(lease.cpus, *bench.measure(bench.first_worker(width, lease), width)))
    return tuple(_summed(bench, width, seen[width]) for width in widths)


def _two_at_once(bench: _Bench, width: int, repeats: int) -> tuple[tuple[Measured, ...], tuple[float, ...]]:
    """What each of them did; and by round their wall time / that of one alone right before."""
    bench.say(f"starts a second worker of width {width}")
    leases = _two_leases(bench, width)
    seen: list[list[_Repeat]] = [[], []]
    ratios = []
    with leases[0], leases[1], ThreadPoolExecutor(2) as pool:
        workers = [bench.first_worker(width, leases[0]), bench.worker(width, leases[1])]
        for number in range(repeats):
            bench.say(f"round {number + 1} of {repeats}, two at the same time, of width {width}")
            alone = _Repeat(leases[0].cpus, *bench.measure(workers[0], width))
            done = pool.map(lambda worker: bench.measure(worker, width), workers)
            for one, lease, measured in zip(seen, leases, done, strict=True):
                one.append(_Repeat(lease.cpus, *measured))
            ratios.append(statistics.mean(one[-1].wall_s for one in seen) / alone.wall_s)
    return tuple(_summed(bench, width, one) for one in seen), tuple(ratios)


def _two_leases(bench: _Bench, width: int) -> tuple[Lease, Lease]:
    """One after the other. Whoever holds the first and waits for the second may wait for another that does the same:
    after a while it gives up the first and begins anew."""
    for left in reversed(range(_TRIES)):
        first = bench.lease(width)
        try:
            return first, bench.lease(width, timeout_s=_PATIENCE_S)
        except LeaseError:
            first.release()
            if not left:
                raise
        except BaseException:
            first.release()
            raise
    raise AssertionError("the last try raises")


@dataclass(frozen=True, slots=True)
class _Repeat:
    """One measurement."""

    leased: CpuSet
    work: Work
    wall_s: float
    cpu_s: float
    energy: float | None


def _summed(bench: _Bench, width: int, seen: Sequence[_Repeat]) -> Measured:
    """All repeats; of the counts what was seen most often, of what must not be, the worst."""
    worst = max(seen, key=lambda one: one.work.outside_share(one.leased))
    return Measured(
        threads=width,
        ranks=settings_for(bench.spec, width).ranks,
        threads_working=statistics.mode(one.work.threads for one in seen),
        processes_working=statistics.mode(one.work.processes for one in seen),
        cpus_leased=worst.leased,
        cpus_seen=worst.work.cpus_seen,
        cpus_allowed=worst.work.cpus_allowed,
        outside_share=worst.work.outside_share(worst.leased),
        wall_s=tuple(one.wall_s for one in seen),
        cpu_s=tuple(one.cpu_s for one in seen),
        memory_granted_bytes=bench.memory_bytes,
        memory_peak_bytes=max(one.work.memory_peak_bytes for one in seen),
        energy_hartree=seen[-1].energy,
    )


def _scaling(widths: Sequence[Measured]) -> tuple[Scaling, ...]:
    made = []
    for one in widths:
        ratios = [narrow_s / wide_s for narrow_s, wide_s in zip(widths[0].wall_s, one.wall_s, strict=True)]
        more = one.threads / widths[0].threads
        made.append(
            Scaling(
                threads=one.threads,
                speedup=median_interval(ratios),
                efficiency=median_interval(ratio / more for ratio in ratios),
            )
        )
    return tuple(made)


def _trips(alone: Sequence[Measured], two: Sequence[Measured]) -> Iterator[str]:
    for one in (*alone, *two):
        if one.outside_share and not _is_outside(one):
            yield (
                f"{one.outside_share:.0%} of the looks found a thread on CPUs {one.cpus_seen - one.cpus_leased}, "
                f"outside the lease of {one.cpus_leased}; it went back by itself"
            )


def _problems(alone: Sequence[Measured], two: Sequence[Measured]) -> Iterator[str]:
    for one in alone:
        yield from _disobeyed(f"at a width of {one.threads}", one)
    for number, one in enumerate(two, start=1):
        yield from _disobeyed(f"number {number} of two at the same time", one)
    yield from _energies_differ(one.energy_hartree for one in [*alone, *two])


def _disobeyed(where: str, one: Measured) -> Iterator[str]:
    if one.threads_working != one.threads:
        yield f"{where} {format_count(one.threads_working, 'thread')} worked"
    if _is_outside(one):
        yield (
            f"{where} it left its lease of CPUs {one.cpus_leased}: seen on {one.cpus_seen}, "
            f"free to run on {one.cpus_allowed}"
        )
    if one.memory_peak_bytes > one.memory_granted_bytes:
        granted, peak = format_size(one.memory_granted_bytes), format_size(one.memory_peak_bytes)
        yield f"{where} it held {peak} of memory, and was granted {granted}"


def _is_outside(one: Measured) -> bool:
    return one.outside_share > _OUTSIDE_SHARE or not one.cpus_allowed <= one.cpus_leased


def _energies_differ(energies: Iterable[float | None]) -> Iterator[str]:
    known = [energy for energy in energies if energy is not None]
    if known and max(known) - min(known) > TOLERANCE_HARTREE:
        yield f"energies differ by {max(known) - min(known):.1e} hartree, and {TOLERANCE_HARTREE:g} is allowed"
