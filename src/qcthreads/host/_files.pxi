# Locks of open files, and small files; included by the extension of Linux. What file_calls.py does, in one call each.

from libc.errno cimport ERANGE, EAGAIN
from libc.stdlib cimport malloc
from libc.string cimport strlen


cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object name)
    object PyUnicode_DecodeFSDefault(const char *name)


def lock_files(dict files, tuple names):
    """Lock all the files of these names or none; the index of one that somebody else has, else -1.

    KeyError where one is not among those open.
    """
    cdef size_t count = 0, locked = 0
    cdef int *numbers = _numbers(files, names, &count)
    cdef int rc
    try:
        if count < <size_t>len(names):
            raise KeyError(names)
        with nogil:
            rc = qct_files_lock(numbers, count, &locked)
        if rc == -EAGAIN:
            return locked
        _check(rc)
        return -1
    finally:
        free(numbers)


def unlock_files(dict files, tuple names):
    """Give these locks up, of what is open."""
    cdef size_t count = 0
    cdef int *numbers = _numbers(files, names, &count)
    cdef int rc
    try:
        with nogil:
            rc = qct_files_unlock(numbers, count)
        _check(rc)
    finally:
        free(numbers)


cdef int *_numbers(dict files, tuple names, size_t *count) except NULL:
    """Of those that are open."""
    cdef int *numbers = <int *>malloc((len(names) + 1) * sizeof(int))
    if numbers == NULL:
        raise MemoryError()
    try:
        for name in names:
            number = files.get(name)
            if number is not None:
                numbers[count[0]] = number
                count[0] += 1
    except BaseException:
        free(numbers)
        raise
    return numbers


def hold_file(int folder, name, bytes text, bint for_all):
    """Make the file, locked before anything is in it, and return its descriptor."""
    cdef bytes encoded = PyUnicode_EncodeFSDefault(name)
    cdef const char *called = encoded
    cdef const char *says = text
    cdef size_t size = len(text)
    cdef int rc, made = -1
    with nogil:
        rc = qct_file_hold(folder, called, says, size, for_all, &made)
    _check(rc)
    return made


def end_file(int folder, name, int file):
    """Remove the file where that is allowed, and then close it."""
    cdef bytes encoded = PyUnicode_EncodeFSDefault(name)
    cdef const char *called = encoded
    with nogil:
        qct_file_end(folder, called, file)


def names_in(int folder):
    """The names of all that is in a directory."""
    cdef size_t room = 16384, size = 0
    cdef char *names
    cdef int rc
    while True:
        names = <char *>malloc(room)
        if names == NULL:
            raise MemoryError()
        try:
            with nogil:
                rc = qct_folder_names(folder, names, room, &size)
            if rc != -ERANGE:
                _check(rc)
                return _split(names, size)
        finally:
            free(names)
        room *= 4


cdef set _split(const char *names, size_t size):
    cdef set found = set()
    cdef size_t at = 0
    while at < size:
        found.add(PyUnicode_DecodeFSDefault(names + at))
        at += strlen(names + at) + 1
    return found


def links_of(int folder):
    """How many links a directory has: none when it was removed."""
    cdef unsigned long links = 0
    cdef int rc
    with nogil:
        rc = qct_folder_links(folder, &links)
    _check(rc)
    return links
