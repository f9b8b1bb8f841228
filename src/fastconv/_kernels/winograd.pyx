"""Winograd convolution: tiles in, n*n products, tiles out, block by block in a core's cache.

    forward, grad_x (S = 1)   y = A' [sum over c of (G w G') * (B' d B)] A      F(m x m, r x r), n = m + r - 1
    grad_w                    dw = A' [sum over tiles of (G dy G') * (B' d B)] A   F(r x r, m x m) on the same tiles

F(4x4, 3x3) does 36 products where direct convolution does 144, F(4x4, 5x5) 64 for 400. grad_x is the forward with the filters
turned round and transposed.

With S=2, x falls into four phases, by odd and even rows and columns, and so do the taps: y is the sum of four convolutions with
S=1 of filters half as large, which share one result in the transformed domain; the phases of dx share one dy. A filter of odd
extent has a tap less in its odd phases; its polynomial there lacks a coefficient, so one of its values is zero, and the products
with it are left out: 121 for 4x4 results of 5x5 filters, where direct convolution does 400. A filter of even extent lacks none; if
its padding is odd, two phases of dx begin a row, or a column, above the places of the others.

A window of six or seven taps a side falls into four quarters, of its first three or four rows and columns and its last three. They
are phases, too: y is the sum of four convolutions, each of the whole picture so many pixels further on. The last three of seven
lack a coefficient: 3x3 results take 121 products, where direct convolution does 441.

A window that is a row or a column has tiles of n values along it, and of one across. With dilation, the pixels under the results
of one remainder by it are a picture of their own, without dilation.

The transforms are in winograd.h; the products are the register tile's: for each of the n*n values a matrix of tiles x channels
times one of channels x filters.

A block of tiles is transformed into V[value][slot][channel], multiplied into M[value][slot][filter] and transformed back, by one
thread, or, if they are fewer than the filters and no cache keeps these, by all of them (`blocks_together`). Tiles that an edge cuts
do without the value at 0 or at infinity (`Edge`); their slots are sorted so that each value has its tiles side by side (`Slots`).
Sums of many products are made in parts, so that their errors stay small, or for threads to share them (`parts_of`).
What crosses an edge, ends a channel vector or lies depth-first passes through a small patch, [row][column][VL channels]. Pictures
that no cache keeps are called for while the block before is multiplied (`Walk`).
Arguments are trusted; every number is summed in an order that depends on neither threads nor batch.
"""

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange, threadid
from libc.string cimport memset

from fastconv._kernels.tiles cimport (
    CACHE_LINE, SHARES, TILE_MR, VECTOR_BYTES, Epilogue, Share, aligned, begin_task, ceil_div, copy, copy_padded, data, end_task,
    fetch_lines, find_tiles, floor_div, lanes, least, make_shares, most, odd_lines, point_rows, prefetch_low, real, spread, take,
    tile_by_columns, tile_by_rows, tile_height, transpose, winograd_data, winograd_filter, winograd_result, write_weights,
)

from fastconv._kernels import memory

from .tile import addresses

cnp.import_array()
find_tiles(addresses)

cdef enum:
    U_LARGE = 12 << 20  # bytes of transformed filters that the shared cache does not keep beside the rest
    V_LARGE = 10 << 20  # bytes of transformed pictures that it keeps for all threads
    M_LARGE = 20 << 20  # bytes of products that are worth keeping, for pictures to be transformed a lot of channels at a time
    M_SHARE = 600000  # bytes of products that a core's second-level cache keeps beside filters
    STREAM = 5 << 22  # bytes of pictures that no cache keeps: results are written past them
    FEW_TILES = 2 * TILE_MR  # for which a thread would transform more filters than it saves products
    PART = 80  # channels of a part of a sum that are worth a thread
    MANY = 1 << 10  # products of a sum that is exact enough in one part,
    EIGHT_POINTS = 48  # or, of tiles of eight points a side, of a part
    SMALL_WORK = 1 << 18  # products that are done before a team of threads has started
    FILTER_ROWS = 16  # channels whose filters a task transforms
    NEAR = 256  # bytes between rows of weights that the processor fetches without being told
    CORNER = 128  # channels of a corner of grad_w at most,
    SUMS = 2400000  # and bytes of it: the larger, the fewer times pictures are transformed
    ROOM = 3900000  # bytes of those and a block of tiles
    TILES = 96  # in a block of grad_w at most: its sums pass through a core's first-level cache once for all of them
    STRETCH = 1 << 10  # bytes of a depth-last pixel that are worth the way to it
    SETS = 300000  # and bytes of the sums of so many groups

cdef struct Picture:
    # A batch of pictures as one group sees them, or one phase of each.
    Py_ssize_t H, W, depth            # depth of one group
    bint nchw
    Py_ssize_t first                  # number of the first pixel
    Py_ssize_t image, group, row, col, channel  # from one to the next
    Py_ssize_t top, left              # the pixel under place (0, 0) of the first tile; -1 if a phase of dx has none there


cdef enum:
    PHASES = 4

cdef struct Edge:
    # The last tile of an axis, if the picture ends within it. Only the first result takes the value at 0, only the last one that
    # at infinity: a tile that begins a pixel earlier, or ends past the picture, does without, and needs no products there.
    bint cuts
    Py_ssize_t shift                  # pixels by which it begins earlier
    Py_ssize_t first, end             # values that it needs, of n


cdef struct Shape:
    Picture src[PHASES]               # x; for grad_x dy
    Picture dst[PHASES]               # y; for grad_x dx
    Py_ssize_t cut                    # 2 with phases, else 1: parts of the window along an axis
    Py_ssize_t sources, targets       # phases of each
    Py_ssize_t N, groups, C, K        # C: channels of all source phases together; K: filters of one target
    Py_ssize_t nh, nw, mh, mw, rh, rw  # tile, results and filter a side
    Py_ssize_t values                 # nh * nw
    Py_ssize_t Fh, Fw, S              # rh = Fh / cut, rounded up
    Py_ssize_t tiles_h, tiles_w       # a picture
    # With dilation the pixels of every so many rows and columns are a picture of their own: apart_h * apart_w stand for each, and
    # N counts them all.
    Py_ssize_t dilation_h, dilation_w, apart_h, apart_w
    # The value that odd phases lack: that at infinity where the last tap is missing, that at 0 where it is the first. Even F: -1.
    Py_ssize_t dead_h, dead_w
    Edge bottom, right
    bint transposed                   # filters turned round, C and K exchanged: grad_x


cdef Edge edge_of(Py_ssize_t places, Py_ssize_t n, Py_ssize_t m) noexcept:
    """Of an axis with so many results."""
    cdef Py_ssize_t rest = places % m
    if rest == 0:
        return Edge(False, 0, 0, n)
    return Edge(True, 0, 0, n - 1) if rest == m - 1 else Edge(True, 1, 1, n - 1)


cdef inline bint shifted(Py_ssize_t S, Py_ssize_t F, Py_ssize_t P) noexcept:
    """Whether the phases of dx whose taps are even meet dy a place further on than the odd ones."""
    return S == 2 and F % 2 == 0 and P % 2 == 1


cdef inline Py_ssize_t places(Py_ssize_t size, Py_ssize_t dilation, Py_ssize_t S, Py_ssize_t F, Py_ssize_t P) noexcept:
    """Results along an axis, of the largest picture or phase."""
    return size // 2 + 1 if shifted(S, F, P) else ceil_div(size, dilation * S)


cdef Picture phase_of(Py_ssize_t H, Py_ssize_t W, Py_ssize_t depth, Py_ssize_t groups, bint nchw, Py_ssize_t S, Py_ssize_t h,
                      Py_ssize_t w) noexcept:
    """Every S-th pixel of pictures from pixel (h, w) on."""
    cdef Py_ssize_t channel = H * W if nchw else 1, col = 1 if nchw else groups * depth
    return Picture(ceil_div(H - h, S), ceil_div(W - w, S), depth, nchw, (h * W + w) * col, H * W * groups * depth,
                   depth * channel, S * W * col, S * col, channel, 0, 0)


cdef inline Picture picture(Shape *s, Picture *batch, Py_ssize_t n) noexcept nogil:
    """Number n of a batch. With dilation, the pixels under those of one result's remainders by it."""
    cdef Picture p = batch[0]
    cdef Py_ssize_t h, w
    if s.dilation_h * s.dilation_w > 1:
        h, w = n // s.apart_w % s.apart_h + p.top, n % s.apart_w + p.left
        n = n // (s.apart_h * s.apart_w)
        p.top, p.left = floor_div(h, s.dilation_h), floor_div(w, s.dilation_w)
        h, w = h - p.top * s.dilation_h, w - p.left * s.dilation_w
        p.first += h * p.row + w * p.col
        p.H, p.W = ceil_div(most(0, p.H - h), s.dilation_h), ceil_div(most(0, p.W - w), s.dilation_w)
        p.row, p.col = p.row * s.dilation_h, p.col * s.dilation_w
    p.first += n * p.image
    return p


@cython.final
cdef class Winograd:
    """One forward-like convolution: sizes and tiles. Made once for a problem, run many times.

    Parameters
    ----------
    sizes : (N, groups, C, K, Hs, Ws, Hd, Wd), C and K of one group
    tile : (mh, mw), 1 where F is
    window : (Fh, Fw, S, cut, P above, P at the left, dilation down, dilation to the right) of the convolution; with S=2 there
        is no dilation
    nchw : depth-first pictures and weights, else depth-last
    transposed : as for `Gather` in conv.pyx
    """
    cdef Shape s

    def __init__(self, tuple sizes, tuple tile, tuple window, bint nchw, bint transposed):
        cdef Shape *s = &self.s
        cdef Py_ssize_t C, K, Hs, Ws, Hd, Wd, above, before, f, h, w
        s.N, s.groups, C, K, Hs, Ws, Hd, Wd = sizes
        s.Fh, s.Fw, s.S, s.cut, above, before, s.dilation_h, s.dilation_w = window
        s.mh, s.mw = tile
        s.rh, s.rw = ceil_div(s.Fh, s.cut), ceil_div(s.Fw, s.cut)
        s.nh, s.nw = s.mh + s.rh - 1, s.mw + s.rw - 1
        s.values = s.nh * s.nw
        s.sources, s.targets = s.cut * s.cut, 1
        if s.S == 2 and transposed:
            s.sources, s.targets = 1, PHASES
        s.C, s.K, s.transposed = s.sources * C, K, transposed
        h = places(Hd, s.dilation_h, s.S if transposed else 1, s.Fh, above)
        w = places(Wd, s.dilation_w, s.S if transposed else 1, s.Fw, before)
        s.apart_h, s.apart_w = most(1, least(s.dilation_h, Hd)), most(1, least(s.dilation_w, Wd))
        s.N *= s.apart_h * s.apart_w
        s.tiles_h, s.tiles_w = ceil_div(h, s.mh), ceil_div(w, s.mw)
        s.bottom, s.right = edge_of(h, s.nh, s.mh), edge_of(w, s.nw, s.mw)
        s.dead_h, s.dead_w = s.nh - 1 if s.Fh % 2 else -1, s.nw - 1 if s.Fw % 2 else -1
        if s.targets == 1:
            s.dst[0] = phase_of(Hd, Wd, K, s.groups, nchw, 1, 0, 0)
        else:
            s.src[0] = phase_of(Hs, Ws, C, s.groups, nchw, 1, 0, 0)
            s.src[0].top = ceil_div(above, 2) - shifted(2, s.Fh, above) - (s.rh - 1)
            s.src[0].left = ceil_div(before, 2) - shifted(2, s.Fw, before) - (s.rw - 1)
            if s.Fh % 2:
                s.dead_h, s.dead_w = (s.nh - 1) * (above % 2), (s.nw - 1) * (before % 2)
        for f in range(most(s.sources, s.targets)):
            h, w = odd_row(s, f), odd_col(s, f)  # of the taps
            if s.targets > 1:  # & and >> are remainder and quotient, of negative numbers too
                s.dst[f] = phase_of(Hd, Wd, K, s.groups, nchw, 2, (h - above) & 1, (w - before) & 1)
                s.dst[f].top = -1 if shifted(2, s.Fh, above) and h == 0 else 0
                s.dst[f].left = -1 if shifted(2, s.Fw, before) and w == 0 else 0
            elif s.S == 2:
                s.src[f] = phase_of(Hs, Ws, C, s.groups, nchw, 2, (h - above) & 1, (w - before) & 1)
                s.src[f].top, s.src[f].left = (h - above) >> 1, (w - before) >> 1
            else:
                s.src[f] = phase_of(Hs, Ws, C, s.groups, nchw, 1, 0, 0)
                s.src[f].top = h * s.rh * s.dilation_h + (above - (s.Fh - 1) * s.dilation_h if transposed else -above)
                s.src[f].left = w * s.rw * s.dilation_w + (before - (s.Fw - 1) * s.dilation_w if transposed else -before)

    def workspace(self, Py_ssize_t itemsize, int threads):
        """Bytes that `run` allocates: transformed filters and each thread's scratch."""
        threads = team(&self.s, threads)
        return forward_bytes[float](self, threads, NULL) if itemsize == 4 else forward_bytes[double](self, threads, NULL)

    def run(self, cnp.ndarray src, cnp.ndarray w, cnp.ndarray bias, cnp.ndarray dst, bint relu, int threads):
        """Write dst; bias may be None."""
        threads = team(&self.s, threads)
        if cnp.PyArray_TYPE(dst) == cnp.NPY_FLOAT32:
            forward[float](self, src, w, bias, dst, relu, threads, NULL)
        else:
            forward[double](self, src, w, bias, dst, relu, threads, NULL)


# The phases (row, column) are (1, 0), (0, 0), (0, 1), (1, 1): in this order those of even rows lie side by side, and those of even
# columns. Of quarters the last rows and columns count as odd.
cdef inline Py_ssize_t odd_row(Shape *s, Py_ssize_t f) noexcept nogil:
    return s.cut == 2 and (f == 0 or f == 3)


cdef inline Py_ssize_t odd_col(Shape *s, Py_ssize_t f) noexcept nogil:
    return s.cut == 2 and f >= 2


cdef inline bint beyond_caches(Shape *s, real *like) noexcept nogil:
    """Whether no cache keeps the pictures."""
    return s.N // (s.apart_h * s.apart_w) * (s.src[0].image + s.dst[0].image) * <Py_ssize_t> sizeof(real) > STREAM


# ---------------------------------------------------------------- pictures and patches
cdef inline real *pixel(Picture *p, real *at, Py_ssize_t g, Py_ssize_t h, Py_ssize_t w, Py_ssize_t c) noexcept nogil:
    return at + p.first + g * p.group + h * p.row + w * p.col + c * p.channel


cdef void load_patch(Picture *p, real *at, Py_ssize_t g, Py_ssize_t h, Py_ssize_t w, Py_ssize_t rows, Py_ssize_t cols,
                     Py_ssize_t c, real *patch, bint zeros) noexcept nogil:
    """patch[i][j][lane] = channel c + lane of pixel (h + i, w + j); zeros past the last channel and, if they are not there from
    other channels, outside the picture."""
    cdef Py_ssize_t VL = lanes(at), depth = least(VL, p.depth - c), i, j
    cdef Py_ssize_t left = least(cols, most(0, -w)), right = most(left, least(cols, p.W - w))
    cdef Py_ssize_t top = least(rows, most(0, -h)), bottom = most(top, least(rows, p.H - h))
    cdef real *source
    cdef real *row
    cdef real *whole = patch + rows * cols * VL
    cdef bint by_rows = p.nchw and p.row == p.W == right - left and p.W < 2 * VL  # short rows are turned over all at once
    if by_rows:
        transpose(whole, VL, pixel(p, at, g, h + top, 0, c), p.channel, depth, (bottom - top) * p.W)
    if zeros:
        memset(patch, 0, top * cols * VL * sizeof(real))
        memset(patch + bottom * cols * VL, 0, (rows - bottom) * cols * VL * sizeof(real))
    for i in range(top, bottom):
        row = patch + i * cols * VL
        if zeros and left > 0:
            memset(row, 0, left * VL * sizeof(real))
        if zeros and right < cols:
            memset(row + right * VL, 0, (cols - right) * VL * sizeof(real))
        if p.nchw and depth < VL:
            memset(row + left * VL, 0, (right - left) * VL * sizeof(real))
        if by_rows:
            for j in range(right - left):
                copy(row + (left + j) * VL, whole + ((i - top) * p.W + j) * VL, depth, 1)
        elif p.nchw and p.col == 1:
            transpose(row + left * VL, VL, pixel(p, at, g, h + i, w + left, c), p.channel, depth, right - left)
        elif p.nchw:
            for j in range(depth):  # side by side first
                copy(whole + j * cols, pixel(p, at, g, h + i, w + left, c + j), right - left, p.col)
            transpose(row + left * VL, VL, whole, cols, depth, right - left)
        else:
            source = pixel(p, at, g, h + i, w, c)
            for j in range(left, right):
                prefetch_low(source + j * p.col + 2 * VL - 1)  # the next channels
                copy_padded(row + j * VL, source + j * p.col, depth)


cdef void store_patch(Picture *p, real *at, Py_ssize_t g, Py_ssize_t h, Py_ssize_t w, Py_ssize_t top, Py_ssize_t left,
                      Py_ssize_t rows, Py_ssize_t cols, Py_ssize_t c, real *patch) noexcept nogil:
    """The other way, from row `top` and column `left` on: what of the patch lies inside the picture is written to it."""
    cdef Py_ssize_t VL = lanes(at), depth = least(VL, p.depth - c), right = least(cols, p.W - w), bottom = least(rows, p.H - h)
    cdef Py_ssize_t i, j
    top, left = most(top, -h), most(left, -w)
    cdef real *target
    cdef real *whole = patch + rows * cols * VL
    if p.nchw and p.row == p.W == right - left and p.W < 2 * VL:
        for i in range(top, bottom):  # close the gaps between short rows, to turn them over all at once
            for j in range(left, right):
                copy(patch + ((i - top) * p.W + j - left) * VL, patch + (i * cols + j) * VL, VL, 1)
        transpose(pixel(p, at, g, h + top, 0, c), p.channel, patch, VL, (bottom - top) * p.W, depth)
        return
    for i in range(top, bottom):
        target = pixel(p, at, g, h + i, w, c)
        if p.nchw and p.col == 1:
            transpose(target + left, p.channel, patch + (i * cols + left) * VL, VL, right - left, depth)
        elif p.nchw:
            transpose(whole, cols, patch + i * cols * VL, VL, right, depth)
            for j in range(depth):
                spread(target + j * p.channel + left * p.col, whole + j * cols + left, right - left, p.col)
        else:
            for j in range(left, right):
                copy(target + j * p.col, patch + (i * cols + j) * VL, depth, 1)


cdef struct Rectangle:
    # Tiles of one picture: a piece of one row of tiles, or several whole rows.
    Py_ssize_t n, i, j                # picture, first row and first column of tiles
    Py_ssize_t rows, cols
    Py_ssize_t h, w                   # the result with which the first tile begins
    Py_ssize_t cut_rows, cut_cols     # 1 if the last row, or column, is cut by the picture's edge


cdef inline Rectangle rectangle(Shape *s, Py_ssize_t q, Py_ssize_t q_end) noexcept nogil:
    """The largest one that begins with tile q, counted over the batch, and ends before q_end."""
    cdef Rectangle a
    a.j = q % s.tiles_w
    a.i = q // s.tiles_w % s.tiles_h
    a.n = q // s.tiles_w // s.tiles_h
    a.cols = least(s.tiles_w - a.j, q_end - q)
    a.rows = 1 if a.cols < s.tiles_w else least(s.tiles_h - a.i, (q_end - q) // s.tiles_w)
    a.cut_rows = s.bottom.cuts and a.i + a.rows == s.tiles_h
    a.cut_cols = s.right.cuts and a.j + a.cols == s.tiles_w
    a.h = a.i * s.mh - (s.bottom.shift if a.i == s.tiles_h - 1 else 0)
    a.w = a.j * s.mw - (s.right.shift if a.j == s.tiles_w - 1 else 0)
    return a


cdef inline Py_ssize_t row_of(Shape *s, Rectangle *a, Py_ssize_t i) noexcept nogil:
    """Where row i of the rectangle's tiles begins, from a.h on."""
    return i * s.mh - (s.bottom.shift if 0 < i == s.tiles_h - 1 - a.i else 0)


cdef inline Py_ssize_t col_of(Shape *s, Rectangle *a, Py_ssize_t j) noexcept nogil:
    return j * s.mw - (s.right.shift if 0 < j == s.tiles_w - 1 - a.j else 0)


cdef struct Slots:
    # Where a block's tiles lie in V, D and M: those cut on the right alone, those not cut, those cut below alone, and corners.
    # In this order the tiles that need a value lie side by side, whichever it is.
    Py_ssize_t right, whole, below, corner, end


cdef inline Slots slots_of(Shape *s, Py_ssize_t q, Py_ssize_t q_end) noexcept nogil:
    """Where each kind begins in a block of tiles q to q_end, and where the last one ends."""
    cdef Slots z = Slots(0, 0, 0, 0, q_end - q)
    cdef Rectangle a
    while q < q_end:
        a = rectangle(s, q, q_end)
        z.whole += (a.rows - a.cut_rows) * a.cut_cols
        z.below += (a.rows - a.cut_rows) * a.cols
        z.corner += a.rows * a.cols - a.cut_rows * a.cut_cols
        q += a.rows * a.cols
    return z


cdef inline Py_ssize_t slot(Slots *z, Rectangle *a, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    """Of tile (i, j) of a rectangle whose first tile of each kind has the slot in z."""
    if j == a.cols - a.cut_cols:
        return z.corner if i == a.rows - a.cut_rows else z.right + i
    return z.below + j if i == a.rows - a.cut_rows else z.whole + i * (a.cols - a.cut_cols) + j


cdef inline void pass_by(Slots *z, Rectangle *a) noexcept nogil:
    """The same for the rectangle after it."""
    z.right += (a.rows - a.cut_rows) * a.cut_cols
    z.whole += (a.rows - a.cut_rows) * (a.cols - a.cut_cols)
    z.below += a.cut_rows * (a.cols - a.cut_cols)
    z.corner += a.cut_rows * a.cut_cols


cdef inline void tiles_with(Shape *s, Slots *z, Py_ssize_t value, Py_ssize_t *lo, Py_ssize_t *hi) noexcept nogil:
    """The slots of the tiles that need a value."""
    cdef bint below = s.bottom.first <= value // s.nw < s.bottom.end, right = s.right.first <= value % s.nw < s.right.end
    lo[0] = z.right if right else z.whole
    hi[0] = z.below if not below else z.end if right else z.corner


cdef inline Py_ssize_t patch_size(Shape *s, Py_ssize_t tiles, real *like) noexcept nogil:
    """Numbers that the patch of any rectangle of so many tiles takes, with room to turn short rows over."""
    cdef Py_ssize_t cols = least(tiles, s.tiles_w), rows = most(1, least(tiles // cols, s.tiles_h))
    return 2 * (rows * s.mh + s.nh - s.mh) * (cols * s.mw + s.nw - s.mw) * lanes(like)


cdef struct Walk:
    # Over the pixels of a block of tiles to come: their cache lines are called for, a few at a time, while others are multiplied.
    Shape *s
    Picture *batch
    Py_ssize_t g, c, c_end            # group, and channels of it
    Py_ssize_t q, q_end               # tiles in rectangles that are left
    Py_ssize_t lines                  # of a step; none if some cache keeps the pictures
    Py_ssize_t run, runs, inner       # stretches of a rectangle: the next one, all, and those of one row or, depth first, channel
    Py_ssize_t bytes, down, along     # of a stretch, from one row or channel to the next, and from one stretch in it to the next
    char *first
    char *at                          # what is left of the last stretch
    char *end


cdef Walk walk_over(Shape *s, Picture *batch, real *at, Py_ssize_t g, Py_ssize_t q, Py_ssize_t q_end, Py_ssize_t c,
                    Py_ssize_t c_end, Py_ssize_t steps) noexcept nogil:
    """In so many steps, of tiles that take twice as many pixels as they give results; what is beyond that is left out."""
    cdef Walk k
    cdef Py_ssize_t pixel
    memset(&k, 0, sizeof(Walk))
    k.s, k.batch, k.g, k.c, k.c_end, k.q, k.q_end = s, batch, g, c, c_end, q, q_end
    if beyond_caches(s, at):
        pixel = (c_end - c) * sizeof(real) + (CACHE_LINE if batch.col > c_end - c else 0)
        k.lines = ceil_div(2 * (q_end - q) * s.mh * s.mw * pixel, CACHE_LINE * most(1, steps))
    return k


cdef Walk walk_over_filters(Shape *s, real *w, Py_ssize_t g, Py_ssize_t f, Py_ssize_t width, Py_ssize_t c, Py_ssize_t c_end,
                            Py_ssize_t steps) noexcept nogil:
    """Over the weights of some filters from f on and channels c to c_end, depth first, (groups*K, C, taps), if no cache keeps all
    weights: they are so many stretches at once that the processor does not guess how they go on. In other orders it does."""
    cdef Walk k
    cdef Py_ssize_t each = s.Fh * s.Fw * sizeof(real)
    memset(&k, 0, sizeof(Walk))
    if s.dst[0].nchw and not s.transposed and s.sources == 1 and s.groups * s.K * s.C * each > STREAM:
        k.runs = k.inner = most(0, least(width, s.K - f))
        k.first, k.bytes, k.along = <char *> w + ((g * s.K + f) * s.C + c) * each, (c_end - c) * each, s.C * each
        k.lines = ceil_div(k.runs * ceil_div(k.bytes, CACHE_LINE), steps)
    return k


cdef void next_rectangle(Walk *k, real *at) noexcept nogil:
    cdef Shape *s = k.s
    cdef Rectangle a = rectangle(s, k.q, k.q_end)
    cdef Picture p = picture(s, k.batch, a.n)
    cdef Py_ssize_t h = a.h + p.top, w = a.w + p.left, rows, cols, before
    rows = most(0, least(p.H, h + a.rows * s.mh + s.nh - s.mh) - most(0, h))
    cols = most(0, least(p.W, w + a.cols * s.mw + s.nw - s.mw) - most(0, w))
    k.q += a.rows * a.cols
    k.first, k.run = <char *> pixel(&p, at, k.g, most(0, h), most(0, w), k.c), 0
    if p.nchw:
        k.runs, k.inner, k.bytes, k.down, k.along = (k.c_end - k.c) * rows, rows, cols * p.col, p.channel, p.row
    elif p.col == k.c_end - k.c:  # pixels lie side by side
        k.runs, k.inner, k.bytes, k.down, k.along = rows, 1, cols * p.col, p.row, 0
    else:
        k.runs, k.inner, k.bytes, k.down, k.along = rows * cols, cols, k.c_end - k.c, p.row, p.col
    k.bytes, k.down, k.along = k.bytes * sizeof(real), k.down * sizeof(real), k.along * sizeof(real)
    if not p.nchw and p.col > k.c_end - k.c:  # a pixel's channels seldom begin with a line
        before = <size_t> k.first % CACHE_LINE
        k.first, k.bytes = k.first - before, k.bytes + before


cdef inline void walk(Walk *k, real *at) noexcept nogil:
    """One step."""
    for _ in range(k.lines):
        while k.at >= k.end:
            if k.run < k.runs:
                k.at = k.first + k.run // k.inner * k.down + k.run % k.inner * k.along
                k.end, k.run = k.at + k.bytes, k.run + 1
            elif k.q < k.q_end:
                next_rectangle(k, at)
            else:
                k.lines = 0
                return
        prefetch_low(k.at)
        k.at += CACHE_LINE


cdef void transform_data(Shape *s, Picture *batch, bint gradient, real *at, Py_ssize_t g, Py_ssize_t q, Py_ssize_t q_end,
                         Py_ssize_t c, Py_ssize_t c_end, real *V, Py_ssize_t ld, Py_ssize_t step, real *patch) noexcept nogil:
    """V[value * step + slot * ld + channel - c] of tiles q to q_end and channels c to c_end: B' d B of the n x n pixels under each
    tile, or, of a `gradient`, G d G' of the m x m pixels in it that no tile before it has."""
    cdef Py_ssize_t VL = lanes(at), i, j, v, b, h, w, row, col, rows, cols, above, before
    cdef Rectangle a
    cdef Picture p
    cdef Slots z = slots_of(s, q, q_end)
    cdef Walk k
    cdef real *d
    cdef real *of
    cdef real *to
    while q < q_end:
        a = rectangle(s, q, q_end)
        p = picture(s, batch, a.n)
        h, w = a.h + p.top, a.w + p.left
        rows, cols = (a.rows - 1) * s.mh + (s.mh if gradient else s.nh), (a.cols - 1) * s.mw + (s.mw if gradient else s.nw)
        if not p.nchw and beyond_caches(s, at):  # what is not there yet
            k = walk_over(s, batch, at, g, q, q + a.rows * a.cols, c, c_end, 1)
            walk(&k, at)
        for v in range(ceil_div(c_end - c, VL)):
            b = c + v * VL
            if not p.nchw and b + VL <= p.depth and h >= 0 and w >= 0 and h + rows <= p.H and w + cols <= p.W:
                d, col, row = pixel(&p, at, g, h, w, b), p.col, p.row
            else:
                load_patch(&p, at, g, h, w, rows, cols, b, patch, v == 0)
                d, col, row = patch, VL, cols * VL
            for i in range(a.rows):
                above = s.bottom.shift if i == a.rows - a.cut_rows else 0
                for j in range(a.cols):
                    before = s.right.shift if j == a.cols - a.cut_cols else 0
                    of, to = d + row_of(s, &a, i) * row + col_of(s, &a, j) * col, V + slot(&z, &a, i, j) * ld + b - c
                    if gradient:
                        winograd_filter(<int> s.nh, <int> s.mh, <int> s.nw, <int> s.mw, of, row, col, to, step, <int> above,
                                        <int> before)
                    else:
                        winograd_data(<int> s.nh, <int> s.nw, of, row, col, to, step)
        pass_by(&z, &a)
        q += a.rows * a.cols


cdef void transform_results(Shape *s, Picture *batch, real *dst, Py_ssize_t g, Py_ssize_t q, Py_ssize_t q_end, Py_ssize_t k,
                            Py_ssize_t k_end, real *M, Py_ssize_t ld, Py_ssize_t step, real *bias, bint relu,
                            real *patch) noexcept nogil:
    """Write filters k to k_end of tiles q to q_end from M[value * step + slot * ld + filter - k]."""
    cdef Py_ssize_t VL = lanes(dst), v, c, rows, cols, top, left
    cdef Rectangle a
    cdef Picture p
    cdef Slots z = slots_of(s, q, q_end)
    cdef bint stream = beyond_caches(s, dst) and <size_t> dst % VECTOR_BYTES == 0 and batch.depth % VL == 0
    while q < q_end:
        a = rectangle(s, q, q_end)
        p = picture(s, batch, a.n)
        # Tiles that the picture's edge does not cut; a phase of dx may begin or end within those of the largest one.
        top, left = 1 if a.h + p.top < 0 else 0, 1 if a.w + p.left < 0 else 0
        rows = most(top, least(a.rows - a.cut_rows, most(0, p.H - a.h - p.top) // s.mh))
        cols = most(left, least(a.cols - a.cut_cols, most(0, p.W - a.w - p.left) // s.mw))
        for v in range(ceil_div(k_end - k, VL)):
            c = k + v * VL
            if p.nchw or c + VL > p.depth:
                top = rows = left = cols = 0
            put_results(s, &p, dst, g, &a, &z, top, rows, left, cols, c, M + v * VL, ld, step, bias, relu, True, stream, patch)
            put_results(s, &p, dst, g, &a, &z, 0, top, 0, a.cols, c, M + v * VL, ld, step, bias, relu, False, False, patch)
            put_results(s, &p, dst, g, &a, &z, top, rows, 0, left, c, M + v * VL, ld, step, bias, relu, False, False, patch)
            put_results(s, &p, dst, g, &a, &z, top, rows, cols, a.cols, c, M + v * VL, ld, step, bias, relu, False, False, patch)
            put_results(s, &p, dst, g, &a, &z, rows, a.rows, 0, a.cols, c, M + v * VL, ld, step, bias, relu, False, False, patch)
        pass_by(&z, &a)
        q += a.rows * a.cols


cdef void put_results(Shape *s, Picture *p, real *dst, Py_ssize_t g, Rectangle *a, Slots *z, Py_ssize_t i, Py_ssize_t i_end,
                      Py_ssize_t j, Py_ssize_t j_end, Py_ssize_t c, real *M, Py_ssize_t ld, Py_ssize_t step, real *bias, bint relu,
                      bint direct, bint stream, real *patch) noexcept nogil:
    """The same of VL filters from c on and some rows and columns of a rectangle, written `direct` to the picture, or to a patch."""
    cdef Py_ssize_t VL = lanes(dst), h = a.h + row_of(s, a, i), w = a.w + col_of(s, a, j), row, col, u, v
    cdef Py_ssize_t rows = (i_end - i) * s.mh, cols = (j_end - j) * s.mw
    cdef real *y = patch
    if i == i_end or j == j_end:
        return
    if direct:
        y, col, row = pixel(p, dst, g, h + p.top, w + p.left, c), p.col, p.row
    else:
        col, row = VL, cols * VL
    # A tile that begins a pixel earlier is written over there by the tile before it: so the last one comes first.
    for u in range(i_end - 1, i - 1, -1):
        for v in range(j_end - 1, j - 1, -1):
            winograd_result(<int> s.nh, <int> s.mh, <int> s.nw, <int> s.mw, M + slot(z, a, u, v) * ld, step,
                            y + (a.h + row_of(s, a, u) - h) * row + (a.w + col_of(s, a, v) - w) * col, row, col,
                            bias + c if bias != NULL else NULL, relu, stream)
    if not direct:
        store_patch(p, dst, g, h + p.top, w + p.left, (a.i + i) * s.mh - h, (a.j + j) * s.mw - w, rows, cols, c, patch)


# ---------------------------------------------------------------- forward and grad_x
cdef struct Blocks:
    Py_ssize_t tiles                  # in a block
    Py_ssize_t channels, chunks       # of all phases, that lie side by side in V, and stretches of so many
    Py_ssize_t part                   # channels of a part of a sum, which begins anew and is added to the ones before it
    bint by_chunks                    # a task has one part, where few tiles and one panel leave no other cut
    Py_ssize_t ld                     # from slot to slot of V: those, rounded up to whole vectors
    Py_ssize_t width                  # of a panel of filters: two vectors, or one if that is enough
    Py_ssize_t panels                 # of one target
    Py_ssize_t panels_at_once         # that M holds
    Py_ssize_t u_panel, u_step        # numbers from panel to panel and from value to value of U
    Py_ssize_t v_step, v_chunk        # from value to value and from chunk to chunk of V
    Py_ssize_t v_own, m_step          # of a thread's own V, and from value to value of M
    Py_ssize_t patch
    Py_ssize_t scratch                # bytes a thread
    # Few tiles: the panels are cut among the threads, not the tiles, so that a thread finds the filters that it has transformed in
    # its own cache; a thread's into so many tasks, so that another may help it out.
    Py_ssize_t cuts, tasks            # 1, or those of all threads; of one
    # U may be too large for the shared cache, or a thread has one block only, and it takes longer to fetch filters from another
    # core's cache than to transform them: then each task transforms the filters that it needs, a chunk of channels at a time.
    bint fused
    # Where U is too large, and larger than V, the shared cache keeps the V of so many blocks at once, for all threads: a block then
    # has many tiles, and filters are transformed once for all of them. 0: a thread transforms the pictures that it needs.
    Py_ssize_t together
    Py_ssize_t lot                    # chunks at once: all, or as many of a too large V as are kept beside M of all filters


cdef int team(Shape *s, int threads) noexcept nogil:
    """Threads that the work is worth."""
    return threads if <double> s.N * s.tiles_h * s.tiles_w * s.groups * s.C * s.K * s.values > SMALL_WORK else 1


cdef inline Py_ssize_t even_chunk(Py_ssize_t channels, Py_ssize_t chunks) noexcept nogil:
    """Channels of each of so many chunks: whole tasks of filters."""
    return ceil_div(ceil_div(channels, chunks), FILTER_ROWS) * FILTER_ROWS


cdef Py_ssize_t parts_of(Shape *s, Py_ssize_t panels, Py_ssize_t channels) noexcept nogil:
    """Parts of a sum, each of which begins anew, by nothing but the layer: of many products, for it to be exact enough; of one
    panel, for threads to share it. `channels`: of a part at most."""
    cdef Py_ssize_t parts = ceil_div(s.C, EIGHT_POINTS) if s.nh == s.nw == 8 else 1
    cdef bint lone = panels == s.groups == s.sources == 1 and s.C >= 2 * PART and s.tiles_h * s.tiles_w <= FEW_TILES
    if s.C > MANY or lone:
        parts = most(parts, ceil_div(s.C, channels))
    if lone:
        parts = most(ceil_div(parts, 2) * 2, 4 if s.C >= 8 * PART else 2)
    return most(1, parts)


cdef Blocks plan_blocks(Shape *s, int threads, real *like) noexcept nogil:
    cdef Blocks z
    cdef Py_ssize_t VL = lanes(like), NR = VL if s.K <= VL else 2 * VL, each = s.values * <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t total = s.N * s.tiles_h * s.tiles_w, depth = s.src[0].depth, panels, chunk
    z.width, z.panels = NR, ceil_div(s.K, NR)
    panels = s.targets * z.panels
    z.panels_at_once = least(z.panels, most(1, 64 // VL))
    z.u_panel = s.C * NR
    z.u_step = odd_lines(panels * z.u_panel, like)
    z.together = s.groups * z.u_step * each > U_LARGE and total <= panels * NR and panels * s.groups > 1
    z.cuts = z.tasks = 1
    if not z.together and threads > 1 and total < 4 * TILE_MR * threads and (panels >= 2 * threads or panels == threads):
        z.tasks = least(4, panels // threads)
        z.cuts = threads * z.tasks
    # A chunk whose filters a core's second-level cache keeps beside the rest.
    chunk = most(FILTER_ROWS, 400000 // (each * NR) // FILTER_ROWS * FILTER_ROWS)
    z.part = most(1, even_chunk(s.C, parts_of(s, panels, chunk)))
    z.by_chunks = z.part < s.C and panels == s.groups == s.sources == 1 < threads and total <= FEW_TILES
    z.fused = (z.together or z.cuts > 1 and total <= 4 * TILE_MR
               or (threads == 1 or z.panels == 1) and total <= 4 * TILE_MR * threads)
    z.channels = s.C
    if z.fused:
        z.channels = least(s.C, z.part if z.part < s.C else even_chunk(depth, most(1, ceil_div(depth, chunk))))
        z.panels_at_once, z.u_panel = 1, 0
        z.u_step = odd_lines(z.channels * NR, like)
    z.chunks = most(1, ceil_div(s.C, most(1, z.channels)))
    z.ld = row_of_v(s, z.channels, like)
    z.tiles = most(1, total if z.by_chunks else block_tiles(s, &z, total, threads, each))
    z.v_step = odd_lines(z.tiles * z.ld, like)
    z.v_chunk = s.values * z.v_step
    z.v_own = 0 if z.together else z.v_chunk if z.by_chunks else z.chunks * z.v_chunk
    z.m_step = odd_lines(z.tiles * z.panels_at_once * NR, like)
    z.lot = 1 if z.by_chunks else z.chunks
    if z.together:
        z.together = V_LARGE // <Py_ssize_t> sizeof(real) // (z.chunks * z.v_chunk)
        z.together = least(z.together, s.groups * ceil_div(total, z.tiles))
        if z.together == 0:
            z.together = 1
            z.lot = most(1, V_LARGE // 2 // <Py_ssize_t> sizeof(real) // z.v_chunk)
            z.lot = ceil_div(z.chunks, ceil_div(z.chunks, z.lot))  # even
    z.patch = patch_size(s, z.tiles, like)
    z.scratch = (z.v_own + s.values * (z.m_step + (z.u_step if z.fused else 0)) + z.patch) * sizeof(real)
    z.scratch = aligned(z.scratch + sizeof(Py_ssize_t))
    return z


cdef Py_ssize_t block_tiles(Shape *s, Blocks *z, Py_ssize_t total, int threads, Py_ssize_t each) noexcept nogil:
    """How many tiles of `total` a block has, of so many bytes a channel or filter."""
    cdef Py_ssize_t tile = each * (z.chunks * z.ld + z.panels_at_once * z.width), tiles, alone, rounds
    if z.together:
        tiles = least(total, M_SHARE // z.width // each)
        if tiles * each * s.targets * z.panels * z.width > M_LARGE:
            tiles = least(tiles, V_LARGE // (z.chunks * z.ld) // each)
        tiles = most(TILE_MR, least(tiles, total * s.groups * s.targets * z.panels // (2 * threads)))  # two tasks a thread
        return ceil_div(total, most(1, ceil_div(total, tiles)))
    # A block of V and M should stay in the second-level cache, but each block reads all of U again.
    tiles = most((4 if z.fused else 2) * TILE_MR, least(4 * TILE_MR, 600000 // tile // TILE_MR * TILE_MR))
    while tiles > TILE_MR and tiles * tile > 3300000:
        tiles -= TILE_MR
    # Evenly many tiles a block, and a number of blocks that the threads can share.
    alone = 1 if z.cuts > 1 else threads
    rounds = ceil_div(total, tiles * alone)
    return least(tiles, ceil_div(total, most(1, rounds * alone)))


cdef inline Py_ssize_t row_of_v(Shape *s, Py_ssize_t channels, real *like) noexcept nogil:
    """Numbers that so many channels take of all phases: the last vector of a phase reaches into the next one, or past the last."""
    cdef Py_ssize_t VL = lanes(like), depth = s.src[0].depth, past = ceil_div(depth, VL) * VL - depth, size
    if channels < s.C and s.sources > 1 and past:
        past = VL - 1  # a chunk may end anywhere in a phase
    size = ceil_div(channels + past, VL) * VL
    return size + VL if tile_height(size * sizeof(real)) < TILE_MR else size


cdef inline Py_ssize_t shared_numbers(Shape *s, Blocks *z) noexcept nogil:
    """Of one group's U, or of an M for each chunk."""
    return s.values * (z.chunks * z.m_step if z.by_chunks else 0 if z.fused else z.u_step)


cdef Py_ssize_t forward_bytes(Winograd self, int threads, real *like):
    cdef Shape *s = &self.s
    cdef Blocks z = plan_blocks(s, threads, like)
    cdef Py_ssize_t shared = shared_numbers(s, &z)
    shared = s.groups * (shared + z.panels * z.width) + z.together * z.lot * z.v_chunk
    if z.lot < z.chunks:
        shared += s.targets * z.panels * s.values * z.m_step
    return shared * sizeof(real) + threads * z.scratch


cdef forward(Winograd self, cnp.ndarray src, cnp.ndarray w, cnp.ndarray bias, cnp.ndarray dst, bint relu, int threads,
             real *like):
    cdef Shape *s = &self.s
    cdef Blocks z = plan_blocks(s, threads, like)
    cdef Py_ssize_t NR = z.width, total = s.N * s.tiles_h * s.tiles_w, i, g, k
    cdef Py_ssize_t blocks = ceil_div(total, z.tiles), tasks = z.cuts * blocks * s.groups
    cdef Py_ssize_t shared = shared_numbers(s, &z), filters = s.groups * s.targets * z.panels * ceil_div(s.C, FILTER_ROWS)
    cdef cnp.ndarray workspace = memory.empty((forward_bytes(self, threads, like),), "u1")
    cdef char *space = <char *> cnp.PyArray_DATA(workspace)
    cdef real *U = <real *> (space + threads * z.scratch)
    cdef real *V = U + s.groups * (shared + z.panels * NR)  # of all threads together
    cdef real *biases = U + s.groups * shared if bias is not None else NULL
    cdef real *given = data(bias, like) if bias is not None else NULL
    cdef real *x = data(src, like)
    cdef real *y = data(dst, like)
    cdef real *weights = data(w, like)
    cdef bint parallel = threads > 1
    cdef Share shares[SHARES]
    cdef unsigned int before
    with nogil:
        for i in range(threads):
            held(&z, space + i * z.scratch)[0] = -1
        if not z.fused and parallel:
            make_shares(shares, threads, filters)
            for _ in prange(filters, num_threads=threads, schedule="dynamic"):
                filter_task(s, &z, weights, U, take(shares, threads, threadid()))
        elif not z.fused:
            for i in range(filters):
                filter_task(s, &z, weights, U, i)
        if biases != NULL:
            for i in range(s.groups * z.panels * NR):
                g, k = i // (z.panels * NR), i % (z.panels * NR)
                biases[i] = given[g * s.K + k] if k < s.K else 0
        if z.together:
            blocks_together(s, &z, x, weights, V, biases, y, relu, blocks, threads, space)
        elif not parallel:  # a region of one thread costs as much as a small block
            for i in range(tasks):
                block_task(s, &z, x, weights, U, biases, y, relu, i, blocks, space)
        elif z.by_chunks:
            make_shares(shares, threads, z.chunks)
            for _ in prange(z.chunks, num_threads=threads, schedule="dynamic"):
                chunk_task(s, &z, x, weights, U, y, take(shares, threads, threadid()), space + threadid() * z.scratch)
            before = begin_task()
            for i in range(1, z.chunks):
                for k in range(s.values * z.m_step):
                    U[k] += U[i * s.values * z.m_step + k]
            transform_results(s, &s.dst[0], y, 0, 0, total, 0, s.K, U, NR, z.m_step, biases, relu, <real *> space)
            end_task(before)
        else:
            make_shares(shares, threads, tasks)
            for _ in prange(tasks, num_threads=threads, schedule="dynamic"):
                block_task(s, &z, x, weights, U, biases, y, relu, take(shares, threads, threadid()), blocks,
                           space + threadid() * z.scratch)


cdef inline Py_ssize_t *held(Blocks *z, char *scratch) noexcept nogil:
    """Which tiles and group a thread's V is of, by its first one: the next task may need it again."""
    return <Py_ssize_t *> (scratch + z.scratch) - 1


cdef void block_task(Shape *s, Blocks *z, real *src, real *w, real *U, real *biases, real *dst, bint relu, Py_ssize_t i,
                     Py_ssize_t blocks, char *scratch) noexcept nogil:
    """Task i: a thread's cuts, then a group, whose filters stay in cache, then a block of the tiles, then one of the cuts."""
    cdef Py_ssize_t total = s.N * s.tiles_h * s.tiles_w, panels = s.targets * z.panels, at = i // z.tasks
    cdef Py_ssize_t g = at // blocks % s.groups, block = at % blocks, cut = at // s.groups // blocks * z.tasks + i % z.tasks
    cdef Py_ssize_t q = total * block // blocks, q_end = total * (block + 1) // blocks
    cdef real *V = <real *> scratch
    cdef real *M = V + z.v_own
    if held(z, scratch)[0] != q * s.groups + g:
        transform_pictures(s, z, src, g, q, q_end, 0, s.C, V, M + s.values * z.m_step)
    held(z, scratch)[0] = q * s.groups + g
    multiply_block(s, z, src, w, U + (0 if z.fused else g * s.values * z.u_step), V, M, M + s.values * z.m_step,
                   biases + g * z.panels * z.width if biases != NULL else NULL, dst, relu, g, q, q_end, panels * cut // z.cuts,
                   panels * (cut + 1) // z.cuts, 0)


cdef void chunk_task(Shape *s, Blocks *z, real *src, real *w, real *M, real *dst, Py_ssize_t chunk, char *scratch) noexcept nogil:
    """Task `chunk`: the products of its channels, of all tiles and of the only panel, in an M of its own."""
    cdef Py_ssize_t total = s.N * s.tiles_h * s.tiles_w, c = chunk * z.channels
    cdef real *V = <real *> scratch
    cdef real *patch = V + z.v_own + s.values * z.m_step
    transform_pictures(s, z, src, 0, 0, total, c, least(s.C, c + z.channels), V, patch)
    multiply_block(s, z, src, w, NULL, V, M + chunk * s.values * z.m_step, patch, NULL, dst, False, 0, 0, total, 0, 1, chunk)


cdef void blocks_together(Shape *s, Blocks *z, real *src, real *w, real *V, real *biases, real *dst, bint relu, Py_ssize_t blocks,
                          int threads, char *space) noexcept nogil:
    """All blocks of all groups, as many at once as V holds: first their pictures, then a panel of filters a task."""
    cdef Py_ssize_t at = 0, chunk = 0, n, chunks
    cdef Share shares[SHARES]
    while at < s.groups * blocks:
        n, chunks = least(z.together, s.groups * blocks - at), least(z.lot, z.chunks - chunk)
        make_shares(shares, threads, n * chunks)
        for _ in prange(n * chunks, num_threads=threads, schedule="dynamic", use_threads_if=threads > 1):
            picture_task(s, z, src, V, take(shares, threads, threadid()), at, n, blocks, chunk, space + threadid() * z.scratch)
        make_shares(shares, threads, n * s.targets * z.panels)
        for _ in prange(n * s.targets * z.panels, num_threads=threads, schedule="dynamic", use_threads_if=threads > 1):
            panel_task(s, z, src, w, V, biases, dst, relu, take(shares, threads, threadid()), at, n, blocks, chunk,
                       space + threadid() * z.scratch)
        chunk += chunks
        if chunk == z.chunks:
            at, chunk = at + n, 0


cdef void picture_task(Shape *s, Blocks *z, real *src, real *V, Py_ssize_t i, Py_ssize_t at, Py_ssize_t n, Py_ssize_t blocks,
                       Py_ssize_t chunk, char *scratch) noexcept nogil:
    """Task i: one of a lot's chunks, from `chunk` on, then one of the n blocks, counted over the groups, from `at` on."""
    cdef Py_ssize_t total = s.N * s.tiles_h * s.tiles_w, block = (at + i % n) % blocks, c = (chunk + i // n) * z.channels
    transform_pictures(s, z, src, (at + i % n) // blocks, total * block // blocks, total * (block + 1) // blocks, c,
                       least(s.C, c + z.channels), V + (i % n * z.lot + i // n) * z.v_chunk,
                       <real *> scratch + s.values * z.m_step)


cdef void panel_task(Shape *s, Blocks *z, real *src, real *w, real *V, real *biases, real *dst, bint relu, Py_ssize_t i,
                     Py_ssize_t at, Py_ssize_t n, Py_ssize_t blocks, Py_ssize_t chunk, char *scratch) noexcept nogil:
    """Task i: a panel of filters, then one of those blocks."""
    cdef Py_ssize_t total = s.N * s.tiles_h * s.tiles_w, block = (at + i % n) % blocks, g = (at + i % n) // blocks
    cdef real *M = <real *> scratch
    cdef real *patch = M + s.values * z.m_step
    if z.lot < z.chunks:
        M = V + z.lot * z.v_chunk + i * s.values * z.m_step
    multiply_block(s, z, src, w, NULL, V + i % n * z.lot * z.v_chunk, M, patch,
                   biases + g * z.panels * z.width if biases != NULL else NULL, dst, relu, g, total * block // blocks,
                   total * (block + 1) // blocks, i // n, i // n + 1, chunk)


cdef void transform_pictures(Shape *s, Blocks *z, real *src, Py_ssize_t g, Py_ssize_t q, Py_ssize_t q_end, Py_ssize_t c,
                             Py_ssize_t c_end, real *V, real *patch) noexcept nogil:
    """V[chunk][value][slot][channel] of tiles q to q_end, channels c to c_end, counted over the source phases, of whole chunks."""
    cdef Py_ssize_t C = s.src[0].depth, end, chunk_end, at
    cdef unsigned int before = begin_task()
    while c < c_end:
        chunk_end, at = least(c_end, c + z.channels), c
        while c < chunk_end:  # one phase after the other: what follows its last channel is the next one's
            end = least(chunk_end, (c // C + 1) * C)
            transform_data(s, &s.src[c // C], False, src, g, q, q_end, c % C, c % C + end - c, V + c - at, z.ld, z.v_step,
                           patch)
            c = end
        V += z.v_chunk
    end_task(before)


cdef void filter_task(Shape *s, Blocks *z, real *w, real *U, Py_ssize_t i) noexcept nogil:
    """Task i: a group, then a panel of filters, then some of its channels."""
    cdef Py_ssize_t tasks = ceil_div(s.C, FILTER_ROWS), panels = s.targets * z.panels
    cdef Py_ssize_t g = i // tasks // panels, panel = i // tasks % panels, c = i % tasks * FILTER_ROWS
    transform_filters(s, z, w, U + g * s.values * z.u_step + panel * z.u_panel + c * z.width, g, panel, c,
                      least(s.C, c + FILTER_ROWS))


cdef void transform_filters(Shape *s, Blocks *z, real *w, real *U, Py_ssize_t g, Py_ssize_t panel, Py_ssize_t c,
                            Py_ssize_t c_end) noexcept nogil:
    """U[value][channel - c][filter] = G w G' of channels c to c_end (at most FILTER_ROWS), counted over the source phases, and one
    panel of filters, counted over the target phases."""
    cdef Py_ssize_t VL = lanes(w), C = s.src[0].depth, f, k, n, v, half
    cdef unsigned int before = begin_task()
    while c < c_end:
        f = c // C + panel // z.panels
        n = least(c_end, (c // C + 1) * C) - c
        for half in range(z.width // VL):
            k = panel % z.panels * z.width + half * VL
            if k < s.K:
                transform_vector(s, z, w, U + half * VL, g, f, k, c % C, n)
            else:
                for v in range(s.values * n):
                    memset(U + v // n * z.u_step + v % n * z.width + half * VL, 0, VL * sizeof(real))
        U += n * z.width
        c += n
    end_task(before)


cdef void transform_vector(Shape *s, Blocks *z, real *w, real *U, Py_ssize_t g, Py_ssize_t f, Py_ssize_t k, Py_ssize_t c,
                           Py_ssize_t n) noexcept nogil:
    """The same of VL filters from k on and n channels of phase f."""
    cdef Py_ssize_t VL = lanes(w), taps = s.Fh * s.Fw, C = s.src[0].depth, K = s.K, depth = least(VL, K - k), i, t
    cdef real turned[FILTER_ROWS * 49 * 16]  # [channel][tap][lane]
    cdef real some[16 * 16]                  # [tap of the phase][lane]
    cdef Py_ssize_t last = (taps - 1) * VL if s.transposed else 0, sign = -1 if s.transposed else 1
    cdef Py_ssize_t row = s.groups * (C if s.transposed else K)  # of depth-last weights: (taps, C or K, row)
    cdef real *at = w + (k * row + g * C + c if s.transposed else c * row + g * K + k)
    if (s.cut == 1 and not s.transposed and not s.dst[0].nchw
            and at + ((taps - 1) * C + n - 1) * row + VL <= w + taps * C * row):  # lanes past the last filter: the next row's
        for i in range(n):
            for t in range(taps if row * <Py_ssize_t> sizeof(real) > NEAR else 0):
                fetch_lines(at + (t * C + i + FILTER_ROWS) * row, VECTOR_BYTES)
            winograd_filter(<int> s.nh, <int> s.rh, <int> s.nw, <int> s.rw, at + i * row, s.rw * C * row, C * row,
                            U + i * z.width, z.u_step, 0, 0)
        return
    if s.dst[0].nchw and not s.transposed:    # w is (groups*K, C, taps)
        transpose(turned, VL, w + ((g * K + k) * C + c) * taps, C * taps, depth, n * taps)
    elif s.dst[0].nchw:                       # w is (groups*C, K, taps)
        for i in range(n):
            fetch_lines(w + ((g * C + c + i + 4) * K + k) * taps, depth * taps * sizeof(real))
            transpose(turned + i * taps * VL, VL, w + ((g * C + c + i) * K + k) * taps, taps, depth, taps)
    else:
        for t in range(taps):
            if odd_tap(s, t // s.Fw) != odd_row(s, f) or odd_tap(s, t % s.Fw) != odd_col(s, f):
                continue
            if s.transposed:
                for i in range(depth):
                    fetch_lines(at + (t * K + i) * row + FILTER_ROWS, VECTOR_BYTES)
                transpose(turned + t * VL, taps * VL, at + t * K * row, row, depth, n)
                continue
            for i in range(n):
                fetch_lines(at + (t * C + i + FILTER_ROWS) * row, VECTOR_BYTES)
                copy_padded(turned + (i * taps + t) * VL, at + (t * C + i) * row, depth)
    for i in range(n):
        if s.cut == 1:
            winograd_filter(<int> s.nh, <int> s.rh, <int> s.nw, <int> s.rw, turned + i * taps * VL + last, sign * s.rw * VL,
                            sign * VL, U + i * z.width, z.u_step, 0, 0)
        else:
            pick_taps(s, f, turned + i * taps * VL, some)
            winograd_filter(<int> s.nh, <int> s.rh, <int> s.nw, <int> s.rw, some, s.rw * VL, VL, U + i * z.width, z.u_step, 0, 0)


cdef inline Py_ssize_t odd_tap(Shape *s, Py_ssize_t tap) noexcept nogil:
    """Whether a row, or a column, of the window belongs to odd phases."""
    if s.cut == 1:
        return 0
    return tap % 2 if s.S == 2 else (s.Fh - 1 - tap if s.transposed else tap) // s.rh


cdef inline Py_ssize_t tap_at(Shape *s, Py_ssize_t i, Py_ssize_t odd, Py_ssize_t dead) noexcept nogil:
    """The tap that is coefficient i < r of a phase's polynomial; F or more, or less than 0, if it is missing."""
    if s.S == 1:
        return s.Fh - 1 - odd * s.rh - i if s.transposed else odd * s.rh + i
    return 2 * (s.rh - 1 - i - (odd if dead > 0 else 0)) + odd if s.transposed else 2 * i + odd


cdef void pick_taps(Shape *s, Py_ssize_t f, real *turned, real *some) noexcept nogil:
    """some[i][j][lane]: the filter of phase f, r x r, with zeros for missing taps."""
    cdef Py_ssize_t VL = lanes(some), i, j, h, w
    for i in range(s.rh):
        h = tap_at(s, i, odd_row(s, f), s.dead_h)
        for j in range(s.rw):
            w = tap_at(s, j, odd_col(s, f), s.dead_w)
            if 0 <= h < s.Fh and 0 <= w < s.Fw:
                copy(some, turned + (h * s.Fw + w) * VL, VL, 1)
            else:
                memset(some, 0, VL * sizeof(real))
            some += VL


cdef inline bint lives(Shape *s, Py_ssize_t value, Py_ssize_t f) noexcept nogil:
    """Whether the filters of phase f have this value: odd ones lack one."""
    return not (odd_row(s, f) and value // s.nw == s.dead_h or odd_col(s, f) and value % s.nw == s.dead_w)


cdef void multiply_block(Shape *s, Blocks *z, real *src, real *w, real *U, real *V, real *M, real *patch, real *bias, real *dst,
                         bint relu, Py_ssize_t g, Py_ssize_t q, Py_ssize_t q_end, Py_ssize_t panel, Py_ssize_t panel_end,
                         Py_ssize_t lot) noexcept nogil:
    """Tiles q to q_end of all pictures, some panels of filters of group g, and a lot of chunks from `lot` on. Sums that lack some
    chunks stay in M."""
    cdef Py_ssize_t NR = z.width, lot_end = least(z.chunks, lot + z.lot), end, c, c_end, c_next, i, chunk, target
    cdef real *own = patch + z.patch
    cdef Slots slots = slots_of(s, q, q_end)
    cdef unsigned int before = begin_task()
    # A thread's next task is mostly the next block; where filters are fused it is other filters, or there is none.
    cdef bint other = z.fused or s.sources > 1 or s.groups > 1 or z.cuts > 1
    cdef Py_ssize_t next = s.N * s.tiles_h * s.tiles_w if other else q_end
    cdef Py_ssize_t steps = s.values * ceil_div(q_end - q, TILE_MR) * (1 if z.fused else panel_end - panel)
    cdef Py_ssize_t next_end = least(next + q_end - q, s.N * s.tiles_h * s.tiles_w)
    cdef Walk ahead = walk_over(s, &s.src[0], src, g, next, next_end, 0, s.C, steps)
    while panel < panel_end:
        target = panel // z.panels
        end = least(least(panel_end, panel + z.panels_at_once), (target + 1) * z.panels)
        for chunk in range(lot, lot_end):
            c, c_end = chunk * z.channels, least(s.C, (chunk + 1) * z.channels)
            for i in range(ceil_div(c_end - c, FILTER_ROWS) if z.fused else 0):
                transform_filters(s, z, w, own + i * FILTER_ROWS * NR, g, panel, c + i * FILTER_ROWS,
                                  least(c_end, c + (i + 1) * FILTER_ROWS))
            if z.fused:  # those of the next chunk, or of the next panel's first one
                i, c_next = (panel, c_end) if chunk + 1 < lot_end else (panel + 1, lot * z.channels)
                ahead = walk_over_filters(s, w, g, i * NR, NR, c_next, least(s.C, c_next + z.channels), steps)
            multiply(s, z, V + (chunk - lot) * z.v_chunk, own if z.fused else U, M, &slots, panel, end, c, c_end, &ahead, src)
        if lot_end == z.chunks and not z.by_chunks:
            transform_results(s, &s.dst[target], dst, g, q, q_end, (panel - target * z.panels) * NR,
                              least((end - target * z.panels) * NR, s.K), M, z.panels_at_once * NR, z.m_step, bias, relu, patch)
        panel = end
    end_task(before)


cdef void multiply(Shape *s, Blocks *z, real *V, real *U, real *M, Slots *slots, Py_ssize_t panel, Py_ssize_t panel_end,
                   Py_ssize_t c, Py_ssize_t c_end, Walk *ahead, real *src) noexcept nogil:
    """M[value][slot][filter] = sum over channels c to c_end of V[value][slot][channel - c] * U[value][channel - c][filter], with
    what the channels before them gave, of the tiles that need a value; a step `ahead` in src for each product."""
    cdef Py_ssize_t NR = z.width, VL = lanes(V), value, p, i, first, rows, blocks, lo, hi, begin, end, width, at, at_end
    cdef real *a[TILE_MR]
    cdef real *to[TILE_MR]
    cdef bint more = c > 0 and not z.by_chunks
    cdef int add = 2 if z.part < s.C else 1
    cdef Epilogue e = Epilogue(NULL, 0, 0, 0, 0, 0, NULL, 0, 0)
    for value in range(s.values):
        living_channels(s, value, panel // z.panels, &lo, &hi)
        lo = most(lo, c)
        hi = most(lo, least(hi, c_end))
        if lo == hi and more:
            continue
        tiles_with(s, slots, value, &begin, &end)
        blocks = ceil_div(end - begin, TILE_MR)
        for p in range(panel, panel_end):
            width = NR if s.K - p % z.panels * NR > VL else VL
            for i in range(blocks):
                first = begin + (end - begin) * i // blocks
                rows = begin + (end - begin) * (i + 1) // blocks - first
                point_rows(to, M + value * z.m_step + (first * z.panels_at_once + p - panel) * NR, z.panels_at_once * NR, rows)
                walk(ahead, src)
                at, e.accumulate = lo, add if more else 0
                while True:
                    at_end = least(hi, (at // z.part + 1) * z.part)
                    point_rows(a, V + value * z.v_step + first * z.ld + at - c, z.ld, rows)
                    tile_by_rows(rows, 1, at_end - at, a, U + value * z.u_step + p * z.u_panel + (at - c) * NR, NR, to, width, &e)
                    at, e.accumulate = at_end, add
                    if at == hi:
                        break


cdef inline void living_channels(Shape *s, Py_ssize_t value, Py_ssize_t target, Py_ssize_t *lo, Py_ssize_t *hi) noexcept nogil:
    """The channels, counted over the source phases, whose filters have this value; they lie side by side."""
    cdef Py_ssize_t f = 0, end = s.sources, depth = s.src[0].depth
    while f < end and not lives(s, value, f + target):
        f += 1
    while f < end and not lives(s, value, end - 1 + target):
        end -= 1
    lo[0], hi[0] = f * depth, end * depth


# ---------------------------------------------------------------- grad_w
cdef struct Corners:
    # A task of grad_w holds the sums of a corner of channels x filters for all values.
    Py_ssize_t groups, sets           # so many side by side have a corner each, one after the other; how many such sets
    Py_ssize_t C, K                   # the largest one's sides
    Py_ssize_t vectors, down          # of the channels of a phase, and corners along them
    Py_ssize_t panels, across, width  # of the filters of a group, corners along them, and filters in a panel
    Py_ssize_t tiles                  # in a block
    Py_ssize_t v_step, d_step, m_step
    Py_ssize_t room                   # numbers for V and D of a block; then, if whole, for a corner's weights
    Py_ssize_t ld                     # K of one group rounded up to whole panels; of all groups if direct
    Py_ssize_t patch, scratch
    bint direct                       # depth-last weights of whole vectors and one part: sums are written to dw, no copy follows
    bint whole                        # a corner's sums are final, and written at once


@cython.final
cdef class WeightGradient:
    """grad_w of a forward convolution, its tiles cut into `parts` that are summed one after the other."""
    cdef Winograd forward
    cdef Py_ssize_t parts

    def __init__(self, Winograd forward, Py_ssize_t parts):
        self.forward, self.parts = forward, parts

    def workspace(self, Py_ssize_t itemsize, int threads):
        """Bytes that `run` allocates: the parts' sums and each thread's scratch."""
        return gradient_bytes[float](self, threads, NULL) if itemsize == 4 else gradient_bytes[double](self, threads, NULL)

    def run(self, cnp.ndarray src, cnp.ndarray dy, cnp.ndarray dw, int threads):
        if cnp.PyArray_TYPE(dw) == cnp.NPY_FLOAT32:
            weight_gradient[float](self, src, dy, dw, threads, NULL)
        else:
            weight_gradient[double](self, src, dy, dw, threads, NULL)


cdef Corners plan_corners(Shape *s, Py_ssize_t parts, int threads, real *like) noexcept nogil:
    cdef Corners z
    cdef Py_ssize_t VL = lanes(like), each = s.values * <Py_ssize_t> sizeof(real), C, K
    cdef Py_ssize_t tasks = parts * s.groups * s.sources, part = ceil_div(s.N * s.tiles_h * s.tiles_w, parts), tiles
    z.direct = parts == 1 and not s.dst[0].nchw and s.K % VL == 0
    z.whole = parts == s.sources == 1 and not z.direct
    z.width = VL if s.K <= VL else 2 * VL
    z.vectors, z.panels = most(1, ceil_div(s.src[0].depth, VL)), most(1, ceil_div(s.K, z.width))
    z.ld = s.groups * s.K if z.direct else z.panels * z.width
    z.down = ceil_div(z.vectors * VL, CORNER)
    C = ceil_div(z.vectors, z.down) * VL
    z.across = ceil_div(z.panels, most(1, SUMS // each // C // z.width))
    K = ceil_div(z.panels, z.across) * z.width
    # Evenly many tiles a block, of which the order of the sums depends: so not on what follows.
    tiles = most(1, least(TILES, (ROOM // each - C * K) // (C + K)))
    z.tiles = most(1, ceil_div(part, most(1, ceil_div(part, tiles))))
    # A task for each thread, and none left over.
    while z.down < z.vectors and (tasks * z.down * z.across < threads
                                  or tasks * z.down * z.across < 8 * threads and tasks * z.down * z.across % threads):
        z.down += 1
    while z.across < z.panels and tasks * z.down * z.across < threads:
        z.across += 1
    z.C, z.K = ceil_div(z.vectors, z.down) * VL, ceil_div(z.panels, z.across) * z.width
    z.v_step, z.d_step = odd_lines(z.tiles * z.C, like), odd_lines(z.tiles * z.K, like)
    z.m_step = odd_lines(z.C * z.K, like)
    z.sets = s.groups
    if not s.dst[0].nchw:  # of a pixel of many small groups several are read at a time
        C, K = most(1, z.C * <Py_ssize_t> sizeof(real)), most(1, s.values * z.m_step * <Py_ssize_t> sizeof(real))
        z.sets = ceil_div(s.groups, most(1, least(STRETCH // C, SETS // K)))
        z.sets = least(s.groups, most(z.sets, ceil_div(8 * threads, parts * s.sources * z.down * z.across)))
    z.groups = ceil_div(s.groups, z.sets)
    z.patch = patch_size(s, z.tiles, like)
    z.room = most(s.values * (z.v_step + z.d_step), s.Fh * s.Fw * z.C * z.K if z.whole else 0)
    z.scratch = aligned((z.room + s.values * z.groups * z.m_step + z.patch) * sizeof(real))
    return z


cdef Py_ssize_t gradient_bytes(WeightGradient self, int threads, real *like):
    cdef Shape *s = &self.forward.s
    cdef Corners z = plan_corners(s, self.parts, threads, like)
    cdef Py_ssize_t sums = 0 if z.direct or z.whole else self.parts * s.groups * s.Fh * s.Fw * s.src[0].depth * z.ld
    return sums * sizeof(real) + threads * z.scratch


cdef weight_gradient(WeightGradient self, cnp.ndarray src, cnp.ndarray dy, cnp.ndarray dw, int threads, real *like):
    cdef Shape *s = &self.forward.s
    cdef Corners z = plan_corners(s, self.parts, threads, like)
    cdef Py_ssize_t parts = self.parts, tasks = parts * z.sets * s.sources * z.down * z.across, i
    cdef Py_ssize_t sums = 0 if z.direct or z.whole else s.groups * z.vectors
    cdef cnp.ndarray workspace = memory.empty((gradient_bytes(self, threads, like),), "u1")
    cdef char *space = <char *> cnp.PyArray_DATA(workspace)
    cdef real *x = data(src, like)
    cdef real *d = data(dy, like)
    cdef real *out = data(dw, like)
    cdef real *result = out if z.direct else <real *> (space + threads * z.scratch)
    with nogil:
        if threads > 1 and <double> s.N * s.tiles_h * s.tiles_w * s.groups * s.C * s.K * s.values > SMALL_WORK:
            for i in prange(tasks, num_threads=threads, schedule="dynamic"):
                corner_task(s, &z, x, d, result, out, parts, i, space + threadid() * z.scratch)
            for i in prange(sums, num_threads=threads, schedule="static"):
                sums_task(s, &z, result, out, parts, i)
        else:
            for i in range(tasks):
                corner_task(s, &z, x, d, result, out, parts, i, space)
            for i in range(sums):
                sums_task(s, &z, result, out, parts, i)


cdef void corner_task(Shape *s, Corners *z, real *src, real *dy, real *result, real *dw, Py_ssize_t parts, Py_ssize_t i,
                      char *scratch) noexcept nogil:
    """Task i: a part of the tiles, then a set of groups, then a phase, then a corner of its channels and filters."""
    cdef Py_ssize_t k = i % z.across, c = i // z.across % z.down, f = i // z.across // z.down % s.sources, VL = lanes(src)
    cdef Py_ssize_t set = i // z.across // z.down // s.sources % z.sets, p = i // z.across // z.down // s.sources // z.sets
    cdef Py_ssize_t total = s.N * s.tiles_h * s.tiles_w, C = s.src[0].depth
    sum_corners(s, z, src, dy, result + p * s.groups * s.Fh * s.Fw * C * z.ld, dw, s.groups * set // z.sets,
                s.groups * (set + 1) // z.sets, f, z.vectors * c // z.down * VL, least(C, z.vectors * (c + 1) // z.down * VL),
                z.panels * k // z.across * z.width, least(s.K, z.panels * (k + 1) // z.across * z.width), total * p // parts,
                total * (p + 1) // parts, scratch)


cdef void sums_task(Shape *s, Corners *z, real *result, real *dw, Py_ssize_t parts, Py_ssize_t i) noexcept nogil:
    """Task i: the sums of a group, then of a vector of its channels."""
    cdef Py_ssize_t C = s.src[0].depth, size = s.Fh * s.Fw * C * z.ld, g = i // z.vectors, c = i % z.vectors * lanes(dw)
    write_weights(result + g * size + c * z.ld, s.groups * size, parts, C * z.ld, z.ld, s.Fh * s.Fw, C, s.K, s.groups, dw,
                  s.dst[0].nchw, g, c, least(C, c + lanes(dw)), 0, s.K)


cdef void sum_corners(Shape *s, Corners *z, real *src, real *dy, real *result, real *dw, Py_ssize_t g, Py_ssize_t g_end,
                      Py_ssize_t f, Py_ssize_t c, Py_ssize_t c_end, Py_ssize_t k, Py_ssize_t k_end, Py_ssize_t q, Py_ssize_t q_end,
                      char *scratch) noexcept nogil:
    """result[group][tap][channel][filter] of groups g to g_end, the taps of phase f, channels c to c_end and filters k to k_end,
    over tiles q to q_end; or dw, if that is all."""
    cdef Py_ssize_t VL = lanes(src), values = s.values, end, i, next, at, at_end, steps
    cdef Py_ssize_t depth = s.src[0].depth, corner = values * z.m_step, group = s.K if z.direct else s.Fh * s.Fw * depth * z.ld
    cdef real *V = <real *> scratch
    cdef real *D = V + values * z.v_step
    cdef real *M = V + z.room
    cdef real *patch = M + z.groups * corner
    cdef Slots slots
    cdef Walk x_ahead, dy_ahead
    cdef bint add = False
    cdef unsigned int before = begin_task()
    steps = values * ceil_div(c_end - c, TILE_MR) * ceil_div(k_end - k, 2 * VL)
    if q == q_end:
        memset(M, 0, (g_end - g) * corner * sizeof(real))
    while q < q_end:
        end = least(q_end, q + z.tiles)
        slots = slots_of(s, q, end)
        for i in range(g, g_end):
            transform_data(s, &s.src[f], False, src, i, q, end, c, c_end, V, z.C, z.v_step, patch)
            transform_data(s, &s.dst[0], True, dy, i, q, end, k, k_end, D, z.K, z.d_step, patch)
            next, at, at_end = i + 1, q, end
            if next == g_end:
                next, at, at_end = g, end, least(q_end, end + z.tiles)
            x_ahead = walk_over(s, &s.src[f], src, next, at, at_end, c, c_end, steps)
            dy_ahead = walk_over(s, &s.dst[0], dy, next, at, at_end, k, k_end, steps)
            add_products(s, z, V, D, M + (i - g) * corner, &slots, f, c_end - c, k_end - k, add, &x_ahead, src, &dy_ahead, dy)
        q, add = end, True
    for i in range(g, g_end):
        if z.whole:
            transform_sums(s, z, M + (i - g) * corner, V, f, c_end - c, k_end - k, z.C * z.K, z.K)
            write_weights(V, 0, 1, z.C * z.K, z.K, s.Fh * s.Fw, depth, s.K, s.groups, dw, s.dst[0].nchw, i, c, c_end, k, k_end)
        else:
            transform_sums(s, z, M + (i - g) * corner, result + i * group + c * z.ld + k, f, c_end - c, k_end - k, depth * z.ld,
                           z.ld)
    end_task(before)


cdef void transform_sums(Shape *s, Corners *z, real *M, real *result, Py_ssize_t f, Py_ssize_t channels, Py_ssize_t filters,
                         Py_ssize_t tap, Py_ssize_t ld) noexcept nogil:
    """result[t * tap + c * ld + k], t a tap of phase f, from M[value][c][k] of a group."""
    cdef Py_ssize_t VL = lanes(M), i, j, v
    cdef real some[16 * 16]  # [tap of the phase][lane]
    cdef real *at
    for i in range(channels):
        for v in range(ceil_div(filters, VL)):
            j = v * VL
            at = result + i * ld + j
            if s.cut == 1:
                winograd_result(<int> s.nh, <int> s.rh, <int> s.nw, <int> s.rw, M + i * z.K + j, z.m_step, at, s.rw * tap, tap,
                                NULL, 0, 0)
            else:
                winograd_result(<int> s.nh, <int> s.rh, <int> s.nw, <int> s.rw, M + i * z.K + j, z.m_step, some, s.rw * VL, VL,
                                NULL, 0, 0)
                put_taps(s, f, some, at, tap)


cdef void put_taps(Shape *s, Py_ssize_t f, real *some, real *result, Py_ssize_t tap) noexcept nogil:
    """result[h * F + w][lane]: the taps of phase f, which lie in some[i][j][lane]."""
    cdef Py_ssize_t VL = lanes(some), i, j, h, w
    for i in range(s.rh):
        for j in range(s.rw):
            h, w = tap_at(s, i, odd_row(s, f), s.dead_h), tap_at(s, j, odd_col(s, f), s.dead_w)
            if h < s.Fh and w < s.Fw:
                copy(result + (h * s.Fw + w) * tap, some + (i * s.rw + j) * VL, VL, 1)


cdef void add_products(Shape *s, Corners *z, real *V, real *D, real *M, Slots *slots, Py_ssize_t f, Py_ssize_t channels,
                       Py_ssize_t filters, bint add, Walk *x_ahead, real *src, Walk *dy_ahead,
                       real *dy) noexcept nogil:
    """M[value][c][k] = sum over slots of V[value][slot][c] * D[value][slot][k], of the values that phase f has and the tiles that
    need them; added to what was there, or not."""
    cdef Py_ssize_t NR = 2 * lanes(V), value, i, k, m, p, first, rows, begin, end, blocks = ceil_div(channels, TILE_MR)
    cdef real *a
    cdef real *c[TILE_MR]
    cdef Epilogue e = Epilogue(NULL, 0, 2 if add else 0, 0, 0, 0, NULL, 0, 0)
    for value in range(s.values):
        tiles_with(s, slots, value, &begin, &end)
        if begin == end or not lives(s, value, f):
            if not add:
                memset(M + value * z.m_step, 0, z.m_step * sizeof(real))
            continue
        for i in range(blocks):
            first = channels * i // blocks
            rows = channels * (i + 1) // blocks - first
            a = V + value * z.v_step + begin * z.C + first
            for p in range(ceil_div(filters, NR)):
                k = p * NR
                for m in range(rows):
                    c[m] = M + value * z.m_step + (first + m) * z.K + k
                walk(x_ahead, src)
                walk(dy_ahead, dy)
                tile_by_columns(rows, 1, end - begin, &a, z.C, D + value * z.d_step + begin * z.K + k, z.K, c,
                                NR if filters - k > NR // 2 else NR // 2, &e)
