"""How much calculations keep in their scratch directories while they run: looks from time to time, removes nothing."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

# Of the files of a calculation most are there for most of its time: one of a second or more is seen.
_EVERY_S = 0.5


class ScratchWatch:
    """What each directory was seen to hold, last and at most; from any threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peaks: dict[Path, int] = {}
        self._last: dict[Path, int] = {}
        self._ended: threading.Event | None = None

    def begin(self, folder: Path) -> None:
        """Look into ``folder`` from now on."""
        with self._lock:
            self._peaks[folder] = 0
            if self._ended is None:
                self._ended = threading.Event()
                threading.Thread(target=self._look, args=(self._ended,), name="qcthreads-scratch", daemon=True).start()

    def held_bytes(self) -> int:
        """Of all of them, as seen last."""
        with self._lock:
            return sum(self._last.values())

    def end(self, folder: Path) -> int:
        """Bytes at most, with what is there now; looks into it no longer."""
        now = held_bytes(folder)
        with self._lock:
            self._last.pop(folder, None)
            return max(now, self._peaks.pop(folder, 0))

    def close(self) -> None:
        """End the looking, until the next begins, but while directories are there that others still have watched."""
        with self._lock:
            self._peaks = {folder: peak for folder, peak in self._peaks.items() if folder.is_dir()}
            self._last = {folder: held for folder, held in self._last.items() if folder in self._peaks}
            if not self._peaks and self._ended is not None:
                self._ended.set()
                self._ended = None

    def _look(self, ended: threading.Event) -> None:
        while not ended.wait(_EVERY_S):
            with self._lock:
                folders = list(self._peaks)
            for folder in folders:
                held = held_bytes(folder)
                with self._lock:
                    if folder in self._peaks:
                        self._last[folder] = held
                        self._peaks[folder] = max(self._peaks[folder], held)


def held_bytes(folder: Path) -> int:
    """Of all files below; of those that vanish meanwhile nothing."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sum(map(_bytes_of, entries))
    return 0


def _bytes_of(entry: os.DirEntry[str]) -> int:
    with contextlib.suppress(OSError):
        if entry.is_dir(follow_symlinks=False):
            return held_bytes(Path(entry.path))
        told = entry.stat(follow_symlinks=False)
        blocks: int = getattr(told, "st_blocks", -(-told.st_size // 512))
        return blocks * 512
    return 0
