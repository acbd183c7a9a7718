"""Where this process stands in the control-group hierarchies, below any root; reads files and knows no limits.

Formats: proc_pid_cgroup(5), proc_pid_mountinfo(5); kernel Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .sysfs import read_text


@dataclass(frozen=True, slots=True)
class Group:
    """One group: ``version`` is 1, 2, or 0 for the cpuset file system before cgroups; ``path`` starts at the root."""

    version: int
    path: str


def groups(root: str, controller: str) -> tuple[Group, ...]:
    """The groups that can limit this process's ``cpu``, ``cpuset`` or ``memory``, each followed by its ancestors.

    On a hybrid system (version 1 and 2 mounted beside each other) both lines are listed; a file that a group does not
    have is no limit. Groups above the mount point, outside the container, cannot be seen.
    """
    found: list[Group] = []
    memberships = _memberships(root)
    for mount in _mounts(root):
        path = None
        if mount.version == 2:
            path = memberships.get("")
        elif controller in mount.controllers:
            path = memberships.get(controller)
        if path is not None:
            found += [Group(mount.version, where) for where in _line(mount, path)]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class _Mount:
    version: int
    controllers: frozenset[str]
    top: str
    """The group that lies at the mount point."""
    point: str


def _memberships(root: str) -> dict[str, str]:
    """The path of this process's group by controller; ``""`` is the unified hierarchy."""
    found: dict[str, str] = {}
    for line in (read_text(root, "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            for controller in controllers.split(","):
                found.setdefault(controller, path)
    cpuset = read_text(root, "proc/self/cpuset")
    if cpuset:  # all that kernels before cgroups have
        found.setdefault("cpuset", cpuset)
    return found


def _mounts(root: str) -> list[_Mount]:
    mountinfo = read_text(root, "proc/self/mountinfo")
    if mountinfo is not None:
        return [mount for line in mountinfo.splitlines() if (mount := _mount_of_mountinfo(line))]
    found = []
    for line in (read_text(root, "proc/self/mounts") or read_text(root, "proc/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) >= 4 and (mount := _mount(fields[2], fields[3], "/", fields[1])):
            found.append(mount)
    return found


def _mount_of_mountinfo(line: str) -> _Mount | None:
    """``36 35 98:0 /top /point rw,noatime master:1 - cgroup cgroup rw,cpu,cpuacct``"""
    before, dash, after = line.partition(" - ")
    left, right = before.split(), after.split()
    if not dash or len(left) < 5 or len(right) < 2:
        return None
    return _mount(right[0], right[2] if len(right) > 2 else "", left[3], left[4])


def _mount(kind: str, options: str, top: str, point: str) -> _Mount | None:
    version = {"cpuset": 0, "cgroup": 1, "cgroup2": 2}.get(kind)
    if version is None:
        return None
    controllers = frozenset(["cpuset"]) if version == 0 else frozenset(options.split(","))
    return _Mount(version, controllers, unescape(top), unescape(point))


def unescape(path: str) -> str:
    r"""A path as it is; in ``/proc/PID/mountinfo`` and ``mounts`` spaces and the like are written ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), path)


def _line(mount: _Mount, path: str) -> list[str]:
    """The group at ``path`` and its ancestors down to the mount point, the nearest first."""
    parts, top, base = _parts(path), _parts(mount.top), _parts(mount.point)
    if parts[: len(top)] == top:
        parts = parts[len(top) :]
    return ["/".join(base + parts[:depth]) for depth in range(len(parts), -1, -1)]


def _parts(path: str) -> list[str]:
    """``..`` stands for what lies outside a cgroup namespace, and cannot be followed."""
    return [part for part in path.split("/") if part not in ("", ".", "..")]
