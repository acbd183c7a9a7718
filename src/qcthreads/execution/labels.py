"""QCManyBody's labels and the names that tables print for them; knows no energy and reads no store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from ..errors import InputError
from ..units import nearest


def short_label(label: str) -> str:
    """``1+2``; ``1@1+2`` for fragment 1 in the basis of 1 and 2. What is no label of QCManyBody's stays as it is."""
    parts = _parts(label)
    if parts is None:
        return label
    real, basis = ("+".join(map(str, numbers)) for numbers in parts)
    return real if real == basis else f"{real}@{basis}"


def short_labels(labels: Iterable[str]) -> dict[str, str]:
    """A name for each: :func:`short_label`; of several model chemistries each with its name before it, ``mp2:1+2``."""
    short = {label: short_label(label) for label in labels}
    return short if len(set(short.values())) == len(short) else {label: _long_label(label) for label in short}


def label_order(label: str) -> tuple[int, list[int], list[int]]:
    """A key for sorting: by number of fragments, then by fragments; what is no label of QCManyBody's comes first."""
    real, basis = _parts(label) or ([], [])
    return len(real), real, basis


def find_label(asked: str, labels: Sequence[str], where: str) -> str:
    """The one of ``labels`` that ``asked`` means: a label, or its short form with fragments in any order.

    The real fragments alone, ``1``, and the real fragments in the basis of more, ``1@``, do where they suffice. Of
    several model chemistries each has its name before it, ``mp2:1+2``, which can be left out where one alone has it.
    Raises InputError, with those it may have meant, for none and for several; ``where`` says whose labels they are.
    """
    if asked in labels:
        return asked
    short = {name: label for label, name in short_labels(labels).items()}
    chemistry, _, name = asked.rpartition(":")
    wanted = ":".join(filter(None, (chemistry, _in_order(re.sub(r"\s", "", name)))))
    if wanted in short:
        return short[wanted]
    same = [name for name in short if wanted in _beginnings(name) or wanted in _beginnings(name.rpartition(":")[2])]
    if len(same) == 1:
        return short[same[0]]
    if same:
        raise InputError(f"{asked!r} may be several calculations in {where}: {_some(same)}; name one of them")
    near = nearest(wanted, short)
    there = f"did you mean {near}?" if near else f"there are, for example: {_some(short) or 'none yet'}"
    raise InputError(f"no calculation {asked!r} in {where}; {there}")


def _long_label(label: str) -> str:
    """:func:`short_label` with the model chemistry: ``mp2:1+2``."""
    short = short_label(label)
    return short if short == label else f"{json.loads(label)[0]}:{short}"


def _beginnings(name: str) -> tuple[str, str, str]:
    """``1@1+2``, ``1`` and ``1@``."""
    return name, name.partition("@")[0], name[: name.find("@") + 1]


def _parts(label: str) -> tuple[list[int], list[int]] | None:
    """Real fragments and those whose basis is there, from ``["(auto)", [1, 2], [1, 2]]``."""
    try:
        _, real, basis = json.loads(label)
    except (ValueError, TypeError):  # TypeError: JSON, but no list
        return None
    return (real, basis) if isinstance(real, list) and isinstance(basis, list) else None


def _in_order(name: str) -> str:
    """``1+2@1+2+3`` from ``2+1@3+2+1``; what is made of anything else stays as it is."""
    if not re.fullmatch(r"\d+(\+\d+)*(@(\d+(\+\d+)*)?)?", name):
        return name
    return "@".join("+".join(sorted(part.split("+"), key=lambda number: int(number or 0))) for part in name.split("@"))


def _some(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
