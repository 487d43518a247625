"""The project's figures, in one style."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from utils import write_atomically

matplotlib.use("Agg")
# Okabe and Ito's palette, safe for colour-blind readers; the line styles tell them apart in grey
STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":")]


def plot_returns(
    curves: dict[str, np.ndarray],
    levels: dict[str, float] | None = None,
    source: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Mean return over in-context episodes, with a 95 % band over the rows.

    Args:
        curves: name to (rows, episodes) returns.
        levels: name to a return, drawn as a horizontal line.
        source: episodes (P,) and mean returns (P,) of the source algorithm.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    n_episodes = 1
    for (name, returns), (colour, line) in zip(curves.items(), STYLES):
        n_episodes = max(n_episodes, returns.shape[1])
        episodes = np.arange(1, returns.shape[1] + 1)
        mean = returns.mean(axis=0)
        half = 1.96 * returns.std(axis=0) / np.sqrt(len(returns))
        axes.plot(episodes, mean, line, color=colour, label=name)
        axes.fill_between(episodes, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    if source is not None:
        axes.plot(*source, "o-", color="black", markersize=2.5, linewidth=0.8, label="source, per stream")
    for (name, level), line in zip((levels or {}).items(), (":", "--")):
        axes.axhline(level, color="0.4", linestyle=line, linewidth=1, label=name)
    axes.set(xlabel="episode", ylabel="return", xlim=(0, n_episodes))
    axes.legend(frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
