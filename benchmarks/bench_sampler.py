"""Samples of threads beside psutil and a bare loop of pread in C, and what sampling costs a run; asserts nothing.

    python benchmarks/bench_sampler.py [--rounds N] [--seconds S] [--pairs N]

The threads sleep, in 1 to 64 processes. The loop in C is built here; it reads the same files through descriptors of its
own and looks at nothing. The contenders take turns. Descriptors are needed for three files of each thread, twice; what
the limit on open files does not allow is left out.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil

from qcthreads import ThreadSampler
from qcthreads.host import get_host
from qcthreads.monitoring.sampler import BackgroundSampler

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

# Work of fixed size that is neither memory nor disk.
WORK = "import hashlib\nfor _ in range(700): hashlib.sha256(bytes(1 << 20)).digest()"


def main() -> None:
    """Print the cost of a sample for each number of threads, then what the background sampler costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--pairs", type=int, default=15)
    args = parser.parse_args()
    raise_limit()
    print(f"back end {get_host().capabilities.back_end}; us for each thread and sample, median of {args.rounds} rounds")
    print(f"{'':14} {'fast':>37}   {'with details':>26}")
    print(
        f"{'threads':>7} {'in':>6} {'psutil':>8} {'bare C':>8} {'ours':>8} {'x psutil':>9} {'/ bare':>7}"
        f"  {'bare C':>8} {'ours':>8} {'/ bare':>7}"
    )
    for processes, threads in ((1, 16), (1, 64), (64, 1), (8, 16), (1, 256), (16, 64), (1, 1024), (64, 64), (1, 4096)):
        compare(processes, threads, args.rounds)
    overhead(args.seconds)
    slowdown(args.pairs)


def raise_limit() -> None:
    """As many descriptors as the system gives: the limit is not what is measured."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        most = int(Path("/proc/sys/fs/nr_open").read_text())
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, PermissionError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def compare(processes: int, threads: int, rounds: int) -> None:
    """One line."""
    total = processes * threads
    with sleepers(processes, threads) as pids:
        known = [psutil.Process(pid) for pid in pids]
        with Bare(pids, ["schedstat"]) as bare, ThreadSampler(pids) as sampler:
            contenders = {
                "psutil": lambda: [process.threads() for process in known],
                "bare": bare.read,
                "ours": sampler.sample,
            }
            fast = {name: median / total for name, median in medians_us(contenders, rounds).items()}
            assert len(sampler.sample()) == total
        print(
            f"{total:7} {processes:6} {fast['psutil']:8.2f} {fast['bare']:8.2f} {fast['ours']:8.2f} "
            f"{fast['psutil'] / fast['ours']:9.1f} {fast['ours'] / fast['bare']:7.2f}",
            end="",
        )
        if 2 * 3 * total > resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 / 4:
            print("  left out: too few descriptors", flush=True)
            return
    # The details of a thread that has not run since the last sample are not read again: all of these have.
    interval_s = max(0.01, total / WAKE_UPS)
    with (
        sleepers(processes, threads, interval_s) as pids,
        Bare(pids, ["schedstat", "stat", "status"]) as bare,
        ThreadSampler(pids) as sampler,
    ):
        contenders = {"bare": bare.read, "ours": lambda: sampler.look(detail=True)}
        found = medians_us(contenders, min(rounds, 21), pause_s=1.5 * interval_s)
        detailed = {name: median / total for name, median in found.items()}
    ratio = detailed["ours"] / detailed["bare"]
    print(f"  {detailed['bare']:8.2f} {detailed['ours']:8.2f} {ratio:7.2f}", flush=True)


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
    """The default rates on 128 threads, by the sampler's own CPU clock."""
    print(f"\nbackground sampler, default rates (10 Hz, with details 1 Hz), 128 threads, {seconds:g} s")
    for what, interval_s in (("asleep", 0.0), ("that wake up 10 times a second", 0.1)):
        with sleepers(2, 64, interval_s) as pids, BackgroundSampler(pids) as background:
            time.sleep(seconds)
        counts = background.counts
        print(
            f"{what}: {counts.own_cpu_ns / seconds / 1e9:.3%} of a core, {counts.samples} samples, "
            f"{counts.overruns} overruns"
        )
    kept = list(background.take())
    size = sum(sample.size_bytes for sample in kept)
    print(
        f"memory: {size / len(kept):.0f} bytes a sample, {size / seconds * 3600 / 1e6:.0f} MB an hour if all are kept"
    )


def slowdown(pairs: int) -> None:
    """Work of fixed size on every CPU, with and without a sampler at 100 Hz; the pairs are in a random order."""
    if not pairs:
        return
    ratios = []
    for _ in range(pairs):
        times = {}
        for sampled in random.sample([False, True], 2):
            times[sampled] = timed_work(sampled)
        ratios.append(times[True] / times[False])
    means = sorted(statistics.fmean(random.choices(ratios, k=pairs)) for _ in range(10_000))
    print(
        f"work with a sampler at 100 Hz / without, {pairs} pairs: mean {statistics.fmean(ratios):.4f}, "
        f"95 % interval {means[250]:.4f} to {means[-250]:.4f}"
    )


def timed_work(sampled: bool) -> float:
    """Seconds until each of as many processes as there are CPUs has done its work."""
    begin = time.perf_counter()
    workers = [subprocess.Popen([sys.executable, "-c", WORK]) for _ in os.sched_getaffinity(0)]
    background = BackgroundSampler([worker.pid for worker in workers], fast_hz=100) if sampled else None
    if background is not None:
        background.__enter__()
    for worker in workers:
        worker.wait()
    elapsed = time.perf_counter() - begin
    if background is not None:
        background.stop()
    return elapsed


if __name__ == "__main__":
    main()
