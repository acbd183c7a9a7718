"""``host.locks`` for Windows: named locks that the kernel holds for a process and the children it hands them to.

A lock is a mutex object that exists: nobody owns it or waits for it, and its name is free when the last handle is
closed, by whatever end (CreateMutexW in Microsoft's documentation). No file is opened. Who finds a lock taken has the
object open himself for an instant, in which it is not free for a third either: he has to try again.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Protocol

_ALREADY_EXISTS, _ACCESS_DENIED = 183, 5  # winerror.h


class Calls(Protocol):
    """The system calls; they raise OSError."""

    def create(self, name: str) -> int | None:
        """Make the mutex and open it; ``None``: it exists, of this user's or of somebody else's."""

    def close(self, handle: int) -> None:
        """Close it."""


class FileLocks:
    """The locks of this process that are named after ``directory``; one thread at a time, but for unlocking.

    Parameters
    ----------
    directory
        Whose name, with links followed and in lower case, is part of the names.
    create
        Of no meaning here.
    calls
        The system's.
    """

    def __init__(self, directory: str | os.PathLike[str], *, create: bool, calls: Calls | None = None) -> None:
        del create
        self.directory = directory
        self._calls = _Kernel32() if calls is None else calls
        self._prefix = f"{self._namespace()}\\qcthreads-{_fingerprint(directory)}-"
        self._held: dict[str, int] = {}

    def try_lock(self, name: str) -> bool:
        """Take the lock, or say that somebody else has it, or had a look at it. OSError where there can be none."""
        if name in self._held:
            return True
        handle = self._calls.create(self._prefix + name)
        if handle is None:
            return False
        self._held[name] = handle
        return True

    def lock_all(self, names: tuple[str, ...]) -> str:
        """Take all these locks, or none where one is somebody else's, which is returned; else nothing."""
        tried: list[str] = []
        try:
            for name in names:
                tried.append(name)
                if not self.try_lock(name):
                    return name
            tried.clear()
            return ""
        finally:
            self.unlock_all(tuple(tried))

    def unlock_all(self, names: tuple[str, ...]) -> None:
        """Give these locks up. From anywhere, finalizers too."""
        for name in names:
            self.unlock(name)

    def unlock(self, name: str) -> None:
        """Give the lock up; a child that has it keeps it. From anywhere, finalizers too."""
        handle = self._held.pop(name, None)
        if handle is not None:
            self._calls.close(handle)

    def leave(self, name: str) -> None:
        """Leave the lock to the children that have it: it is free when these have ended."""
        self.unlock(name)

    def descriptor(self, name: str) -> int:
        """The handle of a lock that this process has; a process that gets it has the lock, too."""
        return self._held[name]

    def close(self) -> None:
        """Close everything: what no child has, is free."""
        for name in list(self._held):
            self.unlock(name)

    def _namespace(self) -> str:
        """``Global``, for all sessions of the machine, except in a sandbox that has names of its own only."""
        probe = f"Global\\qcthreads-{os.urandom(16).hex()}"
        handle = self._calls.create(probe)
        if handle is None:  # this name is nobody's, so it is access to the namespace that is denied
            return "Local"
        self._calls.close(handle)
        return "Global"


def holders_of_locks(directory: str | os.PathLike[str]) -> dict[str, int]:  # noqa: ARG001
    """None: Windows tells it of no mutex."""
    return {}


def handed_over(handles: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """``options`` of ``subprocess.Popen`` with which a child gets ``handles`` as well; others do not get them."""
    if sys.platform != "win32" or not handles:
        return options
    startup = options.get("startupinfo") or subprocess.STARTUPINFO()
    for handle in handles:
        os.set_handle_inheritable(handle, True)
    attributes = startup.lpAttributeList or {}
    startup.lpAttributeList = {**attributes, "handle_list": [*attributes.get("handle_list", ()), *handles]}
    if all(options.get(stream) is None for stream in ("stdin", "stdout", "stderr")):
        options = {**options, "stdin": _own_stdin()}  # else Popen leaves all three out of the list
    return {**options, "startupinfo": startup}


def _own_stdin() -> int:
    try:
        os.fstat(0)
    except OSError:  # pythonw has none
        return subprocess.DEVNULL
    return 0


def _fingerprint(directory: str | os.PathLike[str]) -> str:
    """Names of objects have no backslashes and at most 260 characters, those of directories may."""
    return sha256(os.path.normcase(os.path.realpath(directory)).encode()).hexdigest()[:32]


if sys.platform == "win32":

    class _Kernel32:
        """Calls of kernel32. Its own instance: argument types are set on it."""

        def __init__(self) -> None:
            self._dll = ctypes.WinDLL("kernel32", use_last_error=True)
            self._create = self._dll.CreateMutexW
            self._create.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_wchar_p)
            self._create.restype = ctypes.c_void_p
            self._dll.CloseHandle.argtypes = (ctypes.c_void_p,)

        def create(self, name: str) -> int | None:
            ctypes.set_last_error(0)
            handle: int | None = self._create(None, False, name)
            error = ctypes.get_last_error()
            if handle is None:
                if error == _ACCESS_DENIED:  # another user's, or of this one with more rights
                    return None
                raise ctypes.WinError(error)
            if error == _ALREADY_EXISTS:
                self.close(handle)
                return None
            return handle

        def close(self, handle: int) -> None:
            self._dll.CloseHandle(handle)

else:

    class _Kernel32:
        """There is none."""

        def create(self, name: str) -> int | None:
            raise OSError(f"{name} cannot be made: this is not Windows")

        def close(self, handle: int) -> None: ...
