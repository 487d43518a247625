"""Figures of what is inside a history, a training window and the context of an evaluation.

Letters in shapes: T environment steps or tokens, R rollouts or regions, E episodes, A actions, B histories.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor
from torch.nn.functional import one_hot

from model.context.base import Context
from model.tokens import TokenType
from plots.style import (
    BLUE,
    CURVES,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    YELLOW,
    draw_band,
    draw_curve,
    legend_below,
    new_figure,
    styled,
    whole_ticks,
)

# By TokenType; summaries, whose types follow, have one colour for all levels
TYPES = {"transition": "0.85", "<compress>": BLUE, "</compress>": ORANGE, "summary": GREEN}


# Histories ----------------------------------------------------------------------------------------


@styled
def plot_stream(states: np.ndarray, rewards: np.ndarray, regions: list[tuple[int, int]]) -> Figure:
    """States and rewards over the first three regions of one stream; every other region is shaded.

    Args:
        states: (T, entries). rewards: (T,).
        regions: half-open (start, stop) of each region, as `find_regions` gives them; may be empty.
    """
    shown = regions[:3]
    steps = np.arange(shown[-1][1] if shown else min(len(states), 300))
    figure, (above, below) = new_figure(7.2, 3.6, 2, sharex=True, height_ratios=(2, 1))
    for entry in range(min(states.shape[1], len(CURVES))):
        draw_curve(above, entry, steps, states[steps, entry], f"state[{entry}]", width=0.9)
    below.vlines(steps, 0, rewards[steps], color="black", linewidth=0.8)
    for axes, (start, stop) in product((above, below), shown[::2]):
        axes.axvspan(start - 0.5, stop - 0.5, color="0.93", zorder=0, linewidth=0)
    starts, ends = [start for start, _ in shown], [stop - 1 for _, stop in shown]
    top = {"transform": above.get_xaxis_transform(), "clip_on": False}
    above.plot(starts, [1.06] * len(shown), ">", color=BLUE, label="<compress> (1)", **top)
    above.plot(ends, [1.06] * len(shown), "<", color=ORANGE, label="</compress> (2)", **top)
    above.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=6)
    above.set(ylabel="state")
    below.set(xlabel="step of the stream", ylabel="reward", xlim=(steps[0] - 1, steps[-1] + 1))
    whole_ticks(below)
    figure.suptitle(f"the first {f'{len(shown)} regions' if shown else f'{len(steps)} steps'} of a stream")
    return figure


@styled
def plot_visits(parts: dict[str, np.ndarray], entries: tuple[int, int] = (0, 1)) -> Figure:
    """Heat maps of two entries of observations: where each part of a history was, and how often.

    Args:
        parts: name to (T, entries) observations.
        entries: the two that tell where it is.
    """
    shown = {name: states[:, list(entries)].astype(float) for name, states in parts.items()}
    bins = [_bins(values) for values in np.concatenate(list(shown.values())).T]
    figure, panels = new_figure(3.2 * len(shown), 3.0, 1, len(shown), squeeze=False, sharex=True, sharey=True)
    counts = {name: np.histogram2d(*states.T, bins=bins)[0] for name, states in shown.items()}
    norm = LogNorm(1, max(2, *(of_part.max() for of_part in counts.values())))
    for axes, (name, of_part) in zip(panels[0], counts.items()):
        image = axes.pcolormesh(*bins, np.ma.masked_equal(of_part.T, 0), norm=norm)
        axes.set(title=name, xlabel=f"state[{entries[0]}]")
    panels[0, 0].set(ylabel=f"state[{entries[1]}]")
    figure.colorbar(image, ax=panels, label="visits")
    return figure


def _bins(values: np.ndarray, most: int = 40) -> np.ndarray:
    """Edges of bins: one for each whole number where values are few of these, else of one width."""
    low, high = values.min(), values.max()
    if high - low < most and (values == values.round()).all():
        return np.arange(low, high + 2) - 0.5
    return np.linspace(low, high, most + 1)


@styled
def plot_per_rollout(values: np.ndarray, task: int, label: str) -> Figure:
    """One value per rollout: its mean over all tasks, the middle 90 % of them, and one task.

    Args:
        values: (tasks, R).
        task: the row to show by itself.
        label: what the values are.
    """
    figure, axes = new_figure(5.4, 3.0)
    rollouts = np.flatnonzero(~np.isnan(values).all(axis=0))  # where episodes are longer, in some none ends
    values = values[:, rollouts]
    draw_curve(axes, 0, rollouts, np.nanmean(values, axis=0), f"mean of {len(values)} tasks")
    draw_band(axes, 0, rollouts, *np.nanquantile(values, (0.05, 0.95), axis=0))
    draw_curve(axes, 1, rollouts, values[task], f"task {task}")
    axes.set(xlabel="rollout", ylabel=label, title=f"{label} per rollout; band: the middle 90 % of the tasks")
    whole_ticks(axes)
    legend_below(figure)
    return figure


@styled
def plot_histories(drawn: dict[str, tuple[np.ndarray, np.ndarray]], tasks: list[int]) -> Figure:
    """Which rollout each region of a training history is from, one panel per kind of history.

    Args:
        drawn: kind to the (B, R) rollouts of the regions, and (B, R) whether they show a reason to go on.
        tasks: the B tasks that the histories are of.
    """
    figure, panels = new_figure(2.7 * len(drawn), 3.0, 1, len(drawn), sharey=True, squeeze=False)
    for axes, (kind, (rollouts, has_reason)) in zip(panels[0], drawn.items()):
        for number, task in enumerate(tasks):
            colour = CURVES[number % len(CURVES)][0]
            y = rollouts[number] + 0.25 * (number - len(tasks) // 2)  # tells histories on one rollout apart
            regions, with_reason = np.arange(len(y)), has_reason[number]
            label = f"task {task}" if axes is panels[0, 0] else None
            draw_curve(axes, number, regions, y, label, width=0.9)
            for shown, fill in ((with_reason, colour), (~with_reason, "white")):
                axes.plot(regions[shown], y[shown], "o", color=colour, markerfacecolor=fill, markersize=3.5)
        axes.set(title=f"histories: {kind}", xlabel="region of the history")
        whole_ticks(axes)
    panels[0, 0].set(ylabel="rollout it is from")
    legend_below(figure)
    figure.suptitle("how training histories go on; full dots: the region shows a reason to go on")
    return figure


@styled
def plot_window(sample: dict[str, Tensor], context: Context) -> Figure:
    """One window as the model sees it: a column per token, with its type, its position and its target.

    Targets are the source's distribution; for continuous actions its mean; without it the action taken.

    Args:
        sample: one of an `ADDataset`. context: its `context`, which lays out the tokens.
    """
    layout = context.layout(sample["region_lengths"][None])
    targets, label = _targets(sample)
    is_target = np.arange(len(targets)) >= int(sample["target_from"])
    valid = layout.valid[0].numpy()
    types, steps, positions = (v[0].numpy()[valid] for v in (layout.types, layout.steps, layout.positions))
    figure, (above, middle, below) = new_figure(7.2, 3.8, 3, sharex=True, height_ratios=(1, 2, 4))
    _draw_types(above, types)
    above.set(ylabel="type")
    middle.plot(positions, color="black", linewidth=0.9)
    middle.set(ylabel="position")
    counts = (types == TokenType.TRANSITION) & is_target[steps]
    shown = np.where(counts[:, None], targets[steps], np.nan)
    image = below.imshow(shown.T, aspect="auto")
    below.set(xlabel="token", ylabel="action", yticks=range(targets.shape[1]))
    whole_ticks(below)
    figure.suptitle("one training window; blank steps are no targets")
    figure.colorbar(image, ax=below, label=label, orientation="horizontal", shrink=0.5)
    return figure


def _targets(sample: dict[str, Tensor]) -> tuple[np.ndarray, str]:
    """(L, A) targets of a window's steps, and what they are."""
    if "action_probs" in sample:
        return sample["action_probs"].float().numpy(), "target probability"
    if "action_means" in sample:
        return sample["action_means"].numpy(), "mean of the target"
    actions = sample["actions"]
    if actions.ndim == 1 and not actions.is_floating_point():
        return one_hot(actions.long()).float().numpy(), "action taken"
    return actions.reshape(len(actions), -1).numpy(), "action taken"


def _draw_types(axes: Axes, types: np.ndarray, with_legend: bool = True) -> None:
    """A strip of token types, with their legend above it."""
    colours = ListedColormap(list(TYPES.values()))
    norm = BoundaryNorm(np.arange(len(TYPES) + 1) - 0.5, len(TYPES))
    axes.imshow(np.minimum(types, len(TokenType))[None], aspect="auto", cmap=colours, norm=norm)
    if with_legend:
        handles = [Patch(color=colour, label=name) for name, colour in TYPES.items()]
        if types.max() < len(TokenType):  # no summary is shown
            handles.pop()
        axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(handles))
    axes.set(yticks=[])
    axes.spines[:].set_visible(False)


@styled
def plot_contexts(contexts: dict[str, np.ndarray]) -> Figure:
    """What different context strategies see at one moment: a strip of token types each, on one scale, newest on the right.

    Args:
        contexts: name to (T,) token types, the one that shows most kinds first.
    """
    longest = max(map(len, contexts.values()))
    figure, panels = new_figure(7.2, 0.8 * len(contexts) + 0.6, len(contexts), squeeze=False)
    for number, (axes, (name, types)) in enumerate(zip(panels[:, 0], contexts.items())):
        _draw_types(axes, types, with_legend=number == 0)
        axes.set(xlim=(len(types) - longest - 0.5, len(types) - 0.5), xticks=[])
        axes.set_title(f"{name}: {len(types)} tokens", loc="left", y=1.0 if number else 1.45)
    return figure


# Evaluation ---------------------------------------------------------------------------------------


@styled
def plot_paths(
    cells: list[np.ndarray], returns: np.ndarray, goal: tuple[int, int], grid_size: int, episodes: list[int]
) -> Figure:
    """The agent's way over the grid, one panel per episode.

    Args:
        cells: of each episode the (T, 2) cells acted from. returns: (E,).
        episodes: which to show, counted from 1.
    """
    columns = min(len(episodes), 5)
    rows = -(-len(episodes) // columns)
    figure, panels = new_figure(1.6 * columns, 1.85 * rows, rows, columns, squeeze=False)
    rng = np.random.default_rng(0)
    for axes, episode in zip(panels.flat, episodes):
        path = cells[episode - 1]
        path = path + rng.uniform(-0.18, 0.18, size=path.shape)  # tells repeated steps apart
        axes.plot(path[:, 1], path[:, 0], "-", color=BLUE, linewidth=0.9)
        axes.plot(path[0, 1], path[0, 0], "o", color=BLUE, markersize=4)
        axes.plot(goal[1], goal[0], "*", color=ORANGE, markersize=10, markeredgecolor="black", markeredgewidth=0.5)
        ticks = np.arange(grid_size + 1) - 0.5
        axes.set(xlim=(-0.5, grid_size - 0.5), ylim=(grid_size - 0.5, -0.5), aspect="equal")
        axes.set(title=f"episode {episode}: {returns[episode - 1]:g}", xticks=ticks, yticks=ticks)
        axes.tick_params(labelbottom=False, labelleft=False, length=0)
        axes.grid(color="0.9", linewidth=0.5)
        axes.spines[:].set_visible(True)
    for axes in list(panels.flat)[len(episodes) :]:
        axes.remove()
    figure.suptitle("the agent's way from its start (dot) to the goal (star), with each episode's return")
    return figure


@styled
def plot_context_fill(region_lengths: np.ndarray, end_probabilities: np.ndarray, ended: np.ndarray) -> Figure:
    """How the context fills and is cut, and what the token-type head says of each region's end.

    Args:
        region_lengths: (T, R) steps in each region of the context, the current one last, at each step.
        end_probabilities: (T,) the head's probability that `</compress>` comes next.
        ended: (T,) whether a region ended after the step.
    """
    steps = np.arange(1, len(ended) + 1)
    figure, (above, below) = new_figure(7.2, 3.6, 2, sharex=True)
    n_regions = region_lengths.shape[1]
    names = [*(f"{age} regions back" for age in range(n_regions - 1, 1, -1)), "previous region", "current region"]
    colours = ["0.8"] * (n_regions - 2) + [SKY, YELLOW]
    above.stackplot(steps, region_lengths.T, colors=colours[-n_regions:], labels=names[-n_regions:])
    above.set(ylabel="steps in the context")
    below.vlines(steps[ended], 0, 1, color=GREY, linestyle=":", label="a region ends")
    below.plot(steps, end_probabilities, color=ORANGE, label="probability of </compress>")
    below.set(xlabel="environment step", ylabel="token-type head", ylim=(0, 1.05), xlim=(0, len(ended)))
    whole_ticks(below)
    legend_below(figure)
    figure.suptitle("how the context fills, and where its regions end")
    return figure


@styled
def plot_attention(weights: np.ndarray, types: np.ndarray, rewards: np.ndarray) -> Figure:
    """Where the newest token looks.

    Args:
        weights: (n_layer, n_head, T) attention of the newest token.
        types: (T,) token types. rewards: (T,) the reward that led to each token, 0 for markers.
    """
    n_layer, n_head, n_tokens = weights.shape
    figure, (above, middle, below) = new_figure(7.2, 4.2, 3, sharex=True, height_ratios=(1, 1, 6))
    _draw_types(above, types)
    above.set(ylabel="type")
    middle.vlines(np.arange(n_tokens), 0, rewards, color="black", linewidth=0.9)
    middle.set(ylabel="reward")
    image = below.imshow(weights.reshape(n_layer * n_head, n_tokens), aspect="auto", vmin=0)
    names = [f"layer {layer}, head {head}" for layer in range(n_layer) for head in range(n_head)]
    below.set(xlabel="token", yticks=range(len(names)), yticklabels=names)
    whole_ticks(below)
    figure.suptitle("where the newest token looks")
    figure.colorbar(image, ax=below, label="attention weight", orientation="horizontal", shrink=0.5)
    return figure


@styled
def plot_attention_by_age(shares: np.ndarray) -> Figure:
    """How much of its attention the newest token gives to each part of a memory, layer by layer.

    Args:
        shares: (n_layer, ages) that sum to 1: own region, previous region, summaries from the newest to the oldest.
    """
    n_layer, n_ages = shares.shape
    names = ["own region", "previous region", *(f"summary {age}" for age in range(1, n_ages - 1))]
    figure, axes = new_figure(7.2, 1.4 + 0.35 * n_layer)
    image = axes.imshow(shares, aspect="auto", vmin=0, vmax=1)
    for layer, age in product(range(n_layer), range(n_ages)):
        colour = "white" if shares[layer, age] < 0.6 else "black"
        axes.text(age, layer, f"{shares[layer, age]:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set(ylabel="layer", yticks=range(n_layer), xticks=range(n_ages))
    axes.set_xticklabels(names, rotation=30, ha="right")
    axes.set_title("attention of the newest token; summary 1 is the newest")
    figure.colorbar(image, label="share")
    return figure


@styled
def plot_read_out(cells: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Which cells were visited, and what a probe reads from the summary of it.

    Args:
        cells: name to (grid_size, grid_size) visited or not, and as many values read, around 0 or 1.
    """
    figure, panels = new_figure(1.3 * len(cells) + 0.5, 3.0, 2, len(cells), squeeze=False)
    for column, (name, grids) in zip(panels.T, cells.items()):
        column[0].set_title(name)
        for axes, grid in zip(column, grids):
            axes.imshow(grid, vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    for axes, label in zip(panels[:, 0], ("visited", "read")):
        axes.set_ylabel(label)
    return figure
