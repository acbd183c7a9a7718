"""``qcthreads doctor``: what works here, what is missing and what for; looks at everything and changes nothing."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from argparse import ArgumentParser, Namespace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..execution.cost_store import CostStore
from ..host import get_host, native_status, read_machine
from ..host.limits import read_limits
from ..host.profiles import StoredProfile, read_profile
from ..leases.checkup import Checkup, examine
from ..planning.strategies import broken_strategies
from ..units import format_size
from .calibrate_kept import in_short as kept_in_short
from .calibrate_kept import kept_document
from .calibrate_machine import in_short, profile_document
from .leases import place_document, place_in_words
from .limits import limits_document
from .programs import program_documents
from .render import print_json

_EPILOG = """examples:
  qcthreads doctor
  qcthreads doctor --json > doctor.json   # to attach to a report of a problem"""

# Every package that is optional here, with what goes without it.
_OPTIONAL = {
    "qcengine": "to run programs",
    "qcmanybody": "many-body expansions",
    "pyscf": "the embedded program",
    "xtb": "GFN2-xTB in process (Linux, CPython 3.11)",
    "networkx": "NWChem through QCEngine",
    "threadpoolctl": "threads of BLAS libraries that are already loaded",
    "rich": "live progress and tables on a terminal",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``doctor``."""
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def execute(args: Namespace) -> int:
    """Look at everything and print it."""
    found = _examine()
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _examine() -> dict[str, Any]:
    capabilities = get_host().capabilities
    limits = read_limits()
    native, reason = native_status()
    known = program_documents()
    if native and capabilities.back_end != "native":
        reason = f"built, but QCTHREADS_BACKEND={os.environ.get('QCTHREADS_BACKEND')} chose another back end"
    return {
        "qcthreads": __version__,
        "python": platform.python_version(),
        "python_executable": sys.executable,
        "platform": platform.platform(),
        "back_end": {"name": capabilities.back_end, "native_extension": native, "reason": reason},
        "capabilities": dataclasses.asdict(capabilities),
        "limits": limits_document(limits),
        "limits_in_short": limits.explain_cpus(),
        "leases": _book_document(examine()),
        "memory_bandwidth": _bandwidth_document(read_profile(read_machine())),
        "measured_costs": _costs_document(CostStore(read_machine())),
        "programs": known["programs"],
        "broken_programs": known["broken"],
        "broken_strategies": [{"name": name, "error": error} for name, error in broken_strategies().items()],
        "optional_packages": [
            {"name": name, "version": _installed(name), "for": use} for name, use in _OPTIONAL.items()
        ],
    }


def _book_document(checkup: Checkup) -> dict[str, Any]:
    place = checkup.place
    return {
        "place": place_document(place) if place else None,
        "in_words": place_in_words(place) if place else "none can be used",
        "troubles": [{"what": trouble.what, "mend": trouble.mend} for trouble in checkup.troubles],
    }


def _bandwidth_document(stored: StoredProfile) -> dict[str, Any]:
    profile = stored.profile
    return {
        "file": stored.path,
        "measured": profile_document(profile) if profile else None,
        "in_words": in_short(profile) if profile else stored.missing,
    }


def _costs_document(store: CostStore) -> dict[str, Any]:
    found = kept_document(store, store.programs())
    return {**found, "in_words": kept_in_short(found)}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(found: dict[str, Any]) -> None:
    print(
        f"qcthreads {found['qcthreads']}, Python {found['python']} ({found['python_executable']}), {found['platform']}"
    )
    back_end = found["back_end"]
    print(f"back end: {back_end['name']}; native extension: {back_end['reason']}")
    works = {name: value for name, value in found["capabilities"].items() if isinstance(value, bool)}
    print(f"works here: {_names(works, True)}")
    if not all(works.values()):
        print(f"does not:   {_names(works, False)}")
    print(f"limits: {found['limits_in_short']}; {format_size(found['limits']['memory_bytes'])} of memory")
    print(f"book of leases: {found['leases']['in_words']}")
    for trouble in found["leases"]["troubles"]:
        print(f"  {trouble['what']}\n    mend it: {trouble['mend']}")
    print(f"memory bandwidth: {found['memory_bandwidth']['in_words']}")
    print(f"measured costs: {found['measured_costs']['in_words']}")
    for one in found["measured_costs"]["unreadable"]:
        print(f"  {one['error']}")
    here = [program for program in found["programs"] if program["found"]]
    print(f"programs: {len(here)} of {len(found['programs'])} known; `qcthreads programs NAME` says how to install one")
    for program in here:
        print(f"  {program['name']}: {program['version'] or 'found'}, {program['path']}")
    for one in found["broken_programs"]:
        print(f"  {one['name']}: {one['error']}")
    for one in found["broken_strategies"]:
        print(f"strategies: {one['error']}")
    missing = [package for package in found["optional_packages"] if package["version"] is None]
    print(
        "optional packages: "
        + ("all installed" if not missing else f"{len(missing)} missing; `pip install qcthreads[all]` adds them")
    )
    for package in missing:
        print(f"  {package['name']}: {package['for']}")


def _names(works: dict[str, bool], wanted: bool) -> str:
    return ", ".join(name.replace("_", " ") for name, value in works.items() if value is wanted) or "nothing"
