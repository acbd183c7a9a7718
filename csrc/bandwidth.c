/*
 * Memory bandwidth, measured: the triad of STREAM (McCalpin) by a team of threads, each bound to a CPU where the system
 * can do that. Measures what it is told to; chooses no CPUs and no sizes.
 */
#define _GNU_SOURCE
#include "qct.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

/* Of one element: b and c are read, a is written. As likwid-bench counts its kernel `stream`. */
#define BYTES_PER_ELEMENT 24

struct span {
    long long began_ns, ended_ns;
};

struct team {
    size_t size, elements;
    int repetitions;
    double *a, *b, *c;
    struct span *spans; /* of each repetition, `size` of them */
    pthread_mutex_t lock;
    pthread_cond_t all_met;
    size_t waiting;
    unsigned long meetings;
    bool told, abandoned; /* whether the threads may go; whether some could not be started */
    int rc;               /* of the first thread that could not be bound */
};

struct member {
    struct team *team;
    size_t number;
    int cpu;
    pthread_t thread;
};

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1000000000LL * now.tv_sec + now.tv_nsec;
}

#ifdef __linux__

static int bind_self(int cpu) {
    size_t words, word = (size_t)cpu / QCT_WORD_BITS;
    int rc = qct_affinity_words(&words);
    if (rc)
        return rc;
    if (word >= words)
        return -EINVAL;
    unsigned long *masks = calloc(2 * words, sizeof *masks);
    if (!masks)
        return -ENOMEM;
    masks[word] = 1UL << (size_t)cpu % QCT_WORD_BITS;
    rc = qct_affinity_set(0, masks, masks + words, words);
    free(masks);
    return rc;
}

static int bind_memory(const void *start, size_t bytes, int node) {
    size_t words, word = (size_t)node / QCT_WORD_BITS;
    int rc = qct_memory_words(&words);
    if (rc)
        return rc;
    if (word >= words)
        return -EINVAL;
    unsigned long *nodes = calloc(words, sizeof *nodes);
    if (!nodes)
        return -ENOMEM;
    nodes[word] = 1UL << (size_t)node % QCT_WORD_BITS;
    rc = qct_memory_bind(start, bytes, QCT_MEMORY_BIND, nodes, words);
    free(nodes);
    return rc;
}

#else

static int bind_self(int cpu) {
    (void)cpu;
    return 0;
}

static int bind_memory(const void *start, size_t bytes, int node) {
    (void)start, (void)bytes, (void)node;
    return -ENOSYS;
}

#endif

/* Until all members are here. */
static void meet(struct team *team) {
    pthread_mutex_lock(&team->lock);
    unsigned long meeting = team->meetings;
    if (++team->waiting == team->size) {
        team->waiting = 0;
        team->meetings++;
        pthread_cond_broadcast(&team->all_met);
    }
    while (team->meetings == meeting)
        pthread_cond_wait(&team->all_met, &team->lock);
    pthread_mutex_unlock(&team->lock);
}

/* Whether all members were started; else each goes home. */
static bool may_go(struct team *team) {
    pthread_mutex_lock(&team->lock);
    while (!team->told)
        pthread_cond_wait(&team->all_met, &team->lock);
    bool abandoned = team->abandoned;
    pthread_mutex_unlock(&team->lock);
    return !abandoned;
}

static void tell(struct team *team, bool abandoned) {
    pthread_mutex_lock(&team->lock);
    team->told = true;
    team->abandoned = abandoned;
    pthread_cond_broadcast(&team->all_met);
    pthread_mutex_unlock(&team->lock);
}

static void fail(struct team *team, int rc) {
    pthread_mutex_lock(&team->lock);
    if (!team->rc)
        team->rc = rc;
    pthread_mutex_unlock(&team->lock);
}

static void triad(double *restrict a, const double *restrict b, const double *restrict c, size_t first, size_t end) {
    for (size_t i = first; i < end; i++)
        a[i] = b[i] + 3.0 * c[i];
}

static void touch(const struct team *team, size_t first, size_t end) {
    for (size_t i = first; i < end; i++) {
        team->a[i] = 0.0;
        team->b[i] = 1.0;
        team->c[i] = 2.0;
    }
}

static void *work(void *argument) {
    struct member *self = argument;
    struct team *team = self->team;
    size_t first = team->elements / team->size * self->number;
    size_t end = self->number + 1 == team->size ? team->elements : first + team->elements / team->size;
    if (!may_go(team))
        return NULL;
    int rc = bind_self(self->cpu);
    if (rc)
        fail(team, rc);
    else
        touch(team, first, end);
    meet(team);
    if (team->rc)
        return NULL;
    for (int i = 0; i < team->repetitions; i++) {
        struct span *span = &team->spans[(size_t)i * team->size + self->number];
        meet(team);
        span->began_ns = now_ns();
        triad(team->a, team->b, team->c, first, end);
        span->ended_ns = now_ns();
    }
    return NULL;
}

static int run(struct team *team, const int *cpus) {
    struct member *members = calloc(team->size, sizeof *members);
    size_t started = 0;
    int rc = members ? 0 : -ENOMEM;
    for (; !rc && started < team->size; started += !rc) {
        members[started] = (struct member){.team = team, .number = started, .cpu = cpus[started]};
        rc = -pthread_create(&members[started].thread, NULL, work, &members[started]);
    }
    tell(team, rc != 0);
    for (size_t i = 0; i < started; i++)
        pthread_join(members[i].thread, NULL);
    free(members);
    return rc ? rc : team->rc;
}

/* The shortest repetition, from the first to begin to the last to end. */
static double best_s(const struct team *team) {
    long long best_ns = 0;
    for (int i = 0; i < team->repetitions; i++) {
        const struct span *spans = &team->spans[(size_t)i * team->size];
        long long began_ns = spans[0].began_ns, ended_ns = spans[0].ended_ns;
        for (size_t j = 1; j < team->size; j++) {
            began_ns = spans[j].began_ns < began_ns ? spans[j].began_ns : began_ns;
            ended_ns = spans[j].ended_ns > ended_ns ? spans[j].ended_ns : ended_ns;
        }
        if (i == 0 || ended_ns - began_ns < best_ns)
            best_ns = ended_ns - began_ns;
    }
    return (best_ns > 0 ? (double)best_ns : 1.0) / 1e9;
}

static int measure(struct team *team, const int *cpus, int node, double *bytes_per_s) {
    size_t array_bytes = team->elements * sizeof *team->a;
    double *arrays = mmap(NULL, 3 * array_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arrays == MAP_FAILED)
        return -errno;
    team->a = arrays;
    team->b = arrays + team->elements;
    team->c = arrays + 2 * team->elements;
    int rc = node < 0 ? 0 : bind_memory(arrays, 3 * array_bytes, node);
    if (!rc)
        rc = run(team, cpus);
    if (!rc)
        *bytes_per_s = (double)(team->elements * BYTES_PER_ELEMENT) / best_s(team);
    munmap(arrays, 3 * array_bytes);
    return rc;
}

int qct_triad(const int *cpus, size_t count, int node, size_t bytes, int repetitions, double *bytes_per_s) {
    struct team team = {.size = count, .elements = bytes / BYTES_PER_ELEMENT, .repetitions = repetitions};
    if (count == 0 || repetitions < 1 || team.elements < count)
        return -EINVAL;
    for (size_t i = 0; i < count; i++)
        if (cpus[i] < 0)
            return -EINVAL;
    team.spans = calloc(count * (size_t)repetitions, sizeof *team.spans);
    if (!team.spans)
        return -ENOMEM;
    pthread_mutex_init(&team.lock, NULL);
    pthread_cond_init(&team.all_met, NULL);
    int rc = measure(&team, cpus, node, bytes_per_s);
    pthread_cond_destroy(&team.all_met);
    pthread_mutex_destroy(&team.lock);
    free(team.spans);
    return rc;
}
