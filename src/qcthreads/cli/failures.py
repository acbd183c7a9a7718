"""``qcthreads failures``: which calculations failed and what their programs said; never writes to the store."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..execution.store import open_store
from ..manybody.report import grouped
from .render import print_json

_EPILOG = """examples:
  qcthreads failures water16.store
  qcthreads failures water16.store --json"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``failures``."""
    parser.epilog = _EPILOG
    parser.add_argument("store", metavar="STORE", type=Path, help="the file given to `qcthreads run --store`")
    parser.add_argument("--json", action="store_true", help="one JSON document: the error of each label")


def execute(args: Namespace) -> int:
    """Print every error with what failed with it; that there are some is no error of this command."""
    with open_store(args.store) as store:
        failures = store.failures()
    if args.json:
        print_json(failures)
    elif not failures:
        print("no calculation failed")
    for error, labels in () if args.json else grouped(failures).items():
        print(f"{', '.join(labels)}\n  " + "\n  ".join(error.splitlines()))
    return 0
