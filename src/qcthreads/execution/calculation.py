"""One calculation to be run and what became of it; values only, so that store, engine and worker agree on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..cpuset import CpuSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Calculation:
    """What is to be run. ``input``: a QCSchema version 2 AtomicInput as plain JSON data, or what makes it when called;
    of very many calculations the inputs are best made one by one.

    ``compute`` names an importable function ``"module:function"`` called as ``function(input) -> result`` (both plain
    QCSchema data, or objects with ``model_dump``) in place of QCEngine.
    """

    label: str
    program: str
    input: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    threads: int = 1
    memory_bytes: int = 0
    files_bytes: int = 0
    """Of these, for temporary files that are in memory; the program is not told of them."""
    gpus: int | None = None
    """``None``: one where the program computes on GPUs and there are any; others see none."""
    timeout_s: float | None = None
    compute: str | None = None
    task_config: Mapping[str, Any] = field(default_factory=dict)
    """The user's own additions to QCEngine's task_config; they win over what the program's record says."""

    @property
    def told_bytes(self) -> int | None:
        """The memory that its program may compute with; ``None``: no limit."""
        return self.memory_bytes - self.files_bytes if self.memory_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a calculation. ``result``: QCSchema AtomicResult data when finished, else ``None``."""

    label: str
    status: Literal["finished", "failed", "stopped"]
    """``stopped``: with its run, while it ran; observers alone are told of it."""
    result: Mapping[str, Any] | None
    error: str | None
    threads: int
    """The width it ran at."""
    cpus: CpuSet
    """The PUs of its lease."""
    bound: CpuSet | None
    """The mask read back in the worker; ``None`` where no mask was set."""
    worker_pid: int
    started_at: float
    """Seconds since the epoch."""
    wall_s: float
    cpu_s: float
    """CPU time of the worker and the programs it started, during this calculation."""
    peak_memory_bytes: int
    """The largest resident memory seen in any process of the worker."""
    attempts: int = 1
    waited_s: float = 0.0
    """How long it waited for its lease, before ``started_at``."""
    waited_for: str = ""
    """Who held what it waited for, in words; empty where it had to wait for nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One event of a run, for whoever shows progress. A ``note`` is said once, whatever calculation it came up with."""

    event: Literal["started", "finished", "failed", "retried", "reused", "note"]
    label: str
    message: str = ""
    outcome: Outcome | None = None
    kind: str = ""
    """Of a note: ``unbound`` or ``lost`` where it is about the binding, ``waits`` where about a lease."""
