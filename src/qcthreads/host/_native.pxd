# The functions of csrc/qct.h that Python uses; declares, adds nothing.

cdef extern from "qct.h" nogil:
    const size_t QCT_WORD_BITS
    int qct_affinity_words(size_t *words)
    int qct_affinity_get(int tid, unsigned long *mask, size_t words)
    int qct_affinity_set(int tid, const unsigned long *asked, unsigned long *got, size_t words)
    int qct_affinity_set_process(int pid, const unsigned long *asked, unsigned long *got, size_t words)

    const long QCT_ABSENT
    const int QCT_CORE, QCT_CLUSTER, QCT_DIE, QCT_PACKAGE

    ctypedef struct qct_group "struct qct_group":
        long id
        size_t mask
        bint told

    ctypedef struct qct_speed "struct qct_speed":
        long max_khz, base_khz, nominal_mhz, capacity
        unsigned long midr

    ctypedef struct qct_cache "struct qct_cache":
        long level
        int kind
        long size_kib
        size_t mask

    ctypedef struct qct_node "struct qct_node":
        long id, memory_kib
        size_t mask

    ctypedef struct qct_topology "struct qct_topology":
        size_t words, mask_count
        unsigned long *masks
        qct_group *groups[4]
        size_t group_count[4]
        qct_speed *speeds
        qct_cache *caches
        size_t cache_count
        qct_node *nodes
        size_t node_count
        long *distances

    int qct_topology_read(int root, const unsigned long *online, size_t words, qct_topology **topology)
    void qct_topology_free(qct_topology *topology)
    int qct_parse_mask(const char *text, unsigned long *mask, size_t words)
    int qct_parse_list(const char *text, unsigned long *mask, size_t words)

    int qct_memory_probe()
    int qct_memory_words(size_t *words)
    int qct_memory_get(const void *address, int *kind, unsigned long *nodes, size_t words)
    int qct_memory_set(int kind, const unsigned long *nodes, size_t words)
    int qct_memory_bind(const void *start, size_t bytes, int kind, const unsigned long *nodes, size_t words)
    size_t qct_page_count(const void *start, size_t bytes)
    int qct_page_nodes(const void *start, size_t bytes, int *nodes)

    ctypedef struct qct_thread_time "struct qct_thread_time":
        unsigned long long id
        long long cpu_ns

    int qct_thread_times(int pid, qct_thread_time *times, size_t room, size_t *count)
    int qct_windows_topology(void *buffer, size_t *size)
    int qct_darwin_sysctl(const char *name, void *value, size_t *size)
