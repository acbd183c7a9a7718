"""``host.folder`` for Windows: a directory in which processes tell each other of something by small files.

It is kept open, so that nobody can rename or remove it meanwhile; links and other reparse points are refused. Whoever
may write into it is believed to be this user, for that is what the rights on a user's profile say.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import Protocol

LONGEST = 65536
"""Bytes of a file at most: 4096 CPUs one by one take a third of it."""

_NOT_TOLD = -1
_SHARE_READ_WRITE, _SHARE_DELETE = 0x3, 0x4  # winnt.h
_BACKUP_SEMANTICS, _OPEN_REPARSE_POINT = 0x02000000, 0x00200000  # fileapi.h: directories too, and no link is followed
_ATTEMPTS, _PAUSE_S = 20, 0.001  # a virus scanner has a file that was just written open for about as long


class Calls(Protocol):
    """The system calls; they raise OSError."""

    def open(self, path: str, share: int, flags: int) -> int:
        """A descriptor to read the file by; or a directory."""


class Folder:
    """The directory ``path``, which must not be a link; one thread at a time, but for :meth:`remove`."""

    gone = False
    """Nobody can remove it."""

    def __init__(self, path: str | os.PathLike[str], *, for_all: bool = False, calls: Calls | None = None) -> None:  # noqa: ARG002
        self._path = Path(path)
        self._calls = _Kernel32() if calls is None else calls
        self._descriptor = self._calls.open(str(path), _SHARE_READ_WRITE, _BACKUP_SEMANTICS | _OPEN_REPARSE_POINT)
        if is_link(os.fstat(self._descriptor)):
            os.close(self._descriptor)
            raise NotADirectoryError(errno.ENOTDIR, "a link, not a directory of its own", str(path))

    def names(self) -> set[str]:
        """Of everything that is there."""
        return set(os.listdir(self._path))  # noqa: PTH208 (pathlib takes twice as long)

    def read(self, name: str) -> tuple[bytes, int]:
        """What the file says; nothing for what is no plain file of one name, or too long. The user is not told: -1.

        It may be removed while it is read. Raises FileNotFoundError.
        """
        try:
            descriptor = self._calls.open(
                str(self._path / name), _SHARE_READ_WRITE | _SHARE_DELETE, _OPEN_REPARSE_POINT
            )
        except FileNotFoundError:
            raise
        except OSError:
            return b"", _NOT_TOLD
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or is_link(found) or found.st_nlink != 1 or found.st_size > LONGEST:
                return b"", _NOT_TOLD
            return os.read(descriptor, LONGEST), _NOT_TOLD
        finally:
            os.close(descriptor)

    def write(self, name: str, text: bytes) -> None:
        """Make the file, whole or not at all. OSError where it exists or there is no space."""
        os.close(self.hold(name, text))

    def hold(self, name: str, text: bytes) -> int:
        """Make the file, which nobody can remove until its descriptor is closed, by whatever end."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        if sys.platform == "win32":
            flags |= os.O_BINARY | os.O_NOINHERIT
        descriptor = os.open(self._path / name, flags, 0o644)  # the C library shares it but for FILE_SHARE_DELETE
        try:
            if os.write(descriptor, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        except BaseException:
            os.close(descriptor)
            self.remove(name)
            raise
        return descriptor

    def touch(self, descriptor: int) -> None:
        """Nothing: who holds a file here is not told from one who is stopped."""

    def silent_s(self, name: str) -> float:  # noqa: ARG002
        """Not told."""
        return 0.0

    def is_held(self, name: str) -> bool:
        """Whether who made it by :meth:`hold` still has it open; else it is gone now."""
        try:
            (self._path / name).unlink()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def remove(self, name: str) -> bool:
        """Whether it is gone; what somebody holds stays."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S)
            if not self.is_held(name):
                return True
        return False

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.names()

    def end(self, name: str, descriptor: int | None) -> None:
        """Remove what :meth:`hold` or :meth:`announce` made; Windows removes nothing that is open."""
        if descriptor is not None:
            os.close(descriptor)
        self.remove(name)

    def announce(self, name: str, text: bytes) -> int | None:
        """Make the file, and keep nothing open: whether its maker lives can be asked of nothing but his locks."""
        self.write(name, text)
        return None

    def is_open(self, name: str) -> bool:  # noqa: ARG002
        """As far as can be seen, yes."""
        return True

    def close(self) -> None:
        """Look at it no longer."""
        os.close(self._descriptor)


if sys.platform == "win32":
    import msvcrt

    def is_link(found: os.stat_result) -> bool:
        """Whether it is something that leads elsewhere: a symbolic link, a junction, a file kept in a cloud."""
        return bool(found.st_file_attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT)

    _GENERIC_READ, _OPEN_EXISTING, _INVALID = 0x80000000, 3, ctypes.c_void_p(-1).value  # winnt.h, fileapi.h

    class _Kernel32:
        """CreateFileW: the C library's open() can neither share for deletion nor open a directory."""

        def __init__(self) -> None:
            self._create = ctypes.WinDLL("kernel32", use_last_error=True).CreateFileW
            number, pointer = ctypes.c_uint32, ctypes.c_void_p
            self._create.argtypes = (ctypes.c_wchar_p, number, number, pointer, number, number, pointer)
            self._create.restype = pointer

        def open(self, path: str, share: int, flags: int) -> int:
            handle = self._create(path, _GENERIC_READ, share, None, _OPEN_EXISTING, flags, None)
            if handle in (None, _INVALID):
                raise ctypes.WinError(ctypes.get_last_error())
            return msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_NOINHERIT)

else:

    def is_link(found: os.stat_result) -> bool:
        """Whether it is something that leads elsewhere."""
        return stat.S_ISLNK(found.st_mode)

    class _Kernel32:
        """There is none."""

        def open(self, path: str, share: int, flags: int) -> int:
            del share, flags
            raise OSError(errno.ENOSYS, "this is not Windows", path)
