"""What this process may use of the machine, and which rule says so; reads, never sets."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError, InputError, MachineError
from ..light import dataclass, replace
from ..units import format_count
from .batch import grants
from .cgroup import ControlGroups, Group
from .cpusets import allowed_nodes, cpuset_cpus, in_all, parsed, recorded_mask
from .select import get_host
from .sysfs import NODE_DIRECTORY, numbered, online_cpus, read_text

# Limits at or above this are "none" in cgroup v1, whose files say LONG_MAX rounded down to a page.
_NO_LIMIT = 1 << 62
_BYTES = r"[0-9]{1,19}"  # longer is no size of anything
# Of a node, what si_mem_available() in the kernel's mm/show_mem.c counts before its reserve: no file tells it per node.
_REUSABLE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit found: exactly one of ``cpus``, ``cpu_count`` and ``memory_bytes`` is set."""

    rule: str
    source: str
    cpus: CpuSet | None = None
    cpu_count: float | None = None
    memory_bytes: int | None = None
    tightest: bool = False
    nodes: NodeSet | None = None
    """The only memory nodes that memory may come from, where the rule is about them."""
    total_bytes: int | None = None
    """Where ``memory_bytes`` is what is left now: of how much, which there may be again when others have ended."""


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
    live: bool = False
    """Of this machine and the calling thread, not recorded or made up: :meth:`memory_now` may be another."""

    @property
    def total_bytes(self) -> int:
        """Memory that may be used when nobody else uses any."""
        totals = (rule.total_bytes or rule.memory_bytes for rule in self.rules if rule.memory_bytes is not None)
        return max(self.memory_bytes, min(totals, default=0))

    def memory_now(self) -> tuple[Rule, ...]:
        """The rules about memory with what they leave now: two or three files are read."""
        rules = tuple(rule for rule in self.rules if rule.memory_bytes is not None)
        if not self.live:
            return rules
        now = {(rule.rule, rule.source): rule for rule in _system_memory(ControlGroups("/"), live=True)}
        return tuple(now.get((rule.rule, rule.source), rule) for rule in rules)

    def within(self, rules: Iterable[Rule]) -> Limits:
        """These limits and further ``rules``. MachineError when no CPU is left."""
        return _limits([replace(rule, tightest=False) for rule in (*self.rules, *rules)], live=self.live)

    def explain_cpus(self) -> str:
        """One clause that names the tightest CPU rules, for messages: ``"2 CPUs may be used: mask 0-1"``."""
        rule = next(rule for rule in self.rules if rule.tightest and rule.memory_bytes is None)
        fewer = self.cpu_count < len(self.cpus)  # a count decides; else the sets do, though none alone need be as small
        why = f"{rule.rule} {rule.cpu_count:g} ({rule.source})" if fewer else self._explain_sets()
        return f"{format_count(self.cpu_count, 'CPU')} may be used: {why}"

    def _explain_sets(self) -> str:
        """``mask and cgroup cpuset 0-1``; what is left of the smallest set where others cut it further."""
        sets = [(rule, rule.cpus) for rule in self.rules if rule.cpus is not None]
        if any(rule.rule == "online" and cpus == self.cpus for rule, cpus in sets):
            return f"all that are online ({self.cpus})"
        least = min((cpus for _, cpus in sets), key=len)
        names = dict.fromkeys(_name(rule) for rule, cpus in sets if cpus == least)
        return f"{'' if least == self.cpus else f'{self.cpus} of '}{' and '.join(names)} {least}"


def _name(rule: Rule) -> str:
    return f"batch system ({rule.source}) CPUs" if rule.rule == "batch system" else rule.rule


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
    groups = ControlGroups(root)
    system_rules = [*_cpu_sets(groups, live=sysroot is None), *_quotas(groups)]
    batch_cpu_rules, batch_memory_rules = _batch(environ, _intersect(system_rules))
    cpu_rules = [*system_rules, *batch_cpu_rules]
    memory_rules = [*batch_memory_rules, *_system_memory(groups, live=sysroot is None)]
    if not memory_rules:
        raise MachineError(f"nothing below {root} tells how much memory there is: proc/meminfo cannot be read there")
    return _limits([*cpu_rules, *memory_rules], live=sysroot is None)


def _system_memory(groups: ControlGroups, *, live: bool) -> Iterator[Rule]:
    yield from _cgroup_memory(groups)
    yield from _available_memory(groups.root, live=live)
    yield from _memory_of_nodes(groups, live=live)


def _limits(rules: list[Rule], *, live: bool) -> Limits:
    cpu_rules = [rule for rule in rules if rule.memory_bytes is None]
    memory_rules = [rule for rule in rules if rule.memory_bytes is not None]
    cpus = _intersect(cpu_rules)
    counts = [rule.cpu_count for rule in cpu_rules if rule.cpu_count is not None]
    return Limits(
        cpus=cpus,
        cpu_count=max(1, int(min([len(cpus), *counts]))),
        quota_cpus=min((rule.cpu_count for rule in cpu_rules if rule.rule == "quota" and rule.cpu_count), default=None),
        memory_bytes=min(rule.memory_bytes for rule in memory_rules if rule.memory_bytes is not None),
        rules=(*_mark_tightest(cpu_rules), *_mark_tightest(memory_rules)),
        live=live,
    )


def _intersect(rules: list[Rule]) -> CpuSet:
    cpus = CpuSet.from_bits(in_all(rule.cpus.bits for rule in rules if rule.cpus is not None))
    if not cpus:
        found = "; ".join(f"{rule.rule} {rule.cpus} ({rule.source})" for rule in rules if rule.cpus is not None)
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


def _cpu_sets(groups: ControlGroups, *, live: bool) -> Iterator[Rule]:
    root = groups.root
    found = [*(_live_mask() if live else _recorded_mask(root))]
    found += [Rule("cgroup cpuset", source, cpus=cpus) for source, cpus in cpuset_cpus(groups)]
    yield from found
    try:
        yield Rule("online", "/sys/devices/system/cpu/online", cpus=online_cpus(root))
    except (MachineError, InputError) as error:
        if live and not found:  # else: how many there are does not tell which
            yield Rule("online", "os.cpu_count", cpus=CpuSet(range(os.cpu_count() or 1)))
        elif not found:
            raise MachineError(f"nothing below {root} tells which CPUs there are: {error}") from error


def _live_mask() -> Iterator[Rule]:
    host = get_host()
    if host.capabilities.read_binding:
        source = "sched_getaffinity" if sys.platform == "linux" else "process affinity"
        with suppress(BindingError):
            # A thread that nobody has bound can be moved to any processor group, and its mask names one of them.
            moves = host.capabilities.back_end == "windows"
            yield Rule("mask", source, cpus=host.read_machine().allowed_cpus if moves else host.get_affinity())


def _recorded_mask(root: str) -> Iterator[Rule]:
    if cpus := recorded_mask(root):
        yield Rule("mask", "/proc/self/status", cpus=cpus)


def _quotas(groups: ControlGroups) -> Iterator[Rule]:
    for _, source, quota in cpu_quotas(groups):
        yield Rule("quota", f"/{source}", cpu_count=quota)


def cpu_quotas(groups: ControlGroups) -> Iterator[tuple[Group, str, float]]:
    """The groups with a quota, from which file below the root it is, and how many CPUs' time it allows."""
    root = groups.root
    for group in groups.line("cpu"):
        if group.version == 2:
            source = f"{group.path}/cpu.max"
            quota = parse_cpu_max(read_text(root, source) or "")
        else:
            source = f"{group.path}/cpu.cfs_quota_us"
            quota = parse_cpu_max(f"{read_text(root, source)} {read_text(root, f'{group.path}/cpu.cfs_period_us')}")
        if quota is not None:
            yield group, source, quota


def parse_cpu_max(text: str) -> float | None:
    """How many CPUs' time ``"QUOTA PERIOD"`` (microseconds) allows; None for ``max``, for ``-1`` and for nonsense."""
    match = re.fullmatch(r"([1-9][0-9]{0,18}) ([1-9][0-9]{0,18})", text)
    return int(match.group(1)) / int(match.group(2)) if match else None


def _batch(environ: Mapping[str, str], system: CpuSet) -> tuple[list[Rule], list[Rule]]:
    """CPU rules and memory rules. Listed CPUs of which the system allows us none are another node's: they count."""
    cpu_rules, memory_rules = [], []
    for grant in grants(environ):
        if grant.memory_bytes is not None:
            memory_rules.append(Rule("batch system", grant.source, memory_bytes=grant.memory_bytes))
        elif grant.cpus is not None and not grant.cpus.isdisjoint(system):
            cpu_rules.append(Rule("batch system", grant.source, cpus=grant.cpus))
        else:
            count = grant.cpu_count if grant.cpus is None else len(grant.cpus)
            cpu_rules.append(Rule("batch system", grant.source, cpu_count=count))
    return cpu_rules, memory_rules


def _cgroup_memory(groups: ControlGroups) -> Iterator[Rule]:
    """Of every group what its limit leaves: less what it holds, which is all that its members use, we and others."""
    root, found = groups.root, groups.line("memory")
    least = _NO_LIMIT
    for group in found:
        for name in ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",):
            limit = _bytes(read_text(root, f"{group.path}/{name}"))
            if limit < _NO_LIMIT:
                least = min(least, limit)
                yield Rule(
                    "cgroup memory", f"/{group.path}/{name}", memory_bytes=_left(root, group, limit), total_bytes=limit
                )
    for group in [group for group in found if group.version == 1][:1]:
        stat = read_text(root, f"{group.path}/memory.stat") or ""
        whole = re.search(r"^hierarchical_memory_limit (\d+)$", stat, re.MULTILINE)
        limit = _bytes(whole.group(1)) if whole else _NO_LIMIT
        if limit < least:  # an ancestor that is not mounted here
            yield Rule(
                "cgroup memory", f"/{group.path}/memory.stat", memory_bytes=_left(root, group, limit), total_bytes=limit
            )


def _left(root: str, group: Group, limit: int) -> int:
    """Below ``limit``. What could be dropped, file cache that nobody has touched for a while, is not in use."""
    v2 = group.version == 2
    used = _bytes(read_text(root, f"{group.path}/{'memory.current' if v2 else 'memory.usage_in_bytes'}"), 0)
    stat = read_text(root, f"{group.path}/memory.stat") or ""
    cached = re.search(rf"^{'' if v2 else 'total_'}inactive_file (\d+)$", stat, re.MULTILINE)
    held = max(0, used - (_bytes(cached.group(1), 0) if cached else 0))
    return max(0, limit - held)


def _bytes(text: str | None, otherwise: int = _NO_LIMIT) -> int:
    return int(text) if text and re.fullmatch(_BYTES, text) else otherwise


def _available_memory(root: str, *, live: bool) -> Iterator[Rule]:
    fields = _meminfo(read_text(root, "proc/meminfo"))
    total = fields.get("MemTotal")
    if "MemAvailable" in fields:
        yield Rule("available memory", "/proc/meminfo", memory_bytes=fields["MemAvailable"], total_bytes=total)
    elif "MemFree" in fields:  # kernels before 3.14
        free = fields["MemFree"] + fields.get("Buffers", 0) + fields.get("Cached", 0)
        yield Rule("available memory", "/proc/meminfo", memory_bytes=free, total_bytes=total)
    elif live and sys.platform != "linux":  # where psutil reads the same file
        import psutil

        found = psutil.virtual_memory()
        yield Rule("available memory", "psutil", memory_bytes=found.available, total_bytes=found.total)
    else:
        nodes = NodeSet(numbered(root, NODE_DIRECTORY, "node"))
        yield from (
            replace(rule, nodes=None) for rule in _left_on(root, nodes, "available memory", f"/{NODE_DIRECTORY}")
        )


def _memory_of_nodes(groups: ControlGroups, *, live: bool) -> Iterator[Rule]:
    """What the memory nodes that we may allocate from have left, where these are not all there are."""
    root = groups.root
    there = parsed(NodeSet.parse, read_text(root, "sys/devices/system/node/online") or "")
    if there is None or len(there) < 2:
        return
    allowed = allowed_nodes(groups)
    nodes = there if allowed is None else there & allowed
    if nodes != there:
        yield from _left_on(root, nodes, f"memory nodes {nodes}", f"/{NODE_DIRECTORY}")
    bound = nodes & _bound_nodes() if live else NodeSet()
    if bound and bound != nodes:
        yield from _left_on(root, bound, f"memory policy bind {bound}", "get_mempolicy")


def _bound_nodes() -> NodeSet:
    """The only nodes this thread's memory policy takes pages from (``numactl --membind``); empty without such a one."""
    with suppress(BindingError):
        policy = get_host().get_memory_policy()
        if policy.kind == "bind":
            return policy.nodes
    return NodeSet()


def _left_on(root: str, nodes: NodeSet, rule: str, source: str) -> Iterator[Rule]:
    fields = [_meminfo(read_text(root, f"sys/devices/system/node/node{node}/meminfo")) for node in nodes]
    if any("MemFree" in one for one in fields):
        left = sum(sum(one.get(name, 0) for name in _REUSABLE) for one in fields)
        total = sum(one.get("MemTotal", 0) for one in fields)
        yield Rule(rule, source, memory_bytes=left, nodes=nodes, total_bytes=total)


def _meminfo(text: str | None) -> dict[str, int]:
    """Bytes by name, of /proc/meminfo or of a node's, whose lines begin with ``Node 0``."""
    lines = re.findall(r"^(?:Node \d+ )?([\w()]+):\s*(\d{1,15}) kB", text or "", re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in lines}
