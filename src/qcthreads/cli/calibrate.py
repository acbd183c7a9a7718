"""``qcthreads calibrate``: measures here what planning has to know; parses and dispatches, and measures nothing."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ..errors import InputError

_EPILOG = """examples:
  qcthreads calibrate --machine          # what the memory delivers to how many cores; takes seconds to minutes
  qcthreads calibrate --machine --json"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``calibrate``."""
    parser.epilog = _EPILOG
    parser.add_argument("--machine", action="store_true", help="the bandwidth of this machine's memory")
    parser.add_argument("--wait", action="store_true", help="wait until nobody else holds a lease of any CPU")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def execute(args: Namespace) -> int:
    """Measure what was asked for, print and store it."""
    if args.machine:
        from .calibrate_machine import execute as calibrate_machine

        return calibrate_machine(args)
    raise InputError("calibrate what? Give --machine")
