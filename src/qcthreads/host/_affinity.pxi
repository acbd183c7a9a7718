# Masks as the bits of ints, and the functions that bind; included by the extensions of Linux and Windows.

import sys

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

include "_errors.pxi"


cdef size_t _kernel_words() except 0:
    cdef size_t words = 0
    cdef int rc
    with nogil:
        rc = qct_affinity_words(&words)
    _check(rc)
    return words


cdef unsigned long *_new_mask(size_t words) except NULL:
    cdef unsigned long *mask = <unsigned long *>calloc(words, sizeof(unsigned long))
    if mask == NULL:
        raise MemoryError()
    return mask


cdef object _to_int(const unsigned long *mask, size_t words):
    cdef object bits = 0
    cdef size_t i
    for i in range(words):
        if mask[i]:
            bits |= <object>mask[i] << (i * QCT_WORD_BITS)
    return bits


def get_affinity(int tid):
    """The mask of thread ``tid`` (0: the calling thread) as the bits of an int."""
    cdef size_t words = _kernel_words()
    cdef unsigned long *mask = _new_mask(words)
    cdef int rc
    try:
        with nogil:
            rc = qct_affinity_get(tid, mask, words)
        _check(rc)
        return _to_int(mask, words)
    finally:
        free(mask)


def set_affinity(int tid, asked):
    """Bind thread ``tid`` and return the bits of the mask read back."""
    return _set(tid, asked, False)


def set_process_affinity(int pid, asked):
    """Bind all threads of process ``pid`` and return the bits of the union of their masks."""
    return _set(pid, asked, True)


cdef object _set(int target, object asked, bint whole_process):
    cdef size_t words = max(_kernel_words(), <size_t>(asked.bit_length() // QCT_WORD_BITS + 1))
    cdef unsigned long *mask = _from_int(asked, words)
    cdef unsigned long *got = NULL
    cdef int rc
    try:
        got = _new_mask(words)
        with nogil:
            if whole_process:
                rc = qct_affinity_set_process(target, mask, got, words)
            else:
                rc = qct_affinity_set(target, mask, got, words)
        _check(rc)
        return _to_int(got, words)
    finally:
        free(mask)
        free(got)


cdef unsigned long *_from_int(object bits, size_t words) except NULL:
    cdef unsigned long *mask = _new_mask(words)
    cdef bytes raw = bits.to_bytes(words * sizeof(unsigned long), sys.byteorder)
    cdef const char *source = raw
    cdef size_t i
    if sys.byteorder == "little":
        memcpy(mask, source, words * sizeof(unsigned long))
    else:
        for i in range(words):
            memcpy(mask + i, source + (words - 1 - i) * sizeof(unsigned long), sizeof(unsigned long))
    return mask
