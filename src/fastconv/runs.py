"""What the command line trains with, models, optimizers and schedules by name, and the folder that a run leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import checks, deconvnet, models, optim, plots, report, schedules
from .batches import Augmentation, Flip, Normalise, Shift, Warp
from .data import Dataset
from .history import History
from .layers import Conv2D, Sequential

# name: (class, rate that suits the default job)
OPTIMIZERS: dict[str, tuple[Callable[..., Any], float]] = {
    "sgd": (optim.SGD, 0.05),
    "momentum": (optim.Momentum, 0.01),
    "nesterov": (optim.Nesterov, 0.01),
    "adagrad": (optim.AdaGrad, 0.01),
    "rmsprop": (optim.RMSProp, 0.001),
    "adam": (optim.Adam, 0.001),
    "adamw": (optim.AdamW, 0.001),
}
MODELS = models.BUILDERS
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "cosine": lambda lr, steps: schedules.CosineDecay(lr, steps),
    "constant": lambda lr, steps: lr,
    "step": lambda lr, steps: schedules.StepDecay(lr, factor=0.5, every=max(1, steps // 8)),
    "exponential": lambda lr, steps: schedules.ExponentialDecay(lr, math.log(100) / steps),
    "inverse": lambda lr, steps: schedules.InverseTimeDecay(lr, 19 / steps),
}


def augmentation(data: Dataset) -> list[Augmentation]:
    """What leaves the label as it is: digits are turned and bent a little, photographs shifted and mirrored."""
    if data.input_shape[2] == 1:
        return [Warp(rotate=12, scale=0.15, shear=0.15, shift=2, bend=1.0)]
    return [Shift(max(1, data.input_shape[0] // 8)), Flip()]


# ------------------------------------------------------------------------------------------------- a trained model


@dataclass(frozen=True)
class Trained:
    """A model with what it needs to be used: how images are prepared, and the names of its classes."""

    model: Sequential
    prepare: Normalise
    classes: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write model.safetensors, which `models.load` reads too, and beside it model.json with the rest."""
        models.save_weights(self.model, folder / "model.safetensors")
        rest = {"classes": self.classes, "mean": self.prepare.mean, "std": self.prepare.std}
        (folder / "model.json").write_text(json.dumps(rest, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Trained:
        """Read what `save` wrote."""
        file = Path(folder) / "model.json"
        if not file.is_file():
            raise FileNotFoundError(checks.message("load", f"{folder} is no folder that train left", f"{file}"))
        try:
            rest = json.loads(file.read_text(encoding="utf-8"))
            prepare = Normalise(tuple(map(float, rest["mean"])), tuple(map(float, rest["std"])))
            classes = tuple(map(str, rest["classes"]))
        except (ValueError, KeyError, TypeError) as problem:
            raise checks.value_error("load", f"{file} is torn or foreign: {problem!r}", "train's own") from problem
        return cls(models.load(Path(folder) / "model.safetensors"), prepare, classes)


def make_model(name: str, input_shape: tuple[int, int, int], classes: int, seed: int) -> Sequential:
    """The model called `name` for images of that shape."""
    return MODELS[name](classes=classes, input_shape=input_shape, seed=seed)


# -------------------------------------------------------------------------------------------------------- a folder


def write_pictures(folder: Path, trained: Trained, data: Dataset, history: History) -> list[tuple[str, str, Path]]:
    """Draw what applies to this model into `folder`; (heading, text, file) of each."""
    model, x = trained.model, data.x_test[:: -(-len(data.x_test) // 512)]
    ready = trained.prepare(x)
    known = deconvnet.spatial_layers(model)
    convolutions = [i for i in known if isinstance(model.layers[i], Conv2D)]
    figures = {
        "curves": ("Learning curves", "The light line is the loss of every step. Training images are measured while they "
                   "are trained on, with dropout and augmentation; validation images after the epoch, as they are.",
                   plots.learning_curves(history)),
        "volume": ("The volume, layer by layer", "Heights are to scale; thickness grows with the root of the depth.",
                   plots.volume(model)),
    }
    if convolutions:
        first, last = convolutions[0], _after(model, convolutions[-1], known)
        figures["filters"] = ("Filters of the first layer", "Blue is below zero, red above; three channels as colours.",
                              plots.filters(model, first))
        for i in dict.fromkeys((_after(model, first, known), last)):
            figures[f"maps-{i}"] = (f"Activation maps of layer {i}", "For a test image: as a volume, and each.",
                                    plots.activation_maps(model, ready[len(x) // 2 :], i))
        figures["features"] = (f"What the features of layer {last} see", "Their strongest activations on test images, "
                               "carried back to the image by switches and transposed filters (Zeiler and Fergus 2013).",
                               plots.projections(model, ready, last, images=x))
    done = []
    for name, (heading, text, figure) in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
        done.append((heading, text, folder / f"{name}.png"))
    return done


def _after(model: Sequential, layer: int, known: list[int]) -> int:
    """The activation function behind a convolution, if there is one."""
    behind = layer + 1
    return behind if behind in known and model.layers[behind].kind in ("relu", "leaky_relu", "elu", "tanh") else layer


def write_folder(
    folder: Path, trained: Trained, data: Dataset, history: History, headline: str, facts: dict[str, Any],
    texts: dict[str, str],
) -> None:
    """Everything that `train` leaves behind: model, history, pictures and the report that holds them all."""
    trained.save(folder)
    history.to_csv(folder / "history.csv")
    history.to_csv(folder / "steps.csv", per="step")
    pictures = write_pictures(folder, trained, data, history)
    title = f"{(trained.model.config or {}).get('model', 'model')} on {data.name}"
    report.write(folder / "report.html", title, headline, facts, texts, pictures, history.epochs)


def confusion(output: np.ndarray, y: np.ndarray, classes: Sequence[str]) -> str:
    """How often each class (row) was taken for each (column), as a table."""
    n = len(classes)
    counts = np.bincount(y * n + output.argmax(axis=1), minlength=n * n).reshape(n, n)
    names = [name[:10] for name in classes]
    width = max(4, *(len(name) + 1 for name in names))
    lines = ["rows: what it was, columns: what it was taken for", " " * width + "".join(f"{c:>{width}}" for c in names)]
    lines += (f"{c:<{width}}" + "".join(f"{k or '.':>{width}}" for k in row) for c, row in zip(names, counts, strict=True))
    return "\n".join(lines)
