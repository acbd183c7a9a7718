# The functions of csrc/qct.h that Python uses; declares, adds nothing.

cdef extern from "qct.h" nogil:
    const size_t QCT_WORD_BITS
    int qct_affinity_words(size_t *words)
    int qct_affinity_get(int tid, unsigned long *mask, size_t words)
    int qct_affinity_set(int tid, const unsigned long *asked, unsigned long *got, size_t words)
    int qct_affinity_set_process(int pid, const unsigned long *asked, unsigned long *got, size_t words)
