"""What every layer has: parameters, gradients and their flat buffers; and the passes over whole volumes that layers share.

A layer is made from its settings, `build` (or the `Sequential` it stands in) tells it the volume it gets, then
``forward(x)`` and ``backward(dy)`` do the work. A model's parameters are views of one flat buffer, its gradients of
another.

Inside, each layer has ``_plan(shape)``, which returns the output's shape, and ``_forward`` and ``_backward``, which
trust their arguments. ``reuse`` tells them that the array they get is theirs to overwrite; ``fused`` is one of the
four words below. Shapes are (H, W, D) or (K,) in every layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from . import _kernels, checks, runtime
from ._kernels import memory
from .geometry import ConvGeometry, PoolGeometry

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
    total = np.zeros((2, x.shape[-1] if last else x.shape[1]))
    _kernels.kernel("maps").moments(x, total, not last, runtime.get_num_threads())
    return total[0], total[1]


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
        >>> from fastconv.layers import Conv2D
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
        # np.zeros would begin within a cache line, and so would most weights
        self.flat_params, self.flat_grads, self.flat_state = (memory.empty((total[t],), self.dtype) for t in (True, True, False))
        for flat in (self.flat_params, self.flat_grads, self.flat_state):
            flat.fill(0)
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
