"""The rolling context of acting: windows that grow step by step, with cached keys and values.

Letters in shapes: N environments, C steps a context can hold, R regions, D embedding, O observation entries.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.context.boundaries import Boundaries
from model.spaces import action_shape
from model.tokens import TokenType
from model.transformer import KVCache


class RollingContext:
    """What the model sees in each of N environments, under a strategy whose windows are read by causal attention.

    `observe` and `record` alternate. After a region's end the strategy says which steps to drop; those that
    stay are encoded anew: their cached keys were computed while the dropped ones were visible and would still
    carry them.

    Args:
        model: has `followed`, `embed_steps`, `embed_place`, `embed_window`, `transformer` and `pred_token_type`, as AD; its
            weights must not change while the context is in use.
        context: the strategy.
        n_envs: N.
        boundaries: say where regions end; default: where they are full.
    """

    def __init__(self, model: nn.Module, context: nn.Module, n_envs: int, boundaries: Boundaries | None = None):
        self.model, self.context = model, context
        self.boundaries = boundaries or Boundaries(model, n_envs)
        self.capacity = context.n_regions * context.region_capacity
        self.cache = KVCache(model.transformer, n_envs, context.n_tokens)
        self.device = self.cache.keys.device
        self.steps: dict[str, Tensor] = {}  # the window's steps, (N, C, ...); made when the first ones are known
        self.newest: dict[str, Tensor] = {}  # of each of these, what was taken last, (N, ...)
        self.everyone = torch.arange(n_envs)
        self.region_lengths = torch.zeros(n_envs, context.n_regions, dtype=torch.long)
        self.ended = torch.ones(n_envs, dtype=torch.bool)  # environments that start a region with the next step
        self.last_positions = torch.zeros(n_envs, dtype=torch.long)  # of each environment's newest token
        positions = torch.arange(context.n_positions, device=self.device)
        types = torch.full_like(positions, TokenType.TRANSITION)
        self.step_places = model.embed_place(types, positions).detach()  # (positions, D), looked up at every step

    @property
    def n_steps(self) -> Tensor:
        """(N,) steps that each context holds."""
        return self.region_lengths.sum(1)

    def observe(self, observations: Tensor) -> Tensor:
        """Take the newest observations, (N, O); return the features to act from, (N, D)."""
        self._roll()
        self._store("observations", self.n_steps, observations)
        self.region_lengths[:, -1] += 1
        assert int(self.n_steps.max()) <= self.capacity, "the context holds more than its regions"

        features = torch.empty(len(observations), self.model.config["n_embd"], device=self.device)
        renewed = self.ended.nonzero()[:, 0]
        if len(renewed):
            features[renewed] = self._encode(renewed)
        continuing = (~self.ended).nonzero()[:, 0]
        if len(continuing):
            features[continuing] = self._append(continuing)
        self.ended = self.boundaries.ends(features, self.region_lengths[:, -1])
        return features

    def record(self, actions: Tensor, rewards: Tensor, dones: Tensor, reached: Tensor | None = None) -> np.ndarray:
        """Take what followed the observation: (N,) each, (N, A) actions, and with `reached_observations` the
        (N, O) observation that an ended episode reached. Return where a region ended, (N,).
        """
        newest = self.n_steps - 1
        taken = {"actions": actions, "rewards": rewards, "dones": dones, "reached": reached}
        for name, values in taken.items():
            if values is not None:
                self._store(name, newest, values)
        self.boundaries.record(rewards, dones)
        return self.ended.numpy().copy()

    def forget(self, envs: Tensor) -> None:
        """Drop all that some environments have shown, (N',): a new context begins with their next step."""
        self.region_lengths[envs], self.ended[envs] = 0, True

    def seeks_reward(self, patience: float | None) -> Tensor:
        """(N,) whether each environment has to explore: nothing it remembers tells where the next reward is.

        So it is while its context holds no reward other than 0, and, unless `patience` is None, once it has
        waited more than `patience` times as long as for any reward in the context. A wait is counted in steps
        from the last reward, or from the start of the episode; the next step counts.
        """
        if "rewards" not in self.steps:
            return torch.ones(len(self.everyone), dtype=torch.bool, device=self.device)
        rewards, dones = self.steps["rewards"], self.steps["dones"]
        step = torch.arange(1, self.capacity + 1, device=self.device)
        newest = self.n_steps.to(self.device)[:, None]
        followed = step < newest  # (N, C); the newest step's reward is not known yet
        rewarded = (rewards != 0) & followed
        if patience is None:
            return ~rewarded.any(1)
        restarts = torch.where(rewarded | (dones.bool() & followed), step, 0).cummax(1).values  # of the waiting
        longest = torch.where(rewarded, step - F.pad(restarts[:, :-1], (1, 0)), 0).amax(1)
        return newest[:, 0] - restarts[:, -1] > patience * longest

    def window(self, envs: Tensor) -> dict[str, Tensor]:
        """The contexts of some environments as a batch, as `ADDataset` builds it from a history."""
        longest, lengths = int(self.n_steps[envs].max()), self.region_lengths[envs]
        batch = {name: values[envs, :longest] for name, values in self.steps.items()}
        for name in self.model.followed:  # nothing has followed the very first observation yet
            if name not in batch:
                batch[name] = self._nothing_yet(name, batch["observations"])
        starts = self.context.starts(lengths, batch["dones"])
        return batch | {"region_lengths": lengths.to(self.device), "starts": starts}

    def _store(self, name: str, index: Tensor, values: Tensor) -> None:
        """Write each environment's value at its own step index."""
        if name not in self.steps:
            empty = torch.zeros(len(values), self.capacity, *values.shape[1:], dtype=values.dtype, device=self.device)
            self.steps[name] = empty
        self.newest[name] = values = values.to(self.device)
        self.steps[name][self.everyone, index] = values

    def _roll(self) -> None:
        """Drop what is too old in environments whose region has ended."""
        envs = (self.ended & (self.n_steps > 0)).nonzero()[:, 0]
        if not len(envs):
            return
        n_dropped, self.region_lengths[envs] = self.context.roll(self.region_lengths[envs])
        source = (torch.arange(self.capacity) + n_dropped[:, None]).clamp(max=self.capacity - 1)  # (N', C)
        for values in self.steps.values():
            values[envs] = values[envs[:, None], source]

    def _encode(self, envs: Tensor) -> Tensor:
        """Encode the whole windows of `envs`; return their newest tokens' features, (N', D)."""
        batch = self.window(envs)
        x, layout = self.model.embed_window(batch)
        n_tokens = layout.valid.sum(1)
        features = self.model.transformer.encode(x, n_tokens.cpu(), self.cache, envs)
        newest = (torch.arange(len(envs)), n_tokens - 1)
        self.last_positions[envs] = layout.positions[newest].cpu()
        return features[newest]

    def _nothing_yet(self, name: str, observations: Tensor) -> Tensor:
        if name == "reached":
            return torch.zeros_like(observations)
        entries = action_shape(self.model.config["action_space"]) if name == "actions" else ()
        return torch.zeros(*observations.shape[:2], *entries, device=self.device)

    def _append(self, envs: Tensor) -> Tensor:
        """Encode only the newest step of `envs` and add it to the cache; return its features, (N', D)."""
        held = self.cache.rows(envs)
        step = {n: self.newest[n][held] for n in ("observations", *self.model.followed)}
        starts = torch.zeros_like(step["rewards"], dtype=torch.bool)
        self.last_positions[envs] += 1
        places = self.step_places[self.last_positions[envs].to(self.device)]
        x = self.model.embed_steps(**step, starts=starts) + places  # (N', D)
        return self.model.transformer.append(x, self.cache, envs)
