"""What a lease costs that nobody else wants, how fast it changes hands, how long 64 wait, and what 10,000 kills leave.

    python benchmarks/bench_leases.py [--kills 10000]

A lease on the node's book is compared with one that only this process knows of, and with the bare system calls that it
cannot do without: a lock for the door and one for each PU, and a file that is made and removed.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import asking

from qcthreads.host import read_machine
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import LeaseBook
from qcthreads.leases.ledger import Ledger
from qcthreads.leases.place import find_place
from qcthreads.leases.shared import SharedLedger
from qcthreads.machine import Machine
from qcthreads.machine.synthetic import synthetic_machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/integration"))
from contenders import TOTAL_BYTES, book_in, kill_many

BATCH = 20
RECORD = bytes(400)  # about as long as one


def main() -> None:
    parser = asking.parser(__doc__)
    parser.add_argument("--kills", type=asking.at_least(1), default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        print_uncontended(Path(folder))
        print_hand_over(Path(folder) / "hand over")
        print_contended(Path(folder) / "contended")
        print_kills(Path(folder) / "kills", arguments.kills)


def print_uncontended(folder: Path, rounds: int = 300) -> None:
    print(f"lease and release when nobody else wants anything; us, median (90 %) of {rounds} rounds of {BATCH}")
    print(f"{'':12} {'node':>15} {'one process':>15} {'system calls':>15}  node / system calls")
    machines = {"4 of 256 PUs": (4, synthetic_machine(packages=2, cores=64, threads=2)), "2 of 2 PUs": (2, _pair())}
    for name, (width, machine) in machines.items():
        node = SharedLedger(find_place({"QCTHREADS_LEASES": str(folder / name)}))
        calls = [
            *[partial(_lease, _book(machine, ledger), width) for ledger in (node, Ledger())],
            partial(next, _bare(folder / f"{name}, bare", width)),
        ]
        times_us: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            for call, into in zip(calls, times_us, strict=True):
                began = time.perf_counter()
                for _ in range(BATCH):
                    call()
                into.append((time.perf_counter() - began) / BATCH * 1e6)
        columns = [f"{statistics.median(one):8.1f} ({sorted(one)[rounds * 9 // 10]:.0f})" for one in times_us]
        ratio = statistics.median(times_us[0]) / statistics.median(times_us[2])
        print(f"{name:12} {' '.join(f'{column:>15}' for column in columns)} {ratio:10.1f}")


def print_hand_over(place: Path, times: int = 300) -> None:
    """Two processes take turns on all PUs: from before the release in one until the lease is there in the other."""

    def takes_turns(say: Callable[[float, float], None]) -> None:
        book = book_in(place, _pair())
        for _ in range(times):
            lease = book.acquire(2)
            got = time.monotonic()
            time.sleep(0.002)
            say(got, time.monotonic())
            lease.release()

    with ExitStack() as stack:
        said = [stack.enter_context(_process(takes_turns)) for _ in range(2)]
        holds = sorted(pair for one in said for pair in one(times))
    gaps_ms = [(got - released) * 1e3 for (_, released), (got, _) in itertools.pairwise(holds)]
    print(f"hand-over from a release in one process to the lease in another, {len(gaps_ms)} times: {_spread(gaps_ms)}")


def print_contended(place: Path, count: int = 64, times: int = 10) -> None:
    """Each wants one to four of 16 PUs for 5 ms, again and again."""
    machine = synthetic_machine(packages=2, cores=8)

    def leases(say: Callable[[float, float], None]) -> None:
        book = book_in(place, machine)
        for number in range(times):
            began = time.monotonic()
            with book.acquire(1 + (number + os.getpid()) % 4):
                say(began, time.monotonic())
                time.sleep(0.005)

    with ExitStack() as stack:
        said = [stack.enter_context(_process(leases)) for _ in range(count)]
        pairs = [pair for one in said for pair in one(times)]
    wall_s = max(got for _, got in pairs) - min(began for began, _ in pairs)
    print(
        f"{count} processes, {len(pairs)} leases in {wall_s:.2f} s; waits: {_spread([(b - a) * 1e3 for a, b in pairs])}"
    )


def print_kills(place: Path, kills: int) -> None:
    machine = read_machine()
    began = time.monotonic()
    contenders, observer = kill_many(place, machine, kills)
    wall_s = time.monotonic() - began
    book = book_in(place, machine)
    with book.acquire(len(book.usable), TOTAL_BYTES, timeout=60):
        lost = 0
    left = len(list((place / "records").iterdir()))
    started = place.with_suffix(".started").stat().st_size
    print(
        f"{contenders.kills} kills among 16 processes in {wall_s:.0f} s, {len(observer.seen)} of {started} workers "
        f"seen in {observer.looks} looks: {len(observer.overlaps)} overlaps, {len(observer.escaped)} elsewhere than "
        f"leased, {lost} CPUs lost, {left} records left"
    )


def _pair() -> Machine:
    return synthetic_machine(cores=2)


def _lease(book: LeaseBook, width: int) -> None:
    book.acquire(width).release()


def _book(machine: Machine, ledger: Ledger) -> LeaseBook:
    cpus = machine.cpus_online
    rule = Rule("mask", "/proc/self/status", cpus=cpus, tightest=True)
    return LeaseBook(machine, Limits(cpus, len(cpus), None, TOTAL_BYTES, (rule,)), ledger=ledger)


def _bare(folder: Path, width: int) -> Iterator[None]:
    """What the kernel has to be asked for, in this order, and nothing else; ends when it is no longer wanted."""
    folder.mkdir()
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    door, *cpus = (os.open(folder / f"lock {number}", os.O_RDWR | os.O_CREAT) for number in range(width + 1))
    while True:
        fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for cpu in cpus:
            fcntl.flock(cpu, fcntl.LOCK_EX | fcntl.LOCK_NB)
        record = os.open("record", os.O_RDWR | os.O_CREAT | os.O_EXCL, dir_fd=directory)
        os.write(record, RECORD)
        os.close(record)
        fcntl.flock(door, fcntl.LOCK_UN)
        os.unlink("record", dir_fd=directory)
        for cpu in cpus:
            fcntl.flock(cpu, fcntl.LOCK_UN)
        yield


@contextmanager
def _process(
    act: Callable[[Callable[[float, float], None]], None],
) -> Iterator[Callable[[int], list[tuple[float, ...]]]]:
    """A fork that says pairs of times; what the context gives reads so many of them."""
    hears, says = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act(lambda *pair: os.write(says, struct.pack("dd", *pair)))
        finally:
            os._exit(0)
    os.close(says)

    def read(count: int) -> list[tuple[float, ...]]:
        with os.fdopen(hears, "rb") as pipe:
            return list(struct.iter_unpack("dd", pipe.read(16 * count)))

    yield read
    os.waitpid(pid, 0)


def _spread(times_ms: list[float]) -> str:
    ordered = sorted(times_ms)
    median, most = statistics.median(ordered), ordered[len(ordered) * 9 // 10]
    return f"{median:.2f} ms median, {most:.2f} ms 90 %, {ordered[-1]:.2f} ms at worst"


if __name__ == "__main__":
    main()
