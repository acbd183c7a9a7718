"""tblite for QCEngine, by tblite's own QCSchema interface; importing this registers it, and changes nothing else."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any, ClassVar

import qcengine
from qcelemental.models.v2 import AtomicInput, AtomicResult
from qcelemental.util import which_import
from qcengine.config import TaskConfig
from qcengine.exceptions import InputError, UnknownError
from qcengine.programs.model import ProgramHarness

from ..tblite import SPEC


class TBLiteHarness(ProgramHarness):  # type: ignore[misc]
    """GFN1-xTB, GFN2-xTB, IPEA1-xTB in this process, at the width of its OpenMP runtime."""

    _defaults: ClassVar[dict[str, Any]] = {
        "name": "tblite",
        "scratch": False,
        "thread_safe": False,
        "thread_parallel": True,
        "node_parallel": False,
        "managed_memory": False,
    }

    @staticmethod
    def found(raise_error: bool = False) -> bool:
        """Whether tblite can be imported."""
        return bool(
            which_import(
                "tblite",
                return_bool=True,
                raise_error=raise_error,
                raise_msg="Please install via `pip install tblite`.",
            )
        )

    def get_version(self) -> str:
        """tblite's version."""
        from tblite.library import get_version

        return ".".join(map(str, get_version()))

    def compute(self, input_data: AtomicInput, config: TaskConfig) -> AtomicResult:  # noqa: ARG002
        """Run one calculation; QCEngine turns what is raised into a FailedOperation."""
        self.found(raise_error=True)
        from tblite.qcschema import run_schema

        with redirect_stdout(io.StringIO()):  # it prints what it also returns
            result = run_schema(_as_it_is_written(input_data))
        if isinstance(result, AtomicResult):
            return result
        wrong_input = result.error.error_type == "input_error"
        raise (InputError if wrong_input else UnknownError)(result.error.error_message)


def _as_it_is_written(given: AtomicInput) -> AtomicInput:
    """The method, which tblite knows in one spelling only."""
    specification = given.specification
    written = {method.lower(): method for method in SPEC.methods}
    method = written.get(specification.model.method.lower(), specification.model.method)
    model = specification.model.model_copy(update={"method": method})
    return given.model_copy(update={"specification": specification.model_copy(update={"model": model})})


if "tblite" not in qcengine.list_all_programs():
    qcengine.register_program(TBLiteHarness())
