"""The memory nodes of a machine whose CPUs may be used, and what they have together; places nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cpuset import CpuSet
from ..machine import Machine


@dataclass(frozen=True, slots=True)
class Node:
    """A memory node with the CPUs next to it that may be used."""

    node_id: int
    cpus: CpuSet
    memory_bytes: int


def memory_nodes(machine: Machine, usable: CpuSet) -> list[Node]:
    """Those that have CPUs and memory; the CPUs of one without memory are with the nearest, which is what they get."""
    homes = [node for node in machine.numa_nodes if not node.memory_only and node.memory_bytes]
    near = {home.node_id: home.cpus & usable for home in homes}
    for node in machine.numa_nodes:
        if homes and not node.memory_only and not node.memory_bytes:
            near[_nearest(machine, node.node_id, list(near))] |= node.cpus & usable
    return [Node(home.node_id, near[home.node_id], home.memory_bytes) for home in homes if near[home.node_id]]


def memory_within(machine: Machine, usable: CpuSet, memory_bytes: int | None) -> int | None:
    """The limit ``memory_bytes``, but no more than the machine has; ``None``: neither is known."""
    there = sum(node.memory_bytes for node in memory_nodes(machine, usable))
    limits = [limit for limit in (memory_bytes, there or None) if limit is not None]
    return min(limits, default=None)


def _nearest(machine: Machine, node_id: int, among: Sequence[int]) -> int:
    """The first where no distances are known."""
    if machine.distances is None:
        return among[0]
    nodes, matrix = machine.distances.nodes, machine.distances.matrix
    return min(among, key=lambda other: matrix[nodes.index(node_id)][nodes.index(other)])
