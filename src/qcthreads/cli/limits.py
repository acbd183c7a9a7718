"""``qcthreads limits``: what may be used and which rule says so; prints what host found and judges nothing."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ..host import read_machine
from ..host.limits import Limits, Rule, read_limits
from ..machine.placement import thread_cpus
from ..units import format_size
from .render import print_json, print_table
from .topo import checked_sysroot

_EPILOG = """examples:
  qcthreads limits
  qcthreads limits --json
  qcthreads limits --sysroot recorded/   # mask and cgroup of the process recorded as proc/self"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``limits``."""
    parser.epilog = _EPILOG
    parser.add_argument("--sysroot", metavar="DIR", type=Path, help="read a recorded tree that contains sys/ and proc/")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def execute(args: Namespace) -> int:
    """Read the limits and print the chain."""
    sysroot = checked_sysroot(args.sysroot)
    limits = read_limits(sysroot)
    if args.json:
        print_json(limits_document(limits))
    else:
        print(f"{limits.explain_cpus()}; {format_size(limits.memory_bytes)} of memory")
        print(f"{_threads(limits, sysroot)}\n")
        rows = [
            (rule.rule, _allows(rule), "<- tightest" if rule.tightest else "", rule.source) for rule in limits.rules
        ]
        print_table("", ("rule", "allows", "", "source"), rows)
    return 0


def limits_document(limits: Limits) -> dict[str, Any]:
    """The JSON form of the limits: CPUs as lists of numbers, memory in bytes."""
    return {
        "cpus": limits.cpus,
        "cpu_count": limits.cpu_count,
        "quota_cpus": limits.quota_cpus,
        "memory_bytes": limits.memory_bytes,
        "rules": [_rule_document(rule) for rule in limits.rules],
    }


def _threads(limits: Limits, sysroot: str | None) -> str:
    """Which of the PUs threads get: cores or hardware threads is a choice, and this says the default."""
    machine = read_machine(sysroot)
    cores, all_pus = (thread_cpus(machine, limits.cpus, limits.cpu_count, smt=smt) for smt in (False, True))
    said = f"threads get one PU per core, performance cores first: PUs {cores}"
    return said if cores == all_pus else f"{said} ({len(cores)}); with --smt {len(all_pus)}: {all_pus}"


def _rule_document(rule: Rule) -> dict[str, Any]:
    values = {"cpus": rule.cpus, "cpu_count": rule.cpu_count, "memory_bytes": rule.memory_bytes}
    said = {name: value for name, value in values.items() if value is not None}
    return {"rule": rule.rule, "source": rule.source, **said, "tightest": rule.tightest}


def _allows(rule: Rule) -> str:
    if rule.cpus is not None:
        return f"PUs {rule.cpus}" if rule.cpus else "no PU"
    if rule.cpu_count is not None:
        return f"{rule.cpu_count:g} {'PU' if rule.cpu_count == 1 else 'PUs'}"
    return format_size(rule.memory_bytes or 0)
