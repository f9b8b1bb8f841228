/* What this processor and this operating system can do, and how many threads OpenMP would use. */
#ifdef _OPENMP
#include <omp.h>
#define HAS_OPENMP 1
#else
#define HAS_OPENMP 0
static int omp_get_max_threads(void) { return 1; }
#endif

/* __builtin_cpu_supports also asks whether the system saves the wide registers. */
static int level_supported(int level) {
#if (defined(__x86_64__) || defined(_M_X64)) && defined(__GNUC__)
    __builtin_cpu_init();
    if (level == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (level == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
#elif defined(_M_X64)
    extern int __stdcall IsProcessorFeaturePresent(unsigned long);
    if (level == 1) return IsProcessorFeaturePresent(40); /* PF_AVX2_INSTRUCTIONS_AVAILABLE */
    if (level == 2) return IsProcessorFeaturePresent(41); /* PF_AVX512F_INSTRUCTIONS_AVAILABLE */
#endif
    return level == 0;
}
