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
        self.n_streams, self.stride = n_streams, stride
        self.goes_on = mix_streams and n_streams > 1  # with the last policy, in other streams
        self.per_rollout, self.per_region = max(1, rollout_length // interval), max(1, interval // rollout_length)

    def draw(self, tasks: np.ndarray, n_regions: int, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B, R) first steps, lengths and streams of the regions of one history for each of (B,) tasks.

        A stream that ends before has regions of length 0 behind its last one. With mixed streams its last policy goes on.
        """
        B = len(tasks)
        steps = np.zeros((B, n_regions), dtype=np.int64)  # from a region's stream to the next one's
        if self.goes_on:  # a region never repeats the one before
            steps[:, 1:] = rng.integers(1, self.n_streams, size=(B, n_regions - 1))
        streams = (rng.integers(self.n_streams, size=(B, 1)) + steps.cumsum(axis=1)) % self.n_streams
        part = rng.integers(self.per_rollout, size=(B, n_regions))
        rollouts = self.rollouts(tasks, part, streams, rng)
        last = (self.n_rollouts[tasks] - self.per_region)[:, None]
        lengths = np.where(self.goes_on | (rollouts <= last), self.interval, 0)
        return np.minimum(rollouts, last) * self.rollout_length + part * self.interval, lengths, streams

    def rollouts(self, tasks: np.ndarray, part: np.ndarray, streams: np.ndarray, rng: Generator) -> np.ndarray:
        """(B, R) the first rollout of each region, which may be beyond the last one: every `stride`-th one."""
        n_starts = (self.n_rollouts[tasks] - self.per_region + 1)[:, None]
        first = rng.integers(self.stride, size=(len(tasks), 1)) % n_starts
        return first + self.stride * np.arange(part.shape[1])

    def most_regions(self, n_regions: int) -> int:
        """How many of `n_regions` regions the longest history has."""
        if self.goes_on:
            return n_regions
        return min(n_regions, 1 + int(self.n_rollouts.max() - self.per_region) // self.stride)


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
        repeats: a stream's last region stands for those that it lacks, instead of regions of length 0.
    """

    def __init__(self, *args, ends: list[np.ndarray] | None = None, repeats: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.repeats = repeats
        self.stops = None if ends is None else [[np.flatnonzero(e) + 1 for e in of_task.T] for of_task in ends]

    def draw(self, tasks: np.ndarray, n_regions: int, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        streams = rng.integers(self.n_streams, size=len(tasks))
        if self.stops is None:
            n_held = self.n_rollouts[tasks][:, None] * self.rollout_length // self.interval
            starts, stops = (bound * self.interval for bound in self._bounds(n_regions, n_held))
        else:
            starts, stops = self._cut(tasks, streams, n_regions)
        return starts, stops - starts, np.broadcast_to(streams[:, None], starts.shape)

    def most_regions(self, n_regions: int) -> int:
        if self.repeats:
            return n_regions
        if self.stops is None:
            return min(n_regions, int(self.n_rollouts.max()) * self.rollout_length // self.interval)
        return min(n_regions, max(len(stops) for of_task in self.stops for stops in of_task))

    def _cut(self, tasks: np.ndarray, streams: np.ndarray, n_regions: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, R) starts and stops of the first regions of lives."""
        starts, stops = np.zeros((2, len(tasks), n_regions), dtype=np.int64)
        for row, (task, stream) in enumerate(zip(tasks, streams)):
            bounds = np.concatenate([[0], self.stops[task][stream]])
            starts[row], stops[row] = (bounds[at] for at in self._bounds(n_regions, len(bounds) - 1))
        return starts, stops

    def _bounds(self, n_regions: int, n_held: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Between which of a life's ends of regions each region lies, if it has `n_held`; the others are as its last, or empty."""
        first = np.minimum(np.arange(n_regions), n_held - 1 if self.repeats else n_held)
        return first, np.minimum(first + 1, n_held)


HISTORIES = {"every": Histories, "causal": CausalHistories, "whole": WholeHistories}
