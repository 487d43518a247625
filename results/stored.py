"""The stored scores of the study, and what is computed from them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from plots.intervals import interval

SCORES = ROOT / "results" / "scores"
WINDOWS = {"80": 80, "160": 160, "320": 320, "full": 480}  # plain windows: name in settings, and steps
WINDOW_LABELS = {"80": "80 steps", "160": "160 steps", "320": "320 steps", "full": "full history (480 steps)"}
SHOWN_WINDOWS = ("160", "full")  # in the first table and figure
BANDITS = {"bandit": 0, "delayed_bandit": 50}  # env: steps of waiting in its config
DELAYS = (0, 50, 100, 200)  # steps of waiting, on bandits
N_PULLS = 100  # pulls that pay of a bandit's life; half of them lie before the waiting, half after it
PULLS = 10  # steps of a bandit's life to one point of a regret curve
LAPSES = (20, 40, 60, 80)  # the first of one or four episodes, or stretches, of random actions
STRETCH = 50  # steps
LIFE, SPAN = 4000, 500  # steps of a life of Key-to-Door that goes on, and of a stretch in which doors are counted
FAMILIES = {  # env: its name in the tables, and the best published mean return on held-out tasks, of the optimum, if any
    "darkroom_permuted": ("Darkroom-Permuted", "33.7 of 35"),
    "darkroom_large": ("Darkroom-Large", "42.5 of 43.5"),
    "dark_key_to_door": ("Dark Key-to-Door", "1.97 of 2; AD 1.81"),
    "darkroom_hard": ("Dark Room Hard", "not compared"),
}
CONTROL = {  # env: its name; 60 episodes in context
    "cartpole": "CartPole",
    "pendulum": "Pendulum",
    "reacher": "Reacher, hidden target",
    "half_cheetah_vel": "HalfCheetah-Vel",
    "metaworld_reach": "Meta-World reach-v3",
    "frozen_lake": "FrozenLake, random maps",
    "hidden_goal": "MiniGrid, hidden goal",
}


class Scores:
    """The stored returns of one setting, evaluated in one way.

    Attributes:
        seeds: the training seeds, in order. returns: (seeds, goals, repeats, episodes). optimal: (goals,).
    """

    def __init__(self, setting: str, evaluation: str = "default", split: int = 0, seeds: list[int] | None = None):
        """`seeds`: those to take; None takes all that were run."""
        paths = SCORES.glob(f"{setting}_split-{split}_seed-*_{evaluation}.npz")
        of_seeds = {int(path.name.rpartition("_seed-")[2].partition("_")[0]): path for path in paths}
        self.name = setting, evaluation, split
        self.seeds = sorted(of_seeds if seeds is None else set(seeds) & set(of_seeds))
        self.n_seeds, loaded = len(self.seeds), [np.load(of_seeds[seed]) for seed in self.seeds]
        if loaded:
            self.returns = np.stack([scores["returns"] for scores in loaded]).astype(np.float64)
            self.optimal, self.tasks = loaded[0]["optimal"], loaded[0]["tasks"]
            self.random = float(np.mean([scores["random_returns"].mean() for scores in loaded]))

    def beside(self, other: Scores) -> tuple[Scores, Scores]:
        """Both, with the seeds that both have."""
        return Scores(*self.name, other.seeds), Scores(*other.name, self.seeds)

    def at(self, first: int, last: int | None = None) -> np.ndarray:
        """(seeds, goals) mean return over episodes `first` to `last`, counted from 1."""
        return self.returns[..., first - 1 : last or first].mean(axis=(-1, -2))

    def never_found(self, n_episodes: int = 100) -> float:
        """Share of repeats without any reward in the first episodes."""
        return float((self.returns[..., :n_episodes].sum(axis=-1) == 0).mean())


def regret_along_a_life(kind: str, env: str) -> np.ndarray | None:
    """(seeds, tasks, spans) what a context loses to the best arm in every PULLS steps, or (1, tasks, spans) what `UCB` does.

    None where it was not run.
    """
    delay = BANDITS[env]
    ends = Scores(f"{env.replace('_', '-')}-memory", f"delay-{delay}" if delay else "default")
    if kind == "UCB":
        path = SCORES / f"source_{env}.npz"
        gained = np.load(path).get("pulls") if path.exists() else None
        gained = gained if gained is None else gained[None]
    else:
        scores = Scores(f"{env.replace('_', '-')}-{kind}", "pulls")
        gained = scores.returns.mean(axis=2) if scores.n_seeds else None
    if gained is None or not ends.n_seeds:
        return None
    pays = np.ones(N_PULLS + delay)
    pays[N_PULLS // 2 : N_PULLS // 2 + delay] = 0
    return ends.optimal[:, None] / N_PULLS * pays.reshape(-1, PULLS).sum(axis=1) - gained


def ucb_regret(env: str, scores: Scores) -> float:
    """What UCB loses to the best arm over a life, on the tasks of `scores`; it does not depend on a delay."""
    return scores.optimal.mean() - source(env)["returns"][-1]


def with_interval(values: np.ndarray) -> str:
    """The mean of (seeds, goals) values with its 95 % interval."""
    low, high = interval(values)
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def source(env: str) -> dict[str, np.ndarray]:
    """`episodes` (P,) and mean `returns` (P,) of the source on the held-out tasks."""
    return np.load(SCORES / f"source_{env}.npz")


def both_modes(env: str) -> tuple[Scores, Scores]:
    """A family's scores, compressed and standard."""
    return Scores(f"{env}-compressed"), Scores(f"{env}-standard")


def with_memory() -> dict[str, Scores]:
    """Memory on the same histories and on the explorer's, and what two regions do there; those that were run."""
    labels = {
        "memory": "memory, PPO's causal histories", "explorer": "**memory, explorer's histories**",
        "quick": "**two regions, explorer's histories** (`make run`)",
    }  # fmt: skip
    return {label: scores for name, label in labels.items() if (scores := Scores(name)).n_seeds}


def best_standard() -> dict[str, Scores]:
    """Per window, by its name, the evaluation whose temperature did best: the held-out goals choose for the baseline alone."""
    found = {}
    for name in WINDOWS:
        options = [Scores(f"standard-{name}", f"temperature-{t}") for t in ("0.6", "1.0")]
        options = [scores for scores in options if scores.n_seeds]
        if options:
            found[name] = max(options, key=lambda scores: scores.at(91, 100).mean())
    return found


def after_first_success(scores: Scores, wanted: float = 0.01) -> float:
    """How often the episode after the first one that returned `wanted` returns as much too; by default, any reward."""
    succeeded = scores.returns.reshape(-1, scores.returns.shape[-1]) >= wanted
    first = succeeded[:, :-1].argmax(axis=1)
    met = succeeded[np.arange(len(first)), first]
    return float(succeeded[np.arange(len(first)), first + 1][met].mean())


def after_misses(scores: Scores, n: int) -> float:
    """How often an episode opens the door that follows one that did, and n that did not."""
    opened = scores.returns.reshape(-1, scores.returns.shape[-1]) == 2
    follows = opened[:, : -n - 1].copy()
    for miss in range(1, n + 1):
        follows &= ~opened[:, miss : miss - n - 1]
    return float(opened[:, n + 1 :][follows].mean())


def share_missed(scores: Scores) -> float:
    """Share of the episodes that do not open the door, right after one that did."""
    opened = scores.returns == 2
    return float((opened[..., :-1] & ~opened[..., 1:]).mean())


def with_lapses(prefix: str, labels: dict[str, str]) -> dict[str, tuple[Scores, Scores]]:
    """For the label of each kind of context, its scores after one random episode or stretch, and after four in a row.

    Args:
        labels: by the end of a setting's name; those that were run are taken.
    """
    found = {
        label: tuple(Scores(f"{prefix}{kind}-{name}") for name in ("lapsed", "lapsed-4"))
        for kind, label in labels.items()
    }
    return {label: scores for label, scores in found.items() if all(of.n_seeds for of in scores)}


def after_lapses(scores: Scores, n_lost: int, n: int) -> np.ndarray:
    """How often the n-th episode after `n_lost` random ones opens the door that the last one before them opened, and they did not.

    Returns:
        (seeds, tasks) shares; where a task has no such lapse, the mean of all.
    """
    opened = scores.returns == 2  # (seeds, tasks, repeats, episodes)
    n_told, n_back = 0, 0
    for first in LAPSES:
        before, lost = opened[..., first - 2], opened[..., first - 1 : first - 1 + n_lost].any(axis=-1)
        told = before & ~lost
        n_told, n_back = n_told + told.sum(-1), n_back + (told & opened[..., first - 2 + n_lost + n]).sum(-1)
    return np.where(n_told > 0, n_back / np.maximum(n_told, 1), n_back.sum() / n_told.sum())


def after_stretches(scores: Scores, n_lost: int, n: int) -> np.ndarray:
    """(seeds, tasks) share of the optimum in the n-th stretch after `n_lost` random ones."""
    at = [first - 2 + n_lost + n for first in LAPSES]
    return scores.returns[..., at].mean(axis=(-1, -2)) / scores.optimal
