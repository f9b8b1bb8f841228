"""Every operation of fastconv in plain NumPy, short enough to be read as its definition.

It is the oracle of the tests and the baseline that the benchmarks beat. Names, arguments and layouts are those of the
public functions, without ``method`` and ``out``; the arguments are trusted. Volumes are (N, H1, W1, D1) and weights
(F, F, D1//groups, K) in ``layout="NHWC"``; (N, D1, H1, W1) and (K, D1//groups, F, F) in ``layout="NCHW"``. The work is
done in the first, on views of the second.

The optimizers are functions on arrays that return the new parameters and state and change nothing. Their letters:
theta the parameters, g the gradient, v the velocity, r the accumulated squared gradient, s the first moment.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastconv.geometry import Padding, Pads, Size, Window, transposed, window

Array = np.ndarray
Shape = tuple[int, ...]


def _nhwc(x: Array, layout: str) -> Array:
    return x if layout == "NHWC" else x.transpose(0, 2, 3, 1)


def _from_nhwc(x: Array, layout: str) -> Array:
    return np.ascontiguousarray(x if layout == "NHWC" else x.transpose(0, 3, 1, 2))


def _ffdk(w: Array, layout: str) -> Array:
    return w if layout == "NHWC" else w.transpose(2, 3, 1, 0)


def _from_ffdk(w: Array, layout: str) -> Array:
    return np.ascontiguousarray(w if layout == "NHWC" else w.transpose(3, 2, 0, 1))


def _volume(shape: Sequence[int], layout: str) -> tuple[int, int, int, int]:
    N, a, b, c = shape
    return (N, a, b, c) if layout == "NHWC" else (N, b, c, a)


def _filters(shape: Sequence[int], layout: str) -> tuple[int, int, int, int]:
    a, b, c, d = shape
    return (a, b, c, d) if layout == "NHWC" else (c, d, b, a)


def _groups(D1: int, K: int, groups: int) -> Iterable[tuple[slice, slice]]:
    """Channels and filters of each group."""
    d, k = D1 // groups, K // groups
    return ((slice(g * d, g * d + d), slice(g * k, g * k + k)) for g in range(groups))


def _tap(g: Window, i: int, j: int) -> tuple[slice, slice]:
    """Cells of the padded picture that tap (i, j) of the window meets, one for each place of the window."""
    (H2, W2), (i, j) = g.size, (i * g.dilation[0], j * g.dilation[1])
    return slice(i, i + g.S[0] * (H2 - 1) + 1, g.S[0]), slice(j, j + g.S[1] * (W2 - 1) + 1, g.S[1])


def _taps(g: Window) -> Iterable[tuple[int, int]]:
    return np.ndindex(*g.F)


def _cols(x: Array, g: Window) -> Array:
    """Each window of a depth-last volume as a row: (N*H2*W2, F*F*D1)."""
    x = pad(x, g.pads)
    span = tuple(d * (f - 1) + 1 for d, f in zip(g.dilation, g.F, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=(1, 2))
    windows = windows[:, :: g.S[0], :: g.S[1], :, :: g.dilation[0], :: g.dilation[1]]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(len(x) * math.prod(g.size), math.prod(g.F) * x.shape[3])


def _picture(cols: Array, N: int, H1: int, W1: int, D1: int, g: Window) -> Array:
    """Adjoint of `_cols`: add each row back where its window lay, and cut the padding off."""
    (top, bottom), (left, right) = g.pads
    cols = cols.reshape(N, *g.size, *g.F, D1)
    x = np.zeros((N, top + H1 + bottom, left + W1 + right, D1), cols.dtype)
    for i, j in _taps(g):
        x[:, *_tap(g, i, j)] += cols[:, :, :, i, j]
    return x[:, top : top + H1, left : left + W1]


def pad(x: Array, pads: Pads, layout: str = "NHWC", value: float = 0.0) -> Array:
    """Surround each picture with ``((top, bottom), (left, right))`` cells of ``value``."""
    widths = ((0, 0), *pads, (0, 0)) if layout == "NHWC" else ((0, 0), (0, 0), *pads)
    return np.pad(x, widths, constant_values=value) if any(map(any, pads)) else x


def im2col(x: Array, F: Size, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, layout: str = "NHWC") -> Array:
    """Each window as a row: (N*H2*W2, F*F*D1), in NCHW (N*H2*W2, D1*F*F), so that the weights are its columns."""
    x = _nhwc(x, layout)
    g = window("im2col", x.shape[1], x.shape[2], F, S, P, dilation)
    cols = _cols(x, g)
    if layout == "NCHW":
        cols = cols.reshape(len(cols), math.prod(g.F), x.shape[3]).swapaxes(1, 2).reshape(cols.shape)
    return cols


def col2im(
    cols: Array, x_shape: Shape, F: Size, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, layout: str = "NHWC"
) -> Array:
    """Adjoint of `im2col`: each row is added back where its window lay."""
    N, H1, W1, D1 = _volume(x_shape, layout)
    g = window("col2im", H1, W1, F, S, P, dilation)
    if layout == "NCHW":
        cols = cols.reshape(len(cols), D1, math.prod(g.F)).swapaxes(1, 2)
    return _from_nhwc(_picture(cols, N, H1, W1, D1, g), layout)


def conv2d(
    x: Array, w: Array, b: Array | None = None, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, groups: int = 1,
    layout: str = "NHWC", activation: str | None = None,
) -> Array:
    """Cross-correlation, w'x + b at every place: im2col and a matrix product for each group."""
    x, w = _nhwc(x, layout), _ffdk(w, layout)
    g = window("conv2d", x.shape[1], x.shape[2], w.shape[:2], S, P, dilation)
    K = w.shape[3]
    y = np.empty((len(x), *g.size, K), x.dtype)
    for channels, filters in _groups(x.shape[3], K, groups):
        kernel = w[..., filters]
        product = _cols(x[..., channels], g) @ kernel.reshape(math.prod(kernel.shape[:3]), kernel.shape[3])
        y[..., filters] = product.reshape(*y.shape[:3], kernel.shape[3])
    if b is not None:
        y += b
    if activation == "relu":
        np.maximum(y, 0, out=y)
    return _from_nhwc(y, layout)


def conv2d_grad_x(
    dy: Array, w: Array, x_shape: Shape, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, groups: int = 1,
    layout: str = "NHWC",
) -> Array:
    """Gradient of ``sum(dy*conv2d(x, w))`` by x: each window's share of dy goes back to the cells it came from."""
    dy, w = _nhwc(dy, layout), _ffdk(w, layout)
    N, H1, W1, D1 = _volume(x_shape, layout)
    g = window("conv2d_grad_x", H1, W1, w.shape[:2], S, P, dilation)
    dx = np.empty((N, H1, W1, D1), dy.dtype)
    for channels, filters in _groups(D1, w.shape[3], groups):
        kernel, share = w[..., filters], dy[..., filters]
        rows = share.reshape(math.prod(share.shape[:3]), share.shape[3])
        cols = rows @ kernel.reshape(math.prod(kernel.shape[:3]), kernel.shape[3]).T
        dx[..., channels] = _picture(cols, N, H1, W1, kernel.shape[2], g)
    return _from_nhwc(dx, layout)


def conv2d_grad_w(
    dy: Array, x: Array, w_shape: Shape, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, groups: int = 1,
    layout: str = "NHWC",
) -> Array:
    """Gradient of ``sum(dy*conv2d(x, w))`` by w: each window times the dy it led to, summed over all places."""
    dy, x = _nhwc(dy, layout), _nhwc(x, layout)
    FH, FW, depth, K = _filters(w_shape, layout)
    g = window("conv2d_grad_w", x.shape[1], x.shape[2], (FH, FW), S, P, dilation)
    dw = np.empty((FH, FW, depth, K), dy.dtype)
    for channels, filters in _groups(x.shape[3], K, groups):
        share = dy[..., filters]
        rows = share.reshape(math.prod(share.shape[:3]), share.shape[3])
        dw[..., filters] = (_cols(x[..., channels], g).T @ rows).reshape(FH, FW, depth, rows.shape[1])
    return _from_ffdk(dw, layout)


def conv2d_backward(
    dy: Array, x: Array, w: Array, *, S: Size = 1, P: Padding = 0, dilation: Size = 1, groups: int = 1,
    layout: str = "NHWC", needs: Sequence[str] = ("x", "w", "b"),
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradients (dx, dw, db) that are needed; the others are None."""
    how: dict[str, Any] = dict(S=S, P=P, dilation=dilation, groups=groups, layout=layout)
    return (
        conv2d_grad_x(dy, w, x.shape, **how) if "x" in needs else None,
        conv2d_grad_w(dy, x, w.shape, **how) if "w" in needs else None,
        _nhwc(dy, layout).sum(axis=(0, 1, 2)) if "b" in needs else None,
    )


def conv_transpose2d(
    x: Array, w: Array, b: Array | None = None, *, S: Size = 1, P: Padding = 0, output_padding: Size = 0,
    dilation: Size = 1, groups: int = 1, layout: str = "NHWC",
) -> Array:
    """Gradient by x of the convolution with w, which maps y's volume to x's; b is added.

    ``w`` has that convolution's shape: NHWC (F, F, D2//groups, D1), NCHW (D1, D2//groups, F, F), as in PyTorch. The
    size is (H1 - 1)S - 2P + dilation(F - 1) + output_padding + 1.
    """
    N, H1, W1, _ = _volume(x.shape, layout)
    FH, FW, depth, _ = _filters(w.shape, layout)
    g = transposed("conv_transpose2d", H1, W1, (FH, FW), S, P, output_padding, dilation)
    D2 = depth * groups
    shape = (N, *g.size, D2) if layout == "NHWC" else (N, D2, *g.size)
    y = conv2d_grad_x(x, w, shape, S=g.S, P=g.pads, dilation=g.dilation, groups=groups, layout=layout)
    if b is not None:
        y += b if layout == "NHWC" else b[:, None, None]
    return y


def max_pool2d(
    x: Array, F: Size, *, S: Size | None = None, P: Padding = 0, layout: str = "NHWC", return_index: bool = True
) -> Any:
    """Largest cell of each window, and where it lies: ``h*W1 + w`` in its own picture, int64, in the shape of y.

    The first of equals wins, and the last NaN over everything; padding never wins. A window that lies wholly in the
    padding gives -inf and index -1.
    """
    x = _nhwc(x, layout)
    N, H1, W1, D1 = x.shape
    g = window("max_pool2d", H1, W1, F, F if S is None else S, P)
    places = pad(np.arange(H1 * W1).reshape(1, H1, W1, 1), g.pads, value=-1)
    x = pad(x, g.pads)
    y = np.full((N, *g.size, D1), -np.inf, x.dtype)
    index = np.full(y.shape, -1, np.int64)
    for i, j in _taps(g):
        cell, place = x[:, *_tap(g, i, j)], places[:, *_tap(g, i, j)]
        wins = (place >= 0) & ((cell > y) | np.isnan(cell) | (index < 0))
        y, index = np.where(wins, cell, y), np.where(wins, place, index)
    y, index = _from_nhwc(y, layout), _from_nhwc(index, layout)
    return (y, index) if return_index else y


def max_pool2d_grad(dy: Array, index: Array, x_shape: Shape, *, layout: str = "NHWC") -> Array:
    """Each cell of dy is added to the cell that won its window; index -1 goes nowhere."""
    dy, index = _nhwc(dy, layout), _nhwc(index, layout)
    N, H1, W1, D1 = _volume(x_shape, layout)
    dx = np.zeros((N, H1 * W1, D1), dy.dtype)
    picture = np.broadcast_to(np.arange(N)[:, None, None, None], dy.shape)
    channel = np.broadcast_to(np.arange(D1), dy.shape)
    real = index >= 0
    np.add.at(dx, (picture[real], index[real], channel[real]), dy[real])
    return _from_nhwc(dx.reshape(N, H1, W1, D1), layout)


def _divisor(H1: int, W1: int, g: Window, count_include_pad: bool, dtype: np.dtype) -> Array:
    """Cells that the mean of each window is taken over, (H2, W2, 1); 1 where none is real, and so the sum 0."""
    if count_include_pad:
        return np.full((*g.size, 1), math.prod(g.F), dtype)
    real = _cols(np.ones((1, H1, W1, 1), dtype), g).sum(axis=1)
    return np.maximum(real, 1).reshape(*g.size, 1)


def avg_pool2d(
    x: Array, F: Size, *, S: Size | None = None, P: Padding = 0, count_include_pad: bool = True, layout: str = "NHWC"
) -> Array:
    """Mean of each window, over all its F*F cells or, without ``count_include_pad``, over those not in the padding.

    A window that lies wholly in the padding gives 0.
    """
    x = _nhwc(x, layout)
    N, H1, W1, D1 = x.shape
    g = window("avg_pool2d", H1, W1, F, F if S is None else S, P)
    padded = pad(x, g.pads)
    y = np.zeros((N, *g.size, D1), x.dtype)
    for i, j in _taps(g):
        y += padded[:, *_tap(g, i, j)]
    return _from_nhwc(y / _divisor(H1, W1, g, count_include_pad, x.dtype), layout)


def avg_pool2d_grad(
    dy: Array, x_shape: Shape, F: Size, *, S: Size | None = None, P: Padding = 0, count_include_pad: bool = True,
    layout: str = "NHWC",
) -> Array:
    """Adjoint of `avg_pool2d`: each cell of dy is shared out among the cells of its window."""
    N, H1, W1, D1 = _volume(x_shape, layout)
    g = window("avg_pool2d_grad", H1, W1, F, F if S is None else S, P)
    share = _nhwc(dy, layout) / _divisor(H1, W1, g, count_include_pad, dy.dtype)
    cols = np.broadcast_to(share[:, :, :, None, None], (N, *g.size, *g.F, D1))
    return _from_nhwc(_picture(cols, N, H1, W1, D1, g), layout)


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean over the batch of -log softmax(logits)[label], and its gradient (softmax - onehot)/N; logits (N, K)."""
    N = len(logits)
    z = logits - logits.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    dlogits = np.exp(log_p)
    dlogits[np.arange(N), labels] -= 1
    return float(-log_p[np.arange(N), labels].mean()), dlogits / N


def mean_squared_error(y: Array, target: Array) -> tuple[float, Array]:
    """Mean over all elements, and so over the batch, of (y - target)^2, and its gradient 2(y - target)/size."""
    error = y - target
    return float((error * error).mean()), error * (2 / error.size)


def clipped(grads: Sequence[Array], grad_scale: float = 1.0, max_norm: float | None = None) -> list[Array]:
    """Gradients times ``grad_scale``, then shrunk to the global norm ``max_norm`` where theirs is larger."""
    norm = abs(grad_scale) * math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads))
    if max_norm is not None and norm > max_norm:
        grad_scale *= max_norm / norm
    return [g * grad_scale for g in grads]


def _ratio(a: Array, b: Array) -> Array:
    # With eps=0 a weight that never had a gradient asks for 0/0, which is taken as 0: it stays where it is.
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def sgd(theta: Array, g: Array, *, lr: float, weight_decay: float = 0.0) -> Array:
    """Stochastic gradient descent, Alg. 8.1: theta <- theta - lr g."""
    g = g + weight_decay * theta
    return theta - lr * g


def momentum(
    theta: Array, g: Array, v: Array, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> tuple[Array, Array]:
    """Momentum, Alg. 8.2: v <- a v - lr g; theta <- theta + v."""
    g = g + weight_decay * theta
    v = momentum * v - lr * g
    return theta + v, v


def nesterov(
    theta: Array, g: Array, v: Array, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> tuple[Array, Array]:
    """Nesterov momentum, Alg. 8.3: v <- a v - lr g(theta + a v); theta <- theta + v.

    ``theta`` is passed and returned as the interim point theta + a v, where the gradient is taken.
    """
    g = g + weight_decay * theta
    theta = theta - momentum * v
    v = momentum * v - lr * g
    theta = theta + v
    return theta + momentum * v, v


def adagrad(
    theta: Array, g: Array, r: Array, *, lr: float = 1e-2, eps: float = 1e-7, weight_decay: float = 0.0
) -> tuple[Array, Array]:
    """AdaGrad, Alg. 8.4: r <- r + g^2; theta <- theta - lr/(eps + sqrt(r)) g."""
    g = g + weight_decay * theta
    r = r + g * g
    return theta - lr * _ratio(g, eps + np.sqrt(r)), r


def rmsprop(
    theta: Array, g: Array, r: Array, v: Array, *, lr: float = 1e-3, rho: float = 0.9, momentum: float = 0.0,
    nesterov: bool = True, eps: float = 1e-8, weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """RMSProp, Alg. 8.6: r <- rho r + (1 - rho) g^2; v <- a v - lr/(sqrt(r) + eps) g; theta <- theta + v.

    With ``nesterov`` theta is passed and returned as the interim point theta + a v. ``eps=0`` is the lecture's.
    """
    g = g + weight_decay * theta
    ahead = momentum if nesterov else 0.0
    theta = theta - ahead * v
    r = rho * r + (1 - rho) * (g * g)
    v = momentum * v - lr * _ratio(g, np.sqrt(r) + eps)
    theta = theta + v
    return theta + ahead * v, r, v


def adam(
    theta: Array, g: Array, s: Array, r: Array, t: int, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8, weight_decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Adam, Alg. 8.7, update number t = 1, 2, ...: eps stands outside the root, after the correction of the bias.

    s <- b1 s + (1 - b1) g; r <- b2 r + (1 - b2) g^2; theta <- theta - lr s/(1 - b1^t) / (sqrt(r/(1 - b2^t)) + eps).
    """
    b1, b2 = betas
    g = g + weight_decay * theta
    s = b1 * s + (1 - b1) * g
    r = b2 * r + (1 - b2) * (g * g)
    s_hat, r_hat = s / (1 - b1**t), r / (1 - b2**t)
    return theta - lr * _ratio(s_hat, np.sqrt(r_hat) + eps), s, r


def adamw(
    theta: Array, g: Array, s: Array, r: Array, t: int, *, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8, weight_decay: float = 1e-2,
) -> tuple[Array, Array, Array]:
    """Adam with decoupled decay: theta <- theta - lr weight_decay theta, beside Adam's own step on g alone."""
    return adam(theta - lr * weight_decay * theta, g, s, r, t, lr=lr, betas=betas, eps=eps)
