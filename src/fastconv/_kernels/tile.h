/* The register tiles: every product of convolution but depthwise is computed here. First, for nearly all of them:
 *
 *     C[m][j] = init + sum over runs u, k < length of  A[u][m](k) * B[u * length + k][j],   m < rows <= MR, j < cols <= NR
 *
 * C stays in registers from the first product to the last. B is packed, one row of b_step numbers after the other.
 * A is read one number at a time and broadcast, in one of two ways:
 *     by rows:     A[u][m](k) = a[u * MR + m][k]            a pointer for each row (a pixel, a tile, a filter), k runs along it
 *     by columns:  A[u][m](k) = a[u][k * a_step + m]        the rows lie side by side (channels of a pixel), k steps over them
 * A run is a stretch of k without a jump: a tap of the window, a row of the picture. One whose a[u][0] is NULL is left out.
 *
 * A B that lies in rows of a picture may be packed by the first tile that reads it: row after row goes to `keep` as well. Or its
 * rows lie wherever a table says, one distance from b for each k of each run.
 *
 * There is a function for each height, in tile_code.h. They are large, and so the module `tile` alone compiles them: the others
 * take their addresses from it when they are imported. */

typedef struct {
    const REAL *bias;  /* NULL, or numbers that C starts from: one for each column, or for each row */
    int bias_by_row;
    int accumulate;    /* C starts from what is in memory; 2: that, whole vectors, is added in the end, if B is packed */
    int relu;          /* C ends as max(C, 0) */
    int stream;        /* C is written past the caches; its rows begin at whole vectors and cols is a multiple of VL */
    int fetch;         /* C lies far away: its lines are called for while the products run */
    const void *ahead; /* NULL, or, by columns, the first of the lines that are called for while the products run, one for each k, */
    ptrdiff_t ahead_step, ahead_run; /* bytes from one to the next, and further from the last one of a run to the next run's */
} CAT(epilogue);

#define TILE_ARGUMENTS \
    ptrdiff_t runs, ptrdiff_t length, REAL *const *a, ptrdiff_t a_step, const REAL *b, ptrdiff_t b_step, \
    REAL *const *c, ptrdiff_t cols, const CAT(epilogue) *e
typedef void (*CAT(tile_function))(TILE_ARGUMENTS);
typedef void (*CAT(keeping_tile_function))(TILE_ARGUMENTS, REAL *keep);
typedef void (*CAT(table_tile_function))(TILE_ARGUMENTS, const ptrdiff_t *table);

/* By the vectors in a row of B, less one, and by the rows of C. */
typedef struct {
    CAT(tile_function) by_rows[2][MR + 1], by_columns[2][MR + 1];
    CAT(table_tile_function) by_table[2][MR + 1];
    CAT(keeping_tile_function) and_keep[MR + 1];
} CAT(tiles);
static const CAT(tiles) *CAT(the_tiles);

static inline void CAT(tile_by_rows)(ptrdiff_t rows, TILE_ARGUMENTS) {
    CAT(the_tiles)->by_rows[cols > VL][rows](runs, length, a, a_step, b, b_step, c, cols, e);
}
static inline void CAT(tile_by_columns)(ptrdiff_t rows, TILE_ARGUMENTS) {
    CAT(the_tiles)->by_columns[cols > VL][rows](runs, length, a, a_step, b, b_step, c, cols, e);
}
/* NR columns by rows; B is packed as well: keep[k * NR + j] = B[k][j]. */
static inline void CAT(tile_and_keep)(ptrdiff_t rows, ptrdiff_t length, REAL *const *a, const REAL *b, ptrdiff_t b_step,
                                      REAL *const *c, const CAT(epilogue) *e, REAL *keep) {
    CAT(the_tiles)->and_keep[rows](1, length, a, 1, b, b_step, c, NR, e, keep);
}
/* Row k of B, counted over the runs, lies at b + table[k]; whole vectors of it are read. */
static inline void CAT(tile_by_table)(ptrdiff_t rows, ptrdiff_t runs, ptrdiff_t length, REAL *const *a, const REAL *b,
                                      const ptrdiff_t *table, REAL *const *c, ptrdiff_t cols, const CAT(epilogue) *e) {
    CAT(the_tiles)->by_table[cols > VL][rows](runs, length, a, 1, b, 0, c, cols, e, table);
}

/* a[m] = base + m * step for m < n <= MR. */
INLINE void CAT(point_rows)(REAL **a, REAL *base, ptrdiff_t step, ptrdiff_t n) {
    if (n == MR) {
        UNROLL for (int m = 0; m < MR; m++) a[m] = base + m * step;
    } else {
        for (ptrdiff_t m = 0; m < n; m++) a[m] = base + m * step;
    }
}

/* Second, for weight gradients of few channels: products of two sets of rows as they lie, vectors along the rows.
 *
 *     c[m * DOT_COLS + n] += sum over u < runs, r < rows, j < length of
 *                            a[m][u * a_run + r * a_step + j] * b[n][u * b_run + r * b_step + j],  m < DOT_ROWS, n < cols
 *
 * The vectors of DOT_ROWS x DOT_COLS sums stay in registers; their lanes are added at the end. c has DOT_SIZE numbers. `ahead`, if
 * it is not NULL, is one more a[m] whose rows are called for. */
#define DOT_SIZE ((DOT_ROWS * DOT_COLS + VL - 1) / VL * VL)

/* Lane i of the result is the sum of the lanes of v[i]. */
INLINE VEC CAT(add_lanes)(VEC v[VL]) {
#if defined(__GNUC__)
    UNROLL for (int half = VL / 2; half >= 1; half /= 2)
        UNROLL for (int i = 0; i < half; i++) v[i] = INTERLEAVE_LOW(v[i], v[i + half]) + INTERLEAVE_HIGH(v[i], v[i + half]);
    return v[0];
#else
    VEC r;
    for (int i = 0; i < VL; i++) {
        r.at[i] = 0;
        for (int j = 0; j < VL; j++) r.at[i] += v[i].at[j];
    }
    return r;
#endif
}

#define DOT_ARGUMENTS \
    ptrdiff_t runs, ptrdiff_t rows, ptrdiff_t length, REAL *const *a, ptrdiff_t a_run, ptrdiff_t a_step, \
    REAL *const *b, ptrdiff_t b_run, ptrdiff_t b_step, REAL *c, const REAL *ahead
#define DOT_VALUES runs, rows, length, a, a_run, a_step, b, b_run, b_step, c, ahead
INLINE void CAT(dot_body)(const int cols, DOT_ARGUMENTS) {
    VEC acc[DOT_SIZE], av[DOT_ROWS];
    UNROLL for (int i = 0; i < DOT_SIZE; i++) acc[i] = CAT(splat)(0);
    for (ptrdiff_t u = 0, r = 0; u < runs; r = r + 1 < rows ? r + 1 : 0, u += r == 0) {
        const ptrdiff_t at_a = u * a_run + r * a_step, at_b = u * b_run + r * b_step;
        ptrdiff_t j = 0;
        if (ahead) fetch_lines(ahead + at_a, length * sizeof(REAL));
        for (; j + VL <= length; j += VL) {
            UNROLL for (int m = 0; m < DOT_ROWS; m++) av[m] = CAT(load)(a[m] + at_a + j);
            UNROLL for (int n = 0; n < cols; n++) {
                const VEC bv = CAT(load)(b[n] + at_b + j);
                UNROLL for (int m = 0; m < DOT_ROWS; m++) acc[m * DOT_COLS + n] = CAT(fma)(av[m], bv, acc[m * DOT_COLS + n]);
            }
        }
        if (j == length) continue;
        UNROLL for (int m = 0; m < DOT_ROWS; m++) av[m] = CAT(load_part)(a[m] + at_a + j, length - j);
        UNROLL for (int n = 0; n < cols; n++) {
            const VEC bv = CAT(load_part)(b[n] + at_b + j, length - j);
            UNROLL for (int m = 0; m < DOT_ROWS; m++) acc[m * DOT_COLS + n] = CAT(fma)(av[m], bv, acc[m * DOT_COLS + n]);
        }
    }
    UNROLL for (int i = 0; i < DOT_SIZE; i += VL) {
        VEC v[VL];
        UNROLL for (int k = 0; k < VL; k++) v[k] = acc[i + k];
        CAT(store)(c + i, CAT(add)(CAT(load)(c + i), CAT(add_lanes)(v)));
    }
}

#define DEFINE_DOT(n) \
    static void CAT(dot_##n)(DOT_ARGUMENTS) { CAT(dot_body)(n, DOT_VALUES); }
EACH_DOT(DEFINE_DOT)
typedef void (*CAT(dot_function))(DOT_ARGUMENTS);
#define LIST_DOT(n) CAT(dot_##n),
static const CAT(dot_function) CAT(dots)[DOT_COLS + 1] = {0, EACH_DOT(LIST_DOT)};
static inline void CAT(dot_tile)(ptrdiff_t cols, DOT_ARGUMENTS) { CAT(dots)[cols](DOT_VALUES); }
#undef DEFINE_DOT
#undef LIST_DOT
#undef DOT_ARGUMENTS
#undef DOT_VALUES

/* Third, for few filters: the products of the first with vectors along k, for at most DOT_ROWS filters and DOT_COLS pixels, or, of
 * two or three filters, as many as give a vector of sums.
 *
 *     c[m][n] = act(bias[n] + sum over runs u, k < length of  a[u * MR + m][k] * B[u][k][n])
 *
 * b holds B as [run][vector of k][filter][lane], with zeros past the last k. */
#define FEW_PIXELS(n) (VL < 4 * DOT_ROWS || (n) == 1 || (n) == 4 ? DOT_COLS : (n) == 2 ? MR / 2 : VL / 3)
static inline ptrdiff_t CAT(few_pixels)(ptrdiff_t filters) { return FEW_PIXELS(filters); }
INLINE void CAT(few_step)(const int filters, const REAL *const *row, ptrdiff_t k, ptrdiff_t left, const REAL *b, VEC *acc) {
    const int most = FEW_PIXELS(filters);
    VEC w[DOT_ROWS];
    UNROLL for (int n = 0; n < filters; n++) w[n] = CAT(load)(b + n * VL);
    UNROLL for (int m = 0; m < most; m++) {
        const VEC v = CAT(once)(CAT(load_part)(row[m] + k, left));
        UNROLL for (int n = 0; n < filters; n++) acc[m * filters + n] = CAT(fma)(w[n], v, acc[m * filters + n]);
    }
}
INLINE void CAT(few_body)(const int filters, ptrdiff_t pixels, ptrdiff_t runs, ptrdiff_t length, REAL *const *a, const REAL *b,
                          REAL *const *c, const CAT(epilogue) *e) {
    const int most = FEW_PIXELS(filters);
    VEC acc[DOT_SIZE];
    REAL sums[DOT_SIZE];
    const ptrdiff_t n_sums = pixels * filters;
    UNROLL for (int i = 0; i < DOT_SIZE; i++) /* the bias is one more number to add */
        acc[i] = e->bias && i < most * filters ? CAT(load_part)(e->bias + i % filters, 1) : CAT(splat)(0);
    for (ptrdiff_t u = 0; u < runs; u++, a += MR) {
        const REAL *row[MR > DOT_COLS ? MR : DOT_COLS];
        UNROLL for (int m = 0; m < most; m++) row[m] = a[m < pixels ? m : pixels - 1];
        ptrdiff_t k = 0;
        for (; k + VL <= length; k += VL, b += filters * VL) CAT(few_step)(filters, row, k, VL, b, acc);
        if (k == length) continue;
        CAT(few_step)(filters, row, k, length - k, b, acc);
        b += filters * VL;
    }
    const int side_by_side = c[pixels - 1] - c[0] == (pixels - 1) * filters;
    UNROLL for (int i = 0; i < most * filters; i += VL) {
        VEC v[VL];
        UNROLL for (int k = 0; k < VL; k++) v[k] = acc[i + k];
        v[0] = CAT(add_lanes)(v);
        if (e->relu) v[0] = CAT(relu)(v[0]);
        if (!side_by_side) CAT(store)(sums + i, v[0]);
        else if (i < n_sums) CAT(store_part)(c[0] + i, v[0], n_sums - i);
    }
    for (ptrdiff_t i = 0; i < n_sums && !side_by_side; i++) c[i / filters][i % filters] = sums[i];
}
#define DEFINE_FEW(n) \
    static void CAT(few_##n)(ptrdiff_t pixels, ptrdiff_t runs, ptrdiff_t length, REAL *const *a, const REAL *b, REAL *const *c, \
                             const CAT(epilogue) *e) { \
        CAT(few_body)(n, pixels, runs, length, a, b, c, e); \
    }
EACH_FEW(DEFINE_FEW)
#define FEW_CASE(n) \
    case n: CAT(few_##n)(pixels - m < most ? pixels - m : most, runs, length, a + m, b, c + m, e); break;
/* Any number of pixels up to MR. */
static inline void CAT(tile_of_few)(ptrdiff_t pixels, ptrdiff_t filters, ptrdiff_t runs, ptrdiff_t length, REAL *const *a,
                                    const REAL *b, REAL *const *c, const CAT(epilogue) *e) {
    const ptrdiff_t most = FEW_PIXELS(filters);
    for (ptrdiff_t m = 0; m < pixels; m += most) {
        switch (filters) { EACH_FEW(FEW_CASE) }
    }
}
#undef DEFINE_FEW
#undef FEW_CASE
#undef FEW_PIXELS
#undef DOT_SIZE

/* Fourth, for few channels: the products of the first with B in registers, while any number of pixels pass by.
 *
 *     c[m * c_step + n] = act(bias[n] + sum over k < length of  a[m * a_step + k] * B[k][n]),  length <= DOT_ROWS, cols <= NR */
INLINE void CAT(outer_body)(const int length, const int nv, ptrdiff_t pixels, const REAL *a, ptrdiff_t a_step, const REAL *b,
                            ptrdiff_t b_step, REAL *c, ptrdiff_t c_step, ptrdiff_t cols, const CAT(epilogue) *e) {
    const ptrdiff_t last = cols - (nv - 1) * VL;
    VEC w[DOT_ROWS][2], start[2];
    UNROLL for (int v = 0; v < nv; v++) {
        start[v] = e->bias ? CAT(load)(e->bias + v * VL) : CAT(splat)(0);
        UNROLL for (int k = 0; k < length; k++)
            w[k][v] = v == nv - 1 ? CAT(load_b)(b + k * b_step + v * VL, last) : CAT(load)(b + k * b_step + v * VL);
    }
    for (ptrdiff_t m = 0; m < pixels; m++, a += a_step, c += c_step) {
        UNROLL for (int v = 0; v < nv; v++) {
            VEC sum = start[v];
            UNROLL for (int k = 0; k < length; k++) sum = CAT(fma)(CAT(splat)(a[k]), w[k][v], sum);
            if (e->relu) sum = CAT(relu)(sum);
            if (e->stream) CAT(stream)(c + v * VL, sum);
            else if (v < nv - 1) CAT(store)(c + v * VL, sum);
            else CAT(store_part)(c + v * VL, sum, last);
        }
    }
}
#define OUTER_CASE(n) \
    case n: \
        if (cols > VL) CAT(outer_body)(n, 2, pixels, a, a_step, b, b_step, c, c_step, cols, e); \
        else CAT(outer_body)(n, 1, pixels, a, a_step, b, b_step, c, c_step, cols, e); \
        break;
static inline void CAT(outer_tile)(ptrdiff_t pixels, ptrdiff_t length, const REAL *a, ptrdiff_t a_step, const REAL *b,
                                   ptrdiff_t b_step, REAL *c, ptrdiff_t c_step, ptrdiff_t cols, const CAT(epilogue) *e) {
    switch (length) { EACH_FEW(OUTER_CASE) }
}
#undef OUTER_CASE

/* Fifth, for few channels, depth first: a row of the first's C, of any length, made of rows of B as they lie.
 *
 *     c[j] = act(bias[0] + sum over k < length of  a[k] * b[k * b_step + j]),  j < cols, length <= DOT_ROWS */
INLINE void CAT(mix_body)(const int length, ptrdiff_t cols, const REAL *a, const REAL *b, ptrdiff_t b_step, REAL *c,
                          const CAT(epilogue) *e) {
    const VEC start = CAT(splat)(e->bias ? *e->bias : 0), least = CAT(splat)((REAL)(e->relu ? 0 : -INFINITY));
    VEC w[DOT_ROWS];
    UNROLL for (int k = 0; k < length; k++) w[k] = CAT(splat)(a[k]);
    for (ptrdiff_t j = 0; j < cols; j += VL) {
        VEC sum = start;
        UNROLL for (int k = 0; k < length; k++) sum = CAT(fma)(w[k], CAT(load_part)(b + k * b_step + j, cols - j), sum);
        sum = CAT(at_least)(least, sum);
        if (e->stream) CAT(stream)(c + j, sum);
        else CAT(store_part)(c + j, sum, cols - j);
    }
}
#define MIX_CASE(n) case n: CAT(mix_body)(n, cols, a, b, b_step, c, e); break;
static inline void CAT(mix_tile)(ptrdiff_t cols, ptrdiff_t length, const REAL *a, const REAL *b, ptrdiff_t b_step, REAL *c,
                                 const CAT(epilogue) *e) {
    switch (length) { EACH_FEW(MIX_CASE) }
}
#undef MIX_CASE
