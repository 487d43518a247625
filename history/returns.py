"""Returns of the episodes in a record of rewards and ends, and the learning curve of a history file.

Letters in shapes: T environment steps, N environments or streams.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

import env
from files import InputError
from history.format import NUMBER_KINDS
from history.markers import of_first_stream, region_bounds
from history.origin import Origin, check_env, open_history, origin_of, reading, task_group


class RunningReturns:
    """The returns so far of the episodes that N environments are in."""

    def __init__(self, n_envs: int):
        self.running = np.zeros(n_envs)

    def step(self, rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
        """Returns of the episodes that this step ended, (episodes,). `rewards` and `dones` are (N,)."""
        self.running += rewards
        finished = self.running[dones]
        self.running[dones] = 0.0
        return finished


def mean_return(returns: list[float]) -> float:
    """NaN where no episode ended."""
    return float(np.mean(returns)) if returns else float("nan")


def mean_return_per_rollout(rewards: np.ndarray, dones: np.ndarray, regions: list[tuple[int, int]]) -> np.ndarray:
    """Mean return of the episodes that ended in each region, (regions,); NaN where none did.

    Args:
        rewards, dones: (T, N), True where an episode ended after the step.
        regions: half-open (start, stop) step indices.
    """
    returns, dones = RunningReturns(rewards.shape[1]), dones.astype(bool)
    finished = [returns.step(rewards[t], dones[t]) for t in range(len(rewards))]
    return np.array([mean_return(np.concatenate(finished[start:stop]).tolist()) for start, stop in regions])


def episode_returns(rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """Returns of finished episodes, (N, episodes), cut to the number that every environment finished.

    Args:
        rewards, dones: (T, N), True where an episode ended after the step.
    """
    cumulative = rewards.cumsum(axis=0, dtype=np.float64)
    per_env = [np.diff(cumulative[dones[:, n], n], prepend=0.0) for n in range(rewards.shape[1])]
    n_episodes = min(map(len, per_env))
    return np.stack([returns[:n_episodes] for returns in per_env])


def source_curve(path: Path, tasks: list[int], config: dict) -> tuple[np.ndarray, np.ndarray]:
    """How the source learned, averaged over some tasks of a history file.

    Args:
        config: the env must be that of the file. `n_steps` is used only where the file does not tell its own.

    Returns:
        Episodes per stream after each rollout in which one ended, and the mean return in it; both (rollouts,).

    Raises:
        InputError: why there is no curve.
    """
    with open_history(path, config) as file:
        origin = origin_of(file, path, config)
        check_env(origin.recorded, path, config)
        of_tasks = [_returns_and_ends(file, task, path, origin, config) for task in tasks]
    if len({len(returns) for returns, _ in of_tasks}) > 1:
        raise InputError(f"{path}: its tasks have different numbers of rollouts")
    means = np.array([returns for returns, _ in of_tasks])  # (tasks, rollouts)
    n_ended = np.mean([ends for _, ends in of_tasks], axis=0)  # (rollouts,)
    ended = np.isfinite(means).any(axis=0)  # rollouts in which some episode ended
    if not ended.any():
        raise InputError(f"{path}: no episode of these tasks ended")
    return n_ended.cumsum()[ended], np.nanmean(means[:, ended], axis=0)


def _returns_and_ends(
    file: h5py.File, task: int, path: Path, origin: Origin, config: dict
) -> tuple[np.ndarray, np.ndarray]:
    """The mean return in each rollout of a task, and the episodes per stream that ended in it; both (rollouts,)."""
    with reading(path, config):
        group = task_group(file, path, task, config)
        if group is None:
            raise InputError(f"{path}: damaged: it has no group '{task}'; collect it again")
        names = [name for name in ("compress_markers", "dones", "rewards") if name in group]
        arrays = {name: group[name][()] for name in names}
        returns = group.attrs.get("mean_return_per_rollout")
    of_steps = {name: arrays[name] for name in ("dones", "rewards") if name in arrays}
    for name, array in of_steps.items():
        if array.dtype.kind not in NUMBER_KINDS or not array.ndim or not array.size:
            raise InputError(
                f"{path}:/{task}/{name}: has shape {array.shape} of {array.dtype}, expected numbers of all steps"
            )
        arrays[name] = array.reshape(len(array), -1)
    if len(shapes := {arrays[name].shape for name in of_steps}) > 1:
        raise InputError(
            f"{path}:/{task}: its dones and rewards have different shapes, {' and '.join(map(str, shapes))}"
        )
    if returns is not None and not np.issubdtype(np.asarray(returns).dtype, np.number):
        raise InputError(f"{path}:/{task}: mean_return_per_rollout: expected a number for every rollout")
    if returns is None and not {"dones", "rewards"} <= set(arrays):
        raise InputError(f"{path}:/{task}: has neither mean_return_per_rollout nor dones")
    length = origin.rollout_length or config["n_steps"]
    if "compress_markers" in arrays:
        bounds = region_bounds(of_first_stream(arrays["compress_markers"]))
    else:
        n_rollouts = len(arrays["dones"]) // length if returns is None else np.size(returns)
        bounds = [(start * length, (start + 1) * length) for start in range(n_rollouts)]
    if returns is None:
        returns = mean_return_per_rollout(arrays["rewards"], arrays["dones"], bounds)
    elif len(bounds) - np.size(returns) not in (0, 1):  # 1: an unfinished last region
        raise InputError(f"{path}:/{task}: mean_return_per_rollout is not that of its {len(bounds)} regions")
    returns, bounds = np.atleast_1d(returns), bounds[: np.size(returns)]
    if "dones" not in arrays:  # then all episodes count as the longest
        return returns, np.array([stop - start for start, stop in bounds]) / env.max_episode_steps(config)
    return returns, np.array([arrays["dones"][start:stop].sum() / arrays["dones"].shape[1] for start, stop in bounds])
