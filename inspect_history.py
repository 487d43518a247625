"""Show what is in a history file, and check it: markers, gaps, values, attributes.

Exit code 0 for a sound file, 1 if it has problems, 2 if it cannot be read at all.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import yaml

import env
from algorithm.utils import REGION_START, find_regions
from history_file import HistoryFile, damaged
from utils import KEYS, InputError, one_line, run_script

FIRST, LAST = 0, -1
DEFAULTS = {name: key.default for section in ("env", "model") for name, key in KEYS[section].items()}
SUM_TOLERANCE = 0.01  # of probabilities: float16 keeps three digits
RETURN_TOLERANCE = 1e-3  # of mean_return_per_rollout, relative: float32 sums
NO_PARAMETERS = {"seed", "optimal_return", "mean_return_per_rollout"}  # attributes that do not define the task


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="history file, as collect.py writes it")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    path = parse_arguments(argv).file
    with open_history(path) as file:
        print_facts(path, file)
        tasks = task_numbers(file)
        reports = [inspect_task(path, file, task) for task in tasks]
        print_tasks(file, reports)
        problems = file_problems(path, file) + [problem for report in reports for problem in report.problems]
        notes = [note for report in reports for note in report.notes]
    for kind, lines in (("note", notes), ("problem", problems)):
        for line in dict.fromkeys(lines):  # what is wrong with the whole file is found in every task
            print(f"{kind}: {line}")
    n_problems = len(dict.fromkeys(problems))
    print(f"{path}: {f'{n_problems} problem(s)' if problems else 'sound'}")
    return 1 if problems else 0


# Reading ------------------------------------------------------------------------------------------


@dataclass
class TaskReport:
    """What one group holds. `returns` and `entropy` are (regions,), empty where the file does not tell."""

    task: int
    n_steps: int = 0
    n_streams: int = 0
    regions: list[tuple[int, int]] = field(default_factory=list)
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    entropy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_history(path: Path) -> h5py.File:
    """Open a history file for reading.

    Raises:
        InputError: there is no such file, or it is no HDF5 file with at least one group named by a number.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such history file; collect it with: python collect.py")
    try:
        file = h5py.File(path)
        tasks = task_numbers(file)
    except Exception as error:  # h5py raises many types for damaged files
        raise damaged(path, error) from None
    if not tasks:
        raise InputError(f"{path}: has no groups named 0, 1, ...: no history file of this project")
    return file


def task_numbers(file: h5py.File) -> list[int]:
    return sorted(int(name) for name in file if name.isdecimal())


def recorded_config(file: h5py.File) -> dict:
    """The config that the file says it was collected with; empty for older files."""
    try:
        config = yaml.safe_load(file.attrs["config"])
    except (KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def reading_config(file: h5py.File) -> tuple[dict, bool]:
    """The recorded config, completed for reading the file, and whether it names an env that can be made here."""
    recorded = recorded_config(file)
    config = DEFAULTS | recorded | {"soft_targets": True, "in_memory": "always", "use_compressed_context": True}
    try:
        return config, "env" in recorded and not env.config_problems(config)
    except Exception:  # a stranger's config can be wrong in any way
        return config, False


def read_markers(group: h5py.Group) -> np.ndarray:
    """(T,) markers; those of the first stream where an older file has a column per stream."""
    markers = group["compress_markers"][()]
    return markers[:, 0] if markers.ndim == 2 else markers


def region_length(file: h5py.File, group: h5py.Group) -> int:
    """The algorithm's `n_steps`; in a file without config, the most common distance between region starts."""
    n_steps = recorded_config(file).get("n_steps")
    if isinstance(n_steps, int) and n_steps > 1:
        return n_steps
    markers = read_markers(group)
    distances = np.diff(np.flatnonzero(markers == REGION_START))
    return int(np.bincount(distances).argmax()) if len(distances) else len(markers)


def read_regions(file: h5py.File, task: int) -> list[tuple[int, int]]:
    """(start, stop) of every region of one task.

    Raises:
        KeyError: the task has no markers. ValueError: they contradict each other or `n_steps`.
    """
    group = file[str(task)]
    return find_regions(read_markers(group), region_length(file, group))


def returns_per_rollout(rewards: np.ndarray, dones: np.ndarray, regions: list[tuple[int, int]]) -> np.ndarray:
    """Mean return of the episodes that ended in each region; NaN where none did.

    Args:
        rewards: (T, E). dones: (T, E).

    Returns:
        (regions,)
    """
    cumulative = rewards.cumsum(axis=0, dtype=np.float64)
    dones = dones.astype(bool)
    ends = [np.flatnonzero(column) for column in dones.T]
    returns = np.concatenate([np.diff(cumulative[at, e], prepend=0.0) for e, at in enumerate(ends)])
    ends = np.concatenate(ends)
    means = [returns[(ends >= start) & (ends < stop)] for start, stop in regions]
    return np.array([mean.mean() if len(mean) else np.nan for mean in means])


def entropy_per_rollout(action_probs: np.ndarray, regions: list[tuple[int, int]]) -> np.ndarray:
    """Mean entropy of the policy in each region, in nats; (T, E, A) to (regions,)."""
    probs = action_probs.astype(np.float64)
    entropy = -(probs * np.log(np.maximum(probs, 1e-12))).sum(axis=-1)  # (T, E)
    return np.array([entropy[start:stop].mean() for start, stop in regions])


# Checking -----------------------------------------------------------------------------------------


def inspect_task(path: Path, file: h5py.File, task: int) -> TaskReport:
    """Summarise one task and look for problems in it; what cannot be read is one of them."""
    report = TaskReport(task)
    for look in (look_as_training_does, look_at_regions, look_at_learning, look_for_gaps):
        try:
            look(path, file, report)
        except InputError as error:
            report.problems.append(str(error))
        except Exception as error:  # a stranger's file can be wrong in any way
            report.problems.append(f"{path}:/{task}: cannot be read ({one_line(error)[:200]})")
    return report


def look_as_training_does(path: Path, file: h5py.File, report: TaskReport) -> None:
    """Shapes, values and markers: the checks of `HistoryFile`, on this task alone."""
    group, spaces = file[str(report.task)], None
    config, has_env = reading_config(file)
    if not has_env:
        report.notes.append(f"{path}: names no env that can be made here; what its values may be is guessed")
        spaces = guessed_spaces(group)
    if "compress_markers" in group:
        config["compress_interval"] = region_length(file, group)
    HistoryFile(path, config, [report.task], spaces=spaces)


def guessed_spaces(group: h5py.Group) -> tuple[gym.Space, gym.Space]:
    """Spaces that hold any finite observation, and as many actions as there are."""
    observations = gym.spaces.Box(-np.inf, np.inf, group["states"].shape[2:])
    actions = group["actions"]
    if actions.ndim == 2 and np.issubdtype(actions.dtype, np.integer):
        n_actions = group["action_probs"].shape[-1] if "action_probs" in group else int(actions[()].max()) + 1
        return observations, gym.spaces.Discrete(n_actions)
    return observations, gym.spaces.Box(-np.inf, np.inf, actions.shape[2:])


def look_at_regions(path: Path, file: h5py.File, report: TaskReport) -> None:
    group = file[str(report.task)]
    report.n_steps, report.n_streams = group["states"].shape[:2]
    if "compress_markers" not in group:
        report.notes.append(f"{path}: has no compress_markers: it can train standard AD only")
        return
    try:
        report.regions = read_regions(file, report.task)
    except ValueError:  # told by `look_as_training_does`
        return
    interval = region_length(file, group)
    start, stop = report.regions[LAST]
    if stop - start < interval:
        report.notes.append(f"{path}:/{report.task}: the last region is unfinished: {stop - start} of {interval} steps")


def look_at_learning(path: Path, file: h5py.File, report: TaskReport) -> None:
    """Returns and entropy per rollout, and whether attributes and probabilities agree with the arrays."""
    group, place = file[str(report.task)], f"{path}:/{report.task}"
    if "action_probs" in group:
        probs = group["action_probs"][()]
        sums = probs.sum(axis=-1, dtype=np.float64)
        if (wrong := np.argwhere(np.abs(sums - 1) > SUM_TOLERANCE)).size:
            step, stream = wrong[0]
            report.problems.append(
                f"{place}/action_probs: at {(int(step), int(stream))} they sum to {sums[step, stream]:.3f}"
            )
        report.entropy = entropy_per_rollout(probs, report.regions)
    if "dones" not in group:
        report.notes.append(f"{path}: has no dones: returns and gaps cannot be checked")
        return
    report.returns = returns_per_rollout(group["rewards"][()], group["dones"][()], report.regions)
    told = np.asarray(group.attrs.get("mean_return_per_rollout", report.returns))
    if report.regions and not np.allclose(told, report.returns[: len(told)], rtol=RETURN_TOLERANCE, equal_nan=True):
        report.problems.append(f"{place}: mean_return_per_rollout is not what the rewards give; collect it again")


def look_for_gaps(path: Path, file: h5py.File, report: TaskReport) -> None:
    """Within an episode, each state must be the next state of the step before."""
    group = file[str(report.task)]
    if not {"next_states", "dones"} <= set(group):
        return
    states, after = group["states"][()], group["next_states"][()]
    if states.shape != after.shape:
        report.problems.append(f"{path}:{group.name}/next_states: has shape {after.shape}, states has {states.shape}")
        return
    if not np.isfinite(after).all():
        report.problems.append(f"{path}:{group.name}/next_states: holds values that are not finite")
    differs = (states[1:] != after[:-1]).any(axis=tuple(range(2, states.ndim)))
    gaps = np.argwhere(differs & ~group["dones"][:-1].astype(bool))
    if len(gaps):
        step, stream = (int(i) for i in gaps[FIRST])
        report.problems.append(
            f"{path}:{group.name}: {len(gaps)} gap(s): the first after step {step} of stream {stream}, whose next state is "
            f"{after[step, stream].tolist()}, but the history goes on at {states[step + 1, stream].tolist()}"
        )


def file_problems(path: Path, file: h5py.File) -> list[str]:
    """What is wrong with the file as a whole: tasks that are missing, datasets that only some tasks have."""
    problems, tasks, (config, has_env) = [], task_numbers(file), reading_config(file)
    expected = range(len(env.list_tasks(config)) if has_env else max(tasks) + 1)
    if missing := sorted(set(expected) - set(tasks)):
        problems.append(f"{path}: tasks {missing} are missing; collect it again")
    names = [set(file[str(task)]) for task in tasks]
    if some := sorted(set.union(*names) - set.intersection(*names)):
        problems.append(f"{path}: {', '.join(some)}: in some tasks only; collect it again")
    return problems


# Printing -----------------------------------------------------------------------------------------


def print_facts(path: Path, file: h5py.File) -> None:
    """Where the file comes from, and the arrays of its first task."""
    attributes, config = dict(file.attrs), recorded_config(file)
    size = f"{path.stat().st_size / 1e6:.1f} MB, {len(task_numbers(file))} tasks"
    told = [
        f"{name} {attributes[name]}" for name in ("format_version", "created_utc", "git_commit") if name in attributes
    ]
    print(f"{path}: {', '.join([size, *told])}")
    if config:
        names = ("env", "alg", "alg_seed", "n_stream", "n_steps", "total_source_timesteps")
        print(", ".join(f"{name} {config[name]}" for name in names if name in config))
    if isinstance(versions := attributes.get("versions"), str):
        print(", ".join(versions.split("\n")).replace(":", "").rstrip(", "))
    print(f"\n{'dataset':<18} {'shape of a task':<18} {'dtype':<8} {'bytes in the file, of those in memory'}")
    for name, data in file[str(task_numbers(file)[FIRST])].items():
        share = data.id.get_storage_size() / max(1, data.nbytes)
        print(f"{name:<18} {data.shape!s:<18} {data.dtype!s:<8} {share:.0%}")


def print_tasks(file: h5py.File, reports: list[TaskReport]) -> None:
    """One line per task."""
    groups = {report.task: file[str(report.task)] for report in reports}
    names = sorted({name for group in groups.values() for name in group.attrs} - NO_PARAMETERS)
    values = {n: [np.asarray(group.attrs.get(n)).tolist() for group in groups.values()] for n in names}
    differing = [name for name in names if any(value != values[name][0] for value in values[name])]
    print(
        f"\n{'task':>5}  {' '.join(differing) or 'task':<20} {'steps':>6} {'streams':>7} {'regions':>7} "
        f"{'return, first to last':>22} {'optimum':>8} {'entropy, first to last':>23} {'problems':>9}"
    )
    for number, report in enumerate(reports):
        parameters = " ".join(str(values[name][number]) for name in differing)
        optimum = groups[report.task].attrs.get("optimal_return", np.nan)
        print(
            f"{report.task:>5}  {parameters or '-':<20} {report.n_steps:>6} {report.n_streams:>7} {len(report.regions):>7} "
            f"{ends(report.returns):>22} {optimum:>8.2f} {ends(report.entropy):>23} {len(report.problems):>9}"
        )
    print()


def ends(values: np.ndarray) -> str:
    """The first and the last finite value."""
    values = values[np.isfinite(values)]
    return f"{values[FIRST]:.2f} to {values[LAST]:.2f}" if len(values) else "-"


if __name__ == "__main__":
    run_script(main)
