/* What a thread does before and after its part of a kernel: `before = begin_task(); ...; end_task(before);` */

/* Linux wakes a thread beside the one that woke it while the other processors seem busy, and there the two take turns, for
 * seconds at times. So a thread of the team that finds itself on the caller's processor asks for any other, and then for all
 * of them again. Several teams at once may mislead one another; that costs them a few microseconds. */
#if defined(__linux__) && defined(_OPENMP) && defined(_GNU_SOURCE)
#include <omp.h>
#include <pthread.h>
#include <sched.h>
static int callers_processor = -1;
INLINE void leave_caller(void) {
    const int here = sched_getcpu();
    cpu_set_t all, others;
    if (omp_get_thread_num() == 0) {
        __atomic_store_n(&callers_processor, here, __ATOMIC_RELAXED);
        return;
    }
    if (here < 0 || here != __atomic_load_n(&callers_processor, __ATOMIC_RELAXED)) return;
    if (pthread_getaffinity_np(pthread_self(), sizeof all, &all) || CPU_COUNT(&all) < omp_get_num_threads()) return;
    others = all;
    CPU_CLR(here, &others);
    if (!pthread_setaffinity_np(pthread_self(), sizeof others, &others)) pthread_setaffinity_np(pthread_self(), sizeof all, &all);
}
#else
INLINE void leave_caller(void) {}
#endif
#if defined(_MSC_VER)
#include <intrin.h>
#endif

/* Tasks 0 to n - 1 in a share for each thread: `take` gives a thread the next one of its own share, and then of the others'.
 * So a thread gets the same tasks call after call, whose memory its core may still hold, and none waits while there is work. */
#define SHARES 64
typedef struct {
    ptrdiff_t next, end;
    char rest_of_line[48];
} share;
INLINE void make_shares(share *shares, int threads, ptrdiff_t n) {
    const int count = threads < SHARES ? threads : SHARES;
    for (int i = 0; i < count; i++) {
        shares[i].next = n * i / count;
        shares[i].end = n * (i + 1) / count;
    }
}
INLINE ptrdiff_t next_of(share *s) {
#if defined(__GNUC__)
    if (__atomic_load_n(&s->next, __ATOMIC_RELAXED) >= s->end) return s->end;
    return __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
#elif defined(_MSC_VER)
    return (ptrdiff_t)_InterlockedExchangeAdd64((volatile __int64 *)&s->next, 1);
#else
    return s->next++; /* without OpenMP's threads */
#endif
}
INLINE ptrdiff_t take(share *shares, int threads, int thread) {
    const int count = threads < SHARES ? threads : SHARES;
    for (int i = 0; i < count; i++) {
        share *s = shares + (thread + i) % count;
        const ptrdiff_t task = next_of(s);
        if (task < s->end) return task;
    }
    return -1; /* asked more than n times */
}

/* Numbers below the normal range count as zero while the kernels run: they would cost a hundred times as much. */
#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
INLINE unsigned int begin_task(void) {
    const unsigned int before = _mm_getcsr();
    leave_caller();
    _mm_setcsr(before | 0x8040); /* FTZ and DAZ */
    return before;
}
INLINE void end_task(unsigned int before) {
    _mm_setcsr(before);
    _mm_sfence(); /* what was streamed past the caches is there for whoever waits for this task */
}
#elif defined(__aarch64__) && defined(__GNUC__)
INLINE unsigned int begin_task(void) {
    unsigned long before;
    leave_caller();
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(before | 1ul << 24)); /* FZ */
    return (unsigned int)before;
}
INLINE void end_task(unsigned int before) { __asm__ volatile("msr fpcr, %0" ::"r"((unsigned long)before)); }
#else
INLINE unsigned int begin_task(void) {
    leave_caller();
    return 0;
}
INLINE void end_task(unsigned int before) { (void)before; }
#endif
