"""How one goes in by the door of the book, where one process at a time may be; looks at nothing inside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from .place import DOOR

_SHORTEST_S, _LONGEST_S = 20e-6, 1e-3  # between two tries: many who try more often leave no CPU to who is inside


def enter(try_lock: Callable[[str], bool], patience_s: float) -> bool:
    """Lock the door by ``try_lock``; false after ``patience_s`` seconds."""
    if try_lock(DOOR):
        return True
    give_up, pause_s = time.monotonic() + patience_s, _SHORTEST_S
    while not try_lock(DOOR):
        if time.monotonic() > give_up:
            return False
        time.sleep(pause_s * (0.5 + os.urandom(1)[0] / 512))  # at random, lest some are always behind others
        pause_s = min(2 * pause_s, _LONGEST_S)
    return True
