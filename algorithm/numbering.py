"""Numbers for what a source counts: observations, situations and steps.

A *situation* is an observation and how many steps of the episode have paid so far, up to `MOST_PAID`: on many tasks what
to do next changes with a reward, such as a key found. A *step* is a situation, an action and the observation that it led
to. Where a task begins anew after some rewards (`rewards_per_round`), those of the round count.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MOST_PAID = 2  # more rewards within an episode are not told apart


class Product:
    """Numbers all observations that are possible: vectors of whole numbers, (..., entries), each below its size."""

    def __init__(self, sizes: Iterable[int]):
        self.sizes = tuple(sizes)
        self.n = int(np.prod(self.sizes))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(..., entries) to (...)."""
        return np.ravel_multi_index(tuple(np.moveaxis(values.astype(np.int64), -1, 0)), self.sizes)


class Listed:
    """Numbers observations that were seen before; all others share one number more, the last.

    rows: of vectors, as `rows_of` gives them.
    """

    def __init__(self, rows: Iterable[bytes]):
        self.number_of = {row: number for number, row in enumerate(sorted(rows))}
        self.n = len(self.number_of) + 1

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(..., entries) to (...)."""
        numbers = [self.number_of.get(row, self.n - 1) for row in rows_of(values)]
        return np.array(numbers, dtype=np.int64).reshape(values.shape[:-1])


def rows_of(values: np.ndarray) -> list[bytes]:
    """(..., entries) numbers to the bytes of each vector: the same for vectors that are equal."""
    exact = np.ascontiguousarray(values, dtype=np.float64) + 0.0  # -0.0 becomes 0.0
    return exact.view(np.dtype((np.void, exact.itemsize * exact.shape[-1]))).ravel().tolist()


class Numbers:
    """Numbers for observations, situations and steps, (...) each.

    Args:
        observations: gives (..., entries) numbers below its `n`.
        rewards_per_round: after so many rewards a task begins anew; None is never.
    """

    def __init__(self, observations: Product | Listed, n_actions: int, rewards_per_round: int | None = None):
        self.observations, self.n_actions, self.n_observations = observations, n_actions, observations.n
        self.rewards_per_round = rewards_per_round
        self.n_stages = rewards_per_round or MOST_PAID + 1
        self.n_situations = self.n_stages * self.n_observations

    def stages(self, n_paid: np.ndarray) -> np.ndarray:
        """What of the number of rewards in the episode so far decides how the task goes on; below `n_stages`."""
        return n_paid % self.n_stages if self.rewards_per_round else np.minimum(n_paid, MOST_PAID)

    def situations(self, observations: np.ndarray, n_paid: np.ndarray) -> np.ndarray:
        return self.stages(n_paid) * self.n_observations + observations

    def steps(self, situations: np.ndarray, actions: np.ndarray, reached: np.ndarray) -> np.ndarray:
        return (situations * self.n_actions + actions) * self.n_observations + reached

    def places(self, steps: np.ndarray) -> np.ndarray:
        """The observation that steps lead to."""
        return steps % self.n_observations

    def pairs(self, steps: np.ndarray) -> np.ndarray:
        """Situation and action of steps: situation * A + action."""
        return steps // self.n_observations

    def n_paid(self, steps: np.ndarray) -> np.ndarray:
        """Rewards of the episode before steps, as far as `stages` tells them apart."""
        return self.pairs(steps) // self.n_actions // self.n_observations

    def arrivals(self, steps: np.ndarray) -> np.ndarray:
        """The observation that steps lead to, and the rewards before; a number below X."""
        return self.situations(self.places(steps), self.n_paid(steps))
