"""Which PUs lie next to each other, and how to cut a machine into places; pure, fast, and ignorant of who uses it.

One rule throughout: physical cores first (one PU of every core before any second one), faster kinds of core before
slower ones, and the PUs of one place as close together as possible: same LLC domain, then die, package, memory node.
Inside, sets are the bits of ints: a call is made for every batch and every lease, and may not take a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ..cpuset import CpuSet
from ..errors import OversubscriptionError
from .model import Machine, Region


def usable_cpus(machine: Machine, allowed: CpuSet, *, smt: bool = False) -> CpuSet:
    """The PUs worth giving to threads: one per core of ``allowed`` (the lowest allowed), or all with ``smt``.

    The default, one thread per physical core, is what quantum-chemistry codes want: hyperthreads share the
    floating-point units that they saturate (QCEngine's own default; NWChem's documentation).
    """
    bits = allowed.bits & machine.cpus_online.bits
    return CpuSet.from_bits(bits if smt else _one_per_core(machine.region, bits))


def thread_cpus(machine: Machine, allowed: CpuSet, count: int, *, smt: bool = False) -> CpuSet:
    """The PUs to give to threads where at most ``count`` of ``allowed`` may be used.

    Those of :func:`usable_cpus`; where these are more than ``count``, performance cores first, and close together.
    """
    rest = usable_cpus(machine, allowed, smt=smt)
    if count >= len(rest):
        return rest
    chosen = CpuSet()
    for kind in sorted(machine.cpu_kinds, key=lambda kind: -kind.efficiency):
        these = kind.cpus & rest
        if len(chosen) + len(these) > count:
            rest = these
            break
        chosen |= these
        rest -= these
    return chosen | (choose(machine, rest, count - len(chosen), near=chosen or None) or CpuSet())


def choose(machine: Machine, free: CpuSet, width: int, *, near: CpuSet | None = None) -> CpuSet | None:
    """The best place for ``width`` threads within ``free``: fewest LLC domains, then packages and nodes; tightest fit
    first, so that big free domains stay whole; close to ``near`` if given. ``None`` when ``free`` is too small.

    A core whose other PUs are all free comes before one that somebody already works on.
    """
    bits = free.bits & machine.cpus_online.bits
    if width < 1 or bits.bit_count() < width:
        return None
    first = _one_per_core(machine.region, bits)
    have = first.bit_count()
    if have < width:
        return CpuSet.from_bits(first | _compact(machine, bits & ~first, width - have, near))
    idle = _idle_cores(machine, first, bits)
    return CpuSet.from_bits(
        _compact(machine, _fastest(machine, idle if idle.bit_count() >= width else first, width), width, near)
    )


def compact(machine: Machine, free: CpuSet, width: int) -> CpuSet:
    """``width`` of the PUs in ``free``, which has so many, as close together as they come, whoever is beside them."""
    return CpuSet.from_bits(_compact(machine, free.bits, width, None))


def split(machine: Machine, usable: CpuSet, places: int, width: int) -> tuple[CpuSet, ...]:
    """Cut ``usable`` into ``places`` disjoint places of ``width`` PUs each, spread evenly over LLC domains and nodes.

    The places come in order of their lowest PU. OversubscriptionError, a ValueError, when ``places * width`` exceeds
    ``len(usable)``.
    """
    bits = usable.bits & machine.cpus_online.bits
    total = places * width
    if places < 1 or width < 1 or total > bits.bit_count():
        raise OversubscriptionError(
            f"{places} places x {width} threads = {total} threads were asked for, but there are {bits.bit_count()} "
            f"CPUs: {CpuSet.from_bits(bits)}; ask for at least one thread and at most as many as CPUs"
        )
    first = _one_per_core(machine.region, bits)
    have = first.bit_count()
    if have < total:  # every core works, and the first cores in line also with their further PUs
        pool = first | sum(islice(_in_line(machine.region, bits & ~first), total - have))
    else:
        pool = _fastest(machine, first, total)
    return tuple(CpuSet.from_bits(place) for place in sorted(_cut(machine.region, pool, places, width), key=_lowest))


def _lowest(bits: int) -> int:
    return bits & -bits


def _one_per_core(region: Region, bits: int) -> int:
    if not bits & ~region.firsts:
        return bits
    first = 0
    for core in region.cores:
        first |= core & bits & -(core & bits)
    return first


def _idle_cores(machine: Machine, first: int, free: int) -> int:
    """Those of ``first`` whose whole core is free, as far as it is ours."""
    busy = machine.allowed_cpus.bits & ~free
    if not busy:
        return first
    idle = 0
    for core in machine.region.cores:
        if not core & busy:
            idle |= core & first
    return idle


def _fastest(machine: Machine, bits: int, count: int) -> int:
    """The fastest kinds of PUs among ``bits`` that have ``count`` together; all where kinds are unknown."""
    chosen = 0
    for kind in sorted(machine.cpu_kinds, key=lambda kind: -kind.efficiency):
        chosen |= kind.cpus.bits & bits
        if chosen.bit_count() >= count:
            return chosen
    return bits


def _compact(machine: Machine, pool: int, width: int, near: CpuSet | None) -> int:
    """``width`` PUs of ``pool`` as close together as they come."""
    if near:
        return _around(machine, pool, width, near.bits)
    best, best_size, best_free = machine.region, 0, 0
    for region in machine.regions:
        size = region.bits.bit_count()
        if best_size and size > best_size:
            break
        free = (region.bits & pool).bit_count()
        if free >= width and (not best_size or free < best_free):
            best, best_size, best_free = region, size, free
    return _fill(best, pool, width)


def _around(machine: Machine, pool: int, width: int, near: int) -> int:
    """In rings of growing regions about ``near``."""
    chosen = 0
    for region in machine.regions:
        ring = region.bits & pool & ~chosen
        if region.bits & near and ring:
            chosen |= _fill(region, ring, min(width - chosen.bit_count(), ring.bit_count()))
            if chosen.bit_count() == width:
                return chosen
    return chosen | _fill(machine.region, pool & ~chosen, width - chosen.bit_count())


def _fill(region: Region, pool: int, width: int) -> int:
    """``width`` PUs of ``pool`` in ``region`` from as few LLC domains as possible; the rest from the tightest."""
    fitting = [part for part in region.parts if (part.bits & pool).bit_count() >= width]
    if fitting:
        tightest = min(fitting, key=lambda part: (part.bits & pool).bit_count())
        return _fill(tightest, pool & tightest.bits, width)
    if not region.parts:
        return sum(islice(_in_line(region, pool), width))
    chosen = 0
    # Not part by part: two large domains of two packages may hold what one package has only in three.
    domains = [(domain, part.bits) for part in region.parts for domain in _domains(part)]
    while width:
        taken = _next_domain(domains, pool & ~chosen, width, chosen)
        chosen |= _fill(taken, pool & taken.bits, min(width, (taken.bits & pool).bit_count()))
        width -= min(width, (taken.bits & pool).bit_count())
        domains = [entry for entry in domains if entry[0] is not taken]
    return chosen


def _domains(region: Region) -> list[Region]:
    """The smallest parts, LLC domains where the machine has them."""
    return [domain for part in region.parts for domain in _domains(part)] if region.parts else [region]


def _next_domain(domains: list[tuple[Region, int]], pool: int, width: int, chosen: int) -> Region:
    """The tightest of those that fit, rather beside what is chosen; else the roomiest."""
    fitting = [entry for entry in domains if (entry[0].bits & pool).bit_count() >= width]
    if fitting:
        return min(fitting, key=lambda entry: (not entry[1] & chosen, (entry[0].bits & pool).bit_count()))[0]
    return max(domains, key=lambda entry: ((entry[0].bits & pool).bit_count(), bool(entry[1] & chosen)))[0]


def _in_line(region: Region, bits: int) -> Iterator[int]:
    """The PUs of ``bits`` as single bits, neighbours next to each other: by parts, then core by core."""
    for part in region.parts:
        if part.bits & bits:
            yield from _in_line(part, bits & part.bits)
    if region.parts:
        return
    for core in (region.bits,) if len(region.cores) == region.bits.bit_count() else region.cores:
        left = core & bits
        while left:
            low = left & -left
            yield low
            left ^= low


def _cut(region: Region, pool: int, places: int, width: int) -> list[int]:
    """Whole places in the parts first, evenly; those that fit in no part straddle what is left over."""
    if places == 1 and pool.bit_count() == width:
        return [pool]
    made: list[int] = []
    if region.parts:
        room = [(part.bits & pool).bit_count() // width for part in region.parts]
        for part, share in zip(region.parts, _even_shares(places, room), strict=True):
            if share:
                made += _cut(part, part.bits & pool, share, width)
        for place in made:
            pool &= ~place
    missing = places - len(made)
    if missing:
        line = list(_in_line(region, pool))
        made += (
            line[:missing] if width == 1 else [sum(line[at : at + width]) for at in range(0, missing * width, width)]
        )
    return made


def _even_shares(count: int, room: list[int]) -> list[int]:
    """``count`` dealt out one by one, as far as there is room; the roomiest first."""
    shares = [0] * len(room)
    order = sorted(range(len(room)), key=lambda index: -room[index])
    while order and count:
        each = max(1, count // len(order))
        for index in order:
            more = min(each, room[index] - shares[index], count)
            shares[index] += more
            count -= more
        order = [index for index in order if shares[index] < room[index]]
    return shares
