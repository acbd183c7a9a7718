"""``qcthreads leases``: who holds what of this node and who waits for it; looks, and holds up nobody."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..host.processes import user_name
from ..leases.place import SHARED, VARIABLE, Place, find_place
from ..leases.records import Owner
from ..leases.sharing import lock_names, share, tmpfiles
from ..leases.snapshot import Held, Queued, Snapshot, read_book
from ..leases.strays import Stray
from ..units import format_count, format_size
from .render import print_json, print_table, seconds

_LEASE = ("user", "pid", "state", "CPUs", "memory", "GPUs", "age", "run", "command")
_WAITING = ("user", "pid", "asks for", "waits", "held by", "behind", "command")
_SHORTEST_COMMAND = 16  # columns; with fewer left for it, each line of a table becomes a paragraph
_MOST_NAMED = 4  # processes in one cell

_EPILOG = f"""states of a lease:
  running   its holder lives
  outlived  its holder has ended; what he started keeps the CPUs, and is named below
  strays    the same, found by looking at all processes
  dead      nothing is left of it: whoever asks next gets the CPUs

--share makes, or completes, a directory that all users of the node share; run it as root, and again after GPUs were
added. In DIR/locks there is a file for every CPU that the machine can ever have (/sys/devices/system/cpu/possible),
cpu0 and so on, and for every GPU, gpuN, as /dev/nvidiaN and /dev/dri/renderDN count; the kernel's locks on them are
the leases. {VARIABLE}=DIR tells qcthreads of a DIR other than {SHARED}.

examples:
  qcthreads leases
  qcthreads leases --json
  sudo qcthreads leases --share
  qcthreads leases --tmpfiles | sudo tee /etc/tmpfiles.d/qcthreads.conf   # the same at every boot"""


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``leases``."""
    parser.epilog = _EPILOG
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="one JSON document on standard output")
    for option, text in (
        ("--share", "as root: make the directory that all users share"),
        ("--tmpfiles", "print the lines for tmpfiles.d(5) that make it at every boot"),
    ):
        what.add_argument(
            option, metavar="DIR", nargs="?", const=Path(SHARED), type=Path, help=f"{text}; default: {SHARED}"
        )


def execute(args: Namespace) -> int:
    """Look at the book and print it; or make the shared one."""
    if args.share:
        path = args.share.absolute()
        share(path, lock_names())
        whose = "" if path == Path(SHARED) else f" in whose environment is {VARIABLE}={path}"
        print(f"{path} is shared from now on by all users{whose}", file=sys.stderr)
    elif args.tmpfiles:
        print(tmpfiles(args.tmpfiles.absolute(), lock_names()), end="")
    else:
        snapshot = read_book(find_place(create=False))
        if args.json:
            print_json(_document(snapshot))
        else:
            _print(snapshot)
    return 0


def place_in_words(place: Place) -> str:
    """Where the book is, and who shares it."""
    if place.path is None:
        return f"none is shared, every process counts its own leases ({place.why})"
    if place.kind == "node":
        return f"{place.path}, shared by all users ({place.why})"
    return f"{place.path}, shared by the processes of one user ({place.why})"


def place_document(place: Place) -> dict[str, Any]:
    """The same as JSON data."""
    return {"kind": place.kind, "path": place.path, "why": place.why}


def lease_document(lease: Held, now_s: float) -> dict[str, Any]:
    """A lease as JSON data, at ``now_s`` seconds since the epoch."""
    holding = lease.holding
    return {
        **_owner_document(holding.owner, lease.pid),
        "state": lease.state,
        "cpus": holding.cpus,
        "reserved": holding.reserved,
        "memory_bytes": holding.memory_bytes,
        "gpus": holding.gpus,
        "age_s": max(0.0, now_s - lease.since_s),
        "run": holding.run or None,
        "survivors": [{"user": user_name(one.uid), "pid": one.pid, "command": one.command} for one in lease.survivors],
    }


def _document(snapshot: Snapshot) -> dict[str, Any]:
    now_s = time.time()
    return {
        "place": place_document(snapshot.place),
        "shut": snapshot.shut,
        "door_pid": snapshot.door_pid,
        "leases": [lease_document(lease, now_s) for lease in snapshot.leases],
        "waiting": [_waiting_document(one, now_s) for one in snapshot.queue],
        "strays": [_stray_document(stray) for stray in snapshot.strays],
        "locked_without_record": [{"lock": name, "pid": pid} for name, pid in snapshot.locked],
        "unreadable": [{"record": name, "user": user_name(uid)} for name, uid in snapshot.unreadable],
    }


def _waiting_document(one: Queued, now_s: float) -> dict[str, Any]:
    claim = one.waiting.claim
    return {
        **_owner_document(one.waiting.owner, one.pid),
        "threads": claim.threads,
        "memory_bytes": claim.memory_bytes,
        "gpus": claim.gpus,
        "waited_s": max(0.0, now_s - one.since_s),
        "held_by": _pids(one.held_by),
        "behind": _pids(one.behind),
    }


def _owner_document(owner: Owner, pid: int | None) -> dict[str, Any]:
    return {"user": user_name(owner.uid), "uid": owner.uid, "pid": pid, "command": owner.command}


def _stray_document(stray: Stray) -> dict[str, Any]:
    return {
        "user": user_name(stray.uid),
        "pid": stray.pid,
        "name": stray.name,
        "cpus": stray.holding.cpus,
        "holder": stray.holding.owner.pid,
    }


def _pids(those: Iterable[Held | Queued]) -> list[int | None]:
    return list(dict.fromkeys(one.pid for one in those))


def _print(snapshot: Snapshot) -> None:
    print(f"book of leases: {place_in_words(snapshot.place)}")
    if snapshot.shut:
        who = f"process {snapshot.door_pid}" if snapshot.door_pid else "a process that cannot be seen from here"
        print(f"it is kept shut by {who}: what follows may be out of date; see `qcthreads doctor`")
    now_s = time.time()
    if snapshot.leases:
        _print_rows("Leases", _LEASE, [_lease_row(lease, now_s) for lease in snapshot.leases])
    else:
        print("nobody holds a lease")
    if snapshot.queue:
        _print_rows("Who waits, the first first", _WAITING, [_waiting_row(one, now_s) for one in snapshot.queue])
    for stray in snapshot.strays:
        print(stray)
    for lease in snapshot.leases:
        for one in lease.survivors if lease.state == "outlived" else ():
            who = f"process {one.pid} ({one.command}, user {user_name(one.uid)})"
            print(f"{who} keeps CPUs {lease.holding.cpus} after the end of process {lease.holding.owner.pid}")
    for name, pid in snapshot.locked:
        print(f"{name} is held by {f'process {pid}' if pid else 'a process that cannot be seen'}, without a record")
    if snapshot.unreadable:
        print(f"{format_count(len(snapshot.unreadable), 'record')} of no use; whoever leases next removes his own")


def _lease_row(lease: Held, now_s: float) -> tuple[str, ...]:
    holding = lease.holding
    return (
        lease.user,
        str(lease.pid or "-"),
        lease.state,
        str(holding.cpus),
        format_size(holding.memory_bytes) if holding.memory_bytes else "-",
        ",".join(map(str, holding.gpus)) or "-",
        seconds(max(0.0, now_s - lease.since_s)),
        holding.run or "-",
        holding.owner.command,
    )


def _waiting_row(one: Queued, now_s: float) -> tuple[str, ...]:
    claim = one.waiting.claim
    asks = [format_count(claim.threads, "CPU")]
    asks += [format_size(claim.memory_bytes)] if claim.memory_bytes else []
    asks += [format_count(claim.gpus, "GPU")] if claim.gpus else []
    return (
        user_name(one.waiting.owner.uid),
        str(one.pid or "-"),
        " + ".join(asks),
        seconds(max(0.0, now_s - one.since_s)),
        _some(_pids(one.held_by)),
        _some(_pids(one.behind)),
        one.waiting.owner.command,
    )


def _some(pids: Sequence[int | None]) -> str:
    shown = [str(pid or "unseen") for pid in pids[:_MOST_NAMED]]
    shown += [f"+{len(pids) - _MOST_NAMED}"] if len(pids) > _MOST_NAMED else []
    return " ".join(shown) or "-"


def _print_rows(title: str, columns: Sequence[str], rows: list[tuple[str, ...]]) -> None:
    """A table whose last column is cut to what the terminal has room for; paragraphs where there is next to none."""
    print()
    if not sys.stdout.isatty():
        print_table(title, columns, rows)
        return
    width = shutil.get_terminal_size().columns
    others = (max(len(line[at]) for line in [columns, *rows]) + 2 for at in range(len(columns) - 1))
    room = width - sum(others) - 6  # what rich puts around
    if room >= _SHORTEST_COMMAND:
        print_table(title, columns, [(*row[:-1], _cut(row[-1], room)) for row in rows])
        return
    print(title)
    for row in rows:
        cells = ", ".join(f"{name} {cell}" for name, cell in zip(columns, row, strict=True) if cell != "-")
        print(textwrap.fill(cells, width, initial_indent="  ", subsequent_indent="    "))


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 3]}..."
