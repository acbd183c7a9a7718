"""Clusters of fragments against those that QCElemental cuts out itself, each of them."""

from __future__ import annotations

import itertools
import json

import pytest

pytest.importorskip("qcmanybody", reason="clusters are for many-body expansions")

from qcelemental.exceptions import ValidationError
from qcelemental.models.v2 import Molecule

from qcthreads.manybody.clusters import Clusters

# Ions, radicals, a triplet, isotopes with and without a name, a label; no two fragments are alike.
ALL_KINDS = """
1 1
Li 0 0 0
--
0 2
O 0 0 3
H 0 0.9 3
--
0 1
O 3 0 0
H 3.6 0.7 0
H@2.014 3.6 -0.7 0
--
-1 1
F 0 4 0
--
0 3
18O 9 9 9
O_near 9 9 10.2
"""


def all_kinds(**more):
    plain = Molecule.from_data(ALL_KINDS, dtype="psi4", fix_com=True, fix_orientation=True)
    return Molecule(**{**plain.model_dump(), "validated": False, **more})


def neon(**more):
    return Molecule(
        symbols=["Ne"] * 3, geometry=[0, 0, 0, 0, 0, 6, 0, 6.123456789, 0], fragments=[[0], [1], [2]], **more
    )


MOLECULES = {
    "all kinds": all_kinds(),
    "said of the whole": all_kinds(
        name="mine", comment="so", extras={"a": 1}, connectivity=[(1, 2, 1.0)], identifiers={"smiles": "x"}
    ),
    "free to move": all_kinds(fix_com=False, fix_orientation=False),
    "a plane": all_kinds(fix_symmetry="c1"),
    "total of low spin": Molecule(
        symbols=["H", "H", "He"], geometry=[0, 0, 0, 0, 0, 4, 0, 4, 0], fragments=[[0], [1], [2]],
        fragment_multiplicities=[2, 2, 1], molecular_multiplicity=1,
    ),
    "alike": neon(),
    "usual but one": neon(masses=[19.9924401762, 22.0, 19.9924401762]),
    "parts of charges": neon(fragment_charges=[0.1, 0.2, -0.3]),
    "with ghosts": neon(real=[True, False, True]),
    "not checked": Molecule(
        symbols=["ne", "HE"], geometry=[[0, 0, 0], [0, 0, 6.123456789]], fragments=[[0], [1]],
        fragment_charges=[0, 0], fragment_multiplicities=[1, 1], validate=False,
    ),
    "one": Molecule(symbols=["O", "H"], geometry=[0, 0, 0, 0, 0, 2], molecular_multiplicity=2),
}  # fmt: skip


def told(molecule: Molecule) -> str:
    return json.dumps(molecule.model_dump(mode="json"), sort_keys=True)


@pytest.mark.parametrize("kind", MOLECULES)
def test_every_cluster_is_what_qcelemental_cuts_out(kind):
    whole = MOLECULES[kind]
    before, clusters, numbers = told(whole), Clusters(whole), range(len(whole.fragments))
    made = 0
    for parts in itertools.product(("left out", "real", "ghost"), repeat=len(numbers)):
        real, ghosts = ([number for number in numbers if parts[number] == part] for part in ("real", "ghost"))
        if real:
            theirs = whole.get_fragment(real, ghosts, orient=False, group_fragments=False)
            ours = clusters.cluster(real, ghosts)
            assert json.dumps(ours, sort_keys=True) == told(theirs)
            assert Molecule(**ours).get_hash() == theirs.get_hash()
            made += 1
    assert made == 3 ** len(numbers) - 2 ** len(numbers)
    assert told(whole) == before


@pytest.mark.parametrize(
    "wrong", [{"geometry": [0, 0, 0, 0, 0, 0.01, 0, 6, 0]}, {"fragments": [[1], [0], [2]]}], ids=["too close", "order"]
)
def test_what_only_claims_to_be_checked_is_refused_as_qcelemental_refuses_it(wrong):
    whole = Molecule(**{**neon().model_dump(), **wrong, "validated": True})
    with pytest.raises(ValidationError) as theirs:
        whole.get_fragment([0, 1], [], orient=False, group_fragments=False)
    with pytest.raises(ValidationError) as ours:
        Clusters(whole).cluster([0, 1], [])
    assert str(ours.value) == str(theirs.value)
