"""How many bytes went to and from memory, by counters of the hardware where these may be read; judges no numbers.

Of processes by a monitoring group of resctrl, where one may be made; else of everything on the node, by resctrl's own
groups or by the memory controllers' counters (the kernel's Documentation/filesystems/resctrl.rst).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol

from ..errors import MachineError
from .uncore import UncoreCounter

Scope = Literal["processes", "node"]
Source = Literal["resctrl", "uncore"]

_PREFIX = "qcthreads-"
_FILE = "mbm_total_bytes"

# What the kernel writes where the hardware lacks a number for the moment: once after the counters were configured anew.
_NOT_NOW = "Unavailable"
_READINGS = 2

_numbers = itertools.count(1)


class NotMeasurableError(MachineError):
    """No counter of memory traffic may be read here; the message says why of each kind."""


class TrafficCounter(Protocol):
    """Counts from some moment on; the difference of two readings is what happened between them."""

    @property
    def scope(self) -> Scope:
        """Whose bytes it counts."""

    @property
    def source(self) -> Source:
        """What it reads."""

    def read_bytes(self) -> int:
        """Bytes read and written so far. Raises OSError where the counter is out of order."""

    def add(self, tids: Iterable[int]) -> None:
        """Count these threads, and what they start, too; of the whole node they are counted anyway."""

    def close(self) -> None:
        """Give the counter back."""


def open_traffic_counter(sysroot: str = "/", *, group: bool = True) -> TrafficCounter:
    """The most specific counter there is, for no process yet.

    Parameters
    ----------
    sysroot
        A recorded tree with ``sys/``.
    group
        Whether to make a monitoring group where this user may.

    Raises
    ------
    NotMeasurableError
        There is none.
    """
    resctrl = Path(sysroot, "sys/fs/resctrl")
    why = _why_no_resctrl(resctrl)
    if not why:
        if group and os.access(resctrl / "mon_groups", os.W_OK):
            with contextlib.suppress(OSError):  # the hardware can count few groups at a time
                return ResctrlGroup(resctrl)
        try:
            return ResctrlNode(resctrl)
        except OSError as error:
            why = f"resctrl's counters are out of order ({error.strerror})"
    try:
        return UncoreCounter(sysroot)
    except MachineError as error:
        raise NotMeasurableError(f"{why}; {error}") from None


class ResctrlNode:
    """Everything on the node: the sum of all groups that share caches out, each with its monitoring groups."""

    scope: Scope = "node"
    source: Source = "resctrl"

    def __init__(self, resctrl: Path) -> None:
        self._resctrl = resctrl
        self.read_bytes()

    def read_bytes(self) -> int:
        """Of all groups that there are now."""
        return sum(map(_counted_everywhere, self._groups()))

    def _groups(self) -> Iterator[Path]:
        yield self._resctrl
        for path in self._resctrl.iterdir():
            if path.name not in ("info", "mon_data", "mon_groups") and (path / "mon_data").is_dir():
                yield path

    def add(self, tids: Iterable[int]) -> None:
        """They are counted already."""

    def close(self) -> None:
        """Nothing was made."""


class ResctrlGroup:
    """A monitoring group of our own, for the threads added to it and everything that they start."""

    scope: Scope = "processes"
    source: Source = "resctrl"

    def __init__(self, resctrl: Path) -> None:
        groups = resctrl / "mon_groups"
        _remove_left_behind(groups)
        self._path = groups / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self._path.mkdir()
        self._counted: dict[Path, int] = {}
        self._joined = False
        try:
            self.read_bytes()
        except OSError:
            self.close()
            raise

    def read_bytes(self) -> int:
        """Of the group.

        Where the hardware has no counter for it in a domain (AMD's have few, and give them to what runs there), it
        counts as when it was last read.
        """
        now = {file: _counted(file) for file in _files(self._path)}
        self._counted |= {file: count for file, count in now.items() if count is not None}
        if self._joined and set(now.values()) == {None} and not any(self._counted.values()):
            raise _no_number(_NOT_NOW, self._path)
        return sum(self._counted.values())

    def add(self, tids: Iterable[int]) -> None:
        """Move those of these threads that live into the group. Raises OSError where one may not be moved."""
        for tid in tids:
            try:
                (self._path / "tasks").write_text(f"{tid}\n", encoding="ascii")
                self._joined = True
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise

    def close(self) -> None:
        """Remove the group: the kernel puts its threads back into the group above."""
        with contextlib.suppress(OSError):
            self._path.rmdir()


def _why_no_resctrl(resctrl: Path) -> str:
    if not resctrl.is_dir():
        return "this kernel or CPU has no resctrl"
    try:
        features = (resctrl / "info/L3_MON/mon_features").read_text(encoding="ascii").split()
    except FileNotFoundError:
        if (resctrl / "info").is_dir():
            return "resctrl monitors no memory bandwidth on this CPU"
        return f"resctrl is not mounted (as root: mount -t resctrl resctrl {resctrl})"
    except OSError as error:
        return f"resctrl may not be read ({error.strerror})"
    return "" if _FILE in features else "resctrl monitors no memory bandwidth on this CPU"


def _remove_left_behind(groups: Path) -> None:
    """Groups of processes of ours that were killed: the hardware can count few at a time."""
    for group in groups.glob(f"{_PREFIX}*"):
        pid = group.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if not Path("/proc", pid).exists() and not (group / "tasks").read_text(encoding="ascii").strip():
                group.rmdir()


def _files(group: Path) -> list[Path]:
    """One of each domain; where a cache serves several nodes, the sum that stands above them. OSError: none."""
    files = sorted((group / "mon_data").glob(f"*/{_FILE}"))
    if not files:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), str(group / "mon_data"))
    return files


def _counted_everywhere(group: Path) -> int:
    """In all domains together; OSError where one has no number."""
    total = 0
    for file in _files(group):
        count = _counted(file)
        if count is None:
            raise _no_number(_NOT_NOW, file)
        total += count
    return total


def _counted(file: Path) -> int | None:
    """``None`` where the hardware does not count now; OSError where the kernel has another word than that."""
    for _ in range(_READINGS):
        text = file.read_text(encoding="ascii").strip()
        if text.isdecimal():
            return int(text)
        if text != _NOT_NOW:
            raise _no_number(text, file)
    return None


def _no_number(text: str, path: Path) -> OSError:
    return OSError(errno.ENODATA, f"the kernel says {text!r}", str(path))
