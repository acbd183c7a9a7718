"""Turns a program's record and a width into what one calculation is started with; starts nothing and sets nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..errors import InputError, MachineError
from ..units import format_size
from . import runtimes
from .spec import ParallelModel, ProgramSpec, Settings


def settings_for(
    spec: ProgramSpec, threads: int, memory_bytes: int | None = None, scratch: str | None = None
) -> Settings:
    """What a calculation with ``spec`` at ``threads`` PUs is started with: only settings that really work.

    Parameters
    ----------
    threads
        Width of the lease: threads, or ranks of an MPI program.
    memory_bytes
        The lease's memory. The program is told this less ``spec.memory_overhead_bytes``. None or 0: it is told nothing,
        and QCEngine lets it take 90 % of what is free.
    scratch
        Directory for the program's temporary files.

    Raises
    ------
    InputError
        ``threads`` is not an int of at least 1.
    MachineError
        ``memory_bytes`` does not even hold what the program needs beyond its memory setting.
    """
    check_threads(threads)
    notes = []
    width = threads
    if threads > 1 and (spec.useful_width == 1 or spec.parallel_model is ParallelModel.SERIAL):
        width = 1
        notes.append(f"{spec.title} gains nothing from threads: 1 is used instead of {threads}")
    if spec.parallel_model is ParallelModel.UNKNOWN:
        notes.append(
            f"nothing is known about the program {spec.name!r}: every threading runtime is told {threads}, "
            "and whether it follows is for the monitor to show"
        )
    ranks = width if spec.parallel_model is ParallelModel.MPI else 1
    task_config: dict[str, Any] = {"ncores": width}
    if memory_bytes:
        task_config["memory"] = _told_memory_gib(spec, memory_bytes)
    if scratch is not None:
        task_config["scratch_directory"] = scratch
    if ranks > 1 or spec.parallel_model is not ParallelModel.MPI:
        task_config |= spec.task_config
    unset: tuple[str, ...] = runtimes.UNSET
    if spec.parallel_model in (ParallelModel.MPI, ParallelModel.MPI_OPENMP):
        unset += runtimes.of_outer_launcher(os.environ)
    environment = _environment(spec, width // ranks, ranks, scratch)
    return Settings(
        program=spec.name,
        threads=width,
        environment=environment,
        unset=tuple(name for name in unset if name not in environment),
        task_config=task_config,
        harness_module=spec.harness_module,
        notes=tuple(notes),
    )


def check_threads(threads: int) -> None:
    """Refuse a width that is not an int of at least 1."""
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InputError(f"the number of threads is {threads!r}; it must be a whole number of at least 1")


def child_environment(settings: Settings, parent: Mapping[str, str]) -> dict[str, str]:
    """``parent`` as a child under ``settings`` must see it."""
    environment = {name: value for name, value in parent.items() if name not in settings.unset}
    environment.update(settings.environment)
    return environment


def _told_memory_gib(spec: ProgramSpec, memory_bytes: int) -> float:
    told_bytes = memory_bytes - spec.memory_overhead_bytes
    if told_bytes <= 0:
        raise MachineError(
            f"{spec.title} was given {format_size(memory_bytes)} of memory, but needs "
            f"{format_size(spec.memory_overhead_bytes)} beside what it computes with; use fewer workers or more memory"
        )
    return round(told_bytes / 1024**3, 6)


def _environment(spec: ProgramSpec, threads: int, ranks: int, scratch: str | None) -> dict[str, str]:
    environment = dict.fromkeys(runtimes.COUNTS, str(threads))
    environment.update(runtimes.CONSTANTS)
    if ranks > 1:
        environment.update(_launcher_permissions(ranks))
    for name, template in spec.environment.items():
        if scratch is not None or "{scratch}" not in template:
            environment[name] = template.format(threads=threads, ranks=ranks, scratch=scratch)
    return environment


@cache
def _launcher_permissions(ranks: int) -> Mapping[str, str]:
    """What Open MPI asks for before it starts ``ranks`` processes here."""
    import psutil

    permissions: dict[str, str] = {}
    if sys.platform != "win32" and os.geteuid() == 0:
        permissions |= runtimes.OPEN_MPI_AS_ROOT
    # Open MPI 4 has a slot per core of the machine, not per PU (measured): leases of PUs may hold more.
    if ranks > (psutil.cpu_count(logical=False) or 1):
        permissions |= runtimes.OPEN_MPI_OVERSUBSCRIBE
    return permissions
