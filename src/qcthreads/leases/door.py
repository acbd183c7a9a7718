"""How one goes in by the door of the book, where one process at a time may be; looks at nothing inside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE_S = 10.0
"""A turn takes a tenth of a millisecond; who holds the door this long was stopped, or means harm."""
_SHORTEST_S, _LONGEST_S = 20e-6, 1e-3  # between two tries: many who try more often leave no CPU to who is inside


def enter(attempt: Callable[[], bool], patience_s: float) -> bool:
    """Make attempts until one succeeds; false after ``patience_s`` seconds, after one attempt where that is 0."""
    return attempt() or enter_later(attempt, patience_s)


def enter_later(attempt: Callable[[], bool], patience_s: float) -> bool:
    """:func:`enter` for whose first attempt was in vain."""
    give_up, pause_s = time.monotonic() + patience_s, _SHORTEST_S
    while time.monotonic() < give_up:
        time.sleep(pause_s * (0.5 + os.urandom(1)[0] / 512))  # at random, lest some are always behind others
        pause_s = min(2 * pause_s, _LONGEST_S)
        if attempt():
            return True
    return False
