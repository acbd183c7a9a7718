"""``qcthreads calibrate``: what planning has to know of this machine; parses and dispatches, and measures nothing."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ..errors import InputError

_EPILOG = """examples:
  qcthreads calibrate pyscf --method mp2 --basis cc-pvdz   # seconds and memory by size and width; about a minute
  qcthreads calibrate psi4 --method hf --basis cc-pvdz --driver gradient
  qcthreads calibrate --list             # what was measured of programs, by this command and by runs
  qcthreads calibrate --forget pyscf --method mp2 --basis cc-pvdz
  qcthreads calibrate --machine          # what the memory delivers to how many cores; takes seconds to minutes
  qcthreads calibrate --machine --json"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``calibrate``."""
    parser.epilog = _EPILOG
    parser.add_argument("program", nargs="?", help="what its calculations take, by size and width")
    parser.add_argument("--method", help="of the program's calculations")
    parser.add_argument("--basis", help="and their basis set, where it has basis sets")
    parser.add_argument(
        "--driver", choices=("energy", "gradient", "hessian"), help="what they compute (default energy)"
    )
    parser.add_argument("--seconds", type=float, help="how long to measure a program, about (default 60)")
    parser.add_argument("--list", action="store_true", help="show what was measured of programs, or of PROGRAM")
    parser.add_argument("--forget", action="store_true", help="remove what was measured of PROGRAM, or of this method")
    parser.add_argument("--machine", action="store_true", help="the bandwidth of this machine's memory")
    parser.add_argument("--wait", action="store_true", help="with --machine: until nobody else holds a lease of a CPU")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def execute(args: Namespace) -> int:
    """Measure what was asked for, print and store it; or show or remove what was."""
    _check_one_of_each(args)
    if args.list or args.forget:
        from . import calibrate_kept

        return calibrate_kept.show(args) if args.list else calibrate_kept.forget(args)
    if args.machine:
        from .calibrate_machine import execute as calibrate_machine

        return calibrate_machine(args)
    if args.program:
        from .calibrate_program import execute as calibrate_program

        return calibrate_program(args)
    raise InputError("calibrate what? Name a program, or give --machine")


def _check_one_of_each(args: Namespace) -> None:
    """InputError for options that contradict each other, or would change nothing."""
    asked = [f"--{name}" for name in ("list", "forget", "machine") if getattr(args, name)]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} are different things: one at a time")
    if args.machine and args.program:
        raise InputError("--machine measures the machine, and PROGRAM a program: one at a time")
    if args.machine:
        for option in ("method", "basis", "driver", "seconds"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option} is of a program's calculations, and --machine has none: leave it out")
    if (args.list or args.forget) and (args.seconds is not None or args.driver is not None or args.wait):
        raise InputError(f"{asked[0]} measures nothing: leave --driver, --seconds and --wait out")
    if args.wait and not args.machine and args.program:
        raise InputError("--wait is for --machine; a program is measured beside others, and waits for CPUs anyway")
