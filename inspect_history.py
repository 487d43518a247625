"""Show what is in a history file, and check it: markers, gaps, values, attributes.

Exit code 0 for a sound file, 1 if it has problems, 2 if it cannot be read at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import yaml

import env
from algorithm.utils import REGION_START, find_regions
from history_file import HistoryFile, damaged
from model.ad import returns_per_env
from utils import KEYS, InputError, one_line, run_script

SUM_TOLERANCE = 0.01  # of probabilities: float16 keeps three digits
RETURN_TOLERANCE = 1e-5  # relative, of attributes that hold returns as float32
OUTCOMES = ("optimal_return", "mean_return_per_rollout")  # attributes; all others but `seed` are task parameters
DEFAULTS = {name: key.default for section in ("env", "model") for name, key in KEYS[section].items()}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="history file, as collect.py writes it")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    path = parse_arguments(argv).file
    with open_history(path) as file:
        origin = read_origin(file)
        problems = attempt(path, lambda: print_facts(path, file, origin))
        reports = [inspect_task(path, file, origin, task) for task in task_numbers(file)]
        problems += attempt(path, lambda: compare_tasks(path, file, origin))
    print_tasks(reports)
    problems += [problem for report in reports for problem in report.problems]
    notes = [note for report in reports for note in report.notes]
    for kind, lines in (("note", notes), ("problem", problems)):
        for line in dict.fromkeys(lines):  # what is wrong with the whole file is found in every task
            print(f"{kind}: {line}")
    n_problems = len(dict.fromkeys(problems))
    print(f"{path}: {f'{n_problems} problem(s)' if problems else 'sound'}")
    return 1 if problems else 0


# Reading ------------------------------------------------------------------------------------------


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
    return sorted(int(name) for name in file if name.isdecimal() and name == str(int(name)))


@dataclass(frozen=True)
class Origin:
    """What a file says of where it comes from.

    Attributes:
        recorded: the config it was collected with; empty in older files.
        config: the same, completed for reading the file.
        tasks: keyword arguments of every task; None if the env cannot be made here.
    """

    recorded: dict
    config: dict
    tasks: list[dict] | None


def read_origin(file: h5py.File) -> Origin:
    try:
        recorded = yaml.safe_load(file.attrs["config"])
    except Exception:  # an older file, another program's, or a damaged one
        recorded = {}
    recorded = recorded if isinstance(recorded, dict) else {}
    config = DEFAULTS | recorded | {"soft_targets": True, "in_memory": "always", "use_compressed_context": True}
    tasks = None
    try:
        if "env" in recorded and not env.config_problems(config):
            tasks = env.list_tasks(config)
    except Exception:  # a stranger's config can be wrong in any way
        tasks = None
    return Origin(recorded, config, tasks)


def read_markers(group: h5py.Group) -> np.ndarray:
    """(T,) markers; those of the first stream where an older file has a column per stream."""
    markers = group["compress_markers"][()]
    return markers[:, 0] if markers.ndim == 2 else markers


def region_length(origin: Origin, group: h5py.Group) -> int:
    """The algorithm's `n_steps`; in a file without config, the most common distance between region starts."""
    n_steps = origin.recorded.get("n_steps")
    if isinstance(n_steps, int) and n_steps > 1:
        return n_steps
    markers = read_markers(group)
    distances = np.diff(np.flatnonzero(markers == REGION_START))
    return int(np.bincount(distances).argmax()) if len(distances) else len(markers)


def read_regions(origin: Origin, group: h5py.Group) -> list[tuple[int, int]]:
    """(start, stop) of every region of one task; none where the file has no markers.

    Raises:
        ValueError: the markers contradict each other or `n_steps`.
    """
    if "compress_markers" not in group:
        return []
    return find_regions(read_markers(group), region_length(origin, group))


def returns_per_rollout(group: h5py.Group, regions: list[tuple[int, int]]) -> np.ndarray:
    """Mean return of the episodes that ended in each region; NaN where none did.

    Returns:
        (regions,), or empty where the group has no `dones`.
    """
    if "dones" not in group:
        return np.zeros(0)
    dones = group["dones"][()].astype(bool)  # (T, E)
    returns = np.concatenate(returns_per_env(group["rewards"][()], dones))
    ends = np.concatenate([np.flatnonzero(column) for column in dones.T])
    in_region = [returns[(ends >= start) & (ends < stop)] for start, stop in regions]
    return np.array([values.mean() if len(values) else np.nan for values in in_region])


def entropy_per_rollout(group: h5py.Group, regions: list[tuple[int, int]]) -> np.ndarray:
    """Mean entropy of the source's policy in each region, in nats.

    Returns:
        (regions,), or empty where the group has neither `action_probs` nor `action_stds`.
    """
    if "action_probs" in group:
        probs = group["action_probs"][()].astype(np.float64)
        entropy = -(probs * np.log(np.maximum(probs, 1e-12))).sum(axis=-1)  # (T, E)
    elif "action_stds" in group:
        entropy = np.log(group["action_stds"][()] * np.sqrt(2 * np.pi * np.e)).sum(axis=-1)
    else:
        return np.zeros(0)
    return np.array([entropy[start:stop].mean() for start, stop in regions])


# Checking -----------------------------------------------------------------------------------------


@dataclass
class TaskReport:
    """What one group holds. `returns` and `entropy` are (regions,), empty where the file does not tell."""

    task: int
    parameters: dict = field(default_factory=dict)
    optimum: float = np.nan
    shape: tuple[int, ...] = (0, 0)  # T, E
    regions: list[tuple[int, int]] = field(default_factory=list)
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    entropy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def attempt(place: object, look) -> list[str]:
    """Problems found by `look`, a function that yields or returns them, or None; what it stumbles over is one too."""
    found: list[str] = []
    try:
        for problem in look() or ():
            found.append(problem)
    except InputError as error:
        found.append(str(error))
    except Exception as error:  # a stranger's file can be wrong in any way
        found.append(f"{place}: cannot be read ({one_line(error)[:200]})")
    return found


def inspect_task(path: Path, file: h5py.File, origin: Origin, task: int) -> TaskReport:
    """Summarise one task and look for problems in it."""
    report, place = TaskReport(task), f"{path}:/{task}"
    group = file.get(str(task))
    if not isinstance(group, h5py.Group):
        report.problems.append(f"{place}: is no group; collect it again")
        return report
    for look in (look_at_attributes, look_as_training_does, look_at_regions, look_at_learning, look_for_gaps):
        report.problems += attempt(place, lambda look=look: look(path, group, origin, report))
    return report


def look_at_attributes(path: Path, group: h5py.Group, origin: Origin, report: TaskReport) -> Iterable[str]:
    """Whether the attributes are those of this task in the env."""
    attributes = {name: np.asarray(value) for name, value in group.attrs.items()}
    report.parameters = {n: v.tolist() for n, v in attributes.items() if n not in ("seed", *OUTCOMES)}
    optimal = attributes.get("optimal_return")
    if optimal is not None and (optimal.size != 1 or not np.issubdtype(optimal.dtype, np.number)):
        yield f"{path}:{group.name}: optimal_return {optimal.tolist()!r}: expected a number"
    elif optimal is not None:
        report.optimum = float(optimal.item())
    if origin.tasks is None or report.task >= len(origin.tasks):
        return
    task = origin.tasks[report.task]
    for name, expected in task.items():
        plain = np.asarray(expected).tolist()
        if isinstance(plain, (bool, int, float, str, list)) and report.parameters.get(name) != plain:
            found = report.parameters.get(name, "missing")
            yield f"{path}:{group.name}: {name} is {found}, expected {plain} for this task of its env; collect it again"
    best = env.optimal_return(origin.config, task)
    if best is not None and not np.isclose(report.optimum, best, rtol=RETURN_TOLERANCE):
        yield f"{path}:{group.name}: optimal_return is {report.optimum}, expected {best}; collect it again"


def look_as_training_does(path: Path, group: h5py.Group, origin: Origin, report: TaskReport) -> Iterable[str]:
    """Shapes, values and markers: the checks of `HistoryFile`, on this task alone, and what training never reads."""
    config, spaces = dict(origin.config), None
    if origin.tasks is None:
        report.notes.append(f"{path}: names no env that can be made here; what its values may be is guessed")
        spaces = guessed_spaces(group)
    if "compress_markers" in group:
        config["compress_interval"] = region_length(origin, group)
    history = HistoryFile(path, config, [report.task], spaces=spaces)
    report.shape = group["states"].shape[:2]
    if "next_states" in group:
        if group["next_states"].shape != group["states"].shape:
            yield f"{path}:{group.name}/next_states: has not the shape of states, {group['states'].shape}"
        else:
            values = group["next_states"][()].reshape(*report.shape, *history.entry_shape("states"))
            history.check_values(f"{path}:{group.name}/next_states", "states", values, 0)
    if isinstance(history.action_space, gym.spaces.Box):
        low, high = history.action_space.low.min(), history.action_space.high.max()
        actions = group["actions"][()]
        if actions.min() < low or actions.max() > high:
            yield f"{path}:{group.name}/actions: {actions.min()} to {actions.max()}, the env takes {low} to {high}"


def guessed_spaces(group: h5py.Group) -> tuple[gym.Space, gym.Space]:
    """Spaces that hold any finite observation, and as many actions as there are."""
    observations = gym.spaces.Box(-np.inf, np.inf, group["states"].shape[2:])
    actions = group["actions"]
    if actions.ndim == 2 and np.issubdtype(actions.dtype, np.integer):
        n_actions = group["action_probs"].shape[-1] if "action_probs" in group else int(actions[()].max()) + 1
        return observations, gym.spaces.Discrete(n_actions)
    return observations, gym.spaces.Box(-np.inf, np.inf, actions.shape[2:])


def look_at_regions(path: Path, group: h5py.Group, origin: Origin, report: TaskReport) -> Iterable[str]:
    if "compress_markers" not in group:
        report.notes.append(f"{path}: has no compress_markers: it can train standard AD only")
        return
    try:
        report.regions = read_regions(origin, group)
    except ValueError:  # told by `look_as_training_does`
        return
    expected = region_length(origin, group)
    start, stop = report.regions[-1]
    if stop - start < expected:
        report.notes.append(f"{path}:{group.name}: the last region is unfinished: {stop - start} of {expected} steps")
    n_stream, total = origin.recorded.get("n_stream"), origin.recorded.get("total_source_timesteps")
    if isinstance(n_stream, int) and isinstance(total, int):
        n_steps = -(-total // (expected * n_stream)) * expected  # whole rollouts
        if report.shape != (n_steps, n_stream):
            yield (
                f"{path}:{group.name}: has {report.shape[0]} steps of {report.shape[1]} streams, expected {n_steps} of "
                f"{n_stream} by its config; collect it again"
            )


def look_at_learning(path: Path, group: h5py.Group, origin: Origin, report: TaskReport) -> Iterable[str]:
    """Returns and entropy per rollout, and whether attributes and probabilities agree with the arrays."""
    report.entropy = entropy_per_rollout(group, report.regions)
    report.returns = returns_per_rollout(group, report.regions)
    if "dones" not in group:
        report.notes.append(f"{path}: has no dones: returns and gaps cannot be checked")
    if "action_probs" in group:
        sums = group["action_probs"][()].sum(axis=-1, dtype=np.float64)
        if (wrong := np.argwhere(~(np.abs(sums - 1) <= SUM_TOLERANCE))).size:
            step, stream = (int(i) for i in wrong[0])
            yield f"{path}:{group.name}/action_probs: at {(step, stream)} they sum to {sums[step, stream]:.3f}"
    told = np.atleast_1d(group.attrs.get("mean_return_per_rollout", report.returns))
    finished = report.returns[: len(told)]
    if len(report.returns) and len(report.returns) - len(told) not in (0, 1):  # 1: an unfinished last region
        yield f"{path}:{group.name}: mean_return_per_rollout has {len(told)} entries, expected {len(report.returns)}"
    elif len(report.returns) and not np.allclose(told, finished, rtol=RETURN_TOLERANCE, atol=1e-6, equal_nan=True):
        yield f"{path}:{group.name}: mean_return_per_rollout is not what the rewards give; collect it again"


def look_for_gaps(path: Path, group: h5py.Group, origin: Origin, report: TaskReport) -> Iterable[str]:
    """Within an episode, each state must be the next state of the step before."""
    if not {"next_states", "dones"} <= set(group):
        return
    states, after = group["states"][()], group["next_states"][()]
    if states.shape != after.shape:  # told by `look_as_training_does`
        return
    differs = (states[1:] != after[:-1]).any(axis=tuple(range(2, states.ndim)))
    gaps = np.argwhere(differs & ~group["dones"][:-1].astype(bool))
    if len(gaps):
        step, stream = (int(i) for i in gaps[0])
        yield (
            f"{path}:{group.name}: {len(gaps)} gap(s): the first after step {step} of stream {stream}, whose next state is "
            f"{after[step, stream].tolist()}, but the history goes on at {states[step + 1, stream].tolist()}"
        )


def compare_tasks(path: Path, file: h5py.File, origin: Origin) -> Iterable[str]:
    """Tasks that are missing, and what only some tasks have."""
    tasks = task_numbers(file)
    expected = range(max(tasks) + 1) if origin.tasks is None else range(len(origin.tasks))
    if missing := sorted(set(expected) - set(tasks)):
        yield f"{path}: tasks {missing} are missing; collect it again"
    groups = [group for task in tasks if isinstance(group := file.get(str(task)), h5py.Group)]
    for names in ([set(group) for group in groups], [set(group.attrs) & set(OUTCOMES) for group in groups]):
        if groups and (some := sorted(set.union(*names) - set.intersection(*names))):
            yield f"{path}: {', '.join(some)}: in some tasks only; collect it again"


# Printing -----------------------------------------------------------------------------------------


def print_facts(path: Path, file: h5py.File, origin: Origin) -> None:
    """Where the file comes from, and the arrays of its first task."""
    told = [
        f"{name} {file.attrs[name]}" for name in ("format_version", "created_utc", "git_commit") if name in file.attrs
    ]
    print(", ".join([f"{path}: {path.stat().st_size / 1e6:.1f} MB", f"{len(task_numbers(file))} tasks", *told]))
    names = ("env", "alg", "alg_seed", "n_stream", "n_steps", "total_source_timesteps")
    print(", ".join(f"{name} {origin.recorded[name]}" for name in names if name in origin.recorded))
    if isinstance(versions := file.attrs.get("versions"), str):
        print(", ".join(versions.replace(":", "").splitlines()))
    first = file[str(task_numbers(file)[0])]
    arrays = {name: data for name, data in first.items() if isinstance(data, h5py.Dataset)}
    print(f"\n{'dataset':<18} {'shape of a task':<18} {'dtype':<8} bytes in the file, of those in memory")
    for name, data in arrays.items():
        share = data.id.get_storage_size() / max(1, data.nbytes)
        print(f"{name:<18} {data.shape!s:<18} {data.dtype!s:<8} {share:.0%}")


def print_tasks(reports: list[TaskReport]) -> None:
    """One line per task."""
    parameters = [report.parameters for report in reports]
    heading, *labels = env.task_labels(parameters, parameters)
    width = max(12, len(heading), *map(len, labels))
    print(
        f"\n{'task':>5}  {heading:<{width}} {'steps':>6} {'streams':>7} {'regions':>7} {'return, first to last':>22} "
        f"{'optimum':>8} {'entropy, first to last':>23} {'problems':>9}"
    )
    for label, report in zip(labels, reports):
        print(
            f"{report.task:>5}  {label:<{width}} {report.shape[0]:>6} {report.shape[1]:>7} {len(report.regions):>7} "
            f"{ends(report.returns):>22} {report.optimum:>8.2f} {ends(report.entropy):>23} {len(report.problems):>9}"
        )
    print()


def ends(values: np.ndarray) -> str:
    """The first and the last finite value."""
    values = values[np.isfinite(values)]
    return f"{values[0]:.2f} to {values[-1]:.2f}" if len(values) else "-"


if __name__ == "__main__":
    run_script(main)
