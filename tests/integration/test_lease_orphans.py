"""What outlives its holder with the locks in its hand: waited for and named, or ended, as the holder had wanted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from contenders import book_in

from qcthreads.errors import LeaseError
from qcthreads.host import read_machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells of another process's mark")

HOLDER = """
import sys, time
from pathlib import Path
from contenders import book_in
from qcthreads.host import read_machine
book = book_in(Path(sys.argv[1]), read_machine(), sys.argv[2])
lease = book.acquire(1)
print(lease.popen(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def outlived(tmp_path: Path, request: pytest.FixtureRequest) -> int:
    """A process under a lease whose holder was killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "book"), request.param]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        holder.kill()
    return pid


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().partition(" (sleep) ")[2][:1] not in ("", "Z")
    except OSError:
        return False


@pytest.mark.parametrize("outlived", ["wait"], indirect=True)
def test_it_is_named_and_waited_for(tmp_path: Path, outlived: int) -> None:
    book = book_in(tmp_path / "book", read_machine())
    try:
        with pytest.raises(LeaseError, match=rf"process {outlived} \(sleep, user .*which has ended"):
            book.acquire(len(book.usable), timeout=1.5)
        assert is_there(outlived)
    finally:
        os.kill(outlived, signal.SIGKILL)
    book.acquire(len(book.usable), timeout=30).release()


@pytest.mark.parametrize("outlived", ["end"], indirect=True)
def test_it_is_ended(tmp_path: Path, outlived: int) -> None:
    book = book_in(tmp_path / "book", read_machine())
    book.acquire(len(book.usable), timeout=30).release()
    assert not is_there(outlived)


def test_what_a_living_holder_has_started_is_never_ended(tmp_path: Path) -> None:
    book = book_in(tmp_path / "book", read_machine(), "end")
    with book.acquire(len(book.usable)) as lease, lease.popen(["sleep", "600"]) as child:
        asks = f"""
import sys
from pathlib import Path
from contenders import book_in
from qcthreads.errors import LeaseError
from qcthreads.host import read_machine
try: book_in(Path({str(tmp_path / "book")!r}), read_machine()).acquire(1, timeout=2.0)
except LeaseError as error: print(error)
"""
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        asked = subprocess.run(
            [sys.executable, "-c", asks],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"held by process {os.getpid()} " in asked.stdout
        time.sleep(0.1)
        assert child.poll() is None
        child.kill()
