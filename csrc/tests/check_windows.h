/* The same as check.h without a C library, which takes minutes to cross-compile for Windows. */
#ifndef QCT_TESTS_CHECK_WINDOWS_H
#define QCT_TESTS_CHECK_WINDOWS_H
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <stdbool.h>

#define TEXT_OF(number) #number
#define CHECK_AT(line, condition)                                                                                      \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            static const char message[] = __FILE__ ":" TEXT_OF(line) ": " #condition "\n";                             \
            say(STD_ERROR_HANDLE, message, sizeof message - 1);                                                        \
            ExitProcess(1);                                                                                            \
        }                                                                                                              \
    } while (0)
#define CHECK(condition) CHECK_AT(__LINE__, condition)

static inline bool say(DWORD where, const void *bytes, size_t size) {
    DWORD written;
    return WriteFile(GetStdHandle(where), bytes, (DWORD)size, &written, NULL) && written == size;
}

#endif
