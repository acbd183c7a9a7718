"""What the memory of a machine was measured to deliver, as values; measures nothing and knows no files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..cpuset import CpuSet

# More cores than those that reach this share of the most that was seen are no use to who only waits for memory. Two
# measurements on a quiet machine differ by less than the rest.
_SATURATED_SHARE = 0.95

DomainKind = Literal["llc", "node", "machine"]


@dataclass(frozen=True, slots=True)
class DomainBandwidth:
    """What the memory delivers to one LLC domain, to one memory node's own PUs, or to all together."""

    kind: DomainKind
    cpus: CpuSet
    """PUs of the domain."""
    node: int | None
    """Whose memory it is; ``None``: of several, each core's nearest."""
    rates: tuple[tuple[int, float], ...]
    """Cores that ask at the same time, one PU of each, and bytes per second to all of them; the fewest first."""

    @property
    def cores(self) -> int:
        """The most that were measured."""
        return self.rates[-1][0]

    @property
    def peak_bytes_per_s(self) -> float:
        """The most that it delivered, to however many cores."""
        return max(rate for _, rate in self.rates)

    @property
    def saturation_cores(self) -> int:
        """The fewest cores that got 95 % of the most: further ones wait for memory that others use."""
        enough = _SATURATED_SHARE * self.peak_bytes_per_s
        return next(cores for cores, rate in self.rates if rate >= enough)

    def bytes_per_s(self, cores: int) -> float:
        """What so many cores can have, between what was measured by a straight line; never less than fewer can."""
        before, most = (0, 0.0), 0.0
        for here in self.rates:
            if here[0] >= cores:
                share = (cores - before[0]) / (here[0] - before[0])
                return max(most, before[1] + share * (here[1] - before[1]))
            before, most = here, max(most, here[1])
        return most


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """What was measured of one machine."""

    fingerprint: str
    """Of its topology and its model of CPU: a machine with another one has to be measured itself."""
    cpu_model: str
    measured_at: str
    """UTC, in ISO 8601."""
    method: str
    """``native`` or ``numpy``; the latter reaches less."""
    domains: tuple[DomainBandwidth, ...]

    def of(self, kind: DomainKind) -> tuple[DomainBandwidth, ...]:
        """The domains of one kind."""
        return tuple(domain for domain in self.domains if domain.kind == kind)

    def bandwidth_bytes_per_s(self, cpus: CpuSet) -> float | None:
        """What ``cpus``, one PU of each core, can have together; ``None`` where some of them were not measured.

        Each memory node delivers what it did to so many of its cores, but no more than their LLC domains take.
        """
        nodes = self.of("node") or self.of("machine")  # where the kernel knows no nodes
        if not cpus or cpus - CpuSet(cpu for node in nodes for cpu in node.cpus):
            return None
        total = 0.0
        for node in nodes:
            here = cpus & node.cpus
            if here:
                total += min(node.bytes_per_s(len(here)), self._taken(here))
        (whole,) = self.of("machine") or (None,)
        return min(total, whole.peak_bytes_per_s) if whole else total

    def _taken(self, cpus: CpuSet) -> float:
        """By the LLC domains of ``cpus``; infinite where none was measured."""
        rates = ((domain, len(cpus & domain.cpus)) for domain in self.of("llc"))
        return sum(domain.bytes_per_s(cores) for domain, cores in rates if cores) or math.inf
