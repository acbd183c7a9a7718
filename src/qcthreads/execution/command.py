"""One command under a lease: leased, bound, told its width, run in the foreground, verified; changes nothing it does.

Everything that is not the command's is said through a callable, one line at a time.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from ..cpuset import CpuSet
from ..errors import BindingError, CommandNotFoundError, CommandNotRunnableError, LeaseNotNowError, MachineError
from ..host import processes, trees
from ..leases import Lease, LeaseBook, has_outer_lease, node_book, node_ledger
from ..leases.ledger import Ledger
from ..leases.place import LEASE_VARIABLE, remove_nested
from ..light import dataclass, replace
from ..machine.placement import usable_cpus
from ..programs import launchers, precedence
from ..programs.settings import settings_for, untold
from ..programs.spec import Settings
from ..programs.unknown import unknown
from ..units import format_count, format_size
from .wrapping import Wrapping

if sys.platform != "win32":
    from .foreground import Foreground

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ..machine import Machine
assert sys.platform != "win32", "Windows has no signals to pass on"

Say = Callable[[str], object]

_CARRIED = 1.1  # Linux counts resident pages per CPU, and what it says is some of them behind, differently each time
_CROWDED_S = 0.9  # what starts, and its launcher with it, has more threads for less
_HELPER_SHARE = 0.2  # of the CPU time of the busiest thread; less is a helper's or a launcher's that looks now and then
_SETTLE_S = 0.2  # what is ending together with the command has left nothing behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to run, and under which lease."""

    command: tuple[str, ...]
    program: str | None = None
    """Whose settings the command is told; ``None``: those of all threading runtimes."""
    threads: int = 1
    cpus: CpuSet | None = None
    """Exactly these instead of so many ``threads``."""
    memory_bytes: int = 0
    gpus: int = 0
    wait: bool = False
    timeout_s: float | None = None
    """The longest wait for the lease."""
    busy: Literal["ignore", "avoid", "wait"] = "ignore"
    """About CPUs that others keep busy who hold no lease; to look takes a tenth of a second."""
    strays: Literal["wait", "end"] = "wait"
    """What becomes of processes that outlive the command."""
    at_most: int | None = None
    """So many leases for ``program`` at once, on the whole node."""
    wrapping: Wrapping = Wrapping()
    """What the command is put behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The lease that a command gets and what it is told."""

    executable: str
    command: tuple[str, ...]
    """The command with what it is put behind."""
    lease: Lease
    told: precedence.Told
    unset: tuple[str, ...]
    """Variables that it must not see, whether the caller has them or not."""
    placed: Mapping[str, str]
    """Variables that say where it is: whose lease (not in a rehearsal), its GPUs, its CPUs where Slurm is to bind."""
    not_now: str = ""
    """Why the lease could not be given now, where nothing is to be run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it went."""

    exit_code: int
    """Negative for the signal that ended the command."""
    bound: CpuSet | None
    """The mask read back; ``None`` where the system does not bind."""
    wall_s: float
    cpu_s: float
    """Of the command and everything below it that has ended."""
    peak_memory_bytes: int
    """The largest resident memory of any one of its processes; on Linux no less than what this one had."""
    threads_at_once: float | None
    """So many worked at once, or would have on CPUs of their own, where it was most; ``None``: it was too short."""
    strays: tuple[str, ...]
    """What outlived the command."""
    mismatches: tuple[str, ...]
    """What went otherwise than it should."""


@contextlib.contextmanager
def prepared(request: Request, say: Say) -> Iterator[Prepared]:
    """Lease what ``request`` asks for, until ``with`` ends.

    Raises
    ------
    CommandNotFoundError, CommandNotRunnableError
        There is no such command, or not the program that it starts; nothing has been waited for.
    LeaseError, OversubscriptionError
        The lease cannot be given, or not now, or not in time; says who holds what it lacks.
    InputError
        There is no such program.
    """
    _check_installed(request)
    executable = _find(request.wrapping.around(request.command, {}, ())[0])
    book = _book(request, node_ledger())
    settings = _settings(request, book, say)
    with _lease(request, settings, book, say) as lease:
        for note in lease.notes:
            say(note)
        yield _prepared(request, executable, settings, lease, say)


@contextlib.contextmanager
def rehearsed(request: Request, say: Say) -> Iterator[Prepared]:
    """As :func:`prepared`, for who runs nothing: the command need not be here, nor the CPUs be free; never waits.

    What cannot be given now is given as on a node where nobody holds anything.
    """
    first = request.wrapping.around(request.command, {}, ())[0]
    executable = first
    try:
        _check_installed(request)
        executable = _find(first)
    except MachineError as error:
        say(str(error))
    book = _book(request, node_ledger())
    settings, not_now = _settings(request, book, say), ""
    at_once = replace(request, wait=False, timeout_s=None)
    try:
        lease = _acquire(at_once, settings, book)
    except LeaseNotNowError as error:
        not_now = str(error)
        lease = _acquire(at_once, settings, _book(replace(request, busy="ignore"), Ledger()))
    with lease:
        yield _prepared(request, executable, settings, lease, say, not_now, rehearsal=True)


def run(request: Request, prepared: Prepared, say: Say) -> Outcome:
    """Run the command, in this process's foreground, to its end and that of all that it has started.

    Signals belong to the command from now on: whoever calls this has no other threads and no other children.
    """
    lease, foreground = prepared.lease, Foreground()
    for descriptor in lease.descriptors():
        # The command holds the lease when this process is killed. A copy: a fork closes the ledger's own.
        os.set_inheritable(os.dup(descriptor), True)
    began = time.monotonic()
    lease.hold.started = True
    with _bound(lease, say) as bound:
        try:
            foreground.start(prepared.executable, [*prepared.command], environment_of(prepared))
        except OSError as error:
            raise _not_started(prepared.command[0], error) from error
    lease.hold.children.append(foreground)  # type: ignore[arg-type]  # all it is asked is poll()
    masks, crowd = _Masks(lease.cpus if bound else None), _Crowd()

    def look(pids: list[int], complete: bool) -> None:
        masks.look(pids)
        if complete:
            crowd.look(pids)

    foreground.wait(look)
    wall_s = time.monotonic() - began
    strays = _outlast(request, foreground, lease, say)
    assert foreground.exit_code is not None
    cpu_s, peak_memory_bytes = _usage()
    mismatches = [
        *_lost(lease, bound),
        *masks.outside(),
        *crowd.beyond(len(lease.cpus)),
        *_beyond(lease, peak_memory_bytes),
    ]
    for mismatch in mismatches:
        say(mismatch)
    return Outcome(
        exit_code=foreground.exit_code,
        bound=bound,
        wall_s=wall_s,
        cpu_s=cpu_s,
        peak_memory_bytes=peak_memory_bytes,
        threads_at_once=crowd.most,
        strays=strays,
        mismatches=tuple(mismatches),
    )


def environment_of(prepared: Prepared) -> dict[str, str]:
    """What the command sees."""
    return {**precedence.environment_under(prepared.told, os.environ), **prepared.placed}


def additions(prepared: Prepared) -> dict[str, str]:
    """The variables that are set for the command."""
    return {**prepared.told.environment, **prepared.placed}


def _check_installed(request: Request) -> None:
    """Refuse a command of a program that is not on this machine; a command that is put before it may bring it."""
    if request.program is None or request.wrapping:
        return
    import shutil  # with what else others can do without

    from ..programs import registry

    spec = registry.recorded(request.program)
    if spec.executable not in request.command or registry.find(spec) is not None:
        return
    before = request.command[: request.command.index(spec.executable)]
    others = [word for word in before if os.path.basename(word) not in launchers.COMMANDS]  # noqa: PTH119
    if not any(map(shutil.which, others)):
        raise CommandNotFoundError(registry.not_installed(spec))


def _find(name: str) -> str:
    """The file that ``name`` means, looked for as execvp(3) does."""
    folders = [""] if os.sep in name else os.get_exec_path()
    there = [path for folder in folders if os.path.exists(path := os.path.join(folder, name))]  # noqa: PTH110, PTH118
    for path in there:
        if os.access(path, os.X_OK) and not os.path.isdir(path):  # noqa: PTH112
            return path
    if there:
        raise CommandNotRunnableError(f"{there[0]} is there, but cannot be executed; is it a program, and `chmod +x`?")
    where = "" if os.sep in name else f" in PATH ({os.pathsep.join(folders)})"
    raise CommandNotFoundError(f"there is no command {name!r}{where}; give its path, or load its module first")


def _settings(request: Request, book: LeaseBook, say: Say) -> Settings:
    width, cores = _width(request, book.machine)
    ranks, assumed = launchers.ranks_of(request.command, cores)
    if assumed:
        say(assumed)
    step = launchers.starts_step(request.command)
    if request.program is None:
        return settings_for(unknown(request.command[0]), width, ranks=ranks, cores=cores, step=step)
    from ..programs import registry

    spec = registry.recorded(request.program)
    settings = settings_for(spec, width, ranks=ranks, cores=cores, step=step)
    for note in (*settings.notes, untold(spec, settings, request.command)):
        if note:
            say(note)
    return settings


def _width(request: Request, machine: Machine) -> tuple[int, int]:
    """So many PUs, of so many cores: another for each where they are chosen for the command."""
    if request.cpus is None:
        return request.threads, request.threads
    # CPUs that are not there are refused with the lease.
    return len(request.cpus), len(usable_cpus(machine, request.cpus)) or len(request.cpus)


def _prepared(
    request: Request,
    executable: str,
    settings: Settings,
    lease: Lease,
    say: Say,
    not_now: str = "",
    *,
    rehearsal: bool = False,
) -> Prepared:
    """What the command is told under ``lease``."""
    told = precedence.settle(settings, os.environ)
    if not has_outer_lease():  # else they are the outer lease's, not the user's
        for note in told.notes:
            say(note)
    step, note = launchers.bound_step(request.command, lease.cpus, precedence.environment_under(told, os.environ))
    if note:
        say(note)
    placed = {**lease.environment, **step}
    if rehearsal:  # the lease is gone when somebody does it in earnest
        placed.pop(LEASE_VARIABLE, None)
    words = request.wrapping.around(request.command, {**told.environment, **told.kept, **placed}, settings.unset)
    return Prepared(
        executable=executable,
        command=tuple(words),
        lease=lease,
        told=told,
        unset=settings.unset,
        placed=placed,
        not_now=not_now,
    )


def _book(request: Request, ledger: Ledger) -> LeaseBook:
    return node_book(
        cpus=request.cpus,
        smt=request.cpus is not None,
        memory_bytes=request.memory_bytes or None,
        busy=request.busy,
        ledger=ledger,
        run=request.program or os.path.basename(request.command[0]),  # noqa: PTH119
    )


def _lease(request: Request, settings: Settings, book: LeaseBook, say: Say) -> Lease:
    try:
        return _acquire(request, settings, book, lambda what: say(f"waits for {what}"))
    except LeaseNotNowError as error:
        raise error if request.wait else LeaseNotNowError(f"{error}; --wait waits for it") from None


def _acquire(request: Request, settings: Settings, book: LeaseBook, on_wait: Say | None = None) -> Lease:
    asked = (len(request.cpus) if request.cpus else settings.threads, request.memory_bytes, request.gpus)
    book.check(*asked)
    try:
        return book.acquire(
            *asked,
            wait=request.wait,
            timeout=request.timeout_s,
            exclusive_cores=request.cpus is None or settings.ranks > 1,  # which spin while they wait
            slots={request.program.lower(): request.at_most} if request.program and request.at_most else None,
            on_wait=on_wait and (lambda holders: on_wait(f"{format_count(asked[0], 'CPU')}, held by {holders}")),
        )
    finally:
        _join_others()


def _join_others() -> None:
    """The book's thread, which ends soon when nobody waits: a signal must find the one that waits for the command."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join()


@contextlib.contextmanager
def _bound(lease: Lease, say: Say) -> Iterator[CpuSet | None]:
    with contextlib.ExitStack() as stack:
        try:
            bound = stack.enter_context(lease.bound())
        except BindingError as error:
            say(f"the command runs unbound: {error}")
            bound = None
        yield bound


def _not_started(name: str, error: OSError) -> MachineError:
    kind = CommandNotFoundError if isinstance(error, FileNotFoundError) else CommandNotRunnableError
    return kind(f"{name} cannot be started: {error.strerror}; does the interpreter exist that its first line names?")


class _Masks:
    """Processes of the command that may run outside the lease: masks are read, which costs nobody anything.

    As last seen: libpsm2, where Open MPI loads it, goes to CPU 0 for a moment and back.
    """

    def __init__(self, cpus: CpuSet | None) -> None:
        self._cpus = cpus
        self._masks: dict[int, dict[int, CpuSet]] = {}
        self._names: dict[int, str] = {}

    def look(self, pids: list[int]) -> None:
        """At these processes of the command."""
        if self._cpus is None:
            return
        for one in pids:
            masks = processes.masks_of_working_threads(one)
            if not all(mask <= self._cpus for mask in masks.values()):
                self._names[one] = processes.name(one)
            self._masks.setdefault(one, {}).update(masks)

    def outside(self) -> list[str]:
        """A line for each that may run outside."""
        lines = []
        for one, masks in self._masks.items():
            wide = CpuSet(cpu for mask in masks.values() for cpu in mask)
            if self._cpus is not None and not wide <= self._cpus:
                lines.append(
                    f"process {one} ({self._names[one]}) may run on CPUs {wide}, outside the lease of {self._cpus}: "
                    "it has bound itself, or was bound by its launcher"
                )
        return lines


class _Crowd:
    """How many threads of the command work at once, be it on CPUs of their own or by turns."""

    most: float | None = None
    """The mean between two looks, where it was most."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._seen: dict[tuple[int, int], tuple[float, int, int]] = {}

    def look(self, pids: list[int]) -> None:
        """At these processes of the command, all that there are: what is new has begun since the look before."""
        before, now = self._looked, time.monotonic()
        ran_and_wanted = []
        for pid in pids:
            for thread, (ran_ns, waited_ns) in processes.times_ns(pid).items():
                last, ran_before_ns, waited_before_ns = self._seen.get((pid, thread), (before, 0, 0))
                self._seen[pid, thread] = now, ran_ns, waited_ns
                passed_ns = (now - last) * 1e9
                ran = (ran_ns - ran_before_ns) / passed_ns
                ran_and_wanted.append((ran, min(1.0, ran + (waited_ns - waited_before_ns) / passed_ns)))
        self._looked = now
        if ran_and_wanted and now - before >= _CROWDED_S:
            least = _HELPER_SHARE * max(ran_and_wanted)[0]
            at_once = sum(wanted for ran, wanted in ran_and_wanted if ran >= least)
            self.most = max(self.most or 0.0, at_once)

    def beyond(self, leased: int) -> list[str]:
        """A line where they were more than the lease has CPUs."""
        if self.most is None or self.most < leased + 0.5:
            return []
        return [
            f"{self.most:.0f} threads of the command shared the {format_count(leased, 'CPU')} of its lease: "
            "have it start fewer, or lease more"
        ]


def _lost(lease: Lease, bound: CpuSet | None) -> list[str]:
    if bound is None or bound == lease.cpus:
        return []
    return [f"the system dropped CPUs {lease.cpus - bound} from the mask: the command ran on {bound}"]


def _beyond(lease: Lease, peak_memory_bytes: int) -> list[str]:
    # The command's peak began with ours: Linux carries that over exec (setmax_mm_hiwater_rss in fs/exec.c).
    if not lease.memory_bytes or peak_memory_bytes <= max(lease.memory_bytes, _CARRIED * processes.high_water_bytes()):
        return []
    return [
        f"a process had {format_size(peak_memory_bytes)} of memory, and {format_size(lease.memory_bytes)} are leased"
    ]


def _outlast(request: Request, foreground: Foreground, lease: Lease, say: Say) -> tuple[str, ...]:
    """Name what the command left behind, and wait for its end, or end it; a signal to this process ends it, too."""
    if not foreground.outlived(_SETTLE_S):
        if sys.platform == "linux":  # where nothing can be left when no child is: no need to look through /proc for it
            lease.hold.started = False
            remove_nested(lease.mark)
        return ()
    strays = tuple(f"process {pid} ({processes.name(pid)})" for pid in processes.descendants(os.getpid()))
    what = "is ended" if request.strays == "end" else "is waited for"
    say(f"{', '.join(strays)}: left behind by the command, {what}")
    if request.strays == "end" or foreground.outlived():
        trees.end(partial(trees.members, {os.getpid(): lease.mark}, LEASE_VARIABLE))
    return strays


def _usage() -> tuple[float, int]:
    """CPU seconds of the children that have ended, and the largest resident memory of any of them in bytes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
