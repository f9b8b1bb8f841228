"""Convolution by the register tile, depth last: forward and the gradient by the picture.

Forward, grad_x and the transposed convolution are one operation, a *gather* (see `Gather`): each place of a grid of destination
pixels is the sum, over a list of taps, of a source pixel times that tap's matrix of weights.

    dst[n, origin + i*step, k] = act(b[k] + sum over taps t, c of src[n, i*stride + offset[t], c] * w[tap[t]][c][k])

    forward                         one gather: step 1, stride S, offset = r*dilation - P
    grad_x, S = 1                   one gather: the offsets' signs turned, weights transposed
    grad_x, S > 1, conv_transpose   one gather for each phase of dx modulo S, with the taps that meet it: no product is wasted

Pictures are read through pointers: rows of the tile are pixels, a run of k is a tap's channels (padding points at a row of
zeros), B is the weights packed in panels; of few filters vectors run along the channels instead. planes.pyx has the gathers of
depth-first pictures; but where every pixel stands alone they may be read here, across their planes: rows of the tile are pixels
of one plane, k steps from plane to plane, and what comes out is turned over (`pass_planes`). Arguments are trusted; arrays are
C-contiguous and of one dtype. Every number is summed in an order that depends on neither threads nor batch.
"""

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange, threadid
from libc.string cimport memset

from fastconv._kernels.gather cimport (
    AHEAD, L2_SHARE, SMALL_WORK, STREAM, Shape, beyond_caches, bytes_met, even, in_one_sweep, make_shape, one_to_one,
)
from fastconv._kernels.tiles cimport (
    DOT_ROWS, PART_OF_B, SHARES, TILE_MR, VECTOR_BYTES, Epilogue, Share, aligned, begin_task, ceil_div, copy, data, end_task,
    fetch_lines, few_pixels, find_tiles, lanes, least, make_shares, most, outer_tile, point_rows, prefetch_low, real, take,
    tile_by_columns, tile_by_rows, tile_height, tile_of_few, transpose,
)

import numpy as np

from fastconv._kernels import memory

from .tile import addresses

cnp.import_array()
find_tiles(addresses)

cdef enum:
    KEPT = 1 << 23        # bytes of packed weights that some cache keeps until they are used
    PASSING = 128         # channels of weights packed at a time where they are used once; a row more keeps panels off one cache set
    PANELS = 32           # of weights that pass by at a time at most
    STRETCH = 1 << 14     # weights that are worth a task of their own
    ABREAST = 16          # panels that are packed together at most: their filters lie side by side
    BY_PLACE = 1 << 10    # weights of a tap for which tiles with as few taps as can be are worth their pointers


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
    filters_first : weights (K, C, F, F), else (F, F, C, K)
    transposed : the weights are those of the convolution that this one is the gradient of: read with C and K exchanged
    across_planes : source and destination lie depth first; there is one tap, of stride 1, and the grid is the picture
    """
    cdef Shape s
    cdef cnp.ndarray taps
    cdef bint filters_first, transposed

    def __init__(self, tuple sizes, tuple grid, cnp.ndarray taps, Py_ssize_t window, Py_ssize_t merged, bint filters_first,
                 bint transposed, bint across_planes):
        self.s = make_shape(sizes, grid, taps, window)
        self.taps, self.filters_first, self.transposed = taps, filters_first, transposed
        self.s.merged, self.s.across_planes = merged, across_planes
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
    cdef cnp.ndarray workspace = memory.empty((most_bytes(gathers, threads, like),), "u1")
    cdef char *space = <char *> cnp.PyArray_DATA(workspace)
    cdef real *b = NULL if bias is None else data(bias, like)
    cdef Gather gather
    cdef bint fresh = True
    for gather in gathers:
        run_gather(gather, data(src, like), data(w, like), b, data(dst, like), relu, threads, <real *> space,
                   space + packed_bytes(gather, threads, like), fresh)
        fresh = False


cdef Py_ssize_t packed_bytes(Gather self, int threads, real *like) noexcept:
    return aligned(plan_chunks(&self.s, threads, like).packed * sizeof(real))


cdef Py_ssize_t gather_bytes(Gather self, int threads, real *like) noexcept:
    return packed_bytes(self, threads, like) + threads * plan_chunks(&self.s, threads, like).scratch


# ---------------------------------------------------------------- how a gather is cut
cdef struct Chunks:
    # The tasks of a gather: chunks of pixels, counted over the batch, and cuts of the panels of filters.
    Py_ssize_t panels, panel_size     # of NR filters; numbers in one
    Py_ssize_t chunk, per_image       # pixels in a chunk; pixels that chunks stay within
    Py_ssize_t per_row, chunks, cuts  # chunks within those; chunks in all
    Py_ssize_t packed, scratch        # numbers of packed weights and biases; bytes of a thread
    # Few pixels and many weights, as in a dense layer: so many panels pass by at a time, packed a stretch of channels at a time
    # by the thread that needs them; 0: they are packed once for all.
    Py_ssize_t passing
    bint in_place                     # they lie as one panel would, and are not packed
    Py_ssize_t stretches              # of a panel's channels, packed one by one where there are fewer panels than threads
    Py_ssize_t step                   # numbers from one row of weights to the next
    Py_ssize_t abreast                # panels that are packed row by row together


cdef inline bint few(Shape *s, real *like) noexcept nogil:
    """Whether there are so few filters that vectors along them would be nearly empty, and channels enough for vectors whose lanes
    are added in the end; for the sums of one tap that takes wider vectors."""
    cdef Py_ssize_t VL = lanes(like)
    return (s.groups == 1 and s.K <= DOT_ROWS and s.C >= VL and not s.merged and not s.across_planes
            and VL >= (2 if s.T > 1 else 4) * DOT_ROWS)


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
    z.abreast = 1 if s.across else most(1, least(ABREAST, s.groups * z.panels * s.T // (4 * threads)))
    z.stretches = 1
    if s.by_filters and 0 < s.groups * z.panels < threads:
        z.stretches = most(1, least(z.panel_size // STRETCH, 2 * threads // (s.groups * z.panels)))
    if z.in_place:
        z.panel_size = 0
    elif (pixels <= 24 * TILE_MR
          and s.groups * z.panels * z.panel_size * <Py_ssize_t> sizeof(real) > (KEPT if pixels <= 6 * TILE_MR else 3 * KEPT)
          and not s.merged and not s.by_filters and not s.across_planes):
        z.passing = most(1, least(PANELS, s.groups * z.panels // (2 * threads)))
    z.packed = s.groups * z.panels * (NR if z.passing else z.panel_size + NR)
    # Pixels a task: their source rows stay in cache while all panels of weights pass over them.
    unit = s.cols if s.merged else TILE_MR  # a strip is made of whole rows of the grid
    share = L2_SHARE // <Py_ssize_t> sizeof(real) // most(1, s.C * most(1, s.merged))
    z.chunk = most(unit, least(share, 24 * TILE_MR) // unit * unit)
    # Few pixels: cut the filters instead, so that a thread finds the weights that it has packed in its own cache.
    z.cuts = threads * least(4, z.panels // threads) if pixels < 24 * TILE_MR * threads and not s.merged else 1
    # So few panels that the threads cannot share them evenly go one by one, with as many chunks of pixels as there are threads.
    if z.cuts > 1 and z.panels % threads and z.panels < 8 * threads:
        z.cuts, z.chunk = z.panels, most(1, least(z.chunk, ceil_div(pixels, threads)))
    z.cuts = most(1, z.cuts)
    while z.cuts == 1 and z.chunk > unit and ceil_div(pixels, z.chunk) * s.groups < 4 * threads:
        z.chunk = most(unit, z.chunk // 2 // unit * unit)
    if not s.merged and z.cuts == 1:
        z.chunk = most(1, ceil_div(pixels, even(ceil_div(pixels, z.chunk), threads)))
    if s.by_place:
        z.chunk = ceil_div(z.chunk, s.N) * s.N
    z.per_image = s.rows * s.cols if s.merged or s.across_planes else most(1, pixels)
    if s.across_planes:  # evenly many pixels of each picture, and of few pictures so many pieces that threads can share them
        share = most(1, s.N * s.groups * ceil_div(z.per_image, z.chunk))
        share = even(share, threads) if share < 8 * threads else share
        z.chunk = most(1, ceil_div(z.per_image, ceil_div(share, most(1, s.N * s.groups))))
    z.per_row = ceil_div(z.per_image, z.chunk)
    z.chunks = z.per_row * (pixels // z.per_image)
    if s.across_planes:
        z.scratch = aligned(z.chunk * NR * sizeof(real))
        return z
    z.scratch = pixel_scratch(s, pixels if z.passing else z.chunk, like) + z.passing * (PASSING + 1) * NR * sizeof(real)
    return z


cdef run_gather(Gather self, real *src, real *w, real *bias, real *dst, bint relu, int threads, real *b, char *space,
                bint fresh):
    cdef Shape here = self.s  # a copy: several threads may run one gather at once
    cdef Shape *s = &here
    cdef Chunks z = plan_chunks(s, threads, src)
    cdef Py_ssize_t NR = 2 * lanes(src), pixels = s.N * s.rows * s.cols, i, g, c, sets = ceil_div(z.panels, most(1, z.passing))
    cdef Py_ssize_t packs = s.groups * (z.panels * z.stretches if s.by_filters and not few(s, src)
                                        else ceil_div(z.panels, z.abreast) * s.T)
    cdef Py_ssize_t tasks = z.cuts * z.chunks * s.groups
    cdef real *biases = b + z.packed - s.groups * z.panels * NR if bias != NULL else NULL
    cdef bint parallel = threads > 1 and <double> pixels * s.T * s.C * s.K * s.groups > SMALL_WORK
    cdef Share shares[SHARES]
    s.as_it_lies = one_to_one(s)
    s.stream = not s.across_planes and beyond_caches(s, src) and <size_t> dst % VECTOR_BYTES == 0 and s.K % lanes(src) == 0
    s.fetch = not s.stream and pixels * s.groups * s.K * <Py_ssize_t> sizeof(real) > L2_SHARE
    s.ahead = not s.merged and (s.T == 1 and bytes_met(s, src) > AHEAD or few(s, src) and bytes_met(s, src) > STREAM)
    if z.passing or z.in_place or s.together > s.T and not fresh:
        packs = 0
    for i in range(0 if s.across_planes else threads):
        (<Pointed *> (space + i * z.scratch))[0] = Pointed(-1, 0, 0)
    with nogil:
        if threads > 1 and (z.packed > SMALL_WORK or parallel and z.cuts * z.stretches > 1):
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
    """Task i: a group, then some panels, then a tap, or, where taps are packed all at once, a stretch of channels of one panel."""
    cdef Shape *s = &self.s
    cdef Py_ssize_t NR = 2 * lanes(w), n, g, panel, t
    if few(s, w):
        pack_few(self, w, b + i * (z.panel_size // s.T), i)
    elif s.by_filters:
        n = z.stretches
        pack_taps(self, w, b + i // n * z.panel_size, i // n // z.panels, i // n % z.panels, s.C * (i % n) // n,
                  s.C * (i % n + 1) // n)
    else:
        n = ceil_div(z.panels, z.abreast)
        g, panel, t = i // s.T // n, i // s.T % n * z.abreast, i % s.T
        pack_panels(self, w, b + ((g * z.panels + panel) * s.T + t) * s.C * NR, s.T * s.C * NR, g, panel,
                    least(z.panels, panel + z.abreast), t, 0, s.C)


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
    cdef Py_ssize_t end = least(z.panels, panel + z.passing), c = 0, first
    cdef real **a = <real **> scratch
    cdef real **target = a + blocks * s.T * TILE_MR
    cdef real *zeros = <real *> (scratch + aligned((blocks * (s.T + 1) + 1) * TILE_MR * sizeof(void *)))
    cdef real *b = <real *> (scratch + z.scratch - z.passing * (PASSING + 1) * NR * <Py_ssize_t> sizeof(real))
    cdef real *at[TILE_MR]
    cdef real *to[TILE_MR]
    cdef Epilogue e = Epilogue(NULL, 0, 0, 0, 0, 0, NULL, 0, 0)
    cdef unsigned int before = begin_task()
    memset(zeros, 0, s.C * sizeof(real))
    point_at_pixels(s, src, dst, g, 0, pixels, a, target, zeros)
    for t in range(s.T):
        c = 0
        while c < s.C:
            n = least(PASSING, s.C - c)
            e.accumulate, e.relu = t > 0 or c > 0, relu and t == s.T - 1 and c + n == s.C
            pack_panels(self, w, b, (PASSING + 1) * NR, g, panel, end, t, c, n)
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


cdef void pack_taps(Gather self, real *w, real *b, Py_ssize_t g, Py_ssize_t panel, Py_ssize_t c, Py_ssize_t c_end) noexcept nogil:
    """b[t][i][j] = weight of channel i, c <= i < c_end, and filter panel*NR + j under tap t; the taps lie side by side."""
    cdef Shape *s = &self.s
    cdef Py_ssize_t NR = 2 * lanes(w), k = panel * NR, cols = least(NR, s.K - k), t, u, i, j, n
    cdef real turned[32 * 32]  # [channel and tap][filter]
    cdef bint far = s.groups * s.K * s.C * s.window * <Py_ssize_t> sizeof(real) > L2_SHARE
    if self.transposed:  # w is (groups*C, K, F*F) with this gather's C and K
        w += ((g * s.C + c) * s.K + k) * s.window
        while c < c_end:
            if far and c + 2 < c_end:
                fetch_lines(w + 2 * s.K * s.window, cols * s.window * sizeof(real))
            for i in range(0, s.window, 32):
                n = least(32, s.window - i)
                transpose(turned, NR, w + i, s.window, cols, n)
                for u in range(s.together):
                    if i <= s.every[u] < i + n:
                        copy(b + (u * s.C + c) * NR, turned + (s.every[u] - i) * NR, cols, 1)
            w += s.K * s.window
            c += 1
        return
    w += (g * s.K + k) * s.C * s.window  # it is (groups*K, C, F*F)
    if 4 * s.T < s.window:  # so few are wanted that each is fetched by itself
        while c < c_end:
            n = least(16, c_end - c)
            for t in range(s.T):
                for j in range(cols):
                    copy(turned + j * 16, w + (j * s.C + c) * s.window + s.tap[t], n, s.window)
                transpose(b + (t * s.C + c) * NR, NR, turned, 16, cols, n)
            c += n
        return
    t, u, i = 0, 0, c * s.window
    while i < c_end * s.window:
        n = least(NR, c_end * s.window - i)
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


cdef void pack_panels(Gather self, real *w, real *b, Py_ssize_t step, Py_ssize_t g, Py_ssize_t panel, Py_ssize_t end, Py_ssize_t t,
                      Py_ssize_t c, Py_ssize_t n) noexcept nogil:
    """b[p * step + i * NR + j] = weight of channel c + i, i < n, and filter (panel + p) * NR + j under tap t, for the panels before
    `end`; past the last filter anything."""
    cdef Shape *s = &self.s
    cdef Py_ssize_t NR = 2 * lanes(w), p, i, j, cols, row = s.C if s.across else s.K
    cdef bint far = s.groups * s.K * s.C * <Py_ssize_t> sizeof(real) > L2_SHARE
    # w is (F*F, C, groups*K), or with C and K exchanged if its gather is transposed; filters first, one tap: (groups*K, C)
    w += g * s.C * s.K if self.filters_first else s.tap[t] * s.groups * s.C * s.K + g * row
    row *= 1 if self.filters_first else s.groups
    if s.across:
        for p in range(panel, end):
            cols = least(NR, s.K - p * NR)
            for j in range(cols if far else 0):  # of the next panel
                fetch_lines(w + ((p + 1) * NR + j) * row + c, n * sizeof(real))
            transpose(b + (p - panel) * step, NR, w + p * NR * row + c, row, cols, n)
        return
    w += c * row + panel * NR
    for i in range(n):
        for p in range(end - panel):
            prefetch_low(w + 24 * row + p * NR)  # several rows on their way bring more than one
            prefetch_low(w + 24 * row + p * NR + NR // 2)
            copy(b + p * step + i * NR, w + p * NR, least(NR, s.K - (panel + p) * NR), 1)
        w += row


cdef inline Py_ssize_t pixels_a_tile(Shape *s, real *like) noexcept nogil:
    if few(s, like):
        return TILE_MR // few_pixels(s.K, like) * few_pixels(s.K, like)
    if s.by_place:  # several places, or a part of one
        return TILE_MR // s.N * s.N if s.N <= TILE_MR else ceil_div(s.N, ceil_div(s.N, TILE_MR))
    return TILE_MR if s.merged else tile_height(s.stride_w * s.groups * s.C * sizeof(real))


cdef Py_ssize_t pixel_scratch(Shape *s, Py_ssize_t chunk, real *like) noexcept nogil:
    cdef Py_ssize_t itemsize = sizeof(real), blocks = ceil_div(chunk, pixels_a_tile(s, like)), runs = s.T // most(1, s.merged)
    return aligned(sizeof(Pointed)) + aligned((blocks * (runs + 1) + 1) * TILE_MR * sizeof(void *)) + aligned(
        s.groups * s.C * itemsize * (strip_rows(s, chunk // most(1, s.cols)) * strip_width(s) if s.merged else 1))


cdef Py_ssize_t strip_rows(Shape *s, Py_ssize_t rows) noexcept nogil:
    return (rows - 1) * s.stride_h + s.dh[s.T - 1] - s.dh[0] + 1


cdef Py_ssize_t strip_width(Shape *s) noexcept nogil:
    return (s.cols - 1) * s.stride_w + s.merged


cdef inline Py_ssize_t first_of(Shape *s, Py_ssize_t pixels, Py_ssize_t blocks, Py_ssize_t i) noexcept nogil:
    """The first pixel of block i: evenly many each, but of a strip as many as can be: its pointers serve shorter ones, too."""
    return least(pixels, i * TILE_MR) if s.merged else pixels * i // blocks


cdef struct Pointed:
    # What a thread's pointers are at: the next task may be of the same pixels, and of another group. A strip's are all alike.
    Py_ssize_t lo, g                  # first pixel, -1: none; group
    Py_ssize_t pixels                 # of a strip


cdef void pixel_task(Shape *s, real *src, real *b, Py_ssize_t b_step, real *bias, real *dst, bint relu, Py_ssize_t g,
                     Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t panel, Py_ssize_t panel_end, Py_ssize_t chunk,
                     char *scratch) noexcept nogil:
    """Pixels lo to hi of the grid, counted over the batch, a chunk or less, of the filters in some panels of group g."""
    if s.across_planes:
        pass_planes(s, src, b, b_step, bias, dst, relu, g, lo, hi, panel, panel_end, <real *> scratch)
        return
    if s.as_it_lies and s.rows == s.Hd and s.cols == s.Wd and s.C >= 1:
        pass_pixels(s, src, b, b_step, bias, dst, relu, g, lo, hi, panel, panel_end)
        return
    cdef Py_ssize_t NR = 2 * lanes(src), blocks = ceil_div(hi - lo, pixels_a_tile(s, src)), i, m, first, end, rows, begin = 0
    cdef Py_ssize_t runs = s.T // most(1, s.merged), length = s.C * most(1, s.merged)
    cdef Pointed *pointed = <Pointed *> scratch
    cdef real **a = <real **> (scratch + aligned(sizeof(Pointed)))
    cdef Py_ssize_t room = ceil_div(chunk, pixels_a_tile(s, src))  # blocks of a chunk
    cdef real **c = a + room * runs * TILE_MR
    cdef real **target = c + room * TILE_MR
    cdef real *rest = <real *> (<char *> a + aligned((room * (runs + 1) + 1) * TILE_MR * sizeof(void *)))
    cdef Epilogue e = Epilogue(bias, 0, 0, relu, s.stream, s.fetch, NULL, 0, 0)
    cdef unsigned int before = begin_task()
    if s.merged:
        copy_strip(s, src, lo, hi, rest)
        if pointed.pixels < hi - lo:
            point_at_strip(s, dst, hi - lo, a, c, rest)
            pointed.pixels = hi - lo
        begin = (lo // (s.rows * s.cols) * s.Hd + lo // s.cols % s.rows * s.step_h) * s.Wd * s.K
    elif pointed.lo == lo:
        shift(a, (g - pointed.g) * s.C, blocks * runs * TILE_MR)
        shift(c, (g - pointed.g) * s.K, blocks * TILE_MR)
    else:
        memset(rest, 0, s.groups * s.C * sizeof(real))
        point_at_pixels(s, src, dst, g, lo, hi, a, c, rest + g * s.C)
        for i in range(0 if few(s, src) else blocks):
            leave_out_padding(s, a + i * runs * TILE_MR, (hi - lo) * (i + 1) // blocks - (hi - lo) * i // blocks, rest + g * s.C)
    pointed.lo, pointed.g = lo, g
    while panel < panel_end:
        if bias != NULL:
            e.bias = bias + panel * NR
        first = 0
        for i in range(blocks):
            end = first_of(s, hi - lo, blocks, i + 1)
            rows = end - first
            for m in range(rows):
                target[m] = c[i * TILE_MR + m] + begin + panel * NR
            if s.ahead and panel == panel_end - 1:
                fetch_pixels(s, src, g, hi + first, rows)
            first = end
            if few(s, src):
                tile_of_few(rows, s.K, runs, length, a + i * runs * TILE_MR, b, target, &e)
            else:
                tile_by_rows(rows, runs, length, a + i * runs * TILE_MR, b + panel * s.together * s.C * NR, b_step, target,
                             least(NR, s.K - panel * NR), &e)
        panel += 1
    end_task(before)


cdef void pass_pixels(Shape *s, real *src, real *b, Py_ssize_t b_step, real *bias, real *dst, bint relu, Py_ssize_t g,
                      Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t panel, Py_ssize_t panel_end) noexcept nogil:
    """`pixel_task` where the grid is the pictures as they lie: what a tile reads and writes is counted, not looked up."""
    cdef Py_ssize_t NR = 2 * lanes(src), depth = s.groups * s.C, filters = s.groups * s.K, blocks, i, rows, q, cols
    cdef real *a[TILE_MR]
    cdef real *c[TILE_MR]
    cdef Epilogue e = Epilogue(NULL, 0, 0, relu, s.stream, s.fetch, NULL, 0, 0)
    cdef unsigned int before = begin_task()
    blocks = ceil_div(hi - lo, pixels_a_tile(s, src))
    src, dst = src + g * s.C, dst + g * s.K
    while panel < panel_end:
        e.bias = bias + panel * NR if bias != NULL else NULL
        q, cols = lo, least(NR, s.K - panel * NR)
        if in_one_sweep(s):
            outer_tile(hi - lo, s.C, src + lo * depth, depth, b + panel * s.together * s.C * NR, b_step,
                       dst + lo * filters + panel * NR, filters, cols, &e)
        for i in range(0 if in_one_sweep(s) else blocks):
            rows = (hi - q) // (blocks - i)
            point_rows(a, src + q * depth, depth, rows)
            point_rows(c, dst + q * filters + panel * NR, filters, rows)
            if s.ahead and panel == panel_end - 1:
                fetch_pixels(s, src, 0, q + hi - lo, rows)
            if few(s, src):
                tile_of_few(rows, s.K, 1, s.C, a, b, c, &e)
            else:
                tile_by_rows(rows, 1, s.C, a, b + panel * s.together * s.C * NR, b_step, c, cols, &e)
            q += rows
        panel += 1
    end_task(before)


cdef void pass_planes(Shape *s, real *src, real *b, Py_ssize_t b_step, real *bias, real *dst, bint relu, Py_ssize_t g,
                      Py_ssize_t lo, Py_ssize_t hi, Py_ssize_t panel, Py_ssize_t panel_end, real *made) noexcept nogil:
    """`pixel_task` of depth-first pictures, lo to hi within one of them. A panel's results, [pixel][filter], wait in a core's cache
    to be turned over."""
    cdef Py_ssize_t NR = 2 * lanes(src), plane = s.rows * s.cols, picture = lo // plane * s.groups + g
    cdef Py_ssize_t blocks = ceil_div(hi - lo, TILE_MR), i, rows, q, cols
    cdef real *a
    cdef real *c[TILE_MR]
    cdef Epilogue e = Epilogue(NULL, 0, 0, relu, 0, 0, NULL, plane * sizeof(real), 0)
    cdef unsigned int before = begin_task()
    src += picture * s.C * plane + lo % plane
    dst += picture * s.K * plane + lo % plane
    while panel < panel_end:
        e.bias = bias + panel * NR if bias != NULL else NULL
        q, cols = 0, least(NR, s.K - panel * NR)
        for i in range(blocks):
            rows, a = (hi - lo - q) // (blocks - i), src + q
            if s.ahead and panel == panel_end - 1:
                e.ahead = a + hi - lo
            point_rows(c, made + q * NR, NR, rows)
            tile_by_columns(rows, 1, s.C, &a, plane, b + panel * s.C * NR, b_step, c, cols, &e)
            q += rows
        transpose(dst + panel * NR * plane, plane, made, NR, hi - lo, cols)
        panel += 1
    end_task(before)


cdef inline void shift(real **pointers, Py_ssize_t by, Py_ssize_t n) noexcept nogil:
    """All but those of what is left out."""
    cdef Py_ssize_t i
    for i in range(n):
        if pointers[i] != NULL:
            pointers[i] += by


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
    """Calls for the channels of some pixels from pixel q of the grid on, counted over the batch, under the lowest tap: the
    others see what was called for rows above."""
    cdef Py_ssize_t depth = s.groups * s.C, step = s.stride_w * depth, j, i, n, row, m, t
    cdef real *at
    if s.as_it_lies and s.groups == 1:
        fetch_lines(src + q * depth, least(some, s.N * s.rows * s.cols - q) * depth * sizeof(real))
        return
    t = 0 if s.dh[0] > s.dh[s.T - 1] else s.T - 1
    j, i, n = q % s.cols, q // s.cols % s.rows, q // s.cols // s.rows
    while some > 0 and n < s.N:
        row = least(some, s.cols - j)
        at = src + ((n * s.Hs + i * s.stride_h + s.dh[t]) * s.Ws + j * s.stride_w + s.dw[t]) * depth + g * s.C
        for m in range(row):
            fetch_lines(at + m * step, s.C * sizeof(real))
        some, i, j = some - row, i + 1, 0
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
