"""The oracle against the definition itself: loops over every index, sums done by hand, adjoint identities.

Everything here is float64 unless it says otherwise. TOLERANCE bounds the difference of two ways to add the same
products: each addition of standard normals rounds by at most eps/2 of a partial sum, no sum here has more than 2,000
terms, and partial sums stay below 200, which gives 2000*200*1.1e-16 = 4e-11.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv import reference
from problems import PROBLEMS, Problem
from strategies import odd_pools, odd_problems

TOLERANCE = 4e-11
LAYOUTS = ("NHWC", "NCHW")

layouts = st.sampled_from(LAYOUTS)
few = settings(max_examples=60, deadline=None)


def equal(a, b, tolerance=TOLERANCE):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def nhwc(a, layout):
    return a if layout == "NHWC" else a.transpose(0, 2, 3, 1)


def ffdk(w, layout):
    return w if layout == "NHWC" else w.transpose(2, 3, 1, 0)


def products(p):
    """All (n, h2, w2, k, h1, w1, d1, i, j, d) for which y[n, h2, w2, k] has the term x[n, h1, w1, d1]*w[i, j, d, k]."""
    g, depth = p.window, p.D1 // p.groups
    for n, h2, w2, k in itertools.product(range(p.N), *map(range, g.size), range(p.K)):
        for i, j, d in itertools.product(*map(range, g.F), range(depth)):
            h1 = h2 * g.S[0] + i * g.dilation[0] - g.pads[0][0]
            w1 = w2 * g.S[1] + j * g.dilation[1] - g.pads[1][0]
            if 0 <= h1 < p.H1 and 0 <= w1 < p.W1:
                yield n, h2, w2, k, h1, w1, k // (p.K // p.groups) * depth + d, i, j, d


def naive(p, x, w, dy):
    """y, dx and dw by one multiply-add after the other, depth last."""
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(w)
    for n, h2, w2, k, h1, w1, d1, i, j, d in products(p):
        y[n, h2, w2, k] += x[n, h1, w1, d1] * w[i, j, d, k]
        dx[n, h1, w1, d1] += dy[n, h2, w2, k] * w[i, j, d, k]
        dw[i, j, d, k] += dy[n, h2, w2, k] * x[n, h1, w1, d1]
    return y, dx, dw


# Values done by hand.


def test_conv2d_by_hand():
    x = np.arange(9.0).reshape(1, 3, 3, 1)
    w = np.array([[1.0, 2.0], [3.0, -1.0]]).reshape(2, 2, 1, 1)
    # Cross-correlation: top left is 1*0 + 2*1 + 3*3 - 1*4 = 7, and the filter is not turned round.
    assert reference.conv2d(x, w)[0, :, :, 0].tolist() == [[7, 12], [22, 27]]
    assert reference.conv2d(x, w, np.array([-20.0]), activation="relu")[0, :, :, 0].tolist() == [[0, 0], [2, 7]]
    assert reference.conv2d(x, w, S=2, P=((1, 0), (1, 0)))[0, :, :, 0].tolist() == [[0, 1], [0, 27]]
    assert reference.conv2d(x, w, dilation=2)[0, :, :, 0].tolist() == [[0 + 2 * 2 + 3 * 6 - 8]]


def test_depth_and_groups_by_hand():
    x = np.array([1.0, 2.0]).reshape(1, 1, 1, 2)
    w = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]).reshape(1, 1, 2, 3)
    assert reference.conv2d(x, w, np.array([0.5, 0.0, 0.0])).ravel().tolist() == [1.5, 2, 0]
    assert reference.conv2d(x, np.array([3.0, 4.0]).reshape(1, 1, 1, 2), groups=2).ravel().tolist() == [3, 8]


def test_gradients_by_hand():
    x = np.arange(9.0).reshape(1, 3, 3, 1)
    w = np.array([[1.0, 2.0], [3.0, -1.0]]).reshape(2, 2, 1, 1)
    dy = np.array([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 2, 1)
    dx, dw, db = reference.conv2d_backward(dy, x, w)
    assert dx[0, :, :, 0].tolist() == [[1, 2, 0], [3, -1 + 2, 4], [0, 6, -2]]
    assert dw[:, :, 0, 0].tolist() == [[0 + 8, 1 + 10], [3 + 14, 4 + 16]]
    assert db.tolist() == [3]
    assert reference.conv2d_backward(dy, x, w, needs=()) == (None, None, None)


def test_transposed_by_hand():
    x = np.array([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 2, 1)
    w = np.array([[1.0, 2.0], [3.0, -1.0]]).reshape(2, 2, 1, 1)
    y = reference.conv_transpose2d(x, w, S=2)
    assert y[0, :, :, 0].tolist() == [[1, 2, 0, 0], [3, -1, 0, 0], [0, 0, 2, 4], [0, 0, 6, -2]]
    y = reference.conv_transpose2d(x, w, np.array([10.0]), S=2, P=1, output_padding=(1, 0))
    assert y[0, :, :, 0].tolist() == [[9, 10], [10, 12], [10, 16]]


def test_im2col_by_hand():
    x = np.arange(8.0).reshape(1, 2, 2, 2)
    assert reference.im2col(x, (1, 2)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert reference.im2col(x.transpose(0, 3, 1, 2), (1, 2), layout="NCHW").tolist() == [[0, 2, 1, 3], [4, 6, 5, 7]]
    back = reference.col2im(np.ones((4, 4)), (1, 3, 3, 1), 2)
    assert back[0, :, :, 0].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


# Against the definition, term by term.

SMALL = [p for p in PROBLEMS if p.flops <= 20_000]


def against_naive(p, layout):
    x, w, b, dy = p.arrays("NHWC", np.float64)
    y, dx, dw = naive(p, x, w, dy)
    if layout == "NCHW":
        x, dy, w = x.transpose(0, 3, 1, 2), dy.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
    how = {**p.how, "layout": layout}
    equal(nhwc(reference.conv2d(x, w, b, **how), layout), y + b)
    equal(nhwc(reference.conv2d(x, w, b, activation="relu", **how), layout), np.maximum(y + b, 0))
    got_x, got_w, got_b = reference.conv2d_backward(dy, x, w, **how)
    equal(nhwc(got_x, layout), dx)
    equal(ffdk(got_w, layout), dw)
    equal(got_b, nhwc(dy, layout).sum(axis=(0, 1, 2)))


def test_small_problems_cover_what_matters():
    assert len(SMALL) > 60
    tags = {tag for p in SMALL for tag in p.tags}
    assert tags >= {"lecture", "1x1", "depthwise", "grouped", "even", "asymmetric", "wide padding", "strided", "empty"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", SMALL, ids=str)
def test_convolution_is_its_definition(p, layout):
    against_naive(p, layout)


@few
@given(odd_problems(side=6, depth=2), layouts)
def test_odd_convolutions_are_their_definition(p, layout):
    against_naive(p, layout)


@few
@given(odd_problems(side=6, depth=2), layouts)
def test_im2col_times_the_weights_is_the_convolution(p, layout):
    p = Problem(p.name, p.N, p.H1, p.W1, p.D1, p.K, p.F, p.S, p.P, p.dilation)
    x, w, _, _ = p.arrays(layout, np.float64)
    cols = reference.im2col(x, p.F, S=p.S, P=p.P, dilation=p.dilation, layout=layout)
    rows, terms = p.N * math.prod(p.window.size), p.D1 * math.prod(p.F)
    assert cols.shape == (rows, terms)
    columns = w.reshape(terms, p.K) if layout == "NHWC" else w.reshape(p.K, terms).T
    equal((cols @ columns).reshape(p.y_shape()), nhwc(reference.conv2d(x, w, **p.how, layout=layout), layout))


# Adjoints: the inner products agree up to the rounding of the convolutions alone, since fsum adds without error. A sum
# of n products is off by at most n*eps/2 times the sum of their absolute values, and so is each of the two sides.


def inner(a, b):
    return math.fsum((a * b).ravel())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", PROBLEMS, ids=str)
def test_gradients_are_adjoints(p, layout):
    x, w, _, dy = p.arrays(layout, np.float64)
    how = {**p.how, "layout": layout}
    y_dy = inner(reference.conv2d(x, w, **how), dy)
    total = inner(reference.conv2d(abs(x), abs(w), **how), abs(dy))
    n = max(p.N * math.prod(p.window.size), math.prod(p.window.F) * max(p.D1, p.K))
    bound = 2 * (n + 1) * 2**-53 * total
    dx, dw, _ = reference.conv2d_backward(dy, x, w, **how)
    assert abs(inner(x, dx) - y_dy) <= bound
    assert abs(inner(w, dw) - y_dy) <= bound


@few
@given(odd_problems(), layouts)
def test_col2im_is_the_adjoint_of_im2col(p, layout):
    x, _, _, _ = p.arrays(layout, np.float64)
    how = {"S": p.S, "P": p.P, "dilation": p.dilation, "layout": layout}
    cols = reference.im2col(x, p.F, **how)
    other = np.random.default_rng(1).standard_normal(cols.shape)
    back = reference.col2im(other, x.shape, p.F, **how)
    assert back.shape == x.shape
    # Each cell of back adds up at most one value a tap.
    assert abs(inner(cols, other) - inner(x, back)) <= (math.prod(p.F) + 2) * 2**-53 * inner(abs(cols), abs(other))


@few
@given(odd_problems(), layouts, st.data())
def test_transposed_convolution_is_grad_x_and_adds_the_bias(p, layout, data):
    # The picture is one whose size the stride leads back to: transposed() gives it from (H2, W2) and the remainder.
    g = p.window
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in g.S)
    sums = zip(g.size, g.F, g.S, g.pads, g.dilation, extra, strict=True)
    H1, W1 = ((n - 1) * s - sum(pad) + d * (f - 1) + e + 1 for n, f, s, pad, d, e in sums)
    if min(H1, W1) < 1:
        return
    p = Problem(p.name, p.N, H1, W1, p.D1, p.K, p.F, p.S, p.P, p.dilation, p.groups)
    _, w, _, dy = p.arrays(layout, np.float64)
    b = np.arange(1.0, p.D1 + 1)
    y = reference.conv_transpose2d(dy, w, b, output_padding=extra, layout=layout, **p.how)
    dx = reference.conv2d_grad_x(dy, w, p.x_shape(layout), layout=layout, **p.how)
    equal(nhwc(y, layout), nhwc(dx, layout) + b)


# Pooling.


def test_max_pooling_by_hand():
    x = np.array([[1.0, 1, 2, 0], [1, 1, 5, 5], [-3, -1, 0, -0.0], [-2, -1, 0, 0]]).reshape(1, 4, 4, 1)
    y, index = reference.max_pool2d(x, 2)
    assert y[0, :, :, 0].tolist() == [[1, 5], [-1, 0]]
    assert index[0, :, :, 0].tolist() == [[0, 6], [9, 10]]
    assert index.dtype == np.int64
    assert np.array_equal(reference.max_pool2d(x, 2, return_index=False), y)
    dx = reference.max_pool2d_grad(np.array([1.0, 2, 3, 4]).reshape(1, 2, 2, 1), index, x.shape)
    assert dx[0, :, :, 0].tolist() == [[1, 0, 0, 0], [0, 0, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
    # Overlapping windows give a cell that wins several times the sum of its gradients.
    _, index = reference.max_pool2d(x, 3, S=1)
    assert index[0, :, :, 0].tolist() == [[6, 6], [6, 6]]
    assert reference.max_pool2d_grad(np.ones((1, 2, 2, 1)), index, x.shape)[0, 1, 2, 0] == 4


def test_padding_never_wins_and_nan_always_does():
    nan, inf = np.nan, np.inf
    x = np.array([[-1.0, nan], [nan, -inf]]).reshape(1, 2, 2, 1)
    y, index = reference.max_pool2d(x, 2, S=2, P=2)
    assert np.array_equal(y[0, :, :, 0], [[-inf, -inf, -inf], [-inf, nan, -inf], [-inf] * 3], equal_nan=True)
    assert index[0, :, :, 0].tolist() == [[-1, -1, -1], [-1, 2, -1], [-1, -1, -1]]
    y, index = reference.max_pool2d(x, 2, P=1)
    assert np.array_equal(y[0, :, :, 0], [[-1, nan], [nan, -inf]], equal_nan=True)
    assert index[0, :, :, 0].tolist() == [[0, 1], [2, 3]]
    dx = reference.max_pool2d_grad(np.full((1, 3, 3, 1), 7.0), np.full((1, 3, 3, 1), -1), x.shape)
    assert not dx.any()


def test_average_pooling_by_hand():
    x = np.arange(4.0).reshape(1, 2, 2, 1)
    y = reference.avg_pool2d(x, 2, S=1, P=1)
    assert y[0, :, :, 0].tolist() == [[0, 0.25, 0.25], [0.5, 1.5, 1], [0.5, 1.25, 0.75]]
    y = reference.avg_pool2d(x, 2, S=1, P=2, count_include_pad=False)
    assert y[0, :, :, 0].tolist() == [
        [0, 0, 0, 0, 0], [0, 0, 0.5, 1, 0], [0, 1, 1.5, 2, 0], [0, 2, 2.5, 3, 0], [0, 0, 0, 0, 0]
    ]


@few
@given(odd_pools(), layouts, st.sampled_from(["normal", "ties", "specials"]))
def test_odd_max_pools_are_their_definition(p, layout, kind):
    x = p.arrays("NHWC", np.float64)[0]
    if kind == "ties":
        x = np.round(x)
    elif kind == "specials":
        x = np.random.default_rng(2).choice([np.nan, -np.inf, 0.0, 1.0], x.shape)
    g = p.window
    y, index = np.full(p.y_shape(), -np.inf), np.full(p.y_shape(), -1)
    for n, h2, w2, d in np.ndindex(*y.shape):
        for i, j in np.ndindex(*g.F):
            h1, w1 = h2 * g.S[0] + i - g.pads[0][0], w2 * g.S[1] + j - g.pads[1][0]
            if 0 <= h1 < p.H1 and 0 <= w1 < p.W1:
                cell, best = x[n, h1, w1, d], y[n, h2, w2, d]
                if cell > best or cell != cell or index[n, h2, w2, d] < 0:
                    y[n, h2, w2, d], index[n, h2, w2, d] = cell, h1 * p.W1 + w1
    given_x = x if layout == "NHWC" else x.transpose(0, 3, 1, 2)
    got_y, got_index = reference.max_pool2d(given_x, p.F, S=p.S, P=p.P, layout=layout)
    assert np.array_equal(nhwc(got_y, layout), y, equal_nan=True)
    assert np.array_equal(nhwc(got_index, layout), index)
    dy = p.arrays(layout, np.float64)[3]
    dx = np.zeros((p.N, p.H1 * p.W1, p.D1))
    for n, h2, w2, d in np.ndindex(*y.shape):
        if index[n, h2, w2, d] >= 0:
            dx[n, index[n, h2, w2, d], d] += nhwc(dy, layout)[n, h2, w2, d]
    equal(nhwc(reference.max_pool2d_grad(dy, got_index, given_x.shape, layout=layout), layout), dx.reshape(x.shape))


@few
@given(odd_pools(), layouts, st.booleans())
def test_odd_average_pools_are_their_definition_and_adjoint(p, layout, count_include_pad):
    x, _, _, dy = p.arrays(layout, np.float64)
    how = {"S": p.S, "P": p.P, "count_include_pad": count_include_pad, "layout": layout}
    # The mean of a window is a depthwise convolution with ones, over the number of cells.
    ones = np.ones(p.w_shape())
    sums = reference.conv2d(nhwc(x, layout), ones, **p.how)
    real = reference.conv2d(np.ones(p.x_shape()), ones, **p.how)
    y = reference.avg_pool2d(x, p.F, **how)
    equal(nhwc(y, layout), sums / (math.prod(p.F) if count_include_pad else np.maximum(real, 1)))
    dx = reference.avg_pool2d_grad(dy, x.shape, p.F, **how)
    assert dx.shape == x.shape
    # At most 16 cells a window and 16 windows a cell, a division on each side.
    total = inner(reference.avg_pool2d(abs(x), p.F, **how), abs(dy))
    assert abs(inner(y, dy) - inner(x, dx)) <= 2 * 18 * 2**-53 * total


# Types, layouts and inputs.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_contiguous_of_the_same_dtype_and_inputs_stay_as_they_are(layout, dtype):
    p = Problem("types", 2, 7, 6, 4, 6, (3, 2), (2, 1), ((1, 2), (0, 3)), groups=2)
    x, w, b, dy = arrays = p.arrays(layout, dtype)
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    how = {**p.how, "layout": layout}
    y, index = reference.max_pool2d(x, 2, layout=layout)
    results = [
        reference.conv2d(x, w, b, activation="relu", **how),
        *reference.conv2d_backward(dy, x, w, **how),
        reference.conv_transpose2d(dy, w, x[0, 0, 0, :1].repeat(p.D1), **how),
        reference.im2col(x, 3, layout=layout),
        reference.col2im(reference.im2col(x, 3, layout=layout), x.shape, 3, layout=layout),
        y,
        reference.max_pool2d_grad(y, index, x.shape, layout=layout),
        reference.avg_pool2d(x, 2, P=1, count_include_pad=False, layout=layout),
        reference.avg_pool2d_grad(y, x.shape, 2, layout=layout),
    ]
    for result in results:
        assert result.dtype == dtype
        assert result.flags.c_contiguous
        assert not any(np.shares_memory(result, a) for a in arrays)
    assert all(np.array_equal(a, old) for a, old in zip(arrays, before, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pad(layout):
    x = np.ones((1, 2, 3, 4))
    padded = reference.pad(x, ((1, 0), (2, 3)), layout, value=-1)
    assert padded.shape == ((1, 3, 8, 4) if layout == "NHWC" else (1, 2, 4, 9))
    inner_part = padded[:, 1:, 2:5] if layout == "NHWC" else padded[:, :, 1:, 2:6]
    assert (inner_part == 1).all()
    assert (padded == -1).sum() == padded.size - x.size


def test_nan_and_infinity_pass_through():
    x = np.zeros((1, 3, 3, 1))
    x[0, 0, 0, 0], x[0, 2, 2, 0] = np.nan, np.inf
    y = reference.conv2d(x, np.ones((2, 2, 1, 1)), activation="relu")[0, :, :, 0]
    assert np.array_equal(y, [[np.nan, 0], [0, np.inf]], equal_nan=True)


# Losses.


def derivative(f, x, h=1e-3):
    """Fourth-order central differences: off by h^4/30 of the fifth derivative, and by 1.5*eps/h of rounding."""
    g = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        e = np.zeros_like(x)
        e[i] = h
        g[i] = (f(x - 2 * e) - 8 * f(x - e) + 8 * f(x + e) - f(x + 2 * e)) / (12 * h)
    return g


def test_softmax_cross_entropy_by_hand():
    value, dlogits = reference.softmax_cross_entropy(np.zeros((2, 4)), np.array([0, 3]))
    assert value == pytest.approx(math.log(4), rel=1e-15)
    assert dlogits.tolist() == [[-0.375, 0.125, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]]
    value, dlogits = reference.softmax_cross_entropy(np.array([[1e4, 0.0, -1e4]]), np.array([1]))
    assert value == 1e4
    assert dlogits.tolist() == [[1, -1, 0]]


def test_softmax_cross_entropy_against_differences():
    rng = np.random.default_rng(3)
    logits, labels = 3 * rng.standard_normal((5, 7)), rng.integers(0, 7, 5)
    value, dlogits = reference.softmax_cross_entropy(logits, labels)
    direct = -np.mean([math.log(math.exp(z[k]) / sum(map(math.exp, z))) for z, k in zip(logits, labels, strict=True)])
    assert value == pytest.approx(direct, rel=1e-14)
    # The fifth derivative of log-sum-exp stays below 1: 1e-12/30 + 1.5*2.2e-16*value/1e-3, of a value below 10.
    equal(dlogits, derivative(lambda z: reference.softmax_cross_entropy(z, labels)[0], logits), 5e-12)


def test_mean_squared_error():
    value, dy = reference.mean_squared_error(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]]))
    assert value == 2.5
    assert dy.tolist() == [[1, -2]]
    rng = np.random.default_rng(4)
    y, target = rng.standard_normal((2, 3, 4))
    _, dy = reference.mean_squared_error(y, target)
    # A parabola: only rounding, 1.5*2.2e-16*value/1e-3, of a value below 10.
    equal(dy, derivative(lambda y: reference.mean_squared_error(y, target)[0], y), 4e-12)


# Optimizers: one step with numbers done by hand, then the algorithms as the slides write them, scalar by scalar.


def one(x):
    return np.array([float(x)])


def test_first_steps_by_hand():
    theta, g = one(1), one(2)
    # 1e-15: a handful of roundings of numbers of the size of 1.
    close = {"rel": 1e-15, "abs": 1e-15}
    assert reference.sgd(theta, g, lr=0.1) == pytest.approx(0.8, **close)
    assert reference.sgd(theta, g, lr=0.1, weight_decay=0.5) == pytest.approx(0.75, **close)
    assert np.concatenate(reference.momentum(theta, g, one(0.3), lr=0.1)) == pytest.approx([1.07, 0.07], **close)
    # From the interim point 1 = theta + 0.9*0.3: theta = 0.73, then 0.73 + 0.07, then 0.9*0.07 ahead.
    assert np.concatenate(reference.nesterov(theta, g, one(0.3), lr=0.1)) == pytest.approx([0.863, 0.07], **close)
    assert np.concatenate(reference.adagrad(theta, g, one(12), lr=0.1, eps=1.0)) == pytest.approx([0.96, 16], **close)
    got = reference.rmsprop(theta, g, one(6.0), one(0), lr=0.1, rho=0.5, eps=0.5)
    v = -0.2 / (math.sqrt(5) + 0.5)
    assert np.concatenate(got) == pytest.approx([1 + v, 5, v], **close)
    got = reference.adam(theta, g, one(0), one(0), 1, lr=0.1, eps=2.0)
    assert np.concatenate(got) == pytest.approx([0.95, 0.2, 0.004], **close)
    got = reference.adamw(theta, g, one(0), one(0), 1, lr=0.1, eps=2.0, weight_decay=0.5)
    assert np.concatenate(got) == pytest.approx([0.9, 0.2, 0.004], **close)


def gradient(theta):
    """Of a nonconvex function, so that a wrong step leads elsewhere."""
    x, y = theta
    return np.array([4 * x * (x * x - y) + 0.3 * math.cos(3 * x), 2 * (y - x * x) + 0.1 * y])


def slide(name, a, rho, b2, lr, eps, wd, steps=200):
    """Algorithms 8.2 to 8.7, with theta itself as the state, and the gradient where the slide takes it."""
    theta, v, r, s = [0.7, -0.4], [0.0] * 2, [0.0] * 2, [0.0] * 2
    for t in range(1, steps + 1):
        ahead = a if name in ("nesterov", "rmsprop nesterov") else 0.0
        point = np.array([theta[i] + ahead * v[i] for i in range(2)])
        g = gradient(point) + (0 if name == "adamw" else wd) * point
        for i in range(2):
            if name in ("momentum", "nesterov"):
                v[i] = a * v[i] - lr * g[i]
                theta[i] += v[i]
            elif name == "adagrad":
                r[i] += g[i] ** 2
                theta[i] -= lr / (eps + math.sqrt(r[i])) * g[i]
            elif name.startswith("rmsprop"):
                r[i] = rho * r[i] + (1 - rho) * g[i] ** 2
                v[i] = a * v[i] - lr / (math.sqrt(r[i]) + eps) * g[i]
                theta[i] += v[i]
            else:
                s[i] = rho * s[i] + (1 - rho) * g[i]
                r[i] = b2 * r[i] + (1 - b2) * g[i] ** 2
                step = s[i] / (1 - rho**t) / (math.sqrt(r[i] / (1 - b2**t)) + eps)
                theta[i] -= lr * step + (lr * wd * theta[i] if name == "adamw" else 0)
    return np.array(theta)


def ours(name, a, rho, b2, lr, eps, wd, steps=200):
    theta, v, r, s = np.array([0.7, -0.4]), np.zeros(2), np.zeros(2), np.zeros(2)
    for t in range(1, steps + 1):
        g = gradient(theta)
        if name in ("momentum", "nesterov"):
            theta, v = getattr(reference, name)(theta, g, v, lr=lr, momentum=a, weight_decay=wd)
        elif name == "adagrad":
            theta, r = reference.adagrad(theta, g, r, lr=lr, eps=eps, weight_decay=wd)
        elif name.startswith("rmsprop"):
            nesterov = name.endswith("nesterov")
            how = {"lr": lr, "rho": rho, "momentum": a, "nesterov": nesterov, "eps": eps, "weight_decay": wd}
            theta, r, v = reference.rmsprop(theta, g, r, v, **how)
        else:
            how = {"lr": lr, "betas": (rho, b2), "eps": eps, "weight_decay": wd}
            theta, s, r = getattr(reference, name)(theta, g, s, r, t, **how)
    return theta - a * v if name in ("nesterov", "rmsprop nesterov") else theta


@pytest.mark.parametrize("wd", [0.0, 0.05])
@pytest.mark.parametrize("name", ["momentum", "nesterov", "adagrad", "rmsprop", "rmsprop nesterov", "adam", "adamw"])
def test_optimizers_are_the_slides(name, wd):
    # At lr=0.01 RMSProp is chaotic near the minimum: a gradient off by 1e-15 moves the textbook's own result by 1e-7.
    settings = {"a": 0.8, "rho": 0.9, "b2": 0.99, "lr": 0.003, "eps": 1e-7, "wd": wd}
    theta = slide(name, **settings)
    assert np.abs(theta - [0.7, -0.4]).max() > 0.05
    # The bar of the project: 1e-12 after 200 steps in float64.
    equal(ours(name, **settings), theta, 1e-12)


def test_momentum_reaches_its_top_speed():
    theta = v = one(0)
    for _ in range(400):
        theta, v = reference.momentum(theta, one(2), v, lr=0.01, momentum=0.9)
    # lr*g/(1 - a), but for 0.9^400 = 5e-19.
    assert v == pytest.approx(-0.01 * 2 / (1 - 0.9), rel=1e-14)


def test_without_eps_nothing_over_nothing_is_nothing():
    zero = np.zeros(3)
    assert not reference.rmsprop(zero, zero, zero, zero, eps=0.0)[0].any()
    assert not reference.adam(zero, zero, zero, zero, 1, eps=0.0)[0].any()
    assert not reference.adagrad(zero, zero, zero, eps=0.0)[0].any()


def test_clipping_by_the_global_norm():
    grads = [one(3), np.array([[4.0]], np.float32)]
    assert [float(g.item()) for g in reference.clipped(grads, max_norm=5)] == [3, 4]
    halves = reference.clipped(grads, max_norm=2.5)
    assert [float(g.item()) for g in halves] == [1.5, 2]
    assert [g.dtype for g in halves] == [np.float64, np.float32]
    # The scaled gradients are what is clipped: 10*5 = 50 becomes 2.5.
    assert [float(g.item()) for g in reference.clipped(grads, 10, 2.5)] == pytest.approx([1.5, 2], rel=1e-15)
    assert [float(g.item()) for g in reference.clipped(grads, -0.5, 2.5)] == [-1.5, -2]


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"])
def test_optimizers_keep_the_dtype_and_change_nothing(name):
    n_states = {"sgd": 0, "rmsprop": 2, "adam": 2, "adamw": 2}.get(name, 1)
    arrays = [np.full(3, value, np.float32) for value in (1, 2, 0.5, 0.25)][: 2 + n_states]
    before = [a.copy() for a in arrays]
    results = getattr(reference, name)(*arrays, *([1] if name.startswith("adam") else []), lr=0.1, weight_decay=0.1)
    for a in results if n_states else [results]:
        assert a.dtype == np.float32
    assert all(np.array_equal(a, old) for a, old in zip(arrays, before, strict=True))
