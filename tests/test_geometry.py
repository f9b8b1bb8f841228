"""The lecture's arithmetic, number by number, and against counting the places of a window one by one."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv.geometry import ConvGeometry, GeometryError, PoolGeometry, padding, pair, transposed, window


def numbers(g):
    return g.W2, g.H2, g.D2, g.n_weights, g.n_biases, g.n_params


# The lecture.


def test_ten_filters_of_5x5_have_760_parameters():
    g = ConvGeometry(W1=32, H1=32, D1=3, K=10, F=5, S=1, P=2)
    assert numbers(g) == (32, 32, 10, 750, 10, 760)
    assert str(g) == (
        "32x32x3 -> 32x32x10: 10 filters of 5x5x3, S=1, P=2\n"
        "  (32 - 5 + 2*2)/1 + 1 = 32\n"
        "  750 weights + 10 biases = 760 parameters"
    )


def test_six_filters_of_5x5_shrink_32_to_28_and_ten_more_to_24():
    first = ConvGeometry(W1=32, H1=32, D1=3, K=6, F=5)
    assert numbers(first) == (28, 28, 6, 450, 6, 456)
    second = ConvGeometry(W1=first.W2, H1=first.H2, D1=first.D2, K=10, F=5)
    assert numbers(second) == (24, 24, 10, 1500, 10, 1510)


@pytest.mark.parametrize(("S", "W2"), [(1, 5), (2, 3)])
def test_7x7_under_3x3(S, W2):
    assert numbers(ConvGeometry(W1=7, H1=7, D1=1, K=1, F=3, S=S)) == (W2, W2, 1, 9, 1, 10)


def test_7x7_under_3x3_at_stride_3_does_not_fit():
    with pytest.raises(GeometryError) as error:
        ConvGeometry(W1=7, H1=7, D1=1, K=1, F=3, S=3)
    assert isinstance(error.value, ValueError)
    assert str(error.value) == (
        "ConvGeometry: width doesn't fit, (7 - 3 + 2*0)/3 + 1 = 2.33; "
        'expected a whole number, or fit="floor" to drop the last partial window'
    )


def test_floor_drops_the_last_partial_window_and_says_so():
    g = ConvGeometry(W1=7, H1=7, D1=1, K=1, F=3, S=3, fit="floor")
    assert (g.W2, g.H2) == (2, 2)
    assert "(7 - 3 + 2*0)/3 + 1 = 2.33, floored to 2" in str(g)


@pytest.mark.parametrize(("F", "P"), [(1, 0), (3, 1), (5, 2), (7, 3)])
def test_same_padding_is_half_of_F_minus_1_and_keeps_the_size(F, P):
    g = ConvGeometry(W1=32, H1=20, D1=3, K=4, F=F, P="same")
    assert (g.W2, g.H2) == (32, 20)
    assert g.P == P
    assert g.padding == ((P, P), (P, P))
    assert g == ConvGeometry(W1=32, H1=20, D1=3, K=4, F=F, P=P)


def test_1x1_convolution():
    assert numbers(ConvGeometry(W1=56, H1=56, D1=64, K=32, F=1)) == (56, 56, 32, 2048, 32, 2080)


def test_vgg16_has_the_published_number_of_parameters():
    size, depth, total = 224, 3, 0
    for block in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for K in block:
            g = ConvGeometry(size, size, depth, K, 3, P=1)
            size, depth, total = g.W2, g.D2, total + g.n_params
        size = PoolGeometry(size, size, depth, 2).W2
    assert (size, depth) == (7, 512)
    assert total + (7 * 7 * 512 + 1) * 4096 + 4097 * 4096 + 4097 * 1000 == 138_357_544


# Beyond the lecture.


def test_flops_and_bytes():
    g = ConvGeometry(W1=32, H1=30, D1=4, K=10, F=(5, 3), P=(2, 1), groups=2)
    assert g.n_weights == 5 * 3 * 2 * 10
    assert g.flops == 2 * 32 * 30 * 10 * 5 * 3 * 2
    assert g.bytes() == 4 * (32 * 30 * 4 + 300 + 10 + 32 * 30 * 10)
    assert g.bytes(8) == 2 * g.bytes(4)


def test_without_bias():
    g = ConvGeometry(8, 8, 3, 4, 3, bias=False)
    assert (g.n_weights, g.n_biases, g.n_params) == (108, 0, 108)
    assert g.flops == ConvGeometry(8, 8, 3, 4, 3).flops


def test_width_and_height_have_their_own_sums():
    g = ConvGeometry(W1=10, H1=7, D1=4, K=6, F=(3, 2), S=(1, 2), P=((1, 0), (2, 2)), dilation=(2, 1), groups=2)
    assert (g.W2, g.H2) == (7, 4)
    assert str(g) == (
        "10x7x4 -> 7x4x6: 6 filters of 2x3x2 in 2 groups, S=(1, 2), P=((1, 0), (2, 2)), dilation=(2, 1)\n"
        "  W2: (10 - 2 + 2*2)/2 + 1 = 7\n"
        "  H2: (7 - (2*(3 - 1) + 1) + 1 + 0)/1 + 1 = 4\n"
        "  72 weights + 6 biases = 78 parameters"
    )


def test_pooling():
    g = PoolGeometry(W1=7, H1=5, D1=3, F=3, S=2, P=1)
    assert numbers(g) == (4, 3, 3, 0, 0, 0)
    assert g.flops == 4 * 3 * 3 * 9
    assert g.bytes() == 4 * 3 * (7 * 5 + 4 * 3)
    assert str(g) == (
        "7x5x3 -> 4x3x3: windows of 3x3, S=2, P=1\n"
        "  W2: (7 - 3 + 2*1)/2 + 1 = 4\n"
        "  H2: (5 - 3 + 2*1)/2 + 1 = 3"
    )
    assert PoolGeometry(8, 8, 3, 2).S == 2
    with pytest.raises(GeometryError, match=r"^PoolGeometry: width doesn't fit, \(7 - 2 \+ 2\*0\)/2 \+ 1 = 3.50; "):
        PoolGeometry(7, 7, 3, 2)


def test_equal_geometries_compare_equal_hash_alike_and_pickle():
    a = ConvGeometry(32, 32, 3, 10, (5, 5), S=[1, 1], P=((2, 2), (2, 2)), dilation=(1, 1))
    b = ConvGeometry(np.int64(32), 32, 3, np.uint8(10), 5, P="same")
    assert a == b
    assert hash(a) == hash(b)
    assert pickle.loads(pickle.dumps(a)) == a
    assert a != ConvGeometry(32, 32, 3, 10, 5, P=1)
    assert {type(n) for n in (b.W1, b.K, b.F, b.S, b.P, b.n_params, b.flops, b.bytes())} == {int}
    with pytest.raises(AttributeError):
        a.K = 11


@pytest.mark.parametrize(
    ("P", "pads"),
    [
        (0, ((0, 0), (0, 0))),
        (3, ((3, 3), (3, 3))),
        (np.int32(3), ((3, 3), (3, 3))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
        (((1, 2), 3), ((1, 2), (3, 3))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 2), (4, 4))),
    ],
)
def test_padding(P, pads):
    # "same" under a window of (4, 5) with dilation (1, 2): 3 and 8 cells in all, the odd one at the bottom.
    assert padding("f", P, (4, 5), (1, 2)) == pads


@pytest.mark.parametrize("value", [2, np.int16(2), (2, 2), [2, np.uint8(2)]])
def test_pair(value):
    both = pair("f", "S", value)
    assert both == (2, 2)
    assert {type(n) for n in both} == {int}


@pytest.mark.parametrize("F", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_keeps_the_size_with_any_window(F, dilation):
    assert window("f", 9, 17, F, 1, "same", dilation).size == (9, 17)


sides = st.tuples(st.integers(1, 30), st.integers(1, 7), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9),
                  st.integers(1, 4))


@given(sides, sides)
def test_size_is_the_number_of_places_counted_one_by_one(rows, columns):
    (H1, FH, SH, top, bottom, DH), (W1, FW, SW, left, right, DW) = rows, columns

    def count(n, F, S, before, after, dilation):
        return sum(start + dilation * (F - 1) < n + before + after for start in range(0, n + before + after, S))

    H2, W2 = count(*rows), count(*columns)
    arguments = {"F": (FH, FW), "S": (SH, SW), "P": ((top, bottom), (left, right)), "dilation": (DH, DW)}
    if H2 and W2:
        assert window("f", H1, W1, **arguments).size == (H2, W2)
        g = ConvGeometry(W1, H1, 1, 1, fit="floor", **arguments)
        assert (g.H2, g.W2) == (H2, W2)
        fits = not (H1 + top + bottom - DH * (FH - 1) - 1) % SH and not (W1 + left + right - DW * (FW - 1) - 1) % SW
        if fits:
            assert ConvGeometry(W1, H1, 1, 1, **arguments).window == g.window
        else:
            with pytest.raises(GeometryError, match="doesn't fit"):
                ConvGeometry(W1, H1, 1, 1, **arguments)
    else:
        with pytest.raises(GeometryError, match="doesn't fit"):
            window("f", H1, W1, **arguments)


@given(sides, st.data())
def test_transposed_undoes_the_size_for_every_output_padding(side, data):
    n, F, S, before, after, dilation = side
    P = ((before, after), (before, after))
    extra = data.draw(st.integers(0, S - 1))
    size = (n - 1) * S - before - after + dilation * (F - 1) + extra + 1
    if size < 1:
        with pytest.raises(GeometryError, match="leaves nothing; expected an output of at least 1 x 1"):
            transposed("f", n, n, F, S, P, extra, dilation)
    else:
        w = transposed("f", n, n, F, S, P, extra, dilation)
        assert w.size == (size, size)
        assert window("f", size, size, F, S, P, dilation) == w._replace(size=(n, n))


def test_output_padding_stays_below_the_stride():
    with pytest.raises(GeometryError, match=r"fills a whole step; expected less than the stride \(2, 2\), got 2$"):
        transposed("f", 3, 3, 3, 2, 0, 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"F": 8}, "height doesn't fit, (7 - 8 + 2*0)/1 + 1 = 0; expected a window no larger than the padded picture"),
        ({"F": (3, 10), "S": 2}, "width doesn't fit, (7 - 10 + 2*0)/2 + 1 = -0.50; "),
        ({"F": (3, 2), "S": 4, "P": ((0, 0), (0, 0))}, "width doesn't fit, (7 - 2 + 2*0)/4 + 1 = 2.25; "),
        ({"S": (3, 1)}, "height doesn't fit, (7 - 3 + 2*0)/3 + 1 = 2.33; "),
        ({"W1": 1002, "F": 1, "S": (1, 1000)}, "width doesn't fit, (1002 - 1 + 2*0)/1000 + 1 = 2.001; "),
        ({"groups": 2}, "groups=2 divides not both D1=3 and K=4; expected a divisor of 1, got 2"),
        ({"groups": 3}, "groups=3 divides not both D1=3 and K=4; expected a divisor of 1, got 3"),
    ],
)
def test_what_the_arithmetic_forbids(change, text):
    with pytest.raises(GeometryError) as error:
        ConvGeometry(**{"W1": 7, "H1": 7, "D1": 3, "K": 4, "F": 3} | change)
    assert str(error.value).startswith(f"ConvGeometry: {text}")


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in ("W1", "H1", "D1", "K", "F", "S", "dilation", "groups") for v in (0, -1)]
    + [("P", -1), ("P", (0, -1)), ("P", ((0, 0), (0, -1))), ("P", "full"), ("P", (1, 2, 3)), ("F", (3,)), ("F", 2**31),
       ("S", (1, 2**40)), ("fit", "round")],
)
def test_values_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"^ConvGeometry: {name} (is|has) .*; expected .*, got ") as error:
        ConvGeometry(**{"W1": 7, "H1": 7, "D1": 3, "K": 4, "F": 3} | {name: value})
    assert not isinstance(error.value, GeometryError)


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n in ("W1", "H1", "D1", "K", "F", "S", "P", "dilation", "groups") for v in (True, 1.0, None)]
    + [("K", np.array(1)), ("F", "3"), ("F", (3, True)), ("S", np.array([1, 1])), ("P", ((1, 1.0), (1, 1))),
       ("fit", None), ("bias", 1)],
)
def test_types(name, value):
    with pytest.raises(TypeError, match=rf"^ConvGeometry: {name} .*; expected .*, got "):
        ConvGeometry(**{"W1": 7, "H1": 7, "D1": 3, "K": 4, "F": 3} | {name: value})


@pytest.mark.parametrize(("H1", "W1"), [(0, 5), (5, 0)])
def test_an_empty_picture_is_refused_even_with_padding(H1, W1):
    with pytest.raises(GeometryError, match=r"^f: the picture is empty; expected at least 1 x 1 pixels, got "):
        window("f", H1, W1, 1, 1, 3)
    with pytest.raises(GeometryError, match=r"^f: the picture is empty; "):
        transposed("f", H1, W1, 3)


def test_large_numbers_do_not_wrap():
    g = ConvGeometry(2**40, 2**40, 2**20, 2**20, 3, P=1)
    assert g.flops == 2 * 9 * 2**120
    assert math.log2(g.bytes()) > 100
