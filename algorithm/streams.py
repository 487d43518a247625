"""What those sources share whose streams learn each on its own.

Letters in shapes: E streams, A actions.
"""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from algorithm.source import Recorder, env_seed, reached_observations


class StreamLearners:
    """Acts in all streams of a task, and records it. The arguments are those of `Source`."""

    streams_share_policy = False

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None):
        self.config, self.vec_env, self.rng = config, vec_env, np.random.default_rng(seed)
        vec_env.seed(env_seed(seed))

    def policy(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(E, ...) observations to the distributions that are recorded, and those that are acted from, (E, A) each."""
        raise NotImplementedError

    def act(self, states: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(E, ...) observations to actions, and to what `Recorder.step` takes of the policy; by `policy` for Discrete ones."""
        probs, drawn_from = self.policy(states)
        drawn = (drawn_from.cumsum(axis=1) < self.rng.random((len(probs), 1))).sum(axis=1)
        return drawn.clip(max=probs.shape[1] - 1), {"action_probs": probs}

    def learn(
        self, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray, dones: np.ndarray, infos: list[dict]
    ) -> None:
        """Take what followed the states that `act` was last asked for; (E, ...) each."""
        raise NotImplementedError

    def run(self) -> dict[str, np.ndarray]:
        n_steps, E = self.config["n_steps"], self.vec_env.num_envs
        recorder, states = Recorder(self.vec_env, n_steps), self.vec_env.reset()
        for step in range(-(-self.config["total_source_timesteps"] // (n_steps * E)) * n_steps):
            if step % n_steps == 0:
                recorder.start_region()
            actions, policy = self.act(states)
            after, rewards, dones, infos = self.vec_env.step(actions)
            reached = reached_observations(after, dones, infos)
            self.learn(actions, rewards, reached, dones, infos)
            recorder.step(states, actions, rewards, reached, dones, policy)
            states = after
        return recorder.history()
