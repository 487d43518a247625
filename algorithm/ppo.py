"""PPO as the source algorithm: stable-baselines3's, built from a config."""

from __future__ import annotations

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from algorithm.on_policy import OnPolicySource
from config.schema import keys_of


class PPOSource(OnPolicySource, PPO):
    """SB3's PPO with the settings of config/algorithm/ppo_*.yaml; the arguments are those of `OnPolicySource`."""

    keys = keys_of("alg", "PPO")

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None):
        own = {"batch_size": config["batch_size"], "n_epochs": config["n_epochs"], "clip_range": config["clip_range"]}
        super().__init__(config, vec_env, seed, log_dir, **own)
