"""The book of all processes that share a directory: kernel-held locks say what is held, records beside them by whom.

The order of things is the protocol (docs/explanation/leases.md): who changes anything holds the door's lock; PUs are
locked before the record is written, and the record is removed before they are unlocked. So a record whose locks are
free is a dead process's, and what it held is free when nothing runs any more that was started under it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence

from ..errors import BookShutError, LeaseError
from ..host import processes
from ..light import replace
from ..units import format_size
from . import records
from .claims import sum_bits
from .door import PATIENCE_S, enter_later
from .ledger import Ledger, Waiter, ledgers, warn
from .listener import Listener
from .place import DOOR, GPU_LOCK, Place, cpu_locks, find_place, make, remove_nested
from .pools import MACHINE_MEMORY
from .reclaiming import Reclaiming, is_any_free
from .records import Holding, Waiting

if sys.platform == "win32":
    from ..host.windows_folder import Folder
    from ..host.windows_locks import FileLocks, holders_of_locks
else:
    from ..host.folder import Folder
    from ..host.locks import FileLocks, holders_of_locks
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from .hold import Hold

    _Said = TypeVar("_Said")

_SALTS, _SALT_BYTES = 64, 8  # to ask for one takes as long as for all
_SILENT_S = 10.0  # who waits looks once a second; one who does not is stopped, or his whole machine was


def _at_exit() -> None:
    for ledger in tuple(ledgers):
        if isinstance(ledger, SharedLedger):
            ledger.close()


atexit.register(_at_exit)


class SharedLedger(Ledger):
    """Of all processes that share ``place``; this process's part is thread-safe and does not survive a fork."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self._me = _myself(self.mark)
        self._locks: FileLocks
        self._records: Folder
        """As the locks, there within a turn."""
        self._folder: Folder | None = None
        """The same, where it is there."""
        self._begun_again = False
        """What is held has not been locked yet in this directory."""
        self._fresh = True
        """Nobody has looked yet for what the dead have left."""
        self._holdings: dict[str, Holding] = {}
        self._tickets: dict[str, Waiting] = {}
        self._nothing: set[str] = set()
        """Names of what is torn, dead or no record, and cannot be removed by this user."""
        self._strange: set[str] = set()
        """Names of what was not ours at the last look."""
        self._own: dict[str, Hold] = {}
        self._told: dict[str, int] = {}
        """Open records: one that nobody has open is an ended process's, whoever holds its locks now."""
        self._own_tickets: dict[str, int] = {}
        self._names = 0
        self._salts: list[str] = []
        self._reclaiming = Reclaiming()
        self._listener = Listener(lambda: bool(self._waiting), self._ahead, self._wake_first)

    def in_turn(self, act: Callable[[], _Said], patience_s: float = PATIENCE_S) -> _Said:
        """What ``act`` says, while nobody else on the node reads or changes what is given out.

        BookShutError where somebody has had the door for ``patience_s`` seconds; with 0 after one attempt, which takes
        no longer than the turns of others of this process.
        """
        said: list[_Said] = []
        if not self._turn(act, said) and not enter_later(lambda: self._turn(act, said), patience_s):
            raise BookShutError(self._shut(patience_s))
        if self._fresh and patience_s:
            self._fresh = False
            if self.examine():
                with contextlib.suppress(BookShutError):  # what was asked has been done; the next turn buries them
                    self.in_turn(lambda: None, 0.0)
        return said[0]

    def _turn(self, act: Callable[[], _Said], said: list[_Said]) -> bool:
        """Whether the door could be entered; the lock is nobody's while others wait at the door."""
        with self._lock:
            if self._folder is None or self._folder.gone:
                self._open()
            try:  # from here on: an interrupt that comes with the lock would leave the door shut
                if self._lock_all((DOOR,)):
                    return False
                if self._begun_again:
                    self._lock_again()
                self._count_given_back()
                self._look()
                if self._reclaiming.over:
                    self._bury()
                if self._fresh:
                    self.suspect()
                said.append(act())
                return True
            finally:
                try:
                    self._locks.unlock_all((DOOR,))
                except BaseException:  # an interrupt, before it was done
                    self._locks.unlock_all((DOOR,))
                    raise

    def others(self) -> Sequence[Holding]:
        """The leases of other processes, dead ones that nobody has removed yet among them."""
        return tuple(self._holdings.values())

    def queue(self) -> list[Waiter | Waiting]:
        """All who wait and live, the first first; not those who are stopped, for whom nothing is kept meanwhile."""
        if not self._tickets:
            return list(self._waiting)
        told = [ticket for ticket in tuple(self._tickets.values()) if self._lives(ticket.name)]
        told = [ticket for ticket in told if self._records.silent_s(ticket.name) < _SILENT_S]
        return sorted([*self._waiting, *told], key=lambda one: one.name)

    def anybody_waits(self) -> bool:
        """Whether somebody on the node waits, from outside a turn; where nobody does it takes one look at most.

        Where that cannot be told, somebody may.
        """
        if self._waiting:
            return True
        if not any(name[:1] == "w" for name in self._there() - self._nothing):
            return False
        try:
            return bool(self.in_turn(self.queue, 0.0))  # the dead and the stopped wait no more
        except LeaseError:  # also where it cannot be seen
            return True

    def enter(self, waiter: Waiter) -> None:
        """Put ``waiter`` last in line, if he is not there."""
        if waiter in self._waiting:
            return
        self._names += 1
        waiter.name = f"w{time.monotonic_ns():0{records.TICKET_DIGITS}}-{self.mark}-{self._names}"
        super().enter(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Take ``waiter`` out of the line, on the node too; whoever is first now is woken."""
        if waiter.name and self._folder is not None:
            self._folder.remove(waiter.name)  # by its name, for its descriptor may not have been noted
            ticket = self._own_tickets.pop(waiter.name, None)
            if ticket is not None:
                os.close(ticket)
        super().leave(waiter)

    def put_up(self, waiter: Waiter) -> None:
        """Tell others that ``waiter`` is going to sleep until it is his turn, and see to it that he is woken."""
        if waiter.name in self._own_tickets and not self._records.has(waiter.name):
            os.close(self._own_tickets.pop(waiter.name))
        if waiter.name in self._own_tickets and waiter.told != waiter.claim.candidates:
            self._rename(waiter)
        if waiter.name not in self._own_tickets:
            waiter.told = waiter.claim.candidates
            text = records.encode(records.claim_body(waiter.claim), self._me)
            with contextlib.suppress(OSError):  # no space: he is there, though nobody knows
                self._own_tickets[waiter.name] = self._records.hold(waiter.name, text)
        else:
            self._records.touch(self._own_tickets[waiter.name])
        self._listener.start(self.place)

    def _rename(self, waiter: Waiter) -> None:
        """Another ticket of the same age: nobody reads one twice."""
        self._records.end(waiter.name, self._own_tickets.pop(waiter.name))
        self._names += 1
        waiter.name = f"{waiter.name.rpartition('-')[0]}-{self._names}"

    def take(self, hold: Hold) -> str:
        """Give out ``hold``: all of it, or nothing where one is returned that cannot be had after all, as ``cpu3``."""
        hold.name = f"l{hold.mark}-{self._salt()}"  # in a directory of all users nobody may be there before
        self._own[hold.name] = hold  # whatever happens from here on, to give it back undoes
        super().take(hold)  # nor does another thread take it until then, whose locks the same files would be
        hold.locks = cpu_locks(hold.reserved.bits) + tuple(map(GPU_LOCK, hold.gpus))
        taken = self._lock_all(hold.locks)
        if taken:
            hold.locks = ()
            del self._held[hold.lease_id]
            del self._own[hold.name]
            return taken
        untold = self._tell(hold)
        if untold is not None and hold.memory_bytes:
            raise LeaseError(
                f"{self.place.records} takes no record of a lease of {format_size(hold.memory_bytes)}: "
                f"{untold.strerror}; without one others would be given the same memory: make room there"
            ) from untold
        return ""

    def _salt(self) -> str:
        """What nobody can foresee, of many that are asked for at once."""
        if not self._salts:
            many = os.urandom(_SALTS * _SALT_BYTES).hex()
            self._salts = [many[at : at + 2 * _SALT_BYTES] for at in range(0, len(many), 2 * _SALT_BYTES)]
        return self._salts.pop()

    def suspect(self) -> None:
        """Note who seems to be dead: a tried lock tells, and a record that nobody has open."""
        # Whoever gives back removes the record first: one that is still there, and its lock free or the file open no
        # more, is an ended process's; one that has gone meanwhile says nothing.
        locked_by_nobody = [holding for holding in self._holdings.values() if self._is_dead(holding)]
        left = [
            holding
            for holding in self._holdings.values()
            if holding not in locked_by_nobody and not self._records.is_open(holding.name)
        ]
        dead = [holding for holding in locked_by_nobody if self._records.has(holding.name)]
        self._reclaiming.suspect(dead, [holding for holding in left if self._records.has(holding.name)])

    def examine(self) -> bool:
        """See whether anything still runs that the dead have started; true where the next turn finds more free.

        What does run is ended or waited for, as the dead had it; :meth:`strays` names it.
        """
        return self._reclaiming.examine()

    def strays(self) -> list[str]:
        """Processes that still run under leases whose holders are dead, in words."""
        return [str(stray) for stray in self._reclaiming.strays]

    def _is_ours(self, hold: Hold) -> bool:
        return hold.name in self._own

    def _end(self, hold: Hold) -> None:
        """What still runs under it keeps the PUs, without us."""
        self._own.pop(hold.name, None)  # before its record, which would be told again
        told = self._told.pop(hold.name, None)
        if hold.started and self._outlives(hold):
            if told is not None:
                os.close(told)
        else:
            if hold.started:
                remove_nested(hold.mark)
            with contextlib.suppress(OSError):  # what a daemon to be has closed is locked no longer
                self._records.end(hold.name, told)
            with contextlib.suppress(OSError):
                self._locks.unlock_all(hold.locks)
        hold.locks = ()  # an interrupt from here on must not unlock what another thread may have got by then
        self._given_back.append(hold)
        self._wake_first()

    def _outlives(self, hold: Hold) -> bool:
        """Leave the locks to what still runs under ``hold``, by its mark or by its locks; false where nothing does."""
        in_use = hold.in_use()
        for name in hold.locks:
            self._locks.leave(name)
        if in_use:
            return True
        try:
            return bool(self._lock_all(hold.locks))
        except LeaseError:
            return True

    def descriptors(self, hold: Hold) -> tuple[int, ...]:
        """Open files that carry the locks of ``hold``."""
        return tuple(self._locks.descriptor(name) for name in hold.locks)

    def _open(self) -> None:
        """At first, after a fork, and when a logout, say, has removed the directory: then all is told again."""
        folder, self._folder = self._folder, None
        self._begun_again = True
        if folder is not None:
            warn("the book of leases in %s was removed; it is begun again", self.place.path)
            self._locks.close()
            folder.close()
        try:
            make(self.place)
        except LeaseError:
            place = find_place()  # a logout takes the whole runtime directory away
            if place.path is None:
                raise
            make(place)
            self.place = place
        self._locks = FileLocks(self.place.locks, create=self.place.kind == "user")
        self._records = self._folder = Folder(self.place.records, for_all=self.place.kind == "node")
        if self._folder.names():
            import json  # noqa: F401  # to read them with: not within a turn, while others wait at the door

    def _lock_again(self) -> None:
        """In a book that is begun again: what this process holds."""
        for hold in tuple(self._own.values()):
            if sum(not self._lock_all((name,)) for name in hold.locks) < len(hold.locks):
                warn("CPUs %s are also held by others, who began before it could be told of again", hold.cpus)
        self._begun_again = False

    def _shut(self, patience_s: float) -> str:
        pid = holders_of_locks(self.place.locks).get(DOOR)
        who = f"process {pid} holds it" if pid else "who holds it cannot be seen from here"
        return (
            f"the book of leases in {self.place.path} could not be opened for {patience_s:g} s: {who}; "
            "where that process is stopped (`kill -CONT`) or hangs, let it go on or end it"
        )

    def _lock_all(self, names: tuple[str, ...]) -> str:
        """Lock ``names``, or none of them where one is somebody else's, which is returned, or cannot be locked."""
        try:
            return self._locks.lock_all(names)
        except OSError as error:
            remedy = "`qcthreads leases --share`, run by root, completes the directory"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                remedy = "each PU of a lease takes one file: allow more by `ulimit -n`"
            name = error.filename or names[0]
            raise LeaseError(f"{self.place.locks}/{name} cannot be locked: {error.strerror}; {remedy}") from error

    def _look(self) -> None:
        """Read what is new among the records, and tell again of what is ours and was removed."""
        there = self._records.names()
        strange = there.difference(self._own)
        if strange == self._strange and len(there) - len(strange) == len(self._own):
            return
        for known in (self._holdings, self._tickets):
            for name in known.keys() - there:
                del known[name]
        self._nothing &= there
        ours = self._own.keys() | self._own_tickets.keys()
        for name in there - ours - self._holdings.keys() - self._tickets.keys() - self._nothing:
            self._read(name)
        for name in self._own.keys() - there:
            hold = self._own.get(name)
            if hold is not None:
                self._tell(hold)
        self._strange = strange  # not before all of it could be read

    def _read(self, name: str) -> None:
        try:
            text, uid = self._records.read(name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise LeaseError(
                f"{self.place.records}/{name} cannot be read: {error.strerror}; without it nobody can say what is free"
            ) from error
        told = records.parse(name, text, uid)
        if isinstance(told, Holding):
            self._holdings[name] = _believed(told)
            self._leased |= told.reserved.bits
        elif told is not None:
            self._tickets[name] = told
        else:  # nobody writes now, for we hold the door: whoever wrote this was killed, or never told of a lease
            self._forget(name)

    def _tell(self, hold: Hold) -> OSError | None:
        """Write the record, or say what is wrong: the PUs are held all the same, and memory is not known to others."""
        before = self._told.pop(hold.name, None)
        if before is not None:
            os.close(before)
        try:
            told = self._records.announce(hold.name, records.lease_text(hold, self._me))
        except OSError as error:
            return error
        if told is not None:
            self._told[hold.name] = told
        return None

    def _lives(self, ticket: str) -> bool:
        """Whether who waits still holds his ticket; else it is removed."""
        if self._records.is_held(ticket):
            return True
        self._forget(ticket)
        return False

    def _forget(self, name: str) -> None:
        self._holdings.pop(name, None)
        self._tickets.pop(name, None)
        if not self._records.remove(name):  # another user's: nobody's business but his, root's and the next boot's
            self._nothing.add(name)

    def _is_dead(self, holding: Holding) -> bool:
        """Whether one of its PUs is locked by nobody, or by us."""
        ours = sum_bits(hold.reserved.bits for hold in self._held.values())
        return bool(holding.reserved.bits & ours) or is_any_free(self._locks, holding.reserved)

    def _bury(self) -> None:
        """Remove the records of leases that are over."""
        names, self._reclaiming.over = self._reclaiming.over, frozenset()
        for name in names:
            if name in self._holdings and self._is_dead(self._holdings[name]):
                self._forget(name)

    def _ahead(self) -> int:
        """How many of other processes wait before the first of this one."""
        first = min((waiter.name for waiter in tuple(self._waiting)), default="")
        return sum(name < first for name in self._there() - self._own_tickets.keys() if name[:1] == "w")

    def _there(self) -> set[str]:
        """Of everything there, from outside a turn."""
        folder = self._folder
        try:
            return folder.names() if folder is not None else set()
        except OSError:  # the directory is just being begun again
            return set()

    def close(self) -> None:
        """Give everything back that this process still holds; what runs under it keeps it."""
        for hold in tuple(self._own.values()):
            self.give_back(hold)

    def after_fork(self) -> None:
        """In a child: what its parent holds is not its own, and may not be kept by it when the parent has ended."""
        if self._folder is not None:
            self._locks.close()
            self._folder.close()
            for descriptor in (*self._own_tickets.values(), *self._told.values()):
                os.close(descriptor)
        self.__init__(self.place)  # type: ignore[misc]


def _myself(mark: str) -> str:
    """What this process tells of itself with every lease."""
    content: dict[str, Any] = {
        "pid": os.getpid(),
        "boot": processes.boot_id(),
        "pid_namespace": processes.pid_namespace(),
        "since": time.time(),
        "mark": mark,
        "command": processes.own_command(),
    }
    return records.body(content)


def _believed(holding: Holding) -> Holding:
    """What is told of the machine's memory, as far as that can be: none holds more than there is."""
    if sys.platform == "win32":  # others are this user himself
        return holding
    amount, holds = holding.draws.get(MACHINE_MEMORY, (0, 0))
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if holds <= there:
        return holding
    return replace(holding, draws={**holding.draws, MACHINE_MEMORY: (amount, there)})
