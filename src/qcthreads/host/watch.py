"""Sleeps until something in a directory may have changed: by inotify on Linux, else by the clock; reads no file.

See inotify(7). The kernel closes what a killed process had open, and so tells of an end that nobody else can tell of;
the locks of its files go a moment after that.
"""

from __future__ import annotations

import os
import select
import sys
import time

_IN_CLOSE, _IN_DELETE = 0x8 | 0x10, 0x200  # linux/inotify.h
_POLL_S = 0.02  # without inotify


class DirectoryWatch:
    """Of files removed from ``removed``, and of files in ``closed`` that are closed; used by one thread."""

    def __init__(self, removed: str, closed: str) -> None:
        self._events = _inotify({removed: _IN_DELETE, closed: _IN_CLOSE})

    def wait(self, timeout_s: float) -> bool:
        """Whether something may have happened, or false after ``timeout_s`` seconds. Many things at once are one."""
        if sys.platform != "linux" or self._events is None:
            time.sleep(min(timeout_s, _POLL_S))
            return True
        ready = select.poll()
        ready.register(self._events, select.POLLIN)
        if not ready.poll(timeout_s * 1000):
            return False
        os.read(self._events, 65536)
        return True

    def close(self) -> None:
        """Watch no longer."""
        events, self._events = self._events, None
        if events is not None:
            os.close(events)


def _inotify(directories: dict[str, int]) -> int | None:
    """``None`` elsewhere, and where the user has used up what the system grants (fs.inotify.max_user_instances)."""
    if sys.platform != "linux":
        return None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    events: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if events < 0:
        return None
    for directory, what in directories.items():
        if libc.inotify_add_watch(events, os.fsencode(directory), what) < 0:
            os.close(events)
            return None
    return events
