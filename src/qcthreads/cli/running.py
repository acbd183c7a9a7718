"""The rest of ``qcthreads run``, imported while workers start: a run's report onto the screen; decides nothing."""

from __future__ import annotations

import sys
from argparse import Namespace

from ..errors import QCThreadsError
from ..manybody.run import Run, RunReport
from .output import explained
from .progress import show_progress
from .records import kept_up_to_date, write_record
from .render import print_json
from .results import LISTED, dry_run_document, print_dry_run, print_report, print_usage, write_csv

__all__ = ["Run", "compute", "show", "tell_so_far"]


def compute(args: Namespace, run: Run) -> RunReport | None:
    """What came of it; ``None`` of a dry run, which is shown here."""
    if args.dry_run:
        run.check_without_lease()
        if args.csv is not None:
            with explained("--csv", args.csv):
                write_csv(args.csv, run.fragments)
        print_json(dry_run_document(run)) if args.json else print_dry_run(run, args.csv)
        return None
    if run.calculations > LISTED:
        print(f"preparing {run.calculations:,} calculations", file=sys.stderr, flush=True)
    with kept_up_to_date(args.metrics, run), show_progress(run, sys.stderr) as on_progress:
        return run.execute(on_progress)


def show(args: Namespace, report: RunReport) -> int:
    """Print and write what was asked for; 1 when a calculation failed."""
    print_json(report.to_json()) if args.json else print_report(report, args.csv)
    if args.csv is not None:
        with explained("--csv", args.csv, "the results are on standard output"):
            write_csv(args.csv, report.fragments)
    write_record(args, report.record)
    return 1 if report.failures or report.missing else 0


def tell_so_far(args: Namespace, run: Run) -> None:
    """What was seen of a run that was stopped: it may have been slow. Standard output is that of results."""
    record = run.so_far()
    if record is not None:
        print_usage(record.statistics, [finding.message for finding in record.findings], sys.stderr)
        try:
            write_record(args, record, "its figures are above")
        except QCThreadsError as error:  # the run was stopped, and that is what its exit code says
            print(f"qcthreads: {error}", file=sys.stderr)
