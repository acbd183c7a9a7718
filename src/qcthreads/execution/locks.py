"""Hands the kernel's locks of a lease to the worker that runs under it, which then holds them as the driver does.

By the ancillary data of a socket between the two (unix(7), SCM_RIGHTS): what is on its way is held, too. Nothing is
handed over on Windows, where a worker that has lost its driver ends anyway.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

if sys.platform != "win32":
    import socket

    _MOST = 250  # SCM_MAX_FD of the kernel's include/net/scm.h is 253
    _FIRST, _MORE = b"=", b"+"

    def channel() -> tuple[socket.socket | None, int | None]:
        """Our end, and the descriptor of the end for the worker to inherit."""
        ours, theirs = socket.socketpair()
        return ours, theirs.detach()

    def hand_over(ours: socket.socket | None, descriptors: Sequence[int]) -> None:
        """Have the worker hold these in the place of those before."""
        assert ours is not None
        with contextlib.suppress(OSError):  # it has ended, which whoever asks it next finds out
            for at in range(0, max(1, len(descriptors)), _MOST):
                socket.send_fds(ours, [_MORE if at else _FIRST], descriptors[at : at + _MOST])

    def close(ours: socket.socket | None) -> None:
        """When the worker has ended."""
        if ours is not None:
            ours.close()

    class Held:
        """The worker's side: what it holds, at the other end ``theirs``."""

        def __init__(self, theirs: int) -> None:
            self._socket = socket.socket(fileno=theirs)
            self._socket.set_inheritable(False)
            self._socket.setblocking(False)
            self._descriptors: list[int] = []

        def update(self) -> None:
            """Take what has been handed over, and close what that takes the place of."""
            with contextlib.suppress(BlockingIOError):
                while True:
                    kind, descriptors, _, _ = socket.recv_fds(self._socket, 1, _MOST)
                    if not kind:
                        return
                    for descriptor in descriptors:
                        os.set_inheritable(descriptor, False)
                    before = self._descriptors if kind == _FIRST else []
                    self._descriptors = descriptors if kind == _FIRST else [*self._descriptors, *descriptors]
                    for descriptor in before:
                        os.close(descriptor)

else:

    def channel() -> tuple[None, None]:
        """None."""
        return None, None

    def hand_over(ours: None, descriptors: Sequence[int]) -> None:
        """Nothing."""

    def close(ours: None) -> None:
        """Nothing."""

    class Held:
        """Nothing."""

        def __init__(self, theirs: int) -> None: ...

        def update(self) -> None:
            """Nothing."""
