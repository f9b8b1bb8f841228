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

#define EVEN_2 0, 2
#define ODD_2 1, 3
#define EVEN_4 0, 2, 4, 6
#define ODD_4 1, 3, 5, 7
#define EVEN_8 EVEN_4, 8, 10, 12, 14
#define ODD_8 ODD_4, 9, 11, 13, 15
#define EVEN_16 EVEN_8, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD_16 ODD_8, 17, 19, 21, 23, 25, 27, 29, 31
#define DW_EACH(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#define DW_MOST 8

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

/* y[m * y_step + c] = bias[c] + sum over taps of w[t][c] * x[t][m * x_step + c]   for m < columns and one vector of c;
 * with `one_weight` the weight of a tap and the bias are one number each for all c. */
INLINE void CAT(dw_block)(const int columns, const int one_weight, ptrdiff_t left, ptrdiff_t taps,
                          const REAL *const *x, const REAL *const *w, ptrdiff_t c, ptrdiff_t x_step,
                          REAL *y, ptrdiff_t y_step, const REAL *bias, int relu) {
    VEC acc[DW_MOST], start = CAT(splat)(0);
    if (bias) start = one_weight ? CAT(splat)(*bias) : CAT(load_part)(bias + c, left);
    UNROLL for (int m = 0; m < columns; m++) acc[m] = start;
    for (ptrdiff_t t = 0; t < taps; t++) {
        const VEC wt = one_weight ? CAT(splat)(*w[t]) : CAT(load_part)(w[t] + c, left);
        const REAL *p = x[t] + c;
        UNROLL for (int m = 0; m < columns; m++) acc[m] = CAT(fma)(wt, CAT(load_part)(p + m * x_step, left), acc[m]);
    }
    UNROLL for (int m = 0; m < columns; m++)
        CAT(store_part)(y + m * y_step + c, relu ? CAT(relu)(acc[m]) : acc[m], left);
}

#define DW_ROW(m) \
    static void CAT(dw_row_##m)(ptrdiff_t taps, const REAL *const *x, const REAL *const *w, ptrdiff_t x_step, REAL *y, \
                                ptrdiff_t y_step, ptrdiff_t C, const REAL *bias, int relu) { \
        ptrdiff_t c = 0; \
        for (; c + VL <= C; c += VL) CAT(dw_block)(m, 0, VL, taps, x, w, c, x_step, y, y_step, bias, relu); \
        if (c < C) CAT(dw_block)(m, 0, C - c, taps, x, w, c, x_step, y, y_step, bias, relu); \
    } \
    static void CAT(dw_flat_##m)(ptrdiff_t taps, const REAL *const *x, const REAL *const *w, ptrdiff_t at, REAL *y, \
                                 const REAL *bias, int relu) { \
        CAT(dw_block)(m, 1, VL, taps, x, w, at, VL, y, VL, bias, relu); \
    }
DW_EACH(DW_ROW)
#undef DW_ROW

#define DW_CALL(m) \
    case m: CAT(dw_row_##m)(taps, x, w, x_step, y, y_step, C, bias, relu); break;
/* n pixels of a row, all C channels; moves the pointers in x along. */
static void CAT(dw_row)(ptrdiff_t taps, const REAL **x, const REAL *const *w, ptrdiff_t n, ptrdiff_t x_step, REAL *y,
                        ptrdiff_t y_step, ptrdiff_t C, const REAL *bias, int relu) {
    for (ptrdiff_t blocks = (n + DW_MOST - 1) / DW_MOST; blocks > 0; blocks--) {
        const ptrdiff_t m = (n + blocks - 1) / blocks;
        switch (m) { DW_EACH(DW_CALL) }
        for (ptrdiff_t t = 0; t < taps; t++) x[t] += m * x_step;
        y += m * y_step;
        n -= m;
    }
}
#undef DW_CALL

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

/* dw[t][c] += sum over m < columns of dy[m * dy_step + c] * x[t][m * x_step + c]   for one vector of c. */
INLINE void CAT(dw_grad_block)(const int columns, ptrdiff_t left, ptrdiff_t taps, const REAL *const *x, REAL *const *dw,
                               ptrdiff_t c, ptrdiff_t x_step, const REAL *dy, ptrdiff_t dy_step) {
    VEC g[DW_MOST];
    UNROLL for (int m = 0; m < columns; m++) g[m] = CAT(load_part)(dy + m * dy_step + c, left);
    for (ptrdiff_t t = 0; t < taps; t++) {
        const REAL *p = x[t] + c;
        VEC acc = CAT(load_part)(dw[t] + c, left);
        UNROLL for (int m = 0; m < columns; m++) acc = CAT(fma)(g[m], CAT(load_part)(p + m * x_step, left), acc);
        CAT(store_part)(dw[t] + c, acc, left);
    }
}

#define DW_GRAD_ROW(m) \
    static void CAT(dw_grad_row_##m)(ptrdiff_t taps, const REAL *const *x, REAL *const *dw, ptrdiff_t x_step, \
                                     const REAL *dy, ptrdiff_t dy_step, ptrdiff_t C) { \
        ptrdiff_t c = 0; \
        for (; c + VL <= C; c += VL) CAT(dw_grad_block)(m, VL, taps, x, dw, c, x_step, dy, dy_step); \
        if (c < C) CAT(dw_grad_block)(m, C - c, taps, x, dw, c, x_step, dy, dy_step); \
    }
DW_EACH(DW_GRAD_ROW)
#undef DW_GRAD_ROW

#define DW_CALL(m) \
    case m: CAT(dw_grad_row_##m)(taps, x, dw, x_step, dy, dy_step, C); break;
/* The gradient of dw_row by its weights: adds the n pixels' share to dw[t][c]; moves the pointers in x along. */
static void CAT(dw_grad_row)(ptrdiff_t taps, const REAL **x, REAL *const *dw, ptrdiff_t n, ptrdiff_t x_step,
                             const REAL *dy, ptrdiff_t dy_step, ptrdiff_t C) {
    for (ptrdiff_t blocks = (n + DW_MOST - 1) / DW_MOST; blocks > 0; blocks--) {
        const ptrdiff_t m = (n + blocks - 1) / blocks;
        switch (m) { DW_EACH(DW_CALL) }
        for (ptrdiff_t t = 0; t < taps; t++) x[t] += m * x_step;
        dy += m * dy_step;
        n -= m;
    }
}
#undef DW_CALL

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
    if (S == 2)
        for (; (i + VL) * 2 <= n; i += VL) {
            const VEC a = CAT(load)(src + 2 * i), b = CAT(load)(src + 2 * i + VL);
            CAT(store)(dst + i, __builtin_shufflevector(a, b, JOIN(EVEN_, LANES)));
            CAT(store)(dst + step + i, __builtin_shufflevector(a, b, JOIN(ODD_, LANES)));
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
    if (S == 2)
        for (; (i + VL) * 2 <= n; i += VL) {
            const VEC a = CAT(load)(src + i), b = CAT(load)(src + step + i);
            CAT(store)(dst + 2 * i, __builtin_shufflevector(a, b, JOIN(LOW_, LANES)));
            CAT(store)(dst + 2 * i + VL, __builtin_shufflevector(a, b, JOIN(HIGH_, LANES)));
        }
#endif
    for (ptrdiff_t at = i * S; at < n; i++)
        for (ptrdiff_t k = 0; k < S && at < n; k++, at++) dst[at] = src[k * step + i];
}
#endif
