"""How sure a mean over training seeds and tasks is: the one bootstrap, for tables and for bands in figures."""

from __future__ import annotations

import numpy as np

N_DRAWS = 4000
CHUNK = 500  # draws at a time, so that memory stays bounded with thousands of tasks


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the mean over seeds and tasks: percentiles of a bootstrap (Efron, 1979) that resamples both.

    Repeats of one task are not independent, since they share the task and the weights: average over them first.
    A resampled mean never leaves the range of the values, and so neither does the interval.

    Args:
        values: (seeds, tasks, ...), finite; with trailing axes, such as episodes, there is an interval for each entry.

    Returns:
        Lower and upper end, of the shape of the trailing axes; NaN where one seed on one task cannot tell.
    """
    n_seeds, n_tasks, *trailing = values.shape
    if n_seeds * n_tasks == 1:
        return np.full(trailing, np.nan), np.full(trailing, np.nan)
    rng = np.random.default_rng(0)
    seeds = _frequencies(rng.integers(n_seeds, size=(N_DRAWS, n_seeds)))
    means = []
    for start in range(0, N_DRAWS, CHUNK):
        tasks = _frequencies(rng.integers(n_tasks, size=(CHUNK, n_tasks)))
        weights = seeds[start : start + CHUNK, :, None] * tasks[:, None, :]  # (draws, seeds, tasks), summing to 1
        means.append(weights.reshape(CHUNK, -1) @ values.reshape(n_seeds * n_tasks, -1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975), axis=0)
    lowest, highest = values.min(axis=(0, 1)), values.max(axis=(0, 1))  # rounding may step over them
    return np.clip(low.reshape(trailing), lowest, highest), np.clip(high.reshape(trailing), lowest, highest)


def _frequencies(drawn: np.ndarray) -> np.ndarray:
    """(draws, n) share of each index among the n that a draw holds."""
    n_draws, n = drawn.shape
    counts = np.bincount((drawn + n * np.arange(n_draws)[:, None]).ravel(), minlength=n_draws * n)
    return counts.reshape(n_draws, n) / n
