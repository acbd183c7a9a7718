"""File systems and what is held in scratch directories, against coreutils."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_files_that_are_gone_at_the_end_were_seen(tmp_path: Path) -> None:
    watch = ScratchWatch()
    watch.begin(tmp_path)
    file = tmp_path / "integrals"
    file.write_bytes(b"x" * 2_000_000)
    end = time.monotonic() + 60
    while watch.peak(tmp_path) < 2_000_000 and time.monotonic() < end:
        time.sleep(0.05)
    file.unlink()
    assert watch.end(tmp_path) >= 2_000_000
    assert watch.end(tmp_path) < 2_000_000
    watch.close()
