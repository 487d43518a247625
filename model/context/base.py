"""What a context strategy is: which steps of its past the model sees, said once for training and acting.

The dataset asks it which steps make a window, the model how the window's tokens are laid out, and acting
what stays when a region ends. A new strategy is one file here and one line in `CONTEXT`.

Letters in shapes: B batch, L environment steps per window, R regions per window, N environments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from config.schema import Key
from history.paths import Histories
from model.context.boundaries import Boundaries
from model.context.rolling import RollingContext
from model.tokens import Layout, TokenType


@dataclass
class Timeline:
    """The histories that windows are cut from.

    n_steps: (tasks,) steps per stream. region_starts, region_lengths: (tasks, regions), 0 beyond n_regions,
    which is (tasks,); empty where rollouts are not known. stride: a window's next region is this many rollouts later.
    histories: puts training histories together; None where windows are cut from every `stride`-th rollout.
    """

    n_steps: np.ndarray
    n_regions: np.ndarray
    region_starts: np.ndarray
    region_lengths: np.ndarray
    stride: int
    histories: Histories | None = None


def interval_problems(config: dict, may_divide: bool) -> list[str]:
    """Whether regions of `compress_interval` steps can be made of rollouts of `n_steps`.

    A region is one rollout or several that follow each other; where `may_divide`, also a stretch of one.
    """
    interval, n_steps, stride = config["compress_interval"], config.get("n_steps"), config["region_stride"]
    if not isinstance(interval, int) or not n_steps or (may_divide and n_steps % interval == 0):
        return []
    if config["region_ends"] == "news":  # regions then follow a stream's life, not its rollouts
        return []
    n_rollouts, rest = divmod(interval, n_steps)
    if rest:
        divide = "divide it, " if may_divide else ""
        return [f"compress_interval {interval} must be n_steps {n_steps}, {divide}or be a multiple of it"]
    several = f"compress_interval {interval} is {n_rollouts} rollouts of n_steps {n_steps}"
    if n_rollouts > 1 and config["histories"] == "causal":
        return [f"{several}: with histories causal a region is within one rollout; use every or whole, or lower it"]
    if n_rollouts > stride and config["histories"] == "every":
        return [f"{several}: with region_stride {stride} regions overlap; use {n_rollouts} or more, or lower it"]
    return []


@dataclass
class Windows:
    """Which steps make a batch of windows.

    times: (B, L) step of the history. parts: (B, L) number, below n_parts, of the rollout within the window that
    the step is from; a part is of one stream. valid: (B, L) False for padding. region_lengths: (B, R), 0 for
    regions that do not exist: those before a history's first one, in whole histories those behind its last one.
    target_from: (B,) the first step whose action is a target. streams: (B, n_parts) the stream of each part; None
    leaves the choice to the dataset.
    """

    times: np.ndarray
    parts: np.ndarray
    n_parts: int
    valid: np.ndarray
    region_lengths: np.ndarray
    target_from: np.ndarray
    streams: np.ndarray | None = None

    def repeat(self, n: int) -> Windows:
        """All windows n times, one copy of all after the other."""
        arrays = {name: values for name, values in vars(self).items() if isinstance(values, np.ndarray)}
        return replace(
            self, **{name: np.tile(values, (n, *[1] * (values.ndim - 1))) for name, values in arrays.items()}
        )


def pack(starts: np.ndarray, lengths: np.ndarray) -> Windows:
    """Windows whose regions begin at steps `starts` and have `lengths` steps, (B, R) each; the last one has the targets."""
    ends = lengths.cumsum(axis=1)
    step = np.arange(ends[:, -1].max())  # (L,) index within the window
    region = np.minimum((step[None, :, None] >= ends[:, None, :]).sum(axis=-1), lengths.shape[1] - 1)  # (B, L)
    index = step - np.take_along_axis(ends - lengths, region, axis=1)
    return Windows(
        times=np.take_along_axis(starts, region, axis=1) + index,
        parts=region,
        n_parts=lengths.shape[1],
        valid=step < ends[:, -1:],
        region_lengths=lengths,
        target_from=ends[:, -1] - lengths[:, -1],
    )


class Context(nn.Module):
    """Base of the strategies. A strategy may hold weights of its own.

    Attributes:
        keys: further config keys, for a strategy that is named as `module:Class`.
        marks_regions: whether marker tokens stand around regions, so that the token-type head is trained.
        windows_are_histories: whether a window is a whole training history, as `histories` puts it together; else it is
            a piece of one.
        n_types: rows of the token-type embedding.
        n_regions: R, regions per window.
        n_currents: windows of a training batch that share all regions but their current one.
        region_capacity: the most steps of one region.
        n_positions: rows of the position embedding.
        n_tokens: the most tokens of a window, for RollingContext.
    """

    keys: dict[str, Key] = {}
    marks_regions: bool
    windows_are_histories = False
    n_types = len(TokenType)
    n_regions: int
    n_currents = 1
    region_capacity: int
    n_positions: int
    n_tokens: int

    @classmethod
    def problems(cls, config: dict) -> list[str]:
        """What is wrong with the config for this strategy, beyond types and ranges."""
        return []

    # Training -------------------------------------------------------------------------------------

    def untrained(self, timeline: Timeline) -> str | None:
        """What acting may show that no training window does, in words; None where there is nothing of this kind."""
        return None

    def n_places(self, timeline: Timeline) -> np.ndarray:
        """(tasks,) how many windows one stream of each task has."""
        raise NotImplementedError

    def cut(self, timeline: Timeline, tasks: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> Windows:
        """The windows number `places`, (B,), of the streams of `tasks`, (B,); `rng` for what is drawn."""
        raise NotImplementedError

    def layout(self, region_lengths: Tensor) -> Layout:
        """Lay out the tokens of windows with regions of (B, R) environment steps, as in `Windows`."""
        raise NotImplementedError

    def drawn_layout(self, region_lengths: Tensor) -> Layout:
        """As `layout`, for an update: with what the strategy draws anew for each, from torch's generator."""
        return self.layout(region_lengths)

    def shared_layout(self, region_lengths: Tensor, n_sharing: int) -> Layout:
        """As `layout`, with what windows i, i + B / n_sharing, i + 2 B / n_sharing, ... share laid out once."""
        raise NotImplementedError

    def read(self, trunk: nn.Module, x: Tensor, layout: Layout) -> Tensor:
        """(B, T, D) embedded windows to features; the trunk's own attention is causal."""
        return trunk(x)

    def auxiliary_losses(
        self, batch: dict[str, Tensor], layout: Layout, embed: nn.Module
    ) -> dict[str, tuple[Tensor, float]]:
        """Scalar losses beyond the model's own, `loss_...`, each with its weight.

        Args:
            layout: of this batch, as `read` has had it. embed: the model's embedding of observations.
        """
        return {}

    # Acting ---------------------------------------------------------------------------------------

    def rolling(self, model: nn.Module, n_envs: int, boundaries: Boundaries | None = None) -> RollingContext:
        """What acts with this strategy in N environments; see RollingContext."""
        return RollingContext(model, self, n_envs, boundaries)

    def roll(self, region_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Make room after a region's end: (N,) oldest steps to drop, and the (N, R) lengths that stay."""
        raise NotImplementedError

    def starts(self, region_lengths: Tensor, dones: Tensor) -> Tensor:
        """(N, L) `dones` of acting windows to (N, L) True at steps where what led to the step is not shown."""
        raise NotImplementedError
