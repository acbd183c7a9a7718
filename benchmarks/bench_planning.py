"""How good plans are, and how fast they are made, over the published families of families.py; asserts nothing.

    python benchmarks/bench_planning.py [--seeds N] [--many | --times] [--exact SECONDS [--only FAMILY,...]]

Every makespan is divided by the lower bound; beside the strategies stand two peers: first come, first served at width 1
(or the narrowest), and the best uniform width found by sweep, in the order given, as a pool of workers would. With
``--exact`` small batches are also given to OR-tools' CP-SAT for so many seconds each (OR-tools come with the extra
``test``); ``--only``: of these families, and no other table is printed. ``--many``: nothing but the makespans of auto
for 10,000 and 100,000 tasks. ``--times``: nothing but what planning takes.
"""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from heapq import heapreplace
from importlib.util import find_spec

import asking
from families import FAMILIES, MEMORY_TIGHT, UNUSUAL, Family, Problem
from patterns import ends_later_than

from qcthreads.machine import Machine
from qcthreads.machine.synthetic import synthetic_machine
from qcthreads.planning import Plan, plan

FAR = 1.02
PROVEN = (1.002, 1.005, 1.01, 1.015, 1.02, 1.025, 1.03, 1.04, 1.05, 1.06, 1.08, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5)
Compared = tuple[Problem, dict[str, float]]
"""Ratios to the lower bound, by contender."""
STRATEGIES = ("balanced", "adaptive", "auto")
SIZES = ((20, 16), (100, 64), (1_000, 64), (10_000, 256), (100_000, 256))
"""Tasks and CPUs that planning is timed with."""
ON_NODES = (20, 100, 1_000, 10_000)


def main() -> None:
    """Print the tables."""
    parser = asking.parser(__doc__)
    parser.add_argument("--seeds", type=asking.at_least(1), default=3)
    parser.add_argument("--many", action="store_true", help="only the quality of plans of 10,000 tasks and more")
    parser.add_argument("--times", action="store_true", help="only what planning takes")
    parser.add_argument("--exact", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--only", default="", metavar="FAMILY,...")
    args = parser.parse_args()
    only = args.only.split(",")
    families = (*FAMILIES, *UNUSUAL)
    if {*only} - {"", *(one.__name__ for one in families)} or (args.only and not args.exact):
        parser.error(f"--only is for --exact, and of the families {', '.join(one.__name__ for one in families)}")
    if args.exact and find_spec("ortools") is None:
        parser.error("--exact needs OR-tools, which the extra test brings: python -m pip install -e '.[test]'")
    if args.many:
        print_many(args.seeds)
        return
    if args.times:
        print_times()
        return
    if only == [""]:
        print_quality(args.seeds)
        print_times()
    if args.exact:
        print_exact(args.exact, FAMILIES if only == [""] else [one for one in families if one.__name__ in only])


def print_quality(seeds: int) -> None:
    """Makespan over lower bound, by family and by tasks per CPU: median and worst."""
    print("makespan / lower bound, median (worst); 16, 64 and 256 CPUs", f"{seeds} seeds each\n", sep=", ")
    head = ("family", "tasks per CPU", "first come, width 1", "first come, best width", *STRATEGIES)
    print_row(head)
    print_row(["---"] * len(head))
    many: list[Compared] = []
    for family in FAMILIES:
        found = print_family(family, seeds)
        many += [] if family in MEMORY_TIGHT else found
    print_row(["enough memory", "4 and more", *spreads(many)])
    for family in UNUSUAL:
        many += print_family(family, seeds)
    print()
    print_beyond([one for one in many if one[1]["auto"] > FAR and not any(one[0].limits.values())])
    print_few(seeds)


def print_many(seeds: int) -> None:
    """Makespan of auto over lower bound, where there are very many tasks."""
    counts = (10_000, 100_000)
    print(f"auto / lower bound, median (worst); 256 CPUs, {seeds} seeds each\n")
    print_row(("family", *(f"{count:,} tasks" for count in counts)))
    print_row(["---"] * (1 + len(counts)))
    for family in (*FAMILIES, *UNUSUAL):
        made = ([planned(family(256, count, seed), "auto") for seed in range(seeds)] for count in counts)
        print_row((family.__name__, *(spread([one.makespan_s / one.lower_bound_s for one in of]) for of in made)))


def print_family(family: Family, seeds: int) -> list[Compared]:
    """What has 4 tasks per CPU and more."""
    for name, per_cpu in (("under 4", (0.5, 1, 2)), ("4 and more", (4, 10))):
        found = [(problem, compared(problem)) for problem in problems(family, per_cpu, seeds)]
        print_row([family.__name__, name, *spreads(found)])
    return found


def print_beyond(beyond: list[Compared]) -> None:
    """What is far from the lower bound: how far it is from a bound that counts whole tasks."""
    print(f"auto beyond {FAR} times the lower bound, and within how much of the shortest it is proven to be\n")
    print_row(("family", "tasks", "CPUs", "auto / lower bound", "proven within"))
    print_row(["---"] * 5)
    for problem, _ in beyond:
        ratio, within = proven(problem)
        print_row((problem.family, len(problem.tasks), problem.cpus, f"{ratio:.3f}", f"{within:.3f}"))
    print()


def print_few(seeds: int) -> None:
    """The same of all families where tasks are few."""
    print("auto on 16 CPUs, under 4 tasks per CPU, and within how much of the shortest it is proven to be", end=", ")
    print(f"{seeds} seeds each; median (worst)\n")
    print_row(("family", "auto / lower bound", "proven within"))
    print_row(["---"] * 3)
    for family in (*FAMILIES, *UNUSUAL):
        found = [proven(problem) for problem in problems(family, (0.5, 1, 2), seeds, (16,))]
        print_row((family.__name__, *map(spread, zip(*found, strict=True))))
    print()


def proven(problem: Problem) -> tuple[float, float]:
    """Auto's makespan / the lower bound, and / what is proven that nothing ends sooner than."""
    made = planned(problem, "auto")
    ratio = made.makespan_s / made.lower_bound_s
    parts = [part for part in PROVEN if part < ratio]
    at = bisect_left(parts, True, key=lambda part: ends_later_than(problem, made.makespan_s / part))
    return ratio, (*parts, ratio)[at]


def problems(
    family: Family, per_cpu: tuple[float, ...], seeds: int, sizes: tuple[int, ...] = (16, 64, 256)
) -> Iterator[Problem]:
    """Also of one task more than fits."""
    for cpus in sizes:
        for many in per_cpu:
            for more in (0, 1):
                for seed in range(seeds):
                    yield family(cpus, int(many * cpus) + more, seed)


def compared(problem: Problem) -> dict[str, float]:
    """Ratios to the lower bound."""
    plans = {name: planned(problem, name) for name in STRATEGIES}
    bound_s = plans["auto"].lower_bound_s
    served = first_come(problem)
    found = {"width 1": served[min(served)], "best width": min(served.values())}
    return {name: ends_s / bound_s for name, ends_s in found.items()} | {
        name: made.makespan_s / bound_s for name, made in plans.items()
    }


def first_come(problem: Problem) -> dict[int, float]:
    """Makespan by width of the workers, each of which takes the next task when it is free."""
    most = len(problem.tasks)
    for name in ("memory_bytes", "disk_bytes"):
        whole, largest = problem.limits[name], max(getattr(task, name) for task in problem.tasks)
        most = min(most, whole // largest) if whole and largest else most
    narrowest = max(min(task.times_s) for task in problem.tasks)
    ends: dict[int, float] = {}
    for width in sorted({width for task in problem.tasks for width in task.times_s}):
        if narrowest <= width <= problem.cpus:
            own = (max(listed for listed in task.times_s if listed <= width) for task in problem.tasks)
            runs = list(map(problem.bandwidth, problem.tasks, own))
            workers = min(problem.cpus // width, most)
            if whole := problem.bandwidth_bytes_per_s:
                workers = max(1, min(workers, int(whole / max(rate for _, rate in runs))))
            free_s = [0.0] * workers
            for time_s, _ in runs:
                heapreplace(free_s, free_s[0] + time_s)
            ends[width] = max(free_s)
    return ends


def print_times() -> None:
    """The least of three rounds: what planning takes where nobody disturbs it."""
    print("milliseconds of CPU to plan, median and worst over the families, the least of three rounds each\n")
    print_row(("tasks", "CPUs", *STRATEGIES))
    print_row(["---"] * (2 + len(STRATEGIES)))
    for count, cpus in SIZES:
        times_ms: dict[str, list[float]] = {name: [] for name in STRATEGIES}
        for family in FAMILIES:
            problem = family(cpus, count, 0)
            for name in STRATEGIES:
                times_ms[name].append(taken_ms(problem, name))
        print_row([count, cpus, *(f"{statistics.median(found):.1f} ({max(found):.1f})" for found in times_ms.values())])
    print("\nthe unusual families, auto\n")
    print_row(("family", *(f"{count:,} tasks, {cpus} CPUs" for count, cpus in SIZES)))
    print_row(["---"] * (1 + len(SIZES)))
    for family in UNUSUAL:
        taken = (taken_ms(family(cpus, count, 0), "auto") for count, cpus in SIZES)
        print_row((family.__name__, *(f"{one_ms:.1f}" for one_ms in taken)))
    print("\nauto on 4 memory nodes of 16 CPUs, each with a quarter of the memory\n")
    print_row(("family", *(f"{count:,} tasks" for count in ON_NODES)))
    print_row(["---"] * (1 + len(ON_NODES)))
    for family in (*MEMORY_TIGHT, *(one for one in UNUSUAL if one(64, 20, 0).memory_bytes)):
        taken = (taken_ms(family(64, count, 0), "auto", nodes=4) for count in ON_NODES)
        print_row((family.__name__, *(f"{one_ms:.1f}" for one_ms in taken)))
    print()


def taken_ms(problem: Problem, strategy: str, nodes: int = 1) -> float:
    """The least of three rounds; on so many memory nodes, each with its part of the CPUs and of the memory."""
    limits: dict[str, int | None] = {**problem.limits}
    where: int | Machine = problem.cpus
    if nodes > 1:
        memory_bytes = (limits.pop("memory_bytes") or 0) // nodes
        where = synthetic_machine(nodes=nodes, cores=problem.cpus // nodes, memory_bytes=memory_bytes)
    taken_s = []
    for _ in range(3):
        start_s = time.process_time()
        plan(problem.tasks, where, strategy, **limits)
        taken_s.append(time.process_time() - start_s)
    return min(taken_s) * 1e3


def print_exact(limit_s: float, families: Sequence[Family]) -> None:
    """Beside CP-SAT, which is told our makespan and looks for a shorter one."""
    from exact import best_known_s

    print(f"auto / CP-SAT's optimum, or the best that it found in {limit_s:g} s\n")
    print_row(("family", "tasks", "CPUs", "auto / CP-SAT", "proven"))
    print_row(["---"] * 5)
    ratios = []
    for family in families:
        for count, cpus in ((8, 8), (12, 16), (17, 16), (32, 16)):
            problem = family(cpus, count, 1)
            makespan_s = planned(problem, "auto").makespan_s
            exact_s, proven = best_known_s(problem, limit_s, makespan_s)
            ratios.append(max(1.0, makespan_s / exact_s) if math.isfinite(exact_s) else 1.0)
            print_row((family.__name__, count, cpus, f"{ratios[-1]:.4f}", "yes" if proven else "no"))
    print(f"\nmedian {statistics.median(ratios):.4f}, worst {max(ratios):.4f}")


def planned(problem: Problem, strategy: str) -> Plan:
    return plan(problem.tasks, problem.cpus, strategy, **problem.limits)


def spreads(many: list[Compared]) -> Iterator[str]:
    """Of each contender."""
    yield from map(spread, zip(*(found.values() for _, found in many), strict=True))


def spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({max(ratios):.3f})"


def print_row(cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
