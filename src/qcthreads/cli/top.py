"""``qcthreads top``: what runs on this node now, under which lease and how well; looks, and holds up nobody."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from typing import Any

from ..errors import InputError
from ..host import read_machine
from ..monitoring.live import LeaseNow, Live, Now
from .leases import lease_document, place_document
from .render import print_json
from .top_frame import SIGNS, frame

_EPILOG = """keys: q quit, t threads or leases, p pause, + and - slower and faster, arrows scroll

The letters under the CPUs are those of the leases below. Efficiency is the CPU time of its processes, for every
CPU of the lease; wait the share of the time that they wanted to run that they waited for a CPU. What this user may not
see, or has not been seen for a whole interval yet, is a dash.

examples:
  qcthreads top
  qcthreads top --interval 5
  qcthreads top --once          # one frame as text, after one interval; so also where there is no terminal
  qcthreads top --json          # the same as one JSON document"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``top``."""
    parser.epilog = _EPILOG
    parser.add_argument("--interval", metavar="S", type=float, default=1.0, help="seconds between two looks; default 1")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--once", action="store_true", help="print one frame as text")
    form.add_argument("--json", action="store_true", help="print what was seen in one interval as one JSON document")


def execute(args: Namespace) -> int:
    """Show it until `q`, or once."""
    if not 0 < args.interval < 1e6:
        raise InputError(f"--interval {args.interval:g} is no time between two looks; give seconds, such as 1")
    machine = read_machine()
    with Live() as live:
        if args.json:
            print_json(_document(_after(live, args.interval)))
        elif args.once or not sys.stdin.isatty() or not sys.stdout.isatty() or not _has_textual():
            now = _after(live, args.interval)
            width = shutil.get_terminal_size((100, 24)).columns
            print("\n".join(frame(machine, now, width, SIGNS.of(sys.stdout.encoding))))
        else:
            from .top_screen import TopScreen

            TopScreen(machine, live, args.interval).run()
    return 0


def _has_textual() -> bool:
    if importlib.util.find_spec("textual") is not None:
        return True
    print("qcthreads top: to go on needs textual: pip install 'qcthreads[top]'; once, then:", file=sys.stderr)
    return False


def _after(live: Live, interval_s: float) -> Now:
    time.sleep(interval_s)
    return live.look()


def _document(now: Now) -> dict[str, Any]:
    return {
        "place": place_document(now.place),
        "shut": now.shut,
        "interval_s": now.interval_s,
        "cpus_busy": now.cpus_busy,
        "leases": [_lease_document(lease, now.at_s) for lease in now.leases],
        "waiting": len(now.queue),
    }


def _lease_document(lease: LeaseNow, now_s: float) -> dict[str, Any]:
    return {
        **lease_document(lease.held, now_s),
        "runs": lease.runs,
        "calculation": lease.calculation or None,
        "processes": lease.processes,
        "threads_working": lease.threads_working,
        "efficiency": lease.efficiency,
        "wait_share": lease.wait_share,
        "memory_bytes": lease.memory_bytes,
        "memory_granted_bytes": lease.held.holding.memory_bytes,
        "threads": lease.threads,
    }
