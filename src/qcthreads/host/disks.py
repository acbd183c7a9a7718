"""The file system that a directory is on: what is free there, and whether it is memory; reads only."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from .sysfs import read_text

_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Where files go."""

    kind: str
    """As the kernel calls it; empty: not known."""
    free_bytes: int | None
    """``None``: not known, as where the kernel counts nothing (ramfs, a tmpfs without limit)."""

    @property
    def in_memory(self) -> bool:
        """What is written there takes memory, and no disk."""
        return self.kind in _IN_MEMORY

    @property
    def limit_bytes(self) -> int | None:
        """What plans may have of it: no limit is 0, so that of a full one it is 1, and who needs some is refused."""
        return None if self.free_bytes is None else max(1, self.free_bytes)


def file_system(directory: Path) -> FileSystem:
    """Of a directory that is there. Raises OSError where it cannot be looked at."""
    usage = shutil.disk_usage(directory)
    free_bytes = usage.free if usage.total else None
    if sys.platform != "linux":
        return FileSystem("", free_bytes)
    device = directory.stat().st_dev
    mounts = read_text("/", "proc/self/mountinfo") or ""
    return FileSystem(kind_of(f"{os.major(device)}:{os.minor(device)}", mounts), free_bytes)


def kind_of(device: str, mountinfo: str) -> str:
    """Of the file system with this device number; see proc_pid_mountinfo(5). Empty where it is not listed."""
    for line in mountinfo.splitlines():
        mount, _, rest = line.partition(" - ")
        if rest and mount.split()[2:3] == [device]:
            return rest.split()[0]
    return ""
