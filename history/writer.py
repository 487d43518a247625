"""Writing of history files: one task at a time, then all of them joined, or named by an index.

Letters in shapes: T environment steps per stream, E streams.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np
import yaml

from files import write_atomically
from history.format import FORMAT_VERSION, as_attribute, attribute_name
from history.markers import region_bounds
from history.returns import mean_return_per_rollout
from utils import git_commit, library_versions

HDF5_FORMAT = ("v110", "v110")  # its metadata carry checksums too; read by HDF5 1.10 (2016) and newer
NOT_RECORDED = "not recorded"  # of parts that older code wrote


def write_history(
    path: Path, group_name: str, history: dict[str, np.ndarray], attributes: dict, chunk_steps: int
) -> None:
    """Write one task's arrays, chunked along time, compressed and with checksums, and what code made them."""
    with h5py.File(path, "w", libver=HDF5_FORMAT) as file:
        file.attrs.update({"git_commit": git_commit(), "versions": _as_yaml(library_versions())})
        group = file.create_group(group_name)
        for name, array in history.items():
            chunks = (min(chunk_steps, len(array)), *array.shape[1:])
            group.create_dataset(name, data=array, chunks=chunks, compression="gzip", shuffle=True, fletcher32=True)
        group.attrs.update(attributes)
        contents = {name: f"{data.dtype} {data.shape}" for name, data in group.items()}
        file.attrs["every_task"] = _as_yaml(contents)  # where all tasks agree, readers need not open each one to know


def task_attributes(task: dict, seed: int, optimal_return: float | None, history: dict[str, np.ndarray]) -> dict:
    """The attributes of a task's group: its arguments, its seed, and what the source reached.

    Args:
        task: keyword arguments of the task's environment.
        history: the task's arrays, with `rewards` and `dones` (T, E) and `compress_markers` (T,).
    """
    attributes = {attribute_name(name): as_attribute(value) for name, value in task.items()}
    regions = region_bounds(history["compress_markers"])
    means = mean_return_per_rollout(history["rewards"], history["dones"], regions)
    attributes |= {"seed": seed, "mean_return_per_rollout": means.astype(np.float32)}
    return attributes if optimal_return is None else attributes | {"optimal_return": optimal_return}


def join_files(
    output: Path, parts: dict[int, Path], config: dict, copy: bool = True, created_utc: str | None = None
) -> None:
    """Put all tasks into one file, which gets its name only when it is whole.

    Args:
        parts: the file that holds each task, as `write_history` or this function writes it.
        config: the complete config, which the joined file records.
        copy: False leaves the tasks where they are: the file only names, relative to its folder, where each one is
            (HDF5's external links).
        created_utc: of the collection; default: now.

    Raises:
        WriteError: the file could not be written.
    """
    tasks_of: dict[Path, list[int]] = {}
    for task, path in parts.items():
        tasks_of.setdefault(path, []).append(task)

    def write(temporary: Path) -> None:
        commits, versions, contents = [], [], set()
        with h5py.File(temporary, "w", libver=HDF5_FORMAT) as file:
            for path, tasks in tasks_of.items():
                with h5py.File(path) as part:
                    for task in tasks if copy else ():
                        part.copy(str(task), file)
                    commits.append({"git_commit": part.attrs.get("git_commit", NOT_RECORDED)})
                    versions.append(yaml.safe_load(part.attrs.get("versions", "{}")))
                    contents.add(part.attrs.get("every_task"))
            if not copy:
                names = {path: os.path.relpath(path, output.parent) for path in tasks_of}
                for task, path in parts.items():
                    file[str(task)] = h5py.ExternalLink(names[path], f"/{task}")
                file.attrs["shards"] = list(names.values())  # so that readers need not follow every link to check them
            file.attrs.update({"format_version": FORMAT_VERSION, "config": _as_yaml(dict(config))})
            file.attrs.update({"versions": _as_yaml(_all_different(versions)), **_all_different(commits)})
            file.attrs["created_utc"] = created_utc or datetime.now(UTC).isoformat(timespec="seconds")
            if len(contents) == 1 and None not in contents:
                file.attrs["every_task"] = contents.pop()

    write_atomically(output, write)


def _all_different(records: list[dict[str, str]]) -> dict[str, str]:
    """What the records say under each name, every different value once; a record may hold several, as joined files do."""
    names = dict.fromkeys(name for record in records for name in record)
    told = {name: [value for r in records for value in r.get(name, NOT_RECORDED).split(", ")] for name in names}
    return {name: ", ".join(dict.fromkeys(values)) for name, values in told.items()}


def _as_yaml(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False)
