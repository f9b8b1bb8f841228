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
