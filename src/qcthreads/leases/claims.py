"""Who gets what of what is free: pure, so that every process on the node comes to the same answer; holds nothing.

Sets are the bits of ints, as in ``machine.placement``: this runs for every lease, while nobody else may look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ..cpuset import CpuSet
from ..light import dataclass, field, replace
from ..machine import Machine
from ..machine.placement import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from .hold import Hold
    from .records import Holding

    _Part = TypeVar("_Part", Hold, Holding)

NODE_POOL = "node:"
"""Prefix of the pools that are memory nodes: what one of them lacks may come from another."""
SLOTS = "slots:"
"""Prefix of the pools of which each lease takes one: licences of a program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What somebody asks for, with everything of his limits that others need to keep it free for him."""

    threads: int
    candidates: int
    """Bits of the PUs that he may be given."""
    siblings: int = 0
    """Bits of the PUs that nobody else may work on when their core is his; 0 where he does not mind."""
    preferred: int = 0
    """Bits of the candidates that he takes first."""
    near: int = 0
    gpus: int = 0
    gpu_candidates: tuple[int, ...] = ()
    memory_bytes: int = 0
    draws: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By pool, how much of it he takes and how much it holds for all; a lease of ``memory_bytes`` takes that much of
    the memory pools."""
    nodes: Mapping[str, int] = field(default_factory=dict)
    """By pool of a memory node that he may use, how many bytes it holds."""
    bound: bool = False
    """His memory comes from these nodes or from nowhere."""


# Of the next two one is made for every lease, and a constructor written out is three times as fast as a dataclass's.


class Grant:
    """What a claim is given. ``reserved``: the PUs that nobody else gets, ``cpus`` and what ``siblings`` add."""

    __slots__ = ("cpus", "draws", "gpus", "reserved")

    def __init__(self, cpus: int, reserved: int, gpus: tuple[int, ...], draws: Mapping[str, tuple[int, int]]) -> None:
        self.cpus = cpus
        self.reserved = reserved
        self.gpus = gpus
        self.draws = draws


class Room:
    """What is free. A pool nobody draws on is full; each is as large as the largest that anybody found it."""

    __slots__ = ("drawn", "found", "free", "gpus_taken")

    def __init__(self, free: int) -> None:
        self.free = free
        self.gpus_taken: set[int] = set()
        self.drawn: dict[str, int] = {}
        self.found: dict[str, int] = {}

    def copy(self) -> Room:
        """Of which may be taken, and nothing of this one."""
        copied = Room(self.free)
        copied.gpus_taken, copied.drawn, copied.found = {*self.gpus_taken}, {**self.drawn}, {**self.found}
        return copied

    def take(self, reserved: int, gpus: tuple[int, ...], draws: Mapping[str, tuple[int, int]]) -> None:
        """A lease, or what is set aside for one."""
        self.free &= ~reserved
        self.gpus_taken.update(gpus)
        for pool, (amount, holds) in draws.items():
            self.drawn[pool] = self.drawn.get(pool, 0) + amount
            self.found[pool] = max(holds, self.found.get(pool, 0))

    def lose(self, what: str) -> None:
        """``cpu3`` or ``gpu0``, which somebody has who has not told of it."""
        if what.startswith("cpu"):
            self.free &= ~(1 << int(what[3:]))
        else:
            self.gpus_taken.add(int(what[3:]))

    def left(self, pool: str, holds: int) -> int:
        """Of ``pool``, for somebody who found that it holds so much."""
        return max(holds, self.found.get(pool, 0)) - self.drawn.get(pool, 0)


def grant(machine: Machine, room: Room, claim: Claim) -> Grant | None:
    """What ``claim`` gets of ``room``; ``None`` where it does not fit. Nothing is taken."""
    if claim.draws and any(amount > room.left(pool, holds) for pool, (amount, holds) in claim.draws.items()):
        return None
    gpus = _free_gpus(room, claim) if claim.gpus else ()
    if len(gpus) < claim.gpus:
        return None
    free = usable(machine, room, claim)
    if free.bit_count() < claim.threads:
        return None
    cpus = _choose(machine, room, claim, free)
    draws = claim.draws
    if claim.nodes and claim.memory_bytes:
        spread = _spread(machine, room, claim, cpus)
        if spread is None:
            return None
        draws = {**draws, **spread}
    return Grant(cpus, cpus | _siblings(machine, cpus) & claim.siblings, gpus, draws)


def grant_each(machine: Machine, room: Room, claim: Claim, places: Iterable[CpuSet]) -> list[Grant]:
    """What ``claim`` gets of ``room`` on each of these disjoint sets of PUs; empty where one of them gets nothing."""
    left = room.copy()
    granted = []
    for cpus in places:
        made = grant(machine, left, replace(claim, candidates=cpus.bits, preferred=cpus.bits))
        if made is None:
            return []
        left.take(made.reserved, made.gpus, made.draws)
        granted.append(made)
    return granted


def set_aside(machine: Machine, room: Room, claim: Claim) -> None:
    """Keep for ``claim``, which waits, what it can use of ``room``: what comes free adds up until it fits.

    Those behind it get the rest, so that they delay it by nothing: PUs that it may not use or needs no more of, because
    memory, GPUs or whole cores are what it lacks. Nothing is kept for one that waits for a slot: that may take hours.
    """
    if any(pool.startswith(SLOTS) and amount > room.left(pool, holds) for pool, (amount, holds) in claim.draws.items()):
        return
    made = grant(machine, room, claim)
    if made is not None:
        room.take(made.reserved, made.gpus, made.draws)
        return
    free = usable(machine, room, claim)
    if free.bit_count() > claim.threads:
        free = _choose(machine, room, claim, free)
    free |= _half_free(machine, room, claim, claim.threads - free.bit_count())
    gpus = _free_gpus(room, claim)
    draws = {pool: (min(amount, room.left(pool, holds)), holds) for pool, (amount, holds) in claim.draws.items()}
    room.take(free | _siblings(machine, free) & claim.siblings, gpus, draws)


def in_the_way(room: Room, claim: Claim, held: Iterable[_Part]) -> Iterator[_Part]:
    """Who of those ``held`` has what is short for ``claim``: of memory and quotas, of GPUs, of PUs.

    ``room`` is what none of them holds. Where nothing is short, whole cores are what lacks, or who waits is before it.
    """
    pools = {pool for pool, (amount, holds) in claim.draws.items() if amount > room.left(pool, holds)}
    gpus = set(claim.gpu_candidates)
    gpus = gpus if len(gpus - room.gpus_taken) < claim.gpus else set()
    cpus = claim.candidates | claim.siblings
    if (pools or gpus) and (room.free & claim.candidates).bit_count() >= claim.threads:
        cpus = 0
    for one in held:
        if one.reserved.bits & cpus or gpus & set(one.gpus) or pools & one.draws.keys():
            yield one


def _free_gpus(room: Room, claim: Claim) -> tuple[int, ...]:
    """As many as ``claim`` asks for, or fewer."""
    return tuple(gpu for gpu in claim.gpu_candidates if gpu not in room.gpus_taken)[: claim.gpus]


def _half_free(machine: Machine, room: Room, claim: Claim, missing: int) -> int:
    """Free PUs of so many cores that others work on as ``claim`` lacks: kept, or they would go from one to the next."""
    kept = 0
    rest = claim.candidates & room.free & ~usable(machine, room, claim)
    while rest and missing > 0:
        core = _siblings(machine, rest & -rest)
        kept |= core & room.free & (claim.candidates | claim.siblings)
        missing -= (core & claim.candidates).bit_count()
        rest &= ~core
    return kept


def usable(machine: Machine, room: Room, claim: Claim) -> int:
    """The free PUs that ``claim`` may be given; not those of a core where somebody else works, where it minds."""
    busy = claim.siblings & ~room.free
    return claim.candidates & room.free & ~(_siblings(machine, busy) if busy else 0)


def _choose(machine: Machine, room: Room, claim: Claim, free: int) -> int:
    """Of ``free``, which suffice: rather those preferred, and next to memory that is free."""
    if free.bit_count() == claim.threads:
        return free
    roomy = _with_memory(machine, room, claim)
    for some in (claim.preferred & roomy, claim.preferred, roomy, claim.candidates):
        if (some & free).bit_count() >= claim.threads:
            near = CpuSet.from_bits(claim.near) if claim.near else None
            chosen = choose(machine, CpuSet.from_bits(some & free), claim.threads, near=near)
            if chosen is not None:
                return chosen.bits
    raise AssertionError("fewer PUs than were counted")


def _with_memory(machine: Machine, room: Room, claim: Claim) -> int:
    """Bits of the PUs of memory nodes that have the memory of ``claim`` left."""
    if not claim.nodes or not claim.memory_bytes:
        return 0
    bits = 0
    for node in machine.numa_nodes:
        pool = f"{NODE_POOL}{node.node_id}"
        if pool in claim.nodes and room.left(pool, claim.nodes[pool]) >= claim.memory_bytes:
            bits |= node.cpus.bits
    return bits


def _spread(machine: Machine, room: Room, claim: Claim, cpus: int) -> dict[str, tuple[int, int]] | None:
    """From which nodes the memory comes: those next to ``cpus``, and what they lack from the others."""
    missing = claim.memory_bytes
    near = {f"{NODE_POOL}{node}" for node in machine.nodes_of(CpuSet.from_bits(cpus))}
    taken: dict[str, tuple[int, int]] = {}
    for pool in sorted(claim.nodes, key=lambda pool: (pool not in near, pool)):
        amount = min(missing, max(0, room.left(pool, claim.nodes[pool])))
        if amount:
            taken[pool] = (amount, claim.nodes[pool])
            missing -= amount
    # What nodes say they hold is less than all there is on some machines: the pools of the whole decide.
    return None if missing and claim.bound else taken


def _siblings(machine: Machine, bits: int) -> int:
    """All PUs of the cores that have one of ``bits``; others may tell of PUs that are not here."""
    bits &= machine.region.bits
    cores = machine.region.cores
    if len(cores) == machine.region.bits.bit_count():
        return bits
    of_core = machine.core_bits
    whole = 0
    while bits:
        core = of_core[(bits & -bits).bit_length() - 1]
        whole |= core
        bits &= ~core
    return whole


def sum_bits(sets: Iterable[int]) -> int:
    """Everything that is in one of them."""
    bits = 0
    for one in sets:
        bits |= one
    return bits
