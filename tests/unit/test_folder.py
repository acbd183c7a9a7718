"""Locks of files and the directory of small files by which processes tell of leases, over both back ends."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("there both are others: tests/native/test_leases_elsewhere.py", allow_module_level=True)

from qcthreads.host import native_status
from qcthreads.host.folder import Folder
from qcthreads.host.locks import FileLocks, holders_of_locks


@pytest.fixture(autouse=True, params=["native", "portable"])
def _back_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native" and not (sys.platform == "linux" and native_status()[0]):
        pytest.skip(f"no such calls in an extension: {native_status()[1]}")
    monkeypatch.setenv("QCTHREADS_BACKEND", request.param)


def is_locked(path: Path) -> bool:
    """By whom ever; asked by another open file."""
    other = FileLocks(path.parent, create=False)
    try:
        return not other.try_lock(path.name)
    finally:
        other.close()


def open_in(directory: Path) -> set[str]:
    """Names of the files there that this process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            found.add(descriptor.readlink())
    return {path.name for path in found if path.parent == directory}


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


def test_a_listing_has_all_names_however_many_and_none_of_a_directory_that_was_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    folder = Folder(tmp_path / "folder")
    assert folder.names() == set()
    for number in range(500):
        (tmp_path / "folder" / f"{number:0200}").touch()
    (tmp_path / "folder" / "ö").touch()
    if sys.platform == "linux":  # elsewhere names are text
        Path(os.fsdecode(os.fsencode(tmp_path / "folder") + b"/\xff")).touch()
    assert folder.names() == set(os.listdir(tmp_path / "folder"))  # noqa: PTH208
    for name in folder.names():
        assert folder.remove(name)
    assert not folder.gone
    (tmp_path / "folder").rmdir()
    assert folder.gone
    assert folder.names() == set()
    folder.close()


def test_a_file_is_held_until_it_is_gone(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    held = folder.hold("one", b"told")
    assert (tmp_path / "one").read_bytes() == b"told"
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600
    assert not os.get_inheritable(held)
    assert is_locked(tmp_path / "one")
    with pytest.raises(FileExistsError):
        folder.hold("one", b"other")
    assert (tmp_path / "one").read_bytes() == b"told"
    folder.end("one", held)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(held)
    folder.close()
    shared = Folder(tmp_path, for_all=True)
    held = shared.hold("one", b"told")
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o644
    shared.end("one", held)
    shared.close()


def test_locks_are_had_together_or_none_of_them(tmp_path: Path) -> None:
    ours, theirs, names = (*(FileLocks(tmp_path, create=True) for _ in range(2)), ("cpu0", "cpu1", "cpu2"))
    assert ours.lock_all(()) == ""
    assert theirs.try_lock("cpu1")
    assert ours.lock_all(names) == "cpu1"
    assert [is_locked(tmp_path / name) for name in names] == [False, True, False]
    theirs.unlock("cpu1")
    assert ours.lock_all(names) == ""
    assert [is_locked(tmp_path / name) for name in names] == [True] * 3
    ours.unlock_all((*names[:2], "never locked"))
    assert [is_locked(tmp_path / name) for name in names] == [False, False, True]
    ours.close()
    theirs.close()
    missing = FileLocks(tmp_path, create=False)
    with pytest.raises(FileNotFoundError):
        missing.lock_all(("cpu0", "cpu9"))
    assert not is_locked(tmp_path / "cpu0")
    missing.close()


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells of all locks here")
def test_what_is_closed_to_make_room_is_nothing_that_is_locked_or_just_to_be(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path, create=True)
    kept, before, now = (tuple(f"{kind}{number}" for number in range(200)) for kind in ("kept", "before", "now"))
    assert locks.lock_all(kept) == ""
    assert locks.lock_all(before) == ""
    locks.unlock_all(before)
    assert locks.lock_all((*before, *now)) == ""
    assert holders_of_locks(tmp_path).keys() == {*kept, *before, *now}
    locks.unlock_all((*before, *now))
    assert locks.lock_all(("one more",)) == ""
    assert holders_of_locks(tmp_path).keys() == {*kept, "one more"}
    assert open_in(tmp_path) == {*kept, "one more"}
    locks.close()
    assert not open_in(tmp_path)
