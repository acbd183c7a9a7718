"""The memory nodes of a machine whose CPUs may be used, and what they have together; places nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cpuset import CpuSet, NodeSet
from ..machine import Machine, NumaNode


@dataclass(frozen=True, slots=True)
class Node:
    """A memory node with the CPUs next to it that may be used, and with what lies nearest to it."""

    node_id: int
    cpus: CpuSet
    memory_bytes: int


def memory_nodes(machine: Machine, usable: CpuSet) -> list[Node]:
    """Those with CPUs whose memory may be used; each CPU is with one of them, where its memory comes from first.

    That is the smallest node that lists it, or the nearest to that one where its memory is none or forbidden. Memory of
    a node none of whose CPUs may be used is with the nearest: the kernel turns to it when that has no more. Memory that
    is no DRAM, on nodes without CPUs, is left out: it is for those who ask for it.
    """
    allowed = machine.allowed_mems or NodeSet(node.node_id for node in machine.numa_nodes)
    ordinary = [node for node in machine.numa_nodes if not node.memory_only]
    homes = [
        node
        for node in machine.numa_nodes
        if node.memory_bytes and node.node_id in allowed and (not node.memory_only or node.kind == "DRAM")
    ]
    if not homes:
        return []
    near = {home.node_id: CpuSet() for home in homes}
    left = usable
    for node in sorted(ordinary, key=lambda node: len(node.cpus)):
        home_id = node.node_id if node.node_id in near else _nearest(machine, node.node_id, list(near))
        near[home_id] |= node.cpus & left
        left -= node.cpus
    for cpu in left:
        near[_beside(machine, cpu, homes)] |= CpuSet([cpu])
    held = {home_id: 0 for home_id, cpus in near.items() if cpus}
    for home in homes:
        home_id = home.node_id if home.node_id in held else _nearest(machine, home.node_id, list(held))
        held[home_id] += home.memory_bytes
    return [Node(home_id, near[home_id], memory_bytes) for home_id, memory_bytes in held.items()]


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
    if not {node_id, *among} <= set(nodes):
        return among[0]
    return min(among, key=lambda other: matrix[nodes.index(node_id)][nodes.index(other)])


def _beside(machine: Machine, cpu: int, homes: Sequence[NumaNode]) -> int:
    """Of a CPU that no node lists: the first in the narrowest part of the machine that both are in."""
    parts = [region.bits for region in machine.regions if region.bits >> cpu & 1]
    return next((home.node_id for part in parts for home in homes if home.cpus.bits & part), homes[0].node_id)
