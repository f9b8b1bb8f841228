/* The transforms of Winograd's minimal filtering, F(m x m, r x r) on tiles of n = m + r - 1 pixels, VL channels at a time.
 *
 *     y = A' [(G w G') * (B' d B)] A        (Lavin and Gray, arXiv 1509.09308, equation 12; * is elementwise)
 *
 * It is polynomial multiplication by values at n points (Toom and Cook): 0, +-p for one or two p, and infinity. With
 * M(x) = x * product of (x^2 - p^2):
 *     G:  the filter's polynomial at each point, over the derivative M'(point); at infinity its last coefficient
 *     B': the coefficients of M(x) / (x - point); at infinity those of M(x)
 *     A': the powers of each point; at infinity the last row only
 * Each pair +-p shares its even and its odd half. Four points: p = 1. Six points: p = 5/8 and 3/2, whose powers are exact and
 * which give half the error of the textbook's 1 and 2. The gradient by the filter is the same with dy (m x m) for the filter:
 * F(r x r, m x m) on the same tiles. */

#define P1(n) ((n) == 4 ? 1.0 : 0.625)
#define P2 1.5
/* 1/M'(0), 1/M'(+-p) */
#define AT_ZERO(n) ((n) == 4 ? -1.0 : 1.0 / (0.625 * 0.625 * 1.5 * 1.5))
#define AT_P1(n) ((n) == 4 ? 0.5 : 1.0 / (2 * 0.625 * 0.625 * (0.625 * 0.625 - 1.5 * 1.5)))
#define AT_P2 (1.0 / (2 * 1.5 * 1.5 * (1.5 * 1.5 - 0.625 * 0.625)))
#define SPLAT(x) CAT(splat)((REAL)(x))

/* v = B' d: n numbers to n values */
INLINE void CAT(values_of_data)(const int n, const VEC *d, VEC *v) {
    if (n == 4) {
        v[0] = CAT(sub)(d[2], d[0]);
        v[1] = CAT(add)(d[2], d[1]);
        v[2] = CAT(sub)(d[2], d[1]);
        v[3] = CAT(sub)(d[3], d[1]);
        return;
    }
    const double p = P1(6), q = P2;
    const VEC pp = SPLAT(-p * p), qq = SPLAT(-q * q), product = SPLAT(p * p * q * q), sum = SPLAT(-(p * p + q * q));
    const VEC even_p = CAT(fma)(qq, d[2], d[4]), odd_p = CAT(mul)(SPLAT(p), CAT(fma)(qq, d[1], d[3]));
    const VEC even_q = CAT(fma)(pp, d[2], d[4]), odd_q = CAT(mul)(SPLAT(q), CAT(fma)(pp, d[1], d[3]));
    v[0] = CAT(fma)(product, d[0], CAT(fma)(sum, d[2], d[4]));
    v[1] = CAT(add)(even_p, odd_p);
    v[2] = CAT(sub)(even_p, odd_p);
    v[3] = CAT(add)(even_q, odd_q);
    v[4] = CAT(sub)(even_q, odd_q);
    v[5] = CAT(fma)(product, d[1], CAT(fma)(sum, d[3], d[5]));
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
    VEC even, odd;
    v[0] = CAT(mul)(SPLAT(AT_ZERO(n)), g[0]);
    CAT(halves)(r, P1(n), AT_P1(n), g, &even, &odd);
    v[1] = CAT(add)(even, odd);
    v[2] = CAT(sub)(even, odd);
    if (n == 6) {
        CAT(halves)(r, P2, AT_P2, g, &even, &odd);
        v[3] = CAT(add)(even, odd);
        v[4] = CAT(sub)(even, odd);
    }
    v[n - 1] = g[r - 1];
}

/* y = A' v: n values to m results */
INLINE void CAT(results)(const int n, const int m, const VEC *v, VEC *y) {
    const VEC even_p = CAT(add)(v[1], v[2]), odd_p = CAT(sub)(v[1], v[2]);
    const VEC even_q = n == 6 ? CAT(add)(v[3], v[4]) : even_p, odd_q = n == 6 ? CAT(sub)(v[3], v[4]) : odd_p;
    double p = 1, q = 1;
    UNROLL for (int i = 0; i < m; i++) {
        y[i] = CAT(mul)(SPLAT(p), i % 2 ? odd_p : even_p);
        if (n == 6) y[i] = CAT(fma)(SPLAT(q), i % 2 ? odd_q : even_q, y[i]);
        if (i == 0) y[i] = CAT(add)(y[i], v[0]);
        if (i == m - 1) y[i] = CAT(add)(y[i], v[n - 1]);
        p *= P1(n);
        q *= P2;
    }
}

/* V = B' d B of one tile: d[i * row + j * col], V[(i * n + j) * step] */
INLINE void CAT(data_body)(const int n, const REAL *d, ptrdiff_t row, ptrdiff_t col, REAL *V, ptrdiff_t step) {
    VEC half[6][6], line[6], v[6];
    UNROLL for (int j = 0; j < n; j++) {
        UNROLL for (int i = 0; i < n; i++) line[i] = CAT(load)(d + i * row + j * col);
        CAT(values_of_data)(n, line, v);
        UNROLL for (int i = 0; i < n; i++) half[i][j] = v[i];
    }
    UNROLL for (int i = 0; i < n; i++) {
        CAT(values_of_data)(n, half[i], v);
        UNROLL for (int j = 0; j < n; j++) CAT(store)(V + (i * n + j) * step, v[j]);
    }
}

/* U = G g G' of one filter, or of one tile of dy */
INLINE void CAT(filter_body)(const int n, const int r, const REAL *g, ptrdiff_t row, ptrdiff_t col, REAL *U, ptrdiff_t step) {
    VEC half[6][6], line[6], v[6];
    UNROLL for (int j = 0; j < r; j++) {
        UNROLL for (int i = 0; i < r; i++) line[i] = CAT(load)(g + i * row + j * col);
        CAT(values_of_filter)(n, r, line, v);
        UNROLL for (int i = 0; i < n; i++) half[i][j] = v[i];
    }
    UNROLL for (int i = 0; i < n; i++) {
        CAT(values_of_filter)(n, r, half[i], v);
        UNROLL for (int j = 0; j < n; j++) CAT(store)(U + (i * n + j) * step, v[j]);
    }
}

/* y = A' M A of one tile, with bias and ReLU: M[(i * n + j) * step], y[i * row + j * col] */
INLINE void CAT(result_body)(const int n, const int m, const REAL *M, ptrdiff_t step, REAL *y, ptrdiff_t row, ptrdiff_t col,
                             const REAL *bias, int relu, int stream) {
    VEC half[6][6], line[6], v[6];
    const VEC b = bias ? CAT(load)(bias) : CAT(splat)(0);
    UNROLL for (int j = 0; j < n; j++) {
        UNROLL for (int i = 0; i < n; i++) line[i] = CAT(load)(M + (i * n + j) * step);
        CAT(results)(n, m, line, v);
        UNROLL for (int i = 0; i < m; i++) half[i][j] = v[i];
    }
    UNROLL for (int i = 0; i < m; i++) {
        CAT(results)(n, m, half[i], v);
        UNROLL for (int j = 0; j < m; j++) {
            const VEC sum = CAT(add)(v[j], b), result = relu ? CAT(relu)(sum) : sum;
            if (stream) CAT(stream)(y + i * row + j * col, result);
            else CAT(store)(y + i * row + j * col, result);
        }
    }
}

static void CAT(winograd_data)(int n, const REAL *d, ptrdiff_t row, ptrdiff_t col, REAL *V, ptrdiff_t step) {
    if (n == 6) CAT(data_body)(6, d, row, col, V, step);
    else CAT(data_body)(4, d, row, col, V, step);
}
static void CAT(winograd_filter)(int n, int r, const REAL *g, ptrdiff_t row, ptrdiff_t col, REAL *U, ptrdiff_t step) {
    if (n == 6 && r == 3) CAT(filter_body)(6, 3, g, row, col, U, step);
    else if (n == 6 && r == 4) CAT(filter_body)(6, 4, g, row, col, U, step);
    else if (n == 6 && r == 2) CAT(filter_body)(6, 2, g, row, col, U, step);
    else if (n == 6) CAT(filter_body)(6, 5, g, row, col, U, step);
    else if (r == 3) CAT(filter_body)(4, 3, g, row, col, U, step);
    else CAT(filter_body)(4, 2, g, row, col, U, step);
}
static void CAT(winograd_result)(int n, int m, const REAL *M, ptrdiff_t step, REAL *y, ptrdiff_t row, ptrdiff_t col,
                                 const REAL *bias, int relu, int stream) {
    if (n == 6 && m == 4) CAT(result_body)(6, 4, M, step, y, row, col, bias, relu, stream);
    else if (n == 6 && m == 3) CAT(result_body)(6, 3, M, step, y, row, col, bias, relu, stream);
    else if (n == 6 && m == 2) CAT(result_body)(6, 2, M, step, y, row, col, bias, relu, stream);
    else if (n == 6) CAT(result_body)(6, 5, M, step, y, row, col, bias, relu, stream);
    else if (m == 2) CAT(result_body)(4, 2, M, step, y, row, col, bias, relu, stream);
    else CAT(result_body)(4, 3, M, step, y, row, col, bias, relu, stream);
}
#undef P1
#undef P2
#undef AT_ZERO
#undef AT_P1
#undef AT_P2
#undef SPLAT
