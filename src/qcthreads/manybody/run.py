"""The job behind ``qcthreads run``: from a request to a report; prints nothing and parses no command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cpuset import CpuSet
from ..execution.calculation import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a user asks for; ``None`` means: not said, so qcthreads decides or the input says."""

    input: Path
    fragments: str | None = None
    """For .xyz: 1-based atoms of each fragment, ``"1-3;4-6"``."""
    charges: Sequence[float] | None = None
    multiplicities: Sequence[int] | None = None
    program: str | None = None
    method: str | None = None
    basis: str | None = None
    max_nbody: int | None = None
    bsse: Sequence[str] | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    threads: int | None = None
    strategy: str = "auto"
    max_total_threads: int | None = None
    memory_bytes: int | None = None
    cpus: CpuSet | None = None
    leave: int = 0
    affinity: bool = True
    scratch: Path | None = None
    store: Path | None = None
    resume: bool = False
    retries: int = 0
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentRow:
    """One fragment or cluster of fragments, as a chemist reads it."""

    label: str
    nbody: int
    fragments: tuple[int, ...]
    ghosts: tuple[int, ...]
    formula: str
    charge: float
    multiplicity: int
    electrons: int
    closest_contact_angstrom: float | None
    """Shortest distance between atoms of different fragments in it; ``None`` for one fragment."""
    energy_hartree: float | None = None
    wall_s: float | None = None
    threads: int | None = None
    cpus: str | None = None
    worker_pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyRow:
    """One order of the expansion under one BSSE treatment; energies in hartree."""

    bsse: str
    nbody: int
    total_hartree: float | None
    """Total energy through this order; ``None`` where the treatment does not give one."""
    interaction_hartree: float
    contribution_hartree: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything a run ends with. ``result`` is ``None`` and ``missing`` names the terms when a calculation failed."""

    fragments: tuple[FragmentRow, ...]
    bodies: tuple[BodyRow, ...]
    result: Mapping[str, Any] | None
    missing: tuple[str, ...]
    failures: Mapping[str, str]
    statistics: Mapping[str, Any]
    decision: Mapping[str, Any]
    findings: tuple[Mapping[str, Any], ...]
    bsse_treatment: str
    """Named in words, for a paper."""

    def to_json(self) -> dict[str, Any]:
        """``{"result", "statistics", "decision", "findings"}`` as design and documentation fix it, plus ``missing`` and ``failures``."""
        raise NotImplementedError


class Run:
    """A prepared run: the input is read and checked, the decision is taken, nothing has been started.

    Raises InputError for malformed or contradictory input, MachineError (and subclasses) where this machine cannot.
    """

    fragments: tuple[FragmentRow, ...]
    counts_by_nbody: Mapping[int, int]
    decision: Mapping[str, Any]
    """``{"strategy", "workers", "threads", "cpus_usable", "cpus_by_worker", "memory_bytes_per_worker", "affinity", "program",
    "program_version", "reasons": [...], "scratch_bytes", "expected_wall_s": float | None}``"""

    def __init__(self, request: RunRequest) -> None:
        raise NotImplementedError

    def execute(self, on_progress: Callable[[Progress], None] | None = None) -> RunReport:
        """Compute what the store lacks. A KeyboardInterrupt ends every child, releases everything, leaves the store valid, and goes on up."""
        raise NotImplementedError
