"""The lease that this process runs under, as its record tells: what may be divided here is that, and no more."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..cpuset import CpuSet
from ..host import processes
from ..host.limits import Limits, Rule
from ..machine import Machine
from . import records
from .claims import Room
from .place import LEASE_VARIABLE, records_of
from .pools import memory_pools
from .records import Holding

if sys.platform == "win32":
    from ..host.windows_folder import Folder
else:
    from ..host.folder import Folder
if TYPE_CHECKING:
    from ..host.gpus import Gpu


def outer_leases() -> list[Holding]:
    """The lease of ``QCTHREADS_LEASE``, where somebody holds it; of a worker, which goes from one to the next, all."""
    mark = os.environ.get(LEASE_VARIABLE, "")
    return list(_read(map(Path, records_of(mark)), of_user=True)) if mark else []


def within(outer: Sequence[Holding], machine: Machine, limits: Limits) -> Limits:
    """``limits``, and of the CPUs and the memory no more than those of ``outer``; all where there are none.

    Where ``outer`` have no memory, theirs is the share of their PUs in what nobody in their book has leased.
    """
    if not outer:
        return limits
    source = f"{LEASE_VARIABLE}={os.environ.get(LEASE_VARIABLE, '')}"
    cpus = CpuSet(cpu for holding in outer for cpu in holding.cpus)
    memory_bytes = sum(holding.memory_bytes for holding in outer)
    if not memory_bytes:
        reserved = CpuSet(cpu for holding in outer for cpu in holding.reserved)
        memory_bytes = _unleased(limits) * len(reserved) // max(len(reserved), len(machine.cpus_online))
    return limits.within(
        [Rule("outer lease", source, cpus=cpus), Rule("outer lease", source, memory_bytes=memory_bytes)]
    )


def gpus_within(outer: Sequence[Holding], gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those of ``gpus`` that ``outer`` have."""
    return tuple(gpu for gpu in gpus if not outer or any(gpu.index in holding.gpus for holding in outer))


def _unleased(limits: Limits) -> int:
    """What all leases in the book of the outer one leave of the memory, by the pool that has least."""
    room = Room(0)
    for path in records_of(os.environ.get(LEASE_VARIABLE, ""))[:1]:
        for holding in _read(Path(path).parent.iterdir(), of_user=False):
            room.take(0, (), holding.draws)
    return max(0, min(room.left(pool, holds) for pool, holds in memory_pools(limits.rules).items()))


def _read(paths: Iterable[Path], *, of_user: bool) -> Iterator[Holding]:
    """Those that tell of a lease, ``of_user``: of this one, or of root, whose word counts for him."""
    for path in paths:
        with contextlib.suppress(OSError), contextlib.closing(Folder(path.parent)) as folder:  # given back meanwhile
            text, uid = folder.read(path.name)
            told = records.parse(path.name, text, uid)
            if isinstance(told, Holding) and (not of_user or uid in (0, processes.owner(os.getpid()))):
                yield told
