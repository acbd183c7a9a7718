"""Processes that contend for leases and are killed at random moments, and an observer that looks at what runs where.

Everything that works under a lease is a real process with the CPUs and the memory of its lease in its environment (and
in its mask, where the machine has these CPUs); the observer reads /proc and knows nothing of locks and records.
"""

from __future__ import annotations

import os
import random
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
from qcthreads.leases import Lease, LeaseBook, shared
from qcthreads.leases.place import find_place
from qcthreads.leases.shared import SharedLedger
from qcthreads.machine import Machine

CPUS, MEMORY = "QCT_TEST_CPUS", "QCT_TEST_MEMORY"
CLOSES_FILES = """
for file in /proc/$$/fd/*; do
  file=${file##*/}
  [ "$file" -gt 2 ] && eval "exec $file>&-"
done
exec sleep "$1"
"""
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
    for ledger in tuple(shared._ledgers):
        if ledger.place.path == directory:
            ledger.after_fork()


def contend(directory: Path, machine: Machine, seed: int) -> None:
    """Lease, start something, wait for it or leave it behind, release; until killed."""
    rng = random.Random(seed)
    book = book_in(directory, machine, rng.choice(["wait", "end"]))
    most = len(book.usable)
    while True:
        width = rng.choice([1, 1, 1, 2, max(1, most // 2), most])
        lease = book.acquire(width, rng.randint(0, 20) * TOTAL_BYTES // 40, exclusive_cores=rng.random() < 0.5)
        child = start(lease, f"{rng.random() * 0.02:.4f}", keeps_locks=rng.random() < 0.7)
        if rng.random() < 0.8:
            child.wait()
        lease.release()
        if child.poll() is None:
            child.wait()


def start(lease: Lease, seconds: str, *, keeps_locks: bool) -> subprocess.Popen[bytes]:
    """Something that works under ``lease`` for so long; like many programs it may close what it has inherited."""
    told = {CPUS: str(lease.cpus), MEMORY: str(lease.memory_bytes)}
    command = ["sleep", seconds] if keeps_locks else ["bash", "-c", CLOSES_FILES, "bash", seconds]
    if lease.cpus <= CpuSet(range(os.cpu_count() or 1)):
        return lease.popen(command, env={**os.environ, **told}, start_new_session=True)
    # As popen does, but there are no such CPUs to bind to.
    environment = {**os.environ, **lease.environment, **told}
    child = subprocess.Popen(command, env=environment, pass_fds=lease.descriptors(), start_new_session=True)
    lease.children.append(child)
    return child


@dataclass
class Observer:
    """Looks at all processes again and again."""

    overlaps: list[str] = field(default_factory=list)
    looks: int = 0
    seen: set[tuple[int, str]] = field(default_factory=set)
    most_bytes: int = 0

    def look(self) -> None:
        """Once through /proc. Two on one CPU overlap if the first still lives when the second has been seen."""
        self.looks += 1
        by_cpu: dict[int, tuple[int, str]] = {}
        memory: dict[tuple[int, str], int] = {}
        for pid, started, cpus, memory_bytes in workers():
            memory[pid, started] = memory_bytes
            self.seen.add((pid, started))
            for cpu in cpus:
                other = by_cpu.setdefault(cpu, (pid, started))
                if other != (pid, started):
                    if start_of(other[0]) == other[1]:
                        self.overlaps.append(f"CPU {cpu}: processes {other[0]} and {pid}")
                    by_cpu[cpu] = (pid, started)
        total = sum(memory_bytes for (pid, started), memory_bytes in memory.items() if start_of(pid) == started)
        self.most_bytes = max(self.most_bytes, total)


def workers() -> Iterator[tuple[int, str, CpuSet, int]]:
    """Every live process that works under a lease: number, start, CPUs, memory."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
            if f"{CPUS}=".encode() not in environment or Path(f"/proc/{name}/comm").read_text() != "sleep\n":
                continue
            said = dict(part.partition("=")[::2] for part in environment.decode().split("\0") if part)
        except (OSError, UnicodeDecodeError):
            continue
        started = start_of(int(name))
        if started is not None:
            yield int(name), started, CpuSet.parse(said[CPUS]), int(said[MEMORY])


def start_of(pid: int) -> str | None:
    """When ``pid`` started; ``None`` when it has ended, or is ending and runs its program no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") or int(fields[6]) & _PF_EXITING else fields[19]


class Contenders:
    """So many forks of this process that contend; those that are killed are replaced."""

    def __init__(self, directory: Path, machine: Machine, count: int, seed: int) -> None:
        self._directory, self._machine, self._count = directory, machine, count
        self._rng = random.Random(seed)
        self.pids: set[int] = set()
        self.kills = 0
        self.killed_workers = 0
        self.faults = directory.with_suffix(".faults")

    def fill(self) -> None:
        """Replace those that have ended."""
        while len(self.pids) < self._count:
            seed = self._rng.getrandbits(32)
            pid = os.fork()
            if pid == 0:
                self._be_one(seed)
            self.pids.add(pid)

    def kill_one(self) -> None:
        """Kill -9: mostly a contender, sometimes what works under a lease."""
        if self._rng.random() < 0.2:
            found = list(workers())
            if found:
                with suppress(ProcessLookupError):
                    os.kill(self._rng.choice(found)[0], signal.SIGKILL)
                self.kills += 1
                self.killed_workers += 1
            return
        pid = self._rng.choice(sorted(self.pids))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.pids.discard(pid)
        self.kills += 1

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
    contenders, observer, rng = Contenders(directory, machine, count, seed), Observer(), random.Random(seed)
    try:
        while contenders.kills < kills:
            contenders.fill()
            until = time.monotonic() + rng.random() * 0.01
            while True:
                observer.look()
                if time.monotonic() >= until:
                    break
            contenders.kill_one()
    finally:
        contenders.end()
    return contenders, observer
