"""``qcthreads calibrate PROGRAM``: what its calculations take by size and width, shown and kept; fits nothing."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MachineError, QCThreadsError
from ..execution.calculation import Progress
from ..execution.cost_store import CostStore, Kind
from ..execution.observing import Watching
from ..leases import process_book
from ..manybody.calibration import Measurement, Rung, calibrate, engines_of, widths_of
from ..monitoring.findings import CONTENDED_SHARE
from ..monitoring.statistics import Finding
from ..planning.costs import CostModel, Observation, Size
from ..programs import registry
from ..units import format_count
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
    store = CostStore(book.machine)
    store.check(kind.program)
    left_out: list[QCThreadsError] = []
    so_far: dict[tuple[str, int], Measurement] = {}

    def tell(rung: Rung, width: int, best: Measurement) -> None:
        so_far[rung.label, width] = best
        _tell(f"{rung.label}, {width} wide: {best.wall_s:.2f} s")

    try:
        with engines_of(widths, book, watching, on_progress=_say) as engines:
            seconds = _SECONDS if args.seconds is None else args.seconds
            seen = calibrate(kind, engines, seconds, watching=watching, on_rung=tell, on_left_out=left_out.append)
    except KeyboardInterrupt:
        _keep_so_far(store, kind, [*so_far.values()])
        raise
    findings = _findings(seen, left_out)
    try:
        path = store.add(kind, _observations(seen))
    except MachineError:  # what was measured is shown all the same
        _show(args.json, None, kind, CostModel(method=kind.method, observations=_observations(seen)), seen, findings)
        raise
    _show(args.json, path, kind, store.model(kind), seen, findings)
    return 0 if any(not one.disturbed for one in seen) else MachineError.exit_code


def _keep_so_far(store: CostStore, kind: Kind, seen: Sequence[Measurement]) -> None:
    """Of a calibration that is stopped, which its exit code says even where nothing can be kept."""
    if not seen:
        return
    try:
        kept = _kept(store.add(kind, _observations(seen)), seen)
        said = f"{format_count(len(seen), 'measurement')} until then: {kept}"
    except MachineError as error:
        said = str(error)
    _tell("")
    print(f"qcthreads calibrate: {said}", file=sys.stderr, flush=True)


def disturbed_in_words(seen: Sequence[Measurement]) -> str:
    """How many of what was measured others disturbed, by how much, and what to do; empty: none."""
    disturbed = [one for one in seen if one.disturbed]
    if not disturbed:
        return ""
    others = max((one.others_cpus for one in disturbed if one.others_cpus is not None), default=0.0)
    busy = f", and others kept up to {others:.2g} CPUs busy that it may use" if others else ""
    most = max(one.waited for one in disturbed)
    return (
        f"others disturbed {len(disturbed)} of {format_count(len(seen), 'measurement')}: threads waited for a CPU up "
        f"to {most:.0%} of the time that they wanted to run{busy}; beyond "
        f"{CONTENDED_SHARE:.0%} no time is kept, as plans would be wrong; measure again when these CPUs are idle "
        "(`qcthreads top` shows who uses them), or on others (taskset)"
    )


def _findings(seen: Sequence[Measurement], left_out: Sequence[QCThreadsError]) -> list[Finding]:
    """What is to be known of what was measured, and why some was not."""
    failed = [Finding(kind="note", message=f"left out: {_in_short(str(error))}") for error in left_out]
    said = disturbed_in_words(seen)
    return [*failed, *([Finding(kind="contended", message=said)] if said else [])]


def _in_short(message: str) -> str:
    """Without what the program printed between its first line and its last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1])))


def _observations(seen: Sequence[Measurement]) -> tuple[Observation, ...]:
    return tuple(one.observation for one in seen)


def _show(
    as_json: bool,
    path: Path | None,
    kind: Kind,
    model: CostModel,
    seen: Sequence[Measurement],
    findings: Sequence[Finding],
) -> None:
    if as_json:
        print_json({"file": path, **_document(kind, model, seen, findings)})
    else:
        _print(kind, model, seen)
    for finding in findings:
        print(f"\nqcthreads calibrate: {finding.message}", file=sys.stderr)
    if path is not None and not as_json:
        print(f"\n{_kept(path, seen)}", file=sys.stderr)


def _kept(path: Path, seen: Sequence[Measurement]) -> str:
    what = "peaks alone are kept" if all(one.disturbed for one in seen) else "kept"
    return f"{what} in {path}"


def _kind(args: Namespace, program: str) -> Kind:
    spec = registry.get(program)
    method = args.method or spec.usual_method
    if not method:
        raise InputError(f"which method of {spec.title}? Give --method, for example --method mp2")
    if spec.takes_basis and not args.basis:
        raise InputError(f"which basis set for {method} with {spec.title}? Give --basis, for example --basis cc-pvdz")
    if args.basis and not spec.takes_basis:
        raise InputError(f"--basis {args.basis} was given, but {spec.title} has no basis sets; leave it out")
    return Kind(program, args.driver or "energy", method, args.basis or "")


def _say(event: Progress) -> None:
    """What is waited for: others' leases, for however long."""
    if event.kind == "waits":
        _tell("")
        print(f"qcthreads calibrate: {event.message}", file=sys.stderr, flush=True)


def _tell(doing: str) -> None:
    """On a terminal, in place of what was told before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{doing}", end="", file=sys.stderr, flush=True)


def _document(kind: Kind, model: CostModel, seen: Sequence[Measurement], findings: Sequence[Finding]) -> dict[str, Any]:
    law = model.seconds_law
    best = None if law is None else max(law.laws, key=lambda one: one.log_evidence)
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
                "waited_share": one.waited,
                "others_cpus": one.others_cpus,
                "disturbed": one.disturbed,
            }
            for one in seen
        ],
        "exponent": best and best.coefficients[1],
        "scatter": best and best.scatter,
        "speedup": [
            {"basis_functions": functions, "by_threads": {str(w): 1 / share for w, share in speedup.table.items()}}
            for functions, speedup in model.speedups
        ],
        "observations": len(model.observations),
        "findings": findings,
    }


def _print(kind: Kind, model: CostModel, seen: Sequence[Measurement]) -> None:
    _tell("")
    at_one = {one.size: one for one in seen if one.width == 1}
    rows = []
    for one in seen:
        alone, predicted_s = at_one[one.size], _predicted(model, one.size, one.width)
        modelled = "-" if predicted_s is None else f"{predicted_s:.3f}"
        speedup, bar = "-", f"disturbed: waited {one.waited:.0%}" if one.disturbed else ""
        if not (one.disturbed or alone.disturbed):
            faster = alone.wall_s / one.wall_s
            speedup, bar = f"{faster:.2f}", "#" * max(1, round(_BAR * faster / max(other.width for other in seen)))
        rows.append(
            (one.size.basis_functions, one.size.electrons, one.width, f"{one.wall_s:.3f}", modelled, speedup, bar)
        )
    print(f"{kind.program} {kind.model}, {kind.driver}, one calculation at a time")
    names = ("functions", "electrons", "threads", "wall s", "model s", "speedup", "")
    first = 0 if kind.basis else 1  # without a basis electrons are the size
    print_table("", names[first:], [row[first:] for row in rows])
    if kind.basis:
        print("functions are counted as in cc-pVDZ, whatever the basis set: only ratios matter")


def _predicted(model: CostModel, size: Size, width: int) -> float | None:
    """``None``: all that was measured was disturbed."""
    estimate = model.seconds(size, width)
    return None if estimate is None else estimate.value
