"""``qcengine_lease``: has a plain ``qcengine.compute`` of the caller's obey a lease; computes nothing itself.

QCEngine tells programs their width by the environment of the whole process, and some compute in it. So the process is
changed as long as a lease goes on, and is afterwards as it was: its environment, the mask of the calling thread, and
the pools of threads of libraries that were loaded before.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import BindingError, LeaseError, MachineError
from ..host import get_host
from ..leases import Lease, has_outer_lease, process_book
from ..leases.place import LEASE_VARIABLE
from ..programs import precedence, registry
from ..programs.settings import settings_for
from ..programs.spec import ProgramSpec, Settings
from ..units import format_count
from . import pools

_log = logging.getLogger("qcthreads")
_looking = threading.Lock()


@contextlib.contextmanager
def qcengine_lease(
    program: str,
    threads: int = 1,
    memory_bytes: int = 0,
    gpus: int | None = None,
    *,
    at_most: int | None = None,
    wait: bool = True,
    timeout: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Lease PUs for calculations that the calling thread has QCEngine do; gives the ``task_config`` to do them with.

    Meanwhile the thread, and what it starts, is bound to the lease, and the environment of the process is that of the
    program at this width. Threads of one process may have leases at the same time: of the same settings side by side,
    of others one after the other, for a process has one environment. What cannot be obeyed is said in the log.

    Parameters
    ----------
    program
        QCEngine's name. With a procedure (geomeTRIC, berny, ...) it is the program that computes the gradients.
    threads, memory_bytes
        Of one calculation, all its processes together.
    gpus
        ``None``: one where the program computes on GPUs and there are any.
    at_most
        So many leases for this program at once, on the whole node.
    wait, timeout
        Whether to wait until it can be given, and how many seconds at most.

    Yields
    ------
    dict
        For ``qcengine.compute(..., task_config=...)``.

    Raises
    ------
    InputError, ProgramNotFoundError
        There is no such program, or not here.
    LeaseError
        It cannot be given, not now, or not in time; or this thread has one already.
    MachineError
        What ``qcthreads[run]`` installs is not here.

    Examples
    --------
    >>> with qcengine_lease("psi4", threads=4, memory_bytes=8 * 1024**3) as task_config:  # doctest: +SKIP
    ...     result = qcengine.compute(atomic_input, "psi4", task_config=task_config)
    """
    _process.check_this_thread()
    registry.require(program)
    spec, book = registry.get(program), process_book()
    settings = settings_for(spec, threads, memory_bytes or None)
    if gpus is None:
        gpus = spec.gpus_of(len(book.gpus))
    asked = (settings.threads, memory_bytes, gpus)
    book.check(*asked)
    for note in settings.notes:
        _say(note)
    slots = {} if at_most is None else {spec.name: at_most}
    _have_qcengine_look_at_the_node()
    with book.acquire(*asked, wait=wait, timeout=timeout, slots=slots) as lease:
        told = _told(spec, settings, lease)
        with _process.told(told), _bound(lease):
            if settings.harness_module is not None:
                importlib.import_module(settings.harness_module)
            with _pools_of(spec, settings):
                yield dict(settings.task_config)


def _have_qcengine_look_at_the_node() -> None:
    """At its first calculation QCEngine fills a table: of two threads one would find half of it, and a narrow mask."""
    from qcengine.config import get_global

    with _looking:
        get_global("hostname")


def _told(spec: ProgramSpec, settings: Settings, lease: Lease) -> _Told:
    """What the environment is to be."""
    before = _process.before()
    told = precedence.settle(settings, before, counts=False)
    if not has_outer_lease(before):  # else they are the outer lease's, not the user's
        for note in told.notes:
            _say(note)
    environment = {**told.environment, **lease.environment, LEASE_VARIABLE: lease.book.ledger.mark}
    if spec.in_process:
        # libgomp reads it when it is loaded, and would hold every later lease of this process to this width.
        environment.pop("OMP_THREAD_LIMIT", None)
    return _Told(environment, settings.unset)


@contextlib.contextmanager
def _bound(lease: Lease) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            got = stack.enter_context(lease.bound())
        except BindingError as error:
            _say(f"calculations run unbound: {error}")
        else:
            if got != lease.cpus:
                _say(f"the system dropped CPUs {lease.cpus - got} from a mask; calculations run on CPUs {got}")
            elif not get_host().capabilities.inherit_binding:
                _say("what QCEngine starts does not inherit the mask here: programs of their own run unbound")
        yield


@contextlib.contextmanager
def _pools_of(spec: ProgramSpec, settings: Settings) -> Iterator[None]:
    """Libraries of this process that are loaded already: they have read their variables, and have threads."""
    width = settings.threads // settings.ranks if spec.in_process else 1
    with pools.of_this_thread(width) as frozen:
        for library, threads in frozen.items():
            _say(
                f"{library} was loaded with a limit of {format_count(threads, 'thread')}, which holds as long as this "
                f"process lives: {spec.title} cannot have {width} in it; use a fresh process"
            )
        yield


@dataclass(frozen=True, slots=True)
class _Told:
    """An environment: what is set in it, and what removed."""

    environment: Mapping[str, str]
    unset: tuple[str, ...]


@dataclass(slots=True)
class _Process:
    """The one environment of this process, and who has it changed."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    waiting: deque[object] = field(default_factory=deque)
    current: _Told | None = None
    saved: dict[str, str | None] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    """Those that have a lease now."""
    blas: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def before(self) -> dict[str, str]:
        """The caller's own environment, whoever has changed it meanwhile."""
        with self.changed:
            environment: dict[str, str | None] = {**os.environ, **self.saved}
        return {name: value for name, value in environment.items() if value is not None}

    def check_this_thread(self) -> None:
        """Raise LeaseError where it has a lease already: it would wait for its own CPUs."""
        if threading.get_ident() in self.threads:
            raise LeaseError("this thread has a qcengine_lease already: leave its `with` before the next")

    @contextlib.contextmanager
    def told(self, told: _Told) -> Iterator[None]:
        """Change it to ``told`` as long as ``with`` goes on, after those who need it otherwise."""
        me, ticket = threading.get_ident(), object()
        with self.changed:
            self.waiting.append(ticket)
            try:
                self.changed.wait_for(lambda: self.waiting[0] is ticket and self.current in (None, told))
                if self.current is None:
                    self._change(told)
                self.threads.add(me)
            finally:
                self.waiting.remove(ticket)
                self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.threads.discard(me)
                if not self.threads:
                    self._restore()
                self.changed.notify_all()

    def _change(self, told: _Told) -> None:
        try:
            self.blas.enter_context(pools.blas_of_this_process(1))
        except ModuleNotFoundError as error:
            raise MachineError(f"there is no module {error.name}: qcengine_lease needs qcthreads[run]") from error
        self.saved = {name: os.environ.get(name) for name in (*told.environment, *told.unset)}
        for name in told.unset:
            os.environ.pop(name, None)
        os.environ.update(told.environment)
        self.current = told

    def _restore(self) -> None:
        self.blas.close()
        for name, value in self.saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self.current, self.saved = None, {}

    def after_fork(self) -> None:
        """In a child: only the thread that forked goes on, and the lease is the parent's."""
        ours = threading.get_ident() in self.threads
        self.changed, self.waiting, self.threads = threading.Condition(), deque(), set()
        if not ours:
            self._restore()
        self.current, self.saved, self.blas = None, {}, contextlib.ExitStack()


_process = _Process()
_said: set[str] = set()

if sys.platform != "win32":
    os.register_at_fork(after_in_child=lambda: _process.after_fork())


def _say(line: str) -> None:
    """Once."""
    if line not in _said:
        _said.add(line)
        _log.warning("%s", line)
