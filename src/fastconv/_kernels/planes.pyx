"""Convolution by the register tile, depth first: the gathers of conv.pyx for pictures whose planes are their channels.

Rows of the tile are filters, read as they lie, and B is pixels: a panel of them, gathered in cache for all taps and channels, or
long rows of a padded copy there, one distance for each product (`Planes` in gather.pxd). Arguments are trusted; arrays are
C-contiguous and of one dtype. Every number is summed in an order that depends on neither threads nor batch.
"""

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange, threadid
from libc.string cimport memset

from fastconv._kernels.gather cimport (
    COPYING, L2_SHARE, Planes, SMALL_WORK, Shape, apart, beyond_caches, copy_planes, even, in_one_sweep, list_products,
    make_shape, one_to_one, place_planes, size_planes,
)
from fastconv._kernels.tiles cimport (
    SHARES, TILE_MR, VECTOR_BYTES, Epilogue, Piece, Share, aligned, begin_task, ceil_div, copy, data, end_task,
    find_tiles, lanes, least, make_shares, mix_tile, most, pack_pieces, point_rows, real, spread, take, tile_and_keep, tile_by_rows,
    tile_by_table, tile_height, transpose,
)

from fastconv._kernels import memory

from .tile import addresses

cnp.import_array()
find_tiles(addresses)

cdef enum:
    TOGETHER = 8          # panels of pixels that are packed at a time: a stretch of each plane that is worth fetching
    SWEPT_TOGETHER = 32   # of few channels, which are not packed
    PACKING = 20          # filters whose products cost as much as to pack pixels for one more tap
    MOST_OF_STRIP = 2 * L2_SHARE  # bytes of the rows under one row of the grid that are copied, not packed


STRIP, COPYING_AGAIN = MOST_OF_STRIP, COPYING  # for the arithmetic that chooses a method


@cython.final
cdef class Gather:
    """One gather: sizes, grid, taps, window and transposed as for that of conv.pyx; weights are (K, C, F, F)."""
    cdef Shape s
    cdef cnp.ndarray taps
    cdef bint transposed

    def __init__(self, tuple sizes, tuple grid, cnp.ndarray taps, Py_ssize_t window, bint transposed):
        self.s = make_shape(sizes, grid, taps, window)
        self.taps, self.transposed = taps, transposed


@cython.final
cdef class Gathers:
    """Those of one convolution, which write pixels of their own. They use one workspace and one copy of the weights."""
    cdef list each

    def __init__(self, list each):
        self.each = each

    def workspace(self, Py_ssize_t itemsize, int threads):
        """Bytes that `run` allocates: packed weights and each thread's scratch."""
        return all_bytes[float](self.each, threads, NULL) if itemsize == 4 else all_bytes[double](self.each, threads, NULL)

    def run(self, cnp.ndarray src, cnp.ndarray w, cnp.ndarray bias, cnp.ndarray dst, bint relu, int threads):
        """Write the grids' pixels of dst; bias may be None."""
        if cnp.PyArray_TYPE(dst) == cnp.NPY_FLOAT32:
            run_all[float](self.each, src, w, bias, dst, relu, threads, NULL)
        else:
            run_all[double](self.each, src, w, bias, dst, relu, threads, NULL)


cdef Py_ssize_t all_bytes(list gathers, int threads, real *like):
    cdef Py_ssize_t scratch = 0
    cdef Gather gather, first = gathers[0]
    for gather in gathers:
        scratch = most(scratch, scratch_bytes(gather, threads, like))
    return packed_bytes(first, like) + threads * scratch


cdef run_all(list gathers, cnp.ndarray src, cnp.ndarray w, cnp.ndarray bias, cnp.ndarray dst, bint relu, int threads, real *like):
    cdef Gather first = gathers[0]
    cdef Py_ssize_t bytes = all_bytes(gathers, threads, like), packed = packed_bytes(first, like)
    cdef cnp.ndarray workspace = memory.empty((bytes,), "u1")
    cdef char *space = <char *> cnp.PyArray_DATA(workspace)
    cdef real *x = data(src, like)
    cdef real *y = data(dst, like)
    cdef real *weights = data(w, like)
    cdef real *b = NULL if bias is None else data(bias, like)
    cdef Py_ssize_t scratch = (bytes - packed) // threads
    if first.s.T == 0:  # it fills what others write again
        run_side_by_side(gathers[:1], x, weights, b, y, relu, threads, <real *> space, space + packed, scratch)
        gathers = gathers[1:]
    if gathers:
        run_side_by_side(gathers, x, weights, b, y, relu, threads, <real *> space, space + packed, scratch)


cdef Py_ssize_t packed_bytes(Gather self, real *like) noexcept:
    cdef Shape *s = &self.s
    return aligned(s.groups * s.K * s.C * (s.window if self.transposed else s.T) * sizeof(real)) if repacked(self) else 0


cdef Py_ssize_t scratch_bytes(Gather self, int threads, real *like) noexcept:
    return plan_planes(&self.s, threads, like).scratch or plan_panels(&self.s, threads, like).scratch


cdef inline bint repacked(Gather self) noexcept nogil:
    """Whether a gather reads its weights from a copy in another order."""
    return self.transposed or self.s.T < self.s.window


# ---------------------------------------------------------------- how gathers are cut
cdef struct Panels:
    # The tasks of a gather: sets of panels of pixels, counted over the batch, and cuts of the filters.
    Py_ssize_t panels                 # of NR pixels
    Py_ssize_t together, sets         # panels packed at a time; sets of so many
    Py_ssize_t channels               # packed at a time: the sums of the ones before wait in dst
    Py_ssize_t cuts, pieces, scratch


cdef Panels plan_panels(Shape *s, int threads, real *like) noexcept nogil:
    cdef Panels z
    cdef Py_ssize_t NR = 2 * lanes(like), tap_bytes = most(1, s.T) * NR * <Py_ssize_t> sizeof(real), chunks
    z.panels = ceil_div(s.N * s.rows * s.cols, NR)
    # Many panels together: long stretches of each plane, and every row of weights serves them all.
    z.together = most(1, least(z.panels, SWEPT_TOGETHER if in_one_sweep(s) else TOGETHER))
    while z.together > 2 and s.groups * ceil_div(z.panels, z.together) < 4 * threads:
        z.together -= 1
    z.sets = least(most(1, z.panels), even(ceil_div(z.panels, z.together), threads))
    z.together = ceil_div(z.panels, z.sets)
    # They give the order of the sums, so they depend on neither threads nor batch.
    chunks = ceil_div(s.C, most(1, 2 * L2_SHARE // (TOGETHER * tap_bytes)))
    z.channels = most(1, ceil_div(s.C, most(1, chunks)))
    z.cuts = most(1, least(ceil_div(s.K, 4 * TILE_MR), 4 * threads // most(1, s.groups * z.sets)))
    z.cuts -= z.cuts % threads if z.cuts > threads else 0
    # Every row of the grid that a set touches gives a piece, zeros before and zeros after it; a panel's edge cuts one in two.
    z.pieces = s.T * 3 * (z.together * NR // most(1, s.cols) + 2 + z.together)
    z.scratch = (aligned(z.pieces * sizeof(Piece)) + aligned(most(1, s.T) * TILE_MR * sizeof(void *))
                 + aligned(z.together * (z.channels * s.T + TILE_MR) * NR * sizeof(real)))
    return z


cdef struct Pass:
    # One gather as it is run.
    Shape s
    Panels z
    Planes y
    Py_ssize_t tasks


cdef void plan_pass(Gather self, Pass *p, real *dst, int threads) noexcept:
    p.s, p.z, p.y = self.s, plan_panels(&self.s, threads, dst), plan_planes(&self.s, threads, dst)
    cdef Shape *s = &p.s  # a copy: several threads may run one gather at once
    cdef Py_ssize_t NR = 2 * lanes(dst), plane = s.Hd * s.Wd * <Py_ssize_t> sizeof(real)
    p.tasks = s.N * s.groups * p.y.strips if p.y.rows else s.groups * p.z.sets * p.z.cuts
    s.by_taps = self.transposed
    s.apart = apart(s)
    s.as_it_lies = one_to_one(s) and s.rows * s.cols >= 4 * NR
    s.stream = (not s.apart and beyond_caches(s, dst) and <size_t> dst % VECTOR_BYTES == 0 and plane % VECTOR_BYTES == 0
                and ((p.y.one_row or s.cols % lanes(dst) == 0) if p.y.rows else p.z.channels >= s.C))
    s.fetch = not s.stream and not s.apart and s.N * s.groups * s.K * plane > L2_SHARE


cdef run_side_by_side(list gathers, real *src, real *w, real *bias, real *dst, bint relu, int threads, real *packed, char *space,
                      Py_ssize_t scratch):
    """Gathers that write pixels of their own, side by side: what one has read and written of a stretch
    of the pictures is still in cache for the next."""
    cdef cnp.ndarray passes = memory.empty((len(gathers) * sizeof(Pass),), "u1")
    cdef Pass *p = <Pass *> cnp.PyArray_DATA(passes)
    cdef Gather gather, self = gathers[0]
    cdef Py_ssize_t NR = 2 * lanes(src), packs = self.s.groups * ceil_div(heights(self), NR) if self.s.T and repacked(self) else 0
    cdef Py_ssize_t depth = self.s.C * (self.s.window if self.transposed else self.s.T), n = len(gathers), tasks = 0, i
    cdef Share shares[SHARES]
    cdef double products = 0
    cdef bint parallel, by_turns
    cdef real *rows = packed if repacked(self) else w
    for i in range(n):
        gather = gathers[i]
        plan_pass(gather, &p[i], dst, threads)
        tasks = most(tasks, p[i].tasks)
        products += <double> p[i].s.N * p[i].s.rows * p[i].s.cols * p[i].s.C * p[i].s.T * p[i].s.K * p[i].s.groups
    parallel = threads > 1 and products > SMALL_WORK
    by_turns = not p.y.rows and p.z.cuts > 1  # where filters are cut, it is better that all threads read the same pixels at a time
    with nogil:
        if parallel:
            make_shares(shares, threads, packs)
            for _ in prange(packs, num_threads=threads, schedule="dynamic"):
                pack_rows(self, w, rows, take(shares, threads, threadid()), NR)
            make_shares(shares, threads, tasks)
            for i in prange(tasks, num_threads=threads, schedule="dynamic"):
                passes_task(p, n, src, rows, depth, bias, dst, relu, i if by_turns else take(shares, threads, threadid()), tasks,
                            space + threadid() * scratch)
        else:
            for i in range(packs):
                pack_rows(self, w, rows, i, NR)
            for i in range(tasks):
                passes_task(p, n, src, rows, depth, bias, dst, relu, i, tasks, space)


cdef void passes_task(Pass *p, Py_ssize_t n, real *src, real *rows, Py_ssize_t depth, real *bias, real *dst, bint relu,
                      Py_ssize_t at, Py_ssize_t tasks, char *scratch) noexcept nogil:
    """Task `at` of so many of n gathers: the same share of each one's."""
    cdef Py_ssize_t j, i
    for j in range(n):
        for i in range(p[j].tasks * at // tasks, p[j].tasks * (at + 1) // tasks):
            if p[j].y.rows:
                planes_task(&p[j].s, &p[j].y, src, rows, depth, bias, dst, relu, i, scratch)
            else:
                set_task(&p[j].s, &p[j].z, src, rows, depth, bias, dst, relu, i, scratch)


cdef inline Py_ssize_t result_width(Shape *s, real *like) noexcept nogil:
    """Numbers of a row of results that wait to be scattered."""
    return ceil_div(s.cols, 2 * lanes(like)) * 2 * lanes(like)


cdef Planes plan_planes(Shape *s, int threads, real *like) noexcept nogil:
    cdef Planes z
    cdef Py_ssize_t VL = lanes(like), share = L2_SHARE // <Py_ssize_t> sizeof(real), row, rows
    memset(&z, 0, sizeof(Planes))
    if s.T == 0 or s.cols < VL or s.C == 0:
        return z
    place_planes(s, &z, like)
    row = s.C * z.phases * z.width
    # To pack a source pixel for one more tap would cost as much as PACKING filters.
    if (z.lost >= PACKING * s.cols * (s.T - s.stride_h * s.stride_w)
            or (z.down + 1) * row * <Py_ssize_t> sizeof(real) > MOST_OF_STRIP):
        return z
    rows = most(1, least(s.rows, (share // row - z.down) // z.step))
    while rows > 1 and s.N * s.groups * ceil_div(s.rows, rows) < 4 * threads:
        rows = ceil_div(rows, 2)
    z.strips = ceil_div(s.rows, rows)
    rows = ceil_div(s.rows, z.strips)
    if z.one_row:  # strips end with a tile
        z.pixels = ceil_div(rows * s.cols, 2 * VL) * 2 * VL
        z.strips = ceil_div(s.rows * s.cols, z.pixels)
        rows = (z.pixels - 1) // s.cols + 2
    size_planes(&z, rows, like)
    z.scratch = (aligned(s.C * s.T * sizeof(Py_ssize_t)) + aligned(ceil_div(s.K, TILE_MR) * s.T * TILE_MR * sizeof(void *))
                 + aligned((s.C * z.size + 2 * VL + TILE_MR * result_width(s, like)) * sizeof(real)))
    return z


cdef void planes_task(Shape *s, Planes *z, real *src, real *weights, Py_ssize_t depth, real *bias, real *dst, bint relu,
                      Py_ssize_t at, char *scratch) noexcept nogil:
    """Task `at`: a strip of a picture, then a group, then a picture."""
    cdef Py_ssize_t NR = 2 * lanes(src), strip = at % z.strips, g = at // z.strips % s.groups, n = at // z.strips // s.groups
    cdef Py_ssize_t lo = strip * z.rows, hi = least(s.rows, lo + z.rows), blocks = ceil_div(s.K, TILE_MR), begin = 0, cols = s.cols
    cdef Py_ssize_t runs = s.T if s.by_taps else 1, i, j, m, b, t, first, n_rows, plane = s.Hd * s.Wd
    cdef Py_ssize_t *table = <Py_ssize_t *> scratch
    cdef real **a = <real **> (scratch + aligned(s.C * s.T * sizeof(Py_ssize_t)))
    cdef real *rows = <real *> (<char *> a + aligned(blocks * s.T * TILE_MR * sizeof(void *)))
    cdef real *result = rows + s.C * z.size + NR
    cdef real *target[TILE_MR]
    cdef Epilogue e = Epilogue(NULL, 1, 0, relu, s.stream, s.fetch, NULL, 0, 0)
    cdef unsigned int before = begin_task()
    src += (n * s.groups + g) * s.C * s.Hs * s.Ws
    dst += (n * s.groups + g) * s.K * plane
    weights += g * s.K * depth
    if z.one_row:
        begin, cols = strip * z.pixels, least(z.pixels, s.rows * s.cols - strip * z.pixels)
        lo, hi, begin = begin // s.cols, ceil_div(begin + cols, s.cols), begin % s.cols
    copy_planes(s, z, src, lo, hi, rows)
    list_products(s, z, table)
    for b in range(blocks):
        first = s.K * b // blocks
        n_rows = s.K * (b + 1) // blocks - first
        for t in range(runs):
            if s.by_taps:
                point_rows(a + (b * runs + t) * TILE_MR, weights + (first * s.window + s.tap[t]) * s.C, s.window * s.C, n_rows)
            else:
                point_rows(a + b * TILE_MR, weights + first * s.C * s.T, s.C * s.T, n_rows)
    for b in range(blocks):  # a filter's results are long stretches so, which caches and memory like
        first = s.K * b // blocks
        n_rows = s.K * (b + 1) // blocks - first
        if bias != NULL:
            e.bias = bias + g * s.K + first
        for i in range(1 if z.one_row else hi - lo):
            j = 0
            while j < cols:
                if s.apart:
                    point_rows(target, result + j, result_width(s, src), n_rows)
                else:
                    point_rows(target, dst + first * plane + (lo + i) * s.Wd + begin + j, plane, n_rows)
                tile_by_table(n_rows, runs, s.C * s.T // runs, a + b * runs * TILE_MR, rows + i * z.width + begin + j, table,
                              target, least(NR, cols - j), &e)
                j += NR
            for m in range(n_rows if s.apart else 0):
                spread(dst + (first + m) * plane + (s.origin_h + (lo + i) * s.step_h) * s.Wd + s.origin_w,
                       result + m * result_width(s, src), s.cols, s.step_w)
    end_task(before)


cdef void set_task(Shape *s, Panels *z, real *src, real *rows, Py_ssize_t depth, real *bias, real *dst, bint relu, Py_ssize_t i,
                   char *scratch) noexcept nogil:
    """Task i: a cut of the filters, then a group, then a set of panels of pixels."""
    cdef Py_ssize_t cut = i % z.cuts, g = i // z.cuts % s.groups, at = i // z.cuts // s.groups
    filter_task(s, src + g * s.C * s.Hs * s.Ws, rows + g * s.K * depth, bias + g * s.K if bias != NULL else NULL,
                dst + g * s.K * s.Hd * s.Wd, relu, z.panels * at // z.sets, z.panels * (at + 1) // z.sets, s.K * cut // z.cuts,
                s.K * (cut + 1) // z.cuts, z, scratch)


cdef inline Py_ssize_t heights(Gather self) noexcept nogil:
    """Rows of a group's weights, as filter_task reads them."""
    return self.s.K * (self.s.window if self.transposed else 1)


cdef void pack_rows(Gather self, real *w, real *rows, Py_ssize_t task, Py_ssize_t n) noexcept nogil:
    """The task's n rows of a group's weights as filter_task reads them, or what is left of them."""
    cdef Shape *s = &self.s
    cdef Py_ssize_t tasks = ceil_div(heights(self), n), g = task // tasks, i = task % tasks * n, end = least(heights(self), i + n)
    cdef Py_ssize_t k, c, t
    rows += g * heights(self) * s.C * (1 if self.transposed else s.T)
    if self.transposed:  # w is (groups*C, K, F*F) with this gather's C and K; a row is a filter's tap
        transpose(rows + i * s.C, s.C, w + g * s.C * s.K * s.window + i, s.K * s.window, s.C, end - i)
        return
    for k in range(i, end):
        for c in range(s.C):
            for t in range(s.T):
                rows[(k * s.C + c) * s.T + t] = w[((g * s.K + k) * s.C + c) * s.window + s.tap[t]]


cdef void filter_task(Shape *s, real *src, real *rows, real *bias, real *dst, bint relu, Py_ssize_t panel, Py_ssize_t panel_end,
                      Py_ssize_t k, Py_ssize_t k_end, Panels *z, char *scratch) noexcept nogil:
    """Some panels of the grid's pixels, all channels, filters k to k_end of one group."""
    cdef Py_ssize_t NR = 2 * lanes(src), pixels = s.N * s.rows * s.cols, i, p, c = 0, some
    cdef Py_ssize_t blocks = ceil_div(k_end - k, tile_height(s.C * (s.window if s.by_taps else s.T) * sizeof(real)))
    cdef Py_ssize_t runs = s.T if s.by_taps else 1, t, m, n_rows, first, width = z.together * NR
    cdef Py_ssize_t some_pixels = least(pixels, panel_end * NR) - panel * NR
    cdef Piece *pieces = <Piece *> scratch
    cdef real **a = <real **> (scratch + aligned(z.pieces * sizeof(Piece)))
    cdef real *packed = <real *> (<char *> a + aligned(most(1, s.T) * TILE_MR * sizeof(void *)))
    cdef real *result = packed + z.together * z.channels * s.T * NR
    cdef Epilogue e = Epilogue(NULL, 1, 0, 0, s.stream, s.fetch, NULL, 0, 0)
    cdef unsigned int before = begin_task()
    if in_one_sweep(s):
        sweep(s, src, rows, bias, dst, relu, panel * NR, some_pixels, k, k_end)
        end_task(before)
        return
    while True:
        some = least(z.channels, s.C - c)
        if s.as_it_lies:  # the first block of filters packs the panels, but those that cross a picture's end
            for p in range(panel, panel_end):
                if not within(s, p * NR, NR):
                    i = find_pieces(s, p * NR, least(NR, pixels - p * NR), NR, 0, NR, pieces)
                    pack_pieces(packed + (p - panel) * some * NR, NR, src + c * s.Hs * s.Ws, s.Hs * s.Ws, some, pieces, i, 1)
        else:
            i = find_pieces(s, panel * NR, some_pixels, NR, some * s.T * NR,
                            some * NR if s.by_taps else NR, pieces)
            pack_pieces(packed, NR if s.by_taps else s.T * NR, src + c * s.Hs * s.Ws, s.Hs * s.Ws, some, pieces, i, s.stride_w)
        e.accumulate = c > 0
        e.relu = relu and c + some >= s.C
        for i in range(blocks):
            first = k + (k_end - k) * i // blocks
            n_rows = k + (k_end - k) * (i + 1) // blocks - first
            for t in range(runs):
                if s.by_taps:
                    point_rows(a + t * TILE_MR, rows + (first * s.window + s.tap[t]) * s.C + c, s.window * s.C, n_rows)
                else:
                    point_rows(a, rows + (first * s.C + c) * s.T, s.C * s.T, n_rows)
            e.bias = bias + first if bias != NULL else NULL
            for m in range(n_rows if s.apart and e.accumulate else 0):
                scatter(s, dst + (first + m) * s.Hd * s.Wd, panel * NR, some_pixels, result + m * width, False)
            for p in range(panel, panel_end):
                filter_tile(s, a, n_rows, src + c * s.Hs * s.Ws if s.as_it_lies and i == 0 else NULL,
                            packed + (p - panel) * some * s.T * NR, runs, some * s.T // most(1, runs),
                            dst + first * s.Hd * s.Wd, p * NR, least(NR, pixels - p * NR), result + (p - panel) * NR, width, &e)
            for m in range(n_rows if s.apart else 0):
                scatter(s, dst + (first + m) * s.Hd * s.Wd, panel * NR, some_pixels, result + m * width, True)
        c += some
        if c >= s.C:
            break
    end_task(before)


cdef void sweep(Shape *s, real *src, real *rows, real *bias, real *dst, bint relu, Py_ssize_t q, Py_ssize_t n, Py_ssize_t k,
                Py_ssize_t k_end) noexcept nogil:
    """`filter_task` of few channels, planes as they lie: n pixels from pixel q on, counted over the batch."""
    cdef Py_ssize_t plane = s.Hd * s.Wd, some, at, row = s.C * (s.window if s.by_taps else s.T), i
    cdef Epilogue e = Epilogue(NULL, 1, 0, relu, s.stream, 0, NULL, 0, 0)
    rows += s.tap[0] * s.C if s.by_taps else 0
    while n > 0:
        at = q % plane
        some = least(n, plane - at)
        for i in range(k, k_end):
            e.bias = bias + i if bias != NULL else NULL
            mix_tile(some, s.C, rows + i * row, src + q // plane * s.groups * s.C * plane + at, plane,
                     dst + (q // plane * s.groups * s.K + i) * plane + at, &e)
        q, n = q + some, n - some


cdef inline bint within(Shape *s, Py_ssize_t q, Py_ssize_t n) noexcept nogil:
    """Whether n pixels of the grid from pixel q on, counted over the batch, are of one picture."""
    return q % (s.rows * s.cols) + n <= s.rows * s.cols


cdef void filter_tile(Shape *s, real **a, Py_ssize_t n_rows, real *planes, real *packed, Py_ssize_t runs, Py_ssize_t length,
                      real *dst, Py_ssize_t q, Py_ssize_t n_pixels, real *result, Py_ssize_t width, Epilogue *e) noexcept nogil:
    """One tile: n_rows filters times the panel that begins with pixel q of the grid, counted over the batch.

    If the source's `planes` are given, a whole panel is read from them and packed. Results whose places lie apart stay in rows of
    `width` at `result`; those of a panel that crosses a picture's end lie there, too, before they are put in place.
    """
    cdef Py_ssize_t NR = 2 * lanes(dst), m, plane = s.Hd * s.Wd, picture = s.rows * s.cols, inside = q % picture
    cdef bint whole = within(s, q, n_pixels), crossing = not s.apart and not whole
    cdef real *target[TILE_MR]
    if s.apart or crossing:
        point_rows(target, result, width, n_rows)
    else:
        point_rows(target, dst + q // picture * s.groups * s.K * plane + inside, plane, n_rows)
    for m in range(n_rows if crossing and e.accumulate else 0):
        scatter(s, dst + m * plane, q, n_pixels, target[m], False)
    e.stream = s.stream and whole
    if planes != NULL and whole and n_pixels == NR:
        tile_and_keep(n_rows, length, a, planes + q // picture * s.groups * s.C * picture + inside, picture, target, e, packed)
    else:
        tile_by_rows(n_rows, runs, length, a, packed, NR, target, n_pixels, e)
    for m in range(n_rows if crossing else 0):
        scatter(s, dst + m * plane, q, n_pixels, target[m], True)


cdef void scatter(Shape *s, real *planes, Py_ssize_t q, Py_ssize_t n, real *side_by_side, bint there) noexcept nogil:
    """Between pixels q to q + n of the grid, counted over the batch, and the same side by side; `there`: into the planes."""
    cdef Py_ssize_t cols = s.cols if s.apart else s.rows * s.cols, rows = s.rows if s.apart else 1, some
    cdef Py_ssize_t j = q % cols, i = q // cols % rows, picture = q // cols // rows
    cdef real *row
    while n > 0:
        some = least(n, cols - j)
        row = planes + (picture * s.groups * s.K * s.Hd + s.origin_h + i * s.step_h) * s.Wd + s.origin_w + j * s.step_w
        if there:
            spread(row, side_by_side, some, s.step_w)
        else:
            copy(side_by_side, row, some, s.step_w)
        n, side_by_side, i, j = n - some, side_by_side + some, i + 1, 0
        if i == rows:
            i, picture = 0, picture + 1


cdef Py_ssize_t find_pieces(Shape *s, Py_ssize_t q, Py_ssize_t n_pixels, Py_ssize_t NR, Py_ssize_t panel_size,
                            Py_ssize_t tap_step, Piece *pieces) noexcept nogil:
    """Where the pixels of some panels lie in the source planes, tap by tap, with zeros outside the picture; how many pieces.

    panel_size, tap_step: numbers in a packed panel, and from tap to tap in it; pixel q of the grid, counted over the batch, is
    the first one.
    """
    cdef Py_ssize_t t, p, i, j, n, h, lo, hi, begin, end, to, count = 0, picture = s.groups * s.C * s.Hs * s.Ws, start
    for t in range(s.T):
        # columns of the grid from which this tap meets the picture, and no more
        begin = ceil_div(-s.dw[t], s.stride_w) if s.dw[t] < 0 else 0
        end = ceil_div(s.Ws - s.dw[t], s.stride_w) if s.Ws > s.dw[t] else 0
        p, i, j, start = 0, q // s.cols % s.rows, q % s.cols, q // s.cols // s.rows * picture
        while p < n_pixels:
            n = least(least(s.cols - j, n_pixels - p), NR - p % NR)
            h = i * s.stride_h + s.dh[t]
            lo, hi = least(n, most(0, begin - j)), most(0, least(n, end - j))
            if not 0 <= h < s.Hs or lo >= hi:
                lo = hi = n
            to = p // NR * panel_size + t * tap_step + p % NR
            if lo > 0:
                pieces[count] = Piece(to, -1, lo)
                count += 1
            if lo < hi:
                pieces[count] = Piece(to + lo, start + h * s.Ws + (j + lo) * s.stride_w + s.dw[t], hi - lo)
                count += 1
            if lo < hi < n:
                pieces[count] = Piece(to + hi, -1, n - hi)
                count += 1
            p, j = p + n, j + n
            if j == s.cols:
                i, j = i + 1, 0
                if i == s.rows:
                    i, start = 0, start + picture
    return count
