# The functions of csrc/qct.h that Python uses; declares, adds nothing.

cdef extern from "qct.h" nogil:
    const size_t QCT_WORD_BITS
    int qct_affinity_words(size_t *words)
    int qct_affinity_get(int tid, unsigned long *mask, size_t words)
    int qct_affinity_set(int tid, const unsigned long *asked, unsigned long *got, size_t words)
    int qct_affinity_set_process(int pid, const unsigned long *asked, unsigned long *got, size_t words)
    int qct_memory_probe()
    int qct_memory_words(size_t *words)
    int qct_memory_get(const void *address, int *kind, unsigned long *nodes, size_t words)
    int qct_memory_set(int kind, const unsigned long *nodes, size_t words)
    int qct_memory_bind(const void *start, size_t bytes, int kind, const unsigned long *nodes, size_t words)
    size_t qct_page_count(const void *start, size_t bytes)
    int qct_page_nodes(const void *start, size_t bytes, int *nodes)
