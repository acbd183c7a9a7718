"""What imports cost beyond the bare interpreter, in fresh processes that take turns; prints medians, asserts nothing.

    python benchmarks/bench_import.py [--rounds N]

Read the figures on an idle machine: an import is mostly reads of small files.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import asking

STATEMENTS = {
    "nothing": "pass",
    "import qcthreads": "import qcthreads",
    "the facade": "from qcthreads import QCThreadManager",
    "qcthreads.host": "import qcthreads.host",
    "read_machine()": "from qcthreads import read_machine; read_machine()",
    "read_limits()": "from qcthreads import read_limits; read_limits()",
    "numpy, to compare": "import numpy",
    "psutil, to compare": "import psutil",
}


def main() -> None:
    """Print one line per statement: median and spread in ms beyond the bare interpreter."""
    rounds: int = asking.parser(__doc__, rounds=15).parse_args().rounds
    times_ms: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds):
        for name, statement in STATEMENTS.items():
            times_ms[name].append(_run_ms(statement))
    bare = statistics.median(times_ms["nothing"])
    print(f"{'':20} {'median':>8} {'least':>8} {'most':>8}   ms beyond the interpreter's {bare:.1f}, {rounds} rounds")
    for name, found in times_ms.items():
        figures = (statistics.median(found) - bare, min(found) - bare, max(found) - bare)
        print(f"{name:20} " + " ".join(f"{figure:8.1f}" for figure in figures))


def _run_ms(statement: str) -> float:
    """Inside the interpreter that ``site`` has prepared, as a user has it."""
    start_ns = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return (time.perf_counter_ns() - start_ns) / 1e6


if __name__ == "__main__":
    main()
