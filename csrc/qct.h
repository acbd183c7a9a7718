/*
 * Everything the native core offers. Plain C11: no Python, no policy, no global state, no output.
 *
 * Every function returns 0 or a negative errno and may be called from any thread. The caller owns every buffer; nothing
 * is kept after a call. A mask is an array of `words` unsigned longs, as the kernel counts them: CPU n is bit
 * n % QCT_WORD_BITS of word n / QCT_WORD_BITS. A thread or process id of 0 is the calling thread's or process's.
 */
#ifndef QCT_H
#define QCT_H

#include <limits.h>
#include <stddef.h>

#define QCT_WORD_BITS (CHAR_BIT * sizeof(unsigned long))

/* Store in *words how many words the kernel's masks have here. */
int qct_affinity_words(size_t *words);

/* Read the mask of thread tid. -EINVAL: the kernel's masks are wider than `words`; -ESRCH: the thread has ended. */
int qct_affinity_get(int tid, unsigned long *mask, size_t words);

/*
 * Bind thread tid to `asked`, then read back into `got` what the kernel made of it; both have `words` words.
 * The kernel drops CPUs that are absent or not allowed without a word; -EINVAL when none would be left.
 */
int qct_affinity_set(int tid, const unsigned long *asked, unsigned long *got, size_t words);

/*
 * Bind all threads of process pid to `asked`, also those started meanwhile; `got` becomes the union of their masks.
 * -ESRCH: the process has ended, or ended meanwhile.
 */
int qct_affinity_set_process(int pid, const unsigned long *asked, unsigned long *got, size_t words);

#endif
