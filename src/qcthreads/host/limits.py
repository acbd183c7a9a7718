"""What this process may use of the machine, and which rule says so; reads, never sets."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError, MachineError
from ..units import format_size
from .cgroup import Group, groups
from .sysfs import online_cpus, read_text

# Limits at or above this are "none" in cgroup v1, whose files say LONG_MAX rounded down to a page.
_NO_LIMIT = 1 << 62

# What batch systems tell a job about its CPUs on this node: Slurm's sbatch(1); PBS Professional's and Torque's qsub(1);
# LSF's "Environment variables set for job execution"; Grid Engine's qsub(1).
_BATCH_CPUS = ("SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK", "NCPUS", "PBS_NP", "LSB_DJOB_NUMPROC", "NSLOTS")


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit found: exactly one of ``cpus``, ``cpu_count`` and ``memory_bytes`` is set."""

    rule: str
    source: str
    cpus: CpuSet | None = None
    cpu_count: float | None = None
    memory_bytes: int | None = None
    tightest: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be used. ``cpus``: the PUs; ``cpu_count``: how many of them at most (a quota may allow fewer, never
    below 1); ``quota_cpus``: the tightest CPU quota as a fraction, if any; ``memory_bytes``: memory we may still take.
    """

    cpus: CpuSet
    cpu_count: int
    quota_cpus: float | None
    memory_bytes: int
    rules: tuple[Rule, ...]

    def explain_cpus(self) -> str:
        """One clause that names the tightest CPU rule, for messages: ``"2 CPUs may be used: mask 0-1"``."""
        rule = next(rule for rule in self.rules if rule.tightest and rule.memory_bytes is None)
        found = str(rule.cpus) if rule.cpus is not None else f"{rule.cpu_count:g} ({rule.source})"
        return f"{self.cpu_count} CPU{'s' if self.cpu_count > 1 else ''} may be used: {rule.rule} {found}"

    def explain_memory(self) -> str:
        """One clause that names the tightest memory rule: ``"3 GiB may be used: available memory (/proc/meminfo)"``."""
        rule = next(rule for rule in self.rules if rule.tightest and rule.memory_bytes is not None)
        return f"{format_size(self.memory_bytes)} may be used: {rule.rule} ({rule.source})"


def read_limits(sysroot: str | None = None, *, environ: Mapping[str, str] | None = None) -> Limits:
    """Intersect every limit on CPUs and memory that applies to the calling thread.

    Parameters
    ----------
    sysroot
        A recorded tree: the mask and cgroup come from ``DIR/proc/self/{status,cgroup,mountinfo}`` and cgroup files from
        below DIR. ``None`` is this machine.
    environ
        Where a batch system's variables are looked for; ``None`` is this process's environment; none with ``sysroot``.

    Returns
    -------
    Limits
        With every rule that was found, the tightest for CPUs and the tightest for memory marked.

    Raises
    ------
    MachineError
        When the rules leave no CPU, or nothing tells the size of the memory.
    """
    root = sysroot or "/"
    environ = environ if environ is not None else ({} if sysroot else os.environ)
    cpu_rules = [*_cpu_sets(root, live=sysroot is None), *_quotas(root), *_batch_cpus(environ)]
    memory_rules = [*_cgroup_memory(root), *_batch_memory(environ), *_available_memory(root, live=sysroot is None)]
    cpus = _intersect([rule for rule in cpu_rules if rule.cpus is not None])
    counts = [rule.cpu_count for rule in cpu_rules if rule.cpu_count is not None]
    if not memory_rules:
        raise MachineError(f"nothing below {root} tells how much memory there is: proc/meminfo cannot be read there")
    return Limits(
        cpus=cpus,
        cpu_count=max(1, int(min([len(cpus), *counts]))),
        quota_cpus=min((rule.cpu_count for rule in cpu_rules if rule.rule == "quota" and rule.cpu_count), default=None),
        memory_bytes=min(rule.memory_bytes for rule in memory_rules if rule.memory_bytes is not None),
        rules=(*_mark_tightest(cpu_rules), *_mark_tightest(memory_rules)),
    )


def allowed_by_records(root: str) -> tuple[CpuSet | None, NodeSet | None]:
    """The CPUs and memory nodes that the mask and cpuset recorded below ``root`` allow; None where none is recorded."""
    cpus = [rule.cpus for rule in [*_recorded_mask(root), *_cgroup_cpus(root)] if rule.cpus is not None]
    status = re.search(r"^Mems_allowed_list:\s*(\S*)", read_text(root, "proc/self/status") or "", re.MULTILINE)
    nodes = [NodeSet.parse(status.group(1))] if status else []
    names = ("cpuset.mems.effective", "cpuset.mems", "mems")
    nodes += [NodeSet.parse(text) for _, text in _cpuset_texts(root, names)]
    both = CpuSet.from_bits(_and(one.bits for one in cpus)), NodeSet.from_bits(_and(one.bits for one in nodes))
    return both[0] if cpus else None, both[1] if nodes else None


def _and(sets: Iterator[int]) -> int:
    bits = -1
    for one in sets:
        bits &= one
    return max(bits, 0)


def _intersect(rules: list[Rule]) -> CpuSet:
    cpus = CpuSet.from_bits(_and(rule.cpus.bits for rule in rules if rule.cpus is not None))
    if not cpus:
        found = "; ".join(f"{rule.rule} {rule.cpus} ({rule.source})" for rule in rules)
        raise MachineError(
            f"no CPU is left that may be used: {found}; check the batch job's request or the container's cpuset"
        )
    return cpus


def _mark_tightest(rules: list[Rule]) -> list[Rule]:
    """The rule that leaves least, the first of equals."""
    tightest = min(rules, key=_leaves)
    return [replace(rule, tightest=rule is tightest) for rule in rules]


def _leaves(rule: Rule) -> float:
    if rule.cpus is not None:
        return len(rule.cpus)
    if rule.cpu_count is not None:
        return max(1, int(rule.cpu_count))
    return rule.memory_bytes or 0


def _cpu_sets(root: str, *, live: bool) -> Iterator[Rule]:
    masks = list(_live_mask() if live else _recorded_mask(root))
    yield from masks
    yield from _cgroup_cpus(root)
    try:
        yield Rule("online", "/sys/devices/system/cpu/online", cpus=online_cpus(root))
    except MachineError:
        if not live:
            raise
        if masks:  # how many there are does not tell which
            return
        yield Rule("online", "os.cpu_count", cpus=CpuSet(range(os.cpu_count() or 1)))


def _live_mask() -> Iterator[Rule]:
    from .select import get_host  # select's back ends need this module

    host = get_host()
    if host.capabilities.read_binding:
        source = "sched_getaffinity" if sys.platform == "linux" else "process affinity"
        with suppress(BindingError):
            yield Rule("mask", source, cpus=host.get_affinity())


def _recorded_mask(root: str) -> Iterator[Rule]:
    status = read_text(root, "proc/self/status") or ""
    listed = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
    mask = re.search(r"^Cpus_allowed:\s*(\S+)", status, re.MULTILINE)
    if listed:
        yield Rule("mask", "/proc/self/status", cpus=CpuSet.parse(listed.group(1)))
    elif mask:
        yield Rule("mask", "/proc/self/status", cpus=CpuSet.parse_mask(mask.group(1)))


def _cgroup_cpus(root: str) -> Iterator[Rule]:
    for source, text in _cpuset_texts(root, ("cpuset.cpus.effective", "cpuset.cpus", "cpus")):
        yield Rule("cgroup cpuset", source, cpus=CpuSet.parse(text))


def _cpuset_texts(root: str, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(source, text) of each hierarchy's nearest group with one of these files: it includes its ancestors' limits."""
    seen = set()
    for group in groups(root, "cpuset"):
        if group.version not in seen and (found := _first_text(root, group, names)):
            seen.add(group.version)
            yield found


def _first_text(root: str, group: Group, names: tuple[str, ...]) -> tuple[str, str] | None:
    """The first of these files that is there and not empty, as (source, text); an empty cpuset file is no limit."""
    for name in names:
        text = read_text(root, f"{group.path}/{name}")
        if text:
            return f"/{group.path}/{name}", text
    return None


def _quotas(root: str) -> Iterator[Rule]:
    for group in groups(root, "cpu"):
        if group.version == 2:
            source = f"{group.path}/cpu.max"
            quota = parse_cpu_max(read_text(root, source) or "")
        else:
            source = f"{group.path}/cpu.cfs_quota_us"
            quota = parse_cpu_max(f"{read_text(root, source)} {read_text(root, f'{group.path}/cpu.cfs_period_us')}")
        if quota is not None:
            yield Rule("quota", f"/{source}", cpu_count=quota)


def parse_cpu_max(text: str) -> float | None:
    """How many CPUs' time ``"QUOTA PERIOD"`` (microseconds) allows; None for ``max``, for ``-1`` and for nonsense."""
    match = re.fullmatch(r"([1-9][0-9]*) ([1-9][0-9]*)", text)
    return int(match.group(1)) / int(match.group(2)) if match else None


def _batch_cpus(environ: Mapping[str, str]) -> Iterator[Rule]:
    for name in _BATCH_CPUS:
        count = re.fullmatch(r"\s*([1-9][0-9]*)\s*", environ.get(name, ""))
        if count and (name != "NCPUS" or "PBS_JOBID" in environ) and (name != "NSLOTS" or "JOB_ID" in environ):
            yield Rule("batch system", name, cpu_count=int(count.group(1)))


def _cgroup_memory(root: str) -> Iterator[Rule]:
    for group in groups(root, "memory"):
        names = ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",)
        for name in names:
            limit = read_text(root, f"{group.path}/{name}") or ""
            if limit.isdecimal() and int(limit) < _NO_LIMIT:
                left = max(0, int(limit) - _held_bytes(root, group))
                yield Rule("cgroup memory", f"/{group.path}/{name}", memory_bytes=left)


def _held_bytes(root: str, group: Group) -> int:
    """What is in use in ``group`` and could not be dropped: not the file cache that nobody has touched for a while."""
    v2 = group.version == 2
    used = read_text(root, f"{group.path}/{'memory.current' if v2 else 'memory.usage_in_bytes'}") or ""
    stat = read_text(root, f"{group.path}/memory.stat") or ""
    cached = re.search(rf"^{'' if v2 else 'total_'}inactive_file (\d+)", stat, re.MULTILINE)
    return max(0, int(used) - int(cached.group(1) if cached else 0)) if used.isdecimal() else 0


def _batch_memory(environ: Mapping[str, str]) -> Iterator[Rule]:
    """``SLURM_MEM_PER_NODE`` is in MiB; 0 is "all"."""
    count = re.fullmatch(r"\s*([1-9][0-9]*)\s*", environ.get("SLURM_MEM_PER_NODE", ""))
    if count:
        yield Rule("batch system", "SLURM_MEM_PER_NODE", memory_bytes=int(count.group(1)) * 1024**2)


def _available_memory(root: str, *, live: bool) -> Iterator[Rule]:
    meminfo = read_text(root, "proc/meminfo") or ""
    fields = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s*(\d+) kB", meminfo, re.MULTILINE)}
    if "MemAvailable" in fields:
        yield Rule("available memory", "/proc/meminfo", memory_bytes=fields["MemAvailable"])
    elif "MemFree" in fields:  # kernels before 3.14
        free = fields["MemFree"] + fields.get("Buffers", 0) + fields.get("Cached", 0)
        yield Rule("available memory", "/proc/meminfo", memory_bytes=free)
    elif live and sys.platform != "linux":  # where psutil reads the same file
        import psutil

        yield Rule("available memory", "psutil", memory_bytes=psutil.virtual_memory().available)
