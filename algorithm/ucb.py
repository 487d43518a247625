"""Upper confidence bounds as a source: the classic learner for bandits (Auer et al., 2002).

Every stream learns on its own, and starts anew with each episode, since a bandit's episode is a whole life. The bonus
1 / sqrt(pulls) is that of the Decision-Pretrained Transformer (arXiv:2306.14892).

Letters in shapes: E streams, O observations, A actions.
"""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

import env
from algorithm.streams import StreamLearners
from files import InputError


class UCB(StreamLearners):
    """Takes the action whose mean reward, after this observation, plus bonus is highest; any of them where several are.

    The arguments are those of `Source`.
    """

    def __init__(
        self, config: dict, vec_env: VecEnv, seed: int, log_dir: str | None = None, *, prepared: object = None
    ):
        super().__init__(config, vec_env, seed, log_dir)
        spaces = vec_env.observation_space, vec_env.action_space
        shape = (vec_env.num_envs, *(int(space.n) for space in spaces))
        self.counts, self.sums, self.everyone = np.zeros(shape), np.zeros(shape), np.arange(shape[0])  # (E, O, A)

    @staticmethod
    def prepare(config: dict, traj_dir: Path) -> None:
        """Raise InputError where observations or actions are not Discrete."""
        observations, actions = env.spaces(config)
        if not all(isinstance(space, gym.spaces.Discrete) for space in (observations, actions)):
            raise InputError(
                f"alg: UCB counts: expected Discrete observations and actions, got {observations}, {actions}; use PPO or A2C"
            )

    def policy(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.states = states
        probs = best(self.counts[self.everyone, states], self.sums[self.everyone, states])
        return probs, probs

    def learn(
        self, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray, dones: np.ndarray, infos: list[dict]
    ) -> None:
        self.counts[self.everyone, self.states, actions] += 1
        self.sums[self.everyone, self.states, actions] += rewards
        self.counts[dones], self.sums[dones] = 0, 0


def best(counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """(E, A) how often actions were taken and what they paid, to (E, A) chances: equal ones for the highest bounds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.where(counts > 0, sums / counts + 1 / np.sqrt(counts), np.inf)
    highest = bounds == bounds.max(axis=1, keepdims=True)
    return highest / highest.sum(axis=1, keepdims=True)
