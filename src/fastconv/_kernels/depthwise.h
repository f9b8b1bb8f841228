/* The inner loops of depthwise convolution, once for float and once for double (this header reads itself for each REAL).
 *
 * Every channel has filters of its own, so there is no matrix product and no tile: a result is a sum over taps of a weight
 * times the picture shifted. The picture lies channels last, and vectors run over channels, or it has been staged as padded
 * planes, and vectors run along the rows. Either way a block of results stays in registers over all taps, which come as
 * lists of pointers: one into the picture and one to the weight for each tap, in the order of the window. */
#ifndef REAL
#ifndef FASTCONV_DEPTHWISE_H
#define FASTCONV_DEPTHWISE_H
#include "kernels.h"

#define DW_EVEN_2 0, 2
#define DW_ODD_2 1, 3
#define DW_EVEN_4 0, 2, 4, 6
#define DW_ODD_4 1, 3, 5, 7
#define DW_EVEN_8 DW_EVEN_4, 8, 10, 12, 14
#define DW_ODD_8 DW_ODD_4, 9, 11, 13, 15
#define DW_EVEN_16 DW_EVEN_8, 16, 18, 20, 22, 24, 26, 28, 30
#define DW_ODD_16 DW_ODD_8, 17, 19, 21, 23, 25, 27, 29, 31
#define DW_EACH(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#define DW_MOST 8
#define DW_WIDEST 7
#define DW_KINDS 6

/* The run that suits `width` neighbouring taps at this step; 0 if none does but that of single taps. */
static inline int dw_kind(ptrdiff_t width, ptrdiff_t step) {
    if (step == 2) return width == 3 ? 5 : 0;
    if (step != 1) return 0;
    return width == 2 ? 1 : width == 3 ? 2 : width == 5 ? 3 : width == 7 ? 4 : 0;
}

#define REAL float
#define SUFFIX _f32
#if VECTOR_BYTES == 64
#define LANES 16
#elif VECTOR_BYTES == 32
#define LANES 8
#else
#define LANES 4
#endif
#include "depthwise.h"
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
#include "depthwise.h"
#undef REAL
#undef SUFFIX
#undef LANES
#endif
#else

/* The first `left` numbers, zeros after them: as load_part and store_part, without a loop on AVX2. */
#if defined(__AVX2__) && !defined(__AVX512F__)
INLINE __m256i CAT(dw_mask)(ptrdiff_t left) {
    if (sizeof(REAL) == 4)
        return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(left), _mm256_setr_epi64x(0, 1, 2, 3));
}
INLINE VEC CAT(dw_load)(const REAL *p, ptrdiff_t left) {
    if (left >= VL) return CAT(load)(p);
    if (sizeof(REAL) == 4) return (VEC)_mm256_maskload_ps((const float *)p, CAT(dw_mask)(left));
    return (VEC)_mm256_maskload_pd((const double *)p, CAT(dw_mask)(left));
}
INLINE void CAT(dw_store)(REAL *p, VEC v, ptrdiff_t left) {
    if (left >= VL) CAT(store)(p, v);
    else if (sizeof(REAL) == 4) _mm256_maskstore_ps((float *)p, CAT(dw_mask)(left), (__m256)v);
    else _mm256_maskstore_pd((double *)p, CAT(dw_mask)(left), (__m256d)v);
}
#else
INLINE VEC CAT(dw_load)(const REAL *p, ptrdiff_t left) { return CAT(load_part)(p, left); }
INLINE void CAT(dw_store)(REAL *p, VEC v, ptrdiff_t left) { CAT(store_part)(p, v, left); }
#endif

/* ------------------------------------------------------------------------------------------------- channels last
 *
 * The pixels of a row of the picture come as a table of pointers, in which a row of zeros stands for the padding. A run is
 * `width` taps side by side: x[r] is where the table begins for its first tap and the first pixel of the result, the pixels
 * of the result are `step` apart in the table, and w[r] + j * w_step are the weights of tap j. With a width and step known
 * to the compiler a pixel is loaded once for all the taps that meet it; width 1 takes any step. */
typedef const REAL *const *const *CAT(dw_tables);

/* Whether column `col` of the table is tap j of result m of a block, and which m. */
#define DW_MEETS(col, j, step, columns) ((col) >= (j) && ((col) - (j)) % (step) == 0 && ((col) - (j)) / (step) < (columns))

/* y[m * y_step + c] = bias[c] + sum over runs and taps of w[r][j * w_step + c] * x[r][m * step + j][c] for one vector of c. */
INLINE void CAT(dw_pixels)(const int columns, const int width, const int known_step, ptrdiff_t left, ptrdiff_t runs,
                           CAT(dw_tables) x, const REAL *const *w, ptrdiff_t w_step, ptrdiff_t step, ptrdiff_t c,
                           REAL *y, ptrdiff_t y_step, const REAL *bias, int relu) {
    VEC acc[DW_MOST], wt[DW_WIDEST];
    const VEC start = bias ? CAT(dw_load)(bias + c, left) : CAT(splat)(0);
    UNROLL for (int m = 0; m < columns; m++) acc[m] = start;
    for (ptrdiff_t r = 0; r < runs; r++) {
        const REAL *const *p = x[r];
        UNROLL for (int j = 0; j < width; j++) wt[j] = CAT(dw_load)(w[r] + j * w_step + c, left);
        if (width == 1) {
            UNROLL for (int m = 0; m < columns; m++) acc[m] = CAT(fma)(wt[0], CAT(dw_load)(p[m * step] + c, left), acc[m]);
            continue;
        }
        UNROLL for (int col = 0; col < (columns - 1) * known_step + width; col++) {
            const VEC v = CAT(load)(p[col] + c);
            UNROLL for (int j = 0; j < width; j++)
                if (DW_MEETS(col, j, known_step, columns)) acc[(col - j) / known_step] = CAT(fma)(wt[j], v, acc[(col - j) / known_step]);
        }
    }
    UNROLL for (int m = 0; m < columns; m++)
        CAT(dw_store)(y + m * y_step + c, relu ? CAT(relu)(acc[m]) : acc[m], left);
}

/* The gradient by the weights: dw[r][j * w_step + c] += sum over m of dy[m * dy_step + c] * x[r][m * step + j][c]. */
INLINE void CAT(dw_pixels_grad)(const int columns, const int width, const int known_step, ptrdiff_t left, ptrdiff_t runs,
                                CAT(dw_tables) x, REAL *const *dw, ptrdiff_t w_step, ptrdiff_t step, ptrdiff_t c,
                                const REAL *dy, ptrdiff_t dy_step) {
    VEC g[DW_MOST], acc[DW_WIDEST];
    UNROLL for (int m = 0; m < columns; m++) g[m] = CAT(dw_load)(dy + m * dy_step + c, left);
    for (ptrdiff_t r = 0; r < runs; r++) {
        const REAL *const *p = x[r];
        UNROLL for (int j = 0; j < width; j++) acc[j] = CAT(dw_load)(dw[r] + j * w_step + c, left);
        if (width == 1) {
            UNROLL for (int m = 0; m < columns; m++) acc[0] = CAT(fma)(g[m], CAT(dw_load)(p[m * step] + c, left), acc[0]);
        } else {
            UNROLL for (int col = 0; col < (columns - 1) * known_step + width; col++) {
                const VEC v = CAT(load)(p[col] + c);
                UNROLL for (int j = 0; j < width; j++)
                    if (DW_MEETS(col, j, known_step, columns)) acc[j] = CAT(fma)(g[(col - j) / known_step], v, acc[j]);
            }
        }
        UNROLL for (int j = 0; j < width; j++) CAT(dw_store)(dw[r] + j * w_step + c, acc[j], left);
    }
}

#define DW_ARGUMENTS ptrdiff_t runs, CAT(dw_tables) x, REAL *const *w, ptrdiff_t w_step, ptrdiff_t step, \
                     ptrdiff_t begin, ptrdiff_t end, REAL *y, ptrdiff_t y_step, const REAL *bias, int relu
#define DW_DEFINE(width, known_step, m) \
    static void CAT(dw_row_##width##_##known_step##_##m)(DW_ARGUMENTS) { \
        ptrdiff_t c = begin; \
        for (; c + VL <= end; c += VL) \
            CAT(dw_pixels)(m, width, known_step, VL, runs, x, (const REAL *const *)w, w_step, step, c, y, y_step, bias, relu); \
        if (width == 1 && c < end) \
            CAT(dw_pixels)(m, 1, 1, end - c, runs, x, (const REAL *const *)w, w_step, step, c, y, y_step, bias, relu); \
    } \
    static void CAT(dw_grad_row_##width##_##known_step##_##m)(DW_ARGUMENTS) { \
        ptrdiff_t c = begin; \
        for (; c + VL <= end; c += VL) \
            CAT(dw_pixels_grad)(m, width, known_step, VL, runs, x, w, w_step, step, c, y, y_step); \
        if (width == 1 && c < end) CAT(dw_pixels_grad)(m, 1, 1, end - c, runs, x, w, w_step, step, c, y, y_step); \
    }
#define DW_DEFINE_11(m) DW_DEFINE(1, 1, m)
#define DW_DEFINE_21(m) DW_DEFINE(2, 1, m)
#define DW_DEFINE_31(m) DW_DEFINE(3, 1, m)
#define DW_DEFINE_51(m) DW_DEFINE(5, 1, m)
#define DW_DEFINE_71(m) DW_DEFINE(7, 1, m)
#define DW_DEFINE_32(m) DW_DEFINE(3, 2, m)
DW_EACH(DW_DEFINE_11) DW_EACH(DW_DEFINE_21) DW_EACH(DW_DEFINE_31)
DW_EACH(DW_DEFINE_51) DW_EACH(DW_DEFINE_71) DW_EACH(DW_DEFINE_32)

/* For each kind of run, in the order of dw_kind: a function for each number of pixels. */
typedef void (*CAT(dw_function))(DW_ARGUMENTS);
#define DW_LIST(name, kind) \
    {0, CAT(name##_##kind##_1), CAT(name##_##kind##_2), CAT(name##_##kind##_3), CAT(name##_##kind##_4), \
     CAT(name##_##kind##_5), CAT(name##_##kind##_6), CAT(name##_##kind##_7), CAT(name##_##kind##_8)}
#define DW_LISTS(name) {DW_LIST(name, 1_1), DW_LIST(name, 2_1), DW_LIST(name, 3_1), DW_LIST(name, 5_1), DW_LIST(name, 7_1), \
                        DW_LIST(name, 3_2)}
static const CAT(dw_function) CAT(dw_rows)[2][DW_KINDS][DW_MOST + 1] = {DW_LISTS(dw_row), DW_LISTS(dw_grad_row)};

/* n pixels of a row, channels begin to end; kind 0 alone takes an end that fills no vector. Moves
 * the pointers in x along. */
static void CAT(dw_row)(int grad, int kind, ptrdiff_t n, ptrdiff_t runs, void **x, void **w, ptrdiff_t w_step, ptrdiff_t step,
                        ptrdiff_t begin, ptrdiff_t end, REAL *y, ptrdiff_t y_step, const REAL *bias, int relu) {
    for (ptrdiff_t blocks = (n + DW_MOST - 1) / DW_MOST; blocks > 0; blocks--) {
        const ptrdiff_t m = (n + blocks - 1) / blocks;
        CAT(dw_rows)[grad][kind][m](runs, (CAT(dw_tables))x, (REAL *const *)w, w_step, step, begin, end, y, y_step, bias, relu);
        for (ptrdiff_t r = 0; r < runs; r++) x[r] = (const REAL **)x[r] + m * step;
        y += m * y_step;
        n -= m;
    }
}
#undef DW_ARGUMENTS
#undef DW_DEFINE
#undef DW_DEFINE_11
#undef DW_DEFINE_21
#undef DW_DEFINE_31
#undef DW_DEFINE_51
#undef DW_DEFINE_71
#undef DW_DEFINE_32
#undef DW_LIST
#undef DW_LISTS
#undef DW_MEETS

/* ------------------------------------------------------------------------------------------------- staged planes */

/* y[i] = bias + sum over taps of w[t] * x[t][i] for a block of vectors that begins at `at`. */
INLINE void CAT(dw_flat_block)(const int vectors, ptrdiff_t taps, const REAL *const *x, const REAL *const *w, ptrdiff_t at, REAL *y,
                               const REAL *bias, int relu) {
    VEC acc[DW_MOST];
    UNROLL for (int m = 0; m < vectors; m++) acc[m] = CAT(splat)(bias ? *bias : 0);
    for (ptrdiff_t t = 0; t < taps; t++) {
        const VEC wt = CAT(splat)(*w[t]);
        UNROLL for (int m = 0; m < vectors; m++) acc[m] = CAT(fma)(wt, CAT(load)(x[t] + at + m * VL), acc[m]);
    }
    UNROLL for (int m = 0; m < vectors; m++) CAT(store)(y + at + m * VL, relu ? CAT(relu)(acc[m]) : acc[m]);
}
#define DW_FLAT(m) \
    static void CAT(dw_flat_##m)(ptrdiff_t taps, const REAL *const *x, const REAL *const *w, ptrdiff_t at, REAL *y, \
                                 const REAL *bias, int relu) { \
        CAT(dw_flat_block)(m, taps, x, w, at, y, bias, relu); \
    }
DW_EACH(DW_FLAT)
#undef DW_FLAT
#define DW_CALL(m) \
    case m: CAT(dw_flat_##m)(taps, x, w, at, y, bias, relu); break;
/* n vectors of a staged plane. */
static void CAT(dw_flat)(ptrdiff_t taps, const REAL *const *x, const REAL *const *w, ptrdiff_t n, REAL *y,
                         const REAL *bias, int relu) {
    ptrdiff_t at = 0;
    for (ptrdiff_t blocks = (n + DW_MOST - 1) / DW_MOST; blocks > 0; blocks--) {
        const ptrdiff_t m = (n + blocks - 1) / blocks;
        switch (m) { DW_EACH(DW_CALL) }
        at += m * VL;
        n -= m;
    }
}
#undef DW_CALL

/* A 3x3 window at steps of one, four rows of a plane at a time: a vector of the picture is loaded once for the three rows of
 * results that it goes into. x is the first cell that any tap meets, w + i * w_step the weight of the i-th from there.
 * A vector that reaches past the end of a row holds the beginning of the next, as it should be. */
static void CAT(dw_flat_3x3)(const REAL *x, ptrdiff_t pitch, const REAL *w, ptrdiff_t w_step, ptrdiff_t rows, REAL *y,
                             const REAL *bias, int relu) {
    VEC wt[9];
    UNROLL for (int i = 0; i < 9; i++) wt[i] = CAT(splat)(w[i * w_step]);
    for (ptrdiff_t r = 0; r + 4 <= rows; r += 4) {
        for (ptrdiff_t o = 0; o < pitch; o += VL) {
            const REAL *p = x + r * pitch + o;
            VEC acc[4];
            UNROLL for (int m = 0; m < 4; m++) acc[m] = CAT(splat)(bias ? *bias : 0);
            UNROLL for (int i = 0; i < 6; i++) {
                UNROLL for (int j = 0; j < 3; j++) {
                    const VEC v = CAT(load)(p + j);
                    UNROLL for (int m = 0; m < 4; m++)
                        if (i >= m && i - m < 3) acc[m] = CAT(fma)(wt[(i - m) * 3 + j], v, acc[m]);
                }
                p += pitch;
            }
            REAL *to = y + r * pitch + o;
            UNROLL for (int m = 0; m < 4; m++) {
                CAT(store)(to, relu ? CAT(relu)(acc[m]) : acc[m]);
                to += pitch;
            }
        }
    }
}

/* acc[t][lane] += dy * x[t], lane by lane along n numbers of a row. */
INLINE void CAT(dw_dot_body)(const int taps, const REAL *const *x, const REAL *dy, ptrdiff_t n, REAL *acc) {
    VEC sum[DW_MOST + 1];
    UNROLL for (int t = 0; t < taps; t++) sum[t] = CAT(load)(acc + t * VL);
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) {
        const VEC g = CAT(load)(dy + i);
        UNROLL for (int t = 0; t < taps; t++) sum[t] = CAT(fma)(g, CAT(load)(x[t] + i), sum[t]);
    }
    if (i < n) {
        const VEC g = CAT(load_part)(dy + i, n - i);
        UNROLL for (int t = 0; t < taps; t++) sum[t] = CAT(fma)(g, CAT(load_part)(x[t] + i, n - i), sum[t]);
    }
    UNROLL for (int t = 0; t < taps; t++) CAT(store)(acc + t * VL, sum[t]);
}
#define DW_DOT(m) \
    static void CAT(dw_dot_##m)(const REAL *const *x, const REAL *dy, ptrdiff_t n, REAL *acc) { \
        CAT(dw_dot_body)(m, x, dy, n, acc); \
    }
DW_EACH(DW_DOT)
DW_DOT(9)
#undef DW_DOT
#define DW_CALL(m) \
    case m: CAT(dw_dot_##m)(x, dy, n, acc); break;
static void CAT(dw_dot)(ptrdiff_t taps, const REAL *const *x, const REAL *dy, ptrdiff_t n, REAL *acc) {
    for (ptrdiff_t blocks = (taps + DW_MOST) / (DW_MOST + 1); blocks > 0; blocks--) {
        const ptrdiff_t m = (taps + blocks - 1) / blocks;
        switch (m) { DW_EACH(DW_CALL) DW_CALL(9) }
        x += m;
        acc += m * VL;
        taps -= m;
    }
}
#undef DW_CALL

static void CAT(dw_copy)(REAL *restrict dst, const REAL *restrict src, ptrdiff_t n) {
    if (n < VL) {
        if (n > 0) CAT(store_part)(dst, CAT(load_part)(src, n), n);
        return;
    }
    for (ptrdiff_t i = 0; i < n - VL; i += VL) CAT(store)(dst + i, CAT(load)(src + i));
    CAT(store)(dst + n - VL, CAT(load)(src + n - VL)); /* once more over what the loop has written */
}

/* dst[k * step + i] = src[i * S + k] for i * S + k < n, k < S: the row dealt out to S rows. */
static void CAT(dw_deal)(REAL *restrict dst, ptrdiff_t step, const REAL *restrict src, ptrdiff_t n, ptrdiff_t S) {
    ptrdiff_t i = 0;
    if (S == 1) {
        CAT(dw_copy)(dst, src, n);
        return;
    }
#if defined(__GNUC__)
    if (S == 2) {
        for (; 2 * i < n; i += VL) {
            const ptrdiff_t left = n - 2 * i;
            const VEC a = CAT(dw_load)(src + 2 * i, left), b = left > VL ? CAT(dw_load)(src + 2 * i + VL, left - VL) : CAT(splat)(0);
            CAT(dw_store)(dst + i, __builtin_shufflevector(a, b, JOIN(DW_EVEN_, LANES)), (left + 1) / 2);
            CAT(dw_store)(dst + step + i, __builtin_shufflevector(a, b, JOIN(DW_ODD_, LANES)), left / 2);
        }
        return;
    }
#endif
    for (ptrdiff_t at = i * S; at < n; i++)
        for (ptrdiff_t k = 0; k < S && at < n; k++, at++) dst[k * step + i] = src[at];
}

/* dst[i * S + k] = src[k * step + i] for i * S + k < n, k < S: S rows collected into one. */
static void CAT(dw_collect)(REAL *restrict dst, const REAL *restrict src, ptrdiff_t step, ptrdiff_t n, ptrdiff_t S) {
    ptrdiff_t i = 0;
    if (S == 1) {
        CAT(dw_copy)(dst, src, n);
        return;
    }
#if defined(__GNUC__)
    if (S == 2) { /* whole vectors may be read: rows of results are staged with room behind them */
        for (; 2 * i < n; i += VL) {
            const ptrdiff_t left = n - 2 * i;
            const VEC a = CAT(load)(src + i), b = CAT(load)(src + step + i);
            CAT(dw_store)(dst + 2 * i, __builtin_shufflevector(a, b, JOIN(LOW_, LANES)), left);
            if (left > VL) CAT(dw_store)(dst + 2 * i + VL, __builtin_shufflevector(a, b, JOIN(HIGH_, LANES)), left - VL);
        }
        return;
    }
#endif
    for (ptrdiff_t at = i * S; at < n; i++)
        for (ptrdiff_t k = 0; k < S && at < n; k++, at++) dst[at] = src[k * step + i];
}
#endif
