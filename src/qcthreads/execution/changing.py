"""Notices that CPUs or memory may be used no longer, or again, while a run goes on; ends nothing that runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..cpuset import CpuSet
from ..errors import MachineError, OversubscriptionError
from ..host import read_machine
from ..host.limits import Limits, Rule
from ..host.sysfs import read_text
from ..leases import LeaseBook
from ..leases.ledger import is_bound
from ..leases.node import node_limits
from ..units import format_size

_LOOK_S = 1.0  # to read the limits takes a millisecond or two
# Files that say what a control group may hold; of other rules nobody else changes what they leave us.
_GROUP_LIMIT = re.compile(r"/memory\.(max|high|limit_in_bytes)$")


@dataclass(frozen=True, slots=True)
class Change:
    """What may be used from some time on."""

    at: float
    """Seconds since the epoch, when it was noticed: a second or two late while anything runs."""
    usable: CpuSet
    memory_bytes: int
    """For all that run at the same time."""
    why: str
    """What is another by then, and which limit says so, in words."""


class ChangingLimits:
    """Has ``book`` hand out what may be used by now. For one thread at a time."""

    cpus_changed = False
    """Others may be used, or so many others, than once before."""
    changes: tuple[Change, ...] = ()
    """Of what the book hands out, in the order in which they were noticed."""

    def __init__(self, book: LeaseBook, clock: Callable[[], float] = time.monotonic) -> None:
        self._book = book
        self._clock = clock
        self._memory_bytes = book.memory_bytes
        self._first = book.limits
        self._seen = book.limits  # which others may have the book follow, too
        self._memory = [rule for rule in book.limits.rules if rule.memory_bytes is not None]
        self._groups = {rule.source: _read(rule.source) for rule in self._memory if _is_group(rule.source)}
        self._looked_s = clock()
        self._handed_out = book.usable, book.memory_bytes

    def follow(self) -> bool:
        """Look, where the last look is a second ago. Whether other CPUs may be used than at that.

        Memory that comes in addition to what there was at first is left to others. Where nothing at all may be used,
        everything stays as it is: there is nothing better to do. CPUs stay, too, where only this thread may use
        others, as it runs under a lease, and where the lease that this process runs under is not told of just now.
        """
        if self._clock() - self._looked_s < _LOOK_S:
            return False
        self._looked_s = self._clock()
        book = self._book
        memory = [self._now(rule) for rule in self._memory]
        left = [rule.memory_bytes or 0 for rule in memory if rule.source in self._groups]
        memory_bytes = min([self._memory_bytes, *left])
        try:
            limits = node_limits(book.machine)
            before = self._seen
            cpus_changed = (limits.cpus, limits.cpu_count) != (before.cpus, before.cpu_count)
            if cpus_changed and (_outer(limits) < _outer(self._first) or is_bound(book.ledger, beside=book)):
                limits, cpus_changed = book.limits, False
            rules = (*(rule for rule in limits.rules if rule.memory_bytes is None), *memory)
            limits = replace(limits, memory_bytes=min([self._first.memory_bytes, *left]), rules=rules)
            if cpus_changed or (memory_bytes, limits.total_bytes) != (book.memory_bytes, book.limits.total_bytes):
                book.follow(read_machine() if cpus_changed else book.machine, limits, memory_bytes)
                self.cpus_changed |= cpus_changed
            self._seen = limits
            self._note_change()
            return limits.cpus != before.cpus
        except (MachineError, OversubscriptionError, OSError):
            return False

    def _note_change(self) -> None:
        book, (usable, memory_bytes) = self._book, self._handed_out
        why = [] if book.usable == usable else [book.explain()]
        if book.memory_bytes != memory_bytes:
            rules = (rule for rule in book.limits.rules if rule.memory_bytes == book.memory_bytes)
            said = next((f"{rule.rule} ({rule.source})" for rule in rules), "as at first")  # no limit takes any away
            why.append(f"{format_size(book.memory_bytes)} of memory: {said}")
        if why:
            self._handed_out = book.usable, book.memory_bytes
            self.changes += (Change(time.time(), *self._handed_out, "; ".join(why)),)

    def _now(self, rule: Rule) -> Rule:
        """What there was at first, for our own leases count what our workers took since; less what a group has lost."""
        if rule.source not in self._groups:
            return rule
        first_bytes, now_bytes = self._groups[rule.source], _read(rule.source)
        left_bytes = max(0, (rule.memory_bytes or 0) - max(0, first_bytes - now_bytes))
        return replace(rule, memory_bytes=left_bytes, total_bytes=now_bytes)


def _outer(limits: Limits) -> bool:
    return any(rule.rule == "outer lease" for rule in limits.rules)


def _is_group(source: str) -> bool:
    return _GROUP_LIMIT.search(source) is not None


def _read(source: str) -> int:
    text = read_text("/", source.lstrip("/")) or ""
    return int(text) if text.strip().isdigit() else 1 << 62
