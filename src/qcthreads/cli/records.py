"""Files that ``run`` writes beside its results: checked before anything starts, rendered by monitoring, not here."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, MachineError
from .output import check_writable, explained

if TYPE_CHECKING:
    from ..manybody.run import Run
    from ..monitoring.record import RunRecord

# What a file needs beside the core, and the extra that brings it.
_NEEDS = {"report": ("plotly", "report"), "metrics": ("prometheus_client", "metrics")}


def check_files(args: Namespace) -> None:
    """Raise InputError or MachineError where a file cannot be written, or what writes it is not installed."""
    others = [("the input", args.input), ("--store", args.store)]
    for name in ("csv", "report", "trace", "metrics"):
        path: Path | None = getattr(args, name)
        if path is None:
            continue
        if name in _NEEDS:
            _require(name, *_NEEDS[name])
        check_writable(f"--{name}", path, *others)
        others.append((f"--{name}", path))
    if args.metrics is not None and args.metrics.suffix != ".prom":
        raise InputError(f"--metrics {args.metrics} would not be read: the node exporter reads *.prom alone")


def write_record(args: Namespace, record: RunRecord, remedy: str = "the results are on standard output") -> None:
    """What ``--report`` and ``--trace`` ask for; ``remedy`` is said where that cannot be written."""
    if args.report is not None:
        from ..monitoring import report

        with explained("--report", args.report, remedy):
            report.write(record, args.report)
    if args.trace is not None:
        from ..monitoring import trace

        with explained("--trace", args.trace, remedy):
            trace.write(record, args.trace)


@contextmanager
def kept_up_to_date(path: Path | None, run: Run) -> Iterator[None]:
    """``--metrics``: while the ``with`` lasts, and as of its end."""
    if path is None:
        yield
        return
    from ..monitoring.metrics import MetricsFile

    with MetricsFile(path, run.live, {**run.decision, "input": run.request.input.name}):
        yield


def _require(option: str, module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise MachineError(
            f"--{option} needs {module}, which is not installed: python -m pip install 'qcthreads[{extra}]'"
        )
