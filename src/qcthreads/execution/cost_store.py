"""Cost models on disk: what was measured on this machine; fits nothing itself."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from ..errors import InputError, MachineError
from ..host.profiles import cpu_model, data_directory, fingerprint, write_document
from ..machine import Machine
from ..planning.cost import GRADIENT_RATIO
from ..planning.costs import CostModel, Observation, thinned
from ..programs import registry

if sys.platform == "win32":
    from ..host.windows_locks import FileLocks
else:
    from ..host.locks import FileLocks

FORMAT = 1
"""A file of another format is neither read nor written."""

# Of each program, method and basis: 300 kB of JSON, and a fit in 0.1 s.
_KEPT = 400

# To read and to write a file takes some milliseconds.
_PATIENCE_S = 10.0
# No size, width or number of bytes is larger, and every float and every array of numpy can hold it.
_LARGEST = 2**62

_log = logging.getLogger("qcthreads")


@dataclass(frozen=True, slots=True)
class Kind:
    """What calculations must have in common for one model: within it only their size differs."""

    program: str
    driver: str
    method: str
    basis: str
    """Empty: none; so is ``None``, JSON's null."""
    keywords: str = ""
    """As JSON; empty: the program's defaults."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "basis", self.basis or "")

    @property
    def model(self) -> str:
        """``mp2/cc-pvdz``, or the method alone."""
        return f"{self.method}/{self.basis}" if self.basis else self.method

    @classmethod
    def of_key(cls, program: str, key: str) -> Self:
        """From a file; names are in lower case there."""
        driver, method, basis, keywords, *_ = [*key.split("|", 3), "", "", ""]
        return cls(program, driver, method, basis, keywords)

    def is_of(self, method: str | None, basis: str | None) -> bool:
        """Whether it is of this method and this basis; ``None``: of any."""
        pairs = (method, self.method), (basis, self.basis)
        return all(asked is None or asked.lower() == has.lower() for asked, has in pairs)

    @property
    def key(self) -> str:
        """In a file."""
        parts = (self.driver, self.method.lower(), self.basis.lower(), self.keywords)
        return "|".join(parts if self.keywords else parts[:-1])


class CostStore:
    """The cost models of one user on one machine; one file for each program.

    Parameters
    ----------
    machine
        Whose times these are: by its topology and kind of CPU.
    environ
        Says where the files are: ``XDG_DATA_HOME``, ``HOME``; ``None``: this process's.
    """

    def __init__(self, machine: Machine, environ: Mapping[str, str] | None = None) -> None:
        self._folder = data_directory(environ) / "machines" / fingerprint(machine, cpu_model()) / "costs"
        self._seen: dict[Path, tuple[object, Mapping[str, tuple[Observation, ...]]]] = {}
        """What each file held, and which file it was: one that is written is another."""

    def path(self, program: str) -> Path:
        """The program's file; it need not be there."""
        return self._folder / file_name(program)

    def model(self, kind: Kind) -> CostModel:
        """What was measured of ``kind`` here; its prior is of default keywords, of elsewhere, or of energies.

        Without observations where nothing was.
        """
        spec = registry.get(kind.program)
        model = CostModel(
            method=kind.method, useful_width=spec.useful_width, process_bytes=spec.memory_per_process_bytes
        )
        default = replace(kind, keywords="").key
        known, elsewhere = self._read(kind.program), shipped(kind.program)
        prior = None
        if default in elsewhere.observations:
            prior = replace(model, observations=elsewhere.observations[default], measured_on=elsewhere.measured_on)
        if kind.keywords and _timed(known.get(default, ())):
            prior = replace(model, observations=known[default], prior=prior)
        seen = known.get(kind.key, ())
        model = replace(model, observations=seen, prior=prior, prior_of_defaults=bool(kind.keywords))
        if prior is not None or kind.driver != "gradient":
            return model
        energy = self.model(replace(kind, driver="energy"))
        if energy.seconds_law is None and energy.prior is None:
            return model
        return replace(model, prior=energy, prior_ratio=GRADIENT_RATIO)

    def check(self, program: str) -> None:
        """Find out before hours of measuring, not after, that nothing can be kept: MachineError says why."""
        path = self.path(program)
        self._understood(path)
        there = next(folder for folder in path.parents if os.access(folder, os.F_OK))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "may not be written by this user" if there.is_dir() else "is no directory"
            raise MachineError(
                f"measured times cannot be kept in {path}: {there} {why}; name another directory with XDG_DATA_HOME"
            )

    def kept(self, program: str) -> dict[Kind, tuple[Observation, ...]]:
        """Everything that was measured of a program here; MachineError where its file cannot be read or understood."""
        known = self._understood(self.path(program))
        return {Kind.of_key(program, key): seen for key, seen in known.items()}

    def programs(self) -> list[str]:
        """Of which something was measured here."""
        try:
            return sorted(path.stem for path in self._folder.iterdir() if path.suffix == ".json")
        except OSError:
            return []

    def forget(self, program: str, method: str | None = None, basis: str | None = None) -> int:
        """Remove what was measured of a program here, or with this method or basis alone, whatever the keywords.

        Returns how many measurements went. Without method and basis the file goes, whatever it holds. MachineError
        where that is refused.
        """
        path = self.path(program)
        with _one_at_a_time(path):
            if method is None and basis is None:
                try:
                    known = self._known(path)
                except (OSError, InputError):
                    known = {}
                _remove(path)
                return sum(map(len, known.values()))
            known = self._understood(path)
            gone = {key for key in known if Kind.of_key(program, key).is_of(method, basis)}
            if gone:
                left = {key: seen for key, seen in known.items() if key not in gone}
                document = document_of(program, cpu_model(), left)
                write_document(path, document, "measured times cannot be removed from") if left else _remove(path)
            return sum(len(known[key]) for key in gone)

    def add(self, kind: Kind, observations: Iterable[Observation]) -> Path:
        """Keep these, too, but for what cannot have been measured.

        Raises MachineError where the file cannot be written, or holds what is not understood: that is left as it is.
        """
        path = self.path(kind.program)
        new = [seen for seen in observations if _is_sound(seen)]
        with _one_at_a_time(path):
            known = self._understood(path)
            known[kind.key] = thinned([*known.get(kind.key, ()), *new], _KEPT)
            document = document_of(kind.program, cpu_model(), known)
            write_document(path, document, "measured times cannot be kept in")
            self._seen[path] = _which(path), known
        return path

    def _known(self, path: Path) -> dict[str, tuple[Observation, ...]]:
        """As :func:`_known`, read anew only where another file is there: to read one takes milliseconds."""
        which = _which(path)
        if which is None or path not in self._seen or self._seen[path][0] != which:
            self._seen[path] = which, _known(path)
        return dict(self._seen[path][1])

    def _understood(self, path: Path) -> dict[str, tuple[Observation, ...]]:
        try:
            return self._known(path)
        except (OSError, InputError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or error
            remedy = f"or `qcthreads calibrate --forget {path.stem}` removes the file"
            raise MachineError(
                f"measured times in {path} cannot be read: {why}; "
                + ("move it away" if path.is_dir() else f"put that right, {remedy}")
            ) from error

    def _read(self, program: str) -> dict[str, tuple[Observation, ...]]:
        path = self.path(program)
        try:
            return self._known(path)
        except (OSError, InputError) as error:
            _log.warning("measured times in %s are not used: %s", path, error)
            return {}


@contextlib.contextmanager
def never_failing() -> Iterator[None]:
    """For who keeps what a run measured: whatever goes wrong is a line in the log, as the run has its results."""
    try:
        yield
    except Exception as error:
        _log.warning("what this run measured does not help the next one: %s", error, exc_info=True)


@dataclass(frozen=True, slots=True)
class Shipped:
    """Measurements that come with qcthreads."""

    measured_on: str
    """The kind of CPU, and the day."""
    observations: Mapping[str, tuple[Observation, ...]]
    """By :attr:`Kind.key`."""


@cache
def shipped(program: str) -> Shipped:
    """Of one program; nothing where none come with it."""
    found = files(__package__) / "measured" / file_name(program)
    if not found.is_file():
        return Shipped("", {})
    document = json.loads(found.read_text(encoding="utf-8"))
    return Shipped(document["measured_on"], observations_of(document))


def file_name(program: str) -> str:
    """Of the measurements of one program."""
    return f"{re.sub('[^a-z0-9_.+-]', '_', program.lower())}.json"


def document_of(program: str, machine: str, known: Mapping[str, Iterable[Observation]]) -> dict[str, Any]:
    """The contents of a file."""
    models = {
        key: CostModel(method="", observations=tuple(seen)).to_json()["observations"] for key, seen in known.items()
    }
    return {"format": FORMAT, "program": program, "measured_on": machine, "models": models}


def observations_of(document: Any, name: object = "") -> dict[str, tuple[Observation, ...]]:
    """The inverse, without those that cannot have been measured; these are told of by the file's ``name``.

    InputError where it cannot be such a document.
    """
    models = document.get("models") if isinstance(document, dict) and document.get("format") == FORMAT else None
    if not isinstance(models, dict) or not all(isinstance(rows, list) for rows in models.values()):
        raise InputError(f"it is no file of measured times of format {FORMAT}")
    read = {key: [_observation(row) for row in rows] for key, rows in models.items()}
    unsound = sum(seen is None for found in read.values() for seen in found)
    if unsound:
        _log.warning("%d of the measured times in %s cannot be true, and are not used", unsound, name)
    return {key: tuple(seen for seen in found if seen is not None) for key, found in read.items()}


def _observation(row: Any) -> Observation | None:
    """``None``: it cannot have been measured."""
    try:
        (seen,) = CostModel.from_json({"method": "", "useful_width": None, "observations": [row]}).observations
    except (InputError, OverflowError):
        return None
    return seen if _is_sound(seen) else None


def _is_sound(seen: Observation) -> bool:
    """Whether models can be fitted to it."""
    counts = seen.size.electrons, seen.peak_memory_bytes, seen.peak_scratch_bytes
    return (
        all(seconds is None or 0 < seconds < _LARGEST for seconds in (seen.wall_s, seen.at_most_s))
        and all(0 < count < _LARGEST for count in (seen.size.basis_functions, seen.width))
        and all(0 <= count < _LARGEST for count in counts)
    )


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"{path} cannot be removed: {error.strerror or error}; put that right") from error


def _timed(observations: Iterable[Observation]) -> bool:
    return any(seen.wall_s is not None for seen in observations)


def _which(path: Path) -> object:
    """Equal for a file that nobody has written since; ``None`` where there is none."""
    try:
        with path.open("rb") as file:  # which asks a server whether its file is still that one
            told = os.fstat(file.fileno())
    except OSError:
        return None
    return told.st_ino, told.st_mtime_ns, told.st_size


def _known(path: Path) -> dict[str, tuple[Observation, ...]]:
    """Nothing where there is no file; OSError, and InputError where it is not understood."""
    try:
        return observations_of(json.loads(path.read_text(encoding="utf-8")), path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(str(error)) from None


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Of all who write this file; where its file system has no locks, and after some seconds, nobody is kept out."""
    locks, name = None, f"{path.name}.lock"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        locks = FileLocks(path.parent, create=True)
        end = time.monotonic() + _PATIENCE_S
        while not locks.try_lock(name) and time.monotonic() < end:
            time.sleep(0.005)
    try:
        yield
    finally:
        if locks is not None:
            locks.unlock(name)
            locks.close()
