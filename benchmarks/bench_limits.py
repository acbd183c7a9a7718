"""How long it takes to learn what may be used, beside joblib's loky, in process; prints a table, asserts nothing.

    python benchmarks/bench_limits.py [--rounds N]

The contenders take turns, round by round, so that drift of the machine hits all alike. What each of them looks at
differs, and the table says it: a number is only worth its time where it is the right one.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import asking

from qcthreads.host.limits import read_limits

_CALLS = 20  # per round: one alone is too near the clock


def main() -> None:
    """Print one row per contender: median and spread in microseconds, its answer, and what it has looked at."""
    rounds: int = asking.parser(__doc__, rounds=50).parse_args().rounds
    contenders = _contenders()
    times_us: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (count, _) in contenders.items():
            began = time.perf_counter_ns()
            for _ in range(_CALLS):
                count()
            times_us[name].append((time.perf_counter_ns() - began) / _CALLS / 1000)
    print(f"{rounds} rounds of {_CALLS} calls\n")
    print("| contender | us, median | least | most | CPUs | looks at |")
    print("|---|---|---|---|---|---|")
    for name, (count, looks_at) in contenders.items():
        found = times_us[name]
        figures = " | ".join(f"{figure:.0f}" for figure in (statistics.median(found), min(found), max(found)))
        print(f"| {name} | {figures} | {count()} | {looks_at} |")


def _contenders() -> dict[str, tuple[Callable[[], int], str]]:
    found: dict[str, tuple[Callable[[], int], str]] = {
        "qcthreads read_limits": (
            lambda: read_limits().cpu_count,
            "mask, cpuset, quotas of all ancestors, batch system, online CPUs; memory",
        ),
        "os.cpu_count": (lambda: os.cpu_count() or 1, "online CPUs"),
    }
    try:
        from loky import cpu_count
    except ImportError:
        print("loky is missing: pip install loky")
    else:
        found["loky cpu_count"] = (cpu_count, "mask, one quota file in /sys/fs/cgroup, LOKY_MAX_CPU_COUNT")
    return found


if __name__ == "__main__":
    main()
