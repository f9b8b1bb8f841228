"""The explicit im2col and its adjoint: every window of the pictures a row of a matrix, and back.

Copies and additions only, number by number as they lie. Arguments are trusted; arrays are C-contiguous and of one dtype.
"""

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange
from libc.string cimport memset

from fastconv._kernels.gather cimport SMALL_WORK, Shape, make_shape
from fastconv._kernels.tiles cimport ceil_div, copy, data, least, most, real

cnp.import_array()


@cython.final
cdef class Columns:
    """Those of a forward gather: sizes, grid, taps and window as for `Gather` in conv.pyx, with every tap of the window; nchw:
    depth-first pictures, else depth-last."""
    cdef Shape s
    cdef cnp.ndarray taps
    cdef bint nchw

    def __init__(self, tuple sizes, tuple grid, cnp.ndarray taps, Py_ssize_t window, bint nchw):
        self.s = make_shape(sizes, grid, taps, window)
        self.taps, self.nchw = taps, nchw

    def im2col(self, cnp.ndarray src, cnp.ndarray cols, int threads):
        """cols, depth-last: (N, rows, cols, groups, T, C); depth-first: (N, groups, C, T, rows, cols)."""
        if cnp.PyArray_TYPE(cols) == cnp.NPY_FLOAT32:
            walk_cols[float](&self.s, self.nchw, src, cols, None, False, threads, NULL)
        else:
            walk_cols[double](&self.s, self.nchw, src, cols, None, False, threads, NULL)

    def col2im(self, cnp.ndarray cols, cnp.ndarray src, cnp.ndarray bias, int threads):
        """The adjoint: every number of src is its channel's bias, or 0, plus all those of cols that come from it."""
        if cnp.PyArray_TYPE(cols) == cnp.NPY_FLOAT32:
            walk_cols[float](&self.s, self.nchw, src, cols, bias, True, threads, NULL)
        else:
            walk_cols[double](&self.s, self.nchw, src, cols, bias, True, threads, NULL)


cdef walk_cols(Shape *s, bint nchw, cnp.ndarray src, cnp.ndarray cols, cnp.ndarray bias, bint add, int threads, real *like):
    """Either way, planes or pictures side by side; of few pictures, cuts of their channels."""
    cdef real *x = data(src, like)
    cdef real *y = data(cols, like)
    cdef real *b = NULL if bias is None else data(bias, like)
    cdef Py_ssize_t depth = s.groups * s.C, cuts = threads if s.N < threads <= s.C else 1, i, n, cut
    cdef bint parallel = threads > 1 and cols.size > SMALL_WORK // 16
    with nogil:
        if nchw:
            for i in prange(s.N * depth, num_threads=threads, schedule="static", use_threads_if=parallel):
                if add:
                    fill(x + i * s.Hs * s.Ws, s.Hs * s.Ws, b + i % depth if b != NULL else NULL, 0)
                cols_of_plane(s, x + i * s.Hs * s.Ws, y + i * s.T * s.rows * s.cols, add)
        else:
            for i in prange(s.N * cuts, num_threads=threads, schedule="static", use_threads_if=parallel):
                n, cut = i // cuts, i % cuts
                cols_of_picture(s, x + n * s.Hs * s.Ws * depth, y + n * s.rows * s.cols * depth * s.T, b, add, s.C * cut // cuts,
                                s.C * (cut + 1) // cuts)


cdef inline void fill(real *x, Py_ssize_t n, real *bias, Py_ssize_t step) noexcept nogil:
    """x[i] = bias[i * step], or 0 without a bias."""
    cdef Py_ssize_t i
    if bias == NULL:
        memset(x, 0, n * sizeof(real))
    else:
        for i in range(n):
            x[i] = bias[i * step]


cdef void cols_of_plane(Shape *s, real *plane, real *cols, bint add) noexcept nogil:
    cdef Py_ssize_t t, i, j, h, begin, end
    cdef real *row
    for t in range(s.T):
        # columns of the grid from which this tap meets the picture, and no more
        begin = least(s.cols, most(0, ceil_div(most(0, -s.dw[t]), s.stride_w)))
        end = most(begin, least(s.cols, ceil_div(most(0, s.Ws - s.dw[t]), s.stride_w)))
        for i in range(s.rows):
            h = i * s.stride_h + s.dh[t]
            row = plane + h * s.Ws + s.dw[t]
            if not 0 <= h < s.Hs:
                if not add:
                    memset(cols, 0, s.cols * sizeof(real))
            elif add and s.stride_w == 1:
                for j in range(begin, end):
                    row[j] += cols[j]
            elif add:
                for j in range(begin, end):
                    row[j * s.stride_w] += cols[j]
            else:
                memset(cols, 0, begin * sizeof(real))
                copy(cols + begin, row + begin * s.stride_w, end - begin, s.stride_w)
                memset(cols + end, 0, (s.cols - end) * sizeof(real))
            cols += s.cols


cdef void cols_of_picture(Shape *s, real *picture, real *cols, real *bias, bint add, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    """Channels lo to hi of every group. Rows that are added to are filled just before, and so are in cache."""
    cdef Py_ssize_t i, j, g, t, h, w, c, filled = 0
    cdef real *at
    for i in range(s.rows + 1):
        if add:
            h = least(s.Hs, i * s.stride_h + s.dh[s.T - 1] + 1) if i < s.rows else s.Hs
            while filled < h:
                fill_row(s, picture + filled * s.Ws * s.groups * s.C, bias, lo, hi)
                filled += 1
        if i == s.rows:
            break
        for j in range(s.cols):
            for g in range(s.groups):
                for t in range(s.T):
                    h, w = i * s.stride_h + s.dh[t], j * s.stride_w + s.dw[t]
                    at = picture + ((h * s.Ws + w) * s.groups + g) * s.C
                    if not (0 <= h < s.Hs and 0 <= w < s.Ws):
                        if not add:
                            memset(cols + lo, 0, (hi - lo) * sizeof(real))
                    elif add:
                        for c in range(lo, hi):
                            at[c] += cols[c]
                    else:
                        copy(cols + lo, at + lo, hi - lo, 1)
                    cols += s.C


cdef void fill_row(Shape *s, real *row, real *bias, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(s.Ws * s.groups):
        fill(row + i * s.C + lo, hi - lo, bias + i % s.groups * s.C + lo if bias != NULL else NULL, 1)
