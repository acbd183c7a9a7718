"""``qcthreads plan``: a schedule for tasks in a file, on a machine that need not be here; runs and leases nothing."""

from __future__ import annotations

import json
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..host import read_machine
from ..host.disks import file_system
from ..host.profiles import read_profile
from ..machine import Machine
from ..planning import Plan, Task, plan
from ..planning.cost import PARALLEL_FRACTION, assumed_speedup
from ..planning.model import MOST_CPUS, usable_of, usual_widths
from ..units import format_count, format_size
from .output import check_writable, explained
from .plan_svg import write_svg
from .render import gigabytes, print_json, print_table, seconds
from .topo import checked_sysroot

_DOCUMENT = {"cpus", "sysroot", "memory_bytes", "disk_bytes", "bandwidth_bytes_per_s", "tasks"}
_ESTIMATED = {"seconds", "parallel_fraction", "widths"}
_TASK = {"id", "times_s", "memory_bytes", "disk_bytes", "bandwidth_bytes_per_s"} | _ESTIMATED
_MOST_ROWS = 40  # placements in the table; all are in the JSON

_EPILOG = """TASKS.json: {"cpus": 64, "memory_bytes": null, "tasks": [
  {"id": "f1", "times_s": {"1": 10.0, "2": 5.6, "4": 3.5}, "memory_bytes": 0}]}
Widths that are not listed are not used. "sysroot": DIR, a recorded machine, may stand in the place of "cpus", and
"seconds": 10.0, with one thread, in that of "times_s": other widths follow by Amdahl's law.

examples:
  qcthreads plan tasks.json
  qcthreads plan tasks.json --strategy adaptive --json
  qcthreads plan tasks.json --strategy memory-aware --svg plan.svg
  qcthreads plan tasks.json --scratch /scratch
  qcthreads plan - < tasks.json"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``plan``."""
    parser.epilog = _EPILOG
    parser.add_argument("tasks", metavar="TASKS.json", type=Path, help="tasks with their times; - is standard input")
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        default="auto",
        help="auto, balanced, adaptive, memory-aware, or one that another package registers (default: auto)",
    )
    parser.add_argument(
        "--scratch", metavar="DIR", type=Path, help="directory for temporary files: its free disk limits disk_bytes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw it into FILE: CPUs over time")


def execute(args: Namespace) -> int:
    """Plan, and print or draw the plan."""
    if args.svg:
        check_writable("--svg", args.svg, ("the file of tasks", args.tasks))
    document = _document(args.tasks)
    _known(document, _DOCUMENT, "the document")
    machine_or_cpus = _machine(document, args.tasks)
    tasks = _tasks(document, usual_widths(len(usable_of(machine_or_cpus)[1])))
    bandwidth, of_bandwidth = _bandwidth(document, machine_or_cpus, tasks, args.tasks)
    disk, tasks, of_disk = _disk(document, args.scratch, tasks)
    made = plan(
        tasks,
        machine_or_cpus,
        args.strategy,
        memory_bytes=_limit(document, "memory_bytes"),
        bandwidth_bytes_per_s=bandwidth,
        disk_bytes=disk,
    )
    made = replace(made, reasons=(*made.reasons, *of_bandwidth, *of_disk))
    if args.svg:
        with explained("--svg", args.svg):
            write_svg(made, args.svg, _heading(made))
        print(f"wrote {args.svg}", file=sys.stderr)
    if args.json:
        print_json(plan_document(made))
    else:
        _print_plan(made)
    return 0


def plan_document(made: Plan) -> dict[str, Any]:
    """The JSON form of a plan."""
    return {
        "makespan_s": made.makespan_s,
        "lower_bound_s": made.lower_bound_s,
        "strategy": made.strategy,
        "chosen": made.chosen,
        "reasons": made.reasons,
        "placements": [
            {
                "id": placement.id,
                "start_s": placement.start_s,
                "end_s": placement.end_s,
                "threads": placement.threads,
                "cpus": placement.cpus,
            }
            for placement in made.placements
        ],
    }


def _document(path: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read().removeprefix("\ufeff") if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; give a JSON file of tasks") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text; give a JSON file of tasks") from None
    if not text.strip():
        raise InputError(f"{path} is empty; give a JSON file of tasks; `qcthreads plan --help` shows one")
    try:
        document = json.loads(text, object_pairs_hook=_without_repetition)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: not an object, but {_kind(document)}; `qcthreads plan --help` shows one")
    return document


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"an object has {twice!r} twice; which of them counts?")
    return found


def _known(found: dict[str, Any], known: set[str], where: str) -> None:
    for name in found:
        if name not in known:
            raise InputError(f"{where}: {name!r} is not known; there are: {', '.join(sorted(known))}")


def _machine(document: dict[str, Any], path: Path) -> Machine | int:
    """The number of CPUs, or the machine recorded below ``sysroot``; a relative one starts where the file is."""
    if ("cpus" in document) == ("sysroot" in document):
        found = "both" if "cpus" in document else "neither of"
        raise InputError(f'{path} has {found} "cpus", a number, and "sysroot", a directory; give one of them')
    if "sysroot" in document:
        sysroot = document["sysroot"]
        if not isinstance(sysroot, str) or not sysroot:
            raise InputError(f'"sysroot" is {_shown(sysroot)}; give the directory that contains sys/ and proc/')
        return read_machine(checked_sysroot(path.parent / sysroot, '"sysroot"'))
    cpus = document["cpus"]
    if not _is_whole(cpus) or not 1 <= cpus <= MOST_CPUS:
        raise InputError(f'"cpus" is {_shown(cpus)}; give a whole number from 1 to {MOST_CPUS}')
    return int(cpus)


def _bandwidth(
    document: dict[str, Any], machine: Machine | int, tasks: list[Task], path: Path
) -> tuple[float | None, tuple[str, ...]]:
    """The limit, and how it came about where the document names none: as measured of this machine, if it was."""
    name = "bandwidth_bytes_per_s"
    if name in document or isinstance(machine, int) or not any(task.bandwidth_bytes_per_s for task in tasks):
        return _limit(document, name), ()
    stored = read_profile(machine, str(path.parent / document["sysroot"]))
    rate = stored.profile.bandwidth_bytes_per_s(usable_of(machine)[1]) if stored.profile else None
    if stored.profile is None or rate is None:
        return None, (f"memory bandwidth limits nothing: {stored.missing or 'some of these CPUs were not measured'}",)
    return rate, (f"memory bandwidth: {gigabytes(rate)} GB/s, measured {stored.profile.measured_at}",)


def _disk(
    document: dict[str, Any], scratch: Path | None, tasks: list[Task]
) -> tuple[int | None, list[Task], tuple[str, ...]]:
    """The limit, as named or as is free in ``scratch``; the tasks, with files in memory as memory; and what to say."""
    limit = _limit(document, "disk_bytes")
    if scratch is None:
        return limit, tasks, ()
    if limit is not None:
        raise InputError(f'--scratch {scratch} and "disk_bytes" both say how much disk there is; give one of them')
    if not scratch.is_dir():
        raise InputError(f"the scratch directory {scratch} is not there; make it, or name another")
    there = file_system(scratch)
    said = there.kind or "its file system"
    if there.in_memory:
        said += ": temporary files there count as memory"
        tasks = [replace(task, memory_bytes=task.memory_bytes + task.disk_bytes) for task in tasks]
    if there.free_bytes is None:
        return None, tasks, (f"disk: no limit is known of {scratch} ({said})",)
    # Where nothing is free who needs some is refused by name.
    return max(1, there.free_bytes), tasks, (f"disk: {format_size(there.free_bytes)} free in {scratch} ({said})",)


def _tasks(document: dict[str, Any], widths: Sequence[int]) -> list[Task]:
    """``widths``: of a task whose seconds alone are given."""
    listed = document.get("tasks")
    if not isinstance(listed, list):
        raise InputError(f'"tasks" is {_kind(listed)}; give a list of objects with "id" and "times_s"')
    return [_task(entry, number, widths) for number, entry in enumerate(listed)]


def _task(entry: Any, number: int, widths: Sequence[int]) -> Task:
    where = f"tasks[{number}]"
    if not isinstance(entry, dict):
        raise InputError(f'{where} is {_kind(entry)}; give an object with "id" and "times_s"')
    name = entry.get("id")
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InputError(f'{where}: "id" is {_shown(name)}; give a printable text that no other task has')
    where = f"task {name!r}"
    _known(entry, _TASK, where)
    estimated = sorted(_ESTIMATED & entry.keys())
    if estimated and "times_s" in entry:
        raise InputError(f'{where}: has "times_s" and {estimated[0]!r}; give the one or the other')
    return Task(
        name,
        _estimated_s(entry, widths, where) if estimated else _listed_s(entry, where),
        _amount(entry, "memory_bytes", where),
        _amount(entry, "bandwidth_bytes_per_s", where),
        disk_bytes=_amount(entry, "disk_bytes", where),
    )


def _listed_s(task: dict[str, Any], where: str) -> dict[int, float]:
    times_s = task.get("times_s")
    if not isinstance(times_s, dict) or not times_s:
        raise InputError(
            f'{where}: "times_s" is {_shown(times_s)}; give seconds by number of threads, {{"1": 10.0, "2": 5.6}}, '
            'or "seconds" with one'
        )
    return {_width(width, where): _time(time_s, width, where) for width, time_s in times_s.items()}


def _estimated_s(task: dict[str, Any], widths: Sequence[int], where: str) -> dict[int, float]:
    """By Amdahl's law from the seconds with one thread."""
    at_one_s = _time(task.get("seconds"), "1", where)
    fraction = task.get("parallel_fraction", PARALLEL_FRACTION)
    if not _is_number(fraction) or not 0 <= fraction <= 1:
        raise InputError(f'{where}: "parallel_fraction" is {_shown(fraction)}; give a share of the work from 0 to 1')
    asked = task.get("widths", widths)
    are_widths = isinstance(asked, list | tuple) and all(_is_whole(one) and 1 <= one <= MOST_CPUS for one in asked)
    if not asked or not are_widths:
        raise InputError(
            f'{where}: "widths" is {_shown(asked)}; give numbers of threads from 1 to {MOST_CPUS}: [1, 2, 4]'
        )
    return {int(width): at_one_s / assumed_speedup(int(width), fraction) for width in asked}


def _width(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and text[0] != "0"):
        raise InputError(
            f'{where}: {text!r} in "times_s" is not a number of threads; give a whole number of at least 1'
        )
    return int(text)


def _time(value: Any, width: str, where: str) -> float:
    if not _is_number(value) or value < 0:
        raise InputError(f"{where}: the time at width {width} is {_shown(value)}; give seconds, at least 0")
    return float(value)


def _limit(document: dict[str, Any], name: str) -> int | None:
    """Of the machine: whole bytes, or bytes per second; null and nothing are None."""
    value: float | None = document.get(name)
    if value is None:
        return None
    if not _is_number(value) or value < 1:
        raise InputError(f'"{name}" is {_shown(value)}; give {_unit(name)}, at least 1, or null for no limit')
    return math.floor(value)


def _amount(task: dict[str, Any], name: str, where: str) -> int:
    """Of a task: bytes, or bytes per second; null and nothing are 0."""
    value: float | None = task.get(name)
    if value is None:
        return 0
    if not _is_number(value) or value < 0:
        raise InputError(f'{where}: "{name}" is {_shown(value)}; give {_unit(name)}, at least 0')
    return math.ceil(value)


def _unit(name: str) -> str:
    return "bytes per second" if name.endswith("_per_s") else "bytes"


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _kind(value: Any) -> str:
    """``value`` as JSON calls it."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _heading(made: Plan) -> list[str]:
    over = f", {made.makespan_s / made.lower_bound_s:.3f} times the lower bound" if made.lower_bound_s else ""
    tasks = format_count(len(made.placements), "task")
    return [f"{tasks} in {seconds(made.makespan_s)}{over} ({made.strategy.replace('_', '-')})", *made.reasons]


def _print_plan(made: Plan) -> None:
    print("\n".join(_heading(made)), end="\n\n")
    rows = [
        (placement.id, f"{placement.start_s:.6g}", f"{placement.end_s:.6g}", placement.threads, placement.cpus)
        for placement in made.placements[:_MOST_ROWS]
    ]
    print_table("", ("task", "start s", "end s", "threads", "CPUs"), rows)
    left = len(made.placements) - len(rows)
    if left:
        print(f"  ... and {left} more: --json lists all")
