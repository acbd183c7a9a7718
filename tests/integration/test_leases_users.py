"""One book of leases of two users and of containers, for real: as root, with users and namespaces made for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from contenders import TOTAL_BYTES, book_in, close, start
from others import Other, Say, other, until
from test_leases_shared import GIB, MACHINE, PUS, comm, record

from qcthreads.cpuset import CpuSet
from qcthreads.errors import InputError, LeaseError
from qcthreads.leases import Lease
from qcthreads.leases.place import find_place
from qcthreads.leases.sharing import share

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="becomes two users and makes namespaces, which takes root"
)

ANNA, BERT = 60001, 60002
HERE = Path(__file__).parent
CAN = f"""
import os, signal, sys
sys.path[:0] = {[str(HERE), str(HERE.parents[1] / "src")]!r}
from contenders import book_in, start
"""
IN_CONTAINER = f"""{CAN}
from pathlib import Path
from qcthreads.machine.synthetic import synthetic_machine
if sys.argv[1:]: book = book_in(Path(sys.argv[1]), synthetic_machine(packages=2, cores=4))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Made by root for all users, and where all may go: pytest's own directories are one user's."""
    folder = Path(tempfile.mkdtemp(prefix="qcthreads-"))
    folder.chmod(0o755)
    share(folder / "book", [f"cpu{cpu}" for cpu in MACHINE.cpus_online])
    load_everything(folder / "mine")
    yield folder / "book"
    close(folder / "book")
    close(folder / "mine")
    shutil.rmtree(folder)


def load_everything(place: Path) -> None:
    """All that leasing imports: other users may not be allowed to read this checkout, or even Python's library."""
    book = book_in(place, MACHINE)
    with book.acquire(PUS), pytest.raises(LeaseError):
        book.acquire(1, timeout=0.01)
    with other(lambda say: say(start(book_in(place, MACHINE).acquire(1), "0", keeps_locks=True).wait())) as dead:
        dead.said()
    book.acquire(PUS).release()


@contextlib.contextmanager
def user(uid: int, act: Callable[[Say], object]) -> Iterator[Other]:
    """A process of this user, who lets nobody read his files."""

    def become(say: Say) -> object:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.umask(0o077)
        return act(say)

    with other(become) as process:
        yield process


def holds(place: Path, width: int, memory_bytes: int = 0) -> Callable[[Say], object]:
    def act(say: Say) -> Lease:
        lease = book_in(place, MACHINE).acquire(width, memory_bytes)
        say(lease.cpus)
        return lease

    return act


def asks(place: Path, width: int, memory_bytes: int = 0) -> Callable[[Say], object]:
    """Says what it got and has given back, or why it got nothing."""

    def act(say: Say) -> None:
        try:
            with book_in(place, MACHINE).acquire(width, memory_bytes, wait=False) as lease:
                got = str(lease.cpus)
        except LeaseError as error:
            got = str(error)
        say(got)

    return act


def record_of(place: Path, process: Other) -> Path:
    """The record of its only lease."""
    (found,) = [path for path in (place / "records").glob("l*") if f'"pid":{process.pid},' in path.read_text()]
    return found


def test_two_users_never_overlap_and_what_one_held_is_the_other_s_when_he_was_killed(place: Path) -> None:
    with user(ANNA, holds(place, 3, 40 * GIB)) as anna:
        hers = CpuSet.parse(anna.said())
        with user(BERT, asks(place, PUS)) as bert:
            said = bert.said()
            assert f"are held by process {anna.pid} (" in said
            assert f"user {ANNA}) (CPUs {hers} and 40 GiB)" in said
        with user(BERT, asks(place, 1, 25 * GIB)) as bert:
            assert "24 GiB are free" in bert.said()
        with user(BERT, asks(place, PUS - 3, 24 * GIB)) as bert:
            assert CpuSet.parse(bert.said()) == MACHINE.cpus_online - hers
        told = record_of(place, anna)
        anna.kill()
        with user(BERT, asks(place, PUS, TOTAL_BYTES)) as bert:
            assert CpuSet.parse(bert.said()) == MACHINE.cpus_online
        assert told.exists()  # nobody else's to remove, and nobody minds
    with user(ANNA, asks(place, PUS)) as anna:
        assert CpuSet.parse(anna.said()) == MACHINE.cpus_online
    assert not list((place / "records").iterdir())


ATTACKS: dict[str, Callable[[Path, Path], object]] = {
    "remove the record": lambda record, _: record.unlink(),
    "truncate the record": lambda record, _: os.truncate(record, 0),
    "write the record": lambda record, _: record.write_bytes(b""),
    "replace the record": lambda record, mine: mine.rename(record),
    "move the record": lambda record, _: record.rename(record.with_name("l")),
    "remove a lock": lambda record, _: (record.parents[1] / "locks/cpu0").unlink(),
    "write a lock": lambda record, _: (record.parents[1] / "locks/cpu0").write_bytes(b""),
    "replace a lock": lambda record, mine: mine.rename(record.parents[1] / "locks/cpu0"),
    "replace the door": lambda record, mine: mine.rename(record.parents[1] / "locks/door"),
    "make a lock": lambda record, _: (record.parents[1] / "locks/cpu999").touch(),
    "move the records": lambda record, _: record.parent.rename(record.parents[1] / "other"),
    "move the locks": lambda record, _: (record.parents[1] / "locks").rename(record.parents[1] / "other"),
    "open all to all": lambda record, _: record.parent.chmod(0o777),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_another_user_can_change_no_record_and_no_lock(place: Path, attack: Callable[[Path, Path], object]) -> None:
    with user(ANNA, holds(place, 3, 40 * GIB)) as anna:
        anna.said()
        told = record_of(place, anna)
        before = told.read_bytes()

        def tries(say: Say) -> None:
            mine = place / "records/mine"
            mine.write_bytes(record())
            try:
                attack(told, mine)
            except OSError as error:
                say(type(error).__name__)

        with user(BERT, tries) as bert:
            assert bert.said() == "PermissionError"
        assert told.read_bytes() == before
        with user(BERT, asks(place, 1, 25 * GIB)) as bert:
            assert "24 GiB are free" in bert.said()


def test_a_forged_record_has_nobody_s_calculation_ended(place: Path) -> None:
    """With her mark in it, PUs of which some are free, and the wish that what runs there be ended."""

    def works(say: Say) -> Lease:
        lease = book_in(place, MACHINE).acquire(1)
        say(start(lease, "600", keeps_locks=True).pid)
        return lease

    def forges(say: Say) -> None:
        told = {"boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "mark": mark, "orphans": "end"}
        forged = record(**told, cpus="0,7", reserved="0,7")
        (place / "records/lforged").write_bytes(forged)
        (place / "records/lforged").chmod(0o644)
        say("done")

    with user(ANNA, works) as anna:
        worker = int(anna.said())
        mark = record_of(place, anna).name[1:].partition(".")[0]
        until(lambda: comm(worker) == "sleep")
        try:
            with user(BERT, forges) as bert:
                bert.said()
                for uid in (ANNA, 0):
                    for _ in range(3):
                        with user(uid, asks(place, PUS)) as another:
                            assert "7 of 8 CPUs" in another.said()
                        time.sleep(0.4)  # longer than between two looks for what runs
            assert comm(worker) == "sleep"
            assert Path(f"/proc/{worker}/stat").read_text().split()[2] == "S"
        finally:
            os.kill(worker, signal.SIGKILL)


def test_nobody_can_be_there_before_a_record_and_so_hide_its_memory(place: Path) -> None:
    def leases_again(say: Say) -> list[Lease]:
        book = book_in(place, MACHINE)
        first = book.acquire(1)
        say(first.mark)
        until((place / "records/taken").exists)
        second = book.acquire(1, 40 * GIB)
        say("leased")
        return [first, second]

    def is_there_before(say: Say) -> None:
        name, _, number = first.rpartition(".")
        for following in range(int(number) + 1, int(number) + 9):
            (place / f"records/l{name}.{following}").write_bytes(record())
        (place / "records/taken").touch()
        say("done")

    with user(ANNA, leases_again) as anna:
        first = anna.said()
        with user(BERT, is_there_before) as bert:
            bert.said()
            assert anna.said() == "leased"
            with user(BERT, asks(place, 1, 25 * GIB)) as another:
                assert "24 GiB are free" in another.said()


def test_a_directory_of_one_user_is_no_other_s(place: Path) -> None:
    def finds_no_place(say: Say) -> None:
        try:
            say(find_place({"QCTHREADS_LEASES": str(place.parent / "hers")}))
        except InputError as error:
            say(error)

    (place.parent / "hers").mkdir()
    os.chown(place.parent / "hers", ANNA, ANNA)
    with user(BERT, finds_no_place) as bert:
        assert f"hers belongs to user {ANNA}, not to {BERT}; name a directory of yours" in bert.said()


# Containers


@contextlib.contextmanager
def container(place: Path, then: str, *, before: str = "", uid: int = 0) -> Iterator[subprocess.Popen[str]]:
    """What Python does in namespaces of its own: mounts, processes, and users where ``uid`` is not root."""
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if uid:
        unshare = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *unshare, "--user"]
        unshare.append("--map-root-user")
    for python in (sys.executable, "/usr/bin/python3"):  # the first may be one that this user may not run
        if not subprocess.run([*unshare, python, "-c", CAN], capture_output=True).returncode:
            break
    else:
        pytest.skip(f"`{' '.join(unshare)}` is not allowed here, or no Python that can read {HERE}")
    script = f'{before}\n"$0" -c "$1" "$2"\nexec sleep 600'
    command = [*unshare, "sh", "-c", script, python, IN_CONTAINER + then, place]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


HOLDS = "lease = book.acquire(3, 20 << 30); print(lease.cpus, flush=True); signal.pause()"


def test_two_containers_that_share_the_directory_share_the_book(place: Path) -> None:
    elsewhere = place.with_name("elsewhere")
    elsewhere.mkdir()
    moved = f"mount --bind {place} {elsewhere} && mount -t tmpfs none {place}"
    book = book_in(place, MACHINE)
    with container(elsewhere, HOLDS, before=moved) as one, container(place, HOLDS, uid=ANNA) as two:
        theirs = [CpuSet.parse(said(one)), CpuSet.parse(said(two))]
        assert theirs[0].isdisjoint(theirs[1])
        with pytest.raises(LeaseError, match="2 of 8 CPUs and 24 GiB are free"):
            book.acquire(3, wait=False)
        one.kill()
        one.wait()
        with book.acquire(5, 44 * GIB, timeout=30) as lease:
            assert lease.cpus == MACHINE.cpus_online - theirs[1]
    with book.acquire(PUS, TOTAL_BYTES, timeout=30):
        pass


@pytest.mark.parametrize("keeps_locks", [True, False])
def test_what_outlives_its_driver_in_another_pid_namespace_keeps_its_pus(place: Path, keeps_locks: bool) -> None:
    works = f"""
lease = book.acquire(1)
worker = start(lease, "600", keeps_locks={keeps_locks})
while Path(f"/proc/{{worker.pid}}/comm").read_text() != "sleep\\n":
    pass
print(os.stat("/proc/self/ns/pid").st_ino, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    book = book_in(place, MACHINE)
    with container(place, works) as driver:
        namespace = said(driver)
        assert namespace != str(Path("/proc/self/ns/pid").stat().st_ino)
        (init,) = psutil.Process(driver.pid).children()
        until(lambda: init.name() == "sleep")  # what comes when the driver has ended
        with pytest.raises(LeaseError, match="7 of 8 CPUs") as refused:
            book.acquire(PUS, wait=False)
        if not keeps_locks:
            assert "(sleep, user root) still runs on CPUs 0" in str(refused.value)
    with book.acquire(PUS, timeout=30):
        pass


def test_a_container_without_access_says_that_its_leases_are_counted_alone(place: Path) -> None:
    alone = """
from qcthreads.leases import lease, node_ledger
with lease(1) as held:
    print(type(node_ledger()).__name__, len(held.cpus), flush=True)
"""
    mounts = "mount -t tmpfs none /run && mount -t tmpfs -o ro none /dev/shm"
    with container(place, alone, before=f"exec 2>&1; {mounts}; unset XDG_RUNTIME_DIR QCTHREADS_LEASES") as process:
        warning = said(process)
        assert "leases are counted in this process alone: there is no /run/qcthreads; /dev/shm/" in warning
        assert "Read-only file system" in warning
        assert said(process) == "Ledger 1"
