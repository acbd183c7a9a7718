"""Measures what the memory of this machine delivers, under a lease of all CPUs that may be used; stores nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, zip_longest

from ..cpuset import CpuSet
from ..errors import MachineError
from ..host.bandwidth import REPETITIONS, measure_triad, triad_method, working_set_bytes
from ..host.busy import BusyWatch
from ..host.profiles import cpu_model, fingerprint
from ..leases import LeaseBook
from ..machine import Machine, NumaNode
from ..machine.bandwidth import DomainBandwidth, MachineProfile
from ..monitoring.findings import CONTENDED_SHARE
from ..units import format_count

# So often what others disturbed is measured again, with a pause between.
_TRIES, _PAUSE_S = 3, 0.5
# Counters of busy CPUs advance in hundredths of a second.
_SEEN_S = 0.2


def measure_machine(
    book: LeaseBook,
    *,
    wait: bool = False,
    repetitions: int = REPETITIONS,
    progress: Callable[[str], object] = lambda _: None,
) -> MachineProfile:
    """By number of cores: of every LLC domain, of every memory node's own PUs, and of all together.

    Only PUs that ``book`` hands out are measured, one of each core; a domain of which a part may be used is measured by
    that part. Raises LeaseError where somebody else holds any of them and ``wait`` is false, and MachineError where the
    memory that may be used is too small, and where others keep more than a tenth of the machine's CPUs busy, whatever
    is repeated.
    """
    size_bytes = working_set_bytes(book.machine, book.usable, book.memory_bytes)
    with book.acquire(len(book.usable), size_bytes, wait=wait, on_wait=progress) as lease:
        team = _Team(book.machine, lease.cpus, book.memory_bytes, repetitions, progress)
        domains = tuple(chain(team.llc_domains(), team.nodes(), team.whole()))
    model = cpu_model()
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    return MachineProfile(fingerprint(book.machine, model), model, measured_at, triad_method(), domains)


class _Team:
    """The PUs that may be used; what was measured of the same PUs and node is not measured twice."""

    def __init__(
        self, machine: Machine, cpus: CpuSet, memory_bytes: int, repetitions: int, progress: Callable[[str], object]
    ) -> None:
        self._machine = machine
        self._cpus = cpus
        self._memory_bytes = memory_bytes
        self._repetitions = repetitions
        self._progress = progress
        self._homes = [node for node in machine.numa_nodes if not node.memory_only and node.memory_bytes]
        self._known: dict[tuple[tuple[int, ...], int | None], float] = {}

    def llc_domains(self) -> Iterator[DomainBandwidth]:
        """Each by itself, on the memory of the node that it is next to."""
        for domain in self._machine.llc_domains:
            cpus = domain.cpus & self._cpus
            if cpus:
                near = [node for node in self._homes if cpus <= node.cpus]
                yield DomainBandwidth("llc", domain.cpus, *self._rates(list(cpus), near[0] if near else None))

    def nodes(self) -> Iterator[DomainBandwidth]:
        """Each by itself, its LLC domains taking turns: what the memory delivers shows soonest so."""
        for node in self._homes:
            order = self._spread(node.cpus & self._cpus)
            if order:
                yield DomainBandwidth("node", node.cpus, *self._rates(order, node))

    def whole(self) -> Iterator[DomainBandwidth]:
        """All together, each on the memory next to it."""
        order = self._spread(self._cpus)
        alone = self._homes[0] if len(self._homes) == 1 else None
        yield DomainBandwidth("machine", self._machine.cpus_online, *self._rates(order, alone))

    def _rates(self, order: Sequence[int], node: NumaNode | None) -> tuple[int | None, tuple[tuple[int, float], ...]]:
        number = None if node is None else node.node_id
        return number, tuple((cores, self._rate(tuple(order[:cores]), number)) for cores in steps(len(order)))

    def _rate(self, cpus: tuple[int, ...], node: int | None) -> float:
        key = tuple(sorted(cpus)), node
        if key not in self._known:
            self._progress(f"measuring {len(cpus)} of {len(self._cpus)} cores")
            self._known[key] = self._undisturbed(cpus, node)
        return self._known[key]

    def _undisturbed(self, cpus: tuple[int, ...], node: int | None) -> float:
        online = len(self._machine.cpus_online)
        others = []
        for _ in range(_TRIES):
            rate, others_cpus = self._beside_others(cpus, node)
            if others_cpus <= CONTENDED_SHARE * online:
                return rate
            others.append(others_cpus)
            self._progress(f"others keep {others_cpus:.2g} of {online} CPUs busy; measuring again")
            time.sleep(_PAUSE_S)
        raise MachineError(
            f"others kept at least {min(others):.2g} of the {format_count(online, 'CPU')} busy while the bandwidth of "
            f"{format_count(len(cpus), 'core')} was measured, in each of {_TRIES} tries; beyond {CONTENDED_SHARE:.0%} "
            "nothing is stored, as plans would be wrong; measure again when the machine is idle (`qcthreads top` shows "
            "who uses it)"
        )

    def _beside_others(self, cpus: tuple[int, ...], node: int | None) -> tuple[float, float]:
        """Bytes per second, and how many CPUs of the machine others, or its hypervisor, kept busy meanwhile."""
        size_bytes = working_set_bytes(self._machine, CpuSet(cpus), self._memory_bytes)
        watch, rate = BusyWatch(), 0.0
        began_s, own_s = time.monotonic(), time.process_time()
        watch.look(began_s)
        while (elapsed_s := time.monotonic() - began_s) < _SEEN_S:
            rate = max(rate, measure_triad(cpus, node, size_bytes, self._repetitions).bytes_per_s)
        load = watch.look(began_s + elapsed_s)
        busy = sum(load.busy.values()) + sum(load.steal.values())
        return rate, max(0.0, busy - (time.process_time() - own_s) / elapsed_s)

    def _spread(self, cpus: CpuSet) -> list[int]:
        """One of each LLC domain in turn."""
        domains = [domain.cpus & cpus for domain in self._machine.llc_domains]
        turns = zip_longest(*domains)
        return [cpu for turn in turns for cpu in turn if cpu is not None]


def steps(most: int) -> list[int]:
    """Numbers of cores to measure: all up to 4, then two for each doubling, and ``most``."""
    found, step = {1, 2, 3, most}, 4
    while step < most:
        found |= {step, step * 3 // 2}
        step *= 2
    return sorted(number for number in found if number <= most)
