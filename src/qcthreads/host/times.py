"""CPU times of threads through psutil, and what a refusal to tell them means; changes nothing."""

from __future__ import annotations

import errno
import os

from ..errors import BindingError, BindingNotPermittedError, ProcessGoneError


def psutil_thread_times(pid: int) -> dict[int, int]:
    """The CPU time of every thread of process ``pid`` by the thread's number, in ns. Raises OSError."""
    import psutil

    try:
        threads = psutil.Process(pid or None).threads()
    except psutil.NoSuchProcess as error:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH)) from error
    except psutil.AccessDenied as error:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM)) from error
    return {thread.id: round((thread.user_time + thread.system_time) * 1e9) for thread in threads}


def thread_times_error(error: OSError, pid: int) -> BindingError:
    """The error for ``error`` met when process ``pid`` was asked for the times of its threads."""
    asked = f"read the CPU times of the threads of process {pid}"
    if error.errno == errno.ESRCH:
        return ProcessGoneError(f"cannot {asked}: it has ended; nothing needs to be done")
    if error.errno in (errno.EPERM, errno.EACCES):
        return BindingNotPermittedError(f"cannot {asked}: the system does not permit it; ask as the user it belongs to")
    return BindingError(f"cannot {asked}: {error}")
