"""A causal pre-norm transformer with a key/value cache.

Letters in shapes: B batch, T tokens, D embedding, H heads, K head width, N environments, S cache slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE = (
    1024  # tokens that the perceptron takes at once on a CPU: the wide layer between its two then stays in the cache
)

# attend(layer, q, k, v) -> attended values, all (B, H, T, K)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def attend_from_one(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, H, K) queries, one each, and (N, H, S, K) keys and values to (N, D); bias is (N or 1, H or 1, S).

    For a single query plain products are faster than torch's own attention, which is made for many.
    """
    N, H, S, K = k.shape
    scores = torch.bmm((q * K**-0.5).reshape(N * H, 1, K), k.flatten(0, 1).transpose(1, 2))  # (N H, 1, S)
    if bias is not None:
        scores = (scores.view(N, H, S) + bias).view(N * H, 1, S)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(N, H * K)


def attend_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights and what they take. With a bias that is learned torch's own attention takes longer."""
    weights = ((q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2) + bias).softmax(-1)
    return weights, weights @ v


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and a residual connection."""

    def __init__(self, layer: int, n_embd: int, n_head: int, dropout: float):
        super().__init__()
        self.layer, self.n_head = layer, n_head
        self.norm_attention = nn.LayerNorm(n_embd)
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.attention_out = nn.Linear(n_embd, n_embd)
        self.norm_mlp = nn.LayerNorm(n_embd)
        self.mlp_in = nn.Linear(n_embd, 4 * n_embd)
        self.mlp_out = nn.Linear(4 * n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        B, T, D = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(B, T, 3, self.n_head, D // self.n_head)
        q, k, v = (z.transpose(1, 2) for z in qkv.unbind(2))  # each (B, H, T, K); so gradients need no reordering
        attended = attend(self.layer, q, k, v).transpose(1, 2).reshape(B, T, D)
        x = x + self.dropout(self.attention_out(attended))
        if x.device.type != "cpu" or B * T <= PIECE:
            return self._perceive(x)
        return torch.cat([self._perceive(piece) for piece in x.view(B * T, D).split(PIECE)]).view(B, T, D)

    def step(self, x: Tensor, attend: Attend) -> Tensor:
        """`forward` for one token each, (N, D), in acting; `attend` takes (N, H, K) and gives (N, D).

        So few rows take less time than the calls around them. Hence fewer calls: functions instead of modules, and
        products that add to the residual in place.
        """
        N, D = x.shape
        norm, qkv, out = self.norm_attention, self.qkv, self.attention_out
        h = F.linear(F.layer_norm(x, (D,), norm.weight, norm.bias, norm.eps), qkv.weight, qkv.bias)
        attended = attend(self.layer, *h.view(N, 3, self.n_head, D // self.n_head).unbind(1))
        x = (x + out.bias).addmm_(attended, out.weight.t())
        norm, wide, out = self.norm_mlp, self.mlp_in, self.mlp_out
        h = F.linear(F.layer_norm(x, (D,), norm.weight, norm.bias, norm.eps), wide.weight, wide.bias)
        return x.add_(out.bias).addmm_(F.gelu(h), out.weight.t())

    def _perceive(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x)))))


class KVCache:
    """Keys and values of N environments, each with its own number of tokens, in preallocated slots."""

    def __init__(self, trunk: Transformer, n_envs: int, n_slots: int):
        weight = trunk.norm_out.weight
        shape = (trunk.n_layer, n_envs, trunk.n_head, n_slots, weight.shape[0] // trunk.n_head)
        self.keys = torch.zeros(shape, device=weight.device, dtype=weight.dtype)  # (n_layer, N, H, S, K)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(n_envs, dtype=torch.long)  # tokens held per environment, on the CPU

    def rows(self, envs: Tensor) -> Tensor | slice:
        """What picks `envs`, in ascending order, out of N: a slice, which spares a copy, where it is all of them."""
        return slice(None) if len(envs) == len(self.lengths) else envs


class Transformer(nn.Module):
    """Maps embedded tokens to features; each token sees itself and the tokens before it."""

    def __init__(self, n_embd: int, n_layer: int, n_head: int, dropout: float = 0.0):
        super().__init__()
        self.n_layer, self.n_head, self.dropout = n_layer, n_head, dropout
        self.blocks = nn.ModuleList(Block(layer, n_embd, n_head, dropout) for layer in range(n_layer))
        self.norm_out = nn.LayerNorm(n_embd)
        self.apply(self._initialise)
        for name, weight in self.named_parameters():  # residual branches start small, as in GPT-2
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * n_layer))

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        for block in self.blocks:
            x = block(x, attend or self._attend_causally)
        return self.norm_out(x)

    def _attend_causally(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, H, T, K) queries, (B, H, S, K) keys and values to (B, H, T, K): causal, or with a bias that is not learned."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, dropout_p=dropout)

    @torch.no_grad()
    def attention(self, x: Tensor) -> Tensor:
        """(B, T, D) to the attention weights, (n_layer, B, H, T, T): how much each token takes from each other one."""
        weights = []
        later = torch.full((x.shape[1], x.shape[1]), -math.inf, device=x.device).triu(1)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            of_layer, taken = attend_with_bias(q, k, v, later)
            weights.append(of_layer)
            return taken

        self(x, attend)
        return torch.stack(weights)

    def encode(self, x: Tensor, n_tokens: Tensor, cache: KVCache, envs: Tensor) -> Tensor:
        """Encode whole sequences and let them replace what the cache held for `envs`.

        Args:
            x: (B, T, D), padded on the right.
            n_tokens: (B,) tokens of each sequence that are no padding.
            envs: (B,) the environments they belong to, in ascending order.
        """
        T, held = x.shape[1], cache.rows(envs)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.keys[layer, held, :, :T], cache.values[layer, held, :, :T] = k, v
            return self._attend_causally(layer, q, k, v)

        cache.lengths[envs] = n_tokens
        return self(x, attend)

    @torch.no_grad()
    def step(self, x: Tensor, attend: Attend) -> Tensor:
        """(N, D), one token each, to (N, D); see Block.step."""
        for block in self.blocks:
            x = block.step(x, attend)
        return self.norm_out(x)

    def append(self, x: Tensor, cache: KVCache, envs: Tensor) -> Tensor:
        """Add one token to each of `envs`; its features, (B, D), equal those of a full forward.

        Args:
            x: (B, D) the embedded tokens.
            envs: (B,) distinct environments, in ascending order.
        """
        at = cache.lengths[envs]  # (B,) the slot each new token takes
        longest, shortest = int(at.max()) + 1, int(at.min()) + 1
        held, new, bias = cache.rows(envs), (envs, slice(None), at), None
        if shortest == longest and isinstance(held, slice):
            new = (held, slice(None), longest - 1)  # one slot for all: a slice is written faster than by indices
        if shortest < longest:
            later = (torch.arange(longest) > at[:, None])[:, None].to(x.device)
            bias = torch.zeros(later.shape, device=x.device).masked_fill(later, -math.inf)  # (B, 1, S)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache.keys[layer], cache.values[layer]  # (N, H, S, K)
            keys[new], values[new] = k, v
            return attend_from_one(q, keys[held, :, :longest], values[held, :, :longest], bias)

        cache.lengths[envs] += 1
        return self.step(x, attend)
