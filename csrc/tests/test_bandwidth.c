/*
 * Tests of bandwidth.c against the kernel: masks and memory policies in /proc while it measures, and the wall time of
 * all that it did. Prints the failing check.
 */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#define BYTES ((size_t)3 << 22)
#define ROUNDS 2000 /* until it was seen; each takes milliseconds */

static int cpus[2], node;
static atomic_bool seen;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Whether a file of /proc has a line that begins with `start` and has `word` in it. */
static bool tells(const char *path, const char *start, const char *word) {
    char line[4096];
    bool found = false;
    FILE *file = fopen(path, "r");
    while (file && !found && fgets(line, sizeof line, file))
        found = strncmp(line, start, strlen(start)) == 0 && strstr(line, word);
    if (file)
        fclose(file);
    return found;
}

/* Whether a thread of this process may run on `cpu` alone. */
static bool bound(int cpu) {
    char alone[32], path[300];
    bool found = false;
    struct dirent *entry;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks);
    snprintf(alone, sizeof alone, "list:\t%d\n", cpu);
    while (!found && (entry = readdir(tasks))) {
        snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
        found = tells(path, "Cpus_allowed_list", alone);
    }
    closedir(tasks);
    return found;
}

static void *measure(void *count) {
    double bytes_per_s;
    for (int i = 0; i < ROUNDS && !atomic_load(&seen); i++)
        CHECK(qct_triad(cpus, *(size_t *)count, node, BYTES, 10, &bytes_per_s) == 0);
    CHECK(atomic_load(&seen));
    return NULL;
}

/* While it measures, its threads are bound to the CPUs, and its memory to the node. */
static void test_bound(size_t count) {
    pthread_t thread;
    bool memory = node < 0, all = false;
    atomic_store(&seen, false);
    CHECK(pthread_create(&thread, NULL, measure, &count) == 0);
    while (!all || !memory) {
        all = all || (bound(cpus[0]) && (count == 1 || bound(cpus[1])));
        memory = memory || tells("/proc/self/numa_maps", "", " bind:0 ");
    }
    atomic_store(&seen, true);
    pthread_join(thread, NULL);
}

/* No repetition was faster than the best, so that all of them took at least as long as so many of it. */
static void test_time(size_t count) {
    double bytes_per_s = 0, began_s = now_s();
    CHECK(qct_triad(cpus, count, node, BYTES, 50, &bytes_per_s) == 0);
    CHECK(bytes_per_s > 0 && (now_s() - began_s) * bytes_per_s >= 50.0 * (double)BYTES);
}

static void test_refused(void) {
    double bytes_per_s = -1;
    int absent[] = {cpus[0], 1 << 20}, negative = -1;
    CHECK(qct_triad(cpus, 0, -1, BYTES, 1, &bytes_per_s) == -EINVAL);
    CHECK(qct_triad(cpus, 1, -1, BYTES, 0, &bytes_per_s) == -EINVAL);
    CHECK(qct_triad(cpus, 1, -1, 23, 1, &bytes_per_s) == -EINVAL);
    CHECK(qct_triad(&negative, 1, -1, BYTES, 1, &bytes_per_s) == -EINVAL);
    CHECK(qct_triad(absent, 2, -1, BYTES, 1, &bytes_per_s) == -EINVAL);
    CHECK(node < 0 || qct_triad(cpus, 1, 1 << 20, BYTES, 1, &bytes_per_s) == -EINVAL);
    CHECK(bytes_per_s < 0);
    CHECK(qct_triad(cpus, 1, -1, 24, 1, &bytes_per_s) == 0);
}

int main(void) {
    cpu_set_t allowed, after;
    size_t count = 0;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
    for (size_t cpu = 0; cpu < CPU_SETSIZE && count < 2; cpu++)
        if (CPU_ISSET(cpu, &allowed))
            cpus[count++] = (int)cpu;
    node = qct_memory_probe() == 0 ? 0 : -1;
    test_refused();
    for (size_t some = 1; some <= count; some++) {
        test_time(some);
        if (count > 1) /* else all threads are bound so */
            test_bound(some);
    }
    CHECK(sched_getaffinity(0, sizeof after, &after) == 0);
    CHECK(CPU_EQUAL(&allowed, &after));
    return 0;
}
