"""One file per strategy; each is found through the entry-point group ``qcthreads.strategies``, ours as any other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from ...cpuset import CpuSet
from ...errors import InputError
from ...machine import Machine
from ..model import Proposal, Task

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "qcthreads.strategies"


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
    return tuple(sorted(_entry_points()))


def get_strategy(name: str) -> Strategy:
    """The strategy of that name; ``-`` and ``_`` are the same. Raises InputError listing what is there."""
    if not isinstance(name, str):
        raise InputError(f"the strategy is {name!r}; give the name of one: {_known()}")
    entry = _entry_points().get(_canonical(name))
    if entry is None:
        raise InputError(f"there is no strategy {name!r}; there are: {_known()}")
    return cast(Strategy, entry.load())


def _known() -> str:
    return ", ".join(strategy_names()).replace("_", "-") or "none (is qcthreads installed, not only importable?)"


def _canonical(name: str) -> str:
    return name.strip().lower().replace("-", "_")


@cache
def _entry_points() -> dict[str, EntryPoint]:
    # importlib.metadata costs 20 ms to import: only who asks for a strategy pays.
    found = import_module("importlib.metadata").entry_points(group=GROUP)
    return {_canonical(entry.name): entry for entry in found}
