"""Darkroom: find an unseen goal cell in a dark grid, and stay on it.

Two forms of the same dynamics: `Darkroom`, a plain Gymnasium environment, and `DarkroomVecEnv`,
which steps many of them (equal or different goals) at once with NumPy.

Source: the Darkroom task of Algorithm Distillation (arXiv:2210.14215, section 4).
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

MOVES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])  # (row, column) change per action


def start_cell(grid_size: int) -> tuple[int, int]:
    """The centre of the grid, where every episode starts."""
    return grid_size // 2, grid_size // 2


class Darkroom(gym.Env):
    """One Darkroom task.

    | | |
    |---|---|
    | observation | the cell, (row, column), `MultiDiscrete([grid_size, grid_size])` |
    | actions | 0 row+1, 1 row-1, 2 column+1, 3 column-1, 4 stay; walls stop a move |
    | reward | 1.0 on every step that ends on the goal, else 0.0 |
    | end | never terminated; truncated after `horizon` steps |
    """

    metadata = {"render_modes": []}

    def __init__(self, goal: tuple[int, int], grid_size: int = 9, horizon: int = 20):
        self.goal = tuple(int(g) for g in goal)
        if not all(0 <= g < grid_size for g in self.goal):
            raise ValueError(f"goal {self.goal} lies outside the {grid_size}x{grid_size} grid")
        self.grid_size, self.horizon = grid_size, horizon
        self.observation_space = gym.spaces.MultiDiscrete([grid_size, grid_size])
        self.action_space = gym.spaces.Discrete(len(MOVES))
        self.render_mode = None
        self.steps_taken = 0
        self.cell = np.array(start_cell(grid_size))

    @staticmethod
    def tasks(config: dict) -> list[dict]:
        """Keyword arguments of every task: task i has goal (i // grid_size, i % grid_size)."""
        n = config["grid_size"]
        return [{"goal": (i // n, i % n), "grid_size": n, "horizon": config["horizon"]} for i in range(n * n)]

    @property
    def optimal_return(self) -> float:
        """Return of the shortest path: the step that reaches the goal is already rewarded."""
        distance = sum(abs(g - s) for g, s in zip(self.goal, start_cell(self.grid_size)))
        return float(max(0, self.horizon - max(0, distance - 1)))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps_taken = 0
        self.cell = np.array(start_cell(self.grid_size))
        return self.cell.copy(), {}

    def step(self, action):
        self.cell = np.clip(self.cell + MOVES[action], 0, self.grid_size - 1)
        self.steps_taken += 1
        reward = float(tuple(self.cell) == self.goal)
        return self.cell.copy(), reward, False, self.steps_taken >= self.horizon, {}


class DarkroomVecEnv(VecEnv):
    """Many Darkroom tasks stepped at once, with the results of SB3's DummyVecEnv of `Darkroom`s.

    Args:
        tasks: one dict of `Darkroom` keyword arguments per environment; all of one size and horizon.
    """

    def __init__(self, tasks: list[dict]):
        self.envs = [Darkroom(**task) for task in tasks]  # hold each task's attributes; never stepped
        first = self.envs[0]
        if any((e.grid_size, e.horizon) != (first.grid_size, first.horizon) for e in self.envs):
            raise ValueError("all tasks of one DarkroomVecEnv need the same grid_size and horizon")
        self.grid_size, self.horizon = first.grid_size, first.horizon
        self.goals = np.array([e.goal for e in self.envs])
        self.start = np.array(start_cell(self.grid_size))
        super().__init__(len(tasks), first.observation_space, first.action_space)
        self.cells = np.tile(self.start, (self.num_envs, 1))
        self.steps_taken = 0  # one counter: all episodes have the same length and start together

    def reset(self):
        self.steps_taken = 0
        self.cells = np.tile(self.start, (self.num_envs, 1))
        self.reset_infos = [{} for _ in self.envs]
        self._reset_seeds()
        self._reset_options()
        return self.cells.copy()

    def step_async(self, actions):
        self.actions = np.asarray(actions)

    def step_wait(self):
        self.cells = np.clip(self.cells + MOVES[self.actions], 0, self.grid_size - 1)
        rewards = (self.cells == self.goals).all(axis=1).astype(np.float32)
        self.steps_taken += 1
        ended = self.steps_taken >= self.horizon
        infos = [{"TimeLimit.truncated": ended} for _ in self.envs]
        if ended:
            for info, cell in zip(infos, self.cells):
                info["terminal_observation"] = cell
            self.reset()
        return self.cells.copy(), rewards, np.full(self.num_envs, ended), infos

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [getattr(self.envs[i], attr_name) for i in self._get_indices(indices)]

    def set_attr(self, attr_name, value, indices=None):
        raise NotImplementedError("DarkroomVecEnv tasks are fixed; build a new one instead")

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError("DarkroomVecEnv has no scalar environments to call; use DummyVecEnv of Darkroom")

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False for _ in self._get_indices(indices)]
