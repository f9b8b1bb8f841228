"""Layers: every gradient by finite differences, fusion and sharing of arrays, state, errors, both layouts."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest

import fastconv.ops
from fastconv.geometry import GeometryError
from fastconv.layers import (
    ELU,
    AvgPool2D,
    BatchNorm,
    Conv2D,
    ConvTranspose2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Softmax,
    Tanh,
)

LAYOUTS = ("NHWC", "NCHW")

# name: (layer, shape of its input as (H1, W1, D1))
LAYERS = {
    "conv": (lambda: Conv2D(K=3, F=3, P=1), (4, 5, 2)),
    "conv strided, grouped": (lambda: Conv2D(K=4, F=(3, 2), S=2, groups=2, fit="floor"), (6, 5, 4)),
    "conv same, dilated, no bias": (lambda: Conv2D(K=2, F=2, P="same", dilation=2, bias=False), (4, 4, 2)),
    "conv relu": (lambda: Conv2D(K=3, F=3, activation="relu"), (4, 5, 2)),
    "conv 1x1": (lambda: Conv2D(K=3, F=1), (3, 3, 4)),
    "depthwise": (lambda: DepthwiseConv2D(F=3, P=1), (4, 4, 3)),
    "depthwise multiplier": (lambda: DepthwiseConv2D(F=3, S=2, P=1, multiplier=2, fit="floor"), (4, 4, 2)),
    "transpose": (lambda: ConvTranspose2D(K=2, F=3, S=2, P=1, output_padding=1), (3, 2, 3)),
    "transpose grouped relu": (lambda: ConvTranspose2D(K=4, F=2, groups=2, activation="relu"), (3, 3, 2)),
    "dense": (lambda: Dense(4), (5,)),
    "dense relu": (lambda: Dense(4, activation="relu", bias=False), (5,)),
    "max": (lambda: MaxPool2D(2), (4, 6, 2)),
    "max overlapping": (lambda: MaxPool2D(3, S=2, P=1), (5, 5, 2)),
    "avg": (lambda: AvgPool2D(2), (4, 4, 2)),
    "avg without padding": (lambda: AvgPool2D(3, S=1, P=1, count_include_pad=False), (3, 4, 2)),
    "global avg": (GlobalAvgPool2D, (3, 4, 2)),
    "flatten": (Flatten, (3, 2, 2)),
    "relu": (ReLU, (3, 3, 2)),
    "leaky relu": (lambda: LeakyReLU(0.2), (3, 3, 2)),
    "elu": (lambda: ELU(0.7), (3, 3, 2)),
    "sigmoid": (Sigmoid, (3, 3, 2)),
    "tanh": (Tanh, (3, 3, 2)),
    "softmax": (Softmax, (3, 3, 4)),
    "softmax vector": (Softmax, (4,)),
    "dropout": (lambda: Dropout(0.4), (3, 3, 2)),
    "dropout none": (lambda: Dropout(0), (3,)),
    "batchnorm": (BatchNorm, (3, 2, 3)),
    "batchnorm vector": (BatchNorm, (4,)),
    "residual": (lambda: Residual([Conv2D(K=2, F=3, P=1), ReLU(), Conv2D(K=2, F=3, P=1)]), (4, 4, 2)),
    "residual shortcut": (lambda: Residual([Conv2D(K=3, F=2, S=2), BatchNorm()], [Conv2D(K=3, F=2, S=2)]), (4, 4, 2)),
    "residual of nothing": (lambda: Residual([]), (2, 2, 2)),
    "residual, body passes x": (lambda: Residual([Dropout(0)], [Tanh()]), (2, 2, 2)),
    "residual, body keeps y": (lambda: Residual([Tanh()], [BatchNorm()]), (2, 2, 2)),
}

# Sequences in which layers are fused or write over arrays of others.
MODELS = {
    "conv, relu, pool": (lambda: [Conv2D(K=3, F=3, P=1), ReLU(), MaxPool2D(2), Flatten(), Dense(3)], (4, 4, 2)),
    "conv relu, pool": (lambda: [Conv2D(K=3, F=2, activation="relu"), MaxPool2D(3, S=2, P=1)], (4, 4, 2)),
    "conv, norm, relu, pool": (lambda: [Conv2D(K=3, F=3), BatchNorm(), ReLU(), MaxPool2D(2), ReLU()], (6, 6, 1)),
    "norm, norm": (lambda: [BatchNorm(), ReLU(), BatchNorm(), Tanh(), LeakyReLU()], (3, 3, 2)),
    "relu twice": (lambda: [Dense(5), ReLU(), ReLU(), Dense(4), Sigmoid(), ReLU(), ELU()], (4,)),
    "flatten, in place": (lambda: [Conv2D(K=2, F=2), Flatten(), Tanh(), Flatten(), Dropout(0.3), Dense(2)], (3, 3, 1)),
    "in place at the start": (lambda: [ReLU(), Flatten(), Tanh(), Dense(2)], (2, 2, 1)),
    "residual, relu": (
        lambda: [
            Conv2D(K=2, F=3, P=1),
            BatchNorm(),
            ReLU(),
            Residual([Conv2D(K=2, F=3, P=1), BatchNorm(), ReLU(), Conv2D(K=2, F=3, P=1), BatchNorm()]),
            ReLU(),
            Residual([Conv2D(K=3, F=2, S=2), BatchNorm()], [Conv2D(K=3, F=2, S=2), BatchNorm()]),
            ReLU(),
            MaxPool2D(2),
            GlobalAvgPool2D(),
            Dense(2),
        ],
        (4, 4, 1),
    ),
    "residual of activations": (lambda: [Dense(4), Residual([ReLU(), Dense(4)], [Tanh()]), Residual([ELU()])], (3,)),
    "sequence in sequence": (
        lambda: [
            Sequential([Conv2D(K=2, F=2), ReLU()]),
            Sequential([MaxPool2D(2), Flatten()]),
            Sequential([]),
            Dense(2),
        ],
        (5, 5, 1),
    ),
}


def volume(n, shape, layout):
    """Shape of a batch."""
    return (n, *shape) if layout == "NHWC" or len(shape) == 1 else (n, shape[2], shape[0], shape[1])


def distinct(rng, shape, dtype=float):
    """Values at least 0.02 apart and away from 0, so that no step of a finite difference meets a kink of its own."""
    n = int(np.prod(shape))
    values = (np.arange(n) - n // 2 + 0.5) * 0.02
    return rng.permutation(values).reshape(shape).astype(dtype)


def made(entry, layout, dtype="float64", seed=3):
    """Build a layer, or a model from a list, and a batch of three for it."""
    make, shape = entry
    layer = make()
    layer = Sequential(layer) if isinstance(layer, list) else layer
    layer.build(shape, layout=layout, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    for a in layer.params:  # biases, gammas and betas too
        a += 0.3 * rng.standard_normal(a.shape)
    return layer, distinct(rng, volume(3, shape, layout), dtype)


def differences(f, a, h=1e-5):
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


def check_gradients(layer, x):
    """Compare dx and every parameter's gradient of sum(c*y) with finite differences, every element."""
    rng = np.random.default_rng(1)
    random_state = layer.rng.bit_generator.state
    y = layer.forward(x, training=True)
    c = rng.standard_normal(y.shape)

    def value():
        layer.rng.bit_generator.state = random_state
        return float((layer.forward(x, training=True) * c).sum())

    layer.rng.bit_generator.state = random_state
    layer.forward(x, training=True)
    dx = layer.backward(c, needs_dx=True)
    grads = [g.copy() for g in layer.grads]
    # Rounding: eps |f| / h = 1e-16 * 1e2 / 1e-5 = 1e-9; truncation: h^2 f'''/6 = 1e-10 f''' / 6, with f''' up to 1e3
    # where batches of three are normalised.
    for analytic, array in [(dx, x), *zip(grads, layer.params, strict=True)]:
        np.testing.assert_allclose(analytic, differences(value, array), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_every_layer(name, layout):
    check_gradients(*made(LAYERS[name], layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_models(name, layout):
    check_gradients(*made(MODELS[name], layout))


@pytest.mark.parametrize("name", [*LAYERS, *MODELS])
def test_inputs_are_never_changed(name):
    layer, x = made((LAYERS | MODELS)[name], "NHWC")
    x.flags.writeable = False
    y = layer.forward(x, training=True)
    dy = np.ones_like(y)
    dy.flags.writeable = False
    layer.backward(dy, needs_dx=True)
    layer.forward(x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_fusion_changes_nothing(name, layout):
    model, x = made(MODELS[name], layout)
    start, random_state = model.state_dict(), model.rng.bit_generator.state
    y = model.forward(x, training=True)
    dy = np.random.default_rng(5).standard_normal(y.shape)
    dx = model.backward(dy, needs_dx=True)
    grads, after = model.flat_grads.copy(), model.state_dict()
    # Layer by layer, nothing is fused.
    model.load_state_dict(start)
    model.rng.bit_generator.state = random_state
    y_by_hand, dy_by_hand = x, dy
    for layer in model.layers:
        y_by_hand = layer.forward(y_by_hand, training=True)
    for layer in reversed(model.layers):
        dy_by_hand = layer.backward(dy_by_hand, needs_dx=True)
    # The same sums in the same order, but a fused pass may contract a multiplication and an addition.
    np.testing.assert_allclose(y, y_by_hand, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dx, dy_by_hand, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(grads, model.flat_grads, rtol=1e-11, atol=1e-13)
    for key, value in model.state_dict().items():
        np.testing.assert_allclose(after[key], value, rtol=1e-13, err_msg=key)


@pytest.mark.parametrize("name", [*LAYERS, *MODELS])
def test_float32_follows_float64(name):
    entry = (LAYERS | MODELS)[name]
    wide, x = made(entry, "NHWC")
    narrow, _ = made(entry, "NHWC", "float32")
    narrow.load_state_dict({k: v.astype(np.float32) for k, v in wide.state_dict().items()})
    y, z = wide.forward(x), narrow.forward(x.astype(np.float32))
    assert z.dtype == np.float32
    # A few dozen roundings of 6e-8 each, of values of a few units.
    np.testing.assert_allclose(z, y, rtol=2e-5, atol=2e-5)
    z = narrow.forward(x.astype(np.float32), training=True)
    dx = narrow.backward(np.ones_like(z), needs_dx=True)
    assert dx.dtype == np.float32
    assert dx.shape == x.shape


@pytest.mark.parametrize("name", [n for n in LAYERS if len(LAYERS[n][1]) == 3 and "dropout" not in n])
def test_layouts_agree(name):
    a, x = made(LAYERS[name], "NHWC")
    b, _ = made(LAYERS[name], "NCHW")
    for v, w in zip(a.params + a.state, b.params + b.state, strict=True):
        w[...] = v.transpose(3, 2, 0, 1) if v.ndim == 4 else v

    def turned(v):
        return v.transpose(0, 3, 1, 2) if v.ndim == 4 else v

    y, z = a.forward(x, training=True), b.forward(np.ascontiguousarray(turned(x)), training=True)
    if name == "flatten":
        z = z.reshape(3, 2, 3, 2).transpose(0, 2, 3, 1).reshape(y.shape)
        np.testing.assert_array_equal(z, y)
        return
    np.testing.assert_allclose(z, turned(y), rtol=1e-12, atol=1e-13)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    dx, dz = a.backward(dy), b.backward(np.ascontiguousarray(turned(dy)))
    np.testing.assert_allclose(dz, turned(dx), rtol=1e-11, atol=1e-12)
    for v, w in zip(a.grads, b.grads, strict=True):
        np.testing.assert_allclose(w, v.transpose(3, 2, 0, 1) if v.ndim == 4 else v, rtol=1e-11, atol=1e-12)


def small(**how):
    layers = [Conv2D(K=4, F=3, P=1), BatchNorm(), ReLU(), MaxPool2D(2), Dropout(0.5), Flatten(), Dense(3)]
    return Sequential(layers, **({"input_shape": (6, 6, 2)} | how))


def batch(n=4, shape=(6, 6, 2), dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(dtype)


class TestBuffers:
    def check(self, model):
        assert model.flat_params.size == model.flat_grads.size == sum(a.size for a in model.params)
        pairs = [(model.params, model.flat_params), (model.grads, model.flat_grads), (model.state, model.flat_state)]
        for arrays, flat in pairs:
            flat[...] = np.arange(flat.size)
            assert all(np.shares_memory(a, flat) for a in arrays)
            np.testing.assert_array_equal(np.concatenate([a.ravel() for a in arrays]), np.arange(flat.size))
        conv = model.layers[0]
        assert conv.w is model.params[0]
        assert conv.db is model.grads[1]
        assert [a.shape for a in model.params] == [g.shape for g in model.grads]

    def test_params_and_grads_are_views(self):
        self.check(small())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_have_buffers_of_their_own(self, copied):
        model = small()
        twin = copied(model)
        np.testing.assert_array_equal(twin.flat_params, model.flat_params)
        before = model.flat_params.copy()
        self.check(twin)
        np.testing.assert_array_equal(model.flat_params, before)
        assert twin.rng is twin.layers[4].rng

    def test_nested_layers_share_the_root_buffers(self):
        model = Sequential([Residual([Dense(3)], [Dense(3)]), Sequential([Dense(2)])], input_shape=(3,))
        names = ["0.residual.body.0.dense", "0.residual.shortcut.0.dense", "1.sequential.0.dense"]
        assert [name for name, _ in model.named_parameters()] == [f"{n}.{p}" for n in names for p in "wb"]
        assert all(np.shares_memory(a, model.flat_params) for a in model.layers[0].params + model.layers[1].params)
        assert len(model.layers[0].params) == 4

    def test_backward_overwrites_grads(self):
        model, x = small(), batch()
        for _ in range(2):
            model.flat_grads[...] = np.nan
            model.rng.bit_generator.state = np.random.default_rng(0).bit_generator.state
            model.backward(np.ones_like(model.forward(x, training=True)))
            assert np.isfinite(model.flat_grads).all()

    def test_a_seed_repeats(self):
        np.testing.assert_array_equal(small(seed=5).flat_params, small(seed=5).flat_params)
        assert (small(seed=5).params[0] != small(seed=6).params[0]).all()


class TestFirstLayer:
    def test_a_model_skips_dx(self):
        model, x = small(), batch()
        assert model.backward(np.ones_like(model.forward(x, training=True))) is None

    def test_the_pass_ends_at_the_first_layer_with_parameters(self):
        model = Sequential([Flatten(), Tanh(), Dense(2)], input_shape=(2, 2, 1))
        x = batch(3, (2, 2, 1))
        assert model.backward(np.ones_like(model.forward(x, training=True))) is None
        first = model.flat_grads.copy()
        assert model.backward(np.ones_like(model.forward(x, training=True)), needs_dx=True).shape == x.shape
        np.testing.assert_array_equal(model.flat_grads, first)

    def test_a_model_without_parameters(self):
        model = Sequential([ReLU()], input_shape=(3,))
        x = batch(2, (3,))
        assert model.backward(np.ones_like(model.forward(x, training=True))) is None
        np.testing.assert_array_equal(model.backward(model.forward(x, True), needs_dx=True), np.maximum(x, 0))


class TestState:
    def test_round_trip(self):
        a, b = small(seed=1), small(seed=2)
        a.forward(batch(), training=True)
        b.load_state_dict(a.state_dict())
        np.testing.assert_array_equal(a.flat_params, b.flat_params)
        np.testing.assert_array_equal(a.flat_state, b.flat_state)
        np.testing.assert_array_equal(a.forward(batch(seed=1)), b.forward(batch(seed=1)))

    def test_names(self):
        model = small()
        names = ["0.conv.w", "0.conv.b", "1.batchnorm.gamma", "1.batchnorm.beta", "6.dense.w", "6.dense.b"]
        assert [name for name, _ in model.named_parameters()] == names
        assert [name for name, _ in model.named_state()] == ["1.batchnorm.mean", "1.batchnorm.var"]
        assert all(a is b for (_, a), b in zip(model.named_parameters(), model.params, strict=True))
        assert all(a is b for (_, a), b in zip(model.named_state(), model.state, strict=True))

    def test_it_is_a_copy(self):
        model = small()
        model.state_dict()["0.conv.w"][...] = 7
        assert (model.layers[0].w != 7).all()

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            (lambda d: d.pop("6.dense.b"), ValueError, r"missing 6.dense.b; expected the 8 names of this model, got 7"),
            (lambda d: d.update(extra=d["0.conv.w"]), ValueError, "unknown extra"),
            (lambda d: d.update({"6.dense.w": np.zeros((3, 36), "f4")}), ValueError, r"shape \(36, 3\), got \(3, 36\)"),
            (lambda d: d.update({"6.dense.w": np.zeros((36, 3))}), TypeError, "6.dense.w is float64"),
            (lambda d: d.update({"6.dense.b": [0, 0, 0]}), TypeError, "6.dense.b must be a NumPy array"),
        ],
    )
    def test_refusals_change_nothing(self, change, error, text):
        model, state = small(seed=1), small(seed=2).state_dict()
        change(state)
        before = model.state_dict()
        with pytest.raises(error, match=text):
            model.load_state_dict(state)
        for name, a in model.state_dict().items():
            np.testing.assert_array_equal(a, before[name])


class TestBatchNorm:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_statistics(self, layout, dtype):
        rng = np.random.default_rng(0)
        # Maps whose mean is a hundred times their deviation: E[x^2] - E[x]^2 in float32 would be off by a hundredth.
        x = (rng.standard_normal((8, 40, 33, 5)) * [1, 2, 3, 0.5, 0.1] + [100, -200, 0, 50, 10]).astype(dtype)
        wide = x.astype(np.longdouble)
        mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
        layer = BatchNorm(momentum=0.25).build((40, 33, 5), layout=layout, dtype=dtype)
        layer.gamma[...], layer.beta[...] = [1, 2, 0.5, -1, 3], [0, 1, -1, 2, 0.5]
        expected = (wide - mean) / np.sqrt(var + layer.eps) * layer.gamma + layer.beta
        given = x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        y = layer.forward(given, training=True)
        y = y if layout == "NHWC" else y.transpose(0, 2, 3, 1)
        # x*scale + shift cancels: three roundings of 6e-8 (1e-16), of |gamma mean|/std = 400 at most.
        tolerance = 3 * 400 * np.finfo(dtype).eps / 2
        np.testing.assert_allclose(y, expected.astype(np.float64), rtol=0, atol=tolerance)
        n = x.size / 5
        np.testing.assert_allclose(layer.mean, 0.25 * mean.astype(np.float64), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(layer.var, (0.75 + 0.25 * var * n / (n - 1)).astype(np.float64), rtol=1e-6)

    def test_evaluation_after_training(self):
        layer, x = BatchNorm().build((3,), dtype="float64"), batch(64, (3,), np.float64) * 3 + 2
        for _ in range(300):  # 0.9^300 = 2e-14: the running statistics have arrived
            layer.forward(x, training=True)
        kept = layer.flat_state.copy()
        y = layer.forward(x[:1])
        np.testing.assert_array_equal(layer.flat_state, kept)
        np.testing.assert_allclose(y, (x[:1] - x.mean(0)) / np.sqrt(x.var(0, ddof=1) + 1e-5), rtol=1e-12)

    def test_evaluation_between_forward_and_backward(self):
        model, x = small(), batch()
        state, generator = model.state_dict(), model.rng.bit_generator.state
        dy = np.ones_like(model.forward(x, training=True))
        model.forward(batch(9, seed=4))
        model.backward(dy)
        grads = model.flat_grads.copy()
        model.load_state_dict(state)
        model.rng.bit_generator.state = generator
        model.forward(x, training=True)
        model.backward(dy)
        np.testing.assert_array_equal(model.flat_grads, grads)

    def test_one_value_is_no_batch(self):
        layer = BatchNorm().build((3,))
        before = layer.flat_state.copy()
        with pytest.raises(ValueError, match="more than one value of each activation map"):
            layer.forward(np.zeros((1, 3), np.float32), training=True)
        np.testing.assert_array_equal(layer.flat_state, before)
        assert layer.forward(np.zeros((1, 3), np.float32)).shape == (1, 3)


class TestDropout:
    def test_training_and_evaluation(self):
        layer = Dropout(0.25).build((100_000,), seed=1)
        x = np.ones((1, 100_000), np.float32)
        y = layer.forward(x, training=True)
        scaled = np.float32(1 / 0.75)
        assert set(np.unique(y)) == {0, scaled}
        # Binomial: deviation sqrt(0.25*0.75/1e5) = 1.4e-3, five of them.
        assert abs((y == 0).mean() - 0.25) < 7e-3
        np.testing.assert_array_equal(layer.backward(x), y)
        np.testing.assert_array_equal(layer.forward(x), x)

    def test_masks_differ_and_repeat(self):
        layer, x = Dropout(0.5).build((64,), seed=2), np.ones((1, 64), np.float32)
        state = layer.rng.bit_generator.state
        first, second = layer.forward(x, training=True), layer.forward(x, training=True)
        assert (first != second).any()
        layer.rng.bit_generator.state = state
        np.testing.assert_array_equal(layer.forward(x, training=True), first)


class TestInit:
    n = 5 * 5 * 32 * 64

    @pytest.mark.parametrize(
        ("init", "variance"),
        [("he", 2 / (25 * 32)), ("lecun", 1 / (25 * 32)), ("glorot", 2 / (25 * (32 + 64)))],
    )
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_variances(self, init, variance, layout):
        w = Conv2D(K=64, F=5, init=init).build((8, 8, 32), layout=layout).w
        # Relative deviation of a normal sample's variance: sqrt(2/n) = 6.3e-3 (less for uniform); five of them.
        assert w.size == self.n
        assert abs(w.var() / variance - 1) < 0.032
        assert abs(w.mean()) < 5 * np.sqrt(variance / self.n)
        if init == "glorot":
            assert abs(w).max() <= np.sqrt(3 * variance) * (1 + 1e-6)

    def test_he_keeps_the_size_of_activations(self):
        model = Sequential([layer for _ in range(10) for layer in (Dense(512), ReLU())], input_shape=(512,), seed=3)
        x = batch(64, (512,))
        # Each layer multiplies the mean square by 1 +- sqrt(5/512) or so: ten of them by e^(+-0.3), three times that.
        assert 0.4 < (model.forward(x) ** 2).mean() < 2.5

    def test_zeros_and_biases(self):
        layer = Conv2D(K=2, F=3, init="zeros").build((4, 4, 1))
        assert not layer.flat_params.any()
        assert not Dense(3).build((2,)).b.any()

    def test_callable(self):
        seen = []

        def init(rng, shape, fan_in, fan_out, dtype):
            seen.append((shape, fan_in, fan_out, dtype))
            return np.full(shape, 0.5, dtype)

        layer = Conv2D(K=6, F=3, groups=2, init=init).build((4, 4, 4))
        assert seen == [((3, 3, 2, 6), 18, 27, np.dtype("float32"))]
        assert (layer.w == 0.5).all()

    def test_callable_of_the_wrong_shape(self):
        with pytest.raises(ValueError, match=r"the result of init has the wrong shape; .* \(2, 3\), got \(3,\)"):
            Dense(3, init=lambda rng, shape, *_: np.zeros(3)).build((2,))


class TestSummary:
    def table(self):
        layers = [Conv2D(K=10, F=5, P=2), ReLU(), MaxPool2D(2), Flatten(), Dense(10)]
        return Sequential(layers, input_shape=(32, 32, 3)).summary(8)

    def test_rows(self):
        rows = self.table().rows
        assert [r.name for r in rows] == ["input", "0.conv", "1.relu", "2.max_pool", "3.flatten", "4.dense"]
        assert [(r.W2, r.H2, r.D2) for r in rows] == [
            (32, 32, 3), (32, 32, 10), (32, 32, 10), (16, 16, 10), (None, None, 2560), (None, None, 10)
        ]  # fmt: skip
        assert [r.n_params for r in rows] == [0, 760, 0, 0, 0, 25610]
        assert [r.flops for r in rows] == [0, 2 * 32 * 32 * 10 * 75, 0, 4 * 2560, 0, 2 * 25600]
        assert rows[1].activation_bytes == 8 * 4 * 32 * 32 * 10

    def test_totals_and_text(self):
        table = self.table()
        assert (table.n_params, table.flops) == (26370, 1_536_000 + 10_240 + 51_200)
        text = str(table)
        assert "W2 x H2 x D2" in text
        assert "32 x 32 x 10" in text
        assert "26,370 parameters, 1.6 MFLOPs an image" in text
        assert len({len(line) for line in text.splitlines()[2:8]}) <= 2

    def test_nested(self):
        model = Sequential([Residual([Dense(3)], [Dense(3)]), Sequential([Dense(2)])], input_shape=(3,))
        names = ["0.residual.body.0.dense", "0.residual.shortcut.0.dense", "0.residual", "1.sequential.0.dense"]
        assert [r.name for r in model.summary().rows] == ["input", *names, "1.sequential"]
        assert model.summary().n_params == model.flat_params.size

    @pytest.mark.parametrize("name", ["plain", "norm", "residual", "first"])
    def test_peak_memory_is_close_to_what_is_measured(self, name, monkeypatch):
        # tracemalloc sees NumPy's memory only.
        monkeypatch.setattr(fastconv.ops.memory, "empty", np.empty)

        def conv():
            return [Conv2D(K=16, F=3, P=1), BatchNorm(), ReLU()]

        layers = {
            "plain": [Conv2D(K=16, F=3, P=1), ReLU(), MaxPool2D(2), Conv2D(K=32, F=3, P=1), ReLU(), GlobalAvgPool2D()],
            "norm": [*conv(), *conv(), MaxPool2D(2), *conv(), GlobalAvgPool2D(), Dense(10)],
            "residual": [*conv(), Residual(conv()), ReLU(), Residual(conv(), conv()), ReLU(), GlobalAvgPool2D()],
            "first": [Conv2D(K=64, F=3, P=1), Tanh(), ELU(), Dropout(0.5), AvgPool2D(4), Flatten()],
        }[name]
        model = Sequential(layers, input_shape=(48, 48, 4))
        x = batch(32, (48, 48, 4))
        for traced in (False, True):  # the first step may fill caches of the kernels
            if traced:
                tracemalloc.start()
            y = model.forward(x, training=True)
            model.backward(np.ones_like(y))
            del y
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        estimate = model.summary(32).peak_bytes - 2 * model.flat_params.nbytes - x.nbytes
        # NumPy's small temporaries and the kernels' workspace are not in the estimate.
        assert 0.9 < peak / estimate < 1.25

    def test_nothing_is_kept_after_backward(self):
        model = Sequential([Conv2D(K=64, F=3, P=1), ReLU(), Flatten(), Dense(2)], input_shape=(32, 32, 3))
        x = batch(8, (32, 32, 3))
        model.backward(np.ones_like(model.forward(x, training=True)))
        tracemalloc.start()
        model.backward(np.ones_like(model.forward(x, training=True)))
        left = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert left < 8 * 32 * 32 * 64 * 4 / 10


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "error", "text"),
        [
            (lambda: Conv2D(K=0, F=3), ValueError, "Conv2D: K is out of range"),
            (lambda: Conv2D(K=True, F=3), TypeError, "Conv2D: K must be an int"),
            (lambda: Conv2D(K=1, F=3, activation="tanh"), ValueError, "no such choice; expected one of 'relu'"),
            (lambda: Conv2D(K=1, F=3, fit="ceil"), ValueError, "fit has no such choice"),
            (lambda: Dense(3, init="kaiming"), ValueError, "Dense: init has no such choice; expected one of 'he'"),
            (lambda: Dense(2.0), TypeError, "Dense: K must be an int"),
            (lambda: Dropout(1.0), ValueError, r"Dropout: p is out of range; expected a finite number in \[0, 1\)"),
            (lambda: BatchNorm(momentum=2), ValueError, "BatchNorm: momentum is out of range"),
            (lambda: LeakyReLU(-1), ValueError, "LeakyReLU: alpha is out of range"),
            (lambda: Sequential([Dense(2), "relu"]), TypeError, "layer 1 is no layer"),
            (lambda: small(layout="NWHC"), ValueError, "layout has no such choice"),
            (lambda: small(dtype="float16"), TypeError, "dtype has no such choice"),
            (lambda: small(dtype=None), TypeError, "dtype has no such choice"),
            (lambda: small(input_shape=(6, 6)), ValueError, "input_shape must be a volume or a vector"),
            (lambda: small(input_shape=(6, 6, 0)), ValueError, "input_shape is out of range"),
            (lambda: small(input_shape=(6, 6.0, 1)), TypeError, "input_shape must be an int"),
            (
                lambda: Sequential([Dense(2)], input_shape=(4, 5, 1)),
                ValueError,
                r"layer 0, Dense\(K=2\), on 5 x 4 x 1: .*Flatten",
            ),
            (
                lambda: Sequential([Flatten(), ReLU(), Conv2D(K=1, F=1)], input_shape=(4, 4, 1)),
                ValueError,
                r"layer 2.* on 16: .*volume",
            ),
            (lambda: Residual([Dense(3)]).build((2,)), ValueError, r"body makes \(3,\) of \(2,\) but the short"),
        ],
    )
    def test_settings(self, make, error, text):
        with pytest.raises(error, match=text):
            make()

    def test_geometry(self):
        with pytest.raises(GeometryError, match=r"layer 1, Conv2D\(.*on 7 x 7 x 2: .*\(7 - 3 \+ 2\*0\)/3 \+ 1 = 2.33"):
            Sequential([Conv2D(K=2, F=1), Conv2D(K=1, F=3, S=3)], input_shape=(7, 7, 1))
        with pytest.raises(GeometryError, match="doesn't fit"):
            MaxPool2D(2).build((5, 5, 1))
        assert MaxPool2D(2, fit="floor").build((5, 5, 1)).output_shape == (2, 2, 1)

    def test_a_layer_is_used_once(self):
        layer = Dense(3)
        with pytest.raises(ValueError, match=r"is in use already"):
            Sequential([layer, layer], input_shape=(3,))
        Sequential([layer], input_shape=(3,))
        with pytest.raises(ValueError, match=r"0.dense, Dense\(K=3\), is in use already"):
            Sequential([layer], input_shape=(3,))

    def test_a_failed_model_leaves_its_layers_free(self):
        layers = [Conv2D(K=2, F=3), Conv2D(K=2, F=5)]
        with pytest.raises(GeometryError):
            Sequential(layers, input_shape=(4, 4, 1))
        Sequential(layers, input_shape=(8, 8, 1))

    @pytest.mark.parametrize(
        ("x", "error", "text"),
        [
            (np.zeros((2, 6, 6, 3), np.float32), ValueError, r"wrong shape; expected x of shape \(N, 6, 6, 2\)"),
            (np.zeros((6, 6, 2), np.float32), ValueError, "x has the wrong shape"),
            (np.zeros((2, 6, 6, 2)), TypeError, "x is float64 but the model is float32"),
            (np.zeros((2, 6, 6, 2), np.uint8), TypeError, "x has the wrong dtype"),
            ([[1.0]], TypeError, "x must be a NumPy array"),
        ],
    )
    def test_input(self, x, error, text):
        with pytest.raises(error, match=text):
            small().forward(x)

    def test_backward(self):
        model, x = small(), batch()
        with pytest.raises(ValueError, match=r"Sequential.backward: nothing to go back through"):
            model.backward(np.zeros((4, 3), np.float32))
        model.forward(x, training=True)
        with pytest.raises(ValueError, match=r"dy of shape \(4, 3\), got \(2, 3\)"):
            model.backward(np.zeros((2, 3), np.float32))
        model.backward(np.zeros((4, 3), np.float32))
        with pytest.raises(ValueError, match="nothing to go back through"):
            model.backward(np.zeros((4, 3), np.float32))

    def test_not_built(self):
        with pytest.raises(ValueError, match=r"Conv2D: is not built; expected build\(input_shape\)"):
            Conv2D(K=1, F=1).forward(np.zeros((1, 1, 1, 1), np.float32))
        with pytest.raises(ValueError, match="the model is not built"):
            Sequential([]).summary()

    def test_strided_and_read_only_inputs(self):
        model = small()
        wide = batch(8)
        strided = wide[::2]
        strided.flags.writeable = False
        np.testing.assert_array_equal(model.forward(strided), model.forward(strided.copy()))


def test_predict_is_forward_in_pieces():
    model, x = small(dtype="float64"), batch(10, dtype=np.float64)
    # An image's result does not depend on the batch it is in.
    np.testing.assert_array_equal(model.predict(x, batch_size=4), model.forward(x))
    np.testing.assert_array_equal(model.predict(x), model.forward(x))


def test_the_lecture():
    model = Sequential([Conv2D(K=6, F=5), ReLU(), Conv2D(K=10, F=5), ReLU()], input_shape=(32, 32, 3))
    assert [layer.output_shape for layer in model.layers] == [(28, 28, 6)] * 2 + [(24, 24, 10)] * 2
    assert Conv2D(K=10, F=5, P=2).build((32, 32, 3)).geometry.n_params == 760
    assert Conv2D(K=32, F=1).build((56, 56, 64)).output_shape == (56, 56, 32)
    assert Dense(10).build((3072,)).geometry.n_params == 30730
