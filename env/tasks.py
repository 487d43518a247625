"""The list of a config's tasks, and the only train/test split."""

from __future__ import annotations

import random

import numpy as np

from env.families import FAMILIES


def list_tasks(config: dict) -> list[dict]:
    """Keyword arguments of every task, in task order: index i here is group `i` of a history file.

    With `n_tasks` these are a sample, drawn with `task_seed`. With a larger one the first tasks stay the same.
    """
    if config["task_ranges"]:
        return [config["env_kwargs"] | kwargs for kwargs in _draw_from_ranges(config)]
    family = whole_family(config)
    if config["n_tasks"] is None:
        return family
    order = np.random.default_rng(config["task_seed"]).permutation(len(family))
    return [family[i] for i in order[: config["n_tasks"]]]


def whole_family(config: dict) -> list[dict]:
    """The tasks that `n_tasks` takes a sample of; not for tasks that are drawn from ranges."""
    if config["env"] in FAMILIES:
        return FAMILIES[config["env"]].scalar.tasks(config)
    return [config["env_kwargs"] | kwargs for kwargs in config["task_kwargs"] or [{}]]


def _draw_from_ranges(config: dict) -> list[dict]:
    """`n_tasks` sets of arguments, uniform within `task_ranges`."""
    names = sorted(config["task_ranges"])  # so that their order in the YAML does not matter
    low, high = np.array([config["task_ranges"][name] for name in names], dtype=float).T
    rng = np.random.default_rng(config["task_seed"])
    values = rng.uniform(low, high, size=(config["n_tasks"], len(names))).tolist()
    return [dict(zip(names, row)) for row in values]


def split_tasks(config: dict) -> dict[str, list[int]]:
    """Task indices of mode `train`, `test` (held out) and `all`; the one place that splits."""
    indices = list(range(len(list_tasks(config))))
    shuffled = indices.copy()
    random.Random(config["env_split_seed"]).shuffle(shuffled)
    n_train = max(1, round(config["train_env_ratio"] * len(indices)))
    if config["train_env_ratio"] < 1 and len(indices) > 1:
        n_train = min(n_train, len(indices) - 1)  # a small family still holds one task out
    return {"train": shuffled[:n_train], "test": shuffled[n_train:], "all": indices}


def task_labels(tasks: list[dict], family: list[dict]) -> list[str]:
    """A heading, then for each task the values of those arguments that differ within the family."""
    every = dict.fromkeys(name for task in family for name in task)
    names = [name for name in every if any(task.get(name) != family[0].get(name) for task in family)]

    def shown(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [[shown(task.get(name, "-")) for name in names] for task in tasks]
    return ["; ".join(row) or "-" for row in [names, *rows]]
