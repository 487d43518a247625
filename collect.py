"""Collect the learning histories of a source algorithm: one HDF5 file, one group per task.

Every task is written to a part file of its own as soon as it is finished, so an interrupted run goes
on where it stopped; the parts are joined at the end. With --shards some tasks at a time are joined as soon
as they are finished, and the end is an index that names their files. README.md describes the file's layout.
"""

from __future__ import annotations

import argparse
import signal

from scripts import BAR_SECONDS, add_config_arguments, config_paths, positive, run_script


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser, ("env", "algorithm"))
    parser.add_argument("--traj-dir", default="datasets", help="folder of the history file (default: %(default)s)")
    parser.add_argument("--log-dir", default="runs/source", help="TensorBoard folder (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file (default: keep it)")
    parser.add_argument(
        "--shards", type=positive, metavar="TASKS",
        help="leave a file for every so many tasks, and a small one that names them (default: one file of all)",
    )  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports ends it without a traceback
    parse_arguments(None)  # --help and mistakes are answered before them

import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable
from itertools import groupby
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TextIO

import h5py
import numpy as np
import torch
import yaml
from tqdm import tqdm

import algorithm
import env
from algorithm.source import check_history
from config.loading import differences, load_config, recorded_settings
from config.schema import KEYS
from files import InputError, describe_foreign_error, lock, make_folder, one_line, remove_temporaries, write_atomically
from history.format import history_path
from history.join import files_of_tasks, make_shards, remove_unnamed_shards, shard_maker, unnamed_shards, write_index
from history.origin import Damaged, read_origin, reading, task_numbers
from history.writer import join_files, task_attributes, write_history
from ranks import Ranks
from utils import get_config, n_cores

CHECKS = (env.stepped_problems, algorithm.config_problems)
SETTINGS = "settings.yaml"  # beside the parts: what they are made with
FIRST_PASS = "first_pass_utc"  # among these: when the histories were collected that the source learns from


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    config = load_config(config_paths(args), args.overrides, checks=CHECKS)
    env.check_horizon(config, args.overrides)
    for note in env.unread_notes(config):
        print(f"note: {note}", file=sys.stderr)
    output = history_path(config, args.traj_dir)
    parts = output.with_name(f".{output.name}.parts")
    log_dir = Path(args.log_dir) / output.stem
    ranks = Ranks()
    plan = ranks.first_does(lambda: prepare(config, output, parts, log_dir, args.overwrite))  # keeps the lock held
    work = ranks.from_first(plan and plan[:2])
    if work is None:
        ranks.leave()
        return 0
    pending, prepared = work
    shards = [list(tasks) for _, tasks in groupby(pending, lambda task: task // (args.shards or 1))]
    own = [task for shard in ranks.share(shards) for task in shard]  # a shard's tasks are collected by one rank
    on_finished = shard_maker(parts, own, args.shards, config) if args.shards else None
    try:
        found = collect_tasks(config, own, parts, log_dir, ranks, prepared, on_finished)
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished tasks are kept in {parts}, the same command goes on", file=sys.stderr)
        return 130
    failures = {task: cause for of_rank in ranks.gather(found) for task, cause in of_rank.items()}
    ranks.first_does(lambda: finish(config, output, parts, failures, args.shards))
    ranks.leave()
    return 1 if failures else 0


def prepare(
    config: dict, output: Path, parts: Path, log_dir: Path, overwrite: bool
) -> tuple[list[int], dict, TextIO] | None:
    """Find out what is left to do; None if the output is complete.

    Returns:
        The tasks to collect, further arguments of the source, and the file that holds the lock while it is open.

    Raises:
        InputError: the output or its parts were made with other settings, or another collect.py is at work.
        WriteError: a folder cannot be written to.
    """
    if output.exists() and not output.is_file():
        raise InputError(f"{output}: is no file; move it away, or choose another --traj-dir")
    if output.exists() and not overwrite:
        origin = read_origin(output, config)
        if not origin.recorded:
            raise InputError(f"{output}: exists, but does not say with what settings; --overwrite replaces it")
        check_same_settings(config, origin.recorded, output)
        print(f"{output} is already complete; use --overwrite to collect it again")
        learned_from = first_pass_created(config, output.parent)
        if learned_from and origin.created_utc and learned_from > origin.created_utc:
            print(
                f"note: the histories that it learned from were collected again since, {learned_from}", file=sys.stderr
            )
        return None
    make_folder(output.parent)
    make_folder(log_dir)
    held = lock(output)
    try:
        return (*prepare_locked(config, output, parts, overwrite), held)
    except BaseException:
        held.close()
        raise


def prepare_locked(config: dict, output: Path, parts: Path, overwrite: bool) -> tuple[list[int], dict]:
    """The tasks to collect and further arguments of the source, while the lock is held."""
    remove_temporaries(output.parent, output.name)
    # A run that was killed just before it wrote the index left its parts as shards
    left = None if parts.exists() else next(reversed(unnamed_shards(output)), None)
    if not overwrite:
        check_parts(left or parts, config)
    if left:
        left.rename(parts)
    source = algorithm.source_class(config)  # preparing it can take minutes: what is wrong is told before
    prepared = {"prepared": source.prepare(config, output.parent)} if hasattr(source, "prepare") else {}
    prepare_parts(parts, config)
    tasks = range(len(env.list_tasks(config)))
    finished = {task for path in parts.glob("*.hdf5") for task in finished_tasks(path)}
    pending = [task for task in tasks if task not in finished]
    if len(pending) < len(tasks):
        print(f"going on: {len(tasks) - len(pending)} of {len(tasks)} tasks are already finished in {parts}")
    return pending, prepared


def finish(config: dict, output: Path, parts: Path, failures: dict[int, str], shard_tasks: int | None) -> None:
    """Join the parts into the output, or name them there, or report what failed."""
    n_tasks = len(env.list_tasks(config))
    for task, cause in sorted(failures.items()):
        print(f"task {task} failed: {cause}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {n_tasks} tasks failed; the same command repeats only these", file=sys.stderr)
        return
    if shard_tasks:
        make_shards(parts, range(n_tasks), shard_tasks, config)  # what an interrupted run has left single
        write_index(output, parts, config)
        print(f"wrote {output}: {n_tasks} tasks in shards of {shard_tasks}")
        return
    join_parts(output, parts, n_tasks, config)
    print(f"wrote {output}: {n_tasks} tasks, {output.stat().st_size / 1e6:.1f} MB")


# What is there already ----------------------------------------------------------------------------


def check_same_settings(config: dict, existing: dict, place: Path) -> None:
    """Raise InputError, naming the differing keys, when `place` was made with other settings."""
    wanted, read = recorded_settings(config), env.keys_read(config)
    compared = [name for name in wanted if name in read or name not in KEYS["env"]]
    if differing := differences(recorded_settings(existing), wanted, compared):
        raise InputError(
            f"{place}: exists and was collected with other settings ({differing}); "
            "use --overwrite to replace it or --traj-dir to keep both"
        )


def check_parts(parts: Path, config: dict) -> None:
    """Raise InputError, naming what differs, when finished parts were made with other settings or from other histories."""
    if not (parts / SETTINGS).exists() or not any(parts.glob("*.hdf5")):
        return
    existing, now = get_config(parts / SETTINGS), first_pass_created(config, parts.parent)
    check_same_settings(config, existing, parts)
    if existing.get(FIRST_PASS, now) != now:
        raise InputError(
            f"{parts}: exists and learned from histories of {existing[FIRST_PASS]}, not from those that are there now, of {now}; "
            "use --overwrite to replace it"
        )


def first_pass_created(config: dict, traj_dir: Path) -> str | None:
    """When the histories were collected that a source learns from; None where it learns from none, or they are missing."""
    source = algorithm.source_class(config)
    path = history_path(source.first_pass(config), traj_dir) if hasattr(source, "first_pass") else None
    return read_origin(path).created_utc if path and path.is_file() else None


def prepare_parts(parts: Path, config: dict) -> None:
    """Make the folder of the parts. Those of the same settings are kept: collecting them again would give the same."""
    try:
        check_parts(parts, config)
    except InputError:
        shutil.rmtree(parts)
    make_folder(parts)
    settings = recorded_settings(config) | {FIRST_PASS: first_pass_created(config, parts.parent)}
    write_atomically(parts / SETTINGS, lambda path: path.write_text(yaml.safe_dump(settings)))


def finished_tasks(path: Path) -> list[int]:
    """The tasks of a part or a shard; none where it is damaged, which is told, and the file removed."""
    if not path.is_file():
        return []
    try:
        with reading(path), h5py.File(path) as file:
            tasks = task_numbers(file)
            for task in tasks:
                for data in file[str(task)].values():
                    data[()]  # compares the checksums
        return tasks
    except Damaged as error:
        print(f"{path}: damaged ({one_line(error.__cause__, 200)}); its tasks are collected again", file=sys.stderr)
        path.unlink()
        return []


# Running ------------------------------------------------------------------------------------------


def collect_tasks(
    config: dict,
    tasks: list[int],
    parts: Path,
    log_dir: Path,
    ranks: Ranks,
    prepared: dict | None = None,
    on_finished: Callable[[int], None] | None = None,
) -> dict[int, str]:
    """Run every task in a process of its own, `n_process` at a time; return the causes of failures.

    Args:
        on_finished: called with each task whose part is written.
    """
    n_process = config["n_process"] or max(1, n_cores() // ranks.n_local)
    waiting, running, failures, interrupts = list(tasks), {}, {}, []
    context = multiprocessing.get_context("forkserver")
    # Imported once, not once per task: torch and SB3, and what torch's optimizers import at their first step, 2 s of it
    context.set_forkserver_preload(["collect", "torch._dynamo"])
    # A flag, since a KeyboardInterrupt raised wherever the code happens to be can get lost in a destructor
    handler = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    with tqdm(
        total=len(tasks), desc="collect", unit="task", mininterval=BAR_SECONDS, disable=not ranks.is_first
    ) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < n_process:
                    task = waiting.pop(0)
                    receiver, sender = context.Pipe(duplex=False)
                    worker = context.Process(target=run_worker, args=(config, task, parts, log_dir, prepared, sender))
                    worker.start()
                    sender.close()
                    running[worker.sentinel] = (task, worker, receiver)
                for sentinel in wait(list(running), timeout=0.2):
                    task, worker, receiver = running.pop(sentinel)
                    worker.join()
                    if worker.exitcode == 0:
                        mean_return = receiver.recv()  # NaN where no episode ended
                        bar.set_postfix(task=task, mean_return="-" if np.isnan(mean_return) else f"{mean_return:.2f}")
                        if on_finished:
                            on_finished(task)
                    else:
                        failures[task] = failure_cause(worker, receiver)
                    bar.update()
                if interrupts:
                    raise KeyboardInterrupt
        finally:
            signal.signal(signal.SIGINT, handler)
            for _, worker, _ in running.values():
                worker.terminate()
                worker.join()
    return failures


def failure_cause(worker: multiprocessing.Process, receiver: Connection) -> str:
    try:
        return receiver.recv()
    except EOFError:  # it died without a word
        code = worker.exitcode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def run_worker(config: dict, task: int, parts: Path, log_dir: Path, prepared: dict | None, report: Connection) -> None:
    """Collect one task; report its last mean return, or why it failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers ...
    threading.Thread(target=die_with_parent, daemon=True).start()  # ... unless it was killed
    torch.set_num_threads(1)
    try:
        report.send(collect_task(config, task, parts / f"{task}.hdf5", log_dir, prepared)[-1])
    except Exception as error:  # the environment and the source may be the user's
        report.send(describe_foreign_error(error, log_dir))
        sys.exit(1)


def die_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def collect_task(config: dict, task: int, path: Path, log_dir: Path | None, prepared: dict | None = None) -> np.ndarray:
    """Run the source on one task and write its history to `path`, in one step.

    Returns:
        The mean return of the episodes that ended in each rollout, (rollouts,); NaN where none did.
    """
    arguments, n_steps, seed = env.list_tasks(config)[task], config["n_steps"], config["alg_seed"] + task
    vec_env = env.make_source_env(config, [arguments] * config["n_stream"])
    log = log_dir and str(log_dir / f"task-{task}")
    source = algorithm.source_class(config)(config, vec_env, seed, log, **(prepared or {}))
    history = source.run()
    check_history(history, env.spaces(config), n_steps, config["n_stream"])
    vec_env.close()
    attributes = task_attributes(arguments, seed, env.optimal_return(config, arguments), history)
    write_atomically(path, lambda temporary: write_history(temporary, str(task), history, attributes, n_steps))
    return attributes["mean_return_per_rollout"]


def join_parts(output: Path, parts: Path, n_tasks: int, config: dict) -> None:
    """Join the parts into the final file, which gets its name only when it is whole; drop the parts."""
    files = files_of_tasks(parts)
    join_files(output, {task: files[task] for task in range(n_tasks)}, config)
    shutil.rmtree(parts)
    remove_unnamed_shards(output)


if __name__ == "__main__":
    run_script(main)
