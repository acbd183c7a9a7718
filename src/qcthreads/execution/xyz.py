"""Files of atoms: their number, a comment, and a line ``symbol x y z`` in angstrom for each; knows no fragments."""

from __future__ import annotations

import math

from ..errors import InputError


def parse_xyz(text: str, name: str) -> tuple[list[str], list[tuple[float, float, float]]]:
    """Symbols and coordinates, in angstrom. ``name`` is the file's, for messages.

    Raises InputError with the line that is none of such a file.
    """
    lines = text.splitlines()
    try:
        n_atoms = int(lines[0].split()[0])
    except (IndexError, ValueError):
        found = lines[0] if lines else ""
        raise InputError(f"{name}: the first line of an .xyz file is the number of atoms, found {found!r}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    body = lines[2:]
    if n_atoms < 1 or len(body) != n_atoms:
        more = "; a file of several frames: give one frame" if len(body) > n_atoms and _is_count(body[n_atoms]) else ""
        raise InputError(
            f"{name}: line 1 says {n_atoms} atoms, found {len(body)} lines after the comment in line 2{more}"
        )
    parsed = [_parse_atom(line, number, name) for number, line in enumerate(body, start=3)]
    return [symbol for symbol, _ in parsed], [position for _, position in parsed]


def _parse_atom(line: str, number: int, name: str) -> tuple[str, tuple[float, float, float]]:
    from qcelemental import periodictable

    fields = line.split()
    try:
        x, y, z = (float(field) for field in fields[1:4])
        if not all(map(math.isfinite, (x, y, z))):
            raise ValueError
    except ValueError:
        raise InputError(
            f"{name}, line {number}: expected 'element x y z' in angstrom, found {line.strip()!r}"
        ) from None
    try:
        symbol = periodictable.to_E(int(fields[0]) if fields[0].isdigit() else fields[0])
        if symbol == "X" or not (fields[0].isalpha() or fields[0].isdigit()):
            raise ValueError
    except Exception:  # QCElemental's NotAnElementError
        raise InputError(
            f"{name}, line {number}: {fields[0]!r} is not an element; write its symbol, for example O"
        ) from None
    return symbol, (x, y, z)


def _is_count(line: str) -> bool:
    return line.strip().isdigit()
