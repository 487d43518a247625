"""FrozenLake on random maps: which cells are holes is what differs between tasks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map, is_valid

N_TRIES = 200  # maps to look at for a way to the goal


@lru_cache
def has_ways(size: int, frozen: float) -> bool:
    """Whether random maps have a way to the goal often enough to find one. Gymnasium draws until it has one, be it for ever."""
    rng = np.random.default_rng(0)
    return 0 <= frozen <= 1 and any(is_valid(draw(rng, size, frozen), size) for _ in range(N_TRIES))


def draw(rng: np.random.Generator, size: int, frozen: float) -> np.ndarray:
    """(size, size) letters of a map, F for frozen cells and H for holes."""
    board = rng.choice(["F", "H"], (size, size), p=[frozen, 1 - frozen])
    board[0, 0], board[-1, -1] = "S", "G"
    return board


class FrozenLakeTask(FrozenLakeEnv):
    """Gymnasium's FrozenLake; the observation is the cell alone, so the map has to be found out.

    Args:
        map_seed: of the map; there is always a way from the start to the goal.
        size: rows and columns.
        frozen: the chance that a cell is no hole.
        is_slippery: whether two of three steps go to a side.
        settings: FrozenLake's own, such as `render_mode`.

    Attributes:
        optimal_return: the chance of the best policy to reach the goal, if time does not matter.
    """

    def __init__(self, map_seed: int = 0, size: int = 6, frozen: float = 0.8, is_slippery: bool = False, **settings):
        if size < 2 or not has_ways(size, frozen):
            raise ValueError(
                f"size {size}, frozen {frozen}: expected a size from 2 on, and frozen high enough, up to 1, for ways to the goal"
            )
        self.map = generate_random_map(size=size, p=frozen, seed=map_seed)
        super().__init__(desc=self.map, is_slippery=is_slippery, **settings)

    @property
    def optimal_return(self) -> float:
        values = np.zeros(self.observation_space.n)
        for _ in range(1000):  # value iteration
            before, values = values, np.array([self._best(of_cell, values) for of_cell in self.P.values()])
            if np.abs(values - before).max() < 1e-10:
                break
        return float(values[0])

    @staticmethod
    def _best(of_cell: dict[int, list[tuple]], values: np.ndarray) -> float:
        """The best action's value in a cell, from what may follow each: chance, cell, reward, whether the episode ends."""
        return max(
            sum(p * (pays + (not ends) * values[to]) for p, to, pays, ends in of_action)
            for of_action in of_cell.values()
        )
