"""Layers and the models made of them: thin Python over `ops`, in the lecture's letters.

A layer is made from its settings, `build` (or the `Sequential` it stands in) tells it the volume it gets, then
``forward(x)`` and ``backward(dy)`` do the work. A model's parameters are views of one flat buffer, its gradients of
another. What can be done in one pass is: `Sequential` hands a ReLU to the layer before it, lets elementwise layers
write over arrays that nobody needs any more, and drops every activation as soon as the backward pass is done with it.

Inside, each layer has ``_plan(shape)``, which returns the output's shape, and ``_forward`` and ``_backward``, which
trust their arguments. ``reuse`` tells them that the array they get is theirs to overwrite; ``fused`` is one of the
four words below. Shapes are (H, W, D) or (K,) in every layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from . import _kernels, checks, ops, pooling, runtime
from ._kernels import memory
from .geometry import ConvGeometry, PoolGeometry, transposed

Array = np.ndarray
Shape = tuple[int, ...]
Init = str | Callable[..., Array]

# What Sequential may ask a layer to do besides its own job.
PLAIN = ""
RELU = "relu"  # apply a ReLU to the output, and its mask to dy
RELU_UNMASKED = "relu, unmasked"  # apply a ReLU to the output; the layer behind masks dy
MASK = "mask"  # a pooling layer: mask dy by your own output, which a ReLU has made


# --- passes over whole volumes: one function for each --------------------------------------------------------------


def _dense(a: Array) -> Array:
    return a if a.flags.c_contiguous else np.ascontiguousarray(a)


def _relu(x: Array, out: Array) -> Array:
    return np.maximum(x, 0, out=out)


def _mask(dy: Array, y: Array, reuse: bool) -> Array:
    """Gradient of a ReLU whose output was y: dy where y > 0, else 0."""
    dy = _dense(dy)
    out = dy if reuse else memory.empty(dy.shape, dy.dtype)
    _kernels.kernel("maps").mask(dy, _dense(y), out, runtime.get_num_threads())
    return out


def _into_bias(dy: Array, y: Array | None, db: Array | None, last: bool, reuse: bool) -> Array:
    """Back through a ReLU, if its output y is given, and through a bias: the sum over all pixels goes to db."""
    if db is None:
        return dy if y is None else _mask(dy, y, reuse)
    dy, out, total = _dense(dy), None, np.zeros((2, len(db)))
    if y is not None:
        y, out = _dense(y), dy if reuse else memory.empty(dy.shape, dy.dtype)
    _kernels.kernel("maps").sums(dy, y, out, total, not last, runtime.get_num_threads())
    db[...] = total[0]
    return dy if out is None else out


def _add(a: Array, b: Array, reuse: bool, relu: bool = False) -> Array:
    """a + b, over a if it is free, then a ReLU if asked."""
    a = _dense(a)
    out = a if reuse else memory.empty(a.shape, a.dtype)
    _kernels.kernel("maps").add(a, _dense(b), out, relu, runtime.get_num_threads())
    return out


def _moments(x: Array, last: bool) -> tuple[Array, Array]:
    """Mean and (biased) variance of each activation map in float64, by one pass over deviations from a value nearby."""
    depth = x.shape[-1] if last else x.shape[1]
    maps = x.reshape(1, -1, depth) if last else x.reshape(len(x), depth, -1).swapaxes(1, 2)
    step = max(1, maps.shape[1] // 64)
    near, total = maps[:, ::step].mean((0, 1)), np.zeros((2, depth))
    _kernels.kernel("maps").moments(x, near, total, not last, runtime.get_num_threads())
    total /= x.size // depth
    return near + total[0], np.maximum(total[1] - total[0] ** 2, 0)


def _norm(x: Array, constants: Array, relu: bool, last: bool) -> Array:
    """(x - mean) scale + shift, constants being these three for each map, then a ReLU if asked."""
    y = memory.empty(x.shape, x.dtype)
    _kernels.kernel("maps").norm(x, y, constants, relu, not last, runtime.get_num_threads())
    return y


def _norm_sums(dy: Array, x: Array, constants: Array, relu: bool, last: bool) -> Array:
    """(2, D): for each map the sums of g and of g (x - mean); g is dy, masked if `_norm` applied a ReLU."""
    total = np.zeros((2, constants.shape[1]))
    _kernels.kernel("maps").norm_sums(dy, x, constants, relu, total, not last, runtime.get_num_threads())
    return total


def _norm_grad(dy: Array, x: Array, constants: Array, relu: bool, last: bool, reuse: bool) -> Array:
    """(g - a - (x - mean) b) scale, constants being mean, scale, shift, a, b for each map."""
    dx = dy if reuse else memory.empty(dy.shape, dy.dtype)
    _kernels.kernel("maps").norm_grad(dy, x, dx, constants, relu, not last, runtime.get_num_threads())
    return dx


# --- initial weights -----------------------------------------------------------------------------------------------


class _Slot(NamedTuple):
    """An array that a layer asks for: a parameter, or state that is saved but not trained."""

    name: str
    shape: Shape
    init: Init | float  # what it starts with
    fans: tuple[float, float] = (1, 1)
    trained: bool = True


def _initial(where: str, slot: _Slot, rng: np.random.Generator, dtype: np.dtype) -> Array:
    """First values: ``he`` N(0, 2/fan_in), ``glorot`` U(+-sqrt(6/(fan_in + fan_out))), ``lecun`` N(0, 1/fan_in)."""
    (fan_in, fan_out), shape, init = slot.fans, slot.shape, slot.init
    if callable(init):
        w = checks.ndarray(where, "the result of init", init(rng, shape, fan_in, fan_out, dtype))
        checks.shape(where, "the result of init", w, shape)
        return w
    if not isinstance(init, str) or init == "zeros":
        return np.full(shape, 0 if init == "zeros" else init, dtype)
    if init == "glorot":
        w = rng.random(shape, dtype)
        w -= 0.5
        w *= 2 * math.sqrt(6 / (fan_in + fan_out))
        return w
    w = rng.standard_normal(shape, dtype)
    w *= math.sqrt((2 if init == "he" else 1) / fan_in)
    return w


def _check_init(where: str, init: Any) -> Init:
    return init if callable(init) else checks.choice(where, "init", init, ("he", "glorot", "lecun", "zeros"))


# --- the base ------------------------------------------------------------------------------------------------------


class Layer:
    """What every layer, and a whole model, has.

    Attributes
    ----------
    params, grads : list of ndarray
        Parameters and their gradients in the same order, views of ``flat_params`` and ``flat_grads`` of the model.
    state : list of ndarray
        What is saved with the parameters but not trained (the running statistics of `BatchNorm`).
    geometry : ConvGeometry, PoolGeometry or None
        The layer's arithmetic in the lecture's letters, once it is built.
    input_shape, output_shape : tuple of int
        (H1, W1, D1) and (H2, W2, D2), or (K,) for a vector, whatever the layout.
    """

    kind: ClassVar[str] = "layer"
    # What forward returns: a "fresh" array, a fresh one "kept" for the backward pass, or the "same" as came in.
    gives: ClassVar[str] = "fresh"
    fuses_relu: ClassVar[bool] = False

    input_shape: Shape
    output_shape: Shape
    layout: str
    last: bool  # whether the depth is the last axis
    dtype: np.dtype
    rng: np.random.Generator
    flat_params: Array
    flat_grads: Array
    flat_state: Array

    def __init__(self) -> None:
        self.params: list[Array] = []
        self.grads: list[Array] = []
        self.state: list[Array] = []
        self.geometry: ConvGeometry | PoolGeometry | None = None
        self.built = False
        self._slots: list[_Slot] = []
        self._args: dict[str, Any] = {}
        self._kept: Any = None
        self._batch = 0

    # ------------------------------------------------------------------ for the caller
    def build(self, input_shape: Shape, *, layout: str = "NHWC", dtype: Any = "float32", seed: int = 0) -> Self:
        """Make the layer ready to be used by itself, with parameters of its own.

        Parameters
        ----------
        input_shape : tuple of int
            (H1, W1, D1), or (K,) for a vector, whatever the layout.
        layout : {"NHWC", "NCHW"}
            Order of the axes of the volumes that will come.
        dtype : {"float32", "float64"}
        seed : int or sequence of int
            Of the initial weights and of Dropout's masks.

        Returns
        -------
        Layer
            Itself.

        Raises
        ------
        GeometryError
            If the layer does not fit the volume.
        ValueError, TypeError
            If an argument is wrong, or the layer is part of a model already.

        Examples
        --------
        >>> layer = Conv2D(K=10, F=5, P=2).build((32, 32, 3))
        >>> layer.output_shape, layer.geometry.n_params
        ((32, 32, 10), 760)
        """
        where = type(self).__name__
        checks.choice(where, "layout", layout, ("NHWC", "NCHW"))
        dtype = _dtype(where, dtype)
        shape = _shape(where, input_shape)
        seen: set[int] = set()
        for name, layer in self._leaves():
            if layer.built or id(layer) in seen:
                raise checks.value_error(where, f"{name}, {layer!r}, is in use already", "a layer of its own")
            seen.add(id(layer))
        rng = np.random.default_rng(seed)
        self._plan(shape, layout, dtype, rng)
        self._allocate(rng)
        return self

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the layer's output for a batch.

        Parameters
        ----------
        x : ndarray of shape (N, H1, W1, D1), in NCHW (N, D1, H1, W1), or (N, K)
        training : bool
            Keep what `backward` needs; drop out and take the batch's statistics where layers do that.

        Returns
        -------
        ndarray
            Never x itself changed; but `Flatten` returns a view of it.

        Raises
        ------
        ValueError, TypeError
            If the layer is not built, or x has another shape or dtype than it was built for.
        """
        where = type(self).__name__
        if not self.built:
            raise checks.value_error(where, "is not built", "build(input_shape), or a Sequential around it, before use")
        self._check(where, "x", x, self.input_shape)
        if training:
            self._batch = len(x)
        return self._forward(x, training, False, PLAIN)

    def backward(self, dy: Array, needs_dx: bool = True) -> Array | None:
        """Fill `grads` with the gradients of the loss and return that of the input.

        Parameters
        ----------
        dy : ndarray of the shape that the last ``forward(x, training=True)`` returned
            Gradient of the loss by the output. It is not changed.
        needs_dx : bool
            Whether dx is wanted.

        Returns
        -------
        ndarray or None
            dx, or None if it was not wanted.

        Raises
        ------
        ValueError, TypeError
            If no ``forward(x, training=True)`` came before (each is good for one `backward`), or dy does not fit it.
        """
        where = f"{type(self).__name__}.backward"
        if not self._batch:
            raise checks.value_error(where, "nothing to go back through", "forward(x, training=True) before each call")
        self._check(where, "dy", dy, self.output_shape, self._batch)
        self._batch = 0
        return self._backward(dy, False, needs_dx)

    def named_parameters(self) -> list[tuple[str, Array]]:
        """Return the parameters with their names, such as ``("0.conv.w", w)``, in the order of `params`."""
        return self._named(True)

    def named_state(self) -> list[tuple[str, Array]]:
        """Return the state with its names, such as ``("1.batchnorm.mean", mean)``, in the order of `state`."""
        return self._named(False)

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of every parameter and of the state, by name."""
        return {name: a.copy() for name, a in self.named_parameters() + self.named_state()}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Take parameters and state from what `state_dict` returned.

        Raises
        ------
        ValueError, TypeError
            If a name is missing or unknown, or an array has another shape or dtype; then nothing is changed.
        """
        where = "load_state_dict"
        mine = dict(self.named_parameters() + self.named_state())
        missing, unknown = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
        if missing or unknown:
            what = f"missing {_some(missing)}" if missing else f"unknown {_some(unknown)}"
            raise checks.value_error(where, what, f"the {len(mine)} names of this model", f"{len(state)} names")
        for name, a in mine.items():
            b = checks.array(where, name, state[name])
            checks.shape(where, name, b, a.shape)
            checks.same_dtype(where, ("the model", a), (name, b))
        for name, a in mine.items():
            a[...] = state[name]

    # ------------------------------------------------------------------ for the layers
    def _plan(self, shape: Shape, layout: str, dtype: np.dtype, rng: np.random.Generator) -> Shape:
        """Learn the input's shape, ask for parameters, and return the output's shape."""
        self.input_shape, self.layout, self.dtype, self.rng = shape, layout, dtype, rng
        self._slots = []
        self.last = layout == "NHWC" or len(shape) == 1
        self.output_shape = self._lay(shape)
        return self.output_shape

    def _lay(self, shape: Shape) -> Shape:
        return shape

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        raise checks.type_error(type(self).__name__, "is a base class", "a layer that defines _forward")

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        raise checks.type_error(type(self).__name__, "is a base class", "a layer that defines _backward")

    def _gives(self, fused: str) -> str:
        return "kept" if fused == RELU else self.gives

    def _keeps(self, fused: str) -> tuple[bool, bool, int]:
        """Whether the backward pass keeps the input and the output, and how many bytes an image besides."""
        return False, fused == RELU, 0

    def _leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        yield prefix or self.kind, self

    def _all(self) -> Iterator[tuple[str, Layer, _Slot]]:
        return ((name, layer, slot) for name, layer in self._leaves() for slot in layer._slots)

    def _named(self, trained: bool) -> list[tuple[str, Array]]:
        slots = (entry for entry in self._all() if entry[2].trained is trained)
        return [(f"{name}.{slot.name}", getattr(layer, slot.name)) for name, layer, slot in slots]

    def _need_volume(self, shape: Shape) -> None:
        if len(shape) != 3:
            raise checks.value_error(type(self).__name__, "works on a volume", "an input of shape (H1, W1, D1)", shape)

    def _axes(self, shape: Shape) -> Shape:
        """Shape of one image in this model's layout."""
        return shape if self.layout == "NHWC" or len(shape) == 1 else (shape[2], shape[0], shape[1])

    def _check(self, where: str, name: str, a: Any, shape: Shape, batch: int | None = None) -> None:
        checks.array(where, name, a)
        if a.dtype != self.dtype:
            what = f"{name} is {a.dtype} but the model is {self.dtype}"
            raise checks.type_error(where, what, f"{name} as {self.dtype}", a.dtype)
        axes = self._axes(shape)
        if a.shape[1:] != axes or a.ndim != len(axes) + 1 or (batch is not None and len(a) != batch):
            expected = ", ".join(map(str, ("N" if batch is None else batch, *axes)))
            raise checks.value_error(where, f"{name} has the wrong shape", f"{name} of shape ({expected})", a.shape)

    def _allocate(self, rng: np.random.Generator) -> None:
        """Make the flat buffers, and fill them with the first values."""
        total = {t: sum(math.prod(slot.shape) for *_, slot in self._all() if slot.trained is t) for t in (True, False)}
        first = [_initial(type(layer).__name__, slot, rng, self.dtype) for _, layer, slot in self._all()]
        self.flat_params, self.flat_state = np.zeros(total[True], self.dtype), np.zeros(total[False], self.dtype)
        self.flat_grads = np.zeros(total[True], self.dtype)
        self._bind()
        for (_, layer, slot), value in zip(self._all(), first, strict=True):
            getattr(layer, slot.name)[...] = value

    def _bind(self) -> None:
        """Point every layer at its views of the flat buffers."""
        at = {True: 0, False: 0}
        for layer in self._tree():
            layer.params, layer.grads, layer.state, layer.built = [], [], [], True
            for slot in layer._slots:
                place = slice(at[slot.trained], at[slot.trained] + math.prod(slot.shape))
                at[slot.trained] = place.stop
                view = (self.flat_params if slot.trained else self.flat_state)[place].reshape(slot.shape)
                setattr(layer, slot.name, view)
                (layer.params if slot.trained else layer.state).append(view)
                if slot.trained:
                    layer.grads.append(self.flat_grads[place].reshape(slot.shape))
                    setattr(layer, f"d{slot.name}", layer.grads[-1])
        self._gather()

    def _gather(self) -> None:
        """Collect the lists of a container from its layers."""

    def _tree(self) -> Iterator[Layer]:
        """Every layer, those that hold others behind them."""
        yield self

    def _take(self) -> Any:
        kept, self._kept = self._kept, None
        return kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copying and unpickling make separate arrays of what were views: bind the copy's again.
        self.__dict__.update(state)
        if "flat_params" in state:
            self._bind()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._settings().items())})"

    def _settings(self) -> dict[str, Any]:
        """What `repr` and the table show."""
        return {}


def _shape(where: str, shape: Any) -> Shape:
    if not isinstance(shape, (tuple, list)) or len(shape) not in (1, 3):
        raise checks.value_error(where, "input_shape must be a volume or a vector", "(H1, W1, D1) or (K,)", shape)
    return tuple(checks.count(where, "input_shape", n) for n in shape)


def _dtype(where: str, dtype: Any) -> np.dtype:
    try:
        found = None if dtype is None else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found not in (checks.F32, checks.F64):
        raise checks.type_error(where, "dtype has no such choice", "float32 or float64", repr(dtype))
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# --- layers with weights -------------------------------------------------------------------------------------------


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


# --- containers ----------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """One call that `Sequential` makes."""

    layer: Layer
    reuse: bool | None  # whether the input is free to be overwritten; None: if the sequence's own input is
    fused: str


class Sequential(Layer):
    """A ConvNet: a sequence of layers, and the model that an optimizer trains.

    Parameters
    ----------
    layers : iterable of Layer
    input_shape : (H1, W1, D1), (K,) or None
        Volume or vector that comes in; None for a sequence inside another one.
    layout : {"NHWC", "NCHW"}
        Order of the axes of the volumes.
    dtype : {"float32", "float64"}
    seed : int or sequence of int
        Of the initial weights, then of Dropout's masks.

    Attributes
    ----------
    flat_params, flat_grads, flat_state : ndarray
        One buffer each, of which `params`, `grads` and `state` are views.
    rng : numpy.random.Generator
        Gave the initial weights and gives Dropout's masks.

    Raises
    ------
    GeometryError
        If a layer does not fit the volume it gets.
    ValueError, TypeError
        If a layer is in use already, or no layer.

    Examples
    --------
    >>> import numpy as np
    >>> model = Sequential([Conv2D(K=8, F=3, P=1), ReLU(), MaxPool2D(2), Flatten(), Dense(10)], input_shape=(8, 8, 1))
    >>> y = model.forward(np.zeros((2, 8, 8, 1), np.float32), training=True)
    >>> model.backward(np.ones_like(y))
    >>> y.shape, [name for name, w in model.named_parameters()]
    ((2, 10), ['0.conv.w', '0.conv.b', '4.dense.w', '4.dense.b'])
    """

    kind = "sequential"

    def __init__(
        self, layers: Iterable[Layer], input_shape: Shape | None = None, *, layout: str = "NHWC",
        dtype: Any = "float32", seed: Any = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = list(layers)
        self.config: dict[str, Any] | None = None
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                what = f"layer {i} is no layer"
                raise checks.type_error("Sequential", what, "an object of fastconv.layers", repr(layer))
        self._steps: list[_Step] = []
        if input_shape is not None:
            self.build(input_shape, layout=layout, dtype=dtype, seed=seed)

    def backward(self, dy: Array, needs_dx: bool = False) -> Array | None:
        """Fill `grads`, and return dx if it is asked for.

        As `Layer.backward`; a model's first layer skips dx, the larger part of its work, unless ``needs_dx=True``.
        """
        return super().backward(dy, needs_dx)

    def predict(self, x: Array, batch_size: int = 256) -> Array:
        """Return the output for many images, a batch at a time.

        Examples
        --------
        >>> import numpy as np
        >>> Sequential([Dense(2)], input_shape=(3,)).predict(np.zeros((1000, 3), np.float32)).shape
        (1000, 2)
        """
        n = checks.count("predict", "batch_size", batch_size)
        if len(x) <= n:
            return self.forward(x)
        return np.concatenate([self.forward(x[i : i + n]) for i in range(0, len(x), n)])

    def summary(self, batch_size: int = 1) -> Summary:
        """Return the table of the model: layers, sizes, parameters, FLOPs, bytes; `str` prints it."""
        if not self.built:
            raise checks.value_error("summary", "the model is not built", "input_shape, or build(input_shape)")
        return Summary.of(self, checks.count("summary", "batch_size", batch_size))

    def _lay(self, shape: Shape) -> Shape:
        for i, layer in enumerate(self.layers):
            try:
                shape = layer._plan(shape, self.layout, self.dtype, self.rng)
            except (ValueError, TypeError) as error:
                volume = " x ".join(map(str, (shape[1], shape[0], shape[2]) if len(shape) == 3 else shape))
                raise type(error)(f"Sequential: layer {i}, {layer!r}, on {volume}: {error}") from None
        self._steps = list(self._link())
        # Without dx, the backward pass ends at the first layer that has parameters.
        trained = (i for i, step in enumerate(self._steps) if any(leaf._slots for _, leaf in step.layer._leaves()))
        self._first = next(trained, len(self._steps))
        return shape

    def _link(self) -> Iterator[_Step]:
        """Fuse ReLUs into the layers before them, and find out who may write over its input."""
        fusions: list[tuple[Layer, str]] = []
        for layer in self.layers:
            before, fused = fusions[-1] if fusions else (None, PLAIN)
            if type(layer) is ReLU and before is not None and before.fuses_relu and not fused:
                fusions[-1] = before, RELU
            elif type(layer) is MaxPool2D and before is not None and before.fuses_relu and _rectified(before, fused):
                # The largest of rectified values is positive where its own ReLU would let dy pass: mask the smaller
                # volume instead, and the larger one need not be kept.
                fusions[-1] = before, RELU_UNMASKED
                fusions.append((layer, MASK))
            else:
                fusions.append((layer, PLAIN))
        owned = None
        for layer, fused in fusions:
            yield _Step(layer, owned, fused)
            gives = layer._gives(fused)
            owned = owned if gives == "same" else gives == "fresh"

    def _gives(self, fused: str) -> str:
        given = [step.layer._gives(step.fused) for step in self._steps]
        return next((g for g in reversed(given) if g != "same"), "same")

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        for layer, owned, how in self._steps:
            x = layer._forward(x, training, reuse if owned is None else owned, how)
        return x

    def _backward(self, dy: Array | None, reuse: bool, needs_dx: bool) -> Array | None:
        stop = 0 if needs_dx else self._first
        for i in range(len(self._steps) - 1, stop - 1, -1):
            layer, _, how = self._steps[i]
            dy = layer._backward(dy, reuse, needs_dx or i > stop)  # type: ignore[arg-type]
            reuse = reuse or layer._gives(how) != "same"
        for step in self._steps[:stop]:
            step.layer._kept = None
        return dy if needs_dx else None

    def _leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        for i, layer in enumerate(self.layers):
            yield from layer._leaves(f"{prefix}.{i}.{layer.kind}" if prefix else f"{i}.{layer.kind}")

    def _tree(self) -> Iterator[Layer]:
        for layer in self.layers:
            yield from layer._tree()
        yield self

    def _gather(self) -> None:
        for layer in self.layers:
            layer._gather()
        for name in ("params", "grads", "state"):
            setattr(self, name, [a for layer in self.layers for a in getattr(layer, name)])

    def _settings(self) -> dict[str, Any]:
        return {"layers": self.layers}


def _rectified(layer: Layer, fused: str) -> bool:
    return fused == RELU or getattr(layer, "activation", None) == "relu"


class Residual(Layer):
    """The sum of what a sequence of layers makes of the input and of the input itself (He et al. 2016).

    Parameters
    ----------
    layers : iterable of Layer
        The body.
    shortcut : iterable of Layer or None
        What the input goes through beside the body, None if it keeps its shape.

    Raises
    ------
    ValueError
        When it is built, if body and shortcut lead to different shapes.

    Examples
    --------
    >>> block = Residual([Conv2D(K=16, F=3, P=1), ReLU(), Conv2D(K=16, F=3, P=1)]).build((8, 8, 16))
    >>> block.output_shape
    (8, 8, 16)
    """

    kind = "residual"
    fuses_relu = True

    def __init__(self, layers: Iterable[Layer], shortcut: Iterable[Layer] | None = None) -> None:
        super().__init__()
        self.body = Sequential(layers)
        self.shortcut = Sequential(() if shortcut is None else shortcut)

    def _lay(self, shape: Shape) -> Shape:
        body, shortcut = (part._plan(shape, self.layout, self.dtype, self.rng) for part in (self.body, self.shortcut))
        if body != shortcut:
            what = f"the body makes {body} of {shape} but the shortcut {shortcut}"
            raise checks.value_error("Residual", what, "a shortcut that leads to the body's shape", shortcut)
        return body

    def _forward(self, x: Array, training: bool, reuse: bool, fused: str) -> Array:
        y = self.body._forward(x, training, False, PLAIN)
        side = self.shortcut._forward(x, training, False, PLAIN)
        y = _add(y, side, self.body._gives(PLAIN) == "fresh", bool(fused))
        if training:
            self._kept = y if fused == RELU else None
        return y

    def _backward(self, dy: Array, reuse: bool, needs_dx: bool) -> Array | None:
        y = self._take()
        if y is not None:
            dy, reuse = _mask(dy, y, reuse), True
            del y
        side = self.shortcut._backward(dy, False, needs_dx)
        identity = self.shortcut._gives(PLAIN) == "same"
        dx = self.body._backward(dy, reuse and not identity, needs_dx)
        if dx is None or side is None:
            return None
        return _add(dx, side, self.body._gives(PLAIN) != "same")

    def _keeps(self, fused: str) -> tuple[bool, bool, int]:
        return True, fused == RELU, 0

    def _leaves(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        prefix = prefix or self.kind
        yield from self.body._leaves(f"{prefix}.body")
        yield from self.shortcut._leaves(f"{prefix}.shortcut")

    def _tree(self) -> Iterator[Layer]:
        yield from self.body._tree()
        yield from self.shortcut._tree()
        yield self

    def _gather(self) -> None:
        self.body._gather()
        self.shortcut._gather()
        for name in ("params", "grads", "state"):
            setattr(self, name, getattr(self.body, name) + getattr(self.shortcut, name))

    def _settings(self) -> dict[str, Any]:
        return {"layers": self.body.layers} | ({"shortcut": self.shortcut.layers} if self.shortcut.layers else {})


# --- the table -----------------------------------------------------------------------------------------------------


class _Memory(NamedTuple):
    """Bytes of a training step inside a layer or a sequence, its input and the dy that comes not counted."""

    kept: int  # from the forward to the backward pass, the output not counted
    forward: int  # largest at any moment of the forward pass, the output counted
    backward: int  # likewise, dx counted
    holds_x: bool
    holds_y: bool


def _memory(layer: Layer, fused: str, n: int) -> _Memory:
    """How much a layer needs for a batch of n images: an estimate that leaves out the kernels' small workspace."""
    size = layer.dtype.itemsize * n
    x, y = size * math.prod(layer.input_shape), size * math.prod(layer.output_shape)
    if isinstance(layer, Sequential):
        return _memory_of_steps(layer, x, n)
    if not isinstance(layer, Residual):
        holds_x, holds_y, extra = layer._keeps(fused)
        return _Memory(extra * n, extra * n + y, extra * n + x, holds_x, holds_y)
    body, side = _memory(layer.body, PLAIN, n), _memory(layer.shortcut, PLAIN, n)
    body_kept, side_kept = body.kept + y * body.holds_y, side.kept + y * side.holds_y
    return _Memory(
        body_kept + side_kept,
        max(body.forward, body_kept + y + side.forward),
        max(body_kept + side.backward, x * bool(layer.shortcut.layers) + body.backward),
        body.holds_x or side.holds_x,
        fused == RELU,
    )


def _memory_of_steps(model: Sequential, x: int, n: int) -> _Memory:
    """Walk forward and back through a sequence and note the largest sum of what is alive."""
    volumes, at, inner = [x], [0], []
    holder: dict[int, int] = {}
    for i, (layer, owned, fused) in enumerate(model._steps):
        inner.append(_memory(layer, fused, n))
        if layer._gives(fused) == "same" or (owned and isinstance(layer, _Activation)):
            at.append(at[-1])  # the output lies where the input did
        else:
            at.append(len(volumes))
            volumes.append(layer.dtype.itemsize * n * math.prod(layer.output_shape))
        for held, v in ((inner[i].holds_x, at[i]), (inner[i].holds_y, at[i + 1])):
            if held:
                holder.setdefault(v, i)

    def alive(i: int) -> int:
        """What steps 0 to i keep, the sequence's input not counted."""
        return sum(m.kept for m in inner[: i + 1]) + sum(volumes[v] for v, h in holder.items() if v and h <= i)

    forward, backward = [0], [0]
    for i, m in enumerate(inner):
        source = volumes[at[i]] * (at[i] > 0 and holder.get(at[i], i) >= i)
        forward.append(alive(i - 1) + source + m.forward * (at[i + 1] != at[i]))
        dy = volumes[at[i + 1]] * (i + 1 < len(inner))
        backward.append(alive(i) - m.kept + dy + m.backward * (at[i + 1] != at[i]))
    last = at[-1]
    kept = alive(len(inner)) - (volumes[last] if last and last in holder else 0)
    return _Memory(kept, max(forward), max(backward), 0 in holder, last in holder and last > 0)


class Row(NamedTuple):
    """A line of `Summary`: a layer in the lecture's letters."""

    name: str
    layer: str
    W2: int | None
    H2: int | None
    D2: int
    n_params: int
    flops: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """The table of a model; `str` prints it.

    Attributes
    ----------
    rows : tuple of Row
        One for the input and one for each layer, in order: ``name``, ``layer``, ``W2``, ``H2`` (None behind
        `Flatten`), ``D2``, ``n_params``, ``flops`` (of one image forward, a multiply-add is two) and
        ``activation_bytes`` (of the output, for the batch).
    batch_size : int
    n_params, flops : int
        Sums over the layers.
    peak_bytes : int
        Estimate of the most memory a training step holds at one moment: parameters, gradients, activations, and
        the gradients on their way; without the optimizer's state and the kernels' workspace.

    Examples
    --------
    >>> print(Sequential([Conv2D(K=10, F=5, P=2), Flatten(), Dense(10)], input_shape=(32, 32, 3)).summary())
    layer                                   W2 x H2 x D2  parameters   FLOPs  activations
    -------------------------------------------------------------------------------------
    input                                    32 x 32 x 3                          12.3 kB
    0.conv     Conv2D(K=10, F=5, S=1, P=2)  32 x 32 x 10         760  1.54 M        41 kB
    1.flatten  Flatten()                           10240                            41 kB
    2.dense    Dense(K=10)                            10     102,410   205 k         40 B
    -------------------------------------------------------------------------------------
    103,170 parameters, 1.74 MFLOPs an image
    a training step with N=1 holds about 920 kB
    """

    rows: tuple[Row, ...]
    batch_size: int
    n_params: int
    flops: int
    peak_bytes: int

    @classmethod
    def of(cls, model: Sequential, batch_size: int) -> Summary:
        """Make the table of a built model."""
        bytes_of = model.dtype.itemsize * batch_size
        rows = [Row("input", "", *_volume(model.input_shape), 0, 0, math.prod(model.input_shape) * bytes_of)]
        for name, layer in _walk(model):
            own = [math.prod(slot.shape) for slot in layer._slots if slot.trained]
            flops = layer.geometry.flops if layer.geometry else 0
            size = math.prod(layer.output_shape) * bytes_of
            text = type(layer).__name__ if isinstance(layer, (Sequential, Residual)) else repr(layer)
            rows.append(Row(name, text, *_volume(layer.output_shape), sum(own), flops, size))
        m = _memory(model, PLAIN, batch_size)
        peak = rows[0].activation_bytes + max(m.forward, m.backward) + 2 * model.flat_params.nbytes
        return cls(tuple(rows), batch_size, sum(r.n_params for r in rows), sum(r.flops for r in rows), peak)

    def __str__(self) -> str:
        table = [("layer", "", "W2 x H2 x D2", "parameters", "FLOPs", "activations")]
        for r in self.rows:
            size = f"{r.W2} x {r.H2} x {r.D2}" if r.W2 else f"{r.D2}"
            params, flops = f"{r.n_params:,}" if r.n_params else "", _short(r.flops) if r.flops else ""
            table.append((r.name, r.layer, size, params, flops, f"{_short(r.activation_bytes)}B"))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for name, layer, *numbers in table:
            left = f"{name:<{widths[0]}}  {layer:<{widths[1]}}"
            lines.append("  ".join([left, *(f"{t:>{w}}" for t, w in zip(numbers, widths[2:], strict=True))]).rstrip())
        rule = "-" * max(map(len, lines))
        end = f"{self.n_params:,} parameters, {_short(self.flops)}FLOPs an image"
        peak = f"a training step with N={self.batch_size} holds about {_short(self.peak_bytes)}B"
        return "\n".join([lines[0], rule, *lines[1:], rule, end, peak])


def _volume(shape: Shape) -> tuple[int | None, int | None, int]:
    return (shape[1], shape[0], shape[2]) if len(shape) == 3 else (None, None, shape[0])


def _walk(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Every layer below a container, each container behind what it holds."""
    parts = {"": layer} if isinstance(layer, Sequential) else {}
    if isinstance(layer, Residual):
        parts = {".body": layer.body, ".shortcut": layer.shortcut}
    for part, sequence in parts.items():
        for i, inner in enumerate(sequence.layers):
            name = f"{prefix}{part}.{i}.{inner.kind}".lstrip(".")
            if isinstance(inner, (Sequential, Residual)):
                yield from _walk(inner, name)
            yield name, inner


def _short(n: int) -> str:
    """Three digits and a prefix: 15,360,000 as 15.4 M."""
    for unit, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= 0.9995 * unit:
            return f"{n / unit:.3g} {letter}" if n < 999.5 * unit else f"{n / unit:.0f} {letter}"
    return f"{n} "
