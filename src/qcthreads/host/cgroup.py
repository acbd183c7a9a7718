"""Where a process stands in the control-group hierarchies, below any root; reads files and knows no limits.

Formats: proc_pid_cgroup(5), proc_pid_mountinfo(5); kernel Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import os
import re

from ..light import dataclass
from .sysfs import read_text


@dataclass(frozen=True, slots=True)
class Group:
    """One group: ``version`` is 1, 2, or 0 for the cpuset file system before cgroups; ``path`` starts at the root."""

    version: int
    path: str


class ControlGroups:
    """The groups of a process, by default of this one, as ``proc`` below ``root`` tells them; read when made."""

    def __init__(self, root: str, process: str = "self") -> None:
        self.root = root
        self._memberships = _memberships(root, process)
        self._mounts = _mounts(root)

    def line(self, controller: str) -> tuple[Group, ...]:
        """The groups that can limit the process's ``cpu``, ``cpuset`` or ``memory``, each followed by its ancestors.

        On a hybrid system (version 1 and 2 mounted beside each other) both lines are listed; a file that a group does
        not have is no limit. A hierarchy may be mounted in several places, whole or in part; of each group the first
        place that is there counts, and mounts of groups that are not its are left out. Groups above every mount,
        outside the container, cannot be seen.
        """
        places: dict[tuple[int, int, tuple[str, ...]], list[str]] = {}
        for mount in self._mounts:
            path = None
            if mount.version == 2:
                path = self._memberships.get("")
            elif controller in mount.controllers:
                path = self._memberships.get(controller)
            if path is not None:
                for (up, down), place in _line(mount, path):
                    places.setdefault((mount.version, up, down), []).append(place)
        return tuple(Group(version, _first_there(self.root, at)) for (version, _, _), at in places.items())


def _first_there(root: str, places: list[str]) -> str:
    if len(places) > 1:
        for place in places:
            if os.path.isdir(os.path.join(root, place)):  # noqa: PTH112, PTH118 - a Path costs several times the look itself
                return place
    return places[0]


@dataclass(frozen=True, slots=True)
class _Mount:
    version: int
    controllers: frozenset[str]
    top: str
    """The group that lies at the mount point."""
    point: str


def _memberships(root: str, process: str) -> dict[str, str]:
    """The path of the process's group by controller; ``""`` is the unified hierarchy."""
    found: dict[str, str] = {}
    for line in (read_text(root, f"proc/{process}/cgroup") or "").split("\n"):
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            for controller in controllers.split(","):
                found.setdefault(controller, path)
    cpuset = read_text(root, f"proc/{process}/cpuset")
    if cpuset:
        found.setdefault("cpuset", cpuset)  # all that kernels before cgroups have
        if len(found) == 1:  # a recording of this file alone: the group may be one of version 2
            found[""] = cpuset
    return found


def _mounts(root: str) -> list[_Mount]:
    mountinfo = read_text(root, "proc/self/mountinfo")
    if mountinfo is not None:
        return [mount for line in mountinfo.split("\n") if (mount := _mount_of_mountinfo(line))]
    found = []
    for line in (read_text(root, "proc/self/mounts") or read_text(root, "proc/mounts") or "").split("\n"):
        fields = line.split(" ")
        if len(fields) >= 4 and (mount := _mount(fields[2], fields[3], "/", fields[1])):
            found.append(mount)
    return found


def _mount_of_mountinfo(line: str) -> _Mount | None:
    """``36 35 98:0 /top /point rw,noatime master:1 - cgroup cgroup rw,cpu,cpuacct``"""
    if " - c" not in line:  # most lines
        return None
    before, dash, after = line.partition(" - ")
    left, right = before.split(" "), after.split(" ")  # split() would cut names at bytes that are spaces in Latin-1
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
    if "\\" not in path:
        return path
    return re.sub(r"\\([0-3][0-7]{2})", lambda match: chr(int(match.group(1), 8)), path)


def _line(mount: _Mount, path: str) -> list[tuple[tuple[int, tuple[str, ...]], str]]:
    """The group at ``path`` and its ancestors down to the mount point, the nearest first: where in the hierarchy, and
    the directory below the root. Empty where the mount shows a part of the hierarchy that we are not in.
    """
    (top_up, top), (up, down) = _place(mount.top), _place(path)
    base = _name("/".join(part for part in mount.point.split("/") if part not in ("", ".", "..")))
    if top_up > up and not top:  # an ancestor outside our cgroup namespace: the names in between are not told
        return [((top_up, ()), base)]
    if top_up != up or down[: len(top)] != top:
        return []
    below = [(down[:depth], down[len(top) : depth]) for depth in range(len(down), len(top) - 1, -1)]
    return [((up, whole), "/".join([base, *map(_name, rest)])) for whole, rest in below]


def _place(path: str) -> tuple[int, tuple[str, ...]]:
    """How many levels above our cgroup namespace's root (leading ``..``), and the names from there."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return up, tuple(part for part in parts[up:] if part != "..")


def _name(path: str) -> str:
    """Of bytes that were read as Latin-1, as ``open`` takes it."""
    return os.fsdecode(path.encode("latin-1", "replace"))
