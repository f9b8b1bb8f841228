/* What Cython sees of C: the vector type, the register tile and the small transforms, once for float and once for double.
 *
 * The compilation's flags decide the instruction set; setup.py compiles the Cython modules once for each. */
#ifndef FASTCONV_KERNELS_H
#define FASTCONV_KERNELS_H
#include <math.h>
#include <stddef.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline, unused))
#define UNROLL _Pragma("GCC unroll 64")
#define ROLLED _Pragma("GCC unroll 1")
#define PRAGMA_UNROLL_K _Pragma("GCC unroll 4")
#define in_a_register(number) __asm__("" : "+r"(number))
#define prefetch(p) __builtin_prefetch(p)
#define prefetch_low(p) __builtin_prefetch(p, 0, 2) /* into the second-level cache */
#if defined(__AVX2__) /* whose processors know the instruction, though GCC's levels do not name it */
#define prefetch_to_write(p) __asm__ volatile("prefetchw %0" ::"m"(*(const char *)(p)))
#else
#define prefetch_to_write(p) __builtin_prefetch(p, 1)
#endif
#else
#define INLINE static __inline
#define UNROLL
#define ROLLED
#define PRAGMA_UNROLL_K
#define in_a_register(number) ((void)0)
#define prefetch(p) ((void)0)
#define prefetch_low(p) ((void)0)
#define prefetch_to_write(p) ((void)0)
#endif

/* Calls every cache line of a stretch of memory, which seldom begins with one, into the second-level cache. */
#define CACHE_LINE 64
INLINE void fetch_lines(const void *p, ptrdiff_t bytes) {
    const char *line = (const char *)p - (size_t)p % CACHE_LINE;
    for (; line < (const char *)p + bytes; line += CACHE_LINE) prefetch_low(line);
}

/* MR rows of two vectors fill the registers: 28 + 2 + 1 of 32, 12 + 2 + 1 of 16. */
#define TILE_ROWS_6(X) X(1) X(2) X(3) X(4) X(5) X(6)
#if defined(__AVX512F__)
#include <immintrin.h>
#define VECTOR_BYTES 64
#define MR 14
#define EACH_MR(X) TILE_ROWS_6(X) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#elif defined(__AVX2__)
#include <immintrin.h>
#define VECTOR_BYTES 32
#define MR 6
#define EACH_MR TILE_ROWS_6
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define MR 12
#define EACH_MR(X) TILE_ROWS_6(X) X(7) X(8) X(9) X(10) X(11) X(12)
#else
#define VECTOR_BYTES 16
#define MR 6
#define EACH_MR TILE_ROWS_6
#endif

#if defined(__AVX512F__)
#define PART_OF_B 1 /* a tile reads no more of B than the columns that it has: B may end there */
#else
#define PART_OF_B 0
#endif

/* A tile of sums of products along rows: 24 + 4 + 1 registers of 32, 12 + 3 + 1 of 16. */
#define DOT_TILES_4(X) X(1) X(2) X(3) X(4)
#if defined(__AVX512F__) || defined(__aarch64__)
#define DOT_ROWS 4
#define DOT_COLS 6
#define EACH_DOT(X) DOT_TILES_4(X) X(5) X(6)
#define EACH_FEW DOT_TILES_4
#else
#define DOT_ROWS 3
#define DOT_COLS 4
#define EACH_DOT DOT_TILES_4
#define EACH_FEW(X) X(1) X(2) X(3)
#endif

#include "task.h"

/* n numbers at `at`, or n zeros if it is negative, that go to `to`: see pack_pieces in simd.h */
typedef struct {
    ptrdiff_t to, at, n;
} piece;

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define CAT(name) JOIN(name, SUFFIX)
#define VEC CAT(vec)
#define VL ((int)(VECTOR_BYTES / sizeof(REAL)))
#define NR (2 * VL)

/* (a0, b0, a1, b1, ...) from the lower and from the upper halves of two vectors; (a0, a2, ..., b0, b2, ...) */
#define LOW_4 0, 4, 1, 5
#define HIGH_4 2, 6, 3, 7
#define LOW_2 0, 2
#define HIGH_2 1, 3
#define LOW_8 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
#define LOW_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

#define EVEN_2 0, 2
#define EVEN_4 0, 2, 4, 6
#define EVEN_8 0, 2, 4, 6, 8, 10, 12, 14
#define EVEN_16 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30

/* a0, b0, a1, b1 within each 128 bits of two vectors, and a2, b2, a3, b3, which is quicker than across them; then the even and the
 * odd of these 128 bits, first a's. */
#define NEAR_LOW_f32_4 LOW_4
#define NEAR_HIGH_f32_4 HIGH_4
#define NEAR_LOW_f32_8 0, 8, 1, 9, 4, 12, 5, 13
#define NEAR_HIGH_f32_8 2, 10, 3, 11, 6, 14, 7, 15
#define NEAR_LOW_f32_16 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define NEAR_HIGH_f32_16 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define NEAR_LOW_f64_2 LOW_2
#define NEAR_HIGH_f64_2 HIGH_2
#define NEAR_LOW_f64_4 0, 4, 2, 6
#define NEAR_HIGH_f64_4 1, 5, 3, 7
#define NEAR_LOW_f64_8 0, 8, 2, 10, 4, 12, 6, 14
#define NEAR_HIGH_f64_8 1, 9, 3, 11, 5, 13, 7, 15
#define FAR_EVEN_f32_4 LOW_4 /* there is one of them */
#define FAR_ODD_f32_4 HIGH_4
#define FAR_EVEN_f32_8 0, 1, 2, 3, 8, 9, 10, 11
#define FAR_ODD_f32_8 4, 5, 6, 7, 12, 13, 14, 15
#define FAR_EVEN_f32_16 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define FAR_ODD_f32_16 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define FAR_EVEN_f64_2 LOW_2
#define FAR_ODD_f64_2 HIGH_2
#define FAR_EVEN_f64_4 0, 1, 4, 5
#define FAR_ODD_f64_4 2, 3, 6, 7
#define FAR_EVEN_f64_8 0, 1, 4, 5, 8, 9, 12, 13
#define FAR_ODD_f64_8 2, 3, 6, 7, 10, 11, 14, 15

#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, JOIN(LOW_, LANES))
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, JOIN(HIGH_, LANES))
#define EVEN(a, b) __builtin_shufflevector(a, b, JOIN(EVEN_, LANES))
#define NEAR_LOW(a, b) __builtin_shufflevector(a, b, JOIN(CAT(NEAR_LOW), JOIN(_, LANES)))
#define NEAR_HIGH(a, b) __builtin_shufflevector(a, b, JOIN(CAT(NEAR_HIGH), JOIN(_, LANES)))
#define FAR_EVEN(a, b) __builtin_shufflevector(a, b, JOIN(CAT(FAR_EVEN), JOIN(_, LANES)))
#define FAR_ODD(a, b) __builtin_shufflevector(a, b, JOIN(CAT(FAR_ODD), JOIN(_, LANES)))

#define REAL float
#define SUFFIX _f32
#if VECTOR_BYTES == 64
#define LANES 16
#elif VECTOR_BYTES == 32
#define LANES 8
#else
#define LANES 4
#endif
#include "simd.h"
#include "tile.h"
#include "winograd.h"
#undef REAL
#undef SUFFIX
#undef LANES

#define REAL double
#define SUFFIX _f64
#if VECTOR_BYTES == 64
#define LANES 8
#elif VECTOR_BYTES == 32
#define LANES 4
#else
#define LANES 2
#endif
#include "simd.h"
#include "tile.h"
#include "winograd.h"
#undef REAL
#undef SUFFIX
#undef LANES

typedef struct {
    const tiles_f32 *f32;
    const tiles_f64 *f64;
} tile_addresses;
static inline void set_tiles(const tile_addresses *at) {
    the_tiles_f32 = at->f32;
    the_tiles_f64 = at->f64;
}
#endif
