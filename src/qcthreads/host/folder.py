"""A directory in which processes tell each other of something by small files; trusts nobody, and follows nothing.

Everything goes by the directory's descriptor, so that nobody can put another in its place. What a file says is for
others to judge; that its owner is the one who wrote it is seen to here.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time

assert sys.platform != "win32", "host.windows_folder has the same for Windows"
import fcntl  # noqa: E402

from .file_calls import best_calls  # noqa: E402

LONGEST = 65536
"""Bytes of a file at most: 4096 CPUs one by one take a third of it."""

_NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """The directory ``path``, which must not be a link; one thread at a time, but for :meth:`remove` and :meth:`names`.

    Where it is ``for_all`` users, they may read what is written here.
    """

    def __init__(self, path: str | os.PathLike[str], *, for_all: bool = False) -> None:
        self._for_all = for_all
        self._path = os.fspath(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        self._identity = _identity(os.fstat(self._descriptor))
        self._listing = threading.Lock()
        self._calls = best_calls()

    @property
    def gone(self) -> bool:
        """Whether somebody has removed the directory; the number of its links says so on Linux alone."""
        if sys.platform == "linux":
            return not self._calls.links_of(self._descriptor)
        try:
            return _identity(os.lstat(self._path)) != self._identity
        except OSError:
            return True

    def names(self) -> set[str]:
        """Of everything that is there."""
        with self._listing:  # where a listing has got to belongs to the descriptor: of two at once each misses some
            return self._calls.names_in(self._descriptor)

    def read(self, name: str) -> tuple[bytes, int]:
        """What the file says and the user who wrote it; nothing for what is no plain file of one name, or too long.

        A second name could make somebody the owner of what he told of elsewhere. Raises FileNotFoundError, and OSError
        where what the file is cannot be found out.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FLAGS, dir_fd=self._descriptor)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno in _NOT_THE_FILES_FAULT:
                raise
            return b"", -1
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size > LONGEST:
                return b"", found.st_uid
            return os.read(descriptor, LONGEST), found.st_uid
        finally:
            os.close(descriptor)

    def announce(self, name: str, text: bytes) -> int | None:
        """Make the file; others see by :meth:`is_open` whether its maker lives, where that can be seen."""
        return self._calls.hold_file(self._descriptor, name, text, self._for_all)

    def is_open(self, name: str) -> bool:
        """Whether who made it by :meth:`announce` still has it open, as far as can be seen."""
        return self.is_held(name)

    def hold(self, name: str, text: bytes) -> int:
        """Make the file, and keep it locked until its descriptor is closed, by whatever end."""
        return self._calls.hold_file(self._descriptor, name, text, self._for_all)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def touch(self, descriptor: int) -> None:
        """Say that who holds this file is still about."""
        os.utime(descriptor)

    def silent_s(self, name: str) -> float:
        """For how many seconds nobody has touched the file; 0 where it is gone."""
        try:
            return time.time() - os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mtime
        except FileNotFoundError:
            return 0.0

    def is_held(self, name: str) -> bool:
        """Whether who made it by :meth:`hold` still has it open."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FLAGS, dir_fd=self._descriptor)
        except OSError as error:
            return error.errno in _NOT_THE_FILES_FAULT  # it cannot be seen now; then rather yes
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def remove(self, name: str) -> bool:
        """Whether it is gone; another user's stays."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def end(self, name: str, descriptor: int | None) -> None:
        """Remove what :meth:`hold` made, and only then let go of it: at no time is it there and held by nobody."""
        if descriptor is None:
            self.remove(name)
        else:
            self._calls.end_file(self._descriptor, name, descriptor)

    def close(self) -> None:
        """Look at it no longer."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
