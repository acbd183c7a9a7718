"""Tables, JSON and numbers as text, and where they may go, shared by the commands; computes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from ..cpuset import IndexSet

_CENTURIES_S = 1e10
_UNLIMITED = 10_000  # columns; wider than any table


def print_json(document: Any, stream: TextIO | None = None) -> None:
    """One JSON document on standard output, from plain data and our own values; NaN and infinity become null."""
    json.dump(plain(document), stream or sys.stdout, indent=1, allow_nan=False)
    print(file=stream or sys.stdout)


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: sets of CPUs as lists of numbers, dataclasses as objects, paths and enums as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, IndexSet | list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # numpy's arrays and scalars, without importing numpy
        return plain(value.tolist())
    if hasattr(value, "items"):
        return plain(dict(value.items()))
    raise TypeError(f"not JSON data: {type(value).__name__}")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], stream: TextIO | None = None
) -> None:
    """Rows under headings, numbers to the right; drawn by rich on a terminal wide enough, else in plain columns.

    No digit is ever left out to make a row fit: the terminal may break the line.
    """
    stream = stream or sys.stdout
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    right = [all(_numeric(row[index]) for row in cells) for index in range(len(columns))]
    if stream.isatty() and _print_rich(title, columns, cells, right, stream):
        return
    widths = [max(len(line[index]) for line in [columns, *cells]) for index in range(len(columns))]
    if title:
        print(title, file=stream)
    for line in [columns, *cells]:
        parts = (
            f"{cell:>{width}}" if flush else f"{cell:{width}}"
            for cell, width, flush in zip(line, widths, right, strict=True)
        )
        print(f"  {'  '.join(parts)}".rstrip(), file=stream)


def seconds(value_s: float | None) -> str:
    """A duration as a person reads it: ``0.42 s``, ``3 min 05 s``, ``2 h 10 min``; of centuries ``3.2e+09 s``."""
    if value_s is None:
        return "not known"
    if value_s < 60 or value_s >= _CENTURIES_S:
        return f"{value_s:.3g} s"
    minutes, rest = divmod(round(value_s), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def gigabytes(bytes_per_s: float) -> str:
    """A bandwidth in GB/s, powers of 1000, as bandwidths are told."""
    return f"{bytes_per_s / 1e9:.3g}"


def percent(share: float | None) -> str:
    """A share of one as a percentage, or a dash where it is not known."""
    return "-" if share is None else f"{100 * share:.0f} %"


def _numeric(cell: str) -> bool:
    return not cell or cell == "-" or cell.lstrip("+-")[:1].isdigit()


def _print_rich(title: str, columns: Sequence[str], cells: list[list[str]], right: list[bool], stream: TextIO) -> bool:
    """Whether rich is installed, has the room, and drew the table."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name, flush in zip(columns, right, strict=True):
        table.add_column(name, justify="right" if flush else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    console = Console(file=stream, highlight=False, markup=False)
    if console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum > console.width:
        return False
    console.print(table)
    return True
