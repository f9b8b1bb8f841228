"""The optimizers: against the slides and `reference`, bit for bit over every cut, and hostile input."""

import copy
import functools
import json
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv as fc
from fastconv import optim, reference
from fastconv.schedules import ExponentialDecay

# name: class, settings, function in reference, letters of the state
CASES = {
    "sgd": (optim.SGD, {}, reference.sgd, ""),
    "momentum": (optim.Momentum, {"momentum": 0.8}, reference.momentum, "v"),
    "nesterov": (optim.Nesterov, {"momentum": 0.8}, reference.nesterov, "v"),
    "adagrad": (optim.AdaGrad, {"eps": 1e-5}, reference.adagrad, "r"),
    "rmsprop": (optim.RMSProp, {"rho": 0.8}, reference.rmsprop, "rv"),
    "rmsprop_heavy": (optim.RMSProp, {"rho": 0.8, "momentum": 0.7, "nesterov": False}, reference.rmsprop, "rv"),
    "rmsprop_nesterov": (optim.RMSProp, {"rho": 0.8, "momentum": 0.7, "eps": 0.0}, reference.rmsprop, "rv"),
    "adam": (optim.Adam, {"betas": (0.8, 0.95)}, reference.adam, "sr"),
    "adamw": (optim.AdamW, {"betas": (0.8, 0.95), "weight_decay": 0.1}, reference.adamw, "sr"),
}
each = pytest.mark.parametrize("name", CASES)
dtypes = pytest.mark.parametrize("dtype", ["f4", "f8"])
ahead = pytest.mark.parametrize("name", ["nesterov", "rmsprop_nesterov"])

SHAPES = [(3, 5), (), (0, 4), (4097,), (7, 11, 13), (1,), (33_000,), (64, 64, 3)]  # in sum more than one thread's worth


def arrays(dtype, seed=0):
    return [a.copy() for a in _arrays(dtype, seed)]


@functools.cache
def _arrays(dtype, seed):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def make(name, params, lr=0.01, **more):
    kind, settings, _, _ = CASES[name]
    return kind(params, lr, **{**settings, **more})


def everything(opt):
    return [a.copy() for a in opt.params], opt.state_dict()


def unchanged(opt, before):
    params, state = before
    now = opt.state_dict()
    assert now.keys() == state.keys()
    return all(np.array_equal(a, b) for a, b in zip(opt.params, params, strict=True)) and all(
        np.array_equal(now[key], state[key]) for key in state
    )


# ---- the algorithms


def bumps(theta):
    """Gradient of sum(theta_i^4/4 - theta_i^2/2 + cos(3 theta_i) + theta_i theta_(i+1)/2), which has many minima."""
    return theta**3 - theta - 3 * np.sin(3 * theta) + (np.roll(theta, 1) + np.roll(theta, -1)) / 2


def hillside(theta):
    """Gradient of sum(7 theta_i + sin(3 theta_i) - cos(theta_i - theta_(i+1))): waves on a slope that has no end."""
    return 7 + 3 * np.cos(3 * theta) + np.sin(theta - np.roll(theta, -1)) - np.sin(np.roll(theta, 1) - theta)


def slide(
    name, theta, gradient, steps, lr, momentum=0.0, rho=0.0, betas=(0, 0), eps=1e-8, weight_decay=0.0, nesterov=True
):
    """Goodfellow's pseudo-code, line by line: theta is theta, Nesterov's gradient is taken at theta + a v."""
    v, r, s = np.zeros((3, *theta.shape))
    for t in range(1, steps + 1):
        if name in ("nesterov", "rmsprop_nesterov"):
            g = gradient(theta + momentum * v)
        else:
            g = gradient(theta)
        if name == "sgd":
            theta = theta - lr * g
        elif name in ("momentum", "nesterov"):
            v = momentum * v - lr * g
            theta = theta + v
        elif name == "adagrad":
            r = r + g * g
            theta = theta - lr / (eps + np.sqrt(r)) * g
        elif name.startswith("rmsprop"):
            r = rho * r + (1 - rho) * g * g
            v = momentum * v - lr / (np.sqrt(r) + eps) * g
            theta = theta + v
        else:
            s = betas[0] * s + (1 - betas[0]) * g
            r = betas[1] * r + (1 - betas[1]) * g * g
            s_hat, r_hat = s / (1 - betas[0] ** t), r / (1 - betas[1] ** t)
            theta = theta - lr * s_hat / (np.sqrt(r_hat) + eps) - lr * weight_decay * theta
    return theta


# Where the gradient vanishes, RMSProp and Adam are chaotic: they divide it by its own size, and one last bit decides on
# which side of the minimum the next step lands (on bumps the slide itself, run from theta(1 + 2e-16), ends 0.02 away).
# So those go downhill.
@pytest.mark.parametrize(
    ("name", "gradient"),
    [(name, hillside) for name in CASES] + [(name, bumps) for name in ("sgd", "momentum", "nesterov", "adagrad")],
)
def test_equals_the_slide_over_200_steps(name, gradient, isa):
    theta = np.random.default_rng(1).uniform(-2, 2, 37)
    expected = slide(name, theta, gradient, 200, 0.02, **CASES[name][1])
    opt = make(name, [theta], 0.02)
    for _ in range(200):
        opt.step([gradient(theta)])
    assert opt.t == 200
    with opt.solution():
        # 200 steps with a handful of roundings each of 1e-16 of numbers up to 200
        np.testing.assert_allclose(theta, expected, rtol=1e-12, atol=1e-12)


@each
@dtypes
def test_equals_reference_with_every_option(name, dtype, isa, n_threads):
    params, state = arrays(dtype), {}
    opt = make(name, params, weight_decay=0.02)
    _, settings, function, letters = CASES[name]
    expected = [p.astype("f8") for p in params]
    state = [[np.zeros_like(p) for _ in letters] for p in expected]
    for t in range(1, 4):
        grads = arrays(dtype, seed=t)
        opt.step(grads, lr=0.05 / t, grad_scale=0.5, max_norm=10.0)
        norm = 0.5 * np.sqrt(sum((g.astype("f8") ** 2).sum() for g in grads))
        assert norm > 10
        # summed in float64, some 50,000 terms in another order
        np.testing.assert_allclose(opt.grad_norm, norm, rtol=1e-12)
        for i, g in enumerate(reference.clipped([g.astype("f8") for g in grads], 0.5, 10.0)):
            count = (t,) if letters == "sr" else ()
            made = function(expected[i], g, *state[i], *count, lr=0.05 / t, **{**settings, "weight_decay": 0.02})
            expected[i], *state[i] = made if letters else (made,)
    # Three steps of some ten roundings each, on numbers up to 5 and moves of at most 0.05/(1 - a) = 0.25; where a
    # gradient nearly cancels its decay, the quotient g/sqrt(r) magnifies the rounding of g, so only its size bounds it.
    eps = np.finfo(dtype).eps
    for p, e in zip(opt.params, expected, strict=True):
        np.testing.assert_allclose(p, e, rtol=30 * eps, atol=100 * eps)
    kept = opt.state_dict()
    for k, letter in enumerate(letters):
        if letter in kept:
            flat = np.concatenate([s[k].ravel() for s in state])
            np.testing.assert_allclose(kept[letter], flat, rtol=100 * eps, atol=100 * eps)


def test_first_step_by_hand():
    theta = np.array([1.0, -2.0])
    optim.Adam([theta], lr=0.1, eps=0.0).step([np.array([1e-3, -5.0])])
    np.testing.assert_allclose(theta, [0.9, -1.9], rtol=1e-14)  # s^/sqrt(r^) = sign(g)
    theta = np.array([3.0])
    opt = optim.RMSProp([theta], lr=0.5, rho=0.75, momentum=0.5, eps=0.0)
    opt.step([np.array([4.0])])  # r = 4, v = -0.5 * 4/2 = -1, theta = 2, and theta + a v = 1.5
    assert theta[0] == 1.5
    with opt.solution():
        assert theta[0] == 2.0


def test_max_speedup_is_the_top_speed():
    theta, g = np.zeros(1), np.ones(1)
    opt = optim.Momentum([theta], lr=0.25, momentum=0.5)
    assert opt.max_speedup == 2.0
    for _ in range(100):
        before = theta.copy()
        opt.step([g])
    assert before - theta == 0.25 * opt.max_speedup


@pytest.mark.parametrize("kind", [optim.AdaGrad, optim.RMSProp, optim.Adam])
@dtypes
def test_nothing_divided_by_nothing_is_no_step(kind, dtype):
    theta = np.ones(20, dtype)
    opt = kind([theta], lr=0.1, eps=0.0)
    g = np.zeros(20, dtype)
    g[3] = 2
    opt.step([g])
    assert theta[3] != 1
    assert (np.delete(theta, 3) == 1).all()


def test_nan_and_infinity_stay_where_they_are():
    for name in CASES:
        theta = np.ones(50, "f4")
        g = np.full(50, 0.5, "f4")
        g[7], g[30] = np.nan, np.inf
        make(name, [theta]).step([g])
        assert np.isnan(theta[7])
        assert not np.isfinite(theta[30]) or name == "adagrad"
        assert np.isfinite(np.delete(theta, [7, 30])).all()


# ---- bits


@each
@dtypes
def test_same_bits_however_cut(name, dtype, isa, n_threads):
    """Threads, instruction sets, separate arrays, one flat array, views of it, unaligned starts: one result."""
    expected = expected_bits(name, dtype)
    for cut in ("separate", "flat", "views", "odd"):
        for a, b in zip(trained(name, dtype, cut), expected, strict=True):
            np.testing.assert_array_equal(bits(a), bits(b))


@functools.cache
def expected_bits(name, dtype):
    """One flat array, one thread, the plainest instructions."""
    before = fc.isa()
    fc.use_isa(fc.available_isas()[0])
    with fc.num_threads(1):
        made = trained(name, dtype, "flat")
    fc.use_isa(before)
    return made


def bits(a):
    return np.atleast_1d(a).view("u1")


def recut(parts, cut):
    """The same numbers as they are, as one array, as views that lie side by side, or cut at odd places."""
    if cut == "separate":
        return [a.copy() for a in parts]
    flat = np.concatenate([a.ravel() for a in parts])
    if cut == "flat":
        return [flat]
    if cut == "views":
        return np.split(flat, np.cumsum([a.size for a in parts])[:-1])
    shifted = np.empty(flat.size + 3, flat.dtype)[3:]
    shifted[:] = flat
    return np.split(shifted, [1, 17, 4095, 4100, 20_001, 20_002])


def trained(name, dtype, cut):
    params = recut(arrays(dtype), cut)
    opt = make(name, params, weight_decay=0.01)
    for t in range(3):
        opt.step(recut(arrays(dtype, seed=t + 5), cut), grad_scale=0.3, max_norm=1.0, lr=0.1)
    state = opt.state_dict()
    flat = np.concatenate([p.ravel() for p in params])
    return [flat, np.array(opt.grad_norm), *(state[k] for k in "srv" if k in state)]


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(any), shuffled=st.booleans(),
    name=st.sampled_from(sorted(CASES)), seed=st.integers(0, 99),
)
def test_any_list_of_sizes_equals_one_array(sizes, shuffled, name, seed):
    n = sum(sizes)
    rng = np.random.default_rng(seed)
    theta, g = rng.standard_normal((2, n))
    cuts, order = np.cumsum(sizes)[:-1], rng.permutation(len(sizes)) if shuffled else np.arange(len(sizes))
    params = np.split(theta.copy(), cuts)
    grads = np.split(g.copy(), cuts)
    make(name, [params[i] for i in order]).step([grads[i] for i in order], grad_scale=0.7)
    whole = theta.copy()
    make(name, [whole]).step([g], grad_scale=0.7)
    np.testing.assert_array_equal(np.concatenate(params), whole)


# ---- rates, clipping, zeroing


@each
def test_a_schedule_is_asked_with_the_update_count(name):
    a, b = [np.ones(9)], [np.ones(9)]
    asked = []

    def schedule(t):
        asked.append(t)
        return 0.1 / (1 + t)

    scheduled, by_hand = make(name, a, schedule), make(name, b, 0.1)
    for t in range(4):
        by_hand.lr = 0.1 / (1 + t)
        for opt in (scheduled, by_hand):
            opt.step([np.full(9, 0.3 + t)])
    assert asked == [0, 1, 2, 3]
    np.testing.assert_array_equal(a[0], b[0])
    assert scheduled.lr is schedule
    scheduled.step([np.ones(9)], lr=0.0)
    assert asked == [0, 1, 2, 3]
    assert scheduled.t == 5


def test_clipping_is_by_the_norm_of_all_gradients():
    params = [np.zeros(2), np.zeros((1, 2))]
    grads = [np.array([3.0, 0.0]), np.array([[0.0, 4.0]])]
    opt = optim.SGD(params, lr=1.0)
    opt.step(grads, max_norm=5.0)
    assert (opt.grad_norm, params[0][0], params[1][0, 1]) == (5.0, -3.0, -4.0)
    opt.step(grads, max_norm=2.5)
    assert (params[0][0], params[1][0, 1]) == (-4.5, -6.0)
    opt.step(grads, grad_scale=0.5, max_norm=2.5)
    assert (opt.grad_norm, params[0][0], params[1][0, 1]) == (2.5, -6.0, -8.0)
    opt.step(grads, max_norm=0.0)
    assert (params[0][0], params[1][0, 1]) == (-6.0, -8.0)
    opt.step(grads)
    assert opt.grad_norm is None


def test_the_norm_does_not_overflow():
    theta = np.zeros(2)
    opt = optim.SGD([theta], lr=1.0)
    opt.step([np.array([3e200, 4e200])], max_norm=1.0)
    np.testing.assert_allclose(opt.grad_norm, 5e200, rtol=1e-14)
    np.testing.assert_allclose(theta, [-0.6, -0.8], rtol=1e-14)


def test_clipping_an_infinite_gradient_follows_ieee():
    theta = np.ones(2)
    optim.SGD([theta], lr=1.0).step([np.array([np.inf, 1.0])], max_norm=1.0)
    assert np.isnan(theta[0])
    assert theta[1] == 1.0


@each
def test_gradients_are_left_alone_or_set_to_zero(name, isa, n_threads):
    one, two = arrays("f4"), arrays("f4")
    a, b = make(name, one), make(name, two)
    grads, kept, same = arrays("f4", 1), arrays("f4", 1), arrays("f4", 1)
    a.step(kept, max_norm=3.0)
    b.step(grads, max_norm=3.0, zero_grads=True)
    for p, q, g, k, s in zip(one, two, grads, kept, same, strict=True):
        np.testing.assert_array_equal(p, q)
        np.testing.assert_array_equal(k, s)
        assert not g.any()


def test_gradients_may_have_any_strides():
    theta, other = np.ones((30, 40)), np.ones((30, 40))
    g = np.random.default_rng(0).standard_normal((40, 30))
    for made, expected in ((g.T, g.T.copy()), (np.repeat(g.T, 2, axis=1)[:, ::2], g.T.copy())):
        optim.SGD([theta], 0.1).step([made], zero_grads=True)
        optim.SGD([other], 0.1).step([expected])
        np.testing.assert_array_equal(theta, other)
        assert not made.any()
        g = np.random.default_rng(1).standard_normal((40, 30))
    read_only = np.ones((30, 40))
    read_only.flags.writeable = False
    optim.SGD([theta], 0.1).step([read_only])
    np.testing.assert_array_equal(theta, other - 0.1)


def test_gradients_may_be_a_tuple_or_new_arrays_at_every_step():
    theta = [np.zeros(3), np.zeros(4)]
    opt = optim.SGD(tuple(theta), 1.0)
    for _ in range(20):
        opt.step((np.ones(3), np.ones(4)))
    assert (theta[0] == -20).all()
    assert (theta[1] == -20).all()


def test_canaries_around_params_and_gradients_live(isa, n_threads):
    rng = np.random.default_rng(0)
    for n in (1, 15, 16, 17, 4095, 4096, 4097, 40_000):
        for name in CASES:
            field, g_field = np.full((2, n + 64), np.nan, "f4")
            theta, g = field[32:-32], g_field[32:-32]
            theta[:], g[:] = rng.standard_normal((2, n))
            make(name, [theta]).step([g], max_norm=1.0, zero_grads=True)
            assert np.isfinite(theta).all()
            assert not g.any()
            for a in (field, g_field):
                assert np.isnan(a[:32]).all()
                assert np.isnan(a[-32:]).all()


# ---- denormals


@each
@dtypes
def test_no_denormals_are_made_and_the_callers_mode_is_kept(name, dtype, isa, n_threads):
    tiny = np.finfo(dtype).tiny
    params = [np.full(50_000, 0.5, dtype)]
    opt = make(name, params, 0.1)
    opt.step([np.full(50_000, tiny * 64, dtype)])
    for _ in range(40):
        opt.step([np.zeros(50_000, dtype)], lr=0.0)
    for letter in "srv":
        slot = opt.state_dict().get(letter, np.zeros(1, dtype))
        assert not ((slot != 0) & (np.abs(slot) < tiny)).any()
    assert (np.full(3, tiny, dtype) / 4 > 0).all()  # here, outside, there are denormals still


@pytest.mark.parametrize("kind", [optim.Momentum, optim.Nesterov, optim.RMSProp, optim.Adam])
def test_a_long_decay_ends_in_zeros(kind):
    """What decays reaches 0 itself, and does not stay among the slow numbers just above it."""
    theta = np.full(16, 1e-3, "f4")
    opt = kind([theta], 0.1)
    opt.step([theta.copy()])
    for _ in range(100_000 if kind is optim.Adam else 3000):
        opt.step([np.zeros(16, "f4")] if kind in (optim.Adam, optim.RMSProp) else [theta.copy()])
    state = opt.state_dict()
    assert not any(state[k].any() for k in "srv" if k in state)


# ---- Nesterov's two points


@ahead
@dtypes
def test_solution_shows_theta_and_gives_the_params_back(name, dtype, isa, n_threads):
    params = arrays(dtype)
    opt = make(name, params)
    for t in range(3):
        opt.step(arrays(dtype, t))
    before, a = everything(opt), opt.coefficients["momentum"]
    with opt.solution():
        v = np.split(before[1]["v"], np.cumsum([p.size for p in params])[:-1])
        for p, q, w in zip(params, before[0], v, strict=True):
            expected = q - np.dtype(dtype).type(a) * w.reshape(q.shape)
            np.testing.assert_array_equal(p, expected)
        with opt.solution():  # theta is what it shows, once
            np.testing.assert_array_equal(params[-1], expected)
        with pytest.raises(RuntimeError, match="solution"):
            opt.step(arrays(dtype))
        params[3][:] = 7
    assert unchanged(opt, before)
    opt.step(arrays(dtype, 9))
    with pytest.raises(KeyError), opt.solution():
        raise KeyError
    before = everything(opt)
    with opt.solution():
        pass
    assert unchanged(opt, before)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"nesterov", "rmsprop_nesterov"}))
def test_solution_changes_nothing_elsewhere(name):
    theta = np.ones(5)
    opt = make(name, [theta])
    opt.step([np.ones(5)])
    before = theta.copy()
    with opt.solution():
        np.testing.assert_array_equal(theta, before)
        opt.step([np.ones(5)])
    assert (theta != before).all()


# ---- state


@each
@dtypes
@pytest.mark.parametrize("way", ["dict", "files", "pickle", "deepcopy"])
def test_continues_bit_for_bit(name, dtype, way, tmp_path):
    params = arrays(dtype)
    opt = make(name, params, 0.1, weight_decay=0.01)
    opt.lr = 0.05
    for t in range(3):
        opt.step(arrays(dtype, t))
    again = make(name, [p.copy() for p in params], 0.1, weight_decay=0.01)
    if way == "dict":
        again.load_state_dict(opt.state_dict())
    elif way == "files":
        again.load_state_dict(through_files(opt.state_dict(), tmp_path))
    else:
        again = pickle.loads(pickle.dumps(opt)) if way == "pickle" else copy.deepcopy(opt)
    assert (again.t, again.lr) == (3, 0.05)
    for t in range(3, 6):
        opt.step(arrays(dtype, t))
        again.step(arrays(dtype, t))
    assert unchanged(again, everything(opt))


def through_files(state, folder):
    """Arrays through an .npz, plain numbers through JSON, as checkpoints keep them."""
    np.savez(folder / "state.npz", **{k: v for k, v in state.items() if isinstance(v, np.ndarray)})
    text = json.dumps({k: v for k, v in state.items() if not isinstance(v, np.ndarray)})
    with np.load(folder / "state.npz") as loaded:
        return json.loads(text) | dict(loaded)


def test_a_state_is_a_copy_and_may_come_from_one_npz(tmp_path):
    theta = np.ones(4)
    opt = optim.Momentum([theta], 0.1)
    opt.step([np.ones(4)])
    state = opt.state_dict()
    opt.step([np.ones(4)])
    assert state["t"] == 1
    assert not np.array_equal(state["v"], opt.state_dict()["v"])
    np.savez(tmp_path / "a.npz", **state)
    with np.load(tmp_path / "a.npz") as loaded:
        opt.load_state_dict(loaded)
    assert opt.t == 1
    np.testing.assert_array_equal(opt.state_dict()["v"], state["v"])


def test_a_schedule_is_no_part_of_a_state():
    opt = optim.SGD([np.ones(3)], ExponentialDecay(0.1, 0.1))
    assert "lr" not in opt.state_dict()
    opt.load_state_dict(optim.SGD([np.ones(3)], 0.5).state_dict())
    assert opt.lr == ExponentialDecay(0.1, 0.1)


@each
def test_a_state_that_does_not_fit_changes_nothing(name):
    opt = make(name, [np.ones((2, 3)), np.ones(4)])
    opt.step([np.ones((2, 3)), np.ones(4)])
    good, before = opt.state_dict(), everything(opt)
    other = optim.SGD if name != "sgd" else optim.Momentum
    wrong = [
        (other([np.ones((2, 3)), np.ones(4)], 0.1).state_dict(), ValueError),
        (make(name, [np.ones(4), np.ones((2, 3))]).state_dict(), ValueError),
        (make(name, [np.ones(10)]).state_dict(), ValueError),
        ({**good, "weight_decay": 0.5}, ValueError),
        ({**good, "t": -1}, ValueError),
        ({**good, "t": 1.5}, TypeError),
        ({**good, "lr": float("nan")}, ValueError),
        ({**good, "more": 1}, ValueError),
        ({k: v for k, v in good.items() if k != "t"}, ValueError),
        ({**good, "sizes": [6, 4]}, TypeError),
        ([], TypeError),
    ]
    slots = [k for k in good if k in "srv"]
    for k in slots:
        wrong += [
            ({**good, k: good[k].astype("f4")}, TypeError), ({**good, k: good[k][:-1]}, ValueError),
            ({**good, k: good[k].tolist()}, TypeError), ({key: good[key] for key in good if key != k}, ValueError),
        ]
    for state, error in wrong:
        with pytest.raises(error, match=r"load_state_dict: .*; expected .*, got "):
            opt.load_state_dict(state)
        assert unchanged(opt, before)


def test_float32_state_is_refused_by_float64():
    opt = optim.Adam([np.ones(4)])
    with pytest.raises(TypeError, match="s is float32 but params is float64"):
        opt.load_state_dict(optim.Adam([np.ones(4, "f4")]).state_dict())


# ---- hostile input

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {key: value})
          for kind in (optim.SGD, optim.Momentum, optim.Nesterov, optim.AdaGrad, optim.RMSProp, optim.Adam, optim.AdamW)
          for key in ("lr", "weight_decay") for value in (-1e-9, NAN, INF, "1", True, None, 1j)),
        *((kind, {"momentum": value}) for kind in (optim.Momentum, optim.Nesterov, optim.RMSProp)
          for value in (-0.1, 1.0, 1.5, NAN, "0.9")),
        *((optim.RMSProp, {"rho": value}) for value in (-0.1, 1.0, NAN)),
        *((kind, {"eps": value}) for kind in (optim.AdaGrad, optim.RMSProp, optim.Adam) for value in (-1e-8, NAN, INF)),
        *((kind, {"betas": value}) for kind in (optim.Adam, optim.AdamW)
          for value in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, NAN), (0.9,), 0.9, (0.9, "x"))),
        (optim.RMSProp, {"nesterov": 1}), (optim.RMSProp, {"nesterov": None}),
    ],
)
def test_settings_out_of_range(kind, settings):
    with pytest.raises((TypeError, ValueError), match=rf"^{kind.__name__}: .*; expected .*, got "):
        kind([np.ones(3)], **{"lr": 0.1, **settings})


buffer = np.zeros(20)
folded = np.lib.stride_tricks.as_strided(np.zeros(4), (4,), (0,))
fixed = np.zeros(4)
fixed.flags.writeable = False


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        (np.zeros(4), TypeError, "params must be a list of arrays"),
        (None, TypeError, "params must be a list of arrays"),
        ([], ValueError, "params is empty"),
        ([[1.0, 2.0]], TypeError, r"params\[0\] must be a NumPy array"),
        ([np.zeros(4, int)], TypeError, "wrong dtype"),
        ([np.zeros(4, ">f8")], TypeError, "other byte order"),
        ([np.zeros(4, "f2")], TypeError, "wrong dtype"),
        ([np.ma.zeros(4)], TypeError, "must be a NumPy array"),
        ([np.zeros(4), np.zeros(4, "f4")], TypeError, "one dtype"),
        ([fixed], ValueError, "read-only"),
        ([folded], ValueError, "share memory with one another"),
        ([np.zeros((4, 4)).T], ValueError, "C-contiguous"),
        ([np.zeros(8)[::2]], ValueError, "C-contiguous"),
        ([np.zeros(33, "u1")[1:].view("f8")], ValueError, "aligned"),
        ([buffer[:10], buffer[5:]], ValueError, r"params\[0\] and params\[1\] share memory"),
        ([buffer[5:], np.zeros(3), buffer[:6]], ValueError, r"params\[2\] and params\[0\] share memory"),
        ([buffer, buffer], ValueError, "share memory"),
    ],
)
def test_params_that_cannot_be_updated(params, error, text):
    with pytest.raises(error, match=text):
        optim.Adam(params)


def bad_steps():
    big = np.zeros(60)
    params = [big[:12].reshape(3, 4), big[20:25]]
    good = [np.ones((3, 4)), np.ones(5)]
    read_only = np.ones(5)
    read_only.flags.writeable = False

    def failing(t):
        raise ZeroDivisionError("the schedule's own")

    grads = [
        (good[0], TypeError), (None, TypeError), ("ab", TypeError),
        ([good[0]], ValueError), ([*good, good[1]], ValueError),
        ([good[0], None], TypeError), ([good[0], [1.0] * 5], TypeError), ([good[0], np.ma.ones(5)], TypeError),
        ([good[0], np.ones(5, "f4")], TypeError), ([good[0], np.ones(5, ">f8")], TypeError),
        ([good[0], np.ones(4)], ValueError), ([good[0], np.ones((5, 1))], ValueError),
        ([np.ones((4, 3)), good[1]], ValueError), ([np.ones(12), good[1]], ValueError),
        (params, ValueError), ([good[0], big[20:25]], ValueError), ([good[0], big[8:13]], ValueError),
        ([good[0], big[24:29]], ValueError), ([good[0], big[16:21]], ValueError),
        ([good[0], big[16:26:2]], ValueError), ([big[13:61:4].reshape(3, 4), good[1]], ValueError),
    ]
    options = [
        ({"lr": -1.0}, ValueError), ({"lr": NAN}, ValueError), ({"lr": "1"}, TypeError),
        ({"lr": lambda t: -1.0}, ValueError), ({"lr": lambda t: None}, TypeError), ({"lr": failing}, ZeroDivisionError),
        ({"grad_scale": NAN}, ValueError), ({"grad_scale": -1.0}, ValueError), ({"max_norm": -1.0}, ValueError),
        ({"max_norm": NAN}, ValueError), ({"max_norm": True}, TypeError), ({"zero_grads": 1}, TypeError),
    ]
    shared = np.ones(20)
    zeroed = [
        ([good[0], read_only], ValueError), ([shared[:12].reshape(3, 4), shared[11:16]], ValueError),
        ([shared[4:16].reshape(3, 4), shared[:5]], ValueError),
    ]
    yield from ((params, g, {}, error) for g, error in grads)
    yield from ((params, good, how, error) for how, error in options)
    yield from ((params, g, {"zero_grads": True}, error) for g, error in zeroed)


@pytest.mark.parametrize(("params", "grads", "how", "error"), list(bad_steps()))
@pytest.mark.parametrize("name", ["sgd", "rmsprop_nesterov", "adam"])
def test_a_step_that_raises_changes_nothing(name, params, grads, how, error):
    opt = make(name, params)
    opt.step([np.full((3, 4), 0.5), np.full(5, 0.5)])
    before, given_grads = everything(opt), copy.deepcopy(grads)
    form = r"^\w+\.step: .*; expected .*" if error is not ZeroDivisionError else "the schedule's own"
    with pytest.raises(error, match=form):
        opt.step(grads, **how)
    assert unchanged(opt, before)
    if isinstance(grads, list):
        for g, h in zip(grads, given_grads, strict=True):
            np.testing.assert_array_equal(np.asarray(g, dtype=object), np.asarray(h, dtype=object))
    opt.step([np.ones((3, 4)), np.ones(5)])
    assert opt.t == 2


def test_a_gradient_between_two_parameters_is_welcome():
    big = np.ones(40)
    opt = optim.SGD([big[:10], big[20:30]], 1.0)
    opt.step([big[10:20], big[30:]])
    assert not big[:10].any()
    opt.step([np.ones((20, 2))[:10, 0], np.stack([big[10:20], big[30:]], axis=1)[:, 1]])
    assert (big[20:30] == -1).all()


def test_a_parameter_changed_behind_our_back_is_noticed():
    theta = np.ones(8)
    opt = optim.SGD([theta], 1.0)
    theta.flags.writeable = False
    with pytest.raises(ValueError, match=r"params\[0\] was moved, resized or made read-only"):
        opt.step([np.ones(8)])
    theta.flags.writeable = True
    theta.shape = (2, 4)  # the same cells in the same places
    opt.step([np.ones((2, 4))])
    assert not theta.any()
    theta.resize((2, 2), refcheck=False)
    with pytest.raises(ValueError, match=r"params\[0\] was moved, resized or made read-only"):
        opt.step([np.ones((2, 2))])


def test_memory_maps_are_arrays(tmp_path):
    theta = np.memmap(tmp_path / "theta", "f4", "w+", shape=(6,))
    g = np.memmap(tmp_path / "g", "f4", "w+", shape=(6,))
    g[:] = 2
    opt = optim.SGD([theta], 1.0)
    opt.step([g])
    opt.step([g], zero_grads=True)
    assert (theta == -4).all()
    assert not g.any()


def test_two_threads_may_step_at_once():
    alone, together = [np.ones(100_000, "f4") for _ in range(3)], [np.ones(100_000, "f4") for _ in range(3)]
    g = np.random.default_rng(0).standard_normal(100_000).astype("f4")

    def work(theta):
        opt = optim.Adam([theta])
        for _ in range(20):
            opt.step([g], max_norm=1.0)

    threads = [threading.Thread(target=work, args=(theta,)) for theta in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for theta in alone:
        work(theta)
        np.testing.assert_array_equal(theta, together[0])
    for theta in together:
        np.testing.assert_array_equal(theta, together[0])


def test_repr_names_the_settings():
    assert repr(optim.Momentum([np.ones(3)], 0.5)) == (
        "Momentum(1 arrays of 3 parameters, lr=0.5, momentum=0.9, weight_decay=0.0; t=0)"
    )


@pytest.mark.parametrize("size", [3, 1000, 100_000])
def test_state_goes_through_its_pages_as_the_largest_parameter_does(size):
    """Else loads wait for stores of other arrays, whose addresses agree in the low 12 bits."""
    for begin in (0, 1, 5):
        p = np.zeros(size + begin, np.float32)[begin:]
        params = [np.zeros(0, np.float32), np.zeros(2, np.float32), p, np.zeros((1, 2), np.float32)]
        opt = optim.Adam(params, lr=0.1)
        opt.step([np.ones_like(a) for a in params])
        assert all((slot.ctypes.data + 4 * 2 - p.ctypes.data) % 4096 == 0 for slot in opt._state)
        assert all(opt.state_dict()[name].shape == (size + 4,) for name in ("s", "r"))
