"""What the dead held, given free: found dead within a turn, looked for strays outside, removed within the next.

Death is for ever: a name is never given to a second lease, and locks that were free beside a record never come back. So
whoever looks for strays after that needs no door for it; before it, what he finds says nothing (see ``strays``).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

from ..cpuset import CpuSet
from ..host import processes
from .place import cpu_locks, remove_nested
from .records import Holding
from .strays import Stray, Strays

TYPE_CHECKING = False
if TYPE_CHECKING:
    if sys.platform == "win32":
        from ..host.windows_locks import FileLocks
    else:
        from ..host.locks import FileLocks


class Reclaiming:
    """Those who seem to be dead, and what is known of them."""

    def __init__(self) -> None:
        self._strays = Strays()
        self._one_at_a_time = threading.Lock()
        self._dead: tuple[Holding, ...] = ()
        self._left: tuple[Holding, ...] = ()
        self.over: frozenset[str] = frozenset()
        """Names of the records that the next turn removes, where these are still dead."""

    @property
    def strays(self) -> Sequence[Stray]:
        """What still runs under leases whose holders are dead, at the last look."""
        return self._strays.found

    def suspect(self, dead: Sequence[Holding], left: Sequence[Holding]) -> None:
        """Within a turn: of ``dead`` the locks are free; of those ``left`` somebody has them whom nobody waits for."""
        self._dead, self._left = tuple(dead), tuple(left)

    def examine(self) -> bool:
        """Outside a turn: look for strays, and end them where that was wanted; whether any lease is over."""
        with self._one_at_a_time:
            dead, left = self._dead, self._left
            if not dead and not left:
                self._strays.found = []
                return False
            running = self._strays.of(dead, left)
            over = [holding for holding in dead if holding.name not in running]
            for holding in over:
                if holding.owner.uid == processes.owner(os.getpid()):  # else anybody could name a lease that lives
                    remove_nested(holding.mark)
            self.over = frozenset(holding.name for holding in over)
            self._dead = tuple(holding for holding in dead if holding not in over)  # once is enough to say so
            return bool(over)


def is_any_free(locks: FileLocks, cpus: CpuSet) -> bool:
    """Whether one of the locks of ``cpus`` is nobody's, not ours either: who lives holds the locks of all."""
    for name in cpu_locks(cpus.bits):
        try:
            if locks.try_lock(name):
                locks.unlock(name)
                return True
        except FileNotFoundError:  # no such PU is here, and so nobody has it, whatever is told
            return True
        except BaseException:  # an interrupt that came with the lock
            locks.unlock(name)
            raise
    return False
