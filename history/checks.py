"""What is in a history file, and what is wrong with it.

Letters in shapes: T environment steps per stream, E streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

import env
from config.loading import recorded_problem
from config.schema import KEYS
from files import InputError, describe_foreign_error
from history.format import (
    AXIS_OF_STREAMS,
    KNOWN_FIELDS,
    NUMBER_KINDS,
    REQUIRED_FIELDS,
    RESULTS,
    argument_name,
    as_attribute,
    attribute_name,
    from_attribute,
)
from history.markers import find_regions, of_first_stream
from history.origin import Origin, open_history, origin_of, reading, task_group, task_numbers
from history.reader import HistoryFile
from history.returns import mean_return_per_rollout

RETURN_TOLERANCE = 1e-5  # relative, of attributes that hold returns as float32
DEFAULTS = {name: key.default for section in ("env", "model") for name, key in KEYS[section].items()}
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Expected:
    """What a file's own origin lets one expect of it.

    Attributes:
        config: the config it was collected with, completed for reading the file.
        tasks: keyword arguments of every task; None if the env cannot be made here.
        spaces: of observations and actions; None likewise.
        note: why it cannot be made; "" if it can.
    """

    config: dict
    tasks: list[dict] | None
    spaces: tuple[gym.Space, gym.Space] | None = None
    note: str = ""


def expected_of(origin: Origin) -> Expected:
    """What to expect of a file of this origin. A stranger's config can be wrong in any way: then it says little."""
    all_arrays = dict.fromkeys(("soft_targets", "reached_observations", "use_compressed_context"), True)
    reading_as = {"in_memory": "always", "compress_interval": origin.rollout_length}
    config = DEFAULTS | origin.recorded | all_arrays | reading_as
    if "env" not in origin.recorded:
        return Expected(config, None, note="it names no env")
    if problem := recorded_problem(origin.recorded):
        return Expected(config, None, note=f"its config is wrong: {problem}")
    try:
        if problems := env.config_problems(config):
            return Expected(config, None, note="; ".join(problems))
        return Expected(config, env.list_tasks(config), env.spaces(config))
    except Exception as error:  # of an env of the user's, or of a config that is none
        return Expected(config, None, note=describe_foreign_error(error))


# Measures -----------------------------------------------------------------------------------------


def read_regions(origin: Origin, group: Arrays) -> list[tuple[int, int]]:
    """(start, stop) of every region of one task; none where the file has no markers.

    Raises:
        ValueError: the markers contradict each other or the rollout length.
    """
    if "compress_markers" not in group:
        return []
    markers = of_first_stream(group["compress_markers"][()])
    return find_regions(markers, origin.rollout_length or len(markers))


def returns_per_rollout(group: Arrays, regions: list[tuple[int, int]]) -> np.ndarray:
    """Mean return of the episodes that ended in each region, (regions,); empty where the group has no `dones`."""
    if not {"dones", "rewards"} <= set(group):
        return np.zeros(0)
    rewards, dones = (group[name][()].reshape(len(group[name]), -1) for name in ("rewards", "dones"))
    return mean_return_per_rollout(rewards, dones, regions)


def entropy_per_rollout(group: Arrays, regions: list[tuple[int, int]]) -> np.ndarray:
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
    """What one group holds. `returns` and `entropy` are (regions,), empty where the file does not tell.

    `datasets` has each one's shape, dtype, and bytes in the file per byte in memory; `ranges` its lowest and highest value.
    """

    task: int
    place: str
    datasets: dict[str, tuple[tuple[int, ...], str, float]] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    attributes: dict[str, object] = field(default_factory=dict)
    optimum: float = np.nan
    shape: tuple[int, ...] = (0, 0)  # T, E
    regions: list[tuple[int, int]] = field(default_factory=list)
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    entropy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of the task, as the group's attributes tell them."""
        told = {argument_name(name): value for name, value in self.attributes.items()}
        return {name: from_attribute(value) for name, value in told.items() if name is not None}


def check_file(path: Path) -> tuple[Origin, list[TaskReport], list[str]]:
    """Where a file comes from, a report of every task, and the problems of the file as a whole.

    Raises:
        InputError: the file cannot be read at all, or is no history file.
    """
    with open_history(path) as file:
        with reading(path):
            tasks = task_numbers(file)
        if not tasks:
            raise InputError(f"{path}: has no groups named 0, 1, ...: no history file of this project")
        origin = origin_of(file, path)
        expected, reports = expected_of(origin), []
        for task in tasks:
            report, arrays = _read_task(path, file, task)
            if arrays:  # each check also fills in its part of the report, which those after it read
                report.problems += _attribute_problems(report, expected)
                report.problems += _training_problems(path, report, arrays, expected)
                report.problems += _region_problems(path, report, arrays, origin)
                report.problems += _learning_problems(path, report, arrays)
                report.problems += _gap_problems(report, arrays)
            reports.append(report)
    return origin, reports, list(_compare_tasks(path, reports, expected))


def _read_task(path: Path, file: h5py.File, task: int) -> tuple[TaskReport, Arrays]:
    """What can be read of a task: its arrays of numbers that have an entry for every step; none without the states."""
    report, arrays = TaskReport(task, f"{path}:/{task}"), {}
    try:
        with reading(path):
            group = task_group(file, path, task)
            if not isinstance(group, h5py.Group):
                raise InputError(f"{report.place}: is no group; collect it again")
            report.attributes = {name: np.asarray(value).tolist() for name, value in group.attrs.items()}
            datasets = {name: data for name, data in group.items() if isinstance(data, h5py.Dataset)}
            if others := sorted(set(datasets) - set(KNOWN_FIELDS)):
                report.notes.append(f"{path}: holds {', '.join(others)}, which nothing reads")
            for name, data in datasets.items():
                share = data.id.get_storage_size() / max(1, data.nbytes)
                report.datasets[name] = (data.shape, str(data.dtype), share)
            arrays = {name: np.asarray(data[()]) for name, data in datasets.items() if name in KNOWN_FIELDS}
        if missing := [name for name in REQUIRED_FIELDS if name not in arrays]:
            raise InputError(f"{report.place}: lacks the dataset {', '.join(missing)}; collect it again")
        if arrays["states"].ndim < 2:
            raise InputError(
                f"{report.place}/states: has shape {arrays['states'].shape}, expected (steps, streams, entries); "
                f"{AXIS_OF_STREAMS}"
            )
    except InputError as error:
        report.problems.append(str(error))
        return report, {}
    report.shape = arrays["states"].shape[:2]
    for name, array in arrays.items():
        if name in ("rewards", "dones") and array.size == np.prod(report.shape):
            arrays[name] = array = array.reshape(report.shape)
        n_axes, most = (1, 2) if name == "compress_markers" else (2, array.ndim)
        fits = n_axes <= array.ndim <= most and array.shape[:n_axes] == report.shape[:n_axes]
        if array.dtype.kind not in NUMBER_KINDS or not fits or not array.size:
            report.problems.append(
                f"{report.place}/{name}: has shape {array.shape} of {array.dtype}, expected numbers for the "
                f"steps and streams of states, {report.shape}; collect it again"
            )
        else:
            report.ranges[name] = float(array.min()), float(array.max())
    return report, {} if report.problems else arrays


def _attribute_problems(report: TaskReport, expected: Expected) -> Iterable[str]:
    """Whether the attributes are those of this task in the env."""
    optimal = report.attributes.get("optimal_return", np.nan)
    if isinstance(optimal, (int, float)):
        report.optimum = float(optimal)
    else:
        yield f"{report.place}: optimal_return {optimal!r}: expected a number"
    if expected.tasks is None or report.task >= len(expected.tasks):
        return
    task = expected.tasks[report.task]
    for name, value in task.items():
        found, wanted = report.attributes.get(attribute_name(name)), np.asarray(as_attribute(value)).tolist()
        if found != wanted:
            yield (
                f"{report.place}: {name} is {'missing' if found is None else found}, expected {wanted} for this task of "
                "its env; collect it again"
            )
    best = env.optimal_return(expected.config, task)
    if best is not None and not np.isclose(report.optimum, best, rtol=RETURN_TOLERANCE):
        yield f"{report.place}: optimal_return is {report.optimum}, expected {best}; collect it again"


def _training_problems(path: Path, report: TaskReport, arrays: Arrays, expected: Expected) -> Iterable[str]:
    """Shapes, values and markers: what training would say of this task alone, and a range that it never checks."""
    spaces = expected.spaces
    if spaces is None:
        report.notes.append(f"{path}: what its values may be is guessed, since {expected.note}")
        spaces = guessed_spaces(arrays)
    try:
        space = HistoryFile(path, expected.config, [report.task], spaces=spaces).action_space
    except InputError as error:
        yield str(error)
        return
    if isinstance(space, gym.spaces.Box):
        low, high, actions = (  # alike in type: a float32 can lie just outside bounds of float64
            values.astype(np.float32) for values in (space.low.min(), space.high.max(), arrays["actions"])
        )
        if actions.min() < low or actions.max() > high:
            yield f"{report.place}/actions: {actions.min()} to {actions.max()}, the env takes {low} to {high}"


def guessed_spaces(arrays: Arrays) -> tuple[gym.Space, gym.Space]:
    """Spaces that hold any finite observation, and the actions that there are."""
    observations = gym.spaces.Box(-np.inf, np.inf, arrays["states"].shape[2:])
    actions, probs = arrays["actions"], arrays.get("action_probs")
    if np.issubdtype(actions.dtype, np.integer) and actions.min() >= 0 and "action_means" not in arrays:
        sizes = np.atleast_1d(actions.max(axis=(0, 1)).astype(int) + 1)
        if actions.ndim == 2:
            return observations, gym.spaces.Discrete(sizes[0] if probs is None else probs.shape[-1])
        if probs is not None:  # values that no action has may be of any entry
            sizes[-1] += max(0, probs.shape[-1] - sizes.sum())
        return observations, gym.spaces.MultiDiscrete(sizes)
    return observations, gym.spaces.Box(-np.inf, np.inf, actions.shape[2:])


def _region_problems(path: Path, report: TaskReport, arrays: Arrays, origin: Origin) -> Iterable[str]:
    if "compress_markers" not in arrays:
        report.notes.append(f"{path}: has no compress_markers: it can train standard AD only")
        return
    try:
        report.regions = read_regions(origin, arrays)
    except ValueError:  # told by `_training_problems`
        return
    (start, stop), length = report.regions[-1], origin.rollout_length or report.shape[0]
    if stop - start < length:
        report.notes.append(f"{report.place}: the last region is unfinished: {stop - start} of {length} steps")
    n_stream, total = origin.recorded.get("n_stream"), origin.recorded.get("total_source_timesteps")
    if isinstance(n_stream, int) and isinstance(total, int) and n_stream > 0:
        n_steps = -(-total // (length * n_stream)) * length  # whole rollouts
        if report.shape != (n_steps, n_stream):
            yield (
                f"{report.place}: has {report.shape[0]} steps of {report.shape[1]} streams, expected {n_steps} of "
                f"{n_stream} by its config; collect it again"
            )


def _learning_problems(path: Path, report: TaskReport, arrays: Arrays) -> Iterable[str]:
    """Returns and entropy per rollout, and whether attributes agree with the arrays."""
    report.entropy = entropy_per_rollout(arrays, report.regions)
    report.returns = returns_per_rollout(arrays, report.regions)
    if "dones" not in arrays:
        report.notes.append(f"{path}: has no dones: returns and gaps cannot be checked")
    told = np.atleast_1d(report.attributes.get("mean_return_per_rollout", report.returns))
    finished = report.returns[: len(told)]
    if not np.issubdtype(told.dtype, np.number) or told.ndim > 1:
        yield f"{report.place}: mean_return_per_rollout: expected a number for every rollout"
    elif len(report.returns) and len(report.returns) - len(told) not in (0, 1):  # 1: an unfinished last region
        yield f"{report.place}: mean_return_per_rollout has {len(told)} entries, expected {len(report.returns)}"
    elif len(report.returns) and not np.allclose(told, finished, rtol=RETURN_TOLERANCE, atol=1e-6, equal_nan=True):
        yield f"{report.place}: mean_return_per_rollout is not what the rewards give; collect it again"


def _gap_problems(report: TaskReport, arrays: Arrays) -> Iterable[str]:
    """Within an episode, each state must be the next state of the step before."""
    states, after = arrays["states"], arrays.get("next_states", np.zeros(0))
    if "dones" not in arrays or states.size != after.size:  # a wrong size is told by `_training_problems`
        return
    after = after.reshape(states.shape)
    if states.dtype.kind == after.dtype.kind == "f":  # a float32 is not the float64 that it was made from
        narrower = min(states.dtype, after.dtype, key=lambda dtype: dtype.itemsize)
        states, after = states.astype(narrower), after.astype(narrower)
    differs = (states[1:] != after[:-1]).any(axis=tuple(range(2, states.ndim)))
    gaps = np.argwhere(differs & ~arrays["dones"][:-1].astype(bool))
    if len(gaps):
        step, stream = (int(i) for i in gaps[0])
        yield (
            f"{report.place}: {len(gaps)} gap(s): the first after step {step} of stream {stream}, whose next state is "
            f"{after[step, stream].tolist()}, but the history goes on at {states[step + 1, stream].tolist()}"
        )


def _compare_tasks(path: Path, reports: list[TaskReport], expected: Expected) -> Iterable[str]:
    """Tasks that are missing, and what only some tasks have."""
    tasks = {report.task for report in reports}
    if missing := sorted(set(range(max(tasks) + 1 if expected.tasks is None else len(expected.tasks))) - tasks):
        yield f"{path}: tasks {missing} are missing; collect it again"
    readable = [report for report in reports if report.datasets]
    results = set(RESULTS) - {"optimal_return"}  # which a task may not know
    for names in (
        [set(r.datasets) & set(KNOWN_FIELDS) for r in readable],
        [set(r.attributes) & results for r in readable],
    ):
        if readable and (some := sorted(set.union(*names) - set.intersection(*names))):
            yield f"{path}: {', '.join(some)}: in some tasks only; collect it again"
