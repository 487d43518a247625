"""Finding what is wrong with the environment part of a config, before any work."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import shlex
import warnings
from collections.abc import Iterator
from datetime import date

import gymnasium as gym
import numpy as np
import yaml
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.spaces.utils import flatdim
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space

from config.schema import KEYS
from env.families import FAMILIES, list_tasks, whole_family
from env.making import find_spec, keys_read, make_env, max_episode_steps, own_limit, split_wrapper, told_optimum
from env.watching import Watched, entry_sizes
from files import EnvironmentFault, InputError, describe_foreign_error
from utils import find_class

SUPPORTED = (Discrete, MultiDiscrete, MultiBinary, Box)
FLATTEN = '{wrapper: "gymnasium.wrappers:FlattenObservation"}'
PROBE_STEPS = 5  # of each task
MOST_VALUES = 1_000_000  # of a discrete entry
MOST_PROBE_STEPS = 2_000  # of all tasks; but at least one of each


def stepped_problems(config: dict) -> list[str]:
    """`config_problems`, and where there are none what shows when the tasks are stepped."""
    return config_problems(config) or probe_tasks(config)


def config_problems(config: dict) -> list[str]:
    """What is wrong with the environment part of a config, beyond types and ranges.

    Where one of those is wrong, nothing is checked: `load_config` has told it.
    """
    if any(name not in config or key.problem(config[name]) for name, key in KEYS["env"].items()):
        return []
    of_keys = [*_argument_problems(config), *_wrapper_problems(config), *_task_problems(config)]
    return _name_problems(config["env"]) or of_keys or _made_problems(config)


def unread_notes(config: dict) -> list[str]:
    """Which of `grid_size` and `horizon` are set, and not given to the environment."""
    return [
        f"{name}: {config[name]}: {config['env']} does not read it; give the environment's own settings in env_kwargs"
        for name in ("grid_size", "horizon")
        if config[name] != KEYS["env"][name].default and name not in keys_read(config)
    ]


def _tasks_to_make(config: dict) -> list[tuple[str, dict]]:
    """The tasks to try, each after what a message calls it; the first one of a shipped family tells all."""
    tasks = list_tasks(config)[: 1 if config["env"] in FAMILIES else None]
    return [(f"task {number}, {str(task)[:120]}", task) for number, task in enumerate(tasks)]


def _argument_problems(config: dict) -> list[str]:
    """The first argument under each key that neither history files nor checkpoints can hold."""
    found = {key: list(_unkept(config[key]))[:1] for key in ("env_kwargs", "task_kwargs", "wrappers")}
    return [
        f"{key}: {value!r}: expected text, numbers (not nan; whole ones of 64 bits), True, False or null, and lists and "
        "mappings of them, by names that are text; quotes make text of a date"
        for key, values in found.items()
        for value in values
    ]


def _unkept(value: object) -> Iterator[object]:
    """What cannot be kept, of a value of YAML and all that is in it."""
    if isinstance(value, dict):
        yield from (name for name in value if not isinstance(name, str))
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from _unkept(entry)
    elif not _is_kept(value):
        yield value


def _is_kept(value: object) -> bool:
    if isinstance(value, float):
        return not math.isnan(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return "\0" not in value if isinstance(value, str) else not isinstance(value, (date, bytes, set))


def _name_problems(name: str) -> list[str]:
    try:
        if name in FAMILIES or find_spec(name):
            return []
    except Exception as error:  # whatever a user's module raises
        return [f"env: the module of '{name}' cannot be imported: {describe_foreign_error(error)}"]
    problem = f"'{name}' is neither one of {', '.join(FAMILIES)} nor a registered Gymnasium id{_nearest(name)}"
    return [f"env: {problem}; module:id imports the module that registers it"]


def _nearest(name: str) -> str:
    """A hint at other versions of an unknown id, or at names that are spelt like it."""
    module, colon, env_id = name.rpartition(":")

    def stem(other: str) -> str:
        return re.sub(r"-v\d+$", "", other).lower()

    if versions := sorted(other for other in gym.registry if stem(other) == stem(env_id)):
        return f"; there is {' and '.join(module + colon + other for other in versions)}"
    close = difflib.get_close_matches(env_id, [*FAMILIES, *gym.registry], n=3)
    named = [other if other in FAMILIES else module + colon + other for other in close]
    return f"; did you mean {' or '.join(named)}?" if close else ""


def _wrapper_problems(config: dict) -> list[str]:
    """What is wrong with `wrappers` that shows before anything is wrapped."""
    if config["wrappers"] and (family := FAMILIES.get(config["env"])):
        return [f"wrappers: env '{config['env']}' is stepped in batches, without wrappers; use env: {family.env_id}"]
    found = (_wrapper_problem(entry) for entry in config["wrappers"])
    return [f"wrappers: entry {number}: {problem}" for number, problem in enumerate(found) if problem]


def _wrapper_problem(entry: object) -> str | None:
    if not isinstance(entry, dict) or not re.fullmatch(r"[\w.]+:\w+", str(entry.get("wrapper"))):
        return f"{entry!r}: expected a module, a class and its arguments, as in {FLATTEN}"
    name, arguments = split_wrapper(entry)
    try:
        signature = inspect.signature(find_class(name, {}))
    except Exception as error:  # whatever a user's module raises
        return f"'{name}' cannot be imported: {describe_foreign_error(error)}"
    try:
        signature.bind(env=None, **arguments)
    except TypeError as error:
        own = ", ".join(argument for argument in signature.parameters if argument != "env")
        return f"'{name}' takes other arguments: {error}; it takes {own or 'none'}"
    return None


def _task_problems(config: dict) -> list[str]:
    """Contradictions between the keys that say what the tasks are."""
    name, n_tasks, problems = config["env"], config["n_tasks"], []
    is_drawn = bool(config["task_ranges"] or config["task_number"])
    showing = [other for other, family in FAMILIES.items() if family.source_sees]
    if config["source_sees_progress"] and name not in showing:
        problems.append(f"source_sees_progress: env '{name}' has nothing to show; only {', '.join(showing)} has")
    if name in FAMILIES:
        unread = [key for key in ("env_kwargs", "task_kwargs", "task_ranges", "task_number") if config[key]]
        problems += [f"{key}: env '{name}' has its own list of tasks and does not read it" for key in unread]
    elif not all(isinstance(kwargs, dict) for kwargs in config["task_kwargs"]):
        problems.append("task_kwargs: expected a list of mappings, the keyword arguments of each task")
    elif is_drawn:
        problems += _range_problems(config)
    if not problems and not is_drawn and n_tasks is not None and n_tasks > len(whole_family(config)):
        problems.append(f"n_tasks {n_tasks} is more than the {len(whole_family(config))} tasks there are")
    return problems


def _range_problems(config: dict) -> list[str]:
    problems = []
    drawing = "task_ranges" if config["task_ranges"] else "task_number"
    if config["task_kwargs"]:
        problems.append(f"task_kwargs and {drawing} are both given; the tasks are either listed or drawn")
    if config["n_tasks"] is None:
        problems.append(f"n_tasks is missing: how many tasks to draw from {drawing}")
    if config["task_number"] in config["env_kwargs"] | config["task_ranges"]:
        problems.append(f"task_number: {config['task_number']} is in env_kwargs or task_ranges too; leave it out there")
    for argument, bounds in config["task_ranges"].items():
        is_pair = isinstance(bounds, list) and len(bounds) == 2 and all(type(bound) in (int, float) for bound in bounds)
        if not (is_pair and -np.inf < bounds[0] < bounds[1] < np.inf):
            problems.append(f"task_ranges: {argument}: {bounds!r}: expected [low, high], two numbers, the lower first")
        if argument in config["env_kwargs"]:
            problems.append(f"task_ranges: {argument} is in env_kwargs too; it is either fixed or drawn")
    return problems


def _made_problems(config: dict) -> list[str]:
    """What shows when the tasks' environments are made."""
    name, found, needs_horizon = config["env"], [], False
    for label, task in _tasks_to_make(config):
        try:
            with make_env(config, task) as made:
                found.append((made.observation_space, made.action_space))
                told_optimum(made)
            needs_horizon |= name not in FAMILIES and not (config["horizon"] or own_limit(config, task))
        except InputError as error:
            return [f"env: '{name}': {label}: {error}"]
        except Exception as error:  # whatever a user's environment raises
            return [f"env: '{name}' cannot be made: {label}: {describe_foreign_error(error)}"]
    observations, actions = found[0]
    odd = [number for number, both in enumerate(found) if both != found[0]]
    problems = [
        f"env: task {number}: its observations or actions, {', '.join(map(str, found[number]))}, are not those of task 0, "
        f"{observations}, {actions}"
        for number in odd[:1]
    ]
    problems += _space_problems("observation", observations)
    if config.get("exploration_bonus") and isinstance(observations, Box):
        problems.append(f"exploration_bonus: counts visits, but '{name}' has real-valued observations; set it to 0")
    problems += _space_problems("action", actions)
    if needs_horizon:
        problems.append(
            f"horizon: missing, and '{name}' has no step limit of its own; if it ends every episode itself, say how many "
            f"steps the longest one has: --set horizon=200; else let Gymnasium end them: {_with_limit(config, 200)}"
        )
    return problems


def _with_limit(config: dict, n_steps: int) -> str:
    """The flag that lets Gymnasium end episodes; it takes the place of all of `env_kwargs`, so it repeats these."""
    shown = yaml.safe_dump(config["env_kwargs"] | {"max_episode_steps": n_steps}, default_flow_style=True, width=10_000)
    return f"--set {shlex.quote(f'env_kwargs={shown.strip()}')}"


def no_episode_ended(config: dict) -> str:
    """What to say of an evaluation that counts nothing, since in some environments no episode ended."""
    return (
        f"in some environments no episode ended: by the env or `horizon` the longest one has {max_episode_steps(config)} steps; "
        "let evaluate.py wait longer with --set horizon=N, or count the returns of so many steps with --span"
    )


def check_horizon(config: dict, overrides: list[str]) -> None:
    """Raise InputError where the command line sets a `horizon` that nothing reads."""
    is_set = config["horizon"] is not None and any(override.startswith("horizon=") for override in overrides)
    if is_set and "horizon" not in keys_read(config):
        raise InputError(
            f"--set horizon: '{config['env']}' ends its episodes itself, so nothing reads it; leave it out, or set its own limit, "
            f"as with {_with_limit(config, config['horizon'])} for ids of Gymnasium's"
        )


def _space_problems(role: str, space: gym.Space) -> list[str]:
    """The first reason why a space cannot be used as `role`, "observation" or "action"."""
    if not isinstance(space, SUPPORTED):
        kinds = ", ".join(kind.__name__ for kind in SUPPORTED)
        return [f"env: its {role} space is {space}, expected one of {kinds}; {_remedy(role, space)}"]
    has_axes = len(space.shape) > 1 and not isinstance(space, Box)
    is_whole = role == "action" and isinstance(space, Box) and space.dtype.kind != "f"
    is_endless = role == "action" and isinstance(space, Box) and not np.isfinite([space.low, space.high]).all()
    sizes = entry_sizes(space)
    is_huge = sizes is not None and np.max(sizes, initial=0) > MOST_VALUES
    wrongs = {
        "has no entries": 0 in space.shape,
        f"has entries of more than {MOST_VALUES:,} values, each of which is embedded": is_huge,
        "has several axes": has_axes,
        "has no axis": role == "observation" and isinstance(space, Box) and not space.shape,
        "is of whole numbers, which MultiDiscrete is for": is_whole,
        "does not start at 0": np.any(getattr(space, "start", 0)),
        "has no finite bounds, as PPO needs": is_endless,
        "is an image": is_image_space(space),
    }
    return [
        f"env: its {role} space {space} {wrong}; {_remedy(role, space)}" for wrong, is_so in wrongs.items() if is_so
    ][:1]


def _remedy(role: str, space: gym.Space) -> str:
    """The wrappers that would make a space usable."""
    if role == "observation" and _can_be_flat(space):
        return f"this makes it a vector: wrappers: [{FLATTEN}]"
    flat = [name for name, entry in space.items() if _can_be_flat(entry)] if isinstance(space, Dict) else []
    if role == "observation" and flat:
        keep = f'{{wrapper: "gymnasium.wrappers:FilterObservation", filter_keys: [{", ".join(flat)}]}}'
        return f"this makes a vector of what can be in one: wrappers: [{keep}, {FLATTEN}]"
    return f'write a gymnasium.Wrapper with such {role}s, and name it: wrappers: [{{wrapper: "module:Class"}}]'


def _can_be_flat(space: gym.Space) -> bool:
    try:
        return flatdim(space) > 0
    except (NotImplementedError, ValueError):  # a class that Gymnasium does not know, or no fixed size
        return False


# Stepping the environments ------------------------------------------------------------------------


def probe_tasks(config: dict) -> list[str]:
    """What would spoil histories: identical tasks, or what an environment gives when it is stepped.

    Every task is reset and takes a few random actions; of a shipped family only the first one does. For
    configs in which `config_problems` finds nothing.
    """
    seen: dict[object, int] = {}
    listed = whole_family(config) if config["task_kwargs"] else []
    for number, task in enumerate(listed):
        first = seen.setdefault(_comparable(task), number)
        if first != number:
            same = f"task_kwargs: entries {first} and {number} are the same task, {listed[first]}"
            return [f"{same}; leave one out, so that no task is both trained on and held out"]
    labelled = _tasks_to_make(config)
    for number, (_, task) in enumerate(labelled):
        if found := _probe(config, task, n_steps=max(1, min(PROBE_STEPS, MOST_PROBE_STEPS // len(labelled)))):
            return [f"env: '{config['env']}': task {number}, {found}"]
    return []


def _comparable(value: object) -> object:
    """A value of YAML as one that can be looked up: equal ones are equal, as 1 and 1.0, whatever the order of names."""
    if isinstance(value, dict):
        return frozenset((name, _comparable(entry)) for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_comparable, value))
    return value if isinstance(value, (int, float)) else repr(value)


def _probe(config: dict, task: dict, n_steps: int) -> str | None:
    """What one task's environment does wrong, with its arguments and the step, or None."""
    made = make_env(config, task)
    made = made.env if isinstance(made, Monitor) else Watched(made, task)  # shipped families are not watched
    made.checks_bounds = True
    made.action_space.seed(0)
    ended = True
    try:
        with made, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's own, about the same faults
            for _ in range(n_steps + 1):
                if ended:
                    made.reset(seed=0)
                    ended = False
                else:
                    _, _, terminated, truncated, _ = made.step(made.action_space.sample())
                    ended = bool(terminated or truncated)
    except EnvironmentFault as fault:
        return str(fault)
    except Exception as error:  # whatever a user's environment raises
        return describe_foreign_error(error)
    return None
