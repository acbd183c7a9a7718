"""``qcthreads verify``: whether a program obeys its settings here, by running it; measures nothing itself."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..execution import sample
from ..execution.verify import DEFAULT_REPEATS, TOLERANCE_HARTREE, Measured, Verification, verify
from ..leases import LeaseBook, node_book
from ..programs import registry
from ..units import format_count, format_size, parse_size
from .render import print_json, print_table

_EPILOG = """examples:
  qcthreads verify psi4
  qcthreads verify pyscf --method mp2 --basis cc-pvdz
  qcthreads verify orca --input job.inp    # where job.inp says: %pal nprocs {ranks} end
  qcthreads verify nwchem --json > nwchem.json

A small calculation is run at widths of 1, 2, 4, ... up to what may be used, and twice at the same time. Threads that
really worked, their CPUs, memory and energies are held against what was asked. FILE is a QCSchema AtomicInput (JSON) or
an .xyz file; of a program that QCEngine does not drive its own input, in which {threads}, {ranks} and {width} are
filled in.

exit status: 0: the program obeys; 1: it does not, or failed; 2: malformed usage; 3: this machine cannot, for example
because the program is not installed."""

_MEMORY_BYTES = 2 * 1024**3


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``verify``."""
    parser.epilog = _EPILOG
    parser.add_argument("program", help="its name in `qcthreads programs`")
    parser.add_argument("--method", help="another than that of the built-in calculation")
    parser.add_argument("--basis", help="another basis set")
    parser.add_argument("--input", metavar="FILE", type=Path, help="a calculation of your own, of a second or more")
    parser.add_argument(
        "--threads", metavar="N", type=int, help="the widest width; default: all that may be used, one per core"
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="granted to each calculation; default 2GiB, or half of what may be used"
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=DEFAULT_REPEATS,
        help=f"measurements of each width; default {DEFAULT_REPEATS}, the fewest for an interval of 95 %%",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def execute(args: Namespace) -> int:
    """Verify, and say what was found."""
    for option, value in (("--threads", args.threads), ("--repeats", args.repeats)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value} is too few; give 1 or more")
    spec = registry.get(registry.known(args.program))
    installation = registry.require(spec.name, through_qcengine=spec.qcengine)
    if args.input is None:
        job = sample.built_in(spec, args.method, args.basis)
    else:
        job = sample.from_file(spec, args.input, args.method, args.basis)
    book = node_book(busy="avoid", orphans="end")
    if args.threads is not None:
        book.check(args.threads)
    memory_bytes = parse_size(args.memory) if args.memory else min(_MEMORY_BYTES, book.memory_bytes // 2)
    seen = verify(spec, job, book, memory_bytes=memory_bytes, repeats=args.repeats, widest=args.threads, say=_say)
    version = registry.version(installation) or seen.version_told
    verdict = _verdict(spec.title, version, seen)
    if args.json:
        print_json(_document(spec.name, version, book, seen, verdict))
    else:
        _print(seen, verdict)
    return 0 if seen.obeys else 1


def _say(line: str) -> None:
    print(f"qcthreads verify: {line}", file=sys.stderr, flush=True)


def _verdict(title: str, version: str | None, seen: Verification) -> str:
    who = f"{title} {version}" if version else title
    if not seen.obeys:
        return f"{who} does NOT obey: {'; '.join(seen.problems)}"
    widths = ", ".join(str(one.threads) for one in seen.widths)
    two = "; two at the same time did not meet" if seen.two_at_once else ""
    return f"{who} obeys: at a width of {widths} as many threads worked, inside the lease{two}"


def _document(program: str, version: str | None, book: LeaseBook, seen: Verification, verdict: str) -> dict[str, Any]:
    energies = any(one.energy_hartree is not None for one in seen.widths)
    return {
        "program": program,
        "version": version,
        "qcthreads": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "platform": sys.platform,
        "cpus_usable": len(book.usable),
        "obeys": seen.obeys,
        "verdict": verdict,
        "tolerance_hartree": TOLERANCE_HARTREE if energies else None,
        "interval_method": "order statistics around the median (sign test) of ratios of neighbouring measurements",
        **{name: getattr(seen, name) for name in Verification.__dataclass_fields__},
    }


def _print(seen: Verification, verdict: str) -> None:
    print(f"{seen.job}; {format_count(seen.repeats, 'measurement')} of each width")
    speedups = {one.threads: one for one in seen.scaling}
    rows = [
        (*_row(str(one.threads), one), speedups[one.threads].speedup, speedups[one.threads].efficiency)
        for one in seen.widths
    ]
    rows += [(*_row(f"{one.threads}, one of two", one), "", "") for one in seen.two_at_once]
    columns = ("width", "worked", "leased", "seen on", "wall s", "CPU s", "memory", "energy", "speedup", "efficiency")
    print_table("", columns, rows)
    coverage, granted = seen.scaling[0].speedup.coverage, format_size(seen.widths[0].memory_granted_bytes)
    print(
        f"[low, high]: the median lies between them with {coverage:.0%} (order statistics, sign test); energies may "
        f"differ by {TOLERANCE_HARTREE:g} hartree; memory: the peak, of {granted} granted"
    )
    if seen.side_by_side is not None:
        print(f"two at the same time took {seen.side_by_side} times as long as one alone at that width")
    if seen.scaling[-1].speedup.high < 1 and coverage > 0.9:
        print(f"a width of {seen.scaling[-1].threads} is slower than {seen.scaling[0].threads}: use the narrower one")
    for note in seen.notes:
        print(f"note: {note}")
    print(verdict)


def _row(width: str, one: Measured) -> tuple[object, ...]:
    ranks = f" in {one.processes_working} processes" if one.processes_working > 1 else ""
    return (
        width,
        f"{one.threads_working}{ranks}",
        one.cpus_leased,
        one.cpus_seen,
        f"{sorted(one.wall_s)[len(one.wall_s) // 2]:.2f}",
        f"{sorted(one.cpu_s)[len(one.cpu_s) // 2]:.2f}",
        format_size(one.memory_peak_bytes),
        "-" if one.energy_hartree is None else f"{one.energy_hartree:.8f}",
    )
