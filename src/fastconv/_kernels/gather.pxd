"""What the gathers of conv.pyx and planes.pyx, the weight gradients of grad_w.pyx and columns.pyx share: a convolution's numbers,
and strips of depth-first pictures."""

cimport numpy as cnp
from libc.string cimport memset

from fastconv._kernels.tiles cimport DOT_ROWS, ceil_div, copy, fetch_lines, lanes, least, most, odd_lines, real

cdef enum:
    STREAM = 5 << 22      # bytes of pictures that no cache keeps: results are written past them
    SWEPT = 3 << 24       # the same of those of few channels, read and written in one sweep
    AHEAD = 1 << 22       # bytes of pictures beyond a core's own caches: what comes is called for before it is needed
    L2_SHARE = 1 << 18    # bytes of one operand that a core's second-level cache holds with room to spare
    SMALL_WORK = 1 << 18  # products that are done before a team of threads has started
    COPYING = 16          # filters whose products cost as much as to copy a pixel of a strip once more


cdef struct Shape:
    Py_ssize_t N, groups, C, K        # C and K are those of one group
    Py_ssize_t Hs, Ws, Hd, Wd         # source and destination
    Py_ssize_t rows, cols             # the grid of destination pixels
    Py_ssize_t origin_h, origin_w, step_h, step_w, stride_h, stride_w
    Py_ssize_t T                      # taps
    Py_ssize_t *dh                    # offsets of the taps
    Py_ssize_t *dw
    Py_ssize_t *tap                   # which of the window's F*F
    Py_ssize_t window                 # F*F
    # A window row of few channels is one run, F_w*C long, in a padded copy of the rows: 0, or F_w.
    Py_ssize_t merged
    bint stream                       # dst is too large for the caches
    bint fetch                        # dst is too large for a core's own cache
    bint ahead                        # depth-last: the source is, of one tap or few filters: a task calls for the next one's pixels
    bint across_planes                # depth-last: pictures lie depth first, `one_to_one`, and are read from plane to plane
    bint by_place                     # depth-last: pixels are counted place by place, for each all pictures, not by picture
    bint apart                        # depth-first: the grid's pixels do not lie side by side in dst
    bint as_it_lies                   # `one_to_one`; depth-first: and it is large
    bint by_taps                      # depth-first: weights are read [filter][window][channel], else [filter][channel][tap]
    # Depth-last: packing turns the weights over; a filter's taps lie side by side, and are packed all at once.
    bint across, by_filters
    # Taps of all gathers of a convolution, if they are packed together, else its own: how many, which, how many before its own.
    Py_ssize_t together, before
    Py_ssize_t *every


cdef inline Shape make_shape(tuple sizes, tuple grid, cnp.ndarray taps, Py_ssize_t window):
    """The numbers that `Gather` and `WeightGradient` are made of; it points into `taps`."""
    cdef Shape s
    memset(&s, 0, sizeof(Shape))
    s.N, s.groups, s.C, s.K, s.Hs, s.Ws, s.Hd, s.Wd = sizes
    s.rows, s.cols, s.origin_h, s.origin_w, s.step_h, s.step_w, s.stride_h, s.stride_w = grid
    s.T, s.window = taps.shape[1], window
    s.dh = <Py_ssize_t *> cnp.PyArray_DATA(taps)
    s.dw, s.tap = s.dh + s.T, s.dh + 2 * s.T
    s.together, s.every = s.T, s.tap
    return s


cdef inline Py_ssize_t even(Py_ssize_t tasks, int threads) noexcept nogil:
    """At least so many tasks and one, as many for each thread."""
    return ceil_div(tasks, threads) * threads if tasks > threads else most(1, tasks)


cdef inline bint one_to_one(Shape *s) noexcept nogil:
    """Whether there is one tap, and the grid is the source picture."""
    return s.T == 1 and s.dh[0] == s.dw[0] == 0 and s.stride_h == s.stride_w == 1 and s.rows == s.Hs and s.cols == s.Ws


cdef inline Py_ssize_t bytes_met(Shape *s, real *like) noexcept nogil:
    """What a gather reads and writes of pictures."""
    return s.N * s.groups * (s.rows * s.cols * s.K + s.Hs * s.Ws * s.C) * <Py_ssize_t> sizeof(real)


cdef inline bint in_one_sweep(Shape *s) noexcept nogil:
    """Whether results lie as the pictures do, and these have so few channels that weights stay in registers."""
    return one_to_one(s) and s.rows == s.Hd and s.cols == s.Wd and 1 <= s.C <= DOT_ROWS


cdef inline bint beyond_caches(Shape *s, real *like) noexcept nogil:
    """Whether no cache keeps what is met."""
    return bytes_met(s, like) > (SWEPT if in_one_sweep(s) else STREAM)


# ---------------------------------------------------------------- strips of depth-first pictures
cdef struct Planes:
    # How a depth-first gather goes where rows of the grid are long: strips of its rows, whose source is copied into a core's
    # cache once for all taps, padded and, S > 1, every S-th row and column after the other; panels are read from there. Copied
    # once for each column of the window, as wide as the grid is, a strip's rows make a single one: then it is any stretch of it.
    Py_ssize_t rows, strips           # of the grid in a strip, none if panels are packed; strips of a picture
    bint one_row
    Py_ssize_t pixels                 # of the grid in such a strip
    Py_ssize_t step                   # source rows of a strip from one row of the grid to the next
    Py_ssize_t top, left, down        # least offsets of the taps; from the highest tap to the lowest
    Py_ssize_t phases, width          # sets of columns, and columns in one
    Py_ssize_t part, size             # numbers from one set of rows and columns to the next; from one channel to the next
    double lost                       # products whose time a row of the grid loses past its end, or to further copies
    Py_ssize_t scratch


cdef inline bint apart(Shape *s) noexcept nogil:
    """Whether the grid's pixels do not lie side by side in dst."""
    return s.step_w != 1 or s.step_h != 1 or s.cols != s.Wd


cdef inline void place_planes(Shape *s, Planes *z, real *like) noexcept nogil:
    """How wide a strip is, whatever its rows."""
    cdef Py_ssize_t last = s.T - 1, right, window_row
    cdef double copied
    z.top, z.left = least(s.dh[0], s.dh[last]), least(s.dw[0], s.dw[last])
    z.down, right = most(s.dh[0], s.dh[last]) - z.top, most(s.dw[0], s.dw[last]) - z.left
    z.step, z.phases = s.stride_h if z.down else 1, s.stride_w if right else 1
    z.lost = <double> (ceil_div(s.cols, lanes(like)) * lanes(like) - s.cols) * s.K * s.T
    copied = <double> COPYING * s.cols * z.step * (right + 1 - z.phases)
    window_row = (z.down + z.step) * s.C * (right + 1) * s.cols * <Py_ssize_t> sizeof(real)
    z.one_row = copied < z.lost and not apart(s) and window_row <= L2_SHARE
    if z.one_row:
        z.lost, z.phases = copied, right + 1
    z.width = s.cols + right // z.phases


cdef inline void size_planes(Planes *z, Py_ssize_t rows, real *like) noexcept nogil:
    """How far apart its parts lie in a strip of so many rows: their numbers of one place are read one after the other."""
    z.rows = rows
    z.part = odd_lines((rows + z.down // z.step) * z.width, like)
    z.size = odd_lines(z.step * z.phases * z.part, like)


cdef inline void list_products(Shape *s, Planes *z, Py_ssize_t *table) noexcept nogil:
    """Where the source of each product of a sum lies in a strip, from the place of its first tap and channel on."""
    cdef Py_ssize_t t, c, right, down, at, next_tap = s.C if s.by_taps else 1, next_channel = 1 if s.by_taps else s.T
    for t in range(s.T):
        right = s.dw[t] - z.left
        down = s.dh[t] - z.top
        at = (down % z.step * z.phases + right % z.phases) * z.part + down // z.step * z.width + right // z.phases
        for c in range(s.C):
            table[t * next_tap + c * next_channel] = at + c * z.size


cdef inline void copy_planes(Shape *s, Planes *z, real *src, Py_ssize_t lo, Py_ssize_t hi, real *strip) noexcept nogil:
    """strip[channel][set of rows and columns][row][column] for rows lo to hi of the grid, with zeros outside the picture."""
    cdef Py_ssize_t c, v, p, h, left, begin, end
    cdef real *to
    for c in range(s.C):
        for v in range((hi - lo - 1) * z.step + z.down + 1):
            h = lo * s.stride_h + z.top + v * (s.stride_h // z.step)
            if 0 <= h < s.Hs and c + 1 < s.C:  # planes lie pages apart: the processor does not guess the next one
                fetch_lines(src + (s.Hs + h) * s.Ws, s.Ws * sizeof(real))
            to = strip + c * z.size + v % z.step * z.phases * z.part + v // z.step * z.width
            for p in range(z.phases):
                left = z.left + p
                begin = least(z.width, ceil_div(most(0, -left), s.stride_w))
                end = most(begin, least(z.width, ceil_div(most(0, s.Ws - left), s.stride_w)))
                if not 0 <= h < s.Hs:
                    begin = end = z.width
                if begin > 0:  # a call costs as much as a short copy
                    memset(to, 0, begin * sizeof(real))
                copy(to + begin, src + h * s.Ws + left + begin * s.stride_w, end - begin, s.stride_w)
                if end < z.width:
                    memset(to + end, 0, (z.width - end) * sizeof(real))
                to += z.part
        src += s.Hs * s.Ws
