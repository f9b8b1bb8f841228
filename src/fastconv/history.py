"""What a training run reports: its history, step by step and epoch by epoch, and the progress it shows meanwhile."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .checks import choice
from .extras import need


class History:
    """How a training run went.

    Attributes
    ----------
    epochs : list of dict
        For each epoch: epoch (from 1), steps (so far), lr, loss and the metrics as the mean over the epoch's batches
        while they were trained on, the same with ``validation_`` in front after the epoch, seconds (since the start).
    steps : dict of list
        For each step: loss, lr, seconds.
    stopped : str
        Why the run ended.

    Examples
    --------
    >>> history = History()
    >>> history.add_step(loss=2.5, lr=0.1, seconds=0.01)
    >>> history.add_epoch({"epoch": 1, "steps": 1, "lr": 0.1, "loss": 2.5, "seconds": 0.02})
    >>> history["loss"], history.steps["loss"]
    ([2.5], [2.5])
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.steps: dict[str, list[float]] = {"loss": [], "lr": [], "seconds": []}
        self.stopped = ""

    def __getitem__(self, name: str) -> list[float]:
        """The column `name` of the epochs, such as "validation_loss"."""
        return [row[name] for row in self.epochs if name in row]

    def __repr__(self) -> str:
        last = ", ".join(f"{key} {value:.4g}" for key, value in (self.epochs[-1] if self.epochs else {}).items())
        return f"History({len(self.steps['loss'])} steps{', ' if last else ''}{last}, stopped: {self.stopped or 'no'})"

    @property
    def seconds(self) -> float:
        """How long the run took so far, over all its resumed parts."""
        return max([0.0, *self["seconds"][-1:], *self.steps["seconds"][-1:]])

    def add_step(self, loss: float, lr: float, seconds: float) -> None:
        """Record one update."""
        for name, value in (("loss", loss), ("lr", lr), ("seconds", seconds)):
            self.steps[name].append(value)

    def add_epoch(self, row: dict[str, float]) -> None:
        """Record one epoch."""
        self.epochs.append(row)

    def to_csv(self, path: str | Path, per: str = "epoch") -> None:
        """Write one row for each epoch, or for each step.

        Parameters
        ----------
        path : str or Path
            Where to.
        per : {"epoch", "step"}
            What a row stands for.
        """
        if choice("to_csv", "per", per, ("epoch", "step")) == "epoch":
            columns = list(dict.fromkeys(key for row in self.epochs for key in row))
            rows = [[row.get(name, "") for name in columns] for row in self.epochs]
        else:
            columns = ["step", *self.steps]
            rows = [[i, *row] for i, row in enumerate(zip(*self.steps.values(), strict=True), 1)]
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])

    def state(self) -> dict[str, Any]:
        """Arrays and plain numbers from which `from_state` makes this history again."""
        return {"epochs": self.epochs, "steps": {name: np.array(column) for name, column in self.steps.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        """The history that `state` described."""
        history = cls()
        history.epochs = [dict(row) for row in state["epochs"]]
        history.steps = {name: column.tolist() for name, column in state["steps"].items()}
        return history


def describe(row: dict[str, float], epochs: int | None) -> str:
    """One epoch as a line: ``epoch  3/20  loss 0.0712  accuracy 97.81%  validation loss 0.0650 ...``.

    Examples
    --------
    >>> describe({"epoch": 3, "steps": 9, "lr": 0.1, "loss": 0.5, "accuracy": 0.75, "seconds": 2.0}, 20)
    'epoch  3/20   loss 0.5000   accuracy  75.00%     2.0 s'
    """
    of = f"/{epochs}" if epochs else ""
    parts = [f"epoch {row['epoch']:>{len(of) - 1 if of else 1}.0f}{of}"]
    for name, value in row.items():
        if name not in ("epoch", "steps", "lr", "seconds"):
            figure = f"{value:7.2%}" if name.endswith("accuracy") else f"{value:.4f}"
            parts.append(f"{name.replace('_', ' ')} {figure}")
    return "   ".join([*parts, f"{row['seconds']:5.1f} s"])


class Progress:
    """A live bar in a terminal (tqdm, extra ``demo``) under a line for each epoch; in a log file the lines alone.

    Parameters
    ----------
    total : int or None
        Steps of the whole run.
    done : int
        Steps that a resumed run has behind it.
    shown : bool or None
        None shows the bar in a terminal only, True anywhere, False shows nothing at all.
    """

    def __init__(self, total: int | None, done: int = 0, shown: bool | None = None, file: TextIO | None = None) -> None:
        self.file = file or sys.stderr
        self.lines = shown is not False
        self.bar: Any = None
        if shown or (shown is None and self.file.isatty()):
            try:
                tqdm = need("fit", "tqdm", "demo").tqdm
            except ImportError:
                return  # a bar is a comfort: the lines do without it
            self.bar = tqdm(
                total=total, initial=done, file=self.file, unit=" steps", dynamic_ncols=True, leave=False, smoothing=0.1
            )

    def step(self, epoch: int, loss: float) -> None:
        """Move on by one step."""
        if self.bar is not None:
            self.bar.set_description_str(f"epoch {epoch}", refresh=False)
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self.bar.update()

    def line(self, text: str) -> None:
        """Show a line that stays."""
        if self.bar is not None:
            self.bar.write(text, file=self.file)
        elif self.lines:
            print(text, file=self.file, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
