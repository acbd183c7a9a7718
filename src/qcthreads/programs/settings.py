"""Turns a program's record and a width into what one calculation is started with; starts nothing and sets nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from ..errors import InputError, MachineError
from ..units import format_count, format_size
from . import launchers, runtimes
from .spec import ParallelModel, ProgramSpec, Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def settings_for(
    spec: ProgramSpec,
    threads: int,
    memory_bytes: int | None = None,
    scratch: str | None = None,
    *,
    ranks: int | None = None,
    cores: int | None = None,
    step: bool = False,
) -> Settings:
    """What a calculation with ``spec`` at ``threads`` PUs is started with: only settings that really work.

    Parameters
    ----------
    threads
        Width of the lease: threads, or ranks of an MPI program.
    memory_bytes
        The lease's memory. A program with a memory setting is told this less ``spec.memory_overhead_bytes``, and less
        ``spec.memory_per_process_bytes`` for each process but the first as far as that leaves it enough. None or 0: it
        is told nothing, and QCEngine lets it take 90 % of what is free.
    scratch
        Directory for the program's temporary files.
    ranks
        Processes that share the width, where the caller's own command starts them. None: the record decides.
    cores
        That the PUs belong to; None: each to another. MPI ranks spin while they wait, and so there is one per core at
        most: threads have the rest.
    step
        That command has Slurm start them, as a step of the job that the caller is in.

    Raises
    ------
    InputError
        ``threads`` is not an int of at least 1, or there are more ``ranks`` than PUs or cores.
    MachineError
        ``memory_bytes`` does not even hold what the program needs beyond its memory setting.
    """
    check_threads(threads)
    _check_memory(memory_bytes)
    width, notes = _useful(spec, threads)
    cores = min(width, cores or width)
    starts_mpi = spec.starts_mpi or ranks is not None
    if ranks is None:
        ranks = cores if spec.processes_scale else 1
        if spec.processes_scale and cores < width:
            notes.append(f"{spec.title} spins while it waits: a process per core, {cores} on {width} PUs")
    threads_each = _threads_each(spec, width, ranks, cores)
    told = {"threads": threads_each, "ranks": ranks, "width": ranks * threads_each}
    environment = _environment(spec, told, cores, scratch, starts_mpi=starts_mpi)
    unset = (*runtimes.UNSET, *spec.unset)
    if starts_mpi and not step:
        unset += launchers.of_outer_launcher(os.environ)
    else:
        unset += launchers.of_partial_job(os.environ)
    return Settings(
        program=spec.name,
        threads=ranks * threads_each,
        ranks=ranks,
        environment=environment,
        unset=tuple(name for name in unset if name not in environment),
        task_config=_task_config(spec, told, memory_bytes, scratch),
        harness_module=spec.harness_module,
        notes=tuple(notes),
    )


def check_threads(threads: int) -> None:
    """Refuse a width that is not an int of at least 1."""
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InputError(f"the number of threads is {threads!r}; it must be a whole number of at least 1")


def _check_memory(memory_bytes: int | None) -> None:
    if memory_bytes is not None and (isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int)):
        raise InputError(f"memory_bytes is {memory_bytes!r}; it must be a whole number of bytes")


def untold(spec: ProgramSpec, settings: Settings, command: Sequence[str]) -> str | None:
    """That ``command`` does not tell the program its width, where nothing else can, or tells it more; else ``None``."""
    names = [os.path.basename(word) for word in command]  # noqa: PTH119
    if spec.executable not in names:
        return None
    write = f"write `{spec.command.format(threads=settings.threads // settings.ranks, ranks=settings.ranks)}`"
    given = command[names.index(spec.executable) + 1 :]  # what comes before are options of something else
    said = _said(given, spec.width_options)
    processes = launchers.ranks_of(command, settings.ranks)[0] or 1
    if said and said.isdigit() and processes * int(said) > settings.threads:
        started = processes * int(said)
        much = f"this command has {spec.title} start {started}, and the lease is of {settings.threads}"
        return f"{much}: {write}, or lease {started}"
    if settings.threads == 1:
        return None
    if spec.parallel_model is ParallelModel.MPI and not any(name in launchers.COMMANDS for name in names):
        return f"the width of {spec.title} is its number of MPI processes, and this command starts one: {write}"
    if spec.width_options and said is None:
        known = " or ".join(spec.width_options)
        other = f", unless its input says {settings.threads}" if spec.input_text else ""
        return f"{spec.title} is told its width by {known}, and this command has none: 1 works{other}; {write}"
    return None


def _said(words: Sequence[str], options: Sequence[str]) -> str | None:
    """What follows the first of ``options`` that is there; ``None``: there is none."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        for option in options:
            if word == option:
                return following
            value = word.removeprefix(option)
            if value != word and (value.isdigit() or value.startswith("=")):
                return value.removeprefix("=")
    return None


def _useful(spec: ProgramSpec, threads: int) -> tuple[int, list[str]]:
    """The width that the program can use of ``threads``, and a line for what is said about it."""
    if spec.parallel_model is ParallelModel.UNKNOWN:
        return threads, [
            f"nothing is known about the program {spec.name!r}: every threading runtime is told {threads}, "
            "and whether it follows is for the monitor to show"
        ]
    if threads > 1 and spec.parallel_model is ParallelModel.SERIAL:
        return 1, [f"{spec.title} does not thread: 1 is used instead of {threads}"]
    if spec.useful_width is not None and threads > spec.useful_width:
        more = "threads" if spec.useful_width == 1 else f"more than {spec.useful_width}"
        return spec.useful_width, [
            f"{spec.title} gains nothing from {more}: {spec.useful_width} is used instead of {threads}"
        ]
    return threads, []


def _threads_each(spec: ProgramSpec, width: int, ranks: int, cores: int) -> int:
    """Threads of each process, so that all together stay within the width."""
    if not isinstance(ranks, int) or isinstance(ranks, bool) or not 1 <= ranks <= cores:
        few = "give 1" if cores == 1 else f"give 1 to {cores}"
        pus = format_count(width, "PU")
        if cores < width:
            pus += f" of {format_count(cores, 'core')}, for processes that wait for each other spin"
        raise InputError(f"{ranks!r} processes of {spec.title} cannot share {pus}: {few}, or a wider lease")
    return width // ranks


def _task_config(
    spec: ProgramSpec, told: Mapping[str, int], memory_bytes: int | None, scratch: str | None
) -> dict[str, Any]:
    config: dict[str, Any] = {"ncores": told["width"]}
    if memory_bytes:
        config["memory"] = _told_memory_gib(spec, memory_bytes, told["ranks"])
    if scratch is not None:
        config["scratch_directory"] = scratch
    if told["ranks"] > 1 and told["threads"] > 1:
        config["cores_per_rank"] = told["threads"]
    if told["ranks"] > 1 or not spec.processes_scale:
        config |= {
            name: value.format(**told) if isinstance(value, str) else value for name, value in spec.task_config.items()
        }
    return config


def _told_memory_gib(spec: ProgramSpec, memory_bytes: int, ranks: int) -> float:
    if spec.memory is None:  # QCEngine wants a number, and nobody reads it
        return round(memory_bytes / 1024**3, 6)
    told_bytes = memory_bytes - spec.memory_overhead_bytes
    if told_bytes <= 0:
        raise MachineError(
            f"{spec.title} was given {format_size(memory_bytes)} of memory, but needs "
            f"{format_size(spec.memory_overhead_bytes)} beside what it computes with; use fewer workers or more memory"
        )
    others_bytes = (ranks - 1) * spec.memory_per_process_bytes
    told_bytes = max(told_bytes - others_bytes, min(told_bytes, spec.memory_least_bytes))
    return round(told_bytes / 1024**3, 6)


def _environment(
    spec: ProgramSpec, told: Mapping[str, int], cores: int, scratch: str | None, *, starts_mpi: bool
) -> dict[str, str]:
    environment = dict.fromkeys(runtimes.COUNTS, str(told["threads"]))
    environment |= dict.fromkeys(launchers.SLOTS, str(cores))
    environment |= runtimes.CONSTANTS
    if starts_mpi and sys.platform != "win32" and os.geteuid() == 0:
        environment |= launchers.OPEN_MPI_AS_ROOT
    for name, template in spec.environment.items():
        if scratch is not None or "{scratch}" not in template:
            environment[name] = template.format(**told, scratch=scratch)
    return environment
