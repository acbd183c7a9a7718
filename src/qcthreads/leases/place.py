"""Where the book of leases is kept, and with whom it is shared; makes what belongs to this user, trusts only root's.

A root-made directory is shared by all users: root's are the directory, the files that are locked and the directory of
records; in that, which is sticky, everybody makes and removes records of his own. Without one, a directory of this user
is shared by his processes; without that, a book is this process's alone. Nothing is followed that could lead elsewhere.
"""

# A command that is about to start waits for no `pathlib`, which takes longer to import than all else here.
# ruff: noqa: PTH100, PTH102, PTH112, PTH117, PTH118, PTH120, PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache

from ..cpuset import CpuSet
from ..errors import InputError, LeaseError
from ..light import dataclass

if sys.platform == "win32":
    from ..host.windows_folder import is_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

SHARED = "/var/run/qcthreads" if sys.platform == "darwin" else "/run/qcthreads"
"""What root makes for all users; of no meaning on Windows."""
VARIABLE = "QCTHREADS_LEASES"
"""Environment variable that names another directory; ``process``: none."""
LEASE_VARIABLE = "QCTHREADS_LEASE"
"""Environment variable of everything that runs under a lease: whose, and which."""
LOCKS, RECORDS, DOOR = "locks", "records", "door"
CPU_LOCK, GPU_LOCK = "cpu{}".format, "gpu{}".format
_MARK = r"[0-9a-f]{32}(\.[0-9]{1,18})?"
_CACHE_OF_USER = 65538  # _CS_DARWIN_USER_CACHE_DIR in macOS's unistd.h; in /tmp old files are removed, and their locks
NO_DIRECTORY = "{} is no directory of its own, or a link to one"
_OVERFLOW_UID = 65534  # what a user namespace shows for owners that it has no number for, root outside among them


@dataclass(frozen=True, slots=True)
class Place:
    """A book's place. ``kind``: ``node`` is shared by all users, ``user`` by one's processes, ``process`` by nobody."""

    kind: Literal["node", "user", "process"]
    path: str | None
    why: str
    """Why it is this one, for messages."""

    @property
    def locks(self) -> str:
        """The directory of the files that are locked."""
        assert self.path is not None
        return os.path.join(self.path, LOCKS)

    @property
    def records(self) -> str:
        """The directory of what holders and waiters tell of themselves."""
        assert self.path is not None
        return os.path.join(self.path, RECORDS)


def find_place(environ: Mapping[str, str] | None = None, *, create: bool = True) -> Place:
    """The best place that this process may use.

    Parameters
    ----------
    environ
        Where ``QCTHREADS_LEASES`` and ``XDG_RUNTIME_DIR`` are looked for; ``None``: this process's environment.
    create
        Make the user's own directory; else the answer may be one that is not there yet.

    Raises
    ------
    InputError
        ``QCTHREADS_LEASES`` names a directory that cannot be used; the message says why.
    """
    environ = os.environ if environ is None else environ
    named = _of(environ, VARIABLE)
    if named == "process":
        return Place("process", None, f"{VARIABLE}=process")
    if named and not os.path.isabs(named):
        raise InputError(
            f"{VARIABLE}={named} would be another directory wherever somebody works; write it from the root, as "
            f"{os.path.abspath(named)}"
        )
    outer, refusals = environ.get(LEASE_VARIABLE, ""), []
    if outer and records_of(outer, environ):
        return _within(outer, environ, create=create)
    if outer:  # it came along from somewhere: a batch job's submission, a terminal that lives on
        refusals.append(f"{LEASE_VARIABLE}={outer} names no lease that anybody holds")
    if named:
        try:
            if is_shared(named):
                return _of_root(named)
            return _of_user(named, "; ".join([*refusals, f"{VARIABLE}={named}"]), create=create)
        except OSError as error:
            raise InputError(
                f"{VARIABLE}={named}: {because(error)}; name a directory of yours, or one that "
                "`qcthreads leases --share` made"
            ) from error
    try:
        return _of_root(SHARED)
    except FileNotFoundError:
        windows = sys.platform == "win32"
        refusals.append("on Windows each user has a book of his own" if windows else f"there is no {SHARED}")
    except OSError as error:
        refusals.append(because(error))
    for candidate in _homes(environ):
        try:
            return _of_user(candidate, "; ".join(refusals), create=create)
        except OSError as error:
            refusals.append(because(error))
    return Place("process", None, "; ".join(refusals))


def nested(mark: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """Where those share who run under the lease ``mark``, and divide its CPUs: removed when that has ended."""
    environ = os.environ if environ is None else environ
    return [f"{home}-in-{mark}" for home in _homes(environ)] if re.fullmatch(_MARK, mark) else []


def records_of(mark: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """What tells of the lease ``mark``, or of those of the holder ``mark``, in the book that it is in."""
    if not re.fullmatch(_MARK, mark):
        return []
    for home in (SHARED, *_homes(os.environ if environ is None else environ)):
        for book in (home, *_nested_in(home)):
            records = os.path.join(book, RECORDS)
            with contextlib.suppress(OSError):
                found = [name for name in os.listdir(records) if name.startswith((f"l{mark}.", f"l{mark}-"))]
                if found:
                    return [os.path.join(records, name) for name in found]
    return []


def remove_nested(mark: str) -> None:
    """Remove what those shared who ran under the lease ``mark``, which has ended."""
    for path in nested(mark):
        if os.path.isdir(path):
            import shutil  # with bz2, lzma and zlib, which a lease without nested ones can do without

            shutil.rmtree(path, ignore_errors=True)


def own_places(environ: Mapping[str, str]) -> Iterator[Place]:
    """Where this user's processes share a book where root has made none; they need not be there."""
    for home in _homes(environ):
        with contextlib.suppress(OSError):
            yield _of_user(home, "", create=False)


def make(place: Place) -> None:
    """Make sure that ``place`` is there, and still what it was found to be. LeaseError where it is not."""
    assert place.path is not None
    try:
        _of_user(place.path, "", create=True) if place.kind == "user" else _of_root(place.path)
    except OSError as error:
        raise LeaseError(f"the book of leases cannot be used: {because(error)}") from error


def is_shared(path: str) -> bool:
    """Whether it was made to be shared: then a user may not fall back to calling it his own."""
    try:
        return bool(os.lstat(os.path.join(path, RECORDS)).st_mode & stat.S_ISVTX)
    except OSError:
        return False


@lru_cache
def cpu_locks(bits: int) -> tuple[str, ...]:
    """What is locked for the PUs of these bits; kept, for leases of the same PUs come again and again."""
    return tuple(map(CPU_LOCK, CpuSet.from_bits(bits)))


def _of_root(path: str) -> Place:
    if sys.platform == "win32":
        raise FileNotFoundError(f"there is no {path} for all users on Windows")
    place = Place("node", path, f"root made {path} for all users")
    for part in (path, place.locks):
        require(part, owner=0, others_write=False)
    require(place.records, owner=0, others_write=True)
    os.close(os.open(os.path.join(place.locks, DOOR), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    if not os.access(place.records, os.W_OK | os.X_OK):
        raise PermissionError(f"{place.records} may not be written by this user")
    return place


def _of_user(path: str, why: str, *, create: bool) -> Place:
    place = Place("user", path, why)
    if not create and not os.path.lexists(path):
        above = os.path.dirname(path) or "."
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(f"{path} cannot be made: this user may not write into {above}, or it is missing")
        return place
    for part in (path, place.locks, place.records):
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700)
        if create or os.path.lexists(part):
            require(part, owner=_user(), others_write=False)
    return place


def _within(outer: str, environ: Mapping[str, str], *, create: bool) -> Place:
    """Of those who run under one lease themselves: its CPUs are theirs, and nobody else's to give."""
    why = f"this runs under a lease ({LEASE_VARIABLE}={outer}), whose CPUs are divided here"
    for candidate in nested(outer, environ):
        with contextlib.suppress(OSError):
            return _of_user(candidate, why, create=create)
    return Place("process", None, why)


def _nested_in(home: str) -> Iterator[str]:
    """All that :func:`nested` may name beside ``home``."""
    above, name = os.path.split(home)
    with contextlib.suppress(OSError):
        for entry in os.listdir(above or "."):
            if entry.startswith(f"{name}-in-"):
                yield os.path.join(above, entry)


def _homes(environ: Mapping[str, str]) -> list[str]:
    named, given = _of(environ, VARIABLE), _of(environ, "XDG_RUNTIME_DIR")
    homes = [named] if named else [os.path.join(given, "qcthreads")] if os.path.isabs(given) else []
    if sys.platform == "win32":
        local = environ.get("LOCALAPPDATA")
        return [*homes, *([os.path.join(local, "qcthreads")] if local else [])]
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, ValueError):
            homes += [os.path.join(cache, "qcthreads") for cache in [os.confstr(_CACHE_OF_USER)] if cache]
    return [*homes, f"{'/dev/shm' if sys.platform == 'linux' else '/tmp'}/qcthreads-{os.geteuid()}"]


def _of(environ: Mapping[str, str], variable: str) -> str:
    """The directory that a variable names; what lies beside it begins with its name, and so that ends in no slash."""
    named = environ.get(variable, "")
    return os.path.normpath(named) if named else ""


def _user() -> int:
    if sys.platform == "win32":
        return -1
    return os.geteuid()


def require(path: str, *, owner: int, others_write: bool) -> None:
    """OSError unless it is a directory, no link, of ``owner``'s, that others may write into only if it is sticky.

    Whose it is and who may write into it is for the rights on the user's profile to say on Windows.
    """
    judge(path, os.lstat(path), owner=owner, others_write=others_write)


def judge(path: str, found: os.stat_result, *, owner: int, others_write: bool) -> None:
    if not stat.S_ISDIR(found.st_mode) or (sys.platform == "win32" and is_link(found)):
        raise NotADirectoryError(NO_DIRECTORY.format(path))
    if sys.platform == "win32":
        return
    outside = owner == 0 and found.st_uid == _OVERFLOW_UID and _in_user_namespace()
    if found.st_uid != owner and not outside:
        raise PermissionError(f"{path} belongs to user {found.st_uid}, not to {owner}")
    writable = found.st_mode & 0o022
    if writable and not (others_write and found.st_mode & stat.S_ISVTX):
        raise PermissionError(f"others may write into {path} (mode {stat.S_IMODE(found.st_mode):o})")


def _in_user_namespace() -> bool:
    """Whether root outside has no number here, as in an unprivileged container."""
    try:
        with open("/proc/self/uid_map", encoding="utf-8") as file:
            lines = file.readlines()
    except OSError:
        return False
    return not any(line.split()[1] == "0" for line in lines)


def because(error: OSError) -> str:
    """Of the system's errors the words, of ours the message."""
    return str(error) if error.strerror is None else f"{error.filename}: {error.strerror}"
