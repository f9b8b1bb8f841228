"""The public functions of convolution: check, plan, allocate, call.

Every argument is checked before anything is written. What depends on shapes alone is checked and planned once and kept.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from fastconv import checks, geometry, runtime
from fastconv._kernels import memory
from fastconv.costs import Problem
from fastconv.geometry import Padding, Size
from fastconv.planning import DIRECTIONS, Plan, columns, plan

Array = np.ndarray
Shape = tuple[int, ...]

LAYOUTS = ("NHWC", "NCHW")
METHODS = ("auto", "direct", "im2col", "winograd")
_MOST = 1 << 56  # numbers in an array: their bytes, in the widest tile, stay countable


# ---------------------------------------------------------------- what depends on shapes alone
def _exact(options: tuple) -> bool:
    """Whether all are ints, names and pairs of ints, as they mostly are."""
    for value in options:
        kind = type(value)
        pair = kind is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int
        if not (kind is int or kind is str or pair):
            return False
    return True


def _plain(where: str, name: str, value: Any) -> Any:
    """An option as plain ints, tuples and names: True, which equals 1, must not find a plan for 1."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(where, name, v) for v in value)
    return checks.count(where, name, value, 0)


def _filters(where: str, w_shape: Shape, layout: str) -> tuple[int, int, int, int]:
    """(F_h, F_w, D1//groups, K) of weights in either layout."""
    Fh, Fw, D, K = w_shape if layout == "NHWC" else (*w_shape[2:], w_shape[1], w_shape[0])
    if min(Fh, Fw) < 1:
        raise checks.value_error(where, "w has an empty window", "F of at least 1 x 1", f"w of shape {w_shape}")
    return Fh, Fw, D, K


def _volume(shape: Shape, layout: str) -> tuple[int, int, int, int]:
    """(N, H1, W1, D1) of a volume in either layout."""
    return shape if layout == "NHWC" else (shape[0], *shape[2:], shape[1])  # type: ignore[return-value]


def _arrange(N: int, size: tuple[int, int], D: int, layout: str) -> Shape:
    return (N, *size, D) if layout == "NHWC" else (N, D, *size)


def _countable(where: str, *shapes: Shape) -> None:
    """No array of these shapes has so many numbers that the arithmetic of its bytes would wrap."""
    for shape in shapes:
        if math.prod(shape) > _MOST:
            raise MemoryError(f"{where}: no memory for an array of shape {shape}")


def _match_depths(where: str, D1: int, w_shape: Shape, layout: str, groups: int) -> None:
    """The weights' depth times groups is the volume's, and groups divide the filters."""
    Fh, Fw, D, K = _filters(where, w_shape, layout)
    if K % groups:
        raise geometry.GeometryError(
            checks.message(where, f"groups={groups} does not divide the {K} filters of w", "a divisor", groups)
        )
    if D * groups != D1:
        if D1 % groups:
            raise geometry.GeometryError(
                checks.message(where, f"groups={groups} does not divide the depth {D1} of x", "a divisor", groups)
            )
        right = (Fh, Fw, D1 // groups, K) if layout == "NHWC" else (K, D1 // groups, Fh, Fw)
        what = f"w has depth {D} but x has depth {D1} (groups={groups})"
        raise checks.value_error(where, what, f"w of shape {right}", w_shape)


@functools.lru_cache(maxsize=4096)
def _prepare(
    where: str, direction: str, x_shape: Shape, w_shape: Shape, S: Size, P: Padding, dilation: Size, groups: int,
    layout: str, method: str, dtype: str, isa: str, precision: str,
) -> tuple[Plan, Shape]:  # fmt: skip
    """Check all that shapes and options say; return the plan and the shape of y."""
    checks.choice(where, "layout", layout, LAYOUTS)
    checks.choice(where, "method", method, METHODS)
    groups = checks.count(where, "groups", groups)
    N, H1, W1, D1 = _volume(x_shape, layout)
    _match_depths(where, D1, w_shape, layout, groups)
    Fh, Fw, _, K = _filters(where, w_shape, layout)
    window = geometry.window(where, H1, W1, (Fh, Fw), S, P, dilation)
    y_shape = _arrange(N, window.size, K, layout)
    _countable(where, x_shape, w_shape, y_shape)
    problem = Problem(direction, N, H1, W1, D1, K, window, groups, layout == "NCHW", dtype)
    return plan(where, problem, method, isa, precision), y_shape


OPTIONS = ("S", "P", "dilation", "groups", "layout", "method")


def _prepared(where: str, direction: str, x_shape: Shape, w_shape: Shape, dtype: np.dtype, options: tuple) -> tuple[Plan, Shape]:
    """`_prepare` with the settings in force, for the values of `OPTIONS`."""
    if not _exact(options):
        options = tuple([_plain(where, name, value) for name, value in zip(OPTIONS, options, strict=True)])
    return _prepare(
        where, direction, x_shape, w_shape, *options, dtype.char, runtime.isa(), runtime.get_precision()
    )


# ---------------------------------------------------------------- what depends on the arrays
def _given_shape(where: str, name: str, shape: Any) -> Shape:
    """A shape that the caller wrote down: four counts."""
    if not isinstance(shape, (tuple, list)):
        raise checks.type_error(where, f"{name} must be a shape", "a tuple of four ints", type(shape).__name__)
    if len(shape) != 4:
        raise checks.value_error(where, f"{name} must have four entries", "a tuple of four ints", shape)
    if type(shape) is tuple and tuple(map(type, shape)) == (int, int, int, int) and min(shape) >= 0:
        return shape
    return tuple(checks.count(where, f"{name}[{i}]", n, 0) for i, n in enumerate(shape))


def _dense(a: Array) -> Array:
    """The array itself if it is C-contiguous and aligned, else a copy that is."""
    flags = a.flags
    return a if flags.c_contiguous and flags.aligned else np.array(a, order="C")


def _bias(where: str, b: Any, K: int, x: Array) -> Array | None:
    if b is None:
        return None
    if type(b) is not np.ndarray or b.dtype is not x.dtype or b.shape != (K,):
        checks.same_dtype(where, ("x", x), ("b", checks.array(where, "b", b, 1)))
        checks.shape(where, "b", b, (K,), f"has {len(b)} biases for {K} filters")
    return _dense(b)


def _result(where: str, out: Array | None, shape: Shape, dtype: np.dtype, *inputs: tuple[str, Array | None]) -> tuple[Array, Array]:
    """(what the caller gets, what the kernel writes): the same array where `out` is plain memory."""
    if out is None:
        made = memory.empty(shape, dtype)
        return made, made
    checks.out(where, out, shape, dtype, *inputs)
    if out.flags.c_contiguous and out.flags.aligned:
        return out, out
    return out, memory.empty(shape, dtype)


def _finish(out: Array, written: Array) -> Array:
    if written is not out:
        out[...] = written
    return out


def conv2d(
    x: Array, w: Array, b: Array | None = None, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, groups: int = 1,
    layout: str = "NHWC", method: str = "auto", activation: str | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """Cross-correlation, as in the lecture and in every framework: w'x + b at every place of the window.

    Parameters
    ----------
    x : ndarray of shape (N, H1, W1, D1), or (N, D1, H1, W1) in layout "NCHW"
        float32 or float64, any strides; what is not C-contiguous costs a copy.
    w : ndarray of shape (F, F, D1 // groups, K), or (K, D1 // groups, F, F) in layout "NCHW"
        The filters; the window need not be square.
    b : ndarray of shape (K,), optional
        A bias for each filter.
    S : int or (height, width)
        Stride.
    P : int, (height, width), ((top, bottom), (left, right)), "same" or "valid"
        Zero padding. "same" keeps the size at S=1; an even F has the odd cell at the bottom and right.
    dilation : int or (height, width)
        Distance between the taps of a filter.
    groups : int
        Depth and filters fall into so many groups that do not see each other.
    layout : {"NHWC", "NCHW"}
        Order of the axes; both are computed as they lie.
    method : {"auto", "direct", "im2col", "winograd"}
        "direct" and "im2col" are exact to rounding; `explain` tells what "auto" takes.
    activation : {None, "relu"}
        Applied to the result before it is written.
    out : ndarray, optional
        Where to write the result: its shape and dtype, no memory shared with the inputs.

    Returns
    -------
    y : ndarray of shape (N, H2, W2, K), or (N, K, H2, W2)
        With H2 = floor((H1 - dilation*(F - 1) - 1 + 2P)/S) + 1, and W2 likewise.

    Raises
    ------
    ValueError
        If shapes or values do not fit (`GeometryError` where the arithmetic says no).
    TypeError
        If an argument has the wrong type, or the arrays more than one dtype.

    Notes
    -----
    y[n,i,j,k] = b[k] + sum over r,s,c of x[n, i*S + r*dilation - P, j*S + s*dilation - P, c] * w[r,s,c,k].
    A pixel's bits depend neither on the threads nor on the other pictures of the batch.

    Examples
    --------
    Ten 5x5 filters over a 32x32x3 volume, as in the lecture:

    >>> import numpy as np, fastconv as fc
    >>> x = np.ones((1, 32, 32, 3), np.float32)
    >>> w = np.ones((5, 5, 3, 10), np.float32)
    >>> y = fc.conv2d(x, w, P=2)
    >>> y.shape, float(y[0, 16, 16, 0]), float(y[0, 0, 0, 0])
    ((1, 32, 32, 10), 75.0, 27.0)
    """
    checks.arrays("conv2d", 4, ("x", x), ("w", w))
    if activation is not None:
        checks.choice("conv2d", "activation", activation, ("relu",))
    how, shape = _prepared("conv2d", "fwd", x.shape, w.shape, x.dtype, (S, P, dilation, groups, layout, method))
    bias = _bias("conv2d", b, w.shape[3 if layout == "NHWC" else 0], x)
    y, written = _result("conv2d", out, shape, x.dtype, ("x", x), ("w", w), ("b", b))
    if written.size:
        how.job.run(_dense(x), _dense(w), bias, written, activation is not None, runtime.get_num_threads())
    return _finish(y, written)


def conv2d_grad_x(
    dy: Array, w: Array, x_shape: Shape, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, groups: int = 1,
    layout: str = "NHWC", method: str = "auto", out: Array | None = None,
) -> Array:  # fmt: skip
    """Gradient by x of ``sum(dy * conv2d(x, w))``, the adjoint of `conv2d` in x.

    Parameters
    ----------
    dy : ndarray of shape (N, H2, W2, K), or (N, K, H2, W2) in layout "NCHW"
    w : ndarray of shape (F, F, D1 // groups, K), or (K, D1 // groups, F, F)
    x_shape : tuple of int
        Shape of x, which a stride that drops pixels leaves open.
    S, P, dilation, groups, layout, method, out
        As in `conv2d`.

    Returns
    -------
    dx : ndarray of shape x_shape

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Notes
    -----
    A stride above 1 makes S*S small convolutions of stride 1, one for each phase of dx: no product with zeros.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> w = np.ones((3, 3, 1, 1), np.float32)
    >>> dx = fc.conv2d_grad_x(np.ones((1, 3, 3, 1), np.float32), w, (1, 7, 7, 1), S=2)
    >>> dx[0, :, :, 0].astype(int)[:3]
    array([[1, 1, 2, 1, 2, 1, 1],
           [1, 1, 2, 1, 2, 1, 1],
           [2, 2, 4, 2, 4, 2, 2]])
    """
    checks.arrays("conv2d_grad_x", 4, ("dy", dy), ("w", w))
    x_shape = _given_shape("conv2d_grad_x", "x_shape", x_shape)
    options = (S, P, dilation, groups, layout, method)
    how, shape = _prepared("conv2d_grad_x", "grad_x", x_shape, w.shape, dy.dtype, options)
    checks.shape("conv2d_grad_x", "dy", dy, shape, "is not the shape of conv2d's result")
    dx, written = _result("conv2d_grad_x", out, x_shape, dy.dtype, ("dy", dy), ("w", w))
    if written.size:
        how.job.run(_dense(dy), _dense(w), None, written, False, runtime.get_num_threads())
    return _finish(dx, written)


def conv2d_grad_w(
    dy: Array, x: Array, w_shape: Shape, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, groups: int = 1,
    layout: str = "NHWC", method: str = "auto", out: Array | None = None,
) -> Array:  # fmt: skip
    """Gradient by w of ``sum(dy * conv2d(x, w))``, the adjoint of `conv2d` in w.

    Parameters
    ----------
    dy : ndarray of shape (N, H2, W2, K), or (N, K, H2, W2) in layout "NCHW"
    x : ndarray of shape (N, H1, W1, D1), or (N, D1, H1, W1)
    w_shape : tuple of int
        (F, F, D1 // groups, K), or (K, D1 // groups, F, F).
    S, P, dilation, groups, layout, method, out
        As in `conv2d`.

    Returns
    -------
    dw : ndarray of shape w_shape

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> x, dy = np.ones((2, 5, 5, 1), np.float32), np.ones((2, 5, 5, 1), np.float32)
    >>> fc.conv2d_grad_w(dy, x, (3, 3, 1, 1), P=1)[:, :, 0, 0].astype(int)
    array([[32, 40, 32],
           [40, 50, 40],
           [32, 40, 32]])
    """
    checks.arrays("conv2d_grad_w", 4, ("dy", dy), ("x", x))
    w_shape = _given_shape("conv2d_grad_w", "w_shape", w_shape)
    options = (S, P, dilation, groups, layout, method)
    how, shape = _prepared("conv2d_grad_w", "grad_w", x.shape, w_shape, x.dtype, options)
    checks.shape("conv2d_grad_w", "dy", dy, shape, "is not the shape of conv2d's result")
    dw, written = _result("conv2d_grad_w", out, w_shape, x.dtype, ("dy", dy), ("x", x))
    if written.size and dy.size:
        how.job.run(_dense(dy), _dense(x), None, written, False, runtime.get_num_threads())
    else:
        written[...] = 0
    return _finish(dw, written)


def conv2d_backward(
    dy: Array, x: Array, w: Array, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, groups: int = 1,
    layout: str = "NHWC", method: str = "auto", needs: tuple[str, ...] = ("x", "w", "b"),
) -> tuple[Array | None, Array | None, Array | None]:  # fmt: skip
    """All gradients of ``sum(dy * conv2d(x, w, b))`` that are needed: (dx, dw, db).

    Parameters
    ----------
    dy, x, w : ndarray
        As in `conv2d_grad_x` and `conv2d_grad_w`.
    S, P, dilation, groups, layout, method
        As in `conv2d`.
    needs : sequence of "x", "w" and "b"
        What is not in it comes back as None and costs nothing.

    Returns
    -------
    dx, dw, db : ndarray or None
        Of the shapes of x, of w and (K,).

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> x, w = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 5), np.float32)
    >>> dx, dw, db = fc.conv2d_backward(fc.conv2d(x, w), x, w, needs=("w", "b"))
    >>> dx is None, dw.shape, db.shape
    (True, (3, 3, 2, 5), (5,))
    """
    where = "conv2d_backward"
    if not isinstance(needs, (tuple, list, set, frozenset)) or not all(isinstance(n, str) for n in needs):
        raise checks.type_error(where, "needs must be a sequence of names", '("x", "w", "b") or fewer', repr(needs))
    for name in needs:
        checks.choice(where, "needs", name, ("x", "w", "b"))
    checks.arrays(where, 4, ("dy", dy), ("x", x), ("w", w))
    options = (S, P, dilation, groups, layout, method)
    _, shape = _prepared(where, "grad_w", x.shape, w.shape, x.dtype, options)
    checks.shape(where, "dy", dy, shape, "is not the shape of conv2d's result")
    given = {"S": S, "P": P, "dilation": dilation, "groups": groups, "layout": layout, "method": method}
    dy = _dense(dy)
    dx = conv2d_grad_x(dy, w, x.shape, **given) if "x" in needs else None  # type: ignore[arg-type]
    dw = conv2d_grad_w(dy, x, w.shape, **given) if "w" in needs else None  # type: ignore[arg-type]
    return dx, dw, bias_gradient(dy, layout) if "b" in needs else None


def bias_gradient(dy: Array, layout: str = "NHWC") -> Array:
    """Sum of dy over pictures and pixels, (K,); added in float64."""
    axes = (0, 1, 2) if layout == "NHWC" else (0, 2, 3)
    return dy.sum(axis=axes, dtype=np.float64).astype(dy.dtype)


def conv_transpose2d(
    x: Array, w: Array, b: Array | None = None, *, S: Size = 1, P: Padding = 0, output_padding: Size = 0,
    dilation: Size = 1, groups: int = 1, layout: str = "NHWC",
) -> Array:  # fmt: skip
    """Transposed convolution: the gradient by its picture of the convolution with the same w, as a layer of its own.

    Parameters
    ----------
    x : ndarray of shape (N, H1, W1, D1), or (N, D1, H1, W1) in layout "NCHW"
    w : ndarray of shape (F, F, K // groups, D1), or (D1, K // groups, F, F)
        The weights of the convolution whose `conv2d_grad_x` this is, from depth K to depth D1 (PyTorch's convention).
    b : ndarray of shape (K,), optional
    S, P, dilation, groups, layout
        Those of that convolution.
    output_padding : int or (height, width)
        From 0 to S - 1: which of the S sizes that the convolution maps to H1 x W1 is meant.

    Returns
    -------
    y : ndarray of shape (N, H2, W2, K), or (N, K, H2, W2)
        With H2 = (H1 - 1)*S - 2P + dilation*(F - 1) + output_padding + 1, and W2 likewise.

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> y = fc.conv_transpose2d(np.ones((1, 2, 2, 3), np.float32), np.ones((2, 2, 8, 3), np.float32), S=2)
    >>> y.shape, float(y[0, 0, 0, 0])
    ((1, 4, 4, 8), 3.0)
    """
    where = "conv_transpose2d"
    checks.arrays(where, 4, ("x", x), ("w", w))
    checks.choice(where, "layout", layout, LAYOUTS)
    groups = checks.count(where, "groups", groups)
    N, H1, W1, D1 = _volume(x.shape, layout)
    Fh, Fw, k, D = _filters(where, w.shape, layout)
    if D != D1 or D1 % groups:
        rule = f"w is for depth {D} and x has depth {D1}" if D != D1 else f"groups={groups} does not divide the depth {D1}"
        raise checks.value_error(where, rule, f"a w for depth {D1} and groups that divide it", w.shape)
    size = geometry.transposed(where, H1, W1, (Fh, Fw), S, P, output_padding, dilation).size
    y_shape = _arrange(N, size, k * groups, layout)
    bias = _bias(where, b, k * groups, x)
    y = memory.empty(y_shape, x.dtype)
    how, _ = _prepared(where, "grad_x", y_shape, w.shape, x.dtype, (S, P, dilation, groups, layout, "auto"))
    if y.size:
        how.job.run(_dense(x), _dense(w), bias, y, False, runtime.get_num_threads())
    return y


def explain(
    x_shape: Shape | Array, w_shape: Shape | Array, *, direction: str = "fwd", S: Size = 1, P: Padding = 0, dilation: Size = 1,
    groups: int = 1, layout: str = "NHWC", method: str = "auto", dtype: str = "float32",
) -> Plan:  # fmt: skip
    """Say how a call would be done, and why.

    Parameters
    ----------
    x_shape, w_shape : tuple of int, or ndarray
        Shapes of x and w, or arrays: then `copies` tells which of them would be copied first. Every direction has the
        shapes of its forward convolution.
    direction : {"fwd", "grad_x", "grad_w"}
    S, P, dilation, groups, layout, method
        As in `conv2d`.
    dtype : {"float32", "float64"}

    Returns
    -------
    Plan
        With ``.method .isa .threads .flops .workspace_bytes .copies .reason`` and a readable ``str()``.

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.explain((8, 56, 56, 64), (1, 1, 64, 64)).method
    'direct'
    """
    checks.choice("explain", "direction", direction, DIRECTIONS)
    given = {"x": x_shape, "w": w_shape}
    copies = tuple(name for name, a in given.items() if isinstance(a, np.ndarray) and _dense(a) is not a)
    x_shape, w_shape = (a.shape if isinstance(a, np.ndarray) else a for a in (x_shape, w_shape))
    kind = np.dtype(checks.choice("explain", "dtype", dtype, ("float32", "float64")))
    x_shape, w_shape = _given_shape("explain", "x_shape", x_shape), _given_shape("explain", "w_shape", w_shape)
    how, _ = _prepared("explain", direction, x_shape, w_shape, kind, (S, P, dilation, groups, layout, method))
    return dataclasses.replace(how, copies=copies)


def _columns(
    where: str, x_shape: Shape, F: Size, S: Size, P: Padding, dilation: Size, layout: str, dtype: np.dtype
) -> tuple[Any, Shape, Shape]:
    """What im2col walks over, the shape of its result as the kernel writes it, and that of the matrix."""
    checks.choice(where, "layout", layout, LAYOUTS)
    N, H1, W1, D1 = _volume(x_shape, layout)
    window = geometry.window(where, H1, W1, F, S, P, dilation)
    _countable(where, x_shape, (N, *window.size, math.prod(window.F), D1))
    problem = Problem("im2col", N, H1, W1, D1, 1, window, 1, layout == "NCHW", dtype.char)
    taps = math.prod(window.F)
    written = (N, *window.size, taps * D1) if layout == "NHWC" else (N, D1 * taps, *window.size)
    return columns(problem), written, (N * math.prod(window.size), taps * D1)


def im2col(x: Array, F: Size, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, layout: str = "NHWC") -> Array:
    """Every window of the pictures as a row of a matrix, so that convolution is a product with it.

    Parameters
    ----------
    x : ndarray of shape (N, H1, W1, D1), or (N, D1, H1, W1) in layout "NCHW"
    F : int or (height, width)
        The window.
    S, P, dilation, layout
        As in `conv2d`.

    Returns
    -------
    cols : ndarray of shape (N*H2*W2, F*F*D1)
        The columns lie as the weights do: (F, F, D1) in layout "NHWC", (D1, F, F) in "NCHW".

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.im2col(np.arange(9.0).reshape(1, 3, 3, 1), 2).astype(int)
    array([[0, 1, 3, 4],
           [1, 2, 4, 5],
           [3, 4, 6, 7],
           [4, 5, 7, 8]])
    """
    checks.array("im2col", "x", x, 4)
    walk, written, shape = _columns("im2col", x.shape, F, S, P, dilation, layout, x.dtype)
    cols = memory.empty(written, x.dtype)
    if cols.size:
        walk.im2col(_dense(x), cols, runtime.get_num_threads())
    return cols.reshape(shape) if layout == "NHWC" else cols.transpose(0, 2, 3, 1).reshape(shape)


def col2im(
    cols: Array, x_shape: Shape, F: Size, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, layout: str = "NHWC"
) -> Array:
    """The adjoint of `im2col`: every row is added back to where its window lay.

    Parameters
    ----------
    cols : ndarray of shape (N*H2*W2, F*F*D1)
    x_shape : tuple of int
        Shape of the pictures.
    F, S, P, dilation, layout
        As in `im2col`.

    Returns
    -------
    x : ndarray of shape x_shape

    Raises
    ------
    ValueError, TypeError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.col2im(np.ones((4, 4)), (1, 3, 3, 1), 2)[0, :, :, 0].astype(int)
    array([[1, 2, 1],
           [2, 4, 2],
           [1, 2, 1]])
    """
    checks.array("col2im", "cols", cols, 2)
    x_shape = _given_shape("col2im", "x_shape", x_shape)
    walk, written, shape = _columns("col2im", x_shape, F, S, P, dilation, layout, cols.dtype)
    checks.shape("col2im", "cols", cols, shape, "is not the shape of im2col's result")
    x = memory.empty(x_shape, cols.dtype)
    if not cols.size:
        x[...] = 0
        return x
    if layout == "NCHW":
        N, depth, H2, W2 = written
        cols = cols.reshape(N, H2, W2, depth).transpose(0, 3, 1, 2)
    walk.col2im(_dense(cols), x, None, runtime.get_num_threads())
    return x
