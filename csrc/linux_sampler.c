/*
 * Samples of the threads of processes and their descendants, from files of /proc that stay open between two samples.
 * Changes nothing that it looks at, and judges nothing.
 *
 * Numbers are given to threads in order, and /proc/loadavg tells the last one: where it has not moved, nothing was
 * started anywhere, and a sample reads what it knows. Else it is found out, once each, whose the numbers given
 * meanwhile are; where that is too many, or none is told, the link counts of the task/ directories tell which process
 * has started threads. A thread that has ended is noticed by its own file, whose descriptor never becomes that of a
 * later thread of the same number. Of a thread that has not run since, no detail can have changed; and where the clock
 * of a process stands still, none of its threads has run.
 */
#define _GNU_SOURCE
#include "linux_dents.h"
#include "qct.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A number is given some microseconds before its thread can be seen; it is asked for again for this long at least. */
#define SETTLED_NS 250000000LL

/* And not sooner than after this time, where no other number was given meanwhile. */
#define LOOK_AGAIN_NS 20000000LL

/* Everything is listed again after this time, and sooner where no last number is told, or there is a new root. */
#ifndef RESCAN_NS
#define RESCAN_NS 10000000000LL
#endif
#define SOON_RESCAN_NS 1000000000LL

/* So many numbers cost what listing a /proc of a hundred processes does: 0.4 us each against 5. */
#define MOST_PROBED 1024

/* Of the last numbers given before the first look so many may be of threads that cannot be seen yet. */
#define FORKING 64

/* The clock of a process costs half of what the times of one thread do; of threads that sleep it spares the reading. */
#define WORTH_A_CLOCK 4

/* Most of a status file are masks: 2,300 letters on 8192 CPUs, and again as many where there are lists of holes. */
#define STATUS_ROOM 16384
#define STAT_ROOM 2048
#define TIMES_ROOM 128

struct process {
    struct qct_process row;
    struct process *root; /* itself if it is one */
    int tasks;            /* /proc/PID/task, or -1 when it has ended */
    clockid_t clock;
    long long read_ns; /* its clock when its threads were read last, or just before; 0: not told, or not asked */
    bool still;        /* it has not advanced since the time before: none of them has run */
    bool ran;          /* one of them had run when they were read last */
    bool stale;        /* one of its threads has ended: list them again */
    bool detailed;     /* its own numbers were found in this sample */
    bool sized;
};

/* The process of a thread, and its descriptors: -1 where none is kept. */
struct files {
    struct process *process;
    int times, stat, status;
    long long read_slices; /* when its details were read last */
    bool asleep;           /* and it has not run since they were read before that */
    bool switched;         /* its switches were read then, too */
    bool known;            /* its times have been read */
};

/* The process of a number, and the parent of that; UNTOLD where it could not be read. */
struct family {
    int process, parent;
};

/* What a scan finds that is not watched. Another process of the same number has another inode. */
struct other {
    int pid, parent;
    uint64_t inode;
};

/* In place of a parent: there is none, or none that is ever watched; it could not be read, or is to be read again. */
enum { NO_PARENT = 0, UNTOLD = -1 };

struct qct_sampler {
    pthread_mutex_t held;
    struct process **processes;
    size_t process_count, process_room;
    struct qct_thread *threads;
    struct qct_thread_detail *details;
    struct files *files;
    size_t thread_count, thread_room;
    struct qct_process *rows; /* those of `processes`, for the caller */
    size_t row_room;
    struct qct_thread *looked_threads; /* those of one root, for the caller */
    struct qct_thread_detail *looked_details;
    size_t looked_thread_room, looked_detail_room;
    int *numbers; /* of the directory listed last */
    size_t number_count, number_room;
    int *known; /* of the process listed last, in order */
    size_t known_room;
    struct other *strangers; /* of the last scan: neither they nor any of their ancestors is watched, or ever will be */
    size_t stranger_count;
    int proc, loadavg;
    bool children;
    bool new_root; /* since the last scan */
    enum qct_times_source source;
    long long tick_ns;
    long open, most_open;   /* descriptors that are kept */
    long affordable;        /* of them, by experience */
    int settled, unsettled; /* last numbers: everything up to the first has been seen; as of changed_at */
    int probed;             /* the highest number that was asked for */
    bool seen[MOST_PROBED]; /* by number % MOST_PROBED: whose it is was found out, and stays so */
    int looked_last;        /* the last number when it was looked for what is new, at looked_at */
    long long looked_at, changed_at, scanned_at, at_ns, unread;
};

/* Fields of stat behind the name, see proc_pid_stat(5). */
enum {
    STATE,
    PARENT,
    MINOR_FAULTS = 7,
    MAJOR_FAULTS = 9,
    USER_TIME = 11,
    SYSTEM_TIME,
    WAITED_USER,
    WAITED_SYSTEM,
    STARTED = 19,
    LAST_CPU = 36,
    STAT_FIELDS
};

static int discover(struct qct_sampler *s);
static void mark_changed(struct qct_sampler *s);
static int scan(struct qct_sampler *s);
static int probe(struct qct_sampler *s, int first, int last);
static int add_root(struct qct_sampler *s, int pid);
static int add_process(struct qct_sampler *s, int pid, struct process *root);
static int list_threads(struct qct_sampler *s, struct process *process);
static int read_all(struct qct_sampler *s, int root, enum qct_detail detail);
static int settle(struct qct_sampler *s);
static int fill(struct qct_sampler *s, int root, bool clocks, struct qct_sample *sample);
static int pick(struct qct_sampler *s, int root, struct qct_sample *sample);
static void close_kept(struct qct_sampler *s, int file);
static void close_thread(struct qct_sampler *s, struct files *files);

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

enum qct_times_source qct_times_best(void) {
    char text[TIMES_ROOM] = "";
    int file = open("/proc/self/schedstat", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return QCT_STAT;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    /* A kernel that keeps none writes "0 0 0"; whoever reads it has run at least once. */
    return size > 0 && strspn(text, "0 \n") < (size_t)size ? QCT_SCHEDSTAT : QCT_STAT;
}

int qct_sampler_new(const int *pids, size_t count, int children, enum qct_times_source source,
                    struct qct_sampler **sampler) {
    struct qct_sampler *s = calloc(1, sizeof *s);
    if (!s)
        return -ENOMEM;
    pthread_mutex_init(&s->held, NULL);
    s->children = children;
    s->source = source;
    s->tick_ns = 1000000000 / sysconf(_SC_CLK_TCK);
    s->loadavg = -1;
    s->affordable = INT_MAX;
    s->proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = s->proc < 0 ? -errno : 0;
    if (rc == 0)
        s->loadavg = openat(s->proc, "loadavg", O_RDONLY | O_CLOEXEC);
    for (size_t i = 0; i < count && rc == 0; i++)
        rc = add_root(s, pids[i]);
    if (rc == 0)
        rc = discover(s);
    if (rc) {
        qct_sampler_free(s);
        return rc;
    }
    *sampler = s;
    return 0;
}

void qct_sampler_free(struct qct_sampler *s) {
    if (!s)
        return;
    for (size_t i = 0; i < s->thread_count; i++)
        close_thread(s, &s->files[i]);
    for (size_t i = 0; i < s->process_count; i++) {
        if (s->processes[i]->tasks >= 0)
            close(s->processes[i]->tasks);
        free(s->processes[i]);
    }
    if (s->loadavg >= 0)
        close(s->loadavg);
    if (s->proc >= 0)
        close(s->proc);
    free(s->processes);
    free(s->threads);
    free(s->details);
    free(s->files);
    free(s->rows);
    free(s->looked_threads);
    free(s->looked_details);
    free(s->numbers);
    free(s->known);
    free(s->strangers);
    pthread_mutex_destroy(&s->held);
    free(s);
}

void qct_sampler_hold(struct qct_sampler *s) { pthread_mutex_lock(&s->held); }

void qct_sampler_release(struct qct_sampler *s) { pthread_mutex_unlock(&s->held); }

int qct_sampler_attach(struct qct_sampler *s, int pid) {
    int rc = add_root(s, pid);
    return rc ? rc : settle(s);
}

void qct_sampler_detach(struct qct_sampler *s, int pid) {
    size_t kept = 0;
    for (size_t i = 0; i < s->thread_count; i++) {
        if (s->files[i].process->row.root == pid) {
            close_thread(s, &s->files[i]);
            continue;
        }
        s->threads[kept] = s->threads[i];
        s->details[kept] = s->details[i];
        s->files[kept++] = s->files[i];
    }
    s->thread_count = kept;
    kept = 0;
    for (size_t i = 0; i < s->process_count; i++) {
        struct process *process = s->processes[i];
        if (process->row.root != pid) {
            s->processes[kept++] = process;
            continue;
        }
        close_kept(s, process->tasks);
        free(process);
    }
    s->process_count = kept;
}

int qct_sampler_sample(struct qct_sampler *s, enum qct_detail detail, struct qct_sample *sample) {
    int rc = discover(s);
    if (rc == 0)
        rc = read_all(s, 0, detail);
    return rc ? rc : fill(s, 0, detail, sample);
}

int qct_sampler_look(struct qct_sampler *s, int root, struct qct_sample *sample) {
    int rc = discover(s);
    if (rc == 0)
        rc = read_all(s, root, QCT_STATES);
    if (rc == 0)
        rc = fill(s, root, true, sample);
    return rc ? rc : pick(s, root, sample);
}

int qct_sampler_processes(struct qct_sampler *s, struct qct_sample *sample) { return fill(s, 0, true, sample); }

long long qct_sampler_unread(const struct qct_sampler *s) { return s->unread; }

/* --- what there is --- */

/* `array` with room for `count` members, at least doubled; NULL where there is no memory, and the array stays. */
static void *roomy(void *array, size_t *room, size_t count, size_t size) {
    if (count <= *room)
        return array;
    size_t wanted = count < 2 * *room ? 2 * *room : count;
    void *grown = realloc(array, wanted * size);
    if (grown)
        *room = wanted;
    return grown;
}

/* Read a file from its beginning; the bytes read, 0 for one that is empty, or a negative errno. */
static ssize_t read_text(int file, char *text, size_t room) {
    ssize_t size = pread(file, text, room - 1, 0);
    if (size < 0)
        return -errno;
    text[size] = '\0';
    return size;
}

/* Where the process has no descriptor left: half of those of threads, and never again so many. */
static void give_back(struct qct_sampler *s) {
    long kept = 0;
    for (size_t i = 0; i < s->thread_count; i++)
        kept += (s->files[i].times >= 0) + (s->files[i].stat >= 0) + (s->files[i].status >= 0);
    s->affordable = s->most_open = s->open - (kept + 1) / 2;
    for (size_t i = s->thread_count; i-- > 0 && s->open > s->most_open;)
        close_thread(s, &s->files[i]);
}

static int open_at(struct qct_sampler *s, int directory, const char *name, int flags) {
    int file = openat(directory, name, flags | O_CLOEXEC);
    if (file >= 0 || (errno != EMFILE && errno != ENFILE))
        return file;
    give_back(s);
    return openat(directory, name, flags | O_CLOEXEC);
}

static ssize_t read_named(struct qct_sampler *s, int directory, const char *name, char *text, size_t room) {
    int file = open_at(s, directory, name, O_RDONLY);
    if (file < 0)
        return -errno;
    ssize_t size = read_text(file, text, room);
    close(file);
    return size;
}

static bool is_gone(ssize_t rc) { return rc == 0 || rc == -ENOENT || rc == -ESRCH; }

/* The number that begins at or behind `text`; moves behind it. Wraps where the kernel writes "no limit". */
static long long number(const char **text) {
    const char *at = *text;
    while (*at == ' ' || *at == '\t')
        at++;
    bool negative = *at == '-';
    at += negative;
    unsigned long long value = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (unsigned long long)(*at - '0');
    *text = at;
    return negative ? -(long long)value : (long long)value;
}

/* The number behind a name at the beginning of a line, at or behind *text, which moves there; -1: there is none. */
static long long field(const char **text, const char *name) {
    const char *at = strstr(*text, name);
    if (!at)
        return -1;
    at += strlen(name);
    *text = at;
    return number(text);
}

/* The fields behind the name, which may hold anything, also parentheses and line feeds. -EINVAL: it is no such file. */
static int parse_stat(const char *text, size_t size, long long fields[STAT_FIELDS]) {
    const char *at = memrchr(text, ')', size);
    if (!at || at[1] != ' ' || !at[2])
        return -EINVAL;
    fields[STATE] = at[2];
    at += 3;
    for (int i = PARENT; i < STAT_FIELDS; i++) {
        if (*at != ' ')
            return -EINVAL;
        fields[i] = number(&at);
    }
    return 0;
}

/* The number that the kernel gave last in our PID namespace; 0: not told. */
static int last_number(const struct qct_sampler *s) {
    char text[TIMES_ROOM];
    if (s->loadavg < 0 || read_text(s->loadavg, text, sizeof text) <= 0)
        return 0;
    const char *at = strrchr(text, ' ');
    return at ? (int)number(&at) : 0;
}

static struct process *find(const struct qct_sampler *s, int pid) {
    for (size_t i = 0; i < s->process_count; i++)
        if (s->processes[i]->row.pid == pid && s->processes[i]->tasks >= 0)
            return s->processes[i];
    return NULL;
}

/* Everything that was started since the last time. */
static int discover(struct qct_sampler *s) {
    long long now = now_ns();
    int last = last_number(s);
    bool first = s->scanned_at == 0, wrapped = last < s->settled;
    bool told = last && !wrapped && last - s->settled <= MOST_PROBED;
    bool everything = first || now - s->scanned_at >= (told && !s->new_root ? RESCAN_NS : SOON_RESCAN_NS);
    bool again = last != s->settled && now - s->looked_at >= LOOK_AGAIN_NS;
    if (told && last == s->looked_last && !again && !everything)
        return 0;
    s->looked_last = last;
    s->looked_at = now;
    int rc = 0;
    if (everything || !told)
        mark_changed(s);
    else
        rc = probe(s, s->settled + 1, last);
    if (s->children && everything)
        rc = scan(s);
    if (everything) {
        s->scanned_at = now;
        s->new_root = false;
    }
    if (everything && !told) {
        s->settled = s->probed = last > FORKING ? last - FORKING : 0;
        s->unsettled = last;
        s->changed_at = now;
    } else if (told && now - s->changed_at >= SETTLED_NS) {
        s->settled = s->unsettled;
        s->unsettled = last;
        s->changed_at = now;
    }
    return rc ? rc : settle(s);
}

/* The link count of task/ is that of the threads and two more. */
static void mark_changed(struct qct_sampler *s) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        s->most_open = limit.rlim_cur > INT_MAX ? INT_MAX : (long)(limit.rlim_cur / 4 * 3);
    if (s->most_open > s->affordable)
        s->most_open = s->affordable;
    for (size_t i = 0; i < s->process_count; i++) {
        struct process *process = s->processes[i];
        struct stat status;
        if (process->tasks >= 0 && fstat(process->tasks, &status) == 0 &&
            (long long)status.st_nlink - 2 != process->row.threads)
            process->stale = true;
    }
}

/* Of a process or a thread: /proc lists the first alone, and has both. */
static struct family family_of(struct qct_sampler *s, int number) {
    char name[32], text[STAT_ROOM];
    const char *at = text;
    snprintf(name, sizeof name, "%d/status", number);
    if (read_named(s, s->proc, name, text, sizeof text) <= 0)
        return (struct family){UNTOLD, UNTOLD};
    int process = (int)field(&at, "\nTgid:");
    return (struct family){process, (int)field(&at, "\nPPid:")};
}

/* Store in `numbers` the names of a directory that are numbers. */
static int list_numbers(struct qct_sampler *s, int directory) {
    struct qct_dents dents;
    int rc = qct_dents_begin(&dents, directory);
    s->number_count = 0;
    for (const struct qct_dent *dent; rc == 0 && (dent = qct_dents_next(&dents, &rc));) {
        int found = atoi(dent->name);
        if (found <= 0)
            continue;
        int *numbers = roomy(s->numbers, &s->number_room, s->number_count + 1, sizeof *numbers);
        if (!numbers)
            return -ENOMEM;
        s->numbers = numbers;
        numbers[s->number_count++] = found;
    }
    return rc;
}

static int by_number(const void *left, const void *right) {
    return (*(const int *)left > *(const int *)right) - (*(const int *)left < *(const int *)right);
}

/* What /proc lists but for what is watched, by number; the parents of strangers are not asked for again. */
static int list_others(struct qct_sampler *s, struct other **others, size_t *count) {
    struct qct_dents dents;
    const struct other *stranger = s->strangers, *end = stranger + s->stranger_count;
    size_t room = 0;
    int rc = qct_dents_begin(&dents, s->proc);
    for (const struct qct_dent *dent; rc == 0 && (dent = qct_dents_next(&dents, &rc));) {
        int pid = atoi(dent->name);
        if (pid <= 0 || find(s, pid))
            continue;
        struct other *grown = roomy(*others, &room, *count + 1, sizeof *grown);
        if (!grown)
            return -ENOMEM;
        *others = grown;
        while (stranger < end && stranger->pid < pid)
            stranger++;
        bool known = stranger < end && stranger->pid == pid && stranger->inode == dent->inode;
        grown[(*count)++] = (struct other){pid, known ? NO_PARENT : family_of(s, pid).parent, dent->inode};
    }
    return rc;
}

static int by_pid(const void *left, const void *right) {
    return by_number(&((const struct other *)left)->pid, &((const struct other *)right)->pid);
}

/* Leave those of which all ancestors are here. Who has lost one gets another parent, which may be a watched process. */
static size_t leave_strangers(struct other *others, size_t count) {
    size_t kept = 0;
    for (bool again = true; again;) {
        again = false;
        for (size_t i = 0; i < count; i++) {
            const struct other parent = {.pid = others[i].parent};
            if (parent.pid <= 0)
                continue;
            const struct other *found = bsearch(&parent, others, count, sizeof *others, by_pid);
            if (found && found->parent != UNTOLD)
                continue;
            others[i].parent = UNTOLD;
            again = true;
        }
    }
    for (size_t i = 0; i < count; i++)
        if (others[i].parent != UNTOLD)
            others[kept++] = others[i];
    return kept;
}

/* All of /proc: descendants may be listed before those they descend from. */
static int scan(struct qct_sampler *s) {
    struct other *others = NULL;
    size_t count = 0;
    int rc = list_others(s, &others, &count);
    for (bool again = true; again && rc == 0;) {
        again = false;
        for (size_t i = 0; i < count && rc == 0; i++) {
            struct process *parent = others[i].parent > 0 ? find(s, others[i].parent) : NULL;
            if (!parent)
                continue;
            rc = add_process(s, others[i].pid, parent->root);
            others[i].parent = UNTOLD;
            again = true;
        }
    }
    free(s->strangers);
    s->stranger_count = rc ? 0 : leave_strangers(others, count);
    s->strangers = others;
    return rc;
}

/* Find out whose these numbers are: new descendants, new threads of what is watched. At most MOST_PROBED. */
static int probe(struct qct_sampler *s, int first, int last) {
    int rc = 0;
    for (int tid = first; tid <= last && rc == 0; tid++) {
        bool *seen = &s->seen[tid % MOST_PROBED];
        if (tid > s->probed)
            *seen = false;
        if (*seen || (getpgid(tid) < 0 && errno == ESRCH)) /* the cheapest that is told of threads, too */
            continue;
        struct family family = family_of(s, tid);
        *seen = family.process != UNTOLD;
        struct process *process = find(s, family.process), *parent = find(s, family.parent);
        if (process)
            process->stale = true;
        else if (s->children && parent && family.process == tid)
            rc = add_process(s, tid, parent->root);
    }
    s->probed = last;
    return rc;
}

static int add_root(struct qct_sampler *s, int pid) {
    for (size_t i = 0; i < s->process_count; i++)
        if (s->processes[i]->row.pid == pid)
            return 0;
    /* What descends from it may have been seen, and was a stranger. */
    s->new_root = true;
    s->stranger_count = 0;
    memset(s->seen, 0, sizeof s->seen);
    return add_process(s, pid, NULL);
}

/* Without a root it is one. A process that has ended already is added only as a root. */
static int add_process(struct qct_sampler *s, int pid, struct process *root) {
    char name[32];
    snprintf(name, sizeof name, "%d/task", pid);
    int tasks = open_at(s, s->proc, name, O_RDONLY | O_DIRECTORY);
    if (tasks < 0 && root) {
        s->unread += !is_gone(-errno);
        return 0;
    }
    if (tasks < 0 && !is_gone(-errno))
        return -errno;
    struct process **processes = roomy(s->processes, &s->process_room, s->process_count + 1, sizeof *processes);
    if (processes)
        s->processes = processes;
    struct process *process = processes ? calloc(1, sizeof *process) : NULL;
    if (!process) {
        if (tasks >= 0)
            close(tasks);
        return -ENOMEM;
    }
    process->tasks = tasks;
    process->root = root ? root : process;
    process->row.pid = pid;
    process->row.root = process->root->row.pid;
    process->row.ended = tasks < 0;
    process->stale = tasks >= 0;
    if (clock_getcpuclockid(pid, &process->clock))
        process->clock = -1;
    s->open += tasks >= 0;
    s->processes[s->process_count++] = process;
    return 0;
}

/* A descriptor if one more may be kept, else -1. */
static int open_kept(struct qct_sampler *s, int tasks, int tid, const char *name) {
    char path[48];
    if (s->open >= s->most_open)
        return -1;
    snprintf(path, sizeof path, "%d/%s", tid, name);
    int file = open_at(s, tasks, path, O_RDONLY);
    s->open += file >= 0;
    return file;
}

static const char *times_name(const struct qct_sampler *s) { return s->source == QCT_STAT ? "stat" : "schedstat"; }

/* Room for one more in all of the three arrays. */
static int reserve_thread(struct qct_sampler *s) {
    size_t count = s->thread_count + 1, room[] = {s->thread_room, s->thread_room, s->thread_room};
    struct qct_thread *threads = roomy(s->threads, &room[0], count, sizeof *threads);
    if (threads)
        s->threads = threads;
    struct qct_thread_detail *details = roomy(s->details, &room[1], count, sizeof *details);
    if (details)
        s->details = details;
    struct files *files = roomy(s->files, &room[2], count, sizeof *files);
    if (files)
        s->files = files;
    if (!threads || !details || !files)
        return -ENOMEM;
    s->thread_room = room[0];
    return 0;
}

static int add_thread(struct qct_sampler *s, struct process *process, int tid) {
    char path[48], text[STAT_ROOM];
    long long fields[STAT_FIELDS];
    snprintf(path, sizeof path, "%d/stat", tid);
    ssize_t size = read_named(s, process->tasks, path, text, sizeof text);
    if (size <= 0 || parse_stat(text, (size_t)size, fields)) {
        s->unread += !is_gone(size);
        return 0;
    }
    if (reserve_thread(s))
        return -ENOMEM;
    size_t at = s->thread_count++;
    s->threads[at] = (struct qct_thread){.pid = process->row.pid, .tid = tid};
    s->details[at] = (struct qct_thread_detail){.started_ticks = fields[STARTED],
                                                .voluntary_switches = -1,
                                                .involuntary_switches = -1,
                                                .last_cpu = (int)fields[LAST_CPU],
                                                .state = (char)fields[STATE]};
    s->files[at] = (struct files){process, open_kept(s, process->tasks, tid, times_name(s)), -1, -1, .read_slices = -1};
    process->row.threads++;
    if (tid == process->row.pid)
        process->row.started_ticks = fields[STARTED];
    return 0;
}

/* Add those threads of a process that are not known; -ESRCH: it has ended. */
static int list_threads(struct qct_sampler *s, struct process *process) {
    int rc = list_numbers(s, process->tasks);
    if (rc)
        return rc == -ENOENT ? -ESRCH : rc;
    size_t known = 0;
    int *room = roomy(s->known, &s->known_room, (size_t)process->row.threads + 1, sizeof *room);
    if (!room)
        return -ENOMEM;
    s->known = room;
    for (size_t i = 0; i < s->thread_count; i++)
        if (s->files[i].process == process)
            s->known[known++] = s->threads[i].tid;
    qsort(s->known, known, sizeof *s->known, by_number);
    for (size_t i = 0; i < s->number_count && rc == 0; i++)
        if (!bsearch(&s->numbers[i], s->known, known, sizeof *s->known, by_number))
            rc = add_thread(s, process, s->numbers[i]);
    return rc;
}

/* --- what they did --- */

/* Through the descriptor that is kept, or one of the moment. */
static ssize_t read_of(struct qct_sampler *s, const struct files *files, int file, int tid, const char *name,
                       char *text, size_t room) {
    char path[48];
    ssize_t size;
    if (file >= 0) {
        size = read_text(file, text, room);
    } else {
        snprintf(path, sizeof path, "%d/%s", tid, name);
        size = read_named(s, files->process->tasks, path, text, room);
    }
    if (size < 0 && !is_gone(size))
        s->unread++;
    return size;
}

static void take_times(struct qct_sampler *s, struct qct_thread *thread, const char *text, size_t size) {
    long long fields[STAT_FIELDS];
    if (s->source == QCT_SCHEDSTAT) {
        thread->cpu_ns = number(&text);
        thread->wait_ns = number(&text);
        thread->slices = number(&text);
    } else if (parse_stat(text, size, fields) == 0) {
        thread->cpu_ns = (fields[USER_TIME] + fields[SYSTEM_TIME]) * s->tick_ns;
        thread->wait_ns = thread->slices = -1;
    }
}

static void take_stat(const struct qct_sampler *s, struct process *process, struct qct_thread_detail *detail,
                      const char *text, size_t size) {
    long long fields[STAT_FIELDS];
    if (parse_stat(text, size, fields))
        return;
    detail->state = (char)fields[STATE];
    detail->last_cpu = (int)fields[LAST_CPU];
    detail->minor_faults = fields[MINOR_FAULTS];
    detail->major_faults = fields[MAJOR_FAULTS];
    if (!process->detailed)
        process->row.waited_for_ns = (fields[WAITED_USER] + fields[WAITED_SYSTEM]) * s->tick_ns;
    process->detailed = true;
}

static void take_status(struct process *process, struct qct_thread_detail *detail, const char *text, size_t size) {
    const char *at = text;
    /* A thread that has ended has no memory any more, even where its process has. */
    if (!process->sized) {
        long long peak_kib = field(&at, "\nVmHWM:"), now_kib = field(&at, "\nVmRSS:");
        process->sized = now_kib >= 0;
        process->row.memory_bytes = process->sized ? now_kib * 1024 : 0;
        process->row.memory_peak_bytes = process->sized ? peak_kib * 1024 : process->row.memory_peak_bytes;
    }
    /* The switches are the last two lines, behind masks that may be long. */
    at = size > 128 ? text + size - 128 : text;
    long long voluntary = field(&at, "\nvoluntary_ctxt_switches:");
    long long involuntary = field(&at, "\nnonvoluntary_ctxt_switches:");
    if (voluntary >= 0 && involuntary >= 0) {
        detail->voluntary_switches = voluntary;
        detail->involuntary_switches = involuntary;
    }
}

static void read_details(struct qct_sampler *s, size_t i, bool switches) {
    char stat[STAT_ROOM], status[STATUS_ROOM];
    struct files *files = &s->files[i];
    int tid = s->threads[i].tid;
    long long slices = s->threads[i].slices;
    bool ran = slices < 0 || slices != files->read_slices;
    /* One of each process is read for what is the process's. */
    bool enough = files->asleep && (files->switched || !switches);
    if (!ran && enough && files->process->sized && files->process->detailed)
        return;
    if (files->stat < 0)
        files->stat = open_kept(s, files->process->tasks, tid, "stat");
    ssize_t size = read_of(s, files, files->stat, tid, "stat", stat, sizeof stat);
    if (size > 0)
        take_stat(s, files->process, &s->details[i], stat, (size_t)size);
    bool told = false;
    if (switches || !files->process->sized) {
        if (files->status < 0)
            files->status = open_kept(s, files->process->tasks, tid, "status");
        size = read_of(s, files, files->status, tid, "status", status, sizeof status);
        told = size > 0;
        if (told)
            take_status(files->process, &s->details[i], status, (size_t)size);
    }
    /* About to sleep it may have been read half awake: the second time, nothing can change until it runs. */
    files->asleep = !ran && s->details[i].state != 'R';
    files->switched = files->asleep && (told || files->switched);
    files->read_slices = slices;
}

static void close_kept(struct qct_sampler *s, int file) {
    if (file < 0)
        return;
    close(file);
    s->open--;
}

static void close_thread(struct qct_sampler *s, struct files *files) {
    close_kept(s, files->times);
    close_kept(s, files->stat);
    close_kept(s, files->status);
    files->times = files->stat = files->status = -1;
}

/* Keep the last known times of a thread with its process. */
static void end_thread(struct qct_sampler *s, size_t i) {
    struct process *process = s->files[i].process;
    const struct qct_thread *thread = &s->threads[i];
    process->row.threads--;
    process->row.ended_threads++;
    process->row.ended_cpu_ns += thread->cpu_ns;
    process->row.ended_wait_ns += thread->wait_ns > 0 ? thread->wait_ns : 0;
    process->row.ended_slices += thread->slices > 0 ? thread->slices : 0;
    process->stale = true;
    close_thread(s, &s->files[i]);
}

/* Whether a process is the root or descends from it; 0: any root. */
static bool is_of(int root, const struct process *process) { return root == 0 || process->row.root == root; }

/* Read the threads from the first on; those that have ended make room for those behind. How many are left. */
static size_t read_from(struct qct_sampler *s, size_t first, int root, enum qct_detail detail) {
    char text[STAT_ROOM];
    size_t room = s->source == QCT_STAT ? sizeof text : TIMES_ROOM, kept = first;
    for (size_t i = first; i < s->thread_count; i++) {
        struct files *files = &s->files[i];
        bool wanted = is_of(root, files->process);
        ssize_t size = -EAGAIN;
        if (wanted && !(files->process->still && files->known))
            size = read_of(s, files, files->times, s->threads[i].tid, times_name(s), text, room);
        if (is_gone(size)) {
            end_thread(s, i);
            continue;
        }
        if (size > 0) {
            long long cpu_ns = s->threads[i].cpu_ns;
            take_times(s, &s->threads[i], text, (size_t)size);
            files->process->ran |= s->threads[i].cpu_ns != cpu_ns;
            files->known = true;
        }
        if (wanted && detail)
            read_details(s, i, detail == QCT_EVERYTHING);
        if (kept != i) {
            s->threads[kept] = s->threads[i];
            s->details[kept] = s->details[i];
            s->files[kept] = s->files[i];
            s->files[i].times = s->files[i].stat = s->files[i].status = -1;
        }
        kept++;
    }
    s->thread_count = kept;
    return kept;
}

/* The clock of the process, in ns; 0: not told. */
static long long clock_of(const struct process *process) {
    struct timespec time;
    if (process->tasks < 0 || process->clock == -1 || clock_gettime(process->clock, &time))
        return 0;
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Whether any of its threads can have run since they were read last; one that ran just now is not worth the asking. */
static void look_at_clock(struct process *process) {
    bool worth = process->row.threads >= WORTH_A_CLOCK && !process->ran;
    long long now_ns = worth ? clock_of(process) : 0;
    process->still = now_ns && now_ns == process->read_ns;
    process->read_ns = now_ns;
    process->ran = false;
}

/* Read the threads of a root, or of all. Where threads have ended, others may have been started; these are read too. */
static int read_all(struct qct_sampler *s, int root, enum qct_detail detail) {
    int rc = 0;
    s->at_ns = now_ns();
    for (size_t i = 0; i < s->process_count; i++) {
        struct process *process = s->processes[i];
        if (!is_of(root, process))
            continue;
        look_at_clock(process);
        if (detail)
            process->detailed = process->sized = false;
    }
    for (size_t read = 0; rc == 0 && read < s->thread_count;) {
        read = read_from(s, read, root, detail);
        rc = settle(s);
    }
    return rc;
}

/* A process without threads has ended: a root keeps its row, others add what they used to that of their root. */
static bool end_process(struct qct_sampler *s, struct process *process) {
    struct qct_process *row = &process->row, *root = &process->root->row;
    close_kept(s, process->tasks);
    process->tasks = -1;
    process->stale = false;
    row->ended = 1;
    row->memory_bytes = 0;
    if (row->cpu_ns < row->ended_cpu_ns)
        row->cpu_ns = row->ended_cpu_ns;
    if (root == row)
        return false;
    root->gone_processes++;
    root->gone_threads += row->ended_threads;
    root->gone_cpu_ns += row->cpu_ns;
    root->gone_wait_ns += row->ended_wait_ns;
    root->gone_slices += row->ended_slices;
    free(process);
    return true;
}

/* List again what has changed, until every process known is one that lives, or a root. */
static int settle(struct qct_sampler *s) {
    size_t kept = 0, count = s->process_count;
    int rc = 0;
    for (size_t i = 0; i < count; i++) {
        struct process *process = s->processes[i];
        bool freed = false;
        if (process->stale && rc == 0) {
            int listed = list_threads(s, process);
            process->stale = false;
            if (process->row.threads == 0 && (listed == 0 || listed == -ESRCH))
                freed = end_process(s, process);
            else if (listed != -ESRCH) /* else its threads are yet to be found ended, one by one */
                rc = listed;
        }
        if (!freed)
            s->processes[kept++] = process;
    }
    s->process_count = kept;
    return rc;
}

static int fill(struct qct_sampler *s, int root, bool clocks, struct qct_sample *sample) {
    size_t count = 0;
    if (clocks) {
        struct qct_process *rows = roomy(s->rows, &s->row_room, s->process_count + 1, sizeof *rows);
        if (!rows)
            return -ENOMEM;
        s->rows = rows;
    }
    for (size_t i = 0; clocks && i < s->process_count; i++) {
        if (!is_of(root, s->processes[i]))
            continue;
        long long cpu_ns = clock_of(s->processes[i]);
        if (cpu_ns)
            s->processes[i]->row.cpu_ns = cpu_ns;
        s->rows[count++] = s->processes[i]->row;
    }
    *sample = (struct qct_sample){s->at_ns, s->thread_count, count, s->threads, s->details, s->rows};
    return 0;
}

/* Leave in the sample the threads of one root alone. */
static int pick(struct qct_sampler *s, int root, struct qct_sample *sample) {
    size_t count = 0, wanted = s->thread_count + 1;
    struct qct_thread *threads = roomy(s->looked_threads, &s->looked_thread_room, wanted, sizeof *threads);
    if (threads)
        s->looked_threads = threads;
    struct qct_thread_detail *details = roomy(s->looked_details, &s->looked_detail_room, wanted, sizeof *details);
    if (details)
        s->looked_details = details;
    if (!threads || !details)
        return -ENOMEM;
    for (size_t i = 0; i < s->thread_count; i++) {
        if (!is_of(root, s->files[i].process))
            continue;
        threads[count] = s->threads[i];
        details[count++] = s->details[i];
    }
    sample->thread_count = count;
    sample->threads = threads;
    sample->details = details;
    return 0;
}
