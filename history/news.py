"""News: an episode that returned more than every earlier one of its learner, and the regions that end with it.

A learner has something new to learn from where it did better than ever before. It sees so with the first step of the
next episode, whose token tells the last reward and the episode's end. So that step is the last one of a region.

Letters in shapes: T environment steps, N learners.
"""

from __future__ import annotations

import numpy as np


class News:
    """Tells N learners' news, step by step.

    shown: (N,) whether the next step's token shows news.
    """

    def __init__(self, n: int):
        self.running, self.best, self.is_first = np.zeros(n), np.zeros(n), np.ones(n, dtype=bool)
        self.shown = np.zeros(n, dtype=bool)

    def ends(self, lengths: np.ndarray, shortest: int, longest: int) -> np.ndarray:
        """(N,) whether regions of (N,) steps end: with the first step that shows news, after `shortest` to `longest` steps."""
        return (lengths == longest) | (self.shown & (lengths >= shortest))

    def record(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        """Take what followed the newest step, (N,) each. A first episode is news if it returned more than 0."""
        self.running += rewards
        self.shown = dones & (self.running > self.best)
        self.best = np.where(dones & (self.is_first | self.shown), self.running, self.best)
        self.is_first &= ~dones
        self.running[dones] = 0


def news_ends(rewards: np.ndarray, dones: np.ndarray, shortest: int, longest: int) -> np.ndarray:
    """(T, N) rewards and ends of episodes to (T, N): True at the last step of each region, by `News.ends`."""
    news, lengths = News(rewards.shape[1]), np.zeros(rewards.shape[1], dtype=np.int64)
    ends = np.zeros(rewards.shape, dtype=bool)
    for t, (reward, done) in enumerate(zip(rewards, dones.astype(bool))):
        lengths += 1
        ends[t] = news.ends(lengths, shortest, longest)
        lengths[ends[t]] = 0
        news.record(reward, done)
    return ends
