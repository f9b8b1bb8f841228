"""Learning rates that change: callables of the update count t = 0, 1, 2, ... for every optimizer's ``lr``.

Any function of t will do; these are the lecture's, a cosine, and two that put schedules together (`WarmUp`, `Chain`).
Each is a frozen dataclass: it prints as it was written, compares by value and can be pickled. One who thinks in epochs
multiplies by the number of updates in an epoch: ``StepDecay(0.1, every=10 * len(batches))``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastconv import checks

Rate = float | Callable[[int], float]


def rate(where: str, lr: Any, t: int) -> float:
    """Rate of update t, where ``lr`` is a number or a callable of t; a finite number of at least 0."""
    return checks.number(where, f"lr({t})", lr(t), 0) if callable(lr) else checks.number(where, "lr", lr, 0)


def checked(where: str, name: str, lr: Any) -> Rate:
    """Check that ``lr`` is a callable or a finite number of at least 0, and return it."""
    return lr if callable(lr) else checks.number(where, name, lr, 0)


class Schedule(ABC):
    """What all schedules share: the check of t. A new one is a subclass with a method ``at(t)``."""

    def __call__(self, t: int) -> float:
        """Return the rate of update t, an int of at least 0."""
        return self.at(checks.count(type(self).__name__, "t", t, minimum=0))

    @abstractmethod
    def at(self, t: int) -> float:
        """Rate of update t, known to be an int of at least 0."""

    def _check(self, **bounds: tuple[float, float]) -> None:
        for name, (low, high) in bounds.items():
            object.__setattr__(self, name, checks.number(type(self).__name__, name, getattr(self, name), low, high))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Step decay: lr(t) = lr * factor ** (t // every), say half the rate every few epochs.

    Parameters
    ----------
    lr : float
        Rate at the start, at least 0.
    factor : float
        What the rate is multiplied by at each step down, in [0, 1].
    every : int
        Updates between two steps, at least 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number or is out of range.

    Examples
    --------
    >>> schedule = StepDecay(0.1, factor=0.5, every=100)
    >>> [schedule(t) for t in (0, 99, 100, 250)]
    [0.1, 0.1, 0.05, 0.025]
    """

    lr: float
    factor: float = 0.5
    every: int = 1000

    def __post_init__(self) -> None:
        self._check(lr=(0, math.inf), factor=(0, 1))
        object.__setattr__(self, "every", checks.count("StepDecay", "every", self.every))

    def at(self, t: int) -> float:
        return self.lr * self.factor ** (t // self.every)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """Exponential decay: lr(t) = lr * exp(-k t).

    Parameters
    ----------
    lr : float
        Rate at the start, at least 0.
    k : float
        Decay per update, at least 0: after 1/k updates the rate is 37 % of the first.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number or is out of range.

    Examples
    --------
    >>> round(ExponentialDecay(0.1, k=0.01)(100), 4)
    0.0368
    """

    lr: float
    k: float

    def __post_init__(self) -> None:
        self._check(lr=(0, math.inf), k=(0, math.inf))

    def at(self, t: int) -> float:
        return self.lr * math.exp(-self.k * t)


@dataclass(frozen=True)
class InverseTimeDecay(Schedule):
    """1/t decay: lr(t) = lr / (1 + k t).

    Parameters
    ----------
    lr : float
        Rate at the start, at least 0.
    k : float
        Decay per update, at least 0: after 1/k updates the rate is half of the first.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number or is out of range.

    Examples
    --------
    >>> InverseTimeDecay(0.1, k=0.01)(100)
    0.05
    """

    lr: float
    k: float

    def __post_init__(self) -> None:
        self._check(lr=(0, math.inf), k=(0, math.inf))

    def at(self, t: int) -> float:
        return self.lr / (1 + self.k * t)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a cosine from lr to final: lr(t) = final + (lr - final)(1 + cos(pi t/steps))/2, and final from t = steps on.

    Parameters
    ----------
    lr : float
        Rate at the start, at least 0.
    steps : int
        Updates until the end is reached, at least 1.
    final : float
        Rate at the end, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number or is out of range.

    Notes
    -----
    Loshchilov and Hutter, SGDR, 2017, without restarts; a `Chain` of several restarts.

    Examples
    --------
    >>> schedule = CosineDecay(0.1, steps=100)
    >>> [round(schedule(t), 3) for t in (0, 50, 100, 200)]
    [0.1, 0.05, 0.0, 0.0]
    """

    lr: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        self._check(lr=(0, math.inf), final=(0, math.inf))
        object.__setattr__(self, "steps", checks.count("CosineDecay", "steps", self.steps))

    def at(self, t: int) -> float:
        return self.final + (self.lr - self.final) * (1 + math.cos(math.pi * min(t, self.steps) / self.steps)) / 2


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Rise to another schedule's first rate in even steps, then follow it.

    For t < steps, lr(t) = after(0) (t + 1)/steps; then after(t - steps): what follows begins where the rise ends.

    Parameters
    ----------
    after : float or callable
        The rate, or the schedule, to reach and follow.
    steps : int
        Updates of the rise, at least 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is neither a number nor callable, or is out of range.

    Examples
    --------
    >>> schedule = WarmUp(StepDecay(0.1, every=100), steps=4)
    >>> [schedule(t) for t in (0, 1, 3, 4, 103, 104)]
    [0.025, 0.05, 0.1, 0.1, 0.1, 0.05]
    """

    after: Rate
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "after", checked("WarmUp", "after", self.after))
        object.__setattr__(self, "steps", checks.count("WarmUp", "steps", self.steps))

    def at(self, t: int) -> float:
        if t < self.steps:
            return rate("WarmUp", self.after, 0) * (t + 1) / self.steps
        return rate("WarmUp", self.after, t - self.steps)


@dataclass(frozen=True, init=False)
class Chain(Schedule):
    """One schedule after the other, each for its number of updates and with a t that begins at 0; the last has no end.

    Parameters
    ----------
    *parts : (rate, updates) pairs, and a rate
        Each rate a number or a callable of t; the last part stands without a number of updates.

    Raises
    ------
    TypeError, ValueError
        If a part is no pair, a rate is neither a number nor callable, or a number of updates is below 1.

    Examples
    --------
    >>> schedule = Chain((0.1, 50), (ExponentialDecay(0.1, k=0.01), 100), 1e-3)
    >>> [round(schedule(t), 4) for t in (0, 49, 50, 149, 150)]
    [0.1, 0.1, 0.1, 0.0372, 0.001]
    """

    parts: tuple[Any, ...]

    def __init__(self, *parts: Any) -> None:
        if not parts:
            raise checks.value_error("Chain", "there is nothing to chain", "(rate, updates) pairs and a last rate")
        for i, part in enumerate(parts[:-1]):
            if not isinstance(part, tuple) or len(part) != 2:
                raise checks.type_error("Chain", f"part {i} must be a pair", "(rate, updates)", repr(part))
        pairs = tuple(
            (checked("Chain", f"part {i}", lr), checks.count("Chain", f"updates of part {i}", updates))
            for i, (lr, updates) in enumerate(parts[:-1])
        )
        object.__setattr__(self, "parts", (*pairs, checked("Chain", f"part {len(pairs)}", parts[-1])))

    def at(self, t: int) -> float:
        for lr, updates in self.parts[:-1]:
            if t < updates:
                return rate("Chain", lr, t)
            t -= updates
        return rate("Chain", self.parts[-1], t)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.parts))})"
