"""A run as Chrome's trace JSON, which Perfetto opens: tracks of CPUs, workers and waits, counters; measures nothing.

The format: "Trace Event Format", Google, 2016, which https://ui.perfetto.dev and chrome://tracing read. Times are
microseconds since the run began, to the nanosecond.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .record import Calculated, RunRecord

# Each is a process to the viewer, in this order; the kernel's numbers would mix them up.
_NODE, _CPUS, _WORKERS, _WAITS = 1, 2, 3, 4
_NAMES = {_NODE: "node", _CPUS: "CPUs", _WORKERS: "workers", _WAITS: "waits for a lease"}

_Event = dict[str, Any]


def write(record: RunRecord, path: Path) -> None:
    """Write ``record`` to ``path``, an event in a line. Raises OSError where it cannot be written."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms",\n"otherData": ')
        json.dump(_about(record), file)
        file.write(',\n"traceEvents": [')
        comma = "\n"
        for event in events(record):
            file.write(comma)
            json.dump(event, file, separators=(",", ":"), allow_nan=False)
            comma = ",\n"
        file.write("\n]}\n")


def events(record: RunRecord) -> Iterator[_Event]:
    """Every event of the trace: names of tracks, counters, calculations on CPUs, on workers, and their waits."""
    for number, name in _NAMES.items():
        yield _named("process", number, 0, name)
        yield {"ph": "M", "pid": number, "tid": 0, "name": "process_sort_index", "args": {"sort_index": number}}
    yield from _counters(record)
    yield from _on_cpus(record.calculations)
    yield from _on_workers(record.calculations)
    for number, one in enumerate(record.calculations):
        yield from _wait(number, one)


def _about(record: RunRecord) -> dict[str, Any]:
    return {
        "title": record.title,
        "began_at": record.began_at,
        "wall_s": record.wall_s,
        "usable_cpus": str(record.usable),
        "findings": [f"{finding.kind}: {finding.message}" for finding in record.findings],
    }


def _named(what: str, pid: int, tid: int, name: str) -> _Event:
    return {"ph": "M", "pid": pid, "tid": tid, "name": f"{what}_name", "args": {"name": name}}


def _counters(record: RunRecord) -> Iterator[_Event]:
    """A counter holds until the next event of its name: what is of a time stands at the beginning of that time."""
    began_s = 0.0
    for moment in record.moments:
        yield _counter("CPUs busy", began_s, moment.cpus_busy)
        if moment.cpus_waited_for is not None:
            yield _counter("threads waiting for a CPU", began_s, moment.cpus_waited_for)
        yield _counter("memory in bytes", moment.at_s, moment.memory_bytes)
        began_s = moment.at_s


def _counter(name: str, at_s: float, value: float) -> _Event:
    return {"ph": "C", "pid": _NODE, "tid": 0, "name": name, "ts": _us(_ns(at_s)), "args": {"value": value}}


def _on_cpus(calculations: Iterable[Calculated]) -> Iterator[_Event]:
    tracks = defaultdict(list)
    for one in calculations:
        for cpu in one.cpus:
            tracks[cpu].append(one)
    for cpu, those in sorted(tracks.items()):
        track = cpu + 1  # a track of number 0 is the idle thread's
        yield _named("thread", _CPUS, track, f"CPU {cpu}")
        yield {"ph": "M", "pid": _CPUS, "tid": track, "name": "thread_sort_index", "args": {"sort_index": cpu}}
        for one, begin_ns, end_ns in _one_after_another(those):
            yield _slice(one, _CPUS, track, begin_ns, end_ns)


def _on_workers(calculations: Iterable[Calculated]) -> Iterator[_Event]:
    tracks = defaultdict(list)
    for one in calculations:
        tracks[one.pid].append(one)
    for track, (pid, those) in enumerate(tracks.items(), start=1):
        yield _named("thread", _WORKERS, track, f"worker {pid}")
        yield {"ph": "M", "pid": _WORKERS, "tid": track, "name": "thread_sort_index", "args": {"sort_index": track}}
        for one, begin_ns, end_ns in _one_after_another(those):
            yield _slice(one, _WORKERS, track, begin_ns, end_ns) | {"args": _said_of(one)}


def _one_after_another(those: list[Calculated]) -> Iterator[tuple[Calculated, int, int]]:
    """With begin and end in ns; slices of a track must not overlap: the end of one is noted after the next began."""
    ordered = sorted(those, key=lambda one: one.start_s)
    begins_ns = [_ns(one.start_s) for one in ordered]
    for one, begin_ns, next_ns in zip(ordered, begins_ns, [*begins_ns[1:], None], strict=True):
        end_ns = _ns(one.end_s)
        yield one, begin_ns, end_ns if next_ns is None else min(end_ns, next_ns)


def _slice(one: Calculated, pid: int, tid: int, begin_ns: int, end_ns: int) -> _Event:
    times = {"ts": _us(begin_ns), "dur": _us(end_ns - begin_ns)}
    return {"ph": "X", "pid": pid, "tid": tid, "name": one.label, "cat": one.group or "calculation", **times}


def _said_of(one: Calculated) -> dict[str, Any]:
    said = {
        "attempt": one.attempt,
        "status": one.status,
        "error": one.error or None,
        "threads": one.threads,
        "threads working": one.threads_working,
        "CPUs": str(one.cpus),
        "CPUs seen": str(one.cpus_seen) or None,
        "CPU time in s": one.cpu_s,
        "run-queue delay in s": one.run_queue_s,
        "efficiency": one.efficiency,
        "memory peak in bytes": one.memory_peak_bytes,
        "memory granted in bytes": one.memory_granted_bytes or None,
        "planned start in s": one.planned_start_s,
        "planned end in s": one.planned_end_s,
    }
    return {name: value for name, value in said.items() if value is not None}


def _wait(number: int, one: Calculated) -> Iterator[_Event]:
    """Waits overlap one another: each is an asynchronous pair, of a number that counts in its process alone."""
    end_ns, begin_ns = _ns(one.start_s), max(0, _ns(one.start_s - one.waited_s))
    if end_ns <= begin_ns:
        return
    what = {"pid": _WAITS, "tid": 0, "name": one.label, "cat": "wait", "id2": {"local": str(number)}}
    yield {"ph": "b", **what, "ts": _us(begin_ns)}
    yield {"ph": "e", **what, "ts": _us(end_ns)}


def _ns(time_s: float) -> int:
    return round(time_s * 1e9)


def _us(time_ns: int) -> float:
    return time_ns / 1000
