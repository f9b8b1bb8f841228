"""Every check: what passes comes back in plain form, what does not gets the message in full."""

import re

import numpy as np
import pytest

from fastconv import checks


def test_message_names_function_rule_expected_and_got():
    what = "w has depth 4 but x has depth 3 (groups=1)"
    assert checks.message("conv2d", what, "w of shape (5, 5, 3, 10)", (5, 5, 4, 10)) == (
        "conv2d: w has depth 4 but x has depth 3 (groups=1); expected w of shape (5, 5, 3, 10), got (5, 5, 4, 10)"
    )
    assert checks.message("f", "no") == "f: no"
    assert checks.message("f", "no", got=0) == "f: no; got 0"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "=f4", np.dtype("f8", metadata={"a": 1})])
def test_array_accepts_any_strides_of_both_dtypes(dtype):
    a = np.zeros((4, 6), dtype)
    for b in (a, a[::2, ::-1], a.T):
        assert checks.array("f", "x", b, 2) is b


def test_array_accepts_a_memory_map(tmp_path):
    a = np.memmap(tmp_path / "a", np.float32, "w+", shape=(2, 3))
    assert checks.array("f", "x", a, 2) is a


@pytest.mark.parametrize("a", [[1.0], (1.0,), 1.0, None, np.float32(1), np.ma.masked_array([1.0], [True])])
def test_array_refuses_what_is_no_array(a):
    text = f"f: x must be a NumPy array; expected numpy.ndarray, got {type(a).__name__}"
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        checks.array("f", "x", a)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("f2", "float16"), ("i4", "int32"), ("?", "bool"), ("c8", "complex64"), ("O", "object"), ("U3", "str96"),
     (np.dtype("f4").newbyteorder(), "float32 in the other byte order")],
)
def test_array_refuses_other_dtypes(dtype, name):
    with pytest.raises(TypeError, match=rf"^f: x has the wrong dtype; expected float32 or float64, got {name}$"):
        checks.array("f", "x", np.zeros(2, dtype))


def test_array_refuses_other_ranks():
    with pytest.raises(ValueError, match=r"^f: x must have 4 axes; expected 4 axes, got 2, shape \(2, 3\)$"):
        checks.array("f", "x", np.zeros((2, 3)), 4)


def test_same_dtype():
    a, b = np.zeros(2, np.float32), np.zeros(2)
    assert checks.same_dtype("f", ("x", a), ("w", a)) == np.float32
    with pytest.raises(TypeError, match=r"^f: w is float64 but x is float32, .*; expected w as float32, got float64$"):
        checks.same_dtype("f", ("x", a), ("w", b))


def test_shape():
    checks.shape("f", "b", np.zeros((2, 3)), (2, 3))
    with pytest.raises(ValueError, match=r"^f: b has the wrong shape; expected b of shape \(3,\), got \(2, 3\)$"):
        checks.shape("f", "b", np.zeros((2, 3)), (3,))


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_count_returns_an_int(value):
    n = checks.count("f", "K", value)
    assert n == 3
    assert type(n) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, np.float64(3), [3], np.array(3), np.array([3])])
def test_count_refuses_other_types(value):
    with pytest.raises(TypeError, match=r"^f: K must be an int; expected an int, got "):
        checks.count("f", "K", value)


@pytest.mark.parametrize("value", [0, -1, 6, 10**30, np.int64(0)])
def test_count_refuses_what_is_out_of_range(value):
    text = f"f: K is out of range; expected an int of at least 1 and at most 5, got {value}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        checks.count("f", "K", value, 1, 5)
    assert (checks.count("f", "K", 1, 1, 5), checks.count("f", "K", 5, 1, 5)) == (1, 5)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)])
def test_number_returns_a_float(value):
    x = checks.number("f", "lr", value, 0)
    assert x == 0.5
    assert type(x) is float
    assert checks.number("f", "lr", 0, 0, 1, open_high=True) == 0
    assert checks.number("f", "lr", 1, 0, 1) == 1


@pytest.mark.parametrize("value", [True, "0.5", None, 1j, [0.5], np.array(0.5)])
def test_number_refuses_other_types(value):
    with pytest.raises(TypeError, match=r"^f: lr must be a number; expected a real number, got "):
        checks.number("f", "lr", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e-9, 1.0, 10**400, np.float32("nan")])
def test_number_refuses_what_is_out_of_range(value):
    with pytest.raises(ValueError, match=r"^Adam: rho is out of range; expected a finite number in \[0, 1\), got "):
        checks.number("Adam", "rho", value, 0, 1, open_high=True)


def test_choice():
    assert checks.choice("f", "layout", "NHWC", ("NHWC", "NCHW")) == "NHWC"
    with pytest.raises(ValueError, match=r"^f: layout has no such choice; expected one of 'NHWC', 'NCHW', got 'nhwc'$"):
        checks.choice("f", "layout", "nhwc", ("NHWC", "NCHW"))
    with pytest.raises(TypeError, match=r"got 3$"):
        checks.choice("f", "layout", 3, ("NHWC", "NCHW"))


def test_flag():
    assert checks.flag("f", "bias", np.True_) is True
    with pytest.raises(TypeError, match=r"^f: bias must be True or False; expected a bool, got 1 \(int\)$"):
        checks.flag("f", "bias", 1)


def test_out_accepts_any_strides_that_give_each_cell_a_place():
    a = np.zeros((4, 6), np.float32)
    x = np.zeros(5, np.float32)
    for b in (a, a.T, a[::2, ::-3], a[:0], a[:, :1], np.broadcast_to(a[:1], (1, 6)).copy()):
        assert checks.out("f", b, b.shape, np.dtype(np.float32), ("x", x), ("b", None)) is b


def test_out_may_lie_between_the_cells_of_an_input():
    a = np.zeros((4, 6))
    assert checks.out("f", a[:, ::2], (4, 3), a.dtype, ("x", a[:, 1::2])).base is a


def _read_only():
    a = np.zeros((2, 3))
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        ([[0.0] * 3] * 2, TypeError, "f: out must be a NumPy array; expected numpy.ndarray, got list"),
        (np.zeros((2, 3), np.float32), TypeError, "f: out has the wrong dtype; expected float64, got float32"),
        (np.zeros((3, 2)), ValueError, "f: out has the wrong shape; expected out of shape (2, 3), got (3, 2)"),
        (_read_only(), ValueError, "f: out is read-only; expected a writable array"),
        (np.lib.stride_tricks.as_strided(np.zeros(3), (2, 3), (0, 8)), ValueError,
         "f: cells of out share memory with one another; expected a place for each cell, got (0, 8)"),
        (np.lib.stride_tricks.as_strided(np.zeros(4), (2, 3), (8, 8)), ValueError,
         "f: cells of out share memory with one another; expected a place for each cell, got (8, 8)"),
    ],
)
def test_out_refuses(out, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        checks.out("f", out, (2, 3), np.dtype(np.float64))


def test_out_refuses_to_share_memory_with_an_input():
    a = np.zeros(12)
    with pytest.raises(ValueError, match=r"^f: out shares memory with w; expected out apart from every input$"):
        checks.out("f", a[:6].reshape(2, 3), (2, 3), a.dtype, ("x", np.zeros(3)), ("w", a[5:9]))
