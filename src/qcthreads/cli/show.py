"""``qcthreads show``: everything a store holds about one calculation, as JSON; never writes to the store."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..execution.labels import find_label
from ..execution.store import open_store
from .render import print_json

_EPILOG = """LABEL is the name that the tables print: 1+2; with counterpoise 1@1+2+3+4 for fragment 1 in the basis of
all four, for which 1@ will do; or QCManyBody's label: model chemistry, fragments, fragments whose basis is there.

examples:
  qcthreads show water16.store 1+2
  qcthreads show water16.store '["(auto)", [1, 2], [1, 2]]'"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``show``."""
    parser.epilog = _EPILOG
    parser.add_argument("store", metavar="STORE", type=Path, help="the file given to `qcthreads run --store`")
    parser.add_argument("label", metavar="LABEL", help="the calculation, for example 1+2")
    parser.add_argument("--json", action="store_true", help="accepted for uniformity: the answer is JSON anyway")


def execute(args: Namespace) -> int:
    """Print what the store holds."""
    with open_store(args.store) as store:
        print_json(store.show(find_label(args.label, store.labels(), str(args.store))))
    return 0
