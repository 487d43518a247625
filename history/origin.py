"""Opening of history files, and what they say of their origin."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import yaml

import env
from config.loading import differences, load_config, recorded_settings
from config.schema import KEYS
from files import InputError, one_line
from history.format import FORMAT_VERSION, NUMBER_KINDS
from history.markers import REGION_END, of_first_stream, rollout_length
from scripts import families, family_paths, sources
from utils import ROOT

# What h5py raises for a damaged file. MemoryError is not among them: it says nothing of the file
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, LookupError, AttributeError, OverflowError)


class Damaged(InputError):
    """A file that HDF5 cannot read; `__cause__` is what it says."""


@dataclass(frozen=True)
class Origin:
    """What a history file says of where it comes from.

    Attributes:
        recorded: the config it was collected with; {} in older files.
        created_utc, git_commit, versions: of the collection; "" where the file does not say. `versions` is YAML.
        rollout_length: steps per stream in a rollout: the recorded `n_steps`, else the most common distance
            between region starts of the first task that has a finished region; None without markers.
        fields: the datasets that any task has.
        n_streams, most_streams: the fewest and the most of any task; None where none has states.
        format_version: 1 for older files, which have none.
    """

    recorded: dict
    created_utc: str
    git_commit: str
    versions: str
    rollout_length: int | None
    fields: frozenset[str]
    n_streams: int | None
    most_streams: int | None
    format_version: int


def read_origin(path: Path, config: dict | None = None) -> Origin:
    """What a file says of its origin.

    Args:
        config: names, in messages, the command that collects the file; None if that is not known.

    Raises:
        InputError: the file is missing, damaged, or newer than this code reads.
    """
    with open_history(path, config) as file:
        return origin_of(file, path, config)


def origin_of(file: h5py.File, path: Path, config: dict | None = None) -> Origin:
    """`read_origin` for a file that is open."""
    recorded = recorded_config(file, path, config)
    with reading(path, config):
        told = dict(file.attrs)
        names, streams, lengths, length = set(), set(), [], recorded.get("n_steps")
        is_known = isinstance(length, int) and length >= 2
        for task in telling_tasks(file, config):
            group = task_group(file, path, task, config)
            if isinstance(group, h5py.Group):
                names |= set(group)
                streams |= {count_streams(group)} - {None}
                if not is_known and not any(is_finished for _, is_finished in lengths):  # else no markers are read
                    lengths += marked_lengths(group)
    if not is_known:
        length = next((n for n, is_finished in lengths if is_finished), lengths[0][0] if lengths else None)
    texts = [str(told.get(name, "")) for name in ("created_utc", "git_commit", "versions")]
    version = int(told.get("format_version", FORMAT_VERSION))
    fewest, most = min(streams, default=None), max(streams, default=None)
    return Origin(recorded, *texts, length, frozenset(names), fewest, most, version)


def when_made(path: Path, config: dict) -> str:
    """When a history file was collected; where it does not say, what tells its contents from others: a checksum."""
    with open_history(path, config) as file, reading(path, config):
        if created := str(file.attrs.get("created_utc", "")):
            return created
        checksum = 0
        for task in telling_tasks(file, config):
            group = task_group(file, path, task, config)
            if isinstance(group, h5py.Group) and isinstance(data := group.get("rewards"), h5py.Dataset):
                checksum = zlib.crc32(np.ascontiguousarray(data[()]).tobytes(), checksum)
    return f"at no known time, with rewards of checksum {checksum:08x},"


def telling_tasks(file: h5py.File, config: dict | None) -> list[int]:
    """The tasks of the config's env that tell what an open file holds: one, where the file says that all are alike."""
    if "every_task" in file.attrs:
        return [task for task in [first_task(file)] if task is not None]
    n_tasks = len(env.list_tasks(config)) if config else None
    return [task for task in task_numbers(file) if n_tasks is None or task < n_tasks]


def count_streams(group: h5py.Group) -> int | None:
    """The streams that a task's `states` hold; None where these are missing, or no array of streams."""
    shape = getattr(group.get("states"), "shape", None) or ()
    return shape[1] if len(shape) > 1 else None


def marked_lengths(group: h5py.Group) -> list[tuple[int, bool]]:
    """The steps of a rollout by a task's markers, and whether a rollout is finished; empty where it has no markers."""
    data = group.get("compress_markers")
    is_array = isinstance(data, h5py.Dataset) and data.dtype.kind in NUMBER_KINDS
    if not is_array or not data.size or data.ndim not in (1, 2):
        return []
    markers = of_first_stream(np.asarray(data[()]))
    return [(rollout_length(markers), REGION_END in markers)]


def recorded_config(file: h5py.File, path: Path, config: dict | None = None) -> dict:
    """The config that an open file was collected with; {} for an older file's, or another program's."""
    with reading(path, config):
        text = file.attrs.get("config")
    try:
        recorded = yaml.safe_load(text) if isinstance(text, (str, bytes)) else {}
    except yaml.YAMLError:
        recorded = {}
    return recorded if isinstance(recorded, dict) else {}


def env_differences(recorded: dict, config: dict) -> str:
    """In what the env of a recorded config differs from the config's, in words; empty if in nothing."""
    told = [name for name in KEYS["env"] if name in recorded]
    if all(recorded[name] == config.get(name) for name in told):
        return ""  # whichever of them are read, which is costly to tell for many tasks
    read = env.keys_read(config)
    return differences(recorded, config, [name for name in read if name in recorded], "in the config")


def check_env(recorded: dict, path: Path, config: dict) -> None:
    """Raise InputError for a file that says it was collected on another environment than the config's."""
    if differing := env_differences(recorded, config):
        raise InputError(
            f"{path}: was collected on another environment ({differing}); use the env config it was collected with, "
            "or collect again"
        )


# Opening ------------------------------------------------------------------------------------------


def open_history(path: Path, config: dict | None = None) -> h5py.File:
    """Open a history file for reading.

    Raises:
        InputError: the file is missing, damaged, or newer than this code reads.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such history file; collect it with: {collect_command(config, path)}")
    with ExitStack() as on_error:
        with reading(path, config):
            file = h5py.File(path, rdcc_nbytes=0)  # no cache of chunks: 1 MB per dataset, and pieces are whole chunks
            on_error.callback(file.close)
            version = file.attrs.get("format_version", FORMAT_VERSION)  # older files have none
        if not isinstance(version, (int, np.integer)):
            raise InputError(f"{path}: format_version {version!r}: expected a whole number; collect it again")
        if version > FORMAT_VERSION:
            raise InputError(
                f"{path}: format_version {version} is newer than this code reads, {FORMAT_VERSION}; update the code"
            )
        on_error.pop_all()
    return file


def task_numbers(file: h5py.File) -> list[int]:
    """The tasks that an open file holds, in order."""
    return sorted(int(name) for name in file if name.isdecimal() and name == str(int(name)))


def first_task(file: h5py.File) -> int | None:
    """The lowest task of an open file; None if it holds none. Mostly 0: then the others are not listed."""
    return 0 if file.id.links.exists(b"0") else min(task_numbers(file), default=None)


def task_group(file: h5py.File, path: Path, task: int | None, config: dict | None = None) -> h5py.Group | None:
    """The group of a task in an open file, or in the shard that holds it; None if there is no such task.

    Raises:
        InputError: the file names a shard for it that is missing, damaged, or lacks it.
    """
    with reading(path, config):
        group, shard = file.get(str(task)), find_shard(file, task)
    if group is not None or shard is None:
        return group
    check_shards(path, [shard], config)
    with reading(path, config, shard), h5py.File(shard):
        raise InputError(f"{shard}: has no group '{task}', for which {path} names it; collect it again")


def check_shards(path: Path, shards: Iterable[Path], config: dict | None = None) -> None:
    """Raise InputError where a shard that a history file names is missing."""
    for shard in sorted(shards):
        if not shard.is_file():
            raise InputError(
                f"{path}: its shard {shard} is missing; move it back, or collect again with: "
                f"{collect_command(config, path)} --overwrite"
            )


def shards_of(file: h5py.File, tasks: list[int]) -> set[Path]:
    """The shards that an open history file names for these tasks; none where it holds them itself.

    Where all shards that the file lists are there, they stand for those of the tasks: to read the link of each task takes
    long in a file of many.
    """
    if find_shard(file, tasks[0]) is None:
        return set()
    listed = {Path(file.filename).parent / name for name in file.attrs.get("shards", ())}
    if listed and len(listed) < len(tasks) and all(shard.is_file() for shard in listed):
        return listed
    return {find_shard(file, task) for task in tasks} - {None}


def find_shard(file: h5py.File, task: int | None) -> Path | None:
    """The file that an open history file names for a task; None where it holds the task itself, or has no such task."""
    name, links = str(task).encode(), file.id.links
    if not links.exists(name) or links.get_info(name).type != h5py.h5l.TYPE_EXTERNAL:
        return None
    return Path(file.filename).parent / os.fsdecode(links.get_val(name)[0])


@contextmanager
def reading(path: Path, config: dict | None = None, shard: Path | None = None) -> Iterator[None]:
    """Around calls of h5py: what it raises for a damaged file, or its shard, becomes `Damaged`. Nothing else does."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:  # the system's: no permission, locked, a broken disk
            raise InputError(f"{shard or path}: cannot be read ({one_line(error, 200)})") from error
        raise Damaged(
            f"{shard or path}: damaged or no HDF5 file ({one_line(error, 200)}); collect it again with: "
            f"{collect_command(config, path)} --overwrite"
        ) from error


def collect_command(config: dict | None, path: Path) -> str:
    """The command that collects a history file, as far as the config's settings are those of a shipped family."""
    folder = "" if path.parent == Path("datasets") else f" --traj-dir {path.parent}"
    if config is None:
        return f"python collect.py NAME{folder}"
    for name, source in product(families(), (None, *sources())):
        paths = family_paths(name, source=source)
        if not (ROOT / paths["algorithm"]).is_file():  # not every source has settings for every family
            continue
        shipped = load_config({section: paths[section] for section in ("env", "algorithm")})
        if (shipped["env"], shipped["alg"]) == (config.get("env"), config.get("alg")):
            changed = differences(recorded_settings(shipped), config, recorded_settings(shipped))
            which = name if source is None else f"{name} --source {source}"
            return f"python collect.py {which}{folder}{' and the same --set as here' if changed else ''}"
    return f"python collect.py{folder} with the same --env-config, --alg-config and --set as here"
