"""fastconv: convolution, its gradients and fused optimizer updates for NumPy, on a CPU.

The map, from the bottom up; each file imports only from those before it.

    checks.py      every error is made here            geometry.py   the lecture's (W1 - F + 2P)/S + 1
    reference.py   every operation in plain NumPy, as its definition and the tests' oracle
    _kernels/      the compiled loops, once for each set of instructions (private)
                   conv.pyx (depth last) and planes.pyx (depth first), grad_w.pyx, winograd.pyx, depthwise.pyx, columns.pyx
                   (im2col), pool.pyx, maps.pyx, optim.pyx; tile.pyx compiles the register tiles, tile.h, for all
    runtime.py     threads, instruction sets            costs.py      a convolution's numbers, and what each way to do it costs
    planning.py    which method a call takes, and `explain`
    ops.py         conv2d, its gradients and kin        pooling.py    max_pool2d, avg_pool2d and their gradients
    schedules.py, optim.py, losses.py                   base.py       what every layer has
    weighted.py, weightless.py   the layers             layers.py     all of them, Sequential, Residual, the table
    models.py     ConvNets that people know
    data.py, training.py, plots.py and `python -m fastconv`

The functions are here; the modules optim, schedules, layers, losses, models, training, data, plots and reference are loaded
when first used.
"""

import importlib

from fastconv.geometry import ConvGeometry, GeometryError, PoolGeometry
from fastconv.ops import (
    col2im,
    conv2d,
    conv2d_backward,
    conv2d_grad_w,
    conv2d_grad_x,
    conv_transpose2d,
    explain,
    im2col,
)
from fastconv.pooling import avg_pool2d, avg_pool2d_grad, max_pool2d, max_pool2d_grad
from fastconv.runtime import (
    available_isas,
    get_num_threads,
    get_precision,
    isa,
    num_threads,
    set_cache_limit,
    set_num_threads,
    set_precision,
    show_config,
    use_isa,
)

__version__ = "0.1.0"

_MODULES = ("data", "layers", "losses", "models", "optim", "plots", "reference", "schedules", "training")

__all__ = [
    "ConvGeometry",
    "GeometryError",
    "PoolGeometry",
    "Trainer",
    "available_isas",
    "avg_pool2d",
    "avg_pool2d_grad",
    "col2im",
    "conv2d",
    "conv2d_backward",
    "conv2d_grad_w",
    "conv2d_grad_x",
    "conv_transpose2d",
    "explain",
    "get_num_threads",
    "get_precision",
    "im2col",
    "isa",
    "max_pool2d",
    "max_pool2d_grad",
    "num_threads",
    "set_cache_limit",
    "set_num_threads",
    "set_precision",
    "show_config",
    "use_isa",
    *_MODULES,
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"fastconv.{name}")
    if name == "Trainer":
        return importlib.import_module("fastconv.training").Trainer
    raise AttributeError(f"module 'fastconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
