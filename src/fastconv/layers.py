"""All layers by name, the models made of them, `Sequential` and `Residual`, and the table of a model.

What can be done in one pass is: `Sequential` hands a ReLU to the layer before it, lets elementwise layers write over
arrays that nobody needs any more, and drops every activation as soon as the backward pass is done with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .base import MASK, PLAIN, RELU, RELU_UNMASKED, Array, Layer, Shape, _add, _mask
from .weighted import BatchNorm, Conv2D, ConvTranspose2D, Dense, DepthwiseConv2D
from .weightless import (
    ELU,
    AvgPool2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
    _Activation,
)

__all__ = [
    "ELU", "AvgPool2D", "BatchNorm", "Conv2D", "ConvTranspose2D", "Dense", "DepthwiseConv2D", "Dropout", "Flatten",
    "GlobalAvgPool2D", "Layer", "LeakyReLU", "MaxPool2D", "ReLU", "Residual", "Row", "Sequential", "Sigmoid", "Softmax",
    "Summary", "Tanh",
]


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
    freed = y * (fused == RELU)  # its output, once dy is masked by it
    backward = max(body_kept + side.backward, x * bool(layer.shortcut.layers) + body.backward)
    return _Memory(
        body_kept + side_kept,
        max(body.forward, body_kept + y + side.forward),
        max(freed, backward - freed),
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
