/*
 * The machine as the files below sys/devices/system tell it, read with openat under any root. Reads and parses each
 * shared object once; what the numbers mean for anybody is decided elsewhere.
 *
 * The pure-Python twin, src/qcthreads/host/sysfs.py, gives the same answers: change both.
 */
#define _GNU_SOURCE
#include "qct.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_SIZE 96

/* The longest file there is lists 8192 CPUs by their numbers in less than this. */
#define TEXT_SIZE 65536

/* A read of sysfs gives a page at most (kernfs_file_read_iter): what ends short of a page has ended. */
#define PAGE 4096

/* Caches of one CPU are numbered from 0; the kernel may leave numbers out (cacheinfo's disable_sysfs). */
#define MOST_CACHES 16
#define FIRST_TRIES 10

/* Far above any kernel's NR_CPUS and number of nodes; catches nonsense before it fills memory. */
#define HIGHEST (1L << 20)

struct reader {
    int root, cpus;
    const unsigned long *online;
    size_t words;
    struct qct_topology *out;
    unsigned long *left, *described, *found;
    struct doubtful *doubtful;
    size_t doubtful_count;
    int cache_top;
    bool has_khz, has_base, has_nominal, has_capacity, has_midr;
    char *text; /* of the file read last, without padding */
    char buffer[TEXT_SIZE + 1];
};

/* A cache of which a file of `cpu` says what the files of other CPUs contradict. */
struct doubtful {
    struct qct_cache cache;
    size_t cpu;
    int index;
};

/* The files that describe a level, the newest name first, and where the last one was found. */
struct level {
    enum qct_level level;
    const char *id;
    const char *names[4];
    size_t last;
};

static bool has(const unsigned long *mask, size_t cpu) {
    return mask[cpu / QCT_WORD_BITS] >> (cpu % QCT_WORD_BITS) & 1;
}

static void add(unsigned long *mask, size_t cpu) { mask[cpu / QCT_WORD_BITS] |= 1UL << (cpu % QCT_WORD_BITS); }

/* The lowest CPU of the mask from `from` on; words * QCT_WORD_BITS where there is none. */
static size_t next_cpu(const unsigned long *mask, size_t words, size_t from) {
    size_t i = from / QCT_WORD_BITS;
    if (i >= words)
        return words * QCT_WORD_BITS;
    unsigned long word = mask[i] & (~0UL << (from % QCT_WORD_BITS));
    while (!word && ++i < words)
        word = mask[i];
    return word ? i * QCT_WORD_BITS + (size_t)__builtin_ctzl(word) : words * QCT_WORD_BITS;
}

static bool is_empty(const unsigned long *mask, size_t words) {
    return next_cpu(mask, words, 0) == words * QCT_WORD_BITS;
}

static bool overlap(const unsigned long *mask, const unsigned long *other, size_t words) {
    unsigned long both = 0;
    for (size_t i = 0; i < words; i++)
        both |= mask[i] & other[i];
    return both;
}

static bool is_within(const unsigned long *mask, const unsigned long *other, size_t words) {
    unsigned long outside = 0;
    for (size_t i = 0; i < words; i++)
        outside |= mask[i] & ~other[i];
    return !outside;
}

/* Room for one more element; the room doubles whenever the count is a power of two. */
static int grow(void *array_pointer, size_t count, size_t size) {
    if (count & (count - 1))
        return 0;
    void *array;
    memcpy(&array, array_pointer, sizeof array);
    array = realloc(array, (count ? 2 * count : 1) * size);
    if (!array)
        return -ENOMEM;
    memcpy(array_pointer, &array, sizeof array);
    return 0;
}

static int new_mask(struct qct_topology *out, const unsigned long *from, size_t *number) {
    int rc = grow(&out->masks, out->mask_count, out->words * sizeof *out->masks);
    if (rc)
        return rc;
    memcpy(out->masks + out->mask_count * out->words, from, out->words * sizeof *from);
    *number = out->mask_count++;
    return 0;
}

/* ---- text ---- */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int qct_parse_mask(const char *text, unsigned long *mask, size_t words) {
    memset(mask, 0, words * sizeof *mask);
    size_t bit = 0, digits = 0;
    for (size_t i = strlen(text); i-- > 0;) {
        if (text[i] == ',') {
            bit += 32;
            digits = 0;
            continue;
        }
        if (digits == 0 && i >= 7 && memcmp(text + i - 7, "00000000", 8) == 0) { /* nearly every word of a wide mask */
            digits = 8;
            i -= 7;
            continue;
        }
        int value = hex_digit(text[i]);
        if (value < 0 || digits == 8)
            return -EINVAL;
        size_t at = bit + 4 * digits++;
        if (value && at >= HIGHEST)
            return -EINVAL;
        if (value && at / QCT_WORD_BITS < words)
            mask[at / QCT_WORD_BITS] |= (unsigned long)value << (at % QCT_WORD_BITS);
    }
    return 0;
}

/* A number without sign of at most nine digits. */
static bool take_number(const char **text, size_t *number) {
    size_t digits = 0;
    for (*number = 0; **text >= '0' && **text <= '9' && digits < 9; digits++)
        *number = *number * 10 + (size_t)(*(*text)++ - '0');
    return digits && !(**text >= '0' && **text <= '9');
}

static const char *skip_blanks(const char *text) { return text + strspn(text, " \t\r\n"); }

/* "a", "a-b", "a-b:stride" or "a-b:used/stride". */
static int add_range(const char **text, unsigned long *mask, size_t words) {
    size_t low, high, used = 1, stride = 1;
    if (!take_number(text, &low))
        return -EINVAL;
    high = low;
    if (**text == '-' && (++*text, !take_number(text, &high)))
        return -EINVAL;
    if (**text == ':') {
        ++*text;
        if (!take_number(text, &stride))
            return -EINVAL;
        if (**text == '/' && (++*text, used = stride, !take_number(text, &stride)))
            return -EINVAL;
    }
    if (high < low || high >= HIGHEST || !used || used > stride)
        return -EINVAL;
    for (size_t cpu = low; cpu <= high && cpu < words * QCT_WORD_BITS; cpu++)
        if ((cpu - low) % stride < used)
            add(mask, cpu);
    return 0;
}

int qct_parse_list(const char *text, unsigned long *mask, size_t words) {
    memset(mask, 0, words * sizeof *mask);
    for (;;) {
        text = skip_blanks(text);
        if (*text && *text != ',') {
            int rc = add_range(&text, mask, words);
            if (rc)
                return rc;
            text = skip_blanks(text);
        }
        if (!*text)
            return 0;
        if (*text++ != ',')
            return -EINVAL;
    }
}

static bool is_padding(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\0'; }

/* What no reading of a file can go on after: the answer would be that of another machine. */
static bool is_fatal(int error) { return error == EMFILE || error == ENFILE || error == ENOMEM; }

/*
 * 1: r->text is the file's; 0: it cannot be read. A NUL in the middle of a text is nobody's. A pipe in the place of a
 * file, in a tree that somebody made, is an empty one: nothing is waited for.
 */
static int read_text(struct reader *r, int directory, const char *path) {
    int fd = openat(directory, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return is_fatal(errno) ? -errno : 0;
    size_t length = 0;
    ssize_t got;
    do {
        got = read(fd, r->buffer + length, TEXT_SIZE - length);
        if (got > 0)
            length += (size_t)got;
    } while ((got > 0 && got % PAGE == 0) || (got < 0 && errno == EINTR));
    int error = got < 0 ? errno : 0;
    close(fd);
    if (error)
        return is_fatal(error) ? -error : 0;
    if (length == TEXT_SIZE)
        return -EINVAL;
    while (length && is_padding(r->buffer[length - 1]))
        length--;
    r->buffer[length] = '\0';
    r->text = r->buffer;
    while (r->text < r->buffer + length && is_padding(*r->text))
        r->text++;
    return strlen(r->text) == (size_t)(r->buffer + length - r->text) ? 1 : -EINVAL;
}

/* 1: *mask is what either file says; 0: neither can be read. */
static int read_mask(struct reader *r, int directory, const char *path, bool list, unsigned long *mask) {
    int rc = read_text(r, directory, path);
    if (rc <= 0)
        return rc;
    rc = list ? qct_parse_list(r->text, mask, r->words) : qct_parse_mask(r->text, mask, r->words);
    return rc ? rc : 1;
}

/* QCT_ABSENT for a file that holds no number. */
static int read_number(struct reader *r, const char *path, long *number) {
    *number = QCT_ABSENT;
    int rc = read_text(r, r->cpus, path);
    if (rc <= 0)
        return rc;
    const char *text = r->text + (*r->text == '-');
    size_t value;
    if (!take_number(&text, &value))
        return *text >= '0' && *text <= '9' ? -EINVAL : 0;
    if (*text == '\0')
        *number = *r->text == '-' ? -(long)value : (long)value;
    return 0;
}

static int cpu_number(struct reader *r, size_t cpu, const char *name, long *number) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "cpu%zu/%s", cpu, name);
    return read_number(r, path, number);
}

/* ---- groups of CPUs ---- */

/* 1: r->found are the CPUs that share this level with `cpu`; the name that was right for the last CPU is tried first.
 */
static int read_siblings(struct reader *r, struct level *level, size_t cpu) {
    for (size_t i = 0; i <= 4; i++) {
        size_t which = i ? i - 1 : level->last;
        if (!level->names[which] || (i && which == level->last))
            continue;
        char path[PATH_SIZE];
        snprintf(path, sizeof path, "cpu%zu/topology/%s", cpu, level->names[which]);
        int rc = read_mask(r, r->cpus, path, which % 2, r->found);
        if (rc) {
            level->last = which;
            return rc;
        }
    }
    return 0;
}

/* Of r->found, in its place: nearly always the last one. */
static int add_group(struct reader *r, struct level *level, size_t cpu, bool told) {
    struct qct_topology *out = r->out;
    struct qct_group group = {.told = told};
    size_t at = out->group_count[level->level];
    int rc = cpu_number(r, cpu, level->id, &group.id);
    if (!rc)
        rc = new_mask(out, r->found, &group.mask);
    if (!rc)
        rc = grow(&out->groups[level->level], at, sizeof group);
    if (rc)
        return rc;
    struct qct_group *groups = out->groups[level->level];
    size_t lowest = next_cpu(r->found, r->words, 0);
    for (; at && next_cpu(out->masks + groups[at - 1].mask * r->words, r->words, 0) > lowest; at--)
        groups[at] = groups[at - 1];
    groups[at] = group;
    out->group_count[level->level]++;
    return 0;
}

/* Whether a line of proc/cpuinfo says so: "name <tab> : value". */
static bool says(const char *text, const char *name, const char *value) {
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, name, strlen(name)) != 0)
            continue;
        const char *at = line + strlen(name);
        at += strspn(at, " \t");
        if (*at != ':')
            continue;
        at += 1 + strspn(at + 1, " \t");
        size_t length = strlen(value);
        if (strncmp(at, value, length) == 0 && (at[length] == '\n' || at[length] == '\0'))
            return true;
    }
    return false;
}

/* By the first page of proc/cpuinfo, which has all of the first CPU. */
static int ask_family(struct reader *r, bool *units) {
    *units = false;
    int fd = openat(r->root, "proc/cpuinfo", O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return is_fatal(errno) ? -errno : 0;
    ssize_t got = read(fd, r->buffer, PAGE);
    close(fd);
    r->buffer[got > 0 ? got : 0] = '\0';
    *units = says(r->buffer, "vendor_id", "AuthenticAMD") &&
             (says(r->buffer, "cpu family", "21") || says(r->buffer, "cpu family", "22"));
    return 0;
}

/*
 * AMD's compute units of two cores are one set of thread_siblings (families 15h and 16h): whether the first two
 * siblings differ in their core_id. It is so for all cores of a machine, or for none. Other makers' numbers may differ
 * among the PUs of one core.
 */
static int ask_compute_units(struct reader *r, size_t cpu, int *units) {
    size_t other = next_cpu(r->found, r->words, cpu + 1);
    if (other == r->words * QCT_WORD_BITS)
        return 0;
    long mine, others;
    int rc = cpu_number(r, cpu, "topology/core_id", &mine);
    if (!rc)
        rc = cpu_number(r, other, "topology/core_id", &others);
    if (rc)
        return rc;
    bool differ = mine != others && mine != QCT_ABSENT && others != QCT_ABSENT;
    if (differ)
        rc = ask_family(r, &differ);
    *units = differ;
    return rc;
}

/* Keep of r->found those of the same core_id as `cpu`. */
static int split_compute_unit(struct reader *r, size_t cpu) {
    long mine, others;
    int rc = cpu_number(r, cpu, "topology/core_id", &mine);
    for (size_t other = cpu; !rc;) {
        other = next_cpu(r->found, r->words, other + 1);
        if (other == r->words * QCT_WORD_BITS)
            return 0;
        rc = cpu_number(r, other, "topology/core_id", &others);
        if (!rc && others != mine && others != QCT_ABSENT)
            r->found[other / QCT_WORD_BITS] &= ~(1UL << (other % QCT_WORD_BITS));
    }
    return rc;
}

/* The group of `cpu`, from r->left; a mask that contradicts others is left for later, unless this is later. */
static int read_group(struct reader *r, struct level *level, size_t cpu, bool later, int *units) {
    int rc = read_siblings(r, level, cpu);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < r->words; i++)
        r->found[i] = rc ? r->found[i] & r->online[i] : 0;
    bool told = !is_empty(r->found, r->words);
    if (told && !later && !(has(r->found, cpu) && is_within(r->found, r->left, r->words)))
        return 0;
    for (size_t i = 0; i < r->words; i++)
        r->found[i] &= r->left[i];
    add(r->found, cpu);
    rc = 0;
    if (*units < 0)
        rc = ask_compute_units(r, cpu, units);
    if (!rc && *units > 0)
        rc = split_compute_unit(r, cpu);
    if (!rc)
        rc = add_group(r, level, cpu, told);
    if (rc)
        return rc;
    const unsigned long *group = r->out->masks + (r->out->mask_count - 1) * r->words;
    for (size_t i = 0; i < r->words; i++)
        r->left[i] &= ~group[i];
    return 0;
}

/*
 * Disjoint groups that cover the online CPUs, even where masks contradict each other; one file per group is read. A
 * CPU whose mask lacks it, or names members of other groups, goes where the others' masks put it.
 */
static int read_groups(struct reader *r, struct level *level) {
    int units = level->level == QCT_CORE ? -1 : 0; /* -1: not asked yet */
    size_t end = r->words * QCT_WORD_BITS;
    memcpy(r->left, r->online, r->words * sizeof *r->left);
    for (int later = 0; later < 2; later++)
        for (size_t cpu = next_cpu(r->left, r->words, 0); cpu < end; cpu = next_cpu(r->left, r->words, cpu + 1)) {
            int rc = read_group(r, level, cpu, later, &units);
            if (rc)
                return rc;
        }
    return 0;
}

/* Levels that not every kernel or architecture has: none where the first CPU has none, or says that it has none. */
static int read_optional_groups(struct reader *r, struct level *level) {
    size_t first = next_cpu(r->online, r->words, 0);
    long id;
    int rc = cpu_number(r, first, level->id, &id);
    if (rc || id < 0)
        return rc;
    rc = read_siblings(r, level, first);
    return rc <= 0 ? rc : read_groups(r, level);
}

/* ---- speeds ---- */

static int speed_number(struct reader *r, size_t cpu, const char *name, bool *present, long *number) {
    *number = QCT_ABSENT;
    if (!*present)
        return 0;
    int rc = cpu_number(r, cpu, name, number);
    return rc;
}

/* ARM's main identification register: which design of core this is; 0 where the kernel does not tell. */
static int read_midr(struct reader *r, size_t cpu, unsigned long *midr) {
    *midr = 0;
    if (!r->has_midr)
        return 0;
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "cpu%zu/regs/identification/midr_el1", cpu);
    int rc = read_text(r, r->cpus, path);
    if (rc <= 0 || strncmp(r->text, "0x", 2) != 0)
        return rc < 0 ? rc : 0;
    unsigned long value = 0;
    size_t digits = 0;
    for (const char *at = r->text + 2; *at; at++, digits++) {
        if (hex_digit(*at) < 0 || digits == 16)
            return 0;
        value = (value << 4 | (unsigned long)hex_digit(*at)) & 0xffffffffUL; /* above are reserved bits */
    }
    *midr = value;
    return 0;
}

/* A file that the first core's first CPU has not, no other one is asked for. */
static int read_speeds(struct reader *r) {
    struct qct_topology *out = r->out;
    r->has_khz = r->has_base = r->has_nominal = r->has_capacity = r->has_midr = true;
    for (size_t core = 0; core < out->group_count[QCT_CORE]; core++) {
        struct qct_speed speed;
        size_t cpu = next_cpu(out->masks + out->groups[QCT_CORE][core].mask * r->words, r->words, 0);
        int rc = speed_number(r, cpu, "cpufreq/cpuinfo_max_freq", &r->has_khz, &speed.max_khz);
        if (!rc)
            rc = speed_number(r, cpu, "cpufreq/base_frequency", &r->has_base, &speed.base_khz);
        if (!rc)
            rc = speed_number(r, cpu, "acpi_cppc/nominal_freq", &r->has_nominal, &speed.nominal_mhz);
        if (!rc)
            rc = speed_number(r, cpu, "cpu_capacity", &r->has_capacity, &speed.capacity);
        if (!rc)
            rc = read_midr(r, cpu, &speed.midr);
        if (!rc)
            rc = grow(&out->speeds, core, sizeof speed);
        if (rc)
            return rc;
        out->speeds[core] = speed;
        if (core == 0) {
            r->has_khz = speed.max_khz != QCT_ABSENT;
            r->has_base = speed.base_khz != QCT_ABSENT;
            r->has_nominal = speed.nominal_mhz != QCT_ABSENT && !r->has_base;
            r->has_capacity = speed.capacity != QCT_ABSENT;
            r->has_midr = speed.midr != 0;
        }
    }
    return 0;
}

/* ---- caches ---- */

static enum qct_cache_kind kind_of(const char *text) {
    if (strcmp(text, "Data") == 0)
        return QCT_DATA;
    return strcmp(text, "Instruction") == 0 ? QCT_INSTRUCTION : QCT_UNIFIED;
}

static int read_size(struct reader *r, const char *path, long *size_kib) {
    *size_kib = 0;
    int rc = read_text(r, r->cpus, path);
    if (rc <= 0)
        return rc;
    const char *text = r->text;
    size_t value;
    if (take_number(&text, &value) && strcmp(text, "K") == 0)
        *size_kib = (long)value;
    else if (*text >= '0' && *text <= '9')
        return -EINVAL;
    return 0;
}

/* Into r->found; the core's CPUs where the file names none, as some ia64 kernels' do, and `cpu` where there is none. */
static int read_shared(struct reader *r, size_t cpu, int index, size_t core) {
    static const char *const names[] = {"shared_cpu_map", "shared_cpu_list"};
    int rc = 0;
    for (size_t i = 0; i < 2 && !rc; i++) {
        char path[PATH_SIZE];
        snprintf(path, sizeof path, "cpu%zu/cache/index%d/%s", cpu, index, names[i]);
        rc = read_mask(r, r->cpus, path, i == 1, r->found);
    }
    if (rc < 0)
        return rc;
    if (rc == 0)
        memset(r->found, 0, r->words * sizeof *r->found);
    else if (is_empty(r->found, r->words))
        memcpy(r->found, r->out->masks + core * r->words, r->words * sizeof *r->found);
    for (size_t i = 0; i < r->words; i++)
        r->found[i] &= r->online[i];
    add(r->found, cpu);
    return 0;
}

static int add_cache(struct reader *r, const struct qct_cache *cache, int index) {
    struct qct_topology *out = r->out;
    int rc = grow(&out->caches, out->cache_count, sizeof *cache);
    if (rc)
        return rc;
    out->caches[out->cache_count++] = *cache;
    for (size_t i = 0; i < r->words; i++)
        r->described[(size_t)index * r->words + i] |= out->masks[cache->mask * r->words + i];
    return 0;
}

/* 1: there is such a cache, and it has been described; 2: its mask names CPUs whose own masks name others. */
static int read_cache(struct reader *r, size_t cpu, int index, size_t core) {
    struct qct_topology *out = r->out;
    struct qct_cache cache;
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "cpu%zu/cache/index%d/level", cpu, index);
    int rc = read_number(r, path, &cache.level);
    if (rc || cache.level < 1)
        return rc;
    snprintf(path, sizeof path, "cpu%zu/cache/index%d/type", cpu, index);
    rc = read_text(r, r->cpus, path);
    if (rc < 0)
        return rc;
    cache.kind = rc ? kind_of(r->text) : QCT_UNIFIED;
    snprintf(path, sizeof path, "cpu%zu/cache/index%d/size", cpu, index);
    rc = read_size(r, path, &cache.size_kib);
    if (!rc)
        rc = read_shared(r, cpu, index, core);
    if (!rc)
        rc = new_mask(out, r->found, &cache.mask);
    if (rc)
        return rc;
    if (overlap(r->found, r->described + (size_t)index * r->words, r->words)) {
        rc = grow(&r->doubtful, r->doubtful_count, sizeof *r->doubtful);
        if (!rc)
            r->doubtful[r->doubtful_count++] = (struct doubtful){cache, cpu, index};
        return rc ? rc : 2;
    }
    rc = add_cache(r, &cache, index);
    return rc ? rc : 1;
}

/* All caches of one CPU; what they all are shared with leaves r->left. */
static int read_caches_of(struct reader *r, size_t cpu, size_t core) {
    int top = -1, tries = r->cache_top;
    bool clear = true;
    unsigned long *left = r->left;
    for (int index = 0; index < MOST_CACHES; index++) {
        const unsigned long *described = r->described + (size_t)index * r->words;
        int rc = has(described, cpu) ? 1 : read_cache(r, cpu, index, core);
        if (rc < 0)
            return rc;
        clear &= rc != 2;
        if (rc)
            top = index;
        else if (index > tries)
            break;
    }
    if (tries == FIRST_TRIES || top > tries)
        r->cache_top = top;
    for (size_t i = 0; i < r->words; i++) {
        unsigned long shared = clear ? ~0UL : 0;
        for (int index = 0; index <= top; index++)
            if (has(r->described + (size_t)index * r->words, cpu))
                shared &= r->described[(size_t)index * r->words + i];
        left[i] &= ~shared;
    }
    left[cpu / QCT_WORD_BITS] &= ~(1UL << (cpu % QCT_WORD_BITS));
    return 0;
}

/* What no other CPU's files have described meanwhile: of the CPUs that none has. */
static int settle_caches(struct reader *r) {
    for (size_t i = 0; i < r->doubtful_count; i++) {
        const struct doubtful *one = &r->doubtful[i];
        const unsigned long *described = r->described + (size_t)one->index * r->words;
        if (has(described, one->cpu))
            continue;
        for (size_t word = 0; word < r->words; word++)
            r->out->masks[one->cache.mask * r->words + word] &= ~described[word];
        int rc = add_cache(r, &one->cache, one->index);
        if (rc)
            return rc;
    }
    return 0;
}

/* Core by core: the CPUs of a core share all their caches, unless the files say otherwise. */
static int read_caches(struct reader *r) {
    size_t end = r->words * QCT_WORD_BITS;
    r->cache_top = FIRST_TRIES;
    for (size_t core = 0; core < r->out->group_count[QCT_CORE]; core++) {
        size_t mask = r->out->groups[QCT_CORE][core].mask;
        memcpy(r->left, r->out->masks + mask * r->words, r->words * sizeof *r->left);
        for (size_t cpu = next_cpu(r->left, r->words, 0); cpu < end; cpu = next_cpu(r->left, r->words, cpu)) {
            int rc = read_caches_of(r, cpu, mask);
            if (rc)
                return rc;
        }
    }
    return settle_caches(r);
}

/* ---- memory nodes ---- */

static int compare_nodes(const void *left, const void *right) {
    const struct qct_node *a = left, *b = right;
    return (a->id > b->id) - (a->id < b->id);
}

static int list_nodes(struct qct_topology *out, DIR *directory) {
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (!entry)
            break;
        const char *name = entry->d_name;
        size_t id;
        if (strncmp(name, "node", 4) != 0 || (name += 4, !take_number(&name, &id)) || *name)
            continue;
        if (id >= HIGHEST)
            return -EINVAL;
        int rc = grow(&out->nodes, out->node_count, sizeof *out->nodes);
        if (rc)
            return rc;
        out->nodes[out->node_count++] = (struct qct_node){.id = (long)id};
    }
    if (out->node_count)
        qsort(out->nodes, out->node_count, sizeof *out->nodes, compare_nodes);
    return 0;
}

/* "Node 0 MemTotal:       131072000 kB" */
static int total_kib(const char *text, long *memory_kib) {
    *memory_kib = 0;
    while ((text = strstr(text, "MemTotal:"))) {
        text += strlen("MemTotal:");
        while (isspace((unsigned char)*text))
            text++;
        size_t value = 0, digits = 0;
        for (; text[digits] >= '0' && text[digits] <= '9'; digits++)
            value = value * 10 + (size_t)(text[digits] - '0');
        if (digits > 15)
            return -EINVAL;
        if (digits) {
            *memory_kib = (long)value;
            return 0;
        }
    }
    return 0;
}

/* 1: the row has as many numbers as there are nodes. */
static int parse_distances(const char *text, long *row, size_t count) {
    size_t have = 0;
    for (;;) {
        while (isspace((unsigned char)*text))
            text++;
        if (!*text)
            return have == count;
        size_t value;
        if (!take_number(&text, &value))
            return -EINVAL;
        if (have == count)
            return 0;
        row[have++] = (long)value;
    }
}

static int read_node(struct reader *r, int directory, size_t number, bool *complete) {
    struct qct_node *node = &r->out->nodes[number];
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "node%ld/cpumap", node->id);
    int rc = read_mask(r, directory, path, false, r->found);
    if (!rc) {
        snprintf(path, sizeof path, "node%ld/cpulist", node->id);
        rc = read_mask(r, directory, path, true, r->found);
    }
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < r->words; i++)
        r->found[i] = rc ? r->found[i] & r->online[i] : 0;
    rc = new_mask(r->out, r->found, &node->mask);
    if (rc)
        return rc;
    snprintf(path, sizeof path, "node%ld/meminfo", node->id);
    rc = read_text(r, directory, path);
    if (rc > 0)
        rc = total_kib(r->text, &node->memory_kib);
    if (rc < 0 || !*complete)
        return rc;
    snprintf(path, sizeof path, "node%ld/distance", node->id);
    rc = read_text(r, directory, path);
    if (rc > 0)
        rc = parse_distances(r->text, r->out->distances + number * r->out->node_count, r->out->node_count);
    *complete = rc > 0;
    return rc < 0 ? rc : 0;
}

static int read_nodes(struct reader *r) {
    struct qct_topology *out = r->out;
    int fd = openat(r->root, "sys/devices/system/node", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return is_fatal(errno) ? -errno : 0;
    DIR *directory = fdopendir(fd);
    if (!directory) {
        close(fd);
        return -ENOMEM;
    }
    int rc = list_nodes(out, directory);
    bool complete = out->node_count > 1;
    if (!rc && complete) {
        out->distances = calloc(out->node_count * out->node_count, sizeof *out->distances);
        rc = out->distances ? 0 : -ENOMEM;
    }
    for (size_t i = 0; i < out->node_count && !rc; i++)
        rc = read_node(r, fd, i, &complete);
    closedir(directory);
    if (!complete) {
        free(out->distances);
        out->distances = NULL;
    }
    return rc;
}

/* ---- all of it ---- */

static int read_all(struct reader *r) {
    struct level core = {
        QCT_CORE, "topology/core_id", {"core_cpus", "core_cpus_list", "thread_siblings", "thread_siblings_list"}, 0};
    struct level cluster = {QCT_CLUSTER, "topology/cluster_id", {"cluster_cpus", "cluster_cpus_list"}, 0};
    struct level die = {QCT_DIE, "topology/die_id", {"die_cpus", "die_cpus_list"}, 0};
    struct level package = {QCT_PACKAGE,
                            "topology/physical_package_id",
                            {"package_cpus", "package_cpus_list", "core_siblings", "core_siblings_list"},
                            0};
    int rc = read_groups(r, &core);
    if (!rc)
        rc = read_optional_groups(r, &cluster);
    if (!rc)
        rc = read_optional_groups(r, &die);
    if (!rc)
        rc = read_groups(r, &package);
    if (!rc)
        rc = read_speeds(r);
    if (!rc)
        rc = read_caches(r);
    return rc ? rc : read_nodes(r);
}

int qct_topology_read(int root, const unsigned long *online, size_t words, struct qct_topology **topology) {
    struct reader *r = calloc(1, sizeof *r);
    struct qct_topology *out = calloc(1, sizeof *out);
    unsigned long *scratch = calloc((MOST_CACHES + 2) * words, sizeof *scratch);
    int rc = -ENOMEM;
    if (r && out && scratch) {
        r->root = root;
        r->online = online;
        r->words = out->words = words;
        r->out = out;
        r->left = scratch;
        r->found = scratch + words;
        r->described = scratch + 2 * words;
        r->cpus = openat(root, "sys/devices/system/cpu", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        rc = r->cpus < 0 && is_fatal(errno) ? -errno : read_all(r);
        if (r->cpus >= 0)
            close(r->cpus);
    }
    free(scratch);
    if (r)
        free(r->doubtful);
    free(r);
    if (rc)
        qct_topology_free(out);
    else
        *topology = out;
    return rc;
}

void qct_topology_free(struct qct_topology *topology) {
    if (!topology)
        return;
    for (int level = 0; level < QCT_LEVELS; level++)
        free(topology->groups[level]);
    free(topology->masks);
    free(topology->speeds);
    free(topology->caches);
    free(topology->nodes);
    free(topology->distances);
    free(topology);
}
