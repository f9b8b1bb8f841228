"""ConvNets that people know, weight files, and weights from PyTorch.

Each builder returns a `Sequential` ready to train; its arguments are those of every builder: ``input_shape``
(H1, W1, D1), ``classes``, ``layout``, ``dtype``, ``seed``. None ends in a softmax: train with `softmax_cross_entropy`.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import checks
from .extras import need
from .layers import (
    BatchNorm,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Layer,
    MaxPool2D,
    ReLU,
    Residual,
    Sequential,
)

Array = np.ndarray
Shape = tuple[int, ...]


def _model(name: str, layers: list[Layer], config: dict[str, Any]) -> Sequential:
    """Build the layers, and note how to build them again."""
    how = {key: config.pop(key) for key in ("input_shape", "layout", "dtype", "seed")}
    model = Sequential(layers, how["input_shape"], layout=how["layout"], dtype=how["dtype"], seed=how["seed"])
    shape = {"input_shape": list(model.input_shape), "layout": model.layout, "dtype": model.dtype.name}
    model.config = {"model": name, **shape, **config}
    return model


# --- small ones ----------------------------------------------------------------------------------------------------


def lenet(
    input_shape: Shape = (28, 28, 1), classes: int = 10, *, hidden: int = 128, dropout: float = 0.25,
    layout: str = "NHWC", dtype: Any = "float32", seed: Any = 0,
) -> Sequential:  # fmt: skip
    """A ConvNet for handwritten digits, after LeCun et al. 1998: two layers of 5x5 filters and two dense ones.

    Parameters
    ----------
    input_shape, classes, layout, dtype, seed
        As every builder's.
    hidden : int
        Outputs of the first dense layer.
    dropout : float
        Share of its outputs dropped in training.

    Examples
    --------
    >>> model = lenet()
    >>> [layer.output_shape for layer in model.layers if type(layer) is MaxPool2D]
    [(14, 14, 32), (7, 7, 64)]
    """
    config = dict(locals())
    layers = [
        *(Conv2D(K=32, F=5, P=2), ReLU(), MaxPool2D(2, fit="floor")),
        *(Conv2D(K=64, F=5, P=2), ReLU(), MaxPool2D(2, fit="floor")),
        *(Flatten(), Dense(hidden), ReLU(), Dropout(dropout), Dense(classes, init="glorot")),
    ]
    return _model("lenet", layers, config)


def mnist_net(
    input_shape: Shape = (28, 28, 1), classes: int = 10, *, hidden: int = 128, dropout: float = 0.25,
    layout: str = "NHWC", dtype: Any = "float32", seed: Any = 0,
) -> Sequential:  # fmt: skip
    """A deeper `lenet`, more accurate at about its cost: two layers of 64 3x3 filters in place of the one of 5x5.

    Parameters
    ----------
    input_shape, classes, layout, dtype, seed
        As every builder's.
    hidden, dropout
        As `lenet`'s.

    Examples
    --------
    >>> mnist_net().flat_params.size
    459082
    """
    config = dict(locals())
    layers = [
        *(Conv2D(K=32, F=5, P=2), ReLU(), MaxPool2D(2, fit="floor")),
        *(Conv2D(K=64, F=3, P=1), ReLU(), Conv2D(K=64, F=3, P=1), ReLU(), MaxPool2D(2, fit="floor")),
        *(Flatten(), Dense(hidden), ReLU(), Dropout(dropout), Dense(classes, init="glorot")),
    ]
    return _model("mnist_net", layers, config)


def cifar_net(
    input_shape: Shape = (32, 32, 3), classes: int = 10, *, hidden: int = 256, dropout: float = 0.5,
    layout: str = "NHWC", dtype: Any = "float32", seed: Any = 0,
) -> Sequential:  # fmt: skip
    """A ConvNet for small colour pictures: three stages of two 3x3 layers, 64, 128 and 256 filters, and two dense ones.

    Parameters
    ----------
    input_shape, classes, layout, dtype, seed
        As every builder's.
    hidden, dropout
        As `lenet`'s.

    Examples
    --------
    >>> cifar_net().layers[-5].output_shape
    (4096,)
    """
    config = dict(locals())
    layers: list[Layer] = []
    for K in (64, 128, 256):
        layers += [Conv2D(K=K, F=3, P=1), ReLU(), Conv2D(K=K, F=3, P=1), ReLU(), MaxPool2D(2, fit="floor")]
    layers += [Flatten(), Dense(hidden), ReLU(), Dropout(dropout), Dense(classes, init="glorot")]
    return _model("cifar_net", layers, config)


# --- VGG -----------------------------------------------------------------------------------------------------------

# Filters of each layer (Simonyan and Zisserman 2015, table 1); 0 is a pooling layer.
_VGG = {
    "vgg11": (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg13": (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    "vgg16": (64, 64, 0, 128, 128, 0, *(256,) * 3, 0, *(512,) * 3, 0, *(512,) * 3, 0),
    "vgg19": (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4, 0),
}


def _vgg(name: str, config: dict[str, Any]) -> Sequential:
    layers: list[Layer] = []
    for K in _VGG[name]:
        layers += [Conv2D(K=K, F=3, P=1), ReLU()] if K else [MaxPool2D(2, fit="floor")]
    layers.append(Flatten())
    for _ in range(2 if config["hidden"] else 0):
        layers += [Dense(config["hidden"]), ReLU(), Dropout(config["dropout"])]
    layers.append(Dense(config["classes"], init="glorot"))
    return _model(name, layers, config)


def vgg11(
    input_shape: Shape = (224, 224, 3), classes: int = 1000, *, hidden: int = 4096, dropout: float = 0.5,
    layout: str = "NHWC", dtype: Any = "float32", seed: Any = 0,
) -> Sequential:  # fmt: skip
    """Configuration A of VGG: 8 layers of 3x3 filters, 3 dense ones; arguments as `vgg16`."""
    return _vgg("vgg11", dict(locals()))


def vgg13(
    input_shape: Shape = (224, 224, 3), classes: int = 1000, *, hidden: int = 4096, dropout: float = 0.5,
    layout: str = "NHWC", dtype: Any = "float32", seed: Any = 0,
) -> Sequential:  # fmt: skip
    """Configuration B of VGG: 10 layers of 3x3 filters, 3 dense ones; arguments as `vgg16`."""
    return _vgg("vgg13", dict(locals()))


def vgg16(
    input_shape: Shape = (224, 224, 3), classes: int = 1000, *, hidden: int = 4096, dropout: float = 0.5,
    layout: str = "NHWC", dtype: Any = "float32", seed: Any = 0,
) -> Sequential:  # fmt: skip
    """VGG-16 (Simonyan and Zisserman 2015, configuration D): 13 layers of 3x3 filters, 3 dense ones.

    Parameters
    ----------
    input_shape, classes, layout, dtype, seed
        As every builder's. From 32 x 32 pixels on; five pooling layers halve them, rounding down.
    hidden : int
        Outputs of each of the two hidden dense layers; 0 leaves them out, as is usual for 32 x 32 pixels.
    dropout : float
        Share of their outputs dropped in training.

    Examples
    --------
    >>> model = vgg16((32, 32, 3), classes=10, hidden=0)
    >>> model.flat_params.size
    14719818
    """
    return _vgg("vgg16", dict(locals()))


def vgg19(
    input_shape: Shape = (224, 224, 3), classes: int = 1000, *, hidden: int = 4096, dropout: float = 0.5,
    layout: str = "NHWC", dtype: Any = "float32", seed: Any = 0,
) -> Sequential:  # fmt: skip
    """Configuration E of VGG: 16 layers of 3x3 filters, 3 dense ones; arguments as `vgg16`."""
    return _vgg("vgg19", dict(locals()))


# --- ResNet --------------------------------------------------------------------------------------------------------


def _conv_norm(K: int, F: int, S: int = 1) -> list[Layer]:
    return [Conv2D(K=K, F=F, S=S, P=F // 2, bias=False, fit="floor"), BatchNorm()]


def _basic(K: int, S: int, same: bool) -> list[Layer]:
    """Two 3x3 layers beside a shortcut."""
    body = [*_conv_norm(K, 3, S), ReLU(), *_conv_norm(K, 3)]
    return [Residual(body, None if same else _conv_norm(K, 1, S)), ReLU()]


def _bottleneck(K: int, S: int, same: bool) -> list[Layer]:
    """1x1, 3x3 and 1x1 layers beside a shortcut; the stride is the 3x3 layer's, as in torchvision."""
    body = [*_conv_norm(K, 1), ReLU(), *_conv_norm(K, 3, S), ReLU(), *_conv_norm(4 * K, 1)]
    return [Residual(body, None if same else _conv_norm(4 * K, 1, S)), ReLU()]


def _resnet(
    name: str, block: Callable[..., list[Layer]], depths: tuple[int, ...], config: dict[str, Any]
) -> Sequential:  # fmt: skip
    layers: list[Layer] = [*_conv_norm(64, 7, 2), ReLU(), MaxPool2D(3, S=2, P=1, fit="floor")]
    for stage, depth in enumerate(depths):
        for i in range(depth):
            S = 2 if stage and not i else 1
            # The very first block of ResNet-18 keeps the volume; every other stage starts with another depth.
            layers += block(64 * 2**stage, S, bool(i) or (block is _basic and not stage))
    layers += [GlobalAvgPool2D(), Dense(config["classes"], init="glorot")]
    return _model(name, layers, config)


def resnet18(
    input_shape: Shape = (224, 224, 3), classes: int = 1000, *, layout: str = "NHWC", dtype: Any = "float32",
    seed: Any = 0,
) -> Sequential:  # fmt: skip
    """ResNet-18 (He et al. 2016): a 7x7 layer, then eight blocks of two 3x3 layers; arguments as every builder's.

    Examples
    --------
    >>> resnet18((32, 32, 3), classes=10).flat_params.size
    11181642
    """
    return _resnet("resnet18", _basic, (2, 2, 2, 2), dict(locals()))


def resnet50(
    input_shape: Shape = (224, 224, 3), classes: int = 1000, *, layout: str = "NHWC", dtype: Any = "float32",
    seed: Any = 0,
) -> Sequential:  # fmt: skip
    """ResNet-50 (He et al. 2016): a 7x7 layer, then sixteen blocks of 1x1, 3x3 and 1x1; arguments as every builder's.

    The stride of a block is that of its 3x3 layer, as in PyTorch.
    """
    return _resnet("resnet50", _bottleneck, (3, 4, 6, 3), dict(locals()))


# --- MobileNet -----------------------------------------------------------------------------------------------------


def mobilenet_v1(
    input_shape: Shape = (224, 224, 3), classes: int = 1000, *, alpha: float = 1.0, dropout: float = 0.001,
    layout: str = "NHWC", dtype: Any = "float32", seed: Any = 0,
) -> Sequential:  # fmt: skip
    """MobileNet (Howard et al. 2017): a 3x3 layer, then thirteen pairs of a depthwise and a 1x1 layer.

    Parameters
    ----------
    input_shape, classes, layout, dtype, seed
        As every builder's.
    alpha : float
        Multiplies the number of filters of every layer.
    dropout : float
        Share of the last features dropped in training.

    Examples
    --------
    >>> mobilenet_v1((32, 32, 3), classes=10, alpha=0.25).output_shape
    (10,)
    """
    config = dict(locals())
    checks.number("mobilenet_v1", "alpha", alpha, 1 / 32)
    layers = [*_conv_norm(int(32 * alpha), 3, 2), ReLU()]
    stages = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for K, S in stages:
        layers += [DepthwiseConv2D(F=3, S=S, P=1, bias=False, fit="floor"), BatchNorm(), ReLU()]
        layers += [*_conv_norm(int(K * alpha), 1), ReLU()]
    layers += [GlobalAvgPool2D(), Dropout(dropout), Dense(classes, init="glorot")]
    return _model("mobilenet_v1", layers, config)


BUILDERS: dict[str, Callable[..., Sequential]] = {
    f.__name__: f
    for f in (lenet, mnist_net, cifar_net, vgg11, vgg13, vgg16, vgg19, resnet18, resnet50, mobilenet_v1)
}  # fmt: skip


# --- files ---------------------------------------------------------------------------------------------------------

_CONFIG = "fastconv"  # the name under which a file holds how to build the model


def save_weights(model: Layer, path: str | Path) -> None:
    """Write a model's parameters and state to a .npz or .safetensors file; what stood there stays until it is whole.

    Parameters
    ----------
    model : Layer
    path : str or Path
        Ends in ``.npz`` or ``.safetensors`` (extra ``demo``).

    Raises
    ------
    ValueError
        If the name has another ending.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(lenet(seed=1), f"{folder}/lenet.npz")
    ...     model = load(f"{folder}/lenet.npz")
    >>> bool((model.flat_params == lenet(seed=1).flat_params).all())
    True
    """
    path = Path(path)
    ending = _ending("save_weights", path)
    library = need("save_weights", "safetensors.numpy", "demo") if ending == ".safetensors" else None
    state, config = model.state_dict(), json.dumps(getattr(model, "config", None))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if library:
            temporary.write_bytes(library.save(state, {_CONFIG: config}))
        else:
            with open(temporary, "wb") as file:
                np.savez(file, **state, **{_CONFIG: np.array(config)})  # type: ignore[arg-type]
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(model: Layer, path: str | Path) -> None:
    """Take parameters and state from a file that `save_weights` wrote; a file that does not fit changes nothing.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If it is no .npz or .safetensors file, or does not fit the model.
    """
    state, _ = _read("load_weights", Path(path))
    model.load_state_dict(state)


def load(path: str | Path) -> Sequential:
    """Build the model that `save_weights` wrote, if a builder of this module made it, with its weights.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError, TypeError
        If it is no such file.
    """
    path = Path(path)
    state, text = _read("load", path)
    try:
        config = json.loads(text)
        build = BUILDERS[config.pop("model")]
    except (ValueError, KeyError, TypeError, AttributeError):
        rule = "a file of a model of fastconv.models, or load_weights(model, path)"
        raise checks.value_error("load", f"{path} does not say how to build its model", rule) from None
    try:
        model = build(tuple(config.pop("input_shape")), **config)
    except (KeyError, TypeError, ValueError) as error:
        raise checks.value_error("load", f"{path} describes a model that cannot be built ({error})") from None
    model.load_state_dict(state)
    return model


def _ending(where: str, path: Path) -> str:
    if path.suffix not in (".npz", ".safetensors"):
        raise checks.value_error(where, "the file's name must tell its format", ".npz or .safetensors", path.name)
    return path.suffix


def _read(where: str, path: Path) -> tuple[dict[str, Array], str]:
    """Arrays by name, and the JSON of how to build the model ("null" if the file has none)."""
    if _ending(where, path) == ".npz":
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
            raise checks.value_error(where, f"{path} is no .npz file that can be read ({error})") from None
        return arrays, str(arrays.pop(_CONFIG, "null"))
    library = need(where, "safetensors", "demo")
    try:
        with library.safe_open(path, "numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get(_CONFIG, "null")
    except (library.SafetensorError, TypeError, AttributeError) as error:
        raise checks.value_error(where, f"{path} is no safetensors file that can be read ({error})") from None


# --- weights from PyTorch ------------------------------------------------------------------------------------------


def load_torch(model: Sequential, state: Mapping[str, Array] | str | Path) -> None:
    """Take the weights of the same network in PyTorch, such as torchvision's ``vgg16`` or ``resnet50``.

    Parameters
    ----------
    model : Sequential
        In any layout and dtype.
    state : dict of str to ndarray, or path
        A PyTorch state dict with its values as NumPy arrays, or a .safetensors or .npz file of it.

    Raises
    ------
    ValueError, TypeError
        If the two are not the same network; then nothing is changed.

    Notes
    -----
    Convolutions, batch normalisations and dense layers are matched each in their order: that of the state, or of the
    numbers in the names where it comes from a .safetensors file, which keeps no order. Weights (K, D1/groups, F, F)
    are turned to the model's layout; what stands behind a `Flatten` gets its inputs in the model's order, since
    PyTorch stretches (D, H, W) and an NHWC model (H, W, D). ``num_batches_tracked`` is ignored.

    Examples
    --------
    >>> import numpy as np
    >>> model = Sequential([Conv2D(K=2, F=3)], input_shape=(5, 5, 1))
    >>> load_torch(model, {"0.weight": np.ones((2, 1, 3, 3), np.float32), "0.bias": np.zeros(2, np.float32)})
    >>> float(model.forward(np.ones((1, 5, 5, 1), np.float32))[0, 0, 0, 0])
    9.0
    """
    where, in_order = "load_torch", True
    if isinstance(state, (str, Path)):
        in_order = Path(state).suffix != ".safetensors"
        state, _ = _read(where, Path(state))
    theirs = _by_kind(where, state, in_order)
    mine: dict[str, list] = {kind: [] for kind in theirs}
    for name, layer, volume in _weighted(model):
        kind = "norm" if isinstance(layer, BatchNorm) else "dense" if isinstance(layer, Dense) else "conv"
        mine[kind].append((name, layer, volume))
    new: dict[str, Array] = {}
    for kind, entries in mine.items():
        if len(entries) != len(theirs[kind]):
            what = f"the state has another number of {kind} modules than the model"
            raise checks.value_error(where, what, len(entries), len(theirs[kind]))
        for (name, layer, volume), (module, arrays) in zip(entries, theirs[kind], strict=True):
            new |= {f"{name}.{slot}": a for slot, a in _turned(where, module, arrays, layer, volume).items()}
    model.load_state_dict(new)


# PyTorch's names of what a layer's slots hold.
_NAMES = {"w": "weight", "b": "bias", "gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}


def _by_kind(where: str, state: Mapping[str, Array], in_order: bool) -> dict[str, list[tuple[str, dict[str, Array]]]]:
    """The modules of a state dict, such as ``("features.0", {"weight": ...})``, the kinds apart, each in its order."""
    modules: dict[str, dict[str, Array]] = {}
    for name, a in state.items():
        module, _, last = name.rpartition(".")
        if last != "num_batches_tracked":
            modules.setdefault(module, {})[last] = checks.ndarray(where, name, a)
    names = list(modules) if in_order else sorted(modules, key=_natural)
    kinds: dict[str, list] = {"conv": [], "norm": [], "dense": []}
    for name in names:
        arrays = modules[name]
        weight = arrays.get("weight")
        if weight is None:
            what = f"module {name!r} has no weight"
            raise checks.value_error(where, what, "arrays named <module>.weight", ", ".join(arrays))
        kind = "norm" if weight.ndim == 1 else "dense" if weight.ndim == 2 else "conv"
        kinds[kind].append((name, arrays))
    return kinds


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Order by the numbers in a name, features.2 before features.10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)|\.", name) if part]


def _weighted(model: Sequential) -> Iterator[tuple[str, Layer, Shape | None]]:
    """Each layer with weights, its name and, for what stands behind a Flatten, the volume that was stretched."""
    volume = None
    for name, layer in model._leaves():
        if isinstance(layer, Flatten) and len(layer.input_shape) == 3:
            volume = layer.input_shape
        if layer._slots:
            yield name, layer, volume
        if isinstance(layer, Dense):
            volume = None


def _turned(where: str, name: str, module: dict[str, Array], layer: Layer, volume: Shape | None) -> dict[str, Array]:
    """A PyTorch module's arrays in the names, order of axes and dtype of our layer."""
    wanted = {slot.name: _NAMES[slot.name] for slot in layer._slots}
    if set(wanted.values()) != set(module):
        rule = f"{', '.join(wanted.values())} for {layer!r}"
        raise checks.value_error(where, f"module {name!r} has other arrays than the layer", rule, ", ".join(module))
    turned = {}
    for slot, theirs in wanted.items():
        a, expected = module[theirs], getattr(layer, slot).shape
        if a.dtype.kind != "f":
            raise checks.type_error(where, f"{name}.{theirs} holds no floats", "a float dtype", a.dtype)
        if a.ndim == 4 and layer.layout == "NHWC":
            a = a.transpose(2, 3, 1, 0)
        elif len(layer.input_shape) == 1 and slot != "b":
            a = _stretched(a, layer, volume).T
        if a.shape != expected:
            raise checks.value_error(where, f"{name}.{theirs} does not fit {layer!r}", expected, module[theirs].shape)
        turned[slot] = np.ascontiguousarray(a, layer.dtype)
    return turned


def _stretched(a: Array, layer: Layer, volume: Shape | None) -> Array:
    """Turn the last axis of a, a volume stretched as (D, H, W), to the order of the model's Flatten."""
    if not volume or layer.layout == "NCHW" or a.shape[-1:] != layer.input_shape:
        return a
    H, W, D = volume
    return np.moveaxis(a.reshape(*a.shape[:-1], D, H, W), -3, -1).reshape(a.shape)
