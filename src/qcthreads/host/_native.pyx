# cython: language_level=3, binding=False
"""A thin cover over csrc/qct.h: converts ints to masks and negative errnos to OSError, and nothing more.

Sets of CPUs come and go as the bits of one int. No function holds the GIL while it is in the kernel.
"""

import os

from libc.stdlib cimport calloc, free


cdef size_t _kernel_words() except 0:
    cdef size_t words = 0
    cdef int rc
    with nogil:
        rc = qct_affinity_words(&words)
    _check(rc)
    return words


cdef int _check(int rc) except -1:
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return 0


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
    cdef unsigned long *masks = _new_mask(2 * words)
    cdef object word_mask = (1 << QCT_WORD_BITS) - 1
    cdef int rc
    cdef size_t i
    try:
        for i in range(words):
            masks[i] = <unsigned long>((asked >> (i * QCT_WORD_BITS)) & word_mask)
        with nogil:
            if whole_process:
                rc = qct_affinity_set_process(target, masks, masks + words, words)
            else:
                rc = qct_affinity_set(target, masks, masks + words, words)
        _check(rc)
        return _to_int(masks + words, words)
    finally:
        free(masks)
