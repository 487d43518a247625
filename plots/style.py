"""One look for all figures: small fonts, few lines, colours that colour-blind readers can tell apart.

Line styles and markers differ too, so that every figure can be read in grey.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from files import make_folder, write_atomically

# Okabe and Ito's palette (Color Universal Design, 2008)
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
GREY = "0.4"
CURVES = [
    (BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (YELLOW, (0, (5, 1, 1, 1))), (SKY, (0, (1, 1))),
    ("#882255", "-"), ("0.55", "--"),
]  # fmt: skip
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
}
styled = matplotlib.rc_context(STYLE)  # decorates every function that draws; a user's own settings stay as they are


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, Axes]:
    """A figure of that size in inches, and its axes (an array of them if there are several).

    Made without pyplot: nothing keeps it alive, and no window system is needed.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def draw_curve(axes: Axes, number: int, x: np.ndarray, y: np.ndarray, label: str, width: float | None = None) -> None:
    """The `number`-th curve of a figure."""
    colour, line = CURVES[number % len(CURVES)]
    marker = "o" if len(x) == 1 else None  # a line through one point would not be seen
    axes.plot(x, y, linestyle=line, marker=marker, color=colour, label=label, linewidth=width)


def draw_band(axes: Axes, number: int, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """The interval of the `number`-th curve."""
    axes.fill_between(x, low, high, color=CURVES[number % len(CURVES)][0], alpha=0.2, linewidth=0)


def whole_ticks(axes: Axes) -> None:
    """Ticks of the x-axis at whole numbers only, where it counts episodes, rollouts, steps or tokens."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def legend_below(figure: Figure, columns: int = 3) -> None:
    """One legend of all curves below the axes, where it lies over none of them; each name once."""
    handles = dict(pair[::-1] for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels()))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, in one step."""
    make_folder(path.parent)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
