"""What a convolution is in numbers, and what each way of doing it costs.

A `Problem` is a convolution with all its numbers normalised. Costs are cycles of a core, by arithmetic: products in whole register
tiles, transforms, copies. planning.py chooses by them; how each way goes is told in docs/kernels.md.
"""

import math
from typing import NamedTuple

import numpy as np

from fastconv import _kernels, runtime
from fastconv.geometry import Pair, Window

SMALL_PICTURE = 1 << 16  # operations for which nothing is turned over
MOSTLY_LIVING = 0.75  # of products; where more are padding, depth-first pictures of any size may be turned over
COLUMNS = 4 * runtime.SECOND_CACHE  # bytes of im2col's columns at a time
TURNED = 4 * runtime.SECOND_CACHE  # bytes of depth-first pictures, and of their results, that are turned over at a time

# Cycles for vectors of VL numbers; only their ratios matter. Measured with bench/test_conv.py.
# The transforms' are those of a 6 x 6 tile: others go in proportion to their pixels, but 8 x 8 do not stay in registers.
TRANSFORM = {"data": 130, "filter": 100, "result": 110}
SPILLED = 4 / 3
PICKING = 2, 3  # filters of S=2 whose taps are picked for each phase, and turned over as well, for one with S=1
TURNING = 6  # a vector of a depth-first picture; half of it, where a block of VL channels has none
PASSES = 2  # that turning over costs, since what is turned has to be read once more
TURNED_MARGIN = 0.9  # of a depth-first picture's cycles as it lies, below which it is turned over
LARGE_TURNED_MARGIN = 0.7  # the same of one that no core's caches keep
COPYING = 12, 6  # a row into a strip, and each of its vectors
ONE_ROW = 1.1  # of a strip copied for each column of a window, for a cycle of products: taps share no cache lines
BEGINNING = 6  # a pixel's sums, depth last, and writing them
FEW_A_GROUP = 1.4  # of small groups, for a cycle of multiplications
PART_OF_VECTOR, PLANE_PRODUCT = 2.3, 1.5  # of depthwise layers, a tap of a pixel of few channels, and of a vector of a plane
SUMS_OF_PIXELS = 1.9  # a vector of pixels' products for a weight gradient, for one of filters'
PACKING = 20  # two vectors of depth-first pixels, for one more tap
# Of pixels that stand alone: to pack two vectors of them by the way, for each L1 bytes of the packed panel; more if a picture ends
# within it, and to put a filter's results of such a panel in place; to turn over a vector of results that are still in cache.
BY_THE_WAY, CROSSING, SCATTERING, TURNING_IN_CACHE, L1 = 3, 8, 24, 3, 1 << 15
# Of weight gradients: a vector of a depth-first plane, and of weights, turned over; tiles of one vector, for a cycle of products.
TURNING_PLANES, TURNING_WEIGHTS, ONE_VECTOR = 4, 8, 1.25
LINE = 3  # a cache line of a strip in the second-level cache
PAGE = 1 << 12  # bytes after which addresses fall into the same set of a first-level cache
ADDING = 8  # a vector of the columns to dx
MOVING, BLOCK = 1.2, 48  # a vector of sums between a core's caches, as a block of so many tiles adds to them
CORNER = 128  # channels, or filters, for which a weight gradient's tiles are transformed once
# Of direct convolution's cycles, which Winograd must stay below: for weights, more with S=2, for which direct convolution packs
# pixels that it does not multiply; for pictures; less with S=2 for pictures, whose values leave a core's cache sooner, and still
# less where no cache keeps the filters of its phases.
WEIGHTS_MARGIN, STRIDED_WEIGHTS_MARGIN, MARGIN, STRIDED_MARGIN, LARGE_STRIDED_MARGIN = 1.0, 1.06, 0.9, 0.85, 0.78
APART_MARGIN = 0.75  # of pictures that are turned over for it
LARGE = 3 * runtime.LAST_CACHE // 8  # bytes of transformed filters
APART = 4  # depth-first pixels of which one is read at a time, for which pictures are turned over
QUARTERED = 6  # taps a side of a window of which Winograd makes four
STREAM = 5 << 22  # bytes of pictures, and their results, that no cache keeps
NARROW, STRETCH = 1 << 7, 1 << 10  # bytes of a depth-last pixel: so few are not worth the way to it, so many are
PART_PIXELS = 1 << 14  # of a part of direct convolution's, which has fewer than two times as many


class Problem(NamedTuple):
    """One direction of a convolution of N pictures of H1 x W1 x D1 with K filters."""

    direction: str
    N: int
    H1: int
    W1: int
    D1: int
    K: int
    window: Window
    groups: int
    nchw: bool
    dtype: str
    turned: bool = False  # depth-last pictures of a depth-first problem, whose weights lie as they did

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(self.dtype).itemsize

    @property
    def VL(self) -> int:
        """Numbers in a vector of the kernels in use."""
        return _kernels.kernel("conv").VECTOR // self.itemsize

    @property
    def picture_bytes(self) -> int:
        """Of one picture and its result."""
        return (self.H1 * self.W1 * self.D1 + math.prod(self.window.size) * self.K) * self.itemsize

    @property
    def flops(self) -> int:
        """Multiplications and additions of direct convolution, 2 for each product; the same in all directions."""
        (H2, W2), (Fh, Fw) = self.window.size, self.window.F
        return 2 * self.N * H2 * W2 * self.K * (self.D1 // self.groups) * Fh * Fw

    @property
    def filters_first(self) -> bool:
        """Whether the weights are (K, D1, F, F), not (F, F, D1, K)."""
        return self.nchw or self.turned

    @property
    def whole(self) -> bool:
        """Whether the window is the whole picture."""
        w = self.window
        return w.F == (self.H1, self.W1) and w.size == w.dilation == (1, 1) and w.pads == ((0, 0), (0, 0)) and self.groups == 1

    @property
    def depthwise(self) -> bool:
        """Whether every channel stands alone: several in groups of one, or a single one under a single filter."""
        return self.groups == self.D1 and (self.D1 > 1 or self.K == 1)

    @property
    def few_a_group(self) -> bool:
        """Whether groups are so small that, depth last, a vector holds whole ones: these are done as depthwise ones are."""
        q = self.D1 // self.groups
        return q == self.K // self.groups and q in (2, 4, 8) and q <= self.VL and self.groups > 1

    @property
    def pointwise(self) -> bool:
        """Whether every pixel stands alone, so that the picture may be taken as one long row."""
        w = self.window
        return w.F == (1, 1) and w.S == (1, 1) and w.pads == ((0, 0), (0, 0))


def meets(offset: int, step: int, n_out: int, n_in: int) -> bool:
    """Whether any place i < n_out meets, at i * step + offset, one of n_in; in a small picture some taps see only padding."""
    first = max(0, -(offset // step))
    return first < n_out and first * step + offset < n_in


def offsets(p: Problem, axis: int, every: bool) -> list[Pair]:
    """(tap, its offset from the place where the window lies) along an axis: `every` tap, or those that meet the picture."""
    w, n_in = p.window, (p.H1, p.W1)[axis]
    taps = [(r, r * w.dilation[axis] - w.pads[axis][0]) for r in range(w.F[axis])]
    return [tap for tap in taps if every or meets(tap[1], w.S[axis], w.size[axis], n_in)]


def _reach(w: Window) -> Pair:
    """From the first tap to the last."""
    return w.dilation[0] * (w.F[0] - 1), w.dilation[1] * (w.F[1] - 1)


def exchange(p: Problem) -> Problem:
    """With dy as the picture and x as the result's gradient: of the weight gradient the same sums, turned over and round."""
    (H2, W2), (down, across), ((top, bottom), (left, right)) = p.window.size, _reach(p.window), p.window.pads
    pads = (down - top, down - bottom), (across - left, across - right)
    return p._replace(H1=H2, W1=W2, D1=p.K, K=p.D1, window=p.window._replace(pads=pads, size=(p.H1, p.W1)))


def read_by_rows(p: Problem) -> bool:
    """Whether so few channels lie side by side that a gather reads a window row, not a tap, at a time."""
    return p.groups == 1 and p.D1 < 8 and p.window.F[1] > 1 and p.window.dilation[1] == 1


def columns_bytes(p: Problem) -> int:
    """Of one picture's columns."""
    return math.prod(p.window.size) * math.prod(p.window.F) * p.D1 * p.itemsize


def _living(p: Problem) -> float:
    """The share of products, of the taps that meet the picture, that see it: depth last, those of padding are left out."""
    share = 1.0
    for S, n_out, n_in, axis in zip(p.window.S, p.window.size, (p.H1, p.W1), (0, 1), strict=True):
        taps = offsets(p, axis, False)
        seen = sum(max(0, min(n_out, -(-(n_in - offset) // S)) - max(0, -(offset // S))) for _, offset in taps)
        share *= seen / max(1, n_out * len(taps))
    return share


def nominal(p: Problem) -> Problem:
    """`p` for the choice of a method: eight pictures, whatever the batch, for a picture's bits must not depend on its batch."""
    return p if p.direction == "grad_w" else p._replace(N=8)


# ---------------------------------------------------------------- which way a direct convolution goes
def _short_rows_of_groups(p: Problem) -> bool:
    """Whether rows of small groups are too short for panels of pixels, or would be scattered."""
    channels, pixels = p.D1 // p.groups, p.window.size[1]
    if p.direction == "grad_x" and p.window.S != (1, 1):
        return p.picture_bytes <= TURNED
    if p.direction == "grad_w" and (channels >= 8 or (pixels > p.VL and p.N * p.picture_bytes > TURNED)):
        return False  # few lanes to win, or all pictures of the batch to turn over at once
    return pixels <= (2 * p.VL if channels < 8 else p.VL)


def better_turned(p: Problem) -> bool:
    """Whether depth-first pictures are turned over before and after a gather. That costs less than what it saves: scattering dx
    by phases, panels of pixels from rows of a few, products of padding, or weights that are read across. A single pixel need
    not be turned."""
    w = p.window
    if p.nchw and p.direction != "grad_w" and p.H1 == p.W1 == math.prod(w.size) == 1:
        return True
    if p.nchw and p.few_a_group and _short_rows_of_groups(p):
        return True
    if not p.nchw or p.direction == "grad_w" or p._replace(N=1).flops < SMALL_PICTURE:
        return False
    pointwise, strided = w.F == (1, 1), w.S != (1, 1)
    if pointwise and (p.direction == "fwd" or p.groups > 1):
        return False
    if p.direction == "grad_x" and strided and not pointwise:
        return p.picture_bytes <= TURNED * p.groups or _living(p) < MOSTLY_LIVING  # of large ones a few groups at a time
    large = p.picture_bytes > TURNED and _living(p) >= MOSTLY_LIVING
    p = nominal(p)
    turned, first = PASSES * _turning(p) + direct_cycles(p._replace(nchw=False, turned=True)), _depth_first_cycles(p)
    if pointwise:  # depth last the weights of dx lie as they are read, and nothing is scattered
        return not large and turned * (TURNED_MARGIN if strided else 1) < first + TURNING * p.D1 * p.K / p.VL
    return turned < (LARGE_TURNED_MARGIN if large else TURNED_MARGIN) * first


def across_planes(p: Problem) -> bool:
    """Whether depth-first pixels that stand alone are multiplied as depth-last ones are, vectors along the filters: no pixel is
    packed, no lane lost where a picture ends, but the results are turned over. The sums are the same."""
    return p.nchw and p.pointwise and p.direction != "grad_w" and _across_cycles(p) < _panels_cycles(p)


def better_depth_first(p: Problem) -> bool:
    """Whether depth-last pictures of few channels, alone or not, or of small groups, are turned over, so that vectors run along the
    pixels: along the channels, of dx or of y, most of their lanes would be empty."""
    VL, first = p.VL, nominal(p)._replace(nchw=True)
    if p.depthwise:
        return not p.nchw and 1 < p.D1 < VL and p._replace(N=1).flops >= SMALL_PICTURE and _planes_pay(first)
    if p.nchw or p.turned or p.few_a_group or p.picture_bytes > TURNED or better_turned(first):
        return False
    if p.direction == "grad_w":  # a vector of pixels of each filter, or of filters at each pixel
        across, K = p.window.size[1], p.K // p.groups
        enough = across >= max(VL, SUMS_OF_PIXELS * K * -(-across // VL))
        return p.groups > 1 and p.window.F != (1, 1) and enough
    turned, last = _turning(first) + _depth_first_cycles(first), _depth_last_cycles(nominal(p))
    if p.groups > 1:
        return turned < TURNED_MARGIN * last
    few = p.window.F != (1, 1) and max(p.D1, p.K) <= VL
    pixels = first.N * (math.prod(p.window.size) if p.direction == "fwd" else p.H1 * p.W1)
    return few and turned < last + BEGINNING * pixels


def _planes_pay(p: Problem) -> bool:
    """Whether it pays to make planes of a depthwise layer's pixels, each of which is a part of one vector; `p` is depth first."""
    pixels, taps = p.N * math.prod(p.window.size), math.prod(p.window.F)
    planes = _turning(p) * p.groups + PLANE_PRODUCT * pixels * taps * p.K / p.VL
    return planes < TURNED_MARGIN * pixels * p.K // p.D1 * (BEGINNING + PART_OF_VECTOR * taps)


def better_forward(p: Problem) -> bool:
    """Whether the gradient by the picture is made as the forward convolution that it is with S=1: that reads few filters a window
    row at a time, not a tap."""
    pads, reach = p.window.pads, _reach(p.window)
    fits = all(max(pad) <= most for pad, most in zip(pads, reach, strict=True))
    return p.direction == "grad_x" and not p.nchw and p.window.S == (1, 1) and fits and read_by_rows(exchange(p))


def better_exchanged(p: Problem) -> bool:
    """Whether the weight gradient of few filters is better made as that of few channels: depth last, its vectors run along the
    channels then, depth first along the pixels of both pictures, if these are many. Under a 1x1 window it is the matrix turned
    over: the planes of x are turned over, not those of dy, and no weights."""
    w, (down, across), VL = p.window, _reach(p.window), p.VL
    if p.groups > 1 or max(w.pads[0]) > down or max(w.pads[1]) > across:
        return False
    if p.nchw and w.F == (1, 1) and min(p.D1, p.K) >= VL:
        return _by_planes_cycles(p, p.K, p.D1) < _by_planes_cycles(p, p.D1, p.K) + TURNING_WEIGHTS * p.K * p.D1 / VL
    if w.S != (1, 1):
        return False
    filters, channels = -(-p.K // VL), -(-p.D1 // VL)
    if p.nchw:
        return 1.4 * p.K < VL * filters and p.D1 >= 2 * p.K and p.H1 * p.W1 >= 16 * VL
    return p.K * channels < 0.7 * p.D1 * filters


def pixels_copied(p: Problem) -> bool:
    """Whether a depthwise layer copies depth-last pixels: a power of two apart, fewer of them find a place in a first-level cache,
    whose ways are a page each, than a window's rows have that are met at a time."""
    pixel = (p.K if p.direction == "grad_x" else p.D1) * p.itemsize
    places = runtime.FIRST_CACHE // math.gcd(pixel, PAGE)
    return not p.nchw and p.groups == p.D1 and places < p.window.F[0] * _kernels.kernel("depthwise").PIXELS


# ---------------------------------------------------------------- Winograd's tiles
def cut(p: Problem) -> int:
    """Parts into which Winograd cuts the window along an axis: odd and even taps with S=2, else the first ones and the last."""
    return 2 if p.window.S == (2, 2) or min(p.window.F) >= QUARTERED else 1


def _sources(p: Problem) -> int:
    """Phases that one sum of Winograd's runs over."""
    return 1 if p.direction == "grad_x" and p.window.S == (2, 2) else cut(p) ** 2


def phase_extents(p: Problem) -> Pair:
    """Of the filters that Winograd transforms: of the first, or even, rows and columns."""
    Fh, Fw = p.window.F
    return -(-Fh // cut(p)), -(-Fw // cut(p))


def _values(p: Problem, m: Pair) -> Pair:
    """Rows and columns of a tile."""
    rh, rw = phase_extents(p)
    return m[0] + rh - 1, m[1] + rw - 1


def _pictures(p: Problem) -> int:
    """What Winograd has for pictures: with dilation, the pixels of every so many rows and columns are one of their own."""
    size = (p.H1, p.W1) if p.direction == "grad_x" else p.window.size
    return p.N * math.prod(max(1, min(d, places)) for d, places in zip(p.window.dilation, size, strict=True))


def _results(p: Problem) -> Pair:
    """Rows and columns that Winograd's tiles cover, of the largest picture or phase."""
    w = p.window
    if p.direction != "grad_x":
        return -(-w.size[0] // w.dilation[0]), -(-w.size[1] // w.dilation[1])

    def places(axis: int) -> int:
        size, F, S, odd = (p.H1, p.W1)[axis], w.F[axis], w.S[axis], w.pads[axis][0] % 2
        return size // 2 + 1 if S == 2 and F % 2 == 0 and odd else -(-size // (S * w.dilation[axis]))

    return places(0), places(1)


def _tiles(p: Problem, m: Pair) -> int:
    return _pictures(p) * math.prod(-(-places // side) for places, side in zip(_results(p), m, strict=True))


def needed(p: Problem, m: Pair) -> float:
    """The share of the tiles' values that are multiplied: one or two fewer a side where the picture ends within a tile."""
    share = 1.0
    for n, side, places in zip(_values(p, m), m, _results(p), strict=True):
        spared = (places % side > 0) + (0 < places % side < side - 1)
        share *= 1 - spared / (n * max(1, -(-places // side)))
    return share


def parts(p: Problem, m: Pair) -> int:
    """Parts of a weight gradient's tiles, with sums of their own: enough for eight threads, if there are not corners enough. Small
    groups of depth-last pictures that no cache keeps have their corners together, for more of a pixel to be read at a time."""
    narrow = p.groups > 1 and not p.nchw and p.D1 * p.itemsize <= NARROW * p.groups
    sets, tiles = (-(-p.D1 * p.itemsize // STRETCH), 256) if narrow and p.N * p.picture_bytes > STREAM else (p.groups, 64)
    corners = -(-p.D1 // p.groups // 64) * -(-p.K // p.groups // 64) * sets * cut(p) ** 2
    return max(1, min(8 // max(1, corners), _tiles(p, m) // tiles))


def winograd_tile(p: Problem) -> Pair:
    """Rows and columns of results, the cheapest; of 6 or 7 taps in a line there is one tile only."""
    rh, rw = phase_extents(p)
    r = max(rh, rw)
    points: tuple[int, ...]
    if cut(p) == 2:
        points = {2: (4,) if p.window.F[0] % 2 else (6, 4), 3: (6, 4), 4: (8, 6)}[r]
    elif 1 in p.window.F:
        points = (8, 6) if r <= 5 else (8,)
    else:
        points = {2: (6, 4), 3: (6, 4), 4: (6,), 5: (8, 6)}[r]
    tiles = [(n - r + 1 if rh > 1 else 1, n - r + 1 if rw > 1 else 1) for n in points]
    return min(tiles, key=lambda m: winograd_cycles(nominal(p), m))


def better_turned_for_winograd(p: Problem) -> bool:
    """Whether depth-first pictures are turned over for Winograd: with dilation it reads one of so many pixels of a row, few of a
    cache line; depth last, the channels of a pixel lie together."""
    return p.nchw and p.window.dilation[1] >= APART and p.picture_bytes <= TURNED


def margin(p: Problem, m: Pair) -> float:
    """Of direct convolution's cycles, what Winograd must stay below to be taken."""
    strided = p.window.S != (1, 1)
    if p.direction == "grad_w":
        return STRIDED_WEIGHTS_MARGIN if strided else WEIGHTS_MARGIN
    if not strided:
        return APART_MARGIN if better_turned_for_winograd(p) else MARGIN
    filters = math.prod(_values(p, m)) * 4 * p.D1 * p.K // p.groups * p.itemsize
    return STRIDED_MARGIN if filters <= LARGE else LARGE_STRIDED_MARGIN


# ---------------------------------------------------------------- cycles
def _product(rows: float, k: float, cols: int, p: Problem) -> float:
    """Cycles of a matrix product in register tiles: bound by arithmetic, loads or, with few sums, by latency."""
    kernels = _kernels.kernel("conv")
    VL, MR = p.VL, kernels.MR
    vectors, blocks = max(1, -(-cols // VL)), max(1, -(-rows // MR))
    height, width = rows / blocks, min(vectors, 2)
    return k * blocks * vectors / width * max(height * width / 2, (height + width) / 2, 4)


def _turning(p: Problem, times: Pair = (1, 1)) -> float:
    """Cycles for a group's depth-first pictures, and their results, so many times."""
    VL, pixels = p.VL, p.H1 * p.W1

    def vectors(depth: int) -> int:
        """Read and written for as many places as a vector has; four channels are woven without empty ones."""
        return 2 * depth if depth == 4 else -(-depth // VL) * VL + depth

    sides = (times[0], p.D1, pixels), (times[1], p.K, math.prod(p.window.size))
    full = sum(n * vectors(depth) * -(-places // VL) for n, depth, places in sides if depth > 1 and places > 1)
    return TURNING * p.N * full / 2 / p.groups


def direct_cycles(p: Problem) -> float:
    """Of the way that direct convolution goes: turned over, exchanged, by channels or by filters."""
    Fh, Fw = len(offsets(p, 0, False)), len(offsets(p, 1, False))
    D, K, (H2, W2) = p.D1 // p.groups, p.K // p.groups, p.window.size
    if p.nchw and better_turned(p):
        return _turning(p) + direct_cycles(p._replace(nchw=False))
    if p.few_a_group and not p.nchw:
        vectors = D * p.itemsize / _kernels.kernel("conv").VECTOR
        return p.N * H2 * W2 * Fh * Fw * D * vectors / 2 * FEW_A_GROUP
    if p.direction == "grad_w":
        if better_exchanged(p):
            D, K = K, D
        taps = max(1, Fw) if D <= 2 * _kernels.kernel("conv").MR else 1  # of few channels, a window row's lie side by side
        return Fh * Fw // taps * _product(taps * D, p.N * H2 * W2, K, p) * 1.1
    if better_depth_first(p):
        return _turning(p) + _depth_first_cycles(p._replace(nchw=True))
    return _depth_first_cycles(p) if p.nchw else _depth_last_cycles(p)


def _depth_last_cycles(p: Problem) -> float:
    """Of a depth-last gather."""
    taps = len(offsets(p, 0, False)) * len(offsets(p, 1, False))
    pixels, D, K = p.N * math.prod(p.window.size), p.D1 // p.groups, p.K // p.groups
    if p.direction == "grad_x":
        pixels, D, K = -(-p.N * p.H1 * p.W1 // math.prod(p.window.S)), K, D
    return _few_cycles(pixels, taps, D, K, p) or _living(p) * _product(pixels, taps * D, K, p)


def _across_cycles(p: Problem) -> float:
    """Of depth-first pixels that stand alone, from plane to plane; weights are packed, and results turned over."""
    pixels, D, K = p.N * p.H1 * p.W1, p.D1 // p.groups, p.K // p.groups
    if p.direction == "grad_x":
        D, K = K, D
    return p.N * _product(p.H1 * p.W1, D, K, p) + TURNING_IN_CACHE * (pixels + D) * -(-K // p.VL)


def _panels_cycles(p: Problem) -> float:
    """The same from panels of pixels, counted over the batch, of which the first filters pack those that no picture's end cuts."""
    picture, NR, D, K = p.H1 * p.W1, 2 * p.VL, p.D1 // p.groups, p.K // p.groups
    if p.direction == "grad_x":
        D, K = K, D
    panels = -(-p.N * picture // NR)
    cut = min(panels, p.N - p.N * math.gcd(picture, NR) // NR)
    packing = D * (BY_THE_WAY * D * NR * p.itemsize / L1 * panels + CROSSING * cut)
    return _product(K, D, p.N * picture, p) + packing + SCATTERING * K * cut


def _depth_first_cycles(p: Problem) -> float:
    """Of a depth-first gather: from strips of rows, with lanes lost past their ends, or from packed panels; see plan_planes."""
    if p.pointwise:
        return min(_across_cycles(p), _panels_cycles(p))
    VL, (Sh, Sw) = p.VL, p.window.S
    taps, across = len(offsets(p, 0, False)) * len(offsets(p, 1, False)), len(offsets(p, 1, False)) > 1
    (H2, W2), D, K, rows, (down, right) = p.window.size, p.D1 // p.groups, p.K // p.groups, p.H1, _reach(p.window)
    if p.direction == "grad_x":
        (H2, W2), D, K, rows, down, right = (-(-p.H1 // Sh), -(-p.W1 // Sw)), K, D, H2, down // Sh, right // Sw
        Sh = Sw = 1
    planes, products, lost = _kernels.kernel("planes"), _product(K, taps * D, p.N * H2 * W2, p), -W2 % VL * K * taps
    steps = taps * D * -(-p.N * H2 * W2 // (2 * VL))  # of all tiles of one row
    copies = Sw if across else 1
    copied = planes.COPYING_AGAIN * W2 * (Sh if down else 1) * (right + 1 - copies)
    window_row = (down + Sh) * D * W2 * (right + 1) * p.itemsize
    one_row = copied < lost and (p.direction == "fwd" or p.window.S == (1, 1)) and window_row <= planes.STRIP // 2
    if one_row:
        lost, copies = copied, right + 1
    strip = (down + 1) * D * (W2 * copies + right) * p.itemsize
    if W2 < VL or lost >= PACKING * W2 * (taps - Sh * Sw) or strip > planes.STRIP:
        return products + PACKING * steps
    lanes = ONE_ROW if one_row else -(-W2 // VL) * VL / W2
    copying = p.N * D * rows * copies * (COPYING[0] + COPYING[1] * (W2 + VL) / VL)
    return max(products, LINE * steps * 2 * VL * p.itemsize / 64) * lanes + copying


def _by_planes_cycles(p: Problem, rows: int, columns: int) -> float:
    """Of the weight gradient of depth-first pixels that stand alone: planes as they lie by planes that are turned over."""
    pixels = p.N * math.prod(p.window.size)
    narrow = ONE_VECTOR if columns <= p.VL else 1
    return narrow * _product(rows, pixels, columns, p) + TURNING_PLANES * pixels * columns / p.VL


def _few_cycles(pixels: float, taps: int, channels: int, filters: int, p: Problem) -> float:
    """Of a gather whose vectors run along the channels, bound by arithmetic or loads; 0 if they run along the filters."""
    kernels = _kernels.kernel("conv")
    VL = p.VL
    wide_enough = channels >= VL >= (2 if taps > 1 else 4) * kernels.FEW
    if p.groups > 1 or filters > kernels.FEW or not wide_enough:
        return 0
    return pixels * (taps * -(-channels // VL) * (max(filters, 2) + 1) / 2 + 10)


def im2col_cycles(p: Problem) -> float:
    """Of grad_x: the product has no more rows than dy has pixels, but each of its numbers is added to dx by itself."""
    (H2, W2), taps, D, K = p.window.size, math.prod(p.window.F), p.D1 // p.groups, p.K // p.groups
    VL = p.VL
    if p.nchw and p.picture_bytes > TURNED:
        return _product(taps * D, K, p.N * H2 * W2, p) + ADDING * p.N * D * taps * H2 * -(-W2 // VL)
    return _product(p.N * H2 * W2, K, taps * D, p) + ADDING * p.N * H2 * W2 * taps * -(-D // VL)


def winograd_cycles(p: Problem, m: Pair) -> float:
    """Products and transforms, with tiles of m results."""
    VL = p.VL
    D, K = p.D1 // p.groups, p.K // p.groups
    if p.direction == "grad_x":
        D, K = K, D
    (nh, nw), tiles, phases, sources = _values(p, m), _tiles(p, m), cut(p) ** 2, _sources(p)
    # of all phases: odd ones of odd filters have n - 1 a side
    values = nh * nw if phases == 1 else (2 * nh - p.window.F[0] % 2) ** 2
    d, k, part = -(-D // VL), -(-K // VL), nh * nw / 36 * (SPILLED if nh == nw == 8 else 1)
    if p.direction == "grad_w":
        again = -(-K // CORNER), -(-D // CORNER)  # x and dy
        corners = TRANSFORM["data"] * d * again[0] + 2 * TRANSFORM["filter"] * k * again[1]
        visits = values * D * k * MOVING * 2 * math.ceil(tiles / parts(p, m) / BLOCK) * parts(p, m)
        products = values * _product(D, tiles * needed(p, m), K, p) * 1.1 + visits
        transforms = part * phases * (tiles * corners + TRANSFORM["result"] * D * k)
        if better_turned_for_winograd(p):
            return products + transforms + PASSES * _turning(p)
        return products + transforms + (PASSES * _turning(p, again) if p.nchw and phases > 1 else 0)
    each = TRANSFORM["data"] * d * sources + TRANSFORM["result"] * k * phases / sources
    filters = phases * TRANSFORM["filter"] * D * k * (1 if phases == 1 else PICKING[p.filters_first])
    turning = min(2, p.window.dilation[1]) * _turning(p) if p.nchw else 0  # pixels apart are brought side by side first
    transforms = part * (tiles * each + filters) + turning
    return values / sources * _product(tiles * needed(p, m), sources * D, K, p) + transforms
