"""A2C as the source algorithm: stable-baselines3's, built from a config."""

from __future__ import annotations

from stable_baselines3 import A2C
from stable_baselines3.common.vec_env import VecEnv

from algorithm.on_policy import OnPolicySource


class A2CSource(OnPolicySource, A2C):
    """SB3's A2C with the settings of config/algorithm/a2c_*.yaml; one gradient step per rollout."""

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None):
        # As PPO does; sparse rewards give small advantages
        super().__init__(config, vec_env, seed, log_dir, normalize_advantage=True)
