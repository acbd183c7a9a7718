"""Samples of threads beside psutil and a bare loop of pread in C, and what sampling costs a run; asserts nothing.

    python benchmarks/bench_sampler.py [cost] [overhead] [slowdown] [memory] [--rounds N] [--seconds S] [--pairs N]

cost: a sample of threads that sleep, and of threads that have all run since the last one, in 1 to 64 processes.
overhead: the background sampler at its default rates, by its own CPU clock.
slowdown: work on every CPU in short windows, with a sampler at 100 Hz in one of each pair of them.
memory: the samples of an hour, taken in 36 s.

The loop in C is built here; it reads the same files through descriptors of its own and looks at nothing. The contenders
take turns. Descriptors are needed for three files of each thread, twice; what the limit on open files does not allow is
left out.
"""

from __future__ import annotations

import collections
import ctypes
import mmap
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Self

import asking
import psutil

from qcthreads import ThreadSampler
from qcthreads.host import get_host
from qcthreads.monitoring.intervals import median_interval
from qcthreads.monitoring.sampler import RING_BYTES, BackgroundSampler

BARE = """
#include <unistd.h>
long bare(const int *files, long count) {
    char text[16384];
    long read = 0;
    for (long i = 0; i < count; i++)
        read += pread(files[i], text, sizeof text, 0);
    return read;
}
"""

SLEEPERS = """
import os, sys, threading
threading.stack_size(65536)
processes, threads, interval_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def member():
    while True:
        threading.Event().wait(interval_s or None)
for _ in range(processes - 1):
    if os.fork() == 0:
        break
for _ in range(threads - 1):
    threading.Thread(target=member, daemon=True).start()
os.write(1, b"%d\\n" % os.getpid())
os.read(0, 1)
os._exit(0)
"""

# In a second, of all threads together; they cost a tenth of a core.
WAKE_UPS = 5000

# Work that is neither memory nor disk, in units of some 50 us, counted where others can read it.
WORK = """
import hashlib, mmap, sys
done = memoryview(mmap.mmap(int(sys.argv[1]), 0)).cast("Q")
number, data = int(sys.argv[2]), bytes(1 << 16)
while True:
    hashlib.sha256(data).digest()
    done[number] += 1
"""

# Until every file is open and the details of threads that sleep were read twice.
BEGIN_S = 2.5

# Short against what others on the machine do, long against a unit of work; and until a sampler has begun.
WINDOW_S, SETTLE_S = 0.2, 0.02


def main() -> None:
    """Print what was asked for; all of it if nothing was."""
    parser = asking.parser(__doc__, rounds=41)
    parser.add_argument("what", nargs="*", choices=["cost", "overhead", "slowdown", "memory", []])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument(
        "--pairs", type=asking.at_least(1), default=500, help="of windows; the interval needs fewer than 1000"
    )
    args = parser.parse_args()
    raise_limit()
    parts = {
        "cost": lambda: cost(args.rounds),
        "overhead": lambda: overhead(args.seconds),
        "slowdown": lambda: slowdown(args.pairs),
        "memory": memory,
    }
    settings = f"--rounds {args.rounds} --seconds {args.seconds:g} --pairs {args.pairs}"
    for name in args.what or parts:
        print(f"$ python benchmarks/bench_sampler.py {name} {settings}", flush=True)
        parts[name]()
        print(flush=True)


def raise_limit() -> None:
    """As many descriptors as the system gives: the limit is not what is measured."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        most = int(Path("/proc/sys/fs/nr_open").read_text())
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, PermissionError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cost(rounds: int) -> None:
    """A table of times for each thread and sample."""
    print(f"back end {get_host().capabilities.back_end}; us for each thread and sample, median of {rounds} rounds")
    groups = [("fast, asleep", 37), ("fast, all have run", 37), ("with details, all have run", 26)]
    print(" " * 14 + "".join(f"  {title:>{width}}" for title, width in groups))
    fast = f"{'psutil':>9} {'bare C':>8} {'ours':>8} {'x psutil':>9} {'/ bare':>7}"[2:]
    print(f"{'threads':>7} {'in':>6}  {fast}  {fast}  {'bare C':>10} {'ours':>8} {'/ bare':>7}")
    for processes, threads in ((1, 16), (1, 64), (64, 1), (8, 16), (1, 256), (16, 64), (1, 1024), (64, 64), (1, 4096)):
        compare(processes, threads, rounds)


def compare(processes: int, threads: int, rounds: int) -> None:
    """One line."""
    total = processes * threads
    print(f"{total:7} {processes:6}", end="")
    with sleepers(processes, threads) as pids, Bare(pids, ["schedstat"]) as bare, ThreadSampler(pids) as sampler:
        print_fast(medians_us(fast_contenders(pids, bare, sampler), rounds), total)
        assert len(sampler.sample()) == total
    interval_s = max(0.01, total / WAKE_UPS)
    pause_s, rounds = 1.5 * interval_s, min(rounds, 21)
    with sleepers(processes, threads, interval_s) as pids:
        with Bare(pids, ["schedstat"]) as bare, ThreadSampler(pids) as sampler:
            print_fast(medians_us(fast_contenders(pids, bare, sampler), rounds, pause_s), total)
        if 2 * 3 * total > resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 / 4:
            print("  left out: too few descriptors", flush=True)
            return
        with Bare(pids, ["schedstat", "stat", "status"]) as bare, ThreadSampler(pids) as sampler:
            contenders = {"bare": bare.read, "ours": lambda: sampler.look(detail=True)}
            found = {name: median / total for name, median in medians_us(contenders, rounds, pause_s).items()}
    print(f"  {found['bare']:10.2f} {found['ours']:8.2f} {found['ours'] / found['bare']:7.2f}", flush=True)


def fast_contenders(pids: list[int], bare: Bare, sampler: ThreadSampler) -> dict[str, Callable[[], object]]:
    """Who reads the times of threads alone."""
    known = [psutil.Process(pid) for pid in pids]
    return {
        "psutil": lambda: [process.threads() for process in known],
        "bare": bare.read,
        "ours": sampler.sample,
    }


def print_fast(medians: Mapping[str, float], total: int) -> None:
    """Their part of a line."""
    us = {name: median / total for name, median in medians.items()}
    print(
        f"  {us['psutil']:7.2f} {us['bare']:8.2f} {us['ours']:8.2f} {us['psutil'] / us['ours']:9.1f} "
        f"{us['ours'] / us['bare']:7.2f}",
        end="",
        flush=True,
    )


@contextmanager
def sleepers(processes: int, threads: int, interval_s: float = 0) -> Iterator[list[int]]:
    """Processes of so many threads each that sleep, or wake up at this interval."""
    command = [sys.executable, "-c", SLEEPERS, str(processes), str(threads), str(interval_s)]
    # They end with their standard input, whatever happens here.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        try:
            yield [int(parent.stdout.readline()) for _ in range(processes)]
        finally:
            parent.stdin.close()


class Bare:
    """A loop over descriptors of files of every thread of these processes."""

    def __init__(self, pids: list[int], names: list[str]) -> None:
        library = ctypes.CDLL(str(built()))
        library.bare.restype, library.bare.argtypes = ctypes.c_long, [ctypes.c_void_p, ctypes.c_long]
        self._read = library.bare
        self._files = [
            os.open(task / name, os.O_RDONLY | os.O_CLOEXEC)
            for pid in pids
            for task in Path(f"/proc/{pid}/task").iterdir()
            for name in names
        ]
        self._array = (ctypes.c_int * len(self._files))(*self._files)

    def __enter__(self) -> Self:
        return self

    def read(self) -> None:
        """Once."""
        self._read(self._array, len(self._array))

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file)


def built() -> Path:
    """The loop as a library."""
    library = Path(tempfile.gettempdir()) / f"qcthreads-bare-{os.getuid()}.so"
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=BARE, text=True, check=True)
    return library


def medians_us(contenders: Mapping[str, Callable[[], object]], rounds: int, pause_s: float = 0) -> dict[str, float]:
    """The contenders take turns, each after a pause; the first round of each is not counted."""
    times_us: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            time.sleep(pause_s)
            start_ns = time.perf_counter_ns()
            run()
            if number:
                times_us[name].append((time.perf_counter_ns() - start_ns) / 1e3)
    return {name: statistics.median(found) for name, found in times_us.items()}


def overhead(seconds: float) -> None:
    """The default rates on 128 threads, by the sampler's own CPU clock once it has begun, after bare loops."""
    print(f"background sampler, default rates (10 Hz, with details 1 Hz), 128 threads, {seconds:g} s each")
    for what, interval_s in (("asleep", 0.0), ("that wake up 10 times a second", 0.1)):
        with sleepers(2, 64, interval_s) as pids:
            with Bare(pids, ["schedstat"]) as times, Bare(pids, ["stat"]) as details:
                bare = bare_overhead(times, details, seconds)
            with BackgroundSampler(pids) as background:
                time.sleep(BEGIN_S)
                begun = background.counts
                time.sleep(seconds)
                ended = background.counts
        own_ns, samples = ended.own_cpu_ns - begun.own_cpu_ns, ended.samples - begun.samples
        print(
            f"{what}: {own_ns / seconds / 1e9:.3%} of a core, {samples} samples, {ended.overruns} overruns; a bare "
            f"loop that reads all of them takes {bare:.3%}; to begin took {begun.own_cpu_ns / 1e6:.1f} ms in "
            f"{BEGIN_S:g} s"
        )


def bare_overhead(times: Bare, details: Bare, seconds: float) -> float:
    """The share of a core that loops over the same files take at the same rates, their own waking up left out."""
    spent_ns = 0
    for number in range(round(10 * seconds)):
        time.sleep(0.1)
        start_ns = time.thread_time_ns()
        times.read()
        if number % 10 == 0:
            details.read()
        spent_ns += time.thread_time_ns() - start_ns
    return spent_ns / seconds / 1e9


def memory() -> None:
    """As many samples of 128 threads as an hour has at the default rates, taken a hundred times as fast."""
    print("36,000 samples of 128 threads, one in ten with details: an hour at the default rates")
    for what, ring_bytes, taken in (
        ("taken as they come", RING_BYTES, True),
        ("never taken, the default ring", RING_BYTES, False),
        ("never taken, a ring of 512 MiB", 512 << 20, False),
    ):
        grown_bytes, dropped = grown_in_an_hour(ring_bytes, taken)
        print(f"{what}: {grown_bytes / 1e6:.1f} MB more resident, {dropped} samples dropped", flush=True)


def grown_in_an_hour(ring_bytes: int, taken: bool) -> tuple[int, int]:
    """What the process has grown by, and how many samples were dropped."""
    before = resident_bytes()
    with sleepers(2, 64) as pids, BackgroundSampler(pids, fast_hz=1000, detail_hz=100, ring_bytes=ring_bytes) as made:
        while made.counts.samples < 36_000:
            time.sleep(0.01)
            if taken:
                collections.deque(made.take(), maxlen=0)
        return resident_bytes() - before, made.counts.dropped


def resident_bytes() -> int:
    """Of this process, now."""
    return int(psutil.Process().memory_info().rss)


def slowdown(pairs: int) -> None:
    """What a unit of work takes on every CPU in short windows, every other one of them with a sampler at 100 Hz."""
    ratios: list[tuple[float, float]] = []
    with workers() as (pids, done):
        for _ in range(pairs):
            takes = {}
            for sampled in random.sample([False, True], 2):
                with BackgroundSampler(pids, fast_hz=100, detail_hz=10) if sampled else nullcontext() as background:
                    time.sleep(SETTLE_S)
                    takes[sampled] = unit_takes(pids, done, background)
            ratios.append((takes[True][0] / takes[False][0], takes[True][1] / takes[False][1]))
    print(
        f"work on {len(pids)} CPUs with a sampler at 100 Hz (details at 10 Hz) / without, {pairs} pairs of windows of "
        f"{WINDOW_S:g} s"
    )
    for what, column in (("wall time", 0), ("CPU time, the sampler's with it", 1)):
        found = median_interval(pair[column] for pair in ratios)
        print(f"{what}: median {found.median:.4f}, {found.coverage:.1%} interval {found.low:.4f} to {found.high:.4f}")


@contextmanager
def workers() -> Iterator[tuple[list[int], memoryview]]:
    """A process for each CPU that works without end, and how much each has done."""
    cpus = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryFile() as file:
        file.truncate(8 * len(cpus))
        descriptor = file.fileno()
        started = []
        try:
            for number, cpu in enumerate(cpus):
                command = ["taskset", "-c", str(cpu), sys.executable, "-c", WORK, str(descriptor), str(number)]
                started.append(subprocess.Popen(command, pass_fds=[descriptor]))
            done = memoryview(mmap.mmap(descriptor, 0)).cast("Q")
            while not all(done):
                time.sleep(0.01)
            yield [worker.pid for worker in started], done
        finally:
            for worker in started:
                worker.kill()
                worker.wait()


def unit_takes(pids: list[int], done: memoryview, background: BackgroundSampler | None) -> tuple[float, float]:
    """Wall and CPU time of a unit of work in one window, by the clocks of the processes and of the sampler."""

    def now() -> tuple[float, int, int]:
        # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel
        used_ns = sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)
        return time.perf_counter(), sum(done), used_ns + (background.counts.own_cpu_ns if background else 0)

    before = now()
    time.sleep(WINDOW_S)
    wall_s, units, cpu_ns = (end - begin for begin, end in zip(before, now(), strict=True))
    return wall_s / units, cpu_ns / units


if __name__ == "__main__":
    main()
