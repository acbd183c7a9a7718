"""Hybrid against fragments alone on 16 to 256 CPUs, simulated with measured costs and speedups; asserts nothing.

    python benchmarks/bench_simulated.py

Nothing is run: the plans of `qcthreads.planning` for tasks whose times follow from what comes with qcthreads, measured
at 1 and 2 threads (`execution/measured`). Times at one thread: the cost model's law, beyond the sizes measured also.
Speedups: Amdahl's law through the median of those measured at 2 threads, of calculations with up to 48 basis functions
and of larger ones. What more threads do was not measured: where they share the memory's bandwidth a few may use it up,
so that each is told with Amdahl's law alone, and with nothing gained beyond 8 threads.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from importlib.resources import files

import asking
from bench_planning import print_row

from qcthreads.planning import Task, plan
from qcthreads.planning.cost import assumed_speedup
from qcthreads.planning.costs import CostModel, Observation, Size

PROGRAMS = (("pyscf", "mp2"), ("pyscf", "hf"), ("psi4", "hf"))
SMALL = 48  # basis functions
SATURATED = 8  # threads
WATER, BENZENE, LIGAND = Size(24, 10), Size(114, 42), Size(228, 84)
CPUS = (16, 64, 256)
HEAD = (
    "program", "workload", "CPUs", "tasks", "fragments alone", "best uniform width", "auto",
    "fragments alone / auto", f"nothing gained beyond {SATURATED} threads", "auto chose then, widths",
)  # fmt: skip


def main() -> None:
    """Print the speedups, and the table."""
    asking.parser(__doc__).parse_args()
    print_row(("program", "method", "speedup at 2 threads, small", "large", "parallel share, small", "large"))
    print_row(["---"] * 6)
    models = {both: model_of(*both) for both in PROGRAMS}
    for (program, method), model in models.items():
        seen = [speedup_at_2(model, large) for large in (False, True)]
        shares = [parallel_share(model, large) for large in (False, True)]
        print_row((program, method, *(f"{figure:.2f}" for figure in (*seen, *shares))))
    print("\nmakespan / lower bound, simulated\n")
    print_row(HEAD)
    print_row(["---"] * len(HEAD))
    for (program, method), model in models.items():
        for workload, sizes in WORKLOADS.items():
            for cpus in CPUS:
                own, _, gained = compared(tasks_of(model, sizes, cpus, math.inf), cpus)
                _, chosen, gained_less = compared(tasks_of(model, sizes, cpus, SATURATED), cpus)
                row = (*own, gained, gained_less, chosen)
                print_row((f"{program} {method}", workload, cpus, sum(sizes.values()), *row))


def clusters(waters: int, bodies: int) -> dict[Size, int]:
    """How many calculations of each size the many-body expansion of so many waters has."""
    return {Size(24 * order, 10 * order): math.comb(waters, order) for order in range(1, bodies + 1)}


def solvated(waters: int) -> dict[Size, int]:
    """A large molecule with each of the waters, and these by pairs: a few calculations have most of the work."""
    pair = Size(LIGAND.basis_functions + WATER.basis_functions, LIGAND.electrons + WATER.electrons)
    return {LIGAND: 1, pair: waters} | clusters(waters, 2)


WORKLOADS: Mapping[str, dict[Size, int]] = {
    "8 waters, 2 bodies": clusters(8, 2),
    "16 waters, 3 bodies": clusters(16, 3),
    "32 waters, 3 bodies": clusters(32, 3),
    "4 benzenes, 2 bodies": {BENZENE: 4, Size(228, 84): 6},
    "ligand in 32 waters, 2 bodies": solvated(32),
}


def model_of(program: str, method: str) -> CostModel:
    """As measured on the machine that the file names; only seconds at one thread are taken from it."""
    path = files("qcthreads.execution") / "measured" / f"{program}.json"
    document = json.loads(path.read_text())
    rows = document["models"][f"energy|{method}|cc-pvdz"]
    seen = tuple(
        Observation(Size(row["basis_functions"], row["electrons"]), row["width"], row["wall_s"], 0) for row in rows
    )
    return CostModel(method=method, observations=seen, measured_on=document["measured_on"])


def speedup_at_2(model: CostModel, large: bool) -> float:
    """Median over the sizes."""
    walls: dict[Size, dict[int, float]] = {}
    for seen in model.observations:
        if (seen.size.basis_functions > SMALL) == large:
            walls.setdefault(seen.size, {})[seen.width] = seen.wall_s
    return statistics.median(by_width[1] / by_width[2] for by_width in walls.values() if {1, 2} <= set(by_width))


def parallel_share(model: CostModel, large: bool) -> float:
    """By Amdahl's law; none where two threads are slower than one, and never all."""
    return min(max(0.0, 2 * (1 - 1 / speedup_at_2(model, large))), 0.99)


def tasks_of(model: CostModel, sizes: Mapping[Size, int], cpus: int, most: float) -> list[Task]:
    """With all widths that are powers of two."""
    widths = [1 << power for power in range(cpus.bit_length())]
    tasks = []
    for size, count in sizes.items():
        share = parallel_share(model, size.basis_functions > SMALL)
        alone = model.seconds(size)
        assert alone is not None
        times_s = {width: alone.value / assumed_speedup(int(min(width, most)), share) for width in widths}
        tasks += [Task(f"{size.basis_functions}-{size.electrons}-{number}", times_s) for number in range(count)]
    return tasks


def compared(tasks: list[Task], cpus: int) -> tuple[list[str], str, str]:
    """Makespans over the bound, what auto chose, and fragments alone over auto.

    Fragments alone have the longest first, which is within a few percent of the best that they can have.
    """
    plans = [plan(tasks, cpus, "balanced", width=1), plan(tasks, cpus, "balanced"), plan(tasks, cpus)]
    ratios = [f"{one.makespan_s / one.lower_bound_s:.3f}" for one in plans]
    widths = sorted({placement.threads for placement in plans[-1].placements})
    chosen = f"{plans[-1].reasons[0].split(':')[0].split(',')[0]}, {', '.join(map(str, widths))}"
    return ratios, chosen, f"{plans[0].makespan_s / plans[-1].makespan_s:.2f}"


if __name__ == "__main__":
    main()
