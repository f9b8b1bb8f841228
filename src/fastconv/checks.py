"""The one place that makes errors: small checks that every public function runs on its arguments.

A message says where, what, the rule, what was expected and what came::

    conv2d: w has depth 4 but x has depth 3 (groups=1); expected w of shape (5, 5, 3, 10), got (5, 5, 4, 10)

Wrong types and dtypes are a TypeError, wrong values and shapes a ValueError. Each check returns what it checked, in
plain form (an `int`, a `float`, the array itself), and costs well under a microsecond when all is well. ``where`` is
the name of the public function and ``name`` that of the argument, as the caller knows them.
"""

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def message(where: str, what: str, expected: object = None, got: object = None) -> str:
    """Text of every error of fastconv: ``where: what; expected this, got that``."""
    tail = ", ".join(f"{word} {text}" for word, text in (("expected", expected), ("got", got)) if text is not None)
    return f"{where}: {what}; {tail}" if tail else f"{where}: {what}"


def value_error(where: str, what: str, expected: object = None, got: object = None) -> ValueError:
    """Return the ValueError that tells of a wrong value or shape, for the caller to raise."""
    return ValueError(message(where, what, expected, got))


def type_error(where: str, what: str, expected: object = None, got: object = None) -> TypeError:
    """Return the TypeError that tells of a wrong type or dtype, for the caller to raise."""
    return TypeError(message(where, what, expected, got))


def ndarray(where: str, name: str, a: Any, ndim: int | None = None) -> np.ndarray:
    """Check that ``a`` is a NumPy array, of ``ndim`` axes if given; a mask, which would be ignored, is refused."""
    if type(a) is not np.ndarray and (not isinstance(a, np.ndarray) or isinstance(a, np.ma.MaskedArray)):
        raise type_error(where, f"{name} must be a NumPy array", "numpy.ndarray", type(a).__name__)
    if ndim is not None and a.ndim != ndim:
        raise value_error(where, f"{name} must have {ndim} axes", f"{ndim} axes", f"{a.ndim}, shape {a.shape}")
    return a


def array(where: str, name: str, a: Any, ndim: int | None = None) -> np.ndarray:
    """Check that ``a`` is a float32 or float64 array in the machine's byte order, of ``ndim`` axes if given."""
    ndarray(where, name, a, ndim)
    dtype = a.dtype
    if dtype is not F32 and dtype is not F64 and dtype != F32 and dtype != F64:
        native = "" if dtype.isnative else " in the other byte order"
        raise type_error(where, f"{name} has the wrong dtype", "float32 or float64", f"{dtype.name}{native}")
    return a


def same_dtype(where: str, *named: tuple[str, np.ndarray]) -> np.dtype:
    """Check that all the arrays, given as pairs (name, array), have one dtype, and return it."""
    first, a = named[0]
    for name, b in named[1:]:
        if b.dtype is not a.dtype and b.dtype != a.dtype:
            what = f"{name} is {b.dtype.name} but {first} is {a.dtype.name}, and a call takes one dtype"
            raise type_error(where, what, f"{name} as {a.dtype.name}", b.dtype.name)
    return a.dtype


def arrays(where: str, ndim: int, *named: tuple[str, Any]) -> np.dtype:
    """`array` of all these pairs (name, array), and `same_dtype`; return the dtype."""
    dtype = array(where, *named[0], ndim).dtype
    for name, b in named[1:]:
        if type(b) is not np.ndarray or b.ndim != ndim or b.dtype is not dtype:
            same_dtype(where, named[0], (name, array(where, name, b, ndim)))
    return dtype


def shape(where: str, name: str, a: np.ndarray, expected: tuple[int, ...], why: str = "has the wrong shape") -> None:
    """Check that ``a`` has exactly the shape ``expected``; ``why`` says which rule asks for it."""
    if a.shape != expected:
        raise value_error(where, f"{name} {why}", f"{name} of shape {expected}", a.shape)


def count(where: str, name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> int:
    """Check that ``value`` is an int (NumPy's too, but no bool) from ``minimum`` to ``maximum``; return it as `int`."""
    if type(value) is not int:
        if isinstance(value, (bool, np.bool_, np.ndarray)) or not hasattr(value, "__index__"):
            raise type_error(where, f"{name} must be an int", "an int", f"{value!r} ({type(value).__name__})")
        value = operator.index(value)
    if value < minimum or (maximum is not None and value > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise value_error(where, f"{name} is out of range", f"an int of at least {minimum}{upper}", value)
    return value


def number(
    where: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_high: bool = False
) -> float:
    """Check that ``value`` is a finite number in [low, high], or [low, high) if ``open_high``; return a `float`."""
    if type(value) is not float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise type_error(where, f"{name} must be a number", "a real number", f"{value!r} ({type(value).__name__})")
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if not (low <= value <= high and math.isfinite(value)) or (open_high and value == high):
        bounds = f"[{low:g}, {high:g}{')' if open_high or high == math.inf else ']'}"
        rule = "a finite number" if low == -math.inf and high == math.inf else f"a finite number in {bounds}"
        raise value_error(where, f"{name} is out of range", rule, f"{value:g}")
    return value


def choice(where: str, name: str, value: Any, options: Iterable[str]) -> str:
    """Check that ``value`` is one of the names in ``options``."""
    if isinstance(value, str) and value in options:
        return value
    names = ", ".join(repr(option) for option in options)
    make = value_error if isinstance(value, str) else type_error
    raise make(where, f"{name} has no such choice", f"one of {names}", repr(value))


def flag(where: str, name: str, value: Any) -> bool:
    """Check that ``value`` is True or False (NumPy's too)."""
    if not isinstance(value, (bool, np.bool_)):
        raise type_error(where, f"{name} must be True or False", "a bool", f"{value!r} ({type(value).__name__})")
    return bool(value)


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays share memory; a question too hard to settle quickly counts as yes."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # NumPy's stub knows 0 and -1 only
    except np.exceptions.TooHardError:
        return True


def out(
    where: str, a: Any, expected: tuple[int, ...], dtype: np.dtype, *inputs: tuple[str, np.ndarray | None],
    name: str = "out",
) -> np.ndarray:
    """Check an array to write to: type, shape, dtype, writable, no cell twice in memory, no overlap with ``inputs``.

    It may have any strides that give every cell a place of its own; ``inputs`` are pairs (name, array or None).
    """
    ndarray(where, name, a)
    if a.dtype != dtype:
        raise type_error(where, f"{name} has the wrong dtype", dtype.name, a.dtype.name)
    shape(where, name, a, expected)
    writable(where, name, a)
    for other, b in inputs:
        if b is not None and overlap(a, b):
            raise value_error(where, f"{name} shares memory with {other}", f"{name} apart from every input")
    return a


def writable(where: str, name: str, a: np.ndarray) -> np.ndarray:
    """Check that ``a`` can be written to and that no two of its cells lie in one place."""
    if not a.flags.writeable:
        raise value_error(where, f"{name} is read-only", "a writable array")
    if not a.flags.c_contiguous and _folded(a):
        raise value_error(where, f"cells of {name} share memory with one another", "a place for each cell", a.strides)
    return a


def _folded(a: np.ndarray) -> bool:
    # From the innermost axis out, each step must pass over all that the axes within it span.
    reach = a.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < reach:
            return a.size > 0
        reach += stride * (n - 1)
    return False
