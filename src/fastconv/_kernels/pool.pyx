"""Pooling: maximum with its place, mean, and their gradients.

A row of results is worked on at a time. Where no window meets the padding, all its places have the same taps: one list of
pointers serves them, moved along. Near the edges each place has a list of its own, of the cells that are real.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastconv._kernels.tiles cimport begin_task, data, end_task, real

cnp.import_array()

cdef extern from "pool.h" nogil:
    void pool_max_f32(Py_ssize_t taps, const float **x, const int32_t *place, Py_ssize_t at, Py_ssize_t n, Py_ssize_t step,
                      int64_t origin, Py_ssize_t step_of_place, float *y, int64_t *index)
    void pool_max_f64(Py_ssize_t taps, const double **x, const int64_t *place, Py_ssize_t at, Py_ssize_t n, Py_ssize_t step,
                      int64_t origin, Py_ssize_t step_of_place, double *y, int64_t *index)
    void pool_give_f32(const float *dy, const int64_t *index, Py_ssize_t n, Py_ssize_t step, Py_ssize_t cell, Py_ssize_t F_h,
                       Py_ssize_t F_w, Py_ssize_t W1, Py_ssize_t D, float *dx, int32_t *missed)
    void pool_give_f64(const double *dy, const int64_t *index, Py_ssize_t n, Py_ssize_t step, Py_ssize_t cell, Py_ssize_t F_h,
                       Py_ssize_t F_w, Py_ssize_t W1, Py_ssize_t D, double *dx, int64_t *missed)
    void pool_mean_f32(Py_ssize_t taps, const float **x, Py_ssize_t at, Py_ssize_t n, Py_ssize_t step, float divisor, float *y)
    void pool_mean_f64(Py_ssize_t taps, const double **x, Py_ssize_t at, Py_ssize_t n, Py_ssize_t step, double divisor, double *y)
    void pool_shares_f32(Py_ssize_t taps, const float **x, const float *share, Py_ssize_t n, float *y)
    void pool_shares_f64(Py_ssize_t taps, const double **x, const double *share, Py_ssize_t n, double *y)

cdef enum:
    ALONE = 1 << 15  # cells that one thread has read before a second has started
    SMALL_BYTES = 1 << 18  # of a picture that a second-level cache holds with what is read beside it

cdef struct Pool:
    Py_ssize_t N, H1, W1, D, H2, W2   # D is 1 in NCHW, where N counts the planes
    Py_ssize_t F_h, F_w, S_h, S_w, top, left
    bint maximum, with_pad            # with_pad: the mean is taken over padded cells too

cdef struct Lists:  # of one thread, room for all taps and for those of one place
    void **x
    void **x_inside
    int64_t *place      # from the first tap's cell on
    int64_t *place_inside
    Py_ssize_t *column  # of the tap's cell, for a window at column 0


cdef Py_ssize_t lists_bytes(Pool *p) noexcept nogil:
    return (5 * 8 * p.F_h * p.F_w + 127) // 64 * 64


cdef Lists make_lists(char *at, Py_ssize_t taps) noexcept nogil:
    cdef Lists lists
    lists.x, lists.x_inside = <void **> at, <void **> at + taps
    lists.place = <int64_t *> at + 2 * taps
    lists.place_inside, lists.column = lists.place + taps, <Py_ssize_t *> lists.place + 2 * taps
    return lists


cdef inline void put(int64_t *place, Py_ssize_t t, int64_t value, real *like) noexcept nogil:
    """Places are as wide as the numbers, so that both fill a vector."""
    if real is float:
        (<int32_t *> place)[t] = <int32_t> value
    else:
        place[t] = value


cdef inline void pool_run(Pool *p, Py_ssize_t taps, void **x, int64_t *place, Py_ssize_t at, Py_ssize_t n, Py_ssize_t step,
                          int64_t origin, Py_ssize_t step_of_place, Py_ssize_t divisor, real *y, int64_t *index) noexcept nogil:
    if real is float:
        if p.maximum:
            pool_max_f32(taps, <const float **> x, <int32_t *> place, at, n, step, origin, step_of_place, y, index)
        else:
            pool_mean_f32(taps, <const float **> x, at, n, step, <float> divisor, y)
    else:
        if p.maximum:
            pool_max_f64(taps, <const double **> x, place, at, n, step, origin, step_of_place, y, index)
        else:
            pool_mean_f64(taps, <const double **> x, at, n, step, <double> divisor, y)


cdef void edge(Pool *p, Lists *l, Py_ssize_t taps, Py_ssize_t column, int64_t origin, real *y, int64_t *index) noexcept nogil:
    """One place: its real cells are those of the taps whose columns lie inside."""
    cdef Py_ssize_t t, inside = 0
    for t in range(taps):
        if 0 <= l.column[t] + column < p.W1:
            l.x_inside[inside] = l.x[t]
            put(l.place_inside, inside, (<int32_t *> l.place)[t] if real is float else l.place[t], y)
            inside += 1
    pool_run(p, inside, l.x_inside, l.place_inside, column * p.D, p.D, 1, origin + column, 0,
             p.F_h * p.F_w if p.with_pad else max(inside, 1), y, index)


cdef void pool_row(Pool *p, Lists *l, real *x, Py_ssize_t row, real *y, int64_t *index) noexcept nogil:
    """A row of results, x being the picture; index is NULL unless it is wanted."""
    cdef Py_ssize_t i, j, taps = 0, first = max(0, row * p.S_h - p.top), last = min(p.H1, row * p.S_h - p.top + p.F_h)
    cdef Py_ssize_t begin = min((p.left + p.S_w - 1) // p.S_w, p.W2), end = begin
    cdef Py_ssize_t at, together
    cdef int64_t origin = first * p.W1 - p.left
    cdef int64_t *to
    for i in range(first, last):
        for j in range(p.F_w):
            l.column[taps] = j - p.left
            l.x[taps] = x + (i * p.W1 + j - p.left) * p.D
            put(l.place, taps, (i - first) * p.W1 + j, y)
            taps += 1
    if p.W1 + p.left >= p.F_w:
        end = max(begin, min(p.W2, (p.W1 + p.left - p.F_w) // p.S_w + 1))
    i = 0
    while i < p.W2:
        at, to = i * p.S_w, index + i * p.D if index is not NULL else NULL
        if not begin <= i < end:
            edge(p, l, taps, at, origin, y + i * p.D, to)
            i += 1
            continue
        together = end - i if p.D == 1 else 1
        pool_run(p, taps, l.x, l.place, at * p.D, together * p.D, p.S_w if p.D == 1 else 1, origin + at, p.S_w if p.D == 1 else 0,
                 p.F_h * p.F_w if p.with_pad else max(taps, 1), y + i * p.D, to)
        i += together


cdef int pool(Pool *p, real *x, real *y, int64_t *index, int threads) except -1:
    cdef Py_ssize_t own = lists_bytes(p), item, n, row
    cdef char *scratch = <char *> malloc(threads * own)
    cdef unsigned int before = 0
    cdef Lists lists
    if scratch is NULL:
        raise MemoryError
    with nogil:
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            for item in prange(p.N * p.H2, schedule="static"):
                lists = make_lists(scratch + threadid() * own, p.F_h * p.F_w)
                n, row = item // p.H2, item % p.H2
                pool_row(p, &lists, x + n * p.H1 * p.W1 * p.D, row, y + item * p.W2 * p.D,
                         index + item * p.W2 * p.D if index is not NULL else NULL)
            end_task(before)
    free(scratch)
    return 0


# ------------------------------------------------------------------------------------------------------------ gradients

cdef struct Field:
    # What the gradient of a maximum goes back to: pictures of H1 x W1 cells from H2 x W2 places, D numbers each.
    Py_ssize_t H1, W1, H2, W2, D


cdef inline void give(real *dy, int64_t *index, Py_ssize_t n, Py_ssize_t step, Py_ssize_t cell, Py_ssize_t F_h, Py_ssize_t F_w,
                      Py_ssize_t W1, Py_ssize_t D, real *dx, void *missed) noexcept nogil:
    if real is float:
        pool_give_f32(dy, index, n, step, cell, F_h, F_w, W1, D, dx, <int32_t *> missed)
    else:
        pool_give_f64(dy, index, n, step, cell, F_h, F_w, W1, D, dx, <int64_t *> missed)


cdef bint give_back(Field *f, real *dx, real *dy, int64_t *index, Py_ssize_t channels) noexcept nogil:
    """Write dx of one picture as if H2 x W2 windows tiled it; returns whether each winner was a cell of its window."""
    cdef Py_ssize_t F_h = f.H1 // f.H2, F_w = f.W1 // f.W2, i, j, r
    cdef int64_t missed[16]  # room for the lanes of any vector
    for i in range(f.H2):
        memset(missed, 0, sizeof(missed))
        if f.D == 1:
            give(dy, index, f.W2, F_w, i * F_h * f.W1, F_h, F_w, f.W1, 1, dx + i * F_h * f.W1, missed)
        for j in range(f.W2 if f.D > 1 else 0):
            r = i * F_h * f.W1 + j * F_w
            give(dy + j * f.D, index + j * f.D, channels, 0, r, F_h, F_w, f.W1, f.D, dx + r * f.D, missed)
        for j in range(16):
            if missed[j]:
                return False
        for r in range(i * F_h, (i + 1) * F_h):
            for j in range(f.W2 * F_w, f.W1):
                memset(dx + (r * f.W1 + j) * f.D, 0, channels * sizeof(real))
        dy += f.W2 * f.D
        index += f.W2 * f.D
    for r in range(f.H2 * F_h * f.W1, f.H1 * f.W1):
        memset(dx + r * f.D, 0, channels * sizeof(real))
    return True


cdef Py_ssize_t scatter(Field *f, real *dx, real *dy, int64_t *index, Py_ssize_t channels) noexcept nogil:
    """Add dy to dx at the cells that won, for some channels of one picture; returns how many places were none.

    A small dx is zeroed at once, a large one row by row, just ahead of the places of the next row of dy: by then it is in
    the cache for them.
    """
    cdef Py_ssize_t _r, i, c, zeroed = 0, reach, wrong = 0, cells = f.H1 * f.W1, rows = f.H2, row = f.W2, D = f.D
    cdef int64_t at
    if D == channels and cells * D * <Py_ssize_t> sizeof(real) <= SMALL_BYTES:
        memset(dx, 0, cells * D * sizeof(real))
        zeroed = cells
    for _r in range(rows):
        reach = 0
        for i in range(row if zeroed < cells else 0):
            for c in range(channels):
                reach = max(reach, index[i * D + c] + 1)
        reach = min(reach, cells)
        if D == channels and zeroed < reach:
            memset(dx + zeroed * D, 0, (reach - zeroed) * D * sizeof(real))
            zeroed = reach
        while zeroed < reach:
            memset(dx + zeroed * D, 0, channels * sizeof(real))
            zeroed += 1
        for i in range(row):
            for c in range(channels):
                at = index[i * D + c]
                if <size_t> at < <size_t> cells:  # and not negative
                    dx[at * D + c] += dy[i * D + c]
                elif at != -1:
                    wrong += 1
        index += row * D
        dy += row * D
    while zeroed < cells:
        memset(dx + zeroed * D, 0, channels * sizeof(real))
        zeroed += 1
    return wrong


cdef Py_ssize_t picture_grad(Field *f, real *dx, real *dy, int64_t *index, Py_ssize_t channels, bint *tiled) noexcept nogil:
    """Write some channels of one picture's dx; returns how many places were none. Most poolings tile the picture, so that each
    place has its cells for itself; `tiled` is true until it turns out that this one does not."""
    if tiled[0]:
        if give_back(f, dx, dy, index, channels):
            return 0
        tiled[0] = False
    return scatter(f, dx, dy, index, channels)


cdef Py_ssize_t run_max_grad(real *like, cnp.ndarray dy, cnp.ndarray index, cnp.ndarray dx, Py_ssize_t N, Field *f,
                             int threads) noexcept:
    cdef real *to = data(dx, like)
    cdef real *share = data(dy, like)
    cdef int64_t *won = <int64_t *> cnp.PyArray_DATA(index)
    # Whole pictures if there are enough for the threads, else pieces of their depth, of whole cache lines.
    cdef Py_ssize_t D = f.D, line = 64 // sizeof(real), pieces = min((D + line - 1) // line, (threads + N - 1) // max(N, 1))
    cdef Py_ssize_t width = ((D + pieces - 1) // pieces + line - 1) // line * line, cells = f.H1 * f.W1, places = f.H2 * f.W2
    cdef Py_ssize_t item, n, c, wrong = 0
    # Short rows of single numbers are not worth a vector.
    cdef bint tiled = 0 < f.H2 <= f.H1 and 0 < f.W2 <= f.W1 and cells < 1 << 31 and (D > 1 or f.W2 > 8)
    cdef bint *guess = &tiled
    cdef unsigned int before = 0
    pieces = (D + width - 1) // width
    with nogil:
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            for item in prange(N * pieces, schedule="static"):
                n, c = item // pieces, item % pieces * width
                wrong += picture_grad(f, to + n * cells * D + c, share + n * places * D + c, won + n * places * D + c,
                                      min(width, D - c), guess)
            end_task(before)
    return wrong


cdef inline Py_ssize_t real_cells(Py_ssize_t place, Py_ssize_t S, Py_ssize_t before, Py_ssize_t F, Py_ssize_t size) noexcept nogil:
    """Cells of a window, along one axis, that are not padding."""
    return min(place * S - before + F, size) - max(place * S - before, 0)


cdef inline Py_ssize_t first_window(Py_ssize_t cell, Py_ssize_t S, Py_ssize_t before, Py_ssize_t F) noexcept nogil:
    return max(0, (cell + before - F + S) // S) if cell + before >= F else 0


cdef void mean_grad_row(Pool *p, char *scratch, real *dy, Py_ssize_t row, real *dx) noexcept nogil:
    """A row of dx: first the sum over the rows of dy whose windows meet it, then, cell by cell, over the columns."""
    cdef Py_ssize_t width = p.W2 * p.D, taps = 0, i, j, cells, last = min(p.H2, (row + p.top) // p.S_h + 1)
    cdef real *total = <real *> scratch
    cdef real *share = total + width
    cdef void **x = <void **> (scratch + (width * 8 + p.F_h * 8 + p.F_w * 8))
    cdef real each
    for i in range(first_window(row, p.S_h, p.top, p.F_h), last):
        x[taps] = dy + i * width
        share[taps] = 1 / <real> (p.F_h if p.with_pad else real_cells(i, p.S_h, p.top, p.F_h, p.H1))
        taps += 1
    shares(taps, x, share, width, total)
    if p.D == 1:
        memset(dx, 0, p.W1 * sizeof(real))
        for i in range(p.W2):
            cells = real_cells(i, p.S_w, p.left, p.F_w, p.W1)
            each = total[i] / (p.F_w if p.with_pad else max(cells, 1))
            j = max(i * p.S_w - p.left, 0)
            for j in range(j, j + cells):
                dx[j] += each
        return
    for j in range(p.W1):
        taps = 0
        for i in range(first_window(j, p.S_w, p.left, p.F_w), min(p.W2, (j + p.left) // p.S_w + 1)):
            x[taps] = total + i * p.D
            share[taps] = 1 / <real> (p.F_w if p.with_pad else real_cells(i, p.S_w, p.left, p.F_w, p.W1))
            taps += 1
        shares(taps, x, share, p.D, dx + j * p.D)


cdef inline void shares(Py_ssize_t taps, void **x, real *share, Py_ssize_t n, real *y) noexcept nogil:
    if real is float:
        pool_shares_f32(taps, <const float **> x, share, n, y)
    else:
        pool_shares_f64(taps, <const double **> x, share, n, y)


cdef int mean_grad(Pool *p, real *dy, real *dx, int threads) except -1:
    cdef Py_ssize_t own = (p.W2 * p.D + 2 * (p.F_h + p.F_w) + 16) * 8, item
    cdef char *scratch = <char *> malloc(threads * own)
    cdef unsigned int before = 0
    if scratch is NULL:
        raise MemoryError
    with nogil:
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            for item in prange(p.N * p.H1, schedule="static"):
                mean_grad_row(p, scratch + threadid() * own, dy + item // p.H1 * p.H2 * p.W2 * p.D, item % p.H1,
                              dx + item * p.W1 * p.D)
            end_task(before)
    free(scratch)
    return 0


# ---------------------------------------------------------------------------------------------------- what pooling calls

cdef Pool make_pool(cnp.ndarray x, cnp.ndarray y, Py_ssize_t F_h, Py_ssize_t F_w, Py_ssize_t S_h, Py_ssize_t S_w,
                    Py_ssize_t top, Py_ssize_t left, bint nchw) noexcept:
    cdef Pool p
    p.N = x.shape[0] * x.shape[1] if nchw else x.shape[0]
    p.D = 1 if nchw else x.shape[3]
    p.H1, p.W1 = x.shape[2 if nchw else 1], x.shape[3 if nchw else 2]
    p.H2, p.W2 = y.shape[2 if nchw else 1], y.shape[3 if nchw else 2]
    p.F_h, p.F_w, p.S_h, p.S_w, p.top, p.left = F_h, F_w, S_h, S_w, top, left
    p.maximum = p.with_pad = False
    return p


def maximum(cnp.ndarray x, cnp.ndarray y, index, Py_ssize_t F_h, Py_ssize_t F_w, Py_ssize_t S_h, Py_ssize_t S_w,
            Py_ssize_t top, Py_ssize_t left, bint nchw, int threads):
    """y = the largest cell of each window, index (int64, or None) = where it lies in its picture."""
    cdef Pool p = make_pool(x, y, F_h, F_w, S_h, S_w, top, left, nchw)
    cdef int64_t *places = NULL if index is None else <int64_t *> cnp.PyArray_DATA(<cnp.ndarray> index)
    p.maximum = True
    if cnp.PyArray_SIZE(x) < ALONE:
        threads = 1
    if cnp.PyArray_SIZE(y) == 0:
        return
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        pool(&p, data(x, <float *> NULL), data(y, <float *> NULL), places, threads)
    else:
        pool(&p, data(x, <double *> NULL), data(y, <double *> NULL), places, threads)


def mean(cnp.ndarray x, cnp.ndarray y, Py_ssize_t F_h, Py_ssize_t F_w, Py_ssize_t S_h, Py_ssize_t S_w,
         Py_ssize_t top, Py_ssize_t left, bint with_pad, bint nchw, int threads):
    """y = the mean of each window."""
    cdef Pool p = make_pool(x, y, F_h, F_w, S_h, S_w, top, left, nchw)
    p.with_pad = with_pad
    if cnp.PyArray_SIZE(x) < ALONE:
        threads = 1
    if cnp.PyArray_SIZE(y) == 0:
        return
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        pool(&p, data(x, <float *> NULL), data(y, <float *> NULL), NULL, threads)
    else:
        pool(&p, data(x, <double *> NULL), data(y, <double *> NULL), NULL, threads)


def maximum_grad(cnp.ndarray dy, cnp.ndarray index, cnp.ndarray dx, bint nchw, int threads):
    """dx = dy at the cells that won; returns how many entries of index are no cell of the picture."""
    cdef Py_ssize_t N = dy.shape[0] * dy.shape[1] if nchw else dy.shape[0], h = 2 if nchw else 1
    cdef Field f = Field(dx.shape[h], dx.shape[h + 1], dy.shape[h], dy.shape[h + 1], 1 if nchw else dy.shape[3])
    if cnp.PyArray_SIZE(dx) < ALONE:
        threads = 1
    if cnp.PyArray_SIZE(dx) == 0:
        return 0
    if cnp.PyArray_TYPE(dx) == cnp.NPY_FLOAT32:
        return run_max_grad(<float *> NULL, dy, index, dx, N, &f, threads)
    return run_max_grad(<double *> NULL, dy, index, dx, N, &f, threads)


def mean_gradient(cnp.ndarray dy, cnp.ndarray dx, Py_ssize_t F_h, Py_ssize_t F_w, Py_ssize_t S_h, Py_ssize_t S_w,
                  Py_ssize_t top, Py_ssize_t left, bint with_pad, bint nchw, int threads):
    """dx = each cell's share of the means that it went into."""
    cdef Pool p = make_pool(dx, dy, F_h, F_w, S_h, S_w, top, left, nchw)
    p.with_pad = with_pad
    if cnp.PyArray_SIZE(dx) < ALONE:
        threads = 1
    if cnp.PyArray_SIZE(dx) == 0:
        return
    if cnp.PyArray_TYPE(dx) == cnp.NPY_FLOAT32:
        mean_grad(&p, data(dy, <float *> NULL), data(dx, <float *> NULL), threads)
    else:
        mean_grad(&p, data(dy, <double *> NULL), data(dx, <double *> NULL), threads)
