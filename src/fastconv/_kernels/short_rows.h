/* Depthwise convolution over planes with rows of 16 numbers at most, or 32 with a step of 2, depth first, with AVX-512.
 *
 * A row is one vector, or two, and what a tap meets is picked out of it in registers: nothing is loaded twice, and planes need not
 * be turned over. Two rows of up to 8 results make one vector. Square windows, one filter a channel, no dilation. With other
 * instruction sets the functions that ask say no. */
#ifndef FASTCONV_SHORT_ROWS_H
#define FASTCONV_SHORT_ROWS_H
#include "kernels.h"

#define SR_MOST 16   /* results a row; a row that is read has as many for each step */
#define SR_WIDEST 7  /* taps a side, and rows of padding */
#define SR_VECTORS 4 /* of results at a time: they share what is picked out of a row */

/* Planes of D channels: what is read, its padding, and what is made, which is dx for the gradient by the picture. */
typedef struct { ptrdiff_t D, H, W, top, left, height, width; } sr_planes;

/* Windows and steps, how many rows make a vector of results, and how many results a row needs for it: with fewer, too many lanes
 * are empty and planes are better turned over. */
#define SR_EACH(X) X(3, 1, 1, 9) X(3, 1, 2, 7) X(3, 2, 2, 7) X(3, 2, 1, 9) X(5, 2, 1, 9) X(5, 1, 1, 11) X(7, 1, 1, 13)
#define SR_IS(taps, step, rows, least) \
    (F == taps && S == step && g->W <= SR_MOST * step / rows && g->width >= least && g->width <= SR_MOST / rows)

#if defined(__AVX512F__) && defined(__GNUC__)
INLINE int sr_fits(const sr_planes *g) {
    return g->H <= 2 * SR_MOST && g->top <= SR_WIDEST && g->top >= -SR_WIDEST && g->height <= 2 * SR_MOST;
}
static int sr_made(ptrdiff_t F, ptrdiff_t S, const sr_planes *g) {
#define SR_OR(taps, step, rows, least) || SR_IS(taps, step, rows, least)
    return sr_fits(g) && (0 SR_EACH(SR_OR));
#undef SR_OR
}
static int sr_back_made(ptrdiff_t F, ptrdiff_t S, const sr_planes *g) {
    return (F == 3 || F == 5) && S == 2 && sr_fits(g) && g->W <= SR_MOST && g->width > SR_MOST / 2
        && g->width <= (F == 3 ? 1 : 2) * SR_MOST;
}

/* Of a vector that is read: what a lane of results takes of it for tap j, if anything, and which numbers lie in the plane, of rows
 * -SR_WIDEST and on. */
typedef struct {
    __m512i from[SR_WIDEST];
    __mmask16 lanes[SR_WIDEST], inside[SR_WIDEST + 5 * SR_MOST];
} sr_picks;

INLINE __m512i sr_lane(void) { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
INLINE __mmask16 sr_first(ptrdiff_t n) { return (__mmask16)(n < 0 ? 0 : n > 15 ? 0xffff : (1u << n) - 1); }

/* A vector that is read has one row, or two that lie side by side. */
INLINE void sr_rows_inside(sr_picks *p, const int two, const sr_planes *g) {
    for (int i = 0; i < SR_WIDEST + 5 * SR_MOST; i++) {
        const ptrdiff_t row = i - SR_WIDEST;
        const unsigned next = two && row >= -1 && row + 1 < g->H ? (unsigned)sr_first(g->W) << g->W : 0;
        p->inside[i] = (__mmask16)((row >= 0 && row < g->H ? sr_first(g->W) : 0) | next);
    }
}

/* Lane o takes number o * S + j - left of a row; lane 8 + o of a vector of two rows, of the row S below it. */
INLINE sr_picks sr_picks_forward(const int F, const int S, const int rows, const sr_planes *g) {
    const __m512i o = rows == 2 ? _mm512_and_epi32(sr_lane(), _mm512_set1_epi32(7)) : sr_lane();
    const __m512i second = _mm512_maskz_set1_epi32(rows == 2 ? 0xff00 : 0, S == 1 ? (int)g->W : SR_MOST);
    const __mmask16 made = _mm512_cmplt_epu32_mask(o, _mm512_set1_epi32((int)g->width));
    sr_picks p;
    UNROLL for (int j = 0; j < F; j++) {
        const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(o, _mm512_set1_epi32(S)), _mm512_set1_epi32((int)(j - g->left)));
        p.lanes[j] = _mm512_mask_cmplt_epu32_mask(made, at, _mm512_set1_epi32((int)g->W)); /* before the row: huge */
        p.from[j] = _mm512_add_epi32(at, second);
    }
    sr_rows_inside(&p, rows > S, g);
    return p;
}

/* Lane o, which is column first + o of dx, takes number (first + o + left - j) / 2 of a row of dy, if that is whole. */
INLINE sr_picks sr_picks_back(const int F, ptrdiff_t first, const sr_planes *g) {
    sr_picks p;
    UNROLL for (int j = 0; j < F; j++) {
        const __m512i twice = _mm512_add_epi32(sr_lane(), _mm512_set1_epi32((int)(first + g->left - j)));
        const __mmask16 whole = _mm512_testn_epi32_mask(twice, _mm512_set1_epi32(1));
        p.from[j] = _mm512_srai_epi32(twice, 1);
        p.lanes[j] = _mm512_mask_cmplt_epu32_mask(whole, p.from[j], _mm512_set1_epi32((int)g->W));
    }
    sr_rows_inside(&p, 0, g);
    return p;
}

/* What the F taps meet in a row and, for the second half of vectors of two rows, S rows below it. With a step of 2 they are picked
 * out of two vectors: those two rows, or a row of up to 32 numbers. */
INLINE void sr_pick(const int F, const int S, const int rows, const float *x, ptrdiff_t W, ptrdiff_t row, const sr_picks *p,
                    __m512 *v) {
    const __mmask16 *const inside = p->inside + SR_WIDEST + row;
    const __m512 a = _mm512_maskz_loadu_ps(inside[0], x + row * W);
    if (S == 1) {
        UNROLL for (int j = 0; j < F; j++) v[j] = _mm512_maskz_permutexvar_ps(p->lanes[j], p->from[j], a);
    } else {
        const __m512 b = rows == 2 ? _mm512_maskz_loadu_ps(inside[S], x + (row + S) * W)
                                   : _mm512_maskz_loadu_ps(sr_first(W - 16), x + row * W + 16);
        UNROLL for (int j = 0; j < F; j++) v[j] = _mm512_maskz_permutex2var_ps(p->lanes[j], a, p->from[j], b);
    }
}

/* n planes, from number `plane` on, of y[r][o] = bias + sum of w[i][j] * x[r * S + i - top][o * S + j - left]. Up to 3x3 weights
 * lie in registers, and it is cheaper to make rows that are not wanted than to ask; else weights are numbers in memory. */
#define SR_FORWARD_ARGUMENTS const sr_planes *g, ptrdiff_t plane, ptrdiff_t n, const float *x, const float *w, float *y, \
                             const float *bias, int relu
INLINE void sr_forward_body(const int F, const int S, const int rows, SR_FORWARD_ARGUMENTS) {
    const ptrdiff_t H = g->H, W = g->W, height = g->height, width = g->width;
    const int down = rows * S; /* rows of x from one vector of results to the next */
    const sr_picks picks = sr_picks_forward(F, S, rows, g);
    const __mmask16 made = sr_first(width), second = (__mmask16)(made << 8);
    ptrdiff_t c = plane % g->D;
    x += plane * H * W;
    y += plane * height * width;
    for (; n > 0; n--, c = c + 1 < g->D ? c + 1 : 0, x += H * W, y += height * width) {
        const float *weights = w + c * F * F;
        __m512 wt[9];
        in_a_register(weights); /* or else the compiler keeps the address of each, and not this one */
        UNROLL for (int t = 0; t < 9; t++) wt[t] = _mm512_set1_ps(weights[t]);
        for (ptrdiff_t begin = 0; begin < height; begin += SR_VECTORS * rows) {
            __m512 acc[SR_VECTORS], v[SR_WIDEST];
            UNROLL for (int m = 0; m < SR_VECTORS; m++) acc[m] = _mm512_set1_ps(bias ? bias[c] : 0);
            UNROLL for (int i = 0; i < (SR_VECTORS - 1) * down + F; i++) {
                const ptrdiff_t row = begin * S + i - g->top;
                if (rows == 1 && (row < 0 || row >= H)) continue;
                sr_pick(F, S, rows, x, W, row, &picks, v);
                UNROLL for (int m = 0; m < SR_VECTORS; m++)
                    if (i >= m * down && i < m * down + F && (F <= 3 || m == 0 || begin + m * rows < height))
                        UNROLL for (int j = 0; j < F; j++) {
                            const int t = (i - m * down) * F + j;
                            acc[m] = _mm512_fmadd_ps(F <= 3 ? wt[t] : _mm512_set1_ps(weights[t]), v[j], acc[m]);
                        }
            }
            UNROLL for (int m = 0; m < SR_VECTORS; m++) {
                const ptrdiff_t r = begin + m * rows;
                if (relu) acc[m] = _mm512_max_ps(_mm512_setzero_ps(), acc[m]); /* a NaN stays one */
                if (r < height) _mm512_mask_storeu_ps(y + r * width, made, acc[m]);
                if (rows == 2 && r + 1 < height) _mm512_mask_storeu_ps(y + (r + 1) * width - 8, second, acc[m]);
            }
        }
    }
}
#define SR_DEFINE(F, S, rows, least) \
    static void sr_forward_##F##_##S##_##rows(SR_FORWARD_ARGUMENTS) { \
        sr_forward_body(F, S, rows, g, plane, n, x, w, y, bias, relu); \
    }
SR_EACH(SR_DEFINE)
#undef SR_DEFINE
static void sr_forward(ptrdiff_t F, ptrdiff_t S, SR_FORWARD_ARGUMENTS) {
#define SR_CALL(taps, step, rows, least) \
    if (SR_IS(taps, step, rows, least)) sr_forward_##taps##_##step##_##rows(g, plane, n, x, w, y, bias, relu);
    SR_EACH(SR_CALL)
#undef SR_CALL
}
#undef SR_FORWARD_ARGUMENTS

/* n planes, from number `plane` on, of dx[r][o] = sum of w[i][j] * dy[(r + top - i) / 2][(o + left - j) / 2] over the taps for
 * which both are whole, from column `first` on. A row of dy meets F rows of dx, of which the next one meets all but two. */
INLINE void sr_back_body(const int F, const sr_planes *g, ptrdiff_t plane, ptrdiff_t n, const float *dy, const float *w, float *dx,
                         ptrdiff_t first) {
    const ptrdiff_t H = g->H, W = g->W, height = g->height, width = g->width;
    const sr_picks picks = sr_picks_back(F, first, g);
    const __mmask16 made = sr_first(width - first);
    ptrdiff_t c = plane % g->D;
    dy += plane * H * W;
    dx += plane * height * width + first;
    for (; n > 0; n--, c = c + 1 < g->D ? c + 1 : 0, dy += H * W, dx += height * width) {
        const float *weights = w + c * F * F;
        __m512 acc[SR_WIDEST + 2], v[SR_WIDEST];
        in_a_register(weights);
        UNROLL for (int i = 0; i < F + 2; i++) acc[i] = _mm512_setzero_ps();
        for (ptrdiff_t row = (g->top - F + 2) >> 1; 2 * row - g->top < height; row++) {
            const ptrdiff_t r = 2 * row - g->top;
            if (row >= 0 && row < H) {
                sr_pick(F, 1, 1, dy, W, row, &picks, v);
                UNROLL for (int i = 0; i < F; i++)
                    UNROLL for (int j = 0; j < F; j++) /* no lanes that a tap does not meet: it need not be finite */
                        acc[i] = _mm512_mask3_fmadd_ps(_mm512_set1_ps(weights[i * F + j]), v[j], acc[i], picks.lanes[j]);
            }
            if (r >= 0) _mm512_mask_storeu_ps(dx + r * width, made, acc[0]);
            if (r >= -1 && r + 1 < height) _mm512_mask_storeu_ps(dx + (r + 1) * width, made, acc[1]);
            UNROLL for (int i = 0; i < F; i++) acc[i] = acc[i + 2];
        }
    }
}
static void sr_back(ptrdiff_t F, const sr_planes *g, ptrdiff_t plane, ptrdiff_t n, const float *dy, const float *w, float *dx) {
    for (ptrdiff_t first = 0; first < g->width; first += SR_MOST) {
        if (F == 3) sr_back_body(3, g, plane, n, dy, w, dx, first);
        else sr_back_body(5, g, plane, n, dy, w, dx, first);
    }
}

/* total[c - first][t][lane] += dy * x under tap t of a 3x3 window, over the planes c, first to end, of so many pictures; a plane's
 * sums are their own first. */
#define SR_GRAD_ARGUMENTS const sr_planes *g, ptrdiff_t pictures, ptrdiff_t first, ptrdiff_t end, const float *x, const float *dy, \
                          float *total, ptrdiff_t total_step
INLINE void sr_grad_body(const int S, const int rows, SR_GRAD_ARGUMENTS) {
    const ptrdiff_t height = g->height, width = g->width;
    const sr_picks picks = sr_picks_forward(3, S, rows, g);
    const __mmask16 made = sr_first(width);
    for (ptrdiff_t i = 0; i < pictures * (end - first); i++) {
        const ptrdiff_t c = i % (end - first), plane = i / (end - first) * g->D + first + c;
        const float *const in = x + plane * g->H * g->W, *const given = dy + plane * height * width;
        float *const to = total + c * total_step;
        __m512 acc[9], v[3];
        UNROLL for (int t = 0; t < 9; t++) acc[t] = _mm512_setzero_ps();
        for (ptrdiff_t r = 0; r < height; r += rows) {
            const __mmask16 second = (__mmask16)(rows == 2 && r + 1 < height ? made << 8 : 0);
            __m512 d = _mm512_maskz_loadu_ps(made, given + r * width);
            if (rows == 2) d = _mm512_mask_loadu_ps(d, second, given + (r + 1) * width - 8);
            UNROLL for (int k = 0; k < 3; k++) {
                const ptrdiff_t row = r * S + k - g->top;
                if (rows == 1 && (row < 0 || row >= g->H)) continue;
                sr_pick(3, S, rows, in, g->W, row, &picks, v);
                UNROLL for (int j = 0; j < 3; j++) /* no lanes without dy: zero times what is there need not be zero */
                    acc[3 * k + j] = _mm512_mask3_fmadd_ps(d, v[j], acc[3 * k + j], (__mmask16)(made | second));
            }
        }
        UNROLL for (int t = 0; t < 9; t++) _mm512_storeu_ps(to + t * 16, _mm512_add_ps(_mm512_loadu_ps(to + t * 16), acc[t]));
    }
}
static void sr_grad(ptrdiff_t S, SR_GRAD_ARGUMENTS) {
    if (g->width > 8 && S == 2) sr_grad_body(2, 1, g, pictures, first, end, x, dy, total, total_step);
    else if (g->width > 8) sr_grad_body(1, 1, g, pictures, first, end, x, dy, total, total_step);
    else if (S == 1) sr_grad_body(1, 2, g, pictures, first, end, x, dy, total, total_step);
    else sr_grad_body(2, 2, g, pictures, first, end, x, dy, total, total_step);
}
#undef SR_GRAD_ARGUMENTS
#else
INLINE int sr_made(ptrdiff_t F, ptrdiff_t S, const sr_planes *g) { return 0; }
INLINE int sr_back_made(ptrdiff_t F, ptrdiff_t S, const sr_planes *g) { return 0; }
INLINE void sr_forward(ptrdiff_t F, ptrdiff_t S, const sr_planes *g, ptrdiff_t plane, ptrdiff_t n, const float *x, const float *w,
                       float *y, const float *bias, int relu) {}
INLINE void sr_back(ptrdiff_t F, const sr_planes *g, ptrdiff_t plane, ptrdiff_t n, const float *dy, const float *w, float *dx) {}
INLINE void sr_grad(ptrdiff_t S, const sr_planes *g, ptrdiff_t pictures, ptrdiff_t first, ptrdiff_t end, const float *x,
                    const float *dy, float *total, ptrdiff_t total_step) {}
#endif
#endif
