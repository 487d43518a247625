"""The task families: their list of tasks, the only train/test split, and how to step them.

`env` in a config names a family of `ENVIRONMENT`, or any Gymnasium id: a registered one, or
`module:id`, where importing the module registers it. The tasks of the latter are its `task_kwargs`,
or are drawn from its `task_ranges`; of any list, `n_tasks` takes a sample. Importing this package registers the ids of `REGISTERED`.
"""

from __future__ import annotations

import importlib
import random

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from env.darkroom import (
    Darkroom,
    DarkroomHard,
    DarkroomHardVecEnv,
    DarkroomPermuted,
    DarkroomPermutedVecEnv,
    DarkroomVecEnv,
)
from env.key_to_door import DarkKeyToDoor, DarkKeyToDoorVecEnv, ShowFound

ENVIRONMENT = {  # a class with a static `tasks(config)`
    "darkroom": Darkroom,
    "darkroom_large": Darkroom,  # a name, and so files, of its own
    "darkroom_permuted": DarkroomPermuted,
    "darkroom_hard": DarkroomHard,
    "dark_key_to_door": DarkKeyToDoor,
}
VEC_ENVIRONMENT = {  # batched form; families without one use DummyVecEnv
    "darkroom": DarkroomVecEnv,
    "darkroom_large": DarkroomVecEnv,
    "darkroom_permuted": DarkroomPermutedVecEnv,
    "darkroom_hard": DarkroomHardVecEnv,
    "dark_key_to_door": DarkKeyToDoorVecEnv,
}
PROGRESS = {"dark_key_to_door": ShowFound}  # shows the source, not the model, how far an episode has come
REGISTERED = {  # Gymnasium id: where it is, and its default arguments
    "Darkroom-v0": ("env.darkroom:Darkroom", {"goal": (0, 0)}),
    "DarkroomLarge-v0": ("env.darkroom:Darkroom", {"goal": (0, 0), "grid_size": 15, "horizon": 50}),
    "DarkroomPermuted-v0": ("env.darkroom:DarkroomPermuted", {}),
    "DarkroomHard-v0": ("env.darkroom:DarkroomHard", {"goal": (0, 0)}),
    "DarkKeyToDoor-v0": ("env.key_to_door:DarkKeyToDoor", {"key": (0, 0), "door": (8, 8)}),
}
for _id, (_entry_point, _kwargs) in REGISTERED.items():
    gym.register(_id, entry_point=_entry_point, kwargs=_kwargs)
gym.register("CartPoleTask-v0", entry_point="env.cartpole:CartPoleTask", max_episode_steps=200)


# Checking -----------------------------------------------------------------------------------------


def config_problems(config: dict) -> list[str]:
    """What is wrong with the environment part of a config, beyond types and ranges."""
    name = config["env"]
    if name not in ENVIRONMENT:
        try:
            known = _is_registered(name)
        except Exception as error:  # whatever a user's module raises
            return [f"env: the module of '{name}' cannot be imported: {type(error).__name__}: {error}"]
        if not known:
            return [
                f"env: '{name}' is neither one of {', '.join(ENVIRONMENT)} nor a registered Gymnasium id; "
                "module:id imports the module that registers it"
            ]
    if problems := _task_problems(config):
        return problems
    try:
        observations, actions = spaces(config)
        odd = [] if name in ENVIRONMENT else _tasks_of_other_spaces(config)
    except Exception as error:  # whatever a user's environment raises
        return [f"env: '{name}' cannot be made: {type(error).__name__}: {error}"]
    problems = [f"env: task {task}: its observations or actions are not those of task 0" for task in odd[:1]]
    problems += _space_problems("observation", observations, (Discrete, MultiDiscrete, Box))
    if config.get("exploration_bonus") and isinstance(observations, Box):
        problems.append(f"exploration_bonus: counts visits, but '{name}' has real-valued observations; set it to 0")
    return problems + _space_problems("action", actions, (Discrete, Box))


def _tasks_of_other_spaces(config: dict) -> list[int]:
    made = [make_env(config, task) for task in list_tasks(config)]
    found = [(environment.observation_space, environment.action_space) for environment in made]
    for environment in made:
        environment.close()
    return [task for task, both in enumerate(found) if both != found[0]]


def _is_registered(name: str) -> bool:
    module, colon, env_id = name.rpartition(":")
    if colon:
        importlib.import_module(module)
    return env_id in gym.registry


def _task_problems(config: dict) -> list[str]:
    """Contradictions between the keys that say what the tasks are."""
    name, ranges, n_tasks, problems = config["env"], config["task_ranges"], config["n_tasks"], []
    if config["source_sees_progress"] and name not in PROGRESS:
        problems.append(f"source_sees_progress: env '{name}' has nothing to show; only {', '.join(PROGRESS)} has")
    if name in ENVIRONMENT:
        unread = [key for key in ("env_kwargs", "task_kwargs", "task_ranges") if config[key]]
        problems += [f"{key}: env '{name}' has its own list of tasks and does not read it" for key in unread]
    elif not all(isinstance(kwargs, dict) for kwargs in config["task_kwargs"]):
        problems.append("task_kwargs: expected a list of mappings, the keyword arguments of each task")
    elif ranges:
        problems += _range_problems(config)
    if not problems and not ranges and n_tasks is not None and n_tasks > len(_whole_family(config)):
        problems.append(f"n_tasks {n_tasks} is more than the {len(_whole_family(config))} tasks there are")
    return problems


def _range_problems(config: dict) -> list[str]:
    problems = []
    if config["task_kwargs"]:
        problems.append("task_kwargs and task_ranges are both given; the tasks are either listed or drawn")
    if config["n_tasks"] is None:
        problems.append("n_tasks is missing: how many tasks to draw from task_ranges")
    for argument, bounds in config["task_ranges"].items():
        if not _is_range(bounds):
            problems.append(f"task_ranges: {argument}: {bounds!r}: expected [low, high], two numbers, the lower first")
        if argument in config["env_kwargs"]:
            problems.append(f"task_ranges: {argument} is in env_kwargs too; it is either fixed or drawn")
    return problems


def _is_range(bounds: object) -> bool:
    if not isinstance(bounds, list) or len(bounds) != 2:
        return False
    is_number = [isinstance(b, (int, float)) and not isinstance(b, bool) and np.isfinite(b) for b in bounds]
    return all(is_number) and bounds[0] < bounds[1]


def _space_problems(role: str, space: gym.Space, supported: tuple[type, ...]) -> list[str]:
    if not isinstance(space, supported):
        names = ", ".join(kind.__name__ for kind in supported)
        return [f"env: its {role} space is {space}, expected one of {names}"]
    if role == "action" and len(space.shape) > 1:
        return [f"env: its action space {space} has several axes; wrap it in one that has a single axis"]
    if np.any(getattr(space, "start", 0)):
        return [f"env: its {role} space {space} does not start at 0; wrap it in one that does"]
    if isinstance(space, MultiDiscrete) and space.nvec.ndim > 1:
        return [f"env: its {role} space {space} has several axes; wrap it in one that has a single axis"]
    if role == "action" and isinstance(space, Box) and not (np.isfinite(space.low) & np.isfinite(space.high)).all():
        return [f"env: its action space {space} has no finite bounds, as PPO needs; wrap it in one that has"]
    if is_image_space(space):
        return [f"env: its {role} space {space} is an image; wrap it in one that gives a vector"]
    return []


# Tasks --------------------------------------------------------------------------------------------


def list_tasks(config: dict) -> list[dict]:
    """Keyword arguments of every task, in task order: index i here is group `i` of a history file.

    With `n_tasks` these are a sample, drawn with `task_seed`. With a larger one the first tasks stay the same.
    """
    if config["task_ranges"]:
        return [config["env_kwargs"] | kwargs for kwargs in _draw_from_ranges(config)]
    family = _whole_family(config)
    if config["n_tasks"] is None:
        return family
    order = np.random.default_rng(config["task_seed"]).permutation(len(family))
    return [family[i] for i in order[: config["n_tasks"]]]


def task_labels(tasks: list[dict], family: list[dict]) -> list[str]:
    """A heading, then for each task the values of those arguments that differ within the family."""
    every = dict.fromkeys(name for task in family for name in task)
    names = [name for name in every if any(task.get(name) != family[0].get(name) for task in family)]

    def shown(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [[shown(task.get(name, "-")) for name in names] for task in tasks]
    return ["; ".join(row) or "-" for row in [names, *rows]]


def _whole_family(config: dict) -> list[dict]:
    if config["env"] in ENVIRONMENT:
        return ENVIRONMENT[config["env"]].tasks(config)
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


def make_env(config: dict, task: dict, render_mode: str | None = None) -> gym.Env:
    """One scalar environment of a task."""
    drawing = {} if render_mode is None else {"render_mode": render_mode}
    if config["env"] in ENVIRONMENT:
        return ENVIRONMENT[config["env"]](**task, **drawing)
    return Monitor(gym.make(config["env"], **task, **drawing))


def make_vec_env(config: dict, tasks: list[dict], render_mode: str | None = None) -> VecEnv:
    """A VecEnv with one environment per entry of `tasks`, in that order.

    With `render_mode="rgb_array"` its `get_images()` gives a picture of each environment.
    """
    if config["env"] in VEC_ENVIRONMENT:
        return VEC_ENVIRONMENT[config["env"]](tasks, render_mode)
    return DummyVecEnv([lambda task=task: make_env(config, task, render_mode) for task in tasks])


def make_source_env(config: dict, tasks: list[dict]) -> VecEnv:
    """The VecEnv that the source algorithm is trained on; where it has a `recorded`, that is what histories hold."""
    vec_env = make_vec_env(config, tasks)
    return PROGRESS[config["env"]](vec_env) if config["source_sees_progress"] else vec_env


def max_episode_steps(config: dict) -> int:
    """The most steps an episode can have: Gymnasium's limit, or the environment's own `horizon`, or the config's."""
    if config["env"] in ENVIRONMENT:
        return config["horizon"]
    limits = []
    for task in list_tasks(config):
        made = make_env(config, task)
        own = getattr(made.unwrapped, "horizon", None)  # of an environment that ends its episodes itself
        limits.append(made.spec.max_episode_steps or own or config["horizon"])
        made.close()
    return max(limits)


def optimal_return(config: dict, task: dict) -> float | None:
    """The best possible expected return of a task, or None where its environment has no `optimal_return`."""
    made = make_env(config, task)
    made.close()
    return getattr(made.unwrapped, "optimal_return", None)


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
