"""Wrappers for env YAMLs, beside Gymnasium's own."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box


class KeepEntries(gym.ObservationWrapper):
    """Shows some entries of an observation only, so that what tells the task is hidden.

    Args:
        env: its observations are a Box of one axis.
        entries: numbers of those that stay, in this order.
    """

    def __init__(self, env: gym.Env, entries: list[int]):
        super().__init__(env)
        self.entries, space = np.array(entries, dtype=int), env.observation_space
        self.observation_space = Box(space.low[self.entries], space.high[self.entries], dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self.entries]
