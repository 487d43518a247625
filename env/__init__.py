"""The task families: their list of tasks, the only train/test split, and how to step them.

`env` in a config names a family of `ENVIRONMENT`, or any registered Gymnasium id; the tasks of the
latter are its `task_kwargs`.
"""

from __future__ import annotations

import random

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from env.darkroom import Darkroom, DarkroomVecEnv

ENVIRONMENT = {"darkroom": Darkroom}  # a class with a static `tasks(config)`
VEC_ENVIRONMENT = {"darkroom": DarkroomVecEnv}  # batched form; families without one use DummyVecEnv


def config_problems(config: dict) -> list[str]:
    """What is wrong with the environment part of a config, beyond types and ranges."""
    name = config["env"]
    if name not in ENVIRONMENT and name not in gym.registry:
        return [f"env: '{name}' is neither one of {', '.join(ENVIRONMENT)} nor a registered Gymnasium id"]
    if name not in ENVIRONMENT and not all(isinstance(kwargs, dict) for kwargs in config["task_kwargs"]):
        return ["task_kwargs: expected a list of mappings, the keyword arguments of each task"]
    try:
        observations, actions = spaces(config)
    except Exception as error:  # whatever a user's environment raises
        return [f"env: '{name}' cannot be made: {type(error).__name__}: {error}"]
    return _space_problems("observation", observations, (Discrete, MultiDiscrete, Box)) + _space_problems(
        "action", actions, (Discrete, Box)
    )


def _space_problems(role: str, space: gym.Space, supported: tuple[type, ...]) -> list[str]:
    if not isinstance(space, supported):
        names = ", ".join(kind.__name__ for kind in supported)
        return [f"env: its {role} space is {space}, expected one of {names}"]
    if role == "action" and len(space.shape) > 1:
        return [f"env: its action space {space} has several axes; wrap it in one that has a single axis"]
    if np.any(getattr(space, "start", 0)):
        return [f"env: its {role} space {space} does not start at 0; wrap it in one that does"]
    return []


def list_tasks(config: dict) -> list[dict]:
    """Keyword arguments of every task, in task order: index i here is group `i` of a history file."""
    if config["env"] in ENVIRONMENT:
        return ENVIRONMENT[config["env"]].tasks(config)
    return [config["env_kwargs"] | kwargs for kwargs in config["task_kwargs"] or [{}]]


def split_tasks(config: dict) -> dict[str, list[int]]:
    """Task indices of mode `train`, `test` (held out) and `all`; the one place that splits."""
    indices = list(range(len(list_tasks(config))))
    shuffled = indices.copy()
    random.Random(config["env_split_seed"]).shuffle(shuffled)
    n_train = max(1, round(config["train_env_ratio"] * len(indices)))
    if config["train_env_ratio"] < 1 and len(indices) > 1:
        n_train = min(n_train, len(indices) - 1)  # a small family still holds one task out
    return {"train": shuffled[:n_train], "test": shuffled[n_train:], "all": indices}


def make_env(config: dict, task: dict) -> gym.Env:
    """One scalar environment of a task."""
    if config["env"] in ENVIRONMENT:
        return ENVIRONMENT[config["env"]](**task)
    return Monitor(gym.make(config["env"], **task))


def make_vec_env(config: dict, tasks: list[dict]) -> VecEnv:
    """A VecEnv with one environment per entry of `tasks`, in that order."""
    if config["env"] in VEC_ENVIRONMENT:
        return VEC_ENVIRONMENT[config["env"]](tasks)
    return DummyVecEnv([lambda task=task: make_env(config, task) for task in tasks])


def max_episode_steps(config: dict) -> int:
    """The most steps an episode can have: Gymnasium's own limit where there is one, else `horizon`."""
    if config["env"] in ENVIRONMENT:
        return config["horizon"]
    limits = []
    for task in list_tasks(config):
        made = make_env(config, task)
        limits.append(made.spec.max_episode_steps or config["horizon"])
        made.close()
    return max(limits)


def optimal_return(config: dict, task: dict) -> float | None:
    """The best possible expected return of a task, or None where the family does not know it."""
    if config["env"] not in ENVIRONMENT:
        return None
    return getattr(make_env(config, task), "optimal_return", None)


def spaces(config: dict) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of the family; all its tasks share them."""
    made = make_env(config, list_tasks(config)[0])
    made.close()
    return made.observation_space, made.action_space


def describe_spaces(config: dict) -> dict:
    """The config's `observation_space` and `action_space`, as plain dicts (see model/spaces.py)."""
    observations, actions = spaces(config)
    return {"observation_space": _describe(observations), "action_space": _describe(actions)}


def _describe(space: gym.Space) -> dict:
    if isinstance(space, Discrete):
        return {"kind": "discrete", "sizes": [int(space.n)]}
    if isinstance(space, MultiDiscrete):
        return {"kind": "discrete", "sizes": [int(n) for n in space.nvec.ravel()]}
    description = {"kind": "continuous", "sizes": [int(np.prod(space.shape))]}
    return description | {"low": space.low.ravel().tolist(), "high": space.high.ravel().tolist()}
