"""Pictures: each shows the numbers it was given; what a feature sees is checked against arithmetic done by hand."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from fastconv import deconvnet, plots, reference
from fastconv.history import History
from fastconv.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPool2D,
    ReLU,
    Residual,
    Sequential,
    Tanh,
)
from fastconv.training import Candidate


def net(layout="NHWC", depth=1):
    layers = [
        *(Conv2D(K=6, F=3, P=1), ReLU(), MaxPool2D(2)),
        *(Conv2D(K=5, F=3, S=2, fit="floor"), BatchNorm(), ReLU()),
        *(Dropout(0.5), Flatten(), Dense(3)),
    ]
    return Sequential(layers, input_shape=(12, 12, depth), layout=layout, seed=3)


def images(n=20, layout="NHWC", depth=1, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 12, 12, depth)).astype(np.float32)
    return x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def run(steps=40, epochs=4):
    history = History()
    for i in range(steps):
        history.add_step(2.0 / (1 + i), 0.1, 0.01 * (i + 1))
        if (i + 1) % (steps // epochs) == 0:
            loss = 2.0 / (1 + i)
            history.add_epoch({
                "epoch": len(history.epochs) + 1, "steps": i + 1, "lr": 0.1, "loss": loss, "accuracy": 1 - loss / 4,
                "validation_loss": loss * 1.1, "validation_accuracy": 1 - loss / 3, "seconds": 0.01 * i,
            })  # fmt: skip
    return history


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def drawn(figure):
    """The figure as it is saved: an image file that is no blank sheet."""
    assert isinstance(figure, Figure)
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=40)
    pixels = np.frombuffer(file.getvalue(), np.uint8)
    assert len(np.unique(pixels)) > 10
    return figure


# ---------------------------------------------------------------------------------------------------- the figures


def test_learning_curves_show_the_history():
    history = run()
    figure = drawn(plots.learning_curves(history))
    left, right = figure.axes
    lines = {line.get_label(): line.get_xydata() for line in left.lines + right.lines}
    assert np.allclose(left.lines[0].get_ydata(), history.steps["loss"], rtol=0, atol=0)
    assert np.allclose(left.lines[0].get_xdata()[-1], 4.0, rtol=0, atol=0)
    assert np.allclose(lines["validation"][:, 1], np.array(history["validation_accuracy"]) * 100, rtol=0, atol=0)
    with pytest.raises(ValueError, match="empty"):
        plots.learning_curves(History())


def test_learning_curves_do_without_epochs_and_accuracy():
    history = History()
    for i in range(5):
        history.add_step(-float(i), 0.1, 0.1 * i)  # a loss below zero has no logarithm
    assert len(drawn(plots.learning_curves(history)).axes) == 1


def test_smooth_is_a_mean_around():
    x = np.random.default_rng(0).normal(size=50)
    got = plots.smooth(x, 7)
    expected = [x[max(0, i - 3) : i + 4].mean() for i in range(50)]
    # Differences of running sums of 50 numbers of about 1, in float64.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_lr_search_shows_every_candidate():
    found = [
        Candidate(name, lr, loss, 0.5, [3.0, 2.0, loss], 0.1)
        for name, lr, loss in (("A", 0.1, 1.0), ("A", 0.01, 2.0), ("B", 0.1, 1.5), ("B", 1.0, np.inf))
    ]
    figure = drawn(plots.lr_search(found))
    points = [tuple(p) for line in figure.axes[0].lines for p in line.get_xydata()]
    assert {(0.1, 1.0), (0.01, 2.0), (0.1, 1.5)} <= set(points)
    assert (1.0, 2.3) in points  # the one that diverged, above all others
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.lr_search([])


def test_race_shows_every_run_against_step_and_time():
    figure = drawn(plots.race({"Adam": run(), "SGD": run(20)}))
    left, right = figure.axes
    assert [len(line.get_xdata()) for line in left.lines] == [40, 20]
    assert right.lines[0].get_xdata()[-1] == run().steps["seconds"][-1]
    assert "Adam" in texts(figure)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("depth", [1, 3])
def test_filters_are_the_weights(layout, depth):
    model = net(layout, depth)
    figure = drawn(plots.filters(model))
    w = model.layers[0].w if layout == "NHWC" else model.layers[0].w.transpose(2, 3, 1, 0)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(shown) == 6
    for k, picture in enumerate(shown):
        expected = w[:, :, 0, k] if depth == 1 else w[..., k] / (2 * np.abs(w).max()) + 0.5
        np.testing.assert_allclose(picture, expected, rtol=0, atol=1e-6)
    assert len([a for a in plots.filters(model, most=4).axes if a.images]) == 4
    assert f"3x3x{depth}" in texts(figure)


def test_filters_take_weights_and_refuse_the_rest():
    drawn(plots.filters(np.random.default_rng(0).normal(size=(5, 5, 3, 10))))
    with pytest.raises(ValueError, match="has no filters; expected layer 0"):
        plots.filters(net(), 2)
    with pytest.raises(ValueError, match="four axes"):
        plots.filters(np.zeros((3, 3)))
    with pytest.raises(TypeError, match="Sequential"):
        plots.filters("model")


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("layer", [0, 1, 3, 6])
def test_activation_maps_are_what_the_layer_gives(layout, layer):
    model, x = net(layout), images(2, layout)
    figure = drawn(plots.activation_maps(model, x, layer))
    expected = x
    for inner in model.layers[: layer + 1]:
        expected = inner.forward(expected)
    expected = expected if layout == "NHWC" else expected.transpose(0, 2, 3, 1)
    grid = [axes.images[0].get_array() for axes in figure.axes[2:] if axes.images]
    assert len(grid) == expected.shape[3]
    for k, picture in enumerate(grid):
        assert np.array_equal(picture, expected[0, ..., k])
    stack = figure.axes[1].images
    assert len(stack) == expected.shape[3]
    assert np.array_equal(min(stack, key=lambda s: -s.get_zorder()).get_array(), expected[0, ..., 0])


def test_activation_maps_refuse_what_has_none():
    for layer in (7, 8):
        with pytest.raises(ValueError, match="a layer from 0 to 6"):
            plots.activation_maps(net(), images(), layer)
    with pytest.raises(ValueError, match="layer"):
        plots.activation_maps(net(), images(), 9)
    with pytest.raises(TypeError, match="Sequential"):
        plots.activation_maps(Dense(3), images(), 0)


def test_volume_names_every_size():
    residual = Residual([Conv2D(K=6, F=3, P=1)])
    model = Sequential(
        [Conv2D(K=6, F=5), ReLU(), MaxPool2D(2), residual, Flatten(), Dense(10)], input_shape=(32, 28, 3)
    )
    said = texts(drawn(plots.volume(model)))
    for part in ("28x32\nx3", "24x28\nx6", "12x14\nx6", "10", "conv 5x5", "max pool", "residual", "dense"):
        assert part in said
    drawn(plots.volume(Sequential([Dense(4), ReLU(), Dense(2)], input_shape=(8,))))
    with pytest.raises(TypeError, match="built Sequential"):
        plots.volume(Sequential([Dense(4)]))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_projections_show_features_beside_their_patches(layout):
    model, x = net(layout), images(20, layout)
    figure = drawn(plots.projections(model, x, 5, [0, 2], top=4))
    assert "feature 2" in texts(figure)
    found = deconvnet.excite(model, x, 5, 0, top=4)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    t, b, left, r = found[0].patch
    assert shown[0].shape[:2] == (b - t, r - left)
    drawn(plots.projections(model, x, 1))


# ------------------------------------------------------------------------------------------------------ deconvnet


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_one_convolution_carries_an_activation_back_as_its_filter(layout):
    model, x = Sequential([Conv2D(K=4, F=3, P=1)], input_shape=(12, 12, 2), layout=layout, seed=1), images(1, layout, 2)
    y = deconvnet.activations(model, x, 0)
    back = deconvnet.project(model, x, 0, 3, (5, 7))
    w = model.layers[0].w if layout == "NHWC" else model.layers[0].w.transpose(2, 3, 1, 0)
    expected = np.zeros((12, 12, 2))
    expected[4:7, 6:9] = y[0, 5, 7, 3] * w[..., 3]
    np.testing.assert_allclose(back, expected, rtol=0, atol=1e-6)  # one float32 product each, of about 1


def test_the_way_back_unpools_rectifies_and_filters():
    """Every step by the reference, in the order of Zeiler and Fergus 2013."""
    model, x = net(), images(1)
    first, second, norm = model.layers[0], model.layers[3], model.layers[4]
    norm.gamma[...] = np.linspace(-1, 2, 5)
    norm.mean[...] = 0.1
    norm.var[...] = np.linspace(0.5, 2, 5)
    a = np.maximum(reference.conv2d(x, first.w, first.b, P=1), 0)
    p, switches = reference.max_pool2d(a, 2)
    c = reference.conv2d(p, second.w, second.b, S=2)
    scale = norm.gamma / np.sqrt(norm.var + norm.eps)
    b = np.maximum((c - norm.mean) * scale + norm.beta, 0)
    k = int(b[0].max(axis=(0, 1)).argmax())
    at = np.unravel_index(b[0, ..., k].argmax(), b.shape[1:3])
    signal = np.zeros_like(b)
    signal[(0, *at, k)] = b[(0, *at, k)]
    signal = reference.conv2d_grad_x(np.maximum(signal, 0) * scale, second.w, p.shape, S=2)
    signal = np.maximum(reference.max_pool2d_grad(signal, switches, a.shape), 0)
    expected = reference.conv2d_grad_x(signal, first.w, x.shape, P=1)[0]
    got = deconvnet.project(model, x, 5, k, tuple(map(int, at)))
    assert np.abs(expected).max() > 0
    # Two float32 convolutions of at most 54 products each.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_average_pooling_and_other_activations_go_back_too():
    layers = [Conv2D(K=3, F=3, activation="relu"), AvgPool2D(2), Tanh(), Conv2D(K=2, F=2, dilation=2)]
    model = Sequential(layers, input_shape=(12, 12, 1), seed=2)
    back = deconvnet.project(model, images(1), 3, 1, (1, 2))
    assert back.shape == (12, 12, 1)
    top, bottom, left, right = deconvnet.field_of_view(model, 3, (1, 2))
    inside = np.zeros((12, 12, 1), bool)
    inside[top:bottom, left:right] = True
    assert np.abs(back[inside]).max() > 0
    assert (back[~inside] == 0).all()


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("place", [(0, 0), (1, 1)])
def test_the_field_of_view_is_what_an_activation_depends_on(layer, place):
    """Change each pixel by itself: those that move the activation span exactly the field."""
    model = Sequential(
        [Conv2D(K=2, F=3, S=2, P=1), Conv2D(K=2, F=3, dilation=2, P=1), AvgPool2D(2), Conv2D(K=1, F=2)],
        input_shape=(15, 15, 1), dtype="float64", seed=5,
    )  # fmt: skip
    base = np.zeros((15 * 15, 15, 15, 1))
    base.reshape(225, 225)[np.arange(225), np.arange(225)] = 1
    still = deconvnet.activations(model, np.zeros((1, 15, 15, 1)), layer)
    moved = deconvnet.activations(model, base, layer) != still
    rows, columns = np.nonzero(moved[(slice(None), *place, 0)].reshape(15, 15))
    found = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
    assert deconvnet.field_of_view(model, layer, place) == found


def test_excite_finds_the_strongest_images_first():
    model, x = net(), images(40)
    found = deconvnet.excite(model, x, 3, 2, top=5, batch_size=7)
    maps = deconvnet.activations(model, x, 3)[..., 2].reshape(40, -1)
    order = np.argsort(-maps.max(axis=1), kind="stable")[:5]
    assert [f.image for f in found] == order.tolist()
    for f in found:
        assert f.value == maps[f.image].max()
        assert maps[f.image].reshape(2, 2)[f.place] == f.value
    assert deconvnet.excite(model, np.zeros_like(x), 0, 0) == []
    with pytest.raises(ValueError, match="feature"):
        deconvnet.excite(model, x, 3, 5)


def test_pictures_need_no_screen_and_open_none():
    code = (
        "import sys, numpy as np, fastconv.plots as p; p.filters(np.ones((3, 3, 1, 2))).savefig(sys.argv[1]);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n" or "format" in done.stderr
