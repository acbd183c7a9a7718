"""The record that describes one program, and what a calculation is given because of it; runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class ParallelModel(Enum):
    """How a program uses more than one PU."""

    SERIAL = "serial"
    OPENMP = "OpenMP"
    BLAS = "BLAS pools"
    MPI = "MPI"
    MPI_OPENMP = "MPI + OpenMP"
    OWN_LAUNCHER = "own launcher"
    GPU = "GPU"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """One program. ``name`` is what QCEngine calls it, in lower case.

    Templates in ``environment`` know ``{threads}`` (threads of one process), ``{ranks}`` (processes) and ``{scratch}``;
    a variable that needs ``{scratch}`` is left out where no scratch directory was chosen.
    """

    name: str
    title: str
    parallel_model: ParallelModel
    in_process: bool
    """Computes inside the worker process: its width is frozen by the first calculation."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beyond the runtimes' variables that every program gets."""
    task_config: Mapping[str, Any] = field(default_factory=dict)
    """QCEngine's task_config beyond ncores, memory and the scratch directory; for an MPI program from two ranks on."""
    inert: Mapping[str, str] = field(default_factory=dict)
    """Names that people set and nothing reads, each with the reason."""
    useful_width: int | None = None
    """Beyond this width the program does not get faster; ``None``: not known. 1: it does not thread."""
    memory_overhead_bytes: int = 256 * 1024**2
    """Resident memory of the program and its worker beyond what its memory setting governs."""
    python_module: str | None = None
    executable: str | None = None
    required_modules: tuple[str, ...] = ()
    """Modules without which QCEngine's harness does not find the program."""
    version_command: tuple[str, ...] = ()
    """Its output holds the version as the first word that begins like one; empty: asked of the Python module."""
    harness_module: str | None = None
    """A module of ours to import in the worker, which registers a QCEngine harness."""
    preload: tuple[str, ...] = ()
    """Modules that its first calculation imports: a worker that waits for one has them ready."""
    check: str | None = None
    """``"module:function"``, called in a worker before the first calculation, with what all of them have in common:
    ``{"driver", "model", "keywords", "elements"}``. It returns ``{"refused": None}``, or why they would all fail."""
    takes_basis: bool = True
    """False: its methods bring their own basis, or have none."""
    usual_method: str | None = None
    """Meant where none is said."""
    per_calculation_keywords: Mapping[str, str] = field(default_factory=dict)
    """Keywords, in lower case, that give a number of orbitals, with what to write instead: the same in monomer and
    dimer, such a number leaves no meaning to their difference."""
    install_hint: str
    provenance: str
    """How well the facts are known: verified in source, measured, documented, second-hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one calculation at a given width is started with: only settings that really work."""

    program: str
    threads: int
    """The width that will really run; 1 for a program that does not thread, whatever was asked."""
    environment: Mapping[str, str]
    unset: tuple[str, ...]
    """Variables removed from the child's environment."""
    task_config: Mapping[str, Any]
    """For ``qcengine.compute(..., task_config=...)``: ncores, memory (GiB), scratch_directory, ..."""
    harness_module: str | None = None
    notes: tuple[str, ...] = ()
    """One line each: what was changed from what was asked, and why."""
