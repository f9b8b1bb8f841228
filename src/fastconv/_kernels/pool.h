/* The inner loops of pooling, once for float and once for double (this header reads itself for each REAL).
 *
 * A run is n results side by side whose windows have the same taps: the channels of a pixel (step 1), or the places of a row
 * (step S). Result l takes x[t][l * step] for every tap t. */
#ifndef REAL
#ifndef FASTCONV_POOL_H
#define FASTCONV_POOL_H
#include <math.h>
#include <stdint.h>
#include "kernels.h"

#define REAL float
#define SUFFIX _f32
#define PLACE int32_t
#include "pool.h"
#undef REAL
#undef SUFFIX
#undef PLACE

#define REAL double
#define SUFFIX _f64
#define PLACE int64_t
#include "pool.h"
#undef REAL
#undef SUFFIX
#undef PLACE
#endif
#else

INLINE VEC CAT(pool_load)(const REAL *p, ptrdiff_t step, ptrdiff_t n) {
    if (step == 1) return CAT(load_part)(p, n);
    if (step == 2) return CAT(load_even)(p, n);
    REAL lanes[VECTOR_BYTES / sizeof(REAL)] = {0};
    for (ptrdiff_t l = 0; l < n && l < VL; l++) lanes[l] = p[l * step];
    return CAT(load)(lanes);
}

#if defined(__GNUC__)
typedef PLACE CAT(places) __attribute__((vector_size(VECTOR_BYTES)));
/* Take over cells that are larger than the best so far, or NaN, and their place. */
INLINE void CAT(pool_take)(VEC v, PLACE place, VEC *best, CAT(places) * at) {
    const CAT(places) wins = (v > *best) | (v != v);
    *best = (VEC)((wins & (CAT(places))v) | (~wins & (CAT(places)) * best));
    *at = (wins & (place - (CAT(places)){0})) | (~wins & *at);
}
#else
typedef struct { PLACE at[VECTOR_BYTES / sizeof(REAL)]; } CAT(places);
INLINE void CAT(pool_take)(VEC v, PLACE place, VEC *best, CAT(places) * at) {
    for (int l = 0; l < VL; l++)
        if (v.at[l] > best->at[l] || v.at[l] != v.at[l]) {
            best->at[l] = v.at[l];
            at->at[l] = place;
        }
}
#endif

/* y[l] = the largest cell, index[l] = origin + l * step_of_place + its place; the first of equals wins, NaN over everything.
 * Without a tap -infinity and -1. index may be NULL. */
INLINE void CAT(pool_max_vector)(ptrdiff_t left, ptrdiff_t taps, const REAL *const *x, const PLACE *place, ptrdiff_t at,
                                 ptrdiff_t step, int64_t origin, ptrdiff_t step_of_place, REAL *y, int64_t *index) {
    union { CAT(places) v; PLACE lane[VECTOR_BYTES / sizeof(REAL)]; } where;
    VEC best = CAT(splat)(-(REAL)INFINITY);
    for (int i = 0; i < VL; i++) where.lane[i] = taps ? place[0] : 0;
    if (taps) best = CAT(pool_load)(x[0] + at, step, left);
    for (ptrdiff_t t = 1; t < taps; t++) CAT(pool_take)(CAT(pool_load)(x[t] + at, step, left), place[t], &best, &where.v);
    CAT(store_part)(y, best, left);
    if (!index) return;
    if (taps) for (ptrdiff_t i = 0; i < left; i++) index[i] = origin + i * step_of_place + where.lane[i];
    else for (ptrdiff_t i = 0; i < left; i++) index[i] = -1;
}
INLINE void CAT(pool_max_body)(ptrdiff_t taps, const REAL *const *x, const PLACE *place, ptrdiff_t at, ptrdiff_t n, ptrdiff_t step,
                               int64_t origin, ptrdiff_t step_of_place, REAL *y, int64_t *index) {
    for (; n >= VL; n -= VL) {
        CAT(pool_max_vector)(VL, taps, x, place, at, step, origin, step_of_place, y, index);
        at += VL * step;
        origin += VL * step_of_place;
        y += VL;
        if (index) index += VL;
    }
    if (n > 0) CAT(pool_max_vector)(n, taps, x, place, at, step, origin, step_of_place, y, index);
}
static void CAT(pool_max)(ptrdiff_t taps, const REAL *const *x, const PLACE *place, ptrdiff_t at, ptrdiff_t n, ptrdiff_t step,
                          int64_t origin, ptrdiff_t step_of_place, REAL *y, int64_t *index) {
    if (step == 1 && step_of_place == 0) CAT(pool_max_body)(taps, x, place, at, n, 1, origin, 0, y, index);
    else if (step == 1) CAT(pool_max_body)(taps, x, place, at, n, 1, origin, 1, y, index);
    else if (step == 2) CAT(pool_max_body)(taps, x, place, at, n, 2, origin, 2, y, index);
    else CAT(pool_max_body)(taps, x, place, at, n, step, origin, step_of_place, y, index);
}

/* The gradient of the maximum where windows of F_h x F_w cells tile the picture: n places side by side (the channels of a pixel,
 * step 0, or the places of a row, step F_w) give their dy to the cell of their window that won, and zeros to the others.
 * `cell` is the first cell of the first window, dx where it lies; a row of the picture has W1 cells, D numbers each.
 * missed[lane] becomes true where no cell of the window had won. */
static void CAT(pool_give)(const REAL *dy, const int64_t *index, ptrdiff_t n, ptrdiff_t step, ptrdiff_t cell, ptrdiff_t F_h,
                           ptrdiff_t F_w, ptrdiff_t W1, ptrdiff_t D, REAL *dx, PLACE *missed) {
#if defined(__GNUC__)
    union { CAT(places) v; PLACE lane[VECTOR_BYTES / sizeof(REAL)]; } number, miss;
    union { VEC v; REAL lane[VECTOR_BYTES / sizeof(REAL)]; } share;
    for (int i = 0; i < VL; i++) {
        number.lane[i] = i;
        miss.lane[i] = missed[i];
    }
    for (ptrdiff_t l = 0; l < n; l += VL) {
        const ptrdiff_t left = n - l < VL ? n - l : VL;
        const VEC given = CAT(add)(CAT(load_part)(dy + l, left), CAT(splat)(0)); /* -0 to 0, as in a sum */
        const REAL *whole = (const REAL *)(index + l); /* of one width with PLACE, or two halves, the lower one first */
        const int halves = sizeof(int64_t) / sizeof(PLACE);
        const CAT(places) low = (CAT(places))(halves == 1 ? CAT(load_part)(whole, left) : CAT(load_even)(whole, left));
        const CAT(places) lost = halves == 1 ? low < 0 : (CAT(places))CAT(load_even)(whole + 1, left) != 0;
        const CAT(places) at = (low - (PLACE)(cell + l * step) - number.v * (PLACE)step) | lost;
        CAT(places) hit = number.v >= (PLACE)left;
        for (ptrdiff_t r = 0; r < F_h; r++) {
            REAL *to = dx + r * W1 * D + l * (step ? step : 1);
            if (step == 2) { /* the cells of two columns by turns */
                const CAT(places) even = at == (PLACE)(r * W1), odd = at == (PLACE)(r * W1 + 1);
                const VEC a = (VEC)(even & (CAT(places))given), b = (VEC)(odd & (CAT(places))given);
                hit |= even | odd;
                CAT(store_by_turns)(to, a, b, 2 * left);
                continue;
            }
            for (ptrdiff_t s = 0; s < F_w; s++) {
                const CAT(places) wins = at == (PLACE)(r * W1 + s);
                share.v = (VEC)(wins & (CAT(places))given);
                hit |= wins;
                if (step) CAT(spread)(to + s, share.lane, left, step);
                else CAT(store_part)(to + s * D, share.v, left);
            }
        }
        miss.v |= ~hit;
    }
    for (int i = 0; i < VL; i++) missed[i] = miss.lane[i];
#else
    for (ptrdiff_t l = 0; l < n; l++) {
        REAL *to = dx + (step ? l * step : l);
        int hit = 0;
        for (ptrdiff_t r = 0; r < F_h; r++) {
            for (ptrdiff_t s = 0; s < F_w; s++) {
                const int wins = index[l] == cell + l * step + r * W1 + s;
                hit |= wins;
                to[(r * W1 + s) * D] = wins ? dy[l] + 0 : 0;
            }
        }
        missed[0] |= !hit;
    }
#endif
}

/* y[l] = the sum of the cells / divisor */
INLINE void CAT(pool_mean_vector)(ptrdiff_t left, ptrdiff_t taps, const REAL *const *x, ptrdiff_t at, ptrdiff_t step, REAL divisor,
                                  REAL *y) {
    union { VEC v; REAL lane[VECTOR_BYTES / sizeof(REAL)]; } sum;
    sum.v = CAT(splat)(0);
    for (ptrdiff_t t = 0; t < taps; t++) sum.v = CAT(add)(sum.v, CAT(pool_load)(x[t] + at, step, left));
    for (int i = 0; i < VL; i++) sum.lane[i] /= divisor;
    CAT(store_part)(y, sum.v, left);
}
INLINE void CAT(pool_mean_body)(ptrdiff_t taps, const REAL *const *x, ptrdiff_t at, ptrdiff_t n, ptrdiff_t step, REAL divisor,
                                REAL *y) {
    ptrdiff_t l = 0;
    for (; l + VL <= n; l += VL) CAT(pool_mean_vector)(VL, taps, x, at + l * step, step, divisor, y + l);
    if (l < n) CAT(pool_mean_vector)(n - l, taps, x, at + l * step, step, divisor, y + l);
}
static void CAT(pool_mean)(ptrdiff_t taps, const REAL *const *x, ptrdiff_t at, ptrdiff_t n, ptrdiff_t step, REAL divisor, REAL *y) {
    if (step == 1) CAT(pool_mean_body)(taps, x, at, n, 1, divisor, y);
    else if (step == 2) CAT(pool_mean_body)(taps, x, at, n, 2, divisor, y);
    else CAT(pool_mean_body)(taps, x, at, n, step, divisor, y);
}

/* y[l] = sum over taps of share[t] * x[t][l] */
static void CAT(pool_shares)(ptrdiff_t taps, const REAL *const *x, const REAL *share, ptrdiff_t n, REAL *y) {
    for (ptrdiff_t l = 0; l < n; l += VL) {
        const ptrdiff_t left = n - l < VL ? n - l : VL;
        VEC sum = CAT(splat)(0);
        for (ptrdiff_t t = 0; t < taps; t++) sum = CAT(fma)(CAT(splat)(share[t]), CAT(load_part)(x[t] + l, left), sum);
        CAT(store_part)(y + l, sum, left);
    }
}
#endif
