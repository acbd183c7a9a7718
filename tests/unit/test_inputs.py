"""What is read from files: molecules, fragments, charges; and what is refused, with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from qcelemental.models.v2 import Molecule

from qcthreads.errors import InputError
from qcthreads.manybody.inputs import molecule_from_psi4, molecule_from_xyz, parse_fragments, read_input
from qcthreads.manybody.run import RunRequest

EXAMPLES = Path(__file__).parents[2] / "examples"
WATERS = """6
two waters
O 0.0 0.0 0.0
H 0.0 0.757 0.587
H 0.0 -0.757 0.587
O 0.0 0.0 3.0
H 0.0 0.757 3.587
H 0.0 -0.757 3.587
"""


def read(path: Path, **options):
    return read_input(path, RunRequest(input=path, **options))


def atoms(molecule) -> list[list[int]]:
    return [[int(atom) for atom in group] for group in molecule.fragments]


class TestXyz:
    def test_waters_are_found_by_connectivity(self):
        molecule = molecule_from_xyz(WATERS)
        assert atoms(molecule) == [[0, 1, 2], [3, 4, 5]]
        assert list(molecule.fragment_charges) == [0, 0]
        assert list(molecule.fragment_multiplicities) == [1, 1]

    def test_coordinates_are_angstrom(self):
        body = "\n".join(WATERS.splitlines()[2:])
        judged_by_qcelemental = Molecule.from_data(f"0 1\n{body}\nunits angstrom", dtype="psi4")
        np.testing.assert_allclose(molecule_from_xyz(WATERS).geometry, judged_by_qcelemental.geometry, atol=1e-7)

    @pytest.mark.parametrize(
        ("name", "options", "sizes"),
        [
            ("water4.xyz", {}, [3] * 4),
            ("water16.xyz", {}, [3] * 16),
            ("benzene_dimer.xyz", {}, [12, 12]),
            ("mixed.xyz", {"charges": [1, -1, 0, 0, 0, 0, 0, 1]}, [1, 1, 3, 3, 3, 3, 3, 5]),
        ],
    )
    def test_examples(self, name, options, sizes):
        molecule = molecule_from_xyz((EXAMPLES / name).read_text(), **options)
        assert [len(group) for group in molecule.fragments] == sizes

    def test_atoms_of_a_fragment_that_stand_apart_are_brought_together(self, caplog):
        lines = WATERS.splitlines()
        shuffled = "\n".join([*lines[:2], lines[2], lines[5], lines[3], lines[4], lines[6], lines[7]])
        molecule = molecule_from_xyz(shuffled)
        np.testing.assert_array_equal(molecule.geometry, molecule_from_xyz(WATERS).geometry)
        assert "1,3-4,2,5-6" in caplog.text

    def test_numbers_stand_for_elements(self):
        assert list(molecule_from_xyz(WATERS.replace("O ", "8 ").replace("H ", "1 ")).symbols) == list("OHHOHH")

    def test_charge_and_multiplicity_per_fragment(self):
        text = "4\n\nO 0 0 0\nH 0 0 0.97\nHe 0 0 4\nNa 0 0 8\n"
        molecule = molecule_from_xyz(text, charges=[0, 0, 1], multiplicities=[2, 1, 1])
        assert list(molecule.fragment_charges) == [0, 0, 1]
        assert list(molecule.fragment_multiplicities) == [2, 1, 1]
        assert molecule.molecular_charge == 1
        assert molecule.molecular_multiplicity == 2

    @pytest.mark.parametrize(
        ("text", "options", "said"),
        [
            ("water\n", {}, "first line"),
            ("", {}, "first line"),
            (WATERS.replace("6\n", "5\n", 1), {}, "says 5 atoms, found 6"),
            (WATERS.replace("6\n", "7\n", 1), {}, "says 7 atoms, found 6"),
            (WATERS + WATERS, {}, "several frames"),
            (WATERS.replace("O 0.0 0.0 0.0", "Q 0.0 0.0 0.0"), {}, "line 3: 'Q' is not an element"),
            (WATERS.replace("O 0.0 0.0 0.0", "Gh(O) 0.0 0.0 0.0"), {}, "not an element"),
            (WATERS.replace("O 0.0 0.0 0.0", "O 0.0 0.0"), {}, "line 3: expected"),
            (WATERS.replace("O 0.0 0.0 0.0", "O 0.0 0.0 nan"), {}, "line 3: expected"),
            (WATERS.replace("3.587", "3.0").replace("0.757 3.0", "0.1 3.0"), {}, "angstrom apart"),
            (WATERS, {"charges": [1]}, "--charges has 1 numbers, but .* 2 fragments"),
            (WATERS, {"charges": [1, 0]}, "9 electrons at charge 1, an odd number"),
            (WATERS, {"charges": [0.5, 0]}, "not a whole number"),
            (
                WATERS,
                {"charges": [11, 0]},
                r"fragment 1 .H2O, .* is given charge \+11, but its nuclei have \+10",
            ),
            (
                WATERS,
                {"multiplicities": [2, 1]},
                "multiplicity 2 .* fragment 1 .H2O, atoms 1-3. with 10 electrons at charge 0, which can have 1, 3, 5",
            ),
            (WATERS, {"multiplicities": [1]}, "--multiplicities has 1 numbers"),
            (WATERS, {"fragments": "1-6"}, "one fragment only"),
            ("2\n\nO 0 0 0\nH 0 0 0.97\n", {}, "one fragment only"),
            ("2\n\nHe 0 0 0\nNa 0 0 4\n", {}, r"fragment 2 \(Na, .* ions are not guessed; give --charges"),
            ("7\n\nHe 0 0 6\nHe 0 0 9\nN 0 0 0\nH 0 0 1\nH 0 .94 -.3\nH .8 -.5 -.3\nH -.8 -.5 -.3\n", {}, "--charges"),
        ],
    )
    def test_refused(self, text, options, said):
        with pytest.raises(InputError, match=said):
            molecule_from_xyz(text, **options)


class TestFragments:
    def test_parsed(self):
        assert parse_fragments("1-3; 5,4 ;6", 6) == [[0, 1, 2], [4, 3], [5]]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("1-3;5-6", "in no fragment: atom 4; put"),
            ("1-4;4-6", "atom 4 is in fragment 1 and again in fragment 2"),
            ("1-3;4-7", "atom 7 of fragment 2, but the atoms are 1 to 6"),
            ("0-3;4-6", "atom 0"),
            ("3-1;4-6", "not an atom or a range"),
            ("a;b", "not an atom or a range"),
            ("1-3;;4-6", "not an atom or a range"),
            ("", "not an atom or a range"),
        ],
    )
    def test_refused(self, text, said):
        with pytest.raises(InputError, match=said):
            parse_fragments(text, 6)


class TestPsi4Block:
    BLOCK = "0 1\nO 0 0 0\nH 0 0.757 0.587\nH 0 -0.757 0.587\n--\n1 1\nNa 0 0 4\nunits angstrom\n"

    @pytest.mark.parametrize("text", [BLOCK, "# a comment\nmolecule pair {\n" + BLOCK + "}\n"])
    def test_read(self, text):
        molecule = molecule_from_psi4(text)
        assert atoms(molecule) == [[0, 1, 2], [3]]
        assert list(molecule.fragment_charges) == [0, 1]
        judged_by_qcelemental = Molecule.from_data(self.BLOCK, dtype="psi4")
        np.testing.assert_array_equal(molecule.geometry, judged_by_qcelemental.geometry)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("0 1\nHe 0 0 0\n", "one fragment only"),
            ("what is this?\n" + BLOCK, "'what is this\\?' is no line of a molecule block; give .* a line '--'"),
            (BLOCK.replace("4\n", "four\n"), "'Na 0 0 four' is no line of a molecule block"),
            ("prose " * 100, r"'[^\n]{60}\.\.\.' is no line of"),
            (BLOCK.replace("Na", "Xx"), "'Xx' is no element; give"),
            ("# a comment\n", "found no atom; give a ManyBodyInput as .json, an .xyz file, or a Psi4 molecule block"),
            (BLOCK.replace("1 1", "0 1"), "multiplicity 1 .* fragment 2 .Na, atoms 4. with 11 electrons .* 2, 4, 6"),
            (
                BLOCK.replace("0 1", "11 1"),
                r"fragment 1 .H2O, .* is given charge \+11, but its nuclei have \+10",
            ),
            ("molecule {\n" + BLOCK + "}\nset basis sto-3g\n", "outside the molecule block .'set basis sto-3g'"),
            ("molecule a {\n" + BLOCK + "}\nmolecule b {\n" + BLOCK + "}\n", "found 2 molecule blocks"),
        ],
    )
    def test_refused(self, text, said):
        with pytest.raises(InputError, match=said):
            molecule_from_psi4(text)

    @pytest.mark.parametrize("name", ["empty.txt", "empty.xyz", "empty.json"])
    def test_an_empty_file(self, name, tmp_path):
        (tmp_path / name).write_text("\n")
        with pytest.raises(InputError, match=f"{name} is empty; give a ManyBodyInput as .json, an .xyz file, or a"):
            read(tmp_path / name)

    def test_a_byte_order_mark_is_no_part_of_the_text(self, tmp_path):
        path = tmp_path / "marked.txt"
        path.write_text(self.BLOCK, encoding="utf-8-sig")
        assert atoms(read(path, method="hf", basis="sto-3g").molecule) == [[0, 1, 2], [3]]

    def test_the_example(self):
        path = EXAMPLES / "ammonium_water.psi4"
        made = read(path, method="hf", basis="sto-3g")
        assert list(made.molecule.fragment_charges) == [1, 0]


class TestRequest:
    @pytest.fixture
    def waters(self, tmp_path):
        path = tmp_path / "waters.xyz"
        path.write_text(WATERS)
        return path

    def test_defaults(self, waters):
        made = read(waters, method="mp2", basis="6-31g")
        (atomic,) = made.specification.specification.values()
        assert (atomic.program, atomic.model.method, atomic.model.basis) == ("pyscf", "mp2", "6-31g")
        assert [treatment.value for treatment in made.specification.keywords.bsse_type] == ["nocp"]
        assert made.specification.keywords.max_nbody == 2

    def test_xtb_needs_no_method_and_has_no_basis(self, waters):
        (atomic,) = read(waters, program="XTB").specification.specification.values()
        assert (atomic.program, atomic.model.method, atomic.model.basis) == ("xtb", "GFN2-xTB", None)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "no method was given for pyscf; give --method"),
            ({"method": "hf"}, "no basis set was given for pyscf; give --basis"),
            ({"program": "mopac"}, "no method was given for mopac"),
            ({"program": "xtb", "basis": "sto-3g"}, "has no basis sets"),
            ({"program": "xtb", "bsse": ["cp"]}, "would count ghosts as atoms"),
            ({"method": "hf", "basis": "sto-3g", "bsse": ["vmfc"]}, "'vmfc' is not there yet; there are: nocp, cp"),
            ({"method": "hf", "basis": "sto-3g", "bsse": ["bsse"]}, "'bsse' is not known; there are: nocp, cp"),
            ({"method": "hf", "basis": "sto-3g", "max_nbody": 3}, "max_nbody 3, but there are 2 fragments"),
            ({"method": "hf", "basis": "sto-3g", "max_nbody": 0}, "max_nbody 0"),
        ],
    )
    def test_refused(self, waters, options, said):
        with pytest.raises(InputError, match=said):
            read(waters, **options)

    def test_no_file(self, tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read(tmp_path / "none.xyz", method="hf", basis="sto-3g")

    def test_not_text(self, tmp_path):
        path = tmp_path / "x.xyz"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match="not a text file"):
            read(path)


class TestJson:
    @pytest.fixture
    def document(self):
        return json.loads((EXAMPLES / "water4_cp.json").read_text())

    @pytest.fixture
    def write(self, tmp_path):
        def written(document) -> Path:
            path = tmp_path / "input.json"
            path.write_text(document if isinstance(document, str) else json.dumps(document))
            return path

        return written

    def test_the_example_is_taken_as_it_is(self, document, write):
        from qcmanybody.models.v2 import ManyBodyInput

        assert read(write(document)).model_dump(mode="json") == ManyBodyInput(**document).model_dump(mode="json")

    def test_version_1_is_converted(self, document, write):
        from qcmanybody.models.v2 import ManyBodyInput

        version_1 = json.loads(ManyBodyInput(**document).convert_v(1).json())
        made = read(write(version_1))
        assert made.schema_version == 2
        assert made.molecule.get_hash() == ManyBodyInput(**document).molecule.get_hash()
        assert made.specification.keywords.max_nbody == document["specification"]["keywords"]["max_nbody"]

    def test_options_that_say_the_same_are_fine(self, document, write):
        read(write(document), program="pyscf", method="HF", basis="6-31G", max_nbody=2, bsse=["cp"], charges=[0] * 4)

    def test_a_multiplicity_that_cannot_be_names_the_fragment_and_what_can(self, document, write):
        document["molecule"]["fragment_charges"] = [0, 0, 1, 0]
        document["molecule"]["fragment_multiplicities"] = [1, 1, 1, 1]
        with pytest.raises(
            InputError, match=r"multiplicity 1 .* fragment 3 .H2O, atoms 7-9. with 9 electrons at charge 1, .*2, 4, 6"
        ):
            read(write(document))

    def test_what_is_left_open_is_filled(self, document, write):
        del document["specification"]["keywords"]["max_nbody"]
        del document["specification"]["keywords"]["bsse_type"]
        made = read(write(document), max_nbody=3, bsse=["nocp"])
        assert made.specification.keywords.max_nbody == 3
        assert [treatment.value for treatment in made.specification.keywords.bsse_type] == ["nocp"]

    @pytest.mark.parametrize(
        "options",
        [
            {"program": "psi4"},
            {"method": "mp2"},
            {"basis": "sto-3g"},
            {"max_nbody": 3},
            {"bsse": ["nocp"]},
            {"keywords": {"conv_tol": 1e-5}},
            {"charges": [1, 0, 0, 0]},
            {"multiplicities": [1, 1, 1, 3]},
            {"fragments": "1-6;7-12"},
        ],
    )
    def test_options_that_contradict_are_refused(self, document, write, options):
        document["specification"]["specification"]["keywords"] = {"conv_tol": 1e-9}
        with pytest.raises(InputError, match=r"contradicts .*leave .* out"):
            read(write(document), **options)

    def test_malformed(self, document, write):
        with pytest.raises(InputError, match=r"not valid JSON: .* line 1"):
            read(write('{"molecule": '))
        with pytest.raises(InputError, match="needs 'molecule' and 'specification', found: molecule"):
            read(write({"molecule": document["molecule"]}))
        document["specification"]["keywords"]["bsse"] = "cp"
        with pytest.raises(InputError, match=r"not a valid ManyBodyInput: .*bsse"):
            read(write(document))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"driver": "gradient"}, "driver gradient: not there yet"),
            ({"keywords": {"bsse_type": ["vmfc"]}}, "'vmfc' is not there yet"),
            ({"keywords": {"bsse_type": ["nocp"], "max_nbody": 4, "supersystem_ie_only": True}}, "supersystem_ie_only"),
            (
                {"keywords": {"embedding_charges": {"1": [0.1], "2": [0.1], "3": [0.1], "4": [0.1]}}},
                "embedding_charges",
            ),
        ],
    )
    def test_not_there_yet_is_refused_by_name(self, document, write, change, said):
        document["specification"].update(change)
        with pytest.raises(InputError, match=said):
            read(write(document))

    def test_model_chemistries_need_levels(self, document, write):
        atomic = document["specification"]["specification"]
        document["specification"]["specification"] = {"hf": atomic, "lo": atomic}
        document["specification"]["keywords"] = {"bsse_type": ["nocp"], "levels": None}
        with pytest.raises(InputError, match="hf, lo, and no levels say"):
            read(write(document))
        for levels in ({"1": "hf", "2": "lo"}, {"1": "hf", "2": "hf", "supersystem": "lo"}):
            document["specification"]["keywords"] = {"bsse_type": ["nocp"], "levels": levels}
            made = read(write(document)).specification.keywords.levels
            assert {str(order): name for order, name in made.items()} == levels


@pytest.mark.parametrize(("program", "keyword"), [("pyscf", "frozen_core"), ("psi4", "num_frozen_docc")])
def test_a_number_of_frozen_orbitals_is_refused_for_an_expansion(tmp_path, program, keyword):
    """One orbital in a monomer and one in the dimer: their difference would be no interaction energy."""
    path = tmp_path / "waters.xyz"
    path.write_text(WATERS)
    with pytest.raises(InputError, match=f"{keyword} 1 .*true"):
        read(path, program=program, method="mp2", basis="6-31g", keywords={keyword: 1})
    read(path, program=program, method="mp2", basis="6-31g", keywords={keyword: 0})
    read(path, program="pyscf", method="mp2", basis="6-31g", keywords={"frozen_core": True})
