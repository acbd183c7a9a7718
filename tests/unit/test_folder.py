"""The directory in which processes tell of leases: what one thread lists, another may list at the same time."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("there a listing goes by the path", allow_module_level=True)

from qcthreads.host.folder import Folder


def test_two_threads_that_list_at_once_miss_nothing(tmp_path: Path) -> None:
    names = {f"l{number}" for number in range(40)}
    for name in names:
        (tmp_path / name).touch()
    folder, done, missed = Folder(tmp_path), threading.Event(), set[str]()

    def list_again_and_again() -> None:
        while not done.is_set():
            missed.update(names - folder.names())

    other = threading.Thread(target=list_again_and_again)
    other.start()
    for _ in range(3000):
        missed |= names - folder.names()
    done.set()
    other.join()
    folder.close()
    assert not missed
