"""Which PUs lie next to each other, and how to cut a machine into places; pure, fast, and ignorant of who uses it.

One rule throughout: physical cores first (one PU of every core before any second one), faster kinds of core before slower
ones, and the PUs of one place as close together as possible: same LLC domain, then die, package, memory node.
"""

from __future__ import annotations

from ..cpuset import CpuSet
from .model import Machine


def usable_cpus(machine: Machine, allowed: CpuSet, *, smt: bool = False) -> CpuSet:
    """The PUs worth giving to threads: one per core of ``allowed`` (the lowest allowed), or all with ``smt``.

    The default, one thread per physical core, is what quantum-chemistry codes want: hyperthreads share the floating-point
    units that they saturate (QEngine's own default; NWChem's documentation).
    """
    raise NotImplementedError


def choose(machine: Machine, free: CpuSet, width: int, *, near: CpuSet | None = None) -> CpuSet | None:
    """The best place for ``width`` threads within ``free``: fewest LLC domains, then packages and nodes; tightest fit
    first, so that big free domains stay whole; close to ``near`` if given. ``None`` when ``free`` is too small.
    """
    raise NotImplementedError


def split(machine: Machine, usable: CpuSet, places: int, width: int) -> tuple[CpuSet, ...]:
    """Cut ``usable`` into ``places`` disjoint places of ``width`` PUs each, spread evenly over LLC domains and nodes.

    ValueError when ``places * width`` exceeds ``len(usable)``.
    """
    raise NotImplementedError
