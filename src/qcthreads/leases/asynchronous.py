"""Waiting for a lease in asyncio: by a thread of its own, so that nobody who keeps the door shut stops the loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial

from .lease import Lease


async def waited_for(acquire: Callable[[threading.Event], Lease], wake: Callable[[], object]) -> Lease:
    """What ``acquire`` gives, which ends when the event given to it is set and ``wake`` was called.

    Cancelling ends at once; what the thread still gets after that is given back.
    """
    loop, cancel = asyncio.get_running_loop(), threading.Event()
    got: asyncio.Future[Lease] = loop.create_future()

    def wait() -> None:
        try:
            lease = acquire(cancel)
        except BaseException as error:
            _tell(loop, partial(_fail, got, error))
        else:
            if not _tell(loop, partial(_give, got, lease)):
                lease.release()

    # Not the loop's executor: it is joined at the end, also with one in it who stands at a door that is shut.
    threading.Thread(target=wait, name="qcthreads-waits", daemon=True).start()
    try:
        return await got
    except BaseException:
        cancel.set()
        wake()
        if got.done() and not got.cancelled() and got.exception() is None:  # cancelled between the two
            got.result().release()
        raise


def _give(got: asyncio.Future[Lease], lease: Lease) -> None:
    if got.done():
        lease.release()
    else:
        got.set_result(lease)


def _fail(got: asyncio.Future[Lease], error: BaseException) -> None:
    if not got.done():
        got.set_exception(error)


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], object]) -> bool:
    """Whether the loop is there to be told."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(what)
        return True
    return False
