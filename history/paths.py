"""Ways to put a training history together from a source's rollouts.

All streams of a task share their policy, so any sequence of its rollouts, each of any stream, is the history of a
learner that might have been. A history that passes through them by the clock teaches the clock: on a new task the
model grows confident with time, whatever it has seen. One that makes progress only where the context shows a
reason teaches to learn.

Letters in shapes: B histories, R regions per history, E streams.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator


class Histories:
    """Draws histories of R regions; a region is a stretch of one rollout, or several rollouts that follow each other.

    Args:
        n_rollouts: (tasks,) whole rollouts of each task.
        rollout_length: steps of a rollout.
        interval: steps of a region; it divides `rollout_length`, or is a multiple of it.
        n_streams: E.
        stride: mean progress in rollouts from a region to the next.
        mix_streams: each region of a random stream, another one than the region before; else all of one.
    """

    def __init__(
        self, n_rollouts: np.ndarray, rollout_length: int, interval: int, n_streams: int, stride: int, mix_streams: bool
    ):
        self.n_rollouts, self.rollout_length, self.interval = n_rollouts, rollout_length, interval
        self.n_streams, self.stride, self.mix_streams = n_streams, stride, mix_streams
        self.per_rollout, self.per_region = max(1, rollout_length // interval), max(1, interval // rollout_length)

    def draw(self, tasks: np.ndarray, n_regions: int, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B, R) first steps, lengths and streams of the regions of one history for each of (B,) tasks."""
        B = len(tasks)
        streams = rng.integers(self.n_streams, size=(B, n_regions if self.mix_streams else 1))
        streams = np.broadcast_to(streams, (B, n_regions)).copy()
        if self.mix_streams and self.n_streams > 1:  # a region never repeats the one before
            for i in range(1, n_regions):
                streams[:, i] = (streams[:, i] + (streams[:, i] == streams[:, i - 1])) % self.n_streams
        part = rng.integers(self.per_rollout, size=(B, n_regions))
        rollouts = self.rollouts(tasks, part, streams, rng)
        starts = rollouts * self.rollout_length + part * self.interval
        return starts, np.full_like(starts, self.interval), streams

    def rollouts(self, tasks: np.ndarray, part: np.ndarray, streams: np.ndarray, rng: Generator) -> np.ndarray:
        """(B, R) the first rollout of each region: every `stride`-th one; the last region goes on for ever."""
        first = rng.integers(self.stride, size=(len(tasks), 1))
        last = self.n_rollouts[tasks][:, None] - self.per_region
        return np.minimum(first + self.stride * np.arange(part.shape[1]), last)


class CausalHistories(Histories):
    """Progress only where the context shows a reason: a region that returned more than the first policy's usual one.

    A history begins in one of the first `stride` rollouts. After a region with a reason it goes on `stride` - 1 to
    `stride` + 2 rollouts later, else in the same rollout, in another stream. A region is within one rollout.

    Args:
        returns: per task, (regions, E) sum of rewards of every region of `interval` steps.
    """

    def __init__(self, *args, returns: list[np.ndarray], **kwargs):
        super().__init__(*args, **kwargs)
        usual = [np.median(of_task[: self.per_rollout]) for of_task in returns]
        longest = max(map(len, returns))
        self.has_reason = np.zeros((len(returns), longest, self.n_streams), dtype=bool)
        for task, of_task in enumerate(returns):
            self.has_reason[task, : len(of_task)] = of_task > usual[task]

    def rollouts(self, tasks: np.ndarray, part: np.ndarray, streams: np.ndarray, rng: Generator) -> np.ndarray:
        B, R = part.shape
        last, chosen = self.n_rollouts[tasks] - 1, np.zeros((B, R), dtype=np.int64)
        steps = rng.integers(max(1, self.stride - 1), self.stride + 3, size=(B, R))
        chosen[:, 0] = np.minimum(rng.integers(self.stride, size=B), last)
        for i in range(R - 1):
            region = chosen[:, i] * self.per_rollout + part[:, i]
            goes_on = self.has_reason[tasks, region, streams[:, i]]
            chosen[:, i + 1] = np.minimum(chosen[:, i] + goes_on * steps[:, i], last)
        return chosen


class WholeHistories(Histories):
    """A stream's own life from its beginning: for sources whose streams learn each on its own.

    Args:
        ends: per task, (T, E) True at the last step of each region; None: after every `interval` steps.
    """

    def __init__(self, *args, ends: list[np.ndarray] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.stops = None if ends is None else [[np.flatnonzero(e) + 1 for e in of_task.T] for of_task in ends]

    def draw(self, tasks: np.ndarray, n_regions: int, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        streams = rng.integers(self.n_streams, size=len(tasks))
        if self.stops is None:
            n_held = self.n_rollouts[tasks][:, None] * self.rollout_length // self.interval
            stops = (np.minimum(np.arange(n_regions), n_held - 1) + 1) * self.interval
            starts = stops - self.interval
        else:
            starts, stops = self._cut(tasks, streams, n_regions)
        return starts, stops - starts, np.broadcast_to(streams[:, None], starts.shape)

    def _cut(self, tasks: np.ndarray, streams: np.ndarray, n_regions: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, R) starts and stops of the first regions of lives; a short life's last region stands for those it lacks."""
        bounds = np.zeros((len(tasks), n_regions, 2), dtype=np.int64)
        for row, task, stream in zip(bounds, tasks, streams):
            stops = self.stops[task][stream]
            last = np.minimum(np.arange(n_regions), len(stops) - 1)
            row[:, 0], row[:, 1] = np.concatenate([[0], stops])[last], stops[last]
        return bounds[..., 0], bounds[..., 1]


HISTORIES = {"every": Histories, "causal": CausalHistories, "whole": WholeHistories}
