"""What the public functions accept and refuse: arrays of any strides, `out`, empty arrays, hostile input, huge sizes.

A call that raises has written nothing: `out` is full of NaN before and after.
"""

import functools
import re
import subprocess
import sys

import numpy as np
import pytest

import fastconv as fc
from fastconv import reference
from fastconv._kernels import memory
from fastconv.geometry import GeometryError
from oracle import bits, canary, intact
from problems import Problem

LAYOUTS = ("NHWC", "NCHW")
P = Problem("ops", 2, 7, 8, 4, 6, (3, 2), S=(2, 1), P=((1, 2), (0, 1)), groups=2)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


X, W, B = ones(2, 7, 7, 3), ones(3, 3, 3, 5), ones(5)
DY = ones(2, 5, 5, 5)
COLS = ones(2 * 5 * 5, 27)
CALLS = {
    "conv2d": functools.partial(fc.conv2d, X, W, B),
    "conv2d_grad_x": functools.partial(fc.conv2d_grad_x, DY, W, X.shape),
    "conv2d_grad_w": functools.partial(fc.conv2d_grad_w, DY, X, W.shape),
    "conv2d_backward": functools.partial(fc.conv2d_backward, DY, X, W),
    "conv_transpose2d": functools.partial(fc.conv_transpose2d, DY, W),
    "im2col": functools.partial(fc.im2col, X, 3),
    "col2im": functools.partial(fc.col2im, COLS, X.shape, 3),
}
CONVOLUTIONS = tuple(CALLS)[:4]


def test_the_valid_calls_are_valid():
    assert {name: np.shape(call()) for name, call in CALLS.items() if name != "conv2d_backward"} == {
        "conv2d": (2, 5, 5, 5), "conv2d_grad_x": X.shape, "conv2d_grad_w": W.shape, "conv_transpose2d": X.shape,
        "im2col": COLS.shape, "col2im": X.shape,
    }  # fmt: skip
    assert [a.shape for a in CALLS["conv2d_backward"]()] == [X.shape, W.shape, B.shape]


# ---------------------------------------------------------------- errors
def refuses(error, text, call, *args, **kwargs):
    """The call raises exactly this error, names itself first and says all of `text`."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert caught.type is error
    message = str(caught.value)
    name = getattr(call, "func", call).__name__
    assert message.startswith(f"{name}: "), message
    for part in [text] if isinstance(text, str) else text:
        assert part in message, message


def test_the_message_of_the_contract():
    text = "conv2d: w has depth 4 but x has depth 3 (groups=1); expected w of shape (5, 5, 3, 10), got (5, 5, 4, 10)"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        fc.conv2d(ones(1, 32, 32, 3), ones(5, 5, 4, 10), P=2)


@pytest.mark.parametrize("name", CALLS)
def test_options_out_of_range(name):
    call = CALLS[name]
    for option, value, error in [
        ("S", 0, ValueError), ("S", -1, ValueError), ("S", 1.0, TypeError), ("S", True, TypeError),
        ("S", "1", TypeError),
        ("S", (1, 2, 3), ValueError), ("S", (1,), ValueError), ("S", (1, 0), ValueError), ("S", None, TypeError),
        ("S", np.array(1), TypeError), ("S", [1.5, 1], TypeError), ("S", {1, 2}, TypeError), ("S", 2**40, ValueError),
        ("P", -1, ValueError), ("P", 0.5, TypeError), ("P", "full", ValueError), ("P", False, TypeError),
        ("P", ((1, 1), (1, -1)), ValueError), ("P", ((1, 1),), ValueError), ("P", (1, 2, 3, 4), ValueError),
        ("P", None, TypeError), ("P", ((1, 1, 1), 1), ValueError), ("P", 2**31, ValueError),
        ("dilation", 0, ValueError), ("dilation", 1.5, TypeError), ("dilation", (1, True), TypeError),
        ("dilation", 2**62, ValueError), ("layout", "NWHC", ValueError), ("layout", 3, TypeError),
        ("layout", None, TypeError), ("layout", "nhwc", ValueError),
    ]:  # fmt: skip
        refuses(error, option, call, **{option: value})


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "conv_transpose2d"])
def test_groups_out_of_range(name):
    for groups, error in [(0, ValueError), (-3, ValueError), (True, TypeError), (1.0, TypeError), ("1", TypeError),
                          (None, TypeError), ((1, 1), TypeError)]:  # fmt: skip
        refuses(error, "groups", CALLS[name], groups=groups)
    with pytest.raises(ValueError, match=f"^{name}: .*groups=2"):
        CALLS[name](groups=2)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_methods_that_do_not_exist_or_cannot(name):
    refuses(ValueError, ["method", "'direct'", "'winograd'", "fft"], CALLS[name], method="fft")
    refuses(TypeError, "method", CALLS[name], method=None)
    x = ones(1, 9, 9, 3)
    cannot = [({"S": 3}, 3, "S=1"), ({"S": (1, 2)}, 3, "S=1"), ({"dilation": 2, "S": 2}, 3, "dilation"), ({}, 9, "2 to 7")]
    for how, window, why in cannot:
        v, how = ones(window, window, 3, 5), {**how, "method": "winograd"}
        dy = fc.conv2d(x, v, **{**how, "method": "direct"})
        call = {
            "conv2d": functools.partial(fc.conv2d, x, v),
            "conv2d_grad_x": functools.partial(fc.conv2d_grad_x, dy, v, x.shape),
            "conv2d_grad_w": functools.partial(fc.conv2d_grad_w, dy, x, v.shape),
            "conv2d_backward": functools.partial(fc.conv2d_backward, dy, x, v),
        }[name]
        refuses(ValueError, ["method='winograd' cannot", why, "'direct', 'im2col'"], call, **how)


ARRAYS = [
    ("conv2d", "x", lambda a: fc.conv2d(a, W), X), ("conv2d", "w", lambda a: fc.conv2d(X, a), W),
    ("conv2d", "b", lambda a: fc.conv2d(X, W, a), B),
    ("conv2d_grad_x", "dy", lambda a: fc.conv2d_grad_x(a, W, X.shape), DY),
    ("conv2d_grad_x", "w", lambda a: fc.conv2d_grad_x(DY, a, X.shape), W),
    ("conv2d_grad_w", "dy", lambda a: fc.conv2d_grad_w(a, X, W.shape), DY),
    ("conv2d_grad_w", "x", lambda a: fc.conv2d_grad_w(DY, a, W.shape), X),
    ("conv2d_backward", "dy", lambda a: fc.conv2d_backward(a, X, W), DY),
    ("conv2d_backward", "x", lambda a: fc.conv2d_backward(DY, a, W), X),
    ("conv2d_backward", "w", lambda a: fc.conv2d_backward(DY, X, a), W),
    ("conv_transpose2d", "x", lambda a: fc.conv_transpose2d(a, W), DY),
    ("conv_transpose2d", "w", lambda a: fc.conv_transpose2d(DY, a), W),
    ("conv_transpose2d", "b", lambda a: fc.conv_transpose2d(DY, W, a), ones(3)),
    ("im2col", "x", lambda a: fc.im2col(a, 3), X), ("col2im", "cols", lambda a: fc.col2im(a, X.shape, 3), COLS),
]  # fmt: skip


@pytest.mark.parametrize(("where", "name", "call", "right"), ARRAYS, ids=[f"{a[0]}-{a[1]}" for a in ARRAYS])
def test_arguments_that_are_no_such_array(where, name, call, right):
    call(right)
    swapped = right.astype(right.dtype.newbyteorder())
    for wrong in (right.tolist(), None, 1.0, "x", right.astype("f2"), right.astype("i4"), right.astype("c8"), swapped,
                  right.astype("O"), right > 0, np.ma.masked_array(right)):  # fmt: skip
        if wrong is None and name == "b":
            continue
        with pytest.raises(TypeError, match=rf"^{where}: {name} "):
            call(wrong)
    with pytest.raises(ValueError, match=rf"^{where}: {name} must have {right.ndim} axes"):
        call(right[..., None])
    with pytest.raises(ValueError, match=rf"^{where}: {name} must have {right.ndim} axes"):
        call(np.ones((), np.float32))
    if where not in ("im2col", "col2im"):
        with pytest.raises(TypeError, match=rf"^{where}: .*float64.*one dtype"):
            call(right.astype(np.float64))


def test_shapes_that_do_not_belong_together():
    for error, text, call, *args in [
        (ValueError, ["w has depth 4", "x has depth 3"], fc.conv2d, X, ones(3, 3, 4, 5)),
        (ValueError, "b has", fc.conv2d, X, W, ones(4)),
        (GeometryError, ["(7 - 9 + 2*0)/1 + 1 = -1"], fc.conv2d, X, ones(9, 9, 3, 5)),
        (ValueError, "empty window", fc.conv2d, X, ones(0, 3, 3, 5)),
        (GeometryError, "empty", fc.conv2d, ones(1, 0, 7, 3), W),
        (ValueError, "(2, 5, 5, 5)", fc.conv2d_grad_x, ones(2, 5, 4, 5), W, X.shape),
        (ValueError, "(2, 5, 5, 5)", fc.conv2d_grad_x, ones(1, 5, 5, 5), W, X.shape),
        (ValueError, "depth", fc.conv2d_grad_x, DY, W, (2, 7, 7, 4)),
        (ValueError, "x_shape", fc.conv2d_grad_x, DY, W, (2, 7, 7)),
        (ValueError, "x_shape", fc.conv2d_grad_x, DY, W, (-2, 7, 7, 3)),
        (TypeError, "x_shape", fc.conv2d_grad_x, DY, W, (2, 7.0, 7, 3)),
        (TypeError, "x_shape", fc.conv2d_grad_x, DY, W, (2, True, 7, 3)),
        (TypeError, "x_shape", fc.conv2d_grad_x, DY, W, X),
        (TypeError, "x_shape", fc.conv2d_grad_x, DY, W, 7),
        (ValueError, "(2, 5, 5, 5)", fc.conv2d_grad_w, DY[:, :4], X, W.shape),
        (ValueError, "w_shape", fc.conv2d_grad_w, DY, X, (3, 3, 3)),
        (TypeError, "w_shape", fc.conv2d_grad_w, DY, X, None),
        (ValueError, "depth", fc.conv2d_grad_w, DY, X, (3, 3, 2, 5)),
        (ValueError, "(2, 5, 5, 5)", fc.conv2d_backward, DY[1:], X, W),
        (ValueError, "depth", fc.conv_transpose2d, DY, ones(3, 3, 3, 4)),
        (ValueError, "b has", fc.conv_transpose2d, DY, W, ones(5)),
        (ValueError, "(50, 27)", fc.col2im, COLS[1:], X.shape, 3),
        (ValueError, "(50, 27)", fc.col2im, COLS[:, 1:], X.shape, 3),
        (ValueError, "x_shape", fc.col2im, COLS, (2, 7, 7), 3),
        (GeometryError, "-1", fc.im2col, X, 9),
        (ValueError, "F", fc.im2col, X, 0),
        (TypeError, "F", fc.im2col, X, 3.0),
    ]:  # fmt: skip
        refuses(error, text, call, *args)


def test_output_padding_stays_below_the_stride():
    for value, error in [(1, GeometryError), (-1, ValueError), (1.0, TypeError), ((0, 1), GeometryError)]:
        refuses(error, "output_padding", CALLS["conv_transpose2d"], output_padding=value)


def test_activation_and_needs():
    refuses(ValueError, ["activation", "relu"], CALLS["conv2d"], activation="tanh")
    refuses(TypeError, "activation", CALLS["conv2d"], activation=True)
    wrong = [("x", TypeError), (("y",), ValueError), (1, TypeError), (("x", 1), TypeError), (None, TypeError)]
    for needs, error in wrong:
        refuses(error, "needs", CALLS["conv2d_backward"], needs=needs)


def test_explain_refuses_as_the_call_would():
    for kwargs, error in [({"direction": "backward"}, ValueError), ({"dtype": "float16"}, ValueError),
                          ({"dtype": None}, TypeError), ({"method": "fft"}, ValueError), ({"S": 0}, ValueError),
                          ({"groups": 2}, GeometryError)]:  # fmt: skip
        refuses(error, next(iter(kwargs)), functools.partial(fc.explain, X.shape, W.shape), **kwargs)
    refuses(TypeError, "x_shape", fc.explain, 8, W.shape)
    refuses(ValueError, "w_shape", fc.explain, X.shape, (3, 3, 3))


def test_numpy_integers_and_lists_are_as_good_as_ints_and_tuples():
    e = {"S": 2, "P": ((1, 0), (2, 1)), "dilation": 1}
    other = {"S": [np.int64(2), np.int8(2)], "P": [[1, 0], [np.uint8(2), 1]], "dilation": np.int32(1)}
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 9, 8, 3)), rng.standard_normal((3, 3, 3, 4))
    y = fc.conv2d(x, w, **e)
    assert bits(fc.conv2d(x, w, **other, groups=np.int16(1)), y)
    assert bits(fc.conv2d_grad_x(y, w, list(x.shape), **other), fc.conv2d_grad_x(y, w, x.shape, **e))
    assert bits(fc.conv2d_grad_w(y, x, list(map(np.int64, w.shape)), **other), fc.conv2d_grad_w(y, x, w.shape, **e))
    assert bits(fc.im2col(x, [np.int64(3), 3], **other), fc.im2col(x, (3, 3), **e))


# ---------------------------------------------------------------- out
def outs(layout="NHWC", dtype=np.float32):
    """(name, function of out, the input that it must not overlap, its result) of all functions that take `out`."""
    x, w, b, dy = P.arrays(layout, dtype)
    how = {"layout": layout, **P.how}
    for name, call in [
        ("conv2d", lambda out=None, x=x, w=w, b=b: fc.conv2d(x, w, b, out=out, **how)),
        ("conv2d_grad_x", lambda out=None, dy=dy, w=w: fc.conv2d_grad_x(dy, w, x.shape, out=out, **how)),
        ("conv2d_grad_w", lambda out=None, dy=dy, x=x: fc.conv2d_grad_w(dy, x, w.shape, out=out, **how)),
    ]:
        yield name, call, call()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_may_have_any_strides(layout):
    for name, call, y in outs(layout):
        n = y.ndim
        transposed = np.full(y.shape[::-1], np.nan, y.dtype).transpose()
        stepped = np.full([2 * k for k in y.shape], np.nan, y.dtype)[(slice(1, None, 2),) * n]
        backward = np.full(y.shape, np.nan, y.dtype)[(slice(None, None, -1),) * n]
        raw = np.full(y.nbytes + 1, 255, np.uint8)
        unaligned = raw[1:].view(y.dtype).reshape(y.shape)
        for out in (transposed, stepped, backward, unaligned):
            assert call(out) is out, name
            same = bits(np.ascontiguousarray(out), y)
            assert same, name
        around = stepped.base.copy()
        around[(slice(1, None, 2),) * n] = np.nan
        assert np.isnan(around).all(), f"{name} wrote between the cells of out"
        assert raw[0] == 255


def test_out_that_cannot_be_written_to_is_refused_and_stays():
    for name, call, y in outs():
        whole, _ = canary(y.shape, y.dtype)
        fixed = whole.copy()
        fixed.flags.writeable = False
        twice = np.lib.stride_tricks.as_strided(np.full(y.size, np.nan, y.dtype), y.shape, (0, *y.strides[1:]))
        for out, error, text in [
            (whole[..., :-1], ValueError, "shape"), (whole[None], ValueError, "axes|shape"),
            (fixed, ValueError, "read-only"), (whole.astype(np.float64), TypeError, "float32"),
            (twice, ValueError, "share memory"), (whole.tolist(), TypeError, "NumPy array"),
            (whole.astype(">f4"), TypeError, "dtype"),
        ]:  # fmt: skip
            with pytest.raises(error, match=rf"^{name}: .*out.* ({text})"):
                call(out)
            assert np.isnan(np.asarray(out, np.float64)).all(), name


def test_out_that_overlaps_an_input_is_refused_and_the_input_stays():
    side = np.random.default_rng(0).standard_normal((2, 6, 6, 4)).astype(np.float32)  # x, dy and y of one shape
    w = np.random.default_rng(1).standard_normal((3, 3, 4, 4)).astype(np.float32)
    memory_of = {"x": side, "dy": side, "w": w}
    for name, inputs, call in [
        ("conv2d", "xw", lambda x, w, out: fc.conv2d(x, w, P=1, out=out)),
        ("conv2d_grad_x", ("dy", "w"), lambda dy, w, out: fc.conv2d_grad_x(dy, w, side.shape, P=1, out=out)),
        ("conv2d_grad_w", ("dy", "x"), lambda dy, x, out: fc.conv2d_grad_w(dy, x, w.shape, P=1, out=out)),
    ]:
        for which in inputs:
            args = {i: memory_of[i].copy() for i in inputs}
            right = call(*args.values(), None)
            # `out` lies half over the input
            buffer = np.zeros(args[which].size + right.size, np.float32)
            shared = buffer[: args[which].size].reshape(args[which].shape)
            shared[...] = args[which]
            args[which], start = shared, args[which].size // 2
            before = buffer.copy()
            with pytest.raises(ValueError, match=rf"^{name}: out shares memory with {which}"):
                call(*args.values(), buffer[start : start + right.size].reshape(right.shape))
            assert bits(buffer, before)
            # side by side they are apart
            out = buffer[shared.size :].reshape(right.shape)
            assert bits(call(*args.values(), out), right)


def test_out_interleaved_with_an_input_is_apart():
    both = np.random.default_rng(0).standard_normal((2, 6, 6, 2, 4)).astype(np.float32)
    x, out, w = both[..., 0, :], both[..., 1, :], np.random.default_rng(1).standard_normal((3, 3, 4, 4)).astype("f4")
    before, right = x.copy(), fc.conv2d(x.copy(), w, P=1)
    assert fc.conv2d(x, w, P=1, out=out) is out
    assert bits(out.copy(), right)
    assert bits(x.copy(), before)


def test_nothing_is_written_when_any_argument_is_wrong():
    x, w, b, dy = P.arrays()
    for call, shape, wrong in [
        (lambda out, **k: fc.conv2d(x, w, **{"b": b, **P.how, **k}, out=out), P.y_shape(),
         [{"b": b[1:]}, {"b": b.astype("f8")}, {"activation": "tanh"}, {"method": "winograd"}, {"S": 0}]),
        (lambda out, **k: fc.conv2d_grad_x(dy, w, P.x_shape(), **{**P.how, **k}, out=out), P.x_shape(),
         [{"method": "winograd"}, {"S": 1}, {"groups": 1}, {"layout": "NCHW"}]),
        (lambda out, **k: fc.conv2d_grad_w(dy, x, P.w_shape(), **{**P.how, **k}, out=out), P.w_shape(),
         [{"method": "winograd"}, {"S": 1}, {"groups": 1}, {"layout": "NCHW"}]),
    ]:  # fmt: skip
        out, buffer = canary(shape, "f4")
        for kwargs in wrong:
            with pytest.raises((ValueError, TypeError)):
                call(out, **kwargs)
            assert np.isnan(buffer).all()


# ---------------------------------------------------------------- inputs of any strides
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_may_have_any_strides(layout, dtype):
    """Whatever the strides, the bits of the contiguous call; and an input is what it was."""

    def forms(a):
        swapped = np.ascontiguousarray(a.transpose()).transpose()
        stepped = np.full([2 * n for n in a.shape], np.nan, a.dtype)[(slice(None, None, 2),) * a.ndim]
        backward = np.empty_like(a)[(slice(None, None, -1),) * a.ndim]
        unaligned = np.empty(a.nbytes + 3, np.uint8)[3:].view(a.dtype).reshape(a.shape)
        for b in (swapped, stepped, backward, unaligned):
            b[...] = a
            b.flags.writeable = False
            yield b

    x, w, b, dy = P.arrays(layout, dtype)
    how = {"layout": layout, **P.how}
    y, dx = fc.conv2d(x, w, b, **how), fc.conv2d_grad_x(dy, w, x.shape, **how)
    dw, t = fc.conv2d_grad_w(dy, x, w.shape, **how), fc.conv_transpose2d(dy, w, **how)
    back = fc.conv2d_backward(dy, x, w, **how)
    plain = {"S": 2, "layout": layout}
    cols = fc.im2col(x, 3, **plain)
    picture = fc.col2im(cols, x.shape, 3, **plain)
    for x2, w2, b2, dy2, cols2 in zip(*map(forms, (x, w, b, dy, cols)), strict=True):
        assert bits(fc.conv2d(x2, w2, b2, **how), y)
        assert bits(fc.conv2d_grad_x(dy2, w2, x.shape, **how), dx)
        assert bits(fc.conv2d_grad_w(dy2, x2, w.shape, **how), dw)
        assert bits(fc.conv_transpose2d(dy2, w2, **how), t)
        assert all(bits(*pair) for pair in zip(fc.conv2d_backward(dy2, x2, w2, **how), back, strict=True))
        assert bits(fc.im2col(x2, 3, **plain), cols)
        assert bits(fc.col2im(cols2, x.shape, 3, **plain), picture)
        for before, after in zip((x, w, b, dy, cols), (x2, w2, b2, dy2, cols2), strict=True):
            assert np.array_equal(before, after)


def test_broadcast_inputs():
    """Stride 0: one image, one weight, one gradient everywhere."""
    x, w = np.broadcast_to(np.float32(2), (3, 5, 5, 4)), np.broadcast_to(np.float32(0.5), (3, 3, 4, 7))
    assert (fc.conv2d(x, w) == 36).all()
    assert fc.conv2d_grad_x(np.broadcast_to(np.float32(1), (3, 3, 3, 7)), w, x.shape)[1, 2, 2, 0] == 31.5
    assert (fc.conv2d_grad_w(np.broadcast_to(np.float32(1), (3, 3, 3, 7)), x, w.shape) == 54).all()


def test_subclasses_of_arrays_are_taken_and_plain_arrays_come_back(tmp_path):
    class Array(np.ndarray):
        pass

    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    x[...] = X
    for a in (x, X.view(Array)):
        y = fc.conv2d(a, W, B)
        assert type(y) is np.ndarray
        assert bits(y, fc.conv2d(X, W, B))


def test_results_are_plain_memory_of_their_own():
    """C-contiguous, aligned, writable, and not handed out again while in use."""
    x, w = ones(1, 64, 64, 8), ones(3, 3, 8, 16)
    kept = [fc.conv2d(x * i, w, P=1) for i in range(5)]
    for i, y in enumerate(kept):
        assert y.flags.c_contiguous
        assert y.flags.aligned
        assert y.flags.writeable
        assert y[0, 5, 5, 0] == 72 * i
    view = fc.conv2d(x, w, P=1)[:, 3:5]
    del kept
    others = [fc.conv2d(x * 3, w, P=1) for _ in range(5)]
    assert view[0, 0, 5, 0] == 72
    assert others[-1][0, 5, 5, 0] == 216


# ---------------------------------------------------------------- nothing at all
@pytest.mark.parametrize("method", ["direct", "im2col", "winograd", "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_arrays(isa, layout, method):
    """No pictures, no depth, no filters: the reference's shapes and its zeros; a sum of nothing is the bias."""
    for N, D1, K in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0), (2, 0, 0), (0, 40, 0)]:
        p = Problem(f"empty N={N} D1={D1} K={K}", N, 6, 5, D1, K, 3, P=1)
        x, w, b, dy = p.arrays(layout)
        how, m = {"P": 1, "layout": layout}, {"method": method}
        made = [canary(s(layout), "f4") for s in (p.y_shape, p.x_shape, p.w_shape)]
        fc.conv2d(x, w, b, out=made[0][0], **how, **m)
        fc.conv2d_grad_x(dy, w, x.shape, out=made[1][0], **how, **m)
        fc.conv2d_grad_w(dy, x, w.shape, out=made[2][0], **how, **m)
        right = (
            reference.conv2d(x, w, b, **how), reference.conv2d_grad_x(dy, w, x.shape, **how),
            reference.conv2d_grad_w(dy, x, w.shape, **how),
        )  # fmt: skip
        for (out, buffer), exact in zip(made, right, strict=True):
            assert np.array_equal(out, exact), str(p)
            assert intact(buffer), str(p)
        relu = fc.conv2d(x, w, b, activation="relu", **how, **m)
        assert np.array_equal(relu, np.maximum(right[0], 0)), str(p)
        dx, dw, db = fc.conv2d_backward(dy, x, w, **how, **m)
        assert np.array_equal(dx, right[1]), str(p)
        assert np.array_equal(dw, right[2]), str(p)
        np.testing.assert_allclose(db, dy.sum((0, 1, 2) if layout == "NHWC" else (0, 2, 3)), rtol=1e-5)
        t = fc.conv_transpose2d(dy, w, **how)
        assert np.array_equal(t, reference.conv_transpose2d(dy, w, **how)), str(p)
        cols = fc.im2col(x, 3, **how)
        assert np.array_equal(cols, reference.im2col(x, 3, **how)), str(p)
        assert np.array_equal(fc.col2im(cols, x.shape, 3, **how), reference.col2im(cols, x.shape, 3, **how)), str(p)


# ---------------------------------------------------------------- sizes beyond memory
def test_sizes_whose_product_overflows_raise():
    """2^31 - 1 cells of padding on each side ask for 2^64 numbers and more: nothing wraps, nothing is written."""
    big = 2**31 - 1
    x, w = ones(1, 1, 1, 1), ones(1, 1, 1, 1)
    for method in ("direct", "im2col", "auto"):
        for layout in LAYOUTS:
            with pytest.raises((MemoryError, ValueError)):
                fc.conv2d(x, w, P=big, method=method, layout=layout)
    with pytest.raises((MemoryError, ValueError)):
        fc.conv2d(x, ones(3, 3, 1, 1), P=big, method="winograd")
    with pytest.raises((MemoryError, ValueError)):
        fc.im2col(x, 1, P=big)
    for shape in [(2**62, 7, 7, 3), (2**33, 2**33, 7, 3), (2, 7, 7, 2**62), (2**64, 7, 7, 3), (2, 2**63, 7, 3)]:
        with pytest.raises((MemoryError, ValueError)):
            fc.conv2d_grad_x(DY, W, shape)
        with pytest.raises((MemoryError, ValueError)):
            fc.col2im(COLS, shape, 3)
    with pytest.raises((MemoryError, ValueError)):
        fc.conv2d_grad_w(DY, X, (2**62, 3, 3, 5))


def test_sizes_beyond_memory_raise_memory_error():
    """2^50 bytes and more, which no machine hands out, of sizes that are each harmless."""
    x, w = ones(1, 1, 1, 1), ones(1, 1, 1, 1)
    for layout in LAYOUTS:
        with pytest.raises(MemoryError):
            fc.conv2d(x, w, P=2**23, layout=layout)
        side = 2**24
        dy = np.broadcast_to(np.float32(1), (1, side, side, 1) if layout == "NHWC" else (1, 1, side, side))
        with pytest.raises(MemoryError):
            fc.conv2d_grad_x(dy, w, dy.shape, layout=layout)
        with pytest.raises(MemoryError):
            fc.conv_transpose2d(dy, w, layout=layout)
    wide = np.broadcast_to(np.float32(1), (2**16, 2**16, 2**16, 1))
    with pytest.raises(MemoryError):
        fc.conv2d(wide, w)
    assert fc.conv2d(x, w)[0, 0, 0, 0] == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stride_far_beyond_the_window(layout):
    """Of the S*S phases of dx only F*F have a tap; the others are zero."""
    p = Problem("far", 1, 201, 301, 1, 1, 2, S=(200, 300), P=((0, 1), (0, 1)))
    dy, w = 2 * ones(*p.y_shape(layout)), 3 * ones(*p.w_shape(layout))
    dx = fc.conv2d_grad_x(dy, w, p.x_shape(layout), layout=layout, S=p.S, P=p.P).reshape(201, 301)
    right = np.zeros_like(dx)
    right[np.ix_((0, 1, 200), (0, 1, 300))] = 6
    assert np.array_equal(dx, right)


def test_a_stride_that_no_memory_holds_raises_at_once():
    """In a process of its own, for planning each of 2^62 phases would take for ever."""
    code = """
import numpy as np, fastconv as fc
x, w = np.ones((1, 2, 2, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
for S in (2**25, 2**31 - 1):
    try:
        fc.conv_transpose2d(x, w, S=S)
    except (MemoryError, ValueError):
        print("raised")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["raised", "raised"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_memory_for_the_workspace_nothing_is_written(isa, monkeypatch, layout):
    """Whichever of a call's allocations fails, out is as it was."""
    allocate, left = memory.empty, [0]

    def empty(*args):
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("none left")
        return allocate(*args)

    problems = [Problem("3x3", 1, 9, 9, 5, 7, P=1), Problem("strided", 1, 9, 9, 5, 7, S=2, P=1),
                Problem("depthwise", 1, 9, 9, 8, 8, S=2, groups=8), Problem("1x1", 1, 9, 9, 5, 7, 1)]  # fmt: skip
    for p in problems:
        x, w, b, dy = p.arrays(layout)
        how = {"layout": layout, **p.how}
        for method in ("direct", "im2col", "winograd", "auto"):
            if method == "winograd" and p.name != "3x3":
                continue
            for call, shape in [
                (lambda out, m=method: fc.conv2d(x, w, b, out=out, method=m, **how), p.y_shape),  # noqa: B023
                (lambda out, m=method: fc.conv2d_grad_x(dy, w, x.shape, out=out, method=m, **how), p.x_shape),  # noqa: B023
                (lambda out, m=method: fc.conv2d_grad_w(dy, x, w.shape, out=out, method=m, **how), p.w_shape),  # noqa: B023
            ]:
                right = call(None)
                monkeypatch.setattr(memory, "empty", empty)
                for granted in range(20):
                    out, buffer = canary(shape(layout), "f4")
                    left[0] = granted
                    try:
                        call(out)
                    except MemoryError:
                        assert np.isnan(buffer).all(), f"{p} {method}: written before allocation {granted} failed"
                    else:
                        break
                monkeypatch.setattr(memory, "empty", allocate)
                assert bits(out, right)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_explain_tells_what_a_depthwise_call_allocates(isa, monkeypatch, layout):
    """Byte for byte, on one to three threads: planes as they lie, turned over and staged, several filters and wide windows."""
    allocate, bytes_of = memory.empty, []

    def empty(shape, dtype):
        array = allocate(shape, dtype)
        bytes_of.append(array.nbytes)
        return array

    monkeypatch.setattr(memory, "empty", empty)
    for p in (
        Problem("planes", 2, 33, 35, 8, 8, P=1, groups=8), Problem("turned", 3, 14, 14, 40, 40, 5, P=2, groups=40),
        Problem("staged", 2, 90, 85, 5, 10, 3, S=3, P=1, groups=5), Problem("two widths", 2, 9, 40, 32, 32, (1, 11), groups=32),
        Problem("copied", 2, 9, 8, 512, 512, P=1, groups=512), Problem("filters", 2, 12, 13, 20, 60, 3, S=2, P=1, groups=20),
        Problem("no pictures", 0, 9, 9, 8, 8, groups=8), *[Problem("pairs", 2, 9, 7, 34, 34, groups=17)] * (layout == "NHWC"),
    ):  # fmt: skip
        x, w, b, dy = p.arrays(layout)
        how = {"layout": layout, "method": "direct", **p.how}
        out = [np.empty_like(a) for a in (dy, x, w)]
        for threads in (1, 2, 3):
            with fc.num_threads(threads):
                for i, (direction, call) in enumerate([
                    ("fwd", functools.partial(fc.conv2d, x, w, b)), ("grad_x", functools.partial(fc.conv2d_grad_x, dy, w, x.shape)),
                    ("grad_w", functools.partial(fc.conv2d_grad_w, dy, x, w.shape)),
                ]):  # fmt: skip
                    plan = fc.explain(x.shape, w.shape, direction=direction, **how)
                    bytes_of.clear()
                    call(out=out[i], **how)
                    assert sum(bytes_of) == plan.workspace_bytes, f"{p} {direction} on {threads} threads"


def test_explain_tells_which_arrays_would_be_copied():
    x = np.ones((2, 14, 7, 3), np.float32)
    assert fc.explain(x, W).copies == ()
    assert fc.explain(x[:, ::2], W.transpose(1, 0, 2, 3)).copies == ("x", "w")
    assert "copies: x" in str(fc.explain(x[:, ::2], W))
