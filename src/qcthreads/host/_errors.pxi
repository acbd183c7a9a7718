# Negative errnos as OSError; included by the extension of every platform.

import os


cdef int _check(int rc) except -1:
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return 0
