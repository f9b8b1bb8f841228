"""From stored images to minibatches: normalisation, augmentation, shuffling, and a background thread that does it.

Everything random here is a function of (seed, epoch, number of the batch), so that a run can be taken up anywhere.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import value_error

Array = np.ndarray
Augmentation = Callable[[Array, np.random.Generator], Array]


@dataclass(frozen=True)
class Normalise:
    """Images as a network wants them: (x - mean) / std in each channel, as floating point, contiguous.

    Parameters
    ----------
    mean, std : tuple of float
        One for each channel.
    dtype : str
        "float32" or "float64".
    layout : str
        The order of what comes out, "NHWC" or "NCHW"; what goes in is (N, H, W, C).

    Examples
    --------
    >>> x = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    >>> prepare = Normalise.of(x)
    >>> float(abs(prepare(x).mean())) < 1e-6, prepare(x).dtype
    (True, dtype('float32'))
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str = "float32"
    layout: str = "NHWC"

    @classmethod
    def of(cls, x: Array, *, dtype: str = "float32", layout: str = "NHWC", sample: int = 10_000) -> Normalise:
        """Mean and standard deviation measured on at most `sample` of the images x, evenly spaced."""
        step = max(1, -(-len(x) // sample))
        seen = np.asarray(x[::step], np.float64).reshape(-1, x.shape[-1])
        std = seen.std(axis=0)
        # A channel that never changes stays 0 instead of becoming NaN.
        return cls(tuple(map(float, seen.mean(axis=0))), tuple(float(s) or 1.0 for s in std), dtype, layout)

    def __call__(self, x: Array) -> Array:
        dtype = np.dtype(self.dtype)
        scale = (1 / np.asarray(self.std)).astype(dtype)
        y = np.subtract(x, np.asarray(self.mean, dtype), dtype=dtype)
        y *= scale
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if self.layout == "NCHW" else y


def _windows(x: Array, height: int, width: int, pad: int, fill: float, rng: np.random.Generator) -> Array:
    """A window of every image, at a place of its own, of the images with `pad` cells of `fill` around them."""
    n, h, w, c = x.shape
    padded = np.full((n, h + 2 * pad, w + 2 * pad, c), fill, x.dtype)
    padded[:, pad : pad + h, pad : pad + w] = x
    top = rng.integers(0, h + 2 * pad - height + 1, n)
    left = rng.integers(0, w + 2 * pad - width + 1, n)
    out = np.empty((n, height, width, c), x.dtype)
    for i in range(n):  # copies of rows: faster than one gather with an index for every cell
        out[i] = padded[i, top[i] : top[i] + height, left[i] : left[i] + width]
    return out


@dataclass(frozen=True)
class Shift:
    """Moves every image by up to `pixels` up or down and left or right; `fill` comes in at the edge."""

    pixels: int = 2
    fill: float = 0

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        return _windows(x, x.shape[1], x.shape[2], self.pixels, self.fill, rng)


@dataclass(frozen=True)
class Crop:
    """Cuts a window of `height` x `width` out of every image, `pad` cells of `fill` added around it first."""

    height: int
    width: int
    pad: int = 0
    fill: float = 0

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        if self.height > x.shape[1] + 2 * self.pad or self.width > x.shape[2] + 2 * self.pad:
            rule = "the window is larger than the padded image"
            most = f"at most {x.shape[1] + 2 * self.pad} x {x.shape[2] + 2 * self.pad}"
            raise value_error("Crop", rule, most, f"{self.height} x {self.width}")
        return _windows(x, self.height, self.width, self.pad, self.fill, rng)


@dataclass(frozen=True)
class Flip:
    """Mirrors an image left to right with probability p."""

    p: float = 0.5

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        mirrored = rng.random(len(x)) < self.p
        return np.where(mirrored[:, None, None, None], x[:, :, ::-1], x)


@dataclass(frozen=True)
class Warp:
    """Turns, scales, slants, shifts and bends every image a little, by amounts drawn anew for each; edges come in as 0.

    Pixel p of the new image is taken, by bilinear interpolation, from the place c + M (p - c) + s + u(p) of the old:
    c is the centre, M a rotation times a slant times a scaling, s the shift, and u a smooth displacement, the sum of
    cubic B-splines on a coarse grid with normal coefficients (Simard, Steinkraus and Platt 2003 smooth noise instead).

    Parameters
    ----------
    rotate : float
        Largest angle, in degrees.
    scale, shear : float
        Largest relative change of each side's length, largest slant.
    shift, bend : float
        Largest shift and the displacements' standard deviation, in pixels.
    """

    rotate: float = 10.0
    scale: float = 0.1
    shear: float = 0.1
    shift: float = 2.0
    bend: float = 0.0

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        n, h, w, _ = x.shape
        angle = np.deg2rad(rng.uniform(-self.rotate, self.rotate, n))
        shear = rng.uniform(-self.shear, self.shear, n)
        ky, kx = 1 + rng.uniform(-self.scale, self.scale, (2, n))
        sy, sx = rng.uniform(-self.shift, self.shift, (2, n)).astype(np.float32)
        sin, cos = np.sin(angle), np.cos(angle)
        matrix = np.array([[cos * ky, (cos * shear - sin) * kx], [sin * ky, (sin * shear + cos) * kx]], np.float32)
        y0, x0 = np.float32((h - 1) / 2), np.float32((w - 1) / 2)
        dy, dx = np.arange(h, dtype=np.float32) - y0, np.arange(w, dtype=np.float32) - x0
        bend = self._displacements(n, h, w, rng)
        rows, columns = (
            m[0][:, None, None] * dy[:, None] + m[1][:, None, None] * dx + (centre + s)[:, None, None] + u
            for m, centre, s, u in zip(matrix, (y0, x0), (sy, sx), bend, strict=True)
        )
        return _bilinear(x, rows, columns)

    def _displacements(self, n: int, h: int, w: int, rng: np.random.Generator) -> Array:
        """u, of shape (2, N, H, W)."""
        coarse = rng.normal(0, 1.5 * self.bend, (2, n, 7, 7)).astype(np.float32)
        return _spline_basis(h, 7) @ coarse @ _spline_basis(w, 7).T


def _spline_basis(n: int, knots: int) -> Array:
    """Cubic B-splines on `knots` places from just before the first pixel to just after the last, (n, knots)."""
    place = np.linspace(1, knots - 2, n, dtype=np.float32)[:, None]
    d = np.abs(place - np.arange(knots, dtype=np.float32))
    return np.where(d < 1, 2 / 3 - d * d + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6).astype(np.float32)


def _bilinear(x: Array, rows: Array, columns: Array) -> Array:
    """Images x (N, H, W, C) at the places (rows, columns), each (N, H', W'); 0 outside, in the dtype of x."""
    n, h, w, c = x.shape
    padded = np.zeros((n, h + 2, w + 2, c), np.float32)  # one ring of zeros is what lies beyond the edge
    padded[:, 1:-1, 1:-1] = x
    rows, columns = np.clip(rows, -1, h), np.clip(columns, -1, w)
    r, q = np.minimum(np.floor(rows), h - 1), np.minimum(np.floor(columns), w - 1)
    fr, fq = (rows - r)[..., None], (columns - q)[..., None]
    first = (np.arange(n)[:, None, None] * (h + 2) + r.astype(np.intp) + 1) * (w + 2) + q.astype(np.intp) + 1
    cells = padded.reshape(-1, c)
    top = cells[first] * (1 - fq) + cells[first + 1] * fq
    bottom = cells[first + w + 2] * (1 - fq) + cells[first + w + 3] * fq
    y = top * (1 - fr) + bottom * fr
    return y.astype(x.dtype) if x.dtype.kind == "f" else np.rint(y).astype(x.dtype)


def batches(
    x: Array,
    y: Array,
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    shuffle: bool = True,
    augment: Augmentation | Sequence[Augmentation] = (),
    prepare: Callable[[Array], Array] | None = None,
) -> Iterator[tuple[Array, Array]]:
    """The minibatches of one epoch, each image once; the last one may be smaller.

    Everything random is a function of (seed, epoch, number of the batch): an epoch can be taken up in its middle
    without the batches before it, and gives the same bits.

    Parameters
    ----------
    x, y : ndarray
        Images (N, H, W, C) of any dtype and their labels; memory maps will do.
    batch_size : int
        Images in a batch.
    seed, epoch : int
        Which shuffling and which augmentation.
    start : int
        The batch to begin with.
    shuffle : bool
        False keeps the order of x.
    augment : callable or sequence of callables, optional
        ``f(x, rng) -> x``, applied in turn to the stored images.
    prepare : callable, optional
        ``f(x) -> x``, last; usually a `Normalise`.

    Yields
    ------
    x, y : ndarray
        One minibatch.
    """
    augment = [augment] if callable(augment) else list(augment)
    order = np.random.default_rng([seed, epoch, 0]).permutation(len(x)) if shuffle else np.arange(len(x))
    for step in range(start, -(-len(x) // batch_size)):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        xb = x[chosen] if shuffle else x[step * batch_size : (step + 1) * batch_size]
        if augment:
            rng = np.random.default_rng([seed, epoch, 1, step])
            for change in augment:
                xb = change(xb, rng)
        yield (prepare(xb) if prepare else np.ascontiguousarray(xb)), y[chosen]


def prefetch(items: Iterable[Any], depth: int = 3) -> Generator[Any, None, None]:
    """What `items` yields, made in a background thread, at most `depth` ahead.

    The thread ends with the items, with an error (which is raised here), or when this iterator is closed.

    Examples
    --------
    >>> list(prefetch(range(5)))
    [0, 1, 2, 3, 4]
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: tuple[str, Any]) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(("item", item))
                if closed.is_set():
                    return
            put(("end", None))
        except BaseException as problem:  # it belongs to whoever asks for the next item
            put(("error", problem))

    worker = threading.Thread(target=work, name="fastconv-batches", daemon=True)
    worker.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        closed.set()
        worker.join()
