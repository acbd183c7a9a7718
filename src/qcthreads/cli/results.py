"""A run as a chemist reads it: tables, energies in three units, what was decided and why; its CSV; computes nothing."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TextIO

from ..cpuset import CpuSet
from ..execution.labels import short_label
from ..manybody.report import BodyRow, FragmentRow, grouped
from ..manybody.run import RunReport
from ..units import HARTREE_TO_KCAL_PER_MOL, HARTREE_TO_KJ_PER_MOL, format_count, format_size, format_split
from .render import percent, print_table, seconds

_ROWS_SHOWN = 24
_ERRORS_SHOWN = 5
_IDLE_STEPS = 10
LISTED = 10_000
"""A dry run of more calculations counts them, and lists none: to make the list takes time."""
_ORDERS = {1: "monomers", 2: "dimers", 3: "trimers", 4: "tetramers"}


class Prepared(Protocol):
    """What is known of a run before it starts."""

    @property
    def calculations(self) -> int:
        """How many."""

    @property
    def fragments(self) -> Sequence[FragmentRow]:
        """The calculations."""

    @property
    def counts_by_nbody(self) -> Mapping[int, int]:
        """How many there are of each order."""

    @property
    def decision(self) -> Mapping[str, Any]:
        """Workers, threads, memory, and the reasons."""


def print_report(report: RunReport, csv_file: Path | None) -> None:
    """Everything a finished run has to say, on standard output."""
    _print_fragments(report.fragments, csv_file)
    print()
    if report.missing:
        _print_missing(report)
    else:
        _print_energies(report)
    print()
    if report.statistics.get("fragments_reused") == len(report.fragments):
        print("Nothing was left to compute: all results were in the store.")
    else:
        _print_decision(report.decision, unbound=any(finding["kind"] == "unbound" for finding in report.findings))
    print_usage(report.statistics, [finding["message"] for finding in report.findings])


def print_usage(statistics: Mapping[str, Any], findings: Iterable[str], stream: TextIO | None = None) -> None:
    """How long it took, how the PUs were used, and what was found; by default on standard output."""
    _print_statistics(statistics, stream)
    for finding in findings:
        print(f"Finding: {finding}", file=stream)


def print_dry_run(run: Prepared, csv_file: Path | None) -> None:
    """What would be computed, and how."""
    total = run.calculations
    counts = ", ".join(
        f"{count} {_ORDERS.get(nbody, f'{nbody}-mers')}" for nbody, count in sorted(run.counts_by_nbody.items())
    )
    print(f"{format_count(total, 'calculation')}: {counts}")
    if total <= LISTED:
        _print_fragments(run.fragments, csv_file)
    print()
    _print_decision(run.decision)
    if run.decision.get("expected_wall_s") is not None:
        print(f"Expected to take: about {seconds(run.decision['expected_wall_s'])}")
    if run.decision.get("store_bytes"):
        print(f"Disk for the store: about {_size(run.decision['store_bytes'])}")
    print("Nothing was computed (--dry-run).")


def dry_run_document(run: Prepared) -> dict[str, Any]:
    """The same as JSON data."""
    return {
        "dry_run": True,
        "calculations": run.calculations,
        "counts_by_nbody": run.counts_by_nbody,
        "fragments": run.fragments if run.calculations <= LISTED else None,
        "decision": run.decision,
    }


def write_csv(path: Path, rows: Sequence[FragmentRow]) -> None:
    """One row per calculation, all columns; lists of fragments and of PUs joined by ``+``.

    A spreadsheet takes the ``1-2`` of a list of PUs for the second of January.
    """
    names = [field.name for field in fields(FragmentRow)]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for row in rows:
            values = {name: getattr(row, name) for name in names}
            values["cpus"] = tuple(CpuSet.parse(row.cpus or ""))
            writer.writerow([_joined(value) if isinstance(value, tuple) else value for value in values.values()])


def _print_fragments(rows: Sequence[FragmentRow], csv_file: Path | None) -> None:
    """The first rows, without columns of which nothing is known."""
    several = len({row.chemistry for row in rows}) > 1
    columns = ("n", "name", "model", "formula", "charge", "mult", "contact/A", "energy/hartree", "threads", "wall/s")
    shown = [
        (
            row.nbody,
            row.name,
            row.chemistry if several else "-",
            row.formula,
            f"{row.charge:+g}" if row.charge else "0",
            row.multiplicity,
            _number(row.closest_contact_angstrom, 3),
            _number(row.energy_hartree, 8),
            row.threads or "-",
            _number(row.wall_s, 2),
        )
        for row in rows[:_ROWS_SHOWN]
    ]
    known = [index for index in range(len(columns)) if any(cells[index] != "-" for cells in shown)]
    print_table("Calculations", [columns[i] for i in known], [[cells[i] for i in known] for cells in shown])
    if len(rows) > _ROWS_SHOWN:
        where = f"all are in {csv_file}" if csv_file else "--csv FILE writes all"
        print(f"  ... and {len(rows) - _ROWS_SHOWN} more; {where}")


def _print_missing(report: RunReport) -> None:
    failed, missing, total = len(report.failures), len(report.missing), len(report.fragments)
    groups = grouped(report.failures)
    if failed:
        how = ", all with:" if len(groups) == 1 < failed else ":"
        print(f"{failed} of {format_count(total, 'calculation')} failed{how}")
    for error, labels in list(groups.items())[:_ERRORS_SHOWN]:
        print(f"  {_some(labels)}")
        print("    " + "\n    ".join(error.splitlines()))
    if len(groups) > _ERRORS_SHOWN:
        others = format_count(len(groups) - _ERRORS_SHOWN, "other error")
        print(f"  ... and {others}; of a store `qcthreads failures` lists all")
    print(f"No total energy: {format_count(missing, 'term')} {'is' if missing == 1 else 'are'} missing:")
    print(f"  {_some([short_label(label) for label in report.missing])}")


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _ROWS_SHOWN} more" if len(labels) > _ROWS_SHOWN else ""
    return ", ".join(labels[:_ROWS_SHOWN]) + more


def _print_energies(report: RunReport) -> None:
    print(f"Many-body expansion{_model(report.decision)}, BSSE treatment: {report.bsse_treatment}")
    for bsse in dict.fromkeys(row.bsse for row in report.bodies):
        rows = [row for row in report.bodies if row.bsse == bsse]
        columns = (
            "through n",
            "total/hartree",
            "interaction/hartree",
            "n-body/hartree",
            "n-body/kcal/mol",
            "n-body/kJ/mol",
        )
        print_table(
            f"{bsse}: energies through n bodies, and what the n-body terms add", columns, map(_body_cells, rows)
        )
        if rows[-1].nbody > 1:  # through one body there is none: a zero would read as a result
            print(f"  interaction energy ({bsse})  {_three_units(rows[-1].interaction_hartree)}")
        if rows[-1].total_hartree is not None:
            print(f"  total energy ({bsse})        {_three_units(rows[-1].total_hartree)}")


def _body_cells(row: BodyRow) -> tuple[object, ...]:
    added = row.contribution_hartree
    return (
        row.nbody,
        _number(row.total_hartree, 8),
        _number(row.interaction_hartree, 8),
        _number(added, 8),
        _number(added * HARTREE_TO_KCAL_PER_MOL, 4),
        _number(added * HARTREE_TO_KJ_PER_MOL, 4),
    )


def _model(decision: Mapping[str, Any]) -> str:
    """`` of mp2/cc-pvdz``; of several, with the orders that each is for; nothing where it is not known."""
    chemistries = decision.get("model_chemistries") or [decision]
    said = ["/".join(str(one[name]) for name in ("method", "basis") if one.get(name)) for one in chemistries]
    if len(said) > 1:
        named = zip(said, chemistries, strict=True)
        said = [f"{_orders(one['orders'])} {name} ({one['program']})" for name, one in named]
    return f" of {', '.join(said)}" if said[0] else ""


def _orders(orders: Sequence[int | str]) -> str:
    numbers = "+".join(str(order) for order in orders if order != "supersystem")
    beyond = ["supersystem"] if "supersystem" in orders else []
    return " and ".join([*([f"{numbers}-body"] if numbers else []), *beyond])


def _print_decision(decision: Mapping[str, Any], *, unbound: bool = False) -> None:
    split = format_split(decision.get("workers", 0), decision.get("threads", 0))
    program = " ".join(str(decision[name]) for name in ("program", "program_version") if decision.get(name))
    bound = "bound to its own PUs" if decision.get("affinity") and not unbound else "not bound"
    memory = f", {_size(decision.get('memory_bytes_per_worker'))}"
    if decision.get("workers") != 1:
        bound = bound.replace("bound to its", "each bound to its")
        memory += " each"
    print(f"Decided ({decision.get('strategy')}): {split} of {program}, {bound}{memory}")
    for reason in decision.get("reasons", ()):
        print(f"  {reason}")


def _print_statistics(statistics: Mapping[str, Any], stream: TextIO | None) -> None:
    counts = {name: statistics.get(f"fragments_{name}") for name in ("computed", "reused", "failed")}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    total, wall = statistics["fragments_total"], seconds(statistics.get("wall_s"))
    widths = statistics.get("widths") or {}
    if len(widths) > 1:
        used = ", ".join(f"{count} with {format_count(int(width), 'thread')}" for width, count in widths.items())
        print(f"Ran: {used}", file=stream)
    print(f"Wall time {wall} for {format_count(total, 'calculation')} ({said or 'none has ended'})", file=stream)
    if statistics.get("watched"):
        print_table("How the PUs were used", ("figure", "value", "what it is"), _usage_rows(statistics), stream)


def _usage_rows(statistics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    queue_s, idle = statistics["run_queue_s"], statistics["idle_over_time"]
    yield "thread efficiency", percent(statistics["thread_efficiency"]), "CPU time / (threads x wall time)"
    yield "usable PUs leased", percent(statistics["busy_fraction"]), "share of their time that a calculation had them"
    if queue_s is not None:
        yield "contention", percent(statistics["contention"]), f"threads waited {seconds(queue_s)} for a CPU"
    if statistics["idle_pus"] is not None:
        steps = idle[:: -(-len(idle) // _IDLE_STEPS)]
        over_time = " ".join(f"{step['idle_pus']:.1f}" for step in steps)
        yield "idle PUs", f"{statistics['idle_pus']:.1f}", f"no thread of the run ran there; over time: {over_time}"


def _three_units(energy_hartree: float) -> str:
    kcal, kj = energy_hartree * HARTREE_TO_KCAL_PER_MOL, energy_hartree * HARTREE_TO_KJ_PER_MOL
    return f"{energy_hartree:.10f} hartree = {kcal:.4f} kcal/mol = {kj:.4f} kJ/mol"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _size(size_bytes: int | None) -> str:
    return "not known" if size_bytes is None else format_size(size_bytes)


def _joined(numbers: Sequence[int]) -> str:
    return "+".join(map(str, numbers))
