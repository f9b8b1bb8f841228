"""Layers without weights: pooling, shapes, `Dropout`, and activation functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import checks, pooling
from .base import MASK, Array, Layer, Shape, _mask, _relu
from .geometry import PoolGeometry

# --- pooling and shapes --------------------------------------------------------------------------------------------


class _Pool(Layer):
    def __init__(self, F: Any, S: Any = None, P: Any = 0, *, fit: str = "exact") -> None:
        super().__init__()
        self.F, self.S, self.P = F, F if S is None else S, P
        self.fit = checks.choice(type(self).__name__, "fit", fit, ("exact", "floor"))

    def _lay(self, shape: Shape) -> Shape:
        self._need_volume(shape)
        H1, W1, D1 = shape
        g = self.geometry = PoolGeometry(W1, H1, D1, self.F, self.S, self.P, self.fit)
        self._args = {"S": g.window.S, "P": g.window.pads, "layout": self.layout}
        return g.H2, g.W2, g.D2

    def _settings(self) -> dict[str, Any]:
        return {"F": self.F, "S": self.S, "P": self.P}


class MaxPool2D(_Pool):
    """The largest value of each window, for each activation map.

    Parameters
    ----------
    F, S, P
        Size, stride (F unless given) and padding of the windows. Padded cells are ignored.
    fit : {"exact", "floor"}
        As for `Conv2D`.

    Examples
    --------
    >>> MaxPool2D(2).build((28, 28, 32)).output_shape
    (14, 14, 32)
    """

    kind = "max_pool"

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        if not training:
            return pooling.max_pool2d(x, self.F, return_index=False, **self._args)
        y, index = pooling.max_pool2d(x, self.F, **self._args)
        self._kept = index, x.shape, y if fused == MASK else None
        return y

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        index, shape, y = self._take()
        if y is not None:
            dy = _mask(dy, y, reuse)
        return pooling.max_pool2d_grad(dy, index, shape, layout=self.layout) if needs_dx else None

    def _gives(self, fused: str) -> str:
        return "kept" if fused == MASK else "fresh"

    def _keeps(self, fused: str) -> tuple[bool, bool, int]:
        return False, fused == MASK, 8 * math.prod(self.output_shape)


class AvgPool2D(_Pool):
    """The mean of each window, for each activation map.

    Parameters
    ----------
    F, S, P, fit
        As for `MaxPool2D`.
    count_include_pad : bool
        Whether padded cells count as zeros, or not at all.

    Examples
    --------
    >>> AvgPool2D(2).build((28, 28, 32)).output_shape
    (14, 14, 32)
    """

    kind = "avg_pool"

    def __init__(
        self, F: Any, S: Any = None, P: Any = 0, *, count_include_pad: bool = True, fit: str = "exact"
    ) -> None:
        super().__init__(F, S, P, fit=fit)
        self.count_include_pad = checks.flag("AvgPool2D", "count_include_pad", count_include_pad)

    def _lay(self, shape: Shape) -> Shape:
        output = super()._lay(shape)
        self._args["count_include_pad"] = self.count_include_pad
        return output

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        if training:
            self._kept = x.shape
        return pooling.avg_pool2d(x, self.F, **self._args)

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        shape = self._take()
        return pooling.avg_pool2d_grad(dy, shape, self.F, **self._args) if needs_dx else None


class GlobalAvgPool2D(Layer):
    """The mean of each activation map: a volume becomes a vector of D1.

    Examples
    --------
    >>> GlobalAvgPool2D().build((7, 7, 512)).output_shape
    (512,)
    """

    kind = "global_avg_pool"

    def _lay(self, shape: Shape) -> Shape:
        self._need_volume(shape)
        return shape[2:]

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        if training:
            self._kept = x.shape
        return x.mean((1, 2) if self.last else (2, 3))

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        shape = self._take()
        if not needs_dx:
            return None
        dx = np.empty(shape, dy.dtype)
        share = dy / (self.input_shape[0] * self.input_shape[1])
        dx[...] = share[:, None, None, :] if self.last else share[:, :, None, None]
        return dx


class Flatten(Layer):
    """Stretch a volume to a vector, in the order of its axes: 32 x 32 x 3 becomes 3072.

    Examples
    --------
    >>> Flatten().build((32, 32, 3)).output_shape
    (3072,)
    """

    kind = "flatten"
    gives = "same"

    def _lay(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        return x.reshape(len(x), -1)

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        return dy.reshape(len(dy), *self._axes(self.input_shape)) if needs_dx else None


class Dropout(Layer):
    """In training, set each value to zero with probability p and divide the others by 1 - p; else do nothing.

    Parameters
    ----------
    p : float
        In [0, 1).

    Notes
    -----
    Srivastava et al. 2014. The masks come from the model's generator, ``model.rng``.
    """

    kind = "dropout"
    gives = "same"

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = checks.number("Dropout", "p", p, 0, 1, open_high=True)

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        if not training or not self.p:
            return x
        mask = self.rng.random(x.shape, self.dtype)
        np.greater_equal(mask, self.p, out=mask)
        mask *= 1 / (1 - self.p)
        self._kept = mask
        return np.multiply(x, mask, out=x if reuse else None)

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        mask = self._take()
        if not needs_dx or mask is None:
            return dy if needs_dx else None
        return np.multiply(dy, mask, out=mask)

    def _keeps(self, fused: str) -> tuple[bool, bool, int]:
        return False, False, self.dtype.itemsize * math.prod(self.output_shape) * (self.p > 0)

    def _settings(self) -> dict[str, Any]:
        return {"p": self.p}


# --- activation functions ------------------------------------------------------------------------------------------


class _Activation(Layer):
    """An elementwise function whose gradient follows from its output."""

    gives = "kept"

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        y = self._f(x, x if reuse else np.empty(x.shape, x.dtype))
        if training:
            self._kept = y
        return y

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        y = self._take()
        return self._df(dy, y, dy if reuse else np.empty(dy.shape, dy.dtype)) if needs_dx else None

    def _keeps(self, fused: str) -> tuple[bool, bool, int]:
        return False, True, 0

    def _f(self, x: Array, out: Array) -> Array:
        """Write f(x) to out, which may be x."""
        raise checks.type_error(type(self).__name__, "is a base class", "a layer that defines _f")

    def _df(self, dy: Array, y: Array, out: Array) -> Array:
        """Write dy * f'(x), told by y = f(x), to out, which may be dy."""
        raise checks.type_error(type(self).__name__, "is a base class", "a layer that defines _df")


class ReLU(_Activation):
    """max(0, x). Behind `Conv2D`, `Dense`, `BatchNorm` or `Residual` it costs no pass of its own."""

    kind = "relu"

    def _f(self, x: Array, out: Array) -> Array:
        return _relu(x, out)

    def _df(self, dy: Array, y: Array, out: Array) -> Array:
        return _mask(dy, y, out is dy)


class LeakyReLU(_Activation):
    """x where x > 0, else alpha x.

    Parameters
    ----------
    alpha : float
        In [0, 1).
    """

    kind = "leaky_relu"

    def __init__(self, alpha: float = 0.01) -> None:
        super().__init__()
        self.alpha = checks.number("LeakyReLU", "alpha", alpha, 0, 1, open_high=True)

    def _f(self, x: Array, out: Array) -> Array:
        if out is not x:
            np.copyto(out, x)
        return np.multiply(out, self.alpha, out=out, where=out < 0)

    def _df(self, dy: Array, y: Array, out: Array) -> Array:
        if out is not dy:
            np.copyto(out, dy)
        return np.multiply(out, self.alpha, out=out, where=y <= 0)

    def _settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


class ELU(_Activation):
    """x where x > 0, else alpha (exp(x) - 1) (Clevert et al. 2016).

    Parameters
    ----------
    alpha : float
        At least 0.
    """

    kind = "elu"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = checks.number("ELU", "alpha", alpha, 0)

    def _f(self, x: Array, out: Array) -> Array:
        below = np.expm1(np.minimum(x, 0))
        below *= self.alpha
        np.maximum(x, 0, out=out)
        return np.add(out, below, out=out)

    def _df(self, dy: Array, y: Array, out: Array) -> Array:
        slope = np.minimum(y, 0)
        slope += self.alpha  # alpha exp(x) = y + alpha
        np.copyto(slope, 1, where=y > 0)
        return np.multiply(dy, slope, out=out)

    def _settings(self) -> dict[str, Any]:
        return {"alpha": self.alpha}


class Sigmoid(_Activation):
    """1/(1 + exp(-x))."""

    kind = "sigmoid"

    def _f(self, x: Array, out: Array) -> Array:
        t = np.exp(-np.abs(x))  # never overflows
        top = np.where(x >= 0, np.ones((), x.dtype), t)
        return np.divide(top, 1 + t, out=out)

    def _df(self, dy: Array, y: Array, out: Array) -> Array:
        slope = 1 - y
        slope *= y
        return np.multiply(dy, slope, out=out)


class Tanh(_Activation):
    """tanh(x)."""

    kind = "tanh"

    def _f(self, x: Array, out: Array) -> Array:
        return np.tanh(x, out=out)

    def _df(self, dy: Array, y: Array, out: Array) -> Array:
        slope = y * y
        np.subtract(1, slope, out=slope)
        return np.multiply(dy, slope, out=out)


class Softmax(_Activation):
    """exp(x_k)/sum over the depth of exp(x). For training, leave it out and use `softmax_cross_entropy`."""

    kind = "softmax"

    def _f(self, x: Array, out: Array) -> Array:
        axis = -1 if self.last else 1
        np.subtract(x, x.max(axis, keepdims=True), out=out)
        np.exp(out, out=out)
        return np.divide(out, out.sum(axis, keepdims=True), out=out)

    def _df(self, dy: Array, y: Array, out: Array) -> Array:
        inner = (dy * y).sum(-1 if self.last else 1, keepdims=True)
        np.subtract(dy, inner, out=out)
        return np.multiply(out, y, out=out)
