"""The example of docs/how-to/python.md that leaves the starting of processes to others, run as it is printed there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

AGAIN = """
    book = lease.book
    book.acquire(len(book.usable), timeout=60).release()
    print("nothing is left of it")
"""
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "python.md"


@pytest.mark.skipif(sys.platform != "linux", reason="prints masks, which are not told elsewhere")
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun is installed")
def test_whoever_starts_them_processes_stay_in_the_lease(tmp_path: Path) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("### What starts processes by itself")[2]
    example = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    script = tmp_path / "example.py"
    script.write_text(f"{example}\n{AGAIN}", encoding="utf-8")
    book = {"QCTHREADS_LEASES": str(tmp_path / "book"), "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment = {**os.environ, **book, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    masks = re.findall(r"^\[(\d+)\]$", done.stdout, re.MULTILINE)
    assert len(masks) == 4, done.stdout + done.stderr
    assert len(set(masks)) == 1  # one CPU, the same for all
    assert done.stdout.endswith("nothing is left of it\n")
