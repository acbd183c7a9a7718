# Memory bandwidth; included by the extensions of Linux and macOS.

from libc.stdlib cimport calloc, free


def triad(cpus, int node, size_t size_bytes, int repetitions):
    """Bytes per second of STREAM's triad by one thread on each of ``cpus``, in the memory of ``node`` unless -1."""
    cdef size_t count = len(cpus), i
    cdef int *numbers = <int *>calloc(count + 1, sizeof(int))
    cdef double bytes_per_s = 0.0
    cdef int rc
    if numbers == NULL:
        raise MemoryError()
    try:
        for i in range(count):
            numbers[i] = cpus[i]
        with nogil:
            rc = qct_triad(numbers, count, node, size_bytes, repetitions, &bytes_per_s)
        _check(rc)
        return bytes_per_s
    finally:
        free(numbers)
