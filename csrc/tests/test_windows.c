/*
 * Tests of windows.c, on Windows or under Wine, against what kernel32 says through other calls; without a C library,
 * which takes minutes to cross-compile. Says the failing check on stderr; writes the bytes of the topology to stdout.
 */
#include "check_windows.h"

#include "../qct.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define THREADS 20
#define WORDS 8 /* four groups */
#define BITS_OF_WORD 32

static unsigned long all[WORDS], one[WORDS], got[WORDS];
static HANDLE threads[THREADS], stopped;
static DWORD tids[THREADS];
static atomic_int stop, started;

static DWORD_PTR process_mask(void) {
    DWORD_PTR mask, every;
    CHECK(GetProcessAffinityMask(GetCurrentProcess(), &mask, &every));
    return mask;
}

static DWORD_PTR first_64(const unsigned long *mask) { return (DWORD_PTR)mask[1] << BITS_OF_WORD | mask[0]; }

static DWORD WINAPI wait_for_stop(void *unused) {
    (void)unused;
    atomic_fetch_add(&started, 1);
    return WaitForSingleObject(stopped, INFINITE);
}

static DWORD WINAPI work(void *unused) {
    (void)unused;
    volatile unsigned long long sum = 0;
    while (!atomic_load(&stop))
        sum = sum + 1;
    return 0;
}

static void test_width(void) {
    size_t words;
    CHECK(qct_affinity_words(&words) == 0);
    CHECK(words == 2u * GetMaximumProcessorGroupCount());
    CHECK(words <= WORDS);
    CHECK(qct_affinity_get(0, all, WORDS) == 0);
    CHECK(first_64(all) == process_mask());
    CHECK(qct_affinity_get(0, got, 1) == -EINVAL);
    for (size_t cpu = 0; cpu < 64 && !first_64(one); cpu++)
        one[cpu / BITS_OF_WORD] = all[cpu / BITS_OF_WORD] & 1UL << (cpu % BITS_OF_WORD);
}

static void test_thread(void) {
    PROCESSOR_NUMBER now;
    CHECK(qct_affinity_set(0, one, got, WORDS) == 0);
    CHECK(memcmp(one, got, sizeof got) == 0);
    GetCurrentProcessorNumberEx(&now);
    CHECK(now.Group == 0 && first_64(one) >> now.Number == 1);
    CHECK(first_64(all) == process_mask());
    CHECK(qct_affinity_set((int)GetCurrentThreadId(), all, got, WORDS) == 0);
    CHECK(memcmp(all, got, sizeof got) == 0);
}

static void test_masks_that_cannot_be(void) {
    unsigned long several[WORDS] = {1, 0, 1}, none[WORDS] = {0}, absent[WORDS] = {0};
    CHECK(qct_affinity_set(0, several, got, WORDS) == -EXDEV);
    CHECK(qct_affinity_set_process(0, several, got, WORDS) == -EXDEV);
    CHECK(qct_affinity_set(0, none, got, WORDS) == -EINVAL);
    CHECK(qct_affinity_set_process(0, none, got, WORDS) == -EINVAL);
    absent[WORDS - 1] = 1;
    CHECK(qct_affinity_set(0, absent, got, WORDS) == -EINVAL);
    CHECK(qct_affinity_set_process(0, absent, got, WORDS) == -EINVAL);
    CHECK(qct_affinity_get(0, got, WORDS) == 0);
    CHECK(memcmp(all, got, sizeof got) == 0);
}

static void test_process(void) {
    CHECK((stopped = CreateEventA(NULL, TRUE, FALSE, NULL)));
    for (int i = 0; i < THREADS; i++)
        CHECK((threads[i] = CreateThread(NULL, 0, wait_for_stop, NULL, 0, &tids[i])));
    while (atomic_load(&started) < THREADS)
        Sleep(1);
    CHECK(qct_affinity_set_process(0, one, got, WORDS) == 0);
    CHECK(memcmp(one, got, sizeof got) == 0);
    CHECK(process_mask() == first_64(one));
    for (int i = 0; i < THREADS; i++) {
        GROUP_AFFINITY affinity;
        CHECK(GetThreadGroupAffinity(threads[i], &affinity));
        CHECK(affinity.Group == 0 && affinity.Mask == first_64(one));
        CHECK(qct_affinity_get((int)tids[i], got, WORDS) == 0);
        CHECK(memcmp(one, got, sizeof got) == 0);
    }
    CHECK(qct_affinity_set_process((int)GetCurrentProcessId(), all, got, WORDS) == 0);
    CHECK(memcmp(all, got, sizeof got) == 0);
    CHECK(process_mask() == first_64(all));
}

static const struct qct_thread_time *time_of(DWORD tid, const struct qct_thread_time *times, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (times[i].id == tid)
            return &times[i];
    return NULL;
}

static void test_times(void) {
    struct qct_thread_time times[THREADS + 16];
    size_t count, found;
    DWORD tid;
    HANDLE busy = CreateThread(NULL, 0, work, NULL, 0, &tid);
    CHECK(busy);
    do { /* until the one that works has used 50 ms */
        CHECK(qct_thread_times(0, times, sizeof times / sizeof *times, &count) == 0);
        CHECK(time_of(tid, times, count));
    } while (time_of(tid, times, count)->cpu_ns < 50000000);
    CHECK(time_of(GetCurrentThreadId(), times, count));
    for (int i = 0; i < THREADS; i++)
        CHECK(time_of(tids[i], times, count)->cpu_ns < time_of(tid, times, count)->cpu_ns);
    CHECK(qct_thread_times((int)GetCurrentProcessId(), times, 1, &found) == -ERANGE && found == count);
    atomic_store(&stop, 1);
    CHECK(SetEvent(stopped));
    CHECK(WaitForSingleObject(busy, INFINITE) == WAIT_OBJECT_0);
    CHECK(WaitForMultipleObjects(THREADS, threads, TRUE, INFINITE) == WAIT_OBJECT_0);
    CloseHandle(busy);
    CloseHandle(stopped);
    for (int i = 0; i < THREADS; i++)
        CloseHandle(threads[i]);
}

static void test_gone(void) {
    struct qct_thread_time time;
    size_t count;
    STARTUPINFOA startup = {.cb = sizeof startup};
    PROCESS_INFORMATION child;
    char command[] = "cmd.exe /c exit";
    CHECK(CreateProcessA(NULL, command, NULL, NULL, FALSE, 0, NULL, NULL, &startup, &child));
    CHECK(WaitForSingleObject(child.hProcess, INFINITE) == WAIT_OBJECT_0);
    CloseHandle(child.hThread);
    CloseHandle(child.hProcess);
    int rc;
    do { /* the number lives as long as the last that looks at it */
        rc = qct_affinity_get((int)child.dwThreadId, got, WORDS);
        Sleep(1);
    } while (rc == 0);
    CHECK(rc == -ESRCH);
    CHECK(qct_affinity_set((int)child.dwThreadId, one, got, WORDS) == -ESRCH);
    CHECK(qct_affinity_set_process((int)child.dwProcessId, one, got, WORDS) == -ESRCH);
    CHECK(qct_thread_times((int)child.dwProcessId, &time, 1, &count) == -ESRCH);
}

static void test_topology(void) {
    static char buffer[65536];
    size_t size = 0, needed;
    CHECK(qct_windows_topology(NULL, &size) == -ERANGE && size > 8 && size <= sizeof buffer);
    needed = size;
    size = sizeof buffer;
    CHECK(qct_windows_topology(buffer, &size) == 0 && size == needed);
    CHECK(say(STD_OUTPUT_HANDLE, buffer, size));
}

/* Where a program begins that has no C library. */
void mainCRTStartup(void);
void mainCRTStartup(void) {
    test_width();
    test_thread();
    test_masks_that_cannot_be();
    test_process();
    test_times();
    test_gone();
    test_topology();
    ExitProcess(0);
}
