"""Unit conversions, sizes, counts and names as people write them; nothing here knows what is measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .errors import InputError

# CODATA 2014, QCElemental's default context, so that our figures agree with QCManyBody's.
HARTREE_TO_KCAL_PER_MOL = 627.5094737775373
HARTREE_TO_KJ_PER_MOL = 2625.4996382852164
BOHR_TO_ANGSTROM = 0.52917721067

_FACTORS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _FACTORS |= {_letter: 1024**_power, f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power}
_SIZE = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*"


def parse_size(text: str) -> int:
    """Bytes of a size such as ``"500MB"``, ``"2GiB"``, ``"1.5g"`` or ``"1048576"``.

    ``KB, MB, GB, TB`` are powers of 1000; ``K, M, G, T`` and ``KiB, MiB, GiB, TiB`` powers of 1024.
    """
    match = re.fullmatch(_SIZE, text)
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise InputError(f"not a size: {text!r}; write for example 500MB, 2GiB or 1048576 (bytes)")
    return int(float(match.group(1)) * factor)


def nearest(asked: str, known: Iterable[str]) -> str:
    """What of ``known`` may have been meant by ``asked``: ``"pyscf"``, ``"cc-pvdz or cc-pvtz"``, or ``""``."""
    from difflib import get_close_matches

    names = {name.lower(): name for name in known}
    return " or ".join(names[found] for found in get_close_matches(asked.lower(), names, n=3))


def format_count(number: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_some(names: Sequence[str], most: int = 5) -> str:
    """``a, b``, or of many the first few: ``a, b, c, d, e and 7 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def format_split(workers: int, threads: int) -> str:
    """``2 workers x 1 thread``."""
    return f"{format_count(workers, 'worker')} x {format_count(threads, 'thread')}"


def smaller_split(workers: int, threads: int, cpus: int) -> str:
    """``ask for at most`` what fits on ``cpus``: as wide, or as many workers; where neither fits, the two extremes."""
    fits = []
    if workers > 1 and threads <= cpus:
        fits.append((cpus // threads, threads))
    if threads > 1 and workers <= cpus:
        fits.append((workers, cpus // workers))
    return "ask for at most " + " or ".join(format_split(*fit) for fit in dict.fromkeys(fits or [(cpus, 1), (1, cpus)]))


def format_size(size_bytes: float) -> str:
    """A size in bytes as a person reads it, in powers of 1024, three figures; ``1000 MiB`` in whole units."""
    unit, *larger = "B", "KiB", "MiB", "GiB", "TiB"
    while larger and abs(size_bytes) >= 1023.5:  # what would be written as 1024 is one of the next unit
        size_bytes /= 1024
        unit = larger.pop(0)
    whole = unit == "B" or abs(size_bytes) >= 100
    return f"{size_bytes:.0f} {unit}" if whole else f"{size_bytes:.3g} {unit}"
