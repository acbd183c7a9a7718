"""The calls of csrc/linux_files.c by Python alone, for installations without the extension and for macOS; and which of
the two are used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from .build_info import native_status

assert sys.platform != "win32", "Windows has no flock"
import fcntl  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object


class Calls(Protocol):
    """The system calls: the native extension's, or those below. They raise OSError."""

    def lock_files(self, files: dict[str, int], names: tuple[str, ...]) -> int:
        """Lock all the files of these names or none; the index of one that somebody else has, else -1.

        KeyError where one is not among those open.
        """

    def unlock_files(self, files: dict[str, int], names: tuple[str, ...]) -> None:
        """Give these locks up, of what is open."""

    def hold_file(self, folder: int, name: str, text: bytes, for_all: bool) -> int:
        """Make the file, locked before anything is in it, and return its descriptor."""

    def end_file(self, folder: int, name: str, file: int) -> None:
        """Remove the file where that is allowed, and then close it."""

    def names_in(self, folder: int) -> set[str]:
        """The names of all that is in a directory; one thread at a time."""

    def links_of(self, folder: int) -> int:
        """How many links a directory has: none when it was removed."""


def best_calls() -> Calls:
    """The extension's where it has them and ``QCTHREADS_BACKEND`` asks for no others."""
    if sys.platform == "linux" and os.environ.get("QCTHREADS_BACKEND") != "portable" and native_status()[0]:
        from . import _native

        return _native
    return PythonCalls()


class PythonCalls:
    """What needs no extension."""

    def lock_files(self, files: dict[str, int], names: tuple[str, ...]) -> int:
        """Lock all the files of these names or none; the index of one that somebody else has, else -1.

        KeyError where one is not among those open.
        """
        at, numbers = 0, [files[name] for name in names]
        try:
            for at, number in enumerate(numbers):  # noqa: B007
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:  # an interrupt may come with the lock
            self.unlock_files(files, names[: at + 1])
            if isinstance(error, OSError) and error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return at
            raise
        return -1

    def unlock_files(self, files: dict[str, int], names: tuple[str, ...]) -> None:
        """Give these locks up, of what is open."""
        failed: OSError | None = None
        for name in names:
            file = files.get(name)
            try:
                if file is not None:
                    fcntl.flock(file, fcntl.LOCK_UN)
            except OSError as error:  # the others are given up all the same
                failed = error
        if failed is not None:
            raise failed

    def hold_file(self, folder: int, name: str, text: bytes, for_all: bool) -> int:
        """Make the file, locked before anything is in it, and return its descriptor."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(name, flags, 0o600, dir_fd=folder)  # before it is locked it is nobody else's to open
        try:
            fcntl.flock(made, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(made, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            if for_all:
                os.fchmod(made, 0o644)
        except BaseException:
            self.end_file(folder, name, made)
            raise
        return made

    def end_file(self, folder: int, name: str, file: int) -> None:
        """Remove the file where that is allowed, and then close it."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)
        os.close(file)

    def names_in(self, folder: int) -> set[str]:
        """The names of all that is in a directory; one thread at a time."""
        return set(os.listdir(folder))

    def links_of(self, folder: int) -> int:
        """How many links a directory has: none when it was removed."""
        return os.fstat(folder).st_nlink
