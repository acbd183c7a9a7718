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
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..cpuset import CpuSet
from ..errors import LeaseError
from ..host import processes
from . import records
from .door import enter
from .ledger import Ledger, Waiter, warn
from .place import CPU_LOCK, DOOR, GPU_LOCK, Place, find_place, make, remove_nested
from .pools import MACHINE_MEMORY
from .records import Holding, Waiting
from .strays import Strays

if sys.platform == "win32":
    from ..host.windows_folder import Folder
    from ..host.windows_locks import FileLocks, holders_of_locks
else:
    from ..host.folder import Folder
    from ..host.locks import FileLocks, holders_of_locks
if TYPE_CHECKING:
    from .lease import Lease

_DOOR_S = 10.0  # a turn takes a tenth of a millisecond; who holds the door this long was stopped, or means harm
_LOOK_S = 0.25  # what nothing tells of: another's stray has ended, an event was lost
_BEHIND_S = 0.02  # for every one before it, until who waits looks whether they have left something over
_SILENT_S = 10.0  # who waits looks once a second; one who does not is stopped, or his whole machine was
_SETTLE_S = 0.005  # between a killed process's files being closed and its locks being free


_ledgers: weakref.WeakSet[SharedLedger] = weakref.WeakSet()


def _after_fork() -> None:
    for ledger in tuple(_ledgers):
        ledger.after_fork()


def _at_exit() -> None:
    for ledger in tuple(_ledgers):
        ledger.close()


atexit.register(_at_exit)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)


class SharedLedger(Ledger):
    """Of all processes that share ``place``; this process's part is thread-safe and does not survive a fork."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self._me = _myself(self.mark)
        self._locks: FileLocks
        self._folder: Folder | None = None
        self._fresh = True
        """Nobody has looked yet for what the dead have left."""
        self._holdings: dict[str, Holding] = {}
        self._tickets: dict[str, Waiting] = {}
        self._nothing: set[str] = set()
        """Names of what is torn, dead or no record, and cannot be removed by this user."""
        self._strange: set[str] = set()
        """Names of what was not ours at the last look."""
        self._own: dict[str, Lease] = {}
        self._told: dict[str, int] = {}
        """Open records: one that nobody has open is an ended process's, whoever holds its locks now."""
        self._own_tickets: dict[str, int] = {}
        self._names = 0
        self._strays = Strays()
        self._listener: threading.Thread | None = None
        _ledgers.add(self)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else on the node reads or changes what is given out."""
        with self._lock:
            again = self._folder is None or self._folder.gone
            if again:
                self._open()
            try:  # from here on: an interrupt that comes with the lock would leave the door shut
                self._enter_door()
                if again:
                    self._lock_again()
                self._count_given_back()
                self._look()
                if self._fresh:
                    self._fresh = False
                    self.reclaim()
                yield
            finally:
                try:
                    self._locks.unlock(DOOR)
                except KeyboardInterrupt:  # before it was done
                    self._locks.unlock(DOOR)
                    raise

    def others(self) -> Sequence[Holding]:
        """The leases of other processes, dead ones that nobody has removed yet among them."""
        return tuple(self._holdings.values())

    def queue(self) -> list[Waiter | Waiting]:
        """All who wait and live, the first first; not those who are stopped, for whom nothing is kept meanwhile."""
        told = [ticket for ticket in tuple(self._tickets.values()) if self._lives(ticket.name)]
        told = [ticket for ticket in told if self._records.silent_s(ticket.name) < _SILENT_S]
        return sorted([*self._waiting, *told], key=lambda one: one.name)

    def enter(self, waiter: Waiter) -> None:
        """Put ``waiter`` last in line."""
        self._names += 1
        waiter.name = f"w{time.monotonic_ns():0{records.TICKET_DIGITS}}-{self.mark}-{self._names}"
        super().enter(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Take ``waiter`` out of the line, on the node too; whoever is first now is woken."""
        ticket = self._own_tickets.pop(waiter.name, None)
        if ticket is not None:
            self._records.end(waiter.name, ticket)
        super().leave(waiter)

    def put_up(self, waiter: Waiter) -> None:
        """Tell others that ``waiter`` is going to sleep until it is his turn, and see to it that he is woken."""
        if waiter.name in self._own_tickets and not self._records.has(waiter.name):
            os.close(self._own_tickets.pop(waiter.name))
        if waiter.name not in self._own_tickets:
            text = records.encode(records.claim_body(waiter.claim), self._me)
            with contextlib.suppress(OSError):  # no space: he is there, though nobody knows
                self._own_tickets[waiter.name] = self._records.hold(waiter.name, text)
        else:
            self._records.touch(self._own_tickets[waiter.name])
        if self._listener is None or not self._listener.is_alive():
            self._listener = threading.Thread(target=self._listen, name="qcthreads-leases", daemon=True)
            self._listener.start()

    def take(self, lease: Lease) -> str:
        """Give out ``lease``: all of it, or nothing where one is returned that cannot be had after all, as ``cpu3``."""
        lease.locks = (*map(CPU_LOCK, lease.reserved), *map(GPU_LOCK, lease.gpus))
        taken = self._lock_all(lease.locks)
        if taken:
            return taken
        lease.name = f"l{lease.mark}-{os.urandom(8).hex()}"  # in a directory of all users nobody may be there before
        self._own[lease.name] = lease
        try:
            self._tell(lease)
            return super().take(lease)
        except BaseException:
            self.give_back(lease)
            raise

    def reclaim(self) -> bool:
        """Remove what dead processes have told of, where nothing runs any more that they started.

        What does run is ended or waited for, as the dead had it; :meth:`strays` names it.
        """
        # Whoever gives back removes the record first: one that is still there, and its lock free or the file open no
        # more, is an ended process's; one that has gone meanwhile says nothing.
        locked_by_nobody = {holding.name for holding in self.others() if self._is_dead(holding)}
        left = {holding.name for holding in self.others() if not self._records.is_open(holding.name)}
        ended = [h for h in self.others() if h.name in locked_by_nobody | left and self._records.has(h.name)]
        dead = [holding for holding in ended if holding.name in locked_by_nobody]
        running = self._strays.of(dead, [holding for holding in ended if holding not in dead])
        free = [holding for holding in dead if holding.name not in running]
        for holding in free:
            if holding.owner.uid == processes.owner(os.getpid()):  # else anybody could name a lease of ours that lives
                remove_nested(holding.name.removeprefix("l").partition("-")[0])
            self._forget(holding.name)
        return bool(free)

    def strays(self) -> list[str]:
        """Processes that still run under leases whose holders are dead, in words."""
        return [str(stray) for stray in self._strays.found]

    def give_back(self, lease: Lease) -> None:
        """The end of ``lease``; from anywhere. What still runs under it keeps the PUs, without us."""
        if self._own.pop(lease.name, None) is None:  # a fork's copy of its parent's
            return
        try:
            told = self._told.pop(lease.name, None)
            if lease.children and self._outlives(lease):
                if told is not None:
                    os.close(told)
            else:
                if lease.children:
                    remove_nested(lease.mark)
                self._records.end(lease.name, told)
                for name in lease.locks:
                    self._locks.unlock(name)
        except KeyboardInterrupt:  # what was not done yet is done by the next who calls
            self._own[lease.name] = lease
            raise
        self._given_back.append(lease)
        self._wake_first()

    def _outlives(self, lease: Lease) -> bool:
        """Leave the locks to what still runs under ``lease``, by its mark or by its locks; false where nothing does."""
        in_use = lease.in_use()
        for name in lease.locks:
            self._locks.leave(name)
        if in_use:
            return True
        try:
            return bool(self._lock_all(lease.locks))
        except LeaseError:
            return True

    def descriptors(self, lease: Lease) -> tuple[int, ...]:
        """Open files that carry the locks of ``lease``."""
        return tuple(self._locks.descriptor(name) for name in lease.locks)

    def _open(self) -> None:
        """At first, after a fork, and when a logout, say, has removed the directory: then all is told again."""
        folder, self._folder = self._folder, None
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
        self._folder = Folder(self.place.records, for_all=self.place.kind == "node")

    def _lock_again(self) -> None:
        """In a book that is begun again: what this process holds."""
        for lease in tuple(self._own.values()):
            if sum(map(self._try_lock, lease.locks)) < len(lease.locks):
                warn("CPUs of %r are also held by others, who began before it could be told of again", lease)

    @property
    def _records(self) -> Folder:
        assert self._folder is not None, "within turn()"
        return self._folder

    def _enter_door(self) -> None:
        if not enter(self._try_lock, _DOOR_S):
            pid = holders_of_locks(self.place.locks).get(DOOR)
            who = f"process {pid} holds it" if pid else "who holds it cannot be seen from here"
            raise LeaseError(
                f"the book of leases in {self.place.path} could not be opened for {_DOOR_S:g} s: {who}; "
                "where that process is stopped (`kill -CONT`) or hangs, let it go on or end it"
            )

    def _lock_all(self, names: Sequence[str]) -> str:
        """Lock ``names``, or none of them where one is somebody else's, which is returned, or cannot be locked."""
        locked: list[str] = []
        try:
            for name in names:
                locked.append(name)
                if not self._try_lock(name):
                    return name
            locked.clear()
            return ""
        finally:
            for name in locked:
                self._locks.unlock(name)

    def _try_lock(self, name: str) -> bool:
        try:
            return self._locks.try_lock(name)
        except OSError as error:
            remedy = "`qcthreads leases --share`, run by root, completes the directory"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                remedy = "each PU of a lease takes one file: allow more by `ulimit -n`"
            raise LeaseError(f"{self.place.locks / name} cannot be locked: {error.strerror}; {remedy}") from error

    def _look(self) -> None:
        """Read what is new among the records, and tell again of what is ours and was removed."""
        there = self._records.names()
        strange = there - self._own.keys()
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
            lease = self._own.get(name)
            if lease is not None:
                self._tell(lease)
        self._strange = strange  # not before all of it could be read

    def _read(self, name: str) -> None:
        try:
            text, uid = self._records.read(name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise LeaseError(
                f"{self.place.records / name} cannot be read: {error.strerror}; without it nobody can say what is free"
            ) from error
        told = records.parse(name, text, uid)
        if isinstance(told, Holding):
            self._holdings[name] = _believed(told)
            self._leased |= told.reserved.bits
        elif told is not None:
            self._tickets[name] = told
        else:  # nobody writes now, for we hold the door: whoever wrote this was killed, or never told of a lease
            self._forget(name)

    def _tell(self, lease: Lease) -> None:
        """Write the record; without it the lease holds its PUs all the same, and its memory is not known to others."""
        with contextlib.suppress(OSError):
            before = self._told.pop(lease.name, None)
            if before is not None:
                os.close(before)
            told = self._records.announce(lease.name, records.encode(records.lease_body(lease), self._me))
            if told is not None:
                self._told[lease.name] = told

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
        """Whether one of its PUs is locked by nobody, or by us: who lives holds the locks of all."""
        ours = CpuSet.from_bits(sum_bits(lease.reserved.bits for lease in self._held.values()))
        if not holding.reserved.isdisjoint(ours):
            return True
        for cpu in holding.reserved:
            name = CPU_LOCK(cpu)
            try:
                free = self._locks.try_lock(name)
            except FileNotFoundError:  # no such PU is here, and so nobody has it, whatever is told
                return True
            if free:
                self._locks.unlock(name)
                return True
        return False

    def _listen(self) -> None:
        """Wake who waits in this process when something changes on the node; ends when nobody waits."""
        from ..host.watch import DirectoryWatch

        watch = DirectoryWatch(self.place.records, self.place.locks)
        look_at = 0.0
        try:
            while self._waiting or not self._ends():
                heard = watch.wait(max(0.0, look_at - time.monotonic()) if look_at else _LOOK_S)
                ahead = self._ahead()
                if heard and not ahead:
                    self._wake_first()
                    time.sleep(_SETTLE_S)
                elif heard and not look_at:  # first those before, for if all looked at once nobody would get to it
                    look_at = time.monotonic() + ahead * _BEHIND_S
                if not ahead or time.monotonic() >= look_at:
                    look_at = 0.0
                    self._wake_first()
        finally:
            watch.close()

    def _ends(self) -> bool:
        """Whether nobody waits in this process; who begins to wait from now on needs another thread."""
        with self._lock:
            if not self._waiting:
                self._listener = None
            return not self._waiting

    def _ahead(self) -> int:
        """How many of other processes wait before the first of this one."""
        first, folder = min((waiter.name for waiter in tuple(self._waiting)), default=""), self._folder
        try:
            names = folder.names() if folder is not None else set()
        except OSError:  # the directory is just being begun again
            names = set()
        return sum(name < first for name in names - self._own_tickets.keys() if name[:1] == "w")

    def close(self) -> None:
        """Give everything back that this process still holds; what runs under it keeps it."""
        for lease in tuple(self._own.values()):
            lease.release()

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


def sum_bits(sets: Iterable[int]) -> int:
    """Everything that is in one of them."""
    bits = 0
    for one in sets:
        bits |= one
    return bits
