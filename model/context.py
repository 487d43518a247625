"""The rolling context of in-context evaluation, encoded step by step.

Letters in shapes: N environments, C steps a context can hold, R regions, D embedding, O observation entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.tokens import TokenType, n_kept_steps
from model.transformer import KVCache

if TYPE_CHECKING:
    from model.ad import AD


class RollingContext:
    """What the model sees in each of N environments: the previous and the current region.

    `observe` and `record` alternate. At a region's end the finished region becomes the previous one, the
    older one is dropped, and the kept one is encoded anew: its cached keys were computed while the
    dropped region was visible and would still carry it. In standard mode the context grows to
    `n_transit` steps, then keeps the newest `kept_fraction` of them.

    Args:
        model: its weights must not change while the context is in use.
        n_envs: N.
        predict_ends: let the token-type head end regions, instead of `compress_interval` alone.
    """

    def __init__(self, model: AD, n_envs: int, predict_ends: bool = False):
        config = model.config
        self.model, self.compressed = model, config["use_compressed_context"]
        self.predict_ends = predict_ends and self.compressed
        n_regions = config["context_regions"] if self.compressed else 1
        self.region_capacity = config["compress_interval"] if self.compressed else config["n_transit"]
        self.capacity = n_regions * self.region_capacity
        self.n_kept = n_kept_steps(config)
        n_markers = 2 * n_regions - 1 if self.compressed else 0
        self.cache = KVCache(model.transformer, n_envs, self.capacity + n_markers)
        self.steps: dict[str, Tensor] = {}  # the window's steps, (N, C, ...); made when the first ones are known
        self.newest: dict[str, Tensor] = {}  # of each of these, what was taken last, (N, ...)
        self.everyone = torch.arange(n_envs)
        self.region_lengths = torch.zeros(n_envs, n_regions, dtype=torch.long)
        self.ended = torch.ones(n_envs, dtype=torch.bool)  # environments that start a region with the next step
        self.last_positions = torch.zeros(n_envs, dtype=torch.long)  # of each environment's newest token

    @property
    def n_steps(self) -> Tensor:
        """(N,) steps that each context holds."""
        return self.region_lengths.sum(1)

    def observe(self, observations: Tensor) -> Tensor:
        """Take the newest observations, (N, O); return the features to act from, (N, D)."""
        device = observations.device
        self._roll()
        self._store("observations", self.n_steps, observations)
        self.region_lengths[:, -1] += 1
        assert int(self.n_steps.max()) <= self.capacity, "the context holds more than its regions"

        features = torch.empty(len(observations), self.model.config["n_embd"], device=device)
        renewed = self.ended.nonzero()[:, 0]
        if len(renewed):
            features[renewed] = self._encode(renewed)
        continuing = (~self.ended).nonzero()[:, 0]
        if len(continuing):
            features[continuing] = self._append(continuing)
        self.ended[:] = False
        if self.predict_ends:
            predicted = self.model.pred_token_type(features).argmax(-1) == TokenType.COMPRESS_END
            self.ended |= predicted.cpu()
        self.ended |= self.region_lengths[:, -1] == self.region_capacity
        return features

    def record(self, actions: Tensor, rewards: Tensor, dones: Tensor) -> np.ndarray:
        """Take what followed the observation, (N,) each or (N, A) actions; return where a region ended, (N,)."""
        newest = self.n_steps - 1
        for name, values in (("actions", actions), ("rewards", rewards), ("dones", dones)):
            self._store(name, newest, values)
        return self.ended.numpy().copy()

    def seeks_reward(self, patience: float | None) -> Tensor:
        """(N,) whether each environment has to explore: nothing it remembers tells where the next reward is.

        So it is while its context holds no reward other than 0, and, unless `patience` is None, once it has
        waited more than `patience` times as long as for any reward in the context. A wait is counted in steps
        from the last reward, or from the start of the episode; the next step counts.
        """
        if "rewards" not in self.steps:
            return torch.ones(len(self.everyone), dtype=torch.bool, device=self.cache.keys.device)
        rewards, dones = self.steps["rewards"], self.steps["dones"]
        step = torch.arange(1, self.capacity + 1, device=rewards.device)
        newest = self.n_steps.to(rewards.device)[:, None]
        followed = step < newest  # (N, C); the newest step's reward is not known yet
        rewarded = (rewards != 0) & followed
        if patience is None:
            return ~rewarded.any(1)
        restarts = torch.where(rewarded | (dones.bool() & followed), step, 0).cummax(1).values  # of the waiting
        longest = torch.where(rewarded, step - F.pad(restarts[:, :-1], (1, 0)), 0).amax(1)
        return newest[:, 0] - restarts[:, -1] > patience * longest

    def window(self, envs: Tensor) -> dict[str, Tensor]:
        """The contexts of some environments as a batch, as `ADDataset` builds it from a history."""
        longest = int(self.n_steps[envs].max())
        batch = {name: values[envs, :longest] for name, values in self.steps.items()}
        return batch | {"region_lengths": self.region_lengths[envs].to(self.steps["observations"].device)}

    def _store(self, name: str, index: Tensor, values: Tensor) -> None:
        """Write each environment's value at its own step index."""
        device = self.cache.keys.device
        if name not in self.steps:
            empty = torch.zeros(len(values), self.capacity, *values.shape[1:], dtype=values.dtype, device=device)
            self.steps[name] = empty
        self.newest[name] = values = values.to(device)
        self.steps[name][self.everyone, index] = values

    def _roll(self) -> None:
        """Drop what is too old in environments whose region has ended."""
        envs = (self.ended & (self.n_steps > 0)).nonzero()[:, 0]
        if not len(envs):
            return
        lengths = self.region_lengths[envs]
        if self.compressed:
            n_dropped = lengths[:, 0]
            self.region_lengths[envs] = torch.cat([lengths[:, 1:], torch.zeros_like(lengths[:, :1])], dim=1)
        else:
            n_dropped = lengths[:, 0] - self.n_kept
            self.region_lengths[envs, 0] = self.n_kept
        source = (torch.arange(self.capacity) + n_dropped[:, None]).clamp(max=self.capacity - 1)  # (N', C)
        for values in self.steps.values():
            values[envs] = values[envs[:, None], source]

    def _encode(self, envs: Tensor) -> Tensor:
        """Encode the whole windows of `envs`; return their newest tokens' features, (N', D)."""
        batch = self.window(envs)
        for name in ("actions", "rewards", "dones"):  # nothing followed the newest observation yet
            if name not in batch:
                batch[name] = self._nothing_yet(name, batch["observations"])
        x, layout = self.model.embed_window(batch)
        n_tokens = layout.valid.sum(1)
        features = self.model.transformer.encode(x, n_tokens.cpu(), self.cache, envs)
        newest = (torch.arange(len(envs)), n_tokens - 1)
        self.last_positions[envs] = layout.positions[newest].cpu()
        return features[newest]

    def _nothing_yet(self, name: str, observations: Tensor) -> Tensor:
        space = self.model.config["action_space"]
        is_vector = name == "actions" and space["kind"] == "continuous"
        return torch.zeros(*observations.shape[:2], *(space["sizes"] if is_vector else []), device=observations.device)

    def _append(self, envs: Tensor) -> Tensor:
        """Encode only the newest step of `envs` and add it to the cache; return its features, (N', D)."""
        held = self.cache.rows(envs)
        step = {n: self.newest[n][held][:, None] for n in ("observations", "actions", "rewards", "dones")}
        is_none = torch.zeros_like(step["rewards"], dtype=torch.bool)
        self.last_positions[envs] += 1
        positions = self.last_positions[envs].to(is_none.device)[:, None]
        types = torch.full_like(positions, TokenType.TRANSITION)
        x = self.model.embed_steps(**step, is_none=is_none) + self.model.embed_place(types, positions)
        return self.model.transformer.append(x, self.cache, envs)[:, 0]
