"""What a convolution should be, how exactly, and arrays that show when a kernel reads or writes outside of its own.

The oracle is `fastconv.reference` in float64. A sum of n products whose rounding errors have random signs is off by at
most LAMBDA*sqrt(n)*eps/2 times the sum of the products' magnitudes, and by n times that whatever their signs (Higham
and Mary, SIAM J. Sci. Comput. 41, 2019); LAMBDA=5 leaves one chance in a million. That bound is taken element by
element and doubled, for in float64 the oracle rounds as well.

Winograd's error spreads over a tile, so it is bounded for a whole result: by eps*sqrt(n)*rms*rms of the two arrays,
which is eps times the rms of a sum of n products, times a + b*sqrt(m), where m products are summed between the
transforms (channels, or tiles for a gradient by w). `WINOGRAD` holds a and b, what test_winograd.py measures.
"""

import ctypes
import functools
import mmap
from typing import Any, NamedTuple

import numpy as np

from fastconv import reference
from problems import Problem

LAMBDA = 5.0
# By the longer side of the window: 5x5 and 7x7 take eight points where the others take six; rows and columns are more exact.
WINOGRAD = {**dict.fromkeys((2, 3), (120.0, 10.0)), **dict.fromkeys((4, 6), (120.0, 20.0)), **dict.fromkeys((5, 7), (400.0, 20.0))}
RESULTS = ("y", "y without bias", "y with relu", "dx", "dw")
GUARD = 67  # numbers on each side: more than a vector, and odd, so that nothing is aligned


def guarded(a: np.ndarray) -> np.ndarray:
    """A read-only copy of `a` that lies between NaNs: a kernel that reads past its end shows them."""
    out, _ = canary(a.shape, a.dtype)
    out[...] = a
    out.flags.writeable = False
    return out


def fenced(a: np.ndarray, before: bool) -> np.ndarray:
    """A copy of `a` that ends, or begins, at a page that nobody may touch: a kernel that reads past it is killed. On Linux."""
    size = -(-max(1, a.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (start, start + mmap.PAGESIZE + size):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError("no fence could be put up")
    out = np.frombuffer(memory, a.dtype, a.size, mmap.PAGESIZE + (0 if before else size - a.nbytes)).reshape(a.shape)
    out[...] = a
    return out


def canary(shape: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """An array to write to, full of NaN, and the buffer in whose middle it lies, for `intact`."""
    size = int(np.prod(shape))
    buffer = np.full(size + 2 * GUARD, np.nan, dtype)
    return buffer[GUARD : GUARD + size].reshape(shape), buffer


def intact(buffer: np.ndarray) -> bool:
    """Whether what surrounds a canary's array still holds the NaNs of the beginning, bit for bit."""
    nan = np.full(1, np.nan, buffer.dtype).tobytes()
    return buffer[:GUARD].tobytes() == buffer[-GUARD:].tobytes() == nan * GUARD


def bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays hold the same bits, NaN and signed zeros included."""
    whole = np.dtype(f"u{a.itemsize}")
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.view(whole), b.view(whole))


class Expected(NamedTuple):
    """Guarded inputs of a problem, the exact results by name and what each element may differ by."""

    x: np.ndarray
    w: np.ndarray
    b: np.ndarray
    dy: np.ndarray
    exact: dict[str, np.ndarray]
    bound: dict[str, np.ndarray]
    spread: dict[str, float]

    def tolerance(self, name: str, method: str) -> Any:
        """Of a method that may be Winograd ("winograd", and "auto", which may choose it), or of one that is not."""
        if method in ("direct", "im2col"):
            return self.bound[name]
        return self.bound[name] + self.spread[name]


def results(x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray, **how: Any) -> dict[str, np.ndarray]:
    """What the reference gives for each of RESULTS."""
    return {
        "y": reference.conv2d(x, w, b, **how),
        "y without bias": reference.conv2d(x, w, **how),
        "y with relu": reference.conv2d(x, w, b, activation="relu", **how),
        "dx": reference.conv2d_grad_x(dy, w, x.shape, **how),
        "dw": reference.conv2d_grad_w(dy, x, w.shape, **how),
    }


def rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))) if a.size else 0.0


@functools.lru_cache(maxsize=1024)
def expected(p: Problem, layout: str, dtype: str) -> Expected:
    """Random inputs of one seed, and what must come out."""
    arrays = p.arrays(layout, dtype)
    how = {**p.how, "layout": layout}
    eps, taps = float(np.finfo(dtype).eps), int(np.prod(p.window.F))
    exact = results(*(a.astype(np.float64) for a in arrays), **how)
    sizes = results(*(np.abs(a, dtype=np.float64) for a in arrays), **how)
    places, depth, filters = p.N * int(np.prod(p.window.size)), p.D1 // p.groups, p.K // p.groups
    # products that a number is the sum of (and the bias), those between Winograd's transforms, the factors
    forward = (taps * depth + 1, depth, *arrays[:2])
    sums = {
        **dict.fromkeys(RESULTS, forward),
        "dx": (taps * filters, filters, arrays[3], arrays[1]),
        "dw": (places, places / 4, arrays[0], arrays[3]),
    }
    bound = {d: eps * min(n, LAMBDA * n**0.5) * sizes[d] for d, (n, *_) in sums.items()}
    a, b = WINOGRAD.get(max(p.window.F), (0.0, 0.0))
    spread = {d: eps * (a + b * m**0.5) * n**0.5 * rms(u) * rms(v) for d, (n, m, u, v) in sums.items()}
    return Expected(*map(guarded, arrays), exact, bound, spread)


def difference(got: np.ndarray, exact: np.ndarray, tolerance: Any) -> str:
    """Nothing where every element is within its tolerance; else the worst element, in words."""
    if got.shape != exact.shape:
        return f"shape {got.shape} instead of {exact.shape}"
    error = np.abs(got - exact)
    bad = ~(error <= tolerance)
    if not bad.any():
        return ""
    allowed = np.broadcast_to(tolerance, error.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(np.isnan(error), np.inf, np.where(bad, error / allowed, 0))
    at = np.unravel_index(np.argmax(excess), error.shape)
    place = tuple(map(int, at))
    return f"{bad.sum()} of {bad.size} off, worst {place}: {got[at]!r} for {exact[at]!r}, tolerance {allowed[at]:.2g}"
