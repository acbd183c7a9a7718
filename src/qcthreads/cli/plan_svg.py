"""A plan as a drawing, CPUs over time, a box for each task; writes one file, and decides nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from ..planning import Placement, Plan

_GAP, _LINE, _CHAR = 6, 16, 7  # the space around things, a line of text, a letter's width: in pixels
_WIDTH = 1000  # of the time axis
_TALLEST, _HIGHEST_ROW = 1600, 20  # all rows together; a single one
_TICKS = 8  # at most, beside 0
_UNITS, _FEWEST = ((3600, "h"), (60, "min"), (1, "s")), 2  # of the first of which there are so many
_SLIVER = 1  # pixel: what is narrower than this cannot be pointed at
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
    by_fill = defaultdict[str, list[Placement]](list)
    for placement in made.placements:
        by_fill[_fill(placement.threads)].append(placement)
    for fill, placements in by_fill.items():
        parts += [f'<g fill="{fill}">', *_boxes(placements, rows, left, top, row, scale), "</g>"]
    height = top + row * len(cpus) + 2 * _LINE
    legend, widest = _legend(made, left, height)
    width = max(left + _WIDTH + 8 * _CHAR, widest, *(2 * _GAP + _CHAR * len(line) for line in heading))
    height += _LINE + _GAP
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}">'
    svg += "<style>text{font:11px sans-serif;fill:#000}g path{stroke:#777;stroke-width:.5}</style>"
    svg += f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>\n'
    path.write_text(svg + "\n".join([*parts, *legend]) + "\n</svg>\n", encoding="utf-8")


def _axes(cpus: list[int], makespan_s: float, left: float, top: float, row: float) -> Iterator[str]:
    bottom = top + row * len(cpus)
    every = max(1, -(-_LINE // max(1, int(row))))
    for number in range(0, len(cpus), every):
        yield _text(_GAP, top + row * number + min(row, 12.0), f"CPU {cpus[number]}")
    for at_s, said in _ticks(makespan_s):
        x = left + (_WIDTH * at_s / makespan_s if at_s else 0.0)
        yield f'<path d="M{_short(x)} {_short(top)}V{_short(bottom + 4)}" stroke="#ccc"/>'
        yield _text(x, bottom + _LINE, said)


def _ticks(makespan_s: float) -> Iterator[tuple[float, str]]:
    """Round numbers of seconds, minutes or hours: a multiple of 1, 2 or 5 with as many zeros as it takes."""
    unit_s, unit = next(one for one in _UNITS if makespan_s >= _FEWEST * one[0] or one[0] == 1)
    length = makespan_s / unit_s
    yield 0.0, f"0 {unit}"
    if not length:
        return
    least = length / _TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = power * next(digit for digit in (1, 2, 5, 10) if digit * power >= least)
    for number in range(1, math.floor(length / step) + 1):
        yield number * step * unit_s, f"{number * step:g} {unit}"


def _boxes(
    placements: Sequence[Placement], rows: dict[int, int], left: float, top: float, row: float, scale: float
) -> Iterator[str]:
    """Of one colour; the name where it fits. All that are too narrow to be pointed at are one path without names."""
    slivers = []
    for placement in placements:
        x = round(left + placement.start_s * scale, 1)
        width = round(left + placement.end_s * scale, 1) - x
        runs = [(top + row * first, row * count) for first, count in _runs(sorted(rows[cpu] for cpu in placement.cpus))]
        path = "".join(
            f"M{_short(x)} {_short(y)}h{_short(width)}v{_short(height)}h-{_short(width)}z" for y, height in runs
        )
        if width < _SLIVER:
            slivers.append(path)
            continue
        said = f"{placement.id}: {placement.start_s:.6g} s to {placement.end_s:.6g} s, CPUs {placement.cpus}"
        yield f'<path d="{path}"><title>{escape(said)}</title></path>'
        for y, height in runs:
            if _CHAR * len(placement.id) + 4 <= width and height >= 11:
                yield _text(x + 3, y + height / 2 + 4, placement.id)
    if slivers:
        yield f'<path d="{"".join(slivers)}"/>'


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


def _short(pixels: float) -> str:
    """To a hundredth, without zeros that say nothing."""
    return f"{pixels:.2f}".rstrip("0").rstrip(".")


def _text(x: float, y: float, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{_short(x)}" y="{_short(y)}"{weight}>{escape(words)}</text>'
