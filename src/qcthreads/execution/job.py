"""A calculation with what its program needs, found out before anything starts; starts nothing itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, LeaseError
from ..leases import LeaseBook, has_outer_lease
from ..programs import precedence, registry
from ..programs.settings import settings_for
from ..programs.spec import Settings, WorkerKind
from .calculation import Calculation
from .labels import short_label

Key = tuple[Any, ...]


class UnmadeInputError(Exception):
    """What was to make a calculation's input has failed; the other calculations go on."""


@dataclass(frozen=True, slots=True)
class Job:
    """A calculation with what its program needs; workers with the same ``key`` can compute it."""

    calculation: Calculation
    settings: Settings
    gpus: int
    key: Key
    """The kind of worker first."""
    cores: int | None = None
    """Where it runs on fewer than it has ranks otherwise."""

    def settings_in(self, scratch: Path | None) -> Settings:
        """The settings for a worker that keeps its temporary files in ``scratch``."""
        spec, given = registry.get(self.calculation.program), self.calculation
        folder = None if scratch is None else str(scratch)
        return settings_for(spec, given.threads, given.told_bytes, folder, cores=self.cores)

    def on_cores(self, cores: int) -> Job:
        """It with no more MPI ranks than there are cores."""
        if self.settings.ranks <= cores:
            return self
        job = replace(self, cores=cores)
        settings = job.settings_in(None)
        notes = (*job.settings.notes, *settings.notes)
        return replace(job, settings=replace(settings, notes=notes), key=_key_of(job.calculation, settings))

    def has_cores_alone(self, book: LeaseBook) -> bool:
        """Whether nothing else may run on the cores of its lease."""
        return not book.smt or self.settings.ranks > 1  # which spin while they wait

    def fits_after(self, other: Job) -> bool:
        """Whether it can have the lease and the worker of ``other`` as they are."""
        mine, given = self.calculation, other.calculation
        same = (mine.program, mine.threads, mine.memory_bytes) == (given.program, given.threads, given.memory_bytes)
        return same and (self.key, self.gpus) == (other.key, other.gpus)

    def warming(self) -> dict[str, Any]:
        """What a worker is sent that is to be ready for the first calculation."""
        preload = registry.get(self.calculation.program).preload
        return {
            "preload": preload if self.calculation.compute is None else (),
            "compute": self.calculation.compute,
            "program": self.settings.program,
            "harness_module": self.settings.harness_module,
        }

    def request(self, scratch: Path) -> dict[str, Any]:
        """What the worker is sent. UnmadeInputError where the caller's way to make the input fails."""
        settings, given = self.settings, self.calculation.input
        try:
            made = given() if callable(given) else given
        except Exception as error:
            raise UnmadeInputError(f"its input could not be made: {type(error).__name__}: {error}") from error
        return {
            "name": short_label(self.calculation.label),
            "input": made,
            "compute": self.calculation.compute,
            "program": settings.program,
            "harness_module": settings.harness_module,
            "task_config": {**settings.task_config, "scratch_directory": str(scratch), **self.calculation.task_config},
            "environment": self._environment(scratch),
        }

    def _environment(self, scratch: Path) -> dict[str, str]:
        """What a program that is started anew finds in its environment; what computes in the worker has read its own.

        All that depends on the width, so that nothing is left of the calculation before.
        """
        if registry.get(self.settings.program).in_process or not serves_every_width(self.calculation):
            return {}
        return dict(precedence.settle(self.settings_in(scratch), os.environ, counts=False).environment)


def prepare(calculation: Calculation, book: LeaseBook, *, wrapped: bool) -> Job:
    """Find out before anything starts what would keep it from running.

    Parameters
    ----------
    book
        What its lease will come from.
    wrapped
        Its program is looked for behind a wrapping, and not here.

    Raises
    ------
    InputError, MachineError
        The function or the program is not there, or it can never fit.
    """
    spec = registry.get(calculation.program)
    if calculation.compute is None:
        registry.known(calculation.program) if wrapped else registry.require(calculation.program)
    else:
        _check_function(calculation.compute)
    settings = settings_for(spec, calculation.threads, calculation.told_bytes)
    if calculation.compute is not None:
        # The caller's own function: that nothing is known about it goes without saying.
        settings = replace(settings, notes=())
    elif not has_outer_lease():  # else they are the outer lease's, not the user's
        told = precedence.settle(settings, os.environ, counts=False)
        settings = replace(settings, notes=(*settings.notes, *told.notes))
    gpus = spec.gpus_of(len(book.gpus)) if calculation.gpus is None else calculation.gpus
    try:
        book.check(settings.threads, calculation.memory_bytes, gpus)
    except LeaseError as error:
        raise LeaseError(f"calculation {short_label(calculation.label)} can never run here: {error}") from None
    return Job(calculation, settings, gpus, _key_of(calculation, settings))


def serves_every_width(calculation: Calculation) -> bool:
    """Whether one worker does: not where the caller's own function computes, which may go by the variables."""
    spec = registry.get(calculation.program)
    return spec.one_worker_kind and calculation.compute in (None, spec.check)


def worker_kind(calculation: Calculation) -> WorkerKind:
    """What it runs in."""
    return _kind_of(calculation, settings_for(registry.get(calculation.program), calculation.threads))


def _kind_of(calculation: Calculation, settings: Settings) -> WorkerKind:
    """By the width that the program really gets, which may be less than was asked for."""
    program, threads = settings.program, settings.threads
    return registry.get(program).worker_of(threads) if serves_every_width(calculation) else (program, threads)


def _key_of(calculation: Calculation, settings: Settings) -> Key:
    kind = _kind_of(calculation, settings)
    read = () if serves_every_width(calculation) else tuple(sorted(settings.environment.items()))
    return kind, read, settings.unset


def _check_function(name: str) -> None:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise InputError(f"compute={name!r} names no function; write 'module:function'")
    if module == "__main__":
        raise InputError(
            f"compute={name!r} is in the script itself, which a worker must not run again; put it in a module beside it"
        )
