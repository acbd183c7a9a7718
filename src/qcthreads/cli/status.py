"""``qcthreads status``: how far a run is, also while it goes on; never writes to the store."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..execution.store import open_store
from .render import print_json

_EPILOG = """examples:
  qcthreads status water16.store
  watch qcthreads status water16.store"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``status``."""
    parser.epilog = _EPILOG
    parser.add_argument("store", metavar="STORE", type=Path, help="the file given to `qcthreads run --store`")
    parser.add_argument("--json", action="store_true", help="one JSON document: total, finished, failed, running")


def execute(args: Namespace) -> int:
    """Print the counts."""
    with open_store(args.store) as store:
        status = store.status()
    if args.json:
        print_json(status)
    else:
        print(", ".join(f"{status[name]} {name}" for name in ("total", "finished", "failed", "running")))
    return 0
