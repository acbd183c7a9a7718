"""Cost models on disk: what was measured on this machine; fits nothing itself."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..host.profiles import cpu_model, data_directory, fingerprint, write_document
from ..machine import Machine
from ..planning.costs import CostModel, Observation, thinned
from ..programs import registry

FORMAT = 1
"""A file of another format is not read."""

# Of each program, method and basis: 300 kB of JSON, and a fit in 0.1 s.
_KEPT = 400

_log = logging.getLogger("qcthreads")


@dataclass(frozen=True, slots=True)
class Kind:
    """What calculations must have in common for one model: within it only their size differs."""

    program: str
    driver: str
    method: str
    basis: str
    """Empty: none."""
    keywords: str = ""
    """As JSON; empty: the program's defaults."""

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

    def path(self, program: str) -> Path:
        """The program's file; it need not be there."""
        return self._folder / file_name(program)

    def model(self, kind: Kind) -> CostModel:
        """What was measured of ``kind`` here, with default keywords, or elsewhere, in this order.

        Without observations where nothing was.
        """
        model = CostModel(method=kind.method, useful_width=registry.get(kind.program).useful_width)
        default = replace(kind, keywords="").key
        known = self._read(kind.program)
        if seen := known.get(kind.key):
            return replace(model, observations=seen)
        if seen := known.get(default):
            return replace(model, observations=seen, other_keywords=True)
        elsewhere = shipped(kind.program)
        if default in elsewhere.observations:
            return replace(model, observations=elsewhere.observations[default], measured_on=elsewhere.measured_on)
        return model

    def add(self, kind: Kind, observations: Iterable[Observation]) -> Path:
        """Keep these, too. Of two that write at the same time one may lose what it adds; the file stays whole.

        Raises MachineError where it cannot be written.
        """
        path = self.path(kind.program)
        known = self._read(kind.program)
        known[kind.key] = thinned([*known.get(kind.key, ()), *observations], _KEPT)
        document = document_of(kind.program, cpu_model(), known)
        write_document(path, document, "measured times cannot be kept in")
        return path

    def _read(self, program: str) -> dict[str, tuple[Observation, ...]]:
        path = self.path(program)
        try:
            return observations_of(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, InputError) as error:
            _log.warning("measured times in %s are not used: %s", path, error)
            return {}


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


def observations_of(document: Any) -> dict[str, tuple[Observation, ...]]:
    """The inverse. InputError where it cannot be such."""
    if (
        not isinstance(document, dict)
        or document.get("format") != FORMAT
        or not isinstance(document.get("models"), dict)
    ):
        raise InputError(f"it is no file of measured times of format {FORMAT}")
    return {
        str(key): CostModel.from_json({"method": "", "useful_width": None, "observations": rows}).observations
        for key, rows in document["models"].items()
    }
