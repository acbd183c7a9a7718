/*
 * By what processes that share a directory tell each other something: locks of open files, and small files. Several
 * calls of the kernel are one here, so that no signal handler of an interpreter runs between them.
 */
#define _GNU_SOURCE
#include "linux_dents.h"
#include "qct.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int lock(int file) {
    while (flock(file, LOCK_EX | LOCK_NB))
        if (errno != EINTR)
            return errno == EACCES ? -EAGAIN : -errno; /* the first where flock is fcntl's lock, as on NFS */
    return 0;
}

int qct_files_lock(const int *files, size_t count, size_t *locked) {
    for (*locked = 0; *locked < count; ++*locked) {
        int rc = lock(files[*locked]);
        if (rc) {
            qct_files_unlock(files, *locked);
            return rc;
        }
    }
    return 0;
}

int qct_files_unlock(const int *files, size_t count) {
    int rc = 0;
    for (size_t i = 0; i < count; i++)
        if (flock(files[i], LOCK_UN))
            rc = -errno;
    return rc;
}

static int write_locked(int file, const void *text, size_t size, int for_all) {
    int rc = lock(file);
    if (rc)
        return rc;
    ssize_t written;
    while ((written = write(file, text, size)) < 0)
        if (errno != EINTR)
            return -errno;
    if ((size_t)written < size)
        return -ENOSPC;
    return for_all && fchmod(file, 0644) ? -errno : 0;
}

int qct_file_hold(int folder, const char *name, const void *text, size_t size, int for_all, int *file) {
    /* Before it is locked it is nobody else's to open. */
    int made;
    while ((made = openat(folder, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)) < 0)
        if (errno != EINTR)
            return -errno;
    int rc = write_locked(made, text, size, for_all);
    if (rc)
        qct_file_end(folder, name, made);
    else
        *file = made;
    return rc;
}

int qct_file_end(int folder, const char *name, int file) {
    int rc = unlinkat(folder, name, 0) ? -errno : 0;
    close(file);
    return rc;
}

static int is_itself_or_above(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

int qct_folder_names(int folder, char *names, size_t room, size_t *size) {
    struct qct_dents dents;
    int rc = qct_dents_begin(&dents, folder);
    *size = 0;
    for (const struct qct_dent *dent; rc == 0 && (dent = qct_dents_next(&dents, &rc));) {
        if (is_itself_or_above(dent->name))
            continue;
        size_t length = strlen(dent->name) + 1;
        if (length > room - *size)
            return -ERANGE;
        memcpy(names + *size, dent->name, length);
        *size += length;
    }
    return rc == -ENOENT ? 0 : rc; /* it was removed */
}

int qct_folder_links(int folder, unsigned long *links) {
    struct stat found;
    if (fstat(folder, &found))
        return -errno;
    *links = found.st_nlink;
    return 0;
}
