"""The calls of csrc/windows.c through ctypes and psutil, for installations without the extension.

They bind whole processes only, and only where there is one processor group.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from ..cpuset import CpuSet
from .times import psutil_thread_times as thread_times

__all__ = ["get_affinity", "read_topology", "set_affinity", "set_process_affinity", "thread_times"]

_RELATION_ALL = 0xFFFF
_ERROR_INSUFFICIENT_BUFFER = 122


def get_affinity(tid: int) -> int:
    """The mask of this process; of no other thread."""
    if tid:
        raise _refused(errno.ENOSYS)
    return _mask(os.getpid(), None)


def set_affinity(tid: int, asked: int) -> int:
    """Raises OSError: psutil binds processes, not threads."""
    del tid, asked
    raise _refused(errno.ENOSYS)


def set_process_affinity(pid: int, asked: int) -> int:
    """Bind process ``pid`` and read its mask back. Raises OSError where none is asked: psutil would take all."""
    if not asked:
        raise _refused(errno.EINVAL)
    _mask(pid, asked)
    return _mask(pid, None)


def _mask(pid: int, asked: int | None) -> int:
    import psutil

    if sys.platform != "win32" or _group_count() != 1:
        raise _refused(errno.ENOSYS)
    try:
        process = psutil.Process(pid)
        if asked is None:
            return CpuSet(process.cpu_affinity()).bits
        process.cpu_affinity(list(CpuSet.from_bits(asked)))
    except psutil.NoSuchProcess as error:
        raise _refused(errno.ESRCH) from error
    except psutil.AccessDenied as error:
        raise _refused(errno.EPERM) from error
    except ValueError as error:  # a CPU that is not there
        raise _refused(errno.EINVAL) from error
    return asked


def _refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


if sys.platform == "win32":

    def _kernel32() -> ctypes.WinDLL:
        return ctypes.WinDLL("kernel32", use_last_error=True)

    def _group_count() -> int:
        call = _kernel32().GetActiveProcessorGroupCount
        call.restype = ctypes.c_ushort  # a WORD: the rest of the register may hold anything
        return int(call())

    def read_topology() -> bytes:
        """The bytes that GetLogicalProcessorInformationEx writes."""
        call = _kernel32().GetLogicalProcessorInformationEx
        size = ctypes.c_ulong()
        buffer = None
        while not call(_RELATION_ALL, buffer, ctypes.byref(size)):  # the first call tells how many bytes there are
            if ctypes.get_last_error() != _ERROR_INSUFFICIENT_BUFFER:
                raise ctypes.WinError(ctypes.get_last_error())
            buffer = ctypes.create_string_buffer(size.value)
        return buffer.raw[: size.value] if buffer else b""

else:

    def read_topology() -> bytes:
        """Raises OSError."""
        raise _refused(errno.ENOSYS)
