/* The transforms of Winograd's minimal filtering, F(m x m, r x r) on tiles of n = m + r - 1 pixels, VL channels at a time. A
 * window that is a line has F(1 x m, 1 x r): an axis of one value is left as it is.
 *
 *     y = A' [(G w G') * (B' d B)] A        (Lavin and Gray, arXiv 1509.09308, equation 12; * is elementwise)
 *
 * It is polynomial multiplication by values at n points (Toom and Cook): 0, +-p for n/2 - 1 numbers p, and infinity. With
 * M(x) = x * product of (x^2 - p^2):
 *     G:  the filter's polynomial at each point, over the derivative M'(point); at infinity its last coefficient
 *     B': the coefficients of M(x) / (x - point); at infinity those of M(x)
 *     A': the powers of each point; at infinity the last row only
 * Each pair +-p shares its even and its odd half. Four points: p = 1. Six points: p = 5/8 and 3/2, whose powers are exact and
 * which give half the error of the textbook's 1 and 2. Eight: p = 1/2, 1 and 2. The gradient by the filter is the same with
 * dy (m x m) for the filter: F(r x r, m x m) on the same tiles. */

#define SPLAT(x) CAT(splat)((REAL)(x))
#ifndef FASTCONV_WINOGRAD_H
#define FASTCONV_WINOGRAD_H
#define PAIRS(n) ((n) / 2 - 1)
INLINE double point(const int n, const int i) {
    const double six[2] = {0.625, 1.5}, eight[3] = {0.5, 1, 2};
    return n == 4 ? 1 : n == 6 ? six[i] : eight[i];
}

/* c: the coefficients of the product of (y - p^2) over all pairs but one (none: -1); the last of them is 1 */
INLINE void pair_product(const int n, const int but, double *c) {
    int degree = 0;
    c[0] = 1;
    UNROLL for (int i = 0; i < PAIRS(n); i++) {
        if (i == but) continue;
        c[degree + 1] = c[degree];
        UNROLL for (int k = degree; k > 0; k--) c[k] = c[k - 1] - point(n, i) * point(n, i) * c[k];
        c[0] *= -point(n, i) * point(n, i);
        degree++;
    }
}

/* M'(p), at the point of pair i, and at 0 for i = -1 */
INLINE double derivative(const int n, const int i) {
    const double x = i < 0 ? 0 : point(n, i);
    double product = i < 0 ? 1 : 2 * x * x;
    UNROLL for (int j = 0; j < PAIRS(n); j++)
        if (j != i) product *= x * x - point(n, j) * point(n, j);
    return product;
}
#endif

/* v = B' d: n numbers to n values */
INLINE void CAT(values_of_data)(const int n, const VEC *d, VEC *v) {
    const int last = PAIRS(n);
    double c[4];
    if (n == 1) {
        v[0] = d[0];
        return;
    }
    pair_product(n, -1, c);
    v[0] = d[2 * last];
    v[n - 1] = d[2 * last + 1];
    UNROLL for (int k = last - 1; k >= 0; k--) {
        v[0] = CAT(fma)(SPLAT(c[k]), d[2 * k], v[0]);
        v[n - 1] = CAT(fma)(SPLAT(c[k]), d[2 * k + 1], v[n - 1]);
    }
    UNROLL for (int i = 0; i < last; i++) {
        VEC even = d[2 * last], odd = d[2 * last - 1];
        pair_product(n, i, c);
        UNROLL for (int k = last - 2; k >= 0; k--) {
            even = CAT(fma)(SPLAT(c[k]), d[2 * k + 2], even);
            odd = CAT(fma)(SPLAT(c[k]), d[2 * k + 1], odd);
        }
        odd = CAT(mul)(SPLAT(point(n, i)), odd);
        v[1 + 2 * i] = CAT(add)(even, odd);
        v[2 + 2 * i] = CAT(sub)(even, odd);
    }
}

/* scale * p^i for a pair's polynomial of r terms: its even and its odd half */
INLINE void CAT(halves)(const int r, const double p, const double scale, const VEC *g, VEC *even, VEC *odd) {
    double power = scale;
    *even = CAT(mul)(SPLAT(scale), g[0]);
    *odd = CAT(mul)(SPLAT(scale * p), g[1]);
    UNROLL for (int i = 2; i < r; i++) {
        power = i % 2 ? power : power * p * p;
        if (i % 2) *odd = CAT(fma)(SPLAT(power * p), g[i], *odd);
        else *even = CAT(fma)(SPLAT(power), g[i], *even);
    }
}

/* v = G g: a filter of r numbers to n values */
INLINE void CAT(values_of_filter)(const int n, const int r, const VEC *g, VEC *v) {
    if (n == 1) {
        v[0] = g[0];
        return;
    }
    v[0] = CAT(mul)(SPLAT(1 / derivative(n, -1)), g[0]);
    UNROLL for (int i = 0; i < PAIRS(n); i++) {
        VEC even, odd;
        CAT(halves)(r, point(n, i), 1 / derivative(n, i), g, &even, &odd);
        v[1 + 2 * i] = CAT(add)(even, odd);
        v[2 + 2 * i] = CAT(sub)(even, odd);
    }
    v[n - 1] = g[r - 1];
}

/* y = A' v: n values to m results */
INLINE void CAT(results)(const int n, const int m, const VEC *v, VEC *y) {
    if (n == 1) {
        y[0] = v[0];
        return;
    }
    UNROLL for (int j = 0; j < PAIRS(n); j++) {
        const VEC even = CAT(add)(v[1 + 2 * j], v[2 + 2 * j]), odd = CAT(sub)(v[1 + 2 * j], v[2 + 2 * j]);
        double power = 1;
        UNROLL for (int i = 0; i < m; i++) {
            y[i] = j ? CAT(fma)(SPLAT(power), i % 2 ? odd : even, y[i]) : CAT(mul)(SPLAT(power), i % 2 ? odd : even);
            power *= point(n, j);
        }
    }
    y[0] = CAT(add)(y[0], v[0]);
    y[m - 1] = CAT(add)(y[m - 1], v[n - 1]);
}

/* V = B' d B of one tile: d[i * row + j * col], V[(i * nw + j) * step] */
INLINE void CAT(data_body)(const int nh, const int nw, const REAL *d, ptrdiff_t row, ptrdiff_t col, REAL *V, ptrdiff_t step) {
    VEC half[8][8], line[8], v[8];
    int rows = nh;
    UNROLL for (int j = 0; j < nw; j++) {
        UNROLL for (int i = 0; i < nh; i++) line[i] = CAT(once)(CAT(load)(d + i * row + j * col));
        CAT(values_of_data)(nh, line, v);
        UNROLL for (int i = 0; i < nh; i++) half[i][j] = v[i];
    }
    in_a_register(rows); /* a bound that GCC does not know: else it makes all rows first, and memory has to wait */
    UNROLL for (int i = 0; i < nh; i++) {
        if (i >= rows) break;
        CAT(values_of_data)(nw, half[i], v);
        UNROLL for (int j = 0; j < nw; j++) CAT(store)(V + (i * nw + j) * step, v[j]);
    }
}

/* U = G g G' of one filter, or of one tile of dy whose rows before `top` and columns before `left` count as zeros */
INLINE void CAT(filter_body)(const int nh, const int rh, const int nw, const int rw, const REAL *g, ptrdiff_t row, ptrdiff_t col,
                             REAL *U, ptrdiff_t step, int top, int left) {
    VEC half[8][8], line[8], v[8];
    int rows = nh;
    UNROLL for (int j = 0; j < rw; j++) {
        UNROLL for (int i = 0; i < rh; i++)
            line[i] = i < top || j < left ? CAT(splat)(0) : CAT(once)(CAT(load)(g + i * row + j * col));
        CAT(values_of_filter)(nh, rh, line, v);
        UNROLL for (int i = 0; i < nh; i++) half[i][j] = v[i];
    }
    in_a_register(rows);
    UNROLL for (int i = 0; i < nh; i++) {
        if (i >= rows) break;
        CAT(values_of_filter)(nw, rw, half[i], v);
        UNROLL for (int j = 0; j < nw; j++) CAT(store)(U + (i * nw + j) * step, v[j]);
    }
}

/* y = A' M A of one tile, with bias and ReLU: M[(i * nw + j) * step], y[i * row + j * col] */
INLINE void CAT(result_body)(const int nh, const int mh, const int nw, const int mw, const REAL *M, ptrdiff_t step, REAL *y,
                             ptrdiff_t row, ptrdiff_t col, const REAL *bias, int relu, int stream) {
    VEC half[8][8], line[8], v[8];
    const VEC b = bias ? CAT(load)(bias) : CAT(splat)(0);
    UNROLL for (int j = 0; j < nw; j++) {
        UNROLL for (int i = 0; i < nh; i++) line[i] = CAT(load)(M + (i * nw + j) * step);
        CAT(results)(nh, mh, line, v);
        UNROLL for (int i = 0; i < mh; i++) half[i][j] = v[i];
    }
    UNROLL for (int i = 0; i < mh; i++) {
        CAT(results)(nw, mw, half[i], v);
        UNROLL for (int j = 0; j < mw; j++) {
            const VEC sum = CAT(add)(v[j], b), result = relu ? CAT(relu)(sum) : sum;
            if (stream) CAT(stream)(y + i * row + j * col, result);
            else CAT(store)(y + i * row + j * col, result);
        }
    }
}

/* Every F(m x m, r x r) that is made, and as F(r x r, m x m) for the gradient by the filter: n, and r or m. Then F(1 x m, 1 x r),
 * which do for columns too: a column of pixels is a line whose next pixel is that of the next row. */
#define EACH_TILE(X) X(8, 5) X(8, 4) X(6, 5) X(6, 4) X(6, 3) X(6, 2) X(4, 3) X(4, 2)
#define EACH_LINE(X) X(8, 7) X(8, 6) X(8, 5) X(8, 4) X(8, 3) X(8, 2) X(6, 5) X(6, 4) X(6, 3) X(6, 2) X(4, 3) X(4, 2)
static void CAT(winograd_data)(int nh, int nw, const REAL *d, ptrdiff_t row, ptrdiff_t col, REAL *V, ptrdiff_t step) {
    if (nh == 1 || nw == 1) {
        const int n = nh * nw;
        const ptrdiff_t next = nw == 1 ? row : col;
        if (n == 8) CAT(data_body)(1, 8, d, 0, next, V, step);
        else if (n == 6) CAT(data_body)(1, 6, d, 0, next, V, step);
        else CAT(data_body)(1, 4, d, 0, next, V, step);
    } else if (nh == 8) CAT(data_body)(8, 8, d, row, col, V, step);
    else if (nh == 6) CAT(data_body)(6, 6, d, row, col, V, step);
    else CAT(data_body)(4, 4, d, row, col, V, step);
}
static void CAT(winograd_filter)(int nh, int rh, int nw, int rw, const REAL *g, ptrdiff_t row, ptrdiff_t col, REAL *U,
                                 ptrdiff_t step, int top, int left) {
#define LINE_CASE(a, b) if (n == a && r == b) CAT(filter_body)(1, 1, a, b, g, 0, next, U, step, 0, before); else
#define TILE_CASE(a, b) if (nh == a && rh == b) CAT(filter_body)(a, b, a, b, g, row, col, U, step, top, left); else
    if (nh == 1 || nw == 1) {
        const int n = nh * nw, r = rh * rw, before = nw == 1 ? top : left;
        const ptrdiff_t next = nw == 1 ? row : col;
        EACH_LINE(LINE_CASE) {}
    } else EACH_TILE(TILE_CASE) {}
#undef LINE_CASE
#undef TILE_CASE
}
static void CAT(winograd_result)(int nh, int mh, int nw, int mw, const REAL *M, ptrdiff_t step, REAL *y, ptrdiff_t row,
                                 ptrdiff_t col, const REAL *bias, int relu, int stream) {
#define LINE_CASE(a, b) if (n == a && m == b) CAT(result_body)(1, 1, a, b, M, step, y, 0, next, bias, relu, stream); else
#define TILE_CASE(a, b) if (nh == a && mh == b) CAT(result_body)(a, b, a, b, M, step, y, row, col, bias, relu, stream); else
    if (nh == 1 || nw == 1) {
        const int n = nh * nw, m = mh * mw;
        const ptrdiff_t next = nw == 1 ? row : col;
        EACH_LINE(LINE_CASE) {}
    } else EACH_TILE(TILE_CASE) {}
#undef LINE_CASE
#undef TILE_CASE
}
#undef EACH_TILE
#undef EACH_LINE
#undef SPLAT
