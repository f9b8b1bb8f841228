"""Depthwise convolution: each channel has `multiplier` filters of its own. Forward and both gradients.

Depth last, groups of 2, 4 or 8 channels with as many filters are done likewise, a group for a channel: see depthwise.h. Their
weights are q sets, of which set r has for filter k of a group what it makes of channel (k + r) % q.

NHWC works on the picture as it lies, vectors over channels, row by row; pixels a power of two apart, which no first-level
cache holds together, are copied first. NCHW with a common square window works on each plane as it lies, vectors along the rows, and
with AVX-512 picks what a tap meets out of short rows in registers: see short_rows.h.
Planes so small that vectors would be half empty are turned over, some channels at a time, and those of other windows; large ones
of these are staged, padded, in a small buffer where every tap of the window is the plane shifted by a fixed offset, and a stride
deals the plane out to stride x stride smaller ones.

The gradient by the picture is the forward loop seen from the other side: dx is written where y was, dy read where x was, and
with a stride S the places of dx fall into S phases, each with the taps that reach it. `Axis` holds that for one direction.
"""

cimport numpy as cnp
from cython.parallel cimport parallel, prange, threadid
from libc.string cimport memset

from fastconv._kernels.tiles cimport (
    SHARES, VECTOR_BYTES, Share, aligned, begin_task, ceil_div, copy, data, end_task, fetch_lines, floor_div, make_shares,
    odd_lines, real, spread, take, transpose,
)

from fastconv._kernels import memory

cnp.import_array()

cdef extern from "depthwise.h" nogil:
    enum:
        DW_MOST
        DW_ROWS
        DW_GRAD_ROWS
    int dw_kind(Py_ssize_t width, Py_ssize_t step)
    Py_ssize_t dw_width(Py_ssize_t taps, Py_ssize_t step)
    int dw_grouped(int kind)
    int dw_plane_made(Py_ssize_t F, Py_ssize_t step, Py_ssize_t lanes)
    void dw_row_f32(int grad, int q, int kind, Py_ssize_t n, Py_ssize_t runs, void **x, void **w, Py_ssize_t w_step,
                    Py_ssize_t w_round, Py_ssize_t step, Py_ssize_t C, Py_ssize_t first, float *y, Py_ssize_t y_step,
                    const float *bias, int relu, int stream, Py_ssize_t ahead, Py_ssize_t newest, Py_ssize_t fresh,
                    Py_ssize_t y_ahead)
    void dw_row_f64(int grad, int q, int kind, Py_ssize_t n, Py_ssize_t runs, void **x, void **w, Py_ssize_t w_step,
                    Py_ssize_t w_round, Py_ssize_t step, Py_ssize_t C, Py_ssize_t first, double *y, Py_ssize_t y_step,
                    const double *bias, int relu, int stream, Py_ssize_t ahead, Py_ssize_t newest, Py_ssize_t fresh,
                    Py_ssize_t y_ahead)
    void dw_add_pixels_f32(float *y, Py_ssize_t y_step, const float *part, Py_ssize_t n, Py_ssize_t C, int relu)
    void dw_add_pixels_f64(double *y, Py_ssize_t y_step, const double *part, Py_ssize_t n, Py_ssize_t C, int relu)
    void dw_flat_f32(Py_ssize_t taps, const float **x, const float **w, Py_ssize_t n, float *y, const float *bias, int relu)
    void dw_flat_f64(Py_ssize_t taps, const double **x, const double **w, Py_ssize_t n, double *y, const double *bias, int relu)
    void dw_plane_f32(Py_ssize_t F, Py_ssize_t step, const float *x, Py_ssize_t H, Py_ssize_t W, Py_ssize_t top, Py_ssize_t left,
                      const float *w, Py_ssize_t w_step, float *y, Py_ssize_t width, Py_ssize_t r, Py_ssize_t r_end,
                      const float *bias, int relu)
    void dw_plane_f64(Py_ssize_t F, Py_ssize_t step, const double *x, Py_ssize_t H, Py_ssize_t W, Py_ssize_t top, Py_ssize_t left,
                      const double *w, Py_ssize_t w_step, double *y, Py_ssize_t width, Py_ssize_t r, Py_ssize_t r_end,
                      const double *bias, int relu)
    void dw_plane_back_f32(const float *dy, Py_ssize_t H, Py_ssize_t W, Py_ssize_t top, Py_ssize_t left, const float *w, float *dx,
                           Py_ssize_t width, Py_ssize_t r, Py_ssize_t r_end, Py_ssize_t some_rows)
    void dw_plane_back_f64(const double *dy, Py_ssize_t H, Py_ssize_t W, Py_ssize_t top, Py_ssize_t left, const double *w,
                           double *dx, Py_ssize_t width, Py_ssize_t r, Py_ssize_t r_end, Py_ssize_t some_rows)
    void dw_plane_grad_f32(Py_ssize_t step, const float *x, Py_ssize_t H, Py_ssize_t W, Py_ssize_t top, Py_ssize_t left,
                           const float *dy, Py_ssize_t height, Py_ssize_t width, float *total)
    void dw_plane_grad_f64(Py_ssize_t step, const double *x, Py_ssize_t H, Py_ssize_t W, Py_ssize_t top, Py_ssize_t left,
                           const double *dy, Py_ssize_t height, Py_ssize_t width, double *total)
    void dw_add_lanes_f32(float *out, const float *sums, Py_ssize_t taps, Py_ssize_t parts, Py_ssize_t part)
    void dw_add_lanes_f64(double *out, const double *sums, Py_ssize_t taps, Py_ssize_t parts, Py_ssize_t part)
    void dw_dot_f32(Py_ssize_t taps, const float **x, const float *dy, Py_ssize_t n, float *acc)
    void dw_dot_f64(Py_ssize_t taps, const double **x, const double *dy, Py_ssize_t n, double *acc)
    void dw_deal_f32(float *dst, Py_ssize_t step, const float *src, Py_ssize_t n, Py_ssize_t S)
    void dw_deal_f64(double *dst, Py_ssize_t step, const double *src, Py_ssize_t n, Py_ssize_t S)
    void dw_collect_f32(float *dst, const float *src, Py_ssize_t step, Py_ssize_t n, Py_ssize_t S)
    void dw_collect_f64(double *dst, const double *src, Py_ssize_t step, Py_ssize_t n, Py_ssize_t S)

cdef extern from "short_rows.h" nogil:
    ctypedef struct sr_planes:
        Py_ssize_t D, H, W, top, left, height, width
    int sr_made(Py_ssize_t F, Py_ssize_t S, const sr_planes *g)
    int sr_back_made(Py_ssize_t F, Py_ssize_t S, const sr_planes *g)
    void sr_forward(Py_ssize_t F, Py_ssize_t S, const sr_planes *g, Py_ssize_t plane, Py_ssize_t n, const float *x, const float *w,
                    float *y, const float *bias, int relu)
    void sr_back(Py_ssize_t F, const sr_planes *g, Py_ssize_t plane, Py_ssize_t n, const float *dy, const float *w, float *dx)
    void sr_grad(Py_ssize_t S, const sr_planes *g, Py_ssize_t pictures, Py_ssize_t first, Py_ssize_t end, const float *x,
                 const float *dy, float *total, Py_ssize_t total_step)

cdef enum:
    ALONE = 1 << 15        # products that one thread has done before a second has started
    FETCH = 1 << 20        # bytes of pictures beyond a core's own caches: for dw, of which x was read long ago, they are called for
    STREAM = 5 << 22       # that no cache keeps: they are called for always, and results written past the caches
    BLOCK_BYTES = 1 << 10  # of a pixel that are taken at a time
    COPIES = 1 << 19       # bytes of copied pixels that a second-level cache keeps beside the rest
    STAGE_BYTES = 1 << 14  # of the staged planes that are worked on at a time: half a first-level cache
    TURN_BYTES = 1 << 19  # of small planes that are turned over together, read and written: half a second-level cache
    BACK_ROWS = 16         # of dx that are made side by side, where some cache keeps it
    TURNING = 7            # products that turning a place over costs, there and back
    PLANES = 64            # of rows of one vector each that a task takes
    SUMS = 32              # of channels, by tap and lane, that a first-level cache keeps
    PARTS = 64             # sums that a gradient by the weights is split into at most, whatever the number of threads

ctypedef const float *cfloat

PIXELS = DW_MOST  # of a row that are made at a time, for the arithmetic that chooses a way


# ------------------------------------------------------------------------------------------------------------- geometry

cdef struct Axis:
    Py_ssize_t n_in, n_out            # cells that are read and cells that are written
    Py_ssize_t F, S, pad, dilation
    bint back                         # the gradient by the picture: reads dy, writes dx
    Py_ssize_t in_step, out_step      # cell written q * out_step + phase reads cells q * in_step + offset
    Py_ssize_t near, far              # least and largest offset of all phases and taps
    Py_ssize_t first, last            # the same, divided by in_step and rounded down


cdef cnp.ndarray allocate(Py_ssize_t bytes):
    return memory.empty((bytes,), "u1")


cdef inline char *first_line(cnp.ndarray space) noexcept:
    """Where its first whole cache line begins: vectors then lie on one each."""
    return <char *> aligned(<Py_ssize_t> cnp.PyArray_DATA(space))


cdef inline Py_ssize_t places(Axis *a, Py_ssize_t phase) noexcept nogil:
    """Cells written of one phase."""
    return (a.n_out - phase + a.out_step - 1) // a.out_step


cdef inline bint meets(Axis *a, Py_ssize_t phase, Py_ssize_t tap, Py_ssize_t *offset) noexcept nogil:
    """Whether the tap reaches the cells of this phase, and from where."""
    if not a.back:
        offset[0] = tap * a.dilation - a.pad
        return True
    offset[0] = phase + a.pad - tap * a.dilation
    if offset[0] % a.S:
        return False
    offset[0] //= a.S
    return True


cdef Axis make_axis(Py_ssize_t n_in, Py_ssize_t n_out, Py_ssize_t F, Py_ssize_t S, Py_ssize_t pad, Py_ssize_t dilation,
                    bint back) noexcept:
    cdef Axis a
    cdef Py_ssize_t phase, tap, offset
    cdef bint found = False
    a.n_in, a.n_out, a.F, a.S, a.pad, a.dilation, a.back = n_in, n_out, F, S, pad, dilation, back
    a.in_step = 1 if back else S
    a.out_step = S if back else 1
    a.near, a.far = 0, 0
    for phase in range(min(a.out_step, n_out)):
        for tap in range(F):
            if meets(&a, phase, tap, &offset):
                a.near = min(a.near, offset) if found else offset
                a.far = max(a.far, offset) if found else offset
                found = True
    a.first, a.last = floor_div(a.near, a.in_step), floor_div(a.far, a.in_step)
    return a


# ----------------------------------------------------------------------------------------------------------------- NHWC

cdef struct Tables:  # of one thread
    void *zeros               # a pixel of the padding
    Py_ssize_t kept, width    # rows of the picture whose tables are kept; pixels of a row with its padding
    void **row                # which row lies in each place: its number modulo `kept`
    void **table              # [kept][width] where the pixels are
    void **tap_x              # single taps: the place in a table where their pixels begin, and their weights
    void **tap_w
    void **run_x              # runs of neighbouring taps, likewise
    void **run_w
    # Pixels a power of two apart fall into few sets of a first-level cache, which do not hold a window: then they may be copied, a
    # block of channels of each, to `spacing` numbers from one to the next, and so are the weights.
    Py_ssize_t spacing        # or 0
    void *copies              # [kept][width][spacing]
    void *weights             # [tap][spacing]
    void *block               # whose weights these are


cdef inline Py_ssize_t kept_rows(Axis *h) noexcept:
    return h.far - h.near + 1


cdef inline Py_ssize_t padded_width(Axis *v) noexcept:
    return (places(v, 0) - 1) * v.in_step + v.far - v.near + 1


cdef Py_ssize_t spacing_of(Axis *h, Axis *v, Py_ssize_t block, Py_ssize_t itemsize) noexcept:
    """Numbers from a copied pixel to the next, an odd count of cache lines; 0 where the copies would be too many."""
    cdef Py_ssize_t kept = kept_rows(h), width = padded_width(v)
    cdef Py_ssize_t bytes = ((block * itemsize + 63) // 64 | 1) * 64
    return bytes // itemsize if kept * width * bytes <= COPIES else 0


cdef Py_ssize_t tables_bytes(Axis *h, Axis *v, Py_ssize_t pixel_bytes, Py_ssize_t spacing_bytes) noexcept:
    cdef Py_ssize_t kept = kept_rows(h), width = padded_width(v)
    cdef Py_ssize_t lists = (sizeof(Tables) + (4 * h.F * v.F + kept * (width + 1)) * sizeof(void *) + pixel_bytes + 63) // 64 * 64
    return lists + (kept * width + h.F * v.F) * spacing_bytes


cdef void make_tables(char *at, Axis *h, Axis *v, Py_ssize_t pixel_bytes, Py_ssize_t spacing, Py_ssize_t itemsize) noexcept:
    cdef Tables *t = <Tables *> at
    cdef Py_ssize_t taps = h.F * v.F
    t.kept, t.width = kept_rows(h), padded_width(v)
    t.row = <void **> (at + sizeof(Tables))
    t.table = t.row + t.kept
    t.tap_x = t.table + t.kept * t.width
    t.tap_w, t.run_x, t.run_w = t.tap_x + taps, t.tap_x + 2 * taps, t.tap_x + 3 * taps
    t.zeros = t.run_w + taps
    t.spacing, t.block = spacing, NULL
    t.copies = at + tables_bytes(h, v, pixel_bytes, 0)
    t.weights = <char *> t.copies + t.kept * t.width * spacing * itemsize
    memset(t.row, 0, t.kept * sizeof(void *))
    memset(t.zeros, 0, pixel_bytes)


cdef void **pixels_of(Tables *t, Axis *v, real *row, Py_ssize_t depth, Py_ssize_t number, Py_ssize_t C,
                      Py_ssize_t ahead) noexcept nogil:
    """The table of a row of the picture, from the first pixel that any tap meets; where it is copied, the row `ahead` numbers
    further on is fetched, unless that is 0."""
    cdef void **table = t.table + number % t.kept * t.width
    cdef Py_ssize_t i
    cdef Py_ssize_t begin = min(max(-v.near, 0), t.width), end = max(begin, min(v.n_in - v.near, t.width))
    cdef real *to = <real *> t.copies + number % t.kept * t.width * t.spacing
    if t.row[number % t.kept] == row:
        return table
    t.row[number % t.kept] = row
    for i in range(begin):
        table[i] = t.zeros
    for i in range(begin, end):
        table[i] = row + (v.near + i) * depth
        if t.spacing:
            if ahead:
                fetch_lines(<real *> table[i] + ahead, C * sizeof(real))
            copy(to + i * t.spacing, <real *> table[i], C, 1)
            table[i] = to + i * t.spacing
    for i in range(end, t.width):
        table[i] = t.zeros
    return table


cdef real *weights_of(Tables *t, real *w, Py_ssize_t depth, Py_ssize_t taps, Py_ssize_t C) noexcept nogil:
    """A block's weights: as they lie or, if pixels are copied, a copy."""
    cdef Py_ssize_t i
    if t.spacing and t.block != w:
        for i in range(taps):
            copy(<real *> t.weights + i * t.spacing, w + i * depth, C, 1)
        t.block = w
    return <real *> t.weights if t.spacing else w


cdef inline void pixels(bint grad, int q, int kind, Py_ssize_t n, Py_ssize_t runs, void **x, void **w, Py_ssize_t w_step,
                        Py_ssize_t w_round, Py_ssize_t step, Py_ssize_t C, Py_ssize_t first, real *y, Py_ssize_t y_step,
                        real *bias, bint relu, bint stream, Py_ssize_t ahead, Py_ssize_t newest, Py_ssize_t fresh,
                        Py_ssize_t y_ahead) noexcept nogil:
    if real is float:
        dw_row_f32(grad, q, kind, n, runs, x, w, w_step, w_round, step, C, first, y, y_step, bias, relu, stream, ahead, newest,
                   fresh, y_ahead)
    else:
        dw_row_f64(grad, q, kind, n, runs, x, w, w_step, w_round, step, C, first, y, y_step, bias, relu, stream, ahead, newest,
                   fresh, y_ahead)


cdef Py_ssize_t neighbours(Axis *a, Py_ssize_t phase, Py_ssize_t *tap, Py_ssize_t *step) noexcept nogil:
    """How many taps this phase has if they meet cells side by side, else 1; the one that comes first, and the way to the next."""
    cdef Py_ssize_t t, offset, before = 0, n = 0, last = 0
    for t in range(a.F):
        if not meets(a, phase, t, &offset):
            continue
        if n == 0:
            tap[0] = t
        elif offset != before + (-1 if a.back else 1):
            return 1
        else:
            step[0] = t - last
        n, before, last = n + 1, offset, t
    if a.back and n > 1:
        tap[0], step[0] = last, -step[0]
    return n


cdef inline Py_ssize_t to_a_line(real *x, Py_ssize_t depth, Py_ssize_t C) noexcept nogil:
    """Channels of each pixel before its first whole cache line, if it is the same for all pixels and they are many vectors: a load
    across two lines costs two."""
    cdef Py_ssize_t line = VECTOR_BYTES // <Py_ssize_t> sizeof(real)
    if depth % line or C <= 4 * line:
        return 0
    return (VECTOR_BYTES - <Py_ssize_t> (<size_t> x % VECTOR_BYTES)) % VECTOR_BYTES // <Py_ssize_t> sizeof(real)


cdef Py_ssize_t spare_row(Axis *v) noexcept:
    """Pixels of a row for a second sum, where runs of two widths make up the taps side by side; else 0."""
    cdef Py_ssize_t phase, count, first, step
    for phase in range(min(v.out_step, v.n_out)):
        count = neighbours(v, phase, &first, &step)
        if count % dw_width(count, v.in_step):
            return places(v, 0)
    return 0


cdef inline void add_pixels(real *y, Py_ssize_t y_step, real *part, Py_ssize_t n, Py_ssize_t C, bint relu) noexcept nogil:
    if real is float:
        dw_add_pixels_f32(y, y_step, part, n, C, relu)
    else:
        dw_add_pixels_f64(y, y_step, part, n, C, relu)


cdef void nhwc_row(bint grad, int q, Axis *h, Axis *v, Tables *t, real *x, Py_ssize_t x_depth, real *weights, Py_ssize_t w_depth,
                   real *y, Py_ssize_t y_depth, Py_ssize_t row, Py_ssize_t C, real *bias, bint relu, bint stream, bint fetch,
                   real *spare) noexcept nogil:
    """One row that is written, C channels of one image, in groups of q; with `grad` the weights are what is written, by adding.

    `stream`: no cache keeps the pictures, and results are written past the caches. `fetch`: what the next row needs is fetched into
    the cache meanwhile. From memory that halves the time; what another cache has it delays by a tenth or more, for loads are what
    bounds a row. If the taps side by side are runs of one width and a narrower one, the latter's sums are made in `spare`, and
    added.
    """
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t phase, n, step, taps, count, width, rows, runs, done, i, j, k, in_row, offset, first_tap = 0, tap_step = 0
    cdef Py_ssize_t ahead = h.in_step * v.n_in * x_depth if fetch else 0, w_round = h.F * v.F * w_depth
    cdef Py_ssize_t first = 0 if q > 1 or stream or t.spacing else to_a_line(x, x_depth, C), fresh
    cdef bint whole, aside
    cdef void **table
    cdef real *to
    for phase in range(min(v.out_step, v.n_out)):
        n, to, step = places(v, phase), y + phase * y_depth, v.out_step * y_depth
        count = neighbours(v, phase, &first_tap, &tap_step)
        width = dw_width(count, v.in_step)
        if q > 1 and not (width == count and dw_grouped(dw_kind(width, v.in_step))):
            width = 1
        whole = grad or width == count or count % width == 0
        taps, rows = 0, 0
        for i in range(h.F):
            if not meets(h, row % h.out_step, i, &offset):
                continue
            in_row = row // h.out_step * h.in_step + offset
            if in_row < 0 or in_row >= h.n_in:
                continue
            table = pixels_of(t, v, x + in_row * v.n_in * x_depth, x_depth, in_row, C, ahead)
            for j in range(v.F):
                if meets(v, phase, j, &offset):
                    t.tap_x[taps], t.tap_w[taps] = table + offset - v.near, weights + (i * v.F + j) * w_depth
                    taps += 1
            rows += 1
        if C < lanes or width == 1:
            pixels(grad, q, 0, n, taps, t.tap_x, t.tap_w, 0, w_round, v.in_step, C, first, to, step, bias, relu, stream, 0, 0, 0, 0)
            continue
        done = 0
        while done < count:
            width, runs, aside = width if done == 0 else count - done, 0, done > 0 and not grad
            while done + width <= count:
                for k in range(rows):
                    i = k * count + (count - 1 if h.back else 0)
                    t.run_x[runs], t.run_w[runs] = <void **> t.tap_x[i] + done, <real *> t.tap_w[i] + done * tap_step * w_depth
                    runs += 1
                done += width
            fresh = 0 if t.spacing or not fetch or aside else min(rows, h.in_step)
            pixels(grad, q, dw_kind(width, v.in_step), n, runs, t.run_x, t.run_w, tap_step * w_depth, w_round, v.in_step, C, first,
                   spare if aside else to, C if aside else step, NULL if aside else bias, relu and whole, stream and whole, ahead,
                   0 if h.back else runs - fresh, fresh, v.n_out * y_depth if grad and fetch else 0)
            if aside:
                add_pixels(to, step, spare, n, C, relu)


cdef void interleave(real *dst, Py_ssize_t dst_step, real *src, Py_ssize_t n, Py_ssize_t C, Py_ssize_t multiplier,
                     bint undo) noexcept nogil:
    """dst[p * dst_step + c * multiplier + k] = src[(k * n + p) * C + c]; with `undo` the other way."""
    cdef Py_ssize_t p, k
    for p in range(n):
        for k in range(multiplier):
            if undo:
                copy(src + (k * n + p) * C, dst + p * dst_step + k, C, multiplier)
            else:
                spread(dst + p * dst_step + k, src + (k * n + p) * C, C, multiplier)


cdef void add_to(real *total, real *part, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        total[i] += part[i]


cdef void sum_parts(real *total, real *sums, Py_ssize_t parts, Py_ssize_t n) noexcept nogil:
    """total[i] = sum over the parts of sums[part * n + i], in order."""
    cdef Py_ssize_t part
    copy(total, sums, n, 1)
    for part in range(1, parts):
        add_to(total, sums + part * n, n)


cdef void fold(real *dst, Py_ssize_t dst_step, real *src, Py_ssize_t n, Py_ssize_t C, Py_ssize_t multiplier,
               real *spare) noexcept nogil:
    """dst[p * dst_step + c] = sum over k of src[(p * C + c) * multiplier + k]; there is room for C numbers to spare."""
    cdef Py_ssize_t p, k
    for p in range(n):
        copy(dst + p * dst_step, src + p * C * multiplier, C, multiplier)
        for k in range(1, multiplier):
            copy(spare, src + p * C * multiplier + k, C, multiplier)
            add_to(dst + p * dst_step, spare, C)


cdef inline Py_ssize_t lines_of(Py_ssize_t depth, Py_ssize_t itemsize) noexcept nogil:
    """Cache lines of a pixel."""
    return (depth * itemsize + 63) // 64


cdef Py_ssize_t blocks_of(Py_ssize_t depth, Py_ssize_t itemsize, Py_ssize_t rows, int threads) noexcept:
    """Blocks of channels that are taken one at a time; more of them where there are fewer rows than threads, but of two lines at
    least: less than a vector would be summed in another order."""
    return max(1, depth * itemsize // BLOCK_BYTES, min(depth * itemsize // 128, ceil_div(threads, max(1, rows))))


cdef inline Py_ssize_t block_at(Py_ssize_t i, Py_ssize_t blocks, Py_ssize_t depth, Py_ssize_t itemsize) noexcept nogil:
    """Where block i begins, or ends the last one: at a whole line."""
    return min(depth, lines_of(depth, itemsize) * i // blocks * (64 // itemsize))


cdef inline Py_ssize_t largest_block(Py_ssize_t blocks, Py_ssize_t depth, Py_ssize_t itemsize) noexcept:
    return ceil_div(lines_of(depth, itemsize), blocks) * (64 // itemsize)


cdef void part_sets(real *sets, Py_ssize_t ld, real *w, Py_ssize_t taps, Py_ssize_t D, int q, bint back, bint undo) noexcept nogil:
    """Set r of groups of q: sets[r][tap][g, k] = w[tap][(k + r) % q][g, k]; `back`: w[tap][k][g, (k + r) % q]; or undone. From a
    tap's numbers in `sets` to the next one's it is ld."""
    cdef Py_ssize_t r, t, k, turned, g
    cdef real *one
    cdef real *part
    for r in range(q):
        for t in range(taps):
            for k in range(q):
                turned = (k + r) % q
                one = w + ((t * q + k) * D + turned if back else (t * q + turned) * D + k)
                part = sets + (r * taps + t) * ld + k
                for g in range(D // q):
                    if undo:
                        one[g * q] = part[g * q]
                    else:
                        part[g * q] = one[g * q]


cdef Py_ssize_t nhwc(real *x, real *w, real *bias, real *y, Py_ssize_t N, Py_ssize_t D, Py_ssize_t m, int q, bint copied, Axis *h,
                     Axis *v, bint relu, int threads) except -1:
    """Forward (x is read, y written) and grad_x (dy is read, dx written): D channels with m filters each, or in groups of q.

    With m > 1 a row is first written into a buffer: forward once for each of a channel's filters, in the depth of x;
    grad_x in the depth of dy.
    """
    cdef bint back = h.back
    cdef Py_ssize_t taps = h.F * v.F, K = D * m, x_depth = K if back else D, y_depth = D if back else K
    cdef Py_ssize_t read = N * h.n_in * v.n_in * x_depth * sizeof(real), written = N * h.n_out * v.n_out * y_depth * sizeof(real)
    cdef bint fetch = (written if back and h.S * v.S > 1 else read + written) > STREAM  # of dx some cache keeps the most
    cdef bint stream = fetch and <size_t> y % VECTOR_BYTES == 0 and D * <Py_ssize_t> sizeof(real) % VECTOR_BYTES == 0
    cdef Py_ssize_t blocks = blocks_of(D, sizeof(real), N * h.n_out, threads), block = largest_block(blocks, D, sizeof(real))
    cdef Py_ssize_t pixel_bytes = block * sizeof(real) * (m if back else 1)
    cdef Py_ssize_t spacing = spacing_of(h, v, block * (m if back else 1), sizeof(real)) if copied else 0
    cdef Py_ssize_t lists = tables_bytes(h, v, pixel_bytes, spacing * sizeof(real))
    cdef Py_ssize_t buffered = lists + (0 if m == 1 else aligned((v.n_out * m + 1) * block * sizeof(real)))
    cdef Py_ssize_t own = buffered + aligned(spare_row(v) * pixel_bytes)
    cdef Py_ssize_t w_depth = odd_lines(D, x) if q > 1 else spacing or D
    cdef Py_ssize_t sets = q * taps * w_depth if q > 1 else 0 if m == 1 or back else (taps + 1) * K
    cdef Py_ssize_t bytes = threads * own + sets * sizeof(real) + 64
    if y is NULL:
        return bytes
    cdef cnp.ndarray space = allocate(bytes)
    cdef char *scratch = first_line(space)
    cdef real *by_filter = <real *> (scratch + threads * own) if sets and q == 1 else NULL
    cdef real *filter_bias = NULL
    cdef real *image
    cdef real *first
    cdef real *buffer
    cdef real *spare
    cdef Py_ssize_t item, n, c, C, row, k
    cdef unsigned int before = 0
    cdef Share shares[SHARES]
    cdef Tables *t
    for item in range(threads):
        make_tables(scratch + item * own, h, v, pixel_bytes, spacing, sizeof(real))
    with nogil:
        if q > 1:
            part_sets(<real *> (scratch + threads * own), w_depth, w, taps, D, q, back, False)
            w = <real *> (scratch + threads * own)
        if by_filter is not NULL:  # [filter of its channel][tap][channel]
            interleave(w, K, by_filter, taps, D, m, True)
            if bias is not NULL:
                filter_bias = by_filter + taps * K
                interleave(bias, K, filter_bias, 1, D, m, True)
        make_shares(shares, threads, N * blocks * h.n_out)
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            while True:
                item = take(shares, threads, threadid())
                if item < 0:
                    break
                t = <Tables *> (scratch + threadid() * own)
                buffer = <real *> (scratch + threadid() * own + lists)
                spare = <real *> (scratch + threadid() * own + buffered)
                row = item % h.n_out
                c = block_at(item // h.n_out % blocks, blocks, D, sizeof(real))
                C = block_at(item // h.n_out % blocks + 1, blocks, D, sizeof(real)) - c
                n = item // (h.n_out * blocks)
                image = x + n * h.n_in * v.n_in * x_depth
                first = y + (n * h.n_out + row) * v.n_out * y_depth
                if m == 1:
                    nhwc_row(False, q, h, v, t, image + c, D, weights_of(t, w + c, D, taps, C), w_depth, first + c, D, row,
                             C, bias + c if bias is not NULL else NULL, relu, stream, fetch, spare)
                elif back:
                    nhwc_row(False, 1, h, v, t, image + c * m, K, w + c * m, K, buffer, C * m, row, C * m, NULL, False, False,
                             fetch, spare)
                    fold(first + c, D, buffer, v.n_out, C, m, buffer + v.n_out * C * m)
                else:
                    for k in range(m):
                        nhwc_row(False, 1, h, v, t, image + c, D, by_filter + k * taps * D + c, D, buffer + k * v.n_out * C, C, row,
                                 C, filter_bias + k * D + c if filter_bias is not NULL else NULL, relu, False, fetch, spare)
                    interleave(first + c * m, K, buffer, v.n_out, C, m, False)
            end_task(before)
    return 0


cdef void add_parts(real *dw, real *sums, Py_ssize_t ld, Py_ssize_t parts, Py_ssize_t tap, Py_ssize_t k, Py_ssize_t taps,
                    Py_ssize_t D, Py_ssize_t m) noexcept nogil:
    """dw of one tap and filter k of every channel: the parts' sums, added up in the first one's place, and put in place."""
    cdef real *total = sums + (k * taps + tap) * ld
    cdef real *more = total
    cdef Py_ssize_t _, c
    for _ in range(1, parts):
        more += m * taps * ld
        for c in range(D):
            total[c] += more[c]
    for c in range(D if dw is not NULL else 0):
        dw[(tap * D + c) * m + k] = total[c]


cdef Py_ssize_t nhwc_grad_w(real *dy, real *x, real *dw, Py_ssize_t N, Py_ssize_t D, Py_ssize_t m, int q, bint copied, Axis *h,
                            Axis *v, int threads) except -1:
    """The rows of dy are cut into a fixed number of parts; each adds up its own dw, [filter of a channel, or set][tap][channel]."""
    cdef Py_ssize_t taps = h.F * v.F, K = D * m, rows = N * h.n_out
    cdef Py_ssize_t parts = max(1, min(PARTS // blocks_of(D, sizeof(real), rows, 1), rows * v.n_out // 128, rows))
    cdef Py_ssize_t blocks = blocks_of(D, sizeof(real), parts, threads), block = largest_block(blocks, D, sizeof(real))
    cdef Py_ssize_t spacing = spacing_of(h, v, block, sizeof(real)) if copied else 0
    cdef bint in_place = parts == m == q == 1
    cdef Py_ssize_t ld = D if in_place else odd_lines(D, x), w_depth = spacing if m == 1 and spacing else ld
    cdef Py_ssize_t size = taps * m * q * ld  # of a part's sums
    cdef Py_ssize_t lists = tables_bytes(h, v, block * sizeof(real), spacing * sizeof(real))
    cdef Py_ssize_t own = lists + (0 if m == 1 else aligned(v.n_out * block * m * sizeof(real)))
    cdef Py_ssize_t met = N * (h.n_in * v.n_in * D + h.n_out * v.n_out * K) * sizeof(real)
    cdef bint fetch = met > FETCH, beyond = met > STREAM
    cdef Py_ssize_t bytes = threads * own + (0 if in_place else parts * size * sizeof(real)) + 64 + VECTOR_BYTES
    if dw is NULL:
        return bytes
    cdef cnp.ndarray space = allocate(bytes)
    cdef char *scratch = first_line(space)
    cdef Py_ssize_t past_a_line = 0 if beyond or spacing else <size_t> x % VECTOR_BYTES  # as the channels that are read
    cdef real *sums = dw if in_place else <real *> (scratch + threads * own + past_a_line)
    cdef real *own_sums
    cdef real *first
    cdef Py_ssize_t item, part, c, C, r, k, t, depth
    cdef unsigned int before = 0
    cdef Share shares[SHARES]
    cdef Tables *tables
    for item in range(threads):
        make_tables(scratch + item * own, h, v, block * sizeof(real), spacing, sizeof(real))
    with nogil:
        make_shares(shares, threads, blocks * parts)
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            while True:
                item = take(shares, threads, threadid())
                if item < 0:
                    break
                tables = <Tables *> (scratch + threadid() * own)
                part, c = item // blocks, block_at(item % blocks, blocks, D, sizeof(real))
                C = block_at(item % blocks + 1, blocks, D, sizeof(real)) - c
                own_sums = <real *> tables.weights if w_depth != ld else sums + part * size + c
                for t in range(taps * m * q):
                    memset(own_sums + t * w_depth, 0, C * sizeof(real))
                for r in range(rows * part // parts, rows * (part + 1) // parts):
                    first = dy + r * v.n_out * K + c * m
                    depth = D
                    if m > 1:
                        interleave(first, K, <real *> (scratch + threadid() * own + lists), v.n_out, C, m, True)
                        first = <real *> (scratch + threadid() * own + lists)
                        depth = C
                    for k in range(m):
                        nhwc_row(True, q, h, v, tables, x + r // h.n_out * h.n_in * v.n_in * D + c, D, own_sums + k * taps * ld,
                                 w_depth, first + k * v.n_out * C, depth, r % h.n_out, C, <real *> NULL, False, beyond, fetch,
                                 <real *> NULL)
                for t in range(taps if w_depth != ld else 0):
                    copy(sums + part * size + t * ld + c, own_sums + t * w_depth, C, 1)
            end_task(before)
        for item in range(0 if in_place else taps * m * q):
            add_parts(dw if q == 1 else NULL, sums, ld, parts, item // (m * q), item % (m * q), taps, D, m * q)
        if q > 1:
            part_sets(sums, ld, dw, taps, D, q, False, True)
    return 0


# ----------------------------------------------------------------------------------------- NCHW, common windows
#
# They work on the planes as they lie, along their rows.

cdef bint as_they_lie(Axis *h, Axis *v, Py_ssize_t m, bint grad, Py_ssize_t channels, Py_ssize_t itemsize) noexcept:
    """Whether planes are taken so: where what is lost past the ends of their rows, and of the last rows, costs less than to turn
    them over, `channels` at a time (0: that cannot be had). grad: for the gradient by the weights."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // itemsize, rows = DW_GRAD_ROWS if grad else DW_ROWS if h.F <= 3 else 1
    cdef Py_ssize_t products = h.F * v.F, loads = 5  # of 2x2 windows, across cache lines: they cost more than the products
    if m > 1 or h.F != v.F or h.S != v.S or h.dilation > 1 or v.dilation > 1 or not dw_plane_made(h.F, h.S, lanes):
        return False
    if h.F != 3 and (grad or h.back and h.S == 2):
        return False
    if channels == 0:
        return 4 * v.n_out >= lanes
    if VECTOR_BYTES == 16:  # without masks the ends of rows are read number by number
        return False
    if h.back and h.S == 2:
        return 2 * v.n_out >= lanes
    return (max(products, loads) * ceil_div(h.n_out, rows) * rows * ceil_div(v.n_out, lanes) * lanes
            <= (products + TURNING) * h.n_out * v.n_out)


cdef Py_ssize_t planes(real *x, real *w, real *bias, real *y, Py_ssize_t N, Py_ssize_t D, Axis *h, Axis *v, bint relu,
                       int threads) except -1:
    """Forward (x is read, y written) and grad_x (dy is read, dx written); with few planes each is cut into bands of rows."""
    cdef Py_ssize_t bands = max(1, min(4 * threads // max(1, N * D), h.n_out // 8)), item, plane, band, r, r_end
    cdef Py_ssize_t taps = h.F * v.F, first = taps - 1 if h.back else 0, w_step = -1 if h.back else 1
    cdef Py_ssize_t rows = 1 if N * D * h.n_out * v.n_out * <Py_ssize_t> sizeof(real) > STREAM else BACK_ROWS
    cdef real *b
    cdef real *one
    cdef real *read
    cdef real *made
    cdef unsigned int before = 0
    cdef Share shares[SHARES]
    if y is NULL:
        return 0
    with nogil:
        make_shares(shares, threads, N * D * bands)
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            while True:
                item = take(shares, threads, threadid())
                if item < 0:
                    break
                plane, band = item // bands, item % bands
                r, r_end = h.n_out * band // bands, h.n_out * (band + 1) // bands
                b = bias + plane % D if bias is not NULL else NULL
                one, read, made = w + plane % D * taps, x + plane * h.n_in * v.n_in, y + plane * h.n_out * v.n_out
                if h.back and h.S == 2:
                    if real is float:
                        dw_plane_back_f32(read, h.n_in, v.n_in, h.pad, v.pad, one, made, v.n_out, r, r_end, rows)
                    else:
                        dw_plane_back_f64(read, h.n_in, v.n_in, h.pad, v.pad, one, made, v.n_out, r, r_end, rows)
                elif real is float:
                    dw_plane_f32(h.F, h.in_step, read, h.n_in, v.n_in, -h.near, -v.near, one + first, w_step, made, v.n_out, r,
                                 r_end, b, relu)
                else:
                    dw_plane_f64(h.F, h.in_step, read, h.n_in, v.n_in, -h.near, -v.near, one + first, w_step, made, v.n_out, r,
                                 r_end, b, relu)
            end_task(before)
    return 0


cdef inline void add_lanes(real *dw, real *sums, Py_ssize_t taps, Py_ssize_t parts, Py_ssize_t part) noexcept nogil:
    if real is float:
        dw_add_lanes_f32(dw, sums, taps, parts, part)
    else:
        dw_add_lanes_f64(dw, sums, taps, parts, part)


cdef Py_ssize_t planes_grad_w(real *dy, real *x, real *dw, Py_ssize_t N, Py_ssize_t D, Axis *h, Axis *v, int threads) except -1:
    """A channel, and a fixed share of the images, at a time."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // <Py_ssize_t> sizeof(real), parts = max(1, min(N, PARTS // D)), own = 9 * lanes
    cdef Py_ssize_t bytes = D * parts * own * sizeof(real) + 64
    if dw is NULL:
        return bytes
    cdef cnp.ndarray space = allocate(bytes)
    cdef real *sums = <real *> first_line(space)
    cdef Py_ssize_t item, c, part, n
    cdef unsigned int before = 0
    cdef real *total
    with nogil:
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            for item in prange(D * parts, schedule="static"):
                c, part = item // parts, item % parts
                total = sums + item * own
                memset(total, 0, own * sizeof(real))
                for n in range(N * part // parts, N * (part + 1) // parts):
                    if real is float:
                        dw_plane_grad_f32(h.in_step, x + (n * D + c) * h.n_in * v.n_in, h.n_in, v.n_in, -h.near, -v.near,
                                          dy + (n * D + c) * h.n_out * v.n_out, h.n_out, v.n_out, total)
                    else:
                        dw_plane_grad_f64(h.in_step, x + (n * D + c) * h.n_in * v.n_in, h.n_in, v.n_in, -h.near, -v.near,
                                          dy + (n * D + c) * h.n_out * v.n_out, h.n_out, v.n_out, total)
            for c in prange(D, schedule="static"):
                add_lanes(dw + c * 9, sums + c * parts * own, 9, parts, own)
            end_task(before)
    return 0


# ------------------------------------------------------------------------------------------------ NCHW, short rows

cdef sr_planes short_planes(Py_ssize_t D, Axis *h, Axis *v) noexcept nogil:
    """As short_rows.h sees them: of dx with a stride the padding is the forward loop's."""
    cdef bint spread_out = h.back and h.S > 1
    return sr_planes(D, h.n_in, v.n_in, h.pad if spread_out else -h.near, v.pad if spread_out else -v.near, h.n_out, v.n_out)


cdef bint rows_are_vectors(Py_ssize_t D, Py_ssize_t m, Axis *h, Axis *v) noexcept:
    """Whether short_rows.h has what the problem needs, and that pays."""
    cdef sr_planes g = short_planes(D, h, v)
    if m > 1 or h.F != v.F or h.S != v.S or h.dilation > 1 or v.dilation > 1:
        return False
    return sr_back_made(h.F, h.S, &g) if h.back and h.S > 1 else sr_made(h.F, h.S, &g)


cdef Py_ssize_t short_rows(float *x, float *w, float *bias, float *y, Py_ssize_t N, Py_ssize_t D, Axis *h, Axis *v, bint relu,
                           int threads) except -1:
    """Forward (x is read, y written) and grad_x (dy is read, dx written), some planes at a time."""
    cdef sr_planes g = short_planes(D, h, v)
    cdef Py_ssize_t lots = ceil_div(N * D, PLANES), taps = h.F * v.F, item, plane, end
    cdef Py_ssize_t turned = D * taps if h.back and h.S == 1 else 0  # weights in the order of the forward loop
    cdef unsigned int before = 0
    cdef Share shares[SHARES]
    if y is NULL:
        return turned * sizeof(float)
    cdef cnp.ndarray space = allocate(turned * sizeof(float))
    cdef float *last_first = <float *> cnp.PyArray_DATA(space)
    with nogil:
        for item in range(turned):
            last_first[item] = w[item // taps * taps + taps - 1 - item % taps]
        if turned:
            w = last_first
        make_shares(shares, threads, lots)
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            while True:
                item = take(shares, threads, threadid())
                if item < 0:
                    break
                plane, end = N * D * item // lots, N * D * (item + 1) // lots
                if h.back and h.S > 1:
                    sr_back(h.F, &g, plane, end - plane, x, w, y)
                else:
                    sr_forward(h.F, h.S, &g, plane, end - plane, x, w, y, bias, relu)
            end_task(before)
    return 0


cdef Py_ssize_t short_rows_grad_w(float *dy, float *x, float *dw, Py_ssize_t N, Py_ssize_t D, Axis *h, Axis *v,
                                  int threads) except -1:
    """Some channels, and a fixed share of the images, at a time."""
    cdef sr_planes g = short_planes(D, h, v)
    cdef Py_ssize_t lanes = VECTOR_BYTES // sizeof(float), parts = max(1, min(N, PARTS // D)), own = 9 * lanes
    cdef Py_ssize_t lots = ceil_div(D, SUMS), bytes = D * parts * own * sizeof(float) + 64
    if dw is NULL:
        return bytes
    cdef cnp.ndarray space = allocate(bytes)
    cdef float *sums = <float *> first_line(space)
    cdef Py_ssize_t item, c, part, first, end, n
    cdef unsigned int before = 0
    with nogil:
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            for item in prange(lots * parts, schedule="static"):
                part, first, end = item % parts, D * (item // parts) // lots, D * (item // parts + 1) // lots
                n = N * part // parts
                for c in range(first, end):
                    memset(sums + (c * parts + part) * own, 0, own * sizeof(float))
                sr_grad(h.S, &g, N * (part + 1) // parts - n, first, end, x + n * D * h.n_in * v.n_in,
                        dy + n * D * h.n_out * v.n_out, sums + (first * parts + part) * own, parts * own)
            for c in prange(D, schedule="static"):
                add_lanes(dw + c * 9, sums + c * parts * own, 9, parts, own)
            end_task(before)
    return 0


# ----------------------------------------------------------------------------------------------- NCHW, small planes
#
# Some channels of a picture are turned over into a buffer, channels last, worked on there and turned back.

cdef Py_ssize_t turned_channels(Axis *h, Axis *v, Py_ssize_t D, Py_ssize_t itemsize) noexcept:
    """How many channels at a time: whole vectors, the planes read and written in the cache; 0 if that cannot be had."""
    cdef Py_ssize_t lanes = VECTOR_BYTES // itemsize, groups
    cdef Py_ssize_t fit = TURN_BYTES // ((h.n_in * v.n_in + h.n_out * v.n_out) * itemsize)
    if fit < lanes or D < lanes:
        return 0
    fit = max(fit, 2 * lanes)  # with a single vector for each pixel the loops around it would show
    groups = (D + min(fit, 64) - 1) // min(fit, 64)
    return min(((D + groups - 1) // groups + lanes - 1) // lanes, fit // lanes) * lanes


cdef Py_ssize_t turned(real *x, real *w, real *bias, real *y, Py_ssize_t N, Py_ssize_t D, Py_ssize_t m, Axis *h, Axis *v, bint relu,
                       Py_ssize_t G, int threads) except -1:
    """Forward (x is read, y written) and grad_x (dy is read, dx written): D channels with m filters each, G at a time."""
    cdef bint back = h.back
    cdef Py_ssize_t taps = h.F * v.F, groups = (D + G - 1) // G
    cdef Py_ssize_t in_plane = h.n_in * v.n_in, out_plane = h.n_out * v.n_out, width = v.n_out * G
    cdef Py_ssize_t lists = tables_bytes(h, v, G * sizeof(real), 0)
    cdef Py_ssize_t own = lists + aligned(((in_plane + out_plane) * G + width + spare_row(v) * G) * sizeof(real))
    cdef Py_ssize_t bytes = threads * own + (taps + 1) * D * m * sizeof(real) + 64
    if y is NULL:
        return bytes
    cdef cnp.ndarray space = allocate(bytes)
    cdef char *scratch = first_line(space)
    cdef real *by_tap = <real *> (scratch + threads * own)  # [filter of its channel][tap][channel], then biases
    cdef real *biases = by_tap + taps * D * m
    cdef real *read
    cdef real *made
    cdef real *spare
    cdef Py_ssize_t item, n, c, C, row, k
    cdef unsigned int before = 0
    cdef Share shares[SHARES]
    cdef Tables *t
    for item in range(threads):
        make_tables(scratch + item * own, h, v, G * sizeof(real), 0, sizeof(real))
    with nogil:
        for k in range(m):
            transpose(by_tap + k * taps * D, D, w + k * taps, m * taps, D, taps)
            if bias is not NULL:
                transpose(biases + k * D, D, bias + k, m, D, 1)
        make_shares(shares, threads, N * groups)
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            while True:
                item = take(shares, threads, threadid())
                if item < 0:
                    break
                t = <Tables *> (scratch + threadid() * own)
                read = <real *> (scratch + threadid() * own + lists)
                made = read + in_plane * G
                spare = made + out_plane * G
                n, c = item // groups, item % groups * G
                C = min(G, D - c)
                for k in range(m):
                    if back or k == 0:
                        transpose(read, G, x + ((n * D + c) * m + k if back else n * D + c) * in_plane,
                                  (m if back else 1) * in_plane, C, in_plane)
                    for row in range(h.n_out):
                        nhwc_row(False, 1, h, v, t, read, G, by_tap + k * taps * D + c, D,
                                 spare if back and k else made + row * width, G, row, C,
                                 biases + k * D + c if bias is not NULL else NULL, relu, False, False, spare + width)
                        if back and k:
                            add_to(made + row * width, spare, width)
                    if not back or k == m - 1:
                        transpose(y + (n * D + c if back else (n * D + c) * m + k) * out_plane, (1 if back else m) * out_plane,
                                  made, G, out_plane, C)
            end_task(before)
    return 0


cdef Py_ssize_t turned_grad_w(real *dy, real *x, real *dw, Py_ssize_t N, Py_ssize_t D, Py_ssize_t m, Axis *h, Axis *v,
                              Py_ssize_t G, int threads) except -1:
    """G channels, and a fixed share of the images, at a time."""
    cdef Py_ssize_t taps = h.F * v.F, groups = (D + G - 1) // G
    cdef Py_ssize_t parts = max(1, min(PARTS // groups, N)), K = D * m, in_plane = h.n_in * v.n_in, out_plane = h.n_out * v.n_out
    cdef Py_ssize_t lists = tables_bytes(h, v, G * sizeof(real), 0)
    cdef Py_ssize_t own = lists + aligned((in_plane + out_plane + taps * m) * G * sizeof(real))
    cdef Py_ssize_t bytes = threads * own + (0 if parts == 1 else parts * K * taps * sizeof(real)) + 64
    if dw is NULL:
        return bytes
    cdef cnp.ndarray space = allocate(bytes)
    cdef char *scratch = first_line(space)
    cdef real *sums = dw if parts == 1 else <real *> (scratch + threads * own)
    cdef real *read
    cdef real *given
    cdef real *total
    cdef Py_ssize_t item, n, c, C, row, k, part
    cdef unsigned int before = 0
    cdef Share shares[SHARES]
    cdef Tables *t
    for item in range(threads):
        make_tables(scratch + item * own, h, v, G * sizeof(real), 0, sizeof(real))
    with nogil:
        make_shares(shares, threads, groups * parts)
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            while True:
                item = take(shares, threads, threadid())
                if item < 0:
                    break
                t = <Tables *> (scratch + threadid() * own)
                read = <real *> (scratch + threadid() * own + lists)
                given = read + in_plane * G
                total = given + out_plane * G
                part, c = item // groups, item % groups * G
                C = min(G, D - c)
                memset(total, 0, taps * m * G * sizeof(real))
                for n in range(N * part // parts, N * (part + 1) // parts):
                    transpose(read, G, x + (n * D + c) * in_plane, in_plane, C, in_plane)
                    for k in range(m):
                        transpose(given, G, dy + ((n * D + c) * m + k) * out_plane, m * out_plane, C, out_plane)
                        for row in range(h.n_out):
                            nhwc_row(True, 1, h, v, t, read, G, total + k * taps * G, G, given + row * v.n_out * G, G, row, C,
                                     <real *> NULL, False, False, False, <real *> NULL)
                for k in range(m):
                    transpose(sums + part * K * taps + (c * m + k) * taps, m * taps, total + k * taps * G, G, taps, C)
            end_task(before)
        if parts > 1:
            sum_parts(dw, sums, parts, K * taps)
    return 0


# --------------------------------------------------------------------------------------- NCHW, large planes

cdef struct Stage:
    Axis *h
    Axis *v
    Py_ssize_t sources, results  # planes that are read and written for one channel
    Py_ssize_t band              # rows of a phase that are worked on at a time
    Py_ssize_t rows, pitch       # of a staged plane; pitch is the distance of its rows
    Py_ssize_t left, skip        # zeros before a row's first cell; cells of the picture before it that no tap meets
    Py_ssize_t part, flat        # numbers of a staged plane of one phase, and of a result of one phase
    Py_ssize_t dealt             # numbers of all the staged planes of one channel
    Py_ssize_t size              # numbers of one channel's scratch
    Py_ssize_t group             # channels that are worked on at a time


cdef Stage make_stage(Axis *h, Axis *v, Py_ssize_t sources, Py_ssize_t results, Py_ssize_t itemsize) noexcept:
    """A row's right padding is the next row's left padding where that is wide enough."""
    cdef Stage s
    cdef Py_ssize_t lanes = VECTOR_BYTES // itemsize, width = places(v, 0), need, cells
    s.h, s.v, s.sources, s.results = h, v, sources, results
    s.left, s.skip = max(0, -v.first), max(0, v.first)
    need = width + v.last - v.first
    cells = max(0, (v.n_in - s.skip * v.in_step + v.in_step - 1) // v.in_step)
    s.pitch = need if need <= s.left + cells else max(s.left + cells, need - s.left, width)
    cdef Py_ssize_t planes = sources * h.in_step * v.in_step, height = places(h, 0), halo = h.last - h.first
    s.band = min(height, max(STAGE_BYTES // (itemsize * planes * s.pitch) - halo, halo, 1))
    s.band = (height + (height + s.band - 1) // s.band - 1) // ((height + s.band - 1) // s.band)
    s.rows = s.band + halo
    s.flat = (s.band * s.pitch + lanes - 1) // lanes * lanes
    s.part = (max(s.rows * s.pitch, halo * s.pitch + s.flat + need - width) + lanes) // lanes * lanes
    s.dealt = planes * s.part
    s.size = s.dealt + results * h.out_step * v.out_step * s.flat + lanes
    s.group = max(1, STAGE_BYTES // (itemsize * s.size))
    return s


cdef inline void deal(real *dst, Py_ssize_t step, real *src, Py_ssize_t n, Py_ssize_t S) noexcept nogil:
    if real is float:
        dw_deal_f32(dst, step, src, n, S)
    else:
        dw_deal_f64(dst, step, src, n, S)


cdef void stage(Stage *s, real *dst, real *planes, Py_ssize_t q) noexcept nogil:
    """Copy what the band that begins with row q of each phase needs; what lies in the padding is zero."""
    cdef Axis *h = s.h
    cdef Axis *v = s.v
    cdef Py_ssize_t source, phase, r, row, k
    cdef Py_ssize_t cells = min(v.n_in - s.skip * v.in_step, (s.pitch - s.left) * v.in_step)
    cdef real *at
    for source in range(s.sources):
        for phase in range(h.in_step):
            at = dst + (source * h.in_step + phase) * v.in_step * s.part + s.left
            for r in range(s.rows):
                row = (q + h.first + r) * h.in_step + phase
                if 0 <= row < h.n_in:
                    deal(at, s.part, planes + (source * h.n_in + row) * v.n_in + s.skip * v.in_step, cells, v.in_step)
                else:
                    for k in range(v.in_step):
                        memset(at + k * s.part, 0, (s.pitch - s.left) * sizeof(real))
                at += s.pitch


cdef Py_ssize_t tap_offsets(Stage *s, Py_ssize_t row_phase, Py_ssize_t phase, Py_ssize_t *offset, Py_ssize_t *weight) noexcept:
    """Where each tap's cells begin in the staged planes, and which weight is the tap's, counted over the channel's filters."""
    cdef Py_ssize_t source, i, j, down, right, a, b, taps = 0
    for source in range(s.sources):
        for i in range(s.h.F):
            if not meets(s.h, row_phase, i, &down):
                continue
            a = floor_div(down, s.h.in_step)
            for j in range(s.v.F):
                if meets(s.v, phase, j, &right):
                    b = floor_div(right, s.v.in_step)
                    offset[taps] = (((source * s.h.in_step + down - a * s.h.in_step) * s.v.in_step
                                     + right - b * s.v.in_step) * s.part
                                    + (a - s.h.first) * s.pitch + b - s.v.first)
                    weight[taps] = (source * s.h.F + i) * s.v.F + j
                    taps += 1
    return taps


cdef inline void flat(Py_ssize_t taps, void **x, void **w, Py_ssize_t n, real *y, real *bias, bint relu) noexcept nogil:
    if real is float:
        dw_flat_f32(taps, <const float **> x, <const float **> w, n, y, bias, relu)
    else:
        dw_flat_f64(taps, <const double **> x, <const double **> w, n, y, bias, relu)


cdef inline void collect(real *dst, real *src, Py_ssize_t step, Py_ssize_t n, Py_ssize_t S) noexcept nogil:
    if real is float:
        dw_collect_f32(dst, src, step, n, S)
    else:
        dw_collect_f64(dst, src, step, n, S)


cdef void products(Stage *s, Py_ssize_t *begin, Py_ssize_t *offset, Py_ssize_t *weight, void **lists, real *staged, real *w,
                   real *bias, bint relu, Py_ssize_t q) noexcept nogil:
    """All results of one channel in a band that begins with row q, phase by phase, into the scratch behind the staged planes."""
    cdef Py_ssize_t phases = s.h.out_step * s.v.out_step
    cdef Py_ssize_t result, phase, k, taps, rows, window = s.h.F * s.v.F, lanes = VECTOR_BYTES // <Py_ssize_t> sizeof(real)
    cdef real *y = staged + s.dealt
    for result in range(s.results):
        for phase in range(phases):
            rows = min(s.band, places(s.h, phase // s.v.out_step) - q)
            taps = begin[phase + 1] - begin[phase]
            for k in range(taps):
                lists[k] = staged + offset[begin[phase] + k]
                lists[taps + k] = w + result * window + weight[begin[phase] + k]
            if rows > 0:
                flat(taps, lists, lists + taps, (rows * s.pitch + lanes - 1) // lanes, y,
                     bias + result if bias is not NULL else NULL, relu)
            y += s.flat


cdef void unstage(Stage *s, real *y, real *out, Py_ssize_t q) noexcept nogil:
    """Copy a band's results to where they belong."""
    cdef Py_ssize_t result, phase, r
    for result in range(s.results):
        for phase in range(s.h.out_step):
            for r in range(min(s.band, places(s.h, phase) - q)):
                collect(out + (result * s.h.n_out + (q + r) * s.h.out_step + phase) * s.v.n_out, y + r * s.pitch, s.flat,
                        s.v.n_out, s.v.out_step)
            y += s.v.out_step * s.flat


cdef Py_ssize_t nchw(real *x, real *w, real *bias, real *y, Py_ssize_t N, Py_ssize_t D, Py_ssize_t m, Axis *h, Axis *v, bint relu,
                     int threads) except -1:
    """Forward (x is read, y written) and grad_x (dy is read, dx written): D channels with m filters each."""
    cdef Stage s = make_stage(h, v, m if h.back else 1, 1 if h.back else m, sizeof(real))
    cdef Py_ssize_t phases = h.out_step * v.out_step, taps = h.F * v.F * s.sources
    cdef Py_ssize_t bands = (places(h, 0) + s.band - 1) // s.band, groups = (N * D + s.group - 1) // s.group
    cdef Py_ssize_t own = aligned(2 * taps * sizeof(void *)) + aligned((s.group * s.size + 16) * sizeof(real))
    cdef Py_ssize_t bytes = threads * own + (phases + 1 + 2 * taps) * sizeof(Py_ssize_t) + 64
    if y is NULL:
        return bytes
    cdef cnp.ndarray space = allocate(bytes)
    cdef char *scratch = first_line(space)
    cdef Py_ssize_t *begin = <Py_ssize_t *> (scratch + threads * own)
    cdef Py_ssize_t *offset = begin + phases + 1
    cdef Py_ssize_t *weight = offset + taps
    cdef Py_ssize_t phase, item, plane, end, p, q
    cdef unsigned int before = 0
    cdef Share shares[SHARES]
    cdef real *staged
    cdef void **lists
    begin[0] = 0
    for phase in range(phases):
        begin[phase + 1] = begin[phase] + tap_offsets(&s, phase // v.out_step, phase % v.out_step, offset + begin[phase],
                                                      weight + begin[phase])
    with nogil:
        make_shares(shares, threads, groups * bands)
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            memset(scratch + threadid() * own, 0, own)
            while True:
                item = take(shares, threads, threadid())
                if item < 0:
                    break
                lists = <void **> (scratch + threadid() * own)
                staged = <real *> (<char *> lists + aligned(2 * taps * sizeof(void *)))
                q = item % bands * s.band
                plane = item // bands * s.group
                end = min(plane + s.group, N * D)
                for p in range(plane, end):
                    stage(&s, staged + (p - plane) * s.size, x + p * s.sources * h.n_in * v.n_in, q)
                for p in range(plane, end):
                    products(&s, begin, offset, weight, lists, staged + (p - plane) * s.size, w + p % D * m * h.F * v.F,
                             bias + p % D * m if bias is not NULL else NULL, relu, q)
                for p in range(plane, end):
                    unstage(&s, staged + (p - plane) * s.size + s.dealt, y + p * s.results * h.n_out * v.n_out, q)
            end_task(before)
    return 0


cdef inline void dot(Py_ssize_t taps, void **x, real *dy, Py_ssize_t n, real *acc) noexcept nogil:
    if real is float:
        dw_dot_f32(taps, <const float **> x, dy, n, acc)
    else:
        dw_dot_f64(taps, <const double **> x, dy, n, acc)


cdef void stage_dy(Stage *s, real *dst, real *dy, Py_ssize_t q) noexcept nogil:
    """Rows of dy at the pitch of the staged picture; the gaps between them stay zero."""
    cdef Py_ssize_t r
    for r in range(s.band):
        if q + r < s.h.n_out:
            deal(dst + r * s.pitch, 0, dy + (q + r) * s.v.n_out, s.v.n_out, 1)
        else:
            memset(dst + r * s.pitch, 0, s.v.n_out * sizeof(real))


cdef inline bint finite(real *numbers, Py_ssize_t n) noexcept nogil:
    """Whether all are."""
    cdef Py_ssize_t i
    for i in range(n):
        if numbers[i] - numbers[i] != 0:
            return False
    return True


cdef void channel_grads(Stage *s, Py_ssize_t *offset, void **lists, real *staged, real *acc, real *dy,
                        Py_ssize_t channels, Py_ssize_t q, bint by_rows) noexcept nogil:
    """Add a band's products to acc[channel][filter][tap][lane].

    The cells between the rows are zeros in dy, and whatever the picture has there; `by_rows` leaves them out, for pictures
    with infinity or NaN, which zero does not silence.
    """
    cdef Py_ssize_t taps = s.h.F * s.v.F, lanes = VECTOR_BYTES // <Py_ssize_t> sizeof(real), p, f, t, r
    cdef real *g
    for p in range(channels):
        for f in range(s.results):
            g = staged + p * s.size + s.dealt + f * s.flat
            stage_dy(s, g, dy + (p * s.results + f) * s.h.n_out * s.v.n_out, q)
    for p in range(channels):
        for f in range(s.results):
            g = staged + p * s.size + s.dealt + f * s.flat
            for r in range(s.band if by_rows else 1):
                for t in range(taps):
                    lists[t] = staged + p * s.size + offset[t] + r * s.pitch
                dot(taps, lists, g + r * s.pitch, s.v.n_out if by_rows else s.flat, acc + (p * s.results + f) * taps * lanes)


cdef Py_ssize_t nchw_grad_w(real *dy, real *x, real *dw, Py_ssize_t N, Py_ssize_t D, Py_ssize_t m, Axis *h, Axis *v,
                            int threads) except -1:
    """A group of channels, and a fixed share of the images and bands, at a time."""
    cdef Stage s = make_stage(h, v, 1, m, sizeof(real))
    cdef Py_ssize_t taps = h.F * v.F, lanes = VECTOR_BYTES // <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t bands = (h.n_out + s.band - 1) // s.band, groups = (D + s.group - 1) // s.group, units = N * bands
    cdef Py_ssize_t parts = max(1, min(PARTS // groups, units))
    cdef Py_ssize_t list_size = aligned(taps * sizeof(void *)), offsets = aligned(2 * taps * sizeof(Py_ssize_t))
    cdef Py_ssize_t sums_size = s.group * m * taps * lanes
    cdef Py_ssize_t own = list_size + aligned((s.group * s.size + sums_size + 16) * sizeof(real))
    cdef Py_ssize_t bytes = threads * own + offsets + (0 if parts == 1 else parts * D * m * taps * sizeof(real)) + 64
    if dw is NULL:
        return bytes
    cdef cnp.ndarray space = allocate(bytes)
    cdef char *scratch = first_line(space)
    cdef Py_ssize_t *offset = <Py_ssize_t *> (scratch + threads * own)
    cdef real *sums = dw if parts == 1 else <real *> (scratch + threads * own + offsets)
    cdef Py_ssize_t item, part, c, channels, unit, p, n, q
    cdef bint by_rows
    cdef unsigned int before = 0
    cdef Share shares[SHARES]
    cdef real *staged
    cdef real *acc
    cdef real *result
    tap_offsets(&s, 0, 0, offset, offset + taps)
    with nogil:
        make_shares(shares, threads, groups * parts)
        with parallel(num_threads=threads, use_threads_if=threads > 1):
            before = begin_task()
            memset(scratch + threadid() * own, 0, own)
            while True:
                item = take(shares, threads, threadid())
                if item < 0:
                    break
                staged = <real *> (scratch + threadid() * own + list_size)
                acc = staged + s.group * s.size
                part = item // groups
                c = item % groups * s.group
                channels = min(s.group, D - c)
                result = sums + (part * D + c) * m * taps
                by_rows = False
                while True:
                    memset(acc, 0, sums_size * sizeof(real))
                    for unit in range(units * part // parts, units * (part + 1) // parts):
                        n = unit // bands
                        q = unit % bands * s.band
                        for p in range(channels):
                            stage(&s, staged + p * s.size, x + (n * D + c + p) * h.n_in * v.n_in, q)
                        channel_grads(&s, offset, <void **> (scratch + threadid() * own), staged, acc,
                                      dy + (n * D + c) * m * h.n_out * v.n_out, channels, q, by_rows)
                    add_lanes(result, acc, channels * m * taps, 1, 0)
                    if by_rows or finite(result, channels * m * taps):
                        break
                    by_rows = True
            end_task(before)
        if parts > 1:
            sum_parts(dw, sums, parts, D * m * taps)
    return 0


# -------------------------------------------------------------------------------------------------------- what ops calls
#
# Every way above tells the bytes that it allocates, and does nothing else, if what it writes is null.

cdef Py_ssize_t run(real *x, real *w, real *bias, real *y, Py_ssize_t N, Py_ssize_t D, Py_ssize_t m, int q, bint copied, Axis *h,
                    Axis *v, bint relu, bint nchw_order, int threads) except -1:
    cdef Py_ssize_t channels = turned_channels(h, v, D, sizeof(real)) if nchw_order else 0
    if real is float and nchw_order and rows_are_vectors(D, m, h, v):
        return short_rows(x, w, bias, y, N, D, h, v, relu, threads)
    if nchw_order and as_they_lie(h, v, m, False, channels, sizeof(real)):
        return planes(x, w, bias, y, N, D, h, v, relu, threads)
    if channels:
        return turned(x, w, bias, y, N, D, m, h, v, relu, channels, threads)
    if nchw_order:
        return nchw(x, w, bias, y, N, D, m, h, v, relu, threads)
    return nhwc(x, w, bias, y, N, D, m, q, copied, h, v, relu, threads)


cdef Py_ssize_t run_grad_w(real *dy, real *x, real *dw, Py_ssize_t N, Py_ssize_t D, Py_ssize_t m, int q, bint copied, Axis *h,
                           Axis *v, bint nchw_order, int threads) except -1:
    cdef Py_ssize_t channels = turned_channels(h, v, D, sizeof(real)) if nchw_order else 0
    if real is float and nchw_order and h.F == 3 and N > 1 and rows_are_vectors(D, m, h, v):  # of one, sums over lanes would show
        return short_rows_grad_w(dy, x, dw, N, D, h, v, threads)
    if nchw_order and as_they_lie(h, v, m, True, channels, sizeof(real)):
        return planes_grad_w(dy, x, dw, N, D, h, v, threads)
    if channels:
        return turned_grad_w(dy, x, dw, N, D, m, h, v, channels, threads)
    if nchw_order:
        return nchw_grad_w(dy, x, dw, N, D, m, h, v, threads)
    return nhwc_grad_w(dy, x, dw, N, D, m, q, copied, h, v, threads)


cdef inline real *pointer(array, real *like) noexcept:
    return NULL if array is None else data(<cnp.ndarray> array, like)


cdef inline int team(Py_ssize_t results, Py_ssize_t taps, int threads) noexcept:
    return 1 if results * taps < 2 * ALONE else threads


def forward(cnp.ndarray x, cnp.ndarray w, b, cnp.ndarray y, Py_ssize_t S_h, Py_ssize_t S_w, Py_ssize_t top, Py_ssize_t left,
            Py_ssize_t dil_h, Py_ssize_t dil_w, Py_ssize_t multiplier, int q, bint copied, bint relu, bint nchw, int threads):
    """y = x convolved with w, plus b unless None, negative numbers cut off with `relu`; q: 1, or a group's channels, depth last;
    copied: so are depth-last pixels, apart from one another."""
    cdef int H = 2 if nchw else 1, F = 2 if nchw else 0
    cdef Axis h = make_axis(x.shape[H], y.shape[H], w.shape[F], S_h, top, dil_h, False)
    cdef Axis v = make_axis(x.shape[H + 1], y.shape[H + 1], w.shape[F + 1], S_w, left, dil_w, False)
    threads = team(cnp.PyArray_SIZE(y), h.F * v.F * q, threads)
    cdef Py_ssize_t D = x.shape[1 if nchw else 3], N = x.shape[0]
    cdef float *f = NULL
    cdef double *d = NULL
    if cnp.PyArray_SIZE(y) == 0:
        return
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        run(data(x, f), data(w, f), pointer(b, f), data(y, f), N, D, multiplier, q, copied, &h, &v, relu, nchw, threads)
    else:
        run(data(x, d), data(w, d), pointer(b, d), data(y, d), N, D, multiplier, q, copied, &h, &v, relu, nchw, threads)


def grad_x(cnp.ndarray dy, cnp.ndarray w, cnp.ndarray dx, Py_ssize_t S_h, Py_ssize_t S_w, Py_ssize_t top, Py_ssize_t left,
           Py_ssize_t dil_h, Py_ssize_t dil_w, Py_ssize_t multiplier, int q, bint copied, bint nchw, int threads):
    """dx = the gradient of sum(dy * y) by x."""
    cdef int H = 2 if nchw else 1, F = 2 if nchw else 0
    cdef Axis h = make_axis(dy.shape[H], dx.shape[H], w.shape[F], S_h, top, dil_h, True)
    cdef Axis v = make_axis(dy.shape[H + 1], dx.shape[H + 1], w.shape[F + 1], S_w, left, dil_w, True)
    threads = team(cnp.PyArray_SIZE(dy), h.F * v.F * q, threads)
    cdef Py_ssize_t D = dx.shape[1 if nchw else 3], N = dx.shape[0]
    cdef float *f = NULL
    cdef double *d = NULL
    if cnp.PyArray_SIZE(dx) == 0:
        return
    if cnp.PyArray_TYPE(dy) == cnp.NPY_FLOAT32:
        run(data(dy, f), data(w, f), f, data(dx, f), N, D, multiplier, q, copied, &h, &v, False, nchw, threads)
    else:
        run(data(dy, d), data(w, d), d, data(dx, d), N, D, multiplier, q, copied, &h, &v, False, nchw, threads)


def grad_w(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray dw, Py_ssize_t S_h, Py_ssize_t S_w, Py_ssize_t top, Py_ssize_t left,
           Py_ssize_t dil_h, Py_ssize_t dil_w, Py_ssize_t multiplier, int q, bint copied, bint nchw, int threads):
    """dw = the gradient of sum(dy * y) by w."""
    cdef int H = 2 if nchw else 1, F = 2 if nchw else 0
    cdef Axis h = make_axis(x.shape[H], dy.shape[H], dw.shape[F], S_h, top, dil_h, False)
    cdef Axis v = make_axis(x.shape[H + 1], dy.shape[H + 1], dw.shape[F + 1], S_w, left, dil_w, False)
    threads = team(cnp.PyArray_SIZE(dy), h.F * v.F * q, threads)
    cdef Py_ssize_t D = x.shape[1 if nchw else 3], N = x.shape[0]
    cdef float *f = NULL
    cdef double *d = NULL
    if cnp.PyArray_SIZE(dy) == 0:
        dw.fill(0)
        return
    if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32:
        run_grad_w(data(dy, f), data(x, f), data(dw, f), N, D, multiplier, q, copied, &h, &v, nchw, threads)
    else:
        run_grad_w(data(dy, d), data(x, d), data(dw, d), N, D, multiplier, q, copied, &h, &v, nchw, threads)


def workspace(str direction, tuple sizes, tuple options, bint nchw, Py_ssize_t itemsize, int threads):
    """Bytes that a call allocates; sizes: N, D, H1, W1, H2, W2 and the window's, options as `forward` takes them."""
    cdef bint back = direction == "grad_x"
    cdef Py_ssize_t number[14], i
    for i in range(14):
        number[i] = sizes[i] if i < 8 else options[i - 8]
    cdef Py_ssize_t N = number[0], D = number[1], m = options[6], q = options[7], copied = options[8]
    cdef Axis axis[2]
    for i in range(2):
        axis[i] = make_axis(number[4 + i if back else 2 + i], number[2 + i if back else 4 + i], number[6 + i], number[8 + i],
                            number[10 + i], number[12 + i], back)
    cdef float *f = NULL
    cdef double *d = NULL
    threads = team(N * D * m * number[4] * number[5], axis[0].F * axis[1].F * q, threads)
    if N * D * axis[0].n_out * axis[1].n_out == 0:
        return 0
    if direction == "grad_w":
        return (run_grad_w(f, f, f, N, D, m, q, copied, axis, axis + 1, nchw, threads) if itemsize == 4
                else run_grad_w(d, d, d, N, D, m, q, copied, axis, axis + 1, nchw, threads))
    return (run(f, f, f, f, N, D, m, q, copied, axis, axis + 1, False, nchw, threads) if itemsize == 4
            else run(d, d, d, d, N, D, m, q, copied, axis, axis + 1, False, nchw, threads))
