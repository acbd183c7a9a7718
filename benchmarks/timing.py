"""Timing of whole commands side by side, for the benchmarks in this folder; it measures and judges nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Timings:
    """Wall and CPU seconds of every round of one contender, and what it printed last."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    stdout: str = ""

    @property
    def median_s(self) -> float:
        return statistics.median(self.wall_s)


def run_once(command: Sequence[str], into: Timings) -> None:
    """Run ``command`` to its end; note its wall seconds and the CPU seconds of its tree, as ``wait4`` counts them.

    Each has a data directory of its own, so that none plans with what another has measured.
    """
    with (
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
        tempfile.TemporaryDirectory() as data,
    ):
        environ = {**os.environ, "XDG_DATA_HOME": data}
        began = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environ)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{stderr.read()[-3000:]}")
        into.stdout = stdout.read()
    into.wall_s.append(elapsed)
    into.cpu_s.append(usage.ru_utime + usage.ru_stime)


def interleave(contenders: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Timings]:
    """Every contender once per round, each round starting one further along: drift of the machine hits all alike."""
    timings = {name: Timings() for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            run_once(contenders[name], timings[name])
    return timings


def table(timings: Mapping[str, Timings], reference: str) -> str:
    """A Markdown table of medians and spread, and the ratio of each median to the reference's."""
    lines = [
        "| contender | wall s, median | min – max | CPU s, median | median / reference |",
        "|---|---|---|---|---|",
    ]
    base = timings[reference].median_s
    for name, one in timings.items():
        lines.append(
            f"| {name} | {one.median_s:.2f} | {min(one.wall_s):.2f} – {max(one.wall_s):.2f} "
            f"| {statistics.median(one.cpu_s):.2f} | {one.median_s / base:.2f} |"
        )
    return "\n".join(lines)
