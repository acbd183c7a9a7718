/*
 * Everything the native core offers. Plain C11: no Python, no policy, no global state, no output.
 *
 * Every function returns 0 or a negative errno and may be called from any thread. The caller owns every buffer; nothing
 * is kept after a call. A mask is an array of `words` unsigned longs, as the kernel counts them: CPU n is bit
 * n % QCT_WORD_BITS of word n / QCT_WORD_BITS. A thread or process id of 0 is the calling thread's or process's.
 *
 * On Windows CPU n is bit n % 64 of processor group n / 64: numbers are missing where a group has fewer than 64 CPUs.
 *
 * Affinity: linux_affinity.c and windows.c. Topology: linux_topology.c; raw values only: windows.c and darwin.c. Memory
 * policy: linux_mempolicy.c. Thread times: linux_sampler.c, windows.c and darwin.c; over time: linux_recorder.c. Memory
 * bandwidth, on Linux and macOS: bandwidth.c. Processes: linux_process.c. Locks and small files: linux_files.c.
 */
#ifndef QCT_H
#define QCT_H

#include <limits.h>
#include <stddef.h>

#define QCT_WORD_BITS (CHAR_BIT * sizeof(unsigned long))

/* Store in *words how many words the kernel's masks have here. */
int qct_affinity_words(size_t *words);

/* Read the mask of thread tid. -EINVAL: the kernel's masks are wider than `words`; -ESRCH: the thread has ended. */
int qct_affinity_get(int tid, unsigned long *mask, size_t words);

/*
 * Bind thread tid to `asked`, then read back into `got` what the kernel made of it; both have `words` words.
 * Linux drops CPUs that are absent or not allowed without a word; -EINVAL when none would be left. Windows drops none:
 * -EINVAL when any is absent or not allowed; -EXDEV: CPUs of several groups, and a thread is bound within one.
 */
int qct_affinity_set(int tid, const unsigned long *asked, unsigned long *got, size_t words);

/*
 * Bind all threads of process pid to `asked`, also those started meanwhile; `got` becomes the union of their masks.
 * -ESRCH: the process has ended, or ended meanwhile; -EAGAIN: it starts threads faster than they can be bound. Threads
 * and children that the process starts later inherit; on Windows only where all its threads were in the group asked
 * for, which keeps a mask for each process.
 */
int qct_affinity_set_process(int pid, const unsigned long *asked, unsigned long *got, size_t words);

/*
 * What the kernel's files say of a machine, in flat arrays. A `mask` is a number: mask m begins at masks[m * words]. A
 * number that no file tells is QCT_ABSENT. Every array is sorted by lowest CPU, nodes by number.
 */
#define QCT_ABSENT LONG_MIN

enum qct_level { QCT_CORE, QCT_CLUSTER, QCT_DIE, QCT_PACKAGE, QCT_LEVELS };

enum qct_cache_kind { QCT_DATA, QCT_INSTRUCTION, QCT_UNIFIED };

/*
 * CPUs that share something; the id is the kernel's; not told: no file names them, so that each stands alone. The
 * groups of a level are disjoint; none: the kernel knows no such level.
 */
struct qct_group {
    long id;
    size_t mask;
    int told;
};

/*
 * How fast the CPUs of one core are, as the files of its first CPU say: kHz, MHz and shares of 1024; and ARM's number
 * of its design, 0 where there is none.
 */
struct qct_speed {
    long max_khz, base_khz, nominal_mhz, capacity;
    unsigned long midr;
};

struct qct_cache {
    long level;
    enum qct_cache_kind kind;
    long size_kib;
    size_t mask;
};

struct qct_node {
    long id;
    long memory_kib;
    size_t mask;
};

struct qct_topology {
    size_t words, mask_count;
    unsigned long *masks;
    struct qct_group *groups[QCT_LEVELS];
    size_t group_count[QCT_LEVELS];
    struct qct_speed *speeds; /* one for each core */
    struct qct_cache *caches;
    size_t cache_count;
    struct qct_node *nodes;
    size_t node_count;
    long *distances; /* node_count rows of node_count, or NULL where any row is missing */
};

/*
 * Read sys/devices/system below the directory `root` for the CPUs of `online`. Each shared object is read once. Files
 * that cannot be read are taken for absent. *topology is the caller's, to be freed with qct_topology_free. -EINVAL: a
 * file is there and cannot be understood; -EMFILE, -ENFILE, -ENOMEM.
 */
int qct_topology_read(int root, const unsigned long *online, size_t words, struct qct_topology **topology);

void qct_topology_free(struct qct_topology *topology);

/* The kernel's mask form, "ff,00000000", and its list form, "0-3,8"; CPUs beyond the mask are left out. -EINVAL. */
int qct_parse_mask(const char *text, unsigned long *mask, size_t words);
int qct_parse_list(const char *text, unsigned long *mask, size_t words);

/* Become the parent of every process below this one that loses its own. */
int qct_adopt_orphans(void);

/*
 * Linux: lock each of these open files for itself alone, as flock(2) does, without waiting. All or none: where one
 * cannot be locked, *locked is its index. -EAGAIN: somebody else has it.
 */
int qct_files_lock(const int *files, size_t count, size_t *locked);

/* Give these locks up, also for whoever has the same open files; where one cannot be, the others are all the same. */
int qct_files_unlock(const int *files, size_t count);

/*
 * Make a file of directory `folder` that is locked before anything is in it; other users may read it if `for_all`.
 * *file is the caller's, to be closed by qct_file_end. Nothing is left where it fails. -EEXIST: there is one of this
 * name; -ENOSPC.
 */
int qct_file_hold(int folder, const char *name, const void *text, size_t size, int for_all, int *file);

/* Remove the file, and only then close it: at no time is it there and locked by nobody. It is closed in any case. */
int qct_file_end(int folder, const char *name, int file);

/*
 * Store the names of all that is in directory `folder`, each with its final 0, in *size bytes; none once it was
 * removed. One thread at a time: how far it was read is told by the descriptor. -ERANGE: they need more than `room`.
 */
int qct_folder_names(int folder, char *names, size_t room, size_t *size);

/* Store in *links how many links directory `folder` has: none when it was removed. */
int qct_folder_links(int folder, unsigned long *links);

/*
 * Memory policy. A mask of nodes is laid out as one of CPUs. Kinds are numbered as the kernel's MPOL_*
 * (include/uapi/linux/mempolicy.h); `default` and `local` take an empty mask, `preferred` takes one node.
 */
enum qct_memory_kind {
    QCT_MEMORY_DEFAULT,
    QCT_MEMORY_PREFERRED,
    QCT_MEMORY_BIND,
    QCT_MEMORY_INTERLEAVE,
    QCT_MEMORY_LOCAL,
    QCT_MEMORY_PREFERRED_MANY, /* since Linux 5.15 */
};

/* Whether policies can be read and set here; changes nothing. -ENOSYS: a kernel without NUMA; -EPERM: forbidden. */
int qct_memory_probe(void);

/* Store in *words how many words a mask must have to hold every node that this kernel can have. */
int qct_memory_words(size_t *words);

/* Read the policy of the calling thread, or that of the page at `address` unless NULL. */
int qct_memory_get(const void *address, int *kind, unsigned long *nodes, size_t words);

/*
 * Set the policy of the calling thread, which its children inherit. The kernel drops nodes that are absent, without
 * memory or not allowed without a word; -EINVAL when none would be left, and for a kind that it does not know.
 */
int qct_memory_set(int kind, const unsigned long *nodes, size_t words);

/* Set the policy of every page that these bytes touch, and move pages that are on other nodes. */
int qct_memory_bind(const void *start, size_t bytes, int kind, const unsigned long *nodes, size_t words);

/* How many pages these bytes touch. */
size_t qct_page_count(const void *start, size_t bytes);

/* Store for each of these pages the node it is on, or a negative errno: -ENOENT, -EFAULT: no memory behind it yet. */
int qct_page_nodes(const void *start, size_t bytes, int *nodes);

/* A thread's number, by which it differs from the others of its process, and the CPU time it has used. */
struct qct_thread_time {
    unsigned long long id; /* macOS: of our own threads as pthread_threadid_np counts, of others' a handle */
    long long cpu_ns;
};

/*
 * The threads of process pid, in any order; *count becomes how many there are, and of them at most `room` are stored.
 * -ERANGE: there are more than `room`. -ESRCH: the process has ended; -EPERM: its threads may not be seen.
 */
int qct_thread_times(int pid, struct qct_thread_time *times, size_t room, size_t *count);

/*
 * Linux: what threads used, from the files of /proc, which stay open between two samples. Times since a thread began.
 * A thread that runs while it is read lags by up to a tick of the scheduler; the clock of its process does not.
 */
enum qct_times_source {
    QCT_SCHEDSTAT, /* nanoseconds on a CPU and in the run queue */
    QCT_STAT,      /* for kernels without CONFIG_SCHED_INFO: clock ticks on a CPU; of waits and slices -1 */
};

struct qct_thread {
    int pid, tid;
    long long cpu_ns, wait_ns, slices;
};

/* What a detailed sample adds to a thread; from the last one of its kind in other samples. */
struct qct_thread_detail {
    long long started_ticks; /* since boot, in 1 / sysconf(_SC_CLK_TCK) s: tells it from a later one of its number */
    long long minor_faults, major_faults, voluntary_switches, involuntary_switches;
    int last_cpu;
    char state; /* as in proc_pid_stat(5) */
    char padding[3];
};

/*
 * `root` is the nearest of the pids given to the sampler that it descends from. ended_*: of its threads that are no
 * more, as they were last seen. gone_*: of descendants that are no more, at their root alone, which is never left out.
 */
struct qct_process {
    int pid, root, threads, ended; /* a number of threads; whether all of it has ended */
    long long started_ticks;
    long long cpu_ns;        /* by its own clock, its ended threads included */
    long long waited_for_ns; /* children that it has waited for, and theirs, in clock ticks */
    long long memory_bytes, memory_peak_bytes;
    long long ended_threads, ended_cpu_ns, ended_wait_ns, ended_slices;
    long long gone_processes, gone_threads, gone_cpu_ns, gone_wait_ns, gone_slices;
};

/* A sample; the arrays are the sampler's, until it samples again. threads[i] and details[i] are one thread. */
struct qct_sample {
    long long at_ns; /* of CLOCK_MONOTONIC */
    size_t thread_count, process_count;
    const struct qct_thread *threads;
    const struct qct_thread_detail *details;
    const struct qct_process *processes;
};

struct qct_sampler;

/* Whether /proc/self/schedstat is kept here: QCT_SCHEDSTAT, else QCT_STAT. */
enum qct_times_source qct_times_best(void);

/*
 * Watch these processes, and all their descendants if `children`. A process that is not there has a row that says it
 * has ended. *sampler is the caller's, to be freed with qct_sampler_free. It may be used by one thread at a time, which
 * holds it meanwhile where there are several.
 * -EMFILE: not even one descriptor is left for each process; -ENOMEM; -ENOENT: there is no /proc.
 */
int qct_sampler_new(const int *pids, size_t count, int children, enum qct_times_source source,
                    struct qct_sampler **sampler);

void qct_sampler_free(struct qct_sampler *sampler);

/* From before a call to the last use of the sample that it fills; qct_recorder_run does so by itself. */
void qct_sampler_hold(struct qct_sampler *sampler);
void qct_sampler_release(struct qct_sampler *sampler);

/* Watch one more process as those given at first; nothing where it is watched already. Errors as of qct_sampler_new. */
int qct_sampler_attach(struct qct_sampler *sampler, int pid);

/* Forget a process that was given, with its descendants and all that it had used. */
void qct_sampler_detach(struct qct_sampler *sampler, int pid);

/* What of a sample is read. Of the switches, which cost as much as all the rest, everything else does without. */
enum qct_detail {
    QCT_TIMES,      /* of threads */
    QCT_STATES,     /* and their details but for switches, which are those of the last sample that had them, or -1;
                       the processes with their clocks */
    QCT_EVERYTHING, /* and switches */
};

/*
 * Look at every thread once; *sample is filled. Descriptors beyond three quarters of RLIMIT_NOFILE are opened anew each
 * time.
 */
int qct_sampler_sample(struct qct_sampler *sampler, enum qct_detail detail, struct qct_sample *sample);

/* Look, with QCT_STATES, at one of the processes that were given and its descendants; *sample has these alone. */
int qct_sampler_look(struct qct_sampler *sampler, int root, struct qct_sample *sample);

/* Only the clocks of the processes, now; threads and memory are those of the last sample. */
int qct_sampler_processes(struct qct_sampler *sampler, struct qct_sample *sample);

/* How often a thread could not be read although it was there (no descriptor was left); its last times stand. */
long long qct_sampler_unread(const struct qct_sampler *sampler);

/*
 * Linux: samples at fixed times, kept in a ring of bytes that forgets the oldest. One thread runs it; any may take,
 * stop and count.
 */
struct qct_recorder;

/* The head of a record; its threads follow, their details if `detailed`, and its processes if `detailed`. */
struct qct_record {
    long long at_ns;
    size_t detailed, thread_count, process_count;
};

struct qct_recorder_counts {
    long long samples, detailed; /* taken; of them with details */
    long long overruns;          /* deadlines that had passed before a sample could be taken, and were left out */
    long long dropped;           /* samples that the ring had no room for any more */
    long long own_cpu_ns;        /* CPU time of the thread that runs it, since it began */
};

/* *recorder is the caller's, with `bytes` of room, to be freed with qct_recorder_free after qct_recorder_run. */
int qct_recorder_new(size_t bytes, struct qct_recorder **recorder);

void qct_recorder_free(struct qct_recorder *recorder);

/* Sample every `fast_ns`, with QCT_STATES every `detail_ns`, at once and so a last time, until it is stopped. */
int qct_recorder_run(struct qct_recorder *recorder, struct qct_sampler *sampler, long long fast_ns,
                     long long detail_ns);

void qct_recorder_stop(struct qct_recorder *recorder);

/* Move the oldest record into `record`; *size becomes its bytes, 0 where there is none. -ERANGE: it has more than room.
 */
int qct_recorder_take(struct qct_recorder *recorder, void *record, size_t room, size_t *size);

void qct_recorder_count(struct qct_recorder *recorder, struct qct_recorder_counts *counts);

/*
 * Memory bandwidth by the triad of STREAM, a[i] = b[i] + s * c[i] on doubles: one thread on each of `count` CPUs, its
 * part of three arrays of together `bytes` in the memory of `node`, or, where that is -1, wherever the system puts what
 * the thread touches first. *bytes_per_s is the best of `repetitions`, from the first thread's begin to the last one's
 * end, and an element counts 24 bytes, as in likwid-bench's `stream`: that a cache reads a line before it is written is
 * not counted. macOS binds no thread: only how many CPUs there are counts, and `node` is -1. -EINVAL: no CPU, not one
 * element for each, a CPU or node that is absent or not allowed; -ENOSYS, -EPERM: memory cannot be bound here; -ENOMEM,
 * -EAGAIN.
 */
int qct_triad(const int *cpus, size_t count, int node, size_t bytes, int repetitions, double *bytes_per_s);

/*
 * Windows: what GetLogicalProcessorInformationEx(RelationAll) writes, byte for byte. *size is the room in `buffer`
 * and becomes what is needed; -ERANGE: there is less.
 */
int qct_windows_topology(void *buffer, size_t *size);

/*
 * macOS: the bytes of a value of sysctl, as sysctl(3) types it. *size is the room in `value` and becomes what was
 * written, or what is needed where `value` is NULL. -ENOENT: there is no value of this name; -ENOMEM: less room.
 */
int qct_darwin_sysctl(const char *name, void *value, size_t *size);

#endif
