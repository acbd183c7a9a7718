/*
 * What tests/native/test_bandwidth.py has valgrind trace: the triad by one thread, timed by a clock that is a second
 * later at each look, so that the rate is the number of bytes it counts. Linked with --wrap=mmap and
 * --wrap=clock_gettime.
 */
#include "check.h"

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

void *__real_mmap(void *start, size_t length, int protection, int flags, int file, off_t offset);
void *__wrap_mmap(void *start, size_t length, int protection, int flags, int file, off_t offset);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

void *__wrap_mmap(void *start, size_t length, int protection, int flags, int file, off_t offset) {
    char *arrays = __real_mmap(start, length, protection, flags, file, offset);
    printf("%p %p\n", (void *)arrays, (void *)(arrays + length));
    return arrays;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now) {
    static time_t looks;
    (void)clock;
    *now = (struct timespec){.tv_sec = ++looks};
    return 0;
}

/* The size of the arrays in bytes, and the number of repetitions. */
int main(int count, char **arguments) {
    double bytes_per_s = 0;
    CHECK(count == 3);
    int cpu = sched_getcpu(), repetitions = atoi(arguments[2]);
    CHECK(qct_triad(&cpu, 1, -1, (size_t)atol(arguments[1]), repetitions, &bytes_per_s) == 0);
    printf("%.0f\n", bytes_per_s);
    return 0;
}
