"""How much calculations keep in their scratch directories while they run: looks from time to time, removes nothing."""

from __future__ import annotations

import os
import threading
from pathlib import Path

# Of the files of a calculation most are there for most of its time: one of a second or more is seen.
_EVERY_S = 0.5


class ScratchWatch:
    """The most that each directory was seen to hold; from any threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peaks: dict[Path, int] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, folder: Path) -> None:
        """Look into ``folder`` from now on."""
        with self._lock:
            self._peaks[folder] = 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="qcthreads-scratch", daemon=True)
                self._thread.start()

    def peak(self, folder: Path) -> int:
        """Bytes at most, until now."""
        with self._lock:
            return self._peaks.get(folder, 0)

    def end(self, folder: Path) -> int:
        """Bytes at most, with what is there now; looks into it no longer."""
        now = held_bytes(folder)
        with self._lock:
            return max(now, self._peaks.pop(folder, 0))

    def close(self) -> None:
        """End the thread, until the next begins."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.set()
            thread.join()
            self._ended.clear()

    def _look(self) -> None:
        while not self._ended.wait(_EVERY_S):
            with self._lock:
                folders = list(self._peaks)
            for folder in folders:
                held = held_bytes(folder)
                with self._lock:
                    if folder in self._peaks:
                        self._peaks[folder] = max(self._peaks[folder], held)


def held_bytes(folder: Path) -> int:
    """Of all files below; of those that vanish meanwhile nothing."""
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += held_bytes(Path(entry.path))
                else:
                    told = entry.stat(follow_symlinks=False)
                    total += getattr(told, "st_blocks", -(-told.st_size // 512)) * 512
    except OSError:
        pass
    return total
