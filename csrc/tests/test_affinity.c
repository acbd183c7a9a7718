/* Tests of linux_affinity.c against the kernel itself: /proc/self/status and sched_getcpu. Prints the failing check. */
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 20

static size_t words;
static unsigned long *all, *one, *got;
static atomic_int stop, started;

static int count(const unsigned long *mask) {
    int bits = 0;
    for (size_t i = 0; i < words; i++)
        bits += __builtin_popcountl(mask[i]);
    return bits;
}

static int lowest(const unsigned long *mask) {
    for (size_t i = 0; i < words; i++)
        if (mask[i])
            return (int)(i * QCT_WORD_BITS) + __builtin_ctzl(mask[i]);
    return -1;
}

static int status_cpus(void) {
    char line[65536];
    int first = -1;
    FILE *file = fopen("/proc/thread-self/status", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file))
        sscanf(line, "Cpus_allowed_list: %d", &first);
    fclose(file);
    return first;
}

static void *wait_for_stop(void *unused) {
    atomic_fetch_add(&started, 1);
    while (!atomic_load(&stop))
        usleep(1000);
    return unused;
}

static void test_width(void) {
    CHECK(qct_affinity_words(&words) == 0);
    CHECK(words >= 1);
    all = calloc(words, sizeof *all);
    one = calloc(words, sizeof *one);
    got = calloc(words, sizeof *got);
    CHECK(all && one && got);
    CHECK(qct_affinity_get(0, all, words) == 0);
    CHECK(count(all) == sysconf(_SC_NPROCESSORS_ONLN) || count(all) >= 1);
    CHECK(lowest(all) == status_cpus());
    one[(size_t)lowest(all) / QCT_WORD_BITS] = 1UL << ((size_t)lowest(all) % QCT_WORD_BITS);
}

static void test_thread(void) {
    CHECK(qct_affinity_set(0, one, got, words) == 0);
    CHECK(memcmp(one, got, words * sizeof *got) == 0);
    CHECK(sched_getcpu() == lowest(one));
    CHECK(status_cpus() == lowest(one));
    CHECK(qct_affinity_set(0, all, got, words) == 0);
    CHECK(memcmp(all, got, words * sizeof *got) == 0);
}

static void test_wide_mask(void) {
    size_t wide = words + 128; /* 8192 CPUs more than the kernel can have */
    unsigned long *asked = calloc(wide, sizeof *asked), *back = calloc(wide, sizeof *back);
    CHECK(asked && back);
    memcpy(asked, one, words * sizeof *one);
    asked[wide - 1] = 1;
    memset(back, 0xff, wide * sizeof *back);
    CHECK(qct_affinity_set(0, asked, back, wide) == 0);
    CHECK(memcmp(back, one, words * sizeof *one) == 0);
    for (size_t i = words; i < wide; i++)
        CHECK(back[i] == 0);
    memset(asked, 0, wide * sizeof *asked);
    asked[wide - 1] = 1;
    CHECK(qct_affinity_set(0, asked, back, wide) == -EINVAL);
    CHECK(qct_affinity_set(0, all, got, words) == 0);
    free(asked);
    free(back);
}

static void test_process(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, wait_for_stop, NULL) == 0);
    while (atomic_load(&started) < THREADS)
        usleep(1000);
    CHECK(qct_affinity_set_process(getpid(), one, got, words) == 0);
    CHECK(memcmp(one, got, words * sizeof *got) == 0);
    for (int i = 0; i < THREADS; i++) {
        cpu_set_t set;
        CHECK(pthread_getaffinity_np(threads[i], sizeof set, &set) == 0);
        CHECK(CPU_COUNT(&set) == 1 && CPU_ISSET((size_t)lowest(one), &set));
    }
    CHECK(qct_affinity_set_process(0, all, got, words) == 0);
    CHECK(memcmp(all, got, words * sizeof *got) == 0);
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

static void test_gone(void) {
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    CHECK(waitpid(child, NULL, 0) == child);
    CHECK(qct_affinity_get(child, got, words) == -ESRCH);
    CHECK(qct_affinity_set(child, one, got, words) == -ESRCH);
    CHECK(qct_affinity_set_process(child, one, got, words) == -ESRCH);
}

int main(void) {
    test_width();
    test_thread();
    test_wide_mask();
    test_process();
    test_gone();
    free(all);
    free(one);
    free(got);
    return 0;
}
