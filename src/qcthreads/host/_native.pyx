# cython: language_level=3, binding=False
"""A thin cover over csrc/qct.h on Linux: converts ints to masks and negative errnos to OSError, and nothing more.

Sets of CPUs come and go as the bits of one int. No function holds the GIL while it is in the kernel.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

include "_affinity.pxi"
include "_sampler.pxi"
include "_bandwidth.pxi"
include "_files.pxi"


def adopt_orphans():
    """Become the parent of every process below this one that loses its own."""
    _check(qct_adopt_orphans())


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
    cdef unsigned long *mask = _from_int(nodes, words)
    cdef int rc
    try:
        with nogil:
            rc = qct_memory_set(kind, mask, words)
        _check(rc)
    finally:
        free(mask)


def bind_buffer(buffer, int kind, nodes):
    """Set the policy of every page of ``buffer``, move those on other nodes, and return the policy read back."""
    cdef size_t words = max(_node_words(), <size_t>(nodes.bit_length() // QCT_WORD_BITS + 1))
    cdef unsigned long *mask = _from_int(nodes, words)
    cdef Py_buffer view
    cdef int rc
    try:
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


def read_topology(int root, online):
    """What the files below descriptor ``root`` say of the CPUs in ``online``: the fields of sysfs.Facts, in order."""
    cdef size_t words = <size_t>(online.bit_length() // QCT_WORD_BITS + 1)
    cdef unsigned long *mask = _from_int(online, words)
    cdef qct_topology *found = NULL
    cdef int rc
    try:
        with nogil:
            rc = qct_topology_read(root, mask, words, &found)
        _check(rc)
        return _facts(found)
    finally:
        free(mask)
        qct_topology_free(found)


def parse_mask(const char *text, size_t words):
    """The bits of a mask in the kernel's form."""
    return _parsed(text, words, False)


def parse_list(const char *text, size_t words):
    """The bits of a list in the kernel's form."""
    return _parsed(text, words, True)


cdef object _parsed(const char *text, size_t words, bint is_list):
    cdef unsigned long *mask = _new_mask(words)
    try:
        _check(qct_parse_list(text, mask, words) if is_list else qct_parse_mask(text, mask, words))
        return _to_int(mask, words)
    finally:
        free(mask)


cdef object _facts(const qct_topology *found):
    cdef list masks = _distinct_masks(found)
    cdef size_t i
    cdef list caches = [], nodes = [], speeds = []
    for i in range(found.cache_count):
        caches.append(
            (
                found.caches[i].level,
                found.caches[i].kind,
                <long long>found.caches[i].size_kib * 1024,
                masks[found.caches[i].mask],
            )
        )
    for i in range(found.node_count):
        nodes.append((found.nodes[i].id, masks[found.nodes[i].mask], <long long>found.nodes[i].memory_kib * 1024))
    for i in range(found.group_count[QCT_CORE]):
        speeds.append(
            (
                _number(found.speeds[i].max_khz),
                _number(found.speeds[i].base_khz),
                _number(found.speeds[i].nominal_mhz),
                _number(found.speeds[i].capacity),
                found.speeds[i].midr or None,
            )
        )
    return (
        _groups(found, masks, QCT_CORE),
        _groups(found, masks, QCT_CLUSTER),
        _groups(found, masks, QCT_DIE),
        _groups(found, masks, QCT_PACKAGE),
        speeds,
        caches,
        nodes,
        _distances(found),
    )


cdef list _groups(const qct_topology *found, list masks, int level):
    cdef list groups = []
    cdef qct_group group
    cdef size_t i
    for i in range(found.group_count[level]):
        group = found.groups[level][i]
        groups.append((masks[group.mask], _number(group.id), group.told))
    return groups


cdef object _distances(const qct_topology *found):
    cdef list rows = []
    cdef size_t i, j
    if found.distances == NULL:
        return None
    for i in range(found.node_count):
        rows.append(tuple([found.distances[i * found.node_count + j] for j in range(found.node_count)]))
    return rows


cdef object _number(long value):
    return None if value == QCT_ABSENT else value


cdef list _distinct_masks(const qct_topology *found):
    """Every mask as the bits of an int; equal ones, as of a core and its caches, are one object."""
    cdef dict known = {}
    cdef list masks = []
    cdef size_t i, words
    cdef const unsigned long *mask
    cdef bytes key
    cdef object bits
    for i in range(found.mask_count):
        mask = found.masks + i * found.words
        words = found.words
        while words and not mask[words - 1]:
            words -= 1
        key = (<const char *>mask)[: words * sizeof(unsigned long)]
        bits = known.get(key)
        if bits is None:
            bits = known[key] = _to_int(mask, words)
        masks.append(bits)
    return masks
