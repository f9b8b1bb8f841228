"""Losses: value and gradient against the definition and finite differences, extremes, errors."""

import numpy as np
import pytest

from fastconv import reference
from fastconv.losses import mean_squared_error, softmax_cross_entropy


def differences(f, a, h=1e-6):
    """Central differences of the number f() by every element of a."""
    g = np.empty(a.shape)
    for i in np.ndindex(a.shape):
        kept = a[i]
        a[i] = kept + h
        up = f()
        a[i] = kept - h
        g[i] = (up - f()) / (2 * h)
        a[i] = kept
    return g


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("labels", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (64, 10), (3, 1000)])
def test_softmax_cross_entropy(dtype, labels, shape):
    rng = np.random.default_rng(0)
    logits = (5 * rng.standard_normal(shape)).astype(dtype)
    target = rng.integers(0, min(shape[1], 256), shape[0]).astype(labels)
    kept = logits.copy()
    value, d = softmax_cross_entropy(logits, target)
    wide, dwide = reference.softmax_cross_entropy(logits.astype(np.float64), target)
    assert type(value) is float
    assert d.dtype == dtype
    # A sum of K exponentials and a logarithm: about sqrt(K) roundings, K <= 1000.
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(value, wide, rtol=30 * eps, atol=30 * eps)
    np.testing.assert_allclose(d, dwide, rtol=0, atol=30 * eps / shape[0])
    np.testing.assert_array_equal(logits, kept)


def test_softmax_cross_entropy_gradient():
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    _, d = softmax_cross_entropy(logits, labels)
    # Rounding eps/h = 2e-10, truncation h^2 = 1e-12.
    np.testing.assert_allclose(d, differences(lambda: softmax_cross_entropy(logits, labels)[0], logits), atol=1e-8)
    np.testing.assert_allclose(d.sum(1), 0, atol=1e-16)


def test_extreme_logits():
    logits = np.array([[3e38, -3e38, 0], [-3e38, 3e38, 3e38]], np.float32)
    value, d = softmax_cross_entropy(logits, np.array([0, 2]))
    assert value == pytest.approx(np.log(2) / 2, rel=1e-6)
    np.testing.assert_allclose(d, [[0, 0, 0], [0, 0.25, -0.25]], atol=1e-7)
    value, d = softmax_cross_entropy(np.array([[0.0, 1000.0]]), np.array([0]))
    assert value == 1000
    np.testing.assert_array_equal(d, [[-1, 1]])


def test_mean_squared_error():
    rng = np.random.default_rng(2)
    y, target = rng.standard_normal((2, 4, 3))
    value, d = mean_squared_error(y, target)
    assert value == pytest.approx(((y - target) ** 2).mean(), rel=1e-14)
    np.testing.assert_allclose(d, differences(lambda: mean_squared_error(y, target)[0], y), atol=1e-8)
    value, d = mean_squared_error(y.astype("f"), target.astype("f"))
    assert d.dtype == np.float32
    np.testing.assert_allclose(d, reference.mean_squared_error(y, target)[1], rtol=1e-5, atol=1e-7)


Z, L = np.zeros((2, 3)), np.zeros(2, int)


@pytest.mark.parametrize(
    ("loss", "a", "b", "error", "text"),
    [
        (softmax_cross_entropy, [[0.0]], L, TypeError, "logits must be a NumPy array"),
        (softmax_cross_entropy, Z.astype(int), L, TypeError, "logits has the wrong dtype"),
        (softmax_cross_entropy, np.zeros(3), L, ValueError, "logits must have 2 axes"),
        (softmax_cross_entropy, Z, [0, 1], TypeError, "labels must be a NumPy array"),
        (softmax_cross_entropy, Z, L.astype(float), TypeError, "class numbers; expected an integer dtype"),
        (softmax_cross_entropy, Z, L.astype(bool), TypeError, "labels must be class numbers"),
        (softmax_cross_entropy, Z, np.zeros((2, 3), int), ValueError, r"one entry for each row .*\(2,\), got \(2, 3\)"),
        (softmax_cross_entropy, Z, np.array([0, 3]), ValueError, "no class; expected labels from 0 to 2, got 3"),
        (softmax_cross_entropy, Z, np.array([-1, 0]), ValueError, "got -1"),
        (softmax_cross_entropy, Z[:0], L[:0], ValueError, "logits is empty"),
        (mean_squared_error, Z, [0.0], TypeError, "target must be a NumPy array"),
        (mean_squared_error, Z, Z.astype("f"), TypeError, "target is float32 but y is float64"),
        (mean_squared_error, Z, Z[:1], ValueError, r"target must have y's shape.*\(2, 3\), got \(1, 3\)"),
        (mean_squared_error, Z[:0], Z[:0], ValueError, "y is empty"),
    ],
)
def test_errors(loss, a, b, error, text):
    with pytest.raises(error, match=text):
        loss(a, b)
