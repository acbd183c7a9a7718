/*
 * libFuzzer target for qct_topology_read over a tree made of the input: an answer that keeps what qct.h promises or an
 * error, no descriptor left open, whatever lies in the place of a file.
 *
 * The input: the low bits of the first byte are the CPUs online, its highest asks for wide masks; then files, each of a
 * number in files.inc, the number of a CPU or node, a length, and so many bytes. The number's high bits say what is
 * there instead of a file.
 */
#define _GNU_SOURCE
#include "../../csrc/qct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CPUS 4
#define MOST_FILES 128
#define MOST_WORDS 2

enum place { A_FILE, A_DIRECTORY, A_PIPE, A_LINK_TO_ITSELF, NOTHING_BEHIND, LONG_NULS, PLACES };

static const char *const names[] = {
#include "files.inc"
};

static int root;
static char home[] = "/dev/shm/qcthreads-fuzz-XXXXXX";

/* A tree's directories stay from run to run; only files come and go, and with them the nodes'. */
static void make_directories(const char *path) {
    char part[128];
    for (const char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        CHECK(mkdirat(root, part, 0700) == 0 || errno == EEXIST);
    }
}

static void make_path(char path[128], size_t name, unsigned number) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(path, 128, names[name], number);
#pragma GCC diagnostic pop
}

static void clean_up(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", home);
    if (system(command) != 0)
        perror(home);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    CHECK(mkdtemp(home));
    atexit(clean_up);
    root = open(home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(root >= 0);
    for (size_t name = 0; name < sizeof names / sizeof *names; name++)
        for (unsigned number = 0; number < CPUS; number++) {
            char path[128];
            make_path(path, name, number);
            make_directories(path);
        }
    for (unsigned number = 0; number < CPUS; number++) {
        char path[128];
        snprintf(path, sizeof path, "sys/devices/system/node/node%u", number);
        CHECK(unlinkat(root, path, AT_REMOVEDIR) == 0);
    }
    return 0;
}

/* What the input puts twice stays what it was first, if the two cannot be one. */
static void put(const char *path, enum place place, const uint8_t *bytes, size_t length) {
    if (strncmp(path, "sys/devices/system/node", 23) == 0)
        make_directories(path);
    if (place == A_DIRECTORY)
        CHECK(mkdirat(root, path, 0700) == 0 || errno == EEXIST);
    else if (place == A_PIPE)
        CHECK(mkfifoat(root, path, 0600) == 0 || errno == EEXIST);
    else if (place == A_LINK_TO_ITSELF)
        CHECK(symlinkat(strrchr(path, '/') + 1, root, path) == 0 || errno == EEXIST);
    else if (place == NOTHING_BEHIND)
        CHECK(symlinkat("no/such/file", root, path) == 0 || errno == EEXIST);
    else {
        int fd = openat(root, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0600);
        if (fd < 0)
            return;
        CHECK(write(fd, bytes, length) == (ssize_t)length);
        if (place == LONG_NULS)
            CHECK(ftruncate(fd, 1L << 30) == 0);
        close(fd);
    }
}

static void take_away(const char *path) {
    if (unlinkat(root, path, 0) < 0)
        unlinkat(root, path, AT_REMOVEDIR);
    if (strncmp(path, "sys/devices/system/node", 23) == 0) {
        char node[128];
        snprintf(node, sizeof node, "%.*s", (int)(strrchr(path, '/') - path), path);
        unlinkat(root, node, AT_REMOVEDIR);
    }
}

static unsigned long lowest(unsigned long bits) { return bits & (~bits + 1); }

/* Disjoint, sorted, and covering: all, or nothing where the level is one that not every kernel has. */
static void check_groups(const struct qct_topology *found, int level, unsigned long online) {
    unsigned long covered = 0, last = 0;
    for (size_t i = 0; i < found->group_count[level]; i++) {
        unsigned long bits = found->masks[found->groups[level][i].mask * found->words];
        CHECK(bits && !(bits & covered) && !(bits & ~online) && lowest(bits) > last);
        covered |= bits;
        last = lowest(bits);
    }
    int optional = level == QCT_CLUSTER || level == QCT_DIE;
    CHECK(covered == online || (optional && !covered));
}

static void check(const struct qct_topology *found, unsigned long online) {
    for (int level = 0; level < QCT_LEVELS; level++)
        check_groups(found, level, online);
    for (size_t i = 0; i < found->cache_count; i++) {
        unsigned long bits = found->masks[found->caches[i].mask * found->words];
        CHECK(bits && !(bits & ~online) && found->caches[i].level >= 1 && found->caches[i].size_kib >= 0);
    }
    for (size_t i = 0; i < found->node_count; i++) {
        CHECK(!(found->masks[found->nodes[i].mask * found->words] & ~online) && found->nodes[i].memory_kib >= 0);
        CHECK(i == 0 || found->nodes[i].id > found->nodes[i - 1].id);
    }
}

/* Which of the next descriptors are open, one bit each: those that a reader would leave open. */
static unsigned descriptors(void) {
    unsigned open = 0;
    for (int fd = root + 1; fd <= root + 16; fd++)
        open = open << 1 | (fcntl(fd, F_GETFD) >= 0);
    return open;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char paths[MOST_FILES][128];
    size_t count = 0, at = 1;
    const unsigned long online[MOST_WORDS] = {size ? data[0] % (1 << CPUS) : 0};
    while (count < MOST_FILES && at + 3 <= size) {
        size_t name = data[at] % (sizeof names / sizeof *names), length = data[at + 2];
        enum place place = (enum place)(data[at + 1] >> 4) % PLACES;
        make_path(paths[count], name, data[at + 1] % CPUS);
        at += 3;
        length = length < size - at ? length : size - at;
        put(paths[count++], place, data + at, length);
        at += length;
    }
    struct qct_topology *found = NULL;
    unsigned before = descriptors();
    int rc = qct_topology_read(root, online, size && data[0] > 127 ? 2 : 1, &found);
    CHECK((rc == 0) == (found != NULL) && (rc == 0 || rc == -EINVAL));
    if (found)
        check(found, online[0]);
    qct_topology_free(found);
    CHECK(descriptors() == before);
    while (count)
        take_away(paths[--count]);
    return 0;
}
