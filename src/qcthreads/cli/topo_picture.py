"""A machine as lines of text that are read at a glance; knows no terminal but its width, and asks no system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..cpuset import CpuSet
from ..machine import Core, Machine, NumaNode
from ..units import format_size


@dataclass(frozen=True, slots=True)
class Row:
    """The PUs of one memory node in one package, core by core, cut into LLC domains."""

    package: str
    node: str
    cpus: CpuSet
    domains: tuple[tuple[Core, ...], ...]


@dataclass(frozen=True, slots=True)
class _Signs:
    """How a core looks all of whose PUs, some, or none may be used; the same for slower kinds of cores; the cut."""

    fast: str
    slow: str
    cut: str


_SIGNS = _Signs("█▌·", "▄▖·", "│")
_ASCII = _Signs("#+.", "o-.", "|")


def picture(machine: Machine, width: int, encoding: str = "utf-8") -> list[str]:
    """Numbers where the rows fit into ``width`` columns, else a sign for every core."""
    signs = _SIGNS if _can_say(encoding, _SIGNS) else _ASCII
    rows = list(rows_of(machine))
    numbers = [_numbers(machine, row, signs) for row in rows]
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
            lines += _wrapped(machine, row, signs, label, width)
    lines += [
        f"memory without PUs: {_node_name(node)}, {_beside(node)}" for node in machine.numa_nodes if node.memory_only
    ]
    lines += ["", *_legend(machine, signs, small)]
    return lines


def rows_of(machine: Machine) -> Iterator[Row]:
    """Top to bottom: packages, in each the memory nodes that have PUs in it; what no node has is a row of its own.

    Nodes alone where a node holds several packages, as POWER's virtual machines count every core one.
    """
    homes = [node for node in machine.numa_nodes if not node.memory_only]
    if len(homes) < len(machine.packages) and sum(len(node.cpus) for node in homes) == len(machine.cpus_online):
        for node in homes:
            yield Row(f"{len(machine.packages)} packages", _node_name(node), node.cpus, _domains(machine, node.cpus))
        return
    for package in machine.packages:
        name = f"package {'?' if package.package_id is None or package.package_id < 0 else package.package_id}"
        left = package.cpus
        for node in homes:
            here = node.cpus & left
            if here:
                left -= here
                yield Row(name, _node_name(node), here, _domains(machine, here))
        if left:
            yield Row(name, "no memory node", left, _domains(machine, left))


def allowed_of(machine: Machine, core: Core) -> int:
    """0: none of the core's PUs may be used; 1: some; 2: all."""
    allowed = core.cpus & machine.allowed_cpus
    return 2 if allowed == core.cpus else 1 if allowed else 0


def is_slow(machine: Machine, core: Core) -> bool:
    """Whether there are faster kinds of cores."""
    return bool(machine.cpu_kinds) and core.cpus.isdisjoint(machine.cpu_kinds[-1].cpus)


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


def _node_name(node: NumaNode) -> str:
    size = format_size(node.memory_bytes) if node.memory_bytes else "no memory"
    return f"node {node.node_id}  {size}{'' if node.kind == 'DRAM' else ' ' + node.kind}"


def _numbers(machine: Machine, row: Row, signs: _Signs) -> str:
    """``[0 8][1 9] | [2 10][3 11]``; a PU that may not be used is a dot."""
    domains = []
    for domain in row.domains:
        cells = (
            " ".join(str(cpu) if cpu in machine.allowed_cpus else signs.fast[2] for cpu in core.cpus) for core in domain
        )
        domains.append("".join(f"[{cell}]" for cell in cells))
    return f" {signs.cut} ".join(domains)


def _wrapped(machine: Machine, row: Row, signs: _Signs, label: int, width: int) -> list[str]:
    """Signs, and which PUs they are; as many lines as it takes, cut between LLC domains where these are short."""
    domains = [
        "".join(
            (signs.slow if is_slow(machine, core) else signs.fast)[2 - allowed_of(machine, core)] for core in domain
        )
        for domain in row.domains
    ]
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


def _legend(machine: Machine, signs: _Signs, small: bool) -> Iterator[str]:
    some = [allowed_of(machine, core) for core in machine.cores]
    if small:
        yield f"[ ] core with its PUs, {signs.cut} between last-level caches"
        if min(some, default=2) < 2:
            yield f"{signs.fast[2]} PU that may not be used"
    else:
        yield f"{signs.fast[0]} core, {signs.cut} between last-level caches"
        if min(some, default=2) < 2:
            yield f"{signs.fast[1]} core with PUs that may not be used, {signs.fast[2]} with none that may"
        if machine.cpu_kinds:
            yield f"{signs.slow[0]} core of a slower kind"
    if machine.cpu_kinds:
        yield f"kinds of PUs, the fastest first: {'; '.join(str(kind.cpus) for kind in reversed(machine.cpu_kinds))}"
    sizes = sorted({domain.size_bytes for domain in machine.llc_domains if domain.size_bytes})
    if sizes:
        yield f"last-level cache: {', '.join(map(format_size, sizes))}"


def _can_say(encoding: str, signs: _Signs) -> bool:
    try:
        (signs.fast + signs.slow + signs.cut).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
