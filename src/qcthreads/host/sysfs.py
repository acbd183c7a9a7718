"""What Linux's /sys and /proc say of a machine, below any root; opens files to read and decides nothing.

The files are those of the kernel's Documentation/ABI/stable/sysfs-devices-system-cpu and -node, by their present names
(``core_cpus``) or by those of kernels before 5.3 (``thread_siblings``). What a kernel does not tell is left out or
taken from the next best file, never guessed. :func:`read_facts` is the twin of csrc/linux_topology.c: change both.
"""

# A Path costs several times the read itself, and a machine is thousands of files.
# ruff: noqa: PTH112, PTH118, PTH208

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator

from ..cpuset import CpuSet, NodeSet
from ..errors import InputError, MachineError
from ..light import dataclass

CPU_DIRECTORY = "sys/devices/system/cpu"
NODE_DIRECTORY = "sys/devices/system/node"

DATA, INSTRUCTION, UNIFIED = range(3)
_CACHE_KINDS = {"Data": DATA, "Instruction": INSTRUCTION}

# The longest file there is lists 8192 CPUs by their numbers in less than this.
_TEXT_SIZE = 65536

# Of proc/cpuinfo the first CPU is enough.
_PAGE = 4096
_AMD = r"^vendor_id[ \t]*:[ \t]*AuthenticAMD$"
_WITH_UNITS = r"^cpu family[ \t]*:[ \t]*2[12]$"

# Caches of one CPU are numbered from 0; the kernel may leave numbers out (cacheinfo's disable_sysfs).
_MOST_CACHES = 16
_FIRST_TRIES = 10

# Twice as many as any kernel can be built for (NR_CPUS); every one of them has masks of this width.
_MOST_CPUS = 1 << 14

# Longer than any file of a kernel: /proc/cpuinfo of 8192 CPUs has 13 MB.
_MOST_BYTES = 1 << 25

# A pipe in the place of a file, in a tree that somebody made, is an empty one: nothing is waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)

# What no reading of a file can go on after: the answer would be that of another machine.
_FATAL = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


Group = tuple[int, int | None, bool]
"""Bits of the CPUs, the kernel's id, and whether any file tells: otherwise a CPU that stands alone."""

Speed = tuple[int | None, int | None, int | None, int | None, int | None]
"""Highest kHz, base kHz, nominal MHz, capacity (1024 is the fastest), ARM's number of the design (MIDR_EL1)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files say. Groups are disjoint, and sorted by lowest CPU."""

    cores: list[Group]
    clusters: list[Group]
    """Empty where the kernel knows no clusters; likewise ``dies``."""
    dies: list[Group]
    packages: list[Group]
    speeds: list[Speed]
    """One for each core."""
    caches: list[tuple[int, int, int, int]]
    """Level, kind (DATA, INSTRUCTION, UNIFIED), size in bytes, bits of the CPUs."""
    nodes: list[tuple[int, int, int]]
    """Number, bits of the CPUs, memory in bytes; empty where the kernel has no NUMA."""
    distances: list[tuple[int, ...]] | None
    """A row for each node, or None where any is missing."""


class NoCpusFoundError(MachineError):
    """Nothing tells which CPUs there are."""


def read_text(root: str, path: str) -> str | None:
    """The text of ``root/path`` without padding, None where it cannot be read; recorded trees pad with NULs.

    MachineError where the process has no descriptor or memory left, and for a file longer than any of a kernel.
    """
    try:
        descriptor = os.open(os.path.join(root, path), _FLAGS)
        try:
            return _read_all(descriptor).decode("latin-1").strip(" \t\r\n\0")
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _FATAL:
            raise _unreadable(os.path.join(root, path), error) from error
        return None
    except InputError as error:
        raise MachineError(f"{os.path.join(root, path)} cannot be understood: {error}") from error
    except ValueError:  # a path with a NUL, made from a nonsensical file
        return None


def _read_all(descriptor: int) -> bytes:
    read = os.read(descriptor, _TEXT_SIZE)
    if not read:
        return read
    parts, length = [read], len(read)
    while part := os.read(descriptor, _TEXT_SIZE):
        parts.append(part)
        length += len(part)
        if length > _MOST_BYTES:
            raise InputError(f"more than {_MOST_BYTES} bytes long")
    return b"".join(parts)


def _unreadable(where: str, error: OSError) -> MachineError:
    return MachineError(f"{where} cannot be read: {error.strerror}; close files, or allow more (ulimit -n)")


def numbered(root: str, directory: str, prefix: str) -> list[int]:
    """The numbers N of entries ``prefixN``, in any order."""
    return [int(name[len(prefix) :]) for name in names_in(root, directory) if re.fullmatch(prefix + "[0-9]+", name)]


def names_in(root: str, directory: str) -> list[str]:
    """The entries of a directory; none where it cannot be read."""
    try:
        return os.listdir(os.path.join(root, directory))
    except OSError as error:
        if error.errno in _FATAL:
            raise _unreadable(os.path.join(root, directory), error) from error
        return []
    except ValueError:
        return []


def online_cpus(root: str) -> CpuSet:
    """The CPUs that are online; NoCpusFoundError when nothing below ``root`` tells."""
    path = f"{CPU_DIRECTORY}/online"
    listed = read_text(root, path)
    if listed:
        found = _understood(root, path, CpuSet.parse, listed)
    else:
        path, found = _cpus_without_list(root)
    if not found:
        raise NoCpusFoundError(
            f"no CPUs found below {root}: neither {CPU_DIRECTORY}/online nor {CPU_DIRECTORY}/cpu* nor proc/cpuinfo can "
            "be read there; give a directory that holds sys/ and proc/"
        )
    if found.bits.bit_length() > _MOST_CPUS:
        highest = found.bits.bit_length() - 1
        raise MachineError(
            f"{os.path.join(root, path)} cannot be understood: it tells of CPU {highest}, of {_MOST_CPUS} that "
            "there may be"
        )
    return found


def _cpus_without_list(root: str) -> tuple[str, CpuSet]:
    """Where they were found, and the CPUs: those with a directory and not offline, or those of proc/cpuinfo."""
    cpus = [cpu for cpu in numbered(root, CPU_DIRECTORY, "cpu") if _is_online(root, cpu)]
    described = [cpu for cpu in cpus if os.path.isdir(os.path.join(root, f"{CPU_DIRECTORY}/cpu{cpu}/topology"))]
    path, numbers = (CPU_DIRECTORY, described or cpus) if cpus else ("proc/cpuinfo", _counted(root))
    try:
        return path, CpuSet(numbers)
    except InputError as error:
        raise MachineError(f"{os.path.join(root, path)} cannot be understood: {error}") from error


def _counted(root: str) -> list[int]:
    line = r"^processor\s*:\s*(\d{1,9})\b|^processor (\d{1,9}):"
    counted = re.findall(line, read_text(root, "proc/cpuinfo") or "", re.MULTILINE)
    return [int(first or second) for first, second in counted]


def read_cpus(root: str, mask_path: str | None, list_path: str | None = None) -> CpuSet | None:
    """From the mask file, which every kernel has, or else from the list file."""
    for path, parse in ((mask_path, CpuSet.parse_mask), (list_path, CpuSet.parse)):
        text = read_text(root, path) if path else None
        if path and text is not None:
            return _understood(root, path, parse, text)
    return None


def read_number(root: str, path: str) -> int | None:
    """None for a file that holds no number."""
    text = read_text(root, path)
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,18}", text) else None


def read_facts(root: str, online: CpuSet) -> Facts:
    """All files that describe the CPUs in ``online`` and the memory nodes, each shared object once.

    MachineError when a file is there and cannot be understood.
    """
    bits = online.bits
    cores = _groups(root, bits, _CORE)
    return Facts(
        cores,
        _optional_groups(root, bits, _CLUSTER),
        _optional_groups(root, bits, _DIE),
        _groups(root, bits, _PACKAGE),
        _speeds(root, cores),
        _caches(root, bits, cores),
        *_nodes(root, bits),
    )


@dataclass(frozen=True, slots=True)
class _Level:
    """The files that describe a level: that of the id, then those of the CPUs, the newest name first."""

    id: str
    names: tuple[str, ...]


_CORE = _Level("core_id", ("core_cpus", "core_cpus_list", "thread_siblings", "thread_siblings_list"))
_CLUSTER = _Level("cluster_id", ("cluster_cpus", "cluster_cpus_list"))
_DIE = _Level("die_id", ("die_cpus", "die_cpus_list"))
_PACKAGE = _Level("physical_package_id", ("package_cpus", "package_cpus_list", "core_siblings", "core_siblings_list"))


def _is_online(root: str, cpu: int) -> bool:
    return read_text(root, f"{CPU_DIRECTORY}/cpu{cpu}/online") != "0"


def _understood(root: str, path: str, parse: Callable[[str], CpuSet], text: str) -> CpuSet:
    try:
        if len(text) >= _TEXT_SIZE:
            raise InputError(f"{len(text)} bytes long")
        return parse(text)
    except InputError as error:
        raise MachineError(f"{os.path.join(root, path)} cannot be understood: {error}") from error


def _siblings(root: str, level: _Level, order: list[str], cpu: int) -> int:
    """The CPUs that share this level with ``cpu``, 0 where no file tells; the name that was right comes first."""
    for name in order:
        path = f"{CPU_DIRECTORY}/cpu{cpu}/topology/{name}"
        found = read_cpus(root, None, path) if name.endswith("_list") else read_cpus(root, path)
        if found is not None:
            order[:] = [name, *(other for other in level.names if other != name)]
            return found.bits
    return 0


def _groups(root: str, online: int, level: _Level) -> list[Group]:
    """Disjoint groups that cover ``online``, even where masks contradict each other; one file per group is read.

    A CPU whose mask lacks it, or names members of other groups, goes where the others' masks put it.
    """
    units: bool | None = None if level is _CORE else False
    order = list(level.names)
    groups = []
    left = online
    for later in (False, True):
        coming = left
        while coming:
            cpu = _lowest(coming)
            coming &= ~(1 << cpu)
            found = _siblings(root, level, order, cpu) & online
            if found and not later and (found & ~left or not found >> cpu & 1):
                continue
            bits = found & left | 1 << cpu
            if units is None and bits.bit_count() > 1:
                units = _are_compute_units(root, cpu, bits)
            if units:
                bits = _split_compute_unit(root, cpu, bits)
            groups.append((bits, _id(root, cpu, level.id), found != 0))
            left &= ~bits
            coming &= ~bits
    return sorted(groups, key=_lowest_of)


def _lowest_of(group: Group) -> int:
    return _lowest(group[0])


def _optional_groups(root: str, online: int, level: _Level) -> list[Group]:
    """Levels that not every kernel or architecture has: none where the first CPU has none, or says that it has none."""
    first = _lowest(online)
    number = _id(root, first, level.id)
    if number is None or number < 0:
        return []
    known = any(read_text(root, f"{CPU_DIRECTORY}/cpu{first}/topology/{name}") is not None for name in level.names)
    return _groups(root, online, level) if known else []


def _are_compute_units(root: str, cpu: int, bits: int) -> bool:
    """AMD's compute units of two cores are one set of thread_siblings (families 15h and 16h): if core_ids differ in it.

    It is so for all cores of a machine, or for none. Other makers' numbers may differ among the PUs of one core.
    """
    mine, others = _id(root, cpu, "core_id"), _id(root, _lowest(bits & ~(1 << cpu)), "core_id")
    if mine is None or others is None or mine == others:
        return False
    first = (read_text(root, "proc/cpuinfo") or "")[:_PAGE]
    return all(re.search(line, first, re.MULTILINE) for line in (_AMD, _WITH_UNITS))


def _split_compute_unit(root: str, cpu: int, bits: int) -> int:
    mine = _id(root, cpu, "core_id")
    for other in CpuSet.from_bits(bits & ~(1 << cpu)):
        if _id(root, other, "core_id") not in (mine, None):
            bits &= ~(1 << other)
    return bits


def _id(root: str, cpu: int, name: str) -> int | None:
    return read_number(root, f"{CPU_DIRECTORY}/cpu{cpu}/topology/{name}")


def _speeds(root: str, cores: list[Group]) -> list[Speed]:
    """A file that the first core's first CPU has not, no other one is asked for."""
    names = ["cpufreq/cpuinfo_max_freq", "cpufreq/base_frequency", "acpi_cppc/nominal_freq", "cpu_capacity"]
    has = [True] * 5
    speeds = []
    for bits, *_ in cores:
        directory = f"{CPU_DIRECTORY}/cpu{_lowest(bits)}"
        found = [read_number(root, f"{directory}/{name}") if has[at] else None for at, name in enumerate(names)]
        found.append(_midr(root, directory) if has[4] else None)
        speeds.append((found[0], found[1], found[2], found[3], found[4]))
        if len(speeds) == 1:
            has = [number is not None for number in found]
            has[2] = has[2] and not has[1]
    return speeds


def _midr(root: str, directory: str) -> int | None:
    """ARM's main identification register: which design of core this is; its upper half is reserved."""
    text = read_text(root, f"{directory}/regs/identification/midr_el1") or ""
    return int(text, 16) & 0xFFFFFFFF or None if re.fullmatch("0x[0-9a-fA-F]{1,16}", text) else None


def _caches(root: str, online: int, cores: list[Group]) -> list[tuple[int, int, int, int]]:
    """Core by core: the CPUs of a core share all their caches, unless the files say otherwise.

    Where a mask names CPUs whose own masks name others, it counts only for what these leave.
    """
    caches: list[tuple[int, int, int, int]] = []
    doubtful: list[tuple[int, int, tuple[int, int, int, int]]] = []
    described = [0] * _MOST_CACHES
    tries = _FIRST_TRIES
    for core, *_ in cores:
        left = core
        while left:
            cpu = _lowest(left)
            top = -1
            shared = left
            for index in range(_MOST_CACHES):
                if not described[index] >> cpu & 1:
                    cache = _cache(root, cpu, index, core, online)
                    if cache is None:
                        if index > tries:
                            break
                        continue
                    if cache[3] & described[index]:
                        doubtful.append((cpu, index, cache))
                        shared = 0
                    else:
                        caches.append(cache)
                        described[index] |= cache[3]
                top = index
                shared &= described[index]
            if tries == _FIRST_TRIES or top > tries:
                tries = top
            left &= ~(shared | 1 << cpu)
    for cpu, index, (level, kind, size, bits) in doubtful:
        if not described[index] >> cpu & 1:
            caches.append((level, kind, size, bits & ~described[index]))
            described[index] |= bits
    return caches


def _cache(root: str, cpu: int, index: int, core: int, online: int) -> tuple[int, int, int, int] | None:
    """The core's CPUs where the file names none, as some ia64 kernels' do."""
    directory = f"{CPU_DIRECTORY}/cpu{cpu}/cache/index{index}"
    level = read_number(root, f"{directory}/level")
    if level is None or level < 1:
        return None
    kind = _CACHE_KINDS.get(read_text(root, f"{directory}/type") or "", UNIFIED)
    size = re.fullmatch(r"([0-9]{1,9})K", read_text(root, f"{directory}/size") or "")
    shared = read_cpus(root, f"{directory}/shared_cpu_map", f"{directory}/shared_cpu_list")
    bits = 0 if shared is None else (shared.bits or core) & online
    return level, kind, int(size.group(1)) * 1024 if size else 0, bits | 1 << cpu


def _nodes(root: str, online: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, ...]] | None]:
    ids = sorted(numbered(root, NODE_DIRECTORY, "node"))
    try:
        NodeSet(ids)
    except InputError as error:
        raise MachineError(f"{os.path.join(root, NODE_DIRECTORY)} cannot be understood: {error}") from error
    nodes, rows = [], []
    complete = len(ids) > 1
    for node in ids:
        directory = f"{NODE_DIRECTORY}/node{node}"
        cpus = read_cpus(root, f"{directory}/cpumap", f"{directory}/cpulist")
        memory_bytes = total_memory_bytes(read_text(root, f"{directory}/meminfo"))
        nodes.append((node, cpus.bits & online if cpus else 0, memory_bytes))
        if complete:
            rows.append(_distances(root, f"{directory}/distance"))
            complete = len(rows[-1]) == len(ids)
    return nodes, rows if complete else None


def _distances(root: str, path: str) -> tuple[int, ...]:
    words = (read_text(root, path) or "").encode("latin-1").split()
    if not all(re.fullmatch(rb"[0-9]{1,9}", word) for word in words):
        raise MachineError(f"{os.path.join(root, path)} cannot be understood: {words} are not distances")
    return tuple(map(int, words))


def total_memory_bytes(meminfo: str | None) -> int:
    """``MemTotal`` of a node's or the machine's meminfo; 0 where it is not told."""
    total = re.search(r"MemTotal:\s*([0-9]{1,15})(?![0-9])", meminfo or "", re.ASCII)
    return int(total.group(1)) * 1024 if total else 0


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def lines_of(root: str, directory: str, name: str, pattern: str) -> Iterator[tuple[str, str]]:
    """(entry, match) for every entry of ``directory`` whose file ``name`` matches ``pattern``."""
    for entry in names_in(root, directory):
        match = re.search(pattern, read_text(root, f"{directory}/{entry}/{name}") or "", re.MULTILINE)
        if match:
            yield entry, match.group(1)
