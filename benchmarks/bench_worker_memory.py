"""Resident memory of a worker against the bare program, and what each further thread adds; prints medians, in MiB.

    python benchmarks/bench_worker_memory.py [--rounds N]

The bare program is the same calculation through ``qcengine.compute`` in a fresh interpreter. The specification asks for
no significant memory per thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import asking

from qcthreads.execution.calculation import Calculation
from qcthreads.execution.engine import LocalEngine
from qcthreads.leases import process_book
from qcthreads.monitoring.sampler import ThreadSampler
from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import get
from qcthreads.programs.settings import settings_for

MIB = 1024**2
WATER: dict[str, Any] = {
    "schema_name": "qcschema_atomic_input",
    "schema_version": 2,
    "molecule": {
        "schema_name": "qcschema_molecule",
        "schema_version": 3,
        "symbols": ["O", "H", "H"],
        "geometry": [0.0, 0.0, 0.2217, 0.0, 1.4309, -0.8867, 0.0, -1.4309, -0.8867],
    },
    "specification": {"program": "pyscf", "driver": "energy", "model": {"method": "hf", "basis": "6-31g"}},
}
BARE = """
import json, sys
import qcthreads.programs.harnesses.pyscf, qcengine
job, task_config = json.load(sys.stdin)
assert qcengine.compute(job, "pyscf", task_config=task_config, raise_error=True).success
lines = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Vm"))
print(int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024)
"""


def main() -> None:
    """Measure and print."""
    rounds: int = asking.parser(__doc__, rounds=5).parse_args().rounds
    if not Path("/proc/self/status").exists():
        sys.exit("resident memory is read from /proc, which is not there; run it on Linux")
    widths = [width for width in (1, 2, 4, 8) if width <= len(process_book().usable)]
    bare: dict[int, list[tuple[int, int]]] = {width: [] for width in widths}
    ours: dict[int, list[tuple[int, int]]] = {width: [] for width in widths}
    for _ in range(rounds):
        for width in widths:
            bare[width].append(_bare(width))
            ours[width].append(_worker(width))
    print("water, HF/6-31G, PySCF; resident memory after the calculation (peak), MiB")
    print(f"{'threads':>7} {'bare program':>16} {'worker':>16} {'worker adds':>12}")
    for width in widths:
        added = _median(ours[width])[0] - _median(bare[width])[0]
        print(f"{width:7} {_text(bare[width]):>16} {_text(ours[width]):>16} {added / MIB:12.1f}")
    if len(widths) > 1:
        per_thread = (_median(ours[widths[-1]])[0] - _median(ours[1])[0]) / (widths[-1] - 1)
        print(f"each further thread of a worker adds {per_thread / MIB:.1f} MiB")


def _bare(width: int) -> tuple[int, int]:
    settings = settings_for(get("pyscf"), width)
    command = [sys.executable, "-c", BARE]
    shown = subprocess.run(
        command,
        input=json.dumps([WATER, dict(settings.task_config)]),
        env=environment_under(settle(settings, os.environ, counts=False), os.environ),
        check=True,
        capture_output=True,
        text=True,
    )
    now, peak = shown.stdout.split()
    return int(now), int(peak)


def _worker(width: int) -> tuple[int, int]:
    with LocalEngine(process_book()) as engine:
        (outcome,) = engine.run([Calculation(label="water", program="pyscf", input=WATER, threads=width)])
        if outcome.status != "finished":
            raise SystemExit(outcome.error)
        with ThreadSampler([outcome.worker_pid]) as sampler:
            sampler.sample(detail=True)
            processes = sampler.processes()
    return int(processes["memory_bytes"].sum()), int(processes["memory_peak_bytes"].sum())


def _median(sizes: list[tuple[int, int]]) -> tuple[float, float]:
    return median(now for now, _ in sizes), median(peak for _, peak in sizes)


def _text(sizes: list[tuple[int, int]]) -> str:
    now, peak = _median(sizes)
    return f"{now / MIB:.0f} ({peak / MIB:.0f})"


if __name__ == "__main__":
    main()
