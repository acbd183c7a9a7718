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

    int qct_adopt_orphans()
    int qct_files_lock(const int *files, size_t count, size_t *locked)
    int qct_files_unlock(const int *files, size_t count)
    int qct_file_hold(int folder, const char *name, const void *text, size_t size, bint for_all, int *file)
    int qct_file_end(int folder, const char *name, int file)
    int qct_folder_names(int folder, char *names, size_t room, size_t *size)
    int qct_folder_links(int folder, unsigned long *links)

    int qct_memory_probe()
    int qct_memory_words(size_t *words)
    int qct_memory_get(const void *address, int *kind, unsigned long *nodes, size_t words)
    int qct_memory_set(int kind, const unsigned long *nodes, size_t words)
    int qct_memory_bind(const void *start, size_t bytes, int kind, const unsigned long *nodes, size_t words)
    size_t qct_page_count(const void *start, size_t bytes)
    int qct_page_nodes(const void *start, size_t bytes, int *nodes)

    int qct_triad(const int *cpus, size_t count, int node, size_t size_bytes, int repetitions, double *bytes_per_s)

    ctypedef enum qct_times_source "enum qct_times_source":
        QCT_SCHEDSTAT
        QCT_STAT

    ctypedef struct qct_thread "struct qct_thread":
        int pid

    ctypedef struct qct_thread_detail "struct qct_thread_detail":
        char state

    ctypedef struct qct_process "struct qct_process":
        int pid

    ctypedef struct qct_sample "struct qct_sample":
        long long at_ns
        size_t thread_count, process_count
        const qct_thread *threads
        const qct_thread_detail *details
        const qct_process *processes

    ctypedef enum qct_detail "enum qct_detail":
        QCT_TIMES
        QCT_STATES
        QCT_EVERYTHING

    ctypedef struct qct_sampler "struct qct_sampler":
        pass

    qct_times_source qct_times_best()
    int qct_sampler_new(const int *pids, size_t count, int children, qct_times_source source, qct_sampler **sampler)
    void qct_sampler_free(qct_sampler *sampler)
    void qct_sampler_hold(qct_sampler *sampler)
    void qct_sampler_release(qct_sampler *sampler)
    int qct_sampler_attach(qct_sampler *sampler, int pid)
    void qct_sampler_detach(qct_sampler *sampler, int pid)
    int qct_sampler_look(qct_sampler *sampler, int root, qct_sample *sample)
    int qct_sampler_sample(qct_sampler *sampler, qct_detail detail, qct_sample *sample)
    int qct_sampler_processes(qct_sampler *sampler, qct_sample *sample)
    long long qct_sampler_unread(const qct_sampler *sampler)

    ctypedef struct qct_record "struct qct_record":
        long long at_ns
        size_t detailed, thread_count, process_count

    ctypedef struct qct_recorder_counts "struct qct_recorder_counts":
        long long samples, detailed, overruns, dropped, own_cpu_ns

    ctypedef struct qct_recorder "struct qct_recorder":
        pass

    int qct_recorder_new(size_t bytes, qct_recorder **recorder)
    void qct_recorder_free(qct_recorder *recorder)
    int qct_recorder_run(qct_recorder *recorder, qct_sampler *sampler, long long fast_ns, long long detail_ns)
    void qct_recorder_stop(qct_recorder *recorder)
    int qct_recorder_take(qct_recorder *recorder, void *record, size_t room, size_t *size)
    void qct_recorder_count(qct_recorder *recorder, qct_recorder_counts *counts)

    ctypedef struct qct_thread_time "struct qct_thread_time":
        unsigned long long id
        long long cpu_ns

    int qct_thread_times(int pid, qct_thread_time *times, size_t room, size_t *count)
    int qct_windows_topology(void *buffer, size_t *size)
    int qct_darwin_sysctl(const char *name, void *value, size_t *size)
