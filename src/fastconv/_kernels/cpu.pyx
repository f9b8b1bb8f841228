"""What this processor can do."""


cdef extern from "cpu.h":
    int HAS_OPENMP
    int omp_get_max_threads() nogil
    int level_supported(int level) nogil


def has_openmp():
    return bool(HAS_OPENMP)


def openmp_threads():
    """What OpenMP would use now; OMP_NUM_THREADS and threadpoolctl change it."""
    return omp_get_max_threads()


def supports(int level):
    """Whether processor and system run level 0 (baseline, NEON), 1 (x86-64-v3: AVX2) or 2 (x86-64-v4: AVX-512)."""
    return bool(level_supported(level))
