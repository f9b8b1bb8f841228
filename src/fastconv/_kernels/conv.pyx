"""Convolution by the register tile: forward, the gradient by the picture, and the explicit im2col.

Forward, grad_x and the transposed convolution are one operation here, a *gather* (see `Gather`): each place of a grid of
destination pixels is the sum, over a list of taps, of a source pixel times that tap's matrix of weights.

    dst[n, origin + i*step, k] = act(b[k] + sum over taps t, c of src[n, i*stride + offset[t], c] * w[tap[t]][c][k])

    forward                         one gather: step 1, stride S, offset = r*dilation - P
    grad_x, S = 1                   one gather: the offsets' signs turned, weights transposed
    grad_x, S > 1, conv_transpose   one gather for each phase of dx modulo S, with the taps that meet it: no product is wasted

Depth-last pictures are read through pointers: rows of the tile are pixels, a run of k is a tap's channels (padding points at a
row of zeros), B is the weights packed in panels; of few filters vectors run along the channels instead. In depth-first pictures
the rows are filters, B is a panel of pixels, gathered in cache, or long rows of a padded copy there. Arguments are trusted;
arrays are C-contiguous and of one dtype. Every number is summed in an order that depends on neither threads nor batch.
"""

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange, threadid
from libc.string cimport memset

from fastconv._kernels.gather cimport (
    L2_SHARE, Planes, SMALL_WORK, STREAM, Shape, copy_planes, list_products, make_shape, place_planes,
)
from fastconv._kernels.tiles cimport (
    DOT_COLS, DOT_ROWS, PART_OF_B, SHARES, TILE_MR, VECTOR_BYTES, Epilogue, Piece, Share, aligned, begin_task, ceil_div, copy,
    data, end_task, fetch_lines, find_tiles, lanes, least, make_shares, most, pack_pieces, point_rows, prefetch, real, spread,
    take, tile_and_keep, tile_by_rows, tile_by_table, tile_height, tile_of_few, transpose,
)

import numpy as np

from fastconv._kernels import memory

from .tile import addresses

cnp.import_array()
find_tiles(addresses)

cdef enum:
    KEPT = 1 << 23        # bytes of packed weights that some cache keeps until they are used
    PASSING = 128         # channels of weights packed at a time where they are used once; a row more keeps panels off one cache set
    AHEAD = 1 << 22       # bytes of pictures beyond a core's own caches: pixels are called for before they are needed
    TOGETHER = 8          # panels of pixels that are packed at a time: a stretch of each plane that is worth fetching
    BY_PLACE = 1 << 10    # weights of a tap for which tiles with as few taps as can be are worth their pointers
    PACKING = 20          # filters whose products cost as much as to pack pixels for one more tap


cdef double LIVING = 0.95  # of taps that see the picture, below which tiles are made of one place


VECTOR, MR, FEW = VECTOR_BYTES, TILE_MR, DOT_ROWS  # for the arithmetic that chooses a method


@cython.final
cdef class Gather:
    """One gather: sizes, grid and taps. Made once for a problem, run many times.

    Parameters
    ----------
    sizes : (N, groups, C, K, Hs, Ws, Hd, Wd), C and K of one group
    grid : (rows, cols, origin_h, origin_w, step_h, step_w, stride_h, stride_w)
    taps : int64 array (3, T): vertical offset, horizontal offset, index in the window
    window : F_h * F_w
    merged : F_w where the taps are a whole window without dilation and C is small, else 0
    nchw : depth-first pictures, else depth-last
    filters_first : weights (K, C, F, F), as all depth-first pictures have, else (F, F, C, K)
    transposed : the weights are those of the convolution that this one is the gradient of: read with C and K exchanged
    """
    cdef Shape s
    cdef cnp.ndarray taps
    cdef bint nchw, filters_first, transposed

    def __init__(self, tuple sizes, tuple grid, cnp.ndarray taps, Py_ssize_t window, Py_ssize_t merged, bint nchw,
                 bint filters_first, bint transposed):
        self.s = make_shape(sizes, grid, taps, window)
        self.taps, self.nchw, self.filters_first, self.transposed = taps, nchw, filters_first, transposed
        self.s.merged = merged
        self.s.across, self.s.by_filters = transposed != filters_first, filters_first and window > 1
        self.s.by_place = better_by_place(&self.s)


cdef inline Py_ssize_t places_met(Py_ssize_t n, Py_ssize_t stride, Py_ssize_t offset, Py_ssize_t size) noexcept:
    """How many of n places a tap finds within a picture, along one axis."""
    cdef Py_ssize_t first = ceil_div(most(0, -offset), stride), end = least(n, ceil_div(most(0, size - offset), stride))
    return most(0, end - first)


cdef bint better_by_place(Shape *s) noexcept:
    """Whether so many taps see only padding that the pixels of a tile had better be of one place, in many pictures, which must
    not share a set of the cache."""
    cdef Py_ssize_t t, met = 0, depth = s.groups * s.C * sizeof(float)
    if tile_height(s.Hs * s.Ws * depth) < TILE_MR or tile_height(s.stride_w * depth) < TILE_MR:
        return False
    for t in range(s.T):
        met += places_met(s.rows, s.stride_h, s.dh[t], s.Hs) * places_met(s.cols, s.stride_w, s.dw[t], s.Ws)
    return s.N > 1 and s.merged == 0 and s.C * s.K >= BY_PLACE and met < LIVING * s.rows * s.cols * s.T


@cython.final
cdef class Gathers:
    """Those of one convolution. They use one workspace, one after the other: what all read of the weights stays in it."""
    cdef list each
    cdef cnp.ndarray every  # depth-last: the taps of all, where each lies among the others' in the weights

    def __init__(self, list each):
        cdef Gather gather
        cdef Py_ssize_t before = 0
        self.each, self.every = each, np.concatenate([gather.taps[2] for gather in each])
        for gather in each:
            if gather.s.by_filters and gather.transposed and not (gather.s.groups == 1 and gather.s.K <= DOT_ROWS):
                gather.s.together, gather.s.every = len(self.every), <Py_ssize_t *> cnp.PyArray_DATA(self.every)
                gather.s.before = before
                before += gather.s.T

    def workspace(self, Py_ssize_t itemsize, int threads):
        """Bytes that `run` allocates: packed weights and each thread's scratch."""
        return most_bytes[float](self.each, threads, NULL) if itemsize == 4 else most_bytes[double](self.each, threads, NULL)

    def run(self, cnp.ndarray src, cnp.ndarray w, cnp.ndarray bias, cnp.ndarray dst, bint relu, int threads):
        """Write the grids' pixels of dst; bias may be None."""
        if cnp.PyArray_TYPE(dst) == cnp.NPY_FLOAT32:
            run_gathers[float](self.each, src, w, bias, dst, relu, threads, NULL)
        else:
            run_gathers[double](self.each, src, w, bias, dst, relu, threads, NULL)


cdef Py_ssize_t most_bytes(list gathers, int threads, real *like):
    cdef Py_ssize_t bytes = 0
    cdef Gather gather
    for gather in gathers:
        bytes = most(bytes, gather_bytes(gather, threads, like))
    return bytes


cdef run_gathers(list gathers, cnp.ndarray src, cnp.ndarray w, cnp.ndarray bias, cnp.ndarray dst, bint relu, int threads,
                 real *like):
    cdef Py_ssize_t bytes = most_bytes(gathers, threads, like)
    cdef cnp.ndarray workspace = memory.empty((bytes,), "u1")
    cdef char *space = <char *> cnp.PyArray_DATA(workspace)
    cdef real *x = data(src, like)
    cdef real *y = data(dst, like)
    cdef real *weights = data(w, like)
    cdef real *b = NULL if bias is None else data(bias, like)
    cdef Gather gather = gathers[0]
    cdef Py_ssize_t packed = packed_bytes(gather, threads, like), scratch
    cdef bint fresh = True
    if gather.nchw:
        scratch = (bytes - packed) // threads
        if gather.s.T == 0:  # it fills what others write again
            gathers_nchw(gathers[:1], x, weights, b, y, relu, threads, <real *> space, space + packed, scratch)
            gathers = gathers[1:]
        if gathers:
            gathers_nchw(gathers, x, weights, b, y, relu, threads, <real *> space, space + packed, scratch)
        return
    for gather in gathers:
        gather_nhwc(gather, x, weights, b, y, relu, threads, <real *> space, space + packed_bytes(gather, threads, like), fresh)
        fresh = False


cdef Py_ssize_t packed_bytes(Gather self, int threads, real *like) noexcept:
    cdef Shape *s = &self.s
    if not self.nchw:
        return aligned(plan_chunks(s, threads, like).packed * sizeof(real))
    return aligned(s.groups * s.K * s.C * (s.window if self.transposed else s.T) * sizeof(real)) if repacked(self) else 0


cdef inline bint repacked(Gather self) noexcept nogil:
    """Whether a depth-first gather reads its weights from a copy in another order."""
    return self.transposed or self.s.T < self.s.window


cdef inline Py_ssize_t bytes_met(Shape *s, real *like) noexcept nogil:
    """What a gather reads and writes of pictures."""
    return s.N * s.groups * (s.rows * s.cols * s.K + s.Hs * s.Ws * s.C) * <Py_ssize_t> sizeof(real)


cdef Py_ssize_t gather_bytes(Gather self, int threads, real *like) noexcept:
    cdef Py_ssize_t packed = packed_bytes(self, threads, like)
    if self.nchw:
        return packed + threads * (plan_planes(&self.s, threads, like).scratch or plan_panels(&self.s, threads, like).scratch)
    return packed + threads * plan_chunks(&self.s, threads, like).scratch


# ---------------------------------------------------------------- depth-last: rows of the tile are pixels
cdef struct Chunks:
    # How a depth-last gather is cut into tasks: chunks of pixels, counted over the batch, and cuts of the panels of filters.
    Py_ssize_t panels, panel_size     # of NR filters; numbers in one
    Py_ssize_t chunk, per_image       # pixels in a chunk; pixels that chunks stay within
    Py_ssize_t per_row, chunks, cuts  # chunks within those; chunks in all
    Py_ssize_t packed, scratch        # numbers of packed weights and biases; bytes of a thread
    # Few pixels and many weights, as in a dense layer: so many panels pass by at a time, packed a stretch of channels at a time
    # by the thread that needs them; 0: they are packed once for all.
    Py_ssize_t passing
    bint in_place                     # they lie as one panel would, and are not packed
    Py_ssize_t step                   # numbers from one row of weights to the next


cdef inline bint few(Shape *s, real *like) noexcept nogil:
    """Whether there are so few filters that vectors along them would be nearly empty, and channels enough for vectors whose lanes
    are added in the end; for the sums of one tap that takes wider vectors."""
    cdef Py_ssize_t VL = lanes(like)
    return (s.groups == 1 and s.K <= DOT_ROWS and s.C >= VL and not s.merged
            and VL >= (2 if s.T > 1 else 4) * DOT_ROWS)


cdef inline Py_ssize_t even(Py_ssize_t tasks, int threads) noexcept nogil:
    """At least so many tasks and one, as many for each thread."""
    return ceil_div(tasks, threads) * threads if tasks > threads else most(1, tasks)


cdef Chunks plan_chunks(Shape *s, int threads, real *like) noexcept nogil:
    cdef Chunks z
    cdef Py_ssize_t NR = 2 * lanes(like), pixels = s.N * s.rows * s.cols, unit, share
    z.panels, z.panel_size = ceil_div(s.K, NR), s.together * s.C * NR
    z.passing = 0
    if few(s, like):
        z.panel_size = s.T * ceil_div(s.C, lanes(like)) * s.K * lanes(like)
    z.in_place = (not few(s, like) and s.groups == 1 and s.T == s.window and not s.across and not s.by_filters
                  and (s.K == NR or s.K == lanes(like) or PART_OF_B and s.K < lanes(like)))
    z.step = s.K if z.in_place else NR
    if z.in_place:
        z.panel_size = 0
    elif (pixels <= 24 * TILE_MR
          and s.groups * z.panels * z.panel_size * <Py_ssize_t> sizeof(real) > (KEPT if pixels <= 6 * TILE_MR else 3 * KEPT)
          and not s.merged and not s.by_filters):
        z.passing = most(1, least(4 * TOGETHER, s.groups * z.panels // (4 * threads)))
    z.packed = s.groups * z.panels * (NR if z.passing else z.panel_size + NR)
    # Pixels a task: their source rows stay in cache while all panels of weights pass over them.
    unit = s.cols if s.merged else TILE_MR  # a strip is made of whole rows of the grid
    share = L2_SHARE // <Py_ssize_t> sizeof(real) // most(1, s.C * most(1, s.merged))
    z.chunk = most(unit, least(share, 24 * TILE_MR) // unit * unit)
    # Few pixels: cut the filters instead, so that a thread finds the weights that it has packed in its own cache.
    z.cuts = threads * least(4, z.panels // threads) if pixels < 24 * TILE_MR * threads and not s.merged else 1
    z.cuts = most(1, z.cuts)
    while z.cuts == 1 and z.chunk > unit and ceil_div(pixels, z.chunk) * s.groups < 4 * threads:
        z.chunk = most(unit, z.chunk // 2 // unit * unit)
    if not s.merged and z.cuts == 1:
        z.chunk = most(1, ceil_div(pixels, even(ceil_div(pixels, z.chunk), threads)))
    if s.by_place:
        z.chunk = ceil_div(z.chunk, s.N) * s.N
    z.per_image = s.rows * s.cols if s.merged else most(1, pixels)
    z.per_row = ceil_div(z.per_image, z.chunk)
    z.chunks = z.per_row * (pixels // z.per_image)
    z.scratch = pixel_scratch(s, pixels if z.passing else z.chunk, like) + z.passing * (PASSING + 1) * NR * sizeof(real)
    return z


cdef gather_nhwc(Gather self, real *src, real *w, real *bias, real *dst, bint relu, int threads, real *b, char *space,
                 bint fresh):
    cdef Shape here = self.s  # a copy: several threads may run one gather at once
    cdef Shape *s = &here
    cdef Chunks z = plan_chunks(s, threads, src)
    cdef Py_ssize_t NR = 2 * lanes(src), pixels = s.N * s.rows * s.cols, i, g, c, sets = ceil_div(z.panels, most(1, z.passing))
    cdef Py_ssize_t packs = s.groups * z.panels * (1 if s.by_filters and not few(s, src) else s.T)
    cdef Py_ssize_t tasks = z.cuts * z.chunks * s.groups
    cdef real *biases = b + z.packed - s.groups * z.panels * NR if bias != NULL else NULL
    cdef bint parallel = threads > 1 and <double> pixels * s.T * s.C * s.K * s.groups > SMALL_WORK
    cdef Share shares[SHARES]
    s.stream = bytes_met(s, src) > STREAM and <size_t> dst % VECTOR_BYTES == 0 and s.K % lanes(src) == 0
    s.fetch = not s.stream and pixels * s.groups * s.K * <Py_ssize_t> sizeof(real) > L2_SHARE
    s.ahead = bytes_met(s, src) > AHEAD and s.T == 1 and not s.merged
    if z.passing or z.in_place or s.together > s.T and not fresh:
        packs = 0
    for i in range(threads if s.merged else 0):
        (<Py_ssize_t *> (space + i * z.scratch))[0] = 0  # no pixels are pointed at
    with nogil:
        if threads > 1 and (z.packed > SMALL_WORK or parallel and z.cuts > 1):
            make_shares(shares, threads, packs)
            for _ in prange(packs, num_threads=threads, schedule="dynamic"):
                pack_task(self, &z, w, b, take(shares, threads, threadid()))
        else:
            for i in range(packs):
                pack_task(self, &z, w, b, i)
        if biases != NULL:
            for i in range(s.groups * z.panels * NR):
                g, c = i // (z.panels * NR), i % (z.panels * NR)
                biases[i] = bias[g * s.K + c] if c < s.K else 0
        b = w if z.in_place else b + s.before * s.C * NR
        if z.passing:
            for i in prange(s.groups * sets, num_threads=threads, schedule="dynamic", use_threads_if=parallel):
                passing_task(self, s, &z, src, w, biases, dst, relu, i // sets, i % sets * z.passing,
                             space + threadid() * z.scratch)
        elif not parallel:  # a region of one thread costs as much as the work of a small call
            for i in range(tasks):
                chunk_task(s, &z, src, b, biases, dst, relu, i, space)
        else:
            make_shares(shares, threads, tasks)
            for _ in prange(tasks, num_threads=threads, schedule="dynamic"):
                chunk_task(s, &z, src, b, biases, dst, relu, take(shares, threads, threadid()), space + threadid() * z.scratch)


cdef void pack_task(Gather self, Chunks *z, real *w, real *b, Py_ssize_t i) noexcept nogil:
    """Task i: a group, then a panel, then a tap, but where taps are packed all at once."""
    cdef Shape *s = &self.s
    if few(s, w):
        pack_few(self, w, b + i * (z.panel_size // s.T), i)
    elif s.by_filters:
        pack_taps(self, w, b + i * z.panel_size, i // z.panels, i % z.panels)
    else:
        pack_panel(self, w, b + i * s.C * 2 * lanes(w), i // (z.panels * s.T), i // s.T % z.panels, i % s.T, 0, s.C)


cdef void chunk_task(Shape *s, Chunks *z, real *src, real *b, real *biases, real *dst, bint relu, Py_ssize_t i,
                     char *scratch) noexcept nogil:
    """Task i: a cut of the panels, then a chunk of the pixels, then a group."""
    cdef Py_ssize_t NR = 2 * lanes(src), g = i % s.groups, at = i // s.groups % z.chunks, cut = i // s.groups // z.chunks
    cdef Py_ssize_t lo = at // z.per_row * z.per_image + at % z.per_row * z.chunk
    pixel_task(s, src, b + g * z.panels * z.panel_size, z.step, biases + g * z.panels * NR if biases != NULL else NULL, dst, relu,
               g, lo, least(lo + z.chunk, (at // z.per_row + 1) * z.per_image), z.panels * cut // z.cuts,
               z.panels * (cut + 1) // z.cuts, z.chunk, scratch)


cdef void passing_task(Gather self, Shape *s, Chunks *z, real *src, real *w, real *bias, real *dst, bint relu, Py_ssize_t g,
                       Py_ssize_t panel, char *scratch) noexcept nogil:
    """All pixels of some panels of group g, whose weights are packed here, used and forgotten."""
    cdef Py_ssize_t NR = 2 * lanes(src), pixels = s.N * s.rows * s.cols, t, i, m, p, n, rows
    cdef Py_ssize_t blocks = ceil_div(pixels, pixels_a_tile(s, src))
    cdef Py_ssize_t end = least(z.panels, panel + z.passing), c = 0, first, some
    cdef real **a = <real **> scratch
    cdef real **target = a + blocks * s.T * TILE_MR
    cdef real *zeros = <real *> (scratch + aligned((blocks * (s.T + 1) + 1) * TILE_MR * sizeof(void *)))
    cdef real *b = <real *> (scratch + z.scratch - z.passing * (PASSING + 1) * NR * <Py_ssize_t> sizeof(real))
    cdef real *at[TILE_MR]
    cdef real *to[TILE_MR]
    cdef Epilogue e = Epilogue(NULL, 0, 0, 0, 0, 0)
    cdef unsigned int before = begin_task()
    memset(zeros, 0, s.C * sizeof(real))
    point_at_pixels(s, src, dst, g, 0, pixels, a, target, zeros)
    for t in range(s.T):
        c = 0
        while c < s.C:
            n = least(PASSING, s.C - c)
            e.accumulate, e.relu = t > 0 or c > 0, relu and t == s.T - 1 and c + n == s.C
            i = 0
            while i < n:  # in the order in which the weights lie
                some = n if s.across else 1
                for p in range(panel, end):
                    pack_panel(self, w, b + ((p - panel) * (PASSING + 1) + i) * NR, g, p, t, c + i, some)
                i += some
            for p in range(panel, end):
                e.bias = bias + (g * z.panels + p) * NR if bias != NULL else NULL
                for i in range(blocks):
                    first = pixels * i // blocks
                    rows = pixels * (i + 1) // blocks - first
                    for m in range(rows):
                        at[m] = a[(i * s.T + t) * TILE_MR + m] + c
                        to[m] = target[i * TILE_MR + m] + p * NR
                    tile_by_rows(rows, 1, n, at, b + (p - panel) * (PASSING + 1) * NR, NR, to, least(NR, s.K - p * NR), &e)
            c += n
    end_task(before)


cdef void pack_few(Gather self, real *w, real *b, Py_ssize_t t) noexcept nogil:
    """b[vector of channels][filter][lane] = the weights of one tap, as `tile_of_few` reads them; zeros where there are none."""
    cdef Shape *s = &self.s
    cdef Py_ssize_t VL = lanes(w), c, k, unit = s.window if self.filters_first else 1
    cdef Py_ssize_t next_c = unit * (1 if s.across else s.K), next_k = unit * (s.C if s.across else 1)
    w += s.tap[t] * (1 if self.filters_first else s.C * s.K)
    memset(b, 0, ceil_div(s.C, VL) * s.K * VL * sizeof(real))
    for c in range(s.C):
        for k in range(s.K):
            b[(c // VL * s.K + k) * VL + c % VL] = w[c * next_c + k * next_k]


cdef void pack_taps(Gather self, real *w, real *b, Py_ssize_t g, Py_ssize_t panel) noexcept nogil:
    """b[t][c][j] = weight of channel c and filter panel*NR + j under tap t, of weights whose taps lie side by side."""
    cdef Shape *s = &self.s
    cdef Py_ssize_t NR = 2 * lanes(w), k = panel * NR, cols = least(NR, s.K - k), t, c, u, i, j, n
    cdef real turned[32 * 32]  # [channel and tap][filter]
    cdef bint far = s.groups * s.K * s.C * s.window * <Py_ssize_t> sizeof(real) > L2_SHARE
    if cols < NR:
        memset(b, 0, s.together * s.C * NR * sizeof(real))
    if self.transposed:  # w is (groups*C, K, F*F) with this gather's C and K
        w += (g * s.C * s.K + k) * s.window
        for c in range(s.C):
            if far and c + 2 < s.C:
                fetch_lines(w + 2 * s.K * s.window, cols * s.window * sizeof(real))
            for i in range(0, s.window, 32):
                n = least(32, s.window - i)
                transpose(turned, NR, w + i, s.window, cols, n)
                for u in range(s.together):
                    if i <= s.every[u] < i + n:
                        copy(b + (u * s.C + c) * NR, turned + (s.every[u] - i) * NR, cols, 1)
            w += s.K * s.window
        return
    w += (g * s.K + k) * s.C * s.window  # it is (groups*K, C, F*F)
    if 4 * s.T < s.window:  # so few are wanted that each is fetched by itself
        for t in range(s.T):
            for c in range(0, s.C, 16):
                n = least(16, s.C - c)
                for j in range(cols):
                    copy(turned + j * 16, w + (j * s.C + c) * s.window + s.tap[t], n, s.window)
                transpose(b + (t * s.C + c) * NR, NR, turned, 16, cols, n)
        return
    c = t = u = i = 0
    while i < s.C * s.window:
        n = least(NR, s.C * s.window - i)
        for j in range(cols if far else 0):  # the processor does not follow so many filters at a time
            fetch_lines(w + j * s.C * s.window + i + 2 * NR, NR * sizeof(real))
        transpose(turned, NR, w + i, s.C * s.window, cols, n)
        i += n
        for j in range(n):
            if u < s.T and s.tap[u] == t:
                copy(b + (u * s.C + c) * NR, turned + j * NR, cols, 1)
                u += 1
            t += 1
            if t == s.window:
                t, u, c = 0, 0, c + 1


cdef void pack_panel(Gather self, real *w, real *b, Py_ssize_t g, Py_ssize_t panel, Py_ssize_t t, Py_ssize_t c,
                     Py_ssize_t n) noexcept nogil:
    """b[i][j] = weight of channel c + i, i < n, and filter panel*NR + j under tap t; zeros past the last filter."""
    cdef Shape *s = &self.s
    cdef Py_ssize_t NR = 2 * lanes(w), k = panel * NR, cols = least(NR, s.K - k), i, row = s.C if s.across else s.K
    if cols < NR:
        memset(b, 0, n * NR * sizeof(real))
    # w is (F*F, C, groups*K), or with C and K exchanged if its gather is transposed; filters first, one tap: (groups*K, C)
    w += g * s.C * s.K if self.filters_first else s.tap[t] * s.groups * s.C * s.K + g * row
    row *= 1 if self.filters_first else s.groups
    if s.across:
        transpose(b, NR, w + k * row + c, row, cols, n)
        return
    w += c * row + k
    for i in range(n):
        prefetch(w + (i + 24) * row)  # several rows on their way bring more than one
        prefetch(w + (i + 24) * row + NR // 2)
        copy(b + i * NR, w + i * row, cols, 1)


cdef inline Py_ssize_t pixels_a_tile(Shape *s, real *like) noexcept nogil:
    if few(s, like):
        return TILE_MR // DOT_COLS * DOT_COLS
    if s.by_place:  # several places, or a part of one
        return TILE_MR // s.N * s.N if s.N <= TILE_MR else ceil_div(s.N, ceil_div(s.N, TILE_MR))
    return TILE_MR if s.merged else tile_height(s.stride_w * s.groups * s.C * sizeof(real))


cdef Py_ssize_t pixel_scratch(Shape *s, Py_ssize_t chunk, real *like) noexcept nogil:
    cdef Py_ssize_t itemsize = sizeof(real), blocks = ceil_div(chunk, pixels_a_tile(s, like)), runs = s.T // most(1, s.merged)
    return aligned(sizeof(Py_ssize_t)) + aligned((blocks * (runs + 1) + 1) * TILE_MR * sizeof(void *)) + aligned(
        strip_rows(s, chunk // most(1, s.cols)) * strip_width(s) * s.C * s.groups * itemsize if s.merged else s.C * itemsize)


cdef Py_ssize_t strip_rows(Shape *s, Py_ssize_t rows) noexcept nogil:
    return (rows - 1) * s.stride_h + s.dh[s.T - 1] - s.dh[0] + 1


cdef Py_ssize_t strip_width(Shape *s) noexcept nogil:
    return (s.cols - 1) * s.stride_w + s.merged


cdef inline Py_ssize_t first_of(Shape *s, Py_ssize_t pixels, Py_ssize_t blocks, Py_ssize_t i) noexcept nogil:
    """The first pixel of block i: evenly many each, but of a strip as many as can be, for its pointers serve shorter ones as well."""
    return least(pixels, i * TILE_MR) if s.merged else pixels * i // blocks


cdef void pixel_task(Shape *s, real *src, real *b, Py_ssize_t b_step, real *bias, real *dst, bint relu, Py_ssize_t g,
                     Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t panel, Py_ssize_t panel_end, Py_ssize_t chunk,
                     char *scratch) noexcept nogil:
    """Pixels lo to hi of the grid, counted over the batch, a chunk or less, of the filters in some panels of group g."""
    cdef Py_ssize_t NR = 2 * lanes(src), blocks = ceil_div(hi - lo, pixels_a_tile(s, src)), i, m, first, rows, begin = 0
    cdef Py_ssize_t runs = s.T // most(1, s.merged), length = s.C * most(1, s.merged)
    cdef Py_ssize_t *pointed = <Py_ssize_t *> scratch  # pixels of a strip that the thread's pointers know
    cdef real **a = <real **> (scratch + aligned(sizeof(Py_ssize_t)))
    cdef Py_ssize_t room = ceil_div(chunk, pixels_a_tile(s, src))  # blocks of a chunk
    cdef real **c = a + room * runs * TILE_MR
    cdef real **target = c + room * TILE_MR
    cdef real *rest = <real *> (<char *> a + aligned((room * (runs + 1) + 1) * TILE_MR * sizeof(void *)))
    cdef Epilogue e = Epilogue(bias, 0, 0, relu, s.stream, s.fetch)
    cdef unsigned int before = begin_task()
    if s.merged:
        copy_strip(s, src, lo, hi, rest)
        if pointed[0] < hi - lo:
            point_at_strip(s, dst, hi - lo, a, c, rest)
            pointed[0] = hi - lo
        begin = (lo // (s.rows * s.cols) * s.Hd + lo // s.cols % s.rows * s.step_h) * s.Wd * s.K
    else:
        memset(rest, 0, s.C * sizeof(real))
        point_at_pixels(s, src, dst, g, lo, hi, a, c, rest)
        for i in range(0 if few(s, src) else blocks):
            leave_out_padding(s, a + i * runs * TILE_MR, (hi - lo) * (i + 1) // blocks - (hi - lo) * i // blocks, rest)
    while panel < panel_end:
        if bias != NULL:
            e.bias = bias + panel * NR
        for i in range(blocks):
            first = first_of(s, hi - lo, blocks, i)
            rows = first_of(s, hi - lo, blocks, i + 1) - first
            for m in range(rows):
                target[m] = c[i * TILE_MR + m] + begin + panel * NR
            if s.ahead and panel == panel_end - 1:
                fetch_pixels(s, src, g, hi + first, rows)
            if few(s, src):
                tile_of_few(rows, s.K, runs, length, a + i * runs * TILE_MR, b, target, &e)
            else:
                tile_by_rows(rows, runs, length, a + i * runs * TILE_MR, b + panel * s.together * s.C * NR, b_step, target,
                             least(NR, s.K - panel * NR), &e)
        panel += 1
    end_task(before)


cdef inline void leave_out_padding(Shape *s, real **a, Py_ssize_t rows, real *zeros) noexcept nogil:
    """Taps under which all pixels of a tile lie outside the picture are not multiplied."""
    cdef Py_ssize_t t, m
    for t in range(s.T):
        m = 0
        while m < rows and a[t * TILE_MR + m] == zeros:
            m += 1
        if m == rows:
            a[t * TILE_MR] = NULL


cdef void fetch_pixels(Shape *s, real *src, Py_ssize_t g, Py_ssize_t q, Py_ssize_t some) noexcept nogil:
    """Calls for the channels of some pixels from pixel q of the grid on, counted over the batch, under the only tap."""
    cdef Py_ssize_t j = q % s.cols, i = q // s.cols % s.rows, n = q // s.cols // s.rows, h, w
    cdef real *at
    while some > 0 and n < s.N:
        h, w = i * s.stride_h + s.dh[0], j * s.stride_w + s.dw[0]
        at = src + ((n * s.Hs + h) * s.Ws + w) * s.groups * s.C + g * s.C
        if 0 <= h < s.Hs and 0 <= w < s.Ws:
            fetch_lines(at, s.C * sizeof(real))
        some, j = some - 1, j + 1
        if j == s.cols:
            i, j = i + 1, 0
            if i == s.rows:
                n, i = n + 1, 0


cdef void point_at_pixels(Shape *s, real *src, real *dst, Py_ssize_t g, Py_ssize_t lo, Py_ssize_t hi, real **a, real **c,
                          real *zeros) noexcept nogil:
    """The tile's pointers, block by block of evenly many pixels: a[block][tap][m] to the source, c[block][m] to the result."""
    cdef Py_ssize_t blocks = ceil_div(hi - lo, pixels_a_tile(s, src)), block, q = lo, end, m, some, depth = s.groups * s.C
    cdef Py_ssize_t places = s.rows * s.cols, place = lo // s.N if s.by_place else lo % places
    cdef Py_ssize_t i = place // s.cols, j = place % s.cols
    cdef Py_ssize_t n = lo % s.N if s.by_place else lo // places, picture = s.Hd * s.Wd * s.groups * s.K
    for block in range(blocks):
        end = lo + (hi - lo) * (block + 1) // blocks
        m = 0
        while q < end:  # a stretch of one row of the grid, or of one place
            some = least(end - q, s.N - n if s.by_place else s.cols - j)
            point_at_stretch(s, src + n * s.Hs * s.Ws * depth + g * s.C, i, j, a + m, some, zeros)
            point_rows(c + m, dst + n * picture + (((s.origin_h + i * s.step_h) * s.Wd + s.origin_w + j * s.step_w) * s.groups
                                                   + g) * s.K, picture if s.by_place else s.step_w * s.groups * s.K, some)
            q, m = q + some, m + some
            if not s.by_place:
                j += some
            elif n + some < s.N:
                n += some
            else:
                n, j = 0, j + 1
            if j == s.cols:
                i, j = i + 1, 0
                if i == s.rows:
                    n, i = n + 1, 0
        a += s.T * TILE_MR
        c += TILE_MR


cdef inline void point_at_stretch(Shape *s, real *picture, Py_ssize_t i, Py_ssize_t j, real **a, Py_ssize_t some,
                                  real *zeros) noexcept nogil:
    """a[tap][m] for `some` pixels from (i, j) of the grid on, or that one in so many pictures."""
    cdef Py_ssize_t t, m, h, w, depth = s.groups * s.C, across = 0 if s.by_place else s.stride_w
    cdef Py_ssize_t step = s.Hs * s.Ws * depth if s.by_place else across * depth, last = (some - 1) * across
    cdef real *at
    for t in range(s.T):
        h, w = i * s.stride_h + s.dh[t], j * s.stride_w + s.dw[t]
        at = picture + (h * s.Ws + w) * depth
        if not 0 <= h < s.Hs or w + last < 0 or w >= s.Ws:
            point_rows(a, zeros, 0, some)
        elif w >= 0 and w + last < s.Ws:
            point_rows(a, at, step, some)
        else:
            for m in range(some):
                a[m] = at + m * step if 0 <= w + m * across < s.Ws else zeros
        a += TILE_MR


cdef void copy_strip(Shape *s, real *src, Py_ssize_t lo, Py_ssize_t hi, real *strip) noexcept nogil:
    """A padded copy of the rows under whole rows of the grid of one picture, pixels lo to hi, counted over the batch."""
    cdef Py_ssize_t n = lo // (s.rows * s.cols), first = lo // s.cols % s.rows, depth = s.groups * s.C, r, h, before, inside
    cdef Py_ssize_t width = strip_width(s)
    before = least(most(0, -s.dw[0]), width)
    inside = most(0, least(width, s.Ws - s.dw[0]) - before)
    for r in range(strip_rows(s, (hi - lo) // s.cols)):
        h = first * s.stride_h + s.dh[0] + r
        if 0 <= h < s.Hs and inside:
            memset(strip, 0, before * depth * sizeof(real))
            copy(strip + before * depth, src + ((n * s.Hs + h) * s.Ws + before + s.dw[0]) * depth, inside * depth, 1)
            memset(strip + (before + inside) * depth, 0, (width - before - inside) * depth * sizeof(real))
        else:
            memset(strip, 0, width * depth * sizeof(real))
        strip += width * depth


cdef void point_at_strip(Shape *s, real *dst, Py_ssize_t pixels, real **a, real **c, real *strip) noexcept nogil:
    """The pointers of `point_at_pixels` for the first pixels of the grid, whole rows, with a run for each row of the window."""
    cdef Py_ssize_t blocks = ceil_div(pixels, TILE_MR), runs = s.T // s.merged, depth = s.groups * s.C, width = strip_width(s)
    cdef Py_ssize_t next_run = (s.dh[s.T - 1] - s.dh[0]) // most(1, runs - 1) * width * depth
    cdef Py_ssize_t i = 0, j = 0, q = 0, t, m, block, end, some
    cdef real *at
    for block in range(blocks):
        end = first_of(s, pixels, blocks, block + 1)
        m = 0
        while q < end:
            some = least(end - q, s.cols - j)
            at = strip + (i * s.stride_h * width + j * s.stride_w) * depth
            for t in range(runs):
                point_rows(a + t * TILE_MR + m, at + t * next_run, s.stride_w * depth, some)
            point_rows(c + m, dst + ((s.origin_h + i * s.step_h) * s.Wd + s.origin_w + j * s.step_w) * s.K, s.step_w * s.K, some)
            q, m, j = q + some, m + some, j + some
            if j == s.cols:
                i, j = i + 1, 0
        a += runs * TILE_MR
        c += TILE_MR


# ---------------------------------------------------------------- depth-first: rows of the tile are filters
cdef struct Panels:
    # How a depth-first gather is cut into tasks: sets of panels of pixels, counted over the batch, and cuts of the filters.
    Py_ssize_t panels                 # of NR pixels
    Py_ssize_t together, sets         # panels packed at a time; sets of so many
    Py_ssize_t channels               # packed at a time: the sums of the ones before wait in dst
    Py_ssize_t cuts, pieces, scratch


cdef Panels plan_panels(Shape *s, int threads, real *like) noexcept nogil:
    cdef Panels z
    cdef Py_ssize_t NR = 2 * lanes(like), tap_bytes = most(1, s.T) * NR * <Py_ssize_t> sizeof(real), chunks
    z.panels = ceil_div(s.N * s.rows * s.cols, NR)
    # Many panels together: long stretches of each plane, and every row of weights serves them all.
    z.together = most(1, least(z.panels, TOGETHER))
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
                 + aligned((z.together * z.channels * s.T + TILE_MR) * NR * sizeof(real)))
    return z


cdef struct Pass:
    # One depth-first gather as it is run.
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
    s.apart = s.step_w != 1 or s.step_h != 1 or s.cols != s.Wd
    s.as_it_lies = (s.T == 1 and s.dh[0] == s.dw[0] == 0 and s.stride_h == s.stride_w == 1 and s.rows == s.Hs and s.cols == s.Ws
                    and s.rows * s.cols >= 4 * NR)
    s.stream = (not s.apart and bytes_met(s, dst) > STREAM and <size_t> dst % VECTOR_BYTES == 0
                and (s.cols % lanes(dst) == 0 if p.y.rows else plane % VECTOR_BYTES == 0 and p.z.channels >= s.C))
    s.fetch = not s.stream and s.N * s.groups * s.K * plane > L2_SHARE


cdef gathers_nchw(list gathers, real *src, real *w, real *bias, real *dst, bint relu, int threads, real *packed, char *space,
                  Py_ssize_t scratch):
    """Gathers of depth-first pictures, that write pixels of their own, side by side: what one has read and written of a stretch
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


cdef Planes plan_planes(Shape *s, int threads, real *like) noexcept nogil:
    cdef Planes z
    cdef Py_ssize_t VL = lanes(like), share = L2_SHARE // <Py_ssize_t> sizeof(real), row
    memset(&z, 0, sizeof(Planes))
    if s.T == 0 or s.step_h * s.step_w > 1 or s.cols != s.Wd or s.cols < VL or s.C == 0:
        return z
    place_planes(s, &z)
    row = s.C * z.phases * z.width
    # Lanes past a row's end are lost; to pack a source pixel for one more tap would cost as much as PACKING filters.
    if ((ceil_div(s.cols, VL) * VL - s.cols) * s.K * s.T >= PACKING * s.cols * (s.T - s.stride_h * s.stride_w)
            or (z.down + 1) * row > 2 * share):
        return z
    z.rows = most(1, least(s.rows, (share // row - z.down) // z.step))
    while z.rows > 1 and s.N * s.groups * ceil_div(s.rows, z.rows) < 4 * threads:
        z.rows = ceil_div(z.rows, 2)
    z.strips = ceil_div(s.rows, z.rows)
    z.rows = ceil_div(s.rows, z.strips)
    z.height = (z.rows - 1) * z.step + z.down + 1
    z.scratch = (aligned(s.C * s.T * sizeof(Py_ssize_t)) + aligned(ceil_div(s.K, TILE_MR) * s.T * TILE_MR * sizeof(void *))
                 + aligned((z.height * row + 2 * VL) * sizeof(real)))
    return z


cdef void planes_task(Shape *s, Planes *z, real *src, real *weights, Py_ssize_t depth, real *bias, real *dst, bint relu,
                      Py_ssize_t at, char *scratch) noexcept nogil:
    """Task `at`: a strip of a picture, then a group, then a picture."""
    cdef Py_ssize_t NR = 2 * lanes(src), strip = at % z.strips, g = at // z.strips % s.groups, n = at // z.strips // s.groups
    cdef Py_ssize_t lo = s.rows * strip // z.strips, hi = s.rows * (strip + 1) // z.strips, blocks = ceil_div(s.K, TILE_MR)
    cdef Py_ssize_t runs = s.T if s.by_taps else 1, i, j, b, t, first, n_rows, plane = s.Hd * s.Wd
    cdef Py_ssize_t *table = <Py_ssize_t *> scratch
    cdef real **a = <real **> (scratch + aligned(s.C * s.T * sizeof(Py_ssize_t)))
    cdef real *rows = <real *> (<char *> a + aligned(blocks * s.T * TILE_MR * sizeof(void *)))
    cdef real *target[TILE_MR]
    cdef Epilogue e = Epilogue(NULL, 1, 0, relu, s.stream, s.fetch)
    cdef unsigned int before = begin_task()
    src += (n * s.groups + g) * s.C * s.Hs * s.Ws
    dst += (n * s.groups + g) * s.K * plane
    weights += g * s.K * depth
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
    for i in range(hi - lo):
        for b in range(blocks):
            first = s.K * b // blocks
            n_rows = s.K * (b + 1) // blocks - first
            if bias != NULL:
                e.bias = bias + g * s.K + first
            j = 0
            while j < s.cols:
                point_rows(target, dst + first * plane + (lo + i) * s.Wd + j, plane, n_rows)
                tile_by_table(n_rows, runs, s.C * s.T // runs, a + b * runs * TILE_MR, rows + i * z.step * z.phases * z.width + j,
                              table, target, least(NR, s.cols - j), &e)
                j += NR
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
    cdef Py_ssize_t runs = s.T if s.by_taps else 1, t, n_rows, first
    cdef Piece *pieces = <Piece *> scratch
    cdef real **a = <real **> (scratch + aligned(z.pieces * sizeof(Piece)))
    cdef real *packed = <real *> (<char *> a + aligned(most(1, s.T) * TILE_MR * sizeof(void *)))
    cdef real *result = packed + z.together * z.channels * s.T * NR
    cdef Epilogue e = Epilogue(NULL, 1, 0, 0, s.stream, s.fetch)
    cdef unsigned int before = begin_task()
    while True:
        some = least(z.channels, s.C - c)
        if s.as_it_lies:  # the first block of filters packs the panels, but those that cross a picture's end
            for p in range(panel, panel_end):
                if not within(s, p * NR, NR):
                    i = find_pieces(s, p * NR, least(NR, pixels - p * NR), NR, 0, NR, pieces)
                    pack_pieces(packed + (p - panel) * some * NR, NR, src + c * s.Hs * s.Ws, s.Hs * s.Ws, some, pieces, i, 1)
        else:
            i = find_pieces(s, panel * NR, least(pixels, panel_end * NR) - panel * NR, NR, some * s.T * NR,
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
            for p in range(panel, panel_end):
                filter_tile(s, a, n_rows, src + c * s.Hs * s.Ws if s.as_it_lies and i == 0 else NULL,
                            packed + (p - panel) * some * s.T * NR, runs, some * s.T // most(1, runs),
                            dst + first * s.Hd * s.Wd, p * NR, least(NR, pixels - p * NR), result, &e)
        c += some
        if c >= s.C:
            break
    end_task(before)


cdef inline bint within(Shape *s, Py_ssize_t q, Py_ssize_t n) noexcept nogil:
    """Whether n pixels of the grid from pixel q on, counted over the batch, are of one picture."""
    return q % (s.rows * s.cols) + n <= s.rows * s.cols


cdef void filter_tile(Shape *s, real **a, Py_ssize_t n_rows, real *planes, real *packed, Py_ssize_t runs, Py_ssize_t length,
                      real *dst, Py_ssize_t q, Py_ssize_t n_pixels, real *result, Epilogue *e) noexcept nogil:
    """One tile: n_rows filters times the panel that begins with pixel q of the grid, counted over the batch.

    If the source's `planes` are given, a whole panel is read from them and packed.
    """
    cdef Py_ssize_t NR = 2 * lanes(dst), m, plane = s.Hd * s.Wd, picture = s.rows * s.cols, inside = q % picture
    cdef bint whole = within(s, q, n_pixels), there = whole and not s.apart
    cdef real *target[TILE_MR]
    if there:
        point_rows(target, dst + q // picture * s.groups * s.K * plane + inside, plane, n_rows)
    else:
        e.stream = 0
        point_rows(target, result, NR, n_rows)
        for m in range(n_rows if e.accumulate else 0):
            scatter(s, dst + m * plane, q, n_pixels, target[m], 0)
    if planes != NULL and whole and n_pixels == NR:
        tile_and_keep(n_rows, length, a, planes + q // picture * s.groups * s.C * picture + inside, picture, target, e, packed)
    else:
        tile_by_rows(n_rows, runs, length, a, packed, NR, target, n_pixels, e)
    for m in range(0 if there else n_rows):
        scatter(s, dst + m * plane, q, n_pixels, target[m], 1)
    e.stream = s.stream


cdef void scatter(Shape *s, real *plane, Py_ssize_t q, Py_ssize_t n, real *side_by_side, bint there) noexcept nogil:
    """Between pixels q to q + n of the grid, counted over the batch, and the same side by side; `there`: into the planes."""
    cdef Py_ssize_t j = q % s.cols, i = q // s.cols % s.rows, picture = q // s.cols // s.rows, some
    cdef real *row
    while n > 0:
        some = least(n, s.cols - j)
        row = plane + (picture * s.groups * s.K * s.Hd + s.origin_h + i * s.step_h) * s.Wd + s.origin_w + j * s.step_w
        if there:
            spread(row, side_by_side, some, s.step_w)
        else:
            copy(side_by_side, row, some, s.step_w)
        n, side_by_side, i, j = n - some, side_by_side + some, i + 1, 0
        if i == s.rows:
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


# ---------------------------------------------------------------- the explicit im2col
def im2col(Gather g, cnp.ndarray src, cnp.ndarray cols, int threads):
    """cols, depth-last: (N, rows, cols, groups, T, C); depth-first: (N, groups, C, T, rows, cols)."""
    if cnp.PyArray_TYPE(cols) == cnp.NPY_FLOAT32:
        walk_cols[float](g, src, cols, None, False, threads, NULL)
    else:
        walk_cols[double](g, src, cols, None, False, threads, NULL)


def col2im(Gather g, cnp.ndarray cols, cnp.ndarray src, cnp.ndarray bias, int threads):
    """The adjoint of `im2col`: every number of src is its channel's bias, or 0, plus all those of cols that come from it."""
    if cnp.PyArray_TYPE(cols) == cnp.NPY_FLOAT32:
        walk_cols[float](g, src, cols, bias, True, threads, NULL)
    else:
        walk_cols[double](g, src, cols, bias, True, threads, NULL)


cdef walk_cols(Gather self, cnp.ndarray src, cnp.ndarray cols, cnp.ndarray bias, bint add, int threads, real *like):
    """Either way, planes or pictures side by side; of few pictures, cuts of their channels."""
    cdef Shape *s = &self.s
    cdef real *x = data(src, like)
    cdef real *y = data(cols, like)
    cdef real *b = NULL if bias is None else data(bias, like)
    cdef Py_ssize_t depth = s.groups * s.C, cuts = threads if s.N < threads <= s.C else 1, i, n, cut
    cdef bint parallel = threads > 1 and cols.size > SMALL_WORK // 16
    with nogil:
        if self.nchw:
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
