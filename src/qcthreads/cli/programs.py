"""``qcthreads programs``: the quantum-chemistry programs known, and which are found here; calculates nothing."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from ..errors import MachineError
from ..programs import registry
from .render import print_json, print_table

_EPILOG = """examples:
  qcthreads programs
  qcthreads programs nwchem
  qcthreads programs --json"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``programs``."""
    parser.epilog = _EPILOG
    parser.add_argument("program", nargs="?", help="all that is known of this one")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def execute(args: Namespace) -> int:
    """List the programs, or tell of one."""
    if args.program is None:
        found = program_documents()
    else:
        found = {"programs": [program_document(registry.known(args.program))], "broken": []}
    if args.json:
        print_json(found)
    elif args.program is None:
        _print_list(**found)
    else:
        _print_one(found["programs"][0])
    return 0


def program_documents() -> dict[str, list[dict[str, Any]]]:
    """What is known of every program; one whose package is broken keeps nobody from the others."""
    programs, broken = [], []
    for name in registry.names():
        try:
            programs.append(program_document(name))
        except MachineError as error:
            broken.append({"name": name, "error": str(error)})
    return {"programs": programs, "broken": broken}


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
        "qcengine": spec.qcengine,
        "gpu": spec.gpu,
        "useful_width": spec.useful_width,
        "environment": spec.environment,
        "command": spec.command,
        "input_text": spec.input_text,
        "memory": spec.memory,
        "inert_settings": spec.inert,
        "install_hint": spec.install_hint,
        "provenance": spec.provenance,
        "not_known": spec.not_known,
        "facts": spec.facts,
    }


def _print_list(programs: list[dict[str, Any]], broken: list[dict[str, Any]]) -> None:
    rows = [
        (
            program["name"],
            (program["version"] or "yes") if program["found"] else "no",
            "run, exec" if program["qcengine"] else "exec",
            program["parallel_model"],
            program["provenance"],
        )
        for program in programs
    ]
    print_table("", ("program", "found here", "for", "threads by", "how well known"), rows)
    for one in broken:
        print(f"{one['name']}: {one['error']}")
    print("How to install one, and all that is known of it: qcthreads programs NAME")


def _print_one(program: dict[str, Any]) -> None:
    found = f"{program['version'] or 'found'}, {program['path']}" if program["found"] else "not found here"
    print(f"{program['title']}: {found}")
    if program["missing_modules"]:
        print(f"  lacks     {', '.join(program['missing_modules'])}")
    print(f"  install   {program['install_hint']}")
    print(f"  for       {'run and exec' if program['qcengine'] else 'exec alone: QCEngine has no harness for it'}")
    print(f"  threads   {program['parallel_model']}; {program['provenance']}")
    for name, value in program["environment"].items():
        print(f"  is told   {name}={value}")
    for label, value in (("command", program["command"]), ("input", program["input_text"])):
        if value:
            print(f"  {label:9} {value}")
    if program["memory"]:
        print(f"  memory    per {program['memory'].scope}, in {program['memory'].unit}: {program['memory'].set_by}")
    for name, reason in program["inert_settings"].items():
        print(f"  in vain   {name}: {reason}")
    for what in program["not_known"]:
        print(f"  not known {what}")
    for fact in program["facts"]:
        print(f"  {fact.topic:9} {fact.text}\n{'':12}[{fact.known.value}: {fact.source}]")
