"""The driver's end of a worker process: starts, rebinds, asks and ends it; never forks without exec."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..cpuset import CpuSet, NodeSet
from ..errors import BindingError, MachineError, ProcessGoneError
from ..host import get_host, trees
from ..leases import Lease
from ..leases.place import LEASE_VARIABLE
from ..light import dataclass
from ..programs import precedence
from ..programs.spec import Settings
from . import locks, wire
from .deadlines import Deadlines
from .wrapping import Wrapping

_LEAVE_S = 2.0  # an idle worker that was told to go has nothing to do but exit

_LONGEST_LOG_BYTES = 1024**2


class WorkerEndedError(Exception):
    """The worker ended, or was ended, before it answered; the message says how."""


class NoGreetingError(WorkerEndedError):
    """It was started, and ended before it was ready: what it is put behind may be why."""


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """What it took until a worker could compute, with the imports of its program."""

    wall_s: float
    cpu_s: float


class Worker:
    """One worker process with its own scratch directory and log in ``folder``; used by one thread at a time.

    Parameters
    ----------
    settings
        Environment of the process; its width is frozen from here on.
    folder
        Made here, and removed with the worker.
    cpus
        What to bind it to; ``None``: it keeps the mask it inherits.
    lease
        What it runs under first; ``None``: nothing that others know of.
    nodes
        Where its memory comes from as long as there is room, from its start to its end: threads that run keep their
        policy. ``None``: wherever the system takes it from.
    wrapping
        What the worker is put behind.

    Raises
    ------
    WorkerEndedError
        It could not be started; NoGreetingError where it ended at once.
    """

    pid: int
    threads: int
    """Its width."""
    folder: Path
    scratch: Path
    """Where its programs keep their temporary files."""
    nodes: NodeSet | None
    gpus: tuple[int, ...]
    """Those that it sees, of the lease that it was started under."""
    bound: CpuSet | None
    """The mask read back; ``None`` where none was set."""
    start: WorkerStart | None = None
    """``None``: it is not ready yet."""
    notes: Mapping[str, str]
    """What went otherwise than asked at the last binding: its kind and a line about it."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        cpus: CpuSet | None,
        nodes: NodeSet | None = None,
        lease: Lease | None = None,
        wrapping: Wrapping | None = None,
    ) -> None:
        self.threads = settings.threads
        self.folder = folder
        self.scratch = scratch_of(folder)
        self.nodes = nodes
        self.gpus = () if lease is None else lease.gpus
        self._log = folder / "log"
        self._mark = uuid.uuid4().hex
        self._timed_out = False
        self._unanswered: deque[float | None] = deque()
        """The time limits of what it was sent, in that order."""
        self._answered = 0
        self._ends = threading.Lock()
        """The first of them ends in time or late, and never both."""
        self._limit = contextlib.ExitStack()
        self._log_start = 0
        self._began_s = time.perf_counter()
        try:
            self.scratch.mkdir(parents=True)
            environment = precedence.environment_under(
                precedence.settle(settings, os.environ, counts=False), os.environ
            )
            environment |= _name_of_user(environment)
            if lease is not None:
                environment |= {**lease.environment, LEASE_VARIABLE: lease.book.ledger.mark}
            self._locks, theirs = locks.channel()
            self._wrapped = wrapping or Wrapping()
            inside = (settings, self._wrapped)
            with _preferring(nodes):
                self._process = _start(environment, folder, self._log, self._mark, theirs, inside)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise WorkerEndedError(f"a worker could not be started: {error}") from error
        self.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        _workers.add(self)
        try:
            if lease is not None:
                self.hold(lease)
            self._greet(cpus)
        except BaseException:
            self.end()
            raise

    def compute(self, request: Mapping[str, Any], timeout_s: float | None) -> dict[str, Any]:
        """The worker's reply. Raises WorkerEndedError when it ended first, or ``timeout_s`` passed and ended it."""
        self.send(request, timeout_s)
        return self.reply()

    def send(self, request: Mapping[str, Any], timeout_s: float | None) -> None:
        """Have it compute this next, for so long; what becomes of that :meth:`reply` says, also where it has ended."""
        message = wire.encode(request)
        self._unanswered.append(timeout_s)
        if len(self._unanswered) == 1:
            self._bound_log()
            self._first_begins()
        with contextlib.suppress(OSError, ValueError):  # another thread may have ended us, which closes the pipes
            self._requests.write(message)
            self._requests.flush()

    def reply(self) -> dict[str, Any]:
        """To the first of what it was sent and has not answered; raises as :meth:`compute`."""
        reply = None
        with self._limit, contextlib.suppress(OSError, ValueError):
            reply = wire.receive(self._replies)
        if reply is None:
            self.end_tree()
            raise WorkerEndedError(
                f"timed out after {self._unanswered[0]:g} s"
                if self._timed_out
                else self._how_it_ended("the worker", self._log_start)
            )
        with self._ends:
            self._unanswered.popleft()
            self._answered += 1
        if self._unanswered:
            self._first_begins()
        return reply

    def get_ready(self, request: Mapping[str, Any], timeout_s: float | None) -> None:
        """Have it import, once, what its first calculation needs, in nobody's time; raises as :meth:`compute`."""
        if self.start is None:
            reply = self.compute(request, timeout_s)
            self.start = WorkerStart(time.perf_counter() - self._began_s, reply["cpu_s"])

    @property
    def healthy(self) -> bool:
        """Whether it can be given another calculation; not when somebody has tidied its scratch directory away."""
        return self.lives and not self._unanswered and self.scratch.is_dir()

    @property
    def lives(self) -> bool:
        """Whether it can answer."""
        return not self._timed_out and self._process.poll() is None

    def rebind(self, cpus: CpuSet) -> None:
        """Move the whole process to ``cpus``. Raises BindingError when it was bound and cannot be moved."""
        if self.bound is None or self.bound == cpus:
            return
        if self._wrapped:
            raise BindingError("what it is put behind stands between: the process that computes may be another")
        binding = get_host().set_process_affinity(cpus, self.pid)
        self._take_binding(str(binding.got), str(binding.lost))

    def processes(self) -> set[int]:
        """It and all that it has started and that still runs."""
        return set(trees.members({self.pid: self._mark}))

    def bind_again(self, cpus: CpuSet, processes: Iterable[int]) -> None:
        """Move those of its ``processes`` to ``cpus`` while it computes. Raises BindingError."""
        for pid in processes:
            with contextlib.suppress(ProcessGoneError):
                binding = get_host().set_process_affinity(cpus, pid)
                self.bound = binding.got if pid == self.pid else self.bound

    def forget_binding(self) -> None:
        """The system may have given it another mask since: the next calculation binds it anew.

        Also where it was refused: the CPUs had gone, perhaps, when it started.
        """
        if self.bound is not None or "unbound" in self.notes:
            self.bound = CpuSet()

    def hold(self, *leases: Lease) -> None:
        """Have the worker hold the kernel's locks of ``leases``, too, and no others: it may outlive us."""
        locks.hand_over(self._locks, [one for lease in leases for one in lease.descriptors()])

    def end_tree(self) -> None:
        """End the worker and everything below it, at once."""
        trees.end(partial(trees.members, {self.pid: self._mark}))

    def remains(self) -> list[str]:
        """Processes of an ended worker that cannot be ended, as one in an uninterruptible system call, in words."""
        return [f"process {pid}" for pid in self.processes()]

    def end(self) -> None:
        """End the worker, everything below it and its folder. From any thread, more than once."""
        end_all([self])

    def _greet(self, cpus: CpuSet | None) -> None:
        start = {
            "sys_path": [str(Path(path or ".").absolute()) for path in sys.path],
            "pythonpath": os.environ.get("PYTHONPATH"),
            "cpus": None if cpus is None else str(cpus),
            "nodes": None if self.nodes is None else str(self.nodes),
            "folder": str(self.folder),
        }
        answer = None
        with contextlib.suppress(OSError):
            if wire.skip_to_greeting(self._replies):
                wire.send(self._requests, start)
                answer = wire.receive(self._replies)
        if answer is None:
            raise NoGreetingError(self._how_it_ended("a worker could not be started: it", 0))
        self._take_binding(answer["bound"], answer["lost"], answer["refused"])
        if answer["memory_refused"] is not None:
            why = answer["memory_refused"]
            self.notes = {**self.notes, "memory": f"memory comes from where the system takes it: {why}"}

    def _take_binding(self, bound: str | None, lost: str, refused: str | None = None) -> None:
        self.bound = None if bound is None else CpuSet.parse(bound)
        self.notes = {}
        if refused is not None:
            self.notes = {"unbound": f"calculations run unbound: {refused}"}
        if lost:
            self.notes = {"lost": f"the system dropped CPUs {lost} from a worker's mask; it runs on CPUs {bound}"}

    def _first_begins(self) -> None:
        self._log_start = self._log_size()
        limit_s = self._unanswered[0]
        if limit_s is not None:
            self._limit.enter_context(_deadlines.within(limit_s, partial(self._time_out, self._answered)))

    def _time_out(self, answered: int) -> None:
        """Of what was the first when so many had been answered: as late as that, it may be another."""
        with self._ends:
            if answered != self._answered:
                return
            self._timed_out = True
        self.end_tree()

    def _how_it_ended(self, who: str, log_start: int) -> str:
        try:
            code = self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            return f"{who} closed its pipe{self._log_tail(log_start)}"
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was ended by signal {-code} ({_signal_name(-code)})"
        if -code in (9, 15):
            how += ", by somebody else or by the kernel for lack of memory"
        return f"{who} {how}{self._log_tail(log_start)}"

    def _log_size(self) -> int:
        with contextlib.suppress(OSError):
            return self._log.stat().st_size
        return 0

    def _bound_log(self) -> None:
        """Between calculations, when nobody writes: what is there is of earlier ones, and of no more use."""
        if self._log_size() > _LONGEST_LOG_BYTES:
            with contextlib.suppress(OSError):
                os.truncate(self._log, 0)

    def _log_tail(self, start: int) -> str:
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(max(start, self._log_size() - 65536))
            end = wire.tail(log.read().decode(errors="replace"))
            if end:
                return f"; the end of its log:\n{end}"
        return "; it left no log"


def scratch_of(folder: Path) -> Path:
    """Where the programs of the worker with ``folder`` keep their temporary files."""
    return folder / "tmp"


def end_all(workers: Iterable[Worker]) -> None:
    """End workers together: idle ones leave by themselves, busy ones end what is below them, the rest is killed."""
    workers = list(workers)
    for worker in workers:
        with contextlib.suppress(OSError, ValueError):
            worker._requests.close()
    deadline = time.monotonic() + _LEAVE_S
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker._process.wait(max(0.0, deadline - time.monotonic()))
    left = {worker.pid: worker._mark for worker in workers if worker._process.poll() is None}
    if left:
        trees.end(partial(trees.members, left))
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker._process.wait(_LEAVE_S)
        with contextlib.suppress(OSError, ValueError):
            worker._replies.close()
        locks.close(worker._locks)
        shutil.rmtree(worker.folder, ignore_errors=True)


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
_deadlines = Deadlines()


def _let_go_of_all() -> None:
    _deadlines.forget()
    wire.let_go(*(pipe for worker in _workers for pipe in (worker._requests, worker._replies)))


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go_of_all)


@contextlib.contextmanager
def _preferring(nodes: NodeSet | None) -> Iterator[None]:
    """What this thread starts has its first pages from ``nodes``, too: an interpreter has some MiB before it can ask.

    Where that is refused, it is the worker that says so.
    """
    if nodes is None:
        yield
        return
    host = get_host()
    try:
        before = host.get_memory_policy()
        host.set_memory_policy("preferred" if len(nodes) == 1 else "preferred-many", nodes)
    except BindingError:
        yield
        return
    try:
        yield
    finally:
        host.set_memory_policy(before.kind, before.nodes)


def _start(
    environment: dict[str, str],
    folder: Path,
    log: Path,
    mark: str,
    channel: int | None,
    inside: tuple[Settings, Wrapping],
) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise MachineError("workers are started with sys.executable, which this embedded interpreter does not have")
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch_of(folder)))
    environment[trees.MARK] = mark
    package_home = str(Path(__file__).parents[2])
    if package_home not in site.getsitepackages():
        # Found by the driver through its sys.path alone, perhaps; the worker takes this back before anything else.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), package_home)))
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    # -P: a random.py in the working directory must not be taken for the library's.
    command = [sys.executable, "-P", "-m", "qcthreads.execution.worker"]
    if channel is not None:
        command.append(str(channel))
        options["pass_fds"] = (channel,)
    settings, wrapping = inside
    ours = {
        name: value
        for name, value in environment.items()
        if name in settings.environment or os.environ.get(name) != value
    }
    command = wrapping.around(command, ours, settings.unset)
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, env=environment, **options
            )
    finally:
        if channel is not None:
            os.close(channel)


def _name_of_user(environment: Mapping[str, str]) -> dict[str, str]:
    """A name for a user that the system has none for, as in a container: QCEngine ends where ``getpass`` finds none."""
    if sys.platform == "win32" or any(environment.get(name) for name in ("LOGNAME", "USER")):
        return {}
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return dict.fromkeys(("LOGNAME", "USER"), str(os.getuid()))
    return {}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
