"""How busy each CPU of the machine was since it was booted, in clock ticks; changes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def busy_ns() -> dict[int, int] | None:
    """By CPU, the time that anybody used it, other guests of the host included; ``None`` where it is not told."""
    if sys.platform != "linux":
        return None  # psutil's order of CPUs is not that of our numbers everywhere
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    try:
        rows = [line[3:].split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
        # user, nice, system, (idle, iowait,) irq, softirq, steal; guests count as user. The first row is of all CPUs.
        return {int(row[0]): sum(map(int, row[1:4] + row[6:9])) * tick_ns for row in rows[1:]}
    except (OSError, ValueError, IndexError):
        return None
