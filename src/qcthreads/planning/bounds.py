"""How short a batch can be at best; proves distances from the optimum, and never places anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..cpuset import CpuSet
from ..machine import Machine
from .batch import Batch, Choices, Floats, Integers
from .memory import memory_within
from .model import Running, Task, capacity_of, check_limits, usable_of
from .space import Space

# Of a task that leaves room for no more than this many of its kind the bound counts how many run side by side.
_MOST_SIDE_BY_SIDE = 64
# How much memory (or disk, or bandwidth) weighs beside CPUs in the bounds that count both.
_WEIGHTS = (0.25, 0.5, 0.75, 1.0)
_PROMISING = 3  # of them


def lower_bound(
    tasks: Sequence[Task],
    machine_or_cpus: Machine | CpuSet | int,
    *,
    memory_bytes: int | None = None,
    bandwidth_bytes_per_s: float | None = None,
    disk_bytes: int | None = None,
) -> float:
    """Seconds below which no schedule of ``tasks`` can end.

    The smallest T for which the least work (width x time) that lets every task end within T fits into P x T, with P the
    number of usable PUs: the usual dual bound for moldable tasks (Turek, Wolf, Yu, SPAA 1992). It includes the longest
    task at its best width. With ``memory_bytes``, ``bandwidth_bytes_per_s`` or ``disk_bytes`` the answer is the largest
    of this, of the same for memory and disk (bytes x seconds) and bandwidth, and for what is between them, and what
    tasks of which only k fit side by side take.

    Parameters
    ----------
    tasks
        What is to be run.
    machine_or_cpus
        A machine (its allowed CPUs, one PU per core), a set of CPUs, or a number of CPUs.
    memory_bytes, bandwidth_bytes_per_s, disk_bytes
        For all tasks that run at the same time; ``None``: no limit.
    """
    machine, usable = usable_of(machine_or_cpus)
    limits = {
        "memory_bytes": memory_bytes,
        "bandwidth_bytes_per_s": bandwidth_bytes_per_s,
        "disk_bytes": disk_bytes,
    }
    check_limits(**limits)
    limits["memory_bytes"] = memory_within(machine, usable, memory_bytes)
    return bound_of(Batch.of(tasks, capacity_of(usable, **limits)))


def bound_of(batch: Batch) -> float:
    """:func:`lower_bound` of a batch within its own capacity."""
    return max(bound_s for bound_s, _ in bounds_of(batch))


def bounds_of(batch: Batch, running: Sequence[Running] = ()) -> list[tuple[float, Choices]]:
    """Bounds in seconds, and the widths worth having as each weighs them; the first counts CPUs alone.

    ``running``: what goes on running beside the batch.
    """
    if running:
        return _bounds(batch, running)
    if batch.bounds is None:
        batch.bounds = _bounds(batch, ())
    return batch.bounds


def _bounds(batch: Batch, running: Sequence[Running]) -> list[tuple[float, Choices]]:
    few_s = _few_side_by_side(batch.narrowest, batch.capacity.cpus, batch.shortest_s)
    weighed: list[tuple[float, dict[str, float]]] = [(few_s, {})]
    short = [space for space in batch.spaces if _short(batch, space, running)]
    for space in short:
        few_s = _few_side_by_side(space.least, space.whole, batch.shortest_s)
        weighed += [(few_s, {"cpus": 1 - weight, space.name: weight}) for weight in _WEIGHTS]
    if len(short) > 1:
        for weight in _WEIGHTS:
            shares = {space.name: weight / len(short) for space in short}
            weighed.append((0.0, {"cpus": 1 - weight, **shares}))
    if math.isfinite(batch.capacity.bandwidth_bytes_per_s) and batch.traffic_bytes.any():
        weighed += [(0.0, {"cpus": 1 - weight, "bandwidth": weight}) for weight in _WEIGHTS]
    found = []
    for few_s, weights in weighed:
        choices = batch.choices(**weights)
        bound_s = choices.bound(_taken_up(batch, running, **weights)) if running else choices.bound_s
        found.append((max(bound_s, few_s), choices))
    return found


def _short(batch: Batch, space: Space, running: Sequence[Running]) -> bool:
    """Whether someone needs or has more than the share of its CPUs: where nobody does, CPUs run out before it."""
    cpus = batch.capacity.cpus
    if space.most.max() * cpus > space.whole:
        return True
    return any(space.taken(one) * cpus > one.width * space.whole > 0 for one in running)


def most_promising(batch: Batch, bounds: Sequence[tuple[float, Choices]]) -> Sequence[tuple[float, Choices]]:
    """The first few of those that :func:`bounds_of` weighs, by about when all tasks end at their cheapest widths.

    Where no more fit side by side than have the memory, several bounds are the strongest, and only the widths tell.
    """
    if len(bounds) == 1:
        return bounds
    longest_s = max(bound_s for bound_s, _ in bounds)

    def ends_s(one: tuple[float, Choices]) -> float:
        return bound_at(batch, *one[1].at(longest_s))

    return sorted(bounds, key=ends_s)[:_PROMISING]


def _taken_up(
    batch: Batch, running: Sequence[Running], cpus: float = 1.0, bandwidth: float = 0.0, **spaces: float
) -> float:
    """For how many seconds, were it the whole node at once; what moves meanwhile is not known."""
    del bandwidth
    taken_s = cpus * sum(one.left_s * one.width for one in running) / batch.capacity.cpus
    for space in batch.spaces:
        if weight := spaces.get(space.name):
            taken_s += weight * sum(one.left_s * space.taken(one) for one in running) / space.whole
    return taken_s


def bound_at(batch: Batch, widths: Integers, times_s: Floats) -> float:
    """Seconds below which no schedule can end that has the tasks at these widths."""
    bound_s = float(times_s.max(initial=0.0))
    taken: list[tuple[Floats | Integers, float]] = [
        (widths, batch.capacity.cpus),
        *((space.at(widths), space.whole) for space in batch.spaces),
        (batch.rates(times_s), 1.0),
    ]
    for needs, whole in taken:
        area_s = float((needs * times_s).sum()) / whole
        bound_s = max(bound_s, area_s)
        if 2 * area_s > bound_s:  # k that need more than 1/(k+1) of the whole each: (k+1)/k times the area at most
            bound_s = max(bound_s, _few_side_by_side(needs, whole, times_s))
    return bound_s


def _few_side_by_side(needs: Floats | Integers, whole: float, times_s: Floats) -> float:
    """Of tasks that each need more than 1/(k+1) of the whole at most k run at the same time."""
    many = needs * _MOST_SIDE_BY_SIDE > whole
    needs, times_s = needs[many], times_s[many]
    order = np.argsort(-needs)
    total_s = np.concatenate(([0.0], np.cumsum(times_s[order])))
    together = np.arange(1, _MOST_SIDE_BY_SIDE)
    large = np.searchsorted(-needs[order], -whole / (together + 1))
    return float((total_s[large] / together).max())
