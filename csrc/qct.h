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
 * policy: linux_mempolicy.c. Thread times: windows.c and darwin.c.
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
