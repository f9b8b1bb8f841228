"""Optimizer steps beside the NumPy baseline of `reference`, on one large array and on a small ConvNet's parameters.

    python -m pytest bench/test_optim.py --benchmark-json=out.json && python bench/report.py out.json

The rate counts the bytes that an algorithm has to read and write once in float32. The one large array is far beyond
the caches, where nothing can be faster than memory: SGD, which is the triad theta <- theta - lr g in place, shows what
the machine gives.
"""

from collections.abc import Callable

import numpy as np
import pytest

from fastconv import optim, reference

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=3)

LISTS = {
    "one array of 16M": [(1 << 24,)],
    "LeNet's 8 arrays": [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 128), (128,), (128, 10), (10,)],
    "1,000 arrays of 1,000": [(1000,)] * 1000,
}
# name: class, function in reference, settings, number of state arrays that reference takes, bytes a parameter
OPTIMIZERS = {
    "SGD": (optim.SGD, reference.sgd, {}, 0, 12),
    "Momentum": (optim.Momentum, reference.momentum, {}, 1, 20),
    "Nesterov": (optim.Nesterov, reference.nesterov, {}, 1, 20),
    "AdaGrad": (optim.AdaGrad, reference.adagrad, {}, 1, 20),
    "RMSProp": (optim.RMSProp, reference.rmsprop, {}, 2, 20),
    "RMSProp, Nesterov": (optim.RMSProp, reference.rmsprop, {"momentum": 0.9}, 2, 28),
    "Adam": (optim.Adam, reference.adam, {}, 2, 28),
    "AdamW": (optim.AdamW, reference.adamw, {}, 2, 28),
}
Step = Callable[[], None]


def fastconv_step(name: str, params: list[np.ndarray], grads: list[np.ndarray]) -> Step:
    make, _, settings, _, _ = OPTIMIZERS[name]
    opt = make(params, lr=1e-3, **settings)
    return lambda: opt.step(grads)


def numpy_step(name: str, params: list[np.ndarray], grads: list[np.ndarray]) -> Step:
    _, update, settings, n_state, _ = OPTIMIZERS[name]
    state = [[np.zeros_like(p) for _ in range(n_state)] for p in params]
    count = (10,) if name.startswith("Adam") else ()

    def step() -> None:
        for i, g in enumerate(grads):
            new = update(params[i], g, *state[i], *count, lr=1e-3, **settings)
            params[i], *state[i] = new if n_state else (new,)

    return step


@pytest.mark.parametrize("library", ["NumPy", "fastconv"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("which", LISTS)
def test_step(timed: Callable[..., None], which: str, name: str, library: str) -> None:
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(shape, dtype="f4") for shape in LISTS[which]] for _ in range(2))
    moved = OPTIMIZERS[name][-1] * sum(p.size for p in params)
    step = (fastconv_step if library == "fastconv" else numpy_step)(name, params, grads)
    timed(step, table="Optimizers", row=which, column=name, library=library, rate=(moved, "B"))
