"""What running calculations amounted to: times, efficiency, findings; from outcomes and leases, never from wishes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..execution.calculation import Outcome, Progress
from ..execution.labels import short_label
from ..leases import LeaseBook
from ..monitoring.statistics import Finding
from ..units import format_count

# Shorter waits, in all, are not worth a line.
_TELLING_S = 1.0


class CpuByPhase:
    """CPU seconds of this process, which drives a run, by what it did meanwhile; ``start``: until workers started."""

    def __init__(self, start_s: float) -> None:
        self._seen_s = start_s
        self.seconds = {"start": start_s}

    def ends(self, phase: str) -> None:
        """What was taken since the last one ended was this one's."""
        now_s = time.process_time()
        self.seconds[phase] = now_s - self._seen_s
        self._seen_s = now_s


class RunTally:
    """Collects outcomes, and looks into the book of leases each time that something starts."""

    def __init__(self, book: LeaseBook, on_progress: Callable[[Progress], None] | None = None) -> None:
        self._book = book
        self._pass_on = on_progress
        self.outcomes: dict[str, Outcome] = {}
        self.notes: dict[str, str] = {}
        """What each is about, by message."""
        self.peak_threads = 0
        self._oversubscription = 0.0
        self.peak_workers = 0

    def watch(self, progress: Progress) -> None:
        """Take one event of the engine, and pass it on."""
        if progress.event == "started":
            held = self._book.held()
            self.peak_threads = max(self.peak_threads, sum(len(lease.cpus) for lease in held))
            there = sum(len(lease.cpus & self._book.limits.cpus) for lease in held)  # the others are to be moved
            self._oversubscription = max(self._oversubscription, there / len(self._book.usable))
            self.peak_workers = max(self.peak_workers, len(held))
        elif progress.event == "note":
            if progress.kind in self.notes.values() and progress.kind:
                return  # said before, as the program was asked whether it knows what is asked for
            self.notes.setdefault(progress.message, progress.kind)
        if self._pass_on is not None:
            self._pass_on(progress)

    def add(self, outcome: Outcome) -> None:
        """One calculation has ended."""
        self.outcomes[outcome.label] = outcome

    @property
    def calculations_wall_s(self) -> float:
        """How long the calculations took, one after another at the widths they had."""
        return sum(outcome.wall_s for outcome in self.outcomes.values())

    def statistics(self, wall_s: float, usable: float | None = None) -> dict[str, Any]:
        """Figures of everything added so far.

        ``thread_efficiency``: CPU time / (threads x wall time) over the calculations. ``busy_fraction``: share of
        the usable PUs' time that a calculation ran on them, of which there were ``usable`` on average, or always as
        many as now. ``oversubscription``: threads leased at the same time / PUs usable then, at most; above 1 would be
        too many. ``speedup_estimate``: the calculations one after another, at the
        widths they had, / the wall time. Where nothing was computed, ratios are ``None``.
        """
        outcomes = self.outcomes.values()
        cpu_s = sum(outcome.cpu_s for outcome in outcomes)
        thread_s = sum(outcome.threads * outcome.wall_s for outcome in outcomes)
        usable = len(self._book.usable) if usable is None else usable
        return {
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "calculations_wall_s": self.calculations_wall_s,
            "thread_efficiency": _ratio(cpu_s, thread_s),
            "busy_fraction": _ratio(thread_s, usable * wall_s) if outcomes else None,
            "oversubscription": self._oversubscription if outcomes else None,
            "speedup_estimate": _ratio(self.calculations_wall_s, wall_s) if outcomes else None,
            "peak_workers": self.peak_workers,
            "peak_threads": self.peak_threads,
            "peak_memory_bytes": max((outcome.peak_memory_bytes for outcome in outcomes), default=None),
            "attempts": sum(outcome.attempts for outcome in outcomes),
            "lease_wait_s": sum(outcome.waited_s for outcome in outcomes if outcome.waited_for),
        }

    def findings(self, *, affinity: bool) -> list[Finding]:
        """What a user should know that outcomes and notes tell, in plain words, with the number and the remedy."""
        ran = [outcome for outcome in self.outcomes.values() if outcome.worker_pid]
        unbound = [outcome for outcome in ran if outcome.bound is None] if affinity else []
        why = [note for note, kind in self.notes.items() if kind == "unbound"] if unbound else []
        waited = [outcome for outcome in self.outcomes.values() if outcome.waited_for]
        told = [note for note, kind in self.notes.items() if kind == "waits"]
        if not told and sum(outcome.waited_s for outcome in waited) < _TELLING_S:
            waited = []
        found = [
            Finding(kind="note", message=note)
            for note, kind in self.notes.items()
            if note not in why and note not in told
        ]
        if waited:
            found.append(_waited(waited))
        elif told:  # before the first calculation
            message = told[0].replace("waits for what is held", "waited for what was held")
            found.append(Finding(kind="waited", message=message))
        if unbound:
            said = f"{len(unbound)} of {len(ran)} calculations ran unbound"
            reason = why[0].partition(": ")[2] if why else "see qcthreads doctor"
            found.append(Finding(kind="unbound", message=f"{said}: {reason}"))
        return found


def mixed_versions(results: Mapping[str, Any]) -> list[Finding]:
    """A finding where the results come from more than one version of the program (a resumed store may hold both)."""
    versions: dict[str, set[str]] = {}
    for result in results.values():
        provenance = result.get("provenance") or {}
        versions.setdefault(provenance.get("creator", ""), set()).add(provenance.get("version", ""))
    return [
        Finding(
            kind="mixed-versions",
            message=f"the energies come from {' and '.join(f'{creator} {one}'.strip() for one in sorted(several))}: "
            "recompute with one of them",
        )
        for creator, several in versions.items()
        if len(several) > 1
    ]


def _waited(outcomes: list[Outcome]) -> Finding:
    longest = max(outcomes, key=lambda outcome: outcome.waited_s)
    total_s = sum(outcome.waited_s for outcome in outcomes)
    return Finding(
        kind="waited",
        message=f"{format_count(len(outcomes), 'calculation')} waited {total_s:.1f} s in all for leases, "
        f"{short_label(longest.label)} the longest, {longest.waited_s:.1f} s, for what {longest.waited_for} held",
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
