"""The public functions of pooling: check, allocate, call."""

from typing import Any

import numpy as np

from fastconv import checks, geometry, runtime
from fastconv._kernels import kernel, memory
from fastconv.geometry import Padding, Size, Window

__all__ = ["avg_pool2d", "avg_pool2d_grad", "max_pool2d", "max_pool2d_grad"]

Array = np.ndarray
Shape = tuple[int, ...]
INT64 = np.dtype(np.int64)


def _lay(where: str, x_shape: Shape, F: Size, S: Size | None, P: Padding, layout: str) -> tuple[Shape, Window]:
    """Shape of y, and the window laid over x."""
    nchw = checks.choice(where, "layout", layout, ("NHWC", "NCHW")) == "NCHW"
    N, a, b, c = x_shape
    H1, W1, D1 = (b, c, a) if nchw else (a, b, c)
    w = geometry.window(where, H1, W1, F, F if S is None else S, P)
    if min(w.F[0], H1) * (W1 + w.F[1]) >= geometry.MAX:  # the kernel counts the cells under a window in 32 bits
        raise geometry.GeometryError(checks.message(where, "a window meets too many cells", "less than 2^31"))
    return ((N, D1, *w.size) if nchw else (N, *w.size, D1)), w


def _volume(where: str, name: str, a: Any) -> Array:
    return np.ascontiguousarray(checks.array(where, name, a, 4))


def _shape_of(where: str, x_shape: Any) -> Shape:
    """A shape given by the caller, as four counts; the batch may be empty."""
    if not isinstance(x_shape, (tuple, list)):
        raise checks.type_error(where, "x_shape must be a tuple", "four ints", type(x_shape).__name__)
    if len(x_shape) != 4:
        raise checks.value_error(where, f"x_shape has {len(x_shape)} entries", "four", x_shape)
    return tuple(checks.count(where, "x_shape", n, minimum=0) for n in x_shape)


def _arguments(w: Window) -> tuple[int, ...]:
    return (*w.F, *w.S, w.pads[0][0], w.pads[1][0])


def max_pool2d(
    x: Array, F: Size, *, S: Size | None = None, P: Padding = 0, layout: str = "NHWC", return_index: bool = True
) -> Any:
    """Largest cell of each window, and where it lies.

    Parameters
    ----------
    x : ndarray, (N, H1, W1, D1)
        float32 or float64; with ``layout="NCHW"`` (N, D1, H1, W1). What is not C-contiguous is copied.
    F : int or (height, width)
        Size of the window.
    S : int, (height, width) or None
        Stride; None takes F, so that the windows tile the picture. A last partial window is dropped.
    P : int, (height, width), ((top, bottom), (left, right)), "same" or "valid"
        Padding; it may be larger than the window. Padded cells never win.
    layout : {"NHWC", "NCHW"}
    return_index : bool
        False leaves the index out, which is faster.

    Returns
    -------
    y : ndarray, (N, H2, W2, D1)
        Of x's dtype and layout. The first of equals wins, the last NaN over everything; a window that lies wholly
        in the padding gives -inf.
    index : ndarray of int64, y's shape
        ``h*W1 + w`` of the winner in its own picture, -1 in a window without a real cell. `max_pool2d_grad` takes it.

    Raises
    ------
    TypeError
        If x is no NumPy array of float32 or float64, or an option has the wrong type.
    ValueError
        If an option has a wrong value; `GeometryError` if the window does not fit.

    Examples
    --------
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    >>> y, index = max_pool2d(x, 2)
    >>> y.ravel().tolist(), index.ravel().tolist()
    ([5.0, 7.0, 13.0, 15.0], [5, 7, 13, 15])
    """
    where = "max_pool2d"
    checks.array(where, "x", x, 4)
    return_index = checks.flag(where, "return_index", return_index)
    shape, w = _lay(where, x.shape, F, S, P, layout)
    y = memory.empty(shape, x.dtype)
    index = memory.empty(shape, INT64) if return_index else None
    kernel("pool").maximum(
        np.ascontiguousarray(x), y, index, *_arguments(w), layout == "NCHW", runtime.get_num_threads()
    )
    return (y, index) if return_index else y


def max_pool2d_grad(dy: Array, index: Array, x_shape: Shape, *, layout: str = "NHWC") -> Array:
    """Gradient of ``sum(dy*max_pool2d(x))`` by x: each cell of dy is added to the cell that won its window.

    Parameters
    ----------
    dy : ndarray, (N, H2, W2, D1)
        float32 or float64, with ``layout="NCHW"`` (N, D1, H2, W2).
    index : ndarray of integers, dy's shape
        As `max_pool2d` gave it: ``h*W1 + w``, or -1, which goes nowhere.
    x_shape : tuple
        Shape of x.
    layout : {"NHWC", "NCHW"}

    Returns
    -------
    dx : ndarray, x_shape

    Raises
    ------
    TypeError
        If dy is no array of float32 or float64, or index none of integers.
    ValueError
        If the shapes do not go together, or index points outside of the picture.

    Examples
    --------
    >>> x = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    >>> y, index = max_pool2d(x, 2)
    >>> max_pool2d_grad(np.ones_like(y), index, x.shape).ravel().tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    where = "max_pool2d_grad"
    dy = _volume(where, "dy", dy)
    checks.ndarray(where, "index", index, 4)
    if index.dtype.kind not in "iu":
        raise checks.type_error(where, "index has the wrong dtype", "integers", index.dtype.name)
    checks.shape(where, "index", index, dy.shape, "must have the shape of dy")
    nchw = checks.choice(where, "layout", layout, ("NHWC", "NCHW")) == "NCHW"
    x_shape = _shape_of(where, x_shape)
    depth = 1 if nchw else 3
    if x_shape[0] != dy.shape[0] or x_shape[depth] != dy.shape[depth]:
        expected = f"N={dy.shape[0]} and D1={dy.shape[depth]} as in dy of shape {dy.shape}"
        raise checks.value_error(where, "x_shape and dy do not go together", expected, x_shape)
    dx = memory.empty(x_shape, dy.dtype)
    index = np.ascontiguousarray(index, INT64)
    wrong = kernel("pool").maximum_grad(dy, index, dx, nchw, runtime.get_num_threads())
    if wrong or (dx.size == 0 and dy.size and index.max() >= 0):
        cells = x_shape[2] * x_shape[3] if nchw else x_shape[1] * x_shape[2]
        what = "index points outside of the picture"
        raise checks.value_error(where, what, f"-1 to {cells - 1}", f"{int(index.min())} to {int(index.max())}")
    return dx


def avg_pool2d(
    x: Array, F: Size, *, S: Size | None = None, P: Padding = 0, count_include_pad: bool = True, layout: str = "NHWC"
) -> Array:
    """Mean of each window.

    Parameters
    ----------
    x, F, S, P, layout
        As for `max_pool2d`; padded cells are zeros.
    count_include_pad : bool
        Whether the mean is taken over all F*F cells, padded ones too, or over the real ones only.

    Returns
    -------
    y : ndarray, (N, H2, W2, D1)
        Of x's dtype and layout; 0 for a window that lies wholly in the padding.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d` does.

    Examples
    --------
    >>> x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    >>> avg_pool2d(x, 2).ravel().tolist()
    [2.5, 4.5, 10.5, 12.5]
    """
    where = "avg_pool2d"
    checks.array(where, "x", x, 4)
    with_pad = checks.flag(where, "count_include_pad", count_include_pad)
    shape, w = _lay(where, x.shape, F, S, P, layout)
    y = memory.empty(shape, x.dtype)
    kernel("pool").mean(
        np.ascontiguousarray(x), y, *_arguments(w), with_pad, layout == "NCHW", runtime.get_num_threads()
    )
    return y


def avg_pool2d_grad(
    dy: Array, x_shape: Shape, F: Size, *, S: Size | None = None, P: Padding = 0, count_include_pad: bool = True,
    layout: str = "NHWC",
) -> Array:  # fmt: skip
    """Gradient of ``sum(dy*avg_pool2d(x))`` by x: each cell of dy is shared out among the cells of its window.

    Parameters
    ----------
    dy : ndarray, (N, H2, W2, D1)
        float32 or float64, with ``layout="NCHW"`` (N, D1, H2, W2).
    x_shape : tuple
        Shape of x.
    F, S, P, count_include_pad, layout
        As `avg_pool2d` took them.

    Returns
    -------
    dx : ndarray, x_shape

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d` does; ValueError too if dy has not the shape of that pooling's result.

    Examples
    --------
    >>> avg_pool2d_grad(np.ones((1, 1, 1, 1), np.float32), (1, 2, 2, 1), 2).ravel().tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    where = "avg_pool2d_grad"
    dy = _volume(where, "dy", dy)
    with_pad = checks.flag(where, "count_include_pad", count_include_pad)
    x_shape = _shape_of(where, x_shape)
    shape, w = _lay(where, x_shape, F, S, P, layout)
    checks.shape(where, "dy", dy, shape, f"does not belong to x_shape {x_shape}")
    dx = memory.empty(x_shape, dy.dtype)
    kernel("pool").mean_gradient(dy, dx, *_arguments(w), with_pad, layout == "NCHW", runtime.get_num_threads())
    return dx
