/* Tests of linux_mempolicy.c against the kernel itself: /proc/self/numa_maps and node 0. Prints the failing check. */
#include "check.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SKIPPED 77
#define PAGES 1300 /* more than are asked about at once */

static size_t words;
static unsigned long *none, *zero, *got;

/* The policy of the mapping at `address` as /proc/self/numa_maps words it. */
static void numa_maps(const void *address, char *policy) {
    char line[4096];
    unsigned long start;
    FILE *file = fopen("/proc/self/numa_maps", "r");
    CHECK(file);
    *policy = '\0';
    while (*policy == '\0' && fgets(line, sizeof line, file))
        if (sscanf(line, "%lx %63s", &start, policy) != 2 || start != (uintptr_t)address)
            *policy = '\0';
    fclose(file);
}

static void test_width(void) {
    CHECK(qct_memory_words(&words) == 0);
    CHECK(words >= 1);
    none = calloc(words, sizeof *none);
    zero = calloc(words, sizeof *zero);
    got = calloc(words, sizeof *got);
    CHECK(none && zero && got);
    zero[0] = 1;
}

static void test_thread(void) {
    int kinds[] = {QCT_MEMORY_BIND, QCT_MEMORY_PREFERRED, QCT_MEMORY_INTERLEAVE}, kind;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        CHECK(qct_memory_set(kinds[i], zero, words) == 0);
        memset(got, 0xff, words * sizeof *got);
        CHECK(qct_memory_get(NULL, &kind, got, words) == 0);
        CHECK(kind == kinds[i]);
        CHECK(memcmp(got, zero, words * sizeof *got) == 0);
    }
    CHECK(qct_memory_set(QCT_MEMORY_DEFAULT, none, words) == 0);
    CHECK(qct_memory_get(NULL, &kind, got, words) == 0);
    CHECK(kind == QCT_MEMORY_DEFAULT && memcmp(got, none, words * sizeof *got) == 0);
}

static void test_nodes_that_are_not(void) {
    size_t wide = words + 64;
    unsigned long *asked = calloc(wide, sizeof *asked);
    int kind;
    CHECK(asked);
    CHECK(qct_memory_set(QCT_MEMORY_BIND, none, words) == -EINVAL);
    asked[wide - 1] = 1; /* wider than the kernel's masks */
    CHECK(qct_memory_set(QCT_MEMORY_BIND, asked, wide) == -EINVAL);
    CHECK(qct_memory_set(99, zero, words) == -EINVAL);
    CHECK(qct_memory_get(NULL, &kind, got, words) == 0);
    CHECK(kind == QCT_MEMORY_DEFAULT);
    free(asked);
}

static void test_pages(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = PAGES * page;
    char policy[64], *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int *nodes = calloc(PAGES, sizeof *nodes), kind;
    CHECK(start != MAP_FAILED && nodes);
    CHECK(qct_page_count(start, bytes) == PAGES);
    CHECK(qct_page_count(start, 0) == 0);
    CHECK(qct_page_count(start + 1, 1) == 1);
    CHECK(qct_page_count(start + page - 1, 2) == 2);
    madvise(start, bytes, MADV_NOHUGEPAGE);
    CHECK(qct_memory_bind(start + 1, bytes - 2, QCT_MEMORY_BIND, zero, words) == 0);
    numa_maps(start, policy);
    CHECK(strcmp(policy, "bind:0") == 0);
    CHECK(qct_memory_get(start + bytes - 1, &kind, got, words) == 0);
    CHECK(kind == QCT_MEMORY_BIND && memcmp(got, zero, words * sizeof *got) == 0);
    start[5 * page] = start[(PAGES - 1) * page] = 1;
    CHECK(qct_page_nodes(start, bytes, nodes) == 0);
    for (int i = 0; i < PAGES; i++)
        CHECK(i == 5 || i == PAGES - 1 ? nodes[i] == 0 : nodes[i] < 0);
    munmap(start, bytes);
    CHECK(qct_memory_bind(start, bytes, QCT_MEMORY_BIND, zero, words) == -EFAULT);
    free(nodes);
}

int main(void) {
    int rc = qct_memory_probe();
    if (rc) {
        fprintf(stderr, "memory policies cannot be set here: %s\n", strerror(-rc));
        return SKIPPED;
    }
    test_width();
    test_thread();
    test_nodes_that_are_not();
    test_pages();
    free(none);
    free(zero);
    free(got);
    return 0;
}
