"""What terms were measured to take on this machine, and what a run adds to that; plans nothing and runs nothing."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..errors import MachineError, OversubscriptionError
from ..execution.cost_store import CostStore, Kind
from ..execution.labels import short_label
from ..execution.observing import WORKING_MEMORY_BYTES, Attempt
from ..host.disks import FileSystem, file_system
from ..leases import LeaseBook
from ..monitoring.findings import CONTENDED_SHARE, disturbance
from ..planning.costs import CostModel, Estimate, Observation, Origin, Size, memory_grant, representative
from ..programs import registry
from ..units import format_size
from .expansion import Chemistry, Expansion, Term
from .watched import peak_bytes

_log = logging.getLogger("qcthreads")


@dataclass(frozen=True, slots=True)
class Need:
    """Memory of one calculation."""

    memory_bytes: int
    """What it is planned with."""
    least_bytes: int
    """With less it cannot run."""
    measured: bool = False
    """It takes what it is planned with, and more would not help it: it has no setting that could have held it back."""
    scratch_bytes: int = 0
    """Of temporary files on a disk; those in memory are in the memory."""
    files_bytes: int = 0
    """Of the memory, for temporary files."""

    def files_bytes_of(self, memory_bytes: int) -> int:
        """For temporary files where it is granted so much: the program comes first."""
        return min(self.files_bytes, max(0, memory_bytes - (self.memory_bytes - self.files_bytes)))


@dataclass(frozen=True, slots=True)
class _Told:
    """What was told since something was kept last: to read and to fit takes a while."""

    models: dict[str, CostModel | None] = field(default_factory=dict)
    needs: dict[tuple[str, Size], Need] = field(default_factory=dict)
    files: dict[tuple[str, Size], Estimate | None] = field(default_factory=dict)
    times_s: dict[tuple[str, Size, tuple[int, ...]], Mapping[int, float] | None] = field(default_factory=dict)


class Measured:
    """The cost models of an expansion's model chemistries on this machine; any thread may ask and :meth:`keep`.

    Parameters
    ----------
    expansion
        Says which model chemistry and size a term has.
    book
        Of the machine whose measurements count, and of the memory that may be used.
    scratch
        Where temporary files will be; ``None``: where ``tempfile`` puts them.
    """

    def __init__(self, expansion: Expansion, book: LeaseBook, scratch: Path | None = None) -> None:
        self._expansion = expansion
        self._scratch = scratch or Path(tempfile.gettempdir())
        self._memory_bytes = book.memory_bytes
        self._store = CostStore(book.machine)
        self._told = _Told()  # replaced when something is kept: who reads it twice may find another

    def as_now(self) -> Measured:
        """The same without what is kept from now on: a plan is made from figures that go together."""
        return copy(self)

    def times_s(self, term: Term, widths: Sequence[int]) -> Mapping[int, float] | None:
        """Seconds by width; ``None``: nothing of its kind was measured."""
        size = self._expansion.size(term)
        key = term.chemistry.name, size, tuple(widths)  # of few sizes, thousands of terms
        told = self._told.times_s
        if key not in told:
            model = self._model(term.chemistry)
            told[key] = None if model is None else model.times_s(size, widths)
        return told[key]

    def origin(self) -> Origin | None:
        """Of times that are not of such calculations here, of those corrected least; ``None``: all are."""
        models = (self._model(chemistry) for chemistry in self._expansion.chemistries)
        origins = [model.origin for model in models if model is not None and model.origin is not None]
        return min(origins, key=lambda origin: origin.corrections, default=None)

    def speedups_measured(self) -> bool:
        """Whether of each kind what threads gain was measured on this machine, of some size."""
        models = [self._model(chemistry) for chemistry in self._expansion.chemistries]
        return all(model is not None and model.speedups for model in models)

    def writes_files(self) -> bool:
        """Whether temporary files were seen of any of its calculations."""
        models = (self._model(chemistry) for chemistry in self._expansion.chemistries)
        return any(seen.peak_scratch_bytes for model in models if model is not None for seen in model.observations)

    def need(self, term: Term, width: int = 1) -> Need:
        """The memory of a calculation: as measured of its size here, else what its program takes at least.

        Where a width means processes, each but the first adds to it.

        A program that has a memory setting is given no less than that may say, and does with all there is where it
        would take more. Raises OversubscriptionError, with the calculation's name, where there is less than its program
        takes at least, and where one without a setting would not fit by what was measured of its very size.
        """
        key = term.chemistry.name, self._expansion.size(term)
        told = self._told.needs
        if key not in told:
            need = self._need(term, key[1])
            self._refuse_too_large(term, need)
            told[key] = self._with_scratch(need, term, key[1])
        need = told[key]
        further_bytes = (width - 1) * registry.get(term.chemistry.program).memory_per_process_bytes
        if not further_bytes:
            return need
        least_bytes = need.least_bytes + further_bytes
        most_bytes = max(least_bytes, self._memory_bytes)  # it does with all there is where it would take more
        return replace(need, memory_bytes=min(need.memory_bytes + further_bytes, most_bytes), least_bytes=least_bytes)

    def disk_need_bytes(self, term: Term) -> int:
        """For its temporary files on a disk, no more than is free; 0 where none were measured."""
        peak = self._files(term, self._expansion.size(term))
        if peak is None or self._file_system.in_memory:
            return 0
        files_bytes, free_bytes = memory_grant(peak), self._file_system.free_bytes
        return files_bytes if free_bytes is None else min(files_bytes, free_bytes)

    def _files(self, term: Term, size: Size) -> Estimate | None:
        """The peak of temporary files, where any were measured."""
        told, key = self._told.files, (term.chemistry.name, size)
        if key not in told:
            model = self._model(term.chemistry)
            peak = None if model is None else model.scratch_bytes(size)
            told[key] = None if peak is None or peak.source == "law" else peak
        return told[key]

    def _with_scratch(self, need: Need, term: Term, size: Size) -> Need:
        peak = self._files(term, size)
        if peak is None:
            return need
        files_bytes, where = memory_grant(peak), self._file_system
        free_bytes, what = where.free_bytes, where.kind or "its file system"
        if where.in_memory:
            left_bytes = self._memory_bytes - need.least_bytes
            free_bytes, what = left_bytes if free_bytes is None else min(free_bytes, left_bytes), f"{what}, in memory"
        if peak.source == "seen" and free_bytes is not None and peak.value > free_bytes:
            raise OversubscriptionError(
                f"calculation {short_label(term.label)} writes {format_size(round(peak.value))} of temporary files by "
                f"what was measured, but {format_size(max(0, free_bytes))} are left in {self._scratch} ({what}); name "
                "another directory with --scratch"
            )
        if not where.in_memory:
            return replace(need, scratch_bytes=self.disk_need_bytes(term))
        least_bytes = round(peak.value) if peak.source == "seen" else 0
        files_bytes = max(0, min(files_bytes, self._memory_bytes - need.memory_bytes))
        return replace(
            need,
            memory_bytes=need.memory_bytes + files_bytes,
            least_bytes=need.least_bytes + least_bytes,
            files_bytes=files_bytes,
        )

    @cached_property
    def _file_system(self) -> FileSystem:
        """The directory may be made later."""
        return file_system(next(folder for folder in (self._scratch, *self._scratch.parents) if folder.exists()))

    @property
    def disk_bytes(self) -> int | None:
        """Free for temporary files; ``None``: no limit that is known of, or none were seen."""
        return self._file_system.limit_bytes if self.writes_files() else None

    def disk_now_bytes(self, ours_bytes: int) -> float:
        """Free for temporary files by now, or taken by ours, which are so large; no limit where it cannot be seen."""
        try:
            return shutil.disk_usage(self._scratch).free + ours_bytes
        except OSError:  # those that run say what is wrong
            return math.inf

    def side_by_side(self, terms: Iterable[Term]) -> int | None:
        """So many of the largest have room for their temporary files; ``None``: no limit that is known of."""
        disk_bytes = self.disk_bytes
        if disk_bytes is None:
            return None
        largest_bytes = max(map(self.disk_need_bytes, terms), default=0)
        return max(1, disk_bytes // largest_bytes) if largest_bytes else None

    def _need(self, term: Term, size: Size) -> Need:
        spec, model = registry.get(term.chemistry.program), self._model(term.chemistry)
        any_size = spec.memory_overhead_bytes + WORKING_MEMORY_BYTES
        peak = None if model is None else model.memory_bytes(size)
        if peak is None or peak.source == "law":
            return Need(any_size, any_size)
        granted = min(memory_grant(peak), self._memory_bytes)
        if peak.source == "between":
            granted = max(granted, any_size)
        if spec.memory is not None:  # it may have done with little: it is planned with its peak, and granted its share
            least = spec.memory_overhead_bytes + spec.memory_least_bytes
            return Need(max(least, granted), least)
        if peak.source == "seen" and peak.value > self._memory_bytes:
            raise OversubscriptionError(
                f"calculation {short_label(term.label)} takes {format_size(round(peak.value))} of memory by what was "
                f"measured here, but {format_size(self._memory_bytes)} may be used; allow more memory, or compute it "
                "where there is more"
            )
        return Need(granted, granted if peak.source == "seen" else any_size, measured=True)

    def _refuse_too_large(self, term: Term, need: Need) -> None:
        if need.least_bytes > self._memory_bytes:
            title, there = registry.get(term.chemistry.program).title, format_size(self._memory_bytes)
            raise OversubscriptionError(
                f"calculation {short_label(term.label)} needs {format_size(need.least_bytes)} of memory, the least "
                f"that {title} is given, but {there} may be used; allow more memory, or compute it where there is more"
            )

    def keep(self, attempts: Iterable[Attempt], terms: Iterable[Term]) -> None:
        """Add what a run measured, one for all that are alike. Where it cannot be kept, a log line."""
        by_label = {term.label: term for term in terms}
        seen: dict[Kind, list[Observation]] = {}
        for attempt in attempts:
            term = by_label.get(attempt.outcome.label)
            kind = None if term is None else kind_of(term.chemistry)
            if term is None or kind is None or attempt.outcome.status != "finished":
                continue
            seen.setdefault(kind, []).append(_observed(self._expansion.size(term), attempt))
        for kind, observations in seen.items():
            try:
                self._store.add(kind, representative(observations))
            except MachineError as error:
                _log.warning("what this run measured does not help the next one: %s", error)
                return
            self._told = _Told()

    def _model(self, chemistry: Chemistry) -> CostModel | None:
        told = self._told.models
        if chemistry.name not in told:
            kind = kind_of(chemistry)
            told[chemistry.name] = None if kind is None else self._store.model(kind)
        return told[chemistry.name]


def kind_of(chemistry: Chemistry) -> Kind | None:
    """What its calculations have in common for one model; ``None`` where the basis is no name."""
    if not isinstance(chemistry.basis, str | None):
        return None
    told = chemistry.specification
    keywords = json.dumps(told.get("keywords") or {}, sort_keys=True) if told.get("keywords") else ""
    return Kind(chemistry.program, told["driver"], chemistry.method, chemistry.basis or "", keywords)


def net_wall_s(attempt: Attempt) -> float:
    """Wall time without that for which its threads waited for CPUs that others used."""
    outcome, usage = attempt.outcome, attempt.usage
    waited_s = 0.0 if usage is None or usage.wait_ns is None else usage.wait_ns / 1e9 / outcome.threads
    # It cannot have computed faster than all its threads at once.
    return max(outcome.wall_s - waited_s, min(outcome.wall_s, outcome.cpu_s / outcome.threads))


def _observed(size: Size, attempt: Attempt) -> Observation:
    """A calculation as cost models take it; without its time where others disturbed threads that work together.

    Of these, those that wait for one that waits for a CPU spin or sleep, and how long is not known; what one thread
    alone waited for is.
    """
    outcome = attempt.outcome
    disturbed = outcome.threads > 1 and disturbance(attempt.grant, attempt.usage) > CONTENDED_SHARE
    peak = peak_bytes(outcome, attempt.usage)
    return Observation(size, outcome.threads, None if disturbed else net_wall_s(attempt), peak, attempt.scratch_bytes)
