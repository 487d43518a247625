"""Darkroom: find an unseen goal cell in a dark grid. Three tasks, each scalar and batched.

| | grid | start | goal | reward |
|---|---|---|---|---|
| `Darkroom` | 9x9; Darkroom-Large 15x15 | centre | differs between tasks | every step on the goal |
| `DarkroomPermuted` | 9x9 | (0, 0) | the far corner | every step on the goal; what the actions do differs |
| `DarkroomHard` | 17x17 | centre | differs between tasks | once, then the episode ends |

Source: Algorithm Distillation (arXiv:2210.14215, section 4); Permuted and Large are later papers' variants.
Arguments of the tasks that are not named here (`**settings`) are those of `GridTask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from env.grid import MOVES, Cell, GridTask, GridVecEnv, distance, shared_settings


class Darkroom(GridTask):
    """Stay on an unseen goal: 1.0 for every step that ends on it; never terminated.

    Over all goals the mean optimal return is 16.5 at 9x9 and horizon 20, and 43.5 at 15x15 and horizon 50
    (Darkroom-Large), from the centre.
    """

    def __init__(self, goal: Cell, grid_size: int = 9, horizon: int = 20, **settings):
        super().__init__(grid_size, horizon, **settings)
        self.goal = self.as_cell("goal", goal)

    @staticmethod
    def tasks(config: dict) -> list[dict]:
        """Keyword arguments of every task: task i has goal (i // grid_size, i % grid_size)."""
        n, shared = config["grid_size"], shared_settings(config)
        return [{"goal": (i // n, i % n)} | shared for i in range(n * n)]

    @property
    def optimal_return(self) -> float:
        """Return of the shortest path: the step that reaches the goal is already rewarded."""
        return float(max(0, self.horizon - max(0, distance(self.start, self.goal) - 1)))

    def arrive(self):
        return float(tuple(self.cell) == self.goal), False

    def marks(self):
        return [("goal", self.goal, False)]


class DarkroomVecEnv(GridVecEnv):
    """Many `Darkroom` tasks, with equal or different goals."""

    task_class = Darkroom

    def __init__(self, tasks: list[dict], render_mode: str | None = None):
        super().__init__(tasks, render_mode)
        self.goals = np.array([e.goal for e in self.envs])  # (N, 2)

    def arrive(self):
        on_goal = (self.cells == self.goals).all(axis=1)
        return on_goal.astype(np.float32), np.zeros_like(on_goal)


class DarkroomPermuted(Darkroom):
    """Darkroom from one corner to the opposite one, with permuted actions.

    Action `a` moves as action `permutation[a]` of `GridTask` does: which does what is to be learned in context.
    At 9x9 and horizon 50 the optimal return is 35: the 16th move arrives, and is rewarded.
    """

    def __init__(self, permutation: Sequence[int] = range(5), grid_size: int = 9, horizon: int = 50, **settings):
        super().__init__((grid_size - 1, grid_size - 1), grid_size, horizon, start=(0, 0), **settings)
        self.permutation = tuple(int(action) for action in permutation)
        if sorted(self.permutation) != list(range(len(MOVES))):
            raise ValueError(f"permutation {self.permutation}: expected each of 0 to {len(MOVES) - 1} once")
        self.moves = MOVES[list(self.permutation)]

    @staticmethod
    def tasks(config: dict) -> list[dict]:
        """Keyword arguments of every task: all 120 permutations, in lexical order."""
        shared = shared_settings(config)
        return [{"permutation": permutation} | shared for permutation in permutations(range(len(MOVES)))]


class DarkroomPermutedVecEnv(DarkroomVecEnv):
    """Many `DarkroomPermuted` tasks."""

    task_class = DarkroomPermuted


class DarkroomHard(Darkroom):
    """Darkroom with one reward per episode: 1.0 for reaching the goal, which terminates the episode.

    The paper gives the size and a reward of 1 exactly once, but not whether the episode then ends. Here it
    does, as in later public versions: idling to the horizon would fill the context with steps that say nothing.

    From the centre every goal is at most 16 moves away, so all are reachable within the paper's 20 steps,
    and the optimal return is 1. Reachable is not found at once: a random policy reaches half of the
    goals in less than one of 160 episodes, a corner in one of 180,000.
    """

    def __init__(self, goal: Cell, grid_size: int = 17, horizon: int = 20, **settings):
        super().__init__(goal, grid_size, horizon, **settings)

    @property
    def optimal_return(self) -> float:
        """1 where the goal can be reached in time, else 0."""
        return float(max(1, distance(self.start, self.goal)) <= self.horizon)

    def arrive(self):
        reached = tuple(self.cell) == self.goal
        return float(reached), reached


class DarkroomHardVecEnv(DarkroomVecEnv):
    """Many `DarkroomHard` tasks; their episodes end one by one."""

    task_class = DarkroomHard

    def arrive(self):
        rewards, _ = super().arrive()
        return rewards, rewards > 0
