"""Pooling and its gradients against the oracle, element by element, and the errors of the public functions.

Maxima, their places and sums of small integers are exact, so they are compared bit for bit; means of other numbers
differ by a few roundings for each cell of the window.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc
from fastconv import _kernels, pooling, reference
from fastconv.geometry import GeometryError, window
from oracle import bits, canary, guarded, intact

LAYOUTS = ("NHWC", "NCHW")
DTYPES = ("float32", "float64")
# N, H1, W1, D1, F, S, P: depths and widths around the vectors' widths
SHAPES = [
    (1, 1, 1, 1, 1, None, 0),
    (2, 8, 8, 16, 2, None, 0),
    (1, 28, 28, 20, 2, None, 0),
    (1, 9, 70, 3, 2, None, 0),
    (2, 7, 9, 17, 3, 2, 1),
    (1, 13, 33, 31, 3, 2, 0),
    (2, 7, 7, 5, 3, 1, "same"),
    (1, 6, 35, 15, (2, 3), (1, 2), ((0, 1), (1, 0))),
    (1, 5, 6, 33, 4, 3, ((6, 5), (0, 7))),
    (2, 4, 3, 8, 2, 2, 5),
    (1, 40, 9, 7, 5, 4, 2),
    (1, 7, 7, 9, 7, None, 0),
    (0, 4, 4, 3, 2, None, 0),
]


def integers(shape, layout, dtype):
    """Small integers, with many ties, between NaNs."""
    N, H1, W1, D1 = shape[:4]
    x = np.random.default_rng(H1 + W1 + D1).integers(-3, 4, (N, H1, W1, D1))
    return guarded((x if layout == "NHWC" else x.transpose(0, 3, 1, 2)).astype(dtype))


def options(shape, layout):
    return {"S": shape[5], "P": shape[6], "layout": layout}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestAgainstTheOracle:
    def test_maximum(self, isa, n_threads, shape, layout, dtype):
        x, how = integers(shape, layout, dtype), options(shape, layout)
        y, index = fc.max_pool2d(x, shape[4], **how)
        want, place = reference.max_pool2d(x, shape[4], **how)
        assert index.dtype == np.int64
        assert bits(y, want)
        assert np.array_equal(index, place)
        assert bits(fc.max_pool2d(x, shape[4], return_index=False, **how), want)
        dy = np.random.default_rng(1).integers(-9, 9, y.shape).astype(dtype)
        dx = fc.max_pool2d_grad(guarded(dy), index, x.shape, layout=layout)
        assert np.array_equal(dx, reference.max_pool2d_grad(dy, place, x.shape, layout=layout))

    @pytest.mark.parametrize("with_pad", [True, False])
    def test_mean(self, isa, n_threads, shape, layout, dtype, with_pad):
        x, how = integers(shape, layout, dtype), {**options(shape, layout), "count_include_pad": with_pad}
        y = fc.avg_pool2d(x, shape[4], **how)
        # the sums are exact, and a division rounds once
        assert np.array_equal(y, reference.avg_pool2d(x, shape[4], **how))
        dy = np.random.default_rng(1).integers(-9, 9, y.shape).astype(dtype)
        dx = fc.avg_pool2d_grad(guarded(dy), x.shape, shape[4], **how)
        want = reference.avg_pool2d_grad(dy.astype("f8"), x.shape, shape[4], **how)
        # two divisions and a product for each window that meets the cell, then their sum; twice, as the oracle rounds
        terms = reference.avg_pool2d_grad(abs(dy).astype("f8"), x.shape, shape[4], **how)
        windows = int(np.prod(window("test", *shape[1:3], shape[4]).F))
        assert (abs(dx - want) <= 2 * (windows + 4) * np.finfo(dtype).eps * terms).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES[1:-1], ids=str)
def test_kernels_stay_in_their_arrays(isa, shape, layout, dtype):
    """The kernels write all of their results and nothing else."""
    x, nchw = integers(shape, layout, dtype), layout == "NCHW"
    want, place = reference.max_pool2d(x, shape[4], **options(shape, layout))
    g = window("test", *shape[1:3], shape[4], shape[4] if shape[5] is None else shape[5], shape[6])
    where = (*g.F, *g.S, g.pads[0][0], g.pads[1][0])
    kernel = _kernels.kernel("pool")
    y, around_y = canary(want.shape, dtype)
    index, around_index = canary(want.shape, np.float64)
    kernel.maximum(x, y, index.view(np.int64), *where, nchw, 2)
    assert intact(around_y)
    assert intact(around_index)
    assert np.array_equal(index.view(np.int64), place)
    mean, around_mean = canary(want.shape, dtype)
    kernel.mean(x, mean, *where, True, nchw, 2)
    assert intact(around_mean)
    dx, around_dx = canary(x.shape, dtype)
    assert kernel.maximum_grad(guarded(np.ones_like(y)), place, dx, nchw, 2) == 0
    assert intact(around_dx)
    assert not np.isnan(dx).any()
    dx, around_dx = canary(x.shape, dtype)
    kernel.mean_gradient(guarded(np.ones_like(y)), dx, *where, True, nchw, 2)
    assert intact(around_dx)
    assert not np.isnan(dx).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_wins_and_minus_infinity_is_a_number(isa, layout, dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (2, 11, 37, 19)).astype(dtype)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.4] = -np.inf
    x = x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    for F, S, P in ((2, 2, 0), (3, 2, 1), (3, 1, 2), (2, 3, 4)):
        y, index = fc.max_pool2d(x, F, S=S, P=P, layout=layout)
        want, place = reference.max_pool2d(x, F, S=S, P=P, layout=layout)
        assert np.array_equal(y, want, equal_nan=True)
        assert np.array_equal(index, place)


def test_a_window_of_padding_only(isa):
    x = np.ones((1, 2, 2, 3), np.float32)
    y, index = fc.max_pool2d(x, 2, S=1, P=4)
    assert y[0, 0, 0].tolist() == [-np.inf] * 3
    assert index[0, 0, 0].tolist() == [-1] * 3
    assert not fc.avg_pool2d(x, 2, S=1, P=4, count_include_pad=False)[0, 0, 0].any()
    assert not fc.max_pool2d_grad(np.ones_like(y), np.full_like(index, -1), x.shape).any()


@pytest.mark.parametrize("strays", [0, 1, 99])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cells", "places"), [((8, 8), (4, 4)), ((19, 71), (6, 35)), ((3, 140), (1, 34)), ((9, 67), (9, 33))])
def test_places_may_give_to_any_cell(isa, n_threads, cells, places, dtype, layout, strays):
    """Whether every winner is a cell of its own tile of the picture, as most poolings have it, or some are elsewhere."""
    rng, (H1, W1), (H2, W2), D = np.random.default_rng(3), cells, places, 18
    h, w = H1 // H2, W1 // W2
    rows = np.arange(H2)[:, None, None] * h + rng.integers(0, h, (3, H2, W2, D))
    cols = np.arange(W2)[:, None] * w + rng.integers(0, w, (3, H2, W2, D))
    index = rows * W1 + cols
    index.ravel()[rng.choice(index.size, strays, replace=False)] = rng.integers(-1, H1 * W1, strays)
    dy, x_shape = rng.integers(-9, 9, index.shape).astype(dtype), (3, H1, W1, D)
    dy[..., 0] = -0.0
    if layout == "NCHW":
        dy, index, x_shape = dy.transpose(0, 3, 1, 2), index.transpose(0, 3, 1, 2), (3, D, H1, W1)
    dx = fc.max_pool2d_grad(guarded(dy), index, x_shape, layout=layout)
    assert bits(dx, reference.max_pool2d_grad(dy, index, x_shape, layout=layout).astype(dtype))
    index = index.copy()
    index.ravel()[7] += 1 << 32
    with pytest.raises(ValueError, match="index points outside of the picture"):
        fc.max_pool2d_grad(dy, index, x_shape, layout=layout)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mean_is_linear_and_its_gradient_adjoint(data):
    """<dy, mean(x)> = <grad(dy), x> in float64; eps for each of the few roundings of each term."""
    shape = tuple(data.draw(st.integers(1, n)) for n in (2, 9, 20, 18))
    F, S = (tuple(data.draw(st.integers(1, 4)) for _ in "hw") for _ in "FS")
    P = tuple(tuple(data.draw(st.integers(0, 5)) for _ in "ab") for _ in "hw")
    how = {"S": S, "P": P, "count_include_pad": data.draw(st.booleans()), "layout": data.draw(st.sampled_from(LAYOUTS))}
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape if how["layout"] == "NHWC" else (shape[0], shape[3], *shape[1:3]))
    try:
        y = fc.avg_pool2d(x, F, **how)
    except GeometryError:
        return
    dy = rng.standard_normal(y.shape)
    dx = fc.avg_pool2d_grad(dy, x.shape, F, **how)
    size = float((abs(dy) * fc.avg_pool2d(abs(x), F, **how)).sum())
    assert abs(float((dy * y).sum()) - float((dx * x).sum())) <= 64 * (y.size + x.size) * np.finfo("f8").eps * size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_and_nothing_is_changed(layout):
    x = np.random.default_rng(0).standard_normal((4, 9, 8, 10)).astype(np.float32)[::2, ::-1, :, ::3]
    before = x.copy()
    y, index = fc.max_pool2d(x, 2, layout=layout)
    assert bits(y, fc.max_pool2d(before, 2, return_index=False, layout=layout))
    dy = np.ones((*y.shape[:-1], 2 * y.shape[-1]), np.float32)[..., ::2]
    assert bits(
        fc.max_pool2d_grad(dy, index, x.shape, layout=layout),
        fc.max_pool2d_grad(dy.copy(), index.astype(np.int32), x.shape, layout=layout),
    )
    assert bits(x.copy(), before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_any_number_of_threads(isa, layout):
    x = np.random.default_rng(0).standard_normal((1, 40, 48, 40)).astype("f4")
    results = []
    for n in (1, 2, 3):
        with fc.num_threads(n):
            y, index = fc.max_pool2d(x, 3, S=2, P=1, layout=layout)
            mean = fc.avg_pool2d(x, 3, S=2, P=1, layout=layout)
            results.append(
                (
                    y, mean, index, fc.max_pool2d_grad(mean, index, x.shape, layout=layout),
                    fc.avg_pool2d_grad(mean, x.shape, 3, S=2, P=1, layout=layout),
                )
            )
    for other in results[1:]:
        assert all(bits(a, b) for a, b in zip(results[0], other, strict=True))


X = np.zeros((2, 6, 6, 3), np.float32)
Y, INDEX = np.zeros((2, 3, 3, 3), np.float32), np.zeros((2, 3, 3, 3), np.int64)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fc.max_pool2d([[1.0]], 2), TypeError, "max_pool2d: x must be a NumPy array"),
        (lambda: fc.max_pool2d(X.astype("f2"), 2), TypeError, "float32 or float64"),
        (lambda: fc.max_pool2d(X[0], 2), ValueError, "4 axes"),
        (lambda: fc.max_pool2d(X, 2.0), TypeError, "F must be an int"),
        (lambda: fc.max_pool2d(X, (2, 2.0)), TypeError, "F must be an int"),
        (lambda: fc.max_pool2d(X, True), TypeError, "F must be an int"),
        (lambda: fc.max_pool2d(X, 0), ValueError, "F is out of range"),
        (lambda: fc.max_pool2d(X, 2, S=0), ValueError, "S is out of range"),
        (lambda: fc.max_pool2d(X, 2, P=-1), ValueError, "P is out of range"),
        (lambda: fc.max_pool2d(X, 2, P="full"), ValueError, "P has no such choice"),
        (lambda: fc.max_pool2d(X, 7), GeometryError, "doesn't fit"),
        (lambda: fc.max_pool2d(X, 2, layout="NWHC"), ValueError, "layout has no such choice"),
        (lambda: fc.max_pool2d(X, 2, return_index=1), TypeError, "return_index must be True or False"),
        (lambda: fc.avg_pool2d(X, 2, count_include_pad=1), TypeError, "count_include_pad must be True or False"),
        (lambda: fc.avg_pool2d(None, 2), TypeError, "avg_pool2d: x must be a NumPy array"),
        (lambda: fc.max_pool2d_grad(Y, INDEX[:1], X.shape), ValueError, "index must have the shape of dy"),
        (lambda: fc.max_pool2d_grad(Y, Y, X.shape), TypeError, "index has the wrong dtype"),
        (lambda: fc.max_pool2d_grad(Y, INDEX, (2, 6, 6, 4)), ValueError, "do not go together"),
        (lambda: fc.max_pool2d_grad(Y, INDEX, (2, 6, 6)), ValueError, "x_shape has 3 entries"),
        (lambda: fc.max_pool2d_grad(Y, INDEX, 6), TypeError, "x_shape must be a tuple"),
        (lambda: fc.max_pool2d_grad(Y, INDEX + 36, X.shape), ValueError, "index points outside of the picture"),
        (lambda: fc.max_pool2d_grad(Y, INDEX - 2, X.shape), ValueError, "expected -1 to 35, got -2 to -2"),
        (lambda: fc.max_pool2d_grad(Y, INDEX, (2, 0, 6, 3)), ValueError, "index points outside of the picture"),
        (lambda: fc.avg_pool2d_grad(Y, X.shape, 3), ValueError, "dy does not belong to x_shape"),
        (lambda: fc.avg_pool2d_grad(Y, X.shape, 9), GeometryError, "doesn't fit"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_docstrings_examples_hold():
    import doctest

    assert doctest.testmod(pooling).failed == 0
