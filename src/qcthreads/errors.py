"""Every exception qcthreads raises on purpose, with the exit code of the command line; holds no policy.

A message says what was asked, what was found and what to do.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class QCThreadsError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(QCThreadsError, ValueError):
    """Malformed or contradictory usage or input."""

    exit_code = 2


class MachineError(QCThreadsError, RuntimeError):
    """The request is valid, but this machine cannot serve it (no such width, memory, permission, program)."""

    exit_code = 3


class OversubscriptionError(MachineError, ValueError):
    """More threads, or more memory, asked for than may be used."""


class ProgramNotFoundError(MachineError):
    """The program is not installed, or not importable, here."""


class CommandNotFoundError(MachineError):
    """There is no such command (the exit code is that of shells and env(1))."""

    exit_code = 127


class CommandNotRunnableError(MachineError):
    """The command is there, but cannot be executed."""

    exit_code = 126


class LeaseError(MachineError):
    """A lease cannot be given: it can never fit, or did not come free in time."""


class LeaseTooLargeError(LeaseError):
    """A lease of more than there is, or is any more: to wait for it is of no use."""


class LeaseNotNowError(LeaseError):
    """A lease that can be given, but not now: who waits for it gets it."""


class BookShutError(LeaseError):
    """Somebody keeps the door of the book of leases shut."""


class CpusTakenError(LeaseError):
    """CPUs that somebody else has leased."""


class CpusOutsideLimitsError(MachineError, ValueError):
    """CPUs that this process may not use, or that are not given out."""


class UnknownWorkerError(InputError):
    """No live allocation has a worker of that number."""


class BindingError(MachineError):
    """A binding could not be made; the subclasses say why."""


class BindingNotSupportedError(BindingError):
    """This platform cannot bind this kind of thing at all (hwloc's ENOSYS)."""


class BindingNotEnforcedError(BindingError):
    """The set cannot be enforced: the kernel refused it, or kept fewer CPUs than asked for (hwloc's EXDEV)."""


class BindingNotPermittedError(BindingError, PermissionError):
    """The operating system refuses this caller (EPERM)."""


class ProcessGoneError(BindingError, ProcessLookupError):
    """The process or thread ended before it could be bound (ESRCH)."""


class CalculationError(QCThreadsError):
    """One or more calculations failed; what they lack is named."""


class StopRequestedError(QCThreadsError):
    """Stopped before the end; what is in the store can be resumed."""

    exit_code = 4
