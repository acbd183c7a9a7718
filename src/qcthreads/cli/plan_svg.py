"""A plan as a drawing, CPUs over time, a box for each task; writes one file, and decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from ..planning import Placement, Plan
from .render import seconds

_GAP, _LINE, _CHAR = 6, 16, 7  # the space around things, a line of text, a letter's width: in pixels
_WIDTH = 1000  # of the time axis
_TALLEST, _HIGHEST_ROW = 1600, 20  # all rows together; a single one
_TICKS = 8
# By width: 1, 2, 3-4, 5-8, ...
_FILLS = ("#dbe9f4", "#8ecae6", "#b5d99c", "#ffd27f", "#f4a582", "#dcc1ea")


def write_svg(made: Plan, path: Path, heading: Sequence[str]) -> None:
    """Draw ``made`` into ``path``, below the lines of ``heading``, the first of which is its title."""
    cpus = sorted({cpu for placement in made.placements for cpu in placement.cpus})
    row = min(float(_HIGHEST_ROW), _TALLEST / max(1, len(cpus)))
    top = _GAP + _LINE * (len(heading) + 1)
    left = _GAP + _CHAR * (len(str(cpus[-1])) + 5 if cpus else 5)
    scale = _WIDTH / made.makespan_s if made.makespan_s else 0.0
    parts = [_text(_GAP, _GAP + _LINE * number + 12, line, bold=not number) for number, line in enumerate(heading)]
    parts += _axes(cpus, made.makespan_s, left, top, row)
    rows = {cpu: number for number, cpu in enumerate(cpus)}
    for placement in made.placements:
        parts += _boxes(placement, rows, left, top, row, scale)
    height = top + row * len(cpus) + 2 * _LINE
    legend, widest = _legend(made, left, height)
    width = max(left + _WIDTH + 8 * _CHAR, widest, *(2 * _GAP + _CHAR * len(line) for line in heading))
    height += _LINE + _GAP
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}">'
    svg += "<style>text{font:11px sans-serif}</style>"
    svg += f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>\n'
    path.write_text(svg + "\n".join([*parts, *legend]) + "\n</svg>\n", encoding="utf-8")


def _axes(cpus: list[int], makespan_s: float, left: float, top: float, row: float) -> Iterator[str]:
    bottom = top + row * len(cpus)
    every = max(1, -(-_LINE // max(1, int(row))))
    for number in range(0, len(cpus), every):
        yield _text(_GAP, top + row * number + min(row, 12.0), f"CPU {cpus[number]}")
    for tick in range(_TICKS + 1):
        x = left + _WIDTH * tick / _TICKS
        yield f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom + 4:.1f}" stroke="#ccc"/>'
        yield _text(x, bottom + _LINE, seconds(makespan_s * tick / _TICKS))


def _boxes(
    placement: Placement, rows: dict[int, int], left: float, top: float, row: float, scale: float
) -> Iterator[str]:
    """One for each run of neighbouring rows; the name where it fits."""
    name = escape(placement.id)
    said = f"{name}: {placement.start_s:.6g} s to {placement.end_s:.6g} s, CPUs {placement.cpus}"
    x, width = left + placement.start_s * scale, (placement.end_s - placement.start_s) * scale
    yield f"<g><title>{said}</title>"
    for first, count in _runs(sorted(rows[cpu] for cpu in placement.cpus)):
        y, height = top + row * first, row * count
        box = f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
        yield f'{box} fill="{_fill(placement.threads)}" stroke="#777" stroke-width="0.5"/>'
        if _CHAR * len(placement.id) + 4 <= width and height >= 11:
            yield _text(x + 3, y + height / 2 + 4, placement.id)
    yield "</g>"


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, how many) of consecutive numbers."""
    first, count = numbers[0], 0
    for number in numbers:
        if number != first + count:
            yield first, count
            first, count = number, 0
        count += 1
    yield first, count


def _legend(made: Plan, left: float, top: float) -> tuple[list[str], float]:
    """A coloured square for each width that was used, and how far it goes to the right."""
    parts, x = [], left
    for width in sorted({placement.threads for placement in made.placements}):
        parts.append(
            f'<rect x="{x:.1f}" y="{top + 2:.1f}" width="10" height="10" fill="{_fill(width)}" stroke="#777"/>'
        )
        said = "1 thread" if width == 1 else f"{width} threads"
        parts.append(_text(x + 14, top + 11, said))
        x += 14 + _CHAR * (len(said) + 2)
    return parts, x


def _fill(width: int) -> str:
    return _FILLS[min((width - 1).bit_length(), len(_FILLS) - 1)]


def _text(x: float, y: float, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{weight}>{escape(words)}</text>'
