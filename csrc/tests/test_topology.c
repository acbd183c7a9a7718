/* Tests of linux_topology.c: parsers on sense and nonsense, and trees written by the test. Prints the failing check. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORDS 2

static int root;
static unsigned long mask[WORDS];

static void test_masks(void) {
    CHECK(qct_parse_mask("ff,00000001", mask, WORDS) == 0);
    CHECK(mask[0] == 0xff00000001UL && mask[1] == 0);
    CHECK(qct_parse_mask("1,,0", mask, WORDS) == 0 && mask[0] == 0 && mask[1] == 1);
    CHECK(qct_parse_mask("", mask, WORDS) == 0 && mask[0] == 0);
    CHECK(qct_parse_mask("1,0,0,0,3", mask, WORDS) == 0 && mask[0] == 3 && mask[1] == 0); /* beyond the mask */
    CHECK(qct_parse_mask("123456789", mask, WORDS) == -EINVAL);
    CHECK(qct_parse_mask("000000000", mask, WORDS) == -EINVAL); /* nine digits are no word */
    CHECK(qct_parse_mask("1,00000000,00000002", mask, WORDS) == 0 && mask[0] == 2 && mask[1] == 1);
    static char wide[300000];
    memset(wide, '0', sizeof wide - 1);
    for (size_t i = 8; i < sizeof wide - 1; i += 9)
        wide[i] = ',';
    CHECK(qct_parse_mask(wide, mask, WORDS) == 0);
    wide[0] = '1';
    CHECK(qct_parse_mask(wide, mask, WORDS) == -EINVAL); /* far beyond any machine */
    CHECK(qct_parse_mask("zebra", mask, WORDS) == -EINVAL);
    CHECK(qct_parse_mask("1 2", mask, WORDS) == -EINVAL);
}

static void test_lists(void) {
    CHECK(qct_parse_list("0-3,8", mask, WORDS) == 0 && mask[0] == 0x10f);
    CHECK(qct_parse_list("0-7:2", mask, WORDS) == 0 && mask[0] == 0x55);
    CHECK(qct_parse_list("0-11:2/4", mask, WORDS) == 0 && mask[0] == 0x333);
    CHECK(qct_parse_list("127,8191", mask, WORDS) == 0 && mask[0] == 0 && mask[1] == 1UL << 63);
    CHECK(qct_parse_list("", mask, WORDS) == 0 && mask[0] == 0);
    CHECK(qct_parse_list(" 1 ,,\t2,\n", mask, WORDS) == 0 && mask[0] == 6);
    CHECK(qct_parse_list("5:1/2,7:3", mask, WORDS) == 0 && mask[0] == 0xa0);
    static const char *const nonsense[] = {"3-1",   "a",         "1-",         "0-3:0", "0-3:2/1",
                                           "1;2",   "-1",        "0-99999999", "0/2",   "99999999999999999999",
                                           "0-3:",  "0-3:/",     "0-3:0/2",    "1 2",   "0--3",
                                           "0-3/2", "0000000001"};
    for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++)
        CHECK(qct_parse_list(nonsense[i], mask, WORDS) == -EINVAL);
}

/* A generator of our own: the same texts everywhere. */
static unsigned next_random(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static void test_random_texts(void) {
    static const char letters[] = "0123456789abcdefF,,--::// \nxz";
    unsigned state = 1;
    for (int round = 0; round < 200000; round++) {
        char text[48];
        size_t length = next_random(&state) % sizeof text;
        for (size_t i = 0; i < length; i++)
            text[i] = letters[next_random(&state) % (sizeof letters - 1)];
        text[length < sizeof text ? length : sizeof text - 1] = '\0';
        int rc = qct_parse_mask(text, mask, WORDS);
        CHECK(rc == 0 || rc == -EINVAL);
        rc = qct_parse_list(text, mask, WORDS);
        CHECK(rc == 0 || rc == -EINVAL);
    }
}

static void put(const char *path, const char *text, size_t size) {
    char part[256];
    for (const char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        CHECK(mkdirat(root, part, 0777) == 0 || errno == EEXIST);
    }
    int fd = openat(root, path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    CHECK(fd >= 0);
    CHECK(write(fd, text, size) == (ssize_t)size);
    close(fd);
}

static void write_text(const char *path, const char *text) { put(path, text, strlen(text)); }

/* Two cores of two PUs: 0,2 and 1,3; one cache each, and one for all; two nodes. */
static void make_tree(void) {
    for (int cpu = 0; cpu < 4; cpu++) {
        char path[128], padded[8192] = {0};
        snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/topology/core_cpus", cpu);
        snprintf(padded, sizeof padded, "0000000%s\n", cpu % 2 ? "a" : "5");
        put(path, padded, 4096); /* as recorded trees pad */
        snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/topology/core_id", cpu);
        write_text(path, cpu % 2 ? "1\n" : "0\n");
        snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/topology/core_siblings_list", cpu);
        write_text(path, "0-3\n");
        for (int index = 0; index < 2; index++) {
            snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/cache/index%d/level", cpu, 2 * index);
            write_text(path, index ? "3\n" : "1\n");
            snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/cache/index%d/type", cpu, 2 * index);
            write_text(path, index ? "Unified\n" : "Data\n");
            snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/cache/index%d/size", cpu, 2 * index);
            write_text(path, index ? "8192K\n" : "32K\n");
            snprintf(path, sizeof path, "sys/devices/system/cpu/cpu%d/cache/index%d/shared_cpu_map", cpu, 2 * index);
            write_text(path, index ? "f\n" : cpu % 2 ? "a\n" : "5\n");
        }
    }
    write_text("sys/devices/system/node/node3/cpumap", "f\n");
    write_text("sys/devices/system/node/node3/meminfo", "Node 3 MemFree: 7 kB\nNode 3 MemTotal:   1024 kB\n");
    write_text("sys/devices/system/node/node3/distance", "10 20\n");
    write_text("sys/devices/system/node/node11/cpulist", "\n");
    write_text("sys/devices/system/node/node11/distance", "20 10\n");
    write_text("sys/devices/system/node/nodes", "not a node\n");
}

static void test_tree(void) {
    static const unsigned long online[1] = {0xf};
    struct qct_topology *found = NULL;
    CHECK(qct_topology_read(root, online, 1, &found) == 0);
    CHECK(found->group_count[QCT_CORE] == 2 && found->group_count[QCT_PACKAGE] == 1);
    CHECK(found->group_count[QCT_DIE] == 0 && found->group_count[QCT_CLUSTER] == 0);
    CHECK(found->masks[found->groups[QCT_CORE][0].mask] == 5 && found->groups[QCT_CORE][0].id == 0);
    CHECK(found->masks[found->groups[QCT_CORE][1].mask] == 10 && found->groups[QCT_CORE][1].id == 1);
    CHECK(found->masks[found->groups[QCT_PACKAGE][0].mask] == 15);
    CHECK(found->groups[QCT_PACKAGE][0].id == QCT_ABSENT);
    CHECK(found->cache_count == 3);
    CHECK(found->caches[1].level == 3 && found->caches[1].kind == QCT_UNIFIED && found->caches[1].size_kib == 8192);
    CHECK(found->masks[found->caches[1].mask] == 15 && found->masks[found->caches[2].mask] == 10);
    CHECK(found->node_count == 2 && found->nodes[0].id == 3 && found->nodes[1].id == 11);
    CHECK(found->nodes[0].memory_kib == 1024 && found->nodes[1].memory_kib == 0);
    CHECK(found->masks[found->nodes[1].mask] == 0);
    CHECK(found->distances && found->distances[1] == 20 && found->distances[3] == 10);
    qct_topology_free(found);
}

/* What the files say of CPUs that are not online does not count, and CPUs that no file describes stand alone. */
static void test_contradictions(void) {
    static const unsigned long online[WORDS] = {0xd, 1UL << 10};
    struct qct_topology *found = NULL;
    write_text("sys/devices/system/cpu/cpu3/topology/core_cpus", "f\n");
    CHECK(qct_topology_read(root, online, WORDS, &found) == 0);
    CHECK(found->group_count[QCT_CORE] == 3);
    CHECK(found->masks[found->groups[QCT_CORE][0].mask * WORDS] == 5);
    CHECK(found->masks[found->groups[QCT_CORE][1].mask * WORDS] == 8);
    CHECK(found->masks[found->groups[QCT_CORE][2].mask * WORDS + 1] == 1UL << 10);
    qct_topology_free(found);
    write_text("sys/devices/system/node/node3/distance", "10\n");
    CHECK(qct_topology_read(root, online, WORDS, &found) == 0);
    CHECK(found->distances == NULL);
    qct_topology_free(found);
}

static void test_nonsense(void) {
    static const unsigned long online[1] = {0xf};
    struct qct_topology *found = NULL;
    static const char zeros[70000];
    write_text("sys/devices/system/node/node3/distance", "ten twenty\n");
    CHECK(qct_topology_read(root, online, 1, &found) == -EINVAL);
    write_text("sys/devices/system/node/node3/distance", "10 20\n");
    put("sys/devices/system/cpu/cpu0/topology/core_cpus", zeros, sizeof zeros);
    CHECK(qct_topology_read(root, online, 1, &found) == -EINVAL);
    put("sys/devices/system/cpu/cpu0/topology/core_cpus", "1\0002", 3);
    CHECK(qct_topology_read(root, online, 1, &found) == -EINVAL);
    CHECK(found == NULL);
}

static void test_nothing_there(void) {
    static const unsigned long online[1] = {3};
    struct qct_topology *found = NULL;
    int empty = openat(root, "sys/devices/system/node/node3", O_RDONLY | O_DIRECTORY);
    CHECK(empty >= 0);
    CHECK(qct_topology_read(empty, online, 1, &found) == 0);
    CHECK(found->group_count[QCT_CORE] == 2 && found->cache_count == 0 && found->node_count == 0);
    qct_topology_free(found);
    close(empty);
}

int main(int argc, char **argv) {
    CHECK(argc == 2); /* an empty directory to write to */
    root = open(argv[1], O_RDONLY | O_DIRECTORY);
    CHECK(root >= 0);
    test_masks();
    test_lists();
    test_random_texts();
    make_tree();
    test_tree();
    test_contradictions();
    test_nonsense();
    test_nothing_there();
    close(root);
    return 0;
}
