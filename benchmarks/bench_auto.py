"""What `qcthreads run` chooses by itself against what one could have chosen, on real programs.

    python benchmarks/bench_auto.py [--rounds 15] [--part split|served|bound|efficiency] [--job NAME]

--job: of ``split`` and ``bound``, only this one; each takes 2 to 5 minutes on 2 cores.

split
    `auto` against the best static split, found by a sweep of two rounds first; then both in interleaved pairs.
served
    First come, first served, in the order of the input, on workers of one width, against `auto` on a skewed set; each
    has the memory that `auto` gives: its share of all there is. A fifth of the rounds.
bound
    Runs against the lower bound that follows from their own measured times: nothing with these times can end sooner.
    Cold: a whole command. Its bound contains what the driver did (CPU time until it can start a worker, to read and
    plan, to report), the start of as many workers as would have been best (CPU time of the quickest, at least one of
    each program), and the calculations (wall time x threads): whatever is busy is busy on one of the CPUs, no
    calculation begins before a worker of its program has started and the input is read, those of a program share its
    workers, and the report is made last.
    Calculations alone: a cold run against the bound of those, as if starting cost nothing. Warm: the same of a second
    call of an executor that keeps its workers.
efficiency
    CPU time / (threads x wall time) over the calculations of a run, as it says itself, with what `auto` chose: the
    embedded engine, and Psi4 from Debian.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asking
import timing
from intervals import HEAD, told

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN = [sys.executable, "-m", "qcthreads", "run"]
MANY = (str(EXAMPLES / "water4.xyz"), "--method", "mp2", "--basis", "cc-pvdz", "--max-nbody", "3")
SKEWED = (str(EXAMPLES / "benzene_dimer.xyz"), "--method", "hf", "--basis", "6-31g*", "--max-nbody", "2")
JOBS = {
    "water4": MANY,
    "water16": (str(EXAMPLES / "water16.xyz"), "--method", "hf", "--basis", "sto-3g"),
    "benzene_dimer": (str(EXAMPLES / "benzene_dimer.xyz"), "--method", "hf", "--basis", "6-31g"),
}
# All examples; those of several levels have no second call here.
BOUNDED = JOBS | {
    "mixed": (
        str(EXAMPLES / "mixed.xyz"), "--charges", "1,-1,0,0,0,0,0,1", "--method", "hf", "--basis", "6-31g",
    ),
    "ammonium_water": (str(EXAMPLES / "ammonium_water.psi4"), "--method", "mp2", "--basis", "cc-pvtz"),
    "water4_cp": (str(EXAMPLES / "water4_cp.json"),),
    "levels": (str(EXAMPLES / "levels.json"),),
}  # fmt: skip
EFFICIENT = {
    "embedded: water4, MP2/cc-pvdz, 3 bodies": MANY,
    "Psi4: water4, HF/cc-pvdz, 3 bodies": (
        str(EXAMPLES / "water4.xyz"), "--program", "psi4", "--method", "hf", "--basis", "cc-pvdz", "--max-nbody", "3",
        "--keywords", '{"scf_type": "pk"}',
    ),
}  # fmt: skip


def main() -> None:
    """Print one table for each part."""
    options = asking.parser(__doc__, rounds=15)
    options.add_argument("--part", action="append", choices=sorted(PARTS))
    options.add_argument("--job", action="append", choices=list(BOUNDED))
    options.add_argument("--served", type=int, help=argparse.SUPPRESS)
    options.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    asked, job = options.parse_known_args()
    if asked.served or asked.warm:
        print(json.dumps(serve(job, asked.served) if asked.served else warm_ratio(job)))
        return
    if job:
        options.error(f"unrecognized arguments: {' '.join(job)}")
    for part in asked.part or PARTS:
        PARTS[part](asked.rounds, asked.job or list(BOUNDED))


def split(rounds: int, jobs: Sequence[str]) -> None:
    """Each static split twice, then the best one of these against auto."""
    cpus = len(os.sched_getaffinity(0))
    print(f"auto against the best static split; {cpus} CPUs, {rounds} pairs\n\n{HEAD}", flush=True)
    for name in filter(JOBS.__contains__, jobs):
        job = JOBS[name]
        sweep = timing.interleave(
            {f"{n} x {t}": command(job, n, t) for n in range(1, cpus + 1) for t in range(1, cpus // n + 1)}, 2
        )
        best = min(sweep, key=lambda one: min(sweep[one].wall_s))
        workers, threads = map(int, best.split(" x "))
        pair = timing.interleave({"auto": command(job), best: command(job, workers, threads)}, rounds)
        print(told(f"{name}: auto / {best}", pair["auto"].wall_s, pair[best].wall_s), flush=True)


def served(rounds: int, _: Sequence[str]) -> None:
    """First come, first served, at every width."""
    cpus = len(os.sched_getaffinity(0))
    contenders = {"auto": command(SKEWED)}
    for width in sorted({1, cpus}):
        contenders[f"served, width {width}"] = [sys.executable, __file__, "--served", str(width), *SKEWED]
    rounds = max(1, rounds // 5)
    timings = timing.interleave(contenders, rounds)
    print(f"\nauto against first come, first served, on the skewed set; {cpus} CPUs, {rounds} rounds\n\n{HEAD}")
    for name in list(contenders)[1:]:
        print(told(f"{name} / auto", timings[name].wall_s, timings["auto"].wall_s), flush=True)


def bound(rounds: int, jobs: Sequence[str]) -> None:
    """The median of the rounds, of each job."""
    print("\nwall time / lower bound from the run's own times; median of the rounds\n")
    print("| job | wall s, cold | cold | calculations alone | warm |\n|---|---|---|---|---|")
    for name in jobs:
        job = BOUNDED[name]
        contenders = {"cold": command(job), "warm": [sys.executable, __file__, "--warm", *job]}
        if name == "levels":
            del contenders["warm"]
        found = []
        for _ in range(max(1, rounds // 5)):
            one = timing.interleave(contenders, 1)
            document, wall_s = json.loads(one["cold"].stdout), one["cold"].wall_s[0]
            ratios = [wall_s, wall_s / cold_bound_s(document), wall_s / lower_bound_s(document["fragments"])]
            found.append((*ratios, *(json.loads(timings.stdout) for timings in list(one.values())[1:])))
        figures = [f"{statistics.median(ratios):.3f}" for ratios in zip(*found, strict=True)]
        print(f"| {name} | {' | '.join((*figures, '-')[:4])} |", flush=True)


def efficiency(rounds: int, _: Sequence[str]) -> None:
    """The median of the rounds, of each program."""
    print("\nthread efficiency; median of the rounds, least and most\n")
    print("| run | widths | efficiency | least | most |\n|---|---|---|---|---|")
    for name, job in EFFICIENT.items():
        found = []
        for _ in range(max(1, rounds // 3)):
            one = timing.interleave({name: command(job)}, 1)[name]
            run = json.loads(one.stdout)["statistics"]
            found.append(run["thread_efficiency"])
        found.sort()
        figures = " | ".join(f"{figure:.3f}" for figure in (found[len(found) // 2], found[0], found[-1]))
        print(f"| {name} | {run['widths']} | {figures} |", flush=True)


PARTS = {"split": split, "served": served, "bound": bound, "efficiency": efficiency}


def command(job: Sequence[str], workers: int | None = None, threads: int | None = None) -> list[str]:
    """``qcthreads run``; without a split, ours to choose."""
    asked = [] if workers is None else ["--workers", str(workers), "--threads", str(threads)]
    return [*RUN, *job, *asked, "--json"]


def lower_bound_s(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of calculations with these times at these widths: the longest, or all CPUs busy."""
    cpus = len(os.sched_getaffinity(0))
    return max(max(row["wall_s"] for row in rows), sum(row["wall_s"] * row["threads"] for row in rows) / cpus)


def cold_bound_s(document: Mapping[str, Any]) -> float:
    """The same of a command with the starts that its own calculations need, and with what its driver did."""
    cpus = len(os.sched_getaffinity(0))
    rows = document["fragments"]
    driver_s: dict[str, float] = document["statistics"]["driver_cpu_s"]
    longest_s: float = max(row["wall_s"] for row in rows)
    work_s: float = sum(row["wall_s"] * row["threads"] for row in rows)
    shares = shares_by_program(document)
    quickest_s = min(one.start_s for one in shares)

    def begins_s(start_s: float) -> float:
        return driver_s["start"] + max(driver_s["preparation"], start_s)

    def with_starts(counts: Sequence[int]) -> float:
        starts_s = sum(count * one.start_s for count, one in zip(counts, shares, strict=True))
        ends_s = (
            begins_s(one.start_s) + one.work_s / min(cpus, count * one.widest)
            for count, one in zip(counts, shares, strict=True)
        )
        last_s: float = max(begins_s(quickest_s) + max(longest_s, work_s / cpus), *ends_s) + driver_s["report"]
        return max(last_s, (sum(driver_s.values()) + starts_s + work_s) / cpus)

    return min(with_starts(counts) for counts in itertools.product(range(1, cpus + 1), repeat=len(shares)))


@dataclass(frozen=True)
class Share:
    """Of one program: CPU seconds of the quickest start of a worker, and its calculations."""

    start_s: float
    work_s: float
    widest: int


def shares_by_program(document: Mapping[str, Any]) -> list[Share]:
    """Of each program that computed."""
    programs = {one["name"]: one["program"] for one in document["decision"]["model_chemistries"]}
    started_s = {one["pid"]: one["start_cpu_s"] for one in document["statistics"]["worker_processes"]}
    by_program: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["fragments"]:
        by_program.setdefault(programs[row["chemistry"]], []).append(row)
    return [
        Share(
            min(started_s[row["worker_pid"]] for row in rows),
            sum(row["wall_s"] * row["threads"] for row in rows),
            max(row["threads"] for row in rows),
        )
        for rows in by_program.values()
    ]


def serve(job: Sequence[str], width: int) -> float:
    """QCManyBody's own order on workers of one width; the interaction energy."""
    from qcthreads.execution.engine import LocalEngine

    book, expansion = prepared(job)
    order = [label for _, label, _ in expansion.core.iterate_molecules()]
    by_label = {term.label: term for term in expansion.terms()}
    cpus = len(os.sched_getaffinity(0))
    memory_bytes = book.free()[1] * width // cpus
    calculations = [
        expansion.calculation(by_label[label], threads=width, memory_bytes=memory_bytes)
        for label in dict.fromkeys(order)
    ]
    with LocalEngine(book) as engine:
        results = {one.label: one.result for one in engine.run(calculations, max_workers=cpus // width)}
    return float(expansion.result(results).return_result)


def warm_ratio(job: Sequence[str]) -> float:
    """Wall time over the bound of a second call, by an executor that has kept its workers."""
    import time

    from qcthreads import HybridParallelConfig, ParallelManyBodyExecutor

    _, expansion = prepared(job)
    (chemistry,) = expansion.chemistries
    config = HybridParallelConfig(
        max_workers=len(os.sched_getaffinity(0)),
        enable_thread_affinity=True,
        thread_allocation_strategy="auto",
        qc_program=chemistry.program,
        basis_set=chemistry.basis_name,
    )
    given = expansion.core
    core = type(given)(
        given.molecule,
        given.bsse_type,
        dict.fromkeys(given.levels, chemistry.method),
        return_total_data=given.return_total_data,
        supersystem_ie_only=False,
        embedding_charges={},
    )
    with ParallelManyBodyExecutor(core, config) as executor:
        executor.execute_full_calculation()
        began_s = time.perf_counter()
        executor.execute_full_calculation()
        wall_s = time.perf_counter() - began_s
        rows = [{"wall_s": one.wall_s, "threads": one.threads} for one in executor._tally.outcomes.values()]
    return wall_s / lower_bound_s(rows)


def prepared(job: Sequence[str]) -> tuple[Any, Any]:
    """A book of leases and the expansion of the job's options."""
    from qcthreads.cli.run import add_arguments, request_of
    from qcthreads.host import read_machine
    from qcthreads.host.limits import read_limits
    from qcthreads.leases import LeaseBook
    from qcthreads.manybody.expansion import Expansion
    from qcthreads.manybody.inputs import read_input

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    request = request_of(parser.parse_args(job))
    return LeaseBook(read_machine(), read_limits()), Expansion.from_input(read_input(request.input, request))


if __name__ == "__main__":
    main()
