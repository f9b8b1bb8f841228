"""Passes over activation maps: every element against NumPy, guards around the results, one result for any threads."""

import numpy as np
import pytest

import fastconv as fc
from fastconv import _kernels

# Channels last and apart; sizes around the lines of 64 pixels, the runs of 32 rows and the parts of a sum.
SHAPES = {
    "nhwc small": ((3, 5, 7, 4), False),
    "nhwc odd": ((2, 9, 33, 67), False),
    "nhwc one": ((2, 1, 1, 1), False),
    "rows": ((1000, 3), False),
    "rows wide": ((40, 1300), False),
    "nhwc many": ((16, 31, 31, 33), False),
    "nchw small": ((3, 4, 5, 7), True),
    "nchw line": ((2, 3, 8, 8), True),
    "nchw odd": ((4, 70, 9, 31), True),
    "nchw one": ((2, 1, 1, 1), True),
    "nchw many": ((16, 33, 31, 31), True),
    "empty": ((0, 4, 4, 3), False),
}
CANARY = -12345.0


class Case:
    """A volume x, a gradient dy and constants for each map, with guards around every result."""

    def __init__(self, name, dtype):
        (self.shape, self.nchw), self.dtype = SHAPES[name], np.dtype(dtype)
        rng = np.random.default_rng(len(name))
        self.x = rng.standard_normal(self.shape).astype(dtype) + self.dtype.type(3)
        self.dy = rng.standard_normal(self.shape).astype(dtype)
        self.depth = self.shape[1] if self.nchw else self.shape[-1]
        self.axes = (0, 2, 3) if self.nchw else tuple(range(len(self.shape) - 1))
        usual = np.array([[3.0], [1.5], [0.2], [0.1], [0.3]])
        self.c = (usual + 0.1 * rng.standard_normal((5, self.depth))).astype(dtype)
        self.guards = []

    def result(self, fill=None):
        n = int(np.prod(self.shape))
        whole = np.full(n + 128, CANARY, self.dtype)
        self.guards.append(whole)
        inner = whole[64 : 64 + n].reshape(self.shape)
        inner[...] = np.nan if fill is None else fill
        return inner

    def check_guards(self):
        assert all((w[:64] == CANARY).all() and (w[-64:] == CANARY).all() for w in self.guards)

    def each(self, v):
        """Constants as they lie beside the volume, in float64."""
        v = v.astype(np.float64)
        return v[:, None, None] if self.nchw else v

    def sum(self, a):
        return a.astype(np.float64).sum(self.axes)

    def close_sums(self, total, *arrays):
        # 32 roundings at most in the array's precision, of partial sums of at most 32 numbers, for each of
        # the runs; runs add in float64.
        n = max(1, self.x.size // self.depth)
        eps = float(np.finfo(self.dtype).eps)
        for got, a in zip(total, arrays, strict=True):
            size = np.abs(a).max(initial=0)
            np.testing.assert_allclose(got, self.sum(a), rtol=0, atol=32 * eps * size * n + 1e-300)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=SHAPES)
def case(request, dtype):
    return Case(request.param, dtype)


@pytest.mark.usefixtures("isa")
def test_sums_and_masks(case, n_threads):
    k = _kernels.kernel("maps")
    total = np.zeros((2, case.depth))
    k.sums(case.dy, None, None, total, case.nchw, n_threads)
    case.close_sums(total, case.dy, 0 * case.dy)
    y = case.x - case.dtype.type(3)
    masked = np.where(y <= 0, 0, case.dy)
    for out in (case.result(), case.result(case.dy)):
        total[...] = 0
        k.sums(out if out.size and not np.isnan(out.flat[0]) else case.dy, y, out, total, case.nchw, n_threads)
        np.testing.assert_array_equal(out, masked)
        case.close_sums(total, masked, 0 * masked)
    for out in (case.result(), case.result(case.dy)):
        k.mask(out if out.size and not np.isnan(out.flat[0]) else case.dy, y, out, n_threads)
        np.testing.assert_array_equal(out, masked)
    case.check_guards()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("relu", [False, True])
def test_add(case, n_threads, relu):
    k, out, over = _kernels.kernel("maps"), case.result(), case.result(case.dy)
    k.add(case.dy, case.x, out, relu, n_threads)
    k.add(over, case.x, over, relu, n_threads)
    expected = case.dy + case.x
    np.testing.assert_array_equal(out, np.maximum(expected, 0) if relu else expected)
    np.testing.assert_array_equal(over, out)
    case.check_guards()


@pytest.mark.usefixtures("isa")
def test_moments(case, n_threads):
    total = np.zeros((2, case.depth))
    _kernels.kernel("maps").moments(case.x, total, case.nchw, n_threads)
    if not case.x.size:
        assert np.isnan(total).all()
        return
    x, eps = case.x.astype(np.float64), float(np.finfo(case.dtype).eps)
    widest = np.ptp(x, axis=case.axes).max()  # no deviation is larger; sums of 32 and of 32 squares are rounded as in close_sums
    np.testing.assert_allclose(total[0], x.mean(case.axes), rtol=0, atol=34 * eps * widest + eps**2)
    np.testing.assert_allclose(total[1], x.var(case.axes), rtol=0, atol=100 * eps * widest**2)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("nchw", [False, True])
def test_moments_far_from_zero(dtype, nchw):
    """A variance of 1 beside a mean of 1000: squares of the numbers themselves would leave nothing of it in float32."""
    x = (np.random.default_rng(0).standard_normal((4, 9, 9, 9)) + 1000).astype(dtype)
    total, axes = np.zeros((2, 9)), (0, 2, 3) if nchw else (0, 1, 2)
    _kernels.kernel("maps").moments(x, total, nchw, 2)
    np.testing.assert_allclose(total[1], x.astype(np.float64).var(axes), rtol=1e-5)
    x[2, 3, 4, 3] = np.nan
    total[...] = 0
    _kernels.kernel("maps").moments(x, total, nchw, 2)
    assert np.isnan(total[:, 3]).all()
    assert np.isfinite(np.delete(total, 3, 1)).all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("relu", [False, True])
def test_normalisation(case, n_threads, relu):
    k, eps = _kernels.kernel("maps"), float(np.finfo(case.dtype).eps)
    mean, scale, shift, a, b = map(case.each, case.c)
    y = case.result()
    k.norm(case.x, y, case.c[:3], relu, case.nchw, n_threads)
    d = case.x - mean
    before = d * scale + shift
    # Three roundings of numbers up to about 10.
    np.testing.assert_allclose(y, np.maximum(before, 0) if relu else before, rtol=4 * eps, atol=15 * eps)
    g = np.where(y <= 0, 0, case.dy) if relu else case.dy
    total = np.zeros((2, case.depth))
    k.norm_sums(case.dy, case.x, case.c, relu, total, case.nchw, n_threads)
    case.close_sums(total, g, g * d)
    expected = (g - a - d * b) * scale
    for dx in (case.result(), case.result(case.dy)):
        given = dx if dx.size and not np.isnan(dx.flat[0]) else case.dy
        k.norm_grad(given, case.x, dx, case.c, relu, case.nchw, n_threads)
        np.testing.assert_allclose(dx, expected, rtol=4 * eps, atol=30 * eps)
    case.check_guards()


@pytest.mark.usefixtures("isa")
def test_the_same_bits_for_any_number_of_threads(case):
    def everything(n):
        k, total = _kernels.kernel("maps"), np.zeros((4, 2, case.depth))
        y, dx, out = (np.zeros(case.shape, case.dtype) for _ in range(3))
        k.sums(case.dy, case.x, out, total[0], case.nchw, n)
        k.moments(case.x, total[1], case.nchw, n)
        k.norm(case.x, y, case.c[:3], True, case.nchw, n)
        k.norm_sums(case.dy, case.x, case.c, True, total[2], case.nchw, n)
        k.norm_grad(case.dy, case.x, dx, case.c, True, case.nchw, n)
        return b"".join(a.tobytes() for a in (y, dx, out, total))

    assert everything(1) == everything(2) == everything(3)


@pytest.mark.usefixtures("isa")
def test_not_a_number_and_infinity():
    k = _kernels.kernel("maps")
    y, dy = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1], np.float32), np.arange(1, 7, dtype=np.float32)
    out = np.empty_like(dy)
    k.mask(dy, y, out, 1)
    np.testing.assert_array_equal(out, [1, 2, 0, 0, 0, 6])
    k.add(y, dy, out, True, 1)
    np.testing.assert_array_equal(out, [np.nan, np.inf, 0, 4, 5, 7])


def test_levels_agree_with_each_other():
    case, found = Case("nhwc many", "float32"), []
    before = fc.isa()
    for level in fc.available_isas():
        fc.use_isa(level)
        total = np.zeros((2, case.depth))
        _kernels.kernel("maps").moments(case.x, total, False, 2)
        found.append(total)
    fc.use_isa(before)
    for total in found[1:]:  # contraction differs: roundings of the terms
        np.testing.assert_allclose(total, found[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 16, 19, 130])
def test_turning_over(isa, rows, dtype):
    """Pictures that lie apart, of rows and columns around the vectors, four rows, and the pieces of 64 and of 128."""
    turn = _kernels.kernel("maps").turn
    for cols in (1, 4, 7, 8, 15, 16, 17, 31, 33, 65, 129):
        x = np.random.default_rng(cols).standard_normal((3, rows + 1, cols + 2)).astype(dtype)
        for threads, apart in ((1, 0), (2, 0), (3, 5)):
            whole = np.full(64 + 3 * cols * (rows + apart) + 64, CANARY, dtype)
            out = whole[64:-64].reshape(3, cols, rows + apart)
            turn(x, out, 3, rows, cols, (rows + 1) * (cols + 2), cols + 2, cols * (rows + apart), rows + apart, threads)
            assert (out[:, :, :rows] == x[:, :rows, :cols].transpose(0, 2, 1)).all()
            assert (out[:, :, rows:] == CANARY).all()
            assert (np.r_[whole[:64], whole[-64:]] == CANARY).all()
