# cython: language_level=3, binding=False
"""A thin cover over csrc/qct.h: converts ints to masks and negative errnos to OSError, and nothing more.

Sets of CPUs and of memory nodes come and go as the bits of one int. No function holds the GIL while it is in the kernel.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.limits cimport ULONG_MAX
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


cdef int _fill(unsigned long *mask, size_t words, object bits) except -1:
    cdef size_t i
    for i in range(words):
        mask[i] = <unsigned long>((bits >> (i * QCT_WORD_BITS)) & <object>ULONG_MAX)
    return 0


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
    cdef int rc
    try:
        _fill(masks, words, asked)
        with nogil:
            if whole_process:
                rc = qct_affinity_set_process(target, masks, masks + words, words)
            else:
                rc = qct_affinity_set(target, masks, masks + words, words)
        _check(rc)
        return _to_int(masks + words, words)
    finally:
        free(masks)


def probe_memory_policy():
    """Raises OSError where memory policies can be neither read nor set; changes nothing."""
    cdef int rc
    with nogil:
        rc = qct_memory_probe()
    _check(rc)


def get_memory_policy():
    """The policy of the calling thread: the kernel's number of its kind and the bits of its nodes."""
    return _policy_of(NULL)


def set_memory_policy(int kind, nodes):
    """Set the policy of the calling thread."""
    cdef size_t words = max(_node_words(), <size_t>(nodes.bit_length() // QCT_WORD_BITS + 1))
    cdef unsigned long *mask = _new_mask(words)
    cdef int rc
    try:
        _fill(mask, words, nodes)
        with nogil:
            rc = qct_memory_set(kind, mask, words)
        _check(rc)
    finally:
        free(mask)


def bind_buffer(buffer, int kind, nodes):
    """Set the policy of every page of ``buffer``, move those on other nodes, and return the policy read back."""
    cdef size_t words = max(_node_words(), <size_t>(nodes.bit_length() // QCT_WORD_BITS + 1))
    cdef unsigned long *mask = _new_mask(words)
    cdef Py_buffer view
    cdef int rc
    try:
        _fill(mask, words, nodes)
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                rc = qct_memory_bind(view.buf, <size_t>view.len, kind, mask, words)
            _check(rc)
            return _policy_of(view.buf)
        finally:
            PyBuffer_Release(&view)
    finally:
        free(mask)


def page_nodes(buffer):
    """The node of every page that ``buffer`` touches, or a negative errno where no memory is behind it."""
    cdef Py_buffer view
    cdef size_t pages, i
    cdef int rc
    cdef int *nodes = NULL
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        pages = qct_page_count(view.buf, <size_t>view.len)
        nodes = <int *>calloc(pages + 1, sizeof(int))
        if nodes == NULL:
            raise MemoryError()
        with nogil:
            rc = qct_page_nodes(view.buf, <size_t>view.len, nodes)
        _check(rc)
        return [nodes[i] for i in range(pages)]
    finally:
        free(nodes)
        PyBuffer_Release(&view)


cdef size_t _node_words() except 0:
    cdef size_t words = 0
    cdef int rc
    with nogil:
        rc = qct_memory_words(&words)
    _check(rc)
    return words


cdef object _policy_of(const void *address):
    cdef size_t words = _node_words()
    cdef unsigned long *nodes = _new_mask(words)
    cdef int rc, kind = 0
    try:
        with nogil:
            rc = qct_memory_get(address, &kind, nodes, words)
        _check(rc)
        return kind, _to_int(nodes, words)
    finally:
        free(nodes)
