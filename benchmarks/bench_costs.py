"""How well a calibrated model predicts molecules it was not fitted to, beside theory alone; prints, asserts nothing.

    python benchmarks/bench_costs.py [--program pyscf --method mp2 --basis cc-pvdz --seconds 60 --width 1 --rounds 4]

A model is fitted to the ladder of `qcthreads calibrate` (water, ammonia and methane, up to --seconds) in a data
directory of its own. Then every monomer, dimer and trimer of water, methanol and hydrogen peroxide, with and without
ghosts, is computed once in each round, in the worker that is warm from the ladder. What it takes is the least of its
rounds, as on the ladder: what disturbs a calculation makes it longer, never shorter. Theory alone is the formal scaling
of the method with the number of basis functions, its factor the best that there could be.

Half of the molecules have as many functions as the cluster and take nearly the same time, so that noise alone changes
their order. How much is measured, too: every second round as a prediction of the others. From their rank correlation r
follows that of all rounds with what they would be without noise, sqrt(2 r / (1 + r)) (Spearman, Brown, 1910): no model
can be expected to have a higher one.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from itertools import combinations
from typing import Any

import asking

from qcthreads.execution.calculation import Calculation
from qcthreads.execution.cost_store import CostStore, Kind
from qcthreads.execution.engine import LocalEngine
from qcthreads.execution.observing import Watching
from qcthreads.leases import process_book
from qcthreads.manybody.calibration import Measurement, calibrate, measurement_of
from qcthreads.manybody.sizes import size_of
from qcthreads.planning import relative_cost
from qcthreads.planning.costs import Size, memory_grant
from qcthreads.programs import registry
from qcthreads.units import BOHR_TO_ANGSTROM

NUMBERS = {"H": 1, "C": 6, "O": 8}

# Angstrom; CCCBDB, release 22, experimental geometries.
WATER = (("O", 0.0, 0.0, 0.1173), ("H", 0.0, 0.7572, -0.4692), ("H", 0.0, -0.7572, -0.4692))
METHANOL = (
    ("C", -0.0503, 0.6685, 0.0),
    ("O", -0.0503, -0.7585, 0.0),
    ("H", -1.0807, 1.0417, 0.0),
    ("H", 0.4650, 1.0417, 0.8924),
    ("H", 0.4650, 1.0417, -0.8924),
    ("H", 0.8544, -1.0417, 0.0),
)  # fmt: skip
PEROXIDE = (
    ("O", 0.0, 0.7375, -0.0528),
    ("O", 0.0, -0.7375, -0.0528),
    ("H", 0.8190, 0.8170, 0.4220),
    ("H", -0.8190, -0.8170, 0.4220),
)  # fmt: skip
CLUSTER = (WATER, METHANOL, PEROXIDE, WATER)
APART = 3.4


def cases(with_basis: bool) -> list[tuple[str, dict[str, Any], Size]]:
    """Label, QCSchema molecule and size of every term up to three bodies, in its own basis and in the cluster's."""
    found = []
    for count in (1, 2, 3):
        for chosen in combinations(range(len(CLUSTER)), count):
            for ghosts in (False, True) if with_basis else (False,):
                members = range(len(CLUSTER)) if ghosts else chosen
                atoms = [(at, *atom) for at in members for atom in CLUSTER[at]]
                real = [at in chosen for at, *_ in atoms]
                numbers = [NUMBERS[symbol] for _, symbol, *_ in atoms]
                size = size_of(
                    [number for number, there in zip(numbers, real, strict=True) if there],
                    [number for number, there in zip(numbers, real, strict=True) if not there],
                    with_basis=with_basis,
                )
                geometry = [value / BOHR_TO_ANGSTROM for at, _, x, y, z in atoms for value in (x + APART * at, y, z)]
                molecule = {"symbols": [atom[1] for atom in atoms], "geometry": geometry, "real": real}
                found.append((f"{chosen} {'in all' if ghosts else ''}", molecule, size))
    return found


def atomic_input(molecule: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """As plain data."""
    from qcelemental.models.v2 import AtomicInput, Molecule

    model = {"method": kind.method} | ({"basis": kind.basis} if kind.basis else {})
    specification = {"program": kind.program, "driver": kind.driver, "model": model}
    whole = Molecule(**molecule, fix_com=True, fix_orientation=True)
    made: dict[str, Any] = AtomicInput(molecule=whole, specification=specification).model_dump(mode="json")
    return made


def ranks(values: list[float]) -> list[float]:
    """Of each value; equal ones share theirs."""
    ordered = sorted(values)
    return [statistics.mean(at for at, other in enumerate(ordered) if other == value) for value in values]


def measure(
    held_out: list[tuple[str, dict[str, Any], Size]],
    kind: Kind,
    width: int,
    rounds: int,
    engine: LocalEngine,
    watching: Watching,
) -> list[list[Measurement]]:
    """Of each molecule all rounds. Each round begins elsewhere: what ran just before, and drift, hit all alike."""
    found: list[list[Measurement]] = [[] for _ in held_out]
    for number in range(rounds):
        turn = number * len(held_out) // rounds
        for at in (*range(turn, len(held_out)), *range(turn)):
            label, molecule, size = held_out[at]
            calculation = Calculation(
                label=f"{number} {label}", program=kind.program, input=atomic_input(molecule, kind), threads=width
            )
            (outcome,) = engine.run([calculation], max_workers=1)
            if outcome.status != "finished":
                raise SystemExit(f"{outcome.label}: {outcome.error}")
            found[at].append(measurement_of(size, watching.attempts[-1]))
    return found


def least(measured: list[list[Measurement]], first: int = 0, step: int = 1) -> list[float]:
    """Seconds of each molecule, of all rounds or some."""
    return [min(one.wall_s for one in rounds[first::step]) for rounds in measured]


def report(name: str, predicted: list[float], measured: list[float]) -> float:
    """One row; returns the rank correlation."""
    errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
    rank = statistics.correlation(ranks(predicted), ranks(measured))
    worst = max(errors)
    print(f"{name:34} {100 * statistics.median(errors):7.1f} % {100 * worst:9.1f} %   {rank:.4f}")
    return rank


def main() -> None:
    """Fit, measure, compare."""
    parser = asking.parser(__doc__, rounds=4, least=2)
    parser.add_argument("--program", default="pyscf")
    parser.add_argument("--method", default="mp2")
    parser.add_argument("--basis", default="cc-pvdz", help="'' for a program without basis sets")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--width", type=int, default=1)
    args = parser.parse_args()
    kind = Kind(registry.known(args.program), "energy", args.method, args.basis)
    book = process_book()
    watching = Watching()
    held_out = cases(bool(kind.basis))
    sizes = [size for _, _, size in held_out]
    with tempfile.TemporaryDirectory() as home, LocalEngine(book, observer=watching) as engine:
        store = CostStore(book.machine, {"XDG_DATA_HOME": home})
        seen = calibrate(kind, dict.fromkeys(sorted({1, args.width}), engine), args.seconds, watching=watching)
        store.add(kind, [one.observation for one in seen])
        model = store.model(kind)
        measured = measure(held_out, kind, args.width, args.rounds, engine, watching)
    estimates = [model.seconds(size, args.width) for size in sizes]
    seconds = least(measured)
    theory = [relative_cost(kind.method, basis_functions=size.basis_functions) for size in sizes]
    scale = math.exp(statistics.median(math.log(s / t) for s, t in zip(seconds, theory, strict=True)))
    print(f"{kind.program} {kind.method}/{kind.basis}, width {args.width}: {len(seen)} calculations fitted, ", end="")
    print(f"{len(held_out)} others predicted ({min(seconds):.2f} to {max(seconds):.2f} s), {args.rounds} rounds")
    print(f"{'':34} {'median':>9} {'worst':>11}   rank correlation")
    report("calibrated model, time", [e.value for e in estimates if e], seconds)
    report("theory alone, time (scaled)", [scale * t for t in theory], seconds)
    again = report("measured again, time", least(measured, 0, 2), least(measured, 1, 2))
    peaks = [float(max(one.peak_memory_bytes for one in rounds)) for rounds in measured]
    memory = [model.memory_bytes(size) for size in sizes]
    report("calibrated model, peak memory", [e.value for e in memory if e], peaks)
    print(f"the best rank correlation that this noise allows: {math.sqrt(2 * again / (1 + again)):.4f}")
    within = [abs(math.log(e.value / s)) < math.log(e.factor) for e, s in zip(estimates, seconds, strict=True) if e]
    print(f"within one stated uncertainty: {100 * statistics.mean(within):.0f} % (68 % would be exact)")
    ratios = sorted(memory_grant(e) / p for p, e in zip(peaks, memory, strict=True) if e)
    off = sorted(abs(ratio - 1) for ratio in ratios)
    print(f"memory granted / peak: {ratios[0]:.3f} to {ratios[-1]:.3f}, median {statistics.median(ratios):.3f}")
    print(f"95th percentile of the difference: {100 * off[math.ceil(0.95 * len(off)) - 1]:.1f} %")


if __name__ == "__main__":
    main()
