"""The vocabulary of a window: kinds of tokens, and where each token comes from.

A window is a few regions of environment steps, oldest first. A step is one token. A context strategy
(model/context/) may put marker tokens around the regions: its `layout` says so in the terms defined here.

Letters in shapes: B batch, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    windows: (rows,) the window of the batch that each row is from; None: row i is window i. counts: (rows,) the windows that
    a row's tokens stand in; None: 1 each.
    """

    types: Tensor
    positions: Tensor
    steps: Tensor
    valid: Tensor
    next_types: Tensor
    windows: Tensor | None = field(default=None, kw_only=True)
    counts: Tensor | None = field(default=None, kw_only=True)


def following(types: Tensor, valid: Tensor) -> Tensor:
    """(B, T) token types to those of the tokens that follow; IGNORE before padding and at the end."""
    next_types = torch.full_like(types, IGNORE)
    next_types[:, :-1] = torch.where(valid[:, 1:], types[:, 1:], IGNORE)
    return next_types
