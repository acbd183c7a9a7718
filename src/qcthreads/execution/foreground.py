"""A command in the foreground, waited for as a shell waits: shares its terminal and its signals, and ends nothing.

The command stays in this process's group, so that the terminal reaches both. What somebody sends to this process alone
is passed on to the command; what the terminal sends has reached it already. See signal(7), sigwaitinfo(2), termios(4).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping

from ..host import processes

assert sys.platform != "win32", "Windows has no signals to pass on"

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_BY_TERMINAL = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_WATCHED = (*_PASSED_ON, signal.SIGCHLD)
_OURS = (signal.SIGPIPE, signal.SIGXFSZ)  # CPython ignores them, and whatever it starts would
_UNKNOWN = 125  # as exec's own failures
_EVER_S = 1e6
_GOING_ON_S = 0.02  # the signal that lets a group go on reaches one after the other
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.25, 8.0  # the threads of 128 take some 4 ms to look at: under 0.1 % of a core


class Foreground:
    """One command, for a process that has no other threads and no other children."""

    pid = 0
    exit_code: int | None = None
    """As ``subprocess`` has it: negative for the signal that ended the command. 125 where that was not to be learnt."""

    def start(self, path: str, command: list[str], environment: Mapping[str, str]) -> None:
        """Start ``command`` from the file ``path``, with the caller's open files and signals; from now on they are its.

        Raises OSError as execve(2).
        """
        processes.adopt_orphans()
        spawn = _spawn
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # the kernel would tell nobody how the command ended
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            spawn = _fork
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        try:
            self.pid = spawn(path, command, environment, before)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without its first line: shells and env(1) have sh run it.
            self.pid = spawn("/bin/sh", ["sh", path, *command[1:]], environment, before)

    def wait(self, look: Callable[[list[int], bool], None]) -> None:
        """Until the command has ended. ``look`` gets its processes now and then, and once it has ended its own.

        It is also told whether that is complete.
        """
        pause_s = _FIRST_LOOK_S
        due_s = time.monotonic() + pause_s
        while self.exit_code is None:
            number, to_us_alone = _next_signal(max(0.0, due_s - time.monotonic()), self.pid)
            if number in _PASSED_ON:
                if to_us_alone:
                    os.kill(self.pid, number)
                continue
            if number:
                look([self.pid], False)  # it may have ended, but is there until it is reaped
            else:
                look([self.pid, *processes.descendants(self.pid)], True)
                pause_s = min(2 * pause_s, _LONGEST_LOOK_S)
                due_s = time.monotonic() + pause_s
            self._reap()

    def poll(self) -> int | None:
        """As ``subprocess.Popen``'s."""
        return self.exit_code

    def outlived(self, settle_s: float = _EVER_S) -> bool:
        """Whether what the command started still runs when so many seconds are over or a signal has come.

        Known on Linux alone, where this process has adopted it.
        """
        give_up = time.monotonic() + settle_s
        while sys.platform == "linux" and self._reap():
            left_s = give_up - time.monotonic()
            if left_s <= 0 or _next_signal(left_s, self.pid)[0] in _PASSED_ON:
                return True
        return False

    def _reap(self) -> bool:
        """Take notice of children that have ended; whether there are others. Stops with the command where it stops."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                if self.exit_code is None:  # it has ended, and its status went elsewhere
                    self.exit_code = _UNKNOWN
                return False
            if pid == 0:
                return True
            if pid == self.pid and os.WIFSTOPPED(status):
                self._stop_too()
            elif pid == self.pid:
                self.exit_code = os.waitstatus_to_exitcode(status)

    def _stop_too(self) -> None:
        """The command has stopped itself (a shell's ``suspend``): the shell above waits for us to stop, not for it."""
        time.sleep(_GOING_ON_S)
        if processes.is_stopped(self.pid) and _has_terminal():
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(self.pid, signal.SIGCONT)


def end_by(number: int) -> None:
    """End this process by the signal ``number``, so that whoever waits for it sees how the command ended."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


def _spawn(path: str, command: list[str], environment: Mapping[str, str], mask: Iterable[int]) -> int:
    return os.posix_spawn(path, command, environment, setsigmask=mask, setsigdef=_OURS)


def _fork(path: str, command: list[str], environment: Mapping[str, str], mask: Iterable[int]) -> int:
    """As :func:`_spawn`, and the command ignores SIGCHLD as the caller did, which posix_spawn(3) cannot have it do."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for number in _OURS:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execve(path, command, environment)
        except OSError as error:
            os.write(writing, str(error.errno).encode())
        finally:
            os._exit(_UNKNOWN)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        refused = pipe.read()
    if refused:
        os.waitpid(pid, 0)
        raise OSError(int(refused), os.strerror(int(refused)))
    return pid


def _next_signal(timeout_s: float, command: int) -> tuple[int, bool]:
    """The next of those watched, and whether it was sent to this process alone; 0 when ``timeout_s`` are over."""
    if sys.platform == "linux":
        told = signal.sigtimedwait(_WATCHED, timeout_s)
        if told is None:
            return 0, False
        # From the terminal, and so to the whole group, where the kernel is the sender; a command that signals its
        # group has reached itself, too.
        return told.si_signo, told.si_code <= 0 and told.si_pid != command
    number = signal.sigwait(_WATCHED)
    return number, not (number in _BY_TERMINAL and _has_terminal())


def _has_terminal() -> bool:
    """Whether this process's group is the one that the terminal's keys reach."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
