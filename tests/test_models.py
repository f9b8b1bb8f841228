"""Models: parameter counts as published, weight files, weights from PyTorch against a plain evaluation."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastconv import base, models, reference
from fastconv.layers import BatchNorm, Conv2D, Dense, Flatten, Sequential

# Counted by their authors' and torchvision's definitions; MobileNet's without the running statistics, as Keras counts
# what is trained.
COUNTS = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v1": 4_231_976,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_parameter_counts(name, monkeypatch):
    monkeypatch.setattr(base, "_initial", lambda where, slot, rng, dtype: np.broadcast_to(np.float32(0), slot.shape))
    model = models.BUILDERS[name]()
    assert model.output_shape == (1000,)
    assert model.flat_params.size == model.summary().n_params == COUNTS[name]
    volumes = [layer.output_shape[:2] for layer in model.layers if len(layer.output_shape) == 3]
    assert volumes[-1] == (7, 7)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("name", models.BUILDERS)
def test_every_model_trains_a_step(name, layout):
    size = {"lenet": (28, 28, 1), "mnist_net": (28, 28, 1), "cifar_net": (32, 32, 3)}.get(name, (32, 48, 3))
    how = {"vgg": {"hidden": 0}, "mob": {"alpha": 0.25}}.get(name[:3], {})
    model = models.BUILDERS[name](size, classes=7, layout=layout, seed=1, **how)
    shape = size if layout == "NHWC" else (size[2], *size[:2])
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    y = model.forward(x, training=True)
    assert y.shape == (2, 7)
    model.backward(np.ones_like(y))
    assert np.isfinite(model.flat_grads).all()
    assert all(g.any() for g in model.grads)
    assert np.isfinite(model.forward(x)).all()


class TestFiles:
    @pytest.mark.parametrize("ending", [".npz", ".safetensors"])
    @pytest.mark.parametrize("name", ["lenet", "mobilenet_v1"])
    def test_round_trip(self, tmp_path, ending, name):
        how = {"dtype": "float64", "layout": "NCHW"} if name == "lenet" else {"alpha": 0.125}
        model = models.BUILDERS[name]((32, 24, 3), classes=3, seed=4, **how)
        model.flat_state += 0.5
        path = tmp_path / f"model{ending}"
        models.save_weights(model, path)
        models.save_weights(model, str(path))
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        twin = models.load(path)
        assert (twin.layout, twin.dtype, twin.input_shape) == (model.layout, model.dtype, model.input_shape)
        np.testing.assert_array_equal(twin.flat_params, model.flat_params)
        np.testing.assert_array_equal(twin.flat_state, model.flat_state)
        other = models.BUILDERS[name]((32, 24, 3), classes=3, seed=5, **how)
        models.load_weights(other, path)
        np.testing.assert_array_equal(other.flat_params, model.flat_params)

    @pytest.mark.parametrize("ending", [".npz", ".safetensors"])
    def test_a_model_of_ones_own(self, tmp_path, ending):
        path = tmp_path / f"model{ending}"
        models.save_weights(Sequential([Dense(2)], input_shape=(3,), seed=1), path)
        model = Sequential([Dense(2)], input_shape=(3,), seed=2)
        models.load_weights(model, path)
        np.testing.assert_array_equal(model.flat_params, Sequential([Dense(2)], input_shape=(3,), seed=1).flat_params)
        with pytest.raises(ValueError, match=r"does not say how to build its model; expected .*load_weights"):
            models.load(path)

    @pytest.mark.parametrize("ending", [".npz", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY", b"\xff" * 64, b"{}" * 99])
    def test_foreign_files(self, tmp_path, ending, content):
        path = tmp_path / f"model{ending}"
        path.write_bytes(content)
        model = models.lenet()
        before = model.flat_params.copy()
        with pytest.raises(ValueError, match=r"is no (npz|\.npz|safetensors) file that can be read"):
            models.load_weights(model, path)
        np.testing.assert_array_equal(model.flat_params, before)

    @pytest.mark.parametrize("ending", [".npz", ".safetensors"])
    def test_torn_files(self, tmp_path, ending):
        path = tmp_path / f"model{ending}"
        models.save_weights(models.lenet(hidden=8), path)
        whole = path.read_bytes()
        for size in (len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="that can be read"):
                models.load(path)

    def test_another_models_file(self, tmp_path):
        models.save_weights(models.lenet(hidden=8), tmp_path / "a.npz")
        model = models.lenet(hidden=9)
        before = model.flat_params.copy()
        with pytest.raises(ValueError, match="has the wrong shape"):
            models.load_weights(model, tmp_path / "a.npz")
        np.testing.assert_array_equal(model.flat_params, before)

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "a.npz"
        models.save_weights(models.lenet(hidden=8, seed=1), path)
        whole = path.read_bytes()

        def full(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr(models.os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            models.save_weights(models.lenet(hidden=8, seed=2), path)
        assert path.read_bytes() == whole
        assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]

    def test_names(self, tmp_path):
        with pytest.raises(ValueError, match=r"save_weights: .*expected .npz or .safetensors, got model.pth"):
            models.save_weights(models.lenet(hidden=8), tmp_path / "model.pth")
        with pytest.raises(FileNotFoundError):
            models.load(tmp_path / "none.npz")
        with pytest.raises(FileNotFoundError):
            models.load(tmp_path / "none.safetensors")


# --- PyTorch's side: torchvision's names and order, evaluated by the reference in NCHW ------------------------------


class Torch:
    """A state dict that grows as the network is written down, and its evaluation."""

    def __init__(self, x, seed=0):
        self.x, self.state, self.rng = x, {}, np.random.default_rng(seed)

    def _new(self, name, shape, scale, shift=0.0):
        self.state[name] = (scale * self.rng.standard_normal(shape) + shift).astype(np.float32)
        return self.state[name].astype(np.float64)

    def conv(self, name, x, K, F, S=1, P=0, groups=1, bias=False):
        w = self._new(f"{name}.weight", (K, x.shape[1] // groups, F, F), (2 / (F * F * x.shape[1] // groups)) ** 0.5)
        b = self._new(f"{name}.bias", (K,), 0.1) if bias else None
        y = reference.conv2d(x, w, S=S, P=P, groups=groups, layout="NCHW")
        return y if b is None else y + b[:, None, None]

    def norm(self, name, x):
        D = x.shape[1]
        gamma, beta = self._new(f"{name}.weight", D, 0.1, 1.0), self._new(f"{name}.bias", D, 0.1)
        mean = self._new(f"{name}.running_mean", D, 0.1)
        self.state[f"{name}.running_var"] = self.rng.uniform(0.5, 1.5, D).astype(np.float32)
        self.state[f"{name}.num_batches_tracked"] = np.array(7)
        scale = gamma / np.sqrt(self.state[f"{name}.running_var"].astype(np.float64) + 1e-5)
        turn = (slice(None), *(None,) * (x.ndim - 2))
        return x * scale[turn] + (beta - mean * scale)[turn]

    def dense(self, name, x, K):
        w = self._new(f"{name}.weight", (K, x.shape[1]), (2 / x.shape[1]) ** 0.5)
        return x @ w.T + self._new(f"{name}.bias", K, 0.1)


def relu(x):
    return np.maximum(x, 0)


def pooled(x, F, **how):
    return reference.max_pool2d(x, F, layout="NCHW", **how)[0]


def torch_vgg16(x, hidden, classes):
    net, i = Torch(x), 0
    for K in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        x = relu(net.conv(f"features.{i}", x, K, 3, P=1, bias=True)) if K else pooled(x, 2)
        i += 2 if K else 1
    x = x.reshape(len(x), -1)
    for name in ("classifier.0", "classifier.3"):
        x = relu(net.dense(name, x, hidden))
    return net.state, net.dense("classifier.6", x, classes)


def torch_resnet(x, depths, bottleneck, classes):
    net = Torch(x)
    x = relu(net.norm("bn1", net.conv("conv1", x, 64, 7, 2, 3)))
    x = pooled(x, 3, S=2, P=1)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            at, K, S, y = f"layer{stage + 1}.{i}", 64 << stage, 2 if stage and not i else 1, x
            plan = [(K, 1, 1), (K, 3, S), (4 * K, 1, 1)] if bottleneck else [(K, 3, S), (K, 3, 1)]
            for k, (filters, F, stride) in enumerate(plan, 1):
                y = net.norm(f"{at}.bn{k}", net.conv(f"{at}.conv{k}", y, filters, F, stride, F // 2))
                y = relu(y) if k < len(plan) else y
            if x.shape != y.shape:
                x = net.norm(f"{at}.downsample.1", net.conv(f"{at}.downsample.0", x, y.shape[1], 1, S))
            x = relu(y + x)
    return net.state, net.dense("fc", x.mean((2, 3)), classes)


def torch_mobilenet(x, alpha, classes):
    net = Torch(x)
    x = relu(net.norm("model.0.1", net.conv("model.0.0", x, int(32 * alpha), 3, 2, 1)))
    stages = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for i, (K, S) in enumerate(stages, 1):
        x = relu(net.norm(f"model.{i}.1", net.conv(f"model.{i}.0", x, x.shape[1], 3, S, 1, groups=x.shape[1])))
        x = relu(net.norm(f"model.{i}.4", net.conv(f"model.{i}.3", x, int(K * alpha), 1)))
    return net.state, net.dense("fc", x.mean((2, 3)), classes)


TORCH = {
    "vgg16": (lambda x: torch_vgg16(x, 24, 5), {"hidden": 24}),
    "resnet18": (lambda x: torch_resnet(x, (2, 2, 2, 2), False, 5), {}),
    "resnet50": (lambda x: torch_resnet(x, (3, 4, 6, 3), True, 5), {}),
    "mobilenet_v1": (lambda x: torch_mobilenet(x, 0.25, 5), {"alpha": 0.25}),
}


@pytest.fixture(scope="module", params=TORCH)
def torch_net(request):
    """A network with random weights: (name, input, state dict, output)."""
    x = np.random.default_rng(9).standard_normal((2, 3, 64, 96))
    return request.param, x, *TORCH[request.param][0](x)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("how", ["dict", ".npz", ".safetensors"])
def test_weights_from_torch(torch_net, layout, how, tmp_path):
    name, x, state, expected = torch_net
    model = models.BUILDERS[name]((64, 96, 3), classes=5, layout=layout, seed=3, **TORCH[name][1])
    if how == ".npz":
        np.savez(tmp_path / "w.npz", **state)
    elif how == ".safetensors":
        save_file(state, tmp_path / "w.safetensors")
    models.load_torch(model, state if how == "dict" else tmp_path / f"w{how}")
    given = x if layout == "NCHW" else x.transpose(0, 2, 3, 1)
    y = model.forward(np.ascontiguousarray(given, np.float32))
    # The bar for the same outputs is 1e-4 of their size; fifty layers of float32, Winograd among them, stay below.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


class TestTorchStates:
    def test_a_norm_behind_flatten(self):
        x = np.random.default_rng(0).standard_normal((3, 2, 3, 4))
        net = Torch(x)
        flat = net.conv("0", x, 5, 1, bias=True).reshape(3, -1)
        expected = net.dense("3", net.norm("2", flat), 2)
        plan = [Conv2D(K=5, F=1), Flatten(), BatchNorm(), Dense(2)]
        model = Sequential(plan, input_shape=(3, 4, 2), dtype="float64")
        models.load_torch(model, net.state)
        y = model.forward(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            (lambda s: s.pop("0.bias"), ValueError, "'0' has other arrays than the layer; expected weight, bias"),
            (lambda s: s.pop("0.weight"), ValueError, "module '0' has no weight"),
            (lambda s: s.update({"9.weight": s["0.weight"]}), ValueError, "another number of conv modules"),
            (lambda s: s.update({"0.weight": np.zeros((5, 2, 3, 3))}), ValueError, "0.weight does not fit Conv2D"),
            (lambda s: s.update({"3.weight": np.zeros((2, 59))}), ValueError, "3.weight does not fit Dense"),
            (lambda s: s.update({"3.weight": np.zeros((2, 60), int)}), TypeError, "3.weight holds no floats"),
            (lambda s: s.update({"3.weight": [1.0]}), TypeError, "3.weight must be a NumPy array"),
        ],
    )
    def test_refusals_change_nothing(self, change, error, text):
        net = Torch(np.zeros((1, 2, 3, 4)))
        net.dense("3", net.conv("0", net.x, 5, 1, bias=True).reshape(1, -1), 2)
        model = Sequential([Conv2D(K=5, F=1), Flatten(), Dense(2)], input_shape=(3, 4, 2))
        before = model.flat_params.copy()
        change(net.state)
        with pytest.raises(error, match=text):
            models.load_torch(model, net.state)
        np.testing.assert_array_equal(model.flat_params, before)
