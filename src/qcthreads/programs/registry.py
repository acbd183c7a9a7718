"""Finds a program's record by name and the program itself on this machine; never runs it, but for its version."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Literal

from ..errors import InputError, MachineError, ProgramNotFoundError
from ..units import nearest
from .launchers import of_outer_launcher
from .spec import ParallelModel, ProgramSpec
from .unknown import unknown

BUILT_IN = (
    *("adcc", "aimnet2", "cfour", "cp2k", "dftbplus", "dftd3", "dftd4", "entos", "gamess", "gaussian", "gcp", "jaguar"),
    *("mace", "mctc-gcp", "molpro", "mopac", "mp2d", "mrcc", "mrchem", "nwchem", "openmm", "openmolcas", "orb", "orca"),
    *("psi4", "pyscf", "qchem", "qcore", "quantum_espresso", "rdkit", "s-dftd3", "tblite", "terachem", "terachem_fe"),
    *("terachem_pbs", "torchani", "turbomole", "xtb"),
)
"""Ours: the module of that name, with ``_`` for ``-``, in this package. They are entry points like all others, but
reading the entry points takes some 60 ms, which a command that starts in 50 ms does not have, so these are found
without."""

_GROUP = "qcthreads.programs"
_VERSION_S = 10.0  # what takes longer has not been told that it is only asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where a program is on this machine."""

    program: str
    path: str
    """Of the executable, or of the Python package."""
    missing: tuple[str, ...] = ()
    """Modules that QCEngine's harness needs and that are not installed here."""


@cache
def get(name: str) -> ProgramSpec:
    """The record of program ``name`` in any case; for one that nothing is known about, a record that says so.

    Ours come first, then the entry points of the group ``qcthreads.programs``, which are read once. Raises MachineError
    where another package's cannot be used.
    """
    name = name.lower()
    if name in BUILT_IN:
        spec = import_module(f"{__package__}.{name.replace('-', '_')}").SPEC
    elif name in (entries := _entry_points()):
        spec = _loaded(entries[name])
    else:
        spec = unknown(name)
    assert isinstance(spec, ProgramSpec)
    return spec


def names() -> tuple[str, ...]:
    """Every program there is a record of, sorted."""
    return tuple(sorted({*BUILT_IN, *_entry_points()}))


def known(name: str) -> str:
    """``name`` in lower case. Raises InputError where neither qcthreads nor QCEngine has heard of it."""
    if get(name).parallel_model is ParallelModel.UNKNOWN:
        _check_known(name.lower())
    return name.lower()


def recorded(name: str) -> ProgramSpec:
    """The record of program ``name``, in any case. Raises InputError where there is none."""
    spec = get(name)
    if spec.parallel_model is ParallelModel.UNKNOWN:
        near = nearest(name, names())
        there = f"did you mean {near}?" if near else "`qcthreads programs` lists those that it knows."
        raise InputError(
            f"qcthreads knows no program {name!r}; {there} One of which nothing is known is run without --program"
        )
    return spec


def find(spec: ProgramSpec) -> Installation | None:
    """Where the program is, or ``None``; looks at PATH and at importable modules, and loads nothing."""
    path = _module_path(spec.python_module) if spec.python_module else None
    if path is None and spec.executable:
        path = shutil.which(spec.executable)
    if path is None and spec.parallel_model is ParallelModel.UNKNOWN:
        path = _path_by_qcengine(spec.name)
    if path is None:
        return None
    missing = tuple(module for module in spec.required_modules if _module_path(module) is None)
    return Installation(program=spec.name, path=path, missing=missing)


def useful_width(programs: Iterable[str]) -> int | None:
    """Beyond this width none of ``programs`` gets faster; ``None``: of some it is not known."""
    widths = [get(name).useful_width for name in programs]
    return max((width for width in widths if width is not None), default=None) if None not in widths else None


def require(name: str, *, through_qcengine: bool = True) -> Installation:
    """Where program ``name`` is.

    Parameters
    ----------
    through_qcengine
        QCEngine is to drive it; False: the caller has a command for it.

    Raises
    ------
    InputError
        Neither qcthreads nor QCEngine has heard of it: the message says which they know, and the nearest first. Or
        QCEngine cannot drive it.
    ProgramNotFoundError
        It is not on this machine, or lacks a module; the message says how to install it.
    """
    spec = get(known(name))
    if through_qcengine and not spec.qcengine:
        ranks, threads = (4, 1) if "{ranks}" in spec.command else (1, 4)
        raise InputError(
            f"QCEngine has no harness for {spec.title}; lease CPUs for its own command: "
            f"`qcthreads exec --program {spec.name} --threads 4 -- {spec.command.format(ranks=ranks, threads=threads)}`"
        )
    if through_qcengine and name.lower() not in BUILT_IN:
        _check_harness(spec)
    installation = find(spec)
    if installation is None:
        raise ProgramNotFoundError(not_installed(spec))
    if through_qcengine and installation.missing:
        raise ProgramNotFoundError(
            f"{spec.title} is at {installation.path}, but QCEngine cannot drive it without "
            f"{', '.join(installation.missing)}: {spec.install_hint}"
        )
    return installation


def not_installed(spec: ProgramSpec) -> str:
    """What is said where it is not on this machine: what was looked for, and how to install it."""
    where = f"no Python module {spec.python_module!r}" if spec.python_module else f"no {spec.executable!r} on PATH"
    return f"{spec.title} is not installed here ({where}): {spec.install_hint}"


@cache
def version(installation: Installation) -> str | None:
    """The program's version, or ``None`` where it does not tell. May run the program once (Psi4: 0.5 CPU-s).

    It is run alone, and not as a rank of the job that this process may be in: that would wait for the others.
    """
    spec = get(installation.program)
    if spec.python_module:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as version_of

        try:
            return version_of(spec.distribution or spec.python_module)
        except PackageNotFoundError:
            return None
    if not spec.version_command:
        return None
    command = [installation.path, *spec.version_command[1:]]
    outer = of_outer_launcher(os.environ)
    environment = {name: value for name, value in os.environ.items() if name not in outer} | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as elsewhere:  # Psi4 leaves a timer.dat wherever it is asked
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=_VERSION_S,
                stdin=subprocess.DEVNULL,
                cwd=elsewhere,
                env=environment,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
    match = re.search(r"(?<!\S)v?(\d+\.\d\S*)", done.stdout)
    return match.group(1) if match else None


def _loaded(entry) -> ProgramSpec:  # type: ignore[no-untyped-def]
    """What the package that brings ``entry`` says of the program."""
    try:
        spec = entry.load()
    except Exception as error:  # a package of somebody else's, in which anything may be wrong
        wrong = f"cannot be loaded ({type(error).__name__}: {error})"
    else:
        if isinstance(spec, ProgramSpec):
            return spec
        wrong = f"is a {type(spec).__name__}; it must be a qcthreads.programs.spec.ProgramSpec"
    package = f"the package {entry.dist.name}" if entry.dist else "the package"
    raise MachineError(
        f"the entry point {entry.name!r} of the group {_GROUP} {wrong}: repair or uninstall {package} that brings it"
    )


@cache
def _entry_points():  # type: ignore[no-untyped-def]
    """Name in lower case -> entry point."""
    from importlib.metadata import entry_points

    return {entry.name.lower(): entry for entry in entry_points(group=_GROUP)}


def _module_path(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return found.origin if found else None


def _check_known(name: str) -> None:
    """Programs that there is no record of are QCEngine's, or nobody's."""
    known = _known_to_qcengine("programs")
    if known is None or name in names() or name in known:
        return
    others = sorted(known - set(names()))
    if name in (_known_to_qcengine("procedures") or ()):
        raise InputError(
            f"{name} is a procedure of QCEngine, and has calculations done by a program: name the one that does them"
        )
    near = nearest(name, [*names(), *others])
    also = f"; QCEngine has also {', '.join(others)}" if others else ""
    raise InputError(
        f"there is no program {name!r}; {f'did you mean {near}? ' if near else ''}"
        f"qcthreads knows {', '.join(names())}{also}"
    )


def _check_harness(spec: ProgramSpec) -> None:
    """Refuse a record of another package's that QCEngine has nothing for."""
    known = _known_to_qcengine("programs")
    if known is not None and spec.harness_module is None and spec.name.lower() not in known:
        raise InputError(
            f"QCEngine knows no program {spec.name!r}: its record has to name a harness_module that registers one, or "
            "to say qcengine=False, and is then for `qcthreads exec`"
        )


def _known_to_qcengine(kind: Literal["programs", "procedures"]) -> set[str] | None:
    """Their names in lower case, whether they are installed or not; ``None``: QCEngine is not here."""
    try:
        import qcengine
    except ImportError:
        return None
    listed = qcengine.list_all_programs() if kind == "programs" else qcengine.list_all_procedures()
    return {name.lower() for name in listed}


def _path_by_qcengine(name: str) -> str | None:
    """QCEngine drives more programs than there are records of; where it has one, that is all that is known."""
    try:
        from qcengine import get_program
        from qcengine.exceptions import QCEngineException
    except ImportError:
        return None
    try:
        get_program(name)
    except QCEngineException:
        return None
    return f"QCEngine's {name}"
