"""Labels as the tables print them, against QCManyBody's own."""

from __future__ import annotations

import pytest

from qcthreads.errors import InputError
from qcthreads.execution.labels import find_label, label_order, short_label, short_labels
from qcthreads.manybody.report import grouped

labeler = pytest.importorskip("qcmanybody.utils", reason="the labels are QCManyBody's").labeler

COUNTERPOISE = [labeler("(auto)", real, (1, 2, 3)) for real in ((1,), (2,), (3,), (1, 2), (1, 3), (2, 3))]
MONOMERS = [labeler("(auto)", (number,), (number,)) for number in (1, 2, 3)]


def test_the_short_form():
    assert short_label(labeler("(auto)", (1, 2), (1, 2))) == "1+2"
    assert short_label(labeler("hf/sto-3g", (1,), (1, 2))) == "1@1+2"
    assert short_label("of somebody else") == "of somebody else"
    assert [short_label(label) for label in ("1", "null", "true", "[1, 2]")] == ["1", "null", "true", "[1, 2]"]


def test_names_tell_labels_apart():
    pair = labeler("mp2", (1, 2), (1, 2))
    assert short_labels([pair, *COUNTERPOISE[:1]]) == {pair: "1+2", COUNTERPOISE[0]: "1@1+2+3"}
    assert list(short_labels([pair, labeler("hf", (1, 2), (1, 2)), "other"]).values()) == ["mp2:1+2", "hf:1+2", "other"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("1", MONOMERS[0]),
        ("1@1+2+3", COUNTERPOISE[0]),
        ("1+2", COUNTERPOISE[3]),  # there is no other with these fragments
        (" 1 + 2 ", COUNTERPOISE[3]),
        (COUNTERPOISE[5], COUNTERPOISE[5]),
        ("1@", COUNTERPOISE[0]),
        ("2+1", COUNTERPOISE[3]),
        ("3+1@", COUNTERPOISE[4]),
        ("1@3+2+1", COUNTERPOISE[0]),
    ],
)
def test_a_label_is_found_by_what_the_tables_print(asked, found):
    assert find_label(asked, [*MONOMERS, *COUNTERPOISE], "a.store") == found


@pytest.mark.parametrize(
    ("asked", "labels", "said"),
    [
        (
            "1",
            [*COUNTERPOISE, labeler("(auto)", (1,), (1, 2))],
            "may be several calculations in a.store: 1@1+2+3, 1@1+2;",
        ),
        ("1+22", [labeler("(auto)", pair, pair) for pair in ((1, 2), (2, 3))], "did you mean 1+2"),
        ("1@", [*COUNTERPOISE, labeler("(auto)", (1,), (1, 2))], "several calculations in a.store: 1@1+2+3, 1@1+2;"),
        ("nonsense", MONOMERS, "there are, for example: 1, 2, 3"),
        ("1", [], "none yet"),
    ],
)
def test_what_is_unknown_or_ambiguous_is_told_what_there_is(asked, labels, said):
    with pytest.raises(InputError) as refused:
        find_label(asked, labels, "a.store")
    assert said in str(refused.value)


def test_equal_errors_are_one_group_with_the_smallest_first():
    pair = labeler("(auto)", (1, 10), (1, 10))
    assert sorted([pair, *reversed(MONOMERS)], key=label_order) == [*MONOMERS, pair]
    failures = {pair: "no\n", MONOMERS[1]: "never", MONOMERS[0]: "no"}
    assert grouped(failures) == {"no": ["1", "1+10"], "never": ["2"]}


def test_errors_that_differ_by_scratch_directory_and_process_are_equal():
    """As Psi4 1.3.2 says it by QCEngine, and as our own messages name a process and a calculation."""
    said = "BasisSetNotFound: atom 1\n  File Path: /tmp/qcthreads-{}/w{}/tmp/tmp{}_psi_scratch/tmp{}, /usr/share/psi4\n"
    psi4 = [said.format("c504p6qf", 1, "9xz4ssi_", "wb61klwl"), said.format("c504p6qf", 2, "i29nk8zo", "938x9o7u")]
    failures = dict(zip(MONOMERS, [*psi4, said.replace("atom 1", "atom 2")], strict=True))
    assert list(grouped(failures).values()) == [["1", "2"], ["3"]]
    assert next(iter(grouped(failures))) == psi4[0].strip()
    ours = {label: f"{label}: process {pid} at 0x7f{pid} died" for pid, label in enumerate(MONOMERS, 1000)}
    assert list(grouped(ours).values()) == [["1", "2", "3"]]
    assert grouped({"a": "bad", "b": "bad"}) == {"bad": ["a", "b"]}
    assert grouped({"L1": "lock of L1 is held", "L2": "lock of L1 is held"}) == {"lock of L1 is held": ["L1", "L2"]}
    assert len(grouped({MONOMERS[0]: "cannot read /data/a.gbs", MONOMERS[1]: "cannot read /data/b.gbs"})) == 2
