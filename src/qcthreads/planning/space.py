"""What tasks take up for as long as they run: how much there is of memory and disk, and who needs how much.

Several things at once, CPUs among them, are counted as one whole number (:class:`Room`), since plans are made of little
but taking and giving back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .model import Running

if TYPE_CHECKING:
    from .batch import Floats, Integers

# Bits of each thing: for any number of bytes there is, and for as much again as is taken from it at once; what runs
# already may have more than there is now.
_BITS, _SPARE = 64, 17


@dataclass(frozen=True, slots=True)
class Space:
    """One of these: how much there is for all that run at the same time, and how much each task of a batch needs."""

    name: str
    whole: float
    least: Floats
    """What each task needs at any width."""
    most: Floats
    """What each needs at the width that needs most."""
    more: tuple[Integers, Floats] | None = None
    """The widths that each task lists, and what it needs at these beyond ``least``; ``None``: nothing."""

    def of(self, row: int, width: int) -> float:
        """What one task needs at one of its widths."""
        need = float(self.least[row])
        if self.more is None:
            return need
        listed, more = self.more
        return need + float(more[row, (listed[row] == width).argmax()])

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


class Room:
    """So much of each of several things as one whole number, in which each has some bits, and a guard above them.

    The guards of what is free are set. It has room for what a task takes up where none is borrowed from:
    ``free - taken & guard == guard``. The first thing has the highest bits: what is free is less than
    ``guard + taken`` where there is not enough of it, and of a single thing only there.
    """

    def __init__(self, wholes: Sequence[int]) -> None:
        self._sizes = sizes = [max(_BITS, whole.bit_length()) + _SPARE for whole in wholes]
        self._shifts = [sum(sizes[number:]) for number in range(1, len(sizes) + 1)]
        self.several = len(sizes) > 1
        self.guard = sum(1 << shift + size - 1 for shift, size in zip(self._shifts, sizes, strict=True))
        self.empty = self.guard + self.of(wholes)
        """What is free where nothing runs."""

    def first(self, free: int) -> int:
        """How much of the first thing is free."""
        return (free - self.guard) >> self._shifts[0]

    def of(self, parts: Iterable[float]) -> int:
        """So much of each; of the last ones nothing where they are left out."""
        return sum(math.ceil(part) << shift for part, shift in zip(parts, self._shifts, strict=False))

    def least(self, several: Sequence[int]) -> int:
        """The least of each thing that any of these takes up."""
        masks = (((1 << size) - 1) << shift for size, shift in zip(self._sizes, self._shifts, strict=True))
        return sum(min(map(mask.__and__, several)) for mask in masks) if self.several else min(several)

    def of_each(self, columns: Sequence[Floats | Integers]) -> list[int]:
        """The same for many: a column for each thing."""
        taken: list[int] = columns[0].tolist()
        if self.several:
            taken = [part << self._shifts[0] for part in taken]
        for column, shift in zip(columns[1:], self._shifts[1:], strict=True):
            parts = map(int, np.ceil(column).tolist())
            taken = [so_far + (part << shift) for so_far, part in zip(taken, parts, strict=True)]
        return taken
