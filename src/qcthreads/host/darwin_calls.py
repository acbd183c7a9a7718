"""The calls of csrc/darwin.c through ctypes and psutil, for installations without the extension."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

from .times import psutil_thread_times as thread_times

__all__ = ["read_sysctl", "thread_times"]


def read_sysctl(name: str) -> bytes:
    """The bytes of the value called ``name``."""
    if sys.platform != "darwin":  # other systems have calls of this name, and other values
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call = ctypes.CDLL(None, use_errno=True).sysctlbyname
    call.argtypes = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    size = ctypes.c_size_t()
    value = None
    for _ in range(2):  # the first call tells how many bytes there are
        if call(name.encode(), value, ctypes.byref(size), None, 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if value is None:
            value = ctypes.create_string_buffer(size.value)
    return value.raw[: size.value] if value else b""
