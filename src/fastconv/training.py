"""The trainer: minibatches, stopping rules, checkpoints from which a run goes on to the same bits, and `lr_search`."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoints, checks
from .batches import Augmentation, batches, prefetch
from .history import History, Progress, describe
from .layers import Layer
from .losses import softmax_cross_entropy

Array = np.ndarray
Metric = Callable[[Array, Array], float]
CTRL_C = "Ctrl-C"


def accuracy(output: Array, y: Array) -> float:
    """Share of the images whose largest output is at their label.

    Examples
    --------
    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
    """
    return float(np.mean(output.argmax(axis=1) == y))


@dataclass(frozen=True)
class Stop:
    """When to end a run before its last epoch: at the first of these that is met.

    Parameters
    ----------
    steps : int, optional
        After this many updates, in the middle of an epoch if need be.
    target : float, optional
        When the accuracy after an epoch (on the validation images, if there are any) is at least this.
    target_loss : float, optional
        When the loss after an epoch (likewise) is at most this.
    patience : int, optional
        When the loss after an epoch (likewise) has not fallen below its lowest for this many epochs.
    seconds : float, optional
        After this time, counted over all parts of a resumed run.
    """

    steps: int | None = None
    target: float | None = None
    target_loss: float | None = None
    patience: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "patience"):
            if getattr(self, name) is not None:
                checks.count("Stop", name, getattr(self, name))
        for name in ("target", "target_loss", "seconds"):
            if getattr(self, name) is not None:
                checks.number("Stop", name, getattr(self, name), 0)

    def after_step(self, history: History) -> str:
        """Why to stop here, or nothing."""
        if self.steps is not None and len(history.steps["loss"]) >= self.steps:
            return f"{self.steps} steps are done"
        if self.seconds is not None and history.seconds >= self.seconds:
            return f"{self.seconds:g} seconds are over"
        return ""

    def after_epoch(self, history: History) -> str:
        """Why to stop here, or nothing."""
        row = history.epochs[-1]
        prefix = "validation_" if "validation_loss" in row else ""
        losses = history[f"{prefix}loss"]
        if self.target is not None and row.get(f"{prefix}accuracy", -math.inf) >= self.target:
            return f"the accuracy has reached {self.target:g}"
        if self.target_loss is not None and losses[-1] <= self.target_loss:
            return f"the loss has reached {self.target_loss:g}"
        if self.patience is not None and len(losses) - 1 - int(np.argmin(losses)) >= self.patience:
            return f"the loss has not fallen for {self.patience} epochs"
        return ""


class TrainingDiverged(ArithmeticError):
    """The loss became NaN or infinite. The model and the optimizer are back at the last good state.

    Attributes
    ----------
    history : History
        Up to the step before.
    """

    def __init__(self, text: str, history: History) -> None:
        super().__init__(text)
        self.history = history


@dataclass
class _Run:
    """Where a run stands: everything a checkpoint holds besides the model and the optimizer."""

    settings: dict[str, Any]
    epoch: int = 0
    batch: int = 0
    images: int = 0  # of this epoch, so far
    sums: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)

    def state(self) -> dict[str, Any]:
        return {**self.__dict__, "sums": dict(self.sums), "history": self.history.state()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> _Run:
        return cls(**{**state, "history": History.from_state(state["history"])})

    def means(self, prefix: str = "") -> dict[str, float]:
        return {prefix + name: total / max(1, self.images) for name, total in self.sums.items()}


class Trainer:
    """Trains a model by minibatches (Alg. 8.1 and its kin) until a stopping criterion is met.

    Parameters
    ----------
    model : Sequential
        Or any built `Layer`.
    optimizer : optimizer from `fastconv.optim`
        Made with ``model.params`` (or ``[model.flat_params]``); None will do for evaluation.
    loss : callable
        ``loss(output, y) -> (value, gradient by output)``, means over the batch.
    schedule : callable, optional
        Rate of update t = 0, 1, ...; without it the optimizer's own.
    prepare : callable, optional
        From stored images to the model's input, for training, evaluation and prediction alike; usually a `Normalise`.
    metrics : mapping of str to callable, optional
        ``metric(output, y) -> float``, the mean over a batch. By default the accuracy, with softmax cross-entropy.

    Examples
    --------
    >>> import fastconv as fc
    >>> from fastconv.layers import Conv2D, Dense, Flatten, MaxPool2D, ReLU, Sequential
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 64)
    >>> x = rng.normal(size=(64, 8, 8, 1)).astype(np.float32) + y[:, None, None, None].astype(np.float32)
    >>> model = Sequential([Conv2D(K=4, F=3), ReLU(), MaxPool2D(2), Flatten(), Dense(2)], input_shape=(8, 8, 1))
    >>> trainer = Trainer(model, fc.optim.Adam(model.params, lr=0.01))
    >>> history = trainer.fit(x, y, batch_size=16, epochs=5, progress=False)
    >>> history.stopped, trainer.evaluate(x, y)["accuracy"] > 0.9
    ('all 5 epochs are done', True)
    """

    def __init__(
        self, model: Layer, optimizer: Any, loss: Callable[[Array, Array], tuple[float, Array]] = softmax_cross_entropy,
        schedule: Callable[[int], float] | None = None, *, prepare: Callable[[Array], Array] | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        if not isinstance(model, Layer) or not model.built:
            raise checks.type_error("Trainer", "model must be a built layer or model", "a Sequential", repr(model)[:60])
        self.model, self.optimizer, self.loss, self.schedule, self.prepare = model, optimizer, loss, schedule, prepare
        self._grads = self._gradients()
        if metrics is None:
            metrics = {"accuracy": accuracy} if loss is softmax_cross_entropy else {}
        self.metrics = dict(metrics)

    # ------------------------------------------------------------------------------------------------------ training

    def fit(
        self, x: Array, y: Array, *, batch_size: int, epochs: int, validation: tuple[Array, Array] | None = None,
        stop: Stop | None = None, checkpoint: str | Path | None = None, resume: bool = False,
        checkpoint_every: int | None = None, seed: int = 0, max_norm: float | None = None,
        augment: Augmentation | Sequence[Augmentation] = (), progress: bool | None = None,
        callbacks: Sequence[Callable[[Trainer, History], Any]] = (),
    ) -> History:
        """Train.

        The same seed, data and model give the same bits at every run, whatever the number of threads; so does a run
        that was killed at any moment and resumed. Ctrl-C ends the run after the step at hand, with a checkpoint.

        Parameters
        ----------
        x, y : ndarray
            Images (N, H, W, C) and labels (or what the loss takes); memory maps will do.
        batch_size : int
            Images in a minibatch; the last of an epoch may have fewer.
        epochs : int
            How often each image is seen, at most.
        validation : (x, y), optional
            Images to evaluate after each epoch, at theta where the optimizer holds an interim point.
        stop : Stop, optional
            When to end earlier.
        checkpoint : path, optional
            File to write after every epoch, atomically (extra ``demo``: safetensors).
        resume : bool
            Go on from the checkpoint, if there is one. The data, batch_size and seed must be those it was written with.
        checkpoint_every : int, optional
            Write it also after every so many steps.
        seed : int
            Of shuffling and augmentation.
        max_norm : float, optional
            Clip the gradient to this norm.
        augment : callable or sequence of callables
            ``f(x, rng) -> x``, applied to the stored images of a batch; see `fastconv.batches`.
        progress : bool, optional
            None: a live bar in a terminal, one line for each epoch elsewhere; False: nothing.
        callbacks : sequence of callables
            ``f(trainer, history)`` after every epoch; one that returns True ends the run.

        Returns
        -------
        History

        Raises
        ------
        TrainingDiverged
            When the loss is NaN or infinite; says where that began. The last good state is kept.
        ValueError, TypeError
            When an argument is wrong, or the checkpoint is torn, foreign or of another run.
        OSError
            When the checkpoint cannot be written; the one before it stays.
        """
        if self.optimizer is None:
            what = "a trainer without an optimizer can only evaluate"
            raise checks.type_error("fit", what, "Trainer(model, optimizer)")
        x, y, validation = self._check_data("fit", x, y, batch_size, validation)
        checks.count("fit", "epochs", epochs)
        checks.count("fit", "seed", seed, 0)
        if resume and checkpoint is None:
            raise checks.value_error("fit", "resume needs a checkpoint to go on from", "checkpoint=path", None)
        if checkpoint_every is not None:
            checks.count("fit", "checkpoint_every", checkpoint_every)
        settings = {"batch_size": batch_size, "seed": seed, "images": list(x.shape), "dtype": str(x.dtype)}
        stop = stop or Stop()
        job = _Job(self, x, y, epochs, validation, stop, checkpoint, checkpoint_every, max_norm, augment, callbacks)
        run = job.resumed(settings) if resume else None
        return job.go(run or _Run(settings), progress)

    def step(self, x: Array, y: Array, max_norm: float | None = None) -> tuple[float, Array]:
        """One update on one prepared batch: forward, loss, backward, optimizer.

        Returns
        -------
        loss : float
            Before the update. If it is not finite, nothing was changed.
        output : ndarray
            Of the model.
        """
        output = self.model.forward(x, training=True)
        value, gradient = self.loss(output, y)
        if math.isfinite(value):
            self.model.backward(gradient)
            lr = self.schedule(self.optimizer.t) if self.schedule else None
            self.optimizer.step(self._grads, lr=lr, max_norm=max_norm)
        return float(value), output

    # ---------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, x: Array, y: Array, *, batch_size: int = 256) -> dict[str, float]:
        """Mean loss and metrics over all images, in evaluation mode, at theta.

        Parameters
        ----------
        x, y : ndarray
            As in `fit`.
        batch_size : int
            Images at a time; the results do not depend on it beyond rounding.

        Returns
        -------
        dict of str to float
            "loss" and the metrics.
        """
        x, y, _ = self._check_data("evaluate", x, y, batch_size, None)
        tally = _Run({})
        with self.solution(), contextlib.closing(self._ahead(x, y, batch_size)) as made:
            for xb, yb in made:
                output = self.model.forward(xb)
                self._count(tally, self.loss(output, yb)[0], output, yb)
        return tally.means()

    def predict(self, x: Array, *, batch_size: int = 256) -> Array:
        """The model's outputs for all images, in evaluation mode, at theta.

        Returns
        -------
        ndarray of shape (N, K)
        """
        x, y, _ = self._check_data("predict", x, np.zeros(len(x), np.int64), batch_size, None)
        with self.solution(), contextlib.closing(self._ahead(x, y, batch_size)) as made:
            return np.concatenate([self.model.forward(xb) for xb, _ in made])

    def solution(self) -> contextlib.AbstractContextManager[Any]:
        """While this is open the model's parameters are theta: see ``optimizer.solution``."""
        return self.optimizer.solution() if hasattr(self.optimizer, "solution") else contextlib.nullcontext()

    # --------------------------------------------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """A copy of the model's parameters and state, the optimizer's state, and the random state of the layers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "random": self.model.rng.bit_generator.state,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned; refused, and nothing changed, if it does not fit."""
        before = self.model.state_dict()
        self.model.load_state_dict(state["model"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, TypeError, KeyError):
            self.model.load_state_dict(before)
            raise
        self.model.rng.bit_generator.state = state["random"]

    # ------------------------------------------------------------------------------------------------------- private

    def _gradients(self) -> list[Array]:
        """The model's gradients as the optimizer takes them."""
        model, params = self.model, list(getattr(self.optimizer, "params", self.model.params))
        if len(params) == 1 and params[0] is model.flat_params:
            return [model.flat_grads]
        if len(params) != len(model.params) or any(a is not b for a, b in zip(params, model.params, strict=True)):
            what = "the optimizer was made with other arrays than the model's"
            raise checks.value_error("Trainer", what, "model.params, in their order")
        return model.grads

    def _ahead(self, x: Array, y: Array, batch_size: int) -> Generator[Any, None, None]:
        return prefetch(batches(x, y, batch_size, shuffle=False, prepare=self.prepare))

    def _count(self, tally: _Run, loss: float, output: Array, y: Array) -> dict[str, float]:
        """Add one batch to the sums, each mean weighted by the images it is of."""
        values = {"loss": loss, **{name: metric(output, y) for name, metric in self.metrics.items()}}
        for name, value in values.items():
            tally.sums[name] = tally.sums.get(name, 0.0) + float(value) * len(y)
        tally.images += len(y)
        return values

    def _check_data(self, where: str, x: Any, y: Any, batch_size: int, validation: Any) -> tuple[Array, Array, Any]:
        checks.count(where, "batch_size", batch_size)
        pairs = [("x", "y", x, y)]
        if validation is not None:
            if not isinstance(validation, tuple) or len(validation) != 2:
                raise checks.type_error(where, "validation must be a pair", "(x, y)", type(validation).__name__)
            pairs.append(("validation x", "validation y", *validation))
        for x_name, y_name, images, labels in pairs:
            checks.ndarray(where, x_name, images)
            checks.ndarray(where, y_name, labels)
            if len(images) == 0 or len(images) != len(labels):
                raise checks.value_error(where, f"{y_name} has {len(labels)} entries but {x_name} has {len(images)}",
                                         "one for each image, and at least one")
            if self.prepare is None and images.dtype != self.model.dtype:
                what = f"{x_name} is {images.dtype} but the model is {self.model.dtype}, and there is no prepare"
                raise checks.type_error(where, what, f"{self.model.dtype}, or Trainer(..., prepare=Normalise.of(x))")
        return x, y, validation


class _Job:
    """One call of `Trainer.fit`: the trainer, the data, and what was asked for."""

    def __init__(self, trainer: Trainer, x: Array, y: Array, epochs: int, validation: Any, stop: Stop, checkpoint: Any,
                 every: int | None, max_norm: float | None, augment: Any, callbacks: Sequence[Callable]) -> None:
        self.trainer, self.x, self.y, self.epochs, self.validation = trainer, x, y, epochs, validation
        self.stop, self.checkpoint, self.every = stop, checkpoint, every
        self.max_norm, self.augment, self.callbacks = max_norm, augment, callbacks
        self.good: dict[str, Any] = {}
        self.bar = Progress(None, shown=False)
        self.seen = x  # the last batch

    def go(self, run: _Run, progress: bool | None) -> History:
        """Train from where `run` stands to the end."""
        history, batch_size = run.history, run.settings["batch_size"]
        per_epoch = -(-len(self.x) // batch_size)
        total = min(self.epochs * per_epoch, self.stop.steps or self.epochs * per_epoch)
        self.began = time.perf_counter() - history.seconds
        why = self.stop.after_step(history) or (history.epochs and self.stop.after_epoch(history))
        self.bar = Progress(total, run.epoch * per_epoch + run.batch, progress)
        # What is not finite is found by the loss and by _check_finite, not by warnings.
        with _ctrl_c() as interrupted, self.bar, np.errstate(over="ignore", invalid="ignore"):
            self._keep(run)
            while not why and run.epoch < self.epochs:
                why = self._epoch(run, interrupted)
        history.stopped = why or f"all {self.epochs} epochs are done"
        return history

    def resumed(self, settings: dict[str, Any]) -> _Run | None:
        """The run as the checkpoint left it, its state loaded; None without a checkpoint."""
        if not Path(self.checkpoint).exists():
            return None
        saved = checkpoints.load(self.checkpoint, "checkpoint")
        run = _Run.from_state(saved["run"])
        for name, value in settings.items():
            if run.settings.get(name) != value:
                what = f"{self.checkpoint} is of another run: {name} differs"
                raise checks.value_error("fit", what, run.settings.get(name), value)
        self.trainer.load_state(saved["trainer"])
        return run

    def _epoch(self, run: _Run, interrupted: threading.Event) -> str:
        """Train to the end of the epoch; why the run is to stop there or earlier, or nothing."""
        settings = run.settings
        made = prefetch(batches(self.x, self.y, settings["batch_size"], seed=settings["seed"], epoch=run.epoch,
                                start=run.batch, augment=self.augment, prepare=self.trainer.prepare))
        with contextlib.closing(made):
            for x, y in made:
                self._step(run, x, y)
                why = CTRL_C if interrupted.is_set() else self.stop.after_step(run.history)
                if why:
                    self._save(run)
                    if run.images and why != CTRL_C:
                        self._report(run)
                    return why
                if self.every and len(run.history.steps["loss"]) % self.every == 0:
                    self._save(run)
        self._check_finite(run)
        self._report(run)
        run.epoch, run.batch, run.images, run.sums = run.epoch + 1, 0, 0, {}
        asked = [callback(self.trainer, run.history) is True for callback in self.callbacks]
        self._save(run)
        self._keep(run)
        if interrupted.is_set():
            return CTRL_C
        return "a callback asked for it" if any(asked) else self.stop.after_epoch(run.history)

    def _step(self, run: _Run, x: Array, y: Array) -> None:
        lr = self._lr()
        loss, output = self.trainer.step(x, y, self.max_norm)
        self.seen = x
        if not math.isfinite(loss):
            raise self._diverged(run, f"the loss became {loss}")
        self.trainer._count(run, loss, output, y)
        run.batch += 1
        run.history.add_step(loss, lr, time.perf_counter() - self.began)
        self.bar.step(run.epoch + 1, loss)

    def _lr(self) -> float:
        rate = self.trainer.schedule or self.trainer.optimizer.lr
        return float(rate(self.trainer.optimizer.t) if callable(rate) else rate)

    def _report(self, run: _Run) -> None:
        """Evaluate, and add the epoch, whole or not, to the history."""
        steps = run.history.steps
        row = {"epoch": run.epoch + 1, "steps": len(steps["loss"]), "lr": steps["lr"][-1], **run.means()}
        if self.validation is not None:
            row |= {f"validation_{k}": v for k, v in self.trainer.evaluate(*self.validation).items()}
        row["seconds"] = time.perf_counter() - self.began
        run.history.add_epoch(row)
        self.bar.line(describe(row, self.epochs))

    def _save(self, run: _Run) -> None:
        self._check_finite(run)
        if self.checkpoint is not None:
            checkpoints.save(self.checkpoint, {"run": run.state(), "trainer": self.trainer.state()}, "checkpoint")

    def _keep(self, run: _Run) -> None:
        """Remember the last good state: in the checkpoint if there is one, else in memory."""
        where = f"the end of epoch {run.epoch}" if run.epoch else "the start"
        on_disk = self.checkpoint is not None and Path(self.checkpoint).exists() and bool(run.history.steps["loss"])
        self.good = {"where": where, "state": None if on_disk else self.trainer.state()}

    def _check_finite(self, run: _Run) -> None:
        """Refuse to keep parameters that the last update has spoilt: its loss was still finite."""
        model = self.trainer.model
        if not (np.isfinite(model.flat_params).all() and np.isfinite(model.flat_state).all()):
            raise self._diverged(run, "the parameters became nan or infinite")

    def _diverged(self, run: _Run, what: str) -> TrainingDiverged:
        """Find where it began, go back to the last good state, and tell both."""
        culprit = _first_bad_place(self.trainer.model, self.seen)
        lr = self._lr()
        if self.good["state"] is None:
            saved = checkpoints.load(self.checkpoint, "checkpoint")
            self.trainer.load_state(saved["trainer"])
            where = f"its checkpoint at step {len(saved['run']['history']['steps']['loss'])}"
        else:
            self.trainer.load_state(self.good["state"])
            where = self.good["where"]
        step = len(run.history.steps["loss"]) + 1
        run.history.stopped = f"{what} at step {step}"
        what = f"{what} at step {step} (epoch {run.epoch + 1}, batch {run.batch + 1}), first in {culprit}"
        advice = f"a smaller rate (it was {lr:.3g}), or max_norm to clip the gradients"
        return TrainingDiverged(checks.message("fit", f"{what}; the model is back at {where}", advice), run.history)


def _first_bad_place(model: Layer, x: Array) -> str:
    """Where, on the way forward, the first value is that is not finite."""
    if not np.isfinite(x).all():
        return "the batch that came in"
    for i, layer in enumerate(getattr(model, "layers", [model])):
        if not all(np.isfinite(p).all() for p in layer.params):
            return f"the parameters of layer {i}, {layer!r}: the update before was too large"
        x = layer.forward(x)
        if not np.isfinite(x).all():
            return f"the output of layer {i}, {layer!r}: its weights have grown too large"
    return "the loss"


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets; a second Ctrl-C interrupts at once. A handler of the caller's own is left alone."""
    asked = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked
        return

    def handler(signum: int, frame: Any) -> None:
        if asked.is_set():
            signal.default_int_handler(signum, frame)
        asked.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# --------------------------------------------------------------------------------------------------- choosing a rate


@dataclass
class Candidate:
    """What became of one setting in `lr_search`.

    Attributes
    ----------
    name : str
        The optimizer's name.
    lr : float
        The rate.
    validation_loss, validation_accuracy : float
        After the iterations; infinite and 0 if it diverged. The accuracy is NaN for losses without one.
    losses : list of float
        Of each iteration.
    seconds : float
        For the iterations.
    """

    name: str
    lr: float
    validation_loss: float
    validation_accuracy: float
    losses: list[float]
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether the loss left the finite numbers."""
        return not math.isfinite(self.validation_loss)


def lr_search(
    model: Layer, candidates: Sequence[Any], x: Array, y: Array, *, validation: tuple[Array, Array],
    optimizer: Callable[..., Any] | None = None, iterations: int = 100, batch_size: int = 64,
    loss: Callable[[Array, Array], tuple[float, Array]] = softmax_cross_entropy, seed: int = 0,
    prepare: Callable[[Array], Array] | None = None, augment: Augmentation | Sequence[Augmentation] = (),
    max_norm: float | None = None,
) -> list[Candidate]:
    """Try each setting for 100 iterations and rank them on the validation set: the lecture's way to choose a rate.

    Every candidate starts from the same parameters and random state and sees the same batches; afterwards the model is
    what it was before.

    Parameters
    ----------
    model : Sequential
        Built, with the parameters to start from.
    candidates : sequence of float, or of (optimizer, float)
        Rates for `optimizer`, or pairs. An optimizer is a class from `fastconv.optim` or any ``f(params, lr)``.
    x, y : ndarray
        Images and labels to train on.
    validation : (x, y)
        Images and labels to rank on.
    optimizer : callable, optional
        Needed when the candidates are rates.
    iterations : int
        Updates for each candidate.
    batch_size, loss, seed, prepare, augment, max_norm
        As in `Trainer` and `Trainer.fit`.

    Returns
    -------
    list of Candidate
        The best first; those that diverged last.

    Raises
    ------
    ValueError, TypeError
        When there is no candidate, or a rate is no finite number above 0.
    """
    pairs = [_pair(candidate, optimizer) for candidate in candidates]
    if not pairs:
        raise checks.value_error("lr_search", "there is nothing to try", "at least one candidate", "none")
    checks.count("lr_search", "iterations", iterations)
    before, random_before = model.state_dict(), model.rng.bit_generator.state
    found = []
    try:
        for make, lr in pairs:
            model.load_state_dict(before)
            model.rng.bit_generator.state = random_before
            trainer = Trainer(model, make(model.params, lr), loss, prepare=prepare)
            found.append(_tried(trainer, make, lr, x, y, validation, iterations, batch_size, seed, augment, max_norm))
    finally:
        model.load_state_dict(before)
        model.rng.bit_generator.state = random_before
    return sorted(found, key=lambda c: c.validation_loss)


def _pair(candidate: Any, optimizer: Callable[..., Any] | None) -> tuple[Callable[..., Any], float]:
    make, lr = candidate if isinstance(candidate, (tuple, list)) and len(candidate) == 2 else (optimizer, candidate)
    if not callable(make):
        what = "a rate alone needs the optimizer it is for"
        raise checks.type_error("lr_search", what, "optimizer=fc.optim.Adam, or pairs (optimizer, rate)", repr(make))
    lr = checks.number("lr_search", "a candidate's rate", lr, 0)
    if lr == 0:
        raise checks.value_error("lr_search", "a candidate's rate is out of range", "a number above 0", lr)
    return make, lr


def _tried(
    trainer: Trainer, make: Any, lr: float, x: Array, y: Array, validation: tuple[Array, Array], iterations: int,
    batch_size: int, seed: int, augment: Any, max_norm: float | None,
) -> Candidate:
    """One candidate's iterations and its place on the validation set."""
    began = time.perf_counter()
    epochs = -(-iterations // -(-len(x) // batch_size))
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            history = trainer.fit(x, y, batch_size=batch_size, epochs=epochs, stop=Stop(steps=iterations), seed=seed,
                                  max_norm=max_norm, augment=augment, progress=False)
            if history.stopped == CTRL_C:
                raise KeyboardInterrupt
            seconds, scores = time.perf_counter() - began, trainer.evaluate(*validation)
    except TrainingDiverged as problem:
        history, seconds, scores = problem.history, time.perf_counter() - began, {"loss": math.inf, "accuracy": 0.0}
    value = scores["loss"] if math.isfinite(scores["loss"]) else math.inf
    name = getattr(make, "__name__", type(trainer.optimizer).__name__)
    return Candidate(name, lr, value, scores.get("accuracy", math.nan), history.steps["loss"], seconds)
