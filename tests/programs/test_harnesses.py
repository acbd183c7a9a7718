"""The harnesses of ours: what they refuse, what they answer, and that they leave QCEngine as it was."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

WATER = {"symbols": ["O", "H", "H"], "geometry": [0, 0, 0.22, 0, 1.43, -0.9, 0, -1.43, -0.9]}
METHYL = {
    "symbols": ["C", "H", "H", "H"],
    "geometry": [0, 0, 0, 2.04, 0, 0, -1.02, 1.766, 0, -1.02, -1.766, 0.1],
    "molecular_multiplicity": 2,
}


def compute(
    program="pyscf", molecule=WATER, method="hf", basis="sto-3g", driver="energy", keywords=None, ncores=1, **kw
):
    import qcengine

    import qcthreads.programs.harnesses.psi4_legacy
    import qcthreads.programs.harnesses.pyscf  # noqa: F401

    specification = {"driver": driver, "model": {"method": method, "basis": basis}, "keywords": keywords or {}, **kw}
    return qcengine.compute(
        {"molecule": molecule, "specification": specification},
        program,
        task_config={"ncores": ncores, "memory": 1.0},
        return_version=2,
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"keywords": {"scf_type": "pk"}}, "unknown keywords for PySCF: scf_type. It knows reference"),
        ({"method": "ccsd"}, "offered are hf and mp2"),
        ({"basis": "cc-pvxz"}, "no basis set 'cc-pvxz'"),
        ({"driver": "hessian"}, "offered are energy and gradient"),
        ({"molecule": METHYL, "keywords": {"reference": "rhf"}}, "RHF is for singlets"),
        ({"molecule": METHYL, "method": "mp2", "keywords": {"reference": "rohf"}}, "use reference uhf"),
        ({"keywords": {"reference": "ghf"}}, "must be rhf, uhf or rohf"),
        ({"keywords": {"frozen_core": "yes"}}, "must be true, false (default), or the number"),
        ({"method": "mp2", "keywords": {"frozen_core": 9}}, "has 5 doubly occupied orbitals"),
        ({"method": "mp2", "keywords": {"frozen_core": 5}}, "some electron must be left to correlate"),
        ({"keywords": {"conv_tol": "tight"}}, "must be a number above 0"),
        ({"keywords": {"max_cycle": True}}, "must be a whole number of at least 1"),
        ({"keywords": {"auxbasis": "none-such", "density_fit": True}}, "no basis set 'none-such' for O"),
        ({"keywords": {"density_fit": 1}}, "density_fit is 1"),
        ({"method": "mp2", "driver": "gradient", "keywords": {"density_fit": True}}, "leave density_fit out"),
    ],
)
def test_pyscf_refuses_by_name(asked, said, needs):
    needs("pyscf")
    failed = compute(**asked)
    assert not failed.success
    assert failed.error.error_type == "input_error"
    assert said in failed.error.error_message


def test_an_scf_that_does_not_converge_is_an_error(needs):
    needs("pyscf")
    failed = compute(keywords={"max_cycle": 1})
    assert failed.error.error_type == "convergence_error"
    assert "did not converge to 1e-10 hartree in 1 iterations" in failed.error.error_message


def test_second_order_iterations_rescue_a_hard_scf(needs):
    needs("pyscf")
    easy, rescued = compute(), compute(keywords={"max_cycle": 4})
    assert easy.properties.scf_iterations > 4
    assert rescued.return_result == pytest.approx(easy.return_result, abs=1e-9)


def test_pyscf_gives_every_field_of_the_result(needs):
    needs("pyscf")
    result = compute(method="mp2", basis="cc-pvdz")
    properties = result.properties
    assert result.return_result == properties.return_energy == properties.mp2_total_energy
    assert properties.mp2_total_energy == pytest.approx(
        properties.scf_total_energy + properties.mp2_correlation_energy, abs=1e-10
    )
    assert (properties.calcinfo_natom, properties.calcinfo_nbasis, properties.calcinfo_nmo) == (3, 24, 24)
    assert (result.provenance.creator, result.provenance.nthreads) == ("PySCF", 1)
    assert "converged SCF energy" in result.stdout
    assert compute(protocols={"stdout": False}).stdout is None


@pytest.mark.parametrize("method", ["hf", "mp2"])
@pytest.mark.parametrize("molecule", [WATER, METHYL], ids=["closed", "open"])
def test_gradient_is_the_slope_of_the_energy(method, molecule, needs):
    needs("pyscf")
    keywords = {"conv_tol": 1e-12, "frozen_core": method == "mp2"}
    gradient = compute(molecule=molecule, method=method, driver="gradient", keywords=keywords).return_result
    energies = []
    for step in (-1e-3, 1e-3):
        moved = np.array(molecule["geometry"], dtype=float)
        moved[5] += step
        fixed = {"fix_com": True, "fix_orientation": True}
        energies.append(
            compute(molecule={**molecule, "geometry": moved, **fixed}, method=method, keywords=keywords).return_result
        )
    assert gradient[1, 2] == pytest.approx((energies[1] - energies[0]) / 2e-3, abs=2e-6)


def test_pyscf_leaves_thread_counts_as_they_were(needs):
    needs("pyscf")
    from pyscf import lib
    from threadpoolctl import threadpool_info

    compute()
    before = lib.num_threads(), [pool["num_threads"] for pool in threadpool_info()]
    assert compute(ncores=2).provenance.nthreads == 2
    assert (lib.num_threads(), [pool["num_threads"] for pool in threadpool_info()]) == before


@pytest.mark.psi4
def test_old_psi4_fails_with_its_own_words(needs):
    needs("psi4")
    failed = compute("psi4_legacy", keywords={"num_threads": 2})
    assert failed.error.error_type == "input_error"
    assert "NUM_THREADS is not a valid option" in failed.error.error_message
    assert "Traceback" not in failed.error.error_message.split("ValidationError")[0].removeprefix("QCEngine")


@pytest.mark.psi4
def test_old_psi4_gives_a_gradient_like_pyscfs(needs):
    needs("psi4", "pyscf")
    fixed = {**WATER, "fix_com": True, "fix_orientation": True}
    tight = {"scf_type": "pk", "e_convergence": 1e-9, "d_convergence": 1e-9}
    result = compute("psi4_legacy", molecule=fixed, driver="gradient", keywords=tight)
    theirs = result.return_result
    assert (result.properties.return_gradient == theirs).all()  # pyberny reads it there
    ours = compute(molecule=fixed, driver="gradient").return_result
    assert np.abs(ours - theirs).max() < 1e-6


def _registry_after(*modules):
    code = (
        "import importlib, json, sys, qcengine\n"
        "from qcengine.programs.base import programs\n"
        "before = dict(programs)\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
        "added = sorted(programs.keys() - before.keys())\n"
        "changed = sorted(name for name in before if programs.get(name) is not before[name])\n"
        "json.dump([added, changed], sys.stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_tblite_takes_its_methods_in_any_case(needs):
    needs("tblite")
    import qcthreads.programs.harnesses.tblite  # noqa: F401

    written, lower, other = (
        compute("tblite", method=method, basis=None) for method in ("GFN2-xTB", "gfn2-xtb", "GFN1-xTB")
    )
    assert written.return_result == lower.return_result != other.return_result
    refused = compute("tblite", method="gfn3-xtb", basis=None)
    assert "gfn3-xtb" in refused.error.error_message


def test_harnesses_take_no_name_from_qcengine(needs):
    needs("pyscf")
    ours = ("qcthreads.programs.harnesses.pyscf", "qcthreads.programs.harnesses.psi4_legacy", "qcthreads")
    assert _registry_after(*ours) == [["psi4_legacy", "pyscf"], []]


@pytest.mark.psi4
def test_in_a_worker_old_psi4_takes_the_name_psi4(needs, tmp_path):
    needs("psi4")
    asked = subprocess.run(["psi4", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    version = asked.stdout.split()[-1]
    old = tuple(int(part) for part in version.split(".")[:2]) < (1, 4)
    _, changed = _registry_after("qcthreads.programs.harnesses.psi4")
    assert changed == (["psi4"] if old else [])


def test_new_psi4_keeps_qcengines_harness(tmp_path):
    # Psi4 from 1.4 on cannot be installed beside Debian's: a script with its option stands in for it.
    from qcthreads.programs.harnesses.psi4 import is_legacy

    script = tmp_path / "psi4"
    script.write_text('parser.add_argument("--json")\nparser.add_argument("--qcschema")\n')
    assert not is_legacy(str(script))
