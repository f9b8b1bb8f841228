"""One named list of convolution problems that the tests and the benchmarks share.

`PROBLEMS` are small enough for every test to run all of them: each line is one feature or one size at which a register
tile, a vector or a Winograd tile has an edge. `BENCH` are layers of real networks at their real size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.geometry import ConvGeometry, Window, window


@dataclass(frozen=True)
class Problem:
    """A convolution of N pictures; F, S, P and dilation in any form the public functions take."""

    name: str
    N: int
    H1: int
    W1: int
    D1: int
    K: int
    F: Any = 3
    S: Any = 1
    P: Any = 0
    dilation: Any = 1
    groups: int = 1
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def how(self) -> dict[str, Any]:
        """Keyword arguments of the public functions, but for the layout."""
        return {"S": self.S, "P": self.P, "dilation": self.dilation, "groups": self.groups}

    @property
    def window(self) -> Window:
        """The window as it lies over the picture, normalised."""
        return window(self.name, self.H1, self.W1, self.F, self.S, self.P, self.dilation)

    @property
    def geometry(self) -> ConvGeometry:
        """The lecture's arithmetic for it, floored."""
        return ConvGeometry(
            self.W1, self.H1, self.D1, self.K, self.F, self.S, self.P, self.dilation, self.groups, fit="floor"
        )

    @property
    def flops(self) -> int:
        """Of the whole batch, forward or either gradient."""
        return self.N * self.geometry.flops

    def x_shape(self, layout: str = "NHWC") -> tuple[int, ...]:
        return volume(self.N, self.H1, self.W1, self.D1, layout)

    def y_shape(self, layout: str = "NHWC") -> tuple[int, ...]:
        return volume(self.N, *self.window.size, self.K, layout)

    def w_shape(self, layout: str = "NHWC") -> tuple[int, ...]:
        F, depth = self.window.F, self.D1 // self.groups
        return (*F, depth, self.K) if layout == "NHWC" else (self.K, depth, *F)

    def arrays(self, layout: str = "NHWC", dtype: Any = np.float32, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Random x, w, b and dy, the same numbers for one seed."""
        rng = np.random.default_rng(seed)
        shapes = self.x_shape(layout), self.w_shape(layout), (self.K,), self.y_shape(layout)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def volume(N: int, H: int, W: int, D: int, layout: str) -> tuple[int, int, int, int]:
    return (N, H, W, D) if layout == "NHWC" else (N, D, H, W)


LECTURE = [
    Problem("lecture ten 5x5 filters", 2, 32, 32, 3, 10, 5, P=2, tags=("lecture",)),
    Problem("lecture six 5x5 filters", 2, 32, 32, 3, 6, 5, tags=("lecture",)),
    Problem("lecture second layer 28 to 24", 1, 28, 28, 6, 10, 5, tags=("lecture",)),
    Problem("lecture 7x7 stride 1", 1, 7, 7, 1, 1, 3, tags=("lecture",)),
    Problem("lecture 7x7 stride 2", 1, 7, 7, 1, 1, 3, S=2, tags=("lecture", "strided")),
    Problem("lecture 7x7 stride 3 floored", 1, 7, 7, 1, 1, 3, S=3, tags=("lecture", "strided")),
    Problem("lecture 1x1 shrunk", 1, 14, 14, 64, 32, 1, tags=("lecture", "1x1")),
]
NETWORKS = [
    Problem("mnist conv1", 3, 28, 28, 1, 8, 5, P=2, tags=("first",)),
    Problem("mnist conv2", 3, 14, 14, 8, 16, 5, tags=("5x5",)),
    Problem("segnet 7x7 shrunk", 2, 13, 15, 18, 20, 7, P=3, tags=("7x7",)),
    Problem("7x7 over a small picture", 1, 3, 5, 4, 7, 7, P=3, tags=("7x7",)),
    Problem("cifar conv1", 2, 32, 32, 3, 32, 3, P=1, tags=("first",)),
    Problem("cifar conv2", 2, 16, 16, 32, 64, 3, P=1, tags=("3x3",)),
    Problem("vgg conv1_1 shrunk", 1, 30, 28, 3, 64, 3, P=1, tags=("first",)),
    Problem("vgg conv2_1 shrunk", 1, 14, 14, 64, 96, 3, P=1, tags=("3x3",)),
    Problem("vgg conv5_1 shrunk", 2, 7, 7, 128, 128, 3, P=1, tags=("3x3",)),
    Problem("alexnet 11x11 stride 4", 1, 47, 47, 3, 24, 11, S=4, P=2, tags=("first", "strided")),
    Problem("atari 8x8 stride 4", 2, 36, 44, 4, 16, 8, S=4, tags=("strided",)),
    Problem("resnet stem 7x7 stride 2", 1, 33, 33, 3, 16, 7, S=2, P=3, tags=("first", "strided")),
    Problem("resnet 3x3 stride 2", 2, 14, 14, 32, 32, 3, S=2, P=1, tags=("strided",)),
    Problem("resnet 1x1 stride 2", 2, 14, 14, 32, 48, 1, S=2, tags=("1x1", "strided")),
    Problem("inception 1x7", 1, 12, 17, 20, 24, (1, 7), P=(0, 3)),
    Problem("inception 7x1", 1, 17, 12, 20, 24, (7, 1), P=(3, 0)),
    Problem("1x1 of few channels", 3, 13, 11, 3, 37, 1, tags=("1x1",)),
    Problem("1x1 of few filters", 2, 12, 14, 19, 2, 1, tags=("1x1",)),
    Problem("1x1 of few channels a group", 2, 11, 13, 12, 9, 1, groups=3, tags=("1x1", "grouped")),
    Problem("mobilenet depthwise", 2, 14, 14, 32, 32, 3, P=1, groups=32, tags=("depthwise",)),
    Problem("mobilenet depthwise stride 2", 2, 15, 14, 33, 33, 3, S=2, P=1, groups=33, tags=("depthwise", "strided")),
    Problem("efficientnet depthwise 5x5", 2, 14, 15, 20, 20, 5, P=2, groups=20, tags=("depthwise", "5x5")),
    Problem("depthwise 4x4 stride 2", 1, 17, 38, 18, 18, 4, S=2, P=1, groups=18, tags=("depthwise", "strided", "even")),
    Problem("depthwise multiplier 2", 1, 9, 9, 17, 34, 3, P=1, groups=17, tags=("depthwise", "multiplier")),
    Problem("depthwise multiplier 3 of 5x5", 1, 10, 11, 8, 24, 5, P=2, groups=8, tags=("depthwise", "multiplier")),
    Problem("depthwise 1x1", 2, 5, 6, 7, 14, 1, groups=7, tags=("depthwise", "1x1")),
    Problem("depthwise 1x1 stride 3", 2, 7, 10, 5, 5, 1, S=3, groups=5, tags=("depthwise", "1x1", "strided")),
    Problem("depthwise dilated", 1, 13, 12, 16, 16, 3, P=2, dilation=2, groups=16, tags=("depthwise", "dilated")),
    Problem("resnext grouped", 1, 9, 8, 32, 64, 3, P=1, groups=4, tags=("grouped",)),
    Problem("many groups of a vector and more", 2, 9, 8, 187, 121, 3, S=2, P=1, groups=11, tags=("grouped", "strided")),
    Problem("grouped 1x1", 2, 6, 5, 18, 12, 1, groups=3, tags=("grouped", "1x1")),
    Problem("grouped strided dilated", 2, 11, 13, 10, 15, 3, S=2, P=2, dilation=2, groups=5,
            tags=("grouped", "strided", "dilated")),
    Problem("patches of a vision transformer", 2, 8, 12, 3, 10, 4, S=4, tags=("strided",)),
    Problem("patches of long rows", 2, 33, 48, 3, 10, 16, S=16, tags=("strided",)),
    Problem("one channel, one filter", 3, 14, 33, 1, 1, 5, P=((2, 0), (1, 4))),
    Problem("one channel, one filter, strided, dilated", 2, 15, 23, 1, 1, (3, 2), S=(2, 3), P=2, dilation=(1, 3),
            tags=("strided", "dilated")),
    Problem("dilated 2", 1, 13, 14, 16, 16, 3, P=2, dilation=2, tags=("dilated",)),
    Problem("dilated (3, 2)", 1, 13, 14, 5, 9, (3, 4), P=(3, 2), dilation=(3, 2), tags=("dilated",)),
]
ODD = [
    Problem("no pictures", 0, 8, 8, 3, 4, 3, P=1, tags=("empty",)),
    Problem("no pictures 1x1", 0, 4, 4, 16, 32, 1, tags=("empty", "1x1")),
    Problem("one cell", 1, 1, 1, 1, 1, 1),
    Problem("one pixel under 3x3", 2, 1, 1, 16, 32, 3, P=1),
    Problem("window as large as the picture", 2, 5, 6, 4, 7, (5, 6)),
    Problem("one row", 1, 1, 37, 4, 5, (1, 3), P=(0, 1)),
    Problem("one column", 1, 37, 1, 4, 5, (3, 1), P=(1, 0)),
    Problem("row under 3x3", 1, 1, 20, 17, 33, 3, P=1),
    Problem("even kernel 2x2 same", 2, 7, 6, 5, 6, 2, P="same", tags=("even",)),
    Problem("even kernel 4x4", 1, 9, 10, 3, 8, 4, S=2, P=1, tags=("even", "strided")),
    Problem("even kernel (2, 5)", 1, 8, 9, 6, 4, (2, 5), P="same", tags=("even",)),
    Problem("asymmetric padding", 2, 9, 8, 5, 7, 3, P=((0, 2), (3, 1)), tags=("asymmetric",)),
    Problem("asymmetric padding 3x3 wide", 1, 12, 13, 16, 32, 3, P=((1, 0), (0, 1)), tags=("asymmetric",)),
    Problem("asymmetric padding stride 3", 1, 10, 11, 4, 6, (3, 2), S=(3, 2), P=((2, 0), (1, 4)),
            tags=("asymmetric", "strided")),
    Problem("padding larger than the window", 1, 4, 5, 3, 5, 2, P=((5, 4), (3, 6)), tags=("wide padding",)),
    Problem("padding of a 1x1", 2, 4, 5, 8, 16, 1, P=2, tags=("1x1", "wide padding")),
    Problem("padding of a 1x1 stride 3", 1, 7, 5, 8, 5, 1, S=3, P=4, tags=("1x1", "wide padding", "strided")),
    Problem("padding larger than 3x3", 1, 5, 4, 16, 32, 3, P=5, tags=("wide padding",)),
    Problem("windows side by side in a row", 2, 9, 8, 5, 7, (3, 2), S=2, P=((1, 0), (0, 0)), tags=("strided",)),
    Problem("stride larger than the window", 2, 11, 13, 4, 6, 2, S=(4, 3), tags=("strided",)),
    Problem("stride (1, 2)", 1, 9, 12, 6, 9, 3, S=(1, 2), P=1, tags=("strided",)),
    Problem("stride larger than the picture", 1, 3, 4, 2, 3, 3, S=7, tags=("strided",)),
    Problem("long rows", 2, 4, 34, 3, 15, (2, 3), P=((1, 0), (2, 1))),
    Problem("long rows, stride (2, 4)", 1, 7, 75, 2, 15, (3, 11), S=(2, 4), P=((1, 1), (3, 0)), tags=("strided",)),
    Problem("long rows, stride 3, dilated", 2, 9, 61, 4, 6, (3, 5), S=(2, 3), P=(1, 2), dilation=(1, 2), groups=2,
            tags=("strided", "dilated", "grouped")),
    Problem("last step dropped", 1, 10, 12, 4, 6, 3, S=4, P=1, tags=("strided",)),
]
CHANNEL_SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65)
PIXEL_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 23, 24, 25, 27, 28, 29)
EDGES = [
    *(Problem(f"edge K={n}", 1, 5, 7, 4, n, P=1, tags=("edge",)) for n in CHANNEL_SIZES),
    *(Problem(f"edge D1={n}", 1, 5, 7, n, 6, P=1, tags=("edge",)) for n in CHANNEL_SIZES),
    *(Problem(f"edge 1x1 D1={n} K={65 - n or 1}", 1, 3, 5, n, 65 - n or 1, 1, tags=("edge", "1x1"))
      for n in CHANNEL_SIZES),
    *(Problem(f"edge depthwise {n}", 1, 5, 6, n, n, P=1, groups=n, tags=("edge", "depthwise")) for n in CHANNEL_SIZES),
    *(Problem(f"edge W1={n}", 2, 3, n, 8, 16, P=1, tags=("edge",)) for n in PIXEL_SIZES),
    *(Problem(f"edge H1={n}", 1, n, 5, 3, 17, P=1, tags=("edge",)) for n in PIXEL_SIZES),
    *(Problem(f"edge 1x1 pixels={n}", 1, 1, n, 9, 33, 1, tags=("edge", "1x1")) for n in PIXEL_SIZES),
]
PROBLEMS = [*LECTURE, *NETWORKS, *ODD, *EDGES]


def vgg16(N: int = 4) -> list[Problem]:
    """The nine different convolutional layers of VGG-16 on 224 x 224 pictures."""
    sizes = [("1_1", 224, 3, 64), ("1_2", 224, 64, 64), ("2_1", 112, 64, 128), ("2_2", 112, 128, 128),
             ("3_1", 56, 128, 256), ("3_2", 56, 256, 256), ("4_1", 28, 256, 512), ("4_2", 28, 512, 512),
             ("5_1", 14, 512, 512)]
    return [Problem(f"vgg16 conv{name}", N, n, n, D1, K, 3, P=1, tags=("vgg",)) for name, n, D1, K in sizes]


BENCH = [
    Problem("lecture ten 5x5", 64, 32, 32, 3, 10, 5, P=2, tags=("lecture",)),
    Problem("lecture six 5x5", 64, 32, 32, 3, 6, 5, tags=("lecture",)),
    Problem("lecture 1x1", 8, 56, 56, 64, 32, 1, tags=("lecture", "1x1")),
    Problem("mnist conv1", 64, 28, 28, 1, 32, 5, P=2, tags=("mnist", "first")),
    Problem("mnist conv2", 64, 14, 14, 32, 64, 5, P=2, tags=("mnist",)),
    Problem("cifar conv1", 64, 32, 32, 3, 64, 3, P=1, tags=("cifar", "first")),
    Problem("cifar conv2", 64, 32, 32, 64, 64, 3, P=1, tags=("cifar",)),
    Problem("cifar conv3", 64, 16, 16, 64, 128, 3, P=1, tags=("cifar",)),
    Problem("cifar conv4", 64, 8, 8, 128, 256, 3, P=1, tags=("cifar",)),
    *vgg16(),
]
