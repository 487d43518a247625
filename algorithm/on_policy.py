"""What those sources share that run an on-policy algorithm of stable-baselines3."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from algorithm.exploration import with_exploration_bonus
from algorithm.normalization import Unscaled, with_normalization
from algorithm.utils import HistoryLoggerCallback
from config.schema import KEYS, Key


def keys_of(alg: str) -> dict[str, Key]:
    """The config keys that one of the shipped algorithms reads, for classes of the user's that build on it."""
    return {name: replace(key, only=None) for name, key in KEYS["algorithm"].items() if alg in (key.only or ())}


class OnPolicySource:
    """Beside a class of SB3, as in `class PPOSource(OnPolicySource, PPO)`, makes that class a source.

    Args:
        config: the effective config; the keys of the algorithm file are read.
        vec_env: one environment per stream, all of one task.
        seed: seeds the policy's weights, its sampling and the environments.
        log_dir: TensorBoard folder, or None for no log.
        own: keyword arguments of the SB3 class, besides those that all on-policy ones take.
    """

    keys = keys_of("A2C")

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None, **own):
        self.config = config
        super().__init__(
            "MlpPolicy",
            with_normalization(with_exploration_bonus(Unscaled(vec_env), config), config),
            learning_rate=config["source_lr"],
            n_steps=config["n_steps"],
            gamma=config["gamma"],
            gae_lambda=config["gae_lambda"],
            ent_coef=config["ent_coef"],
            vf_coef=config["vf_coef"],
            max_grad_norm=config["max_grad_norm"],
            policy_kwargs={"net_arch": list(config["net_arch"])},
            tensorboard_log=log_dir,
            seed=seed,
            device="cpu",  # small networks: a GPU only adds transfers
            **own,
        )

    def run(self) -> dict[str, np.ndarray]:
        logger = HistoryLoggerCallback(compress_interval=self.config["n_steps"])
        self.learn(self.config["total_source_timesteps"], callback=logger, tb_log_name=self.config["alg"])
        return logger.history()
