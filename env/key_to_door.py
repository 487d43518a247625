"""Dark Key-to-Door: find an unseen key, then an unseen door. Scalar and batched.

Source: Algorithm Distillation (arXiv:2210.14215, section 4).
"""

from __future__ import annotations

from itertools import product

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnvWrapper

from env.grid import Cell, GridTask, GridVecEnv, distance, shared_settings


class DarkKeyToDoor(GridTask):
    """Reach the key, then the door: 1.0 for each, once per episode, in this order; never terminated.

    Observed is the cell only, as in `GridTask`: whether the key has been found, and where key and door are,
    the model infers from the rewards. A door that is reached without the key earns nothing. Where key and door
    are one cell, the step that finds the key does not open the door too; the next one does. The optimal return is 2.

    Every episode starts at the centre, as in the published figures compared with (DICP, arXiv:2502.19009); the
    paper starts them at random cells.
    """

    n_stages = 3  # of an episode: nothing is found, the key, the door too

    def __init__(self, key: Cell, door: Cell, grid_size: int = 9, horizon: int = 50, render_mode: str | None = None):
        super().__init__(grid_size, horizon, render_mode=render_mode)
        self.key, self.door = self.as_cell("key", key), self.as_cell("door", door)
        self.n_found = 0  # in this episode: 1 is the key, 2 the door too

    @staticmethod
    def tasks(config: dict) -> list[dict]:
        """Keyword arguments of every task: all pairs of a key and a door cell; `n_tasks` makes it a sample."""
        cells, shared = list(product(range(config["grid_size"]), repeat=2)), shared_settings(config)
        return [{"key": key, "door": door} | shared for key, door in product(cells, cells)]

    @property
    def optimal_return(self) -> float:
        """2 where both can be reached in time."""
        to_key = max(1, distance(self.start, self.key))
        to_door = to_key + max(1, distance(self.key, self.door))
        return float((to_key <= self.horizon) + (to_door <= self.horizon))

    def reset(self, *, seed=None, options=None):
        self.n_found = 0
        return super().reset(seed=seed, options=options)

    def arrive(self):
        sought = (self.key, self.door, None)[self.n_found]
        found = tuple(self.cell) == sought
        self.n_found = (self.n_found + found) % self.n_stages
        return float(found), False

    def marks(self):
        return [("door", self.door, self.n_found > 1), ("key", self.key, self.n_found > 0)]


class DarkKeyToDoorVecEnv(GridVecEnv):
    """Many `DarkKeyToDoor` tasks."""

    task_class = DarkKeyToDoor

    def __init__(self, tasks: list[dict], render_mode: str | None = None):
        self.n_found = np.zeros(len(tasks), dtype=np.int64)  # (N,)
        super().__init__(tasks, render_mode)
        self.keys, self.doors = np.array([e.key for e in self.envs]), np.array([e.door for e in self.envs])  # (N, 2)

    def begin_episodes(self, which):
        super().begin_episodes(which)
        self.n_found = np.where(which, 0, self.n_found)

    def arrive(self):
        sought = np.where(self.n_found[:, None] == 0, self.keys, self.doors)
        found = (self.cells == sought).all(axis=1) & (self.n_found < 2)
        self.n_found = (self.n_found + found) % self.task_class.n_stages
        return found.astype(np.float32), np.zeros_like(found)

    def scalar(self, i):
        task = super().scalar(i)
        task.n_found = int(self.n_found[i])
        return task


class ShowFound(VecEnvWrapper):
    """For the source alone: it sees another grid once the key is found, and another one behind the door.

    Its observation is the cell plus `grid_size` times what has been found in the episode, `n_found`, in both
    entries. PPO's policy has no memory: seeing the cell alone, it stayed at the key in all trials, as it also did
    with the number found as a third entry, for then what it learns on the way to the key leads it on the way back
    too. It is told nothing that the episode's rewards have not told; the model, which sees these, does without.
    """

    def __init__(self, venv: DarkKeyToDoorVecEnv):
        self.grid_size, self.n_stages = venv.grid_size, venv.task_class.n_stages
        super().__init__(venv, gym.spaces.MultiDiscrete([self.n_stages * venv.grid_size] * 2))

    def reset(self):
        return self.venv.reset()  # nothing is found yet

    def step_wait(self):
        before = self.venv.n_found
        cells, rewards, ended, infos = self.venv.step_wait()
        for i in np.flatnonzero(ended):
            n_found = (before[i] + int(rewards[i])) % self.n_stages
            infos[i]["terminal_observation"] = infos[i]["terminal_observation"] + self.grid_size * n_found
        return cells + self.grid_size * self.venv.n_found[:, None], rewards, ended, infos

    def recorded(self, observations: np.ndarray) -> np.ndarray:
        """What of the source's observations, (..., 2), goes into a history: the cells."""
        return observations % self.grid_size
