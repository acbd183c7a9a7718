"""Sets of CPUs against Python's own sets, the kernel's files and taskset."""

import copy
import os
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet, NodeSet
from qcthreads.errors import InputError

numbers = st.sets(st.integers(0, 8191), max_size=40)


@given(numbers, numbers)
def test_operations_are_those_of_sets(a, b):
    one, two = CpuSet(a), CpuSet(b)
    assert set(one | two) == a | b
    assert set(one & two) == a & b
    assert set(one - two) == a - b
    assert (one <= two) == (a <= b)
    assert (one < two) == (a < b)
    assert one.isdisjoint(two) == a.isdisjoint(b)
    assert (one == two) == (a == b)
    assert len(one) == len(a)
    assert bool(one) == bool(a)
    assert list(one) == sorted(a)
    assert all(member in one for member in a)


@given(numbers)
def test_text_forms_round_trip(members):
    cpus = CpuSet(members)
    assert CpuSet.parse(str(cpus)) == cpus
    assert CpuSet.parse_mask(cpus.mask()) == cpus
    assert eval(repr(cpus), {"CpuSet": CpuSet}) == cpus
    assert pickle.loads(pickle.dumps(cpus)) == cpus
    assert copy.deepcopy(cpus) == cpus


@given(numbers)
def test_ranges_are_maximal_runs(members):
    ranges = list(CpuSet(members).ranges())
    assert {cpu for first, last in ranges for cpu in range(first, last + 1)} == members
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(ranges))


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", []),
        ("\n", []),
        ("0", [0]),
        ("0-3,8", [0, 1, 2, 3, 8]),
        (" 0-1 , 4\n\0\0", [0, 1, 4]),
        ("0-9:2/4", [0, 1, 4, 5, 8, 9]),  # the example of the kernel's bitmap_parselist has this form
        ("0-10:5", [0, 5, 10]),
        ("0-3:4/4", [0, 1, 2, 3]),
    ],
)
def test_list_form(text, members):
    assert list(CpuSet.parse(text)) == members


@pytest.mark.parametrize("text", ["a", "3-1", "-1", "1-", "0-3:0", "0-3:5/2", "0;1", "99999999", "1 2", "0x3"])
def test_nonsense_lists_are_refused(text):
    with pytest.raises(InputError, match="CpuSet"):
        CpuSet.parse(text)


@pytest.mark.parametrize(
    ("text", "members"),
    [("3", [0, 1]), ("00000000,00000003", [0, 1]), ("1,00000000", [32]), ("ff,,1\n", [0, *range(64, 72)])],
)
def test_mask_form(text, members):
    assert list(CpuSet.parse_mask(text)) == members


@pytest.mark.parametrize("text", ["g", "123456789", "0x1", "-1", "1_0", "1, 2"])
def test_nonsense_masks_are_refused(text):
    with pytest.raises(InputError, match="mask"):
        CpuSet.parse_mask(text)


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text):
    for parse in (CpuSet.parse, CpuSet.parse_mask):
        try:
            parse(text)
        except InputError:
            continue


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel files and taskset are Linux's")
def test_agrees_with_the_kernel_and_taskset():
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    mine = CpuSet(os.sched_getaffinity(0))
    assert CpuSet.parse(status["Cpus_allowed_list"]) == mine
    assert CpuSet.parse_mask(status["Cpus_allowed"]) == mine
    taskset = subprocess.run(["taskset", "-cp", str(os.getpid())], capture_output=True, text=True, check=True).stdout
    assert CpuSet.parse(taskset.rpartition(":")[2]) == mine


def test_sets_cannot_be_changed_or_mixed():
    with pytest.raises(AttributeError):
        CpuSet([1]).bits = 2
    assert CpuSet([1]) != NodeSet([1])
    assert len({CpuSet([1]), NodeSet([1]), CpuSet([1])}) == 2


def test_members_out_of_range_are_refused():
    for member in (-1, 1 << 20, 1.0, "1", None):
        with pytest.raises(InputError, match="not a valid number in a CpuSet"):
            CpuSet([member])
    with pytest.raises(InputError):
        CpuSet.from_bits(-1)
    with pytest.raises(ValueError, match="empty"):
        _ = CpuSet().first
    assert CpuSet([7, 3]).first == 3


def test_numpy_integers_are_numbers_like_any_other():
    assert CpuSet(numpy.arange(60, 130)) == CpuSet(range(60, 130))
    assert type(CpuSet(numpy.arange(3)).bits) is int
