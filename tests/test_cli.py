"""The command line: what it prints, what it writes, its exit codes, and one line for each error."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import fastconv as fc
from fastconv import models, report
from fastconv.__main__ import main

SIDE = 16


def pictures(n, seed=0):
    """Bright rows, columns and squares: three classes of light on dark, as MNIST's digits are."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 40, (n, SIDE, SIDE, 1), np.uint8)
    y = np.arange(n) % 3
    for i, label in enumerate(y):
        at = rng.integers(3, SIDE - 6)
        rows = slice(at, at + 3) if label in (0, 2) else slice(None)
        columns = slice(at, at + 3) if label in (1, 2) else slice(None)
        x[i, rows, columns] += 200
    return x, y


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "shapes.npz"
    (x, y), (xt, yt) = pictures(150), pictures(60, seed=1)
    np.savez(file, x_train=x, y_train=y, x_test=xt, y_test=yt, classes=["row", "column", "square"])
    return file


QUICK = ("--epochs", "4", "--batch-size", "25", "--lr", "0.003")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A folder that `train` left."""
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", "--data", str(data), "--out", str(folder), *QUICK]) == 0
    return folder


def shell(*arguments, **how):
    command = [sys.executable, "-m", "fastconv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **how)


def failed(capsys, *arguments):
    """The one line of an error."""
    assert main([str(a) for a in arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert error.startswith("fastconv: error: ")
    return error


# ------------------------------------------------------------------------------------------------- layer and info


def test_layer_prints_the_lectures_sum():
    done = shell("layer", "--W1", 32, "--D1", 3, "-K", 10, "-F", 5, "-S", 1, "-P", 2)
    assert done.returncode == 0
    assert done.stderr == ""
    for part in ("32x32x3 -> 32x32x10", "(32 - 5 + 2*2)/1 + 1 = 32", "760 parameters"):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--W1 32 --D1 3 -K 6 -F 5", "28x28x6"),
        ("--W1 7 --D1 1 -K 1 -F 3", "5x5x1"),
        ("--W1 7 --D1 1 -K 1 -F 3 -S 2", "3x3x1"),
        ("--W1 56 --D1 64 -K 32 -F 1", "56x56x32"),
        ("--W1 32 --D1 3 -K 8 -F 7 -P same", "32x32x8"),
        ("--W1 30 --H1 20 --D1 4 -K 8 -F 3 -P 1 --groups 2 --dilation 2", "28x18x8"),
        ("--W1 7 --D1 1 -K 1 -F 3 -S 3 --fit floor", "2x2x1"),
    ],
)
def test_layer_knows_the_slides(capsys, arguments, said):
    assert main(["layer", *arguments.split()]) == 0
    assert f"-> {said}" in capsys.readouterr().out


def test_layer_says_what_does_not_fit(capsys):
    assert "(7 - 3 + 2*0)/3 + 1 = 2.33" in failed(capsys, *"layer --W1 7 --D1 1 -K 1 -F 3 -S 3".split())
    assert "groups" in failed(capsys, *"layer --W1 7 --D1 3 -K 2 -F 3 --groups 2".split())
    assert "error" in failed(capsys, *"layer --W1 7 --D1 3 -K 2 -F 3 -P some".split())


def test_info_shows_what_was_built():
    done = shell("info")
    assert done.returncode == 0
    assert fc.__version__ in done.stdout
    assert fc.isa() in done.stdout
    assert np.__version__ in done.stdout


# ----------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("fly",), ("layer", "--W1", "32"), ("layer", "--W1", "0", "--D1", "3", "-K", "1", "-F", "1"),
        ("train", "--epochs", "0"), ("train", "--optimizer", "magic"), ("train", "--lr", "-1"),
        ("train", "--lr", "nan"), ("train", "--seed", "-1"),
        ("train", "--holdout", "1"), ("predict",), ("info", "--threads", "none"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_with_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "train", "evaluate", "predict", "layer", "race", "bench", "info"])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"] if command else ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) > 5
    assert "--threads" in text or "examples:" in text


def test_nobody_reading_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "fastconv", "info"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr


# ----------------------------------------------------------------------------------------------------------- train


def test_train_leaves_everything(run):
    names = {file.name for file in run.iterdir()}
    assert {"model.safetensors", "checkpoint.safetensors", "history.csv", "steps.csv", "settings.json"} <= names
    assert {"curves.png", "filters.png", "volume.png", "features.png", "report.html"} <= names
    assert any(name.startswith("maps-") for name in names)
    for name in names:
        if name.endswith(".png"):
            with Image.open(run / name) as image:
                assert min(image.size) > 150
    assert len((run / "history.csv").read_text().splitlines()) == 5


class Page(HTMLParser):
    """Reads a page strictly: each tag is closed in its turn, and nothing but a PNG inside the page is referred to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not {"href", "srcset", "action", "poster", "background", "onload"} & dict(attrs).keys(), (tag, attrs)
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        if tag == "img":
            kind, _, data = dict(attrs)["src"].partition(",")
            assert kind == "data:image/png;base64"
            assert dict(attrs)["alt"]
            self.pictures.append(base64.b64decode(data, validate=True))
        elif tag != "meta":
            assert "src" not in dict(attrs)
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)


def test_the_report_is_one_page_that_needs_nothing_else(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    page = Page(text)
    assert {hash(picture) for picture in page.pictures} == {hash(file.read_bytes()) for file in run.glob("*.png")}
    assert re.fullmatch(r"test accuracy \d+\.\d%", page.text["p"][0])
    facts = dict(zip(page.text["dt"], page.text["dd"], strict=True))
    assert facts["training images"] == "150"
    assert facts["lr"] == "0.003"
    assert facts["seed"] == "0"
    assert {"The model", "Learning curves", "What the test images were taken for"} <= set(page.text["h2"])
    assert len(page.text["th"]) * 4 == len(page.text["td"])  # four epochs, no cell empty


def test_the_report_escapes_what_it_is_given(tmp_path):
    nasty = '<b>"&\'</b><script>'
    report.write(tmp_path / "r.html", nasty, nasty, {nasty: nasty}, {nasty: nasty}, [], [{nasty: 1.0}])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    for tag in ("title", "h1", "p", "dt", "dd", "h2", "pre", "th"):
        assert nasty in page.text[tag]


def test_train_prints_table_progress_and_one_result(capsys, data, tmp_path):
    assert main(["train", "--data", str(data), "--out", str(tmp_path), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "150 images to train on, 60 to test on, 16x16x1, 3 classes" in out
    assert "W2 x H2 x D2" in out
    assert len(re.findall(r"^epoch \d/4   loss", err, re.M)) == 4
    (result,) = re.findall(r"^test accuracy (\d+\.\d)%$", out, re.M)
    assert float(result) > 60  # a third is chance; runs of four epochs end near 100


def test_train_repeats_bit_for_bit_and_resumes_to_the_same_bits(data, run, tmp_path):
    def weights(folder):
        return models.load(folder / "model.safetensors").flat_params.tobytes()

    assert main(["train", "--data", str(data), "--out", str(tmp_path), *QUICK]) == 0
    assert weights(tmp_path) == weights(run)
    # The same run, cut off: the process is killed as soon as its first checkpoint is there.
    folder = tmp_path / "cut"
    command = [sys.executable, "-m", "fastconv", "train", "--data", str(data), "--out", str(folder), *QUICK]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not (folder / "checkpoint.safetensors").exists():
        time.sleep(0.005)
    child.kill()
    child.wait()
    assert main(["train", "--resume", "--out", str(folder)]) == 0
    assert weights(folder) == weights(run)


def test_ctrl_c_ends_a_run_cleanly(data, tmp_path):
    command = [sys.executable, "-m", "fastconv", "train", "--data", data, "--out", tmp_path, "--epochs", "100000"]
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not (tmp_path / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"go on with: python -m fastconv train --resume --out {tmp_path}" in out
    assert "Traceback" not in err


def test_train_holds_out_where_something_is_chosen(capsys, data, tmp_path):
    arguments = ["--data", str(data), "--out", str(tmp_path), *QUICK, "--target", "0.34", "--optimizer", "nesterov"]
    assert main(["train", *arguments, "--schedule", "step", "--no-augment"]) == 0
    assert "validation on held-out images" in capsys.readouterr().out
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["optimizer"] == "nesterov"
    assert settings["augment"] is False


def test_folders_of_images_train_predict_and_evaluate(capsys, tmp_path):
    """What a stranger does: photographs in folders, one command, then a guess for a new one."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dusk", "noon")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 80, (20 + i, 24, 3), np.uint8) + np.uint8(150 * k)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    out = tmp_path / "out"
    common = ["--data", str(tmp_path / "photos"), "--size", "16"]
    assert main(["train", *common, "--out", str(out), "--epochs", "12", "--batch-size", "4"]) == 0
    assert "test accuracy 100.0%" in capsys.readouterr().out
    assert main(["evaluate", str(out)]) == 0
    assert "test accuracy 100.0%" in capsys.readouterr().out
    new = [str(tmp_path / "photos" / name / "3.jpg") for name in ("noon", "dusk")]
    assert main(["predict", "--run", str(out), *new]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.search(r"3\.jpg\s+noon \d+\.\d%   dusk", first)
    assert re.search(r"3\.jpg\s+dusk \d+\.\d%   noon", second)


# ------------------------------------------------------------------------------------------------ using what it left


def test_evaluate_says_what_train_said(capsys, data, run):
    assert main(["evaluate", str(run)]) == 0
    out = capsys.readouterr().out
    (result,) = re.findall(r"^test accuracy (\d+\.\d%)$", out, re.M)
    assert f"test accuracy {result}" in (run / "report.html").read_text()
    rows = re.findall(r"^(?:row|column|square)\s+(.*)$", out, re.M)[-3:]
    counts = np.array([[0 if n == "." else int(n) for n in row.split()] for row in rows])
    assert counts.sum(axis=1).tolist() == [20, 20, 20]
    assert f"{counts.trace() / 60:.1%}" == result


def test_predict_reads_an_image_and_its_negative(capsys, run, tmp_path):
    x, _ = pictures(1, seed=9)
    Image.fromarray(x[0, ..., 0]).save(tmp_path / "a.png")
    Image.fromarray(255 - x[0, ..., 0]).save(tmp_path / "b.png")
    assert main(["predict", "--run", str(run), str(tmp_path / "a.png")]) == 0
    assert main(["predict", "--run", str(run), "--invert", str(tmp_path / "b.png")]) == 0
    first, second = (line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines())
    assert first == second
    assert len(re.findall(r"%", first)) == 3


def test_errors_are_one_line(capsys, data, run, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "model.json").write_text("{")
    (tmp_path / "data.bin").write_bytes(b"abc")
    other = tmp_path / "other.npz"
    x, y = pictures(30)
    np.savez(other, x=x[:, :10], y=y)
    for arguments, said in [
        (("train", "--data", tmp_path / "none"), "nothing at"),
        (("train", "--data", tmp_path / "data.bin"), "no data that is known"),
        (("train", "--resume", "--out", tmp_path / "none"), "no run to resume"),
        (("train", "--data", data, "--model", "vgg16", "--out", tmp_path / "v"), "vgg16|Sequential|Conv2D|MaxPool2D"),
        (("evaluate", tmp_path / "none"), "no folder that train left"),
        (("evaluate", tmp_path), "torn or foreign"),
        (("evaluate", run, "--data", other), "does not fit the model"),
        (("predict", "--run", run, tmp_path / "text.png"), "no image that Pillow can read"),
        (("predict", "--run", run, tmp_path / "none.png"), "No such file"),
    ]:
        assert re.search(said, failed(capsys, *arguments))


def test_a_rate_out_of_this_world_is_one_line(capsys, data, tmp_path):
    arguments = ["train", "--data", data, "--out", tmp_path, *QUICK, "--optimizer", "sgd", "--schedule", "constant"]
    assert main([*map(str, arguments), "--lr", "1e30"]) == 1
    assert re.search(r"fastconv: error: fit: the (loss|parameters) became", capsys.readouterr().err)


def test_a_missing_extra_is_named(capsys, monkeypatch, data, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "fastconv[demo]"' in failed(capsys, "train", "--data", data, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------ race, bench


def test_race_prints_a_table_and_the_advice(capsys, data, tmp_path):
    names = ("sgd", "adam", "rmsprop")
    arguments = ["--epochs", "2", "--iterations", "6", "--batch-size", "27", "--optimizers", *names]
    assert main(["race", "--data", str(data), "--out", str(tmp_path), *arguments]) == 0
    out = capsys.readouterr().out
    table = out[out.index("optimizer ") :]
    losses = [float(re.search(rf"^{name} +\S+ +\S+ +(\S+)", table, re.M)[1]) for name in names]
    assert all(np.isfinite(losses))
    order = [line.split()[0] for line in table.splitlines()[1:4]]
    assert sorted(losses) == [losses[names.index(name)] for name in order]
    assert "How to choose?" in out
    here = " ".join(out[out.index("Here, ") : out.index("wrote")].split())
    assert here.startswith(f"Here, {order[0]} with the rate ")
    ratio = max(losses) / min(losses)
    # The ratio is printed with one digit, and each loss may be 5e-5 off.
    error = 0.0501 + ratio * 5e-5 * (1 / max(losses) + 1 / (min(losses) - 5e-5))
    assert abs(float(re.search(rf"{order[-1]}'s was (\S+) times", here)[1]) - ratio) <= error
    assert max(len(line) for line in out[out.index("optimizer ") : out.index("wrote")].splitlines()) <= 120
    for name in ("race.png", "lr-search.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 300


def test_bench_prints_every_layer_and_the_mean(capsys):
    assert main(["bench", "--seconds", "0.001", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"forward|backward", out)) == 10
    assert re.search(r"geometric mean \d+\.\d times, 1 threads", out)
