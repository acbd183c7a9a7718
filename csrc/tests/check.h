/* What each test of the C core for POSIX systems begins with: qct.h, and CHECK, which prints the check that fails. */
#ifndef QCT_TESTS_CHECK_H
#define QCT_TESTS_CHECK_H
#define _GNU_SOURCE
#include "../qct.h"

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
