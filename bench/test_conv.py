"""Convolution, forward and gradients, beside the NumPy baseline: im2col and a matrix product on as many threads.

    python -m pytest bench --benchmark-json=out.json && python bench/report.py out.json

The layers are those of `problems.BENCH`: the lecture's, MNIST's, CIFAR's and VGG-16's. The gradient by x is left out
where x is the picture itself, which nobody needs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import reference
from problems import BENCH, Problem

pytestmark = pytest.mark.benchmark(max_time=0.5, min_rounds=3)

LIBRARIES = {"NumPy": reference, "fastconv": fc}
DIRECTIONS = {"forward": "conv2d", "grad_x": "conv2d_grad_x", "grad_w": "conv2d_grad_w"}
CASES = [(p, direction) for p in BENCH for direction in DIRECTIONS if direction != "grad_x" or p.D1 > 3]


def job(library: Any, problem: Problem, direction: str) -> Callable[[], np.ndarray]:
    """The call that is timed; both libraries get the same float32 arrays."""
    x, w, b, dy = problem.arrays()
    function = getattr(library, DIRECTIONS[direction])
    given = {"forward": (x, w, b), "grad_x": (dy, w, x.shape), "grad_w": (dy, x, w.shape)}[direction]
    return lambda: function(*given, **problem.how)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("problem", "direction"), CASES, ids=str)
def test_conv(timed: Callable[..., None], problem: Problem, direction: str, library: str) -> None:
    timed(
        job(LIBRARIES[library], problem, direction), table="Convolution", row=f"{problem.name}, N={problem.N}",
        column=direction, library=library, rate=(problem.flops, "FLOP"),
    )  # fmt: skip
