"""What a feature sees: its strongest activations, projected back to the image (Zeiler and Fergus 2013).

The way back mirrors the way forward: a pooling layer is undone through the switches that its forward pass stored, a
ReLU by a ReLU, a convolution by the transposed convolution with the same filters, without biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import checks, ops, pooling
from .layers import AvgPool2D, BatchNorm, Conv2D, ConvTranspose2D, Dropout, Layer, MaxPool2D, Sequential
from .weightless import _Activation

Array = np.ndarray


@dataclass(frozen=True)
class Excitement:
    """One image that excites a feature.

    Attributes
    ----------
    image : int
        Its number among those that were looked at.
    value : float
        The activation.
    place : (row, column)
        Where in the activation map.
    patch : (top, bottom, left, right)
        The part of the image that this place sees, cut at the image's edges.
    projection : ndarray of shape (H1, W1, D1)
        The activation projected back to the image.
    """

    image: int
    value: float
    place: tuple[int, int]
    patch: tuple[int, int, int, int]
    projection: Array


def depth_last(volume: Array, layout: str) -> Array:
    """A batch of volumes as (N, H, W, D)."""
    return volume if layout == "NHWC" else volume.transpose(0, 2, 3, 1)


def spatial_layers(model: Sequential) -> list[int]:
    """Numbers of the layers, from the first on, whose activation maps can be shown and projected back."""
    found = []
    for i, layer in enumerate(model.layers):
        if not isinstance(layer, (Conv2D, MaxPool2D, AvgPool2D, BatchNorm, Dropout, _Activation)) or (
            isinstance(layer, ConvTranspose2D) or len(layer.output_shape) != 3
        ):
            break
        found.append(i)
    return found


def activations(model: Sequential, x: Array, layer: int) -> Array:
    """Activation maps of layer number `layer` for prepared images x, (N, H2, W2, D2)."""
    for inner in model.layers[: layer + 1]:
        x = inner.forward(x)
    return depth_last(x, model.layout)


def excite(
    model: Sequential, x: Array, layer: int, feature: int, *, top: int = 9, batch_size: int = 256
) -> list[Excitement]:
    """The images of x that excite a feature most, each with what it saw there.

    Parameters
    ----------
    model : Sequential
        Convolutions, pooling, activation functions, BatchNorm and Dropout up to `layer`.
    x : ndarray
        Prepared images in the model's layout.
    layer : int
        Which layer's activation maps.
    feature : int
        Which of its maps.
    top : int
        How many images; fewer come back where fewer excite it at all.

    Returns
    -------
    list of Excitement
        The strongest first.

    Raises
    ------
    ValueError
        When there is no such layer or feature, or the way back is not defined for a layer in between.
    """
    check_layer("excite", model, layer)
    checks.count("excite", "feature", feature, 0, model.layers[layer].output_shape[2] - 1)
    checks.count("excite", "top", top)
    best, places = [], []
    for start in range(0, len(x), batch_size):
        maps = activations(model, x[start : start + batch_size], layer)[..., feature]
        flat = maps.reshape(len(maps), -1)
        best.append(flat.max(axis=1))
        places.append(flat.argmax(axis=1))
    strength, place = np.concatenate(best), np.concatenate(places)
    width = model.layers[layer].output_shape[1]
    found = []
    for i in np.argsort(-strength, kind="stable")[:top]:
        if strength[i] > 0:
            where = (int(place[i]) // width, int(place[i]) % width)
            back = project(model, x[i : i + 1], layer, feature, where)
            found.append(Excitement(int(i), float(strength[i]), where, field_of_view(model, layer, where), back))
    return found


def project(model: Sequential, x: Array, layer: int, feature: int, place: tuple[int, int]) -> Array:
    """One activation of one prepared image, x of shape (1, ...), carried back to the image: (H1, W1, D1)."""
    switches: dict[int, Array] = {}
    shapes = []
    for i, inner in enumerate(model.layers[: layer + 1]):
        shapes.append(x.shape)
        if isinstance(inner, MaxPool2D):
            x, switches[i] = pooling.max_pool2d(x, inner.F, **inner._args)
        else:
            x = inner.forward(x)
    signal = np.zeros_like(x)
    at = (0, *place, feature) if model.layout == "NHWC" else (0, feature, *place)
    signal[at] = x[at]
    for i in range(layer, -1, -1):
        signal = _back(model.layers[i], signal, shapes[i], switches.get(i))
    return depth_last(signal, model.layout)[0]


def _back(layer: Layer, signal: Array, shape: tuple[int, ...], switch: Array | None) -> Array:
    """The signal before a layer whose input had this shape."""
    if isinstance(layer, MaxPool2D):
        assert switch is not None
        return pooling.max_pool2d_grad(signal, switch, shape, layout=layer.layout)
    if isinstance(layer, AvgPool2D):
        return pooling.avg_pool2d_grad(signal, shape, layer.F, **layer._args)
    if isinstance(layer, BatchNorm):
        scale = (layer.gamma / np.sqrt(layer.var + layer.eps)).astype(signal.dtype)
        return signal * (scale if layer.last else scale[:, None, None])
    if isinstance(layer, Conv2D):
        if layer.activation:
            signal = np.maximum(signal, 0)
        how: dict[str, Any] = layer._args
        return ops.conv_transpose2d(signal, layer.w, output_padding=_left_over(layer), **how)
    return signal if isinstance(layer, Dropout) else np.maximum(signal, 0)


def _left_over(layer: Conv2D) -> tuple[int, int]:
    """Rows and columns of the input that no window reached."""
    w: Any = layer.geometry and layer.geometry.window
    H1, W1 = layer.input_shape[:2]
    reach = [
        (n2 - 1) * s - sum(p) + d * (f - 1) + 1
        for n2, s, p, d, f in zip(w.size, w.S, w.pads, w.dilation, w.F, strict=True)
    ]
    return H1 - reach[0], W1 - reach[1]


def field_of_view(model: Sequential, layer: int, place: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of the image that a place of a layer's maps sees: (top, bottom, left, right), ends exclusive."""
    spans = [[p, p + 1] for p in place]
    for inner in reversed(model.layers[: layer + 1]):
        if inner.geometry is not None:
            w: Any = inner.geometry.window
            for axis, span in enumerate(spans):
                s, before, f, d = w.S[axis], w.pads[axis][0], w.F[axis], w.dilation[axis]
                span[0] = span[0] * s - before
                span[1] = (span[1] - 1) * s - before + d * (f - 1) + 1
    (top, bottom), (left, right) = spans
    H1, W1 = model.input_shape[:2]
    return max(0, top), min(H1, bottom), max(0, left), min(W1, right)


def check_layer(where: str, model: Any, layer: Any) -> int:
    """Check that `layer` numbers a layer of `model` whose activation maps can be carried back."""
    if not isinstance(model, Sequential):
        raise checks.type_error(where, "model must be a Sequential", "a Sequential", type(model).__name__)
    known = spatial_layers(model)
    checks.count(where, "layer", layer, 0, len(model.layers) - 1)
    if layer not in known:
        what = f"layer {layer}, {model.layers[layer]!r}, has no activation maps that can be carried back"
        raise checks.value_error(where, what, f"a layer from 0 to {known[-1]}" if known else "a ConvNet", layer)
    return layer
