"""One file or many: tasks are collected into files of their own, which are joined, or kept as shards behind an index.

    python -m history.join datasets/history_darkroom_PPO_alg-seed42.hdf5     # makes one file of an index and its shards

An index is a history file whose groups are HDF5's external links into shards. A shard is a history file of some of the
tasks. The shards of NAME.hdf5 are in a folder NAME.shards-TIME beside it. Links are relative to the index, so index and
folder can be moved together.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import h5py

from files import InputError, lock
from history.origin import (
    check_shards,
    find_shard,
    first_task,
    open_history,
    reading,
    recorded_config,
    task_group,
    task_numbers,
)
from history.writer import join_files
from scripts import run_script


def files_of_tasks(folder: Path) -> dict[int, Path]:
    """The file that holds each task: `3.hdf5` one of its own, `tasks-0-99.hdf5` one of several."""
    found = {int(path.stem): path for path in folder.glob("*.hdf5") if path.stem.isdecimal()}
    for path in folder.glob("tasks-*.hdf5"):
        with reading(path), h5py.File(path) as file:
            found |= dict.fromkeys(task_numbers(file), path)
    return found


def make_shards(folder: Path, tasks: Iterable[int], shard_tasks: int, config: dict) -> None:
    """Join those of the tasks that have files of their own, `shard_tasks` at a time by their number."""
    files = {task: path for task in tasks if (path := folder / f"{task}.hdf5").is_file()}
    for shard in sorted({task // shard_tasks for task in files}):
        own = {task: path for task, path in files.items() if task // shard_tasks == shard}
        join_files(folder / f"tasks-{min(own)}-{max(own)}.hdf5", own, config)
        for path in own.values():
            path.unlink()


def shard_maker(folder: Path, pending: list[int], shard_tasks: int, config: dict) -> Callable[[int], None]:
    """What to call after each of the `pending` tasks: it makes a shard as soon as all of its tasks are there."""
    left = Counter(task // shard_tasks for task in pending)

    def finished(task: int) -> None:
        shard = task // shard_tasks
        left[shard] -= 1
        if not left[shard]:
            make_shards(folder, range(shard * shard_tasks, (shard + 1) * shard_tasks), shard_tasks, config)

    return finished


def write_index(output: Path, parts: Path, config: dict) -> None:
    """Give the folder of the parts its final name, and write the file that names them; older shards are removed.

    An earlier output is readable until the new one is complete.
    """
    folder = output.with_name(f"{output.stem}.shards-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
    files = {task: folder / path.name for task, path in sorted(files_of_tasks(parts).items())}
    parts.rename(folder)
    join_files(output, files, config, copy=False)
    remove_unnamed_shards(output)


def unnamed_shards(output: Path) -> list[Path]:
    """The output's folders of shards that no index beside it names, under whatever name that is now kept, oldest first.

    They are of an earlier output, or of one not yet finished.
    """
    folders = sorted(output.parent.glob(f"{output.stem}.shards-*"))
    named = set()
    for path in output.parent.glob("*.hdf5") if folders else ():
        try:
            with open_history(path) as file, reading(path):
                shard = find_shard(file, first_task(file))
        except InputError:  # a damaged one names nothing
            continue
        except OSError:  # one that cannot be read now may name any
            return []
        named.add(shard and shard.parent.name)
    return [folder for folder in folders if folder.name not in named]


def remove_unnamed_shards(output: Path) -> None:
    for folder in unnamed_shards(output):
        shutil.rmtree(folder)


def join_shards(path: Path) -> None:
    """Replace an index by one file of all its tasks, and remove the shards.

    Raises:
        InputError: the file is no index, or a shard is missing or damaged.
    """
    with open_history(path) as file:
        with reading(path):
            tasks = task_numbers(file)
        shards = {task: find_shard(file, task) for task in tasks}
        if not tasks or None in shards.values():
            raise InputError(f"{path}: holds its tasks itself; there is nothing to join")
        check_shards(path, set(shards.values()))
        config, created = recorded_config(file, path), file.attrs.get("created_utc")
        for task in tasks:  # a damaged shard is told with its own name, before anything is written
            task_group(file, path, task, config)
    with reading(path):
        join_files(path, shards, config, created_utc=created)
    remove_unnamed_shards(path)
    print(f"wrote {path}: {len(tasks)} tasks, {path.stat().st_size / 1e6:.1f} MB")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make one file of an index and its shards.")
    parser.add_argument("file", type=Path, help="the index, as collect.py --shards writes it")
    path = parser.parse_args(argv).file
    if not path.is_file():
        raise InputError(f"{path}: no such history file")
    with lock(path):
        join_shards(path)


if __name__ == "__main__":
    run_script(main)
