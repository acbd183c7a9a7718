"""``qcthreads calibrate --list`` and ``--forget``: what was measured of programs here, shown and removed."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import InputError, MachineError
from ..execution.cost_store import CostStore, Kind
from ..host import read_machine
from ..planning.costs import Observation
from ..programs import registry
from ..units import format_count
from .render import print_json, print_table


def show(args: Namespace) -> int:
    """Print what is kept, of all programs or of one, with one method or basis."""
    store = CostStore(read_machine())
    programs = [registry.known(args.program)] if args.program else store.programs()
    found = kept_document(store, programs, args.method, args.basis)
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 0


def forget(args: Namespace) -> int:
    """Remove what is kept of one program, or of one of its methods or basis sets."""
    if not args.program:
        raise InputError("forget what? Name a program; `qcthreads calibrate --list` shows what was measured")
    program = registry.known(args.program)
    store = CostStore(read_machine())
    path = store.path(program)
    was_there = path.exists()
    gone = store.forget(program, args.method, args.basis)
    what = " ".join(filter(None, (program, args.method, args.basis)))
    if not gone and (path.exists() or not was_there):
        raise InputError(f"nothing was measured here of {what}; `qcthreads calibrate --list` shows what was")
    if args.json:
        print_json({"file": path, "program": program, "forgotten": gone})
    else:
        print(f"forgotten: {format_count(gone, 'measurement')} of {what}, from {path}", file=sys.stderr)
    return 0


def kept_document(
    store: CostStore, programs: Iterable[str], method: str | None = None, basis: str | None = None
) -> dict[str, Any]:
    """The JSON form of what is kept; files that cannot be read are named, and why."""
    models, unreadable = [], []
    for program in programs:
        path = store.path(program)
        try:
            kept = store.kept(program)
        except MachineError as error:
            unreadable.append({"file": path, "error": str(error)})
            continue
        models += [_model(path, kind, seen) for kind, seen in kept.items() if seen and kind.is_of(method, basis)]
    return {"models": models, "unreadable": unreadable}


def in_short(found: dict[str, Any]) -> str:
    """All of it in one line."""
    models = found["models"]
    if not models:
        return "no program was measured; `qcthreads calibrate PROGRAM` measures one, and runs add what they took"
    of = format_count(len({one["program"] for one in models}), "program")
    return f"{format_count(len(models), 'model')} of {of}; `qcthreads calibrate --list` shows them"


def _model(path: object, kind: Kind, seen: Sequence[Observation]) -> dict[str, Any]:
    timed = [one for one in seen if one.wall_s is not None]
    return {
        "program": kind.program,
        "driver": kind.driver,
        "method": kind.method,
        "basis": kind.basis or None,
        "keywords": kind.keywords or None,
        "observations": len(seen),
        "timed": len(timed),
        "threads": _threads(seen),
        "timed_threads": _threads(timed),
        "basis_functions": _range(one.size.basis_functions for one in seen),
        "timed_basis_functions": _range(one.size.basis_functions for one in timed),
        "wall_s": _range(one.wall_s for one in timed if one.wall_s is not None),
        "file": path,
    }


def _threads(seen: Iterable[Observation]) -> list[int]:
    return sorted({one.width for one in seen})


def _range(values: Iterable[float]) -> list[float] | None:
    """The least and the greatest."""
    found = list(values)
    return [min(found), max(found)] if found else None


def _print(found: dict[str, Any]) -> None:
    for one in found["unreadable"]:
        print(f"qcthreads calibrate: {one['error']}", file=sys.stderr)
    if not found["models"]:
        print("no measured times of this are kept here", file=sys.stderr)
        return
    rows = [
        (
            one["program"],
            one["driver"],
            "/".join(filter(None, (one["method"], one["basis"]))),
            one["keywords"] or "",
            one["observations"],
            one["timed"],
            ",".join(map(str, one["timed_threads"])),
            "-".join(map(str, dict.fromkeys(one["timed_basis_functions"] or ()))),
            "disturbed" if one["wall_s"] is None else " to ".join(f"{s:.3g}" for s in dict.fromkeys(one["wall_s"])),
        )
        for one in found["models"]
    ]
    print_table(
        "", ("program", "driver", "method", "keywords", "measured", "timed", "threads", "sizes", "wall s"), rows
    )
    print(f"\nkept in {', '.join(dict.fromkeys(str(one['file']) for one in found['models']))}", file=sys.stderr)
