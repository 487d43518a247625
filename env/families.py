"""The families that come with this code and their Gymnasium ids; the list of a config's tasks, and their only split.

A new family is one file with its classes, and one line in `FAMILIES`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from env.darkroom import (
    Darkroom,
    DarkroomHard,
    DarkroomHardVecEnv,
    DarkroomPermuted,
    DarkroomPermutedVecEnv,
    DarkroomVecEnv,
)
from env.endless_key_to_door import EndlessKeyToDoor, EndlessKeyToDoorVecEnv
from env.key_to_door import DarkKeyToDoor, DarkKeyToDoorVecEnv, ShowFound


@dataclass(frozen=True)
class Family:
    """What there is to know of a family.

    Attributes:
        scalar: one task. Its static `tasks(config)` lists the keyword arguments of every task. Its attribute
            `horizon`, the most steps of an episode, is the same for all of them.
        env_id: the Gymnasium id of the scalar class.
        defaults: arguments that the id alone stands for.
        batched: many tasks stepped at once, with the results of a DummyVecEnv of them.
        source_sees: a wrapper that shows the source, not the model, how far an episode has come.
        keys: config keys that `tasks(config)` reads.
    """

    scalar: type[gym.Env]
    env_id: str
    defaults: dict
    batched: type[VecEnv] | None = None
    source_sees: type[VecEnvWrapper] | None = None
    keys: tuple[str, ...] = ("grid_size", "horizon")


FAMILIES = {
    "darkroom": Family(Darkroom, "Darkroom-v0", {"goal": (0, 0)}, DarkroomVecEnv),
    "darkroom_large": Family(  # a name, and so files, of its own
        Darkroom, "DarkroomLarge-v0", {"goal": (0, 0), "grid_size": 15, "horizon": 50}, DarkroomVecEnv
    ),
    "darkroom_permuted": Family(DarkroomPermuted, "DarkroomPermuted-v0", {}, DarkroomPermutedVecEnv),
    "darkroom_hard": Family(DarkroomHard, "DarkroomHard-v0", {"goal": (0, 0)}, DarkroomHardVecEnv),
    "dark_key_to_door": Family(
        DarkKeyToDoor, "DarkKeyToDoor-v0", {"key": (0, 0), "door": (8, 8)}, DarkKeyToDoorVecEnv, ShowFound
    ),
    "endless_key_to_door": Family(
        EndlessKeyToDoor, "EndlessKeyToDoor-v0", {"key": (0, 0), "door": (8, 8)}, EndlessKeyToDoorVecEnv, ShowFound
    ),
}
for _family in FAMILIES.values():
    gym.register(_family.env_id, _family.scalar, kwargs=_family.defaults)
gym.register("Bandit-v0", entry_point="env.bandit:Bandit")
gym.register("DelayedBandit-v0", entry_point="env.bandit:Bandit", kwargs={"delay": 50})
gym.register("CartPoleTask-v0", entry_point="env.cartpole:CartPoleTask", max_episode_steps=200)
gym.register("FrozenLakeTask-v0", entry_point="env.frozen_lake:FrozenLakeTask", max_episode_steps=50)
gym.register("HiddenGoal-v0", entry_point="env.hidden_goal:HiddenGoal")
gym.register("ReacherTask-v0", entry_point="env.mujoco_tasks:ReacherTask", max_episode_steps=50)
gym.register("HalfCheetahVel-v0", entry_point="env.mujoco_tasks:HalfCheetahVel", max_episode_steps=200)
gym.register(
    "MetaWorldReach-v0", entry_point="env.metaworld_tasks:ReachTask", max_episode_steps=500, disable_env_checker=True
)


def list_tasks(config: dict) -> list[dict]:
    """Keyword arguments of every task, in task order: index i here is group `i` of a history file.

    With `n_tasks` these are a sample, drawn with `task_seed`. With a larger one the first tasks stay the same.
    """
    n_tasks, rng = config["n_tasks"], np.random.default_rng(config["task_seed"])
    if (ranges := config["task_ranges"]) or config["task_number"]:
        names = sorted(ranges)  # so that their order in the YAML does not matter
        low, high = np.array([ranges[name] for name in names], dtype=float).reshape(-1, 2).T
        drawn = rng.uniform(low, high, size=(n_tasks, len(names))).tolist()
        numbers = [{config["task_number"]: i} if config["task_number"] else {} for i in range(n_tasks)]
        return [config["env_kwargs"] | number | dict(zip(names, values)) for number, values in zip(numbers, drawn)]
    family = whole_family(config)
    return family if n_tasks is None else [family[i] for i in rng.permutation(len(family))[:n_tasks]]


def count_tasks(config: dict) -> int:
    """How many tasks `list_tasks` gives."""
    return len(whole_family(config)) if config["n_tasks"] is None else config["n_tasks"]


def first_task(config: dict) -> dict:
    """The first one of `list_tasks`, without drawing the others."""
    return list_tasks(config if config["n_tasks"] is None else config | {"n_tasks": 1})[0]


def whole_family(config: dict) -> list[dict]:
    """The tasks that `n_tasks` takes a sample of; not for tasks that are drawn from ranges."""
    if config["env"] in FAMILIES:
        return FAMILIES[config["env"]].scalar.tasks(config)
    return [config["env_kwargs"] | kwargs for kwargs in config["task_kwargs"] or [{}]]


def split_tasks(config: dict) -> dict[str, list[int]]:
    """Task indices of mode `train`, `test` (held out) and `all`; the one place that splits."""
    indices = list(range(count_tasks(config)))
    shuffled = indices.copy()
    random.Random(config["env_split_seed"]).shuffle(shuffled)
    n_train = max(1, round(config["train_env_ratio"] * len(indices)))
    if config["train_env_ratio"] < 1 and len(indices) > 1:
        n_train = min(n_train, len(indices) - 1)  # a small family still holds one task out
    return {"train": shuffled[:n_train], "test": shuffled[n_train:], "all": indices}


def why_no_tasks(config: dict) -> str:
    """What to say of a mode in which `split_tasks` gives none."""
    if count_tasks(config) == 1:
        return "has no tasks: there is only one, and it is trained on; take mode train, or list more tasks"
    return f"has no tasks, since train_env_ratio is {config['train_env_ratio']}"


def differing_arguments(family: list[dict]) -> list[str]:
    """The names of the arguments that tell the tasks of a family apart."""
    every = dict.fromkeys(name for task in family for name in task)
    return [name for name in every if any(task.get(name) != family[0].get(name) for task in family)]


def task_labels(tasks: list[dict], family: list[dict]) -> list[str]:
    """A heading, then for each task the values of those arguments that differ within the family."""
    names = differing_arguments(family)
    rows = [[task.get(name, "-") for name in names] for task in tasks]
    shown = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    return ["; ".join(row) or "-" for row in [names, *shown]]
