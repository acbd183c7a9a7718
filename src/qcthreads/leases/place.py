"""Where the book of leases is kept, and with whom it is shared; makes what belongs to this user, trusts only root's.

A root-made directory is shared by all users: root's are the directory, the files that are locked and the directory of
records; in that, which is sticky, everybody makes and removes records of his own. Without one, a directory of this user
is shared by his processes; without that, a book is this process's alone. Nothing is followed that could lead elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ..cpuset import CpuSet
from ..errors import InputError, LeaseError, MachineError
from ..light import dataclass

if sys.platform == "win32":
    from ..host.windows_folder import is_link

SHARED = Path("/var/run/qcthreads" if sys.platform == "darwin" else "/run/qcthreads")
"""What root makes for all users; of no meaning on Windows."""
VARIABLE = "QCTHREADS_LEASES"
"""Environment variable that names another directory; ``process``: none."""
LEASE_VARIABLE = "QCTHREADS_LEASE"
"""Environment variable of everything that runs under a lease: whose, and which."""
LOCKS, RECORDS, DOOR = "locks", "records", "door"
CPU_LOCK, GPU_LOCK = "cpu{}".format, "gpu{}".format
_MARK = re.compile(r"[0-9a-f]{32}(\.[0-9]{1,18})?")
_CACHE_OF_USER = 65538  # _CS_DARWIN_USER_CACHE_DIR in macOS's unistd.h; in /tmp old files are removed, and their locks
_NO_DIRECTORY = "{} is no directory of its own, or a link to one"
_IS_ANOTHER = (errno.ENOTDIR, errno.ELOOP)
_OVERFLOW_UID = 65534  # what a user namespace shows for owners that it has no number for, root outside among them


@dataclass(frozen=True, slots=True)
class Place:
    """A book's place. ``kind``: ``node`` is shared by all users, ``user`` by one's processes, ``process`` by nobody."""

    kind: Literal["node", "user", "process"]
    path: Path | None
    why: str
    """Why it is this one, for messages."""

    @property
    def locks(self) -> Path:
        """The directory of the files that are locked."""
        assert self.path is not None
        return self.path / LOCKS

    @property
    def records(self) -> Path:
        """The directory of what holders and waiters tell of themselves."""
        assert self.path is not None
        return self.path / RECORDS


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
    named = environ.get(VARIABLE, "")
    if named == "process":
        return Place("process", None, f"{VARIABLE}=process")
    if named and not Path(named).is_absolute():
        raise InputError(
            f"{VARIABLE}={named} would be another directory wherever somebody works: write it from the root, as "
            f"{Path(named).absolute()}"
        )
    outer, refusals = environ.get(LEASE_VARIABLE, ""), []
    if outer and records_of(outer, environ):
        return _within(outer, environ, create=create)
    if outer:  # it came along from somewhere: a batch job's submission, a terminal that lives on
        refusals.append(f"{LEASE_VARIABLE}={outer} names no lease that anybody holds")
    if named:
        try:
            if is_shared(Path(named)):
                return _of_root(Path(named))
            return _of_user(Path(named), "; ".join([*refusals, f"{VARIABLE}={named}"]), create=create)
        except OSError as error:
            raise InputError(
                f"{VARIABLE}={named}: {_because(error)}; name a directory of yours, or one that "
                "`qcthreads leases --share` made"
            ) from error
    try:
        return _of_root(SHARED)
    except FileNotFoundError:
        windows = sys.platform == "win32"
        refusals.append("on Windows each user has a book of his own" if windows else f"there is no {SHARED}")
    except OSError as error:
        refusals.append(_because(error))
    for candidate in _homes(environ):
        try:
            return _of_user(candidate, "; ".join(refusals), create=create)
        except OSError as error:
            refusals.append(_because(error))
    return Place("process", None, "; ".join(refusals))


def nested(mark: str, environ: Mapping[str, str] | None = None) -> list[Path]:
    """Where those share who run under the lease ``mark``, and divide its CPUs: removed when that has ended."""
    environ = os.environ if environ is None else environ
    return [home.with_name(f"{home.name}-in-{mark}") for home in _homes(environ)] if _MARK.fullmatch(mark) else []


def records_of(mark: str, environ: Mapping[str, str] | None = None) -> list[Path]:
    """What tells of the lease ``mark``, or of those of the holder ``mark``, in the book that it is in."""
    if not _MARK.fullmatch(mark):
        return []
    for home in (SHARED, *_homes(os.environ if environ is None else environ)):
        for records in (home / RECORDS, *home.parent.glob(f"{home.name}-in-*/{RECORDS}")):
            with contextlib.suppress(OSError):
                found = [path for path in records.iterdir() if path.name.startswith((f"l{mark}.", f"l{mark}-"))]
                if found:
                    return found
    return []


def remove_nested(mark: str) -> None:
    """Remove what those shared who ran under the lease ``mark``, which has ended."""
    for path in nested(mark):
        if path.is_dir():
            import shutil  # with bz2, lzma and zlib, which a lease without nested ones can do without

            shutil.rmtree(path, ignore_errors=True)


def make(place: Place) -> None:
    """Make sure that ``place`` is there, and still what it was found to be. LeaseError where it is not."""
    assert place.path is not None
    try:
        _of_user(place.path, "", create=True) if place.kind == "user" else _of_root(place.path)
    except OSError as error:
        raise LeaseError(f"the book of leases cannot be used: {_because(error)}") from error


def is_shared(path: Path) -> bool:
    """Whether it was made to be shared: then a user may not fall back to calling it his own."""
    try:
        return bool((path / RECORDS).lstat().st_mode & stat.S_ISVTX)
    except OSError:
        return False


@lru_cache
def cpu_locks(bits: int) -> tuple[str, ...]:
    """What is locked for the PUs of these bits; kept, for leases of the same PUs come again and again."""
    return tuple(map(CPU_LOCK, CpuSet.from_bits(bits)))


def lock_names() -> list[str]:
    """What is locked on this machine: every CPU that it may ever have, also those added while it runs, and GPUs."""
    from ..host.gpus import read_gpus
    from ..host.sysfs import CPU_DIRECTORY, read_cpus

    possible = read_cpus("/", None, f"{CPU_DIRECTORY}/possible") or range(os.cpu_count() or 1)
    return [*map(CPU_LOCK, possible), *(GPU_LOCK(gpu.index) for gpu in read_gpus({}))]


def share(path: Path, names: Iterable[str]) -> None:
    """As root: make or complete the directory that all users share, with files of these ``names`` to be locked.

    Raises MachineError for anybody else, and where something else is in the way.
    """
    if sys.platform == "win32":
        raise MachineError(f"{path} cannot be made: on Windows each user has a book of leases of his own")
    if os.geteuid() != 0:
        raise MachineError(f"{path} is to be shared by all users, so root has to make it; run this as root")
    inside = set(os.listdir(path)) if path.is_dir() else set()  # noqa: PTH208
    if inside and not inside & {LOCKS, RECORDS}:
        raise MachineError(
            f"{path} is a directory with something else in it; name one for this alone, which is made: {path}/qcthreads"
        )
    try:
        with contextlib.ExitStack() as opened:
            directories: dict[Path, int] = {}
            for part, mode in _parts(path):
                directories[part] = _made(part, mode, directories.get(part.parent))
                opened.callback(os.close, directories[part])
            for name in (DOOR, *names):
                flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(name, flags, 0o444, dir_fd=directories[path / LOCKS])
                os.fchmod(descriptor, 0o444)
                os.close(descriptor)
    except OSError as error:
        raise MachineError(
            f"{path} cannot be made: {_because(error)}; remove what is in the way, or make the directory above it"
        ) from error


def tmpfiles(path: Path, names: Iterable[str]) -> str:
    """What makes the same at every boot: lines for a file in /etc/tmpfiles.d, from the one that lies beside this."""
    if not re.fullmatch(r"/[\w./+-]+", str(path), re.ASCII):
        raise InputError(f"{path}: in tmpfiles.d a path is written from the root, in letters, digits and ._+-/")
    text = Path(__file__).with_name("tmpfiles.conf").read_text(encoding="utf-8").replace("@DIRECTORY@", str(path))
    before, each = text.rstrip().rsplit("\n", 1)
    return "\n".join([before, *(each.replace("@LOCK@", name) for name in (DOOR, *names))]) + "\n"


def defects(path: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What keeps the directory at ``path`` from being shared by all users, each with the command that mends it."""
    completes = f"sudo qcthreads leases --share {path}"
    for part, mode in _parts(path):
        try:
            _require(part, owner=0, others_write=mode == 0o1777)
        except PermissionError as error:
            yield str(error), f"sudo chown root:root {part} && sudo chmod {mode:o} {part}"
        except OSError as error:
            yield _because(error), completes
            return
        else:
            found = stat.S_IMODE(part.lstat().st_mode)
            if mode & ~found:
                yield f"{part} is not open to all users (mode {found:o})", f"sudo chmod {mode:o} {part}"
    there = {entry.name for entry in os.scandir(path / LOCKS) if entry.stat(follow_symlinks=False).st_mode & 0o004}
    missing = [name for name in (DOOR, *names) if name not in there]
    if missing:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        yield f"{path / LOCKS} lacks {shown}, or they are not for all to read: nobody can lease these", completes


def _parts(path: Path) -> tuple[tuple[Path, int], ...]:
    """The directories that root makes, with their modes."""
    return (path, 0o755), (path / LOCKS, 0o755), (path / RECORDS, 0o1777)


def _made(path: Path, mode: int, inside: int | None) -> int:
    """Root's directory ``path``, made or there, open: judged and changed by its descriptor, whatever takes its name.

    ``inside`` is its parent's, where that was made by this as well.
    """
    if sys.platform == "win32":
        raise NotADirectoryError(f"{path} cannot be shared on Windows")
    name = path if inside is None else Path(path.name)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=inside)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    except OSError as error:
        if error.errno in _IS_ANOTHER:
            raise NotADirectoryError(_NO_DIRECTORY.format(path)) from error
        raise
    try:
        _judge(path, os.fstat(descriptor), owner=0, others_write=mode == 0o1777)
        os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _of_root(path: Path) -> Place:
    if sys.platform == "win32":
        raise FileNotFoundError(f"there is no {path} for all users on Windows")
    for part in (path, path / LOCKS):
        _require(part, owner=0, others_write=False)
    _require(path / RECORDS, owner=0, others_write=True)
    os.close(os.open(path / LOCKS / DOOR, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    if not os.access(path / RECORDS, os.W_OK | os.X_OK):
        raise PermissionError(f"{path / RECORDS} may not be written by this user")
    return Place("node", path, f"root made {path} for all users")


def _of_user(path: Path, why: str, *, create: bool) -> Place:
    if not create and not os.path.lexists(path):
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(
                f"{path} cannot be made: this user may not write into {path.parent}, or it is missing"
            )
        return Place("user", path, why)
    for part in (path, path / LOCKS, path / RECORDS):
        if create:
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode=0o700)
        if create or os.path.lexists(part):
            _require(part, owner=_user(), others_write=False)
    return Place("user", path, why)


def _within(outer: str, environ: Mapping[str, str], *, create: bool) -> Place:
    """Of those who run under one lease themselves: its CPUs are theirs, and nobody else's to give."""
    why = f"this runs under a lease ({LEASE_VARIABLE}={outer}), whose CPUs are divided here"
    for candidate in nested(outer, environ):
        with contextlib.suppress(OSError):
            return _of_user(candidate, why, create=create)
    return Place("process", None, why)


def _homes(environ: Mapping[str, str]) -> list[Path]:
    named, given = environ.get(VARIABLE), environ.get("XDG_RUNTIME_DIR")
    homes = [Path(named)] if named else [Path(given, "qcthreads")] if given and Path(given).is_absolute() else []
    if sys.platform == "win32":
        local = environ.get("LOCALAPPDATA")
        return [*homes, *([Path(local, "qcthreads")] if local else [])]
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, ValueError):
            homes += [Path(cache, "qcthreads") for cache in [os.confstr(_CACHE_OF_USER)] if cache]
    return [*homes, Path("/dev/shm" if sys.platform == "linux" else "/tmp", f"qcthreads-{os.geteuid()}")]


def _user() -> int:
    if sys.platform == "win32":
        return -1
    return os.geteuid()


def _require(path: Path, *, owner: int, others_write: bool) -> None:
    """OSError unless it is a directory, no link, of ``owner``'s, that others may write into only if it is sticky.

    Whose it is and who may write into it is for the rights on the user's profile to say on Windows.
    """
    _judge(path, path.lstat(), owner=owner, others_write=others_write)


def _judge(path: Path, found: os.stat_result, *, owner: int, others_write: bool) -> None:
    if not stat.S_ISDIR(found.st_mode) or (sys.platform == "win32" and is_link(found)):
        raise NotADirectoryError(_NO_DIRECTORY.format(path))
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
        lines = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    return not any(line.split()[1] == "0" for line in lines)


def _because(error: OSError) -> str:
    """Of the system's errors the words, of ours the message."""
    return str(error) if error.strerror is None else f"{error.filename}: {error.strerror}"
