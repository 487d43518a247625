"""Key-to-Door that goes on: key and door are found again and again within one long episode. Scalar and batched.

It asks whether a memory lasts longer than it was trained: train on 500 steps, act for 4,000. Recurrent Summary Memory
(github.com/Jiaweeeeeen/RSM-ICLR) counts doors per 500 steps too, on another task: 8x8 cells, the key is seen once it is
held, and each door leads back to the start.
"""

from __future__ import annotations

from env.grid import Cell, distance
from env.key_to_door import DarkKeyToDoor, DarkKeyToDoorVecEnv


class EndlessKeyToDoor(DarkKeyToDoor):
    """Key, door, key, door, ...: 1.0 for each; never terminated.

    Key and door stay where they are, in different cells. When the door opens the agent stays too, and the key is to be
    fetched again. So half of the return, rounded down, is the number of doors opened.
    """

    n_stages = 2  # the key is to be found, or the door
    pays_evenly = True  # so the best return of a part of the life is known too

    def __init__(self, key: Cell, door: Cell, grid_size: int = 9, horizon: int = 500, render_mode: str | None = None):
        super().__init__(key, door, grid_size, horizon, render_mode)
        if self.key == self.door:
            raise ValueError(f"key and door are one cell, {self.key}; expected two")

    @staticmethod
    def tasks(config: dict) -> list[dict]:
        """Keyword arguments of every task: all pairs of different cells; `n_tasks` makes it a sample."""
        return [task for task in DarkKeyToDoor.tasks(config) if task["key"] != task["door"]]

    @property
    def optimal_return(self) -> float:
        """Going back and forth the shortest way."""
        left = self.horizon - max(1, distance(self.start, self.key))
        return float(1 + left // distance(self.key, self.door)) if left >= 0 else 0.0


class EndlessKeyToDoorVecEnv(DarkKeyToDoorVecEnv):
    """Many `EndlessKeyToDoor` tasks."""

    task_class = EndlessKeyToDoor
