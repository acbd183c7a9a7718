"""How a many-body calculation is to be run in parallel: checked values only; looks at no machine and starts nothing."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import InputError
from ..execution.wrapping import Wrapping
from ..planning import strategy_names as registered_strategies

EXECUTION_MODES = ("multiprocessing", "threading", "serial")
STRATEGIES = ("auto", "balanced", "adaptive", "memory-aware")
"""Ours. Of others, which other packages register, a run follows the plan."""

# The fields of QCEngine 0.52's TaskConfig, which refuses any other in every single calculation.
_TASK_CONFIG = (
    "ncores",
    "nnodes",
    "memory",
    "scratch_directory",
    "retries",
    "mpiexec_command",
    "use_mpiexec",
    "cores_per_rank",
    "scratch_messy",
)


@dataclass
class ParallelConfig:
    """How fragments are computed side by side.

    Parameters
    ----------
    max_workers
        At most so many calculations at a time; fewer where the machine has less, with a line that says why.
    execution_mode
        ``"multiprocessing"`` and ``"threading"``: many at a time; ``"serial"``: one at a time. In every mode a program
        runs in a worker process that was started for it, never in the caller's process: a QC program's threads and
        environment are its process's own, so that driver threads alone could not give two calculations two widths.
    memory_limit_mb
        Memory of one worker in MB (10^6 bytes); the program is told this less what the worker itself needs.
    timeout_seconds
        A calculation that takes longer is ended and counts as failed.
    use_qcengine
        ``False``: each calculation is ``compute(AtomicInput data) -> AtomicResult data`` instead of QCEngine.
    qc_program, basis_set
        What QCEngine calls the program; the basis set of model chemistries that name none (``None``: programs without).
    qcengine_config
        More of QCEngine's ``task_config`` (``retries``, ``scratch_directory``, ...). Threads and memory have their own
        fields above: ``ncores`` and ``memory`` are accepted only where they say the same.
    compute
        An importable function, or its name ``"module:function"``; only with ``use_qcengine=False``.
    at_most
        By program, how many of its calculations run at once at most on the whole node: as many as there are licences.
    setup, wrap
        What a login shell does before each worker (``"module load psi4"``), and words that it is put behind (``"conda
        run --no-capture-output -n env"``): programs are then looked for in there.
    learn
        Keep what calculations took, for later runs on this machine to plan with.

    Raises
    ------
    ValueError
        A value that is not allowed, with those that are.
    """

    max_workers: int = 4
    execution_mode: Literal["multiprocessing", "threading", "serial"] = "multiprocessing"
    memory_limit_mb: int = 1000
    timeout_seconds: float = 3600
    use_qcengine: bool = True
    qc_program: str = "psi4"
    basis_set: str | None = "sto-3g"
    qcengine_config: dict[str, Any] | None = None
    compute: str | Callable[..., Any] | None = None
    at_most: dict[str, int] | None = field(default=None, kw_only=True)
    setup: str | None = field(default=None, kw_only=True)
    wrap: str | None = field(default=None, kw_only=True)
    learn: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        _positive_int("max_workers", self.max_workers)
        if self.execution_mode not in EXECUTION_MODES:
            raise InputError(f"execution_mode: {self.execution_mode!r} is not one of {', '.join(EXECUTION_MODES)}")
        _positive("memory_limit_mb", self.memory_limit_mb)
        _positive("timeout_seconds", self.timeout_seconds)
        if not isinstance(self.qc_program, str) or not self.qc_program.strip():
            raise InputError(f"qc_program: {self.qc_program!r}; give QCEngine's name of a program, for example 'psi4'")
        if self.basis_set is not None and (not isinstance(self.basis_set, str) or not self.basis_set.strip()):
            raise InputError(f"basis_set: {self.basis_set!r}; give the name of a basis set, or None for no basis set")
        _bool("use_qcengine", self.use_qcengine)
        _bool("learn", self.learn)
        if not self.use_qcengine and self.compute is None:
            raise InputError(
                "use_qcengine=False needs compute=: an importable function, or its name 'module:function', that takes "
                "AtomicInput data and returns AtomicResult data; without it there is nothing to compute energies with"
            )
        if self.use_qcengine and self.compute is not None:
            raise InputError("compute= was given together with use_qcengine=True; give use_qcengine=False to use it")
        if self.compute is not None:
            compute_name(self.compute)
        for program, most in (self.at_most or {}).items():
            _positive_int(f"at_most of {program}", most)
        Wrapping.of(self.setup, self.wrap)
        self._check_qcengine_config()

    @property
    def threads_per_fragment(self) -> int:
        """The width of every calculation."""
        return 1

    @property
    def memory_limit_bytes(self) -> int:
        """Memory of one worker."""
        return int(self.memory_limit_mb * 10**6)

    def _check_qcengine_config(self) -> None:
        if self.qcengine_config is None:
            return
        if not isinstance(self.qcengine_config, dict):
            raise InputError(
                f"qcengine_config: {self.qcengine_config!r}; give a dict for QCEngine's task_config, or None"
            )
        unknown = [name for name in self.qcengine_config if name not in _TASK_CONFIG]
        if unknown:
            raise InputError(
                f"qcengine_config: {', '.join(map(repr, unknown))} is not in QCEngine's task_config; there are: "
                f"{', '.join(_TASK_CONFIG)}"
            )
        ncores = self.qcengine_config.get("ncores", self.threads_per_fragment)
        if ncores != self.threads_per_fragment:
            raise InputError(
                f"qcengine_config has ncores={ncores}, but each calculation has {self.threads_per_fragment} thread(s); "
                "leave ncores out and set HybridParallelConfig(qc_threads_per_fragment=...)"
            )
        memory_gib = self.qcengine_config.get("memory")
        if memory_gib is None:
            return
        _positive("qcengine_config: memory", memory_gib)
        if abs(memory_gib * 1024**3 - self.memory_limit_bytes) > 0.01 * self.memory_limit_bytes:
            raise InputError(
                f"qcengine_config has memory={memory_gib} GiB, but memory_limit_mb={self.memory_limit_mb} per worker; "
                "leave memory out and set memory_limit_mb"
            )


@dataclass
class HybridParallelConfig(ParallelConfig):
    """:class:`ParallelConfig` with threads inside each calculation.

    Parameters
    ----------
    qc_threads_per_fragment
        The width of every calculation, with ``"balanced"``; with the other strategies the narrowest. Refused, with the
        numbers, where the machine has fewer PUs.
    enable_thread_affinity
        Bind each worker to the PUs of its lease. ``False``: leases still count PUs, but no mask is set.
    thread_allocation_strategy
        ``"balanced"``, the same width for all; ``"adaptive"`` and ``"memory_aware"``, a width for each as it starts; or
        ``"auto"``, the same where that is clearly better; or one that another package registers, whose plan is
        followed. ``-`` and ``_`` mean the same.
    max_total_threads
        At most so many threads at a time over all workers; ``None``: as many PUs as may be used.
    """

    qc_threads_per_fragment: int = 1
    enable_thread_affinity: bool = False
    thread_allocation_strategy: str = "balanced"
    max_total_threads: int | None = None

    def __post_init__(self) -> None:
        _positive_int("qc_threads_per_fragment", self.qc_threads_per_fragment)
        _bool("enable_thread_affinity", self.enable_thread_affinity)
        strategy_name(self.thread_allocation_strategy)
        if self.max_total_threads is not None:
            _positive_int("max_total_threads", self.max_total_threads)
            if self.max_total_threads < self.qc_threads_per_fragment:
                raise InputError(
                    f"max_total_threads={self.max_total_threads} is less than qc_threads_per_fragment="
                    f"{self.qc_threads_per_fragment}: not one calculation could run; raise the one or lower the other"
                )
        super().__post_init__()

    @property
    def threads_per_fragment(self) -> int:
        """The width of every calculation."""
        return self.qc_threads_per_fragment


def strategy_name(name: str) -> str:
    """The name of a strategy as qcthreads writes it. Raises ValueError for what is not there, listing what is."""
    wanted = name.replace("_", "-").lower() if isinstance(name, str) else name
    if wanted in STRATEGIES:
        return wanted
    others = [other for one in registered_strategies() if (other := one.replace("_", "-")) not in STRATEGIES]
    if wanted in others:
        return wanted
    there = ", ".join((*STRATEGIES, *others))
    raise InputError(f"thread allocation strategy {name!r} is not known; there are: {there}")


def compute_name(compute: str | Callable[..., Any]) -> str:
    """``"module:function"`` of a function that a worker can import, or ValueError with the reason why it cannot."""
    if isinstance(compute, str):
        module, separator, function = compute.partition(":")
        if not (separator and module and function.isidentifier()):
            raise InputError(f"compute: {compute!r}; write it as 'module:function', for example 'mymodel:energy'")
        return compute
    qualified = getattr(compute, "__qualname__", None)
    home = getattr(compute, "__module__", None)
    remedy = "put a plain function at the top level of a module and give it, or 'module:function'"
    if not callable(compute) or qualified is None or home is None:
        raise InputError(f"compute: {compute!r} is not a function; {remedy}")
    if "<lambda>" in qualified:
        raise InputError(f"compute: a lambda has no name by which a worker process could import it; {remedy}")
    if "." in qualified:
        raise InputError(f"compute: {qualified} is nested, so a worker process cannot import it by name; {remedy}")
    if home == "__main__":
        raise InputError(
            f"compute: {qualified} is defined in the running script or notebook, which no worker runs again; {remedy}"
        )
    if getattr(sys.modules.get(home) or importlib.import_module(home), qualified, None) is not compute:
        raise InputError(f"compute: {home}:{qualified} is not the function that was given; {remedy}")
    return f"{home}:{qualified}"


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name}: {value!r}; give a number above 0")


def _bool(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name}: {value!r}; give True or False")


def _positive_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}: {value!r}; give a whole number, 1 or more")
