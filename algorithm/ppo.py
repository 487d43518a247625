"""PPO as the source algorithm: stable-baselines3's, built from a config."""

from __future__ import annotations

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv


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
            env,
            learning_rate=config["source_lr"],
            n_steps=config["n_steps"],
            batch_size=config["batch_size"],
            n_epochs=config["n_epochs"],
            gamma=config["gamma"],
            gae_lambda=config["gae_lambda"],
            clip_range=config["clip_range"],
            ent_coef=config["ent_coef"],
            vf_coef=config["vf_coef"],
            max_grad_norm=config["max_grad_norm"],
            policy_kwargs={"net_arch": list(config["net_arch"])},
            tensorboard_log=log_dir,
            seed=seed,
            device="cpu",  # small networks: a GPU only adds transfers
        )
