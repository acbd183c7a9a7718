"""Hybrid (threads inside, calculations side by side) against fragments alone at one thread, on real programs.

    python benchmarks/bench_hybrid.py [--rounds 15] [--workload NAME]

Whole commands in interleaved rounds. Every contender computes the same energy; the largest difference is printed.

benzene-dimer
    Few large fragments of a method that scales: the dimer is most of the work, and ends last however it is run.
short-of-memory
    The memory allows one dimer at a time, which takes 312 MiB: fragments alone leave all other CPUs idle.
waters
    Many small fragments: hybrid cannot win, and `auto` runs one thread each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import asking
import timing
from intervals import HEAD, told

EXAMPLES = Path(__file__).parent.parent / "examples"
WORKLOADS: Mapping[str, tuple[str, ...]] = {
    "benzene-dimer": ("benzene_dimer.xyz", "--method", "hf", "--basis", "6-31g*", "--max-nbody", "2"),
    "short-of-memory": (
        "water4.xyz", "--method", "hf", "--basis", "cc-pvtz", "--max-nbody", "2", "--memory", "400MiB",
    ),
    "waters": ("water4.xyz", "--method", "mp2", "--basis", "cc-pvdz", "--max-nbody", "2"),
}  # fmt: skip


def main() -> None:
    """Print a table for each workload."""
    options = asking.parser(__doc__, rounds=15)
    options.add_argument("--workload", action="append", choices=sorted(WORKLOADS))
    asked = options.parse_args()
    for name in asked.workload or WORKLOADS:
        compare(name, asked.rounds)


def compare(name: str, rounds: int) -> None:
    """One workload: fragments alone against each way to be hybrid."""
    cpus = len(os.sched_getaffinity(0))
    example, *options = WORKLOADS[name]
    ours = [sys.executable, "-m", "qcthreads", "run", str(EXAMPLES / example), *options, "--json"]
    alone = "1" if name == "short-of-memory" else str(cpus)
    contenders = {
        "fragments alone": [*ours, "--workers", alone, "--threads", "1"],
        "one at a time, all threads": [*ours, "--workers", "1", "--threads", str(cpus)],
        "auto": ours,
        "adaptive": [*ours, "--strategy", "adaptive"],
    }
    timings = timing.interleave(contenders, rounds)
    print(f"\n{name}: {example} {' '.join(options)}; {cpus} CPUs, {rounds} rounds\n")
    print(timing.table(timings, "fragments alone"))
    print()
    print(HEAD)
    for contender in list(contenders)[1:]:
        print(told(f"{contender} / fragments alone", timings[contender].wall_s, timings["fragments alone"].wall_s))
    documents = {contender: json.loads(one.stdout) for contender, one in timings.items()}
    energies = [document["result"]["return_result"] for document in documents.values()]
    print(f"\nWidths used: auto {documents['auto']['statistics']['widths']}", end="; ")
    print(f"adaptive {documents['adaptive']['statistics']['widths']}", end="; ")
    print(f"energies differ by {max(energies) - min(energies):.1e} hartree at most", flush=True)


if __name__ == "__main__":
    main()
