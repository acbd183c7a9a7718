"""The one ledger and the one book of this process, made at first use; everything else can be had without them."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractAsyncContextManager
from functools import cache

from ..cpuset import CpuSet
from .book import LeaseBook
from .lease import Lease
from .ledger import Ledger, warn
from .place import Place, find_place

_lock = threading.RLock()


def node_ledger() -> Ledger:
    """What all processes share that share a place with this one; where none can be shared, the log says so, once."""
    with _lock:
        return _ledger(find_place())


def process_book() -> LeaseBook:
    """The one book of this process, over everything its limits allow; read at the first call."""
    with _lock:
        return _process_book(os.getpid())


def lease(
    threads: int,
    memory_bytes: int = 0,
    gpus: int = 0,
    *,
    wait: bool = True,
    timeout: float | None = None,
    near: CpuSet | None = None,
    exclusive_cores: bool = True,
) -> Lease:
    """Lease PUs of this process's own limits that nobody else on the node holds; see :meth:`LeaseBook.acquire`."""
    return process_book().acquire(
        threads, memory_bytes, gpus, wait=wait, timeout=timeout, near=near, exclusive_cores=exclusive_cores
    )


def lease_async(
    threads: int,
    memory_bytes: int = 0,
    gpus: int = 0,
    *,
    wait: bool = True,
    timeout: float | None = None,
    near: CpuSet | None = None,
    exclusive_cores: bool = True,
) -> AbstractAsyncContextManager[Lease]:
    """:func:`lease` for asyncio: ``async with lease_async(4) as lease:``; cancelling it leaves nothing behind."""
    return process_book().acquire_async(
        threads, memory_bytes, gpus, wait=wait, timeout=timeout, near=near, exclusive_cores=exclusive_cores
    )


@cache
def _ledger(place: Place) -> Ledger:
    if place.path is None:
        warn("leases are counted in this process alone: %s", place.why)
        return Ledger()
    from .shared import SharedLedger

    return SharedLedger(place)


@cache
def _process_book(pid: int) -> LeaseBook:  # noqa: ARG001 (a fork has nothing of its parent's)
    from ..host import read_machine
    from ..host.gpus import read_gpus
    from ..host.limits import read_limits

    return LeaseBook(read_machine(), read_limits(), gpus=read_gpus(), busy="avoid", ledger=node_ledger())
