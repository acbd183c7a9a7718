"""``qcthreads topo``: what the machine has, as a picture or JSON; asks host, and shows nothing that is not there."""

from __future__ import annotations

import platform
import shutil
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cpuset import CpuSet
from ..errors import InputError, QCThreadsError
from ..host import read_machine
from ..host.sysfs import CPU_DIRECTORY, numbered, read_cpus
from ..machine import Machine
from .output import check_writable, explained
from .render import print_json, print_table
from .topo_picture import heading, picture
from .topo_svg import write_svg

if TYPE_CHECKING:
    from ..leases.snapshot import Held

_MOST_DISTANCES = 16  # nodes; a wider table is read as JSON
_PATIENCE_S = 0.2  # at the door of the book of leases: a turn takes a tenth of a millisecond

_EPILOG = """examples:
  qcthreads topo
  qcthreads topo --json
  qcthreads topo --svg machine.svg
  qcthreads topo --sysroot recorded/   # a copy of another machine's sys/ and proc/"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``topo``."""
    parser.epilog = _EPILOG
    parser.add_argument("--sysroot", metavar="DIR", type=Path, help="read a recorded tree that contains sys/ and proc/")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document on standard output")
    form.add_argument("--svg", metavar="FILE", type=Path, help="draw it into FILE")


def execute(args: Namespace) -> int:
    """Read the machine and print it."""
    sysroot = checked_sysroot(args.sysroot)
    if args.svg:
        check_writable("--svg", args.svg)
    machine = read_machine(sysroot)
    leases = None if sysroot else _leases()
    if args.json:
        print_json(
            {**machine_document(machine), "leased": None if leases is None else list(map(_lease_document, leases))}
        )
        return 0
    said = [*heading(machine, _offline(machine, sysroot or "/")), *_said_of(leases or [])]
    if args.svg:
        _draw(machine, args.svg, [sysroot or platform.node(), *said], leases or [])
    else:
        print("\n".join(said), end="\n\n")
        _print_machine(machine, CpuSet(cpu for lease in leases or [] for cpu in lease.holding.cpus))
    return 0


def checked_sysroot(sysroot: Path | None) -> str | None:
    """The recorded tree as host takes it; InputError when it is none."""
    if sysroot is None:
        return None
    if not (sysroot / "sys").is_dir() and not (sysroot / "proc").is_dir():
        raise InputError(f"--sysroot {sysroot}: no sys/ and no proc/ in it; give the directory that contains them")
    return str(sysroot)


def machine_document(machine: Machine) -> dict[str, Any]:
    """The JSON form of a machine: CPUs as lists of numbers, memory and caches in bytes; only what files tell."""
    distances = machine.distances
    return {
        "cpus_online": machine.cpus_online,
        "packages": [package.cpus for package in machine.packages if not package.assumed],
        "dies": [die.cpus for die in machine.dies],
        "cores": [core.cpus for core in machine.cores if not core.assumed],
        "numa": [
            {"id": node.node_id, "cpus": node.cpus, "memory_bytes": node.memory_bytes, "kind": node.kind}
            for node in machine.numa_nodes
        ],
        "caches": [
            {"level": cache.level, "type": cache.kind, "size": cache.size_bytes, "cpus": cache.cpus}
            for cache in machine.caches
        ],
        "distances": {"nodes": distances.nodes, "matrix": distances.matrix} if distances else None,
        "cpu_kinds": [{"cpus": kind.cpus, "efficiency": kind.efficiency} for kind in machine.cpu_kinds],
        "allowed_cpus": machine.allowed_cpus,
        "allowed_mems": machine.allowed_mems,
    }


def _leases() -> list[Held] | None:
    """What is leased now; ``None`` where the book cannot be read, which is no failure of ours: `doctor` tells of it."""
    from ..leases.place import find_place
    from ..leases.snapshot import read_book

    try:
        snapshot = read_book(find_place(create=False), patience_s=_PATIENCE_S, thorough=False)
    except QCThreadsError:
        return None
    return [lease for lease in snapshot.leases if lease.state != "dead"] if snapshot.place.path else None


def _lease_document(lease: Held) -> dict[str, Any]:
    return {"cpus": lease.holding.cpus, "user": lease.user, "pid": lease.pid}


def _said_of(leases: list[Held]) -> list[str]:
    """One line, unless nothing is leased: how much by whom."""
    cpus: dict[str, CpuSet] = {}
    for lease in leases:
        cpus[lease.user] = cpus.get(lease.user, CpuSet()) | lease.holding.cpus
    said = "; ".join(f"PUs {held} by {user}" for user, held in cpus.items())
    return [f"leased now: {said}"] if said else []


def _offline(machine: Machine, root: str) -> CpuSet:
    """CPUs that are there and do not run."""
    present = read_cpus(root, None, f"{CPU_DIRECTORY}/present")
    return (present or CpuSet(numbered(root, CPU_DIRECTORY, "cpu"))) - machine.cpus_online


def _draw(machine: Machine, path: Path, said: list[str], leases: list[Held]) -> None:
    with explained("--svg", path):
        write_svg(machine, path, said, [(lease.holding.cpus, _whose(lease)) for lease in leases])
    print(f"wrote {path}", file=sys.stderr)


def _whose(lease: Held) -> str:
    return lease.user + (f", process {lease.pid}" if lease.pid else "")


def _print_machine(machine: Machine, leased: CpuSet) -> None:
    print("\n".join(picture(machine, shutil.get_terminal_size((100, 24)).columns, sys.stdout.encoding, leased)))
    distances = machine.distances
    if distances and len(distances.nodes) <= _MOST_DISTANCES:
        table = [(node, *line) for node, line in zip(distances.nodes, distances.matrix, strict=True)]
        print()
        print_table("Memory distances (10 is local)", ("from \\ to", *map(str, distances.nodes)), table)
