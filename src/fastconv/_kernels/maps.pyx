"""Passes over activation maps: ReLU masks and sums, batch normalisation and its gradient, sums of volumes, turning over.

Volumes are C-contiguous; maps lie apart from one another as planes of pixels (NCHW), or they lie in rows of
`depth`. Each sum runs in parts that depend on the shape alone, added in their order: the same bits for
any number of threads.
"""

cimport numpy as cnp
from cython.parallel cimport prange
from libc.string cimport memset

from fastconv._kernels.tiles cimport VECTOR_BYTES, begin_task, ceil_div, end_task, least, most, real, transpose

from fastconv._kernels import memory

cnp.import_array()

cdef extern from "maps.h" nogil:
    enum:
        RUN
    void mask_f32(float *dy, float *y, float *out, Py_ssize_t n)
    void mask_f64(double *dy, double *y, double *out, Py_ssize_t n)
    void add_arrays_f32(float *a, float *b, float *out, Py_ssize_t n, int relu)
    void add_arrays_f64(double *a, double *b, double *out, Py_ssize_t n, int relu)
    void sum_rows_f32(float *dy, float *y, float *out, Py_ssize_t rows, Py_ssize_t width, float *part, double *sum)
    void sum_rows_f64(double *dy, double *y, double *out, Py_ssize_t rows, Py_ssize_t width, double *part, double *sum)
    void moment_rows_f32(float *x, float *near, Py_ssize_t rows, Py_ssize_t width, float *part, double *sum)
    void moment_rows_f64(double *x, double *near, Py_ssize_t rows, Py_ssize_t width, double *part, double *sum)
    void norm_rows_f32(float *x, float *y, float *mean, float *scale, float *shift, int relu, Py_ssize_t rows,
                       Py_ssize_t width)
    void norm_rows_f64(double *x, double *y, double *mean, double *scale, double *shift, int relu, Py_ssize_t rows,
                       Py_ssize_t width)
    void norm_sum_rows_f32(float *dy, float *x, float *mean, float *scale, float *shift, int relu, Py_ssize_t rows,
                           Py_ssize_t width, float *part, double *sum)
    void norm_sum_rows_f64(double *dy, double *x, double *mean, double *scale, double *shift, int relu, Py_ssize_t rows,
                           Py_ssize_t width, double *part, double *sum)
    void norm_grad_rows_f32(float *dy, float *x, float *dx, float *mean, float *scale, float *shift, float *a,
                            float *b, int relu, Py_ssize_t rows, Py_ssize_t width)
    void norm_grad_rows_f64(double *dy, double *x, double *dx, double *mean, double *scale, double *shift, double *a,
                            double *b, int relu, Py_ssize_t rows, Py_ssize_t width)

cdef enum:
    ALONE = 1 << 15  # numbers that one thread has passed before a second has started
    CHUNK = 1 << 13  # numbers of a task
    LINE = 64        # pixels of a plane that are taken as a row
    PARTS = 32       # of a sum over rows, at most
    SAMPLES = 8      # of a map's numbers, near whose mean lies its own

cdef enum Pass:
    SUM, MOMENT, NORM, NORM_SUM, NORM_GRAD

cdef struct Maps:
    # what a pass works on: volumes and, for each map, constants
    Pass kind
    int relu
    void *dy
    void *x    # for SUM: y, or NULL
    void *out  # or NULL
    void *constant[5]  # mean, scale, shift, a, b; for MOMENT only the first


cdef inline void run(Maps *m, real *like, Py_ssize_t place, void **constant, Py_ssize_t rows, Py_ssize_t width,
                     real *part, double *sum) noexcept nogil:
    """One pass over `rows` rows of `width` numbers, from number `place` of the volumes on."""
    cdef real *dy = <real *> m.dy + place
    cdef real *x = <real *> m.x + place
    cdef real *out = <real *> m.out + place
    cdef real **c = <real **> constant
    if m.x == NULL:
        x = NULL
    if real is float:
        if m.kind == SUM:
            sum_rows_f32(dy, x, out, rows, width, part, sum)
        elif m.kind == MOMENT:
            moment_rows_f32(x, c[0], rows, width, part, sum)
        elif m.kind == NORM:
            norm_rows_f32(x, out, c[0], c[1], c[2], m.relu, rows, width)
        elif m.kind == NORM_SUM:
            norm_sum_rows_f32(dy, x, c[0], c[1], c[2], m.relu, rows, width, part, sum)
        else:
            norm_grad_rows_f32(dy, x, out, c[0], c[1], c[2], c[3], c[4], m.relu, rows, width)
    else:
        if m.kind == SUM:
            sum_rows_f64(dy, x, out, rows, width, part, sum)
        elif m.kind == MOMENT:
            moment_rows_f64(x, c[0], rows, width, part, sum)
        elif m.kind == NORM:
            norm_rows_f64(x, out, c[0], c[1], c[2], m.relu, rows, width)
        elif m.kind == NORM_SUM:
            norm_sum_rows_f64(dy, x, c[0], c[1], c[2], m.relu, rows, width, part, sum)
        else:
            norm_grad_rows_f64(dy, x, out, c[0], c[1], c[2], c[3], c[4], m.relu, rows, width)


cdef void channels_last(Maps *m, real *like, Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t depth, double *sums, Py_ssize_t i,
                        Py_ssize_t parts) noexcept nogil:
    """Rows lo to hi; their two sums, if there is room for them, are part i of so many, and what is added up behind all of them."""
    cdef unsigned int before = begin_task()
    cdef real *part = <real *> (sums + parts * 2 * depth) + i * 2 * depth
    if sums != NULL:
        sums += i * 2 * depth
        memset(sums, 0, 2 * depth * sizeof(double))
        memset(part, 0, 2 * depth * sizeof(real))
    run(m, like, lo * depth, m.constant, hi - lo, depth, part, sums)
    end_task(before)


cdef void planes_of(Maps *m, real *like, Py_ssize_t first, Py_ssize_t step, Py_ssize_t n, Py_ssize_t c,
                    Py_ssize_t pixels, double *total) noexcept nogil:
    """The planes first, first + step, ... (n of them), all of map c; their two sums are added to `total`, if given."""
    cdef unsigned int before = begin_task()
    cdef real constants[5 * LINE]
    cdef real part[2 * LINE]
    cdef double sums[2 * LINE]
    cdef void *constant[5]
    cdef Py_ssize_t i, j, rows = pixels // LINE, rest = pixels % LINE
    for i in range(5):
        constant[i] = &constants[i * LINE]
        if m.constant[i] != NULL:
            for j in range(least(LINE, pixels)):
                constants[i * LINE + j] = (<real *> m.constant[i])[c]
    for j in range(2 * LINE if total != NULL else 0):
        part[j], sums[j] = 0, 0
    for i in range(n if rows else 0):
        run(m, like, (first + i * step) * pixels, constant, rows, LINE, part, sums)
    if total != NULL and rows:
        fold(sums, LINE, total)
    for i in range(n if rest else 0):
        run(m, like, (first + i * step) * pixels + rows * LINE, constant, 1, rest, part, sums)
    if total != NULL and rest:
        fold(sums, rest, total)
    end_task(before)


cdef void fold(double *sums, Py_ssize_t width, double *total) noexcept nogil:
    """Add the columns of the two sums to `total`, and clear them: by halves, for a chain of additions would wait for each."""
    cdef Py_ssize_t i, half, left = width
    while left > 1:
        half = (left + 1) // 2
        for i in range(left - half):
            sums[i] += sums[half + i]
            sums[width + i] += sums[width + half + i]
        left = half
    total[0] += sums[0]
    total[1] += sums[width]
    memset(sums, 0, 2 * width * sizeof(double))


cdef int go(Maps *m, real *like, Py_ssize_t size, Py_ssize_t depth, Py_ssize_t pixels, double *total,
            int threads) except -1:
    """A pass over a volume of `size` numbers, in NCHW if `pixels`; with `total`, (2, depth) sums are added to it."""
    cdef Py_ssize_t rows, parts, planes, i, c
    cdef cnp.ndarray workspace
    cdef double *sums = NULL
    cdef bint parallel = threads > 1 and size > ALONE
    if not size:
        return 0
    if pixels:
        planes = size // pixels
        with nogil:
            if total != NULL:
                for i in prange(depth, num_threads=threads, schedule="static", use_threads_if=parallel):
                    if m.kind == MOMENT:
                        find_near(m, like, size // depth, i, i + 1, depth, pixels)
                    sum_of_map(m, like, i, depth, planes // depth, pixels, total)
            else:
                for i in prange(planes, num_threads=threads, schedule="static", use_threads_if=parallel):
                    planes_of(m, like, i, 1, 1, i % depth, pixels, NULL)
        return 0
    rows = size // depth
    parts = least(rows, ceil_div(size, CHUNK))
    if total != NULL:
        parts = most(1, least(PARTS, rows // RUN))
        workspace = memory.empty((parts * 2 * depth * (sizeof(double) + sizeof(real)),), "u1")
        sums = <double *> cnp.PyArray_DATA(workspace)
    with nogil:
        if m.kind == MOMENT:
            find_near(m, like, rows, 0, depth, depth, 1)
        for i in prange(parts, num_threads=threads, schedule="static", use_threads_if=parallel):
            channels_last(m, like, rows * i // parts, rows * (i + 1) // parts, depth, sums, i, parts)
        for i in range(parts if total != NULL else 0):
            for c in range(2 * depth):
                total[c] += sums[i * 2 * depth + c]
    return 0


cdef void find_near(Maps *m, real *like, Py_ssize_t places, Py_ssize_t c, Py_ssize_t end, Py_ssize_t depth,
                    Py_ssize_t pixels) noexcept nogil:
    """What is taken from the numbers of maps c to end, lest squares be large beside the variance: the mean of a few of them."""
    cdef real *near = <real *> m.constant[0]
    cdef real *at
    cdef Py_ssize_t i, k, q
    memset(near + c, 0, (end - c) * sizeof(real))
    for i in range(SAMPLES):
        q = places * (2 * i + 1) // (2 * SAMPLES)
        at = <real *> m.x + q // pixels * depth * pixels + q % pixels
        for k in range(c, end):
            near[k] += at[k * pixels] / SAMPLES


cdef void sum_of_map(Maps *m, real *like, Py_ssize_t c, Py_ssize_t depth, Py_ssize_t n, Py_ssize_t pixels,
                     double *total) noexcept nogil:
    cdef double both[2]
    both[0], both[1] = 0, 0
    planes_of(m, like, c, depth, n, c, pixels, both)
    total[c] += both[0]
    total[depth + c] += both[1]


cdef int start(Maps *m, cnp.ndarray volume, Py_ssize_t depth, bint nchw, cnp.ndarray total, int threads) except -1:
    cdef Py_ssize_t size = cnp.PyArray_SIZE(volume), pixels = 0
    cdef double *to = NULL if total is None else <double *> cnp.PyArray_DATA(total)
    if nchw and size:
        pixels = size // (depth * cnp.PyArray_DIM(volume, 0))
    if cnp.PyArray_TYPE(volume) == cnp.NPY_FLOAT32:
        return go(m, <float *> NULL, size, depth, pixels, to, threads)
    return go(m, <double *> NULL, size, depth, pixels, to, threads)


cdef inline void *at(cnp.ndarray a) noexcept:
    """Where an array's numbers begin; NULL for None."""
    return NULL if a is None else cnp.PyArray_DATA(a)


def sums(cnp.ndarray dy, cnp.ndarray y, cnp.ndarray out, cnp.ndarray total, bint nchw, int threads):
    """total (2, depth), zeros: its first row becomes dy's sum over all pixels. With y, dy is masked into out first."""
    cdef Maps m
    m.kind, m.relu, m.dy, m.x, m.out = SUM, 0, at(dy), at(y), at(out)
    for i in range(5):
        m.constant[i] = NULL
    start(&m, dy, cnp.PyArray_DIM(total, 1), nchw, total, threads)


def moments(cnp.ndarray x, cnp.ndarray total, bint nchw, int threads):
    """total (2, depth), zeros, becomes the mean and the (biased) variance of each map."""
    cdef Maps m
    cdef Py_ssize_t depth = cnp.PyArray_DIM(total, 1), c, n = cnp.PyArray_SIZE(x) // depth
    cdef cnp.ndarray near = memory.empty((depth,), x.dtype)
    cdef double *mean = <double *> at(total)
    cdef double *var = mean + depth
    m.kind, m.relu, m.dy, m.x, m.out = MOMENT, 0, NULL, at(x), NULL
    for c in range(5):
        m.constant[c] = NULL
    m.constant[0] = at(near)
    start(&m, x, depth, nchw, total, threads)
    for c in range(depth):
        mean[c], var[c] = mean[c] / n, var[c] / n
        var[c] -= mean[c] * mean[c]
        if var[c] < 0:  # by rounding; NaN stays
            var[c] = 0
        mean[c] += (<float *> at(near))[c] if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32 else (<double *> at(near))[c]


def norm(cnp.ndarray x, cnp.ndarray y, cnp.ndarray constants, bint relu, bint nchw, int threads):
    """y = (x - mean) scale + shift and perhaps a ReLU; constants (3, depth) are mean, scale, shift."""
    cdef Maps m
    m.kind, m.relu, m.dy, m.x, m.out = NORM, relu, NULL, at(x), at(y)
    rows_of(&m, constants)
    start(&m, x, cnp.PyArray_DIM(constants, 1), nchw, None, threads)


def norm_sums(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray constants, bint relu, cnp.ndarray total, bint nchw,
              int threads):
    """total (2, depth), zeros, becomes the sums of g and of g (x - mean), g being dy masked by the ReLU if any."""
    cdef Maps m
    m.kind, m.relu, m.dy, m.x, m.out = NORM_SUM, relu, at(dy), at(x), NULL
    rows_of(&m, constants)
    start(&m, x, cnp.PyArray_DIM(constants, 1), nchw, total, threads)


def norm_grad(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray dx, cnp.ndarray constants, bint relu, bint nchw, int threads):
    """dx = (g - a - (x - mean) b) scale, constants (5, depth) being mean, scale, shift, a, b; dx may be dy."""
    cdef Maps m
    m.kind, m.relu, m.dy, m.x, m.out = NORM_GRAD, relu, at(dy), at(x), at(dx)
    rows_of(&m, constants)
    start(&m, x, cnp.PyArray_DIM(constants, 1), nchw, None, threads)


cdef void rows_of(Maps *m, cnp.ndarray constants) noexcept:
    cdef Py_ssize_t i, n = cnp.PyArray_DIM(constants, 0)
    for i in range(5):
        m.constant[i] = <char *> cnp.PyArray_DATA(constants) + i * cnp.PyArray_STRIDE(constants, 0) if i < n else NULL


cdef void flat_task(real *a, real *b, real *out, Py_ssize_t lo, Py_ssize_t hi, bint masks,
                    bint relu) noexcept nogil:
    cdef unsigned int before = begin_task()
    if real is float:
        if masks:
            mask_f32(a + lo, b + lo, out + lo, hi - lo)
        else:
            add_arrays_f32(a + lo, b + lo, out + lo, hi - lo, relu)
    else:
        if masks:
            mask_f64(a + lo, b + lo, out + lo, hi - lo)
        else:
            add_arrays_f64(a + lo, b + lo, out + lo, hi - lo, relu)
    end_task(before)


cdef void flat(real *a, real *b, real *out, Py_ssize_t size, bint masks, bint relu, int threads) noexcept:
    cdef Py_ssize_t i
    cdef bint parallel = threads > 1 and size > ALONE
    for i in prange(ceil_div(size, CHUNK), nogil=True, num_threads=threads, schedule="static", use_threads_if=parallel):
        flat_task(a, b, out, i * CHUNK, least(size, (i + 1) * CHUNK), masks, relu)


def mask(cnp.ndarray dy, cnp.ndarray y, cnp.ndarray out, int threads):
    """out = dy where y > 0, else 0; out may be dy."""
    cdef Py_ssize_t size = cnp.PyArray_SIZE(dy)
    if cnp.PyArray_TYPE(dy) == cnp.NPY_FLOAT32:
        flat(<float *> at(dy), <float *> at(y), <float *> at(out), size, True, False, threads)
    else:
        flat(<double *> at(dy), <double *> at(y), <double *> at(out), size, True, False, threads)


def add(cnp.ndarray a, cnp.ndarray b, cnp.ndarray out, bint relu, int threads):
    """out = a + b, then perhaps a ReLU; out may be a."""
    cdef Py_ssize_t size = cnp.PyArray_SIZE(a)
    if cnp.PyArray_TYPE(a) == cnp.NPY_FLOAT32:
        flat(<float *> at(a), <float *> at(b), <float *> at(out), size, False, relu, threads)
    else:
        flat(<double *> at(a), <double *> at(b), <double *> at(out), size, False, relu, threads)


cdef void turn_piece(real *src, real *dst, Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t src_row, Py_ssize_t dst_row) noexcept nogil:
    cdef Py_ssize_t col = 0, VL = VECTOR_BYTES // <Py_ssize_t> sizeof(real)
    while col < cols:  # so that long stretches of each row are written
        transpose(dst + col * dst_row, dst_row, src + col, src_row, rows, least(VL, cols - col))
        col += VL


cdef void turn_arrays(real *src, real *dst, Py_ssize_t batch, Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t src_batch,
                      Py_ssize_t src_row, Py_ssize_t dst_batch, Py_ssize_t dst_row, int threads) noexcept:
    cdef Py_ssize_t across = ceil_div(cols, LINE), down = ceil_div(rows, 2 * LINE), i, n, row, col
    cdef bint parallel = threads > 1 and batch * rows * cols > ALONE // 2  # to turn one over takes twice as long
    for i in prange(batch * down * across, nogil=True, num_threads=threads, schedule="static", use_threads_if=parallel):
        n, row, col = i // (down * across), i // across % down * 2 * LINE, i % across * LINE
        turn_piece(src + n * src_batch + row * src_row + col, dst + n * dst_batch + col * dst_row + row,
                   least(2 * LINE, rows - row), least(LINE, cols - col), src_row, dst_row)


def turn(cnp.ndarray src, cnp.ndarray dst, Py_ssize_t batch, Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t src_batch,
         Py_ssize_t src_row, Py_ssize_t dst_batch, Py_ssize_t dst_row, int threads):
    """dst[n * dst_batch + j * dst_row + i] = src[n * src_batch + i * src_row + j] for n < batch, i < rows, j < cols."""
    if cnp.PyArray_TYPE(src) == cnp.NPY_FLOAT32:
        turn_arrays(<float *> at(src), <float *> at(dst), batch, rows, cols, src_batch, src_row, dst_batch, dst_row, threads)
    else:
        turn_arrays(<double *> at(src), <double *> at(dst), batch, rows, cols, src_batch, src_row, dst_batch, dst_row, threads)
