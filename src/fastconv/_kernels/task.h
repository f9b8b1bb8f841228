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
