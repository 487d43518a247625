"""Stepping every task's environment a little before it is collected from."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.monitor import Monitor

from env.checks import told
from env.families import FAMILIES
from env.making import make_env
from env.tasks import list_tasks
from files import describe_foreign_error

STEPS = 5  # of each task
MOST_STEPS = 2_000  # of all tasks; but at least one of each


def probe_tasks(config: dict) -> list[str]:
    """What would spoil histories: identical tasks, or what an environment gives when it is stepped.

    Every task is reset and takes a few random actions; of a shipped family only the first one does. For
    configs in which `config_problems` finds nothing.
    """
    if same := _identical(config["task_kwargs"]):
        first, second = same
        return [
            f"task_kwargs: entries {first} and {second} are the same task, {config['task_kwargs'][first]}; leave one out, "
            "so that no task is both trained on and held out"
        ]
    name, tasks = config["env"], list_tasks(config)
    n_steps = max(1, min(STEPS, MOST_STEPS // len(tasks)))
    for number, task in enumerate(tasks[:1] if name in FAMILIES else tasks):
        if found := _probe(config, task, n_steps):
            return [f"env: '{name}': {told(number, task)}: {found}"]
    return []


def _identical(tasks: list[dict]) -> tuple[int, int] | None:
    """The numbers of the first two tasks with the same arguments."""
    seen: dict[str, int] = {}
    for number, task in enumerate(tasks):
        first = seen.setdefault(str(sorted(task.items())), number)
        if first != number:
            return first, number
    return None


def _probe(config: dict, task: dict, n_steps: int) -> str | None:
    """What one task's environment does wrong, and at which step, or None."""
    made = make_env(config, task)
    made = made.env if isinstance(made, Monitor) else made  # Monitor itself stumbles over what is no number
    made.action_space.seed(0)
    where, ended = "reset", True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's own, about the same faults
            for step in range(n_steps + 1):
                where = "reset" if ended else f"step {step}"
                given = _reset(made) if ended else _step(made)
                for argument, value in given.items():
                    if found := _wrong(argument, value, made.observation_space):
                        return f"{where}: {argument}: {found}; mend the environment, or wrap it"
                ended = bool(given.get("terminated") or given.get("truncated"))
    except Exception as error:  # whatever a user's environment raises
        return f"{where}: {describe_foreign_error(error)}"
    finally:
        made.close()
    return None


def _reset(made: gym.Env) -> dict:
    observation, _ = made.reset(seed=0)
    return {"observation": observation}


def _step(made: gym.Env) -> dict:
    observation, reward, terminated, truncated, _ = made.step(made.action_space.sample())
    return {"observation": observation, "reward": reward, "terminated": terminated, "truncated": truncated}


def _wrong(argument: str, value: object, space: gym.Space) -> str | None:
    """What a step gave and what it should have given, or None if it is as it should be."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return f"{repr(value)[:120]}: expected one array"
    shown = repr(array.tolist())[:120]
    if argument == "observation":
        return _outside(array, space, shown)
    if argument == "reward":
        fits = array.shape == () and array.dtype.kind in "biuf" and np.isfinite(array)
        return None if fits else f"{shown}: expected a finite number"
    fits = array.shape == () and array.dtype.kind in "biu" and array in (0, 1)
    return None if fits else f"{shown}: expected True or False"


def _outside(array: np.ndarray, space: gym.Space, shown: str) -> str | None:
    """What is wrong with an observation, as `_wrong` says it."""
    is_real = isinstance(space, Box) and space.dtype.kind == "f"
    if array.dtype.kind not in ("biuf" if is_real else "biu"):
        return f"{shown}: expected {'numbers' if is_real else 'whole numbers'}, as in its {space}; got {array.dtype}"
    if array.shape != space.shape:
        return f"{shown}: expected the shape {space.shape} of its {space}, got {array.shape}"
    if isinstance(space, Box):
        low, high = space.low, space.high
        with np.errstate(over="ignore"):
            array = array.astype(space.dtype) if is_real else array
    else:
        low, high = 0, (space.n if isinstance(space, Discrete) else space.nvec) - 1
    fits = np.isfinite(array) & (array >= low) & (array <= high)
    if fits.all():
        return None
    bad = tuple(int(i) for i in np.argwhere(~fits)[0])
    place = f" (entry {bad[0] if len(bad) == 1 else bad})" if bad else ""
    return f"{array[bad]}{place}: expected finite numbers within its {space}"
