"""File systems and what is held in scratch directories, against coreutils."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qcthreads.execution import scratch
from qcthreads.execution.scratch import ScratchWatch, held_bytes
from qcthreads.host.disks import file_system


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's names are Linux's")
@pytest.mark.parametrize("directory", ["/", "/dev/shm", "/proc"])
def test_the_kind_of_a_file_system_is_what_findmnt_says(directory: str) -> None:
    findmnt = shutil.which("findmnt")
    if findmnt is None or not Path(directory).is_dir():
        pytest.skip("needs findmnt and the directory")
    done = subprocess.run([findmnt, "-n", "-o", "FSTYPE", "-T", directory], capture_output=True, text=True, check=True)
    found = file_system(Path(directory))
    assert found.kind == done.stdout.split()[-1]
    assert found.in_memory == (found.kind == "tmpfs")


def test_what_is_free_is_what_the_system_says(tmp_path: Path) -> None:
    assert file_system(tmp_path).free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="du is what it is compared with")
def test_what_is_held_is_what_du_says(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "integrals").write_bytes(b"x" * 3_000_000)
    (tmp_path / "a" / "log").write_bytes(b"x" * 10_000)
    (tmp_path / "a" / "elsewhere").symlink_to("/")
    du = subprocess.run(["du", "-s", "-B1", str(tmp_path)], capture_output=True, text=True, check=True)
    folders = 3 * 4096
    assert held_bytes(tmp_path) == pytest.approx(int(du.stdout.split()[0]), abs=folders)
    assert held_bytes(tmp_path / "nothing") == 0


COMING_AND_GOING = """
import os, sys
print(flush=True)
while True:
    for number in range(20):
        open(f"{sys.argv[1]}/gone{number}", "w").close()
    for number in range(20):
        os.unlink(f"{sys.argv[1]}/gone{number}")
"""


def test_files_that_vanish_hide_no_others(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"integrals{number}").write_bytes(b"x" * 4096)
    at_rest = held_bytes(tmp_path)
    arguments = [sys.executable, "-c", COMING_AND_GOING, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            counted = [held_bytes(tmp_path) for _ in range(500)]
        finally:
            process.kill()
    assert at_rest >= 100 * 4096
    assert min(counted) >= at_rest


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each directory was looked into."""
    counted: Counter[Path] = Counter()

    def look(folder: Path) -> int:
        held = held_bytes(folder)
        counted[folder] += 1
        return held

    monkeypatch.setattr(scratch, "held_bytes", look)
    return counted


def fill_for_a_while(folder: Path, looked: Counter[Path]) -> None:
    """Until one look has begun and ended meanwhile, and what it found is kept: the next but one has ended."""
    file = folder / "integrals"
    file.write_bytes(b"x" * 2_000_000)
    before = looked[folder]
    assert until(lambda: looked[folder] >= before + 3)
    file.unlink()


def test_files_that_are_gone_at_the_end_were_seen(tmp_path: Path, looked: Counter[Path]) -> None:
    watch = ScratchWatch()
    watch.begin(tmp_path)
    fill_for_a_while(tmp_path, looked)
    assert watch.end(tmp_path) >= 2_000_000
    assert watch.end(tmp_path) < 2_000_000
    watch.close()


def test_what_is_held_now_is_told_of_all_that_are_watched(tmp_path: Path) -> None:
    watch = ScratchWatch()
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        watch.begin(folder)
        (folder / "integrals").write_bytes(b"x" * 2_000_000)
    assert until(lambda: watch.held_bytes() >= 4_000_000)
    (folders[0] / "integrals").unlink()
    assert until(lambda: 2_000_000 <= watch.held_bytes() < 4_000_000)
    watch.end(folders[1])
    assert watch.held_bytes() < 2_000_000
    watch.end(folders[0])
    assert watch.held_bytes() == 0
    watch.close()


def looking() -> int:
    return sum(thread.name == "qcthreads-scratch" for thread in threading.enumerate())


def until(done: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


def test_who_ends_ends_the_looking_of_no_other(tmp_path: Path, looked: Counter[Path]) -> None:
    before = looking()
    watch = ScratchWatch()
    own, others = tmp_path / "own", tmp_path / "others"
    for folder in (own, others):
        folder.mkdir()
        watch.begin(folder)
    own.rmdir()  # its run was stopped, so that nobody says that it has ended
    watch.close()
    fill_for_a_while(others, looked)
    assert watch.end(others) >= 2_000_000
    watch.close()
    assert until(lambda: looking() == before)


def test_it_looks_however_often_it_was_closed_meanwhile(tmp_path: Path, looked: Counter[Path]) -> None:
    watch = ScratchWatch()
    with ThreadPoolExecutor(2) as pool:
        closing = pool.submit(lambda: [watch.close() for _ in range(2000)])
        folders = [tmp_path / str(number) for number in range(100)]
        for folder in folders:
            folder.mkdir()
            watch.begin(folder)
            if folder != folders[-1]:
                watch.end(folder)
        closing.result()
    fill_for_a_while(folders[-1], looked)
    assert watch.end(folders[-1]) >= 2_000_000
    watch.close()
