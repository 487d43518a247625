"""The token sequence of a window: the one place that says which token stands where.

A window is a few regions of environment steps, oldest first, the last one being the current region.
In compressed mode each region is bracketed by marker tokens, except that the current one is still open:

    <compress> x_1 ... x_80 </compress> <compress> x_81 ... x_160

In standard mode a window is one stretch of steps and has no marker tokens.

Letters in shapes: B batch, R regions per window, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class TokenType(IntEnum):
    """Row of `AD.token_type_embedding`, and class of the token-type head."""

    TRANSITION = 0
    COMPRESS_START = 1
    COMPRESS_END = 2


IGNORE = -100  # a target that does not count, as in torch's cross_entropy


@dataclass
class Layout:
    """Where each token of a batch of windows comes from; all (B, T), padded on the right.

    types: a TokenType. positions: row of the position embedding. steps: index of a transition's
    environment step within the window; 0 for markers. valid: False for padding.
    next_types: the type of the token that follows; IGNORE where that is unknown.
    """

    types: Tensor
    positions: Tensor
    steps: Tensor
    valid: Tensor
    next_types: Tensor


def n_positions(config: dict) -> int:
    """How many distinct positions a window can have."""
    if config["use_compressed_context"]:
        return config["context_regions"] * (config["compress_interval"] + 2)
    return config["n_transit"]


def n_kept_steps(config: dict) -> int:
    """Steps that stay of a full standard window when it rolls on."""
    n_transit = config["n_transit"]
    return min(max(1, int(n_transit * config["kept_fraction"])), n_transit - 1)


def layout_tokens(region_lengths: Tensor, config: dict) -> Layout:
    """Lay out the tokens of a batch of windows.

    A region's positions start where they would if all regions before it were full, so a short region
    does not move those behind it. A region that does not exist takes no place: a first region starts at 0.

    Args:
        region_lengths: (B, R) environment steps in each region; zeros come first, for regions that do
            not exist; the last is at least 1. R is 1 in standard mode.
    """
    B, R = region_lengths.shape
    device, compressed = region_lengths.device, config["use_compressed_context"]
    interval = config["compress_interval"]
    present = region_lengths > 0  # (B, R)
    n_tokens = region_lengths.clone()
    if compressed:
        n_tokens += present * 2  # both markers ...
        n_tokens[:, -1] -= 1  # ... but the current region is still open
    ends = n_tokens.cumsum(1)
    starts, first_steps = ends - n_tokens, region_lengths.cumsum(1) - region_lengths  # (B, R)

    t = torch.arange(int(ends[:, -1].max()), device=device).expand(B, -1)  # (B, T)
    region = (t[:, :, None] >= starts[:, None, :]).sum(-1) - 1  # (B, T) the last region that started
    index = t - starts.gather(1, region)  # within the region, markers included
    length = region_lengths.gather(1, region)
    valid = t < ends[:, -1:]

    types = torch.full_like(t, TokenType.TRANSITION)
    steps, positions = index, index
    if compressed:
        types = types.masked_fill(index == 0, TokenType.COMPRESS_START)
        types = types.masked_fill(index == length + 1, TokenType.COMPRESS_END)
        steps = index - 1
        n_missing = (~present).sum(1, keepdim=True)
        positions = (region - n_missing) * (interval + 2) + index
    is_step = valid & (types == TokenType.TRANSITION)
    steps = torch.where(is_step, first_steps.gather(1, region) + steps, 0)

    next_types = torch.full_like(types, IGNORE)
    next_types[:, :-1] = torch.where(valid[:, 1:], types[:, 1:], IGNORE)
    if compressed:  # a full current region ends here, a shorter one goes on to where nobody knows
        last = (ends[:, -1:] - 1, torch.where(region_lengths[:, -1:] == interval, TokenType.COMPRESS_END, IGNORE))
        next_types.scatter_(1, *last)
    return Layout(types, positions * valid, steps, valid, next_types)
