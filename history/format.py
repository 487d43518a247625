"""Names, types and version of a history file, as the README's table describes it.

Letters in shapes: T environment steps per stream, E streams, A actions or action entries.
"""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import yaml

FORMAT_VERSION = 1  # the newest that this code reads, and the one it writes
REQUIRED_FIELDS = ("states", "actions", "rewards")
NUMBER_KINDS = "biuf"  # of dtypes: True or False, whole and real numbers
FIELDS = (*REQUIRED_FIELDS, "dones")  # what training reads of every step; the last one is optional
OF_DISCRETE = ("action_probs",)  # the source policy's distribution of discrete actions
OF_CONTINUOUS = ("action_means", "action_stds")  # and of continuous ones
KNOWN_FIELDS = (*FIELDS, "next_states", *OF_DISCRETE, *OF_CONTINUOUS, "compress_markers")  # others are not read
AXIS_OF_STREAMS = "where there is one stream, write each array with an axis of length 1 for it"
RESULTS = ("optimal_return", "mean_return_per_rollout")
RESERVED = ("seed", *RESULTS)  # attributes of a group that are no argument of its task


def soft_target_names(action_space: gym.Space) -> tuple[str, ...]:
    """The datasets that hold the source policy's distributions of such actions."""
    return OF_CONTINUOUS if isinstance(action_space, gym.spaces.Box) else OF_DISCRETE


def history_path(config: dict, traj_dir: str | Path) -> Path:
    """Where the source histories of this env, algorithm and seed are kept; of a source that knows training tasks, of this
    split.
    """
    split = f"_split-seed{config['env_split_seed']}" if config.get("learns_from") else ""
    stem = f"history_{file_name(config['env'])}_{file_name(config['alg'])}_alg-seed{config['alg_seed']}{split}"
    return Path(traj_dir) / f"{stem}.hdf5"


def file_name(name: str) -> str:
    """The name of an env or an algorithm as a part of file names."""
    return re.sub("[/:]", "-", name)


# A task's arguments as attributes of its group -------------------------------------------------------


def attribute_name(argument: str) -> str:
    """The attribute that holds a task's argument: its own name, or, where that is reserved, `task_` before it."""
    return f"task_{argument}" if _stands_for_reserved(argument) else argument


def argument_name(attribute: str) -> str | None:
    """The task's argument that an attribute holds; None for one that holds no argument."""
    if attribute in RESERVED:
        return None
    return attribute.removeprefix("task_") if _stands_for_reserved(attribute) else attribute


def _stands_for_reserved(name: str) -> bool:
    return re.fullmatch(f"(task_)*({'|'.join(RESERVED)})", name) is not None


def as_attribute(value: object) -> object:
    """Numbers, text and lists of equal numbers as they are, for HDF5; anything else as YAML."""
    is_list_of_numbers = isinstance(value, (tuple, list)) and np.asarray(value, dtype=object).ndim == 1
    if is_list_of_numbers and all(isinstance(entry, (int, float)) for entry in value):
        return np.array(value)
    return value if isinstance(value, (bool, int, float, str)) else yaml.safe_dump(value)


def from_attribute(value: object) -> object:
    """What `as_attribute` was given, as plain Python; a tuple comes back as a list."""
    plain = np.asarray(value).tolist()
    if not isinstance(plain, str) or not plain.endswith("\n"):  # as YAML does
        return plain
    try:
        return yaml.safe_load(plain)
    except yaml.YAMLError:  # plain text
        return plain
