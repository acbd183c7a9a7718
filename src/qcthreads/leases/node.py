"""The one ledger and the one book of this process, made at first use; everything else can be had without them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import cache

from ..cpuset import CpuSet
from .book import LeaseBook
from .lease import Lease
from .ledger import Ledger, is_bound, ledgers, warn
from .place import LEASE_VARIABLE, Place, find_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..host.limits import Limits
    from ..machine import Machine
    from .records import Holding

_READ_AGAIN_S = 1.0  # to read the limits takes half a millisecond
_lock = threading.RLock()
_books: dict[int, tuple[LeaseBook, float]] = {}


def node_ledger() -> Ledger:
    """What all processes share that share a place with this one; where none can be shared, the log says so, once."""
    with _lock:
        return _ledger(find_place(_environ()))


def node_book(*, ledger: Ledger | None = None, **options: Any) -> LeaseBook:
    """A book over what this process may use: of the lease that it runs under, if any.

    ``ledger``: who else takes part; ``None``: the node's. ``options``: LeaseBook's others.
    """
    from ..host import read_gpus, read_machine

    machine, gpus = read_machine(), read_gpus()
    limits, outer = _limits_and_outer(machine)
    if outer:
        from .outer import gpus_within

        gpus = gpus_within(outer, gpus)
    return LeaseBook(machine, limits, gpus=gpus, ledger=node_ledger() if ledger is None else ledger, **options)


def has_outer_lease(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process runs under somebody else's lease, by ``environ`` or by its own environment."""
    return LEASE_VARIABLE in _environ(environ)


def node_limits(machine: Machine) -> Limits:
    """What this process may use, and of that no more than the lease that it runs under, if any, has."""
    return _limits_and_outer(machine)[0]


def process_book() -> LeaseBook:
    """The one book of this process, over everything its limits allow.

    They are read anew once a second. Where they have changed, the answer is another book; leases of the one before go
    on, and are nobody else's all the same. The mask of a thread that runs under one of them is no limit of the process.
    """
    with _lock:
        book, read_at = _books.get(os.getpid(), (None, 0.0))  # a fork has nothing of its parent's
        if book is None or time.monotonic() - read_at >= _READ_AGAIN_S:
            found = node_book(busy="avoid") if book is None or not is_bound(book.ledger) else book
            book = book if book is not None and _same(book.limits, found.limits) else found
            _books.clear()
            _books[os.getpid()] = book, time.monotonic()
        return book


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
    """Lease PUs of this process's own limits that nobody else on the node holds; see :meth:`LeaseBook.acquire`.

    It binds nothing by itself, for any thread may use it: what is started by its ``popen``, or within its ``bound()``,
    is bound to it. It is held for as long as somebody refers to it.
    """
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


def _limits_and_outer(machine: Machine) -> tuple[Limits, list[Holding]]:
    from ..host.limits import read_limits

    limits = read_limits()
    if not has_outer_lease():
        return limits, []
    from .outer import outer_leases, within

    outer = outer_leases()
    return within(outer, machine, limits), outer


def _environ(environ: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """This process's, without a lease of its own, which may be there for what it is going to start."""
    environ = os.environ if environ is None else environ
    mark = environ.get(LEASE_VARIABLE, "")
    if not any(mark.startswith(ledger.mark) for ledger in tuple(ledgers)):
        return environ
    return {name: value for name, value in environ.items() if name != LEASE_VARIABLE}


@cache
def _ledger(place: Place) -> Ledger:
    if place.path is None:
        warn("leases are counted in this process alone: %s", place.why)
        return Ledger()
    from .shared import SharedLedger

    return SharedLedger(place)


def _same(one: Limits, other: Limits) -> bool:
    """Whether the limits have not changed; what is left of the memory always does."""
    first, second = ((of.cpus, of.cpu_count, *(rule.total_bytes for rule in of.rules)) for of in (one, other))
    return first == second
