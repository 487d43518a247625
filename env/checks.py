"""Finding what is wrong with the environment part of a config, before any work."""

from __future__ import annotations

import difflib
import re

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from config.schema import KEYS
from env.families import FAMILIES
from env.making import find_spec, make_env, own_limit
from env.spaces import space_problems
from env.tasks import list_tasks, whole_family
from files import describe_foreign_error


def config_problems(config: dict) -> list[str]:
    """What is wrong with the environment part of a config, beyond types and ranges.

    Where one of those is wrong, nothing is checked: `load_config` has told it.
    """
    if any(name not in config or key.problem(config[name]) for name, key in KEYS["env"].items()):
        return []
    return _name_problems(config["env"]) or _task_problems(config) or _made_problems(config)


def told(task: int, kwargs: dict) -> str:
    """A task's number and arguments, for a message."""
    return f"task {task}, {str(kwargs)[:120]}"


# The name ------------------------------------------------------------------------------------------


def _name_problems(name: str) -> list[str]:
    if name in FAMILIES:
        return []
    try:
        known = find_spec(name) is not None
    except Exception as error:  # whatever a user's module raises
        return [f"env: the module of '{name}' cannot be imported: {describe_foreign_error(error)}"]
    if known:
        return []
    return [
        f"env: '{name}' is neither one of {', '.join(FAMILIES)} nor a registered Gymnasium id{_nearest(name)}; "
        "module:id imports the module that registers it"
    ]


def _nearest(name: str) -> str:
    """A hint at other versions of an unknown id, or at names that are spelt like it."""
    module, colon, env_id = name.rpartition(":")

    def stem(other: str) -> str:
        return re.sub(r"-v\d+$", "", other).lower()

    versions = sorted(other for other in gym.registry if stem(other) == stem(env_id))
    if versions:
        return f"; there is {' and '.join(module + colon + other for other in versions)}"
    close = difflib.get_close_matches(env_id, [*FAMILIES, *gym.registry], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


# The keys that say what the tasks are ----------------------------------------------------------------


def _task_problems(config: dict) -> list[str]:
    """Contradictions between the keys that say what the tasks are."""
    name, ranges, n_tasks, problems = config["env"], config["task_ranges"], config["n_tasks"], []
    showing = [other for other, family in FAMILIES.items() if family.source_sees]
    if config["source_sees_progress"] and name not in showing:
        problems.append(f"source_sees_progress: env '{name}' has nothing to show; only {', '.join(showing)} has")
    if name in FAMILIES:
        unread = [key for key in ("env_kwargs", "task_kwargs", "task_ranges") if config[key]]
        problems += [f"{key}: env '{name}' has its own list of tasks and does not read it" for key in unread]
    elif not all(isinstance(kwargs, dict) for kwargs in config["task_kwargs"]):
        problems.append("task_kwargs: expected a list of mappings, the keyword arguments of each task")
    elif ranges:
        problems += _range_problems(config)
    if not problems and not ranges and n_tasks is not None and n_tasks > len(whole_family(config)):
        problems.append(f"n_tasks {n_tasks} is more than the {len(whole_family(config))} tasks there are")
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


# The environments ------------------------------------------------------------------------------------


def _made_problems(config: dict) -> list[str]:
    """What shows when every task's environment is made; of a shipped family the first one tells all."""
    name, tasks, found = config["env"], list_tasks(config), []
    needs_horizon = False
    for number, task in enumerate(tasks[:1] if name in FAMILIES else tasks):
        try:
            made = make_env(config, task)
            found.append((made.observation_space, made.action_space))
            made.close()
            needs_horizon |= name not in FAMILIES and not (config["horizon"] or own_limit(config, task))
        except Exception as error:  # whatever a user's environment raises
            return [f"env: '{name}' cannot be made: {told(number, task)}: {describe_foreign_error(error)}"]
    observations, actions = found[0]
    odd = [number for number, both in enumerate(found) if both != found[0]]
    problems = [f"env: task {number}: its observations or actions are not those of task 0" for number in odd[:1]]
    problems += space_problems("observation", observations)
    if config.get("exploration_bonus") and isinstance(observations, Box):
        problems.append(f"exploration_bonus: counts visits, but '{name}' has real-valued observations; set it to 0")
    problems += space_problems("action", actions)
    if needs_horizon:
        problems.append(
            f"horizon: missing, and '{name}' has no step limit of its own; if it ends every episode itself, say how many "
            "steps the longest one has: --set horizon=200; else let Gymnasium end them: "
            "--set 'env_kwargs={max_episode_steps: 200}'"
        )
    return problems
