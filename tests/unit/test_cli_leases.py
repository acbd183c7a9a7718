"""What people see of the book of leases, against real processes that hold, wait, are stopped and are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from binascii import crc32
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

if sys.platform != "linux":
    pytest.skip("holders, masks and locks are read from /proc", allow_module_level=True)

import pty
import termios
from fcntl import ioctl

from qcthreads.host.limits import Limits, Rule
from qcthreads.host.locks import holders_of_locks
from qcthreads.leases import LeaseBook
from qcthreads.leases.place import find_place
from qcthreads.leases.shared import SharedLedger
from qcthreads.leases.snapshot import read_book
from qcthreads.machine.synthetic import synthetic_machine

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a directory for all users, and becomes others")
ALICE, BOB = 23456, 23457
GIB = 1024**3

HOLDS = """
import qcthreads, sys
with qcthreads.lease(1, 1 << 20) as lease:
    print("holds", flush=True)
    sys.stdin.read()
"""
WAITS = """
import os, qcthreads, threading
with qcthreads.lease(len(os.sched_getaffinity(0)), exclusive_cores=False):
    print("has", flush=True)
"""
LEAVES_A_CHILD = """
import qcthreads, sys
lease = qcthreads.lease(1)
close = [] if sys.argv[1] == "keeps" else ["bash", "-c", 'for n in /proc/$$/fd/*; do n=${n##*/}; \
    [ $n -gt 2 ] && eval "exec $n>&-"; done; exec "$@"', "bash"]
print(lease.popen([*close, "sleep", "600"], stdout=sys.stderr, start_new_session=True).pid, flush=True)
sys.stdin.read()
"""
OVERTAKEN = """
import json, qcthreads, subprocess, sys
from qcthreads.leases.checkup import examine
lease = qcthreads.lease(1)
subprocess.run([sys.executable, "-m", "qcthreads", "leases", "--share"], check=True, capture_output=True)
during = examine()
lease.release()
print(json.dumps([during.place.path, [one.what for one in during.troubles], str(lease.cpus), len(examine().troubles)]))
"""
EXAMINE = """
import json
from qcthreads.leases import checkup
print(json.dumps([{"what": one.what, "mend": one.mend} for one in checkup.examine().troubles]))
"""
STOPS_IN_THE_DOOR = """
import fcntl, os, signal, sys
door = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(door, fcntl.LOCK_EX)
print("inside", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """Where the book will be; nothing is there yet."""
    return tmp_path / "book"


@pytest.fixture
def start(book: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start(script, *arguments)``: a process that has said its first line; killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(
        script: str, *arguments: str, says: bool = True, python: Sequence[str] = (sys.executable,), **options: Any
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*python, "-c", script, *arguments],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment(book)} | options,
        )
        started.append(process)
        if says:
            assert process.stdout is not None
            process.said = process.stdout.readline().strip()  # type: ignore[attr-defined]
        return process

    yield begin
    for process in started:
        process.kill()
        process.send_signal(signal.SIGCONT)
        process.communicate()


def environment(book: Path | None) -> dict[str, str]:
    here = {name: value for name, value in os.environ.items() if not name.startswith("QCTHREADS_LEASE")}
    return here if book is None else here | {"QCTHREADS_LEASES": str(book)}


def qcthreads(*arguments: str, book: Path | None) -> str:
    command = [sys.executable, "-m", "qcthreads", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(book), timeout=60)
    return done.stdout


def leases(book: Path | None) -> Any:
    return json.loads(qcthreads("leases", "--json", book=book))


def troubles(book: Path | None) -> list[dict[str, str]]:
    """As `doctor` has them, which looks for programs too and takes its time."""
    command = [sys.executable, "-c", EXAMINE]
    shown = subprocess.run(command, capture_output=True, check=True, env=environment(book), timeout=60).stdout
    return list(json.loads(shown))


def mended(trouble: dict[str, str]) -> None:
    """Do, as root, what it says."""
    command = trouble["mend"].replace("sudo ", "").replace("qcthreads ", f"{sys.executable} -m qcthreads ")
    subprocess.run(command, shell=True, check=True, capture_output=True, timeout=60)


def contents(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode) for path in [directory, *directory.rglob("*")]}


def until(true: Callable[[], Any]) -> Any:
    for _ in range(600):
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came true")


def test_looking_makes_nothing(book: Path) -> None:
    assert leases(book)["leases"] == []
    assert "nobody holds a lease" in qcthreads("leases", book=book)
    assert troubles(book) == []
    assert json.loads(qcthreads("topo", "--json", book=book))["leased"] == []
    assert not book.exists()


def test_holders_and_those_who_wait(book: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    holder = start(HOLDS)
    waiting = [start(WAITS, says=False)]
    until(lambda: len(leases(book)["waiting"]) == 1)
    waiting.append(start(WAITS, says=False))
    until(lambda: len(leases(book)["waiting"]) == 2)
    before = contents(book)
    found = leases(book)
    after = contents(book)
    assert after.keys() == before.keys()
    assert [
        path for path in after if after[path] != before[path] and "/w" not in path
    ] == []  # who waits touches his own
    (lease,) = found["leases"]
    assert (lease["pid"], lease["user"]) == (holder.pid, psutil.Process(holder.pid).username())
    assert lease["state"] == "running"
    assert lease["memory_bytes"] == 1 << 20
    assert lease["command"].startswith(f"{Path(sys.executable).name} -c")
    locked = [line.split() for line in Path("/proc/locks").read_text().splitlines() if f" {holder.pid} " in line]
    inodes = {int(words[5].rpartition(":")[2]) for words in locked}
    assert {(book / f"locks/cpu{cpu}").stat().st_ino for cpu in lease["reserved"]} <= inodes
    assert 0 < lease["age_s"] <= time.time() - psutil.Process(holder.pid).create_time() + 1
    assert [one["pid"] for one in found["waiting"]] == [process.pid for process in waiting]
    assert [one["held_by"] for one in found["waiting"]] == [[holder.pid]] * 2
    assert [one["behind"] for one in found["waiting"]] == [[], [waiting[0].pid]]
    assert all(one["threads"] == len(os.sched_getaffinity(0)) for one in found["waiting"])
    assert found["waiting"][0]["waited_s"] > found["waiting"][1]["waited_s"] > 0
    shown = qcthreads("leases", book=book)
    assert all(str(process.pid) in shown for process in (holder, *waiting))
    holder.communicate("")
    assert [process.communicate()[0] for process in waiting] == ["has\n", "has\n"]
    assert leases(book)["leases"] == leases(book)["waiting"] == []


def test_only_those_are_named_who_have_what_is_lacking(book: Path) -> None:
    machine, place = synthetic_machine(cores=8), find_place({"QCTHREADS_LEASES": str(book)})
    memory = Rule("available memory", "/proc/meminfo", memory_bytes=64 * GIB, tightest=True)
    limits = Limits(machine.cpus_online, 8, None, 64 * GIB, (memory,))
    ours, theirs = (LeaseBook(machine, limits, ledger=SharedLedger(place)) for _ in range(2))
    much, wide = ours.acquire(1, 60 * GIB), theirs.acquire(5)
    with ThreadPoolExecutor() as pool:
        lacks_memory = pool.submit(ours.acquire, 1, 30 * GIB)
        until(lambda: len(read_book(place).queue) == 1)
        lacks_cpus = pool.submit(theirs.acquire, 4)
        queue = until(lambda: len(seen := read_book(place).queue) == 2 and seen)
        assert [[held.holding.cpus for held in one.held_by] for one in queue] == [[much.cpus], [much.cpus, wide.cpus]]
        assert [[before.waiting.claim.threads for before in one.behind] for one in queue] == [[], [1]]
        much.release()
        wide.release()
        lacks_memory.result().release()
        lacks_cpus.result().release()
    assert read_book(place).leases == read_book(place).queue == ()


@pytest.mark.parametrize("columns", [30, 60, 100, 200])
def test_a_terminal_of_any_width_is_not_overrun(
    columns: int, book: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start(HOLDS, "x" * 300)
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "qcthreads", "leases"]
    sized = environment(book) | {"COLUMNS": str(columns), "TERM": "dumb"}
    subprocess.run(command, stdout=theirs, env=sized, check=True, timeout=60)
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # the end of a terminal
        while select.select([ours], [], [], 10)[0] and (part := os.read(ours, 65536)):
            shown += part.decode()
    os.close(ours)
    table = re.sub(r"\x1b\[[0-9;]*m", "", shown.partition("Leases")[2]).splitlines()[1:]
    assert max(len(line.rstrip()) for line in table) <= columns
    assert str(holder.pid) in shown
    assert "x" * 300 not in shown


@pytest.mark.parametrize(("how", "state"), [("keeps", "outlived"), ("closes", "strays")])
def test_what_a_killed_holder_left_is_named_and_let_live(
    how: str, state: str, book: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start(LEAVES_A_CHILD, how)
    child = psutil.Process(int(holder.said))  # type: ignore[attr-defined]
    until(lambda: child.name() == "sleep")
    holder.kill()
    holder.wait()
    (lease,) = leases(book)["leases"]
    assert lease["state"] == state
    assert lease["cpus"] == child.cpu_affinity()
    assert [stray["pid"] for stray in leases(book)["strays"]] == ([child.pid] if state == "strays" else [])
    told = [one["mend"] for one in troubles(book)]
    assert told == ([f"kill {child.pid}, or wait for its end"] if state == "strays" else [])
    assert child.is_running()
    child.kill()
    until(lambda: leases(book)["leases"][0]["state"] == "dead")
    assert troubles(book) == []
    assert list((book / "records").iterdir())  # whoever leases next removes it, and nobody before


def test_a_stopped_process_in_the_door_is_named_with_its_remedy(
    book: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start(HOLDS)
    stopped = start(STOPS_IN_THE_DOOR, str(book / "locks/door"))
    until(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED)
    found = leases(book)
    assert found["shut"]
    assert found["door_pid"] == stopped.pid
    assert [lease["pid"] for lease in found["leases"]] == [holder.pid]
    (trouble,) = json.loads(qcthreads("doctor", "--json", book=book))["leases"]["troubles"]
    assert trouble["mend"] == f"kill -CONT {stopped.pid}"
    assert f"  {trouble['what']}\n    mend it: {trouble['mend']}\n" in qcthreads("doctor", book=book)
    assert json.loads(qcthreads("topo", "--json", book=book))["leased"][0]["pid"] == holder.pid
    mended(trouble)
    stopped.wait()
    assert not leases(book)["shut"]
    assert troubles(book) == []


def test_a_lock_without_a_record_is_told(book: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    start(HOLDS).communicate("")
    taken = start(STOPS_IN_THE_DOOR, str(next((book / "locks").glob("cpu*"))))
    assert [one["pid"] for one in leases(book)["locked_without_record"]] == [taken.pid]
    (trouble,) = troubles(book)
    assert f"process {taken.pid} " in trouble["what"]


def test_topo_shows_what_is_leased(book: Path, start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    holder = start(HOLDS)
    (leased,) = json.loads(qcthreads("topo", "--json", book=book))["leased"]
    user = psutil.Process(holder.pid).username()
    assert leased == {"cpus": leases(book)["leases"][0]["cpus"], "user": user, "pid": holder.pid}
    shown = qcthreads("topo", book=book)
    assert f"leased now: PUs {leased['cpus'][0]} by {user}" in shown
    qcthreads("topo", "--svg", str(tmp_path / "topo.svg"), book=book)
    titles = [one.text for one in ElementTree.parse(tmp_path / "topo.svg").iter("{http://www.w3.org/2000/svg}title")]
    assert [title for title in titles if f"leased by {user}, process {holder.pid}" in str(title)] == [
        f"core of PUs {psutil_core(leased['cpus'][0])}; PUs {leased['cpus'][0]} leased by {user}, process {holder.pid}"
    ]


def psutil_core(cpu: int) -> str:
    return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list").read_text().strip()


def test_topo_does_without_a_book_that_cannot_be_read(book: Path) -> None:
    book.write_text("no directory")
    assert json.loads(qcthreads("topo", "--json", book=book))["leased"] is None
    (trouble,) = troubles(book)
    assert str(book) in trouble["what"]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that `leases --share` made, where every user can get."""
    path = Path(f"/run/qcthreads-test-{os.getpid()}")
    qcthreads("leases", "--share", str(path), book=None)
    yield path
    shutil.rmtree(path)


BECOME = """
import ctypes, json, os, sys, threading
place, os.environ["QCTHREADS_LEASES"] = os.environ["QCTHREADS_LEASES"], "process"
import encodings.ascii, locale, queue, qcthreads.cli.leases
import qcthreads.host.watch
import qcthreads.leases.shared
from qcthreads.leases import checkup, node
qcthreads.lease(1).release()  # all modules are loaded: others may not read root's Python
checkup.examine()
os.environ["QCTHREADS_LEASES"] = place
node._books.clear()
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: seen as a program that he started
"""
LEASES = "sys.exit(qcthreads.cli.main(['leases', '--json']))"


def told(script: str, uid: int, book: Path) -> Any:
    """What ``script`` prints to this user."""
    command = [sys.executable, "-c", BECOME + script, str(uid)]
    return json.loads(
        subprocess.run(command, capture_output=True, check=True, env=environment(book), timeout=60).stdout
    )


@AS_ROOT
def test_two_users_see_each_other(shared: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    holder = start(BECOME + HOLDS, str(ALICE), env=environment(shared))
    waits = start(BECOME + WAITS, str(BOB), says=False, env=environment(shared))
    found = until(lambda: (seen := told(LEASES, BOB, shared))["waiting"] and seen)
    assert [(lease["uid"], lease["pid"]) for lease in found["leases"]] == [(ALICE, holder.pid)]
    assert [(one["uid"], one["pid"], one["held_by"]) for one in found["waiting"]] == [(BOB, waits.pid, [holder.pid])]
    assert psutil.Process(holder.pid).uids().real == ALICE
    assert found["place"]["kind"] == "node"
    assert told(EXAMINE, BOB, shared) == []
    waits.kill()
    waits.wait()
    holder.kill()
    holder.wait()
    (trouble,) = told(EXAMINE, BOB, shared)
    assert f"user {ALICE}" in trouble["what"]
    mended(trouble)
    assert [path.stat().st_uid for path in (shared / "records").iterdir()] == [BOB]
    assert told(EXAMINE, BOB, shared) == []


@AS_ROOT
def test_two_containers_are_told_by_numbers_that_mean_something_here(
    shared: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable]
    if subprocess.run([*apart, "-c", ""], capture_output=True).returncode:
        pytest.skip("no namespace may be made here")
    holder = start(HOLDS, env=environment(shared), python=apart)
    waits = start(WAITS, env=environment(shared), python=apart, says=False)
    found = until(lambda: (seen := leases(shared))["waiting"] and seen)
    inside = [psutil.Process(process.pid).children()[0].pid for process in (holder, waits)]
    assert [lease["pid"] for lease in found["leases"]] == inside[:1]
    assert [(one["pid"], one["held_by"]) for one in found["waiting"]] == [(inside[1], inside[:1])]
    command = [*apart, "-m", "qcthreads", "leases", "--json"]
    shown = subprocess.run(command, capture_output=True, check=True, env=environment(shared), timeout=60).stdout
    beside = json.loads(shown)
    assert [lease["pid"] for lease in beside["leases"]] == [None]
    assert [(one["pid"], one["held_by"]) for one in beside["waiting"]] == [(None, [None])]
    assert beside["leases"][0]["cpus"] == found["leases"][0]["cpus"]


@AS_ROOT
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: (path / "locks/cpu0").unlink(),
        lambda path: (path / "locks/door").unlink(),
        lambda path: (path / "locks").chmod(0o777),
        lambda path: (path / "records").chmod(0o1755),
        lambda path: os.chown(path, ALICE, ALICE),
    ],
    ids=["a CPU that was added", "no door", "anybody's locks", "nobody's records", "not root's"],
)
def test_a_shared_directory_that_is_not_right(harm: Callable[[Path], None], shared: Path) -> None:
    assert troubles(shared) == []
    before = {path: entry[1] for path, entry in contents(shared).items()}
    harm(shared)
    (trouble,) = troubles(shared)
    assert str(shared) in trouble["what"]
    mended(trouble)
    assert troubles(shared) == []
    assert {path: entry[1] for path, entry in contents(shared).items()} == before
    assert shared.stat().st_uid == 0


@AS_ROOT
def test_systemd_makes_the_same_as_share(shared: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-tmpfiles"):
        pytest.skip("systemd-tmpfiles is not installed")
    before = {path: entry[1] for path, entry in contents(shared).items()}
    snippet = tmp_path / "qcthreads.conf"
    snippet.write_text(qcthreads("leases", "--tmpfiles", str(shared), book=None))
    shutil.rmtree(shared)
    subprocess.run(["systemd-tmpfiles", "--create", snippet], check=True, timeout=60)
    assert {path: entry[1] for path, entry in contents(shared).items()} == before
    possible = subprocess.run(["lscpu", "--all", "--parse=CPU"], capture_output=True, text=True, check=True).stdout
    assert {f"cpu{line}" for line in possible.split() if line.isdigit()} <= {
        path.name for path in (shared / "locks").iterdir()
    }
    assert leases(shared)["place"]["kind"] == "node"


@AS_ROOT
def test_users_each_with_a_book_of_his_own() -> None:
    if Path("/run/qcthreads").exists():
        pytest.skip("here root has made a book for all users")
    people = [subprocess.Popen(["sleep", "60"], user=uid, group=uid, extra_groups=[]) for uid in (ALICE, BOB)]
    try:
        (trouble,) = troubles(None)
        assert all(
            str(process.uids().real) in trouble["what"] for process in map(psutil.Process, (p.pid for p in people))
        )
        assert trouble["mend"].startswith("sudo qcthreads leases --share;")
    finally:
        for process in people:
            process.kill()
            process.wait()


@AS_ROOT
def test_what_began_before_there_was_a_book_for_all_is_told() -> None:
    mounts = 'mount -t tmpfs none /run && mount -t tmpfs none /dev/shm && exec "$@"'
    apart = ["unshare", "--mount", "sh", "-c", mounts, "sh"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no namespace may be made here")
    command = [*apart, sys.executable, "-c", OVERTAKEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(None)) as process:
        assert process.stdout is not None
        place, told, cpus, later = json.load(process.stdout)
    assert place == "/run/qcthreads"
    (trouble,) = told
    assert f"process {process.pid} (" in trouble
    assert f"tells of CPUs {cpus} in /" in trouble
    assert later == 0


@AS_ROOT
def test_what_others_name_their_files_reaches_no_shell_and_no_terminal(shared: Path) -> None:
    records = shared / "records"
    body = b'{"pid":1,"boot":"","pid_namespace":"","since":0,"mark":"","command":"","cpus":"","reserved":"","gpus":[],'
    body += b'"memory_bytes":0,"draws":{},"orphans":"wait"}'
    (records / "lwithout-cpus").write_bytes(b"%08x %s\n" % (crc32(body), body))
    (records / "l$(reboot); \x1b]0;evil").write_text("x")
    (records / "llink").symlink_to("/etc/passwd")
    os.mkfifo(records / "lfifo")
    (records / "ldirectory").mkdir()
    names = {path.name for path in records.iterdir()}
    for path in records.iterdir():
        os.chown(path, ALICE, ALICE, follow_symlinks=False)
    assert {one["record"] for one in leases(shared)["unreadable"]} == names
    assert {one["user"] for one in leases(shared)["unreadable"]} == {str(ALICE)}
    (trouble,) = told(EXAMINE, BOB, shared)
    for shown in (*trouble.values(), qcthreads("leases", book=shared), qcthreads("doctor", book=shared)):
        assert "reboot" not in shown
        assert "\x1b" not in shown


@contextlib.contextmanager
def small_file_system(path: Path) -> Iterator[Path]:
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@AS_ROOT
def test_a_full_file_system_is_told(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small") as small:
        (small / "book").mkdir(mode=0o700)
        assert troubles(small / "book") == []
        with contextlib.suppress(OSError), (small / "full").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        (trouble,) = troubles(small / "book")
        assert "no space is left" in trouble["what"]


@AS_ROOT
def test_who_locked_a_file_of_the_same_number_elsewhere_is_not_blamed(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    with small_file_system(tmp_path / "ours") as ours, small_file_system(tmp_path / "theirs") as theirs:
        for place in (ours, theirs):
            (place / "door").touch()
        if (ours / "door").stat().st_ino != (theirs / "door").stat().st_ino:
            pytest.skip("this kernel numbers the files of all its tmpfs together")
        other = start(STOPS_IN_THE_DOOR, str(theirs / "door"))
        assert holders_of_locks(theirs) == {"door": other.pid}
        assert holders_of_locks(ours) == {}
