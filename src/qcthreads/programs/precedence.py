"""Which of the caller's own variables win in the environment of a command: those that cannot oversubscribe; pure."""

from __future__ import annotations

from collections.abc import Mapping

from ..light import dataclass
from . import runtimes
from .spec import Settings


@dataclass(frozen=True, slots=True)
class Told:
    """What a command is told through its environment, beyond what it inherits."""

    environment: Mapping[str, str]
    """Variables that are set."""
    removed: tuple[str, ...]
    """Variables of the caller's that are removed."""
    kept: Mapping[str, str]
    """Variables of the caller's that win."""
    notes: tuple[str, ...]
    """One line for each kind of variable that is not as the caller, or not as ``settings`` had it."""


def settle(settings: Settings, callers: Mapping[str, str], *, counts: bool = True) -> Told:
    """What a command under ``settings`` is told by a caller whose own environment is ``callers``.

    ``counts``: a smaller number of threads of the caller's wins. Not where the width was asked for and QCEngine tells
    it to the program besides.
    """
    environment, kept, replaced, asked = {}, {}, [], []
    scratch = settings.task_config.get("scratch_directory")
    for name, ours in settings.environment.items():
        theirs = callers.get(name, ours)
        if theirs.lower() == ours.lower() or (scratch and scratch in ours):  # chosen for this one calculation
            environment[name] = ours
        elif _cannot_oversubscribe(name, theirs, ours):
            if ours.isdigit() and not counts:
                environment[name] = ours
                asked.append(f"{name}={theirs} (now {ours})")
            else:
                kept[name] = theirs
        else:
            environment[name] = ours
            replaced.append(f"{name}={theirs} (now {ours})")
    removed = tuple(name for name in settings.unset if name in callers)
    said = {
        "kept as you set them": [f"{name}={theirs}" for name, theirs in kept.items()],
        "not as you set them, which might use more than the lease": replaced,
        "not as you set them, for another width was asked for": asked,
        "removed, for they contradict the lease": removed,
    }
    return Told(
        environment, removed, kept, tuple(f"{what}: {', '.join(names)}" for what, names in said.items() if names)
    )


def environment_under(told: Told, callers: Mapping[str, str]) -> dict[str, str]:
    """``callers`` as a child that is told ``told`` sees it."""
    return {**{name: value for name, value in callers.items() if name not in told.removed}, **told.environment}


def _cannot_oversubscribe(name: str, theirs: str, ours: str) -> bool:
    """A smaller count; or what is no count at all and no runtime's own, such as a directory or the size of a stack."""
    if name in runtimes.CONSTANTS:
        return False
    return not ours.isdigit() or (theirs.isdigit() and 1 <= int(theirs) <= int(ours))
