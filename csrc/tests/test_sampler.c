/*
 * Tests of linux_sampler.c and linux_recorder.c against clocks of threads, waitpid and /proc/self/fd; prints the
 * failing check.
 */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
#define THREADS 60

/* The longest tick of any kernel's CONFIG_HZ, by which a thread that runs may lag. */
#define TICK_NS (10 * MS)

struct burner {
    pthread_t thread;
    long long burn_ns;
    const char *name;
    atomic_llong used_ns; /* of its own clock, when it has burnt */
    atomic_int tid, stop;
};

static long long clock_ns(clockid_t clock) {
    struct timespec time;
    CHECK(clock_gettime(clock, &time) == 0);
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void burn(long long ns) {
    while (clock_ns(CLOCK_THREAD_CPUTIME_ID) < ns)
        continue;
}

static void *burn_and_wait(void *argument) {
    struct burner *burner = argument;
    if (burner->name)
        prctl(PR_SET_NAME, burner->name);
    atomic_store(&burner->tid, (int)syscall(SYS_gettid));
    burn(burner->burn_ns);
    usleep(20000); /* a thread that sleeps does not lag */
    atomic_store(&burner->used_ns, clock_ns(CLOCK_THREAD_CPUTIME_ID));
    while (!atomic_load(&burner->stop))
        usleep(1000);
    return NULL;
}

static void start(struct burner *burner) {
    CHECK(pthread_create(&burner->thread, NULL, burn_and_wait, burner) == 0);
    while (!atomic_load(&burner->used_ns))
        usleep(1000);
}

static void end(struct burner *burner) {
    atomic_store(&burner->stop, 1);
    CHECK(pthread_join(burner->thread, NULL) == 0);
}

static int descriptors(void) {
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static struct qct_sampler *watch(int pid, enum qct_times_source source) {
    struct qct_sampler *sampler = NULL;
    CHECK(qct_sampler_new(&pid, 1, 1, source, &sampler) == 0);
    return sampler;
}

static struct qct_sample sampled(struct qct_sampler *sampler, int detailed) {
    struct qct_sample sample;
    CHECK(qct_sampler_sample(sampler, detailed ? QCT_EVERYTHING : QCT_TIMES, &sample) == 0);
    return sample;
}

static size_t row_of(const struct qct_sample *sample, int tid) {
    for (size_t i = 0; i < sample->thread_count; i++)
        if (sample->threads[i].tid == tid)
            return i;
    return sample->thread_count;
}

static const struct qct_process *process_of(const struct qct_sample *sample, int pid) {
    for (size_t i = 0; i < sample->process_count; i++)
        if (sample->processes[i].pid == pid)
            return &sample->processes[i];
    return NULL;
}

static void test_times(enum qct_times_source source) {
    struct burner burner = {.burn_ns = 150 * MS, .name = ") R 1\n(2 "};
    struct qct_sampler *sampler = watch(getpid(), source);
    start(&burner); /* found although it was not there before */
    struct qct_sample sample = sampled(sampler, 1);
    size_t row = row_of(&sample, burner.tid);
    CHECK(row < sample.thread_count);
    const struct qct_thread *thread = &sample.threads[row];
    const struct qct_thread_detail *detail = &sample.details[row];
    CHECK(thread->pid == getpid());
    CHECK(llabs(thread->cpu_ns - burner.used_ns) < 2 * TICK_NS);
    CHECK(source == QCT_STAT ? thread->wait_ns == -1 : thread->slices > 0);
    CHECK(detail->state == 'S' || detail->state == 'R');
    CHECK(detail->last_cpu >= 0 && detail->last_cpu < sysconf(_SC_NPROCESSORS_CONF));
    CHECK(detail->started_ticks > 0 && detail->voluntary_switches > 0);
    long long switches = detail->voluntary_switches, started = detail->started_ticks;
    const struct qct_process *process = process_of(&sample, getpid());
    CHECK(process && process->root == getpid() && !process->ended);
    CHECK(process->threads == (int)sample.thread_count);
    for (int times = 0; times < 4; times++) { /* while it sleeps or wakes up, what is told stays true */
        struct qct_sample later = sampled(sampler, 1);
        row = row_of(&later, burner.tid);
        CHECK(later.details[row].voluntary_switches >= switches && later.details[row].started_ticks == started);
        switches = later.details[row].voluntary_switches;
        usleep(5000);
    }
    sample = sampled(sampler, 1);
    process = process_of(&sample, getpid());
    CHECK(switches > 2); /* it wakes up every millisecond */
    CHECK(process->memory_bytes > 0 && process->memory_peak_bytes >= process->memory_bytes);
    CHECK(process->cpu_ns >= burner.used_ns && process->cpu_ns <= clock_ns(CLOCK_PROCESS_CPUTIME_ID));
    end(&burner);
    sample = sampled(sampler, 1);
    CHECK(row_of(&sample, burner.tid) == sample.thread_count);
    process = process_of(&sample, getpid());
    CHECK(process->ended_threads == 1 && llabs(process->ended_cpu_ns - burner.used_ns) < 2 * TICK_NS);
    qct_sampler_free(sampler);
}

static void test_descendants(void) {
    int to_parent[2], to_child[2], grandchild;
    char byte;
    CHECK(pipe(to_parent) == 0 && pipe(to_child) == 0);
    struct qct_sampler *sampler = watch(getpid(), QCT_SCHEDSTAT);
    pid_t child = fork();
    if (child == 0) {
        grandchild = fork();
        if (grandchild)
            burn(60 * MS);
        CHECK(grandchild == 0 || write(to_parent[1], &grandchild, sizeof grandchild) == sizeof grandchild);
        CHECK(read(to_child[0], &byte, 1) == 1);
        _exit(0);
    }
    CHECK(read(to_parent[0], &grandchild, sizeof grandchild) == sizeof grandchild);
    struct qct_sample sample = sampled(sampler, 1);
    const struct qct_process *parent = process_of(&sample, getpid()), *found = process_of(&sample, child);
    CHECK(found && found->root == getpid() && found->cpu_ns >= 60 * MS && found->threads == 1);
    CHECK(process_of(&sample, grandchild) && process_of(&sample, grandchild)->root == getpid());
    CHECK(parent->gone_processes == 0);
    CHECK(write(to_child[1], "ab", 2) == 2);
    CHECK(waitpid(child, NULL, 0) == child);
    while (kill(grandchild, 0) == 0) /* init waits for it */
        usleep(1000);
    sample = sampled(sampler, 1);
    parent = process_of(&sample, getpid());
    CHECK(sample.process_count == 1 && parent->gone_processes == 2 && parent->gone_threads == 2);
    CHECK(parent->gone_cpu_ns >= 60 * MS && parent->waited_for_ns >= 40 * MS);
    qct_sampler_free(sampler);
    CHECK(close(to_parent[0]) + close(to_parent[1]) + close(to_child[0]) + close(to_child[1]) == 0);
}

/* Of a process without its descendants: the threads that it starts, and no child. */
static void test_alone(void) {
    struct burner burner = {.burn_ns = MS};
    struct qct_sampler *sampler = NULL;
    int pid = getpid();
    CHECK(qct_sampler_new(&pid, 1, 0, QCT_SCHEDSTAT, &sampler) == 0);
    usleep(600000); /* until the last numbers are as good as settled; those after them are asked for one by one */
    size_t before = sampled(sampler, 0).thread_count;
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    start(&burner);
    struct qct_sample sample = sampled(sampler, 1);
    CHECK(sample.thread_count == before + 1 && row_of(&sample, burner.tid) < sample.thread_count);
    CHECK(sample.process_count == 1 && sample.processes[0].threads == (int)sample.thread_count);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    end(&burner);
    CHECK(sampled(sampler, 0).thread_count == before);
    qct_sampler_free(sampler);
}

static void test_gone(void) {
    pid_t child = fork();
    if (child == 0)
        pause();
    struct qct_sampler *sampler = watch(child, QCT_SCHEDSTAT);
    struct qct_sample sample = sampled(sampler, 1);
    CHECK(sample.thread_count == 1 && !process_of(&sample, child)->ended);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    for (int times = 0; times < 2; times++) {
        sample = sampled(sampler, 1);
        CHECK(sample.thread_count == 0 && sample.process_count == 1);
        CHECK(process_of(&sample, child)->ended && process_of(&sample, child)->ended_threads == 1);
    }
    qct_sampler_free(sampler);
    sampler = watch(child, QCT_SCHEDSTAT);
    sample = sampled(sampler, 0);
    CHECK(sample.thread_count == 0);
    qct_sampler_free(sampler);
}

/* Processes that come and go while others are watched; one is looked at alone. */
static void test_attached(void) {
    int before = descriptors();
    pid_t first = fork(), second = first ? fork() : 0;
    if (first == 0 || second == 0) {
        burn(20 * MS);
        for (;;)
            pause();
    }
    struct qct_sampler *sampler = NULL;
    CHECK(qct_sampler_new(NULL, 0, 1, QCT_SCHEDSTAT, &sampler) == 0);
    CHECK(sampled(sampler, 1).thread_count == 0);
    CHECK(qct_sampler_attach(sampler, first) == 0 && qct_sampler_attach(sampler, second) == 0);
    CHECK(qct_sampler_attach(sampler, first) == 0);
    CHECK(sampled(sampler, 0).thread_count == 2);
    struct qct_sample sample;
    do { /* until it has burnt */
        usleep(10000);
        CHECK(qct_sampler_look(sampler, second, &sample) == 0);
        CHECK(sample.thread_count == 1 && sample.threads[0].tid == second);
    } while (sample.threads[0].cpu_ns < 20 * MS || sample.details[0].state == 'R');
    CHECK(sample.process_count == 1 && sample.processes[0].pid == second && sample.details[0].state == 'S');
    qct_sampler_detach(sampler, first);
    sample = sampled(sampler, 1);
    CHECK(sample.thread_count == 1 && sample.process_count == 1 && sample.processes[0].pid == second);
    CHECK(kill(second, SIGKILL) == 0 && waitpid(second, NULL, 0) == second);
    CHECK(qct_sampler_look(sampler, second, &sample) == 0);
    CHECK(sample.thread_count == 0 && sample.process_count == 1 && sample.processes[0].ended);
    CHECK(sample.processes[0].ended_cpu_ns >= 20 * MS);
    qct_sampler_detach(sampler, second);
    CHECK(sampled(sampler, 1).process_count == 0);
    qct_sampler_free(sampler);
    CHECK(kill(first, SIGKILL) == 0 && waitpid(first, NULL, 0) == first);
    CHECK(descriptors() == before);
}

/* A child that was there, and seen as a stranger, before its parent was watched. */
static void test_attached_late(void) {
    int to_parent[2], grandchild;
    CHECK(pipe(to_parent) == 0);
    pid_t child = fork();
    if (child == 0) {
        grandchild = fork();
        CHECK(grandchild == 0 || write(to_parent[1], &grandchild, sizeof grandchild) == sizeof grandchild);
        for (;;)
            pause();
    }
    CHECK(read(to_parent[0], &grandchild, sizeof grandchild) == sizeof grandchild);
    struct qct_sampler *sampler = NULL;
    CHECK(qct_sampler_new(NULL, 0, 1, QCT_SCHEDSTAT, &sampler) == 0);
    usleep(50000); /* then the last numbers are looked at again */
    CHECK(sampled(sampler, 1).process_count == 0);
    CHECK(qct_sampler_attach(sampler, child) == 0);
    sleep(1);
    struct qct_sample sample = sampled(sampler, 1);
    CHECK(sample.process_count == 2 && process_of(&sample, grandchild)->root == child);
    qct_sampler_free(sampler);
    CHECK(kill(grandchild, SIGKILL) == 0 && kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    CHECK(close(to_parent[0]) + close(to_parent[1]) == 0);
}

static void test_few_descriptors(void) {
    static struct burner burners[THREADS];
    struct rlimit before, few;
    for (int i = 0; i < THREADS; i++)
        start(&burners[i]);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    few = before;
    few.rlim_cur = 40;
    int most = descriptors() + 2 + 30; /* two for all of /proc, and three quarters of the limit */
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    struct qct_sampler *sampler = watch(getpid(), QCT_SCHEDSTAT);
    for (int detail = 0; detail < 2; detail++) {
        struct qct_sample sample = sampled(sampler, detail);
        CHECK(descriptors() <= most);
        for (int i = 0; i < THREADS; i++) {
            size_t row = row_of(&sample, burners[i].tid);
            CHECK(row < sample.thread_count && sample.threads[row].slices > 0);
            CHECK(!detail || sample.details[row].voluntary_switches > 0);
        }
    }
    CHECK(qct_sampler_unread(sampler) == 0);
    qct_sampler_free(sampler);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    for (int i = 0; i < THREADS; i++)
        end(&burners[i]);
}

struct run {
    struct qct_recorder *recorder;
    struct qct_sampler *sampler;
    int rc;
};

static void *run_recorder(void *argument) {
    struct run *run = argument;
    run->rc = qct_recorder_run(run->recorder, run->sampler, 2 * MS, 10 * MS);
    return NULL;
}

/* How many records of what it counted were there to be taken; the time from the first to the last but one of them. */
static struct qct_recorder_counts record(size_t bytes, int run_ms, size_t *records, long long *between_ns) {
    char *room = malloc(bytes);
    size_t size, thread = sizeof(struct qct_thread), detail = sizeof(struct qct_thread_detail);
    struct qct_recorder_counts counts;
    struct run run = {.sampler = watch(getpid(), QCT_SCHEDSTAT)};
    CHECK(room && qct_recorder_new(bytes, &run.recorder) == 0);
    CHECK(qct_recorder_take(run.recorder, room, bytes, &size) == 0 && size == 0);
    pthread_t thread_id;
    CHECK(pthread_create(&thread_id, NULL, run_recorder, &run) == 0);
    usleep((useconds_t)run_ms * 1000);
    qct_recorder_stop(run.recorder);
    CHECK(pthread_join(thread_id, NULL) == 0 && run.rc == 0);
    qct_recorder_count(run.recorder, &counts);
    long long first_ns = 0, before_ns = 0, at_ns = 0;
    bool detailed = false;
    for (*records = 0;; ++*records) {
        CHECK(*records || qct_recorder_take(run.recorder, room, 8, &size) == -ERANGE);
        CHECK(qct_recorder_take(run.recorder, room, bytes, &size) == 0);
        if (!size)
            break;
        struct qct_record *head = (struct qct_record *)room;
        struct qct_thread *threads = (struct qct_thread *)(head + 1);
        CHECK(head->at_ns > at_ns && head->thread_count >= 2);
        CHECK(size == sizeof *head + head->thread_count * (thread + (head->detailed ? detail : 0)) +
                          head->process_count * sizeof(struct qct_process));
        CHECK(threads[0].pid == getpid() && threads[0].tid == getpid());
        before_ns = at_ns;
        at_ns = head->at_ns;
        first_ns = *records ? first_ns : at_ns;
        detailed = head->detailed;
    }
    CHECK(detailed); /* the last one, at the end */
    *between_ns = before_ns - first_ns;
    qct_recorder_free(run.recorder);
    qct_sampler_free(run.sampler);
    free(room);
    return counts;
}

static void test_recorder(void) {
    size_t records;
    long long between_ns;
    struct qct_recorder_counts counts = record(1 << 20, 200, &records, &between_ns);
    CHECK(counts.dropped == 0 && records == (size_t)counts.samples);
    CHECK(counts.detailed > 1 && counts.detailed < counts.samples);
    /* Every deadline that came before the last sample was due was taken or counted. */
    CHECK(counts.samples + counts.overruns >= between_ns / (2 * MS));
    CHECK(counts.own_cpu_ns > 0);
    /* So that records wrap around its end, for it is no multiple of any. */
    counts = record(1000, 100, &records, &between_ns);
    CHECK(records > 0 && counts.dropped + (long long)records == counts.samples);
}

int main(void) {
    int before = descriptors();
    test_times(QCT_STAT);
    if (qct_times_best() == QCT_STAT) {
        fprintf(stderr, "this kernel keeps no schedstat\n");
        return 77;
    }
    test_times(QCT_SCHEDSTAT);
    test_descendants();
    test_alone();
    test_gone();
    test_attached();
    test_attached_late();
    test_few_descriptors();
    test_recorder();
    CHECK(descriptors() == before);
    return 0;
}
