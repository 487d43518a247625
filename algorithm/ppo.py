"""PPO as the source algorithm: stable-baselines3's, built from a config."""

from __future__ import annotations

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from algorithm.exploration import with_exploration_bonus
from algorithm.settings import shared_settings


class PPOWrapper(PPO):
    """SB3's PPO with the settings of config/algorithm/ppo_*.yaml.

    Args:
        config: the effective config; the keys of the algorithm file are read.
        env: one environment per stream, all of one task.
        seed: seeds the policy's weights, its sampling and the environments.
        log_dir: TensorBoard folder, or None for no log.
    """

    def __init__(self, config: dict, env: VecEnv, seed: int, log_dir: str | None = None):
        super().__init__(
            "MlpPolicy",
            with_exploration_bonus(env, config),
            **shared_settings(config, seed, log_dir),
            batch_size=config["batch_size"],
            n_epochs=config["n_epochs"],
            clip_range=config["clip_range"],
        )
