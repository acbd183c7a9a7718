"""What test_qcengine_lease runs in its own processes: a plain ``qcengine.compute`` under a lease; asserts nothing."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

WORKS_S = 0.01
"""Some 40 waters by xtb take each thread ten times that."""


def own_threads() -> dict[int, tuple[float, list[int]]]:
    """CPU seconds and mask of each thread of this process; others of its threads may end at any moment."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            cpu_s = int((task / "schedstat").read_text().split()[0]) / 1e9
            found[int(task.name)] = cpu_s, sorted(os.sched_getaffinity(int(task.name)))
    return found


def meet(folder: Path) -> None:
    """Until two are here who have a lease, however long the other takes to start."""
    (folder / str(threading.get_native_id())).touch()
    give_up = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < give_up, "the other never came"
        time.sleep(0.01)


def compute(job: dict[str, Any], threads: int) -> dict[str, Any]:
    """One calculation in the calling thread, and what was to be seen of it from inside."""
    import qcengine

    import qcthreads

    before = dict(os.environ), sorted(os.sched_getaffinity(0))
    with qcthreads.qcengine_lease(job["program"], threads, 2 * 1024**3, at_most=job.get("at_most")) as task_config:
        inside = sorted(os.sched_getaffinity(0))
        told = {name: os.environ.get(name) for name in job.get("names", ())}
        if "meet_in" in job:
            meet(Path(job["meet_in"]))
        earlier = own_threads()
        result = qcengine.compute(
            job["input"], job.get("procedure", job["program"]), task_config=task_config, raise_error=True,
            return_version=2, return_dict=True,
        )  # fmt: skip
        worked = [
            mask for tid, (cpu_s, mask) in own_threads().items() if cpu_s - earlier.get(tid, (0.0, []))[0] > WORKS_S
        ]
    steps = result.get("trajectory_results") or [result]
    return {
        "inside": inside,
        "told": told,
        "worked": worked,
        "energy": steps[-1]["properties"]["return_energy"],
        "threads_said": [step["provenance"].get("nthreads") for step in steps],
        "stdout": result.get("stdout"),
        "restored": before == (dict(os.environ), sorted(os.sched_getaffinity(0))),
    }


def main() -> None:
    job = json.load(sys.stdin)
    if job.get("import"):
        importlib.import_module(job["import"])
    one = partial(compute, job)
    kind = job.get("executor")
    before = dict(os.environ)
    if kind is None:
        made = [one(threads) for threads in job["widths"]]
    else:
        pool = {
            "threads": lambda: ThreadPoolExecutor(2),
            "spawn": lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn")),
            "fork": lambda: ProcessPoolExecutor(2, mp_context=get_context("fork")),
            "loky": lambda: importlib.import_module("loky").ProcessPoolExecutor(2),
        }[kind]()
        with pool:
            made = list(pool.map(one, job["widths"]))
    assert dict(os.environ) == before
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
