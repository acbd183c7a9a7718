"""``qcthreads run``: options into a RunRequest, and workers started before the rest is imported; decides nothing."""

from __future__ import annotations

import gc
import json
import signal
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..cpuset import CpuSet
from ..errors import InputError, QCThreadsError
from ..execution.wrapping import Wrapping
from ..manybody.head_start import HeadStart
from ..manybody.request import RunRequest
from ..units import parse_size
from .records import check_files

_EPILOG = """INPUT is a QCManyBody ManyBodyInput (JSON), an .xyz file (angstrom), or a Psi4 molecule block with --
between fragments.

examples:
  qcthreads run examples/water16.xyz --method mp2 --basis 6-31g --max-nbody 2
  qcthreads run sodium_water.xyz --fragments "1;2-4;5-7" --charges 1,0,0 --method hf --basis 6-31g --bsse cp
  qcthreads run examples/water16.xyz --program psi4 --method hf --basis cc-pvdz --keywords '{"scf_type": "df"}'
  qcthreads run examples/water16.xyz --method mp2 --basis cc-pvtz --store water16.store
  qcthreads run examples/water16.xyz --method mp2 --basis cc-pvtz --store water16.store --resume
  qcthreads run input.json --workers 4 --threads 2 --memory 16GiB --json > result.json
  qcthreads run input.json --dry-run

exit codes: 0 done, 1 some calculation failed, 2 malformed input, 3 this machine cannot, 4 stopped and resumable"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``run``; an option left out means: the input says, or qcthreads decides."""
    parser.epilog = _EPILOG
    parser.add_argument("input", metavar="INPUT", type=Path, help="what to compute")

    what = parser.add_argument_group("what is computed")
    what.add_argument(
        "--fragments",
        metavar="ATOMS",
        help='for .xyz: atoms of each fragment from 1, "1-3;4-6" (default: by connectivity)',
    )
    what.add_argument("--charges", metavar="LIST", type=_list_of(float, "0,1,-1"), help="charge of each fragment: 0,1")
    what.add_argument(
        "--multiplicities",
        metavar="LIST",
        type=_list_of(int, "1,1,2"),
        help="multiplicity of each fragment: 1,2",
    )
    what.add_argument(
        "--program", help="QCEngine's name of the program (default: pyscf); `qcthreads programs` lists them"
    )
    what.add_argument("--method", help="for example hf or mp2")
    what.add_argument("--basis", help="for example cc-pvdz")
    what.add_argument("--max-nbody", metavar="N", type=_positive(int), help="highest order of the expansion")
    what.add_argument("--bsse", metavar="LIST", type=_list_of(str, "nocp,cp"), help="nocp, cp, or both: nocp,cp")
    what.add_argument(
        "--keywords", metavar="JSON", type=_keywords, default={}, help="the program's keywords: JSON text, or @FILE"
    )

    how = parser.add_argument_group("how it is run")
    how.add_argument("--workers", metavar="N", type=_positive(int), help="calculations side by side")
    how.add_argument("--threads", metavar="T", type=_positive(int), help="threads of each calculation")
    how.add_argument("--strategy", metavar="NAME", help="who decides workers and threads (default: auto)")
    how.add_argument(
        "--max-total-threads", metavar="N", type=_positive(int), help="never more threads than this in all"
    )
    how.add_argument("--memory", metavar="SIZE", type=_size, help="memory of the whole run, for example 16GiB")
    how.add_argument("--cpus", metavar="LIST", type=_cpus, help="use only these PUs: 0-3,8")
    how.add_argument("--leave", metavar="N", type=_positive(int, zero=True), default=0, help="leave N PUs to others")
    how.add_argument("--smt", action="store_true", help="give threads every PU of a core (default: one PU per core)")
    how.add_argument(
        "--busy",
        choices=("avoid", "wait", "ignore"),
        default="avoid",
        help="PUs that others keep busy: use others first (default), wait until they are idle, or do not look",
    )
    how.add_argument(
        "--at-most",
        metavar="LIST",
        type=_at_most,
        default={},
        help="so many calculations of a program at once on the whole node, for its licences: 2, or orca=2,psi4=8",
    )
    how.add_argument(
        "--setup", metavar="SHELL", help='a login shell (bash) runs this before each worker: "module load nwchem"'
    )
    how.add_argument(
        "--wrap", metavar="WORDS", help='put each worker behind these words: "conda run --no-capture-output -n env"'
    )
    how.add_argument("--no-affinity", action="store_true", help="count PUs, but bind nothing to them")
    how.add_argument("--scratch", metavar="DIR", type=Path, help="directory for the programs' temporary files")
    how.add_argument("--store", metavar="FILE", type=Path, help="keep every finished calculation in FILE")
    how.add_argument("--resume", action="store_true", help="compute only what FILE lacks")
    how.add_argument(
        "--retries", metavar="N", type=_positive(int, zero=True), default=0, help="tries after a failure (default: 0)"
    )
    how.add_argument("--timeout", metavar="SECONDS", type=_positive(float), help="longest time for one calculation")
    how.add_argument("--no-learn", action="store_true", help="do not keep what calculations took for later runs")

    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--dry-run", action="store_true", help="print what would be done, and stop")
    shown.add_argument(
        "--csv", metavar="FILE", type=Path, help="one row per calculation; with --dry-run of those to come"
    )
    shown.add_argument(
        "--report", metavar="FILE.html", type=Path, help="one page: who ran where and when, and how well"
    )
    shown.add_argument("--trace", metavar="FILE.json", type=Path, help="the same for Perfetto (ui.perfetto.dev)")
    shown.add_argument(
        "--metrics", metavar="FILE.prom", type=Path, help="keep FILE up to date for Prometheus' node exporter"
    )
    shown.add_argument(
        "--json", action="store_true", help="one JSON document on standard output; progress stays on standard error"
    )


def execute(args: Namespace) -> int:
    """Prepare, run and print; 1 when a calculation failed, 4 when stopped."""
    check_files(args)
    request, run = request_of(args), None
    gc.disable()  # until everything is imported and read: little of it is garbage
    with _terminated_like_interrupted():
        try:
            with HeadStart(request, warm=not args.dry_run) as head_start:
                from . import running  # which takes as long to import as all this

                with running.Run(request, head_start) as run:
                    gc.freeze()  # nor to be looked through later, at the end of the process: that takes 0.2 s
                    gc.enable()
                    report = running.compute(args, run)
        except KeyboardInterrupt:
            print(f"qcthreads: stopped; {_how_to_go_on(args.store)}", file=sys.stderr)
            if run is not None:
                with suppress(KeyboardInterrupt):  # who says it again does not want to be told
                    running.tell_so_far(args, run)
            return 4
        finally:
            gc.enable()
    return 0 if report is None else running.show(args, report)


def request_of(args: Namespace) -> RunRequest:
    """The request that the options make; InputError where they contradict each other."""
    if args.strategy is not None and (args.workers or args.threads):
        raise InputError("--strategy decides workers and threads: give either --strategy, or --workers and --threads")
    if args.resume and args.store is None:
        raise InputError("--resume goes on with a store: name it with --store FILE")
    return RunRequest(
        input=args.input,
        fragments=args.fragments,
        charges=args.charges,
        multiplicities=args.multiplicities,
        program=args.program,
        method=args.method,
        basis=args.basis,
        max_nbody=args.max_nbody,
        bsse=args.bsse,
        keywords=args.keywords,
        workers=args.workers,
        threads=args.threads,
        strategy=(args.strategy or "auto").replace("-", "_"),
        max_total_threads=args.max_total_threads,
        memory_bytes=args.memory,
        cpus=args.cpus,
        leave=args.leave,
        busy=args.busy,
        smt=args.smt,
        affinity=not args.no_affinity,
        learn=not args.no_learn,
        at_most=args.at_most,
        wrapping=Wrapping.of(args.setup, args.wrap),
        scratch=args.scratch,
        store=args.store,
        resume=args.resume,
        retries=args.retries,
        timeout_s=args.timeout,
    )


def _list_of(kind: Callable[[str], Any], example: str) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        try:
            return [kind(part.strip()) for part in text.split(",")]
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise ArgumentTypeError(f"not {what} separated by commas: {text!r}; write for example {example}") from None

    return parse


def _at_most(text: str) -> dict[str, int]:
    limits = {}
    for part in text.split(","):
        program, _, number = part.rpartition("=")
        if not number.strip().isdigit() or int(number) < 1:
            raise ArgumentTypeError(f"not a number of calculations: {part!r}; write for example 2, or orca=2,psi4=8")
        limits[program.strip().lower()] = int(number)
    return limits


def _positive(kind: Callable[[str], Any], *, zero: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ArgumentTypeError(f"not a number: {text!r}") from None
        if not (value > 0 or (zero and value == 0)):
            raise ArgumentTypeError(f"{'below zero' if zero else 'not above zero'}: {text}")
        return value

    return parse


def _keywords(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(Path(text[1:]).read_text(encoding="utf-8-sig") if text.startswith("@") else text)
    except OSError as error:
        raise ArgumentTypeError(f"cannot read {text[1:]}: {error.strerror}") from None
    except ValueError as error:
        raise ArgumentTypeError(f"not JSON: {error}; write for example '{{\"frozen_core\": true}}'") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"not a JSON object but {type(value).__name__}: {text!r}")
    return value


def _size(text: str) -> int:
    try:
        size_bytes = parse_size(text)
    except QCThreadsError as error:
        raise ArgumentTypeError(str(error)) from None
    if size_bytes < 1024**2 and text.strip().isdigit():
        raise ArgumentTypeError(f"{text} is {text} bytes, too little for any calculation; sizes have units: {text}GiB")
    return size_bytes


def _cpus(text: str) -> CpuSet:
    try:
        cpus = CpuSet.parse(text)
    except QCThreadsError:
        raise ArgumentTypeError(f"not a list of PUs: {text!r}; write for example 0-3,8") from None
    if not cpus:
        raise ArgumentTypeError("an empty list of PUs; write for example 0-3,8")
    return cpus


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, which batch systems send before they kill, ends a run as orderly as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _how_to_go_on(store: Path | None) -> str:
    if store is None:
        return "nothing was kept; with --store FILE a run can be resumed"
    return f"what is finished is in {store}: run the same command with --resume to go on"
