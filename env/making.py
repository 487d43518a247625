"""Making the environments of tasks, and what they say of themselves: spaces, best return, longest episode."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import replace
from numbers import Integral, Real

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.spaces import Discrete
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from config.schema import SOURCE, SPLIT, TASKS, names
from env.families import FAMILIES, first_task, list_tasks
from env.watching import Watched, entry_sizes
from files import EnvironmentFault, InputError
from utils import import_module

_limits: dict[str, int | None] = {}  # of environments that had to be made to know


def find_spec(name: str) -> EnvSpec | None:
    """What Gymnasium knows of an id; None if it does not know it. `module:id` imports the module first."""
    module, colon, env_id = name.rpartition(":")
    if colon:
        import_module(module)
    return gym.registry.get(env_id)


def wrapped_spec(config: dict) -> EnvSpec:
    """What Gymnasium makes the config's env from: what it knows of the id, and around that `wrappers`, the first innermost."""
    spec = find_spec(config["env"])
    wrappers = [
        WrapperSpec(entry["wrapper"].partition(":")[2], *copy.deepcopy(split_wrapper(entry)))
        for entry in config.get("wrappers", ())
    ]
    return replace(spec, additional_wrappers=(*spec.additional_wrappers, *wrappers))


def split_wrapper(entry: dict) -> tuple[str, dict]:
    """The `module:Class` and the keyword arguments of an entry of `wrappers`."""
    return entry["wrapper"], {name: value for name, value in entry.items() if name != "wrapper"}


def make_env(config: dict, task: dict, render_mode: str | None = None) -> gym.Env:
    """One scalar environment of a task, with arguments of its own: it may change them."""
    drawing = {} if render_mode is None else {"render_mode": render_mode}
    if family := FAMILIES.get(config["env"]):
        return family.scalar(**task, **drawing)
    try:
        made = gym.make(wrapped_spec(config), **copy.deepcopy(task) | drawing)
    except SystemExit as error:  # it would end the script without a word
        raise EnvironmentFault(
            f"{task}: it called sys.exit({error.code!r}) when it was made; mend the environment"
        ) from error
    return Monitor(Watched(made, task))


def make_vec_env(config: dict, tasks: list[dict], render_mode: str | None = None) -> VecEnv:
    """A VecEnv of `tasks`, in their order; with `render_mode="rgb_array"`, `get_images()` gives a picture of each."""
    family = FAMILIES.get(config["env"])
    if family and family.batched:
        return family.batched(tasks, render_mode)
    return DummyVecEnv([lambda task=task: make_env(config, task, render_mode) for task in tasks])


def make_source_env(config: dict, tasks: list[dict]) -> VecEnv:
    """The VecEnv that the source algorithm is trained on; where it has a `recorded`, that is what histories hold."""
    vec_env = make_vec_env(config, tasks)
    return FAMILIES[config["env"]].source_sees(vec_env) if config["source_sees_progress"] else vec_env


def optimal_return(config: dict, task: dict) -> float | None:
    """The best possible expected return of a task, or None where its environment has no `optimal_return`."""
    with make_env(config, task) as made:
        return told_optimum(made)


def optimal_returns(config: dict, tasks: list[dict], span: int | None = None) -> np.ndarray:
    """(tasks,) best possible expected returns, NaN where not known.

    Args:
        span: of so many steps, which is known where the environment's `pays_evenly` says that its best return grows evenly.
    """
    best, share = np.full(len(tasks), np.nan), span / max_episode_steps(config) if span else 1
    for number, task in enumerate(tasks):
        with make_env(config, task) as made:
            value, is_even = told_optimum(made), getattr(made.unwrapped, "pays_evenly", False)
        if value is not None and (span is None or is_even):
            best[number] = value * share
    return best


def told_optimum(made: gym.Env) -> float | None:
    """An environment's own `optimal_return`; None where it has none.

    Raises:
        InputError: it is no finite number.
    """
    if inspect.getattr_static(made.unwrapped, "optimal_return", None) is None:
        return None
    value = made.unwrapped.optimal_return  # without a default, which would hide an AttributeError of its own
    if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
        raise InputError(f"its optimal_return is {value!r}, expected a finite number, or None where it is not known")
    return value


def spaces(config: dict) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of the family; all its tasks share them."""
    with make_env(config, first_task(config)) as made:
        return made.observation_space, made.action_space


def describe_spaces(config: dict) -> dict:
    """The config's `observation_space` and `action_space`, as plain dicts (see model/spaces.py)."""
    observations, actions = spaces(config)
    described = {"observation_space": _describe(observations), "action_space": _describe(actions)}
    if described["action_space"]["kind"] == "discrete" and not isinstance(actions, Discrete):
        described["action_space"]["kind"] = "multi_discrete"  # an action is a vector, even of one entry
    return described


def _describe(space: gym.Space) -> dict:
    if (sizes := entry_sizes(space)) is not None:
        return {"kind": "discrete", "sizes": sizes.tolist()}
    bounds = {"low": space.low.ravel().tolist(), "high": space.high.ravel().tolist()}
    return {"kind": "continuous", "sizes": [space.low.size]} | bounds


def max_episode_steps(config: dict) -> int:
    """The most steps an episode of any task can have: the environment's own limit, or the config's `horizon`."""
    tasks = list_tasks(config)
    if config["env"] in FAMILIES:
        return config["horizon"] or make_env(config, tasks[0]).horizon
    return max(own_limit(config, task) or config["horizon"] for task in tasks)


def own_limit(config: dict, task: dict) -> int | None:
    """Steps after which the environment of a Gymnasium id ends a task's episodes itself; None if it has no limit.

    That is Gymnasium's `max_episode_steps`, or an attribute `horizon` or (as Minigrid calls it) `max_steps`.
    """
    spec = find_spec(config["env"])
    limit = task.get("max_episode_steps") or spec.max_episode_steps
    if limit and limit != -1:  # Gymnasium's word for none
        return limit
    key = f"{spec} {config.get('wrappers')} {task}"
    if key not in _limits:
        with make_env(config, task) as made:
            found = [getattr(made.unwrapped, name, None) for name in ("horizon", "max_steps")]
            found += [made.spec.max_episode_steps] if limit is None else []
        _limits[key] = next((int(steps) for steps in found if isinstance(steps, Integral) and steps > 0), None)
    return _limits[key]


def keys_read(config: dict) -> tuple[str, ...]:
    """The env section's keys that decide what this env's tasks are: where their values agree, the tasks do.

    Of an env without a step limit of its own, `horizon` is one of them; for a source that learns from the training
    tasks, also what splits them off.
    """
    family = FAMILIES.get(config["env"])
    read = [
        "env",
        "n_tasks",
        *(family.keys if family else ("env_kwargs", "wrappers", "task_kwargs", "task_ranges", "task_number")),
    ]
    if config["n_tasks"] is not None:
        read.append("task_seed")
    if family and family.source_sees:
        read.append("source_sees_progress")
    if not family and not all(own_limit(config, task) for task in list_tasks(config)):
        read.append("horizon")
    if config.get("learns_from"):
        read += names(SPLIT)
    return tuple(name for name in names(SOURCE, TASKS, SPLIT, section="env") if name in read)
