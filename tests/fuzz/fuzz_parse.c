/*
 * libFuzzer target for one of the parsers of csrc/linux_topology.c, named by -DPARSE: an answer or -EINVAL on any text,
 * nothing written beyond the mask, and a wider mask begins with what a narrower one gets.
 */
#include "../../csrc/qct.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_WORDS 4

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1); /* of just this size: a byte beyond is a report */
    unsigned long *wide = malloc(MOST_WORDS * sizeof *wide);
    if (!text || !wide)
        abort();
    memcpy(text, data, size);
    text[size] = '\0';
    int rc = PARSE(text, wide, MOST_WORDS);
    if (rc != 0 && rc != -EINVAL)
        abort();
    for (size_t words = 0; words < MOST_WORDS; words++) {
        unsigned long *mask = malloc((words ? words : 1) * sizeof *mask);
        if (!mask || PARSE(text, mask, words) != rc)
            abort();
        if (rc == 0 && memcmp(mask, wide, words * sizeof *mask) != 0)
            abort();
        free(mask);
    }
    free(wide);
    free(text);
    return 0;
}
