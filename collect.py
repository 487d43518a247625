"""Collect the learning histories of a source algorithm: one HDF5 file, one group per task.

Every task is written to a part file of its own as soon as it is finished, so an interrupted run goes
on where it stopped; the parts are joined at the end. The layout of the file is described in README.md.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the long imports ends it without a traceback

import argparse
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TextIO

import gymnasium
import h5py
import numpy as np
import stable_baselines3
import torch
import yaml
from tqdm import tqdm

import algorithm
import env
from algorithm.utils import HistoryLoggerCallback
from ranks import Ranks
from utils import (
    BAR_SECONDS,
    KEYS,
    ROOT,
    SPLIT_KEYS,
    InputError,
    add_config_arguments,
    config_paths,
    differences,
    get_config,
    history_path,
    load_config,
    lock,
    make_folder,
    n_cores,
    one_line,
    remove_temporaries,
    run_script,
    write_atomically,
)

FORMAT_VERSION = 1
HDF5_FORMAT = ("v110", "v110")  # its metadata carry checksums too; read by HDF5 1.10 (2016) and newer
NOT_RECORDED = {"n_process", *SPLIT_KEYS}  # they do not change what is in the file


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser, ("env", "algorithm"))
    parser.add_argument("--traj-dir", default="datasets", help="folder of the history file (default: %(default)s)")
    parser.add_argument("--log-dir", default="runs/source", help="TensorBoard folder (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file (default: keep it)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    config = load_config(config_paths(args), args.overrides, checks=(env.config_problems, algorithm.config_problems))
    output = history_path(config, args.traj_dir)
    parts = output.with_name(f".{output.name}.parts")
    log_dir = Path(args.log_dir) / output.stem
    ranks = Ranks()
    plan = ranks.first_does(lambda: prepare(config, output, parts, args.overwrite))
    pending = ranks.from_first(plan and plan.pending)
    if pending is None:
        ranks.leave()
        return 0
    try:
        found = collect_tasks(config, ranks.share(pending), parts, log_dir, ranks)
    except KeyboardInterrupt:
        print(f"\ninterrupted; finished tasks are kept in {parts}, the same command goes on", file=sys.stderr)
        return 130
    failures = {task: cause for of_rank in ranks.gather(found) for task, cause in of_rank.items()}
    if plan:
        finish(config, output, parts, failures)
    ranks.leave()
    return 1 if failures else 0


@dataclass
class Plan:
    """What is left to do; the lock is held as long as this object lives."""

    pending: list[int]
    lock: TextIO


def prepare(config: dict, output: Path, parts: Path, overwrite: bool) -> Plan | None:
    """Find out which tasks are left to collect; None if the output is complete.

    Raises:
        InputError: the output or its parts were made with other settings, or another collect.py is at work.
    """
    if output.exists() and not overwrite:
        check_same_settings(config, read_settings(output), output)
        print(f"{output} is already complete; use --overwrite to collect it again")
        return None
    make_folder(output.parent)
    held = lock(output)
    remove_temporaries(output.parent, output.name)
    prepare_parts(parts, config, overwrite)
    tasks = range(len(env.list_tasks(config)))
    pending = [task for task in tasks if not is_finished(parts / f"{task}.hdf5", task)]
    if len(pending) < len(tasks):
        print(f"going on: {len(tasks) - len(pending)} of {len(tasks)} tasks are already finished in {parts}")
    return Plan(pending, held)


def finish(config: dict, output: Path, parts: Path, failures: dict[int, str]) -> None:
    """Join the parts into the output, or report what failed."""
    n_tasks = len(env.list_tasks(config))
    for task, cause in sorted(failures.items()):
        print(f"task {task} failed: {cause}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {n_tasks} tasks failed; the same command repeats only these", file=sys.stderr)
        return
    join_parts(output, parts, n_tasks, config)
    print(f"wrote {output}: {n_tasks} tasks, {output.stat().st_size / 1e6:.1f} MB")


# Settings of existing files -----------------------------------------------------------------------


def recorded_settings(config: dict) -> dict:
    """The part of a config that decides what a history file contains; keys an older one lacks get their defaults."""
    keys = KEYS["env"] | KEYS["algorithm"]
    return {name: config.get(name, key.default) for name, key in keys.items() if name not in NOT_RECORDED}


def read_settings(output: Path) -> dict:
    try:
        with h5py.File(output) as file:
            return recorded_settings(yaml.safe_load(file.attrs["config"]))
    except Exception as error:  # h5py raises many types for damaged files
        reason = one_line(error)[:200]
        raise InputError(
            f"{output}: exists, but its settings cannot be read ({reason}); --overwrite replaces it"
        ) from None


def check_same_settings(config: dict, existing: dict, place: Path) -> None:
    """Raise InputError, naming the differing keys, when `place` was made with other settings."""
    wanted = recorded_settings(config)
    if differing := differences(existing, wanted, wanted):
        raise InputError(
            f"{place}: exists and was collected with other settings ({differing}); "
            "use --overwrite to replace it or --traj-dir to keep both"
        )


def prepare_parts(parts: Path, config: dict, overwrite: bool = False) -> None:
    """Make the folder of the parts. Those of other settings are an error, or dropped with `overwrite`.

    Parts of the same settings are always kept: collecting them again would give the same.
    """
    settings = parts / "settings.yaml"
    if settings.exists():
        try:
            check_same_settings(config, recorded_settings(get_config(settings)), parts)
        except InputError:
            if not overwrite:
                raise
            shutil.rmtree(parts)
    make_folder(parts)
    write_atomically(settings, lambda path: path.write_text(yaml.safe_dump(recorded_settings(config))))


def is_finished(path: Path, task: int) -> bool:
    """Whether a part is there and whole; a damaged one is told and removed."""
    if not path.is_file():
        return False
    try:
        with h5py.File(path) as file:
            for data in file[str(task)].values():
                data[()]  # compares the checksums
        return True
    except Exception as error:  # h5py raises many types for damaged files
        print(f"{path}: damaged ({one_line(error)[:200]}); task {task} is collected again", file=sys.stderr)
        path.unlink()
        return False


# Running ------------------------------------------------------------------------------------------


def collect_tasks(config: dict, tasks: list[int], parts: Path, log_dir: Path, ranks: Ranks) -> dict[int, str]:
    """Run every task in a process of its own, `n_process` at a time; return the causes of failures."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["collect"])  # import torch and SB3 once, not once per task
    n_process = config["n_process"] or max(1, n_cores() // ranks.n_local)
    waiting, running, failures, interrupts = list(tasks), {}, {}, []
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
                    worker = context.Process(target=run_worker, args=(config, task, parts, log_dir, sender))
                    worker.start()
                    sender.close()
                    running[worker.sentinel] = (task, worker, receiver)
                for sentinel in wait(list(running), timeout=0.2):
                    task, worker, receiver = running.pop(sentinel)
                    worker.join()
                    if worker.exitcode == 0:
                        bar.set_postfix(task=task, mean_return=f"{receiver.recv():.2f}")
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
        return (
            f"killed by {signal.Signals(-worker.exitcode).name}"
            if worker.exitcode < 0
            else f"exit code {worker.exitcode}"
        )


def run_worker(config: dict, task: int, parts: Path, log_dir: Path, report: Connection) -> None:
    """Collect one task; report its last mean return, or why it failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers ...
    threading.Thread(target=die_with_parent, daemon=True).start()  # ... unless it was killed
    torch.set_num_threads(1)
    try:
        mean_returns = collect_task(config, task, parts / f"{task}.hdf5", log_dir)
        report.send(mean_returns[-1])
    except Exception as error:
        report.send(f"{type(error).__name__}: {one_line(error)}")
        sys.exit(1)


def die_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def collect_task(config: dict, task: int, path: Path, log_dir: Path | None) -> list[float]:
    """Train the source algorithm on one task and write its history to `path`, in one step.

    Returns:
        The mean return of the episodes that ended in each rollout; NaN where none did.
    """
    kwargs = env.list_tasks(config)[task]
    seed = config["alg_seed"] + task
    vec_env = env.make_source_env(config, [kwargs] * config["n_stream"])
    source = algorithm.ALGORITHM[config["alg"]](config, vec_env, seed, log_dir and str(log_dir / f"task-{task}"))
    logger = HistoryLoggerCallback(compress_interval=config["n_steps"])
    source.learn(config["total_source_timesteps"], callback=logger, tb_log_name=config["alg"])
    vec_env.close()
    attributes = {name: as_attribute(value) for name, value in kwargs.items()}
    attributes |= {"seed": seed, "mean_return_per_rollout": np.array(logger.mean_return_per_rollout, dtype=np.float32)}
    if (optimal := env.optimal_return(config, kwargs)) is not None:
        attributes["optimal_return"] = optimal
    write_atomically(
        path, lambda temporary: write_history(temporary, str(task), logger.history(), attributes, config["n_steps"])
    )
    return logger.mean_return_per_rollout


# Writing ------------------------------------------------------------------------------------------


def write_history(
    path: Path, group_name: str, history: dict[str, np.ndarray], attributes: dict, chunk_steps: int
) -> None:
    """Write one task's arrays, chunked along time, compressed and with checksums."""
    with h5py.File(path, "w", libver=HDF5_FORMAT) as file:
        group = file.create_group(group_name)
        for name, array in history.items():
            chunks = (min(chunk_steps, len(array)), *array.shape[1:])
            group.create_dataset(name, data=array, chunks=chunks, compression="gzip", shuffle=True, fletcher32=True)
        group.attrs.update(attributes)


def as_attribute(value: object) -> object:
    """Numbers, text and lists of equal numbers as they are, for HDF5; anything else as YAML."""
    is_list_of_numbers = isinstance(value, (tuple, list)) and np.asarray(value, dtype=object).ndim == 1
    if is_list_of_numbers and all(isinstance(entry, (int, float)) for entry in value):
        return np.array(value)
    return value if isinstance(value, (bool, int, float, str)) else yaml.safe_dump(value)


def join_parts(output: Path, parts: Path, n_tasks: int, config: dict) -> None:
    """Copy all parts into the final file, which gets its name only when it is whole; drop the parts."""

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w", libver=HDF5_FORMAT) as file:
            file.attrs.update(file_attributes(config))
            for task in range(n_tasks):
                with h5py.File(parts / f"{task}.hdf5") as part:
                    part.copy(str(task), file)

    write_atomically(output, write)
    shutil.rmtree(parts)


def file_attributes(config: dict) -> dict:
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "stable_baselines3": stable_baselines3.__version__,
        "gymnasium": gymnasium.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
    }
    return {
        "format_version": FORMAT_VERSION,
        "config": yaml.safe_dump(config, sort_keys=False),
        "versions": yaml.safe_dump(versions, sort_keys=False),
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
    }


def git_commit() -> str:
    """The commit of this code, or nothing where there is no git or no repository."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return git.stdout.strip() if git.returncode == 0 else ""


if __name__ == "__main__":
    run_script(main)
