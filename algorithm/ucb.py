"""Upper confidence bounds as a source: the classic learner for bandits (Auer et al., 2002).

Every stream learns on its own, and starts anew with each episode, since a bandit's episode is a whole life. The bonus
1 / sqrt(pulls) is that of the Decision-Pretrained Transformer (arXiv:2306.14892).

Letters in shapes: E streams, O observations, A actions.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from algorithm.source import Recorder, reached_observations


class UCB:
    """Takes the action whose mean reward, after this observation, plus bonus is highest; any of them where several are.

    The arguments are those of `Source`.

    Raises:
        ValueError: observations or actions are not Discrete.
    """

    def __init__(self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None):
        spaces = vec_env.observation_space, vec_env.action_space
        if not all(isinstance(space, gym.spaces.Discrete) for space in spaces):
            raise ValueError(
                f"alg: UCB counts: expected Discrete observations and actions, got {spaces[0]}, {spaces[1]}"
            )
        self.config, self.vec_env, self.rng = config, vec_env, np.random.default_rng(seed)
        self.shape = (vec_env.num_envs, *(int(space.n) for space in spaces))
        vec_env.seed(seed)

    def run(self) -> dict[str, np.ndarray]:
        n_steps, E = self.config["n_steps"], self.vec_env.num_envs
        recorder, everyone = Recorder(self.vec_env, n_steps), np.arange(E)
        counts, sums = np.zeros(self.shape), np.zeros(self.shape)  # (E, O, A)
        states = self.vec_env.reset()
        for step in range(-(-self.config["total_source_timesteps"] // (n_steps * E)) * n_steps):
            if step % n_steps == 0:
                recorder.start_region()
            probs = best(counts[everyone, states], sums[everyone, states])
            actions = (probs.cumsum(axis=1) < self.rng.random((E, 1))).sum(axis=1).clip(max=probs.shape[1] - 1)
            after, rewards, dones, infos = self.vec_env.step(actions)
            counts[everyone, states, actions] += 1
            sums[everyone, states, actions] += rewards
            counts[dones], sums[dones] = 0, 0
            reached = reached_observations(after, dones, infos)
            recorder.step(states, actions, rewards, reached, dones, {"action_probs": probs})
            states = after
        return recorder.history()


def best(counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """(E, A) how often actions were taken and what they paid, to (E, A) chances: equal ones for the highest bounds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.where(counts > 0, sums / counts + 1 / np.sqrt(counts), np.inf)
    highest = bounds == bounds.max(axis=1, keepdims=True)
    return highest / highest.sum(axis=1, keepdims=True)
