/* The inner loops of depthwise convolution, once for float and once for double (this header reads itself for each REAL).
 *
 * Every channel has filters of its own, so there is no matrix product and no tile: a result is a sum over taps of a weight
 * times the picture shifted. The picture lies channels last, and vectors run over channels, or it has been staged as padded
 * planes, and vectors run along the rows. Either way a block of results stays in registers over all taps, which come as
 * lists of pointers: one into the picture and one to the weight for each tap, in the order of the window.
 *
 * Groups of 2, 4 or 8 channels with as many filters are done likewise, channels last: result k of a group takes channel
 * (k + r) % q with the r-th of q sets of weights, and a vector of channels is turned round within its groups from set to set. */
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
/* Lanes b to b + q turned round by one, and those of a vector of so many lanes. */
#define DW_ROUND_2(b) (b) + 1, (b)
#define DW_ROUND_4(b) (b) + 1, (b) + 2, (b) + 3, (b)
#define DW_ROUND_8(b) (b) + 1, (b) + 2, (b) + 3, (b) + 4, (b) + 5, (b) + 6, (b) + 7, (b)
#define DW_ROUND_2_2 DW_ROUND_2(0)
#define DW_ROUND_2_4 DW_ROUND_2_2, DW_ROUND_2(2)
#define DW_ROUND_2_8 DW_ROUND_2_4, DW_ROUND_2(4), DW_ROUND_2(6)
#define DW_ROUND_2_16 DW_ROUND_2_8, DW_ROUND_2(8), DW_ROUND_2(10), DW_ROUND_2(12), DW_ROUND_2(14)
#define DW_ROUND_4_2 0, 1 /* such groups do not fit, and are not asked for */
#define DW_ROUND_4_4 DW_ROUND_4(0)
#define DW_ROUND_4_8 DW_ROUND_4_4, DW_ROUND_4(4)
#define DW_ROUND_4_16 DW_ROUND_4_8, DW_ROUND_4(8), DW_ROUND_4(12)
#define DW_ROUND_8_2 0, 1
#define DW_ROUND_8_4 0, 1, 2, 3
#define DW_ROUND_8_8 DW_ROUND_8(0)
#define DW_ROUND_8_16 DW_ROUND_8_8, DW_ROUND_8(8)
#define DW_EACH(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#define DW_MOST 8
#define DW_WIDEST 7
#define DW_ROWS 4 /* rows of a plane that are made at a time */
#define DW_GRAD_ROWS 2 /* rows of dy that are read at a time */
#define DW_KINDS 8
/* Square windows, and steps, under which planes are taken as they lie: more of them with 16 lanes, and the registers that go with
 * them; for fewer lanes, or numbers of 64 bits, only the most common one is worth its bytes. */
#define DW_FEW_PLANES(X) X(3, 1) X(3, 2)
#define DW_MANY_PLANES(X) DW_FEW_PLANES(X) X(2, 1) X(4, 1) X(4, 2) X(5, 1) X(5, 2)
static inline int dw_plane_made(ptrdiff_t F, ptrdiff_t step, ptrdiff_t lanes) {
#define DW_PLANE_MADE(f, s) || (F == f && step == s)
    return lanes == 16 ? 0 DW_MANY_PLANES(DW_PLANE_MADE) : 0 DW_FEW_PLANES(DW_PLANE_MADE);
#undef DW_PLANE_MADE
}

/* The run that suits `width` neighbouring taps at this step; 0 if none does but that of single taps. */
static inline int dw_kind(ptrdiff_t width, ptrdiff_t step) {
    if (VECTOR_BYTES == 16 && width > 3) return 0; /* old processors, with few registers: not worth their bytes */
    if (step == 2) return width == 3 ? 6 : width == 5 ? 7 : 0;
    if (step != 1) return 0;
    return width == 7 ? 5 : width < 2 || width > 5 ? 0 : (int)width - 1;
}
/* Taps of the runs that make up so many side by side: as many as there are, a divisor, or else what leaves taps for one run more;
 * 1 if there is none. */
static inline ptrdiff_t dw_width(ptrdiff_t taps, ptrdiff_t step) {
    if (dw_kind(taps, step)) return taps;
    for (ptrdiff_t width = DW_WIDEST; width > 1; width--)
        if (width < taps && dw_kind(width, step) && taps % width == 0) return width;
    for (ptrdiff_t width = DW_WIDEST; width > 1; width--)
        if (width < taps && dw_kind(width, step) && dw_kind(taps % width, step)) return width;
    return 1;
}
/* Whether it is made for groups of channels, too. */
static inline int dw_grouped(int kind) { return kind == 0 || kind == 2 || kind == 6; }

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

#if LANES == 16 /* pixels of groups that 32 registers hold beside their results, or 16; and planes as above */
#define DW_MOST_OF_GROUPS 8
#define DW_EACH_OF_GROUPS DW_EACH
#define DW_EACH_PLANE DW_MANY_PLANES
#else
#define DW_MOST_OF_GROUPS 4
#define DW_EACH_OF_GROUPS(X) X(1) X(2) X(3) X(4)
#define DW_EACH_PLANE DW_FEW_PLANES
#endif

#if defined(__GNUC__)
#define DW_EVEN(a, b) __builtin_shufflevector(a, b, JOIN(DW_EVEN_, LANES))
#define DW_ODD(a, b) __builtin_shufflevector(a, b, JOIN(DW_ODD_, LANES))
#define DW_LOW(a, b) __builtin_shufflevector(a, b, JOIN(LOW_, LANES))
#define DW_HIGH(a, b) __builtin_shufflevector(a, b, JOIN(HIGH_, LANES))
INLINE VEC CAT(dw_turn_round)(const int q, VEC v) {
    if (q == 2) return __builtin_shufflevector(v, v, JOIN(DW_ROUND_2_, LANES));
    if (q == 4) return __builtin_shufflevector(v, v, JOIN(DW_ROUND_4_, LANES));
    return __builtin_shufflevector(v, v, JOIN(DW_ROUND_8_, LANES));
}
#else
INLINE VEC CAT(dw_turn_round)(const int q, VEC v) {
    VEC r;
    for (int i = 0; i < VL; i++) r.at[i] = v.at[i / q * q + (i + 1) % q];
    return r;
}
INLINE VEC CAT(dw_every_second)(VEC a, VEC b, int from) {
    REAL both[2 * VL];
    VEC r;
    CAT(store)(both, a);
    CAT(store)(both + VL, b);
    for (int i = 0; i < VL; i++) r.at[i] = both[2 * i + from];
    return r;
}
INLINE VEC CAT(dw_in_turn)(VEC a, VEC b, int from) {
    VEC r;
    for (int i = 0; i < VL; i++) r.at[i] = i % 2 ? b.at[from + i / 2] : a.at[from + i / 2];
    return r;
}
#define DW_LOW(a, b) CAT(dw_in_turn)(a, b, 0)
#define DW_HIGH(a, b) CAT(dw_in_turn)(a, b, VL / 2)
#define DW_EVEN(a, b) CAT(dw_every_second)(a, b, 0)
#define DW_ODD(a, b) CAT(dw_every_second)(a, b, 1)
#endif

/* The first `left` numbers, zeros after them, as load_part and store_part, without a loop on AVX2; and those from a lane on. */
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
INLINE void CAT(dw_store_last)(REAL *p, VEC v, ptrdiff_t from) {
    const __m256i lanes = _mm256_xor_si256(CAT(dw_mask)(from), _mm256_set1_epi32(-1));
    if (sizeof(REAL) == 4) _mm256_maskstore_ps((float *)p, lanes, (__m256)v);
    else _mm256_maskstore_pd((double *)p, lanes, (__m256d)v);
}
#else
INLINE VEC CAT(dw_load)(const REAL *p, ptrdiff_t left) { return CAT(load_part)(p, left); }
INLINE void CAT(dw_store)(REAL *p, VEC v, ptrdiff_t left) { CAT(store_part)(p, v, left); }
INLINE void CAT(dw_store_last)(REAL *p, VEC v, ptrdiff_t from) {
#if defined(__AVX512F__)
    if (sizeof(REAL) == 4) _mm512_mask_storeu_ps(p, (__mmask16)(0xffffu << from), (__m512)v);
    else _mm512_mask_storeu_pd(p, (__mmask8)(0xffu << from), (__m512d)v);
#else
    REAL whole[VL];
    CAT(store)(whole, v);
    for (ptrdiff_t i = from; i < VL; i++) p[i] = whole[i];
#endif
}
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

/* Channels c on of column `col` of a table: of a single tap the step is not known, and the vector may be a part of one. */
INLINE VEC CAT(dw_meet_pixel)(const int width, const REAL *const *p, ptrdiff_t step, int col, ptrdiff_t c, ptrdiff_t left) {
    return width == 1 ? CAT(dw_load)(p[col * step] + c, left) : CAT(load)(p[col] + c);
}

/* y[m * y_step + c] = bias[c] + sum over runs and taps of w[r][j * w_step + c] * x[r][m * step + j][c] for one vector of c; of
 * groups of q channels, the sum over the q sets of weights, w_round numbers from one to the next, as well. */
INLINE void CAT(dw_pixels)(const int q, const int columns, const int width, const int known_step, ptrdiff_t left, ptrdiff_t runs,
                           CAT(dw_tables) x, const REAL *const *w, ptrdiff_t w_step, ptrdiff_t w_round, ptrdiff_t step,
                           ptrdiff_t c, REAL *y, ptrdiff_t y_step, const REAL *bias, int relu, int stream) {
    enum { MOST_COLS = (DW_MOST - 1) * 2 + DW_WIDEST };
    const int cols = (columns - 1) * known_step + width;
    VEC acc[DW_MOST], wt[DW_WIDEST], v[MOST_COLS];
    const VEC start = bias ? CAT(dw_load)(bias + c, left) : CAT(splat)(0);
    UNROLL for (int m = 0; m < columns; m++) acc[m] = start;
    for (ptrdiff_t r = 0; r < runs; r++) {
        UNROLL for (int col = 0; col < cols; col++) v[col] = CAT(dw_meet_pixel)(width, x[r], step, col, c, left);
        ROLLED for (int k = 0; k < q; k++) {
            UNROLL for (int j = 0; j < width; j++) wt[j] = CAT(dw_load)(w[r] + k * w_round + j * w_step + c, left);
            UNROLL for (int col = 0; col < cols; col++) {
                UNROLL for (int j = 0; j < width; j++)
                    if (DW_MEETS(col, j, known_step, columns))
                        acc[(col - j) / known_step] = CAT(fma)(wt[j], v[col], acc[(col - j) / known_step]);
                if (q > 1) v[col] = CAT(dw_turn_round)(q, v[col]);
            }
        }
    }
    UNROLL for (int m = 0; m < columns; m++) {
        if (relu) acc[m] = CAT(relu)(acc[m]);
        if (stream) CAT(stream)(y + m * y_step + c, acc[m]);
        else CAT(dw_store)(y + m * y_step + c, acc[m], left);
    }
}

/* The gradient by the weights: dw[r][j * w_step + c] += sum over m of dy[m * dy_step + c] * x[r][m * step + j][c], for one vector
 * of c but its first `done` lanes. */
INLINE void CAT(dw_pixels_grad)(const int q, const int columns, const int width, const int known_step, ptrdiff_t left,
                                ptrdiff_t done, ptrdiff_t runs, CAT(dw_tables) x, REAL *const *dw, ptrdiff_t w_step,
                                ptrdiff_t w_round, ptrdiff_t step, ptrdiff_t c, const REAL *dy, ptrdiff_t dy_step) {
    enum { MOST_COLS = (DW_MOST - 1) * 2 + DW_WIDEST };
    const int cols = (columns - 1) * known_step + width;
    VEC g[DW_MOST], acc[DW_WIDEST], v[MOST_COLS];
    UNROLL for (int m = 0; m < columns; m++) g[m] = CAT(dw_load)(dy + m * dy_step + c, left);
    for (ptrdiff_t r = 0; r < runs; r++) {
        UNROLL for (int col = 0; col < cols; col++) v[col] = CAT(dw_meet_pixel)(width, x[r], step, col, c, left);
        ROLLED for (int k = 0; k < q; k++) {
            UNROLL for (int j = 0; j < width; j++) acc[j] = CAT(dw_load)(dw[r] + k * w_round + j * w_step + c, left);
            UNROLL for (int col = 0; col < cols; col++) {
                UNROLL for (int j = 0; j < width; j++)
                    if (DW_MEETS(col, j, known_step, columns)) acc[j] = CAT(fma)(g[(col - j) / known_step], v[col], acc[j]);
                if (q > 1) v[col] = CAT(dw_turn_round)(q, v[col]);
            }
            UNROLL for (int j = 0; j < width; j++) {
                REAL *to = dw[r] + k * w_round + j * w_step + c;
                if (width == 1) CAT(dw_store)(to, acc[j], left);
                else if (done == 0) CAT(store)(to, acc[j]);
                else CAT(dw_store_last)(to, acc[j], done);
            }
        }
    }
}

#define DW_ARGUMENTS ptrdiff_t runs, CAT(dw_tables) x, REAL *const *w, ptrdiff_t w_step, ptrdiff_t w_round, ptrdiff_t step, \
                     ptrdiff_t C, ptrdiff_t first, REAL *y, ptrdiff_t y_step, const REAL *bias, int relu, int stream
/* The second vector begins with channel `first`, if that is not 0: so the others lie on a cache line each. A last vector that would
 * be a part of one takes in lanes of the one before: they are made again. A gradient, which adds to them, leaves out lanes that
 * another vector has, and goes from the last vector to the first: what it loads has then not just been stored. Single taps take
 * parts of vectors. */
#define DW_DEFINE(q, width, known_step, m) \
    static void CAT(dw_row_##q##_##width##_##known_step##_##m)(DW_ARGUMENTS) { \
        ptrdiff_t c = 0; \
        for (; width == 1 ? c + VL <= C : c < C; c += c == 0 && first ? first : VL) { \
            if (width > 1 && c + VL > C) c = C - VL; \
            CAT(dw_pixels)(q, m, width, known_step, VL, runs, x, (const REAL *const *)w, w_step, w_round, step, c, y, y_step, \
                           bias, relu, stream); \
        } \
        if (width == 1 && c < C) \
            CAT(dw_pixels)(q, m, 1, 1, C - c, runs, x, (const REAL *const *)w, w_step, w_round, step, c, y, y_step, bias, relu, \
                           stream); \
    } \
    static void CAT(dw_grad_row_##q##_##width##_##known_step##_##m)(DW_ARGUMENTS) { \
        const ptrdiff_t second = width == 1 ? 0 : first; \
        ptrdiff_t c = second + (width == 1 ? C : C - second + VL - 1) / VL * VL; \
        if (width == 1 && c < C) \
            CAT(dw_pixels_grad)(q, m, 1, 1, C - c, 0, runs, x, w, w_step, w_round, step, c, y, y_step); \
        while ((c -= c == second && second ? second : VL) >= 0) { \
            const ptrdiff_t past = c + VL > C ? c + VL - C : 0, done = past == 0 && c == second && second ? VL - second : past; \
            CAT(dw_pixels_grad)(q, m, width, known_step, VL, done, runs, x, w, w_step, w_round, step, c - past, y, y_step); \
        } \
    }
#define DW_DEFINE_GROUPS(q, m) DW_DEFINE(q, 1, 1, m) DW_DEFINE(q, 3, 1, m) DW_DEFINE(q, 3, 2, m)
#define DW_DEFINE_2(m) DW_DEFINE_GROUPS(2, m)
#define DW_DEFINE_4(m) DW_DEFINE_GROUPS(4, m)
#define DW_DEFINE_8(m) DW_DEFINE_GROUPS(8, m)
#define DW_DEFINE_ALL(m) \
    DW_DEFINE(1, 1, 1, m) DW_DEFINE(1, 2, 1, m) DW_DEFINE(1, 3, 1, m) DW_DEFINE(1, 3, 2, m)
#define DW_DEFINE_WIDE(m) DW_DEFINE(1, 4, 1, m) DW_DEFINE(1, 5, 1, m) DW_DEFINE(1, 7, 1, m) DW_DEFINE(1, 5, 2, m)
DW_EACH(DW_DEFINE_ALL)
#if VECTOR_BYTES > 16
DW_EACH(DW_DEFINE_WIDE)
#define DW_LIST_WIDE(name, kind) DW_LIST(name, kind)
#else
#define DW_LIST_WIDE(name, kind) {0}
#endif
DW_EACH_OF_GROUPS(DW_DEFINE_2)
#if LANES >= 4
DW_EACH_OF_GROUPS(DW_DEFINE_4)
#define DW_LIST_4(name) DW_LIST_OF_GROUPS(name, 4)
#else
#define DW_LIST_4(name) {{0}}
#endif
#if LANES >= 8
DW_EACH_OF_GROUPS(DW_DEFINE_8)
#define DW_LIST_8(name) DW_LIST_OF_GROUPS(name, 8)
#else
#define DW_LIST_8(name) {{0}}
#endif

/* For groups of 1, 2, 4 and 8 and each kind of run, in the order of dw_kind: a function for each number of pixels. */
typedef void (*CAT(dw_function))(DW_ARGUMENTS);
#define DW_LIST(name, kind) \
    {0, CAT(name##_##kind##_1), CAT(name##_##kind##_2), CAT(name##_##kind##_3), CAT(name##_##kind##_4), \
     CAT(name##_##kind##_5), CAT(name##_##kind##_6), CAT(name##_##kind##_7), CAT(name##_##kind##_8)}
#if DW_MOST_OF_GROUPS == DW_MOST
#define DW_SHORT_LIST DW_LIST
#else
#define DW_SHORT_LIST(name, kind) \
    {0, CAT(name##_##kind##_1), CAT(name##_##kind##_2), CAT(name##_##kind##_3), CAT(name##_##kind##_4)}
#endif
#define DW_LIST_OF_GROUPS(name, q) \
    {DW_SHORT_LIST(name, q##_1_1), {0}, DW_SHORT_LIST(name, q##_3_1), {0}, {0}, {0}, DW_SHORT_LIST(name, q##_3_2)}
#define DW_LISTS(name) \
    {{DW_LIST(name, 1_1_1), DW_LIST(name, 1_2_1), DW_LIST(name, 1_3_1), DW_LIST_WIDE(name, 1_4_1), DW_LIST_WIDE(name, 1_5_1), \
      DW_LIST_WIDE(name, 1_7_1), DW_LIST(name, 1_3_2), DW_LIST_WIDE(name, 1_5_2)}, \
     DW_LIST_OF_GROUPS(name, 2), \
     DW_LIST_4(name), DW_LIST_8(name)}
static const CAT(dw_function) CAT(dw_rows)[2][4][DW_KINDS][DW_MOST + 1] = {DW_LISTS(dw_row), DW_LISTS(dw_grad_row)};

/* n pixels of a row, C channels; kind 0 alone takes less than a vector of them. Moves
 * the pointers in x along. The last `fresh` runs are met again `ahead` numbers further on, which is fetched now: vectors of
 * pixels far apart are nothing that the processor would guess. stream: y, of whole vectors, is written past the caches. */
static void CAT(dw_row)(int grad, int q, int kind, ptrdiff_t n, ptrdiff_t runs, void **x, void **w, ptrdiff_t w_step,
                        ptrdiff_t w_round, ptrdiff_t step, ptrdiff_t C, ptrdiff_t first, REAL *y, ptrdiff_t y_step,
                        const REAL *bias, int relu, int stream, ptrdiff_t ahead, ptrdiff_t newest, ptrdiff_t fresh,
                        ptrdiff_t y_ahead) {
    const ptrdiff_t most = q > 1 ? DW_MOST_OF_GROUPS : DW_MOST;
    for (ptrdiff_t blocks = (n + most - 1) / most; blocks > 0; blocks--) {
        const ptrdiff_t m = (n + blocks - 1) / blocks;
        for (ptrdiff_t r = newest; r < newest + fresh; r++)
            for (ptrdiff_t col = 0; col < m * step; col++)
                fetch_lines(((const REAL **)x[r])[col] + ahead, C * (ptrdiff_t)sizeof(REAL));
        if (y_ahead)
            for (ptrdiff_t col = 0; col < m; col++)
                fetch_lines(y + col * y_step + y_ahead, C * (ptrdiff_t)sizeof(REAL));
        CAT(dw_rows)[grad][q / 2 - q / 8][kind][m](runs, (CAT(dw_tables))x, (REAL *const *)w, w_step, w_round, step, C, first, y,
                                                   y_step, bias, relu, stream);
        for (ptrdiff_t r = 0; r < runs; r++) x[r] = (const REAL **)x[r] + m * step;
        y += m * y_step;
        n -= m;
    }
}

/* y[p * y_step + c] += part[p * C + c] for p < n, c < C, then perhaps a ReLU. */
static void CAT(dw_add_pixels)(REAL *y, ptrdiff_t y_step, const REAL *part, ptrdiff_t n, ptrdiff_t C, int relu) {
    for (; n > 0; n--, y += y_step, part += C) {
        for (ptrdiff_t c = 0; c < C; c += VL) {
            const VEC sum = CAT(add)(CAT(dw_load)(y + c, C - c), CAT(dw_load)(part + c, C - c));
            CAT(dw_store)(y + c, relu ? CAT(relu)(sum) : sum, C - c);
        }
    }
}
#undef DW_ARGUMENTS
#undef DW_DEFINE
#undef DW_DEFINE_ALL
#undef DW_DEFINE_WIDE
#undef DW_LIST_WIDE
#undef DW_DEFINE_GROUPS
#undef DW_DEFINE_2
#undef DW_DEFINE_4
#undef DW_DEFINE_8
#undef DW_LIST_4
#undef DW_LIST_8
#undef DW_SHORT_LIST
#undef DW_LIST_OF_GROUPS
#undef DW_LIST
#undef DW_LISTS
#undef DW_MEETS

/* ------------------------------------------------------------------------------------------------- planes as they lie
 *
 * An FxF window over one plane, vectors along its rows, a few rows of results at a time. Numbers outside a row are not read but
 * taken for zero. Narrow planes are gone through column by column, and so are all under large windows, for the masks of one column
 * stay in registers; other wide ones row by row, as they come from memory. What is met two bands of rows further on, be it in the
 * next plane, is fetched meanwhile. */
#if defined(__AVX512F__)
typedef __mmask16 CAT(dw_lanes);
INLINE CAT(dw_lanes) CAT(dw_between)(ptrdiff_t lo, ptrdiff_t hi) {
    return (__mmask16)(((1u << hi) - 1) & ~((1u << lo) - 1));
}
INLINE VEC CAT(dw_load_lanes)(const REAL *p, CAT(dw_lanes) lanes) {
    if (sizeof(REAL) == 4) return (VEC)_mm512_maskz_loadu_ps(lanes, p);
    return (VEC)_mm512_maskz_loadu_pd((__mmask8)lanes, p);
}
#elif defined(__AVX2__)
typedef __m256i CAT(dw_lanes);
INLINE CAT(dw_lanes) CAT(dw_between)(ptrdiff_t lo, ptrdiff_t hi) { return _mm256_andnot_si256(CAT(dw_mask)(lo), CAT(dw_mask)(hi)); }
INLINE VEC CAT(dw_load_lanes)(const REAL *p, CAT(dw_lanes) lanes) {
    if (sizeof(REAL) == 4) return (VEC)_mm256_maskload_ps((const float *)p, lanes);
    return (VEC)_mm256_maskload_pd((const double *)p, lanes);
}
#else
typedef struct { ptrdiff_t lo, hi; } CAT(dw_lanes);
INLINE CAT(dw_lanes) CAT(dw_between)(ptrdiff_t lo, ptrdiff_t hi) { return (CAT(dw_lanes)){lo, hi}; }
INLINE VEC CAT(dw_load_lanes)(const REAL *p, CAT(dw_lanes) lanes) {
    if (lanes.lo == 0 && lanes.hi == VL) return CAT(load)(p);
    REAL whole[VL] = {0};
    for (ptrdiff_t i = lanes.lo; i < lanes.hi; i++) whole[i] = p[i];
    return CAT(load)(whole);
}
#endif

/* The lanes of a vector that begins with number `first` of a row of n, of which the first `most` are wanted. */
INLINE CAT(dw_lanes) CAT(dw_inside)(ptrdiff_t first, ptrdiff_t n, ptrdiff_t most) {
    const ptrdiff_t lo = first < 0 ? -first : 0, left = n - first < most ? n - first : most;
    const ptrdiff_t hi = left < 0 ? 0 : left < VL ? left : VL;
    return CAT(dw_between)(lo < hi ? lo : hi, hi);
}

/* What the F taps of a window row meet: v[j][lane] = row[first + lane * step + j], for steps of 1 and 2. Of a step of 2 two taps
 * share what is read: `most` lanes of the first and, where there is a second, as many of it. */
typedef struct { CAT(dw_lanes) lanes[DW_WIDEST + 1]; ptrdiff_t first; } CAT(dw_columns);
INLINE CAT(dw_columns) CAT(dw_columns_at)(const int F, const int step, ptrdiff_t first, ptrdiff_t n, ptrdiff_t most) {
    CAT(dw_columns) c;
    c.first = first;
    for (int j = 0; j < F; j += step) {
        const ptrdiff_t some = step * most - (step == 2 && j + 1 == F ? 1 : 0);
        for (int k = 0; k < step; k++) c.lanes[j + k] = CAT(dw_inside)(first + j + k * VL, n, some - k * VL);
    }
    return c;
}
INLINE void CAT(dw_meet)(const int F, const int step, const REAL *row, const CAT(dw_columns) *c, VEC *v) {
    const REAL *p = row + c->first;
    UNROLL for (int j = 0; j < F; j += step) {
        const VEC a = CAT(dw_load_lanes)(p + j, c->lanes[j]);
        v[j] = a;
        if (step == 1) continue;
        const VEC b = CAT(dw_load_lanes)(p + j + VL, c->lanes[j + 1]);
        v[j] = DW_EVEN(a, b);
        if (j + 1 < F) v[j + 1] = DW_ODD(a, b);
    }
}

INLINE void CAT(dw_fetch)(const REAL *p, ptrdiff_t pitch, const int rows, const int vectors) {
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++) prefetch_low(p + i * pitch + v * VL);
}

/* A vector of DW_ROWS rows, or those before r_end, from (begin, o) on of what dw_plane does. Up to 3x3 weights lie in registers,
 * `wt`, and it is cheaper to make rows that are not wanted than to ask; else weights are numbers in memory. */
INLINE void CAT(dw_plane_block)(const int F, const int step, const REAL *x, ptrdiff_t H, ptrdiff_t W, ptrdiff_t top, const VEC *wt,
                                const REAL *w, const CAT(dw_columns) *columns, REAL *y, ptrdiff_t width, ptrdiff_t begin,
                                ptrdiff_t r_end, ptrdiff_t o, VEC start, int relu) {
    VEC acc[DW_ROWS];
    CAT(dw_fetch)(x + (begin + 2 * DW_ROWS) * step * W + o * step, W, DW_ROWS * step, step);
    UNROLL for (int m = 0; m < DW_ROWS; m++) acc[m] = start;
    UNROLL for (int i = 0; i < (DW_ROWS - 1) * step + F; i++) {
        const ptrdiff_t row = begin * step + i - top;
        if (row < 0 || row >= H) continue;
        VEC v[DW_WIDEST];
        CAT(dw_meet)(F, step, x + row * W, columns, v);
        UNROLL for (int m = 0; m < DW_ROWS; m++)
            if (i >= m * step && i - m * step < F && (F <= 3 || m == 0 || begin + m < r_end))
                UNROLL for (int j = 0; j < F; j++)
                    acc[m] = CAT(fma)(F <= 3 ? wt[(i - m * step) * F + j] : CAT(splat)(w[(i - m * step) * F + j]), v[j], acc[m]);
    }
    UNROLL for (int m = 0; m < DW_ROWS; m++)
        if (begin + m < r_end) CAT(dw_store)(y + (begin + m) * width + o, relu ? CAT(relu)(acc[m]) : acc[m], width - o);
}

/* Rows r to r_end of y[r][o] = bias + sum of w[(i * F + j) * w_step] * x[r * step + i - top][o * step + j - left]. */
#define DW_PLANE_ARGUMENTS const REAL *x, ptrdiff_t H, ptrdiff_t W, ptrdiff_t top, ptrdiff_t left, const REAL *w, \
                           ptrdiff_t w_step, REAL *y, ptrdiff_t width, ptrdiff_t r, ptrdiff_t r_end, const REAL *bias, int relu
INLINE void CAT(dw_plane_body)(const int F, const int step, DW_PLANE_ARGUMENTS) {
    const VEC start = CAT(splat)(bias ? *bias : 0);
    CAT(dw_columns) columns[DW_MOST];
    VEC wt[9];
    REAL in_order[DW_WIDEST * DW_WIDEST];
    UNROLL for (int i = 0; i < F * F; i++) {
        if (F <= 3) wt[i] = CAT(splat)(w[i * w_step]);
        else in_order[i] = w[i * w_step];
    }
    const int by_columns = F > 3 || width <= 2 * VL;
    for (ptrdiff_t o = 0; by_columns && o < width; o += VL) {
        const CAT(dw_columns) one = CAT(dw_columns_at)(F, step, o * step - left, W, VL);
        for (ptrdiff_t begin = r; begin < r_end; begin += DW_ROWS)
            CAT(dw_plane_block)(F, step, x, H, W, top, wt, in_order, &one, y, width, begin, r_end, o, start, relu);
    }
    for (ptrdiff_t at = 0; !by_columns && at < width; at += DW_MOST * VL) {
        const ptrdiff_t end = width < at + DW_MOST * VL ? width : at + DW_MOST * VL;
        for (ptrdiff_t o = at; o < end; o += VL) columns[(o - at) / VL] = CAT(dw_columns_at)(F, step, o * step - left, W, VL);
        for (ptrdiff_t begin = r; begin < r_end; begin += DW_ROWS)
            for (ptrdiff_t o = at; o < end; o += VL)
                CAT(dw_plane_block)(F, step, x, H, W, top, wt, in_order, &columns[(o - at) / VL], y, width, begin, r_end, o, start,
                                    relu);
    }
}
#define DW_DEFINE_PLANE(F, step) \
    static void CAT(dw_plane_##F##_##step)(DW_PLANE_ARGUMENTS) { \
        CAT(dw_plane_body)(F, step, x, H, W, top, left, w, w_step, y, width, r, r_end, bias, relu); \
    }
DW_EACH_PLANE(DW_DEFINE_PLANE)
typedef void (*CAT(dw_plane_function))(DW_PLANE_ARGUMENTS);
#define DW_LIST_PLANE(F, step) [F][step] = CAT(dw_plane_##F##_##step),
static const CAT(dw_plane_function) CAT(dw_planes)[DW_WIDEST + 1][3] = {DW_EACH_PLANE(DW_LIST_PLANE)};
static void CAT(dw_plane)(ptrdiff_t F, ptrdiff_t step, DW_PLANE_ARGUMENTS) {
    CAT(dw_planes)[F][step](x, H, W, top, left, w, w_step, y, width, r, r_end, bias, relu);
}
#undef DW_PLANE_ARGUMENTS
#undef DW_DEFINE_PLANE
#undef DW_LIST_PLANE

/* Rows r to r_end of the gradient by the picture for steps of 2, from dy of H x W: dx[r][2q + b] = sum over the taps that
 * meet it, (r + top - i) and (b + left - j) even, of w[i][j] * dy[(r + top - i) / 2][q + (b + left - j) / 2]. Of a row of dy
 * two places are met, one column apart; a row of dx meets two rows of dy, and the next row of dx the later one of them, so
 * that `some_rows` of a vector are made one after the other: as many as may be, or one where dx is not kept by any cache. */
typedef struct { VEC at[2]; int inside; } CAT(dw_met);
INLINE CAT(dw_met) CAT(dw_meet_row)(const REAL *dy, ptrdiff_t H, ptrdiff_t W, ptrdiff_t row, ptrdiff_t q, const CAT(dw_lanes) *lanes) {
    CAT(dw_met) met = {{CAT(splat)(0), CAT(splat)(0)}, row >= 0 && row < H};
    if (met.inside) UNROLL for (int k = 0; k < 2; k++) met.at[k] = CAT(dw_load_lanes)(dy + row * W + q + k, lanes[k]);
    return met;
}
/* Adds what the taps of a window row meet to the even and the odd columns: taps 2, 1 and 0 from left to right. */
INLINE void CAT(dw_add_row)(const int odd, const CAT(dw_met) *met, const VEC *wt, VEC *acc) {
    if (!met->inside) return;
    acc[odd] = CAT(fma)(wt[0], met->at[1], acc[odd]);
    acc[!odd] = CAT(fma)(wt[1], met->at[!odd], acc[!odd]);
    acc[odd] = CAT(fma)(wt[2], met->at[0], acc[odd]);
}
INLINE void CAT(dw_plane_back_body)(const int odd, const REAL *dy, ptrdiff_t H, ptrdiff_t W, ptrdiff_t top, ptrdiff_t left,
                                    const REAL *w, REAL *dx, ptrdiff_t width, ptrdiff_t r, ptrdiff_t r_end, ptrdiff_t some_rows) {
    const ptrdiff_t offset = (odd + left) / 2 - 1; /* the first of the two places */
    VEC wt[9];
    UNROLL for (int t = 0; t < 9; t++) wt[t] = CAT(splat)(w[t]);
    for (ptrdiff_t begin = r; begin < r_end; begin += some_rows) {
        const ptrdiff_t end = begin + some_rows < r_end ? begin + some_rows : r_end;
        for (ptrdiff_t q = 0; 2 * q < width; q += VL) {
            const ptrdiff_t at = q + offset, some = width - 2 * q;
            const CAT(dw_lanes) lanes[2] = {CAT(dw_inside)(at, W, VL), CAT(dw_inside)(at + 1, W, VL)};
            CAT(dw_met) later = CAT(dw_meet_row)(dy, H, W, (begin + top + 1) / 2 - 1, at, lanes);
            for (ptrdiff_t row = begin; row < end; row++) {
                VEC acc[2] = {CAT(splat)(0), CAT(splat)(0)}; /* even and odd columns */
                if ((row + top) % 2) {
                    CAT(dw_add_row)(odd, &later, wt + 3, acc);
                } else {
                    const CAT(dw_met) earlier = later;
                    later = CAT(dw_meet_row)(dy, H, W, (row + top) / 2, at, lanes);
                    prefetch(dy + ((row + top) / 2 + 8) * W + q);
                    CAT(dw_add_row)(odd, &later, wt, acc);
                    CAT(dw_add_row)(odd, &earlier, wt + 6, acc);
                }
                REAL *to = dx + row * width + 2 * q;
                CAT(dw_store)(to, DW_LOW(acc[0], acc[1]), some);
                if (some > VL) CAT(dw_store)(to + VL, DW_HIGH(acc[0], acc[1]), some - VL);
            }
        }
    }
}
static void CAT(dw_plane_back)(const REAL *dy, ptrdiff_t H, ptrdiff_t W, ptrdiff_t top, ptrdiff_t left, const REAL *w, REAL *dx,
                               ptrdiff_t width, ptrdiff_t r, ptrdiff_t r_end, ptrdiff_t some_rows) {
    if (left % 2) CAT(dw_plane_back_body)(1, dy, H, W, top, left, w, dx, width, r, r_end, some_rows);
    else CAT(dw_plane_back_body)(0, dy, H, W, top, left, w, dx, width, r, r_end, some_rows);
}

/* acc[t][lane] += dy * x under tap t, for a vector of DW_GRAD_ROWS rows of dy from (begin, o) on. */
INLINE void CAT(dw_plane_grad_block)(const int step, const REAL *x, ptrdiff_t H, ptrdiff_t W, ptrdiff_t top,
                                     const CAT(dw_columns) *columns, const REAL *dy, ptrdiff_t height, ptrdiff_t width,
                                     ptrdiff_t begin, ptrdiff_t o, VEC *acc) {
    VEC g[DW_GRAD_ROWS];
    CAT(dw_fetch)(x + (begin + 4 * DW_GRAD_ROWS) * step * W + o * step, W, DW_GRAD_ROWS * step, step);
    CAT(dw_fetch)(dy + (begin + 4 * DW_GRAD_ROWS) * width + o, width, DW_GRAD_ROWS, 1);
    UNROLL for (int m = 0; m < DW_GRAD_ROWS; m++)
        g[m] = begin + m < height ? CAT(dw_load)(dy + (begin + m) * width + o, width - o) : CAT(splat)(0);
    UNROLL for (int i = 0; i < (DW_GRAD_ROWS - 1) * step + 3; i++) {
        const ptrdiff_t row = begin * step + i - top;
        if (row < 0 || row >= H) continue;
        VEC v[3];
        CAT(dw_meet)(3, step, x + row * W, columns, v);
        UNROLL for (int m = 0; m < DW_GRAD_ROWS; m++)
            if (i >= m * step && i - m * step < 3 && (m == 0 || begin + m < height))
                UNROLL for (int j = 0; j < 3; j++)
                    acc[(i - m * step) * 3 + j] = CAT(fma)(g[m], v[j], acc[(i - m * step) * 3 + j]);
    }
}

/* total[t][lane] += dy * x under tap t, over a plane; a plane's sums are their own first. */
INLINE void CAT(dw_plane_grad_body)(const int step, const REAL *x, ptrdiff_t H, ptrdiff_t W, ptrdiff_t top, ptrdiff_t left,
                                    const REAL *dy, ptrdiff_t height, ptrdiff_t width, REAL *total) {
    CAT(dw_columns) columns[DW_MOST];
    VEC acc[9];
    UNROLL for (int t = 0; t < 9; t++) acc[t] = CAT(splat)(0);
    /* no lanes past dy's last column: zero times what is there need not be zero */
    for (ptrdiff_t o = 0; width <= 2 * VL && o < width; o += VL) {
        const CAT(dw_columns) one = CAT(dw_columns_at)(3, step, o * step - left, W, width - o < VL ? width - o : VL);
        for (ptrdiff_t begin = 0; begin < height; begin += DW_GRAD_ROWS)
            CAT(dw_plane_grad_block)(step, x, H, W, top, &one, dy, height, width, begin, o, acc);
    }
    for (ptrdiff_t at = 0; width > 2 * VL && at < width; at += DW_MOST * VL) {
        const ptrdiff_t end = width < at + DW_MOST * VL ? width : at + DW_MOST * VL;
        for (ptrdiff_t o = at; o < end; o += VL)
            columns[(o - at) / VL] = CAT(dw_columns_at)(3, step, o * step - left, W, width - o < VL ? width - o : VL);
        for (ptrdiff_t begin = 0; begin < height; begin += DW_GRAD_ROWS)
            for (ptrdiff_t o = at; o < end; o += VL)
                CAT(dw_plane_grad_block)(step, x, H, W, top, &columns[(o - at) / VL], dy, height, width, begin, o, acc);
    }
    UNROLL for (int t = 0; t < 9; t++) CAT(store)(total + t * VL, CAT(add)(CAT(load)(total + t * VL), acc[t]));
}
static void CAT(dw_plane_grad)(ptrdiff_t step, const REAL *x, ptrdiff_t H, ptrdiff_t W, ptrdiff_t top, ptrdiff_t left,
                               const REAL *dy, ptrdiff_t height, ptrdiff_t width, REAL *total) {
    if (step == 1) CAT(dw_plane_grad_body)(1, x, H, W, top, left, dy, height, width, total);
    else CAT(dw_plane_grad_body)(2, x, H, W, top, left, dy, height, width, total);
}

/* out[t] = sum over parts p and lanes of sums[p * part + t * VL + lane], for each of the taps. */
static void CAT(dw_add_lanes)(REAL *out, const REAL *sums, ptrdiff_t taps, ptrdiff_t parts, ptrdiff_t part) {
    for (ptrdiff_t t = 0; t < taps; t += VL) {
        VEC v[VL];
        UNROLL for (int k = 0; k < VL; k++) {
            v[k] = t + k < taps ? CAT(load)(sums + (t + k) * VL) : CAT(splat)(0);
            for (ptrdiff_t p = 1; p < parts && t + k < taps; p++) v[k] = CAT(add)(v[k], CAT(load)(sums + p * part + (t + k) * VL));
        }
        CAT(store_part)(out + t, CAT(add_lanes)(v), taps - t);
    }
}

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
            CAT(dw_store)(dst + i, DW_EVEN(a, b), (left + 1) / 2);
            CAT(dw_store)(dst + step + i, DW_ODD(a, b), left / 2);
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
            CAT(dw_store)(dst + 2 * i, DW_LOW(a, b), left);
            if (left > VL) CAT(dw_store)(dst + 2 * i + VL, DW_HIGH(a, b), left - VL);
        }
        return;
    }
#endif
    for (ptrdiff_t at = i * S; at < n; i++)
        for (ptrdiff_t k = 0; k < S && at < n; k++, at++) dst[at] = src[k * step + i];
}
#undef DW_MOST_OF_GROUPS
#undef DW_EACH_OF_GROUPS
#undef DW_EACH_PLANE
#undef DW_EVEN
#undef DW_ODD
#undef DW_LOW
#undef DW_HIGH
#endif
