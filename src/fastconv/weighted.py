"""Layers with weights: the convolutions, `Dense` and `BatchNorm`, thin Python over `ops`, in the lecture's letters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import checks, ops
from .base import (
    RELU,
    RELU_UNMASKED,
    Array,
    Init,
    Layer,
    Shape,
    _check_init,
    _dense,
    _into_bias,
    _moments,
    _norm,
    _norm_grad,
    _norm_sums,
    _relu,
    _Slot,
)
from .geometry import ConvGeometry, transposed


class Conv2D(Layer):
    """A convolutional layer: K filters of F x F slide over the volume, each makes one activation map.

    Parameters
    ----------
    K : int
        Number of filters.
    F, S, P, dilation, groups
        Size of the filters, stride, zero padding (also "same" and "valid"), dilation, groups: as `ConvGeometry`.
    bias : bool
        Whether each filter has a bias.
    activation : {None, "relu"}
        A ReLU on the output, in the same pass.
    fit : {"exact", "floor"}
        "exact" refuses a stride that does not fit, as the lecture does; "floor" drops what is left over.
    init : {"he", "glorot", "lecun", "zeros"} or callable
        First weights; a callable gets (rng, shape, fan_in, fan_out, dtype) and returns an array.

    Notes
    -----
    ``w`` has shape (F, F, D1/groups, K), in NCHW (K, D1/groups, F, F), ``b`` (K,). He et al. 2015: N(0, 2/fan_in);
    Glorot and Bengio 2010: U(-l, l) with l = sqrt(6/(fan_in + fan_out)); LeCun et al. 1998: N(0, 1/fan_in).

    Examples
    --------
    >>> layer = Conv2D(K=6, F=5).build((32, 32, 3))
    >>> layer.output_shape
    (28, 28, 6)
    """

    kind = "conv"
    fuses_relu = True

    def __init__(
        self, K: int, F: Any, S: Any = 1, P: Any = 0, *, dilation: Any = 1, groups: int = 1, bias: bool = True,
        activation: str | None = None, fit: str = "exact", init: Init = "he",
    ) -> None:  # fmt: skip
        super().__init__()
        where = type(self).__name__
        self.K, self.groups = checks.count(where, "K", K), checks.count(where, "groups", groups)
        self.F, self.S, self.P, self.dilation = F, S, P, dilation
        self.bias = checks.flag(where, "bias", bias)
        self.activation = _check_activation(where, activation)
        self.fit = checks.choice(where, "fit", fit, ("exact", "floor"))
        self.init = _check_init(where, init)
        self.w: Array
        self.dw: Array
        self.b: Array | None = None
        self.db: Array

    def _lay(self, shape: Shape) -> Shape:
        self._need_volume(shape)
        H1, W1, D1 = shape
        g = ConvGeometry(W1, H1, D1, self.K, self.F, self.S, self.P, self.dilation, self.groups, self.fit, self.bias)
        self.geometry = g
        taps = math.prod(g.window.F)
        self._ask(g.window.F, D1 // self.groups, self.K, (taps * D1 / self.groups, taps * self.K / self.groups))
        w = g.window
        self._args = {"S": w.S, "P": w.pads, "dilation": w.dilation, "groups": self.groups, "layout": self.layout}
        return g.H2, g.W2, g.D2

    def _ask(self, F: tuple[int, int], depth: int, filters: int, fans: tuple[float, float]) -> None:
        """Ask for weights of ``filters`` filters of the given depth, and biases for the K maps that come out."""
        shape = (*F, depth, filters) if self.layout == "NHWC" else (filters, depth, *F)
        self._slots = [_Slot("w", shape, self.init, fans), _Slot("b", (self.K,), 0)][: 1 + self.bias]

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        relu = "relu" if self.activation or fused else None
        y = ops.conv2d(x, self.w, self.b, activation=relu, **self._args)
        if training:
            self._kept = x, y if relu and fused != RELU_UNMASKED else None
        return y

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        x, y = self._take()
        dy = _into_bias(dy, y, self.db if self.bias else None, self.last, reuse)
        ops.conv2d_grad_w(dy, x, self.w.shape, out=self.dw, **self._args)
        shape = x.shape
        del x, y
        return ops.conv2d_grad_x(dy, self.w, shape, **self._args) if needs_dx else None

    def _gives(self, fused: str) -> str:
        return "kept" if fused == RELU or (self.activation and fused != RELU_UNMASKED) else "fresh"

    def _keeps(self, fused: str) -> tuple[bool, bool, int]:
        return True, self._gives(fused) == "kept", 0

    def _settings(self) -> dict[str, Any]:
        extra = {"dilation": 1, "groups": 1, "bias": True, "activation": None}
        shown = {name: getattr(self, name) for name, usual in extra.items() if getattr(self, name) != usual}
        return {"K": self.K, "F": self.F, "S": self.S, "P": self.P} | shown


def _check_activation(where: str, activation: Any) -> str | None:
    return None if activation is None else checks.choice(where, "activation", activation, ("relu",))


class DepthwiseConv2D(Conv2D):
    """A convolution of each activation map by filters of its own: `Conv2D` with groups = D1.

    Parameters
    ----------
    F, S, P, dilation, bias, activation, fit, init
        As for `Conv2D`.
    multiplier : int
        Filters for each map; K = D1 * multiplier.

    Examples
    --------
    >>> layer = DepthwiseConv2D(F=3, P=1).build((8, 8, 16))
    >>> layer.output_shape, layer.w.shape
    ((8, 8, 16), (3, 3, 1, 16))
    """

    kind = "depthwise"

    def __init__(
        self, F: Any, S: Any = 1, P: Any = 0, *, multiplier: int = 1, dilation: Any = 1, bias: bool = True,
        activation: str | None = None, fit: str = "exact", init: Init = "he",
    ) -> None:  # fmt: skip
        super().__init__(1, F, S, P, dilation=dilation, bias=bias, activation=activation, fit=fit, init=init)
        self.multiplier = checks.count("DepthwiseConv2D", "multiplier", multiplier)

    def _lay(self, shape: Shape) -> Shape:
        self._need_volume(shape)
        self.groups, self.K = shape[2], shape[2] * self.multiplier
        return super()._lay(shape)


class ConvTranspose2D(Conv2D):
    """The transpose of a convolution: each pixel spreads a window of F x F over a larger picture.

    Parameters
    ----------
    K : int
        Depth of the output.
    F, S, P, dilation, groups, bias, activation, init
        As for `Conv2D`; they describe the convolution that is transposed.
    output_padding : int or (height, width)
        Rows and columns added at the bottom and right, less than S.

    Notes
    -----
    W2 = (W1 - 1)S - 2P + dilation(F - 1) + output_padding + 1. ``w`` has the shape of the convolution that leads
    back, (F, F, K/groups, D1), in NCHW (D1, K/groups, F, F); ``geometry`` is that convolution's.

    Examples
    --------
    >>> ConvTranspose2D(K=8, F=2, S=2).build((7, 7, 16)).output_shape
    (14, 14, 8)
    """

    kind = "conv_transpose"

    def __init__(
        self, K: int, F: Any, S: Any = 1, P: Any = 0, *, output_padding: Any = 0, dilation: Any = 1, groups: int = 1,
        bias: bool = True, activation: str | None = None, init: Init = "he",
    ) -> None:  # fmt: skip
        super().__init__(K, F, S, P, dilation=dilation, groups=groups, bias=bias, activation=activation, init=init)
        self.output_padding = output_padding

    def _lay(self, shape: Shape) -> Shape:
        self._need_volume(shape)
        H1, W1, D1 = shape
        w = transposed("ConvTranspose2D", H1, W1, self.F, self.S, self.P, self.output_padding, self.dilation)
        H2, W2 = w.size
        back = (self.F, self.S, self.P, self.dilation, self.groups)
        self.geometry = ConvGeometry(W2, H2, self.K, D1, *back, fit="floor", bias=False)
        # A pixel of the output gets F*F/(S*S) taps of each of D1/groups maps.
        share = math.prod(w.F) / self.groups
        self._ask(w.F, self.K // self.groups, D1, (share * D1 / math.prod(w.S), share * self.K))
        self._args = {"S": w.S, "P": w.pads, "dilation": w.dilation, "groups": self.groups, "layout": self.layout}
        return H2, W2, self.K

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        y = ops.conv_transpose2d(x, self.w, self.b, output_padding=self.output_padding, **self._args)
        relu = bool(self.activation or fused)
        if relu:
            _relu(y, y)
        if training:
            self._kept = x, y if relu and fused != RELU_UNMASKED else None
        return y

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        x, y = self._take()
        dy = _into_bias(dy, y, self.db if self.bias else None, self.last, reuse)
        ops.conv2d_grad_w(x, dy, self.w.shape, out=self.dw, **self._args)
        return ops.conv2d(dy, self.w, **self._args) if needs_dx else None


class Dense(Layer):
    """A fully connected layer, y = x w + b: each of K outputs sees the whole input.

    Parameters
    ----------
    K : int
        Number of outputs.
    bias, activation, init
        As for `Conv2D`.

    Notes
    -----
    ``w`` has shape (D1, K) and ``b`` (K,) in every layout. A volume must be stretched by `Flatten` first.

    Examples
    --------
    >>> Dense(K=10).build((3072,)).geometry.n_params
    30730
    """

    kind = "dense"
    fuses_relu = True

    def __init__(self, K: int, *, bias: bool = True, activation: str | None = None, init: Init = "he") -> None:
        super().__init__()
        self.K = checks.count("Dense", "K", K)
        self.bias = checks.flag("Dense", "bias", bias)
        self.activation = _check_activation("Dense", activation)
        self.init = _check_init("Dense", init)
        self.w: Array
        self.dw: Array
        self.b: Array | None = None
        self.db: Array

    def _lay(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise checks.value_error("Dense", "works on a vector", "Flatten() or GlobalAvgPool2D() before it", shape)
        (D1,) = shape
        self.geometry = ConvGeometry(1, 1, D1, self.K, F=1, bias=self.bias)
        self._slots = [_Slot("w", (D1, self.K), self.init, (D1, self.K)), _Slot("b", (self.K,), 0)][: 1 + self.bias]
        return (self.K,)

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        # Each row is a picture of one pixel: the convolution's register tile, its fused bias and ReLU, its threads. A
        # matrix product by BLAS would bring threads of its own, which fight with these for the cores.
        relu = "relu" if self.activation or fused else None
        y = ops.conv2d(x.reshape(len(x), 1, 1, -1), self.w[None, None], self.b, activation=relu).reshape(len(x), self.K)
        if training:
            self._kept = x, y if relu else None
        return y

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        x, y = self._take()
        dy = _into_bias(dy, y, self.db if self.bias else None, self.last, reuse)
        pixels, dy, w = x.reshape(len(x), 1, 1, -1), dy.reshape(len(x), 1, 1, -1), self.w[None, None]
        ops.conv2d_grad_w(dy, pixels, w.shape, out=self.dw[None, None])
        return ops.conv2d_grad_x(dy, w, pixels.shape).reshape(x.shape) if needs_dx else None

    def _gives(self, fused: str) -> str:
        return "kept" if fused or self.activation else "fresh"

    def _keeps(self, fused: str) -> tuple[bool, bool, int]:
        return True, self._gives(fused) == "kept", 0

    def _settings(self) -> dict[str, Any]:
        return {"K": self.K} | ({"activation": "relu"} if self.activation else {})


class BatchNorm(Layer):
    """Normalise each activation map over the batch, then scale by gamma and shift by beta.

    Parameters
    ----------
    momentum : float
        Share of the batch's statistics that goes into the running ones at each training step, in (0, 1].
    eps : float
        Added to the variance.

    Notes
    -----
    y = gamma (x - mean)/sqrt(var + eps) + beta (Ioffe and Szegedy 2015). In training mean and (biased) variance are
    the batch's; else the running ones, ``mean`` and ``var``, which follow them as
    running = (1 - momentum) running + momentum batch, the variance unbiased: PyTorch's rule (Keras's momentum is
    1 - momentum, and its running variance is biased).

    Examples
    --------
    >>> layer = BatchNorm().build((4, 4, 3))
    >>> [a.shape for a in layer.params], [a.shape for a in layer.state]
    ([(3,), (3,)], [(3,), (3,)])
    """

    kind = "batchnorm"
    fuses_relu = True

    def __init__(self, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = checks.number("BatchNorm", "momentum", momentum, 0, 1)
        self.eps = checks.number("BatchNorm", "eps", eps, 0)
        self.gamma: Array
        self.beta: Array
        self.dgamma: Array
        self.dbeta: Array
        self.mean: Array
        self.var: Array

    def _lay(self, shape: Shape) -> Shape:
        values = (("gamma", 1, True), ("beta", 0, True), ("mean", 0, False), ("var", 1, False))
        self._slots = [_Slot(name, shape[-1:], value, trained=trained) for name, value, trained in values]
        return shape

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        x = _dense(x)
        mean, var = self._follow(x) if training else (self.mean, self.var.astype(np.float64))
        std = np.sqrt(var + self.eps)
        constants = np.empty((5, len(std)), x.dtype)
        constants[0], constants[1], constants[2] = mean, self.gamma / std, self.beta
        y = _norm(x, constants, bool(fused), self.last)
        if training:
            # The ReLU's mask follows from x.
            self._kept = x, constants, std, fused == RELU
        return y

    def _follow(self, x: Array) -> tuple[Array, Array]:
        """Return the batch's statistics and let the running ones follow."""
        n = x.size // self.gamma.size
        if n < 2:
            what = "training needs more than one value of each activation map"
            raise checks.value_error("BatchNorm", what, "a larger batch", f"x of shape {x.shape}")
        mean, var = _moments(x, self.last)
        a = self.momentum
        self.mean[...] = (1 - a) * self.mean + a * mean
        self.var[...] = (1 - a) * self.var + a * var * (n / (n - 1))
        return mean, var

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        x, constants, std, relu = self._take()
        dy = _dense(dy)
        total, moment = _norm_sums(dy, x, constants, relu, self.last)
        self.dbeta[...] = total
        self.dgamma[...] = moment / std
        if not needs_dx:
            return None
        # dx = gamma/std (g - sum(g)/n - (x - mean)/std^2 sum(g (x - mean))/n)
        n = x.size // len(std)
        constants[3], constants[4] = total / n, moment / (std * std * n)
        return _norm_grad(dy, x, constants, relu, self.last, reuse)

    def _gives(self, fused: str) -> str:
        return "fresh"

    def _keeps(self, fused: str) -> tuple[bool, bool, int]:
        return True, False, 0

    def _settings(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "eps": self.eps}
