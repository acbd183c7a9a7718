"""The machine as Linux's /sys and /proc describe it, below any root; opens files to read and does nothing else.

The files are those of the kernel's Documentation/ABI/stable/sysfs-devices-system-cpu and -node, by their present names
(``core_cpus``) or by those of kernels before 5.3 (``thread_siblings``). What a kernel does not tell is left out or
taken from the next best file, never guessed.
"""

# A Path costs several times the read itself, and a machine is thousands of files.
# ruff: noqa: PTH112, PTH118, PTH123, PTH208

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator

from ..cpuset import CpuSet, NodeSet
from ..errors import InputError, MachineError
from ..machine import Cache, Core, CpuKind, Die, Distances, Machine, NumaNode, Package

_CPU = "sys/devices/system/cpu"
_NODE = "sys/devices/system/node"
_CACHE_KINDS = {"Data": "data", "Instruction": "instruction", "Unified": "unified"}


def read_machine(
    root: str = "/", *, allowed_cpus: CpuSet | None = None, allowed_mems: NodeSet | None = None
) -> Machine:
    """The machine whose ``sys/`` and ``proc/`` lie in ``root``.

    ``allowed_*`` are cut to what is there; ``None`` means everything. MachineError when not even CPUs are found.
    """
    online = online_cpus(root)
    nodes = _numa_nodes(root, online)
    present = NodeSet(node.node_id for node in nodes)
    packages = _packages(root, online)
    return Machine(
        cpus_online=online,
        cores=_cores(root, online),
        packages=packages,
        numa_nodes=nodes,
        dies=_dies(root, online, packages),
        caches=_caches(root, online),
        distances=_distances(root, [node.node_id for node in nodes]),
        cpu_kinds=_cpu_kinds(root, online),
        allowed_cpus=online if allowed_cpus is None else online & allowed_cpus,
        allowed_mems=present if allowed_mems is None else present & allowed_mems,
    )


def read_text(root: str, path: str) -> str | None:
    """The text of ``root/path`` without padding, None where it cannot be read; recorded trees pad with NULs."""
    try:
        with open(os.path.join(root, path), "rb") as file:
            return file.read().decode("latin-1").strip(" \t\r\n\0")
    except (OSError, ValueError):  # ValueError: a path with a NUL, made from a nonsensical file
        return None


def online_cpus(root: str) -> CpuSet:
    """The CPUs that are online; MachineError when nothing below ``root`` tells."""
    listed = read_text(root, f"{_CPU}/online")
    if listed:
        return CpuSet.parse(listed)
    numbered = [cpu for cpu in _numbered(root, _CPU, "cpu") if read_text(root, f"{_CPU}/cpu{cpu}/online") != "0"]
    described = [cpu for cpu in numbered if os.path.isdir(os.path.join(root, f"{_CPU}/cpu{cpu}/topology"))]
    counted = re.findall(
        r"^processor\s*:\s*(\d+)|^processor (\d+):", read_text(root, "proc/cpuinfo") or "", re.MULTILINE
    )
    found = CpuSet(described or numbered or (int(a or b) for a, b in counted))
    if not found:
        raise MachineError(
            f"no CPUs found below {root}: neither {_CPU}/online nor {_CPU}/cpu* nor proc/cpuinfo can be read there; "
            "give a directory that holds sys/ and proc/"
        )
    return found


def _cores(root: str, online: CpuSet) -> tuple[Core, ...]:
    return tuple(
        Core(cpus, _core_id(root, cpus.first)) for cpus in _partition(online, lambda cpu: _core_siblings(root, cpu))
    )


def _core_siblings(root: str, cpu: int) -> CpuSet | None:
    """Without those of another ``core_id``: AMD's compute units of two cores are one set of ``thread_siblings``."""
    siblings = _siblings(root, cpu, "core_cpus", "thread_siblings")
    if siblings is None or len(siblings) < 2:
        return siblings
    core_id = _core_id(root, cpu)
    return CpuSet(other for other in siblings if _core_id(root, other) in (core_id, None))


def _core_id(root: str, cpu: int) -> int | None:
    return _number(root, f"{_CPU}/cpu{cpu}/topology/core_id")


def _packages(root: str, online: CpuSet) -> tuple[Package, ...]:
    return tuple(
        Package(cpus, _number(root, f"{_CPU}/cpu{cpus.first}/topology/physical_package_id"))
        for cpus in _partition(online, lambda cpu: _siblings(root, cpu, "package_cpus", "core_siblings"))
    )


def _dies(root: str, online: CpuSet, packages: tuple[Package, ...]) -> tuple[Die, ...]:
    """Only where a package has more than one."""
    die_id = _number(root, f"{_CPU}/cpu{online.first}/topology/die_id")
    if die_id is None or die_id < 0:  # -1: the architecture has none
        return ()
    parts = list(_partition(online, lambda cpu: _siblings(root, cpu, "die_cpus")))
    if {part.bits for part in parts} <= {package.cpus.bits for package in packages}:
        return ()
    return tuple(Die(part, _number(root, f"{_CPU}/cpu{part.first}/topology/die_id")) for part in parts)


def _siblings(root: str, cpu: int, *names: str) -> CpuSet | None:
    for name in names:
        found = _read_cpus(root, f"{_CPU}/cpu{cpu}/topology/{name}", f"{_CPU}/cpu{cpu}/topology/{name}_list")
        if found is not None:
            return found
    return None


def _partition(online: CpuSet, siblings: Callable[[int], CpuSet | None]) -> Iterator[CpuSet]:
    """Disjoint groups that cover ``online``, even where masks contradict each other; one file per group is read."""
    left = online.bits
    while left:
        cpu = (left & -left).bit_length() - 1
        group = siblings(cpu)
        bits = (group.bits if group is not None else 0) & left | 1 << cpu
        left &= ~bits
        yield CpuSet.from_bits(bits)


def _caches(root: str, online: CpuSet) -> tuple[Cache, ...]:
    found: dict[tuple[int, str, int], Cache] = {}
    described: dict[int, int] = {}  # by index: the CPUs whose cache of that index another CPU's files have described
    for cpu in online:
        for index in sorted(_numbered(root, f"{_CPU}/cpu{cpu}/cache", "index")):
            if not described.get(index, 0) >> cpu & 1:
                cache = _cache(root, f"{_CPU}/cpu{cpu}/cache/index{index}", cpu, online)
                if cache is not None:
                    described[index] = described.get(index, 0) | cache.cpus.bits
                    found[cache.level, cache.kind, cache.cpus.bits] = cache
    return tuple(sorted(found.values(), key=lambda cache: (cache.level, cache.kind, cache.cpus.first)))


def _cache(root: str, directory: str, cpu: int, online: CpuSet) -> Cache | None:
    level = _number(root, f"{directory}/level")
    kind = _CACHE_KINDS.get(read_text(root, f"{directory}/type") or "")
    if level is None or kind is None:
        return None
    shared = _read_cpus(root, f"{directory}/shared_cpu_map", f"{directory}/shared_cpu_list") or CpuSet([cpu])
    size = re.fullmatch(r"(\d+)K", read_text(root, f"{directory}/size") or "")
    return Cache(level, kind, int(size.group(1)) * 1024 if size else 0, shared & online)


def _numa_nodes(root: str, online: CpuSet) -> tuple[NumaNode, ...]:
    """The memory nodes; a kernel without NUMA has one that holds everything."""
    ids = sorted(_numbered(root, _NODE, "node"))
    if not ids:
        return (NumaNode(0, online, _memory_bytes(read_text(root, "proc/meminfo"))),)
    gpus = _gpu_nodes(root)
    made = []
    for node in ids:
        cpus = _read_cpus(root, f"{_NODE}/node{node}/cpumap", f"{_NODE}/node{node}/cpulist")
        memory_bytes = _memory_bytes(read_text(root, f"{_NODE}/node{node}/meminfo"))
        kind = "GPU" if node in gpus else "DRAM"
        made.append(NumaNode(node, (cpus or CpuSet()) & online, memory_bytes, kind))
    return tuple(made)


def _gpu_nodes(root: str) -> set[int]:
    """Nodes that are the memory of an NVIDIA GPU (POWER with NVLink), as that driver lists them."""
    directory = "proc/driver/nvidia/gpus"
    try:
        gpus = os.listdir(os.path.join(root, directory))
    except OSError:
        return set()
    texts = (read_text(root, f"{directory}/{gpu}/numa_status") or "" for gpu in gpus)
    return {int(node) for text in texts for node in re.findall(r"^Node:\s*(\d+)", text, re.MULTILINE)}


def _memory_bytes(meminfo: str | None) -> int:
    total = re.search(r"MemTotal:\s*(\d+)", meminfo or "")
    return int(total.group(1)) * 1024 if total else 0


def _distances(root: str, nodes: list[int]) -> Distances | None:
    """The matrix, if every node has a row as long as there are nodes."""
    rows = [(read_text(root, f"{_NODE}/node{node}/distance") or "").split() for node in nodes]
    if len(nodes) < 2 or any(len(row) != len(nodes) for row in rows):
        return None
    return Distances(tuple(nodes), tuple(tuple(int(value) for value in row) for row in rows))


def _cpu_kinds(root: str, online: CpuSet) -> tuple[CpuKind, ...]:
    """Kinds of a hybrid CPU by the performance-monitoring units' devices (x86) or the scheduler's capacities (arm)."""
    named = [read_text(root, f"sys/devices/{device}/cpus") for device in ("cpu_atom", "cpu_core")]
    kinds = [CpuSet.parse(text) & online for text in named if text]
    if len(kinds) < 2:
        by_capacity: dict[int, int] = {}
        for cpu in online:
            capacity = _number(root, f"{_CPU}/cpu{cpu}/cpu_capacity")
            if capacity is None:
                return ()
            by_capacity[capacity] = by_capacity.get(capacity, 0) | 1 << cpu
        kinds = [CpuSet.from_bits(by_capacity[capacity]) for capacity in sorted(by_capacity)]
    return tuple(CpuKind(cpus, rank) for rank, cpus in enumerate(kinds)) if len(kinds) > 1 else ()


def _numbered(root: str, directory: str, prefix: str) -> Iterable[int]:
    """The numbers N of entries ``prefixN``."""
    try:
        names = os.listdir(os.path.join(root, directory))
    except OSError:
        return []
    return [int(name[len(prefix) :]) for name in names if re.fullmatch(prefix + "[0-9]+", name)]


def _read_cpus(root: str, mask_path: str, list_path: str) -> CpuSet | None:
    """From the mask file, which every kernel has, or else from the list file."""
    for path, parse in ((mask_path, CpuSet.parse_mask), (list_path, CpuSet.parse)):
        text = read_text(root, path)
        if text is not None:
            try:
                return parse(text)
            except InputError as error:
                raise MachineError(f"{os.path.join(root, path)} cannot be understood: {error}") from error
    return None


def _number(root: str, path: str) -> int | None:
    text = read_text(root, path)
    return int(text) if text and re.fullmatch(r"-?\d+", text) else None
