"""What summaries are asked in training: an auxiliary loss that makes a memory hold what its regions showed.

The action loss alone asks for what a region showed only now and then, in the steps where it matters; so summaries may stay
unused. Here every summary is asked which of some observations of its history occur in the regions that it stands for.
Related: Compressive Transformers (arXiv:1911.05507) train what they compress to give attention's results back.

Letters in shapes: B histories, R regions, L steps per history, S nodes (summaries and merged ones), Q questions, O
observation entries, D embedding, H heads, K summary tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_QUESTIONS = 64  # per history and update
WIDTH = 128  # of the space in which summaries and questions are compared


class Recall(nn.Module):
    """Tells from a summary's values, in all layers, whether an observation occurs in what it stands for.

    Args:
        n_values: a summary's values, in all layers. n_embd: D.
    """

    def __init__(self, n_values: int, n_embd: int):
        super().__init__()
        self.of_summaries = nn.Linear(n_values, WIDTH)
        self.of_questions = nn.Sequential(nn.Linear(n_embd, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, values: list[Tensor], questions: Tensor, occurs: Tensor, exists: Tensor) -> Tensor:
        """The mean over histories of their mean loss, so that parts of a batch may be averaged.

        Args:
            values: of each layer (B, H, S, K, width). questions: (B, Q, D) embedded observations. occurs: (B, S, Q)
                the right answers. exists: (B, S) False where a node stands for no steps.
        """
        summaries = torch.cat([of_layer.transpose(1, 2).flatten(2) for of_layer in values], dim=-1)  # (B, S, n_values)
        scores = self.of_summaries(summaries) @ self.of_questions(questions).mT / WIDTH**0.5  # (B, S, Q)
        losses = F.binary_cross_entropy_with_logits(scores.float(), occurs.float(), reduction="none").mean(dim=-1)
        return ((losses * exists).sum(dim=1) / exists.sum(dim=1)).mean()


def ask(batch: dict[str, Tensor], is_training: bool) -> Tensor:
    """(B, Q, O) the observations that are asked for: those at the same shares of each history's way."""
    # Held-out losses draw nothing: how often they are computed must not change the training that follows
    shares = torch.rand(N_QUESTIONS) if is_training else (torch.arange(N_QUESTIONS) + 0.5) / N_QUESTIONS
    observations, n_steps = batch["observations"], batch["region_lengths"].sum(dim=1, keepdim=True)
    steps = (shares.to(n_steps.device) * n_steps).long()  # (B, Q)
    return observations[torch.arange(len(steps), device=steps.device)[:, None], steps]


def answers(batch: dict[str, Tensor], asked: Tensor, regions: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Which observations, (B, Q, O), occur in the regions that nodes stand for.

    Args:
        regions: of each of S nodes.

    Returns:
        (B, S, Q) bool, and (B, S) whether a node's regions hold any step.
    """
    observations, lengths = batch["observations"], batch["region_lengths"]
    is_asked = torch.ones(*observations.shape[:2], asked.shape[1], dtype=torch.bool, device=asked.device)  # (B, L, Q)
    for entry in range(asked.shape[2]):  # one by one: images have many
        is_asked &= observations[:, :, None, entry] == asked[:, None, :, entry]
    ends, step = lengths.cumsum(dim=1)[:, None], torch.arange(is_asked.shape[1], device=lengths.device)[:, None]
    in_region = (step < ends) & (step >= ends - lengths[:, None])  # (B, L, R)
    in_regions = in_region.float().mT @ is_asked.float()  # (B, R, Q) how often
    stands_for = torch.zeros(len(regions), lengths.shape[1], device=lengths.device)
    for node, held in enumerate(regions):
        stands_for[node, list(held)] = 1
    return stands_for @ in_regions > 0, lengths.float() @ stands_for.T > 0
