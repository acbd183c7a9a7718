"""``qcthreads monitor``: what a command's or process's threads did; standard output is the command's alone."""

from __future__ import annotations

import dataclasses
import gc
import os
import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..errors import InputError
from ..host import processes
from ..monitoring.observe import Observation, Watcher
from ..monitoring.statistics import BandwidthUsage
from ..units import format_count, format_size, parse_size
from .output import check_writable, explained
from .render import gigabytes, percent, print_json, seconds

_EPILOG = """examples:
  qcthreads monitor -- psi4 water.dat
  qcthreads monitor --threads 4 --json-file water.json -- ./relax.sh water.inp
  qcthreads monitor --pid 4711    # until it ends, or Ctrl-C
  timeout 60 qcthreads monitor --pid 4711

N, or else its OMP_NUM_THREADS, or else the number of CPUs that it may use, is what the threads that worked are held
against. What was seen is told on standard error at the end.

exit status: the command's, or 128 and the number of the signal that ended it; with --pid 0. 125: monitor itself failed;
126: the command cannot be executed; 127: there is no such command."""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``monitor``."""
    parser.epilog = _EPILOG
    parser.usage = "qcthreads monitor [options] (--pid PID | -- COMMAND...)"
    parser.add_argument("--pid", type=int, help="a process that runs already, with its descendants")
    parser.add_argument("--threads", metavar="N", type=int, help="how many were asked for")
    parser.add_argument("--memory", metavar="SIZE", help="how much it was granted, such as 4GiB; default: no limit")
    parser.add_argument(
        "--interval", metavar="S", type=float, default=1.0, help="seconds between two looks at everything; default 1"
    )
    parser.add_argument("--json-file", metavar="FILE", type=Path, help="write what was seen as one JSON document")


def execute(args: Namespace) -> int:
    """Watch it to its end and say what was seen; the command's exit status."""
    gc.enable()  # unlike a command that hands over at once, this one goes on for as long as the other
    asked, why = _asked(args)
    watcher = Watcher(
        threads_asked=asked,
        memory_bytes=parse_size(args.memory) if args.memory is not None else 0,
        interval_s=args.interval,
    )
    if args.json_file is not None:
        check_writable("--json-file", args.json_file)
    try:
        seen = watcher.run(args.command) if args.command else _watch(watcher, args.pid)
    except OSError as error:
        if not args.command:
            raise
        print(f"qcthreads monitor: {args.command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    _print(args.command, seen, why)
    if args.json_file is not None:
        with explained("--json-file", args.json_file), args.json_file.open("w", encoding="utf-8") as file:
            print_json(_document(args.command, seen), file)
    status = seen.exit_status or 0
    return status if status >= 0 else 128 - status


def _asked(args: Namespace) -> tuple[int | None, str]:
    """How many threads were asked for, and where."""
    if (args.pid is None) == (not args.command):
        why = "watch what?" if args.pid is None else "one thing at a time:"
        raise InputError(f"{why} give --pid PID, or a command behind `--`: qcthreads monitor -- ./prog input")
    if not args.interval > 0:
        raise InputError(f"--interval {args.interval:g} is no time between two looks; give seconds, such as 1")
    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"--threads {args.threads} is no number of threads; give 1 or more")
        return args.threads, "--threads"
    told = os.environ.get("OMP_NUM_THREADS", "") if args.command else _omp_num_threads(args.pid)
    first = told.partition(",")[0].strip()  # of nested teams, the outermost
    return (int(first), "OMP_NUM_THREADS") if first.isdecimal() and int(first) else (None, "the CPUs that it may use")


def _omp_num_threads(pid: int) -> str:
    """As it was when the process began; empty where it is not set, or may not be read."""
    name = b"OMP_NUM_THREADS="
    settings = (processes.environment(pid) or b"").split(b"\0")
    return next((one.removeprefix(name).decode(errors="replace") for one in settings if one.startswith(name)), "")


def _watch(watcher: Watcher, pid: int) -> Observation:
    """Until it ends; Ctrl-C and SIGTERM end the watching, not the process."""
    before = {number: signal.signal(number, lambda *_: watcher.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return watcher.watch(pid)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(command: Sequence[str], seen: Observation, why: str) -> None:
    usage = seen.usage
    what = shorten(shlex.join(command), 70, placeholder=" ...") if command else f"process {seen.pid}"
    end = "" if seen.exit_status is None else f" ended with status {seen.exit_status}"
    if seen.exit_status is not None and seen.exit_status < 0:
        end = f" was ended by signal {-seen.exit_status}"
    wall_s = usage.wall_ns / 1e9
    lines = [
        f"{what}{end} after {seconds(wall_s)}",
        f"threads: {usage.threads_asked} asked ({why}), {usage.threads_working} worked side by side",
        f"CPU time: {seconds(usage.cpu_ns / 1e9)}, {usage.cpu_ns / usage.wall_ns:.2f} CPUs busy; thread efficiency "
        f"{percent(usage.thread_efficiency)}",
        f"waited for a CPU: {percent(usage.wait_share)} of the time that its threads wanted to run",
        f"CPUs: ran on {usage.cpus_seen or 'none'} of {usage.cpus_allowed or '-'}, "
        f"{format_count(usage.migrations, 'migration')} seen",
        f"memory: {_peak(usage.memory_peak_bytes)}",
        f"memory bandwidth: {_bandwidth(seen.bandwidth)}",
        f"sampled {seen.counts.samples} times ({seen.source}) with {seen.counts.own_cpu_ns / usage.wall_ns:.2%} of a "
        f"core; {format_count(seen.counts.overruns, 'deadline')} missed, {seen.counts.dropped} samples dropped",
        *(f"Finding: {finding.message}" for finding in seen.findings),
    ]
    print("\n".join(f"qcthreads monitor: {line}" for line in lines), file=sys.stderr)


def _peak(memory_bytes: int) -> str:
    return f"{format_size(memory_bytes)} at its peak" if memory_bytes else "not seen: it ended too soon"


def _bandwidth(used: BandwidthUsage) -> str:
    if used.bytes_per_s is None:
        return f"not measurable: {used.reason}"
    whose = "everything on the node" if used.scope == "node" else "these processes"
    share = f"{percent(used.share)} of what was measured" if used.share is not None else used.reason
    return f"{gigabytes(used.bytes_per_s)} GB/s by {whose} ({used.source}); {share}"


def _document(command: Sequence[str], seen: Observation) -> dict[str, Any]:
    usage = dataclasses.asdict(seen.usage)
    del usage["worker_id"]
    return {
        "command": list(command) or None,
        "exit_status": seen.exit_status,
        "wait4_cpu_s": seen.wait4_cpu_s,
        "usage": usage,
        "memory_bandwidth": seen.bandwidth,
        "findings": [{"kind": finding.kind, "message": finding.message} for finding in seen.findings],
        "sampling": {"source": seen.source, **dataclasses.asdict(seen.counts)},
    }
