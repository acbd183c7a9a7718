"""The threads below a process and what they did, from /proc: independent of what is tested."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Run:
    """A result, and the CPU seconds of every thread seen, by the name of its process, pid and thread id."""

    energy: float
    stdout: str | None
    cpu_s: Mapping[tuple[str, int, int], float]

    def working_threads(self, process_name: str, share: float = 0.1) -> list[int]:
        """For each process of that name that did real work, how many threads shared it.

        A thread works if it has this share of its process's CPU time: on a busy machine those of pools that wait for
        work have some, too. A process, if it has a third of the busiest one's: some are only asked for their version.
        """
        by_process: dict[int, list[float]] = {}
        for (name, pid, _), seconds in self.cpu_s.items():
            if name == process_name:
                by_process.setdefault(pid, []).append(seconds)
        busiest = max(sum(times) for times in by_process.values())
        return [
            sum(seconds > share * sum(times) for seconds in times)
            for times in by_process.values()
            if sum(times) > busiest / 3
        ]


def threads_below(pid: int) -> dict[tuple[str, int, int], tuple[float, set[int]]]:
    """CPU seconds, and the CPUs of its mask, of each thread of ``pid`` and its descendants, from /proc."""
    found = {}
    root = psutil.Process(pid)
    for process in [root, *_children(root)]:
        try:
            name = process.name()
            if name == "taskset":  # not bound yet
                continue
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):  # this thread has ended
                    on_cpu_ns = int((task / "schedstat").read_text().split()[0])
                    found[name, process.pid, int(task.name)] = (on_cpu_ns / 1e9, os.sched_getaffinity(int(task.name)))
        except (psutil.NoSuchProcess, OSError):
            continue
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
