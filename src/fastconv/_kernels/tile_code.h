/* The code of the first register tile of tile.h, a function for each height (this header reads itself for each REAL). */
#ifndef REAL
#ifndef FASTCONV_TILE_CODE_H
#define FASTCONV_TILE_CODE_H
#include "kernels.h"

#define REAL float
#define SUFFIX _f32
#include "tile_code.h"
#undef REAL
#undef SUFFIX

#define REAL double
#define SUFFIX _f64
#include "tile_code.h"
#undef REAL
#undef SUFFIX

static const tile_addresses all_tiles = {&all_tiles_f32, &all_tiles_f64};
#endif
#else

INLINE void CAT(tile_body)(const int rows, const int nv, const int by_rows, ptrdiff_t runs, ptrdiff_t length,
                           REAL *const *a, ptrdiff_t a_step, const REAL *b, ptrdiff_t b_step,
                           REAL *const *c, ptrdiff_t cols, const CAT(epilogue) * e, REAL *keep, const ptrdiff_t *table) {
    VEC acc[MR][2];
    const ptrdiff_t last = cols - (nv - 1) * VL;
    UNROLL for (int m = 0; m < rows; m++) {
        UNROLL for (int v = 0; v < nv; v++) {
            if (e->accumulate == 1) acc[m][v] = v < nv - 1 ? CAT(load)(c[m] + v * VL) : CAT(load_part)(c[m] + v * VL, last);
            else if (!e->bias) acc[m][v] = CAT(splat)(0);
            else acc[m][v] = e->bias_by_row ? CAT(splat)(e->bias[m]) : CAT(load)(e->bias + v * VL);
        }
    }
    if (e->fetch) {
        UNROLL for (int m = 0; m < rows; m++) prefetch_to_write(c[m]); /* the processor brings the line beside it */
    }
    const char *ahead = e->ahead ? e->ahead : b;
    const ptrdiff_t next = e->ahead ? e->ahead_step : 0, next_run = e->ahead ? e->ahead_run : 0;
    for (ptrdiff_t u = 0; u < runs; u++) {
        const REAL *row[MR];
        const ptrdiff_t n = by_rows && !keep && !table && !a[0] ? 0 : length;
        UNROLL for (int m = 0; m < rows; m++) row[m] = by_rows ? a[m] : a[0] + m;
        a += by_rows ? MR : 1;
        PRAGMA_UNROLL_K
        for (ptrdiff_t k = 0; k < n; k++) {
            VEC bk[2];
            if (!by_rows) {
                prefetch_low(ahead);
                ahead += next;
            }
            const REAL *at = table ? b + *table++ : b;
            UNROLL for (int v = 0; v < nv; v++)
                bk[v] = v == nv - 1 && (nv == 1 || !by_rows) && !table ? CAT(load_b)(at + v * VL, last) : CAT(load)(at + v * VL);
            if (keep) { /* the next panel's part of this row is far away, too */
                UNROLL for (int v = 0; v < nv; v++) {
                    CAT(store)(keep + v * VL, bk[v]);
                    prefetch_low(b + (nv + v + 1) * VL - 1);
                }
                keep += NR;
            }
            UNROLL for (int m = 0; m < rows; m++) {
                const VEC am = CAT(splat)(by_rows ? row[m][k] : row[0][k * a_step + m]);
                UNROLL for (int v = 0; v < nv; v++) acc[m][v] = CAT(fma)(am, bk[v], acc[m][v]);
            }
            b += b_step;
        }
        b += (length - n) * b_step;
        if (!by_rows) ahead += next_run;
    }
    if (!keep && !table && e->accumulate == 2) {
        UNROLL for (int m = 0; m < rows; m++) {
            UNROLL for (int v = 0; v < nv; v++) acc[m][v] = CAT(add)(acc[m][v], CAT(load)(c[m] + v * VL));
        }
    }
    const VEC least = CAT(splat)((REAL)(e->relu ? 0 : -INFINITY));
    UNROLL for (int m = 0; m < rows; m++) {
        UNROLL for (int v = 0; v < nv; v++) acc[m][v] = CAT(at_least)(least, acc[m][v]);
    }
    if (e->stream) {
        UNROLL for (int m = 0; m < rows; m++) {
            UNROLL for (int v = 0; v < nv; v++) CAT(stream)(c[m] + v * VL, acc[m][v]);
        }
    } else if (last >= VL) {
        UNROLL for (int m = 0; m < rows; m++) {
            UNROLL for (int v = 0; v < nv; v++) CAT(store)(c[m] + v * VL, acc[m][v]);
        }
    } else {
        UNROLL for (int m = 0; m < rows; m++) {
            UNROLL for (int v = 0; v < nv - 1; v++) CAT(store)(c[m] + v * VL, acc[m][v]);
            CAT(store_part)(c[m] + (nv - 1) * VL, acc[m][nv - 1], last);
        }
    }
}

#define TILE_VALUES runs, length, a, a_step, b, b_step, c, cols, e
#define DEFINE_TILE(m) \
    static void CAT(tile_rows1_##m)(TILE_ARGUMENTS) { CAT(tile_body)(m, 1, 1, TILE_VALUES, 0, 0); } \
    static void CAT(tile_rows2_##m)(TILE_ARGUMENTS) { CAT(tile_body)(m, 2, 1, TILE_VALUES, 0, 0); } \
    static void CAT(tile_cols1_##m)(TILE_ARGUMENTS) { CAT(tile_body)(m, 1, 0, TILE_VALUES, 0, 0); } \
    static void CAT(tile_cols2_##m)(TILE_ARGUMENTS) { CAT(tile_body)(m, 2, 0, TILE_VALUES, 0, 0); } \
    static void CAT(tile_table1_##m)(TILE_ARGUMENTS, const ptrdiff_t *table) { CAT(tile_body)(m, 1, 1, TILE_VALUES, 0, table); } \
    static void CAT(tile_table2_##m)(TILE_ARGUMENTS, const ptrdiff_t *table) { CAT(tile_body)(m, 2, 1, TILE_VALUES, 0, table); } \
    static void CAT(tile_keep_##m)(TILE_ARGUMENTS, REAL *keep) { CAT(tile_body)(m, 2, 1, TILE_VALUES, keep, 0); }
EACH_MR(DEFINE_TILE)

#define LIST_ROWS1(m) CAT(tile_rows1_##m),
#define LIST_ROWS2(m) CAT(tile_rows2_##m),
#define LIST_COLS1(m) CAT(tile_cols1_##m),
#define LIST_COLS2(m) CAT(tile_cols2_##m),
#define LIST_TABLE1(m) CAT(tile_table1_##m),
#define LIST_TABLE2(m) CAT(tile_table2_##m),
#define LIST_KEEP(m) CAT(tile_keep_##m),
static const CAT(tiles) CAT(all_tiles) = {
    {{0, EACH_MR(LIST_ROWS1)}, {0, EACH_MR(LIST_ROWS2)}},
    {{0, EACH_MR(LIST_COLS1)}, {0, EACH_MR(LIST_COLS2)}},
    {{0, EACH_MR(LIST_TABLE1)}, {0, EACH_MR(LIST_TABLE2)}},
    {0, EACH_MR(LIST_KEEP)},
};
#undef TILE_VALUES
#undef DEFINE_TILE
#undef LIST_ROWS1
#undef LIST_ROWS2
#undef LIST_COLS1
#undef LIST_COLS2
#undef LIST_TABLE1
#undef LIST_TABLE2
#undef LIST_KEEP
#endif
