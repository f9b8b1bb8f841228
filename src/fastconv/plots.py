"""Pictures of training and of what a ConvNet has learnt (matplotlib, extra ``demo``). Every function returns a Figure.

Figures are made without pyplot: no window opens and nothing needs closing; save one with ``figure.savefig(path)``, or
let a notebook show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import checks, deconvnet
from .extras import need
from .history import History
from .layers import AvgPool2D, Conv2D, Dense, GlobalAvgPool2D, Layer, MaxPool2D, Residual, Sequential

Array = np.ndarray

# Okabe and Ito's colours, told apart by every kind of eye, in an order that contrasts.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D3B", "#7F7F7F")
INK, FAINT, GRID = "#222222", "#8a8f98", "#e3e6ea"


def _figure(width: float, height: float, **how: Any) -> Any:
    need("plots", "matplotlib", "demo")
    figure = need("plots", "matplotlib.figure", "demo").Figure(figsize=(width, height), layout="constrained", **how)
    need("plots", "matplotlib.backends.backend_agg", "demo").FigureCanvasAgg(figure)
    return figure


def _clean(axes: Any, xlabel: str = "", ylabel: str = "", title: str = "") -> Any:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    return axes


def _log(axes: Any, which: str) -> None:
    """A logarithmic scale whose ticks read 0.2, not 2 x 10^-1."""
    ticker = need("plots", "matplotlib.ticker", "demo")
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name in which:
            getattr(axes, f"set_{name}scale")("log")
            axis.set_major_locator(ticker.LogLocator(subs=(1,) if name == "x" else (1, 2, 5)))
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(ticker.NullFormatter())


def _legend(axes: Any, **how: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, **how)


def smooth(values: Sequence[float], window: int) -> Array:
    """Mean of each value and those around it, `window` in all, fewer at the ends.

    Examples
    --------
    >>> smooth([0.0, 3.0, 6.0, 0.0], 3).tolist()
    [1.5, 3.0, 3.0, 3.0]
    """
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + (window - 1) // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)


# ------------------------------------------------------------------------------------------------------ training


def learning_curves(history: History) -> Any:
    """Loss of every step and of every epoch, and the accuracy, on training and validation images.

    Parameters
    ----------
    history : History
        From `Trainer.fit`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    losses = history.steps["loss"]
    if not losses:
        raise checks.value_error("learning_curves", "the history is empty", "at least one step", "none")
    has_accuracy = bool(history["accuracy"])
    figure = _figure(10 if has_accuracy else 5.5, 3.8)
    left, *right = figure.subplots(1, 2 if has_accuracy else 1, squeeze=False)[0]
    per_epoch = history.epochs[0]["steps"] if history.epochs else len(losses)
    at = np.arange(1, len(losses) + 1) / per_epoch
    left.plot(at, losses, color=COLOURS[0], alpha=0.18, linewidth=0.8)
    left.plot(at, smooth(losses, max(5, len(losses) // 60)), color=COLOURS[0], linewidth=1.6, label="training")
    ends = [row["steps"] / per_epoch for row in history.epochs if "validation_loss" in row]
    if ends:
        left.plot(ends, history["validation_loss"], "o-", color=COLOURS[1], markersize=3, label="validation")
    if min(losses) > 0:
        _log(left, "y")
    _legend(_clean(left, "epoch", "loss", "Loss"))
    for axes in right:
        epochs = [row["steps"] / per_epoch for row in history.epochs]
        axes.plot(epochs, np.array(history["accuracy"]) * 100, color=COLOURS[0], linewidth=1.6, label="training")
        validation = np.array(history["validation_accuracy"]) * 100
        if len(validation):
            axes.plot(ends, validation, "o-", color=COLOURS[1], markersize=3, linewidth=1.6, label="validation")
            axes.annotate(f"{validation[-1]:.1f}%", (ends[-1], validation[-1]), xytext=(0, 6), ha="right", fontsize=9,
                          textcoords="offset points", color=COLOURS[1], fontweight="bold")
        # What matters happens at the top: leave the first, low epochs out of sight.
        lowest = min([*np.array(history["accuracy"]) * 100, *validation])
        axes.set_ylim(max(lowest, min(90.0, np.median(history["accuracy"]) * 100 - 5)) - 0.5, 100.4)
        _legend(_clean(axes, "epoch", "accuracy, %", "Accuracy"), loc="lower right")
    return figure


def lr_search(candidates: Sequence[Any], iterations: int | None = None) -> Any:
    """Validation loss over the rate, a line for each optimizer, and the loss while each candidate was tried.

    Parameters
    ----------
    candidates : sequence of Candidate
        From `training.lr_search`.
    iterations : int, optional
        For the title; by default what the candidates have.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not candidates:
        raise checks.value_error("lr_search", "there is nothing to draw", "at least one candidate", "none")
    figure = _figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    n = iterations or max(len(c.losses) for c in candidates)
    names = list(dict.fromkeys(c.name for c in candidates))
    top = max([c.validation_loss for c in candidates if not c.diverged], default=1.0)
    for name, colour in zip(names, _colours(len(names)), strict=True):
        mine = sorted((c for c in candidates if c.name == name), key=lambda c: c.lr)
        good = [c for c in mine if not c.diverged]
        left.plot([c.lr for c in good], [c.validation_loss for c in good], "o-", color=colour, markersize=4, label=name)
        bad = [c.lr for c in mine if c.diverged]
        left.plot(bad, [top * 1.15] * len(bad), "x", color=colour)
        if good:
            best = min(good, key=lambda c: c.validation_loss)
            left.plot(best.lr, best.validation_loss, "o", color=colour, markersize=9, fillstyle="none")
            right.plot(smooth(best.losses, 9), color=colour, linewidth=1.4, label=f"{name}, {best.lr:g}")
    _log(left, "xy")
    _log(right, "y")
    _legend(_clean(left, "rate", f"validation loss after {n} iterations", "Every candidate (x diverged)"))
    _legend(_clean(right, "iteration", "training loss", "The best rate of each"))
    return figure


def race(runs: Mapping[str, History]) -> Any:
    """The optimizers side by side: loss against step and against time, smoothed.

    Parameters
    ----------
    runs : mapping of str to History
        By name.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not runs:
        raise checks.value_error("race", "there is nothing to draw", "at least one run", "none")
    figure = _figure(10.5, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, history), colour in zip(runs.items(), _colours(len(runs)), strict=True):
        losses = smooth(history.steps["loss"], max(9, len(history.steps["loss"]) // 25))
        left.plot(np.arange(1, len(losses) + 1), losses, color=colour, linewidth=1.5, label=name)
        right.plot(history.steps["seconds"], losses, color=colour, linewidth=1.5, label=name)
    _log(left, "y")
    _clean(left, "step", "training loss", "Loss against step")
    _legend(_clean(right, "seconds", "", "Loss against time"), loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


# ------------------------------------------------------------------------------------------- filters and maps


def _hide(axes: Any) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GRID)
    return axes


def _picture(x: Array) -> Array:
    """One (H, W, C) image stretched to 0 ... 1, as imshow takes it: grey, or red, green, blue."""
    low, high = float(x.min()), float(x.max())
    x = (x - low) / (high - low) if high > low else np.zeros_like(x)
    return x if x.shape[2] == 3 else x.mean(axis=2)


def _grid(n: int, wide: float = 1.6) -> tuple[int, int]:
    """Rows and columns for n pictures, `wide` times as many columns as rows."""
    columns = min(n, max(1, math.ceil(math.sqrt(n * wide))))
    return math.ceil(n / columns), columns


def filters(model: Sequential | Array, layer: int = 0, *, most: int = 64) -> Any:
    """The filters of a convolutional layer, usually the first: each F x F, in colour where they are 3 deep.

    Parameters
    ----------
    model : Sequential, or ndarray of shape (F, F, D1, K)
        A model, or the weights themselves, depth last.
    layer : int
        Which of the model's layers.
    most : int
        How many to draw.

    Returns
    -------
    matplotlib.figure.Figure
        Filters of one channel are drawn on one scale, blue below 0 and red above; of others than 1 or 3, the first.
    """
    w = _weights(model, layer)
    n = min(w.shape[3], most)
    rows, columns = _grid(n)
    figure = _figure(max(3.0, 0.85 * columns), 0.85 * rows + 0.7)
    reach = float(np.abs(w).max()) or 1.0
    for k, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if k >= n:
            axes.set_axis_off()
        elif w.shape[2] == 3:
            _hide(axes).imshow(np.clip(w[..., k] / (2 * reach) + 0.5, 0, 1), interpolation="nearest")
        else:
            _hide(axes).imshow(w[:, :, 0, k], cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    shown = f"{n} of the {w.shape[3]}" if n < w.shape[3] else f"The {n}"
    figure.suptitle(f"{shown} filters, {w.shape[0]}x{w.shape[1]}x{w.shape[2]}", x=0.01, ha="left", fontsize=11,
                    color=INK, fontweight="bold")
    return figure


def _weights(model: Any, layer: int) -> Array:
    if isinstance(model, np.ndarray):
        if model.ndim != 4 or model.size == 0:
            raise checks.value_error("filters", "weights have four axes", "(F, F, D1, K)", model.shape)
        return model
    if not isinstance(model, Sequential):
        raise checks.type_error("filters", "model must be a model or weights", "a Sequential", type(model).__name__)
    inner = model.layers[checks.count("filters", "layer", layer, 0, len(model.layers) - 1)]
    if not isinstance(inner, Conv2D):
        first = next((i for i, other in enumerate(model.layers) if isinstance(other, Conv2D)), "none there")
        raise checks.value_error("filters", f"layer {layer}, {inner!r}, has no filters", f"layer {first}", layer)
    return inner.w if model.layout == "NHWC" else inner.w.transpose(2, 3, 1, 0)


def activation_maps(model: Sequential, x: Array, layer: int = 0, *, most: int = 64) -> Any:
    """The activation maps of a layer for one image: stacked to a volume, as in the lecture, and one by one.

    Parameters
    ----------
    model : Sequential
        The model.
    x : ndarray of shape (1, H1, W1, D1)
        One prepared image, in the model's layout.
    layer : int
        Which layer's maps.
    most : int
        How many to draw.

    Returns
    -------
    matplotlib.figure.Figure
    """
    deconvnet.check_layer("activation_maps", model, layer)
    maps = deconvnet.activations(model, x[:1], layer)[0]
    image = deconvnet.depth_last(x[:1], model.layout)[0]
    n = min(maps.shape[2], most)
    rows, columns = _grid(n, wide=1.3)
    figure = _figure(12, 4.6)
    left, middle, right = figure.subfigures(1, 3, width_ratios=[0.7, 1.15, 1.5])
    axes = _hide(left.subplots())
    axes.imshow(_picture(image), cmap="gray", interpolation="nearest")
    axes.set_title(f"input {image.shape[1]}x{image.shape[0]}x{image.shape[2]}", fontsize=10, color=INK)
    _stack(middle.subplots(), maps[..., :n])
    kind = type(model.layers[layer]).__name__
    middle.suptitle(f"{maps.shape[1]}x{maps.shape[0]}x{maps.shape[2]}, layer {layer} ({kind})", fontsize=10, color=INK)
    low, high = float(maps.min()), float(maps.max())
    for k, axes in enumerate(right.subplots(rows, columns, squeeze=False).flat):
        if k < n:
            _hide(axes).imshow(maps[..., k], cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        else:
            axes.set_axis_off()
    return figure


def _stack(axes: Any, maps: Array) -> None:
    """Maps drawn as sheets behind one another: the activation volume."""
    H, W, D = maps.shape
    D = min(D, 24)
    step = 0.9 / D * max(H, W)
    low, high = float(maps.min()), float(maps.max())
    rectangle = need("plots", "matplotlib.patches", "demo").Rectangle
    for k in range(D - 1, -1, -1):
        x, y = k * step, k * step * 0.6
        axes.imshow(maps[..., k], cmap="magma", vmin=low, vmax=high, interpolation="nearest", zorder=D - k,
                    extent=(x, x + W, y, y + H))
        axes.add_patch(rectangle((x, y), W, H, fill=False, edgecolor="white", linewidth=0.8, zorder=D - k + 0.5))
    reach = (D - 1) * step
    axes.set_xlim(-0.02 * W, W + reach + 0.02 * W)
    axes.set_ylim(-0.02 * H, H + 0.6 * reach + 0.02 * H)
    axes.set_axis_off()


def projections(
    model: Sequential, x: Array, layer: int, features: Sequence[int] | None = None, *, top: int = 9,
    images: Array | None = None,
) -> Any:
    """What features see: for each, its strongest activations carried back to the image, beside the patches themselves.

    Parameters
    ----------
    model : Sequential
        The model.
    x : ndarray
        Prepared images to search, in the model's layout.
    layer : int
        Which layer's features.
    features : sequence of int, optional
        Which of them; by default the six that some image excites most.
    top : int
        Images for each feature.
    images : ndarray of shape (N, H1, W1, D1), optional
        What to cut the patches from, if not x itself.

    Returns
    -------
    matplotlib.figure.Figure
    """
    deconvnet.check_layer("projections", model, layer)
    if features is None:
        strength = deconvnet.activations(model, x[:256], layer).max(axis=(0, 1, 2))
        features = [int(k) for k in np.argsort(-strength, kind="stable")[:6]]
    shown = images if images is not None else deconvnet.depth_last(x, model.layout)
    columns = min(3, len(features))
    rows = math.ceil(len(features) / columns)
    side = math.ceil(math.sqrt(top))
    figure = _figure(4.1 * columns, 2.3 * rows + 0.5)
    cells = figure.subfigures(rows, columns, squeeze=False)
    for k, feature in enumerate(features):
        cell = cells.flat[k]
        cell.suptitle(f"feature {feature}", fontsize=9, color=INK)
        found = deconvnet.excite(model, x, layer, feature, top=top)
        left, right = (half.subplots(side, side, squeeze=False) for half in cell.subfigures(1, 2))
        for i, (back, patch) in enumerate(zip(left.flat, right.flat, strict=True)):
            if i >= len(found):
                back.set_axis_off()
                patch.set_axis_off()
                continue
            t, b, lft, r = found[i].patch
            _hide(back).imshow(_signed(found[i].projection[t:b, lft:r]), cmap="gray", vmin=0, vmax=1)
            _hide(patch).imshow(_picture(shown[found[i].image, t:b, lft:r].astype(np.float64)), cmap="gray")
    title = f"Layer {layer}: the activation carried back (left) and the patch that caused it (right)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, fontweight="bold")
    return figure


def _signed(x: Array) -> Array:
    """A projection with 0 at middle grey."""
    reach = float(np.abs(x).max()) or 1.0
    x = x / (2 * reach) + 0.5
    return x if x.shape[2] == 3 else x.mean(axis=2)


# ----------------------------------------------------------------------------------------------------- the volume


def volume(model: Sequential) -> Any:
    """The volume shrinking layer by layer: a box for every layer that changes it, as tall as its maps are.

    Parameters
    ----------
    model : Sequential
        A built model.

    Returns
    -------
    matplotlib.figure.Figure
        Heights are to scale; thickness grows with the root of the depth; vectors are thin bars.
    """
    if not isinstance(model, Sequential) or not model.built:
        raise checks.type_error("volume", "model must be a built Sequential", "a Sequential", type(model).__name__)
    boxes = [("input", model.input_shape)]
    for layer in model.layers:
        if isinstance(layer, (Conv2D, MaxPool2D, AvgPool2D, GlobalAvgPool2D, Dense, Residual, Sequential)):
            boxes.append((_word(layer), layer.output_shape))
    tallest = max(shape[0] for _, shape in boxes if len(shape) == 3) if len(model.input_shape) == 3 else 1
    figure = _figure(min(24, 1.5 + 1.05 * len(boxes)), 4.2)
    axes = figure.subplots()
    at = 0.0
    for name, shape in boxes:
        at = _box(axes, at, name, shape, tallest) + 0.42
    axes.set_xlim(-0.3, at)
    axes.set_ylim(-0.95, 3.4)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return figure


def _word(layer: Layer) -> str:
    if isinstance(layer, Conv2D) and layer.geometry:
        return f"{layer.kind.replace('_', ' ')} {layer.geometry.window.F[0]}x{layer.geometry.window.F[1]}"
    return {"max_pool": "max pool", "avg_pool": "avg pool", "global_avg_pool": "mean"}.get(layer.kind, layer.kind)


def _box(axes: Any, at: float, name: str, shape: tuple[int, ...], tallest: int) -> float:
    """One volume in oblique projection, with its size and its layer's name; where it ends."""
    polygon = need("plots", "matplotlib.patches", "demo").Polygon
    if len(shape) == 3:
        height, width = 2.0 * shape[0] / tallest, 2.0 * shape[1] / tallest * 0.35
        thick, label = 0.045 * math.sqrt(shape[2]), f"{shape[1]}x{shape[0]}\nx{shape[2]}"
        colour = COLOURS[0] if name.startswith(("conv", "depthwise")) else COLOURS[4] if "pool" in name else COLOURS[2]
    else:
        height, width, thick, label, colour = 0.25 + 0.28 * math.log10(shape[0]), 0.08, 0.1, f"{shape[0]}", COLOURS[3]
    base = (2.0 - height) / 2
    right, up = width * 0.8, width * 0.8
    front = [(at, base), (at + thick, base), (at + thick, base + height), (at, base + height)]
    top = [front[3], front[2], (at + thick + right, base + height + up), (at + right, base + height + up)]
    side = [front[1], (at + thick + right, base + up), (at + thick + right, base + height + up), front[2]]
    for corners, alpha in ((side, 0.55), (top, 0.35), (front, 0.8)):
        axes.add_patch(polygon(corners, facecolor=colour, alpha=alpha, edgecolor="white", linewidth=0.7))
    middle = at + (thick + right) / 2
    axes.text(middle, -0.12, label, ha="center", va="top", fontsize=8, color=INK, linespacing=1.1)
    axes.text(middle, -0.6, name, ha="center", va="top", fontsize=8, color=FAINT)
    return at + max(thick + right, 0.5)
