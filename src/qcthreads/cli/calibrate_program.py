"""``qcthreads calibrate PROGRAM``: what its calculations take by size and width, shown and kept; fits nothing."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from ..errors import InputError
from ..execution.calculation import Progress
from ..execution.cost_store import CostStore, Kind
from ..execution.observing import Watching
from ..leases import process_book
from ..manybody.calibration import Rung, calibrate, engines_of, widths_of
from ..planning.costs import CostModel, Observation, Size
from ..programs import registry
from .render import print_json, print_table

_BAR = 40  # characters
_SECONDS = 60.0


def execute(args: Namespace) -> int:
    """Measure, keep and print."""
    spec = registry.get(registry.known(args.program))
    registry.require(spec.name)
    kind = _kind(args, spec.name)
    book = process_book()
    widths = widths_of(spec.name, len(book.usable))
    watching = Watching()
    with engines_of(widths, book, watching, on_progress=_say) as engines:
        seconds = _SECONDS if args.seconds is None else args.seconds
        seen = calibrate(kind, engines, seconds, watching=watching, on_rung=_tell)
    store = CostStore(book.machine)
    path = store.add(kind, seen)
    model = store.model(kind)
    if args.json:
        print_json({"file": path, **_document(kind, model, seen)})
    else:
        _print(kind, model, seen)
        print(f"\nkept in {path}", file=sys.stderr)
    return 0


def _kind(args: Namespace, program: str) -> Kind:
    spec = registry.get(program)
    method = args.method or spec.usual_method
    if not method:
        raise InputError(f"which method of {spec.title}? Give --method, for example --method mp2")
    if spec.takes_basis and not args.basis:
        raise InputError(f"which basis set for {method} with {spec.title}? Give --basis, for example --basis cc-pvdz")
    if args.basis and not spec.takes_basis:
        raise InputError(f"--basis {args.basis} was given, but {spec.title} has no basis sets; leave it out")
    return Kind(program, "energy", method, args.basis or "")


def _say(event: Progress) -> None:
    """What is waited for: others' leases, for however long."""
    if event.kind == "waits":
        cleared = "\r\033[K" if sys.stderr.isatty() else ""
        print(f"{cleared}qcthreads calibrate: {event.message}", file=sys.stderr, flush=True)


def _tell(rung: Rung, width: int, wall_s: float) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{rung.label}, {width} wide: {wall_s:.2f} s", end="", file=sys.stderr, flush=True)


def _document(kind: Kind, model: CostModel, seen: list[Observation]) -> dict[str, Any]:
    law = model.seconds_law
    assert law is not None
    best = max(law.laws, key=lambda one: one.log_evidence)
    return {
        "program": kind.program,
        "driver": kind.driver,
        "method": kind.method,
        "basis": kind.basis or None,
        "measured": [
            {
                "basis_functions": one.size.basis_functions,
                "electrons": one.size.electrons,
                "threads": one.width,
                "wall_s": one.wall_s,
                "peak_memory_bytes": one.peak_memory_bytes,
                "peak_scratch_bytes": one.peak_scratch_bytes,
                "predicted_s": _predicted(model, one.size, one.width),
            }
            for one in seen
        ],
        "exponent": best.coefficients[1],
        "scatter": best.scatter,
        "speedup": [
            {"basis_functions": functions, "by_threads": {str(w): 1 / share for w, share in speedup.table.items()}}
            for functions, speedup in model.speedups
        ],
        "observations": len(model.observations),
    }


def _print(kind: Kind, model: CostModel, seen: list[Observation]) -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    at_one = {one.size: one.wall_s for one in seen if one.width == 1}
    rows = []
    for one in seen:
        speedup = at_one[one.size] / one.wall_s
        bar = "#" * max(1, round(_BAR * speedup / max(other.width for other in seen)))
        rows.append(
            (one.size.basis_functions, one.size.electrons, one.width, f"{one.wall_s:.3f}",
             f"{_predicted(model, one.size, one.width):.3f}", f"{speedup:.2f}", bar)
        )  # fmt: skip
    print(f"{kind.program} {kind.method}{'/' + kind.basis if kind.basis else ''}, energy, one calculation at a time")
    names = ("functions", "electrons", "threads", "wall s", "model s", "speedup", "")
    first = 0 if kind.basis else 1  # without a basis electrons are the size
    print_table("", names[first:], [row[first:] for row in rows])
    if kind.basis:
        print("functions are counted as in cc-pVDZ, whatever the basis set: only ratios matter")


def _predicted(model: CostModel, size: Size, width: int) -> float:
    estimate = model.seconds(size, width)
    assert estimate is not None
    return estimate.value
