"""Memory bandwidth, measured by STREAM's triad on the CPUs and the memory node it is given; it leases and stores none.

An element of a[i] = b[i] + s * c[i] on doubles counts 24 bytes, as likwid-bench counts its kernel ``stream``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..cpuset import CpuSet, NodeSet
from ..errors import MachineError
from ..machine import Machine
from ..units import format_size
from .binding import binding_error
from .select import get_host

if TYPE_CHECKING:
    import numpy as np

REPETITIONS = 10  # as many as STREAM's own (NTIMES)

# STREAM's rule: each of its three arrays is at least four times as large as all last-level caches together.
_TIMES_THE_CACHES = 3 * 4
# Below this, what the caches keep from one repetition to the next would be seen.
_LEAST_TIMES_THE_CACHES = 3 * 2
_CACHE_WHERE_UNKNOWN = 32 * 1024**2
# Of the memory that may be used: others need some, too.
_MOST_OF_MEMORY = 4

_BYTES_PER_ELEMENT = 24
_BLOCK = 1 << 14  # elements: three arrays of 128 KiB stay in the second cache of any core that numpy is built for

TriadMethod = Literal["native", "numpy"]


@dataclass(frozen=True, slots=True)
class Triad:
    """What was measured, and whether the memory was bound to the node asked for (else its threads touched it first)."""

    bytes_per_s: float
    node_bound: bool


def triad_method() -> TriadMethod:
    """What measures here; ``numpy`` reaches less: every block costs a call, and its threads share an interpreter."""
    if sys.platform == "win32":
        return "numpy"
    if sys.platform == "linux":
        return "native" if get_host().capabilities.back_end == "native" else "numpy"
    from .build_info import native_status

    return "native" if native_status()[0] else "numpy"


def working_set_bytes(machine: Machine, cpus: CpuSet, memory_bytes: int) -> int:
    """How large the three arrays are together, so that no cache can hold them.

    Raises MachineError where so much of ``memory_bytes``, all that may be used, would not be reasonable.
    """
    caches = sum(
        domain.size_bytes or _CACHE_WHERE_UNKNOWN for domain in machine.llc_domains if not domain.cpus.isdisjoint(cpus)
    )
    size_bytes = min(_TIMES_THE_CACHES * caches, memory_bytes // _MOST_OF_MEMORY)
    if size_bytes < _LEAST_TIMES_THE_CACHES * caches:
        raise MachineError(
            f"the bandwidth of the memory behind CPUs {cpus} was to be measured, but a quarter of the "
            f"{format_size(memory_bytes)} that may be used is too near to their caches' {format_size(caches)}; allow "
            f"{format_size(_MOST_OF_MEMORY * _LEAST_TIMES_THE_CACHES * caches)}"
        )
    return size_bytes


def measure_triad(cpus: Sequence[int], node: int | None, size_bytes: int, repetitions: int = REPETITIONS) -> Triad:
    """The best of ``repetitions`` by one thread on each of ``cpus``, each on a part of the arrays.

    Their memory is bound to ``node``; where that is ``None``, or memory cannot be bound here, each thread touches its
    part first, which puts it next to its CPU. Where the platform binds no thread (macOS), ``cpus`` only count.

    Raises a BindingError subclass for CPUs or nodes that are not there or not allowed; MemoryError.
    """
    if node is not None and get_host().capabilities.bind_memory:
        return Triad(_measure(cpus, node, size_bytes, repetitions), True)
    return Triad(_measure(cpus, None, size_bytes, repetitions), False)


def _measure(cpus: Sequence[int], node: int | None, size_bytes: int, repetitions: int) -> float:
    if triad_method() == "native":
        return _native_triad(cpus, node, size_bytes, repetitions)
    return _NumpyTriad(cpus, node, size_bytes, repetitions).bytes_per_s()


class _NumpyTriad:
    """The same without the extension: blocks that stay in a core's own cache, so that each array is moved once."""

    def __init__(self, cpus: Sequence[int], node: int | None, size_bytes: int, repetitions: int) -> None:
        import numpy as np

        count = size_bytes // _BYTES_PER_ELEMENT
        self._arrays = np.empty((3, count))  # no memory is behind it before it is touched
        if node is not None:
            get_host().bind_buffer(self._arrays.data, "bind", NodeSet([node])).enforced()
        self._cpus = cpus
        self._cuts = [count * number // len(cpus) for number in range(len(cpus) + 1)]
        self._repetitions = repetitions
        self._bytes = count * _BYTES_PER_ELEMENT
        self._spans_s: list[list[tuple[float, float]]] = [[] for _ in cpus]
        self._barrier = threading.Barrier(len(cpus))
        self._errors: list[BaseException] = []

    def bytes_per_s(self) -> float:
        """Run all threads to their end."""
        threads = [threading.Thread(target=self._run, args=[number]) for number in range(len(self._cpus))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        rounds = zip(*self._spans_s, strict=True)
        walls_s: list[float] = [max(end for _, end in spans) - min(begin for begin, _ in spans) for spans in rounds]
        return self._bytes / min(walls_s)

    def _run(self, number: int) -> None:
        try:
            self._bind(self._cpus[number])
            self._repeat(self._arrays[:, self._cuts[number] : self._cuts[number + 1]], self._spans_s[number])
        except threading.BrokenBarrierError:  # another thread says why
            pass
        except BaseException as error:
            self._errors.append(error)
            self._barrier.abort()

    def _bind(self, cpu: int) -> None:
        host = get_host()
        if host.capabilities.bind_thread:
            host.set_affinity(CpuSet([cpu])).enforced()

    def _repeat(
        self, part: np.ndarray[tuple[int, ...], np.dtype[np.float64]], spans_s: list[tuple[float, float]]
    ) -> None:
        import numpy as np

        part.fill(1.0)
        blocks = [part[:, begin : begin + _BLOCK] for begin in range(0, part.shape[1], _BLOCK)]
        for _ in range(self._repetitions):
            self._barrier.wait()
            began_s = time.perf_counter()
            for a, b, c in blocks:
                np.multiply(c, 3.0, out=a)
                np.add(a, b, out=a)
            spans_s.append((began_s, time.perf_counter()))


if sys.platform == "win32":

    def _native_triad(*_: object) -> float:
        raise AssertionError("the extension has no triad on Windows")

else:

    def _native_triad(cpus: Sequence[int], node: int | None, size_bytes: int, repetitions: int) -> float:
        from . import _native

        try:
            return _native.triad(cpus, -1 if node is None else node, size_bytes, repetitions)
        except OSError as error:
            where = "" if node is None else f" and their memory to node {node}"
            raise binding_error(error, f"threads{where}", CpuSet(cpus)) from error
