"""Schedules: the lecture's formulas, warm-up, chains, and what is refused."""

import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv.schedules import Chain, CosineDecay, ExponentialDecay, InverseTimeDecay, Schedule, StepDecay, WarmUp

ALL = [
    StepDecay(0.1, factor=0.5, every=7), ExponentialDecay(0.1, k=0.03), InverseTimeDecay(0.1, k=0.2),
    CosineDecay(0.1, steps=50, final=0.01), WarmUp(StepDecay(0.1, every=9), steps=5), WarmUp(0.2, steps=3),
    Chain((0.1, 5), (ExponentialDecay(0.1, k=0.1), 10), 0.001),
]


@pytest.mark.parametrize("t", [0, 1, 6, 7, 8, 50, 1000])
def test_the_formulas(t):
    # the same operations in another order: two roundings of 1.1e-16 either way
    assert StepDecay(0.3, factor=0.1, every=7)(t) == pytest.approx(0.3 * 0.1 ** math.floor(t / 7), rel=1e-15)
    assert ExponentialDecay(0.3, k=0.01)(t) == pytest.approx(0.3 / math.exp(0.01 * t), rel=1e-15)
    assert InverseTimeDecay(0.3, k=0.01)(t) == pytest.approx(0.3 / (1 + 0.01 * t), rel=1e-15)


def test_the_defaults_are_the_slides():
    assert [StepDecay(0.8, every=2)(t) for t in range(6)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]


def test_cosine_goes_from_end_to_end():
    schedule = CosineDecay(0.5, steps=10, final=0.1)
    assert schedule(0) == 0.5
    assert schedule(5) == pytest.approx(0.3, rel=1e-15)
    assert schedule(10) == schedule(11) == schedule(10_000) == 0.1


def test_warm_up_reaches_what_follows_where_it_begins():
    schedule = WarmUp(lambda t: 1 / (1 + t), steps=4)
    assert [schedule(t) for t in range(7)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1 / 2, 1 / 3]
    assert [WarmUp(0.2, steps=1)(t) for t in range(3)] == [0.2, 0.2, 0.2]


def test_a_chain_gives_each_part_its_own_time():
    schedule = Chain((0.5, 2), (InverseTimeDecay(1.0, k=1.0), 3), (WarmUp(0.4, steps=2), 2), lambda t: t)
    assert [schedule(t) for t in range(10)] == [0.5, 0.5, 1.0, 1 / 2, 1 / 3, 0.2, 0.4, 0, 1, 2]
    assert Chain(0.1)(99) == 0.1


@given(t=st.integers(0, 10**9), schedule=st.sampled_from(ALL))
def test_every_rate_is_finite_and_not_negative(t, schedule):
    rate = schedule(t)
    assert isinstance(rate, float)
    assert 0 <= rate <= 0.2


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_schedule_is_a_value(schedule):
    names = {c.__name__: c for c in (Chain, CosineDecay, ExponentialDecay, InverseTimeDecay, StepDecay, WarmUp)}
    for again in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), eval(repr(schedule), names)):
        assert again == schedule
        assert hash(again) == hash(schedule)
        assert [again(t) for t in range(60)] == [schedule(t) for t in range(60)]
    with pytest.raises(AttributeError):
        schedule.lr = 1.0


@pytest.mark.parametrize("schedule", ALL, ids=repr)
@pytest.mark.parametrize(("t", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)])
def test_only_counts_are_times(schedule, t, error):
    with pytest.raises(error, match=r"t (is out of range|must be an int); expected .*, got "):
        schedule(t)


NAN, INF = float("nan"), float("inf")
RATES = ((-0.1, ValueError), (NAN, ValueError), (INF, ValueError), ("0.1", TypeError), (None, TypeError))


@pytest.mark.parametrize(
    ("kind", "arguments", "error"),
    [
        *((StepDecay, {"lr": lr}, error) for lr, error in RATES),
        *((ExponentialDecay, {"lr": lr, "k": 0.1}, error) for lr, error in RATES),
        *((InverseTimeDecay, {"lr": lr, "k": 0.1}, error) for lr, error in RATES),
        *((CosineDecay, {"lr": lr, "steps": 5}, error) for lr, error in RATES),
        *((ExponentialDecay, {"lr": 0.1, "k": k}, error) for k, error in RATES),
        *((InverseTimeDecay, {"lr": 0.1, "k": k}, error) for k, error in RATES),
        *((StepDecay, {"lr": 0.1, "factor": f}, ValueError) for f in (-0.5, 1.5, NAN)),
        (StepDecay, {"lr": 0.1, "every": 0}, ValueError), (StepDecay, {"lr": 0.1, "every": 1.5}, TypeError),
        (StepDecay, {"lr": 0.1, "every": True}, TypeError), (CosineDecay, {"lr": 0.1, "steps": 0}, ValueError),
        (CosineDecay, {"lr": 0.1, "steps": 5, "final": -1}, ValueError),
        (WarmUp, {"after": -0.1, "steps": 3}, ValueError), (WarmUp, {"after": "x", "steps": 3}, TypeError),
        (WarmUp, {"after": 0.1, "steps": 0}, ValueError),
    ],
)
def test_settings_out_of_range(kind, arguments, error):
    with pytest.raises(error, match=rf"^{kind.__name__}: .*; expected .*, got "):
        kind(**arguments)


@pytest.mark.parametrize(
    ("parts", "error"),
    [((), ValueError), ((0.1, 0.2), TypeError), (((0.1, 0), 0.2), ValueError), (((0.1, 2, 3), 0.2), TypeError),
     (((-0.1, 2), 0.2), ValueError), (((0.1, 2),), TypeError), ((("x", 2), 0.2), TypeError)],
)
def test_chains_that_make_no_sense(parts, error):
    with pytest.raises(error, match=r"^Chain: .*; expected "):
        Chain(*parts)


@pytest.mark.parametrize("bad", [-1.0, NAN, "x", None])
def test_what_a_users_function_returns_is_checked(bad):
    with pytest.raises((TypeError, ValueError), match=r"lr\(2\)"):
        Chain((0.1, 3), lambda t: bad)(5)
    with pytest.raises((TypeError, ValueError), match=r"lr\(0\)"):
        WarmUp(lambda t: bad, steps=3)(1)


def test_a_new_schedule_needs_only_its_formula():
    class Half(Schedule):
        def at(self, t):
            return 0.5**t

    assert Half()(3) == 0.125
    with pytest.raises(TypeError):
        Half()("3")
    with pytest.raises(TypeError):
        Schedule()
