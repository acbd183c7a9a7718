/*
 * CPU affinity, thread times and the raw topology on Windows, across processor groups. Sets and reads back; what the
 * bytes of the topology mean is decided elsewhere. Needs kernel32 and no C library.
 */
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <tlhelp32.h>

#include "qct.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#define GROUP_BITS 64
#define GROUP_WORDS (GROUP_BITS / QCT_WORD_BITS)

_Static_assert(sizeof(KAFFINITY) * CHAR_BIT == GROUP_BITS, "processor groups of 64 CPUs: 64-bit Windows only");

/* A process that starts threads faster than so many passes over its threads can bind them is left as it is. */
#define PASSES 64

/* FILETIME counts units of 100 ns. */
#define TICK_NS 100

static int failure(void) {
    switch (GetLastError()) {
    case ERROR_ACCESS_DENIED:
        return -EPERM;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_OUTOFMEMORY:
        return -ENOMEM;
    case ERROR_CALL_NOT_IMPLEMENTED:
    case ERROR_NOT_SUPPORTED:
        return -ENOSYS;
    default:
        return -EINVAL;
    }
}

/* As failure(), of a call that was given a number which nobody has any more. */
static int missing(void) {
    int rc = failure();
    return rc == -EINVAL ? -ESRCH : rc;
}

static int open_thread(DWORD tid, DWORD access, HANDLE *thread) {
    *thread = OpenThread(access, FALSE, tid);
    return *thread ? 0 : missing();
}

static void release(DWORD *tids) {
    if (tids)
        HeapFree(GetProcessHeap(), 0, tids);
}

/* Room for twice as many, of 64 at least. */
static bool grow(DWORD **tids, size_t *room) {
    size_t larger = *room ? 2 * *room : 64;
    DWORD *made = *tids ? HeapReAlloc(GetProcessHeap(), 0, *tids, larger * sizeof *made)
                        : HeapAlloc(GetProcessHeap(), 0, larger * sizeof *made);
    if (!made)
        return false;
    *tids = made;
    *room = larger;
    return true;
}

/* The threads of a process; *tids is to be released. */
static int list_threads(DWORD pid, DWORD **tids, size_t *count) {
    HANDLE snapshot = CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0);
    if (snapshot == INVALID_HANDLE_VALUE)
        return failure();
    THREADENTRY32 entry = {.dwSize = sizeof entry};
    size_t room = 0;
    int rc = 0;
    *tids = NULL;
    *count = 0;
    for (BOOL more = Thread32First(snapshot, &entry); more && rc == 0; more = Thread32Next(snapshot, &entry)) {
        if (entry.th32OwnerProcessID != pid)
            continue;
        if (*count == room && !grow(tids, &room))
            rc = -ENOMEM;
        else
            (*tids)[(*count)++] = entry.th32ThreadID;
    }
    CloseHandle(snapshot);
    if (rc == 0 && *count == 0)
        rc = -ESRCH;
    if (rc)
        release(*tids);
    return rc;
}

/* ---- affinity ---- */

int qct_affinity_words(size_t *words) {
    *words = GetMaximumProcessorGroupCount() * GROUP_WORDS;
    return *words ? 0 : failure();
}

static void add(unsigned long *mask, GROUP_AFFINITY affinity) {
    for (size_t i = 0; i < GROUP_WORDS; i++)
        mask[affinity.Group * GROUP_WORDS + i] |= (unsigned long)(affinity.Mask >> (i * QCT_WORD_BITS));
}

static int one_group(const unsigned long *mask, size_t words, GROUP_AFFINITY *affinity) {
    memset(affinity, 0, sizeof *affinity);
    for (size_t i = 0; i < words; i++) {
        if (!mask[i])
            continue;
        WORD group = (WORD)(i / GROUP_WORDS);
        if (affinity->Mask && affinity->Group != group)
            return -EXDEV;
        affinity->Group = group;
        affinity->Mask |= (KAFFINITY)mask[i] << (i % GROUP_WORDS * QCT_WORD_BITS);
    }
    return affinity->Mask ? 0 : -EINVAL;
}

static int get_affinity(HANDLE thread, size_t words, GROUP_AFFINITY *affinity) {
    if (!GetThreadGroupAffinity(thread, affinity))
        return failure();
    return (affinity->Group + 1U) * GROUP_WORDS <= words ? 0 : -EINVAL;
}

int qct_affinity_get(int tid, unsigned long *mask, size_t words) {
    HANDLE thread;
    GROUP_AFFINITY now;
    int rc = open_thread(tid ? (DWORD)tid : GetCurrentThreadId(), THREAD_QUERY_LIMITED_INFORMATION, &thread);
    if (rc)
        return rc;
    rc = get_affinity(thread, words, &now);
    CloseHandle(thread);
    memset(mask, 0, words * sizeof *mask);
    if (rc == 0)
        add(mask, now);
    return rc;
}

/* As failure(), of a call that was given a thread: one that has ended while it is still open denies access. */
static int failure_of(HANDLE thread) {
    int rc = failure();
    DWORD status;
    return rc == -EPERM && GetExitCodeThread(thread, &status) && status != STILL_ACTIVE ? -ESRCH : rc;
}

/* Bind one thread unless it is bound so already; *changed is set if that changed its mask. */
static int bind_one(DWORD tid, GROUP_AFFINITY asked, unsigned long *got, size_t words, bool *changed) {
    HANDLE thread;
    GROUP_AFFINITY before, now;
    int rc = open_thread(tid, THREAD_QUERY_INFORMATION | THREAD_SET_INFORMATION, &thread);
    if (rc)
        return rc;
    rc = get_affinity(thread, words, &before);
    now = before;
    if (rc == 0 && (before.Group != asked.Group || before.Mask != asked.Mask)) {
        rc = SetThreadGroupAffinity(thread, &asked, NULL) ? get_affinity(thread, words, &now) : failure_of(thread);
        if (rc == 0 && (before.Group != now.Group || before.Mask != now.Mask))
            *changed = true;
    }
    CloseHandle(thread);
    if (rc == 0)
        add(got, now);
    return rc;
}

int qct_affinity_set(int tid, const unsigned long *asked, unsigned long *got, size_t words) {
    GROUP_AFFINITY affinity;
    bool changed;
    int rc = one_group(asked, words, &affinity);
    memset(got, 0, words * sizeof *got);
    return rc ? rc : bind_one(tid ? (DWORD)tid : GetCurrentThreadId(), affinity, got, words, &changed);
}

/* Whether all threads of a process are in this group, so that the mask of the process is one of its CPUs. */
static bool is_within(HANDLE process, WORD group) {
    USHORT groups[1], count = 1;
    if (GetActiveProcessorGroupCount() == 1)
        return group == 0;
    return GetProcessGroupAffinity(process, &count, groups) && count == 1 && groups[0] == group;
}

/* The mask of a process holds for its threads, those that it will start, and its children. */
static int bind_process(DWORD pid, GROUP_AFFINITY asked) {
    HANDLE process = OpenProcess(PROCESS_QUERY_INFORMATION | PROCESS_SET_INFORMATION, FALSE, pid);
    if (!process)
        return missing();
    int rc = 0;
    DWORD status;
    if (GetExitCodeProcess(process, &status) && status != STILL_ACTIVE) /* ended, and somebody still looks at it */
        rc = -ESRCH;
    else if (is_within(process, asked.Group) && !SetProcessAffinityMask(process, asked.Mask))
        rc = failure();
    CloseHandle(process);
    return rc;
}

static int bind_threads(DWORD pid, GROUP_AFFINITY asked, unsigned long *got, size_t words, bool *changed) {
    DWORD *tids;
    size_t count;
    bool alive = false;
    memset(got, 0, words * sizeof *got);
    int rc = list_threads(pid, &tids, &count);
    if (rc)
        return rc;
    for (size_t i = 0; i < count && rc == 0; i++) {
        rc = bind_one(tids[i], asked, got, words, changed);
        if (rc == 0)
            alive = true;
        else if (rc == -ESRCH) /* this thread has ended meanwhile */
            rc = 0;
    }
    release(tids);
    return rc || alive ? rc : -ESRCH;
}

int qct_affinity_set_process(int pid, const unsigned long *asked, unsigned long *got, size_t words) {
    GROUP_AFFINITY affinity;
    DWORD target = pid ? (DWORD)pid : GetCurrentProcessId();
    int rc = one_group(asked, words, &affinity);
    /* A pass that changes nothing has missed none of the threads that there were before it. The process itself can be
     * bound only while it is in this group alone, to which the pass before may have moved its threads. */
    bool changed = true;
    for (int pass = 0; rc == 0 && changed && pass < PASSES; pass++) {
        changed = false;
        rc = bind_process(target, affinity);
        if (rc == 0)
            rc = bind_threads(target, affinity, got, words, &changed);
    }
    return rc;
}

/* ---- thread times ---- */

static long long to_ns(FILETIME time) {
    return (long long)((unsigned long long)time.dwHighDateTime << 32 | time.dwLowDateTime) * TICK_NS;
}

static int time_of(DWORD tid, struct qct_thread_time *time) {
    HANDLE thread;
    FILETIME created, ended, kernel, user;
    int rc = open_thread(tid, THREAD_QUERY_LIMITED_INFORMATION, &thread);
    if (rc)
        return rc;
    if (GetThreadTimes(thread, &created, &ended, &kernel, &user))
        *time = (struct qct_thread_time){tid, to_ns(kernel) + to_ns(user)};
    else
        rc = failure();
    CloseHandle(thread);
    return rc;
}

int qct_thread_times(int pid, struct qct_thread_time *times, size_t room, size_t *count) {
    DWORD *tids;
    size_t found;
    int rc = list_threads(pid ? (DWORD)pid : GetCurrentProcessId(), &tids, &found);
    if (rc)
        return rc;
    *count = 0;
    for (size_t i = 0; i < found && rc == 0; i++) {
        struct qct_thread_time time;
        rc = time_of(tids[i], &time);
        if (rc == 0 && (*count)++ < room)
            times[*count - 1] = time;
        else if (rc == -ESRCH) /* it has ended meanwhile */
            rc = 0;
    }
    release(tids);
    return rc == 0 && *count > room ? -ERANGE : rc;
}

/* ---- topology ---- */

int qct_windows_topology(void *buffer, size_t *size) {
    DWORD needed = (DWORD)*size;
    if (GetLogicalProcessorInformationEx(RelationAll, buffer, &needed)) {
        *size = needed;
        return 0;
    }
    int rc = GetLastError() == ERROR_INSUFFICIENT_BUFFER ? -ERANGE : failure();
    *size = needed;
    return rc;
}
