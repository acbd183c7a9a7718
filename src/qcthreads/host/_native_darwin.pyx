# cython: language_level=3, binding=False
"""A thin cover over csrc/qct.h on macOS: converts negative errnos to OSError, and nothing more."""

include "_errors.pxi"
include "_thread_times.pxi"
include "_bandwidth.pxi"


def read_sysctl(name):
    """The bytes of the value called ``name``."""
    cdef bytes text = name.encode()
    cdef const char *key = text
    cdef size_t size = 0
    cdef bytearray value
    cdef char *start
    cdef int rc
    with nogil:
        rc = qct_darwin_sysctl(key, NULL, &size)
    _check(rc)
    value = bytearray(size)
    start = value
    with nogil:
        rc = qct_darwin_sysctl(key, start, &size)
    _check(rc)
    return bytes(value[:size])
