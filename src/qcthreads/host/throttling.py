"""How long quotas of CPU time stopped the control groups of a process; reads files, changes nothing."""

from __future__ import annotations

import re

from .cgroup import ControlGroups
from .limits import cpu_quotas
from .sysfs import read_text

# Version 1 tells ns, version 2 us, each summed over the CPUs.
_THROTTLED = re.compile(r"^throttled_(time|usec) ([0-9]{1,19})$", re.MULTILINE)


class Throttling:
    """The groups of a process that had a quota when this was made, and their ancestors that had; empty elsewhere."""

    def __init__(self, pid: int, root: str = "/") -> None:
        self._root = root
        self._groups = [group.path for group, _, _ in cpu_quotas(ControlGroups(root, str(pid)))]

    def total_ns(self) -> int | None:
        """How long they were stopped so far, on all CPUs together; ``None`` where no quota is found, or none tells."""
        found = [match for group in self._groups if (match := _throttled(self._root, group))]
        return sum(int(match[2]) * (1 if match[1] == "time" else 1000) for match in found) if found else None


def throttled_between(before_ns: int | None, now_ns: int | None) -> int | None:
    """The difference of two totals; ``None`` where one is not known."""
    return None if before_ns is None or now_ns is None else max(0, now_ns - before_ns)


def _throttled(root: str, group: str) -> re.Match[str] | None:
    return _THROTTLED.search(read_text(root, f"{group}/cpu.stat") or "")
