"""A machine as a drawing: packages around memory nodes around last-level caches around cores; writes one file."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from ..machine import Core, Machine
from .topo_picture import Row, allowed_of, is_slow, rows_of

_CELL, _GAP, _LINE = 34, 6, 16  # a core's side, the space around things, a line of text
_PER_LINE = 16  # cores side by side in one domain
_FILLS = {2: "#8ecae6", 1: "#d9ecf5", 0: "#eeeeee"}
_SLOW_FILLS = {2: "#ffd27f", 1: "#fdeccb", 0: "#eeeeee"}


def write_svg(machine: Machine, path: Path) -> None:
    """Draw ``machine`` into ``path``."""
    parts: list[str] = []
    top, widest = _GAP, 0
    package = None
    for row in rows_of(machine):
        if row.package != package:
            package = row.package
            parts.append(_text(_GAP, top + _LINE - 4, package, bold=True))
            top += _LINE + _GAP
        width, height = _draw_row(machine, row, _GAP, top, parts)
        widest = max(widest, width + 2 * _GAP)
        top += height + _GAP
    for node in machine.numa_nodes:
        if node.memory_only:
            words = f"memory node {node.node_id} ({node.kind}) without PUs, next to {node.cpus or 'none'}"
            parts.append(_text(_GAP, top + _LINE - 4, words))
            widest = max(widest, 8 * len(words))
            top += _LINE
    size = f'width="{widest}" height="{top + _GAP}"'
    style = "<style>text{font:11px sans-serif}</style>"
    document = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}\n' + "\n".join(parts) + "\n</svg>\n"
    path.write_text(document, encoding="utf-8")


def _draw_row(machine: Machine, row: Row, left: int, top: int, parts: list[str]) -> tuple[int, int]:
    """One memory node; its width and height."""
    at, below = left + _GAP, 0
    inner: list[str] = []
    for domain in row.domains:
        columns = min(_PER_LINE, len(domain))
        lines = -(-len(domain) // _PER_LINE)
        width, height = columns * _CELL + 2 * _GAP, lines * _CELL + 2 * _GAP
        inner.append(_box(at, top + _LINE + _GAP, width, height, "#ffffff"))
        for number, core in enumerate(domain):
            x = at + _GAP + number % _PER_LINE * _CELL
            y = top + _LINE + 2 * _GAP + number // _PER_LINE * _CELL
            inner += _draw_core(machine, core, x, y)
        at += width + _GAP
        below = max(below, height)
    width, height = max(at - left, 8 * len(row.node)), _LINE + below + 3 * _GAP
    parts += [_box(left, top, width, height, "#f5f5f5"), _text(left + _GAP, top + _LINE - 2, row.node), *inner]
    return width, height


def _draw_core(machine: Machine, core: Core, x: int, y: int) -> list[str]:
    fills = _SLOW_FILLS if is_slow(machine, core) else _FILLS
    shown = list(core.cpus)[:2]  # as many as there is room for; the title has all
    numbers = [_text(x + 3, y + 13 + 12 * line, str(cpu)) for line, cpu in enumerate(shown)]
    title = f"<title>core of PUs {core.cpus}</title>"
    return [f"<g>{title}", _box(x, y, _CELL - 2, _CELL - 2, fills[allowed_of(machine, core)]), *numbers, "</g>"]


def _box(x: int, y: int, width: int, height: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="#777"/>'


def _text(x: int, y: int, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}"{weight}>{escape(words)}</text>'
