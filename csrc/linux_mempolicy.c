/*
 * Memory policy of threads and address ranges on Linux, and where pages are, by raw system calls: libnuma is often not
 * there. Sets and reads back; decides nothing.
 */
#define _GNU_SOURCE
#include "qct.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* From include/uapi/linux/mempolicy.h. */
#define FLAG_ADDRESS (1UL << 1) /* get_mempolicy: of this address, not of the thread */
#define FLAG_MOVE (1UL << 1)    /* mbind: also the pages that are there already */
#define KIND_FLAGS (7 << 13)    /* static and relative nodes, NUMA balancing: come with the kind */
#define NO_KIND 0x1fff

/* The kernel takes no node mask wider than a page (get_nodes in mm/mempolicy.c). */
#define MOST_WORDS ((size_t)512)

#define PAGES_AT_ONCE 512

/* The kernel takes one from the number of bits that it is given. */
static unsigned long bits_of(size_t words) { return (unsigned long)(words * QCT_WORD_BITS) + 1; }

static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static uintptr_t page_start(const void *start) { return (uintptr_t)start & ~(uintptr_t)(page_bytes() - 1); }

/* The call is there and permitted if what it says of nonsense is that it is nonsense. */
static int refused(long rc) { return rc < 0 && errno != EINVAL ? -errno : 0; }

int qct_memory_probe(void) {
    int rc = refused(syscall(SYS_get_mempolicy, NULL, NULL, 0UL, NULL, 0UL));
    if (rc == 0)
        rc = refused(syscall(SYS_set_mempolicy, NO_KIND, NULL, 0UL));
    if (rc == 0)
        rc = refused(syscall(SYS_mbind, NULL, 0UL, NO_KIND, NULL, 0UL, 0U));
    return rc;
}

int qct_memory_words(size_t *words) {
    for (size_t width = 1; width <= MOST_WORDS; width *= 2) {
        unsigned long nodes[MOST_WORDS];
        int kind;
        if (syscall(SYS_get_mempolicy, &kind, nodes, bits_of(width), NULL, 0UL) == 0) {
            *words = width;
            return 0;
        }
        if (errno != EINVAL)
            return -errno;
    }
    return -EINVAL;
}

int qct_memory_get(const void *address, int *kind, unsigned long *nodes, size_t words) {
    if (syscall(SYS_get_mempolicy, kind, nodes, bits_of(words), address, address ? FLAG_ADDRESS : 0UL) < 0)
        return -errno;
    *kind &= ~KIND_FLAGS;
    return 0;
}

int qct_memory_set(int kind, const unsigned long *nodes, size_t words) {
    return syscall(SYS_set_mempolicy, kind, nodes, bits_of(words)) < 0 ? -errno : 0;
}

int qct_memory_bind(const void *start, size_t bytes, int kind, const unsigned long *nodes, size_t words) {
    uintptr_t first = page_start(start);
    size_t length = (uintptr_t)start - first + bytes;
    return syscall(SYS_mbind, first, length, kind, nodes, bits_of(words), FLAG_MOVE) < 0 ? -errno : 0;
}

size_t qct_page_count(const void *start, size_t bytes) {
    return bytes ? ((uintptr_t)start - page_start(start) + bytes + page_bytes() - 1) / page_bytes() : 0;
}

int qct_page_nodes(const void *start, size_t bytes, int *nodes) {
    uintptr_t first = page_start(start);
    size_t pages = qct_page_count(start, bytes);
    for (size_t done = 0; done < pages; done += PAGES_AT_ONCE) {
        void *addresses[PAGES_AT_ONCE];
        size_t count = pages - done < PAGES_AT_ONCE ? pages - done : PAGES_AT_ONCE;
        for (size_t i = 0; i < count; i++)
            addresses[i] = (void *)(first + (done + i) * page_bytes());
        /* Without target nodes it moves nothing and only tells. */
        if (syscall(SYS_move_pages, 0, (unsigned long)count, addresses, NULL, nodes + done, 0) < 0)
            return -errno;
    }
    return 0;
}
