"""The project's figures, in one style."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils import write_atomically

matplotlib.use("Agg")
# Okabe and Ito's palette, safe for colour-blind readers; the line styles tell them apart in grey
STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#E69F00", (0, (5, 1, 1, 1)))]


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


def plot_study(
    curves: dict[str, np.ndarray],
    levels: dict[str, float],
    source: dict[str, np.ndarray] | None = None,
    n_episodes: int = 100,
) -> Figure:
    """Mean return over in-context episodes of several settings, with 95 % bootstrap bands over seeds and goals.

    Args:
        curves: name to (seeds, goals, repeats, episodes) returns.
        levels: name to a return, drawn as a horizontal line.
        source: `episodes` (P,) and `returns` (P,) of the source algorithm.
        n_episodes: how many to show.
    """
    rng = np.random.default_rng(0)
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, returns) in enumerate(curves.items()):
        means = returns[..., :n_episodes].mean(axis=2)  # (seeds, goals, episodes)
        n_seeds, n_goals, shown = means.shape
        picked = [
            means[rng.integers(n_seeds, size=n_seeds)][:, rng.integers(n_goals, size=n_goals)].mean(axis=(0, 1))
            for _ in range(500)
        ]
        low, high = np.quantile(picked, (0.025, 0.975), axis=0)
        colour, line = STYLES[i % len(STYLES)]
        episodes = np.arange(1, shown + 1)
        axes.plot(episodes, means.mean(axis=(0, 1)), line, color=colour, label=name, linewidth=2.2 if i == 0 else 1.3)
        if i == 0:  # one band is readable, five are not; the tables give the other intervals
            axes.fill_between(episodes, low, high, color=colour, alpha=0.18, linewidth=0)
    if source is not None:
        axes.plot(
            source["episodes"],
            source["returns"],
            "o-",
            color="black",
            markersize=2.5,
            linewidth=0.8,
            label="source PPO",
        )
    for (name, level), line in zip(levels.items(), (":", "--")):
        axes.axhline(level, color="0.4", linestyle=line, linewidth=1, label=name)
    axes.set(xlabel="episode in context", ylabel="return on held-out goals", xlim=(0, n_episodes))
    axes.legend(frameon=False, loc="center right", fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_goals(share: np.ndarray, held_out: set[int]) -> Figure:
    """(rows, columns) share of each goal's optimum as a heat map; `held_out` goals (flat indices) are framed."""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, vmin=0, vmax=1, cmap="cividis")
    for row, column in np.ndindex(share.shape):
        value = share[row, column]
        dark = value < 0.6
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
        if row * share.shape[1] + column in held_out:
            axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, color="#D55E00", linewidth=2))
    figure.colorbar(image, label="share of the optimum, episodes 91 to 100")
    axes.set(xlabel="goal column", ylabel="goal row", xticks=range(share.shape[1]), yticks=range(share.shape[0]))
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
