/*
 * What macOS tells: values of sysctl, and the CPU times of threads. It has no call that binds a thread to CPUs, and
 * this file never pretends to.
 */
#include "qct.h"

#include <errno.h>
#include <libproc.h>
#include <mach/mach.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/sysctl.h>
#include <unistd.h>

int qct_darwin_sysctl(const char *name, void *value, size_t *size) {
    return sysctlbyname(name, value, size, NULL, 0) ? -errno : 0;
}

static long long to_ns(time_value_t time) { return 1000000000LL * time.seconds + 1000LL * time.microseconds; }

static kern_return_t own_time(thread_act_t thread, struct qct_thread_time *time) {
    thread_identifier_info_data_t identity;
    thread_basic_info_data_t basic;
    mach_msg_type_number_t size = THREAD_IDENTIFIER_INFO_COUNT;
    kern_return_t rc = thread_info(thread, THREAD_IDENTIFIER_INFO, (thread_info_t)&identity, &size);
    if (rc != KERN_SUCCESS)
        return rc;
    size = THREAD_BASIC_INFO_COUNT;
    rc = thread_info(thread, THREAD_BASIC_INFO, (thread_info_t)&basic, &size);
    if (rc == KERN_SUCCESS)
        *time = (struct qct_thread_time){identity.thread_id, to_ns(basic.user_time) + to_ns(basic.system_time)};
    return rc;
}

static int own_times(struct qct_thread_time *times, size_t room, size_t *count) {
    thread_act_array_t threads;
    mach_msg_type_number_t found;
    if (task_threads(mach_task_self(), &threads, &found) != KERN_SUCCESS)
        return -EPERM;
    *count = 0;
    for (mach_msg_type_number_t i = 0; i < found; i++) {
        struct qct_thread_time time;
        if (own_time(threads[i], &time) == KERN_SUCCESS) { /* else it has ended meanwhile */
            if (*count < room)
                times[*count] = time;
            ++*count;
        }
        mach_port_deallocate(mach_task_self(), threads[i]);
    }
    vm_deallocate(mach_task_self(), (vm_address_t)threads, found * sizeof *threads);
    return *count > room ? -ERANGE : 0;
}

/* The handles of a process's threads, to be freed; *found of them. */
static int list_threads(int pid, size_t most, uint64_t **handles, size_t *found) {
    for (;; most *= 2) { /* a list that comes back full may have been cut */
        *handles = malloc(most * sizeof **handles);
        if (!*handles)
            return -ENOMEM;
        int bytes = proc_pidinfo(pid, PROC_PIDLISTTHREADS, 0, *handles, (int)(most * sizeof **handles));
        *found = bytes > 0 ? (size_t)bytes / sizeof **handles : 0;
        if (0 < *found && *found < most)
            return 0;
        free(*handles);
        if (*found == 0)
            return -ESRCH;
    }
}

/* The kernel gives the thread_info of other processes of the same user only through proc_pidinfo. */
static int others_times(int pid, struct qct_thread_time *times, size_t room, size_t *count) {
    struct proc_taskinfo task;
    errno = 0;
    if (proc_pidinfo(pid, PROC_PIDTASKINFO, 0, &task, sizeof task) != (int)sizeof task)
        return errno ? -errno : -ESRCH;
    uint64_t *handles;
    size_t found;
    int rc = list_threads(pid, (size_t)task.pti_threadnum + 8, &handles, &found); /* a few may start meanwhile */
    if (rc)
        return rc;
    *count = 0;
    for (size_t i = 0; i < found; i++) {
        struct proc_threadinfo info;
        if (proc_pidinfo(pid, PROC_PIDTHREADINFO, handles[i], &info, sizeof info) != (int)sizeof info)
            continue; /* it has ended meanwhile */
        if (*count < room)
            times[*count] =
                (struct qct_thread_time){handles[i], (long long)(info.pth_user_time + info.pth_system_time)};
        ++*count;
    }
    free(handles);
    return *count > room ? -ERANGE : 0;
}

int qct_thread_times(int pid, struct qct_thread_time *times, size_t room, size_t *count) {
    return pid && pid != getpid() ? others_times(pid, times, room, count) : own_times(times, room, count);
}
