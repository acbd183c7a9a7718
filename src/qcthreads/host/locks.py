"""Named locks that the kernel holds for a process and those it hands them to, and gives up when the last has ended.

``flock`` on files of one directory, each opened once by a process: the lock belongs to the open file, so that a child
that inherits the descriptor keeps the lock when its parent is killed. No content is read or written. See flock(2).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

assert sys.platform != "win32", "Windows has no flock"
from .file_calls import best_calls  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_KEPT = 256  # of unlocked files that stay open; a soft limit of 1024 descriptors is common


class FileLocks:
    """The locks of this process in ``directory``; one thread at a time, but for unlocking.

    Parameters
    ----------
    directory
        Where the files are.
    create
        Make those that are missing; else a missing file is a lock that nobody can have.
    """

    def __init__(self, directory: str | os.PathLike[str], *, create: bool) -> None:
        self.directory = directory
        self._create = create
        self._folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._open: dict[str, int] = {}
        self._locked: set[str] = set()
        calls = best_calls()
        self._lock_files, self._unlock_files = calls.lock_files, calls.unlock_files

    def lock_all(self, names: tuple[str, ...]) -> str:
        """Take all these locks, or none where one is somebody else's, which is returned; else nothing.

        OSError where a file cannot be opened or locked.
        """
        self._locked.update(names)  # from here on none of them is closed to make room for another
        try:
            try:
                at = self._lock_files(self._open, names)
            except KeyError:
                for name in names:
                    self._open_file(name)
                at = self._lock_files(self._open, names)
        except OSError:
            self._locked.difference_update(names)
            raise
        if at < 0:
            return ""
        self._locked.difference_update(names)
        return names[at]

    def unlock_all(self, names: tuple[str, ...]) -> None:
        """Give these locks up, also for children that have them. From anywhere, finalizers and signal handlers too."""
        self._unlock_files(self._open, names)
        self._locked.difference_update(names)

    def try_lock(self, name: str) -> bool:
        """Take the lock, or say that somebody else has it."""
        return not self.lock_all((name,))

    def unlock(self, name: str) -> None:
        """Give the lock up."""
        self.unlock_all((name,))

    def leave(self, name: str) -> None:
        """Leave the lock to the children that have it: it is free when these have ended."""
        descriptor = self._open.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
            self._locked.discard(name)

    def descriptor(self, name: str) -> int:
        """Of a lock that this process has; a process that gets it has the lock, too."""
        return self._open[name]

    def close(self) -> None:
        """Close everything: what no child has, is free."""
        for name in list(self._open):
            self.leave(name)
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def _open_file(self, name: str) -> None:
        if name in self._open:
            return
        self._trim()
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._open[name] = os.open(name, flags, dir_fd=self._folder)
        except FileNotFoundError:
            if not self._create:
                raise
            self._open[name] = os.open(name, flags | os.O_CREAT, 0o600, dir_fd=self._folder)

    def _trim(self) -> None:
        if len(self._open) - len(self._locked) > _MOST_KEPT:
            for name in [name for name in list(self._open) if name not in self._locked]:
                self.leave(name)


def handed_over(descriptors: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """``options`` of ``subprocess.Popen`` with which a child gets ``descriptors`` as well."""
    return {**options, "pass_fds": (*options.get("pass_fds", ()), *descriptors)}


def holders_of_locks(directory: str | os.PathLike[str]) -> dict[str, int]:
    """By file in ``directory``, the process that locked it, as far as /proc/locks tells; its child may have it now.

    Nobody where the file system counts its devices otherwise than the kernel's locks (btrfs): better than a stranger.
    """
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            lines = file.readlines()
        device = os.stat(directory).st_dev  # noqa: PTH116
        on = f"{os.major(device):02x}:{os.minor(device):02x}"
        names = {f"{on}:{entry.inode()}": entry.name for entry in os.scandir(directory)}
    except OSError:
        return {}
    found: dict[str, int] = {}
    for line in lines:  # 1: FLOCK  ADVISORY  WRITE 1234 00:19:5678 0 EOF
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[4].isdigit() and words[5] in names:
            found[names[words[5]]] = int(words[4])
    return found
