/* One vector type for every instruction set, for the type REAL (float or double), with the tile sizes that go with it.
 *
 * GCC and Clang lower the vector extensions to whatever the compilation's flags allow; other compilers get the same names
 * as plain loops over four numbers. This header is read once for each REAL, see kernels.h. */

#undef EACH_LANE
#if defined(__GNUC__)
typedef REAL VEC __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL CAT(vec_unaligned) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
INLINE VEC CAT(load)(const REAL *p) { return *(const CAT(vec_unaligned) *)p; }
INLINE void CAT(store)(REAL *p, VEC v) { *(CAT(vec_unaligned) *)p = v; }
INLINE VEC CAT(splat)(REAL s) { return s - (VEC){0}; }
INLINE VEC CAT(add)(VEC a, VEC b) { return a + b; }
INLINE VEC CAT(sub)(VEC a, VEC b) { return a - b; }
INLINE VEC CAT(mul)(VEC a, VEC b) { return a * b; }
INLINE VEC CAT(fma)(VEC a, VEC b, VEC c) { return a * b + c; } /* contracted to one rounding where the processor has it */
INLINE VEC CAT(at_least)(VEC least, VEC v) { /* keeps NaN, which is not below it */
#if defined(__AVX512F__)
    return sizeof(REAL) == 4 ? (VEC)_mm512_max_ps((__m512)least, (__m512)v) : (VEC)_mm512_max_pd((__m512d)least, (__m512d)v);
#elif defined(__AVX2__)
    return sizeof(REAL) == 4 ? (VEC)_mm256_max_ps((__m256)least, (__m256)v) : (VEC)_mm256_max_pd((__m256d)least, (__m256d)v);
#elif defined(__SSE2__)
    return sizeof(REAL) == 4 ? (VEC)_mm_max_ps((__m128)least, (__m128)v) : (VEC)_mm_max_pd((__m128d)least, (__m128d)v);
#else
    const __typeof__(v < 0) below = v < least;
    return (VEC)((below & (__typeof__(v < 0))least) | (~below & (__typeof__(v < 0))v));
#endif
}
#else
typedef struct { REAL at[VECTOR_BYTES / sizeof(REAL)]; } VEC;
#define EACH_LANE(expression) VEC r; for (int i = 0; i < VL; i++) r.at[i] = (expression); return r
INLINE VEC CAT(load)(const REAL *p) { EACH_LANE(p[i]); }
INLINE void CAT(store)(REAL *p, VEC v) { for (int i = 0; i < VL; i++) p[i] = v.at[i]; }
INLINE VEC CAT(splat)(REAL s) { EACH_LANE(s); }
INLINE VEC CAT(add)(VEC a, VEC b) { EACH_LANE(a.at[i] + b.at[i]); }
INLINE VEC CAT(sub)(VEC a, VEC b) { EACH_LANE(a.at[i] - b.at[i]); }
INLINE VEC CAT(mul)(VEC a, VEC b) { EACH_LANE(a.at[i] * b.at[i]); }
INLINE VEC CAT(fma)(VEC a, VEC b, VEC c) { EACH_LANE(a.at[i] * b.at[i] + c.at[i]); }
INLINE VEC CAT(at_least)(VEC least, VEC v) { EACH_LANE(v.at[i] < least.at[i] ? least.at[i] : v.at[i]); }
#endif

INLINE VEC CAT(relu)(VEC v) { return CAT(at_least)(CAT(splat)(0), v); }

/* The first n numbers, zeros after them; and back. Never touches memory past n. */
INLINE VEC CAT(load_part)(const REAL *p, ptrdiff_t n) {
    if (n >= VL) return CAT(load)(p);
#if defined(__AVX512F__)
    if (sizeof(REAL) == 4) return (VEC)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
    return (VEC)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#else
    REAL whole[VL] = {0};
    for (ptrdiff_t i = 0; i < n; i++) whole[i] = p[i];
    return CAT(load)(whole);
#endif
}
/* The same for 0 < n <= VL without a branch, or a whole vector where that cannot be (PART_OF_B is 0). */
INLINE VEC CAT(load_b)(const REAL *p, ptrdiff_t n) {
#if PART_OF_B
    if (sizeof(REAL) == 4) return (VEC)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
    return (VEC)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#else
    (void)n;
    return CAT(load)(p);
#endif
}
INLINE void CAT(store_part)(REAL *p, VEC v, ptrdiff_t n) {
    if (n >= VL) {
        CAT(store)(p, v);
        return;
    }
#if defined(__AVX512F__)
    if (sizeof(REAL) == 4) _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
    else _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
    REAL whole[VL];
    CAT(store)(whole, v);
    for (ptrdiff_t i = 0; i < n; i++) p[i] = whole[i];
#endif
}

/* The same vector, in a register: else GCC may read it from memory again for each use, though it lies across two cache lines. */
INLINE VEC CAT(once)(VEC v) {
#if defined(__GNUC__) && defined(__AVX512F__)
    __asm__("" : "+v"(v));
#elif defined(__GNUC__) && defined(__SSE2__)
    __asm__("" : "+x"(v));
#endif
    return v;
}

/* Past the caches: for results so large that nobody finds them there again. p is a multiple of the vector's size. */
INLINE void CAT(stream)(REAL *p, VEC v) {
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i *)p, (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i *)p, (__m256i)v);
#elif defined(__SSE2__)
    _mm_stream_si128((__m128i *)p, (__m128i)v);
#else
    CAT(store)(p, v);
#endif
}

/* A block turned over: dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < cols, both at most VL.
 * Squares of 128 bits a side first, where each round interleaves row i of a square with row i + SIDE/2, so that after them number i
 * of row j has become number j of row i; then whole 128 bits change places in the same way, row by row of the squares. */
INLINE void CAT(transpose_block)(REAL *dst, ptrdiff_t dst_stride, const REAL *src, ptrdiff_t src_stride, ptrdiff_t rows,
                                 ptrdiff_t cols) {
#if defined(__GNUC__)
    enum { SIDE = 16 / sizeof(REAL) };
    VEC a[VL], b[VL];
    if (VL > 4) { /* else GCC keeps an address for every row, in memory where they are many */
        in_a_register(src_stride);
        in_a_register(dst_stride);
    }
    UNROLL for (int i = 0; i < VL; i++, src += src_stride) a[i] = i < rows ? CAT(once)(CAT(load_part)(src, cols)) : CAT(splat)(0);
    UNROLL for (int round = 1; round < SIDE; round *= 2) {
        UNROLL for (int i = 0; i < VL; i += 2) {
            const int row = i / SIDE * SIDE + i % SIDE / 2;
            b[i] = NEAR_LOW(a[row], a[row + SIDE / 2]);
            b[i + 1] = NEAR_HIGH(a[row], a[row + SIDE / 2]);
        }
        UNROLL for (int i = 0; i < VL; i++) a[i] = b[i];
    }
    UNROLL for (int round = SIDE; round < VL; round *= 2) {
        UNROLL for (int i = 0; i < VL / 2; i++) {
            const int row = i + i / SIDE * SIDE;
            b[i] = FAR_EVEN(a[row], a[row + SIDE]);
            b[i + VL / 2] = FAR_ODD(a[row], a[row + SIDE]);
        }
        UNROLL for (int i = 0; i < VL; i++) a[i] = b[i];
    }
    UNROLL for (int j = 0; j < VL; j++, dst += dst_stride)
        if (j < cols) CAT(store_part)(dst, a[j], rows);
#else
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) dst[j * dst_stride + i] = src[i * src_stride + j];
#endif
}

/* Four rows turned over, dst[4 * j + i] = src[i * src_stride + j]: woven, they fill their vectors, of a block a quarter. */
INLINE void CAT(weave)(REAL *restrict dst, const REAL *restrict src, ptrdiff_t src_stride, ptrdiff_t cols) {
#if defined(__GNUC__)
    for (ptrdiff_t j = 0; j < cols; j += VL, src += VL, dst += 4 * VL) {
        VEC a[4], b[4];
        UNROLL for (int i = 0; i < 4; i++) a[i] = CAT(load_part)(src + i * src_stride, cols - j);
        UNROLL for (int i = 0; i < 2; i++) {
            b[i] = INTERLEAVE_LOW(a[i], a[i + 2]);
            b[i + 2] = INTERLEAVE_HIGH(a[i], a[i + 2]);
        }
        UNROLL for (int i = 0; i < 4; i++) {
            const ptrdiff_t left = 4 * (cols - j) - i * VL;
            const VEC v = i % 2 ? INTERLEAVE_HIGH(b[i - 1], b[i]) : INTERLEAVE_LOW(b[i], b[i + 1]);
            if (left > 0) CAT(store_part)(dst + i * VL, v, left);
        }
    }
#else
    for (ptrdiff_t j = 0; j < cols; j++)
        for (int i = 0; i < 4; i++) dst[4 * j + i] = src[i * src_stride + j];
#endif
}

/* dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < cols. */
static void CAT(transpose)(REAL *restrict dst, ptrdiff_t dst_stride, const REAL *restrict src, ptrdiff_t src_stride,
                           ptrdiff_t rows, ptrdiff_t cols) {
    if (rows == 4 && dst_stride == 4) {
        CAT(weave)(dst, src, src_stride, cols);
        return;
    }
    for (ptrdiff_t i = 0; i < rows; i += VL) {
        for (ptrdiff_t j = 0; j < cols; j += VL) {
            const ptrdiff_t n_rows = rows - i < VL ? rows - i : VL, n_cols = cols - j < VL ? cols - j : VL;
            REAL *to = dst + j * dst_stride + i;
            const REAL *from = src + i * src_stride + j;
            if (n_rows == VL && n_cols == VL) CAT(transpose_block)(to, dst_stride, from, src_stride, VL, VL);
            else CAT(transpose_block)(to, dst_stride, from, src_stride, n_rows, n_cols);
        }
    }
}

/* Every second of 2n - 1 numbers, n at most VL. */
INLINE VEC CAT(load_even)(const REAL *p, ptrdiff_t n) {
#if defined(__GNUC__)
    const ptrdiff_t above = 2 * n - 1 - VL;
    return EVEN(CAT(load_part)(p, 2 * n - 1), above > 0 ? CAT(load_part)(p + VL, above) : CAT(splat)(0));
#else
    REAL r[VL] = {0};
    for (ptrdiff_t i = 0; i < n; i++) r[i] = p[2 * i];
    return CAT(load)(r);
#endif
}

/* Every fourth of 4 n - 3 numbers, n <= VL, and zeros after them. */
INLINE VEC CAT(load_fourth)(const REAL *p, ptrdiff_t n) {
#if defined(__GNUC__)
    VEC part[4];
    UNROLL for (int i = 0; i < 4; i++) {
        const ptrdiff_t left = 4 * n - 3 - i * VL;
        part[i] = left > 0 ? CAT(load_part)(p + i * VL, left) : CAT(splat)(0);
    }
    return EVEN(EVEN(part[0], part[1]), EVEN(part[2], part[3]));
#else
    REAL r[VL] = {0};
    for (ptrdiff_t i = 0; i < n; i++) r[i] = p[4 * i];
    return CAT(load)(r);
#endif
}

/* a[0], b[0], a[1], b[1], ...: the first n of them, n at most 2 VL. */
INLINE void CAT(store_by_turns)(REAL *p, VEC a, VEC b, ptrdiff_t n) {
#if defined(__GNUC__)
    CAT(store_part)(p, INTERLEAVE_LOW(a, b), n);
    if (n > VL) CAT(store_part)(p + VL, INTERLEAVE_HIGH(a, b), n - VL);
#else
    for (ptrdiff_t i = 0; i < n; i++) p[i] = i % 2 ? b.at[i / 2] : a.at[i / 2];
#endif
}

/* dst[i] = src[i * src_step] for i < n: short runs mostly, for which a call to memcpy would be dear. */
INLINE void CAT(copy)(REAL *restrict dst, const REAL *restrict src, ptrdiff_t n, ptrdiff_t src_step) {
    if (src_step == 2) {
        for (; n >= VL; n -= VL, dst += VL, src += 2 * VL) CAT(store)(dst, CAT(load_even)(src, VL));
        if (n > 0) CAT(store_part)(dst, CAT(load_even)(src, n), n);
        return;
    }
    if (src_step == 4) {
        for (; n >= VL; n -= VL, dst += VL, src += 4 * VL) CAT(store)(dst, CAT(load_fourth)(src, VL));
        if (n > 0) CAT(store_part)(dst, CAT(load_fourth)(src, n), n);
        return;
    }
    if (src_step != 1) {
        for (ptrdiff_t i = 0; i < n; i++) dst[i] = src[i * src_step];
        return;
    }
    for (; n >= VL; n -= VL, dst += VL, src += VL) CAT(store)(dst, CAT(load)(src));
    if (n > 0) CAT(store_part)(dst, CAT(load_part)(src, n), n);
}

/* A whole vector of n <= VL numbers and zeros after them. */
INLINE void CAT(copy_padded)(REAL *dst, const REAL *src, ptrdiff_t n) { CAT(store)(dst, CAT(load_part)(src, n)); }

/* dst[i * step] = src[i] for i < n: the numbers between them stay. */
static void CAT(spread)(REAL *restrict dst, const REAL *restrict src, ptrdiff_t n, ptrdiff_t step) {
    ptrdiff_t i = 0;
    if (step == 1) {
        CAT(copy)(dst, src, n, 1);
        return;
    }
#if defined(__AVX512F__)
    for (; step == 2 && i + VL <= n; i += VL, dst += 2 * VL) {
        const VEC v = CAT(load)(src + i), low = INTERLEAVE_LOW(v, v), high = INTERLEAVE_HIGH(v, v);
        if (sizeof(REAL) == 4) {
            _mm512_mask_storeu_ps(dst, 0x5555, (__m512)low);
            _mm512_mask_storeu_ps(dst + VL, 0x5555, (__m512)high);
        } else {
            _mm512_mask_storeu_pd(dst, 0x55, (__m512d)low);
            _mm512_mask_storeu_pd(dst + VL, 0x55, (__m512d)high);
        }
    }
#endif
    for (; i < n; i++, dst += step) *dst = src[i];
}

/* dst[to + row * row_step + i] = src[at + row * plane + i * step] for i < n <= NR of every piece (to, at, n), row < rows; zeros
 * where at < 0. */
static void CAT(pack_pieces)(REAL *restrict dst, ptrdiff_t row_step, const REAL *restrict src, ptrdiff_t plane, ptrdiff_t rows,
                             const piece *pieces, ptrdiff_t n_pieces, ptrdiff_t step) {
    for (ptrdiff_t row = 0; row < rows; row++, dst += row_step, src += plane) {
        for (const piece *p = pieces; p < pieces + n_pieces; p++) {
            REAL *to = dst + p->to;
            const REAL *from = src + p->at;
            const ptrdiff_t n = p->n;
            if (p->at >= 0 && row + 4 < rows) /* planes lie pages apart: the processor does not guess the next ones */
                fetch_lines(from + 4 * plane, n * step * (ptrdiff_t)sizeof(REAL));
            if (p->at < 0) {
                CAT(store_part)(to, CAT(splat)(0), n);
                if (n > VL) CAT(store_part)(to + VL, CAT(splat)(0), n - VL);
            } else if (step == 1) {
                CAT(store_part)(to, CAT(load_part)(from, n), n);
                if (n > VL) CAT(store_part)(to + VL, CAT(load_part)(from + VL, n - VL), n - VL);
            } else if (step == 2) {
                CAT(store_part)(to, CAT(load_even)(from, n < VL ? n : VL), n);
                if (n > VL) CAT(store_part)(to + VL, CAT(load_even)(from + 2 * VL, n - VL), n - VL);
            } else if (step == 4) {
                CAT(store_part)(to, CAT(load_fourth)(from, n < VL ? n : VL), n);
                if (n > VL) CAT(store_part)(to + VL, CAT(load_fourth)(from + 4 * VL, n - VL), n - VL);
            } else {
                for (ptrdiff_t i = 0; i < n; i++) to[i] = from[i * step];
            }
        }
    }
}
