"""What those sources share that run an on-policy algorithm of stable-baselines3."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from algorithm.exploration import with_exploration_bonus
from algorithm.normalization import Unscaled, with_normalization
from algorithm.source import env_seed
from algorithm.tabulated import policy_for
from algorithm.utils import HistoryLoggerCallback
from config.schema import keys_of


class TimeLimitValues(BaseCallback):
    """Adds to the rewards of episodes that a time limit cut what the policy expects after them, and says that it is done.

    SB3 does the same after this callback, to the last bit, but asks the policy once for each stream. Many streams end on
    the same observation, and the policy stays the same within a rollout.
    """

    def _on_rollout_start(self) -> None:
        self.values: dict[bytes, torch.Tensor] = {}  # (1,) of each observation, as bytes

    def _on_step(self) -> bool:
        rewards, infos, policy = self.locals["rewards"], self.locals["infos"], self.model.policy
        for stream in np.flatnonzero(self.locals["dones"]):
            last = infos[stream].get("terminal_observation")
            if last is None or not infos[stream].pop("TimeLimit.truncated", False):
                continue
            seen = np.asarray(last).tobytes()
            if seen not in self.values:
                with torch.no_grad():
                    self.values[seen] = policy.predict_values(policy.obs_to_tensor(last)[0])[0]
            rewards[stream] += self.model.gamma * self.values[seen]
        return True


class OnPolicySource:
    """Beside a class of SB3, as in `class PPOSource(OnPolicySource, PPO)`, makes that class a source.

    Args:
        config: a complete config; the keys of the algorithm file are read.
        vec_env: one environment per stream, all of one task.
        seed: seeds the policy's weights, its sampling and the environments.
        log_dir: TensorBoard folder, or None for no log.
        own: keyword arguments of the SB3 class, besides those that all on-policy ones take.
    """

    keys = keys_of("alg", "A2C")

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None, **own):
        self.config = config
        scaled = with_normalization(with_exploration_bonus(Unscaled(vec_env), config), config)
        super().__init__(
            policy_for(scaled, own.get("batch_size", config["n_steps"] * config["n_stream"])),
            scaled,
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
        self.env.seed(env_seed(seed))

    def run(self) -> dict[str, np.ndarray]:
        logger = HistoryLoggerCallback(compress_interval=self.config["n_steps"])
        callbacks = [logger, TimeLimitValues()]  # in this order: histories hold the rewards of the environment
        self.learn(self.config["total_source_timesteps"], callback=callbacks, tb_log_name=self.config["alg"])
        return logger.history()

    def _update_info_buffer(self, infos: list[dict], dones: np.ndarray | None = None) -> None:
        """SB3's, of the streams whose episode has ended: the others have nothing to tell."""
        ended = [] if dones is None else np.flatnonzero(dones)
        super()._update_info_buffer([infos[stream] for stream in ended], np.ones(len(ended), dtype=bool))
