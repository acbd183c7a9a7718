"""``qcthreads export``: the results in a store as CSV, JSON or ZIP, to stdout or a file; never writes to it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import InputError
from ..execution.store import open_store
from .output import check_writable, explained

_EPILOG = """examples:
  qcthreads export water16.store --to csv > water16.csv
  qcthreads export water16.store --to zip --output water16.zip"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``export``."""
    parser.epilog = _EPILOG
    parser.add_argument("store", metavar="STORE", type=Path, help="the file given to `qcthreads run --store`")
    parser.add_argument(
        "--to", required=True, choices=("csv", "json", "zip"), help="one row, one object or one file per calculation"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write to FILE instead of standard output")


def execute(args: Namespace) -> int:
    """Write the export where it was asked for."""
    if args.output is None and args.to == "zip" and sys.stdout.isatty():
        raise InputError("--to zip writes binary data: give --output FILE, or redirect standard output")
    with open_store(args.store) as store:
        if args.output is not None:
            check_writable("--output", args.output, ("the store", args.store))
            with explained("--output", args.output):
                store.export(args.to, args.output)
            return 0
        with tempfile.TemporaryDirectory(prefix="qcthreads-") as folder:
            made = Path(folder) / f"export.{args.to}"
            store.export(args.to, made)
            sys.stdout.flush()
            with made.open("rb") as source:
                shutil.copyfileobj(source, sys.stdout.buffer)
    return 0
