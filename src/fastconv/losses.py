"""Losses: each returns its value, a mean over the batch, and its gradient by the model's output."""

from __future__ import annotations

import numpy as np

from . import checks

Array = np.ndarray


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean over the batch of -log softmax(logits)[label], and its gradient.

    Parameters
    ----------
    logits : ndarray of shape (N, K), float32 or float64
        What the last layer gives, without a softmax.
    labels : ndarray of shape (N,), any integer dtype
        The right classes, from 0 to K - 1.

    Returns
    -------
    value : float
    dlogits : ndarray of shape (N, K)
        (softmax(logits) - onehot(labels))/N.

    Raises
    ------
    ValueError
        If the shapes do not fit, the batch is empty, or a label is no class.
    TypeError
        If logits are no floats or labels no integers.

    Notes
    -----
    log softmax(z)_k = z_k - max z - log sum exp(z - max z): nothing overflows. The mean is taken in float64.

    Examples
    --------
    >>> import numpy as np
    >>> value, dlogits = softmax_cross_entropy(np.zeros((2, 10)), np.array([3, 7]))
    >>> round(value, 4)
    2.3026
    """
    where = "softmax_cross_entropy"
    checks.array(where, "logits", logits, 2)
    N, K = logits.shape
    checks.ndarray(where, "labels", labels)
    if labels.dtype.kind not in "iu":
        raise checks.type_error(where, "labels must be class numbers", "an integer dtype", labels.dtype)
    checks.shape(where, "labels", labels, (N,), "must have one entry for each row of logits")
    _not_empty(where, "logits", logits)
    if labels.min() < 0 or labels.max() >= K:
        bad = labels[(labels < 0) | (labels >= K)][0]
        raise checks.value_error(where, "a label is no class", f"labels from 0 to {K - 1}", bad)
    with np.errstate(over="ignore"):  # -inf is right where the difference is larger than any float
        d = logits - logits.max(1, keepdims=True)
    rows = np.arange(N)
    right = d[rows, labels].astype(np.float64)
    np.exp(d, out=d)
    total = d.sum(1, keepdims=True)
    value = float((np.log(total[:, 0].astype(np.float64)) - right).mean())
    d /= total * N
    d[rows, labels] -= d.dtype.type(1 / N)
    return value, d


def mean_squared_error(y: Array, target: Array) -> tuple[float, Array]:
    """Mean over all elements, and so over the batch, of (y - target)^2, and its gradient.

    Parameters
    ----------
    y, target : ndarray of one shape and dtype, float32 or float64

    Returns
    -------
    value : float
    dy : ndarray of the same shape
        2 (y - target)/size.

    Raises
    ------
    ValueError
        If the shapes differ or the arrays are empty.
    TypeError
        If they are no floats or of different dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> mean_squared_error(np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]]))
    (2.0, array([[ 0., -2.]]))
    """
    where = "mean_squared_error"
    checks.array(where, "y", y)
    checks.array(where, "target", target)
    checks.same_dtype(where, ("y", y), ("target", target))
    checks.shape(where, "target", target, y.shape, "must have y's shape")
    _not_empty(where, "y", y)
    d = y - target
    value = float(np.square(d, dtype=np.float64).mean())
    d *= d.dtype.type(2 / d.size)
    return value, d


def _not_empty(where: str, name: str, a: Array) -> None:
    if not a.size:
        raise checks.value_error(where, f"{name} is empty, a mean needs something", "at least one element", a.shape)
