/*
 * Samples at fixed times without a drift, kept in a ring of bytes that forgets the oldest; looks through
 * linux_sampler.c and judges nothing. The lock is of the ring and the counts; the sampler has its own.
 */
#define _GNU_SOURCE
#include "qct.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct qct_recorder {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    struct qct_recorder_counts counts;
    char *bytes;
    size_t room, first, used; /* records lie in `used` bytes from `first` on, and go on at 0 behind the end */
};

/* The times at which something is due. */
struct deadline {
    long long at_ns, every_ns;
};

static int sample_into(struct qct_recorder *r, struct qct_sampler *sampler, bool detailed);
static bool wait_until(struct qct_recorder *r, long long at_ns);
static long long advance(struct deadline *deadline, long long taken_ns);
static size_t size_of(const struct qct_record *head);
static void put(struct qct_recorder *r, const struct qct_record *head, const struct qct_sample *sample);
static void copy_in(struct qct_recorder *r, const void *from, size_t size);
static void copy_out(const struct qct_recorder *r, void *to, size_t size);

static long long clock_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

int qct_recorder_new(size_t bytes, struct qct_recorder **recorder) {
    struct qct_recorder *r = calloc(1, sizeof *r);
    char *room = malloc(bytes ? bytes : 1);
    if (!r || !room) {
        free(room);
        free(r);
        return -ENOMEM;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&r->lock, NULL);
    r->bytes = room;
    r->room = bytes;
    *recorder = r;
    return 0;
}

void qct_recorder_free(struct qct_recorder *r) {
    if (!r)
        return;
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->lock);
    free(r->bytes);
    free(r);
}

int qct_recorder_run(struct qct_recorder *r, struct qct_sampler *sampler, long long fast_ns, long long detail_ns) {
    long long began_ns = clock_ns(CLOCK_MONOTONIC), own_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    struct deadline fast = {began_ns, fast_ns}, detail = {began_ns, detail_ns};
    for (bool running = true; running;) {
        running = wait_until(r, fast.at_ns < detail.at_ns ? fast.at_ns : detail.at_ns);
        long long now_ns = clock_ns(CLOCK_MONOTONIC);
        bool detailed = !running || detail.at_ns <= now_ns;
        int rc = sample_into(r, sampler, detailed);
        if (rc)
            return rc;
        long long missed = fast.at_ns <= now_ns ? advance(&fast, now_ns) : 0;
        missed += detail.at_ns <= now_ns ? advance(&detail, now_ns) : 0;
        pthread_mutex_lock(&r->lock);
        r->counts.samples++;
        r->counts.detailed += detailed;
        r->counts.overruns += missed;
        r->counts.own_cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - own_ns;
        pthread_mutex_unlock(&r->lock);
    }
    return 0;
}

void qct_recorder_stop(struct qct_recorder *r) {
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->wake);
    pthread_mutex_unlock(&r->lock);
}

int qct_recorder_take(struct qct_recorder *r, void *record, size_t room, size_t *size) {
    struct qct_record head;
    int rc = 0;
    pthread_mutex_lock(&r->lock);
    *size = 0;
    if (r->used) {
        copy_out(r, &head, sizeof head);
        *size = size_of(&head);
        if (*size <= room) {
            copy_out(r, record, *size);
            r->used -= *size;
            /* An empty ring begins anew: where samples are taken as they come, it needs the memory of a few alone. */
            r->first = r->used ? (r->first + *size) % r->room : 0;
        } else {
            rc = -ERANGE;
        }
    }
    pthread_mutex_unlock(&r->lock);
    return rc;
}

void qct_recorder_count(struct qct_recorder *r, struct qct_recorder_counts *counts) {
    pthread_mutex_lock(&r->lock);
    *counts = r->counts;
    pthread_mutex_unlock(&r->lock);
}

static int sample_into(struct qct_recorder *r, struct qct_sampler *sampler, bool detailed) {
    struct qct_sample sample;
    qct_sampler_hold(sampler);
    int rc = qct_sampler_sample(sampler, detailed ? QCT_STATES : QCT_TIMES, &sample);
    if (rc == 0) {
        struct qct_record head = {sample.at_ns, detailed, sample.thread_count, sample.process_count};
        pthread_mutex_lock(&r->lock);
        put(r, &head, &sample);
        pthread_mutex_unlock(&r->lock);
    }
    qct_sampler_release(sampler);
    return rc;
}

/* Whether it is to go on. */
static bool wait_until(struct qct_recorder *r, long long at_ns) {
    struct timespec until = {at_ns / 1000000000, at_ns % 1000000000};
    pthread_mutex_lock(&r->lock);
    int rc = 0;
    while (!r->stop && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&r->wake, &r->lock, &until);
    bool running = !r->stop;
    pthread_mutex_unlock(&r->lock);
    return running;
}

/* To the first deadline that has not passed yet; how many of those before it were left out. */
static long long advance(struct deadline *deadline, long long taken_ns) {
    long long missed = (taken_ns - deadline->at_ns) / deadline->every_ns;
    deadline->at_ns += (missed + 1) * deadline->every_ns;
    return missed;
}

static size_t size_of(const struct qct_record *head) {
    size_t thread = sizeof(struct qct_thread) + (head->detailed ? sizeof(struct qct_thread_detail) : 0);
    return sizeof *head + head->thread_count * thread + head->process_count * sizeof(struct qct_process);
}

static void put(struct qct_recorder *r, const struct qct_record *head, const struct qct_sample *sample) {
    size_t size = size_of(head);
    if (size > r->room) {
        r->counts.dropped++;
        return;
    }
    while (r->used + size > r->room) {
        struct qct_record oldest;
        copy_out(r, &oldest, sizeof oldest);
        r->first = (r->first + size_of(&oldest)) % r->room;
        r->used -= size_of(&oldest);
        r->counts.dropped++;
    }
    copy_in(r, head, sizeof *head);
    copy_in(r, sample->threads, head->thread_count * sizeof *sample->threads);
    if (head->detailed)
        copy_in(r, sample->details, head->thread_count * sizeof *sample->details);
    copy_in(r, sample->processes, head->process_count * sizeof *sample->processes);
}

/* Behind the newest. */
static void copy_in(struct qct_recorder *r, const void *from, size_t size) {
    if (size == 0)
        return;
    size_t at = (r->first + r->used) % r->room, straight = r->room - at < size ? r->room - at : size;
    memcpy(r->bytes + at, from, straight);
    memcpy(r->bytes, (const char *)from + straight, size - straight);
    r->used += size;
}

/* From the oldest on; it stays. */
static void copy_out(const struct qct_recorder *r, void *to, size_t size) {
    size_t straight = r->room - r->first < size ? r->room - r->first : size;
    memcpy(to, r->bytes + r->first, straight);
    memcpy((char *)to + straight, r->bytes, size - straight);
}
