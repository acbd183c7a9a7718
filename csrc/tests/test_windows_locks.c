/*
 * Tests, on Windows or under Wine, of what the book of leases relies on there (host/windows_locks.py,
 * windows_folder.py): no code of ours but the way it asks. Without a C library; says the failing check on stderr.
 * Started by itself with a name, it is the process that holds a mutex and a file of this name until it is ended.
 */
#include "check_windows.h"

#define LIMIT_MS 60000
#define SHARE_BUT_FOR_DELETION (FILE_SHARE_READ | FILE_SHARE_WRITE) /* as the C library's open() does */
#define WITHOUT_LINKS (FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT)

static char folder[MAX_PATH], moved[MAX_PATH], file[MAX_PATH]; /* the last as "C:\...\qct1234.tmp\held" */
static char mutex[MAX_PATH] = "Global\\", event[MAX_PATH] = "Global\\";

static void name_everything(const char *path) {
    const char *name = path;
    for (const char *at = path; *at; at++)
        if (*at == '\\')
            name = at + 1;
    lstrcpyA(folder, path);
    lstrcatA(lstrcpyA(moved, path), "-moved");
    lstrcatA(lstrcpyA(file, path), "\\held");
    lstrcatA(mutex, name);
    lstrcatA(lstrcatA(event, name), "-ready");
}

/* A handle on a new mutex, or NULL where it exists. */
static HANDLE try_lock(SECURITY_ATTRIBUTES *inheritable) {
    SetLastError(0);
    HANDLE made = CreateMutexA(inheritable, FALSE, mutex);
    CHECK(made);
    if (GetLastError() != ERROR_ALREADY_EXISTS)
        return made;
    CHECK(CloseHandle(made));
    return NULL;
}

static HANDLE hold_file(void) {
    return CreateFileA(file, GENERIC_READ | GENERIC_WRITE, SHARE_BUT_FOR_DELETION, NULL, CREATE_NEW, 0, NULL);
}

static bool is_held(void) {
    if (DeleteFileA(file))
        return false;
    CHECK(GetLastError() == ERROR_SHARING_VIOLATION);
    return true;
}

static PROCESS_INFORMATION start(const char *name, bool inherit) {
    STARTUPINFOA startup = {.cb = sizeof startup};
    PROCESS_INFORMATION child;
    char program[MAX_PATH], command[2 * MAX_PATH + 8];
    CHECK(GetModuleFileNameA(NULL, program, sizeof program));
    lstrcatA(lstrcatA(lstrcatA(lstrcpyA(command, "\""), program), "\" "), name);
    CHECK(CreateProcessA(NULL, command, NULL, NULL, inherit, 0, NULL, NULL, &startup, &child));
    CloseHandle(child.hThread);
    return child;
}

static void kill(PROCESS_INFORMATION child) {
    CHECK(TerminateProcess(child.hProcess, 9));
    CHECK(WaitForSingleObject(child.hProcess, LIMIT_MS) == WAIT_OBJECT_0);
    CloseHandle(child.hProcess);
}

static void test_what_a_killed_process_held_is_free(HANDLE ready) {
    PROCESS_INFORMATION child = start(folder, false);
    CHECK(WaitForSingleObject(ready, LIMIT_MS) == WAIT_OBJECT_0);
    CHECK(!try_lock(NULL));
    CHECK(is_held());
    kill(child);
    HANDLE lock = try_lock(NULL);
    CHECK(lock);
    CHECK(!is_held());
    CHECK(!try_lock(NULL)); /* nor does the same process get it twice */
    CHECK(CloseHandle(lock));
}

static void test_a_child_keeps_what_it_inherits(void) {
    SECURITY_ATTRIBUTES inheritable = {.nLength = sizeof inheritable, .bInheritHandle = TRUE};
    HANDLE lock = try_lock(&inheritable);
    CHECK(lock);
    PROCESS_INFORMATION child = start("sleep", true);
    CHECK(CloseHandle(lock));
    CHECK(!try_lock(NULL));
    kill(child);
    CHECK((lock = try_lock(NULL)));
    CHECK(CloseHandle(lock));
}

static void test_what_is_read_can_be_removed(void) {
    CHECK(CloseHandle(hold_file()));
    HANDLE reader =
        CreateFileA(file, GENERIC_READ, SHARE_BUT_FOR_DELETION | FILE_SHARE_DELETE, NULL, OPEN_EXISTING, 0, NULL);
    CHECK(reader != INVALID_HANDLE_VALUE);
    CHECK(!is_held());
    CHECK(CloseHandle(reader));
    CHECK(GetFileAttributesA(file) == INVALID_FILE_ATTRIBUTES);
}

static void test_an_open_directory_stays(void) {
    HANDLE open = CreateFileA(folder, GENERIC_READ, SHARE_BUT_FOR_DELETION, NULL, OPEN_EXISTING, WITHOUT_LINKS, NULL);
    CHECK(open != INVALID_HANDLE_VALUE);
    CHECK(!RemoveDirectoryA(folder) && GetLastError() == ERROR_SHARING_VIOLATION);
    CHECK(!MoveFileA(folder, moved));
    CHECK(CloseHandle(open));
    CHECK(RemoveDirectoryA(folder));
}

static void hold(void) {
    HANDLE ready = OpenEventA(EVENT_MODIFY_STATE, FALSE, event);
    CHECK(ready && try_lock(NULL) && hold_file() != INVALID_HANDLE_VALUE);
    CHECK(SetEvent(ready));
}

static const char *argument(void) {
    const char *at = GetCommandLineA(), *last = NULL;
    for (bool quoted = false; *at; at++) {
        if (*at == '"')
            quoted = !quoted;
        else if (*at == ' ' && !quoted)
            last = at + 1;
    }
    return last && *last ? last : NULL;
}

/* Where a program begins that has no C library. */
void mainCRTStartup(void);
void mainCRTStartup(void) {
    char temporary[MAX_PATH], made[MAX_PATH];
    const char *given = argument();
    if (given) {
        name_everything(given);
        if (lstrcmpA(given, "sleep") != 0)
            hold();
        Sleep(LIMIT_MS);
        ExitProcess(1);
    }
    CHECK(GetTempPathA(sizeof temporary, temporary) && GetTempFileNameA(temporary, "qct", 0, made));
    CHECK(DeleteFileA(made) && CreateDirectoryA(made, NULL));
    name_everything(made);
    HANDLE ready = CreateEventA(NULL, TRUE, FALSE, event);
    CHECK(ready);
    test_what_a_killed_process_held_is_free(ready);
    test_a_child_keeps_what_it_inherits();
    test_what_is_read_can_be_removed();
    test_an_open_directory_stays();
    ExitProcess(0);
}
