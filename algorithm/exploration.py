"""A bonus for rare observations. With it a source algorithm finds rewards that it would not find by chance."""

from __future__ import annotations

from collections import Counter

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from algorithm.source import reached_observations


class ExplorationBonus(VecEnvWrapper):
    """Adds `bonus / sqrt(n)` to every reward, n being the visits so far to the observation that it came with.

    Visits are counted over all streams and the whole run. Histories hold the rewards
    of the environment, without the bonus. Source: MBIE-EB (Strehl and Littman 2008), there for planning; with deep
    networks arXiv:1606.01868.

    Args:
        venv: discrete observations, since real-valued ones hardly ever come twice.
        bonus: for the first visit, in units of the rewards.
    """

    def __init__(self, venv: VecEnv, bonus: float):
        super().__init__(venv)
        self.bonus = bonus
        self.visits: Counter[bytes] = Counter()

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, earned, dones, infos = self.venv.step_wait()
        keys = [reached.tobytes() for reached in reached_observations(observations, dones, infos)]
        self.visits.update(keys)
        n_visits = np.array([self.visits[key] for key in keys])
        rewards = earned + self.bonus / np.sqrt(n_visits)
        return observations, rewards.astype(np.float32), dones, infos


def with_exploration_bonus(env: VecEnv, config: dict) -> VecEnv:
    """`env`, with the bonus that the config asks for, if any."""
    return ExplorationBonus(env, config["exploration_bonus"]) if config["exploration_bonus"] else env
