"""Calls what is to end something that takes too long; ends nothing itself.

One thread looks at all of them: to start one for each takes longer than everything else that a short calculation takes
of the driver.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

_TRY_AGAIN_S = 1.0


class Deadlines:
    """Of any number of blocks in any threads; the thread ends when it looks and finds none."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[object, tuple[float, Callable[[], object]]] = {}
        self._looks_at_s = math.inf
        """When the thread looks next; infinite where there is none."""

    @contextlib.contextmanager
    def within(self, seconds: float | None, late: Callable[[], object]) -> Iterator[None]:
        """Call ``late``, in a thread of its own, if the block takes more than ``seconds``; ``None``: never."""
        if seconds is None or not seconds < math.inf:
            yield
            return
        mine, due_s = object(), time.monotonic() + seconds
        with self._changed:
            self._have_looked_at(due_s)
            self._due[mine] = due_s, late
        try:
            yield
        finally:
            with self._changed:
                self._due.pop(mine, None)

    def forget(self) -> None:
        """In a child after a fork: its parent's blocks and thread are not there."""
        self.__init__()  # type: ignore[misc]

    def _have_looked_at(self, due_s: float) -> None:
        """With the lock."""
        if due_s >= self._looks_at_s:
            return
        if math.isinf(self._looks_at_s):
            threading.Thread(target=self._watch, name="qcthreads-deadlines", daemon=True).start()
        self._looks_at_s = due_s
        self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._due:
                self._call_late(time.monotonic())
                self._looks_at_s = min((due_s for due_s, _ in self._due.values()), default=math.inf)
                left_s = self._looks_at_s - time.monotonic()
                if self._due and left_s > 0:
                    self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
            self._looks_at_s = math.inf

    def _call_late(self, now_s: float) -> None:
        for one, (due_s, late) in tuple(self._due.items()):
            if due_s <= now_s:
                try:
                    threading.Thread(target=late, name="qcthreads-late", daemon=True).start()
                except RuntimeError:  # no more threads may be started
                    self._due[one] = now_s + _TRY_AGAIN_S, late
                else:
                    del self._due[one]
