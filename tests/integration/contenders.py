"""Processes that contend for leases and are killed at random moments, and an observer that looks at what runs where.

Everything that works under a lease is a real process with the CPUs and the memory of its lease in its environment, and
bound to these CPUs where the machine has them. The observer reads /proc and knows nothing of locks and records. Of CPUs
that are not here he believes what the environment says; of others he reads every thread's mask and last CPU.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from qcthreads.cpuset import CpuSet
from qcthreads.host.limits import Limits, Rule
from qcthreads.leases import Lease, LeaseBook
from qcthreads.leases.ledger import ledgers
from qcthreads.leases.place import find_place
from qcthreads.leases.shared import SharedLedger
from qcthreads.machine import Machine

BOOK, CPUS, MEMORY = "QCT_TEST_BOOK", "QCT_TEST_CPUS", "QCT_TEST_MEMORY"
RESERVED = "QCT_TEST_RESERVED"
CLOSES_FILES = """
for file in /proc/$$/fd/*; do
  file=${file##*/}
  [ "$file" -gt 2 ] && eval "exec $file>&-"
done
exec sleep "$1"
"""
HERE = CpuSet(range(os.cpu_count() or 1))
_PF_EXITING = 0x4  # linux/sched.h
TOTAL_BYTES = 64 * 1024**3


def book_in(directory: Path, machine: Machine, orphans: str = "wait") -> LeaseBook:
    """A book over all of ``machine`` whose ledger is in ``directory``."""
    rules = (
        Rule("mask", "/proc/self/status", cpus=machine.cpus_online, tightest=True),
        Rule("available memory", "/proc/meminfo", memory_bytes=TOTAL_BYTES, tightest=True),
    )
    limits = Limits(machine.cpus_online, len(machine.cpus_online), None, TOTAL_BYTES, rules)
    ledger = SharedLedger(find_place({"QCTHREADS_LEASES": str(directory)}))
    return LeaseBook(machine, limits, ledger=ledger, orphans=orphans)  # type: ignore[arg-type]


def close(directory: Path) -> None:
    """Close the files of all ledgers of this process that are in ``directory``: they would stay open until it ends."""
    for ledger in tuple(ledgers):
        if isinstance(ledger, SharedLedger) and ledger.place.path == str(directory):
            ledger.after_fork()


def contend(directory: Path, machine: Machine, seed: int) -> None:
    """Lease, start something, wait for it or leave it behind, release; until killed."""
    rng = random.Random(seed)
    if rng.random() < 0.2:
        os.environ["QCTHREADS_BACKEND"] = "portable"  # whose records are written from here
        os.write = write_slowly  # to be killed in the middle of a record
    book = book_in(directory, machine, rng.choice(["wait", "end"]))
    most = len(book.usable)
    while True:
        width = rng.choice([1, 1, 1, 2, max(1, most // 2), most])
        lease = book.acquire(width, rng.randint(0, 20) * TOTAL_BYTES // 40, exclusive_cores=rng.random() < 0.5)
        child = start(lease, f"{rng.random() * 0.02:.4f}", keeps_locks=rng.random() < 0.7)
        with directory.with_suffix(".started").open("a") as out:
            out.write(".")
        if rng.random() < 0.8:
            child.wait()
        lease.release()
        if child.poll() is None:
            child.wait()


def _book_of(lease: Lease) -> str:
    ledger = lease.book.ledger
    assert isinstance(ledger, SharedLedger)
    return str(ledger.place.path)


def write_slowly(descriptor: int, text: bytes) -> int:
    """As os.write, in two parts."""
    return os.pwrite(descriptor, text[:50], 0) + (time.sleep(0.003) or os.pwrite(descriptor, text[50:], 50))


def start(lease: Lease, seconds: str, *, keeps_locks: bool) -> subprocess.Popen[bytes]:
    """Something that works under ``lease`` for so long; like many programs it may close what it has inherited.

    Not where it cannot be bound: then its mask says that it runs elsewhere, under a lease of another.
    """
    told = {
        BOOK: _book_of(lease),
        CPUS: str(lease.cpus),
        RESERVED: str(lease.reserved),
        MEMORY: str(lease.memory_bytes),
    }
    command = ["sleep", seconds] if keeps_locks else ["bash", "-c", CLOSES_FILES, "bash", seconds]
    if lease.cpus <= HERE:
        return lease.popen(command, env={**os.environ, **told}, start_new_session=True)
    command = ["sleep", seconds]
    environment = {**os.environ, **lease.environment, **told}
    child = subprocess.Popen(command, env=environment, pass_fds=lease.descriptors(), start_new_session=True)
    lease.hold.started = True
    lease.hold.children.append(child)
    return child


@dataclass
class Observer:
    """Looks at all processes again and again; only those of one book need be disjoint."""

    book: Path
    overlaps: list[str] = field(default_factory=list)
    escaped: list[str] = field(default_factory=list)
    """What may run, or ran last, elsewhere than its lease says."""
    looks: int = 0
    seen: set[tuple[int, str]] = field(default_factory=set)
    most_bytes: int = 0
    working: list[tuple[int, str]] = field(default_factory=list)
    """At the last look."""

    def look(self) -> None:
        """Once through /proc. Two on one CPU overlap if the first still lives when the second has been seen."""
        self.looks += 1
        by_cpu: dict[int, tuple[int, str]] = {}
        memory: dict[tuple[int, str], int] = {}
        for pid, started, cpus, reserved, memory_bytes in workers(self.book):
            memory[pid, started] = memory_bytes
            self.seen.add((pid, started))
            runs_on = places_of(pid) if cpus <= HERE else cpus
            if runs_on != cpus and start_of(pid) == started:
                self.escaped.append(f"{_described(pid)} has a lease of CPUs {cpus} and runs on {runs_on}")
            for cpu in reserved | runs_on:
                other = by_cpu.setdefault(cpu, (pid, started))
                if other != (pid, started):
                    if start_of(other[0]) == other[1]:
                        self.overlaps.append(f"CPU {cpu}: {_described(other[0])} and {_described(pid)}")
                    by_cpu[cpu] = (pid, started)
        self.working = list(memory)
        total = sum(memory_bytes for (pid, started), memory_bytes in memory.items() if start_of(pid) == started)
        self.most_bytes = max(self.most_bytes, total)


def workers(book: Path) -> Iterator[tuple[int, str, CpuSet, CpuSet, int]]:
    """Every live process that works under a lease of ``book``: number, start, CPUs, those nobody else has, memory."""
    wanted = f"{BOOK}={book}\0".encode()
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
            # One that is just beginning another program shows a part of it.
            if wanted not in environment or Path(f"/proc/{name}/environ").read_bytes() != environment:
                continue
            said = dict(part.partition("=")[::2] for part in environment.decode().split("\0") if part)
        except (OSError, UnicodeDecodeError):
            continue
        started = start_of(int(name))
        if started is not None:
            yield int(name), started, CpuSet.parse(said[CPUS]), CpuSet.parse(said[RESERVED]), int(said[MEMORY])


def places_of(pid: int) -> CpuSet:
    """Where the threads of ``pid`` may run, as the kernel has it, and where they ran last; none when it has ended."""
    cpus = CpuSet()
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            (allowed,) = re.findall(r"^Cpus_allowed_list:\t(.*)$", (thread / "status").read_text(), re.MULTILINE)
            last = (thread / "stat").read_text().rpartition(")")[2].split()[36]
            cpus |= CpuSet.parse(allowed) | CpuSet([int(last)])
    return cpus


def start_of(pid: int) -> str | None:
    """When ``pid`` started; ``None`` when it has ended, or is ending and runs its program no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") or int(fields[6]) & _PF_EXITING else fields[19]


def _described(pid: int) -> str:
    """Process, parent, lease and open files."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        files = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return f"process {pid}, just ended"
    lease = [word.decode() for word in words if word.startswith(b"QCTHREADS_LEASE=")]
    return f"process {pid} of {parent_of(pid)} {lease} {files} started {start_of(pid)}"


def parent_of(pid: int) -> int:
    """0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Contenders:
    """So many forks of this process that contend; those that are killed are replaced."""

    def __init__(self, directory: Path, machine: Machine, count: int, seed: int) -> None:
        self._directory, self._machine, self._count = directory, machine, count
        self._rng = random.Random(seed)
        self.pids: set[int] = set()
        self.kills = 0
        self.faults = directory.with_suffix(".faults")

    def fill(self) -> None:
        """Replace those that have ended."""
        while len(self.pids) < self._count:
            seed = self._rng.getrandbits(32)
            pid = os.fork()
            if pid == 0:
                self._be_one(seed)
            self.pids.add(pid)

    def kill(self, working: list[tuple[int, str]]) -> None:
        """Kill -9: any contender, or one of those that are ``working`` under a lease, its driver, or both at once."""
        worker = next((one for one in self._rng.sample(working, len(working)) if start_of(one[0]) == one[1]), None)
        victims = [self._rng.choice(sorted(self.pids))]
        if worker is not None:
            driver = [pid for pid in (parent_of(worker[0]),) if pid in self.pids]
            victims = self._rng.choice([victims, driver, driver, [worker[0]], [*driver, worker[0]]])
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1
        for pid in self.pids.intersection(victims):
            os.waitpid(pid, 0)
            self.pids.discard(pid)

    def end(self) -> None:
        """Kill them all."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.pids.clear()

    def _be_one(self, seed: int) -> None:
        try:
            contend(self._directory, self._machine, seed)
        except BaseException:
            with self.faults.open("a") as out:
                traceback.print_exc(file=out)
        finally:
            os._exit(1)


def kill_many(
    directory: Path, machine: Machine, kills: int, *, count: int = 16, seed: int = 1
) -> tuple[Contenders, Observer]:
    """``kills`` kills of contenders and of their workers at random moments, observed all the while."""
    contenders, observer, rng = Contenders(directory, machine, count, seed), Observer(directory), random.Random(seed)
    try:
        while contenders.kills < kills:
            contenders.fill()
            began, pause_s = time.monotonic(), rng.random() * 0.02
            while time.monotonic() < began + pause_s or (not observer.working and time.monotonic() < began + 0.1):
                observer.look()
            contenders.kill(observer.working)
            observer.working = []
    finally:
        contenders.end()
    return contenders, observer
