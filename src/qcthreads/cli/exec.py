"""``qcthreads exec``: a command under a lease; prints nothing on standard output, which is the command's."""

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from contextlib import suppress

from ..cpuset import CpuSet
from ..errors import InputError, QCThreadsError
from ..units import parse_size

if sys.platform != "win32":
    from ..execution import command
    from ..execution.command import Outcome, Prepared, Request
    from ..execution.foreground import end_by
    from ..execution.wrapping import Wrapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn
assert sys.platform != "win32", "Windows has no signals to pass on"

_FAILED = 125  # what env(1) and its like return for themselves

_EPILOG = """examples:
  qcthreads exec --threads 4 -- ./relax.sh water.inp
  qcthreads exec --threads 8 --program nwchem --wait -- mpirun -n 8 nwchem water.nw
  qcthreads exec --cpus 0-3 --memory 16GiB --json-file run.json -- psi4 water.dat
  qcthreads exec --threads 4 --dry-run -- psi4 water.dat    # a shell snippet for a job script

What comes behind `--` is run on CPUs that nobody else has leased, in the foreground, with its own standard input,
output, error and signals. N is all it may use: ranks times threads. Variables of yours that would have it use more are
replaced; a line on standard error says so.

exit status: the command's; ended by a signal, exec ends by the same. 125: exec itself failed; 126: the command cannot
be executed; 127: there is no such command."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``exec``."""
    parser.epilog = _EPILOG
    parser.usage = "qcthreads exec [options] -- COMMAND..."
    parser.add_argument("--program", metavar="P", help="what `qcthreads programs` knows about it is set, too")
    width = parser.add_mutually_exclusive_group()
    width.add_argument(
        "--threads", metavar="N", type=int, default=1, help="so many CPUs, chosen by topology; default 1"
    )
    width.add_argument("--cpus", metavar="LIST", help="exactly these CPUs, such as 0-3,8")
    parser.add_argument("--memory", metavar="SIZE", help="so much memory, such as 4GiB; default: none is counted")
    parser.add_argument("--gpus", metavar="N", type=int, default=0, help="so many GPUs; others are hidden; default 0")
    waits = parser.add_mutually_exclusive_group()
    waits.add_argument(
        "--wait", action="store_true", help="wait until the lease can be given; first come, first served"
    )
    waits.add_argument("--no-wait", action="store_true", help="fail where it cannot be given now (the default)")
    parser.add_argument("--timeout", metavar="S", type=float, help="wait so many seconds at most; implies --wait")
    parser.add_argument(
        "--busy",
        choices=("ignore", "avoid", "wait"),
        default="ignore",
        help="CPUs that others keep busy who hold no lease: do not look (the default), use others first, or wait until "
        "they are idle; to look takes 0.1 s",
    )
    parser.add_argument(
        "--strays",
        choices=("wait", "end"),
        default="wait",
        help="what the command leaves running is waited for (the default) or ended, before the lease is given back",
    )
    parser.add_argument(
        "--at-most", metavar="N", type=int, help="with --program: so many leases for it at once, on the whole node"
    )
    parser.add_argument(
        "--wrap",
        metavar="WORDS",
        help='put the command behind these: "apptainer exec image.sif", "conda run -n env"; what is set for it arrives '
        "inside",
    )
    parser.add_argument(
        "--setup", metavar="SHELL", help='a login shell (bash) runs this first, such as "module load nwchem"'
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print CPUs and environment as a shell snippet; run nothing"
    )
    parser.add_argument("--json-file", metavar="FILE", help="write what happened as one JSON document")


def execute(args: Namespace) -> int:
    """Run the command; its exit status."""
    if args.json_file is None:
        return _execute(args)
    from pathlib import Path

    from .output import check_writable

    check_writable("--json-file", Path(args.json_file))
    try:
        return _execute(args)
    except QCThreadsError as error:
        status = max(error.exit_code, _FAILED)
        document = {"command": args.command, "program": args.program, "error": str(error), "exit_status": status}
        _write(args.json_file, document)
        raise


def _execute(args: Namespace) -> int:
    request, outcome = _request(args), None
    try:
        if args.dry_run:
            with command.rehearsed(request, _say) as prepared:
                print(_snippet(prepared))
        else:
            with command.prepared(request, _say) as prepared:
                outcome = command.run(request, prepared, _say)
    except KeyboardInterrupt:  # while it waited
        _leave(-signal.SIGINT)
    if args.json_file is not None:
        _write(args.json_file, _document(request, prepared, outcome))
    if outcome is not None:
        _leave(outcome.exit_code)
    return 0


def _request(args: Namespace) -> Request:
    if not args.command:
        raise InputError("which command? It comes behind `--`: qcthreads exec --threads 2 -- ./prog input")
    if args.no_wait and args.timeout is not None:
        raise InputError("--no-wait and --timeout contradict each other; leave out one")
    if args.timeout is not None and not args.timeout >= 0:
        raise InputError(f"--timeout {args.timeout:g} is no time to wait; give seconds")
    if args.gpus < 0:
        raise InputError(f"--gpus {args.gpus} is no number of GPUs; give 0 or more")
    if args.cpus is not None and not args.cpus.strip():
        raise InputError("--cpus names no CPU; write for example 0-3,8")
    if args.at_most is not None and (args.program is None or args.at_most < 1):
        raise InputError(f"--at-most {args.at_most}: give 1 or more, and say of which program by --program")
    return Request(
        command=tuple(args.command),
        program=args.program,
        threads=args.threads,
        cpus=CpuSet.parse(args.cpus) if args.cpus is not None else None,
        memory_bytes=parse_size(args.memory) if args.memory is not None else 0,
        gpus=args.gpus,
        wait=args.wait or args.timeout is not None,
        timeout_s=args.timeout,
        busy=args.busy,
        strays=args.strays,
        at_most=args.at_most,
        wrapping=Wrapping.of(args.setup, args.wrap),
    )


def _say(line: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        if sys.stderr is not None:  # closed, and print() would take standard output, which is the command's
            print(f"qcthreads exec: {line}", file=sys.stderr, flush=True)


def _snippet(prepared: Prepared) -> str:
    """What has the same effect in a shell, also in another than this, but for the lease."""
    import shlex

    lease = prepared.lease
    lines = [f"# CPUs {lease.cpus}, memory node {lease.nodes}; nothing was run, and no lease is held"]
    if prepared.not_now:
        lines.append(f"# as on an empty node: {prepared.not_now}")
    lines.append(f"unset {' '.join(prepared.unset)}")
    variables = {**prepared.told.kept, **command.additions(prepared)}
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*lines, f"taskset -c {lease.cpus} {shlex.join(prepared.command)}"])


def _document(request: Request, prepared: Prepared, outcome: Outcome | None) -> dict[str, Any]:
    lease = prepared.lease
    document: dict[str, Any] = {
        "command": request.command,
        "program": request.program,
        "lease": {"cpus": lease.cpus, "nodes": lease.nodes, "memory_bytes": lease.memory_bytes, "gpus": lease.gpus},
        "waited_s": lease.waited_s,
        "waited_for": lease.waited_for,
        "notes": lease.notes,
        "environment": {
            "set": command.additions(prepared),
            "kept": prepared.told.kept,
            "removed": prepared.told.removed,
        },
        "dry_run": outcome is None,
        "not_now": prepared.not_now or None,
        "error": None,
    }
    if outcome is not None:
        document |= {
            "exit_status": _shell_status(outcome.exit_code),
            "signal": -outcome.exit_code if outcome.exit_code < 0 else None,
            "bound": outcome.bound,
            "wall_s": outcome.wall_s,
            "cpu_s": outcome.cpu_s,
            "peak_memory_bytes": outcome.peak_memory_bytes,
            "threads_at_once": outcome.threads_at_once,
            "strays": outcome.strays,
            "mismatches": outcome.mismatches,
        }
    return document


def _write(file: str, document: dict[str, Any]) -> None:
    """The command has run by now: its status is worth more than ours."""
    from .render import print_json

    try:
        with open(file, "w", encoding="utf-8") as opened:  # noqa: PTH123
            print_json(document, opened)
    except OSError as error:
        _say(f"--json-file {file} could not be written: {error.strerror}")


def _leave(exit_code: int) -> NoReturn:
    """End as the command did; by the same signal where one ended it."""
    if exit_code < 0:
        end_by(-exit_code)
    os._exit(_shell_status(exit_code))  # the interpreter would tidy up for 11 ms


def _shell_status(exit_code: int) -> int:
    return exit_code if exit_code >= 0 else 128 - exit_code
