"""What is wrong with the book of leases on this machine, and what mends each of it; mends nothing itself."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, LeaseError
from ..host import processes
from ..host.processes import user_name
from ..units import format_count
from .place import LEASE_VARIABLE, LOCKS, SHARED, VARIABLE, Place, find_place, is_shared, own_places
from .sharing import defects, lock_names
from .snapshot import Snapshot, read_book

_FIRST_PERSON, _NOBODY = 1000, 65534  # UID_MIN of login.defs(5); the overflow user

_PLAIN = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong, and the command that mends it, or words where there is none."""

    what: str
    mend: str


@dataclass(frozen=True, slots=True)
class Checkup:
    """``place`` is ``None`` where none can be used; the troubles tell why."""

    place: Place | None
    troubles: tuple[Trouble, ...]


def examine(environ: Mapping[str, str] | None = None) -> Checkup:
    """Look at everything; nothing is made, removed or ended.

    Parameters
    ----------
    environ
        As of :func:`find_place`.
    """
    environ = os.environ if environ is None else environ
    named = environ.get(VARIABLE, "")
    path = named if named and named != "process" else SHARED
    made = is_shared(path) or (not named and os.path.lexists(path))
    troubles = [Trouble(*one) for one in defects(Path(path), lock_names())] if made else []
    try:
        place = find_place(environ, create=False)
        snapshot = read_book(place)
    except (InputError, LeaseError) as error:
        return Checkup(None, (*troubles, *_refused(error, troubles)))
    chosen = bool(named or environ.get(LEASE_VARIABLE))
    of_place = [*_of_place(place, chosen=chosen), *_of_earlier(place, environ)]
    return Checkup(place, (*troubles, *of_place, *_of_door(snapshot), *_of_book(snapshot)))


def _refused(error: Exception, told: list[Trouble]) -> list[Trouble]:
    """What the defects do not tell already."""
    what, _, remedy = str(error).rpartition("; ")
    return [] if told else [Trouble(what, remedy)]


def _of_place(place: Place, *, chosen: bool) -> Iterator[Trouble]:
    """Not shared with whom it might be, or without space for records."""
    if place.path is None:
        if not chosen and sys.platform != "win32":
            yield Trouble(
                f"every process counts its own leases, and those of two may overlap: {place.why}",
                f"`sudo qcthreads leases --share`, or make a directory on a local disk and export {VARIABLE}=DIRECTORY",
            )
        return
    people = sorted(_people()) if place.kind == "user" and not chosen and not os.path.lexists(SHARED) else []
    if len(people) > 1:
        shown = ", ".join(map(user_name, people[:4])) + (", ..." if len(people) > 4 else "")
        yield Trouble(
            f"{format_count(len(people), 'user')} run processes here ({shown}), each with a book of his own: their "
            "leases may overlap",
            "sudo qcthreads leases --share; for every boot: qcthreads leases --tmpfiles | sudo tee "
            "/etc/tmpfiles.d/qcthreads.conf",
        )
    yield from _of_space(Path(place.path))


def _of_earlier(place: Place, environ: Mapping[str, str]) -> Iterator[Trouble]:
    """What this user began before root had made a book for all, and holds by a book of his own."""
    for own in own_places(environ) if place.path == SHARED else ():
        with contextlib.suppress(LeaseError):
            for lease in read_book(own, thorough=False).leases:
                if lease.state != "dead":
                    kill = f", or kill {lease.pid}" if lease.state == "running" and lease.pid else ""
                    yield Trouble(
                        f"{lease.holding.owner} began before {SHARED} was made, and tells of CPUs {lease.holding.cpus} "
                        f"in {own.path}: others may be given the same",
                        f"wait for its end{kill}",
                    )


def _people() -> set[int]:
    """Users that are no system's accounts and run something that can be seen from here."""
    owners = map(processes.owner, processes.all_processes())
    return {uid for uid in owners if uid >= _FIRST_PERSON and uid != _NOBODY}


def _of_space(path: Path) -> Iterator[Trouble]:
    if sys.platform == "win32":  # where no place is shared
        return
    there = path if path.exists() else path.parent
    try:
        found = os.statvfs(there)
    except OSError:
        return
    if not found.f_bavail or (found.f_files and not found.f_favail):
        what = "space" if not found.f_bavail else "inode"
        yield Trouble(
            f"no {what} is left for records on the file system of {path}: nobody is told of a lease's memory, and who "
            "waits has no place in the line",
            f"remove what fills it: df -h {there}; df -i {there}; du -x {there}",
        )


def _of_door(snapshot: Snapshot) -> Iterator[Trouble]:
    if not snapshot.shut:
        return
    pid, door = snapshot.door_pid, f"{snapshot.place.path}/{LOCKS}/door"
    if pid is None:
        yield Trouble(
            f"the book has been shut for a second, by a process that cannot be seen from here ({door} is locked)",
            f"on the host, as root: fuser -v {door}; let that process go on (kill -CONT PID), or end it",
        )
    elif processes.is_stopped(pid):
        yield Trouble(
            f"{_named(pid)} was stopped while it changed the book, and nobody gets a lease until it goes on",
            f"kill -CONT {pid}",
        )
    else:
        yield Trouble(f"{_named(pid)} has kept the book shut for a second: it hangs, or means harm", f"kill {pid}")


def _of_book(snapshot: Snapshot) -> Iterator[Trouble]:
    for stray in snapshot.strays:
        yield Trouble(str(stray), f"kill {stray.pid}, or wait for its end")
    for name, pid in snapshot.locked:
        who = _named(pid) if pid else "a process that cannot be seen from here"
        yield Trouble(
            f"{who} holds {name} and tells of no lease: nobody else gets it",
            f"where it is no calculation, end it: kill {pid}" if pid else f"fuser -v {snapshot.place.locks}/{name}",
        )
    yield from _of_remains(snapshot)


def _of_remains(snapshot: Snapshot) -> Iterator[Trouble]:
    """What the dead have left and this user may not remove; his own goes when somebody leases next."""
    if sys.platform == "win32":  # where no place is shared
        return
    me = os.geteuid()
    dead = [(one.holding.name, one.holding.owner.uid) for one in snapshot.leases if one.state == "dead"]
    remains = [(name, uid) for name, uid in (*dead, *snapshot.unreadable) if me not in (0, uid)]
    for uid in sorted({uid for _, uid in remains}):
        names = [name for name, owner in remains if owner == uid]
        if all(_PLAIN.fullmatch(name) for name in names):
            mend = " ".join(["sudo rm -f", *(f"{snapshot.place.records}/{name}" for name in names)])
        else:  # named by somebody who may wish to see what a shell makes of it
            mend = (
                f"as root: ls -lb {snapshot.place.records}, and remove his files by hand: a shell might run their names"
            )
        yield Trouble(
            f"{format_count(len(names), 'record')} of user {user_name(uid)}, of dead processes: in nobody's way, "
            "removed by his next lease, or one of root's",
            mend,
        )


def _named(pid: int) -> str:
    return f"process {pid} ({processes.name(pid)}, user {user_name(processes.owner(pid))})"
