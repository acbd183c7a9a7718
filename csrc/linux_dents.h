/* The names in a directory, through a descriptor that is open already; for the sources of Linux alone. */
#ifndef QCT_LINUX_DENTS_H
#define QCT_LINUX_DENTS_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As getdents64(2) lays it out. */
struct qct_dent {
    uint64_t inode;
    int64_t offset;
    unsigned short size;
    unsigned char type;
    char name[];
};

struct qct_dents {
    int directory;
    long size, at;
    _Alignas(struct qct_dent) char buffer[8192];
};

static inline int qct_dents_begin(struct qct_dents *dents, int directory) {
    dents->directory = directory;
    dents->size = dents->at = 0;
    return lseek(directory, 0, SEEK_SET) < 0 ? -errno : 0;
}

/* The next one, until another is asked for; NULL: there is none, or *rc is a negative errno. */
static inline const struct qct_dent *qct_dents_next(struct qct_dents *dents, int *rc) {
    if (dents->at == dents->size) {
        dents->at = 0;
        dents->size = syscall(SYS_getdents64, dents->directory, dents->buffer, sizeof dents->buffer);
        if (dents->size < 0) {
            *rc = -errno;
            dents->size = 0;
        }
        if (dents->size == 0)
            return NULL;
    }
    const struct qct_dent *dent = (const struct qct_dent *)(dents->buffer + dents->at);
    dents->at += dent->size;
    return dent;
}

#endif
