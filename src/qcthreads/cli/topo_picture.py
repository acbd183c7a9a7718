"""A machine as lines of text that are read at a glance; knows no terminal but its width, and asks no system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..cpuset import CpuSet
from ..machine import Core, Machine, NumaNode
from ..units import format_count, format_size

_NOTHING = CpuSet()


@dataclass(frozen=True, slots=True)
class Row:
    """The PUs of one memory node in one package, core by core, cut into LLC domains."""

    package: str
    node: str
    cpus: CpuSet
    domains: tuple[tuple[Core, ...], ...]


@dataclass(frozen=True, slots=True)
class _Signs:
    """How a core looks all, some or none of whose PUs may be used; the same for slower ones; the cut; a leased core."""

    fast: str
    slow: str
    cut: str
    leased: str


_SIGNS = _Signs("█▌·", "▄▖·", "│", "▒")
_ASCII = _Signs("#+.", "o-.", "|", "%")


def picture(machine: Machine, width: int, encoding: str = "utf-8", leased: CpuSet = _NOTHING) -> list[str]:
    """Numbers where the rows fit into ``width`` columns, else a sign for every core; ``leased`` PUs can be told."""
    signs = _SIGNS if _can_say(encoding, _SIGNS) else _ASCII
    rows = list(rows_of(machine))
    numbers = [_numbers(machine, row, signs, leased) for row in rows]
    label = max((len(row.node) for row in rows), default=0)
    small = all(4 + label + len(cells) <= width for cells in numbers)
    lines = []
    package = None
    for row, cells in zip(rows, numbers, strict=True):
        if row.package != package:
            package = row.package
            lines.append(package)
        if small:
            lines.append(f"  {row.node:{label}}  {cells}".rstrip())
        else:
            lines += _wrapped(machine, row, signs, label, width, leased)
    return [*lines, *lone_memory(machine), "", *_legend(machine, signs, small, leased)]


def heading(machine: Machine, offline: CpuSet) -> list[str]:
    """How many there are of everything, and what of it may be used."""
    cpus, cores = machine.cpus_online, machine.cores
    without = f"; offline: {offline}" if offline else ""
    smt = sum(len(core.cpus) > 1 for core in cores)
    return [
        f"{format_count(len(cpus), 'PU')} online ({cpus}{without}), {format_count(len(cores), 'core')} "
        f"({smt} with SMT), {format_count(len(machine.packages), 'package')}, "
        f"{format_count(len(machine.numa_nodes), 'memory node')}",
        f"may be used: PUs {machine.allowed_cpus or 'none'}, memory nodes {machine.allowed_mems or 'none'}",
    ]


def rows_of(machine: Machine) -> Iterator[Row]:
    """Top to bottom: packages, in each the memory nodes that have PUs in it; what no node has is a row of its own.

    Nodes alone where a node holds several packages, as POWER's virtual machines count every core one.
    """
    homes = [node for node in machine.numa_nodes if not node.memory_only]
    if len(homes) < len(machine.packages) and sum(len(node.cpus) for node in homes) == len(machine.cpus_online):
        for node in homes:
            name = f"{len(machine.packages)} packages"
            yield Row(name, _node_name(machine, node), node.cpus, _domains(machine, node.cpus))
        return
    for package in machine.packages:
        name = f"package {'?' if package.package_id is None or package.package_id < 0 else package.package_id}"
        left = package.cpus
        for node in homes:
            here = node.cpus & left
            if here:
                left -= here
                yield Row(name, _node_name(machine, node), here, _domains(machine, here))
        if left:
            yield Row(name, "no memory node", left, _domains(machine, left))


def allowed_of(machine: Machine, core: Core) -> int:
    """0: none of the core's PUs may be used; 1: some; 2: all."""
    allowed = core.cpus & machine.allowed_cpus
    return 2 if allowed == core.cpus else 1 if allowed else 0


def kind_of(machine: Machine, core: Core) -> int:
    """How many kinds of cores are faster."""
    kinds = [kind.cpus for kind in reversed(machine.cpu_kinds)]
    return next((faster for faster, cpus in enumerate(kinds) if core.cpus.first in cpus), len(kinds))


def pu_name(machine: Machine, cpu: int, leased: CpuSet = _NOTHING) -> str:
    """Its number, with a star where it is leased, in parentheses where it may not be used."""
    name = f"{cpu}*" if cpu in leased else str(cpu)
    return name if cpu in machine.allowed_cpus else f"({name})"


def lone_memory(machine: Machine) -> list[str]:
    """A line for every memory node without PUs."""
    lone = [node for node in machine.numa_nodes if node.memory_only]
    return [f"memory without PUs: {_node_name(machine, node)}, {_beside(node)}" for node in lone]


def said_of_caches(machine: Machine) -> str:
    """``last-level cache: 4 MiB each``; nothing where no size is known."""
    sizes = sorted({domain.size_bytes for domain in machine.llc_domains if domain.size_bytes})
    if not sizes:
        return ""
    each = " each" if len(sizes) == 1 < len(machine.llc_domains) else ""
    return f"last-level cache: {' or '.join(map(format_size, sizes))}{each}"


def _domains(machine: Machine, cpus: CpuSet) -> tuple[tuple[Core, ...], ...]:
    cores = [core for core in machine.cores if core.cpus.first in cpus]
    found = (
        tuple(core for core in cores if core.cpus.first in domain.cpus)
        for domain in machine.llc_domains
        if not domain.cpus.isdisjoint(cpus)
    )
    return tuple(domain for domain in found if domain)


def _beside(node: NumaNode) -> str:
    return f"next to PUs {node.cpus}" if node.cpus else "next to no PUs in particular"


def _node_name(machine: Machine, node: NumaNode) -> str:
    if not node.memory_bytes:
        return f"node {node.node_id}  no memory"
    kind = "" if node.kind == "DRAM" else f" {node.kind}"
    allowed = "" if node.node_id in machine.allowed_mems else " (not allowed)"
    return f"node {node.node_id}  {format_size(node.memory_bytes)}{kind}{allowed}"


def _numbers(machine: Machine, row: Row, signs: _Signs, leased: CpuSet) -> str:
    """``[0* 8*][1 (9)] | {2 10}{3 11}``."""
    return f" {signs.cut} ".join("".join(_cell(machine, core, leased) for core in domain) for domain in row.domains)


def _cell(machine: Machine, core: Core, leased: CpuSet) -> str:
    pus = " ".join(pu_name(machine, cpu, leased) for cpu in core.cpus)
    return f"{{{pus}}}" if kind_of(machine, core) else f"[{pus}]"


def _wrapped(machine: Machine, row: Row, signs: _Signs, label: int, width: int, leased: CpuSet) -> list[str]:
    """Signs, and which PUs they are; as many lines as it takes, cut between LLC domains where these are short."""
    domains = ["".join(_sign(machine, core, signs, leased) for core in domain) for domain in row.domains]
    room = max(16, width - label - 4)
    lines, line = [], ""
    for domain in domains:
        if line and len(line) + 1 + len(domain) > room:
            lines.append(line)
            line = ""
        line = f"{line}{signs.cut}{domain}" if line else domain
        while len(line) > room:
            lines.append(line[:room])
            line = line[room:]
    lines.append(line)
    where = f"  {row.cpus}"
    if len(lines[-1]) + len(where) <= room:
        lines[-1] += where
    else:
        lines.append(where.strip())
    return [f"  {row.node if not at else '':{label}}  {line}" for at, line in enumerate(lines)]


def _sign(machine: Machine, core: Core, signs: _Signs, leased: CpuSet) -> str:
    if not core.cpus.isdisjoint(leased):
        return signs.leased
    return (signs.slow if kind_of(machine, core) else signs.fast)[2 - allowed_of(machine, core)]


def _legend(machine: Machine, signs: _Signs, small: bool, leased: CpuSet) -> Iterator[str]:
    some = [allowed_of(machine, core) for core in machine.cores]
    if small:
        yield f"[ ] core with its PUs, {signs.cut} between last-level caches"
        if min(some, default=2) < 2:
            yield "(N) PU that may not be used"
    else:
        yield f"{signs.fast[0]} core, {signs.cut} between last-level caches"
        if min(some, default=2) < 2:
            yield f"{signs.fast[1]} core with PUs that may not be used, {signs.fast[2]} with none that may"
    if leased:
        yield "N* PU that is leased" if small else f"{signs.leased} core with PUs that are leased"
    if machine.cpu_kinds:
        yield f"{'{ }' if small else signs.slow[0]} core of a slower kind"
        yield f"kinds of PUs, the fastest first: {'; '.join(str(kind.cpus) for kind in reversed(machine.cpu_kinds))}"
    if caches := said_of_caches(machine):
        yield caches


def _can_say(encoding: str, signs: _Signs) -> bool:
    try:
        (signs.fast + signs.slow + signs.cut + signs.leased).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
