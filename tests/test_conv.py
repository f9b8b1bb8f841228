"""Convolution, its gradients and the transposed convolution against the oracle, element by element.

Every problem runs by every method that can do it, in both layouts and types, on every level of instructions, on one to
three threads. Inputs lie between NaNs and are read-only; results are written to the middle of a buffer of NaNs, which
stays as it was. Tolerances are derived in oracle.py.
"""

import itertools
import os
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import _kernels, costs, reference
from oracle import RESULTS, Expected, bits, canary, difference, expected, fenced, guarded, intact, rms
from problems import CHANNEL_SIZES, PIXEL_SIZES, PROBLEMS, Problem
from strategies import odd_problems

LAYOUTS = ("NHWC", "NCHW")
DTYPES = ("float32", "float64")
METHODS = ("direct", "im2col", "winograd", "auto")
# Larger than a kernel's blocks: several chunks of pixels, strips of rows, blocks of channels and panels of filters.
LARGE = [
    Problem("large 3x3", 3, 30, 26, 20, 40, P=1),
    Problem("large 3x3 deep", 1, 14, 15, 150, 131, P=1),
    Problem("large 3x3 deeper than a panel of pixels", 1, 4, 5, 1900, 5, P=1),
    Problem("large 3x3 few channels", 2, 33, 31, 3, 67, P=1),
    Problem("large 5x5", 2, 21, 20, 40, 36, 5, P=2),
    Problem("large 1x1", 2, 25, 26, 40, 70, 1),
    Problem("large 3x3 stride 2", 2, 41, 37, 17, 65, S=2, P=1),
    Problem("large 3x3 wide and low", 1, 2, 700, 5, 40, P=1),
    Problem("large 3x3 stride 2 of odd depth", 1, 8, 23, 70, 33, S=2, P=0),
    Problem("large 5x5 stride 2", 3, 33, 30, 37, 70, 5, S=2, P=2),
    Problem("large 5x5 stride 2 oddly padded", 2, 18, 17, 16, 32, 5, S=2, P=((1, 0), (3, 2))),
    Problem("large 5x5 stride 2 grouped", 2, 12, 15, 40, 24, 5, S=2, P=1, groups=2),
    Problem("large 7x7 stride 2", 2, 21, 26, 20, 48, 7, S=2, P=3),
    Problem("large 5x5 stride 2 of many filters", 2, 9, 11, 130, 260, 5, S=2, P=2),
    Problem("large 7x7 stride 2 of a picture", 2, 46, 45, 3, 40, 7, S=2, P=3),
    Problem("large 3x3 of filters that no cache keeps", 2, 14, 15, 2601, 40, P=1),
    Problem("large 3x3 of groups' filters that no cache keeps", 1, 9, 10, 500, 500, P=1, groups=2),
    Problem("large 3x3 stride 2 of many groups", 4, 37, 36, 300, 120, S=2, P=1, groups=10),
    Problem("large 3x3 of many groups", 3, 27, 26, 204, 108, P=1, groups=12),
    Problem("large 11x11", 1, 13, 12, 150, 9, 11, P=5),
    Problem("large 3x3 of few tiles", 1, 8, 8, 64, 64, P=1),
    Problem("large 3x3 of few tiles and filters", 1, 8, 8, 150, 12, P=1),
    Problem("large 3x3 of one block of tiles a thread", 1, 31, 25, 70, 12, P=1),
    Problem("large 5x5 of tiles cut on the right and below", 3, 13, 15, 24, 40, 5, P=2),
    Problem("large 3x3 stride 2 of tiles cut on the right and below", 2, 26, 20, 24, 40, S=2, P=1),
    Problem("large first layer of long rows", 3, 40, 350, 2, 7, P=1),
    Problem("large first layer of long rows, stride 2, grouped", 2, 41, 330, 4, 10, 5, S=2, P=2, groups=2),
    Problem("large 4x4 stride 2", 2, 21, 26, 40, 70, 4, S=2, P=1),
    Problem("large 4x4 stride 2 of even padding and odd size", 2, 15, 19, 33, 24, 4, S=2, P=2),
    Problem("large 4x4 stride 2 oddly padded, grouped", 1, 12, 17, 24, 40, 4, S=2, P=((2, 1), (0, 3)), groups=2),
    Problem("large 7x7", 2, 13, 19, 40, 36, 7, P=3),
    Problem("large 7x7 oddly padded, grouped", 1, 17, 15, 24, 72, 7, P=((1, 6), (4, 2)), groups=2),
    Problem("large 7x7 dilated", 1, 23, 25, 20, 33, 7, P=5, dilation=(3, 2)),
    Problem("large 7x7 dilated farther than the picture", 1, 5, 6, 16, 20, 7, P=21, dilation=7),
    Problem("large 6x6", 2, 14, 17, 33, 24, 6, P=(2, 3)),
    Problem("large 6x6 stride 2, grouped", 1, 15, 18, 24, 40, 6, S=2, P=((2, 1), (0, 5)), groups=2),
    Problem("large 4x4", 2, 15, 14, 40, 33, 4, P=((1, 2), (2, 1))),
    Problem("large 2x2", 2, 16, 13, 33, 40, 2, P=((0, 1), (1, 0))),
    Problem("large row of two", 1, 6, 41, 40, 33, (1, 2)),
    Problem("large column of six, dilated", 1, 31, 5, 33, 20, (6, 1), P=(4, 0), dilation=(2, 1)),
    Problem("large row of a window", 2, 17, 20, 40, 72, (1, 7), P=(0, 3)),
    Problem("large column of a window", 2, 15, 13, 37, 33, (3, 1), P=(1, 0)),
    Problem("large row of a window over one long row", 1, 1, 900, 40, 70, (1, 9), P=(0, 4)),
    Problem("large 1x1 of one long row", 1, 1, 700, 60, 70, 1),
    Problem("large row of a window, of few tiles", 1, 1, 30, 70, 24, (1, 5), P=(0, 2)),
    Problem("large row of a window, grouped, dilated", 2, 9, 31, 24, 40, (1, 5), P=(0, 4), dilation=(1, 2), groups=2),
    Problem("large column of a window, oddly padded, dilated", 2, 29, 6, 20, 33, (7, 1), P=((5, 2), (0, 1)), dilation=(3, 1)),
    Problem("large row of a window that meets only padding", 2, 3, 1, 5, 6, (1, 3), P=((0, 0), (3, 1)), dilation=(1, 2)),
    Problem("large dilated, of pictures of two sizes", 2, 23, 21, 24, 40, P=((3, 2), (4, 5)), dilation=(3, 4)),
    Problem("large dilated 2, of many tiles", 2, 40, 38, 24, 33, P=2, dilation=2),
    Problem("large 5x5 dilated farther than the picture", 1, 5, 6, 16, 33, 5, P=14, dilation=7),
    # Few filters under many channels, or few channels under many filters: vectors run along the others
    Problem("large 3x3 of three filters", 2, 17, 18, 37, 3, P=1),
    Problem("large dilated of two filters, oddly padded", 1, 19, 18, 40, 2, (3, 2), P=((1, 0), (2, 1)), dilation=(2, 3)),
    Problem("large 1x1 of two filters", 2, 9, 11, 33, 2, 1),
    Problem("large 1x1 of four filters and many pixels", 2, 17, 17, 38, 4, 1),
    Problem("large 3x3 stride 2 of one filter", 2, 11, 9, 16, 1, S=2, P=1),
    Problem("large 4x4 stride 2 of four channels", 2, 12, 10, 4, 36, 4, S=2, P=1),
    Problem("large 5x5 of three channels", 1, 9, 26, 3, 40, 5, P=2),
    # Small pictures, which depth-first are turned over, but not their weights; or whose window is the whole picture
    Problem("large 3x3 stride 2 of a few pixels", 3, 4, 4, 70, 40, S=2, P=1),
    Problem("large 5x5 of four pixels, some taps unused, grouped", 3, 2, 2, 80, 72, 5, P=2, groups=2),
    # So much padding that tiles are made of one place in several pictures, of a part of a place, or of rows that see none
    Problem("large 3x3 stride 2 of five pictures", 5, 5, 7, 33, 40, S=2, P=1),
    Problem("large 3x3 stride 2 of many pictures", 17, 3, 4, 24, 48, S=2, P=1),
    Problem("large 4x4 stride 3 of many pictures, grouped", 29, 5, 3, 70, 66, 4, S=3, P=2, groups=2),
    Problem("large dilated, mostly padding", 1, 21, 20, 24, 70, P=11, dilation=11),
    Problem("large dilated, mostly padding, of two pictures", 2, 13, 14, 40, 33, P=((9, 6), (7, 8)), dilation=8),
    Problem("large 3x3 of one pixel", 2, 1, 1, 150, 70, P=1),
    Problem("large 1x1 of one pixel, grouped", 2, 1, 1, 80, 72, 1, groups=2),
    Problem("large window as the picture", 3, 4, 5, 40, 70, (4, 5)),
    # Rows of a tile, and pixels of a depthwise window, that would share a set of a first-level cache
    Problem("large 1x1 of pixels 4 KB apart", 2, 5, 6, 1024, 40, 1),
    Problem("large 1x1 to pixels 4 KB apart", 2, 3, 7, 24, 1024, 1),
    Problem("large 1x1 of planes 4 KB apart", 1, 32, 32, 20, 12, 1),
    Problem("large 3x3 of pixels 4 KB apart", 1, 6, 5, 1024, 6, P=1),
    Problem("large 3x3 stride 2 of pixels 4 KB apart", 1, 7, 9, 512, 20, S=2, P=1),
    Problem("large depthwise of pixels 2 KB apart", 2, 9, 8, 512, 512, P=1, groups=512),
    Problem("large depthwise of pixels 4 KB apart, stride 2", 2, 9, 7, 1024, 1024, S=2, P=1, groups=1024),
    Problem("large depthwise of pixels 2 KB apart, too many to copy", 1, 3, 200, 512, 512, P=1, groups=512),
    Problem("large depthwise multiplier 2 of pixels 2 KB apart", 1, 6, 7, 512, 1024, P=2, dilation=2, groups=512),
    Problem("large depthwise", 2, 40, 37, 72, 72, P=1, groups=72),
    Problem("large depthwise of three channels", 3, 50, 51, 3, 3, P=1, groups=3),
    Problem("large depthwise of three channels, multiplier 2, stride 2", 2, 51, 50, 3, 6, 5, S=2, P=1, groups=3),
    Problem("large depthwise stride 2", 2, 41, 38, 72, 72, S=2, P=1, groups=72),
    Problem("large depthwise multiplier 2", 2, 30, 29, 36, 72, P=1, groups=36),
    Problem("large depthwise over one long row", 1, 1, 500, 72, 72, (1, 7), P=(0, 3), groups=72),
    Problem("large depthwise of two vectors and a bit over one long row", 1, 1, 400, 36, 36, (1, 7), P=(0, 3), groups=36),
    Problem("large depthwise over one long row, stride 2, multiplier 2", 1, 1, 300, 36, 72, (1, 4), S=2, P=(0, 1), groups=36),
    Problem("large depthwise of two rows", 1, 2, 90, 300, 300, P=1, groups=300),
    Problem("large groups of two over one long row", 1, 1, 150, 70, 70, (1, 3), P=(0, 1), groups=35),
    Problem("large grouped", 2, 19, 18, 40, 72, P=1, groups=4),
    # Groups so small that a vector holds several, also past its end, and in parts and blocks
    Problem("large groups of two", 2, 19, 18, 70, 70, P=1, groups=35),
    Problem("large groups of two, 1x3, stride 2, dilated", 2, 17, 16, 36, 36, (1, 3), S=2, P=(0, 2), dilation=2, groups=18),
    Problem("large groups of four", 3, 21, 20, 300, 300, P=1, groups=75),
    Problem("large groups of four, stride 2", 2, 17, 22, 72, 72, S=2, P=1, groups=18),
    Problem("large groups of four, 5x5, oddly padded", 1, 9, 11, 24, 24, 5, P=((1, 2), (4, 0)), groups=6),
    Problem("large groups of eight", 2, 14, 15, 88, 88, P=1, groups=11),
    Problem("large groups of eight, stride 2 of few pixels", 3, 8, 7, 48, 48, S=2, P=1, groups=6),
    Problem("large groups of two of long rows", 1, 5, 40, 24, 24, P=1, groups=12),
    Problem("large groups of eight of rows longer than a vector", 2, 6, 17, 24, 24, P=1, groups=3),
    Problem("large groups of eight, stride 3", 1, 20, 19, 32, 32, 2, S=3, groups=4),
    Problem("large grouped dilated", 2, 19, 18, 24, 40, P=2, dilation=2, groups=2),
]
ALL = [*PROBLEMS, *LARGE]
SEVERAL = [p for p in ALL if p.N > 1]


def can(p, method):
    """What the documentation says of "winograd": square windows of 2 to 7 a side, or a row or column of them, with S=1; square ones
    of 3 and more with S=2, too, without dilation. The others do everything."""
    w, (least, most) = p.window, sorted(p.window.F)
    if method != "winograd":
        return True
    if w.S == (2, 2) and w.dilation == (1, 1):
        return 3 <= least == most <= 7
    return w.S == (1, 1) and 2 <= most <= 7 and least in (1, most)


def convolve(e, out=None, **how):
    """What RESULTS names, from a problem's inputs; `out` holds an array to write to for each."""
    out = out or dict.fromkeys(RESULTS)
    return {
        "y": fc.conv2d(e.x, e.w, e.b, out=out["y"], **how),
        "y without bias": fc.conv2d(e.x, e.w, out=out["y without bias"], **how),
        "y with relu": fc.conv2d(e.x, e.w, e.b, activation="relu", out=out["y with relu"], **how),
        "dx": fc.conv2d_grad_x(e.dy, e.w, e.x.shape, out=out["dx"], **how),
        "dw": fc.conv2d_grad_w(e.dy, e.x, e.w.shape, out=out["dw"], **how),
    }


def poison(e, threads=3, **how):
    """Leave NaNs in every workspace that the next call of the same sizes is handed."""
    nan = {name: np.full_like(getattr(e, name), np.nan) for name in ("x", "w", "b", "dy")}
    with fc.num_threads(threads):
        convolve(e._replace(**nan), **how)


def mistakes(p, e, method, layout):
    """All results on one thread against the oracle, with canaries; those on two and three against the first."""
    how = {"method": method, "layout": layout, **p.how}
    poison(e, **how)
    made = {name: canary(e.exact[name].shape, e.x.dtype) for name in RESULTS}
    with fc.num_threads(1):
        first = convolve(e, {name: out for name, (out, _) in made.items()}, **how)
    for name, (out, buffer) in made.items():
        if first[name] is not out or not intact(buffer):
            yield f"{p}: {name}: wrote elsewhere than to out"
        wrong = difference(first[name], e.exact[name], e.tolerance(name, method))
        if wrong:
            yield f"{p}: {name}: {wrong}"
    for n in (2, 3):
        with fc.num_threads(n):
            again = convolve(e, **how)
        yield from (f"{p}: {name}: other bits on {n} threads" for name in RESULTS if not bits(again[name], first[name]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_problem_agrees_with_the_oracle(isa, layout, dtype, method):
    able = [p for p in ALL if can(p, method)]
    assert len(able) > (113 if method == "winograd" else 193)
    assert [m for p in able for m in mistakes(p, expected(p, layout, dtype), method, layout)] == []


@pytest.mark.skipif(sys.platform != "linux", reason="fences are put up by Linux's mprotect")
@pytest.mark.parametrize("before", [False, True], ids=["ends", "begins"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_touched_beyond_the_arrays(isa, layout, before):
    """In a child process, which a read past an operand's end, or before its beginning, would kill."""
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            for p in ALL:
                e, how = Expected(*(fenced(a, before) for a in p.arrays(layout)), {}, {}, {}), {"layout": layout, **p.how}
                shapes = {"dx": p.x_shape(layout), "dw": p.w_shape(layout)}
                out = {name: fenced(np.empty(shapes.get(name, p.y_shape(layout)), "f4"), before) for name in RESULTS}
                for method in (m for m in METHODS[:3] if can(p, m)):
                    convolve(e, out, method=method, **how)
            failed = 0
        finally:
            os._exit(failed)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_weights_for_few_pixels(isa, layout):
    """More than any cache keeps: they are packed as they are used."""
    for p in (Problem("dense", 3, 1, 1, 2100, 1030, 1), Problem("grouped", 1, 1, 5, 4200, 1040, 1, groups=2)):
        faults = list(mistakes(p, expected(p, layout, "float32"), "direct", layout))
        assert not faults, "\n".join(faults)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lone_panel_is_packed_by_stretches_of_channels(isa, layout):
    """Depth first, of y and of dx: two threads or three pack some channels each, and none is forgotten."""
    for p in (Problem("few filters", 8, 3, 3, 500, 5, P=1), Problem("few channels", 8, 3, 3, 5, 500, P=1)):
        e, how = expected(p, layout, "float32"), {"layout": layout, "method": "direct", **p.how}
        assert list(mistakes(p, e, "direct", layout)) == []
        with fc.num_threads(1):
            first = convolve(e, **how)
        for n in (2, 3):
            poison(e, 1, **how)
            with fc.num_threads(n):
                again = convolve(e, **how)
            assert [name for name in RESULTS if not bits(again[name], first[name])] == [], f"{p}, {n} threads"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_filters_that_threads_cannot_share_evenly(isa, layout):
    """Three, five and seven panels over few pixels: these are cut as well, and for weights the channels."""
    NR = 2 * _kernels.kernel("conv").VECTOR // np.dtype("f4").itemsize
    for panels in (3, 5, 7):
        for p in (
            Problem(f"{panels} panels", 2, 7, 9, 170, panels * NR - 3, 1),
            Problem(f"{panels} panels, stride 2", 2, 7, 9, 90, panels * NR - 3, S=2, P=1),
        ):
            assert list(mistakes(p, expected(p, layout, "float32"), "direct", layout)) == []


def test_strips_of_unlike_lengths(isa):
    """Depth last, of few channels, two rows and one in turn: a thread whose first strip is short makes pointers for a long one."""
    p = Problem("strips", 5, 3, 20, 3, 40, P=1)
    assert list(mistakes(p, expected(p, "NHWC", "float32"), "direct", "NHWC")) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_threads_than_shares_of_the_tasks(isa, layout):
    """A team of 70 takes its tasks from 64 shares, and none is taken twice or forgotten; nor does it share too few tiles."""
    for p in (
        Problem("many tasks 1x1", 3, 61, 60, 16, 24, 1),
        Problem("many tasks 3x3", 3, 61, 60, 16, 24, P=1),
        Problem("more tiles than a block's", 1, 32, 32, 40, 12, P=1),
        Problem("few tiles", 1, 10, 13, 40, 12, P=1),
    ):
        e = expected(p, layout, "float32")
        for method in ("direct", "winograd") if p.window.F == (3, 3) else ("direct",):
            with fc.num_threads(1):
                first = convolve(e, layout=layout, method=method, **p.how)
            with fc.num_threads(70):
                again = convolve(e, layout=layout, method=method, **p.how)
            assert all(bits(again[name], first[name]) for name in RESULTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_transposed_convolution_is_dx_and_a_bias(isa, layout):
    """For every problem, by whatever method its dx takes; the bias costs one rounding more."""
    tried = 0
    for p in ALL:
        w, e = p.window, expected(p, layout, "float32")
        covered = [(n - 1) * S + d * (F - 1) + 1 - sum(P)
                   for n, S, F, P, d in zip(w.size, w.S, w.F, w.pads, w.dilation, strict=True)]  # fmt: skip
        rest = tuple(n - c for n, c in zip((p.H1, p.W1), covered, strict=True))
        if min(w.size) < 1 or any(not 0 <= r < S for r, S in zip(rest, w.S, strict=True)):
            continue  # a picture with more rows than any padding of the result gives
        b = np.random.default_rng(1).standard_normal(p.D1).astype("float32")
        how = {"S": w.S, "P": w.pads, "dilation": w.dilation, "groups": p.groups, "layout": layout}
        made = fc.conv_transpose2d(e.dy, e.w, b, output_padding=rest, **how)
        right = e.exact["dx"] + (b if layout == "NHWC" else b[:, None, None])
        wrong = difference(made, right, e.tolerance("dx", "auto") + 2e-7 * (np.abs(right) + np.abs(b).max(initial=0)))
        assert not wrong, f"{p}: {wrong}"
        tried += 1
    assert tried > 150


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(odd_problems(side=14, depth=20), st.sampled_from(LAYOUTS), st.sampled_from(DTYPES))
def test_odd_geometries_agree_with_the_oracle(p, layout, dtype):
    e, before = expected(p, layout, dtype), fc.isa()
    try:
        for level in fc.available_isas():
            fc.use_isa(level)
            able = [method for method in METHODS if can(p, method)]
            assert [m for method in able for m in mistakes(p, e, method, layout)] == [], level
    finally:
        fc.use_isa(before)


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_depth_first_pictures_are_turned_over_a_few_at_a_time(isa, monkeypatch, pictures, replan):
    """One by one, by twos with one left over, or all together: each is what the oracle says."""
    p = Problem("turned", 3, 25, 24, 18, 20, S=2, P=1, groups=2)
    monkeypatch.setattr(costs, "TURNED", pictures * 4 * (25 * 24 * 18 + 13 * 12 * 20))
    assert costs.better_turned(costs.Problem("grad_x", 3, 25, 24, 18, 20, p.window, 2, True, "float32"))
    replan()
    assert list(mistakes(p, expected(p, "NCHW", "float32"), "direct", "NCHW")) == []


@pytest.mark.parametrize(
    ("direction", "side", "D1", "K", "S", "groups", "turned"),
    [
        ("grad_x", 7, 2048, 4096, 1, 1, True), ("grad_x", 28, 256, 64, 1, 1, False), ("grad_x", 7, 2048, 4096, 1, 2, False),
        ("fwd", 7, 2048, 4096, 1, 1, False), ("grad_x", 14, 1024, 2048, 2, 1, True), ("grad_x", 56, 256, 128, 2, 1, False),
        ("grad_x", 256, 512, 512, 1, 1, False),
    ],
)  # fmt: skip
def test_pictures_of_many_weights_are_turned_over_instead(monkeypatch, sixteen_lanes, direction, side, D1, K, S, groups, turned):
    """Under 1x1 windows, for dx, which depth first reads its weights across: with 16 numbers a vector and caches of 1 MB."""
    monkeypatch.setattr(costs, "TURNED", 4 << 20)
    w = Problem("pointwise", 8, side, side, D1, K, 1, S=S, groups=groups).window
    for N in (1, 2, 64):
        assert costs.better_turned(costs.Problem(direction, N, side, side, D1, K, w, groups, True, "float32")) is turned


@pytest.mark.parametrize("S", [1, 2, (1, 3)])
def test_pictures_under_single_taps_are_turned_over(isa, monkeypatch, S, replan):
    monkeypatch.setattr(costs, "better_turned", lambda p: p.nchw and p.direction == "grad_x")
    replan()
    for dtype in DTYPES:
        p = Problem("pointwise turned", 3, 5, 7, 40, 23, 1, S=S)
        assert list(mistakes(p, expected(p, "NCHW", dtype), "direct", "NCHW")) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_pixels_that_stand_alone_are_read_across_planes(isa, monkeypatch, dtype, replan):
    """Fewer than a tile has, as many, and pieces of several tiles; filters, and channels, at and around whole vectors: the bits
    that panels of pixels give."""
    problems = [
        *(Problem(f"{pixels} pixels", 3, 1, pixels, 5, 33, 1) for pixels in PIXEL_SIZES),
        *(Problem(f"{n} filters", 2, 5, 7, n + 2, n, 1) for n in CHANNEL_SIZES if n > 1),
        Problem("several pieces", 2, 27, 41, 20, 70, 1), Problem("deep", 1, 17, 16, 900, 40, 1),
        Problem("groups", 2, 5, 7, 39, 102, 1, groups=3),
    ]
    made = []
    for across in (False, True):
        monkeypatch.setattr(costs, "across_planes", lambda p, across=across: across and p.direction != "grad_w" and p.pointwise)
        monkeypatch.setattr(costs, "better_turned", lambda p: False)
        replan()
        inputs = [(expected(p, "NCHW", dtype), {"method": "direct", "layout": "NCHW", **p.how}) for p in problems]
        made.append([convolve(e, **how) for e, how in inputs])
    assert [str(p) for p, a, b in zip(problems, *made, strict=True) if not all(bits(a[name], b[name]) for name in RESULTS)] == []
    assert [fault for p, (e, _) in zip(problems, inputs, strict=True) for fault in mistakes(p, e, "direct", "NCHW")] == []


@pytest.mark.parametrize(
    ("side", "D1", "K", "across"),
    [
        (7, 832, 32, True), (7, 832, 128, True), (14, 480, 192, True), (17, 768, 128, True), (5, 32, 256, True),
        (28, 128, 512, False), (56, 32, 512, False), (32, 256, 256, False), (14, 512, 24, False), (56, 64, 24, False),
    ],
)  # fmt: skip
def test_where_pixels_are_read_across_planes(sixteen_lanes, side, D1, K, across):
    """With 16 numbers a vector: planes that end within one, and channels whose products outweigh turning the results over."""
    p = costs.Problem("fwd", 16, side, side, D1, K, Problem("1x1", 1, side, side, D1, K, 1).window, 1, True, "float32")
    assert costs.across_planes(p) is across
    assert costs.across_planes(p._replace(direction="grad_x", D1=K, K=D1)) is across
    assert not costs.across_planes(p._replace(direction="grad_w"))
    assert not costs.across_planes(p._replace(nchw=False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_either_planes_may_be_turned_over_for_weight_gradients(isa, monkeypatch, dtype, replan):
    """Under 1x1 windows, those of dy or of x; channels and filters at and around whole vectors, one part and several."""
    problems = [
        *(Problem(f"{n} channels", 2, 5, 7, n, 40, 1) for n in CHANNEL_SIZES),
        *(Problem(f"{n} filters", 2, 5, 7, 40, n, 1) for n in CHANNEL_SIZES), Problem("parts", 3, 34, 37, 24, 70, 1),
        Problem("one pixel", 3, 1, 1, 24, 70, 1), Problem("more weights", 1, 3, 3, 200, 300, 1),
        Problem("stride 2", 3, 15, 13, 24, 70, 1, S=2), Problem("stride 2, parts", 3, 67, 75, 24, 70, 1, S=2),
        Problem("stride 1 and 3", 2, 6, 200, 20, 40, 1, S=(1, 3)), Problem("stride 3 and 1", 2, 20, 8, 33, 47, 1, S=(3, 1)),
    ]  # fmt: skip
    for exchanged in (False, True):
        monkeypatch.setattr(costs, "better_exchanged", lambda p, exchanged=exchanged: exchanged and p.window.F == (1, 1))
        replan()
        assert [fault for p in problems for fault in mistakes(p, expected(p, "NCHW", dtype), "direct", "NCHW")] == []


@pytest.mark.parametrize(
    ("side", "D1", "K", "x_turned"),
    [
        (112, 16, 96, True), (56, 64, 256, True), (14, 112, 672, True), (7, 512, 2048, True), (7, 1024, 1024, True),
        (56, 256, 64, False), (28, 50, 64, False), (28, 17, 100, False), (14, 1024, 256, False), (64, 8, 32, False),
    ],
)  # fmt: skip
def test_which_planes_are_turned_over_for_weight_gradients(sixteen_lanes, side, D1, K, x_turned):
    """The fewer, unless vectors of them are empty in part; with 16 numbers a vector."""
    for S in (1, 2):
        window = Problem("1x1", 1, S * side, S * side, D1, K, 1, S=S).window
        p = costs.Problem("grad_w", 8, S * side, S * side, D1, K, window, 1, True, "float32")
        assert costs.better_exchanged(p) is x_turned


def test_pictures_lighter_than_their_weights_are_turned_over_together(isa, monkeypatch, replan):
    """For all that are turned over at a time weights are packed once: more than room for one picture would be worth."""
    p, picture = Problem("heavy weights", 5, 6, 5, 40, 48, S=2, P=1), 4 * (6 * 5 * 40 + 3 * 3 * 48)
    monkeypatch.setattr(costs, "TURNED", picture)
    replan()
    assert list(mistakes(p, expected(p, "NCHW", "float32"), "direct", "NCHW")) == []
    how = dict(p.how, layout="NCHW", method="direct", direction="grad_x")
    one, five = (fc.explain((N, 40, 6, 5), (48, 40, 3, 3), **how).workspace_bytes for N in (1, 5))
    assert five - one >= 4 * picture


def test_small_groups_of_pictures_from_memory_share_their_parts(isa, monkeypatch, replan):
    """A weight gradient by Winograd, depth last: eight groups are read together, in two parts of 256 tiles, not one by one."""
    p = Problem("groups from memory", 2, 63, 64, 32, 48, P=1, groups=8)
    problem = costs.Problem("grad_w", 2, 63, 64, 32, 48, p.window, 8, False, "float32")
    assert costs.parts(problem, (4, 4)) == 1
    monkeypatch.setattr(costs, "STREAM", 0)
    assert costs.parts(problem, (4, 4)) == 2
    assert costs.parts(problem._replace(nchw=True), (4, 4)) == costs.parts(problem._replace(groups=1), (4, 4)) // 8 == 1
    replan()
    for dtype in DTYPES:
        assert list(mistakes(p, expected(p, "NHWC", dtype), "winograd", "NHWC")) == []


@pytest.mark.parametrize(("pictures", "room"), [(1, 1), (1, 2), (1, 4), (3, 1), (3, 2), (3, 4)])
def test_large_depth_first_pictures_are_turned_over_a_few_groups_at_a_time(isa, monkeypatch, pictures, room, replan):
    """For dx, with room for so many of five groups of a picture; the last pictures or groups may be fewer. So may a bias be cut."""
    p = Problem("groups turned", pictures, 25, 24, 45, 35, S=2, P=1, groups=5)
    monkeypatch.setattr(costs, "TURNED", room * 4 * (25 * 24 * 9 + 13 * 12 * 7))
    assert costs.better_turned(costs.Problem("grad_x", pictures, 25, 24, 45, 35, p.window, 5, True, "float32"))
    replan()
    e, b = expected(p, "NCHW", "float32"), np.arange(45, dtype="float32")
    assert list(mistakes(p, e, "direct", "NCHW")) == []
    with_bias = fc.conv_transpose2d(e.dy, e.w, b, S=2, P=1, output_padding=(0, 1), groups=5, layout="NCHW")
    right = e.exact["dx"] + b[:, None, None]
    assert not difference(with_bias, right, e.tolerance("dx", "direct") + 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_depth_last_pictures_of_few_channels_are_turned_over(isa, monkeypatch, pictures, dtype, replan):
    """For y and for dx, by ones, by twos with one left over, or all together; a single channel lies as it should already."""
    monkeypatch.setattr(costs, "BEGINNING", 1000)  # it may not pay on every level,
    monkeypatch.setattr(costs, "TURNED_MARGIN", 0)  # on some of which depth-first pictures would be turned over instead
    for D1, K in ((2, 1), (1, 2), (2, 2)):
        p = Problem("few channels", 3, 40, 36, D1, K, (5, 4), P=(2, 1))
        monkeypatch.setattr(costs, "TURNED", pictures * np.dtype(dtype).itemsize * (40 * 36 * D1 + 40 * 35 * K))
        for direction in ("fwd", "grad_x"):
            assert costs.better_depth_first(costs.Problem(direction, 3, 40, 36, D1, K, p.window, 1, False, dtype))
        replan()
        assert list(mistakes(p, expected(p, "NHWC", dtype), "direct", "NHWC")) == []


@pytest.mark.parametrize(("channels", "filters", "turned"), [(1, 6, True), (3, 16, False), (17, 3, False), (3, 17, False)])
def test_wider_depth_last_pictures_are_not_turned_over(sixteen_lanes, channels, filters, turned):
    """With 16 numbers a vector, six filters leave ten lanes empty, which costs more than it costs to turn pictures over."""
    p = Problem("few filters", 2, 28, 28, channels, filters, 5, P=2)
    problem = costs.Problem("fwd", 2, 28, 28, channels, filters, p.window, 1, False, "float32")
    assert costs.better_depth_first(problem) is turned


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_depth_last_pictures_of_small_groups_are_turned_over(isa, monkeypatch, pictures, dtype, replan):
    """In all directions, with any stride and dilation, by ones, by twos with one left over, or all together."""
    monkeypatch.setattr(costs, "better_depth_first", lambda p: not p.nchw and not p.turned)
    for p in (
        Problem("small groups", 3, 12, 37, 15, 6, (5, 4), P=(2, 1), groups=3),
        Problem("strided groups", 3, 13, 18, 10, 6, 3, S=(2, 1), P=1, dilation=(1, 2), groups=2),
        Problem("few channels that stand alone", 3, 14, 19, 3, 6, (3, 5), S=(1, 2), P=1, groups=3),
    ):
        (rows, cols), size = p.window.size, np.dtype(dtype).itemsize
        monkeypatch.setattr(costs, "TURNED", pictures * size * (p.H1 * p.W1 * p.D1 + rows * cols * p.K))
        replan()
        assert list(mistakes(p, expected(p, "NHWC", dtype), "direct", "NHWC")) == []


def test_infinities_of_pictures_turned_over_one_by_one_add_up_quietly(isa, monkeypatch, replan):
    """Of both signs to NaN, as IEEE 754 says: whatever NumPy is told to do about that, it is not asked."""
    monkeypatch.setattr(costs, "better_depth_first", lambda p: not p.nchw and not p.turned)
    monkeypatch.setattr(costs, "TURNED", 0)
    replan()
    x, dy = np.ones((3, 4, 20, 15), "float32"), np.ones((3, 2, 18, 6), "float32")
    x[0, 1, 1, 0], x[2, 1, 1, 0] = np.inf, -np.inf
    with np.errstate(all="raise"):
        dw = fc.conv2d_grad_w(dy, x, (3, 3, 5, 6), groups=3, method="direct")
    assert np.isnan(dw[:2, :2, 0, :2]).all()
    assert np.array_equal(np.isnan(dw).sum(axis=(0, 1)), np.outer([4, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]))


@pytest.mark.parametrize(
    ("direction", "F", "S", "cols", "channels", "filters", "turned"),
    [
        ("fwd", 3, 1, 56, 5, 4, True), ("fwd", 3, 1, 56, 5, 10, False), ("fwd", 3, 1, 7, 5, 4, False),
        ("fwd", 1, 1, 56, 5, 4, False), ("fwd", 3, 2, 56, 20, 1, False), ("grad_x", 3, 1, 56, 5, 16, True),
        ("grad_x", 3, 1, 56, 16, 5, False), ("grad_w", 3, 1, 56, 5, 4, True), ("grad_w", 3, 1, 56, 5, 8, False),
        ("grad_w", 3, 1, 14, 5, 1, False), ("grad_w", 3, 2, 56, 5, 1, True), ("grad_w", 3, 2, 28, 5, 1, False),
        ("grad_w", 1, 1, 56, 5, 1, False), ("fwd", 3, 1, 56, 4, 4, False), ("grad_w", 3, 1, 56, 4, 4, False),
    ],
)  # fmt: skip
def test_small_groups_are_turned_over_where_that_pays(sixteen_lanes, direction, F, S, cols, channels, filters, turned):
    """With 16 numbers a vector: few sums a group, but rows of pixels that fill vectors, and products enough to pay for turning."""
    p = Problem("groups", 2, cols, cols, 8 * channels, 8 * filters, F, S=S, P=F // 2, groups=8)
    for N in (1, 2, 64):
        problem = costs.Problem(direction, N, cols, cols, p.D1, p.K, p.window, 8, False, "float32")
        assert costs.better_depth_first(problem) is turned


@pytest.mark.parametrize(
    ("cols", "F", "S", "channels", "multiplier", "turned"),
    [
        (112, 3, 1, 3, 1, True), (56, 3, 1, 12, 1, True), (112, 3, 2, 3, 4, True), (56, 7, 1, 15, 1, True),
        (112, 3, 1, 15, 1, False), (112, 3, 2, 15, 1, False), (112, 2, 2, 10, 1, False),
        (112, 3, 1, 16, 1, False), (112, 3, 1, 1, 1, False), (14, 3, 1, 3, 1, False),
    ],
)  # fmt: skip
def test_few_channels_that_stand_alone_are_turned_over_where_that_pays(sixteen_lanes, cols, F, S, channels, multiplier, turned):
    """With 16 numbers a vector, of which a pixel fills a part: taps enough for the lanes that are lost, and a picture not small."""
    window = Problem("planes", 1, cols, cols, 1, 1, F, S=S, P=F // 2).window
    for direction, N in itertools.product(("fwd", "grad_x", "grad_w"), (1, 64)):
        p = costs.Problem(direction, N, cols, cols, channels, channels * multiplier, window, channels, False, "float32")
        assert costs.better_depth_first(p) is turned
        assert not costs.better_depth_first(p._replace(nchw=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pictures", [0, 1, 2, 3])
def test_dilated_depth_first_pictures_are_turned_over(isa, monkeypatch, pictures, dtype, replan):
    """For Winograd: by ones, by twos with one left over, or all together; not those that are larger than there is room for."""
    for p in (
        Problem("far", 3, 21, 37, 20, 9, P=(4, 5), dilation=(2, 5)),
        Problem("signals", 3, 1, 99, 17, 8, (1, 3), P=(0, 9), dilation=(1, 9)),
        Problem("groups", 3, 13, 19, 10, 20, (2, 2), P=2, dilation=4, groups=2),
    ):
        (rows, cols), room = p.window.size, max(pictures, 0.9) * np.dtype(dtype).itemsize
        monkeypatch.setattr(costs, "TURNED", int(room * (p.H1 * p.W1 * p.D1 + rows * cols * p.K)))
        for direction in ("fwd", "grad_x", "grad_w"):
            problem = costs.Problem(direction, 3, p.H1, p.W1, p.D1, p.K, p.window, p.groups, True, dtype)
            assert costs.better_turned_for_winograd(problem) is (pictures > 0)
            assert not costs.better_turned_for_winograd(problem._replace(nchw=False))
        replan()
        assert list(mistakes(p, expected(p, "NCHW", dtype), "winograd", "NCHW")) == []


def test_phases_of_depth_first_pictures_add_up_over_many_filters(isa, monkeypatch, replan):
    """As in pictures too large to be turned over: what is scattered between the pixels of dx waits there for the next filters."""
    monkeypatch.setattr(costs, "TURNED", 0)
    replan()
    for p in (Problem("phases", 2, 9, 38, 15, 1100, (1, 2), S=2), Problem("rows", 2, 3, 9, 6, 1100, 1, S=(2, 1))):
        assert list(mistakes(p, expected(p, "NCHW", "float32"), "direct", "NCHW")) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [63, 64, 65, 70])
def test_phases_of_depth_first_pictures_are_read_from_strips(isa, monkeypatch, cols, dtype, replan):
    """Rows of a phase at and around whole vectors; fewer channels than filters in a tile, and more than two tiles of them."""
    monkeypatch.setattr(costs, "TURNED", 0)
    replan()
    for p in (
        Problem("few", 2, 13, cols, 3, 7, (3, 5), S=2, P=(1, 2)), Problem("many", 1, 9, cols, 31, 5, (5, 4), S=2, P=1),
        Problem("far", 2, 11, cols, 5, 18, 3, S=(3, 2), P=2, dilation=(1, 3), groups=1),
        Problem("groups", 1, 8, cols, 6, 12, 3, S=(1, 2), P=1, groups=3),
    ):
        for method in ("direct", "im2col"):
            assert list(mistakes(p, expected(p, "NCHW", dtype), method, "NCHW")) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("past", [-1, 1, 3])
def test_rows_of_depth_first_pictures_make_one(isa, monkeypatch, past, dtype, replan):
    """Rows that end within a vector, under so many filters that a strip is copied for each column of the window."""
    monkeypatch.setattr(costs, "TURNED", 0)
    replan()
    cols = 2 * _kernels.kernel("conv").VECTOR // np.dtype(dtype).itemsize + past
    for p in (
        Problem("first", 3, 9, cols, 3, 40, P=1), Problem("stride 2", 2, 21, 2 * cols, 2, 67, 5, S=2, P=2),
        Problem("stride 4", 1, 31, 4 * cols + 3, 3, 40, 7, S=4),
        Problem("strides", 2, 23, 2 * cols - 1, 2, 40, (5, 3), S=(3, 2), P=1),
        Problem("far", 2, 12, cols, 3, 90, (3, 2), P=((2, 3), (1, 2)), dilation=(2, 3)),
        Problem("groups", 2, 8, cols, 6, 80, P=1, groups=2), Problem("pixels apart", 2, 9, 2 * cols - 1, 4, 40, 1, S=2),
        Problem("several strips", 1, 64, cols, 24, 33, P=1),
    ):
        assert list(mistakes(p, expected(p, "NCHW", dtype), "direct", "NCHW")) == []


def test_rows_that_make_one_are_written_past_the_caches(isa, monkeypatch, replan):
    """Strips of whole vectors of planes of whole vectors, of rows that end within one: as those of a picture that caches keep."""
    monkeypatch.setattr(costs, "TURNED", 0)
    replan()
    p, many = Problem("one of many", 1, 80, 41, 24, 64, P=1), 27
    e, how = expected(p, "NCHW", "float32"), {"layout": "NCHW", "method": "direct", **p.how}
    x = np.concatenate([e.x] * many)
    for threads in (1, 2, 3):
        with fc.num_threads(threads):
            y, one = fc.conv2d(x, e.w, e.b, **how), fc.conv2d(e.x, e.w, e.b, **how)
        assert all(bits(y[n : n + 1], one) for n in range(many))
        assert y.nbytes > 20 << 20


@pytest.mark.parametrize(("K", "S"), [(24, 1), (60, 1), (20, 2)])
def test_weight_gradients_of_1x1_windows_read_strips_that_the_caches_keep(isa, K, S):
    """512 channels from memory, depth last: strips of pixels of which two have room, or four times as many as sums a channel."""
    x = np.random.default_rng(0).standard_normal((6, 44, 41, 512), "f4")
    seen = x[:, ::S, ::S]
    dy = np.random.default_rng(1).standard_normal((*seen.shape[:3], K), "f4")
    shape, how = (1, 1, 512, K), {"S": S, "method": "direct"}
    assert x.nbytes > 20 << 20
    exact = np.reshape(seen, (-1, 512)).T.astype("f8") @ np.reshape(dy, (-1, K))
    made = fc.conv2d_grad_w(dy, x, shape, **how)
    for threads in (1, 2, 3):
        with fc.num_threads(threads):
            assert bits(fc.conv2d_grad_w(dy, x, shape, **how), made)
    # of n products added one after the other: see DIRECT in test_winograd.py
    assert rms(made.reshape(512, K) - exact) < 0.25 * np.finfo("f4").eps * dy[..., 0].size ** 0.5 * rms(exact)
    job = fc.explain(x.shape, shape, direction="grad_w", **how).job
    assert job.workspace(2) - job.workspace(1) < 80 << 10


@pytest.mark.parametrize(
    ("cols", "batch", "channels", "turned"),
    [(20, 1, 8, True), (20, 32, 8, True), (32, 1, 8, False), (20, 1, 3, False), (20, 1, 4, True)],
)
def test_long_depth_first_rows_are_turned_over_where_lanes_are_lost(sixteen_lanes, cols, batch, channels, turned):
    """With 16 numbers a vector, 20 results a row lose 12 lanes of 32; to turn few channels over costs more than that, four less."""
    size = 4 * cols + 4
    p = Problem("long rows", batch, size, size, channels, 32, 8, S=4)
    assert costs.better_turned(costs.Problem("fwd", batch, size, size, channels, 32, p.window, 1, True, "float32")) is turned


@pytest.mark.parametrize(
    ("direction", "side", "channels", "filters", "F", "S", "turned"),
    [
        ("fwd", 128, 128, 2, 5, 1, True), ("fwd", 64, 512, 1, 7, 2, True), ("grad_x", 128, 1, 64, 9, 1, True),
        ("fwd", 128, 256, 1, 3, 1, False), ("grad_x", 64, 512, 1, 7, 2, False), ("fwd", 128, 128, 64, 3, 1, False),
        ("grad_x", 128, 256, 64, 1, 1, False),
    ],
)  # fmt: skip
def test_large_pictures_of_few_filters_are_turned(monkeypatch, sixteen_lanes, direction, side, channels, filters, F, S, turned):
    """With 16 numbers a vector: where rows of the tile would be few, and pixels are packed for many taps, or copied for all."""
    monkeypatch.setattr(costs, "TURNED", 4 << 20)
    p = Problem("large", 2, side, side, channels, filters, F, S=S, P=F // 2)
    for N in (1, 64):
        problem = costs.Problem(direction, N, side, side, channels, filters, p.window, 1, True, "float32")
        assert problem.picture_bytes > costs.TURNED
        assert costs.better_turned(problem) is turned


@pytest.mark.parametrize("S", [1, 2])
def test_few_filters_call_for_pictures_that_no_cache_keeps(isa, S):
    """Vectors run along the channels; what is called for, past a picture's last row, too, changes nothing."""
    x, w = (np.random.default_rng(n).standard_normal(shape, "f4") for n, shape in enumerate(((11, 200, 160, 16), (5, 3, 16, 2))))
    assert x.nbytes > 5 << 22
    how = dict(S=S, P=(2, 1), method="direct")
    dy = np.random.default_rng(2).standard_normal((*fc.conv2d(x[:1], w, **how).shape[:3], 16), "f4")  # dx has two channels
    turned, shape, dys = np.ascontiguousarray(w.swapaxes(2, 3)), (1, 200, 160, 2), np.concatenate([dy, -dy] * (6 * S * S))
    y, dx = fc.conv2d(x, w, **how), fc.conv2d_grad_x(dys, turned, (len(dys), *shape[1:]), **how)
    for n in (0, 1, 10):
        assert bits(y[n : n + 1], fc.conv2d(x[n : n + 1], w, **how))
        assert bits(dx[n : n + 1], fc.conv2d_grad_x(dys[n : n + 1], turned, shape, **how))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_does_not_depend_on_its_batch(isa, layout, method):
    """Alone, in its own batch and among 17, on other threads: the same bits, forward and for the gradient by x."""
    wrong = []
    for p in (p for p in SEVERAL if can(p, method) and p.flops < 3e7):
        e, how = expected(p, layout, "float32"), {"method": method, "layout": layout, **p.how}
        many_x, many_dy = (np.concatenate([a] * 17)[:17] for a in (e.x, e.dy))
        with fc.num_threads(2):
            y, dx = fc.conv2d(many_x, e.w, e.b, **how), fc.conv2d_grad_x(many_dy, e.w, many_x.shape, **how)
        for part in (slice(0, p.N), *(slice(n, n + 1) for n in range(17))):
            x, dy = many_x[part], many_dy[part]
            with fc.num_threads(1):
                same = bits(fc.conv2d(x, e.w, e.b, **how), y[part])
                same_dx = bits(fc.conv2d_grad_x(dy, e.w, x.shape, **how), dx[part])
            wrong += [f"{p}: y of {part}"] * (not same) + [f"{p}: dx of {part}"] * (not same_dx)
    assert wrong == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adjoint_identities(isa, layout, method):
    """<conv(x, w), dy> == <x, grad_x(dy, w)> == <w, grad_w(dy, x)>, within what rounding may do to the largest sum.

    Each element of y, dx and dw is within its tolerance of the exact one, for which the identity holds exactly; so each
    side is within the sum of tolerance times the magnitude of what it is multiplied with.
    """
    for p in (p for p in ALL if can(p, method) and p.N):
        e, how = expected(p, layout, "float64"), {"method": method, "layout": layout, **p.how}
        partners = {"y without bias": e.dy, "dx": e.x, "dw": e.w}
        with fc.num_threads(2):
            got = convolve(e, **how)
        sides = {name: float(np.sum(got[name] * partner)) for name, partner in partners.items()}
        slack = {name: float(np.sum(e.tolerance(name, method) * np.abs(a))) for name, a in partners.items()}
        for name in ("dx", "dw"):
            error = abs(sides[name] - sides["y without bias"])
            assert error <= slack[name] + slack["y without bias"], f"{p}: {name}: {sides}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward_is_its_three_gradients(isa, layout, dtype):
    """dx and dw are the bits of the functions of their own; db is summed in float64 and rounded once."""
    for p in PROBLEMS[::3]:
        e, how = expected(p, layout, dtype), {"layout": layout, **p.how}
        for method in (m for m in METHODS if can(p, m)):
            dx, dw, db = fc.conv2d_backward(e.dy, e.x, e.w, method=method, **how)
            assert bits(dx, fc.conv2d_grad_x(e.dy, e.w, e.x.shape, method=method, **how)), f"{p}: dx"
            assert bits(dw, fc.conv2d_grad_w(e.dy, e.x, e.w.shape, method=method, **how)), f"{p}: dw"
            axes = (0, 1, 2) if layout == "NHWC" else (0, 2, 3)
            eps = np.finfo(dtype).eps
            exact, size = (a.sum(axes, dtype=np.float64) for a in (e.dy, np.abs(e.dy)))
            places = e.dy.size / p.K
            wrong = difference(db, exact, eps * np.abs(exact) + places * np.finfo(np.float64).eps * size)
            assert not wrong, f"{p}: db: {wrong}"
            assert db.dtype == e.dy.dtype


@pytest.mark.parametrize("needs", [(), ("x",), ("w",), ("b",), ("x", "b"), ["b", "w"], ("b", "w", "x", "x")])
def test_backward_gives_what_is_needed(needs):
    e = expected(PROBLEMS[0], "NHWC", "float32")
    given = fc.conv2d_backward(e.dy, e.x, e.w, needs=needs, **PROBLEMS[0].how)
    assert [a is not None for a in given] == [name in needs for name in ("x", "w", "b")]


def test_derivatives_by_differences():
    """One derivative of sum(dy*conv(x, w, b)) by every kind of argument: it is linear, so a difference is exact."""
    p = Problem("differences", 2, 6, 7, 4, 6, (3, 2), S=(2, 1), P=((1, 2), (0, 1)), groups=2)
    x, w, b, dy = (a.astype(np.float64) for a in p.arrays())
    grads = fc.conv2d_backward(dy, x, w, **p.how)
    for a, grad in zip((x, w, b), grads, strict=True):
        for at in (0, a.size // 2, a.size - 1):
            values = []
            for step in (0.5, -0.5):
                moved = a.copy()
                moved.flat[at] += step
                values.append(np.sum(dy * fc.conv2d(*(moved if c is a else c for c in (x, w, b)), **p.how)))
            # Two sums of 2*6*3*6 terms of about 10 each: 1e3 * 1e3 * 1.1e-16.
            assert abs(values[0] - values[1] - grad.flat[at]) < 2e-10


# ---------------------------------------------------------------- transposed convolution
TRANSPOSED = [
    # N, H1, W1, D1, K, F, S, P, output_padding, dilation, groups
    (2, 5, 6, 8, 6, 3, 2, 1, 1, 1, 1),
    (1, 7, 4, 5, 3, 4, 2, 1, 0, 1, 1),
    (2, 4, 5, 3, 16, 3, 1, 0, 0, 1, 1),
    (1, 4, 5, 33, 17, 3, 1, 1, 0, 1, 1),
    (1, 6, 6, 12, 18, (3, 2), (2, 3), (1, 0), (0, 2), 1, 3),
    (2, 5, 4, 6, 4, 3, 2, 2, 1, 2, 2),
    (1, 1, 1, 100, 32, 4, 1, 0, 0, 1, 1),
    (1, 5, 5, 4, 4, 2, 5, 0, 4, 1, 4),
    (3, 13, 14, 40, 24, 4, 2, 1, 0, 1, 1),
    (0, 3, 3, 2, 2, 2, 2, 0, 0, 1, 1),
    (1, 4, 4, 2, 3, 5, 1, 2, 0, 1, 1),
    (1, 6, 5, 4, 6, 3, 2, ((0, 1), (2, 1)), (1, 0), 1, 1),
]


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transposed_convolution_agrees_with_the_oracle(isa, n_threads, layout, dtype, with_bias):
    eps = np.finfo(dtype).eps
    for case in TRANSPOSED:
        N, H1, W1, D1, K, F, S, P, output_padding, dilation, groups = case
        Fh, Fw = (F, F) if isinstance(F, int) else F
        rng = np.random.default_rng(1)
        x = rng.standard_normal((N, H1, W1, D1) if layout == "NHWC" else (N, D1, H1, W1)).astype(dtype)
        k = K // groups
        w = rng.standard_normal((Fh, Fw, k, D1) if layout == "NHWC" else (D1, k, Fh, Fw)).astype(dtype)
        b = rng.standard_normal(K).astype(dtype) if with_bias else None
        how = {"S": S, "P": P, "output_padding": output_padding, "dilation": dilation, "groups": groups}
        wide = [None if a is None else a.astype(np.float64) for a in (x, w, b)]
        exact = reference.conv_transpose2d(*wide, **how, layout=layout)
        size = reference.conv_transpose2d(*(None if a is None else np.abs(a) for a in wide), **how, layout=layout)
        # "auto" may take Winograd, whose error is that of the largest sum: see oracle.py, with a margin for the tile
        terms = Fh * Fw * D1 // groups + 1
        bound = eps * terms * size + 200 * eps * terms**0.5
        got = fc.conv_transpose2d(guarded(x), guarded(w), None if b is None else guarded(b), **how, layout=layout)
        wrong = difference(got, exact, bound)
        assert not wrong, f"{case}: {wrong}"
        assert got.dtype == x.dtype


def test_transposed_convolution_is_the_gradient_by_x():
    p = Problem("transposed", 2, 9, 8, 4, 6, 3, S=2, P=1, groups=2)
    e = expected(p, "NHWC", "float32")
    y = fc.conv_transpose2d(e.dy, e.w, S=2, P=1, groups=2, output_padding=(0, 1))
    assert bits(y, fc.conv2d_grad_x(e.dy, e.w, e.x.shape, **p.how))


# ---------------------------------------------------------------- im2col
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_im2col_and_its_adjoint_agree_with_the_oracle(isa, n_threads, layout, dtype):
    """The windows are copies, so equal to the bit; col2im adds at most F*F numbers."""
    for p in PROBLEMS:
        if p.groups != 1:
            continue
        e, how = expected(p, layout, dtype), {"S": p.S, "P": p.P, "dilation": p.dilation, "layout": layout}
        cols = fc.im2col(e.x, p.F, **how)
        assert bits(cols, np.ascontiguousarray(reference.im2col(e.x, p.F, **how))), f"{p}: im2col"
        exact, size = (reference.col2im(f(cols).astype(np.float64), e.x.shape, p.F, **how) for f in (np.copy, np.abs))
        taps = int(np.prod(p.window.F))
        wrong = difference(fc.col2im(guarded(cols), e.x.shape, p.F, **how), exact, taps * np.finfo(dtype).eps * size)
        assert not wrong, f"{p}: col2im: {wrong}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_columns_are_made_a_few_pictures_at_a_time(isa, monkeypatch, layout, pictures, replan):
    """One by one, by twos with one left over, or all together: each is what the oracle says, whatever the threads."""
    p = Problem("columns", 5, 9, 8, 6, 20, S=2, P=1, groups=2)
    monkeypatch.setattr(costs, "COLUMNS", pictures * 4 * 5 * 4 * 9 * 6)
    replan()
    for n in (1, 2, 3, 7):  # more threads than pictures cut the channels
        with fc.num_threads(n):
            assert list(mistakes(p, expected(p, layout, "float32"), "im2col", layout)) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_grad_x_takes_im2col_for(isa, monkeypatch, layout, replan):
    """1x1 with a stride, and dx much larger than dy; not what is depthwise, or whose columns are too large."""
    monkeypatch.setattr(costs, "COLUMNS", 1 << 22)  # as where a core has 1 MB of cache
    replan()
    wanted = [
        Problem("strided 1x1", 2, 14, 14, 64, 128, 1, S=2),
        Problem("strided 1x1 in groups", 2, 14, 14, 64, 128, 1, S=2, groups=2),
        Problem("small, no padding", 8, 5, 5, 128, 256),
    ]
    others = [
        Problem("1x1", 2, 14, 14, 64, 128, 1),
        Problem("padded", 8, 28, 28, 64, 64, P=1),
        Problem("strided 1x1 depthwise", 2, 14, 14, 64, 64, 1, S=2, groups=64),
        Problem("columns of 5 MB", 2, 402, 402, 32, 16, 1, S=2),
    ]
    for p, method in [*((p, {"im2col"}) for p in wanted), *((p, {"direct", "winograd"}) for p in others)]:
        for N in (1, p.N):
            plan = fc.explain((N, *p.x_shape(layout)[1:]), p.w_shape(layout), direction="grad_x", layout=layout, **p.how)
            assert plan.method in method, f"{p} {plan}"


# ---------------------------------------------------------------- NaN, infinity, denormals
SPECIAL = [
    Problem("special 3x3", 3, 11, 12, 5, 37, P=1),
    Problem("special 3x3 stride 2", 2, 11, 12, 17, 9, S=2, P=1),
    Problem("special 5x5", 2, 9, 10, 18, 6, 5, P=2),
    Problem("special 1x1", 2, 7, 9, 9, 33, 1),
    Problem("special depthwise", 2, 9, 9, 33, 33, P=1, groups=33),
    Problem("special few channels", 2, 12, 12, 3, 20, P=1),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_reach_what_they_should(isa, layout, method):
    """One bad number in x: what the oracle has as NaN or infinite is so here; what does not see it is as it was.

    Winograd mixes the pixels of a tile, so there infinity may become NaN and reach the rest of the tiles it lies
    under; other pictures stay as they were.
    """
    at = (1, 4, 5, 2) if layout == "NHWC" else (1, 2, 4, 5)
    for p in (p for p in SPECIAL if can(p, method)):
        e, how = expected(p, layout, "float32"), {"layout": layout, **p.how}
        clean = convolve(e, method=method, **how)
        for value in (np.nan, np.inf, -np.inf):
            x, dy = e.x.copy(), e.dy.copy()
            x[at] = dy[at] = value
            with np.errstate(invalid="ignore"):
                exact = reference.conv2d(x, e.w, e.b, **how), reference.conv2d_grad_x(dy, e.w, x.shape, **how)
            with fc.num_threads(2):
                y = fc.conv2d(x, e.w, e.b, method=method, **how)
                dx = fc.conv2d_grad_x(dy, e.w, x.shape, method=method, **how)
            for name, a, b in zip(("y", "dx"), (y, dx), exact, strict=True):
                bad, others = ~np.isfinite(b), [0, *range(2, p.N)]
                assert bad.any()
                assert not np.isfinite(a[bad]).any(), f"{p}: {name} lost {value}"
                assert bits(a[others], clean[name][others]), f"{p}: {name}: {value} reached other pictures"
                if method in ("direct", "im2col"):
                    np.testing.assert_array_equal(a[bad], b[bad], f"{p}: {name}")
                    assert bits(a[~bad], clean[name][~bad]), f"{p}: {name}: {value} reached pixels that do not see it"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_filter_is_alone(isa, layout, method):
    """NaN in one filter's weights or bias makes its activation map NaN and leaves the bits of all others."""
    for p in (p for p in SPECIAL if can(p, method)):
        e, how = expected(p, layout, "float32"), {"layout": layout, "method": method, **p.how}
        clean = fc.conv2d(e.x, e.w, e.b, **how)
        for k in (0, p.K - 1):
            w, b = e.w.copy(), e.b.copy()
            (w[..., k] if layout == "NHWC" else w[k])[...] = np.nan
            b[k] = np.nan
            for wrong in (fc.conv2d(e.x, w, e.b, **how), fc.conv2d(e.x, e.w, b, **how)):
                y, before = (np.moveaxis(a, 3 if layout == "NHWC" else 1, 0) for a in (wrong, clean))
                assert np.isnan(y[k]).all(), f"{p}: filter {k}"
                others = np.arange(p.K) != k
                assert np.array_equal(y[others], before[others]), f"{p}: filter {k}"


def test_relu_keeps_nan(isa):
    x, w = np.full((1, 4, 4, 1), np.nan, np.float32), np.ones((3, 3, 1, 5), np.float32)
    for method in METHODS:
        assert np.isnan(fc.conv2d(x, w, P=1, method=method, activation="relu")).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_denormals_count_as_zero_inside_and_only_there(isa, layout, method):
    """A thousandth of the smallest normal times 1e20 would be a normal number, were it not taken as zero."""
    for dtype, tiny in (("float32", 1e-41), ("float64", 1e-311)):
        for p in (p for p in SPECIAL if can(p, method)):
            e, how = expected(p, layout, dtype), {"layout": layout, "method": method, **p.how}
            x, dy, w = np.full_like(e.x, tiny), np.full_like(e.dy, tiny), np.full_like(e.w, 1e20)
            assert (x[0] * w.flat[0] > np.finfo(dtype).tiny).all()
            with fc.num_threads(2):
                assert not fc.conv2d(x, w, **how).any(), f"{p}: y"
                assert not fc.conv2d_grad_x(dy, w, x.shape, **how).any(), f"{p}: dx"
                assert not fc.conv2d_grad_w(dy, np.full_like(x, 1e20), w.shape, **how).any(), f"{p}: dw"
            assert (np.full(1, tiny, dtype) * np.ones(1, dtype)).view(f"u{e.x.itemsize}")[0], "the caller's are gone"
