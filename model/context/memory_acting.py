"""Acting with memory: cached keys and values that age, nothing is encoded anew.

Letters in shapes: N environments, M memory_regions, K summary tokens, T tokens per region, C new tokens, D embedding.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.context.boundaries import Boundaries
from model.spaces import action_shape
from model.tokens import TokenType
from model.transformer import attend_with_bias

OWN, PREVIOUS, HIDDEN = 0, 1, -1  # ages of slots; summaries count on from the previous region, the newest first
N_AGES = 18  # older summaries share the last one
MERGING = (N_AGES, N_AGES + 1)  # of two summaries that are merged, the older one first


def pair_to_merge(levels: list[int], memory_regions: int) -> int | None:
    """Where the two oldest neighbours of the same level stand, if there are more nodes than may be kept.

    Where no two neighbours are of the same level, the two oldest ones are merged.
    """
    if len(levels) <= memory_regions:
        return None
    pairs = [i for i in range(len(levels) - 1) if levels[i] == levels[i + 1]]
    return pairs[0] if pairs else 0


class MemoryContext:
    """What the model sees in each of N environments: its own region, the previous one, and summaries of older ones.

    `observe` and `record` alternate, as in RollingContext. The cache has slots for M + 1 summaries of K tokens,
    for the previous region and for the current one.

    Args:
        model, boundaries: as in RollingContext.
        context: the strategy, a Memory.
    """

    def __init__(self, model: nn.Module, context: nn.Module, n_envs: int, boundaries: Boundaries | None = None):
        self.model, self.context = model, context
        self.boundaries = boundaries or Boundaries(model, n_envs)
        self.N, self.K, self.T, self.M = n_envs, context.n_summary, context.n_positions, context.memory_regions
        trunk, self.device = model.transformer, model.device
        width = model.config["n_embd"] // trunk.n_head
        self.first_previous = (self.M + 1) * self.K if self.M else 0  # slots of the previous region ...
        self.first_own = self.first_previous + self.T  # ... and of the current one
        shape = (2, trunk.n_layer, n_envs, trunk.n_head, self.first_own + self.T, width)
        self.cache = torch.zeros(shape, device=self.device)  # keys and values
        self.levels: list[list[int]] = [[] for _ in range(n_envs)]  # of the summaries, oldest first
        self.previous_length = torch.zeros(n_envs, dtype=torch.long)  # tokens
        self.own_length = torch.zeros(n_envs, dtype=torch.long)
        self.region_lengths = torch.zeros(n_envs, 2, dtype=torch.long)  # steps of the previous and the current region
        self.ended = torch.ones(n_envs, dtype=torch.bool)
        self.newest: dict[str, Tensor] = {}
        self.waited = torch.zeros(n_envs)  # steps since the last reward or the episode's start
        # Steps waited for a reward at most: in older regions, in the previous and in the own one; 0 where there was none
        self.longest_wait = torch.zeros(n_envs, 3)
        self.ages = torch.full((n_envs, self.first_own + self.T), HIDDEN, device=self.device)  # of the slots
        self.bias = torch.empty(trunk.n_layer, n_envs, trunk.n_head, 1, self.first_own + self.T, device=self.device)
        self._set_bias(torch.arange(n_envs))
        positions = torch.arange(self.T, device=self.device)
        with torch.no_grad():  # what of a step's token is the same at every step of one position
            self.places = model.embed_place(torch.full_like(positions, TokenType.TRANSITION), positions)

    @property
    def n_steps(self) -> Tensor:
        """(N,) raw steps that each context holds."""
        return self.region_lengths.sum(1)

    def observe(self, observations: Tensor) -> Tensor:
        """Take the newest observations, (N, O); return the features to act from, (N, D)."""
        begins = self.ended.nonzero()[:, 0]
        if len(begins):
            self._finish_regions(begins[self.own_length[begins] > 0])
            self._append(begins, self._special(TokenType.COMPRESS_START, 0, len(begins)))
        self.region_lengths[:, 1] += 1
        assert int(self.n_steps.max()) <= 2 * self.context.region_capacity, "more raw steps than two regions"
        self.newest_token = self._embed_step(observations)
        features = self._append(torch.arange(self.N), self.newest_token)[:, 0]
        self.ended = self.boundaries.ends(features, self.region_lengths[:, 1])
        return features

    def record(self, actions: Tensor, rewards: Tensor, dones: Tensor, reached: Tensor | None = None) -> np.ndarray:
        """As in RollingContext."""
        taken = {"actions": actions, "rewards": rewards, "dones": dones, "reached": reached}
        self.newest = {name: values.to(self.device) for name, values in taken.items() if values is not None}
        self.boundaries.record(rewards, dones)
        self.waited += 1
        paid = (rewards != 0).cpu()
        own = self.longest_wait[:, 2]
        own.copy_(torch.where(paid, torch.maximum(own, self.waited), own))
        self.waited[paid | dones.bool().cpu()] = 0
        return self.ended.numpy().copy()

    def forget(self, envs: Tensor) -> None:
        """As in RollingContext."""
        for env in envs.tolist():
            self.levels[env] = []
        for held in (self.previous_length, self.own_length, self.region_lengths, self.waited, self.longest_wait):
            held[envs] = 0
        self.ended[envs] = True
        self._set_bias(envs)

    def seeks_reward(self, patience: float | None) -> Tensor:
        """As in RollingContext; summaries forget no reward."""
        longest = self.longest_wait.amax(dim=1)
        seeks = longest == 0 if patience is None else self.waited + 1 > patience * longest
        return seeks.to(self.device)

    # Looking inside -------------------------------------------------------------------------------

    @torch.no_grad()
    def attention_by_age(self) -> Tensor:
        """(n_layer, N, N_AGES) shares of the newest steps' attention, mean over heads; computed anew from the cache.

        The first share is that of the own region, then come the previous region and the summaries, the newest first.
        """
        is_later = torch.arange(self.first_own + self.T) >= (self.first_own + self.own_length)[:, None]  # (N, slots)
        is_later, weights = is_later[:, None, None].to(self.device), []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            bias = self.bias[layer].masked_fill(is_later, -torch.inf)
            of_layer, taken = attend_with_bias(q, *self.cache[:, layer], bias)
            weights.append(of_layer)  # (N, H, 1, slots)
            return taken

        self.model.transformer(self.newest_token, attend)
        per_slot = torch.stack(weights).mean(dim=2)[:, :, 0]  # (n_layer, N, slots), 0 where hidden
        ages = F.one_hot(self.ages.clamp(min=0), N_AGES).to(per_slot)  # (N, slots, N_AGES)
        return (per_slot[:, :, None] @ ages)[:, :, 0]

    def summary_values(self) -> list[Tensor]:
        """The values that summaries hold, (N, n_layer, H, K, width) each: the oldest first, the previous region's last.

        All environments must have ended their regions together.
        """
        last = int(self.previous_length[0]) - self.K
        firsts = [self.K * i for i in range(len(self.levels[0]))] + [self.first_previous + last] * (last >= 0)
        return [self.cache[1, :, :, :, first : first + self.K].transpose(0, 1).clone() for first in firsts]

    # The cache ------------------------------------------------------------------------------------

    def _embed_step(self, observations: Tensor) -> Tensor:
        """(N, 1, D) the newest step's token."""
        starts = self.n_steps == 1  # what led to a context's first step is not known
        if self.newest:
            before = {name: values[:, None] for name, values in self.newest.items()}
            if self.context.blank_starts:
                first, ended = self.region_lengths[:, 1] == 1, self.newest["dones"].bool().cpu()
                starts = starts | (first & ~(ended & self.model.config["with_dones"]))
        else:
            entries = action_shape(self.model.config["action_space"])
            before = {name: torch.zeros(self.N, 1, device=self.device) for name in ("rewards", "dones")}
            before["actions"] = torch.zeros(self.N, 1, *entries, device=self.device)
            before["reached"] = torch.zeros_like(observations)[:, None]
        starts = starts[:, None].to(self.device)
        x = self.model.embed_steps(observations[:, None], **before, starts=starts)
        return x + self.places[self.region_lengths[:, 1:].to(self.device)]

    def _special(self, kind: int, position: int, n: int) -> Tensor:
        """(n, 1, D) tokens that are no steps."""
        kind, position = (torch.tensor(value, device=self.device) for value in (kind, position))
        return self.model.embed_place(kind, position).expand(n, 1, -1)

    def _summary(self, level: int, n: int) -> Tensor:
        """(n, K, D) summary tokens."""
        kind, first = self.context.type_of(level), self.context.region_capacity + 2
        return torch.cat([self._special(kind, first + i, n) for i in range(self.K)], dim=1)

    def _finish_regions(self, envs: Tensor) -> None:
        """The current region of `envs` becomes the previous one, which becomes a summary of its own."""
        if not len(envs):
            return
        n, end = len(envs), self.context.region_capacity + 1
        self._append(envs, torch.cat([self._special(TokenType.COMPRESS_END, end, n), self._summary(1, n)], dim=1))
        has_older = envs[self.previous_length[envs] > 0]
        if self.M and len(has_older):
            self._keep_summaries(has_older)
        self.cache[:, :, envs, :, self.first_previous : self.first_own] = self.cache[:, :, envs, :, self.first_own :]
        self.previous_length[envs], self.own_length[envs] = self.own_length[envs], 0
        self.region_lengths[envs, 0], self.region_lengths[envs, 1] = self.region_lengths[envs, 1], 0
        older, previous, own = self.longest_wait[envs].unbind(1)
        older = torch.maximum(older, previous) if self.M else older
        self.longest_wait[envs] = torch.stack([older, own, torch.zeros_like(own)], dim=1)
        self._set_bias(envs)

    def _keep_summaries(self, envs: Tensor) -> None:
        """The summary tokens of the previous region go to the memory, and pairs of old ones are merged."""
        K = self.K
        for env in envs.tolist():
            last = self.first_previous + int(self.previous_length[env])
            slot = len(self.levels[env]) * K
            self.cache[:, :, env, :, slot : slot + K] = self.cache[:, :, env, :, last - K : last]
            self.levels[env].append(1)
        while True:
            at = {env: pair_to_merge(self.levels[env], self.M) for env in envs.tolist()}
            groups: dict[tuple[int, int], list[int]] = {}
            for env, pair in at.items():
                if pair is not None:
                    level = max(self.levels[env][pair : pair + 2]) + 1
                    groups.setdefault((pair, level), []).append(env)
            if not groups:
                return
            for (pair, level), members in groups.items():
                self._merge(torch.tensor(members), pair, level)

    def _merge(self, envs: Tensor, pair: int, level: int) -> None:
        """Summaries `pair` and `pair` + 1 of `envs` become one of `level`."""
        K, slots = self.K, slice(pair * self.K, (pair + 2) * self.K)
        made = torch.zeros(
            2, *self.cache.shape[1:2], len(envs), self.cache.shape[3], K, self.cache.shape[5], device=self.device
        )

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            children = (old[layer, envs][:, :, None, slots] for old in self.cache)
            merged = self.context.merge(layer, q[:, :, None], *children)  # one node each
            made[0, layer], made[1, layer] = merged[0][:, :, 0], merged[1][:, :, 0]
            return made[1, layer]

        self.model.transformer(self._summary(level, len(envs)), attend)
        rest = self.cache[:, :, envs, :, slots.stop : self.first_previous].clone()
        self.cache[:, :, envs, :, pair * K : (pair + 1) * K] = made
        self.cache[:, :, envs, :, (pair + 1) * K : self.first_previous - K] = rest
        for env in envs.tolist():
            self.levels[env][pair : pair + 2] = [level]

    def _set_bias(self, envs: Tensor) -> None:
        """What is added to attention scores in `envs` until their next region ends, by what each slot counts as."""
        n_slots, oldest = self.first_previous // self.K, N_AGES - 1
        ages = torch.full((len(envs), self.first_own + self.T), OWN)
        for row, env in zip(ages, envs.tolist()):
            n = len(self.levels[env])
            of_summaries = [min(PREVIOUS + n - i, oldest) for i in range(n)] + [HIDDEN] * (n_slots - n)
            row[: self.first_previous] = torch.tensor(of_summaries, dtype=torch.long).repeat_interleave(self.K)
        is_held = torch.arange(self.T) < self.previous_length[envs, None]
        ages[:, self.first_previous : self.first_own] = torch.where(is_held, PREVIOUS, HIDDEN)
        self.ages[envs] = ages = ages.to(self.device)  # (N', slots)
        bias = self.context.age_bias.detach()[:, :, ages.clamp(min=0)].transpose(1, 2)  # (n_layer, N', H, slots)
        self.bias[:, envs] = bias.masked_fill(ages[:, None] == HIDDEN, -torch.inf)[:, :, :, None]

    def _append(self, envs: Tensor, x: Tensor) -> Tensor:
        """Add C tokens, (N', C, D), to the current region of `envs`, and return their features."""
        C, at = x.shape[1], self.own_length[envs]  # (N',)
        stop = self.first_own + int(at.max()) + C
        held = slice(None) if len(envs) == self.N else envs  # a slice spares a copy
        places, later = self.first_own + at[:, None] + torch.arange(C), None  # (N', C)
        is_one_place = int(at.min()) == int(at.max())
        if not is_one_place or C > 1:
            later = (torch.arange(stop) > places[:, :, None])[:, None].to(self.device)  # (N', 1, C, slots)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.cache[0, layer], self.cache[1, layer]
            if is_one_place:
                keys[held, :, stop - C : stop], values[held, :, stop - C : stop] = k, v
            else:
                row = envs[:, None].expand(-1, C)
                keys[row, :, places], values[row, :, places] = k.transpose(1, 2), v.transpose(1, 2)
            bias = self.bias[layer, held, :, :, :stop]
            if later is not None:
                bias = bias.masked_fill(later, -torch.inf)
            return F.scaled_dot_product_attention(q, keys[held, :, :stop], values[held, :, :stop], attn_mask=bias)

        def attend_once(layer: int, *qkv: Tensor) -> Tensor:
            return attend(layer, *(z[:, :, None] for z in qkv)).flatten(1)

        trunk = self.model.transformer
        features = trunk.step(x[:, 0], attend_once)[:, None] if C == 1 else trunk(x, attend)
        self.own_length[envs] += C
        return features
