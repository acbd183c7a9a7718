"""QCManyBody's and QCEngine's own test suites, as their wheels ship them, with and without us in the same process.

Debian's Psi4, NWChem and MOPAC are kept off PATH: with them the suites take hours, most of it in tests that fail
alike with a Psi4 as old as Debian's. What our Psi4 harness replaces is replaced in worker processes only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

# Of the molecules that xtb computes by GFN2 the first; the four others take half of the time. What tests QCEngine's
# command starts it in processes where we never are.
FEWER = ("-k", "not (gfn2xtb_m02 or gfn2xtb_m03 or gfn2xtb_m04 or gfn2xtb_m05 or test_cli)")
SLOW_PROGRAMS = ("psi4", "nwchem", "mopac", "mpirun", "mpiexec")
PLUGIN = """
import importlib
import qcthreads
for name in qcthreads.__all__:
    getattr(qcthreads, name)
importlib.import_module("qcthreads.programs.harnesses.pyscf")
importlib.import_module("qcthreads.programs.harnesses.psi4_legacy")
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("package", ["qcmanybody", "qcengine"])
def test_same_results_with_and_without_us(package: str, tmp_path: Path) -> None:
    (tmp_path / "qcthreads_is_here.py").write_text(PLUGIN)
    path = path_without(tmp_path / "path", SLOW_PROGRAMS)
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(outcomes, package, path, tmp_path / name, *options)
            for name, options in (("without", ()), ("with_us", ("-p", "qcthreads_is_here")))
        ]
        without, with_us = (one.result() for one in asked)
    assert len(without) > 100
    assert sum(outcome == "passed" for outcome in without.values()) > 100
    assert with_us == without


def outcomes(package: str, path: str, folder: Path, *options: str) -> dict[str, str]:
    """Each test's name and how it ended."""
    folder.mkdir()
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *FEWER, *options]
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder.parent), "OMP_NUM_THREADS": "1"}
    environment.pop("COVERAGE_PROCESS_START", None)
    ended = subprocess.run(
        [*command, "--pyargs", package], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert report.exists(), ended.stdout + ended.stderr
    seen = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        seen[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return seen


def path_without(folder: Path, programs: tuple[str, ...]) -> str:
    """A PATH on which everything is that was, but for ``programs``."""
    folder.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        for program in Path(directory).glob("*"):
            link = folder / program.name
            if not program.name.startswith(programs) and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)
