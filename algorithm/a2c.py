"""A2C as the source algorithm: stable-baselines3's, built from a config."""

from __future__ import annotations

from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from algorithm.exploration import with_exploration_bonus
from algorithm.settings import shared_settings


class A2CWrapper(A2C):
    """SB3's A2C with the settings of config/algorithm/a2c_*.yaml; one gradient step per rollout.

    It reads no `batch_size`, `n_epochs` and `clip_range`. The arguments are those of `PPOWrapper`.
    """

    def __init__(self, config: dict, env: VecEnv, seed: int, log_dir: str | None = None):
        super().__init__(
            "MlpPolicy",
            with_exploration_bonus(env, config),
            **shared_settings(config, seed, log_dir),
            normalize_advantage=True,  # as PPO does; sparse rewards give small advantages
        )
