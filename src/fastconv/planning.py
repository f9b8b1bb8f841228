"""Which method a call takes, and why; `explain` tells.

`plan` chooses the first method of `METHODS` that can do a `Problem` and wants it, or checks the one that the caller named, and
returns a `Plan` that runs it. Plans are kept: a second call of the same shapes plans nothing.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastconv import _kernels, checks, costs, runtime
from fastconv._kernels import memory
from fastconv.costs import Problem
from fastconv.geometry import Pair, Window

DIRECTIONS = ("fwd", "grad_x", "grad_w")
PATCH = 16  # numbers of a row of a window that are worth a copy of it

Gather = tuple[tuple[int, ...], tuple[int, ...], np.ndarray, int]  # sizes, grid, taps and window: see conv.pyx


# ---------------------------------------------------------------- gathers: see _kernels/conv.pyx, planes.pyx and grad_w.pyx
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


def _forward(p: Problem, every: bool) -> Gather:
    """Of a forward convolution: `every` tap, or those that meet the picture."""
    N, source, target = _sizes(p)
    (Fh, Fw), D, K = p.window.F, p.D1 // p.groups, p.K // p.groups
    rows, cols = costs.offsets(p, 0, every), costs.offsets(p, 1, every)
    taps = np.array([(h, w, r * Fw + s) for r, h in rows for s, w in cols], np.intp).reshape(-1, 3).T.copy()
    return (N, p.groups, D, K, *source, *target), (*target, 0, 0, 1, 1, *p.window.S), taps, Fh * Fw


def columns(p: Problem) -> Any:
    """What im2col and col2im walk over."""
    return _kernels.kernel("columns").Columns(*_forward(p, True), p.nchw)


def _by_planes(p: Problem) -> bool:
    """Whether planes.pyx has the gathers, not conv.pyx, which reads depth-first pictures across their planes only."""
    return p.nchw and not costs.across_planes(p)


def _forward_gather(p: Problem) -> Any:
    """The gather of a forward convolution; few channels side by side are read a window row at a time."""
    sizes, grid, taps, window = _forward(p, False)
    if _by_planes(p):
        return _kernels.kernel("planes").Gather(sizes, grid, taps, window, False)
    merged = p.window.F[1] if not p.nchw and costs.read_by_rows(p) and taps.shape[1] == window else 0
    return _kernels.kernel("conv").Gather(sizes, grid, taps, window, merged, p.filters_first, False, p.nchw)


def _phases(p: Problem, axis: int) -> dict[int, list[Pair]]:
    """The phases of dx modulo S that taps meet: for each the taps r, with the offset of the dy pixel that each reads."""
    w, S, size, before = p.window, p.window.S[axis], (p.H1, p.W1)[axis], p.window.pads[axis][0]
    phases: dict[int, list[Pair]] = {}
    for r in range(w.F[axis]):
        phase = (r * w.dilation[axis] - before) % S
        offset = (phase + before - r * w.dilation[axis]) // S
        if phase < size and costs.meets(offset, 1, -(-(size - phase) // S), w.size[axis]):
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
        if _by_planes(p):
            return _kernels.kernel("planes").Gather(sizes, grid, table, Fh * Fw, True)
        return _kernels.kernel("conv").Gather(sizes, grid, table, Fh * Fw, 0, p.filters_first, True, p.nchw)

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


def _depthwise(p: Problem) -> Job:
    kernels, w = _kernels.kernel("depthwise"), p.window
    options = (*w.S, w.pads[0][0], w.pads[1][0], *w.dilation, p.K // p.D1, p.D1 // p.groups, costs.pixels_copied(p))
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

    sizes = p.N, p.D1, p.H1, p.W1, *w.size, *w.F
    return Job(run, lambda threads: kernels.workspace(p.direction, sizes, options, p.nchw, p.itemsize, threads))


def _turn_pictures(a: Any, n: int, pixels: int, depth: int, out: Any, threads: int, nchw: bool) -> Any:
    """n pictures of so many pixels that lie depth first, or last, the other way round: `out`, or `a` where that is the same."""
    if pixels == 1 or depth == 1:
        return a
    rows, cols = (depth, pixels) if nchw else (pixels, depth)
    _kernels.kernel("maps").turn(a, out, n, rows, cols, rows * cols, cols, rows * cols, rows, threads)
    return out


def _turn_weights(p: Problem, w: Any, out: Any, threads: int, nchw: bool) -> Any:
    """Those of depth-first problems, or of depth-last ones, the other way round."""
    depth, taps = p.D1 // p.groups, math.prod(p.window.F)
    rows, cols = (p.K, taps) if nchw else (taps, p.K)
    strides = (taps, depth * taps), (p.K, depth * p.K)
    (batch, row), (batch_out, row_out) = strides if nchw else strides[::-1]
    _kernels.kernel("maps").turn(w, out, depth, rows, cols, batch, row, batch_out, row_out, threads)
    return out


def _pixels_and_depths(p: Problem) -> tuple[Pair, Pair]:
    """Of the pictures that a direction reads first, and of those that it writes, or reads as well."""
    x, y = (p.H1 * p.W1, p.D1), (math.prod(p.window.size), p.K)
    return (x, y) if p.direction == "fwd" else (y, x)


def _turned(p: Problem, make: Callable[[Problem], Job], weights_too: bool) -> Job:
    """A problem by the kernels of a method for the other layout, a few pictures at a time.

    weights_too: the weights are turned over as well; else the method, a depth-last one, reads them as they lie.
    """
    if p.direction == "grad_w":
        return _turned_gradient(p, make)
    if p.groups > 1 and p.picture_bytes > costs.TURNED and not weights_too:
        return _turned_by_groups(p, make)
    (pixels, source), (places, result) = _pixels_and_depths(p)
    weights = math.prod(p.window.F) * p.D1 // p.groups * p.K * p.itemsize
    # for each lot of pictures the weights are packed: read and written
    chunk = max(1, min(p.N, max(costs.TURNED, 2 * weights) // max(1, p.picture_bytes)))
    jobs = {n: make(p._replace(N=n, nchw=not p.nchw, turned=not weights_too)) for n in {chunk, p.N % chunk}}

    def run(src: Any, w: Any, bias: Any, dst: Any, relu: bool, threads: int) -> None:
        if weights_too:
            w = _turn_weights(p, w, memory.empty(w.shape, p.dtype), threads, p.nchw)
        given, made = memory.empty((chunk, pixels, source), p.dtype), memory.empty((chunk, places, result), p.dtype)
        for first in range(0, p.N, chunk):
            n = min(chunk, p.N - first)
            theirs = dst[first : first + n]
            ours = theirs if places == 1 or result == 1 else made[:n]
            a = _turn_pictures(src[first : first + n], n, pixels, source, given[:n], threads, p.nchw)
            jobs[n].run(a, w, bias, ours, relu, threads)
            _turn_pictures(ours, n, places, result, theirs, threads, not p.nchw)

    space = chunk * p.picture_bytes + (weights if weights_too else 0)
    return Job(run, lambda threads: space + jobs[chunk].workspace(threads))


def _turned_by_groups(p: Problem, make: Callable[[Problem], Job]) -> Job:
    """Of depth-first pictures that are too large to be turned over whole, a few groups at a time, of as many pictures as may be."""
    turn, (pixels, source), (places, result) = _kernels.kernel("maps").turn, *_pixels_and_depths(p)
    read, made, depth, filters = (n // p.groups for n in (source, result, p.D1, p.K))
    group_bytes = p.picture_bytes // p.groups
    pictures = max(1, min(p.N, costs.TURNED // group_bytes))
    groups = max(1, min(p.groups, costs.TURNED // (group_bytes * pictures)))
    jobs = {}
    for n, m in itertools.product({pictures, p.N % pictures}, {groups, p.groups % groups or groups}):
        jobs[n, m] = make(p._replace(N=n, D1=m * depth, K=m * filters, groups=m, nchw=False, turned=True))

    def run(src: Any, w: Any, bias: Any, dst: Any, relu: bool, threads: int) -> None:
        space = memory.empty((pictures * groups * (pixels * read + places * made),), p.dtype)
        for first, g in itertools.product(range(0, p.N, pictures), range(0, p.groups, groups)):
            n, end = min(pictures, p.N - first), min(g + groups, p.groups)
            depth_in, depth_out = (end - g) * read, (end - g) * made
            a = space[: n * pixels * depth_in]
            out = space[a.size : a.size + n * places * depth_out]
            turn(src[first:, g * read], a, n, depth_in, pixels, source * pixels, pixels, depth_in * pixels, depth_in, threads)
            some_bias = None if bias is None else bias[g * made : end * made]
            jobs[n, end - g].run(a, w[g * filters : end * filters], some_bias, out, relu, threads)
            turn(out, dst[first:, g * made], n, places, depth_out, depth_out * places, depth_out, result * places, places, threads)

    return Job(run, lambda threads: pictures * groups * group_bytes + jobs[pictures, groups].workspace(threads))


def _turned_gradient(p: Problem, make: Callable[[Problem], Job]) -> Job:
    """A weight gradient, its pictures turned over a few at a time, and the sum of what these give turned back."""
    (places, result), (pixels, source) = _pixels_and_depths(p)
    weights = math.prod(p.window.F), p.D1 // p.groups, p.K
    chunk = max(1, min(p.N, costs.TURNED // max(1, p.picture_bytes)))
    jobs = {n: make(p._replace(N=n, nchw=not p.nchw)) for n in {chunk, p.N % chunk}}

    def run(dy: Any, x: Any, bias: Any, dw: Any, relu: bool, threads: int) -> None:
        total, some = memory.empty(weights, p.dtype), memory.empty(weights, p.dtype)
        dy_turned, x_turned = memory.empty((chunk, places, result), p.dtype), memory.empty((chunk, pixels, source), p.dtype)
        for first in range(0, max(1, p.N), chunk):
            n, made = min(chunk, p.N - first), some if first else total
            a = _turn_pictures(dy[first : first + n], n, places, result, dy_turned[:n], threads, p.nchw)
            b = _turn_pictures(x[first : first + n], n, pixels, source, x_turned[:n], threads, p.nchw)
            jobs[n].run(a, b, None, made, False, threads)
            if first:
                _kernels.kernel("maps").add(total, some, total, False, threads)
        _turn_weights(p, total, dw, threads, not p.nchw)

    space = chunk * p.picture_bytes + 2 * math.prod(weights) * p.itemsize
    return Job(run, lambda threads: space + jobs[chunk].workspace(threads))


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

    places = p.N * H2 * W2 * p.itemsize
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
    if costs.better_depth_first(p):
        return _turned(p, _direct, True)
    if p.depthwise or (p.few_a_group and not p.nchw):
        return _depthwise(p._replace(nchw=True) if p.D1 == 1 else p)  # one channel: a picture is a plane in either layout
    if costs.better_turned(p):
        return _turned(p, _direct, p.few_a_group)
    if p.direction == "grad_w":
        return _exchanged(p) if costs.better_exchanged(p) else _gradient_job(_weight_gradient(p, _forward(p, True), p.nchw), p)
    if costs.better_forward(p):
        return _as_forward(p)
    depth, p = p.D1, _folded(p)
    kernels = _kernels.kernel("planes" if _by_planes(p) else "conv")
    gathers = kernels.Gathers([_forward_gather(p)] if p.direction == "fwd" else _gradient_gathers(p))
    job = Job(gathers.run, lambda threads: gathers.workspace(p.itemsize, threads))
    if p.direction == "fwd" or p.D1 == depth:
        return job

    def grad_x(dy: Any, w: Any, bias: Any, dx: Any, relu: bool, threads: int) -> None:
        job.run(dy, w, bias if bias is None else np.tile(bias, p.D1 // depth), dx, relu, threads)

    return job._replace(run=grad_x)


def _as_forward(p: Problem) -> Job:
    """The convolution of dy with the filters turned round, channels and filters exchanged."""
    job = _direct(costs.exchange(p)._replace(direction="fwd", turned=False))

    def run(dy: Any, w: Any, bias: Any, dx: Any, relu: bool, threads: int) -> None:
        filters = w.transpose(2, 3, 0, 1) if p.filters_first else w.transpose(0, 1, 3, 2)
        job.run(dy, np.ascontiguousarray(filters[::-1, ::-1]), bias, dx, relu, threads)

    return Job(run, lambda threads: job.workspace(threads) + p.K * p.D1 * math.prod(p.window.F) * p.itemsize)


def _gradient_job(gradient: Any, p: Problem) -> Job:
    def run(dy: Any, x: Any, bias: Any, dw: Any, relu: bool, threads: int) -> None:
        gradient.run(x, dy, dw, threads)

    return Job(run, lambda threads: gradient.workspace(p.itemsize, threads))


def _exchanged(p: Problem) -> Job:
    F = p.window.F
    if p.nchw and F == (1, 1):  # filters last, its weights are ours
        job = _gradient_job(_weight_gradient(p, _gather_of_results(p), False), p)
        return job._replace(run=lambda dy, x, *rest: job.run(x, dy, *rest))
    other = costs.exchange(p)
    job = _gradient_job(_weight_gradient(other, _forward(other, True), p.nchw), p)
    made, wanted = ((p.D1, p.K, *F), (p.K, p.D1, *F)) if p.nchw else ((*F, p.K, p.D1), (*F, p.D1, p.K))

    def run(dy: Any, x: Any, bias: Any, dw: Any, relu: bool, threads: int) -> None:
        gradient = memory.empty(made, p.dtype)
        job.run(x, dy, None, gradient, False, threads)
        turned = gradient.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1] if p.nchw else gradient.transpose(0, 1, 3, 2)[::-1, ::-1]
        dw.reshape(wanted)[...] = turned

    return Job(run, lambda threads: job.workspace(threads) + math.prod(made) * p.itemsize)


def _gather_of_results(p: Problem) -> Gather:
    """Of 1x1 windows: the places of dy, with the pixels of x that they see as what is multiplied with them."""
    places = p.window.size if math.prod(p.window.size) > 512 else (1, math.prod(p.window.size))
    pixels = places if p.window.S == (1, 1) else (p.H1, p.W1)
    return (p.N, 1, p.K, p.D1, *places, *pixels), (*places, 0, 0, *p.window.S, 1, 1), np.zeros((3, 1), np.intp), 1


def _weight_gradient(p: Problem, gather: Gather, filters_first: bool) -> Any:
    """By every tap; the rows of pixels are cut, by the problem's numbers alone, into a power of two of parts with their own sums:
    enough for eight threads, and so many that none is long, if these sums are neither large nor soon done."""
    weights = math.prod(p.window.F) * p.D1 * p.K // p.groups**2
    N, (H2, W2), work = gather[0][0], gather[1][:2], p.flops // 4_000_000 // p.groups
    enough = max(4 if weights > 1 << 16 else 8, N * H2 * W2 // costs.PART_PIXELS)
    most = min(enough, work, N * H2, N * H2 * W2 // 256, (1 << 20) // max(1, weights))
    parts = 1 << max(1, most).bit_length() - 1
    return _kernels.kernel("grad_w").WeightGradient(*gather, p.nchw, filters_first, parts)


def _im2col(p: Problem) -> Job:
    """Columns and their product a few pictures at a time; a weight gradient's at once."""
    if p.nchw and p.direction == "grad_x" and p.window.F != (1, 1) and p.picture_bytes <= costs.TURNED:
        return _turned(p, _im2col, True)  # rows of many channels are added to dx, not rows of few pixels
    H2, W2 = p.window.size
    taps, one = p.window.F[0] * p.window.F[1], Window((H2, W2), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
    shape = (p.D1 * taps, H2, W2) if p.nchw else (H2, W2, p.D1 * taps)
    rounds = 1 if p.direction == "grad_w" else max(1, -(-p.N * costs.columns_bytes(p) // costs.COLUMNS))
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

    return Job(run, lambda threads: chunk * costs.columns_bytes(p) + jobs[chunk][1].workspace(threads))


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
    p = costs.nominal(p)
    m, r = costs.winograd_tile(p), costs.phase_extents(p)
    ratio = costs.winograd_cycles(p, m) / max(1.0, costs.direct_cycles(p))
    phases = "" if costs.cut(p) == 1 else " of four phases"
    name = f"F({m[1]}x{m[0]}, {r[1]}x{r[0]}){phases}"
    return f"{name} takes about {ratio:.2f} of direct's cycles" if ratio < costs.margin(p, m) else None


def _winograd(p: Problem) -> Job:
    if costs.better_turned_for_winograd(p):
        return _turned(p, _winograd, True)
    kernels, (H2, W2) = _kernels.kernel("winograd"), p.window.size
    D, K, tile, w = p.D1 // p.groups, p.K // p.groups, costs.winograd_tile(p), p.window
    window = (*w.F, w.S[0], costs.cut(p), w.pads[0][0], w.pads[1][0], *w.dilation)
    if p.direction == "grad_x":
        forward = kernels.Winograd((p.N, p.groups, K, D, H2, W2, p.H1, p.W1), tile, window, p.nchw, True)
    else:
        forward = kernels.Winograd((p.N, p.groups, D, K, p.H1, p.W1, H2, W2), tile, window, p.nchw, False)
    if p.direction != "grad_w":
        return Job(forward.run, lambda threads: forward.workspace(p.itemsize, threads))
    return _gradient_job(kernels.WeightGradient(forward, costs.parts(p, tile)), p)


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
    if p.direction != "grad_x" or p.pointwise or p.whole or p.depthwise or costs.columns_bytes(p) > costs.COLUMNS:
        return None
    if p.few_a_group and not p.nchw:
        return None  # done as depthwise layers are
    if p.window.F == (1, 1):
        return "1x1 with a stride: a product as small as dy, spread over dx"
    p = costs.nominal(p)
    cycles, direct = costs.im2col_cycles(p), costs.direct_cycles(p)
    able = _winograd_refuses(p) is None and _winograd_wanted(p)
    winograd = costs.winograd_cycles(p, costs.winograd_tile(p)) if able else math.inf
    if cycles < costs.MARGIN * min(direct, winograd):
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
