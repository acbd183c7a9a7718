"""What others tell of themselves is checked: garbage of any kind is no record, and never an error."""

from __future__ import annotations

import json
from binascii import crc32
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qcthreads.cpuset import CpuSet
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook, records
from qcthreads.leases.claims import Claim
from qcthreads.machine.synthetic import synthetic_machine

OWNER = records.body(
    {"pid": 7, "boot": "b", "pid_namespace": "pid:[1]", "since": 1.5, "mark": "m" * 32, "command": 'say "hi" \u00e9'}
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def lease_text() -> bytes:
    machine = synthetic_machine(cores=4)
    rule = Rule("mask", "", cpus=machine.cpus_online, tightest=True)
    book = LeaseBook(machine, Limits(machine.cpus_online, 4, None, 2**33, (rule,)))
    return records.lease_text(book.acquire(2, 2**20).hold, OWNER)


CLAIM = Claim(threads=2, candidates=0xF, siblings=0xF, memory_bytes=5, draws={"memory": (5, 9)}, nodes={"node:0": 9})


def test_a_lease_is_read_as_it_was_told() -> None:
    content = records.decode(lease_text())
    assert content is not None
    told = records.holding("l1", content, 1000)
    assert told is not None
    assert (told.cpus, told.memory_bytes, told.orphans) == (CpuSet([0, 1]), 2**20, "wait")
    assert (told.owner.uid, told.owner.pid, told.owner.command) == (1000, 7, 'say "hi" \u00e9')


def test_a_request_is_read_as_it_was_told() -> None:
    content = records.decode(records.encode(records.claim_body(CLAIM), OWNER))
    assert content is not None
    told = records.waiting("w1", content, 0)
    assert told is not None
    assert told.claim == CLAIM


@given(st.integers(0, 400))
def test_what_was_written_in_part_is_no_record(length: int) -> None:
    text = lease_text()
    whole = len(text.rstrip(b"\n"))
    assert (records.decode(text[:length]) is None) == (length < whole)


@given(st.binary(max_size=200))
def test_bytes_are_no_record(text: bytes) -> None:
    assert records.decode(text) is None


@given(st.dictionaries(st.text(max_size=8), ANYTHING, max_size=4), st.sampled_from([lease_text(), b""]), st.data())
def test_wrong_values_are_no_record(wrong: dict[str, Any], text: bytes, data: st.DataObject) -> None:
    content = records.decode(text) or {}
    if content:
        wrong[data.draw(st.sampled_from(sorted(content)))] = data.draw(ANYTHING)
    body = json.dumps(content | wrong).encode()
    decoded = records.decode(b"%08x %s\n" % (crc32(body), body))
    if decoded is not None:  # neither raises
        records.holding("l1", decoded, 0)
        records.waiting("w1", decoded, 0)


def test_control_characters_reach_no_terminal() -> None:
    content = records.decode(lease_text())
    assert content is not None
    assert records.holding("l1", content | {"command": "\x1b[2Jrm"}, 0) is None
