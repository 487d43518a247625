"""Figures of results: returns over episodes in context, and per task."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plots.style import GREY, ORANGE, draw_band, draw_curve, draw_levels, draw_source, new_figure, styled


@styled
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
    figure, axes = new_figure(6.4, 3.6)
    for number, (name, returns) in enumerate(curves.items()):
        episodes, mean = np.arange(1, returns.shape[1] + 1), returns.mean(axis=0)
        half = 1.96 * returns.std(axis=0) / np.sqrt(len(returns))
        draw_curve(axes, number, episodes, mean, name)
        draw_band(axes, number, episodes, mean - half, mean + half)
    if source is not None:
        draw_source(axes, *source, "source, per stream")
    draw_levels(axes, levels or {})
    axes.set(xlabel="episode in context", ylabel="return", xlim=(0, max(r.shape[1] for r in curves.values())))
    axes.legend()
    return figure


@styled
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
    figure, axes = new_figure(7.2, 4.0)
    for number, (name, returns) in enumerate(curves.items()):
        means = returns[..., :n_episodes].mean(axis=2)  # (seeds, goals, episodes)
        n_seeds, n_goals, shown = means.shape
        picked = [
            means[rng.integers(n_seeds, size=n_seeds)][:, rng.integers(n_goals, size=n_goals)].mean(axis=(0, 1))
            for _ in range(500)
        ]
        episodes = np.arange(1, shown + 1)
        draw_curve(axes, number, episodes, means.mean(axis=(0, 1)), name, width=None if number else 2.2)
        if number == 0:  # one band is readable, five are not; the tables give the other intervals
            draw_band(axes, number, episodes, *np.quantile(picked, (0.025, 0.975), axis=0))
    if source is not None:
        draw_source(axes, source["episodes"], source["returns"], "source PPO")
    draw_levels(axes, levels)
    axes.set(xlabel="episode in context", ylabel="return on held-out goals", xlim=(0, n_episodes))
    axes.legend(loc="center right")
    return figure


def plot_per_task(values: np.ndarray, tasks: list[dict], label: str, framed: np.ndarray | None = None) -> Figure:
    """One value per task: a heat map where each task is a goal cell of one grid, else bars.

    Args:
        values: (tasks,), NaN for tasks that were not evaluated.
        tasks: keyword arguments of every task, as `env.list_tasks` gives them.
        label: what the values are.
        framed: (tasks,) True for those to point out, such as the held-out ones.
    """
    framed = np.zeros(len(tasks), dtype=bool) if framed is None else framed
    if _are_goals(tasks):
        return _plot_goals(values, np.array([task["goal"] for task in tasks]), tasks[0]["grid_size"], label, framed)
    return _plot_bars(values, label, framed)


def _are_goals(tasks: list[dict]) -> bool:
    """Whether every task is another cell of one grid."""
    sizes, goals = {str(task.get("grid_size")) for task in tasks}, [task.get("goal") for task in tasks]
    if len(sizes) > 1 or not all(isinstance(goal, (tuple, list)) and len(goal) == 2 for goal in goals):
        return False
    size = tasks[0].get("grid_size")
    inside = [isinstance(c, int) and isinstance(size, int) and 0 <= c < size for goal in goals for c in goal]
    return all(inside) and len(set(map(tuple, goals))) == len(goals)


@styled
def _plot_goals(values: np.ndarray, goals: np.ndarray, grid_size: int, label: str, framed: np.ndarray) -> Figure:
    figure, axes = new_figure(5.2, 4.4)
    grid = np.full((grid_size, grid_size), np.nan)
    grid[goals[:, 0], goals[:, 1]] = values
    low, high = min(0.0, np.nanmin(values)), max(1.0, np.nanmax(values))
    image = axes.imshow(grid, vmin=low, vmax=high)
    for (row, column), value, is_framed in zip(goals, values, framed):
        if np.isfinite(value) and grid_size <= 10:  # in a larger grid the numbers would overlap
            colour = "white" if value < low + 0.6 * (high - low) else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        if is_framed:
            axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, color=ORANGE, linewidth=2))
    figure.colorbar(image, label=label)
    ticks = range(0, grid_size, 1 + grid_size // 12)
    axes.set(xlabel="goal column", ylabel="goal row", xticks=ticks, yticks=ticks)
    axes.spines[:].set_visible(True)
    return figure


@styled
def _plot_bars(values: np.ndarray, label: str, framed: np.ndarray) -> Figure:
    known = np.flatnonzero(np.isfinite(values))
    figure, axes = new_figure(6.4, 2.8)
    axes.bar(np.arange(len(known)), values[known], color=[ORANGE if framed[i] else GREY for i in known])
    shown = np.arange(0, len(known), 1 + len(known) // 25)
    axes.set(xlabel="task", ylabel=label, xticks=shown, xticklabels=known[shown])
    return figure
