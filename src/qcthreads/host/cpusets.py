"""Which CPUs and memory nodes the mask and cpusets that the kernel's files tell of allow; reads, never asks or sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..cpuset import CpuSet, NodeSet
from ..errors import InputError
from .cgroup import ControlGroups, Group
from .sysfs import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Set = TypeVar("_Set", CpuSet, NodeSet)

_CPU_FILES = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus", "cpus")
_NODE_FILES = ("cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems", "mems")


def allowed_by_records(root: str) -> tuple[CpuSet | None, NodeSet | None]:
    """The CPUs and memory nodes that the mask and cpuset recorded below ``root`` allow; None where none is recorded."""
    groups, mask = ControlGroups(root), recorded_mask(root)
    found = [*([mask] if mask else []), *(cpus for _, cpus in cpuset_cpus(groups))]
    return CpuSet.from_bits(in_all(cpus.bits for cpus in found)) if found else None, allowed_nodes(groups)


def recorded_mask(root: str) -> CpuSet | None:
    """The mask that ``proc/self/status`` tells."""
    status = read_text(root, "proc/self/status") or ""
    for name, parse in (("Cpus_allowed_list", CpuSet.parse), ("Cpus_allowed", CpuSet.parse_mask)):
        written = re.search(rf"^{name}:[ \t]*(\S+)", status, re.MULTILINE)
        if written and (cpus := parsed(parse, written.group(1))):
            return cpus
    return None


def cpuset_cpus(groups: ControlGroups) -> Iterator[tuple[str, CpuSet]]:
    """The file and the CPUs of each hierarchy's cpuset."""
    return _nearest(groups, _CPU_FILES, CpuSet.parse)


def allowed_nodes(groups: ControlGroups) -> NodeSet | None:
    """The memory nodes of ``proc/self/status`` that every hierarchy's cpuset has; None where neither tells."""
    status = read_text(groups.root, "proc/self/status") or ""
    listed = re.search(r"^Mems_allowed_list:[ \t]*(\S*)", status, re.MULTILINE)
    nodes = parsed(NodeSet.parse, listed.group(1)) if listed else None
    found = [*([nodes] if nodes else []), *(nodes for _, nodes in _nearest(groups, _NODE_FILES, NodeSet.parse))]
    return NodeSet.from_bits(in_all(nodes.bits for nodes in found)) if found else None


def in_all(sets: Iterator[int]) -> int:
    """The bits that all sets have; none of no set."""
    bits = -1
    for one in sets:
        bits &= one
    return max(bits, 0)


def parsed(parse: Callable[[str], _Set], text: str) -> _Set | None:
    """None for what is garbled: a limit that cannot be read is none, and the other rules still hold."""
    try:
        return parse(text)
    except InputError:
        return None


def _nearest(groups: ControlGroups, names: tuple[str, ...], parse: Callable[[str], _Set]) -> Iterator[tuple[str, _Set]]:
    """(source, set) of each hierarchy's nearest group with one of these files: it includes its ancestors' limits.

    Not the intersection with the ancestors': these lack what a partition below them has for itself.
    """
    seen = set()
    for group in groups.line("cpuset"):
        if group.version not in seen and (found := _first_set(groups.root, group, names, parse)):
            seen.add(group.version)
            yield found


def _first_set(
    root: str, group: Group, names: tuple[str, ...], parse: Callable[[str], _Set]
) -> tuple[str, _Set] | None:
    """The first of these files that is there and says something; an empty cpuset file is no limit."""
    for name in names:
        found = parsed(parse, read_text(root, f"{group.path}/{name}") or "")
        if found:
            return f"/{group.path}/{name}", found
    return None
