"""The trace, held against the rules of the Trace Event Format and against the record it was made from."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import made_run

from qcthreads.monitoring import trace
from qcthreads.monitoring.record import RunRecord

NEEDED = {  # what the format's document asks of each phase that we use
    "X": {"name", "ts", "dur", "pid", "tid"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "args"},
    "b": {"name", "cat", "id2", "ts", "pid", "tid"},
    "e": {"name", "cat", "id2", "ts", "pid", "tid"},
}
METADATA = {"process_name": "name", "thread_name": "name", "process_sort_index": "sort_index"}
METADATA |= {"thread_sort_index": "sort_index"}

Event = dict[str, Any]


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return made_run(300)


def written(record: RunRecord, folder: Path) -> dict[str, Any]:
    path = folder / "trace.json"
    trace.write(record, path)
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def of_phase(document: dict[str, Any], phase: str) -> list[Event]:
    return [event for event in document["traceEvents"] if event["ph"] == phase]


def track_names(document: dict[str, Any]) -> dict[tuple[int, int], str]:
    named = [event for event in of_phase(document, "M") if event["name"] == "thread_name"]
    return {(event["pid"], event["tid"]): event["args"]["name"] for event in named}


def test_every_event_has_what_the_format_asks_for(record: RunRecord, tmp_path: Path) -> None:
    document = written(record, tmp_path)
    assert document["displayTimeUnit"] in ("ms", "ns")
    for event in document["traceEvents"]:
        assert NEEDED[event["ph"]] <= event.keys()
        assert isinstance(event["pid"], int)
        if event["ph"] == "M":
            assert METADATA[event["name"]] in event["args"]
        else:
            assert isinstance(event["ts"], int | float)
            assert event["ts"] >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())


def test_slices_of_a_track_never_overlap_and_each_track_has_a_name(record: RunRecord, tmp_path: Path) -> None:
    document = written(record, tmp_path)
    tracks = defaultdict(list)
    for event in of_phase(document, "X"):
        tracks[event["pid"], event["tid"]].append((round(event["ts"] * 1000), round(event["dur"] * 1000)))
    assert tracks.keys() == track_names(document).keys()
    for slices in tracks.values():
        slices.sort()
        for (begin, length), (following, _) in itertools.pairwise(slices):
            assert length >= 0
            assert begin + length <= following


def test_a_cpu_is_busy_as_long_as_it_was_leased(record: RunRecord, tmp_path: Path) -> None:
    document = written(record, tmp_path)
    names = track_names(document)
    drawn_us: dict[str, float] = defaultdict(float)
    for event in of_phase(document, "X"):
        drawn_us[names[event["pid"], event["tid"]]] += event["dur"]
    for cpu in record.usable:
        leased_s = sum(one.wall_s for one in record.calculations if cpu in one.cpus)
        assert drawn_us[f"CPU {cpu}"] / 1e6 == pytest.approx(leased_s, abs=1e-6)
    for pid in {one.pid for one in record.calculations}:
        worked_s = sum(one.wall_s for one in record.calculations if one.pid == pid)
        assert drawn_us[f"worker {pid}"] / 1e6 == pytest.approx(worked_s, abs=1e-6)


def test_waits_are_pairs_that_end_where_the_calculation_begins(record: RunRecord, tmp_path: Path) -> None:
    document = written(record, tmp_path)
    begins = {int(event["id2"]["local"]): event for event in of_phase(document, "b")}
    ends = {int(event["id2"]["local"]): event for event in of_phase(document, "e")}
    assert begins.keys() == ends.keys()
    assert len(begins) == len(record.calculations)
    for number, one in enumerate(record.calculations):
        assert ends[number]["name"] == begins[number]["name"] == one.label
        assert ends[number]["ts"] / 1e6 == pytest.approx(one.start_s, abs=1e-8)
        assert (ends[number]["ts"] - begins[number]["ts"]) / 1e6 == pytest.approx(one.waited_s, abs=1e-8)


def test_counters_hold_from_the_beginning_of_their_time(record: RunRecord, tmp_path: Path) -> None:
    counters = defaultdict(list)
    for event in of_phase(written(record, tmp_path), "C"):
        counters[event["name"]].append((event["ts"] / 1e6, event["args"]["value"]))
    busy = counters["CPUs busy"]
    assert busy[0][0] == 0
    ends_s = [at_s for at_s, _ in busy[1:]] + [record.moments[-1].at_s]
    total = sum(value * (end_s - at_s) for (at_s, value), end_s in zip(busy, ends_s, strict=True))
    begins_s = [0.0, *(moment.at_s for moment in record.moments[:-1])]
    pairs = zip(record.moments, begins_s, strict=True)
    assert total == pytest.approx(sum(moment.cpus_busy * (moment.at_s - began_s) for moment, began_s in pairs))
    memory = [(round(moment.at_s, 9), moment.memory_bytes) for moment in record.moments]
    assert counters["memory in bytes"] == memory


def test_an_end_that_was_noted_late_is_cut_where_the_next_begins(record: RunRecord, tmp_path: Path) -> None:
    first = record.calculations[0]
    following = next(one for one in record.calculations[1:] if one.cpus == first.cpus)
    late = replace(first, end_s=following.start_s + 0.003)
    document = written(replace(record, calculations=(late, following)), tmp_path)
    slices = sorted((event["ts"], event["dur"]) for event in of_phase(document, "X") if event["tid"] == 1)
    assert slices[0][0] + slices[0][1] == pytest.approx(following.start_s * 1e6)


def test_a_run_of_which_nothing_is_known_is_a_trace_all_the_same(record: RunRecord, tmp_path: Path) -> None:
    one = replace(record.calculations[0], threads_working=None, run_queue_s=None, planned_start_s=None, waited_s=0.0)
    moments = tuple(replace(moment, cpus_waited_for=None) for moment in record.moments)
    document = written(replace(record, calculations=(one,), moments=moments), tmp_path)
    assert {event["name"] for event in of_phase(document, "C")} == {"CPUs busy", "memory in bytes"}
    assert not of_phase(document, "b")
    assert written(replace(record, calculations=(), moments=()), tmp_path)["traceEvents"]


def test_the_same_record_gives_the_same_bytes(record: RunRecord, tmp_path: Path) -> None:
    trace.write(record, tmp_path / "one.json")
    trace.write(made_run(300), tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
