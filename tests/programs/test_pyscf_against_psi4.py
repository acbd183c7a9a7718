"""The embedded engine against Psi4 on ten molecules: conventional integrals, frozen core told, tight convergence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOLERANCE_HARTREE = 1e-6

MOLECULES = {
    # name: (frozen orbitals, basis, molecule as Psi4 reads it, angstrom; @ marks a ghost)
    "water": (1, "cc-pvdz", "0 1\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469"),
    "water beside ghosts": (
        1,
        "cc-pvdz",
        "0 1\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n@O 0 0.2 2.95\n@H 0 0.3 1.98\n@H 0.7 0.6 3.3",
    ),
    "hydroxide": (1, "aug-cc-pvdz", "-1 1\nO 0 0 0\nH 0 0 0.964"),
    "ammonium, Cartesian": (
        1,
        "6-31g*",
        "1 1\nN 0 0 0\nH 0.59 0.59 0.59\nH -0.59 -0.59 0.59\nH -0.59 0.59 -0.59\nH 0.59 -0.59 -0.59",
    ),
    "carbon monoxide, Cartesian diffuse": (2, "6-31+g*", "0 1\nC 0 0 0\nO 0 0 1.128"),
    "hydrogen chloride": (5, "6-311g**", "0 1\nH 0 0 0\nCl 0 0 1.275"),
    "sodium ion and water": (1, "def2-svp", "1 1\nNa 0 0 2.3\nO 0 0 0\nH 0 0.757 -0.586\nH 0 -0.757 -0.586"),
    "methyl": (1, "cc-pvdz", "0 2\nC 0 0 0\nH 1.079 0 0\nH -0.5395 0.93444 0\nH -0.5395 -0.93444 0"),
    "dioxygen": (2, "cc-pvdz", "0 3\nO 0 0 0\nO 0 0 1.207"),
    "water cation, Cartesian": (1, "6-31g**", "1 2\nO 0 0 0.117\nH 0 0.8 -0.469\nH 0 -0.8 -0.469"),
}


def mp2(program, text, basis, keywords):
    import qcengine
    from qcelemental.models.v2 import AtomicInput, Molecule

    import qcthreads.programs.harnesses.psi4_legacy
    import qcthreads.programs.harnesses.pyscf  # noqa: F401

    inp = AtomicInput(
        molecule=Molecule.from_data(text + "\nunits angstrom\nno_com\nno_reorient", dtype="psi4"),
        specification={"driver": "energy", "model": {"method": "mp2", "basis": basis}, "keywords": keywords},
    )
    return qcengine.compute(inp, program, raise_error=True, task_config={"ncores": 1, "memory": 1.0}).properties


@pytest.mark.psi4
@pytest.mark.parametrize("name", MOLECULES)
def test_hf_and_mp2_agree_with_psi4(name, needs):
    needs("psi4", "pyscf")
    frozen, basis, text = MOLECULES[name]
    ours = mp2("pyscf", text, basis, {"frozen_core": frozen, "conv_tol": 1e-11})
    tight = {"scf_type": "pk", "mp2_type": "conv", "e_convergence": 1e-10, "d_convergence": 1e-8}
    theirs = mp2("psi4_legacy", text, basis, {**tight, "num_frozen_docc": frozen})
    assert ours.scf_total_energy == pytest.approx(theirs.scf_total_energy, abs=TOLERANCE_HARTREE, rel=0)
    assert ours.mp2_total_energy == pytest.approx(theirs.mp2_total_energy, abs=TOLERANCE_HARTREE, rel=0)
    assert ours.nuclear_repulsion_energy == pytest.approx(theirs.nuclear_repulsion_energy, abs=1e-8, rel=0)
    assert ours.calcinfo_nbasis == theirs.calcinfo_nbasis
    assert (ours.calcinfo_nalpha, ours.calcinfo_nbeta) == (theirs.calcinfo_nalpha, theirs.calcinfo_nbeta)


@pytest.mark.psi4
def test_density_fitting_agrees_with_psi4(needs):
    needs("psi4", "pyscf")
    _, basis, text = MOLECULES["water"]
    ours = mp2("pyscf", text, basis, {"density_fit": True})
    theirs = mp2("psi4_legacy", text, basis, {"scf_type": "df", "mp2_type": "df", "e_convergence": 1e-9})
    assert ours.mp2_total_energy == pytest.approx(theirs.mp2_total_energy, abs=TOLERANCE_HARTREE, rel=0)


@pytest.mark.psi4
def test_cartesian_or_spherical_as_in_psi4s_basis_files(needs):
    needs("psi4", "pyscf")
    from pyscf import gto

    from qcthreads.programs.harnesses.pyscf import _is_cartesian

    files = sorted(Path("/usr/share/psi4/basis").glob("*.gbs")) or pytest.skip("Psi4's basis files are elsewhere")
    compared = 0
    for file in files:
        name = re.sub(r"p(?=p?g)", "+", file.stem) if file.stem.startswith("6-31") else file.stem
        name = name.replace("gss", "g**").replace("gs", "g*").replace("_d_p_", "(d,p)").replace("_d_", "(d)")
        first = next(line.strip().lower() for line in file.read_text().splitlines() if line.strip())
        if first not in ("cartesian", "spherical") or not _known_to_pyscf(gto, name):
            continue
        assert _is_cartesian(name) == (first == "cartesian"), name
        compared += 1
    assert compared > 50


def _known_to_pyscf(gto, name):
    try:
        return bool(gto.basis.load(name, "O"))
    except Exception:
        return False
