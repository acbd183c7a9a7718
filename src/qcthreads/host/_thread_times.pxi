# CPU times of threads; included by the extensions of macOS and Windows.

from libc.errno cimport ERANGE
from libc.stdlib cimport free, malloc


def thread_times(int pid):
    """The CPU time of every thread of process ``pid`` by the thread's number, in ns."""
    cdef size_t room = 64, count = 0, i
    cdef qct_thread_time *times = NULL
    cdef int rc = -ERANGE
    try:
        while rc == -ERANGE:
            room = 2 * max(room, count)
            free(times)
            times = <qct_thread_time *>malloc(room * sizeof(qct_thread_time))
            if times == NULL:
                raise MemoryError()
            with nogil:
                rc = qct_thread_times(pid, times, room, &count)
        _check(rc)
        return {times[i].id: times[i].cpu_ns for i in range(count)}
    finally:
        free(times)
