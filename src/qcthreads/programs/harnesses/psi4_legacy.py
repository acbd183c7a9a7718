"""Psi4 before 1.4 for QCEngine, as ``psi4_legacy``; importing this registers it and leaves QCEngine's own psi4 alone.

QCEngine 0.52 cannot drive it: Psi4 1.3 does not understand the name of its input, nor its layout. Here the input is
written as QCSchema version 1 for ``psi4 --json``, and the answer read back as version 2, without version 1's models,
which do not exist from Python 3.14 on.
"""

from __future__ import annotations

import json
import os
from typing import Any, ClassVar

import qcengine
from qcelemental.models.v2 import AtomicInput, AtomicProperties, AtomicResult
from qcelemental.util import which
from qcengine.config import TaskConfig
from qcengine.exceptions import InputError, RandomError, ResourceError, UnknownError
from qcengine.programs.model import ProgramHarness
from qcengine.util import execute, temporary_directory

_NAME = "psi4_legacy"


class LegacyPsi4Harness(ProgramHarness):  # type: ignore[misc]
    """Psi4 1.2 and 1.3 as a command, one process per calculation."""

    _defaults: ClassVar[dict[str, Any]] = {
        "name": _NAME,
        "scratch": True,
        "thread_safe": True,
        "thread_parallel": True,
        "node_parallel": False,
        "managed_memory": True,
    }

    @staticmethod
    def found(raise_error: bool = False) -> bool:
        """Whether there is a ``psi4`` on PATH; asking its version would cost 0.5 CPU-s."""
        return bool(
            which("psi4", return_bool=True, raise_error=raise_error, raise_msg="On Debian: `apt install psi4`.")
        )

    def compute(self, input_data: AtomicInput, config: TaskConfig) -> AtomicResult:
        """Run one calculation; QCEngine turns what is raised into a FailedOperation."""
        self.found(raise_error=True)
        written = json.dumps(_as_version_1(input_data, config))
        parent = config.scratch_directory or os.environ.get("PSI_SCRATCH")
        with temporary_directory(parent=parent, suffix="_psi_scratch", messy=config.scratch_messy) as scratch:
            finished, files = execute(
                [which("psi4"), "--scratch", str(scratch), "--json", "data.json"],
                {"data.json": written},
                ["data.json"],
                scratch_directory=str(scratch),
            )
        text = files["outfiles"].get("data.json")
        if not finished or not text:
            said = (files.get("stderr") or files.get("stdout") or "nothing").strip()
            raise RandomError(f"psi4 --json ended without a result; it said: {said}")
        answer = json.loads(text)
        if not answer.get("success"):
            _raise(answer)
        return _as_version_2(answer, input_data, config)


def _as_version_1(inp: AtomicInput, config: TaskConfig) -> dict[str, Any]:
    spec = inp.specification
    if not isinstance(spec.model.basis, str | None):
        raise InputError("Psi4 takes the name of a basis set as a string; a QCSchema BasisSet is not offered")
    molecule = json.loads(inp.molecule.model_dump_json(exclude_none=True))
    for name in ("schema_name", "schema_version", "provenance", "extras", "identifiers", "id", "connectivity"):
        molecule.pop(name, None)
    molecule["molecular_multiplicity"] = round(inp.molecule.molecular_multiplicity)
    molecule["fragment_multiplicities"] = [round(m) for m in inp.molecule.fragment_multiplicities]
    keywords = {name.lower(): value for name, value in spec.keywords.items()}
    if inp.molecule.molecular_multiplicity != 1:
        keywords.setdefault("reference", "uhf")
    return {
        "schema_name": "qc_schema_input",
        "schema_version": 1,
        "molecule": {"schema_name": "qcschema_molecule", "schema_version": 2, **molecule},
        "driver": str(spec.driver.value),
        "model": {"method": spec.model.method, "basis": spec.model.basis or ""},
        "keywords": keywords,
        "nthreads": config.ncores,
        "memory": int(config.memory * 1024**3),
        "return_output": bool(spec.protocols.stdout),
    }


def _as_version_2(answer: dict[str, Any], inp: AtomicInput, config: TaskConfig) -> AtomicResult:
    molecule = {k: v for k, v in answer["molecule"].items() if k not in ("schema_name", "schema_version")}
    told = answer["properties"] | {f"return_{inp.specification.driver.value}": answer["return_result"]}
    properties = {k: v for k, v in told.items() if k in AtomicProperties.model_fields}
    provenance = {**answer["provenance"], "nthreads": config.ncores, "memory": round(config.memory, 3)}
    return AtomicResult(
        input_data=inp,
        molecule=molecule,
        properties=properties,
        return_result=answer["return_result"],
        success=True,
        stdout=answer.get("raw_output"),
        provenance=provenance,
        extras={"qcvars": answer.get("extras", {}).get("qcvars", {})},
    )


def _raise(answer: dict[str, Any]) -> None:
    """Psi4's own message, as the kind of error that QCEngine's harness makes of it."""
    error = answer.get("error", "Psi4 gave no reason")
    message = _last_words(str(error.get("error_message", error) if isinstance(error, dict) else error))
    if "PSIO Error" in message:
        raise (ResourceError if "scratch directory" in message else RandomError)(message)
    wrong_input = (
        "set_global_option",
        "ValidationError",
        "Managed",
        "Missing",
        "only for singlets",
        "BasisSet",
    )
    raise (InputError if any(mark in message for mark in wrong_input) else UnknownError)(message)


def _last_words(message: str) -> str:
    """What Psi4 said, without the way through its own source that it prints first."""
    lines = message.strip().splitlines()
    way = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    rest = lines[way[-1] + 1 :] if way else lines
    said = next((number for number, line in enumerate(rest) if line and not line.startswith(" ")), 0)
    return "\n".join(rest[said:])


if _NAME not in qcengine.list_all_programs():
    qcengine.register_program(LegacyPsi4Harness())
