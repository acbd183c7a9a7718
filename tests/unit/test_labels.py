"""Labels as the tables print them, against QCManyBody's own."""

from __future__ import annotations

import pytest

from qcthreads.errors import InputError
from qcthreads.manybody.labels import find_label, label_order, short_label
from qcthreads.manybody.report import grouped

labeler = pytest.importorskip("qcmanybody.utils", reason="the labels are QCManyBody's").labeler

COUNTERPOISE = [labeler("(auto)", real, (1, 2, 3)) for real in ((1,), (2,), (3,), (1, 2), (1, 3), (2, 3))]
MONOMERS = [labeler("(auto)", (number,), (number,)) for number in (1, 2, 3)]


def test_the_short_form():
    assert short_label(labeler("(auto)", (1, 2), (1, 2))) == "1+2"
    assert short_label(labeler("hf/sto-3g", (1,), (1, 2))) == "1@1+2"
    assert short_label("of somebody else") == "of somebody else"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("1", MONOMERS[0]),
        ("1@1+2+3", COUNTERPOISE[0]),
        ("1+2", COUNTERPOISE[3]),  # there is no other with these fragments
        (" 1 + 2 ", COUNTERPOISE[3]),
        (COUNTERPOISE[5], COUNTERPOISE[5]),
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
