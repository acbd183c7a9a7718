"""One file per strategy; those of other packages are entry points of the group ``qcthreads.strategies``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from ...cpuset import CpuSet
from ...errors import InputError, QCThreadsError
from ...machine import Machine
from ..model import Proposal, Task, capacity_of

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

BUILT_IN = ("adaptive", "auto", "balanced", "memory_aware")
"""Ours: the function of that name in the module of that name in this package. They are entry points like all others,
but are found without: no other package can take their names, and to read the entry points takes 20 ms."""

_GROUP = "qcthreads.strategies"


class Strategy(Protocol):
    """Places every (checked) task once, at a width it lists, on PUs of ``usable`` that no other has at that time.

    ``limits``: what all that run at the same time may have together, by the names in :func:`qcthreads.planning.plan`;
    ``None``: no limit.
    """

    def __call__(
        self,
        tasks: Sequence[Task],
        machine: Machine,
        usable: CpuSet,
        *,
        width: int | None = None,
        **limits: float | None,
    ) -> Proposal: ...


def strategy_names() -> tuple[str, ...]:
    """The strategies that are there, in alphabetical order."""
    return tuple(sorted({*BUILT_IN, *_entry_points()}))


def get_strategy(name: str) -> Strategy:
    """The strategy of that name; ``-`` and ``_`` are the same.

    Ours come first. One of another package is checked whenever it plans. Raises InputError for one that is not there,
    listing those that are, and for one that cannot be used.
    """
    if not isinstance(name, str):
        raise InputError(f"the strategy is {name!r}; give the name of one: {_known()}")
    canonical = _canonical(name)
    if canonical in BUILT_IN:
        return cast(Strategy, getattr(import_module(f"{__name__}.{canonical}"), canonical))
    entry = _entry_points().get(canonical)
    if entry is None:
        raise InputError(f"there is no strategy {name!r}; there are: {_known()}")
    return _checked(entry)


def broken_strategies() -> dict[str, str]:
    """Those of other packages that cannot be loaded, by name, and why."""
    broken = {}
    for name in strategy_names():
        try:
            get_strategy(name)
        except InputError as error:
            broken[name] = str(error)
    return broken


def _checked(entry: EntryPoint) -> Strategy:
    """The strategy of another package: whatever goes wrong in it is said to be its own, and so is a wrong plan."""
    package = f"the package {entry.dist.name}" if entry.dist else "the package that brings it"
    whose = f"the strategy {_canonical(entry.name)!r} ({entry.value} of {package})"
    try:
        theirs = entry.load()
    except Exception as error:
        raise InputError(f"{whose} cannot be loaded ({_told(error)}); repair or uninstall that package") from error
    if not callable(theirs):
        raise InputError(f"{whose} is a {type(theirs).__name__}, and no function; repair or uninstall that package")

    def propose(
        tasks: Sequence[Task], machine: Machine, usable: CpuSet, *, width: int | None = None, **limits: float | None
    ) -> Proposal:
        try:
            proposal = theirs(tasks, machine, usable, width=width, **limits)
            wrong = _wrong(proposal, tasks, usable, limits)
        except QCThreadsError:  # what it refuses itself
            raise
        except Exception as error:
            raise InputError(f"{whose} failed ({_told(error)}); repair that package") from error
        if wrong:
            raise InputError(f"{whose} made a wrong plan: {wrong}; repair that package")
        return cast(Proposal, proposal)

    return propose


def _wrong(proposal: object, tasks: Sequence[Task], usable: CpuSet, limits: Mapping[str, float | None]) -> str:
    """What is wrong with what a strategy of another package answers; empty where nothing is."""
    from ..batch import Batch
    from ..check import fault_of

    if not isinstance(proposal, Proposal):
        return f"it answered {proposal!r:.60}, which is no qcthreads.planning.Proposal"
    return fault_of(proposal.placements, Batch.of(tasks, capacity_of(usable, **limits)), usable)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _known() -> str:
    return ", ".join(strategy_names()).replace("_", "-")


def _canonical(name: str) -> str:
    return name.strip().lower().replace("-", "_")


@cache
def _entry_points() -> dict[str, EntryPoint]:
    found = import_module("importlib.metadata").entry_points(group=_GROUP)
    return {_canonical(entry.name): entry for entry in found}
