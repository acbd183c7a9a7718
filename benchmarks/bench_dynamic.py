"""How much a run loses that does not know the times beforehand, over the published families; asserts nothing.

    python benchmarks/bench_dynamic.py [--seeds N]

The dispatcher that real runs ask is driven by planning/simulate.py. Its makespan is divided by that of the plan made
with the true times (``adaptive``, clairvoyant). What is known: the times; the times with an error; the sizes; nothing.
Sizes are the fifth root of the cost at one thread with an error of 2 %, the method's power is a guess, and so is the
speedup: what planning/cost.py assumes for so many basis functions, whatever the family's is, where 90 take 1 s (PySCF's
MP2: 96 in 1.4 s). Memory is known. Beside them first come, first served in the order given, on workers of the width
that turns out best (known to nobody beforehand).
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import asking
from bench_planning import first_come, print_row
from families import FAMILIES, Problem

from qcthreads.cpuset import CpuSet
from qcthreads.planning import Task, plan
from qcthreads.planning.correction import Known
from qcthreads.planning.cost import PARALLEL_FRACTION, assumed_parallel_fraction, assumed_speedup
from qcthreads.planning.dispatch import Dispatcher
from qcthreads.planning.simulate import Change, simulate

AT_1_S = 90  # basis functions
KNOWN = ("times", "times +-30 %", "sizes", "nothing")


def main() -> None:
    """Print the table of ratios, and what a decision costs."""
    parser = asking.parser(__doc__)
    parser.add_argument("--seeds", type=asking.at_least(1), default=3)
    parser.add_argument("--cpus", type=asking.at_least(1), action="append", help="default: 16 and 64")
    args = parser.parse_args()
    print_ratios(args.seeds, args.cpus or [16, 64])
    print_times()


def print_ratios(seeds: int, cpus: list[int]) -> None:
    """By family and by tasks per CPU: median and worst."""
    print(f"simulated makespan / clairvoyant plan, median (worst); {cpus} CPUs, {seeds} seeds each\n")
    print_row(("family", "tasks per CPU", *KNOWN, "first come, best width"))
    print_row(["---"] * (len(KNOWN) + 3))
    overall: dict[str, list[float]] = {}
    for family in FAMILIES:
        for name, per_cpu in (("under 4", (0.5, 1, 2)), ("4 and more", (4, 10))):
            ratios: dict[str, list[float]] = {}
            for count, wide in ((int(many * wide), wide) for wide in cpus for many in per_cpu):
                for seed in range(seeds):
                    for what, ratio in compared(family(wide, count, seed), seed).items():
                        ratios.setdefault(what, []).append(ratio)
                        overall.setdefault(what, []).append(ratio)
            print_row([family.__name__, name, *map(spread, ratios.values())])
    print_row(["all", "all", *map(spread, overall.values())])
    print()


def compared(problem: Problem, seed: int) -> dict[str, float]:
    """Ratios to the clairvoyant plan."""
    best_s = plan(problem.tasks, problem.cpus, "adaptive", **problem.limits).makespan_s
    ratios = {what: simulated_s(problem, known, tasks) / best_s for what, known, tasks in told(problem, seed)}
    return ratios | {"first come": min(first_come(problem).values()) / best_s}


def told(problem: Problem, seed: int) -> Iterator[tuple[str, Known, list[Task]]]:
    """What the dispatcher is told of the tasks."""
    rng = random.Random(seed)
    tasks = [replace(task, memory_measured=True) for task in problem.tasks]
    errors = [rng.lognormvariate(0, 0.3) for _ in tasks]
    yield "times", "seconds", tasks
    yield (
        "times +-30 %",
        "seconds",
        [
            replace(task, times_s={width: time_s * error for width, time_s in task.times_s.items()})
            for task, error in zip(tasks, errors, strict=True)
        ],
    )
    exponent = rng.uniform(4, 6)
    sizes = [size_of(task, rng) for task in tasks]
    yield (
        "sizes",
        "sizes",
        [
            assumed(task, size**exponent, assumed_parallel_fraction(AT_1_S * size))
            for task, size in zip(tasks, sizes, strict=True)
        ],
    )
    yield "nothing", "nothing", [assumed(task, 1.0) for task in tasks]


def size_of(task: Task, rng: random.Random) -> float:
    """Such that the cost grows with its fifth power; 1 where it is 1 s."""
    narrowest = min(task.times_s)
    return float((task.times_s[narrowest] * assumed_speedup(narrowest)) ** (1 / 5) * rng.lognormvariate(0, 0.02))


def assumed(task: Task, cost: float, parallel: float = PARALLEL_FRACTION) -> Task:
    """With the speedup that is assumed where none is known."""
    return replace(task, times_s={width: cost / assumed_speedup(width, parallel) for width in task.times_s})


def simulated_s(problem: Problem, known: Known, tasks: list[Task]) -> float:
    """The makespan of a run that was told ``tasks``."""
    dispatcher = Dispatcher(
        tasks,
        problem.cpus,
        known=known,
        speedups_measured=known == "seconds",
        memory_bytes=problem.memory_bytes,
        disk_bytes=problem.disk_bytes,
    )
    memory_bytes = math.inf if problem.memory_bytes is None else problem.memory_bytes
    return simulate(dispatcher, problem.tasks, [Change(0.0, CpuSet(range(problem.cpus)), memory_bytes)]).makespan_s


def print_times() -> None:
    """CPU time of all decisions of a run, simulator included."""
    print(
        "milliseconds of CPU for each task, all decisions of a run and the simulator, sizes known: median and worst\n"
    )
    print_row(("tasks", "CPUs", "a task"))
    print_row(["---"] * 3)
    for count, cpus in ((20, 16), (1_000, 64), (10_000, 256)):
        times_ms = []
        for family in FAMILIES:
            problem = family(cpus, count, 0)
            tasks = next(tasks for what, _, tasks in told(problem, 0) if what == "sizes")
            began_s = time.process_time()
            simulated_s(problem, "sizes", tasks)
            times_ms.append((time.process_time() - began_s) * 1e3 / count)
        print_row((count, cpus, f"{statistics.median(times_ms):.2f} ({max(times_ms):.2f})"))


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({max(ratios):.2f})"


if __name__ == "__main__":
    main()
