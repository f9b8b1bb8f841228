"""Weight gradients by the register tile.

    dw[t][c][k] = sum over pixels of src[pixel + offset[t], c] * dy[pixel, k]

Rows of the tile are channels, columns are filters, and k runs over the pixels of a strip of the grid, whose source is packed in
cache, channels side by side, and padded; a 1x1 window's source is read where it lies. Depth-first pictures of few channels are not
turned over: another tile sums products along their rows. Arguments are trusted; arrays are C-contiguous and of one dtype. Every
number is summed in an order that does not depend on the threads.
"""

cimport cython
cimport numpy as cnp
from cython.parallel cimport prange, threadid
from libc.string cimport memset

from fastconv._kernels.gather cimport (
    AHEAD, L2_SHARE, Planes, SMALL_WORK, STREAM, Shape, apart, bytes_met, copy_planes, list_products, make_shape, one_to_one,
    place_planes, size_planes,
)
from fastconv._kernels.tiles cimport (
    CACHE_LINE, DOT_COLS, DOT_ROWS, PART_OF_B, TILE_MR, VECTOR_BYTES, Epilogue, aligned, begin_task, ceil_div, copy, data,
    dot_tile, end_task, fetch_lines, find_tiles, lanes, least, most, point_rows, real, tile_by_columns, tile_by_rows,
    tile_height, transpose, write_weights,
)

from fastconv._kernels import memory

from .tile import addresses

cnp.import_array()
find_tiles(addresses)

cdef enum:
    SIDE_BY_SIDE = 64     # pixels of a depth-first row that are taken out of it before they are turned over
    IN_PLACE = 1 << 10    # filters that make up for packing depth-last channels
    FEW_SETS = 1 << 9     # bytes: pixels a larger multiple of it apart share a few sets of a first-level cache
    STRETCH = 1 << 10     # bytes of a depth-last pixel that are worth the way to it
    ADDING = 6            # vectors of products that cost as much as to add the lanes of their sums
    TURNING = 4           # products of a pixel of dy that cost as much as to turn it over


cdef double NEXT_ROW = 0.2  # vectors of products that cost as much as to go to the next row of a plane


cdef struct Strips:
    # How a task of grad_w walks over the grid: strips of rows, for which source and dy are packed in cache.
    Py_ssize_t groups, sets           # of a task; and how many such sets of groups
    Py_ssize_t rows                   # of the grid, in a strip
    Py_ssize_t block, blocks          # channels packed side by side; how many such blocks a group has
    Py_ssize_t blocks_at_once         # packed together, counted over the groups
    Py_ssize_t pack_h, pack_w         # steps of the grid in the packed source
    Py_ssize_t height, width          # what a single row of the grid needs of the packed source
    Py_ssize_t block_size             # numbers in a packed block
    Py_ssize_t source                 # numbers of all that is packed of the source
    Py_ssize_t taps                   # of a window row that one tile takes: F_w if their channels lie side by side, or 1
    Py_ssize_t panels, ld             # of filters; K rounded up to whole panels
    Py_ssize_t cuts, splits           # of the panels and of the blocks, among the threads
    bint in_place                     # a 1x1 window without padding, depth last with few filters: the source is not packed
    bint gaps                         # but depth-first rows have some, which are left out in a copy of a tile's channels
    bint dy_in_place                  # whole panels that few tiles meet: nor is dy
    bint direct                       # filters-last weights and one part: the sums are made in dw, no copy follows
    bint whole                        # filters-first weights and one part: a task writes its own
    bint stream                       # they are written past the caches
    bint ahead                        # no cache keeps the pictures: tiles call for the next strip
    bint planes_ahead                 # depth-first ones lie far away: tiles call for the next one's planes, where these are rows


@cython.final
cdef class WeightGradient:
    """grad_w of a forward gather: dw[t][c][k] = sum over pixels of src[pixel + offset[t], c] * dy[pixel, k].

    Parameters
    ----------
    sizes, grid, taps, window : as for `Gather` in conv.pyx, with every tap of the window
    nchw : depth-first pictures, else depth-last
    filters_first : weights (K, C, F, F), else (F, F, C, K); of depth-first pictures the latter for one group and 1x1 windows only
    parts : the rows of the grid are cut into so many, whose sums are added in order; it depends on the problem alone, so that
        the result does not depend on the threads

    Depth first, with one tap, dy may be read at every few pixels only, by the grid's steps.
    """
    cdef Shape s
    cdef cnp.ndarray taps
    cdef bint nchw, filters_first
    cdef Py_ssize_t parts

    def __init__(self, tuple sizes, tuple grid, cnp.ndarray taps, Py_ssize_t window, bint nchw, bint filters_first,
                 Py_ssize_t parts):
        self.s = make_shape(sizes, grid, taps, window)
        self.taps, self.nchw, self.filters_first, self.parts = taps, nchw, filters_first, parts

    def workspace(self, Py_ssize_t itemsize, int threads):
        """Bytes that `run` allocates: the parts' sums and each thread's scratch."""
        return gradient_bytes[float](self, threads, NULL) if itemsize == 4 else gradient_bytes[double](self, threads, NULL)

    def run(self, cnp.ndarray src, cnp.ndarray dy, cnp.ndarray dw, int threads):
        if cnp.PyArray_TYPE(dw) == cnp.NPY_FLOAT32:
            weight_gradient[float](self, src, dy, dw, threads, NULL)
        else:
            weight_gradient[double](self, src, dy, dw, threads, NULL)


cdef Py_ssize_t gradient_bytes(WeightGradient self, int threads, real *like):
    cdef Shape *s = &self.s
    cdef Strips z = plan_strips(self, threads, like)
    cdef Dots y = plan_dots(s, self.nchw, self.parts, threads, like)
    if y.strip.rows:
        return self.parts * s.groups * y.down * y.across * y.size * sizeof(real) + threads * y.scratch
    return (0 if z.direct else self.parts * s.groups * s.T * s.C * z.ld * sizeof(real)) + threads * strip_bytes(s, &z, like)


cdef weight_gradient(WeightGradient self, cnp.ndarray src, cnp.ndarray dy, cnp.ndarray dw, int threads, real *like):
    cdef Dots y = plan_dots(&self.s, self.nchw, self.parts, threads, like)
    cdef cnp.ndarray workspace = memory.empty((gradient_bytes(self, threads, like),), "u1")
    cdef char *space = <char *> cnp.PyArray_DATA(workspace)
    if y.strip.rows:
        gradient_by_dots(self, &y, data(src, like), data(dy, like), data(dw, like), threads, space)
    else:
        gradient_by_strips(self, data(src, like), data(dy, like), data(dw, like), threads, space)


cdef gradient_by_strips(WeightGradient self, real *src, real *dy, real *dw, int threads, char *space):
    cdef Shape *s = &self.s
    cdef Strips z = plan_strips(self, threads, src)
    cdef Py_ssize_t parts = self.parts, tasks = parts * z.sets * z.cuts * z.splits, scratch = strip_bytes(s, &z, src), i
    cdef Py_ssize_t sums = 0 if z.direct or z.whole else s.groups * ceil_div(s.C, lanes(src))
    cdef real *total = <real *> (space + threads * scratch)
    cdef bint nchw = self.nchw, filters_first = self.filters_first
    if z.direct:
        total, z.ld = dw, s.groups * s.K
        z.stream = (z.rows >= s.N * s.rows and s.T * s.C * z.ld * <Py_ssize_t> sizeof(real) > STREAM and s.K % lanes(src) == 0
                    and <size_t> dw % VECTOR_BYTES == 0)
    with nogil:
        if threads > 1 and <double> s.N * s.rows * s.cols * s.T * s.C * s.K * s.groups > SMALL_WORK:
            for i in prange(tasks, num_threads=threads, schedule="dynamic"):
                gradient_task(s, &z, src, dy, total, dw, nchw, parts, i, space + threadid() * scratch)
            for i in prange(sums, num_threads=threads, schedule="static"):
                sums_task(s, &z, total, dw, filters_first, parts, i)
        else:  # a region of one thread costs as much as the work of a small call
            for i in range(tasks):
                gradient_task(s, &z, src, dy, total, dw, nchw, parts, i, space)
            for i in range(sums):
                sums_task(s, &z, total, dw, filters_first, parts, i)


cdef void sums_task(Shape *s, Strips *z, real *total, real *dw, bint filters_first, Py_ssize_t parts,
                    Py_ssize_t i) noexcept nogil:
    """Task i: the sums of a group, then of a vector of its channels."""
    cdef Py_ssize_t blocks = ceil_div(s.C, lanes(dw)), g = i // blocks, c = i % blocks * lanes(dw), size = s.T * s.C * z.ld
    write_weights(total + g * size + c * z.ld, s.groups * size, parts, s.C * z.ld, z.ld, s.T, s.C, s.K, s.groups, dw, filters_first,
                  g, c, least(s.C, c + lanes(dw)), 0, s.K)


cdef inline double unevenness(Py_ssize_t n, Py_ssize_t cuts) noexcept nogil:
    """How many times the mean the largest of so many cuts of n is."""
    return ceil_div(n, cuts) * cuts / <double> most(1, n)


cdef Strips plan_strips(WeightGradient self, int threads, real *like) noexcept nogil:
    cdef Strips z
    cdef Shape *s = &self.s
    cdef bint nchw = self.nchw
    cdef Py_ssize_t parts = self.parts
    cdef Py_ssize_t NR = 2 * lanes(like), share = L2_SHARE // <Py_ssize_t> sizeof(real), last = s.T - 1, pictures, pixel
    cdef Py_ssize_t wanted, cuts, splits
    cdef double uneven, least_uneven
    # Depth last, of a pixel of many small groups several are read at a time.
    z.sets = s.groups
    if not nchw and s.T > 1 and parts * s.groups >= 2 * threads:
        z.sets = ceil_div(s.groups, most(1, STRETCH // most(1, s.C * <Py_ssize_t> sizeof(real))))
        z.sets = least(s.groups, most(z.sets, ceil_div(8 * threads, parts)))
    z.groups = ceil_div(s.groups, z.sets)
    z.blocks = most(1, ceil_div(s.C, 2 * TILE_MR))
    z.block = ceil_div(s.C, z.blocks)
    z.panels = ceil_div(s.K, NR)
    z.ld = z.panels * NR
    # Tasks for each thread, as even as can be: by panels, which saves packing dy again, by blocks, or by both.
    z.cuts = z.splits = 1
    wanted = most(1, ceil_div(2 * threads, parts * s.groups) if threads > 1 else 1)
    least_uneven = 0
    for cuts in range(least(z.panels, wanted), 0, -1):
        splits = least(z.blocks, ceil_div(wanted, cuts))
        uneven = unevenness(z.panels, cuts) * unevenness(z.blocks, splits)
        if least_uneven == 0 or uneven < 0.97 * least_uneven:
            z.cuts, z.splits, least_uneven = cuts, splits, uneven
    z.in_place = (s.T == 1 and s.dh[0] == s.dw[0] == 0 and (s.rows - 1) * s.stride_h < s.Hs and (s.cols - 1) * s.stride_w < s.Ws
                  and (nchw or s.K < IN_PLACE))
    z.gaps = nchw and z.in_place and s.stride_w > 1
    # Where all taps stand in one row (column), only the rows (columns) that the grid meets are packed.
    z.pack_h = 1 if s.dh[last] == s.dh[0] else s.stride_h
    z.pack_w = 1 if s.dw[last] == s.dw[0] else s.stride_w
    z.height = s.dh[last] - s.dh[0] + 1
    z.width = (s.cols - 1) * z.pack_w + s.dw[last] - s.dw[0] + 1
    z.taps = 1
    while z.blocks == 1 and z.taps < s.T and s.dh[z.taps] == s.dh[0] and s.dw[z.taps] == s.dw[0] + z.taps:
        z.taps += 1
    z.direct, z.whole, z.stream = parts == 1 and not self.filters_first, parts == 1 and self.filters_first, False
    pixel = s.groups * s.K * <Py_ssize_t> sizeof(real)
    z.dy_in_place = (not nchw and (s.K % lanes(like) == 0 or PART_OF_B) and (pixel <= FEW_SETS or pixel % FEW_SETS)
                     and s.T // z.taps * ceil_div(s.C, TILE_MR) <= most(8, TILE_MR))
    z.rows = most(1, least(s.N * s.rows, most(256, share // (z.groups * ceil_div(z.panels, z.cuts) * NR)) // most(1, s.cols)))
    z.ahead = not nchw and z.cuts == z.splits == s.groups == 1 and bytes_met(s, like) > STREAM
    z.planes_ahead = nchw and s.rows == 1 and bytes_met(s, like) > AHEAD
    if z.ahead and not z.dy_in_place:  # it and the next strip's both stay in cache
        z.rows = most(1, z.rows // 2)
    if z.ahead and z.in_place:  # so do both strips of the source, but for sums that would pass through it too often
        z.rows = most(1, least(z.rows, most(4 * z.ld, share // s.C) // s.cols))
    if z.groups > 1:  # packed all at once
        z.rows = most(1, least(z.rows, share // most(1, z.groups * s.C * z.pack_h * z.width)))
    pictures = (z.rows - 1) // most(1, s.rows) + 2  # that a strip may touch
    z.block_size = (z.rows * z.pack_h + pictures * z.height) * z.width * z.block
    z.blocks_at_once = most(1, least(z.groups * z.blocks, share // most(1, z.block_size)))
    z.source = TILE_MR * z.rows * s.cols if z.gaps else 0 if z.in_place else z.blocks_at_once * z.block_size
    return z


cdef Py_ssize_t strip_bytes(Shape *s, Strips *z, real *like) noexcept nogil:
    return (aligned((1 + TILE_MR) * z.rows * sizeof(void *))
            + aligned(z.source * sizeof(real))
            + aligned((0 if z.dy_in_place else z.groups * packed_dy(s, z, ceil_div(z.panels, z.cuts), z.rows, like))
                      * sizeof(real)))


cdef inline Py_ssize_t packed_dy(Shape *s, Strips *z, Py_ssize_t panels, Py_ssize_t rows, real *like) noexcept nogil:
    """Numbers of a group's panels."""
    return panels * rows * s.cols * 2 * lanes(like)


cdef struct Ahead:
    # Lines that a strip's tiles call for, each one for every pixel: the next strip's source, unless it is packed, then its dy, as
    # they lie. So memory is at work while the products are, not before them.
    char *x
    char *dy
    Py_ssize_t x_lines, dy_lines      # of a pixel, that are not called for yet
    Py_ssize_t x_step, x_run          # from one pixel's line to the next one's, and further to that of the next row
    Py_ssize_t x_next, dy_next        # from a tile's lines to those of the next tile


cdef inline Ahead strip_ahead(Shape *s, Strips *z, real *src, real *dy, Py_ssize_t row, Py_ssize_t rows) noexcept nogil:
    """Of a strip of so many rows, counted over the batch."""
    cdef Ahead next
    cdef Py_ssize_t size = sizeof(real), line = CACHE_LINE // size
    next.dy, next.dy_lines = <char *> (dy + row * s.cols * s.K), ceil_div(s.K, line)
    next.x_lines = ceil_div(s.C, line) if z.in_place else 0
    next.x_step, next.x_run, next.x_next, next.dy_next = CACHE_LINE, 0, CACHE_LINE * rows * s.cols, CACHE_LINE * rows * s.cols
    next.x = <char *> (src + (row // s.rows * s.Hs + row % s.rows * s.stride_h) * s.Ws * s.C)
    if not one_to_one(s):
        next.x_step, next.x_next = s.stride_w * s.C * size, CACHE_LINE
        next.x_run = (s.stride_h * s.Ws - s.cols * s.stride_w) * s.C * size
    return next


cdef inline void lines_ahead(Ahead *next, Epilogue *e) noexcept nogil:
    """Those of a tile."""
    e.ahead = NULL
    if next.x_lines > 0:
        e.ahead, e.ahead_step, e.ahead_run = next.x, next.x_step, next.x_run
        next.x, next.x_lines = next.x + next.x_next, next.x_lines - 1
    elif next.dy_lines > 0:
        e.ahead, e.ahead_step, e.ahead_run = next.dy, CACHE_LINE, 0
        next.dy, next.dy_lines = next.dy + next.dy_next, next.dy_lines - 1


cdef void gradient_task(Shape *s, Strips *z, real *src, real *dy, real *total, real *dw, bint nchw, Py_ssize_t parts,
                        Py_ssize_t task, char *scratch) noexcept nogil:
    """A part of the grid's rows, counted over the batch, then a set of groups, then a cut of their panels of filters, then a split
    of their blocks of channels; blocks are counted over the groups."""
    cdef Py_ssize_t split = task % z.splits, cut = task // z.splits % z.cuts, set = task // z.splits // z.cuts % z.sets
    cdef Py_ssize_t first = s.groups * set // z.sets, last = s.groups * (set + 1) // z.sets - 1, g
    cdef Py_ssize_t block = first * z.blocks + z.blocks * split // z.splits
    cdef Py_ssize_t block_end = last * z.blocks + z.blocks * (split + 1) // z.splits
    cdef Py_ssize_t panel = z.panels * cut // z.cuts, panel_end = z.panels * (cut + 1) // z.cuts
    cdef Py_ssize_t part = task // z.splits // z.cuts // z.sets, row_end = s.N * s.rows * (part + 1) // parts
    cdef Py_ssize_t row = s.N * s.rows * part // parts, i, b, end, rows, d_group
    cdef real **starts = <real **> scratch
    cdef real *x = <real *> (scratch + aligned((1 + TILE_MR) * z.rows * sizeof(void *)))
    cdef real *packed = <real *> (<char *> x + aligned(z.source * sizeof(real)))
    cdef real *d
    cdef Ahead next
    cdef bint accumulate = False, at_once = z.whole and 0 < row_end - row <= z.rows  # while a block's sums are in cache
    cdef unsigned int before = begin_task()
    total += part * s.groups * s.T * s.C * z.ld
    if row == row_end:
        for i in range(block, block_end):
            clear_block(s, z, total, i, panel, panel_end)
    while row < row_end:
        rows = least(z.rows, row_end - row)
        d, d_group = packed, packed_dy(s, z, panel_end - panel, rows, src)
        if z.dy_in_place:
            d, d_group = dy + (row * s.cols * s.groups + first) * s.K + panel * 2 * lanes(src), s.K
        for g in range(first, first if z.dy_in_place else last + 1):
            pack_dy(s, dy, d + (g - first) * d_group, nchw, g, row, rows, panel, panel_end)
        memset(&next, 0, sizeof(Ahead))
        if z.ahead and row + rows < row_end:
            next = strip_ahead(s, z, src, dy, row + rows, rows)
        for i in range(block, block_end if z.in_place else block):
            pointwise_block(s, z, src, x, d, total, starts, nchw, row, rows, i, panel, panel_end, accumulate, &next)
            if at_once:
                write_block(s, z, total, dw, i, panel, panel_end)
        b = block
        while b < block_end and not z.in_place:
            end = least(block_end, b + z.blocks_at_once)
            pack_source(s, z, src, x, starts, nchw, row, rows, b, end)
            for i in range(b, end):
                gradient_block(s, z, (i - b) * z.block_size, d + (i // z.blocks - first) * d_group, total, starts, rows, i, panel,
                               panel_end, accumulate, &next)
                if at_once:
                    write_block(s, z, total, dw, i, panel, panel_end)
            b = end
        row += rows
        accumulate = True
    for i in range(block, block_end if z.whole and not at_once else block):
        write_block(s, z, total, dw, i, panel, panel_end)
    end_task(before)


cdef inline Py_ssize_t sums_of(Shape *s, Strips *z, Py_ssize_t g) noexcept nogil:
    """Where those of a group begin."""
    return g * (s.K if z.direct else s.T * s.C * z.ld)


cdef void clear_block(Shape *s, Strips *z, real *total, Py_ssize_t block, Py_ssize_t panel, Py_ssize_t panel_end) noexcept nogil:
    """The sums of no rows."""
    cdef Py_ssize_t NR = 2 * lanes(total), c = block % z.blocks * z.block, t, i
    total += sums_of(s, z, block // z.blocks) + panel * NR
    for t in range(s.T):
        for i in range(c, least(s.C, c + z.block)):
            memset(total + (t * s.C + i) * z.ld, 0, (least(s.K, panel_end * NR) - panel * NR) * sizeof(real))


cdef inline void write_block(Shape *s, Strips *z, real *total, real *dw, Py_ssize_t block, Py_ssize_t panel,
                             Py_ssize_t panel_end) noexcept nogil:
    cdef Py_ssize_t NR = 2 * lanes(dw), g = block // z.blocks, c = block % z.blocks * z.block
    write_weights(total + sums_of(s, z, g) + c * z.ld + panel * NR, 0, 1, s.C * z.ld, z.ld, s.T, s.C, s.K, s.groups, dw, True, g, c,
                  least(s.C, c + z.block), panel * NR, least(s.K, panel_end * NR))


cdef void gradient_block(Shape *s, Strips *z, Py_ssize_t offset, real *d, real *total, real **starts, Py_ssize_t rows,
                         Py_ssize_t block, Py_ssize_t panel, Py_ssize_t panel_end, bint accumulate,
                         Ahead *next) noexcept nogil:
    """One strip times one block of channels, whose packed copy lies at `offset` from the first one's; d: the strip's dy, of the
    block's group."""
    cdef Py_ssize_t NR = 2 * lanes(d), t = 0, r, i, m, first, n, p, b = block % z.blocks
    cdef Py_ssize_t channels = least(z.block, s.C - b * z.block)
    cdef Py_ssize_t height = channels if z.taps == 1 else z.taps * s.C, pieces = ceil_div(height, TILE_MR)
    cdef real **a = starts + z.rows
    cdef real *c[TILE_MR]
    cdef Py_ssize_t d_step = s.groups * s.K if z.dy_in_place else NR, d_panel = NR if z.dy_in_place else rows * s.cols * NR
    cdef Epilogue e = Epilogue(NULL, 0, accumulate, 0, z.stream, 0, NULL, 0, 0)
    total += sums_of(s, z, block // z.blocks)
    while t < s.T:
        for i in range(pieces):
            first = height * i // pieces
            n = height * (i + 1) // pieces - first
            for r in range(rows):
                a[r] = starts[r] + offset + ((s.dh[t] - s.dh[0]) * z.width + s.dw[t] - s.dw[0]) * z.block + first
            for p in range(panel, panel_end):
                for m in range(n):
                    c[m] = total + (t * s.C + b * z.block + first + m) * z.ld + p * NR
                lines_ahead(next, &e)
                tile_by_columns(n, rows, s.cols, a, z.pack_w * z.block, d + (p - panel) * d_panel, d_step, c,
                                least(NR, s.K - p * NR), &e)
        t += z.taps


cdef void pointwise_block(Shape *s, Strips *z, real *src, real *x, real *d, real *total, real **a, bint nchw,
                          Py_ssize_t row, Py_ssize_t rows, Py_ssize_t block, Py_ssize_t panel, Py_ssize_t panel_end,
                          bint accumulate, Ahead *next) noexcept nogil:
    """The same of a source that is read where it lies, its channels side by side (depth-last) or its pixels (depth-first)."""
    cdef Py_ssize_t NR = 2 * lanes(d), i, r, p, first, n, c, m, g = block // z.blocks
    cdef Py_ssize_t b = block % z.blocks, channels = least(z.block, s.C - b * z.block), depth = s.groups * s.C
    cdef Py_ssize_t plane = s.Hs * s.Ws, pixels = rows * s.cols
    cdef Py_ssize_t pieces = ceil_div(channels, tile_height((pixels if z.gaps else plane) * sizeof(real)) if nchw else TILE_MR)
    cdef Py_ssize_t d_step = s.groups * s.K if z.dy_in_place else NR, d_panel = NR if z.dy_in_place else pixels * NR
    cdef real *at
    cdef real *to[TILE_MR]
    cdef Epilogue e = Epilogue(NULL, 0, accumulate, 0, z.stream, 0, NULL, 0, 0)
    total += sums_of(s, z, g)
    for i in range(pieces):
        first = channels * i // pieces
        n = channels * (i + 1) // pieces - first
        c = b * z.block + first
        for r in range(rows):
            at = src + (row + r) // s.rows * depth * plane
            if z.gaps:
                at += (g * s.C + c) * plane + (row + r) % s.rows * s.stride_h * s.Ws
                for m in range(n):
                    copy(x + m * pixels + r * s.cols, at + m * plane, s.cols, s.stride_w)
                    if c + m + n < s.C:  # the next tile's
                        fetch_lines(at + (m + n) * plane, s.cols * s.stride_w * sizeof(real))
            elif nchw:
                point_rows(a + r * TILE_MR, at + (g * s.C + c) * plane + (row + r) % s.rows * s.stride_h * s.Ws, plane, n)
            else:
                a[r] = at + ((row + r) % s.rows * s.stride_h * s.Ws * s.groups + g) * s.C + c
        if z.gaps:
            point_rows(a, x, pixels, n)
        for p in range(panel, panel_end):
            point_rows(to, total + c * z.ld + p * NR, z.ld, n)
            if z.gaps:
                tile_by_rows(n, 1, pixels, a, d + (p - panel) * d_panel, d_step, to, least(NR, s.K - p * NR), &e)
            elif nchw:
                for r in range(rows * (p - panel) // (panel_end - panel), rows * (p - panel + 1) // (panel_end - panel)):
                    for m in range(least(n, s.C - c - n) if z.planes_ahead else 0):
                        fetch_lines(a[r * TILE_MR + m] + n * plane, plane * sizeof(real))
                tile_by_rows(n, rows, s.cols, a, d + (p - panel) * d_panel, d_step, to, least(NR, s.K - p * NR), &e)
            else:
                lines_ahead(next, &e)
                tile_by_columns(n, rows, s.cols, a, s.stride_w * depth, d + (p - panel) * d_panel, d_step, to,
                                least(NR, s.K - p * NR), &e)


cdef void pack_dy(Shape *s, real *dy, real *d, bint nchw, Py_ssize_t g, Py_ssize_t row, Py_ssize_t rows, Py_ssize_t panel,
                  Py_ssize_t panel_end) noexcept nogil:
    """d[panel][pixel][j] = dy of filter panel*NR + j, zeros past the last filter."""
    cdef Py_ssize_t NR = 2 * lanes(dy), size = rows * s.cols * NR, last = s.K - (panel_end - 1) * NR, q, p, n, stretch
    if last < NR:
        memset(d + (panel_end - 1 - panel) * size, 0, size * sizeof(real))
    if not nchw:
        dy += (row * s.cols * s.groups + g) * s.K
        for q in range(rows * s.cols):
            for p in range(panel, panel_end):
                copy(d + (p - panel) * size + q * NR, dy + p * NR, least(NR, s.K - p * NR), 1)
            dy += s.groups * s.K
        return
    while rows > 0:
        n = row // s.rows
        stretch = least(rows, (n + 1) * s.rows - row)  # rows of one picture
        for p in range(panel, panel_end):
            pack_planes(s, dy + ((n * s.groups + g) * s.K + p * NR) * s.Hd * s.Wd, d + (p - panel) * size,
                        least(NR, s.K - p * NR), row % s.rows * s.cols, stretch * s.cols)
        d += stretch * s.cols * NR
        row, rows = row + stretch, rows - stretch


cdef inline void pack_planes(Shape *s, real *planes, real *d, Py_ssize_t filters, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """The same of the planes of some filters: n pixels of the grid from the first on, which may lie apart from each other."""
    cdef Py_ssize_t NR = 2 * lanes(d), plane = s.Hd * s.Wd, across = (s.Wd - 1) // s.step_w + 1, some, done, stretch, at, k
    cdef real row[32 * SIDE_BY_SIDE]
    if not apart(s):
        transpose(d, NR, planes + first, plane, filters, n)
        return
    while n > 0:
        some, done = least(SIDE_BY_SIDE, n), 0
        while done < some:
            at, stretch = (first + done) % across, some - done
            stretch = least(stretch, across - at)
            at = (first + done) // across * s.step_h * s.Wd + at * s.step_w
            for k in range(filters):
                copy(row + k * SIDE_BY_SIDE + done, planes + k * plane + at, stretch, s.step_w)
            done += stretch
        transpose(d, NR, row, SIDE_BY_SIDE, filters, some)
        d, first, n = d + some * NR, first + some, n - some


cdef void pack_source(Shape *s, Strips *z, real *src, real *x, real **starts, bint nchw, Py_ssize_t row, Py_ssize_t rows,
                      Py_ssize_t block, Py_ssize_t block_end) noexcept nogil:
    """x[block][source row][source column][channel], padded with zeros; starts[r]: where row r of the strip begins."""
    cdef Py_ssize_t step_h = s.stride_h // z.pack_h, r = 0, n, i, stretch, height, h, v, at = 0
    while r < rows:
        n, i = (row + r) // s.rows, (row + r) % s.rows
        stretch = least(rows - r, s.rows - i)
        height = (stretch - 1) * z.pack_h + z.height
        for v in range(stretch):
            starts[r + v] = x + (at + v * z.pack_h) * z.width * z.block
        for v in range(height):
            h = i * s.stride_h + s.dh[0] + v * step_h
            pack_source_row(s, z, src, x + (at + v) * z.width * z.block, nchw, n, h, block, block_end)
        at += height
        r += stretch


cdef void pack_source_row(Shape *s, Strips *z, real *src, real *x, bint nchw, Py_ssize_t n, Py_ssize_t h, Py_ssize_t block,
                          Py_ssize_t block_end) noexcept nogil:
    cdef Py_ssize_t step = s.stride_w // z.pack_w, lo, hi, b, v, c, channels, some
    cdef Py_ssize_t first = block // z.blocks * s.C + block % z.blocks * z.block  # channel, counted over the groups
    cdef real row[32 * SIDE_BY_SIDE]  # a block has at most 28 channels
    cdef real *at
    lo = least(z.width, ceil_div(most(0, -s.dw[0]), step))
    hi = most(lo, least(z.width, ceil_div(most(0, s.Ws - s.dw[0]), step)))
    if not 0 <= h < s.Hs:
        lo = hi = z.width
    for b in range(block_end - block):
        memset(x + b * z.block_size, 0, lo * z.block * sizeof(real))
        memset(x + b * z.block_size + hi * z.block, 0, (z.width - hi) * z.block * sizeof(real))
    if not nchw:
        at = src + ((n * s.Hs + h) * s.Ws + s.dw[0]) * s.groups * s.C + first
        if step == 1 and s.groups == z.blocks == 1:
            copy(x + lo * s.C, at + lo * s.C, (hi - lo) * s.C, 1)
            return
        for v in range(lo, hi):
            c = first % s.C
            some = v * step * s.groups * s.C
            if s.groups > 1:  # pixels lie far apart: those of the row below
                fetch_lines(at + some + s.stride_h // z.pack_h * s.Ws * s.groups * s.C,
                            (block_end - block) * z.block * sizeof(real))
            for b in range(block_end - block):
                channels = least(z.block, s.C - c)
                copy(x + b * z.block_size + v * z.block, at + some, channels, 1)
                some, c = some + channels, c + channels if c + channels < s.C else 0
        return
    for b in range(block, block_end):
        channels = least(z.block, s.C - b % z.blocks * z.block)
        at = src + ((n * s.groups * s.C + first) * s.Hs + h) * s.Ws + s.dw[0]
        if step == 1:
            transpose(x + lo * z.block, z.block, at + lo, s.Hs * s.Ws, channels, hi - lo)
        else:
            v = lo
            while v < hi:
                some = least(SIDE_BY_SIDE, hi - v)
                for c in range(channels):
                    copy(row + c * SIDE_BY_SIDE, at + c * s.Hs * s.Ws + v * step, some, step)
                transpose(x + v * z.block, z.block, row, SIDE_BY_SIDE, channels, some)
                v += SIDE_BY_SIDE
        x, first = x + z.block_size, first + channels


# ---------------------------------------------------------------- grad_w of few channels, depth-first: both as they lie
cdef struct Dots:
    # How grad_w goes where depth-first channels are few: neither dy nor the source is turned over. Tiles of DOT_ROWS filters and
    # DOT_COLS products (a channel's taps) run along the rows of a strip.
    Planes strip                      # no rows where this does not pay
    Py_ssize_t pictures, source       # whole pictures at a time, if they fit; numbers of the source's strip in each
    Py_ssize_t products               # C * T: rows of the source that a filter's dy is multiplied with
    Py_ssize_t across, down, size     # tiles over them, and over the filters; numbers in one
    Py_ssize_t cuts, scratch          # of the tiles of filters, among the threads; bytes of a thread


cdef Dots plan_dots(Shape *s, bint nchw, Py_ssize_t parts, int threads, real *like) noexcept nogil:
    cdef Dots z
    cdef Py_ssize_t VL = lanes(like), share = L2_SHARE // <Py_ssize_t> sizeof(real), row, vectors
    cdef double turned, along
    memset(&z, 0, sizeof(Dots))
    z.products = s.C * s.T
    # A single tap's source is not packed elsewhere: here it must be small.
    if not nchw or s.T == 0 or s.T == 1 and s.C > 2 * DOT_COLS or s.C == 0 or s.cols < VL or s.K == 0:
        return z
    place_planes(s, &z.strip, like)
    row = s.C * z.strip.step * z.strip.phases * z.strip.width + DOT_ROWS * s.cols
    z.strip.rows = least(s.rows, share // row)
    z.pictures = most(1, share // most(1, row * s.rows))
    vectors = z.strip.rows * z.pictures * ceil_div(s.cols, VL)
    # Lanes are lost past the last filter of a vector, or past a row's end.
    turned = <double> s.cols * (z.products * ceil_div(s.K, VL) * VL + TURNING * s.K) * vectors
    along = (s.cols if z.strip.one_row else s.cols + NEXT_ROW * VL) * s.K * s.T + z.strip.lost
    along *= s.C * (vectors + ADDING) * ceil_div(s.K, DOT_ROWS) * DOT_ROWS / <double> s.K
    if along >= turned:
        z.strip.rows = 0
        return z
    size_planes(&z.strip, z.strip.rows, like)
    z.across, z.down, z.size = ceil_div(z.products, DOT_COLS), ceil_div(s.K, DOT_ROWS), ceil_div(DOT_ROWS * DOT_COLS, VL) * VL
    z.cuts = most(1, least(z.down, ceil_div(2 * threads, parts * s.groups) if threads > 1 else 1))
    z.source = s.C * z.strip.size
    z.scratch = aligned(z.products * sizeof(Py_ssize_t)) + aligned((z.pictures * z.source + 2 * VL) * sizeof(real))
    return z


cdef gradient_by_dots(WeightGradient self, Dots *z, real *src, real *dy, real *dw, int threads, char *space):
    cdef Shape *s = &self.s
    cdef Py_ssize_t parts = self.parts, tasks = parts * s.groups * z.cuts, filters = s.groups * s.K, i
    cdef real *total = <real *> (space + threads * z.scratch)
    cdef bint filters_first = self.filters_first
    with nogil:
        if threads > 1 and <double> s.N * s.rows * s.cols * z.products * filters > SMALL_WORK:
            for i in prange(tasks, num_threads=threads, schedule="dynamic"):
                dots_task(s, z, src, dy, total, parts, i, space + threadid() * z.scratch)
            for i in prange(filters, num_threads=threads, schedule="static"):
                add_dots(s, z, total, parts, i, dw, filters_first)
        else:
            for i in range(tasks):
                dots_task(s, z, src, dy, total, parts, i, space)
            for i in range(filters):
                add_dots(s, z, total, parts, i, dw, filters_first)


cdef inline real *row_of_dy(Shape *s, real *dy, Py_ssize_t g, Py_ssize_t row, Py_ssize_t k) noexcept nogil:
    """Of a row of the grid, counted over the batch, and filter k of group g."""
    return dy + ((row // s.rows * s.groups + g) * s.K + k) * s.Hd * s.Wd + row % s.rows * s.cols


cdef void dots_task(Shape *s, Dots *z, real *src, real *dy, real *total, Py_ssize_t parts, Py_ssize_t task,
                    char *scratch) noexcept nogil:
    """A part of the grid's rows, counted over the batch, then a group, then a cut of the tiles of its filters."""
    cdef Py_ssize_t cut = task % z.cuts, g = task // z.cuts % s.groups, part = task // z.cuts // s.groups
    cdef Py_ssize_t row = s.N * s.rows * part // parts, row_end = s.N * s.rows * (part + 1) // parts
    cdef Py_ssize_t tile = z.down * cut // z.cuts, tile_end = z.down * (cut + 1) // z.cuts
    cdef Py_ssize_t *table = <Py_ssize_t *> scratch
    cdef real *strip = <real *> (scratch + aligned(z.products * sizeof(Py_ssize_t)))
    cdef Py_ssize_t n, i, rows, pictures, k, m, t, first, cols
    cdef real *a[DOT_ROWS]
    cdef real *b[DOT_COLS]
    cdef real *ahead
    cdef bint far = bytes_met(s, dy) > STREAM, one_row = z.strip.one_row
    cdef unsigned int before = begin_task()
    total += (part * s.groups + g) * z.down * z.across * z.size
    memset(total + tile * z.across * z.size, 0, (tile_end - tile) * z.across * z.size * sizeof(real))
    list_products(s, &z.strip, table)
    while row < row_end:
        n, i = row // s.rows, row % s.rows
        rows = least(least(z.strip.rows, s.rows - i), row_end - row)
        pictures = most(1, least(z.pictures, (row_end - row) // s.rows)) if rows == s.rows else 1
        for m in range(pictures):
            copy_planes(s, &z.strip, src + ((n + m) * s.groups + g) * s.C * s.Hs * s.Ws, i, i + rows, strip + m * z.source)
        for k in range(tile, tile_end):
            for m in range(DOT_ROWS):  # the last filter again where there are no more
                a[m] = row_of_dy(s, dy, g, row, least(s.K - 1, k * DOT_ROWS + m))
            for t in range(z.across):
                ahead = NULL
                if far and t < DOT_ROWS and k + 1 < tile_end:
                    ahead = row_of_dy(s, dy, g, row, (k + 1) * DOT_ROWS + t)
                elif far and t < DOT_ROWS:
                    ahead = row_of_dy(s, dy, g, row + rows * pictures, tile * DOT_ROWS + t)
                first = z.products * t // z.across
                cols = z.products * (t + 1) // z.across - first
                for m in range(cols):
                    b[m] = strip + table[first + m]
                dot_tile(cols, pictures, 1 if one_row else rows, rows * s.cols if one_row else s.cols, a,
                         s.groups * s.K * s.Hd * s.Wd, s.cols, b, z.source, z.strip.width,
                         total + (k * z.across + t) * z.size, ahead)
        row += rows * pictures
    end_task(before)


cdef void add_dots(Shape *s, Dots *z, real *total, Py_ssize_t parts, Py_ssize_t filter, real *dw,
                   bint filters_first) noexcept nogil:
    """The parts' sums of a filter, counted over the groups, added in order."""
    cdef Py_ssize_t g = filter // s.K, k = filter % s.K, part = s.groups * z.down * z.across * z.size, t, p, first, cols, m
    cdef Py_ssize_t step = 1 if filters_first else s.K
    cdef real *to = dw + filter * (z.products if filters_first else 1)
    cdef real *at
    for t in range(z.across):
        first = z.products * t // z.across
        cols = z.products * (t + 1) // z.across - first
        at = total + ((g * z.down + k // DOT_ROWS) * z.across + t) * z.size + k % DOT_ROWS * DOT_COLS
        for m in range(cols):
            to[(first + m) * step] = at[m]
            for p in range(1, parts):
                to[(first + m) * step] += at[p * part + m]
