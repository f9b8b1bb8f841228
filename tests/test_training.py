"""The trainer: exact repetition and exact resumption, stopping rules, checkpoints, what goes wrong, and `lr_search`."""

import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import fastconv as fc
from fastconv import checkpoints, models, optim
from fastconv.batches import Flip, Normalise, Shift
from fastconv.data import mnist5k
from fastconv.history import History, Progress, describe
from fastconv.layers import BatchNorm, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Sequential
from fastconv.losses import mean_squared_error, softmax_cross_entropy
from fastconv.training import Stop, Trainer, TrainingDiverged, accuracy, lr_search


def problem(n=60, seed=0):
    """Small pictures of three classes that can be told apart: a bright row, column or diagonal in noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(0, 0.5, (n, 8, 8, 1)).astype(np.float32)
    for i, label in enumerate(y):
        at = rng.integers(0, 8)
        if label == 0:
            x[i, at] += 2
        elif label == 1:
            x[i, :, at] += 2
        else:
            x[i, np.arange(8), np.roll(np.arange(8), at)] += 2
    return x, y


def net(seed=0):
    """Everything that has a state: parameters, running statistics, a generator."""
    return Sequential(
        [Conv2D(K=4, F=3), BatchNorm(), ReLU(), MaxPool2D(2), Flatten(), Dropout(0.2), Dense(3)],
        input_shape=(8, 8, 1),
        seed=seed,
    )


def trainer(make=lambda p: optim.Adam(p, 0.01), seed=0, **how):
    model = net(seed)
    return Trainer(model, make(model.params), **how)


def bits(model):
    return model.flat_params.tobytes() + model.flat_state.tobytes()


HOW = {"batch_size": 8, "epochs": 3, "augment": [Shift(1), Flip()], "progress": False}

# ------------------------------------------------------------------------------------------------------ it learns


def test_a_short_run_on_real_digits_learns():
    digits = mnist5k()
    model = models.lenet()
    job = Trainer(model, optim.Adam(model.params, 2e-3), prepare=Normalise.of(digits.x_train))
    history = job.fit(digits.x_train[::4], digits.y_train[::4], batch_size=50, epochs=3, progress=False)
    assert history.stopped == "all 3 epochs are done"
    assert len(history.steps["loss"]) == 60
    # Chance is 10 %. Runs with other seeds end between 91 and 95 %.
    assert job.evaluate(digits.x_test, digits.y_test)["accuracy"] > 0.85


def test_a_loss_on_numbers_trains_too():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5))
    target = x @ rng.normal(size=(5, 2))
    model = Sequential([Dense(2)], input_shape=(5,), dtype="float64")
    job = Trainer(model, optim.Momentum(model.params, 0.1), mean_squared_error)
    history = job.fit(x, target, batch_size=16, epochs=60, progress=False)
    assert history["loss"][-1] < 1e-6 * history["loss"][0]
    assert history["accuracy"] == []


def test_history_has_every_step_and_epoch(tmp_path):
    x, y = problem()
    job = trainer(schedule=lambda t: 0.01 / (1 + t))
    history = job.fit(x, y, validation=(x[:20], y[:20]), **HOW)
    assert history.steps["lr"] == [0.01 / (1 + t) for t in range(24)]
    assert history["epoch"] == [1, 2, 3]
    assert history["steps"] == [8, 16, 24]
    # 60 images in batches of 8: seven whole ones and one of four, each weighing as much as it has images.
    weights = np.array([8] * 7 + [4])
    assert history["loss"][0] == pytest.approx(np.average(history.steps["loss"][:8], weights=weights), rel=1e-12)
    assert history["validation_loss"][-1] == job.evaluate(x[:20], y[:20])["loss"]
    assert history.steps["seconds"] == sorted(history.steps["seconds"])
    history.to_csv(tmp_path / "epochs.csv")
    history.to_csv(tmp_path / "steps.csv", per="step")
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 4
    lines = (tmp_path / "steps.csv").read_text().splitlines()
    assert lines[0] == "step,loss,lr,seconds"
    assert float(lines[24].split(",")[1]) == history.steps["loss"][23]
    with pytest.raises(ValueError, match="'epoch', 'step'"):
        history.to_csv(tmp_path / "a.csv", per="year")


def test_metrics_callbacks_and_clipping():
    x, y = problem()
    seen = []

    def callback(job, history):
        seen.append(history.epochs[-1]["epoch"])
        return len(seen) == 2

    job = trainer(lambda p: optim.SGD(p, 1.0), metrics={"zeros": lambda output, y: float(np.mean(y == 0))})
    before = job.model.flat_params.copy()
    history = job.fit(x, y, **HOW | {"epochs": 5}, callbacks=[callback], max_norm=1e-3)
    assert seen == [1, 2]
    assert history.stopped == "a callback asked for it"
    assert history["zeros"] == [pytest.approx(1 / 3)] * 2
    # 16 steps of at most 1e-3 each; float32 rounds each of some 150 parameters' moves by at most 6e-8 of its size.
    assert 0 < np.linalg.norm(job.model.flat_params - before) <= 16e-3 * 1.001


def test_an_optimizer_of_the_flat_buffer_gives_the_same_bits():
    x, y = problem()
    results = []
    for flat in (False, True):
        model = net()
        job = Trainer(model, optim.Adam([model.flat_params] if flat else model.params, 0.01))
        job.fit(x, y, **HOW)
        results.append(bits(model))
    assert results[0] == results[1]


def test_accuracy_counts_the_largest():
    assert accuracy(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.array([1, 1, 2])) == 2 / 3


# ------------------------------------------------------------------------------------------------ the same bits again


def test_a_seed_repeats_bit_for_bit_and_another_does_not():
    x, y = problem()
    results = []
    for seed in (5, 5, 6):
        job = trainer()
        job.fit(x, y, **HOW, seed=seed)
        results.append(bits(job.model))
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_threads_do_not_change_the_bits():
    x, y = problem()
    results = []
    for n in (1, 2, 3):
        with fc.num_threads(n):
            job = trainer()
            job.fit(x, y, **HOW)
            results.append(bits(job.model))
    assert results[0] == results[1] == results[2]


OPTIMIZERS = {
    "Momentum": lambda p: optim.Momentum(p, 0.01),
    "Nesterov": lambda p: optim.Nesterov(p, 0.01),
    "AdaGrad": lambda p: optim.AdaGrad(p, 0.01),
    "RMSProp, Nesterov": lambda p: optim.RMSProp(p, 0.002, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, name):
    x, y = problem()
    whole = trainer(OPTIMIZERS[name])
    history = whole.fit(x, y, **HOW, validation=(x, y))
    file = tmp_path / "run.safetensors"
    for steps in (3, 8, 13, 100):  # in an epoch, at its end, in the next one, to the end
        job = trainer(OPTIMIZERS[name], seed=1)  # another start: everything must come from the file
        if steps == 3:
            job = trainer(OPTIMIZERS[name])
        parts = job.fit(x, y, **HOW, validation=(x, y), stop=Stop(steps=steps), checkpoint=file, resume=True)
    assert bits(job.model) == bits(whole.model)
    assert parts.steps["loss"] == history.steps["loss"]
    columns = ("epoch", "steps", "loss", "accuracy", "validation_loss", "validation_accuracy")
    assert [[row[c] for c in columns] for row in parts.epochs] == [[row[c] for c in columns] for row in history.epochs]


def test_a_finished_run_can_be_given_more_epochs(tmp_path):
    x, y = problem()
    whole, job, file = trainer(), trainer(), tmp_path / "run.safetensors"
    whole.fit(x, y, **HOW | {"epochs": 4})
    job.fit(x, y, **HOW | {"epochs": 2}, checkpoint=file)
    again = trainer(seed=3)
    again.fit(x, y, **HOW | {"epochs": 2}, checkpoint=file, resume=True)
    assert bits(again.model) == bits(job.model)
    again.fit(x, y, **HOW | {"epochs": 4}, checkpoint=file, resume=True)
    assert bits(again.model) == bits(whole.model)


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from test_training import HOW, problem, trainer
x, y = problem()
job = trainer()
job.fit(x, y, **HOW | {"epochs": int(sys.argv[3])}, checkpoint=sys.argv[2], resume=True, checkpoint_every=1)
"""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    """Five kills; FASTCONV_KILLS=50 in the environment makes it fifty."""
    kills = int(os.environ.get("FASTCONV_KILLS", "5"))
    epochs = 5 + 2 * kills
    x, y = problem()
    whole = trainer()
    whole.fit(x, y, **HOW | {"epochs": epochs})
    file, rng = tmp_path / "run.safetensors", random.Random(7)
    command = [sys.executable, "-c", CHILD, os.path.dirname(__file__), str(file), str(epochs)]
    for _ in range(kills):
        before = file.stat().st_mtime_ns if file.exists() else None
        child = subprocess.Popen(command)
        while child.poll() is None and (file.stat().st_mtime_ns if file.exists() else None) == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))  # it writes a checkpoint a step: this falls between, before and into writing
        assert child.poll() is None, "the run was over before it could be killed: give it more epochs"
        child.kill()
        child.wait()
        checkpoints.load(file, "checkpoint")
    subprocess.run(command, check=True)
    job = trainer(seed=9)
    job.load_state(checkpoints.load(file, "checkpoint")["trainer"])
    assert bits(job.model) == bits(whole.model)
    assert job.optimizer.t == epochs * 8


def test_ctrl_c_saves_and_ends_cleanly(tmp_path):
    x, y = problem()
    whole = trainer()
    whole.fit(x, y, **HOW)
    file = tmp_path / "run.safetensors"

    def press(output, y, presses=[]):  # noqa: B006 (it counts its calls)
        presses.append(1)
        if len(presses) == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return 0.0

    job = trainer(metrics={"nothing": press})
    history = job.fit(x, y, **HOW, checkpoint=file)
    assert history.stopped == "Ctrl-C"
    assert len(history.steps["loss"]) == 11
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = trainer(seed=4, metrics={"nothing": lambda output, y: 0.0})
    again.fit(x, y, **HOW, checkpoint=file, resume=True)
    assert bits(again.model) == bits(whole.model)


def test_training_in_another_thread_leaves_signals_alone():
    x, y = problem()
    job, done = trainer(), []
    worker = threading.Thread(target=lambda: done.append(job.fit(x, y, **HOW)))
    worker.start()
    worker.join()
    assert done[0].stopped == "all 3 epochs are done"


# ---------------------------------------------------------------------------------------------------------- stopping


def made_of(losses, name="loss", **more):
    history = History()
    for i, value in enumerate(losses):
        history.add_step(value, 0.1, 0.5 * (i + 1))
        history.add_epoch({"epoch": i + 1, name: value, **{k: v[i] for k, v in more.items()}})
    return history


def test_stopping_rules():
    falling, rising = made_of([3.0, 2.0, 1.0]), made_of([3.0, 1.0, 2.0, 1.0])
    assert Stop(patience=1).after_epoch(falling) == ""
    assert "2 epochs" in Stop(patience=2).after_epoch(rising)  # the second 1.0 is no fall
    assert Stop(patience=3).after_epoch(rising) == ""
    assert "reached 1" in Stop(target_loss=1.0).after_epoch(falling)
    assert Stop(target_loss=0.99).after_epoch(falling) == ""
    assert Stop(steps=4).after_step(falling) == ""
    assert "3 steps" in Stop(steps=3).after_step(falling)
    assert Stop(seconds=1.6).after_step(falling) == ""
    assert "over" in Stop(seconds=1.5).after_step(falling)
    training = {"loss": [1.0, 2.0], "accuracy": [0.9, 1.0]}
    validated = made_of([3.0, 2.0], "validation_loss", **training, validation_accuracy=[0.5, 0.6])
    assert Stop(patience=1, target=0.7).after_epoch(validated) == ""  # validation counts, not training
    assert "0.6" in Stop(target=0.6).after_epoch(validated)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"patience": -1}, {"seconds": math.nan}, {"target": -0.1}])
def test_stopping_rules_refuse_nonsense(wrong):
    with pytest.raises(ValueError, match="Stop"):
        Stop(**wrong)


def test_fit_stops_by_target_and_by_steps():
    x, y = problem()
    job = trainer()
    history = job.fit(x, y, **HOW | {"epochs": 100}, validation=(x, y), stop=Stop(target=0.6))
    assert history["validation_accuracy"][-1] >= 0.6
    assert all(a < 0.6 for a in history["validation_accuracy"][:-1])
    history = trainer().fit(x, y, **HOW, stop=Stop(steps=11))
    assert (len(history.steps["loss"]), history["epoch"]) == (11, [1, 2])


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_a_tree_comes_back_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    tree = {
        "a": rng.normal(size=(3, 4)), "b": [rng.integers(0, 9, 5), {"c": np.float32(0.1), "d": (1, "two", None, True)}],
        "big": 2**127 + 1, "zero": np.zeros((0, 3), np.float32), "point": np.array(2.5),
        "turned": rng.normal(size=(3, 4)).T, "nothing": {}, "x": 0.1 + 0.2,
    }  # fmt: skip
    checkpoints.save(tmp_path / "t", tree, "tree")
    back = checkpoints.load(tmp_path / "t", "tree")
    for name in ("a", "zero", "point", "turned"):
        assert back[name].dtype == tree[name].dtype
        assert np.array_equal(back[name], tree[name])
        assert back[name].shape == tree[name].shape
    assert np.array_equal(back["b"][0], tree["b"][0])
    assert back["b"][1] == {"c": float(np.float32(0.1)), "d": [1, "two", None, True]}
    assert (back["big"], back["nothing"], back["x"]) == (2**127 + 1, {}, 0.1 + 0.2)
    assert os.listdir(tmp_path) == ["t"]


def test_torn_changed_and_foreign_files_are_refused(tmp_path):
    x, y = problem()
    file = tmp_path / "run.safetensors"
    trainer().fit(x, y, **HOW, checkpoint=file)
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        job = trainer(seed=2)
        before = bits(job.model)
        with pytest.raises(ValueError, match="torn"):
            job.fit(x, y, **HOW, checkpoint=file, resume=True)
        assert bits(job.model) == before
    changed = bytearray(whole)
    changed[-40] ^= 1
    file.write_bytes(changed)
    with pytest.raises(ValueError, match="checksum"):
        trainer().fit(x, y, **HOW, checkpoint=file, resume=True)
    save_file({"w": np.zeros(3)}, file)
    with pytest.raises(ValueError, match="elsewhere"):
        trainer().fit(x, y, **HOW, checkpoint=file, resume=True)
    checkpoints.save(file, {"w": np.zeros(3)}, "model")
    with pytest.raises(ValueError, match="a checkpoint of format 1, got a model"):
        trainer().fit(x, y, **HOW, checkpoint=file, resume=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoints.load(tmp_path / "none", "checkpoint")


def test_a_checkpoint_of_another_run_is_refused_and_nothing_changes(tmp_path):
    x, y = problem()
    file = tmp_path / "run.safetensors"
    trainer().fit(x, y, **HOW, checkpoint=file)
    for change in ({"batch_size": 9}, {"seed": 1}):
        with pytest.raises(ValueError, match="of another run"):
            trainer().fit(x, y, **HOW | change, checkpoint=file, resume=True)
    with pytest.raises(ValueError, match="images differs"):
        trainer().fit(x[:50], y[:50], **HOW, checkpoint=file, resume=True)
    other = trainer(lambda p: optim.SGD(p, 0.1))
    before = bits(other.model)
    with pytest.raises((ValueError, TypeError)):
        other.fit(x, y, **HOW, checkpoint=file, resume=True)
    assert bits(other.model) == before
    model = Sequential([Flatten(), Dense(3)], input_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="load_state_dict"):
        Trainer(model, optim.Adam(model.params, 0.01)).fit(x, y, **HOW, checkpoint=file, resume=True)


FULL = """
import resource, signal, sys
import numpy as np
from fastconv import checkpoints
checkpoints.save(sys.argv[1], {"a": np.arange(5.0)}, "tree")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoints.save(sys.argv[1], {"a": np.zeros(100_000)}, "tree")
except OSError as problem:
    print(problem)
"""


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path):
    # A limit on a file's size stands for the full disk: writing fails in the middle in the same way.
    file = tmp_path / "run.safetensors"
    done = subprocess.run([sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert "is untouched" in done.stdout
    assert checkpoints.load(file, "tree")["a"].tolist() == [0, 1, 2, 3, 4]
    assert os.listdir(tmp_path) == ["run.safetensors"]


def test_a_folder_that_is_not_there_is_told(tmp_path):
    x, y = problem()
    with pytest.raises(OSError, match="could not be written"):
        trainer().fit(x, y, **HOW, checkpoint=tmp_path / "no" / "run.safetensors")


# ---------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("with_file", [False, True])
def test_a_bad_picture_stops_the_run_at_the_last_good_state(tmp_path, with_file):
    x, y = problem()
    file = tmp_path / "run.safetensors"
    good = trainer()
    good.fit(x, y, **HOW | {"epochs": 1})

    def spoil(images, rng, batches=[]):  # noqa: B006 (it counts its calls)
        batches.append(1)
        return images if len(batches) != 12 else images * np.float32(np.nan)

    job = trainer()
    how = HOW | {"augment": [*HOW["augment"], spoil]}
    with pytest.raises(TrainingDiverged, match=r"nan at step 12 \(epoch 2, batch 4\), first in the batch") as caught:
        job.fit(x, y, **how, checkpoint=file if with_file else None)
    assert len(caught.value.history.steps["loss"]) == 11
    assert bits(job.model) == bits(good.model)
    assert job.optimizer.t == 8
    if with_file:
        saved = checkpoints.load(file, "checkpoint")
        assert all(np.isfinite(a).all() for a in saved["trainer"]["model"].values())


def test_too_large_a_rate_stops_the_run_and_is_told(tmp_path):
    x, y = problem()
    job, file = trainer(lambda p: optim.SGD(p, 1e38)), tmp_path / "run.safetensors"
    before = bits(job.model)
    with pytest.raises(TrainingDiverged, match=r"of layer \d, .*smaller rate \(it was 1e\+38\)"):
        job.fit(x, y, **HOW, checkpoint=file, checkpoint_every=1)
    assert bits(job.model) == before
    assert not file.exists() or np.isfinite(checkpoints.load(file, "checkpoint")["trainer"]["model"]["6.dense.w"]).all()


def test_errors_come_before_anything_happens():
    x, y = problem()
    job = trainer()
    before = bits(job.model)
    cases = [
        (lambda: job.fit(x, y, batch_size=0, epochs=1), ValueError, "batch_size"),
        (lambda: job.fit(x, y, batch_size=8, epochs=True), TypeError, "epochs"),
        (lambda: job.fit(x, y, batch_size=8, epochs=1, seed=-1), ValueError, "seed"),
        (lambda: job.fit(x, y, batch_size=8, epochs=1, resume=True), ValueError, "needs a checkpoint"),
        (lambda: job.fit(x, y[:-1], batch_size=8, epochs=1), ValueError, "59 entries but x has 60"),
        (lambda: job.fit(x[:0], y[:0], batch_size=8, epochs=1), ValueError, "at least one"),
        (lambda: job.fit(x.tolist(), y, batch_size=8, epochs=1), TypeError, "NumPy array"),
        (lambda: job.fit(x.astype(np.uint8), y, batch_size=8, epochs=1), TypeError, "uint8 but the model is float32"),
        (lambda: job.fit(x, y, batch_size=8, epochs=1, validation=x), TypeError, "pair"),
        (lambda: job.fit(x, y + 1, batch_size=60, epochs=1, progress=False), ValueError, "label"),
        (lambda: job.fit(x[:, :7], y, batch_size=8, epochs=1, progress=False), ValueError, "shape"),
        (lambda: Trainer("model", None), TypeError, "Sequential"),
        (lambda: Trainer(job.model, optim.SGD(net().params, 0.1)), ValueError, "other arrays than the model's"),
        (lambda: Trainer(job.model, None).fit(x, y, batch_size=8, epochs=1), TypeError, "without an optimizer"),
    ]
    threads = threading.active_count()
    for call, kind, said in cases:
        with pytest.raises(kind, match=said):
            call()
    assert bits(job.model)[: job.model.flat_params.nbytes] == before[: job.model.flat_params.nbytes]
    assert threading.active_count() == threads


# -------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_is_at_theta_and_changes_nothing():
    x, y = problem()
    job = trainer(OPTIMIZERS["Nesterov"])
    job.fit(x, y, **HOW)
    before = bits(job.model)
    found = job.evaluate(x, y, batch_size=7)
    assert bits(job.model) == before
    with job.optimizer.solution():
        assert bits(job.model) != before
        output = job.model.forward(x)
        expected = softmax_cross_entropy(output, y)[0]
    # float32 losses of batches of 7, averaged in float64: a few parts in 1e7.
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["accuracy"] == pytest.approx(accuracy(output, y), rel=1e-12)
    # A convolution's result does not depend on the batch; a dense layer's sum is BLAS's, in an order of its own.
    np.testing.assert_allclose(job.predict(x, batch_size=13), output, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- progress


def test_a_log_file_gets_a_line_an_epoch(capsys):
    x, y = problem()
    trainer().fit(x, y, batch_size=20, epochs=2, validation=(x, y))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2   loss ")
    assert "validation accuracy" in lines[1]
    assert "\r" not in "".join(lines)
    trainer().fit(x, y, batch_size=20, epochs=1, progress=False)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_live_bar_under_the_lines():
    screen = Terminal()
    with Progress(10, file=screen) as bar:
        for _ in range(10):
            bar.step(1, 0.5)
        bar.line("epoch 1 is over")
    text = screen.getvalue()
    assert "steps" in text
    assert "\r" in text
    assert "epoch 1 is over\n" in text


def test_a_terminal_without_tqdm_gets_the_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    screen = Terminal()
    with Progress(10, file=screen) as bar:
        bar.step(1, 0.5)
        bar.line("epoch 1 is over")
    assert screen.getvalue() == "epoch 1 is over\n"


def test_the_line_of_an_epoch_lines_up():
    row = {"epoch": 3, "steps": 9, "lr": 0.1, "loss": 0.5, "accuracy": 1.0, "seconds": 2.0}
    assert describe(row, 20) == "epoch  3/20   loss 0.5000   accuracy 100.00%     2.0 s"
    assert len(describe(row | {"epoch": 13, "accuracy": 0.5}, 20)) == len(describe(row, 20))


def test_history_survives_json():
    history = made_of([0.1 + 0.2, 2.0])
    state = history.state()
    again = History.from_state({"epochs": json.loads(json.dumps(state["epochs"])), "steps": state["steps"]})
    assert again.epochs == history.epochs
    assert again.steps == history.steps
    assert again.seconds == 1.0


# --------------------------------------------------------------------------------------------------------- lr_search


def test_lr_search_ranks_and_restores():
    x, y = problem(120)
    model = net()
    before, random_before = bits(model), model.rng.bit_generator.state
    how = {"validation": (x[:30], y[:30]), "iterations": 25, "batch_size": 10, "seed": 3}
    candidates = [(optim.SGD, 1e-5), (optim.SGD, 1e38), (optim.Adam, 0.01), (optim.Momentum, 1e-4)]
    found = lr_search(model, candidates, x, y, **how)
    assert bits(model) == before
    assert model.rng.bit_generator.state == random_before
    assert [(c.name, c.lr) for c in found][0::3] == [("Adam", 0.01), ("SGD", 1e38)]
    assert [c.diverged for c in found] == [False, False, False, True]
    losses = [c.validation_loss for c in found]
    assert losses == sorted(losses)
    assert [len(c.losses) for c in found[:3]] == [25] * 3
    # The same start and the same batches: the first loss, before any update, is the same.
    assert len({c.losses[0] for c in found}) == 1
    again = lr_search(model, [c.lr for c in found if c.name == "SGD"], x, y, optimizer=optim.SGD, **how)
    assert again[0].losses == next(c.losses for c in found if c.name == "SGD")


def test_lr_search_refuses():
    x, y = problem()
    model = net()
    for candidates, kind, said in [
        ([], ValueError, "at least one"), ([0.1], TypeError, "optimizer="), ([(optim.SGD, 0.0)], ValueError, "above 0"),
        ([(optim.SGD, math.nan)], ValueError, "rate"), ([(optim.SGD, "fast")], TypeError, "rate"),
    ]:  # fmt: skip
        with pytest.raises(kind, match=said):
            lr_search(model, candidates, x, y, validation=(x, y))
