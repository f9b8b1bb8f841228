"""The lecture's arithmetic of a window that slides over a picture: (W1 - F + 2P)/S + 1. Pure Python.

A picture of W1 x H1 pixels and depth D1, under K filters of F x F, stride S and zero padding P, becomes one of
W2 x H2 pixels and depth D2 = K. `ConvGeometry` and `PoolGeometry` know all of it for a layer; `window` is what each
call of a convolution or pooling function runs to normalise F, S, P and dilation, in a few microseconds.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from fastconv import checks

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Size = int | Pair
Padding = int | Pair | Pads | str

# Sizes of windows, strides, dilation and padding stay below 2^31, so that their products fit a 64-bit signed integer.
MAX = 2**31 - 1


class GeometryError(ValueError):
    """The arithmetic says no: a window that does not fit, groups that do not divide the depth."""


class Window(NamedTuple):
    """A window laid over a picture, everything normalised to (height, width)."""

    size: Pair  # H2, W2: how many places it has
    F: Pair
    S: Pair
    pads: Pads  # ((top, bottom), (left, right))
    dilation: Pair


def pair(where: str, name: str, value: Any, minimum: int = 1) -> Pair:
    """Return ``value``, an int or (height, width), as (height, width).

    >>> pair("conv2d", "S", 2), pair("conv2d", "S", (1, 2))
    ((2, 2), (1, 2))
    """
    if type(value) is int and minimum <= value <= MAX:
        return value, value
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise checks.value_error(where, f"{name} has {len(value)} entries", "an int or (height, width)", value)
        return checks.count(where, name, value[0], minimum, MAX), checks.count(where, name, value[1], minimum, MAX)
    value = checks.count(where, name, value, minimum, MAX)
    return value, value


def padding(where: str, P: Any, F: Pair, dilation: Pair) -> Pads:
    """Return ``P`` as ((top, bottom), (left, right)).

    ``"same"`` pads ``dilation*(F - 1)`` cells in all, the odd one at the bottom and right, whatever the stride: the
    lecture's P = (F - 1)/2, which keeps the size at S = 1. ``"valid"`` pads nothing.

    >>> padding("conv2d", "same", (5, 2), (1, 1)), padding("conv2d", (1, 0), (3, 3), (1, 1))
    (((2, 2), (0, 1)), ((1, 1), (0, 0)))
    """
    if type(P) is int and 0 <= P <= MAX:
        return (P, P), (P, P)
    if isinstance(P, str):
        if checks.choice(where, "P", P, ("same", "valid")) == "valid":
            return (0, 0), (0, 0)
        h, w = dilation[0] * (F[0] - 1), dilation[1] * (F[1] - 1)
        return (h // 2, h - h // 2), (w // 2, w - w // 2)
    if not isinstance(P, (tuple, list)):
        P = checks.count(where, "P", P, 0, MAX)
        return (P, P), (P, P)
    if len(P) != 2:
        forms = 'an int, (height, width), ((top, bottom), (left, right)), "same" or "valid"'
        raise checks.value_error(where, f"P has {len(P)} entries", forms, P)
    return pair(where, "P", P[0], 0), pair(where, "P", P[1], 0)


def window(where: str, H1: int, W1: int, F: Any, S: Any = 1, P: Any = 0, dilation: Any = 1) -> Window:
    """Lay a window over a picture of H1 x W1 pixels; a last partial step is dropped, as all frameworks do.

    Parameters
    ----------
    where : str
        Name of the public function, for the message.
    H1, W1 : int
        Height and width of the picture, as an array's shape gives them.
    F, S, P, dilation
        As `ConvGeometry` takes them.

    Returns
    -------
    Window
        With ``.size == (H2, W2)``, ``.F``, ``.S``, ``.pads`` and ``.dilation``.

    Raises
    ------
    GeometryError
        If the picture is empty, or smaller with its padding than the window.

    Examples
    --------
    >>> window("conv2d", 7, 7, 3, S=2).size
    (3, 3)
    """
    F = pair(where, "F", F)
    S = pair(where, "S", S)
    dilation = pair(where, "dilation", dilation)
    pads = padding(where, P, F, dilation)
    H2 = (H1 - dilation[0] * (F[0] - 1) - 1 + pads[0][0] + pads[0][1]) // S[0] + 1
    W2 = (W1 - dilation[1] * (F[1] - 1) - 1 + pads[1][0] + pads[1][1]) // S[1] + 1
    w = Window((H2, W2), F, S, pads, dilation)
    if H2 < 1 or W2 < 1 or H1 < 1 or W1 < 1:
        _too_small(where, H1, W1, w)
    return w


def transposed(
    where: str, H1: int, W1: int, F: Any, S: Any = 1, P: Any = 0, output_padding: Any = 0, dilation: Any = 1
) -> Window:
    """Size of the picture whose convolution has H1 x W1 pixels: (W1 - 1)S - 2P + dilation(F - 1) + output_padding + 1.

    A stride drops what does not fill a step, so S sizes lead to one W1; ``output_padding``, from 0 to S - 1, picks
    one of them. Returned as a `Window` whose ``.size`` is the picture's.

    >>> transposed("conv_transpose2d", 3, 3, F=3, S=2, P=1, output_padding=1).size
    (6, 6)
    """
    F = pair(where, "F", F)
    S = pair(where, "S", S)
    dilation = pair(where, "dilation", dilation)
    pads = padding(where, P, F, dilation)
    extra = pair(where, "output_padding", output_padding, 0)
    if H1 < 1 or W1 < 1:
        _empty(where, H1, W1)
    if extra[0] >= S[0] or extra[1] >= S[1]:
        what = "output_padding fills a whole step"
        raise GeometryError(checks.message(where, what, f"less than the stride {S}", output_padding))
    sums = zip((H1, W1), F, S, pads, dilation, extra, strict=True)
    H2, W2 = ((n - 1) * s - sum(p) + d * (f - 1) + e + 1 for n, f, s, p, d, e in sums)
    if H2 < 1 or W2 < 1:
        what = f"the padding {pads} leaves nothing"
        raise GeometryError(checks.message(where, what, "an output of at least 1 x 1", f"{H2} x {W2}"))
    return Window((H2, W2), F, S, pads, dilation)


def _empty(where: str, H1: int, W1: int) -> NoReturn:
    raise GeometryError(checks.message(where, "the picture is empty", "at least 1 x 1 pixels", f"{H1} x {W1}"))


def _too_small(where: str, H1: int, W1: int, w: Window) -> NoReturn:
    if H1 < 1 or W1 < 1:
        _empty(where, H1, W1)
    i = 0 if w.size[0] < 1 else 1
    what = f"{('height', 'width')[i]} doesn't fit, {_sum((H1, W1)[i], w, i)}"
    raise GeometryError(checks.message(where, what, "a window no larger than the padded picture"))


def _decimal(n: int, S: int) -> str:
    """Write n/S + 1 with two decimals, more where two would make it look whole."""
    whole, rest = divmod(n, S)
    if not rest:
        return str(whole + 1)
    texts = (f"{whole + 1 + rest / S:.{digits}f}" for digits in range(2, 12))
    return next((text for text in texts if text.rpartition(".")[2].strip("0")), f"{whole + 1} and {rest}/{S}")


def _sum(size: int, w: Window, axis: int) -> str:
    """Write the lecture's sum out: ``(32 - 5 + 2*2)/1 + 1 = 32``."""
    F, S, (before, after), dilation = w.F[axis], w.S[axis], w.pads[axis], w.dilation[axis]
    span = dilation * (F - 1) + 1
    shown = f"{F}" if span == F else f"({dilation}*({F} - 1) + 1)"
    pads = f"2*{before}" if before == after else f"{before} + {after}"
    return f"({size} - {shown} + {pads})/{S} + 1 = {_decimal(size - span + before + after, S)}"


def _times(two: Pair) -> str:
    return f"{two[1]}x{two[0]}"


def _shortest(value: Any) -> Any:
    # (3, 3) as 3 and ((1, 1), (1, 1)) as 1: the lecture's one letter where one number says it.
    short = tuple(_shortest(v) if isinstance(v, tuple) else v for v in value)
    plain = all(isinstance(v, int) for v in short)
    return short[0] if plain and short[0] == short[1] else short if plain else tuple(value)


class _Geometry:
    """What convolution and pooling share; the dataclasses below supply the fields."""

    W1: int
    H1: int
    D1: int
    F: Size
    S: Size | None
    P: Padding
    fit: str
    window: Window

    def _lay(self, dilation: Any = 1) -> Window:
        """Check the common fields, normalise them and lay the window, exactly if ``fit="exact"``."""
        where = type(self).__name__
        for name in ("W1", "H1", "D1"):
            self._set(name, checks.count(where, name, getattr(self, name)))
        checks.choice(where, "fit", self.fit, ("exact", "floor"))
        w = window(where, self.H1, self.W1, self.F, self.S, self.P, dilation)
        self._set("window", w)
        for name, value in (("F", w.F), ("S", w.S), ("P", w.pads)):
            self._set(name, _shortest(value))
        for axis, name, size in ((1, "width", self.W1), (0, "height", self.H1)):
            span = w.dilation[axis] * (w.F[axis] - 1) + 1
            if self.fit == "exact" and (size - span + sum(w.pads[axis])) % w.S[axis]:
                what = f"{name} doesn't fit, {_sum(size, w, axis)}"
                rule = 'a whole number, or fit="floor" to drop the last partial window'
                raise GeometryError(checks.message(where, what, rule))
        return w

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def W2(self) -> int:
        """Width of the output, (W1 - F + 2P)/S + 1."""
        return self.window.size[1]

    @property
    def H2(self) -> int:
        """Height of the output, (H1 - F + 2P)/S + 1."""
        return self.window.size[0]

    @property
    def padding(self) -> Pads:
        """The zero padding in full, ((top, bottom), (left, right))."""
        return self.window.pads

    @property
    def sums(self) -> tuple[str, ...]:
        """The lecture's sum, once if width and height agree, else for the width, then for the height."""
        sums = _sum(self.W1, self.window, 1), _sum(self.H1, self.window, 0)
        return sums[:1] if sums[0] == sums[1] else sums

    def _first_line(self, filters: str, depth: int) -> str:
        dilation = _shortest(self.window.dilation)
        step = f"S={self.S}, P={self.P}" + (f", dilation={dilation}" if dilation != 1 else "")
        return f"{self.W1}x{self.H1}x{self.D1} -> {self.W2}x{self.H2}x{depth}: {filters}, {step}"

    def _sum_lines(self) -> list[str]:
        names = ("",) if len(self.sums) == 1 else ("W2: ", "H2: ")
        lines = zip(names, self.sums, (self.W2, self.H2), strict=False)
        return [f"  {name}{text}" + ("" if text.endswith(f"= {n}") else f", floored to {n}") for name, text, n in lines]


@dataclass(frozen=True)
class ConvGeometry(_Geometry):
    """What a convolutional layer does to a volume, and what it costs.

    Parameters
    ----------
    W1, H1, D1 : int
        Width, height and depth of the input volume.
    K : int
        Number of filters, the depth of the output.
    F : int or (height, width)
        Size of the filters.
    S : int or (height, width)
        Stride.
    P : int, (height, width), ((top, bottom), (left, right)), "same" or "valid"
        Zero padding; see `padding` for "same". May be larger than the window.
    dilation : int or (height, width)
        Distance between the taps of a filter; the window spans dilation*(F - 1) + 1 pixels.
    groups : int
        The depth and the filters are split into so many groups that do not see each other.
    fit : {"exact", "floor"}
        Whether a stride that leaves a remainder is an error, as in the lecture, or drops it, as in every framework.
    bias : bool
        Whether each filter has a bias.

    Raises
    ------
    GeometryError
        If the window does not fit, or groups do not divide D1 and K.
    ValueError, TypeError
        If a count is out of range, or is no int.

    Notes
    -----
    W2 = (W1 - dilation (F - 1) - 1 + 2P)/S + 1, and H2 likewise; D2 = K; F*F*D1/groups weights a filter. F, S, P and
    dilation are kept in their shortest form, so that equal geometries compare equal and hash alike.

    Examples
    --------
    >>> g = ConvGeometry(W1=32, H1=32, D1=3, K=10, F=5, S=1, P=2)
    >>> g.W2, g.H2, g.D2, g.n_weights, g.n_biases, g.n_params
    (32, 32, 10, 750, 10, 760)
    >>> print(g)
    32x32x3 -> 32x32x10: 10 filters of 5x5x3, S=1, P=2
      (32 - 5 + 2*2)/1 + 1 = 32
      750 weights + 10 biases = 760 parameters
    >>> ConvGeometry(W1=7, H1=7, D1=1, K=1, F=3, S=3)
    Traceback (most recent call last):
        ...
    fastconv.geometry.GeometryError: ConvGeometry: width doesn't fit, (7 - 3 + 2*0)/3 + 1 = 2.33; \
expected a whole number, or fit="floor" to drop the last partial window
    """

    W1: int
    H1: int
    D1: int
    K: int
    F: Size
    S: Size = 1
    P: Padding = 0
    dilation: Size = 1
    groups: int = 1
    fit: str = "exact"
    bias: bool = True
    window: Window = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = type(self).__name__
        for name in ("K", "groups"):
            self._set(name, checks.count(where, name, getattr(self, name)))
        self._set("bias", checks.flag(where, "bias", self.bias))
        self._set("dilation", _shortest(self._lay(self.dilation).dilation))
        if self.D1 % self.groups or self.K % self.groups:
            what = f"groups={self.groups} divides not both D1={self.D1} and K={self.K}"
            raise GeometryError(checks.message(where, what, f"a divisor of {math.gcd(self.D1, self.K)}", self.groups))

    @property
    def D2(self) -> int:
        """Depth of the output: one activation map a filter."""
        return self.K

    @property
    def n_weights(self) -> int:
        """F*F*D1 weights a filter, of a group's depth, times K filters."""
        return self.K * self._taps

    @property
    def n_biases(self) -> int:
        """One for each filter."""
        return self.K if self.bias else 0

    @property
    def n_params(self) -> int:
        """Weights and biases."""
        return self.n_weights + self.n_biases

    @property
    def _taps(self) -> int:
        return math.prod(self.window.F) * (self.D1 // self.groups)

    @property
    def flops(self) -> int:
        """Floating-point operations for one picture: two for each multiply-add.

        Taps in the padding count, as is usual; the bias does not, since the sum starts from it.
        """
        return 2 * self.H2 * self.W2 * self.K * self._taps

    def bytes(self, itemsize: int = 4) -> int:
        """Bytes of input, parameters and output for one picture: what has to move at least.

        >>> ConvGeometry(W1=32, H1=32, D1=3, K=10, F=5, P=2).bytes()
        56288
        """
        n = self.H1 * self.W1 * self.D1 + self.n_params + self.H2 * self.W2 * self.K
        return n * checks.count(type(self).__name__, "itemsize", itemsize)

    def __str__(self) -> str:
        filters = f"{self.K} filter{'s' * (self.K > 1)} of {_times(self.window.F)}x{self.D1 // self.groups}"
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        params = f"  {self.n_weights} weights + {self.n_biases} biases = {self.n_params} parameters"
        return "\n".join([self._first_line(filters + groups, self.K), *self._sum_lines(), params])


@dataclass(frozen=True)
class PoolGeometry(_Geometry):
    """What a pooling layer does to a volume: each activation map is pooled by itself, so D2 = D1.

    Parameters
    ----------
    W1, H1, D1, F, P, fit
        As for `ConvGeometry`.
    S : int, (height, width) or None
        Stride; None takes F, so that the windows tile the picture.

    Raises
    ------
    GeometryError, ValueError, TypeError
        As `ConvGeometry` does.

    Examples
    --------
    >>> g = PoolGeometry(W1=224, H1=224, D1=64, F=2)
    >>> g.W2, g.H2, g.D2, g.n_params
    (112, 112, 64, 0)
    """

    W1: int
    H1: int
    D1: int
    F: Size
    S: Size | None = None
    P: Padding = 0
    fit: str = "exact"
    window: Window = field(init=False, repr=False, compare=False)

    n_weights = n_biases = n_params = 0

    def __post_init__(self) -> None:
        if self.S is None:
            self._set("S", self.F)
        self._lay()

    @property
    def D2(self) -> int:
        """Depth of the output, that of the input."""
        return self.D1

    @property
    def flops(self) -> int:
        """One comparison or addition for each cell of each window, for one picture."""
        return self.H2 * self.W2 * self.D1 * math.prod(self.window.F)

    def bytes(self, itemsize: int = 4) -> int:
        """Bytes of input and output for one picture."""
        n = (self.H1 * self.W1 + self.H2 * self.W2) * self.D1
        return n * checks.count(type(self).__name__, "itemsize", itemsize)

    def __str__(self) -> str:
        return "\n".join([self._first_line(f"windows of {_times(self.window.F)}", self.D1), *self._sum_lines()])
