"""Counts who really worked during one calculation, and where, by frequent looks; changes nothing it looks at."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from ..cpuset import CpuSet
from ..errors import BindingError
from ..host import get_host
from .sampler import ThreadSampler

# Between two looks: a thread that lives shorter has done little of a calculation of a second.
_LOOK_S = 0.05

# Of its process's CPU time: less is a thread that waits and polls.
_THREAD_SHARE = 0.05

# Of the busiest process's CPU time: less is a launcher, or the driver that waits for the program.
_PROCESS_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the processes below one did during a calculation."""

    threads: int
    """That really worked: a twentieth of their process's CPU time or more, of processes with a fifth of the busiest's;
    the most that lived at the same time."""
    processes: int
    """That these threads belong to."""
    cpus_seen: CpuSet
    """CPUs that they were seen on."""
    cpus_allowed: CpuSet
    """CPUs of their masks, as last seen; empty where the platform does not tell."""
    looks_by_cpu: dict[int, int]
    """How often they were seen on each CPU, having worked since the look before."""
    memory_peak_bytes: int
    """The sum of the peaks of processes that lived side by side: exact for one, an upper bound for several."""

    def outside_share(self, cpus: CpuSet) -> float:
        """Of the looks, how many found a thread that worked outside ``cpus``."""
        outside = sum(looks for cpu, looks in self.looks_by_cpu.items() if cpu not in cpus)
        return outside / max(1, sum(self.looks_by_cpu.values()))


class WorkCounter:
    """Looks at process ``pid`` and its descendants from entering the context until leaving it.

    Raises ProcessGoneError when there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self._sampler = ThreadSampler([pid])
        self._threads: dict[tuple[int, int], _Thread] = {}
        self._alive: set[frozenset[tuple[int, int]]] = set()
        self._memory_peak_bytes = 0
        self._stop = threading.Event()
        self._looker = threading.Thread(target=self._look_on, name="qcthreads-work", daemon=True)

    def __enter__(self) -> Self:
        self._look()
        for thread in self._threads.values():
            thread.begin_ns = thread.cpu_ns
            thread.looks.clear()
        self._looker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._looker.join()
        self._look()
        self._sampler.close()

    def work(self) -> Work:
        """What was seen."""
        working = self._working()
        together = max((alive & working.keys() for alive in self._alive), key=len, default=frozenset())
        looks: Counter[int] = Counter()
        allowed = 0
        for thread in working.values():
            looks.update(thread.looks)
            allowed |= thread.mask.bits
        return Work(
            threads=len(together),
            processes=len({pid for pid, _ in together}),
            cpus_seen=CpuSet(looks),
            cpus_allowed=CpuSet.from_bits(allowed),
            looks_by_cpu=dict(looks),
            memory_peak_bytes=self._memory_peak_bytes,
        )

    def _look_on(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        sample = self._sampler.look()
        assert sample.details is not None
        assert sample.processes is not None
        places, threads = sample.details["last_cpu"].tolist(), sample.threads.tolist()
        self._alive.add(frozenset((pid, tid) for pid, tid, *_ in threads))
        for (pid, tid, cpu_ns, *_), cpu in zip(threads, places, strict=True):
            thread = self._threads.setdefault((pid, tid), _Thread())
            if cpu_ns > thread.cpu_ns and cpu >= 0:
                thread.looks[cpu] += 1
            thread.cpu_ns = cpu_ns
            thread.mask = _mask(tid) or thread.mask
        self._memory_peak_bytes = max(self._memory_peak_bytes, int(sample.processes["memory_peak_bytes"].sum()))

    def _working(self) -> dict[tuple[int, int], _Thread]:
        used_ns: Counter[int] = Counter()
        for (pid, _), thread in self._threads.items():
            used_ns[pid] += thread.used_ns
        busiest_ns = max(used_ns.values(), default=0)
        return {
            (pid, tid): thread
            for (pid, tid), thread in self._threads.items()
            if used_ns[pid] > _PROCESS_SHARE * busiest_ns and thread.used_ns > _THREAD_SHARE * used_ns[pid]
        }


@dataclass(slots=True)
class _Thread:
    """A thread as last seen."""

    begin_ns: int = 0
    cpu_ns: int = 0
    mask: CpuSet = field(default_factory=CpuSet)
    looks: Counter[int] = field(default_factory=Counter)

    @property
    def used_ns(self) -> int:
        return self.cpu_ns - self.begin_ns


def _mask(tid: int) -> CpuSet:
    """Empty for a thread that has ended in between, and where the platform does not tell."""
    try:
        return get_host().get_affinity(tid)
    except BindingError:
        return CpuSet()
