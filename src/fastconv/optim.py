"""The lecture's optimizers: each step is one call and one pass over memory.

Every optimizer takes a list of arrays and updates them in place; the loops are in ``_kernels/optim.pyx``, the
definitions in plain NumPy in ``reference.py``. Letters: theta the parameters, g the gradient, lr the rate (the
lecture's epsilon), a the momentum, v the velocity, s and r the running first and second moments of the gradient.

How to choose (the lecture's advice): nobody knows one that is best for all. Those with adaptive rates (RMSProp, Adam)
are robust over many problems and rates; begin with Adam at 1e-3. Momentum or Nesterov with a searched, decaying rate is
as popular and often generalises as well or better. Take the one whose settings you know, and search its rate:
``training.lr_search`` does it, and ``python -m fastconv race`` shows all of them on one problem.

`grad_scale`, clipping and weight decay are part of the same pass. Numbers below the normal range count as zero while a
step runs. The bits of the result depend neither on threads, nor on the instruction set, nor on how the parameters are
cut into arrays.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastconv import _kernels, checks, runtime, schedules
from fastconv._kernels import memory
from fastconv.schedules import Rate

__all__ = ["SGD", "AdaGrad", "Adam", "AdamW", "Momentum", "Nesterov", "Optimizer", "RMSProp"]

# rows of the kernel's table, see _kernels/optim.pyx
_ADDRESS, _BEGIN, _LOW, _HIGH, _SEEN = range(5)
_PAGE = 4096


class Optimizer:
    """What all optimizers share: the parameters, the rate, the step and the state. Use one of the subclasses.

    Attributes
    ----------
    params : tuple of ndarray
        The arrays that `step` updates.
    t : int
        Updates made so far.
    grad_norm : float or None
        Global norm of the scaled gradients before clipping, if the last step was given a `max_norm`.
    """

    _slots: tuple[str, ...] = ()  # the state's arrays, in the order that the kernel takes
    _algorithm = ""  # the kernel's loop
    _ahead = False  # params hold theta + a v

    def __init__(self, params: Iterable[np.ndarray], lr: Rate, **coefficients: float) -> None:
        where = type(self).__name__
        self.params = _parameters(where, params)
        self.lr = lr
        self._coefficients = {name: _coefficient(where, name, value) for name, value in coefficients.items()}
        self._prepare()
        self._state = tuple(self._zeros() for _ in self._slots)
        self.t = 0
        self.grad_norm: float | None = None

    def _prepare(self) -> None:
        self._where = f"{type(self).__name__}.step"
        self._list = list(self.params)
        self._table, self._order = _table(type(self).__name__, self._list)
        self._n = int(self._table[_BEGIN, -1])
        self._scalars = tuple(self._coefficients.get(name, 0.0) for name in ("momentum", "rho", "beta1", "beta2"))
        self._shown = False

    def _zeros(self) -> np.ndarray:
        """A slot that goes through its pages as the largest parameter does: a processor takes a load for that of what it has just
        stored if their addresses agree in the low 12 bits, and waits."""
        largest = max(range(len(self.params)), key=lambda i: self.params[i].size)
        p = self.params[largest]
        made = memory.empty((self._n + _PAGE // p.itemsize,), p.dtype)
        beside = int(self._table[_ADDRESS, largest]) - int(self._table[_BEGIN, largest]) * p.itemsize
        begin = (beside - made.__array_interface__["data"][0]) % _PAGE // p.itemsize
        zeros: np.ndarray = made[begin : begin + self._n]
        zeros.fill(0)
        return zeros

    def __getstate__(self) -> dict[str, Any]:
        made = ("_where", "_list", "_table", "_order", "_n", "_scalars", "_shown")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @property
    def lr(self) -> Rate:
        """The rate, or a schedule: a callable of the update count t = 0, 1, ...; may be assigned between steps."""
        return self._lr

    @lr.setter
    def lr(self, lr: Rate) -> None:
        self._lr = schedules.checked(type(self).__name__, "lr", lr)

    @property
    def coefficients(self) -> dict[str, float]:
        """The other settings by name. They are fixed, since the state depends on them."""
        return dict(self._coefficients)

    def step(
        self, grads: list[np.ndarray], *, lr: float | None = None, grad_scale: float = 1.0,
        max_norm: float | None = None, zero_grads: bool = False,
    ) -> None:
        """Update all parameters once, in place.

        Parameters
        ----------
        grads : list of ndarray
            A gradient for each parameter, of its shape and dtype, apart from all parameters in memory. One that is not
            C-contiguous costs a copy.
        lr : float or None
            Rate of this step, instead of the optimizer's own.
        grad_scale : float
            What the gradients are multiplied by first, at least 0: say 1/size after a sum over processes.
        max_norm : float or None
            If the Euclidean norm of all scaled gradients together is larger, they are shrunk to this norm. It costs one
            more read of the gradients. A norm that is infinite or NaN passes into the parameters as IEEE 754 says.
        zero_grads : bool
            Set the gradients to 0 in the same pass. They must then be writable and share no memory.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit; parameters, state and gradients are then as they were.
        RuntimeError
            Inside ``with opt.solution():``.
        """
        where = self._where
        if self._shown:
            what = "inside `with opt.solution():` params do not hold the point where gradients are taken"
            raise RuntimeError(checks.message(where, what, "a step outside it"))
        grads = _as_list(where, "grads", grads)
        if len(grads) != len(self._list):
            expected = f"{len(self._list)} gradients, one for each parameter"
            raise checks.value_error(where, "grads does not go with params", expected, len(grads))
        rate = schedules.rate(where, self._lr if lr is None else lr, self.t)
        scale = checks.number(where, "grad_scale", grad_scale, 0)
        limit = -1.0 if max_norm is None else checks.number(where, "max_norm", max_norm, 0)
        zero = checks.flag(where, "zero_grads", zero_grads)
        norm = self._run(self._algorithm, grads, self._state, rate, scale, limit, zero)
        self.grad_norm = None if max_norm is None else norm
        self.t += 1

    def _run(
        self, algorithm: str, grads: list[np.ndarray] | None, state: tuple[np.ndarray, ...], rate: float,
        scale: float = 1.0, limit: float = -1.0, zero: bool = False,
    ) -> float:
        kernel = _kernels.kernel("optim")
        lr, decay, eps, shrink = self._folded(rate)
        scalars = (lr, scale, decay, *self._scalars, eps, shrink)
        threads = runtime.get_num_threads()
        number = kernel.ALGORITHMS[algorithm]
        return kernel.step(number, self._list, grads, self._table, state, scalars, limit, zero, threads, self)

    def _folded(self, lr: float) -> tuple[float, float, float, float]:
        """Rate, coupled decay, eps and decoupled decay of the next step, as the kernel's loop takes them."""
        return lr, self._coefficients["weight_decay"], self._coefficients.get("eps", 0.0), 0.0

    @contextmanager
    def solution(self) -> Iterator[None]:
        """Let params hold theta itself inside the block; after it they are, bit for bit, what they were.

        Nesterov's momentum keeps the interim point theta + a v in the parameters between steps, since the gradient is
        taken there; evaluate and save inside this block. For the other optimizers it changes nothing.
        """
        if not self._ahead or self._shown:
            yield
            return
        before = [p.copy() for p in self.params]
        self._run("solution", None, self._state[self._slots.index("v") :], 0.0)
        self._shown = True
        try:
            yield
        finally:
            self._shown = False
            for p, kept in zip(self.params, before, strict=True):
                p[...] = kept

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that the next step depends on besides the parameters and a schedule.

        Returns
        -------
        dict
            "algorithm" (the class's name), "t", "lr" if that is a number, each coefficient, "sizes" (int64: the number
            of elements of each parameter) and for each of the state's letters one flat array over all parameters.
        """
        d = {"algorithm": type(self).__name__, "t": self.t, **self._coefficients, "sizes": self._sizes()}
        if not callable(self._lr):
            d["lr"] = self._lr
        return d | {name: slot.copy() for name, slot in zip(self._slots, self._state, strict=True)}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Take over a state from `state_dict`; with the same parameters the steps to come give the same bits.

        A rate is taken over if it and this optimizer's own are numbers; a schedule is no part of a state.

        Raises
        ------
        TypeError, ValueError
            If the state is of another algorithm, other coefficients or other parameters, or is damaged; nothing is
            changed.
        """
        where = f"{type(self).__name__}.load_state_dict"
        if not isinstance(d, Mapping):
            raise checks.type_error(where, "d must be a state", "what state_dict returned", type(d).__name__)
        d = {name: a.item() if isinstance(a, np.ndarray) and a.ndim == 0 else a for name, a in d.items()}
        expected = {"algorithm", "t", *self._coefficients, "sizes", *self._slots}
        if d.get("algorithm") != type(self).__name__ or d.keys() - {"lr"} != expected:
            rule = f"{type(self).__name__} with {', '.join(sorted(expected))}"
            got = f"{d.get('algorithm')} with {', '.join(sorted(map(str, d)))}"
            raise checks.value_error(where, "d is no state of this algorithm", rule, got)
        t = checks.count(where, "t", d["t"], minimum=0)
        rate = checks.number(where, "lr", d["lr"], 0) if "lr" in d and not callable(self._lr) else self._lr
        for name, value in self._coefficients.items():
            if d[name] != value:
                raise checks.value_error(where, f"{name} differs from this optimizer's", value, d[name])
        if not np.array_equal(checks.ndarray(where, "sizes", d["sizes"], 1), self._sizes()):
            raise checks.value_error(where, "the state is for other parameters", f"sizes {self._sizes()}", d["sizes"])
        for name, slot in zip(self._slots, self._state, strict=True):
            checks.same_dtype(where, ("params", slot), (name, checks.array(where, name, d[name])))
            checks.shape(where, name, d[name], slot.shape)
        for name, slot in zip(self._slots, self._state, strict=True):
            slot[...] = d[name]
        self.t, self._lr = t, rate

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in {"lr": self._lr, **self._coefficients}.items())
        return f"{type(self).__name__}({len(self.params)} arrays of {self._n} parameters, {settings}; t={self.t})"

    def _sizes(self) -> np.ndarray:
        return np.diff(self._table[_BEGIN]).astype(np.int64)

    # What the kernel calls when an array is not plainly right.

    def _changed(self, i: int) -> None:
        what = f"params[{i}] was moved, resized or made read-only since the optimizer was made"
        raise checks.value_error(self._where, what, "the array as it was")

    def _gradient(self, i: int, g: Any, zero: bool) -> np.ndarray:
        """Check gradient i thoroughly and return it as a C-contiguous array."""
        where, name, p = self._where, f"grads[{i}]", self._list[i]
        checks.array(where, name, g)
        checks.same_dtype(where, (f"params[{i}]", p), (name, g))
        checks.shape(where, name, g, p.shape)
        if zero:
            checks.writable(where, name, g)
        low, high = np.lib.array_utils.byte_bounds(g)
        first, last = np.searchsorted(self._table[_HIGH], low, "right"), np.searchsorted(self._table[_LOW], high)
        for k in self._order[first:last] if g.size else ():
            if checks.overlap(g, self._list[k]):
                rule = "gradients apart from the parameters"
                raise checks.value_error(where, f"{name} shares memory with params[{k}]", rule)
        return np.require(g, requirements=["C", "A"])

    def _gradients_overlap(self) -> None:
        what = "two of grads share memory, and zero_grads sets one to 0 before the other is read"
        raise checks.value_error(self._where, what, "gradients apart from one another")


class SGD(Optimizer):
    """Stochastic gradient descent: theta <- theta - lr g (Alg. 8.1 in Goodfellow, Bengio and Courville, Deep Learning).

    Parameters
    ----------
    params : iterable of ndarray
        Arrays to update in place, all float32 or all float64, C-contiguous, writable, apart from one another.
    lr : float or callable
        Rate (epsilon in the lecture), or a schedule: a callable of the update count t = 0, 1, ...
    weight_decay : float
        w >= 0: w theta, taken where the gradient was, is added to g.

    Raises
    ------
    TypeError, ValueError
        If an array or a coefficient does not fit.

    Notes
    -----
    The gradient g is the mean over a minibatch. Moves 12 bytes a float32 parameter; no state. PyTorch's and
    Keras's SGD are the same. Choose it as the baseline, with a rate that decays (`schedules`), since the gradient's
    noise does not vanish.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.optim import SGD
    >>> theta = np.array([1.0, 2.0])
    >>> opt = SGD([theta], lr=0.5)
    >>> opt.step([np.array([1.0, -1.0])])
    >>> theta
    array([0.5, 2.5])
    """

    _algorithm = "sgd"

    def __init__(self, params: Iterable[np.ndarray], lr: Rate, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)


class Momentum(Optimizer):
    """Momentum: v <- a v - lr g; theta <- theta + v (Alg. 8.2; Polyak 1964).

    Parameters
    ----------
    params, lr, weight_decay
        As in `SGD`.
    momentum : float
        a in [0, 1); the lecture's choices are 0.5, 0.9 and 0.99.

    Raises
    ------
    TypeError, ValueError
        If an array or a coefficient does not fit.

    Notes
    -----
    Under a constant gradient the speed grows to ``lr |g|/(1 - a)``: `max_speedup` times that of `SGD`. Moves 20
    bytes a float32 parameter; state v. Keras's SGD(momentum) is the same; PyTorch's keeps -v/lr, and so differs where
    lr changes: its velocity is rescaled at once. Choose it where the loss has long narrow valleys or noisy gradients,
    and search the rate.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.optim import Momentum
    >>> theta, g = np.zeros(1), np.ones(1)
    >>> opt = Momentum([theta], lr=0.5, momentum=0.5)
    >>> for _ in range(3):
    ...     opt.step([g])
    ...     print(theta)
    [-0.5]
    [-1.25]
    [-2.125]
    >>> opt.max_speedup
    2.0
    """

    _algorithm = "momentum"
    _slots = ("v",)

    def __init__(
        self, params: Iterable[np.ndarray], lr: Rate, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay)

    @property
    def max_speedup(self) -> float:
        """Top speed under a constant gradient in units of ``lr |g|``: 1/(1 - momentum)."""
        return 1 / (1 - self._coefficients["momentum"])


class Nesterov(Momentum):
    """Nesterov momentum: v <- a v - lr g, g taken at theta + a v; theta <- theta + v (Alg. 8.3; Sutskever et al. 2013).

    Parameters
    ----------
    params, lr, momentum, weight_decay
        As in `Momentum`.

    Raises
    ------
    TypeError, ValueError
        If an array or a coefficient does not fit.

    Notes
    -----
    Between steps params hold the interim point theta + a v, where the next gradient is to be taken, so that
    a training loop looks as with any optimizer; it moves by a v - lr g with the new v. ``with opt.solution():`` shows
    theta. Moves 20 bytes a float32 parameter; state v. PyTorch's and Keras's nesterov=True hold the same point (and
    PyTorch's velocity as in `Momentum`), without a way back to theta. Choose it wherever `Momentum` would do: it brakes
    earlier.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.optim import Nesterov
    >>> theta = np.ones(1)
    >>> opt = Nesterov([theta], lr=0.5, momentum=0.5)
    >>> opt.step([theta.copy()])  # the gradient of theta^2/2
    >>> with opt.solution():
    ...     print(theta)
    [0.5]
    >>> theta  # 0.5 + 0.5 * (-0.5)
    array([0.25])
    """

    _algorithm = "nesterov"
    _ahead = True


class AdaGrad(Optimizer):
    """AdaGrad: r <- r + g^2; theta <- theta - lr g/(eps + sqrt(r)) (Alg. 8.4; Duchi, Hazan and Singer 2011).

    Parameters
    ----------
    params, lr, weight_decay
        As in `SGD`.
    eps : float
        delta >= 0 in the lecture. Where the divisor is 0 (no gradient so far, and eps=0) the step is 0.

    Raises
    ------
    TypeError, ValueError
        If an array or a coefficient does not fit.

    Notes
    -----
    eps stands outside the root, as in the lecture. PyTorch's Adagrad is the same with eps=1e-10; Keras's
    has eps inside the root and starts with r = 0.1. Moves 20 bytes a float32 parameter; state r. Choose it for convex
    problems and for sparse gradients; in deep nets r, which never forgets, lets the rate fall too soon.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.optim import AdaGrad
    >>> theta = np.zeros(2)
    >>> opt = AdaGrad([theta], lr=0.5, eps=0.0)
    >>> opt.step([np.array([3.0, -0.01])])
    >>> theta
    array([-0.5,  0.5])
    """

    _algorithm = "adagrad"
    _slots = ("r",)

    def __init__(
        self, params: Iterable[np.ndarray], lr: Rate = 1e-2, eps: float = 1e-7, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr, eps=eps, weight_decay=weight_decay)


class RMSProp(Optimizer):
    """RMSProp: r <- rho r + (1 - rho) g^2; v <- a v - lr g/(sqrt(r) + eps); theta <- theta + v (Alg. 8.5 and 8.6).

    Hinton, lecture 6 of Neural Networks for Machine Learning, 2012.

    Parameters
    ----------
    params, lr, weight_decay
        As in `SGD`.
    rho : float
        Decay of the mean square, in [0, 1).
    momentum : float
        a in [0, 1); with 0 (Alg. 8.5) no velocity is kept.
    nesterov : bool
        With momentum: g is taken at theta + a v (Alg. 8.6), which params then hold as in `Nesterov`; if False, at
        theta.
    eps : float
        At least 0; 0 is Alg. 8.6 to the letter. Where the divisor is 0 (no gradient so far, and eps=0) the step is 0.

    Raises
    ------
    TypeError, ValueError
        If an array or a coefficient does not fit.

    Notes
    -----
    eps stands outside the root. PyTorch's RMSprop has it there too, but its rho is 0.99, its lr 1e-2, and
    its momentum is never Nesterov's and takes lr outside v; Keras's has eps=1e-7 inside the root, and no Nesterov
    either. Moves 20 bytes a float32 parameter, 28 with momentum; state r (and v). Choose it as Adam's simpler kin, for
    recurrent nets and for losses that change as training goes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.optim import RMSProp
    >>> theta = np.zeros(1)
    >>> opt = RMSProp([theta], lr=0.5, rho=0.75, eps=0.0)
    >>> opt.step([np.array([4.0])])  # r = 4
    >>> theta
    array([-1.])
    """

    def __init__(
        self, params: Iterable[np.ndarray], lr: Rate = 1e-3, rho: float = 0.9, momentum: float = 0.0,
        nesterov: bool = True, eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:
        a = _coefficient("RMSProp", "momentum", momentum)
        self._ahead = checks.flag("RMSProp", "nesterov", nesterov) and a > 0
        self._slots = ("r", "v") if a > 0 else ("r",)
        self._algorithm = "rmsprop_nesterov" if self._ahead else "rmsprop_momentum" if a > 0 else "rmsprop"
        super().__init__(params, lr, rho=rho, momentum=a, nesterov=nesterov, eps=eps, weight_decay=weight_decay)


class Adam(Optimizer):
    """Adam: s <- b1 s + (1 - b1) g; r <- b2 r + (1 - b2) g^2; theta <- theta - lr s^/(sqrt(r^) + eps) (Alg. 8.7).

    Kingma and Ba, Adam: a method for stochastic optimization, 2015.

    Parameters
    ----------
    params, lr
        As in `SGD`.
    betas : pair of float
        b1 and b2 (rho1 and rho2 in the lecture), each in [0, 1).
    eps : float
        delta >= 0 in the lecture. Where the divisor is 0 (no gradient so far, and eps=0) the step is 0.
    weight_decay : float
        w >= 0: w theta is added to g, and so divided by the root with it. `AdamW` decays evenly.

    Raises
    ------
    TypeError, ValueError
        If an array or a coefficient does not fit.

    Notes
    -----
    s^ = s/(1 - b1^t) and r^ = r/(1 - b2^t) undo the bias of the start at 0, t = 1 at the first step; eps is
    added to the root of r^, after the correction. The loop divides once: lr sqrt(1 - b2^t)/(1 - b1^t) * s/(sqrt(r) +
    eps sqrt(1 - b2^t)) is the same. PyTorch's Adam is the same; Keras's adds eps=1e-7 before the correction of r. Moves
    28 bytes a float32 parameter; state s, r. Choose it first: robust to the choice of its settings, though lr sometimes
    wants to be changed from 1e-3.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.optim import Adam
    >>> theta = np.zeros(2)
    >>> opt = Adam([theta], lr=0.5, eps=0.0)
    >>> opt.step([np.array([3.0, -0.01])])  # the first step is lr in the direction of -sign(g)
    >>> theta.round(12)
    array([-0.5,  0.5])
    """

    _algorithm = "adam"
    _slots = ("s", "r")

    def __init__(
        self, params: Iterable[np.ndarray], lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise checks.type_error(type(self).__name__, "betas must be a pair", "(beta1, beta2)", repr(betas))
        super().__init__(params, lr, beta1=betas[0], beta2=betas[1], eps=eps, weight_decay=weight_decay)

    def _folded(self, lr: float) -> tuple[float, float, float, float]:
        c, t = self._coefficients, self.t + 1
        root = math.sqrt(1 - c["beta2"] ** t)
        return lr * root / (1 - c["beta1"] ** t), c["weight_decay"], c["eps"] * root, 0.0


class AdamW(Adam):
    """AdamW: Adam's step on g alone, and besides theta <- theta - lr w theta (Loshchilov and Hutter 2019).

    Parameters
    ----------
    params, lr, betas, eps
        As in `Adam`.
    weight_decay : float
        w >= 0, multiplied by the rate of the step: decoupled from the gradient's size.

    Raises
    ------
    TypeError, ValueError
        If an array or a coefficient does not fit.

    Notes
    -----
    PyTorch's AdamW is the same; Keras's has eps as in its Adam and weight_decay=0.004. Moves 28 bytes a
    float32 parameter; state s, r. Choose it instead of `Adam` wherever weights are to decay.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.optim import AdamW
    >>> theta = np.full(1, 2.0)
    >>> AdamW([theta], lr=0.5, weight_decay=0.1).step([np.zeros(1)])
    >>> theta
    array([1.9])
    """

    def __init__(
        self, params: Iterable[np.ndarray], lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def _folded(self, lr: float) -> tuple[float, float, float, float]:
        rate, decay, eps, _ = super()._folded(lr)
        return rate, 0.0, eps, lr * decay


_BELOW_ONE = ("momentum", "rho", "beta1", "beta2")


def _coefficient(where: str, name: str, value: Any) -> float:
    if name == "nesterov":
        return checks.flag(where, name, value)
    return checks.number(where, name, value, 0, 1 if name in _BELOW_ONE else math.inf, open_high=name in _BELOW_ONE)


def _as_list(where: str, name: str, arrays: Any) -> list[np.ndarray]:
    if type(arrays) is list:
        return arrays
    if isinstance(arrays, (np.ndarray, str)) or not isinstance(arrays, Iterable):
        raise checks.type_error(where, f"{name} must be a list of arrays", "a list", type(arrays).__name__)
    return list(arrays)


def _parameters(where: str, params: Any) -> tuple[np.ndarray, ...]:
    """Check the parameters one by one; whether they lie apart shows in their table."""
    params = tuple(_as_list(where, "params", params))
    if not params:
        raise checks.value_error(where, "params is empty", "at least one array")
    for i, p in enumerate(params):
        name = f"params[{i}]"
        checks.array(where, name, p)
        checks.same_dtype(where, ("params[0]", params[0]), (name, p))
        checks.writable(where, name, p)
        if not (p.flags.c_contiguous and p.flags.aligned):
            rule = "an array as NumPy makes them"
            raise checks.value_error(where, f"{name} must be C-contiguous and aligned", rule, f"strides {p.strides}")
    return params


def _table(where: str, params: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """The kernel's table of these parameters, and the order in which the non-empty ones lie in memory."""
    table = np.full((5, len(params) + 1), np.iinfo(np.intp).max, np.intp)
    table[_BEGIN] = [0, *itertools.accumulate(p.size for p in params)]
    table[_ADDRESS, :-1] = [p.__array_interface__["data"][0] for p in params]
    order = [i for i in sorted(range(len(params)), key=table[_ADDRESS].__getitem__) if params[i].size]
    table[_LOW, : len(order)] = table[_ADDRESS, order]
    table[_HIGH, : len(order)] = [table[_ADDRESS, i] + params[i].nbytes for i in order]
    for i, j, high, low in zip(order, order[1:], table[_HIGH], table[_LOW, 1:], strict=False):
        if high > low:
            rule = "arrays apart from one another"
            raise checks.value_error(where, f"params[{i}] and params[{j}] share memory", rule)
    return table, order
