"""What an expansion consists of, against QCManyBody's own list of molecules."""

from __future__ import annotations

import json
from collections import Counter

import pytest

pytest.importorskip("qcmanybody", reason="the expansion is QCManyBody's")

from qcelemental.models.v2 import AtomicInput, Molecule
from qcmanybody import ManyBodyCore, delabeler

from qcthreads.errors import InputError
from qcthreads.manybody.expansion import Expansion
from qcthreads.manybody.inputs import build_input, molecule_from_xyz
from qcthreads.manybody.report import fragment_rows

# An ion, a radical, an isotope, a closed shell; charges and multiplicities differ in every cluster.
BLOCK = (
    "1 1\nLi 0 0 0\n--\n0 2\nO 0 0 3\nH 0 0.9 3\n--\n0 1\nO 3 0 0\nH 3.6 0.7 0\nH@2.014 3.6 -0.7 0\n--\n-1 1\nF 0 4 0\n"
)


def expansion(max_nbody: int, bsse: list[str], block: str = BLOCK, basis: str = "6-31g") -> Expansion:
    molecule = Molecule.from_data(block, dtype="psi4", fix_com=True, fix_orientation=True)
    return Expansion.from_input(build_input(molecule, method="hf", basis=basis, max_nbody=max_nbody, bsse=bsse))


@pytest.mark.parametrize("bsse", [["nocp"], ["cp"], ["nocp", "cp"]])
@pytest.mark.parametrize("max_nbody", [1, 2, 3, 4])
@pytest.mark.parametrize("total", [True, False])
def test_counts_terms_and_molecules_are_those_of_qcmanybody(max_nbody, bsse, total):
    whole = expansion(max_nbody, bsse)
    core = ManyBodyCore(
        whole.core.molecule,
        bsse,
        dict.fromkeys(range(1, max_nbody + 1), "(auto)"),
        return_total_data=total,
        supersystem_ie_only=False,
        embedding_charges={},
    )
    (chemistry,) = whole.chemistries
    ours = Expansion(core, [chemistry])
    molecules = {label: molecule for _, label, molecule in core.iterate_molecules()}
    counted = Counter(len(delabeler(label)[1]) for label in molecules)
    assert ours.counts_by_nbody() == dict(sorted(counted.items()))
    terms = ours.terms()
    assert sorted(term.label for term in terms) == sorted(molecules)
    for term in terms:
        made = ours.calculation(term, threads=1, memory_bytes=0).input()
        given = {**chemistry.specification, "program": "pyscf"}
        theirs = AtomicInput(molecule=molecules[term.label], specification=given).model_dump(mode="json")
        assert json.dumps(made, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def test_rows_say_what_the_molecules_are():
    ours = expansion(4, ["nocp", "cp"])
    rows = {row.label: row for row in fragment_rows(ours.terms(), ours.core.molecule)}
    for _, label, molecule in ours.core.iterate_molecules():
        row = rows[label]
        real = [symbol for symbol, is_real in zip(molecule.symbols, molecule.real, strict=True) if is_real]
        charge, nuclear = int(molecule.molecular_charge), {"H": 1, "Li": 3, "O": 8, "F": 9}
        assert (row.charge, row.multiplicity) == (charge, molecule.molecular_multiplicity)
        assert row.electrons == sum(nuclear[symbol] for symbol in real) - charge
        assert (
            row.formula == Molecule(symbols=real, geometry=range(3 * len(real)), validate=False).get_molecular_formula()
        )


def test_a_million_terms_are_counted_at_once():
    """C(200, 1) + C(200, 2) + C(200, 3), and no list of them is made."""
    atoms = "\n".join(f"Ne {4 * (i % 10)} {4 * (i // 10 % 10)} {4 * (i // 100)}" for i in range(200))
    many = Expansion.from_input(
        build_input(molecule_from_xyz(f"200\n\n{atoms}\n"), method="hf", basis="6-31g", max_nbody=3)
    )
    assert many.counts_by_nbody() == {1: 200, 2: 19900, 3: 1313400}
    assert many.core.mc_compute_dict is None  # QCManyBody's list


def test_keywords_that_are_no_plain_data_are_refused_at_the_door():
    molecule = molecule_from_xyz("2\n\nHe 0 0 0\nHe 0 0 4\n")
    with pytest.raises(InputError, match="plain data"):
        Expansion.from_input(build_input(molecule, method="hf", basis="6-31g", keywords={"guess": object()}))


def test_the_costliest_comes_first():
    costs = [term.cost for term in expansion(3, ["nocp"]).terms()]
    assert costs == sorted(costs, reverse=True)
