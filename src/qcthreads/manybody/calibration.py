"""Runs a ladder of molecules at several widths and tells what each took; fits, keeps and prints nothing."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CalculationError, InputError, QCThreadsError
from ..execution.calculation import Calculation, Progress
from ..execution.cost_store import Kind
from ..execution.engine import LocalEngine
from ..execution.observing import Attempt, Watching
from ..leases import LeaseBook
from ..monitoring.findings import CONTENDED_SHARE, disturbance
from ..planning.cost import relative_cost
from ..planning.costs import CostModel, Observation, Size
from ..programs import registry
from ..units import BOHR_TO_ANGSTROM, format_count
from .measured import net_wall_s
from .sizes import size_of
from .watched import peak_bytes

# Experimental geometries in angstrom (NIST Computational Chemistry Comparison and Benchmark Database, release 22).
_WATER = (("O", 0.0, 0.0, 0.1173), ("H", 0.0, 0.7572, -0.4692), ("H", 0.0, -0.7572, -0.4692))
_AMMONIA = (
    ("N", 0.0, 0.0, 0.0),
    ("H", 0.0, -0.9377, -0.3816),
    ("H", 0.8121, 0.4689, -0.3816),
    ("H", -0.8121, 0.4689, -0.3816),
)
_METHANE = (
    ("C", 0.0, 0.0, 0.0),
    ("H", 0.6276, 0.6276, 0.6276),
    ("H", 0.6276, -0.6276, -0.6276),
    ("H", -0.6276, 0.6276, -0.6276),
    ("H", -0.6276, -0.6276, 0.6276),
)
_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8}
_APART = 3.2  # angstrom between molecules: about that of waters in liquid water and of what they are bound to
# Angstrom by which each but the first stands beside the lattice: a cluster has no symmetry. Programs gain from one, and
# QCEngine cannot match what NWChem has mirrored with its input.
_ASIDE = 0.15

# (molecule, how many, of which so many are ghosts), from small to large.
_LADDER = (
    (_WATER, 1, 0),
    (_AMMONIA, 1, 0),
    (_METHANE, 1, 0),
    (_WATER, 2, 1),
    (_WATER, 2, 0),
    (_WATER, 3, 2),
    (_WATER, 3, 1),
    (_WATER, 3, 0),
    (_METHANE, 3, 0),
    (_WATER, 4, 3),
    (_WATER, 4, 0),
    (_AMMONIA, 5, 0),
    (_WATER, 6, 4),
    (_WATER, 6, 0),
    (_WATER, 8, 0),
    (_WATER, 12, 0),
    (_WATER, 16, 0),
    (_WATER, 24, 0),
    (_WATER, 32, 0),
)

_AT_ANY_WIDTH = 2  # repetitions: the first at a width may warm what the second finds


@dataclass(frozen=True, slots=True)
class Rung:
    """One molecule of the ladder."""

    label: str
    molecule: dict[str, Any]
    """QCSchema, in bohr."""
    size: Size


@dataclass(frozen=True, slots=True)
class Measurement:
    """The best of what one molecule took at one width."""

    size: Size
    width: int
    wall_s: float
    """Without the time for which its threads waited for CPUs that others used."""
    peak_memory_bytes: int
    peak_scratch_bytes: int = 0
    waited: float = 0.0
    """The share of the time that its threads wanted to run for which others' work kept them waiting."""
    others_cpus: float | None = None
    """How many of its CPUs others kept busy, on average; ``None``: not known."""
    gross_wall_s: float | None = None
    """With the time for which its threads waited; ``None``: not known."""

    @property
    def disturbed(self) -> bool:
        """It waited so much that its time says little: threads wait for the one that waits, and caches are cold."""
        return self.waited > CONTENDED_SHARE

    @property
    def observation(self) -> Observation:
        """What is to be kept: peaks, and the time where it was not disturbed, else that it takes no longer."""
        peaks = self.peak_memory_bytes, self.peak_scratch_bytes
        if self.disturbed:
            return Observation(self.size, self.width, None, *peaks, at_most_s=self.gross_wall_s)
        return Observation(self.size, self.width, self.wall_s, *peaks)


def measurement_of(size: Size, attempt: Attempt) -> Measurement:
    """What one finished calculation took."""
    usage = attempt.usage
    return Measurement(
        size,
        attempt.outcome.threads,
        net_wall_s(attempt),
        peak_bytes(attempt.outcome, usage),
        attempt.scratch_bytes,
        disturbance(attempt.grant, usage),
        None if usage is None or usage.other_cpu_ns is None else usage.other_cpu_ns / usage.wall_ns,
        attempt.outcome.wall_s,
    )


def ladder(*, with_basis: bool) -> list[Rung]:
    """From one molecule to 32, with ghosts where there is a basis that they can bring; the cheapest first."""
    rungs = [_rung(*shape, with_basis=with_basis) for shape in _LADDER if with_basis or not shape[2]]
    of_size = {rung.size: rung for rung in reversed(rungs)}  # where two are as large, one will do
    return sorted(of_size.values(), key=lambda rung: (rung.size.basis_functions, rung.size.electrons))


def widths_of(program: str, cpus: int) -> list[int]:
    """Powers of two, and all, which is the width of one calculation at a time; as far as the program can use them."""
    most = min(cpus, registry.get(program).useful_width or cpus)
    widths = [2**exponent for exponent in range(most.bit_length()) if 2**exponent <= most]
    return widths if widths[-1] == most else [*widths, most]


@contextlib.contextmanager
def engines_of(
    widths: Iterable[int],
    book: LeaseBook,
    watching: Watching,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[dict[int, LocalEngine]]:
    """One for each width, which keeps its worker while those of the others compute; they end with ``with``."""
    with contextlib.ExitStack() as stack:
        yield {
            width: stack.enter_context(LocalEngine(book, on_progress=on_progress, observer=watching))
            for width in widths
        }


def calibrate(
    kind: Kind,
    engines: Mapping[int, LocalEngine],
    seconds: float,
    *,
    memory_bytes: int = 0,
    keywords: dict[str, Any] | None = None,
    watching: Watching | None = None,
    on_rung: Callable[[Rung, int, Measurement], None] = lambda *_: None,
    on_left_out: Callable[[QCThreadsError], None] = lambda _: None,
) -> list[Measurement]:
    """Climb until the next molecule would probably not end within ``seconds``; one calculation at a time.

    The smallest molecule is measured however few they are. A larger one on which the program fails is left out. What
    others disturbed is repeated in what is left of the time. Neither the time that workers take to start is counted,
    nor that for which leases are waited for.

    ``engines``: of every width that is measured, what computes at it. ``on_rung`` is told each molecule, width and the
    best measurement of them until then, ``on_left_out`` why one is left out. ``watching``: the engines' observer, which
    sees the memory of all processes and the time for which others kept them waiting.

    Raises
    ------
    InputError, MachineError
        As from the engine: an unknown program, one that is not installed, a width that does not fit. InputError too
        where the program calls its input wrong, as with a method that it does not have.
    CalculationError
        The program failed on the smallest molecule.
    """
    if not seconds > 0:
        raise InputError(f"a calibration takes seconds above 0, not {seconds:g}")
    climbing = _Climb(kind, engines, memory_bytes, keywords or {}, watching)
    rungs = ladder(with_basis=bool(kind.basis))
    for width in engines:
        climbing.run(rungs[0], width)  # what a program does once for a worker is no molecule's
    end = time.monotonic() + seconds - climbing.waited_s
    best: dict[tuple[int, int], Measurement] = {}  # by place on the ladder and width

    def left_s() -> float:
        return end + climbing.waited_s - time.monotonic()

    for place, rung in enumerate(rungs):
        seen = list(best.values())
        if seen and left_s() < _expected_s(kind.method, seen, rung.size) * len(engines):
            break
        try:
            for width in engines:
                best[place, width] = _better(climbing.run(rung, width) for _ in range(_AT_ANY_WIDTH))
                on_rung(rung, width, best[place, width])
        except (CalculationError, InputError) as error:
            if not seen:
                raise
            for width in engines:
                best.pop((place, width), None)
            on_left_out(error)

    def may_be_repeated(one: Measurement) -> bool:
        return one.disturbed and one.wall_s < left_s()

    failed: set[tuple[int, int]] = set()  # which the program computed before
    while again := [at for at, one in best.items() if at not in failed and may_be_repeated(one)]:
        for place, width in again:
            if may_be_repeated(best[place, width]):
                try:
                    best[place, width] = _better((best[place, width], climbing.run(rungs[place], width)))
                except CalculationError:
                    failed.add((place, width))
                on_rung(rungs[place], width, best[place, width])
    return list(best.values())


def _better(tries: Iterable[Measurement]) -> Measurement:
    """The fastest of those that nobody disturbed, else the one that waited least."""
    return min(tries, key=lambda one: (one.disturbed, one.waited if one.disturbed else one.wall_s))


class _Climb:
    def __init__(
        self,
        kind: Kind,
        engines: Mapping[int, LocalEngine],
        memory_bytes: int,
        keywords: dict[str, Any],
        watching: Watching | None,
    ) -> None:
        self._kind, self._engines, self._memory_bytes, self._keywords = kind, engines, memory_bytes, keywords
        self._watching = watching
        self._count = 0
        self.waited_s = 0.0
        """For leases, all together."""

    def run(self, rung: Rung, width: int) -> Measurement:
        self._count += 1
        model = {"method": self._kind.method} | ({"basis": self._kind.basis} if self._kind.basis else {})
        specification = {"program": self._kind.program, "driver": self._kind.driver, "model": model}
        calculation = Calculation(
            label=f"{rung.label}, {width} wide, number {self._count}",
            program=self._kind.program,
            input=_atomic_input(rung.molecule, {**specification, "keywords": self._keywords}),
            threads=width,
            memory_bytes=self._memory_bytes,
        )
        (outcome,) = self._engines[width].run([calculation], max_workers=1)
        self.waited_s += outcome.waited_s
        if outcome.status != "finished":
            raise self._failure(rung, width, outcome.error or "")
        if self._watching is None:
            return Measurement(rung.size, width, outcome.wall_s, outcome.peak_memory_bytes)
        return measurement_of(rung.size, self._watching.attempts[-1])

    def _failure(self, rung: Rung, width: int, error: str) -> QCThreadsError:
        spec = registry.get(self._kind.program)
        kind, _, message = error.partition(": ")
        if kind != "input_error":
            return CalculationError(
                f"{spec.title} failed on {rung.label} with {format_count(width, 'thread')}: {error}"
            )
        has = f"; its methods are {', '.join(spec.methods)}" if spec.methods else ""
        return InputError(f"{spec.title} does not take {self._kind.model}: {message.rstrip('.')}{has}")


def _expected_s(method: str, seen: Sequence[Measurement], size: Size) -> float:
    """All repetitions at width 1; by theory from the largest so far until there are enough for a model."""
    if len({one.size for one in seen}) > 3:
        times = tuple(replace(one.observation, wall_s=one.wall_s, at_most_s=None) for one in seen)
        estimate = CostModel(method=method, observations=times).seconds(size)
        assert estimate is not None
        return estimate.value * _AT_ANY_WIDTH
    last = next(one for one in seen if one.size == seen[-1].size)  # the narrowest, which others delay least
    grown = relative_cost(method, basis_functions=size.basis_functions) / relative_cost(
        method, basis_functions=last.size.basis_functions
    )
    return last.wall_s * math.sqrt(grown) * _AT_ANY_WIDTH  # most of a small calculation does not grow


def _rung(shape: Sequence[tuple[str, float, float, float]], count: int, ghosts: int, *, with_basis: bool) -> Rung:
    side = math.ceil(count ** (1 / 3))
    places = [_place(n, side) for n in range(count)]
    atoms = [(symbol, x + at[0], y + at[1], z + at[2]) for at in places for symbol, x, y, z in shape]
    real = [n < len(shape) * (count - ghosts) for n in range(len(atoms))]
    symbols = [symbol for symbol, *_ in atoms]
    names = {id(_WATER): "water", id(_AMMONIA): "ammonia", id(_METHANE): "methane"}
    label = f"{count} x {names[id(shape)]}" + (f", {ghosts} of them ghosts" if ghosts else "")
    numbers = [_NUMBERS[symbol] for symbol in symbols]
    size = size_of(
        [number for number, there in zip(numbers, real, strict=True) if there],
        [number for number, there in zip(numbers, real, strict=True) if not there],
        with_basis=with_basis,
    )
    geometry = [round(value / BOHR_TO_ANGSTROM, 8) for _, *xyz in atoms for value in xyz]
    return Rung(label, {"symbols": symbols, "geometry": geometry, "real": real}, size)


def _place(n: int, side: int) -> tuple[float, float, float]:
    """Of the ``n``-th molecule of a lattice with so many in a row, in angstrom."""
    along, across, up = n % side, n // side % side, n // side**2
    aside = (_ASIDE * math.sin(n), _ASIDE * math.sin(2 * n), _ASIDE * math.sin(3 * n))
    return _APART * along + aside[0], _APART * across + aside[1], _APART * up + aside[2]


def _atomic_input(molecule: dict[str, Any], specification: dict[str, Any]) -> dict[str, Any]:
    from qcelemental.models.v2 import AtomicInput, Molecule

    whole = Molecule(**molecule, fix_com=True, fix_orientation=True)
    made: dict[str, Any] = AtomicInput(molecule=whole, specification=specification).model_dump(mode="json")
    return made
