"""What a warm worker adds to a calculation, beside concurrent.futures' spawned pool; prints medians, asserts nothing.

    python benchmarks/bench_overhead.py [--rounds N]

Each side runs the same function, which returns at once, N times one after the other in one worker: with next to no
data, and with what a calculation on 100 atoms exchanges (geometry both ways, 20 kB of program output back; as JSON
here, as pickles there). The sides take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import asking

from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.leases import process_book


def no_op(input_data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The calculation: nothing."""
    return {"return_result": -1.0, "molecule": input_data, "stdout": "x" * (20_000 if "geometry" in input_data else 0)}


def main() -> None:
    """Print one line per side and size."""
    rounds: int = asking.parser(__doc__, rounds=200, least=2).parse_args().rounds
    small = {"number": 1.0}
    large = {"geometry": [number / 7 for number in range(300)], "symbols": ["H"] * 100}
    with LocalEngine(process_book()) as engine, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:

        def ours(data: Mapping[str, Any]) -> None:
            job = Calculation(label="a", program="none", input=data, compute="bench_overhead:no_op", timeout_s=60)
            (outcome,) = engine.run([job])
            assert outcome.status == "finished", outcome.error

        def theirs(data: Mapping[str, Any]) -> None:
            pool.submit(no_op, data).result()

        first = time.perf_counter()
        ours(small)
        second = time.perf_counter()
        theirs(small)
        print(f"first calculation, worker start included: qcthreads {second - first:.3f} s,", end=" ")
        print(f"ProcessPoolExecutor(spawn) {time.perf_counter() - second:.3f} s")
        for size, data in (("small", small), ("100 atoms", large)):
            sides: dict[str, Callable[[Mapping[str, Any]], None]] = {"qcthreads": ours, "ProcessPoolExecutor": theirs}
            times_ms: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, side in sides.items():
                    start = time.perf_counter()
                    side(data)
                    times_ms[name].append((time.perf_counter() - start) * 1e3)
            for name, values in times_ms.items():
                tenth = statistics.quantiles(values, n=10)
                print(f"{size:10} {name:20} median {statistics.median(values):6.2f} ms, 90 % below {tenth[-1]:6.2f} ms")


if __name__ == "__main__":
    main()
