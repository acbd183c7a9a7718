"""What the book of leases says at one moment, to be shown to people; changes nothing, not even what is dead or torn.

It goes in by the door like everybody else, so that nobody is half-way through anything; who keeps the door shut is
named, and what can be read is read all the same.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import LeaseError
from ..host import processes
from . import claims, records
from .claims import Room
from .door import enter
from .place import CPU_LOCK, DOOR, GPU_LOCK, Place, cpu_locks
from .reclaiming import is_any_free
from .records import Holding, Owner, Waiting
from .strays import Stray, Strays

if sys.platform == "win32":
    from ..host.windows_folder import Folder
    from ..host.windows_locks import FileLocks, holders_of_locks
else:
    from ..host.folder import Folder
    from ..host.locks import FileLocks, holders_of_locks

_PATIENCE_S = 1.0  # a turn takes a tenth of a millisecond
_SETTLE_S = 0.02  # for what is just ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """A process that keeps a lease whose holder has ended."""

    pid: int
    uid: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A lease that the book tells of."""

    holding: Holding
    state: Literal["running", "outlived", "strays", "dead"]
    """``outlived``: its holder has ended, and what he started keeps the PUs; ``strays``: the same, after it has closed
    the files that keep them; ``dead``: nothing is left, and whoever needs the PUs next gets them."""
    pid: int | None
    """The holder's number here; ``None``: he is in another PID namespace, and cannot be seen."""
    since_s: float
    """Seconds since the epoch."""
    survivors: tuple[Survivor, ...] = ()
    """Where its holder has ended: what still runs under it, by the mark in its environment."""

    @property
    def user(self) -> str:
        """The holder's name."""
        return processes.user_name(self.holding.owner.uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """Somebody who waits."""

    waiting: Waiting
    pid: int | None
    """His number here; ``None``: he is in another PID namespace, and cannot be seen."""
    since_s: float
    """Seconds since the epoch."""
    held_by: tuple[Held, ...]
    """Whose leases have what he lacks."""
    behind: tuple[Queued, ...]
    """Who came before him and may be given the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What there was in the book at ``place``; of processes without a shared place nothing is known."""

    place: Place
    leases: tuple[Held, ...] = ()
    """Oldest first."""
    queue: tuple[Queued, ...] = ()
    """In the order in which they are served."""
    strays: tuple[Stray, ...] = ()
    locked: tuple[tuple[str, int | None], ...] = ()
    """Locks that somebody holds who tells of no lease, each with his process where that can be seen from here."""
    unreadable: tuple[tuple[str, int], ...] = ()
    """Names of what is torn or no record, and of tickets whose holders are gone, each with its owner."""
    shut: bool = False
    """Somebody kept the door shut, longer than anybody needs."""
    door_pid: int | None = None
    """Who that was, where it can be seen from here."""


def read_book(place: Place, *, patience_s: float = _PATIENCE_S, thorough: bool = True) -> Snapshot:
    """Look at the book.

    Parameters
    ----------
    place
        Where it is; nothing is made there.
    patience_s
        How long to wait at the door.
    thorough
        Look for strays and for locks without a record, too: among all processes and all CPUs of the machine.

    Raises
    ------
    LeaseError
        It cannot be read.
    """
    if place.path is None:
        return Snapshot(place=place)
    with contextlib.ExitStack() as opened:
        try:
            locks = FileLocks(place.locks, create=False)
            opened.callback(locks.close)
            folder = Folder(place.records)
            opened.callback(folder.close)
            inside = _enter(locks, patience_s)
            found = _look(place, locks, folder, thorough=thorough)
            if found.locked:  # or just given back: who does that removes the record and then unlocks, without the door
                locks.leave(DOOR)
                time.sleep(_SETTLE_S)
                _enter(locks, patience_s)
                again = _look(place, locks, folder, thorough=True)
                found.locked = sorted({*found.locked} & {*again.locked})
        except FileNotFoundError:  # nobody has begun it yet
            return Snapshot(place=place)
        except OSError as error:
            raise LeaseError(
                f"the book of leases in {place.path} cannot be read: {error.filename}: {error.strerror}; "
                "`qcthreads doctor` says what is wrong with it"
            ) from error
    seen = _View(
        processes.boot_id(),
        processes.pid_namespace(),
        {**holders_of_locks(place.locks), **holders_of_locks(place.records)},
    )
    leases = tuple(_held(holding, dead, since_s, seen) for holding, dead, since_s in found.holdings)
    leases, strays = _with_strays(leases) if thorough else (leases, ())
    return Snapshot(
        place=place,
        leases=leases,
        queue=_queue(leases, found.waiting, seen),
        strays=strays,
        locked=tuple((name, seen.lockers.get(name)) for name in found.locked),
        unreadable=tuple(found.unreadable) if inside else (),
        shut=not inside,
        door_pid=None if inside else seen.lockers.get(DOOR),
    )


@dataclass(slots=True)
class _Found:
    holdings: list[tuple[Holding, bool, float]]
    """Each lease, whether its locks are free, and when its record was written."""
    waiting: list[Waiting]
    unreadable: list[tuple[str, int]]
    locked: list[str]


@dataclass(frozen=True, slots=True)
class _View:
    """Whom this process can see: the namespace that it is in, and by lock who took it."""

    boot: str
    pid_namespace: str
    lockers: dict[str, int]

    def is_here(self, owner: Owner) -> bool:
        """Whether the number that he gives means him."""
        return owner.boot == self.boot and owner.pid_namespace == self.pid_namespace

    def pid(self, owner: Owner, lock: str) -> int | None:
        """The number of ``owner``, who took ``lock``."""
        return owner.pid if self.is_here(owner) else self.lockers.get(lock)


def _enter(locks: FileLocks, patience_s: float) -> bool:
    try:
        return enter(lambda: locks.try_lock(DOOR), patience_s)
    except FileNotFoundError:  # nobody has ever gone in
        return True


def _look(place: Place, locks: FileLocks, folder: Folder, *, thorough: bool) -> _Found:
    found = _Found([], [], [], [])
    for name in sorted(folder.names()):
        with contextlib.suppress(FileNotFoundError):  # given back meanwhile
            _read(place, name, locks, folder, found)
    found.holdings.sort(key=lambda one: one[2])
    if thorough:
        told = {name for holding, dead, _ in found.holdings if not dead for name in _locks_of(holding)}
        found.locked = _locked(locks, {path.name for path in Path(place.locks).iterdir()} - told)
    return found


def _read(place: Place, name: str, locks: FileLocks, folder: Folder, found: _Found) -> None:
    """Put what ``name`` tells into ``found``. FileNotFoundError when it has gone."""
    text, uid = folder.read(name)
    told = records.parse(name, text, uid)
    if isinstance(told, Holding) and told.reserved:
        dead = is_any_free(locks, told.reserved)
        since_s = Path(place.records, name).lstat().st_mtime
        found.holdings.append((told, dead, since_s))
    elif isinstance(told, Waiting) and folder.is_held(name):
        found.waiting.append(told)
    else:
        found.unreadable.append((name, Path(place.records, name).lstat().st_uid))


def _is_free(locks: FileLocks, name: str) -> bool:
    """Whether nobody holds the lock; who takes one stands inside the door, so that nobody is in his way."""
    try:
        return locks.try_lock(name)
    except FileNotFoundError:  # nor can anybody
        return True
    finally:
        locks.leave(name)


def _locks_of(holding: Holding) -> Iterator[str]:
    yield from cpu_locks(holding.reserved.bits)
    yield from map(GPU_LOCK, holding.gpus)


def _locked(locks: FileLocks, untold: Iterable[str]) -> list[str]:
    """Which of these are held."""
    return sorted(name for name in untold if name != DOOR and not _is_free(locks, name))


def _held(holding: Holding, dead: bool, since_s: float, seen: _View) -> Held:
    owner = holding.owner
    outlived = seen.is_here(owner) and not _is_holder(owner)
    return Held(
        holding=holding,
        state="dead" if dead else "outlived" if outlived else "running",
        pid=seen.pid(owner, CPU_LOCK(holding.reserved.first)),
        since_s=since_s,
    )


def _is_holder(owner: Owner) -> bool:
    """Whether the process lives, and its number is not another's by now."""
    return processes.lives(owner.pid) and processes.started_at(owner.pid) < owner.since + 1.0


def _with_strays(leases: tuple[Held, ...]) -> tuple[tuple[Held, ...], tuple[Stray, ...]]:
    """The leases, those under which something still runs told from the dead; nothing is ended."""
    ended = [lease.holding for lease in leases if lease.state in ("dead", "outlived")]
    looks, now = Strays(), time.monotonic()
    found = tuple(looks.running(ended, now))
    if found:
        # Again, as if later: one that is ending, or becoming another program, has no environment and may be anybody's.
        time.sleep(_SETTLE_S)
        first = {stray.pid for stray in found}
        found = tuple(stray for stray in looks.running(ended, now + 1.0) if stray.pid in first)
    told = tuple(_with_survivors(lease, found) for lease in leases)
    names = {lease.holding.name for lease in told if lease.state == "strays"}
    return told, tuple(stray for stray in found if stray.holding.name in names)


def _with_survivors(lease: Held, found: Iterable[Stray]) -> Held:
    alive = [stray for stray in found if stray.holding.name == lease.holding.name]
    survivors = tuple(
        Survivor(pid=stray.pid, uid=stray.uid, command=processes.command(stray.pid) or stray.name) for stray in alive
    )
    return replace(lease, state="strays" if alive and lease.state == "dead" else lease.state, survivors=survivors)


def _queue(leases: Sequence[Held], waiting: Sequence[Waiting], seen: _View) -> tuple[Queued, ...]:
    held = [lease for lease in leases if lease.state != "dead"]
    room = Room(-1)
    for lease in held:
        room.take(lease.holding.reserved.bits, lease.holding.gpus, lease.holding.draws)
    now_s, now_ns = time.time(), time.monotonic_ns()
    queue: list[Queued] = []
    for one in waiting:
        in_the_way = tuple(claims.in_the_way(room, one.claim, (lease.holding for lease in held)))
        waited_s = max(0.0, (now_ns - records.entered_at_ns(one.name)) / 1e9)
        queue.append(
            Queued(
                waiting=one,
                pid=seen.pid(one.owner, one.name),
                since_s=now_s - waited_s,
                held_by=tuple(lease for lease in held if lease.holding in in_the_way),
                behind=tuple(first for first in queue if first.waiting.claim.candidates & one.claim.candidates),
            )
        )
    return tuple(queue)
