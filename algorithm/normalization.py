"""Scaling of what a source algorithm sees: real-valued observations and rewards of any size come to about 1."""

from __future__ import annotations

from gymnasium.spaces import Box
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from algorithm.source import reached_observations


class Unscaled(VecEnvWrapper):
    """Remembers what came from the environments, for the history, before wrappers around it change it.

    Attributes:
        observed: (N, ...) the newest observations.
        reached: (N, ...) what the newest step led to; where an episode ended its last observation.
        earned: (N,) the newest rewards.
    """

    def reset(self):
        self.observed = self.venv.reset()
        return self.observed

    def step_wait(self):
        self.observed, self.earned, dones, infos = self.venv.step_wait()
        self.reached = reached_observations(self.observed, dones, infos)
        return self.observed, self.earned, dones, infos


def with_normalization(env: VecEnv, config: dict) -> VecEnv:
    """`env` under SB3's VecNormalize, if the config asks for it; rewards are scaled by their discounted sum's deviation."""
    if not config["normalize"]:
        return env
    return VecNormalize(env, norm_obs=isinstance(env.observation_space, Box), gamma=config["gamma"])
