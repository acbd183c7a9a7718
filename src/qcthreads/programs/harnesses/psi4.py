"""For worker processes only: importing this makes QCEngine's ``psi4`` the harness that fits the Psi4 on PATH.

For Psi4 from 1.4 on it changes nothing. In a user's own process import ``psi4_legacy`` instead, which takes no name
from QCEngine.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import qcengine
from qcengine.programs.base import unregister_program

from ..registry import find, get, version
from .psi4_legacy import LegacyPsi4Harness


def is_legacy(executable: str) -> bool:
    """Whether this ``psi4`` is older than 1.4.

    Its script says so in its options, which takes no time; asking the version takes 0.5 CPU-s, and is done where the
    executable is a wrapper.
    """
    text = Path(executable).read_bytes()
    if b"--qcschema" in text:  # came with 1.4
        return False
    if b"--json" in text:
        return True
    found = find(get("psi4"))
    match = re.match(r"(\d+)\.(\d+)", (found and version(found)) or "")
    return match is not None and (int(match[1]), int(match[2])) < (1, 4)


def _use_fitting_harness() -> None:
    executable = shutil.which("psi4")
    if executable is None or not is_legacy(executable):
        return
    unregister_program("psi4")
    qcengine.register_program(LegacyPsi4Harness(name="psi4"))


_use_fitting_harness()
