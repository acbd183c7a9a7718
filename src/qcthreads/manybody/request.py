"""What a user asks of ``qcthreads run``; values only, read by whatever prepares the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..cpuset import CpuSet
from ..execution.wrapping import Wrapping

DEFAULT_PROGRAM = "pyscf"


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
    smt: bool = False
    """Give threads every PU of a core, not one."""
    affinity: bool = True
    busy: Literal["avoid", "wait", "ignore"] = "avoid"
    """What is done about PUs that others keep busy who hold no lease."""
    at_most: Mapping[str, int] = field(default_factory=dict)
    """By program, how many of its calculations run at once on the whole node; ``""``: of each program of the run."""
    wrapping: Wrapping = Wrapping()  # noqa: RUF009 - immutable
    """What every worker is put behind."""
    scratch: Path | None = None
    store: Path | None = None
    resume: bool = False
    retries: int = 0
    timeout_s: float | None = None
    learn: bool = True
    """Keep what calculations took, for later runs on this machine to plan with."""
