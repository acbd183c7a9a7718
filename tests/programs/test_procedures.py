"""QCEngine's procedures, real ones over real programs: the width that they are given is that of the program below."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from qcthreads.programs.precedence import environment_under, settle
from qcthreads.programs.registry import get
from qcthreads.programs.settings import settings_for

WATER = {"symbols": ["O", "H", "H"], "geometry": [0, 0, 0.22, 0, 1.43, -0.9, 0, -1.43, -0.9]}
PEROXIDE = {"symbols": ["O", "O", "H", "H"], "geometry": [0, 0, 0, 2.75, 0, 0, -0.3, 1.8, 0, 3.05, 0.2, 1.8]}
HF = {"method": "hf", "basis": "sto-3g"}
OPTIMIZE = """
import importlib, json, sys
import qcengine
job = json.load(sys.stdin)
if job["harness_module"]:
    importlib.import_module(job["harness_module"])
result = qcengine.compute(
    job["input"], job["procedure"], task_config=job["task_config"], return_version=2, return_dict=True, raise_error=True
)
scans = result.get("scan_results", {"": [result]})
steps = [step for scan in scans.values() for one in scan for step in one["trajectory_results"]]
threads = [step["provenance"].get("nthreads") for step in steps]
json.dump({"threads": threads, "scanned": sorted(scans), "stdout": result["stdout"]}, sys.stdout)
"""


def optimization(program, model):
    specification = {"program": program, "driver": "gradient", "model": model}
    return {"specification": specification, "protocols": {"trajectory_results": "all"}}


def run(procedure, program, molecule, specification, scratch):
    settings = settings_for(get(program), 2, 2 * 1024**3, str(scratch))
    job = {
        "procedure": procedure,
        "harness_module": settings.harness_module,
        "task_config": dict(settings.task_config),
        "input": {"initial_molecule": molecule, "specification": specification},
    }
    done = subprocess.run(
        [sys.executable, "-c", OPTIMIZE],
        input=json.dumps(job),
        env=environment_under(settle(settings, os.environ, counts=False), os.environ),
        cwd=scratch,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index('{"threads"') :])


@pytest.mark.parametrize(("procedure", "module"), [("geometric", "geometric"), ("berny", "berny")])
def test_an_optimizer_hands_its_width_on(procedure, module, needs, tmp_path):
    """PySCF's harness says the size of the team that its OpenMP runtime has, not what was asked."""
    needs("pyscf")
    pytest.importorskip(module, reason=f"{module} is not installed here")
    done = run(procedure, "pyscf", WATER, optimization("pyscf", HF), tmp_path)
    assert len(done["threads"]) > 1
    assert set(done["threads"]) == {2}


def test_torsiondrive_hands_its_width_to_the_optimizer_and_that_to_the_program(needs, tmp_path):
    needs("pyscf")
    for module in ("torsiondrive", "geometric"):
        pytest.importorskip(module, reason=f"{module} is not installed here")
    keywords = {"dihedrals": [(2, 0, 1, 3)], "grid_spacing": [180], "dihedral_ranges": [(-90, 90)]}
    loose = {"coordsys": "hdlc", "convergence_set": "GAU_LOOSE"}
    specification = {
        "keywords": keywords,
        "protocols": {"scan_results": "all"},
        "specification": {"program": "geometric", "keywords": loose, **optimization("pyscf", HF)},
    }
    done = run("torsiondrive", "pyscf", [PEROXIDE], specification, tmp_path)
    assert done["scanned"] == ["0"]
    assert set(done["threads"]) == {2}


@pytest.mark.nwchem
def test_nwchemdriver_hands_its_width_on(needs, tmp_path):
    needs("nwchem")
    done = run("nwchemdriver", "nwchem", WATER, optimization("nwchem", HF), tmp_path)
    assert re.search(r"nproc\s+=\s+(\d+)", done["stdout"])[1] == "2"
