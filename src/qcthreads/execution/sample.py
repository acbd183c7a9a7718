"""Small real calculations for ``qcthreads verify``: from a record or a file to what a worker is sent; starts none."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..programs.spec import ProgramSpec, Settings
from ..units import BOHR_TO_ANGSTROM
from .xyz import parse_xyz

_WATER_BOHR = (("O", 0.0, 0.0, 0.22), ("H", 0.0, 1.43, -0.9), ("H", 0.0, -1.43, -0.9))
_APART_BOHR = 6.0
_OWN_NAME = re.compile(r"\S*\binput(?:\.\w+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One calculation: through QCEngine ``atomic_input``, else the program's own command on ``files``."""

    program: str
    title: str
    """What is computed, in a line."""
    atomic_input: Mapping[str, Any] | None = None
    command: str = ""
    files: Mapping[str, str] | None = None
    energy_pattern: str = ""

    def request(self, settings: Settings) -> dict[str, Any]:
        """What a worker under ``settings`` is sent."""
        told = {
            "program": settings.program,
            "harness_module": settings.harness_module,
            "task_config": dict(settings.task_config),
        }
        if self.atomic_input is not None:
            return {**told, "compute": None, "input": self.atomic_input}
        ranks, width = settings.ranks, settings.threads
        words = {"{threads}": str(width // ranks), "{ranks}": str(ranks), "{width}": str(width)}
        given = {
            "command": _filled(self.command, words),
            "files": {name: _filled(text, words) for name, text in (self.files or {}).items()},
            "energy_pattern": self.energy_pattern,
        }
        return {**told, "compute": f"{__name__}:run_command", "input": given}


def built_in(spec: ProgramSpec, method: str | None = None, basis: str | None = None) -> Job:
    """The sample of the program's record, with another method or basis where they are given.

    Raises InputError where the record has none.
    """
    sample = spec.sample
    if sample is None:
        raise InputError(f"there is no calculation of ours for {spec.title}; give one: --input FILE")
    if not spec.qcengine:
        if method or basis:
            raise InputError(f"{spec.title} is run by its own command: method and basis are in its input, --input FILE")
        return _by_command(spec, {_input_name(spec): sample.input_text}, "its sample")
    method, basis = method or sample.method, basis or sample.basis
    _check_basis(spec, basis)
    model = method if basis is None else f"{method}/{basis}"
    return Job(
        program=spec.name,
        title=f"{model}, {sample.waters} waters",
        atomic_input=_atomic_input(_waters(sample.waters), method, basis, sample.keywords),
    )


def from_file(spec: ProgramSpec, path: Path, method: str | None = None, basis: str | None = None) -> Job:
    """A user's own: of QCEngine's programs an AtomicInput as JSON or an .xyz file, of others the program's own input.

    Raises InputError for what is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--input {path} cannot be read: {why}; give a text file of yours") from None
    if not spec.qcengine:
        if method or basis:
            raise InputError(f"method and basis of {spec.title} are in {path}; leave --method and --basis out")
        return _by_command(spec, {_input_name(spec) or path.name: text}, path.name)
    if path.suffix.lower() != ".xyz":
        if method or basis:
            raise InputError(f"method and basis are in {path}; leave --method and --basis out")
        return Job(program=spec.name, title=path.name, atomic_input=_from_json(path, text))
    method = method or spec.usual_method
    if method is None or (basis is None and spec.takes_basis):
        raise InputError(f"{path} has atoms alone: give --method, and --basis where {spec.title} has basis sets")
    _check_basis(spec, basis)
    model = method if basis is None else f"{method}/{basis}"
    molecule = _from_xyz(path, text)
    return Job(
        program=spec.name,
        title=f"{model}, {path.name}",
        atomic_input=_atomic_input(molecule, method, basis, {}),
    )


def _check_basis(spec: ProgramSpec, basis: str | None) -> None:
    if basis is not None and not spec.takes_basis:
        raise InputError(f"--basis {basis!r} with {spec.title}, which has no basis sets; leave the basis out")


def run_command(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run a program's own command in a directory of its own; called in the worker."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in given["files"].items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        done = subprocess.run(
            given["command"],
            shell=True,  # as records write it, `$(which orca)` among them
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            check=False,
        )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        error = f"{given['command']} ended with status {done.returncode}: {said}"
        return {"success": False, "error": {"error_type": "command", "error_message": error}}
    pattern = given["energy_pattern"]
    found = re.findall(pattern, done.stdout) if pattern else []
    return {"success": True, "return_result": float(found[-1]) if found else None}


def _by_command(spec: ProgramSpec, files: Mapping[str, str], what: str) -> Job:
    if not spec.command:
        raise InputError(f"nothing is known of how {spec.title} is started; use `qcthreads exec` and `monitor`")
    return Job(
        program=spec.name,
        title=f"{spec.command}, {what}",
        command=spec.command,
        files=files,
        energy_pattern=spec.energy_pattern,
    )


def _input_name(spec: ProgramSpec) -> str:
    """What the record's command calls its input; empty where it names none."""
    found = _OWN_NAME.search(spec.command)
    return found.group() if found else ""


def _filled(text: str, words: Mapping[str, str]) -> str:
    """Not ``format``: inputs have braces of their own."""
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _waters(number: int) -> dict[str, Any]:
    symbols, geometry = [], []
    for i in range(number):
        place = (i % 4, i // 4 % 4, i // 16)
        for symbol, *coordinates in _WATER_BOHR:
            symbols.append(symbol)
            geometry += [x + _APART_BOHR * step for x, step in zip(coordinates, place, strict=True)]
    return {"symbols": symbols, "geometry": geometry}


def _atomic_input(
    molecule: Mapping[str, Any], method: str, basis: str | None, keywords: Mapping[str, Any]
) -> dict[str, Any]:
    model = {"method": method} if basis is None else {"method": method, "basis": basis}
    specification = {"driver": "energy", "model": model, "keywords": dict(keywords)}
    return {"molecule": dict(molecule), "specification": specification}


def _from_json(path: Path, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not JSON ({error}); give a QCSchema AtomicInput as .json, or a molecule as .xyz"
        ) from None
    if not isinstance(data, dict) or "molecule" not in data:
        raise InputError(f"{path} has no molecule; give a QCSchema AtomicInput")
    return data


def _from_xyz(path: Path, text: str) -> dict[str, Any]:
    symbols, coordinates = parse_xyz(text, str(path))
    return {"symbols": symbols, "geometry": [x / BOHR_TO_ANGSTROM for position in coordinates for x in position]}
