"""Finding and ending what was started below a process, with real processes that hide from their parents."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from functools import partial

import psutil
import pytest

from qcthreads.host import trees
from qcthreads.host.trees import MARK, Process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the hidden ones are made with setsid and fork")

SLEEPS = "import signal, time; {}print('there', flush=True); time.sleep(600)"
STUBBORN = SLEEPS.format("signal.signal(signal.SIGTERM, signal.SIG_IGN); ")


def start(script: str, **options: object) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


@pytest.mark.parametrize("script", [SLEEPS.format(""), STUBBORN], ids=["obeys", "ignores SIGTERM"])
def test_one_in_a_session_of_its_own_is_known_by_its_mark_and_ends(script: str) -> None:
    mark = uuid.uuid4().hex
    marked = start(script, env={**os.environ, MARK: mark}, start_new_session=True)
    other = start(SLEEPS.format(""), env={**os.environ, MARK: f"{mark}0"}, start_new_session=True)
    nobody = {2**22 + 1: mark}  # beyond every number that Linux gives
    try:
        assert trees.members(nobody) == [marked.pid]
        trees.end(partial(trees.members, nobody), grace_s=0.1)
        assert trees.members(nobody) == []
        assert psutil.Process(marked.pid).status() == psutil.STATUS_ZOMBIE
        assert other.poll() is None
    finally:
        for process in (marked, other):
            process.kill()
            process.communicate()


def test_another_that_has_the_number_by_now_is_left_alone() -> None:
    process = start(SLEEPS.format(""))
    try:
        known = Process.of(process.pid)
        Process(known.pid, known.start - 1).signal(hard=True)
        assert not Process(known.pid, known.start - 1).lives()
        assert known.lives()
        known.signal(hard=True)
        assert process.wait() == -9
        assert not known.lives()
    finally:
        process.kill()
        process.communicate()
