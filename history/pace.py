"""How fast a source's policy changes: the rule behind `compress_interval: auto`.

Two stretches of a history differ by the mean Kullback-Leibler divergence of the action distributions that were recorded
on the observations that both contain. A policy that depends on more than the observation (an explorer's plan) differs
between any two groups of streams. So one half of the streams is compared with the other half one stretch later, and
what the two halves differ by at the same time is subtracted.

Letters in shapes: T environment steps per stream, E streams, C cells of observations, S stretches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import gymnasium as gym
import numpy as np

from history.format import soft_target_names
from history.reader import HistoryFile

# Nats. PPO aims at about this much per update: Schulman et al. (arXiv:1707.06347, section 6.1) try 0.003, 0.01 and 0.03
THRESHOLD = 0.01
N_BINS = 4  # of each entry of a real-valued observation, with equally many steps in each
FLOOR = 1e-3  # share of a uniform distribution in every distribution, so that no divergence is infinite


def episode_lengths(history: HistoryFile) -> np.ndarray:
    """Steps of all finished episodes, (episodes,)."""
    found = []
    for task in range(len(history.task_steps)):
        stream, step = np.nonzero(_of_task(history, "dones", task).T)
        is_first = np.diff(stream, prepend=-1) > 0
        found.append(np.where(is_first, step + 1, np.diff(step, prepend=0)))
    return np.concatenate(found)


def shortest_change(history: HistoryFile, lengths: Iterable[int]) -> int | None:
    """The shortest of `lengths`, in steps, after which the policy has changed; None if there is none.

    While the policy changes at all, it must have changed from most stretches of this length to the next, by more than
    `THRESHOLD` nats in the mean over tasks. The file must have the policy's distributions, and streams to compare.
    """
    tasks = [_cells_and_moments(history, task) for task in range(len(history.task_steps))]
    for length in sorted(lengths):
        n_stretches = int(history.task_steps.min()) // length
        changes = np.array([_changes(*task, length, n_stretches) for task in tasks])  # (tasks, S - 1)
        known = np.isfinite(changes)
        mean = np.where(known, changes, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
        changed = np.flatnonzero(mean > THRESHOLD)
        if len(changed) and len(changed) > (changed[-1] + 1) / 2:
            return length
    return None


def _of_task(history: HistoryFile, name: str, task: int) -> np.ndarray:
    """(T, E, ...) one array of a task."""
    start, stop = history.task_offset[task : task + 2] * history.n_streams
    array = history.arrays[name][start:stop]
    return array.reshape(-1, history.n_streams, *array.shape[1:])


def _cells_and_moments(history: HistoryFile, task: int) -> tuple[np.ndarray, np.ndarray, Callable]:
    """(T, E) the cell of each observation, (T, E, ...) what is averaged over a cell, and the divergence of averages.

    Averaged are probabilities, or means and second moments of the entries of a Gaussian.
    """
    states = _of_task(history, "states", task)
    rows = states.reshape(-1, states.shape[-1])
    if isinstance(history.observation_space, gym.spaces.Box):
        edges = np.quantile(rows, np.arange(1, N_BINS) / N_BINS, axis=0)
        rows = (rows[:, None] > edges).sum(axis=1)
    cells = np.zeros(len(rows), dtype=np.int64)
    for column in rows.astype(np.int64).T:  # numbered anew each time, so that the numbers stay small
        cells = np.unique(cells * (column.max() + 1) + column, return_inverse=True)[1]
    cells = cells.reshape(states.shape[:2])
    names = soft_target_names(history.action_space)
    given = [_of_task(history, name, task).astype(np.float64) for name in names]
    if len(given) == 2:
        mean, std = given
        return cells, np.concatenate([mean, std**2 + mean**2], axis=-1), _gaussian_divergence
    return cells, (1 - FLOOR) * given[0] + FLOOR / given[0].shape[-1], _categorical_divergence


def _categorical_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p, q) in nats of (..., actions) probabilities."""
    return (p * np.log(p / q)).sum(axis=-1)


def _gaussian_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p, q) in nats of Gaussians with independent entries, given (..., means and second moments)."""
    (mean_p, second_p), (mean_q, second_q) = np.split(p, 2, axis=-1), np.split(q, 2, axis=-1)
    var_p, var_q = second_p - mean_p**2, second_q - mean_q**2
    return 0.5 * (np.log(var_q / var_p) + (var_p + (mean_p - mean_q) ** 2) / var_q - 1).sum(axis=-1)


def _changes(cells: np.ndarray, moments: np.ndarray, divergence: Callable, length: int, n_stretches: int) -> np.ndarray:
    """(S - 1,) by how many nats the policy changes from each stretch to the next; NaN where no observation recurs."""
    n_steps, n_cells = n_stretches * length, cells.max() + 1
    stretch, half = np.arange(n_steps)[:, None] // length, np.arange(cells.shape[1]) % 2
    place = ((stretch * 2 + half) * n_cells + cells[:n_steps]).ravel()

    def add_up(weights: np.ndarray | None) -> np.ndarray:  # (S, halves, C)
        return np.bincount(place, weights, n_stretches * 2 * n_cells).reshape(n_stretches, 2, n_cells)

    counts = add_up(None)
    sums = np.stack([add_up(entry) for entry in moments[:n_steps].reshape(n_steps * cells.shape[1], -1).T], axis=-1)
    means = sums / np.maximum(1, counts)[..., None]
    now, other_now, other_later = means[:-1, 0], means[:-1, 1], means[1:, 1]
    seen = np.minimum(np.minimum(counts[:-1, 0], counts[:-1, 1]), counts[1:, 1])  # (S - 1, C) by all three
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(seen > 0, divergence(now, other_later) - divergence(now, other_now), 0)
        return (excess * seen).sum(axis=-1) / seen.sum(axis=-1)
