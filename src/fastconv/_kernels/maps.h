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

enum { RUN = 32, SOME = 4 };

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
static void CAT(sum_rows)(const REAL *dy, const REAL *y, REAL *out, ptrdiff_t rows, ptrdiff_t width, REAL *restrict part,
                          double *restrict sum) {
    for (ptrdiff_t r = 0; r < rows; r++, dy += width) {
        if (y) {
            for (ptrdiff_t c = 0; c < width; c++) out[c] = y[c] <= 0 ? 0 : dy[c];
            for (ptrdiff_t c = 0; c < width; c++) part[c] += out[c];
            y += width;
            out += width;
        } else {
            for (ptrdiff_t c = 0; c < width; c++) part[c] += dy[c];
        }
        if (r % RUN == RUN - 1) CAT(spill)(sum, part, width);
    }
    CAT(spill)(sum, part, width);
}

/* sum[c] += x[r][c] - near[c] and sum[width + c] += its square. part is zero, 2 width long. */
INLINE void CAT(add_moments)(const int n, const REAL *restrict x, const REAL *restrict near, ptrdiff_t width, REAL *restrict part) {
    REAL *restrict square = part + width;
    for (ptrdiff_t c = 0; c < width; c++) {
        REAL first = 0, second = 0;
        UNROLL for (int i = 0; i < n; i++) {
            const REAL d = x[i * width + c] - near[c];
            first += d;
            second += d * d;
        }
        part[c] += first;
        square[c] += second;
    }
}
static void CAT(moment_rows)(const REAL *x, const REAL *near, ptrdiff_t rows, ptrdiff_t width, REAL *part, double *sum) {
    for (ptrdiff_t r = 0; r < rows; r += RUN) {
        const ptrdiff_t end = r + RUN < rows ? r + RUN : rows;
        ptrdiff_t i = r;
        for (; i + SOME <= end; i += SOME) CAT(add_moments)(SOME, x + i * width, near, width, part);
        for (; i < end; i++) CAT(add_moments)(1, x + i * width, near, width, part);
        CAT(spill)(sum, part, 2 * width);
    }
}

/* y = (x - mean) scale + shift, then a ReLU if asked. */
static void CAT(norm_rows)(const REAL *restrict x, REAL *restrict y, const REAL *restrict mean, const REAL *restrict scale,
                           const REAL *restrict shift, int relu, ptrdiff_t rows, ptrdiff_t width) {
    for (ptrdiff_t r = 0; r < rows; r++, x += width, y += width) {
        if (relu) {
            for (ptrdiff_t c = 0; c < width; c++) {
                const REAL v = (x[c] - mean[c]) * scale[c] + shift[c];
                y[c] = v < 0 ? 0 : v;
            }
        } else {
            for (ptrdiff_t c = 0; c < width; c++) y[c] = (x[c] - mean[c]) * scale[c] + shift[c];
        }
    }
}

/* With d = x - mean and g = dy, or 0 where a ReLU behind (x - mean) scale + shift gave 0: sum[c] += g and
 * sum[width + c] += g d. The forward pass's output is not needed. */
INLINE void CAT(add_gradients)(const int n, const REAL *restrict dy, const REAL *restrict x, const REAL *restrict mean,
                               const REAL *restrict scale, const REAL *restrict shift, const int relu, ptrdiff_t width,
                               REAL *restrict part) {
    REAL *restrict moment = part + width;
    for (ptrdiff_t c = 0; c < width; c++) {
        REAL first = 0, second = 0;
        UNROLL for (int i = 0; i < n; i++) {
            const REAL d = x[i * width + c] - mean[c];
            const REAL g = relu && d * scale[c] + shift[c] <= 0 ? 0 : dy[i * width + c];
            first += g;
            second += g * d;
        }
        part[c] += first;
        moment[c] += second;
    }
}
static void CAT(norm_sum_rows)(const REAL *dy, const REAL *x, const REAL *mean, const REAL *scale, const REAL *shift, int relu,
                               ptrdiff_t rows, ptrdiff_t width, REAL *part, double *sum) {
    for (ptrdiff_t r = 0; r < rows; r += RUN) {
        const ptrdiff_t end = r + RUN < rows ? r + RUN : rows;
        ptrdiff_t i = r;
        for (; i + SOME <= end; i += SOME) {
            if (relu) CAT(add_gradients)(SOME, dy + i * width, x + i * width, mean, scale, shift, 1, width, part);
            else CAT(add_gradients)(SOME, dy + i * width, x + i * width, mean, scale, shift, 0, width, part);
        }
        for (; i < end; i++) CAT(add_gradients)(1, dy + i * width, x + i * width, mean, scale, shift, relu, width, part);
        CAT(spill)(sum, part, 2 * width);
    }
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
