"""The drawings of the page on the kernels: the register tile, the phases of grad_x, a tile of Winograd's."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, RED, GREEN, YELLOW, INK, PALE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#222222", "#eef1f4"


def canvas(width: float, height: float, reach: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """A figure without axes over x0, x1, y0, y1, y downwards."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=reach[:2], ylim=reach[:1:-1], aspect="equal")
    axes.set_axis_off()
    return figure, axes


def cells(axes: Axes, x: float, y: float, columns: int, rows: int, colour: str, size: float = 1) -> None:
    for i in range(rows):
        for j in range(columns):
            place = x + j * size, y + i * size
            axes.add_patch(Rectangle(place, size, size, facecolor=colour, edgecolor="white", linewidth=1))


def tile() -> Figure:
    figure, axes = canvas(8, 4, (-13, 19, -7.5, 8))
    cells(axes, 0, 0, 16, 6, BLUE)
    cells(axes, -11, 0, 10, 6, PALE)
    cells(axes, -7, 0, 1, 6, RED)
    cells(axes, 0, -6, 16, 5, PALE)
    cells(axes, 0, -3, 16, 1, RED)
    write = {"ha": "center", "va": "center", "color": INK, "fontsize": 10}
    axes.text(8, 6.9, "C: sums in registers, two vectors a row", **write)
    axes.text(-6, 6.9, "A: a number of each row, broadcast", **write)
    axes.text(8, -6.9, "B: packed, a row of two vectors for each k", **write)
    axes.text(-6.5, -0.7, "k", **write)
    axes.text(16.7, -2.5, "k", **write)
    return figure


def phases() -> Figure:
    figure, axes = canvas(9, 3.2, (-0.3, 25, -1.6, 8.4))
    colours = [[BLUE, GREEN], [YELLOW, RED]]
    for i in range(8):
        for j in range(8):
            cells(axes, j, i, 1, 1, colours[i % 2][j % 2])
    axes.text(4, -0.8, "dx: four phases at S=2", ha="center", fontsize=10, color=INK)
    for a in range(2):
        for b in range(2):
            x, y = 11 + 7.5 * b, 0.4 + 4.6 * a
            axes.text(x + 1.5, y - 0.5, f"rows {a}::2, columns {b}::2", ha="center", fontsize=9, color=INK)
            for r in range(3):
                for s in range(3):
                    met = (a + 1 - r) % 2 == 0 and (b + 1 - s) % 2 == 0
                    cells(axes, x + s, y + r, 1, 1, colours[a][b] if met else PALE)
    axes.text(16.2, -1.3, "the taps of a 3 x 3 window with P=1 that meet it", ha="center", fontsize=10, color=INK)
    return figure


def winograd() -> Figure:
    figure, axes = canvas(8, 3.6, (-1.5, 31, -2.2, 12.5))
    cells(axes, 0, 0, 12, 12, PALE)
    for i in range(3):
        for j in range(3):
            axes.add_patch(Rectangle((4 * j, 4 * i), 4, 4, fill=False, edgecolor=BLUE, linewidth=1.2))
    cells(axes, 4, 4, 4, 4, BLUE)
    axes.add_patch(Rectangle((3, 3), 6, 6, fill=False, edgecolor=RED, linewidth=2))
    axes.text(6, -0.8, "4 x 4 results read 6 x 6 pixels", ha="center", fontsize=10, color=INK)
    for i in range(6):
        cells(axes, 16 + 0.9 * i, 1.2 + 0.9 * i, 6, 5, GREEN if i == 5 else "#9fd6c4", 0.9)
        axes.add_patch(Rectangle((16 + 0.9 * i, 1.2 + 0.9 * i), 5.4, 4.5, fill=False, edgecolor=INK, linewidth=0.7))
    axes.text(22, -0.8, "36 matrices, tiles x channels", ha="center", fontsize=10, color=INK)
    return figure


def draw(folder: Path) -> None:
    for make in (tile, phases, winograd):
        make().savefig(folder / f"{make.__name__}.png", dpi=100)
