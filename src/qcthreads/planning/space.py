"""What tasks take up beside CPUs for as long as they run, memory and disk: how much there is, and who needs how much.

Where one of them may run short, amounts are plain numbers; where several may, :class:`Amounts`, which behave like them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import add, le, sub
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from .model import Running, Task

if TYPE_CHECKING:
    from .batch import Floats, Integers


class Amount(Protocol):
    """How much of all that may run short: it can be taken, given back, and fits or not."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> bool: ...


class Amounts(tuple[float, ...]):
    """One of each: no more than others only if none of them is."""

    __slots__ = ()

    def __add__(self, other: Iterable[float]) -> Self:  # type: ignore[override]
        return type(self)(map(add, self, other))

    def __sub__(self, other: Iterable[float]) -> Self:
        return type(self)(map(sub, self, other))

    def __le__(self, other: Iterable[float]) -> bool:
        return all(map(le, self, other))


@dataclass(frozen=True, slots=True)
class Space:
    """One of these: how much there is for all that run at the same time, and how much each task of a batch needs."""

    name: str
    whole: float
    least: Floats
    """What each task needs at any width."""
    most: Floats
    """What each needs at the width that needs most."""
    of: Callable[[Task, int], float]
    """What one task needs at a width."""
    more: tuple[Integers, Floats] | None = None
    """The widths that each task lists, and what it needs at these beyond ``least``; ``None``: nothing."""

    def at(self, widths: Integers) -> Floats:
        """What each needs at one of its widths, or at each of several: a row for each, of one column where all need the
        same."""
        if self.more is None:
            return self.least if widths.ndim == 1 else self.least[:, None]
        listed, more = self.more
        asked = widths.reshape(len(widths), -1)
        columns = (listed[:, :, None] == asked[:, None, :]).argmax(axis=1)
        needs: Floats = (self.least[:, None] + np.take_along_axis(more, columns, axis=1)).reshape(widths.shape)
        return needs

    def taken(self, one: Running) -> float:
        """By what runs already."""
        taken: float = getattr(one, f"{self.name}_bytes")
        return taken


def amount(parts: Sequence[float]) -> Amount:
    """Of so many things; of nothing 0."""
    return Amounts(parts) if len(parts) > 1 else parts[0] if parts else 0.0


def amounts(needs: Floats) -> list[Amount]:
    """Of each row: a number, or one for each thing."""
    return needs.tolist() if needs.ndim == 1 else list(map(Amounts, needs.tolist()))


def least_of(needs: Floats) -> Amount:
    """The least that any row needs of each thing."""
    return amounts(needs.min(axis=0, keepdims=True))[0]
