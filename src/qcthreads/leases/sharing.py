"""As root: the directory in which all users of a node share one book of leases; says what is wrong with one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError, MachineError
from .place import CPU_LOCK, DOOR, GPU_LOCK, LOCKS, NO_DIRECTORY, RECORDS, because, judge, require

_IS_ANOTHER = (errno.ENOTDIR, errno.ELOOP)


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
            f"{path} cannot be made: {because(error)}; remove what is in the way, or make the directory above it"
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
            require(str(part), owner=0, others_write=mode == 0o1777)
        except PermissionError as error:
            yield str(error), f"sudo chown root:root {part} && sudo chmod {mode:o} {part}"
        except OSError as error:
            yield because(error), completes
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
            raise NotADirectoryError(NO_DIRECTORY.format(path)) from error
        raise
    try:
        judge(str(path), os.fstat(descriptor), owner=0, others_write=mode == 0o1777)
        os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
