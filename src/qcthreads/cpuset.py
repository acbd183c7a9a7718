"""Immutable sets of CPU numbers and of memory-node numbers, of any width; pure values that ask the system nothing.

Text forms are the kernel's: the list form of ``/sys/devices/system/cpu/online`` (``0-3,8``) and the mask form of
``/proc/PID/status`` (``ff,00000000``, 32-bit words, highest first); see bitmap_parselist and bitmap_parse in the
kernel's lib/bitmap-str.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from operator import index

from .errors import InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_MASK = re.compile(r"[0-9a-fA-F]{0,8}(,[0-9a-fA-F]{0,8})*")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?(?::([0-9]{1,9})(?:/([0-9]{1,9}))?)?")
_BLANKS = " \t\r\n"
_HIGHEST = 1 << 20  # far above any kernel's NR_CPUS; catches nonsense before it fills memory


class IndexSet:
    """A frozen set of small non-negative integers, kept as the bits of one int."""

    __slots__ = ("bits",)
    bits: int
    """The set as the bits of one int."""

    def __init__(self, members: Iterable[int] = ()) -> None:
        bits = 0
        for member in members:
            try:
                number = index(member)  # numpy's integers shift without a word beyond their 64 bits
            except TypeError:
                number = -1
            if not 0 <= number < _HIGHEST:
                raise InputError(f"not a valid number in a {type(self).__name__}: {member!r}")
            bits |= 1 << number
        object.__setattr__(self, "bits", bits)

    @classmethod
    def from_bits(cls, bits: int) -> Self:
        """The set whose members are the positions of the one bits of ``bits``."""
        if bits < 0 or bits.bit_length() > _HIGHEST:
            raise InputError(f"not valid bits for a {cls.__name__}: {_shown(f'{bits:#x}')}")
        made = cls.__new__(cls)
        object.__setattr__(made, "bits", bits)
        return made

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the kernel's list form, ``"0-3,8,10-14:2"``; an empty string is the empty set."""
        bits = 0
        for part in text.strip(_BLANKS + "\0").split(","):
            part = part.strip(_BLANKS)
            if part:
                bits |= _range_bits(cls.__name__, part, text)
        return cls.from_bits(bits)

    @classmethod
    def parse_mask(cls, text: str) -> Self:
        """Read the kernel's mask form, ``"1,00000000"``: 32-bit words in hexadecimal, the highest first."""
        stripped = text.strip(_BLANKS + "\0")
        if not _MASK.fullmatch(stripped):
            raise InputError(
                f"not a mask of 32-bit hexadecimal words, highest first: {_shown(text)}; write for example ff,00000000"
            )
        return cls.from_bits(int("".join(word.zfill(8) for word in stripped.split(",")), 16))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self).from_bits, (self.bits,)

    def mask(self) -> str:
        """The kernel's mask form."""
        words = []
        bits = self.bits
        while True:
            words.append(f"{bits & 0xFFFFFFFF:08x}")
            bits >>= 32
            if not bits:
                return ",".join(reversed(words))

    def __str__(self) -> str:
        parts = []
        for first, last in self.ranges():
            parts.append(str(first) if first == last else f"{first}-{last}")
        return ",".join(parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}.parse({str(self)!r})"

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Runs of consecutive members as (first, last), ascending."""
        bits, base = self.bits, 0
        while bits:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            run = (~bits & (bits + 1)).bit_length() - 1
            yield base + skip, base + skip + run - 1
            bits >>= run
            base += skip + run

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges():
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __bool__(self) -> bool:
        return self.bits != 0

    def __contains__(self, member: object) -> bool:
        return isinstance(member, int) and member >= 0 and bool(self.bits >> member & 1)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.bits == other.bits

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.bits))

    def __or__(self, other: Self) -> Self:
        return self.from_bits(self.bits | other.bits)

    def __and__(self, other: Self) -> Self:
        return self.from_bits(self.bits & other.bits)

    def __sub__(self, other: Self) -> Self:
        return self.from_bits(self.bits & ~other.bits)

    def __le__(self, other: Self) -> bool:
        return not self.bits & ~other.bits

    def __lt__(self, other: Self) -> bool:
        return self <= other and self.bits != other.bits

    def isdisjoint(self, other: Self) -> bool:
        """Whether the two sets have no member in common."""
        return not self.bits & other.bits

    @property
    def first(self) -> int:
        """The smallest member; ValueError when empty."""
        if not self.bits:
            raise ValueError(f"an empty {type(self).__name__} has no first member")
        return (self.bits & -self.bits).bit_length() - 1


class CpuSet(IndexSet):
    """Logical CPU (PU) numbers as the operating system counts them."""

    __slots__ = ()


class NodeSet(IndexSet):
    """Memory-node (NUMA) numbers as the operating system counts them."""

    __slots__ = ()


def _range_bits(kind: str, part: str, text: str) -> int:
    """Bits of ``a``, ``a-b``, ``a-b:stride`` or ``a-b:used/stride`` (the kernel's bitmap_parselist)."""
    match = _RANGE.fullmatch(part)
    if match is None:
        raise InputError(f"not a list of numbers and ranges for a {kind}: {_shown(text)}; write for example 0-3,8")
    first, last, grouping, whole = match.groups()
    low, high = int(first), int(last or first)
    step, take = int(whole or grouping or 1), int(grouping) if whole else 1
    if not low <= high < _HIGHEST or not 1 <= take <= step:
        raise InputError(f"not a valid range {part!r} for a {kind} in {_shown(text)}")
    length = high - low + 1
    bits = (1 << min(take, length)) - 1
    while step < length:  # twice as much each time: a step at a time would take minutes for a million numbers
        bits |= bits << step
        step *= 2
    return (bits & (1 << length) - 1) << low


def _shown(text: str) -> str:
    """As much of it as a message bears."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
