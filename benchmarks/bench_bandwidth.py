"""Our triad beside likwid-bench's `stream`, on the same CPUs with the same bytes counted; prints, judges nothing.

    python benchmarks/bench_bandwidth.py [--rounds N]

The contenders take turns, round by round, each for one sweep over the arrays after one that touches them: of several
ours tells the best, likwid-bench the mean, and on a machine that others use, too, these are not the same.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable

import asking

from qcthreads.cpuset import CpuSet
from qcthreads.host import read_machine
from qcthreads.host.bandwidth import measure_triad, triad_method, working_set_bytes

_GOAL = 0.15


def main() -> None:
    """For one core and for all of the first package: GB/s of each contender, and the ratios."""
    rounds: int = asking.parser(__doc__, rounds=15).parse_args().rounds
    if shutil.which("likwid-bench") is None:
        raise SystemExit("likwid-bench is missing; Debian has it in the package likwid")
    machine = read_machine()
    cpus = _likwid_cpus()
    if not set(cpus) <= set(machine.allowed_cpus):
        raise SystemExit(f"likwid-bench would use CPUs {cpus}, but only {machine.allowed_cpus} may be used")
    memory_bytes = sum(node.memory_bytes for node in machine.numa_nodes)
    print(f"{rounds} rounds, ours: {triad_method()}; one sweep each; goal: within {_GOAL:.0%}\n")
    print("| cores | contender | GB/s, median | least | best | median / likwid's | best / likwid's |")
    print("|---|---|---|---|---|---|---|")
    for count in sorted({1, len(cpus)}):
        size_bytes = working_set_bytes(machine, CpuSet(cpus), memory_bytes)
        _compare(count, _contenders(cpus[:count], size_bytes), rounds)


def _contenders(cpus: list[int], size_bytes: int) -> dict[str, Callable[[], float]]:
    return {
        "likwid-bench -t stream": lambda: _likwid(len(cpus), size_bytes),
        "qcthreads": lambda: measure_triad(cpus, None, size_bytes, 1).bytes_per_s,
    }


def _compare(count: int, contenders: dict[str, Callable[[], float]], rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            rates[name].append(contenders[name]() / 1e9)
    peer, *_ = rates.values()
    for name, found in rates.items():
        figures = [statistics.median(found), min(found), max(found)]
        ratios = [statistics.median(found) / statistics.median(peer), max(found) / max(peer)]
        print(f"| {count} | {name} | {' | '.join(f'{figure:.3g}' for figure in (*figures, *ratios))} |")


def _likwid(threads: int, size_bytes: int) -> float:
    """Bytes/s of one sweep."""
    command = ["likwid-bench", "-t", "stream", "-w", f"S0:{size_bytes // 1000}kB:{threads}", "-i", "1"]
    told = _run(command)
    found = re.search(r"^MByte/s:\s*([\d.]+)", told, re.MULTILINE)
    if not found:
        raise SystemExit(f"{' '.join(command)} told no MByte/s:\n{told}")
    return float(found[1]) * 1e6


def _likwid_cpus() -> list[int]:
    """Of the first package, in its order."""
    found = re.search(r"Tag S0:([ \d]+)", _run(["likwid-bench", "-p"]))
    return [int(cpu) for cpu in found[1].split()] if found else [0]


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"LC_ALL": "C"}).stdout


if __name__ == "__main__":
    main()
