"""Other processes that tests need, forks of this one that say what they have done; they decide nothing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from qcthreads.errors import QCThreadsError
from qcthreads.execution.store import open_store

SAY_S = 60.0
"""How long a busy machine may take until another process says something."""

Say = Callable[[object], None]


class Other:
    """A fork of this process."""

    def __init__(self, act: Callable[[Say], object]) -> None:
        hears, says = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(hears)
            _act(act, lambda word: os.write(says, f"{word}\n".encode()))
        os.close(says)
        self._hears = os.fdopen(hears, "rb", buffering=0)
        self._status: int | None = None

    def said(self) -> str:
        """The next line; empty when it has ended."""
        line = b""
        while not line.endswith(b"\n"):
            assert select.select([self._hears], [], [], SAY_S)[0], f"process {self.pid} says nothing"
            letter = self._hears.read(1)
            if not letter:
                break
            line += letter
        return line.decode().strip()

    def says_something(self, within_s: float) -> bool:
        """Whether it has something to say, or has ended."""
        return bool(select.select([self._hears], [], [], within_s)[0])

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill -9, and wait for its end."""
        if self._status is None:
            self.signal(signal.SIGKILL)
            self.wait()

    def wait(self) -> int:
        """Its exit status when it has ended, negative for a signal."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self._hears.close()
        return self._status


@contextlib.contextmanager
def other(act: Callable[[Say], object]) -> Iterator[Other]:
    """A fork in which ``act(say)`` runs, and which then waits to be killed: at the latest when ``with`` ends."""
    process = Other(act)
    try:
        yield process
    finally:
        process.kill()


def until(true: Callable[[], object]) -> None:
    """Wait for it, as long as a busy machine may need."""
    give_up = time.monotonic() + SAY_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.002)


@contextlib.contextmanager
def busy_cpus() -> Iterator[None]:
    """Two that compute on every CPU we may use, until the end of the ``with``."""
    with contextlib.ExitStack() as stack:
        for cpu in [*os.sched_getaffinity(0)] * 2:
            code = f"import os\nos.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", code]))
            stack.callback(process.kill)
        yield


def ended(path: Path) -> int:
    """How many calculations a store has the results of."""
    if not path.exists():
        return 0
    try:
        with open_store(path) as store:
            return len(store.finished())
    except QCThreadsError:  # it is being made
        return 0


def state_of(pid: int) -> str:
    """R, S, T, Z ... of proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _act(act: Callable[[Say], object], say: Say) -> None:
    """In the child, which returns to none of its parent's code."""
    status = 1
    try:
        _kept = act(say)  # a lease, say, which would be given back with the last that refers to it
        status = 0
        while True:
            signal.pause()
    except BaseException as error:
        with contextlib.suppress(OSError):
            say(f"{type(error).__name__}: {error}")
        if status:
            traceback.print_exc()
    finally:
        os._exit(status)
