/* Tests of linux_files.c against flock(2) by other open files, stat(2) and readdir(3); prints the failing check. */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define COUNT 3
#define MANY 700 /* more than are listed at once */

static int folder;

static int is_locked(const char *name) {
    int other = openat(folder, name, O_RDONLY), locked;
    CHECK(other >= 0);
    locked = flock(other, LOCK_EX | LOCK_NB) != 0;
    CHECK(!locked || errno == EAGAIN);
    CHECK(close(other) == 0);
    return locked;
}

static void test_all_or_none_are_locked(void) {
    const char *names[COUNT] = {"a", "b", "c"};
    int files[COUNT], others[COUNT];
    size_t locked = 9;
    for (int i = 0; i < COUNT; i++) {
        files[i] = openat(folder, names[i], O_RDONLY | O_CREAT, 0600);
        others[i] = openat(folder, names[i], O_RDONLY);
        CHECK(files[i] >= 0 && others[i] >= 0);
    }
    CHECK(qct_files_lock(files, 0, &locked) == 0 && locked == 0);
    CHECK(qct_files_lock(files, COUNT, &locked) == 0 && locked == COUNT);
    CHECK(is_locked("a") && is_locked("b") && is_locked("c"));
    CHECK(qct_files_lock(files, COUNT, &locked) == 0); /* what is its own already */
    CHECK(qct_files_unlock(files, 2) == 0);
    CHECK(!is_locked("a") && !is_locked("b") && is_locked("c"));
    CHECK(qct_files_unlock(files, COUNT) == 0 && !is_locked("c"));
    CHECK(flock(others[1], LOCK_EX | LOCK_NB) == 0);
    CHECK(qct_files_lock(files, COUNT, &locked) == -EAGAIN && locked == 1);
    CHECK(!is_locked("a") && is_locked("b") && !is_locked("c"));
    CHECK(flock(others[1], LOCK_UN) == 0);
    CHECK(close(files[2]) == 0);
    CHECK(qct_files_lock(files, COUNT, &locked) == -EBADF && locked == 2);
    CHECK(!is_locked("a") && !is_locked("b"));
    CHECK(qct_files_unlock(files, COUNT) == -EBADF);
    for (int i = 0; i < COUNT; i++) {
        CHECK(close(others[i]) == 0 && unlinkat(folder, names[i], 0) == 0);
        CHECK(i == 2 || close(files[i]) == 0);
    }
}

static void test_a_file_is_held_until_it_is_gone(void) {
    char text[8] = "";
    struct stat found;
    int one = -1, two = -1, none = -1;
    umask(0);
    CHECK(qct_file_hold(folder, "one", "told", 4, 0, &one) == 0);
    CHECK(is_locked("one"));
    CHECK(pread(one, text, sizeof text, 0) == 4 && strcmp(text, "told") == 0);
    CHECK(fcntl(one, F_GETFD) == FD_CLOEXEC);
    CHECK(fstatat(folder, "one", &found, 0) == 0 && (found.st_mode & 07777) == 0600);
    CHECK(qct_file_hold(folder, "two", "told", 4, 1, &two) == 0);
    CHECK(fstatat(folder, "two", &found, 0) == 0 && (found.st_mode & 07777) == 0644);
    CHECK(qct_file_hold(folder, "one", "other", 5, 0, &none) == -EEXIST && none == -1);
    CHECK(pread(one, text, sizeof text, 0) == 4 && is_locked("one"));
    CHECK(symlinkat("one", folder, "link") == 0);
    CHECK(qct_file_hold(folder, "link", "other", 5, 0, &none) == -EEXIST && none == -1);
    CHECK(qct_file_end(folder, "one", one) == 0);
    CHECK(fstatat(folder, "one", &found, 0) != 0 && errno == ENOENT);
    CHECK(fcntl(one, F_GETFD) == -1);
    CHECK(unlinkat(folder, "two", 0) == 0);
    CHECK(qct_file_end(folder, "two", two) == -ENOENT);
    CHECK(fcntl(two, F_GETFD) == -1);
    CHECK(unlinkat(folder, "link", 0) == 0);
}

static void test_nothing_is_left_of_what_does_not_fit(void) {
    struct stat found;
    struct rlimit before, short_of;
    int none = -1;
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    short_of = before;
    short_of.rlim_cur = 3;
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    CHECK(setrlimit(RLIMIT_FSIZE, &short_of) == 0);
    CHECK(qct_file_hold(folder, "long", "told", 4, 0, &none) == -ENOSPC && none == -1);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(fstatat(folder, "long", &found, 0) != 0 && errno == ENOENT);
}

static void test_names(void) {
    static char names[MANY * 256];
    char name[256];
    size_t size = 9, count = 0;
    CHECK(qct_folder_names(folder, names, sizeof names, &size) == 0 && size == 0);
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "%0*d", i % 200 + 4, i);
        int made = openat(folder, name, O_RDONLY | O_CREAT, 0600);
        CHECK(made >= 0 && close(made) == 0);
    }
    CHECK(qct_folder_names(folder, names, sizeof names, &size) == 0);
    for (const char *at = names; at < names + size; at += strlen(at) + 1, count++)
        CHECK(faccessat(folder, at, F_OK, 0) == 0);
    CHECK(count == MANY);
    CHECK(qct_folder_names(folder, names, size - 1, &size) == -ERANGE);
    int again = openat(folder, ".", O_RDONLY | O_DIRECTORY);
    DIR *listed = fdopendir(again);
    CHECK(listed);
    for (const struct dirent *entry; (entry = readdir(listed));)
        CHECK(*entry->d_name == '.' || unlinkat(folder, entry->d_name, 0) == 0);
    CHECK(closedir(listed) == 0);
    CHECK(qct_folder_names(folder, names, sizeof names, &size) == 0 && size == 0);
}

static void test_what_was_removed(const char *path) {
    char name[1];
    size_t size = 9;
    unsigned long links = 9;
    CHECK(qct_folder_links(folder, &links) == 0 && links > 0);
    CHECK(rmdir(path) == 0);
    CHECK(qct_folder_links(folder, &links) == 0 && links == 0);
    CHECK(qct_folder_names(folder, name, sizeof name, &size) == 0 && size == 0);
    CHECK(close(folder) == 0);
    CHECK(qct_folder_links(folder, &links) == -EBADF);
    CHECK(qct_folder_names(folder, name, sizeof name, &size) == -EBADF);
}

int main(int count, char **arguments) {
    char path[4096];
    CHECK(count == 2);
    snprintf(path, sizeof path, "%s/folder", arguments[1]);
    CHECK(mkdir(path, 0700) == 0);
    folder = open(path, O_RDONLY | O_DIRECTORY);
    CHECK(folder >= 0);
    test_all_or_none_are_locked();
    test_a_file_is_held_until_it_is_gone();
    test_nothing_is_left_of_what_does_not_fit();
    test_names();
    test_what_was_removed(path);
    return 0;
}
