"""Draw the figures of the study from the stored scores; report.py calls it."""

from __future__ import annotations

import numpy as np
import torch
from rows import CONTEXTS, WITH_CONTROLS
from stored import (
    BANDITS,
    DELAYS,
    PULLS,
    ROOT,
    SHOWN_WINDOWS,
    STRETCH,
    WINDOW_LABELS,
    WINDOWS,
    Scores,
    after_lapses,
    after_stretches,
    best_standard,
    regret_along_a_life,
    source,
    ucb_regret,
    with_lapses,
    with_memory,
)

from config.loading import load_config
from env import list_tasks
from model.context import make_context
from plots.inside import plot_contexts
from plots.returns import plot_groups, plot_per_task, plot_regret, plot_returns, plot_shares
from plots.style import save_figure
from scripts import DEFAULT_CONFIG


def draw_all() -> None:
    draw_returns()
    draw_clock()
    draw_contexts()
    draw_regret()
    draw_past()
    if (goals := Scores("compressed", "all-goals")).n_seeds:
        draw_goals(goals)


def draw_returns() -> None:
    compressed, standard = Scores("compressed"), best_standard()
    curves = {"two regions, PPO's histories": compressed.returns}
    curves |= {label.split(" (")[0].strip("*"): scores.returns for label, scores in with_memory().items()}
    for name in SHOWN_WINDOWS:
        label, causal = f"standard, {WINDOW_LABELS[name].split(' (')[0]}", Scores(f"standard-{name}-causal")
        curves |= {label: standard[name].returns} if name in standard else {}
        curves |= {f"{label}, causal": causal.returns} if causal.n_seeds else {}
    levels = {"random policy": compressed.random, "optimum": float(compressed.optimal.mean())}
    ppo = source("darkroom")
    title = "Darkroom, held-out goals"
    figure = plot_returns(curves, levels, (ppo["episodes"], ppo["returns"]), title, n_episodes=100)
    save_figure(figure, ROOT / "results" / "returns.png")


def draw_clock() -> None:
    """Share of the optimum over the length of the context, by how training histories go on; those that were run."""
    every, causal = "every third rollout", "causal histories"
    memory = "memory (40 steps and 32 summary tokens)"
    settings = {
        f"plain window, {every}": {n: (f"standard-{name}", "temperature-0.6") for name, n in WINDOWS.items()},
        f"plain window, {causal}": {n: (f"standard-{name}-causal", "default") for name, n in WINDOWS.items()},
        "plain window, explorer's histories": {480: ("explorer-480", "default")},
        f"{memory}, {every}": {40: ("memory-every", "default")},
        f"{memory}, {causal}": {40: ("memory", "default")},
    }
    curves = {}
    for label, by_length in settings.items():
        found = {n: scores for n, of_setting in by_length.items() if (scores := Scores(*of_setting)).n_seeds}
        curves[label] = {n: scores.at(91, 100) / scores.optimal for n, scores in found.items()}
    figure = plot_shares(curves, "Darkroom, held-out goals, episodes 91 to 100, temperature 0.6")
    save_figure(figure, ROOT / "results" / "clock.png")


def draw_regret() -> None:
    """Regret along a life, of the bandit and of the delayed one; what was run."""
    labels = {
        "memory": "memory: 8 summaries of 2 tokens", "two-regions": "two regions of 10 steps",
        "window": "plain window of 40 steps", "full": "full history", "UCB": "UCB, the source",
    }  # fmt: skip
    panels = {}
    for env, delay in BANDITS.items():
        curves = {label: regret_along_a_life(kind, env) for kind, label in labels.items()}
        title = f"{delay} steps of waiting after 50 pulls" if delay else "100 pulls"
        panels[title] = {label: curve for label, curve in curves.items() if curve is not None}
    if panels := {title: curves for title, curves in panels.items() if curves}:
        save_figure(plot_regret(panels, PULLS), ROOT / "docs" / "regret.png")


def draw_past() -> None:
    """What contexts still know after a time that showed nothing; what was run."""
    labels = {kind: CONTEXTS[kind] for kind in WITH_CONTROLS}
    doors, lives = (with_lapses(prefix, labels) for prefix in ("key-to-door-explorer", "endless-explorer"))
    waits = {
        delay: {
            label: scores.optimal - scores.at(1)
            for kind, label in labels.items()
            if (scores := Scores(f"delayed-bandit{kind or '-memory'}", f"delay-{delay}")).n_seeds
        }
        for delay in DELAYS[1:]
    }
    regret = "Delayed bandit:\nregret of 100 pulls, lower is better"
    panels = {
        "Dark Key-to-Door:\nshare of lives that open the door at once": {
            f"after {n} lost\nepisode{'s' * (n > 1)}": {
                label: after_lapses(scores[at], n, 1) for label, scores in doors.items()
            }
            for at, n in enumerate((1, 4))
        },
        "Key-to-Door that goes on:\nshare of the optimum in the next 50 steps": {
            f"after {n * STRETCH} lost\nsteps": {
                label: after_stretches(scores[at], n, 1) for label, scores in lives.items()
            }
            for at, n in enumerate((1, 4))
        },
        regret: {f"{delay} steps\nof waiting": of_delay for delay, of_delay in waits.items()},
    }
    panels = {title: groups for title, groups in panels.items() if all(groups.values())}
    levels = {}
    if (memory := Scores("delayed-bandit-memory", "delay-50")).n_seeds:
        levels[regret] = "UCB, the source", ucb_regret("delayed_bandit", memory)
    if panels:
        save_figure(plot_groups(panels, levels), ROOT / "docs" / "past.png")


def draw_goals(goals: Scores) -> None:
    tasks = list_tasks(load_config(DEFAULT_CONFIG))
    share = np.full(len(tasks), np.nan)
    share[goals.tasks] = goals.at(91, 100).mean(axis=0) / goals.optimal
    held_out = np.isin(np.arange(len(tasks)), Scores("compressed").tasks)
    figure = plot_per_task(share, tasks, "share of the optimum, episodes 91 to 100", held_out)
    save_figure(figure, ROOT / "results" / "goals.png")


def draw_contexts() -> None:
    """What each context strategy shows after 210 steps of Darkroom; for docs/contexts.md."""
    shown, n_steps = {}, 210
    for label, name in (("memory", "dr_memory"), ("two regions", "dr_compressed"), ("plain window", "dr")):
        config = load_config(DEFAULT_CONFIG | {"model": ROOT / f"config/model/ad_{name}.yaml"})
        interval = config["compress_interval"] or config["n_steps"]
        context, current = (
            make_context(config | {"compress_interval": interval, "blank_starts": True, "with_dones": True}),
            n_steps % interval,
        )
        if label == "memory":
            types = context.shown_types(n_older=n_steps // interval - 1, n_current=current)
        else:  # the plain window has rolled on once
            lengths = [interval, current] if context.marks_regions else [n_steps - config["n_transit"] // 2]
            types = context.layout(torch.tensor([lengths])).types[0]
        shown[label] = types.numpy()
    save_figure(plot_contexts(shown), ROOT / "docs" / "contexts.png")
