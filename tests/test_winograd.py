"""How large Winograd's error is, over channels and sizes, and that set_precision("exact") keeps away from it.

That it computes the right thing at every size and edge is test_conv.py's part.
"""

import functools
import itertools
import math

import numpy as np
import pytest

import fastconv as fc
from fastconv import costs, reference
from fastconv.geometry import window
from oracle import rms
from problems import BENCH, PROBLEMS, Problem

CHANNELS = 1, 4, 16, 48, 256
PART, BLOCK = 48, 96  # products that are summed by themselves: of tiles of eight points a side, and of a gradient by the weights
SIDES = (4, 9, 16)
# A number is a sum of n = F*F*C products, added one after the other for direct convolution: errors of random sign grow
# like eps*sqrt(n) of the result. Winograd adds C at a time (places/TILE for dw), or so many by themselves, between
# transforms that have an error of their own, larger over eight points than over six. The factors are a fifth or more above
# what was measured on all levels of an x86 processor: (rms, largest of up to a million errors).
DIRECT = 0.25, 4.0
TRANSFORMS = {2: (9.0, 160.0), 3: (9.0, 160.0), 4: (12.5, 160.0), 5: (24.0, 400.0)}
SUM, TILE = {**dict.fromkeys((2, 3, 4), (1.0, 10.0)), 5: (2.5, 20.0)}, {**dict.fromkeys((2, 3, 4, 6, 7), 4), 5: 16}
# The same of windows of one row or column: they are transformed once, not twice.
LINES = (14.0, 120.0), (1.2, 12.0)
# The same of four phases, with S=2 or of 6x6 and 7x7, which are summed over four, six or, with few channels, eight points.
PHASES = {**dict.fromkeys((3, 4, 5, 6), ((8.0, 100.0), (2.0, 20.0))), 7: ((24.0, 400.0), (2.5, 20.0))}
WINDOWS = [*itertools.product((2, 3, 4, 5, 6, 7), (1,)), *itertools.product((3, 4, 5, 6, 7), (2,))]
WINDOWS += [((1, 3), 1), ((4, 1), 1), ((5, 1), 1), ((1, 6), 1), ((1, 7), 1)]


def errors(made, exact, eps):
    """(rms, largest) error in units of eps times the result's rms."""
    scale = eps * rms(exact)
    return rms(made - exact) / scale, float(np.abs(made - exact).max()) / scale


@functools.cache
def problem(F, S, C, side, dtype):
    """x, w, dy and the exact y, dx and dw of a convolution from C channels to C."""
    P = (F - 1) // 2 if isinstance(F, int) else (F[0] // 2, F[1] // 2)
    p = Problem(f"{F} S={S} {C} channels", 2, side, side + 1, C, C, F, S=S, P=P)
    x, w, _, dy = (a.astype(dtype) for a in p.arrays("NHWC", np.float64, seed=C))
    wide = [a.astype(np.float64) for a in (x, w, dy)]
    exact = (
        reference.conv2d(wide[0], wide[1], **p.how),
        reference.conv2d_grad_x(wide[2], wide[1], x.shape, **p.how),
        reference.conv2d_grad_w(wide[2], wide[0], w.shape, **p.how),
    )
    return p, x, w, dy, exact


def three(p, x, w, dy, method):
    return (
        fc.conv2d(x, w, method=method, **p.how),
        fc.conv2d_grad_x(dy, w, x.shape, method=method, **p.how),
        fc.conv2d_grad_w(dy, x, w.shape, method=method, **p.how),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("F", "S"), WINDOWS)
def test_errors_stay_within_what_is_stated(isa, F, S, dtype):
    eps, side_of_F, taps = float(np.finfo(dtype).eps), np.max(F), int(np.prod(window("", 9, 9, F, 1, 0, 1).F))
    if taps == side_of_F:
        transforms, sums = LINES
    else:
        transforms, sums = (TRANSFORMS[F], SUM[F]) if S == 1 and F < 6 else PHASES[F]
    for C in CHANNELS:
        for side in SIDES[: 2 if C > 64 else 3]:
            p, x, w, dy, exact = problem(F, S, C, side, dtype)
            places = dy.size // C
            for method in ("direct", "winograd"):
                for name, made, right in zip(("y", "dx", "dw"), three(p, x, w, dy, method), exact, strict=True):
                    n, m = (places, min(places / TILE[side_of_F], BLOCK)) if name == "dw" else (taps * C, C)
                    if name != "dw" and side_of_F in (5, 7) and taps > side_of_F:
                        m = min(C, PART)
                    for kind, error in enumerate(errors(made, right, eps)):
                        bound = DIRECT[kind] * n**0.5
                        if method == "winograd":
                            bound = transforms[kind] + sums[kind] * m**0.5
                        if dtype == "float64":  # the oracle has an error of its own, that of direct convolution
                            bound += DIRECT[kind] * n**0.5
                        which = f"{('rms', 'largest')[kind]} error of {name} by {method}"
                        assert error < bound, f"{p} side {side}: {which}: {error} > {bound}"


def test_winograd_is_as_exact_as_promised_for_training(isa):
    """The bar of the library: no error above 5e-5 of the output's rms in float32, at many channels for each window."""
    of_phases = ((7, 1, 16, 28), (7, 1, 256, 14), (6, 1, 512, 9), (3, 2, 512, 14), (5, 2, 96, 28), (5, 2, 512, 14), (7, 2, 256, 14))
    for F, S, C, side in ((3, 1, 256, 14), (3, 1, 2048, 5), (5, 1, 96, 14), (5, 1, 1024, 5), *of_phases):
        p, x, w, dy, exact = problem(F, S, C, side, "float32")
        for made, right in zip(three(p, x, w, dy, "winograd"), exact, strict=True):
            assert np.abs(made - right).max() < 5e-5 * rms(right), f"{p}"


@pytest.mark.parametrize("F", [3, 5, 7])
def test_weight_gradients_of_large_pictures_are_as_exact(isa, F):
    """Sums over 300,000 pixels, of which direct convolution's are off by 3e-6: a block's tiles are summed by themselves."""
    x, dy = (np.random.default_rng(n).standard_normal((1, 480, 640, 8)) for n in (1, 2))
    exact = fc.conv2d_grad_w(dy, x, (F, F, 8, 8), P=F // 2, method="direct")
    dw = fc.conv2d_grad_w(dy.astype("f4"), x.astype("f4"), (F, F, 8, 8), P=F // 2, method="winograd")
    assert rms(dw - exact) < 6e-6 * rms(exact)


def test_weight_gradients_of_long_lines_are_as_exact(isa):
    """Of seven taps there is one tile only, of two results: 20,000 tiles of 40,000 pixels."""
    x, dy = (np.random.default_rng(n).standard_normal((1, 1, 40_000, 4)) for n in (1, 2))
    exact = fc.conv2d_grad_w(dy, x, (1, 7, 4, 4), P=(0, 3), method="direct")
    dw = fc.conv2d_grad_w(dy.astype("f4"), x.astype("f4"), (1, 7, 4, 4), P=(0, 3), method="winograd")
    assert np.abs(dw - exact).max() < 5e-5 * rms(exact)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_direct_weight_gradients_of_many_pixels_are_summed_in_parts(isa, layout):
    """Of two million pixels none has more than 2 * PART_PIXELS: what one part's sums may be off by, all are."""
    x, dy = (np.random.default_rng(D).standard_normal((1, 1600, 1200, D)) for D in (3, 8))
    shape, how = (3, 3, 3, 8), dict(P=1, layout=layout, method="direct")
    if layout == "NCHW":
        (x, dy), shape = (np.ascontiguousarray(a.transpose(0, 3, 1, 2)) for a in (x, dy)), (8, 3, 3, 3)
    exact = fc.conv2d_grad_w(dy, x, shape, **how)
    dw = fc.conv2d_grad_w(dy.astype("f4"), x.astype("f4"), shape, **how)
    assert rms(dw - exact) < DIRECT[0] * np.finfo("f4").eps * (2 * costs.PART_PIXELS) ** 0.5 * rms(exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_picture_is_exact_inside(isa, dtype):
    """Ones under ones sum to F*F*C: no cancellation hides a wrong constant, at any place of a tile."""
    eps = np.finfo(dtype).eps
    for F in (2, 3, 4, 5, 6, 7):
        x, w = np.ones((1, 17, 18, 8), dtype), np.ones((F, F, 8, 6), dtype)
        y = fc.conv2d(x, w, method="winograd")
        np.testing.assert_allclose(y, F * F * 8, rtol=400 * eps)
        assert y.shape == (1, 18 - F, 19 - F, 6)
        dw = fc.conv2d_grad_w(np.ones_like(y), x, w.shape, method="winograd")
        np.testing.assert_allclose(dw, (18 - F) * (19 - F), rtol=400 * eps)


def test_tiles_that_an_edge_cuts_need_fewer_values():
    """Result i of m takes the value at 0 only if i is 0, and that at infinity only if it is m - 1: as in `Edge`."""
    for m, F, d, H, W in itertools.product((2, 4), (3, 5), (1, 2), range(1, 12), (4, 7)):
        n, H1, W1 = m + F - 1, H + d * (F - 1), W + d * (F - 1)
        p = costs.Problem("fwd", 1, H1, W1, 8, 8, window("", H1, W1, F, 1, 0, d), 1, False, "f4")
        needed = 1
        for places in (-(-H // d), -(-W // d)):
            values = 0
            for first in range(0, places, m):
                rest = min(m, places - first)
                begins = range(min(2, m - rest + 1))  # a pixel early, or not
                values += min(n - (begin > 0) - (begin + rest < m) for begin in begins)
            needed *= values / (n * -(-places // m))
        assert costs.needed(p, (m, m)) == pytest.approx(needed), (m, F, d, H, W)


def test_exact_precision_keeps_auto_away_from_winograd(isa):
    every = list(itertools.product((*PROBLEMS, *BENCH), ("fwd", "grad_x", "grad_w"), ("NHWC", "NCHW")))

    def methods():
        plans = ((fc.explain(p.x_shape(v), p.w_shape(v), direction=d, layout=v, **p.how), d) for p, d, v in every)
        return {(plan.method, d) for plan, d in plans}

    before = fc.get_precision()
    try:
        fc.set_precision("exact")
        assert {method for method, _ in methods()} <= {"direct", "im2col"}
        fc.set_precision("fast")
        assert {("winograd", d) for d in ("fwd", "grad_x", "grad_w")} <= methods()
    finally:
        fc.set_precision(before)


def test_exact_precision_is_obeyed_by_every_call(isa):
    """Whatever "auto" took before: afterwards its bits are those of a method that is exact to rounding."""
    p = Problem("vgg like", 2, 16, 16, 64, 64, P=1)
    x, w, _, dy = p.arrays()
    before = fc.get_precision()
    try:
        for precision in ("fast", "exact", "fast", "exact"):
            fc.set_precision(precision)
            made = three(p, x, w, dy, "auto")
            for a, b, d in zip(made, three(p, x, w, dy, "winograd"), ("fwd", "grad_x", "grad_w"), strict=True):
                took = fc.explain(x.shape, w.shape, direction=d, **p.how).method
                same = np.array_equal(a, b)
                assert same == (took == "winograd"), d
                assert precision == "fast" or took != "winograd"
    finally:
        fc.set_precision(before)


def test_a_thread_takes_four_megabytes_at_most(isa):
    """Beside what all threads share: packed or transformed weights or pictures, and the parts of a gradient by the weights."""
    for p, direction, layout in itertools.product((*PROBLEMS, *BENCH), ("fwd", "grad_x", "grad_w"), ("NHWC", "NCHW")):
        plan = fc.explain(p.x_shape(layout), p.w_shape(layout), direction=direction, layout=layout, **p.how)
        each = (plan.job.workspace(8) - plan.job.workspace(1)) / 7
        assert each <= 4 << 20, f"{p} {direction} {layout}: {each} bytes"


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_weights_of_one_part_need_no_room(isa, layout):
    """A thread writes its sums where they belong, straight from its tiles or by way of their place."""
    for K in (512, 500):  # whole vectors of filters, and a part of one
        p = Problem("more weights than pixels", 1, 7, 7, 512, K, P=1)
        plan = fc.explain(p.x_shape(layout), p.w_shape(layout), direction="grad_w", layout=layout, method="winograd", **p.how)
        assert plan.job.workspace(1) < 4 << 20 < math.prod(p.w_shape(layout)) * 4


@pytest.mark.parametrize("shape", [(16, 14, 14, 512, 512), (4, 28, 28, 256, 512), (1, 7, 7, 2600, 40), (64, 14, 14, 1024, 96)])
def test_shared_pictures_take_less_than_the_filters_would(isa, shape):
    """Where no cache keeps transformed filters, only pictures are kept, for all threads."""
    N, H1, W1, D1, K = shape
    plan = fc.explain((N, H1, W1, D1), (3, 3, D1, K), P=1, method="winograd")
    filters = 36 * D1 * K * 4
    assert filters > 12 << 20
    for threads in (1, 2, 8):
        assert plan.job.workspace(threads) <= (4 << 20) * threads + filters, threads


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_few_pictures_under_many_filters_are_shared_with_the_same_bits(isa, layout):
    """Their four tiles each are fewer than the 96 filters, which no cache keeps, or more: a picture's bits are the same."""
    x, w = (np.random.default_rng(n).standard_normal(shape, "f4") for n, shape in enumerate(((26, 7, 7, 1024), (3, 3, 1024, 96))))
    if layout == "NCHW":
        x, w = x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
    x, w = np.ascontiguousarray(x), np.ascontiguousarray(w)
    how = dict(P=1, layout=layout, method="winograd")
    many = fc.conv2d(x, w, **how)
    for n in (1, 24, 25):
        assert np.array_equal(fc.conv2d(x[:n], w, **how), many[:n]), n
    few, more = (fc.explain((n, *x.shape[1:]), w.shape, **how).workspace_bytes for n in (24, 25))
    assert few < 36 * 1024 * 96 * 4 < more


@pytest.mark.parametrize(
    ("direction", "d", "method"), [("fwd", 2, "winograd"), ("fwd", 4, "direct"), ("grad_x", 4, "winograd")]
)
def test_pictures_are_turned_over_for_winograd_where_that_pays(sixteen_lanes, replan, direction, d, method):
    """With dilation by four and more in NCHW; of two taps in a row there is little to save."""
    replan()
    plan = fc.explain((4, 64, 1, 4000), (128, 64, 1, 2), direction=direction, P=(0, d // 2), dilation=d, layout="NCHW")
    assert plan.method == method


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_threads_share_the_parts_of_a_sum_with_the_same_bits(isa, layout, dtype):
    """Few tiles under few filters: a thread has some of the channels; in a batch, some of the tiles."""
    for side, channels, filters in ((8, 160, 5), (7, 163, 8), (14, 643, 12), (20, 259, 4), (16, 200, 1), (9, 500, 32)):
        p = Problem("few tiles under few filters", 1, side, side + 1, channels, filters, 3, P=1)
        x, w, b, _ = p.arrays(layout, np.dtype(dtype), seed=channels)
        how = dict(layout=layout, P=1)
        turned = np.ascontiguousarray(w.swapaxes(0, 1) if layout == "NCHW" else w.swapaxes(2, 3))  # for dx of few channels
        shape = (1, filters, side, side + 1) if layout == "NCHW" else (1, side, side + 1, filters)
        many = np.concatenate([x, -x] * 33)

        def made(n, threads, how=how, x=many, w=w, b=b, turned=turned, shape=shape):
            with fc.num_threads(threads):
                y = fc.conv2d(x[:n], w, b, activation="relu", method="winograd", **how)
                return y, fc.conv2d_grad_x(x[:n], turned, (n, *shape[1:]), method="winograd", **how)

        wide = [a.astype("f8") for a in (x, w, b, turned)]
        exact = (np.maximum(reference.conv2d(*wide[:3], **how), 0), reference.conv2d_grad_x(wide[0], wide[3], shape, **how))
        one = made(1, 1)
        for got, right in zip(one, exact, strict=True):
            bound = TRANSFORMS[3][0] + (SUM[3][0] + 3 * DIRECT[0]) * channels**0.5  # the oracle's sums have 9 * channels products
            assert rms(got - right) < bound * np.finfo(dtype).eps * rms(right)
        for n, threads in itertools.product((1, 2, 9, 66), (1, 2, 3, 5)):
            for got, first in zip(made(n, threads), one, strict=True):
                assert np.array_equal(got[:1], first), (side, channels, filters, n, threads)


@functools.cache
def deep_problem(direction, S, F, layout):
    """The problem, x or dy of more channels than caches keep of pictures, transformed, w, and the first picture's exact y or dx."""
    sizes = {("fwd", 1): (2, 20, 2048, 320), ("fwd", 2): (3, 20, 1024, 192), ("grad_x", 2): (5, 24, 64, 2304)}
    N, side, D1, K = sizes[direction, S] if F == 3 else (2, 20, 1024, 72)
    p = Problem(f"{direction} S={S} of deep pictures", N, side, side, D1, K, F, S=S, P=F // 2)
    x, w, _, dy = p.arrays(layout, np.float32, seed=S)
    one = reference.conv2d(x[:1].astype("f8"), w.astype("f8"), layout=layout, **p.how) if direction == "fwd" else (
        reference.conv2d_grad_x(dy[:1].astype("f8"), w.astype("f8"), (1, *x.shape[1:]), layout=layout, **p.how)
    )
    return p, x if direction == "fwd" else dy, w, one


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("direction", "S", "F", "values"), [("fwd", 1, 3, 36), ("fwd", 2, 3, 16), ("grad_x", 2, 3, 16), ("fwd", 1, 5, 64)]
)
def test_deep_pictures_are_transformed_a_lot_of_channels_at_a_time(isa, direction, S, F, values, layout):
    """Half of what is kept of others, and the sums of all filters; a picture's bits are those of all its channels at once."""
    p, given, w, exact = deep_problem(direction, S, F, layout)
    how = dict(layout=layout, method="winograd", **p.how)

    def made(n, threads):
        with fc.num_threads(threads):
            if direction == "fwd":
                return fc.conv2d(given[:n], w, **how)
            return fc.conv2d_grad_x(given[:n], w, (n, *p.x_shape(layout)[1:]), **how)

    one = made(1, 1)
    for kind, error in enumerate(errors(one, exact, np.finfo("f4").eps)):
        transforms, sums = (TRANSFORMS[F], SUM[F]) if S == 1 else PHASES[F]
        assert error < transforms[kind] + sums[kind] * (p.D1 if direction == "fwd" else p.K) ** 0.5
    for threads in (1, 2, 3):
        assert np.array_equal(made(p.N, threads)[:1], one), threads
    plan = fc.explain(p.x_shape(layout), p.w_shape(layout), direction=direction, **how)
    tiles = p.N * (25 if S == 1 else 16)
    sums = tiles * values * (p.K if direction == "fwd" else 4 * p.D1) * 4
    assert plan.job.workspace(1) < (5 << 20) + 1.1 * sums + (plan.job.workspace(2) - plan.job.workspace(1))


def test_no_pictures_have_a_plan_like_others(isa):
    for direction in ("fwd", "grad_x", "grad_w"):
        plan = fc.explain((0, 8, 8, 64), (3, 3, 64, 64), direction=direction, P=1, method="winograd")
        assert plan.workspace_bytes >= 0 == plan.flops
