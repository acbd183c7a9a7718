# Samples of threads, as the bytes of rows that sampling.py names; included by the extension of Linux.

from cpython.bytearray cimport PyByteArray_FromStringAndSize


def times_source():
    """Where the times of threads are told here: schedstat or stat."""
    return "schedstat" if qct_times_best() == QCT_SCHEDSTAT else "stat"


cdef class Sampler:
    """A struct qct_sampler; of any thread, one at a time."""

    cdef qct_sampler *_sampler

    def __init__(self, pids, children, source):
        cdef size_t count = len(pids), i
        cdef int *wanted = <int *>calloc(count + 1, sizeof(int))
        cdef bint below = children
        cdef qct_times_source times = QCT_STAT if source == "stat" else QCT_SCHEDSTAT
        cdef qct_sampler *made = NULL
        cdef int rc
        if wanted == NULL:
            raise MemoryError()
        try:
            for i in range(count):
                wanted[i] = pids[i]
            with nogil:
                rc = qct_sampler_new(wanted, count, below, times, &made)
            _check(rc)
        finally:
            free(wanted)
        self._sampler = made

    def __dealloc__(self):
        qct_sampler_free(self._sampler)

    def sample(self, bint detail):
        """When, the threads, and with ``detail`` their details and the processes."""
        cdef qct_sample found
        cdef int rc
        self._hold()
        try:
            with nogil:
                rc = qct_sampler_sample(self._sampler, QCT_EVERYTHING if detail else QCT_TIMES, &found)
            _check(rc)
            return _copied(&found, detail)
        finally:
            qct_sampler_release(self._sampler)

    def look(self, int root):
        """As a sample with details, of one root and its descendants alone."""
        cdef qct_sample found
        cdef int rc
        self._hold()
        try:
            with nogil:
                rc = qct_sampler_look(self._sampler, root, &found)
            _check(rc)
            return _copied(&found, True)
        finally:
            qct_sampler_release(self._sampler)

    def processes(self):
        """The processes as of the last sample, but for their clocks, which are read."""
        cdef qct_sample found
        self._hold()
        try:
            _check(qct_sampler_processes(self._sampler, &found))
            return _rows(found.processes, found.process_count, sizeof(qct_process))
        finally:
            qct_sampler_release(self._sampler)

    def attach(self, int pid):
        """Watch one more process."""
        self._hold()
        try:
            _check(qct_sampler_attach(self._sampler, pid))
        finally:
            qct_sampler_release(self._sampler)

    def detach(self, int pid):
        """Watch it no longer."""
        self._hold()
        qct_sampler_detach(self._sampler, pid)
        qct_sampler_release(self._sampler)

    def unread(self):
        """How often a thread that was there could not be read."""
        self._require_open()
        return qct_sampler_unread(self._sampler)

    def close(self):
        """Close all descriptors."""
        qct_sampler_free(self._sampler)
        self._sampler = NULL

    cdef int _require_open(self) except -1:
        if self._sampler == NULL:
            raise ValueError("the sampler is closed; make another")
        return 0

    cdef int _hold(self) except -1:
        self._require_open()
        with nogil:  # whoever holds it may wait for the interpreter
            qct_sampler_hold(self._sampler)
        return 0


cdef class Recorder:
    """A struct qct_recorder; ``run`` takes a thread of its own, everything else any."""

    cdef qct_recorder *_recorder

    def __init__(self, size_t room):
        _check(qct_recorder_new(room, &self._recorder))

    def __dealloc__(self):
        qct_recorder_free(self._recorder)

    def run(self, Sampler sampler, long long fast_ns, long long detail_ns):
        """Sample at these intervals until stopped."""
        cdef int rc
        sampler._require_open()
        with nogil:
            rc = qct_recorder_run(self._recorder, sampler._sampler, fast_ns, detail_ns)
        _check(rc)

    def stop(self):
        """Let ``run`` return after a last sample."""
        with nogil:
            qct_recorder_stop(self._recorder)

    def take(self):
        """The oldest sample, as Sampler.sample gives it, which is forgotten; None: there is none."""
        cdef size_t size = 0, room
        cdef char *bytes
        cdef const qct_record *head
        cdef object record
        cdef int rc
        while True:
            room = size
            record = PyByteArray_FromStringAndSize(NULL, room)
            bytes = record
            with nogil:
                rc = qct_recorder_take(self._recorder, bytes, room, &size)
            if rc == 0:
                break
            if size <= room:  # else it is longer, or another thread took one and the next is longer
                _check(rc)
        if size == 0:
            return None
        head = <const qct_record *>bytes
        return _parts(head, bytes + sizeof(qct_record))

    def counts(self):
        """samples, detailed, overruns, dropped, own_cpu_ns."""
        cdef qct_recorder_counts counts
        with nogil:
            qct_recorder_count(self._recorder, &counts)
        return counts.samples, counts.detailed, counts.overruns, counts.dropped, counts.own_cpu_ns


cdef object _rows(const void *rows, size_t count, size_t size):
    return PyByteArray_FromStringAndSize(<const char *>rows, count * size)


cdef object _copied(const qct_sample *found, bint detail):
    threads = _rows(found.threads, found.thread_count, sizeof(qct_thread))
    if not detail:
        return found.at_ns, threads, None, None
    details = _rows(found.details, found.thread_count, sizeof(qct_thread_detail))
    return found.at_ns, threads, details, _rows(found.processes, found.process_count, sizeof(qct_process))


cdef object _parts(const qct_record *head, const char *at):
    cdef size_t count = head.thread_count
    threads = _rows(at, count, sizeof(qct_thread))
    if not head.detailed:
        return head.at_ns, threads, None, None
    at += count * sizeof(qct_thread)
    details = _rows(at, count, sizeof(qct_thread_detail))
    at += count * sizeof(qct_thread_detail)
    return head.at_ns, threads, details, _rows(at, head.process_count, sizeof(qct_process))
