"""One frame of ``qcthreads top`` as text: CPUs by topology, leases, threads; knows no terminal but its width."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from ..machine import Machine
from ..monitoring.live import LeaseNow, Now
from ..monitoring.statistics import ratio
from ..units import format_count, format_size
from .render import percent
from .topo_picture import rows_of

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

LEASE_COLUMNS = ("", "user", "pid", "CPUs", "work", "eff", "wait", "memory", "age", "runs")
_WORKER = "-m qcthreads.execution.worker"  # as execution.supervisor starts it
THREAD_COLUMNS = ("", "pid", "tid", "state", "CPU", "busy", "wait")


@dataclass(frozen=True, slots=True)
class Signs:
    """How busy a CPU is, from not at all to all of the time; the cut between last-level caches; a CPU in no lease."""

    busy: str
    cut: str
    free: str

    def of(self, encoding: str) -> Signs:
        """These, or what ``encoding`` can say."""
        try:
            (self.busy + self.cut + self.free).encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return _ASCII
        return self


_MARGIN = 8  # what a line says of itself

SIGNS = Signs("_▁▂▃▄▅▆▇█", "│", "·")
_ASCII = Signs("_.:-=+*%#", "|", "'")


def frame(machine: Machine, now: Now, width: int, signs: Signs) -> list[str]:
    """Everything, leases below CPUs, no line longer than ``width``."""
    lines = [headline(now), *cpu_lines(machine, now, width, signs), ""]
    rows = [LEASE_COLUMNS, *lease_rows(now)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(LEASE_COLUMNS))]
    lines += ["  ".join(f"{cell:{size}}" for cell, size in zip(row, widths, strict=True)) for row in rows]
    return [line[:width].rstrip() for line in lines]


def headline(now: Now) -> str:
    """When, how much is leased, used and waited for."""
    cpus = sum(len(lease.cpus) for lease in now.leases)
    said = [time.strftime("%H:%M:%S", time.localtime(now.at_s)), format_count(len(now.leases), "lease")]
    said[-1] += f" of {format_count(cpus, 'CPU')}" if now.leases else ""
    if now.cpus_busy:
        said.append(f"{sum(now.cpus_busy.values()):.1f} of {format_count(len(now.cpus_busy), 'CPU')} busy")
    if now.queue:
        said.append(f"{len(now.queue)} waiting")
    if now.shut:
        said.append("the book is kept shut, see `qcthreads doctor`")
    return ", ".join(said)


def letters(now: Now) -> dict[int, str]:
    """The letter of the lease that a CPU belongs to."""
    return {cpu: letter(number) for number, lease in enumerate(now.leases) for cpu in lease.cpus}


def letter(number: int) -> str:
    """Of the lease of this number; they begin anew after 52."""
    return LETTERS[number % len(LETTERS)]


def cpu_lines(machine: Machine, now: Now, width: int, signs: Signs) -> list[str]:
    """For each memory node how busy its PUs are and whose lease they are in, core by core; numbers where they fit.

    Lines that are too long for ``width`` are cut into several.
    """
    rows = list(rows_of(machine))
    names = [f"{row.package}, {row.node.split('  ')[0]}" for row in rows]
    domains = [[[cpu for core in domain for cpu in core.cpus] for domain in row.domains] for row in rows]
    cell = max((len(str(cpu)) for cpu in machine.cpus_online), default=1) + 1
    room = width - _MARGIN
    if any(sum(len(cpus) * cell + 1 for cpus in row) > room for row in domains):
        cell = 1
    lines: list[str] = []
    for name, row in zip(names, domains, strict=True):
        lines += [name, *_lines(row, now, cell, room, signs)]
    return lines


def lease_rows(now: Now) -> Iterator[tuple[str, ...]]:
    """The cells of each lease."""
    for number, lease in enumerate(now.leases):
        held = lease.held
        yield (
            letter(number),
            held.user[:8],
            str(held.pid or "-"),
            _short(str(lease.cpus), 14),
            _worked(lease),
            percent(lease.efficiency).replace(" ", ""),
            percent(lease.wait_share).replace(" ", ""),
            _memory(lease),
            _age(now.at_s - held.since_s),
            _runs(lease) if held.state == "running" else f"({held.state}) {_runs(lease)}",
        )


def thread_rows(now: Now) -> Iterator[tuple[str, ...]]:
    """The cells of each thread that can be seen, lease by lease, the busiest first."""
    for number, lease in enumerate(now.leases):
        for thread in lease.threads or ():
            yield (
                letter(number),
                str(thread.pid),
                str(thread.tid),
                thread.state,
                "-" if thread.last_cpu is None else str(thread.last_cpu),
                percent(thread.busy).replace(" ", ""),
                percent(thread.wait).replace(" ", ""),
            )


def _lines(domains: list[list[int]], now: Now, cell: int, room: int, signs: Signs) -> Iterator[str]:
    """Numbers, where cells are wide enough, then how busy, then whose; a cut between last-level caches."""
    owner = letters(now)
    drawn: dict[str, Callable[[int], str]] = {"PU": str} if cell > 1 else {}
    drawn["busy"] = lambda cpu: _busy_sign(now.cpus_busy, cpu, signs)
    drawn["lease"] = lambda cpu: owner.get(cpu, signs.free)
    whole = [
        (what, signs.cut.join("".join(f"{say(cpu):>{cell}}" for cpu in cpus) for cpus in domains))
        for what, say in drawn.items()
    ]
    for at in range(0, len(whole[0][1]), room):
        for what, line in whole:
            yield f"{what:>{_MARGIN - 1}} {line[at : at + room]}"


def _busy_sign(busy: Mapping[int, float] | None, cpu: int, signs: Signs) -> str:
    share = None if busy is None else busy.get(cpu)
    if share is None:
        return "?"
    return signs.busy[min(len(signs.busy) - 1, round(share * (len(signs.busy) - 1)))]


def _worked(lease: LeaseNow) -> str:
    """``3/4``: threads that worked, of so many PUs."""
    working = lease.threads_working
    return f"{'-' if working is None else working}/{len(lease.cpus)}"


def _memory(lease: LeaseNow) -> str:
    if lease.threads is None:
        return "-"
    granted = lease.held.holding.memory_bytes
    used = format_size(lease.memory_bytes)
    return f"{used} {100 * ratio(lease.memory_bytes, granted):.0f}%" if granted else used


def _runs(lease: LeaseNow) -> str:
    """What a person knows it by: a command without its directory; of a worker of ours, for what it computes what."""
    if lease.calculation and lease.held.holding.run:
        return f"{lease.held.holding.run} {lease.calculation}"
    if _WORKER in lease.runs and lease.held.holding.run:
        return lease.held.holding.run
    program, blank, rest = lease.runs.partition(" ")
    return f"{PurePath(program).name}{blank}{rest}"


def _age(age_s: float) -> str:
    minutes, seconds = divmod(max(0, round(age_s)), 60)
    if minutes < 1:
        return f"{seconds}s"
    return f"{minutes}m{seconds:02d}" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}"


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}+"
