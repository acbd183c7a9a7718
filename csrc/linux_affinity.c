/*
 * CPU affinity of threads and processes on Linux, by raw system calls: glibc's cpu_set_t ends at 1024 CPUs, and the
 * wrappers hide how wide the kernel's masks are. Sets and reads back; decides nothing.
 */
#define _GNU_SOURCE
#include "qct.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A process that starts threads faster than so many passes over its task list can bind them is left as it is. */
#define PASSES 64

/* Far above any kernel's CONFIG_NR_CPUS (8192 at most, as of Linux 6.18). */
#define MOST_WORDS (((size_t)1 << 20) / QCT_WORD_BITS)

static int get_raw(int tid, unsigned long *mask, size_t words) {
    long filled = syscall(SYS_sched_getaffinity, tid, words * sizeof *mask, mask);
    if (filled < 0)
        return -errno;
    /* The kernel writes only as many bytes as its own masks have. */
    memset((char *)mask + filled, 0, words * sizeof *mask - (size_t)filled);
    return (int)filled;
}

int qct_affinity_words(size_t *words) {
    for (size_t width = 16; width <= MOST_WORDS; width *= 2) {
        unsigned long *mask = malloc(width * sizeof *mask);
        if (!mask)
            return -ENOMEM;
        int rc = get_raw(0, mask, width);
        free(mask);
        if (rc >= 0) {
            *words = ((size_t)rc + sizeof *mask - 1) / sizeof *mask;
            return 0;
        }
        if (rc != -EINVAL)
            return rc;
    }
    return -EINVAL;
}

int qct_affinity_get(int tid, unsigned long *mask, size_t words) {
    int rc = get_raw(tid, mask, words);
    return rc < 0 ? rc : 0;
}

int qct_affinity_set(int tid, const unsigned long *asked, unsigned long *got, size_t words) {
    if (syscall(SYS_sched_setaffinity, tid, words * sizeof *asked, asked) < 0)
        return -errno;
    return qct_affinity_get(tid, got, words);
}

/*
 * Bind one thread, unless `seen` and it is bound so already: one that a cpuset leaves no more of its mask has that mask
 * again with the cpuset's CPUs. *changed is set if that changed its mask. `now` is scratch space.
 */
static int bind_one(int tid, const unsigned long *asked, unsigned long *now, unsigned long *before, size_t words,
                    bool seen, bool *changed) {
    size_t size = words * sizeof *asked;
    int rc = qct_affinity_get(tid, before, words);
    if (rc)
        return rc;
    memcpy(now, before, size);
    if (seen && memcmp(before, asked, size) == 0)
        return 0;
    rc = qct_affinity_set(tid, asked, now, words);
    if (rc == 0 && memcmp(before, now, size) != 0)
        *changed = true;
    return rc;
}

/* One pass over the task list. */
static int bind_all(DIR *tasks, const unsigned long *asked, unsigned long *got, unsigned long *scratch, size_t words,
                    bool seen, bool *changed) {
    bool alive = false;
    memset(got, 0, words * sizeof *got);
    rewinddir(tasks);
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(tasks);
        if (!entry) {
            if (errno && errno != ENOENT)
                return -errno;
            return alive ? 0 : -ESRCH;
        }
        int tid = atoi(entry->d_name);
        if (tid <= 0)
            continue;
        int rc = bind_one(tid, asked, scratch, scratch + words, words, seen, changed);
        if (rc == -ESRCH) /* this thread has ended meanwhile */
            continue;
        if (rc)
            return rc;
        alive = true;
        for (size_t i = 0; i < words; i++)
            got[i] |= scratch[i];
    }
}

int qct_affinity_set_process(int pid, const unsigned long *asked, unsigned long *got, size_t words) {
    char path[48];
    snprintf(path, sizeof path, "/proc/%d/task", pid ? pid : (int)getpid());
    DIR *tasks = opendir(path);
    if (!tasks)
        return errno == ENOENT ? -ESRCH : -errno;
    int rc = -ENOMEM;
    unsigned long *scratch = malloc(2 * words * sizeof *scratch);
    /* A pass that changes nothing proves that no thread is missed: threads inherit the mask of the one that starts
     * them. */
    bool changed = scratch != NULL;
    for (int pass = 0; changed && pass < PASSES; pass++) {
        changed = false;
        rc = bind_all(tasks, asked, got, scratch, words, pass > 0, &changed);
        if (rc)
            break;
    }
    free(scratch);
    closedir(tasks);
    return rc == 0 && changed ? -EAGAIN : rc;
}
