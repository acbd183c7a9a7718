"""A machine as a drawing: packages around memory nodes around last-level caches around cores; writes one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from ..cpuset import CpuSet
from ..machine import Core, Machine
from ..units import format_size
from .topo_picture import Row, allowed_of, kind_of, lone_memory, pu_name, rows_of, said_of_caches

_GAP, _LINE, _CHAR = 6, 16, 7  # the space around things, a line of text, a letter's width: in pixels
_PER_LINE = 16  # cores side by side in one domain
_WIDEST = 1200  # where the domains of a node go on below
_FILLS = ("#8ecae6", "#ffd27f", "#b5d99c", "#dcc1ea")  # kinds of cores, the fastest first; all further ones the last
_FORBIDDEN, _DOMAIN, _NODE = "#dddddd", "#ffffff", "#f0f0f0"
_LEASED = "#f4978e"


@dataclass(frozen=True, slots=True)
class _Cell:
    """The room for a core: its PUs in ``columns``, each ``number`` wide."""

    columns: int
    number: int
    width: int
    height: int


def write_svg(
    machine: Machine, path: Path, heading: Sequence[str] = (), leases: Sequence[tuple[CpuSet, str]] = ()
) -> None:
    """Draw ``machine`` into ``path``, below the lines of ``heading``, the first of which is its title.

    ``leases`` are PUs, each with the words that say whose they are.
    """
    leased = CpuSet(cpu for cpus, _ in leases for cpu in cpus)
    cell = _cell_of(machine, leased)
    parts: list[str] = []
    top, widest = _GAP, max((_CHAR * len(line) for line in heading), default=0)
    for number, line in enumerate(heading):
        parts.append(_text(_GAP, top + _LINE - 4, line, bold=not number))
        top += _LINE
    package = None
    for row in rows_of(machine):
        if row.package != package:
            package = row.package
            top += _GAP
            parts.append(_text(_GAP, top + _LINE - 4, package, bold=True))
            top += _LINE
        width, height = _draw_row(machine, row, cell, top, parts, leases)
        widest = max(widest, width)
        top += height + _GAP
    top += _GAP
    for fill, line in [*((None, line) for line in lone_memory(machine)), *_legend(machine, leased)]:
        if fill is not None:
            parts.append(_box(_GAP, top + 2, _LINE - 4, _LINE - 4, fill))
        parts.append(_text(_GAP if fill is None else _GAP + _LINE, top + _LINE - 4, line))
        widest = max(widest, _LINE + _CHAR * len(line))
        top += _LINE
    width, height = widest + 2 * _GAP, top + _GAP
    style = "<style>text{font:11px sans-serif}</style>"
    page = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{style}{page}\n'
    path.write_text(svg + "\n".join(parts) + "\n</svg>\n", encoding="utf-8")


def _cell_of(machine: Machine, leased: CpuSet) -> _Cell:
    """One size for all cores, with room for the PUs of the one that has most."""
    most = max(len(core.cpus) for core in machine.cores)
    columns = 1 if most <= 2 else 2 if most <= 8 else 4
    number = _CHAR * max(len(pu_name(machine, cpu, leased)) for cpu in machine.cpus_online) + 4
    return _Cell(columns, number, max(34, columns * number + 4), max(34, -(-most // columns) * 12 + 10))


def _draw_row(
    machine: Machine, row: Row, cell: _Cell, top: int, parts: list[str], leases: Sequence[tuple[CpuSet, str]]
) -> tuple[int, int]:
    """One memory node; its width and height."""
    left, line = 2 * _GAP, top + _LINE + _GAP
    at, below, right = left, 0, left + _CHAR * len(row.node)
    inner: list[str] = []
    for domain in row.domains:
        size = _llc_size(machine, domain)
        columns, head = min(_PER_LINE, len(domain)), _LINE if size else 0
        width = max(columns * cell.width, _CHAR * len(size)) + 2 * _GAP
        height = head + -(-len(domain) // _PER_LINE) * cell.height + 2 * _GAP
        if at > left and at + width > _WIDEST:
            at, line, below = left, line + below + _GAP, 0
        inner.append(_box(at, line, width, height, _DOMAIN))
        inner.append(_text(at + _GAP, line + _LINE - 2, size))
        for number, core in enumerate(domain):
            x = at + _GAP + number % _PER_LINE * cell.width
            y = line + head + _GAP + number // _PER_LINE * cell.height
            inner += _draw_core(machine, core, cell, x, y, leases)
        at += width + _GAP
        below, right = max(below, height), max(right, at)
    height = line + below + _GAP - top
    parts += [_box(_GAP, top, right - _GAP, height, _NODE), _text(2 * _GAP, top + _LINE - 2, row.node), *inner]
    return right, height


def _llc_size(machine: Machine, cores: Sequence[Core]) -> str:
    size = next(domain.size_bytes for domain in machine.llc_domains if cores[0].cpus.first in domain.cpus)
    return format_size(size) if size else ""


def _draw_core(
    machine: Machine, core: Core, cell: _Cell, x: int, y: int, leases: Sequence[tuple[CpuSet, str]]
) -> Iterator[str]:
    here = [(core.cpus & cpus, words) for cpus, words in leases if not core.cpus.isdisjoint(cpus)]
    leased = CpuSet(cpu for cpus, _ in here for cpu in cpus)
    said = "; ".join([f"core of PUs {core.cpus}", *(f"PUs {cpus} leased by {words}" for cpus, words in here)])
    yield f"<g><title>{escape(said)}</title>"
    usual = _fill(kind_of(machine, core)) if allowed_of(machine, core) else _FORBIDDEN
    fill = _LEASED if leased else usual
    yield _box(x, y, cell.width - 2, cell.height - 2, fill)
    for number, cpu in enumerate(core.cpus):
        line, column = divmod(number, cell.columns)
        yield _text(x + 3 + column * cell.number, y + 13 + 12 * line, pu_name(machine, cpu, leased))
    yield "</g>"


def _legend(machine: Machine, leased: CpuSet) -> Iterator[tuple[str | None, str]]:
    """Lines, and the colour that each explains."""
    for number, kind in enumerate(reversed(machine.cpu_kinds)):
        yield _fill(number), f"core of {'a slower kind' if number else 'the fastest kind'}: PUs {kind.cpus}"
    kinds = len(machine.cpu_kinds)
    if any(kind_of(machine, core) == kinds for core in machine.cores):
        yield _fill(kinds), "core of no known kind" if kinds else "core with its PUs"
    if machine.allowed_cpus != machine.cpus_online:
        yield _FORBIDDEN, "core with none that may be used; (N): PU N may not be used"
    if leased:
        yield _LEASED, f"core with PUs that are leased, marked *: {leased}"
    yield _DOMAIN, said_of_caches(machine) or "cores that share a last-level cache"
    yield _NODE, "memory node"


def _fill(kind: int) -> str:
    return _FILLS[min(kind, len(_FILLS) - 1)]


def _box(x: int, y: int, width: int, height: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="#777"/>'


def _text(x: int, y: int, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}"{weight}>{escape(words)}</text>'
