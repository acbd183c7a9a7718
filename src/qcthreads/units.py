"""Unit conversions and sizes as people write them; nothing here knows what is measured."""

from __future__ import annotations

import re

from .errors import InputError

# CODATA 2018, as in QCElemental's default context, so that our figures agree with QCManyBody's.
HARTREE_TO_KCAL_PER_MOL = 627.5094740630558
HARTREE_TO_KJ_PER_MOL = 2625.4996394798254
BOHR_TO_ANGSTROM = 0.529177210903

_BINARY = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of a size such as ``"500MB"``, ``"2GiB"``, ``"1.5g"`` or ``"1048576"``.

    ``KB, MB, GB, TB`` are powers of 1000; ``K, M, G, T`` and ``KiB, MiB, GiB, TiB`` powers of 1024.
    """
    match = _SIZE.fullmatch(text)
    unit = match.group(2).lower() if match else None
    factor = None
    if unit is not None:
        factor = _DECIMAL.get(unit) or _BINARY.get(unit.removesuffix("ib"))
    if match is None or factor is None:
        raise InputError(f"not a size: {text!r}; write for example 500MB, 2GiB or 1048576 (bytes)")
    return int(float(match.group(1)) * factor)


def format_size(size_bytes: float) -> str:
    """A size in bytes as a person reads it, in powers of 1024, three figures."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} TiB"
