"""Hypothesis strategies for odd problems: the corners that no list of shapes thinks of."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from problems import Problem


@st.composite
def odd_problems(draw: Callable[..., Any], side: int = 12, depth: int = 4) -> Problem:
    """Any small convolution that fits: odd windows, strides, dilation, groups and padding on each side."""
    def both(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    F, S, dilation, groups = both(1, 4), both(1, 3), both(1, 3), draw(st.integers(1, 3))
    (H1, W1), pads = both(1, side), (both(0, 5), both(0, 5))
    # A picture too small for its window grows until it holds one place.
    H1, W1 = (max(n, d * (f - 1) + 1 - sum(p)) for n, f, d, p in zip((H1, W1), F, dilation, pads, strict=True))
    D1, K = groups * draw(st.integers(1, depth)), groups * draw(st.integers(1, depth))
    name = f"odd {H1}x{W1}x{D1} K={K} F={F} S={S} P={pads} dilation={dilation} groups={groups}"
    return Problem(name, draw(st.integers(0, 2)), H1, W1, D1, K, F, S, pads, dilation, groups, ("odd",))


@st.composite
def odd_pools(draw: Callable[..., Any], side: int = 10, depth: int = 5) -> Problem:
    """Any small pooling window that fits, some of its places wholly in the padding; K and groups are D1."""
    problem = draw(odd_problems(side=side, depth=1))
    D1 = draw(st.integers(1, depth))
    H1, W1 = (max(n, f - sum(p)) for n, f, p in zip((problem.H1, problem.W1), problem.F, problem.P, strict=True))
    name = f"pool {H1}x{W1}x{D1} F={problem.F} S={problem.S} P={problem.P}"
    return Problem(name, problem.N, H1, W1, D1, D1, problem.F, problem.S, problem.P, 1, D1, ("odd", "pool"))
