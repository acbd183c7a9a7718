"""Workers that start before the input is read, by what a look at it tells; imports only what starting one takes.

To import QCEngine and PySCF takes a worker more than a second, and so does it take us to import the rest of a run and
to read the input.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ..closing import Closing
from ..errors import InputError, MachineError, QCThreadsError
from ..execution.calculation import Calculation, Progress
from ..execution.engine import LocalEngine
from ..execution.job import worker_kind
from ..execution.observing import WORKING_MEMORY_BYTES, Watching
from ..leases import node_book
from ..programs import registry
from ..programs.registry import Installation
from ..programs.spec import WorkerKind
from .request import DEFAULT_PROGRAM, RunRequest
from .widths import widths_for

# How many workers start before it is known how many calculations there are.
_WARM_WORKERS = 16


class HeadStart(Closing):
    """The book and the engine of a run; with ``warm`` its workers start.

    Where they would take every PU, one of them waits for :meth:`complete`: reading the input takes as long as a
    worker's start, and side by side on one PU each would take twice as long.

    Raises InputError or MachineError for what the request alone shows to be impossible.
    """

    began_s: float | None = None
    """When the first worker was started, by ``time.perf_counter``."""
    began_cpu_s: float
    """What this process had taken by then."""
    workers: Mapping[WorkerKind, int]
    """How many of each kind are there, or will be after :meth:`complete`; without ``warm``, would be."""

    def __init__(self, request: RunRequest, *, warm: bool = False) -> None:
        self.request = request
        self.book = node_book(
            cpus=request.cpus,
            leave=request.leave,
            memory_bytes=request.memory_bytes,
            smt=request.smt,
            busy=request.busy,
            orphans="end",
            run=str(request.store or request.input),
        )
        self.on_progress: Callable[[Progress], None] = lambda _: None
        self.watching = Watching()
        self.engine = LocalEngine(
            self.book,
            affinity=request.affinity,
            scratch=request.scratch,
            retries=request.retries,
            at_most={program: most for program, most in request.at_most.items() if program},
            wrapping=request.wrapping,
            on_progress=lambda progress: self.on_progress(progress),
            observer=self.watching,
        )
        self.workers = {}
        self._likely: Calculation | None = None
        self._left = 0
        _check_places(request)
        if request.program is not None:
            require(request, request.program)  # a slip of the pen is told before the input is read
        self.began_cpu_s = time.process_time()
        if warm:
            self.began_s = time.perf_counter()
        try:
            self._begin(warm)
        except BaseException:
            self.close()
            raise

    def complete(self, workers: int, threads: int, programs: Iterable[str]) -> None:
        """Start what was left out where so many of this width are needed: for another program, if there is one."""
        if self._likely is not None and threads == self._likely.threads:
            others = (program for program in programs if program != self._likely.program)
            likely = replace(self._likely, program=next(others, self._likely.program))
            self._start(likely, min(self._left, workers - (sum(self.workers.values()) - self._left)))
        self._left = 0

    def close(self) -> None:
        """End the workers, if there are any."""
        self.engine.stop()

    def _begin(self, warm: bool) -> None:
        """By what can be told without reading the input; a wrong guess costs no more than their start."""
        program = likely_program(self.request)
        if program is None:
            return
        workers, threads = self._likely_split(program)
        if workers > 0:
            memory_bytes = self.book.memory_bytes // workers
            likely = Calculation(label="", program=program, input={}, threads=threads, memory_bytes=memory_bytes)
            left = int(workers > 1 and workers * threads == len(self.book.usable))
            if not warm:
                with contextlib.suppress(QCThreadsError):
                    there = len(self.book.free()[0]) >= (workers - left) * threads
                    self.workers = {worker_kind(likely): workers} if there else {}
            elif self._start(likely, workers - left):
                self._likely, self._left, self.workers = likely, left, {worker_kind(likely): workers}

    def _start(self, likely: Calculation, workers: int) -> bool:
        """Whether they start. What is wrong is said of the calculations themselves."""
        if workers > 0:
            with contextlib.suppress(QCThreadsError):
                self.engine.warm(likely, workers)
                return True
        return False

    def _likely_split(self, program: str) -> tuple[int, int]:
        """One thread each, and more where there is memory for few."""
        request, usable = self.request, len(self.book.usable)
        cpus = min(usable, request.max_total_threads or usable)
        need_bytes = any_need_bytes([program]) + ((request.threads or 1) - 1) * process_bytes_of([program])
        at_once = self.engine.at_most([program.lower()]) or request.at_most.get("", cpus)
        workers = request.workers or min(cpus, at_once, max(1, self.book.memory_bytes // need_bytes))
        widths = widths_for(registry.get(program), cpus)
        threads = request.threads or max(width for width in widths if width <= max(1, cpus // workers))
        return min(workers, cpus // threads, _WARM_WORKERS), threads


def likely_program(request: RunRequest) -> str | None:
    """Which program most of it will be, as far as a look tells that imports nothing; ``None``: it does not."""
    if request.program is not None:
        return request.program.lower()
    if request.input.suffix.lower() != ".json":
        return DEFAULT_PROGRAM
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        said = json.loads(request.input.read_text(encoding="utf-8-sig"))["specification"]["specification"]
        models = [said] if "program" in said else said.values()
        ((program, _),) = Counter(str(model["program"]).lower() for model in models).most_common(1)
        return program
    return None


def require(request: RunRequest, program: str) -> Installation | None:
    """What is to be used, which must be there; not known where a wrapper brings it."""
    if request.wrapping:
        registry.known(program)
        return None
    return registry.require(program)


def any_need_bytes(programs: Iterable[str]) -> int:
    """Memory of a calculation whose size is not looked at, with one process."""
    return max(registry.get(program).memory_overhead_bytes for program in programs) + WORKING_MEMORY_BYTES


def process_bytes_of(programs: Iterable[str]) -> int:
    """What each process but the first adds, where the threads asked for are processes."""
    return max(registry.get(program).memory_per_process_bytes for program in programs)


def _check_places(request: RunRequest) -> None:
    """Find out before hours of computing, not after, that something cannot be written, or the input is not there."""
    try:
        request.input.stat()
    except OSError as error:
        raise InputError(f"cannot read the input {request.input}: {error.strerror or error}") from None
    if request.resume and request.store is None:
        raise InputError("resume needs a store: say which with --store FILE")
    if request.store is not None:
        _check_writable(request.store.absolute().parent, "the store's directory")
        if request.store.is_dir():
            raise InputError(f"the store {request.store} is a directory; name a file, for example in it")
        if request.store.exists() and not request.resume:
            raise InputError(f"the store {request.store} exists: go on with it by --resume, or name another file")
        if request.resume and not request.store.exists():
            raise InputError(f"there is no store {request.store} to resume; leave --resume out to begin one")
    if request.scratch is not None:
        _check_writable(request.scratch, "the scratch directory")


def _check_writable(directory: Path, what: str) -> None:
    if not directory.is_dir():
        raise InputError(f"{what} {directory} is not there; make it, or name another")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise MachineError(f"{what} {directory} may not be written by this user; name another")
