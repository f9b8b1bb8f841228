/* Passes over activation maps, once for float and once for double (this header reads itself for each REAL): what a layer
 * does to a volume beside convolving it.
 *
 * `rows` functions see a block of rows of `width` numbers, with a scale, shift, ... for each column: pixels of a volume that
 * lies channels last. A plane of an NCHW volume is taken as rows of LINE pixels that share one map, all columns alike.
 * Sums run over at most RUN rows in REAL and then go into doubles; SOME rows are added up before they meet a sum in memory. */
#ifndef REAL
#ifndef FASTCONV_MAPS_H
#define FASTCONV_MAPS_H
#include "kernels.h"

enum { RUN = 32, SOME = 4, COLUMNS = 128, AHEAD = 1 << 13 };

/* STEP for blocks of n = SOME rows, of 1 the last ones, and at most COLUMNS columns, the first of which is number `at` of the rows
 * and c of a row; SPILL after every RUN rows. The lines of `a` and of `b`, if it is not NULL, some rows ahead, AHEAD bytes or more,
 * are called for: by itself a core asks memory for less than it could. */
#define EACH_BLOCK(a, b, STEP, SPILL) \
    const ptrdiff_t ahead = SOME * width * (1 + AHEAD / (ptrdiff_t)sizeof(REAL) / (SOME * width)); \
    for (ptrdiff_t r = 0, some; r < rows; r += some) { \
        some = rows - r < SOME ? 1 : SOME; \
        for (ptrdiff_t c = 0; c < width; c += COLUMNS) { \
            const ptrdiff_t at = r * width + c, cols = width - c < COLUMNS ? width - c : COLUMNS; \
            const ptrdiff_t apart = cols < width ? some : 1, stretch = some / apart * cols * (ptrdiff_t)sizeof(REAL); \
            for (ptrdiff_t i = 0; i < apart; i++) { \
                fetch_lines(a + at + ahead + i * width, stretch); \
                if (b) fetch_lines(b + at + ahead + i * width, stretch); \
            } \
            if (some == SOME) { \
                enum { n = SOME }; \
                STEP; \
            } else { \
                enum { n = 1 }; \
                STEP; \
            } \
        } \
        if ((r + some) % RUN == 0 || r + some == rows) SPILL; \
    }

#define REAL float
#define SUFFIX _f32
#include "maps.h"
#undef REAL
#undef SUFFIX
#define REAL double
#define SUFFIX _f64
#include "maps.h"
#undef REAL
#undef SUFFIX
#endif
#else

/* Gradient of a ReLU that gave y; NaN lets dy pass. out may be dy. */
static void CAT(mask)(const REAL *dy, const REAL *y, REAL *out, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) out[i] = y[i] <= 0 ? 0 : dy[i];
}

/* out = a + b, then a ReLU if asked; out may be a. */
static void CAT(add_arrays)(const REAL *a, const REAL *b, REAL *out, ptrdiff_t n, int relu) {
    if (relu) {
        for (ptrdiff_t i = 0; i < n; i++) {
            const REAL v = a[i] + b[i];
            out[i] = v < 0 ? 0 : v;
        }
    } else {
        for (ptrdiff_t i = 0; i < n; i++) out[i] = a[i] + b[i];
    }
}

INLINE void CAT(spill)(double *restrict sum, REAL *restrict part, ptrdiff_t n) {
    for (ptrdiff_t c = 0; c < n; c++) {
        sum[c] += part[c];
        part[c] = 0;
    }
}

/* sum[c] += dy[r][c] over the rows; with y, dy is masked by it first and goes to out as well (which may be dy). part is zero. */
INLINE void CAT(add_some)(const int n, const REAL *restrict dy, ptrdiff_t width, ptrdiff_t cols, REAL *restrict part) {
    for (ptrdiff_t c = 0; c < cols; c++) {
        REAL sum = 0;
        UNROLL for (int i = 0; i < n; i++) sum += dy[i * width + c];
        part[c] += sum;
    }
}
static void CAT(sum_rows)(const REAL *dy, const REAL *y, REAL *out, ptrdiff_t rows, ptrdiff_t width, REAL *restrict part,
                          double *restrict sum) {
    if (!y) {
        EACH_BLOCK(dy, y, CAT(add_some)(n, dy + at, width, cols, part + c), CAT(spill)(sum, part, width))
        return;
    }
    for (ptrdiff_t r = 0; r < rows; r++, dy += width, y += width, out += width) {
        for (ptrdiff_t c = 0; c < width; c++) out[c] = y[c] <= 0 ? 0 : dy[c];
        for (ptrdiff_t c = 0; c < width; c++) part[c] += out[c];
        if (r % RUN == RUN - 1 || r == rows - 1) CAT(spill)(sum, part, width);
    }
}

/* sum[c] += x[r][c] - near[c] and sum[width + c] += its square. part is zero, 2 width long. */
INLINE void CAT(add_moments)(const int n, const REAL *restrict x, const REAL *restrict near, ptrdiff_t width, ptrdiff_t cols,
                             REAL *restrict part, REAL *restrict squares) {
    for (ptrdiff_t c = 0; c < cols; c++) {
        REAL sum = 0, square = 0;
        UNROLL for (int i = 0; i < n; i++) {
            const REAL d = x[i * width + c] - near[c];
            sum += d;
            square += d * d;
        }
        part[c] += sum;
        squares[c] += square;
    }
}
static void CAT(moment_rows)(const REAL *x, const REAL *near, ptrdiff_t rows, ptrdiff_t width, REAL *part, double *sum) {
    const REAL *none = 0;
    EACH_BLOCK(x, none, CAT(add_moments)(n, x + at, near + c, width, cols, part + c, part + width + c),
               CAT(spill)(sum, part, 2 * width))
}

/* y = (x - mean) scale + shift, then a ReLU if asked. */
INLINE void CAT(norm_some)(const int n, const REAL *restrict x, REAL *restrict y, const REAL *restrict mean,
                           const REAL *restrict scale, const REAL *restrict shift, REAL least, ptrdiff_t width, ptrdiff_t cols) {
    for (ptrdiff_t c = 0; c < cols; c++) {
        UNROLL for (int i = 0; i < n; i++) {
            const REAL v = (x[i * width + c] - mean[c]) * scale[c] + shift[c];
            y[i * width + c] = v < least ? least : v;
        }
    }
}
static void CAT(norm_rows)(const REAL *x, REAL *y, const REAL *mean, const REAL *scale, const REAL *shift, int relu, ptrdiff_t rows,
                           ptrdiff_t width) {
    const REAL least = relu ? 0 : -INFINITY;
    EACH_BLOCK(x, y, CAT(norm_some)(n, x + at, y + at, mean + c, scale + c, shift + c, least, width, cols), )
}

/* With d = x - mean and g = dy, or 0 where a ReLU behind (x - mean) scale + shift gave 0: sum[c] += g and
 * sum[width + c] += g d. The forward pass's output is not needed. */
INLINE void CAT(add_gradients)(const int n, const int relu, const REAL *restrict dy, const REAL *restrict x,
                               const REAL *restrict mean, const REAL *restrict scale, const REAL *restrict shift, ptrdiff_t width,
                               ptrdiff_t cols, REAL *restrict part, REAL *restrict moments) {
    for (ptrdiff_t c = 0; c < cols; c++) {
        REAL sum = 0, moment = 0;
        UNROLL for (int i = 0; i < n; i++) {
            const REAL d = x[i * width + c] - mean[c], g = relu && d * scale[c] + shift[c] <= 0 ? 0 : dy[i * width + c];
            sum += g;
            moment += g * d;
        }
        part[c] += sum;
        moments[c] += moment;
    }
}
static void CAT(norm_sum_rows)(const REAL *dy, const REAL *x, const REAL *mean, const REAL *scale, const REAL *shift, int relu,
                               ptrdiff_t rows, ptrdiff_t width, REAL *part, double *sum) {
#define STEP(relu) \
    CAT(add_gradients)(n, relu, dy + at, x + at, mean + c, scale + c, shift + c, width, cols, part + c, part + width + c)
    EACH_BLOCK(dy, x, if (relu) STEP(1); else STEP(0), CAT(spill)(sum, part, 2 * width))
#undef STEP
}

/* dx = (g - a - d b) scale with d and g as above; dx may be dy. */
static void CAT(norm_grad_rows)(const REAL *dy, const REAL *restrict x, REAL *dx, const REAL *restrict mean,
                                const REAL *restrict scale, const REAL *restrict shift, const REAL *restrict a,
                                const REAL *restrict b, int relu, ptrdiff_t rows, ptrdiff_t width) {
    for (ptrdiff_t r = 0; r < rows; r++, dy += width, x += width, dx += width) {
        if (relu) {
            for (ptrdiff_t c = 0; c < width; c++) {
                const REAL d = x[c] - mean[c], g = d * scale[c] + shift[c] <= 0 ? 0 : dy[c];
                dx[c] = (g - a[c] - d * b[c]) * scale[c];
            }
        } else {
            for (ptrdiff_t c = 0; c < width; c++) dx[c] = (dy[c] - a[c] - (x[c] - mean[c]) * b[c]) * scale[c];
        }
    }
}
#endif
