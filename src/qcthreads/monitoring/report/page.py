"""The page around the plots: summary, findings, machine, limits, configuration; every word of others is escaped."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from ... import __version__
from ...machine import Machine, NumaNode
from ...units import format_count, format_size
from ..record import Calculated, RunRecord
from ..statistics import ratio
from .drawn import drawn


def page(record: RunRecord, plotly_script: str) -> str:
    """The whole page; ``plotly_script`` becomes part of it, compressed."""
    here = files(__package__)
    began = datetime.fromtimestamp(record.began_at, UTC)
    return Template((here / "page.html").read_text("utf-8")).substitute(
        title=escape(record.title),
        style=(here / "page.css").read_text("utf-8"),
        when=f"began {began:%Y-%m-%d %H:%M:%S} UTC, took {_seconds(record.wall_s)}",
        figures="\n".join(_figures(record)),
        findings=_findings(record),
        planned=_planned(record),
        machine=_list(_machine(record.machine)),
        limits=_list(map(escape, record.limits)),
        decision=_mapping(record.decision),
        statistics=_mapping(record.statistics),
        footer=f"qcthreads {escape(__version__)}",
        data=_in_script(drawn(record)),
        plotly=base64.b64encode(zlib.compress(plotly_script.encode("utf-8"), 9)).decode("ascii"),
        script=(here / "page.js").read_text("utf-8"),
    )


def _in_script(data: Any) -> str:
    """JSON in which nothing can end the element that holds it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _figures(record: RunRecord) -> Iterator[str]:
    """What a run came to: some large numbers, each with what it is."""
    those = record.calculations
    count = Counter(one.status for one in those)
    cpu_s = sum(one.cpu_s for one in those)
    thread_s = sum(one.threads * one.wall_s for one in those)
    waits_s = [one.run_queue_s for one in those]
    yield _figure(_seconds(record.wall_s), "wall time")
    yield _figure(f"{count['finished']:,}", "calculations finished")
    if count["failed"]:
        yield _figure(f"{count['failed']:,}", "attempts failed", bad=True)
    if count["stopped"]:
        yield _figure(f"{count['stopped']:,}", "stopped while they ran")
    yield _figure(_percent(ratio(cpu_s, thread_s)), "thread efficiency: CPU time / (threads × wall time)")
    usable = record.pus_usable.mean(0.0, record.wall_s)
    changed = len({pus for _, pus in record.pus_usable.counts}) > 1
    cpus = f"{usable:.1f} usable CPUs on average" if changed else format_count(len(record.usable), "usable CPU")
    yield _figure(_percent(ratio(cpu_s, usable * record.wall_s)), f"of the time of {cpus} used")
    if those and None not in waits_s:
        waited_s = sum(wait_s or 0.0 for wait_s in waits_s)
        share = ratio(waited_s, waited_s + cpu_s)
        yield _figure(_percent(share), "of the time that threads wanted to run they waited for a CPU", bad=share > 0.1)
    peak_bytes = max((moment.memory_bytes for moment in record.moments), default=0)
    if peak_bytes:
        yield _figure(format_size(peak_bytes), "memory, all together, at most")


def _figure(number: str, what: str, *, bad: bool = False) -> str:
    return f'<div class="figure{" bad" if bad else ""}"><b>{escape(number)}</b><span>{escape(what)}</span></div>'


def _findings(record: RunRecord) -> str:
    if not record.findings:
        return '<p class="note">Nothing was found that holds this run up.</p>'
    return _list(f"<b>{escape(one.kind)}</b> {escape(one.message)}" for one in record.findings)


def _planned(record: RunRecord) -> str:
    ends_s = [one.planned_end_s for one in record.calculations if one.planned_end_s is not None]
    if not ends_s:
        return (
            '<p class="note">Nothing was known of these times beforehand: there was no plan to hold them against.</p>'
        )
    said = f"Planned until {_seconds(max(ends_s))}; the last calculation ended after {_seconds(_last_s(record))}."
    return f'<p class="note">{said} On the line a calculation took as long as planned; above it longer.</p>\n' + (
        '<div id="planned" class="plot"></div>'
    )


def _last_s(record: RunRecord) -> float:
    ended: Iterable[Calculated] = record.calculations
    return max((one.end_s for one in ended), default=0.0)


def _machine(machine: Machine) -> Iterator[str]:
    """How many there are of everything, then a line for each memory node."""
    smt = sum(len(core.cpus) > 1 for core in machine.cores)
    yield f"{format_count(len(machine.cpus_online), 'PU')} online ({machine.cpus_online})"
    yield (
        f"{format_count(len(machine.cores), 'core')}, {smt} of them with SMT"
        if smt
        else (format_count(len(machine.cores), "core"))
    )
    yield format_count(len(machine.packages), "package")
    sizes = sorted({domain.size_bytes for domain in machine.llc_domains if domain.size_bytes})
    if sizes:
        last = format_count(len(machine.llc_domains), "last-level cache")
        yield f"{last} of {' or '.join(map(format_size, sizes))}"
    for kind in machine.cpu_kinds if len(machine.cpu_kinds) > 1 else ():
        yield f"kind {kind.efficiency} of CPUs (the higher the faster): {kind.cpus}"
    yield from map(_node, machine.numa_nodes)


def _node(node: NumaNode) -> str:
    kind = "" if node.kind == "DRAM" else f" {node.kind}"
    memory = format_size(node.memory_bytes) if node.memory_bytes else "no memory"
    beside = f"next to PUs {node.cpus}" if node.memory_only else f"PUs {node.cpus}"
    return escape(f"memory node {node.node_id}: {memory}{kind}, {beside}")


def _list(items: Iterable[str]) -> str:
    lines = "\n".join(f"<li>{item}</li>" for item in items)
    return f"<ul>\n{lines}\n</ul>" if lines else '<p class="note">not told</p>'


def _mapping(mapping: Mapping[str, Any]) -> str:
    """Names and values; what has parts of its own is a mapping or a list inside."""
    rows = "\n".join(
        f"<tr><th>{escape(str(name))}</th><td>{_value(str(name), mapping[name])}</td></tr>" for name in mapping
    )
    return f'<table class="pairs">\n{rows}\n</table>' if rows else '<p class="note">not told</p>'


def _value(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return _table(value)
    if isinstance(value, list | tuple):
        short = all(isinstance(item, int | float) for item in value)
        return ", ".join(_value(name, item) for item in value) if short else _list(_value(name, item) for item in value)
    if value is None:
        return "not told"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "_bytes" in name:
            return format_size(value)
        return _seconds(value) if name.endswith("_s") else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return escape(str(value))


def _table(mappings: Sequence[Mapping[str, Any]]) -> str:
    """A row for each, folded away: there may be as many as seconds or workers."""
    names = list(dict.fromkeys(name for one in mappings for name in one))
    head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{_value(str(name), one.get(name))}</td>' for name in names)}</tr>" for one in mappings
    )
    table = f'<div class="wide"><table class="rows">\n<tr>{head}</tr>\n{rows}\n</table></div>'
    return f"<details><summary>{format_count(len(mappings), 'row')}</summary>{table}</details>"


def _seconds(value_s: float) -> str:
    minutes, rest_s = divmod(round(value_s), 60)
    if value_s < 60:
        return f"{value_s:.3g} s"
    return f"{minutes} min {rest_s:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
