"""Bandits: five arms of unknown mean reward, and a delay in the middle of a life.

Source: Decision-Pretrained Transformer (arXiv:2306.14892, section 4) for the bandit: means uniform in [0, 1], Gaussian
noise of 0.3. The delay asks whether what was learned before it is still known after it.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np

N_ARMS = 5
PULL, WAIT = 0, 1


class Bandit(gym.Env):
    """One episode is a whole life: half of the pulls, then `delay` steps at which nothing pays, then the other half.

    | | |
    |---|---|
    | observation | 0 pull, 1 wait: actions do nothing, `Discrete(2)` |
    | actions | the arm, `Discrete(5)` |
    | reward | the arm's mean, plus noise; 0.0 while waiting |
    | end | terminated after the last pull |

    Args:
        mean_0 to mean_4: the arms' mean rewards.
        n_pulls: pulls in an episode, an even number.
        delay: steps of waiting.
        noise: standard deviation of the rewards.
    """

    def __init__(
        self,
        mean_0: float = 0.1,
        mean_1: float = 0.3,
        mean_2: float = 0.5,
        mean_3: float = 0.7,
        mean_4: float = 0.9,
        n_pulls: int = 100,
        delay: int = 0,
        noise: float = 0.3,
    ):
        if n_pulls < 2 or n_pulls % 2 or delay < 0 or noise < 0:
            raise ValueError(
                f"n_pulls {n_pulls}, delay {delay}, noise {noise}: expected an even number above 0, and two from 0 on"
            )
        self.means = np.array([mean_0, mean_1, mean_2, mean_3, mean_4])
        self.n_pulls, self.delay, self.noise = n_pulls, delay, noise
        self.horizon = n_pulls + delay
        self.observation_space, self.action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(N_ARMS)
        self.steps_taken = 0

    @property
    def optimal_return(self) -> float:
        """Expected return of the best arm."""
        return float(self.n_pulls * self.means.max())

    @property
    def waits(self) -> bool:
        """Whether actions do nothing now."""
        return 0 <= self.steps_taken - self.n_pulls // 2 < self.delay

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps_taken = 0
        return self._observe(), {}

    def step(self, action):
        reward = 0.0 if self.waits else float(self.np_random.normal(self.means[action], self.noise))
        self.steps_taken += 1
        return self._observe(), reward, self.steps_taken >= self.horizon, False, {}

    def _observe(self) -> int:
        return WAIT if self.waits else PULL
