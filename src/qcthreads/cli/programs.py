"""``qcthreads programs``: the quantum-chemistry programs known, and which are found here; calculates nothing."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from ..programs import registry
from .render import print_json, print_table

_EPILOG = """examples:
  qcthreads programs
  qcthreads programs --json"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``programs``."""
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def execute(args: Namespace) -> int:
    """List the programs."""
    programs = [program_document(name) for name in registry.names()]
    if args.json:
        print_json({"programs": programs})
        return 0
    rows = [
        (
            program["name"],
            (program["version"] or "yes") if program["found"] else "no",
            program["parallel_model"],
            program["provenance"],
        )
        for program in programs
    ]
    print_table("", ("program", "found here", "threads by", "how well known"), rows)
    for program in programs:
        if not program["found"]:
            print(f"{program['title']}: {program['install_hint']}")
    return 0


def program_document(name: str) -> dict[str, Any]:
    """What is known of one program, and whether it is found here, as JSON data."""
    spec = registry.get(name)
    found = registry.find(spec)
    return {
        "name": spec.name,
        "title": spec.title,
        "found": found is not None,
        "version": registry.version(found) if found else None,
        "path": found.path if found else None,
        "missing_modules": found.missing if found else (),
        "parallel_model": spec.parallel_model.value,
        "in_process": spec.in_process,
        "useful_width": spec.useful_width,
        "inert_settings": spec.inert,
        "install_hint": spec.install_hint,
        "provenance": spec.provenance,
    }
