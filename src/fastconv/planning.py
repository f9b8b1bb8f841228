"""Which method a call takes, and why; `explain` tells.

A `Problem` is a convolution with all its numbers normalised. `plan` chooses the first method of `METHODS` that can do the job
and wants it, or checks the one that the caller named, and returns a `Plan` that runs it. Plans are kept: a second call of the
same shapes plans nothing.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastconv import _kernels, checks, runtime
from fastconv._kernels import memory
from fastconv.geometry import Pair, Window

DIRECTIONS = ("fwd", "grad_x", "grad_w")
PATCH = 16  # numbers of a row of a window that are worth a copy of it
SHORT_ROW = 5  # pixels side by side in a depth-first picture that are too few to make panels of
SMALL_PICTURE = 1 << 16  # operations for which nothing is turned over
MOSTLY_LIVING = 0.75  # of products; where more are padding, depth-first pictures of any size are turned over
COLUMNS = 4 * runtime.SECOND_CACHE  # bytes of im2col's columns at a time
TURNED = 4 * runtime.SECOND_CACHE  # bytes of depth-first pictures, and of their results, that are turned over at a time


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
        q, VL = self.D1 // self.groups, _kernels.kernel("conv").VECTOR // np.dtype(self.dtype).itemsize
        return q == self.K // self.groups and q in (2, 4, 8) and q <= VL and self.groups > 1

    @property
    def pointwise(self) -> bool:
        """Whether every pixel stands alone, so that the picture may be taken as one long row."""
        w = self.window
        return w.F == (1, 1) and w.S == (1, 1) and w.pads == ((0, 0), (0, 0))


# ---------------------------------------------------------------- gathers: see _kernels/conv.pyx, planes.pyx and grad_w.pyx
def _met(offset: int, step: int, n_out: int, n_in: int) -> bool:
    """Whether any place i < n_out meets, at i * step + offset, one of n_in; in a small picture some taps see only padding."""
    first = max(0, -(offset // step))
    return first < n_out and first * step + offset < n_in


def _offsets(p: Problem, axis: int, every: bool) -> list[Pair]:
    """(tap, its offset from the place where the window lies) along an axis: `every` tap, or those that meet the picture."""
    w, n_in = p.window, (p.H1, p.W1)[axis]
    taps = [(r, r * w.dilation[axis] - w.pads[axis][0]) for r in range(w.F[axis])]
    return [tap for tap in taps if every or _met(tap[1], w.S[axis], w.size[axis], n_in)]


def _sizes(p: Problem) -> tuple[int, Pair, Pair]:
    """N, (H1, W1) and (H2, W2); where every pixel stands alone, the same pixels in longer rows."""
    if not p.pointwise:
        return p.N, (p.H1, p.W1), p.window.size
    pixels = p.H1 * p.W1
    if p.direction == "grad_w" and pixels > 512:  # whose parts are made of whole rows
        N, size = (p.N, (p.H1, p.W1)) if p.nchw else (1, (p.N * p.H1, p.W1))
    elif p.nchw:
        N, size = p.N, (1, pixels)
    else:
        N, size = 1, ((p.N, pixels) if p.N * pixels > 256 else (1, p.N * pixels))
    return N, size, size


def _read_by_rows(p: Problem) -> bool:
    """Whether so few channels lie side by side that a gather reads a window row, not a tap, at a time."""
    return p.groups == 1 and p.D1 < 8 and p.window.F[1] > 1 and p.window.dilation[1] == 1


def _forward(p: Problem, every: bool) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray, int]:
    """Sizes, grid, taps and window of a forward gather: `every` tap, or those that meet the picture."""
    N, source, target = _sizes(p)
    (Fh, Fw), D, K = p.window.F, p.D1 // p.groups, p.K // p.groups
    rows, cols = _offsets(p, 0, every), _offsets(p, 1, every)
    taps = np.array([(h, w, r * Fw + s) for r, h in rows for s, w in cols], np.intp).reshape(-1, 3).T.copy()
    return (N, p.groups, D, K, *source, *target), (*target, 0, 0, 1, 1, *p.window.S), taps, Fh * Fw


def columns(p: Problem) -> Any:
    """What im2col and col2im walk over."""
    return _kernels.kernel("columns").Columns(*_forward(p, True), p.nchw)


def _forward_gather(p: Problem) -> Any:
    """The gather of a forward convolution; few channels side by side are read a window row at a time."""
    sizes, grid, taps, window = _forward(p, False)
    if p.nchw:
        return _kernels.kernel("planes").Gather(sizes, grid, taps, window, False)
    merged = p.window.F[1] if _read_by_rows(p) and taps.shape[1] == window else 0
    return _kernels.kernel("conv").Gather(sizes, grid, taps, window, merged, p.filters_first, False)


def _phases(p: Problem, axis: int) -> dict[int, list[Pair]]:
    """The phases of dx modulo S that taps meet: for each the taps r, with the offset of the dy pixel that each reads."""
    w, S, size, before = p.window, p.window.S[axis], (p.H1, p.W1)[axis], p.window.pads[axis][0]
    phases: dict[int, list[Pair]] = {}
    for r in range(w.F[axis]):
        phase = (r * w.dilation[axis] - before) % S
        offset = (phase + before - r * w.dilation[axis]) // S
        if phase < size and _met(offset, 1, -(-(size - phase) // S), w.size[axis]):
            phases.setdefault(phase, []).append((r, offset))
    return phases


def _gradient_gathers(p: Problem) -> list[Any]:
    """The gathers of grad_x: x pixel i*S + phase gets, from each tap r that meets it, dy pixel i + (phase + P - r*dilation)/S.

    If there are phases that no tap meets, a gather without taps comes first: it fills dx with the bias or with zeros.
    """
    N, target, source = _sizes(p)
    (Fh, Fw), (Sh, Sw), vertical, horizontal = p.window.F, p.window.S, _phases(p, 0), _phases(p, 1)

    def gather(grid: tuple[int, ...], taps: list[tuple[int, int, int]]) -> Any:
        table = np.array(taps, np.intp).reshape(-1, 3).T.copy()
        sizes = (N, p.groups, p.K // p.groups, p.D1 // p.groups, *source, *target)
        if p.nchw:
            return _kernels.kernel("planes").Gather(sizes, grid, table, Fh * Fw, True)
        return _kernels.kernel("conv").Gather(sizes, grid, table, Fh * Fw, 0, p.filters_first, True)

    gathers = []
    if len(vertical) * len(horizontal) < min(Sh, target[0]) * min(Sw, target[1]):
        gathers.append(gather((*target, 0, 0, 1, 1, 1, 1), []))
    for (a, rows), (b, cols) in itertools.product(vertical.items(), horizontal.items()):
        grid = (-(-(target[0] - a) // Sh), -(-(target[1] - b) // Sw), a, b, Sh, Sw, 1, 1)
        gathers.append(gather(grid, [(h, w, r * Fw + s) for r, h in rows for s, w in cols]))
    return gathers


# ---------------------------------------------------------------- methods: each makes a `Job`
class Job(NamedTuple):
    """How a plan is carried out: run(a, b, bias, out, relu, threads) and the bytes it allocates, workspace(threads).

    a and b are x and w (fwd), dy and w (grad_x), dy and x (grad_w).
    """

    run: Callable[..., None]
    workspace: Callable[[int], int]


def _itemsize(p: Problem) -> int:
    return np.dtype(p.dtype).itemsize


def _depthwise(p: Problem) -> Job:
    kernels, w = _kernels.kernel("depthwise"), p.window
    options = (*w.S, w.pads[0][0], w.pads[1][0], *w.dilation, p.K // p.D1, p.D1 // p.groups)
    if p.nchw:
        x, weights, y = (p.N, p.D1, p.H1, p.W1), (p.K, p.D1 // p.groups, *w.F), (p.N, p.K, *w.size)
    else:
        x, weights, y = (p.N, p.H1, p.W1, p.D1), (*w.F, p.D1 // p.groups, p.K), (p.N, *w.size, p.K)
    shapes = {"fwd": (x, weights, y), "grad_x": (y, weights, x), "grad_w": (y, x, weights)}[p.direction]

    def run(a: Any, b: Any, bias: Any, out: Any, relu: bool, threads: int) -> None:
        a, b, out = a.reshape(shapes[0]), b.reshape(shapes[1]), out.reshape(shapes[2])
        if p.direction == "fwd":
            kernels.forward(a, b, bias, out, *options, relu, p.nchw, threads)
        elif p.direction == "grad_w":
            kernels.grad_w(a, b, out, *options, p.nchw, threads)
        else:
            kernels.grad_x(a, b, out, *options, p.nchw, threads)
            if bias is not None:
                out += bias.reshape(-1, 1, 1) if p.nchw else bias

    return Job(run, lambda threads: 0)


def _picture_bytes(p: Problem) -> int:
    """Of one picture and its result."""
    (H2, W2), (H1, W1) = p.window.size, (p.H1, p.W1)
    return (H1 * W1 * p.D1 + H2 * W2 * p.K) * _itemsize(p)


def _living(p: Problem) -> float:
    """The share of products, of the taps that meet the picture, that see it: depth last, those of padding are left out."""
    share = 1.0
    for S, n_out, n_in, axis in zip(p.window.S, p.window.size, (p.H1, p.W1), (0, 1), strict=True):
        offsets = [offset for _, offset in _offsets(p, axis, False)]
        met = sum(max(0, min(n_out, -(-(n_in - offset) // S)) - max(0, -(offset // S))) for offset in offsets)
        share *= met / max(1, n_out * len(offsets))
    return share


def _short_rows_of_groups(p: Problem) -> bool:
    """Whether rows of small groups are too short for panels of pixels, or would be scattered."""
    channels, panel = p.D1 // p.groups, 2 * _kernels.kernel("conv").VECTOR // _itemsize(p)
    if p.direction == "grad_x" and p.window.S != (1, 1):
        return _picture_bytes(p) <= TURNED
    return p.window.size[1] <= (panel if channels < 8 else panel / 2) and (channels < 8 or p.direction != "grad_w")


def _better_turned(p: Problem) -> bool:
    """Whether depth-first pictures are turned over before and after a gather. That costs less than what it saves: scattering dx
    by phases, panels of pixels from rows of a few, or products of padding. A single pixel need not be turned."""
    w, strided = p.window, p.window.S != (1, 1)
    if p.nchw and p.direction != "grad_w" and p.H1 == p.W1 == math.prod(w.size) == 1:
        return True
    if p.nchw and p.few_a_group and _short_rows_of_groups(p):
        return True
    if not p.nchw or w.F == (1, 1) or p._replace(N=1).flops < SMALL_PICTURE:
        return False
    if p.direction != "grad_w" and _living(p) < MOSTLY_LIVING:
        return True
    if _picture_bytes(p) > TURNED:
        return False
    if p.direction == "grad_w":
        return strided and w.size[1] <= 2 * SHORT_ROW and p.N * _picture_bytes(p) <= TURNED
    if p.direction == "grad_x" and strided:
        return True
    if p.direction == "grad_x":
        return 2 <= p.W1 <= SHORT_ROW
    if p.D1 == 1 or (strided and w.F[0] > w.S[0] and w.F[1] > w.S[1]):  # one plane need not be turned; pixels are met again
        return w.size[1] <= 3 * SHORT_ROW or _long_rows_turned(p)
    return (1 if strided else 2) <= w.size[1] <= SHORT_ROW


def _better_depth_first(p: Problem) -> bool:
    """Whether depth-last pictures of few channels are turned over, so that vectors run along the pixels: along the channels, of dx
    or of y, most of their lanes would be empty."""
    VL, first = _kernels.kernel("conv").VECTOR // _itemsize(p), _nominal(p)._replace(nchw=True)
    if p.direction == "grad_w" or p.nchw or p.turned or p.groups > 1 or p.window.F == (1, 1) or _better_turned(first):
        return False
    pixels = first.N * (math.prod(p.window.size) if p.direction == "fwd" else p.H1 * p.W1)
    turned = _turning(first) + _depth_first_cycles(first)
    few = max(p.D1, p.K) <= VL and _picture_bytes(p) <= TURNED
    return few and turned < _depth_last_cycles(_nominal(p)) + BEGINNING * pixels


def _long_rows_turned(p: Problem) -> bool:
    """Whether lanes past the ends of depth-first rows, and copies, cost more than it costs to turn them over, if there are filters
    to fill more than a vector."""
    VL, p = _kernels.kernel("conv").VECTOR // _itemsize(p), _nominal(p)
    turned = _turning(p) + _direct_cycles(p._replace(nchw=False, turned=True))
    return p.window.size[1] >= VL < p.K // p.groups and turned < TURNED_MARGIN * _depth_first_cycles(p)


def _turned(p: Problem, make: Callable[[Problem], Job], weights_too: bool) -> Job:
    """A problem by the kernels of a method for the other layout, a few pictures at a time; a weight gradient at once.

    weights_too: the weights, or their gradient, are turned over as well; else the method, a depth-last one, reads or writes them
    as they lie.
    """
    turn, itemsize, depth = _kernels.kernel("maps").turn, _itemsize(p), p.D1 // p.groups
    (H2, W2), taps = p.window.size, p.window.F[0] * p.window.F[1]
    sizes = (p.H1 * p.W1, p.D1), (H2 * W2, p.K)
    (pixels, source), (places, result) = sizes if p.direction == "fwd" else sizes[::-1]
    chunk = max(1, p.N) if p.direction == "grad_w" else min(max(1, p.N), max(1, TURNED // max(1, _picture_bytes(p))))
    jobs = {n: make(p._replace(N=n, nchw=not p.nchw, turned=not weights_too)) for n in {chunk, p.N % chunk}}

    def turned(a: Any, n: int, size: int, depth: int, out: Any, threads: int, nchw: bool = p.nchw) -> Any:
        """n pictures of so many pixels that lie depth first, or last, the other way round."""
        if size == 1 or depth == 1:
            return a
        rows, cols = (depth, size) if nchw else (size, depth)
        turn(a, out, n, rows, cols, rows * cols, cols, rows * cols, rows, threads)
        return out

    def turned_weights(w: Any, out: Any, threads: int, nchw: bool = p.nchw) -> Any:
        rows, cols = (p.K, taps) if nchw else (taps, p.K)
        strides = (taps, depth * taps), (p.K, depth * p.K)
        (batch, row), (batch_out, row_out) = strides if nchw else strides[::-1]
        turn(w, out, depth, rows, cols, batch, row, batch_out, row_out, threads)
        return out

    def run(src: Any, w: Any, bias: Any, dst: Any, relu: bool, threads: int) -> None:
        if weights_too:
            w = turned_weights(w, memory.empty(w.shape, p.dtype), threads)
        given, made = memory.empty((chunk, pixels, source), p.dtype), memory.empty((chunk, places, result), p.dtype)
        for first in range(0, p.N, chunk):
            n = min(chunk, p.N - first)
            theirs = dst[first : first + n]
            ours = theirs if places == 1 or result == 1 else made[:n]
            jobs[n].run(turned(src[first : first + n], n, pixels, source, given[:n], threads), w, bias, ours, relu, threads)
            turned(ours, n, places, result, theirs, threads, not p.nchw)

    def run_gradient(dy: Any, x: Any, bias: Any, dw: Any, relu: bool, threads: int) -> None:
        dy = turned(dy, p.N, pixels, source, memory.empty((p.N, pixels, source), p.dtype), threads)
        x = turned(x, p.N, places, result, memory.empty((p.N, places, result), p.dtype), threads)
        weights = memory.empty((taps, depth, p.K), p.dtype) if weights_too else dw
        jobs[p.N].run(dy, x, None, weights, False, threads)
        if weights_too:
            turned_weights(weights, dw, threads, not p.nchw)

    def workspace(threads: int) -> int:
        weights = taps * depth * p.K * itemsize if weights_too else 0
        return chunk * _picture_bytes(p) + weights + jobs[chunk].workspace(threads)

    return Job(run_gradient if p.direction == "grad_w" else run, workspace)


def _dense(p: Problem) -> Job:
    """Where the window is the whole picture, as in a dense layer: the 1x1 convolution of one deep pixel."""
    pixels, one = p.H1 * p.W1, Window((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
    flat = p._replace(H1=1, W1=1, D1=p.D1 * pixels, window=one, nchw=False, turned=p.nchw)
    if p.direction == "grad_w" and p.nchw:  # dw is (K, D1): the one that depth-last x would have as gradient of picture dy
        job = _direct(flat._replace(D1=p.K, K=flat.D1, turned=False))
        return job._replace(run=lambda dy, x, *rest: job.run(x, dy, *rest))
    job = _direct(flat)
    if p.direction != "grad_x":
        return job

    def grad_x(dy: Any, w: Any, bias: Any, dx: Any, relu: bool, threads: int) -> None:
        if bias is not None:
            bias = np.repeat(bias, pixels) if p.nchw else np.tile(bias, pixels)
        job.run(dy, w, bias, dx, relu, threads)

    return job._replace(run=grad_x)


def _of_patches(p: Problem) -> bool:
    """Whether depth-first windows lie side by side in the picture, with rows long enough to be copied one by one."""
    w = p.window
    side_by_side = w.F == w.S and w.dilation == (1, 1) and w.pads == ((0, 0), (0, 0)) and p.W1 == w.F[1] * w.size[1]
    return p.direction == "fwd" and p.nchw and p.groups == 1 and side_by_side and w.F[1] >= PATCH


def _patches(p: Problem) -> Job:
    """The 1x1 convolution, depth last, of deep pixels: each a window's rows one after the other, as the weights lie."""
    (Fh, Fw), (H2, W2), deep = p.window.F, p.window.size, p.D1 * math.prod(p.window.F)
    one = Window((H2, W2), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
    product = _direct(p._replace(H1=H2, W1=W2, D1=deep, window=one, nchw=False, turned=True))
    rows = np.array([(c * p.H1 + r, 0, c * Fh + r) for c in range(p.D1) for r in range(Fh)], np.intp).T.copy()
    sizes, grid = (p.N, 1, Fw, p.K, p.D1 * p.H1, W2, H2, W2), (H2, W2, 0, 0, 1, 1, Fh, 1)
    walk = _kernels.kernel("columns").Columns(sizes, grid, rows, p.D1 * Fh, False)

    def run(x: Any, w: Any, bias: Any, y: Any, relu: bool, threads: int) -> None:
        pixels, made = memory.empty((p.N, H2, W2, deep), p.dtype), memory.empty((p.N, H2, W2, p.K), p.dtype)
        walk.im2col(x, pixels, threads)
        product.run(pixels, w, bias, made, relu, threads)
        _kernels.kernel("maps").turn(made, y, p.N, H2 * W2, p.K, H2 * W2 * p.K, p.K, H2 * W2 * p.K, H2 * W2, threads)

    places = p.N * H2 * W2 * _itemsize(p)
    return Job(run, lambda threads: places * (deep + p.K) + product.workspace(threads))


def _folded(p: Problem) -> Problem:
    """Where windows lie side by side, depth last, a window's row of pixels is one pixel of as many times the depth."""
    w = p.window
    side_by_side = w.F[1] == w.S[1] > 1 == w.dilation[1] and w.pads[1] == (0, 0) and p.W1 == w.F[1] * w.size[1]
    if p.nchw or p.turned or p.groups > 1 or not side_by_side:
        return p
    window = w._replace(F=(w.F[0], 1), S=(w.S[0], 1))
    return p._replace(W1=w.size[1], D1=w.F[1] * p.D1, window=window)


def _direct(p: Problem) -> Job:
    if p.whole and (p.nchw or p.window.F != (1, 1)):
        return _dense(p)
    if _of_patches(p):
        return _patches(p)
    if p.depthwise or (p.few_a_group and not p.nchw):
        return _depthwise(p._replace(nchw=True) if p.D1 == 1 else p)  # one channel: a picture is a plane in either layout
    if _better_turned(p):
        return _turned(p, _direct, p.few_a_group)
    if _better_depth_first(p):
        return _turned(p, _direct, True)
    if p.direction == "grad_w":
        return _exchanged(p) if _better_exchanged(p) else _gradient_job(_weight_gradient(p), p)
    if _better_forward(p):
        return _as_forward(p)
    depth, p = p.D1, _folded(p)
    kernels = _kernels.kernel("planes" if p.nchw else "conv")
    gathers = kernels.Gathers([_forward_gather(p)] if p.direction == "fwd" else _gradient_gathers(p))
    job = Job(gathers.run, lambda threads: gathers.workspace(_itemsize(p), threads))
    if p.direction == "fwd" or p.D1 == depth:
        return job

    def grad_x(dy: Any, w: Any, bias: Any, dx: Any, relu: bool, threads: int) -> None:
        job.run(dy, w, bias if bias is None else np.tile(bias, p.D1 // depth), dx, relu, threads)

    return job._replace(run=grad_x)


def _better_forward(p: Problem) -> bool:
    """Whether the gradient by the picture is made as the forward convolution that it is with S=1: that reads few filters a window
    row at a time, not a tap."""
    pads, reach = p.window.pads, _reach(p.window)
    fits = all(max(pad) <= most for pad, most in zip(pads, reach, strict=True))
    return p.direction == "grad_x" and not p.nchw and p.window.S == (1, 1) and fits and _read_by_rows(_exchange(p))


def _as_forward(p: Problem) -> Job:
    """The convolution of dy with the filters turned round, channels and filters exchanged."""
    job = _direct(_exchange(p)._replace(direction="fwd", turned=False))

    def run(dy: Any, w: Any, bias: Any, dx: Any, relu: bool, threads: int) -> None:
        filters = w.transpose(2, 3, 0, 1) if p.filters_first else w.transpose(0, 1, 3, 2)
        job.run(dy, np.ascontiguousarray(filters[::-1, ::-1]), bias, dx, relu, threads)

    return Job(run, lambda threads: job.workspace(threads) + p.K * p.D1 * math.prod(p.window.F) * _itemsize(p))


def _gradient_job(gradient: Any, p: Problem) -> Job:
    def run(dy: Any, x: Any, bias: Any, dw: Any, relu: bool, threads: int) -> None:
        gradient.run(x, dy, dw, threads)

    return Job(run, lambda threads: gradient.workspace(_itemsize(p), threads))


def _reach(w: Window) -> Pair:
    """From the first tap to the last."""
    return w.dilation[0] * (w.F[0] - 1), w.dilation[1] * (w.F[1] - 1)


def _better_exchanged(p: Problem) -> bool:
    """Whether the weight gradient of few filters is better made as that of few channels: depth last, its vectors run along the
    channels then, depth first along the pixels of both pictures, if these are many."""
    w, (down, across), VL = p.window, _reach(p.window), _kernels.kernel("conv").VECTOR // _itemsize(p)
    if p.groups > 1 or w.S != (1, 1) or max(w.pads[0]) > down or max(w.pads[1]) > across:
        return False
    filters, channels = -(-p.K // VL), -(-p.D1 // VL)
    if p.nchw:
        return 1.4 * p.K < VL * filters and p.D1 >= 2 * p.K and p.H1 * p.W1 >= 16 * VL
    return p.K * channels < 0.7 * p.D1 * filters


def _exchange(p: Problem) -> Problem:
    """With dy as the picture and x as the result's gradient: of the weight gradient the same sums, turned over and round."""
    (H2, W2), (down, across), ((top, bottom), (left, right)) = p.window.size, _reach(p.window), p.window.pads
    pads = (down - top, down - bottom), (across - left, across - right)
    return p._replace(H1=H2, W1=W2, D1=p.K, K=p.D1, window=p.window._replace(pads=pads, size=(p.H1, p.W1)))


def _exchanged(p: Problem) -> Job:
    job, F = _gradient_job(_weight_gradient(_exchange(p)), p), p.window.F
    made, wanted = ((p.D1, p.K, *F), (p.K, p.D1, *F)) if p.filters_first else ((*F, p.K, p.D1), (*F, p.D1, p.K))

    def run(dy: Any, x: Any, bias: Any, dw: Any, relu: bool, threads: int) -> None:
        gradient = memory.empty(made, p.dtype)
        job.run(x, dy, None, gradient, False, threads)
        turned = gradient.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1] if p.filters_first else gradient.transpose(0, 1, 3, 2)[::-1, ::-1]
        dw.reshape(wanted)[...] = turned

    return Job(run, lambda threads: job.workspace(threads) + math.prod(made) * _itemsize(p))


def _weight_gradient(p: Problem) -> Any:
    """By every tap; the rows of pixels are cut, by the problem's numbers alone, into a power of two of parts with their own sums:
    enough for eight threads, if these sums are neither large nor soon done."""
    gather, weights = _forward(p, True), math.prod(p.window.F) * p.D1 * p.K // p.groups**2
    (N, _, _, _, _, _, H2, W2), work = gather[0], p.flops // 4_000_000 // p.groups
    most = min(4 if weights > 1 << 16 else 8, work, N * H2, N * H2 * W2 // 256, (1 << 20) // max(1, weights))
    parts = 1 << max(1, most).bit_length() - 1
    return _kernels.kernel("grad_w").WeightGradient(*gather, p.nchw, p.filters_first, parts)


def _columns_bytes(p: Problem) -> int:
    """Of one picture's columns."""
    return math.prod(p.window.size) * math.prod(p.window.F) * p.D1 * _itemsize(p)


def _im2col(p: Problem) -> Job:
    """Columns and their product a few pictures at a time; a weight gradient's at once."""
    if p.nchw and p.direction == "grad_x" and p.window.F != (1, 1) and _picture_bytes(p) <= TURNED:
        return _turned(p, _im2col, True)  # rows of many channels are added to dx, not rows of few pixels
    H2, W2 = p.window.size
    taps, one = p.window.F[0] * p.window.F[1], Window((H2, W2), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
    shape = (p.D1 * taps, H2, W2) if p.nchw else (H2, W2, p.D1 * taps)
    rounds = 1 if p.direction == "grad_w" else max(1, -(-p.N * _columns_bytes(p) // COLUMNS))
    chunk = max(1, -(-p.N // rounds))
    jobs = {}
    for n in {chunk, p.N % chunk}:
        part = p._replace(N=n)
        jobs[n] = columns(part), _direct(part._replace(H1=H2, W1=W2, D1=p.D1 * taps, window=one))

    def run(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None, out: np.ndarray, relu: bool, threads: int) -> None:
        space = memory.empty((chunk, *shape), p.dtype)
        for first in range(0, p.N, chunk):
            cols, some = space[: min(chunk, p.N - first)], slice(first, first + chunk)
            walk, product = jobs[len(cols)]
            if p.direction == "fwd":
                walk.im2col(a[some], cols, threads)
                product.run(cols, b, bias, out[some], relu, threads)
            elif p.direction == "grad_w":
                walk.im2col(b, cols, threads)
                product.run(a, cols, None, out, False, threads)
            else:
                product.run(a[some], b, None, cols, False, threads)
                walk.col2im(cols, out[some], bias, threads)

    return Job(run, lambda threads: chunk * _columns_bytes(p) + jobs[chunk][1].workspace(threads))


# ---------------------------------------------------------------- Winograd, and the arithmetic that chooses it
# Cycles of a core, for vectors of VL numbers; only their ratios matter. Measured with bench/test_conv.py.
# The transforms' are those of a 6 x 6 tile: others go in proportion to their pixels, but 8 x 8 do not stay in registers.
TRANSFORM = {"data": 130, "filter": 100, "result": 110}
SPILLED = 4 / 3
PICKING = 2, 3  # filters of S=2 whose taps are picked for each phase, and turned over as well, for one with S=1
TURNING = 6  # a vector of a depth-first picture; half of it, where a block of VL channels has none
TURNED_MARGIN = 0.95  # of a depth-first picture's cycles as it lies, below which it is turned over
COPYING = 12, 6  # a row into a strip, and each of its vectors
BEGINNING = 6  # a pixel's sums, depth last, and writing them
FEW_A_GROUP = 1.4  # of small groups, for a cycle of multiplications
PACKING = 20  # two vectors of depth-first pixels, for one more tap
LINE = 3  # a cache line of a strip in the second-level cache
ADDING = 8  # a vector of the columns to dx
MOVING, BLOCK = 1.2, 48  # a vector of sums between a core's caches, as a block of so many tiles adds to them
CORNER = 128  # channels, or filters, for which a weight gradient's tiles are transformed once
# Of direct convolution's cycles, which Winograd must stay below; less with S=2 for pictures, whose values leave a core's cache
# sooner, and still less where no cache keeps the filters of its phases: of y and of dx.
MARGIN, STRIDED_MARGIN, LARGE_STRIDED_MARGIN = 0.9, 0.82, {"fwd": 0.62, "grad_x": 0.74}
LARGE = 3 * runtime.LAST_CACHE // 8  # bytes of transformed filters
QUARTERED = 6  # taps a side of a window of which Winograd makes four
EIGHT_POINTS = 96  # products of one sum up to which a tile's eight points are exact enough; of a weight gradient:
EIGHT_POINTS_TILES, EIGHT_POINTS_TILES_OF_LINES = 256, 2048  # tiles of one part


def _nominal(p: Problem) -> Problem:
    """`p` for the choice of a method: eight pictures, whatever the batch, for a picture's bits must not depend on its batch."""
    return p if p.direction == "grad_w" else p._replace(N=8)


def _product(rows: float, k: float, cols: int, p: Problem) -> float:
    """Cycles of a matrix product in register tiles: bound by arithmetic, loads or, with few sums, by latency."""
    kernels = _kernels.kernel("conv")
    VL, MR = kernels.VECTOR // np.dtype(p.dtype).itemsize, kernels.MR
    vectors, blocks = max(1, -(-cols // VL)), max(1, -(-rows // MR))
    height, width = rows / blocks, min(vectors, 2)
    return k * blocks * vectors / width * max(height * width / 2, (height + width) / 2, 4)


def _winograd_cycles(p: Problem, m: Pair) -> float:
    VL = _kernels.kernel("conv").VECTOR // np.dtype(p.dtype).itemsize
    D, K = p.D1 // p.groups, p.K // p.groups
    if p.direction == "grad_x":
        D, K = K, D
    (nh, nw), tiles, phases, sources = _values(p, m), _tiles(p, m), _cut(p) ** 2, _sources(p)
    # of all phases: odd ones of odd filters have n - 1 a side
    values = nh * nw if phases == 1 else (2 * nh - p.window.F[0] % 2) ** 2
    d, k, part = -(-D // VL), -(-K // VL), nh * nw / 36 * (SPILLED if nh == nw == 8 else 1)
    if p.direction == "grad_w":
        again = -(-K // CORNER), -(-D // CORNER)  # x and dy
        corners = TRANSFORM["data"] * d * again[0] + 2 * TRANSFORM["filter"] * k * again[1]
        visits = values * D * k * MOVING * 2 * math.ceil(tiles / _parts(p, m) / BLOCK) * _parts(p, m)
        products = values * _product(D, tiles * _needed(p, m), K, p) * 1.1 + visits
        transforms = part * phases * (tiles * corners + TRANSFORM["result"] * D * k)
        return products + transforms + (_turning(p, again) if p.nchw and phases > 1 else 0)
    each = TRANSFORM["data"] * d * sources + TRANSFORM["result"] * k * phases / sources
    filters = phases * TRANSFORM["filter"] * D * k * (1 if phases == 1 else PICKING[p.filters_first])
    turning = min(2, p.window.dilation[1]) * _turning(p) if p.nchw else 0  # pixels apart are brought side by side first
    transforms = part * (tiles * each + filters) + turning
    return values / sources * _product(tiles * _needed(p, m), sources * D, K, p) + transforms


def _turning(p: Problem, times: Pair = (1, 1)) -> float:
    """Cycles for a group's depth-first pictures, and their results, so many times."""
    VL, pixels = _kernels.kernel("conv").VECTOR // _itemsize(p), p.H1 * p.W1
    sides = (times[0], p.D1, pixels), (times[1], p.K, math.prod(p.window.size))
    full = sum(n * (-(-depth // VL) * VL + depth) * -(-places // VL) for n, depth, places in sides if depth > 1 and places > 1)
    return TURNING * p.N * full / 2 / p.groups


def _direct_cycles(p: Problem) -> float:
    Fh, Fw = len(_offsets(p, 0, False)), len(_offsets(p, 1, False))
    D, K, (H2, W2) = p.D1 // p.groups, p.K // p.groups, p.window.size
    if p.nchw and _better_turned(p):
        return _turning(p) + _direct_cycles(p._replace(nchw=False))
    if p.few_a_group and not p.nchw:
        vectors = D * _itemsize(p) / _kernels.kernel("conv").VECTOR
        return p.N * H2 * W2 * Fh * Fw * D * vectors / 2 * FEW_A_GROUP
    if p.direction == "grad_w":
        if _better_exchanged(p):
            D, K = K, D
        taps = max(1, Fw) if D <= 2 * _kernels.kernel("conv").MR else 1  # of few channels, a window row's lie side by side
        return Fh * Fw // taps * _product(taps * D, p.N * H2 * W2, K, p) * 1.1
    if _better_depth_first(p):
        return _turning(p) + _depth_first_cycles(p._replace(nchw=True))
    return _depth_first_cycles(p) if p.nchw else _depth_last_cycles(p)


def _depth_last_cycles(p: Problem) -> float:
    """Of a depth-last gather."""
    taps = len(_offsets(p, 0, False)) * len(_offsets(p, 1, False))
    pixels, D, K = p.N * math.prod(p.window.size), p.D1 // p.groups, p.K // p.groups
    if p.direction == "grad_x":
        pixels, D, K = -(-p.N * p.H1 * p.W1 // math.prod(p.window.S)), K, D
    return _few_cycles(pixels, taps, D, K, p) or _living(p) * _product(pixels, taps * D, K, p)


def _depth_first_cycles(p: Problem) -> float:
    """Of a depth-first gather: from strips of rows, with lanes lost past their ends, or from packed panels; see plan_planes."""
    VL, (Sh, Sw) = _kernels.kernel("conv").VECTOR // _itemsize(p), p.window.S
    taps, across = len(_offsets(p, 0, False)) * len(_offsets(p, 1, False)), len(_offsets(p, 1, False)) > 1
    (H2, W2), D, K, rows, (down, right) = p.window.size, p.D1 // p.groups, p.K // p.groups, p.H1, _reach(p.window)
    if p.direction == "grad_x":
        (H2, W2), D, K, rows, down, right = (-(-p.H1 // Sh), -(-p.W1 // Sw)), K, D, H2, down // Sh, right // Sw
        Sh = Sw = 1
    products, lost, strip = _product(K, taps * D, p.N * H2 * W2, p), -W2 % VL, (down + 1) * D * (W2 * Sw + right) * _itemsize(p)
    steps = taps * D * -(-p.N * H2 * W2 // (2 * VL))  # of all tiles of one row
    if W2 < VL or lost * K * taps >= PACKING * W2 * (taps - Sh * Sw) or strip > _kernels.kernel("planes").STRIP:
        return products + PACKING * steps
    copies = p.N * D * rows * (Sw if across else 1) * (COPYING[0] + COPYING[1] * (W2 + VL) / VL)
    return max(products, LINE * steps * 2 * VL * _itemsize(p) / 64) * (1 + lost / W2) + copies


def _few_cycles(pixels: float, taps: int, channels: int, filters: int, p: Problem) -> float:
    """Of a gather whose vectors run along the channels, bound by arithmetic or loads; 0 if they run along the filters."""
    kernels = _kernels.kernel("conv")
    VL = kernels.VECTOR // _itemsize(p)
    wide_enough = channels >= VL >= (2 if taps > 1 else 4) * kernels.FEW
    if p.groups > 1 or filters > kernels.FEW or not wide_enough:
        return 0
    return pixels * (taps * -(-channels // VL) * (max(filters, 2) + 1) / 2 + 10)


def _im2col_cycles(p: Problem) -> float:
    """Of grad_x: the product has no more rows than dy has pixels, but each of its numbers is added to dx by itself."""
    (H2, W2), taps, D, K = p.window.size, math.prod(p.window.F), p.D1 // p.groups, p.K // p.groups
    VL = _kernels.kernel("conv").VECTOR // _itemsize(p)
    if p.nchw and _picture_bytes(p) > TURNED:
        return _product(taps * D, K, p.N * H2 * W2, p) + ADDING * p.N * D * taps * H2 * -(-W2 // VL)
    return _product(p.N * H2 * W2, K, taps * D, p) + ADDING * p.N * H2 * W2 * taps * -(-D // VL)


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


def _needed(p: Problem, m: Pair) -> float:
    """The share of the tiles' values that are multiplied: one or two fewer a side where the picture ends within a tile."""
    share = 1.0
    for n, side, places in zip(_values(p, m), m, _results(p), strict=True):
        spared = (places % side > 0) + (0 < places % side < side - 1)
        share *= 1 - spared / (n * max(1, -(-places // side)))
    return share


def _cut(p: Problem) -> int:
    """Parts into which Winograd cuts the window along an axis: odd and even taps with S=2, else the first ones and the last."""
    return 2 if p.window.S == (2, 2) or min(p.window.F) >= QUARTERED else 1


def _sources(p: Problem) -> int:
    """Phases that one sum of Winograd's runs over."""
    return 1 if p.direction == "grad_x" and p.window.S == (2, 2) else _cut(p) ** 2


def _phase_extents(p: Problem) -> Pair:
    """Of the filters that Winograd transforms: of the first, or even, rows and columns."""
    (Fh, Fw), cut = p.window.F, _cut(p)
    return -(-Fh // cut), -(-Fw // cut)


def _values(p: Problem, m: Pair) -> Pair:
    """Rows and columns of a tile."""
    rh, rw = _phase_extents(p)
    return m[0] + rh - 1, m[1] + rw - 1


def _parts(p: Problem, m: Pair) -> int:
    """Parts of a weight gradient's tiles, with sums of their own: enough for eight threads, if there are not corners enough."""
    corners = -(-p.D1 // p.groups // 64) * -(-p.K // p.groups // 64) * p.groups * _cut(p) ** 2
    return max(1, min(8 // max(1, corners), _tiles(p, m) // 64))


def _exact_enough(p: Problem, m: Pair) -> bool:
    """Whether errors stay below 5e-5 of the results' root mean square in float32; see "Numbers" in docs/kernels.md."""
    values, line = _values(p, m), 1 in m
    if 8 not in values:
        return True
    if p.direction == "grad_w":
        most = (EIGHT_POINTS_TILES_OF_LINES if line else EIGHT_POINTS_TILES) * _parts(p, m)
        return (line or p.window.F != (7, 7)) and _tiles(p, m) <= most
    return line or _sources(p) * (p.K if p.direction == "grad_x" else p.D1) // p.groups <= EIGHT_POINTS


def winograd_tile(p: Problem) -> Pair:
    """Rows and columns of results, the cheapest that are exact enough; of 6 or 7 taps in a line there is one tile only."""
    rh, rw = _phase_extents(p)
    r = max(rh, rw)
    points: tuple[int, ...]
    if _cut(p) == 2:
        points = {2: (4,) if p.window.F[0] % 2 else (6, 4), 3: (6, 4), 4: (8, 6)}[r]
    elif 1 in p.window.F:
        points = (8, 6) if r <= 5 else (8,)
    else:
        points = {2: (6, 4), 3: (6, 4), 4: (6,), 5: (8, 6)}[r]
    tiles = [(n - r + 1 if rh > 1 else 1, n - r + 1 if rw > 1 else 1) for n in points]
    able = [m for m in tiles if _exact_enough(p, m)]
    return min(able, key=lambda m: _winograd_cycles(_nominal(p), m), default=(2, 2))


def _winograd_refuses(p: Problem) -> str | None:
    w, (least, most) = p.window, sorted(p.window.F)
    if not 2 <= most <= 7 or 1 < least < most:
        return f"it has transforms for square windows of 2 to 7 a side, and for a row or a column of them, not {w.F[1]}x{w.F[0]}"
    if w.S != (1, 1) and (w.S != (2, 2) or least < 3 or w.dilation != (1, 1)):
        return f"it needs S=1, or a square window of 3 and more with S=2 and dilation=1, not S={w.S} and dilation={w.dilation}"
    return None


def _winograd_wanted(p: Problem) -> str | None:
    if p.depthwise or p.whole:
        return None  # direct convolution has kernels of its own for these
    p = _nominal(p)
    m, r = winograd_tile(p), _phase_extents(p)
    if not _exact_enough(p, m):
        return None
    ratio = _winograd_cycles(p, m) / max(1.0, _direct_cycles(p))
    phases = "" if _cut(p) == 1 else " of four phases"
    name = f"F({m[1]}x{m[0]}, {r[1]}x{r[0]}){phases}"
    return f"{name} takes about {ratio:.2f} of direct's cycles" if ratio < _margin(p, m) else None


def _margin(p: Problem, m: Pair) -> float:
    if p.window.S == (1, 1) or p.direction == "grad_w":
        return MARGIN
    filters = math.prod(_values(p, m)) * 4 * p.D1 * p.K // p.groups * _itemsize(p)
    return STRIDED_MARGIN if filters <= LARGE else LARGE_STRIDED_MARGIN[p.direction]


def _winograd(p: Problem) -> Job:
    kernels, (H2, W2) = _kernels.kernel("winograd"), p.window.size
    D, K, tile, w = p.D1 // p.groups, p.K // p.groups, winograd_tile(p), p.window
    window = (*w.F, w.S[0], _cut(p), w.pads[0][0], w.pads[1][0], *w.dilation)
    if p.direction == "grad_x":
        forward = kernels.Winograd((p.N, p.groups, K, D, H2, W2, p.H1, p.W1), tile, window, p.nchw, True)
    else:
        forward = kernels.Winograd((p.N, p.groups, D, K, p.H1, p.W1, H2, W2), tile, window, p.nchw, False)
    if p.direction != "grad_w":
        return Job(forward.run, lambda threads: forward.workspace(_itemsize(p), threads))
    return _gradient_job(kernels.WeightGradient(forward, _parts(p, tile)), p)


@dataclass(frozen=True)
class Plan:
    """How a call is done, and why. ``str(plan)`` reads well.

    Attributes
    ----------
    method : str
        "direct", "im2col" or "winograd".
    reason : str
        Why this one.
    isa : str
        The level of instructions whose kernels it takes.
    flops : int
        Multiplications and additions of direct convolution, whatever the method.
    copies : tuple of str
        The arguments that are copied first, since they are not C-contiguous; shapes alone show none.
    """

    method: str
    reason: str
    isa: str
    flops: int
    job: Job = field(repr=False)
    copies: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads that the next call would use."""
        return runtime.get_num_threads()

    @property
    def workspace_bytes(self) -> int:
        """Bytes that a call allocates besides its result: packed or transformed weights and the threads' scratch."""
        return self.job.workspace(self.threads)

    def __str__(self) -> str:
        size = f"{self.workspace_bytes / 2**20:.2f} MB of workspace"
        return (
            f"{self.method}: {self.reason}; {self.flops / 1e9:.3g} GFLOP, {self.isa}, {self.threads} thread(s), {size}, "
            f"copies: {', '.join(self.copies) or 'none'}"
        )


class Method(NamedTuple):
    """A way to convolve: why it cannot do a problem (or None), why "auto" wants it for one (or None), and how it does it."""

    name: str
    refuses: Callable[[Problem], str | None]
    wanted: Callable[[Problem], str | None]
    make: Callable[[Problem], Job]


def _im2col_wanted(p: Problem) -> str | None:
    if p.direction != "grad_x" or p.pointwise or p.whole or p.depthwise or _columns_bytes(p) > COLUMNS:
        return None
    if p.window.F == (1, 1):
        return "1x1 with a stride: a product as small as dy, spread over dx"
    p = _nominal(p)
    cycles, direct = _im2col_cycles(p), _direct_cycles(p)
    able = _winograd_refuses(p) is None and _winograd_wanted(p)
    winograd = _winograd_cycles(p, winograd_tile(p)) if able else math.inf
    if cycles < MARGIN * min(direct, winograd):
        return f"dy has few pixels beside dx: it takes about {cycles / direct:.2f} of direct's cycles"
    return None


def _direct_wanted(p: Problem) -> str:
    if p.depthwise:
        return "depthwise: every channel stands alone"
    if p.few_a_group:
        return "small groups: several fill a vector"
    if p.pointwise or p.whole:
        return f"{'1x1' if p.pointwise else 'the window is the picture'}: a matrix product on the picture as it lies"
    return "no other method takes fewer cycles"


METHODS = (
    Method("im2col", lambda p: None, _im2col_wanted, _im2col),
    Method("winograd", _winograd_refuses, _winograd_wanted, _winograd),
    Method("direct", lambda p: None, _direct_wanted, _direct),
)


@functools.lru_cache(maxsize=4096)
def plan(where: str, p: Problem, method: str, isa: str, precision: str) -> Plan:
    """The plan of `p` by `method` on a level of instructions; raises ValueError where a named method cannot do it."""
    able = [m for m in METHODS if m.refuses(p) is None]
    if method != "auto":
        chosen = next(m for m in METHODS if m.name == method)
        why = chosen.refuses(p)
        if why:
            names = ", ".join(sorted(repr(m.name) for m in able))
            raise checks.value_error(where, f"method={method!r} cannot do this: {why}", f"one of {names}", repr(method))
        return Plan(method, "it was asked for", isa, p.flops, chosen.make(p))
    if precision == "exact":
        able = [m for m in able if m.name != "winograd"]
    chosen, reason = next((m, reason) for m in able if (reason := m.wanted(p)))
    return Plan(chosen.name, reason, isa, p.flops, chosen.make(p))
