"""Returns of the episodes in a record of rewards and ends.

Letters in shapes: T environment steps, N environments or streams.
"""

from __future__ import annotations

import numpy as np


class RunningReturns:
    """The returns so far of the episodes that N environments are in."""

    def __init__(self, n_envs: int):
        self.running = np.zeros(n_envs)

    def step(self, rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
        """Returns of the episodes that this step ended, (episodes,). `rewards` and `dones` are (N,)."""
        self.running += rewards
        finished = self.running[dones]
        self.running[dones] = 0.0
        return finished


def mean_return(returns: list[float]) -> float:
    """NaN where no episode ended."""
    return float(np.mean(returns)) if returns else float("nan")


def mean_return_per_rollout(rewards: np.ndarray, dones: np.ndarray, regions: list[tuple[int, int]]) -> np.ndarray:
    """Mean return of the episodes that ended in each region, (regions,); NaN where none did.

    Args:
        rewards, dones: (T, N), True where an episode ended after the step.
        regions: half-open (start, stop) step indices.
    """
    returns, dones = RunningReturns(rewards.shape[1]), dones.astype(bool)
    finished = [returns.step(rewards[t], dones[t]) for t in range(len(rewards))]
    return np.array([mean_return(np.concatenate(finished[start:stop]).tolist()) for start, stop in regions])


def episode_returns(rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """Returns of finished episodes.

    Args:
        rewards: (T, N). dones: (T, N), True where an episode ended after the step.

    Returns:
        (N, episodes), cut to the number of episodes that every environment finished.
    """
    per_env = returns_per_env(rewards, dones)
    n_episodes = min(len(returns) for returns in per_env)
    return np.stack([returns[:n_episodes] for returns in per_env])


def returns_per_env(rewards: np.ndarray, dones: np.ndarray) -> list[np.ndarray]:
    """Returns of all finished episodes, (episodes,) of each environment; arguments as in `episode_returns`."""
    cumulative = rewards.cumsum(axis=0, dtype=np.float64)
    return [np.diff(cumulative[dones[:, n], n], prepend=0.0) for n in range(rewards.shape[1])]
