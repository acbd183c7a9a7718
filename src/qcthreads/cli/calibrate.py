"""``qcthreads calibrate``: measures here what planning has to know; parses and dispatches, and measures nothing."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ..errors import InputError

_EPILOG = """examples:
  qcthreads calibrate pyscf --method mp2 --basis cc-pvdz   # seconds and memory by size and width; about a minute
  qcthreads calibrate --machine          # what the memory delivers to how many cores; takes seconds to minutes
  qcthreads calibrate --machine --json"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``calibrate``."""
    parser.epilog = _EPILOG
    parser.add_argument("program", nargs="?", help="what its calculations take, by size and width")
    parser.add_argument("--method", help="of the program's calculations")
    parser.add_argument("--basis", help="and their basis set, where it has basis sets")
    parser.add_argument("--seconds", type=float, help="how long to measure a program, about (default 60)")
    parser.add_argument("--machine", action="store_true", help="the bandwidth of this machine's memory")
    parser.add_argument("--wait", action="store_true", help="with --machine: until nobody else holds a lease of a CPU")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def execute(args: Namespace) -> int:
    """Measure what was asked for, print and store it."""
    if args.machine and args.program:
        raise InputError("--machine measures the machine, and PROGRAM a program: one at a time")
    if args.machine:
        for option in ("method", "basis", "seconds"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option} is of a program's calculations, and --machine has none: leave it out")
        from .calibrate_machine import execute as calibrate_machine

        return calibrate_machine(args)
    if args.program:
        if args.wait:
            raise InputError("--wait is for --machine; a program is measured beside others, and waits for CPUs anyway")
        from .calibrate_program import execute as calibrate_program

        return calibrate_program(args)
    raise InputError("calibrate what? Name a program, or give --machine")
