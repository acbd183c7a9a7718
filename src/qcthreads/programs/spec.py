"""The record that describes one program, and what a calculation is given because of it; runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from ..light import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal


class ParallelModel(Enum):
    """How a program uses more than one PU."""

    SERIAL = "serial"
    OPENMP = "OpenMP"
    THREADS = "threads of its own"
    BLAS = "BLAS pools"
    MPI = "MPI"
    MPI_OPENMP = "MPI + OpenMP"
    OWN_LAUNCHER = "own launcher"
    """Starts its processes by itself."""
    GPU = "GPU"
    UNKNOWN = "unknown"


class Known(Enum):
    """How a fact is known, the surest last."""

    SECOND_HAND = "second-hand"
    DOCUMENTED = "documented"
    SOURCE = "verified in source"
    MEASURED = "measured here"


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing known of a program, and where from."""

    topic: Literal["threads", "harness", "memory", "binding", "width", "trap", "check"]
    """``harness``: what QCEngine's harness tells the program; ``check``: how to see that it obeyed."""
    text: str
    known: Known
    source: str


@dataclass(frozen=True, slots=True)
class MemorySetting:
    """What the program's memory setting governs."""

    scope: Literal["calculation", "process", "PU", "GPU"]
    """Whose memory it is: of the whole calculation, of each process, of each thread or rank."""
    unit: str
    set_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A small real calculation, of a second or so, by which ``qcthreads verify`` sees what the program does.

    Through QCEngine it is the energy of ``waters`` water molecules on a grid; of a program without a harness, a run of
    ``ProgramSpec.command`` on ``input_text``, in which ``{threads}``, ``{ranks}`` and ``{width}`` are filled in.
    """

    waters: int = 0
    method: str = ""
    basis: str | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    input_text: str = ""


WorkerKind = tuple[str, int]
"""Program and width, 0 for any: each calculation of a kind can run in each worker of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """One program. ``name`` is what QCEngine calls it, in lower case.

    Templates in ``environment``, ``task_config``, ``command`` and ``input_text`` know ``{threads}`` (threads of one
    process), ``{ranks}`` (processes), ``{width}`` (both multiplied) and ``{scratch}``; a variable that needs
    ``{scratch}`` is left out where no scratch directory was chosen.
    """

    name: str
    title: str
    parallel_model: ParallelModel
    in_process: bool
    """Computes inside the worker process: its width is frozen by the first calculation, unless ``any_width``."""
    any_width: bool = False
    """Computes inside the worker process, where its harness sets its threads anew for each calculation."""
    qcengine: bool = True
    """QCEngine drives it, by its own harness or by ``harness_module``; False: ``qcthreads exec`` alone."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beyond the runtimes' variables that every program gets; nothing that is only second-hand knowledge."""
    unset: tuple[str, ...] = ()
    """Variables of its own that would lead it out of its lease."""
    task_config: Mapping[str, Any] = field(default_factory=dict)
    """QCEngine's task_config beyond ncores, memory and the scratch directory; for an MPI program from two ranks on."""
    command: str = ""
    """Its command line at a width, for ``qcthreads exec``."""
    width_options: tuple[str, ...] = ()
    """Options of its command line of which one has to say the width: the environment does not."""
    input_text: str = ""
    """What its input must say at a width; only the user can write it there."""
    inert: Mapping[str, str] = field(default_factory=dict)
    """Names that people set and nothing reads, each with the reason."""
    useful_width: int | None = None
    """Beyond this width the program does not get faster; ``None``: not known. 1: it does not thread."""
    gpu: bool = False
    """Computes on every GPU that it sees."""
    memory: MemorySetting | None = None
    """``None``: it has no memory setting, or none is known."""
    memory_overhead_bytes: int = 256 * 1024**2
    """Resident memory of the program and its worker beyond what its memory setting governs."""
    memory_per_process_bytes: int = 0
    """What each of its processes but the first has beyond that, where a width means processes."""
    memory_least_bytes: int = 256 * 1024**2
    """Less must not be said by its memory setting; 0: any amount will do."""
    python_module: str | None = None
    distribution: str | None = None
    """The package that brings the module, where its name is another."""
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
    methods: tuple[str, ...] = ()
    """Those that there are, where they are few and the program itself does not say so when it is given another."""
    per_calculation_keywords: Mapping[str, str] = field(default_factory=dict)
    """Keywords, in lower case, that give a number of orbitals, with what to write instead: the same in monomer and
    dimer, such a number leaves no meaning to their difference."""
    sample: Sample | None = None
    """``None``: ``qcthreads verify`` has to be given an input."""
    energy_pattern: str = ""
    """Of a program without a harness: the last match in its output has the energy in hartree as its first group."""
    install_hint: str
    measured_with: str = ""
    """The version that was run with these settings, its threads or ranks counted."""
    facts: tuple[Fact, ...] = ()

    @property
    def processes_scale(self) -> bool:
        """A width means so many processes of one thread, and not one process of so many threads."""
        return self.parallel_model in (ParallelModel.MPI, ParallelModel.OWN_LAUNCHER)

    @property
    def one_worker_kind(self) -> bool:
        """Whether a worker serves every width: what computes is told its threads anew, or started anew."""
        return self.any_width or not self.in_process

    def worker_of(self, width: int) -> WorkerKind:
        """The kind of worker that a calculation of this width runs in."""
        return self.name, 0 if self.one_worker_kind else width

    def gpus_of(self, there: int) -> int:
        """How many GPUs a calculation gets that says nothing of them: one of ``there``, where it computes on GPUs."""
        return min(1, there) if self.gpu else 0

    @property
    def starts_mpi(self) -> bool:
        """It, or a build of it, starts MPI processes."""
        return self.processes_scale or self.parallel_model is ParallelModel.MPI_OPENMP

    @property
    def not_known(self) -> tuple[str, ...]:
        """What neither a source nor a measurement told of it."""
        told = {fact.topic for fact in self.facts}
        if self.useful_width is not None or self.parallel_model is ParallelModel.SERIAL:
            told.add("width")
        asked = {"binding": "whether it binds its threads or processes", "width": "up to which width it gets faster"}
        return tuple(words for topic, words in asked.items() if topic not in told)

    @property
    def provenance(self) -> str:
        """How well its threading is known, the surest first."""
        kinds = {fact.known for fact in self.facts if fact.topic == "threads"}
        said = []
        if self.measured_with:
            said.append(f"measured here with {self.measured_with}")
        if Known.SOURCE in kinds:
            said.append(Known.SOURCE.value)
        if said:
            return ", ".join(said)
        weaker = [known.value for known in (Known.DOCUMENTED, Known.SECOND_HAND) if known in kinds]
        return f"never verified: {', '.join(weaker)}" if weaker else "never verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one calculation at a given width is started with: only settings that really work."""

    program: str
    threads: int
    """The width that will really run, all processes together; 1 for a program that does not thread."""
    ranks: int = 1
    """Processes that share the width."""
    environment: Mapping[str, str]
    unset: tuple[str, ...]
    """Variables removed from the child's environment."""
    task_config: Mapping[str, Any]
    """For ``qcengine.compute(..., task_config=...)``: ncores, memory (GiB), scratch_directory, ..."""
    harness_module: str | None = None
    notes: tuple[str, ...] = ()
    """One line each: what was changed from what was asked, and why."""
