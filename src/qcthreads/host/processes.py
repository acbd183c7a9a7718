"""What the system tells of other processes: environment, mask, owner, start; reads only, and guesses nothing.

A process that has ended or may not be looked at is ``None``, or empty.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from ..cpuset import CpuSet
from ..errors import InputError
from .build_info import native_status

_WORKING_SHARE = 0.05  # of the CPU time of its process's busiest thread: one with less waits

WORKER_NAME = "qct "
"""What a worker of a run calls itself, and behind it what it computes."""

if sys.platform == "linux":

    def all_processes() -> list[int]:
        """The numbers of all that are seen from here."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 (pathlib takes twice as long)

    def environment(pid: int) -> bytes | None:
        """What it was started with, ``NAME=value`` separated by zero bytes; ``None``: another user's may not be read.

        Empty for kernel threads, for those that have ended, and for one that is about to become another program.
        """
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                return file.read()
        except PermissionError:
            return None
        except OSError:
            return b""

    def lives(pid: int) -> bool:
        """Whether it is there and has not ended; a zombie has, and who is about to be one runs no more."""
        fields = _stat(pid)
        return len(fields) > 6 and fields[0] not in (b"Z", b"X") and not int(fields[6]) & 0x4  # PF_EXITING

    def is_stopped(pid: int) -> bool:
        """Whether it was stopped by a signal or a debugger, and goes on when told."""
        return _stat(pid)[:1] in ([b"T"], [b"t"])

    def is_kernel_thread(pid: int) -> bool:
        """Whether it is no program at all."""
        fields = _stat(pid)
        return len(fields) > 6 and bool(int(fields[6]) & 0x00200000)  # PF_KTHREAD in linux/sched.h

    def start(pid: int) -> float:
        """When it started, in clock ticks since the boot: tells it from others that have its number at another time."""
        fields = _stat(pid)
        return int(fields[19]) if len(fields) > 19 else 0

    def started_at(pid: int) -> float:
        """Seconds since the epoch, as the clock goes now, to a clock tick."""
        ticks = start(pid)
        since_boot_s = ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s if ticks else 0.0

    def mask(pid: int) -> CpuSet | None:
        """The CPUs that its first thread may use."""
        try:
            return CpuSet.parse(_status(pid, b"Cpus_allowed_list").decode()) or None
        except InputError:
            return None

    def masks_of_working_threads(pid: int) -> dict[int, CpuSet]:
        """The CPUs that each of its threads may use that works: those of MPI that wait have masks of their own."""
        ticks = {thread: _ticks(pid, f"task/{thread}/stat") for thread in _threads(pid)}
        least = _WORKING_SHARE * max(ticks.values(), default=0)
        working = [thread for thread, used in ticks.items() if used >= least]
        masks = {thread: _status(pid, b"Cpus_allowed_list", f"task/{thread}/status") for thread in working}
        return {int(thread): CpuSet.parse(mask.decode()) for thread, mask in masks.items() if mask}

    def times_ns(pid: int) -> dict[int, tuple[int, int]]:
        """How long each of its threads has run, and waited for a CPU; nothing where the kernel does not keep that."""
        told = {thread: (_read(pid, f"task/{thread}/schedstat") or b"").split() for thread in _threads(pid)}
        return {int(thread): (int(times[0]), int(times[1])) for thread, times in told.items() if len(times) > 1}

    def descendants(pid: int) -> list[int]:
        """Its children, their children and so on."""
        if _read(os.getpid(), f"task/{os.getpid()}/children") is None:  # a kernel without CONFIG_PROC_CHILDREN
            return _descendants_by_parents(pid)
        found = [pid]
        for parent in found:
            for thread in _threads(parent):
                found += map(int, (_read(parent, f"task/{thread}/children") or b"").split())
        return found[1:]

    def _descendants_by_parents(pid: int) -> list[int]:
        parents = {one: int(fields[1]) for one in all_processes() if len(fields := _stat(one)) > 1}
        found = [pid]
        for parent in found:
            found += [child for child, of in parents.items() if of == parent]
        return found[1:]

    def adopt_orphans() -> None:
        """Become the parent of every process below this one that loses its own, so that none is lost from sight."""
        if native_status()[0]:
            from . import _native

            with contextlib.suppress(OSError):  # a sandbox may forbid it: then they are the first process's
                _native.adopt_orphans()
        else:
            import ctypes

            pr_set_child_subreaper = 36  # linux/prctl.h
            ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)

    def owner(pid: int) -> int:
        """The real user, -1 where that is not told."""
        words = _status(pid, b"Uid").split()
        return int(words[0]) if words else -1

    def name(pid: int) -> str:
        """What the process calls itself."""
        return printable((_read(pid, "comm") or b"").decode(errors="replace"))

    def call_itself(what: str) -> None:
        """What :func:`name`, ``ps`` and ``top`` show of this process; the kernel keeps 15 bytes."""
        with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as file:  # noqa: PTH123
            file.write(what.encode(errors="replace")[:15])

    def command(pid: int) -> str:
        """Its command line."""
        return printable((_read(pid, "cmdline") or b"").decode(errors="replace"))

    def high_water_bytes() -> int:
        """The most resident memory that this process has had as the program it is now; 0 where that is not told."""
        line = _status(os.getpid(), b"VmHWM")
        return int(line.split()[0]) * 1024 if line else 0

    def boot_id() -> str:
        """Another after every boot."""
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:  # noqa: PTH123
                return file.read().strip()
        except OSError:
            return ""

    def pid_namespace() -> str:
        """In which process numbers mean what they mean here."""
        try:
            return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
        except OSError:
            return ""

    def _read(pid: int, name: str) -> bytes | None:
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:  # noqa: PTH123
                return file.read()
        except OSError:
            return None

    def _stat(pid: int, file: str = "stat") -> list[bytes]:
        """The fields of /proc/PID/stat from the third on: a name may hold blanks and parentheses."""
        return (_read(pid, file) or b"").rpartition(b")")[2].split()

    def _ticks(pid: int, file: str) -> int:
        """CPU time, user's and system's, in clock ticks."""
        return sum(map(int, _stat(pid, file)[11:13]))

    def _threads(pid: int) -> list[str]:
        try:
            return os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
        except OSError:
            return []

    def _status(pid: int, field: bytes, file: str = "status") -> bytes:
        _, _, found = (_read(pid, file) or b"").partition(b"\n" + field + b":")
        return found.partition(b"\n")[0].strip()

else:
    import psutil

    def all_processes() -> list[int]:
        """The numbers of all that are seen from here."""
        return psutil.pids()

    def environment(pid: int) -> bytes | None:
        """What it was started with, ``NAME=value`` separated by zero bytes; ``None``: not ours to read."""
        try:
            told = psutil.Process(pid).environ()
            return b"\0".join(os.fsencode(f"{name}={value}") for name, value in told.items())
        except psutil.NoSuchProcess:
            return b""
        except (psutil.Error, OSError):
            return None

    def lives(pid: int) -> bool:
        """Whether it is there and has not ended; a zombie has."""
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False

    def is_stopped(pid: int) -> bool:
        """Whether it was stopped by a signal or a debugger, and goes on when told."""
        try:
            return psutil.Process(pid).status() == psutil.STATUS_STOPPED
        except (psutil.Error, OSError):
            return False

    def is_kernel_thread(pid: int) -> bool:
        """Whether it is no program at all."""
        return pid == 0

    def start(pid: int) -> float:
        """When it started: tells it from others that have its number at another time."""
        return started_at(pid)

    def started_at(pid: int) -> float:
        """Seconds since the epoch."""
        try:
            return psutil.Process(pid).create_time()
        except (psutil.Error, OSError):
            return 0.0

    def mask(pid: int) -> CpuSet | None:  # noqa: ARG001
        """Not told."""
        return None

    def masks_of_working_threads(pid: int) -> dict[int, CpuSet]:  # noqa: ARG001
        """Not told."""
        return {}

    def times_ns(pid: int) -> dict[int, tuple[int, int]]:  # noqa: ARG001
        """Not told."""
        return {}

    def descendants(pid: int) -> list[int]:
        """Its children, their children and so on."""
        try:
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return []

    def adopt_orphans() -> None:
        """Nothing does that here: the first process adopts them."""

    def owner(pid: int) -> int:
        """The real user, -1 where that is not told."""
        if sys.platform == "win32":
            return -1
        try:
            return psutil.Process(pid).uids().real
        except (psutil.Error, OSError):
            return -1

    def name(pid: int) -> str:
        """What the process calls itself."""
        try:
            return printable(psutil.Process(pid).name())
        except (psutil.Error, OSError):
            return ""

    def call_itself(what: str) -> None:
        """It cannot, here."""

    def command(pid: int) -> str:
        """Its command line."""
        try:
            return printable(" ".join(psutil.Process(pid).cmdline()))
        except (psutil.Error, OSError):
            return ""

    def high_water_bytes() -> int:
        """Not told of the program alone."""
        return 0

    def boot_id() -> str:
        """Not told: the time of the boot, which is, changes when the clock is set."""
        return ""

    def pid_namespace() -> str:
        """In which process numbers mean what they mean here: there is one."""
        return ""


def variable(environment: bytes | None, name: str) -> str | None:
    """The value of ``name`` in what :func:`environment` gave."""
    _, found, rest = (b"\0" + (environment or b"")).partition(f"\0{name}=".encode())
    return rest.partition(b"\0")[0].decode(errors="replace") if found else None


def own_command() -> str:
    """How this process was called, as its user knows it: without where the interpreter is, or that there is one."""
    words = list(getattr(sys, "orig_argv", [])) or [sys.executable or "python"]
    script = sys.argv[0] if getattr(sys, "argv", None) else ""
    if script.endswith((os.sep + "qcthreads", os.path.join("qcthreads", "__main__.py"))):  # noqa: PTH118
        words = ["qcthreads", *sys.argv[1:]]
    return printable(" ".join([os.path.basename(words[0]), *words[1:]]))  # noqa: PTH119


def user_name(uid: int) -> str:
    """The user's name, or number where it has none here."""
    if sys.platform == "win32":
        return os.environ.get("USERNAME", "not named")  # nobody else is told of
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def printable(text: str) -> str:
    """One line that a terminal may be shown, no longer than a table bears."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:200]
