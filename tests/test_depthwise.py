"""The depthwise kernels against the oracle, element by element, on every level of instructions.

The kernels are called as ops.py calls them. Inputs lie between NaNs, results in the middle of a buffer of NaNs that has
to stay as it was. A result of n products differs from the exact one by at most n*eps times the sum of the products'
magnitudes (Higham, Accuracy and Stability, section 3.1), for n products, a bias and the sums of parts: twice that is
allowed.
"""

import numpy as np
import pytest

import fastconv as fc
from fastconv import _kernels, costs, reference, runtime
from fastconv.geometry import window
from oracle import bits, canary, guarded, intact

LAYOUTS = ("NHWC", "NCHW")
DTYPES = ("float32", "float64")
# N, H1, W1, D1, F, S, P, dilation, multiplier: depths around the vectors' widths, every path for windows
SHAPES = [
    (1, 1, 1, 1, 1, 1, 0, 1, 1),
    (2, 7, 7, 17, 3, 1, 1, 1, 1),
    (1, 14, 14, 16, 3, 1, 1, 1, 1),
    (1, 33, 35, 33, 3, 1, 1, 1, 1),
    (3, 9, 8, 5, 3, 2, 1, 1, 1),
    (1, 12, 45, 31, 3, 2, ((0, 1), (0, 1)), 1, 1),
    (1, 13, 12, 8, 5, 1, 2, 1, 1),
    (2, 11, 13, 9, 5, 2, 2, 1, 1),
    (1, 15, 16, 7, 7, 1, 3, 1, 1),
    (1, 10, 9, 15, 2, 1, 0, 1, 1),
    (1, 10, 9, 4, 2, 2, "same", 1, 1),
    (2, 12, 11, 6, 3, 1, 2, 2, 1),
    (1, 17, 19, 3, 3, 2, 3, 3, 1),
    (1, 6, 5, 10, (1, 4), (3, 4), ((4, 5), (4, 1)), (3, 3), 1),
    (1, 5, 6, 12, (4, 3), (3, 1), ((7, 0), (2, 6)), 1, 1),
    (2, 8, 7, 11, 3, 1, 1, 1, 2),
    (2, 8, 9, 16, 3, 2, 1, 1, 3),
    (1, 40, 64, 70, 3, 1, 1, 1, 1),
    (2, 3, 2, 260, 3, 1, 1, 1, 2),
    (1, 150, 152, 1, 3, 1, 1, 1, 1),
    # rows of planes around one, two and eight vectors, padded by less and by more than the window needs
    (1, 6, 16, 2, 3, 1, 0, 1, 1),
    (1, 5, 17, 2, 3, 1, 2, 1, 1),
    (2, 9, 18, 3, 3, 1, 1, 1, 1),
    (1, 4, 34, 2, 3, 1, ((0, 1), (2, 0)), 1, 1),
    (1, 3, 5, 2, 3, 1, ((4, 0), (3, 5)), 1, 1),
    (2, 7, 31, 2, 3, 2, 1, 1, 1),
    (1, 8, 32, 2, 3, 2, 0, 1, 1),
    (1, 9, 33, 2, 3, 2, 2, 1, 1),
    (1, 5, 66, 2, 3, 2, ((1, 0), (0, 2)), 1, 1),
    (1, 7, 4, 3, 3, 2, ((3, 1), (4, 2)), 1, 1),
    (1, 10, 140, 2, 3, 1, 1, 1, 1),
    (1, 11, 270, 1, 3, 2, 1, 1, 1),
    # planes of many channels that vectors along their rows would leave half empty, and such as they would not
    (2, 10, 10, 20, 3, 1, 1, 1, 1),
    (1, 12, 13, 18, 3, 1, 1, 1, 1),
    (2, 19, 18, 17, 3, 2, 1, 1, 1),
    (1, 9, 17, 33, 3, 1, ((2, 0), (0, 1)), 1, 1),
    # windows of 2x2, 4x4 and 5x5 over such planes: bands of rows that are cut short, taps that miss the picture
    (2, 9, 17, 3, 2, 1, 0, 1, 1),
    (1, 6, 33, 2, 2, 1, ((0, 1), (3, 0)), 1, 1),
    (1, 16, 16, 18, 2, 1, 1, 1, 1),
    (2, 7, 16, 2, 4, 1, ((1, 2), (2, 1)), 1, 1),
    (1, 10, 35, 3, 4, 2, 1, 1, 1),
    (1, 6, 66, 2, 4, 2, ((0, 5), (4, 0)), 1, 1),
    (1, 15, 15, 19, 4, 1, 1, 1, 1),
    (2, 5, 18, 2, 5, 1, 2, 1, 1),
    (1, 3, 31, 3, 5, 1, ((6, 0), (1, 7)), 1, 1),
    (1, 14, 14, 20, 5, 1, 2, 1, 1),
    (1, 11, 37, 2, 5, 2, ((1, 2), (2, 2)), 1, 1),
    (1, 17, 30, 17, 5, 2, 2, 1, 1),
    (1, 7, 140, 1, 5, 1, 2, 1, 1),
    # more than four lines of channels, of which the second vector begins with a line
    (2, 5, 6, 96, 3, 1, 1, 1, 1),
    (1, 7, 6, 112, 3, 2, 1, 1, 1),
    (1, 6, 7, 80, 3, 1, 2, 2, 1),
    (1, 6, 5, 48, 5, 1, 2, 1, 1),
    # a vector of channels and a part of one, for every run of taps
    (1, 9, 10, 30, 2, 1, 0, 1, 1),
    (1, 8, 9, 19, 4, 1, 1, 1, 1),
    (2, 7, 11, 25, 5, 1, 2, 1, 1),
    (1, 11, 12, 27, 5, 2, 2, 1, 1),
    (1, 8, 9, 21, 7, 1, 3, 1, 1),
    (1, 13, 11, 23, 3, 2, 1, 1, 1),
    # phases of dx that no tap meets
    (1, 9, 10, 20, 1, 3, 0, 1, 1),
    # more taps side by side than a run has: several of a width, and perhaps a narrower one
    (1, 12, 13, 20, 9, 1, 4, 1, 1),
    (2, 4, 30, 37, (1, 21), 1, (0, 10), 1, 1),
    (1, 3, 40, 18, (1, 11), 1, (0, 5), 1, 1),
    (1, 13, 12, 64, (2, 13), 1, (0, 6), 1, 1),
    (1, 2, 35, 33, (1, 31), 1, (0, 15), 1, 1),
    (1, 9, 10, 25, 6, 1, ((2, 3), (3, 2)), 1, 1),
    (2, 7, 21, 19, (3, 8), 2, (1, 3), 1, 1),
    (1, 9, 17, 17, 9, 2, 4, 1, 1),
    (1, 8, 15, 20, (2, 11), 1, (1, 5), 1, 2),
    (1, 6, 25, 17, (1, 22), (1, 2), (0, 11), 1, 1),
    (1, 5, 31, 18, (1, 13), 1, (0, 12), (1, 2), 1),
    # planes whose rows are a vector, or two of them: sizes and pads to the largest, and past it; more of them than a task takes
    (2, 7, 7, 70, 3, 1, 1, 1, 1),
    (3, 8, 8, 5, 3, 1, 1, 1, 1),
    (2, 9, 8, 3, 3, 1, ((7, 2), (1, 0)), 1, 1),
    (2, 11, 9, 3, 3, 1, 0, 1, 1),
    (2, 5, 8, 3, 3, 1, ((8, 0), (1, 1)), 1, 1),
    (2, 16, 7, 2, 3, 1, 1, 1, 1),
    (2, 17, 7, 2, 3, 1, 1, 1, 1),
    (3, 16, 16, 3, 3, 2, 1, 1, 1),
    (2, 15, 14, 40, 3, 2, 1, 1, 1),
    (2, 13, 13, 4, 3, 2, ((0, 1), (0, 1)), 1, 1),
    (2, 16, 15, 3, 3, 2, ((7, 3), (2, 3)), 1, 1),
    (2, 12, 16, 3, 3, 2, ((0, 7), (5, 6)), 1, 1),
    (2, 16, 16, 3, 3, 1, 1, 1, 1),
    (2, 17, 16, 3, 3, 1, 1, 1, 1),
    (2, 3, 9, 2, 3, 1, ((7, 6), (4, 3)), 1, 1),
    (2, 16, 16, 3, 5, 1, 2, 1, 1),
    (2, 13, 11, 2, 5, 1, ((7, 0), (1, 3)), 1, 1),
    (2, 14, 14, 3, 5, 2, 2, 1, 1),
    (2, 32, 32, 3, 5, 2, 2, 1, 1),
    (2, 33, 30, 3, 3, 2, 1, 1, 1),
    (2, 31, 27, 34, 3, 2, ((7, 6), (6, 1)), 1, 1),
    (2, 16, 13, 2, 5, 2, ((1, 7), (6, 2)), 1, 1),
    (2, 14, 16, 2, 7, 1, 3, 1, 1),
    (2, 5, 13, 2, 7, 1, ((7, 4), (6, 0)), 1, 1),
]


def arrays(shape, layout, dtype):
    """Guarded x, w, b, dy and the arguments of the geometry."""
    N, H1, W1, D1, F, S, P, dilation, m = shape
    g = window("test", H1, W1, F, S, P, dilation)
    rng = np.random.default_rng(H1 * W1 + D1)
    x, dy = rng.standard_normal((N, H1, W1, D1)), rng.standard_normal((N, *g.size, D1 * m))
    w, b = rng.standard_normal((*g.F, 1, D1 * m)), rng.standard_normal(D1 * m)
    if layout == "NCHW":
        x, dy, w = x.transpose(0, 3, 1, 2), dy.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1)
    x, w, b, dy = (guarded(a.astype(dtype)) for a in (x, w, b, dy))
    where = (*g.S, g.pads[0][0], g.pads[1][0], *g.dilation, m, 1)  # in groups of one
    return x, w, b, dy, where, {"S": S, "P": P, "dilation": dilation, "groups": D1, "layout": layout}


def call(kind, a, layout, threads, copied=False):
    """One direction by the kernel of the level in use; the result, whose surroundings are checked."""
    x, w, b, dy, where, _ = a
    where = *where, copied
    kernel, nchw = _kernels.kernel("depthwise"), layout == "NCHW"
    like = {"y": dy, "relu": dy, "dx": x, "dw": w}[kind]
    out, buffer = canary(like.shape, x.dtype)
    if kind == "dx":
        kernel.grad_x(dy, w, out, *where, nchw, threads)
    elif kind == "dw":
        kernel.grad_w(dy, x, out, *where, nchw, threads)
    else:
        kernel.forward(x, w, b if kind == "relu" else None, out, *where, kind == "relu", nchw, threads)
    assert intact(buffer)
    return out


def exact(kind, a):
    x, w, b, dy, _, how = a
    if kind == "dx":
        return reference.conv2d_grad_x(dy, w, x.shape, **how)
    if kind == "dw":
        return reference.conv2d_grad_w(dy, x, w.shape, **how)
    return reference.conv2d(x, w, b if kind == "relu" else None, **how, activation="relu" if kind == "relu" else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_direction_is_exact_to_rounding(isa, shape, layout, dtype):
    a = arrays(shape, layout, dtype)
    long = tuple(v.astype("f8") for v in a[:4]) + a[4:]
    size = tuple(abs(v) for v in long[:4]) + a[4:]
    window_size = a[1].size // (shape[3] * shape[8])
    for kind in ("y", "relu", "dx", "dw"):
        n = {"dx": window_size * shape[8], "dw": a[3].size // (shape[3] * shape[8])}.get(kind, window_size) + 1
        bound = 2 * n * np.finfo(dtype).eps * exact("y" if kind == "relu" else kind, size)
        if kind == "relu":
            bound += 2 * n * np.finfo(dtype).eps * abs(size[2] if layout == "NHWC" else size[2][:, None, None])
        got = call(kind, a, layout, 1)
        assert (abs(got - exact(kind, long)) <= bound).all(), kind
        for threads in (2, 3):
            assert bits(call(kind, a, layout, threads, copied=threads == 3), got), (kind, threads)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_adjoint(isa, shape, layout):
    """<dy, y> = <dx, x> = <dw, w>, as y is linear in x and in w; n*eps of the magnitudes, as above."""
    a = arrays(shape, layout, "float64")
    x, w, _, dy, _, _ = a
    products = [
        float((p * q).sum())
        for p, q in ((dy, call("y", a, layout, 2)), (call("dx", a, layout, 2), x), (call("dw", a, layout, 2), w))
    ]
    size = tuple(abs(v) for v in a[:4]) + a[4:]
    bound = 4 * (dy.size + w.size) * np.finfo("f8").eps * float((abs(dy) * exact("y", size)).sum())
    assert abs(products[0] - products[1]) <= bound
    assert abs(products[0] - products[2]) <= bound


@pytest.mark.parametrize(
    ("cache", "depth", "F", "copied"),
    [
        (32, 512, 3, True), (32, 1536, 3, True), (32, 256, 3, False), (32, 256, 5, True), (32, 384, 7, False), (32, 1000, 7, False),
        (48, 512, 3, False), (48, 512, 5, True), (48, 1024, 3, True), (48, 256, 5, False), (48, 256, 7, True), (48, 32, 7, False),
    ],
)  # fmt: skip
def test_which_pixels_are_copied(monkeypatch, cache, depth, F, copied):
    """Those of which so few have a place in a first-level cache, of so many kB, that a window's rows of eight have not."""
    monkeypatch.setattr(runtime, "FIRST_CACHE", cache << 10)
    problem = costs.Problem("grad_w", 2, 14, 14, depth, depth, window("test", 14, 14, F, 1, F // 2), depth, False, "float32")
    for direction in ("fwd", "grad_x", "grad_w"):
        assert costs.pixels_copied(problem._replace(direction=direction)) is copied
    assert not costs.pixels_copied(problem._replace(nchw=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_images(isa, layout):
    a = arrays((1, 5, 6, 4, 3, 1, 1, 1, 1), layout, "float32")
    none = (a[0][:0], a[1], a[2], a[3][:0], *a[4:])
    assert call("y", none, layout, 2).size == call("dx", none, layout, 2).size == 0
    assert not call("dw", none, layout, 2).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("corner", [0, -1])
@pytest.mark.parametrize(
    "shape",
    [(1, 8, 9, 5, 3, 1, 1, 1, 1), (2, 7, 7, 5, 3, 1, 1, 1, 1), (2, 14, 13, 5, 3, 2, 1, 1, 1), (2, 15, 13, 5, 3, 1, 1, 1, 1)],
    ids=str,
)
def test_a_number_that_is_not_finite_goes_where_it_belongs(isa, layout, shape, corner, value):
    """One such cell in a corner of x: only the results and weights that meet it show it."""
    a = arrays(shape, layout, "float32")
    x = a[0].copy()
    x[corner, corner, corner, corner] = value
    a = (x, *a[1:])
    for kind in ("y", "dw"):
        got, want = call(kind, a, layout, 2), exact(kind, a)
        assert np.array_equal(np.isfinite(got), np.isfinite(want)), kind
        assert not np.isfinite(got).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(2, 14, 13, 5, 3, 2, 1, 1, 1), (2, 16, 16, 5, 5, 2, 2, 1, 1), (2, 28, 27, 5, 5, 2, 2, 1, 1)], ids=str
)
def test_a_weight_that_is_not_finite_spoils_what_its_tap_meets(isa, layout, shape):
    """With a stride every other row and column of dx, but for those at the edge, where padding may count as zeros or not at all."""
    a = arrays(shape, layout, "float32")
    w = a[1].copy()
    w[(0, 1, 0, 2) if layout == "NHWC" else (2, 0, 0, 1)] = np.nan
    a = (a[0], w, *a[2:])
    got, want = call("dx", a, layout, 2), exact("dx", a)
    inside = (slice(None), slice(4, -4), slice(4, -4)) if layout == "NHWC" else (..., slice(4, -4), slice(4, -4))
    assert np.array_equal(np.isfinite(got[inside]), np.isfinite(want[inside]))
    assert not np.isfinite(got[inside]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_arrays_begin_changes_no_bit(isa, dtype):
    """Depth last, vectors begin with a cache line, wherever that is; those of groups do not, which it might cut."""
    line, rng = 64 // np.dtype(dtype).itemsize, np.random.default_rng(0)
    for q in (1, 2, 4, 8):
        x, dy = (rng.standard_normal((2, 5, 6, 112)).astype(dtype) for _ in range(2))
        w, how, made = rng.standard_normal((3, 3, q, 112)).astype(dtype), {"P": 1, "groups": 112 // q, "method": "direct"}, []
        for offset in range(0, line, max(1, q // 2)):
            moved = []
            for a in (x, dy):
                buffer = np.full(a.size + 2 * line, np.nan, dtype)
                begin = -buffer.ctypes.data % 64 // a.itemsize + offset
                moved.append(buffer[begin : begin + a.size].reshape(a.shape))
                moved[-1][...] = a
            y, dx = fc.conv2d(moved[0], w, **how), fc.conv2d_grad_x(moved[1], w, x.shape, **how)
            made.append((y, dx, fc.conv2d_grad_w(moved[1], moved[0], w.shape, **how)))
        assert all(bits(a, b) for results in made for a, b in zip(results, made[0], strict=True)), q


def test_an_image_does_not_depend_on_its_batch(isa):
    for layout in LAYOUTS:
        a = arrays((3, 9, 8, 20, 3, 1, 1, 1, 1), layout, "float32")
        alone = (a[0][1:2], *a[1:3], a[3][1:2], *a[4:])
        assert bits(call("y", a, layout, 2)[1:2], call("y", alone, layout, 2))
        assert bits(call("dx", a, layout, 2)[1:2], call("dx", alone, layout, 2))
