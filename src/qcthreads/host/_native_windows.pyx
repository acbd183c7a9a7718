# cython: language_level=3, binding=False
"""A thin cover over csrc/qct.h on Windows: converts ints to masks and negative errnos to OSError, and nothing more."""

from libc.errno cimport ERANGE

include "_affinity.pxi"
include "_thread_times.pxi"


def read_topology():
    """The bytes that GetLogicalProcessorInformationEx writes."""
    cdef size_t size = 0
    cdef int rc = -ERANGE
    cdef bytearray buffer = bytearray()
    cdef char *start
    while rc == -ERANGE:  # the first call tells how many; a CPU may come in between
        buffer = bytearray(size)
        start = buffer
        with nogil:
            rc = qct_windows_topology(start, &size)
    _check(rc)
    return bytes(buffer[:size])
