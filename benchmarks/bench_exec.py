"""How long a command has to wait for its first instruction under what starts it, and what that costs in all.

    python benchmarks/bench_exec.py [--rounds N] [ANOTHER/bin/qcthreads ...]

The command is date(1), which tells when it ran. ``taskset`` binds and knows nobody; ``flock`` waits for one lock; the
bare interpreter is what anything in Python has to pay. They take turns; medians, nothing is asserted. Other
installations of ours, such as an older one, can be named; bytecode is compiled for this one, and is theirs to have.
"""

from __future__ import annotations

import compileall
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asking

import qcthreads

COMMAND = ["date", "+%s%N"]


def main() -> None:
    """Print one line per contender: ms until the command ran, until its end was seen, and the CPU time of all."""
    options = asking.parser(__doc__, rounds=21)
    options.add_argument("others", nargs="*", metavar="ANOTHER/bin/qcthreads", help="to compare with")
    asked = options.parse_args()
    rounds: int = asked.rounds
    compileall.compile_dir(Path(qcthreads.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QCTHREADS_LEASES"] = f"{folder}/book"
        contenders = _contenders(folder, asked.others)
        if "qcthreads exec" not in contenders:
            raise SystemExit(f"no qcthreads beside {sys.executable}: install this first")
        figures: dict[str, list[tuple[float, ...]]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, prefix in contenders.items():
                figures[name].append(_run([*prefix, *COMMAND]))
    medians = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in figures.items()
    }
    ours = medians["qcthreads exec"][0]
    print(f"{'':24} {'ready':>8} {'in all':>8} {'CPU':>8}   ms, medians of {rounds} rounds; ours / theirs")
    for name, (ready, in_all, cpu) in medians.items():
        print(f"{name:24} {ready:8.1f} {in_all:8.1f} {cpu:8.1f}   {ours / ready:.1f}")


def _contenders(folder: str, others: list[str]) -> dict[str, list[str]]:
    program = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    found = {
        "nothing": [],
        "taskset": ["taskset", "-c", "0"],
        "flock": ["flock", f"{folder}/lock"],
        "python, exec at once": [sys.executable, "-c", program],
        "qcthreads exec": [str(Path(sys.executable).with_name("qcthreads")), "exec", "--"],
    } | {other: [other, "exec", "--"] for other in others}
    return {name: prefix for name, prefix in found.items() if not prefix or shutil.which(prefix[0])}


def _run(command: list[str]) -> tuple[float, float, float]:
    reading, writing = os.pipe()
    began_ns = time.time_ns()
    process = subprocess.Popen(command, stdout=writing)
    _, status, usage = os.wait4(process.pid, 0)
    ended_ns = time.time_ns()
    process.returncode = os.waitstatus_to_exitcode(status)
    os.close(writing)
    with os.fdopen(reading) as reader:
        ready_ns = int(reader.read())
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return (ready_ns - began_ns) / 1e6, (ended_ns - began_ns) / 1e6, (usage.ru_utime + usage.ru_stime) * 1e3


if __name__ == "__main__":
    main()
