"""Environments for tests, registered so that worker processes can import them: `toy_envs:Buttons-v0`."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

ACTION_SPACES = {
    "multi_discrete": MultiDiscrete([3, 2]),
    "multi_binary": MultiBinary(3),
    "box": Box(-1, 1, (2, 2), np.float32),
    "discrete": Discrete(3),
}


class Buttons(gym.Env):
    """An action pays 1 for each of its entries that is the task's, and real-valued ones less with the distance."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}
    observation_space = Dict({"clock": Discrete(5), "lamps": Box(0, 1, (2, 2), np.float32)})

    def __init__(self, kind="multi_discrete", wanted=0, render_mode=None):
        self.action_space, self.wanted, self.render_mode = ACTION_SPACES[kind], wanted, render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.clock = 0
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype))
        self.clock += 1
        reward = float((1 - np.abs(np.asarray(action, float) - self.wanted).clip(max=1)).sum())
        return self._observe(), reward, self.clock == 4, False, {}

    def render(self):
        return np.full((8, 8, 3), 50 * self.clock, np.uint8)

    def _observe(self):
        return {"clock": self.clock, "lamps": np.full((2, 2), self.clock / 4, np.float32)}


class Lengths(gym.Env):
    """Episodes of known lengths, ended in turn and truncated in turn; every step pays 1, so a return is a length.

    An observation tells which of the `LENGTHS` the episode has, and how many steps it has had. The third step is a success.
    """

    LENGTHS = (3, 1, 5, 2, 4)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}
    observation_space, action_space, horizon = MultiDiscrete([5, 6]), Discrete(2), 5

    def __init__(self, first=0, render_mode=None):
        self.episode, self.render_mode = first - 1, render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.n_steps = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action):
        self.n_steps += 1
        ends = self.n_steps == self.LENGTHS[self.episode % 5]
        info = {"is_success": self.n_steps == 3}
        return self._observe(), 1.0, ends and self.episode % 2 == 0, ends and self.episode % 2 == 1, info

    def render(self):
        return np.full((8, 8, 3), 10 * (self.episode % 5) + self.n_steps, np.uint8)

    def _observe(self):
        return np.array([self.episode % 5, self.n_steps])


class Late(gym.Env):
    """Sound for a whole episode of 20 steps; at the fifth step of the next one it does what it is told to."""

    observation_space, action_space = Box(-1, 1, (2,), np.float32), Discrete(2)

    def __init__(self, fault=None):
        self.fault, self.n_steps = fault, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.n_steps += 1
        fault = self.fault if self.n_steps == 25 else None
        observation = {"nan": [0, np.nan], "shape": [0, 0, 0]}.get(fault, [0, 0])
        reward = None if fault == "reward" else 1 / (fault != "error")
        return np.array(observation, np.float32), reward, self.n_steps % 20 == 0, False, {}


class Row(gym.Env):
    """Five cells in a row, seen as real numbers; an episode begins in the middle and ends, paid, at the task's goal."""

    observation_space, action_space = Box(0, 1, (2,), np.float64), Discrete(2)

    def __init__(self, goal=0):
        self.goal = goal

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = 2
        return self._observe(), {}

    def step(self, action):
        self.cell = min(max(self.cell + 2 * int(action) - 1, 0), 4)
        found = self.cell == self.goal
        return self._observe(), float(found), found, False, {}

    def _observe(self):
        return np.array([self.cell / 7, 1 / 3])


gym.register("Buttons-v0", Buttons)
gym.register("Late-v0", Late)
gym.register("Lengths-v0", Lengths)
gym.register("Row-v0", Row)
