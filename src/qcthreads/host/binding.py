"""Turns an operating system's refusal to bind into the error that means it; calls nothing."""

from __future__ import annotations

import errno

from ..cpuset import CpuSet
from ..errors import (
    BindingError,
    BindingNotEnforcedError,
    BindingNotPermittedError,
    BindingNotSupportedError,
    InputError,
    ProcessGoneError,
)


def require_cpus(cpus: CpuSet) -> CpuSet:
    """``cpus`` unless empty, which no operating system can mean."""
    if not cpus:
        raise InputError("cannot bind to an empty set of CPUs; name at least one")
    return cpus


def name_of_thread(tid: int) -> str:
    """How messages call thread ``tid``; 0 is the caller."""
    return f"thread {tid}" if tid else "the calling thread"


def binding_error(error: OSError, target: str, cpus: CpuSet | None = None) -> BindingError:
    """The BindingError for ``error`` met when ``target`` was asked for its mask, or to be bound to ``cpus``."""
    asked = f"bind {target} to CPUs {cpus}" if cpus is not None else f"read the mask of {target}"
    if error.errno == errno.ESRCH or isinstance(error, FileNotFoundError):
        return ProcessGoneError(f"cannot {asked}: it has ended; start it again")
    if error.errno in (errno.EPERM, errno.EACCES):
        return BindingNotPermittedError(
            f"cannot {asked}: the system does not permit it; it belongs to another user, or this container forbids it"
        )
    if error.errno == errno.ENOSYS:
        return BindingNotSupportedError(f"cannot {asked}: this system cannot bind; run with affinity turned off")
    if error.errno == errno.EXDEV:
        return BindingNotEnforcedError(
            f"cannot {asked}: on Windows a thread runs within one processor group of 64 CPUs, and these are of "
            "several; name CPUs of one group"
        )
    if error.errno == errno.EINVAL:
        return BindingNotEnforcedError(
            f"cannot {asked}: none of these CPUs is online and allowed here; `qcthreads limits` lists those that are"
        )
    if error.errno == errno.EAGAIN:
        return BindingNotEnforcedError(f"cannot {asked}: it starts threads faster than they can be bound; try again")
    return BindingError(f"cannot {asked}: {error}")
