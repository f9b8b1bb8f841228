"""The optimizers side by side on one problem: each with its best rate, from the same start, on the same batches."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .data import Dataset
from .history import History
from .layers import Sequential
from .runs import OPTIMIZERS
from .training import Candidate, Trainer, lr_search

# Half decades around what each family needs: a rate is a step's length for the first, about its size for the others.
RATES = {
    "sgd": (0.01, 0.03, 0.1, 0.3), "momentum": (0.003, 0.01, 0.03, 0.1), "nesterov": (0.003, 0.01, 0.03, 0.1),
    "adagrad": (0.001, 0.003, 0.01, 0.03), "rmsprop": (0.0001, 0.0003, 0.001, 0.003),
    "adam": (0.0003, 0.001, 0.003, 0.01), "adamw": (0.0003, 0.001, 0.003, 0.01),
}


@dataclass(frozen=True)
class Racer:
    """One optimizer's search and run.

    Attributes
    ----------
    name : str
    searched : list of Candidate
        All its rates, the best first.
    history : History
        Of the run with the best.
    """

    name: str
    searched: list[Candidate]
    history: History

    @property
    def lr(self) -> float:
        """The rate it ran with."""
        return self.searched[0].lr

    @property
    def forgiving(self) -> int:
        """How many of its rates came within half as much again of its best validation loss."""
        return sum(c.validation_loss <= 1.5 * self.searched[0].validation_loss for c in self.searched)

    @property
    def step_ms(self) -> float:
        """Milliseconds a step, all included."""
        return 1e3 * self.history.steps["seconds"][-1] / len(self.history.steps["seconds"])

    def steps_to(self, loss: float, window: int = 20) -> int | None:
        """The step at which the mean loss of the last `window` steps first was at most `loss`."""
        losses = self.history.steps["loss"]
        for i in range(window, len(losses) + 1):
            if sum(losses[i - window : i]) <= loss * window:
                return i
        return None


def race(
    model: Sequential, data: Dataset, prepare: Any, names: Iterable[str] = tuple(OPTIMIZERS), *, epochs: int = 5,
    iterations: int = 100, batch_size: int = 64, seed: int = 0, augment: Any = (), say: Callable[[str], Any] = print,
) -> list[Racer]:
    """Search every optimizer's rate, then run each with its best one; the model is left as it was.

    Parameters
    ----------
    model : Sequential
        Built; its parameters are the common start.
    data : Dataset
        Its test part ranks the rates and the runs: give one whose test part may be looked at (`Dataset.holdout`).
    prepare : callable
        From stored images to the model's input.
    names : iterable of str
        Keys of `OPTIMIZERS`.
    epochs, iterations : int
        Of each run, of each candidate in the search.
    batch_size, seed, augment
        As in `Trainer.fit`.
    say : callable
        Gets a line after each search and each run.

    Returns
    -------
    list of Racer
        The lowest validation loss first.
    """
    start, random = model.state_dict(), model.rng.bit_generator.state
    held = (data.x_test, data.y_test)
    common = {"batch_size": batch_size, "seed": seed, "augment": augment}
    racers = []
    for name in names:
        make = OPTIMIZERS[name][0]
        found = lr_search(model, RATES[name], data.x_train, data.y_train, validation=held, optimizer=make,
                          iterations=iterations, prepare=prepare, **common)
        trainer = Trainer(model, make(model.params, found[0].lr), prepare=prepare)
        history = trainer.fit(data.x_train, data.y_train, epochs=epochs, validation=held, progress=False, **common)
        model.load_state_dict(start)
        model.rng.bit_generator.state = random
        racers.append(Racer(name, found, history))
        last = history.epochs[-1]
        say(f"{name:<9} rate {found[0].lr:<7g} validation loss {last['validation_loss']:.4f}, "
            f"accuracy {last['validation_accuracy']:.1%}, {racers[-1].step_ms:.2f} ms a step")
        if history.stopped == "Ctrl-C":
            raise KeyboardInterrupt
    return sorted(racers, key=lambda r: r.history["validation_loss"][-1])


def table(racers: Sequence[Racer]) -> str:
    """The result as text."""
    goal = _goal(racers)
    lines = [f"{'optimizer':<10}{'rate':>8}{'loss':>9}{'validation':>12}{'accuracy':>10}{f'to {goal:.2f}':>9}"
             f"{'ms/step':>9}{'forgiving':>11}"]
    for r in racers:
        last, reached = r.history.epochs[-1], r.steps_to(goal)
        lines.append(
            f"{r.name:<10}{r.lr:>8g}{last['loss']:>9.4f}{last['validation_loss']:>12.4f}"
            f"{last['validation_accuracy']:>10.1%}{reached or '-':>9}{r.step_ms:>9.2f}"
            f"{f'{r.forgiving} of {len(r.searched)}':>11}"
        )
    notes = [f"loss: of the last epoch's batches; to {goal:.2f}: steps until the mean of 20 batches was there;",
             "forgiving: rates with a validation loss within 1.5 times the best's after the search"]
    return "\n".join([*lines, *notes])


def _goal(racers: Sequence[Racer]) -> float:
    """A loss that the slower half has just reached: where the racers can be told apart."""
    ends = sorted(r.history["loss"][-1] for r in racers)
    return ends[len(ends) // 2] * 1.5


def advice(racers: Sequence[Racer]) -> str:
    """The lecture's "How to choose?", with what was measured here."""
    best, last, goal = racers[0], racers[-1], _goal(racers)
    reached = [(r.steps_to(goal), r.name) for r in racers if r.steps_to(goal)]
    quick = "nobody" if not reached else f"{min(reached)[1]} (after {min(reached)[0]} steps)"
    most = max(r.forgiving for r in racers)
    kind = ", ".join(f"{r.name} ({r.forgiving} of {len(r.searched)})" for r in racers if r.forgiving == most)
    ends = [r.history["validation_loss"][-1] for r in (last, best)]
    paragraphs = (
        "How to choose? No optimizer is best everywhere (Goodfellow, Bengio and Courville 2016, section 8.5.4): those "
        "with adaptive rates are robust, and the choice is a matter of knowing how to set one. Momentum is the one to "
        "tune, Adam the one to begin with.",
        f"Here, {best.name} with the rate {best.lr:g} ended with the lowest validation loss, {last.name}'s was "
        f"{ends[0] / ends[1]:.1f} times as high; first at a training loss of {goal:.2f} was {quick}; the most rates near "
        f"their best had {kind}. Another seed or another problem may order them differently.",
    )
    return "\n".join(textwrap.fill(p, 110) for p in paragraphs)
