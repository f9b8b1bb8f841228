"""What the kernels use of C, under one name for float and for double."""

cimport numpy as cnp

ctypedef fused real:
    float
    double

cdef extern from "kernels.h" nogil:
    enum:
        TILE_MR "MR"
        VECTOR_BYTES
    unsigned int flush_denormals()
    void restore_denormals(unsigned int before)
    ctypedef struct epilogue_f32:
        float *bias
        int bias_by_row, accumulate, relu
    ctypedef struct epilogue_f64:
        double *bias
        int bias_by_row, accumulate, relu
    void tile_by_rows_f32(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, float **a, Py_ssize_t a_step, float *b,
                          Py_ssize_t b_step, float **c, Py_ssize_t cols, epilogue_f32 *e)
    void tile_by_rows_f64(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, double **a, Py_ssize_t a_step, double *b,
                          Py_ssize_t b_step, double **c, Py_ssize_t cols, epilogue_f64 *e)
    void tile_by_columns_f32(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, float **a, Py_ssize_t a_step, float *b,
                             Py_ssize_t b_step, float **c, Py_ssize_t cols, epilogue_f32 *e)
    void tile_by_columns_f64(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, double **a, Py_ssize_t a_step, double *b,
                             Py_ssize_t b_step, double **c, Py_ssize_t cols, epilogue_f64 *e)
    void transpose_f32(float *dst, Py_ssize_t dst_stride, float *src, Py_ssize_t src_stride, Py_ssize_t rows, Py_ssize_t cols)
    void transpose_f64(double *dst, Py_ssize_t dst_stride, double *src, Py_ssize_t src_stride, Py_ssize_t rows, Py_ssize_t cols)
    void copy_f32(float *dst, float *src, Py_ssize_t n, Py_ssize_t src_step)
    void copy_f64(double *dst, double *src, Py_ssize_t n, Py_ssize_t src_step)
    void winograd_data_f32(int n, float *d, Py_ssize_t row, Py_ssize_t col, float *V, Py_ssize_t step)
    void winograd_filter_f32(int n, int r, float *g, Py_ssize_t row, Py_ssize_t col, float *U, Py_ssize_t step)
    void winograd_result_f32(int n, int m, float *M, Py_ssize_t step, float *y, Py_ssize_t row, Py_ssize_t col,
                             float *bias, int relu)
    void winograd_data_f64(int n, double *d, Py_ssize_t row, Py_ssize_t col, double *V, Py_ssize_t step)
    void winograd_filter_f64(int n, int r, double *g, Py_ssize_t row, Py_ssize_t col, double *U, Py_ssize_t step)
    void winograd_result_f64(int n, int m, double *M, Py_ssize_t step, double *y, Py_ssize_t row, Py_ssize_t col,
                             double *bias, int relu)


cdef struct Epilogue:
    # how a tile begins and ends: see epilogue in tile.h
    void *bias
    int bias_by_row, accumulate, relu


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


cdef inline void tile_by_columns(Py_ssize_t rows, Py_ssize_t runs, Py_ssize_t length, real **a, Py_ssize_t a_step, real *b,
                                 Py_ssize_t b_step, real **c, Py_ssize_t cols, Epilogue *e) noexcept nogil:
    if real is float:
        tile_by_columns_f32(rows, runs, length, a, a_step, b, b_step, c, cols, <epilogue_f32 *> e)
    else:
        tile_by_columns_f64(rows, runs, length, a, a_step, b, b_step, c, cols, <epilogue_f64 *> e)


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


cdef inline void winograd_data(int n, real *d, Py_ssize_t row, Py_ssize_t col, real *V, Py_ssize_t step) noexcept nogil:
    if real is float:
        winograd_data_f32(n, d, row, col, V, step)
    else:
        winograd_data_f64(n, d, row, col, V, step)


cdef inline void winograd_filter(int n, int r, real *g, Py_ssize_t row, Py_ssize_t col, real *U, Py_ssize_t step) noexcept nogil:
    if real is float:
        winograd_filter_f32(n, r, g, row, col, U, step)
    else:
        winograd_filter_f64(n, r, g, row, col, U, step)


cdef inline void winograd_result(int n, int m, real *M, Py_ssize_t step, real *y, Py_ssize_t row, Py_ssize_t col, real *bias,
                                 int relu) noexcept nogil:
    if real is float:
        winograd_result_f32(n, m, M, step, y, row, col, bias, relu)
    else:
        winograd_result_f64(n, m, M, step, y, row, col, bias, relu)
