"""A thread that wakes who waits in this process when something changes on the node; none while nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .place import Place

_LOOK_S = 0.25  # what nothing tells of: another's stray has ended, an event was lost
_BEHIND_S = 0.02  # for every one before it, until who waits looks whether they have left something over
_SETTLE_S = 0.005  # between a killed process's files being closed and its locks being free


class Listener:
    """Wakes the first who waits here.

    Parameters
    ----------
    waits
        Whether anybody of this process does.
    ahead
        How many of other processes wait before the first of this one.
    wake
        Lets that one look.
    """

    def __init__(self, waits: Callable[[], bool], ahead: Callable[[], int], wake: Callable[[], object]) -> None:
        self._waits = waits
        self._ahead = ahead
        self._wake = wake
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, place: Place) -> None:
        """See to it that somebody listens: to be called when one more waits."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._listen, args=(place,), name="qcthreads-leases", daemon=True
                )
                self._thread.start()

    def _listen(self, place: Place) -> None:
        from ..host.watch import DirectoryWatch

        watch = DirectoryWatch(place.records, place.locks)
        look_at = 0.0
        try:
            while self._waits() or not self._ends():
                heard = watch.wait(max(0.0, look_at - time.monotonic()) if look_at else _LOOK_S)
                ahead = self._ahead()
                if heard and not ahead:
                    self._wake()
                    time.sleep(_SETTLE_S)
                elif heard and not look_at:  # first those before, for if all looked at once nobody would get to it
                    look_at = time.monotonic() + ahead * _BEHIND_S
                if not ahead or time.monotonic() >= look_at:
                    look_at = 0.0
                    self._wake()
        finally:
            watch.close()

    def _ends(self) -> bool:
        """Whether nobody waits; who begins to wait from now on needs another thread."""
        with self._lock:
            ends = not self._waits()
            if ends:
                self._thread = None
            return ends
