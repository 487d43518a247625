"""Where regions end in acting, before they are full. Another rule is one class here and one line in `BOUNDARIES`.

Letters in shapes: N environments, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from history.news import News
from model.tokens import TokenType


class Boundaries:
    """Only full regions end, after `region_capacity` steps.

    Args:
        model: has `config`, `context` and `pred_token_type`, as AD.
        n_envs: N.
        draw: gives (N,) random numbers between 0 and 1, to rules that need them.
    """

    def __init__(self, model: nn.Module, n_envs: int, draw: Callable[[], np.ndarray] | None = None):
        self.model, self.draw = model, draw
        self.shortest, self.longest = model.config["shortest_region"], model.context.region_capacity

    def ends(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Whether regions end with their newest steps, (N,), which have the features (N, D); regions have (N,) steps."""
        return lengths == self.longest

    def record(self, rewards: Tensor, dones: Tensor) -> None:
        """Take what followed the newest steps, (N,) each."""


class Predicted(Boundaries):
    """Where the token-type head says so."""

    def ends(self, features: Tensor, lengths: Tensor) -> Tensor:
        predicted = (self.model.pred_token_type(features).argmax(-1) == TokenType.COMPRESS_END).cpu()
        return super().ends(features, lengths) | (predicted & (lengths >= self.shortest))


class AtNews(Boundaries):
    """Where there is news: the rule that `region_ends: news` cuts training histories with."""

    def __init__(self, model: nn.Module, n_envs: int, draw: Callable[[], np.ndarray] | None = None):
        super().__init__(model, n_envs, draw)
        self.news = News(n_envs)

    def ends(self, features: Tensor, lengths: Tensor) -> Tensor:
        return torch.from_numpy(self.news.ends(lengths.numpy(), self.shortest, self.longest))

    def record(self, rewards: Tensor, dones: Tensor) -> None:
        self.news.record(rewards.cpu().numpy(), dones.bool().cpu().numpy())


class AtRandom(Boundaries):
    """After lengths drawn evenly around their mean, `mean_region`: a control for rules that choose."""

    def __init__(self, model: nn.Module, n_envs: int, draw: Callable[[], np.ndarray] | None = None):
        super().__init__(model, n_envs, draw)
        self.low, self.high = random_lengths(self.shortest, self.longest, model.config["mean_region"])
        self.chosen = torch.zeros(n_envs, dtype=torch.long)

    def ends(self, features: Tensor, lengths: Tensor) -> Tensor:
        drawn = torch.from_numpy(self.low + np.floor(self.draw() * (self.high + 1 - self.low))).long()
        self.chosen = torch.where(lengths == 1, drawn, self.chosen)  # a region has just begun
        return super().ends(features, lengths) | (lengths >= self.chosen)


def random_lengths(shortest: int, longest: int, mean: float | None) -> tuple[int, int]:
    """The least and the greatest length of random regions; None: their mean is halfway between shortest and longest."""
    mean = (shortest + longest) / 2 if mean is None else min(max(mean, shortest), longest)
    reach = min(mean - shortest, longest - mean)
    return round(mean - reach), round(mean + reach)


BOUNDARIES = {"fixed": Boundaries, "predicted": Predicted, "news": AtNews, "random": AtRandom}
