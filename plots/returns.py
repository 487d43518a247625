"""Figures of results: returns over episodes in context, and per task."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plots.intervals import interval
from plots.style import CURVES, GREY, ORANGE, draw_band, draw_curve, legend_below, new_figure, styled, whole_ticks


@styled
def plot_returns(
    curves: dict[str, np.ndarray],
    levels: dict[str, float] | None = None,
    source: tuple[np.ndarray, np.ndarray] | None = None,
    title: str = "",
    n_episodes: int | None = None,
) -> Figure:
    """Mean return over in-context episodes; the first curve with its 95 % band over seeds and tasks.

    One band is readable, five are not. A single task has none.

    Args:
        curves: name to returns of shape (seeds, tasks, repeats, episodes), or without the seeds.
        levels: name to a return, drawn as a horizontal line: the optimum dashed, others dotted.
        source: episodes (P,) and mean returns (P,) of the source algorithm.
        title: what was evaluated; what the band is over is added.
        n_episodes: how many to show (default: all).
    """
    figure, axes = new_figure(6.4, 4.0)
    means = {name: _mean_of_repeats(returns)[..., :n_episodes] for name, returns in curves.items()}
    last = max(mean.shape[-1] for mean in means.values())
    for number, (name, mean) in enumerate(means.items()):
        episodes = np.arange(1, mean.shape[-1] + 1)
        draw_curve(axes, number, episodes, mean.mean(axis=(0, 1)), name, 2.2 if not number and len(means) > 1 else None)
        if number == 0 and mean.shape[0] * mean.shape[1] > 1:
            draw_band(axes, number, episodes, *interval(mean))
            over = [f"{n} {what}" for n, what in zip(mean.shape, ("seeds", "tasks")) if n > 1]
            title = f"{title}\nband: 95 % interval over {' and '.join(over)}".strip()
    if source is not None and (shown := source[0] <= last).any():
        episodes, returns = source[0][shown], source[1][shown]
        axes.plot(episodes, returns, "o-", color="black", markersize=2.5, linewidth=0.8, label="source, per stream")
    for name, level in (levels or {}).items():
        axes.axhline(level, color=GREY, linestyle="--" if name == "optimum" else ":", linewidth=1, label=name)
    axes.set(xlabel="episode in context", ylabel="return", xlim=(0.5, last + 0.5), title=title)
    whole_ticks(axes)
    legend_below(figure)
    return figure


def _mean_of_repeats(returns: np.ndarray) -> np.ndarray:
    """(seeds, tasks, episodes); repeats of a task share it and the weights, so they are no further evidence."""
    if returns.ndim not in (3, 4):
        raise ValueError(f"returns of shape {returns.shape}: expected ([seeds,] tasks, repeats, episodes)")
    return returns.reshape(-1, *returns.shape[-3:]).mean(axis=2)


@styled
def plot_shares(curves: dict[str, dict[int, np.ndarray]], title: str) -> Figure:
    """Mean share of the optimum over the length of the context; bars: 95 % intervals over seeds and tasks.

    Args:
        curves: name to length in environment steps to (seeds, tasks) shares; an empty one is left out.
    """
    figure, axes = new_figure(5.6, 3.6)
    for number, (name, shares) in enumerate(curves.items()):
        if not shares:
            continue
        colour, line = CURVES[number % len(CURVES)]
        means = np.array([of_length.mean() for of_length in shares.values()])
        low, high = np.array([interval(of_length) for of_length in shares.values()]).T
        style = {"color": colour, "linestyle": line, "marker": "os^D"[number % 4], "capsize": 3, "label": name}
        axes.errorbar(list(shares), means, np.maximum(0, [means - low, high - means]), markersize=4, **style)
    axes.set(xlabel="context (environment steps)", ylabel="share of the optimum", ylim=(0, 1.05), xlim=(0, None))
    axes.set_title(f"{title}\nbars: 95 % intervals over seeds and tasks")
    legend_below(figure, columns=1)
    return figure


@styled
def plot_regret(panels: dict[str, dict[str, np.ndarray]], span: int) -> Figure:
    """Mean regret so far along a life, one panel for each family; bands: 95 % intervals over seeds and tasks.

    Args:
        panels: title to name to (seeds, tasks, spans) regret in each span of `span` steps.
    """
    figure, axes = new_figure(3.2 * len(panels), 3.6, columns=len(panels), squeeze=False, sharey=True)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for of_panel, (title, curves) in zip(axes[0], panels.items()):
        for name, regret in curves.items():
            so_far, number = np.pad(regret.cumsum(axis=-1), ((0, 0), (0, 0), (1, 0))), names.index(name)
            steps = span * np.arange(so_far.shape[-1])
            draw_curve(of_panel, number, steps, so_far.mean(axis=(0, 1)), name)
            draw_band(of_panel, number, steps, *interval(so_far))
        of_panel.set(xlabel="step", title=title, xlim=(0, None))
    axes[0, 0].set(ylabel="regret so far", ylim=(0, None))  # of both: they share it
    legend_below(figure, columns=2)
    return figure


@styled
def plot_groups(panels: dict[str, dict[str, dict[str, np.ndarray]]], levels: dict[str, tuple[str, float]]) -> Figure:
    """Groups of bars, one panel for each title; lines on them: 95 % intervals over seeds and tasks.

    Args:
        panels: title to name of a group to name of a bar to (seeds, tasks) values.
        levels: title to name and height of a horizontal line.
    """
    figure, axes = new_figure(3.1 * len(panels), 3.4, columns=len(panels), squeeze=False)
    names = list(dict.fromkeys(name for groups in panels.values() for bars in groups.values() for name in bars))
    for of_panel, (title, groups) in zip(axes[0], panels.items()):
        for at, bars in enumerate(groups.values()):
            width = 0.8 / len(bars)
            for place, (name, values) in enumerate(bars.items()):
                number, mean, (low, high) = names.index(name), values.mean(), interval(values)
                look = {
                    "color": CURVES[number % len(CURVES)][0],
                    "hatch": ["", "//", "..", "xx"][number % 4],
                    "edgecolor": "white",
                }
                x = at + (place - (len(bars) - 1) / 2) * width
                of_panel.bar(x, mean, width, label=name, **look)
                of_panel.errorbar(x, mean, np.maximum(0, [[mean - low], [high - mean]]), color="black", linewidth=1)
        if title in levels:
            of_panel.axhline(levels[title][1], color=GREY, linestyle="--", linewidth=1, label=levels[title][0])
        of_panel.set(title=title, xticks=range(len(groups)), xticklabels=list(groups))
    legend_below(figure, columns=4)
    return figure


def plot_per_task(values: np.ndarray, tasks: list[dict], label: str, held_out: np.ndarray | None = None) -> Figure:
    """One value per task: a heat map where each task is a goal cell of one grid, else bars.

    Args:
        values: (tasks,), NaN for tasks that were not evaluated.
        tasks: keyword arguments of every task, as `env.list_tasks` gives them.
        label: what the values are.
        held_out: (tasks,) True for those to point out as such.
    """
    held_out = np.zeros(len(tasks), dtype=bool) if held_out is None else held_out
    if _are_goals(tasks):
        return _plot_goals(values, np.array([task["goal"] for task in tasks]), tasks[0]["grid_size"], label, held_out)
    return _plot_bars(values, label, held_out)


def _are_goals(tasks: list[dict]) -> bool:
    """Whether every task is another cell of one grid."""
    sizes, goals = {str(task.get("grid_size")) for task in tasks}, [task.get("goal") for task in tasks]
    if len(sizes) > 1 or not all(isinstance(goal, (tuple, list)) and len(goal) == 2 for goal in goals):
        return False
    size = tasks[0].get("grid_size")
    inside = [isinstance(c, int) and isinstance(size, int) and 0 <= c < size for goal in goals for c in goal]
    return all(inside) and len(set(map(tuple, goals))) == len(goals)


@styled
def _plot_goals(values: np.ndarray, goals: np.ndarray, grid_size: int, label: str, held_out: np.ndarray) -> Figure:
    figure, axes = new_figure(5.2, 4.4)
    grid = np.full((grid_size, grid_size), np.nan)
    grid[goals[:, 0], goals[:, 1]] = values
    low, high = min(0.0, np.nanmin(values)), max(1.0, np.nanmax(values))
    image = axes.imshow(grid, vmin=low, vmax=high)
    for (row, column), value, is_held_out in zip(goals, values, held_out):
        if np.isfinite(value) and grid_size <= 10:  # in a larger grid the numbers would overlap
            colour = "white" if value < low + 0.6 * (high - low) else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        if is_held_out:
            axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, color=ORANGE, linewidth=2))
    figure.colorbar(image, label=label)
    ticks = range(0, grid_size, 1 + grid_size // 12)
    axes.set(xlabel="goal column", ylabel="goal row", xticks=ticks, yticks=ticks)
    axes.set_title("per goal cell" + (", held-out ones framed" if held_out.any() else ""))
    axes.spines[:].set_visible(True)
    return figure


@styled
def _plot_bars(values: np.ndarray, label: str, held_out: np.ndarray) -> Figure:
    known = np.flatnonzero(np.isfinite(values))
    figure, axes = new_figure(6.4, 2.8)
    axes.bar(np.arange(len(known)), values[known], color=[ORANGE if held_out[i] else GREY for i in known])
    shown = np.arange(0, len(known), 1 + len(known) // 25)
    axes.set(xlabel="task", ylabel=label, xticks=shown, xticklabels=known[shown])
    axes.set_title("per task" + (", held-out ones coloured" if held_out.any() else ""))
    return figure
