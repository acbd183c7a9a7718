"""Files that commands write for the user: whether they may be written, and why not, in one line; writes none itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, MachineError


def check_writable(option: str, path: Path, *others: tuple[str, Path | None]) -> None:
    """Found out before hours of computing, not after; ``others`` are files that must not be overwritten, with names.

    Raises InputError for a place that is not there, MachineError for one that may not be written.
    """
    for name, other in others:
        if other is not None and path.resolve() == other.resolve():
            raise InputError(f"{option} {path} is {name}, which it would overwrite; give another file")
    if str(path) == "-":
        raise InputError(f"{option} -: give a file by its name; /dev/stderr is one")
    if path.is_dir() or not path.parent.is_dir():
        why = "is a directory" if path.is_dir() else f"cannot be written: there is no directory {path.parent}"
        raise InputError(f"{option} {path} {why}; give a file in a directory that is there")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise MachineError(f"{option} {path} may not be written by this user; give a file in a directory of yours")


@contextmanager
def explained(
    option: str, path: Path, remedy: str = "give a file in a directory of yours that has room"
) -> Iterator[None]:
    """What the operating system refuses inside the ``with`` as a MachineError."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{option} {path} could not be written: {error.strerror or error}; {remedy}") from None
