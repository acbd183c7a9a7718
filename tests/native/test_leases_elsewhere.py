"""The book of leases on Windows and macOS: on the system itself with real processes, elsewhere over stand-ins.

What these stand for on Windows is shown by csrc/tests/test_windows_locks.c.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qcthreads.errors import MachineError
from qcthreads.host.windows_folder import LONGEST, Folder
from qcthreads.host.windows_locks import FileLocks, handed_over, holders_of_locks
from qcthreads.leases.place import SHARED, _homes, find_place, make
from qcthreads.leases.sharing import share

on_windows = pytest.mark.skipif(sys.platform != "win32", reason="this is not Windows")
on_macos = pytest.mark.skipif(sys.platform != "darwin", reason="this is not macOS")
elsewhere = pytest.mark.skipif(sys.platform == "win32", reason="here the calls exist")

HOLDER = """
import sys, time
from pathlib import Path
from qcthreads.host.windows_folder import Folder
from qcthreads.host.windows_locks import FileLocks
locks, folder = FileLocks(Path(sys.argv[1]), create=True), Folder(Path(sys.argv[1]))
assert locks.try_lock("cpu0")
ticket = folder.hold("ticket", b"held")
print("ready", flush=True)
time.sleep(600)
"""


class StandInForKernel32:
    """Mutexes that exist as long as a handle is open, of all "processes" that share it; those of others are denied."""

    def __init__(self, *, denied: str = "none") -> None:
        self.handles: dict[int, str] = {}
        self.denied = denied
        self.made = 0

    def create(self, name: str) -> int | None:
        if name in self.handles.values() or name.startswith(self.denied):
            return None
        self.made += 1
        self.handles[self.made] = name
        return self.made

    def close(self, handle: int) -> None:
        del self.handles[handle]


class StandInForCreateFile:
    """Opens for reading, and no links."""

    def open(self, path: str, share: int, flags: int) -> int:
        assert share & 3 == 3
        assert flags & 0x00200000
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # type: ignore[attr-defined, unused-ignore]


def test_stand_in_locks_are_taken_once_and_freed_by_the_last_handle(tmp_path: Path) -> None:
    kernel = StandInForKernel32()
    ours, theirs = (FileLocks(tmp_path, create=True, calls=kernel) for _ in range(2))
    assert not kernel.handles
    assert ours.try_lock("cpu0")
    assert ours.try_lock("cpu0")
    assert theirs.try_lock("cpu1")
    assert not theirs.try_lock("cpu0")
    assert kernel.handles[ours.descriptor("cpu0")].endswith("-cpu0")
    ours.unlock("cpu0")
    ours.unlock("cpu0")
    assert theirs.try_lock("cpu0")
    theirs.leave("cpu0")
    theirs.close()
    assert not kernel.handles


@elsewhere
def test_stand_in_locks_have_one_name_for_every_way_to_a_directory(tmp_path: Path) -> None:
    kernel = StandInForKernel32()
    directory, other, link = tmp_path / ("x" * 100), tmp_path / "other", tmp_path / "link"
    directory.mkdir()
    other.mkdir()
    link.symlink_to(directory)
    for path in (directory, other, link):
        FileLocks(path, create=True, calls=kernel).try_lock("gpu0")
    names = list(kernel.handles.values())
    assert len(names) == 2  # through the link it was taken
    assert all(name.startswith("Global\\") and name.count("\\") == 1 and len(name) < 260 for name in names)


def test_stand_in_locks_of_another_user_are_taken_and_a_sandbox_has_its_own(tmp_path: Path) -> None:
    sandbox = StandInForKernel32(denied="Global\\")
    locks = FileLocks(tmp_path, create=True, calls=sandbox)
    assert locks.try_lock("cpu0")
    (name,) = sandbox.handles.values()
    assert name.startswith("Local\\")
    sandbox.denied = name.removesuffix("cpu0")
    assert not locks.try_lock("cpu1")


def test_stand_in_folder_reads_plain_files_alone(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    folder = Folder(records, calls=StandInForCreateFile() if sys.platform != "win32" else None)
    folder.write("one", b"text\r\n\x1a")
    folder.write("long", b"x" * (LONGEST + 1))
    (records / "directory").mkdir()
    os.link(records / "one", tmp_path / "second name")
    (records / "two").write_bytes(b"2")
    assert folder.names() == {"one", "long", "directory", "two"}
    assert folder.read("two") == (b"2", -1)
    for nothing in ("one", "long", "directory"):
        assert folder.read(nothing) == (b"", -1)
    (tmp_path / "second name").unlink()
    assert folder.read("one") == (b"text\r\n\x1a", -1)
    with pytest.raises(FileNotFoundError):
        folder.read("none")
    with pytest.raises(FileExistsError):
        folder.write("one", b"")
    assert folder.remove("one")
    assert folder.remove("one")
    assert not folder.gone
    folder.close()


@elsewhere
def test_stand_in_folder_refuses_links(tmp_path: Path) -> None:
    records, outside = tmp_path / "records", tmp_path / "outside"
    records.mkdir()
    outside.write_text("told elsewhere")
    (tmp_path / "link").symlink_to(records)
    (records / "link").symlink_to(outside)
    with pytest.raises(OSError, match="link"):
        Folder(tmp_path / "link", calls=StandInForCreateFile())
    folder = Folder(records, calls=StandInForCreateFile())
    assert folder.read("link") == (b"", -1)
    folder.close()


@elsewhere
def test_without_windows_its_locks_say_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not Windows"):
        FileLocks(tmp_path, create=True)
    with pytest.raises(OSError, match="not Windows"):
        Folder(tmp_path)
    assert holders_of_locks(tmp_path) == {}
    assert handed_over((1,), {"env": {}}) == {"env": {}}


@elsewhere
def test_stand_in_macos_keeps_the_book_where_old_files_are_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "C").mkdir()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "confstr", {65538: f"{tmp_path}/C/"}.get)
    assert _homes({}) == [str(tmp_path / "C" / "qcthreads"), f"/tmp/qcthreads-{os.geteuid()}"]
    monkeypatch.setattr(os, "confstr", lambda _: None)
    assert _homes({}) == [f"/tmp/qcthreads-{os.geteuid()}"]


# --- on the system itself ---


@on_macos
def test_macos_has_a_directory_of_the_user() -> None:
    assert _homes({})[0].parent.stat().st_uid == os.geteuid()
    assert find_place({}).kind == "user"


@on_windows
def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    locks, folder = FileLocks(tmp_path, create=True), Folder(tmp_path)
    with psutil.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "ready\n"
        assert not locks.try_lock("cpu0")
        assert folder.read("ticket") == (b"held", -1)
        assert folder.is_held("ticket")
        assert not folder.remove("ticket")
        with pytest.raises(PermissionError):
            tmp_path.rename(tmp_path.with_name("moved"))
        holder.kill()
    assert locks.try_lock("cpu0")
    assert not folder.is_held("ticket")
    assert folder.names() == set()
    locks.close()
    folder.close()


@on_windows
def test_a_child_keeps_the_locks_that_it_is_handed(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path, create=True)
    assert locks.try_lock("cpu0")
    options = handed_over((locks.descriptor("cpu0"),), {"stdout": subprocess.PIPE, "text": True})
    script = "import time; print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], **options) as child:
        locks.leave("cpu0")
        assert child.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        assert not locks.try_lock("cpu0")
        child.kill()
    assert locks.try_lock("cpu0")
    locks.close()


@on_windows
def test_a_child_under_a_lease_writes_where_we_do(tmp_path: Path) -> None:
    script = (
        "import sys; from qcthreads.host.windows_locks import FileLocks, handed_over; from pathlib import Path;"
        "import subprocess; locks = FileLocks(Path(sys.argv[1]), create=True); locks.try_lock('cpu0');"
        "subprocess.run([sys.executable, '-c', 'print(1)'], **handed_over((locks.descriptor('cpu0'),), {}))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@on_windows
def test_each_user_has_a_book_of_his_own(tmp_path: Path) -> None:
    place = find_place({"LOCALAPPDATA": str(tmp_path)})
    assert (place.kind, place.path) == ("user", str(tmp_path / "qcthreads"))
    make(place)
    assert find_place({}).kind == "process"
    with pytest.raises(MachineError, match="each user"):
        share(Path(SHARED), [])
