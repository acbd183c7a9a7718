"""What terms were measured to take on this machine, and what a run adds to that; plans nothing and runs nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence

from ..errors import MachineError
from ..execution.calculation import Outcome
from ..execution.cost_store import CostStore, Kind
from ..execution.observing import Attempt
from ..machine import Machine
from ..monitoring.statistics import WorkerUsage
from ..planning.costs import CostModel, Observation, Size, representative
from .expansion import Chemistry, Expansion, Term
from .watched import peak_bytes

_log = logging.getLogger("qcthreads")


class Measured:
    """The cost models of an expansion's model chemistries on this machine.

    Parameters
    ----------
    expansion
        Says which model chemistry and size a term has.
    machine
        Whose measurements count.
    """

    def __init__(self, expansion: Expansion, machine: Machine) -> None:
        self._expansion = expansion
        self._store = CostStore(machine)
        self._models: dict[str, CostModel | None] = {}
        self._times_s: dict[tuple[str, Size, tuple[int, ...]], Mapping[int, float] | None] = {}

    def times_s(self, term: Term, widths: Sequence[int]) -> Mapping[int, float] | None:
        """Seconds by width; ``None``: nothing of its kind was measured."""
        size = self._expansion.size(term)
        key = term.chemistry.name, size, tuple(widths)  # of few sizes, thousands of terms
        if key not in self._times_s:
            model = self._model(term.chemistry)
            self._times_s[key] = None if model is None else model.times_s(size, widths)
        return self._times_s[key]

    def keep(self, attempts: Iterable[Attempt], terms: Iterable[Term]) -> None:
        """Add what a run measured, of alike calculations what stands for all. Where it cannot be kept, a log line."""
        by_label = {term.label: term for term in terms}
        seen: dict[Kind, list[Observation]] = {}
        for attempt in attempts:
            term = by_label.get(attempt.outcome.label)
            kind = None if term is None else kind_of(term.chemistry)
            if term is None or kind is None or attempt.outcome.status != "finished":
                continue
            seen.setdefault(kind, []).append(observed(self._expansion.size(term), attempt.outcome, attempt.usage))
        for kind, observations in seen.items():
            try:
                self._store.add(kind, representative(observations))
            except MachineError as error:
                _log.warning("what this run measured does not help the next one: %s", error)
                return

    def _model(self, chemistry: Chemistry) -> CostModel | None:
        if chemistry.name not in self._models:
            kind = kind_of(chemistry)
            self._models[chemistry.name] = None if kind is None else self._store.model(kind)
        return self._models[chemistry.name]


def kind_of(chemistry: Chemistry) -> Kind | None:
    """What its calculations have in common for one model; ``None`` where the basis is no name."""
    if not isinstance(chemistry.basis, str | None):
        return None
    told = chemistry.specification
    keywords = json.dumps(told.get("keywords") or {}, sort_keys=True) if told.get("keywords") else ""
    return Kind(chemistry.program, told["driver"], chemistry.method, chemistry.basis or "", keywords)


def observed(size: Size, outcome: Outcome, usage: WorkerUsage | None) -> Observation:
    """A calculation as cost models take it: without the time for which its threads waited for CPUs that others used."""
    waited_s = 0.0 if usage is None or usage.wait_ns is None else usage.wait_ns / 1e9 / outcome.threads
    # It cannot have computed faster than all its threads at once.
    wall_s = max(outcome.wall_s - waited_s, min(outcome.wall_s, outcome.cpu_s / outcome.threads))
    return Observation(size, outcome.threads, wall_s, peak_bytes(outcome, usage))
