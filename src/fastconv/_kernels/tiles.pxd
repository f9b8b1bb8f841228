"""What the kernels use of C, under one name for float and for double."""

cimport numpy as cnp
from cpython.pycapsule cimport PyCapsule_GetPointer

ctypedef fused real:
    float
    double

cdef extern from "kernels.h" nogil:
    enum:
        TILE_MR "MR"
        CACHE_LINE
        DOT_ROWS
        DOT_COLS
        PART_OF_B
        VECTOR_BYTES
    ctypedef struct tile_addresses:
        pass
    void set_tiles(tile_addresses *at)
    void prefetch_low(void *p)
    void fetch_lines(void *p, Py_ssize_t bytes)
    unsigned int begin_task()
    void end_task(unsigned int before)
    enum:
        SHARES
    ctypedef struct Share "share":
        pass
    void make_shares(Share *shares, int threads, Py_ssize_t n)
    Py_ssize_t take(Share *shares, int threads, int thread)
    ctypedef struct Piece "piece":
        Py_ssize_t to, at, n
    ctypedef struct epilogue_f32:
        float *bias
        int bias_by_row, accumulate, relu, stream, fetch
        void *ahead
        Py_ssize_t ahead_step, ahead_run
    ctypedef struct epilogue_f64:
        double *bias
        int bias_by_row, accumulate, relu, stream, fetch
        void *ahead
        Py_ssize_t ahead_step, ahead_run
    void tile_by_rows_f32(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, float **a, Py_ssize_t a_step, float *b,
                          Py_ssize_t b_step, float **c, Py_ssize_t cols, epilogue_f32 *e)
    void tile_by_rows_f64(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, double **a, Py_ssize_t a_step, double *b,
                          Py_ssize_t b_step, double **c, Py_ssize_t cols, epilogue_f64 *e)
    void tile_by_columns_f32(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, float **a, Py_ssize_t a_step, float *b,
                             Py_ssize_t b_step, float **c, Py_ssize_t cols, epilogue_f32 *e)
    void tile_by_columns_f64(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, double **a, Py_ssize_t a_step, double *b,
                             Py_ssize_t b_step, double **c, Py_ssize_t cols, epilogue_f64 *e)
    void tile_and_keep_f32(Py_ssize_t rows, Py_ssize_t length, float **a, float *b, Py_ssize_t b_step, float **c,
                           epilogue_f32 *e, float *keep)
    void tile_and_keep_f64(Py_ssize_t rows, Py_ssize_t length, double **a, double *b, Py_ssize_t b_step, double **c,
                           epilogue_f64 *e, double *keep)
    void tile_by_table_f32(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, float **a, float *b, Py_ssize_t *table, float **c,
                           Py_ssize_t cols, epilogue_f32 *e)
    void tile_by_table_f64(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, double **a, double *b, Py_ssize_t *table,
                           double **c, Py_ssize_t cols, epilogue_f64 *e)
    void tile_of_few_f32(Py_ssize_t pixels, Py_ssize_t filters, Py_ssize_t runs, Py_ssize_t length, float **a, float *b, float **c,
                         epilogue_f32 *e)
    Py_ssize_t few_pixels_f32(Py_ssize_t filters)
    Py_ssize_t few_pixels_f64(Py_ssize_t filters)
    void tile_of_few_f64(Py_ssize_t pixels, Py_ssize_t filters, Py_ssize_t runs, Py_ssize_t length, double **a, double *b,
                         double **c, epilogue_f64 *e)
    void outer_tile_f32(Py_ssize_t pixels, Py_ssize_t length, float *a, Py_ssize_t a_step, float *b, Py_ssize_t b_step, float *c,
                        Py_ssize_t c_step, Py_ssize_t cols, epilogue_f32 *e)
    void outer_tile_f64(Py_ssize_t pixels, Py_ssize_t length, double *a, Py_ssize_t a_step, double *b, Py_ssize_t b_step,
                        double *c, Py_ssize_t c_step, Py_ssize_t cols, epilogue_f64 *e)
    void mix_tile_f32(Py_ssize_t cols, Py_ssize_t length, float *a, float *b, Py_ssize_t b_step, float *c, epilogue_f32 *e)
    void mix_tile_f64(Py_ssize_t cols, Py_ssize_t length, double *a, double *b, Py_ssize_t b_step, double *c, epilogue_f64 *e)
    void dot_tile_f32(Py_ssize_t cols, Py_ssize_t runs, Py_ssize_t rows, Py_ssize_t length, float **a, Py_ssize_t a_run,
                      Py_ssize_t a_step, float **b, Py_ssize_t b_run, Py_ssize_t b_step, float *c, float *ahead)
    void dot_tile_f64(Py_ssize_t cols, Py_ssize_t runs, Py_ssize_t rows, Py_ssize_t length, double **a, Py_ssize_t a_run,
                      Py_ssize_t a_step, double **b, Py_ssize_t b_run, Py_ssize_t b_step, double *c, double *ahead)
    void point_rows_f32(float **a, float *base, Py_ssize_t step, Py_ssize_t n)
    void point_rows_f64(double **a, double *base, Py_ssize_t step, Py_ssize_t n)
    void transpose_f32(float *dst, Py_ssize_t dst_stride, float *src, Py_ssize_t src_stride, Py_ssize_t rows, Py_ssize_t cols)
    void transpose_f64(double *dst, Py_ssize_t dst_stride, double *src, Py_ssize_t src_stride, Py_ssize_t rows, Py_ssize_t cols)
    void spread_f32(float *dst, float *src, Py_ssize_t n, Py_ssize_t step)
    void spread_f64(double *dst, double *src, Py_ssize_t n, Py_ssize_t step)
    void pack_pieces_f32(float *dst, Py_ssize_t row_step, float *src, Py_ssize_t plane, Py_ssize_t rows, Piece *pieces,
                         Py_ssize_t n_pieces, Py_ssize_t step)
    void pack_pieces_f64(double *dst, Py_ssize_t row_step, double *src, Py_ssize_t plane, Py_ssize_t rows, Piece *pieces,
                         Py_ssize_t n_pieces, Py_ssize_t step)
    void copy_f32(float *dst, float *src, Py_ssize_t n, Py_ssize_t src_step)
    void copy_f64(double *dst, double *src, Py_ssize_t n, Py_ssize_t src_step)
    void copy_padded_f32(float *dst, float *src, Py_ssize_t n)
    void copy_padded_f64(double *dst, double *src, Py_ssize_t n)
    void winograd_data_f32(int nh, int nw, float *d, Py_ssize_t row, Py_ssize_t col, float *V, Py_ssize_t step)
    void winograd_filter_f32(int nh, int rh, int nw, int rw, float *g, Py_ssize_t row, Py_ssize_t col, float *U, Py_ssize_t step,
                             int top, int left)
    void winograd_result_f32(int nh, int mh, int nw, int mw, float *M, Py_ssize_t step, float *y, Py_ssize_t row, Py_ssize_t col,
                             float *bias, int relu, int stream)
    void winograd_data_f64(int nh, int nw, double *d, Py_ssize_t row, Py_ssize_t col, double *V, Py_ssize_t step)
    void winograd_filter_f64(int nh, int rh, int nw, int rw, double *g, Py_ssize_t row, Py_ssize_t col, double *U, Py_ssize_t step,
                             int top, int left)
    void winograd_result_f64(int nh, int mh, int nw, int mw, double *M, Py_ssize_t step, double *y, Py_ssize_t row, Py_ssize_t col,
                             double *bias, int relu, int stream)


cdef inline int find_tiles(object addresses) except -1:
    """Take the register tiles from the module `tile` of the same level; before any other use of them."""
    set_tiles(<tile_addresses *> PyCapsule_GetPointer(addresses, NULL))
    return 0


cdef struct Epilogue:
    # how a tile begins and ends: see epilogue in tile.h
    void *bias
    int bias_by_row, accumulate, relu, stream, fetch
    void *ahead
    Py_ssize_t ahead_step, ahead_run


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return (a + b - 1) // b


cdef inline Py_ssize_t floor_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a // b if a >= 0 else -ceil_div(-a, b)


cdef inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t most(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a > b else b


cdef inline Py_ssize_t aligned(Py_ssize_t bytes) noexcept nogil:
    """Rounded up to whole cache lines."""
    return ceil_div(bytes, CACHE_LINE) * CACHE_LINE


cdef inline Py_ssize_t odd_lines(Py_ssize_t numbers, real *like) noexcept nogil:
    """Rounded up to an odd count of cache lines: so many apart, numbers that are met together lie in different cache sets."""
    cdef Py_ssize_t line = CACHE_LINE // <Py_ssize_t> sizeof(real)
    return (ceil_div(numbers, line) | 1) * line


cdef enum:
    ONE_SET = 1 << 12  # bytes: a multiple of it apart, lines fall into one set of a first-level cache, which has 8 ways and more


cdef inline Py_ssize_t tile_height(Py_ssize_t apart) noexcept nogil:
    """Rows of a tile that lie so many bytes apart in A: as many as a set of the cache holds beside B's."""
    return ceil_div(TILE_MR, 2) if TILE_MR > 8 and apart % ONE_SET == 0 else TILE_MR


cdef inline real *data(cnp.ndarray array, real *like) noexcept:
    """Where an array's numbers begin; `like` only names the type."""
    return <real *> cnp.PyArray_DATA(array)


cdef inline Py_ssize_t lanes(real *like) noexcept nogil:
    """VL, the numbers in a vector. A panel is NR = 2 VL wide."""
    return VECTOR_BYTES // <Py_ssize_t> sizeof(real)


cdef inline void tile_by_rows(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, real **a, real *b, Py_ssize_t b_step,
                              real **c, Py_ssize_t cols, Epilogue *e) noexcept nogil:
    if real is float:
        tile_by_rows_f32(rows, runs, length, a, 1, b, b_step, c, cols, <epilogue_f32 *> e)
    else:
        tile_by_rows_f64(rows, runs, length, a, 1, b, b_step, c, cols, <epilogue_f64 *> e)


cdef inline void tile_of_few(Py_ssize_t pixels, Py_ssize_t filters, Py_ssize_t runs, Py_ssize_t length, real **a, real *b,
                             real **c, Epilogue *e) noexcept nogil:
    if real is float:
        tile_of_few_f32(pixels, filters, runs, length, a, b, c, <epilogue_f32 *> e)
    else:
        tile_of_few_f64(pixels, filters, runs, length, a, b, c, <epilogue_f64 *> e)


cdef inline Py_ssize_t few_pixels(Py_ssize_t filters, real *like) noexcept nogil:
    """How many of a tile's pixels `tile_of_few` takes at a time."""
    return few_pixels_f32(filters) if real is float else few_pixels_f64(filters)


cdef inline void outer_tile(Py_ssize_t pixels, Py_ssize_t length, real *a, Py_ssize_t a_step, real *b, Py_ssize_t b_step, real *c,
                            Py_ssize_t c_step, Py_ssize_t cols, Epilogue *e) noexcept nogil:
    if real is float:
        outer_tile_f32(pixels, length, a, a_step, b, b_step, c, c_step, cols, <epilogue_f32 *> e)
    else:
        outer_tile_f64(pixels, length, a, a_step, b, b_step, c, c_step, cols, <epilogue_f64 *> e)


cdef inline void mix_tile(Py_ssize_t cols, Py_ssize_t length, real *a, real *b, Py_ssize_t b_step, real *c,
                          Epilogue *e) noexcept nogil:
    if real is float:
        mix_tile_f32(cols, length, a, b, b_step, c, <epilogue_f32 *> e)
    else:
        mix_tile_f64(cols, length, a, b, b_step, c, <epilogue_f64 *> e)


cdef inline void tile_by_columns(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, real **a, Py_ssize_t a_step, real *b,
                                 Py_ssize_t b_step, real **c, Py_ssize_t cols, Epilogue *e) noexcept nogil:
    if real is float:
        tile_by_columns_f32(rows, runs, length, a, a_step, b, b_step, c, cols, <epilogue_f32 *> e)
    else:
        tile_by_columns_f64(rows, runs, length, a, a_step, b, b_step, c, cols, <epilogue_f64 *> e)


cdef inline void tile_and_keep(Py_ssize_t rows, Py_ssize_t length, real **a, real *b, Py_ssize_t b_step, real **c, Epilogue *e,
                               real *keep) noexcept nogil:
    """A tile by rows of NR columns, and B packed: keep[k * NR + j] = b[k * b_step + j]."""
    if real is float:
        tile_and_keep_f32(rows, length, a, b, b_step, c, <epilogue_f32 *> e, keep)
    else:
        tile_and_keep_f64(rows, length, a, b, b_step, c, <epilogue_f64 *> e, keep)


cdef inline void tile_by_table(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, real **a, real *b, Py_ssize_t *table,
                               real **c, Py_ssize_t cols, Epilogue *e) noexcept nogil:
    """A tile by rows whose row k of B, counted over the runs, lies at b + table[k]."""
    if real is float:
        tile_by_table_f32(rows, runs, length, a, b, table, c, cols, <epilogue_f32 *> e)
    else:
        tile_by_table_f64(rows, runs, length, a, b, table, c, cols, <epilogue_f64 *> e)


cdef inline void dot_tile(Py_ssize_t cols, Py_ssize_t runs, Py_ssize_t rows, Py_ssize_t length, real **a, Py_ssize_t a_run,
                          Py_ssize_t a_step, real **b, Py_ssize_t b_run, Py_ssize_t b_step, real *c, real *ahead) noexcept nogil:
    """c[m * DOT_COLS + n] += the products of a[m] and b[n], summed along the rows; rows that lie like those of a are called for."""
    if real is float:
        dot_tile_f32(cols, runs, rows, length, a, a_run, a_step, b, b_run, b_step, c, ahead)
    else:
        dot_tile_f64(cols, runs, rows, length, a, a_run, a_step, b, b_run, b_step, c, ahead)


cdef inline void point_rows(real **a, real *base, Py_ssize_t step, Py_ssize_t n) noexcept nogil:
    """a[m] = base + m * step for m < n <= MR."""
    if real is float:
        point_rows_f32(a, base, step, n)
    else:
        point_rows_f64(a, base, step, n)


cdef inline void transpose(real *dst, Py_ssize_t dst_stride, real *src, Py_ssize_t src_stride, Py_ssize_t rows,
                           Py_ssize_t cols) noexcept nogil:
    """dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < cols."""
    if real is float:
        transpose_f32(dst, dst_stride, src, src_stride, rows, cols)
    else:
        transpose_f64(dst, dst_stride, src, src_stride, rows, cols)


cdef inline void copy(real *dst, real *src, Py_ssize_t n, Py_ssize_t src_step) noexcept nogil:
    """dst[i] = src[i * src_step] for i < n."""
    if real is float:
        copy_f32(dst, src, n, src_step)
    else:
        copy_f64(dst, src, n, src_step)


cdef inline void copy_padded(real *dst, real *src, Py_ssize_t n) noexcept nogil:
    """A whole vector: dst[i] = src[i] for i < n, and zeros after them."""
    if real is float:
        copy_padded_f32(dst, src, n)
    else:
        copy_padded_f64(dst, src, n)


cdef inline void spread(real *dst, real *src, Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    """dst[i * step] = src[i] for i < n."""
    if real is float:
        spread_f32(dst, src, n, step)
    else:
        spread_f64(dst, src, n, step)


cdef inline void pack_pieces(real *dst, Py_ssize_t row_step, real *src, Py_ssize_t plane, Py_ssize_t rows, Piece *pieces,
                             Py_ssize_t n_pieces, Py_ssize_t step) noexcept nogil:
    """dst[to + row * row_step + i] = src[at + row * plane + i * step] for i < n of every piece, or 0 where at < 0."""
    if real is float:
        pack_pieces_f32(dst, row_step, src, plane, rows, pieces, n_pieces, step)
    else:
        pack_pieces_f64(dst, row_step, src, plane, rows, pieces, n_pieces, step)


cdef inline void winograd_data(int nh, int nw, real *d, Py_ssize_t row, Py_ssize_t col, real *V, Py_ssize_t step) noexcept nogil:
    if real is float:
        winograd_data_f32(nh, nw, d, row, col, V, step)
    else:
        winograd_data_f64(nh, nw, d, row, col, V, step)


cdef inline void winograd_filter(int nh, int rh, int nw, int rw, real *g, Py_ssize_t row, Py_ssize_t col, real *U, Py_ssize_t step,
                                 int top, int left) noexcept nogil:
    if real is float:
        winograd_filter_f32(nh, rh, nw, rw, g, row, col, U, step, top, left)
    else:
        winograd_filter_f64(nh, rh, nw, rw, g, row, col, U, step, top, left)


cdef inline void winograd_result(int nh, int mh, int nw, int mw, real *M, Py_ssize_t step, real *y, Py_ssize_t row, Py_ssize_t col,
                                 real *bias, int relu, int stream) noexcept nogil:
    if real is float:
        winograd_result_f32(nh, mh, nw, mw, M, step, y, row, col, bias, relu, stream)
    else:
        winograd_result_f64(nh, mh, nw, mw, M, step, y, row, col, bias, relu, stream)


cdef inline void write_weights(real *sums, Py_ssize_t size, Py_ssize_t parts, Py_ssize_t step, Py_ssize_t ld, Py_ssize_t taps,
                               Py_ssize_t C, Py_ssize_t K, Py_ssize_t groups, real *out, bint filters_first, Py_ssize_t g,
                               Py_ssize_t c, Py_ssize_t c_end, Py_ssize_t k, Py_ssize_t k_end) noexcept nogil:
    """A weight gradient's last step, for channels c to c_end and filters k to k_end of group g: add the parts in order, put them in
    place.

    sums[part * size + tap * step + (channel - c) * ld + filter - k] becomes out[tap][channel][g, filter], or
    out[g, filter][channel][tap]. k is a multiple of VL.
    """
    cdef Py_ssize_t VL = lanes(sums), channels = c_end - c, filters = k_end - k, at = 0, t, i, j, p, n, width
    cdef real side_by_side[256 * 16]  # [channel and tap][filter] of VL filters
    cdef real *row
    for t in range(taps):
        for i in range(channels):
            row = sums + t * step + i * ld
            for p in range(1, parts):
                for j in range(filters):
                    row[j] += row[p * size + j]
            if not filters_first:
                copy(out + ((t * C + c + i) * groups + g) * K + k, row, filters, 1)
    out += (g * K + k) * C * taps + c * taps
    while filters_first and at < channels * taps:
        n = least(256, channels * taps - at)
        j = 0
        while j < filters:
            width = least(VL, filters - j)
            i, t = at // taps, at % taps
            for p in range(n if taps > 1 else 0):
                copy(side_by_side + p * VL, sums + t * step + i * ld + j, width, 1)
                t += 1
                if t == taps:
                    i, t = i + 1, 0
            if taps == 1:
                transpose(out + j * C + at, C, sums + at * ld + j, ld, n, width)
            else:
                transpose(out + j * C * taps + at, C * taps, side_by_side, VL, n, width)
            j += VL
        at += n
