"""What this process may use of the machine, and which rule says so; reads, never sets."""

from __future__ import annotations

from dataclasses import dataclass

from ..cpuset import CpuSet


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit found: exactly one of ``cpus``, ``cpu_count`` and ``memory_bytes`` is set."""

    rule: str
    source: str
    cpus: CpuSet | None = None
    cpu_count: float | None = None
    memory_bytes: int | None = None
    tightest: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be used. ``cpus``: the PUs; ``cpu_count``: how many of them at most (a quota may allow fewer; never below 1);
    ``quota_cpus``: the tightest CPU quota as a fraction, if any; ``memory_bytes``: memory we may still take.
    """

    cpus: CpuSet
    cpu_count: int
    quota_cpus: float | None
    memory_bytes: int
    rules: tuple[Rule, ...]

    def explain_cpus(self) -> str:
        """One clause that names the tightest CPU rule, for messages: ``"2 CPUs may be used: mask 0-1"``."""
        raise NotImplementedError


def read_limits(sysroot: str | None = None) -> Limits:
    """Intersect every limit on CPUs and memory that applies to the calling thread.

    With ``sysroot`` the mask and cgroup come from ``DIR/proc/self/{status,cgroup,mountinfo}`` and cgroup files from below DIR.
    """
    raise NotImplementedError
