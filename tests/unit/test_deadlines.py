"""Blocks that take too long, in real threads: what happens, never when."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack, nullcontext

import pytest

from qcthreads.execution.deadlines import Deadlines

PATIENCE_S = 60.0
FORKED = """
import os, threading
from qcthreads.execution import supervisor

taken, done = threading.Event(), threading.Event()

def take():
    with supervisor._deadlines._changed:
        taken.set()
        done.wait()

with supervisor._deadlines.within(3600, print):
    threading.Thread(target=take, daemon=True).start()
    taken.wait()
    child = os.fork()
    if child == 0:
        late = threading.Event()
        with supervisor._deadlines.within(0.01, late.set):
            os._exit(0 if late.wait(30) else 1)
    done.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def begun_since(before: list[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before]


def test_what_takes_too_long_is_told_of_also_when_something_slower_is_looked_at_already() -> None:
    deadlines, late = Deadlines(), threading.Event()
    with deadlines.within(3600, lambda: None), deadlines.within(0.01, late.set):
        assert late.wait(PATIENCE_S)


@pytest.mark.parametrize("error", [None, KeyError])
def test_what_is_over_is_not_told_of_also_where_an_error_is_its_end(error: type[Exception] | None) -> None:
    deadlines, over, told = Deadlines(), threading.Event(), []
    with pytest.raises(error) if error else nullcontext(), deadlines.within(0.2, lambda: told.append(over.is_set())):
        if error:
            raise error
    over.set()
    second = threading.Event()
    with deadlines.within(0.3, second.set):
        assert second.wait(PATIENCE_S)
    assert True not in told


def test_one_that_does_not_return_keeps_no_other_from_being_told() -> None:
    deadlines, first, second, release = Deadlines(), threading.Event(), threading.Event(), threading.Event()

    def never() -> None:
        first.set()
        release.wait(PATIENCE_S)

    with deadlines.within(0.01, never):
        assert first.wait(PATIENCE_S)
        with deadlines.within(0.01, second.set):
            assert second.wait(PATIENCE_S)
    release.set()


def test_another_thread_looks_where_the_first_has_found_nothing_left() -> None:
    deadlines, before = Deadlines(), threading.enumerate()
    for _ in range(3):
        late = threading.Event()
        with deadlines.within(0.01, late.set):
            assert late.wait(PATIENCE_S)
        for thread in begun_since(before):
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_a_hundred_blocks_take_one_thread() -> None:
    deadlines, before = Deadlines(), threading.enumerate()
    with ExitStack() as blocks:
        for _ in range(100):
            blocks.enter_context(deadlines.within(3600, lambda: None))
        assert len(begun_since(before)) == 1


def test_what_is_due_when_no_thread_can_start_is_told_of_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoMore(threading.Thread):
        def start(self) -> None:
            if self.name == "qcthreads-late" and not refused.is_set():
                refused.set()
                raise RuntimeError("can't start new thread")
            super().start()

    deadlines, refused, late, later = Deadlines(), threading.Event(), threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "Thread", NoMore)
    with deadlines.within(0.01, late.set):
        assert late.wait(PATIENCE_S)
    assert refused.is_set()
    with deadlines.within(0.01, later.set):
        assert later.wait(PATIENCE_S)


def test_for_ever_and_no_limit_take_none() -> None:
    deadlines, before = Deadlines(), threading.enumerate()
    with deadlines.within(None, lambda: None), deadlines.within(float("inf"), lambda: None):
        assert begun_since(before) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_looks_at_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "0\n", done.stderr
