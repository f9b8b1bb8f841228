/* Aligned memory; large pieces on huge pages where the system has them for the asking. */
#include <stdlib.h>
#define ALIGNMENT 64
#define HUGE_PAGE ((size_t)2 << 20)
#if defined(_WIN32)
#include <malloc.h>
static void *aligned_new(size_t bytes) { return _aligned_malloc(bytes, ALIGNMENT); }
static void aligned_delete(void *p) { _aligned_free(p); }
#else
#if defined(__linux__)
#include <sys/mman.h>
#endif
static void *aligned_new(size_t bytes) {
    void *p = NULL;
    const int huge = bytes >= 2 * HUGE_PAGE;
    if (posix_memalign(&p, huge ? HUGE_PAGE : ALIGNMENT, bytes)) return NULL;
#if defined(MADV_HUGEPAGE)
    if (huge) madvise(p, bytes, MADV_HUGEPAGE); /* advice: a refusal costs only time */
#endif
    return p;
}
static void aligned_delete(void *p) { free(p); }
#endif
